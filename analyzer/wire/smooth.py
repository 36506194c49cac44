"""Rows of a batch in which a connection just goes on: found in columns, so that they can be taken at once."""

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.wire.types import I64, U8, U32

LEAST = 6
"""Rows of a stretch: fewer are taken one by one, as finding out would cost more."""


class Smooth:
    """Stretches of rows of one flow in which nothing is odd and each row's `seq` goes on from the one before on its side.

    Sequence numbers are looked at less the octets that the batch had brought before: in a stretch they stay the same.
    """

    def __init__(self, group: I64, side: U8, odd: NDArray[np.bool_], seq: U32, ack: U32, length: I64) -> None:
        n = len(group)
        self.at: dict[int, tuple[int, ...]] = {}
        """Stretches by their first row: what `look` gives."""
        self.until: list[int] = []
        """Where the stretch ends that a row is in, 0 when it is in none."""
        if not n:
            return
        places, second = np.arange(n), side == 1
        sent1 = np.where(second, length, 0)
        sums = np.zeros((2, n + 1), np.int64)
        np.cumsum(length - sent1, out=sums[0, 1:])
        np.cumsum(sent1, out=sums[1, 1:])
        self.sums = sums
        """Octets that each direction brought before each row."""
        self.seq = seq - np.where(second, sums[1, :-1], sums[0, :-1]).astype(np.uint32)
        self.ack = ack - np.where(second, sums[0, :-1], sums[1, :-1]).astype(np.uint32)
        begin = np.ones(n, np.bool_)
        begin[1:] = (group[1:] != group[:-1]) | odd[:-1]
        begin[2:] |= odd[:-2]  # the row that completes a handshake is taken with it
        begin |= odd
        before = np.zeros((2, n), np.int64)
        np.maximum.accumulate(np.where(second, -1, places)[:-1], out=before[0, 1:])
        np.maximum.accumulate(np.where(second, places, -1)[:-1], out=before[1, 1:])
        before[:, 0] = -1
        last = np.where(second, before[1], before[0])
        begin |= (last >= 0) & (self.seq[last] != self.seq) & (group[last] == group)
        begins = np.flatnonzero(begin)
        ends: I64 = np.append(begins[1:], n)
        chosen = (ends - begins >= LEAST) & ~odd[begins]
        until = np.where(chosen, ends, 0)
        self.until = np.repeat(until, ends - begins).tolist()
        self.data = [np.flatnonzero((length > 0) & ~second), np.flatnonzero((length > 0) & second)]
        self.side, self.length, self.raw_ack = side, length, ack
        self.rows = [rows.tolist() for rows in self.data]
        """Rows with payload, by side, and beside them their lengths and acknowledgements."""
        self.lengths = [length[rows].tolist() for rows in self.data]
        self.acks = [ack[rows].tolist() for rows in self.data]
        if not chosen.any():
            return
        begins, ends = begins[chosen], ends[chosen]
        number = np.repeat(np.arange(len(begins)), ends - begins)
        inside = np.repeat(begins, ends - begins) + _counted(ends - begins)
        starts: I64 = np.cumsum(ends - begins) - (ends - begins)
        columns: list[Any] = []
        for which in (0, 1):
            mine = side[inside] == which
            first = np.minimum.reduceat(np.where(mine, inside, n), starts)
            some = np.minimum(first, n - 1)
            columns += [np.where(first < n, first, -1), self.seq[some]]
            for values in (self.ack, ack):
                off = (values[inside] - values[some][number]).view(np.int32).astype(np.int64)
                columns += [values[some], np.maximum.reduceat(np.where(mine, off, -(1 << 31)), starts)]
            columns += [np.searchsorted(self.data[which], begins), np.searchsorted(self.data[which], ends)]
            columns += [sums[which, begins]]
        found = zip(*(column.tolist() for column in columns), strict=True)
        self.at = dict(zip(begins.tolist(), found, strict=True))

    def look(self, i: int, j: int) -> tuple[int, ...]:
        """Of the rows i..j of a stretch, for each side: its first row (-1: none) and that one's `seq`; its first `ack`, and
        how far beyond that they go, both less the octets brought and as they are; where its rows with payload begin
        and end; the octets it had brought before."""
        found: list[int] = []
        for which in (0, 1):
            mine = np.flatnonzero(self.side[i:j] == which) + i
            if len(mine):
                first = int(mine[0])
                found += [first, int(self.seq[first])]
                for values in (self.ack, self.raw_ack):
                    off = (values[mine] - values[first]).view(np.int32)
                    found += [int(values[first]), int(off.max())]
            else:
                found += [-1, 0, 0, 0, 0, 0]
            found += [bisect_left(self.rows[which], i), bisect_left(self.rows[which], j), int(self.sums[which, i])]
        return tuple(found)


def _counted(counts: I64) -> I64:
    """0, 1, 2, ... anew for each count."""
    starts: I64 = np.cumsum(counts) - counts
    numbers: I64 = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return numbers
