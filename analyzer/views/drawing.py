"""One drawing of a message: lanes (hosts), bars (where the time went) and arrows (what was said).

`draw` makes it of a trace's rows; `waterfall` and `ladder` set it as SVG that needs no script.  The report
carries the same drawing as data, and templates/report.js sets it in the browser as the reader opens a message.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape
from itertools import pairwise
from typing import NamedTuple

from analyzer.mail.records import Hop, Step
from analyzer.protocols.base import Command
from analyzer.protocols.dns import Transaction
from analyzer.views.telling import MAILBOX, PHASES
from analyzer.views.text import Look, counted, duration
from analyzer.views.trace import Trace, asked

TEXT = 160
"""Columns that a reply or a command's argument may take."""
NAME = 48
"""Columns that a host's name may take."""
ARROWS = 500
"""Arrows of one drawing; a message to 1,000 recipients has more, and --json has them all."""
FOLD_FROM, FOLD_TO = 0.25, 0.08
"""A pause longer than this share of the busy time is folded, and drawn as long as that share."""

LONG = 100_000_000
"""Nanoseconds from which a wait is named beside its line when it is folded too short to hold the words."""

FILL = {
    "dns": "#8b6fd6",
    "connect": "#7c8aa0",
    "greeting": "#4a8fe0",
    "tls": "#16998a",
    "auth": "#b8860b",
    "envelope": "#d4722a",
    "transfer": "#3c9a4b",
    "accept": "#c7508c",
    "tried": "#c9403a",
    "event": "#4a8fe0",
}
"""Phase -> colour that stands out on white and on black; the phase's name stands in or beside the bar, too."""
LEGEND = {"dns": "DNS", "tls": "TLS", "auth": "login", "accept": "last reply", "tried": "tried in vain", "event": "mailbox event"}
"""Phase -> its word in the legend, when it is another."""
MARKS = {"accepted": "✓", "deferred": "!", "partial": "!", "rejected": "✗", "aborted": "✗", "unknown": "?"}
"""Outcome of a hop -> its sign."""
OUTCOME = {"accepted": "good", "deferred": "warn", "partial": "warn", "rejected": "bad", "aborted": "bad"}
_SAID = {"greeting", "starttls", "auth", "mail", "rcpt", "data", "retrieved", "appended", "flagged"}
"""Timeline events that a session's commands tell more exactly."""
_LOOK = Look()

Place = Callable[[int], float]
"""Where a time, or a lane, lies in the picture."""


@lru_cache(1 << 14)
def _short(text: str | None, columns: int) -> str:
    """Traffic's text, safe and in at most so many columns; the same replies come again and again."""
    return _LOOK.short(text, columns)


class Lane(NamedTuple):
    """A host that took part."""

    name: str
    address: str
    roles: str


class Bar(NamedTuple):
    """A stretch of time.  `phase`: `whole` (MAIL to the last reply), `queue`, `tried`, `event`, or a phase of a hop."""

    phase: str
    start: int
    """Nanoseconds since the drawing's origin."""
    length: int
    """Nanoseconds."""
    detail: str = ""


class Row(NamedTuple):
    """A line of the waterfall.  `kind`: `hop dns tried mailbox`."""

    kind: str
    hop: int | None
    label: str
    detail: str
    basis: str
    outcome: str
    result: str
    """What to write after the last bar."""
    bars: list[Bar]


class Arrow(NamedTuple):
    """Something said from one lane to another.  `kind`: `command reply message dns claimed mailbox connect`."""

    at: int | None
    """Nanoseconds since the drawing's origin."""
    start: int
    end: int
    kind: str
    text: str
    hop: int | None
    basis: str
    frame: int | None
    source: str | None


class Drawing(NamedTuple):
    """What is to be drawn of a message."""

    origin: int
    """Nanoseconds since 1970: time 0."""
    lanes: list[Lane]
    rows: list[Row]
    arrows: list[Arrow]
    scale: list[tuple[int, float]]
    """Time axis: nanoseconds since the origin -> share of the width, linear between these points; long pauses are folded."""
    omitted: int
    """Arrows left out."""


