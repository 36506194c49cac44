"""DNS over TCP: messages behind two octets of length (RFC 1035 4.2.2, RFC 7766)."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from analyzer.limits import Limits
from analyzer.protocols.base import Event, Malformed, Recognised, Session
from analyzer.protocols.dns.layout import HEADER
from analyzer.protocols.dns.message import OPCODES, Message, Question, read, read_question
from analyzer.protocols.dns.rows import fault, transaction
from analyzer.protocols.inbox import Inbox
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Connection

PORT = 53
_PREFIX = 2
_COUNT = 6
"""Where QDCOUNT is, seen from the length prefix."""
_SLACK = 10_000_000
"""Nanoseconds by which a capture may show an answer before its question."""
_TRANSFERS = ("AXFR", "IXFR")
_CLASSES = ("IN", "CH", "ANY", "NONE")


class _Seen(NamedTuple):
    """A message with the time and frame of its last octet."""

    ident: int
    message: Message
    ts: int
    frame: int | None


class _Side:
    """One direction: its octets, and whether the reader knows where a message begins."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.found = True
        self.need = _PREFIX
        """Octets that must have come before it is worth looking again."""
        self.wrong_lengths = 0


class TcpSession(Session):
    """Questions and answers of one connection; gives rows of `dns`, never a row of `sessions`."""

    protocol = "dns"

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        super().__init__(conn, client_is_orig, limits)
        self._sides = (_Side(self.client), _Side(self.server))
        self._asked: dict[tuple[int, bytes], deque[_Seen]] = {}
        self._answers: dict[tuple[int, bytes], deque[_Seen]] = {}
        self._held = [0, 0]
        """Questions and answers that wait."""
        self._transfers: dict[int, int] = {}
        """Identifiers of zone transfers under way, with the records of each so far."""

    def close(self, reason: str, ts: int) -> list[Event]:
        """The connection is over: what waits is unanswered, or its question was not seen."""
        self.client.ended = self.server.ended = True
        self.pump()
        self.finish(reason, ts)
        events, self.events = self.events, []
        return events

    def pump(self) -> None:
        """Read every message that is whole."""
        for side in self._sides:
            from_client = side is self._sides[0]
            for seen in self._messages(side):
                if seen.message.reply is from_client:
                    self._odd("dns_wrong_qr", "the QR bit contradicts the direction", seen.ts, seen.frame)
                if from_client:
                    self._question(seen)
                else:
                    self._answer(seen)

    def finish(self, reason: str, ts: int) -> None:
        """Show what has no counterpart."""
        bare = {key[0]: queue for key, queue in self._answers.items() if not key[1]}
        for (ident, _), questions in self._asked.items():
            for asked in questions:
                answers = bare.get(ident)
                self._show(asked, answers.popleft() if answers else None)
        for answers in self._answers.values():
            for answer in answers:
                self._show(None, answer)
        self._asked.clear()
        self._answers.clear()
        for side in self._sides:
            if side.wrong_lengths:
                detail = f"{side.wrong_lengths} length prefixes too small for a message"
                self._odd("dns_malformed", detail, ts, None)

    # framing

    def _messages(self, side: _Side) -> Iterator[_Seen]:
        inbox = side.inbox
        while True:
            if not side.found and inbox.available:
                side.found = _find(inbox)
            if side.found and inbox.available < side.need and not inbox.before_gap:
                return
            length = int.from_bytes(inbox.buf[inbox.pos : inbox.pos + _PREFIX], "big") if inbox.available >= _PREFIX else -1
            side.need = _PREFIX
            if side.found and 0 <= length < HEADER:
                side.wrong_lengths += 1
                inbox.take(_PREFIX)
                side.found = length == 0
            elif side.found and length >= HEADER and inbox.available >= _PREFIX + length:
                inbox.take(_PREFIX)
                yield from self._message(inbox, length)
            elif not inbox.before_gap:
                side.need = _PREFIX + max(length, 0)
                return
            else:
                yield from self._rest(side, length)
                if not inbox.has_gap:
                    return
                lost = inbox.take_gap()
                side.found = False
                if lost > 0:
                    self._odd(
                        "dns_messages_lost", f"{lost} octets are missing", inbox.ts_at(inbox.offset), inbox.frame_at(inbox.offset)
                    )

    def _rest(self, side: _Side, length: int) -> Iterator[_Seen]:
        """What is left before a gap or the end: perhaps the beginning of a message."""
        inbox = side.inbox
        if side.found and inbox.available > _PREFIX:
            inbox.take(_PREFIX)
            there = inbox.available
            if there < HEADER:
                ts, frame = inbox.ts_at(inbox.offset), inbox.frame_at(inbox.offset)
                self._odd("dns_cut", f"{there} of {length} octets of a message", ts, frame)
            else:
                yield from self._message(inbox, there, cut=inbox.has_gap)
        inbox.take(inbox.available)

    def _message(self, inbox: Inbox, length: int, cut: bool = False) -> Iterator[_Seen]:
        last = inbox.offset + length - 1
        ts, frame = inbox.ts_at(last) or 0, inbox.frame_at(last)
        wire = inbox.take(length)
        message = read(wire, self.limits)
        if message.fault is not None:
            self.events.append(fault(self.info.source, message, ts, frame, cut))
        if message.plausible:
            yield _Seen(wire[0] << 8 | wire[1], message, ts, frame)

    # pairing

    def _question(self, asked: _Seen) -> None:
        key = asked.ident, asked.message.key
        self._asked.setdefault(key, deque()).append(asked)
        self._held[0] += 1
        self._settle(key)
        if self._held[0] > self.limits.dns_waiting:
            self._give_up(self._asked, 0)

    def _answer(self, answer: _Seen) -> None:
        if self._continues(answer):
            return
        key = answer.ident, answer.message.key
        self._answers.setdefault(key, deque()).append(answer)
        self._held[1] += 1
        self._settle(key)
        if self._held[1] > self.limits.dns_waiting:
            self._give_up(self._answers, 1)

    def _continues(self, answer: _Seen) -> bool:
        """A further message of a zone transfer (RFC 5936 2.2): it belongs to the first, up to the closing SOA."""
        ident, message = answer.ident, answer.message
        records = self._transfers.get(ident)
        if records is None and message.qtype not in _TRANSFERS:
            return False
        if records is not None and message.questions and message.qtype not in _TRANSFERS:
            return False
        found = message.answers or []
        total = (records or 0) + len(found)
        if total > 1 and found and found[-1].split(" ", 2)[1] == "SOA":
            self._transfers.pop(ident, None)
        elif found:
            self._transfers[ident] = total
        return records is not None

    def _settle(self, key: tuple[int, bytes]) -> None:
        """The first question and the first answer of a key belong together, unless their times say otherwise."""
        questions, answers = self._asked.get(key), self._answers.get(key)
        while questions and answers:
            if answers[0].ts < questions[0].ts - _SLACK:
                self._show(None, self._pop(self._answers, 1, key))
            elif answers[0].ts - questions[0].ts > self.limits.dns_timeout:
                self._show(self._pop(self._asked, 0, key), None)
            else:
                self._show(self._pop(self._asked, 0, key), self._pop(self._answers, 1, key))

    def _pop(self, held: dict[tuple[int, bytes], deque[_Seen]], which: int, key: tuple[int, bytes]) -> _Seen:
        seen = held[key].popleft()
        self._held[which] -= 1
        if not held[key]:
            del held[key]
        return seen

    def _give_up(self, held: dict[tuple[int, bytes], deque[_Seen]], which: int) -> None:
        oldest = self._pop(held, which, next(iter(held)))
        self._show(*((oldest, None) if which == 0 else (None, oldest)))
        self._odd("dns_questions_dropped", f"more than {self.limits.dns_waiting} wait on one connection", oldest.ts, oldest.frame)

    def _show(self, asked: _Seen | None, answer: _Seen | None) -> None:
        """Rows of a question and its answer, or of either alone."""
        info, either = self.info, asked or answer
        assert either is not None
        questions: tuple[Question | None, ...] = (
            either.message.questions or (answer.message.questions if answer else ()) or (None,)
        )
        rtt = (answer.ts - asked.ts) / 1e9 if asked and answer and answer.ts >= asked.ts else None
        for one in questions:
            self.events.append(
                transaction(
                    info.source,
                    (info.client_ip, info.client_port, info.server_ip, info.server_port),
                    "tcp",
                    either.ident,
                    one,
                    (asked.message if asked else None, either.ts, asked.frame if asked else None, 0),
                    (answer.message if answer else None, *((answer.ts, answer.frame) if answer else (None, None)), rtt),
                )
            )

    def _odd(self, name: str, detail: str, ts: int | None, frame: int | None) -> None:
        self.events.append(Anomaly(ts, self.info.source, None, None, name, detail, frame))


