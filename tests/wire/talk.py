"""TCP conversations as screenplays: `Talk` writes the segments down, `play` hands them to `Streams` in any cut."""

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analyzer.limits import Limits
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.streams import Streams
from analyzer.wire.types import V4_PREFIX, Attempt, Connection, Packets

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
MS = 1_000_000
T0 = 1_700_000_000_000_000_000
CLIENT, SERVER = (0x0A000001, 41000), (0x0A000002, 25)
MAIL_PORTS = frozenset({25, 110, 143, 465, 587, 993, 995})


@dataclass(frozen=True)
class Segment:
    """One TCP segment as captured."""

    src: tuple[int, int]
    dst: tuple[int, int]
    seq: int
    ack: int
    flags: int
    data: bytes = b""
    ts: int = T0
    cut: int = 0
    """Payload octets that the snap length took."""
    vlan: int = 0
    ttl: int = 64
    spoilt: bool = False
    """Its TCP checksum is wrong."""

    def but(self, **changes: Any) -> "Segment":
        return replace(self, **changes)


@dataclass
class Talk:
    """A conversation; `c` and `s` say something, each segment is acknowledged by what the other side sends next."""

    client: tuple[int, int] = CLIENT
    server: tuple[int, int] = SERVER
    isn: tuple[int, int] = (1000, 5000)
    ts: int = T0
    mss: int = 1460
    vlan: int = 0
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seq = list(self.isn)

    def add(self, side: int, flags: int, data: bytes = b"", **changes: Any) -> "Talk":
        ends = (self.client, self.server) if side == 0 else (self.server, self.client)
        ack = self.seq[1 - side] & 0xFFFFFFFF if flags & ACK else 0
        segment = Segment(*ends, self.seq[side] & 0xFFFFFFFF, ack, flags, data, self.ts, vlan=self.vlan)
        self.segments.append(segment.but(**changes))
        self.seq[side] += len(data) + changes.get("cut", 0) + bool(flags & SYN) + bool(flags & FIN)
        self.ts += MS
        return self

    def open(self) -> "Talk":
        return self.add(0, SYN).add(1, SYN | ACK).add(0, ACK)

    def say(self, side: int, data: bytes) -> "Talk":
        for at in range(0, len(data), self.mss):
            self.add(side, ACK | PSH, data[at : at + self.mss])
        return self

    def c(self, data: bytes) -> "Talk":
        return self.say(0, data)

    def s(self, data: bytes) -> "Talk":
        return self.say(1, data)

    def close(self) -> "Talk":
        return self.add(0, FIN | ACK).add(1, FIN | ACK).add(0, ACK)

    def pause(self, ns: int) -> "Talk":
        self.ts += ns
        return self


def smtp(**how: Any) -> Talk:
    """A short delivery."""
    talk = Talk(**how).open()
    talk.s(b"220 mx\r\n").c(b"EHLO c\r\n").s(b"250 mx\r\n").c(b"MAIL FROM:<a@b.example>\r\n").s(b"250 ok\r\n")
    talk.c(b"RCPT TO:<c@d.example>\r\n").s(b"250 ok\r\n").c(b"DATA\r\n").s(b"354 go\r\n")
    talk.c(b"Subject: x\r\n\r\n" + b"".join(b"line %d\r\n" % i for i in range(600)) + b".\r\n").s(b"250 queued\r\n")
    return talk.c(b"QUIT\r\n").s(b"221 bye\r\n").close()


def said(talk: Talk, side: int) -> bytes:
    """What one side of a talk has to say in all."""
    source = talk.client if side == 0 else talk.server
    return b"".join(s.data for s in talk.segments if s.src == source)


def headers(s: Segment) -> tuple[bytes, bytes]:
    """IPv4 and TCP header; the checksum is right unless the segment is spoilt or cut."""
    addresses = s.src[0].to_bytes(4) + s.dst[0].to_bytes(4)
    size = 20 + len(s.data)
    tcp = struct.pack("!HHIIBBHHH", s.src[1], s.dst[1], s.seq, s.ack, 0x50, s.flags, 65535, 0, 0)
    text = addresses + struct.pack("!HH", 6, size) + tcp + s.data + b"\0" * (len(s.data) % 2)
    check = (0xFFFF - sum(struct.unpack(f"!{len(text) // 2}H", text)) % 0xFFFF) ^ s.spoilt
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size + s.cut, 0, 0, s.ttl, 6, 0) + addresses
    return ip, tcp[:16] + check.to_bytes(2) + tcp[18:]


