"""Where a capture's octets come from: a file, a pipe, and the compressions around it.

1. Compression is told by content, never by name.
2. Everything is streamed; how much comes out is watched on the way, at every layer, against what went in.
3. A compressed stream that breaks off or is corrupt gives what came before; `broken` says why it ended.
"""

import bz2
import lzma
import select
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from analyzer.errors import CaptureError
from analyzer.limits import Limits

_INPUT = 1 << 16
"""Compressed octets fed at a time, at most: when a stream turns out corrupt, what this call would have given is lost."""
_FIRST_INPUT = 256
_OUTPUT = 1 << 16


class Source:
    """Octets in order, with a look ahead."""

    broken: str | None = None
    """Why the octets end before their time."""
    limit_hit = False
    """They end because of a bound in `Limits`."""

    def __init__(self) -> None:
        self._ahead = b""

    def peek(self, n: int) -> bytes:
        """The next n octets (fewer at the end), left in place."""
        while len(self._ahead) < n:
            piece = bytearray(n - len(self._ahead))
            got = self._more(memoryview(piece))
            if not got:
                break
            self._ahead += piece[:got]
        return self._ahead[:n]

    def skip(self, n: int) -> None:
        """Pass over the next n octets."""
        self.peek(n)
        self._ahead = self._ahead[n:]

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as octets are at hand; waits for the first.  0: the end."""
        got = min(len(self._ahead), len(view))
        if got:
            view[:got] = self._ahead[:got]
            self._ahead = self._ahead[got:]
        while got < len(view) and (not got or self.ready(0)):
            more = self._more(view[got:])
            if not more:
                break
            got += more
        return got

    def ready(self, seconds: float) -> bool:
        """Whether `readinto` would return at once, if need be after waiting so long."""
        return bool(self._ahead) or self._ready(seconds)

    @property
    def consumed(self) -> int:
        """Octets of the file itself read so far."""
        raise NotImplementedError

    @property
    def live(self) -> bool:
        """Octets may be long in coming: a pipe."""
        raise NotImplementedError

    def _more(self, view: memoryview) -> int:
        raise NotImplementedError

    def _ready(self, seconds: float) -> bool:
        raise NotImplementedError


class FileSource(Source):
    """An open binary file, pipe or socket file."""

    def __init__(self, file: Any, live: bool) -> None:
        super().__init__()
        self._readinto: Callable[[memoryview], int | None] = reader(file)
        self._file = file
        self._live = live
        self._consumed = 0
        self._ended = False

    @property
    def consumed(self) -> int:
        return self._consumed

    @property
    def live(self) -> bool:
        return self._live

    def _more(self, view: memoryview) -> int:
        if self._ended:
            return 0
        try:
            got = self._readinto(view)
            while got is None:  # a non-blocking file
                self._ready(1.0)
                got = self._readinto(view)
        except OSError as error:
            self.broken = f"reading failed at byte {self._consumed}: {error.strerror or error}"
            got = 0
        self._ended = got == 0
        self._consumed += got
        return got

    def _ready(self, seconds: float) -> bool:
        if not self._live or self._ended:
            return True
        try:
            return bool(select.select([self._file], [], [], max(seconds, 0))[0])
        except (OSError, ValueError, TypeError):
            return False


def reader(file: Any) -> Callable[[memoryview], int | None]:
    """A `readinto` that returns what is at hand, whatever kind of binary file it is."""
    for name in ("readinto1", "readinto"):
        method = getattr(file, name, None)
        if method is not None:
            return method  # type: ignore[no-any-return]

    def readinto(view: memoryview) -> int:
        piece = file.read(len(view))
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise CaptureError("the file is open as text, not as octets", 'open it with mode "rb"')
        view[: len(piece)] = piece
        return len(piece)

    return readinto


class Decompressor(Protocol):
    """What bz2, lzma, zstd and lz4 decompressors have in common; one stream (member, frame) each."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """One gzip member (RFC 1952).  The checksum is ours to see, so that a wrong one costs no data."""

    def __init__(self) -> None:
        self.eof = False
        self.unused_data = b""
        self.needs_input = True
        self.sound = True
        self._inflate = zlib.decompressobj(-15)
        self._pending = b""
        self._in_header = True
        self._crc = 0
        self._size = 0

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        self._pending += data
        if self._in_header and not self._skip_header():
            return b""
        out = b""
        if not self._inflate.eof:
            out = self._inflate.decompress(self._pending, max(max_length, 0))
            self._pending = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            self._crc = zlib.crc32(out, self._crc)
            self._size += len(out)
            self.needs_input = not self._inflate.eof and (not self._pending and len(out) < max_length)
        if self._inflate.eof:
            self.needs_input = len(self._pending) < 8
            if not self.needs_input:
                trailer = (self._crc.to_bytes(4, "little"), (self._size & 0xFFFF_FFFF).to_bytes(4, "little"))
                self.sound = trailer == (self._pending[:4], self._pending[4:8])
                self.unused_data, self.eof = self._pending[8:], True
        return out

    def _skip_header(self) -> bool:
        """Whether the member header is whole (and gone)."""
        head = self._pending
        if len(head) < 10:
            return False
        flags, at = head[3], 10
        if flags & 4:
            at += 2 + int.from_bytes(head[10:12], "little")
        for flag in (8, 16):  # name, comment
            if flags & flag:
                end = head.find(b"\0", at)
                if end < 0 and len(head) > 1 << 16:
                    raise zlib.error("endless name in the member header")
                at = end + 1 if end >= 0 else len(head) + 1
        at += 2 if flags & 2 else 0
        if len(head) < at:
            return False
        self._pending, self._in_header = head[at:], False
        return True


def _xz(limits: Limits) -> Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.unpacked_window + (8 << 20))


def zstd_frame(window: int) -> Decompressor:
    """What unpacks one zstd frame (RFC 8878); one with a window of more octets is refused, by an error of the library's class."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    options = {zstd.DecompressionParameter.window_log_max: window.bit_length() - 1}
    return zstd.ZstdDecompressor(options=options)  # type: ignore[no-any-return,unused-ignore]


