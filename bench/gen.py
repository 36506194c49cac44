#!/usr/bin/env python3
"""Make big captures for measuring speed and memory: deterministic by seed, with their truth.

    python3 bench/gen.py KIND OUT.pcap SIZE [--seed N]

    mail    SMTP, POP3 and IMAP with DNS; log-normal sizes (median 20 KB), ACKs, 0.5 % reordered, 0.5 % sent twice
    mixed   5 % of the packets are mail or DNS, the rest HTTPS and other bulk
    small   many messages of about 1 KB
    dns     questions and answers over UDP
    giant   one connection, one message as big as the file
    tiny    many flows of five packets, none of them mail
    tls     as mail without DNS, inside TLS 1.2 and 1.3, its secrets in OUT.keys (not the same octets twice: keys are made anew)
    tlsbig  as giant, inside TLS 1.3
    octets  one message, each octet a segment; `reversed`: the last first; `holes`: every second one missing
    halfopen  a flood of SYNs to mail ports, nobody answers

SIZE counts octets (mail, mixed, giant, tls, tlsbig), messages (small), questions (dns), flows (tiny, halfopen) or segments.
Truth goes to OUT.json: packets, messages, octets of message, DNS questions.
TCP and UDP checksums are left 0, as a capture of a host with checksum offloading has them.
"""

import argparse
import base64
import heapq
import json
import random
import ssl
import struct
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

MSS = 1448
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
RECORD = struct.Struct("<IIII")
TCP = struct.Struct("!HHIIBBHHH")
UDP = struct.Struct("!HHHH")
IP4 = struct.Struct("!BBHHHBBHII")
MAC = bytes.fromhex("020000000001020000000002")
T0 = 1_790_000_000.0

TLS = ("tls", "tlsbig")
"""Kinds with a key log beside them."""

Timed = tuple[float, bytes]


class Path5:
    """The two ends of a flow: wraps payloads into frames of either direction."""

    def __init__(self, rng: random.Random, port: int, v6: bool = False) -> None:
        self.v6 = v6
        client, server = rng.randrange(2000) * 7919, (port << 8) + rng.randrange(40)  # a site of hosts, not a new one per flow
        self.ends = (0x0A000000 | client & 0xFFFFFF, rng.randrange(1024, 65535)), (0x0B000000 | server & 0xFFFFFF, port)

    def ip(self, protocol: int, source: int, payload: bytes) -> bytes:
        src, dst = self.ends[source][0], self.ends[1 - source][0]
        if self.v6:
            head = struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 64, b"\xfd" + bytes(11) + src.to_bytes(4, "big"),
                               b"\xfd" + bytes(11) + dst.to_bytes(4, "big"))  # fmt: skip
            frame = MAC + b"\x86\xdd" + head + payload
        else:
            frame = MAC + b"\x08\x00" + IP4.pack(0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, src, dst) + payload
        return frame if len(frame) >= 60 else frame.ljust(60, b"\0")

    def tcp(self, source: int, seq: int, ack: int, flags: int, payload: bytes = b"") -> bytes:
        ports = self.ends[source][1], self.ends[1 - source][1]
        return self.ip(6, source, TCP.pack(*ports, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 65535, 0, 0) + payload)

    def udp(self, source: int, payload: bytes) -> bytes:
        ports = self.ends[source][1], self.ends[1 - source][1]
        return self.ip(17, source, UDP.pack(*ports, 8 + len(payload), 0) + payload)


