"""How a batch of frames is read: header by header, all frames that stand before the same kind of header at once.

A *step* is a function that reads one kind of header for many frames (`Layer`), and emits them towards the
kinds of header that come next.  `Walk` holds the batch and what is still to be read.  A frame stands at one
place at a time, so what is found on the way (VLAN, IP header) is kept per frame.  Nothing here is done per
frame in Python: cost is per kind of header and nesting level.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import I64, U8, U16, Frames

Mask = NDArray[np.bool_]
_MOST_PARTICULARS = 64


@dataclass(slots=True)
class Layer:
    """Some frames of a batch, each before the header to be read next."""

    row: I64
    """Which frame of the batch."""
    at: I64
    """Where the header begins in the batch's octets."""
    end: I64
    """Where the captured octets of this layer end: nothing at or after it may be read."""
    wire: I64
    """Where they would end had the frame been captured whole."""

    def __len__(self) -> int:
        return len(self.row)

    def pick(self, mask: Mask) -> "Layer":
        """The frames for which `mask` is true."""
        if mask.all():
            return self
        return Layer(self.row[mask], self.at[mask], self.end[mask], self.wire[mask])

    def moved(self, octets: Any) -> "Layer":
        """The same frames, so many octets further in."""
        return Layer(self.row, self.at + octets, self.end, self.wire)


def join(layers: list[Layer]) -> Layer:
    """Several layers as one."""
    if len(layers) == 1:
        return layers[0]
    return Layer(*(np.concatenate([getattr(layer, name) for layer in layers]) for name in ("row", "at", "end", "wire")))


class Table:
    """Which kind of header follows, by the number that says so (an EtherType, an IP protocol)."""

    def __init__(self, size: int, kinds: Mapping[int, str], ranges: Iterable[tuple[range, str]] = ()) -> None:
        self.names = ["", *sorted({*kinds.values(), *(kind for _, kind in ranges)})]
        self.lookup: U8 = np.zeros(size, np.uint8)
        for numbers, kind in ranges:
            self.lookup[numbers.start : numbers.stop] = self.names.index(kind)
        for number, kind in kinds.items():
            self.lookup[number] = self.names.index(kind)


