"""Which sightings are one message: an ordered ladder of keys.

Rules:
1. Keys are tried strongest first; each is a dictionary, so cost is per sighting and never per pair.
2. Time alone is no key.  The same Message-ID with another body is another message, unless the trace fields show a common past.
3. A transaction without a Message-ID (refused before its data) belongs to the message that its client held, or sent later, under
   the same envelope, or for the original recipient that it names (RFC 3461 4.2); without such evidence it stays alone.
4. What joined two hops can be read off them again: `agreement` names the keys that hold and those that conflict.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from analyzer.limits import Limits
from analyzer.mail.hosts import Hosts, Machine
from analyzer.mail.received import Received
from analyzer.mail.sightings import Sighting, Trail, original_recipient

LADDER = (
    # key, score of a join that rests on it, what it says
    ("body+message_id", 1.0, "same body and same Message-ID"),
    ("queue_id", 0.98, "the queue id of one's accepting reply stands in the other's Received field of that server"),
    ("received_chain", 0.95, "one's trace fields contain the other's, and the server between them wrote the next one"),
    ("message_id", 0.8, "same Message-ID, and one body is not known"),
    ("body+header", 0.75, "same body, From, Date and Subject; one has no Message-ID yet"),
    ("envelope_id", 0.7, "same reverse-path and ENVID (RFC 3461 4.4)"),
    ("envelope+size", 0.6, "same client or one that handed it on, same envelope but for a member that it names, same size there"),
    ("envelope", 0.5, "same client, same envelope or original recipient (ORCPT), and the client held the message or tried again"),
)
"""The keys, strongest first."""
SCORES = {key: score for key, score, _ in LADDER}

_LOOK_BACK = 32
"""Candidates of one key looked at, nearest in time first."""
_LOOK_AHEAD = 8
_SLACK = 2_000_000_000
"""Nanoseconds by which a later hop may seem to begin before the earlier one ended (clocks of two taps, pipelined relays)."""
_FOLDS = 10
"""Octets of line folding that one trace field may have."""
_TOGETHER = 60_000_000_000
"""Messages that came to a host within this time wait there together."""
_ADDED = 2_000
"""Octets that a host may add to a message's header."""
_FALLBACK_WITHIN = 600_000_000_000
"""A permanently refused attempt belongs to a transmission elsewhere only within this time."""


class Forest:
    """Union-find over sightings; the root of a group is its earliest sighting."""

    def __init__(self, size: int) -> None:
        self._up = list(range(size))

    def root(self, i: int) -> int:
        """The group of a sighting."""
        up = self._up
        while up[i] != i:
            up[i] = up[up[i]]
            i = up[i]
        return i

    def join(self, a: int, b: int) -> None:
        """The groups of two sightings are one."""
        a, b = self.root(a), self.root(b)
        if a < b:
            self._up[b] = a
        elif b < a:
            self._up[a] = b


def plain_id(text: str) -> str:
    """A queue id without the recipient number that Dovecot's LMTP adds in Received fields (`...:R2`)."""
    head, colon, tail = text.rpartition(":R")
    return head if colon and tail.isdigit() else text


def wrote(s: Sighting, field: Received) -> int:
    """How much says that the server of `s` wrote `field` about this hand-over; negative when something speaks against it.

    The name counts most, then the client's address and greeting, then the recipient.
    """
    session = s.session
    says = 0
    if field.by is not None and session.server_name is not None:
        says += 3 if field.by == session.server_name.rstrip(".").lower() else 0
    if field.by_ip is not None and field.by_ip == session.server_ip:
        says += 3
    if field.ip is not None:
        says += 2 if field.ip in (session.client_ip, session.stated_client_ip) else -2
    if field.helo is not None and session.client_name is not None:
        says += 1 if field.helo == session.client_name.strip("[]").rstrip(".").lower() else 0
    if field.recipient is not None:
        low = field.recipient.lower()
        says += 1 if any(r.address.lower() == low for r in s.recipients[:_LOOK_BACK]) else 0
    return says


