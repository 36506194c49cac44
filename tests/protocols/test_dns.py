"""DNS as clients and servers speak it: over UDP a line per datagram, over TCP a dialogue."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import numpy as np
import pytest
from dialogue import EVERY_WAY, START, Dialogue, Played, Segment, _number, connection, play
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.protocols.base import Malformed
from analyzer.protocols.dns import Datagrams, TcpSession, Transaction, candidate_rows, probe
from analyzer.protocols.dns.layout import HEADER
from analyzer.protocols.dns.message import _rdata as lean
from analyzer.protocols.dns.message import by_dnspython, name_text, read, read_question
from analyzer.protocols.dns.purpose import purpose
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import V4_PREFIX, Packets

CLIENT, SERVER = "192.0.2.10", "192.0.2.53"
SECOND = 1_000_000_000

Datagram = tuple[float, str, int, str, int, bytes]
"""Seconds since the start, source and its port, destination and its port, payload."""


def query(name: str, kind: str = "A", ident: int = 7, **more: Any) -> dns.message.Message:
    message = dns.message.make_query(name, kind, **more)
    message.id = ident
    return message


def answer(to: dns.message.Message, *records: str, rcode: str = "NOERROR", **more: Any) -> dns.message.Message:
    message = dns.message.make_response(to, **more)
    message.set_rcode(dns.rcode.from_text(rcode))
    message.flags |= dns.flags.RA
    for record in records:
        owner, ttl, kind, rdata = record.split(None, 3)
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, rdata))
    return message


def wire(message: dns.message.Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.to_wire()


def asks(
    t: float, message: dns.message.Message | bytes, client: str = CLIENT, port: int = 40001, server: str = SERVER
) -> Datagram:
    return t, client, port, server, 53, wire(message)


def says(
    t: float, message: dns.message.Message | bytes, client: str = CLIENT, port: int = 40001, server: str = SERVER
) -> Datagram:
    return t, server, 53, client, port, wire(message)


def packets(datagrams: Iterable[Datagram], source: str = "tap.pcap", first: int = 1, cut: int = 0) -> Packets:
    """Datagrams as decoded packets; `cut` octets of each payload were on the wire but not captured."""
    rows = list(datagrams)
    lengths = np.array([len(row[5]) for row in rows], dtype=np.int64)

    def half(which: int, shift: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        numbers = []
        for row in rows:
            address = ip_address(row[which])
            number = int(address) if address.version == 6 else V4_PREFIX | int(address)
            numbers.append(number >> shift & 0xFFFF_FFFF_FFFF_FFFF)
        return np.array(numbers, dtype=np.uint64)

    n = len(rows)
    return Packets(
        source=source,
        data=b"".join(row[5] for row in rows) + bytes(16),
        frame=np.arange(first, first + n, dtype=np.int64),
        ts=np.array([START + round(row[0] * SECOND) for row in rows], dtype=np.int64),
        protocol=np.full(n, 17, dtype=np.uint8),
        src_hi=half(1, 64),
        src_lo=half(1, 0),
        dst_hi=half(3, 64),
        dst_lo=half(3, 0),
        src_port=np.array([row[2] for row in rows], dtype=np.uint16),
        dst_port=np.array([row[4] for row in rows], dtype=np.uint16),
        payload=np.cumsum(lengths) - lengths,
        length=lengths,
        wire_length=lengths + cut,
        seq=np.zeros(n, dtype=np.uint32),
        ack=np.zeros(n, dtype=np.uint32),
        flags=np.zeros(n, dtype=np.uint8),
        vlan=np.zeros(n, dtype=np.uint16),
        ttl=np.zeros(n, dtype=np.uint8),
    )


class Seen:
    """What became of datagrams."""

    def __init__(self, found: list[Transaction | Anomaly]) -> None:
        self.rows = [f for f in found if isinstance(f, Transaction)]
        self.odd = [f for f in found if isinstance(f, Anomaly)]

    @property
    def names(self) -> list[str]:
        return [a.name for a in self.odd]

    @property
    def only(self) -> Transaction:
        (row,) = self.rows
        return row


def watch(*datagrams: Datagram, limits: Limits | None = None, cut: int = 0) -> Seen:
    reader = Datagrams(limits or Limits())
    batch = packets(datagrams, cut=cut)
    return Seen(reader.feed(batch, candidate_rows(batch)) + reader.finish())


# -- UDP -------------------------------------------------------------------------------------------------------------------


def test_a_question_and_its_answer_are_one_row() -> None:
    mx = query("Example.NET.", "MX", 4711)
    seen = watch(
        asks(0, mx), says(0.25, answer(mx, "example.net. 300 MX 10 MX1.example.net.", "example.net. 60 MX 20 mx2.test."))
    )
    row = seen.only
    assert (row.qname, row.qtype, row.rcode, row.answered) == ("example.net.", "MX", "NOERROR", True)
    assert row.answers == ["example.net. MX 10 mx1.example.net.", "example.net. MX 20 mx2.test."]
    assert (row.ttl_min, row.rtt_s, row.retries, row.purpose, row.dns_id) == (60, 0.25, 0, "mx", 4711)
    assert (row.client_ip, row.client_port, row.server_ip, row.server_port) == (CLIENT, 40001, SERVER, 53)
    assert (row.ts, row.ts_reply, row.frame, row.reply_frame) == (START, START + SECOND // 4, 1, 2)
    assert (row.rd, row.ra, row.aa, row.tc, row.transport) == (True, True, False, False, "udp")
    assert seen.odd == []


def test_ipv6_and_ipv4_ends() -> None:
    a = query("v6.test.", "AAAA")
    old = query("v4.test.")
    six, four = watch(
        asks(0, a, "2001:db8::10", server="2001:db8::53"),
        asks(0.01, old),
        says(0.1, answer(a, "v6.test. 1 AAAA 2001:db8::1"), "2001:db8::10", server="2001:db8::53"),
        says(0.2, answer(old)),
    ).rows
    assert (six.client_ip, six.server_ip, six.answers) == ("2001:db8::10", "2001:db8::53", ["v6.test. AAAA 2001:db8::1"])
    assert (four.client_ip, four.server_ip) == (CLIENT, SERVER)


def test_the_rtt_is_from_the_last_copy_of_the_question() -> None:
    a = query("slow.test.")
    row = watch(asks(0, a), asks(5, a), asks(10, a), says(10.5, answer(a, "slow.test. 1 A 192.0.2.1"))).only
    assert (row.ts, row.retries, row.rtt_s) == (START, 2, 0.5)


def test_a_question_without_an_answer_is_a_row() -> None:
    a = query("slow.test.")
    row = watch(asks(0, a), asks(5, a)).only
    assert (row.answered, row.retries, row.rcode, row.answers, row.ts_reply) == (False, 1, None, None, None)


def test_an_answer_after_the_time_limit_belongs_to_no_question() -> None:
    a = query("late.test.")
    seen = watch(asks(0, a), says(31, answer(a)))
    assert [(r.answered, r.ts is not None and r.ts - START) for r in seen.rows] == [(False, 0), (True, 31 * SECOND)]


def test_nodata_and_errors_are_answers() -> None:
    for rcode in ("NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "NOTIMP"):
        a = query("none.test.", "MX")
        row = watch(asks(0, a), says(0.1, answer(a, rcode=rcode))).only
        assert (row.rcode, row.answers, row.answered, row.ttl_min) == (rcode, [], True, None)


def test_a_formerr_without_the_question_still_finds_it() -> None:
    a = query("picky.test.", "TXT")
    bare = dns.message.Message(id=a.id)
    bare.flags |= dns.flags.QR
    bare.set_rcode(dns.rcode.FORMERR)
    row = watch(asks(0, a), says(0.1, bare)).only
    assert (row.qname, row.rcode, row.purpose, row.reply_frame) == ("picky.test.", "FORMERR", "spf", 2)


def test_one_identifier_for_several_at_once() -> None:
    one, two, three = query("n1.test."), query("n2.test."), query("n3.test.")
    seen = watch(
        asks(0, one),
        asks(0.001, two, "192.0.2.11"),
        asks(0.002, three, port=40002),
        says(0.1, answer(three, "n3.test. 1 A 192.0.2.3"), port=40002),
        says(0.2, answer(two, "n2.test. 1 A 192.0.2.2"), "192.0.2.11"),
        says(0.3, answer(one, "n1.test. 1 A 192.0.2.1")),
    )
    assert sorted((r.client_ip, r.client_port, r.answers) for r in seen.rows) == [
        ("192.0.2.10", 40001, ["n1.test. A 192.0.2.1"]),
        ("192.0.2.10", 40002, ["n3.test. A 192.0.2.3"]),
        ("192.0.2.11", 40001, ["n2.test. A 192.0.2.2"]),
    ]


def test_two_questions_under_one_identifier_and_port() -> None:
    a, aaaa = query("host.test.", "A"), query("host.test.", "AAAA")
    seen = watch(asks(0, a), asks(0.001, aaaa), says(0.1, answer(aaaa, "host.test. 1 AAAA ::1")), says(0.2, answer(a)))
    assert {(r.qtype, r.reply_frame) for r in seen.rows} == {("AAAA", 3), ("A", 4)}
    assert seen.odd == []


def test_letter_case_does_not_part_question_and_answer() -> None:
    a = query("WwW.eXaMpLe.")
    row = watch(asks(0, a), says(0.1, answer(query("www.example."), "www.example. 1 A 192.0.2.7"))).only
    assert (row.qname, row.answered, row.answers) == ("www.example.", True, ["www.example. A 192.0.2.7"])


def test_copies_of_question_and_answer_fold_into_their_row() -> None:
    a = query("dup.test.")
    r = answer(a, "dup.test. 60 A 192.0.2.9")
    seen = watch(asks(0, a), asks(0.001, a), says(0.1, r), says(0.101, r), asks(0.102, a), says(1.1, r))
    assert (seen.only.retries, seen.only.reply_frame) == (1, 3)
    assert [(o.name, o.detail) for o in seen.odd] == [("dns_repeated_answers", "2 copies of answers")]


def test_the_same_question_later_is_another_one() -> None:
    a = query("again.test.")
    r = answer(a, "again.test. 60 A 192.0.2.9")
    seen = watch(asks(0, a), says(0.1, r), asks(5, a), says(5.2, r))
    assert [row.rtt_s for row in seen.rows] == [0.1, 0.2]
    assert seen.odd == []


def test_a_second_answer_that_says_something_else_is_named() -> None:
    a = query("race.test.")
    seen = watch(
        asks(0, a), says(0.1, answer(a, "race.test. 60 A 192.0.2.1")), says(0.2, answer(a, "race.test. 60 A 203.0.113.66"))
    )
    assert seen.only.answers == ["race.test. A 192.0.2.1"]
    assert seen.names == ["dns_conflicting_answer"]
    assert "203.0.113.66" in seen.odd[0].detail


def test_an_answer_to_another_question_leaves_this_one_waiting() -> None:
    a = query("asked.test.")
    seen = watch(asks(0, a), says(0.1, answer(query("forged.test."))), says(0.2, answer(a, "asked.test. 1 A 192.0.2.1")))
    assert {(r.qname, r.frame, r.reply_frame) for r in seen.rows} == {("asked.test.", 1, 3), ("forged.test.", None, 2)}
    assert "dns_other_question" in seen.names


def test_an_answer_alone_is_shown_as_such() -> None:
    a = query("late.test.", "MX")
    row = watch(says(2, answer(a, "late.test. 60 MX 5 mx.late.test."))).only
    assert (row.answered, row.ts, row.ts_reply, row.rtt_s) == (True, START + 2 * SECOND, START + 2 * SECOND, None)
    assert (row.frame, row.reply_frame, row.client_ip, row.server_port) == (None, 1, CLIENT, 53)


def test_packets_out_of_order_find_each_other() -> None:
    a = query("order.test.")
    row = watch(says(0.1, answer(a, "order.test. 1 A 192.0.2.1")), asks(0, a)).only
    assert (row.frame, row.reply_frame, row.rtt_s) == (2, 1, 0.1)


def test_the_qr_bit_set_by_mistake() -> None:
    a = query("odd.test.")
    marked = bytearray(a.to_wire())
    marked[2] |= 0x80
    seen = watch(asks(0, bytes(marked)), says(0.1, answer(a, "odd.test. 1 A 192.0.2.1")))
    assert (seen.only.client_ip, seen.only.answers) == (CLIENT, ["odd.test. A 192.0.2.1"])
    assert seen.names == ["dns_wrong_qr"]


def test_opcodes_other_than_query_are_named_and_have_no_purpose() -> None:
    for opcode in ("NOTIFY", "UPDATE"):
        message = bytearray(query("zone.test.", "SOA").to_wire())
        message[2] = dns.opcode.from_text(opcode) << 3
        row = watch(asks(0, bytes(message))).only
        assert (row.opcode, row.purpose, row.qname, row.answered) == (opcode, None, "zone.test.", False)


def test_the_class_is_shown() -> None:
    a = query("version.bind.", "TXT", rdclass="CH")
    r = dns.message.make_response(a)
    r.answer.append(dns.rrset.from_text("version.bind.", 0, "CH", "TXT", '"9.18"'))
    row = watch(asks(0, a), says(0.1, r)).only
    assert (row.qclass, row.purpose, row.answers) == ("CH", "other", ['version.bind. TXT "9.18"'])


def test_extended_response_codes() -> None:
    a = query("edns.test.", use_edns=0)
    row = watch(asks(0, a), says(0.1, answer(a, rcode="BADVERS"))).only
    assert row.rcode == "BADVERS"


def test_two_questions_in_one_message_are_two_rows() -> None:
    a = query("one.test.")
    a.question.append(dns.rrset.RRset(dns.name.from_text("two.test."), dns.rdataclass.IN, dns.rdatatype.MX))
    seen = watch(asks(0, a), says(0.1, answer(a)))
    assert [(r.qname, r.qtype, r.answered, r.purpose) for r in seen.rows] == [
        ("one.test.", "A", True, "address"),
        ("two.test.", "MX", True, "mx"),
    ]


def test_a_huge_ttl_counts_as_none() -> None:
    a = query("old.test.")
    r = bytearray(answer(a, "old.test. 5 A 192.0.2.1").to_wire())
    r[-10:-6] = b"\xff\xff\xff\xff"
    assert watch(asks(0, a), says(0.1, bytes(r))).only.ttl_min == 0  # RFC 2181 8


def test_other_ports() -> None:
    a = query("mail.example.net.", "MX")
    usual = (0.0, CLIENT, 40001, SERVER, 53, wire(a))
    odd = (0.0, CLIENT, 40001, SERVER, 5300, wire(a))
    mdns = (0.0, CLIENT, 5353, "224.0.0.251", 5353, wire(a))
    llmnr = (0.0, CLIENT, 50000, "224.0.0.252", 5355, wire(query("wpad.")))
    noise = (0.0, CLIENT, 40001, SERVER, 4500, bytes(range(60)))
    assert candidate_rows(packets([noise, mdns, odd, llmnr, usual])).tolist() == [2, 4]
    assert watch(odd, (0.5, SERVER, 5300, CLIENT, 40001, wire(answer(a)))).only.rtt_s == 0.5


# -- damage ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "owner",
    [
        lambda n: (0xC000 | n).to_bytes(2, "big"),  # to itself
        lambda n: (0xC000 | (n + 2)).to_bytes(2, "big") + (0xC000 | n).to_bytes(2, "big"),  # to each other
        lambda n: (0xC000 | (n + 14)).to_bytes(2, "big"),  # forward
        lambda n: b"\xff\xff",  # past the end
        lambda n: b"\x40abc\0",  # a label of unknown kind
        lambda n: b"\x3f" + b"x" * 10,  # longer than the message
    ],
)
def test_names_that_lead_nowhere(owner: Any) -> None:
    a = query("loop.test.", "MX")
    base = bytearray(a.to_wire())
    base[2:4], base[6:8] = b"\x81\x80", b"\0\x01"
    bad = bytes(base) + owner(len(base)) + b"\0\x0f\0\x01\0\0\0\x3c\0\x04\0\x0a\xc0\x0c"
    seen = watch(asks(0, a), says(0.1, bad))
    assert (seen.only.qname, seen.only.answered, seen.only.answers) == ("loop.test.", True, [])
    assert seen.names == ["dns_malformed"]


def test_what_comes_before_the_damage_is_read() -> None:
    a = query("half.test.")
    r = answer(a, "half.test. 9 A 192.0.2.1", "half.test. 9 A 192.0.2.2").to_wire()
    seen = watch(asks(0, a), says(0.1, r[:-3]))
    assert seen.only.answers == ["half.test. A 192.0.2.1"]
    assert seen.names == ["dns_malformed"]


def test_rdata_of_the_wrong_length_is_shown_as_octets() -> None:
    a = query("short.test.")
    r = answer(a, "short.test. 9 A 192.0.2.1").to_wire()
    seen = watch(asks(0, a), says(0.1, r[:-6] + b"\0\3" + r[-4:-1]))
    assert seen.only.answers == ["short.test. A \\# 3 c00002"]
    assert seen.names == ["dns_malformed"]


def test_a_message_cut_by_the_snap_length_is_not_called_malformed() -> None:
    a = query("cut.test.")
    r = answer(a, "cut.test. 9 A 192.0.2.1").to_wire()
    assert watch(says(0.1, r[:-3]), cut=3).names == ["dns_cut"]


def test_counts_that_lie() -> None:
    a = bytearray(query("lie.test.").to_wire())
    a[4:12] = b"\0\1\xff\xff\xff\xff\xff\xff"
    seen = watch(asks(0, bytes(a)))
    assert (seen.only.qname, seen.names) == ("lie.test.", ["dns_malformed"])


def test_datagrams_without_a_header_or_a_question() -> None:
    seen = watch(asks(0, b""), asks(1, b"\0" * 11), asks(2, b"\0" * 20), asks(3, bytes(range(100, 160))))
    assert seen.names == ["dns_malformed"] * 4
    assert all(r.qname is None for r in seen.rows)


def test_names_are_shown_in_presentation_form() -> None:
    raw = b"\0\3\1\0\0\1\0\0\0\0\0\0" + b"\7b\xc3\xbccher\4a.b\x07\4TEST\0\0\1\0\1"
    assert watch(asks(0, raw)).only.qname == "b\\195\\188cher.a\\.b\\007.test."


# -- bounds ----------------------------------------------------------------------------------------------------------------


def test_waiting_questions_are_bounded_and_the_loss_is_named() -> None:
    questions = [asks(i / 100, query(f"n{i}.test.", ident=i)) for i in range(10)]
    seen = watch(*questions, says(0.2, answer(query("n9.test.", ident=9))), limits=replace(Limits(), dns_waiting=3))
    assert len(seen.rows) == 10
    assert seen.names == ["dns_questions_dropped"] * 7
    assert [r.qname for r in seen.rows if r.answered] == ["n9.test."]


def test_one_key_with_endless_questions_is_bounded() -> None:
    seen = watch(*[asks(i / 1000, query(f"n{i}.test.")) for i in range(60)])
    assert len(seen.rows) == 60


def test_what_is_remembered_does_not_change_results() -> None:
    talk = []
    for i in range(200):
        a = query(f"n{i % 50}.test.", ident=i)
        talk += [asks(i, a), says(i + 0.5, answer(a, f"n{i % 50}.test. {i} A 192.0.2.{i % 50}"))]
    small = watch(*talk, limits=replace(Limits(), dns_memo=4))
    assert ordered(small.rows) == ordered(watch(*talk).rows)


# -- batches and files -----------------------------------------------------------------------------------------------------


@st.composite
def talks(draw: st.DrawFn) -> list[Datagram]:
    """Questions, answers, copies and noise over few names, identifiers and ports, so that they collide."""
    talk = []
    t = 0.0
    for _ in range(draw(st.integers(1, 40))):
        t += draw(st.sampled_from([0.0, 0.001, 0.4, 2.0, 40.0]))
        message = query(draw(st.sampled_from(["a.test.", "b.test.", "A.test."])), draw(st.sampled_from(["A", "MX"])))
        message.id = draw(st.integers(1, 2))
        port = draw(st.sampled_from([40001, 40002]))
        if draw(st.booleans()):
            talk.append(asks(t, message, port=port))
        else:
            records = draw(st.sampled_from([(), ("a.test. 1 A 192.0.2.1",), ("a.test. 1 A 192.0.2.2",)]))
            talk.append(says(t, answer(message, *records), port=port))
    return talk


def ordered(found: list[Any]) -> list[str]:
    return sorted(map(repr, found))


@settings(max_examples=150, deadline=None)
@given(talks(), st.integers(1, 5))
def test_batches_make_no_difference(talk: list[Datagram], size: int) -> None:
    whole = watch(*talk, limits=replace(Limits(), dns_waiting=3, dns_answered=4))
    reader = Datagrams(replace(Limits(), dns_waiting=3, dns_answered=4))
    found = []
    for begin in range(0, len(talk), size):
        batch = packets(talk[begin : begin + size], first=begin + 1)
        found += reader.feed(batch, candidate_rows(batch))
    split = Seen(found + reader.finish())
    assert (ordered(split.rows), ordered(split.odd)) == (ordered(whole.rows), ordered(whole.odd))


@settings(max_examples=100, deadline=None)
@given(talks())
def test_every_question_and_answer_is_accounted_for(talk: list[Datagram]) -> None:
    seen = watch(*talk)
    frames = [f for row in seen.rows for f in (row.frame, row.reply_frame) if f is not None]
    assert len(frames) == len(set(frames))
    assert sum(1 + r.retries for r in seen.rows if r.frame) <= sum(row[4] == 53 for row in talk)
    assert all(r.answered == (r.reply_frame is not None) for r in seen.rows)


def test_an_exchange_over_two_files_of_one_tap() -> None:
    a = query("rotated.test.")
    reader = Datagrams(Limits())
    found = []
    for batch in (packets([asks(0, a)], "tap1.pcap"), packets([says(0.2, answer(a))], "tap2.pcap")):
        found += reader.feed(batch, candidate_rows(batch))
    row = Seen(found + reader.finish()).only
    assert (row.source, row.frame, row.reply_frame, row.rtt_s) == ("tap1.pcap", 1, 1, 0.2)


def test_two_taps_at_once_are_two_rows() -> None:
    a = query("twice.test.")
    reader = Datagrams(Limits())
    found = []
    for source, delay in (("client.pcap", 0.0), ("server.pcap", 0.01)):
        batch = packets([asks(delay, a), says(0.2 - delay, answer(a))], source)
        found += reader.feed(batch, candidate_rows(batch))
    rows = Seen(found + reader.finish()).rows
    assert [(r.source, r.retries, r.answered) for r in rows] == [("client.pcap", 0, True), ("server.pcap", 0, True)]


# -- records ---------------------------------------------------------------------------------------------------------------

labels = st.binary(min_size=1, max_size=12)
names = st.lists(labels, max_size=4).map(lambda ls: dns.name.Name([*ls, b""]))
numbers = st.integers(0, 65535)


@st.composite
def records(draw: st.DrawFn) -> dns.rdata.Rdata:
    kind = draw(st.sampled_from(["A", "AAAA", "MX", "CNAME", "NS", "PTR", "DNAME", "TXT", "SPF", "SOA", "SRV"]))
    name = draw(names).to_wire()
    number = draw(numbers).to_bytes(2, "big")
    octets = {
        "A": draw(st.binary(min_size=4, max_size=4)),
        "AAAA": draw(st.binary(min_size=16, max_size=16) | st.binary(max_size=6).map(lambda b: b.rjust(16, b"\0"))),
        "MX": number + name,
        "TXT": b"".join(bytes((len(s),)) + s for s in draw(st.lists(st.binary(max_size=30), min_size=1, max_size=3))),
        "SOA": name + draw(names).to_wire() + draw(st.binary(min_size=20, max_size=20)),
        "SRV": number * 3 + name,
    }
    wire_form = octets.get("TXT" if kind == "SPF" else kind, name)
    return dns.rdata.from_wire("IN", kind, wire_form, 0, len(wire_form))


@settings(max_examples=400, deadline=None)
@given(records())
def test_records_read_here_are_as_dnspython_reads_them(record: dns.rdata.Rdata) -> None:
    octets = record.to_wire()
    ours = lean(octets, int(record.rdtype), 1, 0, len(octets))
    theirs = by_dnspython(octets, int(record.rdtype), 1, 0, len(octets))
    if record.rdtype in (dns.rdatatype.TXT, dns.rdatatype.SPF):
        assert ours == theirs
    else:  # host names are shown in the lower case of the canonical form
        assert ours == theirs.lower()


@settings(max_examples=200, deadline=None)
@given(names)
def test_names_are_as_dnspython_shows_them(name: dns.name.Name) -> None:
    assert name_text(list(name.labels[:-1])) == (name.canonicalize().to_text() if len(name.labels) > 1 else ".")


@pytest.mark.parametrize(
    ("kind", "rdata"),
    [
        ("TLSA", "3 1 1 " + "ab" * 32),
        ("CAA", '0 issue "ca.example"'),
        ("DS", "60485 5 1 2bb183af5f22588179a53b0a98631fad1a292118"),
        ("NAPTR", '10 100 "s" "SIP+D2U" "" _sip._udp.example.test.'),
        ("HTTPS", '1 . alpn="h2"'),
        ("TYPE65280", "\\# 2 abcd"),
    ],
)
def test_other_types_have_their_presentation_form(kind: str, rdata: str) -> None:
    a = query("type.test.", kind)
    row = watch(asks(0, a), says(0.1, answer(a, f"type.test. 60 {kind} {rdata}"))).only
    assert (row.qtype, row.answers) == (kind, [f"type.test. {kind} {rdata}"])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_no_message_raises(octets: bytes, header: bool) -> None:
    start = b"\0\1\x81\x80\0\1\0\2\0\0\0\1\1a\4test\0" if header else bytes(HEADER)
    message = read(start + octets, Limits())
    assert message.answers is None or all(isinstance(a, str) and a.isprintable() for a in message.answers)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_answer_never_raises(data: st.DataObject) -> None:
    a = query("fuzz.test.", "MX")
    whole = bytearray(
        answer(
            a,
            "fuzz.test. 1 MX 10 mx.fuzz.test.",
            'fuzz.test. 1 TXT "a" "b"',
            "fuzz.test. 1 SOA ns.fuzz.test. h.fuzz.test. 1 2 3 4 5",
            "fuzz.test. 1 TLSA 3 1 0 abcd",
            "fuzz.test. 1 NSEC next.fuzz.test. A MX RRSIG",
        ).to_wire()
    )
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(whole[: data.draw(st.integers(HEADER, len(whole)))]), Limits())


def test_a_chain_of_pointers_costs_little() -> None:
    chain = bytearray(b"\0\1\x81\x80\0\0\x0f\xff\0\0\0\0\0")
    while len(chain) < 16_000:
        chain += (0xC000 | (len(chain) - 2 if len(chain) > 13 else 12)).to_bytes(2, "big")
    with pytest.raises(Malformed):
        read_question(bytes(chain), len(chain) - 2)


# -- purpose ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qname", "qtype", "said", "what"),
    [
        ("example.net.", "MX", (), "mx"),
        ("mx.example.net.", "A", (), "address"),
        ("mx.example.net.", "AAAA", (), "address"),
        ("25.100.51.198.in-addr.arpa.", "PTR", (), "ptr"),
        ("example.net.", "TXT", (), "spf"),
        ("example.net.", "SPF", (), "spf"),
        ("_spf.example.net.", "TXT", (), "spf"),
        ("_netblocks.example.net.", "TXT", ('_netblocks.example.net. TXT "v=spf1 ip4:192.0.2.0/24 -all"',), "spf"),
        ("_netblocks.example.net.", "TXT", (), "other"),
        ("sel._domainkey.example.net.", "TXT", (), "dkim"),
        ("_adsp._domainkey.example.net.", "TXT", (), "dkim"),
        ("_dmarc.example.net.", "TXT", (), "dmarc"),
        ("example.net._report._dmarc.collector.test.", "TXT", (), "dmarc"),
        ("_25._tcp.mx.example.net.", "TLSA", (), "tlsa"),
        ("_mta-sts.example.net.", "TXT", (), "mta_sts"),
        ("mta-sts.example.net.", "A", (), "mta_sts"),
        ("_smtp._tls.example.net.", "TXT", (), "tls_rpt"),
        ("default._bimi.example.net.", "TXT", (), "bimi"),
        ("10.2.0.192.zen.example.", "A", (), "dnsbl"),
        ("10.2.0.192.zen.example.org.", "TXT", (), "dnsbl"),
        (".".join("b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2".split(".")) + ".bl.test.", "A", (), "dnsbl"),
        ("example.net.dbl.spamhaus.org.", "A", (), "dnsbl"),
        ("1.2.3.4.in-addr.arpa.", "A", (), "address"),
        ("_imaps._tcp.example.net.", "SRV", (), "other"),
        ("example.net.", "NS", (), "other"),
        (".", "TXT", (), "other"),
    ],
)
def test_purpose(qname: str, qtype: str, said: tuple[str, ...], what: str) -> None:
    assert purpose(qname, qtype, "IN", said) == what


# -- TCP -------------------------------------------------------------------------------------------------------------------


def framed(*messages: dns.message.Message | bytes) -> bytes:
    return b"".join(len(w).to_bytes(2, "big") + w for w in map(wire, messages))


def talk_over_tcp(*turns: tuple[str, bytes], mss: int = 1460, lost: Iterable[int] = (), mid: bool = False) -> Dialogue:
    """Turns of `C` and `S`, in segments of `mss` octets; the segments whose numbers are in `lost` are not captured."""
    segments = []
    for side, octets in turns:
        for begin in range(0, len(octets), mss):
            number = len(segments)
            segments.append(Segment(side == "C", START + number * 10_000_000, number + 4, octets[begin : begin + mss]))
    _number(segments)
    if mid:
        for client in (True, False):
            first = next((s for s in segments if s.client == client and segments.index(s) not in lost), None)
            if first is not None:
                first.gap = -1
    kept = [s for i, s in enumerate(segments) if i not in set(lost)]
    for client in (True, False):
        for before, after in pairwise([s for s in kept if s.client == client]):
            after.gap = after.offset - before.offset - len(before.data)
    return Dialogue(kept)


def rows(played: Played) -> list[Transaction]:
    return sorted((e for e in played.events if isinstance(e, Transaction)), key=lambda r: (r.ts or 0, r.dns_id or 0))


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_tcp_exchange(cut: int | str, order: str) -> None:
    a = query("example.net.", "MX", 4097)
    spoken = talk_over_tcp(("C", framed(a)), ("S", framed(answer(a, "example.net. 300 MX 10 mx.example.net."))))
    (row,) = rows(play(TcpSession, spoken, cut=cut, order=order, port=53))
    assert (row.transport, row.qname, row.answers) == ("tcp", "example.net.", ["example.net. MX 10 mx.example.net."])
    assert (row.client_ip, row.server_port, row.dns_id, row.rtt_s) == ("192.0.2.10", 53, 4097, 0.01)


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_pipelined_questions_answered_in_another_order(cut: int | str, order: str) -> None:
    asked = [query(f"n{i}.test.", ident=i) for i in range(4)]
    answers = [answer(a, f"{a.question[0].name} 1 A 192.0.2.{a.id}") for a in reversed(asked)]
    played = play(TcpSession, talk_over_tcp(("C", framed(*asked)), ("S", framed(*answers))), cut=cut, order=order, port=53)
    assert [(r.dns_id, r.answers) for r in rows(played)] == [(i, [f"n{i}.test. A 192.0.2.{i}"]) for i in range(4)]
    assert played.anomalies == []


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_a_zone_transfer_is_one_row(cut: int | str, order: str) -> None:
    axfr = query("zone.test.", "AXFR", 4)
    soa = "zone.test. 60 SOA ns.zone.test. h.zone.test. 1 2 3 4 5"
    first, middle, last = (
        answer(axfr, soa, "zone.test. 60 MX 10 mx.zone.test."),
        answer(axfr, "a.zone.test. 60 A 192.0.2.1"),
        answer(axfr, soa),
    )
    middle.question.clear()
    then = query("zone.test.", "SOA", 4)
    spoken = talk_over_tcp(
        ("C", framed(axfr)), ("S", framed(first, middle, last)), ("C", framed(then)), ("S", framed(answer(then, soa)))
    )
    played = play(TcpSession, spoken, cut=cut, order=order, port=53)
    assert [(r.qtype, r.answered, len(r.answers or [])) for r in rows(played)] == [("AXFR", True, 2), ("SOA", True, 1)]
    assert played.anomalies == []


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_joined_in_the_middle_of_a_message(cut: int | str, order: str) -> None:
    asked = [query(f"m{i}.test.", ident=50 + i) for i in range(3)]
    first, *rest = [framed(answer(a, f"{a.question[0].name} 1 A 192.0.2.{a.id}")) for a in asked]
    turns = [("C", framed(asked[0])), ("S", first[:20]), ("S", first[20:])]
    turns += [("C", framed(asked[1])), ("S", rest[0]), ("C", framed(asked[2])), ("S", rest[1])]
    spoken = talk_over_tcp(*turns, lost=(0, 1), mid=True)
    played = play(TcpSession, spoken, cut=cut, order=order, port=53, start="mid")
    assert [(r.qname, r.answered) for r in rows(played)] == [("m1.test.", True), ("m2.test.", True)]


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_a_gap_costs_the_messages_in_it(cut: int | str, order: str) -> None:
    asked = [query(f"g{i}.test.", ident=i) for i in range(4)]
    turns = []
    for a in asked:
        turns += [("C", framed(a)), ("S", framed(answer(a, f"{a.question[0].name} 1 A 192.0.2.{a.id}")))]
    played = play(TcpSession, talk_over_tcp(*turns, lost=(3,)), cut=cut, order=order, port=53)
    assert [(r.qname, r.answered) for r in rows(played)] == [(f"g{i}.test.", i != 1) for i in range(4)]
    assert played.anomalies == ["dns_messages_lost"]


@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_length_prefixes_that_lie(cut: int | str, order: str) -> None:
    a = query("ok.test.", ident=9)
    spoken = talk_over_tcp(("C", framed(a)), ("S", framed(answer(a))), ("C", b"\0\0"), ("C", b"\xff\xff" + b"q" * 20))
    played = play(TcpSession, spoken, cut=cut, order=order, port=53)
    (row,) = rows(played)
    assert (row.qname, row.answered, set(played.anomalies)) == ("ok.test.", True, {"dns_malformed"})


def test_zeros_without_end_are_one_anomaly() -> None:
    played = play(TcpSession, talk_over_tcp(("C", bytes(50_000))), port=53)
    assert rows(played) == []
    assert played.anomalies == ["dns_malformed"]


def test_a_long_message_in_single_octets() -> None:
    a = query("long.test.", "TXT")
    r = answer(a, "long.test. 1 TXT " + " ".join(f'"{"v" * 250}"' for _ in range(60)))
    (row,) = rows(play(TcpSession, talk_over_tcp(("C", framed(a)), ("S", framed(r))), cut=1, port=53))
    assert row.answers is not None
    assert len(row.answers[0]) > 15_000


def test_unanswered_over_tcp_and_no_session_row() -> None:
    played = play(TcpSession, talk_over_tcp(("C", framed(query("quiet.test.")))), port=53)
    (row,) = rows(played)
    assert (row.answered, row.ts_reply) == (False, None)
    assert len(played.events) == 1


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(EVERY_WAY))
def test_tcp_noise_gives_the_same_however_it_is_fed(orig: bytes, resp: bytes, way: tuple[int | str, str]) -> None:
    a = query("end.test.", ident=3)
    spoken = talk_over_tcp(("C", orig + framed(a)), ("S", resp + framed(answer(a))), mss=50)
    first = play(TcpSession, spoken, port=53)
    again = play(TcpSession, spoken, cut=way[0], order=way[1], port=53)
    assert rows(again) == rows(first)
    assert sorted(again.anomalies) == sorted(first.anomalies)


def test_probe() -> None:
    a = query("probe.test.", "MX")
    ask, tell = framed(a), framed(answer(a, "probe.test. 1 MX 10 mx.probe.test."))
    known = probe(ask, tell, 40001, 53, False)
    assert known is not None and (known.protocol, known.client_is_orig) == ("dns", True)
    swapped = probe(tell, ask, 53, 40001, False)
    assert swapped is not None and not swapped.client_is_orig
    assert probe(ask, b"", 40001, 5300, False) is not None
    assert probe(b"", b"", 40001, 53, False) is None
    assert probe(b"220 mx ESMTP\r\n" * 3, b"", 40001, 25, True) is None
    assert probe(b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" + bytes(40), b"", 40001, 853, True) is None
    assert connection(53).resp_port == 53


def _flagged(wire_: bytes, flags: int) -> bytes:
    return wire_[:2] + (int.from_bytes(wire_[2:4], "big") ^ flags).to_bytes(2, "big") + wire_[4:]


shapes = st.tuples(
    st.sampled_from(["a.test.", "A.test.", "b.example.test.", "."]),
    st.sampled_from(["A", "AAAA", "MX", "TXT", "PTR", "SOA"]),
    st.sampled_from([None, 0, 1]),
    st.lists(
        st.sampled_from(
            [
                "a.test. 60 A 192.0.2.1",
                "a.test. 4294967295 A 192.0.2.2",
                "b.example.test. 5 AAAA 2001:db8::1",
                "a.test. 7 AAAA ::1",
                "a.test. 9 MX 10 mx.a.test.",
                'b.example.test. 9 TXT "v=spf1 -all"',
                "other.test. 3 A 192.0.2.3",
            ]
        ),
        max_size=2,
    ),
    st.sampled_from([0, 0, 0, 0x0100, 0x0200, 0x0400, 0x7800, 0x8000]),
    st.integers(0, 3),
    st.integers(0, 40),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=8))
def test_many_datagrams_at_once_tell_what_one_by_one_tell(
    talk: list[tuple[str, str, int | None, list[str], int, int, int]],
) -> None:
    datagrams = []
    for ident, (name, kind, edns, records, flags, twist, lost) in enumerate(talk):
        ask = query(name, kind, ident, use_edns=-1 if edns is None else edns)
        said = wire(answer(ask, *records))
        said = _flagged(said, flags) if twist == 1 else said[: max(len(said) - lost, 12)] if twist == 2 else said
        datagrams += [asks(ident, ask), says(ident + 0.5, said)]
    whole, single = Datagrams(Limits()), Datagrams(Limits())
    batch = packets(datagrams)
    found = whole.feed(batch, candidate_rows(batch)) + whole.finish()
    one_by_one: list[Transaction | Anomaly] = []
    for i, datagram in enumerate(datagrams):
        one = packets([datagram], first=i + 1)
        one_by_one += single.feed(one, candidate_rows(one))
    one_by_one += single.finish()
    assert sorted(map(repr, found)) == sorted(map(repr, one_by_one))
