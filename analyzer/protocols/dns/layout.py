"""Where things are in DNS messages, for many at once: one step of numpy per label, not one of Python per message.

Only the common shape is recognised here (one question, its name not compressed, at most one answer record, at most an
OPT record behind); every other message is for `message.read`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyzer.wire.types import I64, U8, U16

HEADER = 12
"""Octets of the header (RFC 1035 4.1.1)."""
_RECORD = 12
"""Octets of a record before its RDATA, its owner being a pointer (RFC 1035 4.1.3, 4.1.4)."""
_OPT_RECORD = 11
"""Octets of an OPT record before its options (RFC 6891 6.1.2)."""
_LABELS = 128
_NAME = 255
_WORD = 8
_OTHER_FLAGS = 0xFE8F
"""QR, OPCODE, AA, TC, RA, Z, RCODE: none of them in a plain question (RD, AD, CD may be)."""
_QR_OPCODE = 0xF800

Mask = NDArray[np.bool_]


class Layout(NamedTuple):
    """Of answers and the questions they repeat: absolute offsets, one entry each."""

    plain: Mask
    """The pair has the common shape and both say the same question; the rest is only true where this is."""
    section: I64
    """End of the answer's question section."""
    answers: Mask
    """There is an answer record (whose owner is the question's name)."""
    rtype: I64
    """Its TYPE."""
    rclass: I64
    """Its CLASS."""
    ttl: I64
    """Its TTL, seconds; 0 for one beyond 2^31 - 1 (RFC 2181 8)."""
    rdata: I64
    """Where its RDATA begins."""
    end: I64
    """Where the answer section ends."""


def of_pairs(
    octets: U8, asked: tuple[I64, I64], answered: tuple[I64, I64], asked_head: NDArray[np.uint16], head: NDArray[np.uint16]
) -> Layout:
    """How questions and their answers are laid out; each is given by (begin, length) and the six words of its header."""
    begin, stop = answered[0], answered[0] + answered[1]
    asked_begin, asked_stop = asked[0], asked[0] + asked[1]
    flags, asked_flags = head[:, 1], asked_head[:, 1]
    plain = (flags & _QR_OPCODE == 0x8000) & (asked_flags & _OTHER_FLAGS == 0) & ((flags ^ asked_flags) & 0x0100 == 0)
    plain &= (head[:, 2] == 1) & (asked_head[:, 2] == 1) & (head[:, 3] < 2) & (head[:, 4] == 0) & (head[:, 5] < 2)
    plain &= (asked_head[:, 3] == 0) & (asked_head[:, 4] == 0) & (asked_head[:, 5] < 2)

    section = _name_end(octets, begin + HEADER, stop, plain) + 4
    size = section - begin - HEADER
    asked_section = asked_begin + HEADER + size
    plain &= (section <= stop) & (asked_section <= asked_stop) & (size <= _NAME + 4)
    plain &= (section + _WORD <= len(octets)) & (asked_section + _WORD <= len(octets))
    plain &= _equal(octets, begin + HEADER, asked_begin + HEADER, size, plain)
    plain &= (asked_head[:, 5] == 0) | _only_opt(octets, asked_section, asked_stop)

    answers = head[:, 3] == 1
    inside = section + _RECORD <= stop
    at = np.where(inside & answers & plain, section, 0)
    record = np.zeros((len(at), _RECORD), dtype=np.int64)
    if len(octets) >= _RECORD:
        record = octets[at[:, None] + np.arange(_RECORD)].astype(np.int64)
    end = np.where(answers, section + _RECORD + (record[:, 10] << 8 | record[:, 11]), section)
    plain &= ~answers | (inside & (record[:, 0] == 0xC0) & (record[:, 1] == HEADER) & (end <= stop))
    plain &= (head[:, 5] == 0) | _only_opt(octets, end, stop)
    ttl = record[:, 6] << 24 | record[:, 7] << 16 | record[:, 8] << 8 | record[:, 9]
    return Layout(
        plain,
        section,
        answers,
        record[:, 2] << 8 | record[:, 3],
        record[:, 4] << 8 | record[:, 5],
        np.where(ttl > 0x7FFFFFFF, 0, ttl),
        section + _RECORD,
        end,
    )


def _name_end(octets: U8, at: I64, stop: I64, plain: Mask) -> I64:
    """Ends of uncompressed names; rows of others leave `plain`."""
    at = at.copy()
    rows = np.flatnonzero(plain)
    for _ in range(_LABELS):
        inside = at[rows] < stop[rows]
        plain[rows[~inside]] = False
        rows = rows[inside]
        if not len(rows):
            return at
        head = octets[at[rows]]
        plain[rows[head > 63]] = False
        at[rows] += head.astype(np.int64) + 1
        rows = rows[(head > 0) & (head < 64)]
    plain[rows] = False
    return at


def _equal(octets: U8, a: I64, b: I64, size: I64, rows: Mask) -> Mask:
    """Whether `size` octets at `a` and at `b` are the same; `_WORD` more octets must be there."""
    same = rows.copy()
    left = np.flatnonzero(rows)
    if not len(left):
        return same
    words = np.ndarray((len(octets) - _WORD + 1,), dtype="V8", buffer=octets, strides=(1,))
    for done in range(0, int(size[left].max()), _WORD):
        left = left[size[left] > done]
        differ = words[a[left] + done].view("<u8") ^ words[b[left] + done].view("<u8")
        beyond = np.maximum(_WORD - (size[left] - done), 0) * 8
        same[left[differ << beyond.astype(np.uint64) != 0]] = False
    return same


def _only_opt(octets: U8, at: I64, stop: I64) -> Mask:
    """Whether a whole OPT record without an extended response code stands at `at`."""
    inside = at + _OPT_RECORD <= stop
    if len(octets) < _OPT_RECORD:
        return inside
    record = octets[np.where(inside, at, 0)[:, None] + np.arange(_OPT_RECORD)]
    options = record[:, 9].astype(np.int64) << 8 | record[:, 10]
    opt = (record[:, 0] == 0) & (record[:, 1] == 0) & (record[:, 2] == 41) & (record[:, 5] == 0)
    whole: Mask = inside & opt & (at + _OPT_RECORD + options <= stop)
    return whole


def windows(octets: U8, at: I64, size: int) -> list[bytes]:
    """`size` octets at each place."""
    if not len(at):
        return []
    each = np.ndarray((len(octets) - size + 1,), dtype=f"V{size}", buffer=octets, strides=(1,))
    found: list[bytes] = each[at].tolist()
    return found


def headers(octets: U8, at: I64) -> U16:
    """Six 16-bit words of the header at each place."""
    if not len(at):
        return np.empty((0, 6), dtype=np.uint16)
    each = np.ndarray((len(octets) - HEADER + 1,), dtype=f"V{HEADER}", buffer=octets, strides=(1,))
    words: U16 = each[at].view(">u2").reshape(-1, 6).astype(np.uint16)
    return words
