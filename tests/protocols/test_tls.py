"""TLS as OpenSSL speaks it: handshakes made in memory, read with and without their key log."""

import datetime
import ssl
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.x509.oid import NameOID
from dialogue import EVERY_WAY, START, STEP, Dialogue, Played, Segment, _number, play
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.errors import KeyLogError
from analyzer.limits import Limits
from analyzer.protocols.base import Session, session_row
from analyzer.protocols.tls import KeyLogs, OpaqueSession, Secrets, probe, read_key_logs
from analyzer.protocols.tls.decrypt import key_block, opener
from analyzer.protocols.tls.hello import ClientHello, ServerHello

TALK = [
    ("S", b"220 mx.test ESMTP\r\n"),
    ("C", b"EHLO client.test\r\n"),
    ("S", b"250 mx.test\r\n"),
    ("C", b"QUIT\r\n"),
    ("S", b"221 bye\r\n"),
]
Turn = tuple[str, bytes]


@cache
def pem(name: str = "mx.example.net") -> bytes:
    """A self-signed certificate and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.DNSName("*.example.net"), x509.DNSName("mail.example.net")])
    day = datetime.datetime(2024, 1, 1)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, day, day + datetime.timedelta(days=36500))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM) + private


@cache
def conversation(
    version: str = "TLSv1_3",
    ciphers: str = "",
    talk: tuple[Turn, ...] = tuple(TALK),
    sni: str = "mail.example.net",
    options: int = 0,
) -> tuple[tuple[Turn, ...], bytes]:
    """What two ends put on the wire to say `talk` inside TLS, and the key log."""
    with TemporaryDirectory() as folder:
        certificate, log = Path(folder, "pem"), Path(folder, "keys")
        certificate.write_bytes(pem())
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.load_cert_chain(certificate)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.keylog_filename = str(log)
        for context in (server, client):
            context.options |= options
            context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
            if ciphers:
                context.set_ciphers(ciphers)
        wires = {side: (ssl.MemoryBIO(), ssl.MemoryBIO()) for side in "CS"}
        ends = {
            "C": client.wrap_bio(*wires["C"], server_hostname=sni),
            "S": server.wrap_bio(*wires["S"], server_side=True),
        }
        turns: list[Turn] = []

        def carry() -> bool:
            moved = False
            for side, other in ("CS", "SC"):
                octets = wires[side][1].read()
                if octets:
                    turns.append((side, octets))
                    wires[other][0].write(octets)
                    moved = True
            return moved

        open_ends = set("CS")
        while open_ends:
            for side in sorted(open_ends):
                try:
                    ends[side].do_handshake()
                    open_ends.discard(side)
                except ssl.SSLWantReadError:
                    pass
            carry()
        while carry():
            pass
        for side, said in talk:
            ends[side].write(said)
            carry()
            other, heard = ends["S" if side == "C" else "C"], b""
            while len(heard) < len(said):
                heard += other.read(len(said))
            assert heard == said
            carry()
        return tuple(turns), log.read_bytes()


def dialogue(turns: Iterable[Turn], mss: int = 1460, lost: Iterable[int] = ()) -> Dialogue:
    """Turns as segments; those whose numbers are in `lost` are not captured."""
    segments: list[Segment] = []
    for side, octets in turns:
        for begin in range(0, len(octets), mss):
            segments.append(Segment(side == "C", START + len(segments) * STEP, len(segments) + 4, octets[begin : begin + mss]))
    _number(segments)
    kept = [s for i, s in enumerate(segments) if i not in set(lost)]
    reached = {True: 0, False: 0}
    for segment in kept:
        segment.gap = segment.offset - reached[segment.client]
        reached[segment.client] = segment.offset + len(segment.data)
    return Dialogue(kept)


class Tap(Session):
    """A session that is TLS from its first octet, after STARTTLS or at once, and keeps what it can read."""

    protocol = "smtp"
    implicit = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.said = {"C": b"", "S": b""}
        self.times: list[tuple[str, int | None]] = []
        self.acks: dict[tuple[str, int], int] = {}

    def feed(self, chunk: Any) -> Any:
        if self.tls is None:
            self.start_tls(None, self.implicit)
        return super().feed(chunk)

    def pump(self) -> None:
        for side, inbox in (("C", self.client), ("S", self.server)):
            while inbox.available or inbox.has_gap:
                if inbox.available:
                    self.times.append((side, inbox.ts_at(inbox.offset)))
                    for offset in range(inbox.offset, inbox.offset + inbox.available):
                        self.acks[side, offset] = inbox.ack_at(offset)
                    self.said[side] += inbox.take(inbox.available)
                if inbox.has_gap:
                    self.said[side] += f"<{inbox.take_gap()}>".encode()


def tap(spoken: Dialogue, log: bytes | None = None, limits: Limits | None = None, **how: Any) -> Played:
    def with_secrets(session: Session) -> None:
        if log is not None:
            session.secrets = Secrets()
            session.secrets.add(log)

    return play(Tap, spoken, prepare=with_secrets, limits=limits, **how)


def whole(side: str, talk: Iterable[Turn] = TALK) -> bytes:
    return b"".join(said for who, said in talk if who == side)


# -- without keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
@pytest.mark.parametrize(
    ("version", "shown", "cipher", "name"),
    [
        ("TLSv1_2", "TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "mail.example.net"),
        ("TLSv1_3", "TLSv1.3", "TLS_AES_256_GCM_SHA384", None),
    ],
)
def test_hellos_are_read(version: str, shown: str, cipher: str, name: str | None, cut: int | str, order: str) -> None:
    turns, _ = conversation(version, "" if version == "TLSv1_3" else "ECDHE-RSA-AES256-GCM-SHA384")
    played = tap(dialogue(turns), cut=cut, order=order)
    info = played.info
    assert (info.tls_version, info.tls_cipher, info.sni, info.visibility) == (shown, cipher, "mail.example.net", "opaque")
    assert info.server_name == name  # TLS 1.3 does not show its certificate
    assert played.session.said == {"C": b"", "S": b""}
    assert played.anomalies == []


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_the_end_of_the_handshake_is_the_same_with_and_without_keys(version: str, cut: int | str, order: str) -> None:
    turns, log = conversation(version)
    spoken = dialogue(turns)
    # 1.2: the first application data, which is the greeting; 1.3: the client's Finished
    side = version == "TLSv1_3"
    done = next(s.ts for s in spoken.segments if s.client == side and b"\x17\x03\x03" in s.data)
    assert tap(spoken, cut=cut, order=order).info.ts_tls_done == done
    assert tap(spoken, log, cut=cut, order=order).info.ts_tls_done == done


def test_a_certificate_that_is_none() -> None:
    turns, _ = conversation("TLSv1_2", "AES128-SHA")
    spoilt = [(side, octets.replace(b"\x30\x82", b"\x30\x83")) for side, octets in turns]
    assert tap(dialogue(spoilt)).info.server_name is None


def test_a_handshake_that_fails_is_named() -> None:
    turns, _ = conversation()
    played = tap(dialogue([turns[0], ("S", b"\x15\x03\x03\0\2\2\x28")]))
    assert played.anomalies == ["tls_alert"]
    assert "handshake_failure, sent by the server" in [e.detail for e in played.events if hasattr(e, "detail")]


# -- no TLS at all, and plaintext too early --------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_a_capture_behind_a_decrypting_device(cut: int | str, order: str) -> None:
    talk = [("C", b"EHLO again\r\n"), ("S", b"250 mx\r\n"), ("C", b"MAIL FROM:<>\r\n")]
    played = tap(dialogue(talk), cut=cut, order=order)
    assert played.session.said == {"C": whole("C", talk), "S": whole("S", talk)}
    assert (played.info.visibility, played.info.tls, played.anomalies) == ("decrypted", "starttls", [])


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_one_side_alone_behind_a_decrypting_device(cut: int | str, order: str) -> None:
    played = tap(dialogue([("C", b"EHLO again\r\n"), ("C", b"QUIT\r\n")]), cut=cut, order=order)
    assert (played.session.said["C"], played.info.visibility) == (b"EHLO again\r\nQUIT\r\n", "decrypted")


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
@pytest.mark.parametrize("side", ["C", "S"])
def test_plaintext_before_the_handshake_is_dropped_and_named(side: str, cut: int | str, order: str) -> None:
    turns, log = conversation()
    early = (side, b"MAIL FROM:<mallory@test>\r\n")
    played = tap(dialogue([early, *turns]), log, cut=cut, order=order)
    assert played.session.said == {"C": whole("C"), "S": whole("S")}
    assert [e.detail for e in played.events if getattr(e, "name", "") == "starttls_injection"] == [
        f"26 octets of plaintext by the {'client' if side == 'C' else 'server'} behind the start of TLS"
    ]
    assert played.anomalies == ["starttls_injection"]


# -- with keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_with_keys_the_dialogue_is_there(version: str, cut: int | str, order: str) -> None:
    turns, log = conversation(version)
    played = tap(dialogue(turns), log, cut=cut, order=order)
    assert played.session.said == {"C": whole("C"), "S": whole("S")}
    assert (played.info.visibility, played.info.server_name, played.anomalies) == ("decrypted", "mail.example.net", [])


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_acknowledgements_are_told_in_plaintext_offsets(version: str, cut: int | str, order: str) -> None:
    turns, log = conversation(version)
    acks = tap(dialogue(turns), log, cut=cut, order=order).session.acks
    said = {"C": 0, "S": 0}
    for side, octets in TALK:
        assert {acks[side, said[side] + i] for i in range(len(octets))} == {said["S" if side == "C" else "C"]}
        said[side] += len(octets)


NO_ETM, NO_EMS = 1 << 19, 1
"""SSL_OP_NO_ENCRYPT_THEN_MAC, SSL_OP_NO_EXTENDED_MASTER_SECRET."""
SUITES = [
    ("TLSv1_2", "ECDHE-RSA-AES128-GCM-SHA256", 0),
    ("TLSv1_2", "AES256-GCM-SHA384", 0),
    ("TLSv1_2", "DHE-RSA-AES128-GCM-SHA256", 0),
    ("TLSv1_2", "AES128-CCM", 0),
    ("TLSv1_2", "AES256-CCM8", 0),
    ("TLSv1_2", "ECDHE-RSA-CHACHA20-POLY1305", 0),
    ("TLSv1_2", "ECDHE-RSA-AES128-SHA", 0),
    ("TLSv1_2", "ECDHE-RSA-AES128-SHA", NO_ETM),
    ("TLSv1_2", "ECDHE-RSA-AES256-SHA384", 0),
    ("TLSv1_2", "AES128-SHA256", NO_ETM),
    ("TLSv1_2", "ECDHE-RSA-AES128-GCM-SHA256", NO_EMS),
    ("TLSv1_2", "ECDHE-RSA-CAMELLIA128-SHA256", 0),
    ("TLSv1_2", "NULL-SHA256", 0),
    ("TLSv1", "AES128-SHA", 0),
    ("TLSv1", "AES256-SHA", NO_ETM),
    ("TLSv1_1", "ECDHE-RSA-AES128-SHA", NO_ETM),
]


@pytest.mark.parametrize(("version", "cipher", "options"), SUITES)
def test_suites(version: str, cipher: str, options: int) -> None:
    long = (*TALK, ("C", bytes(range(256)) * 150), ("S", b"x"), ("S", b"250 ok\r\n"))
    try:
        turns, log = conversation(version, cipher + ":@SECLEVEL=0", long, options=options)
    except ssl.SSLError as wrong:
        pytest.skip(f"this OpenSSL does not speak it: {wrong.reason}")
    played = tap(dialogue(turns), log)
    assert played.session.said == {"C": whole("C", long), "S": whole("S", long)}


def test_long_records_keep_their_times() -> None:
    talk = (*TALK[:1], ("C", b"z" * 16_000 + b"."))
    turns, log = conversation(talk=talk)
    spoken = dialogue(turns)
    played = tap(spoken, log, cut=1)
    last = max(s.ts for s in spoken.segments if s.client)
    first = next(s.ts for s in spoken.segments if s.client and len(s.data) == 1460 and s.data[0] == 23)
    assert played.session.times[-1] == ("C", first)
    assert last > first


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_lost_record_is_a_gap_and_the_rest_is_read(version: str, cut: int | str, order: str) -> None:
    lines = tuple(("C", f"line {i}\r\n".encode()) for i in range(9))
    turns, log = conversation(version, talk=(*TALK[:1], *lines))
    spoken = dialogue(turns, mss=1 << 20)
    lost = next(i for i, t in enumerate(turns) if t == turns[-5])
    played = tap(dialogue(turns, mss=1 << 20, lost=(lost,)), log, cut=cut, order=order)
    assert len(spoken.segments) == len(turns)
    assert played.session.said["C"] == b"".join(said for _, said in lines).replace(b"line 4\r\n", b"<-1>")


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_a_hello_that_is_lost_leaves_the_session_opaque(cut: int | str, order: str) -> None:
    turns, log = conversation()
    played = tap(dialogue(turns, mss=1 << 20, lost=(0,)), log, cut=cut, order=order)
    assert (played.session.said, played.info.visibility) == ({"C": b"", "S": b""}, "opaque")
    assert played.info.tls_version == "TLSv1.3"


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_keys_of_another_connection_open_nothing(cut: int | str, order: str) -> None:
    turns, _ = conversation()
    _, other = conversation(sni="other.example.net")
    played = tap(dialogue(turns), other, cut=cut, order=order)
    assert (played.session.said, played.info.visibility, played.anomalies) == ({"C": b"", "S": b""}, "opaque", [])


def test_secrets_that_are_wrong_are_named_and_given_up() -> None:
    lines = tuple(("C", b"line\r\n") for _ in range(80))
    turns, log = conversation("TLSv1_2", talk=(*TALK[:1], *lines))
    *_, label, random, secret = log.split()
    played = tap(dialogue(turns), b" ".join((label, random, secret[::-1])))
    assert (played.session.said["C"], played.info.visibility) == (b"", "opaque")
    assert "tls_not_opened" in played.anomalies


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_keys_that_stop_working_cut_the_session_there(version: str, cut: int | str, order: str) -> None:
    lines = tuple(("C", f"line {i}\r\n".encode()) for i in range(9))
    turns, log = conversation(version, talk=(*TALK[:1], *lines))
    spoilt = [(s, o[:-1] + bytes((o[-1] ^ 1,))) if s == "C" and i >= len(turns) - 4 else (s, o) for i, (s, o) in enumerate(turns)]
    spoken = dialogue(spoilt)
    played = tap(spoken, log, cut=cut, order=order)
    assert played.session.said["C"] == b"".join(said for _, said in lines[:5])
    (told,) = [e for e in played.events if getattr(e, "name", "") == "tls_not_opened"]
    assert told.detail == "records of the client cannot be opened with the secrets given; what is read of it ends here"
    assert (told.ts, told.frame) == (spoken.segments[-4].ts, spoken.segments[-4].frame)
    assert played.info.visibility == "decrypted"
    assert session_row(played.info, True).tls_unread_bytes == sum(len(octets) for _, octets in turns[-4:])


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_secrets_of_one_side_only(cut: int | str, order: str) -> None:
    turns, log = conversation()
    half = b"\n".join(line for line in log.splitlines() if line.startswith(b"CLIENT_"))
    played = tap(dialogue(turns), half, cut=cut, order=order)
    assert played.session.said == {"C": whole("C"), "S": b""}
    assert [e.detail for e in played.events if hasattr(e, "detail")] == ["no secret for what the server sent"]


# -- secrets that come late ------------------------------------------------------------------------------------------------


class Late(Secrets):
    """A key log that is still being written: its lines come when so many chunks have been read."""

    def __init__(self, log: bytes, after: int) -> None:
        super().__init__()
        self.growing = True
        self.log, self.after = log, after

    def tick(self) -> None:
        self.after -= 1
        if not self.after:
            self.add(self.log)


def late(spoken: Dialogue, log: bytes, after: int, limits: Limits | None = None, **how: Any) -> Played:
    secrets = Late(log, after)

    class Slow(Tap):
        def feed(self, chunk: Any) -> Any:
            secrets.tick()
            return super().feed(chunk)

    def prepare(session: Session) -> None:
        session.secrets = secrets

    return play(Slow, spoken, prepare=prepare, limits=limits, **how)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("order", ["capture", "client", "server"])
def test_records_wait_for_a_key_log_that_grows(version: str, order: str) -> None:
    turns, log = conversation(version)
    spoken = dialogue(turns)
    for after in range(1, len(spoken.segments)):
        played = late(spoken, log, after, order=order)
        assert played.session.said == {"C": whole("C"), "S": whole("S")}
        assert (played.info.visibility, played.anomalies) == ("decrypted", [])


def test_each_secret_may_come_by_itself() -> None:
    turns, log = conversation()
    lines = log.splitlines(keepends=True)
    first = b"".join(line for line in lines if b"HANDSHAKE" in line)
    secrets = Late(log, 7)
    secrets.add(first)

    class Slow(Tap):
        def feed(self, chunk: Any) -> Any:
            secrets.tick()
            return super().feed(chunk)

    played = play(Slow, dialogue(turns), prepare=lambda session: setattr(session, "secrets", secrets))
    assert played.session.said == {"C": whole("C"), "S": whole("S")}


def test_the_wait_for_a_key_ends() -> None:
    turns, log = conversation()
    limits = Limits(tls_key_wait=2 * STEP)
    spoken = dialogue(turns)
    played = late(spoken, log, len(spoken.segments), limits=limits)
    assert (played.session.said, played.info.visibility) == ({"C": b"", "S": b""}, "opaque")
    never = late(spoken, log, 1000)
    assert (never.session.said, never.info.visibility) == ({"C": b"", "S": b""}, "opaque")
    assert never.info.ts_tls_done == played.info.ts_tls_done == tap(spoken).info.ts_tls_done


def expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label by the library, SHA-256."""
    full = b"tls13 " + label.encode()
    info = size.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0"
    return HKDFExpand(hashes.SHA256(), size, info).derive(secret)


