"""Signed messages as they go by: digests as dkimpy computes them, whatever the pieces."""

import base64
import hashlib

import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import given
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.protocols.message import MessageReader

HEAD = b"From: taro@a.example\r\nTo: hanako@b.example\r\nSubject: lunch\r\n"
OCTETS = st.lists(st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"\r\n\r\n", b"b c", b"  ", b"\r", b"\n"]), max_size=12).map(
    b"".join
)


def signature(canon: str, bh: str = "", extra: str = "", algorithm: str = "rsa-sha256") -> bytes:
    return (
        f"DKIM-Signature: v=1; a={algorithm}; c={canon}; d=a.example; s=k; {extra}\r\n\th=from:to;\r\n bh={bh};\r\n b=AAAA\r\n"
    ).encode()


def read(message: bytes, cuts: list[int] | None = None):
    reader = MessageReader(Limits())
    begin = 0
    for cut in [*sorted({c for c in cuts or () if c < len(message)}), len(message)]:
        reader.feed(message[begin:cut])
        begin = cut
    return reader.content(True)


@given(body=OCTETS, cuts=st.lists(st.integers(0, 400), max_size=8), canon=st.sampled_from(["simple", "relaxed"]))
def test_body_digests_are_dkimpys_whatever_the_pieces(body, cuts, canon):
    body = body.rstrip(b" \t")  # white space behind the last line end is in no message that came by SMTP
    canonical = {"simple": Simple, "relaxed": Relaxed}[canon].canonicalize_body(body)
    bh = base64.b64encode(hashlib.sha256(canonical).digest()).decode()
    told = read(signature(f"simple/{canon}", bh) + HEAD + b"\r\n" + body, cuts)
    assert told.signatures.dkim[0].body == "same"
    other = read(signature(f"simple/{canon}", bh) + HEAD + b"\r\n" + body + b"x\r\n", cuts)
    assert other.signatures.dkim[0].body == "differs"


@pytest.mark.parametrize(
    ("body", "length", "said"),
    [(b"one\r\ntwo\r\n", 5, "same"), (b"one\r\n", 5, "same"), (b"on\r\n", 5, "short"), (b"two\r\none\r\n", 5, "differs")],
)
def test_a_length_signs_the_beginning_only(body, length, said):
    bh = base64.b64encode(hashlib.sha256(b"one\r\n").digest()).decode()
    found = read(signature("simple/simple", bh, f"l={length};") + HEAD + b"\r\n" + body).signatures.dkim[0]
    assert found.body == said
    assert found.partial is (len(body) > length)


def test_many_empty_lines_cost_no_memory_and_still_count_when_text_follows():
    body = b"a\r\n" + b"\r\n" * 300_000
    bh = base64.b64encode(hashlib.sha256(b"a\r\n").digest()).decode()
    assert read(signature("relaxed/simple", bh) + HEAD + b"\r\n" + body, [9000, 70_000]).signatures.dkim[0].body == "same"
    bh = base64.b64encode(hashlib.sha256(body + b"z\r\n").digest()).decode()
    assert read(signature("relaxed/simple", bh) + HEAD + b"\r\n" + body + b"z\r\n", [9000]).signatures.dkim[0].body == "same"


def test_an_unsigned_message_has_nothing_to_verify():
    assert read(HEAD + b"\r\nHello.\r\n").signatures is None


def test_a_hole_in_the_body_leaves_it_unseen_and_one_in_the_header_leaves_nothing():
    reader = MessageReader(Limits())
    reader.feed(signature("relaxed/relaxed", "AAAA") + HEAD + b"\r\nHel")
    reader.gap(2)
    reader.feed(b"\r\n")
    assert reader.content(True).signatures.dkim[0].body == "unseen"
    reader = MessageReader(Limits())
    reader.feed(signature("relaxed/relaxed", "AAAA")[:30])
    reader.gap(2)
    reader.feed(HEAD + b"\r\nHello\r\n")
    assert reader.content(True).signatures is None


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        (b"v=2; a=rsa-sha256; d=a.example; s=k; h=from; bh=AAAA; b=AAAA", "v= is not 1"),
        (b"v=1; a=rsa-md5; d=a.example; s=k; h=from; bh=AAAA; b=AAAA", "algorithm rsa-md5 is not known"),
        (b"v=1; a=rsa-sha256; d=a.example; s=k; h=to; bh=AAAA; b=AAAA", "From is not signed"),
        (b"v=1; a=rsa-sha256; c=loose; d=a.example; s=k; h=from; bh=AAAA; b=AAAA", "c= is not known"),
        (b"v=1; a=rsa-sha256; d=a.example; i=@b.example; s=k; h=from; bh=AAAA; b=AAAA", "i= is not in d="),
        (b"v=1; a=rsa-sha256; s=k; h=from; bh=AAAA; b=AAAA", "without d="),
        (b"v=1; a=rsa-sha256; d=a.example; s=k; h=from; bh=AAAA; b=A", "b= or bh= is not base64"),
        (b"v=1; a=rsa-sha256; d=a.example; s=k; l=x; h=from; bh=AAAA; b=AAAA", "l= is not a number"),
    ],
)
def test_what_cannot_be_a_signature_says_why(field, fault):
    assert read(b"DKIM-Signature: " + field + b"\r\n" + HEAD + b"\r\nHello.\r\n").signatures.dkim[0].fault == fault


def test_more_signatures_than_the_limit_are_left_out():
    many = signature("simple/simple") * (Limits().signatures + 3)
    assert len(read(many + HEAD + b"\r\n").signatures.dkim) == Limits().signatures


@pytest.mark.parametrize(
    ("sets", "fault"),
    [
        (["AAR1 AMS1"], "the set of instance 1 is not whole"),
        (["AAR2 AMS2 AS2"], "the set of instance 1 is not whole"),
        (["AAR1 AMS1 AS1", "AAR1"], "two arc-authentication-results of instance 1"),
        (["AAR51"], "arc-authentication-results without an instance from 1 to 50"),
    ],
)
def test_arc_sets_that_are_not_whole(sets, fault):
    names = {"AAR": "ARC-Authentication-Results", "AMS": "ARC-Message-Signature", "AS": "ARC-Seal"}
    fields = "".join(
        f"{names[word.rstrip('0123456789')]}: i={word.lstrip('ARMS')}; b.example; dkim=pass\r\n"
        for one in sets
        for word in one.split()
    )
    assert read(fields.encode() + HEAD + b"\r\n").signatures.arc_fault == fault
