"""Losses, replies that do not come, and ends of data that only one side sees.

What the octets behind a loss are is told, in this order, by what the client had heard when it sent them, by where the
server's next reply falls, and last by their own look.
"""

import re

from analyzer.limits import Limits
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.message import MessageReader
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.dialogue import TLS_RECORD, Dialogue, Given
from analyzer.protocols.smtp.transaction import Reply, Transaction
from analyzer.protocols.smtp.vocabulary import (
    BLOB,
    COMMANDS,
    CUT_OFF,
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
_DATA_LINE = b"DATA\r\n"
_LINE_START = re.compile(rb"\n")
_PIECES = 1000
"""Pieces of a kept message that are copied at a hole."""
_AFTER = 300
"""Octets looked at behind what may be the end of a message."""


class Fork:
    """A place in a message at which another reader may have seen its end."""

    __slots__ = ("frame", "offset", "reader", "ts")

    def __init__(self, offset: int, reader: MessageReader, ts: int | None, frame: int | None) -> None:
        self.offset, self.reader, self.ts, self.frame = offset, reader, ts, frame


class Recovery(Dialogue):
    """A dialogue that goes on behind losses."""

    transaction: Transaction | None = None
    """The transaction that commands read now belong to."""
    left: int = 0
    """Octets still to come of a chunk or blob."""
    cut: bool = False
    """The client's line was cut: its rest comes as lines."""
    _behind: MessageReader | None = None  # the message as it was behind its last loss, at the first octet kept
    _ended_in_hole: bool = False
    _lost: int = 0  # client octets lost before what is looked at
    _torn: bool = False  # ... and with them the end of a line

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        super().__init__(conn, client_is_orig, limits)
        self.headless = self.lossy
        """Since the last loss between commands no MAIL was read, nor what would end a transaction."""
        self.forks: list[Fork] = []

    def conclude(self, transaction: Transaction, why: str, ts: int | None, frame: int | None) -> None:
        """The transaction is over: it is handed to mail/."""
        raise NotImplementedError

    # TLS begins

    def begin_tls(self) -> None:
        """From here on both directions are TLS records."""
        self.state = COMMANDS
        self.holes.clear()
        self.start_tls(self.client.ts_at(self.client.offset))
        self.read_replies()

    # a message begins and ends

    def receive(self, transaction: Transaction | None, reply: Reply | None) -> None:
        """Mail data follows."""
        if transaction is None:
            self.transaction = transaction = self.without_mail(None)
        if reply is not None:
            transaction.carried.ts_rcpt_done = reply.ts
        transaction.heard = reply.end if reply is not None else self.client.ack_at(self.client.offset)
        transaction.reader = MessageReader(self.limits)
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
        if not self.forks:
            self.forget_forks()

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
            if TLS_RECORD.match(inbox.buf, inbox.pos):
                self.state = TLS
        elif not grammar.LINE.match(inbox.buf, inbox.pos):
            if goes_on == DATA:
                self.receive(given.transaction, None)
            elif goes_on in (BLOB, RESPONSE):
                self.state = goes_on

    # losses between commands

    def lose_commands(self) -> bool:
        """Octets of the client are lost between its commands."""
        inbox = self.client
        self._torn = bool(inbox.available)
        if inbox.available and self.state == COMMANDS:  # a command without its end: there will be a reply to it
            begin, end = inbox.offset, inbox.offset + inbox.available
            ts, frame, ack, ts_end, _ = inbox.span(begin, end)
            given = Given(CUT_OFF, begin, end, ts, frame, ack, ts_end)
            given.hole, self.command_hole = self.command_hole, False
            self.waiting.append(given)
        self.cut = False
        if self.heard_354 is not None and self.heard_354.ack <= inbox.offset + inbox.available:
            self.heard_354 = None
        self._lost = inbox.take_gap()
        self.lossy = self.command_hole = self.headless = True
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
        if self.heard_354 is not None:
            return self._receive_blind()
        if TLS_RECORD.match(inbox.buf, inbox.pos):  # STARTTLS was lost, or the reply to it
            self.info.starttls = "used"
            self.begin_tls()
            return True
        self.state = COMMANDS if grammar.LINE.match(inbox.buf, inbox.pos) else LOOKING
        return True

    def look(self) -> bool:
        """Does the server's next reply come at the end of a body, or of a line?"""
        inbox = self.client
        if self.heard_354 is not None:
            return self._receive_blind()
        offset = inbox.offset
        reply = next((r for r in self.replies if r.ack < 0 or r.ack > offset), None)
        if not self.over() and (reply is None or reply.ack > offset + inbox.available):
            return False
        stop = inbox.available if reply is None or reply.ack < 0 else min(reply.ack - offset, inbox.available)
        octets = inbox.buf[inbox.pos : inbox.pos + stop]
        end = 0 if octets.startswith(b".\r\n") else octets.find(_END)
        found = next((m.end() for m in _LINE_START.finditer(octets) if grammar.LINE.match(octets, m.end())), None)
        if end >= 0 and (found is None or end < found or reply is not None):
            return self._receive_blind()
        if found is None and self.impatient and octets.count(b"\n") > 1:
            return self._receive_blind()
        self.state = LOST if found is None else COMMANDS
        self._torn = True
        inbox.take(stop if found is None else found)
        return True

    def _receive_blind(self) -> bool:
        """A message whose beginning was not seen."""
        inbox = self.client
        lost = self._lost_of_message()
        self.heard_354 = None
        self.impatient = False
        self.receive(self.transaction, None)
        transaction = self.receiving
        assert transaction is not None and transaction.reader is not None
        if lost:
            transaction.reader.gap(lost)
        if inbox.buf.startswith(b".\r\n", inbox.pos):
            inbox.take(3)
            self.end_data(transaction)
        else:
            self._behind = transaction.reader.copy()
            inbox.keep(self.client_is_orig)
        return True

    def _lost_of_message(self) -> int:
        """Octets of a message that the loss before it may have taken, -1: unknown; what came before the message is passed.

        A client that has heard the 354 begins where the server then was; and where no more was lost than DATA itself,
        nothing else was.
        """
        inbox, asked, lost, begin = self.client, self.heard_354, self._lost or -1, self.client.offset
        if asked is not None:
            inbox.take(max(asked.ack - begin, 0))
            if begin - max(lost, 0) < asked.ack and inbox.available and inbox.ack_at(inbox.offset) >= asked.end:
                return max(begin - asked.ack, 0)
        only_data = len(_DATA_LINE) - 1 <= lost <= len(_DATA_LINE) and not self._torn
        return 0 if only_data else lost

    # losses inside a message

    def cross_hole(self) -> bool:
        """Octets of a message are lost.  Its end with them?  Then the client had the reply to it when it went on."""
        inbox, transaction = self.client, self.receiving
        assert transaction is not None and transaction.reader is not None
        heard = inbox.ack_beyond_gap()
        if not self._known_to(heard):
            return False
        reply = next((r for r in self.replies if r.end <= heard and r.kind in (2, 4, 5)), None)
        if reply is not None and 0 <= reply.ack <= inbox.offset:
            return self._end_at(reply, transaction)
        self.forget_forks()
        self._lost = inbox.take_gap()
        if reply is None and heard >= 0 and not any(transaction.heard < hole <= heard for hole in self.holes):
            self._go_on_behind(transaction.reader)
        else:
            self.state = HOLE
            self._ended_in_hole = reply is not None
        return True

    def look_behind(self) -> bool:
        """A message has a hole, and perhaps its end was in it."""
        inbox, transaction = self.client, self.receiving
        assert transaction is not None and transaction.reader is not None
        if not self._ended_in_hole and not self.readable():
            return False
        if not self._ended_in_hole and not grammar.LINE.match(inbox.buf, inbox.pos):
            self._go_on_behind(transaction.reader)
            return True
        transaction.reader.gap(-1)
        self.end_data(transaction)
        self.lossy = self.command_hole = self.headless = True
        self.state = LOST
        return True

    def _go_on_behind(self, reader: MessageReader) -> None:
        """The message goes on behind the hole."""
        reader.gap(self._lost)
        self._behind = reader.copy() if reader.pieces < _PIECES else None
        self.client.keep(self.client_is_orig)
        self.state = DATA

    def check_end(self) -> bool:
        """Behind a loss, an end of data may be a later message's: had the server replied before?"""
        inbox, transaction = self.client, self.receiving
        assert transaction is not None
        heard = inbox.ack_at(inbox.offset - 1)
        if not self._known_to(heard):
            return False
        begin = inbox.kept[0].offset if inbox.kept else inbox.offset
        for reply in self.replies:
            if reply.end <= heard and reply.kind in (2, 4, 5) and begin < reply.ack < inbox.offset:
                self._read_again(transaction, begin, reply.ack)
                break
        transaction.data_done = True
        self.end_data(transaction)
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
        if self.transaction is not None:
            self.transaction.holed = True
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
        before, self.heard_354 = self.heard_354, reply if reply.code == 354 else None
        if super().unasked(reply):
            return True
        if self.client.seen and not self.lossy:
            return False
        if reply.code == 220 and self.info.ts_banner is None:
            self.greeted(reply)
        elif before is not None and reply.kind in (2, 4, 5) and self.receiving is None:
            transaction = self.transaction or self.without_mail(reply.frame)
            transaction.reader = MessageReader(self.limits)
            transaction.reader.gap(-1)
            transaction.finals.append((None, reply))
            self.conclude(transaction, "reply", None, None)
        elif self.transaction is not None and self.transaction.holed and self.transaction.reader is not None:
            self.transaction.final_lost = reply
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
        if inbox.kept is None:
            inbox.keep(self.client_is_orig)
        ts, frame, _ = inbox.segment_at(inbox.offset - 1)
        self.forks.append(Fork(inbox.offset, transaction.reader.fork(), ts, frame))
        transaction.suspect = True

    def forget_forks(self) -> None:
        """Only the standard's reading remains."""
        self.forks, self._behind = [], None
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
        return self._end_at(reply, transaction)

    def _end_at(self, reply: Reply, transaction: Transaction) -> bool:
        """The server has taken the message for ended where no end of data was seen."""
        if not self.go_back(reply, transaction):
            begin = self.client.kept[0].offset if self.client.kept else reply.ack
            if begin < reply.ack:
                self._read_again(transaction, begin, reply.ack)
            transaction.carried.ts_eom = self.client.ts_at(self.client.offset - 1)
            self.end_data(transaction)
            self.state = LOST
        return True

    def _read_again(self, transaction: Transaction, begin: int, end: int) -> None:
        """The message ended at `end`: what was read of it from `begin` on is read again."""
        reader = self._behind
        if reader is None:
            return
        self._return_to(begin)
        transaction.reader, self._behind = reader, None
        reader.feed_stuffed(self.client.take(end - begin))

    def _return_to(self, offset: int) -> None:
        """Unread the client's octets from here on."""
        kept, ended = self.client.kept or [], self.client.ended
        self.client = Inbox(self.limits)
        for chunk in kept:
            self.client.append(chunk)
        self.client.take(offset - self.client.offset)
        self.client.ended = ended

    def go_back(self, reply: Reply, transaction: Transaction) -> bool:
        """The reply shows that the message ended earlier: read again from there; False when there is no such place."""
        fork = self.likely_fork(reply)
        if fork is None:
            return False
        self._return_to(fork.offset)
        self.forks, self.split, self._behind = [], None, None
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