class Correlator:
    """Joins the sightings of one capture (sorted by time, `order` set) into groups."""

    def __init__(self, sightings: list[Sighting], hosts: Hosts, limits: Limits) -> None:
        self.sightings = sightings
        self.hosts = hosts
        self.limits = limits
        self.forest = Forest(len(sightings))
        self._tried: dict[int, int] = {}
        """Message held, by its `order` -> the latest refused attempt that is taken to be its, likewise."""
        self._refused: set[int] = set()
        """Those of them that were refused for good."""
        self.reused: list[Sighting] = []
        """First sighting of each further message under a Message-ID that has another body."""

    def groups(self) -> list[list[Sighting]]:
        """Sightings of one message each, in time order, groups by their first sighting."""
        for step in (self._by_body, self._by_queue_id, self._by_chain, self._by_message_id, self._without_id, self._attempts):
            step()
        found: dict[int, list[Sighting]] = {}
        root = self.forest.root
        for s in self.sightings:
            found.setdefault(root(s.order), []).append(s)
        return list(found.values())

    def _by_body(self) -> None:
        first: dict[tuple[str, str], int] = {}
        join = self.forest.join
        for s in self.sightings:
            if s.message_id is not None and s.body_digest is not None:
                join(first.setdefault((s.message_id, s.body_digest), s.order), s.order)

    def _by_queue_id(self) -> None:
        accepted: dict[str, list[Sighting]] = {}
        for s in self.sightings:
            if s.queue_id is not None and s.kind == "transaction":
                accepted.setdefault(plain_id(s.queue_id), []).append(s)
        seen: set[Trail] = set()
        for s in self.sightings:
            trail = s.trail
            while trail is not None and trail not in seen:
                seen.add(trail)
                if trail.field.id is not None:
                    known = accepted.get(plain_id(trail.field.id))
                    candidates = nearest(known, s.ts, _SLACK) if known is not None else ()
                    fits = [other for other in candidates if other is not s and self._queued_as(other, s, trail)]
                    if fits:  # queue ids come round again: the likeliest of several, then the latest
                        self.forest.join(max(fits, key=lambda other: _likeness(other, s)).order, s.order)
                trail = trail.below

    def _queued_as(self, other: Sighting, s: Sighting, trail: Trail) -> bool:
        """`other` brought to its server what `s` shows with that server's field on top of `trail`."""
        says = wrote(other, trail.field)
        if other.trail is trail.below and other.header_complete:
            return says >= 1
        same_id = s.message_id is not None and s.message_id == other.message_id
        return says >= (1 if same_id else 4 if other.has_content else 3)

    def _by_chain(self) -> None:
        first: dict[Trail, Sighting] = {}
        handed: dict[Trail, list[Sighting]] = {}
        for s in self.sightings:
            if s.trail is not None and s.kind == "transaction":
                handed.setdefault(s.trail, []).append(s)
        for s in self.sightings:
            trail = s.trail
            while trail is not None:
                other = first.setdefault(trail, s)
                if other is not s:
                    if self._common_past(other, s, trail):
                        self.forest.join(other.order, s.order)
                elif trail.below is not None:
                    for before in nearest(handed.get(trail.below), s.ts, _SLACK):
                        if before is not s and wrote(before, trail.field) >= 3:
                            self.forest.join(before.order, s.order)
                            break
                trail = trail.below

    @staticmethod
    def _common_past(a: Sighting, b: Sighting, trail: Trail) -> bool:
        """Two sightings that share a trace field (and all below it) are one message when nothing else contradicts."""
        if a.message_id is None or a.message_id != b.message_id:
            return False
        same_body = a.body_digest is None or b.body_digest is None or a.body_digest == b.body_digest
        return same_body or trail.field.id is not None

    def _by_message_id(self) -> None:
        """Sightings whose body is not known go to the message of their Message-ID; bodies that differ stay apart."""
        root = self.forest.root
        bodies: dict[str, list[int]] = {}
        unknown: dict[str, list[Sighting]] = {}
        has_body: set[int] = set()
        for s in self.sightings:
            if s.message_id is not None and s.body_digest is not None:
                at = root(s.order)
                if at not in has_body:
                    has_body.add(at)
                    bodies.setdefault(s.message_id, []).append(at)
        for s in self.sightings:
            if s.message_id is not None and s.body_digest is None:
                unknown.setdefault(s.message_id, []).append(s)
        for roots in bodies.values():
            self.reused += [self.sightings[at] for at in roots[1:]]
        for message_id, waiting in unknown.items():
            roots = bodies.get(message_id, [])
            for s in waiting:
                if root(s.order) in has_body:
                    continue
                if roots:  # of several, the latest that had begun
                    at = max(bisect_right(roots, s.order) - 1, 0)
                    self.forest.join(roots[at], s.order)
                    has_body.add(root(s.order))
                else:
                    self.forest.join(waiting[0].order, s.order)

    def _without_id(self) -> None:
        """A message that had no Message-ID yet: its body and the fields that nobody rewrites."""
        with_id: dict[tuple[str, bytes, bytes | None, bytes | None], int] = {}
        without: dict[tuple[str, bytes, bytes | None, bytes | None], list[Sighting]] = {}
        lacking = any(s.message_id is None and s.body_digest is not None for s in self.sightings)
        for s in self.sightings if lacking else ():
            if s.body_digest is not None and s.header_date is not None:
                key = (s.body_digest, s.header_date, s.header_from, s.subject)
                if s.message_id is None:
                    without.setdefault(key, []).append(s)
                else:
                    with_id.setdefault(key, s.order)
        for alike, waiting in without.items():
            at = with_id.get(alike, waiting[0].order)
            for s in waiting:
                self.forest.join(at, s.order)

    # transactions that never showed what they carried

    def _attempts(self) -> None:
        bare = [s for s in self.sightings if s.kind == "transaction" and s.message_id is None and s.body_digest is None]
        if not bare:
            return
        root = self.forest.root
        told = {root(s.order) for s in self.sightings if s.message_id is not None or s.body_digest is not None}
        bare = [s for s in bare if root(s.order) not in told]  # the others are known by what their server wrote
        envelopes = Envelopes(self.sightings, self.hosts, bare)
        alone: dict[tuple[object, ...], Sighting] = {}
        left: list[Sighting] = []
        identified = self._identified() if any(s.envelope_id for s in bare) else {}
        for s in bare:
            other = self._held(s, envelopes)
            if other is not None:
                self._tried[other.order] = s.order
                if s.outcome == "rejected":
                    self._refused.add(other.order)
            else:
                other = self._sent_later(s, envelopes) or identified.get((s.mail_from, s.envelope_id))
            if other is not None:
                self.forest.join(other.order, s.order)
            elif s.size_stated is not None:
                left.append(s)
        if not left:
            return
        elsewhere = Elsewhere(self.sightings, self.hosts)
        for s in left:
            other = elsewhere.sent(s, self.limits.queue_lifetime)
            if other is not None:
                self.forest.join(other.order, s.order)
            if s.outcome == "deferred":
                key = (id(envelopes.client(s)), s.mail_from, tuple(sorted(s.addresses())), s.size_stated)
                before = alone.get(key)
                if before is not None and s.ts - before.ts <= self.limits.queue_lifetime:
                    self.forest.join(before.order, s.order)
                alone[key] = s

    def _identified(self) -> dict[tuple[str | None, str | None], Sighting | None]:
        """Reverse-path and ENVID -> a sighting of the one message that has them; None: several have."""
        found: dict[tuple[str | None, str | None], Sighting | None] = {}
        root = self.forest.root
        for s in self.sightings:
            if s.envelope_id is not None and (s.message_id is not None or s.body_digest is not None):
                other = found.setdefault((s.mail_from, s.envelope_id), s)
                if other is not None and root(other.order) != root(s.order):
                    found[s.mail_from, s.envelope_id] = None
        return found

    def _held(self, s: Sighting, envelopes: "Envelopes") -> Sighting | None:
        """The message under this envelope that the client had taken in before, best one not yet passed on.

        Of several it is the one that grew by what that client adds; of messages alike that wait together each is tried in turn.
        """
        found: list[tuple[tuple[int, int, int], int | None, Sighting]] = []
        wanted = {r.address.lower() for r in s.recipients[:_LOOK_BACK]}
        for other in envelopes.arrived(s):
            if s.ts - other.ts > self.limits.queue_lifetime or other is s:
                break
            sent = envelopes.passed_on(other, s)
            grown = growth(other, s)
            tried_so = grown is not None and any(x.size_stated == s.size_stated for x in sent)
            fits = 3 if tried_so else 2 if grown is None or 0 <= grown < _ADDED else 0
            done = any(x.ts < s.ts and x.outcome in ("accepted", "partial") and _settled(x, wanted) for x in sent)
            whole = sum(r.address.lower() in wanted for r in other.recipients) >= len(wanted)
            if fits:
                found.append(((fits, 0 if done else 1, 1 if whole else 0), grown, other))
        best = max((rank for rank, *_ in found), default=None)
        alike = [(grown, other) for rank, grown, other in found if rank == best]
        if len(alike) < 2:
            return alike[0][1] if alike else None
        usual = envelopes.usual_growth(s)
        votes = [(usual[grown] if grown is not None else 0, other) for grown, other in alike]
        most = max(times for times, _ in votes)
        alike_still = [other for times, other in votes if times == most]
        waiting = [other for other in alike_still if other.order not in self._refused] or alike_still
        latest = max(other.ts for other in waiting)
        together = [other for other in waiting if latest - other.ts <= _TOGETHER]
        return min(together, key=lambda other: (self._tried.get(other.order, -1), other.order))

    def _sent_later(self, s: Sighting, envelopes: "Envelopes") -> Sighting | None:
        """The later transmission that this attempt was a try of."""
        logged_in = bool(s.session.auth_ok) or s.session.server_port in (587, 465)
        for other in envelopes.retried(s):
            apart = other.ts - s.ts
            if apart > self.limits.queue_lifetime:
                return None
            sized = s.size_stated is not None and other.size_stated is not None
            if sized and s.size_stated != other.size_stated:
                continue
            if s.outcome == "deferred":
                return other
            if sized and not logged_in and (s.outcome != "rejected" or apart <= _FALLBACK_WITHIN):
                return other
        return None


