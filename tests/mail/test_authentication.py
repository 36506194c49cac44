"""Messages that come in at a domain's MX, judged again from what the capture holds."""

import base64
import subprocess
import sys
from functools import cache
from pathlib import Path

import dkim
import pytest
from builders import MX, NAMES, STORE, World, mail, received, rows
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from analyzer.limits import Limits
from analyzer.mail.authentication import claims, dmarc
from analyzer.mail.authentication.answers import Answer, text
from analyzer.pipeline import run
from analyzer.protocols.message import MessageReader

SENDER, STRANGER, FORWARDER = "192.0.2.25", "198.51.100.66", "203.0.113.25"
LAB = Path(__file__).resolve().parents[3] / "shared" / "lab" / "captures" / "spf_dkim_dmarc"


@cache
def rsa_key(bits: int = 2048) -> tuple[bytes, str]:
    """(private key in PEM, record of the public key)."""
    key = rsa.generate_private_key(65537, bits)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return pem, f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


@cache
def ed25519_key() -> tuple[bytes, str]:
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(secret), f"v=DKIM1; k=ed25519; p={base64.b64encode(public).decode()}"


def octets(message: str) -> bytes:
    return message.replace("\r\n", "\n").replace("\n", "\r\n").encode()


def signed(
    message: bytes,
    canonical: tuple[bytes, bytes] = (b"relaxed", b"relaxed"),
    domain: bytes = b"a.example",
    selector: bytes = b"k",
    key: bytes | None = None,
    **facts: object,
) -> bytes:
    """The message as dkimpy signs it."""
    field: bytes = dkim.sign(message, selector, domain, key or rsa_key()[0], canonicalize=canonical, **facts)
    return field + message


def read(message: bytes, hole: tuple[int, int] | None = None):
    reader = MessageReader(Limits())
    if hole is None:
        reader.feed(message)
    else:
        begin, lost = hole
        reader.feed(message[:begin])
        reader.gap(lost)
        reader.feed(message[begin + lost :])
    return reader.content(True)


class Town(World):
    """b.example takes in mail at its MX and keeps it at its store."""

    def txt(self, name: str, *texts: str, **facts: object) -> None:
        """The MX asks for texts."""
        self.lookup(MX, name, "TXT", *(f'{name}. TXT "{text}"' for text in texts), **facts)

    def nothing(self, name: str, kind: str = "TXT", rcode: str = "NXDOMAIN") -> None:
        """The MX asks, and there is nothing."""
        self.lookup(MX, name, kind, rcode=rcode)

    def policies(self, spf: str | None = None, dmarc: str | None = None, key: str | None = None) -> None:
        for name, policy in (("a.example", spf), ("_dmarc.a.example", dmarc), ("k._domainkey.a.example", key)):
            if policy is not None:
                self.txt(name, policy)

    def come_in(
        self,
        message: bytes,
        wrote: str = "",
        *,
        mail_from: str = "taro@a.example",
        ip: str = SENDER,
        hole: tuple[int, int] | None = None,
    ) -> None:
        """A message comes in and goes to the store; `wrote`: fields that the MX puts on top."""
        smtp = self.session("smtp", ip, MX, 25, client_name="smtp.a.example", server_name=NAMES[MX])
        self.carry(smtp, mail_from, ["hanako@b.example"], "x", queue_id="Q1", content=read(message, hole))
        self.end(smtp)
        stored = octets(wrote) + octets(received("", self.now, NAMES[MX], "smtp.a.example", ip, with_="ESMTP", id="Q1")) + message
        lmtp = self.session("lmtp", MX, STORE, 24, client_name=NAMES[MX], server_name=NAMES[STORE])
        self.carry(lmtp, mail_from, ["hanako@b.example"], "x", content=read(stored))
        self.end(lmtp)

    def found(self, method: str):
        """The one row of a method."""
        (row,) = [row for row in self.tell().authentication if row.method == method]
        return row

    def odd(self) -> list[tuple[str, str]]:
        return [(row.name, row.detail) for row in self.tell().anomalies if row.name.startswith("authentication")]


