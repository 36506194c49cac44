"""Files: the same rows make the same bytes, and no byte of them acts."""

import csv
import io
import json
import sqlite3
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.errors import MailhopError
from analyzer.limits import Limits
from analyzer.mail.records import Host, Message
from analyzer.protocols.base import Command
from analyzer.tables import TABLES, Tables
from analyzer.tables.export import csv_lines, export, iso, json_lines, parse_formats, seconds
from analyzer.tables.visible import inert, visible

any_text = st.text(st.characters(), max_size=30)  # surrogates too
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def subject_line(text: str | None, **values: object) -> Message:
    made: Message = synthetic.row(
        Message, trace_id="t", subject=text, hops=1, hops_observed=1, outcome="unknown", retrieved=False, **values
    )
    return made


def json_of(row: Message) -> dict[str, object]:
    (line,) = json_lines(TABLES["messages"])([row])
    assert line.isascii() and line.endswith("\n") and line.count("\n") == 1
    assert all(" " <= c <= "~" for c in line[:-1])
    found: dict[str, object] = json.loads(line)
    return found


def csv_cell_of(text: str) -> str:
    (line,) = csv_lines(TABLES["messages"])([subject_line(text)])
    (cells,) = csv.reader(io.StringIO(line, newline=""))
    assert len(cells) == len(TABLES["messages"].columns)
    return cells[[column.name for column in TABLES["messages"].columns].index("subject")]


# JSON Lines


@given(any_text)
def test_json_keeps_what_the_traffic_said(text):
    kept = json_of(subject_line(text))["subject"]
    assert kept == text.encode("utf-8", "backslashreplace").decode()


def test_json_knows_absent_from_empty_and_zero():
    found = json_of(subject_line("", mail_from="", size=0))
    assert (found["subject"], found["mail_from"], found["size"], found["spf"]) == ("", "", 0, None)
    assert list(found) == [column.name for column in TABLES["messages"].columns]


@given(st.integers(-(2**62), 2**62))
def test_times_have_nine_digits_and_lose_none(ts):
    text = iso(ts)
    stamp, _, rest = text.partition(".")
    second = int(datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp())
    assert (second * 10**9 + int(rest[:-1]), len(rest), rest[-1]) == (ts, 10, "Z")


@given(st.floats(-1e9, 1e9))
def test_seconds_are_plain_decimals_of_nanoseconds(value):
    text = seconds(value)
    assert "e" not in text.lower()
    assert json.loads(text) == round(value, 9)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0"), (1.0, "1.0"), (0.1 + 0.2, "0.3"), (1e-9, "0.000000001"), (-0.5, "-0.5")]
)
def test_seconds_without_float_noise(value, text):
    assert seconds(value) == text


def test_lists_of_text_and_of_objects():
    row = synthetic.row(
        Host, host_id="h", ips=["192.0.2.1"], names=['a"b'], roles=[], evidence=[{"role": "mx", "rule": "r", "count": 1}]
    )
    found = json.loads(json_lines(TABLES["hosts"])([row])[0])
    assert (found["ips"], found["names"], found["roles"]) == (["192.0.2.1"], ['a"b'], [])
    assert found["evidence"] == [{"role": "mx", "rule": "r", "count": 1}]


# CSV


@given(any_text)
def test_no_csv_cell_is_a_formula_or_holds_a_control_character(text):
    cell = csv_cell_of(text)
    number = cell.lstrip("+-").replace(".", "").replace("e", "").replace("E", "").strip("+-").isdigit()
    assert (
        not cell.startswith(FORMULA) or number or cell in ("+OK", "-ERR")
    )  # POP3 status: in a column of its own, it names nothing
    assert not any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029\u202e" for c in cell)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("Minutes", "Minutes"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("-2+3", "'-2+3"),
        ("-2.5", "-2.5"),
        ("+OK", "+OK"),
        ("-ERR", "-ERR"),
        ("+OK done", "'+OK done"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("two\r\nlines", "two\\x0d\\x0alines"),
        ('say "hi", bob; bye', 'say "hi", bob; bye'),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("caf\u00e9", "caf\u00e9"),
    ],
)
def test_csv_cells(text, cell):
    assert csv_cell_of(text) == cell


