"""What became of each recipient, and which message is about which.

Rules:
1. A recipient is followed from the first hop down the tree; a later try of the same client replaces an earlier one.
2. An address that is rewritten on the way (alias, forward, list) still belongs to the recipient it was made from.  One that a
   server added (a copy for an archive) is a recipient of its own.
3. A refusal that met the first hop's client is `rejected`; one that met a later host is `bounced`: that host has to report it.
4. Of a message whose first hop cannot be read, a recipient that only a report names is one, too.
5. Without a further hop: `delivered` when a mailbox shows it or its final server's own traffic shows that nothing went on from
   there; else `relayed`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from analyzer.mail.hops import Leg, Trace
from analyzer.mail.records import Delivery
from analyzer.mail.reports import Fate, Report, domain_of
from analyzer.mail.roles import Scene
from analyzer.mail.sightings import Sighting, original_recipient
from analyzer.protocols.base import Recipient, SessionInfo

_WORST = ("bounced", "rejected", "aborted", "deferred", "unknown", "relayed", "delivered")
_EARLY = 200_000_000
"""Nanoseconds before the reply in which a server may begin to look for the next one."""
_DEPTH = 100
"""Hops followed below one recipient."""
_REPORTED = 1_000
"""Recipients up to which reports may add some that no hop shows."""
_NAMED = 32
"""Recipients that a report tells of by which it is linked."""


class Outcome(NamedTuple):
    """Fate of one recipient, so far."""

    outcome: str
    attempts: int
    ts: int | None
    leg: Leg | None
    code: int | None = None
    enhanced_code: str | None = None
    reply_text: str | None = None


class Traffic:
    """Whom each machine calls: tells whether a server's onward traffic would be in the capture."""

    def __init__(self) -> None:
        self._calls: dict[int, set[int]] = {}

    def call(self, client: int, server: int) -> None:
        """A machine asked or connected to another."""
        self._calls.setdefault(client, set()).add(server)

    def shows(self, machine: int, besides: int) -> bool:
        """Whether the capture shows a machine calling anybody but `besides`."""
        return any(other not in (besides, machine) for other in self._calls.get(machine, ()))


Tries = dict[str, list[Leg]]
"""Recipient (lower case) -> hops that were tried for it, in time order."""


