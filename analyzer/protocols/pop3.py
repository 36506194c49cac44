"""POP3 (RFC 1939, 2449, 2595, 5034, 6856): a maildrop's messages are listed, taken and deleted.

Rules of this file:
1. Replies come in the order of the commands (RFC 2449 6.6: pipelining too); which lines belong to a reply depends on
   the command it answers, so the server is read only as far as the client was heard.
2. Where both ends are seen, acknowledgements tell: a reply that acknowledges less than a command's first octet does
   not answer it, and a command given after all was answered begins where the reply before it ended.
3. A message ends at its final dot, at nothing else; after a gap only rule 2 or the octets announced may say that the
   end was lost with it.
4. A mark to delete is nothing until QUIT is answered `+OK` (RFC 1939 6).
5. TOP shows a message, RETR retrieves it; where the command was not seen, only as many octets as were announced are a message.
"""

import re
from collections import deque
from itertools import islice
from typing import NamedTuple

from analyzer.protocols import access
from analyzer.protocols.base import Command, MailboxEvent, MessageCarried, Recognised, text
from analyzer.protocols.base import Session as BaseSession
from analyzer.protocols.message import MessageReader

# -- vocabulary ------------------------------------------------------------------------------------------------------------

BODY, LINES = "body", "lines"
MULTI_LINE: dict[tuple[str, bool], str] = {
    # (command, with argument): what follows a positive status indicator, up to a line with a single dot
    ("RETR", True): BODY,
    ("TOP", True): BODY,
    ("LIST", False): LINES,
    ("UIDL", False): LINES,
    ("CAPA", False): LINES,
    ("CAPA", True): LINES,
    ("AUTH", False): LINES,  # older servers list their mechanisms (RFC 1734 has no such form, many servers do)
    ("LANG", False): LINES,  # RFC 6856 3
    ("HELP", False): LINES,
}
_LOOK = 64
"""Commands in flight among which the one that a reply behind a gap belongs to is looked for."""
DECIDES = frozenset({"AUTH", "STLS"})
"""Commands whose reply decides how the client's next octets are read."""
KNOWN = frozenset({verb for verb, _ in MULTI_LINE} | DECIDES) | frozenset(
    "USER PASS APOP STAT DELE NOOP RSET QUIT LAST UTF8 XTND XOIP IMPLEMENTATION ID".split()
)
SECRET = frozenset({"PASS", "AUTH", "APOP"})

_VERB = re.compile(rb"[ \t]*([A-Za-z][A-Za-z0-9-]{1,15})(?:[ \t]+(.*?))?[ \t]*\Z", re.DOTALL)
_OCTETS = re.compile(rb"\+OK[ \t]+(\d{1,15})(?:[ \t]+octets)?\b", re.IGNORECASE)
_FIELD = re.compile(rb"[!-9;-~]{1,76}[ \t]*:")
_LISTING = re.compile(rb"\d+ \S+\Z")
_END = b"\r\n.\r\n"
_SMALL = 8 << 10
_END_LF = re.compile(rb"\n\.\r?\n")
_HELD_LF = re.compile(rb"\n(?:\.\r?)?\Z")
_STATUS = re.compile(rb"\+OK(?=[ \t\r\n]|\Z)|-ERR(?=[ \t\r\n]|\Z)", re.IGNORECASE)


class Given(NamedTuple):
    """A command as its line reads."""

    verb: str
    argument: bytes
    shown: str | None
    """The argument as it may be shown."""


# -- grammar ---------------------------------------------------------------------------------------------------------------


def command(line: bytes, limit: int) -> Given | None:
    """command = keyword *(SP argument) (RFC 1939 3); None when the line has no keyword."""
    found = _VERB.match(line)
    if found is None:
        return None
    verb, argument = found[1].decode("ascii").upper(), found[2] or b""
    if verb not in KNOWN and not (found[1].isalpha() and (found[1].isupper() or found[1].islower())):
        return None  # base64 has both cases: a SASL response whose turn was not seen must not pass as a keyword
    if verb in SECRET:
        shown: str | None = "***"
        if verb == "AUTH":
            shown = access.sasl_shown(argument)
        elif verb != "PASS":
            first, *rest = argument.split(None, 1) or (b"",)
            shown = text(first) + (" ***" if rest else "") if first else None
    elif verb in KNOWN:
        shown = text(argument) or None
    else:
        shown = "***" if argument else None  # what follows an unknown keyword may be anybody's secret
    if shown is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return Given(verb, argument, shown)


