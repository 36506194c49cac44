"""DNS over UDP: headers as numpy columns, messages decoded once per distinct content, pairing by a dictionary."""

from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from itertools import count, repeat
from socket import inet_ntoa
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.limits import Limits
from analyzer.protocols.dns.message import HEADER, Message, Question, read, read_question
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

_new: Callable[[type[Transaction], tuple[Any, ...]], Transaction] = tuple.__new__
"""Makes a row without binding each argument by name."""


def _headers(packets: Packets, rows: Rows) -> NDArray[np.uint16]:
    """Six 16-bit words of each row's header; every row must hold `HEADER` octets."""
    if not len(rows):
        return np.empty((0, 6), dtype=np.uint16)
    octets = np.frombuffer(packets.data, dtype=np.uint8)
    windows = np.ndarray((len(octets) - HEADER + 1,), dtype=f"V{HEADER}", buffer=octets, strides=(1,))
    words: NDArray[np.uint16] = windows[packets.payload[rows]].view(">u2").reshape(-1, 6).astype(np.uint16)
    return words


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
    head = _headers(packets, odd)
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
        self._memo = _Memo(limits)
        self._addresses = _Addresses()
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
        self._taps[source] = tap = tap or _Tap(self.limits, self._memo, self._addresses)
        return tap


def _too_short(packets: Packets, row: int) -> Anomaly:
    detail = f"a datagram of {packets.length[row]} octets on port {PORT}: no header"
    return Anomaly(int(packets.ts[row]), packets.source, None, None, "dns_malformed", detail, int(packets.frame[row]))


class _Memo:
    """Messages by their octets, identifier aside: two generations, the older forgotten when the younger is full."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.young: dict[bytes, Message] = {}
        self._old: dict[bytes, Message] = {}

    def miss(self, octets: bytes) -> Message:
        """The message that is not in `young`."""
        message = self._old.get(octets) or read(b"\0\0" + octets, self.limits)
        if len(octets) <= _REMEMBERED:
            if len(self.young) >= self.limits.dns_memo // 2:
                self._old = dict(self.young)
                self.young.clear()
            self.young[octets] = message
        return message


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
_Answer = tuple[Message, int, int, str, int]
"""An answer: message, time, frame, source, number of the datagram."""


class _Several(dict[bytes, _Asked]):
    """Different questions waiting under one key, by question."""


class _Batch:
    """Datagrams of one batch as columns: everything about them but their messages."""

    def __init__(self, packets: Packets, rows: Rows) -> None:
        src_port, dst_port = packets.src_port[rows], packets.dst_port[rows]
        head = _headers(packets, rows)
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

    def __init__(self, limits: Limits, memo: _Memo, addresses: _Addresses) -> None:
        self.limits = limits
        self.memo = memo
        self.addresses = addresses
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
        messages = self._messages(packets.data, batch)
        sweeps = self._sweep_rows(batch.ts)
        left = np.ones(len(rows), dtype=np.bool_)
        if len(self.waiting) + len(rows) <= self.limits.dns_waiting:
            left[self._plain(batch, messages, sweeps, found)] = False
        self._others(batch, np.flatnonzero(left), messages, sweeps, found)
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

    def _messages(self, data: bytes | bytearray | memoryview, batch: _Batch) -> list[Message]:
        known, miss = self.memo.young.get, self.memo.miss
        slices = map(slice, (batch.begin + 2).tolist(), (batch.begin + batch.length).tolist())
        if type(data) is not bytes:
            if int(batch.length.sum()) * 4 < len(data):
                return [known(octets) or miss(octets) for octets in (bytes(data[part]) for part in slices)]
            data = bytes(data)
        return [known(octets) or miss(octets) for octets in map(data.__getitem__, slices)]

    # the plain road

    def _plain(self, batch: _Batch, messages: list[Message], sweeps: list[int], found: Found) -> Rows:
        """Rows of the exchanges that lie plainly in this batch; the datagrams they are made of."""
        asked, answered = batch.pairs(self.limits.dns_timeout, sweeps)
        keys = batch.keys(asked)
        known = set[bytes]().union(
            *(d.keys() & keys for d in (self.waiting, self.orphans, self.answered, self.answered_before) if d)
        )
        clients, servers = batch.addresses(asked, self.addresses)
        ts, ts_reply = batch.ts[asked], batch.ts[answered]
        ends = zip(
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
            strict=False,
        )
        replies = [messages[i] for i in answered.tolist()]
        append, new, row = found.append, _new, Transaction
        others: list[int] = []
        for n, end, question, reply, key, frame, reply_frame in zip(
            count(),
            ends,
            map(messages.__getitem__, asked.tolist()),
            replies,
            keys,
            batch.frame[asked].tolist(),
            batch.frame[answered].tolist(),
            strict=False,
        ):
            if reply.exact != question.exact or key in known:
                others.append(n)
            else:
                append(new(row, end + reply.row + (frame, reply_frame, reply.opcode, reply.qclass)))
        plain = np.ones(len(asked), dtype=np.bool_)
        plain[others] = False
        recent = np.flatnonzero(plain & (answered >= len(messages) - self.limits.dns_answered))
        for n, number in zip(recent.tolist(), (answered[recent] + self.datagrams).tolist(), strict=True):
            self.answered[keys[n]] = (replies[n], int(ts_reply[n]), int(batch.frame[answered[n]]), self.source, number)
        return np.concatenate([asked[plain], answered[plain]])

    # the other road

    def _others(self, batch: _Batch, rows: Rows, messages: list[Message], sweeps: list[int], found: Found) -> None:
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
            message = messages[i]
            if message.fault is not None:
                found.append(fault(self.source, message, ts, frame, cut))
                if not message.plausible:
                    continue
            number = self.datagrams + i
            if answers:
                self._answer(key, (message, ts, frame, self.source, number), found)
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

    def _before(self, key: bytes, message: Message, ts: int, number: int, longest: int) -> _Answer | None:
        """The answer that a question or answer under a key follows within a time, and within so many datagrams."""
        before = self.orphans.get(key) or self.answered.get(key) or self.answered_before.get(key)
        if before is None or abs(ts - before[1]) > longest or number - before[4] > self.limits.dns_answered:
            return None
        return before if belong(before[0], message) else None

    def _ask(self, key: bytes, asked: _Asked, number: int, found: Found) -> None:
        """A question: new, a copy, another one under a known key, or the question of an early answer."""
        message, ts = asked[0], asked[1]
        waiting = self.waiting.pop(key, None)
        if waiting is None:
            before = self._before(key, message, ts, number, self.limits.dns_copy)
            if before is not None:
                if self.orphans.pop(key, None) is not None:
                    self._pair(key, asked, before, found)
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

    def _answer(self, key: bytes, answer: _Answer, found: Found) -> None:
        """An answer: to its question, to none, to another than asked, too late, or once more."""
        message, ts, frame, source, number = answer
        asked = self._waiting_for(key, message)
        if asked is not None:
            if ts - asked[3] > self.limits.dns_timeout:
                self._unanswered(key, asked, found)
            elif belong(asked[0], message):
                self._pair(key, asked, answer, found)
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

    def _pair(self, key: bytes, asked: _Asked, answer: _Answer, found: Found) -> None:
        """Rows of a question and its answer, one per question where a message has several."""
        message, ts, frame, _, _ = answer
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
        return transaction(
            source,
            (self.addresses[client_hi, client_lo], client_port, self.addresses[server_hi, server_lo], server_port),
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
