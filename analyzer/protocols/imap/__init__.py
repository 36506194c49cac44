"""IMAP (RFC 9051, 3501 and the extensions their modules name): mailboxes seen, messages fetched, filed, flagged, expunged.

grammar.py   octets to values, pure
mailbox.py   the selected mailbox: which sequence number is which message, what is known of each
fetched.py   messages fetched whole or in pieces, put together
session.py   one connection: units, pairing, what each reply means; and the probe
"""

from analyzer.protocols.imap.session import Session, probe

__all__ = ["Session", "probe"]