class Judge:
    """Tells the fate of the recipients of one trace.

    Everything is looked up by recipient: a message may have fifty thousand of them.
    """

    def __init__(self, trace: Trace, scene: Scene, traffic: Traffic) -> None:
        self.trace = trace
        self.scene = scene
        self.traffic = traffic
        self._tops: Tries = {}
        self._below: dict[int, Tries] = {}
        """Hop -> what was tried from there on."""
        self._found: dict[int, dict[str, Recipient]] = {}
        self._made: dict[int, dict[str, list[str]]] = {}
        """Hop -> its recipients that go on under other addresses."""
        self._first: dict[str, str] = {}
        self._aliases: dict[str, set[str]] = {}
        """Recipient -> addresses it became."""
        self._origins: dict[str, set[str]] = {}
        """Original recipient (ORCPT) -> recipients as first given here."""
        self._begun_unseen = any(leg.parent is None and leg.sighting is None for leg in trace.legs)
        """It came by a hop whose recipients nobody saw: reports may name some more."""
        self._readers: set[str] = set()
        self._read: set[int] = set()
        self._lost = Counter(id(lost.client) for lost in trace.lost) if trace.lost else None
        for leg in trace.legs:
            s = leg.sighting
            if s is None:
                continue
            if not leg.carried:
                if s.kind == "retrieve":
                    self._readers.add((s.session.auth_user or "").lower())
                    self._read.add(id(leg.parent))
                continue
            above = leg.parent
            while above is not None and (above.sighting is None or not above.carried):
                above = above.parent
            tries = self._tops if above is None else self._below.setdefault(id(above), {})
            mine = self._found[id(leg)] = {r.address.lower(): r for r in reversed(s.recipients)}
            for low in mine:
                tries.setdefault(low, []).append(leg)
            if above is None:
                for r in s.recipients:
                    self._first.setdefault(r.address.lower(), r.address)
                    origin = original_recipient(r) if r.parameters else None
                    if origin:
                        self._origins.setdefault(origin.lower(), set()).add(r.address.lower())

    def deliveries(self) -> list[Delivery]:
        """One row per recipient as first given."""
        fates = {low: self._follow(low, self._tops.get(low, ()), 0) for low in self._first}
        for low, tries in self._added().items():
            if low not in fates:
                self._first[low] = next(r.address for r in self._sighting(tries[0]).recipients if r.address.lower() == low)
                fates[low] = self._follow(low, tries, 1)
        if self.trace.reported:
            names: dict[str, set[str]] = {}
            for low in fates:
                for name in (low, *self._aliases.get(low, ())):
                    names.setdefault(name, set()).add(low)
            for report, ts in self.trace.reported:
                for fate in report.fates:
                    final, original = (fate.final or "").lower(), fate.recipient.lower()
                    about = names.get(final) or names.get(original) or self._origins.get(original) or set()
                    if not about and self._begun_unseen and len(fates) < _REPORTED:
                        self._first[original] = fate.recipient
                        names[original] = about = {original}
                        fates[original] = Outcome("unknown", 0, None, None)
                    for low in about:
                        fates[low] = _reported(fates[low], fate, ts)
        rows = [_row(self.trace, self._first[low], fate) for low, fate in fates.items()]
        return rows or self._from_mailbox()

    def _added(self) -> Tries:
        """Recipients that a server added on the way (a copy for an archive): made from none of those that it was given."""
        added: Tries = {}
        for leg in self.trace.legs:
            below = self._below.get(id(leg))
            if below is None or leg.server_role == "mda" or not leg.accepted:
                continue
            mine = self._found[id(leg)]
            made = {address for addresses in self._made_from(leg, below).values() for address in addresses}
            gone = any(r.outcome == "accepted" and low not in below for low, r in mine.items())
            for low, tries in below.items():
                if low in mine or low in made or low in added:
                    continue
                kid = self._sighting(tries[0])
                origin = (original_recipient(self._found[id(tries[0])][low]) or "").lower()
                copied = kid.mail_from == self._sighting(leg).mail_from  # a list writes its own
                if copied and (origin == low or not (origin or gone or kid.delivered_to)):
                    added[low] = tries
        return added

    @staticmethod
    def _sighting(leg: Leg) -> Sighting:
        assert leg.sighting is not None
        return leg.sighting

    def _from_mailbox(self) -> list[Delivery]:
        """No hand-over was seen: who fetched it, or whom its trace fields name."""
        for leg in reversed(self.trace.legs):
            s = leg.sighting
            if s is not None and s.kind == "retrieve":
                named = s.trail.field.recipient if s.trail is not None else None
                address = named or (s.delivered_to[0] if s.delivered_to else None)
                if address:
                    return [_row(self.trace, address, Outcome("delivered", 0, s.seen, leg))]
        return []

    def _follow(self, low: str, tries: Sequence[Leg], depth: int) -> Outcome:
        """The fate of an address among the tries for it."""
        last: Outcome | None = None
        for n, leg in enumerate(tries, 1):
            recipient = self._found[id(leg)][low]
            s = leg.sighting
            assert s is not None
            if recipient.outcome == "accepted" and s.outcome in ("accepted", "partial"):
                last = self._onward(low, leg, depth, n)
            elif last is None or last.outcome not in ("delivered", "relayed"):
                last = _refused(leg, recipient, n)
        if last is None:
            return Outcome("unknown", 0, None, None)
        lost = self._lost
        if lost is None or last.leg is None or not any(last.leg is leg for leg in tries):
            return last  # also when it was decided further down
        return last._replace(attempts=last.attempts + sum(lost[c] for c in {id(leg.client) for leg in tries}))

    def _onward(self, low: str, leg: Leg, depth: int, tries: int) -> Outcome:
        """From an accepted hop on."""
        s = leg.sighting
        assert s is not None
        here = Outcome("relayed", tries, s.ts_end, leg, *_words(s, self._found[id(leg)][low]))
        if leg.server_role == "mda":
            return here._replace(outcome="delivered")
        below = self._below.get(id(leg))
        if below is not None and depth < _DEPTH:
            if low in below:
                return self._follow(low, below[low], depth + 1)
            made = self._made_from(leg, below).get(low)
            if made:
                self._aliases.setdefault(low, set()).update(made)
                return _worst([self._follow(address, below[address], depth + 1) for address in made])
        if self._in_mailbox(low, leg) or self._final(low, leg):
            return here._replace(outcome="delivered")
        if self._stuck(leg):
            return here._replace(outcome="bounced")
        if self._unresolved(low, leg):
            return here._replace(outcome="deferred")
        return here

    def _made_from(self, leg: Leg, below: Tries) -> dict[str, list[str]]:
        """Recipients of a hop that go on under addresses of their own making: alias, forward, list."""
        made = self._made.get(id(leg))
        if made is not None:
            return made
        made = self._made[id(leg)] = {}
        mine = self._found[id(leg)]
        gone = {low for low, r in mine.items() if r.outcome == "accepted" and low not in below}
        for address, kids in below.items():
            if address in mine:
                continue
            kid = kids[0].sighting
            assert kid is not None
            origin = (original_recipient(self._found[id(kids[0])][address]) or "").lower()
            source = origin if origin in gone else next((d for d in kid.delivered_to if d in gone), None)
            if source is None and len(gone) == 1 and (origin != address or kid.mail_from != self._sighting(leg).mail_from):
                source = next(iter(gone))
            if source is not None:
                made.setdefault(source, []).append(address)
        return made

    def _in_mailbox(self, low: str, leg: Leg) -> bool:
        """A mailbox user who is this recipient has fetched it."""
        if low in self._readers or (low.rpartition("@")[0] or low) in self._readers:
            return True
        return id(leg) in self._read and len(self._found[id(leg)]) == 1

    def _stuck(self, leg: Leg) -> bool:
        """The next server's EHLO reply did not offer what the message needs: its client left without a transaction."""
        s = leg.sighting
        assert s is not None
        for lost in self.trace.lost or ():
            if lost.session is not None and lost.client is leg.server and lost.at >= s.ts and lacks_for(lost.session, s):
                return True
        return False

    def _unresolved(self, low: str, leg: Leg) -> bool:
        """The server asked for the domain's exchangers and got no usable answer: it has to try again (RFC 5321 5.1)."""
        domain, lookups = domain_of(low), self.scene.lookups
        if domain is None or leg.server is None:
            return False
        rows = [row for row in lookups.asked_by(leg.server).get(domain, ()) if lookups.at[row] >= leg.end - _EARLY]
        return bool(rows) and all(lookups.failed(row) for row in rows)

    def _final(self, low: str, leg: Leg) -> bool:
        """This server keeps the domain's mail itself: its other traffic is in the capture and shows no further hop."""
        if leg.server_role != "mx" or leg.server is None or id(leg.server) in self.scene.lmtp_clients:
            return False
        domain = domain_of(low)
        if domain is not None and self.scene.exchanges_for(leg.server, domain, best=True) is False:
            # a backup that has to pass it on asks for the better ones at once
            tried = any(lost.client is leg.server for lost in self.trace.lost or ())
            return not tried and domain not in self.scene.lookups.asked_by(leg.server) and self._shown(leg)
        return self._shown(leg)

    def _shown(self, leg: Leg) -> bool:
        """The capture shows this server's traffic with others than the hop's client."""
        return self.traffic.shows(id(leg.server), id(leg.client))


