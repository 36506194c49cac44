"""The octets of messages, kept on disk while an analysis runs: only when extraction is asked for.

One unnamed file holds them all, gone with the process however it ends; memory holds where the pieces of each are.
"""

import os
from collections.abc import Iterator

from analyzer.scratch import scratch

_PIECE = 1 << 20
"""Octets read back at a time."""


class Store:
    """Takes pieces of many messages in any order."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        """`directory`: where the file is (else where temporary files go)."""
        self._file = scratch(directory)
        self._end = 0

    def put(self, piece: bytes | memoryview) -> tuple[int, int]:
        """Keep octets; where they begin and end."""
        begin, self._end = self._end, self._end + len(piece)
        self._file.write(piece)
        return begin, self._end

    def get(self, begin: int, end: int) -> Iterator[bytes]:
        """Octets kept, a piece at a time."""
        while begin < end:
            self._file.seek(begin)
            piece = self._file.read(min(_PIECE, end - begin))
            if not piece:
                return
            begin += len(piece)
            yield piece
            self._file.seek(self._end)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


class Body:
    """One message's octets in a store."""

    __slots__ = ("_places", "_store")

    def __init__(self, store: Store, places: list[tuple[int, int]] | None = None) -> None:
        self._store = store
        self._places = places or []

    def append(self, piece: bytes | memoryview) -> None:
        """The next octets of the message."""
        begin, end = self._store.put(piece)
        if self._places and self._places[-1][1] == begin:
            begin, _ = self._places.pop()
        self._places.append((begin, end))

    def copy(self) -> "Body":
        """A body with the same octets so far, that goes its own way."""
        return Body(self._store, self._places.copy())

    def __len__(self) -> int:
        """Pieces kept apart: what a copy costs."""
        return len(self._places)

    def __iter__(self) -> Iterator[bytes]:
        """The octets, a piece at a time."""
        for begin, end in self._places:
            yield from self._store.get(begin, end)
