"""DNS lookups and the hops they served.

Rules:
1. A lookup serves one hop: the first that needed it.  What was answered from a cache leaves no lookup: it is said of a hop whose
   client asked nothing for it, though other questions of that client are in the capture.
2. A client's lookups come before its connection: exchangers of the recipients' domains, addresses of these, or of the server it
   was told to use; of several alike the last one before the connection.  A further message on an open connection has what no
   new connection needed: its client may have asked before it found that the connection was free.
3. A server's lookups come during the session: who is this client (PTR and back), may this sender (SPF, DKIM, DMARC, MX).
4. A resolver's own questions (asked without RD) serve the resolver, not a hop.
5. A client without lookups of its own may have had them made from another address of its network (several addresses, or a caching
   name server beside it): the question for its server that nobody else had a use for, just before the connection.  Where that
   happens again and again, from one address elsewhere that has no other use for them, too (its addresses of the other family).
6. A host that asks nothing may ask from an address that no name ties to it, or have another ask for it: one address asks who its
   clients are while they wait for the greeting, and for its servers just before it calls them, several times, and neither asks
   such for another host nor is another asker seen to do so for this one (`stand_ins`).

Kept as columns: a lookup costs some 60 octets until it is known to matter.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from ipaddress import ip_address
from operator import add, itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from analyzer.limits import Limits
from analyzer.mail.book import Book, fold, reverse
from analyzer.mail.clocks import Clocks
from analyzer.mail.hops import Leg
from analyzer.mail.hosts import Hosts, Machine
from analyzer.mail.received import canonical_ip
from analyzer.mail.reports import domain_of
from analyzer.mail.sightings import Sighting
from analyzer.protocols.base import SessionInfo
from analyzer.protocols.dns import Transaction

_MS = 1_000_000
_SOON = 5_000_000_000
"""A connection within this time of a lookup is what the lookup was for, unless something better is known."""
_JUST = 1_000_000_000
"""A connection within this time of a neighbour's lookup can be what it was for."""
_LATE = 120_000_000_000
"""Longest time between a lookup and the connection it was made for (dead exchangers are tried in between)."""
_AFTER = 50 * _MS
"""A server's lookups may be seen this long after its reply (they run beside it)."""
_BEFORE_SYN = 2 * _MS
_FOREVER = 1 << 63
_TIES = 2
"""Connections for which an address has to have asked what a host needed before it is taken to ask for it."""
_AT_ONCE = 200 * _MS
"""Such a question and the connection are no further apart."""
_FEW = 32
"""Clients of a server that ask nothing, beyond which nobody elsewhere is looked for who asks for them."""
_CONFIRM = 30_000_000_000
"""Time a server may take to confirm a client's name."""
_DOMAINS = 100
"""Recipient domains of one hop looked at."""
_ACTIVE = 64
"""Sessions of one server looked at, latest first, when a lookup could be for any."""
_BATCH = 4096
"""Rows put into the columns at once."""
_FORWARD = ("A", "AAAA", "CNAME", "HTTPS", "SVCB")
_OUTWARD = ("mx", "address", "tlsa", "mta_sts")
"""Purposes of a client's lookups for its next hop."""


NOTHING, RECORDS, OWN_RECORDS, NO_DATA, NO_NAME, FAILURE = range(6)
"""What an answer tells: nothing that can be relied on; records (of its own zones only, so that an alias may lead out of them);
that there are none of the type (RFC 2308 2.2); that there is no such name (2.1); that the server could not find out."""

Word = TypeVar("Word")
Need = tuple[int, int, int, int]


class Visit(NamedTuple):
    """A connection whose ends may have had another ask for them; times are on the captures' common clock."""

    syn: int
    greeted: int | None
    """When the server greeted."""
    client_ip: str
    server_ip: str


class Use(NamedTuple):
    """One connection as a user of lookups; times are on the captures' common clock."""

    syn: int
    """When it was opened: its SYN, or its first frame."""
    end: int
    session: SessionInfo | None
    client_ip: str
    server_ip: str
    leg: Leg | None
    """The hop its lookups belong to: the session's first, or the one that a failed connection was made for."""
    legs: tuple[Leg, ...]
    """All hops of the session."""
    floor: int
    """Nothing before this can have been for it: the message was not there yet."""
    reused: bool = False
    """A further message on an open connection; `syn` is then when it was begun."""


class Queue:
    """Free rows of one question, by time; read by connections in time order."""

    __slots__ = ("_at", "_free", "_rows")

    def __init__(self, rows: list[int]) -> None:
        self._rows = rows
        self._at = 0
        self._free: list[int] = []

    def last(self, ts: "array[int]", until: int, since: int) -> int | None:
        """Take the last free row up to `until`, when it is not before `since`."""
        while self._at < len(self._rows) and ts[self._rows[self._at]] <= until:
            self._free.append(self._rows[self._at])
            self._at += 1
        return self._free.pop() if self._free and ts[self._free[-1]] >= since else None


