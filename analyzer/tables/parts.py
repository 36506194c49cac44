"""Tables that grow on disk while they are made.

1. `TABLE.part.jsonl` holds finished rows, in the order they were finished; it only grows, by whole lines.
2. `TABLE.open.jsonl` holds the rows of what is still open, as of the latest telling; it is replaced whole.
3. Both together are the table so far, at any moment and after any end.  When the run ends in order, the finished
   tables take their place.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from analyzer.errors import MailhopError
from analyzer.tables.export import json_lines
from analyzer.tables.schema import TABLES
from analyzer.tables.visible import visible

PART, OPEN = ".part.jsonl", ".open.jsonl"
_HELD = 2000
"""Rows of a table held before they are written without being asked to."""


class Parts:
    """The growing files of one run, in one directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Raises MailhopError when the directory cannot be written."""
        self.directory = Path(directory)
        self._rows: dict[str, list[Any]] = {name: [] for name in TABLES}
        self._format = {name: json_lines(table) for name, table in TABLES.items()}
        self._fds: dict[str, int] = {}
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

    def show_open(self, table: str, rows: Iterable[Any]) -> None:
        """Replace the rows of what is open."""
        path = self.directory / f"{table}{OPEN}"
        temporary = self.directory / f".{table}{OPEN}.{os.getpid()}"
        try:
            temporary.write_bytes("".join(self._format[table](list(rows))).encode())
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _failure(self.directory, error) from None

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


def _failure(directory: Path, error: OSError) -> MailhopError:
    what = f"cannot write tables to {visible(str(directory))}: {error.strerror or error}"
    return MailhopError(what, "make room or choose another directory with -o DIR; what was written before can be read")
