"""TLS between two openssl commands: every suite, every kind of resumption and renewal; equal to tshark, octet for octet."""

import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dialogue import EVERY_WAY
from openssl import HELLO, Ends, Turn
from test_tls import dialogue, pem, tap, whole
from test_tls_facts import facts

from analyzer.cli import main
from analyzer.pipeline import run
from analyzer.protocols.tls.layer import Layer
from analyzer.tables.export import export

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
BODY = b"".join(b"%06d of the body of a message\r\n" % n for n in range(700))
TALK = (*HELLO, ("C", b"DATA\r\n"), ("S", b"354 go\r\n"), ("C", BODY + b".\r\n"), ("S", b"250 2.0.0 queued\r\n"))
WEAK = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"


class Spoken(NamedTuple):
    """One connection: what crossed the wire, the key log, and what was said inside."""

    turns: list[Turn]
    keys: bytes
    talk: Iterable[Turn] = TALK


@cache
def curve() -> bytes:
    """An ECDSA certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    rsa = x509.load_pem_x509_certificate(pem())
    made = x509.CertificateBuilder(
        rsa.subject, rsa.subject, key.public_key(), 2, rsa.not_valid_before_utc, rsa.not_valid_after_utc
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private


def once(server: Iterable[str], client: Iterable[str], certificate: bytes | None = None, **how: Any) -> Spoken:
    """A connection between a server and a client of these options."""
    with TemporaryDirectory() as folder:
        ends = Ends(Path(folder), certificate or pem(), server)
        try:
            talk = how.pop("talk", TALK)
            turns = ends.talk(talk, client, **how)
            return Spoken(turns, ends.keys, [t for t in talk if t[0] in "CS"])
        finally:
            ends.end()


def again(server: Iterable[str], client: Iterable[str]) -> Spoken:
    """A connection that resumes an earlier one."""
    with TemporaryDirectory() as folder:
        ends = Ends(Path(folder), pem(), server)
        try:
            ends.talk(HELLO, [*client, "-sess_out", f"{folder}/session"])
            return Spoken(ends.talk(TALK, [*client, "-sess_in", f"{folder}/session"]), ends.keys)
        finally:
            ends.end()


def early(taken: bool) -> Spoken:
    """A connection that resumes and sends early data, which the server takes, or does not."""
    said = b"EHLO early.test\r\n"
    with TemporaryDirectory() as folder:
        Path(folder, "early").write_bytes(said)
        ends = Ends(Path(folder), pem(), ["-early_data", "-no_anti_replay"] if taken else ["-early_data"])
        try:
            ends.talk(HELLO, ["-sess_out", f"{folder}/session"])
            client = ["-sess_in", f"{folder}/session", "-early_data", f"{folder}/early"]
            if not taken:  # what was sent before is a replay
                ends.talk(HELLO, client, first=said.rstrip())
                return Spoken(ends.talk(TALK, client), ends.keys)
            return Spoken(ends.talk(TALK, client, first=said.rstrip()), ends.keys, (("C", said), *TALK))
        finally:
            ends.end()


def suite(name: str, certificate: bytes | None = None, *more: str) -> Spoken:
    """TLS 1.2 with a cipher suite."""
    return once(["-tls1_2", "-cipher", f"{name}:@SECLEVEL=0", *more], ["-tls1_2", "-cipher", WEAK, *more], certificate)


def suite13(name: str, *more: str) -> Spoken:
    """TLS 1.3 with a cipher suite."""
    return once(["-tls1_3", "-ciphersuites", name], ["-tls1_3", "-ciphersuites", name, *more])


NEW_KEYS = (
    *HELLO,
    ("c", b"K\n"),
    ("C", b"one\r\n"),
    ("S", b"250 one\r\n"),
    ("s", b"K\n"),
    ("C", b"two\r\n"),
    ("S", b"250 two\r\n"),
    ("c", b"k\n"),
    ("C", b"three\r\n"),
    ("S", b"250 three\r\n"),
)
ANEW = (*HELLO, ("c", b"R\n"), ("C", b"one\r\n"), ("S", b"250 one\r\n"))
KEY = "00112233445566778899aabbccddeeff"
CASES: dict[str, Any] = {
    **{
        f"1.2 {name}": (suite, name)
        for name in (
            "DHE-RSA-AES128-GCM-SHA256 DHE-RSA-AES256-GCM-SHA384 DHE-RSA-AES128-CCM DHE-RSA-AES256-CCM8 DHE-RSA-AES256-SHA256 "
            "DHE-RSA-CHACHA20-POLY1305 AES128-GCM-SHA256 AES256-CCM ECDHE-RSA-AES256-SHA384"
        ).split()
    },
    "1.2 ECDHE-ECDSA-AES128-CCM": (suite, "ECDHE-ECDSA-AES128-CCM", curve),
    "1.2 ECDHE-ECDSA-AES256-CCM8": (suite, "ECDHE-ECDSA-AES256-CCM8", curve),
    "1.2 without encrypt-then-MAC": (suite, "DHE-RSA-AES128-SHA", pem, "-no_etm"),
    "1.2 short fragments": (once, ["-tls1_2"], ["-tls1_2", "-maxfraglen", "512"]),
    "1.2 session identifier": (again, ["-tls1_2", "-no_ticket"], ["-tls1_2", "-no_ticket"]),
    "1.2 ticket": (again, ["-tls1_2"], ["-tls1_2"]),
    "1.2 pre-shared key": (once, ["-tls1_2", "-psk", KEY, "-cipher", "PSK"], ["-tls1_2", "-psk", KEY, "-cipher", "PSK"]),
    "1.2 client certificate": (once, ["-tls1_2", "-Verify", "1"], ["-tls1_2", "-cert", "PEM", "-key", "PEM"]),
    "1.2 renegotiation": (once, ["-tls1_2", "-client_renegotiation"], ["-tls1_2"], "interactive", ANEW),
    **{
        f"1.3 {name}": (suite13, f"TLS_{name}")
        for name in (
            "AES_128_GCM_SHA256 AES_256_GCM_SHA384 CHACHA20_POLY1305_SHA256 AES_128_CCM_SHA256 AES_128_CCM_8_SHA256"
        ).split()
    },
    "1.3 padded records": (suite13, "TLS_AES_128_GCM_SHA256", "-record_padding", "512"),
    "1.3 split records": (suite13, "TLS_AES_128_GCM_SHA256", "-max_send_frag", "600", "-split_send_frag", "512"),
    "1.3 no middlebox compatibility": (suite13, "TLS_AES_128_GCM_SHA256", "-no_middlebox"),
    "1.3 hello retry request": (once, ["-tls1_3", "-groups", "P-384"], ["-tls1_3", "-groups", "X25519:P-384"]),
    "1.3 resumption": (again, ["-tls1_3"], ["-tls1_3"]),
    "1.3 external key": (once, ["-tls1_3", "-psk", KEY], ["-tls1_3", "-psk", KEY]),
    "1.3 client certificate": (once, ["-tls1_3", "-Verify", "1"], ["-tls1_3", "-cert", "PEM", "-key", "PEM"]),
    "1.3 key updates": (once, ["-tls1_3"], ["-tls1_3"], "interactive", NEW_KEYS),
    "1.3 early data": (early, True),
    "1.3 early data refused": (early, False),
}


@cache
def spoken(name: str) -> Spoken:
    """A case, made once."""
    make, *given = CASES[name]
    if make is once:
        server, client, *rest = given
        with TemporaryDirectory() as folder:
            file = Path(folder, "client.pem")
            file.write_bytes(pem())
            how: dict[str, Any] = {"talk": rest[1], "quiet": False} if rest else {}
            return once(server, [str(file) if word == "PEM" else word for word in client], **how)
    made: Spoken = make(*(part() if callable(part) else part for part in given))
    return made


@pytest.mark.parametrize("name", CASES)
def test_what_openssl_says_is_read(name: str) -> None:
    said = spoken(name)
    for cut, order in (("segments", "capture"), ("whole", "server"), ("whole", "client"), (997, "capture")):
        played = tap(dialogue(said.turns), said.keys, cut=cut, order=order)
        assert played.session.said == {side: whole(side, said.talk) for side in "CS"}
        assert (played.info.visibility, played.anomalies) == ("decrypted", [])
        assert facts(played).tls_unread_bytes == 0 or "refused" in name


@pytest.mark.parametrize("name", ["1.2 session identifier", "1.2 ticket", "1.3 resumption", "1.3 early data"])
def test_resumption_is_told(name: str) -> None:
    said = spoken(name)
    assert facts(tap(dialogue(said.turns))).tls_resumed is True
    assert facts(tap(dialogue(spoken("1.3 key updates").turns))).tls_resumed is False


@pytest.mark.parametrize(("name", "keys"), [("1.2 client certificate", False), ("1.3 client certificate", True)])
def test_the_clients_certificate_is_told(name: str, keys: bool) -> None:
    said = spoken(name)
    row = facts(tap(dialogue(said.turns), said.keys if keys else None))
    assert row.client_cert_subject == "CN=mx.example.net"
    assert row.client_cert_sha256 == x509.load_pem_x509_certificate(pem()).fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_early_data_is_read_when_the_server_took_it(cut: int | str, order: str) -> None:
    for name in ("1.3 early data", "1.3 early data refused"):
        said = spoken(name)
        played = tap(dialogue(said.turns), said.keys, cut=cut, order=order)
        assert played.session.said == {side: whole(side, said.talk) for side in "CS"}


# -- beside tshark ---------------------------------------------------------------------------------------------------------


def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        pytest.skip("no tshark here")
    return found


def capture(path: Path, connections: list[list[Turn]]) -> None:
    """Connections to port 465 as a pcap of raw IP packets."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
        for number, turns in enumerate(connections):
            ends = {"C": (0x0A000001, 40000 + number), "S": (0x0A000002, 465)}
            sequence = {"C": 1000, "S": 5000}
            segments: list[tuple[str, int, bytes]] = [("C", 2, b""), ("S", 18, b""), ("C", 16, b"")]
            for side, octets in turns:
                segments += [(side, 24, octets[i : i + 1400]) for i in range(0, len(octets), 1400)]
            for count, (side, flags, octets) in enumerate([*segments, ("C", 17, b""), ("S", 17, b"")]):
                other = "S" if side == "C" else "C"
                ports = struct.pack("!HH", ends[side][1], ends[other][1])
                tcp = ports + struct.pack("!IIBBHHH", sequence[side], sequence[other], 0x50, flags, 65535, 0, 0) + octets
                ip = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, ends[side][0], ends[other][0])
                file.write(struct.pack("<IIII", 1_700_000_000 + number, count * 1000, len(ip + tcp), len(ip + tcp)) + ip + tcp)
                sequence[side] += len(octets) + (flags & 3 != 0)


