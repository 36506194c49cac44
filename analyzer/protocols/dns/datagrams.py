"""DNS over UDP: headers as numpy columns, messages decoded once per distinct content, pairing by a dictionary."""

from collections.abc import Callable
from ipaddress import IPv6Address
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
    udp = np.flatnonzero(packets.protocol == 17)
    if not len(udp):
        return udp
    src, dst = packets.src_port[udp], packets.dst_port[udp]
    usual = (src == PORT) | (dst == PORT)
    odd = udp[~usual & (packets.length[udp] >= HEADER + 5) & ~np.isin(src, _APART) & ~np.isin(dst, _APART)]
    if not len(odd):
        return udp[usual]
    head = _headers(packets, odd)
    odd = odd[(head[:, 1] & 0x7870 == 0) & (head[:, 2] == 1) & (head[:, 3:] < 64).all(axis=1)]
    sure = [row for row in odd.tolist() if _surely_dns(packets, row)]
    return np.sort(np.concatenate([udp[usual], np.array(sure, dtype=np.int64)])) if sure else udp[usual]


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
_Answer = tuple[Message, int, int, str]
"""An answer: message, time, frame, source."""


class _Several(dict[bytes, _Asked]):
    """Different questions waiting under one key, by question."""


class _Tap:
    """Questions and answers of one place of capture."""

    def __init__(self, limits: Limits, memo: _Memo, addresses: _Addresses) -> None:
        self.limits = limits
        self.memo = memo
        self.addresses = addresses
        self.source = ""
        self.ts_last = 0
        """Latest time seen."""
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
        self.source = source = packets.source
        head = _headers(packets, rows)
        src_port, dst_port = packets.src_port[rows], packets.dst_port[rows]
        is_answer, odd = _directions(head, src_port, dst_port)
        found.extend(self._odd_direction(packets, row) for row in rows[odd].tolist())
        keys, clients, servers = _exchanges(packets, rows, head[:, 0], is_answer)
        lengths = packets.length[rows]
        begins = packets.payload[rows] + 2
        stops = begins + lengths - 2
        cut = set(packets.frame[rows[lengths < packets.wire_length[rows]]].tolist())
        data = packets.data
        if type(data) is not bytes and int(lengths.sum()) * 4 > len(data):
            data = bytes(data)
        self.ts_last = max(self.ts_last, int(packets.ts[rows].max()))

        timeout, most = self.limits.dns_timeout, self.limits.dns_waiting
        most_answered = self.limits.dns_answered // 2
        addresses, waiting, orphans = self.addresses, self.waiting, self.orphans
        answered, answered_before = self.answered, self.answered_before
        known, miss = self.memo.young, self.memo.miss
        append, new, row = found.append, _new, Transaction
        sweep_at = self.sweep_at
        for key, client, client_port, server, server_port, ident, begin, stop, ts, frame, answers in zip(
            keys,
            clients,
            np.where(is_answer, dst_port, src_port).tolist(),
            servers,
            np.where(is_answer, src_port, dst_port).tolist(),
            head[:, 0].tolist(),
            begins.tolist(),
            stops.tolist(),
            packets.ts[rows].tolist(),
            packets.frame[rows].tolist(),
            is_answer.tolist(),
            strict=True,
        ):
            if ts >= sweep_at:
                sweep_at = self.sweep(ts, found)
                if len(answered) > most_answered:
                    answered, answered_before = self._forget()
            octets = bytes(data[begin:stop])
            message = known.get(octets) or miss(octets)
            if message.fault is not None:
                append(fault(source, message, ts, frame, frame in cut))
                if not message.plausible:
                    continue
            if not answers:
                if key in waiting or key in answered or key in answered_before or key in orphans:
                    self._asked_again(key, (message, ts, frame, ts, 0, source), found)
                else:
                    waiting[key] = (message, ts, frame, ts, 0, source)
                    if len(waiting) > most:
                        self._give_up(found)
                continue
            asked = waiting.pop(key, None)
            if type(asked) is tuple and asked[0].exact == message.exact and ts - asked[3] <= timeout:
                _, first, asked_frame, last, copies, source_asked = asked
                rtt = (ts - last) / 1e9 if ts >= last else None
                append(
                    new(
                        row,
                        (source_asked, first, ts, rtt, addresses[client], client_port, addresses[server], server_port, "udp", ident)
                        + message.row
                        + (copies, message.purpose, None, None, None, None, asked_frame, frame, message.opcode, message.qclass),
                    )
                )
                answered[key] = (message, ts, frame, source)
            else:
                self._answer(key, asked, (message, ts, frame, source), found)

    def sweep(self, ts: int, found: Found) -> int:
        """Give up what has waited too long at a time of the capture; when to look again."""
        self.sweep_at = ts + self.limits.dns_copy
        for key, asked in list(self._overdue(ts)):
            del self.waiting[key]
            self._unanswered(key, asked, found)
        late = [key for key, answer in self.orphans.items() if ts - answer[1] > self.limits.dns_copy]
        for key in late:
            self._orphan(key, found)
        return self.sweep_at

    def _overdue(self, ts: int) -> "list[tuple[bytes, _Asked | _Several]]":
        overdue = []
        for key, asked in self.waiting.items():
            last = max(a[3] for a in asked.values()) if isinstance(asked, _Several) else asked[3]
            if ts - last <= self.limits.dns_timeout:
                break
            overdue.append((key, asked))
        return overdue

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

    def _asked_again(self, key: bytes, asked: _Asked, found: Found) -> None:
        """A question under a key that is known: a copy, another question, or the question of an early answer."""
        message, ts = asked[0], asked[1]
        early = self.orphans.get(key)
        if early is not None and belong(message, early[0]) and abs(ts - early[1]) <= self.limits.dns_copy:
            del self.orphans[key]
            self._pair(key, asked, early, found)
            return
        before = self.answered.get(key) or self.answered_before.get(key)
        if before is not None and belong(message, before[0]) and abs(ts - before[1]) <= self.limits.dns_copy:
            return  # a copy that comes after the answer
        waiting = self.waiting.pop(key, None)
        if waiting is None:
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
            self._give_up(found)

    def _copy(self, key: bytes, first: _Asked, again: _Asked, found: Found) -> _Asked:
        """The same question once more: a retry, or after a long time a new question."""
        if again[1] - first[3] > self.limits.dns_timeout:
            self._unanswered(key, first, found)
            return again
        return (*first[:3], again[1], first[4] + 1, first[5])

    def _answer(self, key: bytes, waiting: "_Asked | _Several | None", answer: _Answer, found: Found) -> None:
        """An answer to several questions, to none, to another question than asked, too late, or once more."""
        message, ts, frame, source = answer
        if isinstance(waiting, _Several):
            asked = waiting.pop(message.key, None)
            if asked is None and not message.questions:
                asked = waiting.pop(next(iter(waiting)))
            if waiting:
                self.waiting[key] = waiting if len(waiting) > 1 else next(iter(waiting.values()))
        else:
            asked = waiting
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
        before = self.orphans.get(key) or self.answered.get(key) or self.answered_before.get(key)
        if before is not None and belong(before[0], message) and abs(ts - before[1]) <= self.limits.dns_timeout:
            if same(before[0], message):
                self.repeated[source] = self.repeated.get(source, 0) + 1
            else:
                first, second = (f"{m.rcode} {', '.join(m.answers or ())}".strip() for m in (before[0], message))
                detail = f"{before[0].qname} {before[0].qtype}: {first}; then {second}"
                detail = detail if len(detail) <= self.limits.argument_chars else detail[: self.limits.argument_chars] + "…"
                found.append(Anomaly(ts, source, None, None, "dns_conflicting_answer", detail, frame))
            return
        if key in self.orphans:
            self._orphan(key, found)
        self.orphans[key] = answer
        if len(self.orphans) > self.limits.dns_answered:
            self._orphan(next(iter(self.orphans)), found)

    def _pair(self, key: bytes, asked: _Asked, answer: _Answer, found: Found) -> None:
        """Rows of a question and its answer, one per question where a message has several."""
        message, ts, frame, _ = answer
        question, first, asked_frame, last, copies, source = asked
        for one in question.questions or message.questions or (None,):
            rtt = (ts - last) / 1e9 if ts >= last else None
            found.append(self._row(key, source, first, ts, rtt, one, question, message, copies, asked_frame, frame))
        self._remember(key, answer)

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
        message, ts, frame, source = answer
        for one in message.questions or (None,):
            found.append(self._row(key, source, ts, ts, None, one, None, message, 0, None, frame))
        self._remember(key, answer)

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

    def _remember(self, key: bytes, answer: _Answer) -> None:
        self.answered[key] = answer

    def _forget(self) -> tuple[dict[bytes, _Answer], dict[bytes, _Answer]]:
        """A generation of answered questions is full: the older one goes."""
        self.answered, self.answered_before = {}, self.answered
        return self.answered, self.answered_before

    def _give_up(self, found: Found) -> None:
        """Too many questions wait: the oldest has no answer."""
        key = next(iter(self.waiting))
        asked = self.waiting.pop(key)
        self._unanswered(key, asked, found)
        one = next(iter(asked.values())) if isinstance(asked, _Several) else asked
        detail = f"more than {self.limits.dns_waiting} questions wait; gave up {one[0].qname}"
        found.append(Anomaly(one[1], one[5], None, None, "dns_questions_dropped", detail, one[2]))

    def _odd_direction(self, packets: Packets, row: int) -> Anomaly:
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


