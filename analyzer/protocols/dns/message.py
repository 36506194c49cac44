"""DNS messages as they are on the wire (RFC 1035 4), read leniently.

The types a mail log is full of are read here; the others by dnspython, which a property test holds equal to
this file.  Host names inside rdata are shown in lower case, as in the canonical form of RFC 4034 6.2: with
compression they are often the question's own, in whatever case the client chose.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET6, inet_ntoa, inet_ntop
from struct import Struct
from typing import Any, NamedTuple

from analyzer.limits import Limits
from analyzer.protocols.base import Malformed
from analyzer.protocols.dns.layout import HEADER
from analyzer.protocols.dns.purpose import purpose

NAME_HOPS = 127
"""Compression pointers followed for one name: as many as a name can have labels."""
OPCODES = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}
_RCODES = (
    "NOERROR FORMERR SERVFAIL NXDOMAIN NOTIMP REFUSED YXDOMAIN YXRRSET NXRRSET NOTAUTH NOTZONE DSOTYPENI 12 13 14 15 "
    "BADVERS BADKEY BADTIME BADMODE BADNAME BADALG BADTRUNC BADCOOKIE"
).split()
_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 52: "TLSA", 99: "SPF"}
_OPT = 41
_IN = 1
_QUESTIONS = 1024
"""Question sections whose reading is remembered."""
_TO_QUESTION = b"\xc0\x0c"
"""Pointer to the name that follows the header: how most answers name their owner."""

_COUNTS = Struct(">5H")
_QUESTION = Struct(">HH")
_RECORD = Struct(">HHIH")
_SOA = Struct(">5I")
_SRV = Struct(">3H")
_PLAIN = re.compile(rb"[-!#%&'*+,/0-9:<=>?A-Z\[\]^_`a-z{|}~.]*").fullmatch
"""Octets of a label that stand for themselves in text (with the dot, which is looked at apart)."""
_QUOTED = re.compile(rb"[ !#-\[\]-~]*").fullmatch
"""Octets of a character-string that stand for themselves between quotes."""


class Question(NamedTuple):
    """One entry of the question section."""

    key: bytes
    """Name in lower case, type and class, as octets: equal for equal questions."""
    name: str
    type: str
    klass: str


Said = tuple[Any, ...]
"""What an answer's row shows of it: qname, qtype, rcode, aa, tc, rd, ra, answers, purpose, opcode, qclass."""


@dataclass(slots=True, eq=False)
class Message:
    """What a message says, its identifier apart.  Shared between datagrams: never changed."""

    reply: bool
    opcode: str
    rcode: str
    aa: bool
    tc: bool
    rd: bool
    ra: bool
    questions: tuple[Question, ...]
    key: bytes
    """The keys of all questions: what an answer must repeat."""
    exact: bytes
    """Equal in a question and the plain answer to it: one question, repeated with its RD bit, and no fault."""
    qname: str | None
    qtype: str | None
    qclass: str | None
    """Of the first question."""
    purpose: str | None
    answers: list[str] | None
    """`owner TYPE rdata` of the answer section; None in a question."""
    ttl_min: int | None
    fault: str | None
    """What is wrong with it."""
    plausible: bool
    """The header can be a DNS message's, even where nothing else could be read."""
    said: Said = ()
    """What of it is shown."""


