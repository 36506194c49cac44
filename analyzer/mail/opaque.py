"""Opaque sessions and the hand-overs that trace fields tell: which session carried which message.

Rules:
1. A session can have carried a hand-over when it is between its ends and was open at the time that the server wrote; a server
   that wrote a protocol word without TLS (RFC 3848) was handed the message elsewhere.
2. What decides between several: the time in the queue id (finer than the field's whole second), the client's greeting, and the
   octets that the client sent beside the size that the message had then.
3. The surest pairs are made first, over all messages of the capture, the hand-overs nearest to an observed hop before those above
   them; a session takes a second message only when no other fits.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from analyzer.mail.received import Received
from analyzer.protocols.base import SessionInfo

if TYPE_CHECKING:
    from analyzer.mail.clocks import Clocks
    from analyzer.mail.hops import Leg
    from analyzer.mail.hosts import Hosts, Machine

_SECOND = 1_000_000_000
_CLOSE = 2 * _SECOND
"""A Received field's time is whole seconds and may be taken when MAIL came or when the data ended."""
_FAR = 120 * _SECOND
"""Farthest clock of a server believed when only one opaque session fits."""
_FINE = 20_000_000
"""Nanoseconds by which a queue id's time may lie outside its session: clocks are set to some milliseconds."""
_LOOK_BACK = 64
_ROUNDS = 8
"""Times that pairs are gone through for a better exchange."""
_BIN = 4
_SIZED = 8
"""Octets by which what a client sends beside the message differs from hand-over to hand-over."""

_LONG = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"
_LONG_ID = re.compile(rf"([{_LONG}]{{6,}}?)([{_LONG}]{{4}})z[{_LONG}]+")
_SHORT_ID = re.compile(r"[0-9A-F]{8,16}")
_DIGIT = {c: n for n, c in enumerate(_LONG)}


def queue_times(field: Received) -> tuple[int, ...]:
    """When the queue file that `field` names was made, where its id tells (Postfix): nanoseconds, likeliest first.

    A long id holds seconds and microseconds in base 52, a short one begins with the microseconds (20 bits, hexadecimal) of the
    second in which the field was written or of the next.
    """
    if field.id is None or field.ts is None:
        return ()
    found = _LONG_ID.fullmatch(field.id)
    if found is not None:
        seconds, micros = _number(found[1]), _number(found[2])
        at = seconds * _SECOND + micros * 1000
        return (at,) if micros < 1_000_000 and abs(at - field.ts) <= _CLOSE else ()
    if _SHORT_ID.fullmatch(field.id):
        micros = int(field.id[:5], 16)
        if micros < 1_000_000:
            at = field.ts // _SECOND * _SECOND + micros * 1000
            return (at, at + _SECOND)
    return ()


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 52 + _DIGIT[digit]
    return number


class Untold:
    """A hand-over that only trace fields tell, and what is known to find its session."""

    __slots__ = ("after", "field", "leg", "level", "size", "times")

    def __init__(self, leg: "Leg", field: Received, after: "Leg", level: int, size: int | None) -> None:
        self.leg = leg
        self.field = field
        self.after = after
        """The hop that shows its trace field, or the next one told by it: it must have begun before that."""
        self.level = level
        """Hand-overs between it and the observed hop that tells of it."""
        self.size = size
        """Octets of the message then."""
        self.times = queue_times(field)

    @property
    def before(self) -> int:
        """Latest time at which it can have begun, on the captures' common clock."""
        after = self.after
        exact = after.sighting is not None or after.session is not None
        return after.ts if exact else after.ts + _SECOND  # a trace field's time is whole seconds


Fit = tuple[Untold, SessionInfo, int]
"""A hand-over, a session that can have carried it, and when."""


