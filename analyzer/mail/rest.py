"""Messages that rest: silent ones that may still be joined by what comes, out of the way until it does.

Rules:
1. A web rests as a whole, on disk, with what its messages were told with and the rows they would leave with.
2. It is found by what would have joined it in memory (`webs.Ties`), and by what a telling looks for besides: the names of its
   messages in mailboxes, the machines that held one and when, the clients that trace fields name.  Then it is taken back.
3. When it is over its rows are final as they are.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from analyzer.limits import Limits
from analyzer.mail.archive import packed, packed_session, unpacked, unpacked_session
from analyzer.mail.records import Message
from analyzer.mail.shelf import Record, Shelf
from analyzer.mail.sightings import Sighting, Trail
from analyzer.mail.tries import EVER, Way, held_spans
from analyzer.mail.webs import Row, Ties, Web, unpacked_rows
from analyzer.protocols.base import MailboxEvent, SessionInfo

Evidence = tuple[str, str, str]
"""(address, role, rule)."""

_SHOWN = 100
"""Webs not decided whose messages can be listed."""
_MOST = 64
"""Webs taken back at most because of one machine or one opaque session: the latest, or the nearest in time."""
_FAINT, _SOUGHT, _NAME, _HELD, _HOLDS, _PASSED = (hash((__name__, n)) for n in range(6))
"""What tells keys of one kind from those of another."""
_TS_LAST, _DECIDED, _CROSSINGS, _OCTETS, _PASSED_FIRST, _PASSED_LAST, _HELD_FIRST, _HELD_LAST, _OUTCOMES = range(9)
_ANYBODY = hash(None)


@dataclass
class Resting:
    """A web about to rest, or just taken back."""

    sightings: list[Sighting]
    events: list[Any] = field(default_factory=list)
    """What its messages were told with."""
    evidence: Counter[Evidence] = field(default_factory=Counter)
    """How often each held because of them."""
    messages: Counter[str] = field(default_factory=Counter)
    """Messages in which an address had part."""
    rows: list[bytes] = field(default_factory=list)
    """The rows of each message (`webs.packed_rows`), and of lookups; only when it is about to rest."""


class Rest:
    """All webs that rest."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shelf = Shelf(9)
        self.outcomes: Counter[str] = Counter()
        """Messages by outcome."""
        self._fates: list[tuple[str, ...]] = []
        """Outcomes of the messages of a web, each kind once; its facts have the place here."""
        self._undecided: dict[int, list[Message]] = {}
        self.count = self.octets = 0
        """Sightings, and what of them is as long as the traffic likes."""

    def __len__(self) -> int:
        return len(self._shelf)

    # in

    def put(self, webs: Iterable[tuple[Web, Resting, bool]]) -> None:
        """Put webs to rest; each with whether all its messages are decided."""
        given = list(webs)
        numbers = self._shelf.put([self._record(*one) for one in given])
        for number, (web, resting, decided) in zip(numbers, given, strict=True):
            self.outcomes.update(_outcomes(web))
            self.count += len(resting.sightings)
            self.octets += web.octets
            if not decided and len(self._undecided) < _SHOWN:
                self._undecided[number] = [one.said().message for one in web.told]

    def _record(self, web: Web, resting: Resting, decided: bool) -> Record:
        keys = {*web.strong, *(key ^ _FAINT for key in web.faint), *(key ^ _SOUGHT for key in web.sought)}
        first, last = EVER, -1
        held = held_spans(resting.sightings, decided)
        keys.update(hash(way) ^ (_HOLDS if until == EVER else _HELD) for way, (_, until) in held.items())
        held_first = min((since for since, _ in held.values()), default=EVER)
        held_last = max((until for _, until in held.values() if until != EVER), default=-1)
        for s in resting.sightings:
            if s.kind != "transaction":
                keys.update(hash(name) ^ _NAME for name in names_of(s))
            for trail in s.trail or ():
                if trail.field.ts is not None:
                    first, last = min(first, trail.field.ts), max(last, trail.field.ts)
        keys.update(ip ^ _PASSED for ip in web.passed)
        silent_since = max(one.last for one in web.told)
        outcomes = _outcomes(web)
        if outcomes not in self._fates:
            self._fates.append(outcomes)
        fates = self._fates.index(outcomes)
        facts = (silent_since, int(decided), len(resting.sightings), web.octets, first, last, held_first, held_last, fates)
        return Record(_octets(resting), keys, [hash(one.trace_id) for one in web.told], facts)

    # found

    def joined_by(self, ties: Ties) -> list[int]:
        """Webs that a sighting joins."""
        keys = {*ties.strong, *(key ^ _SOUGHT for key in ties.faint), *(key ^ _FAINT for key in ties.sought)}
        return self._shelf.find(keys)

    def about(self, message_id: str) -> list[int]:
        """Webs with a Message-ID."""
        return self._shelf.find((hash(message_id),))

    def named(self, names: Collection[tuple[object, ...]]) -> list[int]:
        """Webs with a message that a mailbox knows by one of these names."""
        return self._shelf.find([hash(name) ^ _NAME for name in names])

    def held_by(self, tries: Mapping[Way, Collection[int]]) -> set[int]:
        """Webs of messages that a machine may have tried to pass on: when it tried in vain, by way."""
        found: set[int] = set()
        for way, times in tries.items():
            for key, still in ((hash(way) ^ _HELD, False), (hash(way) ^ _HOLDS, True)):
                numbers = np.array(self._shelf.find((key,)), np.int64)
                facts = self._shelf.facts_of(numbers)
                for ts in times:
                    held = (facts[:, _HELD_FIRST] <= ts) & (still | (facts[:, _HELD_LAST] >= ts))
                    found.update(numbers[held][-_MOST:].tolist())
        return found

    def passed_by(self, spans: Mapping[int, Iterable[tuple[int, int]]]) -> set[int]:
        """Webs whose trace fields may tell of an opaque session: (from, to) of those of a client, by the hash of its address."""
        found: set[int] = set()
        if not spans:
            return found
        numbers, facts = self._shelf.numbers(), self._shelf.facts()
        for client, times in spans.items():
            mine = np.searchsorted(numbers, self._shelf.find((client ^ _PASSED, _ANYBODY ^ _PASSED)))
            for first, last in times if len(mine) else ():
                when = facts[mine][:, (_PASSED_FIRST, _PASSED_LAST)]
                at = mine[(when[:, 0] <= last) & (when[:, 1] >= first)]
                off = np.abs(facts[at, _PASSED_LAST] - (first + last) // 2)
                found.update(numbers[at[np.argsort(off, kind="stable")[:_MOST]]].tolist())
        return found

    def traces(self) -> Any:
        """Hashes of the ids of all messages here."""
        return self._shelf.labels()

    def undecided(self) -> Iterator[Message]:
        """The first of the messages here whose fate is not known."""
        return chain.from_iterable(self._undecided.values())

    # out

    def take(self, number: int, trails: dict[int, Trail], session: Callable[[SessionInfo], SessionInfo]) -> Resting:
        """Take a web back.  `trails`: those there are, by mark; `session`: tells which object a session is."""
        sessions, sightings, events, evidence, messages = pickle.loads(self._halves(number)[0])  # our own file, which has no name
        texts: dict[str, str] = {}
        infos = [session(unpacked_session(octets, texts)) for octets in sessions]
        back = Resting([], [], evidence, messages)
        for at, octets in sightings:
            s = unpacked(octets, trails, texts)
            s.session = infos[at]
            back.sightings.append(s)
        for event in events:
            if isinstance(event, int):
                back.events.append(infos[event])
            elif isinstance(event, MailboxEvent):
                back.events.append(event._replace(session=infos[event.session]))  # type: ignore[call-overload]
            else:
                back.events.append(event)
        self.drop(number)
        return back

    def rows(self, number: int) -> Iterator[Row]:
        """The rows that a web leaves with."""
        for octets in pickle.loads(self._halves(number)[1]):  # our own file, which has no name
            yield from unpacked_rows(octets)

    def all_rows(self) -> Iterator[Row]:
        """The rows that all would leave with."""
        for number in self._shelf.numbers().tolist():
            yield from self.rows(number)

    def numbers(self) -> list[int]:
        """All that rest, those first that came first."""
        return [int(number) for number in self._shelf.numbers()]

    def drop(self, number: int) -> None:
        """Forget a web."""
        facts = self._shelf.facts_of(number)
        self.count -= int(facts[_CROSSINGS])
        self.octets -= int(facts[_OCTETS])
        self.outcomes.subtract(self._fates[int(facts[_OUTCOMES])])
        self.outcomes += Counter()
        self._undecided.pop(number, None)
        self._shelf.drop((number,))

    def over(self, now: int) -> list[int]:
        """Those that have been silent for as long as they are waited for."""
        facts = self._shelf.facts()
        patience = np.where(facts[:, _DECIDED] > 0, self._limits.live_decided_idle, self._limits.queue_lifetime)
        return [int(number) for number in self._shelf.numbers()[now - facts[:, _TS_LAST] > patience]]

    def longest_silent(self, crossings: int, octets: int) -> list[int]:
        """Those to let go of, decided ones first, so that there are so many crossings and octets less."""
        facts = self._shelf.facts()
        order = np.lexsort((facts[:, _TS_LAST], facts[:, _DECIDED] == 0))
        enough = (np.cumsum(facts[order, _CROSSINGS]) >= crossings) & (np.cumsum(facts[order, _OCTETS]) >= octets)
        until = int(np.argmax(enough)) + 1 if enough.any() else len(order)
        return [int(number) for number in self._shelf.numbers()[order[:until]]]

    def messages(self, number: int) -> int:
        """Messages of a web."""
        return len(self._fates[int(self._shelf.facts_of(number)[_OUTCOMES])])

    def _halves(self, number: int) -> tuple[memoryview, memoryview]:
        octets = memoryview(self._shelf.get(number))
        size = int.from_bytes(octets[:4], "little")
        return octets[4 : 4 + size], octets[4 + size :]


def _outcomes(web: Web) -> tuple[str, ...]:
    return tuple(sorted(one.outcome for one in web.told))


def names_of(one: MailboxEvent | Sighting) -> Iterator[tuple[object, ...]]:
    """What a message in a mailbox is known by."""
    session = one.session
    owner = (session.server_ip, session.auth_user.lower() if session.auth_user else session.session_id)
    if one.uid is not None:
        yield (*owner, one.mailbox, one.uidvalidity, one.uid)
    if one.uidl is not None:
        yield (*owner, one.uidl)
    if one.number is not None:
        yield (session.session_id, one.mailbox, one.number)


def _octets(resting: Resting) -> bytes:
    numbers: dict[SessionInfo, int] = {}

    def number_of(info: SessionInfo) -> int:
        return numbers.setdefault(info, len(numbers))

    sightings = [(number_of(s.session), packed(s)) for s in resting.sightings]
    events: list[Any] = []
    for event in resting.events:
        if isinstance(event, SessionInfo):
            events.append(number_of(event))
        elif isinstance(event, MailboxEvent):
            events.append(event._replace(session=number_of(event.session)))  # type: ignore[arg-type]
        else:
            events.append(event)
    sessions = list(map(packed_session, numbers))
    state = pickle.dumps((sessions, sightings, events, resting.evidence, resting.messages), 5)
    return len(state).to_bytes(4, "little") + state + pickle.dumps(resting.rows, 5)
