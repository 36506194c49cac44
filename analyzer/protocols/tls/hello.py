"""Handshake messages that are not encrypted (RFC 8446 4, RFC 5246 7.4): pure functions under their productions."""

from collections.abc import Iterator
from typing import NamedTuple

from analyzer.protocols.base import Malformed, text

CLIENT_HELLO, SERVER_HELLO, CERTIFICATE, FINISHED, KEY_UPDATE = 1, 2, 11, 20, 24
TLS12, TLS13 = 0x0303, 0x0304
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a HelloRetryRequest (RFC 8446 4.1.3)."""
_SERVER_NAME, _ALPN, _ENCRYPT_THEN_MAC, _EARLY_DATA, _SUPPORTED_VERSIONS = 0, 16, 22, 42, 43
_NAME = 255
"""Octets of the longest server name."""


class ClientHello(NamedTuple):
    """What the client offers."""

    random: bytes
    sni: str | None
    alpn: tuple[str, ...]
    early_data: bool


class ServerHello(NamedTuple):
    """What the server chose."""

    random: bytes
    version: int
    suite: int
    encrypt_then_mac: bool
    retry: bool
    """A HelloRetryRequest: the client will say hello again."""


class Octets:
    """A cursor that cannot leave its octets."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.pos = 0

    def take(self, n: int) -> bytes:
        """The next n octets."""
        end = self.pos + n
        if end > len(self.octets):
            raise Malformed("a handshake message is too short")
        taken = self.octets[self.pos : end]
        self.pos = end
        return taken

    def number(self, size: int) -> int:
        """An unsigned number of `size` octets."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """A vector behind `size` octets of length."""
        return self.take(self.number(size))

    @property
    def left(self) -> int:
        """Octets not read yet."""
        return len(self.octets) - self.pos


def client_hello(body: bytes) -> ClientHello:
    """ProtocolVersion Random SessionID CipherSuites CompressionMethods Extensions."""
    cursor = Octets(body)
    cursor.take(2)
    random = cursor.take(32)
    cursor.vector(1)
    cursor.vector(2)
    cursor.vector(1)
    sni: str | None = None
    alpn: tuple[str, ...] = ()
    early = False
    for kind, data in extensions(cursor):
        if kind == _SERVER_NAME:
            sni = server_name(data)
        elif kind == _ALPN:
            alpn = protocol_names(data)
        elif kind == _EARLY_DATA:
            early = True
    return ClientHello(random, sni, alpn, early)


def server_hello(body: bytes) -> ServerHello:
    """ProtocolVersion Random SessionID CipherSuite CompressionMethod Extensions."""
    cursor = Octets(body)
    version = cursor.number(2)
    random = cursor.take(32)
    cursor.vector(1)
    suite = cursor.number(2)
    cursor.take(1)
    etm = False
    for kind, data in extensions(cursor):
        if kind == _SUPPORTED_VERSIONS and len(data) == 2:
            version = int.from_bytes(data, "big")
        elif kind == _ENCRYPT_THEN_MAC:
            etm = True
    return ServerHello(random, version, suite, etm, random == _RETRY)


def extensions(cursor: Octets) -> Iterator[tuple[int, bytes]]:
    """Extension*: (type, data); absent before TLS 1.2."""
    if not cursor.left:
        return
    inner = Octets(cursor.vector(2))
    while inner.left:
        yield inner.number(2), inner.vector(2)


def server_name(data: bytes) -> str | None:
    """ServerNameList (RFC 6066 3): its host_name."""
    names = Octets(Octets(data).vector(2)) if data else Octets(b"")
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == 0 and 0 < len(name) <= _NAME:
            return text(name).lower()
    return None


def protocol_names(data: bytes) -> tuple[str, ...]:
    """ProtocolNameList (RFC 7301 3.1)."""
    names = Octets(Octets(data).vector(2))
    found: list[str] = []
    while names.left and len(found) < 16:
        found.append(text(names.vector(1)))
    return tuple(found)


def first_certificate(body: bytes, version: int) -> bytes:
    """The server's own certificate, first of its list (RFC 5246 7.4.2, RFC 8446 4.4.2)."""
    cursor = Octets(body)
    if version >= TLS13:
        cursor.vector(1)
    return Octets(cursor.vector(3)).vector(3)


def certificate_name(der: bytes, asked: str | None) -> str | None:
    """A host name of a certificate: the one asked for when it holds it, else the first in its subject or subjectAltName."""
    from cryptography import x509
    from cryptography.x509.oid import ExtensionOID, NameOID

    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        try:
            found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
            if isinstance(found, x509.SubjectAlternativeName):
                names += found.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            pass
    except Exception:  # certificates are traffic: the library raises what it likes
        return None
    hosts = [n.lower() for n in names if "." in n and 0 < len(n) <= _NAME and not set(n) & set(" *@/")]
    return asked if asked in hosts else hosts[0] if hosts else None
