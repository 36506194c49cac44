"""The command: one verb, one call into the rooms.

1. Data goes to standard output; progress, warnings and errors go to standard error.
2. What went wrong is one line: what, where, why, how to fix it.  Never a traceback.
3. Exit status: 0 done; 1 done, part of the input was damaged; 2 nothing could be done; 3 a --fail-on
   condition matched; 130 interrupted.
4. Nothing heavy is imported before a verb needs it: --help is instant.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from analyzer import cli_files, cli_live, cli_views
from analyzer.errors import ExpressionError, MailhopError

if TYPE_CHECKING:
    from pathlib import Path

    from analyzer.limits import Limits
    from analyzer.pipeline import Input, Result
    from analyzer.tables import Tables
    from analyzer.tables.where import Where
    from analyzer.views.text import Look, Page

DONE, DAMAGED, FAILED, MATCHED, INTERRUPTED = 0, 1, 2, 3, 130
FAIL_ON = ("rejected", "deferred", "plaintext-auth")
DEMO_DIRECTORY = "mailhop-demo"
STORY = "story.pcapng"
PATIENCE = 0.5
"""Seconds before a progress bar appears."""


# what every verb shares


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy starts a thread per core for algebra, which we have none of
    was = gc.isenabled()
    gc.disable()  # rows hold no cycles and live to the end: collections would only walk them again and again
    try:
        return _main(arguments)
    finally:
        if was:
            gc.enable()


def _main(arguments: Sequence[str] | None) -> int:
    try:
        status = cli.main(None if arguments is None else list(arguments), prog_name="mailhop", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.ctx.get_help(), err=True)
        return FAILED
    except click.UsageError as error:
        return _usage(error)
    except click.ClickException as error:
        return _fail(error.format_message())
    except ExpressionError as error:
        return _point(error)
    except MailhopError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _close_stdout()
        return DONE
    except MemoryError:
        return _fail("out of memory; split the capture (editcap -c) or use a larger machine")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        if os.environ.get("MAILHOP_DEBUG"):
            raise
        return _fail(f"internal error: {_place(error)}; please report it, with what MAILHOP_DEBUG=1 adds")
    return status if isinstance(status, int) else DONE


def _usage(error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoSuchOption):
        close = f"; did you mean {' or '.join(error.possibilities)}?" if error.possibilities else ""
        what = f"no such option {error.option_name}{close}"
    else:
        what = error.format_message().rstrip(".")
    where = error.ctx.command_path if error.ctx else "mailhop"
    return _fail(f"{what} See {where} --help" if what.endswith("?") else f"{what}; see {where} --help")


def _point(error: ExpressionError) -> int:
    """What is wrong with an expression, and a caret under the place."""
    from analyzer.tables.visible import visible

    _fail(f"--where: {error.what}")
    before, after = visible(error.text[: error.at]), visible(error.text[error.at :])
    click.echo(_encodable(f"  {before}{after}\n  {' ' * len(before)}^\n  {error.fix}", sys.stderr), err=True)
    return FAILED


def _fail(what: str, status: int = FAILED) -> int:
    _complain(f"error: {what}" if status == FAILED else what)
    return status


def _complain(what: str) -> None:
    """One line on standard error, harmless whatever it quotes."""
    from analyzer.tables.visible import visible

    with suppress(OSError):
        click.echo("mailhop: " + _encodable(visible(" ".join(what.split("\n"))), sys.stderr), err=True)


def _place(error: BaseException) -> str:
    """Where an unexpected exception came from: `KeyError('x') in streams.py line 12`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {os.path.basename(trace.tb_frame.f_code.co_filename)} line {trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {error}{where}"[:300]


def _close_stdout() -> None:
    """The reader has gone (head, less): leave no complaint behind at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encodable(text: str, stream: Any) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _look(ascii_only: bool) -> "Look":
    """How pages may look on this standard output."""
    import shutil

    from analyzer.views.text import PIPED_WIDTH, Look

    try:
        "→─▶┄·…█✗".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    width = max(shutil.get_terminal_size((PIPED_WIDTH, 24)).columns, 60) if sys.stdout.isatty() else PIPED_WIDTH
    return Look(width, ascii_only)


def _print(page: "Page") -> None:
    """A page on standard output: in colour on a terminal, plain elsewhere."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        sys.stdout.write(_encodable(str(page), sys.stdout))
        return
    from rich.console import Console
    from rich.text import Text

    styles = {"dim": "dim", "bold": "bold", "good": "green", "warn": "yellow", "bad": "bold red", "name": "cyan"}
    console = Console(width=page.look.width, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in page.lines:
        console.print(Text.assemble(*((span.text, styles.get(span.style, "")) for span in line), no_wrap=True, overflow="ignore"))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int | None, int, int], None] | None]:
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


