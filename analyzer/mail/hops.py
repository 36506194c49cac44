"""The hops of one message: which sighting brought it to which, and the hand-overs that only trace fields show.

Rules:
1. Every sighting is a hop.  A Received field that no sighting covers is a hop too: `matched` when an opaque session between
   these ends was open at that time, else `claimed`.
2. The parent of a hop is the hop that brought the message to its client: by the trace fields first, then by host and time.
3. Reading a trail from the top tells who wrote each field: the sender of the hand-over above it.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from analyzer.mail.authentication.claims import Claim
from analyzer.mail.correlate import agreement, plain_id, size_below, wrote
from analyzer.mail.hosts import Hosts, Machine
from analyzer.mail.opaque import Opaque, Untold
from analyzer.mail.received import Received
from analyzer.mail.records import Link
from analyzer.mail.reports import Report
from analyzer.mail.sightings import Sighting, Trail, original_recipient
from analyzer.protocols.base import MailboxEvent, SessionInfo
from analyzer.wire.types import Attempt

_SECOND = 1_000_000_000
_CLOSE = 2 * _SECOND
"""A Received field's time is whole seconds and may be taken when MAIL came or when the data ended."""
_LOOK_BACK = 32


class Leg:
    """One hop while the story is worked out."""

    __slots__ = (
        "children",
        "client",
        "client_ip",
        "client_role",
        "dns",
        "field",
        "index",
        "kind",
        "number",
        "parent",
        "protocol",
        "server",
        "server_ip",
        "server_role",
        "session",
        "shift",
        "sighting",
        "trace",
        "trail",
        "ts",
    )

    def __init__(self, sighting: Sighting | None, field: Received | None, trail: Trail | None) -> None:
        self.sighting = sighting
        self.field = field
        """What a hop that was not observed rests on."""
        self.trail = trail
        """The trail after this hop, for hops that trace fields show."""
        self.session: SessionInfo | None = sighting.session if sighting else None
        """The session it crossed; of a matched hop the opaque one."""
        self.index = sighting.index if sighting else 1
        self.ts = sighting.ts if sighting else 0
        """Where it stands in time, on the captures' common clock."""
        self.shift = sighting.shift if sighting else 0
        """What its capture's clock is ahead of that."""
        self.number = 0
        self.parent: Leg | None = None
        self.children: list[Leg] | None = None
        self.client: Machine | None = None
        self.server: Machine | None = None
        self.client_ip: str | None = None
        self.server_ip: str | None = None
        self.client_role: str | None = None
        self.server_role: str | None = None
        self.kind = "relay"
        self.protocol = "smtp"
        self.dns: list[int] | None = None
        """Lookups bound to this hop (rows of `lookups.Lookups`), in time order."""
        self.trace: Trace | None = None

    @property
    def basis(self) -> str:
        """`observed matched claimed`."""
        return "observed" if self.sighting is not None else "matched" if self.session is not None else "claimed"

    @property
    def accepted(self) -> bool:
        """Whether the server took the message (or may have)."""
        s = self.sighting
        return s is None or (s.kind == "transaction" and s.outcome in ("accepted", "partial", "unknown"))

    @property
    def carried(self) -> bool:
        """A hand-over between hosts, no mailbox access."""
        return self.sighting is None or self.sighting.kind == "transaction"

    @property
    def end(self) -> int:
        """When it was over, as far as known; on the captures' common clock."""
        return self.seen_end - self.shift

    @property
    def seen_end(self) -> int:
        """The same as its capture has it."""
        s = self.sighting
        if s is None:
            return self.seen
        return next((t for t in (s.ts_end, s.ts_eom, s.ts_data) if t is not None), s.seen)

    @property
    def seen(self) -> int:
        """`ts` as its capture has it."""
        return self.ts + self.shift


