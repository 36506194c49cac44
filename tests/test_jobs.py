"""Several processes tell what one tells, octet for octet."""

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from analyzer import shards
from analyzer.errors import CaptureError, MailhopError
from analyzer.limits import Limits
from analyzer.pipeline import Input, run
from analyzer.tables import TABLES
from analyzer.tables.export import export

ROOT = Path(__file__).resolve().parents[1]
STORY = ROOT / "captures" / "story.pcapng"
LAB = ROOT.parent / "shared" / "lab" / "captures"

pytestmark = pytest.mark.skipif(not shards.possible, reason="this system cannot fork")


def tables(inputs: Sequence[Input], place: Path, jobs: int, limits: Limits | None = None) -> dict[str, bytes]:
    export(run(inputs, jobs=jobs, limits=limits).tables, place / str(jobs))
    return {name: (place / str(jobs) / f"{name}.jsonl").read_bytes() for name in TABLES}


def knocking(ports: Sequence[int]) -> bytes:
    """A capture of SYNs that nobody answers, one a millisecond, and of some that are refused."""
    capture = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for n, port in enumerate(ports):
        client, server = 0x0A000001 + n * 7, 0x0A010001 + n % 3
        for flags, ends in ((2, (client, 40000 + n, server, port)), (20, (server, port, client, 40000 + n)))[: 1 + n % 2]:
            src, sport, dst, dport = ends
            tcp = struct.pack("!HHIIBBHHH", sport, dport, 0 if flags == 20 else n, n + 1, 0x50, flags, 1000, 0, 0)
            ip = struct.pack("!BBHHHBBHII", 0x45, 0, 40, 0, 0, 64, 6, 0, src, dst)
            frame = bytes(12) + b"\x08\x00" + ip + tcp
            capture += struct.pack("<IIII", 1_790_000_000 + n, flags, len(frame), len(frame)) + frame
    return capture


@pytest.mark.parametrize("jobs", [2, 3])
def test_the_story(tmp_path: Path, jobs: int) -> None:
    one, several = (tables([str(STORY)], tmp_path, n) for n in (1, jobs))
    assert one["hops"].count(b"\n") > 1
    assert one == several


@pytest.mark.parametrize("scenario", ["bounces", "fork_bcc", "greylist", "failures", "tls_keys", "smtp_extensions"])
def test_a_whole_lab(tmp_path: Path, scenario: str) -> None:
    captures = sorted(map(str, (LAB / scenario).glob("bridge.pcap*")))
    if not captures:
        pytest.skip("no lab captures here")
    one = tables(captures, tmp_path, 1)
    assert one["hops"].count(b"\n") > 1
    assert one == tables(captures, tmp_path, 2)


def test_messages_told_in_parts_are_told_by_several(tmp_path: Path) -> None:
    """In parts of two crossings: each process tells its share of them."""
    captures = sorted(map(str, (LAB / "fork_bcc").glob("bridge.pcap*")))
    if not captures:
        pytest.skip("no lab captures here")
    limits = Limits(story_sightings=2, story_part=2)
    assert tables(captures, tmp_path, 1) == tables(captures, tmp_path, 2, limits)


def test_small_batches_and_runs_of_rows(tmp_path: Path) -> None:
    limits = Limits(batch_bytes=1 << 16, spool_rows=7)
    assert tables([str(STORY)], tmp_path, 1) == tables([str(STORY)], tmp_path, 2, limits)


def test_open_files_and_pipes_go_to_all(tmp_path: Path) -> None:
    whole = STORY.read_bytes()
    one = tables([io.BytesIO(whole)], tmp_path, 1)
    assert one == tables([io.BytesIO(whole)], tmp_path, 2)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.fork()
    if writer == 0:
        fifo.write_bytes(whole)
        os._exit(0)
    piped = tables([str(fifo)], tmp_path, 2)
    os.waitpid(writer, 0)
    assert {name: rows.replace(str(fifo).encode(), b"-") for name, rows in piped.items()} == one


@pytest.mark.parametrize("listed", [5000, 5])
def test_attempts_are_counted_over_all_and_the_earliest_listed(tmp_path: Path, listed: int) -> None:
    capture = tmp_path / "syns.pcap"
    capture.write_bytes(knocking([25, 587, 80, 143, 25] * 8))
    limits = Limits(attempts=listed)
    one, two = (tables([str(capture)], tmp_path, n, limits) for n in (1, 2))
    assert one["anomalies"].count(b"connect_unanswered") == 1
    assert one == two


def test_what_cannot_be_read_is_said_once_and_nothing_is_left_running(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no such file"):
        run([str(STORY), str(tmp_path / "none.pcap")], jobs=2)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_process_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.Outbox, "finish", lambda self, words: os._exit(9))
    with pytest.raises(MailhopError, match="--jobs failed"):
        run([str(STORY)], jobs=2)
