"""Network namespaces that a test makes and takes away: one namespace, two ends of a wire (veth)."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NEAR, FAR = "mh0", "mh1"
"""What is sent at FAR arrives at NEAR."""

REPLAY = """
import socket, sys, time
from analyzer.limits import Limits
from analyzer.wire import files
from analyzer.wire.types import SourceInfo
path, interface, pace = sys.argv[1], sys.argv[2], float(sys.argv[3])
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((interface, 0))
begun = first = None
for frames in files.read(path, Limits(), SourceInfo(path)):
    for ts, at, n in zip(frames.ts.tolist(), frames.offset.tolist(), frames.length.tolist()):
        if begun is None:
            begun, first = time.monotonic(), ts
        wait = begun + (ts - first) / 1e9 * pace - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        out.send(bytes(frames.data[at:at + n]))
"""


def why_not() -> str | None:
    """Why no namespace can be made here; None when one can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    probe = f"mailhop-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return None


class Wire:
    """A namespace with a wire in it, and the programs that run there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.running: list[subprocess.Popen[Any]] = []

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.name, *words], check=True, capture_output=True)

    def start(self, *command: str, **more: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(["ip", "netns", "exec", self.name, *command], **more)
        self.running.append(process)
        return process

    def mailhop(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """A running mailhop, ready to capture."""
        process = self.start(
            sys.executable, "-m", "analyzer", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )
        assert process.stderr is not None
        said = ""
        while "capturing on" not in said:
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        return process

    def replay(self, path: Path, pace: float = 1.0, interface: str = FAR) -> None:
        """Send a capture's frames; `pace` 1 is as they were captured, 0 as fast as can be."""
        sender = self.start(sys.executable, "-c", REPLAY, str(path), interface, str(pace))
        assert sender.wait(120) == 0


@contextmanager
def wire() -> Iterator[Wire]:
    """A namespace of this test's own; everything in it goes with it."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Wire(f"mailhop-{os.getpid()}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.ip("link", "add", NEAR, "mtu", "65535", "type", "veth", "peer", "name", FAR, "mtu", "65535")
        for setting in ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"):
            subprocess.run(["ip", "netns", "exec", made.name, "sysctl", "-qw", setting], check=False, capture_output=True)
        for name in (NEAR, FAR, "lo"):
            made.ip("link", "set", name, "up")
        yield made
    finally:
        for process in made.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        subprocess.run(["ip", "netns", "del", made.name], check=False)
