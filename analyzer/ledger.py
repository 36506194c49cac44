"""The story of a live capture: told again and again, and forgotten piece by piece.

Rules
1. What came from sessions is kept until the message it belongs to is finished; `tell` gives the story of what is kept.
2. A message is finished when its fate is known and it has been silent for `Limits.live_decided_idle`, or silent for
   `Limits.queue_lifetime`; or when more is held than the limits allow: then the longest silent, decided ones first.
3. Each event leaves once.  What the leaving ones say of hosts is added to the hosts of before, so nothing is counted twice.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from analyzer.limits import Limits
from analyzer.mail.hosts import ROLES
from analyzer.mail.records import Authentication, Delivery, Hop, Host, Link, Message, RecipientRow, Step
from analyzer.mail.story import Rows, Story, Told
from analyzer.protocols.base import MailboxEvent, MessageCarried, SessionEnded
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


@dataclass
class Finished:
    """Rows of the messages that are over, and rows of `dns` that nobody waits for."""

    messages: list[Message]
    hops: list[Hop]
    recipients: list[RecipientRow]
    deliveries: list[Delivery]
    timeline: list[Step]
    links: list[Link]
    authentication: list[Authentication]
    dns: list[Transaction]
    anomalies: list[Anomaly]


class Ledger(Story):
    """A story that can be told at any time and forgets what is over.  Stands where a pipeline's story stands."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.on_carried: Callable[[MessageCarried], None] = lambda event: None
        """Called with each message as its hop ends."""
        self.lookups: deque[Transaction] = deque()
        self._kept: dict[tuple[str, int], list[MessageCarried]] = {}
        self._count = self._octets = 0
        self._ended: dict[str, SessionEnded] = {}
        self._mailbox: deque[MailboxEvent] = deque()
        self._tries: deque[Attempt] = deque()
        self._hosts_before: dict[str, Host] = {}
        """By each address."""
        self._early = 0
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
            self._kept.setdefault((event.session.session_id, event.index), []).append(event)
            self._count += 1
            self._octets += _octets(event)
            self.on_carried(event)
        elif kind is Transaction:
            self.lookups.append(event)
        elif kind is SessionEnded:
            self._ended[event.info.session_id] = event
        elif kind is MailboxEvent:
            self._keep(self._mailbox, event, self.limits.mailbox_events, "mailbox_events_dropped")
        elif kind is Attempt:
            self._keep(self._tries, event, self.limits.idle_connections, "attempts_dropped")

    def _keep(self, where: deque[Any], event: Any, most: int, name: str) -> None:
        where.append(event)
        if len(where) > most:
            where.popleft()
            self._lost[name] += 1

    @property
    def pressing(self) -> bool:
        """So much is held that a telling cannot wait."""
        limits = self.limits
        return (
            self._count > _FORCE * limits.live_traces
            or self._octets > _FORCE * limits.live_held_bytes
            or len(self.lookups) > _FORCE * limits.live_lookups
            or len(self._ended) > _FORCE * limits.idle_connections
        )

    @property
    def held(self) -> int:
        """Crossings of messages held."""
        return self._count

    # out

    def tell(self, asked: Collection[str] = ()) -> Told:
        """The story of what is held, with every host there has been."""
        self.fresh = False
        told = self._story(
            chain(
                self.lookups,
                self._ended.values(),
                (event for events in self._kept.values() for event in events),
                self._mailbox,
                self._tries,
            ),
            asked,
        )
        hosts, before = told.hosts, self._hosts_before
        return replace(
            told,
            parts=[replace(part, messages=list(part.messages), hops=list(part.hops)) for part in told.parts],
            hosts=Rows(lambda: iter(_merged(before, hosts))) if before else hosts,
        )

    def finish(self, asked: Collection[str] = ()) -> Told:
        """Nothing more will come: the story of what is still held; what was dropped on the way is counted."""
        told = self.tell(asked)
        self.last_messages = list(told.messages)
        for name, count in sorted(self._lost.items()):
            told.anomalies.append(Anomaly(None, "", None, None, name, f"{count:,} beyond the limit", None))
        return told

    def settle(self, told: Told, now: int) -> Finished | None:
        """Rows of what is over at `now` (capture time), out of the latest telling; it is forgotten.  None: nothing is over."""
        messages = list(told.messages)
        hops = list(told.hops)
        over, early = self._over(messages, hops, now)
        leaving = self._leave(hops, over, now)
        users = {message.trace_id for message in messages} - over
        dns = self._let_go_lookups(told, users, now)
        if not over and not leaving and not dns:
            return None
        self._remember(self._story(chain(dns, leaving)).hosts)
        anomalies = []
        if early:
            self._early += early
            last = max((m.ts_last or 0 for m in messages), default=None)
            detail = f"{early:,} messages; a later hop or retrieval of theirs is told as another message"
            anomalies.append(Anomaly(last, "", None, None, "traces_finished_early", detail, None))
        anomalies += [row for row in told.anomalies if row.trace_id in over or row.session_id in {_session(e) for e in leaving}]
        return Finished(
            [m for m in messages if m.trace_id in over],
            [h for h in hops if h.trace_id in over],
            [r for r in told.recipients if r.trace_id in over],
            [d for d in told.deliveries if d.trace_id in over],
            [s for s in told.timeline if s.trace_id in over],
            [k for k in told.links if k.trace_id in over],
            [a for a in told.authentication if a.trace_id in over],
            [told.dns(t) for t in dns],
            anomalies,
        )

    def _story(self, events: Iterable[Any], asked: Collection[str] = ()) -> Told:
        story = Story(self.limits, whole=True)
        for event in events:
            story.feed(event)
        return story.finish(asked)

    def _over(self, messages: list[Message], hops: list[Hop], now: int) -> tuple[set[str], int]:
        """Traces that are finished, and how many of them only because too much is held."""
        limits = self.limits
        over: set[str] = set()
        open_: list[tuple[bool, int, str]] = []
        for message in messages:
            decided = message.outcome in DECIDED
            idle = now - (message.ts_last or message.ts_first or now)
            if idle > (limits.live_decided_idle if decided else limits.queue_lifetime):
                over.add(message.trace_id)
            else:
                open_.append((not decided, -idle, message.trace_id))
        size: dict[str, list[int]] = {}
        count = octets = 0
        for hop in hops:
            events = self._kept.get((hop.session_id or "", hop.message_index or 0), ())
            if hop.trace_id not in over and events:
                mine = size.setdefault(hop.trace_id, [0, 0])
                mine[0] += len(events)
                mine[1] += sum(map(_octets, events))
                count += len(events)
                octets += sum(map(_octets, events))
        early = 0
        if count > limits.live_traces or octets > limits.live_held_bytes:
            for _, _, trace_id in sorted(open_):
                if count <= limits.live_traces // _LEFT and octets <= limits.live_held_bytes // _LEFT:
                    break
                events_of, octets_of = size.get(trace_id, (0, 0))
                count, octets = count - events_of, octets - octets_of
                over.add(trace_id)
                early += 1
        return over, early

    def _leave(self, hops: list[Hop], over: set[str], now: int) -> list[Any]:
        """Take out the events of finished messages, and those that are of no message and old."""
        staying = {(h.session_id, h.message_index) for h in hops if h.trace_id not in over}
        age = self.limits.live_decided_idle
        leaving: list[Any] = []
        gone = {(h.session_id, h.message_index) for h in hops if h.trace_id in over} - staying
        for key in [k for k, events in self._kept.items() if k in gone or (k not in staying and now - _time(events[0]) > age)]:
            for event in self._kept.pop(key):
                leaving.append(event)
                self._count -= 1
                self._octets -= _octets(event)
        needed = {session_id for session_id, _ in self._kept}
        ended = self._ended
        excess = len(ended) - len(needed) - self.limits.idle_connections
        for session_id in list(ended):
            if session_id not in needed:
                info = ended[session_id].info
                if now - info.connection.ts_last > age or excess > 0 or (info.messages and info.visibility != "opaque"):
                    leaving.append(ended.pop(session_id))
                    excess -= 1
        for queue in (self._mailbox, self._tries):
            while queue and now - queue[0].ts > age:
                leaving.append(queue.popleft())
        return leaving

    def _let_go_lookups(self, told: Told, users: set[str], now: int) -> list[Transaction]:
        """Take out DNS rows that are old and of no open message."""
        most, age = self.limits.live_lookups, self.limits.live_lookup_age
        excess = len(self.lookups) - most
        if excess <= 0 and not (self.lookups and now - (self.lookups[0].ts or now) > age):
            return []
        excess += most // _LEFT if excess > 0 else 0
        gone: list[Transaction] = []
        kept: deque[Transaction] = deque()
        for i, t in enumerate(self.lookups):
            old = now - (t.ts or t.ts_reply or now) > age
            if (old or i < excess) and (told.dns(t).trace_id not in users or len(kept) > most):
                gone.append(t)
            else:
                kept.append(t)
        self.lookups = kept
        return gone

    def _remember(self, hosts: Iterable[Host]) -> None:
        merged = _merged(self._hosts_before, hosts)
        if len(merged) > self.limits.live_hosts:
            self._lost["hosts_dropped"] += len(merged) - self.limits.live_hosts
            merged.sort(key=lambda host: -(host.ts_last or 0))
            del merged[self.limits.live_hosts :]
        self._hosts_before = {ip: host for host in merged for ip in host.ips}


def _octets(event: MessageCarried) -> int:
    content = event.content
    if content is None:
        return 0
    return sum(len(value) for _, value in content.headers) + len(content.report or b"")


def _time(event: MessageCarried) -> int:
    return event.ts_end or event.ts_eom or event.ts_start or event.session.connection.ts_last


def _session(event: Any) -> str | None:
    if isinstance(event, MessageCarried | MailboxEvent):
        return event.session.session_id
    return event.info.session_id if isinstance(event, SessionEnded) else None


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
