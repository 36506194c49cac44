"""One TCP connection: segments in capture order in, ordered octets, gaps and an end out (RFC 9293).

Rules
1. Every payload octet captured is handed up once, in stream order; of two copies the first wins, and copies that
   differ are `conflicting_data`.  Only while it is not acknowledged a copy gives way to one that has the sender's
   usual TTL, or a right checksum, where it has not: the receiver cannot have taken it.  Octets are handed up once
   they are acknowledged, or acknowledgements are not seen.  A keep-alive's octet before the expected one is no data.
2. SYN and FIN each take one sequence number; data on a SYN counts from the one after it (RFC 7413).
3. A hole is lost when the other side has acknowledged beyond it and both `hole_packets` further packets and
   `hole_age` have gone by; when a bound on what is held behind it is hit; or when the connection ends.
4. RST counts only when its sequence number can be right; it is taken back when its sender goes on.
   SYN with another sequence number ends nothing until it is answered.  FIN ends one direction, at its place.
5. All decisions are made packet by packet, so that batches cannot be seen in the result.
"""

from bisect import bisect_left, bisect_right
from typing import Any, NamedTuple

import numpy as np

from analyzer.limits import Limits
from analyzer.wire.packets import checksums_ok
from analyzer.wire.pending import Pending, Piece, Span, part
from analyzer.wire.types import Chunk, Connection, Packets

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
_CONTROL = FIN | SYN | RST | ACK | URG
_MOD = 0xFFFFFFFF
_SIGN = 0x80000000
_NEAR = 1 << 20
"""Octets within which two sequence numbers are believed to be of one connection."""
_RESET_WINDOW = 65_535
"""Octets around the expected one in which an RST is believed: the window of a host without window scaling."""
_STRAYS = 16
"""Segments in a row that go on from each other, far from where the stream was: the stream is there now."""
_ODD_TTLS = 16
"""Segments remembered per direction that came with another TTL than the rest."""
_UNACKED = 128
"""Segments per direction that are kept until they are acknowledged."""
_OLD_PARTS = 32
_SKEW = 3
_SKEW_SHARE = 20
"""The capture is said to be skewed when octets come after their acknowledgement this often, and once in so many packets."""
_OPENING = 64
"""Packets within which the ACK that completes the handshake is waited for."""


class Columns:
    """Rows of a batch, those of one flow side by side, as lists."""

    __slots__ = ("ack", "batch", "buf", "flags", "frame", "kind", "length", "odd", "place", "row", "seq", "side", "ts", "wire")

    batch: Packets | None
    """Where they are from; None when they have outlived it."""
    buf: Any
    """Octets that `place` counts in."""
    row: Any
    """Place in the batch."""
    side: list[int]
    """Direction: 0 when the lower end sent it, 1 otherwise."""
    odd: list[bool]
    """Needs care: control flags, cut short, another TTL or VLAN than the direction's first, a long silence before."""
    seq: list[int]
    ack: list[int]
    flags: list[int]
    length: list[int]
    wire: list[int]
    place: list[int]
    ts: list[int]
    frame: list[int]
    kind: list[int]
    """VLAN << 8 | TTL."""

    def octets(self, k: int) -> bytes:
        """Payload of a row."""
        place = self.place[k]
        return bytes(self.buf[place : place + self.length[k]])

    def one(self, k: int) -> "Columns":
        """A copy of one row that outlives the batch."""
        copy = Columns()
        copy.batch, copy.buf = None, self.octets(k)
        for name in ("ack", "flags", "frame", "kind", "length", "row", "seq", "side", "ts", "wire"):
            setattr(copy, name, [getattr(self, name)[k]])
        copy.place, copy.odd = [0], [True]
        return copy

    def kept(self, k: int, order: int) -> "Kept":
        """A row that outlives the batch before it is handed up."""
        batch, raw, transport = self.batch, None, 0
        if batch is not None and len(batch.network) == len(batch):
            row = self.row[k]
            begin = int(batch.network[row])
            raw = bytes(self.buf[begin : self.place[k] + self.length[k]])
            transport = int(batch.transport[row]) - begin
        return Kept(self.octets(k), self.ts[k], self.frame[k], order, self.kind[k] & 255, raw, transport)


class Kept(NamedTuple):
    """A segment, or part of one, that is not a row of the batch at hand."""

    data: bytes
    ts: int
    frame: int
    order: int
    ttl: int
    raw: bytes | None
    """From IP header to end of payload, to check its checksum; None when it is not known or not whole."""
    transport: int
    """Where the TCP header begins in `raw`."""


class Oddity(NamedTuple):
    """What becomes an `Anomaly`."""

    ts: int
    name: str
    detail: str
    frame: int