def _find(inbox: Inbox) -> bool:
    """Step to the next place that reads as a length prefix, a header and a question; False when none has come yet.

    Any offset will do, so that the result does not hang on where segments or chunks begin.
    """
    buf, pos = inbox.buf, inbox.pos
    while True:
        one = buf.find(b"\0\1", pos + _COUNT)
        if one < 0:
            inbox.pos = max(inbox.pos, min(pos, len(buf)), len(buf) - _COUNT - 1)
            return False
        pos = one - _COUNT
        verdict = begins_message(buf[pos : pos + 300])
        if verdict is None and not inbox.before_gap:
            inbox.pos = pos
            return False
        if verdict:
            inbox.pos = pos
            return True
        pos += 1


def begins_message(octets: bytes) -> bool | None:
    """Whether octets begin with a length prefix and a believable message of one question; None: too few to tell."""
    if len(octets) < _PREFIX + HEADER + 5:
        return None
    length = octets[0] << 8 | octets[1]
    flags = octets[4] << 8 | octets[5]
    if length < HEADER + 5 or octets[6:8] != b"\0\1" or flags >> 11 & 15 not in OPCODES or flags & 0x40:
        return False
    try:
        question, end = read_question(octets[_PREFIX : _PREFIX + length], HEADER)
    except Malformed:
        return None if len(octets) < _PREFIX + min(length, HEADER + 260) and _may_go_on(octets) else False
    return end <= length and question.klass in _CLASSES and not question.type.startswith("TYPE")


def _may_go_on(octets: bytes) -> bool:
    """Whether the question's name is sound as far as it has come: labels, none compressed."""
    pos = _PREFIX + HEADER
    while pos < len(octets):
        if octets[pos] > 63:
            return False
        if octets[pos] == 0:
            return True
        pos += 1 + octets[pos]
    return pos <= _PREFIX + HEADER + 255


def probe(orig: bytes, resp: bytes, orig_port: int, resp_port: int, closing: bool) -> Recognised | None:
    """Port 53, or on any port a whole believable question behind its length."""
    for octets, from_orig in ((orig, True), (resp, False)):
        if begins_message(octets):
            answer = octets[4] >= 0x80
            usual = PORT in (orig_port, resp_port)
            if usual or len(octets) >= _PREFIX + (octets[0] << 8 | octets[1]):
                return Recognised("dns", from_orig is not answer)
    if PORT in (orig_port, resp_port) and (closing or max(len(orig), len(resp)) >= _PREFIX + HEADER + 5):
        return Recognised("dns", resp_port == PORT)
    return None
