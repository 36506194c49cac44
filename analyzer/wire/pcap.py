"""Captures that are one record after the other: pcap (draft-ietf-opsawg-pcap) and snoop (RFC 1761).

1. A record's length field alone leads to the next one, so lengths are followed in one tight loop and all
   else is looked at afterwards, column by column.
2. What is written is believed as long as the records after it make sense: longer than the snap length,
   shorter on the wire than captured, fractions of more than a second, times out of order all occur.
3. Where it makes no sense, the capture is damaged: reading goes on where two plausible headers in a row
   (or one that ends with the file) are found.
"""

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.wire.types import I64, SourceInfo
from analyzer.wire.walker import PLAUSIBLE, Walker

FILE_HEADER = 24
SNOOP_HEADER = 16
_YEAR = 365 * 86_400
_PADDING = 4096
"""Most octets a snoop record has behind its data."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file writes its records: header fields by their 32-bit word."""

    kind: str
    order: str
    """`<` or `>`."""
    linktype: int
    unit: int
    """Nanoseconds per unit of the fraction."""
    header: int = 16
    """Octets of a record's header."""
    sec: int = 0
    frac: int = 1
    length: int = 2
    wire: int = 3
    step: int = 2
    """The word that leads to the next record ..."""
    plus: int = 16
    """... together with so many octets."""


_PCAP = {
    # magic: nanoseconds per unit, octets of a record's header, octets of file header past the usual 24
    0xA1B2C3D4: (1000, 16, 0),
    0xA1B23C4D: (1, 16, 0),
    0xA1B2CD34: (1000, 24, 0),  # Kuznetsov's patch: interface index, protocol, packet type follow
    0x1C0001AC: (1, 16, 4),  # IXIA, hardware and software: the size of all records follows the header
    0x1C0001AB: (1, 16, 4),
}
PCAP_MAGICS = [magic.to_bytes(4, order) for magic in _PCAP for order in ("little", "big")]
SNOOP_MAGIC = b"snoop\0\0\0"
_VERSIONS = (b"\2\0\4\0", b"\0\2\0\4")
_MAGIC_WORDS = [*_PCAP, *(int.from_bytes(magic.to_bytes(4, "little"), "big") for magic in _PCAP)]
_SNOOP_LINKTYPE = {0: 1, 2: 6, 4: 1, 8: 10, 26: 226}
"""RFC 1761 datalink types that have a LINKTYPE_: 802.3, 802.5, Ethernet, FDDI; 26 is Solaris' IPNET."""


def pcap_layout(header: bytes) -> tuple[Layout, int] | None:
    """The layout a pcap file header announces, and the octets it takes; None when it is none.

    The link type is the low 26 bits; above them are the FCS length and its flag, which nobody here needs:
    whatever follows an IP packet in a frame is left alone by its own length.
    """
    if len(header) < FILE_HEADER:
        return None
    for order in "<>":
        magic, network = struct.unpack(order + "I16xI", header[:FILE_HEADER])
        if magic in _PCAP:
            unit, size, more = _PCAP[magic]
            linktype = network & 0x03FF_FFFF
            return Layout("pcap", order, min(linktype, 0xFFFF), unit, header=size, plus=size), FILE_HEADER + more
    return None


def snoop_layout(header: bytes) -> Layout | int:
    """The layout of a snoop file, or the datalink type that is not known here."""
    datalink = int.from_bytes(header[12:16], "big")
    if datalink not in _SNOOP_LINKTYPE:
        return datalink
    return Layout("snoop", ">", _SNOOP_LINKTYPE[datalink], 1000, 24, sec=4, frac=5, length=1, wire=0, step=2, plus=0)


def _chain(buf: bytearray, pos: int, end: int, layout: Layout) -> tuple[list[int], int]:
    """Where the records begin whose headers are whole, and where the next would."""
    unpack = struct.Struct(f"{layout.order}{4 * layout.step}xI").unpack_from
    last, plus, least = end - layout.header, layout.plus, layout.header - layout.plus
    found: list[int] = []
    append = found.append
    if least <= 0:  # pcap: a step is never less than a header
        while pos <= last:
            append(pos)
            (n,) = unpack(buf, pos)
            pos += n + plus
        return found, pos
    while pos <= last:
        append(pos)
        (n,) = unpack(buf, pos)
        pos += max(n, least) + plus
    return found, pos


_Words = NDArray[np.uint32]

_FRACTION, _LONGER, _LARGE, _JUMP, _IMPOSSIBLE = 1, 2, 4, 8, 16
"""What can be odd about a record's header: fraction of a second or more; captured longer than it was; large; far
in time from the one before; no header at all."""


