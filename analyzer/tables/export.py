"""Tables to files: one small writer per format.

1. Every table is written, an empty one too.
2. Files are written under a temporary name; when all are whole they take their own.
3. The same rows make the same bytes.
4. JSON Lines keeps what the traffic said, escaped to ASCII.  CSV is for eyes and spreadsheets: control
   characters are written out and a cell that a spreadsheet would evaluate gets a leading apostrophe.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from types import TracebackType
from typing import Any

from analyzer.columns import Column
from analyzer.errors import MailhopError
from analyzer.tables.schema import OBJECTS, TABLES, Table, nearest
from analyzer.tables.spool import Spool, Tables
from analyzer.tables.visible import encodable, inert, visible

_PARQUET_BATCH = 20_000
"""Rows of one Parquet row group."""
_SECOND = 1_000_000_000
_SECONDS_KEPT = 10_000
"""Dates and times of day remembered while writing times, and durations."""

Row = Sequence[Any]
Cell = Callable[[Any], str]
Formatter = Callable[[Iterable[Row]], list[str]]
Task = tuple[int, Callable[[], None]]
"""How much work it is, compared with others, and what to do."""


# values as text


class _Days(dict[int, str]):
    """Second since 1970 -> date and time of day; rows come in time order, so few are new."""

    def __missing__(self, second: int) -> str:
        from datetime import datetime, timedelta

        if len(self) >= _SECONDS_KEPT:
            self.clear()
        text = self[second] = (datetime(1970, 1, 1) + timedelta(seconds=second)).isoformat()
        return text


_DAYS = _Days()


def iso(ts: int) -> str:
    """Nanoseconds since 1970 as ISO 8601, UTC, with nine digits."""
    return f"{_DAYS[ts // _SECOND]}.{str(ts % _SECOND + _SECOND)[1:]}Z"


def seconds(value: float) -> str:
    """Seconds as a decimal number: at most nine digits after the point, never an exponent."""
    text = f"{value:.9f}".rstrip("0")
    return text + "0" if text[-1] == "." else text


class _Durations(dict[float, str]):
    """Seconds -> text; captures count microseconds, so short durations come again and again."""

    def __missing__(self, value: float) -> str:
        if len(self) >= _SECONDS_KEPT:
            self.clear()
        text = self[value] = seconds(value)
        return text


_DURATIONS = _Durations()


def _encodable_value(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list | tuple):
        return [_encodable_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _encodable_value(item) for key, item in value.items()}
    return value


def _encodable_row(row: Row) -> Row:
    return [_encodable_value(value) for value in row]


# rows as text: one formatter per table, compiled from its columns


def _compiled(table: Table, keyed: bool, cells: dict[str, str], names: dict[str, Any]) -> Formatter:
    """A function from rows to lines.  `cells` has an expression on `v` for each kind of column.

    Generated, because looking each column's kind up for each row costs more than making the row's text.
    """
    variables = [f"v{i}" for i in range(len(table.columns))]
    parts = []
    for variable, column in zip(variables, table.columns, strict=True):
        expression = re.sub(r"\bv\b", variable, cells[column.kind])
        parts.append((f'"{column.name}":' if keyed else "") + "{" + expression + "}")
    line = "{{" + ",".join(parts) + "}}" if keyed else ",".join(parts)
    source = f"lambda rows: [f'''{line}\\n''' for {', '.join(variables)} in rows]"
    formatter: Formatter = eval(source, dict(names))
    return formatter


def _json_list(values: Sequence[Any]) -> str:
    try:
        return "[" + ",".join(map(encode_basestring_ascii, values)) + "]"
    except TypeError:  # objects: evidence
        return json.dumps(values, separators=(",", ":"))


_JSON_CELLS = {
    "time": """null if v is None else f'"{days[v // 1000000000]}.{v % 1000000000:09d}Z"'""",
    "seconds": "null if v is None else seconds[v]",
    "float": "null if v is None else seconds[v]",
    "int": "null if v is None else v",
    "bool": "truth[v]",
    "text": "null if v is None else text(v)",
    "list": "null if v is None else list(v)",
}
_JSON_NAMES = {
    "null": "null",
    "days": _DAYS,
    "seconds": _DURATIONS,
    "truth": {None: "null", False: "false", True: "true"},
    "text": encode_basestring_ascii,
    "list": _json_list,
}


def json_lines(table: Table) -> Formatter:
    """A function from rows to JSON Lines: ASCII only, one object a line."""
    formatter = _compiled(table, True, _JSON_CELLS, _JSON_NAMES)

    def lines(rows: Iterable[Row]) -> list[str]:
        rows = rows if isinstance(rows, list) else list(rows)
        made = formatter(rows)
        if "\\ud" in "".join(made):  # half of a pair that has lost its other half is not Unicode, and not JSON for many readers
            for i, line in enumerate(made):
                if "\\ud" in line:
                    made[i] = formatter([_encodable_row(rows[i])])[0]
        return made

    return lines


_PLAIN_CELL = re.compile(r"[A-Za-z0-9<(\[/.*_][ !#-+\--:<-~]*").fullmatch
"""Cells that need no quotes and no thought: printable ASCII without `" , ;`, beginning with nothing that acts."""


def _csv_text(text: str) -> str:
    if _PLAIN_CELL(text):
        return text
    return _csv_quoted(inert(visible(text)))


def _csv_quoted(text: str) -> str:
    """RFC 4180; quotes also around "" (an empty cell is absent) and `;` (what divides cells in half of Europe)."""
    if not text or '"' in text or "," in text or ";" in text:
        return '"' + text.replace('"', '""') + '"'
    return text


_CSV_CELLS = {kind: cell.replace("null", "none") for kind, cell in _JSON_CELLS.items()} | {
    "time": "none if v is None else time(v)"
}
_CSV_NAMES = {
    "none": "",
    "time": iso,
    "seconds": _DURATIONS,
    "truth": {None: "", False: "false", True: "true"},
    "text": _csv_text,
    "list": lambda values: _csv_quoted(_json_list(values)),
}


def csv_lines(table: Table) -> Formatter:
    """A function from rows to CSV lines, without the header."""
    return _compiled(table, False, _CSV_CELLS, _CSV_NAMES)


# files


class _Place:
    """A directory being written: files have temporary names until everything is whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, Path] = {}

    def file(self, name: str) -> Path:
        """Where to write what shall be called `name`."""
        path = self.directory / f".{name}.{os.getpid()}.part"
        self._files[path] = self.directory / name
        return path

    def __enter__(self) -> "_Place":
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for path, final in self._files.items():
            if kind is None:
                os.replace(path, final)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _batches(blocks: Iterable[list[Any]], size: int) -> Iterator[list[Row]]:
    rows = chain.from_iterable(blocks)
    while batch := list(islice(rows, size)):
        yield batch


