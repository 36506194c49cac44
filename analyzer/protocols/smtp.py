"""SMTP (RFC 5321) and LMTP (RFC 2033): a client hands a server messages, and the server says what becomes of them.

With PIPELINING (RFC 2920), CHUNKING (RFC 3030), AUTH (RFC 4954), STARTTLS (RFC 3207), XCLIENT, XFORWARD, the PROXY
protocol and Exchange's XEXCH50.

Rules of this file:
1. The server's octets are replies whatever the client says; the client's octets are read as far as the replies tell
   what they are: only the commands of `NEXT` are waited for.
2. A reply belongs to a command by what its segment acknowledges, then by count.  A reply sent before the server had the
   command's first octet does not answer it.
3. A body ends at CRLF . CRLF.  Another end is believed only when the server's replies prove that it saw it.
4. After a loss, replies belong to the last commands of the group that the client sent before it heard them; what the
   client had acknowledged tells what it had heard.  Lines of a body are never read as commands.
5. Secrets: of AUTH the mechanism and the user's name are kept; a line that may be a SASL response is never shown.
"""

import re
from collections import deque
from collections.abc import Callable

from analyzer.limits import Limits
from analyzer.protocols import access
from analyzer.protocols import smtp_grammar as grammar
from analyzer.protocols.base import Command, Event, Malformed, Recipient, Recognised
from analyzer.protocols.base import Session as BaseSession
from analyzer.protocols.base import text as as_text
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.message import MessageReader
from analyzer.protocols.queue_ids import software
from analyzer.protocols.smtp_transaction import REFUSED, Reply, Transaction
from analyzer.wire.types import Chunk, Connection

# -- vocabulary and states -------------------------------------------------------------------------------------------------

COMMANDS, WAITING, DATA, CHUNK, RESPONSE, BLOB, TLS, PREFACE, LOST, HOLE, DEAF = (
    "commands", "waiting", "data", "chunk", "response", "blob", "tls", "preface", "lost", "hole", "deaf",
)  # fmt: skip

NEXT: dict[tuple[str, int], str] = {
    # (command answered, reply class) -> what the client's next octets are; COMMANDS when not listed
    ("DATA", 3): DATA,  # RFC 5321 4.1.1.4
    ("AUTH", 3): RESPONSE,  # RFC 4954 4
    ("X-EXPS", 3): RESPONSE,
    ("STARTTLS", 2): TLS,  # RFC 3207 4
    ("X-ANONYMOUSTLS", 2): TLS,
    ("XEXCH50", 3): BLOB,
    ("TURN", 2): DEAF,  # the roles are reversed (RFC 2645 5.3)
    ("ATRN", 2): DEAF,
}
AWAITED = frozenset(verb for verb, _ in NEXT)
GREETING, END_OF_DATA, END_OF_BLOB, STRAY = "(greeting)", "(end of data)", "(end of blob)", "(stray)"
"""What else is answered by a reply; never shown."""
HELLO = frozenset(("EHLO", "HELO", "LHLO"))
ENDS = HELLO | {"RSET", "QUIT", "STARTTLS", "X-ANONYMOUSTLS", "XCLIENT", "TURN", "ATRN"}
"""Commands that end the transaction that is open (RFC 5321 4.1.4, 4.1.1.5)."""
PLAUSIBLE = {"DATA": (3, 4, 5), "AUTH": (2, 3, 4, 5), "X-EXPS": (2, 3, 4, 5), "XEXCH50": (2, 3, 4, 5)}
"""Reply classes by command; (2, 4, 5) for the others."""

_DOMAIN = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?\.?\Z|\[[0-9A-Za-z:.]+\]\Z")
_ODD = re.compile(rb"[^A-Za-z-]")
_LINE_STARTS = re.compile(rb"\n")
_SASL_REPLIES = frozenset((235, 334, 432, 534, 535, 538))
_BODY_END = b"\r\n.\r\n"


class Given:
    """A command, or something else, that waits for its reply."""

    __slots__ = (
        "ack", "argument", "begin", "end", "frame", "last", "note", "pipelined", "recipient", "transaction", "ts", "ts_end",
        "verb",
    )  # fmt: skip

    def __init__(
        self, verb: str, argument: str | None, begin: int, end: int, ts: int | None, frame: int | None, ack: int
    ) -> None:
        self.verb, self.argument = verb, argument
        self.begin, self.end = begin, end
        """Stream offsets of its first octet (for an end of data: just before the message) and behind its last."""
        self.ts, self.frame = ts, frame
        self.ts_end = ts
        self.ack = ack
        """Server octets that the client had when it sent this, -1 unknown."""
        self.transaction: Transaction | None = None
        self.recipient: Recipient | None = None
        self.note: str | None = None
        """The address that XCLIENT or XFORWARD states."""
        self.last = False
        """BDAT or BURL with LAST: its reply is the transaction's."""
        self.pipelined = False


class Fork:
    """A place in a message at which another reader may have seen its end."""

    __slots__ = ("ack", "frame", "offset", "reader", "ts")

    def __init__(self, offset: int, reader: MessageReader, ts: int | None, frame: int | None, ack: int) -> None:
        self.offset, self.reader, self.ts, self.frame, self.ack = offset, reader, ts, frame, ack


# -- session ---------------------------------------------------------------------------------------------------------------


