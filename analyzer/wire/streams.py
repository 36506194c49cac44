"""TCP segments in batches to the ordered octets of each connection.

A batch's rows are grouped by flow with numpy.  What is of no use (flows of no protocol of ours, copies of
connections that are over, SYNs without answer) is dealt with in columns; the rest is handed flow by flow to
`connections.Flow`.  Global bounds are looked at after every `_CHECK` octets of traffic, wherever batches end,
so that the result does not depend on them.
"""

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.connections import ACK, FIN, RST, SYN, URG, Columns, Flow
from analyzer.wire.flows import CLOSED, HALF, IGNORED, LIVE, NONE, Ends, Flows
from analyzer.wire.types import I64, V4_PREFIX, Attempt, Chunk, Connection, Delivery, Packets

Recognise = Callable[[Connection, bytes, bytes, bool], bool | None]
"""(connection, first octets of orig, first octets of resp, closing): True wanted, False ignore it, None not sure yet."""
Foreign = Callable[[bytes, bytes, int, int], bool]
"""(first octets of orig and of resp, their ports), of a connection seen from its opening: surely to be ignored."""

Counted = tuple[list[tuple[int, Attempt]], dict[tuple[str, str], tuple[int, tuple[int, int]]]]
"""Attempts to be listed, and counts of all by source and kind."""
_Kinds = tuple[int, int, int, int]
_KINDS = ("vlan0", "vlan1", "ttl0", "ttl1")
"""VLAN of both directions' first packets, TTL of their first payloads."""
_CHECK = 16 << 20
_ROW_COST = 256
_HEAD = 4096
"""Octets of each direction shown to `recognise`."""
_ROOM = 32_768
"""Rows of flows, where there are no more, that take their memory at once: a live capture's is to stay as it is."""
_PIECE_COST = 128
_FLOW_COST, _SESSION_COST = 3_000, 7_000
"""Octets that a connection takes, and more where it carries a mail session."""
_ENDED = 1000
"""Connections remembered by name after their end, to say of which one late octets were."""
_BIG = 4096
"""Rows of one flow made into lists at once."""
_FOLDED = {
    "unanswered": ("connect_unanswered", "connection attempts to mail ports were not answered"),
    "refused": ("connect_refused", "connection attempts to mail ports were refused"),
    "silent": ("connect_silent", "connections to mail ports were opened, and nothing was said"),
    "dropped": ("connections_dropped", "connections were closed early, as more were open than the stated limit"),
}


