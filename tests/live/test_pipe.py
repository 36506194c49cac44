"""Captures that others make: standard input and FIFOs; and what is said of what cannot be captured."""

import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.live import parse_until
from analyzer.pipeline import run
from analyzer.tables import TABLES
from analyzer.tables.export import export
from analyzer.wire import files
from analyzer.wire.live import default_filters, filter_error
from analyzer.wire.ring import CaptureFile, RingRule, parse_rule
from analyzer.wire.types import Frames, SourceInfo

STORY = Path(__file__).resolve().parents[2] / "captures" / "story.pcapng"


def mailhop(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "analyzer", *words], capture_output=True, text=True, timeout=60, check=False, **more
    )  # type: ignore[call-overload,no-any-return]


def same_tables(one: Path, other: Path) -> None:
    for table in TABLES:
        left, right = ((place / f"{table}.jsonl").read_text() for place in (one, other))
        assert left.replace('"source":"fifo"', '"source":"-"') == right, table


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("file")
    with STORY.open("rb") as file:
        export(run([io.BytesIO(file.read())]).tables, place)  # a source without a name is called "-"
    return place


def test_standard_input_gives_the_tables_of_the_file(tmp_path: Path, from_file: Path) -> None:
    with STORY.open("rb") as file:
        done = mailhop("capture", "-i", "-", "-o", str(tmp_path), stdin=file)
    assert done.returncode == 0, done.stderr
    same_tables(tmp_path, from_file)


def test_a_fifo_that_trickles_does_too(tmp_path: Path, from_file: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    octets = STORY.read_bytes()

    def trickle() -> None:
        with open(tmp_path / "fifo", "wb", buffering=0) as fifo:
            for at in range(0, len(octets), 7001):
                fifo.write(octets[at : at + 7001])

    writer = threading.Thread(target=trickle)
    writer.start()
    done = mailhop("capture", "-i", "fifo", "-o", "tables", cwd=tmp_path)
    writer.join(30)
    assert done.returncode == 0, done.stderr
    same_tables(tmp_path / "tables", from_file)


def test_a_pipe_that_is_cut_off_is_damage(tmp_path: Path) -> None:
    done = mailhop("capture", "-i", "-", "-o", str(tmp_path), input=None, stdin=cut_story(tmp_path).open("rb"))
    assert done.returncode == 1
    assert "cut at byte" in done.stderr
    assert (tmp_path / "hops.jsonl").read_text().count("story-1") > 0


def cut_story(tmp_path: Path) -> Path:
    path = tmp_path / "cut.pcapng"
    path.write_bytes(STORY.read_bytes()[:30_001])
    return path


def test_batches_of_a_slow_pipe_keep_their_octets() -> None:
    """A batch that goes out because the pipe paused must not cost the octets of the one after it."""
    reads, writes = os.pipe()
    size, count = 60_000, 150
    frames = [bytes([i]) * size for i in range(count)]
    head = (
        (0xA1B23C4D).to_bytes(4, "little") + b"\x02\x00\x04\x00" + bytes(8) + (262144).to_bytes(4, "little") + b"\x01\x00\x00\x00"
    )
    records = [bytes(8) + size.to_bytes(4, "little") * 2 + frame for frame in frames]

    def write() -> None:
        with open(writes, "wb", buffering=0) as pipe:
            pipe.write(head)
            for i, record in enumerate(records):
                pipe.write(record)
                if i % 30 == 10:
                    threading.Event().wait(0.4)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    with open(reads, "rb", buffering=0) as pipe:
        for batch in files.read(pipe, Limits(batch_bytes=8 << 20), SourceInfo("-")):
            view = memoryview(batch.data)
            seen += [bytes(view[a : a + n]) for a, n in zip(batch.offset.tolist(), batch.length.tolist(), strict=True)]
    writer.join(30)
    assert seen == frames


def test_no_such_interface_names_the_nearest() -> None:
    done = mailhop("capture", "-i", "lp")
    assert done.returncode == 2
    assert done.stderr == "mailhop: error: no interface 'lp'; did you mean lo?\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-i", "lo", "-a", "minutes:1"), "-a minutes:1 is no stop condition"),
        (("-i", "lo", "-b", "filesize:1000"), "-b without -w writes nothing"),
        (("-i", "lo", "-w", "/nonexistent/x.pcapng", "-b", "files:3"), "needs to know when a file is full"),
        (("-i", "-", "-i", "lo"), "cannot be captured together"),
        ((), "'-i'"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(words: tuple[str, ...], said: str) -> None:
    done = mailhop("capture", *words, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may try to capture")
@pytest.mark.parametrize("backend", ["auto", "raw"])
def test_a_display_filter_is_known_for_one(backend: str) -> None:
    done = mailhop("capture", "-i", "lo", "-f", 'smtp.req.command == "MAIL"', "--backend", backend)
    assert done.returncode == 2
    assert "that is a display filter" in done.stderr
    assert 'smtp.req.command == "MAIL"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give up its rights")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
@pytest.mark.parametrize("backend", ["auto", "raw"])
def test_without_rights_it_says_how_to_get_them(backend: str) -> None:
    command = ["setpriv", "--bounding-set", "-net_raw,-net_admin", sys.executable, "-m", "analyzer", "capture", "-i", "lo"]
    done = subprocess.run([*command, "--backend", backend], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "no permission to capture on lo" in done.stderr
    assert "capture -i -" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["tcp and and", "port smtpp"])
def test_a_mistyped_filter_is_echoed(text: str) -> None:
    error = filter_error(text, "syntax error")
    assert repr(text) in error.what
    assert "pcap-filter" in error.fix
    assert "display filter" not in error.fix


def test_the_default_filter_names_every_mail_port() -> None:
    with_tags, plain = default_filters([25, 993])
    assert plain == "tcp port 25 or tcp port 993 or port 53 or (ip[6:2] & 0x1fff != 0) or (ip6[6] = 44)"
    assert with_tags.count(plain) == 3


def test_conditions() -> None:
    assert parse_rule(("filesize:5", "files:3")) == RingRule(octets=5000, files=3)
    assert parse_until(("duration:0.5",)).seconds == 0.5
    with pytest.raises(CaptureError, match="-a packets:0"):
        parse_until(("packets:0",))


def test_a_ring_file_is_never_larger_than_asked(tmp_path: Path) -> None:
    file = CaptureFile(tmp_path / "r.pcapng", RingRule(octets=8000))
    whole: list[Frames] = []
    for frames in files.read(STORY, Limits(), SourceInfo("-")):
        whole.append(frames)
        file.write(frames)
    file.close()
    made = sorted(tmp_path.iterdir())
    assert len(made) > 3
    assert all(path.stat().st_size <= 8000 for path in made)
    assert sum(info_of(path).frames for path in made) == 328


def info_of(path: Path) -> SourceInfo:
    info = SourceInfo(str(path))
    for _ in files.read(path, Limits(), info):
        pass
    assert not info.damage
    return info
