"""One message: who handled it, when, what each said, and where the time went.

`find` and `select` pick the message out of finished tables; `Trace` holds its rows and shows them as
text, HTML, JSON and a Mermaid sequence diagram.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from analyzer.errors import MessageNotFound
from analyzer.limits import Limits
from analyzer.mail.records import Authentication, Delivery, Hop, Host, Link, Message, RecipientRow, Step
from analyzer.protocols.base import Command, SessionRow
from analyzer.protocols.dns import Transaction
from analyzer.tables import TABLES, Tables
from analyzer.tables.export import json_lines
from analyzer.tables.visible import visible
from analyzer.views.text import Look, Page
from analyzer.wire.anomalies import Anomaly

if TYPE_CHECKING:
    from analyzer.views.notebook import Shown

MATCHES = 20
"""Messages named when several answer to a selector."""
SIDE_BY_SIDE = 200_000_000
"""Nanoseconds within which questions about one name were asked together."""
SHORTEST_WAIT = 0.001
"""Seconds below which a wait is not worth a word."""
SHORTEST = 4
"""Fewest characters taken for the beginning of a trace id."""
_OF_MESSAGE = {
    "MAIL",
    "RCPT",
    "DATA",
    "BDAT",
    "RSET",
    "RETR",
    "TOP",
    "DELE",
    "FETCH",
    "UID FETCH",
    "APPEND",
    "STORE",
    "UID STORE",
}
"""Commands that belong to one message; those before the first of them set the session up."""


@dataclass
class Trace:
    """One message's rows out of every table."""

    message: Message
    hops: list[Hop] = field(default_factory=list)
    recipients: list[RecipientRow] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    timeline: list[Step] = field(default_factory=list)
    sessions: list[SessionRow] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    dns: list[Transaction] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)
    authentication: list[Authentication] = field(default_factory=list)

    def __str__(self) -> str:
        return str(self.page(Look()))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from analyzer.views.notebook import trace_html

        return trace_html(self)

    def page(self, look: Look, dialogue: bool = False) -> Page:
        """The timeline as lines for a terminal; `dialogue`: each command and its reply, too."""
        from analyzer.views.telling import tell

        return tell(self, look, dialogue)

    def waterfall(self) -> "Shown":
        """The waterfall alone: a bar for every hop and its phases, lookups and waits."""
        from analyzer.views.drawing import draw, waterfall
        from analyzer.views.notebook import picture

        return picture(waterfall(draw(self)), str(self))

    def ladder(self, hop: int | None = None) -> "Shown":
        """The ladder alone: what was said, from lane to lane; of one hop, or of all."""
        from analyzer.views.drawing import draw, ladder, only
        from analyzer.views.notebook import picture

        drawing = draw(self)
        text = str(self) if hop is None else str(self.dialogue(hop))
        return picture(ladder(drawing if hop is None else only(drawing, hop)), text)

    def dialogue(self, hop: int) -> "Shown":
        """What client and server said on a hop.  Raises KeyError for a hop that does not exist."""
        from analyzer.views.notebook import page
        from analyzer.views.telling import dialogue

        found = next((each for each in self.hops if each.hop == hop), None)
        if found is None:
            raise KeyError(hop)
        return page(dialogue(self, found, Look()))

    @property
    def time_went(self) -> str:
        """Where the time went, in one sentence."""
        from analyzer.views.telling import time_went

        return time_went(self)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def rows(self, table: str) -> list[Any]:
        """The message's rows of a table."""
        return [self.message] if table == "messages" else list(getattr(self, table))

    def json(self) -> str:
        """Every row of every table that belongs to this message: one JSON object, ASCII only."""
        parts = [f'"trace_id": {json.dumps(self.message.trace_id)}']
        for name, table in TABLES.items():
            lines = [line.rstrip("\n") for line in json_lines(table)(self.rows(name))]
            parts.append(f'"{name}": [' + ",".join(f"\n  {line}" for line in lines) + ("\n]" if lines else "]"))
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def mermaid(self) -> str:
        """A Mermaid sequence diagram."""
        from analyzer.views.mermaid import diagram

        return diagram(self)

    def made_good(self, hop: Hop) -> bool:
        """Whether a hop is a refused try, and a later hop from the same hop took the same recipients."""
        if hop.outcome not in ("deferred", "rejected", "aborted"):
            return False
        wanted = set(hop.rcpt_to or ())
        return any(
            later.hop > hop.hop
            and later.parent_hop == hop.parent_hop
            and later.outcome in ("accepted", "partial")
            and wanted <= set(later.rcpt_to or ())
            for later in self.hops
        )

    def tries(self, hop: Hop) -> list[Hop]:
        """Refused tries that came before a hop and that it, or a later one, made good."""
        return [h for h in self.hops if h.hop < hop.hop and h.parent_hop == hop.parent_hop and self.made_good(h)]

    def failed(self) -> list[Step]:
        """Connections made for the message that came to nothing: refused, unanswered, or over before a word was said."""
        return [step for step in self.timeline if step.event == "connect" and step.session_id is None]

    def cached(self) -> list[Step]:
        """Hops for which their client asked nothing, though its questions are in the capture."""
        return [step for step in self.timeline if step.event == "dns_cached"]

    def waited(self, hop: Hop) -> tuple[int, float] | None:
        """The wait before a hop: since when (the parent hop's end, or the last try's), and seconds."""
        parent = next((h for h in self.hops if h.hop == hop.parent_hop), None)
        if parent is None or parent.ts_end is None or not hop.queue_s:
            return None
        since = max([parent.ts_end, *(h.ts_end for h in self.tries(hop) if h.ts_end is not None)])
        left = hop.queue_s - (since - parent.ts_end) / 1e9
        return (since, left) if left >= SHORTEST_WAIT else None

    def spoken(self, hop: Hop) -> Iterator[Command]:
        """Commands of a hop, and of the set-up of its session."""
        return (c for c in self.commands if c.session_id == hop.session_id and _within(c, hop))