_ALIGN = "analyzer.align"


def _run(
    captures: "Sequence[Input]",
    more: Sequence[str],
    keylogs: Sequence[str],
    quiet: bool,
    limits: "Limits | None" = None,
    jobs: int = 1,
) -> "Result":
    inputs = [*captures, *more]
    if not inputs:
        raise click.UsageError("no capture given; name a file, or - for standard input", click.get_current_context())
    if inputs.count("-") > 1:
        raise MailhopError("standard input can be read once only", "give - once")
    if "-" in inputs and sys.stdin.isatty():
        raise MailhopError("standard input is a terminal", "pipe a capture into it: tcpdump -w - | mailhop analyze -")
    from analyzer.pipeline import run

    context = click.get_current_context(silent=True)
    align = context is not None and bool(context.meta.get(_ALIGN))
    with _progress(quiet) as report:
        return run(inputs, limits=limits, keylogs=keylogs or _key_log_at_hand(), progress=report, align=align, jobs=jobs)


def _key_log_at_hand(empty: bool = False) -> tuple[str, ...]:
    """The key log that browsers and curl write on this machine; unlike one asked for, it may be absent, or empty and left out."""
    path = os.environ.get("SSLKEYLOGFILE", "")
    return (path,) if os.path.isfile(path) and os.access(path, os.R_OK) and (empty or os.path.getsize(path)) else ()


def _warn(result: "Result") -> None:
    """What could not be read, in a bounded number of lines."""
    from analyzer.limits import Limits

    most = Limits().warning_lines
    damage = [(source.name, part.detail) for source in result.sources for part in source.damage]
    for name, detail in damage[:most]:
        _complain(f"warning: {name}: {detail}")
    if len(damage) > most:
        _complain(f"warning: {len(damage) - most} more; all of them are in the anomalies table")
    if result.unused_secrets:
        _complain(f"warning: none of the {result.unused_secrets:,} secrets given is of a TLS session in these captures")


def _captures(command: Any) -> Any:
    """The arguments and options of every verb that reads captures."""
    for part in (
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
            "--align",
            is_flag=True,
            expose_value=False,
            callback=lambda ctx, _, value: ctx.meta.update({_ALIGN: value}),
            help="Of several taps: take the offsets of their clocks off. Else they are only told.",
        ),
        click.option("--keylog", "keylogs", multiple=True, metavar="FILE", help="TLS key log; repeatable. Else: $SSLKEYLOGFILE."),
        click.option(
            "--where",
            metavar="EXPR",
            help="Only messages for which this holds: 'code>=500 and rcpt~\"@example.net\"'; `mailhop schema where` tells all.",
        ),
        click.option("-r", "more", multiple=True, metavar="FILE", help="One more CAPTURE, as tshark takes it."),
        click.argument("captures", nargs=-1, metavar="CAPTURE..."),
    ):
        command = part(command)
    return command