def read(wire: bytes, limits: Limits) -> Message:
    """A message of at least `HEADER` octets.  Never raises: what is wrong is told in `fault`."""
    flags, *counts = _COUNTS.unpack_from(wire, 2)
    opcode = flags >> 11 & 15
    reply = flags >= 0x8000
    truncated = bool(flags & 0x0200)
    rcode = flags & 15
    questions: list[Question] = []
    answers: list[str] = []
    ttl: int | None = None
    fault = None
    try:
        pos = _questions(wire, counts[0], questions, limits)
        if opcode in (0, 4):  # the answer section of an UPDATE holds conditions, not answers (RFC 2136 2.4)
            if counts[1]:
                pos, ttl, fault = _answers(wire, pos, counts[1], answers, limits, questions[0].name if questions else None)
            if counts[2] or counts[3]:
                rcode |= _extended_rcode(wire, pos, counts[2] + counts[3])
    except Malformed as wrong:
        if not (truncated and questions):  # servers that set TC may stop anywhere
            fault = str(wrong)
    if not any(counts) and not reply:
        fault = "a query without a question"
    first = questions[0] if questions else None
    found = answers if reply or answers else None
    plausible = opcode in OPCODES and (
        bool(questions) or (counts[0] < 2 and counts[1] < 64 and counts[2] < 64 and counts[3] < 64)
    )
    message = Message(
        reply,
        OPCODES.get(opcode, str(opcode)),
        _RCODES[rcode] if rcode < len(_RCODES) else str(rcode),
        bool(flags & 0x0400),
        truncated,
        bool(flags & 0x0100),
        bool(flags & 0x0080),
        tuple(questions),
        first.key if len(questions) == 1 and first else b"".join(q.key for q in questions),
        b"",
        first.name if first else None,
        first.type if first else None,
        first.klass if first else None,
        _purpose(first, found) if first and opcode == 0 else None,
        found,
        ttl,
        fault,
        plausible,
    )
    m = message
    m.exact = m.key + (b"\1" if m.rd else b"\0") if len(questions) == 1 and not fault else b"answer" if reply else b"question"
    m.said = (m.qname, m.qtype, m.rcode, m.aa, m.tc, m.rd, m.ra, found, m.purpose, m.opcode, m.qclass)
    return message


def _purpose(question: Question, answers: list[str] | None) -> str:
    if question.type == "TXT":
        return purpose(question.name, question.type, question.klass, answers)
    return _by_name(question.name, question.type, question.klass)


@lru_cache(maxsize=_QUESTIONS)
def _by_name(name: str, kind: str, klass: str) -> str:
    """The purpose of a question whose answers do not matter to it."""
    return purpose(name, kind, klass, None)


def _questions(wire: bytes, count: int, questions: list[Question], limits: Limits) -> int:
    """`Question`s (RFC 1035 4.1.2), appended; where the section ends."""
    pos = HEADER
    if count == 1:
        end = wire.find(b"\0", HEADER) + 5
        known = _KNOWN.get(wire[HEADER:end])
        if known is not None:
            questions.append(known)
            return end
    for _ in range(min(count, limits.dns_questions)):
        question, pos = read_question(wire, pos)
        questions.append(question)
    if count == 1 and pos == end:
        section = wire[HEADER:end]
        if section.isascii():  # no pointers in it: it reads the same in every message
            if len(_KNOWN) >= _QUESTIONS:
                _KNOWN.clear()
            _KNOWN[section] = question
    if count > limits.dns_questions:
        raise Malformed(f"{count} questions in one message")
    return pos


def read_question(wire: bytes, pos: int) -> tuple[Question, int]:
    """QNAME QTYPE QCLASS."""
    labels, pos = labels_at(wire, pos)
    if pos + 4 > len(wire):
        raise Malformed("the question section runs past the end")
    qtype, qclass = _QUESTION.unpack_from(wire, pos)
    key = b"".join([bytes((len(x),)) + x for x in labels]).lower() + b"\0" + wire[pos : pos + 4]
    return Question(key, name_text(labels), type_text(qtype), class_text(qclass)), pos + 4


_KNOWN: dict[bytes, Question] = {}
"""Question sections of one question read before."""


def _answers(
    wire: bytes, pos: int, count: int, answers: list[str], limits: Limits, qname: str | None
) -> tuple[int, int | None, str | None]:
    """Resource records (RFC 1035 4.1.3), appended as text; (end of the section, smallest TTL, what is wrong)."""
    ttl_min: int | None = None
    fault = None
    for i in range(count):
        if i >= limits.dns_records:
            raise Malformed(f"{count} answer records in one message")
        if qname is not None and wire[pos : pos + 2] == _TO_QUESTION:
            owner = qname
            pos += 2
        else:
            labels, pos = labels_at(wire, pos)
            owner = name_text(labels)
        kind, klass, ttl, length, pos, end = _record(wire, pos)
        if ttl > 0x7FFFFFFF:  # RFC 2181 8
            ttl = 0
        if ttl_min is None or ttl < ttl_min:
            ttl_min = ttl
        try:
            text = _rdata(wire, kind, klass, pos, end)
        except Malformed as wrong:
            fault = fault or f"{type_text(kind)} record: {wrong}"
            text = f"\\# {length} {wire[pos:end].hex()}".rstrip()
        answers.append(f"{owner} {type_text(kind)} {text}")
        pos = end
    return pos, ttl_min, fault


