"""RFC 5322 messages as their octets go by: digests, size, header fields; the body is not kept.

Used by smtp (dot-stuffed data, BDAT), pop3 (dot-stuffed) and imap (literals).
"""

from analyzer.limits import Limits
from analyzer.protocols.base import Content

KEPT_FIELDS = frozenset(
    b"message-id subject from to cc date sender reply-to return-path received delivered-to x-original-to envelope-to "
    b"in-reply-to references auto-submitted content-type content-transfer-encoding mime-version dkim-signature "
    b"authentication-results arc-authentication-results arc-seal arc-message-signature received-spf list-id list-unsubscribe "
    b"list-post precedence resent-message-id resent-from resent-to x-mailer user-agent x-failed-recipients "
    b"disposition-notification-to original-message-id x-loop x-forwarded-to x-autoreply x-autorespond".split()
)
"""Fields kept in Content.headers; the others only pass through the digests."""


class MessageReader:
    """Digests a message piece by piece.

    `feed(piece)` takes message octets already free of transfer framing (unstuffed, CRLF); `feed_stuffed` in the
    dot-stuffed form of RFC 5321 4.5.2 is built on it.  `gap(n)` says that octets are lost here (-1: unknown number);
    from then on the message is incomplete and no digest is given.  `content(complete)` ends it.
    """

    def __init__(self, limits: Limits, keep_raw: bool = False) -> None:
        raise NotImplementedError

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next octets of the message."""
        raise NotImplementedError

    def gap(self, lost: int) -> None:
        """Octets are missing here (their number, or -1)."""
        raise NotImplementedError

    def content(self, complete: bool) -> Content:
        """What is known of the message; `complete` False when its end was not seen."""
        raise NotImplementedError
