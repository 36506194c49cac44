"""Captures of several points of one network: what more than one of them shows, and how far their clocks are apart.

Rules
1. Files of which one begins after another has ended are one tap's (a rotated capture), unless it shows handshakes that the
   other has shown already, or one of a connection of which it has shown data, or a third tap tells their clocks apart, or each
   shows the traffic of one host and not of the same.  Files that overlap are of several taps.
2. A connection is the same in two taps when its ends and its sequence numbers are; a lookup, when ends, identifier and question
   are.  It is told once: from the tap that was read first, unless another shows more of it.
3. The offset of two clocks is the median over everything both show.  A handshake and an exchange each pass a tap in both
   directions, so the way between the taps cancels out.  A drift is told when it is larger than the samples' own spread.
4. Nothing is taken off a time unless that is asked for.
"""

from collections.abc import Callable, Hashable
from statistics import median
from typing import NamedTuple

import numpy as np

from analyzer.limits import Limits
from analyzer.wire.streams import ip_text
from analyzer.wire.types import V4_PREFIX, Connection, Frames, Packets

_SECOND = 1_000_000_000
_SLACK = _SECOND
"""Rotated files may overlap by this much (buffers of several queues)."""
_HOUR = 3600 * _SECOND
_TOLD = 1_000_000
"""Offsets below this are not worth a word, in nanoseconds."""
_DRIFTED = 5_000_000
_SAMPLES = 12
_SHARE = 5
"""One of so many handshakes at a file's beginning that were shown before makes it another tap's: retransmissions are fewer."""
_NEAR = 1 << 26
"""Octets within which two beginnings are of one connection, where a tap has not seen its handshake."""

_STRAY = 50
"""One of so many packets may be of other hosts than the one whose traffic a tap shows: flooded, or forwarded."""
_GUESSES = 8
"""Packets looked at to guess whose traffic it is."""

Skip = tuple[str, int]
"""A connection not to be told: source and number of its TCP conversation."""


class Clock(NamedTuple):
    """How one tap's clock stands to the first tap's."""

    offset: int
    """Nanoseconds that it is ahead of the reference, at `at`."""
    at: int
    slope: float
    """Nanoseconds that it gains in one; 0.0 when no drift can be told."""
    samples: int
    spread: int
    """Median distance of the samples from the offset, nanoseconds."""
    source: str
    reference: str

    @property
    def odd(self) -> bool:
        """Whether it is worth a word."""
        return abs(self.offset) > max(_TOLD, 3 * self.spread)

    def true(self, ts: int) -> int:
        """What the reference's clock said at a time of this one."""
        return ts - self.offset - int((ts - self.at) * self.slope)

    def shift(self, frames: Frames) -> None:
        """Take the offset off the times of a batch."""
        frames.ts = frames.ts - self.offset - ((frames.ts - self.at) * self.slope).astype(frames.ts.dtype)

    def words(self, aligned: bool) -> str:
        """The offset in a sentence."""
        drift = f", drifting by {self.slope * 1e6:+.1f} ppm" if self.slope else ""
        said = f"{self.offset / 1e9:+.6f} s from {self.reference} (median of {self.samples} crossings seen in both"
        done = "was taken off (--align)" if aligned else "times were left as they are; --align takes it off"
        return f"clock is {said}, spread {self.spread / 1e6:.3f} ms{drift}); {done}"


def _handshakes(packets: Packets) -> list[int]:
    """A digest of each SYN and SYN-ACK: addresses, ports, sequence number."""
    rows = np.flatnonzero((packets.protocol == 6) & (packets.flags & 2 != 0))
    columns = (packets.src_hi, packets.src_lo, packets.dst_hi, packets.dst_lo, packets.src_port, packets.dst_port, packets.seq)
    return [hash(ends) for ends in zip(*(column[rows].tolist() for column in columns), strict=True)]


