"""Mailbox events and the messages they are about.

Rules:
1. A message in a mailbox is named by (server, user, mailbox, UIDVALIDITY, UID) or (server, user, unique-id), whatever device
   asks; without these by its number in the session.
2. COPY and MOVE give it another name; both are the message.
3. A notice without a name is about what that session then fetched under the number, else about what was just delivered there.
"""

from bisect import bisect_right

from analyzer.mail.clocks import Clocks
from analyzer.mail.hops import Leg, MailboxStep, Trace
from analyzer.mail.hosts import Hosts
from analyzer.mail.sightings import Sighting
from analyzer.protocols.base import MailboxEvent, SessionInfo

Name = tuple[object, ...]

_JUST = 30_000_000_000
"""Longest time between a delivery and the notice of it."""
_SLACK = 100_000_000
_LOOK_BACK = 64


class Mailboxes:
    """Names of messages in mailboxes, and the traces behind them."""

    def __init__(self, hosts: Hosts, clocks: Clocks) -> None:
        self._hosts = hosts
        self._clocks = clocks
        self._up: dict[Name, Name] = {}
        self._trace: dict[Name, Trace] = {}
        self._numbers: dict[tuple[str, str | None, int], list[tuple[int, Trace]]] = {}
        """(session, mailbox, number) -> (time, trace) of what was fetched under it."""
        self._by_message_id: dict[str, list[Trace]] = {}
        self._delivered: dict[int, list[tuple[int, Trace, Leg]]] = {}

    def tell(self, traces: list[Trace], events: list[MailboxEvent]) -> list[MailboxStep]:
        """The events whose message is known, in time order."""
        if not events:
            return []
        for trace in traces:
            if trace.message_id is not None:
                self._by_message_id.setdefault(trace.message_id, []).append(trace)
            for leg in trace.legs:
                s = leg.sighting
                if s is not None and s.kind != "transaction":
                    self._found(s, trace)
                elif s is not None and leg.accepted:
                    self._delivered.setdefault(id(leg.server), []).append((leg.end, trace, leg))
        for deliveries in self._delivered.values():
            deliveries.sort(key=_when)
        for event in events:
            self._copied(event)
        for event in events:
            if event.message_id is not None:
                for name in self._names(event):
                    root = self._root(name)
                    if root not in self._trace:
                        trace_or_none = self._with_id(event.message_id, event)
                        if trace_or_none is not None:
                            self._trace[root] = trace_or_none
        told: list[MailboxStep] = []
        noticed: set[tuple[str, int]] = set()
        for event in events:
            found = self._about(event, noticed)
            if found is not None:
                told.append(MailboxStep(event, found))
        return told

    def _at(self, event: MailboxEvent) -> int:
        """When, on the captures' common clock."""
        return self._clocks.true(event.session.source, event.ts)

    def _user(self, info: SessionInfo) -> Name:
        machine = id(self._hosts.of(info.server_ip))
        return (machine, info.auth_user.lower() if info.auth_user else info.session_id)

    def _found(self, s: Sighting, trace: Trace) -> None:
        """A fetched or filed message: remember its names."""
        owner = self._user(s.session)
        if s.uid is not None:
            self._trace.setdefault(self._root((*owner, s.mailbox, s.uidvalidity, s.uid)), trace)
        if s.uidl is not None:
            self._trace.setdefault(self._root((*owner, "uidl", s.uidl)), trace)
        if s.number is not None:
            self._numbers.setdefault((s.session.session_id, s.mailbox, s.number), []).append((s.ts, trace))

    def _names(self, event: MailboxEvent) -> list[Name]:
        owner = self._user(event.session)
        names: list[Name] = []
        if event.uid is not None:
            names.append((*owner, event.mailbox, event.uidvalidity, event.uid))
        if event.uidl is not None:
            names.append((*owner, "uidl", event.uidl))
        return names

    def _copied(self, event: MailboxEvent) -> None:
        if event.new_uid is None or event.uid is None:
            return
        owner = self._user(event.session)
        old = self._root((*owner, event.mailbox, event.uidvalidity, event.uid))
        new = self._root((*owner, event.new_mailbox, event.new_uidvalidity, event.new_uid))
        if old == new:
            return
        self._up[new] = old
        trace = self._trace.pop(new, None)
        if trace is not None:
            self._trace.setdefault(old, trace)

    def _root(self, name: Name) -> Name:
        up = self._up
        while name in up:
            above = up[name]
            if above in up:
                up[name] = up[above]
            name = above
        return name

    def _with_id(self, message_id: str, event: MailboxEvent) -> Trace | None:
        """The message with this Message-ID; of several the one that came to this server, else the latest before."""
        traces = self._by_message_id.get(message_id)
        if not traces:
            return None
        if len(traces) == 1:
            return traces[0]
        machine = self._hosts.of(event.session.server_ip)
        for trace in reversed(traces[-_LOOK_BACK:]):
            if any(leg.server is machine and leg.ts <= self._at(event) for leg in trace.legs):
                return trace
        return traces[0]

    def _about(self, event: MailboxEvent, noticed: set[tuple[str, int]]) -> Trace | None:
        for name in self._names(event):
            trace = self._trace.get(self._root(name))
            if trace is not None:
                return trace
        if event.message_id is not None:
            trace = self._with_id(event.message_id, event)
            if trace is not None:
                return trace
        if event.number is not None:
            fetched = self._numbers.get((event.session.session_id, event.mailbox, event.number))
            if fetched:
                at = bisect_right(fetched, self._at(event), key=_first)
                if event.event == "notified":
                    return fetched[at][1] if at < len(fetched) else None
                return fetched[at - 1][1] if at else None
        return self._just_delivered(event, noticed) if event.event == "notified" else None

    def _just_delivered(self, event: MailboxEvent, noticed: set[tuple[str, int]]) -> Trace | None:
        deliveries = self._delivered.get(id(self._hosts.of(event.session.server_ip)), [])
        ts = self._at(event)
        at = bisect_right(deliveries, ts + _SLACK, key=_when)
        user = (event.session.auth_user or "").lower()
        for end, trace, leg in reversed(deliveries[max(at - _LOOK_BACK, 0) : at]):
            if end < ts - _JUST:
                break
            mark = (event.session.session_id, id(leg))
            if mark not in noticed and (not user or received_by(leg, user)):
                noticed.add(mark)
                return trace
        return None


def received_by(leg: Leg, user: str) -> bool:
    """Whether a hop's recipients include this mailbox user (whole address, or its local part)."""
    if leg.sighting is None:
        return False
    for recipient in leg.sighting.recipients:
        address = recipient.address.lower()
        local = address.rpartition("@")[0] or address
        if user in (address, local, local.partition("+")[0]) or ("@" in user and user.partition("@")[0] == local):
            return True
    return False


def _when(item: tuple[int, Trace, Leg]) -> int:
    return item[0]


def _first(item: tuple[int, Trace]) -> int:
    return item[0]
