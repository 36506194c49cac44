"""IMAP dialogues: tests/dialogues/imap_*.txt, and what does not fit a text file."""

import hashlib
import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from dialogue import EVERY_WAY, STEP, Dialogue, Segment, _number, connection, parse, plain, play
from hypothesis import given, settings
from hypothesis import strategies as st
from told import dialogues, perform, tell

from analyzer.limits import Limits
from analyzer.protocols import imap
from analyzer.protocols.base import MessageCarried
from analyzer.wire.types import Chunk


@pytest.mark.parametrize("path", dialogues("imap"), ids=lambda p: p.stem)
@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_dialogue(path: Path, cut: int | str, order: str) -> None:
    played, told = perform(imap.Session, path, 143, cut, order)
    assert tell(played.events) == told


MESSAGE = b"Message-ID: <m@x>\r\n\r\n" + b"".join(b"line %d of the text\r\n" % i for i in range(300))


def fetched(pieces: Iterable[bytes], **how: Any) -> list[MessageCarried]:
    """What comes of a dialogue whose server says these octets after a FETCH."""
    dialogue = parse("S: * OK ready\nC: a FETCH 1 BODY[]\nS: * 1 FETCH\nC: b LOGOUT\nS: b OK")
    dialogue.segments[2].data = b"".join(pieces)
    _number(dialogue.segments)
    played = play(imap.Session, dialogue, port=143, **how)
    assert played.verbs == ["FETCH", "LOGOUT"]
    return played.messages


@given(st.lists(st.integers(0, 7000), max_size=6), st.sampled_from(["capture", "client", "server"]))
@settings(max_examples=60, deadline=None)
def test_a_literal_is_its_octets_however_it_is_cut(cuts: list[int], order: str) -> None:
    octets = [b"* 1 FETCH (UID 5 BODY[] {%d}\r\n" % len(MESSAGE), MESSAGE, b" FLAGS (\\Seen))\r\na OK\r\n"]
    (carried,) = fetched(octets, cut=cuts, order=order)
    assert carried.content is not None
    assert carried.content.sha256 == hashlib.sha256(MESSAGE).hexdigest()
    assert (carried.uid, carried.flags) == (5, ("\\Seen",))


@given(st.permutations(range(7)), st.booleans())
@settings(max_examples=40, deadline=None)
def test_pieces_in_any_order_are_one_message(order: list[int], sized: bool) -> None:
    """BODY[]<n> of 1000 octets each: whole when all have come, with the digest of the whole."""
    said_, size = b"", b"RFC822.SIZE %d " % len(MESSAGE) if sized else b""
    for k in order:
        piece = MESSAGE[k * 1000 : (k + 1) * 1000]
        said_ += b"* 1 FETCH (%sBODY[]<%d> {%d}\r\n%s)\r\n" % (size, k * 1000, len(piece), piece)
    (carried,) = fetched([said_, b"a OK\r\n"])
    assert carried.content is not None
    if sized:
        assert carried.content.sha256 == hashlib.sha256(MESSAGE).hexdigest()
    else:  # nobody said that the last octet is the last
        assert (carried.content.complete, carried.content.size) == (False, len(MESSAGE))


def test_a_piece_shorter_than_asked_for_is_the_last() -> None:
    dialogue = (
        "S: * OK\nC: a FETCH 1 BODY.PEEK[]<0.10>\nS~ * 1 FETCH (BODY[]<0> {10}\\r\\n0123456789)\\r\\na OK\\r\\n\n"
        "C: b FETCH 1 BODY.PEEK[]<10.10>\nS~ * 1 FETCH (BODY[]<10> {3}\\r\\nabc)\\r\\nb OK\\r\\n"
    )
    (carried,) = play(imap.Session, dialogue).messages
    assert carried.content is not None
    assert carried.content.sha256 == hashlib.sha256(b"0123456789abc").hexdigest()
    assert carried.ts_start is not None
    assert carried.ts_end is not None
    assert carried.ts_start < carried.ts_end