def test_csv_tells_empty_from_absent():
    row = synthetic.row(Command, session_id="s", n=1, verb="NOOP", argument="", pipelined=False)
    (line,) = csv_lines(TABLES["commands"])([row])
    assert line == 's,1,,,,,,NOOP,"",,,,false,,\n'


def test_csv_lists_are_json():
    row = synthetic.hop(1, rcpt_to=["bob@example.net", "=x@example.net"])
    (cells,) = csv.reader(csv_lines(TABLES["hops"])([row]))
    names = [column.name for column in TABLES["hops"].columns]
    assert json.loads(cells[names.index("rcpt_to")]) == ["bob@example.net", "=x@example.net"]


# files


def test_every_table_is_written_and_read_back(tables, tmp_path):
    export(tables, tmp_path, ["jsonl", "csv", "sqlite"])
    names = {f"{table}.{suffix}" for table in TABLES for suffix in ("jsonl", "csv")} | {"mailhop.sqlite"}
    assert {path.name for path in tmp_path.iterdir()} == names
    base = sqlite3.connect(tmp_path / "mailhop.sqlite")
    for table in TABLES.values():
        lines = [json.loads(line) for line in (tmp_path / f"{table.name}.jsonl").read_text().splitlines()]
        assert len(lines) == tables.count(table.name)
        header, *cells = csv.reader((tmp_path / f"{table.name}.csv").open(newline=""))
        assert header == [column.name for column in table.columns]
        assert len(cells) == len(lines)
        assert base.execute(f"SELECT count(*) FROM {table.name}").fetchone() == (len(lines),)
    start, elapsed = base.execute("SELECT ts_first, elapsed_s FROM messages").fetchone()
    assert (start, elapsed) == ("2023-11-14T22:13:20.000000000Z", 4.812)
    meaning = base.execute("SELECT meaning FROM columns WHERE table_name = 'hops' AND name = 'queue_id'").fetchone()
    assert meaning == ("what the server called it",)
    base.close()


def nanoseconds(text: str) -> int:
    stamp, _, rest = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()) * 10**9 + int(rest)


def from_json(kind: str, value: Any) -> Any:
    return nanoseconds(value) if kind == "time" and value is not None else value


def from_csv(kind: str, cell: str) -> Any:
    """What a cell says; an absent text and an empty one look the same to Python's reader."""
    if not cell:
        return None
    readers: dict[str, Any] = {"time": nanoseconds, "int": int, "seconds": float, "float": float, "list": json.loads}
    return {"true": True, "false": False}[cell] if kind == "bool" else readers.get(kind, str)(cell)


def from_sqlite(kind: str, value: Any) -> Any:
    if value is None:
        return None
    return {"time": nanoseconds, "bool": bool, "list": json.loads}.get(kind, lambda same: same)(value)


def from_parquet(kind: str, value: Any) -> Any:
    return value.value if kind == "time" and value is not None else value


@pytest.fixture(scope="module")
def story_tables() -> Tables:
    from analyzer.pipeline import run

    return run([Path(__file__).resolve().parents[2] / "captures" / "story.pcapng"]).tables


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("format", ["jsonl", "csv", "sqlite", "parquet"])
def test_every_value_of_every_table_comes_back(story_tables, tables, tmp_path, name, format):
    columns = TABLES[name].columns
    for made in (story_tables, tables):
        if format == "parquet":
            pytest.importorskip("pyarrow")
        export(made, tmp_path, [format])
        if format == "jsonl":
            lines = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
            found = [[from_json(c.kind, line[c.name]) for c in columns] for line in lines]
        elif format == "csv":
            _, *cells = csv.reader((tmp_path / f"{name}.csv").open(newline="", encoding="utf-8"))
            found = [[from_csv(c.kind, cell) for c, cell in zip(columns, line, strict=True)] for line in cells]
        elif format == "sqlite":
            base = sqlite3.connect(tmp_path / "mailhop.sqlite")
            rows = base.execute(f'SELECT * FROM "{name}"').fetchall()
            base.close()
            found = [[from_sqlite(c.kind, value) for c, value in zip(columns, row, strict=True)] for row in rows]
        else:
            from pyarrow.parquet import read_table

            read = read_table(tmp_path / f"{name}.parquet").to_pylist()
            found = [[from_parquet(c.kind, row[c.name]) for c in columns] for row in read]

        def told(kind: str, value: Any) -> Any:
            if kind in ("seconds", "float") and value is not None and format in ("jsonl", "csv"):
                return round(value, 9)
            if format == "csv" and kind == "text":
                return inert(visible(value or "")) or None
            return value

        assert found == [[told(c.kind, value) for c, value in zip(columns, row, strict=True)] for row in made.rows(name)]
        assert found or made.count(name) == 0


