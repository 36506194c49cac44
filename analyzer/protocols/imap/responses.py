"""What untagged responses mean: the mailbox, the messages fetched from it, what happens to them.

Sequence numbers are turned into messages when their response is read, never later (RFC 9051 2.3.1.2).  A message fetched
whole is a retrieval when its response ends; pieces are joined by mailbox, UIDVALIDITY and UID, and are one retrieval when
the last octet has come, or when nothing more can come.
"""

import re
from collections import OrderedDict
from typing import Any

from analyzer.protocols import access
from analyzer.protocols.base import Content, MailboxEvent, Malformed, MessageCarried, text
from analyzer.protocols.imap import fetched, grammar
from analyzer.protocols.imap.fetched import FIELDS, HEADER, OTHER, PART, TEXT, WHOLE, Literal, Parts
from analyzer.protocols.imap.mailbox import Entry, Known, Mailbox
from analyzer.protocols.imap.units import Asked, At, Unit, Units
from analyzer.protocols.message import MessageReader

FETCHES = frozenset({"FETCH", "UID FETCH"})
SELECTS = frozenset({"SELECT", "EXAMINE"})
MOVES = frozenset({"MOVE", "UID MOVE"})
COPIES = frozenset({"COPY", "UID COPY"}) | MOVES

_NAME = 4096
"""Octets before a literal in which the name of its fetch item is looked for."""
_BOXES = 100
"""Mailboxes whose messages are remembered after another is selected."""

_NUMBERED = re.compile(rb"\* ([0-9]{1,10}) (EXISTS|EXPUNGE|FETCH)\b ?", re.IGNORECASE)
_UNTAGGED = re.compile(rb"\* ([A-Za-z]+)(?: (.*))?\Z", re.DOTALL)


