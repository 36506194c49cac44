"""Sessions' events in, delivery timelines out.

Rules:
1. `feed` takes events in any order; everything is sorted by time before anything is joined, so the story depends on what was seen
   and not on when it was handed in.
2. `finish` works stage by stage: sightings, groups (one message each), hops, roles, lookups, mailbox events, fates, rows.
   Many messages are told in parts (`archive.py`): each part up to the roles of servers, then each to its rows.
3. Trace ids are digests of facts on the wire, never of names of files or numbers of frames.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import count
from statistics import median_low
from typing import IO, Any, Generic, NamedTuple, TypeVar

from analyzer.limits import Limits
from analyzer.mail import fate, oddities, roles, timeline
from analyzer.mail.archive import Archive, Claim, Ends
from analyzer.mail.authentication.evaluate import Judge
from analyzer.mail.clocks import Clocks
from analyzer.mail.correlate import Correlator
from analyzer.mail.hops import Builder, Leg, Lost, Trace, links, number
from analyzer.mail.hosts import Hosts, Machine
from analyzer.mail.lookups import Lookups, Use, Visit
from analyzer.mail.mailbox import Mailboxes
from analyzer.mail.opaque import Opaque
from analyzer.mail.records import Authentication, Delivery, Hop, Host, Link, Message, RecipientRow, Step
from analyzer.mail.sightings import Digester, Sighting
from analyzer.mail.tries import AGAIN, EARLY, PATIENCE, SMTP_PORTS
from analyzer.protocols.base import MailboxEvent, MessageCarried, SessionEnded, SessionInfo
from analyzer.protocols.dns import Transaction
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Attempt

_HOUR = 3_600_000_000_000
_OFFSET = 20_000_000
"""Two taps' clocks differ when the same crossing is this far apart in them: longer than a local network takes."""
_ODD_CLOCK = 300_000_000_000
"""A Received field's time this far from the captured hand-over is worth a word."""
_AT_ONCE = 1_000_000_000
"""The next exchanger is tried this soon after a connection was refused."""
_LOOK_BACK = 16
_PARTS_HELD = 6
"""Later parts that stay in memory between the roles of servers and the rest; the others are made twice."""
_MAILBOX_PORTS = (110, 143, 993, 995)
"""Connections there are made for no message."""

_TRACE = Transaction._fields.index("trace_id")
"""Where the four columns that this room fills begin: trace_id, hop, client_role, server_role."""
Row = TypeVar("Row")