class Lost(NamedTuple):
    """A connection that was made for a message and carried no transaction."""

    ts: int
    at: int
    """When, on the captures' common clock."""
    client: Machine
    source: str
    client_ip: str
    server_ip: str
    detail: str
    frame: int | None
    session: SessionInfo | None
    hop: "Leg | None"
    """The hop that followed it, when the message went on from this client."""
    known: bool
    """Whether its message could be told."""
    event: SessionInfo | Attempt
    """What was seen of it."""


class MailboxStep(NamedTuple):
    """A mailbox event with its message."""

    event: MailboxEvent
    trace: "Trace"


class Trace:
    """One message: its hops and what is said of it."""

    __slots__ = (
        "distrusted",
        "id",
        "legs",
        "lost",
        "message_id",
        "outcome",
        "parent",
        "relation",
        "reported",
        "retrieved",
        "steps",
    )

    def __init__(self, trace_id: str, legs: list[Leg], message_id: str | None) -> None:
        self.id = trace_id
        self.legs = legs
        self.message_id = message_id
        self.distrusted: frozenset[Claim] = frozenset()
        """Results that the message brought along under the name of the server that took it."""
        self.parent: Trace | None = None
        self.relation: str | None = None
        self.reported: list[tuple[Report, int]] | None = None
        """(report, when it was first seen) of the delivery reports about this message."""
        self.retrieved = False
        self.outcome = "unknown"
        self.steps: list[MailboxStep] | None = None
        """Mailbox events of the message."""
        self.lost: list[Lost] | None = None
        """Connections made for it that carried no transaction."""

    def observed(self) -> Iterable[Sighting]:
        """Its sightings, in hop order."""
        return (leg.sighting for leg in self.legs if leg.sighting is not None)