# picking the message


def find(tables: Tables, message: str) -> Trace:
    """One message by its Message-ID (with or without angle brackets) or trace id.

    Raises MessageNotFound when none answers, or several.
    """
    rows = list(islice(select(tables, message_id=message), MATCHES))
    if not rows and len(message) >= SHORTEST:
        rows = list(islice(select(tables, trace_id=message), MATCHES))
    if not rows:
        raise nothing_found(tables, message)
    if len(rows) > 1:
        raise MessageNotFound(
            f"several messages answer to {visible(message)!r}", f"choose one: {', '.join(r.trace_id for r in rows)}"
        )
    return gather(tables, rows[0])


def select(
    tables: Tables,
    *,
    message_id: str | None = None,
    trace_id: str | None = None,
    rcpt: str | None = None,
    subject: str | None = None,
) -> Iterator[Message]:
    """Messages that answer to every selector given, in time order.

    `message_id` with or without angle brackets; `trace_id` may be its beginning; `rcpt` an address, letter
    case aside; `subject` a part of it, letter case aside.
    """
    bare = None if message_id is None else _without_brackets(message_id)
    part = None if subject is None else subject.casefold()
    having: set[str] | None = None
    if rcpt is not None:
        address = _without_brackets(rcpt).casefold()
        found = chain(tables.rows("deliveries"), tables.rows("recipients"))
        having = {row.trace_id for row in found if row.recipient.casefold() == address}
    for row in tables.rows("messages"):
        if (
            (bare is None or (row.message_id is not None and _without_brackets(row.message_id) == bare))
            and (trace_id is None or row.trace_id.startswith(trace_id.lower()))
            and (part is None or (row.subject is not None and part in row.subject.casefold()))
            and (having is None or row.trace_id in having)
        ):
            yield row


def _without_brackets(text: str) -> str:
    return text.strip().removeprefix("<").removesuffix(">")


def nothing_found(tables: Tables, wanted: str) -> MessageNotFound:
    """What to say when no message answers: with the first that there are."""
    return MessageNotFound(f"no message answers to {visible(wanted)}", _known(tables))


def _known(tables: Tables) -> str:
    number = tables.count("messages")
    if not number:
        return "the capture shows no message"
    names = [visible(row.message_id or row.trace_id) for row, _ in zip(tables.rows("messages"), range(3), strict=False)]
    more = f" and {number - 3:,} more" if number > 3 else ""
    return f"there are {', '.join(names)}{more}"


def gather(tables: Tables, message: Message) -> Trace:
    """A message's rows out of every table.  One pass over each."""

    def mine(table: str) -> list[Any]:
        return [row for row in tables.rows(table) if row.trace_id == message.trace_id]

    trace = Trace(message)
    trace.hops = sorted(mine("hops"), key=lambda hop: hop.hop)
    trace.recipients, trace.deliveries, trace.timeline = mine("recipients"), mine("deliveries"), mine("timeline")
    trace.dns, trace.links, trace.authentication = mine("dns"), mine("links"), mine("authentication")
    crossed = {hop.session_id for hop in trace.hops} | {step.session_id for step in trace.timeline} - {None}
    trace.sessions = [row for row in tables.rows("sessions") if row.session_id in crossed]
    trace.commands = list(_commands(tables.rows("commands"), trace.hops))
    taking_part = {ip for hop in trace.hops for ip in (hop.client_ip, hop.server_ip)}
    taking_part |= {ip for row in trace.dns for ip in (row.client_ip, row.server_ip)}
    trace.hosts = [row for row in tables.rows("hosts") if taking_part.intersection(row.ips)]
    trace.anomalies = [row for row in tables.rows("anomalies") if row.trace_id == message.trace_id or row.session_id in crossed]
    return trace


