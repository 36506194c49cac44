"""Messages out of captures as files: byte-exact `.eml`, a manifest, an mbox.

1. Octets are those that crossed the wire: CRLF line ends, dot-stuffing undone; a complete message has the `sha256` of the
   hops table.  What crossed several hops unchanged is one file.
2. File names are made of trace id and hop number; nothing that traffic said is in them.
3. A message of which octets are missing is `*.incomplete.eml`: what was seen, without filling.
4. `manifest.jsonl` has a line for every hop that carried octets.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import asctime, gmtime
from typing import IO, Any

from analyzer.errors import MailhopError
from analyzer.limits import Limits
from analyzer.mail.records import Hop, Message
from analyzer.pipeline import Input, Result, run, several
from analyzer.protocols.bodies import Body, Store
from analyzer.tables.export import iso
from analyzer.tables.visible import encodable, visible
from analyzer.tables.whole import whole_file

MANIFEST = "manifest.jsonl"
_FROM = b"From "


@dataclass
class Extracted:
    """What was written."""

    messages: int = 0
    """Traces that had octets."""
    files: int = 0
    incomplete: int = 0
    """Files of which octets are missing."""
    octets: int = 0


def extract(
    path: Input | Sequence[Input],
    directory: str | os.PathLike[str],
    *,
    mbox: str | os.PathLike[str] | None = None,
    keylog: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    limits: Limits | None = None,
) -> Extracted:
    """Write every message of a capture, or of several as one analysis, to a directory.

    `mbox`: also one mbox file (mboxrd), with the last complete copy of each message.  Raises CaptureError when an input
    cannot be read at all, KeyLogError for a bad key log, MailhopError when files cannot be written.
    """
    with keeping(directory, limits) as kept:
        return write(directory, run(several(path), limits=kept, keylogs=several(keylog)), mbox=mbox)


@contextmanager
def keeping(directory: str | os.PathLike[str], limits: Limits | None = None) -> Iterator[Limits]:
    """Limits for an analysis that keeps message octets while this context lasts, in a file of this directory.

    Raises MailhopError when the directory cannot be made or written.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        store = Store(directory)
    except OSError as error:
        raise _unwritable(directory, error) from None
    try:
        yield replace(limits or Limits(), bodies=store)
    finally:
        store.close()


def _unwritable(path: str | os.PathLike[str], error: OSError) -> MailhopError:
    return MailhopError(f"cannot write {visible(os.fspath(path))}: {error.strerror or error}", "choose another place")


def write(
    directory: str | os.PathLike[str],
    result: Result,
    *,
    traces: Collection[str] | None = None,
    mbox: str | os.PathLike[str] | None = None,
) -> Extracted:
    """Write the messages of an analysis that kept them; `traces`: of these alone.  Raises MailhopError."""
    place = Path(directory)
    try:
        place.mkdir(parents=True, exist_ok=True)
        return _write(place, result, traces, None if mbox is None else Path(mbox))
    except OSError as error:
        raise _unwritable(directory, error) from None


def _write(place: Path, result: Result, traces: Collection[str] | None, mbox: Path | None) -> Extracted:
    done = Extracted()
    known: dict[str, str] = {}
    """SHA-256 of a complete message: its file."""
    last: dict[str, tuple[Hop, Body]] = {}
    messages = {m.trace_id: m for m in result.tables.rows("messages") if traces is None or m.trace_id in traces}
    met: set[str] = set()
    with whole_file(place / MANIFEST) as manifest:
        for hop in result.tables.rows("hops"):
            message = messages.get(hop.trace_id)
            body = result.bodies.get((hop.session_id or "", hop.message_index or 0))
            if message is None or body is None:
                continue
            met.add(hop.trace_id)
            name = known.get(hop.sha256 or "")
            digest = hop.sha256
            if name is None:
                name = f"{hop.trace_id}-{hop.hop:02}{'' if hop.complete else '.incomplete'}.eml"
                size, digest = _octets(place / name, body)
                done.files += 1
                done.octets += size
                done.incomplete += not hop.complete
                if hop.sha256 is not None:
                    known[hop.sha256] = name
            if hop.complete:
                last[hop.trace_id] = (hop, body)
            manifest.write((json.dumps(_entry(name, digest, hop, message)) + "\n").encode())
    done.messages = len(met)
    if mbox is not None:
        try:
            with whole_file(mbox) as file:
                for trace_id in messages:
                    if trace_id in last:
                        _post(file, *last[trace_id])
        except OSError as error:
            raise _unwritable(mbox, error) from None
    return done


def _octets(path: Path, body: Body) -> tuple[int, str]:
    """Write a message; its size and SHA-256."""
    digest, size = hashlib.sha256(usedforsecurity=False), 0
    with whole_file(path) as file:
        for piece in body:
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    return size, digest.hexdigest()


def _entry(name: str, digest: str | None, hop: Hop, message: Message) -> dict[str, Any]:
    """A line of the manifest."""
    entry = {
        "file": name,
        "sha256": digest,
        "size": hop.size,
        "complete": bool(hop.complete),
        "missing_bytes": hop.missing_bytes,
        "trace_id": hop.trace_id,
        "hop": hop.hop,
        "kind": hop.kind,
        "message_id": hop.message_id,
        "subject": message.subject,
        "from": message.header_from,
        "to": message.header_to,
        "mail_from": hop.mail_from,
        "rcpt_to": hop.rcpt_to,
        "outcome": hop.outcome,
        "ts": None if hop.ts_start is None else iso(hop.ts_start),
        "source": hop.source,
        "session_id": hop.session_id,
        "frames": [hop.first_frame, hop.last_frame],
    }
    return {key: encodable(value) if isinstance(value, str) else value for key, value in entry.items()}


def _post(file: IO[bytes], hop: Hop, body: Body) -> None:
    """A message in mboxrd form: line ends LF, every line that reads `>...From ` with one more `>`."""
    sender = "".join(c for c in hop.mail_from or "" if "!" <= c <= "~") or "MAILER-DAEMON"
    when = asctime(gmtime((hop.ts_end or hop.ts_start or 0) // 1_000_000_000))
    file.write(f"From {sender} {when}\n".encode())
    ended = True
    for line, begins in _lines(body):
        if begins and line.lstrip(b">").startswith(_FROM):
            file.write(b">")
        file.write(line)
        ended = line.endswith(b"\n")
    file.write(b"\n" if ended else b"\n\n")


_LONG = 1 << 16
"""Octets of a line looked at at once: a longer one comes in parts."""


def _lines(body: Body) -> Iterator[tuple[bytes, bool]]:
    """Lines with LF ends, in bounded parts, and whether each part begins a line."""
    rest, begins = b"", True
    for piece in body:
        parts = (rest + piece).split(b"\n")
        rest = parts.pop()
        for part in parts:
            yield part.removesuffix(b"\r") + b"\n", begins
            begins = True
        if len(rest) > _LONG:
            keep = 1 if rest.endswith(b"\r") else 0
            yield rest[: len(rest) - keep], begins
            rest, begins = rest[len(rest) - keep :], False
    if rest:
        yield rest, begins
