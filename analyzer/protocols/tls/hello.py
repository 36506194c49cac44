"""Handshake messages that are not encrypted (RFC 8446 4, RFC 5246 7.4): pure functions under their productions."""

import calendar
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from analyzer.protocols.base import Malformed, text
from analyzer.wire.compression import zstd_frame

CLIENT_HELLO, SERVER_HELLO, END_OF_EARLY_DATA, ENCRYPTED_EXTENSIONS, CERTIFICATE = 1, 2, 5, 8, 11
FINISHED, KEY_UPDATE, COMPRESSED_CERTIFICATE = 20, 24, 25
TLS12, TLS13 = 0x0303, 0x0304
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a HelloRetryRequest (RFC 8446 4.1.3)."""
SERVER_NAME, ALPN = 0, 16
_GROUPS, _POINT_FORMATS, _SIGNATURES, _ENCRYPT_THEN_MAC, _PRE_SHARED_KEY = 10, 11, 13, 22, 41
_EARLY_DATA, _SUPPORTED_VERSIONS = 42, 43
_EXTENSION = struct.Struct("!HH")
"""Type and size of an extension."""
_NAME = 255
"""Octets of the longest server name."""
_SUBJECT = 1000
"""Characters of a distinguished name shown."""
_PROTOCOLS, _CHAIN, _ALTERNATIVES = 16, 16, 100
"""ALPN names, certificates of a chain, and alternative names that are read: the rest is left."""
_ZLIB, _BROTLI, _ZSTD = 1, 2, 3
_WINDOW = 8 << 20
"""Octets of the largest window of zstd that is unpacked: what RFC 8878 3.1.1.1.2 recommends to support."""
_ADDRESS = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


class ClientHello(NamedTuple):
    """What the client offers, numbers as they stand in it (GREASE included)."""

    random: bytes
    sni: str | None = None
    alpn: tuple[bytes, ...] = ()
    early_data: bool = False
    version: int = TLS12
    """legacy_version."""
    session_id: bytes = b""
    suites: tuple[int, ...] = ()
    extensions: tuple[int, ...] = ()
    """Their types, in order."""
    groups: tuple[int, ...] = ()
    point_formats: bytes = b""
    signatures: tuple[int, ...] = ()
    versions: tuple[int, ...] = ()
    """supported_versions."""


class ServerHello(NamedTuple):
    """What the server chose."""

    random: bytes
    version: int
    suite: int
    encrypt_then_mac: bool = False
    retry: bool = False
    """A HelloRetryRequest: the client will say hello again."""
    legacy_version: int = TLS12
    session_id: bytes = b""
    extensions: tuple[int, ...] = ()
    alpn: bytes | None = None

    def resumes(self, client: ClientHello) -> bool:
        """Whether it resumes a session: by PSK (RFC 8446 2.2), or by its identifier or ticket (RFC 5246 7.3, 5077 3.4)."""
        if self.version >= TLS13:
            return _PRE_SHARED_KEY in self.extensions
        return self.session_id != b"" and self.session_id == client.session_id


class Certificate(NamedTuple):
    """What a certificate says of its owner (RFC 5280 4.1)."""

    subject: str
    """Distinguished names as in RFC 4514."""
    issuer: str
    common_names: tuple[str, ...]
    alternative_names: tuple[str, ...]
    """DNS names, addresses and mailboxes of its subjectAltName."""
    not_before: int
    not_after: int
    """Nanoseconds since 1970."""


class Octets:
    """A cursor that cannot leave its octets."""

    __slots__ = ("octets", "pos")

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
        begin = self.pos + size
        end = begin + int.from_bytes(self.octets[self.pos : begin], "big")
        if begin > len(self.octets) or end > len(self.octets):
            raise Malformed("a handshake message is too short")
        self.pos = end
        return self.octets[begin:end]

    @property
    def left(self) -> int:
        """Octets not read yet."""
        return len(self.octets) - self.pos


def client_hello(body: bytes) -> ClientHello:
    """ProtocolVersion Random SessionID CipherSuites CompressionMethods Extensions."""
    cursor = Octets(body)
    version, random, session_id = cursor.number(2), cursor.take(32), cursor.vector(1)
    suites = numbers(cursor.vector(2))
    cursor.vector(1)
    kinds: list[int] = []
    found: dict[int, Any] = {}
    for kind, data in extensions(cursor):
        kinds.append(kind)
        if kind in _OFFERS:
            found[kind] = _offer(kind, data)
    return ClientHello(
        random, found.get(SERVER_NAME), found.get(ALPN, ()), found.get(_EARLY_DATA, False), version, session_id, suites,
        tuple(kinds), found.get(_GROUPS, ()), found.get(_POINT_FORMATS, b""), found.get(_SIGNATURES, ()),
        found.get(_SUPPORTED_VERSIONS, ()),
    )  # fmt: skip


def server_hello(body: bytes) -> ServerHello:
    """ProtocolVersion Random SessionID CipherSuite CompressionMethod Extensions."""
    cursor = Octets(body)
    version = legacy = cursor.number(2)
    random, session_id, suite = cursor.take(32), cursor.vector(1), cursor.number(2)
    cursor.take(1)
    etm = False
    kinds: list[int] = []
    alpn: bytes | None = None
    for kind, data in extensions(cursor):
        kinds.append(kind)
        if kind == _SUPPORTED_VERSIONS and len(data) == 2:
            version = int.from_bytes(data, "big")
        elif kind == _ENCRYPT_THEN_MAC:
            etm = True
        elif kind == ALPN:
            alpn = next(iter(protocol_names(data)), None)
    return ServerHello(random, version, suite, etm, random == _RETRY, legacy, session_id, tuple(kinds), alpn)


def chosen_protocol(body: bytes) -> bytes | None:
    """The ALPN of EncryptedExtensions (RFC 8446 4.3.1)."""
    for kind, data in extensions(Octets(body)):
        if kind == ALPN:
            return next(iter(protocol_names(data)), None)
    return None


def numbers(data: bytes) -> tuple[int, ...]:
    """A vector of numbers of two octets; an odd octet behind them is left."""
    return struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])


def extensions(cursor: Octets) -> list[tuple[int, bytes]]:
    """Extension*: (type, data); absent before TLS 1.2."""
    if not cursor.left:
        return []
    octets = cursor.vector(2)
    found: list[tuple[int, bytes]] = []
    pos, size = 0, len(octets)
    while pos < size:
        if pos + 4 > size:
            raise Malformed("an extension is too short")
        kind, length = _EXTENSION.unpack_from(octets, pos)
        begin = pos + 4
        pos = begin + length
        if pos > size:
            raise Malformed("an extension is too short")
        found.append((kind, octets[begin:pos]))
    return found


def server_name(data: bytes) -> str | None:
    """ServerNameList (RFC 6066 3): its host_name."""
    names = Octets(Octets(data).vector(2)) if data else Octets(b"")
    while names.left:
        kind, name = names.number(1), names.vector(2)
        if kind == 0 and 0 < len(name) <= _NAME:
            return text(name).lower()
    return None


def protocol_names(data: bytes) -> tuple[bytes, ...]:
    """ProtocolNameList (RFC 7301 3.1)."""
    names = Octets(Octets(data).vector(2))
    found: list[bytes] = []
    while names.left and len(found) < _PROTOCOLS:
        found.append(names.vector(1))
    return tuple(found)


_OFFERS: dict[int, Callable[[bytes], Any]] = {
    SERVER_NAME: server_name,
    ALPN: protocol_names,
    _GROUPS: lambda data: numbers(Octets(data).vector(2)),
    _POINT_FORMATS: lambda data: Octets(data).vector(1),
    _SIGNATURES: lambda data: numbers(Octets(data).vector(2)),
    _EARLY_DATA: lambda data: True,
    _SUPPORTED_VERSIONS: lambda data: numbers(Octets(data).vector(1)),
}
"""What is read of a ClientHello's extensions."""