def test_the_same_message_in_one_response_is_one() -> None:
    """BODY[HEADER], BODY[TEXT] and BODY[] together: the parts are parts of it."""
    head, text = b"Message-ID: <m@x>\r\n\r\n", b"text\r\n"
    octets = b"* 1 FETCH (BODY[HEADER] {%d}\r\n%s BODY[TEXT] {%d}\r\n%s BODY[] {%d}\r\n%s)\r\na OK\r\n"
    (carried,) = fetched([octets % (len(head), head, len(text), text, len(head + text), head + text)])
    assert carried.content is not None
    assert carried.content.sha256 == hashlib.sha256(head + text).hexdigest()


def test_header_and_text_are_the_message() -> None:
    head, text = b"Message-ID: <m@x>\r\nContent-Type: text/plain\r\n\r\n", b"text\r\n"
    for item in (b"BODY[TEXT]", b"RFC822.TEXT", b"BODY[1]"):
        for octets in (
            b"* 1 FETCH (BODY[HEADER] {%d}\r\n%s)\r\n* 1 FETCH (%s {%d}\r\n%s)\r\na OK\r\n"
            % (len(head), head, item, len(text), text),
            b"* 1 FETCH (%s {%d}\r\n%s BODY[HEADER] {%d}\r\n%s)\r\na OK\r\n" % (item, len(text), text, len(head), head),
        ):
            if item == b"BODY[1]" and octets.startswith(b"* 1 FETCH (BODY[1]"):
                continue  # before the header is known a part is a part
            (carried,) = fetched([octets])
            assert carried.content is not None
            assert carried.content.sha256 == hashlib.sha256(head + text).hexdigest()


def test_times_of_a_retrieval() -> None:
    begin = "S: * OK\n[t=1] C: a FETCH 1 RFC822\n[t=2] S: * 1 FETCH (RFC822 {6}\n"
    text = begin + "[t=3] S~ 012\n[t=4] S~ 345\n[t=5] S: )\n[t=6] S: a OK"
    (carried,) = play(imap.Session, text).messages
    seconds = [
        (t or 0) % 1_000_000_000_000 // 1_000_000_000 for t in (carried.ts_start, carried.ts_data, carried.ts_eom, carried.ts_end)
    ]
    assert seconds == [1, 3, 4, 5]


def test_an_idle_arrival_keeps_its_time() -> None:
    text = (
        "S: * OK\nC: a SELECT x\nS: * 0 EXISTS\nS: a OK\nC: b IDLE\nS: +\n[t=7] S: * 1 EXISTS\n[t=9] C: DONE\nS: b OK\n"
        'C: c FETCH 1 (UID ENVELOPE)\nS: * 1 FETCH (UID 3 ENVELOPE (NIL NIL NIL NIL NIL NIL NIL NIL NIL "<m@x>"))\nS: c OK'
    )
    (event,) = play(imap.Session, text).mailbox
    assert (event.event, event.ts % 1_000_000_000_000, event.uid, event.message_id) == ("notified", 7_000_000_000, 3, "<m@x>")


