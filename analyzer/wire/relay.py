"""A process of its own between a capture and its analysis: octets from standard input to standard output, as they came.

What cannot be passed on at once waits, first in memory and then in a temporary file, so that whoever captures is never kept
waiting by whoever analyzes: a capture that must wait loses packets.  Run as a script, with the most octets that may wait and the
directory of the file; imports nothing of ours, so that it starts at once.
"""

import os
import select
import sys
import tempfile
from collections import deque
from contextlib import suppress

_PIECE = 1 << 20
_FILE = 64 << 20
"""Octets of one file: when all of it is passed on, the disk has them back."""
_MEMORY = 16 << 20
"""Octets that wait in memory before they go to the file."""


class Waiting:
    """Octets in order: the first in memory, those behind them in files, each given back when it is read."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._memory: deque[memoryview] = deque()
        self._octets = self._stored = 0
        self._files: deque[int] = deque()
        self._read = 0
        """Place in the first file."""
        self._written = 0
        """Place in the last file."""

    def __len__(self) -> int:
        return self._octets + self._stored

    def add(self, octets: bytes) -> None:
        """Add octets.  Raises OSError when the disk does not take them: then none of them were added."""
        if self._octets < _MEMORY and not self._stored:
            self._memory.append(memoryview(octets))
            self._octets += len(octets)
            return
        if not self._files or self._written >= _FILE:
            handle, name = tempfile.mkstemp(prefix="mailhop-", dir=self._directory)
            os.unlink(name)
            self._files.append(handle)
            self._read, self._written = self._read if len(self._files) > 1 else 0, 0
        view, place = memoryview(octets), self._written
        while view:
            done = os.pwrite(self._files[-1], view, place)
            place += done
            view = view[done:]
        self._written = place
        self._stored += len(octets)

    def first(self) -> memoryview:
        """The octets that have waited longest."""
        if not self._memory:
            octets = os.pread(self._files[0], min(_PIECE, self._stored), self._read)
            if not octets and len(self._files) > 1:
                os.close(self._files.popleft())
                self._read = 0
                return self.first()
            self._read += len(octets)
            self._stored -= len(octets)
            self._memory.append(memoryview(octets))
            self._octets += len(octets)
        return self._memory[0]

    def gone(self, count: int) -> None:
        """So many of the first octets have been passed on."""
        self._octets -= count
        left = self._memory[0][count:]
        if left:
            self._memory[0] = left
        else:
            self._memory.popleft()


def relay(source: int, target: int, most: int, directory: str | None = None) -> None:
    """Pass octets on until there are no more and all are passed on, or nobody takes them."""
    waiting = Waiting(directory)
    over = full = False
    os.set_blocking(target, False)
    while waiting or not over:
        reads = [source] if not over and not full and len(waiting) < most else []
        ready, free, _ = select.select(reads, [target] if waiting else [], [])
        if ready:
            octets = os.read(source, _PIECE)
            over = not octets
            if octets:
                try:
                    waiting.add(octets)
                except OSError:  # no room: pass it on as it can be taken, and read no more until then
                    full = True
                    _pass_on(waiting, target, octets)
                    full = False
        if free:
            with suppress(BlockingIOError):
                waiting.gone(os.write(target, waiting.first()))


def _pass_on(waiting: Waiting, target: int, octets: bytes) -> None:
    """Everything that waits, and these octets, however long it takes."""
    os.set_blocking(target, True)
    while waiting:
        waiting.gone(os.write(target, waiting.first()))
    view = memoryview(octets)
    while view:
        view = view[os.write(target, view) :]
    os.set_blocking(target, False)


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        relay(0, 1, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
