"""What Jupyter shows: static SVG and HTML, no script, so that untrusted notebooks, VS Code and exports show it too."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from analyzer.mail.records import Message
from analyzer.tables import Tables
from analyzer.views.drawing import draw, ladder, waterfall
from analyzer.views.overview import compose, sender
from analyzer.views.rolemap import RoleMap
from analyzer.views.telling import not_seen, time_went
from analyzer.views.text import Look, Page, counted, date, duration
from analyzer.views.trace import Trace
from analyzer.wire.types import SourceInfo

LISTED = 20
"""Messages listed of an analysis."""
_LOOK = Look()
_STYLES = {
    "dim": "opacity:0.65",
    "bold": "font-weight:600",
    "good": "color:#2a8a4a",
    "warn": "color:#b07a08",
    "bad": "color:#d04545;font-weight:600",
    "name": "color:#3a80c0",
}
"""Style of a span -> how it looks, on white and on black."""


@dataclass(frozen=True)
class Shown:
    """Shows itself in Jupyter as HTML and prints as text."""

    html: str
    text: str
    svg: str = ""
    """The picture alone, when it is one."""

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture as an SVG file; what is no picture, as HTML.  Raises OSError."""
        Path(path).write_text((self.svg or self.html) + "\n", encoding="utf-8")


def picture(svg: str, text: str) -> Shown:
    """A picture, and what says the same in words."""
    return Shown(_scrolled(svg), text, svg)


def page(made: Page) -> Shown:
    """A terminal's page, with its colours."""
    return Shown(page_html(made), str(made))


def page_html(made: Page) -> str:
    """Lines of a terminal's page, with their colours."""
    lines = ("".join(_span(*span) for span in line).rstrip() for line in made.lines)
    return '<pre style="font-family:monospace;line-height:1.35;white-space:pre;overflow-x:auto">' + "\n".join(lines) + "</pre>"


def _span(text: str, style: str) -> str:
    return f'<span style="{_STYLES[style]}">{escape(text)}</span>' if style else escape(text)


@contextmanager
def renewing(shown: object) -> Iterator[Callable[[], None]]:
    """Show something that changes: in a notebook its picture is renewed in place, elsewhere it is printed at the end."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.display import display
    except ImportError:
        inside = False
    else:
        inside = get_ipython() is not None
    if not inside:
        yield lambda: None
        print(shown)
        return
    show: Any = display
    handle = show(shown, display_id=True)
    try:
        yield lambda: handle.update(shown)
    finally:
        handle.update(shown)


def trace_html(trace: Trace) -> str:
    """One message: its waterfall, and folded below it the ladder and the text."""
    drawing, message = draw(trace), trace.message
    title = _LOOK.short(message.subject or message.message_id or "a message without name", 120)
    took = f" in {duration(message.elapsed_s)}" if message.elapsed_s is not None else ""
    given = [address for hop in trace.hops[:1] for address in hop.rcpt_to or ()] or [message.header_to or "?"]
    more = f" and {len(given) - 1} more" if len(given) > 1 else ""
    way = f"{_LOOK.short(sender(message) or '?', 60)} → {_LOOK.short(given[0], 60)}{more}"
    unseen = f" Not seen: {'; '.join(lines)}." if (lines := not_seen(trace, _LOOK)) else ""
    facts = [message.outcome + took, counted(message.hops, "hop"), date(message.ts_first), _LOOK.short(message.message_id, 80)]
    return (
        f"<div><p><strong>{escape(title)}</strong> · {escape(way)}<br>{escape(' · '.join(filter(None, facts)))}<br>"
        f"Where the time went: {escape(time_went(trace))}{escape(unseen)}</p>"
        + _scrolled(waterfall(drawing))
        + _more(f"Ladder: {counted(len(drawing.arrows), 'step')}", _scrolled(ladder(drawing)))
        + _more("As text", page_html(trace.page(_LOOK)))
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
        + _more("As text", page_html(compose(tables, sources, _LOOK)))
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