def compressed(lines: list[tuple[str, bytes]]) -> Dialogue:
    """A dialogue whose lines behind COMPRESS are deflated."""
    dialogue = parse("S: * OK\nC: a COMPRESS DEFLATE\nS: a OK")
    streams = {side: zlib.compressobj(9, zlib.DEFLATED, -15) for side in "CS"}
    for side, octets in lines:
        last = dialogue.segments[-1]
        data = streams[side].compress(octets) + streams[side].flush(zlib.Z_SYNC_FLUSH)
        dialogue.segments.append(Segment(side == "C", last.ts + STEP, last.frame + 1, data))
    _number(dialogue.segments)
    return dialogue


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_compress(cut: int | str, order: str) -> None:
    """RFC 4978: both directions, also when they are cut inside a deflate block."""
    dialogue = compressed(
        [
            ("C", b"b SELECT INBOX\r\n"),
            ("S", b"* 1 EXISTS\r\nb OK\r\n"),
            ("C", b"c FETCH 1 BODY[]\r\n"),
            ("S", b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\nc OK\r\n" % (len(MESSAGE), MESSAGE)),
            ("C", b"d LOGOUT\r\n"),
            ("S", b"d OK\r\n"),
        ]
    )
    played = play(imap.Session, dialogue, cut=cut, order=order, port=143)
    assert played.verbs == ["COMPRESS", "SELECT", "FETCH", "LOGOUT"]
    (carried,) = played.messages
    assert carried.content is not None
    assert carried.content.sha256 == hashlib.sha256(MESSAGE).hexdigest()
    assert [c.latency_s for c in played.commands] == [STEP / 1e9] * 4


def test_a_compression_bomb_goes_off_within_bounds() -> None:
    dialogue = compressed([("C", b"b FETCH 1 BODY[]\r\n"), ("S", b"* 1 FETCH (BODY[] {99999999}\r\n" + b" " * 20_000_000)])
    tracemalloc.start()
    played = play(imap.Session, dialogue, cut="whole", port=143)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert "inflate_limit" in played.anomalies
    (carried,) = played.messages
    assert carried.content is not None
    assert not carried.content.complete


def test_a_gap_in_a_compressed_stream_ends_it() -> None:
    dialogue = compressed([("C", b"b NOOP\r\n"), ("S", b"b OK\r\n"), ("C", b"c NOOP\r\n"), ("S", b"c OK\r\n")])
    dialogue.segments[-1].gap = 5
    _number(dialogue.segments)
    for cut, order in EVERY_WAY:
        played = play(imap.Session, dialogue, cut=cut, order=order, port=143)
        assert [(c.verb, c.status) for c in played.commands] == [("COMPRESS", "OK"), ("NOOP", "OK"), ("NOOP", None)]
        assert "inflate_failed" in played.anomalies


SECRETS = ("s3cr3t", "AHRpbQBzM2NyM3Q=", "czNjcjN0")
SECRET_SHAPES = [
    "S: * OK\nC: a LOGIN tim s3cr3t\nS: a OK",
    'S: * OK\nC: a LOGIN tim "s3cr3t"\nS: a NO',
    "S: * OK\nC: a LOGIN {3+}\nC: tim {6+}\nC: s3cr3t\nS: a NO",
    "S: * OK\nC: a LOGIN tim {6}\nS: a NO no literals\nC: s3cr3t\nS: * BAD what",
    "S: * OK\nC: a LOGIN tim {16}\nS: a NO no literals\nC: s3cr3t or s3cr3t\nS: * BAD what",
    "C: a LOGIN tim {6}\nC: s3cr3t",
    "C: a LOGIN tim s3cr3",
    "S: * OK\nC: a LOGIN tim {60}\nS: + go\nC: s3cr3t is too short",
    "S: * OK\nC: a AUTHENTICATE PLAIN AHRpbQBzM2NyM3Q=\nS: a OK",
    "S: * OK\nC: a AUTHENTICATE PLAIN\nS: +\nC: AHRpbQBzM2NyM3Q=\nS: a OK",
    "S: * OK\nC: a AUTHENTICATE PLAIN\nC: AHRpbQBzM2NyM3Q=\nS: a NO no",
    "S: * OK\nC: a AUTHENTICATE LOGIN\nS: + UGFzc3dvcmQ6\nC: czNjcjN0\nS: a OK",
    "S: * OK\nC: a LOGIN tim {9+}\nC...gap 12\nC~ s3cr3t\\r\\nC: b s3cr3t it is\nC: c NOOP",
    "S: * OK\nC: a login\nC: b XLOGIN tim s3cr3t\nS: a BAD\nS: b BAD",
]


@pytest.mark.parametrize("shape", SECRET_SHAPES)
def test_a_secret_never_leaves(shape: str) -> None:
    for cut, order in EVERY_WAY:
        told = repr(play(imap.Session, shape, cut=cut, order=order).events)
        assert not [s for s in SECRETS if s in told or s.upper() in told]


WORDS = rb"""
    *| a| OK| NO| +| {3}| {3+}| ~{9}| {99999999999}| "|\| (| )| [| ]| 1 FETCH (| BODY[]| BODY[]<5>| UID 7| VANISHED 1:4000000000
    | 9 EXISTS| 9999999999 EXISTS| 1 EXPUNGE| FETCH 1:* BODY[]<0.9>| SELECT x| CLOSE| UID MOVE 1:4000000000 y
    | [COPYUID 1 1:4000000000 1:4000000000]| APPEND x| LOGIN| AUTHENTICATE PLAIN| STORE 1:* +FLAGS (\Deleted)| [UIDVALIDITY 1]
    | ENVELOPE (((| IDLE| DONE""".replace(b"\n    ", b"").split(b"|")
LINES = [b"\r\n", b"\n", b"\r\n* ", b"\r\na ", b"\0\xff"]
HOSTILE = st.lists(st.sampled_from(WORDS + LINES), max_size=40).map(b"".join)


@given(HOSTILE, HOSTILE, HOSTILE, st.integers(-1, 3))
@settings(max_examples=300, deadline=None)
def test_nothing_raises(client: bytes, server: bytes, more: bytes, gap: int) -> None:
    session = imap.Session(
        connection(143), True, Limits(line_bytes=64, waiting_bytes=256, mailbox_messages=100, partial_messages=3)
    )
    at = len(server) + max(gap, 0)
    session.feed(Chunk(False, 0, 0, server, [0], [1], [1], [-1]))
    session.feed(Chunk(True, 0, 0, client, [0], [2], [2], [0]))
    session.feed(Chunk(False, gap, at, more, [at], [3], [3], [len(client)]))
    session.close("fin", 4)


@given(HOSTILE, HOSTILE, st.integers(1, 9), st.sampled_from(["client", "server"]))
@settings(max_examples=100, deadline=None)
def test_feeding_does_not_matter(client: bytes, server: bytes, cut: int, order: str) -> None:
    dialogue = parse("S: * OK\nC: a NOOP\nS: a OK\nC: b NOOP\nS: b OK\nC: c NOOP\nS: c OK")
    dialogue.segments[3].data += client
    dialogue.segments[4].data += server
    _number(dialogue.segments)
    assert plain(play(imap.Session, dialogue, cut=cut, order=order).events) == plain(play(imap.Session, dialogue).events)


def test_numbers_of_a_large_mailbox_cost_nothing() -> None:
    """A mailbox of four thousand million messages is a number, not a list."""
    text = "S: * OK\nC: a SELECT x\nS: * 4000000000 EXISTS\nS: a OK\n"
    text += "C: b FETCH 4000000000 UID\nS: * 4000000000 FETCH (UID 4)\nS: b OK"
    tracemalloc.start()
    play(
        imap.Session,
        text + "\nC: c STORE 1:* +FLAGS (x)\nS: c OK\nC: d NOOP\nS: * 4294967295 EXISTS\nS: * VANISHED 1:4294967295\nS: d OK",
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


PROBES = [
    (b"", b"* OK IMAP4rev1 ready\r\n", 41000, 143, False, True),
    (b"", b"* OK ready\r\n", 41000, 143, False, True),
    (b"a LOGIN x y\r\n", b"* OK ready\r\n", 41000, 8143, False, True),
    (b"* OK IMAP4rev1 ready\r\n", b"a LOGIN x y\r\n", 143, 41000, False, False),
    (b"zz UID FETCH 3 BODY[]\r\n", b"* 3 FETCH (UID 3 BODY[] {9}\r\n", 41000, 40999, False, True),
    (b"zz UID FETCH 3 BODY[]\r\n", b"st of a line\r\nmore\r\n", 41000, 143, False, True),
    (b"", b"* BYE too many\r\n", 41000, 143, True, True),
    (b"a LOGIN x y\r\nb SELECT INBOX\r\n", b"", 41000, 143, True, True),
    (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", 41000, 143, True, None),
    (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", 41000, 143, True, None),
    (b"USER a\r\nPASS b\r\n", b"+OK ready\r\n+OK\r\n", 41000, 143, True, None),
    (b"EHLO x\r\n", b"220 x ESMTP\r\n250 OK\r\n", 41000, 143, True, None),
    (b"", b"", 41000, 143, True, None),
]


@pytest.mark.parametrize("case", PROBES, ids=lambda c: repr(c)[:60])
def test_probe(case: tuple[bytes, bytes, int, int, bool, bool | None]) -> None:
    *seen, client_is_orig = case
    found = imap.probe(*seen)  # type: ignore[arg-type]
    assert (found.client_is_orig if found else None) == client_is_orig