def status(line: bytes) -> tuple[str, str] | None:
    """status indicator and text = ("+OK" / "-ERR") [SP text] (RFC 1939 3); None when it is neither."""
    word = line[:4].upper()
    if word.startswith(b"+OK"):
        return "+OK", text(line[3:].strip())
    if word == b"-ERR":
        return "-ERR", text(line[4:].strip())
    return None


def number(argument: bytes) -> int | None:
    """A message-number: the first word of an argument or a listing line."""
    word = argument.split(None, 1)[:1]
    return int(word[0]) if word and word[0].isdigit() and len(word[0]) <= 10 else None


# -- session ---------------------------------------------------------------------------------------------------------------


class _Asked:
    """A command that waits for its reply."""

    __slots__ = ("ack", "argument", "end", "frame", "n", "notes", "offset", "shown", "ts", "ts_end", "user", "verb")

    def __init__(self, given: Given, n: int) -> None:
        self.verb, self.argument, self.shown, self.n = given.verb, given.argument, given.shown, n
        self.ts: int | None = None
        self.ts_end: int | None = None
        self.frame: int | None = None
        self.offset = self.end = 0
        """Stream offsets of its first octet, and behind its last."""
        self.ack = -1
        """Server octets acknowledged when it was sent."""
        self.user: str | None = None
        """Who logs in with it."""
        self.notes: list[tuple[str, str]] = []


class _Reply:
    """A reply of several lines that is being read."""

    __slots__ = (
        "announced",
        "asked",
        "begun",
        "first_frame",
        "kind",
        "lost",
        "offset",
        "reader",
        "seen",
        "status",
        "text",
        "ts_data",
        "ts_first",
    )

    def __init__(self, asked: _Asked | None, kind: str, offset: int) -> None:
        self.asked = asked
        self.kind = kind
        self.offset = offset
        """Stream offset of the reply's first octet."""
        self.status: str | None = None
        self.text = ""
        self.ts_first: int | None = None
        self.ts_data: int | None = None
        self.first_frame: int | None = None
        self.reader: MessageReader | None = None
        self.announced: int | None = None
        """Octets of the message by the reply's text."""
        self.seen = 0
        self.begun = False
        """Its first line was looked at."""
        self.lost = False


