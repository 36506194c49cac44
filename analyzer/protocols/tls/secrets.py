"""TLS key logs (draft-ietf-tls-keylogfile, the NSS format), and where their secrets are kept."""

from collections.abc import Sequence
from contextlib import suppress
from os import PathLike, fspath, stat

from analyzer.errors import KeyLogError

LABELS = frozenset(
    {
        "CLIENT_RANDOM",
        "CLIENT_EARLY_TRAFFIC_SECRET",
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    }
)
"""Labels that are of use; EXPORTER_SECRET and others are read over."""
_RANDOM = 32
_LONGEST = 64
"""Octets of the longest secret (SHA-512; SHA-384 is what suites use)."""


class Secrets:
    """Secrets by label and client random.  Its text and its representation never show one."""

    def __init__(self) -> None:
        self._secrets: dict[tuple[str, bytes], bytes] = {}
        self.growing = False
        """More may come while traffic is read: a key log that is being followed."""
        self.asked = self.used = False
        """A secret was looked for; one was found."""

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        return f"<Secrets: {len(self)}>"

    def get(self, label: str, client_random: bytes) -> bytes | None:
        """The secret of a connection, by its client's random."""
        secret = self._secrets.get((label, client_random))
        self.asked = True
        self.used = self.used or secret is not None
        return secret

    def add(self, log: bytes) -> int:
        """Take the lines of a key log; how many of them were secrets.  Lines of other kinds are read over."""
        found = 0
        for line in log.splitlines():
            words = line.split()
            if len(words) != 3 or words[0].startswith(b"#"):
                continue
            label = words[0].decode("ascii", "replace")
            try:
                random, secret = bytes.fromhex(words[1].decode("ascii")), bytes.fromhex(words[2].decode("ascii"))
            except ValueError:
                continue
            if len(random) != _RANDOM or not 0 < len(secret) <= _LONGEST:
                continue
            found += 1
            if label in LABELS:
                self._secrets[label, random] = secret
        return found


class KeyLogs:
    """Key log files that are read once, or followed as they grow."""

    def __init__(self, paths: Sequence[str | PathLike[str]], follow: bool = False) -> None:
        """Read what is there.  Raises KeyLogError for a file that cannot be read or holds no secret (one that is followed
        may still be empty)."""
        self.secrets = Secrets()
        self._ends: dict[str, tuple[int, int]] = {}
        """File -> its inode, and how far it was read."""
        for path in paths:
            name = fspath(path)
            try:
                octets, found = self._more(name, last=not follow)
            except OSError as wrong:
                raise KeyLogError(
                    f"cannot read key log {name}: {wrong.strerror}", "check the path and its permissions"
                ) from wrong
            if not found and (octets or not follow):
                raise KeyLogError(
                    f"{name} holds no TLS secrets", "give a file in NSS key log format, as written under SSLKEYLOGFILE"
                )
        self.secrets.growing = follow and bool(self._ends)

    def poll(self) -> int:
        """Read what has been added since; how many secrets that were.  A file that is gone adds nothing."""
        found = 0
        for name in self._ends:
            with suppress(OSError):
                found += self._more(name)[1]
        return found

    def _more(self, name: str, last: bool = False) -> tuple[int, int]:
        """Read on in a file, whole lines (and the last one, when nothing more is to come): octets, and secrets in them."""
        inode, begin = self._ends.get(name, (0, 0))
        at = stat(name)
        if at.st_ino != inode or at.st_size < begin:  # another file, or written anew
            begin = 0
        if at.st_size == begin and begin:
            return 0, 0
        with open(name, "rb") as file:
            file.seek(begin)
            log = file.read()
        if not last:
            log = log[: log.rfind(b"\n") + 1]
        self._ends[name] = (at.st_ino, begin + len(log))
        return len(log), self.secrets.add(log)


def read_key_logs(paths: Sequence[str | PathLike[str]]) -> Secrets:
    """The secrets of key log files.  Raises KeyLogError for a file that cannot be read or holds no secret."""
    return KeyLogs(paths).secrets