def conversation(rng: random.Random, path: Path5, ts: float, turns: list[tuple[int, bytes]], noise: float = 0.005) -> list[Timed]:
    """The frames of a TCP connection in which the ends say `turns`: (0 client or 1 server, octets)."""
    seq = [rng.getrandbits(32), rng.getrandbits(32)]
    rtt = 0.0004 + rng.random() * 0.02
    frames = [
        (ts, path.tcp(0, seq[0], 0, SYN)),
        (ts + rtt / 2, path.tcp(1, seq[1], seq[0] + 1, SYN | ACK)),
        (ts + rtt, path.tcp(0, seq[0] + 1, seq[1] + 1, ACK)),
    ]
    seq = [seq[0] + 1, seq[1] + 1]
    ts += rtt
    for end, said in turns:
        ts += rtt / 2 + 0.0002
        unacked = 0
        for at in range(0, len(said), MSS):
            piece = said[at : at + MSS]
            ts += 0.00002
            frame = (ts, path.tcp(end, seq[end], seq[1 - end], PSH | ACK, piece))
            luck = rng.random() if noise else 1.0
            if luck < noise and len(said) > MSS:
                frames.append((ts + 0.00005, frame[1]))
            else:
                frames.append(frame)
                if luck < 2 * noise:
                    frames.append((ts + 0.003, frame[1]))
            seq[end] += len(piece)
            unacked += 1
            if unacked == 2:
                frames.append((ts + 0.00001, path.tcp(1 - end, seq[1 - end], seq[end], ACK)))
                unacked = 0
    for end in (0, 1):
        ts += rtt / 2
        frames.append((ts, path.tcp(end, seq[end], seq[1 - end], FIN | ACK)))
        seq[end] += 1
    frames.append((ts + rtt / 2, path.tcp(0, seq[0], seq[1], ACK)))
    return frames


WORDS = "the mail of a day is queue relay server message delivery report about time spent between two hops and back".split()


