"""A capture's octets in, batches of frames out: what the file formats have in common; no I/O.

A walker owns one buffer.  Whoever has octets puts them where `space()` says and calls `fill(n)`; the
walker goes over the whole records at once, while they are hot in the processor's cache, and keeps
only their columns.  `take()` hands out what has come together; the last call is `finish()`.  A file,
a pipe and a live capture all drive it the same way.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import I64, U16, Damage, Frames, SourceInfo

PLAUSIBLE = 1 << 18
"""Largest frame that is believed without a second look (libpcap's MAXIMUM_SNAPLEN)."""
PIECE = 2 << 20
"""Octets asked for at once: what was read should still be in the cache when it is walked."""
SLACK = 64
"""Octets past the usable end of the buffer, so that a header can be gathered whole wherever it begins."""
REACH = 4096
"""Octets walked or searched at first after damage, then ever more: many damaged places must not cost a buffer each."""
REMEMBERED = 2 * PLAUSIBLE
"""A damaged record stays in the buffer until this far behind it no other was found."""
JUMP = 1_000_000_000
"""A clock that goes back further than this (nanoseconds) is worth a row; less is two taps in one file."""


class Walker(ABC):
    """Base of the walkers.  Subclasses go over `buf[start:end]` in `_advance` and hand frames to `_add`."""

    kind = ""

    def __init__(self, name: str, limits: Limits, info: SourceInfo) -> None:
        self.name = name
        self.limits = limits
        self.info = info
        self.buf = bytearray(min(max(limits.batch_bytes, 4096), PIECE) + SLACK)
        self.start = 0
        """Where the next unread record begins."""
        self.end = 0
        """How far the buffer is filled."""
        self.base = 0
        """Offset of the buffer's first octet in the (unpacked) capture file."""
        self.last_ts: int | None = None
        self._numbered = 0
        self._held: list[tuple[I64, I64, NDArray[Any], NDArray[Any], I64, int | U16]] = []
        self._interfaces: list[I64] = []
        self._taken = False
        self._restarts = 0
        self._reach = 1 << 40
        """Octets to walk at most before damage is looked for."""
        self._lost: tuple[int, str] | None = None
        """Reading is lost: since which octet of the file, and why."""
        self._searched = 0
        """Octets behind `start` known not to begin a record; more than REMEMBERED: `start` is where to search on."""
        self.over = False
        """Too much damage: nothing more is read."""
        self._folded: dict[str, tuple[Damage, int]] = {}
        self._jump: Anomaly | None = None
        self._jumps = 0

    @property
    def full(self) -> bool:
        """A batch has come together: `take` it before more is put in."""
        return bool(self._held) and self.end >= self.limits.batch_bytes

    @property
    def waiting(self) -> bool:
        """There are frames to take."""
        return bool(self._held)

    def space(self) -> memoryview:
        """Where to put the next octets; never empty.  Frames handed out before this call are no longer valid."""
        room = len(self.buf) - SLACK
        if self._taken and not self._held and room - self.end < PIECE:  # what is held lies where compacting would write
            self._compact()
        if self.end == room:
            room = max(2 * room, self.limits.batch_bytes)
            bigger = bytearray(room + SLACK)
            bigger[: self.end] = memoryview(self.buf)[: self.end]
            self.buf = bigger
        return memoryview(self.buf)[self.end : min(room, self.end + PIECE)]

    def fill(self, n: int) -> None:
        """`n` octets were put into `space()`."""
        self.end += n
        if self.over:
            self._pass_over(self.end)
        else:
            self._walk(final=False)

    def take(self) -> Frames | None:
        """The frames come together since the last call; None when there are none."""
        if not self._held:
            return None
        number, offset, length, wire, ts, linktype = zip(*self._held, strict=True)
        interfaces = np.concatenate(self._interfaces) if self._interfaces else None
        self._held, self._interfaces, self._taken = [], [], True
        return Frames(
            source=self.name,
            data=self.buf,
            number=np.concatenate(number),
            ts=np.concatenate(ts),
            offset=np.concatenate(offset),
            length=np.concatenate(length, dtype=np.int64),
            wire_length=np.concatenate(wire, dtype=np.int64),
            linktype=np.concatenate([np.full(len(n), kind, np.uint16) for n, kind in zip(number, linktype, strict=True)]),
            interface=interfaces,
        )

    def finish(self, why: str | None = None) -> Frames | None:
        """The input is over (`why`: because it broke off): the last frames, and what is wrong with the end."""
        before = len(self.info.damage)
        if not self.over:
            self._walk(final=True)
        self.info.damage.sort(key=lambda row: row.frame or 0)  # folded rows stand where their kind was first met
        left = self.end - self.start
        if why is not None:
            lost = f"; frame {self.number} is incomplete" if left and len(self.info.damage) == before else ""
            self._note_damage(why + lost)
        elif left:
            self._note_damage(f"cut at byte {self.base + self.end} in frame {self.number}: {left} octets of it are there")
        if self._jump is not None:
            times = "once" if self._jumps == 1 else f"{self._jumps} times, first"
            self.info.notes.append(self._jump._replace(detail=f"{times} {self._jump.detail}"))
        return self.take()

    @property
    def number(self) -> int:
        """Number of the next frame."""
        return self._numbered + 1

    def _numbers(self, count: int) -> I64:
        """The next frame numbers, used up by this."""
        self._numbered += count
        return np.arange(self._numbered - count + 1, self._numbered + 1, dtype=np.int64)

    def _walk(self, final: bool) -> None:
        """Go over whole records from `start` on, damage included, and move it; `final`: nothing more will come."""
        while not self.over:
            if self._lost is not None and not self._seek(final):
                return
            if not self._advance(final):
                return

    def _compact(self) -> None:
        """Move what is unread to the front of the buffer."""
        view = memoryview(self.buf)
        view[: self.end - self.start] = view[self.start : self.end]
        self.base += self.start
        self.start, self.end, self._taken = 0, self.end - self.start, False

    def _add(
        self,
        number: I64,
        offset: I64,
        length: NDArray[Any],
        wire: NDArray[Any],
        ts: I64,
        linktype: int | U16,
        interface: I64 | None = None,
    ) -> None:
        """Keep a run of frames (columns as in Frames; any integer type for the lengths)."""
        if not len(offset):
            return
        cut = int(np.count_nonzero(length < wire))
        wire = np.maximum(length, wire)
        self._watch_clock(ts, number)
        self._held.append((number, offset, length, wire, ts, linktype))
        if interface is not None:
            self._interfaces.append(interface)
        info = self.info
        first, last = int(ts.min()), int(ts.max())
        info.ts_first = first if info.ts_first is None else min(first, info.ts_first)
        info.ts_last = last if info.ts_last is None else max(last, info.ts_last)
        info.frames += len(offset)
        info.cut_frames += cut

    def _watch_clock(self, ts: I64, number: I64) -> None:
        """Count how often the clock was set back."""
        before = ts[0] if self.last_ts is None else self.last_ts
        steps = np.diff(ts, prepend=np.int64(before))
        self.last_ts = int(ts[-1])
        if int(steps.min()) >= -JUMP:
            return
        back = np.flatnonzero(steps < -JUMP)
        if self._jump is None:
            i = int(back[0])
            detail = f"by {-int(steps[i]) / 1e9:.3f} s"
            self._jump = Anomaly(int(ts[i]), self.name, None, None, "clock_jump", detail, int(number[i]))
        self._jumps += len(back)

    def _note_damage(self, detail: str) -> Damage:
        damage = Damage(self.name, detail, self.number, self.last_ts)
        self.info.damage.append(damage)
        return damage

    def _fold_damage(self, what: str, frames: I64, ts: int | None) -> None:
        """Frames damaged all in the same way: one row, with their number; `ts` is the first one's time."""
        row, count = self._folded.get(what) or (Damage(self.name, "", int(frames[0]), ts), 0)
        if not count:
            self.info.damage.append(row)
        row.detail = f"{count + len(frames)} {what} (first: frame {row.frame})"
        self._folded[what] = row, count + len(frames)

    def _restart(self) -> bool:
        """Whether a damaged capture may be taken up once more (`limits.restarts`)."""
        self._restarts += 1
        if self._restarts > self.limits.restarts:
            self._give_up(f"more than {self.limits.restarts} unreadable places")
        return not self.over

    def _give_up(self, why: str) -> None:
        """Read no further."""
        self._note_damage(f"{why}: given up at byte {self.base + self.start}")
        self.start, self.over = self.end, True

    def _lose(self, why: str) -> None:
        """The record at `start` is damaged: look for the next behind it."""
        self._lost = (self.base + self.start, why)
        self._searched = 1
        self._reach = REACH

    def _seek(self, final: bool) -> bool:
        """Whether a place to read on was found.  A place is judged only when all octets needed for that are there."""
        assert self._lost is not None
        since, why = self._lost
        last = self._last_place(final)
        reach = REACH
        while (begin := self.start + self._searched) <= last:
            count = min(last - begin + 1, reach)
            place = self._first_place(begin, count, final)
            if place is not None:
                self._lost = None
                until = self.base + place
                if until - since <= REMEMBERED and self._rescue(self.start, place):
                    note = f"the next begins {until - since} octets on, which fits what else it says"
                else:
                    note = f"{until - since} octets skipped, reading goes on at byte {until}"
                self._note_damage(f"{why}, at byte {since}: {note}")
                self.start = place
                return True
            self._searched += count
            reach = min(2 * reach, PLAUSIBLE)
        if self.base + self.start + self._searched > since + REMEMBERED:
            self._pass_over(self.start + self._searched)
            self._searched = 0
        if final:
            self._lost = None
            self.start = self.end
            self._note_damage(f"{why}, at byte {since}: the last {self.base + self.end - since} octets cannot be read")
        return False

    def _pass_over(self, place: int) -> None:
        """Move `start` on; unless held frames lie before it, the octets up to there are let go."""
        self.start = place
        self._taken |= not self._held

    @abstractmethod
    def _advance(self, final: bool) -> bool:
        """Read believable records from `start` on; false when more octets are needed to go on."""

    @abstractmethod
    def _last_place(self, final: bool) -> int:
        """The last offset in the buffer that can be judged as the beginning of a record."""

    @abstractmethod
    def _first_place(self, begin: int, count: int, final: bool) -> int | None:
        """The first of `count` offsets from `begin` on where a believable record begins."""

    @abstractmethod
    def _rescue(self, place: int, following: int) -> bool:
        """Whether the damaged record at `place` makes sense as one that ends at `following`; if so its frame is kept."""