def _one_host(packets: Packets) -> tuple[int, int] | None:
    """The address that has part in whatever packets show, when it has so with several others; groups and loopback aside."""
    v4 = (packets.dst_hi == 0) & (packets.dst_lo >> 32 == V4_PREFIX >> 32)
    first, last = packets.dst_lo >> 24 & 255, packets.dst_lo & 255
    loopback = (packets.dst_hi == 0) & (packets.dst_lo == 1)
    apart = np.where(v4, (first == 127) | (first >= 224) | (last == 255), (packets.dst_hi >> 56 == 255) | loopback)
    rows = np.flatnonzero(~apart & v4)
    if not len(rows):
        rows = np.flatnonzero(~apart)
    src = packets.src_hi[rows], packets.src_lo[rows]
    dst = packets.dst_hi[rows], packets.dst_lo[rows]
    guesses = np.linspace(0, len(rows) - 1, _GUESSES, dtype=int).tolist() if len(rows) else []
    for hi, lo in sorted({(int(end[0][n]), int(end[1][n])) for n in guesses for end in (src, dst)}):
        sends = (src[0] == hi) & (src[1] == lo)
        takes = (dst[0] == hi) & (dst[1] == lo)
        others = {*np.unique(dst[1][sends]).tolist(), *np.unique(src[1][takes]).tolist()}
        if np.count_nonzero(sends | takes) * _STRAY >= len(rows) * (_STRAY - 1) and len(others) > 1:
            return hi, lo
    return None


class _Shown(NamedTuple):
    tap: int
    connection: Connection


