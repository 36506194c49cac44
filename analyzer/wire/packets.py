"""Frames to the TCP segments and UDP datagrams inside them (RFC 791, 8200, 9293, 768).

Rules
1. The innermost IP packet counts; what is around it is peeled off (links.py, tunnels.py) up to `Limits.tunnel_depth`.
2. Lengths are those of the headers: padding and trailers are cut off.  An IP length of 0 (segmentation left to
   the interface) means the frame's own.  `wire_length` is what the headers say, `length` what was captured.
3. A fragmented packet is read when its last missing fragment has come (fragments.py), as of that frame.
4. A header that cannot be is counted and skipped.  Nothing raises, whatever the octets.
5. The result does not depend on how the frames were cut into batches.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.wire import links, tunnels
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.fragments import Piece, Reassembler, Rebuilt
from analyzer.wire.layers import Layer, Mask, Step, Table, Tally, Walk, join
from analyzer.wire.types import I64, U64, V4_PREFIX, Frames, Packets

TCP, UDP = 6, 17

IP4 = np.dtype(
    {
        "names": ["version_size", "total", "fragment", "ttl", "protocol", "src", "dst"],
        "formats": ["u1", ">u2", ">u2", "u1", "u1", ">u4", ">u4"],
        "offsets": [0, 2, 6, 8, 9, 12, 16],
        "itemsize": 20,
    }
)
IP6 = np.dtype(
    {
        "names": ["version", "payload", "next", "hops", "src_hi", "src_lo", "dst_hi", "dst_lo"],
        "formats": ["u1", ">u2", "u1", "u1", ">u8", ">u8", ">u8", ">u8"],
        "offsets": [0, 4, 6, 7, 8, 16, 24, 32],
        "itemsize": 40,
    }
)
TCP_HEADER = np.dtype(
    {
        "names": ["src", "dst", "seq", "ack", "size", "flags"],
        "formats": [">u2", ">u2", ">u4", ">u4", "u1", "u1"],
        "offsets": [0, 2, 4, 8, 12, 13],
        "itemsize": 20,
    }
)
UDP_HEADER = np.dtype([("src", ">u2"), ("dst", ">u2"), ("length", ">u2"), ("checksum", ">u2")])

_ESP = 50
_OVER_IP = {
    6: "tcp",
    17: "udp",
    4: "inner_ip",
    41: "inner_ip",
    94: "inner_ip",
    47: "gre",
    _ESP: "esp",
    51: "authentication",
    97: "etherip",
    137: "mpls",
}
PROTOCOLS4 = Table(256, _OVER_IP)
PROTOCOLS6 = Table(256, _OVER_IP | dict.fromkeys((0, 43, 60, 135, 139, 140), "extension") | {44: "fragment6"})
_REBUILT4, _REBUILT6 = (
    np.array([table.names[kind] not in ("", "esp") for kind in table.lookup]) for table in (PROTOCOLS4, PROTOCOLS6)
)
"""Whether fragments are put together for what they hold."""

_FLAGS = 0x3F
_FRAGMENT_LEVELS = 2
"""Fragments of a packet that was itself rebuilt from fragments are rebuilt; a third time is nobody's network.
Each level holds as much as `Limits.fragment_packets` and `fragment_bytes` allow, so that neither depends on the other."""


def ip(walk: Walk, layer: Layer) -> None:
    """An IP header of either version."""
    layer = walk.whole(layer, 1, "malformed_ip")
    version = walk.u8(layer.at) >> 4
    walk.emit("ip4", layer.pick(version == 4))
    walk.emit("ip6", layer.pick(version == 6))
    walk.odd("malformed_ip", layer, (version != 4) & (version != 6))


def ip4(walk: Walk, layer: Layer) -> None:
    """IPv4 (RFC 791 3.1)."""
    layer = walk.whole(layer, 20, "malformed_ip")
    header = walk.headers(layer.at, IP4)
    size = (header["version_size"] & 15).astype(np.int64) * 4
    total = header["total"].astype(np.int64)
    stop = np.where(total == 0, layer.wire, layer.at + total)
    good = (header["version_size"] >> 4 == 4) & (size >= 20) & (layer.at + size <= stop)
    if not good.all():
        walk.odd("malformed_ip", layer, ~good)
        layer, header, size, stop = layer.pick(good), header[good], size[good], stop[good]
    layer = _within(walk, layer, stop)
    walk.network[layer.row] = layer.at
    part = (header["fragment"] & 0x3FFF) != 0
    if part.any():
        read = part & _REBUILT4[header["protocol"]]
        walk.odd("encrypted_below", layer, part & (header["protocol"] == _ESP), "IPsec ESP")
        walk.fragments.append(("ip4", layer.pick(read)))
        layer, header, size = layer.pick(~part), header[~part], size[~part]
    walk.dispatch(PROTOCOLS4, layer.moved(size), header["protocol"])


def ip6(walk: Walk, layer: Layer) -> None:
    """IPv6 (RFC 8200 3).  A payload length of 0 is a jumbogram's (RFC 2675) or the interface's to fill in."""
    layer = walk.whole(layer, 40, "malformed_ip")
    header = walk.headers(layer.at, IP6)
    payload = header["payload"].astype(np.int64)
    stop = np.where(payload == 0, layer.wire, layer.at + 40 + payload)
    good = header["version"] >> 4 == 6
    if not good.all():
        walk.odd("malformed_ip", layer, ~good)
        layer, header, stop = layer.pick(good), header[good], stop[good]
    layer = _within(walk, layer, stop)
    walk.network[layer.row] = layer.at
    walk.dispatch(PROTOCOLS6, layer.moved(40), header["next"])


def _within(walk: Walk, layer: Layer, stop: I64) -> Layer:
    """The layer ended where its IP header says."""
    beyond = stop > layer.wire
    walk.odd("ip_length_beyond_frame", layer, beyond)
    return Layer(layer.row, layer.at, np.minimum(layer.end, stop), stop)


def extension(walk: Walk, layer: Layer) -> None:
    """IPv6 extension header: next header, length in units of 8 octets beyond the first 8 (RFC 8200 4)."""
    layer = walk.whole(layer, 2, "malformed_ip")
    walk.dispatch(PROTOCOLS6, layer.moved(8 + 8 * walk.u8(layer.at + 1)), walk.u8(layer.at))


def authentication(walk: Walk, layer: Layer) -> None:
    """IP Authentication Header: length in units of 4 octets less 2 (RFC 4302 2.2)."""
    layer = walk.whole(layer, 12, "malformed_ip")
    six = walk.octets[walk.network[layer.row]] >> 4 == 6
    inner, following = layer.moved(8 + 4 * walk.u8(layer.at + 1)), walk.u8(layer.at)
    walk.dispatch(PROTOCOLS4, inner.pick(~six), following[~six])
    walk.dispatch(PROTOCOLS6, inner.pick(six), following[six])


def fragment6(walk: Walk, layer: Layer) -> None:
    """IPv6 Fragment header; one with offset 0 and none to follow is a whole packet (RFC 6946)."""
    layer = walk.whole(layer, 8, "malformed_ip")
    atomic = walk.u16(layer.at + 2) & 0xFFF9 == 0
    following = walk.u8(layer.at)
    read = ~atomic & _REBUILT6[following]
    walk.odd("encrypted_below", layer, ~atomic & (following == _ESP), "IPsec ESP")
    walk.fragments.append(("ip6", layer.pick(read)))
    walk.dispatch(PROTOCOLS6, layer.pick(atomic).moved(8), following[atomic])


def tcp(walk: Walk, layer: Layer) -> None:
    """TCP segments (RFC 9293 3.1)."""
    layer = walk.whole(layer, TCP_HEADER.itemsize, "malformed_tcp")
    header = walk.headers(layer.at, TCP_HEADER)
    size = (header["size"] >> 4).astype(np.int64) * 4
    good = (size >= 20) & (layer.at + size <= layer.wire)
    if not good.all():
        walk.odd("malformed_tcp", layer, ~good)
        layer, header, size = layer.pick(good), header[good], size[good]
    payload = layer.at + size
    captured = np.minimum(payload, layer.end)
    walk.found.append(
        {
            "row": layer.row,
            "protocol": np.full(len(layer), TCP, np.uint8),
            "src_port": header["src"].astype(np.uint16),
            "dst_port": header["dst"].astype(np.uint16),
            "payload": captured,
            "length": layer.end - captured,
            "wire_length": layer.wire - payload,
            "seq": header["seq"].astype(np.uint32),
            "ack": header["ack"].astype(np.uint32),
            "flags": header["flags"] & np.uint8(_FLAGS),
            "transport": layer.at,
        }
    )


def udp(walk: Walk, layer: Layer) -> None:
    """UDP datagrams (RFC 768), or the tunnels in them."""
    layer = walk.whole(layer, 8, "malformed_udp")
    header = walk.headers(layer.at, UDP_HEADER)
    length = header["length"].astype(np.int64)
    good = (length >= 8) & (layer.at + length <= layer.wire)
    if not good.all():
        walk.odd("malformed_udp", layer, ~good)
        layer, header, length = layer.pick(good), header[good], length[good]
    stop = layer.at + length
    layer = Layer(layer.row, layer.at, np.minimum(layer.end, stop), stop)
    src, dst = header["src"].astype(np.int64), header["dst"].astype(np.int64)
    taken = tunnels.over_udp(walk, layer.moved(8), src, dst)
    if taken.any():
        layer, src, dst = layer.pick(~taken), src[~taken], dst[~taken]
    none = np.zeros(len(layer), np.uint32)
    walk.found.append(
        {
            "row": layer.row,
            "protocol": np.full(len(layer), UDP, np.uint8),
            "src_port": src.astype(np.uint16),
            "dst_port": dst.astype(np.uint16),
            "payload": layer.at + 8,
            "length": layer.end - layer.at - 8,
            "wire_length": layer.wire - layer.at - 8,
            "seq": none,
            "ack": none,
            "flags": none.astype(np.uint8),
            "transport": layer.at,
        }
    )


STEPS: dict[str, Step] = {
    **links.STEPS,
    **tunnels.STEPS,
    "ip": ip,
    "ip4": ip4,
    "ip6": ip6,
    "extension": extension,
    "authentication": authentication,
    "fragment6": fragment6,
    "tcp": tcp,
    "udp": udp,
}
WRAPPERS = links.WRAPPERS | tunnels.WRAPPERS | {"extension", "authentication", "fragment6"}


class Decoder:
    """Decodes the frames of one tap, batch after batch, in capture order."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tally = Tally()
        self._reassemblers = [Reassembler(limits) for _ in range(_FRAGMENT_LEVELS)]
        self.anomalies: list[Anomaly] = []
        """Conflicting fragments, as they come (the caller empties this); everything else is counted for `finish`."""
        self.rebuilt: dict[int, tuple[int, ...]] | None = None
        """Frame that completed a packet -> frames of its fragments, when a dict is put here to be filled (and emptied)."""

    def decode(self, frames: Frames) -> Packets:
        """The TCP segments and UDP datagrams of a batch, in capture order."""
        walk = Walk(frames, self._limits, self._tally, STEPS, WRAPPERS)
        self._enter(walk)
        walk.run()
        for reassembler in self._reassemblers:
            if not walk.fragments:
                break
            self._reassemble(walk, reassembler)
            walk.run()
        for _, layer in walk.fragments:
            self._tally.add(frames, "tunnel_too_deep", layer.row)
        return _assemble(walk)

    def finish(self) -> list[Anomaly]:
        """The capture is over: one row for each kind of oddity, with its count and first frame."""
        for reassembler in self._reassemblers:
            reassembler.finish()
            self._count_losses(reassembler)
        rows = self._tally.rows(_UNITS)
        self._tally = Tally()
        return rows

    def _enter(self, walk: Walk) -> None:
        """Stand every frame before its link-layer header."""
        frames = walk.frames
        end = frames.offset + frames.length
        wire = frames.offset + np.maximum(frames.wire_length, frames.length)
        layer = Layer(np.arange(len(frames)), frames.offset, end, wire)
        kinds = walk.dispatch(links.LINKTYPES, layer, frames.linktype)
        unknown = kinds == 0
        if unknown.any():
            for linktype in np.unique(frames.linktype[unknown]):
                rows = np.flatnonzero(unknown & (frames.linktype == linktype))
                self._tally.add(frames, "link_type_unsupported", rows, f"link type {linktype}")

    def _reassemble(self, walk: Walk, reassembler: Reassembler) -> None:
        """Take the fragments met so far in capture order; emit the packets that they complete."""
        met, walk.fragments = walk.fragments, []
        family = np.concatenate([np.full(len(layer), kind == "ip6") for kind, layer in met])
        layer = join([layer for _, layer in met])
        order = np.argsort(layer.row, kind="stable")
        columns = (column[order].tolist() for column in (layer.row, layer.at, layer.end, layer.wire, family))
        data, extra, size = memoryview(walk.data), [], len(walk.data)
        rebuilt: dict[str, list[tuple[int, int, int, int]]] = {"ip4": [], "ip6": []}
        for row, at, end, wire, six in zip(*columns, strict=True):
            piece = _piece6(walk, data, row, at, end, wire) if six else _piece4(walk, data, row, at, end, wire)
            packet = reassembler.add(piece)
            if packet is not None and self.rebuilt is not None and packet.frames:
                self.rebuilt[packet.frames[-1]] = packet.frames
            if packet is not None and (made := _packet6(packet) if six else _packet4(packet)):
                extra.append(made)
                whole = size + len(packet.header) + packet.size
                rebuilt["ip6" if six else "ip4"].append((row, size, size + len(made), whole))
                size += len(made)
        self._count_losses(reassembler)
        if extra:
            walk.hold(b"".join([data, *extra]))
        for kind, places in rebuilt.items():
            if places:
                walk.emit(kind, Layer(*np.array(places, np.int64).T.copy()))

    def _count_losses(self, reassembler: Reassembler) -> None:
        for loss in reassembler.losses:
            if loss.name == "fragments_conflict" and len(self.anomalies) < self._limits.folded_anomalies:
                detail = "two fragments of one IP packet disagree; the first copy was used"
                self.anomalies.append(Anomaly(loss.ts, loss.source, None, None, loss.name, detail, loss.frame))
            else:
                self._tally.count(loss.source, loss.name, 1, loss.ts, loss.frame)
        reassembler.losses.clear()


