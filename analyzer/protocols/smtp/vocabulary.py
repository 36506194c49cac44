"""States of an SMTP session, and what its commands and replies do to them."""

LMTP_PORT = 24
"""No port is LMTP's by its standard (RFC 2033 5 only bans 25); servers take this one, for private mail systems."""

COMMANDS, WAITING, DATA, CHUNK, RESPONSE, BLOB, TLS, LOST, LOOKING, HOLE, CHECKING, DEAF = (
    "commands",  # command lines
    "waiting",  # nothing, until the reply that is awaited tells what follows
    "data",  # mail data, up to CRLF . CRLF
    "chunk",  # so many octets of a BDAT
    "response",  # a line of a SASL exchange
    "blob",  # so many octets of an XEXCH50
    "tls",  # TLS records, or clear text when the tap decrypts
    "lost",  # whatever stands behind a loss between commands
    "looking",  # the same, when its first line did not tell
    "hole",  # whatever stands behind a loss in mail data
    "checking",  # command lines, unless the message that had a loss ended before this end of data
    "deaf",  # nothing that is understood
)

NEXT: dict[tuple[str, int], str] = {
    # (command answered, reply class) -> what the client's next octets are; COMMANDS when not listed
    ("DATA", 3): DATA,  # RFC 5321 4.1.1.4
    ("AUTH", 3): RESPONSE,  # RFC 4954 4
    ("X-EXPS", 3): RESPONSE,
    ("STARTTLS", 2): TLS,  # RFC 3207 4
    ("X-ANONYMOUSTLS", 2): TLS,
    ("XEXCH50", 3): BLOB,
    ("TURN", 2): DEAF,  # the roles are reversed (RFC 2645 5.3)
    ("ATRN", 2): DEAF,
}
AWAITED = frozenset(verb for verb, _ in NEXT)
"""Commands after which the client's octets cannot be read before the reply."""

GREETING, END_OF_DATA, STRAY, CUT_OFF = "(greeting)", "(end of data)", "(stray)", "(cut off)"
"""What else is answered by a reply; never shown as a command."""
HELLO = frozenset(("EHLO", "HELO", "LHLO"))
ENDS = HELLO | {"RSET", "QUIT", "STARTTLS", "X-ANONYMOUSTLS", "XCLIENT", "TURN", "ATRN"}
"""Commands that end the transaction that is open (RFC 5321 4.1.4, 4.1.1.5)."""
SASL_REPLIES = frozenset((235, 334, 432, 534, 535, 538))

_WITH_CONTINUATION = (2, 3, 4, 5)
_CLASSES = {
    "DATA": (3, 4, 5),
    "AUTH": _WITH_CONTINUATION,
    "X-EXPS": _WITH_CONTINUATION,
    "XEXCH50": _WITH_CONTINUATION,
}


def plausible(verb: str, code: int | None) -> bool:
    """Whether a server in its right mind answers this command so (RFC 5321 4.3.2)."""
    if code is None:
        return True
    if verb == "QUIT" and code // 100 == 2:
        return code == 221
    return code // 100 in _CLASSES.get(verb, (2, 4, 5))
