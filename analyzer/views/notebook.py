"""What Jupyter shows: static SVG and HTML, no script, so that untrusted notebooks, VS Code and exports show it too."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from typing import Any

from analyzer.mail.records import Message
from analyzer.tables import Tables
from analyzer.views.drawing import draw, ladder, waterfall
from analyzer.views.overview import overview, sender
from analyzer.views.rolemap import RoleMap
from analyzer.views.text import Look, counted, date, duration
from analyzer.views.trace import Trace
from analyzer.wire.types import SourceInfo

LISTED = 20
"""Messages listed of an analysis."""
_LOOK = Look()


def trace_html(trace: Trace) -> str:
    """One message: its waterfall, and folded below it the ladder and the text."""
    drawing, message = draw(trace), trace.message
    title = _LOOK.short(message.subject or message.message_id or message.trace_id, 120)
    took = f" in {duration(message.elapsed_s)}" if message.elapsed_s is not None else ""
    facts = [message.outcome + took, counted(message.hops, "hop"), date(message.ts_first), _LOOK.short(message.message_id, 80)]
    return (
        f"<div><p><strong>{escape(title)}</strong><br>{escape(' · '.join(filter(None, facts)))}</p>"
        + _scrolled(waterfall(drawing))
        + _more(f"Ladder: {counted(len(drawing.arrows), 'step')}", _scrolled(ladder(drawing)))
        + _more("As text", f"<pre>{escape(str(trace))}</pre>")
        + "</div>"
    )


def analysis_html(tables: Tables, sources: Sequence[SourceInfo]) -> str:
    """An analysis: role map, messages, and the overview as text."""
    number = tables.count("messages")
    rows = [_message(row) for row in islice(tables.rows("messages"), LISTED)]
    more = f"<p>and {number - LISTED:,} more: <code>analysis.messages</code></p>" if number > LISTED else ""
    names = ", ".join(_LOOK.short(source.name, 80) for source in sources[:3]) + (" …" if len(sources) > 3 else "")
    return (
        f"<div><p><strong>{escape(names)}</strong><br>{counted(number, 'message')}, {counted(tables.count('hops'), 'hop')}, "
        f"{counted(tables.count('sessions'), 'session')}, {counted(tables.count('dns'), 'lookup')}</p>"
        + _scrolled(RoleMap(tables).svg())
        + _table(("start", "from", "to", "subject", "hops", "total", "outcome"), rows)
        + more
        + _more("As text", f"<pre>{escape(overview(tables, sources))}</pre>")
        + "</div>"
    )


def _message(row: Message) -> tuple[object, ...]:
    took = duration(row.elapsed_s) if row.elapsed_s is not None else ""
    to = _LOOK.short(row.header_to, 40)
    return (date(row.ts_first), _LOOK.short(sender(row), 40), to, _LOOK.short(row.subject, 60), row.hops, took, row.outcome)


def role_map_html(roles: RoleMap) -> str:
    """The role map and its table."""
    heading = ("from role", "from", "to role", "to", "protocol", "messages", "basis")
    return f"<div>{_scrolled(roles.svg())}{_more('As a table', _table(heading, roles.rows()))}</div>"


def _scrolled(svg: str) -> str:
    return f'<div style="overflow-x:auto">{svg}</div>'


def _more(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _table(heading: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
