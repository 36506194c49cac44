"""Trace fields: what a Received field says of one hand-over (RFC 5321 4.4; the dialects of the common servers).

Rules:
1. Linear time whatever the field holds: one scan splits words from comments, one walk over the words finds the clauses.
2. What is not there is None; nothing is guessed.  A build number that stands as `id` (Exchange) is no id.
3. Addresses leave as canonical text, names in lower case without final dot, times in nanoseconds UTC.
"""

import re
from calendar import timegm
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from sys import intern
from typing import NamedTuple

FIELD_CHARS = 4096
"""Characters of one field looked at; the date is also sought in the last `DATE_CHARS`."""
DATE_CHARS = 120


class Received(NamedTuple):
    """One Received field, read from left to right."""

    helo: str | None
    """Name after `from`: what the client called itself."""
    name: str | None
    """Name the server found for the client (reverse lookup), from the comment."""
    ip: str | None
    """Address of the client."""
    by: str | None
    """Name (or address) of the server that wrote the field."""
    by_ip: str | None
    """Address of the server, where its dialect tells (Exchange)."""
    protocol: str | None
    """The `with` word, upper case: `ESMTPSA`, `LMTP`, `HTTP` (RFC 3848), with its S where a comment tells of TLS; for `local`
    deliveries `LOCAL`."""
    id: str | None
    """What the server called the message; never a software build number."""
    recipient: str | None
    """The `for` address without brackets."""
    ts: int | None
    """Time stamp, nanoseconds."""

    @property
    def handed_over(self) -> bool:
        """Whether the field tells of a hand-over between two hosts (not a local step, a filter on loopback or a web form)."""
        if self.protocol in _NOT_MAIL or (self.helo is None and self.ip is None):
            return False
        if self.ip is not None:
            return not (self.ip.startswith("127.") or self.ip == "::1")
        return self.helo not in _LOCAL and self.helo != self.by

    @property
    def authenticated(self) -> bool:
        """The client logged in (RFC 3848: the final A of ESMTPA, ESMTPSA, LMTPA)."""
        return self.protocol in _WITH_AUTH

    @property
    def encrypted(self) -> bool:
        """The hand-over ran inside TLS (RFC 3848: S)."""
        return self.protocol in _WITH_TLS

    @property
    def in_clear(self) -> bool:
        """The server says that there was no TLS: a protocol word that has a form for TLS (RFC 3848) stands without it."""
        return self.protocol in _WITHOUT_TLS


_NOT_MAIL = {"LOCAL", "HTTP", "HTTPS", "MAPI", "UUCP", "STDIO", "PIPE", "BSMTP", "FILE"}
_LOCAL = {"localhost", "localhost.localdomain", "userid", "user", "root", "unknown-local"}
_WITH_AUTH = {"ESMTPA", "ESMTPSA", "LMTPA", "LMTPSA", "UTF8SMTPA", "UTF8SMTPSA", "UTF8LMTPA", "UTF8LMTPSA", "ASMTP", "ASMTPS"}
_WITH_TLS = {"ESMTPS", "ESMTPSA", "LMTPS", "LMTPSA", "UTF8SMTPS", "UTF8SMTPSA", "UTF8LMTPS", "UTF8LMTPSA", "SMTPS", "ASMTPS"}
_TLS_FORM = {word[:-2] + "A" if word.endswith("SA") else word[:-1]: word for word in _WITH_TLS}
_WITHOUT_TLS = frozenset(_TLS_FORM)
_TLS_TOLD = re.compile(r"\b(?:TLS|SSL)(?:v?\d|_[A-Z])|\bcipher[= ]|(?<!not )\bencrypted", re.I)
"""Servers that write no S (older sendmail, qmail and others) tell of TLS in a comment."""
_MAPPED = bytes(10) + b"\xff\xff"
_CLAUSES = {"from", "by", "via", "with", "id", "for"}
_TOKEN = re.compile(r"[^\s();]+|[();]")
_PARENS = re.compile(r"[()]")
_LITERAL = re.compile(r"\[(?:IPv6:)?([0-9A-Fa-f:.]{2,45})(?:%\w+)?\]", re.I)
_BARE_V4 = re.compile(r"(?<![\w.])(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})(?![\w.])")
_BUILD = re.compile(r"\d+\.\d+\.\d+(?:\.\d+)*")
_HELO = re.compile(r"(?:^|[\s\]])(?:HELO|EHLO|LHLO|helo=|ehlo=)\s*([^\s()]+)")
_HOST_WORD = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?$")
_QMAIL = re.compile(r"\(qmail (\d+) invoked")