PLAIN = octets(mail(body="Hello,\n\n  two  blanks \nand the end.\n\n\n"))


# DKIM


@pytest.mark.parametrize("header", [b"simple", b"relaxed"])
@pytest.mark.parametrize("body", [b"simple", b"relaxed"])
def test_a_signature_passes_in_every_canonicalisation(header, body):
    town = Town()
    town.policies(key=rsa_key()[1])
    town.come_in(
        signed(PLAIN, (header, body)), "Authentication-Results: mail.b.example; dkim=pass header.d=a.example header.s=k\n"
    )
    row = town.found("dkim")
    assert (row.result, row.reason, row.domain, row.selector) == ("pass", "2048 bit key", "a.example", "k")
    assert (row.claimed, row.claimed_by, row.agrees) == ("pass", "mail.b.example", True)
    assert town.odd() == []


def test_an_ed25519_signature_beside_an_rsa_one():
    town = Town()
    town.policies(key=rsa_key()[1])
    town.txt("e._domainkey.a.example", ed25519_key()[1])
    both = signed(signed(PLAIN), selector=b"e", key=ed25519_key()[0], signature_algorithm=b"ed25519-sha256")
    town.come_in(both)
    found = [(row.selector, row.result, row.reason) for row in town.tell().authentication if row.method == "dkim"]
    assert found == [("e", "pass", "ed25519 key"), ("k", "pass", "2048 bit key")]


@pytest.mark.parametrize(
    ("change", "result", "reason"),
    [
        ((b"the end", b"The end"), "fail", "the body was changed: its digest is not bh="),
        ((b"Number 1", b"Number 2"), "fail", "the signature is not of these header fields"),
        ((b"two  blanks \r\n", b"two blanks\r\n"), "pass", "2048 bit key"),
        ((b"Subject: Number", b"SUBJECT:   Number"), "pass", "2048 bit key"),
    ],
)
def test_what_was_changed_on_the_way(change, result, reason):
    town = Town()
    town.policies(key=rsa_key()[1])
    message = signed(PLAIN)
    assert change[0] in message
    town.come_in(message.replace(*change))
    assert (town.found("dkim").result, town.found("dkim").reason) == (result, reason)


def test_a_signature_of_the_beginning_only_says_so():
    town = Town()
    town.policies(key=rsa_key()[1])
    town.come_in(signed(PLAIN, length=True) + b"Buy this!\r\n")
    assert town.found("dkim").reason == "2048 bit key, the end of the body is not signed"


@pytest.mark.parametrize(
    ("record", "result", "reason"),
    [
        ("v=DKIM1; p=", "permerror", "the key was revoked"),
        ("v=DKIM1; k=ed25519; p=AAAA", "permerror", "the key is not for rsa-sha256"),
        ("v=DKIM1; h=sha1; p=AAAA", "permerror", "the key is not for sha256"),
        ("v=DKIM1; s=tlsrpt; p=AAAA", "permerror", "the key is not for mail"),
        ("v=DKIM1; p=AAAA", "permerror", "the key cannot be understood"),
        ("hello", "permerror", "the key record cannot be understood"),
    ],
)
def test_keys_that_do_not_do(record, result, reason):
    town = Town()
    town.policies(key=record)
    town.come_in(signed(PLAIN))
    assert (town.found("dkim").result, town.found("dkim").reason) == (result, reason)


def test_another_key_fails_and_a_short_one_is_not_believed():
    town = Town()
    town.policies(key=rsa_key()[1])
    town.come_in(signed(PLAIN, key=rsa_key(1024)[0]))
    assert town.found("dkim").result == "fail"
    town = Town()
    short = rsa.RSAPublicNumbers(65537, (1 << 1022) + 1).public_key()
    der = short.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    town.policies(key=f"v=DKIM1; p={base64.b64encode(der).decode()}")
    town.come_in(signed(PLAIN))
    assert town.found("dkim").reason == "the key has 1023 bits only (RFC 8301 3.2)"


