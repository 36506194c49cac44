#!/usr/bin/env python3
"""What a live capture takes: memory over time, and packets a second.

    python3 bench/live.py churn [--seconds 600] [--times 10] [--rate 20] [--pace 1] [--clients 500] [--at-most 5]
    python3 bench/live.py rate CAPTURE [--pps 50000] [--seconds 60] [--backend dumpcap] [--write]

`churn` feeds a live capture, tables and all, with mail that never ends: new messages, clients, names and connections all the
time, capture time going on as fast as the analysis does.  Memory after `--times` times `--seconds` of capture time is told beside
that after once; exit status 1 when it has grown by more than `--at-most` per cent.

`rate` (root, Linux) sends mail over a wire of its own (network namespace, veth) to `mailhop capture` and tells what was dropped,
what was left out of the analysis, and how long after the end the analysis was done; exit status 1 when a packet is missing.
"""

import argparse
import ctypes
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from pathlib import Path
from typing import Any

import gen
import numpy as np

from analyzer.limits import Limits

HERE = Path(__file__).resolve()
NEAR, FAR = "mh0", "mh1"
AHEAD = 512 << 10
"""Octets that may be written before they are analyzed: some seconds of mail."""
DOMAINS = 400
"""Domains that mail is for."""


# churn: mail that never ends


class Town:
    """Messages that go from a program to a submission server, to an exchanger, and into a mailbox that is read."""

    def __init__(self, seed: int, clients: int = 0) -> None:
        """`clients`: so many, again and again; 0: a new one for each message."""
        self.rng = random.Random(seed)
        self.clients = clients
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
        client = 0x0A000000 | (n % self.clients if self.clients else n) * 2654435761 & 0xFFFFFF
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


def mail_for_ever(seed: int, rate: float, clients: int) -> Iterator[gen.Timed]:
    """Frames in time order."""
    town, ts = Town(seed, clients), gen.T0
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


def source(seed: int, rate: float, clients: int) -> None:
    """The frames as a pcap file to standard output, until nobody reads it."""
    out = open(1, "wb", buffering=0)  # noqa: SIM115
    out.write(gen.struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
    made: list[bytes] = []
    for ts, frame in mail_for_ever(seed, rate, clients):
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


def bounds(share: float) -> Limits:
    """The limits of what is held, in part: memory comes to rest sooner."""
    usual = Limits()
    names = "connections lookups book_entries idle_connections hosts dns_answered dns_memo starttls_sessions story_part".split()
    names += [name for name in usual.__slots__ if name.startswith("live_") and isinstance(getattr(usual, name), int)]
    times = ("live_decided_idle", "live_lookup_age", "live_batch_bytes", "live_kernel_bytes", "live_backlog_bytes")
    return replace(usual, **{name: max(int(getattr(usual, name) * share), 1) for name in names if name not in times})


def churn(seconds: float, times: int, rate: float, clients: int, at_most: float, details: bool, share: float, pace: float) -> int:
    """Whether memory stays."""
    import analyzer.live as live_module
    from analyzer.live import Live, Plan

    command = [sys.executable, str(HERE), "source", "--rate", str(rate), "--clients", str(clients)]
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(folder + "/mail")
        plan = Plan((folder + "/mail",), directory=folder + "/tables")
        live = Live(plan, bounds(share), say=print)
        copier = threading.Thread(target=pour, args=(maker, folder + "/mail", live, pace), daemon=True)
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


def pour(maker: "subprocess.Popen[bytes]", path: str, live: Any, pace: float) -> None:
    """Copy what is made, no faster than it is analyzed: what waits is not what is measured.

    `pace`: capture time goes on at most so many times as fast as the clock; 0: as fast as it can.
    """
    assert maker.stdout is not None
    written, began = 0, time.monotonic()

    def early() -> bool:
        counts = live.counts
        waits = written - counts.octets - 16 * counts.packets  # a record's header
        return waits > AHEAD or bool(pace and (live._now or gen.T0 * 1e9) / 1e9 - gen.T0 > (time.monotonic() - began) * pace)

    with open(path, "wb", buffering=0) as pipe:
        try:
            while piece := os.read(maker.stdout.fileno(), 1 << 16):
                while early():
                    time.sleep(0.005)
                pipe.write(piece)
                written += len(piece)
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


# rate: packets at a pace, over a wire of our own

_SOL_PACKET, _QDISC_BYPASS = 263, 20
_AT_ONCE = 64
"""Frames given to the kernel at once."""
_MMSGHDR = np.dtype(
    [
        ("name", "u8"),
        ("namelen", "u8"),
        ("iov", "u8"),
        ("iovlen", "u8"),
        ("control", "u8"),
        ("controllen", "u8"),
        ("flags", "u8"),
        ("sent", "u8"),
    ]
)
"""struct mmsghdr on 64-bit Linux: a msghdr and what was sent of it."""
_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])