class Taps:
    """Compares what the captures of one analysis show."""

    def __init__(self, limits: Limits, skip: frozenset[Skip] = frozenset(), clocks: dict[str, Clock] | None = None) -> None:
        self._limits = limits
        self._skip = skip
        self.clocks = clocks or {}
        """By source: what is taken off its times."""
        self._ends: list[int] = []
        """Tap -> time of its last frame."""
        self._first: list[str] = []
        """Tap -> its first file."""
        self._hosts: list[tuple[int, int] | None] = []
        """Tap -> the one host whose traffic its first packets show."""
        self._begun: list[set[int]] = []
        """Tap -> digests of the handshakes that it shows."""
        self._tap_of: dict[str, int] = {}
        self._shown: dict[tuple[str, int, str, int], list[_Shown]] = {}
        self._asked: dict[int, tuple[int, int | None, int | None]] = {}
        """Digest of a lookup -> tap, time of question and answer."""
        self._samples: dict[tuple[int, int], list[tuple[int, int]]] = {}
        """(tap, other tap) -> (time, how far the other is ahead)."""
        self.twice: dict[str, list[int]] = {}
        """Source -> connections and lookups that another tap shows as well."""
        self.full = False

    def tap(self, source: str, ts: int, first: Callable[[], Packets]) -> int:
        """The tap that a file belongs to, given the time of its first frame and a way to see its first packets."""
        found = self._tap_of.get(source)
        if found is None:
            over = [(end, tap) for tap, end in enumerate(self._ends) if end <= ts + _SLACK]
            if over:
                packets = first()
                opened = _handshakes(packets)
                apart = self._reopened(packets)
                known = [sum(mark in begun for mark in opened) for begun in self._begun]
                host = _one_host(packets)
                over = [(end, tap) for end, tap in over if host is None or self._hosts[tap] in (None, host)]
                over = [(end, tap) for end, tap in over if known[tap] < 2 or known[tap] * _SHARE < len(opened)]
                over = [(end, tap) for end, tap in over if self._can_go_on(tap, apart)]
            found = max(over)[1] if over else len(self._ends)
            if not over:
                self._ends.append(ts)
                self._first.append(source)
                self._begun.append(set())
            self._tap_of[source] = found
        self._ends[found] = max(self._ends[found], ts)
        return found

    def _reopened(self, packets: Packets) -> dict[int, list[int]]:
        """Connections that packets open and that taps have shown with data: by tap, how much later they are here."""
        found: dict[int, list[int]] = {}
        for row in np.flatnonzero((packets.protocol == 6) & (packets.flags & 18 == 2)).tolist():
            orig = ip_text(int(packets.src_hi[row]), int(packets.src_lo[row])), int(packets.src_port[row])
            resp = ip_text(int(packets.dst_hi[row]), int(packets.dst_lo[row])), int(packets.dst_port[row])
            first = (int(packets.seq[row]) + 1) % (1 << 32)
            for shown in self._shown.get(_key(orig, resp), ()):
                conn = shown.connection
                if conn.orig_seq == first and conn.ts_syn is not None and (conn.orig_bytes or conn.resp_bytes):
                    found.setdefault(shown.tap, []).append(int(packets.ts[row]) - conn.ts_syn)
        return found

    def _can_go_on(self, tap: int, apart: dict[int, list[int]]) -> bool:
        """Whether a file can be a tap's next one, given what it opens again: to the others, its clock has to be that tap's."""
        if tap in apart:
            return False
        for other, found in apart.items():
            samples = self._samples.get((other, tap)) or [(at, -d) for at, d in self._samples.get((tap, other), ())]
            usual = median(d for _, d in samples) if samples else 0
            if abs(median(found) - usual) > _SLACK:
                return False
        return True

    def saw(self, source: str, packets: Packets, until: int) -> None:
        """A batch of a file has been read; `until`: time of its latest frame, whatever that was."""
        tap = self._tap_of[source]
        self._ends[tap] = max(self._ends[tap], until)
        if tap == len(self._hosts):
            self._hosts.append(_one_host(packets))
        if len(self._begun[tap]) < self._limits.connections:
            self._begun[tap].update(_handshakes(packets))

    def is_new(self, conn: Connection) -> bool:
        """Whether a connection is to be told; False when another tap has shown the whole of it."""
        if (conn.source, conn.tcp_stream) in self._skip:
            return False
        tap = self._tap_of[conn.source]
        key = _key((conn.orig_ip, conn.orig_port), (conn.resp_ip, conn.resp_port))
        shown = self._shown.setdefault(key, []) if len(self._shown) < self._limits.connections else self._shown.get(key, [])
        self.full |= key not in self._shown
        new = True
        for other in shown:
            if other.tap != tap and _same(other.connection, conn):
                self._sample(other.tap, tap, conn.ts, _apart(other.connection, conn))
                self.twice.setdefault(conn.source, [0, 0])[0] += 1
                new = new and not _whole(other.connection)
                break
        if new:
            shown.append(_Shown(tap, conn))
        return new

    def is_first(self, source: str, question: Hashable, ts: int | None, ts_reply: int | None) -> bool:
        """Whether a lookup is to be told; `question`: its ends, identifier, name and type."""
        tap = self._tap_of.get(source, 0)
        digest = hash(question)
        other = self._asked.get(digest)
        if other is not None and other[0] != tap:
            at, answered = other[1], other[2]
            apart = [
                mine - theirs for mine, theirs in ((ts, at), (ts_reply, answered)) if mine is not None and theirs is not None
            ]
            if apart and abs(apart[0]) < _HOUR * 24:
                self.twice.setdefault(source, [0, 0])[1] += 1
                if len(apart) == 2:
                    self._sample(other[0], tap, ts or 0, sum(apart) // 2)
                return False
        elif len(self._asked) < self._limits.lookups:
            self._asked[digest] = (tap, ts, ts_reply)
        else:
            self.full = True
        return True

    def _sample(self, tap: int, other: int, ts: int, apart: int) -> None:
        samples = self._samples.setdefault((tap, other), [])
        if len(samples) < self._limits.lookups // 16:
            samples.append((ts, apart))

    def worse(self) -> frozenset[Skip]:
        """Of connections that several taps show in part, the copies that show less: to be left out when all is read again."""
        found = set(self._skip)
        for shown in self._shown.values():
            for n, one in enumerate(shown):
                for other in shown[:n]:
                    if other.tap != one.tap and _same(other.connection, one.connection):
                        drop = other if _shows(one.connection) > _shows(other.connection) else one
                        found.add((drop.connection.source, drop.connection.tcp_stream))
        return frozenset(found)

    def measured(self) -> dict[str, Clock]:
        """By source: its tap's clock, where it shows anything that is in the first tap too (or in one that is tied to it)."""
        edges = sorted(self._samples.items(), key=lambda item: -len(item[1]))
        tied: dict[int, Clock] = {}
        for start in range(len(self._ends)):
            if start in tied:
                continue
            tied[start] = Clock(0, 0, 0.0, 0, 0, self._first[start], self._first[start])
            growing = True
            while growing:
                growing = False
                for (a, b), samples in edges:
                    if (a in tied) != (b in tied):
                        base, new, sign = (a, b, 1) if a in tied else (b, a, -1)
                        tied[new] = _clock([(t, sign * d) for t, d in samples], tied[base], self._first[new])
                        growing = True
                        break
        return {source: tied[tap] for source, tap in self._tap_of.items()}


def _key(one: tuple[str, int], other: tuple[str, int]) -> tuple[str, int, str, int]:
    """A connection's ends in an order that every tap agrees on."""
    return (*one, *other) if one <= other else (*other, *one)


def _clock(samples: list[tuple[int, int]], base: Clock, source: str) -> Clock:
    samples.sort()
    offset = int(median(apart for _, apart in samples))
    spread = int(median(abs(apart - offset) for _, apart in samples))
    at = samples[len(samples) // 2][0]
    slope = 0.0
    if len(samples) >= _SAMPLES:
        third = len(samples) // 3
        early, late = samples[:third], samples[-third:]
        gained = median(apart for _, apart in late) - median(apart for _, apart in early)
        passed = median(ts for ts, _ in late) - median(ts for ts, _ in early)
        scatter = median(abs(apart - median(d for _, d in early)) for _, apart in early)
        if passed > 0 and abs(gained) > max(_DRIFTED, 4 * scatter):
            slope = gained / passed
            at = int(median(ts for ts, _ in samples))
    return Clock(base.offset + offset, at, base.slope + slope, len(samples), spread, source, base.reference)


def _same(a: Connection, b: Connection) -> bool:
    """Whether two taps' connections between the same ends are one: by their sequence numbers."""
    if a.start == b.start == "handshake":
        return a.orig_seq == b.orig_seq and a.orig_ip == b.orig_ip and a.orig_port == b.orig_port
    straight = (a.orig_ip, a.orig_port) == (b.orig_ip, b.orig_port)
    pairs = [(a.orig_seq, b.orig_seq if straight else b.resp_seq), (a.resp_seq, b.resp_seq if straight else b.orig_seq)]
    known = [(x, y) for x, y in pairs if x >= 0 and y >= 0]
    return bool(known) and all(min((y - x) % (1 << 32), (x - y) % (1 << 32)) <= _NEAR for x, y in known)


def _apart(a: Connection, b: Connection) -> int:
    """How far `b`'s clock is ahead: SYN and SYN-ACK cross in opposite directions."""
    if a.ts_syn is not None and b.ts_syn is not None:
        if a.ts_synack is not None and b.ts_synack is not None:
            return (b.ts_syn - a.ts_syn + b.ts_synack - a.ts_synack) // 2
        return b.ts_syn - a.ts_syn
    return b.ts - a.ts


def _whole(conn: Connection) -> bool:
    return conn.start == "handshake" and conn.end in ("fin", "reset") and not conn.gap_bytes


def _shows(conn: Connection) -> tuple[int, bool, bool, int]:
    over = conn.end in ("fin", "reset")
    return (conn.orig_bytes + conn.resp_bytes, conn.start == "handshake", over, -conn.gap_bytes)
