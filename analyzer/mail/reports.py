"""What a message says about another message: delivery reports, disposition notices, automatic replies.

RFC 3464 (delivery status), RFC 3462 (multipart/report), RFC 8098 (disposition notices), RFC 3834 (Auto-Submitted), RFC 6533
(internationalized reports).
"""

import binascii
import re
from functools import lru_cache
from typing import NamedTuple

from analyzer.mail.received import canonical_ip


class Fate(NamedTuple):
    """One recipient of a delivery report."""

    recipient: str
    """Original-Recipient where given, else Final-Recipient; without its type, decoded."""
    final: str | None
    """Final-Recipient."""
    action: str
    """`failed delayed delivered relayed expanded`."""
    status: str | None
    diagnostic: str | None


class Report(NamedTuple):
    """What the report says, as far as its octets were kept."""

    kind: str
    """`dsn` or `mdn`."""
    message_id: str | None
    """Message-ID of the message it is about."""
    envelope_id: str | None
    """Original-Envelope-Id: the ENVID of the message's MAIL."""
    queue_id: str | None
    """What the reporting server called the message (X-Postfix-Queue-ID)."""
    fates: tuple[Fate, ...]


_RETURNED = ("message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers", "message/partial")
_STATUS = ("message/delivery-status", "message/global-delivery-status")
_NOTICE = ("message/disposition-notification", "message/global-disposition-notification")


def parse(body: bytes, content_type: str) -> Report | None:
    """Read the first octets of a report's body.  `content_type` is that of the whole message, lower case."""
    if content_type.startswith(_STATUS + _NOTICE):
        return _from_parts([(content_type, body)])
    parts = _parts(body)
    return _from_parts(parts) if parts else None


def _parts(body: bytes) -> list[tuple[str, bytes]]:
    """The parts of a multipart body with their content types, told by the boundary lines alone (bounded by `report_bytes`)."""
    found: list[tuple[str, str, bytes]] = []
    chunks = body.replace(b"\r\n", b"\n").split(b"\n--")
    boundary = chunks[0][2:].split(b"\n", 1)[0].rstrip() if body.startswith(b"--") else None
    for chunk in chunks if body.startswith(b"--") else chunks[1:]:
        mark, _, rest = chunk.partition(b"\n")
        mark = mark.removeprefix(b"--").rstrip()
        if boundary is None:
            boundary = mark
        if mark != boundary:
            if found and len(found) < 64 and len(found[-1][2]) < 65_536:  # dashes inside a part
                kind, encoding, text = found[-1]
                found[-1] = (kind, encoding, text + b"\n--" + chunk)
            continue
        header, _, text = (b"\n" + rest).partition(b"\n\n")
        fields = _fields(header)
        kind = fields.get("content-type", "text/plain").split(";")[0].strip().lower()
        if len(found) < 64:
            found.append((kind, fields.get("content-transfer-encoding", "").strip().lower(), text))
    return [(kind, _decoded(text, encoding)) for kind, encoding, text in found]


_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def _decoded(text: bytes, encoding: str) -> bytes:
    """A part's octets (RFC 2045 6): message/global-* parts may be encoded (RFC 6533 4)."""
    if encoding == "quoted-printable":
        return binascii.a2b_qp(text)
    if encoding == "base64":
        letters = _NO_BASE64.sub(b"", text)
        whole = letters[: len(letters) - (len(letters) % 4 == 1)]
        return binascii.a2b_base64(whole + b"=" * (-len(whole) % 4)).replace(b"\r\n", b"\n")
    return text


def _fields(block: bytes) -> dict[str, str]:
    """Header fields of a block, first of each name, unfolded."""
    fields: dict[str, str] = {}
    last = None
    for line in block.split(b"\n"):
        if line[:1] in (b" ", b"\t"):
            if last is not None and len(fields[last]) < 4096:
                fields[last] += " " + line.strip().decode("utf-8", "backslashreplace")
            continue
        name, colon, value = line.partition(b":")
        last = None
        if colon and name:
            key = name.strip().decode("ascii", "replace").lower()
            if key not in fields:
                fields[key] = value.strip().decode("utf-8", "backslashreplace")
                last = key
    return fields


def _from_parts(parts: list[tuple[str, bytes]]) -> Report | None:
    kind = message_id = envelope_id = queue_id = None
    fates: list[Fate] = []
    for part, text in parts:
        if part in _STATUS and kind is None:
            kind = "dsn"
            blocks = [b for b in text.replace(b"\r\n", b"\n").split(b"\n\n") if b.strip()]
            about = _fields(blocks[0]) if blocks else {}
            envelope_id = about.get("original-envelope-id")
            queue_id = about.get("x-postfix-queue-id")
            for block in blocks:
                fate = _fate(_fields(block))
                if fate is not None:
                    fates.append(fate)
        elif part in _NOTICE and kind is None:
            kind = "mdn"
            message_id = _angled(_fields(text.replace(b"\r\n", b"\n")).get("original-message-id"))
        elif part in _RETURNED and kind is not None and message_id is None:
            header = text.replace(b"\r\n", b"\n").lstrip(b"\n").split(b"\n\n", 1)[0]
            message_id = _angled(_fields(header).get("message-id"))
    return Report(kind, message_id, envelope_id, queue_id, tuple(fates)) if kind else None


def _fate(fields: dict[str, str]) -> Fate | None:
    action = fields.get("action", "").split()
    final = _typed(fields.get("final-recipient"))
    original = _typed(fields.get("original-recipient"))
    if not action or not (final or original):
        return None
    return Fate(original or final or "", final, action[0].lower(), fields.get("status"), fields.get("diagnostic-code"))


def _typed(text: str | None) -> str | None:
    """The address of `rfc822; user@host` (RFC 3464 2.3.1) or of `utf-8; ...` (RFC 6533 3)."""
    if text is None:
        return None
    kind, semicolon, address = text.partition(";")
    return typed_address(kind, address.strip().strip("<>")) if semicolon else text.strip().strip("<>") or None


_XTEXT = re.compile(r"(?:\+[0-9A-F]{2})+")
_UNICODE = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")


def xtext(text: str) -> str:
    """Decode xtext (RFC 3461 4): `+XX` is an octet."""
    return _XTEXT.sub(lambda m: bytes.fromhex(m[0].replace("+", "")).decode("utf-8", "backslashreplace"), text)


def typed_address(kind: str, address: str) -> str | None:
    """An address of a type; of type `utf-8` with its `\\x{..}` decoded (RFC 6533 3: utf-8-addr-xtext and utf-8-addr-unitext)."""
    if kind.strip().lower() == "utf-8":
        address = _UNICODE.sub(_character, address)
    return address or None


def _character(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else found[0]


def _angled(text: str | None) -> str | None:
    """The first `<...>` of a field."""
    if text is None:
        return None
    start = text.find("<")
    end = text.find(">", start)
    return text[start : end + 1] if 0 <= start < end else None


def domain_of(address: str | None) -> str | None:
    """The domain of a mailbox, lower case, without final dot; None for `<>` and for address literals."""
    if not address or "@" not in address:
        return None
    text = address.rpartition("@")[2]
    return _known_domain(text) if len(text) <= _DOMAIN_CHARS else _domain(text)


_DOMAIN_CHARS = 320
"""Longer than any domain (RFC 5321 4.5.3.1.2): what is longer is not kept in memory."""


def _domain(text: str) -> str | None:
    domain = text.strip("<> ").rstrip(".").lower()
    if not domain or domain.startswith("[") or canonical_ip(domain) is not None:
        return None
    return domain


_known_domain = lru_cache(1024)(_domain)
