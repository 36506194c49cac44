"""Octets of one direction, taken as a line or so many octets, with their times.

Loss is met at its place: a reader that comes to a gap must `take_gap()` before it can read on, so it
cannot be overlooked.  Positions are stream offsets, lost octets included.

Rules: what comes is joined only when a reader needs it whole (a reader that waits costs no copies), and what
`line` or `take` return never depends on how the stream was cut into chunks.
"""

from bisect import bisect_right
from collections import deque
from typing import Any

from analyzer.limits import Limits
from analyzer.wire.types import Chunk


class Inbox:
    """One direction's unread octets.

    `buf[pos:]` are the octets that can be read now; `base + pos` is the stream offset of the next one.
    The last octet read stays at `buf[pos - 1]` until more is taken in.
    """

    __slots__ = (
        "_acks",
        "_buf",
        "_frames",
        "_later",
        "_more",
        "_more_bytes",
        "_next",
        "_scanned",
        "_starts",
        "_ts",
        "_waiting",
        "base",
        "cut",
        "ended",
        "kept",
        "kept_octets",
        "limits",
        "pos",
        "seen",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pos = 0
        self.base = 0
        self.ended = False
        """No more octets will come."""
        self.seen = False
        """Something (data or gap) has come."""
        self.cut = False
        """The line read last was cut: it goes on."""
        self.kept: list[Chunk] | None = None
        """What came since `keep`, while a reader may want to go back; None drops it."""
        self.kept_octets = 0
        self._buf = b""
        self._more: list[bytes] = []
        self._more_bytes = 0
        self._scanned = 0
        self._starts: list[int] = []
        self._ts: list[int] = []
        self._frames: list[int] = []
        self._acks: list[int] = []
        self._waiting: deque[Chunk] = deque()
        self._later = 0
        self._next = 0

    def append(self, chunk: Chunk) -> None:
        """Add what comes next in the stream."""
        self.seen = True
        if self.kept is not None:
            self.kept.append(chunk)
            self.kept_octets += len(chunk.data)
        if chunk.gap or self._waiting or chunk.offset != self._next:
            if chunk.offset != self._next and not chunk.gap:
                if not self._waiting and not self.available:  # a new count of offsets (the TLS layer's)
                    self._load(chunk)
                    self._next = chunk.offset + len(chunk.data)
                    return
                lost = chunk.offset - self._next
                chunk = chunk._replace(gap=lost if lost > 0 else -1)
            self._waiting.append(chunk)
            self._later += len(chunk.data)
        else:
            self._join(chunk)
        self._next = chunk.offset + len(chunk.data)

    def _load(self, chunk: Chunk) -> None:
        self._buf, self.pos, self.base = b"", 0, chunk.offset
        self._starts, self._ts, self._frames, self._acks = [], [], [], []
        self._more, self._more_bytes, self._scanned = [], 0, 0
        self._join(chunk)

    def _join(self, chunk: Chunk) -> None:
        data = chunk.data
        if self.pos == len(self._buf) and not self._more:
            if not data:
                return
            self.base += self.pos
            self._buf, self.pos = data, 0
            self._starts, self._ts = _list(chunk.starts), _list(chunk.ts)
            self._frames, self._acks = _list(chunk.frames), _list(chunk.acks)
        elif data:
            self._more.append(data)
            self._more_bytes += len(data)
            self._starts += _list(chunk.starts)
            self._ts += _list(chunk.ts)
            self._frames += _list(chunk.frames)
            self._acks += _list(chunk.acks)

    def _whole(self) -> None:
        """Join what has come since `buf` was last joined; the octet read last stays."""
        read = max(self.pos - 1, 0)
        self._buf = b"".join((self._buf[read:], *self._more))
        self.base += read
        self.pos -= read
        self._more, self._more_bytes, self._scanned = [], 0, 0
        past = bisect_right(self._starts, self.base) - 1
        if past > 0:
            del self._starts[:past], self._ts[:past], self._frames[:past], self._acks[:past]

    @property
    def buf(self) -> bytes:
        """What has come, from the octet read last to the next gap."""
        if self._more:
            self._whole()
        return self._buf

    @property
    def segments(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Stream offset, time, frame number and acknowledgement of the segments of what is in `buf`, to look at."""
        return self._starts, self._ts, self._frames, self._acks

    @property
    def available(self) -> int:
        """Octets that can be read before the next gap."""
        return len(self._buf) - self.pos + self._more_bytes

    @property
    def offset(self) -> int:
        """Stream offset of the next octet to read."""
        return self.base + self.pos

    @property
    def before_gap(self) -> bool:
        """Nothing more will join `buf`: a gap follows it (or the stream has ended)."""
        return bool(self._waiting) or self.ended

    @property
    def has_gap(self) -> bool:
        """A gap follows what is in `buf`."""
        return bool(self._waiting)

    @property
    def held(self) -> int:
        """Octets held in all."""
        return self.available + self._later

    def take_gap(self) -> int:
        """Drop what is unread before the gap, step over it; octets lost (-1: unknown number).  0: there is none."""
        if not self._waiting:
            return 0
        chunk = self._waiting.popleft()
        self._later -= len(chunk.data)
        self._load(chunk)
        while self._waiting and self._waiting[0].gap == 0:
            after = self._waiting.popleft()
            self._later -= len(after.data)
            self._join(after)
        if not self._starts:  # the gap is all there is: its proof tells the time
            self._starts, self._ts = [chunk.offset] * len(chunk.ts), _list(chunk.ts)
            self._frames, self._acks = _list(chunk.frames), _list(chunk.acks)
        return chunk.gap

    def beyond_gap(self) -> bytes:
        """The first octets that came behind the gap, to look at."""
        return next((chunk.data for chunk in self._waiting if chunk.data), b"")

    def ack_beyond_gap(self) -> int:
        """What the first segment behind the gap acknowledged, -1 unknown."""
        acks: Any = self._waiting[0].acks if self._waiting else ()
        return int(acks[0]) if len(acks) else -1

    def has_line(self) -> bool:
        """`line` has something to return."""
        if self._buf.find(b"\n", self.pos) >= 0 or self.available > self.limits.line_bytes + 1:
            return True
        return bool(self._more) and self._more_end()

    def line(self) -> bytes | None:
        """The next line without its end (CRLF, or a bare LF); None when it is not whole yet.

        Of a line past `limits.line_bytes` so many octets are returned, `cut` is set, and the rest is read as a
        further line.
        """
        end = self._buf.find(b"\n", self.pos)
        if end < 0 and self._more and self._more_end():
            end = self._buf.find(b"\n", self.pos)
        most = self.limits.line_bytes
        if end < 0:
            if self.available > most + 1:
                return self._cut(most)
            return None
        begin = self.pos
        if end - begin > most and not (end - begin == most + 1 and self._buf[end - 1] == 13):
            return self._cut(most)
        self.cut = False
        self.pos = end + 1
        if end > begin and self._buf[end - 1] == 13:
            end -= 1
        return self._buf[begin:end]

    def _more_end(self) -> bool:
        """Whether joining brings the line's end or its cut; no piece is searched twice."""
        found = self.available > self.limits.line_bytes + 1 or any(b"\n" in p for p in self._more[self._scanned :])
        self._scanned = len(self._more)
        if found:
            self._whole()
        return found

    def _cut(self, most: int) -> bytes:
        self.cut = True
        return self.take(most)

    def take(self, n: int) -> bytes:
        """At most n octets of what is available."""
        if self._more:
            self._whole()
        begin = self.pos
        self.pos = min(len(self._buf), begin + max(n, 0))
        return self._buf[begin : self.pos]

    def ts_at(self, offset: int) -> int | None:
        """Time of the segment that brought the octet at a stream offset still in the buffer (or just read)."""
        i = bisect_right(self._starts, offset) - 1
        return self._ts[i] if i >= 0 else (self._ts[0] if self._ts else None)

    def frame_at(self, offset: int) -> int | None:
        """Frame number of that segment."""
        i = bisect_right(self._starts, offset) - 1
        return self._frames[i] if i >= 0 else (self._frames[0] if self._frames else None)

    def ack_at(self, offset: int) -> int:
        """What that segment acknowledged of the other direction (stream offset), -1 unknown."""
        i = bisect_right(self._starts, offset) - 1
        return self._acks[i] if i >= 0 else -1

    def segment_at(self, offset: int) -> tuple[int | None, int | None, int]:
        """Time, frame number and acknowledgement of that segment, at once."""
        i = bisect_right(self._starts, offset) - 1
        if i < 0:
            return (self._ts[0], self._frames[0], -1) if self._ts else (None, None, -1)
        return self._ts[i], self._frames[i], self._acks[i]

    def span(self, begin: int, end: int) -> tuple[int | None, int | None, int, int | None, int | None]:
        """Time, frame number and acknowledgement at the octet `begin`, time and frame number at the octet before `end`."""
        starts = self._starts
        i = j = bisect_right(starts, begin) - 1
        if i < 0:
            return *self.segment_at(begin), *self.segment_at(end - 1)[:2]
        if i + 1 < len(starts) and starts[i + 1] < end:
            j = bisect_right(starts, end - 1) - 1
        return self._ts[i], self._frames[i], self._acks[i], self._ts[j], self._frames[j]

    def keep(self, orig: bool) -> None:
        """From here on, keep what is unread and what comes."""
        self.kept = self.unread(orig)
        self.kept_octets = sum(len(chunk.data) for chunk in self.kept)

    def unread(self, orig: bool) -> list[Chunk]:
        """Everything unread, as chunks; it stays."""
        chunks = []
        if self._more:
            self._whole()
        if self.available:
            offset = self.offset
            keep = max(bisect_right(self._starts, offset) - 1, 0)
            starts = [max(s, offset) for s in self._starts[keep:]]
            chunks.append(
                Chunk(orig, 0, offset, self._buf[self.pos :], starts, self._ts[keep:], self._frames[keep:], self._acks[keep:])
            )
        chunks.extend(self._waiting)
        return chunks

    def rest(self, orig: bool) -> list[Chunk]:
        """Take everything unread out as chunks (for the TLS layer)."""
        chunks = self.unread(orig)
        self.base = self._next = chunks[0].offset if chunks else self.offset
        self._waiting.clear()
        self._later = 0
        self._buf, self.pos = b"", 0
        return chunks


def _list(values: Any) -> list[int]:
    """Segment columns as a list of int of our own (numpy arrays are converted once)."""
    return list(values.tolist() if hasattr(values, "tolist") else values)
