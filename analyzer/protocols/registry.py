"""Which protocols there are, and which of them a connection speaks.

A new protocol costs one file, one line here and one dialogue file.
"""

import re
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from analyzer.limits import Limits
from analyzer.protocols import dns, imap, pop3, proxy, smtp, tls
from analyzer.protocols.base import Recognised, Session
from analyzer.protocols.forward import Forward, forward
from analyzer.wire.types import Connection

Probe = Callable[[bytes, bytes, int, int, bool], Recognised | None]


class Protocol(NamedTuple):
    """One protocol: how it is recognised, what reads it, where it usually lives."""

    name: str
    probe: Probe
    session: Callable[[Connection, bool, Limits], Session]
    ports: frozenset[int]


def _later(package: ModuleType) -> Callable[[Connection, bool, Limits], Session]:
    """A package's `Session`, which is loaded with the first connection that needs it: the command must start fast."""

    def session(conn: Connection, client_is_orig: bool, limits: Limits) -> Session:
        made: Session = package.Session(conn, client_is_orig, limits)
        return made

    return session


PROTOCOLS = (
    Protocol("tls", tls.probe, tls.OpaqueSession, frozenset({465, 993, 995, 2465})),
    Protocol("smtp", smtp.probe, _later(smtp), frozenset({24, 25, 587, 2525})),
    Protocol("pop3", pop3.probe, pop3.Session, frozenset({110})),
    Protocol("imap", imap.probe, _later(imap), frozenset({143})),
    Protocol("dns", dns.probe, dns.TcpSession, frozenset({53})),
)
"""In the order they are asked.  Ports are hints for a probe, never the test."""

_FOREIGN = re.compile(
    rb"\x16\x03[\x00-\x04]|(?:GET|POST|HEAD|PUT|OPTIONS|DELETE|PATCH) [^\n]{1,2000} HTTP/1|PRI \* HTTP/2|HTTP/1\.[01] |SSH-[12]\."
)
"""How connections begin that are none of these, unless TLS on a port of mail: TLS, HTTP, SSH."""

_HANDSHAKE = 0x16
_HELLO = 2048
"""Octets of a ClientHello in which the server's name is looked for."""

MAIL_PORTS = frozenset[int]().union(*(p.ports for p in PROTOCOLS if p.name != "dns"))


def recognise(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> tuple[Protocol | None, bool, bool, Forward | None]:
    """Who reads this connection: (protocol or None, client_is_orig, sure, the proxy that hands it on).

    `sure` False: more octets may still tell.
    """
    found = forward(orig, resp) if conn.start == "handshake" else False
    if found is True and not closing:
        return None, True, False, None
    through, port = None, conn.resp_port
    if isinstance(found, Forward):
        through, port, orig, resp = found, found.port, orig[found.orig :], resp[found.resp :]
        if not (orig or resp or closing):
            return None, True, False, None
    return *_inside(conn, orig, resp, port, closing), through


def _inside(conn: Connection, orig: bytes, resp: bytes, port: int, closing: bool) -> tuple[Protocol | None, bool, bool]:
    if conn.start == "handshake" and orig and orig[0] in proxy.BEGINNINGS:
        header = proxy.header(orig)
        if header is None and not closing:
            return None, True, False
        orig = orig[header[0] :] if header else orig
    if conn.start == "handshake" and foreign(orig, resp, conn.orig_port, port):
        return None, True, True
    for protocol in PROTOCOLS:
        found = protocol.probe(orig, resp, conn.orig_port, port, closing)
        if found is not None:
            return (protocol if found.protocol else None), found.client_is_orig, True
    return None, True, closing


def foreign(orig: bytes, resp: bytes, orig_port: int, resp_port: int) -> bool:
    """Whether a connection seen from its opening surely begins as none of these: HTTP, SSH, TLS elsewhere than on ports of mail.

    The beginning of what each side says is enough, the first segment of each, too.
    """
    if _FOREIGN.match(orig) is None or _FOREIGN.match(resp) is None:
        return False
    if orig[0] == _HANDSHAKE and len(orig) < min(5 + (orig[3] << 8 | orig[4]), _HELLO):
        return False
    return tls.probe(orig, resp, orig_port, resp_port, False) is None
