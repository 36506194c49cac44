"""RFC 5322 messages as their octets go by: digests, size, header fields; the body is not kept.

Used by smtp (dot-stuffed data, BDAT), pop3 (dot-stuffed) and imap (literals).

Rules: no octet is looked at twice but by the digests; a body is never split into lines; the result does not depend on how
the octets were cut into pieces.
"""

import re
from hashlib import sha1, sha256
from typing import Any

import numpy as np

from analyzer.limits import Limits
from analyzer.protocols.base import Content, text
from analyzer.protocols.bodies import Body
from analyzer.protocols.signatures import SIGNED, SignedReader

KEPT_FIELDS = frozenset(
    b"message-id subject from to cc date sender reply-to return-path received delivered-to x-original-to envelope-to "
    b"in-reply-to references auto-submitted content-type content-transfer-encoding mime-version dkim-signature "
    b"authentication-results arc-authentication-results arc-seal arc-message-signature received-spf list-id list-unsubscribe "
    b"list-post precedence resent-message-id resent-from resent-to x-mailer user-agent x-failed-recipients "
    b"disposition-notification-to original-message-id x-loop x-forwarded-to x-autoreply x-autorespond".split()
)
"""Fields kept in Content.headers; the others only pass through the digests."""

_CAPITALS = {b"id", b"mime", b"dkim", b"arc", b"spf"}
_SPELLINGS = {
    spelling: name.decode()
    for name in KEPT_FIELDS
    for spelling in (
        name,
        name.upper(),
        name.title(),
        b"-".join(w.upper() if w in _CAPITALS else w.capitalize() for w in name.split(b"-")),
    )
}
"""Field names as they are usually spelt: a lookup saves the case folding."""
_IDENTITY = frozenset(("message-id", "from", "to", "subject", "date", "received"))
"""Two of these in a row of fields tell a message's own header section from the header of a MIME part (RFC 2046 5.1)."""
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_MSG_ID = re.compile(rb"<[^<>]*>")
_REPORT = re.compile(rb"\s*(?:multipart/report|message/)", re.IGNORECASE)

_END = b"\r\n.\r\n"
_HELD = re.compile(rb"(?:\r?\n|\r|\0)(?:\.\r?)?\Z")
"""Last octets that may be the beginning of the end of data, or of what another reader takes for it."""
_ENDINGS = frozenset((b"\r", b"\n", b"\0", b"."))
_LOOKALIKE = re.compile(rb"(?<=[\n\r\0])\.[\n\r\0]")
_LOOKALIKES = 64
"""Look-alikes of the end of data stopped at, per message: beyond it the message is what the standard says."""
_BLOCK = 128 << 10
_SMALL = 8 << 10
"""Below this numpy's start-up costs more than it saves."""