def _write_lines(path: Path, header: str, lines: Formatter, blocks: Iterable[list[Any]]) -> None:
    with path.open("wb", 1 << 18) as file:
        file.write(header.encode())
        for block in blocks:
            file.write("".join(lines(block)).encode())


def _by_table(write: Callable[[Table, Path, Spool], None], suffix: str, tables: Tables, place: _Place) -> list[Task]:
    """A task for each table's file."""
    tasks: list[Task] = []
    for table in TABLES.values():
        rows = tables.rows(table.name)
        tasks.append((len(rows) * len(table.columns), partial(write, table, place.file(f"{table.name}.{suffix}"), rows)))
    return tasks


def _write_jsonl(table: Table, path: Path, rows: Spool) -> None:
    _write_lines(path, "", json_lines(table), rows.blocks())


def _write_csv(table: Table, path: Path, rows: Spool) -> None:
    _write_lines(path, ",".join(column.name for column in table.columns) + "\n", csv_lines(table), rows.blocks())


def _write_parquet(table: Table, path: Path, rows: Spool) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MailhopError("Parquet needs pyarrow: pip install 'mailhop[parquet]'") from None
    simple = {
        "time": pa.timestamp("ns", tz="UTC"),
        "seconds": pa.float64(),
        "float": pa.float64(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "text": pa.string(),
    }

    def arrow_type(table: Table, column: Column) -> Any:
        if column.kind != "list":
            return simple[column.kind]
        members = OBJECTS.get((table.name, column.name))
        return pa.list_(pa.struct([(name, simple[kind]) for name, kind in members.items()]) if members else pa.string())

    fields = [pa.field(c.name, arrow_type(table, c), metadata={"meaning": c.meaning}) for c in table.columns]
    schema = pa.schema(fields, metadata={"table": table.name, "meaning": table.meaning})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows.blocks(), _PARQUET_BATCH):
            values: Iterable[Row] = zip(*map(_encodable_row, batch), strict=True)
            arrays = [pa.array(list(cells), field.type) for cells, field in zip(values, fields, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


_SQLITE_TYPES = {"int": "INTEGER", "bool": "INTEGER", "seconds": "REAL", "float": "REAL"}
_SQLITE_CELLS: dict[str, Cell] = {"time": iso, "text": encodable, "list": _json_list}
_SQLITE_INDEXED = ("trace_id", "session_id")


def _write_sqlite(tables: Tables, path: Path) -> None:
    """Times are ISO 8601 text, which SQLite's date functions read; lists are JSON text for json_each()."""
    import sqlite3

    path.unlink(missing_ok=True)
    base = sqlite3.connect(path, isolation_level=None)
    try:
        base.execute("PRAGMA journal_mode = OFF")
        base.execute("PRAGMA synchronous = OFF")
        base.execute("BEGIN")
        base.execute('CREATE TABLE "columns" ("table_name" TEXT, "name" TEXT, "kind" TEXT, "meaning" TEXT)')
        for table in TABLES.values():
            base.executemany('INSERT INTO "columns" VALUES (?, ?, ?, ?)', [(table.name, *column) for column in table.columns])
            names = [f'"{c.name}" {_SQLITE_TYPES.get(c.kind, "TEXT")}' for c in table.columns]
            base.execute(f'CREATE TABLE "{table.name}" ({", ".join(names)})')
            marks = ", ".join("?" * len(table.columns))
            rows = chain.from_iterable(tables.rows(table.name).blocks())
            base.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', _sqlite_rows(table, rows))
            for name in _SQLITE_INDEXED:
                if any(column.name == name for column in table.columns):
                    base.execute(f'CREATE INDEX "{table.name}_{name}" ON "{table.name}" ("{name}")')
        base.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise OSError(None, str(error), str(path)) from None
    finally:
        base.close()


def _sqlite_rows(table: Table, rows: Iterable[Row]) -> Iterator[Row]:
    as_text = [_SQLITE_CELLS.get(column.kind) for column in table.columns]
    for row in rows:
        yield [value if value is None or cell is None else cell(value) for value, cell in zip(row, as_text, strict=True)]


FORMATS: dict[str, Callable[[Tables, _Place], list[Task]]] = {
    "jsonl": partial(_by_table, _write_jsonl, "jsonl"),
    "csv": partial(_by_table, _write_csv, "csv"),
    "parquet": partial(_by_table, _write_parquet, "parquet"),
    "sqlite": lambda tables, place: [(1 << 62, partial(_write_sqlite, tables, place.file("mailhop.sqlite")))],
}
"""A new format costs one function and one line."""


def parse_formats(text: str) -> list[str]:
    """Names out of `jsonl,csv`.  Raises MailhopError for one that is none."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise MailhopError(f"no format {name!r}", nearest(name, FORMATS))
    return list(dict.fromkeys(names)) or ["jsonl"]


def _one_by_one(tasks: Sequence[Task]) -> None:
    for _, task in tasks:
        task()


def export(
    tables: Tables,
    directory: str | os.PathLike[str],
    formats: Iterable[str] = ("jsonl",),
    run: Callable[[Sequence[Task]], None] = _one_by_one,
) -> None:
    """Write every table to a directory, one file per table and format (`sqlite`: one file).

    `run`: does the tasks, each of which writes a file; several processes may.
    Raises MailhopError when a library is missing or the directory cannot be written; then nothing is left behind.
    """
    place = _Place(Path(directory))
    try:
        with place:
            run([task for name in formats for task in FORMATS[name](tables, place)])
    except OSError as error:
        what = f"cannot write tables to {visible(str(directory))}: {error.strerror or error}"
        raise MailhopError(what, "choose another directory with -o DIR") from None