def lacks_for(session: SessionInfo, s: Sighting) -> bool:
    """Whether a server's EHLO reply did not offer what a message needs (RFC 6531 3.2, RFC 1870 4)."""
    offered = dict(word.partition(" ")[::2] for word in session.capabilities)
    limit = offered.get("SIZE", "")
    if offered and s.wants_utf8 and "SMTPUTF8" not in offered:
        return True
    return s.size is not None and limit.isdigit() and 0 < int(limit) < s.size


def _reported(fate: Outcome, said: Fate, ts: int) -> Outcome:
    """What a delivery report adds."""
    if said.action == "failed" and fate.outcome != "delivered":
        if fate.code is None or fate.outcome not in ("bounced", "rejected"):
            fate = fate._replace(ts=ts, code=None, enhanced_code=said.status, reply_text=said.diagnostic)
        return fate._replace(outcome="bounced")
    if said.action == "delivered" and fate.outcome in ("relayed", "unknown"):
        return fate._replace(outcome="delivered")
    if said.action == "delayed" and fate.outcome in ("relayed", "unknown"):
        return fate._replace(outcome="deferred")
    return fate


def _words(s: Sighting, r: Recipient) -> tuple[int | None, str | None, str | None]:
    """The reply that decided: LMTP's own for each recipient, or where others were refused; else the transaction's."""
    if s.session.protocol != "lmtp" and r.outcome == "accepted" and s.outcome != "partial":
        return s.code, s.enhanced_code, s.reply_text
    return r.code, r.enhanced_code, r.reply_text


