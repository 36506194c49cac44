"""Writes small capture files, octet by octet, good ones and bad ones."""

import struct
from collections.abc import Iterable

START = 1_700_000_000
"""Second of the first frame."""


def payloads(count: int, size: int = 60) -> list[bytes]:
    """Frames that can be told apart; their octets are no lengths, times or magics."""
    return [(b"frame %05d " % n).ljust(size + n % 7, b"*") for n in range(1, count + 1)]


def record(
    data: bytes, sec: int = START, frac: int = 0, *, wire: int | None = None, length: int | None = None, order: str = "<"
) -> bytes:
    """A pcap record; `length` may lie."""
    captured = len(data) if length is None else length
    return struct.pack(order + "IIII", sec, frac, captured, len(data) if wire is None else wire) + data


def pcap_header(*, order: str = "<", magic: int = 0xA1B2C3D4, snaplen: int = 262_144, linktype: int = 1) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)


def pcap(frames: Iterable[bytes], *, order: str = "<", magic: int = 0xA1B2C3D4, linktype: int = 1) -> bytes:
    """A pcap file, a frame every millisecond."""
    unit = 1 if magic == 0xA1B23C4D else 1000
    body = b"".join(record(data, START + n // 1000, n % 1000 * 1_000_000 // unit, order=order) for n, data in enumerate(frames))
    return pcap_header(order=order, magic=magic, linktype=linktype) + body


def snoop(frames: Iterable[bytes], datalink: int = 4) -> bytes:
    """A snoop file (RFC 1761), records padded to four octets."""
    out = b"snoop\0\0\0" + struct.pack(">II", 2, datalink)
    for n, data in enumerate(frames):
        pad = -len(data) % 4
        out += struct.pack(">IIIIII", len(data), len(data), 24 + len(data) + pad, 0, START + n // 1000, n % 1000 * 1000)
        out += data + bytes(pad)
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A pcapng block."""
    body += bytes(-len(body) % 4)
    length = 12 + len(body)
    return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", length)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(linktype: int = 1, snaplen: int = 0, options: bytes = b"", order: str = "<") -> bytes:
    return block(1, struct.pack(order + "HHI", linktype, 0, snaplen) + options, order)


def enhanced(
    data: bytes, ticks: int, interface: int = 0, *, wire: int | None = None, length: int | None = None, order: str = "<"
) -> bytes:
    """An Enhanced Packet Block; `length` may lie."""
    captured = len(data) if length is None else length
    sizes = (captured, len(data) if wire is None else wire)
    return block(6, struct.pack(order + "IIIII", interface, ticks >> 32, ticks & 0xFFFF_FFFF, *sizes) + data, order)


def simple(data: bytes, wire: int | None = None, order: str = "<") -> bytes:
    return block(3, struct.pack(order + "I", len(data) if wire is None else wire) + data, order)


def obsolete(data: bytes, ticks: int, interface: int = 0, order: str = "<") -> bytes:
    head = struct.pack(order + "HHIIII", interface, 9, ticks >> 32, ticks & 0xFFFF_FFFF, len(data), len(data))
    return block(2, head + data, order)


def secrets(text: bytes, order: str = "<") -> bytes:
    return block(10, struct.pack(order + "II", 0x544C534B, len(text)) + text, order)


def pcapng(frames: Iterable[bytes], order: str = "<") -> bytes:
    """A pcapng file of one interface, a frame every millisecond."""
    packets = (enhanced(data, START * 1_000_000 + n * 1000, order=order) for n, data in enumerate(frames))
    return section(order) + interface(order=order) + b"".join(packets)
