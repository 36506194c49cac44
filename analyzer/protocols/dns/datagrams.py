"""DNS over UDP: headers as numpy columns, messages decoded once per distinct content, pairing by a dictionary."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import IPv6Address
from itertools import repeat
from socket import AF_INET6, inet_ntoa, inet_ntop
from struct import Struct
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.protocols.dns.layout import HEADER, headers, of_pairs, windows
from analyzer.protocols.dns.message import Message, Question, Said, read, read_question
from analyzer.protocols.dns.record import Transaction
from analyzer.protocols.dns.rows import belong, fault, same, transaction
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import V4_PREFIX, Packets

PORT = 53
_APART = (137, 5353, 5355)
"""NetBIOS names, multicast DNS (RFC 6762), LLMNR (RFC 4795): same header, another world."""
_REMEMBERED = 1024
"""Octets of the longest message whose decoding is remembered."""
_ADDRESSES = 65_536
"""Addresses whose text is remembered."""
_SEVERAL = 16
"""Different questions waiting under one identifier and pair of ports: then the oldest is given up."""
_TYPES_OF_MAIL = frozenset("A AAAA MX TXT PTR CNAME NS SOA SRV TLSA SPF".split())
"""Questions that make a datagram on an odd port believable."""

Rows = NDArray[np.int64]
Found = list[Transaction | Anomaly]
_Group = tuple[Rows, Rows, list[Said], Iterable[list[str] | None], Iterable[int | None]]
"""Questions and their answers, by datagram of the batch; what the answers say, their answer sections and smallest TTLs."""
Known = TypeVar("Known")

_new: Callable[[type[Transaction], tuple[Any, ...]], Transaction] = tuple.__new__
"""Makes a row without binding each argument by name."""


def candidate_rows(packets: Packets) -> Rows:
    """UDP rows that may be DNS: port 53 at either end; on other ports only what reads as a common question."""
    udp: Rows = np.flatnonzero(packets.protocol == 17)
    if not len(udp):
        return udp
    src, dst = packets.src_port[udp], packets.dst_port[udp]
    usual: NDArray[np.bool_] = (src == PORT) | (dst == PORT)
    odd: Rows = udp[~usual & (packets.length[udp] >= HEADER + 5) & ~np.isin(src, _APART) & ~np.isin(dst, _APART)]
    certain: Rows = udp[usual]
    if not len(odd):
        return certain
    head = headers(np.frombuffer(packets.data, dtype=np.uint8), packets.payload[odd])
    odd = odd[(head[:, 1] & 0x7870 == 0) & (head[:, 2] == 1) & (head[:, 3:] < 64).all(axis=1)]
    sure = [row for row in odd.tolist() if _surely_dns(packets, row)]
    return np.sort(np.concatenate([certain, np.array(sure, dtype=np.int64)])) if sure else certain


def _surely_dns(packets: Packets, row: int) -> bool:
    begin = int(packets.payload[row])
    wire = bytes(packets.data[begin : begin + int(packets.length[row])])
    try:
        question, end = read_question(wire, HEADER)
    except ValueError:
        return False
    name = question.name
    ends_here = end == len(wire) or wire[4:12] != b"\0\1\0\0\0\0\0\0"
    return ends_here and question.klass == "IN" and question.type in _TYPES_OF_MAIL and "\\" not in name and "." in name[:-1]


class Datagrams:
    """Pairs the questions and answers of captures, each in capture order.

    Each source is paired for itself, unless it begins after another has ended: then it continues that one
    (a rotated capture), and an exchange may lie in both.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._knowledge = _Knowledge(limits)
        self._taps: dict[str, _Tap] = {}

    def feed(self, packets: Packets, rows: Rows) -> Found:
        """Take UDP packets, by index; what they complete."""
        found: Found = []
        if not len(rows):
            return found
        short = packets.length[rows] < HEADER
        if short.any():
            found.extend(_too_short(packets, row) for row in rows[short].tolist())
            rows = rows[~short]
        if len(rows):
            self._tap(packets.source, int(packets.ts[rows[0]]), found).feed(packets, rows, found)
        return found

    def finish(self) -> Found:
        """Nothing more will come: what is still waiting has no answer."""
        found: Found = []
        for tap in self._taps.values():
            tap.finish(found)
        self._taps.clear()
        return found

    def _tap(self, source: str, ts: int, found: Found) -> "_Tap":
        tap = self._taps.get(source)
        if tap is not None:
            return tap
        for name, other in list(self._taps.items()):
            if ts - other.ts_last > self.limits.dns_timeout:
                self._taps.pop(name).finish(found)
            elif ts >= other.ts_last and (tap is None or other.ts_last > tap.ts_last):
                tap = other
        self._taps = {name: other for name, other in self._taps.items() if other is not tap}
        self._taps[source] = tap = tap or _Tap(self.limits, self._knowledge)
        return tap


