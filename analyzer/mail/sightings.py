"""A sighting: one message at one hop, as far as the wire showed it.

What later stages need is taken out of the event here, and the event (with its header octets) is let go: a
sighting costs about a kilobyte, whatever the message holds.
"""

import re
from collections.abc import Iterable
from typing import Any

from analyzer.mail import reports
from analyzer.mail.authentication.claims import Claim, authentication_results
from analyzer.mail.authentication.claims import received_spf as parse_received_spf
from analyzer.mail.received import Received
from analyzer.mail.received import parse as parse_received
from analyzer.protocols.base import Content, MessageCarried, Recipient, SessionInfo
from analyzer.protocols.signatures import Signatures

_SIZE = re.compile(r"(?:^|\s)SIZE=(\d{1,19})", re.I)
_ENVID = re.compile(r"(?:^|\s)ENVID=(\S+)", re.I)
_ORCPT = re.compile(r"(?:^|\s)ORCPT=([\w-]+);(\S+)", re.I)
_TAG = re.compile(rb"(?:^|;)\s*([a-z]+)\s*=\s*([^;]*)")
_MSGID = re.compile(rb"<[^<>\s]{1,900}>")


class Trail:
    """The Received fields of a message, newest first, shared by the sightings that carry them.

    A trail is its newest field and the trail below: two sightings whose trails meet have a common past.
    """

    __slots__ = ("below", "field", "length", "mark", "octets")

    def __init__(self, field: Received, below: "Trail | None", octets: int, mark: int) -> None:
        self.field = field
        self.below = below
        self.octets: int = octets + (below.octets if below else 0)
        """Octets of these fields in the message, folding aside."""
        self.mark = mark
        """Hash of the octets of its fields."""
        self.length: int = 1 + (below.length if below else 0)

    def __iter__(self) -> Any:
        trail: Trail | None = self
        while trail is not None:
            yield trail
            trail = trail.below


class Sighting:
    """One event of `MessageCarried`, digested.  Times are nanoseconds, addresses text."""

    __slots__ = (
        "answers",
        "auto_submitted",
        "body_digest",
        "claims",
        "code",
        "complete",
        "delivered_to",
        "dkim",
        "duplicates",
        "enhanced_code",
        "envelope_id",
        "first_frame",
        "flags",
        "has_content",
        "header_complete",
        "header_date",
        "header_from",
        "header_to",
        "index",
        "kind",
        "last_frame",
        "mail_from",
        "mail_parameters",
        "mailbox",
        "message_id",
        "missing_bytes",
        "number",
        "order",
        "outcome",
        "queue_id",
        "recipients",
        "reply_text",
        "report",
        "report_kind",
        "session",
        "sha256",
        "shift",
        "signatures",
        "size",
        "size_stated",
        "subject",
        "trail",
        "ts",
        "ts_data",
        "ts_end",
        "ts_eom",
        "ts_rcpt_done",
        "ts_start",
        "uid",
        "uidl",
        "uidvalidity",
        "wants_utf8",
    )

    session: SessionInfo
    kind: str
    index: int
    ts: int
    """When it was first seen: `ts_start`, or the first time known after it; on the captures' common clock."""
    shift: int
    """What its capture's clock is ahead of that."""
    order: int
    """Its place among all sightings, by time."""
    ts_start: int | None
    ts_data: int | None
    ts_eom: int | None
    ts_end: int | None
    ts_rcpt_done: int | None
    first_frame: int | None
    last_frame: int | None
    mail_from: str | None
    mail_parameters: str | None
    size_stated: int | None
    """SIZE= of MAIL (RFC 1870)."""
    envelope_id: str | None
    """ENVID= of MAIL (RFC 3461)."""
    wants_utf8: bool
    """SMTPUTF8 of MAIL (RFC 6531): servers that do not offer it cannot take it."""
    recipients: list[Recipient]
    outcome: str
    code: int | None
    enhanced_code: str | None
    reply_text: str | None
    queue_id: str | None
    has_content: bool
    size: int | None
    complete: bool | None
    missing_bytes: int | None
    sha256: str | None
    body_digest: str | None
    header_complete: bool
    message_id: str | None
    subject: bytes | None
    header_from: bytes | None
    header_to: bytes | None
    header_date: bytes | None
    trail: Trail | None
    """Received fields, newest first."""
    delivered_to: tuple[str, ...]
    """Addresses of Delivered-To, X-Original-To, Envelope-To."""
    dkim: tuple[tuple[str, str], ...]
    """(domain, selector) of each DKIM-Signature."""
    signatures: Signatures | None
    """The same, digested for verification; None when the header section was not seen whole."""
    claims: tuple[Claim, ...]
    """Results of SPF, DKIM, DMARC and ARC that the header tells, whoever wrote them, topmost first."""
    auto_submitted: bool
    answers: tuple[str, ...]
    """Message-IDs it answers (In-Reply-To, then References from the last)."""
    report_kind: str | None
    """`dsn` or `mdn` by its Content-Type, whether or not the report could be read."""
    report: reports.Report | None
    mailbox: str | None
    uidvalidity: int | None
    uid: int | None
    number: int | None
    uidl: str | None
    flags: tuple[str, ...]
    duplicates: int
    """Further captures that show the same crossing."""

    @property
    def seen(self) -> int:
        """When it was first seen, as its capture has it."""
        return self.ts + self.shift

    @property
    def place(self) -> tuple[int, str, int, str, int]:
        """What sightings are sorted by: time first, and something for every tie."""
        session = self.session
        return (self.ts, session.source, self.first_frame or 0, session.session_id, self.index)

    def addresses(self) -> list[str]:
        """Every recipient of the envelope, as given."""
        return [r.address for r in self.recipients]


