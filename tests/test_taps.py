"""Captures of several points of one network, analyzed together."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from analyzer.limits import Limits
from analyzer.pipeline import Result, run
from analyzer.wire import files
from analyzer.wire.types import SourceInfo

STORY = Path(__file__).parent.parent / "captures" / "story.pcapng"
SECOND = 1_000_000_000
TIMES = ("sessions", "commands", "hops", "dns", "timeline")


def tap(path: Path, *hosts: str, clock: Callable[[int], int] = int, drop: Callable[[int], bool] = lambda n: False) -> Path:
    """A capture of what these hosts of the story saw, by a clock of its own; `drop` frames that it lost."""
    wanted = [bytes(map(int, host.split("."))) for host in hosts]
    out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1)]
    for frames in files.read(str(STORY), Limits(), SourceInfo(str(STORY))):
        for n in range(len(frames)):
            at, size = int(frames.offset[n]), int(frames.length[n])
            octets = bytes(frames.data[at : at + size])
            if not wanted or (any(ip in octets[26:34] for ip in wanted) and not drop(n)):
                ts = clock(int(frames.ts[n]))
                out.append(struct.pack("<IIII", ts // SECOND, ts % SECOND, size, size) + octets)
    path.write_bytes(b"".join(out))
    return path


def counts(result: Result) -> dict[str, int]:
    return {name: result.tables.count(name) for name in (*TIMES, "messages", "deliveries")}


def named(result: Result, name: str) -> list[str]:
    return [row.detail for row in result.tables.rows("anomalies") if row.name == name]


def served(result: Result) -> list[tuple[str, ...]]:
    """What each lookup was for: the ends of the hop that it served."""
    hops = {(h.trace_id, h.hop): (h.client_ip, h.client_port, h.server_ip, h.message_index) for h in result.tables.rows("hops")}
    rows = result.tables.rows("dns")
    return sorted(tuple(map(str, (r.client_ip, r.client_port, r.qname, hops.get((r.trace_id, r.hop))))) for r in rows)


def parents(result: Result) -> list[tuple[str, ...]]:
    """Hops by their ends, each with the hop that brought the message."""
    name = {(h.trace_id, h.hop): str((h.client_ip, h.client_port, h.server_ip, h.kind)) for h in result.tables.rows("hops")}
    return sorted((name[h.trace_id, h.hop], name.get((h.trace_id, h.parent_hop), "")) for h in result.tables.rows("hops"))


def starts(result: Result) -> list[int]:
    return [row.ts_start for row in result.tables.rows("hops") if row.basis == "observed"]


MSA, MX, STORE = "10.1.0.25", "10.2.0.25", "10.2.0.110"


def test_what_two_taps_show_is_told_once(tmp_path: Path) -> None:
    alone = run([tap(tmp_path / "lab.pcap")])
    both = run([tap(tmp_path / "lab.pcap"), tap(tmp_path / "msa.pcap", MSA), tap(tmp_path / "mx.pcap", MX)])
    assert counts(both) == counts(alone)
    assert sum(host.sessions for host in both.tables.rows("hosts")) == sum(host.sessions for host in alone.tables.rows("hosts"))
    assert named(both, "seen_twice") and not named(both, "clock_offset")


def test_single_hosts_together_are_the_whole(tmp_path: Path) -> None:
    alone = run([tap(tmp_path / "three.pcap", MSA, MX, STORE)])
    together = run([tap(tmp_path / "msa.pcap", MSA), tap(tmp_path / "mx.pcap", MX), tap(tmp_path / "store.pcap", STORE)])
    assert counts(together) == counts(alone)
    assert starts(together) == starts(alone)


@pytest.mark.parametrize("ahead", [3 * SECOND + SECOND // 4, -7200 * SECOND, 40_000_000])
def test_a_clock_that_is_off_is_told_and_taken_off_only_when_asked(tmp_path: Path, ahead: int) -> None:
    true = run([tap(tmp_path / "msa.pcap", MSA), tap(tmp_path / "mx.pcap", MX)])
    taps = [tmp_path / "msa.pcap", tap(tmp_path / "late.pcap", MX, clock=lambda ts: ts + ahead)]
    left, aligned = run(taps), run(taps, align=True)
    sign = 1 if ahead > 0 else -1  # the earlier file's clock is the one that others are measured by
    off, other = ("late.pcap", "msa.pcap") if ahead > 0 else ("msa.pcap", "late.pcap")
    (said,) = named(left, "clock_offset")
    assert f"{sign * ahead / 1e9:+.4f}"[:-1] in said and other in said and "left as they are" in said
    (done,) = named(aligned, "clock_offset")
    assert "taken off" in done and any(off in line for line in aligned.clocks)
    assert counts(aligned) == counts(left) == counts(true)
    assert served(aligned) == served(left) == served(true)
    assert parents(aligned) == parents(left) == parents(true)
    assert starts(left) != starts(true)
    shown = {h.sha256: h.ts_start for h in true.tables.rows("hops") if h.server_ip == STORE and h.kind == "deliver"}
    assert shown
    late = {h.sha256: h.ts_start for h in left.tables.rows("hops") if h.server_ip == STORE and h.kind == "deliver"}
    assert late == {key: ts + ahead for key, ts in shown.items()}  # only the late tap shows these
    base = 0 if ahead > 0 else ahead
    assert all(abs(a - b - base) < 1000 for a, b in zip(starts(aligned), starts(true), strict=True))


def test_a_clock_that_drifts_is_told_and_taken_off_only_when_asked(tmp_path: Path) -> None:
    true = run([tap(tmp_path / "lab.pcap")])
    begun = min(starts(true))
    taps = [tmp_path / "lab.pcap", tap(tmp_path / "fast.pcap", MSA, MX, clock=lambda ts: ts + 50_000_000 + (ts - begun) // 400)]
    left, aligned = run(taps), run(taps, align=True)
    (said,) = named(left, "clock_offset")
    found = re.search(r"drifting by ([+-][\d.]+) ppm", said)
    assert found is not None and abs(float(found[1]) - 2500) < 50
    assert starts(left) == starts(true)
    assert all(abs(a - b) < 100_000 for a, b in zip(starts(aligned), starts(true), strict=True))
    only_fast = run([taps[1]])
    assert any(a != b for a, b in zip(starts(only_fast), starts(true), strict=False))


@pytest.mark.parametrize("ahead", [60 * SECOND, -60 * SECOND])
def test_a_file_that_shows_a_connection_again_is_another_taps_whenever_it_begins(tmp_path: Path, ahead: int) -> None:
    true = run([tap(tmp_path / "lab.pcap")])
    reader = tap(tmp_path / "reader.pcap", "10.2.0.71")  # few of the lab's connections
    both = run([reader, tap(tmp_path / "late.pcap", clock=lambda ts: ts + ahead)])
    assert counts(both) == counts(true)
    assert named(both, "clock_offset")


def test_a_third_tap_tells_that_two_clocks_are_apart(tmp_path: Path) -> None:
    true = run([tap(tmp_path / "mx.pcap", MX), tap(tmp_path / "reader.pcap", "10.2.0.71"), tap(tmp_path / "msa.pcap", MSA)])
    late = tap(tmp_path / "late.pcap", MSA, clock=lambda ts: ts + 30 * SECOND)  # begins when both others are over
    left = run([tmp_path / "mx.pcap", tmp_path / "reader.pcap", late])
    assert counts(left) == counts(true)
    assert served(left) == served(true)
    (said,) = named(left, "clock_offset")
    assert re.search(r"[+-](30\.00|29\.99)", said)


def test_files_of_two_hosts_are_two_taps_though_one_begins_when_the_other_is_over(tmp_path: Path) -> None:
    true = run([tap(tmp_path / "lab.pcap")])
    early = tap(tmp_path / "early.pcap", MSA, clock=lambda ts: ts - 1000 * SECOND)
    reader = tap(tmp_path / "reader.pcap", "10.2.0.71")  # shows no connection of the MSA's
    lab = tap(tmp_path / "late.pcap", clock=lambda ts: ts + 60 * SECOND)
    together = run([early, reader, lab])
    assert counts(together) == counts(true)
    assert served(together) == served(true)
    assert sorted(round(float(said.split()[2])) for said in named(together, "clock_offset")) == [1000, 1060]


def test_the_tap_that_shows_more_is_believed(tmp_path: Path) -> None:
    true = run([tap(tmp_path / "mx.pcap", MX)])
    lossy = tap(tmp_path / "lossy.pcap", MX, drop=lambda n: n % 5 == 3)
    for order in ([lossy, tmp_path / "mx.pcap"], [tmp_path / "mx.pcap", lossy]):
        both = run(order)
        assert [row.sha256 for row in both.tables.rows("hops")] == [row.sha256 for row in true.tables.rows("hops")]
        assert both.tables.count("sessions") == true.tables.count("sessions")


def test_files_of_a_ring_are_one_tap(tmp_path: Path) -> None:
    whole = tap(tmp_path / "whole.pcap")
    octets = whole.read_bytes()
    cuts, at = [], 24
    while at < len(octets):
        cuts.append(at)
        at += 16 + struct.unpack("<I", octets[at + 8 : at + 12])[0]
    half = cuts[len(cuts) // 2]
    (tmp_path / "ring1.pcap").write_bytes(octets[:half])
    (tmp_path / "ring2.pcap").write_bytes(octets[:24] + octets[half:])
    ring = run([tmp_path / "ring1.pcap", tmp_path / "ring2.pcap"])
    assert counts(ring) == counts(run([whole]))
    assert not named(ring, "seen_twice") and not named(ring, "clock_offset")