class Opaque:
    """Sessions whose inside is not visible, to be matched with Received fields."""

    def __init__(self, sessions: list[SessionInfo], hosts: "Hosts", clocks: "Clocks") -> None:
        self._clocks = clocks
        self._by_ends: dict[tuple[int, int], list[SessionInfo]] = {}
        self._taken: dict[str, list[Untold]] = {}
        self._left: dict[str, int] = {}
        """Octets that a session's client sent and that no message accounts for yet."""
        self._wanted: list[Untold] = []
        self.clients: set[Machine] = set()
        """Machines that hand mail over in such sessions."""
        for info in sorted(sessions, key=lambda i: (i.connection.ts, i.source, i.session_id)):
            if info.protocol in ("smtp", "lmtp"):
                client = hosts.of(info.stated_client_ip or info.client_ip)
                self.clients.add(client)
                self._by_ends.setdefault((id(client), id(hosts.of(info.server_ip))), []).append(info)
                self._left[info.session_id] = _sent(info)

    def may_have_carried(self, client: "Machine | None", server: "Machine | None", field: Received) -> bool:
        """Whether there is any session to look for."""
        return field.ts is not None and not field.in_clear and (id(client), id(server)) in self._by_ends

    def want(self, untold: Untold) -> None:
        """Find this hand-over's session at `settle`."""
        self._wanted.append(untold)

    def settle(self) -> list["Leg"]:
        """All hand-overs are known: match them with sessions; the hops that have one now."""
        levels: dict[int, dict[tuple[int, int], list[Untold]]] = {}
        for untold in self._wanted:
            ends = (id(untold.leg.client), id(untold.leg.server))
            levels.setdefault(untold.level, {}).setdefault(ends, []).append(untold)
        for level in sorted(levels):
            for ends, wanted in levels[level].items():
                self._assign(self._by_ends[ends], wanted)
        self._wanted = []
        matched: list[Leg] = []
        for taken in self._taken.values():
            taken.sort(key=lambda u: (u.leg.ts, u.field.ts or 0, u.field.id or ""))
            for index, untold in enumerate(taken, 1):
                untold.leg.index = index
                matched.append(untold.leg)
        return matched

    def _assign(self, sessions: list[SessionInfo], wanted: list[Untold]) -> None:
        fitting: list[Fit] = []
        for untold in wanted:
            fitting += [(untold, info, at) for info, at in self._fitting(sessions, untold)]
        usual = _usual(fitting)
        cost = {
            (id(untold), info.session_id): _cost(untold, info, at, self._before(untold, info), usual)
            for untold, info, at in fitting
        }
        fitting.sort(key=lambda fit: cost[id(fit[0]), fit[1].session_id])  # of equals the one that was first stays first
        found: dict[int, Fit] = {}
        for fresh in (True, False):
            begun = set(self._taken) | {info.session_id for _, info, _ in found.values()}
            for untold, info, at in fitting:
                if id(untold) in found or (fresh and info.session_id in begun):
                    continue
                if not fresh and untold.size is not None and self._left[info.session_id] < untold.size * 3 // 4:
                    continue
                begun.add(info.session_id)
                found[id(untold)] = (untold, info, at)
                self._left[info.session_id] -= untold.size or 0
            if fresh:
                _swap(found, {(id(untold), info.session_id): at for untold, info, at in fitting}, cost)
        for untold, info, at in found.values():
            self._take(untold, info, at)
        for untold in wanted:  # a clock that is far off, and only one session that it can have been
            if id(untold) not in found and untold.field.ts is not None:
                near = [i for i in sessions if i.session_id not in self._taken and abs(_began(i) - untold.field.ts) <= _FAR]
                near = [i for i in near if _began(i) <= self._before(untold, i)]
                if len(near) == 1:
                    self._take(untold, near[0], None)

    def _fitting(self, sessions: list[SessionInfo], untold: Untold) -> list[tuple[SessionInfo, int]]:
        """Sessions that were open at the time the server wrote, with that time; the narrowest reading that gives any."""
        stamp, latest = untold.field.ts, self._before
        assert stamp is not None
        until = stamp + _SECOND + _CLOSE
        at = bisect_right(sessions, until if self._clocks else min(untold.before, until), key=_opened)
        near = [i for i in sessions[max(at - _LOOK_BACK, 0) : at] if _began(i) <= latest(untold, i)]
        for slack in (0, _FINE):
            for time in untold.times:
                found = [i for i in near if _began(i) - slack <= time <= min(_ended(i) + slack, latest(untold, i))]
                if found:
                    return [(i, time) for i in found]
        for apart in (0, _CLOSE):
            found = [i for i in near if _began(i) - apart <= stamp + _SECOND and stamp <= _ended(i) + apart]
            if found:
                return [(i, _middle(i, stamp, latest(untold, i))) for i in found]
        return []

    def _before(self, untold: Untold, info: SessionInfo) -> int:
        """Latest time at which a hand-over can have begun, as a session's capture has it."""
        before, source = untold.before, info.source
        return before + before - self._clocks.true(source, before) if self._clocks else before

    def _take(self, untold: Untold, info: SessionInfo, at: int | None) -> None:
        leg = untold.leg
        leg.session = info
        leg.protocol = info.protocol
        leg.client_ip, leg.server_ip = info.client_ip, info.server_ip
        seen = at if at is not None else _middle(info, untold.field.ts or _began(info), self._before(untold, info))
        leg.ts = self._clocks.true(info.source, seen)
        leg.shift = seen - leg.ts
        self._taken.setdefault(info.session_id, []).append(untold)