def growth(arrived: Sighting, sent: Sighting) -> int | None:
    """Octets that a host added to a message, as far as its size is known."""
    return sent.size_stated - arrived.size if sent.size_stated is not None and arrived.size is not None else None


def _settled(sent: Sighting, wanted: set[str]) -> bool:
    """Whether `sent` has brought one of these recipients to the next host, or had it refused for good."""
    return any(r.outcome in ("accepted", "rejected") and r.address.lower() in wanted for r in sent.recipients)


Envelope = tuple[int, str | None, str]


def _likeness(a: Sighting, b: Sighting) -> tuple[bool, bool, bool, int]:
    same_id = a.message_id is not None and a.message_id == b.message_id
    same_body = a.body_digest is not None and a.body_digest == b.body_digest
    return (same_id, same_body, a.ts <= b.ts, a.order)


class Envelopes:
    """Who took in and sent on what envelope: (machine, reverse-path, a recipient) -> transmissions in time order."""

    def __init__(self, sightings: list[Sighting], hosts: Hosts, bare: list[Sighting]) -> None:
        self._hosts = hosts
        self._bare = bare
        self._growth: dict[int, Counter[int]] | None = None
        self._arrived: dict[Envelope, list[Sighting]] = {}
        self._arrived_for: dict[Envelope, list[Sighting]] = {}
        """The same by original recipients."""
        self._sent: dict[Envelope, list[Sighting]] = {}
        for s in sightings:
            if s.kind != "transaction" or (s.message_id is None and s.body_digest is None):
                continue
            for key in _keys(s, self.client(s)):
                self._sent.setdefault(key, []).append(s)
            if s.outcome in ("accepted", "partial", "unknown"):
                server = hosts.of(s.session.server_ip)
                for key in _keys(s, server):
                    self._arrived.setdefault(key, []).append(s)
                for key in _original_keys(s, server):
                    self._arrived_for.setdefault(key, []).append(s)

    def client(self, s: Sighting) -> Machine:
        """The machine that sent it, behind a proxy that says so."""
        return self._hosts.of(s.session.stated_client_ip or s.session.client_ip)

    def arrived(self, s: Sighting) -> Iterator[Sighting]:
        """What the client of `s` had taken in under its envelope, or for its original recipients; latest first."""
        client = self.client(s)
        for keys, known in (
            (_keys(s, client), self._arrived),
            (_original_keys(s, client), self._arrived),
            (_original_keys(s, client), self._arrived_for),
        ):
            for key in keys:
                found = False
                for other in nearest(known.get(key), s.ts):
                    found = True
                    yield other
                if found:
                    return

    def usual_growth(self, s: Sighting) -> Counter[int]:
        """By how many octets messages may have grown at the client of `s`, and how often: its trace fields are much the same."""
        if self._growth is None:
            self._growth = {}
            clients = {id(self.client(x)) for x in self._bare}
            sent = (x for xs in self._sent.values() for x in xs if id(self.client(x)) in clients)
            for x in {id(x): x for x in (*self._bare, *sent)}.values():
                counts = self._growth.setdefault(id(self.client(x)), Counter())
                for other in islice(self.arrived(x), _LOOK_BACK):
                    grown = growth(other, x)
                    known = x.message_id is not None
                    if grown is not None and 0 <= grown < _ADDED and (not known or x.message_id == other.message_id):
                        counts[grown] += _LOOK_BACK if known else 1
        return self._growth.get(id(self.client(s)), Counter())

    def passed_on(self, arrival: Sighting, s: Sighting) -> list[Sighting]:
        """What the client of `s` sent of this arrival, as far as the Message-ID tells."""
        sent: list[Sighting] = []
        for key in islice(_keys(s, self.client(s)), 4):
            found = self._sent.get(key, [])
            at = bisect_left(found, arrival.ts, key=_ts)
            sent += [x for x in found[at : at + _LOOK_BACK] if x.message_id == arrival.message_id]
            if len(sent) >= _LOOK_BACK:
                break
        return sent

    def retried(self, s: Sighting) -> Iterator[Sighting]:
        """What the client of `s` sent later under the same envelope, earliest first."""
        for key in _keys(s, self.client(s)):
            found = self._sent.get(key)
            if found:
                at = bisect_left(found, s.ts, key=_ts)
                yield from found[at : at + _LOOK_BACK]


