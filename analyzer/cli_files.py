"""The verbs that make files to take along, slice and extract, and the one that looks at messages, browse."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from analyzer.errors import MailhopError

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
    where: str | None,
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
    from analyzer.cli import DAMAGED, DONE, _chosen, _complain, _run, _warn, _where

    only = _where(where)
    if not os.path.isdir(os.path.dirname(path) or "."):  # told before a long run, not after
        raise MailhopError(
            f"cannot write {path}: there is no directory {os.path.dirname(path)}", "make it, or name another with -w"
        )
    from analyzer.slicing import write

    with _twice([*captures, *more]) as inputs:
        result = _run(inputs, (), keylogs, quiet)
        told = _chosen(result.tables, quiet, only, message_id=message_id, trace_id=trace_id, rcpt=rcpt, subject=subject)
        copied = write(path, result, told)
    if not quiet:
        from analyzer.views.text import counted

        _complain(f"wrote {path}: {counted(copied.frames, 'packet')} of trace {told.message.trace_id[:8]}")
    _warn(result)
    return DAMAGED if result.damaged else DONE


@click.command(short_help="Write messages as .eml files.")
@click.option("-o", "directory", metavar="DIR", required=True, help="Where to write them, and manifest.jsonl.")
@click.option("--mbox", metavar="FILE", help="Also one mbox file (mboxrd): the last complete copy of each message.")
def extract(
    captures: tuple[str, ...],
    more: tuple[str, ...],
    keylogs: tuple[str, ...],
    jobs: int,
    directory: str,
    mbox: str | None,
    where: str | None,
    ascii_only: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Every message as it crossed the wire, byte for byte: CRLF line ends, dot-stuffing undone.

    One .eml file for each form a message had on its way (servers add trace fields); the same octets are written
    once.  manifest.jsonl has a line per hop: file, SHA-256, size, trace id, addresses, whether it is complete.
    What is not complete is *.incomplete.eml.

    \b
    Examples:
      mailhop extract mail.pcapng -o messages/
      mailhop extract mail.pcapng -o messages/ --where 'subject~invoice' --mbox invoices.mbox
    """
    from analyzer.cli import DAMAGED, DONE, _complain, _run, _warn, _where

    only = _where(where)
    from analyzer.extraction import keeping, write

    with keeping(directory) as kept:
        result = _run(captures, more, keylogs, quiet, kept)
        traces = None if only is None else only.traces(result.tables)
        done = write(directory, result, traces=traces, mbox=mbox)
    if not quiet:
        from analyzer.views.text import counted

        incomplete = f", {done.incomplete:,} of them incomplete" if done.incomplete else ""
        of = counted(done.messages, "message")
        _complain(f"wrote {counted(done.files, 'file')}{incomplete}, of {of}, to {directory}")
    _warn(result)
    return DAMAGED if result.damaged else DONE


@click.command(short_help="Look through messages in the terminal.")
def browse(
    captures: tuple[str, ...],
    more: tuple[str, ...],
    keylogs: tuple[str, ...],
    jobs: int,
    where: str | None,
    ascii_only: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Messages as a list to search, each with its trace: hops, lookups, replies, where the time went.

    The last line says what each key does.

    \b
    Examples:
      mailhop browse mail.pcapng
      mailhop browse mail.pcapng --where 'outcome!=delivered'
    """
    from analyzer.cli import DAMAGED, DONE, _look, _narrow, _run, _warn, _where

    only = _where(where)
    if not sys.stdout.isatty():
        raise MailhopError("browse needs a terminal", "mailhop analyze prints the list, mailhop trace one message")
    result = _run(captures, more, keylogs, quiet)
    if only is not None:
        _narrow(result, only, True)
    from analyzer.views.browse import Browser, show

    if not sys.stdin.isatty():  # the capture came from there: keys come from the terminal
        try:
            os.dup2(os.open("/dev/tty", os.O_RDWR), 0)
        except OSError:
            raise MailhopError("browse needs a terminal to read keys from", "save the capture to a file first") from None
    name = ", ".join(source.name for source in result.sources)
    show(Browser(result.tables, name, _look(ascii_only).ascii))
    _warn(result)
    return DAMAGED if result.damaged else DONE


def register(group: click.Group, shared: Any, one: Any) -> None:
    """Add these verbs to the command; `shared` adds what every verb that reads captures has, `one` how to choose a message."""
    group.add_command(shared(one(slice)))
    group.add_command(shared(extract))
    group.add_command(shared(browse))
