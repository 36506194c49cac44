"""`mailhop browse`: the messages as a list to search, and a trace for each, in a terminal.

`Browser` is what is on the screen and what each key does; `show` lets curses draw it.  Every text of the traffic goes
through `Look.safe`: its control characters never reach the terminal.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from analyzer.errors import MailhopError
from analyzer.limits import Limits
from analyzer.mail.records import Message
from analyzer.tables import Tables
from analyzer.tables.where import Where
from analyzer.views.overview import STYLE, sender
from analyzer.views.text import Look, Span, cells, clock, counted, day, duration
from analyzer.views.trace import gather

SMALLEST = (40, 5)
"""Columns and lines below which nothing useful can be shown."""
_FRAME = 3
"""Lines around the list: title, headings, keys."""
_ADDRESS = 34

Line = list[Span]


class Entry(NamedTuple):
    """A message in the list."""

    message: Message
    to: str
    more: int
    """Further recipients."""
    haystack: str
    """What a search looks through."""


@dataclass
class Browser:
    """The list, the opened trace and the prompt."""

    tables: Tables
    name: str
    """What is being looked at."""
    ascii: bool = False
    limits: Limits = field(default_factory=Limits)
    width: int = 80
    height: int = 24
    over: bool = False
    """The reader has asked to leave."""

    def __post_init__(self) -> None:
        self.entries = list(_entries(self.tables, self.limits.browse_messages))
        self.shown = list(self.entries)
        self.at = self.top = 0
        """The chosen message, and the first on the screen, among those shown."""
        self.search = ""
        self.where = ""
        self.said = ""
        """What the last line says until the next key."""
        self.prompt: str | None = None
        """`/` or `where` while something is typed."""
        self.typed = ""
        self.opened: Message | None = None
        self.dialogue = False
        self.scroll = 0
        self._page: tuple[object, list[Line]] | None = None
        self._trace: tuple[str, Any] | None = None

    # what is on the screen

    def resize(self, width: int, height: int) -> None:
        """The terminal has this size now."""
        self.width, self.height = width, height
        self._keep_in_view()

    def lines(self) -> list[Line]:
        """The screen, line by line; none is wider than it."""
        if self.width < SMALLEST[0] or self.height < SMALLEST[1]:
            return [[Span("enlarge me"[: max(self.width, 0)])]][: self.height]
        body = self._trace_lines() if self.opened is not None else self._list_lines()
        body = body[: self.height - 1]
        return [*body, *[[] for _ in range(self.height - 1 - len(body))], self._last_line()]

    @property
    def look(self) -> Look:
        """How text looks at this width."""
        return Look(self.width, self.ascii)

    def _list_lines(self) -> list[Line]:
        look = self.look
        number = len(self.shown)
        words = [f"{number:,} of {counted(self.tables.count('messages'), 'message')}"]
        if len(self.entries) < self.tables.count("messages"):
            words.append(f"the first {len(self.entries):,} are here")
        words += [f"/{self.search}"] if self.search else []
        words += [f"where {self.where}"] if self.where else []
        widths = self._widths()
        title = f"{self.name}  {f' {look.dot} '.join(words)}"
        lines: list[Line] = [
            [Span(look.short(title, self.width), "bold")],
            [Span("  " + "  ".join(look.fit(word, columns) for word, columns in widths.items()).rstrip(), "dim")],
        ]
        for i, entry in enumerate(self.shown[self.top : self.top + self._room], self.top):
            lines.append(self._row(entry, widths, i == self.at))
        return lines

    def _widths(self) -> dict[str, int]:
        """Columns of the list; narrow terminals have fewer."""
        widths = {"start": 14, "from": 0, "to": 0, "hops": 4, "total": 7, "outcome": 9, "subject": 0}
        if self.width < 90:
            del widths["hops"], widths["total"]
        if self.width < 70:
            del widths["start"]
        room = self.width - 2 - sum(widths.values()) - 2 * (len(widths) - 1)
        widths["from"] = widths["to"] = min(room * 3 // 10, _ADDRESS)
        widths["subject"] = room - 2 * widths["from"]
        return widths

    def _row(self, entry: Entry, widths: dict[str, int], chosen: bool) -> Line:
        look, row = self.look, entry.message
        more = f" +{entry.more}" if entry.more else ""
        texts = {
            "start": f"{day(row.ts_first)[5:]} {clock(row.ts_first)}",
            "from": sender(row),
            "to": look.short(entry.to, widths["to"] - len(more)) + more,
            "hops": str(row.hops),
            "total": duration(row.elapsed_s) if row.elapsed_s is not None else "",
            "outcome": row.outcome,
            "subject": row.subject or "",
        }
        line = [Span("> " if chosen else "  ", "bold" if chosen else "")]
        for i, (word, columns) in enumerate(widths.items()):
            text = ("  " if i else "") + look.fit(texts[word], columns)
            line.append(Span(text, "chosen" if chosen else STYLE.get(texts[word], "") if word == "outcome" else ""))
        return line

    def _trace_lines(self) -> list[Line]:
        page = self._page_lines()
        self.scroll = max(0, min(self.scroll, len(page) - self._trace_room))
        return page[self.scroll : self.scroll + self._trace_room]

    def _page_lines(self) -> list[Line]:
        """The opened message's trace at this width; made anew only when something has changed."""
        assert self.opened is not None
        key = (self.opened.trace_id, self.width, self.dialogue)
        if self._page is None or self._page[0] != key:
            if self._trace is None or self._trace[0] != self.opened.trace_id:
                self._trace = (self.opened.trace_id, gather(self.tables, self.opened))
            self._page = (key, [_cut(line, self.width) for line in self._trace[1].page(self.look, self.dialogue).lines])
        return self._page[1]

    def _last_line(self) -> Line:
        look = self.look
        if self.prompt is not None:
            ask = "/" if self.prompt == "/" else "where "
            room = self.width - len(ask) - 1
            typed = look.safe(self.typed)
            while cells(typed) > room:
                typed = typed[1:]
            return [Span(ask + typed + "_")]
        if self.said:
            return [Span(look.short(self.said, self.width), "warn")]
        if self.opened is not None:
            keys = "q back   up/down PgUp/PgDn scroll   left/right other message   d dialogue"
        else:
            keys = "q quit   up/down choose   Enter open   / search   w where   Esc all"
        return [Span(look.short(keys, self.width), "dim")]

    @property
    def _room(self) -> int:
        return max(self.height - _FRAME, 1)

    @property
    def _trace_room(self) -> int:
        return max(self.height - 1, 1)

    # keys

    def key(self, name: str) -> None:
        """A key: a character, or `up down left right page_up page_down home end enter escape backspace`."""
        self.said = ""
        if self.prompt is not None:
            self._type(name)
        elif self.opened is not None:
            self._in_trace(name)
        else:
            self._in_list(name)

    def _in_list(self, name: str) -> None:
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "page_up": -self._room, "page_down": self._room}
        if name in moves:
            self.at += moves[name]
        elif name in ("home", "g"):
            self.at = 0
        elif name in ("end", "G"):
            self.at = len(self.shown) - 1
        elif name in ("enter", "right") and self.shown:
            self._open()
        elif name in ("/", "w"):
            self.prompt, self.typed = ("/", self.search) if name == "/" else ("where", self.where)
        elif name == "escape":
            self.search = self.where = ""
            self._choose()
        elif name == "q":
            self.over = True
        self._keep_in_view()

    def _in_trace(self, name: str) -> None:
        moves = {
            "up": -1,
            "k": -1,
            "down": 1,
            "j": 1,
            "page_up": -self._trace_room,
            "page_down": self._trace_room,
            " ": self._trace_room,
        }
        if name in moves:
            self.scroll += moves[name]
        elif name in ("home", "g"):
            self.scroll = 0
        elif name in ("end", "G"):
            self.scroll = len(self._page_lines())
        elif name in ("left", "right"):
            self.at += 1 if name == "right" else -1
            self._keep_in_view()
            self._open()
        elif name == "d":
            self.dialogue = not self.dialogue
        elif name in ("q", "escape", "backspace"):
            self.opened = None

    def _open(self) -> None:
        self.opened, self.scroll = self.shown[self.at].message, 0

    def _type(self, name: str) -> None:
        if name == "escape":
            self.prompt = None
        elif name == "enter":
            asked, self.prompt = self.prompt, None
            if asked == "/":
                self.search = self.typed
                self._choose()
            else:
                self._ask(self.typed)
        elif name == "backspace":
            self.typed = self.typed[:-1]
        elif len(name) == 1 and len(self.typed) < self.limits.argument_chars:
            self.typed += name

    def _ask(self, text: str) -> None:
        """Show what an expression holds for."""
        before, self.where = self.where, text.strip()
        try:
            self._choose()
        except MailhopError as error:
            self.where, self.said = before, str(error)
            self._choose()

    def _choose(self) -> None:
        """Those that the search and the expression leave."""
        wanted = Where(self.where).traces(self.tables) if self.where else None
        part = self.search.casefold()
        chosen = self.shown[self.at].message.trace_id if self.shown else ""
        self.shown = [e for e in self.entries if part in e.haystack and (wanted is None or e.message.trace_id in wanted)]
        self.at = next((i for i, e in enumerate(self.shown) if e.message.trace_id == chosen), 0)
        if not self.shown:
            self.said = "no message answers; Esc shows all"
        self._keep_in_view()

    def _keep_in_view(self) -> None:
        self.at = max(0, min(self.at, len(self.shown) - 1))
        self.top = max(0, min(self.top, self.at, len(self.shown) - self._room))
        if self.at >= self.top + self._room:
            self.top = self.at - self._room + 1