def canonical_ip(text: str) -> str | None:
    """The address in canonical text, v4-mapped ones as v4 (RFC 5952); None when it is none."""
    try:
        if ":" not in text:
            return inet_ntop(AF_INET, inet_pton(AF_INET, text)) if text[-1:].isdigit() else None
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return None
    if packed[:12] == _MAPPED:
        return inet_ntop(AF_INET, packed[12:])
    return inet_ntop(AF_INET6, packed)


_COMMENTS = r"(?:\s+\((?:[^()]++|\([^()]*+\))*+\))*+"
_USUAL = re.compile(
    r"from\s+(\[?[\w.:-]+\]?)\s+\(([\w.-]+\s+)?\[(?:IPv6:)?([0-9A-Fa-f.:]+)\]\)"
    + _COMMENTS
    + r"\s+by\s+([\w.-]+)("
    + _COMMENTS
    + ")"
    + r"\s+with\s+(E?SMTPS?A?|LMTPS?A?)"
    + _COMMENTS
    + r"\s+id\s+([\w.:/+=-]+)"
    + _COMMENTS
    + r"(?:\s+for\s+<([^\s<>();]+)>)?"
    + _COMMENTS
    + r"\s*;([^;]*)$",
    re.A,
)
"""What Postfix, sendmail and others who write like them leave; anything else takes the longer way."""


def parse(raw: bytes) -> Received:
    """Read one unfolded field body."""
    whole = raw.decode("utf-8", "backslashreplace")
    usual = _USUAL.match(whole) if len(whole) < FIELD_CHARS else None
    found = _usual(usual) if usual is not None else None
    return found if found is not None else parse_any(whole)


def _usual(found: re.Match[str]) -> Received | None:
    """The usual form, read off one match; must say what `parse_any` says."""
    helo, name, address, by, software, protocol, identifier, recipient, stamp = found.groups()
    if any(word in found.string for word in _GREETED) or ":" in software or _ADDRESS_ONLY.search(software):
        return None
    if protocol in _WITHOUT_TLS and _TLS_TOLD.search(found.string):
        return None
    ip = canonical_ip(address)
    if ip is None or _ODD & {helo, by.lower(), identifier} or by[-1:].isdigit() or _BUILD.fullmatch(identifier):
        return None
    called: str | None = None
    if helo[0] != "[":
        if helo[-1] == "]" or canonical_ip(helo) is not None:
            return None
        called = _host(helo)
    elif canonical_ip(helo[1:-1]) is None:
        return None
    if name is not None:
        if canonical_ip(name := name.strip()) is not None or not _HOST_WORD.match(name):
            return None
        name = _host(name)
    if recipient is not None and "@" not in recipient:
        recipient = None
    return Received(
        called if called != "unknown" else None,
        name if name != "unknown" else None,
        ip,
        _host(by) or None,
        None,
        intern(protocol),
        identifier,
        recipient,
        parse_date(stamp),
    )


@lru_cache(1024)
def _host(name: str) -> str:
    """A host's name to compare by; the same few names stand in most fields, and are kept once."""
    return name.rstrip(".,").lower()


_ODD = frozenset(_CLAUSES)
_ADDRESS_ONLY = re.compile(r"\(\s*\[?[\d.]+\]?\s*\)")
_GREETED = ("HELO", "EHLO", "LHLO", "helo=", "ehlo=")


def parse_any(whole: str) -> Received:
    """Read a field of any dialect."""
    text = whole[:FIELD_CHARS]
    words, comments, stamp = _split(text)
    if len(whole) > FIELD_CHARS:
        stamp = whole[-DATE_CHARS:].rpartition(";")[2]
    clauses = _clauses(words)
    helo, helo_at = clauses.get("from", (None, -1))
    by, by_at = clauses.get("by", (None, -1))
    with_ = clauses.get("with", (None, -1))[0]
    identifier = clauses.get("id", (None, -1))[0]
    stops = sorted(at for _, at in clauses.values())
    name = ip = None
    if helo is not None:
        helo, name, ip = _client(helo, [c for at, c in comments if helo_at <= at < _next(stops, helo_at)])
    by_ip = None
    if by is not None:
        found = _LITERAL.match(by)
        if found:
            by_ip = canonical_ip(found[1])
            by = by_ip
        else:
            by_ip = canonical_ip(by)
            by = by_ip or by.rstrip(".,").lower() or None
        if by_ip is None:
            for at, comment in comments:
                if by_at <= at < _next(stops, by_at) and by_ip is None:
                    by_ip = canonical_ip(comment.strip().removeprefix("[").removesuffix("]"))
    if identifier is not None:
        identifier = identifier.strip("<>,;")
        if not identifier or _BUILD.fullmatch(identifier):
            identifier = None
    elif helo is None and by is None:
        found = _QMAIL.match(text)
        identifier = f"qmail-{found[1]}" if found else None
    return Received(
        helo,
        name,
        ip,
        by,
        by_ip,
        _protocol(with_, clauses.get("via", (None, -1))[0], [c for _, c in comments], identifier),
        identifier,
        _recipient(clauses.get("for", (None, -1))[0]),
        parse_date(stamp) if stamp else None,
    )