def _too_short(packets: Packets, row: int) -> Anomaly:
    detail = f"a datagram of {packets.length[row]} octets on port {PORT}: no header"
    return Anomaly(int(packets.ts[row]), packets.source, None, None, "dns_malformed", detail, int(packets.frame[row]))


class _Memo(Generic[Known]):
    """What octets mean: two generations, the older forgotten when the younger is full."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.dns_memo // 2
        self.young: dict[bytes, Known] = {}
        self._old: dict[bytes, Known] = {}

    def miss(self, octets: bytes, understand: Callable[[], Known]) -> Known:
        """What is not in `young`."""
        found = self._old.get(octets)
        if found is None:
            found = understand()
        if len(octets) <= _REMEMBERED:
            if len(self.young) >= self._most:
                self._old = dict(self.young)
                self.young.clear()
            self.young[octets] = found
        return found


class _Knowledge:
    """What all taps of an analysis share: only speed depends on it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.messages: _Memo[Message] = _Memo(limits)
        """By octets, identifier aside."""
        self.said: _Memo[Said] = _Memo(limits)
        """By the octets of a plain answer that matter (not its identifier, TTL, or address told); empty: not plain after all."""
        self.addresses = _Addresses()

    def message(self, octets: bytes) -> Message:
        """What a message says; `octets` begin behind the identifier."""
        known = self.messages.young.get(octets)
        return known or self.messages.miss(octets, lambda: read(b"\0\0" + octets, self.limits))


class _Addresses(dict[Any, str]):
    """Text of addresses, made once: by `lo` of an IPv4 address, or by (hi, lo)."""

    def __missing__(self, key: Any) -> str:
        hi, lo = key if type(key) is tuple else (0, key)
        if hi == 0 and lo >> 32 == V4_PREFIX >> 32:
            text = inet_ntoa((lo & 0xFFFFFFFF).to_bytes(4, "big"))
        else:
            text = str(IPv6Address(hi << 64 | lo))
        if len(self) >= _ADDRESSES:
            self.clear()
        self[key] = text
        return text


_KEY = Struct("=QQQQHHHH")
"""Client, server, client's port, server's port, identifier, 0: one exchange, its question aside."""
_Asked = tuple[Message, int, int, int, int, str]
"""A question waiting: message, time, frame, time of its last copy, copies after the first, source."""
_Answer = tuple[Message | bytes, int, int, str, int]
"""An answer: message (or its octets behind the identifier), time, frame, source, number of the datagram."""


class _Several(dict[bytes, _Asked]):
    """Different questions waiting under one key, by question."""