def _record(wire: bytes, pos: int) -> tuple[int, int, int, int, int, int]:
    """TYPE CLASS TTL RDLENGTH, with where RDATA begins and ends."""
    if pos + 10 > len(wire):
        raise Malformed("a record runs past the end")
    kind, klass, ttl, length = _RECORD.unpack_from(wire, pos)
    pos += 10
    if pos + length > len(wire):
        raise Malformed("RDATA runs past the end")
    return kind, klass, ttl, length, pos, pos + length


def _extended_rcode(wire: bytes, pos: int, count: int) -> int:
    """Upper bits of the response code, out of the OPT record (RFC 6891 6.1.3), wherever it is."""
    for _ in range(count):
        _, pos = labels_at(wire, pos)
        kind, _, ttl, _, _, pos = _record(wire, pos)
        if kind == _OPT:
            return int(ttl >> 24) << 4
    return 0


def labels_at(wire: bytes, pos: int) -> tuple[list[bytes], int]:
    """Labels of a (compressed) name (RFC 1035 4.1.4) and where it ends.  Pointers must lead backwards (RFC 9267 2)."""
    labels: list[bytes] = []
    size, limit, end, hops = len(wire), pos, -1, 0
    octets = 1
    while True:
        if pos >= size:
            raise Malformed("a name runs past the end")
        head = wire[pos]
        if head == 0:
            return labels, (pos + 1 if end < 0 else end)
        if head < 64:
            stop = pos + 1 + head
            octets += head + 1
            if stop > size:
                raise Malformed("a name runs past the end")
            if octets > 255:
                raise Malformed("a name is longer than 255 octets")
            labels.append(wire[pos + 1 : stop])
            pos = stop
        elif head >= 192:
            if pos + 1 >= size:
                raise Malformed("a name runs past the end")
            if end < 0:
                end = pos + 2
            target = (head & 63) << 8 | wire[pos + 1]
            hops += 1
            if target >= limit or hops > NAME_HOPS:
                raise Malformed("a compression pointer leads nowhere")
            limit = pos = target
        else:
            raise Malformed("a label of unknown kind")


def name_text(labels: list[bytes]) -> str:
    """Presentation form (RFC 1035 5.1, RFC 4343 2.1), absolute, in lower case; A-labels stay as they are."""
    if not labels:
        return "."
    whole = b".".join(labels)
    if _PLAIN(whole) and whole.count(b".") == len(labels) - 1:
        return whole.decode("ascii").lower() + "."
    return ".".join([_label_text(x) for x in labels]) + "."


def _label_text(label: bytes) -> str:
    shown = []
    for octet in label.lower():
        char = chr(octet)
        if char in '"().;\\@$':
            shown.append("\\" + char)
        elif 0x20 < octet < 0x7F:
            shown.append(char)
        else:
            shown.append(f"\\{octet:03d}")
    return "".join(shown)


@lru_cache(maxsize=1024)
def type_text(value: int) -> str:
    """Mnemonic of a type, `TYPE65280` when it has none (RFC 3597 5)."""
    known = _TYPES.get(value)
    if known is None:
        import dns.rdatatype

        known = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(value)).replace("_", "-")
    return known


@lru_cache(maxsize=256)
def class_text(value: int) -> str:
    """Mnemonic of a class, `CLASS77` when it has none (RFC 3597 5)."""
    if value == _IN:
        return "IN"
    import dns.rdataclass

    return dns.rdataclass.to_text(dns.rdataclass.RdataClass.make(value))


# RDATA, a function per production: octets from `pos` to `end`, which must be used up


def _a(wire: bytes, pos: int, end: int) -> str:
    """ADDRESS (RFC 1035 3.4.1)."""
    if end - pos != 4:
        raise Malformed(f"an address of {end - pos} octets")
    return inet_ntoa(wire[pos:end])