def draw(trace: Trace) -> Drawing:
    """The drawing of one message."""
    times = [row.ts for row in trace.dns if row.ts is not None] + [h.ts_start for h in trace.hops if h.ts_start is not None]
    origin = trace.message.ts_first if trace.message.ts_first is not None else min(times, default=0)
    lanes = _Lanes(trace)
    rows = list(_rows(trace, origin, lanes))
    arrows = sorted(_arrows(trace, origin, lanes), key=_in_time)
    spans = [(bar.start, bar.start + bar.length) for row in rows for bar in row.bars if bar.phase != "queue"]
    ends = [end for row in rows for bar in row.bars for end in (bar.start, bar.start + bar.length)]
    return Drawing(origin, lanes.lanes, rows, arrows[:ARROWS], folded(spans, ends), max(len(arrows) - ARROWS, 0))


def only(drawing: Drawing, hop: int) -> Drawing:
    """The part of a drawing that one hop is: its rows and arrows, and the lanes between which they go."""
    arrows = [arrow for arrow in drawing.arrows if arrow.hop == hop]
    used = sorted({number for arrow in arrows for number in (arrow.start, arrow.end) if number >= 0})
    place = {number: i for i, number in enumerate(used)} | {-1: -1}
    moved = [arrow._replace(start=place[arrow.start], end=place[arrow.end]) for arrow in arrows]
    rows = [row for row in drawing.rows if row.hop == hop]
    return drawing._replace(lanes=[drawing.lanes[number] for number in used], rows=rows, arrows=moved, omitted=0)


def _in_time(arrow: Arrow) -> tuple[bool, int, bool]:
    """In time order; a farewell that came in the same frame as the end of the message stands after it."""
    return arrow.at is None, arrow.at or 0, arrow.text.startswith(("QUIT", "221"))


# lanes


class _Lanes:
    """Hosts as lanes: in the order in which the message met them, name servers last."""

    def __init__(self, trace: Trace) -> None:
        self.lanes: list[Lane] = []
        self._by: dict[str, int] = {}
        self._asked: dict[tuple[str | None, str | None, str | None], int] = {}
        self._host = {ip: host for host in trace.hosts for ip in host.ips}
        self._roles: dict[int, dict[str, None]] = defaultdict(dict)
        for hop in trace.hops:
            reader = hop.kind == "retrieve"
            for end in ("server", "client") if reader else ("client", "server"):
                self.of_hop(hop, end)
        for row in trace.dns:
            self.lane(row.client_ip, None, row.client_role)
        for row in trace.dns:
            self.lane(row.server_ip, None, row.server_role or "name server")
        for step in trace.timeline:
            self.lane(step.actor_ip, None, step.actor_role)
            self.lane(step.peer_ip, None, step.peer_role)
        for number, roles in self._roles.items():
            self.lanes[number] = self.lanes[number]._replace(roles=" · ".join(map(role_word, roles)))

    def of_hop(self, hop: Hop, end: str) -> int:
        """The lane of a hop's client or server."""
        ip, name, role = (
            (hop.client_ip, hop.client_name, hop.client_role)
            if end == "client"
            else (hop.server_ip, hop.server_name, hop.server_role)
        )
        return self.lane(ip, name or (None if ip else f"unseen {end} of hop {hop.hop}"), role)

    def lane(self, ip: str | None, name: str | None, role: str | None) -> int:
        """The lane of a host, made when it is new; -1 when nothing is known of it."""
        key = (ip, name, role)
        known = self._asked.get(key)
        if known is None:
            known = self._asked[key] = self._lane(ip, name, role)
        return known

    def _lane(self, ip: str | None, name: str | None, role: str | None) -> int:
        if ip is None and name is None:
            return -1
        host = self._host.get(ip) if ip is not None else None
        keys = [*(host.ips if host else ()), *([ip] if ip else ()), *([name.lower()] if name else ())]
        if ip is None and name is not None:
            keys = [name.lower()]
        number = next((self._by[key] for key in keys if key in self._by), None)
        if number is None:
            number = len(self.lanes)
            known = host.names[0] if host and host.names and (name or "[").startswith("[") else name
            self.lanes.append(Lane(_short(known or ip, NAME), _LOOK.safe(ip) if known else "", ""))
        for key in keys:
            self._by.setdefault(key, number)
        if role:
            self._roles[number][role] = None
        return number

    def name(self, number: int) -> str:
        """How a lane is called."""
        return self.lanes[number].name if 0 <= number < len(self.lanes) else "?"


