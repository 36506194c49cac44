"""Tables to files: one small writer per format.

1. Every table is written, an empty one too.
2. Files are written under a temporary name; when all are whole they take their own, together.
3. The same rows make the same bytes.
4. JSON Lines keeps what the traffic said, escaped to ASCII.  CSV is for eyes and spreadsheets: control
   characters are written out and a cell that a spreadsheet would evaluate gets a leading apostrophe.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from analyzer.columns import Column
from analyzer.errors import MailhopError
from analyzer.tables.schema import OBJECTS, TABLES, Table, nearest
from analyzer.tables.spool import Tables
from analyzer.tables.visible import encodable, inert, visible

_BATCH = 1000
"""Rows turned into text at a time."""
_PARQUET_BATCH = 20_000
_SECOND = 1_000_000_000

Cell = Callable[[Any], str]
Formatter = Callable[[Iterable[Any]], list[str]]


# times: ISO 8601 with nanoseconds and Z


class _Seconds(dict[int, str]):
    """Second since 1970 -> its date and time of day; rows come in time order, so few are new."""

    def __missing__(self, second: int) -> str:
        from datetime import datetime, timedelta

        if len(self) > 10_000:
            self.clear()
        try:
            text = (datetime(1970, 1, 1) + timedelta(seconds=second)).isoformat()
        except OverflowError:  # before year 1 or after 9999: no capture's clock
            text = "9999-12-31T23:59:59" if second > 0 else "0001-01-01T00:00:00"
        self[second] = text
        return text


_SECONDS = _Seconds()


def iso(ts: int) -> str:
    """Nanoseconds since 1970 as ISO 8601, UTC, with nine digits."""
    second, rest = divmod(ts, _SECOND)
    return f"{_SECONDS[second]}.{rest:09d}Z"


def seconds(value: float) -> str:
    """Seconds as a decimal number: nine digits at most, never an exponent."""
    text = f"{value:.9f}".rstrip("0")
    if text[-1] == ".":
        return text + "0"
    return text if text[-1].isdigit() else "null"  # nan, inf


# one formatter per table and format, compiled from the table's columns


def _compiled(table: Table, keyed: bool, cells: dict[str, str], names: dict[str, Any]) -> Formatter:
    """A function from rows to lines of text.  `cells` has an expression on `v` for each kind of column.

    Generated, because looking each column's kind up for each row costs more than making the row's text.
    """
    variables = [f"v{i}" for i in range(len(table.columns))]
    parts = []
    for variable, column in zip(variables, table.columns, strict=True):
        expression = re.sub(r"\bv\b", variable, cells[column.kind])
        parts.append((f'"{column.name}":' if keyed else "") + "{" + expression + "}")
    line = "{{" + ",".join(parts) + "}}" if keyed else ",".join(parts)
    source = f"lambda rows: [f'''{line}\\n''' for {', '.join(variables)} in rows]"
    formatter: Formatter = eval(source, names)
    return formatter


def _json_time(ts: int) -> str:
    return f'"{iso(ts)}"'


def _json_list(values: Sequence[Any]) -> str:
    try:
        return "[" + ",".join([encode_basestring_ascii(value) for value in values]) + "]"
    except TypeError:  # objects: evidence
        return json.dumps(values, separators=(",", ":"))


_JSON = {
    "time": "null if v is None else time(v)",
    "seconds": "null if v is None else seconds(v)",
    "float": "null if v is None else seconds(v)",
    "int": "null if v is None else v",
    "bool": "truth[v]",
    "text": "null if v is None else text(v)",
    "list": "null if v is None else list(v)",
}
_JSON_NAMES = {
    "null": "null",
    "time": _json_time,
    "seconds": seconds,
    "truth": {None: "null", False: "false", True: "true"},
    "text": encode_basestring_ascii,
    "list": _json_list,
}


def json_lines(table: Table) -> Formatter:
    """A function from rows to JSON Lines: ASCII only, one object a line."""
    formatter = _compiled(table, True, _JSON, _JSON_NAMES)

    def lines(rows: Iterable[Any]) -> list[str]:
        rows = list(rows)
        made = formatter(rows)
        for i, line in enumerate(made):
            if "\\ud" in line and _has_surrogate(rows[i]):
                made[i] = formatter([encodable_row(rows[i])])[0]
        return made

    return lines


def _has_surrogate(row: Iterable[Any]) -> bool:
    return any(isinstance(value, str) and encodable(value) is not value for value in row)