def gather_all(tables: Tables, messages: Iterable[Message]) -> Iterator[Trace]:
    """Many messages' rows, with one pass over each table for all of them.  Holds what it hands out."""
    traces = {message.trace_id: Trace(message) for message in messages}
    for name in ("hops", "recipients", "deliveries", "timeline", "dns", "links", "authentication"):
        for row in tables.rows(name):
            trace = traces.get(row.trace_id)
            if trace is not None:
                getattr(trace, name).append(row)
    sessions = {row.session_id: row for row in tables.rows("sessions")}
    hosts = {ip: host for host in tables.rows("hosts") for ip in host.ips}
    odd = defaultdict(list)
    for row in tables.rows("anomalies"):
        odd[row.trace_id or row.session_id].append(row)
    spoken = defaultdict(list)
    crossed = {hop.session_id for trace in traces.values() for hop in trace.hops}
    for row in tables.rows("commands"):
        if row.session_id in crossed:
            spoken[row.session_id].append(row)
    dialogues = {session_id: _Dialogue(rows) for session_id, rows in spoken.items()}
    for trace in traces.values():
        trace.hops.sort(key=lambda hop: hop.hop)
        own = dict.fromkeys([hop.session_id for hop in trace.hops] + [step.session_id for step in trace.timeline])
        trace.sessions = [sessions[session_id] for session_id in own if session_id in sessions]
        for hop in trace.hops:
            if hop.session_id in dialogues:
                trace.commands += dialogues[hop.session_id].of(hop)
        ips = {ip: None for hop in trace.hops for ip in (hop.client_ip, hop.server_ip)}
        ips |= {ip: None for row in trace.dns for ip in (row.client_ip, row.server_ip)}
        trace.hosts = list({hosts[ip].host_id: hosts[ip] for ip in ips if ip in hosts}.values())
        trace.anomalies = [row for key in (trace.message.trace_id, *own) for row in odd.get(key, ())]
        yield trace


def narrow(tables: Tables, traces: Collection[str], limits: Limits | None = None) -> Tables:
    """The rows of these messages alone, out of every table: as `gather` has them for one."""
    made = Tables(limits)
    for name, table in TABLES.items():
        if name != "anomalies" and any(column.name == "trace_id" for column in table.columns):
            made.extend(name, (row for row in tables.rows(name) if row.trace_id in traces))
    crossed = {row.session_id for name in ("hops", "timeline") for row in made.rows(name)} - {None}
    made.extend("sessions", (row for row in tables.rows("sessions") if row.session_id in crossed))
    made.extend("commands", _commands(tables.rows("commands"), made.rows("hops")))
    ips = {ip for row in made.rows("hops") for ip in (row.client_ip, row.server_ip)}
    ips |= {ip for row in made.rows("dns") for ip in (row.client_ip, row.server_ip)}
    made.extend("hosts", (row for row in tables.rows("hosts") if ips.intersection(row.ips)))
    odd = (
        row for row in tables.rows("anomalies") if row.trace_id in traces or (row.trace_id is None and row.session_id in crossed)
    )
    made.extend("anomalies", odd)
    return made


class _Dialogue:
    """A session's commands, ready to be asked for those of one hop."""

    def __init__(self, rows: list[Command]) -> None:
        self._rows = [row for row in rows if row.ts is not None]
        self._times = [row.ts or 0 for row in self._rows]

    def of(self, hop: Hop) -> list[Command]:
        """Commands of a hop; for the session's first message, those that set it up, too."""
        if hop.ts_start is None:
            return []
        first = 0 if hop.message_index == 1 else bisect_left(self._times, hop.ts_start)
        last = bisect_right(self._times, hop.ts_end or hop.ts_eom or hop.ts_start)
        return self._rows[first:last]


