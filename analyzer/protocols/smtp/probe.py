"""Does a connection speak SMTP?  What both ends say decides; ports break ties."""

import re

from analyzer.protocols.base import Recognised
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.vocabulary import LMTP_PORT

PORTS = frozenset((24, 25, 465, 587, 2525, 10024, 10025))
_STRONG = re.compile(
    rb"(?:(?:EHLO|HELO|LHLO)[ \t]+[!-~]|MAIL[ \t]+FROM[ \t]*:|RCPT[ \t]+TO[ \t]*:|BDAT[ \t]+\d|XCLIENT[ \t]|XFORWARD[ \t]"
    rb"|STARTTLS\r?\n)",
    re.IGNORECASE,
)
"""Commands that no other protocol has."""
_GREETING = re.compile(rb"(?:220|554|421|450|521)[ -][^\n]*\n")
_MAIL_WORDS = re.compile(rb"E?SMTP|LMTP|Postfix|Sendmail|Exim|\bmail", re.IGNORECASE)
_MAIL_REPLY = re.compile(rb"(?:354 |[245]\d\d[ -][245]\.\d{1,3}\.\d{1,3}[ :])")
_OTHERS = re.compile(
    rb"(?:GET|POST|HEAD|PUT|OPTIONS|CONNECT|DELETE|PATCH|PRI) |HTTP/|SSH-|\+OK|-ERR|\* (?:OK|PREAUTH|BYE)|\x16\x03|<\?xml|USER |"
    rb"CAPA\r|[!-~]+ (?:LOGIN|CAPABILITY|AUTHENTICATE)"
)
_END = b"\r\n.\r\n"
_LINE_START = re.compile(rb"\n")
_ENOUGH = 4000
"""Octets looked at for a command in the middle of a session."""


def probe(orig: bytes, resp: bytes, orig_port: int, resp_port: int, closing: bool) -> Recognised | None:
    """Does this connection speak SMTP or LMTP, and which end is the client?  None when that is not sure."""
    forward = _speaks(orig, resp, resp_port in PORTS, closing)
    backward = _speaks(resp, orig, orig_port in PORTS, closing) if forward < 3 else 0
    if not forward and not backward:
        return None
    client, client_is_orig, port = (orig, True, resp_port) if forward >= backward else (resp, False, orig_port)
    hello = client[:4].upper()
    is_lmtp = hello == b"LHLO" or (port == LMTP_PORT and hello not in (b"EHLO", b"HELO"))  # joined later: the port is the hint
    return Recognised("lmtp" if is_lmtp else "smtp", client_is_orig)


def _speaks(client: bytes, server: bytes, port: bool, closing: bool) -> int:
    """How surely `client` is the client of an SMTP session with `server`: 0 not, or not yet; 3 surely."""
    if _OTHERS.match(client) or _OTHERS.match(server) or _GREETING.match(client):
        return 0
    greeting = _GREETING.match(server)
    strong = _STRONG.match(client) is not None
    if strong and (not server or server[:1].isdigit() or grammar.REPLY.search(server)):
        return 3 if server else 2
    if greeting and (port or _MAIL_WORDS.search(greeting[0])):
        if not client:
            return 2 if port or closing else 0
        return 2 if port or grammar.LINE.match(client) else 0
    return _midstream(client, server, port, closing)


def _midstream(client: bytes, server: bytes, port: bool, closing: bool) -> int:
    """A capture that began later: verbs behind a broken line, mail replies, or a body and the reply to it."""
    replies = _MAIL_REPLY.match(server) or _MAIL_REPLY.search(server, 0, _ENOUGH)
    strong = any(_STRONG.match(client, found.end()) for found in _LINE_START.finditer(client, 0, _ENOUGH))
    if strong and (replies or port or closing):
        return 2
    if replies and (port or closing) and (not client or b"\n" in client):
        return 1
    if closing and port and grammar.REPLY.match(server) and (b"\n" in client or not client):
        return 1
    if closing and port and not server and (_END in client or grammar.LINE.match(client)):
        return 1
    return 0
