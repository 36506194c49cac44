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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from analyzer import cli_files, cli_live, cli_views
from analyzer.cli_shared import (
    DONE,
    FAILED,
    INTERRUPTED,
    MATCHED,
    Reading,
    chooses_message,
    close_stdout,
    complain,
    encodable,
    known_formats,
    look_here,
    print_page,
    reader_may_leave,
    reads_captures,
)
from analyzer.errors import ExpressionError, MailhopError

if TYPE_CHECKING:
    from pathlib import Path

    from analyzer.tables import Tables

FAIL_ON = ("rejected", "deferred", "plaintext-auth")
DEMO_DIRECTORY = "mailhop-demo"
STORY = "story.pcapng"


# from a command line to an exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy starts a thread per core for algebra, which we have none of
    was = gc.isenabled()
    gc.disable()  # rows hold no cycles and live to the end: collections would only walk them again and again
    try:
        return _main(arguments)
    finally:
        gc.freeze()  # what is left dies with the process: no collection needs to look at it
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
        close_stdout()
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
    click.echo(encodable(f"  {before}{after}\n  {' ' * len(before)}^\n  {error.fix}", sys.stderr), err=True)
    return FAILED


def _fail(what: str, status: int = FAILED) -> int:
    complain(f"error: {what}" if status == FAILED else what)
    return status


def _place(error: BaseException) -> str:
    """Where an unexpected exception came from: `KeyError('x') in streams.py line 12`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" in {os.path.basename(trace.tb_frame.f_code.co_filename)} line {trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {error}{where}"[:300]


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
@reads_captures
def analyze(
    reading: Reading,
    directory: str | None,
    formats: str | None,
    conditions: tuple[str, ...],
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
    names = known_formats(formats, directory)
    result = reading.run()
    reading.narrow(result)
    if directory is not None:
        from analyzer import shards
        from analyzer.tables.export import export

        export(result.tables, directory, names, partial(shards.run, reading.jobs))
    if not reading.quiet:
        from analyzer.views.overview import compose, next_steps

        page = compose(result.tables, result.sources, reading.look, reading.verbose)
        if directory is not None:
            page.line("  tables    ", f"in {page.look.safe(directory)} ({', '.join(names)})")
        next_steps(page, result.tables, reading.inputs, directory)
        with reader_may_leave():
            print_page(page)
    status = reading.end(result)
    matched = [said for name, said in _matches(result.tables, wanted)]
    for said in matched:
        complain(said)
    return MATCHED if matched else status


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


@cli.command(short_help="Show one message's timeline.")
@chooses_message
@click.option("--json", "as_json", is_flag=True, help="Every row of every table that belongs to the message.")
@click.option("--mermaid", "as_mermaid", is_flag=True, help="A Mermaid sequence diagram.")
@click.option("--svg", metavar="FILE", help="Write its waterfall and ladder as one SVG picture, too.")
@reads_captures
def trace(
    reading: Reading,
    as_json: bool,
    as_mermaid: bool,
    svg: str | None,
    **selectors: str | None,
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
    result = reading.run()
    told = reading.chosen(result, **selectors)
    if svg is not None:
        _write_picture(svg, told)
        reading.say(f"wrote {svg}")
    with reader_may_leave():
        if as_json:
            sys.stdout.write(told.json())
        elif as_mermaid:
            sys.stdout.write(encodable(told.mermaid(), sys.stdout))
        else:
            print_page(told.page(reading.look, reading.verbose))
    return reading.end(result)


def _write_picture(path: str, told: Any) -> None:
    from analyzer.views.drawing import picture

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture(told))
    except OSError as error:
        raise MailhopError(f"cannot write {path}: {error.strerror or error}", "name another file with --svg") from None


for verb in (*cli_live.VERBS, cli_views.report, cli_files.slice, cli_files.extract, cli_files.browse):
    cli.add_command(verb)


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

    with reader_may_leave():
        sys.stdout.write(encodable(shown(table, layout, look_here(False)), sys.stdout))


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
        reading = Reading((str(path),), ascii_only=ascii_only)
        result = reading.run()
        directory = directory or _demo_directory()
        from analyzer.tables.export import export
        from analyzer.views.overview import compose
        from analyzer.views.trace import gather

        export(result.tables, directory, ["jsonl", "csv"])
        look = reading.look
        page = compose(result.tables, result.sources, look)
        first = next(iter(result.tables.rows("messages")), None)
        if first is not None:
            page.line()
            page.lines += gather(result.tables, first).page(look).lines
        page.line()
        page.line("  tables    ", f"in {look.safe(directory)} (jsonl, csv)")
        with reader_may_leave():
            print_page(page)
        return reading.end(result)


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

    page = examine(look_here(False))
    with reader_may_leave():
        print_page(page)
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
