#!/usr/bin/env python3
"""mailhop beside its peers on the same captures, in one run: ratios of medians with their spread, and peak memory.

    python3 bench/run.py [--scale 1] [--rounds 5] [--only mail,small,...] [--at-least 5]
    python3 bench/run.py --growth [--scale 1] [--only octets,reversed,...]
    python3 bench/run.py --start

The machine is shared and noisy, so the commands take turns (A B C, A B C, ...) and only ratios within the run mean
anything.  Whole processes are timed, start included; memory is the largest process's.  mailhop writes all its tables.
A command that takes longer than --limit is stopped and not tried again.  Captures are made once and kept in bench/data.
`--growth` doubles each capture and runs mailhop only; `--start` shows what a command costs before it does anything.
Exit status 1 when a ratio to `tshark -T fields` is below --at-least.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
STORY = HERE.parent / "captures" / "story.pcapng"
SIZES = {
    "mail": 1_000_000_000,
    "mixed": 1_000_000_000,
    "small": 200_000,
    "dns": 1_000_000,
    "giant": 300_000_000,
    "tiny": 1_000_000,
    "tls": 250_000_000,
    "tlsbig": 250_000_000,
    "octets": 200_000,
    "reversed": 200_000,
    "holes": 200_000,
    "halfopen": 1_000_000,
}
"""Sizes at scale 1, as `gen.py` counts."""
PEERS = ("mail", "mixed", "small", "dns", "giant", "tiny")
MARKS = {"mail": 12, "mixed": 25, "small": 6, "dns": 6, "tls": 5, "tlsbig": 5}
"""What times `tshark -T fields` is aimed at."""
TWICE = 2.2
"""Most that doubling a capture may cost."""
FIELDS = (
    "frame.time_epoch ip.src ip.dst tcp.stream smtp.req.command smtp.req.parameter smtp.response.code pop.request.command "
    "pop.response.indicator imap.request.command imf.from imf.to imf.subject imf.message_id dns.id dns.qry.name dns.qry.type "
    "dns.flags.rcode dns.a"
).split()
MAIL_PORTS = "port 25 or port 587 or port 110 or port 143 or port 53"


class Run(NamedTuple):
    """One run of a command: seconds, CPU seconds, peak memory in MB."""

    wall: float
    cpu: float
    peak: float


def beside(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    return str(path) if path.exists() else shutil.which(name) or name


def commands(capture: Path, kind: str, out: str) -> dict[str, str]:
    """Each competitor as a shell command."""
    fields = " ".join(f"-e {f}" for f in FIELDS)
    key_log = capture.with_suffix(".keys")
    keys, log = (f" --keylog {key_log}", f" -o tls.keylog_file:{key_log}") if kind in ("tls", "tlsbig") else ("", "")
    tshark = f"tshark -n -r {capture}{log} -o tcp.reassemble_out_of_order:TRUE -Y 'smtp||pop||imap||dns' -T fields {fields}"
    ours = f"{beside('mailhop')} analyze -q {capture} -o {out}{keys}"
    found = {
        "mailhop": ours,
        "mailhop --jobs 2": f"{ours} --jobs 2",
        "tshark -T fields": f"{tshark} >/dev/null",
        "tshark": f"tshark -n -r {capture}{log} >/dev/null",
    }
    if kind == "mixed":
        found["tcpdump BPF | tshark"] = (
            f"tcpdump -n -r {capture} -w - '{MAIL_PORTS}' | {tshark.replace(str(capture), '-')} >/dev/null"
        )
    if kind in ("mail", "small"):
        found["tshark --export-objects"] = f"tshark -n -q -r {capture} --export-objects imf,{out}-objects"
    if kind in ("mail", "small", "giant"):
        found["tcpflow"] = f"tcpflow -q -r {capture} -o {out}-flows '{MAIL_PORTS}'"
    found["cat"] = f"cat {capture} | cat >/dev/null"
    return {name: line for name, line in found.items() if shutil.which(line.split()[0])}


def timed(line: str, out: str, limit: float = 0.0) -> Run | None:
    """A run of a shell command; None: stopped after `limit` seconds."""
    for part in ("", "-flows", "-objects"):
        shutil.rmtree(out + part, ignore_errors=True)
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(["/bin/sh", "-c", line], stdout=quiet, stderr=quiet, start_new_session=True)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG if limit else 0)
        if pid:
            break
        if time.perf_counter() - start > limit:
            os.killpg(child.pid, signal.SIGKILL)
            os.wait4(child.pid, 0)
            return None
        time.sleep(0.005)
    if status:
        raise SystemExit(f"failed with status {status}: {line}")
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def capture_of(kind: str, scale: float) -> Path:
    """The capture, made now if it is not there."""
    size = max(int(SIZES[kind] * scale), 1)
    capture = DATA / f"{kind}-{size}.pcap"
    if not capture.exists():
        DATA.mkdir(exist_ok=True)
        # in a process of its own: a child's peak memory counts from what its parent had
        subprocess.run([sys.executable, HERE / "gen.py", kind, capture, str(size)], check=True, stdout=subprocess.DEVNULL)
    return capture


def measure(kind: str, capture: Path, rounds: int, limit: float) -> float | None:
    """Run everybody in turns on one capture, print the table; the ratio to `tshark -T fields`, if that came to an end."""
    with tempfile.TemporaryDirectory() as folder:
        out = folder + "/out"
        lines = commands(capture, kind, out)
        runs: dict[str, list[Run]] = {name: [] for name in lines}
        late: set[str] = set()
        for _ in range(rounds):
            for name, line in lines.items():
                run = timed(line, out, limit) if name not in late else None
                if run is None:
                    late.add(name)
                else:
                    runs[name].append(run)
    print(f"\n{kind}: {capture.stat().st_size / 1e6:.0f} MB, {json.loads(capture.with_suffix('.json').read_text())}")
    print(f"  {'':<24}{'wall s':>9}{'min':>8}{'max':>8}{'CPU s':>9}{'MB':>7}   its time / ours (spread)")
    ours = runs["mailhop"]
    found: float | None = None
    for name, theirs in runs.items():
        if name in late or "mailhop" in late:
            print(f"  {name:<24}{'> ' + format(limit, '.0f') if name in late else '':>9}")
            continue
        walls = [run.wall for run in theirs]
        cpu, peak = statistics.median(run.cpu for run in theirs), max(run.peak for run in theirs)
        ratio = statistics.median(walls) / statistics.median(run.wall for run in ours)
        by_round = [their.wall / mine.wall for their, mine in zip(theirs, ours, strict=True)]
        figures = f"{statistics.median(walls):>9.2f}{min(walls):>8.2f}{max(walls):>8.2f}{cpu:>9.2f}{peak:>7.0f}"
        print(f"  {name:<24}{figures}{ratio:>9.2f}x ({min(by_round):.2f}-{max(by_round):.2f})")
        if name == "tshark -T fields":
            found = ratio
    if kind in MARKS and found is not None:
        print(f"  mark: {MARKS[kind]}x tshark -T fields: {'reached' if found >= MARKS[kind] else 'not reached'}")
    return found


def growth(kind: str, scale: float, rounds: int) -> None:
    """What doubling a capture costs."""
    sizes = [capture_of(kind, scale / 2), capture_of(kind, scale)]
    with tempfile.TemporaryDirectory() as folder:
        out = folder + "/out"
        seen: list[list[Run]] = [[], []]
        for _ in range(rounds):
            for runs, capture in zip(seen, sizes, strict=True):
                run = timed(commands(capture, kind, out)["mailhop"], out)
                assert run is not None
                runs.append(run)
    half, whole = (statistics.median(run.cpu for run in runs) for runs in seen)
    peaks = [max(run.peak for run in runs) for runs in seen]
    verdict = "" if whole <= TWICE * half else f"   more than {TWICE}"
    print(f"  {kind:<10}{half:>9.2f}{whole:>9.2f}{whole / half:>8.2f}x{peaks[0]:>8.0f}{peaks[1]:>8.0f}{verdict}")


def start(rounds: int) -> None:
    """What the command costs before it does anything."""
    with tempfile.TemporaryDirectory() as folder:
        lines = {
            "python": f"{sys.executable} -c pass",
            "import analyzer": f"{sys.executable} -c 'import analyzer'",
            "mailhop --help": f"{beside('mailhop')} --help",
            "the story to text": f"{beside('mailhop')} analyze {STORY}",
        }
        runs: dict[str, list[Run]] = {name: [] for name in lines}
        for _ in range(rounds):
            for name, line in lines.items():
                run = timed(line, folder + "/out")
                assert run is not None
                runs[name].append(run)
    print(f"  {'':<24}{'wall s':>9}{'CPU s':>9}{'MB':>7}")
    for name, found in runs.items():
        wall, cpu = statistics.median(r.wall for r in found), statistics.median(r.cpu for r in found)
        print(f"  {name:<24}{wall:>9.2f}{cpu:>9.2f}{max(r.peak for r in found):>7.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the sizes: 1 is a gigabyte of mail, 200,000 small messages, ..."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=f"kinds, of {', '.join(SIZES)}")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for one command")
    parser.add_argument("--at-least", type=float, default=0.0)
    parser.add_argument("--growth", action="store_true", help="what doubling each capture costs us")
    parser.add_argument("--start", action="store_true", help="what starting costs")
    args = parser.parse_args()
    if args.start:
        start(args.rounds)
    if args.growth:
        print(f"  {'':<10}{'half':>9}{'whole':>9}{'':>9}{'MB':>8}{'MB':>8}   CPU seconds")
        for kind in args.only.split(",") if args.only else SIZES:
            growth(kind, args.scale, args.rounds)
    if args.start or args.growth:
        return
    low = []
    for kind in args.only.split(",") if args.only else PEERS:
        ratio = measure(kind, capture_of(kind, args.scale), args.rounds, args.limit)
        if ratio is not None and ratio < args.at_least:
            low.append(f"{kind} {ratio:.1f}")
    if low:
        raise SystemExit(f"below {args.at_least}: {', '.join(low)}")


if __name__ == "__main__":
    main()
