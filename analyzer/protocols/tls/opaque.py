"""Implicit TLS: mail (RFC 8314) and DNS (RFC 7858, 8484); opaque, or the real session when there are keys."""

import re

from analyzer.limits import Limits
from analyzer.protocols.base import Event, Recognised, Session, SessionEnded, session_row
from analyzer.protocols.tls.layer import CHANGE_CIPHER_SPEC, HEARTBEAT, LONGEST, RECORD, Layer
from analyzer.wire.types import Chunk, Connection

IMPLICIT = {465: "smtp", 993: "imap", 995: "pop3", 2465: "smtp", 853: "dns"}
"""Ports where TLS is spoken from the first octet (RFC 8314 7, 7858 3.1; 2465 stands in for 465 where that is blocked)."""
PORTS = {25: "smtp", 587: "smtp", 2525: "smtp", 24: "smtp", 110: "pop3", 143: "imap"} | IMPLICIT
"""Ports where a ClientHello as the first octets is a mail connection too."""


HTTPS = 443
DOH_SERVERS = re.compile(
    rb"dns\.google|cloudflare-dns\.com|one\.one\.one\.one|dns1?\d?\.quad9\.net|doh\.(?:opendns\.com|cleanbrowsing\.org)|"
    rb"dns\.(?:nextdns\.io|mullvad\.net|adguard(?:-dns)?\.com)"
)
"""Server names of public DNS over HTTPS (RFC 8484): by anything else it cannot be told from other HTTPS."""
DNS = ("dns", "doh")


class OpaqueSession(Session):
    """A mail connection inside TLS from its first octet.

    Its protocol is that of its port.  Plaintext, where keys give any, goes to a session of that protocol, which
    then tells everything; without any the connection is one row.
    """

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        port = conn.resp_port if client_is_orig else conn.orig_port
        self.protocol = "doh" if port == HTTPS else PORTS.get(port, "smtp")
        super().__init__(conn, client_is_orig, limits)
        self._inner: Session | None = None

    def feed(self, *chunks: Chunk) -> list[Event]:
        """Take ordered octets, each chunk of one direction; return what they complete."""
        layer = self._layer()
        for chunk in chunks:
            if chunk.gap:
                self._hand_on(layer.read(self))
            self._route(chunk)
        self._hand_on(layer.read(self))
        events, self.events = self.events, []
        return events

    def _layer(self) -> Layer:
        if self.tls is None:
            self.start_tls(None, implicit=True)
        layer: Layer = self.tls
        return layer

    def _hand_on(self, plain: list[Chunk]) -> None:
        """Hand plaintext on to the session of the protocol."""
        if plain and self.protocol != "doh":  # what is inside is HTTP
            self.events += self._reader().feed(*plain)

    def _reader(self) -> Session:
        if self._inner is None:
            from analyzer.protocols.registry import PROTOCOLS

            made = next(p.session for p in PROTOCOLS if p.name == self.protocol)
            self._inner = made(self.info.connection, self.client_is_orig, self.limits)
            self._inner.info = self.info
        return self._inner

    def close(self, reason: str, ts: int) -> list[Event]:
        """The connection is over: one row, by whichever session has read it."""
        if self.tls is not None:
            self._hand_on(self.tls.finish(self))
        if self._inner is not None:
            self.events += self._inner.close(reason, ts)
        elif self.protocol in DNS:
            info, over = self.info, "TLS" if self.protocol == "dns" else "HTTPS"
            detail = f"DNS over {over}, {info.client_ip} with {info.sni or info.server_ip}"
            self.weird("encrypted_dns", detail, info.connection.ts, info.connection.first_frame)
        else:
            self.events.append(SessionEnded(self.info, session_row(self.info, self.client_is_orig)))
        events, self.events = self.events, []
        return events


def probe(orig: bytes, resp: bytes, orig_port: int, resp_port: int, closing: bool) -> Recognised | None:
    """A ClientHello on a mail port, or anything that is no text on a port of implicit TLS (joined mid-stream)."""
    for port, octets, from_orig in ((resp_port, orig, True), (orig_port, resp, False)):
        if port in PORTS and is_client_hello(octets):
            return Recognised("tls", from_orig)
        if port == HTTPS and DOH_SERVERS.search(octets, 0, 2048) and is_client_hello(octets):
            return Recognised("tls", from_orig)
    if resp_port in IMPLICIT or orig_port in IMPLICIT:
        for octets in (orig, resp):
            if len(octets) > RECORD or (octets and closing):
                return Recognised("tls", resp_port in IMPLICIT) if not _is_text(octets[:64]) else None
    return None


def is_client_hello(octets: bytes) -> bool:
    """A record of handshake type that begins with a ClientHello (RFC 8446 4.1.2), or an SSLv2 one in its place."""
    if len(octets) < RECORD + 1:
        return False
    size = octets[3] << 8 | octets[4]
    return (octets[0] == 22 and octets[1] == 3 and 0 < size <= LONGEST and octets[5] == 1) or (
        octets[0] & 0x80 != 0 and octets[2] == 1 and octets[3] == 3
    )


def _is_text(octets: bytes) -> bool:
    if CHANGE_CIPHER_SPEC <= octets[0] <= HEARTBEAT and octets[1:2] in (b"", b"\x03"):
        return False
    return all(32 <= x < 127 or x in b"\t\r\n" for x in octets)
