"""The PROXY protocol (haproxy's, versions 1 and 2): before all else, a proxy tells the server who its client is."""

import ipaddress

_V1, _V2 = b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n"
BEGINNINGS = frozenset((_V1[0], _V2[0]))
"""First octets of a header."""
LONGEST = 16 + 0xFFFF
"""Octets of the longest header."""


def header(octets: bytes) -> tuple[int, str | None] | None:
    """The header that octets begin with: its length and the source address, None where it states none.

    None when more octets are needed; length 0 when there is no such header.
    """
    if octets.startswith(_V1):
        end = octets.find(b"\n", 0, 110)
        if end < 0:
            return None if len(octets) < 110 else (0, None)
        words = octets[:end].split()
        return end + 1, address(words[2].decode("latin-1")) if len(words) > 2 and words[1] in (b"TCP4", b"TCP6") else None
    if octets.startswith(_V2):
        if len(octets) < 16:
            return None
        size = 16 + int.from_bytes(octets[14:16])
        if len(octets) < size:
            return None
        family, body = octets[13] >> 4, octets[16:size]
        source = body[:4] if family == 1 and len(body) >= 12 else body[:16] if family == 2 and len(body) >= 36 else b""
        return size, str(ipaddress.ip_address(source)) if source and octets[12] & 15 == 1 else None
    if octets and (_V2.startswith(octets) or _V1.startswith(octets)):
        return None
    return 0, None


def address(shown_as: str) -> str | None:
    """An IP address in its usual form; None when it is none."""
    try:
        return str(ipaddress.ip_address(shown_as))
    except ValueError:
        return None
