"""captures/delay.pcapng, end to end, against what Postfix logged of each try."""

import json
from pathlib import Path

import pytest

from analyzer.mail.records import Hop
from analyzer.pipeline import Result, run
from analyzer.views.trace import find

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
TRUTH = json.loads((CAPTURES / "delay.truth.json").read_text())
ROUNDED = 0.15
"""Seconds: Postfix rounds its delays, and counts from its own clock's MAIL to its own clock's reply."""


@pytest.fixture(scope="module")
def late() -> Result:
    return run([CAPTURES / "delay.pcapng"])


def taken(tables: object, message: dict[str, object]) -> list[Hop]:
    """Its hops but for the retrieval."""
    return [hop for hop in find(tables, message["message_id"]).hops if hop.kind != "retrieve"]  # type: ignore[arg-type]


@pytest.mark.parametrize("message", TRUTH["messages"], ids=lambda m: m["message_id"])
def test_each_try_that_reached_mail_is_a_hop(late: Result, message: dict[str, object]) -> None:
    submit, *tried = taken(late.tables, message)
    spoken = [each for each in message["tries"] if each["relay"] != "none"]
    fates = {"sent": "accepted", "deferred": "deferred"}
    assert submit.queue_id == spoken[0]["queue_id"]
    assert [hop.outcome for hop in tried] == [fates[each["status"]] for each in spoken]
    assert [hop.kind for hop in tried] == [{"smtp": "relay", "lmtp": "deliver"}[each["agent"]] for each in spoken]
    for hop, each in zip(tried, spoken, strict=True):
        assert hop.enhanced_code == each["enhanced_code"]
        assert f"{hop.code} {hop.reply_text}" in each["reply"]


@pytest.mark.parametrize("message", TRUTH["messages"], ids=lambda m: m["message_id"])
def test_waits_and_work_add_up_to_the_delays_that_postfix_logged(late: Result, message: dict[str, object]) -> None:
    submit, *tried = taken(late.tables, message)
    arrived = {submit.queue_id: submit} | {hop.queue_id: hop for hop in tried}
    spoken = [each for each in message["tries"] if each["relay"] != "none"]
    for hop, each in zip(tried, spoken, strict=True):
        begun = arrived[each["queue_id"]].ts_start
        assert (hop.ts_end - begun) / 1e9 == pytest.approx(each["delay_s"], abs=ROUNDED)
        before, queue, connection, _ = each["delays_s"]
        assert (hop.ts_start - begun) / 1e9 == pytest.approx(before + queue + connection, abs=ROUNDED)


def test_connections_that_came_to_nothing_are_told_with_the_message_they_were_for(late: Result) -> None:
    told = {m["message_id"]: find(late.tables, m["message_id"]) for m in TRUTH["messages"]}
    failed = {message_id: [(step.peer_ip, step.detail) for step in trace.failed()] for message_id, trace in told.items()}
    assert failed["<delay-1@example.org>"] == failed["<delay-2@example.org>"] == []
    assert failed["<delay-3@example.org>"] == [(TRUTH["hosts"]["store"][0], "to port 24: refused")]
    assert [peer for peer, _ in failed["<delay-4@example.org>"]] == ["10.2.0.99"]
    assert "unanswered" in failed["<delay-4@example.org>"][0][1]


@pytest.mark.parametrize(
    ("message_id", "where"),
    [
        ("<delay-1@example.org>", "in the queue of smtp.example.org before hop 3, 1 refused try included"),
        ("<delay-3@example.org>", "in the queue of mail.sample.com before hop 3, 1 connection that came to nothing included"),
        ("<delay-4@example.org>", "in the queue of smtp.example.org before hop 2, 1 connection that came to nothing included"),
    ],
)
def test_the_trace_says_who_kept_the_message(late: Result, message_id: str, where: str) -> None:
    assert where in " ".join(str(find(late.tables, message_id)).split())
