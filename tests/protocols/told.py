"""What a session said, as a mail engineer would tell it: one line per event, for the files in tests/dialogues.

Such a file is a dialogue (see dialogue.py; `[start=mid]` for a capture that joined late), a line `---`, and what must be
told of it, in order, however its octets are cut into chunks and in whichever order the two directions are fed.
"""

from pathlib import Path
from typing import Any

from dialogue import EVERY_WAY, Played, parse, play

from analyzer.protocols.base import Command, MailboxEvent, MessageCarried, SessionEnded
from analyzer.wire.anomalies import Anomaly

DIALOGUES = Path(__file__).parent.parent / "dialogues"


def dialogues(protocol: str) -> list[Path]:
    """The dialogue files of a protocol."""
    return sorted(DIALOGUES.glob(f"{protocol}_*.txt"))


def perform(session: Any, path: Path, port: int, cut: Any = "segments", order: str = "capture") -> tuple[Played, list[str]]:
    """Play a dialogue file; what was said, and what should have been told."""
    text, _, told = path.read_text().partition("\n---\n")
    start = "mid" if "[start=mid]" in text else "handshake"
    return play(session, parse(text.replace("[start=mid]", "")), cut=cut, order=order, port=port, start=start), told.splitlines()


def tell(events: list[Any]) -> list[str]:
    """The events as lines."""
    return [_line(e) for e in events]


def _line(event: Any) -> str:
    if isinstance(event, Command):
        tag = f"{event.tag} " if event.tag else ""
        words = " ".join(filter(None, [tag + event.verb, event.argument, "->", event.status or "nothing", event.reply_text]))
        return words + (" (pipelined)" if event.pipelined else "")
    if isinstance(event, MessageCarried):
        return " ".join(filter(None, [event.kind, _where(event, event.content), _content(event)]))
    if isinstance(event, MailboxEvent):
        return " ".join(filter(None, [event.event, _where(event, event)])) + f": {event.detail}"
    if isinstance(event, Anomaly):
        return f"odd {event.name}: {event.detail}"
    assert isinstance(event, SessionEnded)
    row = event.row
    ok = {True: "ok", False: "refused", None: "?"}[row.auth_ok]
    login = " ".join(filter(None, [row.auth_mechanism, row.auth_user, ok])) if row.auth_ok is not None else None
    client = f"client {row.client_name}" if row.client_name else None
    server = f"server {row.server_name}" if row.server_name else None
    starttls = f"STLS {event.info.starttls}" if event.info.starttls else None
    stated = f"for {row.stated_client_ip}" if row.stated_client_ip else None
    return "end " + ", ".join(filter(None, [row.end, login, client, server, row.server_software, starttls, stated]))


def _where(event: Any, known: Any) -> str:
    words = []
    if (event.mailbox, event.uidvalidity, event.uid) != (None, None, None):
        words.append(f"{event.mailbox or '?'}/{event.uidvalidity or '?'}/{event.uid or '?'}")
    if event.number is not None:
        words.append(f"number={event.number}")
    if event.uidl:
        words.append(f"uidl={event.uidl}")
    if known is not None and known.message_id:
        words.append(known.message_id)
    return " ".join(words)


def _content(event: MessageCarried) -> str:
    content = event.content
    if content is None:
        return f"no octets, {event.outcome}"
    missing = f", {content.missing_bytes} missing" if content.missing_bytes else ""
    return f"{content.size} octets{missing}, {'complete' if content.complete else 'incomplete'}, {event.outcome}"


__all__ = ["EVERY_WAY", "dialogues", "perform", "tell"]