class _Batch:
    """Datagrams of one batch as columns: everything about them but their messages."""

    def __init__(self, packets: Packets, rows: Rows) -> None:
        src_port, dst_port = packets.src_port[rows], packets.dst_port[rows]
        self.octets = np.frombuffer(packets.data, dtype=np.uint8)
        self.head = head = headers(self.octets, packets.payload[rows])
        self.is_answer, self.odd = _directions(head, src_port, dst_port)
        back = self.is_answer
        self.client_port = np.where(back, dst_port, src_port)
        self.server_port = np.where(back, src_port, dst_port)
        self.ident = head[:, 0]
        self.ends = np.zeros((len(rows), 5), dtype=np.uint64)
        p = packets
        columns = ((p.src_hi, p.dst_hi), (p.src_lo, p.dst_lo), (p.dst_hi, p.src_hi), (p.dst_lo, p.src_lo))
        for i, (of_question, of_answer) in enumerate(columns):
            self.ends[:, i] = np.where(back, of_answer[rows], of_question[rows])
        words = self.ends[:, 4:].view(np.uint16)
        words[:, 0], words[:, 1], words[:, 2] = self.client_port, self.server_port, self.ident
        self.ts = packets.ts[rows]
        self.frame = packets.frame[rows]
        self.begin = packets.payload[rows]
        self.length = packets.length[rows]
        self.cut = self.length < packets.wire_length[rows]
        self.data = packets.data
        if type(self.data) is not bytes and int(self.length.sum()) * 4 > len(self.data):
            self.data = bytes(self.data)  # slices of it need no second copy

    def slices(self, begin: Rows, end: Rows) -> list[bytes]:
        """Octets between places of the batch."""
        parts = map(slice, begin.tolist(), end.tolist())
        data = self.data
        if isinstance(data, bytes):
            return list(map(data.__getitem__, parts))
        return [bytes(data[part]) for part in parts]

    def keys(self, rows: Rows) -> list[bytes]:
        """`_KEY` of each."""
        keys: list[bytes] = self.ends[rows].view(f"V{_KEY.size}").ravel().tolist()
        return keys

    def addresses(self, rows: Rows, known: _Addresses) -> tuple[Iterable[str], Iterable[str]]:
        """Clients and servers of each.  Servers are few; clients may be all different ones."""
        ends = self.ends[rows]
        if not (ends[:, 0].any() or ends[:, 2].any()) and (ends[:, [1, 3]] >> np.uint64(32) == V4_PREFIX >> 32).all():
            clients: list[bytes] = ends[:, 1].astype(">u4").view("V4").tolist()
            return map(inet_ntoa, clients), map(known.__getitem__, ends[:, 3].tolist())
        hi_lo = (zip(ends[:, i].tolist(), ends[:, i + 1].tolist(), strict=True) for i in (0, 2))
        clients6, servers6 = (map(known.__getitem__, each) for each in hi_lo)
        return clients6, servers6

    def pairs(self, longest: int, sweeps: list[int]) -> tuple[Rows, Rows]:
        """Questions and their answers where a key has just these two datagrams here, in this order, in time.

        In time means too that no sweep between them comes too late for the question (a capture's times may jump).
        """
        factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD])
        mixed = np.bitwise_xor.reduce(self.ends * factors.astype(np.uint64), axis=1)
        mixed ^= mixed >> np.uint64(29)
        order = np.argsort(mixed, kind="stable")
        edges = np.flatnonzero(np.diff(mixed[order])) + 1
        begins = np.concatenate([[0], edges])
        begins = begins[np.diff(np.concatenate([begins, [len(order)]])) == 2]
        asked, answered = order[begins], order[begins + 1]
        waited = self.ts[answered] - self.ts[asked]
        fit = ~self.is_answer[asked] & self.is_answer[answered] & (waited >= 0) & (waited <= longest)
        fit &= (self.ends[asked] == self.ends[answered]).all(axis=1)
        if sweeps:
            last = np.searchsorted(sweeps, answered, side="right") - 1
            swept = np.array(sweeps)[last]
            fit &= (last < 0) | (swept <= asked) | (self.ts[swept] - self.ts[asked] <= longest)
        return asked[fit], answered[fit]