def role_word(role: str | None) -> str:
    """A role as it is shown: `MTA`, `resolver`."""
    if not role:
        return "host"
    return role.upper() if len(role) <= 4 else _LOOK.safe(role)


# bars


def _rows(trace: Trace, origin: int, lanes: _Lanes) -> Iterator[Row]:
    lookups: dict[int | None, list[Transaction]] = defaultdict(list)
    mailbox: dict[int | None, list[Step]] = defaultdict(list)
    moments: dict[int | None, dict[str, int]] = defaultdict(dict)
    for row in trace.dns:
        lookups[row.hop].append(row)
    for step in trace.timeline:
        if step.event in MAILBOX:
            mailbox[step.hop].append(step)
        elif step.ts is not None:
            moments[step.hop].setdefault(step.event, step.ts)
    for hop in trace.hops:
        yield _hop(trace, hop, moments[hop.hop], origin, lanes)
        yield from _lookups(lookups[hop.hop], hop.hop, origin, lanes)
        yield from _tried([step for step in trace.failed() if step.hop == hop.hop], hop.hop, origin, lanes)
        yield from _mailbox(mailbox.pop(hop.hop, []), hop.hop, origin)
    numbers = {hop.hop for hop in trace.hops}
    for number in lookups.keys() - numbers:
        yield from _lookups(lookups[number], None, origin, lanes)
    yield from _tried([step for step in trace.failed() if step.hop not in numbers], None, origin, lanes)
    for number, steps in mailbox.items():
        yield from _mailbox(steps, number, origin)


def _lookups(rows: Sequence[Transaction], hop: int | None, origin: int, lanes: _Lanes) -> Iterator[Row]:
    """What one host asked for one hop, on one line."""
    by_client: dict[str, list[Transaction]] = defaultdict(list)
    for row in rows:
        by_client[row.client_ip].append(row)
    for client, mine in by_client.items():
        bars = []
        for question in asked(mine):
            if question.ts is not None:
                said = f"{', '.join(question.qtypes)} {question.qname} → {question.said}"
                said += f" ({question.purpose})" if question.purpose else ""
                bars.append(Bar("dns", question.ts - origin, _ns(question.seconds), _short(said, TEXT)))
        if bars:
            label = f"DNS by {lanes.name(lanes.lane(client, None, None))}"
            yield Row("dns", hop, label, counted(len(mine), "lookup"), "observed", "", "", bars)


def _tried(steps: Sequence[Step], hop: int | None, origin: int, lanes: _Lanes) -> Iterator[Row]:
    """Connections that came to nothing, each on its line."""
    for step in steps:
        if step.ts is not None:
            label = f"tried {lanes.name(lanes.lane(step.peer_ip, None, step.peer_role))}"
            who = f"by {lanes.name(lanes.lane(step.actor_ip, None, step.actor_role))}"
            said = _short(step.detail, NAME)
            yield Row("tried", hop, label, who, "observed", "aborted", said, [Bar("tried", step.ts - origin, 0, said)])


