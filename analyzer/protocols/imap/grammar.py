"""IMAP's grammar, each production above the function that reads it (RFC 9051 9, RFC 3501 9).

A unit (a command or a response) comes as its lines with the literals cut out: `{3}` stands for the unit's literal
number 3, and the tokens outside quoted strings are read from there.  Nothing here keeps state.
"""

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from analyzer.protocols.base import Malformed, text

STATUSES = frozenset({b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"})

NUMBER64 = (1 << 63) - 1

# literal = "{" number64 ["+"] "}" CRLF *CHAR8 ; literal8 = "~{" number64 ["+"] "}" CRLF *OCTET (RFC 9051 9, RFC 7888)
_LITERAL = re.compile(rb"~?\{([0-9]+)([+-]?)\}\Z")

# tag = 1*<any ASTRING-CHAR except "+"> ; command = tag SP name ...
_COMMAND = re.compile(rb"([^\s(){%*\"\\+]{1,100})[ ]+([A-Za-z][A-Za-z0-9.=_-]{0,31})(?:[ ]+(.*))?\Z", re.DOTALL)
_UID_COMMAND = re.compile(rb"([A-Za-z]{1,20})(?:[ ]+(.*))?\Z", re.DOTALL)
_TAGGED = re.compile(rb"([^\s(){%*\"\\+]{1,100}) (OK|NO|BAD)(?: (.*))?\Z", re.IGNORECASE | re.DOTALL)
_TEXT_CODE = re.compile(rb"\[([A-Za-z0-9.=_/-]+)(?: ([^\]]*))?\]")

# section = "[" [section-spec] "]" ["<" number ">"]: the number says at which octet a partial begins
_WORD = re.compile(rb"[A-Za-z0-9.]{1,20}\Z")
_PARTIAL = re.compile(rb"(?:BODY|BINARY)(?:\.PEEK)?\[([^\[\]]*)\]<([0-9]{1,19})\.([0-9]{1,19})>", re.IGNORECASE)

_TOKEN = re.compile(
    rb'"((?:[^"\\]|\\.)*+)(?:"|\Z)'  # quoted, or left open
    rb"|(\()|(\))"
    rb"|~?\{([0-9]+)\}"  # a literal of this unit
    rb'|([^\s()"{}\[\]]+(?:\[[^\[\]]*\](?:<[0-9]+>)?)?|\[[^\[\]]*\])',  # atom, number, NIL, flag, fetch item
    re.DOTALL,
)

_DATE = re.compile(rb' ?INTERNALDATE "[^"\\]*"', re.IGNORECASE)
_UID = re.compile(rb"[( ]UID ([0-9]{1,10})[ )]", re.IGNORECASE)
_SIZE = re.compile(rb"[( ]RFC822\.SIZE ([0-9]{1,19})[ )]", re.IGNORECASE)
_FLAGS = re.compile(rb"[( ]FLAGS \(([^()]*)\)", re.IGNORECASE)

_MESSAGE_ID = re.compile(rb"(?:\A|\n)message-id[ \t]*:(?:[ \t]|\r?\n[ \t])*(<[^<>\r\n]{1,900}>|[^\s]{1,900})", re.IGNORECASE)


class Tagged(NamedTuple):
    """A tagged response."""

    tag: bytes
    status: str
    text: bytes


class Given(NamedTuple):
    """A command as its first line reads."""

    tag: bytes
    verb: str
    argument: bytes


def literal(line: bytes) -> tuple[int, bool] | None:
    """The literal that a line announces at its end: octets, and whether its sender waits for `+`; None: none, or a lie."""
    if line[-1:] != b"}":
        return None
    found = _LITERAL.search(line, max(0, len(line) - 64))
    if found is None:
        return None
    size = int(found[1])
    return (size, not found[2]) if size <= NUMBER64 else None


def command(line: bytes) -> Given:
    """command = tag SP (verb / "UID" SP verb) *(SP argument) CRLF."""
    found = _COMMAND.match(line)
    if found is None:
        raise Malformed(line[:40])
    verb, argument = found[2].decode("ascii").upper(), found[3] or b""
    if verb == "UID":
        inner = _UID_COMMAND.match(argument)
        if inner is not None:
            verb, argument = "UID " + inner[1].decode("ascii").upper(), inner[2] or b""
    return Given(found[1], verb, argument)


def tagged(line: bytes) -> Tagged | None:
    """response-tagged = tag SP ("OK" / "NO" / "BAD") SP resp-text CRLF."""
    found = _TAGGED.match(line)
    return Tagged(found[1], found[2].decode("ascii").upper(), found[3] or b"") if found else None


def code(resp_text: bytes) -> tuple[str, bytes] | None:
    """resp-text-code, in brackets at the beginning of resp-text: its name and arguments."""
    if resp_text[:1] != b"[":
        return None
    found = _TEXT_CODE.match(resp_text)
    return (found[1].decode("ascii").upper(), found[2] or b"") if found else None


def tokens(line: bytes) -> Iterator[bytes | str | int]:
    """A unit's values: quoted strings as bytes, literals as their number in the unit, atoms and parentheses as str."""
    for found in _TOKEN.finditer(line):
        which = found.lastindex
        if which == 5:
            yield found[5].decode("latin-1")
        elif which == 1:
            quoted = found[1]
            yield re.sub(rb"\\(.)", rb"\1", quoted, flags=re.DOTALL) if b"\\" in quoted else quoted
        elif which == 4:
            yield int(found[4][:9])
        else:
            yield "(" if which == 2 else ")"


Value = bytes | str | int | list["Value"]


def values(line: bytes) -> list[Value]:
    """The values of a unit with the parenthesised ones as lists."""
    top: list[Value] = []
    here, above = top, []
    for token in tokens(line):
        if token == "(":
            inner: list[Value] = []
            here.append(inner)
            above.append(here)
            here = inner
        elif token == ")":
            if not above:
                break
            here = above.pop()
        else:
            here.append(token)
    return top


def attributes(line: bytes) -> Iterator[tuple[str, Value]]:
    """msg-att = "(" msg-att-item *(SP msg-att-item) ")": each item's name in upper case, and its value."""
    if b'"' in line:
        line = _DATE.sub(b"", line, 1)
    if b'"' in line:
        top = values(line)
        items = top[0] if top and isinstance(top[0], list) else []
        for name, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(name, str):
                yield name.upper(), value
        return
    uid, size, flags = _UID.search(line), _SIZE.search(line), _FLAGS.search(line)  # nothing quoted: nothing to mistake
    if uid is not None:
        yield "UID", uid[1].decode("ascii")
    if size is not None:
        yield "RFC822.SIZE", size[1].decode("ascii")
    if flags is not None:
        yield "FLAGS", list(flags[1].decode("latin-1").split())


def strings(line: bytes, literals: Sequence[bytes | None]) -> list[bytes | None]:
    """astring *(SP astring): atoms, quoted strings and literals alike, as octets; None is a literal not kept."""
    return [octets(v, literals) for v in values(line) if not isinstance(v, list)]


def octets(value: Value | None, literals: Sequence[bytes | None]) -> bytes | None:
    """A string value's octets; None for NIL, a list, and a literal that was not kept."""
    if isinstance(value, int):
        return literals[value] if value < len(literals) else None
    if isinstance(value, str):
        return None if value.upper() == "NIL" else value.encode("latin-1")
    return value if isinstance(value, bytes) else None


def sequence_set(which: str) -> list[tuple[int, int | None]]:
    """sequence-set = (seq-number / seq-range) ["," sequence-set]; `*` is None, at the right; ends in order."""
    ranges: list[tuple[int, int | None]] = []
    for part in which.split(","):
        low, _, high = part.partition(":")
        ends = [None if e == "*" else int(e) if e.isascii() and e.isdigit() and len(e) <= 19 else -1 for e in (low, high or low)]
        if -1 in ends:
            raise Malformed(part[:40])
        known = sorted(e for e in ends if e is not None)
        if not known:
            ranges.append((0, None))  # `*`: the last message
        elif len(known) == 1:
            ranges.append((known[0], None))
        else:
            ranges.append((known[0], known[1]))
    return ranges


def numbers(which: str, most: int) -> list[int]:
    """uid-set written out, in the order given, at most so many numbers (COPYUID, APPENDUID: no `*` there)."""
    found: list[int] = []
    for part in which.split(","):
        low, colon, high = part.partition(":")
        if not (low.isascii() and low.isdigit() and len(low) <= 19) or (colon and not (high.isascii() and high.isdigit())):
            raise Malformed(part[:40])
        first, last = int(low), int(high) if colon and len(high) <= 19 else int(low)
        step = 1 if last >= first else -1
        if abs(last - first) + len(found) >= most:
            raise Malformed("too many")
        found.extend(range(first, last + step, step))
    return found


def item(line: bytes) -> tuple[str, str | None, int | None] | None:
    """msg-att-static's name at the end of `line`: (`BODY`, section, first octet of a partial); (`RFC822.TEXT`, None, None)."""
    line = line.rstrip(b" ")
    origin = None
    if line[-1:] == b">":
        line, _, digits = line[:-1].rpartition(b"<")
        if not digits.isdigit() or len(digits) > 19:
            return None
        origin = int(digits)
    section = None
    if line[-1:] == b"]":
        line, _, inside = line[:-1].rpartition(b"[")
        section = inside.decode("latin-1").upper()
    found = _WORD.search(line, max(0, len(line) - 20))
    return (found[0].decode("ascii").upper(), section, origin) if found else None


def uid(line: bytes) -> int | None:
    """The UID of a msg-att, when it stands before anything quoted."""
    quote = line.find(b'"')
    found = _UID.search(line, 0, quote if quote >= 0 else len(line))
    return int(found[1]) if found else None


def partials(argument: bytes) -> dict[tuple[str, int], int]:
    """What a FETCH asked for in part: (section, first octet) -> octets asked for."""
    return {(found[1].decode("latin-1").upper(), int(found[2])): int(found[3]) for found in _PARTIAL.finditer(argument)}


def message_id(header: bytes) -> str | None:
    """The Message-ID field's value in a header section."""
    found = _MESSAGE_ID.search(header)
    return text(found[1]) if found else None


def mailbox(name: bytes) -> str:
    """mailbox = "INBOX" / astring; modified UTF-7 is decoded (RFC 3501 5.1.3), anything else is UTF-8 (RFC 9051 5.1)."""
    if name.upper() == b"INBOX":
        return "INBOX"
    if b"&" not in name:
        return text(name)
    try:
        return re.sub(rb"&([^-]*)-", _shifted, name).decode("utf-8")
    except (Error, ValueError):
        return text(name)


def _shifted(found: re.Match[bytes]) -> bytes:
    """modified BASE64 of UTF-16BE between `&` and `-`; `&-` is `&`."""
    inner = found[1].replace(b",", b"/")
    if not inner:
        return b"&"
    return b64decode(inner + b"=" * (-len(inner) % 4), validate=True).decode("utf-16-be").encode()
