"""What is known of a session's TLS without opening it, and how much was opened: columns of `sessions`."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from operator import attrgetter
from typing import Any

from analyzer.protocols.base import text
from analyzer.protocols.tls.fingerprints import ja3, ja3s, ja4
from analyzer.protocols.tls.hello import Certificate, ClientHello, ServerHello, certificate, host_name


@lru_cache(maxsize=256)
def _fingerprints(hello: ClientHello) -> tuple[str, str]:
    """JA3 and JA4; clients of one kind say the same but for what is random."""
    return ja3(hello), ja4(hello)


@lru_cache(maxsize=256)
def _certificate(chain: tuple[bytes, ...]) -> tuple[Certificate | None, tuple[str, ...]]:
    """What the first certificate of a chain says, and the SHA-256 of each; a server sends the same again and again."""
    return certificate(chain[0]), tuple(sha256(der).hexdigest() for der in chain)


@dataclass(slots=True)
class Facts:
    """Each field is a column of `sessions`, where its sentence is; None is not known."""

    alpn: str | None = None
    alpn_offered: list[str] | None = None
    ja3: str | None = None
    ja3s: str | None = None
    ja4: str | None = None
    cert_subject: str | None = None
    cert_issuer: str | None = None
    cert_names: list[str] | None = None
    cert_sha256: list[str] | None = None
    ts_cert_not_before: int | None = None
    ts_cert_not_after: int | None = None
    client_cert_subject: str | None = None
    client_cert_sha256: str | None = None
    tls_resumed: bool | None = None
    tls_handshake_s: float | None = None
    tls_client_bytes: int | None = None
    tls_server_bytes: int | None = None
    ts_tls_client: int | None = None
    ts_tls_server: int | None = None
    tls_unread_bytes: int | None = None

    def columns(self) -> dict[str, Any]:
        """The fields by name."""
        return dict(zip(self.__slots__, _values(self), strict=True))

    def offered(self, hello: ClientHello) -> None:
        """What the first ClientHello tells."""
        self.ja3, self.ja4 = _fingerprints(hello._replace(random=b"", session_id=b"", sni=None))
        self.alpn_offered = [text(name) for name in hello.alpn] or None

    def answered(self, hello: ServerHello, asked: ClientHello | None) -> None:
        """What the first ServerHello tells."""
        self.ja3s = ja3s(hello)
        if hello.alpn is not None:
            self.alpn = text(hello.alpn)
        if asked is not None:
            self.tls_resumed = hello.resumes(asked)

    def server_chain(self, chain: list[bytes], asked: str | None) -> str | None:
        """What the server's certificates tell; the host name that its own one gives it."""
        read, hashes = _certificate(tuple(chain))
        self.cert_sha256 = list(hashes)
        if read is None:
            return None
        self.cert_subject, self.cert_issuer = read.subject, read.issuer
        self.cert_names = list(dict.fromkeys(read.alternative_names or read.common_names)) or None
        self.ts_cert_not_before, self.ts_cert_not_after = read.not_before, read.not_after
        return host_name(read, asked)

    def client_chain(self, chain: list[bytes]) -> None:
        """What the client's certificate tells."""
        read, hashes = _certificate(tuple(chain[:1]))
        self.client_cert_sha256 = hashes[0]
        self.client_cert_subject = read.subject if read is not None else None


_values = attrgetter(*Facts.__slots__)
