"""IMAP (RFC 9051, 3501 and the extensions session.py names): mailboxes seen, messages fetched, filed, flagged, expunged.

grammar.py    octets to values, pure
units.py      each direction cut into commands and responses; tagged replies find their commands
mailbox.py    the selected mailbox: which sequence number is which message, what is known of each
fetched.py    messages fetched whole or in pieces, put together
responses.py  what untagged responses mean
session.py    what commands and their replies mean: the whole session, and the rules of this package
inflate.py    COMPRESS=DEFLATE
probe.py      does a connection speak IMAP
"""

from typing import TYPE_CHECKING, Any

from analyzer.protocols.imap.probe import probe

if TYPE_CHECKING:
    from analyzer.protocols.imap.session import Session

__all__ = ["Session", "probe"]


def __getattr__(name: str) -> Any:
    """`Session` is loaded with the first connection that speaks the protocol: the command must start fast."""
    if name == "Session":
        from analyzer.protocols.imap.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