def _swap(found: dict[int, Fit], times: dict[tuple[int, str], int], cost: dict[tuple[int, str], float]) -> None:
    """Exchange the sessions of two hand-overs wherever both together fit better so."""
    keys = sorted(found, key=lambda key: found[key][2])
    for _ in range(_ROUNDS):
        better = False
        for n, mine in enumerate(keys):
            for other in keys[n + 1 : n + _LOOK_BACK]:
                (a, s, _), (b, z, _) = found[mine], found[other]
                crossed = (mine, z.session_id), (other, s.session_id)
                if crossed[0] not in cost or crossed[1] not in cost:
                    continue
                if cost[crossed[0]] + cost[crossed[1]] < cost[mine, s.session_id] + cost[other, z.session_id] - 1e-9:
                    found[mine], found[other] = (a, z, times[crossed[0]]), (b, s, times[crossed[1]])
                    better = True
        if not better:
            break


def _middle(info: SessionInfo, stamp: int, before: int) -> int:
    """The middle of the time in which a hand-over must have begun."""
    earliest = max(_began(info), stamp)
    latest = max(min(_ended(info), before, stamp + _SECOND), earliest)
    return earliest + (latest - earliest) // 2


def _usual(fitting: Iterable[Fit]) -> dict[bool, int]:
    """Octets that a client sends beside the message, for hand-overs to one recipient and to several.

    It is what most pairs agree on, for the true ones agree and the others do not.
    """
    votes: dict[bool, Counter[int]] = {}
    for untold, info, _ in fitting:
        beside = _beside(untold, info)
        if beside is not None:
            votes.setdefault(untold.field.recipient is None, Counter())[beside // _BIN] += 1
    usual = {}
    for several, counted in votes.items():
        together = {bin_: counted[bin_] + counted[bin_ + 1] for bin_ in counted}
        best = max(together.values())
        usual[several] = (min(bin_ for bin_, n in together.items() if n == best) + 1) * _BIN
    return usual


def _beside(untold: Untold, info: SessionInfo) -> int | None:
    if untold.size is None:
        return None
    return _sent(info) - untold.size - len(untold.field.recipient or "")


def _cost(untold: Untold, info: SessionInfo, at: int, before: int, usual: dict[bool, int]) -> float:
    """How badly a session fits: smaller is better."""
    cost = 0.0
    field = untold.field
    if field.helo is not None and info.client_name is not None:
        same = field.helo == info.client_name.strip("[]").removeprefix("IPv6:").rstrip(".").lower()
        cost += -1.0 if same else 3.0
    if field.authenticated and info.server_port == 25:
        cost += 1.0
    beside = _beside(untold, info)
    if beside is not None:
        cost += min(abs(beside - usual[field.recipient is None]) / _SIZED, 5.0)
    if (
        untold.times
    ):  # the queue file is made soon after the handshake, and the session over soon after that; squares keep the order
        after, until = (at - _began(info)) / _SECOND, (_ended(info) - at) / _SECOND
        cost += min(after * after + 4 * until * until, 1.0)
    else:  # and what comes next, soon after the session
        cost += min(abs(before - _began(info)) / _SECOND / 10, 1.0)
    return cost


def _sent(info: SessionInfo) -> int:
    conn = info.connection
    return conn.orig_bytes if (conn.orig_ip, conn.orig_port) == (info.client_ip, info.client_port) else conn.resp_bytes


def _opened(info: SessionInfo) -> int:
    return info.connection.ts


def _began(info: SessionInfo) -> int:
    return info.ts_tls_done or info.connection.ts


def _ended(info: SessionInfo) -> int:
    return max(info.connection.ts_last, info.connection.ts)
