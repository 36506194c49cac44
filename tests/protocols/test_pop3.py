"""POP3 dialogues: tests/dialogues/pop3_*.txt, and what does not fit a text file."""

import hashlib
from pathlib import Path

import pytest
from dialogue import EVERY_WAY, _number, parse, plain, play
from hypothesis import given, settings
from hypothesis import strategies as st
from told import dialogues, perform, tell

from analyzer.limits import Limits
from analyzer.protocols import pop3

HOSTILE = st.lists(
    st.sampled_from(
        [b"+OK", b"-ERR", b"+ ", b".", b"\r\n", b"\n", b"\r", b"RETR 1", b"AUTH PLAIN", b"STLS", b"\0", b"x:", b"..", b"\xff"]
    ),
    max_size=30,
).map(b"".join)


@pytest.mark.parametrize("path", dialogues("pop3"), ids=lambda p: p.stem)
@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_dialogue(path: Path, cut: int | str, order: str) -> None:
    played, told = perform(pop3.Session, path, 110, cut, order)
    assert tell(played.events) == told


def retrieve(wire: str, message: bytes, **how: object) -> None:
    played = play(pop3.Session, "S: +OK ready\nC: RETR 1\nS~ +OK\\r\\n" + wire + "\nC: QUIT\nS: +OK", port=110, **how)
    (carried,) = played.messages
    assert carried.content is not None
    assert (carried.content.complete, carried.content.size) == (True, len(message))
    assert carried.content.sha256 == hashlib.sha256(message).hexdigest()
    assert played.verbs == ["RETR", "QUIT"]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, "whole"])
@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (r".\r\n", b""),
        (r"\r\n.\r\n", b"\r\n"),
        (r"..\r\n.\r\n", b".\r\n"),
        (r"...\r\n.\r\n", b"..\r\n"),
        (r"a\r\n..\r\n.x\r\n.\r\n", b"a\r\n.\r\nx\r\n"),
        (r"a\n.\r\nb\r\n.\r\n", b"a\n.\r\nb\r\n"),
        (r"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n"),
        (r"a\r\r\n.\r\n", b"a\r\r\n"),
    ],
)
def test_dots_and_line_ends(wire: str, message: bytes, cut: int | str) -> None:
    """RFC 1939 3: one dot before a line goes; only CRLF . CRLF ends a message."""
    retrieve(wire, message, cut=cut)


@given(
    st.lists(st.sampled_from([b".", b"..", b"x", b"", b"\r", b"+OK"]), max_size=12),
    st.integers(1, 9),
    st.sampled_from(["client", "server", "capture"]),
)
@settings(max_examples=60, deadline=None)
def test_any_message_comes_back(lines: list[bytes], cut: int, order: str) -> None:
    message = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." if line[:1] == b"." else b"") + line + b"\r\n" for line in lines) + b".\r\n"
    retrieve(stuffed.decode().replace("\r", r"\r").replace("\n", r"\n"), message, cut=cut, order=order)


def test_times_of_a_retrieval() -> None:
    """RETR at 1 s, its reply at 2 s, the final dot at 3 s."""
    played = play(pop3.Session, "S: +OK\n[t=1] C: RETR 1\n[t=2] S: +OK\nS: a\n[t=3] S: .\n[t=4] C: QUIT\n[t=5] S: +OK", port=110)
    (carried,) = played.messages
    seconds = [
        (t or 0) % 1_000_000_000_000 // 1_000_000_000 for t in (carried.ts_start, carried.ts_data, carried.ts_eom, carried.ts_end)
    ]
    assert seconds == [1, 2, 3, 3]
    assert [c.latency_s for c in played.commands] == [1.0, 1.0]


def test_stls_hands_over_to_tls() -> None:
    dialogue = "S: +OK\nC: STLS\nS: +OK go\nC~ \\x16\\x03\\x01\\0\\x05hello\nS~ \\x16\\x03\\x03\\0\\x05hello"
    played = play(pop3.Session, dialogue, port=110)
    assert played.verbs == ["STLS"]
    assert played.row.tls == "starttls"
    assert played.info.starttls == "used"


