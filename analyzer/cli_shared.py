"""What the verbs share: how they are given captures, and how they speak."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from analyzer.errors import MailhopError

if TYPE_CHECKING:
    from analyzer.limits import Limits
    from analyzer.pipeline import Input, Result
    from analyzer.tables.where import Where
    from analyzer.views.text import Look, Page

DONE, DAMAGED, FAILED, MATCHED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses."""
PATIENCE = 0.5
"""Seconds before a progress bar appears."""


def complain(what: str) -> None:
    """One line on standard error, harmless whatever it quotes."""
    from analyzer.tables.visible import visible

    with suppress(OSError):
        click.echo("mailhop: " + encodable(visible(" ".join(what.split("\n"))), sys.stderr), err=True)


def encodable(text: str, stream: Any) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def look_here(ascii_only: bool) -> "Look":
    """How pages may look on this standard output."""
    import shutil

    from analyzer.views.text import PIPED_WIDTH, Look

    try:
        "→─▶┄·…█✗".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    width = max(shutil.get_terminal_size((PIPED_WIDTH, 24)).columns, 60) if sys.stdout.isatty() else PIPED_WIDTH
    return Look(width, ascii_only)


def print_page(page: "Page") -> None:
    """A page on standard output: in colour on a terminal, plain elsewhere."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        sys.stdout.write(encodable(str(page), sys.stdout))
        return
    from rich.console import Console
    from rich.text import Text

    styles = {"dim": "dim", "bold": "bold", "good": "green", "warn": "yellow", "bad": "bold red", "name": "cyan"}
    console = Console(width=page.look.width, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in page.lines:
        console.print(Text.assemble(*((span.text, styles.get(span.style, "")) for span in line), no_wrap=True, overflow="ignore"))


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Standard output is written to: whoever reads it (head, less) may go, and the rest of the verb is done all the same."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        close_stdout()


def close_stdout() -> None:
    """The reader has gone (head, less): leave no complaint behind at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int | None, int, int], None] | None]:
    """A progress bar on standard error, where somebody can see it, for runs that take their time."""
    if quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from time import monotonic

    from analyzer.tables.visible import visible

    bar: Any = None
    shown: str | None = None
    begun = monotonic()

    def report(name: str, done: int, total: int | None, messages: int, packets: int) -> None:
        nonlocal bar, shown
        if monotonic() - begun < PATIENCE:
            return
        if bar is None:
            bar = _bar()
            bar.start()
        if name != shown:
            shown = name
            bar.reset(0, total=total, description=visible(os.path.basename(name))[-30:])
        bar.update(0, completed=done, total=total, found=f"{packets:,} packets {messages:,} messages")

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[found]}", markup=False),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=None, found="")
    return bar


def known_formats(text: str | None, directory: str | None) -> list[str]:
    """Formats asked for; wrong ones are told before a long run, not after."""
    from analyzer.tables.export import parse_formats

    names = parse_formats(text or "jsonl")
    if text and directory is None:
        raise MailhopError("--format without -o writes nothing", "name a directory: -o tables/")
    return names


def key_log_at_hand(empty: bool = False) -> tuple[str, ...]:
    """The key log that browsers and curl write on this machine; unlike one asked for, it may be absent, or empty and left out."""
    path = os.environ.get("SSLKEYLOGFILE", "")
    return (path,) if os.path.isfile(path) and os.access(path, os.R_OK) and (empty or os.path.getsize(path)) else ()


def _warn(result: "Result") -> None:
    """What could not be read, in a bounded number of lines."""
    from analyzer.limits import Limits

    most = Limits().warning_lines
    damage = [(source.name, part.detail) for source in result.sources for part in source.damage]
    for name, detail in damage[:most]:
        complain(f"warning: {name}: {detail}")
    if len(damage) > most:
        complain(f"warning: {len(damage) - most} more; all of them are in the anomalies table")
    if result.unused_secrets:
        complain(f"warning: none of the {result.unused_secrets:,} secrets given is of a TLS session in these captures")