def by_tshark(path: Path, keys: Path | None, streams: Iterable[int], *more: str) -> dict[int, dict[str, bytes]]:
    """What tshark reads inside TLS, by stream and by side (`C` spoke first in TCP)."""
    follow = [word for n in streams for word in ("-z", f"follow,tls,raw,{n}")]
    keyed = ["-o", f"tls.keylog_file:{keys}"] if keys else []
    command = [tshark(), "-n", "-r", str(path), "-q", *keyed, *more, *follow]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[int, dict[str, bytes]] = {}
    for part in out.split("Follow: tls,raw")[1:]:
        lines = part.splitlines()
        number = int(next(line for line in lines if line.startswith("Filter:")).rsplit(" ", 1)[1])
        said = found.setdefault(number, {"C": b"", "S": b""})
        first = next(line for line in lines if line.startswith("Node 0:"))
        first_is_client = int(first.rsplit(":", 1)[1]) > 30000
        for line in lines:
            hexed = line.strip()
            if hexed and not set(hexed) - set("0123456789abcdef"):
                said["S" if line.startswith("\t") == first_is_client else "C"] += bytes.fromhex(hexed)
    return found


def by_us(path: Path, keys: Path | None, monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, bytes]]:
    """What is read here, by stream and by side."""
    found: dict[int, dict[str, bytes]] = {}
    made = Layer._chunk

    def keep(layer: Layer, half: Any, *rest: Any) -> Any:
        chunk = made(layer, half, *rest)
        said = found.setdefault(layer.info.tcp_stream, {"C": b"", "S": b""})
        said["C" if half.client else "S"] += chunk.data
        return chunk

    with monkeypatch.context() as patch:
        patch.setattr(Layer, "_chunk", keep)
        run([path], keylogs=[keys] if keys else [])
    return found


