"""Does a connection speak IMAP?"""

import re

from analyzer.protocols.base import Recognised
from analyzer.protocols.imap.units import KNOWN

_SAYS = re.compile(
    rb"(?:\A|\n)\* (?:[0-9]{1,10} (?:EXISTS|EXPUNGE|RECENT|FETCH \()|OK\b|PREAUTH\b|BYE\b|CAPABILITY IMAP|LIST \(|LSUB \(|"
    rb"FLAGS \(|SEARCH\b|STATUS \S+ \()",
    re.IGNORECASE,
)
_GREETS = re.compile(rb"\* (?:OK|PREAUTH|BYE)\b", re.IGNORECASE)
_SAYS_TAGGED = re.compile(rb"(?:\A|\n)[^\s+*(){%\"\\]{1,40} (?:OK|NO|BAD)\b", re.IGNORECASE)
_ASKS = re.compile(rb"(?:\A|\n)[^\s+*(){%\"\\]{1,40} (UID )?([A-Za-z]{2,20})(?:\r?\n| )")
_OTHERS = re.compile(rb"[*$:]|[1-5]\d\d[ -]|\+OK|-ERR")
"""How servers of other text protocols begin a reply: Redis, SMTP, FTP, POP3."""
_COMMON = frozenset("NOOP LIST STATUS LOGOUT DELETE SEARCH MOVE COPY ID".split())
"""Verbs that other protocols know, too."""
_MUCH = 16 << 10
"""Octets of one side after which the other is not waited for."""


def _like_server(octets: bytes) -> int:
    """2 surely, 1 perhaps, 0 nothing said, -1 not (or the middle of a message)."""
    if not octets:
        return 0
    octets = octets[:_MUCH]
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
    score = 1 if octets[:6].upper() in (b"DONE\r\n", b"DONE\n") else -1
    for found in _ASKS.finditer(octets[:_MUCH]):
        verb = found[2].decode("ascii").upper()
        if ("UID " + verb if found[1] else verb) in KNOWN:
            if verb not in _COMMON:
                return 2
            score = 1
    return score


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
            good = asks == 0 and on_port and (enough or _GREETS.match(server) is not None)
        elif says == 0:
            good = asks == 2 and enough and (on_port or len(_ASKS.findall(client[:_MUCH])) > 1)
        else:  # joined in the middle of a message
            good = on_port and asks >= 0 and (asks == 2 or enough) and _textual(server)
        if good:
            return Recognised("imap", client_is_orig)
    return None


def _textual(octets: bytes) -> bool:
    """Lines of text, as the middle of a message is."""
    piece = octets[:2000]
    return b"\r\n" in piece and min(piece) >= 9 and not _OTHERS.match(piece)
