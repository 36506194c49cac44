"""Unnamed temporary files: gone when the process is, however it ends."""

import os
from typing import IO


def scratch(directory: "str | os.PathLike[str] | None" = None) -> IO[bytes]:
    """A new one, to write and read; in `directory`, or where temporary files go."""
    from tempfile import TemporaryFile

    return TemporaryFile(prefix="mailhop-", dir=directory)


def unbuffered(file: IO[bytes]) -> IO[bytes]:
    """A file that was written, without the 8 KiB of memory that stood ready for writing: many of them are open."""
    raw: IO[bytes] = file.detach()  # type: ignore[attr-defined]  # it flushes
    return raw


def read_at(file: IO[bytes], size: int, place: int) -> bytes:
    """Octets of a flushed file from a place; with pread(2) the file goes on standing where it stood.

    Processes that share an open file share where it stands: only so may several of them read it.
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, place)
    file.seek(place)
    return file.read(size)
