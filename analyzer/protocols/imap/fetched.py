"""Messages fetched, whole or in pieces (RFC 9051 6.4.5: BODY[], BODY[]<partial>, BODY[HEADER], BODY[TEXT]; RFC 3516).

A message's octets are BODY[]; BODY[HEADER] and BODY[TEXT] one after the other are the same octets.  Pieces are digested
in order; a piece that comes too early is held (limits.parts_bytes per session), or counts as not seen.
"""

import re
from collections import OrderedDict
from typing import Any

from analyzer.limits import Limits
from analyzer.protocols.base import Content
from analyzer.protocols.message import MessageReader

WHOLE, HEADER, TEXT, FIELDS, PART, OTHER = "whole", "header", "text", "fields", "part", "other"


def kind_of(name: str, section: str | None) -> str:
    """What a fetch item is of its message: all of it, its header, its text, another part, or something to look at."""
    if name in ("BODY", "BINARY"):
        if section == "":
            return WHOLE
        if section == "HEADER":
            return HEADER
        if section == "TEXT":
            return TEXT
        if section is not None and section.startswith("HEADER.FIELDS "):
            return FIELDS
        if section is not None and section[:1].isdigit() and not section.endswith((".MIME", ".HEADER")):
            return PART
        return OTHER
    return {"RFC822": WHOLE, "RFC822.HEADER": HEADER, "RFC822.TEXT": TEXT}.get(name, OTHER)


class Literal:
    """A literal's octets as they come: digested when they are a message's, else kept up to a bound."""

    __slots__ = (
        "_kept",
        "_room",
        "_skip",
        "complete",
        "frame_first",
        "frame_last",
        "left",
        "reader",
        "size",
        "ts_first",
        "ts_last",
    )

    def __init__(self, size: int, room: int, reader: MessageReader | None = None, skip: int = 0) -> None:
        self.size = self.left = size
        self.reader = reader
        self.complete = True
        """Every octet of it was seen."""
        self.ts_first: int | None = None
        self.ts_last: int | None = None
        self.frame_first: int | None = None
        self.frame_last: int | None = None
        self._kept: list[bytes] | None = [] if reader is None and room else None
        self._room = room
        self._skip = skip

    def feed(self, piece: bytes) -> None:
        """Take the next octets."""
        self.left -= len(piece)
        if self.reader is not None:
            if self._skip:
                self._skip, piece = max(0, self._skip - len(piece)), piece[self._skip :]
            self.reader.feed(piece)
        elif self._kept is not None:
            self._room -= len(piece)
            if self._room < 0:
                self._kept = None
            else:
                self._kept.append(piece)

    def gap(self, lost: int) -> None:
        """Octets are lost inside it (-1: unknown, its end too)."""
        self.complete = False
        lost = self.left if lost < 0 else min(lost, self.left)
        self.left -= lost
        self._kept = None
        if self.reader is not None:
            self.reader.gap(lost)

    def cut(self) -> None:
        """Nothing more of it will come."""
        if self.left:
            self.complete = False
            self._kept = None

    @property
    def octets(self) -> bytes | None:
        """All its octets, when they were kept."""
        return b"".join(self._kept) if self._kept is not None and not self.left else None


class Parts:
    """One message that is being fetched in pieces."""

    __slots__ = ("early", "header", "held", "next", "plain", "reader", "seen", "text", "total", "wanted")

    def __init__(self) -> None:
        self.reader: MessageReader | None = None
        self.next = 0
        """Octets digested so far, from the message's first on."""
        self.early: dict[int, bytes] = {}
        """Pieces that came before their time, by their first octet."""
        self.total: int | None = None
        """Octets of the message, when known."""
        self.header: bytes | None = None
        """BODY[HEADER], held until BODY[TEXT] comes."""
        self.text: bytes | None = None
        """BODY[TEXT], held until BODY[HEADER] comes."""
        self.plain = False
        """By its header it is not multipart: BODY[1] and BODY[TEXT] are the same octets (RFC 9051 6.4.5.1)."""
        self.wanted = False
        """More than a look at it was fetched: it counts as a retrieval."""
        self.held = 0
        """Octets held."""
        self.seen: dict[str, Any] = {}
        """Times and frames of the MessageCarried to be."""

    @property
    def done(self) -> bool:
        """All its octets were digested."""
        return self.reader is not None and self.total is not None and self.next >= self.total

    def keep_header(self, header: bytes) -> None:
        """BODY[HEADER] has come."""
        self.header = header
        self.plain = not _MULTIPART.search(header)

    def early_fits(self) -> None:
        """Digest the pieces whose time has come."""
        while self.reader is not None and self.next in self.early:
            piece = self.early.pop(self.next)
            if not piece:
                break
            self.reader.feed(piece)
            self.next += len(piece)


_MULTIPART = re.compile(rb"(?:\A|\n)content-type[ \t]*:\s*(?:multipart|message)/", re.IGNORECASE)
_PIECE_COST = 200
"""What holding a piece costs besides its octets."""


class Holder:
    """The octets that all messages of a session hold together: the oldest are let go first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0
        self._order: OrderedDict[Parts, None] = OrderedDict()

    def add(self, parts: Parts, octets: int) -> None:
        """These parts hold so many octets more."""
        parts.held += octets + _PIECE_COST
        self.held += octets + _PIECE_COST
        self._order[parts] = None
        while self.held > self.limits.parts_bytes and self._order:
            oldest = next(iter(self._order))
            self.release(oldest)
            oldest.early, oldest.header, oldest.text = {}, None, None

    def release(self, parts: Parts) -> None:
        """These parts hold nothing any more."""
        self.held -= parts.held
        parts.held = 0
        self._order.pop(parts, None)


def remainder(parts: Parts, limits: Limits) -> Content:
    """What is known of a message whose missing pieces will not come."""
    reader = parts.reader or MessageReader(limits)
    if parts.reader is None and parts.header is not None:
        reader.feed(parts.header)
        parts.next = len(parts.header)
    for origin in sorted(parts.early):
        piece = parts.early[origin]
        if origin > parts.next:
            reader.gap(origin - parts.next)
            parts.next = origin
        reader.feed(piece[parts.next - origin :])
        parts.next = max(parts.next, origin + len(piece))
    if parts.text is not None:
        if parts.header is None:
            reader.gap(-1)
        reader.feed(parts.text)
    elif parts.total is None:
        reader.gap(-1)
    elif parts.next < parts.total:
        reader.gap(parts.total - parts.next)
    return reader.content(False)