class Session(BaseSession):
    """One POP3 connection."""

    protocol = "pop3"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.waiting: deque[_Asked] = deque()
        self.reply: _Reply | None = None
        self.greeted = False
        self.lf: bool | None = None
        """The server ends its lines with a bare LF."""
        self.uidl: dict[int, str] = {}
        self.ids: dict[int, str] = {}
        self.marked: dict[int, None] = {}
        self.named: _Asked | None = None
        """The last USER that was not followed by its PASS yet."""
        self._user_row: Command | None = None
        self._hold: _Asked | None = None  # the command whose reply the client's next octets hang on
        self._sasl_turn: int | None = None  # a SASL response is due from the client: which
        self._cut_line = False  # the rest of a line past the limit is being skipped
        self._torn_client = False  # a gap: the client's next line may begin in the middle
        self._lost: int | None = None  # a gap of the server just met: octets, -1 unknown
        self._orphan: _Reply | None = None  # a positive reply to an unseen command: one line, or more?
        self._client_lf = False  # "bare LF" is said once for each side
        self._cut_line_s = False
        self._challenges = 0
        self._doubt = False  # a SASL exchange was lost from sight: what follows may be part of it
        self._tls_due: int | None = None  # STLS was granted at this time: what follows is not POP3 (RFC 2595 4)
        self._last_reply: int | None = None
        self._given_up = -1  # client offset at which waiting for the client was given up
        self._lonely = False  # "a command was not seen" is said once

    def pump(self) -> None:
        """Read as far as both directions allow."""
        while True:
            if self._tls_due is not None:
                ts, self._tls_due = self._tls_due, None
                self.start_tls(ts)
            moved = self._read_client()
            moved = self._read_server() or moved
            if not moved and not self._give_up_hold():
                return

    # the client's octets

    def _read_client(self) -> bool:
        moved = False
        inbox = self.client
        while self._tls_due is None and (self._hold is None or self._sasl_turn is not None):
            if self._sasl_turn is not None and self._server_behind():
                return moved
            begin = inbox.offset
            line = inbox.line()
            if line is None:
                if not inbox.has_gap:
                    break
                inbox.take_gap()
                self._torn_client, self._cut_line = True, False
                if self._sasl_turn is not None:
                    self._sasl_turn = access.LOST_TURN
                moved = True
                continue
            moved = True
            self._client_line(line, begin)
        return moved

    def _server_behind(self) -> bool:
        """The server has said more before the client's next octets: the exchange they seem to belong to may be over."""
        client, server = self.client, self.server
        if not client.available or not (server.available or server.has_gap):
            return False
        ts, _, ack = client.segment_at(client.offset)
        if ack >= 0:
            return ack > server.offset
        said = server.ts_at(server.offset)
        return ts is not None and said is not None and said < ts

    def _client_line(self, line: bytes, begin: int) -> None:
        inbox = self.client
        ended = not inbox.cut
        skip, self._cut_line = self._cut_line, not ended
        if skip:
            return
        if self._sasl_turn is not None:
            if self._hold is not None:
                self._response(line)
            self._sasl_turn = None
            return
        torn, self._torn_client = self._torn_client, False
        given = command(line, self.limits.argument_chars)
        if given is None or (given.verb not in KNOWN and (torn or self._doubt or self.server.ended)):
            return  # blank lines, the rest of a torn line, and what may be a SASL response whose turn was not seen
        self._asked(given, line, begin, ended)

    def _asked(self, given: Given, line: bytes, begin: int, ended: bool) -> None:
        inbox, info = self.client, self.info
        info.commands += 1
        asked = _Asked(given, info.commands)
        asked.offset, asked.end = begin, inbox.offset
        asked.ts, asked.frame, asked.ack = inbox.ts_at(begin), inbox.frame_at(begin), inbox.ack_at(begin)
        asked.ts_end = inbox.ts_at(inbox.offset - 1)
        if not ended:
            asked.notes.append(("line_too_long", f"{given.verb}: longer than {self.limits.line_bytes} octets"))
        elif len(line) + 2 != inbox.offset - begin and not self._client_lf:
            self._client_lf = True
            asked.notes.append(("bare_lf", "client lines end with a bare LF"))
        if given.verb in ("USER", "APOP"):
            asked.user = text(given.argument.split(b" ", 1)[0])[:256] or None
        elif given.verb in DECIDES and (given.verb != "AUTH" or given.argument):
            self._hold = asked
        if given.verb == "STLS":
            info.ts_starttls = asked.ts
        self.waiting.append(asked)
        if len(self.waiting) > self.limits.commands_waiting:
            self._unanswered(self.waiting.popleft())

    def _response(self, line: bytes) -> None:
        """A client's SASL response: its name is kept, the rest is gone."""
        asked = self._hold
        if asked is None or line == b"*":
            return
        asked.user = access.sasl_user(access.sasl(asked.argument)[0], line, self._sasl_turn or 0) or asked.user

    def _give_up_hold(self) -> bool:
        """The reply that the client's octets hang on will not come: read on as if it had not mattered."""
        asked = self._hold
        if asked is None:
            return False
        late = self.client.held > self.limits.waiting_bytes
        if not (late or (self.server.ended and not self.server.available and not self.server.has_gap)):
            return False
        self._hold = self._sasl_turn = None
        self._doubt = True
        if late:
            self.weird("reply_not_seen", f"no reply to {asked.verb}", asked.ts, asked.frame)
        octets = self.client.buf[self.client.pos : self.client.pos + 2]
        if asked.verb == "STLS" and octets == b"\x16\x03":
            self.start_tls(asked.ts)
        return True

    # the server's octets

    def _read_server(self) -> bool:
        moved = False
        inbox = self.server
        while self._tls_due is None:
            if self._lost is not None:
                if not self._resume():
                    return moved
            elif self._orphan is not None:
                if not self._read_orphan():
                    return moved
            elif self.reply is not None:
                if not (self._read_body() if self.reply.kind == BODY else self._read_lines()):
                    return moved
            elif inbox.available and (not self.waiting or self._sasl_turn is not None) and self._client_behind(inbox.offset):
                return moved
            elif not self._read_status():
                if not inbox.has_gap:
                    return moved
                self._lost = inbox.take_gap()
            moved = True
            if self._hold is not None and self._sasl_turn is not None:
                break  # the client's turn
        return moved

    def _client_behind(self, offset: int) -> bool:
        """The client has octets to read that came before the server's octet at `offset`."""
        client = self.client
        if client.ended or (self._hold is not None and (self._sasl_turn is None or self._server_behind())):
            return False
        ack = self.server.ack_at(offset)
        if ack >= 0:
            if ack <= client.offset:
                return False
        else:  # inside TLS: by time, what the client says next must be later
            here, heard = self.server.ts_at(offset), client.ts_at(client.offset if client.available else 1 << 62)
            if here is not None and heard is not None and heard > here:
                return False
        if self._given_up == client.offset + client.available:
            return False
        if self.server.held > self.limits.waiting_bytes:
            self._given_up = client.offset + client.available
            self.weird(
                "reply_not_seen", "the client is not in the capture", self.server.ts_at(offset), self.server.frame_at(offset)
            )
            return False
        return True

    def _head(self, offset: int) -> _Asked | None:
        """The command that a reply beginning at `offset` answers."""
        if not self.waiting:
            return None
        head = self.waiting[0]
        ts, _, ack = self.server.segment_at(offset)
        if head.end > ack if ack >= 0 else (head.ts_end or 0) > (ts or 0):
            return None  # sent before that command was whole
        return head

    def _read_status(self) -> bool:
        inbox = self.server
        begin = inbox.offset
        line = inbox.line()
        if line is None:
            return False
        ended = not inbox.cut
        skip, self._cut_line_s = self._cut_line_s, not ended
        if skip:
            return True
        if not ended:
            self.weird("line_too_long", "a reply line of the server", inbox.ts_at(begin), inbox.frame_at(begin))
        elif self.lf is None:
            self.lf = len(line) + 1 == inbox.offset - begin
            if self.lf:
                self.weird("bare_lf", "server lines end with a bare LF", inbox.ts_at(begin), inbox.frame_at(begin))
        found = status(line)
        if not self.greeted:
            self.greeted = True
            if found:
                self._greeting(line)
                return True
        if found is None:
            self._odd_line(line, begin)
            return True
        asked = self._head(begin)
        reply = _Reply(asked, "", begin)
        reply.status, reply.text = found
        reply.ts_first, reply.first_frame, _ = inbox.segment_at(begin)
        announced = _OCTETS.match(line)
        reply.announced = int(announced[1]) if announced else None
        if asked is None:
            self._unasked(reply, line)
            return True
        self.waiting.popleft()
        if self._hold is asked:
            self._hold = self._sasl_turn = None
        kind = MULTI_LINE.get((asked.verb, bool(asked.argument))) if found[0] == "+OK" else None
        if kind is None:
            self._done(reply)
        else:
            self._open(reply, kind)
        return True

    def _open(self, reply: _Reply, kind: str) -> None:
        """The lines of a reply follow."""
        reply.kind = kind
        if kind == BODY:
            reply.reader = MessageReader(self.limits)
        self.reply = reply

    def _greeting(self, line: bytes) -> None:
        info, inbox = self.info, self.server
        info.ts_banner = info.ts_greeted = inbox.ts_at(inbox.offset - 1)
        info.frame_banner = info.frame_greeted = inbox.frame_at(inbox.offset - 1)
        info.server_software = access.software(line)
        info.server_name = access.host(line)

    def _odd_line(self, line: bytes, begin: int) -> None:
        """Neither `+OK` nor `-ERR`: a SASL challenge, or nothing of this protocol."""
        if line[:1] == b"+":
            asked = self._hold
            if asked is not None and self._head(begin) is asked and asked.verb == "AUTH":
                self._challenges += 1
                self._sasl_turn = access.turn_of(line[1:].strip(), self._challenges - 1 + (b" " in asked.argument))
            return
        if line:
            self.weird("bad_reply", "a line that is no reply", self.server.ts_at(begin), self.server.frame_at(begin))

    # replies to commands that are not in the capture

    def _unasked(self, reply: _Reply, line: bytes) -> None:
        if self.info.ts_banner is None and self._last_reply is None and (access.software(line) or b"ready" in line.lower()):
            self._greeting(line)  # the capture began after the handshake, before the greeting
            return
        if not self._lonely:
            self._lonely = True
            self.weird("command_not_seen", f"a reply to no command seen: {reply.text[:60]!r}", reply.ts_first, reply.first_frame)
        if reply.status == "+OK":
            self._orphan = reply

    def _read_orphan(self) -> bool:
        """One line or more?  The line after it tells: a reply, a listing or a message's first field."""
        inbox, reply = self.server, self._orphan
        assert reply is not None
        buf, pos = inbox.buf, inbox.pos
        end = buf.find(b"\n", pos)
        if end < 0 and not inbox.before_gap and len(buf) - pos < self.limits.line_bytes:
            return False
        self._orphan = None
        line = buf[pos : end if end >= 0 else len(buf)].rstrip(b"\r")
        if not line or _STATUS.match(line) or line[:2] == b"+ " or line == b"+":
            return True
        if _FIELD.match(line):
            self._open(reply, BODY)
        else:
            self._open(reply, LINES)
        return True

    # replies of several lines

    def _read_lines(self) -> bool:
        """A listing: lines up to the one with a single dot."""
        inbox, reply = self.server, self.reply
        assert reply is not None
        begin = inbox.offset
        line = inbox.line()
        if line is None:
            if not inbox.has_gap:
                return False
            self._lost = inbox.take_gap()
            return True
        if line == b".":
            self.reply = None
            self._done(reply)
        elif reply.lost and _STATUS.match(line):
            inbox.pos -= inbox.offset - begin
            self.reply = None
            self._done(reply)
        elif reply.asked is not None:
            self._listed(reply.asked.verb, line[1:] if line[:1] == b"." else line)
        return True

    def _listed(self, verb: str, line: bytes) -> None:
        if verb == "UIDL":
            which, _, unique = line.strip().partition(b" ")
            n = number(which)
            if n is not None and unique and len(self.uidl) < self.limits.mailbox_messages:
                self.uidl[n] = text(unique.strip()[:70])  # RFC 1939 7: 1 to 70 characters
        elif verb == "CAPA" and len(self.info.capabilities) < 200:
            word = text(line.strip()[:200])
            self.info.capabilities.append(word.upper())
            if word.upper() == "STLS" and self.info.starttls is None:
                self.info.starttls = "offered"
            elif word.upper().startswith("IMPLEMENTATION "):
                self.info.server_software = word[15:].strip() or self.info.server_software

    def _read_body(self) -> bool:
        """A message: octets up to a line with a single dot, the dots before lines taken off (RFC 1939 3)."""
        inbox, reply = self.server, self.reply
        assert reply is not None and reply.reader is not None
        buf, pos = inbox.buf, inbox.pos
        if pos < len(buf) and reply.ts_data is None:
            reply.ts_data = inbox.ts_at(inbox.offset)
        if self.lf:
            end = self._read_bare(reply, reply.reader, buf, pos)
        elif not reply.seen and not reply.lost and buf[pos : pos + 1] != b"." and (at := buf.find(_END, pos, pos + _SMALL)) >= 0:
            end = at + len(_END)  # most messages are small and there at once
            reply.reader.feed(buf[pos : at + 2].replace(b"\r\n.", b"\r\n"))
        else:
            end = reply.reader.feed_stuffed(buf, pos)
        if end >= 0:
            inbox.pos = end
            self._body_ended(True)
            return True
        if not self.lf:
            inbox.pos = len(buf)
        reply.seen += inbox.pos - pos
        if not inbox.has_gap:
            return False
        self._lost = inbox.take_gap()
        return True

    def _read_bare(self, reply: _Reply, reader: MessageReader, buf: bytes, pos: int) -> int:
        """The same where lines end with a bare LF: position after the end, or -1 with `inbox.pos` at what is undecided."""
        if not reply.begun and pos < len(buf):
            if buf[pos] == 46:
                first = _END_LF.match(b"\n" + buf[pos : pos + 3])
                if first is not None:
                    return pos + first.end() - 1
                if len(buf) - pos < 3 and not self.server.before_gap:
                    return -1
                pos += 1
            reply.begun = True
        found = _END_LF.search(buf, pos)
        if found is not None:
            reader.feed(buf[pos : found.start() + 1].replace(b"\n.", b"\n"))
            return found.end()
        held = _HELD_LF.search(buf, max(pos, len(buf) - 3))
        end = held.start() if held is not None and not self.server.before_gap else len(buf)
        reader.feed(buf[pos:end].replace(b"\n.", b"\n"))
        self.server.pos = end
        return -1

    def _body_ended(self, whole: bool) -> None:
        """The final dot was read, or the end is lost or will not come."""
        reply, inbox, info = self.reply, self.server, self.info
        assert reply is not None and reply.reader is not None
        self.reply = None
        asked = reply.asked
        retrieved = asked is not None or reply.announced == reply.reader.size  # else it may be what TOP shows
        content = reply.reader.content(whole and retrieved and not reply.lost)
        for name, detail in reply.reader.oddities:
            self.weird(name, detail, reply.ts_first, reply.first_frame)
        n = number(asked.argument) if asked else None
        if content.message_id and n is not None and len(self.ids) < self.limits.mailbox_messages:
            self.ids[n] = content.message_id
        last = inbox.offset - 1
        ts_eom, frame = (inbox.ts_at(last), inbox.frame_at(last)) if whole else (None, inbox.frame_at(last))
        if (asked is None or asked.verb == "RETR") and (content.size or whole or asked):
            info.messages += 1
            self.events.append(
                MessageCarried(
                    info,
                    "retrieve",
                    info.messages,
                    ts_start=asked.ts if asked else reply.ts_first,
                    ts_data=reply.ts_data,
                    ts_eom=ts_eom,
                    ts_end=ts_eom,
                    first_frame=asked.frame if asked else reply.first_frame,
                    last_frame=frame,
                    outcome="accepted" if reply.status == "+OK" else "unknown",
                    reply_text=self._cut(reply.text),
                    content=content,
                    number=n,
                    uidl=self.uidl.get(n) if n is not None else None,
                )
            )
        if whole:
            self._done(reply)
        elif asked is not None:
            self._unanswered(asked, reply)

    # after a gap

    def _resume(self) -> bool:
        """A gap was met: what is lost of the replies, and where does the next begin?"""
        inbox = self.server
        while inbox.has_gap and not inbox.available:
            more = inbox.take_gap()
            self._lost = -1 if more < 0 or self._lost is None or self._lost < 0 else self._lost + more
        if not (inbox.before_gap or inbox.available >= self.limits.line_bytes or self._two_lines()):
            return False
        if self._client_behind(inbox.offset):
            return False
        lost, here = self._lost or 0, inbox.offset
        self._lost, self._orphan, self.greeted = None, None, True
        boundary = self._boundary(here)
        reply = self.reply
        if reply is not None:
            reply.lost = True
            nxt = self._next_reply(reply.offset)
            over = nxt <= here if nxt >= 0 else self._exhausted(reply, lost)
            if not over:
                if reply.reader is not None:
                    reply.reader.gap(lost)
                    reply.seen += max(lost, 0)
                    reply.begun = True
                else:
                    self._skip_line()
                return True
            if reply.reader is not None:
                reply.reader.gap(-1)
                self._body_ended(False)
            else:
                self.reply = None
                if reply.asked is not None:
                    self._unanswered(reply.asked, reply)
        if boundary is None:
            self._skip_to_status()
            return True
        while self.waiting[0] is not boundary:
            self._unanswered(self.waiting.popleft())
        if boundary.ack < here:
            self._amid(boundary, begun=reply is None and 0 <= here - lost <= boundary.ack)
        return True

    def _two_lines(self) -> bool:
        """Two lines can be read: enough to tell where we are."""
        first = self.server.buf.find(b"\n", self.server.pos)
        return first >= 0 and self.server.buf.find(b"\n", first + 1) >= 0

    def _next_reply(self, begin: int) -> int:
        """Where the reply after the one that began at `begin` starts, by the next command's acknowledgement; -1 unknown."""
        ack = self.waiting[0].ack if self.waiting else -1
        return ack if ack > begin else -1

    def _boundary(self, here: int) -> _Asked | None:
        """The last command given when all before it was answered, and before the octet `here` was sent."""
        found, before = None, -1
        for asked in islice(self.waiting, _LOOK):
            if asked.ack > here:
                break
            if asked.ack > before:
                found, before = asked, asked.ack
        return found

    def _exhausted(self, reply: _Reply, lost: int) -> bool:
        """The message's announced octets end inside the gap."""
        return reply.announced is not None and lost >= 0 and reply.seen + lost > reply.announced

    def _amid(self, asked: _Asked, begun: bool) -> None:
        """We are in the middle of the reply to this command: its status indicator is lost; `begun`: surely so."""
        if begun and _STATUS.match(self.server.buf, self.server.pos):  # another command's
            self._unanswered(self.waiting.popleft())
            return
        kind = MULTI_LINE.get((asked.verb, bool(asked.argument)))
        if kind is None:
            if not _STATUS.match(self.server.buf, self.server.pos):
                self._unanswered(self.waiting.popleft())
                self._skip_line()
            return
        if _STATUS.match(self.server.buf, self.server.pos):
            return
        self.waiting.popleft()
        reply = _Reply(asked, kind, asked.ack)
        reply.lost = reply.begun = True
        self._open(reply, kind)
        if reply.reader is not None:
            reply.reader.gap(-1)
            reply.ts_data = self.server.ts_at(self.server.offset)

    def _skip_line(self) -> None:
        """The rest of a line whose beginning is lost."""
        inbox = self.server
        if inbox.line() is None:
            inbox.take(inbox.available)

    def _skip_to_status(self) -> None:
        """No command tells where we are: a status indicator at once, on the next line, or we are inside a message."""
        inbox = self.server
        if _STATUS.match(inbox.buf, inbox.pos) or not inbox.available:
            return
        end = inbox.buf.find(b"\n", inbox.pos) + 1
        if end and _STATUS.match(inbox.buf, end):
            inbox.pos = end
            return
        first = inbox.buf[inbox.pos : end or len(inbox.buf)]
        second = inbox.buf[end : inbox.buf.find(b"\n", end)].rstrip() if end else b""
        reply = _Reply(None, LINES if _LISTING.match(second or first.strip()) else BODY, inbox.offset)
        reply.lost = reply.begun = True
        reply.ts_first, reply.first_frame = inbox.ts_at(inbox.offset), inbox.frame_at(inbox.offset)
        self._open(reply, reply.kind)
        if reply.reader is not None:
            reply.reader.gap(-1)
            reply.ts_data = reply.ts_first
        elif self.lf is None:
            self._skip_line()

    # a reply is whole

    def _done(self, reply: _Reply) -> None:
        """Write the command's row, and do what the reply means."""
        inbox, asked = self.server, reply.asked
        if asked is None:
            return
        last = inbox.offset - 1
        ts, frame = inbox.ts_at(last), inbox.frame_at(last)
        self._row(asked, reply, ts, frame)
        if reply.status == "+OK":
            self._granted(asked, reply, ts, frame)
        elif asked.verb in ("PASS", "APOP", "AUTH") and asked.argument:
            self._login(asked, False, ts, frame)
        elif asked.verb == "STLS":
            self.info.starttls = "refused"
        if asked.verb == "AUTH":
            self._challenges = 0

    def _granted(self, asked: _Asked, reply: _Reply, ts: int | None, frame: int | None) -> None:
        n = number(asked.argument)
        match asked.verb:
            case "DELE" if n is not None and len(self.marked) < self.limits.mailbox_messages:
                self.marked[n] = None
            case "RSET":
                self.marked.clear()
            case "QUIT":
                self.info.end = "quit"
                for gone in sorted(self.marked):
                    self._deleted(gone, ts, frame)
                self.marked.clear()
            case "UIDL" if n is not None:
                self._listed("UIDL", reply.text.encode())
            case "STLS":
                self.info.starttls = "used"
                self._tls_due = ts if ts is not None else 0
            case "PASS" | "APOP":
                self._login(asked, True, ts, frame)
            case "AUTH" if asked.argument:
                self._login(asked, True, ts, frame)

    def _deleted(self, n: int, ts: int | None, frame: int | None) -> None:
        self.events.append(
            MailboxEvent(
                ts or 0, self.info, "deleted", frame, None, None, None, n, self.uidl.get(n), "QUIT", message_id=self.ids.get(n)
            )
        )

    def _login(self, asked: _Asked, ok: bool, ts: int | None, frame: int | None) -> None:
        info, named, user = self.info, self.named, asked.user
        info.ts_auth = asked.ts
        if asked.verb == "AUTH":
            info.auth_mechanism, initial = access.sasl(asked.argument)
            user = access.sasl_user(info.auth_mechanism, initial, 0) or user
        else:
            info.auth_mechanism = "USER" if asked.verb == "PASS" else asked.verb
            if asked.verb == "PASS" and named is not None:
                info.ts_auth, user = named.ts, named.user
        if user is not None and (ok or access.is_name(user)):
            info.auth_user = user
        info.auth_ok = ok
        info.ts_auth_done, info.frame_auth = ts, frame

    def _tell_user(self, after: _Asked | None, status: str | None) -> None:
        """USER's row waits for what comes after it: what was refused, or not followed by PASS, may be a mistyped password."""
        row, self._user_row = self._user_row, None
        if row is None:
            return
        good = after is None or (after.verb == "PASS" and status != "-ERR")
        if not good and row.argument is not None and not access.is_name(row.argument):
            row = row._replace(argument="***")
        self.events.append(row)

    def _row(self, asked: _Asked, reply: _Reply | None, ts: int | None, frame: int | None) -> None:
        self._tell_user(asked, reply.status if reply else None)
        if asked.verb != "PASS":
            self.named = asked if asked.verb == "USER" else None
        for name, detail in asked.notes:
            self.weird(name, detail, asked.ts, asked.frame)
        first = reply.ts_first if reply else None
        words = self._cut(reply.text) if reply and reply.status else None
        if words and asked.shown is not None and asked.shown.endswith("***"):
            pieces = asked.argument.split()
            words = access.unsaid(words, [asked.argument] if asked.verb == "PASS" else [asked.argument, *pieces[-2:]])
        latency = (first - asked.ts_end) / 1e9 if first is not None and asked.ts_end is not None else None
        before = self._last_reply
        row = Command(
            self.info.session_id,
            asked.n,
            asked.ts,
            ts,
            latency,
            self.protocol,
            None,
            asked.verb,
            asked.shown,
            reply.status if reply else None,
            None,
            words,
            asked.ts is not None and before is not None and asked.ts < before,
            asked.frame,
            frame,
        )
        if asked.verb == "USER":
            self._user_row = row
        else:
            self.events.append(row)
        if ts is not None:
            self._last_reply = ts

    def _unanswered(self, asked: _Asked, reply: _Reply | None = None) -> None:
        """A command whose reply, or the end of it, was not seen."""
        if self._hold is asked:
            self._hold = self._sasl_turn = None
        if asked.verb == "AUTH":
            self._doubt = True
        self._row(asked, reply, None, None)

    def _cut(self, words: str) -> str:
        limit = self.limits.argument_chars
        return words if len(words) <= limit else words[: limit - 1] + "…"

    def finish(self, reason: str, ts: int) -> None:
        """End what is open; nothing more will come."""
        reply = self.reply
        if reply is not None:
            reply.lost = True
            if reply.reader is not None:
                self._body_ended(False)
            elif reply.asked is not None:
                self._unanswered(reply.asked, reply)
        while self.waiting:
            self._unanswered(self.waiting.popleft())
        self._tell_user(None, None)


