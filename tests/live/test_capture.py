"""Live capture on a wire of the test's own: what it tells is what the file tells."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import FAR, NEAR, Wire, wire

from analyzer.limits import Limits
from analyzer.pipeline import run
from analyzer.tables import TABLES
from analyzer.tables.export import export
from analyzer.wire import dumpcap, files
from analyzer.wire.types import SourceInfo

CAPTURES = Path(__file__).resolve().parents[2] / "captures"
STORY = CAPTURES / "story.pcapng"
BACKENDS = [
    pytest.param("dumpcap", marks=pytest.mark.skipif(dumpcap.executable() is None, reason="dumpcap is not installed")),
    "raw",
]
PATIENCE = 30
"""Seconds after which a test gives up waiting."""


@pytest.fixture
def cable() -> Iterator[Wire]:
    with wire() as made:
        yield made


def octets(path: Path) -> list[bytes]:
    """The frames of a capture."""
    found = []
    for frames in files.read(path, Limits(), SourceInfo(str(path))):
        view = memoryview(frames.data)
        found += [bytes(view[a : a + n]) for a, n in zip(frames.offset.tolist(), frames.length.tolist(), strict=True)]
    return found


def rows(directory: Path, table: str, kind: str = ".jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / f"{table}{kind}").read_text().splitlines()]


def timeless(directory: Path) -> dict[str, list[dict[str, object]]]:
    """The tables without their times and source; ids, which are digests of times too, by their order of appearance."""
    told = {name: rows(directory, name) for name in TABLES}
    # the servers wrote the time of the recording, not of the replay
    told["anomalies"] = [row for row in told["anomalies"] if row["name"] != "received_time_odd"]
    names: dict[str, str] = {}
    for table, column in (("sessions", "session_id"), ("messages", "trace_id")):
        for row in told[table]:
            names.setdefault(str(row[column]), f"{column} {len(names)}")
    found: dict[str, list[dict[str, object]]] = {}
    for table, lines in told.items():
        kept = []
        for row in lines:
            timed = [name for name in row if name.startswith("ts") or name.endswith("_s") or name == "source"]
            rest = {
                name: names.get(value, value) if isinstance(value, str) else value
                for name, value in row.items()
                if name not in timed
            }
            if "detail" in rest:
                rest["detail"] = re.sub(r"[-+]?\d+(\.\d+)? ?(ms|s|min|h)\b", "TIME", str(rest["detail"]))
            kept.append(rest)
        found[table] = sorted(kept, key=lambda row: json.dumps(row, sort_keys=True))
    return found


def wait_for(what: object, true: object) -> None:
    until = time.monotonic() + PATIENCE
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.05)


def ended(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_wire_tells_what_the_file_tells(cable: Wire, tmp_path: Path, backend: str) -> None:
    live = cable.mailhop(
        "capture", "-i", NEAR, "--backend", backend, "-o", str(tmp_path / "live"), "-w", str(tmp_path / "live.pcapng")
    )
    cable.replay(STORY)
    status, out, err = ended(live)
    assert status == 0
    assert "328 packets, 0 dropped" in err
    assert out.count("  message delivered") == 2
    assert len([line for line in out.splitlines() if "<story-1@example.org>" in line and "accepted 250" in line]) == 3
    export(run([STORY]).tables, tmp_path / "file")
    assert timeless(tmp_path / "live") == timeless(tmp_path / "file")
    assert octets(tmp_path / "live.pcapng") == octets(STORY)
    export(run([tmp_path / "live.pcapng"]).tables, tmp_path / "again")  # and to the nanosecond, what its own file tells
    for table in TABLES:
        assert rows_without_source(tmp_path / "live", table) == rows_without_source(tmp_path / "again", table), table
    assert not list((tmp_path / "live").glob("*.part.*")) + list((tmp_path / "live").glob("*.open.*"))


def rows_without_source(directory: Path, table: str) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "source"} for row in rows(directory, table)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_of_the_loopback_interface_count_once(cable: Wire, tmp_path: Path, backend: str) -> None:
    file = tmp_path / "lo.pcapng"
    live = cable.mailhop("capture", "-i", "lo", "-f", "udp port 53", "--backend", backend, "-w", str(file))
    send = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); [s.sendto(b'%d' % i, ('127.0.0.1', 53)) for i in range(50)]"
    assert cable.start("python3", "-c", send).wait(PATIENCE) == 0
    assert ended(live)[0] == 0
    assert len(octets(file)) == 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_tagged_frames_are_captured_with_their_tags(cable: Wire, tmp_path: Path, backend: str) -> None:
    tagged = tmp_path / "tagged.pcap"
    plain = [frame for frame in octets(STORY) if frame[12:14] in (b"\x08\x00", b"\x86\xdd")]
    tagged_frames = [f[:12] + b"\x81\x00\x00\x07" + f[12:] for f in plain[:40]]
    tagged_frames += [f[:12] + b"\x88\xa8\x00\x05\x81\x00\x00\x07" + f[12:] for f in plain[40:80]]
    write_pcap(tagged, tagged_frames)
    file = tmp_path / "vlan.pcapng"
    live = cable.mailhop("capture", "-i", NEAR, "--backend", backend, "-w", str(file))
    cable.replay(tagged, 0)
    assert ended(live)[0] == 0
    assert octets(file) == tagged_frames


def write_pcap(path: Path, frames: list[bytes]) -> None:
    head = (
        (0xA1B23C4D).to_bytes(4, "little") + b"\x02\x00\x04\x00" + bytes(8) + (262144).to_bytes(4, "little") + b"\x01\x00\x00\x00"
    )
    body = b"".join(
        (1_700_000_000).to_bytes(4, "little") + i.to_bytes(4, "little") + len(f).to_bytes(4, "little") * 2 + f
        for i, f in enumerate(frames)
    )
    path.write_bytes(head + body)


def test_two_interfaces_are_one_capture(cable: Wire, tmp_path: Path) -> None:
    file = tmp_path / "both.pcapng"
    live = cable.mailhop("capture", "-i", NEAR, "-i", "lo", "-f", "udp", "-w", str(file))
    send = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'one', ('127.0.0.1', 9))"
    assert cable.start("python3", "-c", send).wait(PATIENCE) == 0
    udp = tmp_path / "udp.pcap"
    write_pcap(udp, [frame for frame in octets(STORY) if frame[12:14] == b"\x08\x00" and frame[23] == 17][:5])
    cable.replay(udp, 0)
    assert ended(live)[0] == 0
    assert len(octets(file)) == 6


def test_killed_it_leaves_tables_and_a_capture_that_can_be_read(cable: Wire, tmp_path: Path) -> None:
    place, file = tmp_path / "live", tmp_path / "live.pcapng"
    live = cable.mailhop("capture", "-i", NEAR, "-o", str(place), "-w", str(file))
    cable.replay(STORY, 0.1)

    def told() -> bool:
        return (place / "messages.open.jsonl").exists() and len(rows(place, "messages", ".open.jsonl")) == 2

    wait_for("both messages in the tables", told)
    wait_for("the last frame in the file", lambda: len(octets(file)) == 328)
    live.kill()
    live.wait()
    assert octets(file) == octets(STORY)
    so_far = {table: rows(place, table, ".part.jsonl") + rows_if_there(place, table) for table in TABLES}
    assert {m["outcome"] for m in so_far["messages"]} == {"delivered"}
    assert len(so_far["hops"]) == 9
    assert so_far["commands"]
    assert so_far["dns"]
    again = cable.mailhop("capture", "-i", NEAR, "-o", str(place))  # the next run loses nothing of it
    assert ended(again)[0] == 0
    (aside,) = place.glob("unfinished-*")
    assert rows(aside, "messages", ".open.jsonl") == so_far["messages"]


def rows_if_there(directory: Path, table: str) -> list[dict[str, object]]:
    return rows(directory, table, ".open.jsonl") if (directory / f"{table}.open.jsonl").exists() else []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(cable: Wire, tmp_path: Path, number: int) -> None:
    live = cable.mailhop("capture", "-i", NEAR, "-o", str(tmp_path))
    status, _, err = ended(live, number)
    assert status == 0
    assert "0 packets, 0 dropped" in err
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.jsonl" for name in TABLES}


def test_hangup_begins_new_files(cable: Wire, tmp_path: Path) -> None:
    place, file = tmp_path / "live", tmp_path / "live.pcapng"
    live = cable.mailhop("capture", "-i", NEAR, "-o", str(place), "-w", str(file))
    cable.replay(STORY, 0)
    wait_for("the frames", lambda: len(octets(file)) == 328)
    live.send_signal(signal.SIGHUP)
    wait_for("a second file", lambda: len(list(tmp_path.glob("live_00002_*.pcapng"))) == 1)
    wait_for("tables of their own", lambda: list(place.glob("*Z/commands.jsonl")))
    assert ended(live)[0] == 0
    assert octets(file) == octets(STORY)
    (before,) = place.glob("*Z")
    assert len(rows(before, "commands")) + len(rows(place, "commands")) == run([STORY]).tables.count("commands")
    assert len(rows(place, "messages")) == 2


def test_a_ring_keeps_the_latest_files(cable: Wire, tmp_path: Path) -> None:
    live = cable.mailhop("capture", "-i", NEAR, "-w", str(tmp_path / "r.pcapng"), "-b", "packets:100", "-b", "files:2")
    cable.replay(STORY, 0)
    assert ended(live)[0] == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:8] for name in names] == ["r_00003_", "r_00004_"]
    assert [frame for name in names for frame in octets(tmp_path / name)] == octets(STORY)[200:]


@pytest.mark.parametrize(("condition", "packets"), [("packets:100", 100), ("messages:1", None), ("duration:1", None)])
def test_it_stops_by_itself(cable: Wire, tmp_path: Path, condition: str, packets: int | None) -> None:
    file = tmp_path / "some.pcapng"
    live = cable.mailhop("capture", "-i", NEAR, "-w", str(file), "-a", condition)
    cable.replay(STORY, 0.05)
    live.communicate(timeout=PATIENCE)
    assert live.returncode == 0
    assert packets is None or len(octets(file)) == packets


def test_a_wire_that_goes_away_ends_it_with_its_tables(cable: Wire, tmp_path: Path) -> None:
    live = cable.mailhop("capture", "-i", NEAR, "-o", str(tmp_path))
    cable.replay(STORY, 0)
    wait_for("the messages", (tmp_path / "messages.open.jsonl").exists)
    cable.ip("link", "del", FAR)
    _, err = live.communicate(timeout=PATIENCE)
    assert live.returncode == 1
    assert "gone or down" in err
    assert len(rows(tmp_path, "messages")) == 2


def test_a_full_disk_is_said_and_costs_nothing_captured(cable: Wire, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "none", str(small)], check=False, capture_output=True
    ).returncode:
        pytest.skip("no small file system can be made here")
    try:
        live = cable.mailhop("capture", "-i", NEAR, "-w", str(small / "x.pcapng"), "-o", str(tmp_path / "tables"))
        cable.replay(STORY, 0)
        _, err = live.communicate(timeout=PATIENCE)
        assert live.returncode == 1
        assert "No space left on device" in err
        assert "make room" in err
        kept = octets(small / "x.pcapng")
        assert 0 < len(kept) < 328
        assert kept == octets(STORY)[: len(kept)]
        assert rows(tmp_path / "tables", "commands")
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_program_sees_it_grow(cable: Wire, tmp_path: Path) -> None:
    program = f"""
import sys, time, analyzer
with analyzer.capture({NEAR!r}) as live:
    print("capturing on", live.info.name, file=sys.stderr, flush=True)
    sizes = []
    until = time.monotonic() + {PATIENCE}
    while time.monotonic() < until and (not sizes or sizes[-1] != (2, 9)):
        now = live.analysis
        sizes.append((len(now.messages), len(now.hops)))
        time.sleep(0.1)
print(sizes[0], sizes[-1], len(live.analysis.messages), sorted(set(live.analysis.messages.outcome)))
"""
    import sys

    process = cable.start(sys.executable, "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "capturing on" in process.stderr.readline()
    cable.replay(STORY, 0.1)
    out, err = process.communicate(timeout=2 * PATIENCE)
    assert out == "(0, 0) (2, 9) 2 ['delivered']\n", err
