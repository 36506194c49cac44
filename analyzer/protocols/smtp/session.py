"""One SMTP or LMTP connection: the commands as they are read, and what their replies mean."""

import re
from collections.abc import Callable

from analyzer.protocols import access
from analyzer.protocols.base import Malformed, Recipient
from analyzer.protocols.base import text as as_text
from analyzer.protocols.message import MessageReader
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.dialogue import AHEAD, Given
from analyzer.protocols.smtp.plain import Plain
from analyzer.protocols.smtp.queue_ids import software
from analyzer.protocols.smtp.transaction import REFUSED, Reply, Transaction
from analyzer.protocols.smtp.vocabulary import (
    AWAITED,
    BLOB,
    CHECKING,
    CHUNK,
    COMMANDS,
    CUT_OFF,
    DATA,
    DEAF,
    END_OF_DATA,
    ENDS,
    GREETING,
    HELLO,
    HOLE,
    LMTP_PORT,
    LOOKING,
    LOST,
    NEXT,
    RESPONSE,
    SASL_REPLIES,
    STRAY,
    TLS,
    WAITING,
)

_DOMAIN = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?\.?\Z|\[[0-9A-Za-z:.]+\]\Z")
_ODD = re.compile(rb"[^A-Za-z-]")
MASKED = "***"
_LMTP = re.compile(rb"\bLMTP\b")
"""How a server tells that it speaks LMTP."""


