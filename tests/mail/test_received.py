"""Trace fields as servers of the world write them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.mail.received import Received, canonical_ip, parse, parse_any, parse_date


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1_000_000_000


WHEN = at(2026, 11, 23, 10)
CORPUS = [
    pytest.param(
        "from [10.20.1.10] (pc-taro.example.org [10.20.1.10])\tby smtp.example.org (Postfix) with ESMTPA id 5EA2F2D63E8"
        "\tfor <team@lists.example.net>; Mon, 23 Nov 2026 10:00:00 +0000 (UTC)",
        Received(
            None,
            "pc-taro.example.org",
            "10.20.1.10",
            "smtp.example.org",
            None,
            "ESMTPA",
            "5EA2F2D63E8",
            "team@lists.example.net",
            WHEN,
        ),
        id="postfix",
    ),
    pytest.param(
        "from x.example (x.example [IPv6:fd20::1:10]) (using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)"
        " key-exchange X25519 server-signature RSA-PSS (2048 bits) server-digest SHA256) (No client certificate requested)"
        " by smtp.example.org (Postfix) with ESMTPS id ABC for <a@b>; Mon, 23 Nov 2026 10:00:00 +0000",
        Received("x.example", "x.example", "fd20::1:10", "smtp.example.org", None, "ESMTPS", "ABC", "a@b", WHEN),
        id="postfix-tls",
    ),
    pytest.param(
        "by lists.example.net (Postfix) id 745D42D63ED; Mon, 23 Nov 2026 10:00:00 +0000 (UTC)",
        Received(None, None, None, "lists.example.net", None, None, "745D42D63ED", None, WHEN),
        id="postfix-local",
    ),
    pytest.param(
        "from [192.0.2.1] (helo=foo.example) by mx.example with esmtps (TLS1.3) tls TLS_AES_256_GCM_SHA384 (Exim 4.94.2)"
        " (envelope-from <a@b.c>) id 1abCdE-000123-AB for x@y.example; Mon, 23 Nov 2026 11:00:00 +0100",
        Received("foo.example", None, "192.0.2.1", "mx.example", None, "ESMTPS", "1abCdE-000123-AB", "x@y.example", WHEN),
        id="exim",
    ),
    pytest.param(
        "from rdns.example ([192.0.2.1]:4711 helo=foo.example) by mx.example with esmtp (Exim 4.94.2)"
        " id 1abCdE-000123-AB; Mon, 23 Nov 2026 10:00:00 +0000",
        Received("foo.example", "rdns.example", "192.0.2.1", "mx.example", None, "ESMTP", "1abCdE-000123-AB", None, WHEN),
        id="exim-port",
    ),
    pytest.param(
        "from helo.example (rdns.example [192.0.2.1] (may be forged)) by host.example (8.15.2/8.15.2) with ESMTP"
        " id 0A5Abc123456 for <x@y>; Mon, 23 Nov 26 05:00:00 EST",
        Received("helo.example", "rdns.example", "192.0.2.1", "host.example", None, "ESMTP", "0A5Abc123456", "x@y", WHEN),
        id="sendmail-obsolete-date",
    ),
    pytest.param(
        "from BN8NAM11FT057.example (2603:10b6:408:e8:cafe::14) by BN8PR03CA0033.example (2603:10b6:408:94::46)"
        " with Microsoft SMTP Server (version=TLS1_2, cipher=TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) id 15.20.3890.23"
        " via Frontend Transport; Mon, 23 Nov 2026 10:00:00 +0000",
        Received(
            "bn8nam11ft057.example",
            None,
            "2603:10b6:408:e8:cafe::14",
            "bn8pr03ca0033.example",
            "2603:10b6:408:94::46",
            "ESMTPS",
            None,
            None,
            WHEN,
        ),
        id="exchange-build-number-is-no-id",
    ),
    pytest.param(
        "from mail-x.google.example (mail-x.google.example. [192.0.2.1]) by mx.google.example with SMTPS"
        " id x1si1234567qk.12.2021.01.05.10.00.00 for <bob@gmail.example> (Google Transport Security);"
        " Mon, 23 Nov 2026 02:00:00 -0800 (PST)",
        Received(
            "mail-x.google.example",
            "mail-x.google.example",
            "192.0.2.1",
            "mx.google.example",
            None,
            "SMTPS",
            "x1si1234567qk.12.2021.01.05.10.00.00",
            "bob@gmail.example",
            WHEN,
        ),
        id="gmail",
    ),
    pytest.param(
        "(qmail 12345 invoked by uid 1000); 23 Nov 2026 10:00:00 -0000",
        Received(None, None, None, None, None, "LOCAL", "qmail-12345", None, WHEN),
        id="qmail-local",
    ),
    pytest.param(
        "from unknown (HELO foo.example) (192.0.2.7) by mail.example with SMTP; 23 Nov 2026 10:00:00 -0000",
        Received("foo.example", None, "192.0.2.7", "mail.example", None, "SMTP", None, None, WHEN),
        id="qmail-remote",
    ),
    pytest.param(
        "from helo.example (rdns.example [192.0.2.1]) by host.example (OpenSMTPD) with ESMTPS id 1a2b3c4d"
        " (TLSv1.3:TLS_AES_256_GCM_SHA384:256:NO) auth=yes user=bob for <x@y>; Mon, 23 Nov 2026 11:00:00 +0100 (CET)",
        Received("helo.example", "rdns.example", "192.0.2.1", "host.example", None, "ESMTPS", "1a2b3c4d", "x@y", WHEN),
        id="opensmtpd",
    ),
    pytest.param(
        "from mail.sample.com ([10.20.3.25]) by store.sample.com with LMTP id +X2/KbJSBGvXUwAA68ePFA (envelope-from <>)"
        " for <taro@example.org>; Mon, 23 Nov 2026 10:00:00 +0000",
        Received(
            "mail.sample.com",
            None,
            "10.20.3.25",
            "store.sample.com",
            None,
            "LMTP",
            "+X2/KbJSBGvXUwAA68ePFA",
            "taro@example.org",
            WHEN,
        ),
        id="dovecot",
    ),
    pytest.param(
        "from helo.example (rdns.example [::ffff:192.0.2.1]) (AUTH: LOGIN user@x, TLS: TLSv1/SSLv3) by host.example"
        " with ESMTPSA id 00000000000A1B2C.00000000609; Mon, 23 Nov 2026 10:00:00 +0000",
        Received(
            "helo.example",
            "rdns.example",
            "192.0.2.1",
            "host.example",
            None,
            "ESMTPSA",
            "00000000000A1B2C.00000000609",
            None,
            WHEN,
        ),
        id="courier",
    ),
    pytest.param(
        "from helo.example ([192.0.2.1]) by host.example (Haraka/2.8.28) with ESMTPSA id 0D5D9A33-6F2B-4C0F.1"
        " envelope-from <a@b> (authenticated bits=0); Mon, 23 Nov 2026 10:00:00 +0000",
        Received("helo.example", None, "192.0.2.1", "host.example", None, "ESMTPSA", "0D5D9A33-6F2B-4C0F.1", None, WHEN),
        id="haraka",
    ),
    pytest.param(
        "by filter0001p3.example with SMTP id filter0001p3-123-5F-1; 2026-11-23 10:00:00.123456789 +0000 UTC m=+349867.490",
        Received(None, None, None, "filter0001p3.example", None, "SMTP", "filter0001p3-123-5F-1", None, WHEN + 123456789),
        id="go-monotonic-clock",
    ),
]


@pytest.mark.parametrize(("field", "want"), CORPUS)
def test_a_field_says_what_its_server_meant(field: str, want: Received) -> None:
    assert parse(field.encode()) == want


@pytest.mark.parametrize(
    ("field", "crossed"),
    [
        ("from a.example (a.example [192.0.2.1]) by b.example with ESMTP id X; Mon, 23 Nov 2026 10:00:00 +0000", True),
        (
            "from localhost (localhost [127.0.0.1]) by mx.example (amavisd-new) with ESMTP id X; Mon, 23 Nov 2026 10:00:00 +0000",
            False,
        ),
        ("from userid 1000 by host.example with local (Exim 4.94) id 1aaa-bb-cc; Mon, 23 Nov 2026 10:00:00 +0000", False),
        ("by host.example (Postfix, from userid 0) id X; Mon, 23 Nov 2026 10:00:00 +0000", False),
        ("from [192.0.2.1] by web.example with HTTP; Mon, 23 Nov 2026 10:00:00 +0000", False),
        ("from A.example ([fe80::1]) by A.example ([fe80::1%12]) with mapi id 15.01; Mon, 23 Nov 2026 10:00:00 +0000", False),
    ],
)
def test_only_a_hand_over_between_hosts_is_one(field: str, crossed: bool) -> None:
    assert parse(field.encode()).handed_over is crossed


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Mon, 23 Nov 2026 10:00:00 +0000", WHEN),
        ("23 Nov 26 10:00 UT", WHEN),
        ("Mon, 23 Nov 2026 19:00:00 +0900 (JST)", WHEN),
        ("Mon Nov 23 10:00:00 2026", WHEN),
        ("2026-11-23T10:00:00Z", WHEN),
        ("Fri, 31 Dec 99 23:59:60 GMT", at(2000, 1, 1)),
        ("Thu, 29 Feb 2024 00:00:00 -0000", at(2024, 2, 29)),
        ("no date at all", None),
        ("Mon, 32 Foo 2026 10:00:00", None),
        ("99 Nov 2026 10:00:00", None),
    ],
)
def test_dates_of_all_ages(text: str, want: int | None) -> None:
    assert parse_date(text) == want


names = st.sampled_from(
    ["mx.a.example", "MX.B.example.", "localhost", "unknown", "host", "192.0.2.9", "[192.0.2.9]", "by", "x_y.z"]
)
addresses = st.sampled_from(["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "999.1.1.1", "fe80::1", "1"])
identifiers = st.sampled_from(["ABC123", "15.20.3890.23", "1abCdE-000123-AB", "+X2/KbJ:R1", "for", "a.b.c"])
protocols = st.sampled_from(["SMTP", "ESMTPSA", "LMTP", "esmtp", "HTTP", "Microsoft SMTP Server"])
comments = st.sampled_from(
    ["", " (Postfix)", " (using TLS (256/256 bits))", " (HELO foo.example)", " (192.0.2.77)", " (a (b (c)))"]
)
rests = st.sampled_from(["", " for <a@b.example>", " for <nobody>", " for a@b", " for <a@b> (x)"])
dates = st.sampled_from(["; Mon, 23 Nov 2026 10:00:00 +0000 (UTC)", "; 1 Jan 70 00:00:00 GMT", "; never", "", "; a; b", ";"])


@settings(max_examples=400)
@given(
    names,
    st.one_of(st.just(""), names),
    addresses,
    comments,
    names,
    comments,
    protocols,
    comments,
    identifiers,
    comments,
    rests,
    dates,
)
def test_the_short_way_and_the_long_way_agree(
    helo: str,
    name: str,
    ip: str,
    c1: str,
    by: str,
    c2: str,
    protocol: str,
    c3: str,
    identifier: str,
    c4: str,
    rest: str,
    date: str,
) -> None:
    field = f"from {helo} ({name}{' ' if name else ''}[{ip}]){c1} by {by}{c2} with {protocol}{c3} id {identifier}{c4}{rest}{date}"
    assert parse(field.encode()) == parse_any(field)


@given(st.one_of(st.binary(max_size=300), st.text(alphabet='()[];<>"\\ fromby.1:a\t', max_size=300).map(str.encode)))
def test_nothing_that_stands_there_raises(field: bytes) -> None:
    said = parse(field)
    assert said.ip is None or canonical_ip(said.ip) == said.ip


@pytest.mark.parametrize("piece", [b"(", b"()", b"[", b"from ", b"1 Jan ", b'"\\', b";", b" (a", b"a ( b"])
def test_a_quarter_megabyte_of_anything_is_read_once(piece: bytes) -> None:
    assert parse(b"from x (x [192.0.2.1]) by y " + piece * (250_000 // len(piece))) is not None