_UNITS = {
    "fragments_incomplete": "packet",
    "fragments_dropped": "packet",
    "fragments_malformed": "fragment",
    "fragments_conflict": "fragment",
}


def _piece4(walk: Walk, data: memoryview, row: int, at: int, end: int, wire: int) -> Piece:
    """An IPv4 fragment (RFC 791 3.2): packets are told apart by addresses, protocol and identification."""
    start = at + (data[at] & 15) * 4
    field = int.from_bytes(data[at + 6 : at + 8])
    key = (bytes(data[at + 12 : at + 20]), data[at + 9], bytes(data[at + 4 : at + 6]), int(walk.vlan[row]))
    return _piece(walk, row, key, (field & 0x1FFF) * 8, wire - start, field & 0x2000 != 0, data[start:end], data[at:start])


def _piece6(walk: Walk, data: memoryview, row: int, at: int, end: int, wire: int) -> Piece:
    """An IPv6 fragment (RFC 8200 4.5): packets are told apart by addresses and identification."""
    network = int(walk.network[row])
    field = int.from_bytes(data[at + 2 : at + 4])
    key = (bytes(data[network + 8 : network + 40]), bytes(data[at + 4 : at + 8]), int(walk.vlan[row]))
    header = bytes(data[network : network + 6]) + bytes(data[at : at + 1]) + bytes(data[network + 7 : network + 40])
    return _piece(walk, row, key, field & 0xFFF8, wire - at - 8, field & 1 != 0, data[at + 8 : end], header)