def _aaaa(wire: bytes, pos: int, end: int) -> str:
    """128 bit address (RFC 3596 2.2), as RFC 5952 writes it."""
    if end - pos != 16:
        raise Malformed(f"an address of {end - pos} octets")
    if wire[pos]:  # no system writes such an address in another way
        return inet_ntop(AF_INET6, wire[pos:end])
    import dns.ipv6

    return dns.ipv6.inet_ntoa(wire[pos:end])


def _name(wire: bytes, pos: int, end: int) -> str:
    """CNAME, NS, PTR, DNAME (RFC 1035 3.3.1, 3.3.11, 3.3.12; RFC 6672 2.1)."""
    labels, stop = labels_at(wire, pos)
    if stop != end:
        raise Malformed("octets are left behind the name")
    return name_text(labels)


def _mx(wire: bytes, pos: int, end: int) -> str:
    """PREFERENCE EXCHANGE (RFC 1035 3.3.9)."""
    if end - pos < 3:
        raise Malformed("it is too short")
    return f"{wire[pos] << 8 | wire[pos + 1]} {_name(wire, pos + 2, end)}"


def _txt(wire: bytes, pos: int, end: int) -> str:
    """One or more <character-string>s (RFC 1035 3.3.14), quoted."""
    strings = []
    while pos < end:
        stop = pos + 1 + wire[pos]
        if stop > end:
            raise Malformed("a string runs past the end")
        strings.append(quoted(wire[pos + 1 : stop]))
        pos = stop
    if not strings:
        raise Malformed("it is empty")
    return " ".join(strings)


def quoted(octets: bytes) -> str:
    """<character-string> in quotes (RFC 1035 5.1)."""
    if _QUOTED(octets):
        return f'"{octets.decode("ascii")}"'
    shown = []
    for octet in octets:
        if octet in b'"\\':
            shown.append("\\" + chr(octet))
        elif 0x20 <= octet < 0x7F:
            shown.append(chr(octet))
        else:
            shown.append(f"\\{octet:03d}")
    return f'"{"".join(shown)}"'


def _soa(wire: bytes, pos: int, end: int) -> str:
    """MNAME RNAME SERIAL REFRESH RETRY EXPIRE MINIMUM (RFC 1035 3.3.13)."""
    mname, pos = labels_at(wire, pos)
    rname, pos = labels_at(wire, pos)
    if end - pos != _SOA.size:
        raise Malformed("it has the wrong length")
    numbers = " ".join(map(str, _SOA.unpack_from(wire, pos)))
    return f"{name_text(mname)} {name_text(rname)} {numbers}"


def _srv(wire: bytes, pos: int, end: int) -> str:
    """Priority Weight Port Target (RFC 2782)."""
    if end - pos < 7:
        raise Malformed("it is too short")
    priority, weight, port = _SRV.unpack_from(wire, pos)
    return f"{priority} {weight} {port} {_name(wire, pos + 6, end)}"


_ANY_CLASS: dict[int, Callable[[bytes, int, int], str]] = {
    2: _name,
    5: _name,
    6: _soa,
    12: _name,
    15: _mx,
    16: _txt,
    39: _name,
    99: _txt,
}
_INTERNET: dict[int, Callable[[bytes, int, int], str]] = {**_ANY_CLASS, 1: _a, 28: _aaaa, 33: _srv}


def _rdata(wire: bytes, kind: int, klass: int, pos: int, end: int) -> str:
    """Presentation form of a record's RDATA."""
    production = (_INTERNET if klass == _IN else _ANY_CLASS).get(kind)
    return production(wire, pos, end) if production else by_dnspython(wire, kind, klass, pos, end)


def by_dnspython(wire: bytes, kind: int, klass: int, pos: int, end: int) -> str:
    """The same for any type, known to dnspython or not (`\\# length hex`, RFC 3597 5)."""
    import dns.rdata
    from dns.rdataclass import RdataClass
    from dns.rdatatype import RdataType

    try:
        return dns.rdata.from_wire(RdataClass.make(klass), RdataType.make(kind), wire, pos, end - pos).to_text()
    except Exception as wrong:  # whatever a hostile record makes of the library, it is a malformed record
        raise Malformed(str(wrong) or type(wrong).__name__) from wrong
