"""Tables, columns and the names of anomalies, explained."""

import json
from collections.abc import Iterable

from analyzer.columns import Column
from analyzer.tables import TABLES, Table, anomaly_names, describe
from analyzer.tables.where import FIELDS, OPERATORS
from analyzer.views.text import Look, Page, Span

KINDS = {
    "text": "text",
    "int": "integer",
    "float": "number",
    "bool": "truth",
    "time": "time",
    "seconds": "seconds",
    "list": "list",
}
"""Kinds of columns, in words."""
WHERE = "where"
"""Not a table: the fields that --where knows."""


def shown(name: str | None, layout: str, look: Look) -> str:
    """One table, all of them, or the fields of `where`, as `text`, `md` or `json`."""
    if name == WHERE:
        return _fields(layout, look)
    tables = list(TABLES.values()) if name is None else [describe(name)]
    if layout == "json":
        return _as_json(tables)
    if layout == "md":
        return "\n".join(_as_markdown(table) for table in tables)
    return str(_list(look) if name is None else _as_text(tables[0], look))


def _names_of(table: Table) -> dict[str, str]:
    """Names that a table's rows may have, explained."""
    return anomaly_names() if table.name == "anomalies" else {}


def _list(look: Look) -> Page:
    page = Page(look)
    room = max(map(len, TABLES))
    for table in TABLES.values():
        page.wrapped(f"{table.name:<{room}}  {len(table.columns):>2} columns  ", f"one row: {table.meaning}".split(" "))
    page.line()
    page.line("mailhop schema TABLE lists its columns, mailhop schema where the fields of --where")
    return page


def _fields(layout: str, look: Look) -> str:
    if layout == "json":
        return json.dumps({name: {"kind": f.kind, "meaning": f.meaning} for name, f in FIELDS.items()}, indent=2) + "\n"
    if layout == "md":
        lines = ["| field | kind | meaning |", "| --- | --- | --- |"]
        return "\n".join([*lines, *(f"| `{name}` | {f.kind} | {_cell(f.meaning)} |" for name, f in FIELDS.items())]) + "\n"
    page = Page(look)
    page.line(Span("where", "bold"), " has these fields; a message has many values of most, and one that fits will do.")
    page.line()
    _aligned(page, ((name, f.kind, f.meaning) for name, f in FIELDS.items()))
    page.line()
    page.line(Span("operators", "bold"))
    _aligned(page, ((kind, "", " ".join(signs)) for kind, signs in OPERATORS.items()))
    page.wrapped("  ", "~ is `contains`, letter case aside; != and !~ hold when no value is it, or contains it.".split(" "))
    page.wrapped(
        "  ", "and, or, not and parentheses join comparisons; quotes hold values with blanks or signs in them.".split(" ")
    )
    return str(page)


def _as_text(table: Table, look: Look) -> Page:
    page = Page(look)
    page.wrapped("", [Span(table.name, "bold"), *f"has one row for {table.meaning}.".split(" ")], indent=2)
    page.line(f"  Sorted by {', '.join(table.order)}.")
    page.line()
    _aligned(page, ((column.name, KINDS[column.kind], column.meaning) for column in table.columns))
    names = _names_of(table)
    if names:
        page.line()
        page.line(Span("names", "bold"))
        _aligned(page, ((name, "", meaning) for name, meaning in names.items()))
    return page


def _aligned(page: Page, rows: Iterable[tuple[str, str, str]]) -> None:
    rows = list(rows)
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, kind, meaning in rows:
        page.wrapped(f"  {name:<{first}}  " + (f"{kind:<{second}}  " if second else ""), meaning.split(" "))


def _as_markdown(table: Table) -> str:
    lines = [f"## {table.name}", "", f"One row is {table.meaning}.", "", "| column | kind | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{c.name}` | {KINDS[c.kind]} | {_cell(c.meaning)} |" for c in table.columns]
    names = _names_of(table)
    if names:
        lines += ["", "| name | meaning |", "| --- | --- |"]
        lines += [f"| `{name}` | {_cell(meaning)} |" for name, meaning in names.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _as_json(tables: list[Table]) -> str:
    def column(c: Column) -> dict[str, str]:
        return {"name": c.name, "kind": c.kind, "meaning": c.meaning}

    def one(table: Table) -> dict[str, object]:
        made: dict[str, object] = {"meaning": table.meaning, "order": table.order, "columns": [column(c) for c in table.columns]}
        if names := _names_of(table):
            made["names"] = names
        return made

    return json.dumps({table.name: one(table) for table in tables}, indent=2) + "\n"