@lru_cache(maxsize=256)
def _offer(kind: int, data: bytes) -> Any:
    """What an extension says: clients of one kind say the same."""
    return _OFFERS[kind](data)


def certificates(body: bytes, version: int) -> list[bytes]:
    """Certificates of a Certificate message, DER, the sender's own first (RFC 5246 7.4.2, RFC 8446 4.4.2)."""
    cursor = Octets(body)
    if version >= TLS13:
        cursor.vector(1)
    chain = Octets(cursor.vector(3))
    found: list[bytes] = []
    while chain.left and len(found) < _CHAIN:
        found.append(chain.vector(3))
        if version >= TLS13:
            chain.vector(2)
    return found


def inflated(body: bytes, most: int) -> bytes:
    """The Certificate in a CompressedCertificate (RFC 8879 4); Malformed if it cannot be unpacked or is longer than `most`.

    Brotli takes a library that need not be there (`mailhop[brotli]`).
    """
    cursor = Octets(body)
    algorithm, size, packed = cursor.number(2), cursor.number(3), cursor.vector(3)
    if algorithm not in _UNPACK or size > most:
        raise Malformed("compressed in a way that is not read here")
    try:
        unpacked = _UNPACK[algorithm](packed, size + 1)
    except Exception as wrong:  # each library has its own class
        raise Malformed("it cannot be unpacked") from wrong
    if len(unpacked) != size:
        raise Malformed("not as long as it says")
    return unpacked


