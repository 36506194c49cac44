"""pcapng (draft-ietf-opsawg-pcapng): blocks, each with its length before and behind it.

1. Lengths are followed in one tight loop; types, trailers and packet fields are looked at afterwards, column
   by column.  Only blocks that change how packets are read (sections, interfaces) or hold secrets are met singly.
2. Each section has its own byte order and interfaces; each interface its link type and clock.
3. A block is believed when both its lengths agree and it is long enough for its type.  Otherwise the capture
   is damaged there: reading goes on at the next place where a whole block of a known type stands.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import I64, U64, Interface, SourceInfo
from analyzer.wire.walker import PLAUSIBLE, Walker

SECTION = 0x0A0D0D0A
_INTERFACE, _OBSOLETE, _SIMPLE, _ENHANCED, _SECRETS = 1, 2, 3, 6, 10
_LEAST = {SECTION: 28, _INTERFACE: 20, _OBSOLETE: 32, _SIMPLE: 16, 4: 12, 5: 24, _ENHANCED: 32, 9: 12, _SECRETS: 20}
"""Fewest octets of a block by type (4 name resolution, 5 statistics, 9 systemd journal)."""
_NUMBERED = (9, 0x0BAD, 0x4000_0BAD)
"""Blocks without a packet that Wireshark numbers as frames all the same: systemd journal and custom blocks."""
_ORDER_MAGIC = 0x1A2B3C4D
_TLS_KEY_LOG = 0x544C534B
_IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 2, 9, 14
_OVERHEAD = 1 << 17
"""Octets a block may have beyond its longest frame, for its options."""
_FEW_OPTIONS = 256
"""Octets of options that raise no doubt about a block that was cut."""
_LAST = (1 << 63) - 1
_LAST_SECOND = 9_223_372_035


def interface(body: bytes, order: str) -> Interface:
    """The body of an Interface Description Block (section 4.2)."""
    linktype, snaplen = struct.unpack_from(order + "H2xI", body)
    resolution, offset, name, at = 6, 0, b"", 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == 0:
            break
        if code == _IF_NAME:
            name = value
        elif code == _IF_TSRESOL and len(value) >= 1:
            resolution = value[0]
        elif code == _IF_TSOFFSET and len(value) >= 8:
            (offset,) = struct.unpack_from(order + "q", value)
        at += 4 + size + -size % 4
    return Interface(linktype, snaplen, resolution, offset, name)


def nanoseconds(ticks: U64, resolution: int) -> I64:
    """Times in an interface's units as nanoseconds; what 64 bits cannot tell (after the year 2262) is held at the end."""
    power = resolution & 0x7F
    if not resolution & 0x80:
        if power <= 9:
            scale = 10 ** (9 - power)
            ns = np.minimum(ticks, np.uint64(_LAST // scale)) * np.uint64(scale)
        else:
            ns = ticks // np.uint64(10 ** min(power - 9, 19))
    elif power > 63:
        ns = np.zeros_like(ticks)
    else:
        whole = np.minimum(ticks >> np.uint64(power), np.uint64(_LAST_SECOND)) * np.uint64(10**9)
        ns = whole + _binary_fraction(ticks & np.uint64((1 << power) - 1), power)
    return np.minimum(ns, np.uint64(_LAST)).astype(np.int64)


def _binary_fraction(fraction: U64, power: int) -> U64:
    """floor(fraction * 10^9 / 2^power) without overflow."""
    billion = np.uint64(10**9)
    if power <= 32:
        return (fraction * billion) >> np.uint64(power)
    low = ((fraction & np.uint64(0xFFFF_FFFF)) * billion) >> np.uint64(32)
    return ((fraction >> np.uint64(32)) * billion + low) >> np.uint64(power - 32)


def _chain(buf: bytearray, pos: int, end: int, limit: int, order: str) -> tuple[list[int], int]:
    """Where whole blocks begin (the first of them before `limit`), and where the next one would."""
    unpack = struct.Struct(order + "4xI").unpack_from
    found: list[int] = []
    append = found.append
    last = min(end - 12, limit)
    while pos <= last:
        (n,) = unpack(buf, pos)
        if n < 12:
            break
        append(pos)
        pos += n
    if pos > end:
        pos = found.pop()
    return found, pos


_Words = NDArray[np.uint32]


class BlockWalker(Walker):
    """Walks pcapng blocks, from the first Section Header Block on."""

    kind = "pcapng"

    def __init__(self, name: str, limits: Limits, info: SourceInfo) -> None:
        super().__init__(name, limits, info)
        self.order = "<"
        self.interfaces: list[Interface] = []
        """Of this section (while a run of blocks is looked at: and of the sections before it in the run)."""
        self._forgotten = 0
        """Interfaces of earlier sections."""
        self._secrets = 0

    def _advance(self, final: bool) -> bool:
        limit = min(self.end, self.start + self._reach)
        found, stop = _chain(self.buf, self.start, self.end, limit, self.order)
        good = len(found)
        if found:
            at = np.array(found, np.int64)
            heads = self._words(at, 2)
            sound = self._soundness(at, heads, self.order)
            good = good if sound.all() else int(sound.argmin())
            if good:
                self._use(at[:good], heads[:good])
                if self.over:
                    return False
        self._reach = min(2 * self._reach, 1 << 40)
        if good < len(found):
            self.start = found[good]
            return self._trouble(final, whole=True)
        self.start = stop
        if stop > limit:
            return True
        return self._trouble(final, whole=False)

    def _words(self, at: I64, count: int, plus: int = 0, order: str = "") -> _Words:
        """`count` 32-bit words `plus` octets into the blocks at these offsets, a row each."""
        size = len(self.buf) - 4 * count - plus + 1
        rows: NDArray[Any] = np.ndarray((size,), f"V{4 * count}", self.buf, offset=plus, strides=(1,))[at]
        return rows.view((order or self.order) + "u4").reshape(-1, count)

    def _soundness(self, at: I64, heads: _Words, order: str) -> NDArray[np.bool_]:
        """Which of these whole blocks are sound (rule 3)."""
        kind, length = heads[:, 0], heads[:, 1]
        trailer = self._words(at + length - 4, 1, order=order)[:, 0]
        sound: NDArray[np.bool_] = (trailer == length) & (length & 3 == 0)
        if (kind == _ENHANCED).all():
            return sound & (length >= _LEAST[_ENHANCED])
        for other, least in _LEAST.items():
            sound &= (kind != other) | (length >= least)
        sections = np.flatnonzero(kind == SECTION)
        sound[sections] &= self._words(at[sections], 1, plus=8, order=order)[:, 0] == _ORDER_MAGIC
        return sound

    def _use(self, at: I64, heads: _Words) -> None:
        """Read a run of sound blocks: first those that change the reading, then all packets at once."""
        kind, length = heads[:, 0], heads[:, 1].astype(np.int64)
        is_packet = (kind == _ENHANCED) | (kind == _SIMPLE) | (kind == _OBSOLETE)
        numbered = is_packet
        first: I64 | int = 0
        known: I64 | int = len(self.interfaces)
        if not is_packet.all():
            starts = kind == SECTION
            known = known + np.cumsum(kind == _INTERFACE)
            first = np.maximum.accumulate(np.where(starts, known, 0))
            for i in np.flatnonzero((kind == _INTERFACE) | (kind == _SECRETS)).tolist():
                body = bytes(self.buf[int(at[i]) + 8 : int(at[i]) + int(length[i]) - 4])
                if kind[i] == _SECRETS:
                    self._keep_secrets(body)
                elif len(self.interfaces) < self.limits.interfaces:
                    self.interfaces.append(interface(body, self.order))
                    if self.info.interfaces is not None:
                        self.info.interfaces.append(self.interfaces[-1])
                else:
                    self.start = int(at[i])
                    self._give_up(f"more than {self.limits.interfaces} interfaces")
                    return
            last = int(first[-1])
            numbered = is_packet | np.isin(kind, _NUMBERED)
            first, known = first[is_packet], known[is_packet]
            at, kind, length = at[is_packet], kind[is_packet], length[is_packet]
        else:
            last = 0
        numbers = self._numbers(int(np.count_nonzero(numbered)))[is_packet[numbered]]
        if len(at):
            self._packets(numbers, at, kind, length, first, known)
        del self.interfaces[:last]
        self._forgotten += last

    def _packets(self, number: I64, at: I64, kind: _Words, length: I64, first: I64 | int, known: I64 | int) -> None:
        """Read packet blocks: Enhanced (4.3), Simple (4.4), Packet (4.5 in older drafts).

        `first` and `known` tell which of `interfaces` belong to the section each block stands in.
        """
        fields = self._words(at, 5, plus=8)
        which = fields[:, 0].astype(np.int64)
        ticks = (fields[:, 1].astype(np.uint64) << np.uint64(32)) | fields[:, 2]
        captured, wire = fields[:, 3].astype(np.int64), fields[:, 4].astype(np.int64)
        data, room = at + 28, length - 32
        simple = kind == _SIMPLE
        any_simple = bool(simple.any())
        if any_simple or not (kind == _ENHANCED).all():
            half = which & 0xFFFF if self.order == "<" else which >> 16
            which = np.where(simple, 0, np.where(kind == _OBSOLETE, half, which))
            data = np.where(simple, at + 12, data)
            room = np.where(simple, length - 16, room)
            wire = np.where(simple, fields[:, 0], wire)
            captured = np.where(simple, np.minimum(wire, room), captured)
        which = which + first
        declared = which < known
        if not declared.all():
            self._fold_damage("packets of an interface that was not declared, skipped", number[~declared], None)
            data, room, simple, ticks = data[declared], room[declared], simple[declared], ticks[declared]
            captured, wire, which, number = captured[declared], wire[declared], which[declared], number[declared]
            if not len(data):
                return
        ts = self._times(ticks, which)
        if any_simple:
            snaplen = np.array([i.snaplen for i in self.interfaces], np.int64)[which]
            captured = np.where(simple & (snaplen > 0), np.minimum(captured, snaplen), captured)
            ts = self._untimed(ts, simple)
        if (captured > room).any():
            long = captured > room
            self._fold_damage("packets longer than their blocks, cut to those", number[long], int(ts[long][0]))
            captured = np.minimum(captured, room)
        linktypes = np.array([i.linktype for i in self.interfaces], np.uint16)
        met = None if self.info.interfaces is None else which + self._forgotten
        self._add(number, data, captured, wire, ts, linktypes[which], met)

    def _times(self, ticks: U64, which: I64) -> I64:
        low = int(which.min())
        used = self.interfaces[low : int(which.max()) + 1]
        resolutions = {i.resolution for i in used}
        if len(resolutions) == 1:
            ts = nanoseconds(ticks, resolutions.pop())
        else:
            ts = np.zeros(len(ticks), np.int64)
            of = np.array([i.resolution for i in used])[which - low]
            for resolution in resolutions:
                mine = of == resolution
                ts[mine] = nanoseconds(ticks[mine], resolution)
        if any(i.offset for i in used):
            offset = np.array([max(-_LAST_SECOND, min(i.offset, _LAST_SECOND)) for i in used], np.int64)[which - low]
            offset *= 1_000_000_000
            ts = np.minimum(ts, _LAST - np.maximum(offset, 0)) + offset
        return ts

    def _untimed(self, ts: I64, simple: NDArray[np.bool_]) -> I64:
        """A Simple Packet Block has no time: it gets that of the packet before it."""
        source = np.maximum.accumulate(np.where(simple, -1, np.arange(len(ts))))
        return np.where(source < 0, self.last_ts or 0, ts[source])

    def _keep_secrets(self, body: bytes) -> None:
        """Decryption Secrets Block (4.7): key log lines for the TLS layer."""
        kind, size = struct.unpack_from(self.order + "II", body)
        if kind != _TLS_KEY_LOG:
            return
        secrets = body[8 : 8 + size]
        if self._secrets + len(secrets) > self.limits.secrets_bytes:
            if self._secrets <= self.limits.secrets_bytes:
                detail = f"more than {self.limits.secrets_bytes} octets of TLS secrets"
                self.info.notes.append(Anomaly(self.last_ts, self.name, None, None, "secrets_dropped", detail, None))
            self._secrets = self.limits.secrets_bytes + 1
            return
        self._secrets += len(secrets)
        self.info.secrets.append(secrets)

    def _trouble(self, final: bool, whole: bool) -> bool:
        """At `start` is no sound block: a section in the other byte order, an unfinished block, or damage."""
        left = self.end - self.start
        if left < 12:
            return False
        kind, length, magic = struct.unpack_from(self.order + "III", self.buf, self.start)
        if kind == SECTION and magic == int.from_bytes(_ORDER_MAGIC.to_bytes(4, "little"), "big"):
            self.order = _other(self.order)
            return self._restart()
        unfinished = not whole and left < length <= self.limits.record_bytes + _OVERHEAD
        if unfinished and (not final or self._looks_cut(kind, length)):
            return False
        if not self._restart():
            return False
        if whole:
            why = f"block with two lengths that disagree, or too short for its type {kind:#x}"
        else:
            why = f"block of {length} octets"
        self._lose(why)
        return True

    def _looks_cut(self, kind: int, length: int) -> bool:
        """Whether the unfinished last block makes sense, so that the file was cut rather than damaged."""
        if kind not in _LEAST or length % 4 or length > PLAUSIBLE + _OVERHEAD:
            return False
        if kind != _ENHANCED or self.end - self.start < 28:
            return True
        captured, wire = struct.unpack_from(self.order + "20xII", self.buf, self.start)
        return bool(captured <= wire and 0 <= length - 32 - captured < _FEW_OPTIONS)

    def _last_place(self, final: bool) -> int:
        return self.end - 12 if final else self.end - PLAUSIBLE - _OVERHEAD

    def _rescue(self, place: int, following: int) -> bool:
        """An Enhanced Packet Block whose lengths are wrong but whose packet fits."""
        if following - place < _LEAST[_ENHANCED]:
            return False
        at = np.array([place], np.int64)
        kind, _, which, *_, captured, wire = self._words(at, 7)[0].tolist()
        if kind != _ENHANCED or captured > wire or 32 + captured + -captured % 4 != following - place:
            return False
        if which >= len(self.interfaces):
            return False
        self._packets(self._numbers(1), at, np.array([kind], np.uint32), np.array([following - place]), 0, len(self.interfaces))
        return True

    def _first_place(self, begin: int, count: int, final: bool) -> int | None:
        """The first of `count` places from `begin` on where a whole block of a known type stands."""
        kind: _Words = np.ndarray((count,), self.order + "u4", self.buf, offset=begin, strides=(1,))
        own = np.flatnonzero((kind - np.uint32(1) < _SECRETS) | (kind == SECTION)) + begin
        swapped = np.flatnonzero(kind == SECTION) + begin
        places = [self._whole_and_sound(own, self.order), self._whole_and_sound(swapped, _other(self.order))]
        return min((int(at[0]) for at in places if len(at)), default=None)

    def _whole_and_sound(self, at: I64, order: str) -> I64:
        """Those of the places where a believable block of a known type begins and ends before the octets do."""
        heads = self._words(at, 2, order=order)
        length = heads[:, 1]
        whole = (length >= 12) & (length <= PLAUSIBLE + _OVERHEAD) & (at + length <= self.end)
        whole &= np.isin(heads[:, 0], list(_LEAST))
        at, heads = at[whole], heads[whole]
        return at[self._soundness(at, heads, order)]


def _other(order: str) -> str:
    return ">" if order == "<" else "<"
