"""SPF policies over captured answers (RFC 7208); spftrace is the oracle for what no example here thinks of."""

import pytest
import spftrace
from hypothesis import given
from hypothesis import strategies as st

from analyzer.mail.authentication import spf
from analyzer.mail.authentication.answers import Answer, Failure, NotCaptured

CLIENT = "192.0.2.1"
Zone = dict[str, list[tuple[str, str]] | str]


def asking(zone: Zone, complete: bool = False):
    """Answers of a capture that holds `zone`; `complete`: whatever else was asked does not exist."""

    def ask(name: str, kind: str) -> Answer:
        records = zone.get(name.rstrip("."))
        if records is None:
            if complete:
                return Answer(False, ())
            raise NotCaptured(name, kind)
        if isinstance(records, str):
            raise Failure(f"{kind} {name}")
        data = [value for rtype, value in records if rtype == kind]
        shape = {"TXT": '"{}"', "MX": "10 {}."}.get(kind, "{}")
        return Answer(True, tuple(shape.format(value) for value in data))

    return ask


def check(zone: Zone, ip: str = CLIENT, sender: str = "strong-bad@a.example", helo: str = "mail.a.example") -> spf.Verdict:
    return spf.check(ip, sender, helo, asking(zone))


def policy(*terms: str) -> list[tuple[str, str]]:
    return [("TXT", " ".join(("v=spf1", *terms)))]


@pytest.mark.parametrize(
    ("terms", "ip", "result", "reason"),
    [
        ("ip4:192.0.2.0/24 -all", CLIENT, "pass", "ip4:192.0.2.0/24 of a.example"),
        ("ip4:192.0.2.0/24 -all", "198.51.100.1", "fail", "-all of a.example"),
        ("ip4:192.0.2.0/24 ~all", "198.51.100.1", "softfail", "~all of a.example"),
        ("ip6:2001:db8::/32 -all", "2001:db8::5", "pass", "ip6:2001:db8::/32 of a.example"),
        ("ip4:192.0.2.0/24 -all", "::ffff:192.0.2.7", "pass", "ip4:192.0.2.0/24 of a.example"),
        ("?all", CLIENT, "neutral", "?all of a.example"),
        ("ip4:198.51.100.1", CLIENT, "neutral", "no term of a.example matches"),
        ("ip4:192.0.2.1/33", CLIENT, "permerror", "ip4:192.0.2.1/33 of a.example cannot be understood"),
        ("+all foo", CLIENT, "permerror", "foo of a.example cannot be understood"),
    ],
)
def test_addresses_and_results(terms, ip, result, reason):
    assert check({"a.example": policy(terms)}, ip) == (result, reason)


def test_include_and_redirect_and_what_is_missing_there():
    zone: Zone = {"a.example": policy("include:b.example", "-all"), "b.example": policy("ip4:192.0.2.0/24", "-all")}
    assert check(zone) == ("pass", "include:b.example of a.example")
    assert check(zone, "198.51.100.1").result == "fail"
    assert check({"a.example": policy("redirect=b.example"), "b.example": policy("-all")}).reason == "-all of b.example"
    assert check({"a.example": policy("redirect=b.example"), "b.example": []}).result == "permerror"
    with pytest.raises(NotCaptured, match=r"TXT b\.example"):
        check({"a.example": policy("include:b.example", "-all")})


def test_a_term_that_matched_before_needs_no_further_answer():
    assert check({"a.example": policy("ip4:192.0.2.1", "include:b.example", "-all")}).result == "pass"


def test_a_and_mx_with_prefixes():
    zone: Zone = {
        "a.example": [*policy("a/24", "mx:b.example", "-all"), ("A", "192.0.2.200")],
        "b.example": [("MX", "m1.example"), ("MX", "m2.example")],
        "m2.example": [("A", "198.51.100.9")],
    }
    assert check(zone).reason == "a/24 of a.example"
    assert check(zone, "198.51.100.9").reason == "mx:b.example of a.example"  # whatever m1 has
    with pytest.raises(NotCaptured, match=r"A m1\.example"):
        check(zone, "198.51.100.10")


