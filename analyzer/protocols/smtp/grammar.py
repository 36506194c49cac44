"""The words of SMTP and LMTP: RFC 5321 4.1 and its extensions, as pure functions over octets."""

import re
from typing import NamedTuple

from analyzer.protocols.access import sasl_shown
from analyzer.protocols.base import Malformed, text
from analyzer.protocols.proxy import address

VERBS = frozenset(
    "HELO EHLO LHLO MAIL RCPT DATA BDAT RSET VRFY EXPN HELP NOOP QUIT "  # RFC 5321, 2033, 3030
    "STARTTLS AUTH ETRN ATRN TURN BURL SEND SOML SAML "  # RFC 3207, 4954, 1985, 2645, 4468, 821
    "XCLIENT XFORWARD XEXCH50 X-EXPS X-ANONYMOUSTLS X-LINK2STATE XSHADOW XSHADOWREQUEST XQDISCARD XPROXY XPROXYTO "
    "XPROXYFROM XSESSIONPARAMS XOORG XRDST XADR XCIR XQUE XGEN XUSR XTND VERB ONEX WIZ DEBUG SHOWQ".split()
)
"""Commands of the standards and of servers in use; any other word is a command too, unless it may be a secret."""
_SPELT = {s: v for v in VERBS for s in (v.encode(), v.lower().encode(), v.title().encode())}
_WORD = re.compile(rb"[ \t]*([^\s:]*)[ \t]*")

LINE = re.compile(
    rb"(?:MAIL[ \t]+FROM[ \t]*:|RCPT[ \t]+TO[ \t]*:|(?:DATA|QUIT|RSET|STARTTLS|NOOP|HELP|TURN|X-ANONYMOUSTLS)[ \t]*\r?\n"
    rb"|(?:EHLO|HELO|LHLO)[ \t]+[!-~]+[ \t]*\r?\n|BDAT[ \t]+\d+(?:[ \t]+LAST)?[ \t]*\r?\n|XEXCH50[ \t]+\d+[ \t]+\d+"
    rb"|(?:AUTH|X-EXPS)[ \t]+[A-Z0-9_-]{3,20}(?:[ \t]+[!-~]+)?[ \t]*\r?\n|(?:VRFY|EXPN|ETRN)[ \t]+[!-~]+[ \t]*\r?\n"
    rb"|(?:XCLIENT|XFORWARD)[ \t]+(?:NAME|ADDR|PORT|PROTO|HELO|SOURCE|IDENT|LOGIN|DESTADDR|DESTPORT)=)",
    re.IGNORECASE,
)
"""A line that surely is a command, for places where body text or secrets may stand."""
BEGINNING = re.compile(rb"[A-Z0-9-]{0,14}(?:[ \t][^\r\n]*)?\r?\Z", re.IGNORECASE)
"""Octets that may yet become such a line."""
REPLY = re.compile(rb"[2-5]\d\d(?:[ -][^\n]*)?\r?(?:\n|\Z)")
"""A reply line (RFC 5321 4.2)."""

_CODE = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?=[ :]|$)")
_ROUTE = re.compile(rb"@[^:\[]*(?:\[[^\]]*\][^:\[]*)*:(?=.*@)")
_BRACKETS = re.compile(rb'<((?:[^"<>\\]|\\.|"(?:[^"\\]|\\.)*")*)>', re.DOTALL)
_USUAL = re.compile(rb"(?:FROM|TO):<([!#-;=?-\[\]-~]*)>(?: (.*))?\Z", re.DOTALL)
_CHUNK = re.compile(rb"[ \t]*(\d+)(?:[ \t]+(LAST))?[ \t]*\Z", re.IGNORECASE)
_BLOB = re.compile(rb"[ \t]*(\d{1,9})(?:[ \t]+\d+)?[ \t]*\Z")
_ADDR = re.compile(rb"(?:^|[ \t])ADDR=(?:IPV6:)?([0-9A-F.:]+)", re.IGNORECASE)
_URLAUTH = re.compile(rb";URLAUTH=[^ ]*", re.IGNORECASE)


class Path(NamedTuple):
    """Reverse-path or forward-path of MAIL and RCPT."""

    address: str
    """Without angle brackets and source route; "" is the null reverse-path."""
    parameters: str | None
    """Mail-parameters or Rcpt-parameters, as given."""