class Lookups:
    """All lookups of a capture, and what they were for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.book = Book(limits)
        self.dropped = 0
        self.ts = array("q")
        self.ts_reply = array("q")
        """-1: no answer."""
        self.at = self.ts
        """Times of questions on the captures' common clock, and of answers: all that is reasoned by."""
        self._at_reply = self.ts_reply
        self.clocks = Clocks()
        self.frame = array("q")
        self._reply_frame = array("q")
        self._id = array("i")
        self._client = array("q")
        self._clients: dict[int, str] = {}
        """Who asked, by its hash."""
        self._said = array("i")
        self._result = array("b")
        self._server = array("i")
        self._name = array("i")
        self._kind = array("i")
        self._origin = array("i")
        self._waiting: list[Transaction] = []
        """Fed, but not in the columns yet."""
        self._names: dict[str, int] = {}
        self._servers: dict[str, int] = {}
        self._kinds: dict[tuple[str, str, str, bool], int] = {}
        self._sources: dict[str, int] = {}
        self._words: list[str] = []
        self._server_ips: list[str] = []
        self._kind_words: list[tuple[str, str, str, bool]] = []
        self._source_words: list[str] = []
        self.asked: dict[str, list[int]] = {}
        """Server address -> [answers with RA, answers with AA, questions without RD, questions, first ts, last ts]."""
        self.bound: dict[int, Leg] = {}
        """Row -> the hop it served."""
        self.cached: dict[Leg, int] = {}
        """Hop whose client asked nothing for it -> the row whose answer it can have used again, -1: none in the capture."""
        self.others: dict[int, str] = {}
        """Row -> who asked, where that is not an end of the hop it served."""
        self.stand_ins: dict[int, str] = {}
        """Machine -> who asks for it (rule 6)."""
        self._rows_of: dict[int, dict[str, list[int]]] = {}
        """Machine -> name -> its rows, by time."""
        self._owners: dict[str, list[str]] = {}
        self._crowded: set[str] = set()
        """Servers with many clients that ask nothing."""
        self._taking_in: set[int] = set()
        """Machines that took mail in: what they ask is about their clients."""
        self._by_key: dict[tuple[int, int, str], int] | None = None
        self._bound_frames: set[int] = set()
        self._elsewhere: Collection[int] = ()

    def __len__(self) -> int:
        return len(self.ts)

    def feed(self, lookups: Iterable[Transaction]) -> list[Transaction]:
        """Take questions and their answers; those of them that may serve a hop, and so have rows (in this order)."""
        some = [t for t in lookups if t.opcode == "QUERY" and t.qclass == "IN" and t.qname is not None and t.qtype is not None]
        self._waiting += some
        if len(self._waiting) >= _BATCH:
            self.flush()
        return some

    def begin(self, elsewhere: Collection[int] = ()) -> None:
        """Before they are bound again: nothing is bound; the rows `elsewhere` are known to have served what is not told now."""
        self.flush()
        self._elsewhere = elsewhere
        self.bound = {}
        self.cached = {}
        self.others = {}
        self._by_key = None

    def flush(self) -> None:
        """Put what was fed since the last time into the columns: many rows at once cost a fraction of one by one."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        column = _columns(waiting)
        self._serve(column)
        learn = self.book.learn
        said = [learn(answers) if answers else -1 for answers in column["answers"]]
        room = max(self._limits.lookups - len(self.ts), 0)
        if room < len(waiting):
            self.dropped += len(waiting) - room
            column = {name: values[:room] for name, values in column.items()}
        self.ts.extend(_numbers("q", column["ts"]))
        self.ts_reply.extend(_numbers("q", column["ts_reply"]))
        self.frame.extend(_numbers("q", column["frame"]))
        self._reply_frame.extend(_numbers("q", column["reply_frame"]))
        self._id.extend(_numbers("i", column["dns_id"]))
        self._client.extend(array("q", [*map(hash, column["client_ip"])]))
        if len(self._clients) < self._limits.hosts:
            self._clients.update((hash(ip), ip) for ip in set(column["client_ip"]))
        self._said.extend(array("i", said[:room]))
        answers = (column[name] for name in ("answered", "tc", "rcode", "ra", "rd", "aa"))
        self._result.extend(array("b", [*map(_result, *answers, map(bool, column["answers"]))]))
        self._name.extend(_codes(self._names, self._words, column["qname"]))
        self._server.extend(_codes(self._servers, self._server_ips, column["server_ip"]))
        purposes = [purpose or "other" for purpose in column["purpose"]]
        recursive = [rd is not False for rd in column["rd"]]
        kinds = zip(column["qtype"], purposes, column["transport"], recursive, strict=True)
        self._kind.extend(_codes(self._kinds, self._kind_words, list(kinds)))
        self._origin.extend(_codes(self._sources, self._source_words, column["source"]))

    def _serve(self, column: dict[str, tuple[Any, ...]]) -> None:
        """Count what each server does."""
        numbers: dict[str, int] = {}
        server = np.array(_codes(numbers, [], column["server_ip"]))
        ts, ts_reply = (np.array(_numbers("q", column[name])) for name in ("ts", "ts_reply"))
        first = np.full(len(numbers), np.iinfo(np.int64).max)
        np.minimum.at(first, server, np.where(ts >= 0, ts, np.maximum(ts_reply, 0)))
        last = np.zeros(len(numbers), np.int64)
        np.maximum.at(last, server, np.maximum(ts_reply, ts))
        answered, ra, aa = (np.array(column[name], np.bool_) for name in ("answered", "ra", "aa"))
        unasked, every = np.array([rd is False for rd in column["rd"]]), np.ones(len(server), np.bool_)
        counts = (np.bincount(server[true], minlength=len(numbers)) for true in (answered & ra, answered & aa, unasked, every))
        of_server = zip(*(each.tolist() for each in counts), first.tolist(), last.tolist(), strict=True)
        asked = self.asked
        for ip, new in zip(numbers, of_server, strict=True):
            facts = asked.get(ip)
            if facts is not None:
                facts[:] = (*map(add, facts[:4], new[:4]), min(facts[4], new[4]), max(facts[5], new[5]))
            elif len(asked) < self._limits.hosts:
                asked[ip] = list(new)

    def align(self, clocks: Clocks) -> None:
        """All rows are in: put their times on one clock."""
        self.flush()
        self.clocks = clocks
        if clocks:
            sources = [self._source_words[origin] for origin in self._origin]
            self.at, self._at_reply = (
                array("q", (ts if ts < 0 else clocks.true(source, ts) for source, ts in zip(sources, column, strict=True)))
                for column in (self.ts, self.ts_reply)
            )

    def qname(self, row: int) -> str:
        """Name asked for, absolute."""
        return self._words[self._name[row]]

    def qtype(self, row: int) -> str:
        """Type asked for."""
        return self._kind_words[self._kind[row]][0]

    def server_ip(self, row: int) -> str:
        """Who was asked."""
        return self._server_ips[self._server[row]]

    def is_by(self, row: int, machine: Machine | None) -> bool:
        """Whether this machine asked, or another for it."""
        if machine is None:
            return False
        client = self._client[row]
        return any(hash(ip) == client for ip in machine.ips) or client == hash(self.stand_ins.get(id(machine)))

    def is_outward(self, row: int, leg: Leg) -> bool:
        """Whether a lookup of a hop is its client's; else it is its server's."""
        return self.is_by(row, leg.client) or (row in self.others and not self.is_by(row, leg.server))

    def source(self, row: int) -> str:
        """Capture it is in."""
        return self._source_words[self._origin[row]]

    def reply_frame(self, row: int) -> int | None:
        """Frame of the answer."""
        frame = self._reply_frame[row]
        return frame if frame >= 0 else None

    def answers(self, row: int) -> list[str] | None:
        """The answer section, as long as the book had room."""
        return self.book.section(self._said[row]) if self._said[row] >= 0 else None

    def section(self, row: int) -> int:
        """Number of its answer section: the same for answers that say the same, -1 for none."""
        return self._said[row]

    def result(self, row: int) -> int:
        """What came back: `NOTHING RECORDS OWN_RECORDS NO_DATA NO_NAME FAILURE`."""
        return self._result[row]

    def target(self, leg: Leg) -> str:
        """What a hop's client had to find: the recipients' domain, or its own server."""
        found = _domains((leg,)) if leg.kind == "relay" else self.owners_of(leg.server_ip or "")
        return found[0] + "." if found else leg.server_ip or ""

    def when(self, row: int) -> tuple[int, str, int, int]:
        """When it was answered (common clock), and something for every tie."""
        return (max(self._at_reply[row], self.at[row]), self.source(row), self.frame[row], self._id[row])

    def rows_by_name(self) -> dict[str, list[int]]:
        """Rows that tell something, by folded name; made for whoever asks, for it is large."""
        self.flush()
        found: dict[str, list[int]] = {}
        folded = [fold(word) for word in self._words]
        for row, name in enumerate(self._name):
            if self._result[row] != NOTHING:
                found.setdefault(folded[name], []).append(row)
        return found

    def owners_of(self, ip: str) -> list[str]:
        """Names that lead to an address, once all answers are in."""
        found = self._owners.get(ip)
        if found is None:
            found = self._owners[ip] = sorted(self.book.owners_of(ip))
        return found

    def asked_by(self, machine: Machine) -> dict[str, list[int]]:
        """What a machine asked for as a client: folded name -> rows by time."""
        return self._rows_of.get(id(machine), {})

    def askers(self, machines: Iterable[Machine], visits: Iterable[tuple[str, str]]) -> set[Machine]:
        """Those of the machines that lookups may be for: they, a neighbour or a stranger asked.

        `visits`: (client, server) addresses of all connections.
        """
        self.flush()
        asked = set(self._client)
        recursive = [recursive for *_, recursive in self._kind_words]
        asking = {client for client, kind in zip(self._client, self._kind, strict=True) if recursive[kind]}
        networks = {ip.rpartition(".")[0] for ip in self._clients.values() if ":" not in ip}
        near: dict[str, bool] = {}
        found: set[Machine] = set()
        by_ip: dict[str, Machine] = {}
        for machine in machines if asked else ():
            for ip in machine.ips:
                by_ip[ip] = machine
                network = ip.rpartition(".")[0] or ip
                if network not in near:
                    near[network] = hash(ip) in asked or network in networks
                if near[network]:
                    found.add(machine)
        known = set(map(hash, by_ip))
        strange = {fold(self._words[n]) for n in {self._name[row] for row in self._rows_to_tell(known)}}
        spoken = {fold(self._words[n]) for n in {self._name[row] for row in self._rows_to_tell(())}}
        silent: dict[str, set[str]] = {}
        for client_ip, server_ip in visits if spoken else ():
            if reverse(client_ip) in strange and server_ip in by_ip:
                found.add(by_ip[server_ip])
            client, names = by_ip.get(client_ip), self.owners_of(server_ip)
            if client is not None and not spoken.isdisjoint(names) and asking.isdisjoint(map(hash, client.ips)):
                silent.setdefault(server_ip, set()).add(client_ip)
                if not strange.isdisjoint(names):
                    found.add(client)
        self._crowded = {server_ip for server_ip, clients in silent.items() if len(clients) > _FEW}
        for server_ip, clients in silent.items():
            if server_ip not in self._crowded:
                found.update(by_ip[ip] for ip in clients)
        return found

    def _rows_to_tell(self, known: Collection[int]) -> Iterator[int]:
        """Who is this client and where is this server, asked by others than these."""
        strangers = {client for client in self._clients if client not in known}
        kinds = {
            code
            for code, (_, purpose, _, recursive) in enumerate(self._kind_words)
            if recursive and purpose in ("ptr", "address")
        }
        if strangers and kinds:
            for row, client in enumerate(self._client):
                if client in strangers and self._kind[row] in kinds and self.at[row] >= 0:
                    yield row

    def settle(self, machines: Iterable[Machine], visits: Iterable[Visit] = ()) -> None:
        """All rows are in: sort out those of the machines that had part in mail; `visits`: their connections."""
        self._owners = {}
        wanted = {hash(ip): machine for machine in machines for ip in machine.ips}
        self._rows_of = {}
        folded = [fold(word) for word in self._words]
        self._sort_out({client: id(machine) for client, machine in wanted.items()}, folded)
        self._find_stand_ins(wanted, visits, folded)
        for names in self._rows_of.values():
            for rows in names.values():
                rows.sort(key=self._when)

    def _sort_out(self, owners: dict[int, int], folded: list[str]) -> None:
        """Give rows to machines, by who asked."""
        kinds = [recursive for *_, recursive in self._kind_words]
        for row, client in enumerate(self._client) if owners else ():
            machine = owners.get(client)
            if machine is not None and kinds[self._kind[row]] and self.at[row] >= 0:
                self._rows_of.setdefault(machine, {}).setdefault(folded[self._name[row]], []).append(row)

    def _find_stand_ins(self, wanted: dict[int, Machine], visits: Iterable[Visit], folded: list[str]) -> None:
        """Rule 6: who asks for hosts that ask nothing; what it asks counts as theirs."""
        self.stand_ins = {}
        rows = sorted(self._rows_to_tell(wanted), key=self._when)
        if not rows:
            return
        needs = self._needs(wanted, visits)
        met: dict[tuple[int, int], set[int]] = {}
        fits: dict[int, int] = {}
        for row in rows:
            n, asker = folded[self._name[row]], self._client[row]
            jobs = needs.get((self.purpose(row) == "ptr", n))
            if jobs is None:
                continue
            ts = self.at[row]
            at = bisect_right(jobs, (ts, _FOREVER))
            some = [job for job in jobs[max(at - _ACTIVE, 0) : at] if ts <= job[1]]
            hosts = {host for _, _, host, _ in some}
            if len(hosts) != 1:  # for nobody that we see, or for whom?
                fits[asker] = fits.get(asker, 0) - (not hosts)
                continue
            fits[asker] = fits.get(asker, 0) + 1
            visited = met.setdefault((hosts.pop(), asker), set())
            visited.add(next((visit for *_, visit in some if visit not in visited), some[0][3]))
        askers, hosts_of = Counter(host for host, _ in met), Counter(asker for _, asker in met)
        for (host, asker), visited in met.items():
            alone = askers[host] == 1 == hosts_of[asker]
            if alone and len(visited) >= _TIES and fits[asker] > 0:
                self.stand_ins[host] = self._clients[asker]
        self._sort_out({hash(ip): host for host, ip in self.stand_ins.items()}, folded)

    def _needs(self, wanted: dict[int, Machine], visits: Iterable[Visit]) -> "dict[tuple[bool, str], list[Need]]":
        """What hosts that ask nothing needed to know, and when: (who calls?, name) -> (since, until, host, connection)."""
        needs: dict[tuple[bool, str], list[Need]] = {}
        for n, visit in enumerate(visits):
            client, server = wanted.get(hash(visit.client_ip)), wanted.get(hash(visit.server_ip))
            if server is not None and id(server) not in self._rows_of and visit.greeted is not None:
                job = (visit.syn - _BEFORE_SYN, visit.greeted, id(server), n)
                needs.setdefault((True, reverse(visit.client_ip)), []).append(job)
            if client is not None and id(client) not in self._rows_of:
                for name in self.owners_of(visit.server_ip):
                    needs.setdefault((False, name), []).append((visit.syn - _JUST, visit.syn, id(client), n))
        for jobs in needs.values():
            jobs.sort()
        return needs

    def _when(self, row: int) -> tuple[int, int, int, int]:
        return (self.at[row], self._origin[row], self.frame[row], self._id[row])

    def purpose(self, row: int) -> str:
        """What the name and type say it is for."""
        return self._kind_words[self._kind[row]][1]

    # binding

    def bind(self, hosts: Hosts, uses: list[Use], servers: Iterable[str] = ()) -> None:
        """Give each lookup to the hop it served.  `servers`: of further connections, which no lookup can have served."""
        self._taking_in = (
            {hash(use.server_ip) for use in uses} | set(map(hash, servers)) | set(map(hash, self.stand_ins.values()))
        )
        uses = sorted(uses, key=lambda u: (u.syn, u.client_ip, u.session.client_port if u.session else 0))
        by_client: dict[int, list[Use]] = {}
        by_server: dict[int, list[Use]] = {}
        for use in uses:
            client, server = hosts.of(use.client_ip), hosts.of(use.server_ip)
            if id(client) in self._rows_of:
                by_client.setdefault(id(client), []).append(use)
            if id(server) in self._rows_of and not use.reused:
                by_server.setdefault(id(server), []).append(use)
        opened: dict[int, int] = {}  # how many opened a connection of their own: these come first
        for machine, theirs in by_client.items():
            opened[machine] = sum(not use.reused for use in theirs)
            theirs.sort(key=lambda use: use.reused)
        taken: dict[int, Leg | None] = dict.fromkeys(self._elsewhere)
        pointed = {machine: self._callers(self._rows_of[machine], theirs, taken) for machine, theirs in by_server.items()}
        for machine, found in pointed.items():
            self._confirm(self._rows_of[machine], found, taken, True)
        served: dict[int, dict[tuple[int, str, int], int]] = {machine: {} for machine in by_client}
        for machine, theirs in by_client.items():
            self._next_hops(self._rows_of[machine], theirs, range(opened[machine]), taken, served[machine], _SOON)
        for machine, theirs in by_server.items():
            self._policies(self._rows_of[machine], theirs, taken, False)
        self._neighbours(hosts, uses, taken)
        for machine, theirs in by_client.items():
            self._next_hops(self._rows_of[machine], theirs, range(opened[machine]), taken, served[machine], _LATE)
        for machine, found in pointed.items():
            self._confirm(self._rows_of[machine], found, taken, False)
        for machine, theirs in by_client.items():
            names, own = self._rows_of[machine], opened[machine]
            self._exchange(names, theirs, range(own), taken, served[machine])
            self._next_hops(names, theirs, range(own, len(theirs)), taken, served[machine], _SOON)
            self._exchange(names, theirs, range(own, len(theirs)), taken, served[machine])
            self._straighten(theirs, taken, served[machine])
        for machine, theirs in by_server.items():
            self._policies(self._rows_of[machine], theirs, taken, True)
        for machine, theirs in by_client.items():
            self._leftovers(self._rows_of[machine], theirs[: opened[machine]], taken)
        self.bound = {row: leg for row, leg in taken.items() if leg is not None}
        for row in sorted(self.bound, key=self._when):
            leg = self.bound[row]
            if leg.dns is None:
                leg.dns = []
            leg.dns.append(row)
        asked_from = {hash(ip): ip for ip in self.stand_ins.values()}
        for row in self.bound if asked_from else ():
            if self._client[row] in asked_from:
                self.others[row] = asked_from[self._client[row]]
        for machine, theirs in by_client.items():
            self._from_cache(self._rows_of[machine], theirs[: opened[machine]])

    def _from_cache(self, names: dict[str, list[int]], uses: list[Use]) -> None:
        """Rule 1: hops for which their client needed to know an address and surely asked nothing."""
        for use in uses:
            leg, session = use.leg, use.session
            if leg is None or session is None or leg.index > 1 or leg.kind not in ("submit", "relay"):
                continue
            if session.connection.start != "handshake" or any(self._for_way(row, leg) for row in leg.dns or ()):
                continue
            before: list[int] = []
            for name in self._targets(use, names):
                rows = names[name]
                at = bisect_right(rows, use.syn + _MS, key=self.at.__getitem__)
                before += [row for row in rows[max(at - _ACTIVE, 0) : at] if self.purpose(row) in _OUTWARD]
            last = max(before, key=self._when, default=-1)
            if last < 0 or use.floor < 0 or self.at[last] < use.floor:  # else it may have been asked for this message, too
                self.cached[leg] = last

    def _for_way(self, row: int, leg: Leg) -> bool:
        """Whether a lookup of a hop is its client's for the way to the server."""
        return self.purpose(row) in _OUTWARD and self.is_outward(row, leg)

    def _next_hops(
        self,
        names: dict[str, list[int]],
        uses: list[Use],
        some: range,
        taken: dict[int, Leg | None],
        served: dict[tuple[int, str, int], int],
        within: int,
    ) -> None:
        """Rule 2: some of the connections, from the first to the last, each take the last free lookup of a kind before them."""
        queues: dict[tuple[str, int], Queue] = {}
        for n, name, kind in self._unserved(names, uses, some, served):
            use = uses[n]
            queue = queues.get((name, kind))
            if queue is None:
                rows = [row for row in names[name] if self._kind[row] == kind and row not in taken]
                queue = queues[name, kind] = Queue(rows)
            row = queue.last(self.at, use.syn + _MS, max(use.floor, use.syn - within))
            if row is not None:
                taken[row] = use.leg
                served[n, name, kind] = row

    def _unserved(
        self, names: dict[str, list[int]], uses: list[Use], some: range, served: dict[tuple[int, str, int], int]
    ) -> Iterator[tuple[int, str, int]]:
        """Of some connections the lookups that were made near them and that they have none of: (connection, name, kind)."""
        for n in some:
            for name in self._targets(uses[n], names):
                for kind in self._kinds_near(names[name], uses[n].syn):
                    if self._kind_words[kind][1] in _OUTWARD and (n, name, kind) not in served:
                        yield n, name, kind

    def _exchange(
        self,
        names: dict[str, list[int]],
        uses: list[Use],
        some: range,
        taken: dict[int, Leg | None],
        served: dict[tuple[int, str, int], int],
    ) -> None:
        """Rule 2: of some, who got none may have the one of another that has an earlier one to take instead."""
        owners = {row: key for key, row in served.items()}
        for n, name, kind in self._unserved(names, uses, some, served):
            use, rows = uses[n], names[name]
            for row in self._window(rows, kind, use):
                owner = owners.get(row)
                if owner is None:
                    continue
                other = uses[owner[0]]
                free = next((r for r in self._window(rows, kind, other) if r not in taken), None)
                if free is not None:
                    taken[row], taken[free] = use.leg, other.leg
                    served[n, name, kind], served[owner] = row, free
                    owners[row], owners[free] = (n, name, kind), owner
                    break

    def _straighten(self, uses: list[Use], taken: dict[int, Leg | None], served: dict[tuple[int, str, int], int]) -> None:
        """Rule 2: of lookups of a kind made just before their connections, the first is for the first that it can be for.

        So the questions that a client asked one after the other for one hop stay together.
        """
        alike: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for (n, name, kind), row in served.items():
            if uses[n].syn - self.at[row] <= _JUST:
                alike.setdefault((name, kind), []).append((row, n))
        for (name, kind), pairs in alike.items():
            if len(pairs) < 2:
                continue
            jobs = sorted((max(uses[n].floor, uses[n].syn - _JUST), uses[n].syn + _MS, n) for _, n in pairs)
            for row, n in self._in_turn(sorted((row for row, _ in pairs), key=self._when), jobs):
                taken[row], served[n, name, kind] = uses[n].leg, row

    def _window(self, rows: list[int], kind: int, use: Use) -> Iterator[int]:
        """Lookups of a kind that can have been for a connection, latest first."""
        at = bisect_right(rows, use.syn + _MS, key=self.at.__getitem__)
        since = max(use.floor, use.syn - _LATE)
        for row in reversed(rows[max(at - _ACTIVE, 0) : at]):
            if self.at[row] < since:
                return
            if self._kind[row] == kind:
                yield row

    def _kinds_near(self, rows: list[int], ts: int) -> list[int]:
        at = bisect_right(rows, ts + _MS, key=self.at.__getitem__)
        return sorted({self._kind[row] for row in rows[max(at - _ACTIVE, 0) : at]})

    def _leftovers(self, names: dict[str, list[int]], uses: list[Use], taken: dict[int, Leg | None]) -> None:
        """Repeated questions (no answer came, or two programs asked) go with the connection that followed."""
        for use in uses:
            if use.leg is None:
                continue
            for name in self._targets(use, names):
                rows = names[name]
                at = bisect_right(rows, use.syn + _MS, key=self.at.__getitem__)
                for row in rows[max(at - _ACTIVE, 0) : at]:
                    soon = self.at[row] >= max(use.floor, use.syn - (_LATE if use.floor > 0 else _SOON))
                    if soon and row not in taken and self.purpose(row) in _OUTWARD:
                        taken[row] = use.leg

    def _neighbours(self, hosts: Hosts, uses: list[Use], taken: dict[int, Leg | None]) -> None:
        """Rule 5: a client that asks nothing itself, and a question for its server from its own network just before."""
        strangers = [u for u in uses if u.leg is not None and not u.reused and id(hosts.of(u.client_ip)) not in self._rows_of]
        if not strangers:
            return
        wanted = {name for use in strangers for name in self.owners_of(use.server_ip)}
        codes = {code for word, code in self._names.items() if fold(word) in wanted}
        queues: dict[tuple[int, str, int], list[int]] = {}
        for row, code in enumerate(self._name):
            if code in codes and row not in taken and self._client[row] not in self._taking_in and self.at[row] >= 0:
                _, purpose, _, recursive = self._kind_words[self._kind[row]]
                if recursive and purpose == "address":
                    key = (self._client[row], fold(self._words[code]), self._kind[row])
                    queues.setdefault(key, []).append(row)
        for rows in queues.values():
            rows.sort(key=self._when)
        sorted_ = {key: Queue(rows) for key, rows in queues.items()}
        askers = {key[0] for key in sorted_}
        for use in strangers if askers else ():
            network = _network(use.client_ip.rpartition(".")[0] if ":" not in use.client_ip else "")
            near = {asker: ip for asker, ip in network.items() if asker in askers and ip != use.client_ip}
            names = set(self.owners_of(use.server_ip))
            for key, queue in sorted_.items():
                if key[0] in near and key[1] in names:
                    found = queue.last(self.at, use.syn + _MS, max(use.floor, use.syn - _JUST))
                    if found is not None:
                        taken[found] = use.leg
                        self.others[found] = near[key[0]]
        served = {leg for row in self.others if (leg := taken[row]) is not None}
        groups: dict[tuple[str, str], list[Use]] = {}
        clients: dict[str, set[str]] = {}
        for use in strangers if queues else ():
            clients.setdefault(use.server_ip, set()).add(use.client_ip)
            if use.leg not in served and use.server_ip not in self._crowded:
                groups.setdefault((network_of(use.client_ip), use.server_ip), []).append(use)
        for (_, server_ip), some in groups.items():
            if len(clients[server_ip]) <= _FEW:
                names = set(self.owners_of(server_ip))
                left = {key: [r for r in rows if r not in taken] for key, rows in queues.items() if key[1] in names}
                self._from_afar(some, {key: rows for key, rows in left.items() if rows}, taken)

    def _from_afar(self, uses: list[Use], questions: dict[tuple[int, str, int], list[int]], taken: dict[int, Leg | None]) -> None:
        """Rule 5: who has another address elsewhere asks each time at once before; one asker, and for hardly anything else."""
        met: dict[int, list[tuple[int, Use]]] = {}
        for (asker, _, _), rows in questions.items():
            queue = Queue(rows)
            for use in uses:
                found = queue.last(self.at, use.syn + _MS, max(use.floor, use.syn - _AT_ONCE))
                if found is not None:
                    met.setdefault(asker, []).append((found, use))
        if len(met) != 1:
            return
        ((asker, pairs),) = met.items()
        asked = sum(len(rows) for (other, *_), rows in questions.items() if other == asker)
        if len({use.syn for _, use in pairs}) < _TIES or 2 * len(pairs) < asked or asker not in self._clients:
            return
        for row, use in pairs:
            taken[row] = use.leg
            self.others[row] = self._clients[asker]

    def _targets(self, use: Use, names: dict[str, list[int]]) -> list[str]:
        """Names that a client may have asked for to open this connection, those it did ask for."""
        wanted: dict[str, None] = {}
        book = self.book
        known = False
        for domain in _domains(use.legs) if use.legs else _domains((use.leg,) if use.leg else ()):
            targets = book.exchangers.get(domain) or (domain,)  # RFC 5321 5.1: without MX the domain is its own exchanger
            exchangers = {name for target in targets for name in book.chain(target)}
            here = any(use.server_ip in book.addresses.get(name, ()) for name in exchangers)
            known = known or here
            if here or not any(name in book.addresses for name in exchangers) or use.session is None:
                wanted[domain] = wanted["_mta-sts." + domain] = wanted["mta-sts." + domain] = None
                for name in sorted(exchangers):
                    wanted[name] = wanted["_25._tcp." + name] = None
        if not known or not any(name in names for name in wanted):  # a server of its own may be an exchanger, too
            for name in self.owners_of(use.server_ip):
                wanted[name] = wanted["_25._tcp." + name] = None
            session = use.session
            if session is not None:
                for text in (session.sni, session.server_name):
                    if text:
                        wanted[fold(text)] = None
        return [name for name in wanted if name in names]

    def may_ask(self, s: Sighting) -> set[str]:
        """Folded names that a client may have asked for to hand a message over: at least those of `_targets`."""
        info, book = s.session, self.book
        found = {fold(text) for text in (info.sni, info.server_name) if text} | book.owners_of(info.server_ip)
        for domain in {d for r in s.recipients[:_DOMAINS] if (d := domain_of(r.address))}:
            found |= {domain, "_mta-sts." + domain, "mta-sts." + domain}
            for target in book.exchangers.get(domain) or (domain,):
                found.update(book.chain(target))
        return found | {"_25._tcp." + name for name in found}

    def _callers(self, names: dict[str, list[int]], uses: list[Use], taken: dict[int, Leg | None]) -> list[tuple[Use, int]]:
        """Rule 3, first half: who is this client?  Sessions in time order, each takes the first lookup after its SYN.

        Returns when it was asked, for those of which it was.
        """
        found: list[tuple[Use, int]] = []
        alike: dict[str, list[tuple[int, int, int]]] = {}
        for n, use in enumerate(uses):
            pointer = reverse(use.client_ip)
            if pointer in names and (end := self._greeted(use)) is not None:
                alike.setdefault(pointer, []).append((use.syn - _BEFORE_SYN, end, n))
        given: dict[int, int] = {}
        for pointer, jobs in alike.items():
            if len(jobs) > 1:
                for row, n in self._in_turn([row for row in names[pointer] if row not in taken], jobs):
                    given[n], taken[row] = row, uses[n].leg
        for n, use in enumerate(uses):
            if n in given:
                found.append((use, self.at[given[n]]))
                continue
            asked: int | None = None
            rows = names.get(reverse(use.client_ip))
            for row in self._first_after(rows, use.syn - _BEFORE_SYN, use.end + _AFTER, taken):
                taken[row] = use.leg
                asked = self.at[row] if asked is None else min(asked, self.at[row])
            if asked is not None:
                found.append((use, asked))
        return found

    def _greeted(self, use: Use) -> int | None:
        """When a server greeted: most have asked by then who calls."""
        session = use.session
        if session is None or session.ts_banner is None:
            return None
        return self.clocks.true(session.source, session.ts_banner)

    def _in_turn(self, rows: list[int], jobs: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
        """Of those that were waiting when a lookup was made, it is for the one that waited no longer first: (lookup, who).

        `rows` and `jobs` by time; jobs are (since when, until when, who).
        """
        ready: list[tuple[int, int]] = []
        begun = 0
        for row in rows:
            ts = self.at[row]
            while begun < len(jobs) and jobs[begun][0] <= ts:
                heappush(ready, jobs[begun][1:])
                begun += 1
            while ready and ready[0][0] < ts:
                heappop(ready)
            if ready:
                yield row, heappop(ready)[1]

    def _confirm(
        self, names: dict[str, list[int]], found: list[tuple[Use, int]], taken: dict[int, Leg | None], own: bool
    ) -> None:
        """Does the client's name lead back to it?

        `own`: by addresses of its family; others may be for the server's own next hop.
        """
        for use, asked in found:
            family = "AAAA" if ":" in use.client_ip else "A"
            called = set(self.book.pointers_of(use.client_ip))
            if use.session is not None and use.session.client_name:
                called.add(fold(use.session.client_name))
            until = min(use.end + _AFTER, asked + _CONFIRM)
            for name in sorted(called):
                for row in self._first_after(names.get(name), asked, until, taken):
                    if self.qtype(row) in _FORWARD and (self.qtype(row) == family) is own:
                        taken[row] = use.leg

    def _first_after(self, rows: list[int] | None, start: int, until: int, taken: dict[int, Leg | None]) -> list[int]:
        """The first free row of each kind in a time."""
        if not rows:
            return []
        found: dict[int, int] = {}
        at = bisect_left(rows, start, key=self.at.__getitem__)
        for row in rows[at : at + _ACTIVE]:
            if self.at[row] > until:
                break
            if row not in taken:
                found.setdefault(self._kind[row], row)
        return list(found.values())

    def _policies(self, names: dict[str, list[int]], uses: list[Use], taken: dict[int, Leg | None], greeted: bool) -> None:
        """Rule 3, second half: may this sender?

        Of the transactions open at its time that a lookup fits it is for one for which the same was not asked yet, whose client
        waits for the reply that hangs on it, and of these for the one that was answered first.  `greeted`: the addresses of the
        name it greeted with; they may be for the server's own next hop.
        """
        legs = [leg for use in uses for leg in use.legs if leg.sighting is not None and leg.carried]
        legs.sort(key=_leg_start)
        if not legs:
            return
        fits: dict[int, set[str]] = {}
        asked: set[tuple[int, str, int]] = set()
        greetings = {fold(leg.session.client_name) for leg in legs if leg.session is not None and leg.session.client_name}
        free = [
            (row, name)
            for name, rows in names.items()
            for row in rows
            if row not in taken and (name in greetings and self.qtype(row) in _FORWARD) is greeted
        ]
        for row, name in sorted(free, key=lambda of: self._when(of[0])):
            ts, kind = self.at[row], self._kind[row]
            best: tuple[bool, bool, int, int] | None = None
            at = bisect_right(legs, ts, key=_leg_start)
            for n in range(at - 1, max(at - 1 - _ACTIVE, -1), -1):
                leg = legs[n]
                if ts > leg.end + _AFTER:
                    continue
                names_of = fits.get(id(leg))
                if names_of is None:
                    names_of = fits[id(leg)] = self._senders(leg)
                if name in names_of or (self.purpose(row) == "dnsbl" and self._blocks(name, leg)):
                    until = _answered(leg, ts, name)
                    rank = ((id(leg), name, kind) in asked, until is None, leg.end if until is None else until, -n)
                    best = rank if best is None else min(rank, best)
            if best is not None:
                leg = legs[-best[3]]
                taken[row] = leg
                asked.add((id(leg), name, kind))

    def _senders(self, leg: Leg) -> set[str]:
        """Names that a server may ask for to judge a sender."""
        s = leg.sighting
        assert s is not None
        found: set[str] = set()
        domains = [domain_of(s.mail_from)]
        if s.header_from is not None:
            domains.append(domain_of(s.header_from[-512:].decode("utf-8", "replace").rpartition("<")[2].rstrip("> ")))
        if s.session.client_name:
            domains.append(fold(s.session.client_name))
        domains += [d for d, _ in s.dkim]
        for domain in domains:
            if not domain or canonical_ip(domain.strip("[]")) is not None:
                continue
            found.add(domain)
            found.update(self.book.exchangers.get(domain, ()))
            found |= self.book.policy_names(domain)
            labels = domain.split(".")[-10:]
            for i in range(max(len(labels) - 1, 1)):  # RFC 7489 6.6.3: the domain, then its organizational domain
                found.add("_dmarc." + ".".join(labels[i:]))
            found.add("default._bimi." + domain)
            found.add("_adsp._domainkey." + domain)
        found.update(f"{selector}._domainkey.{domain}" for domain, selector in s.dkim)
        return found

    def _blocks(self, name: str, leg: Leg) -> bool:
        """A blocklist question about this hop's client or sender."""
        client = reverse(leg.client_ip or "")
        listed = client.removesuffix("in-addr.arpa").removesuffix("ip6.arpa")
        if listed and name.startswith(listed):
            return True
        s = leg.sighting
        domain = domain_of(s.mail_from) if s is not None else None
        return domain is not None and name.startswith(domain + ".")

    # rows of the table

    def find(self, t: Transaction) -> Leg | None:
        """The hop that a row of the table served."""
        if not self.bound:
            return None
        if self._by_key is None:
            self._bound_frames = {self.frame[r] for r in self.bound}
            self._by_key = {
                (self.frame[r], self._id[r], " ".join((self.qname(r), self.qtype(r), self.source(r)))): r for r in self.bound
            }
        frame = t.frame if t.frame is not None else -1
        if t.qname is None or frame not in self._bound_frames:
            return None
        words = " ".join((t.qname, t.qtype or "", t.source))
        row = self._by_key.get((frame, t.dns_id if t.dns_id is not None else -1, words))
        return self.bound[row] if row is not None else None

    def failed(self, row: int) -> bool:
        """Whether it got no answer, or one that says to ask again later."""
        return self._result[row] in (NOTHING, FAILURE)

    def spans(self, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
        """(first, last) of each lookup that was answered, on the common clock."""
        for row in rows:
            if self._at_reply[row] >= self.at[row] >= 0:
                yield self.at[row], self._at_reply[row]


@lru_cache(1024)
def network_of(ip: str) -> str:
    """What an address shares with those beside it: the /24, or the /64."""
    return ":".join(ip_address(ip).exploded.split(":")[:4]) if ":" in ip else ip.rpartition(".")[0]


@lru_cache(16)  # some 40 KB each
def _network(head: str) -> dict[int, str]:
    """The addresses of an IPv4 /24, by their hash."""
    return {hash(ip): ip for ip in (f"{head}.{n}" for n in range(256))} if head else {}


@lru_cache(1024)
def _result(
    answered: bool, tc: bool | None, rcode: str | None, ra: bool | None, rd: bool | None, aa: bool | None, answers: bool
) -> int:
    """What an answer tells; `answers`: it has records.

    A referral is no answer: only who has authority or asks around can say that there are no records.
    """
    if not answered or tc:
        return NOTHING
    if rcode == "NOERROR":
        asks_around = ra and rd
        if answers:
            return RECORDS if asks_around else OWN_RECORDS
        return NO_DATA if aa or asks_around else NOTHING
    return NO_NAME if rcode == "NXDOMAIN" else FAILURE


_FIELDS = (
    *("source", "ts", "ts_reply", "frame", "reply_frame", "client_ip", "server_ip", "transport", "dns_id"),
    *("qname", "qtype", "rcode", "aa", "tc", "rd", "ra", "answers", "answered", "purpose"),
)
_fields = itemgetter(*map(Transaction._fields.index, _FIELDS))


def _columns(rows: Iterable[Transaction]) -> dict[str, tuple[Any, ...]]:
    """Those fields of rows that are looked at, by name."""
    return dict(zip(_FIELDS, zip(*map(_fields, rows), strict=True), strict=True))


def _numbers(code: str, column: tuple[int | None, ...]) -> "array[int]":
    """-1 for what is not known."""
    try:
        return array(code, column)  # type: ignore[arg-type]
    except TypeError:
        return array(code, [-1 if n is None else n for n in column])


def _codes(codes: dict[Word, int], words: list[Word], column: Sequence[Word]) -> "array[int]":
    """Each word's number; new words get the next one."""
    found = [*map(codes.get, column)]
    if None in found:
        for i, word in enumerate(column):
            if found[i] is None:
                code = codes.get(word)
                if code is None:
                    code = codes[word] = len(codes)
                    words.append(word)
                found[i] = code
    return array("i", found)  # type: ignore[arg-type]


def _answered(leg: Leg, ts: int, name: str) -> int | None:
    """When a client got the reply that a question about its message's sender held up; None: it waited for none at that time."""
    s = leg.sighting
    assert s is not None
    envelope = s.ts_rcpt_done if s.ts_rcpt_done is not None else s.ts_data
    if (
        envelope is not None
        and ts <= envelope - leg.shift + _AFTER
        and "._domainkey." not in name
        and not name.startswith("_dmarc.")
    ):
        return envelope - leg.shift
    if s.ts_eom is None or ts >= s.ts_eom - leg.shift - _MS:
        return leg.end
    return None


def _leg_start(leg: Leg) -> int:
    return leg.ts


def _domains(legs: Iterable[Leg]) -> list[str]:
    """Recipient domains, each once."""
    found: dict[str, None] = {}
    for leg in legs:
        for address in _recipients(leg):
            domain = domain_of(address)
            if domain:
                found[domain] = None
                if len(found) >= _DOMAINS:
                    return list(found)
    return list(found)


def _recipients(leg: Leg) -> Iterator[str]:
    """Recipients of a hop; of one that was not observed those that its field names, else those of the hops that came of it."""
    if leg.sighting is not None:
        yield from (r.address for r in leg.sighting.recipients)
        return
    if leg.field is not None and leg.field.recipient:
        yield leg.field.recipient
        return
    todo = list(leg.children or ())[:_DOMAINS]
    for _ in range(_DOMAINS):
        if not todo:
            break
        below = todo.pop()
        if below.carried and (below.sighting is not None or (below.field is not None and below.field.recipient)):
            yield from _recipients(below)
        else:
            todo += list(below.children or ())[: _DOMAINS - len(todo)]