def seal(secret: bytes, sequence: int, inner: bytes) -> tuple[int, int, bytes]:
    """TLSCiphertext (RFC 8446 5.2), AES-128-GCM."""
    key, iv = expand(secret, "key", 16), expand(secret, "iv", 12)
    nonce = (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")
    header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
    return 23, 0x0303, AESGCM(key).encrypt(nonce, inner, header)


def test_key_update_and_padding() -> None:
    secrets, random, traffic = Secrets(), b"r" * 32, b"s" * 32
    for label in ("SERVER_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"):
        secrets.add(f"{label} {random.hex()} {(traffic if label.endswith('0') else b'h' * 32).hex()}".encode())
    reader = opener(secrets, ClientHello(random, None, (), False), ServerHello(b"", 0x0304, 0x1301, False, False), False)
    assert reader is not None
    assert reader.open(*seal(b"h" * 32, 0, b"finished\x16")) == (22, b"finished")
    reader.finished()
    assert reader.open(*seal(traffic, 0, b"250 ok\x17" + bytes(300))) == (23, b"250 ok")
    assert reader.open(*seal(traffic, 5, b"not the next\x17")) is None
    reader.updated()
    assert reader.open(*seal(expand(traffic, "traffic upd", 32), 0, b"after\x17")) == (23, b"after")


def test_key_block_of_tls_1_2() -> None:
    """Test vector of the P_SHA256 PRF, as published on the IETF TLS list (IDs draft-ietf-tls-rfc4346-bis, message 03416)."""
    from analyzer.protocols.tls.decrypt import p_hash

    secret = bytes.fromhex("9bbe436ba940f017b17652849a71db35")
    seed = b"test label" + bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c")
    assert p_hash("sha256", secret, seed, 16).hex() == "e3f229ba727be17b8d122620557cd453"
    assert len(key_block(0x0303, "sha384", b"m" * 48, b"c" * 32, b"s" * 32, 104)) == 104


# -- hostile ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_raises_and_never_depends_on_the_feeding(data: st.DataObject) -> None:
    turns, log = conversation(data.draw(st.sampled_from(["TLSv1_2", "TLSv1_3"])))
    octets = [bytearray(t[1]) for t in turns]
    for _ in range(data.draw(st.integers(1, 4))):
        part = octets[data.draw(st.integers(0, len(octets) - 1))]
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    spoilt = [(side, bytes(part)) for (side, _), part in zip(turns, octets, strict=True)]
    lost = data.draw(st.sets(st.integers(0, 8), max_size=2))
    keys = data.draw(st.sampled_from([None, log]))
    cut, order = data.draw(st.sampled_from(EVERY_WAY))
    first = tap(dialogue(spoilt, lost=lost), keys)
    again = tap(dialogue(spoilt, lost=lost), keys, cut=cut, order=order)
    for name in ("tls_version", "tls_cipher", "sni", "visibility", "server_name"):
        assert getattr(first.info, name) == getattr(again.info, name)
    assert first.session.said == again.session.said
    assert sorted(first.anomalies) == sorted(again.anomalies)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("CS"), st.binary(min_size=1, max_size=60)), max_size=8), st.sampled_from(EVERY_WAY))
