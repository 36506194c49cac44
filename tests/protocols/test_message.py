"""Messages as octets: digests, fields, transparency, loss."""

import hashlib
import itertools
import re
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.protocols.base import Content
from analyzer.protocols.bodies import Store
from analyzer.protocols.message import MessageReader

LIMITS = Limits(bodies=Store())
MAIL = (
    b"Received: from a.example (a.example [192.0.2.1])\r\n\tby b.example with ESMTP id Q1\r\n\tfor <bob@example.net>;"
    b" Tue, 14 Nov 2023 22:13:20 +0000\r\n"
    b"From: Alice <alice@example.com>\r\nTo: bob@example.net\r\nSUBJECT : folded\r\n subject\r\n"
    b"X-Unknown: not kept\r\nmessage-id:\r\n <m1@example.com>\r\n\r\n"
    b"Hello.\r\n.hidden dot\r\n..\r\n.\r\nend\r\n"
)


def pieces(octets: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({c % (len(octets) + 1) for c in cuts}), len(octets)]
    return [octets[a:b] for a, b in itertools.pairwise(edges)]


def stuff(message: bytes) -> bytes:
    """RFC 5321 4.5.2, as a client does it: line by line."""
    lines = message.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b".\r\n"


def told(content: Content) -> Content:
    """What is known of a message, its octets read back."""
    return replace(content, body=b"".join(content.body or ()))


def read(octets: bytes, cuts: list[int] = [], limits: Limits = LIMITS):  # noqa: B006
    reader = MessageReader(limits)
    for piece in pieces(octets, cuts):
        reader.feed(piece)
    return told(reader.content(True))


def read_stuffed(octets: bytes, cuts: list[int], watch: bool = False):
    """(content, octets after the end of data, look-alikes as octets before each)"""
    reader = MessageReader(LIMITS)
    if watch:
        reader.watch_ends()
    forks = []
    done = 0
    for piece in pieces(octets, cuts):
        begin = 0
        while True:
            at = reader.feed_stuffed(piece, begin)
            if at < 0:
                break
            if reader.ended:
                return told(reader.content(True)), octets[done + at :], forks
            forks.append((done + at, told(reader.fork().content(True)).body))
            begin = at
        done += len(piece)
    return told(reader.content(False)), None, forks


def test_fields_digests_and_sizes() -> None:
    content = read(MAIL)
    body = MAIL.partition(b"\r\n\r\n")[2]
    assert content.sha256 == hashlib.sha256(MAIL).hexdigest()
    assert content.body_digest == hashlib.sha1(body).hexdigest()
    assert (content.size, content.body_size) == (len(MAIL), len(body))
    assert content.message_id == "<m1@example.com>"
    assert [name for name, _ in content.headers] == ["received", "from", "to", "subject", "message-id"]
    assert dict(content.headers)["subject"] == b"folded subject"
    assert dict(content.headers)["received"].startswith(b"from a.example (a.example [192.0.2.1])\tby b.example")
    assert content.header_complete and content.complete and content.body == MAIL


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=8))
def test_any_cut_gives_the_same(cuts: list[int]) -> None:
    assert asdict(read(MAIL, cuts)) == asdict(read(MAIL))


odd = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"\0", b"a", b"QUIT", b"x: y", b"\r\n.", b"\n.\n", b"\r\n\r\n"]),
    max_size=40,
).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(odd, st.lists(st.integers(0, 300), max_size=6), st.booleans())
def test_stuffed_messages_come_back(message: bytes, cuts: list[int], watch: bool) -> None:
    message += b"\r\n"
    content, rest, _ = read_stuffed(stuff(message) + b"QUIT\r\n", cuts, watch)
    assert content.body == message
    assert content.sha256 == hashlib.sha256(message).hexdigest()
    assert rest == b"QUIT\r\n"


@settings(max_examples=400, deadline=None)
@given(odd, st.lists(st.integers(0, 300), max_size=6))
def test_lookalikes_do_not_depend_on_the_cut(message: bytes, cuts: list[int]) -> None:
    octets = stuff(message + b"\r\n")
    one, other = read_stuffed(octets, cuts, True), read_stuffed(octets, [], True)
    assert asdict(one[0]) == asdict(other[0])
    assert one[1:] == other[1:]


def test_large_messages_take_the_columnar_road() -> None:
    lines = [b"%06d " % i + b"x" * (i % 90) for i in range(20_000)]
    lines[7_000], lines[7_001], lines[9_999] = b".", b"..two", b".start"
    message = b"Subject: big\r\n\r\n" + b"\r\n".join(lines) + b"\r\n"
    for size in (1 << 30, 100_000, 8_193, 70_001):
        octets = stuff(message) + b"QUIT\r\n"
        content, rest, _ = read_stuffed(octets, list(range(0, len(octets), size)))
        assert content.sha256 == hashlib.sha256(message).hexdigest()
        assert rest == b"QUIT\r\n"