def _hop(trace: Trace, hop: Hop, moments: dict[str, int], origin: int, lanes: _Lanes) -> Row:
    bars = [
        bar._replace(start=bar.start - origin) for bar in (*_waiting(trace, hop), *_opaque(trace, hop), *_phases(hop, moments))
    ]
    ends = ["server", "client"] if hop.kind == "retrieve" else ["client", "server"]
    who = [lanes.name(lanes.of_hop(hop, end)) for end in ends]
    roles = [role_word(hop.client_role if end == "client" else hop.server_role) for end in ends]
    words = [MARKS.get(hop.outcome, "") + " " + hop.outcome, str(hop.code or "")]
    if hop.ts_start is not None and hop.ts_end is not None:
        words.insert(0, duration((hop.ts_end - hop.ts_start) / 1e9))
    if hop.basis != "observed":
        words.append({"claimed": "(claimed by trace fields)", "matched": "(opaque TLS, matched)"}.get(hop.basis, ""))
    return Row(
        "hop",
        hop.hop,
        f"{hop.hop} {hop.kind} {roles[0]} → {roles[1]}",
        f"{who[0]} → {who[1]}",
        hop.basis,
        hop.outcome,
        " ".join(word for word in words if word),
        bars,
    )


def _waiting(trace: Trace, hop: Hop) -> Iterator[Bar]:
    """The wait before a hop: since the parent hop ended or, when it was tried before, since the last try."""
    found = trace.waited(hop)
    if found is not None:
        since, left = found
        where = "in the mailbox" if hop.kind == "retrieve" else "in the queue"
        yield Bar("queue", since, _ns(left), where)


def _opaque(trace: Trace, hop: Hop) -> Iterator[Bar]:
    """The session of a hop that cannot be read: the message crossed some time within it."""
    session = next((row for row in trace.sessions if row.session_id == hop.session_id), None)
    if hop.basis == "matched" and session is not None and session.ts is not None and session.ts_end is not None:
        yield Bar("whole", session.ts, session.ts_end - session.ts, "its session, in TLS that cannot be read")


def _phases(hop: Hop, moments: dict[str, int]) -> Iterator[Bar]:
    """A hop's phases where they lie in time; those before MAIL by the timeline's own moments."""
    if hop.ts_start is not None and hop.ts_end is not None:
        yield Bar("whole", hop.ts_start, hop.ts_end - hop.ts_start)
    elif hop.ts_end is not None and hop.basis == "claimed":
        yield Bar("whole", hop.ts_end, 0, "the time that its trace field states")
    opened = moments.get("connect")
    greeted = moments.get("greeting", moments.get("banner"))
    places = {
        "connect": opened,
        "greeting": None if greeted is None else greeted - _ns(hop.greeting_s),
        "tls": None if "tls" not in moments else moments["tls"] - _ns(hop.tls_s),
        "auth": None if "auth" not in moments else moments["auth"] - _ns(hop.auth_s),
        "envelope": hop.ts_start,
        "transfer": hop.ts_data,
        "accept": hop.ts_eom,
    }
    for phase, start in places.items():
        value: float | None = getattr(hop, f"{phase}_s")
        if value is not None and start is not None and value >= 0:
            yield Bar(phase, start, _ns(value), PHASES[f"{phase}_s"].format(client="the client", server="the server"))


def _mailbox(steps: Sequence[Step], hop: int | None, origin: int) -> Iterator[Row]:
    told = [(step.ts, f"{step.event} {step.detail}") for step in steps if step.ts is not None]
    bars = [Bar("event", ts - origin, 0, _short(text, TEXT)) for ts, text in told]
    if bars:
        names = ", ".join(dict.fromkeys(step.event for step in steps))
        yield Row("mailbox", hop, "mailbox", _short(names, NAME), "observed", "", "", bars)


def _ns(seconds: float | None) -> int:
    return round((seconds or 0) * 1e9)


# arrows