def _next(stops: list[int], at: int) -> int:
    """Where the clause after the one at `at` begins."""
    return next((s for s in stops if s > at), 1 << 30)


def _split(text: str) -> tuple[list[str], list[tuple[int, str]], str | None]:
    """Words outside comments, comments with the index of the word they follow, and what follows the last semicolon."""
    words: list[str] = []
    comments: list[tuple[int, str]] = []
    stamp = None
    pos, end = 0, len(text)
    while pos < end:
        token = _TOKEN.search(text, pos)
        if token is None:
            break
        word = token[0]
        pos = token.end()
        if word == "(":
            depth, start = 1, pos
            while depth:
                paren = _PARENS.search(text, pos)
                if paren is None:
                    pos = end
                    break
                pos = paren.end()
                depth += 1 if paren[0] == "(" else -1
            comments.append((len(words) - 1, text[start : pos - 1 if not depth else pos]))
        elif word == ";":
            rest = text[pos:]
            stamp = rest if ";" not in rest or parse_date(rest) is not None else rest.rpartition(";")[2]
            break
        elif word != ")":
            words.append(word)
    return words, comments, stamp


def _clauses(words: list[str]) -> dict[str, tuple[str, int]]:
    """First value of each clause, with the index of its word."""
    found: dict[str, tuple[str, int]] = {}
    expect: str | None = None
    for at, word in enumerate(words):
        low = word.lower()
        if low in _CLAUSES and expect is None:
            if low not in found:
                expect = low
        elif expect is not None:
            if low in _CLAUSES and low != "for":  # `from by host`: the clause is empty
                expect = low if low not in found else None
            else:
                found[expect] = (word, at)
                expect = None
        elif low.startswith("esmtp") and "with" not in found:
            found["with"] = (word, at)
    return found


def _client(helo: str, comments: list[str]) -> tuple[str | None, str | None, str | None]:
    """The `from` clause: (what it called itself, its name by lookup, its address)."""
    name = ip = None
    literal = _LITERAL.match(helo)
    bare = canonical_ip(literal[1] if literal else helo)
    called: str | None = None if bare else helo.rstrip(".,").lower()
    helo_comment = None
    for told in comments:
        comment, greeting = told, _HELO.search(told)
        if greeting:
            helo_comment = helo_comment or greeting[1].strip("[]?").rstrip(".").lower()  # qmail writes `?` for what is no name's
            comment = comment[: greeting.start()] + comment[greeting.end() :]
        if ip is None:
            ip = _address(comment)
            if ip is not None and name is None:
                first = comment.split(None, 1)[0] if comment.strip() else ""
                first = first.rpartition("@")[2]
                if "=" not in first and _HOST_WORD.match(first) and canonical_ip(first) is None:
                    name = first.rstrip(".").lower()
    if name == "unknown":
        name = None
    if helo_comment is not None:  # Exim and qmail put the looked-up name first and the greeting in the comment
        if called not in (None, "unknown") and name is None:
            name = called
        called = None if canonical_ip(helo_comment) else helo_comment
    if called == "unknown":
        called = None
    return called, name, ip or bare


def _address(comment: str) -> str | None:
    """The address in a comment: a literal, a bare one, or the whole comment (Exchange)."""
    found = _LITERAL.search(comment)
    if found:
        return canonical_ip(found[1])
    found = _BARE_V4.search(comment)
    if found and not comment.lstrip().lower().startswith(("version", "using", "postfix", "exim")):
        return canonical_ip(found[1])
    return canonical_ip(comment.strip()) if ":" in comment and len(comment) < 50 else None