class Tally:
    """Odd frames, counted by name and source: one anomaly row each however many there are."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], tuple[int, int, int]] = {}

    def add(self, frames: Frames, name: str, rows: I64, particular: str = "") -> None:
        """Count these frames of the batch."""
        if len(rows):
            first = int(rows.min())
            self.count(frames.source, name, len(rows), int(frames.ts[first]), int(frames.number[first]), particular)

    def count(self, source: str, name: str, number: int, ts: int, frame: int, particular: str = "") -> None:
        """Count so many, of which the first was seen then and there."""
        key = (source, name, particular)
        if key not in self._counts and len(self._counts) >= _MOST_PARTICULARS:
            key = (source, name, "")
        before, first_ts, first_frame = self._counts.get(key, (0, ts, frame))
        if before and frame < first_frame:
            first_ts, first_frame = ts, frame
        self._counts[key] = (before + number, first_ts, first_frame)

    def rows(self, units: Mapping[str, str]) -> list[Anomaly]:
        """One row per name, source and particular; `units` says what is counted where it is not frames."""
        found = []
        for (source, name, particular), (number, ts, frame) in sorted(self._counts.items()):
            what = units.get(name, "frame") + ("" if number == 1 else "s")
            detail = f"{particular}: {number} {what}" if particular else f"{number} {what}"
            found.append(Anomaly(ts, source, None, None, name, f"{detail}, the first here", frame))
        return found


class Walk:
    """One batch on its way from frames to segments and datagrams."""

    def __init__(
        self, frames: Frames, limits: Limits, tally: Tally, steps: Mapping[str, "Step"], wrappers: frozenset[str]
    ) -> None:
        self.frames = frames
        self.tally = tally
        self._limits = limits
        self._steps = steps
        self._wrappers = wrappers
        self._pending: dict[str, list[Layer]] = {}
        self._views: dict[Any, NDArray[Any]] = {}
        self.hold(frames.data)
        self.network: I64 = np.zeros(len(frames), np.int64)
        """Innermost IP header met so far, per frame."""
        self.vlan: U16 = np.zeros(len(frames), np.uint16)
        self.depth: U8 = np.zeros(len(frames), np.uint8)
        """Encapsulations peeled off, per frame."""
        self.fragments: list[tuple[str, Layer]] = []
        """IP fragments met: (`ip4` before its IP header, or `ip6` before its fragment header)."""
        self.found: list[dict[str, NDArray[Any]]] = []
        """Columns of the segments and datagrams met."""

    def hold(self, data: bytes | bytearray | memoryview) -> None:
        """Read from this buffer from now on."""
        self.data = data
        self.octets: U8 = np.frombuffer(data, np.uint8)
        self._views.clear()

    # reading: every caller has made sure, by `whole`, that the octets were captured

    def headers(self, at: I64, dtype: Any) -> NDArray[Any]:
        """The header at each place, as a structured array (one gather for all its fields)."""
        shape = np.dtype(dtype)
        view = self._views.get(shape)
        if view is None:
            places = max(len(self.octets) - shape.itemsize + 1, 0)
            view = np.ndarray((places,), f"V{shape.itemsize}", self.data if places else b"", strides=(1,))
            self._views[shape] = view
        return view[at].view(shape)

    def u8(self, at: I64) -> I64:
        """The octet at each place."""
        return self.octets[at].astype(np.int64)

    def u16(self, at: I64) -> I64:
        """The 16-bit number at each place, network order."""
        return self.headers(at, ">u2").astype(np.int64)

    def u32(self, at: I64, order: str = ">") -> I64:
        """The 32-bit number at each place, network order unless told."""
        return self.headers(at, order + "u4").astype(np.int64)

    def peek(self, at: I64, layer: Layer, octets: int = 1) -> I64:
        """The number of 1 or 2 octets at each place; -1 where it was not captured."""
        seen = (at >= layer.at) & (at + octets <= layer.end)
        value = np.full(len(at), -1, np.int64)
        value[seen] = self.u8(at[seen]) if octets == 1 else self.u16(at[seen])
        return value

    def whole(self, layer: Layer, need: Any, name: str) -> Layer:
        """The frames whose next `need` octets were captured; the others are counted.

        A header cut by the snap length is `headers_cut`; one that the frame never held is `name`.
        """
        fits = layer.end - layer.at >= need
        if fits.all():
            return layer
        existed = layer.wire - layer.at >= need
        self.odd("headers_cut", layer, ~fits & existed)
        self.odd(name, layer, ~fits & ~existed)
        return layer.pick(fits)

    def odd(self, name: str, layer: Layer, mask: Mask, particular: str = "") -> None:
        """Count the frames for which `mask` is true."""
        if mask.any():
            self.tally.add(self.frames, name, layer.row[mask], particular)

    # going on

    def emit(self, kind: str, layer: Layer) -> None:
        """These frames stand before a header of this kind."""
        if kind in self._wrappers:
            layer = self.deeper(layer)
        if len(layer):
            self._pending.setdefault(kind, []).append(layer)

    def inward(self, kind: str, layer: Layer) -> None:
        """As `emit`, after a tunnel header that is not a kind of its own."""
        self.emit(kind, self.deeper(layer))

    def deeper(self, layer: Layer) -> Layer:
        """One encapsulation more is peeled off; those that have too many are counted and left."""
        self.depth[layer.row] += 1
        deep = self.depth[layer.row] > self._limits.tunnel_depth
        self.odd("tunnel_too_deep", layer, deep)
        return layer.pick(~deep)

    def dispatch(self, table: Table, layer: Layer, numbers: NDArray[Any]) -> U8:
        """Emit each frame towards the kind its number stands for; the table's index of it, 0 where there is none."""
        which: U8 = table.lookup[numbers]
        if len(which) == 0:
            return which
        first, last = int(which.min()), int(which.max())
        if first == last:
            if first:
                self.emit(table.names[first], layer)
            return which
        for index in np.flatnonzero(np.bincount(which)):
            if index:
                self.emit(table.names[index], layer.pick(which == index))
        return which

    def run(self) -> None:
        """Step until nothing is pending.  Each round takes every kind once, so rounds are bounded by the depth."""
        while self._pending:
            due, self._pending = self._pending, {}
            for kind, layers in due.items():
                self._steps[kind](self, join(layers))


Step = Callable[[Walk, Layer], None]
