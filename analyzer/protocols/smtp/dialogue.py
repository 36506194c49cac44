"""Replies meet commands: which command does each reply of the server answer?

Without a loss they are counted, and acknowledgements say when a reply cannot be an answer.  After a loss only the
acknowledgements tell: see `_align`.
"""

import re
from collections import deque
from itertools import islice

from analyzer.limits import Limits
from analyzer.protocols.base import Command, Event, Recipient
from analyzer.protocols.base import Session as BaseSession
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.transaction import REFUSED, Reply, Transaction
from analyzer.protocols.smtp.vocabulary import (
    BLOB,
    CHECKING,
    CHUNK,
    COMMANDS,
    DATA,
    END_OF_DATA,
    GREETING,
    HOLE,
    LOOKING,
    LOST,
    RESPONSE,
    WAITING,
    plausible,
)
from analyzer.wire.types import Chunk, Connection

TLS_RECORD = re.compile(rb"[\x14-\x17]\x03[\x00-\x04]")
"""How records of TLS begin (RFC 8446 5.1), with a handshake or behind it; no command or reply does."""
AHEAD = 20_000
"""Replies read ahead of the commands they answer."""
_HOLES = 1000
"""Losses in the server's octets that are remembered."""
_SURPLUS = 16
"""Replies to nothing that are named, per session."""
_WHOLE = re.compile(rb"(?:\d\d\d-[^\n]*\n)*(\d\d\d)(?: [^\n]*|\r)?\n")
"""A whole reply (RFC 5321 4.2)."""


class Given:
    """A command, or something else, that waits for its reply."""

    __slots__ = (
        "ack", "argument", "begin", "end", "frame", "hole", "last", "odd", "recipient", "stated", "transaction", "ts", "ts_end",
        "verb",
    )  # fmt: skip

    def __init__(self, verb: str, begin: int, end: int, ts: int | None, frame: int | None, ack: int, ts_end: int | None) -> None:
        self.verb = verb
        self.argument: str | None = None
        """As it may be shown."""
        self.begin, self.end = begin, end
        """Stream offsets of its first octet (for an end of data: just before the message) and behind its last."""
        self.ts, self.frame, self.ts_end = ts, frame, ts_end
        self.ack = ack
        """Server octets that the client had when it sent this, -1 unknown."""
        self.transaction: Transaction | None = None
        self.recipient: Recipient | None = None
        self.odd: list[tuple[str, str]] | None = None
        """(anomaly name, detail) of what is odd about it, told before its row."""
        self.stated: str | None = None
        """The address that XCLIENT or XFORWARD states."""
        self.last = False
        """BDAT or BURL with LAST: its reply is the transaction's."""
        self.hole = False
        """Commands before it may be lost."""

    def remark(self, name: str, detail: str) -> None:
        """Something odd about it."""
        self.odd = [*(self.odd or ()), (name, detail)]


