"""IMAP (RFC 9051, 3501; 2177 IDLE, 2971 ID, 3502 MULTIAPPEND, 3516 BINARY, 4315 UIDPLUS, 4469 CATENATE, 4959 SASL-IR,
4978 COMPRESS, 5161 ENABLE, 6154, 6851 MOVE, 7162 QRESYNC, 7888 LITERAL+, 8437 UNAUTHENTICATE, 8474, 8508 REPLACE).

Rules of this package:
1. Boundaries before meaning: units.py cuts the octets into commands and responses; only whole ones are read.
2. A literal is exactly its octets.  A mark that is no literal (`{}`, `{-1}`, more than 63 bits) is text, and so is every
   mark in a status response or a continuation, which have no literals (RFC 9051 7.1).
3. What a response means depends on the commands given before it and on no others; acknowledgements tell which they are.
4. What a command does to messages happens at its OK (here); what the server tells by itself happens when it tells it
   (responses.py).
5. Secrets die at the reader: of LOGIN and AUTHENTICATE the name is kept, of unknown verbs nothing but the verb.
"""

import re
from functools import partial
from typing import Any

from analyzer.protocols import access
from analyzer.protocols.base import Command, Malformed, MessageCarried, text
from analyzer.protocols.imap import grammar
from analyzer.protocols.imap.fetched import Literal
from analyzer.protocols.imap.mailbox import Entry
from analyzer.protocols.imap.responses import FETCHES, MOVES, SELECTS, Responses, called
from analyzer.protocols.imap.units import KNOWN, Asked, At, Unit, argument, given_before
from analyzer.protocols.message import MessageReader

LOGINS = frozenset({"LOGIN", "AUTHENTICATE"})
UPLOADS = frozenset({"APPEND", "REPLACE", "UID REPLACE"})
SECRETIVE = frozenset({"URLFETCH", "RESETKEY", "GENURLAUTH"})
"""Verbs whose argument gives access to mail (RFC 4467)."""

_CHANGE = re.compile(
    r"(?P<set>\S+) (?:\(UNCHANGEDSINCE \d+\) )?(?P<sign>[+-]?)FLAGS(?:\.SILENT)? (?P<flags>\([^)]*\)|.*)\Z", re.IGNORECASE
)
_NOWHERE: At = (None, None, -1)


class Upload:
    """A message of an APPEND."""

    __slots__ = ("begin", "end", "holes", "reader")

    def __init__(self, reader: MessageReader, begin: Literal) -> None:
        self.reader = reader
        self.begin = self.end = begin
        """Its first literal, and its last."""
        self.holes = False
        """Parts of it come from elsewhere (CATENATE)."""