class Replay:
    """A capture's frames, sent as often as wanted; each time between other hosts and with other Message-IDs."""

    def __init__(self, path: str) -> None:
        from analyzer.wire import files
        from analyzer.wire.types import SourceInfo

        pieces: list[bytes] = []
        lengths: list[np.ndarray] = []
        for frames in files.read(path, Limits(), SourceInfo(path)):
            view = memoryview(frames.data)
            starts = zip(frames.offset.tolist(), frames.length.tolist(), strict=True)
            pieces.append(b"".join(view[start : start + length] for start, length in starts))
            lengths.append(frames.length)
        self.data = np.frombuffer(bytearray(b"".join(pieces)), np.uint8)
        length = np.concatenate(lengths)
        start = np.cumsum(length) - length
        self.count, self.octets = len(length), int(length.sum())
        kind = self.data[start + 12].astype(int) << 8 | self.data[start + 13]
        v4, v6 = start[kind == 0x0800], start[kind == 0x86DD]
        self._hosts = np.concatenate([v4 + 26, v4 + 30, v6 + 24, v6 + 40])
        found, at, octets = [], -1, self.data.tobytes()
        while (at := octets.find(b"\r\nMessage-ID: <", at + 1)) >= 0:
            found.append(at + 15)
        self._ids = np.array(found, np.int64)
        self._iov = np.zeros(self.count, _IOVEC)
        self._iov["base"], self._iov["length"] = self.data.ctypes.data + start, length
        self._messages = np.zeros(self.count, _MMSGHDR)
        self._messages["iov"] = self._iov.ctypes.data + np.arange(self.count) * _IOVEC.itemsize
        self._messages["iovlen"] = 1
        self._turn = 0

    def turn(self) -> None:
        """Other hosts and other messages from here on."""
        self.data[self._hosts] ^= np.uint8((self._turn ^ (self._turn + 1)) << 4 & 0xFF)
        self._turn += 1
        self.data[self._ids] = ord("a") + self._turn % 26

    def send(self, interface: str, rate: float, seconds: float) -> tuple[int, float]:
        """Frames sent, and the seconds it took."""
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
        out.bind((interface, 0))
        sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
        sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
        first = self._messages.ctypes.data
        total, sent, at = int(rate * seconds), 0, 0
        began = time.monotonic()
        while sent < total:
            due = min(int((time.monotonic() - began) * rate) + 1, total) - sent
            if due < _AT_ONCE and sent + due < total:
                time.sleep((_AT_ONCE - due) / rate)
                continue
            done = sendmmsg(out.fileno(), first + at * _MMSGHDR.itemsize, min(due, _AT_ONCE, self.count - at), 0)
            if done < 0:
                if ctypes.get_errno() not in (errno.ENOBUFS, errno.EAGAIN):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                continue
            sent, at = sent + done, at + done
            if at == self.count:
                at = 0
                self.turn()
        return sent, time.monotonic() - began


def send(path: str, interface: str, rate: float, seconds: float) -> None:
    """Send, and tell how it went."""
    replay = Replay(path)
    print("ready", flush=True)
    sys.stdin.readline()
    sent, took = replay.send(interface, rate, seconds)
    print(json.dumps({"sent": sent, "seconds": round(took, 2), "cpu": round(time.process_time(), 1)}), flush=True)


