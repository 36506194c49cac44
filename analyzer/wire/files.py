"""Capture files in, batches of frames out: pcap, pcapng and snoop, plain or compressed, from a file or a pipe.

1. What a file is, its first octets say, not its name.  What is no capture is refused with a word on what it
   looks like and what to do; a capture that is damaged further on gives what can be read.
2. A pipe gives a batch when one is full, or a moment after its octets have stopped coming.
"""

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import BinaryIO

from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.wire.compression import FileSource, Source, unpack
from analyzer.wire.foreign import LOOK, looks_like
from analyzer.wire.pcap import FILE_HEADER, PCAP_MAGICS, SNOOP_HEADER, SNOOP_MAGIC, RecordWalker, pcap_layout, snoop_layout
from analyzer.wire.pcapng import SECTION, BlockWalker
from analyzer.wire.types import Frames, SourceInfo
from analyzer.wire.walker import Walker

Progress = Callable[[int, int | None], None]
"""Called with the octets of the file read so far and its size (None: a pipe has none)."""

_PATIENCE = 0.2
"""Seconds a pipe's frames wait for company; only when results show depends on it, not what they are."""
_COPY = "copy the file again, or capture again"
_SECTION_MAGIC = SECTION.to_bytes(4, "big")


def read(
    path: str | os.PathLike[str] | BinaryIO,
    limits: Limits,
    info: SourceInfo,
    *,
    name: str | None = None,
    progress: Progress | None = None,
) -> Iterator[Frames]:
    """The frames of a capture, in file order, a batch at a time; `info` is filled on the way.

    `path` "-" is standard input; an open binary file is read from where it stands and not closed.  `name` is what
    frames and messages call it (else: `info.name`).  Raises CaptureError when nothing can be read: no such file, no
    permission, empty, not a capture.  Damage further on is told in `info.damage` instead.
    """
    name = name or info.name
    with opened(path, name) as file:
        live, size = _nature(file)
        raw = FileSource(file, live)
        yield from _frames(raw, limits, info, name, lambda: progress(raw.consumed, size) if progress else None)