class Elsewhere:
    """Where else the message of a refused attempt was seen, known by the size that the attempt stated.

    Its client handed it to another host, which wrote so; or sent the same list message to other members, each under a return path
    that names the member.
    """

    def __init__(self, sightings: list[Sighting], hosts: Hosts) -> None:
        self._hosts = hosts
        self._passed: dict[Envelope, list[tuple[int, int, Sighting]]] = {}
        """Who handed it on -> its size there (with what folded the trace fields), fields added since, the later sighting."""
        self._members: dict[tuple[int, str, int], list[Sighting]] = {}
        """List server, return path without its member, stated size -> what it sent."""
        for s in sightings:
            if s.kind != "transaction" or not s.has_content:
                continue
            base = verp_base(s)
            if base is not None and s.size_stated is not None:
                self._members.setdefault((id(self._client(s)), base, s.size_stated), []).append(s)
            for n, trail in enumerate(s.trail or (), 1):
                machine = hosts.known(trail.field.ip) if trail.field.ip is not None else None
                size = size_below(s, trail)
                if machine is not None and size is not None:
                    for key in _keys(s, machine):
                        self._passed.setdefault(key, []).append((size, n, s))

    def _client(self, s: Sighting) -> Machine:
        return self._hosts.of(s.session.stated_client_ip or s.session.client_ip)

    def sent(self, s: Sighting, within: int) -> Sighting | None:
        """Where the message of an attempt was seen otherwise."""
        assert s.size_stated is not None
        machine = self._client(s)
        base = verp_base(s)
        siblings = self._members.get((id(machine), base, s.size_stated), []) if base is not None else []
        best = min(siblings, key=lambda other: (abs(other.ts - s.ts), other.order), default=None)
        if best is not None and abs(best.ts - s.ts) <= within:
            return best
        for key in _keys(s, machine):
            passed = self._passed.get(key, [])
            at = bisect_left(passed, s.ts, key=lambda of: of[2].ts)
            fits = [
                (spare, other.order, other)
                for size, fields, other in passed[at : at + _LOOK_BACK]
                if 0 <= (spare := size - s.size_stated) <= _FOLDS * fields and other.ts - s.ts <= within
            ]
            if fits:
                return min(fits)[2]
        return None


