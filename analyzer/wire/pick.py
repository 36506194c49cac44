"""Frames chosen out of captures: which of them are wanted, and a pcapng file of them.

Two passes over the files.  The first decodes and chooses frames by number (`Picker`); the second only copies (`copy`).

Rules of choosing
1. A connection without another message in it is taken whole, from SYN to the last ACK.
2. Of one that carried others, each octet belongs to what was said when it was first seen: to the wanted message, to
   another, or to neither (set-up, end).  A segment is taken when any of its octets is not another's; a retransmission
   goes with what it repeats.  A segment without octets goes by its time; SYN, FIN and RST always.
3. Where an exchange lies wholly within another (one FETCH in pieces around another), the inner one counts.
4. Datagrams are taken by frame, and copies of a question by its identifier; fragments with the packet they make.
"""

import heapq
import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import accumulate
from typing import IO, Any, NamedTuple

import numpy as np

from analyzer.limits import Limits
from analyzer.scratch import scratch
from analyzer.wire import blocks
from analyzer.wire.connections import FIN, RST, SYN
from analyzer.wire.packets import Decoder
from analyzer.wire.types import V4_PREFIX, Frames, Interface, Packets, SourceInfo

_TRY = 120_000_000_000
"""Nanoseconds after a SYN in which segments without octets belong to the same try."""
_SKEW = 2_000_000_000
"""Nanoseconds that another tap's clock may differ."""
_HALF, _ROUND = 1 << 31, 1 << 32

MINE, BETWEEN, OTHER = "mine", "between", "other"

Ends = tuple[str, int, str, int]
_Key = tuple[int, int, int, int, int, int]


class Span(NamedTuple):
    """An exchange within a connection."""

    ts: int
    ts_end: int
    first: int | None = None
    last: int | None = None
    """Frames, where they are known; they are looked at only in the connection's own source."""
    note: str = ""


class Spans:
    """Spans that can be asked for those at a moment; they may overlap, but few do."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans, key=lambda span: (span.ts, span.ts_end))
        self._starts = [span.ts for span in self._spans]
        self._until = list(accumulate((span.ts_end for span in self._spans), max))
        """The latest end of each span and those before it."""

    def __len__(self) -> int:
        return len(self._spans)

    def at(self, numbered: bool, frame: int, ts: int) -> list[Span]:
        """Those that hold this moment; `numbered`: frame numbers are to be looked at, too."""
        found = []
        i = bisect_right(self._starts, ts) - 1
        while i >= 0 and self._until[i] >= ts:
            span = self._spans[i]
            if span.ts_end >= ts and (
                not numbered or span.first is None or span.last is None or span.first <= frame <= span.last
            ):
                found.append(span)
            i -= 1
        return found


@dataclass
class Talk:
    """A TCP connection that is wanted, or a part of it."""

    source: str
    ends: Ends
    """Address and port of both sides."""
    ts: int
    ts_end: int
    note: str
    """What its frames are, in words; a `Span` may say more."""
    mine: Spans = field(default_factory=lambda: Spans(()))
    others: Spans = field(default_factory=lambda: Spans(()))
    """Exchanges about other messages; none: the connection is wanted whole."""
    split: bool = False
    """It goes on in another file, so that frame numbers say nothing."""
    seen: dict[bool, "_Owners"] = field(default_factory=dict)


class Question(NamedTuple):
    """A DNS question over UDP, with its copies and its answer."""

    source: str
    ends: Ends
    ts: int
    ts_end: int
    dns_id: int
    note: str


class _Owners:
    """Octets of one direction: what was being said when each was first seen."""

    __slots__ = ("_edge", "_seq", "_spans")

    def __init__(self) -> None:
        self._spans: list[list[Any]] = []
        """[first, end, owner], disjoint, ascending."""
        self._seq = self._edge = -1

    def take(self, seq: int, size: int, owner: str) -> set[str]:
        """Whose the octets are; those not seen before are `owner`'s."""
        if self._seq < 0:
            self._seq, self._edge = seq, _ROUND
        begin = self._edge + (seq - self._seq + _HALF) % _ROUND - _HALF
        end = begin + size
        if begin > self._edge:
            self._seq, self._edge = seq, begin
        spans = self._spans
        if spans and spans[-1][1] <= begin:  # in order, as nearly always
            self._append(begin, end, owner)
            return {owner}
        low = bisect_right(spans, begin, key=_last)
        high = bisect_left(spans, end, key=_first)
        touched = spans[low:high]
        found = {whose for _, _, whose in touched}
        made: list[list[Any]] = []
        at = begin
        for span in touched:
            if at < span[0]:
                made.append([at, span[0], owner])
            made.append(span)
            at = span[1]
        if at < end:
            made.append([at, end, owner])
        if len(made) > len(touched):
            found.add(owner)
            spans[low:high] = made
        return found

    def _append(self, begin: int, end: int, owner: str) -> None:
        last = self._spans[-1] if self._spans else None
        if last is not None and last[1] == begin and last[2] == owner:
            last[1] = end
        else:
            self._spans.append([begin, end, owner])