def test_every_case_is_as_tshark_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tshark()
    made = {name: spoken(name) for name in CASES}
    capture(tmp_path / "all.pcap", [said.turns for said in made.values()])
    (tmp_path / "keys").write_bytes(b"".join(said.keys for said in made.values()))
    ours = by_us(tmp_path / "all.pcap", tmp_path / "keys", monkeypatch)
    theirs = by_tshark(tmp_path / "all.pcap", tmp_path / "keys", range(len(made)), "-d", "tcp.port==465,tls")
    for number, (name, said) in enumerate(made.items()):
        right = {side: whole(side, said.talk) for side in "CS"}
        assert ours[number] == right, name
        if "refused" not in name:  # tshark shows what the server threw away
            assert theirs[number] == right, name


def test_no_secret_comes_out(tmp_path: Path) -> None:
    said = [spoken(name) for name in ("1.2 AES128-GCM-SHA256", "1.3 resumption", "1.3 key updates")]
    capture(tmp_path / "all.pcap", [s.turns for s in said])
    (tmp_path / "keys").write_bytes(b"".join(s.keys for s in said))
    export(run([tmp_path / "all.pcap"], keylogs=[tmp_path / "keys"]).tables, tmp_path / "tables")
    told = b"".join(path.read_bytes() for path in sorted((tmp_path / "tables").iterdir())).lower()
    assert b"decrypted" in told
    for line in (tmp_path / "keys").read_bytes().lower().splitlines():
        if not line.startswith(b"#"):
            assert line.split()[2] not in told


