"""Words and lines of the terminal views: what fits, what is safe, what a plain terminal can show."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from unicodedata import combining, east_asian_width

from analyzer.tables.visible import visible

__all__ = ["Look", "Page", "Span", "clock", "counted", "date", "day", "duration", "listed", "octets", "visible"]

PIPED_WIDTH = 100
"""Columns when the output is no terminal."""
_MARKS = 4
"""Combining characters shown on one letter; more are a heap that covers its neighbours."""

GLYPHS = {"arrow": "→", "line": "─", "head": "▶", "dotted": "┄", "dot": "·", "cut": "…", "bar": "█", "cross": "✗"}
ASCII_GLYPHS = {"arrow": "->", "line": "-", "head": ">", "dotted": ".", "dot": "-", "cut": "..", "bar": "#", "cross": "x"}


class Span(NamedTuple):
    """A piece of a line.  `style`: "" or one of `dim bold good warn bad name`."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Look:
    """How a page may look: its width in columns, and whether the terminal has more than ASCII."""

    width: int = PIPED_WIDTH
    ascii: bool = False

    def __getattr__(self, name: str) -> str:
        """A glyph: `look.arrow`."""
        try:
            return (ASCII_GLYPHS if self.ascii else GLYPHS)[name]
        except KeyError:
            raise AttributeError(name) from None

    def safe(self, text: str | None) -> str:
        """Traffic's text, fit to be shown here; absent shows as nothing."""
        if not text:
            return ""
        shown = visible(text)
        if shown.isascii():
            return shown
        return shown.encode("ascii", "backslashreplace").decode() if self.ascii else head(shown, len(shown) * 2)

    def fit(self, text: str | None, columns: int, right: bool = False) -> str:
        """Traffic's text in exactly so many columns: padded, or cut with an ellipsis."""
        shown = self.safe(text)
        room = cells(shown)
        if room > columns:
            shown = head(shown, columns - len(self.cut)) + self.cut
            room = cells(shown)
        pad = " " * (columns - room)
        return pad + shown if right else shown + pad

    def short(self, text: str | None, columns: int) -> str:
        """Traffic's text in at most so many columns."""
        return self.fit(text, columns).rstrip()


def cells(text: str) -> int:
    """Columns that text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cell(c) for c in text)


def _cell(char: str) -> int:
    if combining(char):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def head(text: str, columns: int) -> str:
    """As much of text as takes at most so many columns."""
    if text.isascii():
        return text[: max(columns, 0)]
    room = marks = 0
    kept = []
    for char in text:
        cell = _cell(char)
        marks = marks + 1 if cell == 0 else 0
        if room + cell > columns:
            break
        if marks <= _MARKS:
            room += cell
            kept.append(char)
    return "".join(kept)


@dataclass
class Page:
    """Lines of spans: printed plain, or in colour by the command."""

    look: Look = field(default_factory=Look)
    lines: list[list[Span]] = field(default_factory=list)

    def line(self, *spans: str | Span) -> None:
        """Add a line.  Its text must have been made safe already."""
        self.lines.append([span if isinstance(span, Span) else Span(span) for span in spans])

    def wrapped(self, first: str, words: Iterable[str | Span], between: str = " ", indent: int | None = None) -> None:
        """Add words after `first`, on as many lines as they need; further lines are indented to where words began."""
        indent = cells(first) if indent is None else indent
        line: list[Span] = [Span(first)]
        room, empty = cells(first), True
        for span in self._breakable(words, self.look.width - indent):
            if not empty and room + cells(between) + cells(span.text) > self.look.width:
                self.lines.append(line)
                line, room, empty = [Span(" " * indent)], indent, True
            if not empty:
                line.append(Span(between))
                room += cells(between)
            line.append(span)
            room += cells(span.text)
            empty = False
        self.lines.append(line)

    @staticmethod
    def _breakable(words: Iterable[str | Span], room: int) -> Iterator[Span]:
        """Words as spans; one that no line would hold is broken at its blanks."""
        for word in words:
            span = word if isinstance(word, Span) else Span(word)
            if cells(span.text) <= room:
                yield span
            else:
                yield from (Span(part, span.style) for part in span.text.split(" "))

    def __str__(self) -> str:
        return "\n".join(plain(self.lines)) + "\n"


def plain(lines: Iterable[Iterable[Span]]) -> Iterator[str]:
    """Lines without colour."""
    for line in lines:
        yield "".join(span.text for span in line).rstrip()


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 message`, `1,204 messages`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def octets(number: int) -> str:
    """`3,214 octets`."""
    return counted(number, "octet")


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def duration(value: float) -> str:
    """Seconds in the unit that suits them: `412 ms`, `4.81 s`, `62 min`, `5.2 h`, `3.1 days`."""
    sign, value = ("-" if value < 0 else ""), abs(value)
    for limit, text in (
        (0.00005, "<0.1 ms" if value else "0 ms"),
        (0.00995, f"{value * 1000:.1f} ms"),
        (0.9995, f"{value * 1000:.0f} ms"),
        (9.995, f"{value:.2f} s"),
        (119.95, f"{value:.1f} s"),
        (7170, f"{value / 60:.0f} min"),
        (172_800, f"{value / 3600:.1f} h"),
    ):
        if value < limit:
            return sign + text
    return f"{sign}{value / 86_400:.1f} days"


def _moment(ts: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ts // 1000)


def clock(ts: int | None) -> str:
    """Time of day, UTC: `10:00:02`."""
    return "" if ts is None else f"{_moment(ts):%H:%M:%S}"


def day(ts: int | None) -> str:
    """Day, UTC: `2026-11-23`."""
    return "" if ts is None else f"{_moment(ts):%Y-%m-%d}"


def date(ts: int | None) -> str:
    """Day and time of day: `2026-11-23 10:00:02 UTC`."""
    return "" if ts is None else f"{_moment(ts):%Y-%m-%d %H:%M:%S} UTC"
