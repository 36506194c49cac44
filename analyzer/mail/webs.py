"""Sightings kept together as they come: a web is what could be one message, with the reports about it.

Rules:
1. Sightings are of one web when a key joins them (`archive.Keys`), directly or over others: no join that `correlate` makes
   crosses two webs, so a web can be told without the others.
2. A report or automatic reply is of the web of what it is about.
3. A web that loses some of its sightings is woven anew from the others.
"""

import pickle
import zlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Set
from typing import Any, NamedTuple

from analyzer.limits import Limits
from analyzer.mail.archive import Claim, Ends, Keys, about_envelopes, ends_of
from analyzer.mail.records import Message
from analyzer.mail.sightings import Sighting

Row = tuple[str, Any]
"""A table's name and one row of it."""


def packed_rows(rows: list[Row]) -> bytes:
    """Rows as octets."""
    return zlib.compress(pickle.dumps(rows, 5), 1)


def unpacked_rows(octets: bytes | memoryview) -> list[Row]:
    """The rows again."""
    rows: list[Row] = pickle.loads(zlib.decompress(octets))  # our own, in memory or a file without a name
    return rows


class Ties(NamedTuple):
    """What a sighting may be joined to others by."""

    strong: set[int]
    faint: set[int]
    """Keys that join only where one of the two seeks them."""
    sought: set[int]
    claims: set[Claim]
    passed: frozenset[int]
    """Hashes of the addresses of clients that its trace fields name."""


class Said(NamedTuple):
    """What a telling says of a message besides its rows."""

    message: Message
    evidence: list[tuple[str, str, str]]
    """(address, role, rule) of each time that its hops made it hold."""
    machines: list[tuple[tuple[str, ...], Set[str]]]
    """(addresses, names) of the machines that had part in it."""
    waits: list[tuple[str, float | None, float | None]]
    """Server's role, accept_s and queue_s of each observed hop."""

    def ips(self) -> Iterator[str]:
        """First addresses of the machines that had part in it."""
        return (ips[0] for ips, _ in self.machines)


class Open:
    """A message that is not over, as it was told last.

    What stays of a telling is octets: objects made in the midst of what is forgotten at once would hold its memory.
    """

    __slots__ = ("_said", "events", "last", "outcome", "packed", "sightings", "trace_id", "web")

    def __init__(self, web: "Web", sightings: list[Sighting]) -> None:
        self.web = web
        self.sightings = sightings
        self.events: list[object] = []
        """Lookups, sessions, attempts and mailbox events that it was told with; they are no other message's."""
        self.trace_id = self.outcome = ""
        self.last = 0
        """When something was last seen of it."""
        self._said = b""
        self.packed = b""
        """Its rows (`packed_rows`)."""

    def keep(self, said: Said, rows: list[Row]) -> None:
        """Keep what was told of it."""
        message = said.message
        self.trace_id, self.outcome, self.last = message.trace_id, message.outcome, message.ts_last or message.ts_first or 0
        self._said = pickle.dumps((tuple(message), *said[1:]), 5)
        self.packed = packed_rows(rows)

    def said(self) -> Said:
        """What was told of it."""
        message, evidence, machines, waits = pickle.loads(self._said)  # our own
        return Said(Message._make(message), evidence, machines, waits)

    def rows(self) -> list[Row]:
        """Its rows again."""
        return unpacked_rows(self.packed)


class Web:
    """Sightings that could be one message."""

    __slots__ = ("changed", "claims", "ends", "faint", "number", "octets", "passed", "sightings", "sought", "strong", "told")

    def __init__(self, number: int) -> None:
        self.number = number
        """No other web of this run has had it."""
        self.sightings: list[Sighting] = []
        self.changed = True
        """Not told since something came to it."""
        self.told: list[Open] = []
        self.ends: frozenset[Ends] = frozenset()
        """As of the last telling."""
        self.claims: frozenset[Claim] = frozenset()
        self.passed: frozenset[int] = frozenset()
        """Hashes of the addresses of clients that trace fields name."""
        self.octets = 0
        self.strong = array("q")
        self.faint = array("q")
        self.sought = array("q")


