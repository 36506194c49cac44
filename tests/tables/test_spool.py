"""Rows come in any order and any number, and leave sorted, in bounded memory."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.mail.records import Host
from analyzer.protocols.base import Command
from analyzer.tables import TABLES, Tables
from analyzer.wire.anomalies import Anomaly

FEW = replace(Limits(), spool_rows=5)
maybe_ts = st.none() | st.integers(0, 5)
commands = st.builds(
    lambda ts, session, n, argument: synthetic.row(Command, ts=ts, session_id=session, n=n, argument=argument),
    maybe_ts,
    st.sampled_from(["a", "b"]),
    st.integers(0, 3),
    st.none() | st.sampled_from(["", "x"]),
)


def command(n: int) -> Command:
    made: Command = synthetic.row(Command, ts=n, session_id="s", n=n)
    return made


@given(st.lists(commands, max_size=60), st.randoms())
@settings(max_examples=60, deadline=None)
def test_order_of_arrival_and_spilling_do_not_show(rows, random):
    with Tables() as held, Tables(FEW) as spilled:
        held.extend("commands", rows)
        random.shuffle(rows)
        spilled.extend("commands", rows)
        assert list(held.rows("commands")) == list(spilled.rows("commands"))
        assert held.count("commands") == spilled.count("commands") == len(rows)


def test_rows_are_in_time_order_and_absent_times_come_last():
    with Tables() as tables:
        tables.extend("commands", [synthetic.row(Command, ts=ts, session_id="s", n=1) for ts in (7, None, 3)])
        assert [row.ts for row in tables.rows("commands")] == [3, 7, None]


def test_rows_can_be_read_again_and_while_more_come():
    with Tables(FEW) as tables:
        tables.extend("commands", map(command, range(12)))
        first = iter(tables.rows("commands"))
        assert next(first).n == 0
        tables.extend("commands", map(command, range(12, 40)))
        assert [row.n for row in tables.rows("commands")] == list(range(40))
        assert [row.n for row in tables.rows("commands")] == list(range(40))
        tables.extend("commands", map(command, range(40, 400)))
        assert [row.n for row in first] == list(range(1, 12))


def test_what_is_known_of_a_row_only_at_the_end_is_added_as_it_is_read():
    with Tables(FEW) as tables:
        tables.extend("commands", map(command, range(12)))
        tables.patch("commands", lambda row: row._replace(tag=f"A{row.n}"))
        assert [row.tag for row in tables.rows("commands")] == [f"A{n}" for n in range(12)]


def test_rows_from_a_spill_are_records_again():
    with Tables(FEW) as tables:
        tables.extend("commands", map(command, range(12)))
        assert all(type(row) is Command for row in tables.rows("commands"))


def test_many_spills_keep_few_files_open():
    with Tables(replace(Limits(), spool_rows=1)) as tables:
        tables.extend("commands", map(command, reversed(range(1500))))
        descriptors = Path("/proc/self/fd")
        if descriptors.exists():
            assert len(os.listdir(descriptors)) < 150
        assert [row.n for row in tables.rows("commands")] == list(range(1500))


def test_lists_objects_and_numpy_numbers_survive_a_spill():
    with Tables(FEW) as tables:
        rows = [
            synthetic.row(
                Host, host_id=str(n), ips=["192.0.2.1"], evidence=[{"role": "mx", "rule": "r", "count": n}], ts_first=np.int64(n)
            )
            for n in range(9)
        ]
        tables.extend("hosts", rows)
        assert list(tables.rows("hosts")) == rows


def test_temporary_files_vanish_after_an_exception(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError), Tables(FEW) as tables:
        tables.extend("commands", map(command, range(20)))
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def anomaly(n: int, name: str = "line_too_long", source: str = "a.pcap") -> Anomaly:
    made: Anomaly = synthetic.row(Anomaly, ts=n, source=source, name=name, detail=f"line {n}", frame=n)
    return made


@given(st.randoms(), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_a_flood_of_one_anomaly_is_one_row_that_counts_it_whatever_came_first(random, number):
    rows = [anomaly(n) for n in range(number)] + [anomaly(5, "reply_not_seen"), anomaly(5, source="b.pcap")]
    random.shuffle(rows)
    with Tables(replace(Limits(), folded_anomalies=10)) as tables:
        tables.extend("anomalies", rows)
        flood = [row for row in tables.rows("anomalies") if row.name == "line_too_long" and row.source == "a.pcap"]
        assert [row.ts for row in flood[:10]] == list(range(min(number, 10)))
        assert len(flood) == min(number, 11)
        if number > 10:
            assert flood[-1] == (
                number - 1,
                "a.pcap",
                None,
                None,
                "line_too_long",
                f"{number - 10} more like it, up to here; not listed",
                None,
            )
        assert tables.count("anomalies") == len(flood) + 2 == len(list(tables.rows("anomalies")))
        assert tables.anomaly_counts().get("line_too_long") == number + 1


def test_every_table_has_a_spool_and_starts_empty():
    with Tables() as tables:
        for name in TABLES:
            assert tables.count(name) == 0
            assert list(tables.rows(name)) == []