_FIELD = len("Received: \r\n")


class Digester:
    """Makes sightings, sharing what they have in common."""

    def __init__(self) -> None:
        self.trails: dict[int, Trail] = {}
        """By the hash of the newest field's octets and of all below: 64 bits, keyed anew in each process."""
        self._fields: dict[int, Received] = {}

    def __len__(self) -> int:
        return len(self.trails)

    def forget_all_but(self, sightings: Iterable[Sighting]) -> None:
        """Forget what none of these has."""
        self.trails = {trail.mark: trail for s in sightings for trail in s.trail or ()}
        self._fields = {}

    def sighting(self, event: MessageCarried) -> Sighting:
        """What is worth keeping of an event."""
        s = Sighting()
        session = event.session
        s.session = session
        s.kind = event.kind
        s.index = event.index
        s.order = s.shift = 0
        s.duplicates = 0
        s.ts_start, s.ts_data, s.ts_eom, s.ts_end = event.ts_start, event.ts_data, event.ts_eom, event.ts_end
        s.ts_rcpt_done = event.ts_rcpt_done
        s.ts = next((t for t in (s.ts_start, s.ts_data, s.ts_eom, s.ts_end) if t is not None), session.connection.ts)
        s.first_frame, s.last_frame = event.first_frame, event.last_frame
        s.mail_from, s.mail_parameters = event.mail_from, event.mail_parameters
        s.size_stated = s.envelope_id = None
        s.wants_utf8 = False
        if event.mail_parameters:
            found = _SIZE.search(event.mail_parameters)
            s.size_stated = int(found[1]) if found else None
            found = _ENVID.search(event.mail_parameters)
            s.envelope_id = reports.xtext(found[1]) if found else None
            s.wants_utf8 = "SMTPUTF8" in event.mail_parameters.upper()
        s.recipients = event.recipients
        s.outcome = event.outcome
        s.code, s.enhanced_code, s.reply_text, s.queue_id = event.code, event.enhanced_code, event.reply_text, event.queue_id
        s.mailbox, s.uidvalidity, s.uid, s.number, s.uidl = event.mailbox, event.uidvalidity, event.uid, event.number, event.uidl
        s.flags = event.flags
        self._content(s, event.content)
        return s

    def _content(self, s: Sighting, content: Content | None) -> None:
        s.has_content = content is not None
        s.size = s.complete = s.missing_bytes = s.sha256 = s.body_digest = s.message_id = None
        s.subject = s.header_from = s.header_to = s.header_date = None
        s.trail = None
        s.delivered_to = ()
        s.dkim = ()
        s.signatures = None
        s.claims = ()
        s.auto_submitted = False
        s.answers = ()
        s.report_kind = s.report = None
        s.header_complete = False
        if content is None:
            return
        s.size, s.complete, s.missing_bytes, s.sha256 = content.size, content.complete, content.missing_bytes, content.sha256
        s.body_digest, s.message_id, s.header_complete = content.body_digest, content.message_id, content.header_complete
        if content.headers:
            self._headers(s, content)
        s.signatures = content.signatures

    def _headers(self, s: Sighting, content: Content) -> None:
        trace: list[bytes] = []
        delivered: list[str] = []
        signatures: list[tuple[str, str]] = []
        claims: list[Claim] = []
        received_spf: list[Claim] = []
        content_type = None
        answers: list[str] = []
        for name, value in content.headers:
            if name == "received":
                trace.append(value)
            elif name == "subject":
                s.subject = value if s.subject is None else s.subject
            elif name == "from":
                s.header_from = value if s.header_from is None else s.header_from
            elif name == "to":
                s.header_to = value if s.header_to is None else s.header_to
            elif name == "date":
                s.header_date = value if s.header_date is None else s.header_date
            elif name in _OTHER:
                if name in ("delivered-to", "x-original-to", "envelope-to", "x-forwarded-to"):
                    delivered.append(_text(value[:512]).strip("<> ").lower())
                elif name == "dkim-signature":
                    tags = dict(_TAG.findall(value[:4096]))
                    if b"d" in tags and b"s" in tags:
                        signatures.append((_text(tags[b"d"]).strip().lower(), _text(tags[b"s"]).strip().lower()))
                elif name == "authentication-results":
                    claims += authentication_results(_text(value))
                elif name == "received-spf":
                    received_spf += parse_received_spf(_text(value))
                elif name == "auto-submitted":
                    s.auto_submitted = not value.lower().startswith(b"no")
                elif name in ("x-autoreply", "x-autorespond"):
                    s.auto_submitted = True
                elif name == "precedence":
                    s.auto_submitted |= value.lower().startswith((b"auto_reply", b"auto-reply"))
                elif name == "in-reply-to":
                    answers[:0] = [_text(m) for m in _MSGID.findall(value[:4096])]
                elif name == "references":
                    answers += [_text(m) for m in reversed(_MSGID.findall(value[-4096:]))]
                else:
                    content_type = content_type or _text(value[:1024]).lower()
        if trace:
            s.trail = self._trail(trace)
        if delivered:
            s.delivered_to = tuple(delivered)
        if signatures:
            s.dkim = tuple(signatures)
        if claims or received_spf:
            s.claims = (*claims, *received_spf)
        if answers:
            s.answers = tuple(answers[:8])
        if content_type is not None and content_type.startswith(("multipart/report", "message/d", "message/global-d")):
            s.report_kind = "mdn" if "disposition-notification" in content_type else "dsn"
            if content.report:
                s.report = reports.parse(content.report, content_type)
                if s.report is not None:
                    s.report_kind = s.report.kind
                elif "delivery-status" not in content_type and s.report_kind == "dsn":
                    s.report_kind = None  # feedback reports (RFC 5965) and others: not about a delivery
            elif "delivery-status" not in content_type and s.report_kind == "dsn":
                s.report_kind = None

    def _trail(self, fields: list[bytes]) -> Trail:
        trail: Trail | None = None
        trails = self.trails
        mark = 0
        for raw in reversed(fields):
            mark = hash((raw, mark))
            known = trails.get(mark)
            if known is None:
                own = hash(raw)
                field = self._fields.get(own)
                if field is None:
                    field = self._fields[own] = parse_received(raw)
                known = trails[mark] = Trail(field, trail, len(raw) + _FIELD, mark)
            trail = known
        assert trail is not None
        return trail


_OTHER = frozenset(
    "delivered-to x-original-to envelope-to x-forwarded-to dkim-signature authentication-results received-spf auto-submitted "
    "x-autoreply x-autorespond precedence in-reply-to references content-type".split()
)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def first_handled(s: Sighting) -> bool:
    """The message shows no trace fields yet and has a real sender: its author's program sends it."""
    return s.has_content and s.header_complete and s.trail is None and bool(s.mail_from) and not s.report_kind


def original_recipient(recipient: Recipient) -> str | None:
    """The ORCPT address of a RCPT, decoded (RFC 3461 4.2, RFC 6533 3)."""
    if not recipient.parameters:
        return None
    found = _ORCPT.search(recipient.parameters)
    if found is None:
        return None
    return reports.typed_address(found[1], found[2] if found[1].lower() == "utf-8" else reports.xtext(found[2]))
