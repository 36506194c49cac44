"""What is known of TLS without keys: fingerprints, certificates, sizes, and what became of STARTTLS."""

import hashlib
import zlib
from collections.abc import Callable

import brotli
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from dialogue import EVERY_WAY, Played, play
from test_tls import conversation, dialogue, pem, tap

from analyzer.limits import Limits
from analyzer.protocols.base import SessionRow, session_row
from analyzer.protocols.imap import Session as ImapSession
from analyzer.protocols.pop3 import Session as Pop3Session
from analyzer.protocols.smtp import Session as SmtpSession
from analyzer.protocols.starttls import Offers
from analyzer.protocols.tls.fingerprints import is_grease, ja3, ja3s, ja4
from analyzer.protocols.tls.hello import ClientHello, ServerHello

try:
    from compression import zstd
except ImportError:
    from backports import zstd

# -- fingerprints ----------------------------------------------------------------------------------------------------------

CHROME = ClientHello(
    b"r" * 32,
    sni="example.org",
    alpn=(b"h2", b"http/1.1"),
    suites=(0x2A2A, *(int(n, 16) for n in "1301 1302 1303 C02B C02F C02C C030 CCA9 CCA8 C013 C014 009C 009D 002F 0035".split())),
    extensions=(
        0x1A1A,
        *(int(n, 16) for n in "001B 0000 0033 0010 4469 0017 002D 000D 0005 0023 0012 002B FF01 000B 000A 0015".split()),
    ),
    groups=(0x3A3A, 0x1D, 0x17, 0x18),
    point_formats=b"\0",
    signatures=tuple(int(n, 16) for n in "0403 0804 0401 0503 0805 0501 0806 0601".split()),
    versions=(0x4A4A, 0x0304, 0x0303),
)
"""The ClientHello that the description of JA4 shows, GREASE put back."""


def test_ja4_is_as_published() -> None:
    assert ja4(CHROME) == "t13d1516h2_8daaf6152771_e5627efa2ab1"


@pytest.mark.parametrize(
    ("change", "begins"),
    [
        ({"alpn": ()}, "t13d151600"),
        ({"alpn": (b"\xab\xcd",)}, "t13d1516ad"),
        ({"alpn": (b"h",)}, "t13d1516hh"),
        ({"versions": ()}, "t12d1516h2"),
        ({"versions": (), "version": 0x0301}, "t10d1516h2"),
        ({"extensions": ()}, "t13i1500h2_8daaf6152771_000000000000"),
        ({"suites": ()}, "t13d0016h2_000000000000_"),
        ({"suites": tuple(range(0x100, 0x200))}, "t13d9916h2"),
    ],
)
def test_ja4_of_odd_hellos(change: dict[str, object], begins: str) -> None:
    assert ja4(CHROME._replace(**change)).startswith(begins)  # type: ignore[arg-type]


def test_ja3_and_ja3s_are_digests_of_what_their_descriptions_say() -> None:
    hello = ClientHello(b"", version=769, suites=(47, 53, 5), extensions=(0, 10, 11), groups=(23, 24, 25), point_formats=b"\0")
    assert ja3(hello) == hashlib.md5(b"769,47-53-5,0-10-11,23-24-25,0").hexdigest()
    assert ja3(ClientHello(b"", version=769, suites=(4, 5))) == hashlib.md5(b"769,4-5,,,").hexdigest()
    assert (
        ja3s(ServerHello(b"", 0x0304, 47, legacy_version=769, extensions=(65281, 11)))
        == hashlib.md5(b"769,47,65281-11").hexdigest()
    )


def test_grease() -> None:
    """RFC 8701 2."""
    assert [n for n in range(65536) if is_grease(n)] == [0x0A0A + 0x1010 * i for i in range(16)]


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_a_session_has_the_fingerprints_of_its_hellos(cut: int | str, order: str) -> None:
    turns, _ = conversation("TLSv1_2")
    first = facts(tap(dialogue(turns)))
    again = facts(tap(dialogue(turns), cut=cut, order=order))
    assert first == again
    assert first.ja4 is not None and first.ja4.startswith("t12d")
    assert first.ja3 is not None and first.ja3s is not None and len(first.ja3) == len(first.ja3s) == 32


# -- certificates and names ------------------------------------------------------------------------------------------------