class Webs:
    """All sightings held, by web."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._webs: dict[int, Web] = {}
        self._number = 0
        self._strong: dict[int, Web] = {}
        self._faint: dict[int, Web | set[Web]] = {}
        """One web, or all those that have the key."""
        self._sought: Counter[int] = Counter()
        self._of: dict[int, Web] = {}
        """By id of a sighting."""
        self.count = 0
        """Sightings held."""
        self.octets = 0
        """What of them is as long as the traffic likes."""

    def __iter__(self) -> Iterator[Web]:
        return iter(self._webs.values())

    def __len__(self) -> int:
        return len(self._webs)

    def of(self, s: Sighting) -> Web:
        """The web of a sighting."""
        return self._of[id(s)]

    def about(self, message_id: str) -> Web | None:
        """The web with a Message-ID."""
        return self._strong.get(hash(message_id))

    def sightings(self) -> Iterator[Sighting]:
        """All of them."""
        return (s for web in self for s in web.sightings)

    def add(self, s: Sighting, ties: "Ties | None" = None) -> Web:
        """Keep a sighting with those it could be one message with."""
        strong, faint, sought, claims, passed = ties or ties_of(s, self._limits)
        met = {id(web): web for key in strong if (web := self._strong.get(key)) is not None}
        for key in faint:
            if key in sought or key in self._sought:
                for web in _webs(self._faint.get(key)):
                    met[id(web)] = web
        mine = max(met.values(), key=lambda web: len(web.sightings), default=None)
        if mine is None:
            self._number += 1
            mine = self._webs[self._number] = Web(self._number)
        for other in met.values():
            if other is not mine:
                self._merge(mine, other)
        for key in strong:
            if key not in self._strong:
                self._strong[key] = mine
                mine.strong.append(key)
        for key in faint:
            self._have(key, mine)
        self._sought.update(sought)
        mine.sought.extend(sought)
        mine.claims |= claims
        mine.passed |= passed
        mine.sightings.append(s)
        mine.changed = True
        octets = _octets(s)
        mine.octets += octets
        self.octets += octets
        self.count += 1
        self._of[id(s)] = mine
        return mine

    def _have(self, key: int, web: Web) -> None:
        holders = self._faint.get(key)
        if holders is None:
            self._faint[key] = web
        elif holders is web or (isinstance(holders, set) and web in holders):
            return
        elif isinstance(holders, set):
            holders.add(web)
        else:
            self._faint[key] = {holders, web}
        web.faint.append(key)

    def _have_not(self, key: int, web: Web) -> None:
        holders = self._faint[key]
        if holders is web:
            del self._faint[key]
        elif isinstance(holders, set):
            holders.discard(web)
            if not holders:
                del self._faint[key]

    def _merge(self, mine: Web, other: Web) -> None:
        for key in other.strong:
            self._strong[key] = mine
        for key in other.faint:
            self._have_not(key, other)
            self._have(key, mine)
        for s in other.sightings:
            self._of[id(s)] = mine
        for told in other.told:
            told.web = mine
        mine.strong += other.strong
        mine.sought += other.sought
        mine.sightings += other.sightings
        mine.told += other.told
        mine.claims |= other.claims
        mine.passed |= other.passed
        mine.octets += other.octets
        del self._webs[other.number]

    def remove(self, web: Web, leaving: Collection[Sighting]) -> None:
        """Forget sightings of a web; the others are woven anew."""
        for key in web.strong:
            del self._strong[key]
        for key in web.faint:
            self._have_not(key, web)
        for key in web.sought:
            self._sought[key] -= 1
            if not self._sought[key]:
                del self._sought[key]
        for s in web.sightings:
            del self._of[id(s)]
        del self._webs[web.number]
        web.told = []  # no circle is left: they know their web
        self.count -= len(web.sightings)
        self.octets -= web.octets
        gone = set(map(id, leaving))
        for s in web.sightings:
            if id(s) not in gone:
                self.add(s)


def ties_of(s: Sighting, limits: Limits) -> Ties:
    """What a sighting may be joined to others by, as the archive has it, and to what a report is about."""
    keys = Keys(limits)
    keys.add(s, 0)
    reported = set(about_envelopes(s))
    if s.report is not None and s.report.queue_id is not None:
        reported.add(hash(("queued", s.report.queue_id)))
    strong = {*keys.strong[0], *_about(s)}
    return Ties(strong, {*keys.faint[0], *reported}, {*keys.searching, *reported}, keys.claims, frozenset(keys.passed[0]))


def _webs(holders: Web | set[Web] | None) -> Iterable[Web]:
    if holders is None:
        return ()
    return holders if isinstance(holders, set) else (holders,)


def ends_of_all(sightings: Iterable[Sighting]) -> frozenset[Ends]:
    """Who passed these messages to whom."""
    return frozenset(map(ends_of, sightings))


def _about(s: Sighting) -> Iterator[int]:
    """Keys of what a report or an automatic reply is about."""
    if s.report_kind is not None or s.auto_submitted:
        yield from map(hash, s.answers)
        if s.report is not None:
            if s.report.message_id is not None:
                yield hash(s.report.message_id)
            if s.report.envelope_id is not None:
                yield hash(("envelope", s.report.envelope_id))


_RECIPIENT = 200
"""Octets that one recipient takes, or one trace field."""


def octets_of(sightings: Iterable[Sighting]) -> int:
    """What of sightings is as long as the traffic likes."""
    return sum(map(_octets, sightings))


def _octets(s: Sighting) -> int:
    texts = (s.subject, s.header_from, s.header_to, s.header_date, s.reply_text, s.mail_parameters)
    trail = s.trail.length if s.trail is not None else 0
    return sum(len(text) for text in texts if text) + _RECIPIENT * (len(s.recipients) + trail + len(s.claims))
