"""Boundaries before meaning: each direction cut into units, and tagged replies paired with their commands.

A unit is a line with its literals (RFC 9051 2.2, 4.3).  The client is read ahead except where the server decides what its
octets are: a synchronising literal, a SASL response, STARTTLS, COMPRESS.  The server is read only as far as the client was
heard: what a response means depends on the commands given before it and on no others.  What units mean is session.py's.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from analyzer.protocols import access
from analyzer.protocols.base import Malformed, text
from analyzer.protocols.base import Session as BaseSession
from analyzer.protocols.imap import grammar
from analyzer.protocols.imap.fetched import Literal
from analyzer.protocols.imap.inflate import Inflater
from analyzer.protocols.inbox import Inbox
from analyzer.wire.types import Chunk

KNOWN = frozenset(
    "CAPABILITY NOOP LOGOUT STARTTLS AUTHENTICATE LOGIN ENABLE SELECT EXAMINE CREATE DELETE RENAME SUBSCRIBE UNSUBSCRIBE LIST "
    "LSUB NAMESPACE STATUS APPEND IDLE CLOSE UNSELECT EXPUNGE SEARCH FETCH STORE COPY MOVE CHECK ID COMPRESS SORT THREAD "
    "SETACL DELETEACL GETACL LISTRIGHTS MYRIGHTS GETQUOTA GETQUOTAROOT SETQUOTA NOTIFY GETMETADATA SETMETADATA GENURLAUTH "
    "RESETKEY URLFETCH ESEARCH CONVERT UNAUTHENTICATE REPLACE LANGUAGE COMPARATOR XLIST GETJMAPACCESS CANCELUPDATE".split()
) | frozenset("UID " + verb for verb in "FETCH STORE COPY MOVE EXPUNGE SEARCH SORT THREAD REPLACE".split())
DECIDES = frozenset({"AUTHENTICATE", "STARTTLS", "COMPRESS"})
"""Commands whose reply decides how the client's next octets are read."""

At = tuple[int | None, int | None, int]
"""Where a line began: its segment's time, frame, and what it acknowledged of the other direction (-1 unknown)."""

_RESPONSE = re.compile(
    rb"\* (?:[0-9]{1,10} (?:EXISTS|EXPUNGE|RECENT|FETCH \()|(?:OK|NO|BAD|BYE|PREAUTH|CAPABILITY|FLAGS|LIST|LSUB|SEARCH|ESEARCH|"
    rb"STATUS|VANISHED|ENABLED|ID|NAMESPACE|QUOTA|QUOTAROOT|SORT|THREAD)\b)",
    re.IGNORECASE,
)
"""What is surely an untagged response, even behind a gap."""
_STATUS = re.compile(rb"\* (?:OK|NO|BAD|BYE|PREAUTH)\b", re.IGNORECASE)
_LOOK = 64
"""Commands in flight among which the one that a response belongs to is looked for."""
_LITERALS = 1000
"""Literals of one unit that are kept apart: those beyond are skipped."""
_TAIL = 64
"""Last octets of a line past the limit that are kept: a literal may be announced there."""


class Asked:
    """A command that waits for its tagged reply."""

    __slots__ = (
        "argument",
        "before",
        "done",
        "extra",
        "frame",
        "literals",
        "n",
        "notes",
        "offset",
        "secrets",
        "shown",
        "tag",
        "ts",
        "ts_end",
        "ts_reply",
        "uploads",
        "user",
        "verb",
        "whole",
    )

    def __init__(self, given: grammar.Given, n: int, before: "Asked | None") -> None:
        self.tag, self.verb, self.argument, self.n, self.before = given.tag, given.verb, given.argument, n, before
        self.shown: str | None = None
        """The argument as it may be shown."""
        self.secrets: Sequence[bytes] = ()
        """What of it must not be shown, for the reply may repeat it; dropped with the reply."""
        self.literals: list[bytes | None] = []
        self.offset = 0
        self.ts: int | None = None
        self.ts_end: int | None = None
        self.ts_reply: int | None = None
        self.frame: int | None = None
        self.done = False
        self.whole = False
        """Its last line was read."""
        self.notes: list[tuple[str, str]] = []
        self.uploads: list[Any] = []
        """Messages of an APPEND (`session.Upload`)."""
        self.user: str | None = None
        """Who logs in with it."""
        self.extra: Any = None
        """What its responses have told so far, by verb (see session.py)."""