class Session(BaseSession):
    """One SMTP or LMTP connection."""

    protocol = "smtp"

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        super().__init__(conn, client_is_orig, limits)
        self.keep_raw = False
        """Keep whole messages (for extraction)."""
        self.state = PREFACE
        self.replies: deque[Reply] = deque()
        """Replies that are not yet given to a command."""
        self.waiting: deque[Given] = deque()
        """What waits for a reply, oldest first."""
        self.transaction: Transaction | None = None
        """The transaction that commands read now belong to."""
        self.n = 0
        self._partial: Reply | None = None
        self._skip = [False, False]  # the rest of a line that was cut, by direction (server, client)
        self._awaited: Given | None = None
        self._previous: Reply | None = None  # the last reply given to a command
        self._unsure = conn.start != "handshake"  # which command the next reply answers
        self._impatient = False
        self._server_hole = -1  # stream offset behind the last loss in the server's octets
        self._hole = 0  # client octets lost, in LOST and HOLE
        self._left = 0  # octets still to come of a chunk or blob
        self._chunk: Given | None = None  # the BDAT whose octets are being read
        self._receiving: Transaction | None = None  # the transaction whose mail data is being read
        self._mechanism: str | None = None
        self._sasl_user: str | None = None
        self._turn = 0
        self._guarding = False  # AUTH was tried: unknown lines may be secrets
        self._tls_reply: Reply | None = None
        self._heard_354 = False  # the last reply to a lost command was 354
        self._farewell: Reply | None = None  # a refusal that answers nothing: the server ends the session
        self._forks: list[Fork] = []
        self._split: Transaction | None = None  # a message that may have been two, until the next reply tells
        self._first: tuple[int | None, int | None, int] | None = None  # the first command: time, frame, acknowledgement
        self._greeting: Reply | None = None  # came before any command was read
        self._bare_lf = False
        if conn.start == "handshake":
            self.waiting.append(Given(GREETING, None, -1, 0, None, None, 0))

    def feed(self, chunk: Chunk) -> list[Event]:
        """Take ordered octets of one direction; return what they complete."""
        if chunk.orig == self.client_is_orig:
            if self.client.held > self.limits.waiting_bytes:
                self._impatient = True
        elif len(self.replies) > self.limits.commands_waiting:
            self._impatient = True
        return super().feed(chunk)

    def pump(self) -> None:
        """Read as far as both inboxes allow."""
        readers = READERS
        while True:
            if self.server.available or self.server.has_gap:
                self._read_replies()
            moved = self._pair() if self.replies else False
            if not readers[self.state](self) and not moved:
                return

    # the server's octets

    def _read_replies(self) -> None:
        """reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF (RFC 5321 4.2)"""
        inbox = self.server
        while self.tls is None or self.info.visibility != "opaque":
            begin = inbox.base + inbox.pos
            line = inbox.line()
            if line is None:
                if not inbox.has_gap:
                    return
                self._skip[0] = self._lose_reply(inbox)
                continue
            skip, self._skip[0] = self._skip[0], inbox.cut
            if skip:
                continue
            if inbox.cut:
                self.weird("line_too_long", "a reply line of the server", *inbox.segment_at(begin)[:2])
            reply = self._partial
            code, mark = line[:3], line[3:4]
            coded = len(code) == 3 and code.isdigit() and mark in (b" ", b"-", b"")
            if reply is None:
                ts, _, ack = inbox.segment_at(begin)
                reply = Reply(int(code) if coded else None, begin, ts, ack)
            elif coded:
                reply.code = int(code)
            if len(reply.lines) <= self.limits.argument_chars:
                reply.lines.append(line[4:] if coded else line)
            if mark == b"-" if coded else self._partial is not None:
                self._partial = reply
                continue
            self._partial = None
            reply.end = inbox.base + inbox.pos
            reply.ts, reply.frame, _ = inbox.segment_at(reply.end - 1)
            self.replies.append(reply)

    def _lose_reply(self, inbox: Inbox) -> bool:
        """Octets of the server are lost; whether the line that follows is broken."""
        self._partial = None
        inbox.take_gap()
        self._unsure = True
        self._server_hole = inbox.offset
        if self.waiting and self.waiting[0].verb == GREETING:
            self.waiting.popleft()
        return not grammar.REPLY.match(inbox.buf, inbox.pos)

    # replies and commands

    def _pair(self) -> bool:
        """Give replies to what they answer."""
        moved = False
        replies, waiting = self.replies, self.waiting
        while replies:
            reply = replies[0]
            if not waiting:
                if not self._answers_nothing(reply):
                    break
            elif self._unsure:
                if not self._align():
                    break
                moved = True
                continue
            else:
                given = waiting[0]
                if not 0 <= reply.ack <= given.begin or given.verb == GREETING:
                    if self._split is not None:
                        if not self._plausible(given, reply) and self._go_back(reply, self._split):
                            return True
                        self._release()
                    replies.popleft()
                    moved = True
                    if not self._answer(given, reply):
                        break
                    waiting.popleft()
                    continue
            if self._unasked(reply):
                return True
            replies.popleft()
            moved = True
        return moved

    def _answers_nothing(self, reply: Reply) -> bool:
        """With no command waiting: whether the server had nothing to answer when it said this."""
        if self.state in (DATA, HOLE, LOST, CHUNK):
            return False
        return self._impatient or 0 <= reply.ack <= self.client.offset

    def _align(self) -> bool:
        """After a loss: which commands do the replies at hand answer?  False while that cannot be told yet.

        The group is what the client sent before it heard the first of these replies; the replies that it heard before
        it went on answer the group's last commands.
        """
        replies, waiting = self.replies, self.waiting
        first = replies[0]
        group = [g for g in waiting if g.ack <= first.begin and (first.ack < 0 or g.begin < first.ack)]
        if not group:
            self._unasked(replies.popleft())
            return True
        heard = self._heard_after(len(group))
        if heard is None and not self._over():
            return False
        count = len(replies) if heard is None or heard < 0 else sum(1 for r in replies if r.end <= heard)
        if not count:
            return self._nothing_heard()
        for _ in range(count - len(group)):
            self._unasked(replies.popleft())
        for _ in range(len(group) - count):
            self._unanswered(waiting.popleft())
        while waiting and replies and not self._plausible(waiting[0], replies[0]) and len(waiting) > 1:
            self._unanswered(waiting.popleft())
        self._unsure = False
        return True

    def _nothing_heard(self) -> bool:
        """The group has no reply at hand: all were lost, when the client went on all the same."""
        if not self.client.ended or self.state == WAITING:
            return False
        self._unsure = False
        return True

    def _heard_after(self, count: int) -> int | None:
        """Server octets the client had when it went on after so many waiting commands; None when it has not yet."""
        if count < len(self.waiting):
            return self.waiting[count].ack
        if self.client.available:
            return self.client.ack_at(self.client.offset)
        return None

    def _over(self) -> bool:
        return self._impatient or self.client.ended

    def _plausible(self, given: Given, reply: Reply) -> bool:
        kind = reply.kind
        if given.verb == "QUIT" and kind == 2:
            return reply.code == 221
        return kind in PLAUSIBLE.get(given.verb, (2, 4, 5)) or kind == 0

    def _unasked(self, reply: Reply) -> bool:
        """A reply to nothing that was seen; True when it proves that a message was two, and is to be read again."""
        if self._split is not None and reply.code != 421 and self._go_back(reply, self._split):
            return True
        if reply.kind in REFUSED:
            self._farewell = reply
        if self._server_hole < 0 and not self._hole and self.state != LOST:
            self.weird("reply_unasked", f"{reply.code} {grammar.reply_text(reply.lines, 80)}", reply.ts, reply.frame)
        self._heard_354 = reply.code == 354
        return False

    def _unanswered(self, given: Given) -> None:
        """The reply to this was lost."""
        transaction = given.transaction
        if transaction is not None:
            transaction.unseen = True
        if given.verb == END_OF_DATA:
            if transaction is not None:
                self._final(given, transaction, None)
        elif given.verb in ENDS:
            self._answer_end(given, None)
        elif given.last and transaction is not None:
            self._final(given, transaction, None)
        self._show(given, None)
        if given is self._awaited:
            self._awaited = None

    def _answer(self, given: Given, reply: Reply) -> bool:
        """A command has its reply; False when the exchange goes on."""
        verb, kind = given.verb, reply.kind
        transaction = given.transaction
        if transaction is not None:
            transaction.last = reply
        if verb == "RCPT":
            if given.recipient is not None and transaction is not None:
                transaction.answer_rcpt(given.recipient, reply)
        elif verb == END_OF_DATA:
            if transaction is not None:
                self._final(given, transaction, reply)
        else:
            handler = ANSWERS.get(verb)
            if handler is not None and not handler(self, given, reply):
                return False
        if self._guarding and verb not in grammar.VERBS and reply.code in _SASL_REPLIES:
            given.verb = STRAY
        self._show(given, reply)
        if given is self._awaited:
            self._awaited = None
            self.state = NEXT.get((verb, kind), COMMANDS)
        return True

    def _show(self, given: Given, reply: Reply | None) -> None:
        """A command's row."""
        previous = self._previous
        if reply is not None:
            self._previous = reply
        verb = given.verb
        if verb[:1] == "(":
            return
        if previous is not None:
            if given.ack >= 0:
                given.pipelined = given.ack <= previous.begin and given.begin > 0
            elif given.ts is not None and previous.ts_first is not None:
                given.pipelined = given.ts < previous.ts_first
        self.n += 1
        info = self.info
        info.commands = self.n
        if reply is None:
            self.events.append(
                Command(
                    info.session_id, self.n, given.ts, None, None, info.protocol, None, verb, given.argument, None, None, None,
                    given.pipelined, given.frame, None,
                )
            )  # fmt: skip
            return
        told = grammar.reply_text(reply.lines, self.limits.argument_chars)
        latency = (reply.ts_first - given.ts_end) / 1e9 if reply.ts_first is not None and given.ts_end is not None else None
        status = f"{reply.code:03}" if reply.code is not None else None
        self.events.append(
            Command(
                info.session_id, self.n, given.ts, reply.ts, latency, info.protocol, None, verb, given.argument, status,
                grammar.enhanced_code(told), told, given.pipelined, given.frame, reply.frame,
            )
        )  # fmt: skip

    # what replies mean

    def _answer_greeting(self, given: Given, reply: Reply) -> bool:
        info = self.info
        info.ts_banner, info.frame_banner = reply.ts, reply.frame
        first = reply.lines[0].split(None, 1)[:1]
        if first and _DOMAIN.match(first[0]):
            info.server_name = as_text(first[0])
        info.server_software = software(b" ".join(reply.lines[:20]))
        self._early_talker(reply)
        return True

    def _early_talker(self, greeting: Reply) -> None:
        """A client must wait for the greeting (RFC 5321 4.3.1); senders of bulk often do not."""
        if self._first is None:
            self._greeting = greeting
            return
        ts, frame, ack = self._first
        self._greeting = None
        if ack <= greeting.begin if ack >= 0 else (ts or 0) < (greeting.ts_first or 0):
            self.weird("early_talker", "the client spoke before the greeting", ts, frame)

    def _answer_hello(self, given: Given, reply: Reply) -> bool:
        info = self.info
        if reply.kind == 2:
            argument = given.argument or ""
            info.client_name = argument.split(" ", 1)[0] or None
            first = reply.lines[0].split(None, 1)[:1]
            if first and _DOMAIN.match(first[0]):
                info.server_name = as_text(first[0])
            info.capabilities = [as_text(line.strip()).upper() for line in reply.lines[1:] if line.strip()]
            if info.starttls is None and any(c.split(" ", 1)[0] == "STARTTLS" for c in info.capabilities):
                info.starttls = "offered"
            if info.ts_greeted is None:
                info.ts_greeted, info.frame_greeted = reply.ts, reply.frame
        return self._answer_end(given, reply)

    def _answer_end(self, given: Given, reply: Reply | None) -> bool:
        """RSET, EHLO, QUIT and their like end the transaction that is open."""
        transaction = given.transaction
        if transaction is not None and not transaction.closed:
            self._conclude(transaction, "client", given.ts, given.frame)
        return True

    def _answer_mail(self, given: Given, reply: Reply) -> bool:
        transaction = given.transaction
        assert transaction is not None
        transaction.mail = reply
        outer, transaction.outer = transaction.outer, None
        if outer is None or outer.closed:
            return True
        if reply.kind not in REFUSED or (outer.mail is not None and outer.mail.kind in REFUSED):
            self._conclude(outer, "client", given.ts, given.frame)
            return True
        # The server keeps the transaction that is open (RFC 5321 4.1.4): what follows belongs to it.
        outer.carried.recipients += transaction.carried.recipients
        for later in self.waiting:
            if later.transaction is transaction:
                later.transaction = outer
        if self.transaction is transaction:
            self.transaction = outer
        given.transaction = None
        if reply.code != 503:  # else it was no attempt of its own, but a command out of turn
            transaction.carried.recipients = []
            self._conclude(transaction, "reply", reply.ts, reply.frame)
        return True

    def _answer_data(self, given: Given, reply: Reply) -> bool:
        if reply.kind == 3:
            self._receive(given.transaction, reply)
        elif reply.kind in REFUSED:
            if given.transaction is not None:
                given.transaction.refusal = given.transaction.refusal or reply
        else:
            self._guess(given)  # a reply that is none: what follows tells
            return True
        return True

    def _receive(self, transaction: Transaction | None, reply: Reply | None) -> None:
        """Message octets follow."""
        if transaction is None:
            ts, frame, _ = self.client.segment_at(self.client.offset)
            transaction = Transaction(self.info, None if self._hole else ts, frame, self.limits.argument_chars)
            transaction.unseen = True
            self.transaction = transaction
        if reply is not None:
            transaction.carried.ts_rcpt_done = reply.ts
        reader = transaction.reader = MessageReader(self.limits, self.keep_raw)
        reader.watch_ends()
        transaction.data_begin = self.client.offset
        self._receiving = transaction
        self.state = DATA

    def _answer_chunk(self, given: Given, reply: Reply) -> bool:
        """The reply to BDAT (RFC 3030 2); the one to the last chunk is the transaction's."""
        transaction = given.transaction
        if transaction is None or transaction.closed:
            return True
        if reply.kind in REFUSED and transaction.refusal is None:
            transaction.refusal = reply
        if given.last:
            self._final(given, transaction, reply)
        return True

    def _final(self, given: Given, transaction: Transaction, reply: Reply | None) -> None:
        """A reply after the data: one, or one for each recipient (RFC 2033 4.2)."""
        wanted: list[Recipient | None] = [None]
        if self.info.protocol == "lmtp":
            wanted = [*transaction.accepted_recipients()] or [None]
        finals = transaction.finals
        finals.append((wanted[min(len(finals), len(wanted) - 1)], reply))
        if len(finals) < len(wanted):
            more = Given(END_OF_DATA, None, given.begin, given.end, given.ts, given.frame, given.ack)
            more.transaction = transaction
            self.waiting.insert(1, more)
        elif self._forks and transaction.suspect:
            self._split = transaction
        else:
            self._conclude(transaction, "reply", None, None)

    def _conclude(self, transaction: Transaction, why: str, ts: int | None, frame: int | None) -> None:
        """The transaction is over: it is handed to mail/."""
        if transaction.closed:
            return
        if transaction is self.transaction:
            self.transaction = None
        info = self.info
        info.messages += 1
        carried = transaction.conclude(why, ts, frame)
        carried.index = info.messages
        if transaction.reader is not None:
            for name, detail in transaction.reader.oddities:
                self.weird(name, detail, carried.ts_data, carried.first_frame)
        self.events.append(carried)

    def _answer_auth(self, given: Given, reply: Reply) -> bool:
        info = self.info
        if reply.kind == 3:
            self._turn = access.turn_of(reply.lines[-1], self._turn)
            self.state = RESPONSE
            return False
        ok = reply.kind == 2
        if ok or not info.auth_ok:
            info.auth_mechanism, info.auth_ok = self._mechanism, ok
            info.auth_user = self._sasl_user or (info.auth_user if not ok else None)
            info.ts_auth, info.ts_auth_done, info.frame_auth = given.ts, reply.ts, reply.frame
        return True

    def _answer_starttls(self, given: Given, reply: Reply) -> bool:
        info = self.info
        info.ts_starttls, info.frame_starttls = given.ts, reply.frame
        if reply.kind == 2:
            info.starttls = "used"
            self._tls_reply = reply
            return self._answer_end(given, reply)
        info.starttls = "refused"
        return True

    def _answer_blob(self, given: Given, reply: Reply) -> bool:
        if reply.kind != 3:
            return True
        self.state = BLOB
        return False

    def _answer_xclient(self, given: Given, reply: Reply) -> bool:
        if reply.kind == 2 and given.note:
            self.info.stated_client_ip = given.note
        return self._answer_end(given, reply) if given.verb == "XCLIENT" else True

    def _answer_turn(self, given: Given, reply: Reply) -> bool:
        if reply.kind == 2:
            self.weird(
                "roles_turned", f"{given.verb}: client and server change places; what follows is not read", reply.ts, reply.frame
            )
        return self._answer_end(given, reply)

    # the client's octets: commands

    def _read_commands(self) -> bool:
        inbox = self.client
        moved = False
        while self.state == COMMANDS:
            begin = inbox.base + inbox.pos
            line = inbox.line()
            if line is None:
                if not inbox.has_gap:
                    return moved
                return self._lose_commands()
            moved = True
            skip, self._skip[1] = self._skip[1], inbox.cut
            if skip:
                continue
            if inbox.cut:
                self.weird("line_too_long", "a command line", *inbox.segment_at(begin)[:2])
            self._command(line, begin, inbox.base + inbox.pos)
        return moved

    def _command(self, line: bytes, begin: int, end: int) -> None:
        """One command line."""
        inbox, most = self.client, self.limits.argument_chars
        ts, frame, ack = inbox.segment_at(begin)
        if self._first is None:
            self._first = (ts, frame, ack)
            if self._greeting is not None:
                self._early_talker(self._greeting)
        if end - begin - len(line) == 1 and not self._bare_lf and not inbox.cut:
            self._bare_lf = True
            self.weird("bare_lf", "command lines end with LF alone", ts, frame)
        verb, rest = grammar.verb_of(line)
        if verb not in grammar.VERBS:
            verb = self._unknown(verb, line, ts, frame)
            given = Given(verb, None if verb in (STRAY, "***") else grammar.shown(verb, rest, most), begin, end, ts, frame, ack)
        else:
            given = Given(verb, grammar.shown(verb, rest, most) if rest else None, begin, end, ts, frame, ack)
            self._guarding = verb in ("AUTH", "X-EXPS")
        given.ts_end = inbox.ts_at(end - 1)
        read = READS.get(verb)
        if read is not None:
            read(self, given, rest)
        if verb != "BDAT":
            self.waiting.append(given)
        if verb in AWAITED:
            self._awaited = given
            self.state = WAITING
        if len(self.waiting) > self.limits.commands_waiting:
            self._unanswered(self.waiting.popleft())

    def _unknown(self, verb: str, line: bytes, ts: int | None, frame: int | None) -> str:
        """A word that is no command we know; it may be a secret that came at the wrong moment."""
        if self._guarding or verb.startswith(("AUTH=", "AUTH:", "X-EXPS=")):
            self.weird("sasl_out_of_turn", "a line that may be a SASL response outside of an exchange; not shown", ts, frame)
            return STRAY
        word = line.split(None, 1)[0] if line.strip() else b""
        if len(word) > 7 and (_ODD.search(word) or not (word.isupper() or word.islower())):
            return "***"
        return verb

    def _read_hello(self, given: Given, rest: bytes) -> None:
        if given.verb == "LHLO":
            self.info.protocol = "lmtp"
        self._read_end(given, rest)

    def _read_end(self, given: Given, rest: bytes) -> None:
        given.transaction, self.transaction = self.transaction, None
        if given.verb == "QUIT":
            self.info.end = "quit"

    def _read_mail(self, given: Given, rest: bytes) -> None:
        transaction = Transaction(self.info, given.ts, given.frame, self.limits.argument_chars)
        transaction.outer = self.transaction
        self.transaction = given.transaction = transaction
        try:
            transaction.carried.mail_from, transaction.carried.mail_parameters = grammar.path(rest, b"FROM")
        except Malformed as why:
            self.weird("malformed_path", f"MAIL: {why}", given.ts, given.frame)

    def _read_rcpt(self, given: Given, rest: bytes) -> None:
        given.transaction = transaction = self.transaction
        if transaction is None:
            return
        try:
            address, parameters = grammar.path(rest, b"TO")
        except Malformed as why:
            self.weird("malformed_path", f"RCPT: {why}", given.ts, given.frame)
            return
        recipients = transaction.carried.recipients
        if len(recipients) >= self.limits.recipients:
            if not transaction.crowded:
                transaction.crowded = True
                self.weird(
                    "too_many_recipients", f"more than {len(recipients)} recipients in one transaction", given.ts, given.frame
                )
            return
        given.recipient = recipient = Recipient(address, parameters, given.ts)
        recipient.frame = given.frame
        recipients.append(recipient)

    def _read_data_command(self, given: Given, rest: bytes) -> None:
        given.transaction = self.transaction

    def _read_chunk_command(self, given: Given, rest: bytes) -> None:
        """bdat-cmd = "BDAT" SP chunk-size [SP end-marker] CRLF (RFC 3030 2): so many octets follow at once."""
        given.transaction = transaction = self.transaction
        try:
            self._left, given.last = grammar.chunk_size(rest)
        except Malformed as why:
            self.weird("malformed_bdat", str(why), given.ts, given.frame)
            self.waiting.append(given)
            return
        self._chunk = given
        self.state = CHUNK
        if transaction is not None:
            if transaction.reader is None:
                transaction.reader = MessageReader(self.limits, self.keep_raw)
                transaction.data_begin = given.end
            if transaction.carried.ts_rcpt_done is None:
                transaction.carried.ts_rcpt_done = given.ts

    def _read_burl(self, given: Given, rest: bytes) -> None:
        """BURL SP absolute-URI [SP end-marker] (RFC 4468 3.2): the server fetches the octets itself."""
        given.transaction = transaction = self.transaction
        given.last = rest.strip().upper().endswith(b" LAST")
        if transaction is not None:
            if transaction.reader is not None:
                transaction.reader.gap(-1)
            if given.last:
                self.transaction = None

    def _read_auth(self, given: Given, rest: bytes) -> None:
        """AUTH SP mechanism [SP initial-response] (RFC 4954 4)."""
        words = rest.split()
        self._mechanism = as_text(words[0][:40]).upper() if words else None
        self._turn, self._sasl_user = 0, None
        if len(words) > 1 and words[1] != b"=":
            self._sasl_response(words[1])

    def _sasl_response(self, response: bytes) -> None:
        self._sasl_user = access.sasl_user(self._mechanism, response, self._turn) or self._sasl_user
        self._turn += 1

    def _read_blob_command(self, given: Given, rest: bytes) -> None:
        try:
            self._left = grammar.blob_size(rest)
        except Malformed:
            self._left = 0

    def _read_xclient(self, given: Given, rest: bytes) -> None:
        given.note = grammar.stated_address(rest)
        if given.verb == "XCLIENT":
            self._read_end(given, rest)

    # the client's octets: everything else

    def _read_preface(self) -> bool:
        """Before the first command: the PROXY protocol's header, when there is one."""
        inbox = self.client
        if not inbox.available:
            return self._lose_commands() if inbox.has_gap else False
        found = grammar.proxy_preface(inbox.buf[inbox.pos : inbox.pos + 66_000])
        if found is None and not inbox.before_gap:
            return False
        if found is not None and found[0]:
            inbox.take(found[0])
            self.info.stated_client_ip = found[1]
        self.state = COMMANDS
        return True

    def _read_message(self) -> bool:
        """Mail data (RFC 5321 4.1.1.4), up to its end or to what another reader may take for it."""
        inbox, transaction = self.client, self._receiving
        assert transaction is not None and transaction.reader is not None
        if not inbox.available:
            if inbox.has_gap:
                return self._lose_data()
            return self._ended_early(transaction)
        begin = inbox.offset
        if transaction.carried.ts_data is None:
            transaction.carried.ts_data = inbox.ts_at(begin)
        buf = inbox.buf
        at = transaction.reader.feed_stuffed(buf, inbox.pos)
        if at < 0:
            inbox.pos = len(buf)
            return True
        inbox.pos = at
        if transaction.reader.ended:
            transaction.data_done = True
            self._end_data(transaction)
        elif not self._no_command(buf, at):
            self._fork(transaction)
        return True

    def _end_data(self, transaction: Transaction) -> None:
        """The client has given its message: its reply, or its replies, are to come."""
        inbox = self.client
        end = inbox.offset
        ts, frame, ack = inbox.segment_at(end - 1)
        if transaction.data_done:
            transaction.carried.ts_eom = ts
        given = Given(END_OF_DATA, None, transaction.data_begin - 1, end, ts, frame, ack)
        given.transaction = transaction
        self.waiting.append(given)
        self.transaction = self._receiving = None
        self.state = COMMANDS

    def _read_chunk(self) -> bool:
        """The octets of a chunk, counted; no transparency, no end mark (RFC 3030 2)."""
        inbox, given = self.client, self._chunk
        assert given is not None
        transaction = given.transaction
        reader = transaction.reader if transaction is not None else None
        while self._left:
            if not inbox.available:
                if not inbox.has_gap:
                    return False
                return self._lose_chunk(given, reader)
            if transaction is not None and transaction.carried.ts_data is None:
                transaction.carried.ts_data = inbox.ts_at(inbox.offset)
            piece = inbox.take(self._left)
            self._left -= len(piece)
            if reader is not None:
                reader.feed(piece)
        self._end_chunk(given, True)
        return True

    def _end_chunk(self, given: Given, whole: bool) -> None:
        transaction = given.transaction
        if transaction is not None and given.last:
            transaction.carried.ts_eom = self.client.ts_at(self.client.offset - 1)
            transaction.data_done = whole
            if transaction is self.transaction:
                self.transaction = None
        self.waiting.append(given)
        self._chunk = None
        self.state = COMMANDS

    def _read_response(self) -> bool:
        """A SASL response after a 334 (RFC 4954 4): read for the user's name, and dropped."""
        inbox = self.client
        begin = inbox.offset
        line = inbox.line()
        if line is None:
            return self._lose_commands() if inbox.has_gap else False
        if inbox.cut or self._skip[1]:
            self._skip[1] = inbox.cut
            return True
        if self._awaited is not None:
            self._awaited.begin, self._awaited.ack = begin, inbox.ack_at(begin)
        if line != b"*":
            self._sasl_response(line)
        self.state = WAITING
        return True

    def _read_blob(self) -> bool:
        """Octets behind XEXCH50's 354, counted."""
        inbox = self.client
        while self._left:
            if not inbox.available:
                return self._lose_commands() if inbox.has_gap else False
            self._left -= len(inbox.take(self._left))
        if self._awaited is not None:
            self._awaited.begin = inbox.offset - 1
        self._awaited = None
        self.state = COMMANDS
        return True

    def _read_tls(self) -> bool:
        """After STARTTLS was granted: TLS records, or clear text still when the tap decrypts (RFC 3207 4.2)."""
        inbox, reply = self.client, self._tls_reply
        if inbox.available:
            first = inbox.buf[inbox.pos]
            if first != 0x16 and not first & 0x80:
                return self._clear_after_tls(reply)
        elif not inbox.has_gap and not (self.server.available or self.server.has_gap):
            return False
        self._tls_reply = None
        self.state = COMMANDS
        self.start_tls(inbox.ts_at(inbox.offset))
        return True

    def _clear_after_tls(self, reply: Reply | None) -> bool:
        inbox, info = self.client, self.info
        begin = inbox.offset
        ts, frame, ack = inbox.segment_at(begin)
        if reply is not None and (ack <= reply.begin if ack >= 0 else (ts or 0) < (reply.ts_first or 0)):
            line = inbox.line()  # it was sent before the server could grant anything (CVE-2011-0411)
            if line is None:
                if not inbox.before_gap:
                    return False
                line = inbox.take(inbox.available)
            verb = grammar.verb_of(line)[0]
            what = verb if verb in grammar.VERBS else "octets"
            self.weird("starttls_injection", f"{what} in clear behind STARTTLS, {len(line)} octets", ts, frame)
            return True
        info.tls, info.visibility, info.ts_tls_done = "starttls", "decrypted", ts
        self._tls_reply = None
        self.state = COMMANDS
        return True

    def _read_nothing(self) -> bool:
        for inbox in (self.client, self.server):
            inbox.take(inbox.available)
            while inbox.take_gap():
                inbox.take(inbox.available)
        return False

    # replies that do not come

    def _wait(self) -> bool:
        """The reply decides what the client's octets are; when it is lost, they must tell themselves."""
        awaited, inbox = self._awaited, self.client
        if awaited is None:
            self.state = COMMANDS
            return True
        if not (self._impatient or self.server.ended):
            if self._server_hole <= awaited.ack or not inbox.available:
                return False
            heard = inbox.ack_at(inbox.offset)
            if heard < self._server_hole or self.server.offset < heard or any(r.end <= heard for r in self.replies):
                return False
        elif not inbox.available and not inbox.has_gap:
            return False
        if not self._readable():
            return False
        self._impatient = False
        self.weird("reply_not_seen", f"the reply to {awaited.verb}", awaited.ts, awaited.frame)
        while self.waiting:
            given = self.waiting.popleft()
            self._unanswered(given)
            if given is awaited:
                break
        self._guess(awaited)
        return True

    def _readable(self) -> bool:
        """Enough of the client's octets are there to tell what they are."""
        inbox = self.client
        return inbox.before_gap or inbox.available > 512 or inbox.buf.find(b"\n", inbox.pos) >= 0

    def _guess(self, given: Given) -> None:
        """What the client sends shows what the reply was."""
        inbox = self.client
        self._awaited = None
        self.state = COMMANDS
        goes_on = NEXT.get((given.verb, 3)) or NEXT.get((given.verb, 2), COMMANDS)
        if goes_on == TLS:
            if inbox.available and inbox.buf[inbox.pos] == 0x16:
                self.state = TLS
        elif not grammar.LINE.match(inbox.buf, inbox.pos):
            if goes_on == DATA:
                self._receive(given.transaction, None)
            elif goes_on in (BLOB, RESPONSE):
                self.state = goes_on

    # loss

    def _lose_commands(self) -> bool:
        """Octets of the client are lost between its commands."""
        inbox = self.client
        self._skip[1] = False
        self._hole = inbox.take_gap()
        self._unsure = True
        self._heard_354 = False
        self._awaited = None
        self.state = LOST
        return True

    def _known_to(self, heard: int) -> bool:
        """The server's octets that the client had heard are all read, or will not come."""
        return heard <= self.server.offset or self._impatient or self.server.ended

    def _read_lost(self) -> bool:
        """Commands were lost: find the next, or that a message has begun meanwhile."""
        inbox = self.client
        if not inbox.available:
            return self._lose_commands() if inbox.has_gap else False
        heard = inbox.ack_at(inbox.offset)
        if not self._known_to(heard) or not (self._readable() or self._over()):
            return False
        while self.replies and not self.waiting and (self.replies[0].end <= heard or 0 <= self.replies[0].ack <= inbox.offset):
            self._unasked(self.replies.popleft())
        if self._heard_354:
            return self._receive_blind()
        if grammar.LINE.match(inbox.buf, inbox.pos):
            self.state = COMMANDS
            return True
        return self._look(inbox)

    def _look(self, inbox: Inbox) -> bool:
        """Neither commands nor replies tell: does the server's next reply come at the end of a body, or of a line?"""
        buf, pos, offset = inbox.buf, inbox.pos, inbox.offset
        reply = next((r for r in self.replies if r.ack < 0 or r.ack > offset), None)
        end = pos if buf.startswith(b".\r\n", pos) else buf.find(_BODY_END, pos)
        body_end = offset + end - pos + (3 if end == pos else 5)
        if reply is None and not self._over():
            return False
        if reply is not None and reply.ack >= 0:
            if end >= 0 and body_end <= reply.ack:
                return self._receive_blind()
            if offset + len(buf) - pos < reply.ack and not self._over():
                return False
        found = next((m for m in _LINE_STARTS.finditer(buf, pos) if grammar.LINE.match(buf, m.end())), None)
        if end >= 0 and (found is None or end < found.start()):
            return self._receive_blind()
        if found is not None:
            inbox.pos = found.end()
            self.state = COMMANDS
        elif self._impatient and buf.count(b"\n", pos) > 1:
            return self._receive_blind()
        else:
            inbox.pos = len(buf)
        return True

    def _receive_blind(self) -> bool:
        """A message whose beginning was not seen."""
        inbox = self.client
        self._heard_354 = self._impatient = False
        self._receive(self.transaction, None)
        transaction = self._receiving
        assert transaction is not None and transaction.reader is not None
        transaction.reader.gap(self._hole)
        if inbox.buf.startswith(b".\r\n", inbox.pos):
            inbox.take(3)
            self._end_data(transaction)
        return True

    def _lose_data(self) -> bool:
        """Octets of a message are lost: perhaps its end with them."""
        inbox, transaction = self.client, self._receiving
        assert transaction is not None
        self._forget_forks()
        self._hole = inbox.take_gap()
        self.state = HOLE
        return True

    def _read_hole(self) -> bool:
        """Was the end of the message lost?  Then the client had the reply to it when it went on."""
        inbox, transaction = self.client, self._receiving
        assert transaction is not None and transaction.reader is not None
        heard = inbox.ack_at(inbox.offset)
        if not self._known_to(heard):
            return False
        ended = any(r.end <= heard and r.kind in (2, 4, 5) for r in self.replies)
        if not ended and (heard < 0 or self._server_hole > transaction.data_begin):
            if not self._readable():
                return False
            ended = grammar.LINE.match(inbox.buf, inbox.pos) is not None
        transaction.reader.gap(-1 if ended else self._hole)
        self.state = DATA
        if ended:
            self._end_data(transaction)
            self._unsure = True
            self.state = LOST
        return True

    def _lose_chunk(self, given: Given, reader: MessageReader | None) -> bool:
        lost = self.client.take_gap()
        inside = 0 <= lost <= self._left
        if reader is not None:
            reader.gap(lost if inside else -1)
        if inside:
            self._left -= lost
            return True
        self._left, self._hole = 0, lost
        self._end_chunk(given, False)
        self._unsure = True
        self.state = LOST
        return True

    # ends of data that only some see

    def _no_command(self, buf: bytes, at: int) -> bool:
        """What follows here is surely no command."""
        rest = buf[at : at + 300]
        return not (grammar.LINE.match(rest) or (b"\n" not in rest and grammar.BEGINNING.match(rest)))

    def _fork(self, transaction: Transaction) -> None:
        """Another reader may have seen the end of the message here, and commands behind it: keep both ways open."""
        inbox = self.client
        assert transaction.reader is not None
        if not self._forks:
            inbox.kept = inbox.unread(self.client_is_orig)
        ts, frame, ack = inbox.segment_at(inbox.offset - 1)
        self._forks.append(Fork(inbox.offset, transaction.reader.fork(), ts, frame, ack))
        transaction.suspect = True

    def _forget_forks(self) -> None:
        self._forks = []
        self.client.kept = None

    def _likely(self, reply: Reply | None) -> Fork | None:
        """The first fork behind which a command, or nothing, stands; with a reply, one that the server had reached."""
        for fork in self._forks:
            if reply is not None and 0 <= reply.ack < fork.offset:
                continue
            following = b""
            for chunk in self.client.kept or ():
                if chunk.offset + len(chunk.data) > fork.offset and len(following) < 300:
                    following += chunk.data[max(fork.offset - chunk.offset, 0) :][:300]
            if not self._no_command(following, 0):
                return fork
        return None

    def _ended_early(self, transaction: Transaction) -> bool:
        """All was read, no end of data; has the server replied as if it had seen one?"""
        if not self.replies:
            if self._forks and sum(len(c.data) for c in self.client.kept or ()) > self.limits.waiting_bytes:
                self._forget_forks()
            return False
        reply = self.replies[0]
        if reply.kind != 2 or reply.ack > self.client.offset or (reply.ack < 0 and not self.client.ended):
            return False
        if self._go_back(reply, transaction):
            return True
        self._end_data(transaction)
        self.state = LOST
        return True

    def _go_back(self, reply: Reply, transaction: Transaction) -> bool:
        """Read again from the fork at which the server saw the end of the message; False when there is none."""
        fork = self._likely(reply)
        if fork is None:
            return False
        kept = self.client.kept or []
        ended = self.client.ended
        self.client = Inbox(self.limits)
        for chunk in kept:
            self.client.append(chunk)
        self.client.take(fork.offset - self.client.offset)
        self.client.ended = ended
        self._forks, self._split = [], None
        transaction.reader, transaction.data_done = fork.reader, True
        self.waiting.clear()
        self._awaited = self._chunk = None
        self.weird(
            "smuggling_suspect",
            f"the server's replies show that it took octet {fork.offset} of the client for the end of a message",
            fork.ts,
            fork.frame,
        )
        finals = bool(transaction.finals)
        self._end_data(transaction)
        transaction.carried.ts_eom = fork.ts
        if finals:
            self.waiting.clear()
            self._conclude(transaction, "reply", None, None)
        return True

    def _release(self) -> None:
        """The message that might have been two was one."""
        transaction, self._split = self._split, None
        fork = self._likely(None)
        if fork is not None:
            detail = f"octet {fork.offset} of the client looks like the end of a message, commands follow it"
            self.weird("smuggling_suspect", detail, fork.ts, fork.frame)
        self._forget_forks()
        if transaction is not None:
            self._conclude(transaction, "reply", None, None)

    # the end

    def finish(self, reason: str, ts: int) -> None:
        """End what is open; nothing more will come."""
        if self._split is not None:
            self._release()
        if self._chunk is not None:
            self._end_chunk(self._chunk, False)
        if self._forks:
            self._release()
        blind = self._server_hole >= 0 or not self.server.seen
        while self.waiting:
            given = self.waiting.popleft()
            if not blind and given.verb != END_OF_DATA:
                given.transaction = None if given.verb not in ENDS else given.transaction
            self._unanswered(given)
        transaction = self.transaction
        if transaction is not None and not transaction.closed:
            if self._receiving is transaction:
                farewell = next((r for r in self.replies if r.kind in REFUSED), None)
                if farewell is not None:
                    transaction.finals.append((None, farewell))
            if self._farewell is not None and transaction.refusal is None and self._farewell.kind in REFUSED:
                transaction.refusal = self._farewell
            self._conclude(transaction, reason, ts, self.info.connection.last_frame or None)


