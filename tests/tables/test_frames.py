"""Tables as DataFrames: typed, absent is NA, columns explained."""

import pandas as pd
import pytest
import synthetic

from analyzer.mail.records import Message
from analyzer.tables import TABLES, Tables
from analyzer.tables.frames import describe, frame

DTYPES = {
    "time": "datetime64[ns, UTC]",
    "seconds": "float64",
    "float": "float64",
    "int": "Int64",
    "bool": "boolean",
    "text": "string",
    "list": "object",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("empty", [False, True])
def test_types_do_not_depend_on_the_rows(tables, name, empty):
    made = frame(Tables() if empty else tables, name)
    assert len(made) == (0 if empty else tables.count(name))
    assert {n: str(t) for n, t in made.dtypes.items()} == {c.name: DTYPES[c.kind] for c in TABLES[name].columns}
    assert made.attrs["columns"] == {c.name: c.meaning for c in TABLES[name].columns}


def test_times_keep_their_nanoseconds():
    with Tables() as tables:
        tables.add("messages", synthetic.message(ts_first=synthetic.T0 + 123_456_789))
        assert frame(tables, "messages").ts_first[0] == pd.Timestamp(synthetic.T0 + 123_456_789, tz="UTC")


def test_absent_is_na_and_never_zero_or_empty():
    with Tables() as tables:
        tables.add("messages", synthetic.row(Message, trace_id="t", mail_from="", size=0))
        first = frame(tables, "messages").iloc[0]
    assert first.mail_from == "" and first["size"] == 0
    for name in ("message_id", "ts_first", "elapsed_s", "tls_all_hops", "hops"):
        assert pd.isna(first[name]), name


def test_lists_stay_lists(tables):
    assert frame(tables, "hops").rcpt_to[0] == ["bob@example.net", "carol@example.net"]
    assert pd.isna(frame(tables, "hops").rcpt_to[3])


def test_columns_of_a_table_are_described():
    assert list(describe("links").name) == ["trace_id", "hop", "linked_hop", "keys", "score", "conflicts"]
    with pytest.raises(KeyError):
        describe("link")