@dataclass(frozen=True)
class Reading:
    """What every verb that reads captures is given (`reads_captures`)."""

    captures: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    keylogs: tuple[str, ...] = ()
    align: bool = False
    jobs: int = 1
    where: "Where | None" = None
    ascii_only: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """All captures, however they were named."""
        return (*self.captures, *self.more)

    @property
    def look(self) -> "Look":
        """How pages may look."""
        return look_here(self.ascii_only)

    def run(self, inputs: "Sequence[Input] | None" = None, limits: "Limits | None" = None) -> "Result":
        """Analyze the captures, or `inputs` that stand for them."""
        inputs = self.inputs if inputs is None else inputs
        if not inputs:
            raise click.UsageError("no capture given; name a file, or - for standard input", click.get_current_context())
        if inputs.count("-") > 1:
            raise MailhopError("standard input can be read once only", "give - once")
        if "-" in inputs and sys.stdin.isatty():
            raise MailhopError("standard input is a terminal", "pipe a capture into it: tcpdump -w - | mailhop analyze -")
        from analyzer.pipeline import run

        keylogs = self.keylogs or key_log_at_hand()
        with progress(self.quiet) as report:
            return run(inputs, limits=limits, keylogs=keylogs, progress=report, align=self.align, jobs=self.jobs)

    def narrow(self, result: "Result") -> None:
        """Leave the messages that --where holds for."""
        if self.where is None:
            return
        from analyzer.views.trace import narrow

        count = result.tables.count("messages")
        traces = self.where.traces(result.tables)
        result.tables = narrow(result.tables, traces)
        self.say(f"--where holds for {len(traces):,} of {count:,} messages")

    def chosen(self, result: "Result", **selectors: str | None) -> Any:
        """The message that answers to the selectors and --where; the first of several, with a hint."""
        from itertools import islice

        from analyzer.views.trace import MATCHES, gather, nothing_found, select

        tables = result.tables
        found = select(tables, **selectors)
        if self.where is not None:
            traces = self.where.traces(tables)
            found = (row for row in found if row.trace_id in traces)
        rows = list(islice(found, MATCHES + 1))
        if not rows:
            given = {**selectors, "where": self.where.text if self.where is not None else None}
            raise nothing_found(tables, " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value))
        if len(rows) > 1:
            more = f"more than {MATCHES}" if len(rows) > MATCHES else str(len(rows))
            others = ", ".join(row.trace_id[:8] for row in rows[1:6])
            self.say(f"{more} messages answer; this is the first. Others: --trace-id {others}{', ...' if len(rows) > 6 else ''}")
        return gather(tables, rows[0])

    def say(self, what: str) -> None:
        """One line on standard error, unless nothing is to be said."""
        if not self.quiet:
            complain(what)

    def end(self, result: "Result") -> int:
        """Say what could not be read; the exit status."""
        _warn(result)
        return DAMAGED if result.damaged else DONE


def _where(_: click.Context, __: click.Parameter, text: str | None) -> "Where | None":
    """The expression of --where; a wrong one is told before a long run, not after."""
    if text is None:
        return None
    from analyzer.tables.where import Where

    return Where(text)


def reads_captures(verb: Callable[..., int]) -> Callable[..., int]:
    """Give a verb the arguments and options of every verb that reads captures, as its first argument, a `Reading`."""

    @wraps(verb)
    def command(**given: Any) -> int:
        reading = Reading(**{field.name: given.pop(field.name) for field in fields(Reading)})
        return verb(reading, **given)

    parts: tuple[Callable[[Any], Any], ...] = (
        click.option(
            "-v", "--verbose", is_flag=True, help="Say more: analyze lists every message and oddity, trace the dialogues."
        ),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
        click.option("--ascii", "ascii_only", is_flag=True, help="No characters beyond ASCII."),
        click.option(
            "--jobs",
            type=click.IntRange(min=1),
            default=1,
            metavar="N",
            help="Processes that share the work on one file; the tables are the same.",
        ),
        click.option(
            "--align", is_flag=True, help="Of several taps: take the offsets of their clocks off. Else they are only told."
        ),
        click.option("--keylog", "keylogs", multiple=True, metavar="FILE", help="TLS key log; repeatable. Else: $SSLKEYLOGFILE."),
        click.option(
            "--where",
            metavar="EXPR",
            callback=_where,
            help="Only messages for which this holds: 'code>=500 and rcpt~\"@example.net\"'; `mailhop schema where` tells all.",
        ),
        click.option("-r", "more", multiple=True, metavar="FILE", help="One more CAPTURE, as tshark takes it."),
        click.argument("captures", nargs=-1, metavar="CAPTURE..."),
    )
    for part in parts:
        command = part(command)
    return command


def chooses_message(command: Any) -> Any:
    """The options that choose a message."""
    for part in (
        click.option("--subject", metavar="TEXT", help="Messages with this in their subject."),
        click.option("--rcpt", metavar="ADDR", help="Messages to this recipient."),
        click.option("--trace-id", metavar="ID", help="The message with this trace id, or the beginning of it."),
        click.option("--message-id", metavar="ID", help="The message with this Message-ID (angle brackets may be left out)."),
    ):
        command = part(command)
    return command