def _piece(walk: Walk, row: int, key: object, start: int, size: int, more: bool, octets: Any, header: Any) -> Piece:
    frames = walk.frames
    ts, number = int(frames.ts[row]), int(frames.number[row])
    return Piece(key, start, size, more, bytes(octets), bytes(header), frames.source, ts, number)


def _packet4(packet: Rebuilt) -> bytes | None:
    """The rebuilt packet under its first fragment's header; None when no IPv4 packet can be so long."""
    header, total = packet.header, len(packet.header) + packet.size
    if total > 0xFFFF:
        return None
    return header[:2] + total.to_bytes(2) + header[4:6] + b"\0\0" + header[8:] + packet.octets


def _packet6(packet: Rebuilt) -> bytes:
    """The rebuilt packet under its first fragment's IPv6 header, extension headers left out."""
    return packet.header[:4] + packet.size.to_bytes(2) + packet.header[6:] + packet.octets


def _assemble(walk: Walk) -> Packets:
    """What was found, in capture order."""
    frames, found = walk.frames, walk.found or [{name: np.zeros(0, kind) for name, kind in _EMPTY.items()}]
    columns = {name: np.concatenate([part[name] for part in found]) for name in _EMPTY}
    if (columns["row"][1:] < columns["row"][:-1]).any():
        order = np.argsort(columns["row"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    row = columns.pop("row")
    network = walk.network[row]
    return Packets(
        source=frames.source,
        data=walk.data,
        frame=frames.number[row],
        ts=frames.ts[row],
        vlan=walk.vlan[row],
        network=network,
        **_addresses(walk, network),
        **columns,
    )


_EMPTY: dict[str, Any] = {
    "row": np.int64,
    "protocol": np.uint8,
    "src_port": np.uint16,
    "dst_port": np.uint16,
    "payload": np.int64,
    "length": np.int64,
    "wire_length": np.int64,
    "seq": np.uint32,
    "ack": np.uint32,
    "flags": np.uint8,
    "transport": np.int64,
}


def _addresses(walk: Walk, network: I64) -> dict[str, Any]:
    """Addresses and time to live out of the IP header at each place."""
    six: Mask = walk.octets[network] >> 4 == 6
    if not six.any():
        return _addresses4(walk.headers(network, IP4))
    if six.all():
        return _addresses6(walk.headers(network, IP6))
    four = ~six
    parts = ((four, _addresses4(walk.headers(network[four], IP4))), (six, _addresses6(walk.headers(network[six], IP6))))
    both: dict[str, NDArray[Any]] = {name: np.empty(len(network), column.dtype) for name, column in parts[0][1].items()}
    for mask, part in parts:
        for name, column in part.items():
            both[name][mask] = column
    return both


def _addresses4(header: NDArray[Any]) -> dict[str, Any]:
    high: U64 = np.zeros(len(header), np.uint64)
    prefix = np.uint64(V4_PREFIX)
    src, dst = header["src"].astype(np.uint64) | prefix, header["dst"].astype(np.uint64) | prefix
    return {"src_hi": high, "src_lo": src, "dst_hi": high.copy(), "dst_lo": dst, "ttl": header["ttl"].copy()}


def _addresses6(header: NDArray[Any]) -> dict[str, Any]:
    addresses = {name: header[name].astype(np.uint64) for name in ("src_hi", "src_lo", "dst_hi", "dst_lo")}
    return {**addresses, "ttl": header["hops"].copy()}


def checksums_ok(packets: Packets, rows: NDArray[Any]) -> Mask:
    """Whether the TCP or UDP checksum of each of these packets is right (RFC 9293 3.1, RFC 768).

    True where it cannot be told: octets not captured, no UDP checksum, a Packets without header places.
    A host that leaves checksums to its interface shows wrong ones for all it sends: one wrong checksum
    says something only when the others of its direction are right.  Costs some microseconds per packet.
    """
    if len(packets.network) != len(packets):
        return np.ones(len(rows), np.bool_)
    data = memoryview(packets.data)
    return np.array([_checksum_ok(packets, data, int(row)) for row in rows], np.bool_)


def _checksum_ok(packets: Packets, data: memoryview, row: int) -> bool:
    network, transport, protocol = int(packets.network[row]), int(packets.transport[row]), int(packets.protocol[row])
    length = int(packets.length[row])
    end = int(packets.payload[row]) + length
    if length < packets.wire_length[row] or end - transport < (20 if protocol == TCP else 8):
        return True
    if protocol == UDP and bytes(data[transport + 6 : transport + 8]) == b"\0\0":
        return True
    addresses = data[network + 12 : network + 20] if data[network] >> 4 == 4 else data[network + 8 : network + 40]
    total = _sum(addresses) + protocol + (end - transport) + _sum(data[transport:end])
    return total % 0xFFFF == 0


def _sum(octets: memoryview) -> int:
    """Sum of the 16-bit words, an odd last octet padded with zero (RFC 1071)."""
    even = len(octets) & ~1
    words = np.frombuffer(octets[:even], ">u2")
    return int(words.sum(dtype=np.uint64)) + (octets[even] << 8 if even < len(octets) else 0)
