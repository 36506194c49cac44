"""The verbs that make files to take along, slice and extract, and the one that looks at messages, browse."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from analyzer.cli_shared import Reading, chooses_message, reads_captures
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
@chooses_message
@reads_captures
def slice(reading: Reading, path: str, **selectors: str | None) -> int:
    """One message's packets, over all its hops, as one pcapng file: for Wireshark, or to hand on.

    In it are the message's connections, DNS lookups, retrieval and mailbox events; of a connection that carried
    other messages too, only set-up, end and what is about this one.  Packets are as captured: a login that was sent
    without TLS can be read in them.  Without a selector the first message is taken.  Captures are read twice.

    \b
    Examples:
      mailhop slice mail.pcapng --message-id '<1@example.org>' -w one.pcapng
      mailhop slice tap1.pcap tap2.pcapng.gz --rcpt bob@example.net -w bob.pcapng
    """
    if not os.path.isdir(os.path.dirname(path) or "."):  # told before a long run, not after
        raise MailhopError(
            f"cannot write {path}: there is no directory {os.path.dirname(path)}", "make it, or name another with -w"
        )
    from analyzer.slicing import write
    from analyzer.views.text import counted

    with _twice(reading.inputs) as inputs:
        result = reading.run(inputs)
        told = reading.chosen(result, **selectors)
        copied = write(path, result, told)
    reading.say(f"wrote {path}: {counted(copied.frames, 'packet')} of trace {told.message.trace_id[:8]}")
    return reading.end(result)


@click.command(short_help="Write messages as .eml files.")
@click.option("-o", "directory", metavar="DIR", required=True, help="Where to write them, and manifest.jsonl.")
@click.option("--mbox", metavar="FILE", help="Also one mbox file (mboxrd): the last complete copy of each message.")
@reads_captures
def extract(reading: Reading, directory: str, mbox: str | None) -> int:
    """Every message as it crossed the wire, byte for byte: CRLF line ends, dot-stuffing undone.

    One .eml file for each form a message had on its way (servers add trace fields); the same octets are written
    once.  manifest.jsonl has a line per hop: file, SHA-256, size, trace id, addresses, whether it is complete.
    What is not complete is *.incomplete.eml.

    \b
    Examples:
      mailhop extract mail.pcapng -o messages/
      mailhop extract mail.pcapng -o messages/ --where 'subject~invoice' --mbox invoices.mbox
    """
    from analyzer.extraction import keeping, write
    from analyzer.views.text import counted

    with keeping(directory) as kept:
        result = reading.run(limits=kept)
        traces = None if reading.where is None else reading.where.traces(result.tables)
        done = write(directory, result, traces=traces, mbox=mbox)
    incomplete = f", {done.incomplete:,} of them incomplete" if done.incomplete else ""
    reading.say(f"wrote {counted(done.files, 'file')}{incomplete}, of {counted(done.messages, 'message')}, to {directory}")
    return reading.end(result)


@click.command(short_help="Look through messages in the terminal.")
@reads_captures
def browse(reading: Reading) -> int:
    """Messages as a list to search, each with its trace: hops, lookups, replies, where the time went.

    The last line says what each key does.

    \b
    Examples:
      mailhop browse mail.pcapng
      mailhop browse mail.pcapng --where 'outcome!=delivered'
    """
    if not sys.stdout.isatty():
        raise MailhopError("browse needs a terminal", "mailhop analyze prints the list, mailhop trace one message")
    result = reading.run()
    reading.narrow(result)
    from analyzer.views.browse import Browser, show

    if not sys.stdin.isatty():  # the capture came from there: keys come from the terminal
        try:
            os.dup2(os.open("/dev/tty", os.O_RDWR), 0)
        except OSError:
            raise MailhopError("browse needs a terminal to read keys from", "save the capture to a file first") from None
    name = ", ".join(source.name for source in result.sources)
    show(Browser(result.tables, name, reading.look.ascii))
    return reading.end(result)
