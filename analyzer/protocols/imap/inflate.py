"""COMPRESS=DEFLATE (RFC 4978): each direction one raw deflate stream (RFC 1951), inflated within bounds."""

import zlib
from collections.abc import Iterator

from analyzer.limits import Limits
from analyzer.wire.types import Chunk

_STEP = 256 << 10
"""Octets inflated at a time, so that the session reads them before more are made."""
_FREE = 1 << 20
"""Octets inflated before the ratio is looked at."""


class Inflater:
    """One direction's octets, inflated.  `fault` says why it ended: (anomaly name, detail)."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.taken = 0
        self.given = 0
        self.fault: tuple[str, str] | None = None
        self.where: tuple[int | None, int | None] = (None, None)
        """Time and frame of the segment inflated last."""
        self._stream = zlib.decompressobj(-15)

    def feed(self, chunk: Chunk) -> Iterator[Chunk]:
        """Inflate a chunk, segment by segment, so that each octet keeps its time and frame."""
        if self.fault:
            return
        if chunk.gap:
            if len(chunk.ts):
                self.where = int(chunk.ts[0]), int(chunk.frames[0])
            self.fault = ("inflate_failed", "octets of a compressed stream are lost: the rest cannot be read")
            yield self._end(chunk.orig)
            return
        starts, ts, frames = list(chunk.starts), list(chunk.ts), list(chunk.frames)
        ends = [*(s - chunk.offset for s in starts[1:]), len(chunk.data)]
        begin = 0
        for end, when, frame in zip(ends, ts, frames, strict=True):
            self.where = int(when), int(frame)
            for plain in self._inflate(chunk.data[begin:end]):
                yield Chunk(chunk.orig, 0, self.given - len(plain), plain, [self.given - len(plain)], [when], [frame], [-1])
            if self.fault:
                yield self._end(chunk.orig)
                return
            begin = end

    def _inflate(self, octets: bytes) -> Iterator[bytes]:
        self.taken += len(octets)
        limits = self.limits
        while octets:
            try:
                plain = self._stream.decompress(octets, _STEP)
            except zlib.error as error:
                self.fault = ("inflate_failed", f"not a deflate stream: {error}")
                return
            octets = self._stream.unconsumed_tail
            self.given += len(plain)
            if self.given > limits.inflated_bytes:
                self.fault = ("inflate_limit", f"more than {limits.inflated_bytes} octets inflated")
                return
            if self.given > _FREE and self.given > self.taken * limits.inflated_ratio:
                self.fault = ("inflate_limit", f"{self.taken} octets inflate to more than {limits.inflated_ratio} times as many")
                return
            if plain:
                yield plain
            if self._stream.eof:
                self.fault = ("inflate_failed", "the compressed stream has ended")
                return

    def _end(self, orig: bool) -> Chunk:
        """An unknown number of octets is lost."""
        return Chunk(orig, -1, self.given, b"", [], [], [], [])