def verb_of(line: bytes) -> tuple[str, bytes]:
    """command = verb [SP argument] (RFC 5321 4.1.1): the verb in upper case and what follows it."""
    word, _, rest = line.partition(b" ")
    verb = _SPELT.get(word)
    if verb is None:
        found = _WORD.match(line)
        assert found is not None
        verb, rest = text(found[1][:64]).upper(), line[found.end() :]
    return verb, rest


def path(argument: bytes, keyword: bytes) -> Path:
    """`FROM:` Reverse-path [SP Mail-parameters] and `TO:` Forward-path [SP Rcpt-parameters] (RFC 5321 4.1.1.2, 4.1.1.3).

    Blanks after the colon, a missing colon and missing brackets are taken as servers take them.
    Raises Malformed when there is no path at all.
    """
    usual = _USUAL.match(argument)
    if usual and usual[1][:1] != b"@" and argument.startswith(keyword):
        return Path(text(usual[1]), text(usual[2].strip()) or None if usual[2] else None)
    size = len(keyword)
    if argument[:size].upper() != keyword:
        raise Malformed(f"no {text(keyword)}:")
    rest = argument[size:].lstrip(b" \t")
    if rest[:1] == b":":
        rest = rest[1:].lstrip(b" \t")
    found = _BRACKETS.match(rest)
    if found:
        address, rest = found[1], rest[found.end() :]
    elif rest[:1] == b"<":  # an unclosed quote: up to the last bracket, if any
        end = rest.rfind(b">")
        address, rest = (rest[1:end], rest[end + 1 :]) if end > 0 else (rest[1:], b"")
    else:
        address, _, rest = rest.partition(b" ")
        if not address:
            raise Malformed("no path")
    if address[:1] == b"@":  # source route: accepted and ignored (RFC 5321 4.1.1.3, appendix C)
        route = _ROUTE.match(address)
        address = address[route.end() :] if route else address
    return Path(text(address.strip(b" \t")), text(rest.strip()) or None)


def chunk_size(argument: bytes) -> tuple[int, bool]:
    """chunk-size [SP end-marker] (RFC 3030 2).  Raises Malformed."""
    found = _CHUNK.match(argument)
    if found is None or len(found[1]) > 4000:
        raise Malformed("no chunk size")
    return int(found[1]), bool(found[2])


def blob_size(argument: bytes) -> int:
    """Octets that follow the 354 to XEXCH50 (MS-XEXCH50 2.2.1).  Raises Malformed."""
    found = _BLOB.match(argument)
    if found is None:
        raise Malformed("no size")
    return int(found[1])


def shown(verb: str, rest: bytes, most: int) -> str | None:
    """A command's argument as it may be shown: no secret in it, and not longer than `most` characters."""
    rest = rest.strip()
    if not rest:
        return None
    if verb in ("AUTH", "X-EXPS"):
        return sasl_shown(rest)
    if verb in ("PASS", "LOGIN", "APOP", "XAUTH"):
        return "***"
    if verb == "BURL":
        rest = _URLAUTH.sub(b";URLAUTH=***", rest)
    if len(rest) > 4 * most:
        rest = rest[: 4 * most]
    argument = text(rest)
    return argument if len(argument) <= most else argument[: most - 1] + "…"


def enhanced_code(reply_text: str) -> str | None:
    """status-code of RFC 3463 at the beginning of a reply's text (RFC 2034 4)."""
    found = _CODE.match(reply_text) if reply_text[1:2] == "." else None
    return found[1] if found else None


def reply_text(lines: list[bytes], most: int) -> str:
    """A reply's text: its lines joined by a blank, an enhanced code told once."""
    if len(lines) == 1:
        told = text(lines[0][: 4 * most]).strip()
    else:
        code = _CODE.match(text(lines[0][:12]))
        if code:
            again = code[1].encode() + b" "
            lines = [lines[0], *(line.removeprefix(again) for line in lines[1:])]
        told = text(b" ".join(lines)[: 4 * most]).strip()
    return told if len(told) <= most else told[: most - 1] + "…"


def stated_address(argument: bytes) -> str | None:
    """The ADDR attribute of XCLIENT and XFORWARD; None when absent or unavailable."""
    found = _ADDR.search(argument)
    return address(text(found[1])) if found else None