def verp_base(s: Sighting) -> str | None:
    """The return path of a list message without the one recipient that it names (`owner+user=domain@list`), if it names it."""
    if not s.mail_from or len(s.recipients) != 1:
        return None
    named = "=".join(s.recipients[0].address.lower().rsplit("@", 1))
    low = s.mail_from.lower()
    return low.replace(named, "", 1) if "=" in named and named in low.rpartition("@")[0] else None


def size_below(s: Sighting, trail: Trail) -> int | None:
    """Octets of the message before the field on top of `trail` was added, as far as trace fields alone were."""
    if s.size is None or not s.complete or s.trail is None:
        return None
    added = s.trail.octets - (trail.below.octets if trail.below is not None else 0)
    return max(s.size - added, 0)


def _keys(s: Sighting, machine: Machine) -> Iterator[Envelope]:
    reverse_path = s.mail_from.lower() if s.mail_from is not None else None
    for recipient in s.recipients[:_LOOK_BACK]:
        yield (id(machine), reverse_path, recipient.address.lower())


def _original_keys(s: Sighting, machine: Machine) -> Iterator[Envelope]:
    """The same by the recipients that its recipients were made from, as far as it names them."""
    reverse_path = s.mail_from.lower() if s.mail_from is not None else None
    for recipient in s.recipients[:_LOOK_BACK]:
        origin = original_recipient(recipient)
        if origin is not None and origin.lower() != recipient.address.lower():
            yield (id(machine), reverse_path, origin.lower())