def _entries(tables: Tables, most: int) -> Sequence[Entry]:
    """The first messages with their recipients."""
    rows = list(islice(tables.rows("messages"), most))
    wanted = {row.trace_id for row in rows}
    to: dict[str, list[str]] = {}
    for delivery in tables.rows("deliveries"):
        if delivery.trace_id in wanted:
            to.setdefault(delivery.trace_id, []).append(delivery.recipient)
    made = []
    for row in rows:
        recipients = to.get(row.trace_id) or [row.header_to or ""]
        words = [sender(row), *recipients[:50], row.subject, row.message_id, row.outcome, row.trace_id]
        made.append(Entry(row, recipients[0], len(recipients) - 1, "\n".join(filter(None, words)).casefold()))
    return made


def _cut(line: Line, width: int) -> Line:
    """A line no wider than the screen."""
    look, room, kept = Look(width), width, []
    for span in line:
        size = cells(span.text)
        if size > room:
            kept.append(Span(look.short(span.text, room) if room > 1 else "", span.style))
            break
        kept.append(span)
        room -= size
    return kept


# curses

_KEYS = {
    "KEY_UP": "up",
    "KEY_DOWN": "down",
    "KEY_LEFT": "left",
    "KEY_RIGHT": "right",
    "KEY_PPAGE": "page_up",
    "KEY_NPAGE": "page_down",
    "KEY_HOME": "home",
    "KEY_END": "end",
    "KEY_ENTER": "enter",
    "KEY_BACKSPACE": "backspace",
}
_CHARACTERS = {"\n": "enter", "\r": "enter", "\x1b": "escape", "\x7f": "backspace", "\b": "backspace"}