READERS: dict[str, Callable[[Session], bool]] = {
    COMMANDS: Session._read_commands,
    WAITING: Session._wait,
    DATA: Session._read_message,
    CHUNK: Session._read_chunk,
    RESPONSE: Session._read_response,
    BLOB: Session._read_blob,
    TLS: Session._read_tls,
    PREFACE: Session._read_preface,
    LOST: Session._read_lost,
    HOLE: Session._read_hole,
    DEAF: Session._read_nothing,
}
"""Who takes the client's next unit, by state; true when something was taken or changed."""

READS: dict[str, Callable[[Session, Given, bytes], None]] = {
    **dict.fromkeys(HELLO, Session._read_hello),
    **dict.fromkeys(("RSET", "QUIT", "STARTTLS", "X-ANONYMOUSTLS", "TURN", "ATRN"), Session._read_end),
    "MAIL": Session._read_mail,
    "RCPT": Session._read_rcpt,
    "DATA": Session._read_data_command,
    "BDAT": Session._read_chunk_command,
    "BURL": Session._read_burl,
    "AUTH": Session._read_auth,
    "X-EXPS": Session._read_auth,
    "XEXCH50": Session._read_blob_command,
    "XCLIENT": Session._read_xclient,
    "XFORWARD": Session._read_xclient,
}
"""What a command means as it is read."""