def _exchanges(
    packets: Packets, rows: Rows, ident: NDArray[np.uint16], is_answer: NDArray[np.bool_]
) -> tuple[list[bytes], list[Any], list[Any]]:
    """Of each datagram: the key of its exchange (`_KEY`), client and server as keys of `_Addresses`."""
    columns = np.zeros((len(rows), 5), dtype=np.uint64)
    p = packets
    ends = ((p.src_hi, p.dst_hi), (p.src_lo, p.dst_lo), (p.dst_hi, p.src_hi), (p.dst_lo, p.src_lo))
    for i, (of_question, of_answer) in enumerate(ends):
        columns[:, i] = np.where(is_answer, of_answer[rows], of_question[rows])
    words = columns[:, 4:].view(np.uint16)
    src_port, dst_port = packets.src_port[rows], packets.dst_port[rows]
    words[:, 0] = np.where(is_answer, dst_port, src_port)
    words[:, 1] = np.where(is_answer, src_port, dst_port)
    words[:, 2] = ident
    clients: list[Any] = columns[:, 1].tolist()
    servers: list[Any] = columns[:, 3].tolist()
    if columns[:, 0].any() or columns[:, 2].any():  # IPv6
        clients = list(zip(columns[:, 0].tolist(), clients, strict=True))
        servers = list(zip(columns[:, 2].tolist(), servers, strict=True))
    return columns.view(f"V{_KEY.size}").ravel().tolist(), clients, servers