def test_noise_never_raises(talk: list[Turn], way: tuple[int | str, str]) -> None:
    tap(dialogue(talk), b"", cut=way[0], order=way[1])


def test_an_endless_handshake_message_is_bounded() -> None:
    endless = b"".join(
        b"\x16\x03\x03\x40\x00" + (b"\x0b\xff\xff\xff" if i == 0 else b"\0\0\0\0") + bytes(16380) for i in range(100)
    )
    played = tap(dialogue([("S", endless)], mss=1 << 20))
    assert len(played.session.tls._halves[1].handshake) <= Limits().tls_message_bytes


# -- key logs --------------------------------------------------------------------------------------------------------------


def test_key_logs(tmp_path: Path) -> None:
    log = tmp_path / "keys.log"
    random, secret = "ab" * 32, "cd" * 48
    lines = [
        "# made by a test",
        f"CLIENT_RANDOM {random} {secret}",
        "",
        f"EXPORTER_SECRET {random} {secret}",
        f"CLIENT_RANDOM zz {secret}",
    ]
    log.write_text("\r\n".join(lines))
    secrets = read_key_logs([log])
    assert secrets.get("CLIENT_RANDOM", bytes.fromhex(random)) == bytes.fromhex(secret)
    assert secret not in repr(secrets) + str(secrets)
    assert len(secrets) == 1