def test_a_key_that_is_not_in_the_capture_is_no_failure():
    town = Town()
    town.come_in(signed(PLAIN), "Authentication-Results: mail.b.example; dkim=pass header.d=a.example\n")
    row = town.found("dkim")
    assert (row.result, row.reason) == ("not in the capture", "TXT k._domainkey.a.example")
    assert (row.claimed, row.agrees) == ("pass", None)


def test_that_there_is_no_key_is_knowledge():
    for rcode in ("NXDOMAIN", "NOERROR"):
        town = Town()
        town.nothing("k._domainkey.a.example", rcode=rcode)
        town.come_in(signed(PLAIN))
        assert (town.found("dkim").result, town.found("dkim").reason) == ("permerror", "there is no key k._domainkey.a.example")
    town = Town()
    town.nothing("k._domainkey.a.example", rcode="SERVFAIL")
    town.come_in(signed(PLAIN))
    assert town.found("dkim").result == "temperror"


def test_a_referral_is_no_answer():
    town = Town()
    town.lookup(MX, "k._domainkey.a.example", "TXT", ra=False, rd=False, server="10.0.0.2")
    town.come_in(signed(PLAIN))
    assert town.found("dkim").result == "not in the capture"


def test_a_key_behind_an_alias():
    town = Town()
    town.lookup(
        MX,
        "k._domainkey.a.example",
        "TXT",
        "k._domainkey.a.example. CNAME k.keys.example.",
        f'k.keys.example. TXT "{rsa_key()[1]}"',
    )
    town.come_in(signed(PLAIN))
    assert town.found("dkim").result == "pass"


def test_missing_octets_make_it_unknown():
    message = signed(PLAIN)
    town = Town()
    town.policies(key=rsa_key()[1])
    town.come_in(message, hole=(len(message) - 10, 4))
    assert (town.found("dkim").result, town.found("dkim").reason) == ("unknown", "incomplete: octets of the body are missing")
    town = Town()
    town.policies(key=rsa_key()[1])
    town.come_in(message, hole=(message.index(b"Subject") + 2, 4))
    assert town.found("dkim").reason == "incomplete: octets of the header section are missing"


# what servers wrote


def test_a_server_that_wrote_something_else_is_told():
    town = Town()
    town.policies(spf="v=spf1 ip4:192.0.2.0/24 -all")
    town.come_in(
        PLAIN,
        "Received-SPF: pass (all is well) identity=mailfrom; envelope-from=taro@a.example; receiver=b.example\n",
        ip=STRANGER,
    )
    row = town.found("spf")
    assert (row.result, row.claimed, row.claimed_by, row.agrees) == ("fail", "pass", "b.example", False)
    assert town.odd() == [("authentication_differs", "SPF a.example: b.example wrote pass, evaluated fail (-all of a.example)")]


def test_results_that_come_along_under_the_servers_own_name_are_not_believed():
    town = Town()
    town.policies(spf="v=spf1 ip4:192.0.2.0/24 -all")
    forged = b"Authentication-Results: mail.b.example; spf=pass smtp.mailfrom=taro@a.example; dkim=pass header.d=a.example\r\n"
    town.come_in(forged + PLAIN, ip=STRANGER)
    row = town.found("spf")
    assert (row.result, row.claimed, row.agrees) == ("fail", None, None)
    assert town.odd() == [("authentication_results_forged", "dkim=pass by mail.b.example, spf=pass by mail.b.example")]
    (message,) = rows(town.tell().messages)
    assert (message.spf, message.dkim) == (None, None)


