"""The story of a live capture: told while it goes on, and forgotten piece by piece.

Rules
1. What came from sessions is kept until the message it belongs to is finished.  `retell` tells the webs of messages to which
   something came since the last telling, with an eye on what is known of the others (`Elsewhere`); what another message has
   been told with (a lookup, a failed connection, an opaque session, a mailbox event) stays that one's.
2. A message that has been silent for a while rests (`mail/rest.py`): on disk, to be told anew when something comes that may be
   about it.  It is finished when its fate is known and it has been silent for `Limits.live_decided_idle`, or silent for
   `Limits.queue_lifetime`; or when more rests than the limits allow: then the longest silent, decided ones first.  Its rows are
   those of its last telling.
3. Each event leaves once.  What the leaving ones say of hosts is added to the hosts of before, so nothing is counted twice.
4. `tell` and `finish` tell all that is held, at once: where nothing was forgotten, that is what a file's story is.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Hashable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from analyzer.limits import Limits
from analyzer.mail.archive import Claim
from analyzer.mail.book import Book, fold
from analyzer.mail.hops import Trace
from analyzer.mail.hosts import Hosts, Machine
from analyzer.mail.known import KnownHosts, hosts_of, mentioned
from analyzer.mail.lookups import Lookups
from analyzer.mail.records import Message
from analyzer.mail.rest import Rest, Resting, names_of
from analyzer.mail.sightings import Sighting
from analyzer.mail.story import BY_MESSAGE, Each, Elsewhere, Part, Rows, Story, Told, alone, unravel
from analyzer.mail.tries import SMTP_PORTS, Way, held_spans
from analyzer.mail.webs import Open, Said, Web, Webs, ends_of_all, octets_of, packed_rows, ties_of
from analyzer.protocols.base import MailboxEvent, MessageCarried, SessionEnded, SessionInfo
from analyzer.protocols.dns import Transaction
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Attempt

DECIDED = frozenset({"delivered", "rejected", "bounced", "aborted"})
"""Fates after which only retrievals are to be expected."""
_LEFT = 2
"""When too much is held, so much less is left: 1/2, so that it does not happen at each telling."""
_FORCE = 1.25
"""Share of a limit at which a telling cannot wait."""
_FRESH = 4
"""Share of `Limits.live_awake`, 1/4, that may have come since the last telling: then another cannot wait."""
_WAITS = 500
"""Hops of messages out of the way whose times are kept for the watch screen."""
_TRY = 8
"""Crossings that are told anew with a failed connection or an opaque session, more or less."""
_HURRY = 5
"""Times as much that is told at a time by whoever is behind: each telling has a cost of its own."""
_WEB = 64
"""Sightings of a web beyond which it does not rest and its messages leave one by one."""
_REST_PART = 4
"""Share of `Limits.story_part`, 1/4, that is put to rest at a time."""
_RESTED = 8
"""Where too much is awake, or too many lookups are held, so much less is left, 1/8: it does not happen at each telling."""
_FINISHED = 40
"""Where too much rests, so much less is left, 1/40."""
_SPARE = 1000
"""So much more than what is held is remembered of trace fields and lookups, before it is weeded out."""
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
        self._rest = Rest(limits)
        self._rested_dns: list[tuple[str, list[Transaction]]] = []
        """Rows of `dns` of messages that have just been put to rest."""
        self._dns = _Dns(limits)
        self._ended: dict[str, SessionInfo] = {}
        self._counted: set[str] = set()
        """Sessions among them that are counted with their hosts already: their message was taken back."""
        self._going_on: dict[str, SessionInfo] = {}
        """Sessions of messages and mailbox events that have not ended."""
        self._mailbox: deque[MailboxEvent] = deque()
        self._tries: deque[Attempt] = deque()
        self._holder: dict[int, Open] = {}
        """By id of a lookup, session, attempt or mailbox event: the message that has been told with it."""
        self._news: deque[Any] = deque()
        """Came since the last telling and may change what was told: sightings, sessions, attempts, mailbox events."""
        self._woken: list[Sighting] = []
        """Of each web taken back since then."""
        self._arrived = 0
        """Sightings among them."""
        self._known = KnownHosts(limits)
        """Hosts of messages that are finished or rest."""
        self._claims_before: dict[Claim, None] = {}
        self._held_trails = 0
        self._waits_before: deque[tuple[str, float | None, float | None]] = deque(maxlen=_WAITS)
        """`waits` of the latest that rest or are finished."""
        self._carried_by: set[str] = set()
        """Sessions that finished messages were told with."""
        self._lost: Counter[str] = Counter()
        self.last_messages: list[Message] = []
        """Messages that were still open at the end."""
        self.fresh = False
        """Something was fed since the last telling."""
        self.behind = False
        """More waits to be analyzed than is wanted: time is worth more than memory."""

    # in

    def feed(self, event: Any) -> None:
        """Keep an event."""
        self.fresh = True
        kind = type(event)
        if kind is MessageCarried:
            sighting = self._digester.sighting(event)
            ties = ties_of(sighting, self.limits)
            self._going_on[event.session.session_id] = event.session
            self._take_back(self._rest.joined_by(ties))
            self._webs.add(sighting, ties)
            self._news.append(sighting)
            self._arrived += 1
            self.on_carried(event)
        elif kind is SessionEnded:
            self._going_on.pop(event.info.session_id, None)
            self._ended[event.info.session_id] = event.info
            if event.info.visibility == "opaque" or not event.info.messages:
                self._news.append(event.info)
        elif kind is MailboxEvent:
            self._going_on[event.session.session_id] = event.session
            self._keep(self._mailbox, event, self.limits.live_mailbox_events, "mailbox_events_dropped")
        elif kind is Attempt:
            self._keep(self._tries, event, self.limits.live_idle_sessions, "attempts_dropped")

    def look(self, lookups: Iterable[Transaction]) -> None:
        """Keep DNS questions and their answers."""
        self.fresh = True
        lookups = list(lookups)
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
        """So much has come, or is held, that a telling cannot wait."""
        limits = self.limits
        many = self.at_a_time if self.behind else min(limits.live_told, limits.live_awake // _FRESH)
        return self._arrived > many or self.crowded

    @property
    def at_a_time(self) -> int:
        """Crossings and events told anew at a time."""
        return self.limits.live_told * (_HURRY if self.behind else 1)

    @property
    def crowded(self) -> bool:
        """So much is held that some has to leave."""
        limits = self.limits
        return (
            self._webs.count > _FORCE * min(limits.live_awake, limits.live_traces)
            or self._webs.octets > _FORCE * limits.live_held_bytes
            or len(self.lookups) > _FORCE * limits.live_lookups
            or len(self._ended) > _FORCE * (limits.live_idle_sessions + limits.live_awake)
        )

    @property
    def held(self) -> int:
        """Crossings of messages held."""
        return self._webs.count + self._rest.count

    # told whole

    def tell(self, asked: Collection[str] = ()) -> Told:
        """The story of all that is held, with every host there has been."""
        self._wake(self._webs.sightings())
        story = Story(self.limits, True, Elsewhere(list(self._known.ends()), set(self._claims_before)), self._dns.begin(()))
        self._introduce_before(story)
        self._feed_sessions(story, ())
        for event in chain(self._webs.sightings(), self._mailbox, self._tries):
            story.feed(event)
        told = story.finish(asked)
        told.first = replace(told.first, messages=list(told.messages), hops=list(told.hops))
        if len(self._known):
            hosts = list(told.hosts)
            told.hosts = Rows(lambda: self._known.merged_with(hosts))
        return told

    def finish(self, asked: Collection[str] = (), each: Each = alone) -> Told:
        """Nothing more will come: the story of what is still held; what was dropped on the way is counted.

        Where much rests it has been told: its rows are `resting_rows`.
        """
        if self.held <= self.limits.story_sightings:
            self._take_back(self._rest.numbers())
        told = self.tell(asked)
        self.last_messages = list(told.messages)
        for name, count in sorted(self._lost.items()):
            told.anomalies.append(Anomaly(None, "", None, None, name, f"{count:,} beyond the limit", None))
        return told

    def _introduce_before(self, story: Story) -> None:
        for one in self._known:
            for ip in one.host.ips:
                story.hosts.of(ip).call(one.host.names)

    def _wake(self, sightings: Iterable[Sighting]) -> None:
        """Have those hosts in memory that a telling may speak of."""
        self._known.wake(*mentioned(list(sightings), self._ended.values()))

    # told in part

    def retell(self) -> Told | None:
        """The story of what has changed since it was told last, and the hosts that are not finished; None: nothing has.

        Where much has changed, of the first of it: `fresh` tells whether more is to be told.  To be let go of (`let_go`) when
        its rows have been taken.
        """
        news = self._next_news()
        for web in self._touched(news):
            web.changed = True
            self._woken.append(web.sightings[0])
        of_news = (event for event in news if isinstance(event, Sighting))
        changed = list({web.number: web for web in map(self._webs.of, chain(of_news, self._woken)) if web.changed}.values())
        self._woken.clear()
        self.fresh = bool(self._news)
        if not changed and not self._dns.fresh:
            return None
        telling = {web.number for web in changed}
        for web in changed:
            self._release(web.told)
            web.told = []
            web.ends = ends_of_all(web.sightings)
        others = [web for web in self._webs if web.number not in telling]
        evidence: Counter[tuple[str, str, str]] = Counter()
        messages: Counter[str] = Counter()
        for one in chain.from_iterable(web.told for web in others):
            said = one.said()
            evidence.update(said.evidence)
            messages.update(said.ips())
        self._wake(s for web in changed for s in web.sightings)
        self._known.wake(messages)
        elsewhere = replace(self._elsewhere(others), evidence=evidence, messages=messages)
        story = Story(self.limits, True, elsewhere, self._dns.begin(self._holder))
        self._introduce_before(story)
        self._feed_sessions(story, self._holder)
        for event in chain(self._mailbox, self._tries):
            if id(event) not in self._holder:
                story.feed(event)
        for web in changed:
            for s in web.sightings:
                story.feed(s)
        told = story.finish()
        told.first = Part(**{table: list(getattr(told, table)) for table in BY_MESSAGE})
        self._learn(told)
        for web in changed:
            web.changed = False
        hosts = told.hosts
        told.hosts = Rows(lambda: self._known.joined_with(hosts))
        return told

    def _next_news(self) -> list[Any]:
        """What has come, as much as is told at a time.  Whatever one event may be about is told with it."""
        news: list[Any] = []
        weight = 0
        while self._news and weight < self.at_a_time:
            event = self._news.popleft()
            news.append(event)
            if isinstance(event, Sighting):
                self._arrived -= 1
            weight += 1 if isinstance(event, Sighting | MailboxEvent) else _TRY
        return news

    def _feed_sessions(self, story: Story, held: Container[int]) -> None:
        """All sessions that have ended; of those in `held`, by id, only what they tell of hosts."""
        for session_id, info in self._ended.items():
            free = id(info) not in held
            if session_id in self._counted:
                story.hosts.introduce(info)
                if free and (info.visibility == "opaque" or (not info.messages and info.protocol in ("smtp", "lmtp"))):
                    story.lend(info)
            elif free:
                story.session(info)
            else:
                story.hosts.session(info)

    def let_go(self, told: Told) -> None:
        """Its rows have been taken."""
        unravel(told.traces)
        self._dns.begin(())

    def _learn(self, told: Told) -> None:
        """Keep what the telling says of each message, and give it what it was told with."""
        said = {row.trace_id: Said(row, [], [], []) for row in told.messages}
        opened: dict[str, Open] = {}
        for trace in told.traces:
            sightings = list(trace.observed())
            one = opened[trace.id] = Open(self._webs.of(sightings[0]), sightings)
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
            said[trace.id].machines.extend((machine.ips, machine.names) for machine in _machines_of(trace))
        for leg, machine, held in told.evidence:
            if leg.trace is not None:
                of_message, part = said[leg.trace.id], (machine.ips, machine.names)
                another = machine is not leg.client and machine is not leg.server  # it asked for the client
                if another and part not in of_message.machines:
                    of_message.machines.append(part)
                of_message.evidence.extend((machine.ips[0], role, rule) for role, rule in held)
        for hop in told.hops:
            if hop.server_role is not None and hop.basis == "observed":
                said[hop.trace_id].waits.append((hop.server_role, hop.accept_s, hop.queue_s))
        self._dns.learn(told)
        rows: dict[str, list[tuple[str, Any]]] = {name: [] for name in opened}
        for table in BY_MESSAGE:
            for row in getattr(told, table):
                rows[row.trace_id].append((table, row))
        of_session = {s.session.session_id: name for name, one in opened.items() for s in one.sightings}
        for anomaly in told.anomalies:
            owner = anomaly.trace_id or of_session.get(anomaly.session_id or "")
            if owner in rows:
                rows[owner].append(("anomalies", anomaly))
        for name, mine in rows.items():
            opened[name].keep(said[name], mine)

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
        ends = set(self._known.ends())
        claims = set(self._claims_before)
        for web in webs:
            ends |= web.ends
            claims |= web.claims
        return Elsewhere(ends, claims)

    def _take_back(self, numbers: Iterable[int]) -> None:
        """Wake webs that rest: something has come that may be about them."""
        for number in numbers:
            back = self._rest.take(number, self._digester.trails, self._session_of)
            self._known.subtract(back.evidence, back.messages)
            for s in back.sightings:
                self._webs.add(s)
            self._woken.append(back.sightings[0])
            lookups = [event for event in back.events if isinstance(event, Transaction)]
            if lookups:
                self.lookups.extendleft(lookups)
                self._dns.feed(lookups, again=True)
            for event in back.events:
                if isinstance(event, MailboxEvent):
                    self._mailbox.append(event)
                elif isinstance(event, Attempt):
                    self._tries.append(event)

    def _session_of(self, info: SessionInfo) -> SessionInfo:
        """The object that stands for a session taken back."""
        session_id = info.session_id
        known = self._ended.get(session_id) or self._going_on.get(session_id)
        if known is None:
            known = self._ended[session_id] = info
            self._counted.add(session_id)
        return known

    def _touched(self, news: Iterable[Any]) -> Iterator[Web]:
        """Webs told before that what has come since may be about; of those that rest, they are taken back."""
        notices: dict[str, list[int]] = {}
        names: set[tuple[object, ...]] = set()
        opaque: dict[int, list[tuple[int, int]]] = {}
        tries: dict[Way, list[int]] = {}
        asking: dict[str, list[Sighting]] = {}
        for event in news:
            if isinstance(event, Sighting):
                asking.setdefault(event.session.client_ip, []).append(event)
            elif isinstance(event, MailboxEvent):
                if event.message_id is not None:
                    self._take_back(self._rest.about(event.message_id))
                    web = self._webs.about(event.message_id)
                    if web is not None:
                        yield web
                names.update(names_of(event))
                if event.event == "notified":
                    notices.setdefault(event.session.server_ip, []).append(event.ts)
            elif isinstance(event, Attempt):
                self._ways(event.orig_ip, event.resp_ip, event.resp_port, event.ts, tries)
            elif event.visibility == "opaque":
                span = event.connection.ts - _CLOCK, event.connection.ts_last + _CLOCK
                opaque.setdefault(hash(event.stated_client_ip or event.client_ip), []).append(span)
            elif event.protocol in ("smtp", "lmtp"):
                began = event.connection.ts_syn or event.connection.ts
                self._ways(event.client_ip, event.server_ip, event.server_port, began, tries)
        yield from self._contested(asking)
        if not (names or notices or opaque or tries):
            return
        if len(self._rest):
            self._take_back({*self._rest.named(names), *self._rest.held_by(tries), *self._rest.passed_by(opaque)})
        trying = {ip for ip, _ in tries}
        for web in self._webs:
            if web.changed:
                continue
            if (
                (names and any(not names.isdisjoint(names_of(s)) for s in web.sightings if s.kind != "transaction"))
                or (notices and any(_may_be_noticed(s, notices) for s in web.sightings))
                or (tries and _may_have_been_tried(web, tries, trying))
                or (opaque and _passed_in(web, opaque))
            ):
                yield web

    def _ways(self, client_ip: str, server_ip: str, port: int, ts: int, tries: dict[Way, list[int]]) -> None:
        """Add by which ways a message may have been meant to go for which a connection was made in vain."""
        self._known.wake((server_ip,))
        names = {fold(info.server_name) for info in self._ended.values() if info.server_ip == server_ip and info.server_name}
        to = self._dns.book().domains_of(server_ip, names | self._known.names_of(server_ip))
        for where in (server_ip, *sorted(to), *([""] if port not in SMTP_PORTS else [])):
            tries.setdefault((client_ip, where), []).append(ts)

    def _contested(self, asking: dict[str, list[Sighting]]) -> Iterator[Web]:
        """Webs told with a lookup that may rather have been for a connection that we know of only now."""
        since = min((s.session.connection.ts for some in asking.values() for s in some), default=0) - _SOON
        names: dict[int, set[str]] = {}
        for t in reversed(self.lookups):
            ts = t.ts or t.ts_reply or since
            if ts < since:
                break
            if id(t) not in self._holder:
                continue
            for s in asking.get(t.client_ip, ()):
                if ts <= s.session.connection.ts <= ts + _SOON:
                    if id(s) not in names:
                        names[id(s)] = self._dns.may_ask(s)
                    if fold(t.qname or "") in names[id(s)]:
                        yield self._holder[id(t)].web
                        break

    # what is open

    def open_messages(self) -> Iterator[Message]:
        """Rows of the messages that are not over and do not rest, as of the last telling."""
        return (one.said().message for web in self._webs for one in web.told)

    def resting_messages(self) -> Iterator[Message]:
        """Rows of the first messages that rest while their fate is not known."""
        return self._rest.undecided()

    @property
    def resting_outcomes(self) -> Counter[str]:
        """Messages that rest, by outcome."""
        return self._rest.outcomes

    def resting_rows(self) -> Iterator[tuple[str, Any]]:
        """(table, row) of all messages that rest, as they would leave."""
        return self._rest.all_rows()

    def traces(self) -> Any:
        """Hashes of the ids of all messages that are not over, as a numpy column."""
        awake = np.array([hash(one.trace_id) for web in self._webs for one in web.told], np.int64)
        return np.concatenate((awake, self._rest.traces()))

    def waits(self) -> Iterator[tuple[str, float | None, float | None]]:
        """Server's role, accept_s and queue_s of their hops, and of the latest before them."""
        return chain(self._waits_before, (wait for web in self._webs for one in web.told for wait in one.said().waits))

    def hosts_before(self) -> Any:
        """Hashes of the ids of hosts that had part in finished messages, as a numpy column."""
        return self._known.ids()

    def dns_rows(self) -> Iterator[tuple[Hashable, list[Transaction]]]:
        """Rows of the lookups that are not finished, those that have changed since asked last, each with what stands for it;
        and of those newly at rest, by message."""
        changed, self._dns.changed = self._dns.changed, set()
        rested, self._rested_dns = self._rested_dns, []
        yield from ((id(t), [self._dns.row(t)]) for t in self.lookups if id(t) in changed)
        yield from rested

    def dns_open(self) -> Any:
        """Hashes of whose rows of `dns_rows` are not over, as a numpy column."""
        return np.concatenate((np.array([hash(id(t)) for t in self.lookups], np.int64), self._rest.traces()))

    # out

    def settle(self, now: int) -> Iterator[tuple[str, Any]]:
        """(table, row) of what is over at `now` (capture time); it is forgotten.  To be read to its end.

        What came since the last `retell` stays.  Messages that have been silent for a while are put to rest.
        """
        self._let_go_old(now)
        self._rested_dns = []
        for some in _slices(self._silent(now), max(self.limits.story_part // _REST_PART, 1)):
            self._put_to_rest(some)
        over, early = self._over(now)
        over_resting, crowded = self._over_resting(now)
        if early or crowded:
            last = max((one.last for one in over), default=now)
            detail = f"{early + crowded:,} messages; a later hop or retrieval of theirs is told as another message"
            yield "anomalies", Anomaly(last, "", None, None, "traces_finished_early", detail, None)
        for number in over_resting:
            yield from self._rest.rows(number)
            self._rest.drop(number)
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
        """Rows of messages that are over; they are forgotten."""
        for one in over:
            yield from self._rows_of(one)
        self._let_go_of(over)

    def _put_to_rest(self, over: list[Open]) -> None:
        """Put webs out of the way."""
        webs = {one.web.number: one.web for one in over}
        resting = []
        for web in webs.values():
            mine = Resting(list(web.sightings))
            for one in web.told:
                mine.events += self._its_own(one)
                said = one.said()
                mine.evidence.update(said.evidence)
                mine.messages.update(said.ips())
                mine.rows.append(one.packed)
            resting.append((web, mine, _all_decided(web)))
            lookups = [self._dns.row(event) for event in mine.events if isinstance(event, Transaction)]
            if lookups:
                mine.rows.append(packed_rows([("dns", row) for row in lookups]))
                self._rested_dns.append((web.told[0].trace_id, lookups))
        self._rest.put(resting)
        self._let_go_of(over)

    def _its_own(self, one: Open) -> list[Any]:
        """What a message was told with and no other has taken since."""
        return [event for event in one.events if self._holder.get(id(event)) is one]

    def _rows_of(self, one: Open) -> Iterator[tuple[str, Any]]:
        """Rows of a message as it was told last."""
        yield from one.rows()
        for event in self._its_own(one):
            if isinstance(event, Transaction):
                yield "dns", self._dns.row(event)

    def _let_go_of(self, over: list[Open]) -> None:
        """Their rows have been taken: forget them, but for what they say of hosts."""
        events = {id(event): event for one in over for event in self._its_own(one)}
        said = [one.said() for one in over]
        self._known.add(hosts_of(said))
        self._waits_before.extend(wait for one in said for wait in one.waits)
        self._mailbox = deque(event for event in self._mailbox if id(event) not in events)
        self._tries = deque(event for event in self._tries if id(event) not in events)
        self._carried_by.update(event.session_id for event in events.values() if isinstance(event, SessionInfo))
        lookups = [event for event in events.values() if isinstance(event, Transaction)]
        self._forget(over)
        self._forget_lookups(lookups)

    def _settle_hosts(self, now: int) -> Iterator[tuple[str, Any]]:
        """Count the sessions that nobody will ask for; rows of the hosts that are too many."""
        hosts = Hosts(self.limits)
        for info in self._old_sessions(now):
            hosts.session(info)
        self._known.add(hosts.rows())
        gone = self._known.settle()
        for host in gone:
            yield "hosts", host
        if gone:
            detail = f"{len(gone):,} hosts; should they come back, they have another row"
            yield "anomalies", Anomaly(now, "", None, None, "hosts_finished_early", detail, None)

    def _silent(self, now: int) -> list[Open]:
        """Messages to be put to rest: silent for a while, or the longest silent where many are awake."""
        limits = self.limits
        patience = min(limits.live_awake_idle, limits.live_decided_idle, limits.queue_lifetime)
        chosen: list[Web] = []
        others: list[tuple[int, int, Web]] = []
        for web in self._webs:
            if not web.changed and len(web.sightings) <= _WEB:
                silent = min(now - one.last for one in web.told)
                if silent > patience:
                    chosen.append(web)
                else:
                    others.append((-silent, web.number, web))
        most, most_octets = min(limits.live_awake, limits.live_traces), limits.live_held_bytes
        count = self._webs.count - sum(len(web.sightings) for web in chosen)
        octets = self._webs.octets - sum(web.octets for web in chosen)
        if count > most or octets > most_octets:
            for *_, web in sorted(others, key=lambda item: item[:2]):
                if count <= most - most // _RESTED and octets <= most_octets - most_octets // _RESTED:
                    break
                count -= len(web.sightings)
                octets -= web.octets
                chosen.append(web)
        return [one for web in chosen for one in web.told]

    def _over_resting(self, now: int) -> tuple[list[int], int]:
        """Webs that rest and are finished; and how many messages of them only because too much is held."""
        limits, rest = self.limits, self._rest
        over = rest.over(now)
        crossings = rest.count - limits.live_traces
        octets = rest.octets - limits.live_resting_bytes
        if crossings <= 0 and octets <= 0:
            return over, 0
        spare = (limits.live_traces // _FINISHED, limits.live_resting_bytes // _FINISHED)
        early = [n for n in rest.longest_silent(crossings + spare[0], octets + spare[1]) if n not in set(over)]
        return over + early, sum(map(rest.messages, early))

    def _over(self, now: int) -> tuple[list[Open], int]:
        """Messages of large webs that are finished, and how many of them only because too much is held."""
        limits = self.limits
        over: list[Open] = []
        waiting: list[tuple[bool, int, str, Open]] = []
        for web in self._webs:
            if web.changed or len(web.sightings) <= _WEB:
                continue
            for one in web.told:
                decided = one.outcome in DECIDED
                silent = now - one.last
                if silent > (limits.live_decided_idle if decided else limits.queue_lifetime):
                    over.append(one)
                else:
                    waiting.append((not decided, -silent, one.trace_id, one))
        most = min(limits.live_awake, limits.live_traces)
        count = self._webs.count - sum(len(one.sightings) for one in over)
        octets = self._webs.octets - sum(octets_of(one.sightings) for one in over)
        early = 0
        if count > most or octets > limits.live_held_bytes:
            for *_, one in sorted(waiting, key=lambda item: item[:3]):
                if count <= most // _LEFT and octets <= limits.live_held_bytes // _LEFT:
                    break
                count -= len(one.sightings)
                octets -= octets_of(one.sightings)
                over.append(one)
                early += 1
        return over, early

    def _old_lookups(self, now: int) -> list[Transaction]:
        """DNS rows that are old, or too many, and of no open message."""
        most, age = self.limits.live_lookups, self.limits.live_lookup_age
        excess = len(self.lookups) - most
        excess += most // _RESTED if excess > 0 else 0
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
        excess = len(ended) - len(needed) - self.limits.live_idle_sessions
        sessions: list[SessionInfo] = []
        for session_id in [session_id for session_id in ended if session_id not in needed]:
            info = ended[session_id]
            patience = age if info.visibility == "opaque" else min(age, self.limits.live_attempt_age)
            free = id(info) not in self._holder and (now - info.connection.ts_last > patience or excess > 0)
            if free or session_id in self._carried_by or (info.messages and info.visibility != "opaque"):
                del ended[session_id]
                excess -= 1
                if session_id in self._counted:
                    self._counted.discard(session_id)
                else:
                    sessions.append(info)
        self._carried_by.clear()
        return sessions

    def _let_go_old(self, now: int) -> None:
        """Mailbox events and attempts that are old and of no open message."""
        age, holder = self.limits.live_decided_idle, self._holder
        self._mailbox = deque(e for e in self._mailbox if now - e.ts <= age or id(e) in holder)
        age = min(age, self.limits.live_attempt_age)
        self._tries = deque(e for e in self._tries if now - e.ts <= age or id(e) in holder)

    def _forget(self, over: list[Open]) -> None:
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
            _keep_latest(self._claims_before, web.claims, self.limits.live_claims)
        self._known.pass_on(ends_of_all(s for one in over for s in one.sightings))


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
        self.changed: set[int] = set()
        """Ids of those whose rows have become others."""

    def feed(self, lookups: Collection[Transaction], again: bool = False) -> None:
        """Some more, or some that were here before."""
        self.fresh = True
        if again:
            self._lookups.flush()
            asked, self._lookups.asked = self._lookups.asked, {}
        self.changed.update(map(id, lookups))
        self._rows += self._lookups.feed(lookups)
        if again:
            self._lookups.flush()
            self._lookups.asked = asked  # each was counted when it came

    def book(self) -> Book:
        """What the answers tell."""
        self._lookups.flush()
        self._lookups.book.read()
        return self._lookups.book

    def may_ask(self, s: Sighting) -> set[str]:
        """Names that may have been asked for to hand a message over."""
        self.book()
        return self._lookups.may_ask(s)

    def begin(self, held: Container[int]) -> Lookups:
        """They are to be bound: those whose ids are not in `held`."""
        self._lookups.begin({row for row, t in enumerate(self._rows) if t is None or id(t) in held})
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
                self.changed.add(id(t))

    def free(self, t: Transaction) -> None:
        """It serves no hop any more."""
        if self._bound.pop(id(t), None) is not None:
            self.changed.add(id(t))

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
        self.changed.difference_update(ids)
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


def _machines_of(trace: Trace) -> Iterable[Machine]:
    """Machines that had part in a message."""
    ends = (m for leg in trace.legs if leg.session is not None for m in (leg.client, leg.server) if m is not None)
    return {id(machine): machine for machine in ends}.values()


def _may_be_noticed(s: Sighting, notices: dict[str, list[int]]) -> bool:
    """Whether a notice that a message has arrived may be about this one."""
    times = notices.get(s.session.server_ip)
    return bool(times) and s.kind == "transaction" and any(abs(ts - (s.ts_end or s.ts)) <= _JUST for ts in times or ())


def _may_have_been_tried(web: Web, tries: dict[Way, list[int]], ips: set[str]) -> bool:
    """Whether one of the machines may have tried to pass the message on when it tried in vain."""
    if not any(s.session.client_ip in ips or s.session.server_ip in ips for s in web.sightings):
        return False
    spans = held_spans(web.sightings, _all_decided(web))
    return any(since <= ts <= until for way, (since, until) in spans.items() for ts in tries.get(way, ()))


def _all_decided(web: Web) -> bool:
    return all(one.outcome in DECIDED for one in web.told)


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