def _ts(s: Sighting) -> int:
    return s.ts


def nearest(found: list[Sighting] | None, ts: int, slack: int = 0) -> Iterator[Sighting]:
    """The latest that began before `ts`, latest first, then the first within `slack` after it; a bounded number."""
    if not found:
        return
    at = bisect_right(found, ts, key=_ts)
    for i in range(at - 1, max(at - 1 - _LOOK_BACK, -1), -1):
        yield found[i]
    for other in found[at : at + _LOOK_AHEAD]:
        if other.ts > ts + slack:
            break
        yield other


def agreement(a: Sighting, b: Sighting, by_queue_id: bool, by_chain: bool) -> tuple[list[str], float, list[str]]:
    """Why two sightings of one group are one message: (keys, score, conflicts).  `a` is the earlier one."""
    keys: list[str] = []
    conflicts: list[str] = []
    same_id = a.message_id is not None and a.message_id == b.message_id
    both = a.body_digest is not None and b.body_digest is not None
    same_body = both and a.body_digest == b.body_digest
    if same_id and same_body:
        keys.append("body+message_id")
    if by_queue_id:
        keys.append("queue_id")
    if by_chain:
        keys.append("received_chain")
    if same_id and not same_body:
        keys.append("message_id")
    if same_body and not same_id and a.header_date is not None and a.header_date == b.header_date:
        keys.append("body+header")
    if a.envelope_id is not None and (a.envelope_id, a.mail_from) == (b.envelope_id, b.mail_from):
        keys.append("envelope_id")
    base = verp_base(a)
    if base is not None and base == verp_base(b) and a.size_stated is not None and a.size_stated == b.size_stated:
        keys.append("envelope+size")
    elif _same_envelope(a, b):
        sized = a.size_stated is not None and a.size_stated == b.size_stated
        keys.append("envelope+size" if sized else "envelope")
    if both and not same_body:
        conflicts.append("body")
    if a.message_id is not None and b.message_id is not None and not same_id:
        conflicts.append("message_id")
    score = max((SCORES[key] for key in keys), default=0.3)
    return keys, max(round(score - 0.1 * len(conflicts), 2), 0.1), conflicts


def _same_envelope(a: Sighting, b: Sighting) -> bool:
    if a.kind != "transaction" or b.kind != "transaction" or a.mail_from is None or b.mail_from is None:
        return False
    if a.mail_from.lower() != b.mail_from.lower():
        return False
    mine = {r.address.lower() for r in a.recipients[:_LOOK_BACK]}
    theirs = b.recipients[:_LOOK_BACK]
    return any(r.address.lower() in mine or (original_recipient(r) or "").lower() in mine for r in theirs)
