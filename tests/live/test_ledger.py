"""What a live capture forgets is written first: each row once, each host counted once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from analyzer.ledger import Ledger
from analyzer.limits import Limits
from analyzer.live import _Sink
from analyzer.pipeline import Pipeline, run
from analyzer.tables import Tables
from analyzer.wire import files
from analyzer.wire.types import SourceInfo

_HOUR = 3_600_000_000_000
STORY = Path(__file__).resolve().parents[2] / "captures" / "story.pcapng"


def forgetful(limits: Limits) -> tuple[Tables, list[int]]:
    """The story's tables, told after every small batch; and how much was held after each telling."""
    pipeline = Pipeline(limits)
    ledger = Ledger(limits)
    pipeline.story = ledger
    pipeline.tables = sink = _Sink(limits, ledger, None, True)
    info = SourceInfo(str(STORY))
    held = []
    for frames in files.read(STORY, limits, info):
        pipeline.feed(frames)
        ledger.retell()
        for table, row in ledger.settle(int(frames.ts[-1])):
            sink.add(table, row)
        held.append(ledger.held)
    return pipeline.finish([info]), held


@pytest.fixture(scope="module")
def whole() -> Tables:
    return run([STORY]).tables


HASTY = Limits(batch_bytes=4096, live_decided_idle=0, queue_lifetime=0, live_lookup_age=0)
CROWDED = Limits(batch_bytes=4096, live_traces=1, live_lookups=3)


@pytest.mark.parametrize("limits", [HASTY, CROWDED], ids=["hasty", "crowded"])
def test_nothing_is_lost_and_nothing_told_twice(limits: Limits, whole: Tables) -> None:
    tables, held = forgetful(limits)
    assert max(held) <= 2

    def crossings(of: Tables) -> Counter[tuple[object, ...]]:
        return Counter(
            (h.session_id, h.message_index, h.kind, h.sha256, h.outcome) for h in of.rows("hops") if h.basis == "observed"
        )

    def lookups(of: Tables) -> Counter[tuple[object, ...]]:
        return Counter((t.frame, t.reply_frame, t.qname, tuple(t.answers or ())) for t in of.rows("dns"))

    assert crossings(tables) == crossings(whole)
    assert lookups(tables) == lookups(whole)
    for table in ("sessions", "commands"):
        assert list(tables.rows(table)) == list(whole.rows(table))
    assert {ip: h.sessions for h in tables.rows("hosts") for ip in h.ips if h.sessions} == {
        ip: h.sessions for h in whole.rows("hosts") for ip in h.ips if h.sessions
    }


def test_what_is_finished_early_is_said() -> None:
    tables, _ = forgetful(CROWDED)
    assert "traces_finished_early" in tables.anomaly_counts()


@pytest.mark.parametrize("idle", [35_000_000_000, 0], ids=["awake", "at rest at once"])
def test_within_the_limits_the_tables_are_those_of_the_file(whole: Tables, idle: int) -> None:
    tables, _ = forgetful(Limits(batch_bytes=4096, live_awake_idle=idle))
    for table in (
        "messages",
        "hops",
        "recipients",
        "deliveries",
        "timeline",
        "sessions",
        "commands",
        "dns",
        "hosts",
        "links",
        "anomalies",
    ):
        assert list(tables.rows(table)) == list(whole.rows(table)), table


def test_what_is_held_does_not_grow_with_time() -> None:
    """The same mail every hour: after the tenth hour no more is held than after the second."""
    limits = Limits(live_lookup_age=60_000_000_000)
    ledger = Ledger(limits)
    sizes = []
    for hour in range(10):
        pipeline = Pipeline(limits)  # connections of the same ends and numbers are not the ones before
        pipeline.story = ledger
        pipeline.tables = sink = _Sink(limits, ledger, None, False)
        told = Counter[str]()
        for frames in files.read(STORY, limits, SourceInfo("-")):
            pipeline.feed(replace(frames, ts=frames.ts + hour * _HOUR))
            ledger.retell()
            for table, row in ledger.settle(int(frames.ts[-1]) + (hour + 1) * _HOUR - 1):
                sink.add(table, row)
                told[table] += 1
        assert told["messages"] == 2
        held = (ledger._webs._strong, ledger._webs._faint, ledger._webs._sought, ledger._holder, ledger._ended, ledger.lookups)
        more = (ledger._mailbox, ledger._tries, ledger._news, ledger._known, list(ledger._known.ends()), ledger._claims_before)
        sizes.append([ledger.held, *map(len, held), *map(len, more)])
    assert sizes[9] == sizes[1]