def test_empty_tables_are_written_too(tmp_path):
    export(Tables(), tmp_path, ["jsonl", "csv", "sqlite"])
    assert (tmp_path / "hops.jsonl").read_bytes() == b""
    assert (tmp_path / "links.csv").read_text() == "trace_id,hop,linked_hop,keys,score,conflicts\n"


def test_parquet_keeps_types_meanings_and_absence(tables, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(tables, tmp_path, ["parquet"])
    hops = parquet.read_table(tmp_path / "hops.parquet")
    assert str(hops.schema.field("ts_start").type) == "timestamp[ns, tz=UTC]"
    assert hops.schema.field("queue_id").metadata == {b"meaning": b"what the server called it"}
    assert hops.column("rcpt_to").to_pylist()[0] == ["bob@example.net", "carol@example.net"]
    assert hops.column("queue_id").to_pylist() == ["4Xyz12", None, None, None]
    evidence = parquet.read_table(tmp_path / "hosts.parquet").column("evidence").to_pylist()
    assert {"role": "mua", "rule": "acted as mua", "count": 1} in [item for row in evidence for item in row]


@pytest.mark.parametrize("formats", [["jsonl", "csv", "sqlite"], ["parquet"]])
def test_text_that_no_encoding_takes_is_written_out(formats, tmp_path):
    if formats == ["parquet"]:
        pytest.importorskip("pyarrow")
    with Tables() as tables:
        tables.add("messages", subject_line("half \ud800 pair"))
        export(tables, tmp_path, formats)
    if "jsonl" in formats:
        assert json.loads((tmp_path / "messages.jsonl").read_text())["subject"] == "half \\ud800 pair"


@settings(max_examples=10, deadline=None)
@given(st.randoms())
def test_the_same_rows_make_the_same_bytes(tmp_path_factory, random):
    def written(rows: list[Message], limits: Limits) -> list[bytes]:
        place = tmp_path_factory.mktemp("out")
        with Tables(limits) as tables:
            tables.extend("messages", rows)
            export(tables, place, ["jsonl", "csv"])
        return [path.read_bytes() for path in sorted(place.iterdir())]

    rows = [subject_line(f"{n % 4}", ts_first=n % 7) for n in range(30)]
    first = written(rows, Limits())
    random.shuffle(rows)
    assert written(rows, replace(Limits(), spool_rows=4)) == first


def test_a_run_that_fails_leaves_nothing_and_harms_nothing(tables, tmp_path, monkeypatch):
    export(tables, tmp_path, ["jsonl"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    tables.add(
        "links",
        synthetic.row(TABLES["links"].record, trace_id=["not", "text"], hop=1, linked_hop=1, keys=[], score=1.0, conflicts=[]),
    )
    with pytest.raises(TypeError):
        export(tables, tmp_path, ["jsonl"])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_is_one_sentence(tables, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MailhopError, match=r"cannot write tables to .*file"):
        export(tables, tmp_path / "file", ["jsonl"])


def test_parquet_without_pyarrow_says_what_to_install(tables, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MailhopError, match=r"Parquet needs pyarrow: pip install 'mailhop\[parquet\]'"):
        export(tables, tmp_path, ["parquet"])


def test_formats_by_name():
    assert parse_formats("jsonl, CSV,jsonl") == ["jsonl", "csv"]
    with pytest.raises(MailhopError, match="did you mean jsonl"):
        parse_formats("json")
