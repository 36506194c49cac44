"""IP packets put together again from their fragments (RFC 791 3.2, RFC 8200 4.5).

The first copy of an octet wins.  A copy of a packet completed a moment ago is recognised, so that a tap that
sees everything twice does not leave half-built packets behind.  Every container is bounded by `Limits`.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from analyzer.limits import Limits

LARGEST = 65_535
"""Octets an IP packet can have after its header."""
_COPY_AGE = 2_000_000_000
"""Nanoseconds for which a completed packet is remembered: copies come at once, identifiers come round again."""
_COPY_SHARE = 8
"""Completed packets are remembered within this part of the bounds for incomplete ones."""
_FRAMES = LARGEST // 8 + 1
"""Frames remembered of one packet: as many as it can have fragments, copies included."""
_OVERHEAD = 256
"""Octets one piece costs beside its own."""


class Piece(NamedTuple):
    """One fragment."""

    key: Hashable
    """What the fragments of one packet have in common."""
    start: int
    """Where its octets belong in the packet."""
    size: int
    """Octets it had on the wire."""
    more: bool
    """Others follow it."""
    octets: bytes
    """Those that were captured."""
    header: bytes
    """What stands before them in the first fragment."""
    source: str
    ts: int
    frame: int


class Rebuilt(NamedTuple):
    """A complete packet."""

    header: bytes
    """Of the first fragment."""
    octets: bytes
    """Those captured, up to the first that was not."""
    size: int
    """Octets it had on the wire."""
    frames: tuple[int, ...] = ()
    """Frames of its fragments, in the order they came."""


class Loss(NamedTuple):
    """Something to be counted."""

    name: str
    source: str
    ts: int
    frame: int


@dataclass(slots=True)
class _Packet:
    """A packet of which pieces were seen."""

    source: str
    ts: int
    frame: int
    starts: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    """Disjoint, ascending; `pieces[i]` begins at `starts[i]`."""
    size: int | None = None
    """Of the whole packet, once its last fragment was seen."""
    bound: int = LARGEST
    """Octets from here on are not kept: past the packet's end, or past the first that was not captured."""
    held: int = 0
    """Octets in `pieces`."""
    cost: int = 0
    header: bytes | None = None
    frames: list[int] = field(default_factory=list)

    def put(self, start: int, octets: bytes) -> bool:
        """Keep what is new of these octets; returns whether what is not new differs."""
        differs, base, stop = False, start, min(start + len(octets), self.bound)
        at = bisect_right(self.starts, start)
        if at and self.starts[at - 1] + len(self.pieces[at - 1]) > start:
            at -= 1
        while start < stop:
            there = self.starts[at] if at < len(self.starts) else stop
            if there > start:
                upto = min(there, stop)
                self._insert(at, start, octets[start - base : upto - base])
                start = upto
            else:
                known = self.pieces[at]
                upto = min(stop, there + len(known))
                differs |= known[start - there : upto - there] != octets[start - base : upto - base]
                start = upto
            at += 1
        return differs

    def _insert(self, at: int, start: int, octets: bytes) -> None:
        self.starts.insert(at, start)
        self.pieces.insert(at, octets)
        self.held += len(octets)
        self.cost += len(octets) + _OVERHEAD

    def limit(self, bound: int) -> None:
        """Keep nothing from `bound` on."""
        if bound >= self.bound:
            return
        self.bound = bound
        while self.starts and self.starts[-1] + len(self.pieces[-1]) > bound:
            start, octets = self.starts.pop(), self.pieces.pop()
            self.held -= len(octets)
            self.cost -= len(octets) + _OVERHEAD
            if start < bound:
                self._insert(len(self.starts), start, octets[: bound - start])

    def whole(self) -> bytes | None:
        """The packet's octets up to the first not captured, when all before that were seen and the end is known."""
        if self.size is None or self.header is None or self.held < self.bound:
            return None
        return b"".join(self.pieces)