class Responses(Units):
    """One IMAP connection: its untagged responses."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mailbox: Mailbox | None = None
        self.boxes: dict[tuple[str | None, int], Known] = {}
        """Messages of the mailboxes selected so far, by name and UIDVALIDITY."""
        self.holder = fetched.Holder(self.limits)
        self.partly: OrderedDict[Parts, tuple[Entry, Mailbox]] = OrderedDict()
        """Messages of which something, but not all, was fetched."""
        self.arrived: OrderedDict[Entry, MailboxEvent] = OrderedDict()
        """Messages announced by EXISTS, told when it is known which they are."""
        self.budget = self.limits.session_events

    def tagged(self, tagged: grammar.Tagged, at: At) -> None:
        """A tagged response: session.py."""
        raise NotImplementedError

    def response_read(self, line: bytes, unit: Unit) -> None:
        """One response, whole."""
        greeting, self.greeted = not self.greeted, True
        if line[:2] == b"* ":
            found = _NUMBERED.match(line)
            if found is None:
                self._untagged(line, unit, greeting)
            elif found[2].upper() == b"FETCH":
                if unit.entry is None:
                    self._begin_fetch(unit, int(found[1]), line[found.end() :])
                self._fetched(unit, line[found.end() :])
            elif found[2].upper() == b"EXISTS":
                self._exists(int(found[1]), unit.at)
            else:
                self._expunged(int(found[1]), unit.at)
        elif line[:1] == b"+":
            self.granted(line, unit.at)
        else:
            tagged = grammar.tagged(line)
            if tagged is not None:
                self.tagged(tagged, unit.at)
            elif line.strip():
                self.weird("bad_reply", "a line that is no response", *unit.at[:2])

    def now(self) -> tuple[int | None, int | None]:
        """Time and frame of the octet read last: the end of a response."""
        return self.early_end or self.server.segment_at(self.server.offset - 1)[:2]

    # resp-cond-state, capability-data, mailbox-data

    def _untagged(self, line: bytes, unit: Unit, greeting: bool) -> None:
        """response-data = "*" SP (resp-cond-state / resp-cond-bye / mailbox-data / message-data / capability-data) CRLF."""
        found = _UNTAGGED.match(line)
        if found is None:
            return
        word, rest = found[1].upper(), found[2] or b""
        if word in grammar.STATUSES:
            if greeting:
                self._greeting(word, rest)
            self._coded(rest, unit.at)
        elif word == b"CAPABILITY":
            self.capabilities(rest)
        elif word == b"VANISHED":
            self._vanished(rest, unit.at)
        elif word == b"ID":
            self.info.server_software = called(rest, [x.octets for x in unit.literals]) or self.info.server_software

    def _greeting(self, word: bytes, rest: bytes) -> None:
        info = self.info
        info.ts_banner, info.frame_banner = info.ts_greeted, info.frame_greeted = self.now()
        said = rest[rest.find(b"]") + 1 :]
        info.server_software, info.server_name = access.software(said), access.host(said)
        if word == b"PREAUTH":
            info.auth_ok = True

    def capabilities(self, words: bytes) -> None:
        """capability-data = "CAPABILITY" *(SP capability): the list so far is void (RFC 9051 7.2.2)."""
        found = text(words[:10_000]).upper().split()
        self.info.capabilities = found[:200]
        if "STARTTLS" in found and self.info.starttls is None:
            self.info.starttls = "offered"

    def _coded(self, resp_text: bytes, at: At) -> None:
        """An untagged status response's code."""
        code = grammar.code(resp_text)
        if code is None:
            return
        name, argument = code
        if name == "CAPABILITY":
            self.capabilities(argument)
        elif name == "UIDVALIDITY" and argument.isdigit() and len(argument) < 20:
            self._validity(self._box(at), int(argument))
        elif name == "COPYUID":
            mover = next((a for a in self.visible(at) if a.verb in COPIES), None)
            if mover is not None:
                moving(mover)["copyuid"] = argument

    # the mailbox

    def _box(self, at: At) -> Mailbox:
        """The mailbox an untagged response is about: once SELECT was given, the new one (RFC 9051 6.3.2)."""
        oldest = next(self.visible(at), None)
        if oldest is not None and oldest.verb in SELECTS and oldest.extra is None:
            self.select(oldest)
        if self.mailbox is None:
            self.mailbox = Mailbox(None, self.limits.mailbox_messages)
        return self.mailbox

    def select(self, asked: Asked) -> None:
        """SELECT closes the mailbox that was open, and opens another."""
        self.tell_arrived()
        names = grammar.strings(asked.argument, asked.literals)
        name = grammar.mailbox(names[0]) if names and names[0] is not None else None
        self.mailbox = asked.extra = Mailbox(name, self.limits.mailbox_messages, asked.verb == "EXAMINE")

    def _validity(self, box: Mailbox, uidvalidity: int) -> None:
        """The mailbox's UIDVALIDITY: its messages are those seen before under it."""
        if box.uidvalidity == uidvalidity:
            return
        key = box.name, uidvalidity
        if key not in self.boxes:
            if len(self.boxes) >= _BOXES or sum(len(known.uids) for known in self.boxes.values()) > self.limits.mailbox_messages:
                self.boxes.clear()
            self.boxes[key] = Known()
        box.remember(self.boxes[key])
        box.uidvalidity = uidvalidity

    def _exists(self, number: int, at: At) -> None:
        """`* n EXISTS`: when n has grown outside SELECT, messages have just arrived (RFC 9051 7.4.1)."""
        box = self._box(at)
        before = box.grow(number)
        if before is None or number <= before or self.budget <= 0 or any(a.verb in SELECTS for a in self.visible(at)):
            return
        ts, frame = self.now()
        most = self.limits.arrivals
        if number - before > most:
            self.weird("mailbox_too_large", f"{number - before} messages arrived at once", ts, frame)
        for n in range(max(before, number - most) + 1, number + 1):
            entry = box.entry(n)
            self.arrived[entry] = MailboxEvent(
                ts or 0, self.info, "notified", frame, box.name, box.uidvalidity, None, n, None, f"{number} EXISTS"
            )
            if len(self.arrived) > most:
                self._tell(*self.arrived.popitem(last=False))

    def _tell(self, entry: Entry, event: MailboxEvent) -> None:
        self._event(event._replace(uid=entry.uid, message_id=entry.message_id))

    def tell_arrived(self) -> None:
        """Nobody will say more of the messages that have arrived."""
        for entry, event in self.arrived.items():
            self._tell(entry, event)
        self.arrived.clear()

    def _expunged(self, number: int, at: At) -> None:
        """`* n EXPUNGE` (RFC 9051 7.5.1); during MOVE it is the move's own (RFC 6851 3.3)."""
        box = self._box(at)
        entry = box.expunge(number)
        mover = next((a for a in self.visible(at) if a.verb in MOVES), None)
        if mover is None:
            self.happened("expunged", box, entry, number, "EXPUNGE")
        elif len(gone := moving(mover).setdefault("gone", [])) < self.limits.mailbox_messages:
            gone.append((number, entry))

    def _vanished(self, rest: bytes, at: At) -> None:
        """`* VANISHED uids`: gone now; `(EARLIER)`: gone while another session looked (RFC 7162 3.2.10)."""
        box = self._box(at)
        if rest[:9].upper() == b"(EARLIER)":
            return
        try:
            entries = box.vanish(text(rest.strip()))
        except Malformed:
            return
        mover = next((a for a in self.visible(at) if a.verb in MOVES), None)
        gone = moving(mover).setdefault("gone", []) if mover is not None else []
        for entry in entries[: max(self.budget, 0) + 1]:
            if mover is None:
                self.happened("expunged", box, entry, None, "VANISHED")
            elif len(gone) < self.limits.mailbox_messages:
                gone.append((None, entry))

    def happened(self, event: str, box: Mailbox, entry: Entry | None, number: int | None, detail: str, **more: Any) -> None:
        """Something happened to a message, now."""
        ts, frame = self.now()
        uid, known = (entry.uid, entry.message_id) if entry is not None else (None, None)
        self._event(
            MailboxEvent(
                ts or 0, self.info, event, frame, box.name, box.uidvalidity, uid, number, None, detail, message_id=known, **more
            )
        )

    def _event(self, event: MailboxEvent) -> None:
        self.budget -= 1
        if self.budget >= 0:
            self.events.append(event)
        elif self.budget == -1:
            self.weird("mailbox_too_large", "more mailbox events than are told", event.ts, event.frame)

    # message-data: FETCH

    def response_begun(self, line: bytes, unit: Unit) -> None:
        """A response with literals: of a FETCH the message must be known before its octets come."""
        found = _NUMBERED.match(line)
        if found and found[2].upper() == b"FETCH":
            self._begin_fetch(unit, int(found[1]), line[found.end() :])

    def _begin_fetch(self, unit: Unit, number: int, rest: bytes) -> None:
        unit.box, unit.number = self._box(unit.at), number
        unit.asked = next((a for a in self.visible(unit.at) if a.verb in FETCHES), None)
        uid = grammar.uid(rest)
        unit.entry = unit.box.entry(number) if uid is None else self._named(unit.box, number, uid)

    def _named(self, box: Mailbox, number: int, uid: int) -> Entry:
        before = box.at(number)
        entry = box.named(number, uid)
        if before is not None and before is not entry and before in self.arrived:
            self.arrived[entry] = self.arrived.pop(before)
        return entry

    def literal_said(self, unit: Unit, size: int) -> Literal:
        """A literal of the server: octets of a message, or a string."""
        kind, origin = self._kind(unit, grammar.item(unit.line[-_NAME:])) if unit.entry is not None else (OTHER, None)
        unit.kinds.append((kind, origin))
        return self._literal(unit, kind, origin, size)

    def _kind(self, unit: Unit, item: tuple[str, str | None, int | None] | None) -> tuple[str, int | None]:
        if item is None:
            return OTHER, None
        kind, parts = fetched.kind_of(item[0], item[1]), unit.entry.parts
        if kind == PART and item[:2] == ("BODY", "1") and parts is not None and parts.plain:
            kind = TEXT
        return kind, item[2]

    def _literal(self, unit: Unit, kind: str, origin: int | None, size: int) -> Literal:
        """Where the octets of a fetched item go: to the message's digest when their turn has come, else they are held."""
        limits, parts = self.limits, unit.entry.parts if unit.entry is not None else None
        if kind == WHOLE and origin is None:
            return Literal(size, 0, MessageReader(limits))
        if kind == WHOLE:
            at = origin or 0
            if at == 0 and (parts is None or parts.reader is None):
                parts = parts or self._parts(unit)
                parts.reader = MessageReader(limits)
            if parts is not None and parts.reader is not None and at <= parts.next:
                return Literal(size, 0, parts.reader, skip=parts.next - at)
            return Literal(size, limits.parts_bytes // 2)
        if kind == TEXT and origin is None and parts is not None and parts.header is not None and parts.reader is None:
            parts.reader = MessageReader(limits)
            parts.reader.feed(parts.header)
            parts.next = len(parts.header)
            return Literal(size, 0, parts.reader)
        room = {HEADER: limits.header_bytes, TEXT: limits.parts_bytes // 2, PART: 0}.get(kind, limits.line_bytes)
        return Literal(size, room if origin is None else 0)

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
        """message-data = nz-number SP "FETCH" SP msg-att."""
        entry: Entry = unit.entry
        quoted: list[tuple[str, int | None, Literal]] = []
        for name, value in grammar.attributes(rest[rest.find(b"(") :]):
            if name == "UID" and isinstance(value, str) and value.isdecimal() and len(value) <= 10:
                if int(value) != entry.uid:
                    entry = unit.entry = self._named(unit.box, unit.number, int(value))
            elif name == "FLAGS" and isinstance(value, list):
                entry.flags = tuple(flag for flag in value[:100] if isinstance(flag, str))
                unit.box.mark(entry, any(flag.upper() == "\\DELETED" for flag in entry.flags))
            elif name == "RFC822.SIZE" and isinstance(value, str) and value.isdecimal() and len(value) < 20:
                entry.size = int(value)
            elif name == "ENVELOPE" and isinstance(value, list) and len(value) > 9:
                known = grammar.octets(value[9], [x.octets for x in unit.literals])
                entry.message_id = text(known.strip()[:998]) if known else entry.message_id
            elif isinstance(value, bytes):
                self._quoted(unit, name, value, quoted)
        self._items(unit, quoted)
        if entry in self.arrived and entry.uid is not None and entry.message_id is not None:
            self._tell(entry, self.arrived.pop(entry))

    def _quoted(self, unit: Unit, name: str, value: bytes, quoted: list[tuple[str, int | None, Literal]]) -> None:
        """Message octets may come as a quoted string, too: nstring = string / nil."""
        kind, origin = self._kind(unit, grammar.item(name.encode("latin-1", "replace")))
        if kind != OTHER:
            literal = self._literal(unit, kind, origin, len(value))
            literal.feed(value)
            literal.ts_first, literal.frame_first, _ = unit.at
            literal.ts_last, literal.frame_last = self.now()
            quoted.append((kind, origin, literal))

    def _items(self, unit: Unit, quoted: list[tuple[str, int | None, Literal]]) -> None:
        """The message octets of one FETCH response: all of it, or pieces."""
        items = [(*kind, literal) for kind, literal in zip(unit.kinds, unit.literals, strict=False)] + quoted
        entry: Entry = unit.entry
        whole = [literal for kind, origin, literal in items if kind == WHOLE and origin is None]
        if whole:
            self._whole(unit, entry, next((w for w in whole if w.complete and not w.left), whole[0]))
            return
        for kind, origin, literal in items:
            literal.cut()
            if kind in (HEADER, FIELDS) and (header := literal.octets) is not None:
                entry.message_id = grammar.message_id(header) or entry.message_id
            if kind not in (FIELDS, OTHER) and not (entry.whole and kind == HEADER):
                self._piece(unit, entry, kind, origin, literal)

    def _whole(self, unit: Unit, entry: Entry, literal: Literal) -> None:
        """BODY[], RFC822 or BINARY[]: a retrieval; pieces fetched before are moot."""
        literal.cut()
        assert literal.reader is not None
        content = literal.reader.content(literal.complete)
        self.oddities(literal.reader, unit.at)
        self._forget(entry)
        entry.whole = entry.whole or literal.complete
        (ts, frame), begun = self.now(), unit.asked
        self._retrieved(
            entry,
            unit.box,
            content,
            ts_start=begun.ts if begun else unit.at[0],
            ts_data=literal.ts_first,
            ts_eom=literal.ts_last if literal.complete else None,
            ts_end=None if unit.torn else ts,
            first_frame=begun.frame if begun else unit.at[1],
            last_frame=literal.frame_last if unit.torn else frame,
            number=unit.number,
        )

    def _retrieved(self, entry: Entry, box: Mailbox, content: Content, **seen: Any) -> None:
        entry.message_id = content.message_id = content.message_id or entry.message_id
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

    def oddities(self, reader: MessageReader, at: At) -> None:
        """What was odd in a message's octets."""
        for name, detail in reader.oddities:
            self.weird(name, detail, *at[:2])

    def _piece(self, unit: Unit, entry: Entry, kind: str, origin: int | None, literal: Literal) -> None:
        """A part of a message: joined with what came of it before."""
        parts = self._parts(unit)
        parts.total = entry.size if entry.size is not None else parts.total
        parts.wanted = parts.wanted or kind in (WHOLE, PART) or (kind == TEXT and origin != 0)
        octets = literal.octets
        if kind == HEADER and parts.reader is None and parts.header is None and octets is not None and origin is None:
            parts.keep_header(octets)
            self.holder.add(parts, len(octets))
        elif kind == TEXT and origin is None and literal.reader is not None:
            parts.next += literal.size
            parts.total = parts.next
        elif kind == TEXT and origin is None and octets is not None and parts.text is None:
            parts.text = octets
            self.holder.add(parts, len(octets))
        elif kind == WHOLE and origin is not None:
            self._partial(unit, parts, origin, literal)
        if parts.text is not None and parts.header is not None and parts.reader is None:
            parts.reader = MessageReader(self.limits)
            parts.reader.feed(parts.header)
            parts.reader.feed(parts.text)
            parts.total = parts.next = len(parts.header) + len(parts.text)
        self._date(unit, parts, literal)
        self.partly[parts] = (entry, unit.box)
        if parts.done:
            self._joined(parts, True, unit.at)
        elif len(self.partly) > self.limits.partial_messages:
            self._joined(next(iter(self.partly)), False, unit.at)

    def _partial(self, unit: Unit, parts: Parts, origin: int, literal: Literal) -> None:
        """BODY[]<origin>: digested as it came, or held for its time."""
        size, octets = literal.size, literal.octets
        if literal.reader is not None:
            parts.next = max(parts.next, origin + size)
        elif octets is not None and origin not in parts.early:
            parts.early[origin] = octets
            self.holder.add(parts, size)
        asked_for = (unit.asked.extra or {}).get(("", origin)) if unit.asked is not None else None
        if parts.total is None and (size == 0 or (asked_for is not None and size < asked_for)):
            parts.total = origin + size  # less than was asked for: the message ends here
        parts.early_fits()

    def _date(self, unit: Unit, parts: Parts, literal: Literal) -> None:
        """The retrieval begins with the first piece's command and ends with the last piece."""
        seen, begun = parts.seen, unit.asked
        if not seen:
            seen["ts_start"], seen["first_frame"] = (begun.ts, begun.frame) if begun else unit.at[:2]
            seen["ts_data"] = literal.ts_first
        seen["ts_end"], seen["last_frame"] = self.now()
        seen["ts_eom"], seen["number"] = literal.ts_last, unit.number

    def _joined(self, parts: Parts, complete: bool, at: At) -> None:
        """All pieces are there, or no more will come."""
        entry, box = self.partly.pop(parts)
        if parts.wanted:
            if complete and parts.reader is not None:
                content = parts.reader.content(True)
                entry.whole = content.complete
                self.oddities(parts.reader, at)
            else:
                content = fetched.remainder(parts, self.limits)
                parts.seen["ts_eom"] = None
            self._retrieved(entry, box, content, **parts.seen)
        self.holder.release(parts)
        if entry.parts is parts:
            entry.parts = None

    def _forget(self, entry: Entry) -> None:
        parts, entry.parts = entry.parts, None
        if parts is not None:
            self.partly.pop(parts, None)
            self.holder.release(parts)

    def end_fetches(self) -> None:
        """Nothing more will come: what was fetched in part stays so."""
        unit, self.says.unit = self.says.unit, None
        if unit is not None:
            unit.torn = True
            self.response_torn(unit)
        for parts in list(self.partly):
            self._joined(parts, False, (None, None, -1))
        self.tell_arrived()


def moving(asked: Asked) -> dict[str, Any]:
    """What a COPY's or MOVE's responses have told so far."""
    if asked.extra is None:
        asked.extra = {}
    extra: dict[str, Any] = asked.extra
    return extra


def called(parameters: bytes, literals: list[bytes | None]) -> str | None:
    """id-params-list = "(" [string SP nstring *(SP string SP nstring)] ")" (RFC 2971 3.3): name and version."""
    top = grammar.values(parameters)
    pairs = top[0] if top and isinstance(top[0], list) else []
    said = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=False):
        said[(grammar.octets(key, literals) or b"").lower()] = grammar.octets(value, literals)
    words = [text(said[key] or b"")[:100] for key in (b"name", b"version") if said.get(key)]
    return " ".join(words) or None
