"""TLS key logs (draft-ietf-tls-keylogfile, the NSS format), and where their secrets are kept."""

from collections.abc import Sequence
from os import PathLike, fspath

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

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        return f"<Secrets: {len(self)}>"

    def get(self, label: str, client_random: bytes) -> bytes | None:
        """The secret of a connection, by its client's random."""
        return self._secrets.get((label, client_random))

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


def read_key_logs(paths: Sequence[str | PathLike[str]]) -> Secrets:
    """The secrets of key log files.  Raises KeyLogError for a file that cannot be read or holds no secret."""
    secrets = Secrets()
    for path in paths:
        name = fspath(path)
        try:
            with open(name, "rb") as file:
                log = file.read()
        except OSError as wrong:
            raise KeyLogError(f"cannot read key log {name}: {wrong.strerror}", "check the path and its permissions") from wrong
        if not secrets.add(log):
            raise KeyLogError(f"{name} holds no TLS secrets", "give a file in NSS key log format, as written under SSLKEYLOGFILE")
    return secrets
