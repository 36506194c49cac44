"""The story of a live capture: told while it goes on, and forgotten piece by piece.

Rules
1. What came from sessions is kept until the message it belongs to is finished.  `retell` tells the webs of messages to which
   something came since the last telling, with an eye on what is known of the others (`Elsewhere`); what another message has
   been told with (a lookup, a failed connection, an opaque session, a mailbox event) stays that one's.
2. A message is finished when its fate is known and it has been silent for `Limits.live_decided_idle`, or silent for
   `Limits.queue_lifetime`; or when more is held than the limits allow: then the longest silent, decided ones first.  `settle`
   tells it once more, for its rows, and lets go of it.
3. Each event leaves once.  What the leaving ones say of hosts is added to the hosts of before, so nothing is counted twice.
4. `tell` and `finish` tell all that is held, at once: where nothing was forgotten, that is what a file's story is.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from analyzer.limits import Limits
from analyzer.mail.archive import Claim, Ends
from analyzer.mail.hosts import ROLES, Hosts
from analyzer.mail.lookups import Lookups
from analyzer.mail.records import Host, Message
from analyzer.mail.sightings import Sighting
from analyzer.mail.story import BY_MESSAGE, Each, Elsewhere, Rows, Story, Told, alone, unravel
from analyzer.mail.webs import Open, Web, Webs, ends_of_all, octets_of
from analyzer.protocols.base import MailboxEvent, MessageCarried, SessionEnded, SessionInfo
from analyzer.protocols.dns import Transaction
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Attempt

DECIDED = frozenset({"delivered", "rejected", "bounced", "aborted"})
"""Fates after which only retrievals are to be expected."""
_LEFT = 2
"""When too much is held, so much less is left: 1/2, so that it does not happen at each telling."""
_NAMES = 64
"""Names of one host kept."""
_FORCE = 1.25
"""Share of a limit at which a telling cannot wait."""
_WEB = 64
"""Sightings of a web beyond which its messages leave one by one: else they leave together."""
_SPARE = 1000
"""So much more than what is held is remembered of trace fields and lookups, before it is weeded out."""
_FEW = 16
"""Counts of evidence up to which many hosts have the same."""
_JUST = 30_000_000_000
"""A delivery and the mailbox's notice of it are no further apart."""
_SOON = 5_000_000_000
"""A lookup and the connection it was most likely for are no further apart."""
_CLOCK = 120_000_000_000
"""A server's clock is believed to be no further off, when it tells of an opaque session."""