def rate(path: str, pps: float, seconds: float, backend: str, write: bool) -> int:
    """Whether anything is lost at a pace."""
    from analyzer.wire import files
    from analyzer.wire.types import SourceInfo

    name = f"mailhop-bench-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        try:
            link = ["ip", "-n", name, "link"]
            subprocess.run([*link, "add", NEAR, "mtu", "9000", "type", "veth", "peer", "name", FAR, "mtu", "9000"], check=True)
            subprocess.run([*inside, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"], check=False)
            for end in (NEAR, FAR):
                subprocess.run([*link, "set", end, "up"], check=True)
            command = [
                sys.executable,
                "-m",
                "analyzer",
                "capture",
                "-q",
                "-i",
                NEAR,
                "--backend",
                backend,
                "-o",
                folder + "/tables",
            ]
            command += ["-w", folder + "/all.pcapng"] if write else []
            replay = [sys.executable, str(HERE), "send", path, "--interface", FAR, "--pps", str(pps), "--seconds", str(seconds)]
            sender = subprocess.Popen([*inside, *replay], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert sender.stdin is not None and sender.stdout is not None
            sender.stdout.readline()
            live = subprocess.Popen([*inside, *command], stderr=subprocess.PIPE, text=True)
            time.sleep(3)
            sender.stdin.write("\n")
            sender.stdin.flush()
            told = json.loads(sender.stdout.readline())
            sender.wait()
            time.sleep(1)
            live.send_signal(signal.SIGINT)
            stopped = time.monotonic()
            _, status, usage = os.wait4(live.pid, 0)
            after = time.monotonic() - stopped
            assert live.stderr is not None
            said = live.stderr.read()
        finally:
            subprocess.run(["ip", "netns", "del", name], check=False)
        odd = [json.loads(line) for line in Path(folder, "tables/anomalies.jsonl").read_text().splitlines()]
        lost = [f"{row['name']}: {row['detail']}" for row in odd if row["name"] in ("capture_drops", "analysis_shed")]
        kept = None
        if write:
            info = SourceInfo("")
            for _ in files.read(folder + "/all.pcapng", Limits(), info):
                pass
            kept = info.frames
        messages = sum(1 for _ in open(folder + "/tables/messages.jsonl", "rb"))  # noqa: SIM115
    pace = told["sent"] / told["seconds"]
    print(f"sent {told['sent']:,} packets in {told['seconds']} s ({pace:,.0f} a second), {told['cpu']} s CPU")
    print(f"captured by {backend}{f', in the file {kept:,}' if write else ''}; lost: {'; '.join(lost) or 'nothing'}")
    cpu = usage.ru_utime + usage.ru_stime
    print(f"analyzed {after:.0f} s after the end: {messages:,} messages; status {status >> 8}")
    print(f"{cpu:.0f} s CPU, {usage.ru_maxrss / 1024:.0f} MB")
    print(said, end="", file=sys.stderr)
    return int(bool(lost) or pace < 0.98 * pps or (kept is not None and kept != told["sent"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("churn")
    one.add_argument("--seconds", type=float, default=600)
    one.add_argument("--times", type=int, default=10)
    one.add_argument("--rate", type=float, default=50, help="messages a second of capture time")
    one.add_argument("--clients", type=int, default=0, help="so many, again and again; 0: a new one for each message")
    one.add_argument("--at-most", type=float, default=5, help="per cent")
    one.add_argument("--bounds", type=float, default=1, help="this share of the limits of what is held")
    one.add_argument("--pace", type=float, default=0, help="times as fast as the clock at most; 0: as fast as it can be analyzed")
    one.add_argument("--details", action="store_true", help="lengths of whatever holds something")
    one = modes.add_parser("source")
    one.add_argument("--rate", type=float, default=50)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--clients", type=int, default=0)
    one = modes.add_parser("rate")
    one.add_argument("capture", help="what is sent, again and again, as bench/gen.py makes it")
    one.add_argument("--pps", type=float, default=50_000)
    one.add_argument("--seconds", type=float, default=60)
    one.add_argument("--backend", default="dumpcap", choices=["dumpcap", "raw"])
    one.add_argument("--write", action="store_true", help="into a capture file, too")
    one = modes.add_parser("send")
    one.add_argument("capture")
    one.add_argument("--interface")
    one.add_argument("--pps", type=float)
    one.add_argument("--seconds", type=float)
    given = parser.parse_args()
    if given.mode == "source":
        source(given.seed, given.rate, given.clients)
        return 0
    if given.mode == "send":
        send(given.capture, given.interface, given.pps, given.seconds)
        return 0
    if given.mode == "rate":
        return rate(given.capture, given.pps, given.seconds, given.backend, given.write)
    return churn(given.seconds, given.times, given.rate, given.clients, given.at_most, given.details, given.bounds, given.pace)


if __name__ == "__main__":
    sys.exit(main())
