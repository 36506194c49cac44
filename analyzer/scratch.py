"""Unnamed temporary files: gone when the process is, however it ends."""

import os
from typing import IO


def scratch(directory: "str | os.PathLike[str] | None" = None) -> IO[bytes]:
    """A new one, to write and read; in `directory`, or where temporary files go."""
    from tempfile import TemporaryFile

    return TemporaryFile(prefix="mailhop-", dir=directory)


def read_at(file: IO[bytes], size: int, place: int) -> bytes:
    """Octets of a flushed file; where its end is set by `write` stays as it is on systems that have pread(2).

    Processes that share an open file share where it stands, so only this way may several read it.
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, place)
    file.seek(place)
    return file.read(size)