def _refused(leg: Leg, r: Recipient, tries: int) -> Outcome:
    s = leg.sighting
    assert s is not None
    outcome = r.outcome if r.outcome != "accepted" else s.outcome
    if outcome not in ("rejected", "deferred", "aborted"):
        outcome = "unknown"
    if outcome == "rejected" and leg.parent is not None:
        outcome = "bounced"
    if outcome == "deferred" and leg.client_role == "mua":
        outcome = "rejected"  # a MUA has no queue: nobody will try again
    words = (r.code, r.enhanced_code, r.reply_text) if r.outcome == outcome or r.code else (s.code, s.enhanced_code, s.reply_text)
    if r.outcome == "accepted":
        words = (s.code, s.enhanced_code, s.reply_text)
    return Outcome(outcome, tries, s.ts_end or s.seen, leg, *words)


def _worst(fates: list[Outcome]) -> Outcome:
    return min(fates, key=lambda fate: _WORST.index(fate.outcome))


def _row(trace: Trace, address: str, fate: Outcome) -> Delivery:
    return Delivery(
        trace.id,
        address,
        fate.outcome,
        fate.attempts,
        fate.ts,
        fate.leg.number if fate.leg is not None else None,
        fate.code,
        fate.enhanced_code,
        fate.reply_text,
    )


def relate(traces: list[Trace]) -> None:
    """Find the message that each delivery report, disposition notice or automatic reply is about."""
    by_id: dict[str, list[Trace]] = {}
    by_queue_id: dict[str, list[Leg]] = {}
    by_envelope_id: dict[str, list[Trace]] = {}
    related: list[Trace] = []
    for trace in traces:
        if trace.message_id is not None:
            by_id.setdefault(trace.message_id, []).append(trace)
        if any(s.report_kind or s.auto_submitted for s in trace.observed()):
            related.append(trace)
    if any(s.report is not None for trace in related for s in trace.observed()):
        for trace in traces:
            for leg in trace.legs:
                s = leg.sighting
                if s is not None and s.kind == "transaction":
                    if s.queue_id is not None:
                        by_queue_id.setdefault(s.queue_id, []).append(leg)
                    if s.envelope_id is not None:
                        by_envelope_id.setdefault(s.envelope_id, []).append(trace)
    alone = [trace for trace in related if _relate(trace, by_id, by_queue_id, by_envelope_id) is None and trace.relation == "dsn"]
    _relate_by_recipients(alone, traces)
    for trace in related:  # two reports about each other would be a circle
        seen = {id(trace)}
        at = trace
        while at.parent is not None:
            if id(at.parent) in seen:
                at.parent = None
                break
            at = at.parent
            seen.add(id(at))