def _arrows(trace: Trace, origin: int, lanes: _Lanes) -> Iterator[Arrow]:
    source_of = {session.session_id: session.source for session in trace.sessions}
    told = {}
    for hop in trace.hops:
        told[hop.hop] = list(trace.spoken(hop))
        for command in told[hop.hop]:
            yield from _command(command, hop, source_of.get(command.session_id), origin, lanes)
    answered = {(c.session_id, c.ts_reply, c.status) for commands in told.values() for c in commands}
    for step in trace.timeline:
        if step.event in _SAID and told.get(step.hop or 0):
            continue
        if step.event in OUTCOME and (step.session_id, step.ts, step.detail.partition(" ")[0]) in answered:
            continue
        start = lanes.lane(step.actor_ip, None, step.actor_role)
        end = lanes.lane(step.peer_ip, None, step.peer_role)
        hop_row = next((hop for hop in trace.hops if hop.hop == step.hop), None)
        if start < 0 and hop_row is not None:
            start = lanes.of_hop(hop_row, "client")
        if end < 0 and hop_row is not None and step.event == "claimed":
            end = lanes.of_hop(hop_row, "server")
        text = f"{_WORDS.get(step.event, step.event)} {step.detail}".strip()
        yield Arrow(
            None if step.ts is None else step.ts - origin,
            start,
            end if end >= 0 else start,
            _KINDS.get(step.event, "command"),
            _short(text, TEXT),
            step.hop,
            step.basis,
            step.frame,
            _LOOK.safe(step.source) or None,
        )


_WORDS = {
    "dns_query": "?",
    "dns_answer": "",
    "dns_cached": "cached",
    "eom": "message",
    "banner": "220",
    "accepted": "",
    "rejected": "",
    "deferred": "",
}
_KINDS = {
    "dns_query": "dns",
    "dns_answer": "dns",
    "dns_cached": "dns",
    "connect": "connect",
    "banner": "reply",
    "accepted": "reply",
    "rejected": "reply",
    "deferred": "reply",
    "aborted": "reply",
    "eom": "message",
    "retrieved": "message",
    "claimed": "claimed",
} | dict.fromkeys(MAILBOX, "mailbox")


def _command(command: Command, hop: Hop, source: str | None, origin: int, lanes: _Lanes) -> Iterator[Arrow]:
    client, server = lanes.of_hop(hop, "client"), lanes.of_hop(hop, "server")
    where = _LOOK.safe(source) or None
    said = _short(" ".join(filter(None, [command.verb, command.argument])), TEXT)
    reply = _short(" ".join(filter(None, [command.status, command.reply_text])), TEXT)
    at = None if command.ts is None else command.ts - origin
    yield Arrow(at, client, server, "command", said, hop.hop, hop.basis, command.frame, where)
    if reply:
        at = None if command.ts_reply is None else command.ts_reply - origin
        yield Arrow(at, server, client, "reply", reply, hop.hop, hop.basis, command.reply_frame, where)


# the time axis


def folded(spans: Iterable[tuple[int, int]], ends: Iterable[int]) -> list[tuple[int, float]]:
    """Points of the time axis: nanoseconds -> share of the width; pauses much longer than all that happens are folded."""
    ends = list(ends)
    if not ends:
        return [(0, 0.0), (1, 1.0)]
    low, high = min(ends), max(*ends, min(ends) + 1)
    busy: list[list[int]] = []
    within = ((max(start, low), min(end, high)) for start, end in spans)  # a clock that was set back makes spans end first
    for start, end in sorted(span for span in within if span[0] <= span[1]):
        if busy and start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([start, end])
    worked = sum(end - start for start, end in busy) or high - low
    edges = [low, *(edge for span in busy for edge in span), high]
    points, at = [(low, 0.0)], 0.0
    for i, (start, end) in enumerate(pairwise(edges)):
        if end <= start:
            continue
        fold = i % 2 == 0 and end - start > worked * FOLD_FROM
        at += worked * FOLD_TO if fold else end - start
        points.append((end, at))
    kept = [point for i, point in enumerate(points) if i in (0, len(points) - 1) or _bends(points[i - 1 : i + 2])]
    return [(ns, round(x / at, 6)) for ns, x in kept]


def _bends(three: Sequence[tuple[int, float]]) -> bool:
    """Whether the axis changes its pace at the middle one of three points."""
    (a, x), (b, y), (c, z) = three
    return abs((y - x) / (b - a) - (z - y) / (c - b)) > 1e-9


def place(scale: Sequence[tuple[int, float]], at: int) -> float:
    """Where a time lies on the axis, 0 to 1."""
    i = min(max(bisect_right(scale, (at, 2.0)), 1), len(scale) - 1)
    (a, x), (b, y) = scale[i - 1], scale[i]
    return min(max(x + (y - x) * (at - a) / (b - a), 0.0), 1.0)