def test_a_key_log_of_other_connections_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = spoken("1.2 AES128-GCM-SHA256"), spoken("1.3 resumption")
    capture(tmp_path / "one.pcap", [one.turns])
    words = ["analyze", str(tmp_path / "one.pcap"), "--keylog", str(tmp_path / "keys")]
    (tmp_path / "keys").write_bytes(other.keys)
    assert main(words) == 0
    assert "secrets given is of a TLS session in these captures" in capsys.readouterr().err
    (tmp_path / "keys").write_bytes(other.keys + one.keys)
    assert main(words) == 0
    assert "secrets given" not in capsys.readouterr().err


def test_a_live_capture_follows_the_key_log(tmp_path: Path) -> None:
    said = spoken("1.3 AES_128_GCM_SHA256")
    capture(tmp_path / "one.pcap", [said.turns])
    octets = (tmp_path / "one.pcap").read_bytes()
    (tmp_path / "keys").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")

    def trickle() -> None:
        with open(tmp_path / "fifo", "wb", buffering=0) as fifo:
            fifo.write(octets[: len(octets) // 2])
            (tmp_path / "keys").write_bytes(said.keys)
            fifo.write(octets[len(octets) // 2 :])

    writer = threading.Thread(target=trickle)
    writer.start()
    words = [sys.executable, "-m", "analyzer", "capture", "-i", "fifo", "--keylog", "keys", "-o", "tables"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    writer.join(30)
    assert done.returncode == 0, done.stderr
    assert '"visibility":"decrypted"' in (tmp_path / "tables/sessions.jsonl").read_text()


LAB = SHARED / "lab/captures/tls_keys"
SEEDS = SHARED / "pcapseeds"


@pytest.mark.parametrize(
    ("path", "keys", "more"),
    [
        *(
            (LAB / name, LAB / "keys_all.log", ())
            for name in ("bridge.pcapng", "msaA.pcap", "mxB.pcap", "mxB_any.pcap", "storeB.pcap")
        ),
        (LAB / "bridge_dsb.pcapng", None, ()),
        (SEEDS / "s12.pcap", SEEDS / "keys12.log", ("-d", "tcp.port==2465,tls")),
        (SEEDS / "s13.pcap", SEEDS / "keys13.log", ("-d", "tcp.port==2465,tls")),
        (SEEDS / "s12.pcapng", None, ("-d", "tcp.port==2465,tls")),
        (SEEDS / "s13.pcapng", None, ("-d", "tcp.port==2465,tls")),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_captures_are_as_tshark_reads_them(
    path: Path, keys: Path | None, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not path.exists():
        pytest.skip("the shared captures are not here")
    ours = by_us(path, keys, monkeypatch)
    assert ours
    theirs = by_tshark(path, keys, ours, *more)
    for number, said in ours.items():
        for side in "CS":  # tshark 4.0 leaves out the first record when the Finished is in the same segment
            assert said[side].endswith(theirs[number][side]), number
            assert said[side] == theirs[number][side] or (path.parent == SEEDS and len(said[side]) < 100)
