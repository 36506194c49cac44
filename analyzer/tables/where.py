"""`--where`: which messages, in words that mail people know: `code>=500 and rcpt~"@example.net"`.

    expression = conjunction *( "or" conjunction )
    conjunction = term *( "and" term )
    term = "not" term / "(" expression ")" / comparison
    comparison = field operator value / field          ; a field alone: one of yes or no
    operator = "=" / "!=" / "<" / "<=" / ">" / ">=" / "~" / "!~"
    value = word / quoted                              ; quotes where it holds blanks, parentheses or operators

1. A message has many values of most fields (each hop has a code): a comparison holds when one of them fits.  `!=` and
   `!~` hold when none of them is the value, or contains it.
2. Text is compared letter case aside; `~` is "contains".  Nothing is evaluated: no expression of any language.
3. What is absent fits nothing: `queue>0` is false, and `queue!=3` true, for a message that waited in no queue seen.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from analyzer.errors import ExpressionError
from analyzer.tables.schema import nearest
from analyzer.tables.spool import Tables

Values = Callable[[Any], Iterable[Any]]
Test = Callable[[Any], bool]

EQUAL, UNEQUAL, LESS, MOST, MORE, LEAST, CONTAINS, LACKS = "=", "!=", "<", "<=", ">", ">=", "~", "!~"
NEGATED = {UNEQUAL: EQUAL, LACKS: CONTAINS}
"""Operators that hold when no value fits their positive one."""
_DEPTH = 100
"""Parentheses and `not` within one another."""


def _column(*names: str) -> Values:
    """Values of these columns of a row."""

    def values(row: Any) -> Iterable[Any]:
        return [getattr(row, name) for name in names]

    return values


def _members(name: str) -> Values:
    def values(row: Any) -> Iterable[Any]:
        return getattr(row, name) or ()

    return values


def _recipients(row: Any) -> Iterable[Any]:
    return [row.recipient]


class Field(NamedTuple):
    """A word that expressions know."""

    kind: str
    """`text number seconds octets time yesno address`."""
    places: tuple[tuple[str, Values], ...]
    """Tables it is looked up in, and how."""
    meaning: str


FIELDS: dict[str, Field] = {
    "from": Field(
        "text",
        (("messages", _column("mail_from", "header_from")), ("hops", _column("mail_from"))),
        "sender: envelope or From field",
    ),
    "rcpt": Field(
        "text", (("recipients", _recipients), ("deliveries", _recipients), ("hops", _members("rcpt_to"))), "envelope recipient"
    ),
    "to": Field("text", (("messages", _column("header_to")),), "To field"),
    "subject": Field("text", (("messages", _column("subject")),), "Subject field, decoded"),
    "message_id": Field("text", (("messages", _column("message_id")),), "Message-ID, with its angle brackets"),
    "trace_id": Field("text", (("messages", _column("trace_id")),), "trace id"),
    "outcome": Field(
        "text",
        (("messages", _column("outcome")),),
        "delivered relayed bounced rejected deferred aborted mixed unknown: of the whole message",
    ),
    "fate": Field("text", (("deliveries", _column("outcome")),), "outcome for a recipient"),
    "result": Field(
        "text",
        (("hops", _column("outcome")), ("recipients", _column("outcome"))),
        "accepted rejected deferred aborted partial unknown: of a hop, or of a recipient there",
    ),
    "code": Field(
        "number",
        (("hops", _column("code")), ("recipients", _column("code")), ("deliveries", _column("code"))),
        "SMTP reply code",
    ),
    "enhanced_code": Field(
        "text", (("hops", _column("enhanced_code")), ("recipients", _column("enhanced_code"))), "enhanced status code: 5.1.1"
    ),
    "reply": Field("text", (("hops", _column("reply_text")), ("recipients", _column("reply_text"))), "text of a reply"),
    "queue_id": Field("text", (("hops", _column("queue_id")),), "what a server called it"),
    "role": Field("text", (("hops", _column("client_role", "server_role")),), "mua msa mta mx mda pop3 imap: of who handled it"),
    "ip": Field(
        "address", (("hops", _column("client_ip", "server_ip")),), "address of who handled it, or a network: 192.0.2.0/24"
    ),
    "host": Field("text", (("hops", _column("client_name", "server_name")),), "name of who handled it"),
    "port": Field("number", (("hops", _column("server_port")),), "port of a server"),
    "protocol": Field("text", (("hops", _column("protocol")),), "smtp lmtp pop3 imap"),
    "kind": Field("text", (("hops", _column("kind")),), "submit relay deliver retrieve append"),
    "basis": Field("text", (("hops", _column("basis")),), "observed matched claimed: what a hop rests on"),
    "tls": Field("text", (("hops", _column("tls")),), "none starttls implicit: of a hop"),
    "user": Field("text", (("sessions", _column("auth_user")),), "who logged in"),
    "software": Field("text", (("sessions", _column("server_software")),), "software of a server"),
    "source": Field("text", (("hops", _column("source")),), "capture file or interface"),
    "size": Field("octets", (("messages", _column("size")), ("hops", _column("size"))), "octets of the message: 10k, 2MB"),
    "hops": Field("number", (("messages", _column("hops")),), "number of hops"),
    "elapsed": Field("seconds", (("messages", _column("elapsed_s")),), "from the first hop to delivery: 500ms, 90s, 5m, 2h, 1d"),
    "queue": Field("seconds", (("hops", _column("queue_s")),), "wait in a queue"),
    "dns": Field("seconds", (("hops", _column("dns_s")),), "time for lookups of a hop"),
    "connect": Field("seconds", (("hops", _column("connect_s")),), "time to connect"),
    "greeting": Field("seconds", (("hops", _column("greeting_s")),), "time to the EHLO reply"),
    "handshake": Field("seconds", (("hops", _column("tls_s")),), "time for TLS"),
    "auth": Field("seconds", (("hops", _column("auth_s")),), "time to log in"),
    "envelope": Field("seconds", (("hops", _column("envelope_s")),), "time from MAIL to the reply to DATA"),
    "transfer": Field("seconds", (("hops", _column("transfer_s")),), "time for the message's octets"),
    "accept": Field("seconds", (("hops", _column("accept_s")),), "time from the last octet to the reply"),
    "date": Field("time", (("messages", _column("ts_first")),), "when it was first seen, UTC: 2026-11-23 or 2026-11-23T21:16"),
    "retrieved": Field("yesno", (("messages", _column("retrieved")),), "a mailbox user has fetched it"),
    "encrypted": Field("yesno", (("messages", _column("tls_all_hops")),), "every hop between hosts ran inside TLS"),
    "complete": Field("yesno", (("hops", _column("complete")),), "every octet of it was seen, at a hop"),
    "spf": Field("text", (("messages", _column("spf")),), "SPF result"),
    "dkim": Field("text", (("messages", _column("dkim")),), "DKIM result"),
    "dmarc": Field("text", (("messages", _column("dmarc")),), "DMARC result"),
    "relation": Field("text", (("messages", _column("relation")),), "dsn autoreply mdn: what it is to its parent"),
    "anomaly": Field("text", (("anomalies", _column("name")),), "name of an oddity of the message or its sessions"),
}
OPERATORS = {
    "text": (EQUAL, UNEQUAL, CONTAINS, LACKS),
    "address": (EQUAL, UNEQUAL, CONTAINS, LACKS),
    "yesno": (EQUAL, UNEQUAL),
    "number": (EQUAL, UNEQUAL, LESS, MOST, MORE, LEAST),
    "seconds": (EQUAL, UNEQUAL, LESS, MOST, MORE, LEAST),
    "octets": (EQUAL, UNEQUAL, LESS, MOST, MORE, LEAST),
    "time": (EQUAL, UNEQUAL, LESS, MOST, MORE, LEAST),
}


# values


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|sec|m|min|h|d)?")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmg]i?)?b?", re.IGNORECASE)
_OCTETS = {"k": 1e3, "m": 1e6, "g": 1e9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_DATE = re.compile(r"(\d{4})-(\d\d?)-(\d\d?)(?:[T ](\d\d?)(?::(\d\d)(?::(\d\d))?)?)?(?:Z|\+00:?00)?")
_TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _number(text: str) -> float:
    return float(int(text))


def _scaled(text: str, form: re.Pattern[str], units: dict[str, float]) -> float:
    found = form.fullmatch(text)
    if found is None:
        raise ValueError
    return float(found[1]) * (units[found[2] if found[2] in units else found[2].lower()] if found[2] else 1)


def _moment(text: str) -> tuple[int, int]:
    """A date as its first nanosecond and the one after its last: a day, an hour, a minute or a second."""
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError
    year, month, day, hour, minute, second = (int(part) if part else 0 for part in found.groups())
    begin = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    given = sum(part is not None for part in found.groups()[3:])
    span = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))[given]
    first = int((begin - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)) * 1_000_000_000
    return first, first + int(span.total_seconds()) * 1_000_000_000


EXAMPLES = {
    "number": "a whole number: 550",
    "seconds": "a time: 500ms, 90s, 5m, 2h, 1d",
    "octets": "a size: 5000, 10k, 2MB, 1MiB",
    "time": "a date, UTC: 2026-11-23 or 2026-11-23T21:16",
    "yesno": "yes or no",
}


def _text_test(operator: str, value: str) -> Test:
    wanted = value.casefold()
    if operator == CONTAINS:
        return lambda text: wanted in text.casefold()
    return lambda text: bool(text.casefold() == wanted or text.casefold().strip("<>") == wanted)


def _address_test(operator: str, value: str) -> Test:
    if operator == CONTAINS:
        return _text_test(operator, value)
    network = ip_network(value, strict=False)
    return lambda text: _inside(text, network)


def _inside(text: str, network: IPv4Network | IPv6Network) -> bool:
    try:
        return ip_address(text) in network
    except ValueError:
        return False


def _time_test(operator: str, value: str) -> Test:
    begin, end = _moment(value)
    tests: dict[str, Test] = {
        EQUAL: lambda ts: begin <= ts < end,
        LESS: lambda ts: ts < begin,
        MOST: lambda ts: ts < end,
        MORE: lambda ts: ts >= end,
        LEAST: lambda ts: ts >= begin,
    }
    return tests[operator]


def _ordered_test(operator: str, wanted: float) -> Test:
    tests: dict[str, Test] = {
        EQUAL: lambda value: value == wanted,
        LESS: lambda value: value < wanted,
        MOST: lambda value: value <= wanted,
        MORE: lambda value: value > wanted,
        LEAST: lambda value: value >= wanted,
    }
    return tests[operator]


def _test(kind: str, operator: str, value: str) -> Test:
    """What a positive operator asks of a value.  Raises ValueError for a value that is none."""
    if kind == "text":
        return _text_test(operator, value)
    if kind == "address":
        return _address_test(operator, value)
    if kind == "time":
        return _time_test(operator, value)
    if kind == "yesno":
        truth = _TRUTH[value.lower()]
        return lambda known: bool(known) is truth
    if kind == "seconds":
        return _ordered_test(operator, _scaled(value, _DURATION, _SECONDS))
    if kind == "octets":
        return _ordered_test(operator, _scaled(value, _SIZE, _OCTETS))
    return _ordered_test(operator, _number(value))


# expressions


@dataclass
class Comparison:
    """`code>=500`: the traces for which a value fits, once the tables were looked through."""

    name: str
    test: Test
    negated: bool
    fits: set[str] = field(default_factory=set)

    def holds(self, trace_id: str) -> bool:
        """Whether it holds for a message."""
        return (trace_id in self.fits) is not self.negated


@dataclass
class Junction:
    """`and`, `or` and `not` of others."""

    word: str
    parts: list["Comparison | Junction"]

    def holds(self, trace_id: str) -> bool:
        """Whether it holds for a message."""
        if self.word == "not":
            return not self.parts[0].holds(trace_id)
        return (all if self.word == "and" else any)(part.holds(trace_id) for part in self.parts)


class Where:
    """An expression that was understood."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionError, with the place, for what is none."""
        self.text = text
        self._comparisons: list[Comparison] = []
        self._tokens = list(_tokens(text))
        self._at = 0
        self._whole = self._expression(0)
        if self._token.kind != "end":
            raise self._error(f"`and` or `or` is missing before {self._token.text!r}")

    def traces(self, tables: Tables) -> set[str]:
        """Trace ids of the messages for which it holds.  One pass over each table that it asks about."""
        sessions: dict[str, list[Comparison]] = {}
        by_table: dict[str, list[tuple[Values, Comparison]]] = {}
        for comparison in self._comparisons:
            comparison.fits = set()
            for table, values in FIELDS[comparison.name].places:
                by_table.setdefault(table, []).append((values, comparison))
        for table in ("sessions", "anomalies"):
            for row in tables.rows(table) if table in by_table else ():
                for values, comparison in by_table[table]:
                    if _fits(values(row), comparison.test):
                        trace_id = getattr(row, "trace_id", None)
                        if trace_id is not None:
                            comparison.fits.add(trace_id)
                        elif row.session_id is not None:
                            sessions.setdefault(row.session_id, []).append(comparison)
        if sessions:
            for hop in tables.rows("hops"):
                for comparison in sessions.get(hop.session_id or "", ()):
                    comparison.fits.add(hop.trace_id)
        for table in ("messages", "hops", "recipients", "deliveries"):
            for row in tables.rows(table) if table in by_table else ():
                for values, comparison in by_table[table]:
                    if row.trace_id not in comparison.fits and _fits(values(row), comparison.test):
                        comparison.fits.add(row.trace_id)
        found = {row.trace_id for row in tables.rows("messages") if self._whole.holds(row.trace_id)}
        for comparison in self._comparisons:
            comparison.fits = set()
        return found

    # recursive descent

    @property
    def _token(self) -> "_Token":
        return self._tokens[self._at]

    def _word(self, *words: str) -> bool:
        """Take the next token if it is one of these."""
        if self._token.kind in ("word", "sign") and self._token.text.lower() in words:
            self._at += 1
            return True
        return False

    def _expression(self, depth: int) -> Comparison | Junction:
        parts = [self._conjunction(depth)]
        while self._word("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else Junction("or", parts)

    def _conjunction(self, depth: int) -> Comparison | Junction:
        parts = [self._term(depth)]
        while self._word("and"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Junction("and", parts)

    def _term(self, depth: int) -> Comparison | Junction:
        if depth > _DEPTH:
            raise self._error("too many parentheses within one another")
        if self._word("not"):
            return Junction("not", [self._term(depth + 1)])
        if self._word("("):
            inside = self._expression(depth + 1)
            if not self._word(")"):
                raise self._error("a closing parenthesis is missing here")
            return inside
        return self._comparison()

    def _comparison(self) -> Comparison:
        name = self._token
        if name.kind != "word":
            raise self._error("the expression ends here; a field is missing" if name.kind == "end" else "a field belongs here")
        known = FIELDS.get(name.text.lower())
        if known is None:
            raise self._error(f"no field {name.text!r}, {nearest(name.text.lower(), FIELDS)}")
        self._at += 1
        operator = self._token
        if operator.kind != "operator":
            if known.kind == "yesno":
                return self._made(name.text.lower(), _test("yesno", EQUAL, "yes"), False)
            raise self._error(f"an operator belongs after {name.text}: {' '.join(OPERATORS[known.kind])}")
        sign = EQUAL if operator.text == "==" else operator.text
        if sign not in OPERATORS[known.kind]:
            raise self._error(f"{name.text} takes {' '.join(OPERATORS[known.kind])}")
        self._at += 1
        value = self._token
        if value.kind not in ("word", "quoted"):
            raise self._error(f"a value belongs after {operator.text}")
        try:
            test = _test(known.kind, NEGATED.get(sign, sign), value.text)
        except (ValueError, KeyError, OverflowError):
            wanted = EXAMPLES.get(known.kind, "an address or network: 192.0.2.1, 2001:db8::/32")
            raise self._error(f"{name.text} is {wanted}") from None
        self._at += 1
        return self._made(name.text.lower(), test, sign in NEGATED)

    def _made(self, name: str, test: Test, negated: bool) -> Comparison:
        comparison = Comparison(name, test, negated)
        self._comparisons.append(comparison)
        return comparison

    def _error(self, what: str) -> ExpressionError:
        return ExpressionError(what, self.text, self._token.at, "fields: " + " ".join(FIELDS))


def _fits(values: Iterable[Any], test: Test) -> bool:
    return any(value is not None and test(value) for value in values)


class _Token(NamedTuple):
    kind: str
    """`word quoted operator sign end`."""
    text: str
    at: int


_SPACE = re.compile(r"\s*")
_OPERATOR = re.compile(r"!=|!~|<=|>=|==|=|<|>|~")
_WORD = re.compile(r"[^\s()\"'=<>~!]+")
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        found = _SPACE.match(text, at)
        at = found.end() if found else at
        if at == len(text):
            yield _Token("end", "", at)
            return
        quoted = _QUOTED.match(text, at)
        if quoted is not None:
            inside = quoted[1] if quoted[1] is not None else quoted[2]
            yield _Token("quoted", re.sub(r"\\(.)", r"\1", inside, flags=re.DOTALL), at)
            at = quoted.end()
        elif text[at] in "()":
            yield _Token("sign", text[at], at)
            at += 1
        elif (operator := _OPERATOR.match(text, at)) is not None:
            yield _Token("operator", operator[0], at)
            at = operator.end()
        elif (word := _WORD.match(text, at)) is not None:
            yield _Token("word", word[0], at)
            at = word.end()
        else:
            what = "this quote is not closed" if text[at] in "\"'" else f"{text[at]!r} is no operator"
            raise ExpressionError(what, text, at, "fields: " + " ".join(FIELDS))