def _first(span: list[Any]) -> Any:
    return span[0]


def _last(span: list[Any]) -> Any:
    return span[1]


def _number(address: str) -> tuple[int, int]:
    """An address as Packets has it."""
    ip = ip_address(address)
    value = int(ip)
    return (0, V4_PREFIX | value) if ip.version == 4 else (value >> 64, value & (1 << 64) - 1)


def _keys(ends: Ends) -> tuple[_Key, _Key]:
    """Both directions of a conversation."""
    here, there = (*_number(ends[0]), ends[1]), (*_number(ends[2]), ends[3])
    return (*here, *there), (*there, *here)


class Picker:
    """Takes decoded batches; `chosen` holds the frames wanted of each source, with what they are."""

    def __init__(
        self,
        limits: Limits,
        talks: Iterable[Talk],
        questions: Iterable[Question],
        frames: Iterable[tuple[str, int, str]],
        tries: Iterable[tuple[str, int, str]],
    ) -> None:
        """`frames` are wanted as they are (source, number, what it is); `tries` begin connections that came to nothing."""
        self.chosen: dict[str, dict[int, str]] = defaultdict(dict)
        self._decoder = Decoder(limits)
        self._decoder.rebuilt = {}
        self._talks: dict[_Key, list[tuple[bool, Talk]]] = defaultdict(list)
        self._questions: dict[_Key, list[Question]] = defaultdict(list)
        self._tries: dict[_Key, tuple[int, str]] = {}
        self._begun: dict[tuple[str, int], str] = {(source, number): note for source, number, note in tries}
        ports: set[int] = set()
        for talk in talks:
            for key, orig in zip(_keys(talk.ends), (True, False), strict=True):
                self._talks[key].append((orig, talk))
            ports |= {talk.ends[1], talk.ends[3]}
        for question in questions:
            for key in _keys(question.ends):
                self._questions[key].append(question)
            ports |= {question.ends[1], question.ends[3]}
        for source, number, note in frames:
            self.chosen[source][number] = note
        self._ports = np.zeros(65536, np.bool_)
        self._ports[list(ports)] = True

    def feed(self, frames: Frames) -> None:
        """Look through a batch."""
        packets = self._decoder.decode(frames)
        self._decoder.anomalies.clear()
        wanted = self._ports[packets.src_port] & self._ports[packets.dst_port]
        if self._begun or self._tries:
            wanted |= packets.length == 0
        for row in np.flatnonzero(wanted).tolist():
            key: _Key = (
                int(packets.src_hi[row]),
                int(packets.src_lo[row]),
                int(packets.src_port[row]),
                int(packets.dst_hi[row]),
                int(packets.dst_lo[row]),
                int(packets.dst_port[row]),
            )
            note = self._segment(packets, row, key) if packets.protocol[row] == 6 else self._datagram(packets, row, key)
            if note is not None:
                self.chosen[frames.source].setdefault(int(packets.frame[row]), note)
        rebuilt = self._decoder.rebuilt or {}
        mine = self.chosen[frames.source]
        for number, parts in rebuilt.items():
            if number in mine:
                for part in parts:
                    mine.setdefault(part, mine[number])
        rebuilt.clear()

    def _segment(self, packets: Packets, row: int, key: _Key) -> str | None:
        ts, frame, source = int(packets.ts[row]), int(packets.frame[row]), packets.source
        begun = self._begun.pop((source, frame), None) if self._begun else None
        if begun is not None:
            for both in (key, (*key[3:], *key[:3])):
                self._tries[both] = (ts, begun)
        orig, talk = self._talk(key, source, ts)
        size, flags = int(packets.wire_length[row]), int(packets.flags[row])
        if talk is None:
            since, note = self._tries.get(key, (0, ""))
            return note if note and not size and 0 <= ts - since <= _TRY else None
        if not talk.others:
            return talk.note
        said, note = _said(talk, source, frame, ts)
        if size:
            owners = talk.seen.setdefault(orig, _Owners())
            return note if owners.take(int(packets.seq[row]), size, said) - {OTHER} else None
        return note if said != OTHER or flags & (SYN | FIN | RST) else None

    def _talk(self, key: _Key, source: str, ts: int) -> tuple[bool, Talk | None]:
        """The connection a segment is of; one of another tap may be somewhat before or after it."""
        near: tuple[bool, Talk | None] = (True, None)
        for orig, talk in self._talks.get(key, ()):
            if talk.ts <= ts <= talk.ts_end:
                return orig, talk
            if source != talk.source and talk.ts - _SKEW <= ts <= talk.ts_end + _SKEW:
                near = orig, talk
        return near

    def _datagram(self, packets: Packets, row: int, key: _Key) -> str | None:
        ts, at = int(packets.ts[row]), int(packets.payload[row])
        for question in self._questions.get(key, ()):
            near = question.source == packets.source and question.ts <= ts <= question.ts_end
            if near and packets.length[row] >= 2 and int.from_bytes(packets.data[at : at + 2]) == question.dns_id:
                return question.note
        return None