class Unit:
    """A response, or a command with literals, that is being read."""

    __slots__ = ("asked", "at", "box", "entry", "kinds", "line", "literals", "number", "section", "torn")

    def __init__(self, at: At, asked: Asked | None = None) -> None:
        self.at = at
        self.asked = asked
        """The command it is; of a FETCH response the command that asked for it."""
        self.line = b""
        """Its lines, each literal as `{its number}`."""
        self.literals: list[Literal] = []
        self.torn = False
        """Octets of it are lost."""
        self.box: Any = None
        self.entry: Any = None
        """The mailbox and the message a FETCH response is about."""
        self.number = 0
        self.kinds: list[tuple[str, int | None]] = []
        """What each literal of a FETCH is, and at which octet it begins."""
        self.section = False
        """The literal before was a TEXT part of CATENATE."""

    def add(self, literal: Literal) -> None:
        """A literal comes here in its line."""
        if len(self.literals) < _LITERALS:
            self.line += b"{%d}" % len(self.literals)
            self.literals.append(literal)


class Side:
    """Where one direction's reader stands."""

    __slots__ = ("at", "begin", "cut", "head", "inbox", "left", "resync", "tail", "unit")

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.unit: Unit | None = None
        self.left: Literal | None = None
        """The literal being read."""
        self.begin = 0
        """Stream offset of the line being read."""
        self.at: At = (None, None, -1)
        self.head: bytes | None = None
        """The first octets of a line past the limit whose rest is being skipped."""
        self.tail = b""
        """The last octets of it so far."""
        self.cut = False
        """The line just read was past the limit."""
        self.resync = False
        """Behind a gap: only what is surely a unit's beginning is read."""