def test_key_logs_that_are_none(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.log"
    nothing.write_bytes(b"\x00\xff not a key log\n")
    with pytest.raises(KeyLogError, match="holds no TLS secrets"):
        read_key_logs([nothing])
    with pytest.raises(KeyLogError, match="cannot read"):
        read_key_logs([tmp_path / "absent.log"])


def test_a_key_log_is_followed(tmp_path: Path) -> None:
    log, random = tmp_path / "keys.log", "ab" * 32
    line = f"CLIENT_RANDOM {random} {'cd' * 48}\n"
    log.write_text("")
    followed = KeyLogs([log], follow=True)
    assert (followed.secrets.growing, followed.poll()) == (True, 0)
    with log.open("a") as file:
        file.write(line[:50])
    assert followed.poll() == 0  # half a line is none
    with log.open("a") as file:
        file.write(line[50:])
    assert (followed.poll(), followed.poll()) == (1, 0)
    log.write_text(line[: len(line) // 2])  # written anew
    assert followed.poll() == 0
    log.write_text(line.replace("ab", "ef"))
    assert followed.poll() == 1
    other = tmp_path / "other"
    other.write_text(line.replace("ab", "12") * 4)
    other.rename(log)  # another file in its place
    assert followed.poll() == 4
    log.unlink()
    assert followed.poll() == 0
    assert followed.secrets.get("CLIENT_RANDOM", bytes.fromhex(random)) is not None


def test_a_key_log_to_follow_is_one(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("some text\n")
    with pytest.raises(KeyLogError, match="holds no TLS secrets"):
        KeyLogs([tmp_path / "other"], follow=True)
    with pytest.raises(KeyLogError, match="cannot read"):
        KeyLogs([tmp_path / "absent"], follow=True)


# -- implicit TLS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "protocol"), [(465, "smtp"), (993, "imap"), (995, "pop3")])
def test_an_opaque_session_is_one_row(port: int, protocol: str) -> None:
    turns, _ = conversation()
    played = play(OpaqueSession, dialogue(turns), port=port)
    row = played.row
    assert (row.protocol, row.tls, row.visibility, row.commands) == (protocol, "implicit", "opaque", 0)
    assert (row.tls_version, row.sni, row.end, row.server_port) == ("TLSv1.3", "mail.example.net", "fin", port)
    assert len(played.events) == 1


def test_an_opaque_session_joined_midway() -> None:
    turns, _ = conversation()
    spoken = dialogue([t for t in turns if t[1][0] == 23][2:])
    for segment in {s.client: s for s in reversed(spoken.segments)}.values():
        segment.gap = -1
    played = play(OpaqueSession, spoken, port=993, start="mid")
    assert (played.row.visibility, played.row.start, played.row.tls_version) == ("opaque", "mid", None)


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_with_keys_the_real_session_tells(cut: int | str, order: str) -> None:
    talk = (
        ("S", b"+OK pop.test ready\r\n"),
        ("C", b"USER bob\r\n"),
        ("S", b"+OK\r\n"),
        ("C", b"PASS secret\r\n"),
        ("S", b"+OK 0 messages\r\n"),
        ("C", b"QUIT\r\n"),
        ("S", b"+OK bye\r\n"),
    )
    turns, log = conversation(talk=talk)

    def with_secrets(session: Session) -> None:
        session.secrets = Secrets()
        session.secrets.add(log)

    played = play(OpaqueSession, dialogue(turns), cut=cut, order=order, port=995, prepare=with_secrets)
    assert played.verbs == ["USER", "PASS", "QUIT"]
    row = played.row
    assert (row.protocol, row.tls, row.visibility, row.auth_user, row.end) == ("pop3", "implicit", "decrypted", "bob", "quit")
    assert "secret" not in repr(played.commands)


def test_probe() -> None:
    turns, _ = conversation()
    hello, answer = turns[0][1], turns[1][1]
    found = probe(hello, b"", 41000, 465, False)
    assert found is not None and (found.protocol, found.client_is_orig) == ("tls", True)
    swapped = probe(answer, hello, 993, 41000, False)
    assert swapped is not None and not swapped.client_is_orig
    assert probe(hello, b"", 41000, 25, False) is not None  # TLS where STARTTLS was expected: a mail connection still
    assert probe(hello, b"", 41000, 443, False) is None
    assert probe(b"", b"", 41000, 465, False) is None
    assert probe(b"", b"220 mx ESMTP\r\n", 41000, 465, False) is None
    assert probe(b"\x8f\x01\xff" * 9, b"", 41000, 993, False) is not None  # joined in the middle of a record