@given(HOSTILE, HOSTILE, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_nothing_raises(client: bytes, server: bytes, gap: int) -> None:
    from dialogue import connection

    from analyzer.wire.types import Chunk

    session = pop3.Session(connection(110), True, Limits(line_bytes=16, waiting_bytes=64))
    for orig, octets in ((False, server), (True, client), (False, server)):
        again = not orig and session.server.seen
        at, lost = (len(server) + gap, gap) if again else (0, 0)
        session.feed(Chunk(orig, lost, at, octets, [at], [1], [1], [-1]))
    session.close("fin", 2)


@given(HOSTILE, HOSTILE, st.integers(1, 9), st.sampled_from(["client", "server"]))
@settings(max_examples=150, deadline=None)
def test_feeding_does_not_matter(client: bytes, server: bytes, cut: int, order: str) -> None:
    dialogue = parse(
        "S: +OK\nC: RETR 1\nS: +OK\nS: .\nC: UIDL\nS: +OK\nC: RETR 3\nS: +OK\nS...gap 5\nS~ x\\r\\n\nC: NOOP\nS: +OK"
    )
    dialogue.segments[3].data += client
    dialogue.segments[4].data += server
    _number(dialogue.segments)
    assert plain(play(pop3.Session, dialogue, cut=cut, order=order).events) == plain(play(pop3.Session, dialogue).events)


def test_a_secret_never_leaves() -> None:
    """In whatever shape a password goes by, and whatever is lost around it."""
    secrets = ["s3cr3t", "AHRpbQBzM2NyM3Q=", "czNjcjN0"]
    shapes = [
        "S: +OK\nC: USER s3cr3t\nS: +OK\nC: PASS\nS: -ERR\nC: QUIT\nS: +OK",
        "S: +OK\nC: USER s3cr3t\nS: +OK\nC: USER tim\nS: +OK\nC: PASS s3cr3t\nS: +OK",
        "S: +OK\nC: PASS s3cr3t\nS: -ERR s3cr3t is wrong",
        "S: +OK\nC: tim s3cr3t\nS: -ERR unknown command tim s3cr3t",
        "S: +OK\nC: PASS s3cr3t\nS: -ERR",
        "S: +OK\nC: APOP tim s3cr3t\nS: -ERR",
        "S: +OK\nC: AUTH PLAIN AHRpbQBzM2NyM3Q=\nS: +OK",
        "S: +OK\nC: AUTH PLAIN\nC: AHRpbQBzM2NyM3Q=\nS: -ERR no\nS: -ERR no",
        "S: +OK\nC: AUTH LOGIN\nS: + VXNlcm5hbWU6\nC...gap 6\nC~ \nS: + UGFzc3dvcmQ6\nC: czNjcjN0\nS: +OK",
        "S: +OK\nC: AUTH LOGIN\nS: + UGFzc3dvcmQ6\nC: czNjcjN0\nS: +OK",
        "C: AUTH LOGIN\nC: dGlt\nC: czNjcjN0",
        "S: +OK\nC: AUTH LOGIN\nS...gap 30\nS~ \nC: czNjcjN0\nS: +OK",
    ]
    for shape in shapes:
        for cut, order in EVERY_WAY:
            said = repr(play(pop3.Session, shape, cut=cut, order=order).events)
            assert not [s for s in secrets if s in said or s.upper() in said], shape


def test_twenty_thousand_pipelined_commands_find_their_replies() -> None:
    """Without end: were the cost of one to grow with those before it, this would not come back."""
    n = 20_000
    lines = ["S: +OK", *[f"C: DELE {k}" for k in range(1, n + 1)], "C: QUIT", *["S: +OK"] * (n + 1)]
    played = play(pop3.Session, "\n".join(lines), cut="whole", port=110)
    assert [c.argument for c in played.commands[-3:]] == [str(n - 1), str(n), None]
    assert len(played.mailbox) == n


PROBES = [
    (b"USER a\r\n", b"+OK ready\r\n", 41000, 110, False, True),
    (b"", b"+OK Dovecot ready.\r\n", 41000, 110, False, True),
    (b"", b"+OK POP3 server\r\n", 41000, 8110, False, True),
    (b"RETR 3\r\n", b"+OK 200 octets\r\n", 41000, 40999, False, True),
    (b"+OK 200 octets\r\n", b"RETR 3\r\n", 110, 41000, False, False),
    (b"RETR 3\r\n", b"st of a line\r\nmore\r\n", 41000, 110, False, True),
    (b"USER a\r\nPASS b\r\n", b"", 41000, 110, True, True),
    (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", 41000, 110, True, None),
    (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"+OK\r\n", 41000, 110, True, None),
    (b"SET a b\r\n", b"+OK\r\n", 41000, 6379, True, None),
    (b"AUTH pw\r\n", b"+OK\r\n", 41000, 6379, True, None),
    (b"USER ftp\r\nPASS x\r\nLIST\r\n", b"220 FTP ready\r\n331 ok\r\n", 41000, 110, True, None),
    (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", 41000, 110, True, None),
    (b"", b"", 41000, 110, True, None),
    (b"\x16\x03\x01\x00", b"\x16\x03\x03\x00", 41000, 110, True, None),
]


@pytest.mark.parametrize("case", PROBES, ids=lambda c: repr(c)[:60])
def test_probe(case: tuple[bytes, bytes, int, int, bool, bool | None]) -> None:
    *seen, client_is_orig = case
    found = pop3.probe(*seen)  # type: ignore[arg-type]
    assert (found.client_is_orig if found else None) == client_is_orig