class Units(BaseSession):
    """One IMAP connection, read unit by unit."""

    protocol = "imap"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asks, self.says = Side(self.client), Side(self.server)
        self.flying: deque[Asked] = deque()
        """Commands without a reply, oldest first (those done are dropped when they come to the front)."""
        self.tags: dict[bytes, deque[Asked]] = {}
        self.last: Asked | None = None
        self.odd: deque[tuple[int, int | None, int | None]] = deque()
        """Lines of the client that are no commands, to be told when a later command is: commands before, time, frame."""
        self.greeted = False
        self._hold: Asked | None = None  # the command whose reply the client's next octets hang on
        self._granted = False  # `+`: the literal held back may be read
        self._sasl_turn: int | None = None  # a SASL response is due from the client: which
        self._challenges = 0
        self._doubt = False  # a SASL exchange or a literal was lost from sight: what follows may be part of it
        self.turning: Callable[[], None] | None = None
        """STARTTLS or COMPRESS was granted: what makes both directions turn, to be done before any other octet is read."""
        self._inflaters: tuple[Inflater, Inflater] | None = None  # of the server, of the client
        self._given_up = -1
        self._early: tuple[bytes, Unit] | None = None
        self.early_end: tuple[int | None, int | None] | None = None
        """Time and frame of the end of a reply that waited for its command's end."""

    # what units mean: session.py

    def command_read(self, asked: Asked, literals: list[Literal]) -> None:
        """A command was read to its end."""
        raise NotImplementedError

    def command_torn(self, asked: Asked, unit: Unit) -> None:
        """The rest of a command is lost."""
        raise NotImplementedError

    def response_read(self, line: bytes, unit: Unit) -> None:
        """A response was read, its literals in `unit`."""
        raise NotImplementedError

    def response_torn(self, unit: Unit) -> None:
        """The rest of a response is lost."""
        raise NotImplementedError

    def response_begun(self, line: bytes, unit: Unit) -> None:
        """The first line of a response with literals was read."""
        raise NotImplementedError

    def literal_asked(self, asked: Asked, unit: Unit, size: int) -> Literal:
        """Where the octets of a command's literal go."""
        raise NotImplementedError

    def literal_said(self, unit: Unit, size: int) -> Literal:
        """Where the octets of a response's literal go."""
        raise NotImplementedError

    def unanswered(self, asked: Asked) -> None:
        """A command's reply was not seen."""
        raise NotImplementedError

    # compression

    def feed(self, *chunks: Chunk) -> list[Any]:
        """Take ordered octets, each chunk of one direction; return what they complete."""
        if self._inflaters is None:
            return super().feed(*chunks)
        for chunk in chunks:
            if self.tls is not None:
                self.tls.take(chunk, chunk.orig == self.client_is_orig)
            for plain in self.tls.read(self) if self.tls is not None else (chunk,):
                self._inflate(plain, plain.orig == self.client_is_orig)
        events, self.events = self.events, []
        return events

    def start_deflate(self) -> None:
        """From here on both directions are deflated: what the inboxes still hold goes through the inflaters (RFC 4978 3)."""
        self._inflaters = (Inflater(self.limits), Inflater(self.limits))
        held = [(inbox.rest(from_client == self.client_is_orig), from_client) for inbox, from_client in self._inboxes()]
        for chunks, from_client in held:
            for chunk in chunks:
                self._inflate(chunk, from_client)

    def _inboxes(self) -> tuple[tuple[Inbox, bool], tuple[Inbox, bool]]:
        return (self.client, True), (self.server, False)

    def _inflate(self, chunk: Chunk, from_client: bool) -> None:
        assert self._inflaters is not None
        inflater = self._inflaters[from_client]
        before = inflater.fault
        for plain in inflater.feed(chunk):
            (self.client if from_client else self.server).append(plain)
            self.pump()
        if inflater.fault is not None and before is None:
            self.weird(*inflater.fault, *inflater.where)

    # both directions

    def pump(self) -> None:
        """Read as far as both directions allow."""
        while True:
            if self.turning is not None:
                turn, self.turning = self.turning, None
                turn()
            moved = self._read_client()
            moved = self._read_server() or moved
            if not moved and not self._give_up_hold():
                return

    def _line(self, side: Side) -> bytes | None:
        """The next line, its end taken off; of one past the limit the first octets and the last."""
        inbox = side.inbox
        while (line := inbox.line()) is not None:
            if not inbox.cut:
                side.cut = side.head is not None
                if side.head is not None:
                    line, side.head = side.head + (side.tail + line)[-_TAIL:], None
                return line
            if side.head is None:
                side.head, side.tail = line, b""
            else:
                side.tail = (side.tail + line)[-_TAIL:]
        return None

    def _read_literal(self, side: Side) -> bool:
        """Octets of the literal under way; true when it is done."""
        literal, inbox = side.left, side.inbox
        assert literal is not None
        if literal.left and inbox.available:
            if literal.ts_first is None:
                literal.ts_first, literal.frame_first, _ = inbox.segment_at(inbox.offset)
            literal.feed(inbox.take(literal.left))
            literal.ts_last, literal.frame_last, _ = inbox.segment_at(inbox.offset - 1)
        if literal.left:
            return False
        side.left = None
        return True

    def _gap(self, side: Side) -> bool:
        """A gap comes next: in a literal its length says how to go on, else the unit is lost.  False: there is none."""
        if not side.inbox.has_gap:
            return False
        if side is self.asks and self._sasl_turn is not None:
            self._sasl_turn = access.LOST_TURN
        literal = side.left
        lost = side.inbox.take_gap()
        if literal is not None:
            over = lost < 0 or lost > literal.left
            literal.gap(lost)
            if not over:
                return True
        self._tear(side)
        return True

    def _tear(self, side: Side) -> None:
        """The unit under way is lost from here on."""
        unit, side.unit, side.left = side.unit, None, None
        side.resync, side.head = True, None
        self.greeted = self.greeted or side is self.says
        if unit is None:
            return
        unit.torn = True
        if side is self.says:
            self.response_torn(unit)
        elif unit.asked is not None:
            self._let_go(unit.asked)
            self.command_torn(unit.asked, unit)

    def _let_go(self, asked: Asked) -> None:
        if self._hold is asked:
            self._hold, self._granted, self._sasl_turn = None, False, None

    # the client

    def _read_client(self) -> bool:
        moved = False
        side = self.asks
        while self.turning is None and (self._hold is None or self._granted or self._sasl_turn is not None):
            if self._hold is not None and self._server_behind():
                return moved
            if side.left is not None:
                if not self._read_literal(side) and not self._gap(side):
                    return moved
            else:
                if side.head is None:
                    side.begin = side.inbox.offset
                    side.at = side.inbox.segment_at(side.begin)
                line = self._line(side)
                if line is not None:
                    self._client_line(side, line)
                elif not self._gap(side):
                    return moved
            moved = True
        return moved

    def _server_behind(self) -> bool:
        """The server has said more before the client's next octets: it may have ended what they belong to."""
        client, server = self.client, self.server
        if not client.available or not (server.available or server.has_gap):
            return False
        if self.asks.left is not None and self.asks.left.left < self.asks.left.size:
            return False
        ts, _, ack = client.segment_at(client.offset)
        if ack >= 0:
            return ack > server.offset
        said = server.ts_at(server.offset)
        return ts is not None and said is not None and said < ts

    def _client_line(self, side: Side, line: bytes) -> None:
        if self._sasl_turn is not None:
            self._sasl_response(line)
            return
        unit = side.unit
        asked = unit.asked if unit is not None else self._begin_command(side, line)
        if asked is None:
            return
        if side.cut:
            asked.notes.append(("line_too_long", f"{asked.verb}: longer than {self.limits.line_bytes} octets"))
        announced = grammar.literal(line)
        if announced is None:
            self._end_command(side, asked, line)
            return
        if unit is None:
            unit = side.unit = Unit(side.at, asked)
        size, waits = announced
        unit.line = (unit.line + line[: line.rindex(b"{")].removesuffix(b"~"))[: self.limits.line_bytes]
        side.left = self.literal_asked(asked, unit, size) if len(unit.literals) < _LITERALS else Literal(size, 0)
        unit.add(side.left)
        self._granted = False
        self._hold = asked if waits and not asked.done and not self._alone() else None

    def _end_command(self, side: Side, asked: Asked, line: bytes) -> None:
        """The last line of a command."""
        unit, side.unit = side.unit, None
        literals: list[Literal] = []
        if unit is not None:
            literals = unit.literals
            asked.literals = [literal.octets for literal in literals]
            asked.argument = argument(unit.line + line)
        self._let_go(asked)
        asked.whole = True
        asked.ts_end = self.client.ts_at(self.client.offset - 1)
        if asked.verb in DECIDES and not asked.done:
            self._hold, self._challenges = asked, 0
        self.command_read(asked, literals)

    def _begin_command(self, side: Side, line: bytes) -> Asked | None:
        """The first line of a command; None when it is none (DONE belongs to its IDLE, RFC 9051 6.3.13)."""
        resync = side.resync
        if line[:5].strip().upper() == b"DONE" or not line.strip():
            return None
        ts, frame, _ = side.at
        try:
            given = grammar.command(line)
        except Malformed:
            if not (resync or self._doubt) and len(self.odd) < self.limits.folded_anomalies:
                self.odd.append((self.info.commands, ts, frame))
            return None
        known = given.verb in KNOWN
        if not known and (resync or self._doubt or not _plain_verb(line) or text(given.tag).upper() in KNOWN):
            return None  # a tag was forgotten, or it may be part of a SASL exchange or literal that was lost from sight
        if resync and self.last is not None and not _alike(given.tag, self.last.tag):
            return None
        side.resync = self._doubt = False
        self.info.commands += 1
        asked = Asked(given, self.info.commands, self.last)
        self.last = asked
        asked.offset, asked.ts, asked.frame = side.begin, ts, frame
        self.flying.append(asked)
        self.tags.setdefault(given.tag, deque()).append(asked)
        if len(self.flying) > self.limits.commands_waiting:
            self.settled(self.flying[0])
            self.unanswered(self.flying.popleft())
        return asked

    def _sasl_response(self, line: bytes) -> None:
        """A client's SASL response: the name in it is kept, the rest is gone."""
        asked, turn = self._hold, self._sasl_turn
        self._sasl_turn = None
        if asked is not None and turn is not None and line != b"*":
            asked.user = access.sasl_user(access.sasl(asked.argument)[0], line, turn) or asked.user

    def _alone(self) -> bool:
        """No server is there to wait for."""
        return self.server.ended and not self.server.available and not self.server.has_gap

    def _give_up_hold(self) -> bool:
        """The reply that the client's octets hang on will not come: read on as if it had been granted."""
        asked = self._hold
        if asked is None or self._granted or self._sasl_turn is not None:
            return False
        late = self.client.held > self.limits.waiting_bytes
        if not (late or self._alone()):
            return False
        if late:
            self.weird("reply_not_seen", f"no reply to {asked.verb}", asked.ts, asked.frame)
        self._hold = None
        if self.asks.left is None:
            self._doubt = True
            if asked.verb == "STARTTLS" and self.client.buf[self.client.pos : self.client.pos + 2] == b"\x16\x03":
                self.start_tls(asked.ts)
        return True

    # the server

    def _read_server(self) -> bool:
        moved = False
        side = self.says
        while self.turning is None:
            if self._early is not None:
                if not self._read_early():
                    return moved
            elif side.left is not None:
                if not self._read_literal(side) and not self._gap(side):
                    return moved
            else:
                if side.head is None:
                    side.begin = side.inbox.offset
                    side.at = side.inbox.segment_at(side.begin)
                    if side.unit is None and side.inbox.available and self._client_behind(side.at):
                        return moved
                line = self._line(side)
                if line is not None:
                    self._server_line(side, line)
                    if self._hold is not None and (self._granted or self._sasl_turn is not None):
                        return True  # the client's turn
                elif not self._gap(side):
                    return moved
            moved = True
        return moved

    def _client_behind(self, at: At) -> bool:
        """The client may have octets to read that came before the server's octets that began there."""
        client, (ts, frame, ack) = self.client, at
        if client.ended or (self._hold is not None and not self._granted and self._sasl_turn is None):
            return False
        if self._hold is not None and self._server_behind():
            return False
        if ack >= 0:
            if ack <= client.offset:
                return False
        else:  # inside TLS or DEFLATE: by time, what the client says next must be later
            heard = client.ts_at(client.offset if client.available else 1 << 62)
            if ts is not None and heard is not None and heard > ts:
                return False
        if self._given_up == client.offset + client.available:
            return False
        if self.server.held > self.limits.waiting_bytes:
            self._given_up = client.offset + client.available
            self.weird("reply_not_seen", "the client is not in the capture", ts, frame)
            return False
        return True

    def visible(self, at: At) -> Iterator[Asked]:
        """The commands without a reply that were given before the server's octets that began there, oldest first."""
        flying = self.flying
        while flying and flying[0].done:
            flying.popleft()
        for asked in islice(flying, _LOOK):
            if not given_before(asked, at):
                return
            if not asked.done:
                yield asked

    def _server_line(self, side: Side, line: bytes) -> None:
        unit = side.unit
        if unit is None:
            if side.resync and not self._surely(line):
                return
            side.resync = False
            unit = Unit(side.at)
            if side.cut:
                self.weird("line_too_long", "a response of the server", *side.at[:2])
            if line[:2] != b"* ":
                self._early = (line, unit)
                if not self._read_early():
                    self.early_end = self.server.segment_at(self.server.offset - 1)[:2]
                return
            if line[-1:] != b"}" or _STATUS.match(line):
                self.response_read(line, unit)
                return
        announced = grammar.literal(line)
        if announced is None or not announced[1]:
            side.unit = None
            self.response_read(unit.line + line, unit)
            return
        if side.unit is None:
            side.unit = unit
            self.response_begun(line, unit)
        unit.line = (unit.line + line[: line.rindex(b"{")].removesuffix(b"~"))[: self.limits.line_bytes]
        side.left = self.literal_said(unit, announced[0]) if len(unit.literals) < _LITERALS else Literal(announced[0], 0)
        unit.add(side.left)

    def _read_early(self) -> bool:
        """A tagged reply waits for the end of its command, which it may overtake; false while it does."""
        assert self._early is not None
        line, unit = self._early
        sending = self.asks.unit.asked if self.asks.unit is not None else None
        if (
            sending is not None
            and not sending.done
            and self._hold is not sending
            and not self.client.ended
            and line.startswith(sending.tag + b" ")
            and self.server.held <= self.limits.waiting_bytes
        ):
            return False
        self._early = None
        self.response_read(line, unit)
        self.early_end = None
        return True

    def _surely(self, line: bytes) -> bool:
        """Behind a gap: this line begins a response, and is not the text of a message."""
        if _RESPONSE.match(line):
            return True
        found = grammar.tagged(line)
        return found is not None and found.tag in self.tags and given_before(self.tags[found.tag][0], self.says.at)

    def granted(self, line: bytes, at: At) -> None:
        """continue-req = "+" SP (resp-text / base64): the client may go on (RFC 9051 7.6)."""
        asked = self._hold
        if asked is None or not given_before(asked, at):
            return
        if self.asks.left is not None:
            self._granted = True
        elif asked.verb == "AUTHENTICATE":
            initial = b" " in asked.argument.strip()
            self._sasl_turn = access.turn_of(line[1:].strip(), self._challenges + initial)
            self._challenges += 1

    def settled(self, asked: Asked) -> None:
        """A command is answered or given up: nothing waits for it any more."""
        asked.done = True
        held = self._hold is asked
        self._let_go(asked)
        unit = self.asks.unit
        if held and self.asks.left is not None and unit is not None and unit.asked is asked:
            self.asks.left = self.asks.unit = None  # the literal was refused: it does not come
            self._doubt = True
            self.command_torn(asked, unit)
        same = self.tags.get(asked.tag)
        if same is not None:
            if same[0] is asked:
                same.popleft()
            else:
                same.remove(asked)
            if not same:
                del self.tags[asked.tag]


def given_before(asked: Asked, at: At) -> bool:
    """Whether a command was given before the server's octets that began there."""
    ts, _, ack = at
    return asked.offset < ack if ack >= 0 else asked.ts is None or ts is None or asked.ts <= ts


def argument(line: bytes) -> bytes:
    """The argument of a command whose first line was found to be one."""
    try:
        return grammar.command(line).argument
    except Malformed:
        return b""


def _plain_verb(line: bytes) -> bool:
    """An unknown command's verb in one case throughout: base64 has both."""
    words = line.split(None, 2)
    return len(words) > 1 and (words[1].isupper() or words[1].islower())


def _alike(tag: bytes, other: bytes) -> bool:
    """Tags of one client look alike: words of a message's text do not."""
    return (
        abs(len(tag) - len(other)) < 2 and tag[:1].isalpha() == other[:1].isalpha() and tag[-1:].isdigit() == other[-1:].isdigit()
    )
