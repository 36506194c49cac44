"""Tables that grow on disk while they are made.

1. `TABLE.part.jsonl` holds finished rows, in the order they were finished; it only grows, by whole lines.
2. `TABLE.open.jsonl` holds the rows of what is still open, as of the latest telling; it is replaced whole.
3. Both together are the table so far, at any moment and after any end.  When the run ends in order, the finished
   tables take their place.
"""

import errno
import os
import time
from collections.abc import Hashable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from analyzer.errors import MailhopError
from analyzer.tables.export import json_lines
from analyzer.tables.schema import TABLES
from analyzer.tables.visible import visible

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
PART, OPEN = ".part.jsonl", ".open.jsonl"
_PLACE = np.dtype([("owner", np.int64), ("size", np.uint32)])
"""Rows of one owner in a file: its hash, their octets."""
_PIECE = 1 << 20
"""Octets copied at a time."""
_SOME = 64
"""Rows written at a time."""
_HELD = 100
"""Rows of a table held before they are written without being asked to."""


class Parts:
    """The growing files of one run, in one directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Raises MailhopError when the directory cannot be written."""
        self.directory = Path(directory)
        self._rows: dict[str, list[Any]] = {name: [] for name in TABLES}
        self._format = {name: json_lines(table) for name, table in TABLES.items()}
        self._fds: dict[str, int] = {}
        self._places: dict[str, Any] = {name: np.empty(0, _PLACE) for name in TABLES}
        """Whose rows stand in the file of what is open, in order."""
        self._staged: dict[str, dict[int, bytes]] = {name: {} for name in TABLES}
        """New rows of what is open that are not in its file yet, by the hash of their owner."""
        self.left_over: Path | None = None
        """Where files of a run that was killed were put."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._put_aside()
            self._open()
        except OSError as error:
            raise _failure(self.directory, error) from None

    def _put_aside(self) -> None:
        old = [self.directory / f"{name}{kind}" for name in TABLES for kind in (PART, OPEN)]
        old = [path for path in old if path.exists()]
        if not any(path.stat().st_size for path in old):
            return
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(path.stat().st_mtime for path in old)))
        self.left_over = self.directory / f"unfinished-{stamp}"
        self.left_over.mkdir(exist_ok=True)
        for path in old:
            path.replace(self.left_over / path.name)

    def _open(self) -> None:
        for name in TABLES:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._fds[name] = os.open(self.directory / f"{name}{PART}", flags, 0o666)

    def add(self, table: str, row: Any) -> None:
        """Add a finished row."""
        rows = self._rows[table]
        rows.append(row)
        if len(rows) >= _HELD:
            self._write(table)

    def flush(self) -> None:
        """Write what was added.  Raises MailhopError when the disk does not take it; no line is ever cut."""
        for table, rows in self._rows.items():
            if rows:
                self._write(table)

    def _write(self, table: str) -> None:
        rows, self._rows[table] = self._rows[table], []
        view = memoryview("".join(self._format[table](rows)).encode())
        fd, done = self._fds[table], 0
        try:
            before = os.lseek(fd, 0, os.SEEK_END)
            while done < len(view):
                done += os.write(fd, view[done:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(fd, before + bytes(view[:done]).rfind(b"\n") + 1)
            raise _failure(self.directory, error) from None

    def stage(self, table: str, rows: Iterable[tuple[Hashable, Iterable[Any]]]) -> None:
        """New rows of what is open, by their owners, for the next `show_open`."""
        staged = self._staged[table]
        for owner, mine in rows:
            staged[hash(owner)] = "".join(self._format[table](list(mine))).encode()

    def show_open(self, table: str, held: Any, rows: Iterable[tuple[Hashable, Iterable[Any]]] = ()) -> None:
        """Replace rows of what is open by those staged and by `rows`, by their owners; of others those of `held` stay.

        `held`: hashes of owners, as a numpy column.
        """
        staged = self._staged[table]
        alive = set(held.tolist()) if staged else set()
        path = self.directory / f"{table}{OPEN}"
        temporary = self.directory / f".{table}{OPEN}.{os.getpid()}"
        new_places: list[tuple[int, int]] = []
        try:
            with open(temporary, "wb") as new:
                for key, octets in staged.items():
                    if key in alive:
                        new.write(octets)
                        new_places.append((key, len(octets)))
                for owner, mine in rows:
                    start, left = new.tell(), iter(mine)
                    while some := list(islice(left, _SOME)):
                        new.write("".join(self._format[table](some)).encode())
                    new_places.append((hash(owner), new.tell() - start))
                staged.clear()
                places = np.array(new_places, _PLACE)
                before = self._places[table]
                stay = np.isin(before["owner"], held) & ~np.isin(before["owner"], places["owner"])
                if stay.all() and not len(places):
                    temporary.unlink()
                    return
                if stay.any():
                    with open(path, "rb") as old:
                        _copy(old, new, before["size"].astype(np.int64), stay)
                        places = np.concatenate((places, before[stay]))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _failure(self.directory, error) from None
        self._places[table] = places

    def restart(self) -> None:
        """Begin anew with empty files (what was in them is elsewhere by now)."""
        for table, fd in self._fds.items():
            self._rows[table].clear()
            os.ftruncate(fd, 0)

    def remove(self) -> None:
        """The finished tables are written: the growing ones go."""
        self.close()
        for name in TABLES:
            for kind in (PART, OPEN):
                with suppress(OSError):
                    (self.directory / f"{name}{kind}").unlink()

    def close(self) -> None:
        """Close the files and leave them."""
        for fd in self._fds.values():
            with suppress(OSError):
                os.close(fd)
        self._fds.clear()


def _copy(old: BinaryIO, new: BinaryIO, sizes: Any, stay: Any) -> None:
    """Copy what stays, of all that stands in a file; what stands together at once."""
    end = np.cumsum(sizes)
    edges = np.flatnonzero(np.diff(stay, prepend=False, append=False))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        _copy_octets(old, new, int(end[first] - sizes[first]), int(end[last - 1]))


def _copy_octets(old: BinaryIO, new: BinaryIO, first: int, last: int) -> None:
    old.seek(first)
    while first < last:
        piece = old.read(min(last - first, _PIECE))
        if not piece:
            raise OSError(errno.EIO, "it was changed by another program")
        new.write(piece)
        first += len(piece)


def _failure(directory: Path, error: OSError) -> MailhopError:
    what = f"cannot write tables to {visible(str(directory))}: {error.strerror or error}"
    if error.errno in _FULL:
        return MailhopError(what, "make room or choose another directory with -o DIR; what was written before can be read")
    return MailhopError(what, "choose a directory that you may write, with -o DIR")
