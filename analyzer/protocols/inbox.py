"""Octets of one direction, taken as a line or so many octets, with their times.

Loss is met at its place: a reader that comes to a gap must `take_gap()` before it can read on, so it
cannot be overlooked.  Positions are stream offsets, lost octets included.
"""

from bisect import bisect_right
from collections import deque
from typing import Any

from analyzer.limits import Limits
from analyzer.wire.types import Chunk


class Inbox:
    """One direction's unread octets.

    `buf[pos:]` are the octets that can be read now; `base + pos` is the stream offset of the next one.
    `at_gap` is true when everything before a gap was read, or only an unfinished unit is left before it.
    """

    __slots__ = ("_acks", "_frames", "_next", "_starts", "_ts", "_waiting", "base", "buf", "ended", "limits", "pos", "seen")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buf = b""
        self.pos = 0
        self.base = 0
        self.ended = False
        """No more octets will come."""
        self.seen = False
        """Something (data or gap) has come."""
        self._starts: list[int] = []
        self._ts: list[int] = []
        self._frames: list[int] = []
        self._acks: list[int] = []
        self._waiting: deque[Chunk] = deque()
        self._next = 0

    def append(self, chunk: Chunk) -> None:
        """Add what comes next in the stream."""
        self.seen = True
        if self._waiting or chunk.gap or chunk.offset != self._next:
            self._waiting.append(chunk)
            self._next = chunk.offset + len(chunk.data)
            if not self.available and len(self._waiting) == 1 and chunk.gap == 0:
                self._load(self._waiting.popleft())
            return
        self._next = chunk.offset + len(chunk.data)
        self._join(chunk)

    def _load(self, chunk: Chunk) -> None:
        self.buf, self.pos, self.base = b"", 0, chunk.offset
        self._starts, self._ts, self._frames, self._acks = [], [], [], []
        self._join(chunk)

    def _join(self, chunk: Chunk) -> None:
        if not chunk.data:
            return
        if self.pos == len(self.buf):
            self.base += self.pos
            self.buf, self.pos = chunk.data, 0
            self._starts, self._ts = _list(chunk.starts), _list(chunk.ts)
            self._frames, self._acks = _list(chunk.frames), _list(chunk.acks)
            return
        keep = bisect_right(self._starts, self.base + self.pos) - 1
        if keep > 0:
            del self._starts[:keep], self._ts[:keep], self._frames[:keep], self._acks[:keep]
        self.buf = self.buf[self.pos :] + chunk.data
        self.base += self.pos
        self.pos = 0
        self._starts += _list(chunk.starts)
        self._ts += _list(chunk.ts)
        self._frames += _list(chunk.frames)
        self._acks += _list(chunk.acks)

    @property
    def available(self) -> int:
        """Octets that can be read before the next gap."""
        return len(self.buf) - self.pos

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
        return self.available + sum(len(c.data) for c in self._waiting)

    def take_gap(self) -> int:
        """Drop what is unread before the gap, step over it; octets lost (-1: unknown number).  0: there is none."""
        if not self._waiting:
            return 0
        chunk = self._waiting.popleft()
        self._load(chunk)
        while self._waiting and self._waiting[0].gap == 0:
            self._join(self._waiting.popleft())
        return chunk.gap

    def line(self) -> bytes | None:
        """The next line without its end (CRLF, or a bare LF); None when it is not whole yet.

        `self.bare_lf(line_end)` tells which end it had.  A line past `limits.line_bytes` is returned cut;
        its rest is read as further lines.
        """
        end = self.buf.find(b"\n", self.pos)
        if end < 0:
            if self.available > self.limits.line_bytes:
                return self.take(self.limits.line_bytes)
            return None
        begin, self.pos = self.pos, end + 1
        if end > begin and self.buf[end - 1] == 13:
            end -= 1
        return self.buf[begin:end]

    def take(self, n: int) -> bytes:
        """At most n octets of what is available."""
        begin = self.pos
        self.pos = min(len(self.buf), begin + n)
        return self.buf[begin : self.pos]

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

    def rest(self, orig: bool) -> list[Chunk]:
        """Take everything unread out as chunks (for the TLS layer)."""
        chunks = []
        if self.available:
            offset = self.offset
            keep = max(bisect_right(self._starts, offset) - 1, 0)
            starts = [max(s, offset) for s in self._starts[keep:]]
            chunks.append(
                Chunk(orig, 0, offset, self.buf[self.pos :], starts, self._ts[keep:], self._frames[keep:], self._acks[keep:])
            )
        chunks.extend(self._waiting)
        self._waiting.clear()
        self.buf, self.pos = b"", 0
        if chunks:
            self.base = self._next = chunks[0].offset
        return chunks


def _list(values: Any) -> list[int]:
    """Segment columns as lists of int (numpy arrays are converted once)."""
    return values if type(values) is list else list(values.tolist() if hasattr(values, "tolist") else values)