class Half:
    """One direction.  Offsets count its octets from 0, which has sequence number `base`."""

    soft = False
    """Joined in the middle and nothing handed up yet: the first segment decides where offset 0 is."""
    mid = False
    """Joined in the middle."""
    joined = False
    """Joined in the middle: the first chunk says so (`gap` -1)."""
    una = -1
    """Offset up to which the other side has acknowledged; -1 when none of its acknowledgements was seen."""
    acked = 0
    """Offset the other side has acknowledged, where it is beyond `next`."""
    fin = -1
    fin_acked = False
    fin_guess = -1
    """Offset of a FIN not seen, but acknowledged by the look of it."""
    wait: tuple[int, int, int] | None = None
    """Since which packet and time octets up to which offset have been missed."""
    pend: Pending | None = None
    mixed = False
    """Not all of `rows` are rows."""
    vlan = -1
    """Of its first packet."""
    ttl = -1
    """Of its first segment with payload."""
    old: list[tuple[int, bytes]] | None = None
    """Octets handed up of late, to compare retransmissions with."""
    old_octets = 0
    odd_ttls: list[tuple[int, int, int]] | None = None
    """Where octets came with another TTL than `ttl`."""
    lost: list[tuple[int, int]] | None = None
    strays = 0
    stray_end = -1
    skewed = 0
    """Times that octets were captured after their acknowledgement."""

    def __init__(self) -> None:
        self.base = -1
        """Sequence number of offset 0, -1 unknown."""
        self.next = 0
        """Offset up to which everything is handed up or given up."""
        self.nseq = -1
        """Sequence number of `next`; -1 when segments need care."""
        self.plain = False
        """A segment at `nseq` can be taken as it is."""
        self.rows: list[Any] = []
        """The run that is to become a chunk: rows taken whole (their number), or `Kept`."""
        self.starts: list[int] = []
        self.acks: list[int] = []

    def begin(self, base: int, soft: bool) -> None:
        """The sequence number of the first octet is known (soft: as far as the capture shows)."""
        self.base = base & _MOD
        if soft or self.soft:
            self.soft = self.joined = self.mid = soft
        self.settle()

    def settle(self) -> None:
        """State changed: say whether the next segment can be taken as it is."""
        if self.fin >= 0 or self.base < 0:
            self.plain, self.nseq = False, -1
        else:
            self.nseq = (self.base + self.next) & _MOD
            self.plain = not self.soft and not self.pend

    def final(self, limits: Limits) -> int:
        """Offset below which the first copy stands: acknowledged, or no acknowledgements to be seen, or long ago."""
        if self.una < 0:
            return self.next
        long_ago = self.starts[-_UNACKED] if len(self.starts) > _UNACKED else 0
        return max(self.una, self.next - limits.unacked_bytes, long_ago)

    def offset(self, seq: int) -> int:
        """Stream offset of a sequence number, the one nearest to `next`."""
        return self.next + ((seq - self.base - self.next + _SIGN) & _MOD) - _SIGN


