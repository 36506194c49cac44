"""The embedded story capture, end to end, against what the servers' own logs said."""

import json
from pathlib import Path

import pytest

from analyzer.limits import Limits
from analyzer.pipeline import Result, run
from analyzer.tables.schema import TABLES

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
TRUTH = json.loads((CAPTURES / "story.truth.json").read_text())


@pytest.fixture(scope="module")
def story() -> Result:
    return run([CAPTURES / "story.pcapng"])


def test_nothing_is_damaged_and_every_message_is_one_trace(story: Result) -> None:
    assert not story.damaged
    by_id = {m.message_id: m for m in story.tables.rows("messages")}
    assert set(by_id) == {m["message_id"] for m in TRUTH["messages"]}
    assert story.tables.count("messages") == len(TRUTH["messages"])
    for want in TRUTH["messages"]:
        got = by_id[want["message_id"]]
        assert (got.subject, got.mail_from) == (want["subject"], want["mail_from"])
        assert (got.outcome, got.retrieved) == ("delivered", True)


@pytest.mark.parametrize("want", TRUTH["messages"], ids=lambda m: m["message_id"])
def test_hops_have_the_roles_and_queue_ids_of_the_logs(story: Result, want: dict[str, object]) -> None:
    trace = next(m.trace_id for m in story.tables.rows("messages") if m.message_id == want["message_id"])
    hops = [h for h in story.tables.rows("hops") if h.trace_id == trace and h.kind != "retrieve"]
    said = [
        {
            "kind": h.kind,
            "client": h.client_ip,
            "server": h.server_ip,
            "roles": [h.client_role, h.server_role],
            "queue_id": h.queue_id,
        }
        for h in hops
    ]
    assert said == want["hops"]
    assert [h.parent_hop for h in hops] == [None, 1, 2]
    assert all(h.basis == "observed" and h.complete and h.outcome == "accepted" for h in hops)
    read = [h for h in story.tables.rows("hops") if h.trace_id == trace and h.kind == "retrieve"]
    assert sorted([h.protocol, h.client_ip] for h in read) == sorted(want["retrieved_by"])
    assert len({h.sha256 for h in read}) == 1  # the same octets on every device


def test_each_lookup_belongs_to_the_hop_it_served(story: Result) -> None:
    first = next(m.trace_id for m in story.tables.rows("messages") if m.message_id == "<story-1@example.org>")
    msa, mx, resolver = (TRUTH["hosts"][host][0] for host in ("msa", "mx", "resolver"))
    asked = [d for d in story.tables.rows("dns") if d.trace_id == first and d.server_ip == resolver]
    served = {(d.client_ip, d.qname, d.qtype): d for d in asked}
    assert served[msa, "sample.com.", "MX"].hop == 2
    assert served[msa, "mail.sample.com.", "A"].hop == 2
    assert served[mx, "example.org.", "TXT"].purpose == "spf"
    assert served[mx, "example.org.", "TXT"].hop == 2
    assert served[mx, "store.sample.com.", "A"].hop == 3
    roles = {(d.server_ip, d.server_role) for d in story.tables.rows("dns")}
    assert roles == {(resolver, "resolver"), (TRUTH["hosts"]["ns"][0], "authoritative")}


def test_the_mailbox_closes_the_story(story: Result) -> None:
    trace = {m.message_id: m.trace_id for m in story.tables.rows("messages")}
    pc, phone = TRUTH["hosts"]["pc-hanako"][0], TRUTH["hosts"]["phone"][0]

    def events(message_id: str) -> list[tuple[str, str | None]]:
        mailbox = {"notified", "retrieved", "flagged", "moved", "copied", "deleted", "expunged"}
        steps = [s for s in story.tables.rows("timeline") if s.trace_id == trace[message_id]]
        return [(s.event, s.actor_ip) for s in steps if s.event in mailbox]

    assert events("<story-1@example.org>") == [("retrieved", pc), ("deleted", pc)]
    second = events("<story-2@example.org>")
    assert [e for e, _ in second if e == "notified"] == ["notified"]
    assert {("retrieved", pc), ("flagged", pc), ("retrieved", phone), ("flagged", phone), ("moved", phone)} <= set(second)


def test_no_password_leaves_the_reader(story: Result) -> None:
    everything = "\n".join(repr(row) for name in TABLES for row in story.tables.rows(name))
    for secret in ("taro-in-the-lab", "hanako-in-the-lab", "AHRhcm9"):
        assert secret not in everything


@pytest.mark.parametrize("batch_bytes", [600, 5000, 1 << 20])
def test_the_size_of_a_batch_changes_nothing(story: Result, batch_bytes: int) -> None:
    again = run([CAPTURES / "story.pcapng"], limits=Limits(batch_bytes=batch_bytes))
    for name in TABLES:
        assert list(again.tables.rows(name)) == list(story.tables.rows(name)), name
