"""What the mail access protocols, POP3 and IMAP, have in common: who greets, who logs in.

RFC 1939 (POP3), RFC 9051 (IMAP), RFC 4422 and 4616 (SASL, PLAIN), RFC 2195 (CRAM-MD5), RFC 7628 (OAUTHBEARER).
A SASL response is read for the name in it and dropped: no octet of a secret leaves this module.
"""

import re
from binascii import Error, a2b_base64
from collections.abc import Iterable

from analyzer.protocols.base import text

SOFTWARE = re.compile(
    rb"Dovecot(?: \([^)]{1,40}\))?|Cyrus (?:POP3|IMAP4?)(?: v?[\w.+-]{1,40})?|Courier-(?:IMAP|POP3)|Courier|Gimap|Gpop|"
    rb"Microsoft Exchange(?: Server)?(?: \d{4})?|Microsoft Exchange (?:POP3|IMAP4)|UW(?:-IMAP)?|POP3 \S+ v?20\d\d[\w.]*|"
    rb"IMAP4rev1 20\d\d\.\d+|Qpopper(?: \(version [\w.]{1,20}\))?|QPOP(?: \(version [\w.]{1,20}\))?|popa3d|teapop|Zimbra|"
    rb"hMailServer|MailEnable|MDaemon[ \w.]{0,20}|Kerio Connect(?: [\w.]{1,20})?|Kerio MailServer(?: [\w.]{1,20})?|"
    rb"Domino(?: IMAP4| POP3)?(?: Server)?(?: Release [\w.]{1,20})?|GroupWise|Communigate Pro(?: [\w.]{1,20})?|"
    rb"CommuniGate Pro(?: [\w.]{1,20})?|Stalwart|GreenMail|Apache James|JAMES|Axigen|IceWarp(?: [\w.]{1,20})?|SmarterMail|"
    rb"SurgeMail|XMail|Oracle Communications Messaging(?: [\w.]{1,20})?|Archiveopteryx|Panda IMAP|DBMail|dbmail|Maddy|WildDuck|"
    rb"Coremail(?: System)?|OpenSMTPD|Perdition|perdition|nginx|Proton Mail Bridge|ProtonMail",
    re.IGNORECASE,
)
"""Server software as greetings name it."""

LOST_TURN = 99
"""The turn of a SASL response whose place in the exchange is not known: nothing is read from it."""

_MECHANISM = re.compile(rb"[A-Z][A-Z0-9_-]{0,29}|[A-Z]?[a-z][a-z0-9_-]{0,29}")
"""A mechanism's name (RFC 4422 3.1), also in lower case; letters of both cases are more likely a response in base64."""
_HOST = re.compile(rb"(?<![\w.@-])((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{0,62})(?![\w@-])")
_ADDRESS = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\Z")
_STAMP = re.compile(rb"<[^<>@\s]{1,200}@([^<>@\s]{1,255})>")


def software(greeting: bytes) -> str | None:
    """The software a greeting names, as it is written there; None when none is known."""
    found = SOFTWARE.search(greeting)
    return text(found[0]).strip() if found else None


def host(greeting: bytes) -> str | None:
    """The host a greeting names: in POP3's timestamp `<process-id.clock@hostname>` (RFC 1939 7), else in its text."""
    found = _STAMP.search(greeting) or _HOST.search(greeting)
    return text(found[1]) if found else None


def is_name(word: str) -> bool:
    """A mail address: surely a name, not a password typed in its place."""
    return _ADDRESS.match(word) is not None


def unsaid(reply: str, secrets: Iterable[bytes]) -> str:
    """A server's text without the secrets it repeats."""
    for secret in secrets:
        if len(secret) > 3:
            reply = reply.replace(text(secret), "***")
    return reply


def sasl(argument: bytes) -> tuple[str | None, bytes]:
    """sasl-mech [SP initial-response] (RFC 4954 4, 5034 4, 9051 9): the mechanism in upper case, and the rest.

    A first word that does not read as a mechanism's name may be a secret: it is part of the rest then.
    """
    word, *rest = argument.split(None, 1) or (b"",)
    if _MECHANISM.fullmatch(word):
        return text(word).upper(), rest[0] if rest else b""
    return None, argument.strip()


def sasl_shown(argument: bytes) -> str | None:
    """The argument of AUTH or AUTHENTICATE as it may be shown: the mechanism as it was written, no response."""
    mechanism, response = sasl(argument)
    named = text(argument.split(None, 1)[0]) if mechanism else ""
    return f"{named} {'***' if response else ''}".strip() or None


def sasl_user(mechanism: str | None, response: bytes, turn: int) -> str | None:
    """Who is named in a client's SASL response, the `turn`-th (from 0) of an exchange; None when it does not say."""
    try:
        octets = a2b_base64(response, strict_mode=False)
    except (Error, ValueError):
        return None
    name = b""
    match mechanism:
        case "PLAIN":  # message = [authzid] NUL authcid NUL passwd (RFC 4616 2)
            parts = octets.split(b"\0")
            name = parts[1] if len(parts) == 3 else b""
        case "LOGIN" if turn == 0:
            name = octets
        case "CRAM-MD5" | "CRAM-SHA1":  # username SP digest (RFC 2195 2)
            name = octets.rpartition(b" ")[0]
        case "EXTERNAL":
            name = octets
        case "XOAUTH2":
            found = re.match(rb"user=([^\x01]*)\x01", octets)
            name = found[1] if found else b""
        case "OAUTHBEARER":  # gs2-header, then key/value pairs (RFC 7628 3.1)
            found = re.match(rb"n,a=([^,\x01]*),", octets)
            name = found[1] if found else b""
        case "DIGEST-MD5":
            found = re.search(rb'(?:^|,)username="([^"]*)"', octets)
            name = found[1] if found else b""
        case _ if mechanism is not None and mechanism.startswith("SCRAM-") and turn == 0:
            found = re.match(rb"[^,]*,[^,]*,n=([^,]*),", octets)  # client-first-message (RFC 5802 7)
            name = found[1].replace(b"=2C", b",").replace(b"=3D", b"=") if found else b""
        case _:
            return None
    return text(name[:256]) or None


def turn_of(challenge: bytes, turn: int) -> int:
    """Which response a server's challenge asks for: LOGIN's prompts say it, else the `turn` that was counted."""
    try:
        prompt = a2b_base64(challenge, strict_mode=False).lower()
    except (Error, ValueError):
        return turn
    return 1 if prompt.startswith(b"pass") and turn == 0 else turn
