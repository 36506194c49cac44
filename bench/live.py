#!/usr/bin/env python3
"""What a live capture takes: memory over time, and packets a second.

    python3 bench/live.py churn [--seconds 600] [--times 10] [--rate 50] [--at-most 5]
    python3 bench/live.py rate  [--pps 50000] [--seconds 60] [--write]

`churn` feeds a live capture, tables and all, with mail that never ends: new messages, clients, names and connections all the
time, capture time going on as fast as the analysis does.  Memory after `--times` times `--seconds` of capture time is told beside
that after once; exit status 1 when it has grown by more than `--at-most` per cent.

`rate` (root, Linux) sends mail over a wire of its own (network namespace, veth) to `mailhop capture` and tells what was dropped,
what was left out of the analysis, and how long after the end the analysis was done; exit status 1 when a packet is missing.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from heapq import merge
from pathlib import Path

import gen

HERE = Path(__file__).resolve()
NEAR, FAR = "mh0", "mh1"
DOMAINS = 400
"""Domains that mail is for."""


# churn: mail that never ends


class Town:
    """Messages that go from a program to a submission server, to an exchanger, and into a mailbox that is read."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.maker = gen.Maker(seed, 600, 0.6)
        self.number = 0

    def path(self, client: int, server: int, port: int) -> gen.Path5:
        path = gen.Path5(self.rng, port)
        path.ends = (client, self.rng.randrange(1024, 65535)), (server, port)
        return path

    def talk(self, ts: float, path: gen.Path5, turns: list[tuple[int, bytes]]) -> list[gen.Timed]:
        return gen.conversation(self.rng, path, ts, turns)

    def message(self, ts: float) -> list[list[gen.Timed]]:
        """The flows of one message."""
        rng = self.rng
        n = self.number = self.number + 1
        user, domain = rng.randrange(3000), rng.randrange(DOMAINS)
        client = 0x0A000000 | n * 2654435761 & 0xFFFFFF  # a new one each time
        msa, mx, store = 0x0B000001 + n % 3, 0x0C000000 + domain, 0x0D000001 + domain % 9
        path, odd = self.path, rng.random()
        rcpt = f"user{user}@d{domain}.example.org"
        head = (
            f"From: Sender <s{n % 5000}@example.net>\r\nTo: {rcpt}\r\nSubject: Number {n}\r\n"
            f"Date: Mon, 21 Sep 2026 10:00:00 +0000\r\nMessage-ID: <{n}.{rng.getrandbits(40):x}@c{n}.example.net>\r\n\r\n"
        )
        size = rng.randrange(200, 3000)
        start = rng.randrange(1000) * 1000
        body = self.maker.filler[start : start + size].replace(b"\n.", b"\n-")
        text = head.encode() + body[: body.rfind(b"\n") + 1] + b"end\r\n"
        stamp = b"Received: from c%d.example.net (c%d.example.net [%s])\r\n"
        stamp += b"\tby msa%d.example.net (Postfix) with ESMTPSA id A%07X;\r\n\t%s\r\n"
        stamped = stamp % (n, n, gen_ip(client), n % 3, n, rfc5322(ts)) + text
        flows = [
            self.talk(
                ts, path(client, msa, 587), handed_over(f"c{n}.example.net", f"msa{n % 3}.example.net", rcpt, text, b"A%07X" % n)
            )
        ]
        ts += 0.5 + rng.random()
        flows.append(lookup(rng, ts, path(msa, 0x0E000001, 53), f"d{domain}.example.org", 15, b"\x00\x0a\x02mx\xc0\x0c"))
        address = mx.to_bytes(4, "big")
        flows.append(lookup(rng, ts + 0.05, path(msa, 0x0E000001, 53), f"mx.d{domain}.example.org", 1, address))
        flows.append(lookup(rng, ts + 0.4, path(mx, 0x0E000002, 53), f"n{n}.example.com", 1, client.to_bytes(4, "big")))
        if odd < 0.1:  # nobody answers at first
            ask = path(msa, mx, 25)
            flows.append([(ts + 0.1, ask.tcp(0, 7, 0, gen.SYN))])
        ts += 0.2
        code = b"450 4.2.1 later" if odd > 0.98 else b""
        flows.append(
            self.talk(
                ts,
                path(msa, mx, 25),
                handed_over(f"msa{n % 3}.example.net", f"mx.d{domain}.example.org", rcpt, stamped, b"B%07X" % n, code),
            )
        )
        if 0.3 < odd < 0.6:
            top = b"Received: from msa%d.example.net (msa%d.example.net [%s])\r\n"
            top += b"\tby mx.d%d.example.org (Postfix) with ESMTP id B%07X;\r\n\t%s\r\n"
            there = top % (n % 3, n % 3, gen_ip(msa), domain, n, rfc5322(ts)) + stamped
            turns = [
                (1, b"+OK ready\r\n"),
                (0, b"USER user%d\r\n" % user),
                (1, b"+OK\r\n"),
                (0, b"PASS in-the-bench\r\n"),
                (1, b"+OK\r\n"),
            ]
            turns += [(0, b"UIDL 1\r\n"), (1, b"+OK 1 u%d\r\n" % n), (0, b"RETR 1\r\n"), (1, b"+OK\r\n" + there + b".\r\n")]
            turns += [(0, b"DELE 1\r\n"), (1, b"+OK\r\n"), (0, b"QUIT\r\n"), (1, b"+OK bye\r\n")]
            flows.append(self.talk(ts + 20, path(client ^ 0x555, store, 110), turns))
        elif odd < 0.3:
            turns = [
                (1, b"* OK ready\r\n"),
                (0, b"a LOGIN user%d in-the-bench\r\n" % user),
                (1, b"a OK in\r\n"),
                (0, b"b SELECT INBOX\r\n"),
            ]
            turns += [(1, b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\nb OK done\r\n"), (0, b"c UID FETCH %d (BODY[])\r\n" % n)]
            turns += [(1, b"* 1 FETCH (UID %d BODY[] {%d}\r\n" % (n, len(stamped)) + stamped + b")\r\nc OK done\r\n")]
            turns += [(0, b"d UID STORE %d +FLAGS (\\Seen)\r\n" % n), (1, b"* 1 FETCH (UID %d FLAGS (\\Seen))\r\nd OK\r\n" % n)]
            turns += [(0, b"z LOGOUT\r\n"), (1, b"* BYE\r\nz OK\r\n")]
            flows.append(self.talk(ts + 20, path(client ^ 0x555, store, 143), turns))
        if odd > 0.95:  # a probe that says nothing, and one that hangs about
            flows.append(
                self.talk(ts, path(client ^ 0x777, mx, 25), [(1, b"220 mx ESMTP\r\n"), (0, b"QUIT\r\n"), (1, b"221 bye\r\n")])
            )
            flows.append(self.talk(ts, path(client ^ 0x999, mx, 25), [(1, b"220 mx ESMTP\r\n")])[:4])
        return flows


def gen_ip(number: int) -> bytes:
    return b".".join(b"%d" % octet for octet in number.to_bytes(4, "big"))


def rfc5322(ts: float) -> bytes:
    return time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(ts)).encode()


def handed_over(
    client: str, server: str, rcpt: str, text: bytes, queue_id: bytes, refused: bytes = b""
) -> list[tuple[int, bytes]]:
    """What is said when a message is handed over."""
    turns = [(1, b"220 %s ESMTP\r\n" % server.encode()), (0, b"EHLO %s\r\n" % client.encode())]
    turns.append((1, b"250-%s\r\n250-PIPELINING\r\n250 ENHANCEDSTATUSCODES\r\n" % server.encode()))
    turns.append((0, b"MAIL FROM:<s@example.net>\r\nRCPT TO:<%s>\r\nDATA\r\n" % rcpt.encode()))
    if refused:
        turns.append((1, b"250 2.1.0 Ok\r\n" + refused + b"\r\n554 5.5.1 no valid recipients\r\n"))
    else:
        turns.append((1, b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go on\r\n"))
        turns += [(0, text + b".\r\n"), (1, b"250 2.0.0 Ok: queued as %s\r\n" % queue_id)]
    return [*turns, (0, b"QUIT\r\n"), (1, b"221 2.0.0 Bye\r\n")]


def lookup(rng: random.Random, ts: float, path: gen.Path5, name: str, kind: int, rdata: bytes) -> list[gen.Timed]:
    qname = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    head = rng.getrandbits(16).to_bytes(2, "big")
    question = qname + kind.to_bytes(2, "big") + b"\0\x01"
    answer = b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\x01\0\0\x01\x2c" + len(rdata).to_bytes(2, "big") + rdata
    ask = path.udp(0, head + b"\x01\0\0\x01\0\0\0\0\0\0" + question)
    tell = path.udp(1, head + b"\x81\x80\0\x01\0\x01\0\0\0\0" + question + answer)
    return [(ts, ask), (ts + 0.002, tell)]


def mail_for_ever(seed: int, rate: float) -> Iterator[gen.Timed]:
    """Frames in time order."""
    town, ts = Town(seed), gen.T0
    waiting: list[gen.Timed] = []
    while True:
        ready: list[gen.Timed] = []
        for _ in range(200):
            ts += town.rng.expovariate(rate)
            for flow in town.message(ts):
                ready += flow
        ready.sort(key=lambda frame: frame[0])
        waiting = list(merge(waiting, ready, key=lambda frame: frame[0]))
        until = next((i for i, frame in enumerate(waiting) if frame[0] > ts), len(waiting))
        yield from waiting[:until]
        del waiting[:until]


def source(seed: int, rate: float) -> None:
    """The frames as a pcap file to standard output, until nobody reads it."""
    out = open(1, "wb", buffering=0)  # noqa: SIM115
    out.write(gen.struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
    made: list[bytes] = []
    for ts, frame in mail_for_ever(seed, rate):
        seconds = int(ts)
        made.append(gen.RECORD.pack(seconds, int((ts - seconds) * 1e9), len(frame), len(frame)) + frame)
        if len(made) >= 500:
            try:
                out.write(b"".join(made))
            except BrokenPipeError:
                return
            made.clear()


def resident() -> int:
    """Octets of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def churn(seconds: float, times: int, rate: float, at_most: float, details: bool) -> int:
    """Whether memory stays."""
    import analyzer.live as live_module
    from analyzer.live import Live, Plan

    command = [sys.executable, str(HERE), "source", "--rate", str(rate)]
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(folder + "/mail")
        plan = Plan((folder + "/mail",), directory=folder + "/tables")
        live = Live(plan, say=print)
        copier = threading.Thread(target=pour, args=(maker, folder + "/mail", live), daemon=True)
        copier.start()
        seen: list[tuple[float, int]] = []
        began = time.process_time()

        def look(_: Live) -> None:
            if not live._now:
                return
            now = live._now / 1e9 - gen.T0
            while len(seen) < times * 2 and now >= (len(seen) + 1) * seconds / 2:
                seen.append((now, resident()))
                counts = live.counts
                print(
                    f"{now:8.0f} s of capture time {counts.packets:10,} packets {counts.hops:9,} hops"
                    f" {seen[-1][1] / 1e6:7.1f} MB {time.process_time() - began:7.1f} s CPU",
                    flush=True,
                )
                if details:
                    print("   ", sizes(live), flush=True)
            if len(seen) >= times * 2 and not live._stopping:
                live.stop()

        live._on_tick = look
        live.begin()
        live.collect = True
        live_module.gc.disable()
        live.work()
        maker.kill()
        maker.wait()
    once, last = seen[1][1], max(size for _, size in seen[-2:])
    print(f"memory after {times} times as long: {(last / once - 1) * 100:+.1f} %")
    return int(last > once * (1 + at_most / 100))


def pour(maker: "subprocess.Popen[bytes]", path: str, live: object) -> None:
    """Copy what is made, no faster than it is analyzed: what waits is not what is measured."""
    assert maker.stdout is not None
    with open(path, "wb", buffering=0) as pipe:
        try:
            while piece := os.read(maker.stdout.fileno(), 1 << 18):
                while live._backlog.waiting > 5000:  # type: ignore[attr-defined]
                    time.sleep(0.005)
                pipe.write(piece)
        except (BrokenPipeError, ValueError):
            pass


def sizes(live: object) -> str:
    """Lengths of whatever holds something, to find what grows."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    todo: list[tuple[str, object]] = [("live", live)]
    while todo:
        name, thing = todo.pop()
        if id(thing) in seen or name.count(".") > 5:
            continue
        seen.add(id(thing))
        attributes = list(getattr(thing, "__dict__", {}).items())
        for cls in type(thing).__mro__:
            slots = getattr(cls, "__slots__", ())
            attributes += [(slot, getattr(thing, slot, None)) for slot in ([slots] if isinstance(slots, str) else slots)]
        for attribute, value in attributes:
            path = f"{name}.{attribute}"
            if isinstance(value, list | tuple | dict | set | deque | array):
                if len(value) > 200:
                    found[path] = len(value)
                if isinstance(value, list | tuple | dict) and len(value) < 20:
                    items = value.items() if isinstance(value, dict) else enumerate(value)
                    todo += [(f"{path}[{key}]", item) for key, item in items]
            if type(value).__module__.startswith("analyzer"):
                todo.append((path, value))
    return " ".join(f"{name.removeprefix('live.')}={size}" for name, size in sorted(found.items(), key=lambda item: -item[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("churn")
    one.add_argument("--seconds", type=float, default=600)
    one.add_argument("--times", type=int, default=10)
    one.add_argument("--rate", type=float, default=50, help="messages a second of capture time")
    one.add_argument("--at-most", type=float, default=5, help="per cent")
    one.add_argument("--details", action="store_true", help="lengths of whatever holds something")
    one = modes.add_parser("source")
    one.add_argument("--rate", type=float, default=50)
    one.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.mode == "source":
        source(given.seed, given.rate)
        return 0
    return churn(given.seconds, given.times, given.rate, given.at_most, given.details)


if __name__ == "__main__":
    sys.exit(main())