class _Verbs(click.Group):
    """Verbs in the order they were written, with the nearest name for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name not in self.commands and not name.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(name, self.commands, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(self.commands)}"
            if os.path.exists(name):
                hint = f"; to read that file: mailhop analyze {name}"
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from analyzer import __version__

        click.echo(f"mailhop {__version__}")
        ctx.exit()


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Verbs, context_settings=CONTEXT)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Where is my message, and where did the time go?  Told from packets.

    \b
    Examples:
      mailhop demo
      mailhop analyze mail.pcapng -o tables/ --format jsonl,csv
      mailhop trace mail.pcapng --message-id '<1@example.org>'
    """


# verbs


@cli.command(short_help="Read captures; overview and tables.")
@click.option("-o", "directory", metavar="DIR", help="Write every table to DIR.")
@click.option("--format", "formats", metavar="LIST", help="jsonl, csv, parquet, sqlite, comma-separated [default: jsonl].")
@click.option(
    "--fail-on",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Exit 3 if any hop `rejected` or `deferred` mail, or a login sent its secret without TLS (`plaintext-auth`).",
)
@_captures
def analyze(
    captures: tuple[str, ...],
    more: tuple[str, ...],
    keylogs: tuple[str, ...],
    jobs: int,
    directory: str | None,
    formats: str | None,
    conditions: tuple[str, ...],
    where: str | None,
    ascii_only: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Read captures, print the overview, write the tables.

    Several files, of one or more capture points, are one analysis.  `-` reads standard input.

    \b
    Examples:
      mailhop analyze mail.pcapng
      mailhop analyze tap1.pcap tap2.pcapng.gz -o tables/ --format jsonl,csv
      sudo tcpdump -i eth0 -w - port 25 | mailhop analyze -
      mailhop analyze mail.pcap --where 'outcome!=delivered and rcpt~"@example.net"'
      mailhop analyze mail.pcap --fail-on rejected,plaintext-auth -q
    """
    wanted = _conditions(conditions)
    names = _formats(formats, directory)
    only = _where(where)
    result = _run(captures, more, keylogs, quiet, jobs=jobs)
    if only is not None:
        _narrow(result, only, quiet)
    if directory is not None:
        from analyzer import shards
        from analyzer.tables.export import export

        export(result.tables, directory, names, partial(shards.run, jobs))
    if not quiet:
        from analyzer.views.overview import compose, next_steps

        page = compose(result.tables, result.sources, _look(ascii_only), verbose)
        if directory is not None:
            page.line("  tables    ", f"in {page.look.safe(directory)} ({', '.join(names)})")
        next_steps(page, result.tables, [*captures, *more], directory)
        with _reader_may_leave():
            _print(page)
    _warn(result)
    matched = [said for name, said in _matches(result.tables, wanted)]
    for said in matched:
        _complain(said)
    return MATCHED if matched else DAMAGED if result.damaged else DONE


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()


def _formats(text: str | None, directory: str | None) -> list[str]:
    """Formats asked for; wrong ones are told before a long run, not after."""
    from analyzer.tables.export import parse_formats

    names = parse_formats(text or "jsonl")
    if text and directory is None:
        raise MailhopError("--format without -o writes nothing", "name a directory: -o tables/")
    return names


def _conditions(given: Sequence[str]) -> list[str]:
    from analyzer.tables.schema import nearest

    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FAIL_ON:
            raise MailhopError(f"no condition {name!r} for --fail-on", nearest(name, FAIL_ON))
    return list(dict.fromkeys(names))


def _matches(tables: "Tables", conditions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Conditions that hold, with what to say of them."""
    for name in conditions:
        if name == "plaintext-auth":
            from analyzer.views.overview import is_plaintext_login

            rows = (is_plaintext_login(row.auth_mechanism, row.tls) for row in tables.rows("sessions"))
            noun = "session"
        else:
            refused = {(row.trace_id, row.hop) for row in tables.rows("recipients") if row.outcome == name}
            rows = (row.outcome == name or (row.trace_id, row.hop) in refused for row in tables.rows("hops"))
            noun = "hop"
        number = sum(rows)
        if number:
            yield name, f"--fail-on {name}: {number:,} {noun}{'s' if number > 1 else ''}"


def _one_message(command: Any) -> Any:
    """The options that choose a message."""
    for part in (
        click.option("--subject", metavar="TEXT", help="Messages with this in their subject."),
        click.option("--rcpt", metavar="ADDR", help="Messages to this recipient."),
        click.option("--trace-id", metavar="ID", help="The message with this trace id, or the beginning of it."),
        click.option("--message-id", metavar="ID", help="The message with this Message-ID (angle brackets may be left out)."),
    ):
        command = part(command)
    return command


@cli.command(short_help="Show one message's timeline.")
@_one_message
@click.option("--json", "as_json", is_flag=True, help="Every row of every table that belongs to the message.")
@click.option("--mermaid", "as_mermaid", is_flag=True, help="A Mermaid sequence diagram.")
@click.option("--svg", metavar="FILE", help="Write its waterfall and ladder as one SVG picture, too.")
@_captures
def trace(
    captures: tuple[str, ...],
    more: tuple[str, ...],
    keylogs: tuple[str, ...],
    jobs: int,
    message_id: str | None,
    trace_id: str | None,
    rcpt: str | None,
    subject: str | None,
    as_json: bool,
    as_mermaid: bool,
    svg: str | None,
    where: str | None,
    ascii_only: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """One message's timeline: who handled it, when, and where the time went.

    Without a selector the first message of the capture is shown.

    \b
    Examples:
      mailhop trace mail.pcapng --message-id '<1@example.org>'
      mailhop trace mail.pcapng --rcpt bob@example.net --mermaid
      mailhop trace mail.pcapng --where 'queue>5m' --svg waited.svg
      mailhop trace mail.pcapng --subject invoice --json | jq .hops
    """
    if as_json and as_mermaid:
        raise click.UsageError("choose one of --json and --mermaid", click.get_current_context())
    only = _where(where)
    result = _run(captures, more, keylogs, quiet, jobs=jobs)
    told = _chosen(result.tables, quiet, only, message_id=message_id, trace_id=trace_id, rcpt=rcpt, subject=subject)
    if svg is not None:
        _write_picture(svg, told, quiet)
    with _reader_may_leave():
        if as_json:
            sys.stdout.write(told.json())
        elif as_mermaid:
            sys.stdout.write(_encodable(told.mermaid(), sys.stdout))
        else:
            _print(told.page(_look(ascii_only), verbose))
    _warn(result)
    return DAMAGED if result.damaged else DONE


def _write_picture(path: str, told: Any, quiet: bool) -> None:
    from analyzer.views.drawing import picture

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture(told))
    except OSError as error:
        raise MailhopError(f"cannot write {path}: {error.strerror or error}", "name another file with --svg") from None
    if not quiet:
        _complain(f"wrote {path}")


def _where(text: str | None) -> "Where | None":
    """The expression of --where; a wrong one is told before a long run, not after."""
    if text is None:
        return None
    from analyzer.tables.where import Where

    return Where(text)


def _narrow(result: "Result", only: "Where", quiet: bool) -> None:
    """Leave the messages that an expression holds for."""
    from analyzer.views.trace import narrow

    count = result.tables.count("messages")
    traces = only.traces(result.tables)
    result.tables = narrow(result.tables, traces)
    if not quiet:
        _complain(f"--where holds for {len(traces):,} of {count:,} messages")


def _chosen(tables: "Tables", quiet: bool, only: "Where | None" = None, **selectors: str | None) -> Any:
    """The message that answers to the selectors; the first of several, with a hint."""
    from itertools import islice

    from analyzer.views.trace import MATCHES, gather, nothing_found, select

    found = select(tables, **selectors)
    if only is not None:
        traces = only.traces(tables)
        found = (row for row in found if row.trace_id in traces)
    rows = list(islice(found, MATCHES + 1))
    if not rows:
        given = {**selectors, "where": only.text if only is not None else None}
        raise nothing_found(tables, " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value))
    if len(rows) > 1 and not quiet:
        more = f"more than {MATCHES}" if len(rows) > MATCHES else str(len(rows))
        others = ", ".join(row.trace_id[:8] for row in rows[1:6])
        _complain(f"{more} messages answer; this is the first. Others: --trace-id {others}{', ...' if len(rows) > 6 else ''}")
    return gather(tables, rows[0])


for verb in cli_live.VERBS:
    cli.add_command(verb)
cli_views.register(cli, _captures)
cli_files.register(cli, _captures, _one_message)


@cli.command(short_help="Explain tables and columns.")
@click.argument("table", required=False)
@click.option("--format", "layout", type=click.Choice(["text", "md", "json"]), default="text", show_default=True, help="Layout.")
def schema(table: str | None, layout: str) -> None:
    """The tables, or one table's columns and their meaning.

    \b
    Examples:
      mailhop schema
      mailhop schema hops
      mailhop schema where
      mailhop schema anomalies --format md
    """
    from analyzer.views.schema import shown

    with _reader_may_leave():
        sys.stdout.write(_encodable(shown(table, layout, _look(False)), sys.stdout))


@cli.command(short_help="Analyze the built-in story capture.")
@click.option("-o", "directory", metavar="DIR", help=f"Write the tables to DIR [default: a new {DEMO_DIRECTORY} directory].")
@click.option("--ascii", "ascii_only", is_flag=True, help="No characters beyond ASCII.")
def demo(directory: str | None, ascii_only: bool) -> int:
    """Analyze the built-in story: one capture, from sender to mailbox.

    \b
    Example:
      mailhop demo
    """
    with _story() as path:
        result = _run([str(path)], [], [], False)
        directory = directory or _demo_directory()
        from analyzer.tables.export import export
        from analyzer.views.overview import compose
        from analyzer.views.trace import gather

        export(result.tables, directory, ["jsonl", "csv"])
        look = _look(ascii_only)
        page = compose(result.tables, result.sources, look)
        first = next(iter(result.tables.rows("messages")), None)
        if first is not None:
            page.line()
            page.lines += gather(result.tables, first).page(look).lines
        page.line()
        page.line("  tables    ", f"in {look.safe(directory)} (jsonl, csv)")
        with _reader_may_leave():
            _print(page)
        _warn(result)
        return DAMAGED if result.damaged else DONE


@contextmanager
def _story() -> Iterator["Path"]:
    """The story capture: within the package when installed, in captures/ of a source tree."""
    from importlib.resources import as_file, files
    from pathlib import Path

    inside = files("analyzer") / "demo" / STORY
    if inside.is_file():
        with as_file(inside) as path:
            yield path
        return
    path = Path(__file__).resolve().parent.parent / "captures" / STORY
    if path.is_relative_to(Path.cwd()):  # shown in the page: as short as it can be typed
        path = path.relative_to(Path.cwd())
    if not path.is_file():
        raise MailhopError(f"the demo capture {STORY} is not installed", "reinstall mailhop, or analyze a capture of your own")
    yield path


def _demo_directory() -> str:
    """`mailhop-demo` here, or a temporary directory where nothing may be written here."""
    if os.access(".", os.W_OK):
        return DEMO_DIRECTORY
    from tempfile import mkdtemp

    return mkdtemp(prefix=DEMO_DIRECTORY + "-")


@cli.command(short_help="Examine what this machine can do.")
def doctor() -> int:
    """What this machine can do, and how to fix what it cannot.

    \b
    Example:
      mailhop doctor
    """
    from analyzer.doctor import examine

    page = examine(_look(False))
    with _reader_may_leave():
        _print(page)
    return DONE


@cli.command(short_help="Print shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what completes `mailhop` commands in a shell.

    \b
    Examples:
      mailhop completion bash >> ~/.bashrc
      mailhop completion fish > ~/.config/fish/completions/mailhop.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # the choice above names only shells that click knows
    click.echo(found(cli, {}, "mailhop", "_MAILHOP_COMPLETE").source())