class _Tap:
    """Questions and answers of one place of capture.

    Two roads, one result: exchanges that lie plainly in one batch become rows by columns; all other datagrams go
    one by one through `waiting`, `orphans` and `answered`.
    """

    def __init__(self, limits: Limits, knowledge: _Knowledge) -> None:
        self.limits = limits
        self.knowledge = knowledge
        self.source = ""
        self.ts_last = 0
        """Latest time seen."""
        self.datagrams = 0
        """Datagrams of earlier batches."""
        self.sweep_at = 0
        """Time at which the dictionaries are next looked through for what has waited too long."""
        self.waiting: dict[bytes, _Asked | _Several] = {}
        """In the order of their last copies."""
        self.orphans: dict[bytes, _Answer] = {}
        """Answers whose question may yet come: captures put packets out of order."""
        self.answered: dict[bytes, _Answer] = {}
        self.answered_before: dict[bytes, _Answer] = {}
        """The older generation of `answered`."""
        self.repeated: dict[str, int] = {}
        """Copies of answers, by source."""

    def feed(self, packets: Packets, rows: Rows, found: Found) -> None:
        """Take datagrams that hold at least a header."""
        self.source = packets.source
        batch = _Batch(packets, rows)
        self.ts_last = max(self.ts_last, int(batch.ts.max()))
        for row in rows[batch.odd].tolist():
            found.append(_odd_direction(packets, row))
        sweeps = self._sweep_rows(batch.ts)
        left = np.ones(len(rows), dtype=np.bool_)
        if len(self.waiting) + len(rows) <= self.limits.dns_waiting:
            left[self._plain(batch, sweeps, found)] = False
        self._others(batch, np.flatnonzero(left), sweeps, found)
        self.datagrams += len(rows)
        if len(self.answered) > self.limits.dns_answered:
            self.answered, self.answered_before = {}, self.answered

    def _sweep_rows(self, ts: Rows) -> list[int]:
        """Datagrams before which the dictionaries are looked through: a matter of their times alone, not of batches."""
        latest = np.maximum.accumulate(ts)
        due: list[int] = []
        row = int(np.searchsorted(latest, self.sweep_at))
        while row < len(ts):
            due.append(row)
            self.sweep_at = int(ts[row]) + self.limits.dns_copy
            row = int(np.searchsorted(latest, self.sweep_at))
        return due

    # the plain road

    def _plain(self, batch: _Batch, sweeps: list[int], found: Found) -> Rows:
        """Rows of the exchanges that lie plainly in this batch; the datagrams they are made of."""
        asked, answered = batch.pairs(self.limits.dns_timeout, sweeps)
        keys = batch.keys(asked)
        known = set[bytes]().union(
            *(d.keys() & keys for d in (self.waiting, self.orphans, self.answered, self.answered_before) if d)
        )
        if known:
            new = np.fromiter((key not in known for key in keys), dtype=np.bool_, count=len(keys))
            asked, answered = asked[new], answered[new]
        taken: list[tuple[Rows, Rows]] = []
        shown: list[Transaction] = []
        for questions, answers, said, sections, ttls in self._laid_out(batch, asked, answered):
            shown += self._rows(batch, questions, answers, said, sections, ttls)
            taken.append((questions, answers))
        asked, answered = (np.concatenate(each) for each in zip(*taken, strict=True))
        found += map(shown.__getitem__, np.argsort(asked).tolist())
        recent = answered[answered >= len(batch.ts) - self.limits.dns_answered]
        latest = zip(
            batch.slices(batch.begin[recent] + 2, batch.begin[recent] + batch.length[recent]),
            batch.ts[recent].tolist(),
            batch.frame[recent].tolist(),
            repeat(self.source),
            (recent + self.datagrams).tolist(),
            strict=False,
        )
        self.answered.update(zip(batch.keys(recent), latest, strict=True))
        return np.concatenate([asked, answered])

    def _laid_out(self, batch: _Batch, asked: Rows, answered: Rows) -> Iterator[_Group]:
        """Exchanges by what had to be read of them."""
        begin, length = batch.begin, batch.length
        at = of_pairs(
            batch.octets,
            (begin[asked], length[asked]),
            (begin[answered], length[answered]),
            batch.head[asked],
            batch.head[answered],
        )
        internet = at.plain & at.answers & (at.rclass == 1)
        size = at.end - at.rdata
        v4 = internet & (at.rtype == 1) & (size == 4)
        v6 = internet & (at.rtype == 28) & (size == 16)
        v6[v6] = batch.octets[at.rdata[v6]] != 0
        start = begin[answered] + 2
        for which, kind in ((at.plain & ~at.answers, ""), (v4, "A"), (v6, "AAAA"), (at.plain & at.answers & ~v4 & ~v6, "*")):
            rows = np.flatnonzero(which)
            keys = batch.slices(start[rows], at.section[rows] + (6 if kind == "*" else 0))
            if kind == "*":
                keys = [a + b for a, b in zip(keys, batch.slices(at.rdata[rows] - 2, at.end[rows]), strict=True)]
            said = self._said(batch, keys, answered[rows])
            if not all(said):
                rows, said = rows[np.fromiter(map(bool, said), dtype=np.bool_, count=len(said))], [one for one in said if one]
            ttls: Iterable[int | None] = at.ttl[rows].tolist() if kind else repeat(None)
            sections: Iterable[list[str] | None]
            if kind == "A":
                texts = map(inet_ntoa, windows(batch.octets, at.rdata[rows], 4))
                sections = [[f"{one[0]} A {text}"] for one, text in zip(said, texts, strict=True)]
            elif kind == "AAAA":
                texts = map(inet_ntop, repeat(AF_INET6), windows(batch.octets, at.rdata[rows], 16))
                sections = [[f"{one[0]} AAAA {text}"] for one, text in zip(said, texts, strict=True)]
            else:
                sections = [one[7] for one in said]
            yield asked[rows], answered[rows], said, sections, ttls
        rest = np.flatnonzero(~at.plain)
        first, second = (self._messages(batch, which[rest]) for which in (asked, answered))
        fit = np.fromiter((a.exact == b.exact for a, b in zip(first, second, strict=True)), dtype=np.bool_, count=len(rest))
        messages = [b for b, fits in zip(second, fit.tolist(), strict=True) if fits]
        rest = rest[fit]
        yield (
            asked[rest],
            answered[rest],
            [m.said for m in messages],
            [m.answers for m in messages],
            [m.ttl_min for m in messages],
        )

    def _said(self, batch: _Batch, keys: list[bytes], answered: Rows) -> list[Said]:
        memo = self.knowledge.said
        known = memo.young.get
        found: list[Said] = [known(key, ()) for key in keys]
        if not all(found):
            for n, (key, row) in enumerate(zip(keys, answered.tolist(), strict=True)):
                if not found[n]:
                    found[n] = known(key) or memo.miss(key, partial(self._read_said, batch, row))
        return found

    def _read_said(self, batch: _Batch, row: int) -> Said:
        message = self._message(batch, row)
        return () if message.fault else message.said

    def _message(self, batch: _Batch, row: int) -> Message:
        begin = int(batch.begin[row])
        return self.knowledge.message(bytes(batch.data[begin + 2 : begin + int(batch.length[row])]))

    def _messages(self, batch: _Batch, rows: Rows) -> list[Message]:
        message = self.knowledge.message
        octets = batch.slices(batch.begin[rows] + 2, batch.begin[rows] + batch.length[rows])
        return [
            known or message(each) for known, each in zip(map(self.knowledge.messages.young.get, octets), octets, strict=True)
        ]

    def _rows(
        self,
        batch: _Batch,
        asked: Rows,
        answered: Rows,
        said: list[Said],
        sections: Iterable[list[str] | None],
        ttls: Iterable[int | None],
    ) -> Iterator[Transaction]:
        """The table's rows of answered questions: columns of each field, put together."""
        if not said:
            return iter(())
        names, types, rcodes, aa, tc, rd, ra, _, purposes, opcodes, classes = zip(*said, strict=True)
        clients, servers = batch.addresses(asked, self.knowledge.addresses)
        ts, ts_reply = batch.ts[asked], batch.ts[answered]
        none = repeat(None)
        rows = zip(
            repeat(self.source),
            ts.tolist(),
            ts_reply.tolist(),
            ((ts_reply - ts) / 1e9).tolist(),
            clients,
            batch.client_port[asked].tolist(),
            servers,
            batch.server_port[asked].tolist(),
            repeat("udp"),
            batch.ident[asked].tolist(),
            names,
            types,
            rcodes,
            aa,
            tc,
            rd,
            ra,
            sections,
            ttls,
            repeat(True),
            repeat(0),
            purposes,
            none,
            none,
            none,
            none,
            batch.frame[asked].tolist(),
            batch.frame[answered].tolist(),
            opcodes,
            classes,
            strict=False,
        )
        return map(_new, repeat(Transaction), rows)

    # the other road

    def _others(self, batch: _Batch, rows: Rows, sweeps: list[int], found: Found) -> None:
        due = deque(sweeps)
        for key, i, ts, frame, answers, cut in zip(
            batch.keys(rows),
            rows.tolist(),
            batch.ts[rows].tolist(),
            batch.frame[rows].tolist(),
            batch.is_answer[rows].tolist(),
            batch.cut[rows].tolist(),
            strict=True,
        ):
            while due and due[0] <= i:
                self._sweep(int(batch.ts[due.popleft()]), found)
            message = self._message(batch, i)
            if message.fault is not None:
                found.append(fault(self.source, message, ts, frame, cut))
                if not message.plausible:
                    continue
            number = self.datagrams + i
            if answers:
                self._answer(key, message, (message, ts, frame, self.source, number), found)
            else:
                self._ask(key, (message, ts, frame, ts, 0, self.source), number, found)
        for row in due:
            self._sweep(int(batch.ts[row]), found)

    def _sweep(self, ts: int, found: Found) -> None:
        """Give up what has waited too long at a time of the capture."""
        overdue = []
        for key, asked in self.waiting.items():
            if ts - _last(asked) <= self.limits.dns_timeout:
                break
            overdue.append(key)
        for key in overdue:
            self._unanswered(key, self.waiting.pop(key), found)
        for key in [key for key, answer in self.orphans.items() if ts - answer[1] > self.limits.dns_copy]:
            self._orphan(key, found)

    def finish(self, found: Found) -> None:
        """Nothing more will come."""
        for key, asked in self.waiting.items():
            self._unanswered(key, asked, found)
        self.waiting.clear()
        for key in list(self.orphans):
            self._orphan(key, found)
        for source, copies in self.repeated.items():
            found.append(Anomaly(None, source, None, None, "dns_repeated_answers", f"{copies} copies of answers", None))
        self.repeated.clear()

    def _before(self, key: bytes, message: Message, ts: int, number: int, longest: int) -> tuple[Message, _Answer] | None:
        """The answer that a question or answer under a key follows within a time, and within so many datagrams."""
        before = self.orphans.get(key) or self.answered.get(key) or self.answered_before.get(key)
        if before is None or abs(ts - before[1]) > longest or number - before[4] > self.limits.dns_answered:
            return None
        said = before[0] if isinstance(before[0], Message) else self.knowledge.message(before[0])
        return (said, before) if belong(said, message) else None

    def _ask(self, key: bytes, asked: _Asked, number: int, found: Found) -> None:
        """A question: new, a copy, another one under a known key, or the question of an early answer."""
        message, ts = asked[0], asked[1]
        waiting = self.waiting.pop(key, None)
        if waiting is None:
            before = self._before(key, message, ts, number, self.limits.dns_copy)
            if before is not None:
                if self.orphans.pop(key, None) is not None:
                    self._pair(key, asked, before[0], before[1], found)
                return  # else a copy that comes after the answer
            self.waiting[key] = asked
        elif isinstance(waiting, _Several):
            old = waiting.pop(message.key, None)
            waiting[message.key] = asked if old is None else self._copy(key, old, asked, found)
            if len(waiting) > _SEVERAL:
                self._unanswered(key, waiting.pop(next(iter(waiting))), found)
            self.waiting[key] = waiting
        elif waiting[0].key == message.key:
            self.waiting[key] = self._copy(key, waiting, asked, found)
        else:
            self.waiting[key] = _Several({waiting[0].key: waiting, message.key: asked})
        if len(self.waiting) > self.limits.dns_waiting:
            self._give_up(ts, found)

    def _copy(self, key: bytes, first: _Asked, again: _Asked, found: Found) -> _Asked:
        """The same question once more: a retry, or after a long time a new question."""
        if again[1] - first[3] > self.limits.dns_timeout:
            self._unanswered(key, first, found)
            return again
        return (*first[:3], again[1], first[4] + 1, first[5])

    def _answer(self, key: bytes, message: Message, answer: _Answer, found: Found) -> None:
        """An answer: to its question, to none, to another than asked, too late, or once more."""
        _, ts, frame, source, number = answer
        asked = self._waiting_for(key, message)
        if asked is not None:
            if ts - asked[3] > self.limits.dns_timeout:
                self._unanswered(key, asked, found)
            elif belong(asked[0], message):
                self._pair(key, asked, message, answer, found)
                return
            else:
                self.waiting[key] = asked
                name = message.qname or "nothing"
                found.append(
                    Anomaly(ts, source, None, None, "dns_other_question", f"asked {asked[0].qname}, answered {name}", frame)
                )
        before = self._before(key, message, ts, number, self.limits.dns_timeout)
        if before is None:
            if key in self.orphans:
                self._orphan(key, found)
            self.orphans[key] = answer
            if len(self.orphans) > self.limits.dns_answered:
                self._orphan(next(iter(self.orphans)), found)
        elif same(before[0], message):
            self.repeated[source] = self.repeated.get(source, 0) + 1
        else:
            first, second = (f"{m.rcode} {', '.join(m.answers or ())}".strip() for m in (before[0], message))
            detail = f"{before[0].qname} {before[0].qtype}: {first}; then {second}"
            most = self.limits.argument_chars
            detail = detail if len(detail) <= most else detail[: most - 1] + "…"
            found.append(Anomaly(ts, source, None, None, "dns_conflicting_answer", detail, frame))

    def _waiting_for(self, key: bytes, message: Message) -> _Asked | None:
        """Take the question out that an answer is to, or the only one that waits under its key."""
        waiting = self.waiting.pop(key, None)
        if not isinstance(waiting, _Several):
            return waiting
        asked = waiting.pop(message.key, None)
        if asked is None and not message.questions:
            asked = waiting.pop(next(iter(waiting)))
        self.waiting[key] = waiting if len(waiting) > 1 else next(iter(waiting.values()))
        return asked

    def _pair(self, key: bytes, asked: _Asked, message: Message, answer: _Answer, found: Found) -> None:
        """Rows of a question and its answer, one per question where a message has several."""
        _, ts, frame, _, _ = answer
        question, first, asked_frame, last, copies, source = asked
        for one in question.questions or message.questions or (None,):
            rtt = (ts - last) / 1e9 if ts >= last else None
            found.append(self._row(key, source, first, ts, rtt, one, question, message, copies, asked_frame, frame))
        self.answered[key] = answer

    def _unanswered(self, key: bytes, asked: "_Asked | _Several", found: Found) -> None:
        if isinstance(asked, _Several):
            for each in asked.values():
                self._unanswered(key, each, found)
            return
        message, ts, frame, _, copies, source = asked
        for one in message.questions or (None,):
            found.append(self._row(key, source, ts, None, None, one, message, None, copies, frame, None))

    def _orphan(self, key: bytes, found: Found) -> None:
        """An answer whose question was not seen."""
        answer = self.orphans.pop(key)
        message, ts, frame, source, _ = answer
        assert isinstance(message, Message)
        for one in message.questions or (None,):
            found.append(self._row(key, source, ts, ts, None, one, None, message, 0, None, frame))
        self.answered[key] = answer

    def _row(
        self,
        key: bytes,
        source: str,
        ts: int,
        ts_reply: int | None,
        rtt_s: float | None,
        one: Question | None,
        asked: Message | None,
        answer: Message | None,
        retries: int,
        frame: int | None,
        reply_frame: int | None,
    ) -> Transaction:
        client_hi, client_lo, server_hi, server_lo, client_port, server_port, ident, _ = _KEY.unpack(key)
        addresses = self.knowledge.addresses
        return transaction(
            source,
            (addresses[client_hi, client_lo], client_port, addresses[server_hi, server_lo], server_port),
            "udp",
            ident,
            one,
            (asked, ts, frame, retries),
            (answer, ts_reply, reply_frame, rtt_s),
        )

    def _give_up(self, ts: int, found: Found) -> None:
        """Too many questions wait: the oldest has no answer."""
        key = next(iter(self.waiting))
        asked = self.waiting.pop(key)
        self._unanswered(key, asked, found)
        if ts - _last(asked) <= self.limits.dns_timeout:
            one = next(iter(asked.values())) if isinstance(asked, _Several) else asked
            detail = f"more than {self.limits.dns_waiting} questions wait; gave up {one[0].qname}"
            found.append(Anomaly(one[1], one[5], None, None, "dns_questions_dropped", detail, one[2]))