def facts(played: Played) -> SessionRow:
    return session_row(played.info, True)


@pytest.mark.parametrize(("version", "keys"), [("TLSv1_2", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_the_certificate_is_told(version: str, keys: bool) -> None:
    turns, log = conversation(version)
    row = facts(tap(dialogue(turns), log if keys else None))
    made = x509.load_pem_x509_certificate(pem())
    assert row.cert_subject == row.cert_issuer == "CN=mx.example.net"
    assert row.cert_names == ["*.example.net", "mail.example.net"]
    assert row.cert_sha256 == [made.fingerprint(hashes.SHA256()).hex()]
    assert row.ts_cert_not_after == int(made.not_valid_after_utc.timestamp()) * 1_000_000_000
    assert row.ts_cert_not_before == int(made.not_valid_before_utc.timestamp()) * 1_000_000_000


def test_tls_1_3_hides_the_certificate_without_keys() -> None:
    row = facts(tap(dialogue(conversation("TLSv1_3")[0])))
    assert (row.cert_subject, row.cert_names, row.cert_sha256) == (None, None, None)


def packed_certificate(algorithm: int, packed: bytes, size: int) -> SessionRow:
    """A TLS 1.3 session whose server sends its certificate as a CompressedCertificate (RFC 8879)."""
    turns, log = conversation("TLSv1_3")
    secret = next(bytes.fromhex(line.split()[2].decode()) for line in log.splitlines() if line.startswith(b"SERVER_HANDSHAKE"))
    key, iv = (
        HKDFExpand(hashes.SHA384(), n, n.to_bytes(2, "big") + bytes((6 + len(label),)) + b"tls13 " + label + b"\0").derive(secret)
        for label, n in ((b"key", 32), (b"iv", 12))
    )

    def message(kind: int, body: bytes) -> bytes:
        return bytes((kind,)) + len(body).to_bytes(3, "big") + body

    body = algorithm.to_bytes(2, "big") + size.to_bytes(3, "big") + len(packed).to_bytes(3, "big") + packed
    inner = message(8, b"\0\0") + message(25, body) + message(20, bytes(48)) + b"\x16"
    header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
    hello, flight = turns[:2]
    begin = 5 + int.from_bytes(flight[1][3:5], "big")  # behind the ServerHello
    said = flight[1][:begin] + header + AESGCM(key).encrypt(iv, inner, header)
    return facts(tap(dialogue((hello, ("S", said), *turns[2:])), log))


def certificate_message() -> bytes:
    """A Certificate of TLS 1.3 (RFC 8446 4.4.2)."""
    der = x509.load_pem_x509_certificate(pem()).public_bytes(serialization.Encoding.DER)
    entry = len(der).to_bytes(3, "big") + der + b"\0\0"
    return b"\0" + len(entry).to_bytes(3, "big") + entry


@pytest.mark.parametrize(("algorithm", "pack"), [(1, zlib.compress), (2, brotli.compress), (3, zstd.compress)])
def test_a_compressed_certificate_is_told(algorithm: int, pack: Callable[[bytes], bytes]) -> None:
    plain = certificate_message()
    row = packed_certificate(algorithm, pack(plain), len(plain))
    assert (row.cert_subject, row.cert_names) == ("CN=mx.example.net", ["*.example.net", "mail.example.net"])
    assert row.visibility == "decrypted"


@pytest.mark.parametrize("algorithm", [1, 2, 3, 4])
def test_a_certificate_that_cannot_be_unpacked_is_not_told(algorithm: int) -> None:
    plain = certificate_message()
    for packed in (
        b"",
        b"no such stream",
        zlib.compress(plain + b"more"),
        zstd.compress(plain[:-1]),
        zstd.compress(bytes(9_000_000)),
        brotli.compress(plain + b"more"),
        brotli.compress(plain)[:-40],
        brotli.compress(bytes(9_000_000)),
    ):
        row = packed_certificate(algorithm, packed, len(plain))
        assert (row.cert_subject, row.visibility) == (None, "decrypted")


# -- sizes and times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_sizes_each_way_are_the_same_with_and_without_keys(version: str, cut: int | str, order: str) -> None:
    talk = (("S", b"220 mx\r\n"), ("C", b"x" * 5000), ("S", b"250 ok\r\n"))
    turns, log = conversation(version, talk=talk)
    spoken = dialogue(turns)
    opaque, opened = facts(tap(spoken, cut=cut, order=order)), facts(tap(spoken, log, cut=cut, order=order))
    overhead = 5 + 16 + (8 if version == "TLSv1_2" else 1)
    assert opaque.tls_client_bytes == opened.tls_client_bytes == 5000 + overhead
    assert opaque.tls_handshake_s == opened.tls_handshake_s
    assert opaque.ts_tls_client == max(s.ts for s in spoken.segments if s.client)
    assert opaque.ts_tls_server == max(s.ts for s in spoken.segments if not s.client)
    assert (opaque.tls_unread_bytes, opened.tls_unread_bytes) == (None, 0)


# -- STARTTLS: offered, used, refused, stripped ----------------------------------------------------------------------------

GREETING = "S: 220 mx.test ESMTP\nC: EHLO client.test\n"
OFFERING = GREETING + "S: 250-mx.test\nS: 250 STARTTLS\n"
BARE = GREETING + "S: 250-mx.test\nS: 250 SIZE\n"
BYE = "C: QUIT\nS: 221 bye\n"


def states(*talks: str, limits: Limits | None = None) -> tuple[list[str | None], list[str]]:
    """What the rows of sessions with one server say of STARTTLS, and the anomalies' details."""
    offers = Offers(limits or Limits())
    rows = []
    for number, talk in enumerate(talks):
        played = play(SmtpSession, talk)
        played.info.session_id = str(number)
        offers.feed(played.info)
        rows.append(played.row._replace(session_id=str(number)))
    details = [anomaly.detail for anomaly in offers.settle()]
    return [offers.row(row).starttls for row in rows], details


def test_offered_and_not_used() -> None:
    assert states(OFFERING + BYE) == (["offered"], [])


def test_refused() -> None:
    assert states(OFFERING + "C: STARTTLS\nS: 454 4.7.0 TLS not available\n" + BYE) == (["refused"], [])


def test_used() -> None:
    assert states(OFFERING + "C: STARTTLS\nS: 220 go\n")[0] == ["used"]


def test_never_offered_by_anyone_is_no_stripping() -> None:
    assert states(BARE + BYE, BARE + BYE) == ([None, None], [])


def test_stripped_where_the_server_offers_it_to_others() -> None:
    told, details = states(BARE + BYE, OFFERING + BYE, OFFERING + "C: STARTTLS\nS: 220 go\n")
    assert told == ["stripped", "offered", "used"]
    assert details == ["no offer of STARTTLS here, by a server that makes it in 2 other sessions"]


def test_stripped_where_the_offer_is_overwritten() -> None:
    told, details = states(GREETING + "S: 250-mx.test\nS: 250-XXXXXXXA\nS: 250 SIZE\n" + BYE)
    assert (told, details) == (["stripped"], ["the offer of STARTTLS is overwritten"])


def test_stripped_where_the_client_relied_on_it() -> None:
    told, details = states(BARE + "C: STARTTLS\nS: 502 5.5.1 Error: command not implemented\n" + BYE)
    assert (told, details) == (["stripped"], ["the client asked for STARTTLS that it was not offered"])


def test_a_client_that_only_says_helo_is_offered_nothing() -> None:
    assert states("S: 220 mx\nC: HELO c\nS: 250 mx\n" + BYE, OFFERING + BYE)[0] == [None, "offered"]


def test_sessions_beyond_the_limit_are_counted() -> None:
    told, details = states(BARE + BYE, BARE + BYE, OFFERING + BYE, limits=Limits(starttls_sessions=1))
    assert told == ["stripped", None, "offered"]
    assert details[-1] == "1 sessions beyond the limit"


@pytest.mark.parametrize(
    ("session", "port", "talk"),
    [
        (Pop3Session, 110, "S: +OK ready\nC: CAPA\nS: +OK\nS: STLS\nS: .\nC: QUIT\nS: +OK\n"),
        (ImapSession, 143, "S: * OK ready\nC: a CAPABILITY\nS: * CAPABILITY IMAP4rev1 STARTTLS\nS: a OK\nC: b LOGOUT\nS: b OK\n"),
    ],
)
def test_offers_of_mailboxes(session: type, port: int, talk: str) -> None:
    assert play(session, talk, port=port).row.starttls == "offered"
