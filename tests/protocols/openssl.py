"""Two ends of TLS by the openssl command, with everything between them written down: what Python's ssl does not negotiate.

`Ends` starts a server and clients; each client's connection goes through a relay that keeps what it carries.
"""

import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Turn = tuple[str, bytes]
HELLO = (("S", b"220 mx.test ESMTP\r\n"), ("C", b"EHLO client.test\r\n"), ("S", b"250 mx.test\r\n"))
_PATIENCE = 4.0


def needed() -> str:
    """The openssl command; skips the test where there is none."""
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("no openssl command here")
    return found


class _End:
    """A process that says what it is told to and keeps what it hears."""

    def __init__(self, arguments: Iterable[str]) -> None:
        self.process = subprocess.Popen(
            [needed(), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.heard = b""
        self._pieces: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while piece := self.process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            self._pieces.put(piece)
        self._pieces.put(b"")

    def say(self, octets: bytes) -> None:
        """Send octets inside TLS (or give a command letter)."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # that it is gone shows when nothing is heard of it
            self.process.stdin.write(octets)
            self.process.stdin.flush()

    def wait(self, octets: bytes) -> None:
        """Wait until the octets were heard behind what was heard before; skips when the openssl here does not go that far."""
        until = time.monotonic() + _PATIENCE
        while octets not in self.heard:
            try:
                piece = self._pieces.get(timeout=max(until - time.monotonic(), 0.01))
            except queue.Empty:
                piece = b""
            if not piece:
                pytest.skip(f"this openssl does not speak it: {self.heard[-300:]!r}")
            self.heard += piece
        self.heard = self.heard[self.heard.index(octets) + len(octets) :]

    def end(self, patience: float = 0) -> None:
        """Close its standard input and let it go, or make it when it does not go by itself."""
        with suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.terminate()
        self.process.wait()


class Relay:
    """Carries one connection at a time to a port of this machine and keeps the turns."""

    def __init__(self, port: int) -> None:
        self.turns: list[Turn] = []
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            lock = threading.Lock()
            for side, source, sink in (("C", client, server), ("S", server, client)):
                arguments = (side, source, sink, self.turns, lock)
                threading.Thread(target=self._carry, args=arguments, daemon=True).start()

    @staticmethod
    def _carry(side: str, source: socket.socket, sink: socket.socket, turns: list[Turn], lock: Any) -> None:
        try:
            while octets := source.recv(1 << 16):
                with lock:
                    turns.append((side, octets))
                    sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def end(self) -> None:
        """Take no more connections."""
        self._listener.close()


class Ends:
    """A server of its options, and clients that talk to it one after the other."""

    def __init__(self, folder: Path, certificate: bytes, server: Iterable[str] = ()) -> None:
        self.folder = folder
        self.pem = folder / "server.pem"
        self.pem.write_bytes(certificate)
        port = _free_port()
        given = ["s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(self.pem), "-key", str(self.pem), *server]
        self._server = _End(given)
        self._server.wait(b"ACCEPT")
        self._relay = Relay(port)
        self._clients = 0
        self.keys = b""
        """The key log so far."""

    def talk(
        self, talk: Iterable[Turn] = HELLO, client: Iterable[str] = (), first: bytes | None = None, quiet: bool = True
    ) -> list[Turn]:
        """A client with its options says its part of `talk`, the server its own; what crossed the wire.

        A turn of side `c` or `s` is a command letter to that end.  `first`: what the server is to have heard before that.
        """
        log = self.folder / f"keys{self._clients}"
        self._clients += 1
        self._relay.turns = turns = []
        given = ["s_client", "-connect", f"127.0.0.1:{self._relay.port}", "-keylogfile", str(log), *client]
        end = _End([*given, "-quiet", "-no_ign_eof"] if quiet else given)
        try:
            if first is not None:
                self._server.wait(first)
            for side, octets in talk:
                mine, other = (end, self._server) if side in "Cc" else (self._server, end)
                mine.say(octets)
                if side in "CS":
                    other.wait(octets.rstrip())
                else:
                    time.sleep(0.2)
        finally:
            end.end(1)  # without a closure alert its session would not be resumed
        self.keys += log.read_bytes() if log.exists() else b""
        return turns

    def end(self) -> None:
        """Stop the server."""
        self._server.end()
        self._relay.end()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
