"""What is captured and not analyzed yet: batches of frames in order, first in memory, then on disk, bounded both ways.

A burst that analysis cannot follow costs time, not packets; only what neither memory nor disk takes is left out, and counted.
"""

import os
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from typing import IO

import numpy as np

from analyzer.limits import Limits
from analyzer.scratch import read_at
from analyzer.wire.types import FRAME_COLUMNS, Frames

_SEGMENT = 64 << 20
"""Octets of one temporary file: when all of it is analyzed, the disk has them back."""


@dataclass(slots=True)
class _Stored:
    """A batch on disk."""

    file: IO[bytes]
    place: int
    source: str
    count: int
    octets: int
    """Of its frames' data."""
    types: tuple[np.dtype[np.generic], ...]
    size: int
    """On disk."""

    def __len__(self) -> int:
        return self.count

    def load(self) -> Frames:
        octets = read_at(self.file, self.size, self.place)
        columns, at = {}, self.octets
        for name, kind in zip(FRAME_COLUMNS, self.types, strict=True):
            columns[name] = np.frombuffer(octets, kind, self.count, at)
            at += self.count * kind.itemsize
        return Frames(self.source, memoryview(octets)[: self.octets], **columns)


class _Disk:
    """Unnamed temporary files, gone when the process is, however it ends."""

    def __init__(self, most: int, directory: str | None) -> None:
        self._most = most
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._place = 0
        self.octets = 0
        """Held now."""

    def store(self, frames: Frames) -> _Stored | None:
        """Put a batch on disk; None: there is no room for it."""
        columns = [getattr(frames, name) for name in FRAME_COLUMNS]
        size = len(frames.data) + sum(column.nbytes for column in columns)
        if self.octets + size > self._most:
            return None
        try:
            if self._file is None or self._place >= _SEGMENT:
                self._file, self._place = tempfile.TemporaryFile(prefix="mailhop-", dir=self._directory, buffering=0), 0  # noqa: SIM115 (closes with its last batch)
            place = self._place
            for part in (frames.data, *(column.tobytes() for column in columns)):
                view = memoryview(part)
                while view:
                    done = os.pwrite(self._file.fileno(), view, self._place)
                    self._place += done
                    view = view[done:]
        except OSError:
            self._file = None
            return None
        self.octets += size
        kinds = tuple(column.dtype for column in columns)
        return _Stored(self._file, place, frames.source, len(frames), len(frames.data), kinds, size)


class Backlog:
    """Between the thread that reads and the one that analyzes."""

    def __init__(self, limits: Limits, directory: str | None = None) -> None:
        """`directory`: where batches wait on disk; None: where temporary files go."""
        self._most = limits.live_backlog_bytes
        self._disk = _Disk(limits.live_backlog_disk_bytes, directory)
        self._batches: deque[tuple[Frames | _Stored, list[bytes]]] = deque()
        self._octets = 0
        self._change = threading.Condition()
        self.over = False
        self.waiting = 0
        """Frames captured and not taken out yet."""
        self._shed = 0

    def put(self, frames: Frames, secrets: list[bytes]) -> None:
        """Add a batch whose octets stay as they are, or leave it out when there is no room (TLS secrets are kept)."""
        with self._change:
            batch: Frames | _Stored | None = frames
            if self._octets + len(frames.data) > self._most and self._batches:
                batch = self._disk.store(frames)
            if batch is None:
                self._shed += len(frames)
                self._batches[-1][1].extend(secrets)
                return
            if batch is frames:
                self._octets += len(frames.data)
            self._batches.append((batch, secrets))
            self.waiting += len(frames)
            self._change.notify()

    def get(self, timeout: float) -> tuple[Frames, list[bytes]] | None:
        """The next batch; None when none has come in `timeout` seconds, or it is over."""
        with self._change:
            if not self._batches and not self.over:
                self._change.wait(timeout)
            if not self._batches:
                return None
            batch, secrets = self._batches.popleft()
            if isinstance(batch, _Stored):
                self._disk.octets -= batch.size
            else:
                self._octets -= len(batch.data)
            self.waiting -= len(batch)
        return (batch.load() if isinstance(batch, _Stored) else batch), secrets

    def drop(self) -> None:
        """Leave out all that waits."""
        with self._change:
            self._shed += self.waiting
            self.waiting = 0
            self._batches.clear()
            self._octets = self._disk.octets = 0

    def end(self) -> None:
        """Nothing more will come."""
        with self._change:
            self.over = True
            self._change.notify()

    def take_shed(self) -> int:
        """Frames left out since last asked."""
        with self._change:
            shed, self._shed = self._shed, 0
            return shed

    @property
    def done(self) -> bool:
        """Over and empty."""
        with self._change:
            return self.over and not self._batches
