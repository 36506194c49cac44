"""Which protocols there are, and which of them a connection speaks.

A new protocol costs one file, one line here and one dialogue file.
"""

from collections.abc import Callable
from typing import NamedTuple

from analyzer.limits import Limits
from analyzer.protocols import dns, imap, pop3, smtp, tls
from analyzer.protocols.base import Recognised, Session
from analyzer.wire.types import Connection

Probe = Callable[[bytes, bytes, int, int, bool], Recognised | None]


class Protocol(NamedTuple):
    """One protocol: how it is recognised, what reads it, where it usually lives."""

    name: str
    probe: Probe
    session: Callable[[Connection, bool, Limits], Session]
    ports: frozenset[int]


PROTOCOLS = (
    Protocol("tls", tls.probe, tls.OpaqueSession, frozenset({465, 993, 995, 2465})),
    Protocol("smtp", smtp.probe, smtp.Session, frozenset({24, 25, 587, 2525})),
    Protocol("pop3", pop3.probe, pop3.Session, frozenset({110})),
    Protocol("imap", imap.probe, imap.Session, frozenset({143})),
    Protocol("dns", dns.probe, dns.TcpSession, frozenset({53})),
)
"""In the order they are asked.  Ports are hints for a probe, never the test."""

MAIL_PORTS = frozenset[int]().union(*(p.ports for p in PROTOCOLS if p.name != "dns"))


def recognise(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> tuple[Protocol | None, bool, bool]:
    """Who reads this connection: (protocol or None, client_is_orig, sure).

    `sure` False: more octets may still tell.
    """
    for protocol in PROTOCOLS:
        found = protocol.probe(orig, resp, conn.orig_port, conn.resp_port, closing)
        if found is not None:
            return (protocol if found.protocol else None), found.client_is_orig, True
    return None, True, closing
