"""What two ends say to a proxy between them before they talk to each other: SOCKS (RFC 1928, 1929; version 4a) and HTTP CONNECT
(RFC 9110 9.3.6).  A login to the proxy is passed over like the rest."""

import ipaddress
import re
from typing import NamedTuple

_CONNECT = re.compile(rb"CONNECT +(\[[0-9A-Fa-f:.]+\]|[^\s:/]{1,255}):(\d{1,5}) +HTTP/1\.[01]\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d)[^\n]*\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length: *(\d{1,6})\r?\n", re.IGNORECASE)
_TRIES = 4
"""CONNECT requests looked at: a proxy may want a login first."""
_METHOD = b"CONNECT "


class Forward(NamedTuple):
    """A connection handed on by a proxy."""

    kind: str
    """`SOCKS4 SOCKS5 HTTP`."""
    host: str
    """Where to, as the client asked."""
    port: int
    orig: int
    """Octets of the originator's that are the proxy's."""
    resp: int


class _More(Exception):
    """More octets are needed."""


class _Octets:
    """Octets read from the front."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next octets; raises _More when they are not there."""
        if self.at + size > len(self._octets):
            raise _More
        self.at += size
        return self._octets[self.at - size : self.at]

    def until(self, end: int) -> bytes:
        """Octets up to one of this value, which is passed."""
        at = self._octets.find(end, self.at)
        if at < 0:
            raise _More
        return self.take(at + 1 - self.at)[:-1]

    def head(self, first: re.Pattern[bytes]) -> tuple[re.Match[bytes] | None, bytes]:
        """A first line and the fields up to the empty line; None: it begins otherwise."""
        end = _HEAD_END.search(self._octets, self.at)
        if end is None:
            raise _More
        octets = self.take(end.end() - self.at)
        return first.match(octets), octets


def forward(orig: bytes, resp: bytes) -> Forward | bool:
    """What the proxy was told; True: more octets may still tell; False: there is none, or it handed nothing on."""
    if orig[:1] in (b"\4", b"\5"):
        read = _socks5 if orig[0] == 5 else _socks4
    elif orig and (orig.startswith(_METHOD) or _METHOD.startswith(orig)):
        read = _http
    else:
        return False
    client, server = _Octets(orig), _Octets(resp)
    try:
        found = read(client, server)
    except _More:
        return True
    return Forward(*found, client.at, server.at) if found is not None else False


def _http(client: _Octets, server: _Octets) -> tuple[str, str, int] | None:
    for _ in range(_TRIES):
        request, _fields = client.head(_CONNECT)
        if request is None or int(request[2]) > 0xFFFF:
            return None
        status, fields = server.head(_STATUS)
        if status is None:
            return None
        if status[1][:1] == b"2":
            return "HTTP", request[1].decode("latin-1").strip("[]"), int(request[2])
        length = _LENGTH.search(fields)
        server.take(int(length[1]) if length else 0)
    return None


def _socks5(client: _Octets, server: _Octets) -> tuple[str, str, int] | None:
    methods = client.take(client.take(2)[1])
    chosen = server.take(2)
    if chosen[0] != 5 or chosen[1] not in methods or chosen[1] not in (0, 2):
        return None
    if chosen[1] == 2:
        if client.take(1) != b"\1":
            return None
        client.take(client.take(1)[0])
        client.take(client.take(1)[0])
        if server.take(2) != b"\1\0":
            return None
    if client.take(3) != b"\5\1\0":
        return None
    host, port = _address(client)
    if server.take(3) != b"\5\0\0" or host is None or _address(server)[0] is None:
        return None
    return "SOCKS5", host, port


def _address(octets: _Octets) -> tuple[str | None, int]:
    """RFC 1928 5."""
    kind = octets.take(1)[0]
    if kind == 3:
        host = octets.take(octets.take(1)[0]).decode("latin-1")
    elif kind in (1, 4):
        host = str(ipaddress.ip_address(octets.take(4 if kind == 1 else 16)))
    else:
        return None, 0
    return host, int.from_bytes(octets.take(2))


def _socks4(client: _Octets, server: _Octets) -> tuple[str, str, int] | None:
    if client.take(2) != b"\4\1":
        return None
    port, address = int.from_bytes(client.take(2)), client.take(4)
    client.until(0)
    named = address[:3] == b"\0\0\0" and address[3] != 0
    host = client.until(0).decode("latin-1") if named else str(ipaddress.ip_address(address))
    return ("SOCKS4", host, port) if server.take(8)[:2] == b"\0\x5a" else None