# -- probe -----------------------------------------------------------------------------------------------------------------

_GREETS = re.compile(
    rb"\+OK\b[^\r\n]*(?:pop|ready|octets|messages?\b|maildrop|mailbox|logged in|<[^<>@\s]+@[^<>@\s]+>)", re.IGNORECASE
)
_OWN = frozenset({"RETR", "UIDL", "APOP", "CAPA", "STLS", "TOP", "DELE", "STAT", "PASS", "RSET", "LAST"})
_MUCH = 16 << 10
"""Octets of one side after which the other is not waited for."""


def _like_server(octets: bytes) -> int:
    """2 surely, 1 perhaps, 0 nothing said, -1 not (or the middle of a message)."""
    if not octets:
        return 0
    if _GREETS.match(octets) or b"\r\n.\r\n+OK" in octets:
        return 2
    return 1 if _STATUS.match(octets) else -1


def _like_client(octets: bytes) -> int:
    """2 surely, 1 perhaps, 0 no line yet, -1 not."""
    line, end, rest = octets.partition(b"\n")
    if not end:
        return 0 if len(octets) < 512 and octets[:1] not in (b"*", b"$") else -1
    given = command(line.rstrip(b"\r"), 40)
    if given is None or given.verb not in KNOWN:
        return -1
    second = command(rest.partition(b"\n")[0].rstrip(b"\r"), 40) if rest else None
    return 2 if given.verb in _OWN or (second is not None and second.verb in _OWN) else 1


