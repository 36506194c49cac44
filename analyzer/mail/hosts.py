"""Hosts: machines behind addresses and names.

Rules:
1. Every address is some machine; two addresses are one machine only when a name says so and nothing speaks against it.
2. A name joins one IPv4 with one IPv6 address, no more: pools and bots that greet with a stranger's name stay apart.
"""

import hashlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any

from analyzer.limits import Limits
from analyzer.mail.book import Book, fold
from analyzer.mail.received import canonical_ip
from analyzer.mail.records import Host
from analyzer.protocols.base import SessionInfo

ROLES = ("mua", "msa", "mta", "mx", "mda", "pop3", "imap", "resolver", "authoritative")
"""In the order a list of roles is written."""


_NAMELESS: frozenset[str] = frozenset()
_SILENT: Mapping[tuple[str, str], int] = MappingProxyType({})
"""What most machines have said: a capture may hold a hundred thousand that only knocked."""


class Machine:
    """One host: what was seen of it."""

    __slots__ = ("evidence", "ips", "messages", "names", "sessions", "software", "ts_first", "ts_last")

    def __init__(self, ip: str) -> None:
        self.ips: tuple[str, ...] = (ip,)
        self.names: AbstractSet[str] = _NAMELESS
        self.software: tuple[int, str] | None = None
        """What it first named, with the time."""
        self.ts_first: int | None = None
        self.ts_last: int | None = None
        self.sessions = 0
        self.messages = 0
        self.evidence: Mapping[tuple[str, str], int] = _SILENT
        """(role, rule) and how often it held."""

    def call(self, names: Iterable[str]) -> None:
        """Add names."""
        names = set(names)
        if names:
            self.names = self.names | names

    def count(self, evidence: tuple[str, str], times: int = 1) -> None:
        """Count evidence, `times` more."""
        counted = self.evidence
        if not isinstance(counted, dict):
            counted = self.evidence = {}
        counted[evidence] = counted.get(evidence, 0) + times

    def forget(self) -> None:
        """Count evidence and messages from nothing again."""
        self.evidence, self.messages = _SILENT, 0

    def seen(self, first: int | None, last: int | None) -> None:
        """Widen the time it was seen in."""
        if first is not None and (self.ts_first is None or first < self.ts_first):
            self.ts_first = first
        if last is not None and (self.ts_last is None or last > self.ts_last):
            self.ts_last = last

    def answers_to(self, name: str) -> bool:
        """Whether it is known under this name or address."""
        return name in self.names or name in self.ips

    def take(self, other: "Machine") -> None:
        """`other` is the same machine."""
        self.ips += other.ips
        self.call(other.names)
        self.software = min((s for s in (self.software, other.software) if s is not None), default=None)
        self.seen(other.ts_first, other.ts_last)
        self.sessions += other.sessions
        self.messages += other.messages
        for evidence, times in other.evidence.items():
            self.count(evidence, times)


class Hosts:
    """All machines of a capture."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_ip: dict[str, Machine] = {}
        self._by_name: dict[str, Machine | None] = {}
        self._machines: list[Machine] = []
        self._listed = -1
        self.dropped = 0
        """Session ends without a row because there are more than `limits.hosts`."""

    def of(self, ip: str) -> Machine:
        """The machine behind an address."""
        found = self._by_ip.get(ip)
        if found is None:
            found = self._by_ip[ip] = Machine(ip)
        return found

    def known(self, ip: str) -> Machine | None:
        """The machine behind an address, when that address had part in any mail."""
        return self._by_ip.get(ip)

    def session(self, info: SessionInfo) -> None:
        """A mail session ended: count it for both of its ends, and keep their names."""
        if len(self._by_ip) >= self._limits.hosts and not (info.client_ip in self._by_ip and info.server_ip in self._by_ip):
            self.dropped += 1
            return
        first, last = info.connection.ts, info.connection.ts_last or info.connection.ts
        client, server = self.of(info.client_ip), self.of(info.server_ip)
        client.seen(first, last)
        server.seen(first, last)
        client.sessions += 1
        server.sessions += 1
        self.introduce(info)
        if info.server_software:
            named = (first, info.server_software)
            server.software = min(named, server.software or named)

    def introduce(self, info: SessionInfo) -> None:
        """Keep the names of a session's ends, without counting it."""
        client, server = self.of(info.client_ip), self.of(info.server_ip)
        if info.client_name:
            _name(client, info.client_name)
        if info.server_name:
            _name(server, info.server_name)
        if info.sni:
            _name(server, info.sni)

    def settle(self, book: Book) -> None:
        """All sessions and answers are in: find which addresses are one machine, and what they are called."""
        for ip in sorted(self._by_ip):
            self._by_ip[ip].call(sorted(book.names_of(ip))[:_MAX_NAMES])
        families: dict[str, tuple[list[str], list[str]]] = {}
        for ip in sorted(self._by_ip):
            for name in self._by_ip[ip].names:
                families.setdefault(name, ([], []))[":" in ip].append(ip)
        for name in sorted(families):
            v4, v6 = families[name]
            if len(v4) == 1 and len(v6) == 1:
                self._join(v4[0], v6[0])
        for machine in self.machines():
            for name in machine.names:
                self._by_name[name] = None if name in self._by_name and self._by_name[name] is not machine else machine

    def _join(self, ip: str, other: str) -> None:
        mine, theirs = self._by_ip[ip], self._by_ip[other]
        if mine is theirs or len(mine.ips) + len(theirs.ips) > 2:
            return
        mine.take(theirs)
        self._by_ip[other] = mine
        self._listed = -1

    def named(self, name: str | None) -> Machine | None:
        """The one machine known under a name; None when there is none or several."""
        return self._by_name.get(name) if name else None

    def machines(self) -> list[Machine]:
        """Each machine once, by its first address."""
        if len(self._by_ip) != self._listed:
            self._machines = list({id(machine): machine for _, machine in sorted(self._by_ip.items())}.values())
            self._listed = len(self._by_ip)
        return self._machines

    def rows(self) -> Iterable[Host]:
        """The rows of `hosts`: machines that had part in mail, and the name servers that answered for it."""
        for machine in self.machines():
            roles = {role for role, _ in machine.evidence}
            if not machine.sessions and not machine.messages and roles.isdisjoint(("resolver", "authoritative")):
                continue  # named by trace fields or asked about, but never seen
            ips = sorted(machine.ips, key=address_place)
            yield Host(
                host_id(ips[0]),
                ips,
                sorted(machine.names),
                [role for role in ROLES if role in roles],
                evidence_items(machine.evidence),
                machine.software[1] if machine.software is not None else None,
                machine.ts_first,
                machine.ts_last,
                machine.sessions,
                machine.messages,
            )


def address_place(ip: str) -> tuple[bool, str]:
    """The order of a host's addresses: IPv4 first."""
    return (":" in ip, ip)


def evidence_items(counts: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """`evidence` of a host's row, by (role, rule) and how often it held: the most frequent first."""
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"role": role, "rule": rule, "count": count} for (role, rule), count in found]


def host_id(ip: str) -> str:
    """Id of the host whose first address this is."""
    return hashlib.sha256(ip.encode()).hexdigest()[:16]


_MAX_NAMES = 64
"""Names kept of one machine before DNS adds its own: a client may greet with a new one each time."""


def _name(machine: Machine, name: str) -> None:
    folded = fold(name)
    if folded in machine.names or "." not in folded or canonical_ip(folded.strip("[]").removeprefix("ipv6:")) is not None:
        return
    machine.call((folded,))
    if len(machine.names) > _MAX_NAMES:
        machine.names = machine.names - {max(machine.names)}
