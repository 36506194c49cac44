"""Hosts of messages that are over or rest: what was seen of them then, and with whom they passed mail on.

Rules:
1. Hosts with a common address are one; what is added to one adds up.
2. The latest stay in memory; the others are on disk until something comes of their address or name (`wake`).
3. Of the pairs that passed mail to each other so many are kept as tell what a host does: take mail in, hand it on to one or more.
"""

import pickle
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from analyzer.limits import Limits
from analyzer.mail.archive import Ends
from analyzer.mail.book import fold
from analyzer.mail.hosts import ROLES, address_place, evidence_items, host_id
from analyzer.mail.records import Host
from analyzer.mail.shelf import Record, Shelf
from analyzer.mail.sightings import Sighting
from analyzer.mail.webs import Said
from analyzer.protocols.base import SessionInfo

_NAMES = 64
"""Names of one host kept."""
_SERVERS = 3
"""Servers that a client is known to have handed mail to: two are enough to tell that it hands on what came from one."""
_FEW = 16
"""Counts of evidence up to which many hosts have the same."""
_LEFT = 2
"""When too many are in memory, so many less are left: 1/2, so that it does not happen each time."""
_GONE = 8
"""When there are too many in all, so many more go: 1/8."""


class Known:
    """One host."""

    __slots__ = ("ends", "host")

    def __init__(self, host: Host, ends: list[Ends]) -> None:
        self.host = host
        self.ends = ends