ANSWERS: dict[str, Callable[[Session, Given, Reply], bool]] = {
    GREETING: Session._answer_greeting,
    **dict.fromkeys(HELLO, Session._answer_hello),
    **dict.fromkeys(("RSET", "QUIT"), Session._answer_end),
    "MAIL": Session._answer_mail,
    "DATA": Session._answer_data,
    "BDAT": Session._answer_chunk,
    "BURL": Session._answer_chunk,
    "AUTH": Session._answer_auth,
    "X-EXPS": Session._answer_auth,
    "STARTTLS": Session._answer_starttls,
    "X-ANONYMOUSTLS": Session._answer_starttls,
    "XEXCH50": Session._answer_blob,
    "XCLIENT": Session._answer_xclient,
    "XFORWARD": Session._answer_xclient,
    "TURN": Session._answer_turn,
    "ATRN": Session._answer_turn,
}
"""What its reply means; false when the exchange goes on."""


# -- probe -----------------------------------------------------------------------------------------------------------------

PORTS = frozenset((24, 25, 465, 587, 2525, 10024, 10025))
_STRONG = re.compile(
    rb"(?:(?:EHLO|HELO|LHLO)[ \t]+[!-~]|MAIL[ \t]+FROM[ \t]*:|RCPT[ \t]+TO[ \t]*:|BDAT[ \t]+\d|XCLIENT[ \t]|XFORWARD[ \t]"
    rb"|STARTTLS\r?\n)",
    re.IGNORECASE,
)
"""Commands that no other protocol has."""
_GREETING = re.compile(rb"(?:220|554|421|450|521)[ -][^\n]*\n")
_MAIL_WORDS = re.compile(rb"E?SMTP|LMTP|Postfix|Sendmail|Exim|\bmail", re.IGNORECASE)
_MAIL_REPLY = re.compile(rb"(?:354 |[245]\d\d[ -][245]\.\d{1,3}\.\d{1,3}[ :])")
_OTHERS = re.compile(
    rb"(?:GET|POST|HEAD|PUT|OPTIONS|CONNECT|DELETE|PATCH|PRI) |HTTP/|SSH-|\+OK|-ERR|\* (?:OK|PREAUTH|BYE)|\x16\x03|<\?xml|USER |"
    rb"CAPA\r|\w+ (?:LOGIN|CAPABILITY|AUTHENTICATE)"
)