def test_results_of_servers_before_are_no_claims_of_this_one():
    town = Town()
    town.policies(spf="v=spf1 ip4:192.0.2.0/24 -all")
    elsewhere = b"Authentication-Results: mail.c.example; spf=fail smtp.mailfrom=taro@a.example\r\n"
    town.come_in(elsewhere + PLAIN, "Authentication-Results: mail.b.example; spf=pass smtp.mailfrom=taro@a.example\n")
    assert (town.found("spf").claimed, town.found("spf").claimed_by, town.found("spf").agrees) == ("pass", "mail.b.example", True)


def test_a_refusal_says_what_the_server_found():
    town = Town()
    town.policies(spf="v=spf1 -all")
    town.lookup(STRANGER, "b.example", "MX", f"10 {NAMES[MX]}.")
    town.lookup(STRANGER, NAMES[MX], "A", f"A {MX}")
    smtp = town.session("smtp", STRANGER, MX, 25, client_name="smtp.a.example", server_name=NAMES[MX])
    town.carry(smtp, "taro@a.example", ["hanako@b.example"], None, outcome="rejected", enhanced_code="5.7.23")
    town.end(smtp)
    row = town.found("spf")
    assert (row.result, row.claimed, row.claimed_by, row.agrees) == ("fail", "fail", NAMES[MX], True)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("mx.example; none", []),
        ("mx.example 1; spf=pass smtp.mailfrom=taro@a.example", [("spf", "pass", "a.example", None)]),
        ("mx.example; dkim=pass (good; (really) key) header.d=A.example header.s=K1", [("dkim", "pass", "a.example", "k1")]),
        ('mx.example; dkim=fail reason="bad; body" header.i=@news.a.example', [("dkim", "fail", "news.a.example", None)]),
        (
            "mx.example; dmarc=pass (p=none dis=none) header.from=a.example; arc=none",
            [("dmarc", "pass", "a.example", None), ("arc", "none", None, None)],
        ),
        ("mx.example; iprev=pass policy.iprev=1.2.3.4; auth=pass smtp.auth=x; =; spf", []),
        ("", []),
    ],
)
def test_authentication_results_are_read(field, told):
    assert [(c.method, c.result, c.domain, c.selector) for c in claims.authentication_results(field)] == told


# SPF at a hop


def test_the_answer_that_the_server_got_last_before_counts():
    town = Town()
    town.txt("a.example", "v=spf1 -all")
    town.txt("a.example", "v=spf1 +all")
    town.come_in(PLAIN)
    town.pass_time(1)
    town.txt("a.example", "v=spf1 ?all")
    assert town.found("spf").reason == "+all of a.example"


def test_a_null_reverse_path_is_judged_by_the_helo_name():
    town = Town()
    town.txt("smtp.a.example", "v=spf1 ip4:192.0.2.25 -all")
    town.come_in(PLAIN, mail_from="")
    assert (town.found("spf").domain, town.found("spf").result) == ("smtp.a.example", "pass")


def test_no_row_is_made_where_nothing_is_known():
    town = Town()
    town.come_in(PLAIN)
    assert town.tell().authentication == []


# DMARC


def check(author: str, *identifiers: tuple[str, str, str], **texts: str | None):
    """DMARC with `_dmarc` texts by domain (dots as `_`); None: no such name; others are not in the capture."""
    from analyzer.mail.authentication.answers import NotCaptured

    zone = {"_dmarc." + name.replace("_", "."): policy for name, policy in texts.items()}

    def ask(name: str, kind: str) -> Answer:
        if name not in zone:
            raise NotCaptured(name, kind)
        policy = zone[name]
        return Answer(policy is not None, () if policy is None else (f'"{policy}"',))

    return dmarc.check(author, [dmarc.Identifier(*identifier) for identifier in identifiers], ask)


