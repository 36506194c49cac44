"""pcapng blocks as octets (draft-ietf-opsawg-pcapng), little-endian, times in nanoseconds."""

import struct

SECTION, INTERFACE, STATISTICS, PACKET, SECRETS = 0x0A0D0D0A, 1, 5, 6, 10
SNAPLEN = 262_144
TLS_KEY_LOG = 0x544C534B
_COMMENT, _NAME, _DESCRIPTION, _PROGRAM, _RESOLUTION = 1, 2, 3, 4, 9
_LONGEST = 0xFFFF


def option(code: int, value: bytes) -> bytes:
    """An option; a value longer than its length field can tell is cut."""
    value = value[:_LONGEST]
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(kind: int, body: bytes) -> bytes:
    """A block, its length before and behind it."""
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def section(program: str) -> bytes:
    """Section Header Block."""
    return block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + option(_PROGRAM, program.encode()) + bytes(4))


def interface(name: bytes, linktype: int, snaplen: int = SNAPLEN, description: str = "") -> bytes:
    """Interface Description Block."""
    options = option(_NAME, name)
    if description:
        options += option(_DESCRIPTION, description.encode("utf-8", "backslashreplace"))
    return block(INTERFACE, struct.pack("<HHI", linktype, 0, snaplen) + options + option(_RESOLUTION, b"\x09") + bytes(4))


def statistics(number: int, ts: int, received: int, dropped: int) -> bytes:
    """Interface Statistics Block."""
    head = struct.pack("<III", number, ts >> 32, ts & 0xFFFFFFFF)
    return block(STATISTICS, head + option(4, struct.pack("<Q", received)) + option(5, struct.pack("<Q", dropped)) + bytes(4))


def packet(number: int, ts: int, data: bytes, wire_length: int, comment: bytes) -> bytes:
    """Enhanced Packet Block."""
    ts = max(ts, 0)
    head = struct.pack("<IIIII", number, ts >> 32, ts & 0xFFFFFFFF, len(data), wire_length)
    return block(PACKET, head + data + bytes(-len(data) % 4) + option(_COMMENT, comment) + bytes(4))


def secrets(text: bytes) -> bytes:
    """Decryption Secrets Block of a TLS key log."""
    return block(SECRETS, struct.pack("<II", TLS_KEY_LOG, len(text)) + text + bytes(-len(text) % 4))