class MessageReader:
    """Digests a message piece by piece.

    `feed(piece)` takes message octets already free of transfer framing (unstuffed, CRLF); `feed_stuffed` in the
    dot-stuffed form of RFC 5321 4.5.2 is built on it.  `gap(n)` says that octets are lost here (-1: unknown number);
    from then on the message is incomplete and no digest is given.  `content(complete)` ends it.
    """

    __slots__ = (
        "_body",
        "_body_digest",
        "_body_size",
        "_digest",
        "_fields",
        "_head",
        "_in_body",
        "_lead",
        "_line_end",
        "_long",
        "_passed",
        "_recovering",
        "_report",
        "_report_room",
        "_resumed",
        "_signed",
        "_stops",
        "_tail",
        "ended",
        "limits",
        "missing",
        "oddities",
        "size",
        "whole",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size = 0
        """Message octets seen."""
        self.missing = 0
        """Octets known to be lost."""
        self.whole = True
        """No octet was lost."""
        self.ended = False
        """`feed_stuffed` has come to the end of data."""
        self.oddities: list[tuple[str, str]] = []
        """(anomaly name, detail) of what was odd: for the session to name."""
        self._digest: Any = None
        self._body_digest: Any = None
        self._body_size = 0
        self._head: bytearray | None = None
        self._in_body = False
        self._long = False
        self._recovering = False
        self._resumed = False
        self._fields: list[tuple[str, bytes]] | None = None
        self._signed: SignedReader | None = None
        self._report: list[bytes] | None = None
        self._report_room = 0
        self._body = Body(limits.bodies) if limits.bodies is not None else None
        self._tail = b"\r\n"  # the octets before the first are taken as a line end: a dot there is stuffed, too
        self._lead = 2
        self._stops = 0
        self._passed = 0
        self._line_end = b""

    # RFC 5322: header section, empty line, body

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next octets of the message."""
        if not piece:
            return
        self.size += len(piece)
        if self._body is not None:
            self._body.append(piece)
        if self.whole:
            if self._digest is None:
                self._digest = sha256(piece, usedforsecurity=False)
            else:
                self._digest.update(piece)
        if self._in_body:
            self._feed_body(piece)
        else:
            self._feed_head(bytes(piece))

    def _feed_head(self, piece: bytes) -> None:
        """Look for the empty line; keep what comes before it."""
        if self._recovering:
            piece = self._skip_broken_line(piece)
            if not piece:
                return
        head: bytes | bytearray = piece
        begin = 0
        if self._head is not None:
            begin = max(len(self._head) - 2, 0)
            head = self._head
            head += piece
        end = _empty_line(head, begin)
        most = self.limits.header_bytes
        if (end if end >= 0 else len(head)) > most and not self._long:
            self._long = True
            self.oddities.append(("header_too_long", f"the header section is longer than {most} octets"))
            self._fields = (self._fields or []) + self._parse(_without_last_field(bytes(head[:most])))
        if end >= 0:
            self._end_head(head, end)
        elif self._head is None:
            self._head = bytearray(head[-3:] if self._long else head)
        elif self._long:
            del self._head[:-3]

    def _end_head(self, head: bytes | bytearray, end: int) -> None:
        """The empty line has come: the fields are known."""
        self._in_body = True
        self._head = None
        if self._fields is None:
            self._fields = self._parse(bytes(head[:end]))
            if any(name in SIGNED for name, _ in self._fields):
                self._signed = SignedReader(bytes(head[:end]), self.limits)
        elif self._resumed and not self._long:
            self._resume(bytes(head[:end]))
        kind = next((value for name, value in self._fields if name == "content-type"), b"")
        if kind and _REPORT.match(kind):
            self._report = []
            self._report_room = self.limits.report_bytes
        if end < len(head):
            self._feed_body(memoryview(head)[end:] if len(head) > _BLOCK else head[end:])

    def _feed_body(self, piece: bytes | bytearray | memoryview) -> None:
        self._body_size += len(piece)
        if self.whole:
            if self._body_digest is None:
                self._body_digest = sha1(piece, usedforsecurity=False)
            else:
                self._body_digest.update(piece)
        if self._signed is not None and self.whole:
            self._signed.feed(piece)
        if self._report is not None and self._report_room > 0:
            self._report.append(bytes(piece[: self._report_room]))
            self._report_room -= len(piece)

    def _parse(self, head: bytes) -> list[tuple[str, bytes]]:
        """The kept fields of a header section, unfolded, at most `limits.trace_fields` of each name."""
        fields = _kept_fields(head)
        return fields if len(fields) <= self.limits.trace_fields else self._bounded(fields)

    def _bounded(self, fields: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """At most `limits.trace_fields` of each name."""
        most, counts, kept = self.limits.trace_fields, dict[str, int](), list[tuple[str, bytes]]()
        for name, value in fields:
            counts[name] = counts.get(name, 0) + 1
            if counts[name] <= most:
                kept.append((name, value))
        for name, seen in counts.items():
            if seen > most:
                self.oddities.append(("too_many_trace_fields", f"{seen} {name} fields, {most} kept"))
        return kept

    # Loss

    def gap(self, lost: int) -> None:
        """Octets are missing here (their number, or -1)."""
        self.whole = False
        self.missing += max(lost, 0)
        self._digest = self._body_digest = None
        self._flush_tail()
        if self._in_body:
            return
        head = bytes(self._head or b"")
        self._head = None
        if self._fields is None:
            self._fields = self._parse(_without_last_field(head))
        elif self._resumed and not self._long:
            self._resume(_without_last_field(head))
        self._recovering = self._resumed = True

    def _skip_broken_line(self, piece: bytes) -> bytes:
        """After a hole in the header section: its broken line goes, the rest may be header or body."""
        end = piece.find(b"\n")
        if end < 0:
            return b""
        self._recovering = False
        return piece[end + 1 :]

    def _resume(self, head: bytes) -> None:
        """What follows a hole is header again when every line is a field and two of them name a message."""
        assert self._fields is not None
        lines = [line for line in head.split(b"\n") if line.strip()]
        if not all(line[:1] in b" \t" or _FIELD.match(line) for line in lines):
            return
        found = self._parse(head)
        known = {name for name, _ in self._fields}
        if len(_IDENTITY & ({name for name, _ in found} | known)) >= 2:
            self._fields += [(name, value) for name, value in found if name == "received" or name not in known]

    # RFC 5321 4.5.2: transparency

    def watch_ends(self) -> None:
        """Stop at what another reader might take for the end of data: a lone dot between unusual line ends."""
        self._stops = _LOOKALIKES

    def feed_stuffed(self, buf: bytes, begin: int = 0) -> int:
        """Take dot-stuffed octets from `buf[begin:]`; -1 when all was taken and the end of data has not come.

        Else the position after the end of data (`ended` is set), or, after `watch_ends`, after a look-alike of it: a
        `fork` made there is the message as a lax reader has it; the next call goes on by the standard.
        """
        size = len(buf)
        while begin < size:
            stop = size
            if size - begin > _SMALL:
                near = buf.find(_END, begin, begin + _SMALL)  # many small messages may stand in one piece
                stop = near + 5 if near >= 0 else min(begin + _BLOCK, size)
            if stop - begin > _SMALL and self._take_plain(buf, begin, stop):
                begin = stop
                continue
            held = len(self._tail)
            used = self._take_stuffed(self._tail + buf[begin:stop])
            if used >= 0:
                return begin + used - held
            begin = stop
        return -1

    def _take_plain(self, buf: bytes, begin: int, stop: int) -> bool:
        """Take a block to the digests as it is, when no dot begins a line in it; False when one does."""
        block: bytes | memoryview = memoryview(buf)[begin:stop]
        if self._tail:
            block = self._tail + buf[begin:stop]
        octets = np.frombuffer(block, np.uint8)
        dots = np.flatnonzero(octets == 46)
        if len(dots) and (dots[0] == 0 or bool((octets[dots - 1] <= 13).any())):
            return False
        held = _held(buf[max(stop - 4, begin) : stop])
        self._tail = buf[stop - held : stop]
        self._passed = 0
        self._give(block[: len(block) - held])
        return True

    def _take_stuffed(self, data: bytes) -> int:
        """Take stuffed octets that begin with what was held; where it stopped in them, or -1."""
        dot = data.find(b"\n.")
        if dot > 0 and data.startswith(_END, dot - 1):  # the usual message: no line but the last begins with a dot
            odd = self._stops and (data.find(b"\0", 0, dot) >= 0 or data.find(b"\r.", 0, dot) >= 0)
            if not odd:
                self.ended, self._tail, self._passed = True, b"", 0
                self._give(data[: dot + 1])
                return dot + 4
        end = data.find(_END)
        limit = end + 2 if end >= 0 else len(data) - _held(data)
        if self._stops and _unusual(data, seen := limit if end >= 0 else len(data)):
            used = self._stop_at_lookalike(data, seen)
            if used >= 0:
                return used
        self._passed = 0
        piece = data[:limit]
        if end >= 0:
            self.ended = True
            self._tail = b""
        else:
            self._tail = data[limit:]
        self._give(piece.replace(b"\r\n.", b"\r\n") if b"\r\n." in piece else piece)
        return end + 5 if end >= 0 else -1

    def _give(self, piece: bytes | memoryview) -> None:
        """Message octets, the line end before the first left out."""
        if self._lead and piece:
            piece, self._lead = piece[self._lead :], 0
        self.feed(piece)

    def _stop_at_lookalike(self, data: bytes, limit: int) -> int:
        """Come to rest behind the next look-alike in `data[:limit]`; -1 when there is none."""
        found = _LOOKALIKE.search(data, self._passed + 1 if self._passed else 0, limit)
        if found is None or (found[0] == b".\r" and found.end() == limit):  # CR: LF may follow
            return -1
        dot = found.start()
        self._stops -= 1
        line_end = 2 if data[max(dot - 2, 0) : dot] == b"\r\n" else 1
        after = dot + (3 if data[dot + 1 : dot + 3] == b"\r\n" else 2)
        begin = dot - line_end
        self._line_end = {b"\r": b"\r\n", b"\0": b""}.get(data[begin:dot], data[begin:dot])
        piece = data[:begin]
        self._give(piece.replace(b"\r\n.", b"\r\n") if b"\r\n." in piece else piece)
        self._tail = data[begin:after]
        self._passed = line_end
        return after

    @property
    def pieces(self) -> int:
        """Pieces of the message kept: what a copy costs."""
        return len(self._body) if self._body is not None else 0

    def copy(self) -> "MessageReader":
        """A reader that has read the same, and goes its own way."""
        twin = MessageReader(self.limits)
        for name in self.__slots__:
            value = getattr(self, name)
            setattr(twin, name, value.copy() if hasattr(value, "copy") else value)
        return twin

    def fork(self) -> "MessageReader":
        """A reader for which the message has ended at the look-alike just met."""
        twin = self.copy()
        twin._tail = self._line_end
        twin._lead = min(self._lead, len(self._line_end))
        twin.ended = True
        return twin

    def _flush_tail(self) -> None:
        """The octets held back are message octets after all: a hole or the last octet of a chunk follows."""
        tail, lead = self._tail, self._lead
        self._tail, self._lead, self._passed = b"", 0, 0
        if tail[lead:]:
            self.feed(tail.replace(b"\r\n.", b"\r\n")[lead:])

    # The end

    def content(self, complete: bool) -> Content:
        """What is known of the message; `complete` False when its end was not seen."""
        complete = complete and self.whole
        self._flush_tail()
        header_complete = self._in_body and not self._resumed and not self._long
        if not self._in_body:
            head = bytes(self._head or b"")
            if self._fields is None:
                self._fields = self._parse(head if complete else _without_last_field(head))
                header_complete = complete
            elif self._resumed and not self._long:
                self._resume(_without_last_field(head))
        fields = self._fields or []
        return Content(
            size=self.size,
            complete=complete,
            missing_bytes=self.missing,
            sha256=(self._digest or sha256(b"", usedforsecurity=False)).hexdigest() if complete else None,
            body_digest=(self._body_digest or sha1(b"", usedforsecurity=False)).hexdigest() if complete else None,
            body_size=self._body_size if self._in_body or complete else None,
            headers=fields,
            message_id=_message_id(fields, self.limits),
            header_complete=header_complete,
            report=b"".join(self._report) if self._report is not None else None,
            body=self._body,
            signatures=self._signed.finish(complete) if self._signed is not None else None,
        )


def read_whole(octets: bytes, limits: Limits) -> tuple[Content, list[tuple[str, str]]]:
    """What is known of a message whose octets are all here, and what was odd: as a `MessageReader` tells, at less cost."""
    end = _empty_line(octets, 0)
    if 0 <= end <= limits.header_bytes and limits.bodies is None:
        fields = _kept_fields(octets[:end])
        if len(fields) <= limits.trace_fields and not any(
            name in SIGNED or (name == "content-type" and _REPORT.match(v)) for name, v in fields
        ):
            return Content(
                len(octets),
                True,
                0,
                sha256(octets, usedforsecurity=False).hexdigest(),
                sha1(memoryview(octets)[end:], usedforsecurity=False).hexdigest(),
                len(octets) - end,
                fields,
                _message_id(fields, limits),
            ), []
    reader = MessageReader(limits)
    reader.feed(octets)
    return reader.content(True), reader.oddities


def plain_body(buf: bytes, begin: int, most: int) -> tuple[bytes, int] | None:
    """A message in dot-stuffed form that begins at `buf[begin]`, behind a line end, and the position after its end of data.

    None when that is not within `most` octets, or other readers may see it elsewhere (CR, LF or NUL other than as CRLF).
    """
    end = buf.find(_END, begin - 2, begin + most)
    if end < 0:
        return None
    dot = buf.find(b"\n.", begin - 2, end + 3)
    if buf.find(b"\0", begin, end) >= 0 or buf.find(b"\r.", begin, end) >= 0:
        return None
    if dot == end + 1:
        return buf[begin : end + 2], end + 5
    if _unusual(buf[begin - 2 : end + 2], end + 4 - begin):
        return None
    return buf[begin - 2 : end + 2].replace(b"\r\n.", b"\r\n")[2:], end + 5


def _message_id(fields: list[tuple[str, bytes]], limits: Limits) -> str | None:
    """`msg-id` of the first Message-ID field (RFC 5322 3.6.4); the whole value when it has no brackets."""
    for name, value in fields:
        if name == "message-id":
            found = _MSG_ID.search(value)
            return text((found[0] if found else value)[: limits.argument_chars]) or None
    return None


def _kept_fields(head: bytes) -> list[tuple[str, bytes]]:
    """The kept fields of a header section, unfolded (RFC 5322 2.2.3)."""
    unfolded = head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t")
    lines = unfolded.split(b"\r\n")
    if unfolded.count(b"\n") >= len(lines):  # bare LF among its line ends
        unfolded = head.replace(b"\r\n", b"\n").replace(b"\n ", b" ").replace(b"\n\t", b"\t")
        lines = unfolded.split(b"\n")
    fields: list[tuple[str, bytes]] = []
    for line in lines:
        spelling, _, value = line.partition(b":")
        name = _SPELLINGS.get(spelling) or _SPELLINGS.get(spelling.rstrip(b" \t").lower())
        if name is not None:
            fields.append((name, value.strip()))
    return fields


def _empty_line(head: bytes | bytearray, begin: int) -> int:
    """Where the body begins: after the first empty line; -1 when it has not come."""
    if begin == 0:
        if head.startswith(b"\r\n"):
            return 2
        if head.startswith(b"\n"):
            return 1
    crlf = head.find(b"\n\r\n", begin)
    lf = head.find(b"\n\n", begin, crlf + 1 if crlf >= 0 else len(head))
    if lf >= 0:
        return lf + 2
    return crlf + 3 if crlf >= 0 else -1


def _without_last_field(head: bytes) -> bytes:
    """A header section cut short, without its last field: more of it may have followed."""
    lines = head.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    while lines and lines.pop()[:1] in (b" ", b"\t"):
        pass
    return b"\n".join([*lines, b""]) if lines else b""


def _held(data: bytes) -> int:
    """How many last octets wait for what follows them."""
    if data[-1:] not in _ENDINGS:
        return 0
    found = _HELD.search(data, max(len(data) - 4, 0))
    return len(data) - found.start() if found else 0


def _unusual(data: bytes, limit: int) -> bool:
    """Whether `data[:limit]` has CR, LF or NUL other than as CRLF."""
    pairs = data.count(b"\r\n", 0, limit)
    return data.count(b"\n", 0, limit) != pairs or data.count(b"\r", 0, limit) != pairs or data.find(b"\0", 0, limit) >= 0
