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
        "from out.a.example (out.a.example [192.0.2.1] (AS64500 Example Networks, Inc., JP))\r\n\t(using TLSv1.3 with cipher"
        " TLS13_AES_256_GCM_SHA384)\r\n\tby mx.b.example (Stalwart SMTP) with ESMTPS id 3DE517AF3D36E02;"
        "\r\n\tMon, 23 Nov 2026 10:00:00 +0000",
        Received("out.a.example", "out.a.example", "192.0.2.1", "mx.b.example", None, "ESMTPS", "3DE517AF3D36E02", None, WHEN),
        id="stalwart",
    ),
    pytest.param(
        "from a.example (unknown [2001:db8::7])\r\n\tby mx.b.example (Stalwart SMTP) with LMTP id 4A2CBA3DEA00600;"
        "\r\n\tMon, 23 Nov 2026 10:00:00 +0000",
        Received("a.example", None, "2001:db8::7", "mx.b.example", None, "LMTP", "4A2CBA3DEA00600", None, WHEN),
        id="stalwart-lmtp",
    ),
    pytest.param(
        "from bob by host.example with local (Exim 4.96) (envelope-from <bob@host.example>) id 1oABCD-0001aB-2c;"
        " Mon, 23 Nov 2026 10:00:00 +0000",
        Received("bob", None, None, "host.example", None, "LOCAL", "1oABCD-0001aB-2c", None, WHEN),
        id="exim-local",
    ),
    pytest.param(
        "from [2001:db8::1] (port=4711 helo=a.example) by mx.example with esmtpsa (TLS1.3) tls TLS_AES_128_GCM_SHA256 (Exim 4.97)"
        " (envelope-from <a@a.example>) id 1oABCD-00000001aB2-2cDe for b@b.example; Mon, 23 Nov 2026 10:00:00 +0000",
        Received("a.example", None, "2001:db8::1", "mx.example", None, "ESMTPSA", "1oABCD-00000001aB2-2cDe", "b@b.example", WHEN),
        id="exim-ipv6",
    ),
    pytest.param(
        "from a.example (IPv6:2001:db8:0:0:0:0:0:1 [IPv6:2001:db8::1]) (authenticated bits=0) by host.example"
        " (8.17.1/8.17.1/Debian-2) with ESMTPA id 4ANA00ab012345 (version=TLSv1.3 cipher=TLS_AES_256_GCM_SHA384 bits=256"
        " verify=NOT) for <x@y.example>; Mon, 23 Nov 2026 10:00:00 +0000",
        Received("a.example", None, "2001:db8::1", "host.example", None, "ESMTPSA", "4ANA00ab012345", "x@y.example", WHEN),
        id="sendmail-tls-in-a-comment",
    ),
    pytest.param(
        "(from root@localhost) by host.example (8.17.1/8.17.1/Submit) id 4ANA00cd012346; Mon, 23 Nov 2026 10:00:00 +0000",
        Received(None, None, None, "host.example", None, None, "4ANA00cd012346", None, WHEN),
        id="sendmail-local",
    ),
    pytest.param(
        "from EX1.corp.example (10.0.0.5) by EX2.corp.example (10.0.0.6) with Microsoft SMTP Server (version=TLS1_2,"
        " cipher=TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) id 15.1.2507.35; Mon, 23 Nov 2026 11:00:00 +0100",
        Received("ex1.corp.example", None, "10.0.0.5", "ex2.corp.example", "10.0.0.6", "ESMTPS", None, None, WHEN),
        id="exchange-on-premises",
    ),
    pytest.param(
        "from laptop.lan (host.isp.example. [192.0.2.9]) by smtp.gmail.example with ESMTPSA"
        " id 5b1f17b1804b1-43b6ee0c0d3sm1.9.2026.11.23.02.00.00 for <b@b.example> (version=TLS1_3"
        " cipher=TLS_AES_256_GCM_SHA384 bits=256/256); Mon, 23 Nov 2026 02:00:00 -0800 (PST)",
        Received(
            "laptop.lan",
            "host.isp.example",
            "192.0.2.9",
            "smtp.gmail.example",
            None,
            "ESMTPSA",
            "5b1f17b1804b1-43b6ee0c0d3sm1.9.2026.11.23.02.00.00",
            "b@b.example",
            WHEN,
        ),
        id="gmail-submission",
    ),
    pytest.param(
        "by 2002:a05:6402:35d0:b0:5c9:a4b3:a5ef with SMTP id z16csp123456edc; Mon, 23 Nov 2026 02:00:00 -0800 (PST)",
        Received(
            None,
            None,
            None,
            "2002:a05:6402:35d0:b0:5c9:a4b3:a5ef",
            "2002:a05:6402:35d0:b0:5c9:a4b3:a5ef",
            "SMTP",
            "z16csp123456edc",
            None,
            WHEN,
        ),
        id="gmail-inside",
    ),
    pytest.param(
        "from a.example (HELO smtp.a.example) (192.0.2.4) by mx.b.example with (DHE-RSA-AES256-SHA encrypted) SMTP;"
        " 23 Nov 2026 10:00:00 -0000",
        Received("smtp.a.example", "a.example", "192.0.2.4", "mx.b.example", None, "SMTPS", None, None, WHEN),
        id="qmail-tls",
    ),
    pytest.param(
        "from unknown (HELO ?192.168.1.4?) (bob@b.example@192.0.2.4) by mx.b.example with ESMTPA; 23 Nov 2026 10:00:00 -0000",
        Received(None, None, "192.0.2.4", "mx.b.example", None, "ESMTPA", None, None, WHEN),
        id="qmail-login-and-literal",
    ),
    pytest.param(
        "from localhost (host.example [local]) by host.example (OpenSMTPD) with ESMTPA id 9f8e7d6c for <x@y.example>;"
        " Mon, 23 Nov 2026 10:00:00 +0000 (UTC)",
        Received("localhost", None, None, "host.example", None, "ESMTPA", "9f8e7d6c", "x@y.example", WHEN),
        id="opensmtpd-local",
    ),
    pytest.param(
        "from mx.b.example ([10.0.3.25]) (using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)) by store.b.example"
        " with LMTPS id OC9ZB2vSBGvmUwAA+jScEA (envelope-from <a@a.example>) for <b@b.example>; Mon, 23 Nov 2026 10:00:00 +0000",
        Received(
            "mx.b.example", None, "10.0.3.25", "store.b.example", None, "LMTPS", "OC9ZB2vSBGvmUwAA+jScEA", "b@b.example", WHEN
        ),
        id="dovecot-tls",
    ),
    pytest.param(
        "from localhost (localhost [127.0.0.1]) (uid 1000) by host.example with local id 0000000000A1.0000000060B5.00001A2B;"
        " Mon, 23 Nov 2026 10:00:00 +0000",
        Received(
            "localhost",
            "localhost",
            "127.0.0.1",
            "host.example",
            None,
            "LOCAL",
            "0000000000A1.0000000060B5.00001A2B",
            None,
            WHEN,
        ),
        id="courier-local",
    ),
    pytest.param(
        "from a.example (a.example [192.0.2.8]) by mx.b.example (Haraka/3.0.3) with ESMTPS id 2E6C5F0B-3A1D-4B6E.1"
        " envelope-from <a@a.example> tls TLS_AES_256_GCM_SHA384; Mon, 23 Nov 2026 10:00:00 +0000",
        Received("a.example", "a.example", "192.0.2.8", "mx.b.example", None, "ESMTPS", "2E6C5F0B-3A1D-4B6E.1", None, WHEN),
        id="haraka-tls",
    ),
    pytest.param(
        "from mx.b.example (LHLO mx.b.example) (10.0.3.25) by store.b.example with LMTP; Mon, 23 Nov 2026 10:00:00 +0000 (UTC)",
        Received("mx.b.example", "mx.b.example", "10.0.3.25", "store.b.example", None, "LMTP", None, None, WHEN),
        id="zimbra",
    ),
    pytest.param(
        "from a.example (a.example [192.0.2.3]) by mx.b.example (Postfix) with UTF8SMTPS id 4ABCD0 for <用戶@b.example>;"
        " Mon, 23 Nov 2026 10:00:00 +0000 (UTC)",
        Received("a.example", "a.example", "192.0.2.3", "mx.b.example", None, "UTF8SMTPS", "4ABCD0", "用戶@b.example", WHEN),
        id="postfix-smtputf8",
    ),
    pytest.param(
        "from a.example (a.example [192.0.2.3]) by mx.b.example (mox v0.0.13) ([198.51.100.7]) via tcp with ESMTPS id AbCdEfGh"
        " (TLS1.3 TLS_AES_128_GCM_SHA256) for <b@b.example>; 23 Nov 2026 10:00:00 +0000",
        Received(
            "a.example", "a.example", "192.0.2.3", "mx.b.example", "198.51.100.7", "ESMTPS", "AbCdEfGh", "b@b.example", WHEN
        ),
        id="mox",
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
    [
        "",
        " (Postfix)",
        " (using TLS (256/256 bits))",
        " (using TLSv1.3 with cipher X (256/256 bits))",
        " (HELO foo.example)",
        " (LHLO 192.0.2.8)",
        " (192.0.2.77)",
        " (a (b (c)))",
    ]
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