def _unbrotli(packed: bytes, most: int) -> bytes:
    """What a brotli stream (RFC 7932) holds; little more than `most` octets of it."""
    import brotli

    unpacked: bytes = brotli.Decompressor().process(packed, output_buffer_limit=most)
    return unpacked


_UNPACK: dict[int, Callable[[bytes, int], bytes]] = {
    _ZLIB: lambda packed, most: zlib.decompressobj().decompress(packed, most),
    _BROTLI: _unbrotli,
    _ZSTD: lambda packed, most: zstd_frame(_WINDOW).decompress(packed, most),
}
"""By CertificateCompressionAlgorithm: what unpacks a certificate, and so many octets of it at most."""


def certificate(der: bytes) -> Certificate | None:
    """What a certificate says; None when it cannot be read."""
    from cryptography import x509
    from cryptography.x509.oid import ExtensionOID, NameOID

    try:
        with warnings.catch_warnings():  # of serial numbers and encodings that are not as they should be
            warnings.simplefilter("ignore")
            read = x509.load_der_x509_certificate(der)
            common = tuple(str(a.value)[:_NAME] for a in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
            begin, end = read.not_valid_before_utc, read.not_valid_after_utc
            times = [calendar.timegm(t.timetuple()) * 1_000_000_000 for t in (begin, end)]
            subject, issuer = (name.rfc4514_string()[:_SUBJECT] for name in (read.subject, read.issuer))
            others: list[str] = []
            try:
                found = read.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
            except x509.ExtensionNotFound:
                found = None
            if isinstance(found, x509.SubjectAlternativeName):
                kinds = (x509.DNSName, x509.IPAddress, x509.RFC822Name)
                others = [str(name.value)[:_NAME] for name in found if isinstance(name, kinds)]
    except Exception:  # certificates are traffic: the library raises what it likes
        return None
    return Certificate(subject, issuer, common, tuple(others[:_ALTERNATIVES]), times[0], times[1])


@lru_cache(maxsize=256)
def host_name(read: Certificate, asked: str | None) -> str | None:
    """A host name of a certificate: the one asked for when it holds it, else the first in its subject or subjectAltName."""
    names = (*read.common_names, *read.alternative_names)
    hosts = [n.lower() for n in names if "." in n and not set(n) & set(" *@/") and not _ADDRESS.fullmatch(n)]
    return asked if asked in hosts else hosts[0] if hosts else None