class Session(Responses):
    """One IMAP connection."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lonely = False  # "a command was not seen" is said once

    # commands

    def command_read(self, asked: Asked, literals: list[Literal]) -> None:
        """A command was read to its end."""
        verb, info = asked.verb, self.info
        asked.shown = shown(verb, asked.argument, literals, self.limits.argument_chars)
        if verb in FETCHES:
            if b"<" in asked.argument:
                asked.extra = grammar.partials(asked.argument)
        elif verb in LOGINS:
            self._login_read(asked)
        elif verb == "STARTTLS":
            info.ts_starttls = asked.ts
        elif verb == "ID":
            info.client_name = called(asked.argument, asked.literals) or info.client_name
        elif asked.shown == "***":
            asked.secrets, asked.argument = (asked.argument, *asked.argument.split()), b""

    def _login_read(self, asked: Asked) -> None:
        """Of a login the name is kept until the reply, the secret until then only to keep it out of the reply's text."""
        if asked.verb == "LOGIN":
            words = grammar.strings(asked.argument, asked.literals)
            asked.user = text(words[0][:256]) if words and words[0] is not None else None
            asked.secrets = [word for word in words[1:] if word]
        else:
            asked.extra, initial = access.sasl(asked.argument)
            asked.user = access.sasl_user(asked.extra, initial, 0)
            asked.secrets = (initial,)
            asked.argument = (access.sasl_shown(asked.argument) or "").encode()
            return
        asked.argument, asked.literals = b"", []

    def command_torn(self, asked: Asked, unit: Unit) -> None:
        """The rest of a command is lost; of one that may hold a secret nothing is shown."""
        for upload in asked.uploads[-1:]:
            if upload.end.left:
                upload.reader.gap(-1)
        asked.argument = b""
        if asked.verb not in LOGINS and unit.line:
            asked.literals = [literal.octets for literal in unit.literals]
            asked.argument = argument(unit.line)
            asked.shown = shown(asked.verb, asked.argument, unit.literals, self.limits.argument_chars)

    def literal_asked(self, asked: Asked, unit: Unit, size: int) -> Literal:
        """A literal of the client: a message of an APPEND, or a string."""
        if asked.verb not in UPLOADS:
            return Literal(size, self.limits.line_bytes)
        before_mailbox = 2 + asked.verb.count(" ") + (asked.verb != "APPEND")
        which = unit.line[-20:].rstrip().rpartition(b" ")[2].upper().lstrip(b"(")
        if len(unit.line.split(None, before_mailbox)) <= before_mailbox or which == b"URL":
            return Literal(size, self.limits.line_bytes)
        more, unit.section = unit.section and which == b"TEXT", which == b"TEXT"
        if more and b")" not in unit.line.rpartition(b"}")[2]:  # another TEXT of the same CATENATE
            upload: Upload = asked.uploads[-1]
            upload.end = Literal(size, 0, upload.reader)
            return upload.end
        reader = MessageReader(self.limits)
        upload = Upload(reader, Literal(size, 0, reader))
        upload.holes = unit.section
        asked.uploads.append(upload)
        if len(asked.uploads) > self.limits.partial_messages:
            self._append_over(asked, asked.uploads.pop(0), "unknown")
        return upload.end

    # tagged replies

    def tagged(self, tagged: grammar.Tagged, at: At) -> None:
        """response-tagged: the reply to the oldest command with this tag that was given before it."""
        same = self.tags.get(tagged.tag)
        asked = same[0] if same and given_before(same[0], at) else None
        if asked is None:
            if not self._lonely:
                self._lonely = True
                self.weird("command_not_seen", "a tagged reply to no command seen", *at[:2])
            return
        self.settled(asked)
        code = grammar.code(tagged.text)
        if code is not None and code[0] == "CAPABILITY":
            self.capabilities(code[1])
        reply = access.unsaid(text(tagged.text), asked.secrets)
        self._row(asked, tagged.status, reply, at[0])
        if asked.verb in UPLOADS:
            self._append_replied(asked, tagged.status == "OK", reply, code)
        if asked.verb in LOGINS:
            self._login(asked, tagged.status == "OK")
        if tagged.status == "OK":
            self._done(asked, code)
        elif asked.verb == "STARTTLS":
            self.info.starttls = "refused"
        elif asked.verb in SELECTS:
            self.tell_arrived()
            self.mailbox = None

    def _done(self, asked: Asked, code: tuple[str, bytes] | None) -> None:
        """What a command does when it is granted."""
        match asked.verb:
            case "SELECT" | "EXAMINE":
                if asked.extra is None:
                    self.select(asked)
                if code is not None and code[0] == "READ-ONLY":
                    asked.extra.read_only = True
            case "CLOSE" | "UNSELECT" | "UNAUTHENTICATE":
                if asked.verb == "CLOSE":
                    self._closed()
                self.tell_arrived()
                self.mailbox = None
            case "STORE" | "UID STORE":
                self._stored(asked, code)
            case "COPY" | "UID COPY" | "MOVE" | "UID MOVE":
                self._copied(asked, code)
            case "STARTTLS":
                self.info.starttls = "used"
                self.turning = partial(self.start_tls, asked.ts_reply)
            case "COMPRESS":
                self.turning = self.start_deflate
            case "LOGOUT":
                self.info.end = "quit"

    def _login(self, asked: Asked, ok: bool) -> None:
        info = self.info
        info.auth_mechanism, info.auth_ok = asked.extra if asked.verb == "AUTHENTICATE" else "LOGIN", ok
        info.auth_user = asked.user or info.auth_user
        info.ts_auth, (info.ts_auth_done, info.frame_auth) = asked.ts, self.now()

    # what a command does to messages

    def _addressed(self, which: str, by_uid: bool) -> list[tuple[int | None, Entry]]:
        try:
            return self.mailbox.addressed(which, by_uid) if self.mailbox is not None else []
        except Malformed:
            return []

    def _stored(self, asked: Asked, code: tuple[str, bytes] | None) -> None:
        """STORE changed flags (RFC 9051 6.4.6), but not of those that [MODIFIED] names (RFC 7162 3.1.3)."""
        change, box = _CHANGE.match(text(asked.argument)), self.mailbox
        if change is None or box is None or self.budget <= 0:
            return
        by_uid = asked.verb.startswith("UID")
        spared = {id(e) for _, e in self._addressed(text(code[1]), by_uid)} if code and code[0] == "MODIFIED" else ()
        sign, flags = change["sign"], change["flags"]
        deleted = "\\DELETED" in flags.strip("()").upper().split()
        for number, entry in self._addressed(change["set"], by_uid):
            if id(entry) in spared:
                continue
            if deleted or not sign:
                box.mark(entry, deleted and sign != "-")
            self.happened("flagged", box, entry, number, f"{sign}FLAGS {self._clip(flags)}")

    def _closed(self) -> None:
        """CLOSE expunges silently what is marked \\Deleted (RFC 9051 6.4.1)."""
        box = self.mailbox
        if box is None or box.read_only or not box.known.marked:
            return
        numbers = {entry: n for n, entry in enumerate(box.by_number, 1) if entry is not None}
        for entry in box.known.marked:
            self.happened("expunged", box, entry, numbers.get(entry), "CLOSE")
        box.known.marked.clear()

    def _copied(self, asked: Asked, code: tuple[str, bytes] | None) -> None:
        """COPY and MOVE: COPYUID says which message became which (RFC 4315 3, RFC 6851 4.3)."""
        box, names = self.mailbox, grammar.strings(asked.argument, asked.literals)
        if box is None or len(names) < 2 or names[0] is None or self.budget <= 0:
            return
        event = "moved" if asked.verb in MOVES else "copied"
        target = grammar.mailbox(names[1]) if names[1] is not None else None
        extra = asked.extra or {}
        gone = extra.get("gone", [])
        copyuid = code[1] if code is not None and code[0] == "COPYUID" else extra.get("copyuid", b"")
        try:
            validity, old, new = text(copyuid).split()
            most = self.limits.mailbox_messages
            pairs = list(zip(grammar.numbers(old, most), grammar.numbers(new, most), strict=True))
        except (ValueError, Malformed):
            for number, entry in gone or self._addressed(text(names[0]), asked.verb.startswith("UID")):
                self.happened(event, box, entry, number, f"to {target}", new_mailbox=target)
            return
        numbers = {entry.uid: number for number, entry in gone if entry is not None}
        where = int(validity) if validity.isdecimal() and len(validity) < 20 else None
        for uid, new_uid in pairs:
            detail = f"to {target} as UID {new_uid}"
            moved = {"new_mailbox": target, "new_uidvalidity": where, "new_uid": new_uid}
            self.happened(event, box, box.by(uid), numbers.get(uid), detail, **moved)

    # APPEND

    def _append_replied(self, asked: Asked, ok: bool, reply: str, code: tuple[str, bytes] | None) -> None:
        """The tagged reply decides over all messages of an APPEND; APPENDUID names them (RFC 4315 3, RFC 3502)."""
        validity, uids = None, []
        if code is not None and code[0] == "APPENDUID":
            try:
                word, uid_set = text(code[1]).split()
                validity, uids = int(word[:19]), grammar.numbers(uid_set, self.limits.partial_messages + 1)
            except (ValueError, Malformed):
                validity, uids = None, []
        outcome = "accepted" if ok else "rejected"
        uploads: list[Upload | None] = [*asked.uploads] or [None]
        named = len(uids) == len(uploads)
        for n, upload in enumerate(uploads):
            self._append_over(asked, upload, outcome, reply, validity, uids[n] if named else None)
        asked.uploads = []

    def _append_over(
        self,
        asked: Asked,
        upload: Upload | None,
        outcome: str,
        reply: str | None = None,
        validity: int | None = None,
        uid: int | None = None,
    ) -> None:
        """One message of an APPEND, decided or not; without an upload no octet of it was asked for."""
        words = grammar.strings(asked.argument, asked.literals)
        at = 0 if asked.verb == "APPEND" else 1
        name = words[at] if len(words) > at else None
        ts_data = ts_eom = content = None
        ts_end, last_frame = self.now() if reply is not None else (None, None)
        if upload is not None and (upload.begin.ts_first is not None or outcome != "rejected"):
            upload.end.cut()
            if upload.holes:
                upload.reader.gap(-1)
            content = upload.reader.content(upload.end.complete)
            self.oddities(upload.reader, (asked.ts, asked.frame, -1))
            ts_data, ts_eom = upload.begin.ts_first, upload.end.ts_last if upload.end.complete else None
            last_frame = last_frame if reply is not None else upload.end.frame_last
            outcome = "aborted" if reply is None and not upload.end.complete else outcome
        self.info.messages += 1
        self.events.append(
            MessageCarried(
                self.info,
                "append",
                self.info.messages,
                ts_start=asked.ts,
                ts_data=ts_data,
                ts_eom=ts_eom,
                ts_end=ts_end,
                first_frame=asked.frame,
                last_frame=last_frame,
                outcome=outcome,
                reply_text=self._clip(reply) if reply else None,
                content=content,
                mailbox=grammar.mailbox(name) if name is not None else None,
                uidvalidity=validity,
                uid=uid,
            )
        )

    # rows and ends

    def _row(self, asked: Asked, status: str | None, reply: str | None, ts_first: int | None) -> None:
        self._tell_odd(asked.n)
        for name, detail in asked.notes:
            self.weird(name, detail, asked.ts, asked.frame)
        ts, frame = self.now() if status is not None else (None, None)
        asked.ts_reply, asked.secrets = ts, ()
        before, asked.before = asked.before, None
        pipelined = False
        if before is not None and asked.ts is not None:
            pipelined = asked.ts < before.ts_reply if before.ts_reply is not None else not before.done
        self.events.append(
            Command(
                self.info.session_id,
                asked.n,
                asked.ts,
                ts,
                (ts_first - asked.ts_end) / 1e9 if ts_first is not None and asked.ts_end is not None else None,
                self.protocol,
                text(asked.tag),
                asked.verb,
                asked.shown,
                status,
                None,
                self._clip(reply) if reply is not None else None,
                pipelined,
                asked.frame,
                frame,
            )
        )

    def _tell_odd(self, before: int) -> None:
        """Name the lines that were no commands, up to this command."""
        while self.odd and self.odd[0][0] < before:
            _, ts, frame = self.odd.popleft()
            self.weird("bad_command", "a line that is no command", ts, frame)

    def _clip(self, words: str) -> str:
        limit = self.limits.argument_chars
        return words if len(words) <= limit else words[: limit - 1] + "…"

    def unanswered(self, asked: Asked) -> None:
        """A command whose reply was not seen."""
        for upload in asked.uploads:
            self._append_over(asked, upload, "unknown")
        asked.uploads = []
        self._row(asked, None, None, None)

    def finish(self, reason: str, ts: int) -> None:
        """End what is open; nothing more will come."""
        self.end_fetches()
        unit, self.asks.unit = self.asks.unit, None
        if unit is not None and unit.asked is not None and not unit.asked.whole:
            self.command_torn(unit.asked, unit)
        while self.flying:
            asked = self.flying.popleft()
            if not asked.done:
                self.settled(asked)
                self.unanswered(asked)
        self._tell_odd(self.info.commands + 1)


def shown(verb: str, argument: bytes, literals: list[Literal], limit: int) -> str | None:
    """A command's argument as it may be shown: literals in their place, no secret."""
    if verb == "AUTHENTICATE":
        return access.sasl_shown(argument)
    if verb == "LOGIN":
        words = grammar.strings(argument, [x.octets for x in literals])
        return f"{text(words[0][:256])} ***" if len(words) > 1 and words[0] is not None else "***"
    if verb not in KNOWN or verb in SECRETIVE:
        return "***" if argument else None  # what follows an unknown verb may be anybody's secret

    def put(found: re.Match[bytes]) -> bytes:
        n = int(found[1][:6])
        octets = literals[n].octets if n < len(literals) else None
        if octets is None:
            return b"{%d}" % literals[n].size if n < len(literals) else found[0]
        return b'"' + octets[:limit] + b'"'

    plain = re.sub(rb"\{([0-9]+)\}", put, argument) if literals else argument
    words_shown = text(plain[: limit * 4]).strip()
    return (words_shown if len(words_shown) <= limit else words_shown[: limit - 1] + "…") or None
