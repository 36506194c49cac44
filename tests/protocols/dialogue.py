r"""Dialogues as the RFCs print them, fed to a protocol session.

    S: 220 mx.example.net ESMTP          a line of the server, CRLF added
    C: EHLO client.example.org           a line of the client
    C> DATA                              as `C:`, but in a segment of its own: not joined to the line before
    C~ half a li                         octets as they stand, no line end (`S~` too)
    C...gap 512                          512 octets of the client are lost here (`S...gap ?`: an unknown number)
    ...gap 512                           the same, for the direction of the line that follows
    [t=1.5]                              seconds since the start, for what follows; alone or before a line
    [end=reset]                          how the connection ends: `fin` (default) `reset` `timeout` `capture_end`
    # a remark

Octets: `\xNN \r \n \t \0 \\` in any line.  Successive lines of one side are one segment (pipelining shows in the
text); each segment acknowledges all that the other side sent before it, comes 10 ms after the one before, and is
one frame.

`play(Session, text)` feeds it to a session; `cut` says how the octets are cut into chunks and `order` in which order
the two directions are fed, and no result may depend on either.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from analyzer.limits import Limits
from analyzer.protocols.base import Command, MailboxEvent, MessageCarried, SessionEnded, SessionInfo, SessionRow
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Chunk, Connection

START = 1_700_000_000_000_000_000
STEP = 10_000_000
_LINE = re.compile(
    r"(?:\[t=(?P<t>[\d.]+)\]\s*)?(?:(?P<side>[CS])(?P<mark>[:~>]) ?(?P<text>.*)|(?P<gside>[CS])?\.\.\.gap (?P<gap>\d+|\?))?$"
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}


@dataclass
class Segment:
    """Octets of one side, sent at once; `gap` octets (-1: unknown) were lost before them."""

    client: bool
    ts: int
    frame: int
    data: bytes = b""
    gap: int = 0
    offset: int = 0
    ack: int = 0


@dataclass
class Dialogue:
    """Segments in capture order, and how the connection ends."""

    segments: list[Segment] = field(default_factory=list)
    end: str = "fin"

    def stream(self, client: bool) -> bytes:
        """The octets seen of one direction, holes left out."""
        return b"".join(s.data for s in self.segments if s.client == client)


def octets(line: str) -> bytes:
    r"""A dialogue line as octets: UTF-8, with `\xNN` and the usual escapes."""

    def escape(found: re.Match[str]) -> str:
        word = found[1]
        return chr(0xDC00 + int(word[1:], 16)) if word[0] == "x" and int(word[1:], 16) > 127 else _plain(word)

    return _ESCAPE.sub(escape, line).encode("utf-8", "surrogateescape")


def _plain(word: str) -> str:
    return chr(int(word[1:], 16)) if word[0] == "x" and len(word) == 3 else _ESCAPES.get(word, "\\" + word)


def parse(text: str) -> Dialogue:
    """A dialogue's text as segments."""
    dialogue = Dialogue()
    segments = dialogue.segments
    ts, gaps, fresh = START, {True: 0, False: 0}, True
    any_gap = 0
    for number, line in enumerate((each.lstrip() for each in text.splitlines()), 1):
        if line.startswith("#") or not line:
            continue
        if line.startswith("[end="):
            dialogue.end = line[5:].rstrip("] ")
            continue
        found = _LINE.match(line)
        if not found:
            raise ValueError(f"line {number} of the dialogue: {line!r}")
        if found["t"]:
            ts, fresh = START + round(float(found["t"]) * 1e9), True
        if found["gap"]:
            lost = -1 if found["gap"] == "?" else int(found["gap"])
            fresh = True
            if found["gside"]:
                gaps[found["gside"] == "C"] = lost
            else:
                any_gap = lost
        if not found["side"]:
            continue
        client = found["side"] == "C"
        lost, gaps[client] = any_gap or gaps[client], 0
        any_gap = 0
        data = octets(found["text"]) + (b"" if found["mark"] == "~" else b"\r\n")
        if fresh or lost or not segments or segments[-1].client != client or found["mark"] == ">":
            if segments and not found["t"] and not (fresh and ts > segments[-1].ts):
                ts = segments[-1].ts + STEP
            segments.append(Segment(client, ts, len(segments) + 4, gap=lost))
            fresh = False
        segments[-1].data += data
    for side in (True, False):
        if gaps[side]:
            segments.append(Segment(side, segments[-1].ts + STEP, len(segments) + 4, gap=gaps[side]))
    _number(segments)
    return dialogue


def _number(segments: list[Segment]) -> None:
    """Stream offsets and acknowledgements, as TCP counts them."""
    sent = {True: 0, False: 0}
    for segment in segments:
        segment.offset = sent[segment.client] + max(segment.gap, 0)
        segment.ack = sent[not segment.client]
        sent[segment.client] = segment.offset + len(segment.data)


def connection(server_port: int = 25, start: str = "handshake") -> Connection:
    """A connection for a session to live on."""
    return Connection(
        source="dialogue.pcap",
        tcp_stream=0,
        orig_ip="192.0.2.10",
        orig_port=41000,
        resp_ip="198.51.100.25",
        resp_port=server_port,
        ts=START - 3 * STEP,
        first_frame=1,
        start=start,
        ts_syn=START - 3 * STEP,
        ts_synack=START - 2 * STEP,
        ts_open=START - STEP,
    )