class Builder:
    """Makes the hops of one group of sightings."""

    def __init__(self, group: list[Sighting], hosts: Hosts, opaque: Opaque) -> None:
        self.hosts = hosts
        self.opaque = opaque
        self.legs = [self._leg(s) for s in group]
        self._cover: dict[Trail, Leg | None] = {}
        """Trail -> the hop after which the message carried it."""
        self._by_queue_id: dict[str, list[Leg]] = {}
        self._by_own: dict[Trail | None, list[Leg]] = {}
        self._at: dict[int, list[Leg]] = {}
        """Machine -> hops that brought the message there, in time order."""
        for leg in self.legs:
            s = leg.sighting
            if s is None or not leg.accepted:
                continue
            if s.queue_id is not None:
                self._by_queue_id.setdefault(plain_id(s.queue_id), []).append(leg)
            if s.has_content:
                self._by_own.setdefault(s.trail, []).append(leg)
            self._at.setdefault(id(leg.server), []).append(leg)

    def _leg(self, s: Sighting) -> Leg:
        leg = Leg(s, None, s.trail)
        session = s.session
        leg.client_ip, leg.server_ip = session.client_ip, session.server_ip
        leg.client = self.hosts.of(session.stated_client_ip or session.client_ip)
        leg.server = self.hosts.of(session.server_ip)
        leg.protocol = session.protocol
        leg.kind = s.kind if s.kind != "transaction" else "relay"
        return leg

    def build(self) -> list[Leg]:
        """All hops, parents set, in order, numbered."""
        if len(self.legs) == 1 and self.legs[0].trail is None:
            self.legs[0].number = 1
            return self.legs
        claims: list[Leg] = []
        for leg in self.legs:
            if leg.trail is not None:
                claims += self._read(leg)
        for leg in self.legs:
            leg.parent = self._parent(leg)
        for claim in claims:
            claim.parent = self._above(claim.trail.below) if claim.trail is not None else None
        if len(self.legs) > 1:
            self._siblings(claims)
        self.legs += claims
        _cut_cycles(self.legs)
        number(self.legs)
        return self.legs

    def _read(self, leg: Leg) -> list[Leg]:
        """Walk a hop's trail from the top; return the hand-overs on it that no sighting covers."""
        s = leg.sighting
        assert s is not None
        claims: list[Leg] = []
        host = leg.client if leg.carried else leg.server
        if s.kind == "append":
            host = None
        before = s.seen
        after, level = leg, 0
        trail = s.trail
        while trail is not None:
            if trail in self._cover:
                return claims
            field = trail.field
            cover = self._covering(trail, leg)
            if cover is None and field.handed_over:
                cover = self._claim(trail, host, before)
                claims.append(cover)
                if self.opaque.may_have_carried(cover.client, cover.server, field):
                    self.opaque.want(Untold(cover, field, after, level, size_below(s, trail)))
                level += 1
            self._cover[trail] = cover
            if cover is not None:
                host = cover.client
                begun = cover.seen if cover.sighting is not None else cover.seen + _SECOND
                before = min(before, begun)  # a trace field's time is whole seconds
                after = cover
                level = level if cover.sighting is None else 0
            trail = trail.below
        return claims

    def _covering(self, trail: Trail, carrier: Leg) -> Leg | None:
        """The observed hop whose server wrote the field on top of this trail."""
        field = trail.field
        best: tuple[int, Leg] | None = None
        if field.id is not None:
            for leg in _latest(self._by_queue_id.get(plain_id(field.id)), carrier):
                says = wrote(leg.sighting, field) if leg.sighting is not None else -1
                if leg is not carrier and says >= 1 and (best is None or says > best[0]):
                    best = (says, leg)
            if best is not None:
                return best[1]
        for leg in _latest(self._by_own.get(trail.below), carrier):
            s = leg.sighting
            if leg is carrier or s is None or (field.id is not None and s.queue_id is not None):
                continue
            says = wrote(s, field)
            if says >= 2 and (best is None or says > best[0]):
                best = (says, leg)
        return best[1] if best is not None else None

    def _claim(self, trail: Trail, writer: Machine | None, before: int) -> Leg:
        field = trail.field
        leg = Leg(None, field, trail)
        leg.protocol = "lmtp" if "LMTP" in (field.protocol or "") else "smtp"
        leg.client = self.hosts.of(field.ip) if field.ip else self.hosts.named(field.name) or self.hosts.named(field.helo)
        leg.server = writer or (self.hosts.of(field.by_ip) if field.by_ip else self.hosts.named(field.by))
        leg.client_ip = field.ip or (leg.client.ips[0] if leg.client else None)
        leg.server_ip = field.by_ip or (leg.server.ips[0] if leg.server else None)
        leg.ts = min(field.ts or before, before)
        return leg

    def _above(self, trail: Trail | None) -> Leg | None:
        """The hop that brought the message to where it carried this trail."""
        while trail is not None:
            cover = self._cover.get(trail)
            if cover is not None:
                return cover
            trail = trail.below
        return None

    def _parent(self, leg: Leg) -> Leg | None:
        """The hop that brought the message to this hop's client (for mailbox access: to its server)."""
        s = leg.sighting
        assert s is not None
        if s.kind == "append":
            return None
        host = leg.client if leg.carried else leg.server
        cover = self._above(leg.trail)
        if cover is not None and cover.server is host:
            return cover
        arrived = self._at.get(id(host))
        if arrived is None:
            here = []
        else:
            at = bisect_right(arrived, leg.ts, key=_leg_ts)
            here = [x for x in arrived[max(at - _LOOK_BACK, 0) : at] if x is not leg]
        same = [x for x in here if x.sighting is not None and x.sighting.has_content and x.trail is leg.trail]
        if leg.trail is not None and same and s.has_content:
            return same[-1]  # a host that adds no trace field of its own
        if cover is not None:
            return cover
        if s.has_content and s.header_complete and leg.trail is None and leg.carried:
            return None  # nobody has handled it before
        return _for_same_recipients(leg, here)

    def _siblings(self, claims: list[Leg]) -> None:
        """A try that shows no trace fields comes from where the client's other tries come from, or where trace fields say."""
        by_client: dict[int, list[Leg]] = {}
        for leg in self.legs:
            if leg.parent is not None and leg.carried and leg.sighting is not None:
                by_client.setdefault(id(leg.client), []).append(leg)
        for leg in self.legs:
            s = leg.sighting
            if leg.parent is None and leg.carried and s is not None and not (s.has_content and s.header_complete):
                for other in by_client.get(id(leg.client), [])[:_LOOK_BACK]:
                    if other is not leg and other.parent is not None and other.parent.ts <= leg.ts:
                        leg.parent = other.parent
                        break
                else:
                    told = [x for x in claims if x.server is leg.client and x.ts <= leg.ts]
                    leg.parent = max(told, key=_leg_ts, default=None)