def probe(orig: bytes, resp: bytes, orig_port: int, resp_port: int, closing: bool) -> Recognised | None:
    """Does this connection speak POP3?  What both sides say decides, port 110 breaks ties."""
    ways = ((orig, resp, resp_port == 110, True), (resp, orig, orig_port == 110 and resp_port != 110, False))
    for client, server, on_port, client_is_orig in ways:
        says, asks = _like_server(server), _like_client(client)
        enough = closing or len(server) >= _MUCH or len(client) >= _MUCH
        if says > 0 and asks > 0:
            good = says + asks > 2 or on_port
        elif says == 2:
            good = asks == 0 and (on_port or b"pop" in server[:200].lower() or enough)
        elif says == 1:
            good = asks == 0 and on_port and enough
        elif says == 0:
            good = enough and (on_port if asks == 1 else asks == 2 and (on_port or b"UIDL" in client[:2000].upper()))
        else:  # joined in the middle of a message
            good = on_port and asks >= 0 and (asks == 2 or enough) and _textual(server)
        if good:
            return Recognised("pop3", client_is_orig)
    return None


def _textual(octets: bytes) -> bool:
    """Lines of text, as the middle of a message is."""
    piece = octets[:2000]
    return b"\r\n" in piece and min(piece) >= 9 and not _OTHERS.match(piece)


_OTHERS = re.compile(rb"[*$:]|[1-5]\d\d[ -]")
"""How servers of other text protocols begin a reply: Redis, SMTP, FTP, NNTP."""