class Reassembler:
    """Takes fragments in capture order; gives each packet at the fragment that completes it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: OrderedDict[Hashable, _Packet] = OrderedDict()
        self._done: OrderedDict[Hashable, tuple[int, bytes]] = OrderedDict()
        self._cost = 0
        self._done_cost = 0
        self.losses: list[Loss] = []
        """What became odd since this was last emptied: `fragments_incomplete`, `_dropped`, `_conflict`, `_malformed`."""

    def add(self, piece: Piece) -> Rebuilt | None:
        """Take one fragment."""
        self._expire(piece.ts)
        size = piece.size & ~7 if piece.more else piece.size  # as receivers do: only the last may be uneven
        if size <= 0 or piece.start + size > LARGEST:
            self.losses.append(Loss("fragments_malformed", piece.source, piece.ts, piece.frame))
            return None
        octets = piece.octets[:size]
        if piece.key not in self._open and self._is_copy(piece, octets):
            return None
        packet = self._open.get(piece.key)
        if packet is None:
            packet = self._open[piece.key] = _Packet(piece.source, piece.ts, piece.frame)
        if piece.source == packet.source and len(packet.frames) < _FRAMES:
            packet.frames.append(piece.frame)
        before = packet.cost
        if self._put(packet, piece, size, octets):
            self.losses.append(Loss("fragments_conflict", piece.source, piece.ts, piece.frame))
        self._cost += packet.cost - before
        whole = packet.whole()
        if whole is None:
            self._shrink()
            return None
        del self._open[piece.key]
        self._cost -= packet.cost
        self._remember(piece, whole)
        return Rebuilt(packet.header or b"", whole, packet.size or 0, tuple(packet.frames))

    def _put(self, packet: _Packet, piece: Piece, size: int, octets: bytes) -> bool:
        conflict, stop = False, piece.start + size
        if not piece.more:
            conflict = packet.size not in (None, stop)
            if packet.size is None:
                packet.size = stop
                conflict = bool(packet.starts) and packet.starts[-1] + len(packet.pieces[-1]) > stop
                packet.limit(stop)
        if piece.start == 0 and packet.header is None:
            packet.header = piece.header
            packet.cost += len(piece.header)
        conflict |= packet.size is not None and stop > packet.size
        differs = packet.put(piece.start, octets)
        if len(octets) < size:
            packet.limit(piece.start + len(octets))
        return differs or conflict

    def finish(self) -> None:
        """The capture is over: whatever is incomplete stays so."""
        for packet in self._open.values():
            self.losses.append(Loss("fragments_incomplete", packet.source, packet.ts, packet.frame))
        self._open.clear()
        self._done.clear()
        self._cost = self._done_cost = 0

    def _is_copy(self, piece: Piece, octets: bytes) -> bool:
        known = self._done.get(piece.key)
        if known is None:
            return False
        if octets and known[1][piece.start : piece.start + len(octets)] == octets:
            return True
        del self._done[piece.key]
        self._done_cost -= len(known[1]) + _OVERHEAD
        return False

    def _remember(self, piece: Piece, whole: bytes) -> None:
        self._done[piece.key] = (piece.ts, whole)
        self._done_cost += len(whole) + _OVERHEAD
        share = _COPY_SHARE
        while len(self._done) * share > self._limits.fragment_packets or self._done_cost * share > self._limits.fragment_bytes:
            _, (_, oldest) = self._done.popitem(last=False)
            self._done_cost -= len(oldest) + _OVERHEAD

    def _expire(self, now: int) -> None:
        while self._open:
            key, packet = next(iter(self._open.items()))
            if now - packet.ts <= self._limits.fragment_age:
                break
            self._drop(key, "fragments_incomplete")
        while self._done:
            key, (ts, whole) = next(iter(self._done.items()))
            if now - ts <= _COPY_AGE:
                break
            del self._done[key]
            self._done_cost -= len(whole) + _OVERHEAD

    def _shrink(self) -> None:
        while len(self._open) > self._limits.fragment_packets or self._cost > self._limits.fragment_bytes:
            self._drop(next(iter(self._open)), "fragments_dropped")

    def _drop(self, key: Hashable, name: str) -> None:
        packet = self._open.pop(key)
        self._cost -= packet.cost
        self.losses.append(Loss(name, packet.source, packet.ts, packet.frame))
