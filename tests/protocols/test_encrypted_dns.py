"""DNS inside TLS is named, never parsed: over TLS on 853, over HTTPS where the server's name gives it away."""

import ssl

import pytest
from protocols import dialogue

from analyzer.limits import Limits
from analyzer.protocols import tls
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Chunk


def client_hello(name: str) -> bytes:
    """What a TLS client says first."""
    outgoing = ssl.MemoryBIO()
    link = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        link.do_handshake()
    return outgoing.read()


def told(port: int, name: str) -> list[object]:
    hello = client_hello(name)
    found = tls.probe(hello, b"", 40000, port, False)
    if found is None:
        return []
    session = tls.OpaqueSession(dialogue.connection(port), found.client_is_orig, Limits())
    events = session.feed(Chunk(True, 0, 0, hello, [0], [dialogue.START], [4], [0]))
    return events + session.close("fin", dialogue.START)


@pytest.mark.parametrize(
    ("port", "name", "said"),
    [
        (853, "resolver.example.net", "DNS over TLS, 192.0.2.10 with resolver.example.net"),
        (443, "dns.google", "DNS over HTTPS, 192.0.2.10 with dns.google"),
    ],
)
def test_it_is_one_named_oddity_and_no_mail_session(port: int, name: str, said: str) -> None:
    (only,) = told(port, name)
    assert isinstance(only, Anomaly)
    assert (only.name, only.detail) == ("encrypted_dns", said)


def test_other_https_is_not_ours() -> None:
    assert told(443, "www.example.net") == []