@dataclass
class Played:
    """What a session made of a dialogue."""

    events: list[Any]
    session: Any

    def _all(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]

    @property
    def commands(self) -> list[Command]:
        return self._all(Command)

    @property
    def verbs(self) -> list[str]:
        return [c.verb for c in self.commands]

    @property
    def messages(self) -> list[MessageCarried]:
        return self._all(MessageCarried)

    @property
    def mailbox(self) -> list[MailboxEvent]:
        return self._all(MailboxEvent)

    @property
    def anomalies(self) -> list[str]:
        return [a.name for a in self._all(Anomaly)]

    @property
    def info(self) -> SessionInfo:
        return self.session.info

    @property
    def row(self) -> SessionRow:
        (ended,) = self._all(SessionEnded)
        return ended.row


def chunks(dialogue: Dialogue, cut: int | str | Iterable[int] = "segments", order: str = "capture") -> list[Chunk]:
    """The dialogue as chunks.

    cut: `segments` (one chunk each), `whole` (as large as gaps allow), an integer (so many octets each), or stream
    offsets at which both directions are cut.  order: `capture`, `client` first, `server` first.
    """
    cuts = cut if isinstance(cut, int | str) else sorted(set(cut))
    made: list[tuple[int, Chunk]] = []
    for client in (True, False):
        mine = [s for s in dialogue.segments if s.client == client]
        for run in _runs(mine):
            made.extend(_cut(run, client, cuts))
    if order == "capture":
        made.sort(key=lambda item: item[0])
    elif order == "server":
        made.sort(key=lambda item: item[1].orig)
    return [chunk for _, chunk in made]


def _runs(segments: list[Segment]) -> Iterable[list[Segment]]:
    """Segments between which nothing is lost."""
    run: list[Segment] = []
    for segment in segments:
        if segment.gap and run:
            yield run
            run = []
        run.append(segment)
    if run:
        yield run


def _cut(run: list[Segment], client: bool, cut: int | str | list[int]) -> Iterable[tuple[int, Chunk]]:
    begin, data = run[0].offset, b"".join(s.data for s in run)
    end = begin + len(data)
    if cut == "segments":
        edges = [s.offset for s in run]
    elif cut == "whole":
        edges = [begin]
    elif isinstance(cut, int):
        edges = list(range(begin, end, cut)) or [begin]
    else:
        edges = [begin, *(int(c) for c in cut if begin < int(c) < end)]
    edges = list(dict.fromkeys(edges))
    gap = run[0].gap
    for left, right in zip(edges, [*edges[1:], end], strict=True):
        inside = [s for s in run if s.offset < right and s.offset + len(s.data) > left] or [
            max((s for s in run if s.offset <= left), key=lambda s: s.offset)
        ]
        yield (
            inside[0].frame,
            Chunk(
                client,
                gap,
                left,
                data[left - begin : right - begin],
                [max(s.offset, left) for s in inside],
                [s.ts for s in inside],
                [s.frame for s in inside],
                [s.ack for s in inside],
            ),
        )
        gap = 0


def play(
    session: Callable[[Connection, bool, Limits], Any],
    dialogue: str | Dialogue,
    *,
    cut: int | str | Iterable[int] = "segments",
    order: str = "capture",
    port: int = 25,
    start: str = "handshake",
    limits: Limits | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Played:
    """Feed a dialogue to a session, close it, and return what it said."""
    if isinstance(dialogue, str):
        dialogue = parse(dialogue)
    conn = connection(port, start)
    subject = session(conn, True, limits or Limits())
    if prepare:
        prepare(subject)
    events: list[Any] = []
    last = conn.ts
    for chunk in chunks(dialogue, cut, order):
        conn.orig_bytes += len(chunk.data) * chunk.orig
        conn.resp_bytes += len(chunk.data) * (not chunk.orig)
        conn.gap_bytes += max(chunk.gap, 0)
        last = max([last, *chunk.ts])
        conn.ts_last, conn.last_frame = last, max([conn.last_frame, *chunk.frames])
        events += subject.feed(chunk)
    conn.end = dialogue.end
    events += subject.close(dialogue.end, last)
    return Played(events, subject)


EVERY_WAY: tuple[tuple[int | str, str], ...] = (
    ("segments", "capture"),
    ("whole", "client"),
    ("whole", "server"),
    (1, "capture"),
    (1, "client"),
    (7, "server"),
)
"""Ways to feed that must all give the same."""


def plain(events: Iterable[Any]) -> list[Any]:
    """Events in a form that can be compared (sessions and connections left out), sorted by kind and order."""
    return [_plain_event(e) for e in events]


def _plain_event(event: Any) -> Any:
    if isinstance(event, MessageCarried | MailboxEvent):
        names = event._fields if isinstance(event, MailboxEvent) else event.__slots__
        return (type(event).__name__, {n: _value(getattr(event, n)) for n in names if n != "session"})
    if isinstance(event, SessionEnded):
        return ("SessionEnded", event.row)
    return event


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(v) for v in value]
    if hasattr(value, "__slots__") and not isinstance(value, str | bytes | int | tuple):
        return {n: _value(getattr(value, n)) for n in value.__slots__}
    return value