class Maker:
    """Sessions of mail, and what they carried."""

    def __init__(self, seed: int, median: int, sigma: float) -> None:
        self.rng = random.Random(seed)
        self.median, self.sigma = median, sigma
        blob = base64.encodebytes(random.Random(seed).randbytes(3 << 20)).replace(b"\n", b"\r\n")
        prose = (" ".join(self.rng.choice(WORDS) for _ in range(14)) + "\r\n" for _ in range(20000))
        self.filler = blob + "".join(prose).encode()
        self.truth = {"messages": 0, "message_octets": 0, "questions": 0, "sessions": 0}

    def message(self) -> bytes:
        rng = self.rng
        n = self.truth["messages"]
        size = min(int(rng.lognormvariate(0, self.sigma) * self.median), len(self.filler) // 2)
        start = rng.randrange(len(self.filler) - size)
        start = self.filler.find(b"\n", start) + 1
        head = (
            f"Received: from host{n % 97}.example.net (host{n % 97}.example.net [10.{n % 200}.7.9])\r\n\tby mail.example.org (Postfix) with ESMTP"
            f" id Q{n:07X};\r\n\tMon, 21 Sep 2026 10:{n // 60 % 60:02}:{n % 60:02} +0000 (UTC)\r\nFrom: Sender {n % 500} <s{n % 500}@example.net>\r\n"
            f"To: reader{n % 300}@example.org\r\nSubject: Report number {n}\r\nDate: Mon, 21 Sep 2026 10:00:00 +0000\r\n"
            f"Message-ID: <{n}.{rng.getrandbits(40):x}@example.net>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
        )
        body = self.filler[start : start + size]
        body = body[: body.rfind(b"\n") + 1] or b"short\r\n"
        text = head.encode() + body
        self.truth["messages"] += 1
        self.truth["message_octets"] += len(text)
        return text

    def smtp(self, ts: float, messages: int) -> list[Timed]:
        rng = self.rng
        turns = [(1, b"220 mail.example.org ESMTP Postfix\r\n"), (0, b"EHLO client.example.net\r\n")]
        turns.append(
            (1, b"250-mail.example.org\r\n250-PIPELINING\r\n250-SIZE 30000000\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n")
        )
        for _ in range(messages):
            text = self.message()
            n = self.truth["messages"]
            stuffed = text.replace(b"\r\n.", b"\r\n..")
            mail = b"MAIL FROM:<s%d@example.net> SIZE=%d\r\n" % (n % 500, len(text))
            rcpt = b"RCPT TO:<reader%d@example.org>\r\n" % (n % 300)
            if rng.random() < 0.5:
                turns.append((0, mail + rcpt + b"DATA\r\n"))
                turns.append((1, b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"))
            else:
                turns += [
                    (0, mail),
                    (1, b"250 2.1.0 Ok\r\n"),
                    (0, rcpt),
                    (1, b"250 2.1.5 Ok\r\n"),
                    (0, b"DATA\r\n"),
                    (1, b"354 go on\r\n"),
                ]
            turns += [(0, stuffed + b".\r\n"), (1, b"250 2.0.0 Ok: queued as Q%07X\r\n" % n)]
        turns += [(0, b"QUIT\r\n"), (1, b"221 2.0.0 Bye\r\n")]
        return self.session(ts, 25, turns)

    def pop3(self, ts: float, messages: int) -> list[Timed]:
        turns = [(1, b"+OK ready\r\n"), (0, b"USER reader\r\n"), (1, b"+OK\r\n"), (0, b"PASS in-the-bench\r\n"), (1, b"+OK\r\n")]
        for n in range(1, messages + 1):
            text = self.message()
            stuffed = text.replace(b"\r\n.", b"\r\n..")
            turns += [(0, b"RETR %d\r\n" % n), (1, b"+OK %d octets\r\n" % len(text) + stuffed + b".\r\n")]
            turns += [(0, b"DELE %d\r\n" % n), (1, b"+OK\r\n")]
        turns += [(0, b"QUIT\r\n"), (1, b"+OK bye\r\n")]
        return self.session(ts, 110, turns)

    def imap(self, ts: float, messages: int) -> list[Timed]:
        turns = [
            (1, b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n"),
            (0, b"a LOGIN reader in-the-bench\r\n"),
            (1, b"a OK in\r\n"),
        ]
        turns += [
            (0, b"b SELECT INBOX\r\n"),
            (1, b"* %d EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\nb OK [READ-WRITE] done\r\n" % messages),
        ]
        for n in range(1, messages + 1):
            text = self.message()
            turns.append((0, b"f%d UID FETCH %d (UID BODY[])\r\n" % (n, n)))
            turns.append((1, b"* %d FETCH (UID %d BODY[] {%d}\r\n" % (n, n, len(text)) + text + b")\r\nf%d OK done\r\n" % n))
        turns += [(0, b"z LOGOUT\r\n"), (1, b"* BYE\r\nz OK\r\n")]
        return self.session(ts, 143, turns)

    def session(self, ts: float, port: int, turns: list[tuple[int, bytes]]) -> list[Timed]:
        self.truth["sessions"] += 1
        return conversation(self.rng, Path5(self.rng, port, self.rng.random() < 0.1), ts, turns)

    def lookup(self, ts: float) -> list[Timed]:
        rng = self.rng
        path = Path5(rng, 53)
        self.truth["questions"] += 1
        name = f"d{int(rng.paretovariate(0.7)) % 9000}.example.net"
        qname = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
        kind = rng.choices((1, 28, 15, 16, 12), (40, 15, 25, 15, 5))[0]
        head = struct.pack("!H", rng.getrandbits(16))
        question = qname + struct.pack("!HH", kind, 1)
        if rng.random() < 0.1:
            flags, answers = 0x8183, []
        else:
            rdata = {1: struct.pack("!I", 0x0A000000 | rng.getrandbits(24)), 28: b"\xfd" + bytes(11) + rng.randbytes(4),
                     15: struct.pack("!H", 10) + b"\x02mx\xc0\x0c", 16: b"\x0fv=spf1 mx -all ", 12: b"\x04host\xc0\x0c"}[kind]  # fmt: skip
            flags, answers = 0x8180, [b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 300, len(rdata)) + rdata]
        ask = head + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + question
        tell = head + struct.pack("!HHHHH", flags, 1, len(answers), 0, 0) + question + b"".join(answers)
        return [(ts, path.udp(0, ask)), (ts + 0.0005 + rng.random() * 0.03, path.udp(1, tell))]

    def bulk(self, ts: float) -> list[Timed]:
        """An HTTPS download, or a burst of other UDP."""
        rng = self.rng
        start = rng.randrange(len(self.filler) // 2)
        if rng.random() < 0.85:
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(506)
            reply = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + rng.randbytes(1400)
            data = b"\x17\x03\x03\x40\x00" + self.filler[start : start + rng.randrange(20_000, 400_000)]
            path = Path5(rng, 443, rng.random() < 0.1)
            return conversation(
                rng, path, ts, [(0, hello), (1, reply), (0, b"\x17\x03\x03\x01\x00" + rng.randbytes(256)), (1, data)]
            )
        path = Path5(rng, 4500)
        return [(ts + i * 0.001, path.udp(i & 1, self.filler[start + i * 1200 : start + i * 1200 + 1200])) for i in range(60)]


VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class TlsMaker(Maker):
    """The same sessions inside implicit TLS, by OpenSSL, with their key log."""

    def __init__(self, seed: int, median: int, sigma: float, keys: Path, versions: Iterable[ssl.TLSVersion] = VERSIONS) -> None:
        super().__init__(seed, median, sigma)
        self.ends: list[tuple[ssl.SSLContext, ssl.SSLContext]] = []
        keys.unlink(missing_ok=True)
        with TemporaryDirectory() as folder:
            pem = Path(folder, "pem")
            make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=mail.example.org -keyout {pem} -out {pem}.crt"
            subprocess.run(make.split(), check=True, capture_output=True)
            for version in versions:
                server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                server.load_cert_chain(f"{pem}.crt", pem)
                client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
                client.keylog_filename = str(keys)
                for context in (server, client):
                    context.minimum_version = context.maximum_version = version
                    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # of TLS 1.2; 1.3 has its own
                self.ends.append((client, server))

    def session(self, ts: float, port: int, turns: list[tuple[int, bytes]]) -> list[Timed]:
        return super().session(ts, {25: 465, 110: 995, 143: 993}[port], self.sealed(turns))

    def sealed(self, turns: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """What goes over the wire when the ends say `turns` inside TLS."""
        contexts = self.rng.choice(self.ends)
        wires = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in contexts]
        ends = [
            contexts[0].wrap_bio(*wires[0], server_hostname="mail.example.org"),
            contexts[1].wrap_bio(*wires[1], server_side=True),
        ]
        crossed: list[tuple[int, bytes]] = []

        def carry(end: int) -> None:
            octets = wires[end][1].read()
            if octets:
                crossed.append((end, octets))
                wires[1 - end][0].write(octets)

        waiting = {0, 1}
        while waiting:
            for end in (0, 1):
                with suppress(ssl.SSLWantReadError):
                    ends[end].do_handshake()
                    waiting.discard(end)
                carry(end)
        for end, said in turns:
            ends[end].write(said)
            carry(end)
            heard = 0
            while heard < len(said):
                heard += len(ends[1 - end].read(len(said)))
        return crossed


def kind_of_mail(maker: Maker, ts: float) -> list[Timed]:
    pick = maker.rng.random()
    how_many = 1 + int(maker.rng.expovariate(1.4))
    if pick < 0.5:
        return maker.smtp(ts, how_many)
    return maker.pop3(ts, how_many) if pick < 0.75 else maker.imap(ts, how_many)


def traffic(kind: str, maker: Maker, size: int) -> Iterator[list[Timed]]:
    """Flows of the kind asked for, each a list of frames, in order of their start."""
    rng, ts, made = maker.rng, T0, 0
    own = total = 0
    counted = kind in ("small", "dns")
    while (maker.truth["messages"] + maker.truth["questions"] if counted else made) < size:
        ts += rng.expovariate(400)
        if kind == "tls":
            flow = kind_of_mail(maker, ts)
        elif kind == "dns":
            flow = maker.lookup(ts)
        elif kind == "small":
            flow = maker.smtp(ts, 1 + int(rng.expovariate(0.4)))
        elif kind == "mixed" and own * 20 > total:
            flow = maker.bulk(ts)
        elif rng.random() < 0.9 and kind in ("mail", "mixed"):
            flow = maker.lookup(ts)
            own += 2
        else:
            flow = kind_of_mail(maker, ts)
            own += len(flow)
        total += len(flow)
        made += sum(len(f) + 16 for _, f in flow)
        yield flow


def giant(maker: Maker, size: int) -> Iterator[list[Timed]]:
    body = (maker.filler * (size // len(maker.filler) + 1))[:size]
    text = b"Message-ID: <giant@example.net>\r\nSubject: giant\r\n\r\n" + body[: body.rfind(b"\r\n") + 2]
    maker.truth["messages"] += 1
    maker.truth["message_octets"] += len(text)
    turns = [
        (1, b"220 mx ESMTP\r\n"),
        (0, b"EHLO c\r\n"),
        (1, b"250 mx\r\n"),
        (0, b"MAIL FROM:<a@example.net>\r\n"),
        (1, b"250 ok\r\n"),
    ]
    turns += [(0, b"RCPT TO:<b@example.org>\r\n"), (1, b"250 ok\r\n"), (0, b"DATA\r\n"), (1, b"354 go\r\n")]
    turns += [(0, text.replace(b"\r\n.", b"\r\n..") + b".\r\n"), (1, b"250 ok\r\n"), (0, b"QUIT\r\n"), (1, b"221 bye\r\n")]
    yield maker.session(T0, 25, turns)


def tiny(maker: Maker, count: int) -> Iterator[list[Timed]]:
    for n in range(count):
        yield conversation(maker.rng, Path5(maker.rng, 8080), T0 + n * 0.0005, [(0, b"ping\n")], noise=0)[:5]


def octets(maker: Maker, count: int, order: str) -> Iterator[list[Timed]]:
    """One message by SMTP in segments of one octet."""
    path, ts = Path5(maker.rng, 25), T0
    body = b"Subject: octet by octet\r\n\r\n" + b"hello world line\r\n" * (count // 18) + b".\r\n"
    talk = (
        b"220 mx\r\n",
        b"EHLO a\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n",
        b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n",
    )
    seq = [1, 1]
    frames = [path.tcp(0, 0, 0, SYN), path.tcp(1, 0, 1, SYN | ACK), path.tcp(0, 1, 1, ACK)]
    for end, said in zip((1, 0, 1), talk, strict=True):
        frames.append(path.tcp(end, seq[end], seq[1 - end], PSH | ACK, said))
        seq[end] += len(said)
    places = list(range(len(body)))[:: {"octets": 1, "reversed": -1, "holes": 2}[order]]
    frames += [path.tcp(0, seq[0] + i, seq[1], PSH | ACK, body[i : i + 1]) for i in places]
    maker.truth["messages"] += 1
    yield [(ts + n * 0.0001, frame) for n, frame in enumerate(frames)]


def halfopen(maker: Maker, count: int) -> Iterator[list[Timed]]:
    for n in range(count):
        path = Path5(maker.rng, maker.rng.choice((25, 587, 110, 143)))
        yield [(T0 + n * 0.0001, path.tcp(0, maker.rng.getrandbits(32), 0, SYN))]


def in_order(flows: Iterator[list[Timed]]) -> Iterator[Timed]:
    """Merge flows by time; a flow's start bounds what can still come before it."""
    heap: list[tuple[float, int, bytes]] = []
    n = 0
    for flow in flows:
        start = flow[0][0]
        while heap and heap[0][0] < start:
            ts, _, frame = heapq.heappop(heap)
            yield ts, frame
        for ts, frame in flow:
            n += 1
            heapq.heappush(heap, (ts, n, frame))
    while heap:
        ts, _, frame = heapq.heappop(heap)
        yield ts, frame


KINDS = {
    "mail": lambda maker, size: traffic("mail", maker, size),
    "mixed": lambda maker, size: traffic("mixed", maker, size),
    "small": lambda maker, size: traffic("small", maker, size),
    "dns": lambda maker, size: traffic("dns", maker, size),
    "tls": lambda maker, size: traffic("tls", maker, size),
    "giant": giant,
    "tlsbig": giant,
    "tiny": tiny,
    "octets": lambda maker, size: octets(maker, size, "octets"),
    "reversed": lambda maker, size: octets(maker, size, "reversed"),
    "holes": lambda maker, size: octets(maker, size, "holes"),
    "halfopen": halfopen,
}


def make(kind: str, out: Path, size: int, seed: int) -> dict[str, int]:
    """Write the capture and its truth; returns the truth."""
    if kind in TLS:
        maker: Maker = TlsMaker(seed, 20_000, 1.5, out.with_suffix(".keys"), VERSIONS if kind == "tls" else VERSIONS[1:])
    else:
        maker = Maker(seed, 500, 0.5) if kind == "small" else Maker(seed, 20_000, 1.5)
    packets = 0
    part = out.with_suffix(".part")
    with part.open("wb", 1 << 20) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for ts, frame in in_order(KINDS[kind](maker, size)):
            micros = round(ts * 1_000_000)
            file.write(RECORD.pack(micros // 1_000_000, micros % 1_000_000, len(frame), len(frame)) + frame)
            packets += 1
    part.replace(out)
    truth = {"packets": packets, **maker.truth}
    out.with_suffix(".json").write_text(json.dumps(truth) + "\n")
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(make(args.kind, args.out, args.size, args.seed))


if __name__ == "__main__":
    main()
