"""Capture by dumpcap, which has the rights, the buffers and the counters; its pcapng comes through a pipe.

A process between takes it at once, whatever this one is busy with (`relay.py`): dumpcap never waits, so the kernel drops nothing.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO

from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.scratch import scratch
from analyzer.wire import files, relay
from analyzer.wire.types import Frames, SourceInfo

_PATIENCE = 3.0
"""Seconds that dumpcap is given to end when asked to."""
_QUIET = 0.3
"""Seconds without a packet after which the kernel holds none (dumpcap asks it four times a second)."""
_DRAIN = 1.5
"""Seconds waited for that at most."""
_COUNTERS = re.compile(r"Packets received/dropped on interface '.*?': (\d+)/(\d+)")
_NOISE = ("Capturing on", "File:", "Packets captured", "Packets received", "cap_set_proc", "See the User's Guide")
_GONE = (
    "no longer running",
    "no longer attached",
    "disappeared",
    "interface went down",
    "network is down",
    "no such device exists",
)


class BadFilter(CaptureError):
    """The capture filter is none; `what` is libpcap's word on it."""


def executable() -> str | None:
    """Where dumpcap is, if it may be run by this user."""
    path = shutil.which("dumpcap")
    return path if path is not None and os.access(path, os.X_OK) else None


def interfaces(path: str) -> list[str]:
    """Names of what dumpcap can capture from."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([path, "-D"], capture_output=True, text=True, timeout=5, check=False).stdout
        return [line.split(". ", 1)[1].split(" ", 1)[0] for line in said.splitlines() if ". " in line]
    return []


class Dumpcap:
    """A running dumpcap.  `frames` gives what it captures until `stop`, or until it ends by itself (`broken` says why)."""

    kind = "dumpcap"

    def __init__(
        self, path: str, wanted: Sequence[tuple[str, str]], promiscuous: bool, limits: Limits, directory: str | None = None
    ) -> None:
        """`wanted`: interface and filter, "" for none.  `directory`: where octets may wait; None: where temporary files go."""
        self.name = "+".join(name for name, _ in wanted)
        self.broken: CaptureError | None = None
        self._limits = limits
        self._path = path
        self._stopped = False
        self._log = scratch()
        command = [path, "-q", "-n", "-B", str(max(limits.live_kernel_bytes >> 20, 1))]
        for name, expression in wanted:
            command += ["-i", name]
            command += ["-f", expression] if expression else []
            command += [] if promiscuous else ["-p"]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:  # should this process be killed, dumpcap shall not wait for a next packet to notice
            command = [setpriv, "--pdeathsig", "TERM", *command]
        try:
            self._process = subprocess.Popen(
                [*command, "-w", "-"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}", "mailhop doctor says what to do") from None
        assert self._process.stdout is not None
        _widen(self._process.stdout)
        self._pipe: IO[bytes] = self._process.stdout
        self._relay: subprocess.Popen[bytes] | None = None
        if os.name == "posix":
            self._between(limits.live_relay_bytes, directory)

    def _between(self, most: int, directory: str | None) -> None:
        """Have a process between that takes everything at once."""
        command = [sys.executable, "-I", "-S", relay.__file__, str(most), *([directory] if directory is not None else [])]
        with suppress(OSError):
            self._relay = subprocess.Popen(
                command, stdin=self._pipe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0
            )
            assert self._relay.stdout is not None
            self._pipe.close()
            self._pipe = self._relay.stdout
            _widen(self._pipe)

    def frames(self, info: SourceInfo) -> Iterator[Frames]:
        """What is captured, a batch at a time.  Raises CaptureError when the capture cannot begin."""
        try:
            yield from files.read(self._pipe, self._limits, info, name=self.name)  # type: ignore[arg-type]
        except CaptureError:
            if not self._stopped:  # nothing came: it says why
                self._ended()
                raise self._error() from None
        self._ended()
        if not self._stopped:
            self.broken = self._error()
        if self._stopped or self.broken:
            info.damage.clear()  # an end in the middle of a record is no damage of what was captured before

    def stop(self) -> None:
        """End the capture; what is on its way still comes out of `frames`."""
        if not self._stopped:
            self._stopped = True
            threading.Thread(target=self._end_when_quiet, name="mailhop-stop", daemon=True).start()

    def _end_when_quiet(self) -> None:
        """dumpcap throws away what the kernel still holds: let that come first, as long as it does not take too long."""
        until = time.monotonic() + _DRAIN
        with suppress(OSError, ValueError):
            while time.monotonic() < until and select.select([self._pipe], [], [], _QUIET)[0]:
                time.sleep(_QUIET / 10)
        with suppress(OSError):
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the capture now."""
        self._stopped = True
        with suppress(OSError):
            self._process.kill()
            if self._relay is not None:
                self._relay.kill()

    def drops(self) -> int:
        """Packets that the kernel or dumpcap had no room for; known when the capture has ended."""
        return sum(int(dropped) for _, dropped in _COUNTERS.findall(self._said()))

    def _ended(self) -> None:
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe.close()
        if self._relay is not None:
            self._relay.wait()

    def _said(self) -> str:
        with suppress(OSError, ValueError):
            self._log.seek(0)
            return self._log.read(1 << 16).decode("utf-8", "replace")
        return ""

    def _error(self) -> CaptureError:
        """What dumpcap complained about, and what to do."""
        said = self._said()
        low = said.lower()
        lines = [line.strip() for line in said.splitlines() if line.strip() and not any(noise in line for noise in _NOISE)]
        what = " ".join(lines[:2]).removeprefix("dumpcap: ") or f"dumpcap ended (status {self._process.returncode})"
        if "permission" in low or "operation not permitted" in low:
            return no_permission(self.name, self._path)
        if "valid capture filter" in low or "no vlan support" in low:
            reason = re.search(r"\((.*)\)", said)
            return BadFilter(reason[1] if reason else what)
        if "is not up" in low:
            return CaptureError(f"{self.name} is down", f"sudo ip link set {self.name} up")
        if any(words in low for words in _GONE):
            return CaptureError(f"{self.name} is gone or down; the capture ends", "capture again when it is back")
        return CaptureError(what)


def no_permission(name: str, path: str | None = None) -> CaptureError:
    """The error of who may not capture: what to do once, and what to do instead."""
    dumpcap = path or shutil.which("dumpcap")
    if dumpcap is None:
        once = "install dumpcap (apt install wireshark-common)"
    elif not os.access(dumpcap, os.X_OK):
        once = 'join the group that may run dumpcap: sudo usermod -aG wireshark "$USER", then log in again'
    else:
        once = f"once: sudo setcap cap_net_raw,cap_net_admin=ep {dumpcap}"
    else_ = f"or pipe it in: sudo tcpdump -U -i {name} -w - | mailhop capture -i -  (from elsewhere: ssh HOST sudo tcpdump ...)"
    return CaptureError(f"no permission to capture on {name}", f"{once}; {else_}")


def _widen(pipe: object) -> None:
    """A pipe that holds a megabyte lets this process be busy a moment longer."""
    with suppress(ImportError, OSError, AttributeError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)  # type: ignore[attr-defined]
