"""IMAP (RFC 9051, 3501; 2177 IDLE, 2971 ID, 3502 MULTIAPPEND, 3516 BINARY, 4315 UIDPLUS, 4469 CATENATE, 4959 SASL-IR,
4978 COMPRESS, 5161 ENABLE, 6154, 6851 MOVE, 7162 QRESYNC, 7888 LITERAL+, 8437 UNAUTHENTICATE, 8474, 8508 REPLACE).

Rules of this file:
1. Boundaries before meaning: units.py cuts the octets into commands and responses; only whole ones are read here.
2. A literal is exactly its octets.  A mark that is no literal (`{}`, `{-1}`, more than 63 bits) is text, and so is every
   mark in a status response or a continuation, which have no literals (RFC 9051 7.1).
3. Sequence numbers are turned into messages when their response is read, never later (RFC 9051 2.3.1.2).
4. A message fetched whole is a retrieval when its response ends; pieces are joined by mailbox, UIDVALIDITY and UID, and
   are one retrieval when the last octet has come, or when nothing more can come.
5. What a command does to messages happens at its OK; what the server tells by itself happens when it tells it.
"""

import re
from collections import OrderedDict
from functools import partial
from typing import Any

from analyzer.protocols import access
from analyzer.protocols.base import Command, MailboxEvent, Malformed, MessageCarried, Recognised, text
from analyzer.protocols.imap import fetched, grammar
from analyzer.protocols.imap.fetched import FIELDS, HEADER, OTHER, PART, TEXT, WHOLE, Literal, Parts
from analyzer.protocols.imap.mailbox import Entry, Mailbox
from analyzer.protocols.imap.units import KNOWN, Asked, Unit, Units
from analyzer.protocols.message import MessageReader

# -- vocabulary ------------------------------------------------------------------------------------------------------------

FETCHES = frozenset({"FETCH", "UID FETCH"})
UPLOADS = frozenset({"APPEND", "REPLACE", "UID REPLACE"})
SELECTS = frozenset({"SELECT", "EXAMINE"})
MOVES = frozenset({"MOVE", "UID MOVE"})
COPIES = frozenset({"COPY", "UID COPY"}) | MOVES

SECRETIVE = frozenset({"URLFETCH", "RESETKEY", "GENURLAUTH"})
"""Verbs whose argument gives access to mail (RFC 4467)."""

_NUMBERED = re.compile(rb"\* ([0-9]{1,10}) (EXISTS|EXPUNGE|FETCH)\b ?", re.IGNORECASE)
_UNTAGGED = re.compile(rb"\* ([A-Za-z]+)(?: (.*))?\Z", re.DOTALL)
_UID = re.compile(rb"[( ]UID ([0-9]{1,10})[ )]", re.IGNORECASE)
_CHANGE = re.compile(
    r"(?P<set>\S+) (?:\(UNCHANGEDSINCE \d+\) )?(?P<sign>[+-]?)FLAGS(?:\.SILENT)? (?P<flags>\([^)]*\)|.*)\Z", re.IGNORECASE
)


class Upload:
    """A message of an APPEND."""

    __slots__ = ("begin", "end", "flags", "holes", "reader")

    def __init__(self, reader: MessageReader, begin: Literal) -> None:
        self.reader = reader
        self.begin = self.end = begin
        """Its first literal, and its last."""
        self.holes = False
        """Parts of it come from elsewhere (CATENATE)."""
        self.flags: tuple[str, ...] = ()


# -- session ---------------------------------------------------------------------------------------------------------------


