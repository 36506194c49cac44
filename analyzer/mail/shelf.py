"""Records out of the way: their octets in a temporary file, in memory only what they are found by.

A record takes 8 octets for each key, 12 for each label, 8 for each fact, and some 25 besides; the file never grows beyond twice
what is in it.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from analyzer.scratch import read_at, scratch

_SMALL = 8 << 20
"""Octets of dead records that are not worth copying the others for."""


class Record(NamedTuple):
    """What is put away."""

    octets: bytes
    keys: Collection[int]
    """What it is found by: signed 64-bit numbers, as hashes are.  Several records may have the same."""
    labels: Collection[int]
    """Numbers that are listed as long as it is there."""
    facts: Sequence[int]
    """What is to be known of it without reading it; every record has as many."""


class Shelf:
    """Records by number; a number is never used again."""

    def __init__(self, facts: int) -> None:
        """`facts`: how many each record has."""
        self._file = scratch()
        self._end = 0
        self._next = 0
        self._numbers = np.empty(0, np.int64)
        self._places = np.empty(0, np.int64)
        self._sizes = np.empty(0, np.int64)
        self._facts = np.empty((0, facts), np.int64)
        self._alive = np.empty(0, bool)
        self._count = 0
        self._keys = np.empty(0, np.uint32)
        """Shortened, ascending."""
        self._of_key = np.empty(0, np.int32)
        """Which record has it: its place among `_numbers`."""
        self._labels = np.empty(0, np.int64)
        self._of_label = np.empty(0, np.int32)

    def __len__(self) -> int:
        return self._count

    def put(self, records: Sequence[Record]) -> list[int]:
        """Put some away; their numbers."""
        if not records:
            return []
        self._weed()
        self._file.seek(0, 2)
        count = len(self._numbers)
        numbers = np.arange(self._next, self._next + len(records))
        sizes = np.array([len(record.octets) for record in records], np.int64)
        places = self._end + np.concatenate(([0], np.cumsum(sizes)[:-1]))
        for record in records:
            self._file.write(record.octets)
        self._file.flush()
        self._end += int(sizes.sum())
        self._next += len(records)
        self._numbers = np.concatenate((self._numbers, numbers))
        self._places = np.concatenate((self._places, places))
        self._sizes = np.concatenate((self._sizes, sizes))
        self._facts = np.concatenate((self._facts, np.array([record.facts for record in records], np.int64)))
        self._alive = np.ones(count + len(records), bool)
        self._count = len(self._numbers)
        keys, of_key = _listed([record.keys for record in records], count)
        keys = _short(keys)
        order = np.argsort(keys, kind="stable")
        keys, of_key = keys[order], of_key[order]
        at = np.searchsorted(self._keys, keys, "right")
        self._keys, self._of_key = np.insert(self._keys, at, keys), np.insert(self._of_key, at, of_key)
        labels, of_label = _listed([record.labels for record in records], count)
        self._labels, self._of_label = np.concatenate((self._labels, labels)), np.concatenate((self._of_label, of_label))
        return [int(number) for number in numbers]

    def find(self, keys: Collection[int]) -> list[int]:
        """Numbers of the records that have any of these keys, ascending; once in millions of times of one that has none."""
        if not len(self._keys) or not keys:
            return []
        wanted = _short(np.fromiter(keys, np.int64, len(keys)))
        first = np.searchsorted(self._keys, wanted, "left")
        last = np.searchsorted(self._keys, wanted, "right")
        if not (last > first).any():
            return []
        places = np.unique(np.concatenate([self._of_key[a:b] for a, b in zip(first, last, strict=True) if b > a]))
        return [int(number) for number in self._numbers[places[self._alive[places]]]]

    def get(self, number: int) -> bytes:
        """The octets of a record."""
        at = int(np.searchsorted(self._numbers, number))
        return read_at(self._file, int(self._sizes[at]), int(self._places[at]))

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget records."""
        self._alive[np.searchsorted(self._numbers, np.fromiter(numbers, np.int64))] = False
        self._count = int(np.count_nonzero(self._alive))

    def numbers(self) -> Any:
        """Numbers of all records, ascending."""
        return self._numbers[self._alive]

    def facts_of(self, numbers: Any) -> Any:
        """The facts of one, by its number; of several, by a column of these: one row for each."""
        return self._facts[np.searchsorted(self._numbers, numbers)]

    def facts(self) -> Any:
        """Their facts: one row for each of `numbers`."""
        return self._facts[self._alive]

    def labels(self) -> Any:
        """All labels there are."""
        return self._labels[self._alive[self._of_label]]

    def _weed(self) -> None:
        """Forget what was dropped."""
        alive = self._alive
        if alive.all():
            return
        place = np.cumsum(alive) - 1
        kept = alive[self._of_key]
        self._keys, self._of_key = self._keys[kept], place[self._of_key[kept]].astype(np.int32)
        kept = alive[self._of_label]
        self._labels, self._of_label = self._labels[kept], place[self._of_label[kept]].astype(np.int32)
        self._numbers, self._places, self._sizes = self._numbers[alive], self._places[alive], self._sizes[alive]
        self._facts, self._alive = self._facts[alive], alive[alive]
        held = int(self._sizes.sum())
        if self._end - held > max(held, _SMALL):
            self._move()

    def _move(self) -> None:
        old, self._file = self._file, scratch()
        for place, size in zip(self._places.tolist(), self._sizes.tolist(), strict=True):
            self._file.write(read_at(old, size, place))
        old.close()
        self._places = np.concatenate(([0], np.cumsum(self._sizes)[:-1])) if len(self._sizes) else self._places
        self._end = int(self._sizes.sum())


def _short(keys: Any) -> Any:
    """Keys of 32 bits."""
    return (keys ^ keys >> 32).astype(np.uint32)


def _listed(lists: Sequence[Collection[int]], first: int) -> tuple[Any, Any]:
    """The values of several owners, which are counted from `first`; and whose each is."""
    counts = np.array([len(one) for one in lists], np.int64)
    values = np.fromiter(chain.from_iterable(lists), np.int64, int(counts.sum()))
    return values, np.repeat(np.arange(first, first + len(lists), dtype=np.int32), counts)