def _said(talk: Talk, source: str, frame: int, ts: int) -> tuple[str, str]:
    """What a moment of a connection belongs to, and its note."""
    numbered = source == talk.source and not talk.split
    mine, others = talk.mine.at(numbered, frame, ts), talk.others.at(numbered, frame, ts)
    if not mine:
        return (OTHER if others else BETWEEN), talk.note
    inner = min(mine, key=lambda span: span.ts_end - span.ts)
    length = inner.ts_end - inner.ts
    if any(inner.ts <= o.ts and o.ts_end <= inner.ts_end and o.ts_end - o.ts < length for o in others):
        return OTHER, talk.note
    return MINE, inner.note or talk.note


# the file


class Copied(NamedTuple):
    """What was written."""

    frames: int
    octets: int


_HEAD = struct.Struct("<qIIII")
"""Of a frame on its way: time, interface, captured and original length, octets of its comment."""


def copy(
    target: IO[bytes],
    sources: Sequence[str],
    chosen: dict[str, dict[int, str]],
    read: Callable[[int, SourceInfo], Iterator[Frames]],
    program: str,
) -> Copied:
    """Write the chosen frames of all sources as one pcapng file, in time order, each interface of each source its own.

    `read(i, info)` reads source `i` again.  Each frame has a comment that says what it is and where it comes from.
    """
    target.write(blocks.section(program))
    interfaces: dict[tuple[int, int, int], int] = {}
    runs: list[Iterator[tuple[int, bytes]]] = []
    count = octets = 0
    for i, name in enumerate(sources):
        mine = chosen.get(name)
        if not mine:
            continue
        run = scratch()
        info = SourceInfo(name, interfaces=[])
        left = set(mine)
        for frames in read(i, info):
            info.secrets.clear()
            for row in np.flatnonzero(np.isin(frames.number, np.fromiter(left, np.int64, len(left)))).tolist():
                number, linktype = int(frames.number[row]), int(frames.linktype[row])
                left.discard(number)
                via = int(frames.interface[row]) if frames.interface is not None else -1
                place = interfaces.get((i, via, linktype))
                if place is None:
                    place = interfaces[i, via, linktype] = len(interfaces)
                    target.write(_interface(name, via, linktype, info.interfaces or []))
                begin, length = int(frames.offset[row]), int(frames.length[row])
                comment = f"mailhop: {mine[number]}, frame {number} of {name}".encode("utf-8", "backslashreplace")
                head = _HEAD.pack(int(frames.ts[row]), place, length, int(frames.wire_length[row]), len(comment))
                run.write(head + comment + bytes(frames.data[begin : begin + length]))
                count += 1
                octets += length
            if not left:
                break
        run.seek(0)
        runs.append(_packets(run))
    for _, block in heapq.merge(*runs, key=lambda item: item[0]):
        target.write(block)
    return Copied(count, octets)


def _interface(source: str, via: int, linktype: int, known: Sequence[Interface]) -> bytes:
    """The interface as the source describes it; the source itself where it describes none."""
    if 0 <= via < len(known):
        there = known[via]
        return blocks.interface(there.name or source.encode("utf-8", "backslashreplace"), linktype, there.snaplen, source)
    return blocks.interface(source.encode("utf-8", "backslashreplace"), linktype, blocks.SNAPLEN, source)


def _packets(run: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Frames of one source as (time, block); a clock that goes back does not change their order."""
    latest = -(1 << 63)
    while head := run.read(_HEAD.size):
        ts, place, length, wire, size = _HEAD.unpack(head)
        comment, data = run.read(size), run.read(length)
        latest = max(latest, ts)
        yield latest, blocks.packet(place, ts, data, wire, comment)
