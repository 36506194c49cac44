"""Frames to pcapng files: one file, or a ring of files, whole at every moment.

1. Octets go out in whole blocks, unbuffered: whatever ends the process, the file so far can be read.
2. A disk that is full costs the blocks that did not fit; the file is cut back to the last whole one.
3. Files of a ring are named as dumpcap names them: `mail_00001_20261123100000.pcapng`.
"""

import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import gmtime, strftime

import numpy as np

from analyzer.errors import CaptureError
from analyzer.wire import blocks
from analyzer.wire.types import Frames

_KB = 1000
"""Octets of a `filesize` unit, as dumpcap counts."""
_SECOND = 1_000_000_000
_PACKET_HEAD = 28
"""Octets of an Enhanced Packet Block before its frame; 4 more follow it."""


@dataclass(frozen=True)
class RingRule:
    """When a file ends and the next begins; None is never."""

    octets: int | None = None
    seconds: float | None = None
    packets: int | None = None
    files: int | None = None
    """Files kept: the oldest is deleted for each one more."""

    @property
    def turns(self) -> bool:
        """Whether there is more than one file."""
        return self.octets is not None or self.seconds is not None or self.packets is not None


RULES = {"filesize": "octets", "duration": "seconds", "packets": "packets", "files": "files"}


def parse_rule(texts: tuple[str, ...]) -> RingRule:
    """`filesize:1000 files:5` as a rule.  Raises CaptureError for what is none."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            number = float(value) if name == "duration" else int(value)
            if name not in RULES or number <= 0:
                raise ValueError
        except ValueError:
            raise CaptureError(
                f"-b {text} is no ring condition", "use filesize:KB, duration:SECONDS, packets:N or files:N, as dumpcap does"
            ) from None
        found[RULES[name]] = number * _KB if name == "filesize" else number
    rule = RingRule(**found)  # type: ignore[arg-type]
    if rule.files is not None and not rule.turns:
        raise CaptureError("-b files:N needs to know when a file is full", "add -b filesize:KB or -b duration:SECONDS")
    return rule


def packet_blocks(frames: Frames, interfaces: np.ndarray[tuple[int], np.dtype[np.uint32]], first: int, last: int) -> bytearray:
    """Enhanced Packet Blocks of frames `first` up to `last`, times in nanoseconds."""
    length = frames.length[first:last]
    size = _PACKET_HEAD + 4 + length + (-length % 4)
    place = np.cumsum(size) - size
    made = bytearray(int(size.sum()))
    words = np.frombuffer(made, "<u4")
    word = place // 4
    ts = frames.ts[first:last]
    columns = (blocks.PACKET, size, interfaces[first:last], ts >> 32, ts & 0xFFFFFFFF, length, frames.wire_length[first:last])
    for i, column in enumerate(columns):
        words[word + i] = column
    words[word + size // 4 - 1] = size
    view, data = memoryview(made), memoryview(frames.data)
    starts = (place + _PACKET_HEAD).tolist()
    for at, start, octets in zip(starts, frames.offset[first:last].tolist(), length.tolist(), strict=True):
        view[at : at + octets] = data[start : start + octets]
    return made


class CaptureFile:
    """What `-w` writes: `write` frames, `turn` to the next file, `close`.

    Every method raises CaptureError when the disk does not take it; what was written before can be read.
    """

    def __init__(self, path: str | os.PathLike[str], rule: RingRule | None = None, program: str = "mailhop") -> None:
        self.path = Path(path)
        self.rule = rule or RingRule()
        self.current: Path | None = None
        self.octets = 0
        """Octets of all files so far."""
        self._program = program
        self._fd = -1
        self._number = 0
        self._size = self._packets = 0
        self._since: int | None = None
        self._last = 0
        self._interfaces: dict[tuple[str, int], int] = {}
        self._secrets: list[bytes] = []
        self._kept: deque[Path] = deque()
        self._open()

    def write(self, frames: Frames) -> None:
        """Add frames, turning to the next file where the rule says so."""
        if self._fd < 0:
            return
        first, count = 0, len(frames)
        while first < count:
            last = self._room(frames, first)
            if last > first:
                codes = self._codes(frames)
                self._put(packet_blocks(frames, codes, first, last))
                if self._since is None:
                    self._since = int(frames.ts[first])
                self._packets += last - first
                self._last = int(frames.ts[last - 1])
                first = last
            if first < count:
                self.turn()

    def secrets(self, texts: list[bytes]) -> None:
        """Keep TLS key logs that came with the frames (Decryption Secrets Blocks), in each file."""
        for text in texts[len(self._secrets) :]:
            self._secrets.append(text)
            self._put(blocks.secrets(text))

    def turn(self) -> None:
        """End this file and begin the next."""
        self._end()
        self._open()

    def close(self, received: int | None = None, dropped: int | None = None) -> None:
        """End the last file; the counters of the capture go into it."""
        if self._fd >= 0 and received is not None and self._interfaces:
            self._put(blocks.statistics(0, self._last, received, dropped or 0))
        self._end()

    def _room(self, frames: Frames, first: int) -> int:
        """Up to which frame this file takes them; a file takes at least one."""
        last = len(frames)
        rule = self.rule
        if rule.packets is not None:
            last = min(last, first + int(rule.packets) - self._packets)
        if rule.octets is not None:
            size = _PACKET_HEAD + 7 + frames.length[first:last]
            last = min(last, first + int(np.searchsorted(np.cumsum(size), rule.octets - self._size, "right")))
        if rule.seconds is not None:
            since = int(frames.ts[first]) if self._since is None else self._since
            late = np.flatnonzero(frames.ts[first:last] - since >= int(rule.seconds * _SECOND))
            last = min(last, first + int(late[0])) if len(late) else last
        return max(last, first + (not self._packets))

    def _codes(self, frames: Frames) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        """Interface number of each frame; interfaces new to this file are described in it first."""
        codes, source = np.zeros(len(frames), np.uint32), frames.source
        for linktype in np.unique(frames.linktype).tolist():
            key = (source, linktype)
            if key not in self._interfaces:
                self._put(blocks.interface(source.encode("utf-8", "replace"), linktype))
                self._interfaces[key] = len(self._interfaces)
            codes[frames.linktype == linktype] = self._interfaces[key]
        return codes

    def _open(self) -> None:
        self._number += 1
        path = self.path
        if self.rule.turns or self._number > 1:
            stem = f"{path.stem}_{self._number:05}_{strftime('%Y%m%d%H%M%S', gmtime())}"
            path = path.with_name(stem + (path.suffix or ".pcapng"))
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written: {error.strerror}", "choose another place with -w") from None
        self.current = path
        self._size = self._packets = 0
        self._since = None
        self._interfaces = {}
        self._kept.append(path)
        while self.rule.files is not None and len(self._kept) > self.rule.files:
            with suppress(OSError):
                self._kept.popleft().unlink()
        self._put(blocks.section(self._program) + b"".join(map(blocks.secrets, self._secrets)))

    def _put(self, octets: bytes | bytearray) -> None:
        if self._fd < 0:
            return
        view, done = memoryview(octets), 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        except OSError as error:
            self._cut_back(view[:done])
            fix = "make room, or bound the files with -b filesize:KB -b files:N; what was written before can be read"
            raise CaptureError(f"{self.current}: {error.strerror}", fix) from None
        self._size += done
        self.octets += done

    def _cut_back(self, written: memoryview) -> None:
        """Keep the whole blocks of what was written, and write no more."""
        whole = 0
        while whole + 8 <= len(written):
            size = int.from_bytes(written[whole + 4 : whole + 8], "little")
            if size < 12 or whole + size > len(written):
                break
            whole += size
        with suppress(OSError):
            os.ftruncate(self._fd, self._size + whole)
        self._end()

    def _end(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