@contextmanager
def opened(path: str | os.PathLike[str] | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The file to read; closed afterwards if it was opened here."""
    file, close = _open(path, name)
    try:
        yield file
    finally:
        if close:
            file.close()


def peek_first_ts(path: str | os.PathLike[str] | BinaryIO) -> int | None:
    """Time of a capture file's first frame; None when there is none, or it cannot be looked at without using it up."""
    if not isinstance(path, str | os.PathLike) or os.fspath(path) == "-":
        return None
    limits = replace(Limits(), batch_bytes=1 << 16)
    with suppress(CaptureError, OSError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        for frames in read(path, limits, SourceInfo(os.fspath(path))):
            return int(frames.ts[0])
    return None


def rereadable(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file that can be read from its beginning again, which a pipe cannot."""
    try:
        return os.fspath(path) != "-" and stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _open(path: str | os.PathLike[str] | BinaryIO, name: str) -> tuple[BinaryIO, bool]:
    """The file to read, and whether it is ours to close."""
    if not isinstance(path, str | os.PathLike):
        if not hasattr(path, "read") and not hasattr(path, "readinto"):
            raise CaptureError(f"{name}: {type(path).__name__} is neither a path nor an open file")
        return path, False
    if os.fspath(path) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise CaptureError("standard input is no capture", "pipe one into it: tcpdump -U -w - | mailhop analyze -")
        return sys.stdin.buffer, False
    try:
        return open(path, "rb", buffering=0), True
    except FileNotFoundError:
        raise CaptureError(f"{name}: no such file", "check the name") from None
    except IsADirectoryError:
        raise CaptureError(f"{name}: is a directory", "give the capture files in it") from None
    except PermissionError:
        raise CaptureError(f"{name}: no permission to read it", "ask its owner, or copy it to where you may") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CaptureError(f"{name}: cannot be opened: {reason}") from None


def _nature(file: BinaryIO) -> tuple[bool, int | None]:
    """Whether octets may be long in coming, and how many there are to come if that is known."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):
        return False, None
    if not stat.S_ISREG(status.st_mode):
        return True, None
    return False, status.st_size


def _frames(raw: Source, limits: Limits, info: SourceInfo, name: str, tell: Callable[[], None]) -> Iterator[Frames]:
    try:
        source, suffixes = unpack(raw, limits)
    except CaptureError as error:
        raise CaptureError(f"{name}: {error.what}", error.fix) from None
    walker = begin(source, limits, info, name)
    info.kind = ".".join([walker.kind, *suffixes])
    for batch in _batches(source, walker):
        info.bytes_read = raw.consumed
        tell()
        yield batch
    info.bytes_read = raw.consumed
    tell()


def _batches(source: Source, walker: Walker) -> Iterator[Frames]:
    """Drive a walker with what a source has."""
    due = 0.0
    while not walker.over:
        got = source.readinto(walker.space())
        if not got:
            break
        held = walker.waiting
        walker.fill(got)
        if not walker.waiting:
            continue
        if source.live and not held:
            due = time.monotonic() + _PATIENCE
        if walker.full or (source.live and not source.ready(due - time.monotonic())):
            batch = walker.take()
            if batch is not None:
                yield batch
    batch = walker.finish(source.broken)
    if source.limit_hit:
        walker.info.damage[-1].name = "decompression_limit"
    if batch is not None:
        yield batch


def begin(source: Source, limits: Limits, info: SourceInfo, name: str) -> Walker:
    """The walker for what a source holds, its file header read.  Raises CaptureError when that is no capture."""
    head = source.peek(4)
    if head == _SECTION_MAGIC:
        return BlockWalker(name, limits, info)
    if head in PCAP_MAGICS:
        header = source.peek(FILE_HEADER)
        _refuse_cut_header(header, FILE_HEADER, name, "pcap")
        known = pcap_layout(header)
        if known is not None:
            layout, size = known
            source.skip(size)
            return RecordWalker(name, limits, info, layout, size)
    head = source.peek(8)
    if head == SNOOP_MAGIC:
        header = source.peek(SNOOP_HEADER)
        _refuse_cut_header(header, SNOOP_HEADER, name, "snoop")
        snoop = snoop_layout(header)
        if isinstance(snoop, int):
            raise CaptureError(f"{name}: snoop datalink type {snoop} is not supported", "convert it with editcap")
        source.skip(SNOOP_HEADER)
        return RecordWalker(name, limits, info, snoop, SNOOP_HEADER)
    raise _refusal(source, name)


def _refuse_cut_header(header: bytes, whole: int, name: str, kind: str) -> None:
    if len(header) < whole:
        raise CaptureError(f"{name}: the {kind} file header is cut: {len(header)} of {whole} octets", _COPY)


def _refusal(source: Source, name: str) -> CaptureError:
    """Why this is nothing to read."""
    head = source.peek(LOOK)
    if source.broken:
        return CaptureError(f"{name}: {source.broken}, before any packet", _COPY)
    if not head:
        return CaptureError(f"{name}: the file is empty (0 octets)", "was the capture started, and the disk not full?")
    if any(magic.startswith(head) for magic in (*PCAP_MAGICS, SNOOP_MAGIC, _SECTION_MAGIC)):
        return CaptureError(f"{name}: the file header is cut: only {len(head)} octets", _COPY)
    kind = looks_like(head)
    if kind is not None:
        what, fix = kind
        return CaptureError(f"{name}: not a packet capture, it looks like {what}", fix)
    return CaptureError(
        f"{name}: not a packet capture (begins with {head[:8].hex(' ')})",
        "pcap, pcapng and snoop are read, also compressed with gzip, bzip2, xz, zstd or lz4",
    )