def _relate(
    trace: Trace, by_id: dict[str, list[Trace]], by_queue_id: dict[str, list[Leg]], by_envelope_id: dict[str, list[Trace]]
) -> Trace | None:
    """The message that a report says it is about, by its Message-ID, queue id or ENVID."""
    sightings = list(trace.observed())
    kind = next((s.report_kind for s in sightings if s.report_kind), None)
    report = next((s.report for s in sightings if s.report is not None), None)
    began = sightings[0].ts
    parent: Trace | None = None
    if kind is not None:
        trace.relation = kind
        named = report.message_id if report is not None else None
        parent = _before(by_id.get(named or ""), trace, began)
        if parent is None and report is not None and report.queue_id is not None:
            legs = [leg for leg in by_queue_id.get(report.queue_id, ()) if leg.trace is not trace and leg.ts <= began]
            parent = legs[-1].trace if legs else None
        if parent is None and report is not None and report.envelope_id is not None:
            parent = _before(by_envelope_id.get(report.envelope_id), trace, began)
        if parent is None and report is None:
            parent = next((p for s in sightings for m in s.answers if (p := _before(by_id.get(m), trace, began))), None)
    else:
        for s in sightings:
            for message_id in s.answers:
                parent = parent or _before(by_id.get(message_id), trace, began)
        if any(s.answers for s in sightings):
            trace.relation = "autoreply"
    if parent is not None:
        _reports_about(parent, trace, report, sightings[0].seen)
    return parent


def _reports_about(parent: Trace, trace: Trace, report: Report | None, ts: int) -> None:
    trace.parent = parent
    if report is not None and report.kind == "dsn":
        if parent.reported is None:
            parent.reported = []
        parent.reported.append((report, ts))


def _relate_by_recipients(alone: list[Trace], traces: list[Trace]) -> None:
    """Reports that name no message seen here: they go to the sender of the one message that they can be about.

    It has a recipient (as given, or by ORCPT) that the report names, and the machine that reports had it.
    """
    wanted: dict[tuple[str, str], list[Trace]] = {}
    for trace in alone:
        s = next((s for s in trace.observed() if s.report is not None and s.kind == "transaction"), None)
        if s is None or s.report is None or not s.recipients:
            continue
        to = s.recipients[0].address.lower()
        for fate in s.report.fates[:_NAMED]:
            for name in {fate.recipient.lower(), (fate.final or "").lower()}:
                wanted.setdefault((to, name), []).append(trace)
    if not wanted:
        return
    senders = {sender for sender, _ in wanted}
    found: dict[int, dict[int, Trace]] = {}
    for other in traces:
        for leg in other.legs:
            s = leg.sighting
            if s is None or s.kind != "transaction" or s.mail_from is None or (sender := s.mail_from.lower()) not in senders:
                continue
            for r in s.recipients:
                for name in {r.address.lower(), (original_recipient(r) or "").lower()}:
                    for trace in wanted.get((sender, name), ()):
                        if trace is not other and _can_report(trace, other, leg):
                            found.setdefault(id(trace), {})[id(other)] = other
    for trace in alone:
        about = found.get(id(trace), {})
        if len(about) == 1:
            s = next(s for s in trace.observed() if s.report is not None)
            _reports_about(next(iter(about.values())), trace, s.report, s.seen)


def _can_report(trace: Trace, other: Trace, leg: Leg) -> bool:
    """Whether a report can be about a message that this hop shows: it came after it, from a machine that had it."""
    first = next(x for x in trace.legs if x.sighting is not None)
    s = first.sighting
    assert s is not None and leg.sighting is not None
    if leg.sighting.ts > s.ts or (other.message_id is not None and s.report is not None and s.report.message_id is not None):
        return False
    return first.client is not None and any(first.client in (x.client, x.server) for x in other.legs[:_DEPTH])


def _before(traces: list[Trace] | None, trace: Trace, ts: int) -> Trace | None:
    """The latest message that began before `ts`; a skewed clock does not hide the only one."""
    found = [t for t in traces or () if t is not trace]
    for other in reversed(found):
        if other.legs and next(iter(other.observed())).ts <= ts:
            return other
    return found[0] if found else None


def message_outcome(trace: Trace, deliveries: list[Delivery]) -> str:
    """One word for the message."""
    outcomes = {d.outcome for d in deliveries}
    if len(outcomes) == 1:
        return outcomes.pop()
    if outcomes:
        return "mixed"
    return "delivered" if any(not leg.carried for leg in trace.legs) else "unknown"