def _lz4(limits: Limits) -> Decompressor:
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor()  # type: ignore[no-any-return,unused-ignore]


_SKIPPABLE = tuple(bytes([n, 0x2A, 0x4D, 0x18]) for n in range(0x50, 0x60))
"""Skippable frames, of zstd (RFC 8878 3.1.2) and lz4 alike."""
_FORMATS: dict[str, tuple[tuple[bytes, ...], Callable[[Limits], Decompressor]]] = {
    "gz": ((b"\x1f\x8b\x08",), lambda limits: _Gzip()),
    "xz": ((b"\xfd7zXZ\0",), _xz),
    "bz2": ((b"BZh",), lambda limits: bz2.BZ2Decompressor()),
    "zst": ((b"\x28\xb5\x2f\xfd", *_SKIPPABLE), lambda limits: zstd_frame(limits.unpacked_window)),
    "lz4": ((b"\x04\x22\x4d\x18", *_SKIPPABLE), _lz4),
}


def compression_of(head: bytes) -> str | None:
    """Which compression these first octets belong to, by the usual suffix; None: none that is read here."""
    for suffix, (magics, _) in _FORMATS.items():
        if head.startswith(magics) and (suffix != "bz2" or head[3:4].isdigit()):
            return suffix
    return None


class UnpackedSource(Source):
    """What comes out of one layer of compression: all members, frames or streams, one after the other."""

    def __init__(self, inner: Source, suffix: str, limits: Limits) -> None:
        super().__init__()
        self._inner = inner
        self._suffix = suffix
        self._limits = limits
        self._magics, self._new = _FORMATS[suffix]
        self._decompressor: Decompressor | None = self._new(limits)
        self._input = b""
        """Compressed octets read; those from `_at` on were not fed to a decompressor yet."""
        self._at = 0
        self._step = _FIRST_INPUT
        self._out = 0
        self._ready_out = memoryview(b"")
        self._streams = 0

    @property
    def consumed(self) -> int:
        return self._inner.consumed

    @property
    def live(self) -> bool:
        return self._inner.live

    def _ready(self, seconds: float) -> bool:
        d = self._decompressor
        if d is None or self._ready_out or self._at < len(self._input):
            return True
        at_hand = bool(d.unused_data) if d.eof else not d.needs_input
        return at_hand or self._inner.ready(seconds)

    def _more(self, view: memoryview) -> int:
        while not self._ready_out and self._decompressor is not None:
            piece = self._some(self._decompressor)
            self._ready_out = memoryview(piece)
            self._out += len(piece)
            if piece:
                self._watch()
        got = min(len(view), len(self._ready_out))
        view[:got] = self._ready_out[:got]
        self._ready_out = self._ready_out[got:]
        return got

    def _some(self, d: Decompressor) -> bytes:
        """What the next step brings, perhaps nothing; the last step ends with no decompressor.

        Steps do not depend on who asks for how much, so what is saved of a corrupt stream does not either.
        """
        if d.eof:
            self._next_stream(d)
            return b""
        data = b""
        if d.needs_input:
            if not self._refill(1):
                self._break("ends early")
                return b""
            data = self._input[self._at : self._at + self._step]
            self._at += len(data)
        try:
            out = d.decompress(data, _OUTPUT)
        except Exception as error:  # each library has its own class, lz4 raises RuntimeError
            self._break(f"is corrupt ({str(error)[:80] or type(error).__name__})")
            return b""
        self._step = min(2 * self._step, _INPUT)
        return out

    def _refill(self, n: int) -> bool:
        """Whether there are n octets to feed, after reading some if need be."""
        while len(self._input) - self._at < n:
            piece = bytearray(_INPUT)
            got = self._inner.readinto(memoryview(piece))
            if not got:
                return False
            self._input, self._at = self._input[self._at :] + piece[:got], 0
        return True

    def _next_stream(self, d: Decompressor) -> None:
        """One stream has ended: is there another?"""
        if not getattr(d, "sound", True):
            self._note("holds a member with a wrong checksum")
        self._streams += 1
        if self._streams > self._limits.unpacked_streams and self._out < 64 * self._streams:
            self._break("is in too many tiny pieces")
            return
        unused = len(d.unused_data or b"")
        if unused > self._at:
            self._input, self._at = bytes(d.unused_data or b"") + self._input[self._at :], 0
        else:
            self._at -= unused
        while self._refill(1) and self._input[self._at] == 0:  # padding of xz streams and of tapes
            self._input, self._at = self._input[self._at :].lstrip(b"\0"), 0
        if self._refill(6) and self._input.startswith(self._magics, self._at):
            self._decompressor, self._step = self._new(self._limits), _FIRST_INPUT
            return
        if len(self._input) > self._at:
            self._note("has something else behind it")
        self._end()

    def _watch(self) -> None:
        """Bombs end at the bounds of `limits.unpacked_*`."""
        limits = self._limits
        if self._out > limits.unpacked_bytes:
            self.limit_hit = True
            self._note(f"unpacks to more than {limits.unpacked_bytes} octets")
            self._end()
        elif self._out > limits.unpacked_free and self._out > limits.unpacked_ratio * self.consumed:
            self.limit_hit = True
            self._note(f"unpacks to more than {limits.unpacked_ratio} times its size")
            self._end()

    def _break(self, how: str) -> None:
        self._note(how)
        self._end()

    def _end(self) -> None:
        self._decompressor = None
        inner = self._inner
        self.limit_hit |= inner.limit_hit
        self.broken = inner.broken or self.broken

    def _note(self, how: str) -> None:
        self.broken = self.broken or f"the {self._suffix} compression {how} at byte {self.consumed}"


def unpack(source: Source, limits: Limits) -> tuple[Source, list[str]]:
    """The octets inside all compressions, and the suffixes of those, innermost first.

    Raises CaptureError for more layers than `limits.unpacked_layers`.
    """
    suffixes: list[str] = []
    while (suffix := compression_of(source.peek(6))) is not None:
        if len(suffixes) == limits.unpacked_layers:
            raise CaptureError(f"compressed more than {limits.unpacked_layers} times over", "unpack it first")
        suffixes.insert(0, suffix)
        source = UnpackedSource(source, suffix, limits)
    return source, suffixes