def folds(scale: Sequence[tuple[int, float]]) -> list[tuple[int, int]]:
    """Pauses that the axis folds: stretches much slower than its usual pace."""
    paces = [(b - a) / max(y - x, 1e-9) for (a, x), (b, y) in pairwise(scale)]
    usual = min(paces)
    return [(a, b) for pace, ((a, _), (b, _)) in zip(paces, pairwise(scale), strict=True) if pace > usual * 1.5]


def ticks(scale: Sequence[tuple[int, float]], most: int) -> list[int]:
    """Round times to write on the axis: about `most` of them, none within a fold."""
    pace = min((b - a) / max(y - x, 1e-9) for (a, x), (b, y) in pairwise(scale))
    step = next(s * 10**e for e in range(19) for s in (1, 2, 5) if s * 10**e >= pace / most)
    skipped = folds(scale)
    found: list[int] = []
    for a, b in pairwise([at for at, _ in scale]):
        if (a, b) not in skipped:
            found += range(-(-a // step) * step, b + 1, step)
    return list(dict.fromkeys(found))


# pictures

WIDTH, LABELS, LINE, TOP = 980, 290, 38, 30
_MARGIN = 16
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)"')
_LETTER = 6.3
"""Pixels of a letter, about."""


class Svg:
    """SVG, element by element; everything in it that traffic said is text."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'role="img" aria-label="{escape(_LOOK.safe(title))}" class="mh-svg" font-family="system-ui, sans-serif" '
            'font-size="12" fill="currentColor">'
        ]

    def add(self, name: str, /, **attributes: object) -> None:
        """An element: `text` is its content, `title` its tip; `_` in an attribute's name stands for `-`."""
        text, title = str(attributes.pop("text", None) or ""), str(attributes.pop("title", None) or "")
        given = "".join(f' {k.rstrip("_").replace("_", "-")}="{_attribute(v)}"' for k, v in attributes.items() if v is not None)
        inside = f"<title>{escape(_LOOK.safe(title))}</title>" if title else ""
        inside += escape(_LOOK.safe(text)) if text else ""
        self.parts.append(f"<{name}{given}>{inside}</{name}>" if inside else f"<{name}{given}/>")

    def text(self, x: float, y: float, text: str, **attributes: object) -> None:
        """Text at a place."""
        self.add("text", text=text, x=x, y=y, **attributes)

    def line(self, x1: float, y1: float, x2: float, y2: float, **attributes: object) -> None:
        """A line in the text's colour."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, **{"stroke": "currentColor", **attributes})

    def head(self, x: float, y: float, towards: int, **attributes: object) -> None:
        """An arrow head whose tip is at a place; `towards`: 1 right, -1 left."""
        self.add("path", d=f"M{x:g} {y:g}l{-7 * towards} -3.5v7z", **attributes)

    def __str__(self) -> str:
        return "".join(self.parts) + "</svg>"


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escape(str(value))


def fit(text: str, pixels: float) -> str:
    """Text cut to about so many pixels."""
    return _short(text, max(int(pixels / _LETTER), 3))


def picture(trace: Trace) -> str:
    """A message's waterfall, and its ladder below it, as one SVG file of its own."""
    drawing = draw(trace)
    parts = [waterfall(drawing), ladder(drawing)]
    sizes = [_SIZE.match(part) for part in parts]
    (w1, h1), (w2, h2) = ((float(size[1]), float(size[2])) if size else (0.0, 0.0) for size in sizes)
    title = trace.message.message_id or trace.message.trace_id
    svg = Svg(max(w1, w2) + 2 * _MARGIN, h1 + h2 + 3 * _MARGIN, f"Message {title}")
    svg.add("rect", width="100%", height="100%", fill="#fff")
    for part, top in zip(parts, (_MARGIN, h1 + 2 * _MARGIN), strict=True):
        svg.parts.append(f'<g transform="translate({_MARGIN} {top:g})" color="#1b1f24">{part}</g>')
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{svg}\n'


def waterfall(drawing: Drawing) -> str:
    """Bars for every hop and its phases, lookups and waits, as SVG."""
    room = WIDTH - LABELS - 20
    bottom = TOP + LINE * len(drawing.rows)
    height = bottom + 56
    svg = Svg(WIDTH, height, f"Waterfall of {counted(len(drawing.rows), 'row')}; the trace's text says the same")

    def x(at: int) -> float:
        return LABELS + place(drawing.scale, at) * room

    right = -100.0
    for at in ticks(drawing.scale, 7):
        if x(at) - right > 55 and x(at) < WIDTH - 30:
            right = x(at)
            svg.line(right, TOP - 4, right, bottom, stroke_opacity=0.12)
            svg.text(right, TOP - 10, _clock(at), text_anchor="middle", fill_opacity=0.65, font_size=11)
    labelled, low = -100.0, False
    for start, end in folds(drawing.scale):
        svg.add(
            "rect",
            title=f"{duration((end - start) / 1e9)} folded",
            x=x(start),
            y=TOP - 4,
            width=x(end) - x(start),
            height=bottom - TOP + 4,
            fill_opacity=0.06,
        )
        middle = (x(start) + x(end)) / 2
        low = middle - labelled < 70 and not low
        labelled = middle
        words = f"⋯ {duration((end - start) / 1e9)} ⋯"
        svg.text(middle, bottom + (25 if low else 13), words, text_anchor="middle", font_size=10)
    for i, row in enumerate(drawing.rows):
        _waterfall_row(svg, row, TOP + LINE * i, x)
    _legend(svg, {bar.phase for row in drawing.rows for bar in row.bars}, height - 8)
    return str(svg)


def _legend(svg: Svg, used: set[str], y: float) -> None:
    """What the colours mean, as far as they were used."""
    left = 0.0
    for phase, colour in FILL.items():
        if phase in used:
            if phase == "event":
                svg.add("path", d=f"M{left + 6} {y - 10}l6 6l-6 6l-6-6z", fill=colour)
            else:
                svg.add("rect", x=left, y=y - 9, width=12, height=10, rx=2, fill=colour)
            word = LEGEND.get(phase, phase)
            svg.text(left + 17, y, word, font_size=11, fill_opacity=0.75)
            left += 34 + len(word) * _LETTER


def _waterfall_row(svg: Svg, row: Row, top: float, x: Place) -> None:
    bold = "600" if row.kind == "hop" else None
    indent = 0 if row.kind == "hop" else 14
    svg.text(indent, top + 15, fit(row.label, LABELS - 10 - indent), font_weight=bold)
    svg.text(indent, top + 29, fit(row.detail, LABELS - 10 - indent), fill_opacity=0.65, font_size=11)
    middle, last = top + LINE / 2, 0.0
    for bar in row.bars:
        left, width = x(bar.start), max(x(bar.start + bar.length) - x(bar.start), 1.5)
        last = max(last, left + width)
        title = f"{bar.phase} {duration(bar.length / 1e9)} at {_clock(bar.start)} {bar.detail}"
        if bar.phase == "queue":
            svg.line(left, middle, left + width, middle, stroke_dasharray="1.5 4", stroke_width=2, stroke_opacity=0.6)
            words = f"{'mailbox' if 'mailbox' in bar.detail else 'queue'} {duration(bar.length / 1e9)}"
            if width > len(words) * _LETTER + 6:
                svg.text(left + width / 2, middle - 5, words, text_anchor="middle", font_size=11, fill_opacity=0.65)
            elif bar.length >= LONG and left - LABELS > len(words) * _LETTER + 10:
                svg.text(left - 6, middle + 4, words, text_anchor="end", font_size=11, fill_opacity=0.65)
        elif bar.phase == "whole":
            dash = "4 3" if row.basis != "observed" else None
            svg.add(
                "rect",
                title=title,
                x=left,
                y=top + 8,
                width=width,
                height=22,
                rx=3,
                fill_opacity=0.08,
                stroke="currentColor",
                stroke_opacity=0.5,
                stroke_dasharray=dash,
            )
        elif bar.phase == "event":
            svg.add("path", title=title, d=f"M{left:.2f} {middle - 6}l6 6l-6 6l-6 -6z", fill=FILL["event"])
        else:
            tall = 10 if row.kind == "dns" else 14
            svg.add("rect", title=title, x=left, y=middle - tall / 2, width=width, height=tall, rx=2, fill=FILL[bar.phase])
            if row.kind == "hop" and width > len(bar.phase) * _LETTER + 4:
                svg.text(left + 3, middle + 4, bar.phase, fill="#fff", font_size=10)
    if row.result:
        needed = len(row.result) * _LETTER
        fits = last + needed + 6 < WIDTH
        svg.text(
            last + 6 if fits else WIDTH - 4,
            middle + 4 if fits else top + 6,
            row.result,
            font_size=11,
            text_anchor=None if fits else "end",
        )


def _clock(at: int) -> str:
    sign = "-" if at < 0 else "+"
    return sign + (duration(abs(at) / 1e9) if at else "0")


def ladder(drawing: Drawing) -> str:
    """Lanes for hosts, arrows for what they said, in time order, as SVG."""
    left, line, top = 80, 24, 62
    gap = min(max((WIDTH - left - 160) / max(len(drawing.lanes) - 1, 1), 168), 260)
    width = left + gap * max(len(drawing.lanes) - 1, 1) + 100
    groups = list(_with_headings(drawing.arrows))
    height = top + line * len(groups) + 12
    svg = Svg(width + 60, height, f"Ladder of {counted(len(drawing.arrows), 'arrow')}")

    def lane(number: int) -> float:
        return left + 60 + gap * number

    for i, it in enumerate(drawing.lanes):
        for y, text, weight in ((14, it.roles, "600"), (30, it.name, None), (45, it.address, None)):
            svg.text(lane(i), y, fit(text, gap - 8), text_anchor="middle", font_weight=weight, font_size=12 if weight else 11)
        svg.line(lane(i), top - 10, lane(i), height, stroke_opacity=0.25)
    for i, arrow in enumerate(groups):
        y = top + line * i + 14
        if isinstance(arrow, int):
            svg.add("rect", x=0, y=y - 13, width=width + 60, height=18, fill_opacity=0.07)
            label = next((row.label for row in drawing.rows if row.kind == "hop" and row.hop == arrow), "outside any hop")
            svg.text(6, y, label, font_weight="600", font_size=11)
        else:
            _ladder_arrow(svg, arrow, y, lane, width)
    return str(svg)


def _ladder_arrow(svg: Svg, arrow: Arrow, y: float, lane: Place, width: float) -> None:
    colour = {"dns": FILL["dns"], "message": FILL["transfer"], "mailbox": FILL["event"]}.get(arrow.kind, "currentColor")
    dash = "5 4" if arrow.basis != "observed" else "2 3" if arrow.kind == "dns" else None
    if arrow.at is not None:
        svg.text(0, y + 4, f"{arrow.at / 1e9:+.4f} s", font_size=10, fill_opacity=0.65)
    a, b = lane(max(arrow.start, 0)), lane(max(arrow.end, 0))
    if a == b:
        svg.add("circle", cx=a, cy=y + 2, r=3.5, fill=colour)
    else:
        towards = 1 if b > a else -1
        svg.line(a, y + 4, b - 6 * towards, y + 4, stroke=colour, stroke_dasharray=dash, stroke_width=1.2)
        svg.head(b, y + 4, towards, fill=colour)
    text = fit(arrow.text, max(abs(a - b) - 12, 200))
    at = min(min(a, b) + 8, width + 50 - len(text) * _LETTER)
    svg.text(at, y, text, title=arrow.text, font_size=11)


def _with_headings(arrows: Iterable[Arrow]) -> Iterator[Arrow | int]:
    """Arrows, and a hop's number where another hop begins."""
    before: int | None = None
    for arrow in arrows:
        if arrow.hop is not None and arrow.hop != before:
            before = arrow.hop
            yield arrow.hop
        yield arrow
