"""The verbs that make files to take along: slice."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from analyzer.pipeline import Input


@contextmanager
def _twice(captures: Sequence[str]) -> Iterator[list["Input"]]:
    """The captures, fit to be read twice: standard input is kept in a temporary file while the command runs."""
    if captures.count("-") != 1 or sys.stdin.isatty():
        yield list(captures)
        return
    from shutil import copyfileobj
    from tempfile import TemporaryFile

    with TemporaryFile(prefix="mailhop-", buffering=0) as kept:
        copyfileobj(sys.stdin.buffer, kept, 1 << 20)
        kept.seek(0)
        kept.name = "-"  # what the tables call it
        yield [kept if name == "-" else name for name in captures]


@click.command(short_help="Write one message's packets as pcapng.")
@click.option("-w", "path", metavar="FILE", required=True, help="The pcapng file to write.")
def slice(
    captures: tuple[str, ...],
    more: tuple[str, ...],
    keylogs: tuple[str, ...],
    jobs: int,
    message_id: str | None,
    trace_id: str | None,
    rcpt: str | None,
    subject: str | None,
    path: str,
    ascii_only: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """One message's packets, over all its hops, as one pcapng file: for Wireshark, or to hand on.

    In it are the message's connections, DNS lookups, retrieval and mailbox events; of a connection that carried
    other messages too, only set-up, end and what is about this one.  Packets are as captured: a login that was sent
    without TLS can be read in them.  Without a selector the first message is taken.  Captures are read twice.

    \b
    Examples:
      mailhop slice mail.pcapng --message-id '<1@example.org>' -w one.pcapng
      mailhop slice tap1.pcap tap2.pcapng.gz --rcpt bob@example.net -w bob.pcapng
    """
    from analyzer.cli import DAMAGED, DONE, _chosen, _complain, _run, _warn
    from analyzer.slice import write

    with _twice([*captures, *more]) as inputs:
        result = _run(inputs, (), keylogs, quiet)
        told = _chosen(result.tables, quiet, message_id=message_id, trace_id=trace_id, rcpt=rcpt, subject=subject)
        copied = write(path, result, told)
    if not quiet:
        _complain(f"wrote {path}: {copied.frames:,} packets of trace {told.message.trace_id[:8]}")
    _warn(result)
    return DAMAGED if result.damaged else DONE


def register(group: click.Group, shared: Any, one: Any) -> None:
    """Add these verbs to the command; `shared` adds what every verb that reads captures has, `one` how to choose a message."""
    group.add_command(shared(one(slice)))
