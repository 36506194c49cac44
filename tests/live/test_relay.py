"""Between dumpcap and the analysis: whoever captures never waits, and nothing comes out otherwise than it went in."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.wire import relay

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes that are waited for are POSIX's")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 60)), max_size=40))
def test_octets_come_out_as_they_went_in(steps: list[tuple[bytes, int]]) -> None:
    """Memory and files of a few octets, so that everything is used."""
    before = relay._MEMORY, relay._FILE, relay._PIECE
    relay._MEMORY, relay._FILE, relay._PIECE = 30, 50, 16
    try:
        waiting = relay.Waiting(None)
        went_in = came_out = b""

        def take(most: int) -> bytes:
            octets = bytes(waiting.first()[:most])
            waiting.gone(len(octets))
            return octets

        for octets, most in steps:
            waiting.add(octets)
            went_in += octets
            came_out += take(most) if most else b""
            assert len(waiting) == len(went_in) - len(came_out)
        while len(waiting):
            came_out += take(7)
        assert came_out == went_in
    finally:
        relay._MEMORY, relay._FILE, relay._PIECE = before


def test_who_captures_does_not_wait_for_who_analyzes(tmp_path: Path) -> None:
    """All of it is written before any of it is read; more than memory takes goes through the file."""
    command = [sys.executable, "-I", "-S", relay.__file__, str(1 << 30), str(tmp_path)]
    octets = b"".join(os.urandom(1 << 20) for _ in range(20 + relay._MEMORY // (1 << 20)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        view = memoryview(octets)
        while view:
            view = view[process.stdin.write(view) :]
        process.stdin.close()
        read = b"".join(iter(lambda: os.read(process.stdout.fileno(), 1 << 20), b""))
    assert read == octets
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_whoever_reads() -> None:
    command = [sys.executable, "-I", "-S", relay.__file__, str(1 << 20)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.close()
        process.stdin.write(b"x")
        assert process.wait(30) == 0


def test_no_more_waits_than_may(tmp_path: Path) -> None:
    """Beyond the bound whoever writes has to wait, and what was written still arrives."""
    command = [sys.executable, "-I", "-S", relay.__file__, str(1 << 20), str(tmp_path)]
    octets = os.urandom(8 << 20)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        pipe = process.stdin

        def write() -> None:
            view = memoryview(octets)
            while view:
                view = view[pipe.write(view) :]
            pipe.close()

        writer = threading.Thread(target=write)
        writer.start()
        read = b""
        while piece := process.stdout.read(1 << 16):
            read += piece
        writer.join(30)
    assert read == octets