class RecordWalker(Walker):
    """Walks pcap and snoop records, from the first one on (the file header is the caller's)."""

    def __init__(self, name: str, limits: Limits, info: SourceInfo, layout: Layout, base: int) -> None:
        super().__init__(name, limits, info)
        self.kind = layout.kind
        self.layout = layout
        self.base = base
        self._sec: int | None = None
        """Time of the last record, whole seconds."""
        self._first_sec: int | None = None
        self._unsure = layout.header == 24 and layout.kind == "pcap"

    def _walk(self, final: bool) -> None:
        if not self._unsure or self._measure_header(final):
            super()._walk(final)

    def _measure_header(self, final: bool) -> bool:
        """Whether the header's size is known: with magic a1b2cd34 it is 24 octets, or 28 with a second patch applied."""
        if self.end - self.start < 2 * PLAUSIBLE and not final:
            return False
        self._unsure = False
        for size in (24, 28):
            layout = replace(self.layout, header=size, plus=size)
            found, stop = _chain(self.buf, self.start, self.end, layout)
            fields = self._gather(np.array(found[:8], np.int64))
            if stop == self.end or (len(found) > 1 and not self._oddities(fields, None).any()):
                self.layout = layout
                break
        return True

    def _gather(self, at: I64) -> _Words:
        """The header words of the records at these offsets, a row each."""
        words = self.layout.header // 4
        size = len(self.buf) - 4 * words + 1
        rows: NDArray[Any] = np.ndarray((size,), f"V{4 * words}", self.buf, strides=(1,))[at]
        return rows.view(f"{self.layout.order}u4").reshape(-1, words)

    def _advance(self, final: bool) -> bool:
        limit = min(self.end, self.start + self._reach)
        limited, final = limit < self.end, final and limit == self.end
        found, stop = _chain(self.buf, self.start, limit, self.layout)
        if not found:
            return limited
        at = np.array(found, np.int64)
        fields = self._gather(at)
        whole = len(found) if stop <= self.end else len(found) - 1
        good, damaged = whole, False
        if self._suspicious(fields):
            good, damaged = self._believe(fields, whole, final)
        if good:
            self._emit(at[:good], fields[:good])
        self.start = found[good] if good < len(found) else stop
        self._reach = min(2 * self._reach, 1 << 40)
        return self._damaged(fields[good], final) if damaged else limited

    def _emit(self, at: I64, fields: _Words) -> None:
        layout = self.layout
        ts = fields[:, layout.sec].astype(np.int64) * 1_000_000_000 + fields[:, layout.frac].astype(np.int64) * layout.unit
        self._sec = int(fields[-1, layout.sec])
        if self._first_sec is None:
            self._first_sec = int(fields[0, layout.sec])
        self._add(
            self._numbers(len(at)), at + layout.header, fields[:, layout.length], fields[:, layout.wire], ts, layout.linktype
        )

    def _suspicious(self, fields: _Words) -> bool:
        """Whether any header deserves a second look."""
        layout = self.layout
        sec = fields[:, layout.sec].astype(np.int64)
        length = fields[:, layout.length]
        before = sec[0] if self._sec is None else self._sec
        return bool(
            length.max() > PLAUSIBLE
            or (length > fields[:, layout.wire]).any()
            or fields[:, layout.frac].max() >= 1_000_000_000 // layout.unit
            or sec.min() == 0
            or np.abs(np.diff(sec, prepend=np.int64(before))).max() > _YEAR
            or (layout.kind == "snoop" and not self._snoop_sane(fields).all())
        )

    def _snoop_sane(self, fields: _Words) -> NDArray[np.bool_]:
        """RFC 1761: the record length covers header, data and some padding."""
        layout = self.layout
        room = fields[:, layout.step].astype(np.int64) - layout.header - fields[:, layout.length]
        return (room >= 0) & (room < _PADDING)

    def _oddities(self, fields: _Words, before: int | None) -> NDArray[np.uint8]:
        """What is odd about each header, as bits."""
        layout = self.layout
        sec = fields[:, layout.sec].astype(np.int64)
        length, wire, frac = fields[:, layout.length], fields[:, layout.wire], fields[:, layout.frac]
        first = (sec[0] if len(sec) else 0) if before is None else before
        jump = np.abs(np.diff(sec, prepend=np.int64(first))) > _YEAR
        impossible = length > self.limits.record_bytes
        impossible |= (sec == 0) & (frac == 0) & (length == 0) & (wire == 0)  # zeros, not a record
        impossible |= (length == 0) & (wire == 0) & np.isin(sec, _MAGIC_WORDS)  # the header of another file
        # octets missing before it: fraction taken for seconds, lengths moved on by one word, and still in step
        impossible |= jump & ((length > wire) | (wire > self.limits.record_bytes))
        if layout.kind == "snoop":
            impossible |= ~self._snoop_sane(fields)
        odd = (frac >= 1_000_000_000 // layout.unit) * np.uint8(_FRACTION)
        odd |= (length > wire) * np.uint8(_LONGER)
        odd |= (length > PLAUSIBLE) * np.uint8(_LARGE)
        odd |= jump * np.uint8(_JUMP)
        odd |= impossible * np.uint8(_IMPOSSIBLE)
        return odd

    def _believe(self, fields: _Words, whole: int, final: bool) -> tuple[int, bool]:
        """How many of the records are to be believed, and whether damage follows them (else: more octets are needed).

        An odd header is believed when the two after it are odd in no further way: a writer that gets a field
        wrong does so throughout, while octets that are no header are odd in every way.
        """
        odd = self._oddities(fields, self._sec)
        ahead = np.concatenate([odd, np.zeros(2, np.uint8)])
        wrong = ((ahead[1:-1] | ahead[2:]) & ~odd) != 0
        wrong |= (odd & _IMPOSSIBLE) != 0
        if final:
            wrong[whole:] |= odd[whole:] != 0  # the record after which the file ends too early
        wrong &= odd != 0
        unsure = np.zeros(len(odd), np.bool_)
        if not final:
            unsure[-2:] = (odd[-2:] != 0) & ~wrong[-2:]
        stop = wrong | unsure
        first = int(stop.argmax()) if stop.any() else len(odd)
        if first < whole or (first == whole and first < len(odd) and wrong[first]):
            return first, bool(wrong[first])
        return whole, False

    def _damaged(self, header: _Words, final: bool) -> bool:
        """At `start` is no believable record: look for the next one, unless another file was appended here."""
        if self.layout.kind == "pcap":
            if self.end - self.start < FILE_HEADER and not final:
                return False
            head = bytes(self.buf[self.start : min(self.end, self.start + FILE_HEADER)])
            appended = pcap_layout(head)
            if appended is not None and head[4:8] in _VERSIONS:
                self.layout, size = appended
                self.start += size
                self._sec = None
                return self._restart()
        if not self._restart():
            return False
        length = int(header[self.layout.length])
        if length > PLAUSIBLE:
            why = f"frame {self.number} claims {length} octets"
        else:
            why = f"no record where frame {self.number} should begin"
        self._lose(why)
        return True

    def _last_place(self, final: bool) -> int:
        header = self.layout.header
        return self.end - header if final else self.end - 2 * header - PLAUSIBLE - _PADDING

    def _rescue(self, place: int, following: int) -> bool:
        """A record whose length is wrong but which is as long as it was on the wire."""
        layout = self.layout
        fields = self._gather(np.array([place], np.int64))
        wire = int(fields[0, layout.wire])
        if layout.kind != "pcap" or layout.header + wire != following - place:
            return False
        fields = fields.copy()
        fields[0, layout.length] = wire
        if self._oddities(fields, self._sec).any():
            return False
        self._emit(np.array([place], np.int64), fields)
        return True

    def _first_place(self, begin: int, count: int, final: bool) -> int | None:
        """The first of `count` places from `begin` on where a record begins, by its header and the next."""
        layout = self.layout
        length: _Words = np.ndarray((count,), f"{layout.order}u4", self.buf, offset=begin + 4 * layout.length, strides=(1,))
        at = np.flatnonzero(length - np.uint32(1) < PLAUSIBLE) + begin
        fields = self._gather(at)
        sane = self._strict(fields)
        if self._sec is not None and self._first_sec is not None:
            sec = fields[:, layout.sec].astype(np.int64)
            sane &= (np.abs(sec - self._sec) <= _YEAR) | (np.abs(sec - self._first_sec) <= _YEAR)
        at, fields = at[sane], fields[sane]
        after = at + fields[:, layout.step] + layout.plus
        follows = after <= self.end - layout.header
        ends = (after <= self.end) & ~follows if final else np.zeros(len(at), np.bool_)
        at, fields, after, ends = at[follows | ends], fields[follows | ends], after[follows | ends], ends[follows | ends]
        heads = self._gather(np.where(ends, at, after))
        near = np.abs(heads[:, layout.sec].astype(np.int64) - fields[:, layout.sec]) <= _YEAR
        good = np.flatnonzero(ends | (self._strict(heads) & near))
        return int(at[good[0]]) if len(good) else None

    def _strict(self, fields: _Words) -> NDArray[np.bool_]:
        """Headers without any oddity."""
        layout = self.layout
        length, wire = fields[:, layout.length], fields[:, layout.wire]
        sane = (length <= wire) & (wire <= PLAUSIBLE) & (fields[:, layout.frac] < 1_000_000_000 // layout.unit)
        if layout.kind == "snoop":
            sane &= self._snoop_sane(fields)
        return sane