@pytest.mark.parametrize(
    ("identifiers", "record", "result"),
    [
        ([("spf", "a.example", "pass")], "v=DMARC1; p=reject", "pass"),
        ([("spf", "news.a.example", "pass")], "v=DMARC1; p=reject", "pass"),
        ([("spf", "news.a.example", "pass")], "v=DMARC1; p=reject; aspf=s", "fail"),
        ([("dkim", "news.a.example", "pass")], "v=DMARC1; p=reject; adkim=s", "fail"),
        ([("spf", "b.example", "pass")], "v=DMARC1; p=reject", "fail"),
        ([("spf", "a.example", "fail"), ("dkim", "a.example", "pass")], "v=DMARC1; p=reject", "pass"),
        (
            [("spf", "a.example", "softfail"), ("dkim", "a.example", "not in the capture")],
            "v=DMARC1; p=none",
            "not in the capture",
        ),
        ([("spf", "a.example", "fail"), ("dkim", "b.example", "not in the capture")], "v=DMARC1; p=none", "fail"),
        ([("dkim", "a.example", "unknown")], "v=DMARC1; p=none", "unknown"),
        ([("spf", "a.example", "pass")], "v=DMARC2; p=none", "none"),
        ([("spf", "a.example", "pass")], "v=DMARC1; p=perhaps", "none"),
        ([("spf", "a.example", "fail")], "v=DMARC1; p=perhaps; rua=mailto:x@a.example", "fail"),
    ],
)
def test_alignment(identifiers, record, result):
    assert check("a.example", *identifiers, a_example=record).result == result


def test_the_policy_of_a_subdomain():
    passing = ("spf", "a.example", "fail")
    assert check("x.a.example", passing, x_a_example=None, a_example="v=DMARC1; p=reject; sp=quarantine").policy == "quarantine"
    assert check("x.a.example", passing, x_a_example="v=DMARC1; p=none", a_example="v=DMARC1; p=reject").policy == "none"
    assert check("x.a.example", passing, x_a_example=None, a_example="v=DMARC1; p=reject").policy == "reject"
    assert check("x.a.example", passing, x_a_example=None).result == "not in the capture"
    assert check("x.a.example", passing, x_a_example=None, a_example=None).result == "none"


def test_the_organization_is_told_by_the_public_suffix_list():
    assert dmarc.organization("mail.shop.example.co.uk") == "example.co.uk"
    assert not dmarc.aligned("other.co.uk", "example.co.uk", strict=False)
    assert dmarc.aligned("news.example.co.uk", "www.example.co.uk", strict=False)


def test_dmarc_at_a_hop():
    town = Town()
    town.policies(spf="v=spf1 -all", dmarc="v=DMARC1; p=quarantine", key=rsa_key()[1])
    town.come_in(signed(PLAIN), "Authentication-Results: mail.b.example; dmarc=pass header.from=a.example\n")
    row = town.found("dmarc")
    assert (row.result, row.policy, row.reason, row.agrees) == ("pass", "quarantine", "DKIM a.example: the same domain", True)


@pytest.mark.parametrize(
    ("author", "result"),
    [
        ("Taro <taro@a.example>, eve@evil.example", "permerror"),
        ("Taro", "permerror"),
        ("(" * 3000 + "taro@a.example", "permerror"),
        ('"eve@evil.example, Eve" <taro@a.example>', "pass"),
        ("eve@evil.example <taro@A.example>", "pass"),
        ("taro@a.example (the one (and only))", "pass"),
    ],
)
def test_the_author_is_one_domain_whatever_the_name_says(author, result):
    town = Town()
    town.policies(spf="v=spf1 +all", dmarc="v=DMARC1; p=quarantine")
    town.come_in(octets(mail(From=author)))
    assert town.found("dmarc").result == result


# ARC