class Session(Units):
    """One IMAP connection."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mailbox: Mailbox | None = None
        self.boxes: dict[tuple[str | None, int], dict[int, Entry]] = {}
        """UIDs of the mailboxes selected before, by name and UIDVALIDITY."""
        self.holder = fetched.Holder(self.limits)
        self.partly: OrderedDict[Parts, tuple[Entry, Mailbox]] = OrderedDict()
        """Messages of which something, but not all, was fetched."""
        self.arrived: OrderedDict[Entry, MailboxEvent] = OrderedDict()
        """Messages announced by EXISTS, told when it is known which they are."""
        self._budget = self.limits.mailbox_events
        self._lonely = False

    # commands

    def command_read(self, asked: Asked, unit: Unit) -> None:
        """A command was read to its end."""
        asked.argument = _argument(unit)
        verb, info = asked.verb, self.info
        asked.shown = shown(verb, asked.argument, unit.literals, self.limits.argument_chars)
        if verb in FETCHES:
            if b"<" in asked.argument:
                asked.extra = grammar.partials(asked.argument)
        elif verb == "STARTTLS":
            info.ts_starttls = asked.ts
        elif verb == "LOGIN":
            words = grammar.strings(asked.argument, asked.literals)
            self.user = text(words[0][:256]) if words and words[0] is not None else None
            asked.literals = []
        elif verb == "ID":
            info.client_name = _called(asked.argument, asked.literals) or info.client_name
        elif verb in UPLOADS and asked.uploads and unit.section:
            asked.uploads[-1].holes = True
        if verb in ("LOGIN", "AUTHENTICATE") and asked.argument:
            asked.extra = self.user
            asked.argument = asked.argument if verb == "AUTHENTICATE" else b""

    def command_torn(self, asked: Asked, unit: Unit) -> None:
        """The rest of a command is lost; of one that may hold a secret nothing is shown."""
        for upload in asked.uploads[-1:]:
            if upload.end.left:
                upload.reader.gap(-1)
        asked.argument = b""
        if asked.verb not in ("LOGIN", "AUTHENTICATE") and unit.line:
            asked.literals = [literal.octets for literal in unit.literals]
            asked.argument = _argument(unit)
            asked.shown = shown(asked.verb, asked.argument, unit.literals, self.limits.argument_chars)

    def literal_asked(self, asked: Asked, unit: Unit, size: int) -> Literal:
        """A literal of the client: a message of an APPEND, or a string."""
        if asked.verb not in UPLOADS or not unit.line.rstrip(b" (").count(b" "):
            return Literal(size, self.limits.line_bytes)
        words = unit.line.split()
        which = words[-1].upper().lstrip(b"(")
        mailbox_at = 2 + asked.verb.count(" ") + (asked.verb != "APPEND")
        if which == b"URL" or len(words) <= mailbox_at:
            return Literal(size, self.limits.line_bytes)
        part, unit.section = unit.section, which == b"TEXT"
        if part and unit.section and b")" not in unit.line.rpartition(b"{")[2]:
            upload: Upload = asked.uploads[-1]
            upload.end = Literal(size, 0, upload.reader)
            return upload.end
        reader = MessageReader(self.limits)
        upload = Upload(reader, Literal(size, 0, reader))
        upload.holes = unit.section
        asked.uploads.append(upload)
        if len(asked.uploads) > self.limits.partial_messages:
            self._append_over(asked, asked.uploads.pop(0), "unknown", "", None, None, (None, None))
        return upload.end

    # responses

    def response_read(self, line: bytes, begin: int, unit: Unit | None) -> None:
        """One response, whole."""
        first = line[:2]
        greeting, self.greeted = not self.greeted, True
        if first == b"* ":
            found = _NUMBERED.match(line)
            if found is not None:
                self._numbered(int(found[1]), found[2].upper(), line[found.end() :], begin, unit)
            else:
                self._untagged(line, begin, unit, greeting)
        elif first[:1] == b"+":
            self.granted(line, begin)
        else:
            tagged = grammar.tagged(line)
            if tagged is not None:
                self._tagged(tagged, begin)
            elif line.strip():
                self.weird("bad_reply", "a line that is no response", *self._seen(begin))

    def _seen(self, offset: int) -> tuple[int | None, int | None]:
        return self.server.ts_at(offset), self.server.frame_at(offset)

    def _now(self) -> tuple[int | None, int | None]:
        """Time and frame of the octet read last: the end of a response."""
        return self._seen(self.server.offset - 1)

    def _untagged(self, line: bytes, begin: int, unit: Unit | None, greeting: bool) -> None:
        """response-data = "*" SP (resp-cond-state / resp-cond-bye / mailbox-data / message-data / capability-data) CRLF."""
        found = _UNTAGGED.match(line)
        if found is None:
            return
        word, rest = found[1].upper(), found[2] or b""
        if word in (b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"):
            if greeting:
                self._greeting(word, rest)
            self._coded(rest, begin)
        elif word == b"CAPABILITY":
            self._capabilities(rest)
        elif word == b"VANISHED":
            self._vanished(rest, begin)
        elif word == b"ID":
            literals = [x.octets for x in unit.literals] if unit else []
            self.info.server_software = _called(rest, literals) or self.info.server_software

    def _greeting(self, word: bytes, rest: bytes) -> None:
        info = self.info
        info.ts_banner, info.frame_banner = info.ts_greeted, info.frame_greeted = self._now()
        said = rest[rest.find(b"]") + 1 :]
        info.server_software, info.server_name = access.software(said), access.host(said)
        if word == b"PREAUTH":
            info.auth_ok = True

    def _capabilities(self, words: bytes) -> None:
        found = text(words[:10_000]).upper().split()
        self.info.capabilities = found[:200]
        if "STARTTLS" in found and self.info.starttls is None:
            self.info.starttls = "offered"

    def _coded(self, resp_text: bytes, begin: int) -> None:
        """An untagged status response's code."""
        code = grammar.code(resp_text)
        if code is None:
            return
        name, argument = code
        if name == "CAPABILITY":
            self._capabilities(argument)
        elif name == "UIDVALIDITY" and argument.isdigit() and len(argument) < 20:
            self._validity(self._box(begin), int(argument))
        elif name == "COPYUID":
            mover = next((a for a in self.visible(begin) if a.verb in COPIES), None)
            if mover is not None:
                _moving(mover)["copyuid"] = argument

    def _numbered(self, number: int, word: bytes, rest: bytes, begin: int, unit: Unit | None) -> None:
        """message-data = nz-number SP ("EXPUNGE" / ("FETCH" SP msg-att)); mailbox-data = number SP "EXISTS"."""
        if word == b"FETCH":
            if unit is None:
                unit = Unit(begin)
                self._begin_fetch(unit, number, rest)
            self._fetched(unit, rest)
        elif word == b"EXISTS":
            self._exists(number, begin)
        else:
            self._expunged(number, begin)

    # the mailbox

    def _box(self, begin: int) -> Mailbox:
        """The mailbox an untagged response is about: once SELECT was given, the new one (RFC 9051 6.3.2)."""
        oldest = next(self.visible(begin), None)
        if oldest is not None and oldest.verb in SELECTS and oldest.extra is None:
            self._select(oldest)
        if self.mailbox is None:
            self.mailbox = Mailbox(None, self.limits.mailbox_messages)
        return self.mailbox

    def _select(self, asked: Asked) -> None:
        """SELECT closes the mailbox that was open, and opens another."""
        self._tell_arrived()
        names = grammar.strings(asked.argument, asked.literals)
        name = grammar.mailbox(names[0]) if names and names[0] is not None else None
        self.mailbox = asked.extra = Mailbox(name, self.limits.mailbox_messages, asked.verb == "EXAMINE")

    def _validity(self, box: Mailbox, uidvalidity: int) -> None:
        """The mailbox's UIDVALIDITY: its messages are those seen before under it."""
        box.uidvalidity = uidvalidity
        key = box.name, uidvalidity
        known = self.boxes.get(key)
        if known is box.by_uid:
            return
        if known is not None:
            known.update((uid, entry) for uid, entry in box.by_uid.items() if uid not in known)
            box.by_uid = known
        elif sum(map(len, self.boxes.values())) > self.limits.mailbox_messages or len(self.boxes) > self.limits.partial_messages:
            self.boxes.clear()
        self.boxes[key] = box.by_uid

    def _exists(self, number: int, begin: int) -> None:
        """`* n EXISTS`: when n has grown outside SELECT, messages have just arrived (RFC 9051 7.4.1)."""
        box = self._box(begin)
        before, box.exists = box.exists, number
        opening = next((a for a in self.visible(begin) if a.verb in SELECTS), None)
        if before is None or opening is not None or number <= before:
            return
        ts, frame = self._now()
        if number - before > self.limits.partial_messages:
            self.weird("mailbox_too_large", f"{number - before} messages arrived at once", ts, frame)
        for n in range(max(before, number - self.limits.partial_messages) + 1, number + 1):
            entry = box.entry(n)
            if ts is not None:
                self.arrived[entry] = MailboxEvent(
                    ts, self.info, "notified", frame, box.name, box.uidvalidity, entry.uid, n, None, f"{number} EXISTS"
                )
            if len(self.arrived) > self.limits.partial_messages:
                self._event(self.arrived.popitem(last=False)[1])

    def _tell_arrived(self) -> None:
        """Nobody will say more of the messages that have arrived."""
        for entry, event in self.arrived.items():
            self._event(event._replace(uid=entry.uid, message_id=entry.message_id))
        self.arrived.clear()

    def _expunged(self, number: int, begin: int) -> None:
        """`* n EXPUNGE` (RFC 9051 7.5.1); during MOVE it is the move's own (RFC 6851 3.3)."""
        box = self._box(begin)
        entry = box.expunge(number)
        mover = next((a for a in self.visible(begin) if a.verb in MOVES), None)
        if mover is not None:
            _moving(mover).setdefault("gone", []).append((number, entry))
        else:
            self._told("expunged", box, entry, number, "EXPUNGE")

    def _vanished(self, rest: bytes, begin: int) -> None:
        """`* VANISHED uids`: gone now; `(EARLIER)`: gone since another session (RFC 7162 3.2.10)."""
        box = self._box(begin)
        if rest[:9].upper() == b"(EARLIER)":
            return
        known = dict(box.by_uid)
        try:
            gone = box.vanish(text(rest.strip()))
        except Malformed:
            return
        mover = next((a for a in self.visible(begin) if a.verb in MOVES), None)
        for uid in gone[: self._budget + 1]:
            entry = known.get(uid) or Entry(uid)
            if mover is not None:
                _moving(mover).setdefault("gone", []).append((None, entry))
            else:
                self._told("expunged", box, entry, None, "VANISHED")

    def _told(self, event: str, box: Mailbox, entry: Entry | None, number: int | None, detail: str, **more: Any) -> None:
        """Something happened to a message, now."""
        ts, frame = self._now()
        if ts is None:
            return
        uid, known = (entry.uid, entry.message_id) if entry is not None else (None, None)
        self._event(
            MailboxEvent(
                ts, self.info, event, frame, box.name, box.uidvalidity, uid, number, None, detail, message_id=known, **more
            )
        )

    def _event(self, event: MailboxEvent) -> None:
        self._budget -= 1
        if self._budget >= 0:
            self.events.append(event)
        elif self._budget == -1:
            self.weird("mailbox_too_large", "more mailbox events than are told", event.ts, event.frame)

    # FETCH

    def response_begun(self, line: bytes, unit: Unit) -> None:
        """A response with literals: of a FETCH the message must be known before its octets come."""
        found = _NUMBERED.match(line)
        if found and found[2].upper() == b"FETCH":
            self._begin_fetch(unit, int(found[1]), line[found.end() :])

    def _begin_fetch(self, unit: Unit, number: int, rest: bytes) -> None:
        box = self._box(unit.begin)
        unit.number = number
        unit.asked = next((a for a in self.visible(unit.begin) if a.verb in FETCHES), None)
        uid = _UID.search(rest, 0, rest.find(b'"') if b'"' in rest else len(rest))
        unit.entry = self._named(box, number, int(uid[1])) if uid else box.entry(number)

    def _named(self, box: Mailbox, number: int, uid: int) -> Entry:
        before = box.known(number)
        entry = box.named(number, uid)
        if before is not None and before is not entry and before in self.arrived:
            self.arrived[entry] = self.arrived.pop(before)
        return entry

    def literal_said(self, unit: Unit, size: int) -> Literal:
        """A literal of the server: octets of a message, or a string."""
        item = grammar.item(unit.line) if unit.entry is not None else None
        kind, origin = self._kind(unit, item)
        unit.kinds.append((kind, origin))
        return self._literal_for(unit, kind, origin, size)

    def _kind(self, unit: Unit, item: tuple[str, str | None, int | None] | None) -> tuple[str, int | None]:
        if item is None:
            return OTHER, None
        kind = fetched.kind_of(item[0], item[1])
        parts = unit.entry.parts
        if kind == PART and item[:2] == ("BODY", "1") and parts is not None and parts.plain:
            kind = TEXT
        return kind, item[2]

    def _literal_for(self, unit: Unit, kind: str, origin: int | None, size: int) -> Literal:
        """Where the octets of a fetched item go: to the message's digest when their turn has come, else they are held."""
        limits, parts = self.limits, unit.entry.parts if unit.entry is not None else None
        if kind == WHOLE and origin is None:
            return Literal(size, 0, MessageReader(limits))
        if kind == WHOLE and origin is not None:
            if parts is None or (parts.reader is None and parts.header is None):
                parts = self._parts(unit)
            if parts.reader is None and origin == 0:
                parts.reader = MessageReader(limits)
            if parts.reader is not None and origin <= parts.next:
                return Literal(size, 0, parts.reader, skip=parts.next - origin)
            return Literal(size, limits.parts_bytes // 2)
        if kind == TEXT and origin is None and parts is not None and parts.header is not None and parts.reader is None:
            parts.reader = MessageReader(limits)
            parts.reader.feed(parts.header)
            parts.next = len(parts.header)
            return Literal(size, 0, parts.reader)
        if kind == TEXT:
            return Literal(size, limits.parts_bytes // 2 if origin is None else 0)
        if kind == HEADER:
            return Literal(size, limits.header_bytes if origin is None else 0)
        return Literal(size, 0 if kind == PART else limits.line_bytes)

    def _parts(self, unit: Unit) -> Parts:
        """The pieces of this unit's message."""
        parts: Parts | None = unit.entry.parts
        if parts is None:
            parts = unit.entry.parts = Parts()
        return parts

    def response_torn(self, unit: Unit) -> None:
        """The rest of a FETCH response is lost: what came of its literals is known."""
        if unit.entry is not None:
            self._items(unit, [])

    def _fetched(self, unit: Unit, rest: bytes) -> None:
        """msg-att = "(" (msg-att-dynamic / msg-att-static) *(SP ...) ")"."""
        values = grammar.values(rest[rest.find(b"(") :])
        attributes = values[0] if values and isinstance(values[0], list) else []
        box, entry = self._box(unit.begin), unit.entry
        literals = [literal.octets for literal in unit.literals]
        quoted: list[tuple[str, int | None, Literal]] = []
        for name, value in zip(attributes[::2], attributes[1::2], strict=False):
            if not isinstance(name, str):
                break
            match name.upper():
                case "UID":
                    if isinstance(value, str) and value.isdigit() and len(value) <= 10 and int(value) != entry.uid:
                        entry = unit.entry = self._named(box, unit.number, int(value))
                case "FLAGS":
                    if isinstance(value, list):
                        entry.flags = tuple(f for f in value[:100] if isinstance(f, str))
                        entry.deleted = any(f.upper() == "\\DELETED" for f in entry.flags)
                case "RFC822.SIZE":
                    entry.size = int(value) if isinstance(value, str) and value.isdigit() and len(value) < 20 else entry.size
                case "ENVELOPE":
                    known = grammar.octets(value[9], literals) if isinstance(value, list) and len(value) > 9 else None
                    if known:
                        entry.message_id = text(known.strip()[:998])
                case _ if isinstance(value, bytes):
                    item = grammar.item(name.encode("latin-1"))
                    kind, origin = self._kind(unit, item)
                    if kind != OTHER:
                        literal = self._literal_for(unit, kind, origin, len(value))
                        literal.feed(value)
                        literal.ts_first, literal.frame_first = self._seen(unit.begin)
                        literal.ts_last, literal.frame_last = self._now()
                        quoted.append((kind, origin, literal))
        self._items(unit, quoted)
        event = self.arrived.get(entry)
        if event is not None and entry.uid is not None and entry.message_id is not None:
            del self.arrived[entry]
            self._event(event._replace(uid=entry.uid, message_id=entry.message_id))

    def _items(self, unit: Unit, quoted: list[tuple[str, int | None, Literal]]) -> None:
        """The message octets of one FETCH response: all of it, or pieces."""
        items = [(kind, origin, literal) for (kind, origin), literal in zip(unit.kinds, unit.literals, strict=False)] + quoted
        entry: Entry = unit.entry
        whole = [literal for kind, origin, literal in items if kind == WHOLE and origin is None]
        if whole:
            best = next((w for w in whole if w.complete and not w.left), whole[0])
            self._whole(unit, entry, best)
            return
        for kind, origin, literal in items:
            literal.cut()
            if kind in (HEADER, FIELDS):
                header = literal.octets
                if header is not None:
                    entry.message_id = grammar.message_id(header) or entry.message_id
            if kind not in (FIELDS, OTHER) and not (entry.whole and kind == HEADER):
                self._piece(unit, entry, kind, origin, literal)

    def _whole(self, unit: Unit, entry: Entry, literal: Literal) -> None:
        """BODY[], RFC822 or BINARY[]: a retrieval; pieces fetched before are moot."""
        literal.cut()
        assert literal.reader is not None
        content = literal.reader.content(literal.complete)
        self._oddities(literal.reader, unit)
        self._forget(entry)
        entry.whole = entry.whole or literal.complete
        entry.message_id = content.message_id or entry.message_id
        content.message_id = entry.message_id
        ts, frame = self._now()
        begun = unit.asked
        seen = {
            "ts_start": begun.ts if begun else self.server.ts_at(unit.begin),
            "ts_data": literal.ts_first,
            "ts_eom": literal.ts_last if literal.complete else None,
            "ts_end": None if unit.torn else ts,
            "first_frame": begun.frame if begun else literal.frame_first,
            "last_frame": literal.frame_last if unit.torn else frame,
            "number": unit.number,
        }
        self._retrieved(entry, self._box(unit.begin), content, seen)

    def _retrieved(self, entry: Entry, box: Mailbox, content: Any, seen: dict[str, Any]) -> None:
        self.info.messages += 1
        self.events.append(
            MessageCarried(
                self.info,
                "retrieve",
                self.info.messages,
                outcome="accepted",
                content=content,
                mailbox=box.name,
                uidvalidity=box.uidvalidity,
                uid=entry.uid,
                flags=entry.flags,
                **seen,
            )
        )

    def _oddities(self, reader: MessageReader, unit: Unit | None) -> None:
        for name, detail in reader.oddities:
            self.weird(name, detail, *(self._seen(unit.begin) if unit else self._now()))

    def _piece(self, unit: Unit, entry: Entry, kind: str, origin: int | None, literal: Literal) -> None:
        """A part of a message: joined with what came of it before."""
        parts = self._parts(unit)
        if entry.size is not None:
            parts.total = entry.size
        octets = literal.octets
        if kind == HEADER:
            if octets is not None and parts.reader is None and parts.header is None:
                parts.keep_header(octets)
                self.holder.add(parts, len(octets))
        elif kind == TEXT and literal.reader is None and origin is None:
            if octets is not None and parts.text is None:
                parts.text = octets
                self.holder.add(parts, len(octets))
            parts.wanted = True
        elif kind == TEXT and origin is None:
            parts.next += literal.size
            parts.total = parts.next
            parts.wanted = True
        elif kind == WHOLE and origin is not None:
            self._partial(unit, parts, origin, literal)
            parts.wanted = True
        elif kind == PART or (kind == TEXT and origin):
            parts.wanted = True
        self._date(unit, parts, literal)
        if parts.text is not None and parts.header is not None and parts.reader is None:
            parts.reader = MessageReader(self.limits)
            parts.reader.feed(parts.header)
            parts.reader.feed(parts.text)
            parts.total = parts.next = len(parts.header) + len(parts.text)
        self.partly[parts] = (entry, self._box(unit.begin))
        if parts.done:
            self._pieced(parts, complete=True)
        elif len(self.partly) > self.limits.partial_messages:
            self._pieced(next(iter(self.partly)), complete=False)

    def _partial(self, unit: Unit, parts: Parts, origin: int, literal: Literal) -> None:
        """BODY[]<origin>: digested as it came, or held for its time."""
        size = literal.size
        if literal.reader is not None:
            parts.next = max(parts.next, origin + size)
        elif literal.octets is not None and origin not in parts.early:
            parts.early[origin] = literal.octets
            self.holder.add(parts, size)
        wanted = (unit.asked.extra or {}).get(("", origin)) if unit.asked is not None else None
        if (wanted is not None and size < wanted) or size == 0:
            parts.total = origin + size if parts.total is None else parts.total
        parts.early_fits()

    def _date(self, unit: Unit, parts: Parts, literal: Literal) -> None:
        """The retrieval begins with the first piece's command and ends with the last piece."""
        seen, begun = parts.seen, unit.asked
        if not seen:
            seen["ts_start"] = begun.ts if begun else self.server.ts_at(unit.begin)
            seen["ts_data"] = literal.ts_first
            seen["first_frame"] = begun.frame if begun else literal.frame_first
        seen["ts_end"], seen["last_frame"] = self._now()
        seen["ts_eom"] = literal.ts_last
        seen["number"] = unit.number

    def _pieced(self, parts: Parts, complete: bool) -> None:
        """All pieces are there, or no more will come."""
        entry, box = self.partly.pop(parts)
        if parts.wanted:
            reader = parts.reader
            if complete and reader is not None:
                content = reader.content(True)
                entry.whole = content.complete
                self._oddities(reader, None)
            else:
                content = fetched.remainder(parts, self.limits)
                parts.seen["ts_eom"] = None
            entry.message_id = content.message_id or entry.message_id
            content.message_id = entry.message_id
            self._retrieved(entry, box, content, parts.seen)
        self.holder.release(parts)
        if entry.parts is parts:
            entry.parts = None

    def _forget(self, entry: Entry) -> None:
        parts, entry.parts = entry.parts, None
        if parts is not None:
            self.partly.pop(parts, None)
            self.holder.release(parts)

    # tagged replies

    def _tagged(self, tagged: grammar.Tagged, begin: int) -> None:
        """The reply to a command: the oldest with this tag that was given before it."""
        same = self.tags.get(tagged.tag)
        ts, frame = self._now()
        asked = same[0] if same and any(a is same[0] for a in self.visible(begin)) else None
        if asked is None:
            if not self._lonely:
                self._lonely = True
                self.weird("command_not_seen", "a tagged reply to no command seen", *self._seen(begin))
            return
        self.settled(asked)
        self._row(asked, tagged.status, text(tagged.text), self.server.ts_at(begin), ts, frame)
        code = grammar.code(tagged.text)
        if code is not None and code[0] == "CAPABILITY":
            self._capabilities(code[1])
        if asked.uploads or asked.verb in UPLOADS:
            self._append_replied(asked, tagged, code, ts, frame)
        if tagged.status == "OK":
            self._done(asked, code, ts, frame)
        elif asked.verb in ("LOGIN", "AUTHENTICATE"):
            self._login(asked, False, ts, frame)
        elif asked.verb == "STARTTLS":
            self.info.starttls = "refused"
        elif asked.verb in SELECTS:
            if asked.extra is None:
                self._tell_arrived()
            self.mailbox = None

    def _done(self, asked: Asked, code: tuple[str, bytes] | None, ts: int | None, frame: int | None) -> None:
        """What a command does when it is granted."""
        match asked.verb:
            case "LOGIN" | "AUTHENTICATE":
                self._login(asked, True, ts, frame)
            case "SELECT" | "EXAMINE":
                if asked.extra is None:
                    self._select(asked)
                if code is not None and code[0] == "READ-ONLY":
                    asked.extra.read_only = True
            case "CLOSE" | "UNSELECT" | "UNAUTHENTICATE":
                if asked.verb == "CLOSE":
                    self._closed()
                self._tell_arrived()
                self.mailbox = None
            case "STORE" | "UID STORE":
                self._stored(asked, code)
            case verb if verb in COPIES:
                self._copied(asked, code)
            case "STARTTLS":
                self.info.starttls = "used"
                self.turning = partial(self.start_tls, ts)
            case "COMPRESS":
                self.turning = self.start_deflate
            case "LOGOUT":
                self.info.end = "quit"

    def _login(self, asked: Asked, ok: bool, ts: int | None, frame: int | None) -> None:
        info = self.info
        user = asked.extra if asked.verb == "LOGIN" else None
        mechanism = "LOGIN"
        if asked.verb == "AUTHENTICATE":
            words = asked.argument.split()
            mechanism = text(words[0]).upper()[:40] if words else mechanism
            user = self.user
            if len(words) > 1 and words[1] != b"=":
                user = access.sasl_user(mechanism, words[1], 0) or user
            asked.argument = b""
        info.auth_mechanism, info.auth_ok = mechanism, ok
        info.auth_user = user or info.auth_user
        info.ts_auth, info.ts_auth_done, info.frame_auth = asked.ts, ts, frame

    def _closed(self) -> None:
        """CLOSE expunges silently what is marked \\Deleted (RFC 9051 6.4.1)."""
        box = self.mailbox
        if box is None or box.read_only:
            return
        numbers = {id(entry): n for n, entry in enumerate(box.by_number, 1) if entry is not None and entry.deleted}
        entries = {id(e): e for e in (*filter(None, box.by_number), *box.by_uid.values()) if e.deleted}
        for key, entry in entries.items():
            self._told("expunged", box, entry, numbers.get(key), "CLOSE")
            entry.deleted = False

    def _addressed(self, which: str, by_uid: bool) -> list[tuple[int | None, Entry]]:
        try:
            return self.mailbox.addressed(which, by_uid) if self.mailbox is not None else []
        except Malformed:
            return []

    def _stored(self, asked: Asked, code: tuple[str, bytes] | None) -> None:
        """STORE changed flags (RFC 9051 6.4.6), but not of those that [MODIFIED] names (RFC 7162 3.1.3)."""
        change = _CHANGE.match(text(asked.argument))
        box = self.mailbox
        if change is None or box is None:
            return
        by_uid = asked.verb.startswith("UID")
        spared = {id(e) for _, e in self._addressed(text(code[1]), by_uid)} if code and code[0] == "MODIFIED" else ()
        sign, flags = change["sign"], change["flags"]
        names = flags.strip("()").upper().split()
        for number, entry in self._addressed(change["set"], by_uid):
            if id(entry) in spared:
                continue
            if "\\DELETED" in names:
                entry.deleted = sign != "-"
            elif not sign:
                entry.deleted = False
            self._told("flagged", box, entry, number, f"{sign}FLAGS {flags[: self.limits.argument_chars]}")

    def _copied(self, asked: Asked, code: tuple[str, bytes] | None) -> None:
        """COPY and MOVE: COPYUID says which message became which (RFC 4315 3, RFC 6851 4.3)."""
        box = self.mailbox
        names = grammar.strings(asked.argument, asked.literals)
        if box is None or len(names) < 2 or names[0] is None:
            return
        by_uid = asked.verb.startswith("UID")
        event = "moved" if asked.verb in MOVES else "copied"
        target = grammar.mailbox(names[1]) if names[1] is not None else None
        extra = asked.extra or {}
        copyuid = code[1] if code is not None and code[0] == "COPYUID" else extra.get("copyuid")
        try:
            validity, old, new = text(copyuid or b"").split()
            most = self.limits.mailbox_messages
            pairs = list(zip(grammar.numbers(old, most), grammar.numbers(new, most), strict=True))
        except (ValueError, Malformed):
            messages = extra.get("gone") or self._addressed(text(names[0]), by_uid)
            for number, entry in messages[: self._budget + 1]:
                self._told(event, box, entry, number, f"to {target}", new_mailbox=target)
            return
        gone = {entry.uid: number for number, entry in extra.get("gone", ()) if entry is not None}
        for before, after in pairs[: self._budget + 1]:
            self._told(
                event,
                box,
                box.by(before),
                gone.get(before),
                f"to {target} as UID {after}",
                new_mailbox=target,
                new_uidvalidity=int(validity) if validity.isdigit() and len(validity) < 20 else None,
                new_uid=after,
            )

    # APPEND

    def _append_replied(
        self, asked: Asked, tagged: grammar.Tagged, code: tuple[str, bytes] | None, ts: int | None, frame: int | None
    ) -> None:
        """The tagged reply decides over all messages of an APPEND; APPENDUID names them (RFC 4315 3, RFC 3502)."""
        validity, uids = None, []
        if code is not None and code[0] == "APPENDUID":
            words = text(code[1]).split()
            try:
                validity, uids = int(words[0]), grammar.numbers(words[1], self.limits.partial_messages + 1)
            except (ValueError, IndexError):
                validity, uids = None, []
        outcome = "accepted" if tagged.status == "OK" else "rejected"
        if not asked.uploads and (outcome == "rejected" or asked.verb == "APPEND"):
            self._append_over(asked, None, outcome, text(tagged.text), None, None, (ts, frame))
        for n, upload in enumerate(asked.uploads):
            uid = uids[n] if n < len(uids) and len(uids) == len(asked.uploads) else None
            self._append_over(asked, upload, outcome, text(tagged.text), validity, uid, (ts, frame))
        asked.uploads = []

    def _append_over(
        self,
        asked: Asked,
        upload: Upload | None,
        outcome: str,
        reply: str,
        validity: int | None,
        uid: int | None,
        end: tuple[int | None, int | None],
    ) -> None:
        words = grammar.strings(asked.argument, asked.literals)
        at = 0 if asked.verb == "APPEND" else 1
        name = words[at] if len(words) > at else None
        content = None
        if upload is not None and (upload.begin.ts_first is not None or outcome != "rejected"):
            upload.end.cut()
            whole = upload.end.complete and upload.begin.complete and not upload.holes
            if upload.holes:
                upload.reader.gap(-1)
            content = upload.reader.content(whole)
            self._oddities(upload.reader, None)
            if outcome == "unknown" and not upload.end.complete:
                outcome = "aborted"
        self.info.messages += 1
        self.events.append(
            MessageCarried(
                self.info,
                "append",
                self.info.messages,
                ts_start=asked.ts,
                ts_data=upload.begin.ts_first if upload else None,
                ts_eom=upload.end.ts_last if upload and upload.end.complete else None,
                ts_end=end[0],
                first_frame=asked.frame,
                last_frame=end[1] if end[1] is not None or upload is None else upload.end.frame_last,
                outcome=outcome,
                reply_text=self._clip(reply) if reply else None,
                content=content,
                mailbox=grammar.mailbox(name) if name is not None else None,
                uidvalidity=validity,
                uid=uid,
            )
        )

    # rows and ends

    def _row(
        self, asked: Asked, status: str | None, reply: str | None, ts_first: int | None, ts: int | None, frame: int | None
    ) -> None:
        self._tell_odd(asked.n)
        for name, detail in asked.notes:
            self.weird(name, detail, asked.ts, asked.frame)
        asked.ts_reply = ts
        before, asked.before = asked.before, None
        pipelined = False
        if before is not None and asked.ts is not None:
            pipelined = asked.ts < before.ts_reply if before.ts_reply is not None else not before.done
        latency = (ts_first - asked.ts_end) / 1e9 if ts_first is not None and asked.ts_end is not None else None
        self.events.append(
            Command(
                self.info.session_id,
                asked.n,
                asked.ts,
                ts,
                latency,
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
        while self.odd and self.odd[0][0] < before:
            _, ts, frame = self.odd.popleft()
            self.weird("bad_command", "a line that is no command", ts, frame)

    def _clip(self, words: str) -> str:
        limit = self.limits.argument_chars
        return words if len(words) <= limit else words[: limit - 1] + "…"

    def unanswered(self, asked: Asked) -> None:
        """A command whose reply was not seen."""
        for upload in asked.uploads:
            self._append_over(asked, upload, "unknown", "", None, None, (None, None))
        asked.uploads = []
        self._row(asked, None, None, None, None, None)

    def finish(self, reason: str, ts: int) -> None:
        """End what is open; nothing more will come."""
        unit, self.says.unit = self.says.unit, None
        if unit is not None:
            unit.torn = True
            self.response_torn(unit)
        unit, self.asks.unit = self.asks.unit, None
        if unit is not None and unit.asked is not None and not unit.asked.whole:
            self.command_torn(unit.asked, unit)
        for parts in list(self.partly):
            self._pieced(parts, complete=False)
        self._tell_arrived()
        while self.flying:
            asked = self.flying.popleft()
            if not asked.done:
                self.settled(asked)
                self.unanswered(asked)
        self._tell_odd(self.info.commands + 1)


def _argument(unit: Unit) -> bytes:
    try:
        return grammar.command(unit.line).argument
    except Malformed:
        return b""


def _moving(asked: Asked) -> dict[str, Any]:
    """What a COPY's or MOVE's responses have told so far."""
    if asked.extra is None:
        asked.extra = {}
    extra: dict[str, Any] = asked.extra
    return extra


def _called(parameters: bytes, literals: list[bytes | None]) -> str | None:
    """id-params-list = "(" [string SP nstring *(SP string SP nstring)] ")" (RFC 2971 3.3): name and version."""
    values = grammar.values(parameters)
    pairs = values[0] if values and isinstance(values[0], list) else []
    said = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
        said[(grammar.octets(key, literals) or b"").lower()] = grammar.octets(value, literals)
    words = [text(said[key] or b"")[:100] for key in (b"name", b"version") if said.get(key)]
    return " ".join(words) or None


def shown(verb: str, argument: bytes, literals: list[Literal], limit: int) -> str | None:
    """A command's argument as it may be shown: literals in their place, no secret."""
    if verb == "AUTHENTICATE":
        mechanism, blank, _ = argument.partition(b" ")
        return text(mechanism[:40]) + (" ***" if blank else "") if mechanism else None
    if verb == "LOGIN":
        words = grammar.strings(argument, [x.octets for x in literals])
        return f"{text(words[0][:256])} ***" if len(words) > 1 and words[0] is not None else "***"
    if (verb not in KNOWN and _SECRETIVE.search(verb)) or verb in ("URLFETCH", "RESETKEY"):
        return "***"

    def put(found: re.Match[bytes]) -> bytes:
        n = int(found[1][:6])
        octets = literals[n].octets if n < len(literals) else None
        if octets is None:
            return b"{%d}" % literals[n].size if n < len(literals) else found[0]
        return b'"' + octets[:limit] + b'"'

    plain = re.sub(rb"\{([0-9]+)\}", put, argument) if literals else argument
    words_shown = text(plain[: limit * 4]).strip()
    if len(words_shown) > limit:
        words_shown = words_shown[: limit - 1] + "…"
    return words_shown or None


# -- probe -----------------------------------------------------------------------------------------------------------------

_SAYS = re.compile(
    rb"(?:\A|\n)\* (?:[0-9]{1,10} (?:EXISTS|EXPUNGE|RECENT|FETCH \()|OK\b|PREAUTH\b|BYE\b|CAPABILITY IMAP|LIST \(|LSUB \(|"
    rb"FLAGS \(|SEARCH\b|STATUS \S+ \()",
    re.IGNORECASE,
)
_SAYS_TAGGED = re.compile(rb"(?:\A|\n)[^\s+*(){%\"\\\]]{1,40} (?:OK|NO|BAD)\b", re.IGNORECASE)
_ASKS = re.compile(rb"(?:\A|\n)[^\s+*(){%\"\\\]]{1,40} (UID )?([A-Za-z]{2,20})(?:\r?\n| )")
_MUCH = 16 << 10
"""Octets of one side after which the other is not waited for."""


def _like_server(octets: bytes) -> int:
    """2 surely, 1 perhaps, 0 nothing said, -1 not (or the middle of a message)."""
    if not octets:
        return 0
    octets = octets[: 4 * _MUCH]
    found = _SAYS.search(octets)
    if found is not None and found.start() == 0:
        sure = octets[2:4].upper() != b"OK" or b"IMAP" in octets[:4000].upper()
        return 2 if sure or _SAYS_TAGGED.search(octets) else 1
    if _SAYS_TAGGED.match(octets):
        return 2 if found is not None else 1
    return 1 if found is not None or octets[:2] == b"+ " else -1


def _like_client(octets: bytes) -> int:
    """2 surely, 1 perhaps, 0 no line yet, -1 not."""
    if b"\n" not in octets[:1024]:
        return 0 if len(octets) < 512 else -1
    score = 0
    for found in _ASKS.finditer(octets[:_MUCH]):
        verb = found[2].decode("ascii").upper()
        if ("UID " + verb if found[1] else verb) in KNOWN:
            score = max(score, 1 if verb in ("NOOP", "LIST", "STATUS", "LOGOUT", "DELETE", "SEARCH", "MOVE", "COPY", "ID") else 2)
        if score == 2:
            return 2
    return score or (1 if octets[:6].upper() in (b"DONE\r\n", b"DONE\n") else -1)


def probe(orig: bytes, resp: bytes, orig_port: int, resp_port: int, closing: bool) -> Recognised | None:
    """Does this connection speak IMAP?  What both sides say decides, port 143 breaks ties."""
    ways = ((orig, resp, resp_port == 143, True), (resp, orig, orig_port == 143 and resp_port != 143, False))
    for client, server, on_port, client_is_orig in ways:
        says, asks = _like_server(server), _like_client(client)
        enough = closing or len(server) >= _MUCH or len(client) >= _MUCH
        if says > 0 and asks > 0:
            good = says + asks > 2 or on_port
        elif says == 2:
            good = asks == 0 and (on_port or enough or b"IMAP" in server[:4000].upper())
        elif says == 1:
            good = asks == 0 and on_port and (enough or bool(re.match(rb"\* (?:OK|PREAUTH|BYE)\b", server, re.IGNORECASE)))
        elif says == 0:
            good = asks == 2 and enough and (on_port or len(_ASKS.findall(client[:_MUCH])) > 1)
        else:  # joined in the middle of a message
            good = on_port and asks >= 0 and (asks == 2 or enough) and client_is_orig is not None and _textual(server)
        if good:
            return Recognised("imap", client_is_orig)
    return None


def _textual(octets: bytes) -> bool:
    """Lines of text, as the middle of a message is."""
    piece = octets[:2000]
    return b"\r\n" in piece and not any(c < 9 for c in piece) and piece[:1] not in (b"*", b"$", b":")