class KnownHosts:
    """All of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_ip: dict[str, Known] = {}
        self._asleep = Shelf(1)
        self._shared: dict[tuple[str, str, int], dict[str, Any]] = {}
        """Items of evidence that many hosts have."""

    def __iter__(self) -> Iterator[Known]:
        """Those awake."""
        return iter({id(one): one for one in self._by_ip.values()}.values())

    def __len__(self) -> int:
        return len(self._by_ip) + len(self._asleep)

    def wake(self, ips: Iterable[str], names: Iterable[str] = ()) -> None:
        """Have those in memory that have these addresses or names."""
        keys = {hash(ip) for ip in ips if ip not in self._by_ip}
        keys.update(_named(name) for name in names)
        numbers = self._asleep.find(keys)
        for number in numbers:
            host, ends = pickle.loads(self._asleep.get(number))  # our own file, which has no name
            one = Known(Host._make(host), [Ends._make(pair) for pair in ends])
            for ip in one.host.ips:
                self._by_ip[ip] = one
        if numbers:
            self._asleep.drop(numbers)

    def names_of(self, ip: str) -> set[str]:
        """Names of a host that is awake."""
        one = self._by_ip.get(ip)
        return set(one.host.names) if one is not None else set()

    def add(self, hosts: Iterable[Host]) -> None:
        """Add hosts."""
        hosts = list(hosts)
        self.wake(ip for host in hosts for ip in host.ips)
        for host in hosts:
            before = self._of(host)
            mine = _with(host, (old.host for old in before))
            ends = [pair for old in before for pair in old.ends]
            one = Known(mine._replace(evidence=list(map(self._share, mine.evidence))), ends)
            for ip in mine.ips:
                self._by_ip[ip] = one

    def pass_on(self, pairs: Iterable[Ends]) -> None:
        """Who passed mail to whom, of hosts that are known."""
        for pair in pairs:
            client, server = self._by_ip.get(pair.client_ip), self._by_ip.get(pair.server_ip)
            if client is not None:
                mine = [old for old in client.ends if old.client_ip in client.host.ips]
                alike = [old for old in mine if old[2:] == pair[2:]]
                if pair not in mine and (not alike or len({old.server_ip for old in mine}) < _SERVERS):
                    client.ends.append(pair)
            if server is not None and all(old[2:4] != pair[2:4] or old.server_ip not in server.host.ips for old in server.ends):
                server.ends.append(pair)

    def subtract(self, evidence: Counter[tuple[str, str, str]], messages: Counter[str]) -> None:
        """Messages are taken back: (address, role, rule) and how often it held because of them, and messages by address."""
        said: dict[str, Counter[tuple[str, str]]] = {ip: Counter() for ip in messages}
        for (ip, role, rule), count in evidence.items():
            said.setdefault(ip, Counter())[role, rule] = count
        self.wake(said)
        for ip, counts in said.items():
            one = self._by_ip.get(ip)
            if one is None:
                continue
            held = {(i["role"], i["rule"]): i["count"] for i in one.host.evidence}
            left = {key: n for key, count in held.items() if (n := count - counts[key]) > 0}
            roles = {role for role, _ in left}
            one.host = one.host._replace(
                evidence=list(map(self._share, evidence_items(left))),
                roles=[role for role in ROLES if role in roles],
                messages=one.host.messages - messages[ip],
            )

    def ends(self) -> Iterator[Ends]:
        """Who passed mail to whom, of those awake."""
        return chain.from_iterable(one.ends for one in self)

    def joined_with(self, hosts: Iterable[Host]) -> Iterator[Host]:
        """Hosts, each with what is known of it."""
        for host in hosts:
            yield _with(host, (old.host for old in self._of(host)))

    def merged_with(self, hosts: Collection[Host]) -> Iterator[Host]:
        """All that are known and these, those with a common address being one."""
        self.wake(ip for host in hosts for ip in host.ips)
        by_ip = {ip: one.host for ip, one in self._by_ip.items()}
        for host in hosts:
            mine = _with(host, {id(by_ip[ip]): by_ip[ip] for ip in host.ips if ip in by_ip}.values())
            for ip in mine.ips:
                by_ip[ip] = mine
        yield from {id(host): host for host in by_ip.values()}.values()
        for number in self._asleep.numbers().tolist():
            yield Host._make(pickle.loads(self._asleep.get(number))[0])

    def ids(self) -> Any:
        """Hashes of the ids of all, as a numpy column."""
        awake = np.array([hash(one.host.host_id) for one in self], np.int64)
        return np.concatenate((awake, self._asleep.labels()))

    def settle(self) -> list[Host]:
        """Put the longest silent on disk where many are awake; those that are let go of, where there are too many in all."""
        most = min(self._limits.live_hosts_awake, self._limits.live_hosts)
        if len(self._by_ip) <= most:
            return []
        awake = sorted(self, key=lambda one: (one.host.ts_last or 0, one.host.host_id))
        leaving = awake[: len(awake) - most // _LEFT]
        for one in leaving:
            for ip in one.host.ips:
                self._by_ip.pop(ip, None)
        self._asleep.put([_record(one) for one in leaving])
        excess = len(self) - self._limits.live_hosts
        if excess <= 0:
            return []
        numbers = self._asleep.numbers()
        oldest = np.argsort(self._asleep.facts()[:, 0], kind="stable")[: excess + self._limits.live_hosts // _GONE]
        gone = [Host._make(pickle.loads(self._asleep.get(number))[0]) for number in numbers[oldest].tolist()]
        self._asleep.drop(numbers[oldest].tolist())
        return gone

    def _of(self, host: Host) -> list[Known]:
        return list({id(one): one for ip in host.ips if (one := self._by_ip.get(ip)) is not None}.values())

    def _share(self, item: dict[str, Any]) -> dict[str, Any]:
        key = (item["role"], item["rule"], item["count"])
        return self._shared.setdefault(key, item) if item["count"] <= _FEW else item


def hosts_of(messages: Collection[Said]) -> list[Host]:
    """What messages say of the hosts that had part in them."""
    machines = {ips[0]: (ips, names) for one in messages for ips, names in one.machines}
    parts = Counter(ip for one in messages for ip in one.ips())
    said: dict[str, Counter[tuple[str, str]]] = {}
    for one in messages:
        for ip, role, rule in one.evidence:
            said.setdefault(ip, Counter())[role, rule] += 1
    found = []
    for ip, (addresses, names) in machines.items():
        counts = said.get(ip, Counter())
        ips = sorted(addresses, key=address_place)
        held = {role for role, _ in counts}
        roles = [role for role in ROLES if role in held]
        found.append(Host(host_id(ips[0]), ips, sorted(names), roles, evidence_items(counts), None, None, None, 0, parts[ip]))
    return found


def mentioned(sightings: Iterable[Sighting], sessions: Iterable[SessionInfo]) -> tuple[set[str], set[str]]:
    """(addresses, names) that these speak of."""
    ips: set[str] = set()
    names: set[str] = set()
    every = {s.session.session_id: s.session for s in sightings}
    for info in chain(every.values(), sessions):
        ips.update((info.client_ip, info.server_ip))
        if info.stated_client_ip is not None:
            ips.add(info.stated_client_ip)
        names.update(fold(name) for name in (info.client_name, info.server_name, info.sni) if name)
    for s in sightings:
        for trail in s.trail or ():
            ips.update(ip for ip in (trail.field.ip, trail.field.by_ip) if ip)
            names.update(fold(name) for name in (trail.field.by, trail.field.name, trail.field.helo) if name)
    return ips, names


def _named(name: str) -> int:
    return hash((name, "host"))


def _record(one: Known) -> Record:
    host = one.host
    keys = {*map(hash, host.ips), *map(_named, host.names)}
    octets = pickle.dumps((tuple(host), list(map(tuple, one.ends))), 5)
    return Record(octets, keys, [hash(host.host_id)], (host.ts_last or 0,))


def _with(host: Host, before: Iterable[Host]) -> Host:
    """A host with all that was known of it before."""
    for old in before:
        host = _joined(old, host)
    return host


def _joined(a: Host, b: Host) -> Host:
    counts: Counter[tuple[str, str]] = Counter()
    for item in chain(a.evidence, b.evidence):
        counts[item["role"], item["rule"]] += item["count"]
    ips = sorted({*a.ips, *b.ips}, key=address_place)
    return Host(
        host_id=a.host_id if ips[0] == min(a.ips, key=address_place) else b.host_id,
        ips=ips,
        names=sorted({*a.names, *b.names})[:_NAMES],
        roles=[role for role in ROLES if role in a.roles or role in b.roles],
        evidence=evidence_items(counts),
        software=a.software or b.software,
        ts_first=min((t for t in (a.ts_first, b.ts_first) if t is not None), default=None),
        ts_last=max((t for t in (a.ts_last, b.ts_last) if t is not None), default=None),
        sessions=a.sessions + b.sessions,
        messages=a.messages + b.messages,
    )