def _commands(rows: Iterable[Command], hops: Iterable[Hop]) -> Iterator[Command]:
    """Commands of these hops, and those that set their sessions up."""
    spans = defaultdict(list)
    for hop in hops:
        if hop.session_id is not None and hop.ts_start is not None:
            spans[hop.session_id].append((hop.ts_start, hop.ts_end or hop.ts_eom or hop.ts_start))
    under_way = set()
    for row in rows:
        times = spans.get(row.session_id)
        if times is None:
            continue
        if row.verb in _OF_MESSAGE:
            under_way.add(row.session_id)
        if row.session_id not in under_way or (row.ts is not None and any(begin <= row.ts <= end for begin, end in times)):
            yield row


def _within(command: Command, hop: Hop) -> bool:
    """Whether a command is of this hop, or of the set-up of its session."""
    if hop.ts_start is None or command.ts is None:
        return False
    last = hop.ts_end or hop.ts_eom or hop.ts_start
    return command.ts <= last if hop.message_index == 1 else hop.ts_start <= command.ts <= last


# what more than one picture says


class Question(NamedTuple):
    """One question to one server: its types (A and AAAA, say) are asked side by side and told as one."""

    client_ip: str
    server: str
    """Role and address of who was asked."""
    qname: str
    qtypes: list[str]
    ts: int | None
    seconds: float | None
    """From the first question to the last answer."""
    said: str
    found: bool
    purpose: str
    """When the type does not say it already: `spf`, `dkim`, `dnsbl`."""


def asked(rows: Iterable[Transaction]) -> list[Question]:
    """Lookups in time order; what one client asks about one name at one time is one question."""
    groups: list[list[Transaction]] = []
    for row in rows:
        last = groups[-1][-1] if groups else None
        if last is not None and _about(row) == _about(last) and (row.ts or 0) - (last.ts or 0) <= SIDE_BY_SIDE:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_question(group) for group in groups]


def _about(row: Transaction) -> tuple[str | None, ...]:
    return (row.client_ip, row.server_ip, row.qname, row.purpose)


def _question(rows: list[Transaction]) -> Question:
    first = rows[0]
    role = {"authoritative": "name server", None: "name server"}.get(first.server_role, first.server_role)
    data = list(dict.fromkeys(part for row in rows for part in _data(row)))
    ended = [row.ts_reply for row in rows if row.ts_reply is not None]
    plain = first.purpose in (None, "address", "other") or first.purpose == (first.qtype or "").lower()
    return Question(
        client_ip=first.client_ip,
        server=f"{role} {first.server_ip}",
        qname=first.qname or "?",
        qtypes=list(dict.fromkeys(row.qtype or "?" for row in rows)),
        ts=first.ts,
        seconds=(max(ended) - first.ts) / 1e9 if ended and first.ts is not None else None,
        said=_in_short(data) if data else _why_nothing(rows),
        found=bool(data) or all(row.rcode == "NOERROR" for row in rows),
        purpose="" if plain else first.purpose or "",
    )


def _data(row: Transaction) -> list[str]:
    """Records of an answer without owner, and without their type when it is the one asked for."""
    parts = [answer.split(" ", 2)[1:] for answer in row.answers or ()]  # owner TYPE rdata
    return [data if kind == row.qtype else f"{kind} {data}" for kind, data in (part for part in parts if len(part) == 2)]


def _in_short(data: list[str]) -> str:
    return ", ".join(data[:3]) + (f" and {len(data) - 3} more" if len(data) > 3 else "")


def _why_nothing(rows: list[Transaction]) -> str:
    codes = dict.fromkeys(row.rcode or "no answer" if row.answered else "no answer" for row in rows)
    return ", ".join("no such record" if code == "NOERROR" else code for code in codes)


def wireshark(trace: Trace) -> dict[str, str]:
    """A display filter for each source that shows the whole message: its connections, lookups and first SYNs without answer."""
    streams: dict[str, set[int]] = defaultdict(set)
    frames: dict[str, set[int]] = defaultdict(set)
    for hop in trace.hops:
        if hop.source is not None and hop.tcp_stream is not None:
            streams[hop.source].add(hop.tcp_stream)
    for row in trace.dns:
        frames[row.source].update(f for f in (row.frame, row.reply_frame) if f is not None)
    for step in trace.failed():
        if step.source is not None and step.frame is not None:
            frames[step.source].add(step.frame)
    return {
        source: " || ".join(filter(None, [_among("tcp.stream", streams[source]), _among("frame.number", frames[source])]))
        for source in sorted(streams.keys() | frames.keys())
    }


def _among(name: str, numbers: set[int]) -> str:
    """`frame.number in {4, 7..9}`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(numbers) == 1:
        return f"{name} == {runs[0][0]}"
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"{name} in {{{', '.join(texts)}}}" if texts else ""