def probe(orig: bytes, resp: bytes, orig_port: int, resp_port: int, closing: bool) -> Recognised | None:
    """Does this connection speak SMTP or LMTP, and which end is the client?  None when that is not sure."""
    forward = _speaks(orig, resp, resp_port in PORTS, closing)
    backward = _speaks(resp, orig, orig_port in PORTS, closing)
    if not forward and not backward:
        return None
    client, client_is_orig = (orig, True) if forward >= backward else (resp, False)
    return Recognised("lmtp" if _first_line(client)[:4].upper() == b"LHLO" else "smtp", client_is_orig)


def _first_line(client: bytes) -> bytes:
    found = grammar.proxy_preface(client)
    return client[found[0] :] if found else client


def _speaks(client: bytes, server: bytes, port: bool, closing: bool) -> int:
    """How surely `client` is the client of an SMTP session with `server`: 0 not, or not yet; 3 surely."""
    client = _first_line(client)
    if _OTHERS.match(client) or _OTHERS.match(server) or (server and not server[:1].isdigit() and _GREETING.match(client)):
        return 0
    greeting = _GREETING.match(server)
    strong = _STRONG.match(client) is not None
    if strong and (not server or server[:1].isdigit() or grammar.REPLY.search(server)):
        return 3 if server else 2
    if greeting and (port or _MAIL_WORDS.search(greeting[0])):
        if not client:
            return 2 if port or closing else 0
        return 2 if port or grammar.LINE.match(client) else 0
    return _midstream(client, server, port, closing)


def _midstream(client: bytes, server: bytes, port: bool, closing: bool) -> int:
    """A capture that began later: verbs behind a broken line, mail replies, or a body and the reply to it."""
    replies = _MAIL_REPLY.match(server) or _MAIL_REPLY.search(server, 0, 2000)
    strong = any(_STRONG.match(client, m.end()) for m in _LINE_STARTS.finditer(client, 0, 4000))
    if strong and (replies or port or closing):
        return 2
    if replies and (port or closing) and (not client or b"\n" in client):
        return 1
    if closing and port and grammar.REPLY.match(server) and (b"\n" in client or not client):
        return 1
    if closing and port and not server and (_BODY_END in client or grammar.LINE.match(client)):
        return 1
    return 0