@pytest.mark.parametrize(
    ("wire", "before"),
    [
        (b"a\n.\nMAIL", b"a\n"),
        (b"a\n.\r\nMAIL", b"a\n"),
        (b"a\r.\r\nMAIL", b"a\r\n"),
        (b"a\r.\rMAIL", b"a\r\n"),
        (b"a\r\n.\nMAIL", b"a\r\n"),
        (b"a\r\n\0.\r\nMAIL", b"a\r\n"),
        (b".\nMAIL", b""),
    ],
)
def test_lookalikes_of_the_end_of_data(wire: bytes, before: bytes) -> None:
    octets = wire + b"\r\n.\r\n"
    for cuts in ([], list(range(len(octets)))):
        _, rest, forks = read_stuffed(octets, cuts, True)
        assert rest == b""
        assert forks == [(wire.index(b"MAIL"), before)]


def test_a_lone_lf_dot_lf_is_seen_before_anything_follows() -> None:
    reader = MessageReader(LIMITS)
    reader.watch_ends()
    assert reader.feed_stuffed(b"Subject: x\n\nhello\n.\n") == 20
    assert not reader.ended


def test_no_digest_with_a_hole() -> None:
    reader = MessageReader(LIMITS)
    reader.feed(MAIL[:400])
    reader.gap(100)
    reader.feed(MAIL[500:])
    content = reader.content(True)
    assert (content.complete, content.sha256, content.body_digest, content.missing_bytes) == (False, None, None, 100)
    assert content.message_id == "<m1@example.com>"


def test_the_field_before_a_hole_may_be_cut_and_is_not_shown() -> None:
    reader = MessageReader(LIMITS)
    reader.feed(b"From: a@example.com\r\nTo: b@example.net\r\nSubject: half of")
    reader.gap(-1)
    content = reader.content(False)
    assert [name for name, _ in content.headers] == ["from", "to"]
    assert not content.header_complete


def test_header_goes_on_behind_a_hole() -> None:
    reader = MessageReader(LIMITS)
    reader.feed(b"From: a@example.com\r\nTo: b@example.net\r\nSubject: half of")
    reader.gap(20)
    reader.feed(b" it\r\nDate: today\r\nMessage-ID: <m@example.com>\r\n\r\nbody\r\n")
    content = reader.content(True)
    assert content.message_id == "<m@example.com>"
    assert not content.header_complete and content.body_size == 6


def test_body_text_behind_a_hole_is_no_header() -> None:
    reader = MessageReader(LIMITS)
    reader.gap(-1)
    reader.feed(b"ing text\r\nMessage-ID: <quoted@example.com>\r\nis what he wrote\r\n\r\nmore\r\n")
    assert reader.content(False).headers == []


def test_bare_line_feeds() -> None:
    content = read(b"From: a@example.com\nMessage-ID: <m@example.com>\n\nbody\n")
    assert (content.message_id, content.body_size) == ("<m@example.com>", 5)


def test_no_header_no_body_nothing() -> None:
    assert read(b"\r\nonly body\r\n").body_size == 11
    assert read(b"Subject: only header\r\n").headers == [("subject", b"only header")]
    empty = read(b"")
    assert (empty.size, empty.sha256, empty.headers) == (0, hashlib.sha256(b"").hexdigest(), [])


@pytest.mark.parametrize("cuts", [[], list(range(0, 400_000, 999))])
def test_header_bounds(cuts: list[int]) -> None:
    limits = Limits(header_bytes=2000, trace_fields=3)
    message = b"Received: x\r\n" * 5 + b"X: " + b"y" * 3000 + b"\r\nSubject: late\r\n\r\nbody"
    reader = MessageReader(limits)
    for piece in pieces(message, cuts):
        reader.feed(piece)
    content = reader.content(True)
    assert [name for name, _ in content.headers] == ["received"] * 3
    assert {name for name, _ in reader.oddities} == {"header_too_long", "too_many_trace_fields"}
    assert content.body_digest == hashlib.sha1(b"body").hexdigest()


def test_report_bodies_are_kept_up_to_a_bound() -> None:
    limits = Limits(report_bytes=50)
    report = b'Content-Type: Multipart/Report; report-type=delivery-status; boundary="b"\r\n\r\n' + b"r" * 100
    assert read(report, limits=limits).report == b"r" * 50
    assert read(report, [80, 90, 120], limits).report == b"r" * 50
    assert read(b"Content-Type: text/plain\r\n\r\nbody").report is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4), st.integers(-1, 50))
def test_any_octets_any_hole(octets: bytes, cuts: list[int], lost: int) -> None:
    reader = MessageReader(LIMITS)
    reader.watch_ends()
    for i, piece in enumerate(pieces(octets, cuts)):
        if i == 1:
            reader.gap(lost)
        at = 0
        while at >= 0 and not reader.ended:
            at = reader.feed_stuffed(piece, at)
    content = reader.content(reader.ended)
    assert content.sha256 is None or re.fullmatch("[0-9a-f]{64}", content.sha256)