def show(browser: Browser) -> None:
    """Let the reader browse in the terminal of standard output.  Raises MailhopError where there is none."""
    try:
        import curses
    except ImportError:
        raise MailhopError("this Python has no curses", "on Windows: pip install windows-curses") from None
    os.environ.setdefault("ESCDELAY", "25")
    try:
        curses.wrapper(lambda screen: _loop(curses, screen, browser))
    except curses.error as error:
        raise MailhopError(f"the terminal cannot be used: {error}", "is TERM set?") from None


def _loop(curses: Any, screen: Any, browser: Browser) -> None:
    styles = _styles(curses)
    while not browser.over:
        height, width = screen.getmaxyx()
        browser.resize(width, height)
        screen.erase()
        for y, line in enumerate(browser.lines()):
            x = 0
            for text, style in line:
                try:
                    screen.addstr(y, x, text, styles(style))
                except curses.error:  # the last cell of the screen is written, but the cursor cannot go on
                    break
                x += cells(text)
        screen.refresh()
        try:
            typed = screen.get_wch()
        except curses.error:
            continue
        except KeyboardInterrupt:
            return
        if isinstance(typed, int):
            name = curses.keyname(typed).decode("ascii", "replace")
            if name == "KEY_RESIZE":
                curses.update_lines_cols()
            elif name in _KEYS:
                browser.key(_KEYS[name])
        elif typed in _CHARACTERS:
            browser.key(_CHARACTERS[typed])
        elif typed.isprintable():
            browser.key(typed)


def _styles(curses: Any) -> Callable[[str], int]:
    """Attributes by style name; meaning never hangs on colour alone."""
    made = {"dim": curses.A_DIM, "bold": curses.A_BOLD, "chosen": curses.A_REVERSE, "bad": curses.A_BOLD}
    curses.curs_set(0) if curses.tigetstr("civis") else None
    if curses.has_colors() and not os.environ.get("NO_COLOR"):
        curses.start_color()
        curses.use_default_colors()
        colours = {"good": curses.COLOR_GREEN, "warn": curses.COLOR_YELLOW, "bad": curses.COLOR_RED, "name": curses.COLOR_CYAN}
        for number, (style, colour) in enumerate(colours.items(), 1):
            curses.init_pair(number, colour, -1)
            made[style] = made.get(style, 0) | curses.color_pair(number)
    return lambda style: made.get(style, 0)