def _protocol(with_: str | None, via: str | None, comments: list[str], identifier: str | None) -> str | None:
    """The `with` word; `LOCAL` for steps inside one host."""
    if with_ is None:
        if identifier is not None and identifier.startswith("qmail-"):
            return "LOCAL"
        return "LOCAL" if via is not None and via.lower() == "local" else None
    word = with_.upper().rstrip(",")
    word = "ESMTP" if word == "MICROSOFT" else word
    return _TLS_FORM[word] if word in _TLS_FORM and any(map(_TLS_TOLD.search, comments)) else word


def _recipient(text: str | None) -> str | None:
    if text is None:
        return None
    found = text.strip("<>,;")
    return found if "@" in found else None


_MONTHS = {m: n for n, m in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_ZONES = {
    "UT": 0,
    "UTC": 0,
    "GMT": 0,
    "Z": 0,
    "EST": -5,
    "EDT": -4,
    "CST": -6,
    "CDT": -5,
    "MST": -7,
    "MDT": -6,
    "PST": -8,
    "PDT": -7,
}
_ZONES |= {
    "CET": 1,
    "CEST": 2,
    "MET": 1,
    "MEST": 2,
    "BST": 1,
    "WET": 0,
    "WEST": 1,
    "EET": 2,
    "EEST": 3,
    "MSK": 3,
    "JST": 9,
    "KST": 9,
}
_CLOCK = r"(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9})\d*)?)?"
_ZONE = r"\s*([+-]\d{2}:?\d{2}|[A-Za-z]{1,5})?"
_DATE = re.compile(r"(\d{1,2})[\s-]+([A-Za-z]{3})[a-z]*\.?[\s,-]+(\d{2,4})[\s,]+" + _CLOCK + _ZONE)
_ASCTIME = re.compile(r"([A-Za-z]{3})\s+(\d{1,2})\s+" + _CLOCK + r"\s+(?:([A-Z]{1,5})\s+)?(\d{4})")
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})[T\s]+" + _CLOCK + _ZONE)


def parse_date(text: str) -> int | None:
    """A date and time, RFC 5322 3.3 with 4.3's obsolete forms, ISO 8601 or asctime; nanoseconds, None when it is none."""
    text = text[:DATE_CHARS]
    found = _DATE.search(text)
    if found:
        day, month, year, hour, minute, second, fraction, zone = found.groups()
        return _stamp(year, _MONTHS.get(month.lower()), day, hour, minute, second, fraction, zone)
    found = _ISO.search(text)
    if found:
        year, number, day, hour, minute, second, fraction, zone = found.groups()
        return _stamp(year, int(number), day, hour, minute, second, fraction, zone)
    found = _ASCTIME.search(text)
    if found:
        month, day, hour, minute, second, fraction, zone, year = found.groups()
        return _stamp(year, _MONTHS.get(month.lower()), day, hour, minute, second, fraction, zone)
    return None


def _stamp(
    year: str, month: int | None, day: str, hour: str, minute: str, second: str | None, fraction: str | None, zone: str | None
) -> int | None:
    y = int(year)
    if len(year) < 4:  # RFC 5322 4.3: 00-49 are 2000s, other two digits 1900s, three digits count from 1900
        y += 2000 if len(year) == 2 and y < 50 else 1900
    d, h, m, s = int(day), int(hour), int(minute), int(second or 0)
    if month is None or not (1 <= month <= 12 and 1 <= d <= 31 and h < 24 and m < 60 and s <= 60 and 1970 <= y < 2262):
        return None
    seconds = _midnight(y, month) + (d - 1) * 86_400 + h * 3600 + m * 60 + s - (_offset(zone) if zone else 0)
    return seconds * 1_000_000_000 + (int(fraction.ljust(9, "0")) if fraction else 0)


@lru_cache(1024)
def _midnight(year: int, month: int) -> int:
    """Seconds since 1970 at the beginning of a month."""
    return timegm((year, month, 1, 0, 0, 0))


@lru_cache(1024)
def _offset(zone: str) -> int:
    """Seconds east of UTC; what is unknown counts as UTC (RFC 5322 4.3: -0000)."""
    if zone[0] in "+-":
        digits = zone[1:].replace(":", "")
        away = int(digits[:2]) * 3600 + int(digits[2:]) * 60
        return away if zone[0] == "+" else -away
    return _ZONES.get(zone.upper(), 0) * 3600