class Streams:
    """TCP rows in, deliveries out.  The caller empties `anomalies` and `attempts`."""

    def __init__(
        self,
        limits: Limits,
        recognise: Recognise,
        mail_ports: frozenset[int],
        identify: Callable[[Connection], str] | None = None,
        share: tuple[int, int] = (0, 1),
        foreign: Foreign | None = None,
    ) -> None:
        """`foreign`: told sooner, and of more at once, than `recognise` would.

        `share`: of so many instances fed alike this one follows the connections of its number; all number all of them."""
        self.anomalies: list[Anomaly] = []
        self.attempts: list[Attempt] = []
        self._limits = limits
        self._recognise = recognise
        self._mail_ports = mail_ports
        self._mail_table = np.zeros(65536, np.bool_)
        self._mail_table[list(mail_ports)] = True
        self._identify = identify
        self._share = share
        self._foreign = foreign
        self._marks = 0
        self._listed_here: list[tuple[int, Attempt]] = []
        """Attempts with the number of the mark they were found before, while other instances may have earlier ones."""
        most = limits.connections * 3 // 2  # 5/4 are kept, and some come between two marks
        self._flows = Flows(most) if most <= _ROOM else Flows()
        self._deliveries: list[Delivery] = []
        self._lingering: dict[int, Flow] = {}
        self._holding: dict[int, Flow] = {}
        self._cost = 0
        self._now = self._mark = 0
        self._swept = 0
        self._sources: dict[str, list[int]] = {}
        self._names: list[str] = []
        self._numbers: dict[int, list[tuple[int, int]]] = {}
        self._apart: list[tuple[int, list[int]]] = []
        self._ended: dict[int, tuple[Connection, int]] = {}
        self._begun: set[int] = set()
        self._done: dict[int, tuple[int, int, int, int, int, int, bool]] = {}
        """Slots whose connections are over or ignored: state, last time, first and last sequence numbers, was it ours."""
        self._known: dict[int, tuple[int, ...]] = {}
        """State, last time and ends of the slots at hand."""
        self._moved: set[int] = set()
        """Slots that have changed their VLAN in the batch at hand."""
        self._source = ""
        self._batch: _Batch | None = None
        self._home = -1
        """Slot by whose conversations all are counted that have its ends, -1: each by its own."""
        self._listed = 0
        self._found: list[Attempt] = []
        self._tally: dict[tuple[str, str], tuple[int, tuple[int, int]]] = {}
        """By source and kind: how many, and time and frame of the first."""

    # -- public

    def feed(self, packets: Packets) -> list[Delivery]:
        """Take a batch; return what it completes.  UDP rows are skipped."""
        rows = np.flatnonzero(packets.protocol == 6)
        if len(rows):
            cost = np.cumsum(packets.length[rows] + _ROW_COST) + self._cost
            marks = cost // _CHECK
            before = np.concatenate([[self._cost // _CHECK], marks[:-1]])
            at = 0
            for cut in np.flatnonzero(marks > before).tolist():
                self._slice(packets, rows[at : cut + 1])
                self._checkpoint(int(packets.ts[rows[cut]]))
                at = cut + 1
            if at < len(rows):
                self._slice(packets, rows[at:])
            self._cost = int(cost[-1]) % _CHECK
        deliveries, self._deliveries = self._deliveries, []
        return deliveries

    def finish(self, shares: Iterable[Counted] = ()) -> list[Delivery]:
        """The capture is over; `shares`: what the instances with the other shares have counted."""
        for flow in list(self._flows.live.values()):
            idle = self._now - flow.ts_last > self._limits.connection_idle
            self._close(flow, "timeout" if idle else "capture_end")
        self._write()
        flows = self._flows
        self._forget_half(np.flatnonzero(flows.state[: flows.count] == HALF))
        self._list_attempts()
        if self._share[0] == 0:
            self._tell_attempts(shares)
        deliveries, self._deliveries = self._deliveries, []
        return deliveries

    def counted(self) -> Counted:
        """What `finish` of the first instance needs of this one, when this one has finished."""
        return self._listed_here, self._tally

    def _tell_attempts(self, shares: Iterable[Counted]) -> None:
        for listed, tally in shares:
            self._listed_here += listed
            for kind, (count, first) in tally.items():
                known, before = self._tally.get(kind, (0, first))
                self._tally[kind] = (known + count, min(before, first))
        self._listed_here.sort(key=lambda item: (item[0], item[1].ts, item[1].source, item[1].frame))
        self.attempts += [attempt for _, attempt in self._listed_here[: self._limits.attempts]]
        self._listed_here = []
        for (source, name), (count, (ts, frame)) in sorted(self._tally.items()):
            slug, what = _FOLDED[name]
            self.anomalies.append(Anomaly(ts, source, None, None, slug, f"{count} {what}", frame))
        self._tally.clear()

    # -- columns

    def _slice(self, p: Packets, rows: I64) -> None:
        """Deal with some rows: by flow; those of flows that share their ends with another VLAN's, by VLAN too."""
        self._numbers.clear()
        self._source = p.source
        self._process(p, rows, -1)
        while self._apart:
            slot, apart = self._apart.pop(0)
            self._process(p, np.array(apart), slot)
        self._now = max(self._now, int(p.ts[rows].max()))

    def _process(self, p: Packets, rows: I64, home: int) -> None:
        """Group rows by flow and deal with each group; `home`: all have that slot's ends, and are told apart by VLAN."""
        flows, limits = self._flows, self._limits
        ends, side = _ends(p, rows)
        self._home = home
        if home >= 0:
            vlan = p.vlan[rows].astype(np.int32)
            ends.lane[:] = np.where((vlan != 0) & (vlan != flows.vlan[home]), vlan + 1, 0)
        order, begins, slots = self._group(p, rows, ends)
        first = order[begins]
        flags, ts = p.flags[rows][order], p.ts[rows][order]
        counts = np.diff(begins, append=len(order))
        group = np.repeat(np.arange(len(begins)), counts)
        step = np.diff(ts, prepend=ts[:1])
        step[begins] = 0
        jump = step > limits.connection_idle
        if home < 0:
            events = self._new_numbers(p.source, slots, rows[first])
        else:
            events = []
            away = slots != home
            flows.source[slots[away]] = self._sources[p.source][0]
            flows.stream[slots[away]] = [self._stream(home, row) for row in rows[first][away].tolist()]
        state, last = flows.state[slots], flows.ts_last[slots]
        quiet = np.bitwise_or.reduceat(flags & np.uint8(SYN), begins) == 0
        latest = np.maximum.reduceat(ts, begins)
        still = (ts[begins] - last <= limits.connection_idle) & ~np.logical_or.reduceat(jump, begins)
        shared = flows.shared[slots] if home < 0 else np.zeros(len(slots), np.bool_)
        idle = quiet & ~shared & ((flows.based[slots] == 3) | (home >= 0))
        ignored = idle & still & (state == IGNORED)
        over = idle & (state == CLOSED) & (latest - last <= limits.closed_linger) & ~flows.wanted[slots]
        flows.ts_last[slots[ignored]] = np.maximum(latest, last)[ignored]

        def of(groups: NDArray[np.bool_]) -> _Batch:
            kept = groups[group]
            fewer = counts[groups]
            begin, number = np.cumsum(fewer) - fewer, np.repeat(np.arange(len(fewer)), fewer)
            at = order[kept]
            return _Batch(p, rows[at], side[at], flags[kept], ts[kept], jump[kept], begin, fewer, number, slots[groups])

        stay = ~(ignored | over)
        unset = ~stay & ((flows.ttl0[slots] < 0) | (flows.ttl1[slots] < 0) | (flows.vlan0[slots] < 0) | (flows.vlan1[slots] < 0))
        if unset.any():
            self._kinds(of(unset))
        if home < 0 and stay.any():
            batch = of(stay)
            events += self._more_numbers(batch)
        self._number(p.source, events)
        if self._share[1] > 1:
            others = ~flows.belongs(slots, self._share)
            flows.ts_last[slots[others]] = np.maximum(latest, last)[others]
            stay &= ~others
            if stay.any():
                batch = of(stay)
        for g in np.flatnonzero(shared).tolist():
            self._apart.append((int(slots[g]), rows[order[group == g]].tolist()))
        if home >= 0 or shared.any():
            stay &= ~shared
            if stay.any():
                batch = of(stay)
        if stay.any():
            self._kinds(batch)
            todo = self._half_open(batch, p)
            if self._foreign is not None and home < 0:
                todo = self._strangers(self._foreign, batch, p, todo)
            self._hand_over(p, batch, todo[np.argsort(first[stay][todo], kind="stable")])

    def _group(self, p: Packets, rows: I64, ends: Ends) -> tuple[I64, I64, I64]:
        """Rows in order of their flow, where each flow's begin, and the flows' slots."""
        flows = self._flows
        while True:
            keys = flows.hash(ends)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            begins = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
            counts = np.diff(begins, append=len(order))
            by_flow = ends.pick(order)
            groups = by_flow.pick(begins)
            slots = flows.find(keys[begins])
            known = slots >= 0
            alike = by_flow.same(groups.pick(np.repeat(np.arange(len(begins)), counts)))
            if alike and flows.ends(slots[known]).same(groups.pick(known)):
                break
            flows.rekey()
        new = np.flatnonzero(~known)
        if len(new):
            new = new[np.argsort(order[begins][new], kind="stable")]
            slots[new] = flows.add(keys[begins][new], groups.pick(new))
            at = rows[order[begins[new]]]
            flows.vlan[slots[new]], flows.ts_last[slots[new]] = p.vlan[at], p.ts[at]
        return order, begins, slots

    def _kinds(self, b: "_Batch") -> None:
        """VLAN and TTL: what differs from a direction's first needs care."""
        flows, n = self._flows, len(b)
        self._batch = b
        b.before = [getattr(flows, name)[b.slots] for name in _KINDS]
        places = np.arange(n)
        said = b.length > 0
        b.said0 = said0 = np.minimum.reduceat(np.where(said & (b.side == 0), places, n), b.begins)
        b.said1 = said1 = np.minimum.reduceat(np.where(said & (b.side == 1), places, n), b.begins)
        for first, column, values in (
            (b.first0, flows.vlan0, b.kind >> 8),
            (b.first1, flows.vlan1, b.kind >> 8),
            (said0, flows.ttl0, b.kind & 255),
            (said1, flows.ttl1, b.kind & 255),
        ):
            new = (first < n) & (column[b.slots] < 0)
            column[b.slots[new]] = values[first[new]]
        ttl = np.where(b.side == 0, flows.ttl0[b.slots][b.group], flows.ttl1[b.slots][b.group])
        b.odd |= said & (b.kind & 255 != ttl)
        if b.kind.max() > 255 or flows.vlan0[b.slots].any() or flows.vlan1[b.slots].any():
            vlan = np.where(b.side == 0, flows.vlan0[b.slots][b.group], flows.vlan1[b.slots][b.group])
            b.other_vlan = b.kind >> 8 != vlan
            b.odd |= b.other_vlan

    # -- numbers as Wireshark's tcp.stream

    def _new_numbers(self, source: str, slots: I64, rows: I64) -> list[tuple[int, int]]:
        """(row, slot) of flows that have not been seen in this source."""
        if source not in self._sources:
            self._sources[source] = [len(self._names), 0]
            self._names.append(source)
        flows, ident = self._flows, self._sources[source][0]
        new = flows.source[slots] != ident
        flows.source[slots[new]] = ident
        flows.based[slots[new]] = 0
        return list(zip(rows[new].tolist(), slots[new].tolist(), strict=True))

    def _more_numbers(self, b: "_Batch") -> list[tuple[int, int]]:
        """(row, slot) of SYNs that Wireshark counts as a new conversation: those with another sequence number than
        the first of their direction (for a direction not seen, one less than what was first acknowledged)."""
        flows, events = self._flows, []
        bare = (b.flags & np.uint8(SYN | ACK)) == SYN
        syns = np.add.reduceat(bare.astype(np.int64), b.begins)
        plain = (syns == 0) | ((syns == 1) & bare[b.begins] & (flows.based[b.slots] == 0))
        unset = plain & (flows.based[b.slots] != 3)
        for side, column in ((0, flows.base0), (1, flows.base1)):
            self._bases(b, unset & (flows.based[b.slots] & (1 << side) == 0), side, column)
        for g in np.flatnonzero(~plain).tolist():
            slot = int(b.slots[g])
            base = {0: int(flows.base0[slot]), 1: int(flows.base1[slot])}
            base = {s: v for s, v in base.items() if flows.based[slot] & (1 << s)}
            for k in range(int(b.begins[g]), int(b.begins[g] + b.counts[g])):
                side, flags, seq = int(b.side[k]), int(b.flags[k]), int(b.seq[k])
                if flags & (SYN | ACK) == SYN and base.get(side, seq) != seq:
                    events.append((int(b.row[k]), slot))
                    base = {}
                if side not in base:
                    base[side] = seq if flags & SYN else (seq - 1) & 0xFFFFFFFF
                if flags & ACK and 1 - side not in base:
                    base[1 - side] = (int(b.ack[k]) - 1) & 0xFFFFFFFF
            flows.base0[slot], flows.base1[slot] = base.get(0, 0), base.get(1, 0)
            flows.based[slot] = sum(1 << s for s in base)
        return events

    def _bases(self, b: "_Batch", groups: NDArray[np.bool_], side: int, base: NDArray[np.uint32]) -> None:
        flows, n = self._flows, len(b)
        own = b.first1 if side else b.first0
        acks = np.where((b.side != side) & (b.flags & np.uint8(ACK) != 0), np.arange(n), n)
        other = np.minimum.reduceat(acks, b.begins)
        by_own = groups & (own < n) & (own < other)
        at = own[by_own]
        base[b.slots[by_own]] = b.seq[at] - np.where(b.flags[at] & np.uint8(SYN), 0, 1).astype(np.uint32)
        by_other = groups & (other < n) & (other < own)
        base[b.slots[by_other]] = b.ack[other[by_other]] - np.uint32(1)
        flows.based[b.slots[by_own | by_other]] |= np.uint8(1 << side)

    def _number(self, source: str, events: list[tuple[int, int]]) -> None:
        if not events:
            return
        events.sort()
        counter = self._sources[source]
        slots = np.array([slot for _, slot in events])
        numbers = np.arange(counter[1], counter[1] + len(events))
        counter[1] += len(events)
        stream = self._flows.stream
        if len(set(slots.tolist())) < len(slots) or (stream[slots] >= 0).any():
            for (row, slot), number in zip(events, numbers.tolist(), strict=True):
                self._numbers.setdefault(slot, [(-1, int(stream[slot]))]).append((row, number))
        stream[slots] = numbers  # of several for one slot the last stays

    def _stream(self, slot: int, row: int) -> int:
        """Number of the conversation that a row is of."""
        slot = slot if self._home < 0 else self._home
        numbers = self._numbers.get(slot)
        if numbers is None:
            return int(self._flows.stream[slot])
        return next(number for at, number in reversed(numbers) if at <= row)

    # -- SYNs without answer

    def _half_open(self, b: "_Batch", p: Packets) -> I64:
        """Deal with groups that are nothing but one SYN and its copies; the groups left."""
        flows, n = self._flows, len(b)
        every = np.arange(len(b.begins))
        rows = ((b.flags & np.uint8(SYN | ACK | RST | FIN)) == SYN) & (b.wire == 0) & ~b.other_vlan & ~b.jump
        pure = np.logical_and.reduceat(rows, b.begins) & ((b.first0 == n) | (b.first1 == n))
        if not pure.any():
            return every
        seq, ts = b.seq, b.ts
        pure &= np.minimum.reduceat(seq, b.begins) == np.maximum.reduceat(seq, b.begins)
        latest = np.maximum.reduceat(ts, b.begins)
        side, state = b.side[b.begins], flows.state[b.slots]
        isn = np.where(side == 0, flows.isn0[b.slots], flows.isn1[b.slots])
        pure &= (state != HALF) | (ts[b.begins] - flows.ts_last[b.slots] <= self._limits.connection_idle)
        again = pure & (state == HALF) & (flows.side[b.slots] == side) & (isn == seq[b.begins])
        slots = b.slots[again]
        flows.syns[slots] += b.counts[again].astype(np.int32)
        flows.ts_last[slots] = np.maximum(flows.ts_last[slots], latest[again])
        over = pure & (state == HALF) & (flows.side[b.slots] == side) & ~again
        self._forget_half(b.slots[over])
        fresh = pure & (state == NONE) | over
        slots, at = b.slots[fresh], b.begins[fresh]
        flows.state[slots] = HALF
        flows.side[slots] = side[fresh]
        flows.isn0[slots] = np.where(side[fresh] == 0, seq[at], 0)
        flows.isn1[slots] = np.where(side[fresh] == 1, seq[at], 0)
        flows.syns[slots] = b.counts[fresh]
        flows.ts[slots], flows.frame[slots] = ts[at], p.frame[b.row[at]]
        flows.half_source[slots], flows.half_stream[slots] = flows.source[slots], flows.stream[slots]
        flows.ts_last[slots] = latest[fresh]
        rest: I64 = every[~(again | fresh)]
        return rest

    # -- connections of no interest

    def _strangers(self, foreign: Foreign, b: "_Batch", p: Packets, todo: I64) -> I64:
        """Ignore connections that open here and begin as none of ours, before anything is made of them; the groups left.

        Only what is plain is told here: one SYN, one SYN-ACK, and behind them the first payload of each side.
        """
        flows, n = self._flows, len(b)
        if n < 2 or not len(todo):
            return todo
        at = b.begins[todo]
        back = np.minimum(at + 1, n - 1)
        opener, slots = b.side[at], b.slots[todo]
        ask, answer = (np.where(opener == side, b.said0[todo], b.said1[todo]) for side in (0, 1))
        plain = (flows.state[slots] == NONE) & (b.counts[todo] > 3) & (ask < n) & (answer < n)
        ask, answer = np.minimum(ask, n - 1), np.minimum(answer, n - 1)
        control, one = b.flags & np.uint8(SYN | ACK | RST | FIN), np.uint32(1)
        plain &= (control[at] == SYN) & (control[back] == SYN | ACK) & (b.side[back] != opener) & (b.ack[back] == b.seq[at] + one)
        plain &= np.add.reduceat((b.flags & np.uint8(SYN) != 0).astype(np.int64), b.begins)[todo] == 2
        plain &= ~np.logical_or.reduceat(b.other_vlan | b.jump, b.begins)[todo]
        plain &= (b.seq[ask] == b.seq[at] + one) & (b.seq[answer] == b.seq[back] + one)
        plain &= (b.length[ask] == b.wire[ask]) & (b.length[answer] == b.wire[answer])
        which = np.flatnonzero(plain)
        if not len(which):
            return todo
        places = (p.payload[b.row[side[which]]].tolist() for side in (ask, answer))
        lengths = (np.minimum(b.length[side[which]], _HEAD).tolist() for side in (ask, answer))
        ports, mirrored = flows.ports[slots[which]].tolist(), opener[which].tolist()
        data, found = p.data, []
        for g, orig, resp, m, k, both, swap in zip(which.tolist(), *places, *lengths, ports, mirrored, strict=True):
            lower, higher = both >> 16, both & 0xFFFF
            ends = (higher, lower) if swap else (lower, higher)
            if foreign(bytes(data[orig : orig + m]), bytes(data[resp : resp + k]), *ends):
                found.append(g)
        slots, at, back = slots[found], at[found], back[found]
        swap = b.side[at] == 1
        flows.state[slots] = IGNORED
        flows.isn0[slots], flows.isn1[slots] = np.where(swap, b.seq[back], b.seq[at]), np.where(swap, b.seq[at], b.seq[back])
        flows.ts_last[slots] = np.maximum.reduceat(b.ts, b.begins)[todo[found]]
        flows.wanted[slots] = False
        left: I64 = np.delete(todo, found)
        return left

    def list_attempts_anew(self) -> None:
        """For a capture without end: as many more connection attempts may be listed one by one."""
        self._listed = 0

    def _forget_half(self, slots: I64) -> None:
        """Count SYNs that were never answered, and list those to mail ports."""
        flows = self._flows
        if not len(slots):
            return
        flows.state[slots] = NONE
        ports = flows.ports[slots]
        target = np.where(flows.side[slots] == 0, ports & np.uint32(0xFFFF), ports >> np.uint32(16))
        slots = slots[self._mail_table[target]]
        for ident in np.unique(flows.half_source[slots]).tolist():
            some = slots[flows.half_source[slots] == ident]
            some = some[np.lexsort((flows.frame[some], flows.ts[some]))]
            room = max(self._limits.attempts - self._listed, 0)
            for slot in some[:room].tolist():
                self._attempt(slot, int(flows.side[slot]), self._names[ident], "unanswered", int(flows.syns[slot]))
            if len(some) > room:
                self._count(self._names[ident], "unanswered", len(some) - room, int(some[room]))

    def _attempt(self, slot: int, side: int, source: str, result: str, syns: int, flow: Flow | None = None) -> None:
        flows = self._flows
        a, b = self._ends_of(slot)
        orig, resp = (a, b) if side == 0 else (b, a)
        self._count(source, result, 1, slot, flow)
        if self._listed < self._limits.attempts:
            ts, frame = (flow.ts, flow.frame) if flow else (int(flows.ts[slot]), int(flows.frame[slot]))
            last, stream = (flow.ts_last, flow.stream) if flow else (int(flows.ts_last[slot]), int(flows.half_stream[slot]))
            self._found.append(Attempt(source, ts, last, *orig, *resp, result, stream, frame, syns))

    def _count(self, source: str, name: str, n: int, slot: int, flow: Flow | None = None) -> None:
        flows = self._flows
        first = (flow.ts, flow.frame) if flow else (int(flows.ts[slot]), int(flows.frame[slot]))
        count, before = self._tally.get((source, name), (0, first))
        self._tally[source, name] = (count + n, min(before, first))

    def _list_attempts(self) -> None:
        """Tell the attempts found since the last mark, the earliest first, as many as are to be listed."""
        self._found.sort(key=lambda attempt: (attempt.ts, attempt.source, attempt.frame))
        room = max(self._limits.attempts - self._listed, 0)
        if self._share[1] > 1:
            self._listed_here += [(self._marks, attempt) for attempt in self._found[:room]]
        else:
            self.attempts += self._found[:room]
        self._listed += len(self._found[:room])
        self._found = []

    # -- flows with objects

    def _hand_over(self, p: Packets, b: "_Batch", todo: I64) -> None:
        """Hand each group's rows to its connection, in order of the groups' first rows."""
        flows = self._flows
        big = b.counts[todo] > _BIG
        chosen = np.zeros(len(b.begins), np.bool_)
        chosen[todo[~big]] = True
        c = b.columns(p, np.flatnonzero(chosen[b.group]))
        place = np.zeros(len(b.begins), np.int64)
        place[chosen] = np.cumsum(b.counts[chosen]) - b.counts[chosen]
        slots, begins, counts = b.slots[todo], place[todo].tolist(), b.counts[todo].tolist()
        names = ("state", "ts_last", "ports", "a_hi", "a_lo", "b_hi", "b_lo")
        known = zip(*(getattr(flows, name)[slots].tolist() for name in names), strict=True)
        self._known = dict(zip(slots.tolist(), known, strict=True))
        kinds = zip(*(getattr(flows, name)[slots].tolist() for name in _KINDS), strict=True)
        for slot, i, n, kind, g in zip(slots.tolist(), begins, counts, kinds, todo.tolist(), strict=True):
            if n <= _BIG:
                self._rows(slot, c, i, i + n, kind)
            else:
                self._many_rows(p, b, slot, int(b.begins[g]), n, kind)
        self._known = {}
        self._moved.clear()
        self._write()

    def _many_rows(self, p: Packets, b: "_Batch", slot: int, at: int, n: int, kinds: _Kinds) -> None:
        """The rows of a big group, some thousands at a time."""
        end = at + n
        for start in range(at, end, _BIG):
            if slot not in self._flows.live and self._sleeping(slot)[0] == IGNORED and not b.odd[start:end].any():
                break
            stop = min(start + _BIG, end)
            part = b.columns(p, np.arange(start, stop))
            if slot in self._moved:
                part.odd = [True] * (stop - start)
                kinds = (int(self._flows.vlan0[slot]), int(self._flows.vlan1[slot]), *kinds[2:])
            if not self._rows(slot, part, 0, stop - start, kinds):
                self._apart[-1][1].extend(b.row[stop:end].tolist())
                break

    def _rows(self, slot: int, c: Columns, i: int, j: int, kinds: _Kinds) -> bool:
        """Rows of one flow; False when the rest of the batch's must be told apart by VLAN first."""
        live = self._flows.live
        while i < j:
            flow = live.get(slot)
            if flow is None:
                i = self._asleep(slot, c, i, j, kinds)
                if i >= j:
                    break
                flow = live[slot]
            zero, one = flow.half
            zero.vlan, one.vlan, zero.ttl, one.ttl = kinds
            i = flow.run(c, i, j) if flow.wanted else self._undecided(flow, c, i, j)
            if flow.over is not None:
                self._close(flow, flow.over)
                if flow.successor is not None:
                    new = self._begin(slot, flow.successor, 0, self._stream(slot, int(c.row[min(i, j - 1)])))
                    new.run(flow.successor, 0, 1)
            elif flow.split:
                flow.split = False
                if c.kind[i] >> 8 not in (0, int(self._flows.vlan[slot])):
                    self._unmix(slot, int(c.row[i]))
                    self._rest(flow)
                    self._apart.append((slot, c.row[i:j].tolist()))
                    return False
                kinds = self._adopt_vlan(slot, c, i, kinds)
                c.odd[i:j] = [True] * (j - i)
        flow = live.get(slot)
        if flow is not None:
            self._rest(flow)
        return True

    def _unmix(self, slot: int, row: int) -> None:
        """From a row on the flow's rows are told apart by VLAN: what they have said of its own kind is taken back."""
        flows, b = self._flows, self._batch
        assert b is not None
        flows.shared[slot] = True
        g = int(np.flatnonzero(b.slots == slot)[0])
        begin, end = int(b.begins[g]), int(b.begins[g] + b.counts[g])
        own = slice(begin, begin + int(np.searchsorted(b.row[begin:end], row)))
        side, said = b.side[own], b.length[own] > 0
        values = (b.kind[own] >> 8, b.kind[own] >> 8, b.kind[own] & 255, b.kind[own] & 255)
        theirs = (side == 0, side == 1, said & (side == 0), said & (side == 1))
        for name, before, value, mine in zip(_KINDS, b.before, values, theirs, strict=True):
            old = int(before[g])
            getattr(flows, name)[slot] = old if old >= 0 or not mine.any() else value[mine][0]

    def _rest(self, flow: Flow) -> None:
        """A connection's rows of the batch are taken."""
        if flow.items or (flow.wanted and flow.held):
            self._collect(flow)
        elif flow.only_syns:
            self._back_to_half(flow)
        zero, one = flow.half
        if flow.slot in self._flows.live and (flow.ending is not None or zero.pend or one.pend):
            if flow.ending is not None:
                self._lingering[flow.slot] = flow
            if zero.pend or one.pend:
                self._holding[flow.slot] = flow

    def _adopt_vlan(self, slot: int, c: Columns, k: int, kinds: _Kinds) -> _Kinds:
        """The connection itself has changed to another VLAN in one direction."""
        vlan, side = c.kind[k] >> 8, c.side[k]
        (self._flows.vlan1 if side else self._flows.vlan0)[slot] = vlan
        self._moved.add(slot)
        return (kinds[0], vlan, *kinds[2:]) if side else (vlan, *kinds[1:])

    def _sleeping(self, slot: int) -> tuple[int, int]:
        """State and last time of a flow without an object."""
        done = self._done.get(slot)
        if done is not None:
            return done[0], done[1]
        known = self._known[slot]
        return known[0], known[1]

    def _asleep(self, slot: int, c: Columns, i: int, j: int, kinds: _Kinds) -> int:
        """Rows of a flow without an object: skip what opens no connection, begin one with the first that does."""
        state, last = self._sleeping(slot)
        if state == HALF:
            self._wake_half(slot)
            return i
        if state == NONE:
            while i < j and c.flags[i] & RST:
                i += 1
        else:
            i = self._skip_late(slot, c, i, j, state, last)
        if i < j:
            flow = self._begin(slot, c, i, self._stream(slot, int(c.row[i])))
            if j - i > 2 and flow.stage == 0 and not any(c.kind[k] >> 8 != kinds[c.side[k]] for k in (i, i + 1, i + 2)):
                i += flow.shake_hands(c, i)
        return i

    def _skip_late(self, slot: int, c: Columns, i: int, j: int, state: int, last: int) -> int:
        """Skip rows of the connection that is over (or ignored), up to the first of another."""
        flows, done = self._flows, self._done.get(slot)
        if done is None:
            done = (
                state,
                last,
                int(flows.isn0[slot]),
                int(flows.isn1[slot]),
                int(flows.end0[slot]),
                int(flows.end1[slot]),
                bool(flows.wanted[slot]),
            )
        isn, end = done[2:4], done[4:6]
        while i < j:
            if state == IGNORED and not c.odd[i]:
                stop = c.odd.index(True, i, j) if True in c.odd[i:j] else j
                last = max(last, *c.ts[i:stop])
                i = stop
                continue
            if not self._is_late(c, i, state, last, isn, end):
                break
            if c.wire[i] and slot in self._ended:
                self._late(slot, c, i, end[c.side[i]])
            last = max(last, c.ts[i]) if state == IGNORED else last
            i += 1
        if state == IGNORED:
            self._done[slot] = (state, last, *done[2:])
        return i

    def _is_late(self, c: Columns, k: int, state: int, last: int, isn: tuple[int, int], end: tuple[int, int]) -> bool:
        """Whether a row is of the connection that is over (or ignored), not the first of another."""
        limits, side, flags = self._limits, c.side[k], c.flags[k]
        if flags & SYN:
            return c.seq[k] == isn[side]
        if flags & RST:
            return True
        if state == IGNORED:
            return c.ts[k] - last <= limits.connection_idle
        within = (c.seq[k] + c.wire[k] - isn[side]) & 0xFFFFFFFF <= (end[side] - isn[side]) & 0xFFFFFFFF
        return within or not c.wire[k] or c.ts[k] - last <= limits.closed_linger

    def _late(self, slot: int, c: Columns, k: int, end: int) -> None:
        """Payload on a connection that is over: a late copy, or octets from beyond its end."""
        conn, told = self._ended[slot]
        if c.wire[k] == 1 and c.seq[k] == end:
            return  # keep-alive
        if 0 < (c.seq[k] + c.wire[k] - end) & 0xFFFFFFFF < 1 << 31:
            self._ended[slot] = (conn, told + 1)
            if told < self._limits.connection_anomalies:
                name = "data_after_reset" if conn.end == "reset" else "data_past_fin"
                detail = f"{c.wire[k]} octets after the connection's end; ignored"
                ident = self._identify(conn) if self._identify else None
                self.anomalies.append(Anomaly(c.ts[k], conn.source, ident, None, name, detail, c.frame[k]))

    def _back_to_half(self, flow: Flow) -> None:
        """So far nothing but a SYN and its copies: a row of the table will do."""
        flows, slot, side = self._flows, flow.slot, flow.orig
        self._begun.discard(slot)
        flows.state[slot], flows.side[slot], flows.syns[slot] = HALF, side, flow.syns
        flows.ts[slot], flows.frame[slot], flows.ts_last[slot] = flow.ts, flow.frame, flow.ts_last
        flows.half_source[slot], flows.half_stream[slot] = self._names.index(flow.source), flow.stream
        isn = (flow.half[side].base - 1) & 0xFFFFFFFF
        flows.isn0[slot], flows.isn1[slot] = (0, isn) if side else (isn, 0)
        del flows.live[slot]

    def _wake_half(self, slot: int) -> None:
        """A SYN that was only a row has been answered, or is followed by something."""
        flows = self._flows
        side, ts = int(flows.side[slot]), int(flows.ts[slot])
        source, stream = self._names[flows.half_source[slot]], int(flows.half_stream[slot])
        flow = Flow(self._limits, slot, source, stream, ts, int(flows.frame[slot]), side)
        flow.handshake, flow.stage, flow.busy = True, 0, True
        flow.ts_syn = ts
        flow.syns = flow.packets = int(flows.syns[slot])
        flow.ts_before = flow.ts_last = int(flows.ts_last[slot])
        flow.half[side].begin(int(flows.isn1[slot] if side else flows.isn0[slot]) + 1, soft=False)
        self._begun.add(slot)
        self._ended.pop(slot, None)
        flows.live[slot] = flow

    def _begin(self, slot: int, c: Columns, k: int, stream: int) -> Flow:
        """A connection whose first packet is this row."""
        flags, side = c.flags[k], c.side[k]
        orig = (1 - side if flags & ACK else side) if flags & SYN else self._guess(self._known[slot][2], side)
        flow = Flow(self._limits, slot, self._source, stream, c.ts[k], c.frame[k], orig)
        if flags & SYN:
            flow.stage, flow.busy = 0, True
        self._flows.live[slot] = flow
        self._begun.add(slot)
        self._done.pop(slot, None)
        self._ended.pop(slot, None)
        return flow

    def _guess(self, ports: int, sender: int) -> int:
        """Which side opened a connection that was joined in the middle: not the one with the server's port."""
        a, b = ports >> 16, ports & 0xFFFF
        for known in (a in self._mail_ports, b in self._mail_ports), (a < 1024, b < 1024):
            if known[0] != known[1]:
                return 1 if known[0] else 0
        return sender if a == b else 1 if a < b else 0

    def _undecided(self, flow: Flow, c: Columns, i: int, j: int) -> int:
        """Rows of a connection that is not recognised yet: besides at the end of a batch it is asked about when all that
        is looked at is there, and when the bound is hit, wherever in the batch that is."""
        limit = self._limits.unrecognised_bytes
        while i < j and not flow.wanted:
            held = flow.taken()
            bound = min(limit, _HEAD) if max(held) <= _HEAD else limit
            if max(held) + sum(c.length[i:j]) <= bound:
                break
            stop = i
            while stop < j and max(held) <= bound:
                held[c.side[stop]] += c.length[stop]
                stop += 1
            i = flow.run(c, i, stop) if i < stop else i
            if flow.over is not None or flow.split or i < stop:
                return i
            taken = max(flow.taken())
            if taken > bound:
                if not self._ask(flow) and taken > limit and flow.slot in self._flows.live:
                    self._retire(flow, IGNORED)
                if flow.slot not in self._flows.live:
                    return i
        return flow.run(c, i, j) if i < j else i

    def _collect(self, flow: Flow, closed: bool = False) -> None:
        """Deliver what a connection has brought, or ask whether it is wanted."""
        conn = flow.conn or self._connection(flow)
        conn.ts_last, conn.last_frame = flow.ts_last, flow.frame_last
        if not flow.wanted and not self._ask(flow, closed):
            return
        chunks = [chunk for _, chunk in flow.items]
        if flow.held:
            chunks = flow.held + chunks
        flow.items, flow.held = [], None
        conn.orig_bytes, conn.resp_bytes = flow.octets if flow.orig == 0 else flow.octets[::-1]
        conn.gap_bytes = flow.gap_octets
        if flow.handshake and (closed or conn.ts_open is None):
            conn.start = "handshake"
            conn.ts_syn, conn.ts_synack, conn.ts_open = flow.ts_syn, flow.ts_synack, flow.ts_open
        if flow.anomalies:
            ident = self._identify(conn) if self._identify else None
            for ts, name, detail, frame in flow.anomalies:
                self.anomalies.append(Anomaly(ts, flow.source, ident, None, name, detail, frame))
            flow.anomalies = []
        if closed:
            conn.end = flow.over
        if chunks or closed:
            self._deliveries.append(Delivery(conn, chunks, closed))

    def _ask(self, flow: Flow, closed: bool = False) -> bool:
        """Ask whether a connection is wanted by what it has brought: that is kept, to be delivered with the batch's rest."""
        conn = flow.conn or self._connection(flow)
        conn.ts_last, conn.last_frame = flow.ts_last, flow.frame_last
        flow.held = (flow.held or []) + [chunk for _, chunk in flow.items]
        flow.items = []
        answer = self._recognise(conn, *_heads(flow.held), closed) if any(flow.octets) else None
        flow.wanted = bool(answer)
        if answer is not None and not answer and not closed:
            self._retire(flow, IGNORED)
        return flow.wanted

    def _connection(self, flow: Flow) -> Connection:
        orig, resp = self._ends_of(flow.slot)
        if flow.orig:
            orig, resp = resp, orig
        conn = Connection(flow.source, flow.stream, *orig, *resp, flow.ts, flow.frame)
        if flow.handshake:
            conn.start = "handshake"
            conn.ts_syn, conn.ts_synack, conn.ts_open = flow.ts_syn, flow.ts_synack, flow.ts_open
        conn.orig_seq, conn.resp_seq = flow.half[flow.orig].base, flow.half[1 - flow.orig].base
        flow.conn = conn
        return conn

    def _close(self, flow: Flow, reason: str, state: int = CLOSED) -> None:
        """A connection is over.  With state NONE whatever comes after it is a connection of its own."""
        flow.conclude(flow.over or reason)
        if flow.wanted or any(flow.octets):
            self._collect(flow, closed=True)
        elif self._nothing_said(flow) == "unanswered":
            state = NONE
        self._retire(flow, state)

    def _nothing_said(self, flow: Flow) -> str:
        """A connection without payload: an attempt, when it was to a mail port."""
        refused = flow.over == "reset" and flow.ts_synack is None
        result = "refused" if refused else "silent" if flow.ts_synack is not None else "unanswered"
        ports = int(self._flows.ports[flow.slot])
        target = ports & 0xFFFF if flow.orig == 0 else ports >> 16
        if flow.handshake and target in self._mail_ports:
            self._attempt(flow.slot, flow.orig, flow.source, result, max(flow.syns, 1), flow)
        return result

    def _retire(self, flow: Flow, state: int) -> None:
        """Keep of a connection only what tells its late packets from another's."""
        slot = flow.slot
        zero, one = flow.half
        base0, base1 = zero.base, one.base
        self._done[slot] = (
            state,
            flow.ts_last,
            (base0 - 1) & 0xFFFFFFFF,
            (base1 - 1) & 0xFFFFFFFF,
            (base0 + zero.next) & 0xFFFFFFFF,
            (base1 + one.next) & 0xFFFFFFFF,
            flow.wanted,
        )
        if flow.wanted and flow.conn is not None:
            self._ended[slot] = (flow.conn, 0)
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
        del self._flows.live[slot]
        if self._lingering:
            self._lingering.pop(slot, None)
        if self._holding:
            self._holding.pop(slot, None)

    def _write(self) -> None:
        """Put into the table what was begun and what is over."""
        flows = self._flows
        if self._begun:
            flows.state[list(self._begun)] = LIVE
            self._begun.clear()
        if self._done:
            slots = list(self._done)
            columns = zip(*self._done.values(), strict=True)
            names = ("state", "ts_last", "isn0", "isn1", "end0", "end1", "wanted")
            for name, values in zip(names, columns, strict=True):
                getattr(flows, name)[slots] = values
            self._done = {}

    def _ends_of(self, slot: int) -> tuple[tuple[str, int], tuple[str, int]]:
        known = self._known.get(slot)
        if known is None:
            flows = self._flows
            columns = (flows.ports, flows.a_hi, flows.a_lo, flows.b_hi, flows.b_lo)
            ports, a_hi, a_lo, b_hi, b_lo = (int(column[slot]) for column in columns)
        else:
            _, _, ports, a_hi, a_lo, b_hi, b_lo = known
        return (ip_text(a_hi, a_lo), ports >> 16), (ip_text(b_hi, b_lo), ports & 0xFFFF)

    # -- bounds

    def _checkpoint(self, ts: int) -> None:
        """Look at the global bounds; `ts` is that of the row at which the mark was passed."""
        self._marks += 1
        self._sweep(min(ts, self._mark))  # one wrong time alone ends nothing
        self._mark = ts
        limits, flows = self._limits, self._flows
        for flow in sorted(self._lingering.values(), key=lambda f: f.end_ts)[: max(len(self._lingering) - limits.lingering, 0)]:
            self._close(flow, flow.ending or "timeout")
        self._bound_pending()
        self._bound_open()
        if len(flows.live) * 4 * limits.history_bytes > limits.history_total:
            halves = [h for flow in flows.live.values() for h in flow.half]
            if sum(h.old_octets for h in halves) > limits.history_total:
                for h in halves:
                    h.old, h.old_octets = None, 0
        self._list_attempts()
        self._write()
        if flows.count > limits.connections * 5 // 4:
            self._forget_oldest()

    def _bound_open(self) -> None:
        """Close the quietest connections while too many are followed, or they take too much; mail sessions last."""
        limits, live = self._limits, self._flows.live
        taken = len(live) * (_FLOW_COST + _SESSION_COST)
        if taken > limits.open_bytes:
            taken = len(live) * _FLOW_COST + sum(flow.wanted for flow in live.values()) * _SESSION_COST
        if len(live) <= limits.open_connections and taken <= limits.open_bytes:
            return
        count, most, octets = len(live), limits.open_connections * 9 // 10, limits.open_bytes * 9 // 10
        for flow in sorted(live.values(), key=lambda f: (f.wanted, f.ts_last, f.slot)):
            if count <= most and taken <= octets:
                break
            count -= 1
            taken -= _FLOW_COST + flow.wanted * _SESSION_COST
            self._count(flow.source, "dropped", 1, flow.slot, flow)
            self._close(flow, "timeout", NONE)

    def _bound_pending(self) -> None:
        """Give up the holes of the largest holders while too much is held in all."""
        held = {
            slot: sum(h.pend.octets + _PIECE_COST * h.pend.pieces for h in flow.half if h.pend)
            for slot, flow in self._holding.items()
        }
        total = sum(held.values())
        self._holding = {slot: flow for slot, flow in self._holding.items() if held[slot]}
        for slot, size in sorted(held.items(), key=lambda item: (-item[1], item[0])):
            if total <= self._limits.pending_total:
                break
            flow = self._holding.pop(slot)
            flow.give_up_all()
            self._collect(flow)
            total -= size

    def _sweep(self, now: int) -> None:
        """Close what would be over at its next packet anyhow."""
        limits, flows = self._limits, self._flows
        for flow in list(self._lingering.values()):
            if flow.ending is None:
                del self._lingering[flow.slot]
            elif now - flow.end_ts > flow.linger:
                self._close(flow, flow.ending)
        half = np.flatnonzero(flows.state[: flows.count] == HALF)
        self._forget_half(half[now - flows.ts_last[half] > limits.half_open_idle])
        if now - self._swept > limits.connection_idle // 24:
            self._swept = now
            for flow in list(flows.live.values()):
                if now - flow.ts_last > limits.connection_idle:
                    self._close(flow, "timeout")

    def _forget_oldest(self) -> None:
        """Drop the rows of flows not heard of for longest; should they come back they count as new conversations."""
        flows = self._flows
        state = flows.state[: flows.count]
        ts = np.where(state == LIVE, 1 << 62, flows.ts_last[: flows.count])
        oldest = np.argsort(ts, kind="stable")
        drop, keep = oldest[: -self._limits.connections], np.sort(oldest[-self._limits.connections :])
        self._forget_half(drop[state[drop] == HALF])
        flows.forget(keep)
        self._ended.clear()
        self._lingering = {flow.slot: flow for flow in self._lingering.values()}
        self._holding = {flow.slot: flow for flow in self._holding.values()}


class _Batch:
    """Columns of the rows that need a look, sorted by flow."""

    def __init__(
        self,
        p: Packets,
        row: I64,
        side: NDArray[np.uint8],
        flags: NDArray[np.uint8],
        ts: I64,
        jump: NDArray[np.bool_],
        begins: I64,
        counts: I64,
        group: I64,
        slots: I64,
    ) -> None:
        self.row, self.side, self.flags, self.ts, self.jump = row, side, flags, ts, jump
        self.begins, self.counts, self.group, self.slots = begins, counts, group, slots
        self.seq, self.ack = p.seq[row], p.ack[row]
        self.length, self.wire = p.length[row], p.wire_length[row]
        self.kind = p.vlan[row].astype(np.int32) << 8 | p.ttl[row]
        self.odd = (flags & np.uint8(SYN | FIN | RST | URG) != 0) | (flags & np.uint8(ACK) == 0)
        self.odd |= (self.wire != self.length) | jump
        self.said0 = self.said1 = np.zeros(0, np.int64)
        """Each flow's first rows with payload, by direction; as many as there are rows: none."""
        self.before: list[NDArray[Any]] = []
        """VLANs and TTLs of the flows before these rows."""
        self.other_vlan = np.zeros(len(row), np.bool_)
        places, n = np.arange(len(row)), len(row)
        self.first0 = np.minimum.reduceat(np.where(side == 0, places, n), begins)
        self.first1 = np.minimum.reduceat(np.where(side == 1, places, n), begins)

    def __len__(self) -> int:
        return len(self.row)

    def columns(self, p: Packets, at: I64) -> Columns:
        """Some of the rows as lists."""
        c = Columns()
        rows = self.row[at]
        c.batch, c.buf = p, p.data if isinstance(p.data, bytes) else memoryview(p.data)
        c.row = rows
        c.side, c.odd = self.side[at].tolist(), self.odd[at].tolist()
        c.seq, c.ack, c.flags = self.seq[at].tolist(), self.ack[at].tolist(), self.flags[at].tolist()
        c.length, c.wire = self.length[at].tolist(), self.wire[at].tolist()
        place = p.payload[rows]
        c.place = place.tolist()
        c.ts, c.frame, c.kind = self.ts[at].tolist(), p.frame[rows].tolist(), self.kind[at].tolist()
        return c


def _ends(p: Packets, rows: I64) -> tuple[Ends, NDArray[np.uint8]]:
    """Ends of each row's flow, the lower first, and which of them sent it."""
    s_hi, s_lo, d_hi, d_lo = p.src_hi[rows], p.src_lo[rows], p.dst_hi[rows], p.dst_lo[rows]
    s_port, d_port = p.src_port[rows].astype(np.uint32), p.dst_port[rows].astype(np.uint32)
    higher = (s_lo > d_lo) | ((s_lo == d_lo) & (s_port > d_port))
    if s_hi.any() or d_hi.any():
        higher = (s_hi > d_hi) | ((s_hi == d_hi) & higher)
    ports = np.where(higher, d_port << np.uint32(16) | s_port, s_port << np.uint32(16) | d_port)
    a_hi, b_hi = np.where(higher, d_hi, s_hi), np.where(higher, s_hi, d_hi)
    a_lo, b_lo = np.where(higher, d_lo, s_lo), np.where(higher, s_lo, d_lo)
    return Ends(a_hi, a_lo, b_hi, b_lo, ports, np.zeros(len(rows), np.int32)), higher.astype(np.uint8)


def _heads(chunks: list[Chunk]) -> tuple[bytes, bytes]:
    """The first octets of both directions, as far as they are held."""
    orig = resp = b""
    for chunk in chunks:
        if chunk.orig:
            if len(orig) < _HEAD:
                orig += chunk.data[: _HEAD - len(orig)]
        elif len(resp) < _HEAD:
            resp += chunk.data[: _HEAD - len(resp)]
    return orig, resp


@lru_cache(maxsize=1024)
def ip_text(hi: int, lo: int) -> str:
    """An address in text (RFC 5952)."""
    if hi == 0 and lo >> 32 == V4_PREFIX >> 32:
        return f"{lo >> 24 & 255}.{lo >> 16 & 255}.{lo >> 8 & 255}.{lo & 255}"
    return str(ipaddress.IPv6Address(hi << 64 | lo))
