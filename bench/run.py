#!/usr/bin/env python3
"""mailhop beside tshark on the same captures, in one run: ratios of medians, and peak memory.

    python3 bench/run.py [--mb 60] [--rounds 3] [--only mail,small,...] [--at-least 5]

The machine is shared and noisy, so the commands take turns (A B C, A B C, ...) and only ratios within the run
mean anything.  Whole processes are timed, start included; memory is the largest process's.  mailhop writes all its
tables.  Exit status 1 when a ratio to `tshark -T fields` is below --at-least.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gen

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
FIELDS = (
    "frame.time_epoch ip.src ip.dst tcp.stream smtp.req.command smtp.req.parameter smtp.response.code pop.request.command "
    "pop.response.indicator imap.request.command imf.from imf.to imf.subject imf.message_id dns.id dns.qry.name dns.qry.type "
    "dns.flags.rcode dns.a"
).split()
MAIL_PORTS = "port 25 or port 587 or port 110 or port 143 or port 53"


def mailhop() -> str:
    beside = Path(sys.executable).with_name("mailhop")
    return str(beside) if beside.exists() else shutil.which("mailhop") or "mailhop"


def commands(capture: str, kind: str, out: str) -> dict[str, str]:
    """Each competitor as a shell command."""
    fields = " ".join(f"-e {f}" for f in FIELDS)
    keys = f" --keylog {Path(capture).with_suffix('.keys')}" if kind in gen.TLS else ""
    log = f" -o tls.keylog_file:{Path(capture).with_suffix('.keys')}" if kind in gen.TLS else ""
    tshark = f"tshark -n -r {capture}{log} -o tcp.reassemble_out_of_order:TRUE -Y 'smtp||pop||imap||dns' -T fields {fields}"
    found = {
        "mailhop": f"{mailhop()} analyze -q {capture} -o {out}{keys}",
        "tshark -T fields": f"{tshark} >/dev/null",
        "tshark": f"tshark -n -r {capture}{log} >/dev/null",
    }
    if kind == "mixed":
        found["tcpdump BPF | tshark"] = f"tcpdump -n -r {capture} -w - '{MAIL_PORTS}' | {tshark.replace(capture, '-')} >/dev/null"
    if kind in ("mail", "small", "giant") and shutil.which("tcpflow"):
        found["tcpflow"] = f"tcpflow -q -r {capture} -o {out}-flows '{MAIL_PORTS}'"
    found["cat"] = f"cat {capture} | cat >/dev/null"
    return {name: line for name, line in found.items() if shutil.which(line.split()[0])}


def timed(line: str, out: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in MB of one run."""
    for folder in (out, out + "-flows"):
        shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    child = subprocess.Popen(["/bin/sh", "-c", line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"failed with status {status}: {line}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(kind: str, capture: Path, rounds: int) -> float:
    """Run everybody in turns on one capture, print the table, return the ratio to `tshark -T fields`."""
    with tempfile.TemporaryDirectory() as folder:
        out = folder + "/out"
        lines = commands(str(capture), kind, out)
        seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in lines}
        for _ in range(rounds):
            for name, line in lines.items():
                seen[name].append(timed(line, out))
    size = capture.stat().st_size / 1e6
    print(f"\n{kind}: {size:.0f} MB, {gen.json.loads(capture.with_suffix('.json').read_text())}")
    print(f"  {'':<22}{'wall s':>9}{'min':>8}{'max':>8}{'CPU s':>9}{'MB':>7}{'its time / ours':>18}")
    ours = statistics.median(wall for wall, _, _ in seen["mailhop"])
    for name, runs in seen.items():
        walls = [wall for wall, _, _ in runs]
        median, cpu, peak = statistics.median(walls), statistics.median(c for _, c, _ in runs), max(m for _, _, m in runs)
        print(f"  {name:<22}{median:>9.2f}{min(walls):>8.2f}{max(walls):>8.2f}{cpu:>9.2f}{peak:>7.0f}{median / ours:>17.1f}x")
    fields = seen.get("tshark -T fields")
    return statistics.median(wall for wall, _, _ in fields) / ours if fields else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=60, help="size of each capture, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="mail,mixed,small,dns")
    parser.add_argument("--at-least", type=float, default=0.0)
    args = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    low = []
    for kind in args.only.split(","):
        octets = args.mb * 1_000_000 if kind in ("mail", "mixed", "giant", *gen.TLS) else 0
        count = {"small": args.mb * 500, "dns": args.mb * 4000, "tiny": args.mb * 2500}.get(kind, 0)
        capture = DATA / f"{kind}-{args.mb}.pcap"
        if not capture.exists():
            gen.make(kind, capture, octets, count, seed=1)
        ratio = measure(kind, capture, args.rounds)
        if ratio < args.at_least:
            low.append(f"{kind} {ratio:.1f}")
    if low:
        raise SystemExit(f"below {args.at_least}: {', '.join(low)}")


if __name__ == "__main__":
    main()