def number(legs: list[Leg]) -> None:
    """Put hops in order, number them, and tell parents their children."""
    legs.sort(key=_order)
    for leg in legs:
        leg.children = None
    for n, leg in enumerate(legs, 1):
        leg.number = n
        if leg.parent is not None:
            if leg.parent.children is None:
                leg.parent.children = []
            leg.parent.children.append(leg)


def _latest(legs: list[Leg] | None, carrier: Leg) -> list[Leg]:
    """Those that began before the carrier ended, latest first, a bounded number."""
    if not legs:
        return []
    at = bisect_right(legs, carrier.ts + _CLOSE, key=_leg_ts)
    return legs[max(at - _LOOK_BACK, 0) : at][::-1]


def _leg_ts(leg: Leg) -> int:
    return leg.ts


def _for_same_recipients(leg: Leg, here: list[Leg]) -> Leg | None:
    recipients = leg.sighting.recipients[:_LOOK_BACK] if leg.sighting else []
    origins = {origin.lower() for r in recipients if (origin := original_recipient(r))}
    for wanted in ({r.address.lower() for r in recipients}, origins):
        for other in reversed(here):
            s = other.sighting
            if s is not None and any(r.address.lower() in wanted for r in s.recipients[:_LOOK_BACK]):
                return other
    return here[-1] if here else None


def _cut_cycles(legs: list[Leg]) -> None:
    """No hop is its own ancestor, whatever the trace fields claim."""
    done: set[int] = set()
    for leg in legs:
        path: set[int] = set()
        at: Leg | None = leg
        while at is not None and id(at) not in done:
            path.add(id(at))
            if at.parent is not None and id(at.parent) in path:
                at.parent = None
            at = at.parent
        done |= path


def _order(leg: Leg) -> tuple[int, int, int, int]:
    return (
        leg.ts,
        0 if leg.sighting is None else 1,
        leg.trail.length if leg.trail is not None and leg.sighting is None else 0,
        leg.sighting.order if leg.sighting is not None else 0,
    )


def links(trace: Trace) -> Iterable[Link]:
    """Why the hops of a trace are one message: each observed hop joined to its parent, or to the hop before it."""
    last: Leg | None = None
    for leg in trace.legs:
        b = leg.sighting
        if b is None:
            continue
        other = leg.parent if leg.parent is not None and leg.parent.sighting is not None else last
        last = leg
        if other is None or other.sighting is None:
            continue
        a = other.sighting
        written = _written_between(other, leg)
        by_id = written is not None and a.queue_id is not None and written.id is not None
        by_id = by_id and plain_id(written.id) == plain_id(a.queue_id)  # type: ignore[union-attr,arg-type]
        by_chain = written is not None or (a.trail is not None and b.trail is not None and _meet(a.trail, b.trail))
        keys, score, conflicts = agreement(a, b, bool(by_id), by_chain)
        yield Link(trace.id, leg.number, other.number, keys, score, conflicts)


def _written_between(parent: Leg, leg: Leg) -> Received | None:
    """The field the parent's server added, as the later hop shows it."""
    trail = leg.trail
    while trail is not None:
        if trail.below is parent.trail and parent.sighting is not None and wrote(parent.sighting, trail.field) >= 1:
            return trail.field
        trail = trail.below
    return None


def _meet(a: Trail, b: Trail) -> bool:
    while a.length > b.length and a.below is not None:
        a = a.below
    while b.length > a.length and b.below is not None:
        b = b.below
    while a is not b:
        if a.below is None or b.below is None:
            return False
        a, b = a.below, b.below
    return True