class Session(Plain):
    """One SMTP or LMTP connection."""

    _mechanism: str | None = None
    _sasl_user: str | None = None
    _turn: int = 0  # responses of the SASL exchange
    _tls_reply: Reply | None = None
    _greeting: Reply | None = None  # came before any command was read
    _bare_lf: bool = False
    _helloed: bool = False

    def pump(self) -> None:
        """Read as far as both inboxes allow."""
        if self.server.has_gap and self.state != DEAF:
            self.read_replies()
        while True:
            if self.server.available and self.state != DEAF:  # where nothing is lost, replies are read as they are wanted
                enough = AHEAD if self.lossy else len(self.waiting)
                if len(self.replies) < enough:
                    self.read_replies(enough)
            moved = self.pair() if self.replies else False
            if self.state == COMMANDS and not self.waiting and self.read_plain():
                continue
            if not READERS[self.state](self) and not moved and not self._read_ahead():
                return

    def _read_ahead(self) -> bool:
        """The client's octets say nothing more for now: read what the server has said; whether there was anything."""
        if self.state == DEAF or not self.server.available:
            return False
        before = len(self.replies)
        self.read_replies()
        return len(self.replies) > before

    def unanswered(self, given: Given, lost: bool = True) -> None:
        """The reply to this will not be seen: it was lost, or there was none."""
        transaction = given.transaction
        if transaction is not None:
            transaction = given.transaction = transaction.resolved()
            if given.verb in ENDS:
                self._answer_end(given, None)
            elif given.verb == END_OF_DATA or given.last:
                while self.final(transaction, None):
                    pass
            else:
                transaction.unseen = transaction.unseen or lost
                if given.verb == "MAIL" and transaction.outer is not None:
                    self.conclude(transaction.outer.resolved(), "client", given.ts, given.frame)
        if given.verb in HELLO and self.info.client_name is None:
            self.info.client_name = (given.argument or "").partition(" ")[0] or None
        elif given.verb == "AUTH" and self.info.auth_ok is None:
            self.info.auth_mechanism, self.info.auth_user, self.info.ts_auth = self._mechanism, self._sasl_user, given.ts
        self.show(given, None)
        if given is self.awaited:
            self.awaited = None

    def answer(self, given: Given, reply: Reply) -> bool:
        """A command has its reply; False when the exchange goes on."""
        verb, kind = given.verb, reply.kind
        transaction = given.transaction
        if transaction is not None:
            if transaction.into is not None:
                transaction = given.transaction = transaction.resolved()
            if verb not in ENDS:
                transaction.last = reply
        if verb == "RCPT":
            if given.recipient is not None and transaction is not None:
                transaction.answer_rcpt(given.recipient, reply)
        elif verb == END_OF_DATA:
            if transaction is not None and self.final(transaction, reply):
                return False
        else:
            handler = ANSWERS.get(verb)
            if handler is not None and not handler(self, given, reply):
                return False
        if reply.code in SASL_REPLIES and verb not in grammar.VERBS:  # the end of an exchange whose beginning was lost
            given.verb = STRAY
        self.show(given, reply)
        if given is self.awaited:
            self.awaited = None
            self.state = NEXT.get((verb, kind), COMMANDS)
        return True

    # what replies mean

    def _answer_greeting(self, given: Given, reply: Reply) -> bool:
        self.greeted(reply)
        self._early_talker(reply)
        return True

    def greeted(self, reply: Reply) -> None:
        """The server has opened the session (RFC 5321 3.1)."""
        info = self.info
        info.ts_banner, info.frame_banner = reply.ts, reply.frame
        if not self._helloed and (info.server_port == LMTP_PORT or _LMTP.search(b" ".join(reply.lines[:20]))):
            info.protocol = "lmtp"  # until a client says otherwise
        info.server_name = _domain(reply) or info.server_name
        info.server_software = software(b" ".join(reply.lines[:20]))

    def _early_talker(self, greeting: Reply) -> None:
        """A client must wait for the greeting (RFC 5321 4.3.1); senders of bulk often do not."""
        if self._first is None:
            self._greeting = greeting
            return
        ts, frame, ack = self._first
        self._greeting = None
        if greeting.begin:  # the true greeting was lost
            return
        if ack <= greeting.begin if ack >= 0 else (ts or 0) < (greeting.ts_first or 0):
            self.weird("early_talker", "the client spoke before the greeting", ts, frame)

    def _answer_cut_off(self, given: Given, reply: Reply) -> bool:
        self.heard_354 = reply if reply.code == 354 else None
        return True

    def _answer_hello(self, given: Given, reply: Reply) -> bool:
        info = self.info
        if reply.kind == 2:
            info.client_name = (given.argument or "").partition(" ")[0] or None
            info.server_name = _domain(reply) or info.server_name
            info.capabilities = as_text(b"\n".join(reply.lines[1:])).upper().split("\n") if len(reply.lines) > 1 else []
            if info.starttls is None and "STARTTLS" in info.capabilities:
                info.starttls = "offered"
            if info.ts_greeted is None:
                info.ts_greeted, info.frame_greeted = reply.ts, reply.frame
        return self._answer_end(given, reply)

    def _answer_end(self, given: Given, reply: Reply | None) -> bool:
        """RSET, EHLO, QUIT and their like end the transaction that is open."""
        transaction = given.transaction
        if transaction is not None and not transaction.closed:
            self.conclude(transaction, "client", given.ts, given.frame)
        return True

    def _answer_mail(self, given: Given, reply: Reply) -> bool:
        transaction = given.transaction
        assert transaction is not None
        transaction.mail = reply
        outer, transaction.outer = transaction.outer, None
        if outer is not None:
            outer = outer.resolved()
        if outer is None or outer.closed:
            return True
        if reply.kind not in REFUSED or (outer.mail is not None and outer.mail.kind in REFUSED):
            self.conclude(outer, "client", given.ts, given.frame)
            return True
        # The server keeps the transaction that is open (RFC 5321 4.1.4): what follows belongs to it.
        outer.carried.recipients += transaction.carried.recipients
        transaction.into = outer
        if self.transaction is transaction:
            self.transaction = outer
        given.transaction = None
        if reply.code != 503:  # else it was no attempt of its own, but a command out of turn
            transaction.carried.recipients = []
            self.conclude(transaction, "reply", reply.ts, reply.frame)
        return True

    def _answer_data(self, given: Given, reply: Reply) -> bool:
        if reply.kind == 3:
            self.receive(given.transaction, reply)
        elif reply.kind not in REFUSED:
            self.guess(given)  # a reply that is none: what follows tells
        elif given.transaction is not None and given.transaction.refusal is None:
            given.transaction.refusal = reply
        return True

    def _answer_chunk(self, given: Given, reply: Reply) -> bool:
        """The reply to BDAT (RFC 3030 2); the one to the last chunk is the transaction's."""
        transaction = given.transaction
        if transaction is None or transaction.closed:
            return True
        if reply.kind in REFUSED and transaction.refusal is None:
            transaction.refusal = reply
        return not (given.last and self.final(transaction, reply))

    def final(self, transaction: Transaction, reply: Reply | None) -> bool:
        """A reply after the data: one, or one for each recipient (RFC 2033 4.2); whether more are to come."""
        if transaction.closed:
            return False
        if transaction.wanted is None:
            transaction.wanted = [None]
            if self.info.protocol == "lmtp":
                transaction.wanted = [*transaction.accepted_recipients()] or [None]
        finals, wanted = transaction.finals, transaction.wanted
        finals.append((wanted[min(len(finals), len(wanted) - 1)], reply))
        if len(finals) < len(wanted):
            return True
        if self.forks and transaction.suspect:
            self.split = transaction
        else:
            self.conclude(transaction, "reply", None, None)
        return False

    def conclude(self, transaction: Transaction, why: str, ts: int | None, frame: int | None) -> None:
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
            if given is self.awaited:
                self.state = RESPONSE
            return False
        ok = reply.kind == 2
        if ok or not info.auth_ok:
            info.auth_mechanism, info.auth_ok = self._mechanism, ok
            info.auth_user = self._sasl_user
            info.ts_auth, info.ts_auth_done, info.frame_auth = given.ts, reply.ts, reply.frame
        return True

    def _answer_starttls(self, given: Given, reply: Reply) -> bool:
        info = self.info
        info.ts_starttls, info.frame_starttls = given.ts, reply.frame
        if reply.kind != 2:
            info.starttls = "refused"
            return self._resume(given)
        info.starttls = "used"
        self._tls_reply = reply
        return self._answer_end(given, reply)

    def _resume(self, given: Given) -> bool:
        """What would have ended the transaction was refused: it goes on."""
        if self.transaction is None:
            self.transaction = given.transaction
        return True

    def _answer_blob(self, given: Given, reply: Reply) -> bool:
        if reply.kind != 3:
            return True
        if given is self.awaited:
            self.state = BLOB
        return False

    def _answer_xclient(self, given: Given, reply: Reply) -> bool:
        if reply.kind == 2 and given.stated:
            self.info.stated_client_ip = given.stated
        if given.verb == "XFORWARD":
            return True
        return self._answer_end(given, reply) if reply.kind == 2 else self._resume(given)

    def _answer_turn(self, given: Given, reply: Reply) -> bool:
        if reply.kind != 2:
            return self._resume(given)
        detail = f"{given.verb}: client and server change places; what follows is not read"
        self.weird("roles_turned", detail, reply.ts, reply.frame)
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
                return self.lose_commands()
            moved = True
            skip, self.cut = self.cut, inbox.cut
            if skip:
                continue
            self._command(line, begin, inbox.base + inbox.pos)
            if not self.lossy and self.server.available:
                return True  # its reply may be here, and a plain transaction behind it
        return moved

    def _command(self, line: bytes, begin: int, end: int) -> None:
        """One command line."""
        inbox = self.client
        ts, frame, ack, ts_end, _ = inbox.span(begin, end)
        if self._first is None:
            self._first = (ts, frame, ack)
            if self._greeting is not None:
                self._early_talker(self._greeting)
        verb, rest = grammar.verb_of(line)
        known = verb in grammar.VERBS
        given = Given(verb, begin, end, ts, frame, ack, ts_end)
        if not known:
            verb = given.verb = self._unknown(given, line)
        if inbox.cut:
            given.remark("line_too_long", "a command line")
        elif end - begin - len(line) == 1 and not self._bare_lf:
            self._bare_lf = True
            given.remark("bare_lf", "command lines end with LF alone")
        if rest and (known or verb not in (STRAY, MASKED)):
            given.argument = grammar.shown(verb, rest, self.limits.argument_chars)
        if known:
            self._guarding = verb in ("AUTH", "X-EXPS")
        if self.command_hole:
            given.hole, self.command_hole = True, False
        read = READS.get(verb)
        if read is not None:
            read(self, given, rest)
        if self.chunk is not given:
            self.waiting.append(given)
        if verb in AWAITED:
            self.awaited = given
            self.state = WAITING
        if len(self.waiting) > self.limits.commands_waiting:
            self.unanswered(self.waiting.popleft())

    def _unknown(self, given: Given, line: bytes) -> str:
        """A word that is no command we know; it may be a secret that came at the wrong moment."""
        verb = given.verb
        if self._guarding or verb.startswith(("AUTH=", "AUTH:", "X-EXPS=")):
            if self.server.seen:
                given.remark("sasl_out_of_turn", "a line that may be a SASL response outside of an exchange; not shown")
            elif self.info.auth_ok is None:  # the exchange goes on unheard
                self._sasl_response(line)
            return STRAY
        word = line.split(None, 1)[0] if line.strip() else b""
        if len(word) > 7 and (_ODD.search(word) or not (word.isupper() or word.islower())):
            return MASKED
        return verb

    def _read_hello(self, given: Given, rest: bytes) -> None:
        self.info.protocol = "lmtp" if given.verb == "LHLO" else "smtp"
        self._helloed = True
        self._read_end(given, rest)

    def _read_end(self, given: Given, rest: bytes) -> None:
        given.transaction, self.transaction = self.transaction, None
        self.headless = False
        if given.verb == "QUIT":
            self.info.end = "quit"

    def _read_mail(self, given: Given, rest: bytes) -> None:
        transaction = Transaction(self.info, given.ts, given.frame, self.limits.argument_chars)
        transaction.outer = self.transaction
        self.headless = False
        self.transaction = given.transaction = transaction
        try:
            transaction.carried.mail_from, transaction.carried.mail_parameters = grammar.path(rest, b"FROM")
        except Malformed as why:
            given.remark("malformed_path", f"MAIL: {why}")

    def _read_rcpt(self, given: Given, rest: bytes) -> None:
        if self.transaction is None and self.headless:
            self.transaction = self.without_mail(given.frame)
        given.transaction = transaction = self.transaction
        if transaction is None:
            return
        try:
            address, parameters = grammar.path(rest, b"TO")
        except Malformed as why:
            given.remark("malformed_path", f"RCPT: {why}")
            return
        recipients = transaction.carried.recipients
        if len(recipients) >= self.limits.recipients:
            if not transaction.crowded:
                transaction.crowded = True
                given.remark("too_many_recipients", f"more than {len(recipients)} recipients in one transaction")
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
            self.left, given.last = grammar.chunk_size(rest)
        except Malformed as why:
            given.remark("malformed_bdat", str(why))
            return
        self.chunk = given
        self.state = CHUNK
        if transaction is not None:
            if transaction.reader is None:
                transaction.reader = MessageReader(self.limits)
                transaction.data_begin = given.end
            if transaction.holed:
                transaction.reader.gap(-1)
                transaction.holed = False
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
        self._mechanism, response = access.sasl(rest)
        self._turn, self._sasl_user = 0, None
        if response and response != b"=":
            self._sasl_response(response)

    def _sasl_response(self, response: bytes) -> None:
        self._sasl_user = access.sasl_user(self._mechanism, response, self._turn) or self._sasl_user
        self._turn += 1

    def _read_blob_command(self, given: Given, rest: bytes) -> None:
        try:
            self.left = grammar.blob_size(rest)
        except Malformed:
            self.left = 0

    def _read_xclient(self, given: Given, rest: bytes) -> None:
        given.stated = grammar.stated_address(rest)
        if given.verb == "XCLIENT":
            self._read_end(given, rest)

    # the client's octets: everything else

    def _read_message(self) -> bool:
        """Mail data (RFC 5321 4.1.1.4), up to its end or to what another reader may take for it."""
        inbox, transaction = self.client, self.receiving
        assert transaction is not None and transaction.reader is not None
        if not inbox.available:
            if inbox.has_gap:
                return self.cross_hole()
            return self.ended_early(transaction)
        begin = inbox.offset
        carried = transaction.carried
        if carried.ts_data is None:
            carried.ts_data, frame, _ = inbox.segment_at(begin)
            if carried.first_frame is None:
                carried.first_frame = frame
        buf = inbox.buf
        at = transaction.reader.feed_stuffed(buf, inbox.pos)
        if at < 0:
            inbox.pos = len(buf)
            return True
        inbox.pos = at
        if not transaction.reader.ended:
            self.fork(transaction, buf, at)
        elif transaction.reader.whole:
            transaction.data_done = True
            self.end_data(transaction)
        else:
            self.state = CHECKING
        return True

    def _read_chunk(self) -> bool:
        """The octets of a chunk, counted; no transparency, no end mark (RFC 3030 2)."""
        inbox, given = self.client, self.chunk
        assert given is not None
        transaction = given.transaction
        reader = transaction.reader if transaction is not None else None
        while self.left:
            if not inbox.available:
                if not inbox.has_gap:
                    return False
                return self.lose_chunk(given, reader)
            if transaction is not None and transaction.carried.ts_data is None:
                transaction.carried.ts_data = inbox.ts_at(inbox.offset)
            piece = inbox.take(self.left)
            self.left -= len(piece)
            if reader is not None:
                reader.feed(piece)
        self.end_chunk(given, True)
        return True

    def _read_response(self) -> bool:
        """A SASL response after a 334 (RFC 4954 4): read for the user's name, and dropped."""
        inbox = self.client
        begin = inbox.offset
        line = inbox.line()
        if line is None:
            return self.lose_commands() if inbox.has_gap else False
        if inbox.cut or self.cut:
            self.cut = inbox.cut
            return True
        if self.awaited is not None:
            self.awaited.begin, self.awaited.ack = begin, inbox.ack_at(begin)
        if line != b"*":
            self._sasl_response(line)
        self.state = WAITING
        return True

    def _read_blob(self) -> bool:
        """Octets behind XEXCH50's 354, counted."""
        inbox = self.client
        while self.left:
            if not inbox.available:
                return self.lose_commands() if inbox.has_gap else False
            self.left -= len(inbox.take(self.left))
        if self.awaited is not None:
            self.awaited.begin = inbox.offset - 1
        self.awaited = None
        self.state = COMMANDS
        return True

    def _read_tls(self) -> bool:
        """After STARTTLS was granted: TLS records, or clear text still when the tap decrypts (RFC 3207 4.2)."""
        inbox, reply = self.client, self._tls_reply
        first = inbox.buf[inbox.pos : inbox.pos + 1] or inbox.beyond_gap()[:1]
        if inbox.available and not _tls(first):
            return self._clear_after_tls(reply)
        if not inbox.available and not inbox.before_gap and self.server.held <= self.limits.waiting_bytes:
            return False  # the client speaks next: what the server said after it may have been fed first
        clear = next((later for later in self.replies if reply is not None and later.begin >= reply.end), None)
        if not first and clear is None and not self.server.available:
            return False
        self._tls_reply = None
        if inbox.available or clear is None:
            self.begin_tls()
        else:
            self.state = LOST
            self._in_clear(clear.ts_first)
        return True

    def _clear_after_tls(self, reply: Reply | None) -> bool:
        inbox = self.client
        ts, frame, ack = inbox.segment_at(inbox.offset)
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
        self._tls_reply = None
        self.state = COMMANDS
        self._in_clear(ts)
        return True

    def _in_clear(self, ts: int | None) -> None:
        """The tap shows in clear what went over the wire inside TLS."""
        info = self.info
        info.tls, info.visibility, info.ts_tls_done = "starttls", "decrypted", ts

    def _read_nothing(self) -> bool:
        for inbox in (self.client, self.server):
            inbox.take(inbox.available)
            while inbox.take_gap():
                inbox.take(inbox.available)
        return False

    # the end

    def finish(self, reason: str, ts: int) -> None:
        """End what is open; nothing more will come."""
        if self.split is not None:
            self.release()
        if self.chunk is not None:
            self.end_chunk(self.chunk, False)
        if self.forks:
            self.release()
        lost = self.lossy or not self.server.seen
        while self.waiting:
            self.unanswered(self.waiting.popleft(), lost)
        self.flush_replies()
        if not self.lossy and self.client.seen:
            for reply in self.surplus:
                if reply is not self.farewell:
                    self.weird("reply_unasked", f"{reply.code} {grammar.reply_text(reply.lines, 80)}", reply.ts, reply.frame)
        transaction = self.transaction
        if transaction is None or transaction.closed:
            return
        farewell = self.farewell
        if self.receiving is transaction and farewell is not None:
            transaction.finals.append((None, farewell))
        elif transaction.refusal is None:
            transaction.refusal = farewell
        self.conclude(transaction, reason, ts, self.info.connection.last_frame or None)


def _tls(octets: bytes) -> bool:
    """A TLS record begins here, or an SSLv2 hello (RFC 8446 5.1, RFC 5246 E.2)."""
    return bool(octets) and (octets[0] in range(20, 25) or octets[0] & 0x80 != 0)


def _domain(reply: Reply) -> str | None:
    """What the server calls itself: the first word of its greeting or of its answer to EHLO (RFC 5321 4.2, 4.1.1.1)."""
    first = reply.lines[0].split(None, 1)
    return as_text(first[0]) if first and _DOMAIN.match(first[0]) else None


READERS: dict[str, Callable[[Session], bool]] = {
    COMMANDS: Session._read_commands,
    WAITING: Session.wait,
    DATA: Session._read_message,
    CHUNK: Session._read_chunk,
    RESPONSE: Session._read_response,
    BLOB: Session._read_blob,
    TLS: Session._read_tls,
    LOST: Session.find_step,
    LOOKING: Session.look,
    HOLE: Session.look_behind,
    CHECKING: Session.check_end,
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
    CUT_OFF: Session._answer_cut_off,
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