class Rows(Generic[Row]):
    """Rows made as they are read, as often as wanted: a table is never in memory whole."""

    def __init__(self, make: Callable[[], Iterator[Row]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Row]:
        return self._make()


@dataclass
class Part:
    """Rows of some of the messages."""

    messages: Iterable[Message]
    hops: Iterable[Hop]
    recipients: Iterable[RecipientRow]
    deliveries: list[Delivery]
    timeline: Iterable[Step]
    links: Iterable[Link]
    authentication: list[Authentication]


BY_MESSAGE = tuple(column.name for column in fields(Part))
"""The tables whose rows are each of one message: they leave with it."""


Share = tuple[int, int]
"""Number of a process, from 0, and how many there are."""
ALL: Share = (0, 1)
Each = Callable[[Callable[[Share, Any], Any]], list[Any]]
"""Has each of several processes do its share of some work; what they returned, by number.  Only the first one's state stays."""


def alone(work: Callable[[Share, Any], Any]) -> list[Any]:
    """`Each` with one process."""
    return [work(ALL, None)]


class _Said(NamedTuple):
    """What a process other than the first has heard of its share of the later parts."""

    anomalies: list[Anomaly]
    loudest: dict[str, tuple[int, str]]


class Found(NamedTuple):
    """What telling some of the later parts has found besides rows."""

    anomalies: list[Anomaly]
    session_traces: dict[str, str | None]
    evidence: list[tuple[str, dict[tuple[str, str], int], int]]
    """(address, evidence, messages) of machines."""


@dataclass
class Told:
    """The story's rows, and what it adds to rows of other rooms.  Whole when the last part has been taken."""

    first: Part
    """The messages told with an eye on each other, or all of them."""
    later: list[Any]
    """What the other parts are told from, by `share`; `settle` then."""
    telling: "_Telling"
    """How."""
    hosts: Iterable[Host]
    anomalies: list[Anomaly]
    lookups: Lookups
    server_roles: dict[str, str]
    client_roles: dict[str, str]
    session_traces: dict[str, str | None]
    """Session -> its one trace; None when it carried several."""
    traces: list[Trace]
    """The messages of the first part, as they were worked out."""
    evidence: list[tuple[Leg, Machine, list[tuple[str, str]]]]
    """Evidence that was counted, with its hop, for whom it was told apart (`Elsewhere`)."""

    def share(self, share: Share) -> Iterator[Part]:
        """A process's share of the later parts: each to be read before the next is taken."""
        return self.telling.tell(share)

    def found(self) -> Found:
        """What a process other than the first has found, when it has taken its share; for `settle`."""
        return self.telling.found()

    def settle(self, found: Iterable[Found]) -> None:
        """All later parts have been taken; `found`: by other processes."""
        self.telling.gather(found)
        self.client_roles.update(self.telling.client_roles(self.server_roles))

    @property
    def messages(self) -> Iterable[Message]:
        """Rows of the first part, as often as wanted; so are the following."""
        return self.first.messages

    @property
    def hops(self) -> Iterable[Hop]:
        """As `messages`."""
        return self.first.hops

    @property
    def recipients(self) -> Iterable[RecipientRow]:
        """As `messages`."""
        return self.first.recipients

    @property
    def deliveries(self) -> list[Delivery]:
        """As `messages`."""
        return self.first.deliveries

    @property
    def timeline(self) -> Iterable[Step]:
        """As `messages`."""
        return self.first.timeline

    @property
    def authentication(self) -> list[Authentication]:
        """As `messages`."""
        return self.first.authentication

    @property
    def links(self) -> Iterable[Link]:
        """As `messages`."""
        return self.first.links

    def dns(self, t: Transaction) -> Transaction:
        """The row of a lookup with what it was for."""
        leg = self.lookups.find(t) if self.lookups.bound else None
        trace_id = hop = None
        if leg is not None and leg.trace is not None:
            trace_id, hop = leg.trace.id, leg.number
        added = (trace_id, hop, self.client_roles.get(t.client_ip), self.server_roles.get(t.server_ip))
        return tuple.__new__(Transaction, t[:_TRACE] + added + t[_TRACE + 4 :])

    def anomaly(self, row: Anomaly) -> Anomaly:
        """The row of an anomaly with its message, when its session carried just one."""
        if row.trace_id is not None or row.session_id is None:
            return row
        return row._replace(trace_id=self.session_traces.get(row.session_id))


@dataclass
class Elsewhere:
    """What is known of messages that are told another time: these are told as if those were told, too."""

    ends: Collection[Ends] = ()
    """Who passed mail to whom there."""
    claims: Collection[Claim] = ()
    """Hand-overs by LMTP that are claimed there."""
    evidence: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """(address, role, rule) and how often it held there."""
    messages: Mapping[str, int] = field(default_factory=dict)
    """Messages in which an address had part there."""


class Story:
    """Everything seen of mail in one analysis."""

    def __init__(
        self, limits: Limits, whole: bool = False, elsewhere: Elsewhere | None = None, lookups: Lookups | None = None
    ) -> None:
        """`whole`: it is held in memory and told in one part.  `lookups`: there already, not fed."""
        self.limits = limits
        self._whole = whole
        self.elsewhere = elsewhere
        self._digester = Digester()
        self._sightings: list[Sighting] = []
        self._closed: set[SessionInfo] = set()
        """Sessions of messages that ended since sightings were archived last."""
        self._archive: Archive | None = None
        self._events: list[MailboxEvent] = []
        self._opaque: list[SessionInfo] = []
        self._idle: list[SessionInfo] = []
        self._attempts: list[Attempt] = []
        self.hosts = Hosts(limits)
        self._lookups = lookups if lookups is not None else Lookups(limits)
        self._dropped: dict[str, int] = {}
        self.clocks = Clocks()
        """To be known when the story is told."""
        self._feeders: dict[type, Callable[[Any], object]] = {
            MessageCarried: self._message,
            Sighting: self._sightings.append,
            SessionEnded: lambda event: self.session(event.info),
            MailboxEvent: self._event,
            Attempt: self._attempt,
        }

    def feed(self, event: Any) -> None:
        """Take an event of a session or a failed connection; others are let go."""
        feeder = self._feeders.get(type(event))
        if feeder is not None:
            feeder(event)

    def look(self, lookups: Iterable[Transaction]) -> None:
        """Take DNS questions and their answers."""
        self._lookups.feed(lookups)

    def _message(self, event: MessageCarried) -> None:
        self._sightings.append(self._digester.sighting(event))
        if len(self._sightings) >= self.limits.story_sightings and not self._whole:
            self._put_away()

    def _put_away(self) -> Archive:
        """Sightings to the archive."""
        if self._archive is None:
            self._archive = Archive(self.limits)
        self._archive.put(self._sightings, self._closed)
        self._closed.clear()
        self._sightings.clear()
        self._digester = Digester()
        return self._archive

    def _event(self, event: MailboxEvent) -> None:
        if len(self._events) < self.limits.mailbox_events:
            self._events.append(event)
        else:
            self._drop("mailbox_events_dropped")

    def session(self, info: SessionInfo) -> None:
        """A session has ended."""
        self.hosts.session(info)
        if info.messages and not self._whole:
            self.over(info)
        if info.visibility == "opaque":
            self._opaque.append(info)
        elif not info.messages and info.protocol in ("smtp", "lmtp"):
            if len(self._idle) < self.limits.idle_connections:
                self._idle.append(info)
            else:
                self._drop("attempts_dropped")

    def lend(self, info: SessionInfo) -> None:
        """Take an opaque session, or one without a transaction, that is counted another time."""
        (self._opaque if info.visibility == "opaque" else self._idle).append(info)

    def _attempt(self, attempt: Attempt) -> None:
        if len(self._attempts) < self.limits.idle_connections:
            self._attempts.append(attempt)
        else:
            self._drop("attempts_dropped")

    def _drop(self, name: str) -> None:
        self._dropped[name] = self._dropped.get(name, 0) + 1

    def over(self, info: SessionInfo) -> None:
        """A session of which messages were taken has ended."""
        self._closed.add(info)

    def hand_over(self, file: IO[bytes]) -> Any:
        """All messages, for another process's `absorb`: their octets go to a file, the rest is returned."""
        if self._archive is None and not self._sightings:
            return None
        return self._put_away().hand_over(file)

    def absorb(self, file: IO[bytes], state: Any) -> None:
        """Take the messages that another process has handed over."""
        if state is not None:
            self._put_away().absorb(file, state)

    def finish(self, asked: Collection[str] = (), each: Each = alone) -> Told:
        """Nothing more will come: tell it.  `asked`: sessions of which one wants to know the message."""
        if self._archive is not None:
            self._put_away()
        self._feeders = {}
        return _Telling(self, asked).told(each)


@dataclass
class _Heard:
    """A part of the messages whose servers' roles are known by what their own hops say."""

    traces: list[Trace]
    said: list[roles.Decision]


class _Telling:
    """The stages of `finish`, one method each."""

    def __init__(self, story: Story, asked: Collection[str]) -> None:
        self.limits = story.limits
        self.hosts = story.hosts
        self.lookups = story._lookups
        self.clocks = story.clocks
        self.lookups.align(self.clocks)
        self.anomalies: list[Anomaly] = []
        self.sightings = story._sightings
        self.archive = story._archive
        self.ends: list[Ends] = list(self.archive.ends()) if self.archive is not None else []
        self.claims: Collection[Claim] = self.archive.keys.claims if self.archive is not None else ()
        self.elsewhere = story.elsewhere
        if self.elsewhere is not None:
            self.ends += self.elsewhere.ends
            self.claims = self.elsewhere.claims
        self.asked = set(asked)
        self.events = sorted(story._events, key=_event_place)
        self.sessions = story._opaque
        self.idle = sorted(story._idle, key=_info_place)
        self.attempts = sorted(story._attempts, key=_attempt_place)
        dropped = dict(story._dropped)
        if self.lookups.dropped or self.lookups.book.full:
            dropped["lookups_dropped"] = self.lookups.dropped
        if self.hosts.dropped:
            dropped["hosts_dropped"] = self.hosts.dropped
        for name, many in sorted(dropped.items()):
            self.anomalies.append(Anomaly(None, "", None, None, name, f"{many:,} beyond the limit", None))
        self.traces: list[Trace] = []
        """Those that are told with an eye on each other: all, or the first part of several."""
        self.session_traces: dict[str, str | None] = {}
        self.server_roles: dict[str, str] = {}
        self._parts: list[Any] = []
        """Of each later part: numbers of its sightings."""
        self._heard: dict[int, _Heard | None] = {}
        self._apart: dict[tuple[str, str], list[int]] = {}
        self._ghosts: set[str] = set()

    def told(self, each: Each) -> Told:
        if self.elsewhere is not None:
            for (ip, role, rule), times in self.elsewhere.evidence.items():
                self.hosts.of(ip).count((role, rule), times)
            for ip, times in self.elsewhere.messages.items():
                self.hosts.of(ip).messages += times
        for s in self.sightings:
            for ip in (s.session.stated_client_ip or s.session.client_ip, s.session.server_ip):
                self.hosts.of(ip)
        for pair in self.ends:
            self.hosts.of(pair.client_ip)
            self.hosts.of(pair.server_ip)
        for a in self.attempts:
            self.hosts.of(a.orig_ip)
            self.hosts.of(a.resp_ip)
        if self.hosts.machines():
            self.lookups.book.read()
        self.hosts.settle(self.lookups.book)
        self.opaque = Opaque(self.sessions, self.hosts, self.clocks)
        self._parts = later = self._split()
        self.traces = self._join(self.sightings)
        self.sightings = []
        for trace in {id(leg.trace): leg.trace for leg in self.opaque.settle() if leg.trace is not None}.values():
            number(trace.legs)
        self.lookups.settle(self._machines(), self._visits())
        self.scene = roles.Scene(self.idle, self.hosts, self.lookups)
        self.scene.add(self.traces)
        self.scene.counting = self.elsewhere is not None
        self.scene.add_archived(self.ends, self.claims)
        self.servers = roles.Servers(self.scene)
        said = self.servers.hear(self.traces)
        if later:
            for other in each(self._hear_share)[1:]:
                self.anomalies += other.anomalies
                self.servers.learn({id(self.hosts.of(ip)): loudest for ip, loudest in other.loudest.items()})
        self._compare_clocks()
        self.servers.settle(said)
        roles.assign(self.traces, self.scene)
        server_roles = roles.name_servers(self.hosts, self.lookups)
        lost = self._lost()
        self.lookups.bind(self.hosts, self._uses(lost), {pair.server_ip for pair in self.ends})
        self._asked_by_others()
        self._mailboxes()
        fate.relate(self.traces)
        self.traffic = self._traffic()
        self.judge = Judge(self.scene)
        self.asked.update(row.session_id for row in self.anomalies if row.session_id is not None)
        client_roles: dict[str, str] = {}
        first = self._part(self.traces, server_roles)
        self.server_roles = server_roles
        if not later:
            client_roles.update(self.client_roles(server_roles))
        return Told(
            first=first,
            later=later,
            telling=self,
            hosts=Rows(lambda: iter(self.hosts.rows())),
            anomalies=self.anomalies,
            lookups=self.lookups,
            server_roles=server_roles,
            client_roles=client_roles,
            session_traces=self.session_traces,
            traces=self.traces,
            evidence=self.scene.counted,
        )

    def _hear_share(self, share: Share, _: Any) -> _Said | None:
        """A share of the later parts as far as all have to be heard before one is told."""
        number, of = share
        if number:
            self._begin_anew()
        for n in range(number, len(self._parts), of):
            self._heard[n] = self._hear(self._parts[n], number == 0 and n < _PARTS_HELD * of)
        if not number:
            return None
        return _Said(
            self.anomalies, {m.ips[0]: self.servers.loudest(m) for m in self.hosts.machines() if self.servers.loudest(m)[0]}
        )

    def _begin_anew(self) -> None:
        """Keep what is found from here on apart from what is known already: this is not the first process."""
        self.anomalies, self.session_traces = [], {}
        for machine in self.hosts.machines():
            machine.forget()

    def tell(self, share: Share) -> Iterator[Part]:
        """A share of the parts after the first."""
        number, of = share
        if number:
            self._begin_anew()
        for n in range(number, len(self._parts), of):
            part = self._heard.pop(n, None)
            if part is None:
                part = self._hear_again(self._parts[n])
            self.servers.settle(part.said)
            roles.assign(part.traces, self.scene)
            yield self._part(part.traces, self.server_roles)
            unravel(part.traces)

    def found(self) -> Found:
        machines = [m for m in self.hosts.machines() if m.evidence or m.messages]
        return Found(self.anomalies, self.session_traces, [(m.ips[0], dict(m.evidence), m.messages) for m in machines])

    def gather(self, found: Iterable[Found]) -> None:
        for one in found:
            self.anomalies += one.anomalies
            for session_id, trace in one.session_traces.items():
                same = self.session_traces.get(session_id, trace) == trace
                self.session_traces[session_id] = trace if same else None
            for ip, evidence, messages in one.evidence:
                machine = self.hosts.of(ip)
                for held, times in evidence.items():
                    machine.count(held, times)
                machine.messages += messages
        assert self.archive is not None
        self.archive.close()

    def _part(self, traces: list[Trace], server_roles: dict[str, str]) -> Part:
        """Fates, counts and rows of messages whose roles are known."""
        deliveries = self._fates(traces)
        self._count(traces)
        self._of_sessions(traces)
        lookups = self.lookups
        return Part(
            messages=Rows(lambda: (timeline.message_row(t) for t in traces)),
            hops=Rows(lambda: (timeline.hop_row(leg, t, lookups) for t in traces for leg in t.legs)),
            recipients=Rows(lambda: (row for t in traces for leg in t.legs for row in timeline.recipient_rows(leg, t))),
            deliveries=deliveries,
            timeline=Rows(lambda: (step for t in traces for step in timeline.steps(t, lookups, server_roles))),
            links=Rows(lambda: (link for t in traces for link in links(t))),
            authentication=self._authentication(traces),
        )

    # stages

    def _split(self) -> list[Any]:
        """Take the first part out of the archive; the others are told later, by the numbers returned."""
        if self.archive is None:
            return []
        concerned = {self.hosts.of(info.client_ip) for info in self.idle} | {self.hosts.of(a.orig_ip) for a in self.attempts}
        asking = self.lookups.askers(self.hosts.machines(), ((pair.client_ip, pair.server_ip) for pair in self.ends))
        mailboxes = {self.hosts.of(e.session.server_ip) for e in self.events}
        keys = {hash(e.message_id) for e in self.events if e.message_id is not None}
        clients = {ip for machine in concerned | asking for ip in machine.ips}
        servers = {ip for machine in mailboxes for ip in machine.ips} | clients
        opaque = {ip for machine in self.opaque.clients for ip in machine.ips}
        first, later, late = self.archive.split(keys, clients, servers, opaque, self.limits)
        if late:
            self.anomalies.append(Anomaly(None, "", None, None, "told_apart", f"{late:,} beyond the limit", None))
        self.sightings = self.archive.get(first)
        return later

    def _hear(self, numbers: Any, hold: bool) -> _Heard | None:
        """A later part up to the roles that its servers' own hops tell; only some are held until they go on."""
        assert self.archive is not None
        traces = self._join(self.archive.get(numbers))
        said = self.servers.hear(traces)
        if hold:
            return _Heard(traces, said)
        unravel(traces)
        return None

    def _hear_again(self, numbers: Any) -> _Heard:
        told, self.anomalies = self.anomalies, []
        part = self._hear(numbers, True)
        self.anomalies = told  # what is odd about them has been told
        assert part is not None
        return part

    def _once(self, sightings: list[Sighting]) -> list[Sighting]:
        """Of a crossing that two captures show, keep the sighting that shows more."""
        by_ends: dict[tuple[object, ...], Sighting] = {}
        gone: set[int] = set()
        if len({s.session.source for s in sightings}) > 1:
            for s in sightings:
                info = s.session
                ends = (info.client_ip, info.client_port, info.server_ip, info.server_port, s.kind, s.index)
                other = by_ends.get(ends)
                if other is None or not _same_crossing(other, s):
                    by_ends[ends] = s
                    continue
                keep, drop = (s, other) if _shows(s) > _shows(other) else (other, s)
                keep.duplicates += drop.duplicates + 1
                gone.add(id(drop))
                self._ghosts.add(drop.session.session_id)
                by_ends[ends] = keep
                self._apart.setdefault((other.session.source, info.source), []).append(s.ts - other.ts)
                detail = f"also in {drop.session.source}, {(drop.ts - keep.ts) / 1e9:+.6f} s"
                self._say(keep.ts, keep.session, "hop_seen_twice", detail, keep.first_frame)
        if gone:
            sightings = [s for s in sightings if id(s) not in gone]
        return sightings

    def _compare_clocks(self) -> None:
        """All crossings are known: what two captures' clocks are apart; and whose mailbox events are told twice."""
        if self._ghosts:
            self.events = [e for e in self.events if e.session.session_id not in self._ghosts]
        for (source, other_source), offsets in self._apart.items():
            offset = median_low(offsets)
            if abs(offset) > _OFFSET:
                detail = f"{other_source} is {offset / 1e9:+.6f} s from {source} (median of {len(offsets)} hops seen in both)"
                self.anomalies.append(Anomaly(None, other_source, None, None, "clock_offset", detail, None))

    def _say(self, ts: int | None, info: SessionInfo, name: str, detail: str, frame: int | None) -> None:
        self.anomalies.append(Anomaly(ts, info.source, info.session_id, None, name, detail, frame))

    def _join(self, sightings: list[Sighting]) -> list[Trace]:
        """Sightings into messages, messages into hops."""
        sightings = self._once(sorted(sightings, key=_place))
        if self.clocks:
            for s in sightings:
                s.shift = s.ts - self.clocks.true(s.session.source, s.ts)
                s.ts -= s.shift
            sightings.sort(key=_place)
        for order, s in enumerate(sightings):
            s.order = order
        correlator = Correlator(sightings, self.hosts, self.limits)
        ids: set[str] = set()
        traces: list[Trace] = []
        for group in correlator.groups():
            legs = Builder(group, self.hosts, self.opaque).build()
            message_id = next((s.message_id for s in group if s.message_id is not None), None)
            name = trace_id(group[0])
            if name in ids:
                name = next(found for n in count(1) if (found := trace_id(group[0], n)) not in ids)
            ids.add(name)
            trace = Trace(name, legs, message_id)
            for leg in legs:
                leg.trace = trace
                self._clock(leg)
            trace.retrieved = any(s.kind == "retrieve" for s in group)
            traces.append(trace)
        for s in correlator.reused:
            detail = f"{s.message_id} was seen before with another body"
            self._say(s.seen, s.session, "message_id_reused", detail, s.first_frame)
        return traces

    def _clock(self, leg: Leg) -> None:
        """A trace field about an observed hop whose time is far from the capture's."""
        parent, s = leg.parent, leg.sighting
        if s is None or parent is None or parent.sighting is None or leg.trail is None:
            return
        stamp = leg.trail.field.ts
        if leg.trail.below is parent.trail and stamp is not None and abs(stamp - parent.seen_end) > _ODD_CLOCK:
            detail = (
                f"{leg.trail.field.by or 'a server'} wrote a time {(stamp - parent.seen_end) / 1e9:+.0f} s from the capture's"
            )
            self._say(s.seen, s.session, "received_time_odd", detail, s.first_frame)

    def _machines(self) -> list[Machine]:
        """Machines with a part in any message."""
        found: dict[int, Machine] = {}
        for trace in self.traces:
            for leg in trace.legs:
                for machine in (leg.client, leg.server):
                    if machine is not None:
                        found.setdefault(id(machine), machine)
        ips = [ip for pair in self.ends for ip in (pair.client_ip, pair.server_ip)]
        for ip in (*ips, *(info.client_ip for info in self.idle)):
            machine = self.hosts.of(ip)
            found.setdefault(id(machine), machine)
        return list(found.values())

    def _visits(self) -> Iterator[Visit]:
        """Connections seen from their beginning."""
        sessions = {leg.session.session_id: leg.session for trace in self.traces for leg in trace.legs if leg.session is not None}
        sessions.update((info.session_id, info) for info in self.idle)
        for info in sessions.values() if len(self.lookups) else ():
            syn, banner, true = info.connection.ts_syn, info.ts_banner, partial(self.clocks.true, info.source)
            if syn is not None:
                greeted = true(banner) if banner is not None else None
                yield Visit(true(syn), greeted, info.stated_client_ip or info.client_ip, info.server_ip)

    def _asked_by_others(self) -> None:
        """Hosts that asked what an end of a hop needed, and nobody knows that they are that end, have part in its message."""
        for_one = set(self.lookups.stand_ins.values())
        part: dict[tuple[int, int], tuple[Trace, Machine]] = {}
        served: dict[tuple[Leg, str], bool] = {}
        for row, ip in self.lookups.others.items():
            leg, machine = self.lookups.bound[row], self.hosts.of(ip)
            machine.seen(self.lookups.ts[row], self.lookups.ts_reply[row])
            served[leg, ip] = self.lookups.is_outward(row, leg)
            if leg.trace is not None:
                part[id(leg.trace), id(machine)] = (leg.trace, machine)
        for (leg, ip), outward in served.items():
            role, end = (leg.client_role, leg.client_ip) if outward else (leg.server_role, leg.server_ip)
            whom = end if ip in for_one else "a client"
            if role is not None:
                self.scene.count(leg, self.hosts.of(ip), [(role, f"asks the DNS for {whom}, which asks nothing itself")])
        for trace, machine in part.values():
            if all(machine not in (leg.client, leg.server) for leg in trace.legs if leg.session is not None):
                machine.messages += 1

    def _lost(self) -> list[Lost]:
        """Connections without a transaction, each with the message it was made for, where that can be told."""
        calls: list[_Call] = []
        for info in self.idle:
            conn, port = info.connection, info.server_port
            how = f"session without a transaction, ended by {info.end or conn.end or 'the capture'}"
            ts, ends, true = conn.ts_syn or conn.ts, (info.client_ip, info.server_ip), partial(self.clocks.true, info.source)
            at, over, detail = true(ts), true(conn.ts_last), f"to port {port}: {how}"
            calls.append(_Call(at, info.source, *ends, detail, conn.first_frame, port, ts, max(at, over), info))
        for a in self.attempts:
            if a.resp_port not in _MAILBOX_PORTS:
                ends, detail, true = (a.orig_ip, a.resp_ip), timeline.attempt_detail(a), partial(self.clocks.true, a.source)
                calls.append(_Call(true(a.ts), a.source, *ends, detail, a.frame, a.resp_port, a.ts, true(a.ts_end), a))
        if not calls:
            return []
        index = _LegIndex(self.traces, self.clocks)
        lost: list[Lost] = []
        for call in sorted(calls, key=lambda c: (*c[:5], c.frame or 0, c.port)):
            client, server = self.hosts.of(call.client_ip), self.hosts.of(call.server_ip)
            trace, hop = index.made_for(call, client, server, self.scene)
            known = trace is not None
            ends, detail, frame = (call.client_ip, call.server_ip), call.detail, call.frame
            item = Lost(call.ts, call.at, client, call.source, *ends, detail, frame, call.session, hop, known, call.event)
            lost.append(item)
            if trace is not None:
                if trace.lost is None:
                    trace.lost = []
                trace.lost.append(item)
        return lost

    def _uses(self, lost: list[Lost]) -> list[Use]:
        """Every connection as a user of lookups."""
        if not len(self.lookups):
            return []
        by_session: dict[str, list[Leg]] = {}
        for trace in self.traces:
            for leg in trace.legs:
                if leg.session is not None:
                    by_session.setdefault(leg.session.session_id, []).append(leg)
        clocks = self.clocks
        uses: list[Use] = []
        for legs in by_session.values():
            legs.sort(key=lambda leg: (leg.index, leg.ts))
            info = legs[0].session
            assert info is not None
            conn = info.connection
            syn = clocks.true(info.source, conn.ts_syn or conn.ts)
            end = max(clocks.true(info.source, conn.ts_last), syn)
            first = next((leg for leg in legs if leg.sighting is None or leg.sighting.recipients), legs[0])
            floor = -1
            if first.parent is not None:
                floor = min(first.parent.end - (EARLY if first.parent.sighting is not None else 10 * EARLY), syn)
            client = info.stated_client_ip or info.client_ip
            uses.append(Use(syn, end, info, client, info.server_ip, first, tuple(legs), floor))
            for leg in legs[1:]:  # a client may ask before it finds that an open connection will do
                if leg.kind != "submit":
                    since = min(leg.parent.end - EARLY, leg.ts) if leg.parent is not None else -1
                    uses.append(Use(leg.ts, leg.ts, info, client, info.server_ip, leg, (), since, reused=True))
        for item in lost:
            if item.hop is None and not item.known:
                continue
            end = clocks.true(item.source, item.session.connection.ts_last) if item.session is not None else item.at
            uses.append(Use(item.at, max(end, item.at), item.session, item.client_ip, item.server_ip, item.hop, (), -1))
        return uses

    def _mailboxes(self) -> None:
        for told in Mailboxes(self.hosts, self.clocks).tell(self.traces, self.events):
            if told.trace.steps is None:
                told.trace.steps = []
            told.trace.steps.append(told)

    def _traffic(self) -> fate.Traffic:
        """Whom each machine calls."""
        traffic = fate.Traffic()
        for trace in self.traces:
            for leg in trace.legs:
                if leg.session is not None and leg.client is not None and leg.server is not None:
                    traffic.call(id(leg.client), id(leg.server))
        for pair in self.ends:
            traffic.call(id(self.hosts.of(pair.client_ip)), id(self.hosts.of(pair.server_ip)))
        for info in self.idle:
            traffic.call(id(self.hosts.of(info.client_ip)), id(self.hosts.of(info.server_ip)))
        for machine in self._machines():
            servers = {self.lookups.server_ip(row) for rows in self.lookups.asked_by(machine).values() for row in rows}
            for ip in servers:
                traffic.call(id(machine), id(self.hosts.of(ip)))
        return traffic

    def _fates(self, traces: list[Trace]) -> list[Delivery]:
        rows: list[Delivery] = []
        for trace in traces:
            mine = fate.Judge(trace, self.scene, self.traffic).deliveries()
            trace.outcome = fate.message_outcome(trace, mine)
            rows += mine
        return rows

    def _authentication(self, traces: list[Trace]) -> list[Authentication]:
        """SPF, DKIM, DMARC and ARC, evaluated; and what is odd, by these too."""
        rows: list[Authentication] = []
        for trace in traces:
            mine, odd = self.judge.judge(trace)
            rows += mine
            self.anomalies += odd
            self.anomalies += oddities.of(trace, self.scene, mine)
        return rows

    def _count(self, traces: list[Trace]) -> None:
        """Messages per machine."""
        for trace in traces:
            part = {id(m): m for leg in trace.legs if leg.session is not None for m in (leg.client, leg.server) if m is not None}
            for machine in part.values():
                machine.messages += 1

    def client_roles(self, server_roles: dict[str, str]) -> dict[str, str]:
        """The role in which an address asks DNS questions: its weightiest one in mail, else its own in DNS."""
        found: dict[str, str] = dict(server_roles)
        for machine in self.hosts.machines() if len(self.lookups) else ():
            mail = {role: 0 for role, _ in machine.evidence if role not in ("resolver", "authoritative")}
            for (role, _), times in machine.evidence.items():
                if role in mail:
                    mail[role] += times
            if mail:
                role = max(sorted(mail), key=mail.__getitem__)
                for ip in machine.ips:
                    found[ip] = role
        return found

    def _of_sessions(self, traces: list[Trace]) -> None:
        """The message of each session that is asked about."""
        found, asked = self.session_traces, self.asked
        if not asked:
            return
        for trace in traces:
            for leg in trace.legs:
                if leg.session is not None and leg.session.session_id in asked:
                    key = leg.session.session_id
                    found[key] = trace.id if found.get(key, trace.id) == trace.id else None


def unravel(traces: list[Trace]) -> None:
    """Leave no circles behind: the collector may be off."""
    for trace in traces:
        for leg in trace.legs:
            leg.trace = leg.parent = leg.children = None
        trace.legs = []
        trace.parent = trace.lost = trace.steps = None


class _Call(NamedTuple):
    """A connection that carried no transaction."""

    at: int
    """When it was opened, on the captures' common clock."""
    source: str
    client_ip: str
    server_ip: str
    detail: str
    frame: int | None
    port: int
    ts: int
    """When it was opened, as its capture has it."""
    over: int
    """When it had failed, on the common clock."""
    event: SessionInfo | Attempt

    @property
    def session(self) -> SessionInfo | None:
        """The session, where it came to one."""
        return self.event if isinstance(self.event, SessionInfo) else None


class _LegIndex:
    """Hops by client and by server machine, to find what a failed connection was made for.

    Of several messages that wait at a client for the same server, each try is one message's: of the one that needs what the
    server did not offer; of the one that goes to another exchanger at once after a refusal; else of the one that was not tried
    there for longest.
    """

    def __init__(self, traces: list[Trace], clocks: Clocks) -> None:
        self._clocks = clocks
        self._sent: dict[int, list[Leg]] = {}
        self._arrived: dict[int, list[Leg]] = {}
        self._tried: dict[tuple[int, str], int] = {}
        """(hop that brought the message, else the first that took it on; address) -> when it was tried there last."""
        for trace in traces:
            for leg in trace.legs:
                if leg.sighting is None or not leg.carried:
                    continue
                self._sent.setdefault(id(leg.client), []).append(leg)
                if leg.accepted:
                    self._arrived.setdefault(id(leg.server), []).append(leg)
        for legs in (*self._sent.values(), *self._arrived.values()):
            legs.sort(key=_leg_place)

    def made_for(self, call: _Call, client: Machine, server: Machine, scene: roles.Scene) -> tuple[Trace | None, Leg | None]:
        """The message that a client held, and the hop with which it went on."""
        opened = self._clocks.opened
        waiting = self._waiting(call.at, client, server, call.port, scene)
        if not waiting:
            return None, None

        def place(item: tuple[Leg, Leg | None]) -> tuple[bool, bool, int, bool, int]:
            held, onward = item
            lacks = call.session is not None and held.sighting is not None and fate.lacks_for(call.session, held.sighting)
            then = opened(onward) if onward is not None else 0
            at_once = onward is not None and onward.server_ip != call.server_ip and then - call.over <= _AT_ONCE
            return not lacks, not at_once, self._tried.get((id(held), call.server_ip), -1), onward is None, then

        held, onward = min(waiting, key=place)  # of equals the one that came first
        self._tried[id(held), call.server_ip] = call.at
        return held.trace, onward

    def _waiting(self, ts: int, client: Machine, server: Machine, port: int, scene: roles.Scene) -> list[tuple[Leg, Leg | None]]:
        """Messages that can have waited at a client for a server: the hop that brought each, and the next that took it on."""
        opened = self._clocks.opened
        found: list[tuple[Leg, Leg | None]] = []
        seen: set[int] = set()
        arrived = self._arrived.get(id(client), [])
        at = bisect_right(arrived, ts, key=lambda leg: leg.end)
        for leg in arrived[max(at - _LOOK_BACK, 0) : at]:
            if not self._leads_to(leg, client, server, port, scene):
                continue
            seen.add(id(leg))
            kids = [kid for kid in leg.children or () if kid.carried]  # in time order
            at = bisect_left(kids, ts, key=lambda leg: leg.ts)
            near = kids[max(at - _LOOK_BACK, 0) : at + _LOOK_BACK]
            onward = next((kid for kid in near if opened(kid) >= ts and self._is_for(kid, server, scene)), None)
            if onward is not None or self._undone(leg, [kid for kid in near if opened(kid) < ts]):
                found.append((leg, onward))
        sent = self._sent.get(id(client), [])
        at = bisect_left(sent, ts, key=lambda leg: leg.ts)
        for leg in sent[at : at + _LOOK_BACK]:
            if leg.ts - ts > PATIENCE:
                break
            held = leg.parent if leg.parent is not None else leg
            late = leg.parent is not None and leg.parent.basis == "observed" and leg.parent.end > ts + EARLY
            if id(held) not in seen and not late and opened(leg) >= ts and self._is_for(leg, server, scene):
                seen.add(id(held))
                found.append((held, leg))
        return found

    @staticmethod
    def _undone(leg: Leg, tries: list[Leg]) -> bool:
        """Whether a message has recipients that no try has settled."""
        settled: set[str] = set()
        for kid in tries:
            if kid.sighting is not None and kid.sighting.outcome not in AGAIN:
                settled.update(r.address.lower() for r in kid.sighting.recipients if r.outcome not in AGAIN)
        if not settled or leg.sighting is None:
            return not settled
        mine = {r.address.lower() for r in leg.sighting.recipients[:_LOOK_BACK] if r.outcome == "accepted"}
        return not mine <= settled and not mine.isdisjoint(settled)  # rewritten ones were settled under other names

    @staticmethod
    def _is_for(leg: Leg, server: Machine, scene: roles.Scene) -> bool:
        """Whether a hop went to a server or could have gone there."""
        return leg.server is server or any(scene.exchanges_for(server, d) for d in roles.recipient_domains(leg))

    @staticmethod
    def _leads_to(leg: Leg, client: Machine, server: Machine, port: int, scene: roles.Scene) -> bool:
        if id(server) in scene.lmtp_servers and id(client) in scene.lmtp_clients and port not in SMTP_PORTS:
            return True
        return any(scene.exchanges_for(server, d) for d in roles.recipient_domains(leg))


def trace_id(s: Sighting, n: int = 0) -> str:
    """Id of the message first seen here: a digest of what the wire showed, the same on any machine; `n` tells twins apart."""
    info = s.session
    ends = (info.client_ip, info.client_port, info.server_ip, info.server_port)
    facts = (s.message_id, s.body_digest, *ends, s.seen, s.kind, s.index, *([n] if n else []))
    return hashlib.sha256("\n".join(map(str, facts)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _same_crossing(a: Sighting, b: Sighting) -> bool:
    if a.session.source == b.session.source or abs(a.ts - b.ts) > _HOUR or a.mail_from != b.mail_from:
        return False
    if a.sha256 is not None and b.sha256 is not None and a.sha256 != b.sha256:
        return False
    if a.message_id is not None and b.message_id is not None and a.message_id != b.message_id:
        return False
    return a.queue_id == b.queue_id or a.queue_id is None or b.queue_id is None


def _shows(s: Sighting) -> tuple[bool, bool, int]:
    """How much a sighting tells."""
    return (bool(s.complete), s.outcome != "unknown", sum(t is not None for t in (s.ts_start, s.ts_data, s.ts_eom, s.ts_end)))


def _place(s: Sighting) -> tuple[int, str, int, str, int]:
    return s.place


def _event_place(e: MailboxEvent) -> tuple[int, str, int, str, str, int, int]:
    return (e.ts, e.session.source, e.frame or 0, e.session.session_id, e.event, e.uid or 0, e.number or 0)


def _info_place(info: SessionInfo) -> tuple[int, str, str]:
    return (info.connection.ts, info.source, info.session_id)


def _attempt_place(a: Attempt) -> tuple[int, str, int, str, int, str, int]:
    return (a.ts, a.source, a.frame, a.orig_ip, a.orig_port, a.resp_ip, a.resp_port)


def _leg_place(leg: Leg) -> tuple[int, int]:
    return (leg.ts, leg.number)
