"""What is remembered of every flow (two addresses, two ports), in columns: some hundred octets each.

A flow is found by a keyed 64-bit hash of its ends, and every find is checked against the ends themselves;
should two flows ever share a hash, another key is drawn.  Only flows whose payload must be looked at have
Python objects (`Flows.live`); a SYN without an answer, a connection that is none of ours and one that is over
are a row here and nothing else.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.wire.types import I64, U32, U64

NONE, HALF, LIVE, IGNORED, CLOSED = range(5)
"""States: known to have been; SYN without answer; has an object; of no protocol of ours; over."""

_COLUMNS: dict[str, Any] = {
    "key": np.uint64,
    "a_hi": np.uint64,
    "a_lo": np.uint64,
    "b_hi": np.uint64,
    "b_lo": np.uint64,
    "ports": np.uint32,  # a's port << 16 | b's
    "lane": np.int32,  # 0, or 1 + VLAN of a flow that shares its ends with one in another VLAN
    "vlan": np.int32,  # of its first packet
    "shared": np.bool_,  # other VLANs have flows of the same ends
    "state": np.uint8,
    "wanted": np.bool_,  # CLOSED: it was a connection of ours
    "source": np.int32,  # that `stream` counts in
    "stream": np.int32,
    "base0": np.uint32,  # Wireshark's idea of the first sequence number of each direction: it decides `stream`
    "base1": np.uint32,
    "based": np.uint8,  # 1: base0 is set, 2: base1
    "vlan0": np.int32,  # VLAN of each direction's first packet, -1 unknown
    "vlan1": np.int32,
    "ttl0": np.int16,  # TTL of each direction's first payload, -1 unknown
    "ttl1": np.int16,
    "isn0": np.uint32,  # HALF: of its SYN; IGNORED, CLOSED: where each direction began and ended
    "isn1": np.uint32,
    "end0": np.uint32,
    "end1": np.uint32,
    "syns": np.int32,
    "side": np.uint8,  # HALF: direction of the SYN
    "half_source": np.int32,  # HALF: where the SYN was first seen
    "half_stream": np.int32,
    "ts": np.int64,
    "frame": np.int64,
    "ts_last": np.int64,
}


_MIX = [np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]


class Ends:
    """Columns of flow ends, a the lower (address, port): what a flow's key is made of."""

    __slots__ = ("a_hi", "a_lo", "b_hi", "b_lo", "lane", "ports")

    def __init__(self, a_hi: U64, a_lo: U64, b_hi: U64, b_lo: U64, ports: U32, lane: NDArray[np.int32]) -> None:
        self.a_hi, self.a_lo, self.b_hi, self.b_lo, self.ports, self.lane = a_hi, a_lo, b_hi, b_lo, ports, lane

    def pick(self, rows: Any) -> "Ends":
        """Some of them."""
        return Ends(self.a_hi[rows], self.a_lo[rows], self.b_hi[rows], self.b_lo[rows], self.ports[rows], self.lane[rows])

    def same(self, other: "Ends") -> bool:
        """Whether all are equal."""
        return bool(
            (self.ports == other.ports).all()
            and (self.a_lo == other.a_lo).all()
            and (self.b_lo == other.b_lo).all()
            and (self.a_hi == other.a_hi).all()
            and (self.b_hi == other.b_hi).all()
            and (self.lane == other.lane).all()
        )