class Ledger(Story):
    """A story that is told as it goes on and forgets what is over.  Stands where a pipeline's story stands."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.on_carried: Callable[[MessageCarried], None] = lambda event: None
        """Called with each message as its hop ends."""
        self.lookups: deque[Transaction] = deque()
        """Rows of `dns` that are not finished."""
        self._webs = Webs(limits)
        self._dns = _Dns(limits)
        self._ended: dict[str, SessionEnded] = {}
        self._mailbox: deque[MailboxEvent] = deque()
        self._tries: deque[Attempt] = deque()
        self._holder: dict[int, Open] = {}
        """By id of a lookup, session, attempt or mailbox event: the message that has been told with it."""
        self._news: list[Any] = []
        """Came since the last telling and may change what was told: sightings, sessions, attempts, mailbox events."""
        self._arrived = 0
        """Sightings among them."""
        self._hosts_before: dict[str, Host] = {}
        """By each address."""
        self._shared: dict[tuple[str, str, int], dict[str, Any]] = {}
        """Items of evidence that many hosts have."""
        self._ends_before: dict[Ends, None] = {}
        """Who passed mail to whom in finished messages, the latest last."""
        self._claims_before: dict[Claim, None] = {}
        self._held_trails = 0
        self._carried_by: set[str] = set()
        """Sessions that finished messages were told with."""
        self._lost: Counter[str] = Counter()
        self.last_messages: list[Message] = []
        """Messages that were still open at the end."""
        self.fresh = False
        """Something was fed since the last telling."""

    # in

    def feed(self, event: Any) -> None:
        """Keep an event."""
        self.fresh = True
        kind = type(event)
        if kind is MessageCarried:
            sighting = self._digester.sighting(event)
            self._webs.add(sighting)
            self._news.append(sighting)
            self._arrived += 1
            self.on_carried(event)
        elif kind is SessionEnded:
            self._ended[event.info.session_id] = event
            if event.info.visibility == "opaque" or not event.info.messages:
                self._news.append(event.info)
        elif kind is MailboxEvent:
            self._keep(self._mailbox, event, self.limits.live_mailbox_events, "mailbox_events_dropped")
        elif kind is Attempt:
            self._keep(self._tries, event, self.limits.idle_connections, "attempts_dropped")

    def look(self, lookups: Iterable[Transaction]) -> None:
        """Keep DNS questions and their answers."""
        self.fresh = True
        self.lookups.extend(lookups)
        self._dns.feed(lookups)

    def _keep(self, where: deque[Any], event: Any, most: int, name: str) -> None:
        where.append(event)
        self._news.append(event)
        if len(where) > most:
            self._holder.pop(id(where.popleft()), None)
            self._lost[name] += 1

    @property
    def pressing(self) -> bool:
        """So much is held that a telling cannot wait."""
        limits = self.limits
        return (
            self._arrived > 2 * limits.story_part
            or self._webs.count > _FORCE * limits.live_traces
            or self._webs.octets > _FORCE * limits.live_held_bytes
            or len(self.lookups) > _FORCE * limits.live_lookups
            or len(self._ended) > _FORCE * (limits.idle_connections + limits.live_traces)
        )

    @property
    def held(self) -> int:
        """Crossings of messages held."""
        return self._webs.count

    # told whole

    def tell(self, asked: Collection[str] = ()) -> Told:
        """The story of all that is held, with every host there has been."""
        story = Story(self.limits, True, Elsewhere(list(self._ends_before), set(self._claims_before)), self._dns.begin(()))
        self._introduce_before(story)
        for event in chain(self._ended.values(), self._webs.sightings(), self._mailbox, self._tries):
            story.feed(event)
        told = story.finish(asked)
        told.first = replace(told.first, messages=list(told.messages), hops=list(told.hops))
        hosts, before = told.hosts, self._hosts_before
        if before:
            told.hosts = Rows(lambda: iter(_merged(before, hosts)))
        return told

    def finish(self, asked: Collection[str] = (), each: Each = alone) -> Told:
        """Nothing more will come: the story of what is still held; what was dropped on the way is counted."""
        told = self.tell(asked)
        self.last_messages = list(told.messages)
        for name, count in sorted(self._lost.items()):
            told.anomalies.append(Anomaly(None, "", None, None, name, f"{count:,} beyond the limit", None))
        return told

    def _introduce_before(self, story: Story) -> None:
        for ip, host in self._hosts_before.items():
            story.hosts.of(ip).call(host.names)

    # told in part

    def retell(self) -> Told | None:
        """The story of what has changed since it was told last, and the hosts that are not finished; None: nothing has.

        To be let go of (`let_go`) when its rows have been taken.
        """
        self.fresh = False
        for web in self._touched():
            web.changed = True
        self._news.clear()
        self._arrived = 0
        changed = [web for web in self._webs if web.changed]
        if not changed and not self._dns.fresh:
            return None
        for web in changed:
            self._release(web.told)
            web.told = []
            web.ends = ends_of_all(web.sightings)
        others = [web for web in self._webs if not web.changed]
        evidence: Counter[tuple[str, str, str]] = Counter()
        messages: Counter[str] = Counter()
        for one in chain.from_iterable(web.told for web in others):
            evidence.update(one.evidence)
            messages.update(one.ips)
        elsewhere = replace(self._elsewhere(others), evidence=evidence, messages=messages)
        story = Story(self.limits, True, elsewhere, self._dns.begin(self._holder))
        self._introduce_before(story)
        for ended in self._ended.values():
            if id(ended.info) in self._holder:
                story.hosts.session(ended.info)
            else:
                story.feed(ended)
        for event in chain(self._mailbox, self._tries):
            if id(event) not in self._holder:
                story.feed(event)
        for web in changed:
            for s in web.sightings:
                story.feed(s)
        told = story.finish()
        self._learn(told)
        for web in changed:
            web.changed = False
        told.hosts = list(_joined_with(self._hosts_before, told.hosts))
        return told

    def let_go(self, told: Told) -> None:
        """Its rows have been taken."""
        unravel(told.traces)
        self._dns.begin(())

    def _learn(self, told: Told) -> None:
        """Keep what the telling says of each message, and give it what it was told with."""
        messages = {row.trace_id: row for row in told.messages}
        same: dict[tuple[str, str, str], tuple[str, str, str]] = {}
        opened: dict[str, Open] = {}
        for trace in told.traces:
            sightings = list(trace.observed())
            one = opened[trace.id] = Open(self._webs.of(sightings[0]), messages[trace.id], sightings)
            one.web.told.append(one)
            for leg in trace.legs:
                if leg.sighting is None and leg.session is not None:
                    self._hold(leg.session, one)
                for row in leg.dns or ():
                    lookup = self._dns.at(row)
                    if lookup is not None:
                        self._hold(lookup, one)
            for item in trace.lost or ():
                self._hold(item.event, one)
            for step in trace.steps or ():
                self._hold(step.event, one)
            machines = {
                id(m): m for leg in trace.legs if leg.session is not None for m in (leg.client, leg.server) if m is not None
            }
            one.ips = tuple(machine.ips[0] for machine in machines.values())
        for leg, machine, held in told.evidence:
            if leg.trace is not None:
                evidence = opened[leg.trace.id].evidence
                for role, rule in held:
                    evidence.append(same.setdefault(key := (machine.ips[0], role, rule), key))
        for hop in told.hops:
            if hop.server_role is not None and hop.basis == "observed":
                opened[hop.trace_id].waits.append((hop.server_role, hop.accept_s, hop.queue_s))
        self._dns.learn(told)

    def _hold(self, event: object, one: Open) -> None:
        one.events.append(event)
        self._holder[id(event)] = one

    def _release(self, messages: Iterable[Open]) -> None:
        """What these were told with is nobody's again."""
        for one in messages:
            for event in one.events:
                if self._holder.get(id(event)) is one:
                    del self._holder[id(event)]
                    if isinstance(event, Transaction):
                        self._dns.free(event)

    def _elsewhere(self, webs: Iterable[Web]) -> Elsewhere:
        ends = set(self._ends_before)
        claims = set(self._claims_before)
        for web in webs:
            ends |= web.ends
            claims |= web.claims
        return Elsewhere(ends, claims)

    def _touched(self) -> Iterator[Web]:
        """Webs told before that what has come since may be about."""
        notices: dict[str, list[int]] = {}
        names: set[tuple[object, ...]] = set()
        opaque: dict[int, list[tuple[int, int]]] = {}
        tries: set[str] = set()
        asking: dict[str, list[int]] = {}
        for event in self._news:
            if isinstance(event, Sighting):
                asking.setdefault(event.session.client_ip, []).append(event.session.connection.ts)
            elif isinstance(event, MailboxEvent):
                web = self._webs.about(event.message_id) if event.message_id is not None else None
                if web is not None:
                    yield web
                names.update(_names(event))
                if event.event == "notified":
                    notices.setdefault(event.session.server_ip, []).append(event.ts)
            elif isinstance(event, Attempt):
                tries.add(event.orig_ip)
            elif event.visibility == "opaque":
                span = event.connection.ts - _CLOCK, event.connection.ts_last + _CLOCK
                opaque.setdefault(hash(event.stated_client_ip or event.client_ip), []).append(span)
            elif event.protocol in ("smtp", "lmtp"):
                tries.add(event.client_ip)
        yield from self._contested(asking)
        if not (names or notices or opaque or tries):
            return
        for web in self._webs:
            if web.changed:
                continue
            if (
                (names and any(not names.isdisjoint(_names(s)) for s in web.sightings if s.kind != "transaction"))
                or (notices and any(_may_be_noticed(s, notices) for s in web.sightings))
                or (tries and any(_has_part(s, tries) for s in web.sightings) and not _all_decided(web))
                or (opaque and _passed_in(web, opaque))
            ):
                yield web

    def _contested(self, asking: dict[str, list[int]]) -> Iterator[Web]:
        """Webs told with a lookup that may rather have been for a connection that we know of only now."""
        since = min((ts for times in asking.values() for ts in times), default=0) - _SOON
        for t in reversed(self.lookups):
            ts = t.ts or t.ts_reply or since
            if ts < since:
                break
            if id(t) in self._holder and any(ts <= began <= ts + _SOON for began in asking.get(t.client_ip, ())):
                yield self._holder[id(t)].web

    # what is open

    def open_messages(self) -> Iterator[Message]:
        """Rows of the messages that are not over, as of the last telling."""
        return (one.message for web in self._webs for one in web.told)

    def waits(self) -> Iterator[tuple[str, float | None, float | None]]:
        """Server's role, accept_s and queue_s of their hops."""
        return (wait for web in self._webs for one in web.told for wait in one.waits)

    def hosts_before(self) -> set[str]:
        """Ids of hosts that had part in finished messages."""
        return {host.host_id for host in self._hosts_before.values()}

    def dns_rows(self) -> list[Transaction]:
        """Rows of the lookups that are not finished, as of the last telling."""
        return [self._dns.row(t) for t in self.lookups]

    # out

    def settle(self, now: int) -> Iterator[tuple[str, Any]]:
        """(table, row) of what is over at `now` (capture time); it is forgotten.  To be read to its end.

        What came since the last `retell` stays.
        """
        over, early = self._over(now)
        self._let_go_old(now)
        if early:
            last = max((one.message.ts_last or 0 for one in over), default=None)
            detail = f"{early:,} messages; a later hop or retrieval of theirs is told as another message"
            yield "anomalies", Anomaly(last, "", None, None, "traces_finished_early", detail, None)
        for some in _slices(over, self.limits.story_part):
            yield from self._last_told(some)
        lookups = self._old_lookups(now)
        for t in lookups:
            yield "dns", self._dns.row(t)
        self._forget_lookups(lookups)
        yield from self._settle_hosts(now)
        if len(self._digester) > 2 * self._held_trails + _SPARE:
            self._digester.forget_all_but(self._webs.sightings())
            self._held_trails = len(self._digester)

    def _last_told(self, over: list[Open]) -> Iterator[tuple[str, Any]]:
        """Rows of messages that are over, told for the last time and with nothing but what is theirs."""
        leaving = [s for one in over for s in one.sightings]
        events = {id(event): event for one in over for event in one.events if self._holder.get(id(event)) is one}
        gone = set(map(id, leaving))
        elsewhere = self._elsewhere(web for web in self._webs if gone.isdisjoint(map(id, web.sightings)))
        touched = {id(one.web): one.web for one in over}.values()
        others = ends_of_all(s for web in touched for s in web.sightings if id(s) not in gone)
        elsewhere = replace(elsewhere, ends={*elsewhere.ends, *others})
        story = Story(self.limits, True, elsewhere, self._dns.begin(events, only=True))
        self._introduce_before(story)
        for ended in self._ended.values():
            story.hosts.introduce(ended.info)
        for event in events.values():
            if isinstance(event, SessionInfo):
                story.lend(event)
            elif not isinstance(event, Transaction):
                story.feed(event)
        for s in leaving:
            story.feed(s)
        told = story.finish()
        self._dns.bind(told)
        for table in BY_MESSAGE:
            for row in getattr(told, table):
                yield table, row
        for row in told.anomalies:
            if row.trace_id is not None or row.session_id is not None:
                yield "anomalies", row
        lookups = [event for event in events.values() if isinstance(event, Transaction)]
        for t in lookups:
            yield "dns", self._dns.row(t)
        self._remember(_of_mail(host) for host in told.hosts if host.messages)
        self.let_go(told)
        self._mailbox = deque(event for event in self._mailbox if id(event) not in events)
        self._tries = deque(event for event in self._tries if id(event) not in events)
        self._carried_by.update(event.session_id for event in events.values() if isinstance(event, SessionInfo))
        self._forget(over, leaving)
        self._forget_lookups(lookups)

    def _settle_hosts(self, now: int) -> Iterator[tuple[str, Any]]:
        """Count the sessions that nobody will ask for; rows of the hosts that are too many."""
        hosts = Hosts(self.limits)
        for info in self._old_sessions(now):
            hosts.session(info)
        self._remember(hosts.rows())
        gone = self._too_many_hosts()
        for host in gone:
            yield "hosts", host
        if gone:
            detail = f"{len(gone):,} hosts; should they come back, they have another row"
            yield "anomalies", Anomaly(now, "", None, None, "hosts_finished_early", detail, None)

    def _over(self, now: int) -> tuple[list[Open], int]:
        """Messages that are finished, and how many of them only because too much is held."""
        limits = self.limits
        over: list[Open] = []
        waiting: list[tuple[bool, int, str, list[Open]]] = []
        for web in self._webs:
            if web.changed:
                continue
            for unit in [web.told] if len(web.sightings) <= _WEB else [[one] for one in web.told]:
                idle, decided = [], True
                for one in unit:
                    known = one.message.outcome in DECIDED
                    silent = now - (one.message.ts_last or one.message.ts_first or now)
                    idle.append(silent - (limits.live_decided_idle if known else limits.queue_lifetime))
                    decided &= known
                if all(beyond > 0 for beyond in idle):
                    over += unit
                else:
                    silent = min(now - (one.message.ts_last or one.message.ts_first or now) for one in unit)
                    waiting.append((not decided, -silent, unit[0].message.trace_id, unit))
        count = self._webs.count - sum(len(one.sightings) for one in over)
        octets = self._webs.octets - sum(octets_of(one.sightings) for one in over)
        early = 0
        if count > limits.live_traces or octets > limits.live_held_bytes:
            for *_, unit in sorted(waiting, key=lambda item: item[:3]):
                if count <= limits.live_traces // _LEFT and octets <= limits.live_held_bytes // _LEFT:
                    break
                count -= sum(len(one.sightings) for one in unit)
                octets -= sum(octets_of(one.sightings) for one in unit)
                over += unit
                early += len(unit)
        return over, early

    def _old_lookups(self, now: int) -> list[Transaction]:
        """DNS rows that are old, or too many, and of no open message."""
        most, age = self.limits.live_lookups, self.limits.live_lookup_age
        excess = len(self.lookups) - most
        excess += most // _LEFT if excess > 0 else 0
        gone: list[Transaction] = []
        for i, t in enumerate(self.lookups):
            old = now - (t.ts or t.ts_reply or now) > age
            if (old or i < excess) and (id(t) not in self._holder or len(self.lookups) - len(gone) > most):
                gone.append(t)
        return gone

    def _forget_lookups(self, lookups: list[Transaction]) -> None:
        if lookups:
            gone = set(map(id, lookups))
            self.lookups = deque(t for t in self.lookups if id(t) not in gone)
            for key in gone:
                self._holder.pop(key, None)
            self._dns.forget(gone, self.lookups)

    def _old_sessions(self, now: int) -> list[SessionInfo]:
        """Take out sessions that no open message needs and none will need."""
        needed = {s.session.session_id for s in self._webs.sightings()}
        ended, age = self._ended, self.limits.live_decided_idle
        excess = len(ended) - len(needed) - self.limits.idle_connections
        sessions: list[SessionInfo] = []
        for session_id in [session_id for session_id in ended if session_id not in needed]:
            info = ended[session_id].info
            free = id(info) not in self._holder and (now - info.connection.ts_last > age or excess > 0)
            if free or session_id in self._carried_by or (info.messages and info.visibility != "opaque"):
                sessions.append(ended.pop(session_id).info)
                excess -= 1
        self._carried_by.clear()
        return sessions

    def _let_go_old(self, now: int) -> None:
        """Mailbox events and attempts that are old and of no open message."""
        age, holder = self.limits.live_decided_idle, self._holder
        self._mailbox = deque(e for e in self._mailbox if now - e.ts <= age or id(e) in holder)
        self._tries = deque(e for e in self._tries if now - e.ts <= age or id(e) in holder)

    def _forget(self, over: list[Open], leaving: list[Sighting]) -> None:
        limits = self.limits
        self._release(over)
        of_web: dict[int, tuple[Web, list[Sighting]]] = {}
        for one in over:
            of_web.setdefault(one.web.number, (one.web, []))[1].extend(one.sightings)
        gone = set(map(id, over))
        for web, sightings in of_web.values():
            staying = [one for one in web.told if id(one) not in gone]
            self._webs.remove(web, sightings)
            for one in staying:
                one.web = self._webs.of(one.sightings[0])
                one.web.told.append(one)
                one.web.ends |= ends_of_all(one.sightings)
                one.web.changed = False
            _keep_latest(self._claims_before, web.claims, limits.live_hosts)
        _keep_latest(self._ends_before, ends_of_all(leaving), limits.live_hosts)

    def _remember(self, hosts: Iterable[Host]) -> None:
        """Add hosts to those of before."""
        before = self._hosts_before
        for host in _joined_with(before, hosts):
            kept = host._replace(evidence=list(map(self._share, host.evidence)))
            for ip in host.ips:
                before[ip] = kept

    def _too_many_hosts(self) -> list[Host]:
        """Take out the longest silent of too many hosts."""
        before, most = self._hosts_before, self.limits.live_hosts
        if len(before) <= most:
            return []
        rows = list({id(host): host for host in before.values()}.values())
        rows.sort(key=lambda host: (host.ts_last or 0, host.host_id))
        gone = rows[: len(rows) - most + most // _LEFT]
        for host in gone:
            for ip in host.ips:
                before.pop(ip, None)
        return gone

    def _share(self, item: dict[str, Any]) -> dict[str, Any]:
        key = (item["role"], item["rule"], item["count"])
        return self._shared.setdefault(key, item) if item["count"] <= _FEW else item


class _Dns:
    """The lookups of `dns` rows that are not finished: fed once, bound anew in each telling."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lookups = Lookups(limits)
        self._rows: list[Transaction | None] = []
        """By row; None: the row of `dns` is finished."""
        self._bound: dict[int, tuple[str, int]] = {}
        """By id: trace and hop."""
        self._roles: tuple[dict[str, str], dict[str, str]] = {}, {}
        self.fresh = False
        """There are some that no telling has seen."""

    def feed(self, lookups: Iterable[Transaction]) -> None:
        """Some more."""
        self.fresh = True
        self._rows += self._lookups.feed(lookups)

    def begin(self, held: Container[int], only: bool = False) -> Lookups:
        """They are to be bound: those whose ids are not in `held`; with `only`, none but those."""
        elsewhere = {row for row, t in enumerate(self._rows) if t is None or (id(t) in held) is not only}
        self._lookups.begin(elsewhere)
        return self._lookups

    def at(self, row: int) -> Transaction | None:
        """The lookup of a row."""
        return self._rows[row]

    def learn(self, told: Told) -> None:
        """Keep what a telling made of them."""
        self.fresh = False
        self._roles = told.client_roles, told.server_roles
        self.bind(told)

    def bind(self, told: Told) -> None:
        """Keep which hop each served."""
        for row, leg in told.lookups.bound.items():
            t = self._rows[row]
            if t is not None and leg.trace is not None:
                self._bound[id(t)] = leg.trace.id, leg.number

    def free(self, t: Transaction) -> None:
        """It serves no hop any more."""
        self._bound.pop(id(t), None)

    def row(self, t: Transaction) -> Transaction:
        """Its row with what it was for."""
        trace_id, hop = self._bound.get(id(t), (None, None))
        client_roles, server_roles = self._roles
        return t._replace(
            trace_id=trace_id, hop=hop, client_role=client_roles.get(t.client_ip), server_role=server_roles.get(t.server_ip)
        )

    def forget(self, ids: Collection[int], left: Collection[Transaction]) -> None:
        """Rows that are finished; when most are, the others are put into new columns."""
        self._rows = [None if id(t) in ids else t for t in self._rows]
        for key in ids:
            self._bound.pop(key, None)
        if len(self._rows) > 2 * len(left) + _SPARE:
            asked = self._lookups.asked
            self._lookups, self._rows = Lookups(self._limits), []
            self.feed(left)
            self._lookups.flush()
            self._lookups.asked = asked  # each was counted when it came


def _slices(over: list[Open], size: int) -> Iterator[list[Open]]:
    """Messages some sightings at a time, those of one web together unless they leave one by one."""
    some: list[Open] = []
    count = 0
    for one in over:
        if some and count >= size and some[-1].web is not one.web:
            yield some
            some, count = [], 0
        some.append(one)
        count += len(one.sightings)
    if some:
        yield some


def _keep_latest(where: dict[Any, None], new: Iterable[Any], most: int) -> None:
    for item in new:
        where.pop(item, None)
        where[item] = None
    if len(where) > most:
        for item in list(where)[: len(where) - most + most // _LEFT]:
            del where[item]


def _names(one: MailboxEvent | Sighting) -> Iterator[tuple[object, ...]]:
    """What a message in a mailbox is known by."""
    session = one.session
    owner = (session.server_ip, session.auth_user.lower() if session.auth_user else session.session_id)
    if one.uid is not None:
        yield (*owner, one.mailbox, one.uidvalidity, one.uid)
    if one.uidl is not None:
        yield (*owner, one.uidl)
    if one.number is not None:
        yield (session.session_id, one.mailbox, one.number)


def _may_be_noticed(s: Sighting, notices: dict[str, list[int]]) -> bool:
    """Whether a notice that a message has arrived may be about this one."""
    times = notices.get(s.session.server_ip)
    return bool(times) and s.kind == "transaction" and any(abs(ts - (s.ts_end or s.ts)) <= _JUST for ts in times or ())


def _has_part(s: Sighting, ips: set[str]) -> bool:
    return s.session.client_ip in ips or s.session.server_ip in ips


def _all_decided(web: Web) -> bool:
    return all(one.message.outcome in DECIDED for one in web.told)


_NOBODY = hash(None)


def _passed_in(web: Web, opaque: dict[int, list[tuple[int, int]]]) -> bool:
    """Whether trace fields tell of a hand-over that one of these sessions may have carried."""
    known = web.passed & opaque.keys()
    if not known and _NOBODY not in web.passed:
        return False
    for s in web.sightings:
        for trail in s.trail or ():
            field = trail.field
            if field.ts is None or (field.ip is not None and hash(field.ip) not in known):
                continue
            spans = opaque[hash(field.ip)] if field.ip is not None else chain.from_iterable(opaque.values())
            if any(first <= field.ts <= last for first, last in spans):
                return True
    return False


def _of_mail(host: Host) -> Host:
    """A host without what it is as a name server: that is counted over the whole capture."""
    return host._replace(
        roles=[role for role in host.roles if role not in _NAME_SERVERS],
        evidence=[item for item in host.evidence if item["role"] not in _NAME_SERVERS],
    )


_NAME_SERVERS = ("resolver", "authoritative")


def _joined_with(before: dict[str, Host], hosts: Iterable[Host]) -> Iterator[Host]:
    """Hosts, each with what was known of it before."""
    for host in hosts:
        mine = host
        for old in {id(before[ip]): before[ip] for ip in host.ips if ip in before}.values():
            mine = _joined(old, mine)
        yield mine


def _merged(before: dict[str, Host], hosts: Iterable[Host]) -> list[Host]:
    """Hosts of before and of now, those with a common address being one."""
    by_ip = dict(before)
    for host in hosts:
        mine = host
        for old in {id(by_ip[ip]): by_ip[ip] for ip in host.ips if ip in by_ip}.values():
            mine = _joined(old, mine)
        for ip in mine.ips:
            by_ip[ip] = mine
    return list({id(host): host for host in by_ip.values()}.values())


def _joined(a: Host, b: Host) -> Host:
    counts: Counter[tuple[str, str]] = Counter()
    for item in chain(a.evidence, b.evidence):
        counts[item["role"], item["rule"]] += item["count"]
    ips = sorted({*a.ips, *b.ips}, key=_address_place)
    times: Iterator[tuple[Callable[..., int], list[int]]] = iter(
        (
            (min, [t for t in (a.ts_first, b.ts_first) if t is not None]),
            (max, [t for t in (a.ts_last, b.ts_last) if t is not None]),
        )
    )
    first, last = (choose(known) if known else None for choose, known in times)
    return Host(
        host_id=a.host_id if ips[0] == min(a.ips, key=_address_place) else b.host_id,
        ips=ips,
        names=sorted({*a.names, *b.names})[:_NAMES],
        roles=[role for role in ROLES if role in a.roles or role in b.roles],
        evidence=[
            {"role": role, "rule": rule, "count": count}
            for (role, rule), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ],
        software=a.software or b.software,
        ts_first=first,
        ts_last=last,
        sessions=a.sessions + b.sessions,
        messages=a.messages + b.messages,
    )


def _address_place(ip: str) -> tuple[bool, str]:
    return (":" in ip, ip)