def packets(segments: Sequence[Segment], first_frame: int = 1, source: str = "test.pcap") -> Packets:
    """Segments as a batch."""
    parts = [b"".join([*headers(s), s.data]) for s in segments]
    length = np.array([len(s.data) for s in segments], np.int64)
    whole = np.array([len(part) for part in parts], np.int64)
    network = np.cumsum(whole) - whole
    none = np.zeros(len(segments), np.uint64)
    return Packets(
        source=source,
        data=b"".join(parts),
        frame=np.arange(first_frame, first_frame + len(segments), dtype=np.int64),
        ts=np.array([s.ts for s in segments], np.int64),
        protocol=np.full(len(segments), 6, np.uint8),
        src_hi=none,
        src_lo=np.array([V4_PREFIX | s.src[0] for s in segments], np.uint64),
        dst_hi=none,
        dst_lo=np.array([V4_PREFIX | s.dst[0] for s in segments], np.uint64),
        src_port=np.array([s.src[1] for s in segments], np.uint16),
        dst_port=np.array([s.dst[1] for s in segments], np.uint16),
        payload=network + 40,
        length=length,
        wire_length=length + np.array([s.cut for s in segments], np.int64),
        seq=np.array([s.seq for s in segments], np.uint32),
        ack=np.array([s.ack for s in segments], np.uint32),
        flags=np.array([s.flags for s in segments], np.uint8),
        vlan=np.array([s.vlan for s in segments], np.uint16),
        ttl=np.array([s.ttl for s in segments], np.uint8),
        network=network,
        transport=network + 20,
    )


@dataclass
class Heard:
    """What came out for one connection."""

    connection: Connection
    parts: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))
    """For orig and resp: octets, and gaps as (octets, offset after it), in stream order, neighbours joined."""
    table: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))
    """For orig and resp: (start, ts, frame, ack) of each segment."""
    closed: int = 0

    def data(self, side: int) -> bytes:
        return b"".join(part for part in self.parts[side] if isinstance(part, bytes))

    def gaps(self, side: int) -> list[int]:
        return [part[0] for part in self.parts[side] if not isinstance(part, bytes)]

    def take(self, chunk: Any) -> None:
        side = 0 if chunk.orig else 1
        parts = self.parts[side]
        if chunk.gap:
            parts.append((chunk.gap, chunk.offset))
        if chunk.data:
            assert list(chunk.starts) == sorted(chunk.starts)
            assert chunk.starts[0] == chunk.offset
            if parts and isinstance(parts[-1], bytes):
                parts[-1] += chunk.data
            else:
                parts.append(chunk.data)
            columns = (list(map(int, column)) for column in (chunk.starts, chunk.ts, chunk.frames, chunk.acks))
            self.table[side].extend(zip(*columns, strict=True))


@dataclass
class Played:
    """What came out of a capture."""

    heard: list[Heard]
    anomalies: list[Anomaly]
    attempts: list[Attempt]

    @property
    def names(self) -> set[str]:
        return {anomaly.name for anomaly in self.anomalies}

    @property
    def one(self) -> Heard:
        assert len(self.heard) == 1, [h.connection for h in self.heard]
        return self.heard[0]


def play(
    segments: Sequence[Segment] | Sequence[Sequence[Segment]],
    cuts: Iterable[int] = (),
    limits: Limits | None = None,
    recognise: Callable[[Connection, bytes, bytes, bool], bool | None] = lambda *_: True,
    foreign: Callable[[bytes, bytes, int, int], bool] | None = None,
) -> Played:
    """Hand segments (of one source, or a list per source) to `Streams`, cut into batches at these places."""
    streams = Streams(limits or Limits(), recognise, MAIL_PORTS, foreign=foreign)
    heard: dict[int, Heard] = {}

    def take(deliveries: Iterable[Any]) -> None:
        for connection, chunks, closed in deliveries:
            entry = heard.setdefault(id(connection), Heard(connection))
            assert not entry.closed, "delivered after its end"
            for chunk in chunks:
                entry.take(chunk)
            entry.closed += closed

    sources: Any = segments if segments and not isinstance(segments[0], Segment) else [segments]
    for n, source in enumerate(sources):
        places = sorted({0, len(source), *(cut for cut in cuts if 0 < cut < len(source))})
        for start, stop in itertools.pairwise(places):
            take(streams.feed(packets(source[start:stop], start + 1, f"{n}.pcap")))
    take(streams.finish())
    assert all(entry.closed == 1 for entry in heard.values())
    ordered = sorted(heard.values(), key=lambda h: (h.connection.source, h.connection.first_frame))
    return Played(ordered, streams.anomalies, streams.attempts)
