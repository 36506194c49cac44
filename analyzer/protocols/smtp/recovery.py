"""Losses, replies that do not come, and ends of data that only one side sees.

What the octets behind a loss are is told, in this order, by what the client had heard when it sent them, by where the
server's next reply falls, and last by their own look.
"""

import re

from analyzer.limits import Limits
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.message import MessageReader
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.dialogue import TLS_HANDSHAKE, Dialogue, Given
from analyzer.protocols.smtp.transaction import Reply, Transaction
from analyzer.protocols.smtp.vocabulary import (
    BLOB,
    COMMANDS,
    DATA,
    END_OF_DATA,
    HOLE,
    LOOKING,
    LOST,
    NEXT,
    RESPONSE,
    TLS,
)
from analyzer.wire.types import Connection

_END = b"\r\n.\r\n"
_LINE_START = re.compile(rb"\n")
_AFTER = 300
"""Octets looked at behind what may be the end of a message."""


class Fork:
    """A place in a message at which another reader may have seen its end."""

    __slots__ = ("frame", "offset", "reader", "ts")

    def __init__(self, offset: int, reader: MessageReader, ts: int | None, frame: int | None) -> None:
        self.offset, self.reader, self.ts, self.frame = offset, reader, ts, frame


class Recovery(Dialogue):
    """A dialogue that goes on behind losses."""

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        super().__init__(conn, client_is_orig, limits)
        self.keep_raw = False
        """Keep whole messages (for extraction)."""
        self.transaction: Transaction | None = None
        """The transaction that commands read now belong to."""
        self.receiving: Transaction | None = None
        """The transaction whose mail data is being read."""
        self.chunk: Given | None = None
        """The BDAT whose octets are being read."""
        self.left = 0
        """Octets still to come of a chunk or blob."""
        self.cut = False
        """The client's line was cut: its rest comes as lines."""
        self.headless = self.lossy
        """Since the last loss between commands no MAIL was read, nor what would end a transaction."""
        self.forks: list[Fork] = []
        self._lost = 0  # client octets lost before what is looked at

    def conclude(self, transaction: Transaction, why: str, ts: int | None, frame: int | None) -> None:
        """The transaction is over: it is handed to mail/."""
        raise NotImplementedError

    # TLS begins

    def begin_tls(self) -> None:
        """From here on both directions are TLS records."""
        self.state = COMMANDS
        self.holes.clear()
        self.start_tls(self.client.ts_at(self.client.offset))

    # a message begins and ends

    def receive(self, transaction: Transaction | None, reply: Reply | None) -> None:
        """Mail data follows."""
        if transaction is None:
            self.transaction = transaction = self.without_mail(self.client.frame_at(self.client.offset))
        if reply is not None:
            transaction.carried.ts_rcpt_done = reply.ts
        transaction.reader = MessageReader(self.limits, self.keep_raw)
        transaction.reader.watch_ends()
        transaction.data_begin = self.client.offset
        self.receiving = transaction
        self.state = DATA

    def without_mail(self, frame: int | None) -> Transaction:
        """A transaction whose MAIL was not seen."""
        transaction = Transaction(self.info, None, frame, self.limits.argument_chars)
        transaction.unseen = True
        return transaction

    def end_data(self, transaction: Transaction) -> None:
        """The client has given its message: its reply, or its replies, are to come."""
        inbox = self.client
        end = inbox.offset
        ts, frame, ack = inbox.segment_at(end - 1)
        if transaction.data_done:
            transaction.carried.ts_eom = ts
        given = Given(END_OF_DATA, transaction.data_begin - 1, end, ts, frame, ack, ts)
        given.transaction = transaction
        self.waiting.append(given)
        self.transaction = self.receiving = None
        self.state = COMMANDS

    # replies that do not come

    def wait(self) -> bool:
        """The reply decides what the client's octets are; when it is lost, they must tell themselves."""
        awaited, inbox = self.awaited, self.client
        if awaited is None:
            self.state = COMMANDS
            return True
        if self.impatient or self.server.ended:
            if not inbox.available and not inbox.has_gap:
                return False
        elif not self._passed_over(awaited):
            return False
        if not self.readable():
            return False
        self.impatient = False
        self.weird("reply_not_seen", f"the reply to {awaited.verb}", awaited.ts, awaited.frame)
        while self.waiting:
            given = self.waiting.popleft()
            self.unanswered(given)
            if given is awaited:
                break
        self.guess(awaited)
        return True

    def _passed_over(self, awaited: Given) -> bool:
        """The client went on, and there was a loss where the reply should have been."""
        if not self.holes or not self.client.available:
            return False
        heard = self.client.ack_at(self.client.offset)
        if self.server.offset < heard or not any(awaited.ack < hole <= heard for hole in self.holes):
            return False
        return not any(reply.end <= heard for reply in self.replies)

    def readable(self) -> bool:
        """Enough of the client's octets are there to tell what they are."""
        return self.client.has_line() or self.client.before_gap

    def guess(self, given: Given) -> None:
        """What the client sends shows what the reply was."""
        inbox = self.client
        self.awaited = None
        self.state = COMMANDS
        goes_on = NEXT.get((given.verb, 3)) or NEXT.get((given.verb, 2), COMMANDS)
        if goes_on == TLS:
            if inbox.available and inbox.buf[inbox.pos] == 0x16:
                self.state = TLS
        elif not grammar.LINE.match(inbox.buf, inbox.pos):
            if goes_on == DATA:
                self.receive(given.transaction, None)
            elif goes_on in (BLOB, RESPONSE):
                self.state = goes_on

    # losses between commands

    def lose_commands(self) -> bool:
        """Octets of the client are lost between its commands."""
        self.cut = False
        self._lost = self.client.take_gap()
        self.lossy = self.command_hole = self.headless = True
        self.heard_354 = False
        self.awaited = None
        if self.transaction is not None:
            self.transaction.holed = True
        self.state = LOST
        return True

    def _known_to(self, heard: int) -> bool:
        """The server's octets that the client had heard are all read, or will not come."""
        return heard <= self.server.offset or self.impatient or self.server.ended

    def find_step(self) -> bool:
        """Commands were lost: is this the next one, or has a message begun meanwhile?"""
        inbox = self.client
        if not inbox.available:
            return self.lose_commands() if inbox.has_gap else False
        heard = inbox.ack_at(inbox.offset)
        if not self._known_to(heard) or not (self.readable() or self.over()):
            return False
        while self.replies and not self.waiting and (self.replies[0].end <= heard or 0 <= self.replies[0].ack <= inbox.offset):
            self.unasked(self.replies.popleft())
        if self.heard_354:
            return self._receive_blind()
        if inbox.buf[inbox.pos] == TLS_HANDSHAKE:  # STARTTLS was lost
            self.info.starttls = "used"
            self.begin_tls()
            return True
        self.state = COMMANDS if grammar.LINE.match(inbox.buf, inbox.pos) else LOOKING
        return True

    def look(self) -> bool:
        """Does the server's next reply come at the end of a body, or of a line?"""
        inbox = self.client
        offset = inbox.offset
        reply = next((r for r in self.replies if r.ack < 0 or r.ack > offset), None)
        if not self.over() and (reply is None or reply.ack > offset + inbox.available):
            return False
        buf, pos = inbox.buf, inbox.pos
        end = pos if buf.startswith(b".\r\n", pos) else buf.find(_END, pos)
        body_end = offset + end - pos + (3 if end == pos else 5)
        if reply is not None and reply.ack >= 0 and end >= 0 and body_end <= reply.ack:
            return self._receive_blind()
        found = next((m.end() for m in _LINE_START.finditer(buf, pos) if grammar.LINE.match(buf, m.end())), None)
        if end >= 0 and (found is None or end < found):
            return self._receive_blind()
        if found is not None:
            inbox.pos = found
            self.state = COMMANDS
            return True
        if self.impatient and buf.count(b"\n", pos) > 1:
            return self._receive_blind()
        self.state = LOST
        if reply is not None and reply.ack > offset:
            inbox.take(reply.ack - offset)
        else:
            inbox.pos = len(buf)
        return True

    def _receive_blind(self) -> bool:
        """A message whose beginning was not seen."""
        inbox = self.client
        self.heard_354 = self.impatient = False
        self.receive(self.transaction, None)
        transaction = self.receiving
        assert transaction is not None and transaction.reader is not None
        transaction.reader.gap(self._lost)
        if inbox.buf.startswith(b".\r\n", inbox.pos):
            inbox.take(3)
            self.end_data(transaction)
        return True

    # losses inside a message

    def lose_data(self) -> bool:
        """Octets of a message are lost: perhaps its end with them."""
        self.forget_forks()
        self._lost = self.client.take_gap()
        self.state = HOLE
        return True

    def cross_hole(self) -> bool:
        """Was the end of the message lost?  Then the client had the reply to it when it went on."""
        inbox, transaction = self.client, self.receiving
        assert transaction is not None and transaction.reader is not None
        heard = inbox.ack_at(inbox.offset)
        if not self._known_to(heard):
            return False
        ended = any(reply.end <= heard and reply.kind in (2, 4, 5) for reply in self.replies)
        if not ended and (heard < 0 or self.holes):
            if not self.readable():
                return False
            ended = grammar.LINE.match(inbox.buf, inbox.pos) is not None
        transaction.reader.gap(-1 if ended else self._lost)
        self.state = DATA
        if ended:
            self.end_data(transaction)
            self.lossy = self.command_hole = self.headless = True
            self.state = LOST
        return True

    def lose_chunk(self, given: Given, reader: MessageReader | None) -> bool:
        """Octets of a chunk are lost: counted, as the others are."""
        lost = self.client.take_gap()
        if 0 <= lost <= self.left:
            self.left -= lost
            if reader is not None:
                reader.gap(lost)
            return True
        if reader is not None:
            reader.gap(-1)
        self.left, self._lost = 0, lost
        self.end_chunk(given, False)
        self.lossy = self.command_hole = self.headless = True
        self.state = LOST
        return True

    def end_chunk(self, given: Given, whole: bool) -> None:
        """The octets of a BDAT have passed; its reply is to come."""
        transaction = given.transaction
        if transaction is not None and given.last:
            transaction.carried.ts_eom = self.client.ts_at(self.client.offset - 1)
            transaction.data_done = whole
            if transaction is self.transaction:
                self.transaction = None
        self.waiting.append(given)
        self.chunk = None
        self.state = COMMANDS

    # replies to what was lost

    def unasked(self, reply: Reply) -> bool:
        """A reply to nothing that was seen; behind a loss, still the server's word on a message."""
        before, self.heard_354 = self.heard_354, reply.code == 354
        if super().unasked(reply):
            return True
        if self.client.seen and not self.lossy:
            return False
        if reply.code == 220 and self.info.ts_banner is None:
            self.greeted(reply)
        elif before and reply.kind in (2, 4, 5) and self.receiving is None:
            transaction = self.transaction or self.without_mail(reply.frame)
            transaction.reader = MessageReader(self.limits, self.keep_raw)
            transaction.reader.gap(-1)
            transaction.finals.append((None, reply))
            self.conclude(transaction, "reply", None, None)
        return False

    def greeted(self, reply: Reply) -> None:
        """The server has opened the session (RFC 5321 3.1)."""
        raise NotImplementedError

    def flush_replies(self) -> None:
        """What the server said to nothing that was seen."""
        while self.replies:
            self.unasked(self.replies.popleft())

    # ends of data that only some see

    def fork(self, transaction: Transaction, buf: bytes, at: int) -> None:
        """Another reader may have seen the end of the message here, and commands behind it: keep both ways open."""
        inbox = self.client
        assert transaction.reader is not None
        if not _may_go_on(buf[at : at + _AFTER]):
            return
        if not self.forks:
            inbox.keep(self.client_is_orig)
        ts, frame, _ = inbox.segment_at(inbox.offset - 1)
        self.forks.append(Fork(inbox.offset, transaction.reader.fork(), ts, frame))
        transaction.suspect = True

    def forget_forks(self) -> None:
        """Only the standard's reading remains."""
        self.forks = []
        self.client.kept, self.client.kept_octets = None, 0

    def likely_fork(self, reply: Reply | None) -> Fork | None:
        """The first fork behind which a command, or nothing, stands; with a reply, one that the server had reached."""
        for fork in self.forks:
            if reply is not None and 0 <= reply.ack < fork.offset:
                continue
            following = b""
            for chunk in self.client.kept or ():
                if chunk.offset + len(chunk.data) > fork.offset and len(following) < _AFTER:
                    begin = max(fork.offset - chunk.offset, 0)
                    following += chunk.data[begin : begin + _AFTER]
            if _may_go_on(following):
                return fork
        return None

    def ended_early(self, transaction: Transaction) -> bool:
        """All was read, no end of data; has the server replied as if it had seen one?"""
        if not self.replies:
            return False
        reply = self.replies[0]
        if reply.kind != 2 or reply.ack > self.client.offset or (reply.ack < 0 and not self.client.ended):
            return False
        if not self.go_back(reply, transaction):
            self.end_data(transaction)
            self.state = LOST
        return True

    def go_back(self, reply: Reply, transaction: Transaction) -> bool:
        """The reply shows that the message ended earlier: read again from there; False when there is no such place."""
        fork = self.likely_fork(reply)
        if fork is None:
            return False
        kept, ended = self.client.kept or [], self.client.ended
        self.client = Inbox(self.limits)
        for chunk in kept:
            self.client.append(chunk)
        self.client.take(fork.offset - self.client.offset)
        self.client.ended = ended
        self.forks, self.split = [], None
        self.waiting.clear()
        self.awaited = self.chunk = None
        detail = f"the server's replies show that it took octet {fork.offset} of the client for the end of a message"
        self.weird("smuggling_suspect", detail, fork.ts, fork.frame)
        transaction.reader, transaction.data_done = fork.reader, True
        self.end_data(transaction)
        transaction.carried.ts_eom = fork.ts
        if transaction.finals:
            self.waiting.clear()
            self.conclude(transaction, "reply", None, None)
        return True

    def release(self) -> None:
        """The message that might have been two was one."""
        transaction, self.split = self.split, None
        fork = self.likely_fork(None)
        if fork is not None:
            detail = f"octet {fork.offset} of the client looks like the end of a message, commands follow it"
            self.weird("smuggling_suspect", detail, fork.ts, fork.frame)
        self.forget_forks()
        if transaction is not None:
            self.conclude(transaction, "reply", None, None)


def _may_go_on(octets: bytes) -> bool:
    """A command follows, or nothing yet, or what may become a command."""
    return bool(grammar.LINE.match(octets)) or (b"\n" not in octets and bool(grammar.BEGINNING.match(octets)))