def sealed(message: bytes, selector: bytes = b"r", domain: bytes = b"c.example") -> bytes:
    """The message with one more ARC set, as dkimpy makes it."""
    stated = (
        b"Authentication-Results: mail.c.example; arc=pass\r\n"
        if b"ARC-Seal" in message
        else b"Authentication-Results: mail.c.example; spf=pass\r\n"
    )
    lines = dkim.arc_sign(stated + message, selector, domain, rsa_key()[0], b"mail.c.example")
    return b"".join(lines) + message


def arc(message: bytes, key: str | None = None):
    town = Town()
    if key is not None:
        town.txt("r._domainkey.c.example", key)
    town.come_in(message, ip=FORWARDER)
    return town.found("arc")


def test_a_chain_of_one_and_of_two():
    once = sealed(PLAIN)
    assert (arc(once, rsa_key()[1]).result, arc(once, rsa_key()[1]).domain) == ("pass", "c.example")
    assert arc(sealed(once), rsa_key()[1]).reason == "2 sets"
    assert arc(once).result == "not in the capture"


def test_a_broken_chain():
    twice = sealed(sealed(PLAIN))
    key = rsa_key()[1]
    assert arc(twice.replace(b"the end", b"The end"), key).reason.startswith("message signature 2: the body was changed")
    assert arc(twice.replace(b"cv=pass", b"cv=none"), key).reason == "cv= of set 2 is none"
    assert arc(twice.replace(b"spf=pass", b"spf=fail"), key).reason.startswith("seal ")
    assert arc(twice.replace(b"ARC-Seal: i=1", b"ARC-Sale: i=1"), key).reason == "the set of instance 1 is not whole"


# the whole


def test_texts_are_their_strings_one_after_the_other():
    assert text('"v=spf1 " "-all"') == b"v=spf1 -all"
    assert text(r'"a\"b\\c" "\200"') == b'a"b\\c\xc8'


def test_nothing_asks_the_network():
    """The rooms' code and what it brings in never open a socket to ask DNS: dnspython's resolver is not even loaded."""
    code = (
        "import sys, socket\n"
        "def no(*a, **k): raise AssertionError('a socket')\n"
        "socket.socket = socket.getaddrinfo = socket.create_connection = no\n"
        "from analyzer.mail.authentication import spf, dkim, dmarc, evaluate\n"
        "from analyzer.mail.authentication.answers import Answer\n"
        "answers = lambda name, kind: Answer(True, ('\"v=spf1 a mx ptr -all\"',) if kind == 'TXT' else ())\n"
        "assert spf.check('192.0.2.1', 'a@a.example', '', answers).result == 'permerror'\n"
        "assert dmarc.organization('a.b.co.uk') == 'b.co.uk'\n"
        "assert not {m for m in sys.modules if m.split('.')[0] in ('dns', 'requests') or m == 'urllib.request'}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not LAB.exists(), reason="the lab's captures are not at hand")
@pytest.mark.parametrize("name", ["bridge.pcapng", "mxB.pcap", "mxB_any.pcap"])
def test_every_result_that_a_real_server_wrote_is_found_again(name):
    tables = run([LAB / name]).tables
    compared = [row for row in tables.rows("authentication") if row.claimed is not None]
    assert sorted((row.method, row.claimed) for row in compared) == [
        ("dkim", "none"),
        ("dkim", "pass"),
        ("dmarc", "pass"),
        ("dmarc", "pass"),
        ("spf", "fail"),
        ("spf", "pass"),
        ("spf", "pass"),
    ]
    assert all(row.agrees for row in compared)
    assert not [row for row in tables.rows("anomalies") if row.name.startswith("authentication")]


@pytest.mark.skipif(not LAB.exists(), reason="the lab's captures are not at hand")
@pytest.mark.parametrize("name", ["msaA.pcap", "storeB.pcap"])
def test_where_no_answer_was_captured_none_is_made_up(name):
    found = list(run([LAB / name]).tables.rows("authentication"))
    assert [(row.method, row.result) for row in found] == [("dkim", "not in the capture")]
