"""Frames made by hand, and packets read back as plain rows."""

import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import numpy as np

from analyzer.wire.types import V4_PREFIX, Frames, Packets

ETHERNET, NULL, RAW, SLL, SLL2, WIRELESS = 1, 0, 101, 113, 276, 105
CLIENT, SERVER = "192.0.2.10", "198.51.100.25"
CLIENT6, SERVER6 = "2001:db8:1::10", "2001:db8:2::25"
MAIL = b"MAIL FROM:<alice@example.org>\r\n"
SECOND = 1_000_000_000


class Frame(NamedTuple):
    """One captured frame."""

    octets: bytes
    ts: int = 0
    linktype: int = ETHERNET
    wire_length: int | None = None


class Row(NamedTuple):
    """One decoded packet."""

    frame: int
    protocol: int
    src: str
    src_port: int
    dst: str
    dst_port: int
    payload: bytes
    wire_length: int
    seq: int
    ack: int
    flags: int
    vlan: int
    ttl: int


def batch(frames: Sequence[Frame | bytes], first: int = 1, source: str = "test.pcap") -> Frames:
    """Frames as a reader would hand them up, other octets between and after them."""
    made = [frame if isinstance(frame, Frame) else Frame(frame) for frame in frames]
    data, offsets = bytearray(b"\x45" * 16), []
    for frame in made:
        offsets.append(len(data))
        data += frame.octets + b"\x45" * 16
    if made:
        del data[-16:]  # the last frame ends where the buffer does
    return Frames(
        source=source,
        data=data,
        number=np.arange(first, first + len(made), dtype=np.int64),
        ts=np.array([frame.ts for frame in made], np.int64),
        offset=np.array(offsets, np.int64),
        length=np.array([len(frame.octets) for frame in made], np.int64),
        wire_length=np.array([len(f.octets) if f.wire_length is None else f.wire_length for f in made], np.int64),
        linktype=np.array([frame.linktype for frame in made], np.uint16),
    )


def address(high: int, low: int) -> str:
    """The canonical text of an address kept as two words."""
    if high == 0 and low >> 32 == V4_PREFIX >> 32:
        return str(ip_address((low & 0xFFFFFFFF).to_bytes(4, "big")))
    return str(ip_address((high << 64 | low).to_bytes(16, "big")))


def rows(packets: Packets) -> list[Row]:
    """Every packet of a batch."""
    made = []
    for i in range(len(packets)):
        at, length = int(packets.payload[i]), int(packets.length[i])
        assert 0 <= at <= at + length <= len(packets.data)
        row = Row(
            frame=int(packets.frame[i]),
            protocol=int(packets.protocol[i]),
            src=address(int(packets.src_hi[i]), int(packets.src_lo[i])),
            src_port=int(packets.src_port[i]),
            dst=address(int(packets.dst_hi[i]), int(packets.dst_lo[i])),
            dst_port=int(packets.dst_port[i]),
            payload=bytes(packets.data[at : at + length]),
            wire_length=int(packets.wire_length[i]),
            seq=int(packets.seq[i]),
            ack=int(packets.ack[i]),
            flags=int(packets.flags[i]),
            vlan=int(packets.vlan[i]),
            ttl=int(packets.ttl[i]),
        )
        made.append(row)
    return made


def checksum(octets: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    octets += b"\0" * (len(octets) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    return ip_address(src).packed + ip_address(dst).packed + struct.pack("!II", length, protocol)


def tcp(
    payload: bytes = MAIL,
    seq: int = 1000,
    *,
    options: bytes = b"",
    offset: int | None = None,
    src_port: int = 41000,
    dst_port: int = 25,
) -> bytes:
    """A TCP segment, checksum 0 (`sealed` puts it right)."""
    size = (20 + len(options)) // 4 if offset is None else offset
    return struct.pack("!HHIIBBHHH", src_port, dst_port, seq, 7, size << 4, 0x18, 65535, 0, 0) + options + payload


def sealed(segment: bytes, src: str = CLIENT, dst: str = SERVER) -> bytes:
    """The segment with a right checksum."""
    right = checksum(_pseudo(src, dst, 6, len(segment)) + segment)
    return segment[:16] + right.to_bytes(2, "big") + segment[18:]


def udp(payload: bytes, src_port: int = 40000, dst_port: int = 53, *, length: int | None = None, check: int = 0) -> bytes:
    """A UDP datagram."""
    return struct.pack("!HHHH", src_port, dst_port, 8 + len(payload) if length is None else length, check) + payload


def ip4(
    payload: bytes,
    protocol: int = 6,
    *,
    src: str = CLIENT,
    dst: str = SERVER,
    options: bytes = b"",
    total: int | None = None,
    ident: int = 1,
    fragment: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet; `fragment` is the field with flags and offset."""
    size = 20 + len(options)
    length = size + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, length, ident, fragment, ttl, protocol, 0)
    return head + ip_address(src).packed + ip_address(dst).packed + options + payload


def ip6(payload: bytes, following: int = 6, *, src: str = CLIENT6, dst: str = SERVER6, length: int | None = None) -> bytes:
    """An IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28, len(payload) if length is None else length, following, 64)
    return head + ip_address(src).packed + ip_address(dst).packed + payload


def kind(packet: bytes) -> int:
    """The EtherType of an IP packet."""
    return 0x86DD if packet[0] >> 4 == 6 else 0x0800


def ethernet(packet: bytes, ethertype: int | None = None) -> bytes:
    """An Ethernet frame."""
    return b"\2\0\0\0\0\1\2\0\0\0\0\2" + struct.pack("!H", kind(packet) if ethertype is None else ethertype) + packet


def vlan(packet: bytes, tags: Iterable[tuple[int, int]]) -> bytes:
    """A tagged Ethernet frame; each tag is its EtherType and its identifier."""
    inner, ethertype = packet, kind(packet)
    for tag_type, tag in reversed(list(tags)):
        inner, ethertype = struct.pack("!HH", tag, ethertype) + inner, tag_type
    return ethernet(inner, ethertype)


def pieces4(packet: bytes, size: int, ident: int = 9) -> list[bytes]:
    """An IPv4 packet without options as fragments of `size` octets, a multiple of 8."""
    body = packet[20:]
    cuts = range(0, len(body), size)
    return [
        packet[:2]
        + struct.pack("!HHH", 20 + len(body[at : at + size]), ident, (0x2000 if at + size < len(body) else 0) | at // 8)
        + packet[8:20]
        + body[at : at + size]
        for at in cuts
    ]


def pieces6(payload: bytes, size: int, following: int = 6, ident: int = 9) -> list[bytes]:
    """The payload of an IPv6 packet as fragments."""
    made = []
    for at in range(0, len(payload), size):
        more = 1 if at + size < len(payload) else 0
        made.append(ip6(struct.pack("!BBHI", following, 0, at | more, ident) + payload[at : at + size], 44))
    return made


def gre(
    packet: bytes, *, key: int | None = None, seq: int | None = None, check: bool = False, ethertype: int | None = None
) -> bytes:
    """A GRE header and what it carries."""
    flags = (0x8000 if check else 0) | (0x2000 if key is not None else 0) | (0x1000 if seq is not None else 0)
    head = struct.pack("!HH", flags, kind(packet) if ethertype is None else ethertype) + (b"\0" * 4 if check else b"")
    return head + b"".join(struct.pack("!I", word) for word in (key, seq) if word is not None) + packet