class Dialogue(BaseSession):
    """Both directions of a session, as replies and commands."""

    protocol = "smtp"

    # Where a session begins; an instance holds only what has changed.
    state: str = COMMANDS
    """What the client's next octets are."""
    awaited: Given | None = None
    """The command whose reply tells how to read on."""
    chunk: Given | None = None
    """The BDAT whose octets are being read."""
    receiving: Transaction | None = None
    """The transaction whose mail data is being read."""
    split: Transaction | None = None
    """A message that may have been two, until the next reply tells."""
    impatient: bool = False
    """More octets are held than the limit: what has not come by now is taken for lost."""
    heard_354: Reply | None = None
    """The last reply to a lost command, when it was 354."""
    farewell: Reply | None = None
    """A refusal that answers nothing: the server ends the session."""
    _broken: bool = False  # the next line of the server may lack its beginning
    _skip: bool = False  # the server's line was cut: its rest comes as lines
    _partial: Reply | None = None
    _previous: Reply | None = None  # the last reply given to a command

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        super().__init__(conn, client_is_orig, limits)
        self.replies: deque[Reply] = deque()
        """Replies that are not yet given to a command."""
        self.waiting: deque[Given] = deque()
        """What waits for a reply, oldest first."""
        self.lossy = conn.start != "handshake"
        """Not everything that was said is in the capture."""
        self.holes: list[int] = []
        """Stream offsets behind the losses in the server's octets."""
        self.surplus: list[Reply] = []
        """The first replies to nothing that was seen."""
        self._reply_hole = self.command_hole = self.lossy
        if self.lossy:
            self.state = LOST
        else:
            self.waiting.append(Given(GREETING, -1, 0, None, None, 0, None))

    def feed(self, *chunks: Chunk) -> list[Event]:
        """Take ordered octets, each chunk of one direction; return what they complete."""
        limits = self.limits
        self.impatient = self.client.held > limits.waiting_bytes or self.server.held > limits.waiting_bytes
        if self.client.kept_octets > limits.waiting_bytes:
            self.forget_forks()
        return super().feed(*chunks)

    # what the session makes of it

    def answer(self, given: Given, reply: Reply) -> bool:
        """A command has its reply; False when the exchange goes on."""
        raise NotImplementedError

    def unanswered(self, given: Given, lost: bool = True) -> None:
        """The reply to this will not be seen: it was lost, or there was none."""
        raise NotImplementedError

    def final(self, transaction: Transaction, reply: Reply | None) -> bool:
        """A reply after the data, or that it was not seen; whether more are to come."""
        raise NotImplementedError

    def go_back(self, reply: Reply, transaction: Transaction) -> bool:
        """The reply shows that the message ended earlier: read again from there; False when there is no such place."""
        raise NotImplementedError

    def forget_forks(self) -> None:
        """Only the standard's reading of the message remains."""
        raise NotImplementedError

    def release(self) -> None:
        """The message that might have been two was one."""
        raise NotImplementedError

    # the server's octets

    def read_replies(self, enough: int = AHEAD) -> None:
        """reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF (RFC 5321 4.2)

        Reads on until `enough` are at hand.
        """
        inbox = self.server
        while len(self.replies) < enough and not (
            inbox.available and TLS_RECORD.match(inbox.buf, inbox.pos)
        ):  # else it waits for the client's STARTTLS
            if not inbox.has_line():
                if not inbox.has_gap:
                    return
                self._lose_reply(inbox)
                continue
            buf, pos = inbox.buf, inbox.pos
            found = None if self._partial is not None or self._skip or self._broken else _WHOLE.match(buf, pos)
            if found is None or found.end() - pos > self.limits.line_bytes:
                self._read_reply_line(inbox)
                continue
            end = found.end()
            stop = inbox.base + end
            ts_first, _, ack, ts, frame = inbox.span(inbox.base + pos, stop)
            inbox.pos = end
            if found.start(1) == pos:
                lines = [buf[pos + 4 : end - 2 if buf[end - 2] == 13 else end - 1]]
            else:
                whole = buf[pos : end - 1].split(b"\n")[: self.limits.argument_chars]
                lines = [line[4:-1] if line.endswith(b"\r") else line[4:] for line in whole]
            reply = Reply(int(found[1]), lines, stop - end + pos, stop, ts_first, ack, self._reply_hole)
            reply.ts, reply.frame = ts, frame
            self._reply_hole = False
            self.replies.append(reply)

    def _read_reply_line(self, inbox: Inbox) -> None:
        """One line of a reply that is not here as a whole, or not as it should be."""
        begin = inbox.offset
        line = inbox.line()
        assert line is not None
        skip, self._skip = self._skip, inbox.cut
        if skip:
            return
        ts, frame, ack = inbox.segment_at(begin)
        if self._broken:
            self._broken = False
            if not grammar.REPLY.match(line):
                return
        if inbox.cut:
            self.weird("line_too_long", "a reply line of the server", ts, frame)
        code, mark = line[:3], line[3:4]
        coded = len(code) == 3 and code.isdigit() and mark in (b" ", b"-", b"")
        reply, inside = self._partial, self._partial is not None
        if reply is None:
            reply = Reply(None, [], begin, begin, ts, ack, self._reply_hole)
            self._reply_hole = False
        if coded:
            reply.coded(int(code))
        if len(reply.lines) < self.limits.argument_chars:
            reply.lines.append(line[4:] if coded else line)
        if mark == b"-" if coded else inside:
            self._partial = reply
            return
        self._partial = None
        reply.end = inbox.offset
        reply.ts, reply.frame, _ = inbox.segment_at(reply.end - 1)
        self.replies.append(reply)

    def _lose_reply(self, inbox: Inbox) -> None:
        """Octets of the server are lost."""
        self._partial = None
        inbox.take_gap()
        if len(self.holes) >= _HOLES:
            del self.holes[: _HOLES // 2]
        self.holes.append(inbox.offset)
        self.lossy = self._reply_hole = self._broken = True
        self._skip = False

    # pairing

    def pair(self) -> bool:
        """Give replies to what they answer; whether anything moved."""
        moved = False
        replies, waiting = self.replies, self.waiting
        while replies:
            reply = replies[0]
            if not waiting:
                if not self._answers_nothing(reply):
                    break
            else:
                given = waiting[0]
                if reply.hole or given.hole:
                    if not self._align(reply):
                        break
                    moved = True
                    continue
                if given is self.awaited and self.state in (RESPONSE, BLOB) and not self.over():
                    break  # the client's part of the exchange comes first
                if reply.ack > given.begin or reply.ack < 0:
                    if self.split is not None:
                        if not plausible(given.verb, reply.code) and self.go_back(reply, self.split):
                            return True
                        self.release()
                    replies.popleft()
                    moved = True
                    if not self.answer(given, reply):
                        break
                    waiting.popleft()
                    continue
            if self.unasked(reply):
                return True
            replies.popleft()
            moved = True
        return moved

    def _answers_nothing(self, reply: Reply) -> bool:
        """With no command waiting: whether the server had nothing to answer when it said this."""
        if self.state in (DATA, HOLE, CHECKING, LOST, LOOKING, CHUNK):
            return False
        return self.impatient or 0 <= reply.ack <= self.client.offset

    def unasked(self, reply: Reply) -> bool:
        """A reply to nothing that was seen; True when it proves that a message was two, and is to be read again."""
        if self.split is not None and reply.code != 421 and self.go_back(reply, self.split):
            return True
        if reply.kind in REFUSED:
            self.farewell = reply
        if len(self.surplus) < _SURPLUS:
            self.surplus.append(reply)
        return False

    def _align(self, first: Reply) -> bool:
        """After a loss: which commands do the replies at hand answer?  False while that cannot be told yet.

        The group is what the client sent before it heard the first of these replies.  What it had heard when it went on
        answers the group's last commands: so many of the first were answered in the hole.
        """
        replies, waiting = self.replies, self.waiting
        if not self.over() and not self._all_read(first):
            return False
        group = len(waiting) if _together(waiting[-1], first) else sum(1 for given in waiting if _together(given, first))
        if not group:  # it was given before the server had any of these: it answers a lost command
            if not self.unasked(first):
                replies.popleft()
            return True
        heard = self._heard_after(group)
        if (heard is None or heard > self.server.offset) and not self.over():
            return False
        behind, lossless = waiting[0].hole, not first.hole
        first.hole = waiting[0].hole = False
        wanted = sum(self._expected(given) for given in islice(waiting, group))
        bound = heard if heard is not None and heard >= 0 else None
        count = min(len(replies), wanted) if bound is None else sum(1 for r in replies if r.end <= bound)
        if not count and lossless:
            return True  # the client did not wait, and no answer was lost
        if not count:
            return self._none_heard(first, group, behind)
        for _ in range(count - wanted):
            self.unasked(replies.popleft())
        for _ in range(wanted - count):
            self._lose_answer(waiting[0])
        return True

    def _all_read(self, first: Reply) -> bool:
        """All commands that the server had when it gave this reply are read."""
        if self.chunk is not None:
            return not _together(self.chunk, first)
        if self.receiving is not None and first.ack >= self.receiving.data_begin:
            return False
        return first.ack <= self.client.offset or self.state == WAITING

    def _expected(self, given: Given) -> int:
        """Replies that this calls for."""
        transaction = given.transaction
        if self.info.protocol == "lmtp" and transaction is not None and (given.last or given.verb == END_OF_DATA):
            wanted = transaction.wanted if transaction.wanted is not None else transaction.accepted_recipients()
            return max(len(wanted) - len(transaction.finals), 1)
        return 1

    def _none_heard(self, first: Reply, group: int, behind: bool) -> bool:
        """The client went on without any of these replies: all answers to the group were lost."""
        first.hole = True
        if self.awaited is not None and any(given is self.awaited for given in islice(self.waiting, group)):
            self.waiting[0].hole = behind
            return False  # its answer decides how to read on: who waits for it sees to it
        for _ in range(group):
            self.unanswered(self.waiting.popleft())
        return True

    def _lose_answer(self, given: Given) -> None:
        """One reply to the command that waits longest was lost."""
        if given.transaction is not None and self._expected(given) > 1:
            self.final(given.transaction, None)
        else:
            self.unanswered(self.waiting.popleft())

    def _heard_after(self, count: int) -> int | None:
        """Server octets the client had when it went on after so many waiting commands; None when it has not yet."""
        if count < len(self.waiting):
            return self.waiting[count].ack
        if self.chunk is not None:
            return self.chunk.ack
        if self.client.available:
            return self.client.ack_at(self.client.offset)
        return None

    def over(self) -> bool:
        """Nothing more will come, or no more can be waited for."""
        return self.impatient or self.client.ended

    def show(self, given: Given, reply: Reply | None) -> None:
        """A command's row."""
        previous = self._previous
        if reply is not None:
            self._previous = reply
        if given.odd:
            for name, detail in given.odd:
                self.weird(name, detail, given.ts, given.frame)
            given.odd = None
        verb = given.verb
        if verb[:1] == "(":
            return
        pipelined = False
        if previous is not None and given.begin > 0:
            if given.ack >= 0:
                pipelined = given.ack <= previous.begin
            elif given.ts is not None and previous.ts_first is not None:
                pipelined = given.ts < previous.ts_first
        info = self.info
        info.commands = n = info.commands + 1
        if reply is None:
            row = Command(
                info.session_id, n, given.ts, None, None, info.protocol, None, verb, given.argument, None, None, None,
                pipelined, given.frame, None,
            )  # fmt: skip
        else:
            told = reply.told or reply.text(self.limits.argument_chars)
            begun, asked = reply.ts_first, given.ts_end
            latency = (begun - asked) / 1e9 if begun is not None and asked is not None else None
            code = reply.code
            status = None if code is None else str(code) if code > 99 else f"{code:03}"
            row = Command(
                info.session_id, n, given.ts, reply.ts, latency, info.protocol, None, verb, given.argument, status,
                reply.enhanced, told, pipelined, given.frame, reply.frame,
            )  # fmt: skip
        self.events.append(row)


def _together(given: Given, first: Reply) -> bool:
    """The command had reached the server, and the client had not heard this reply when it sent it."""
    return given.ack <= first.begin and (first.ack < 0 or given.begin < first.ack)