class Flow:
    """A connection whose payload is looked at."""

    __slots__ = (
        "anomalies",
        "begin",
        "busy",
        "candidate",
        "closing",
        "columns",
        "conn",
        "end_ts",
        "ending",
        "frame",
        "frame_last",
        "gap_octets",
        "half",
        "handshake",
        "held",
        "items",
        "limits",
        "octets",
        "orig",
        "over",
        "packets",
        "reset_peer",
        "reset_side",
        "reset_top",
        "slot",
        "source",
        "split",
        "stage",
        "stream",
        "successor",
        "syns",
        "ts",
        "ts_before",
        "ts_last",
        "ts_open",
        "ts_syn",
        "ts_synack",
        "wanted",
        "weird",
    )

    def __init__(self, limits: Limits, slot: int, source: str, stream: int, ts: int, frame: int, orig: int) -> None:
        self.limits = limits
        self.slot, self.source, self.stream = slot, source, stream
        self.ts = self.ts_last = self.ts_before = ts
        self.frame = self.frame_last = frame
        self.half = (Half(), Half())
        self.orig = orig
        """Direction of the side that opened it."""
        self.stage = 1
        """0 while the handshake is going on, 1 after it."""
        self.busy = self.handshake = False
        """`busy`: every packet needs care for now."""
        self.ts_syn: int | None = None
        self.ts_synack: int | None = None
        self.ts_open: int | None = None
        self.syns = self.packets = self.begin = 0
        """`packets`: taken before the row `begin`, at which the present run began."""
        self.columns: Columns | None = None
        """The rows being taken."""
        self.closing = False
        """A FIN was seen."""
        self.ending: str | None = None
        """How it is going to end unless it goes on; since `end_ts`."""
        self.end_ts = 0
        self.reset_side = self.reset_top = self.reset_peer = -1
        self.over: str | None = None
        """How it ended."""
        self.split = False
        """The row it stopped at is of another VLAN's connection."""
        self.candidate: Columns | None = None
        """A SYN or SYN-ACK of what may be the next connection between these ends."""
        self.successor: Columns | None = None
        self.items: list[tuple[int, Chunk]] = []
        """New chunks, with the row that brought each."""
        self.octets = [0, 0]
        """Payload octets handed up or held for it, by direction."""
        self.gap_octets = 0
        self.held: list[Chunk] | None = None
        """What is kept until it is known whether it is wanted."""
        self.wanted = False
        self.conn: Connection | None = None
        self.anomalies: list[Oddity] | None = None
        self.weird: dict[str, int] | None = None

    # -- rows

    def run(self, c: Columns, i: int, j: int) -> int:
        """Take rows i..j; returns the first that was not taken: it is another connection's, or this one is over."""
        zero, one = self.half
        both = ((zero, one), (one, zero))
        if c.ts[i] - self.ts_before > self.limits.connection_idle:
            self.over = self.ending or "timeout"
            return i
        self.columns, self.begin = c, i
        k = i
        for odd, side, seq, n, ack in zip(c.odd[i:j], c.side[i:j], c.seq[i:j], c.length[i:j], c.ack[i:j], strict=True):
            if odd or self.busy:
                if not self._careful(c, k):
                    break
                if self.over:
                    k += 1
                    break
            else:
                h, o = both[side]
                if ack == o.nseq:
                    a = o.una = o.next
                else:
                    a = self._acknowledge(c, k, h, o)
                if n:
                    if seq == h.nseq and h.plain:
                        h.rows.append(k)
                        h.starts.append(h.next)
                        h.acks.append(a)
                        h.next += n
                        h.nseq = (seq + n) & _MOD
                    else:
                        self._segment(c, k, h, o, seq, a)
            k += 1
        self._end_run(c, i, k)
        return k

    @property
    def only_syns(self) -> bool:
        """Nothing has been seen but one SYN and copies of it."""
        return self.stage == 0 and self.packets == self.syns and self.candidate is None and not self._spoken

    def taken(self) -> list[int]:
        """Payload octets in order so far, by direction, those kept until they are acknowledged included."""
        return [n + (h.next - h.starts[0] if h.rows else 0) for n, h in zip(self.octets, self.half, strict=True)]

    def shake_hands(self, c: Columns, i: int) -> int:
        """Take SYN, SYN-ACK and ACK when they come as they should, at once; the rows taken."""
        side, seq, ack, flags = c.side[i], c.seq, c.ack, c.flags
        h, o = self.half[side], self.half[1 - side]
        client, server = (seq[i] + 1) & _MOD, (seq[i + 1] + 1) & _MOD
        if (
            flags[i] & _CONTROL != SYN
            or flags[i + 1] & _CONTROL != SYN | ACK
            or flags[i + 2] & _CONTROL != ACK
            or c.side[i + 1] == side
            or c.side[i + 2] != side
            or not seq[i + 2] == ack[i + 1] == client
            or ack[i + 2] != server
            or c.wire[i]
            or c.wire[i + 1]
            or c.wire[i + 2]
        ):
            return 0
        h.base = h.nseq = client
        o.base = o.nseq = server
        h.plain = o.plain = True
        h.una = o.una = 0
        self.handshake, self.syns, self.stage, self.busy, self.packets = True, 1, 1, False, 3
        self.ts_syn, self.ts_synack, self.ts_open = c.ts[i : i + 3]
        self.ts_before, self.frame_last = self.ts_open, c.frame[i + 2]
        self.ts_last = max(c.ts[i : i + 3])
        return 3

    def _end_run(self, c: Columns, i: int, k: int) -> None:
        self.columns = None
        if k == i:
            return
        self.packets += k - i
        latest = max(c.ts[i:k])
        self.ts_last = max(self.ts_last, latest)
        self.ts_before = c.ts[k - 1]
        self.frame_last = c.frame[k - 1]
        items, n = self.items, len(self.items)
        self.columns = c
        for side in (0, 1):
            if self.half[side].rows:
                self._flush_final(c, side)
        self.columns = None
        if len(items) > n + 1:
            items[n:] = sorted(items[n:], key=_row)

    def _careful(self, c: Columns, k: int) -> bool:
        """Take a row for which something is out of the ordinary; False when it is not this connection's."""
        side, flags, ts = c.side[k], c.flags[k], c.ts[k]
        h, o = self.half[side], self.half[1 - side]
        if k > self.begin:
            self.ts_before = c.ts[k - 1]
        if self._timed_out(ts):
            return False
        if c.kind[k] >> 8 != h.vlan and not self._belongs(c, k, h, o):
            self.split = True
            return False
        if flags & SYN:
            return self._syn(c, k, h, o) if not flags & ACK else self._synack(c, k, h, o)
        if self.candidate is not None and self._succeeded(c, k, h):
            return False
        if flags & RST:
            self._reset(c, k, h, o)
            return True
        if self.stage == 0:
            self._open(c, k, h, o)
        a = self._acknowledge(c, k, h, o) if flags & ACK else -1
        if self.reset_side == side:
            self._take_back_reset(c, k, h, a)
        if c.wire[k]:
            if flags & URG:
                self.odd("urgent_data", "urgent data, kept in line", ts, c.frame[k])
            self._segment(c, k, h, o, c.seq[k], a)
        if flags & FIN:
            self._fin(c, k, h)
        self._judge(c, k)
        return True

    def _timed_out(self, ts: int) -> bool:
        if self.ending is not None and ts - self.end_ts > self.linger:
            self.over = self.ending
        elif ts - self.ts_before > self.limits.connection_idle:
            self.over = self.ending or "timeout"
        return self.over is not None

    @property
    def linger(self) -> int:
        """How long the end is waited with, in case it goes on or something late comes."""
        whole = self.ending == "reset" and not any(h.pend or h.wait for h in self.half)
        return self.limits.reset_linger if whole else self.limits.hole_age

    def _judge(self, c: Columns, k: int) -> None:
        """Give up holes that have waited long enough, see whether all is said, and whether care is still needed."""
        waiting = False
        for side in (0, 1):
            h = self.half[side]
            if h.wait is None:
                continue
            since, ts, upto = h.wait
            if h.next >= upto:
                h.wait = None
                h.skewed += 1
                if h.acked > h.next:
                    h.wait = (self.packets + k - self.begin, c.ts[k], h.acked)
            elif self.packets + k - self.begin - since >= self.limits.hole_packets and c.ts[k] - ts >= self.limits.hole_age:
                self._give_up(side, upto, c.ts[k], c.frame[k], k)
                h.wait = (self.packets + k - self.begin, c.ts[k], h.acked) if h.acked > h.next else None
            waiting = waiting or h.wait is not None
        if self.closing:
            zero, one = self.half
            if zero.next == zero.fin and one.next == one.fin:
                if zero.fin_acked and one.fin_acked:
                    self.over = self.ending or "fin"
                elif self.ending is None:
                    self.ending, self.end_ts = "fin", c.ts[k]
            elif zero.fin >= 0 and one.fin >= 0 and self.ending is None:
                self.ending, self.end_ts = "fin", c.ts[k]
        self.busy = waiting or self.closing or self.ending is not None or self.candidate is not None or self.stage == 0

    # -- acknowledgements and data

    def _acknowledge(self, c: Columns, k: int, h: Half, o: Half) -> int:
        """What a row acknowledges: an offset of the other direction, -1 when it cannot be told."""
        ack = c.ack[k]
        if o.base < 0:
            o.begin(ack, soft=True)
            o.una = 0
            return 0
        a = o.offset(ack)
        if a == o.next:
            o.una = a
            return a
        if h.base >= 0 and abs(h.offset(c.seq[k]) - h.next) > self.limits.window_bytes:
            return -1
        o.una = o.next if o.una < 0 else max(o.una, min(a, o.next))
        if a <= o.next:
            return max(a, -1)
        if o.fin >= 0 and a > o.fin:
            o.fin_acked = True
            a = o.fin
            if a <= o.next:
                return a
        if a - max(o.next, o.pend.last if o.pend else 0) > self.limits.window_bytes:
            return -1
        if h.fin >= 0 and o.fin < 0 and a == max(o.next, o.acked) + 1:
            o.fin_guess = a - 1
            return o.fin_guess
        o.acked = max(o.acked, a)
        if o.wait is None:
            o.wait = (self.packets + k - self.begin, c.ts[k], a)
            self.busy = True
        return a

    def _segment(self, c: Columns, k: int, h: Half, o: Half, seq: int, a: int) -> None:
        """Take the payload of a row."""
        wire = c.wire[k]
        if h.base < 0:
            h.begin(seq, soft=True)
        start = h.offset(seq)
        end = start + wire
        if h.soft:
            if wire == 1 and start == h.next - 1:
                return
            if start != h.next:
                h.base, h.next = seq, 0
                h.una = min(h.una, 0)
                start, end = 0, wire
            h.soft, h.wait, h.acked = False, None, 0
            h.settle()
        if h.fin >= 0 and end > h.fin and start >= h.fin - self.limits.window_bytes:
            if wire == 1 and start == h.fin:
                return  # keep-alive
            self.odd("data_past_fin", "data after the end that FIN announced; ignored", c.ts[k], c.frame[k])
            if start >= h.fin:
                return
            end = h.fin
        if not -self.limits.window_bytes <= start - max(h.next, h.acked) <= self.limits.window_bytes:
            start = self._stray(c, k, h, start, end)
            if start < 0:
                return
            end = start + wire
        h.strays = 0
        if end <= h.next:
            self._repeated(c, k, h, start, end)
            return
        whole = end - start == c.length[k]
        if start == h.next and whole and not h.pend:
            self._take_row(c, k, h, start, end, a)
            return
        data = bytes(c.buf[c.place[k] : c.place[k] + min(c.length[k], end - start)])
        if start < h.next:
            self._repeated(c, k, h, start, h.next)
            data = data[h.next - start :]
            start = h.next
        piece = Piece(start, end, data, c.ts[k], c.frame[k], a, c.kind[k])
        if start == h.next and not h.pend:
            self._take_piece(h, piece, k)
            h.settle()
            return
        self._hold(c, k, h, piece)

    def _take_row(self, c: Columns, k: int, h: Half, start: int, end: int, a: int) -> None:
        if c.kind[k] & 255 != h.ttl:
            _odd_ttl(h, start, end, c.kind[k] & 255)
        h.rows.append(k)
        h.starts.append(start)
        h.acks.append(a)
        h.next = end
        if h.fin < 0:
            h.nseq = (h.base + end) & _MOD
            h.plain = True

    def _take_piece(self, h: Half, piece: Piece, order: int) -> None:
        """Hand up a piece that begins at `next`, and what its captured octets lack."""
        have = piece.start + len(piece.data)
        if piece.data:
            h.rows.append(Kept(piece.data, piece.ts, piece.frame, order, piece.kind & 255, None, 0))
            h.starts.append(piece.start)
            h.acks.append(piece.ack)
            h.mixed = True
            h.next = have
            if piece.kind & 255 != h.ttl:
                _odd_ttl(h, piece.start, have, piece.kind & 255)
        if have < piece.end:
            self._lose(h, piece.end, piece.ts, piece.frame, order)

    def _hold(self, c: Columns, k: int, h: Half, piece: Piece) -> None:
        """Keep a segment that came before its turn, or that overlaps what is kept."""
        if h.pend is None:
            h.pend = Pending()
        pend = h.pend
        pend.add(piece)
        ts, frame = c.ts[k], c.frame[k]
        if pend.first <= h.next:
            self._drain(h, k)
        limits = self.limits
        while pend and (
            pend.octets > limits.pending_bytes or pend.pieces > limits.pending_pieces or pend.holes > limits.pending_holes
        ):
            self.odd("reorder_limit", "more held behind a hole than the stated limit; the hole was given up", ts, frame)
            self._lose(h, pend.first, ts, frame, k)
            self._drain(h, k)
        if pend and h.una < 0 and h.wait is None:
            h.wait = (self.packets + k - self.begin, ts, pend.last)
        h.settle()
        if h.wait is not None:
            self.busy = True

    def _drain(self, h: Half, order: int) -> None:
        """Hand up what is held and has become contiguous."""
        pend = h.pend
        while pend and pend.first <= h.next:
            span = pend.take()
            for piece in span.pieces:
                self._take_piece(h, piece, order)
            if span.copies:
                self._compare_held(h, span)

    def _give_up(self, side: int, upto: int, ts: int, frame: int, order: int) -> None:
        """What is missing below an offset will not come any more."""
        h = self.half[side]
        if h.fin >= 0:
            upto = min(upto, h.fin)
        while h.next < upto:
            edge = min(upto, h.pend.first) if h.pend else upto
            if edge - h.next == 1 and not h.pend:
                break  # one octet more than was seen, nothing behind it: a FIN that was not captured
            self._lose(h, edge, ts, frame, order)
            self._drain(h, order)
        h.acked = h.acked if h.acked > upto else 0
        h.soft = False
        h.settle()

    def give_up_all(self) -> None:
        """Too much is held: what is missing before it is lost."""
        for side in (0, 1):
            pend = self.half[side].pend
            if pend:
                self.odd(
                    "reorder_limit",
                    "more held behind holes than the stated limit; they were given up",
                    self.ts_last,
                    self.frame_last,
                )
                self._give_up(side, pend.last, self.ts_last, self.frame_last, 1 << 62)
                self._flush(side)

    def _lose(self, h: Half, upto: int, ts: int, frame: int, order: int) -> None:
        """State that octets up to an offset are lost."""
        if upto <= h.next:
            return
        side = 0 if h is self.half[0] else 1
        self._flush(side)
        self.items.append((order, Chunk(side == self.orig, upto - h.next, upto, b"", [upto], [ts], [frame], [-1])))
        self.gap_octets += upto - h.next
        h.joined = False
        if h.lost is None:
            h.lost = []
        h.lost.append((h.next, upto))
        del h.lost[:-_ODD_TTLS]
        h.old = None  # copies are compared as far back as the last loss
        h.next = upto

    def _stray(self, c: Columns, k: int, h: Half, start: int, end: int) -> int:
        """A segment far from where its stream is: ignored, unless many in a row go on from each other."""
        h.strays = h.strays + 1 if c.seq[k] == h.stray_end else 1
        h.stray_end = (c.seq[k] + c.wire[k]) & _MOD
        if h.strays < _STRAYS:
            self.odd("out_of_window", "data too far from where the stream is; ignored", c.ts[k], c.frame[k])
            return -1
        if h.pend:
            self._give_up(c.side[k], h.pend.last, c.ts[k], c.frame[k], k)
        self._flush(c.side[k])
        h.base = (c.seq[k] - h.next) & _MOD
        h.joined, h.wait, h.acked = True, None, 0
        h.settle()
        return h.next

    # -- copies

    def _repeated(self, c: Columns, k: int, h: Half, start: int, end: int) -> None:
        """Octets that were handed up before: are they the same?"""
        if c.wire[k] <= 1 and end == h.next and not h.pend:
            return  # keep-alive
        octets = c.octets(k)[: end - start]
        skip = max(h.next - self.limits.history_bytes - start, 0)
        octets, first = octets[skip:], start + skip
        ttl = c.kind[k] & 255
        for at, known in h.old or ():
            place = _difference(at, known, first, octets)
            if place >= 0:
                self._conflict(h, place, self._ttl_at(h, place), ttl, c.ts[k], c.frame[k])
                return
        low = max(bisect_right(h.starts, first) - 1, 0)
        high = bisect_left(h.starts, end)
        while low < high:
            known = b"".join([c.octets(e) if type(e) is int else e.data for e in h.rows[low:high]])
            place = _difference(h.starts[low], known, first, octets)
            if place < 0:
                break
            low = bisect_right(h.starts, place) - 1
            why = self._why_better(c, k, h, low, first)
            self._conflict(h, place, self._ttl_at(h, place), ttl, c.ts[k], c.frame[k], why)
            if not why:
                return
            self._replace(c, k, h, low, first, octets)
            low += 1
        if h.lost and any(a < end and start < b for a, b in h.lost):
            self.odd("late_data", "octets that were given up as lost came after all; ignored", c.ts[k], c.frame[k])

    def _why_better(self, c: Columns, k: int, h: Half, i: int, start: int) -> str:
        """Why a later copy is to be believed rather than one not yet acknowledged; "" when it is not."""
        entry = h.rows[i]
        if max(h.starts[i], start) < h.final(self.limits):
            return ""
        whole = type(entry) is int
        ttl, first = c.kind[k] & 255, c.kind[entry] & 255 if whole else entry.ttl
        if ttl != first and h.ttl in (ttl, first):
            return "did not have its sender's usual TTL" if ttl == h.ttl else ""
        one = self._is_sound(c.kept(entry, 0) if whole else entry)
        return "had a wrong checksum" if not one and self._is_sound(c.kept(k, 0)) else ""

    def _is_sound(self, entry: Kept) -> bool:
        """Whether a segment's checksum is right, or cannot be told."""
        if entry.raw is None:
            return True
        payload = len(entry.raw) - len(entry.data)
        return bool(checksums_ok(_packet(entry.raw, entry.transport, payload), np.zeros(1, np.int64))[0])

    def _replace(self, c: Columns, k: int, h: Half, i: int, start: int, octets: bytes) -> None:
        """Put a later copy's octets in the place of an earlier one's."""
        at, entry = h.starts[i], h.rows[i]
        known = c.octets(entry) if type(entry) is int else entry.data
        low, high = max(at, start), min(at + len(known), start + len(octets))
        data = known[: low - at] + octets[low - start : high - start] + known[high - at :]
        old = c.kept(entry, entry) if type(entry) is int else entry
        if len(data) == high - low:
            old = old._replace(ts=c.ts[k], frame=c.frame[k], ttl=c.kind[k] & 255, raw=None)
        odd, h.odd_ttls = h.odd_ttls or [], []
        for begin, end, ttl in odd:
            h.odd_ttls += [(x, y, ttl) for x, y in ((begin, min(end, low)), (max(begin, high), end)) if x < y]
        h.rows[i] = old._replace(data=data)  # `raw` stays: where the rest of the octets is from
        h.mixed = True

    def _conflict(self, h: Half, place: int, first: int, ttl: int, ts: int, frame: int, why: str = "") -> None:
        note = f"; TTL {first} then, {ttl} now" if first != ttl else ""
        end = f"the first {why} and was dropped" if why else "the first was kept"
        detail = f"octet {place} of the {self._name(h)}'s stream came again with another value{note}; {end}"
        self.odd("conflicting_data", detail, ts, frame)

    def _compare_held(self, h: Half, span: Span) -> None:
        """Compare copies of octets that were held with the ones handed up."""
        pieces = span.pieces
        joined = b"".join([piece.data for piece in pieces])
        whole = len(joined) == span.end - span.start
        for copy in span.copies:
            if whole:
                place = _difference(span.start, joined, copy.start, copy.data)
            else:
                i = max(bisect_right(pieces, (copy.start + 1,)) - 1, 0)
                place = _difference(pieces[i].start, pieces[i].data, copy.start, copy.data)
            if place >= 0:
                first = pieces[bisect_right(pieces, (place + 1,)) - 1]
                self._conflict(h, place, first.kind & 255, copy.kind & 255, copy.ts, copy.frame)

    def _ttl_at(self, h: Half, place: int) -> int:
        for start, end, ttl in h.odd_ttls or ():
            if start <= place < end:
                return ttl
        return h.ttl

    def _name(self, h: Half) -> str:
        return "originator" if h is self.half[self.orig] else "responder"

    # -- beginning and end

    def _syn(self, c: Columns, k: int, h: Half, o: Half) -> bool:
        """SYN without ACK."""
        seq, side = c.seq[k], c.side[k]
        if h.base < 0:
            h.begin(seq + 1, soft=False)
            if self.ts_syn is None:
                self._opened_by(side, c.ts[k])
        elif not self._is_start(h, seq):
            return self._another(c, k)
        elif self.ts_syn is None:
            self._opened_by(side, c.ts[k])
        self.syns += side == self.orig
        if c.wire[k]:
            self._segment(c, k, h, o, (seq + 1) & _MOD, -1)
        self._judge(c, k)
        return True

    def _synack(self, c: Columns, k: int, h: Half, o: Half) -> bool:
        """SYN with ACK."""
        seq, side, ack = c.seq[k], c.side[k], c.ack[k]
        if self.candidate is not None and self._succeeded(c, k, h):
            return False
        if h.base < 0:
            h.begin(seq + 1, soft=False)
        elif not self._is_start(h, seq):
            return self._another(c, k)
        if o.base < 0 or (o.soft and not o.next):
            o.begin(ack, soft=False)
        if self.ts_synack is None:
            self.ts_synack = c.ts[k]
            if self.ts_syn is None:
                self._opened_by(1 - side, None)
        a = self._acknowledge(c, k, h, o)
        if c.wire[k]:
            self._segment(c, k, h, o, (seq + 1) & _MOD, a)
        self._judge(c, k)
        return True

    @property
    def _spoken(self) -> bool:
        """Payload (or its loss) was seen."""
        return any(h.next or h.pend for h in self.half)

    def _is_start(self, h: Half, seq: int) -> bool:
        """Whether a SYN is where this direction began (or before where the capture joined it)."""
        back = (h.base - 1 - seq) & _MOD
        return back == 0 or (h.mid and back < _NEAR)

    def _opened_by(self, side: int, ts: int | None) -> None:
        self.handshake = True
        self.ts_syn = ts
        if not self._spoken:
            self.orig = side

    def _another(self, c: Columns, k: int) -> bool:
        """A SYN with another sequence number: of the next connection, if it is answered or this one has ended."""
        if self.stage == 0 and not self._spoken:
            self.over = "timeout"
            return False
        if self.ending is not None or (self.closing and all(h.fin >= 0 for h in self.half)):
            self.over = self.ending or "fin"
            return False
        if c.ts[k] - self.ts_before > self.limits.half_open_idle:
            self.over = "timeout"
            return False
        if self.candidate is None or (self.candidate.seq[0], self.candidate.side[0]) != (c.seq[k], c.side[k]):
            self.candidate = c.one(k)
        self.busy = True
        return True

    def _succeeded(self, c: Columns, k: int, h: Half) -> bool:
        """Whether a row goes on from the SYN that did not fit: then the connection that it opened is the real one."""
        new = self.candidate
        assert new is not None
        after = (new.seq[0] + 1) & _MOD
        if c.side[k] != new.side[0]:
            fits = c.flags[k] & ACK and (c.ack[k] - after) & _MOD <= new.wire[0]
        else:
            fits = not c.flags[k] & SYN and (c.seq[k] - after) & _MOD <= new.wire[0] and c.seq[k] != h.nseq
        if fits:
            self.over, self.successor, self.candidate = self.ending or "timeout", new, None
        return bool(fits)

    def _open(self, c: Columns, k: int, h: Half, o: Half) -> None:
        """The first packets after SYN and SYN-ACK."""
        if c.side[k] != self.orig:
            if self.packets + k - self.begin > _OPENING:
                self.stage = 1
            return
        if not c.flags[k] & ACK:
            return
        self.stage = 1
        if self.ts_synack is not None and self.ts_open is None:
            self.ts_open = c.ts[k]
        if o.base < 0 and not c.wire[k] and not c.flags[k] & FIN and c.seq[k] == h.nseq:
            o.begin(c.ack[k], soft=False)  # the SYN-ACK was not captured, but this is its ACK

    def _fin(self, c: Columns, k: int, h: Half) -> None:
        seq = (c.seq[k] + c.wire[k]) & _MOD
        if h.base < 0:
            h.begin(seq, soft=True)
        place = h.offset(seq)
        if h.fin >= 0 or not 0 <= place - h.next <= self.limits.window_bytes:
            return
        h.fin = place
        h.fin_acked = h.fin_guess == place or h.acked > place
        h.soft = False
        self.closing = True
        h.settle()
        if h.pend and h.pend.last > place:
            self._drop_past_fin(h, c.ts[k], c.frame[k])

    def _drop_past_fin(self, h: Half, ts: int, frame: int) -> None:
        """What is held from beyond the FIN is not part of the stream."""
        old, h.pend = h.pend, None
        while old:
            span = old.take()
            for piece in span.pieces:
                if piece.start < h.fin:
                    h.pend = h.pend or Pending()
                    h.pend.add(part(piece, piece.start, min(piece.end, h.fin)))
            if span.end > h.fin:
                self.odd("data_past_fin", "data after the end that FIN announced; ignored", ts, frame)
        h.settle()

    def _reset(self, c: Columns, k: int, h: Half, o: Half) -> None:
        """RST (RFC 9293 3.10.7.4, RFC 5961 3)."""
        if not self._reset_fits(c, k, h, o):
            ttl, spoke = c.kind[k] & 255, self.taken()[c.side[k]]
            note = f", TTL {ttl} where its sender has {h.ttl}" if spoke and h.ttl != ttl else ""
            self.odd("forged_reset", f"RST with a sequence number out of window{note}; ignored", c.ts[k], c.frame[k])
            return
        if self.ending is not None:
            if self.ending == "fin" and all(x.next == x.fin for x in self.half):
                self.over = "fin"
            return
        if self.stage == 0 and not self._spoken:
            self.over = "reset"
            return
        self.ending, self.end_ts, self.busy = "reset", c.ts[k], True
        self.reset_side = c.side[k]
        self.reset_top = max(h.offset(c.seq[k]), h.next) if h.base >= 0 else -1
        self.reset_peer = o.next

    def _reset_fits(self, c: Columns, k: int, h: Half, o: Half) -> bool:
        if self.stage == 0 and c.flags[k] & ACK and o.base >= 0 and 0 <= o.offset(c.ack[k]) <= o.next:
            return True
        if h.base >= 0:
            off = h.offset(c.seq[k])
            top = max(h.next, h.acked, h.pend.last if h.pend else 0)
            return h.next - _RESET_WINDOW <= off <= top + _RESET_WINDOW
        return not c.flags[k] & ACK or o.base < 0 or abs(o.offset(c.ack[k]) - o.next) <= _RESET_WINDOW

    def _take_back_reset(self, c: Columns, k: int, h: Half, a: int) -> None:
        """The side that is said to have reset the connection goes on: somebody else did."""
        beyond = c.wire[k] and h.base >= 0 and h.offset(c.seq[k]) + c.wire[k] > self.reset_top
        if beyond or a > self.reset_peer:
            self.odd("forged_reset", "RST, but its sender went on; ignored", self.end_ts, c.frame[k])
            self.ending, self.reset_side = None, -1

    def _belongs(self, c: Columns, k: int, h: Half, o: Half) -> bool:
        """Whether a row of another VLAN is of this connection all the same (a tag in one direction, a copy)."""
        if c.flags[k] & SYN:
            if h.base >= 0:
                return self._is_start(h, c.seq[k])
            return not c.flags[k] & ACK or o.base < 0 or o.offset(c.ack[k]) == 0
        near = h.base < 0 or abs(h.offset(c.seq[k]) - h.next) < _NEAR
        return near and (o.base < 0 or not c.flags[k] & ACK or abs(o.offset(c.ack[k]) - o.next) < _NEAR)

    def conclude(self, reason: str) -> None:
        """Nothing more comes: give up every hole, say how it ended."""
        self.over = reason
        if reason in ("capture_end", "timeout"):
            if self.ending is not None:
                self.over = self.ending
            elif self.closing and any(h.fin >= 0 and h.una < 0 for h in self.half):
                self.over = "fin"  # only one direction was captured, and it ended
        for side in (0, 1):
            h = self.half[side]
            if h.acked > h.next or h.pend:
                upto = max(h.acked, h.pend.last if h.pend else 0)
                self._give_up(side, upto, self.ts_last, self.frame_last, 1 << 62)
            if h.rows:
                self._flush(side)
        if self.candidate is not None:
            stray = self.candidate
            self.odd("stray_syn", "SYN inside a connection that went on; ignored", stray.ts[0], stray.frame[0])
            self.candidate = None
        if self.over == "reset" and self.reset_side >= 0 and self.half[1 - self.reset_side].next > self.reset_peer:
            detail = "data after the other side's RST; it was not received"
            self.odd("data_after_reset", detail, self.ts_last, self.frame_last)
        for h in self.half:
            if h.skewed >= max(_SKEW, self.packets // _SKEW_SHARE):
                detail = f"{h.skewed} times the {self._name(h)}'s octets were captured after their acknowledgement"
                self.odd("capture_skew", detail, self.ts, self.frame)
        for name, count in (self.weird or {}).items():
            if count > self.limits.connection_anomalies:
                more = count - self.limits.connection_anomalies
                assert self.anomalies is not None
                self.anomalies.append(Oddity(self.ts_last, name, f"{more} more in this connection", self.frame_last))

    # -- out

    def _flush_final(self, c: Columns, side: int) -> None:
        """Make a chunk of what nothing can change any more; keep the rest over the batch's end."""
        h = self.half[side]
        final = h.final(self.limits)
        if final < h.next:
            n = max(bisect_right(h.starts, final) - 1, 0)
            later = h.rows[n:], h.starts[n:], h.acks[n:]
            del h.rows[n:], h.starts[n:], h.acks[n:]
            self._flush(side)
            h.rows = [c.kept(e, -1) if type(e) is int else e if e.order < 0 else e._replace(order=-1) for e in later[0]]
            h.starts, h.acks, h.mixed = later[1], later[2], True
        else:
            self._flush(side)

    def _flush(self, side: int) -> None:
        """Make a chunk of a direction's run."""
        h = self.half[side]
        rows = h.rows
        if not rows:
            return
        c = self.columns
        if h.mixed or c is None:
            order, data, ts, frames = self._mixed_run(rows)
        elif len(rows) == 1:
            order = rows[0]
            data, ts, frames = c.octets(order), [c.ts[order]], [c.frame[order]]
        else:
            order = rows[0]
            buf, place, length = c.buf, c.place, c.length
            data = b"".join([buf[place[k] : place[k] + length[k]] for k in rows])
            ts, frames = [c.ts[k] for k in rows], [c.frame[k] for k in rows]
        self._emit(
            h, side, order, Chunk(side == self.orig, -1 if h.joined else 0, h.starts[0], data, h.starts, ts, frames, h.acks)
        )
        h.rows, h.starts, h.acks, h.mixed = [], [], [], False

    def _mixed_run(self, rows: list[Any]) -> tuple[int, bytes, list[int], list[int]]:
        """A run in which not every entry is a whole row of the batch."""
        c = self.columns
        if c is None:
            data = b"".join([e.data for e in rows])
            return rows[0].order, data, [e.ts for e in rows], [e.frame for e in rows]
        buf, place, length = c.buf, c.place, c.length
        data = b"".join([buf[place[e] : place[e] + length[e]] if type(e) is int else e.data for e in rows])
        ts = [c.ts[e] if type(e) is int else e.ts for e in rows]
        frames = [c.frame[e] if type(e) is int else e.frame for e in rows]
        return rows[0] if type(rows[0]) is int else rows[0].order, data, ts, frames

    def _emit(self, h: Half, side: int, order: int, chunk: Chunk) -> None:
        self.items.append((order, chunk))
        h.joined = False
        self.octets[side] += len(chunk.data)
        self._remember(h, chunk.offset, chunk.data)

    def _remember(self, h: Half, offset: int, data: bytes) -> None:
        """Keep the last octets to compare retransmissions with."""
        keep = self.limits.history_bytes
        if h.old is None or len(data) >= keep:
            h.old, h.old_octets = [], 0
        if len(data) > keep:
            offset, data = offset + len(data) - keep, data[-keep:]
        h.old.append((offset, data))
        h.old_octets += len(data)
        if h.old_octets > 2 * keep or len(h.old) > _OLD_PARTS:
            first, joined = h.old[0][0], b"".join([part for _, part in h.old])
            h.old = [(first + max(len(joined) - keep, 0), joined[-keep:])]
            h.old_octets = len(h.old[0][1])

    def odd(self, name: str, detail: str, ts: int, frame: int) -> None:
        """Name something odd; the first few of a kind are told, the others counted."""
        if self.weird is None or self.anomalies is None:
            self.weird, self.anomalies = {}, []
        count = self.weird.get(name, 0) + 1
        self.weird[name] = count
        if count <= self.limits.connection_anomalies:
            self.anomalies.append(Oddity(ts, name, detail, frame))


def _row(item: tuple[int, Chunk]) -> int:
    return item[0]


def _odd_ttl(h: Half, start: int, end: int, ttl: int) -> None:
    h.odd_ttls = [*(h.odd_ttls or [])[1 - _ODD_TTLS :], (start, end, ttl)]


def _difference(at: int, known: bytes, start: int, octets: bytes) -> int:
    """Offset of the first octet in which two copies differ where they overlap, -1 when there is none."""
    low, high = max(at, start), min(at + len(known), start + len(octets))
    if low >= high:
        return -1
    one, two = known[low - at : high - at], octets[low - start : high - start]
    if one == two:
        return -1
    return low + next(i for i, (x, y) in enumerate(zip(one, two, strict=True)) if x != y)


def _packet(raw: bytes, transport: int, payload: int) -> Packets:
    """One TCP packet, as far as `checksums_ok` looks at it."""
    none, length = np.zeros(1, np.int64), np.array([len(raw) - payload])
    high, port, octet = np.zeros(1, np.uint64), np.zeros(1, np.uint16), np.zeros(1, np.uint8)
    return Packets(
        source="",
        data=raw,
        frame=none,
        ts=none,
        protocol=octet + np.uint8(6),
        src_hi=high,
        src_lo=high,
        dst_hi=high,
        dst_lo=high,
        src_port=port,
        dst_port=port,
        payload=np.array([payload]),
        length=length,
        wire_length=length,
        seq=np.zeros(1, np.uint32),
        ack=np.zeros(1, np.uint32),
        flags=octet,
        vlan=port,
        ttl=octet,
        network=none,
        transport=np.array([transport]),
    )