class Flows:
    """The table, and the index from hash to row (slot)."""

    a_hi: U64
    a_lo: U64
    b_hi: U64
    b_lo: U64
    key: U64
    ports: U32
    lane: NDArray[np.int32]
    vlan: NDArray[np.int32]
    shared: NDArray[np.bool_]
    state: NDArray[np.uint8]
    wanted: NDArray[np.bool_]
    source: NDArray[np.int32]
    stream: NDArray[np.int32]
    base0: U32
    base1: U32
    based: NDArray[np.uint8]
    vlan0: NDArray[np.int32]
    vlan1: NDArray[np.int32]
    ttl0: NDArray[np.int16]
    ttl1: NDArray[np.int16]
    isn0: U32
    isn1: U32
    end0: U32
    end1: U32
    syns: NDArray[np.int32]
    side: NDArray[np.uint8]
    half_source: NDArray[np.int32]
    half_stream: NDArray[np.int32]
    ts: I64
    frame: I64
    ts_last: I64

    def __init__(self, room: int = 1024) -> None:
        """`room`: rows that take their memory at once, so that it does not grow until there are more."""
        self.count = 0
        self.live: dict[int, Any] = {}
        """Slot to the connection's object, oldest first."""
        for name, kind in _COLUMNS.items():
            setattr(self, name, np.full(room, 0, kind))
        self._draw()
        self._old_keys: U64 = np.zeros(0, np.uint64)
        self._old_slots: I64 = np.zeros(0, np.int64)
        self._new_keys: U64 = np.zeros(0, np.uint64)
        self._new_slots: I64 = np.zeros(0, np.int64)

    def _draw(self) -> None:
        self._secret = [np.uint64(int.from_bytes(os.urandom(8)) | 1) for _ in range(5)]

    def hash(self, ends: Ends) -> U64:
        """Keys of ends."""
        s = self._secret
        ports = ends.ports.astype(np.uint64)
        key = (ends.a_lo ^ (ports << np.uint64(48))) * s[0] + s[1]
        key ^= key >> np.uint64(29)
        key += ends.b_lo ^ (ports >> np.uint64(16) << np.uint64(48)) ^ ends.lane.astype(np.uint64)
        key *= s[2]
        key ^= key >> np.uint64(32)
        if ends.a_hi.any() or ends.b_hi.any():  # adds nothing to the others' keys
            high: U64 = ends.a_hi * s[3]
            high ^= high >> np.uint64(29)
            high += ends.b_hi * s[4]
            key ^= high
        key *= s[4]
        key ^= key >> np.uint64(32)
        return key

    def belongs(self, slots: Any, share: tuple[int, int]) -> NDArray[np.bool_]:
        """Which slots are of a share (number, how many): the same in every process, whatever its secret."""
        mixed: U64 = (self.a_lo[slots] ^ self.a_hi[slots]) * _MIX[0] + (self.b_lo[slots] ^ self.b_hi[slots]) * _MIX[1]
        mixed += self.ports[slots].astype(np.uint64) * _MIX[2]
        mixed ^= mixed >> np.uint64(31)
        mixed *= _MIX[0]
        mine: NDArray[np.bool_] = (mixed >> np.uint64(40)) % np.uint64(share[1]) == share[0]
        return mine

    def ends(self, slots: Any) -> Ends:
        """Ends of some slots."""
        return Ends(self.a_hi, self.a_lo, self.b_hi, self.b_lo, self.ports, self.lane).pick(slots)

    def rekey(self) -> None:
        """Two flows had one hash: draw another key and index everything anew."""
        self._draw()
        used = slice(0, self.count)
        self.key[used] = self.hash(self.ends(used))
        self._reindex()

    def _reindex(self) -> None:
        keys = self.key[: self.count]
        order = np.argsort(keys, kind="stable")
        self._old_keys, self._old_slots = keys[order], order
        self._new_keys, self._new_slots = keys[:0].copy(), order[:0]

    def find(self, keys: U64) -> I64:
        """Slots of sorted keys, -1 where there is none."""
        slots = _search(self._old_keys, self._old_slots, keys)
        if len(self._new_keys):
            slots = np.maximum(slots, _search(self._new_keys, self._new_slots, keys))
        return slots

    def add(self, keys: U64, ends: Ends) -> I64:
        """New rows for keys that are not in the table, in the order given; their slots."""
        n = len(keys)
        first, self.count = self.count, self.count + n
        if self.count > len(self.key):
            size = max(2 * len(self.key), self.count)
            for name, kind in _COLUMNS.items():
                grown = np.zeros(size, kind)  # pages not written to take no memory yet
                grown[:first] = getattr(self, name)[:first]
                setattr(self, name, grown)
        slots = np.arange(first, self.count)
        at = slice(first, self.count)
        for name in _COLUMNS:
            getattr(self, name)[at] = 0
        self.key[at] = keys
        self.a_hi[at], self.a_lo[at], self.b_hi[at], self.b_lo[at] = ends.a_hi, ends.a_lo, ends.b_hi, ends.b_lo
        self.ports[at], self.lane[at] = ends.ports, ends.lane
        self.source[at], self.stream[at] = -1, -1
        self.vlan0[at] = self.vlan1[at] = self.ttl0[at] = self.ttl1[at] = -1
        self._index(keys, slots)
        return slots

    def _index(self, keys: U64, slots: I64) -> None:
        keys, slots = np.concatenate([self._new_keys, keys]), np.concatenate([self._new_slots, slots])
        order = np.argsort(keys, kind="stable")
        self._new_keys, self._new_slots = keys[order], slots[order]
        if len(keys) > 4096 + len(self._old_keys) // 8:
            self._reindex()

    def forget(self, keep: I64) -> None:
        """Keep only these slots (ascending); the others' rows are gone, and slots are numbered anew."""
        for name in _COLUMNS:
            column = getattr(self, name)
            column[: len(keep)] = column[keep]
        place = {slot: i for i, slot in enumerate(keep.tolist())}
        self.live = {place[slot]: flow for slot, flow in self.live.items()}
        for slot, flow in self.live.items():
            flow.slot = slot
        self.count = len(keep)
        self._reindex()


def _search(keys: U64, slots: I64, wanted: U64) -> I64:
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, slots[at], -1)