def _last(asked: "_Asked | _Several") -> int:
    """Time of the last copy of a question (of any of several)."""
    return max(each[3] for each in asked.values()) if isinstance(asked, _Several) else asked[3]


def _odd_direction(packets: Packets, row: int) -> Anomaly:
    detail = f"port {packets.src_port[row]} to {packets.dst_port[row]}: taken for what the ports say"
    return Anomaly(int(packets.ts[row]), packets.source, None, None, "dns_wrong_qr", detail, int(packets.frame[row]))


def _directions(
    head: NDArray[np.uint16], src_port: NDArray[np.uint16], dst_port: NDArray[np.uint16]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which messages are answers, and which of them (or of the questions) have the QR bit wrong.

    The bit decides, except that what goes to port 53 and holds a question only is no answer, and what comes
    from port 53 with answers is no question.
    """
    says = head[:, 1] >= 0x8000
    to_server = (dst_port == PORT) & (src_port != PORT)
    from_server = (src_port == PORT) & (dst_port != PORT)
    bare = (head[:, 1] & 0x048F == 0) & (head[:, 3] == 0) & (head[:, 4] == 0)
    wrong = (says & to_server & bare) | (~says & from_server & (head[:, 3] > 0) & (head[:, 1] & 0x7800 == 0))
    return says ^ wrong, wrong