def test_pointers():
    zone: Zone = {
        "a.example": policy("ptr", "-all"),
        "1.2.0.192.in-addr.arpa": [("PTR", "mail.a.example"), ("PTR", "x.b.example")],
        "mail.a.example": [("A", CLIENT)],
    }
    assert check(zone).result == "pass"
    zone["mail.a.example"] = [("A", "192.0.2.2")]
    assert check(zone).result == "fail"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("%{i}._ip.%{d}", "192.0.2.1._ip.a.example"),
        ("%{ir}.%{v}.%{d2}", "1.2.0.192.in-addr.a.example"),
        ("%{l}.%{o}", "strong-bad.a.example"),
        ("%{lr-}.%{h1}.x.example", "bad.strong.example.x.example"),
        ("%{l1r-}.%{d}", "strong.a.example"),
        ("%{S}.%{d}", "strong-bad%40a.example.a.example"),
    ],
)
def test_macros(spec, name):
    assert check({"a.example": policy(f"exists:{spec}", "-all"), name.lower(): [("A", "127.0.0.2")]}).result == "pass"


def test_limits_of_lookups_and_of_lookups_in_vain():
    many: Zone = {"a.example": policy(*(f"a:h{n}.example" for n in range(11)), "+all")}
    many |= {f"h{n}.example": [("A", "198.51.100.1")] for n in range(11)}
    assert "10 terms" in check(many).reason
    vain: Zone = {"a.example": policy("a:x.example", "a:y.example", "a:z.example", "+all"), "x.example": [], "y.example": []}
    with pytest.raises(NotCaptured):
        check(vain)
    assert check(vain | {"z.example": []}).result == "permerror"
    assert check({"a.example": policy("a:x.example", "a:y.example", "+all"), "x.example": [], "y.example": []}).result == "pass"


def test_no_policy_two_policies_and_a_server_that_could_not_find_out():
    assert check({"a.example": [("TXT", "something else")]}).result == "none"
    assert check({"a.example": policy("+all") + policy("-all")}).result == "permerror"
    assert check({"a.example": "SERVFAIL"}).result == "temperror"
    assert check({}, sender="", helo="localhost").result == "none"


NAMES = ["d.example", "e.example", "f.example", "m1.example", "m2.example", "no.example"]
SPECS = [
    *NAMES,
    "%{d}",
    "%{h}",
    "%{i}.example",
    "%{ir}.%{v}.example",
    "%{l1r-}.%{d}",
    "%{p}",
    "bad",
    "a..b.example",
    "%{x}.example",
    "%{d0}.x",
]
IPS = ["192.0.2.1", "192.0.2.9", "2001:db8::1"]
TERM = st.one_of(
    st.sampled_from(
        [
            "all",
            "-all",
            "ip4:192.0.2.0/24",
            "ip4:192.0.2.8/29",
            "ip6:2001:db8::/32",
            "ip4:1.2.3",
            "a",
            "mx",
            "ptr",
            "x=y",
            "a:",
            "all:x",
        ]
    ),
    st.builds(
        "{}{}:{}{}".format,
        st.sampled_from(["", "-", "~", "?"]),
        st.sampled_from(["a", "mx", "ptr", "exists", "include"]),
        st.sampled_from(SPECS),
        st.sampled_from(["", "", "/24", "//64", "/33"]),
    ),
    st.builds("{}={}".format, st.sampled_from(["redirect", "exp", "other"]), st.sampled_from(SPECS)),
)
RECORDS = st.one_of(
    st.just("TIMEOUT"),
    st.lists(
        st.one_of(
            st.lists(TERM, max_size=5).map(lambda terms: ("TXT", " ".join(["v=spf1", *terms]))),
            st.sampled_from([("A", "192.0.2.1"), ("AAAA", "2001:db8::1"), ("MX", "m1.example"), ("MX", "m2.example")]),
        ),
        max_size=4,
    ),
)


@given(
    zone=st.dictionaries(st.sampled_from(NAMES[:-1]), RECORDS),
    pointer=st.sampled_from(["m1.example", "d.example"]),
    ip=st.sampled_from(IPS),
    sender=st.sampled_from(["a@d.example", "strong-bad@d.example", "", "x@nosuch.example"]),
)
def test_every_policy_gives_what_spftrace_gives(zone, pointer, ip, sender):
    zone = {**zone, "1.2.0.192.in-addr.arpa": [("PTR", pointer)], "192.0.2.1.example": [("A", "127.0.0.2")]}
    theirs = spftrace.check(ip, sender, "d.example", resolver=spftrace.ZoneResolver(zone))
    assert spf.check(ip, sender, "d.example", asking(zone, complete=True)).result == theirs.verdict
