"""The live verbs: capture, watch.

Ctrl-C and SIGTERM end a capture in order (exit 0), a second one hurries; SIGHUP begins new files.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from analyzer.cli_shared import complain, key_log_at_hand, known_formats, look_here, print_page

if TYPE_CHECKING:
    from analyzer.live import Live, Plan
    from analyzer.views.live import Line
    from analyzer.views.text import Look

DONE, DAMAGED = 0, 1
_SWITCH = 0.0005
"""Seconds until a thread that computes makes way for the one that reads packets, which never has much to do."""
_REFRESH = 4
"""Times a second that the watch screen changes."""


def _sources(command: Any) -> Any:
    """Options of both verbs."""
    for part in (
        click.option(
            "--keylog",
            "keylogs",
            multiple=True,
            metavar="FILE",
            help="TLS key log, followed as it grows; repeatable. Else: $SSLKEYLOGFILE.",
        ),
        click.option("--ascii", "ascii_only", is_flag=True, help="No characters beyond ASCII."),
        click.option(
            "--backend",
            type=click.Choice(["auto", "dumpcap", "raw"]),
            default="auto",
            show_default=True,
            help="Who captures: dumpcap, or raw sockets (Linux, root).",
        ),
        click.option("-p", "--no-promiscuous", is_flag=True, help="Only packets from or to this machine."),
        click.option(
            "-a",
            "until",
            multiple=True,
            metavar="CONDITION",
            help="Stop after duration:SECONDS, messages:N or packets:N; repeatable.",
        ),
        click.option(
            "-f",
            "expression",
            metavar="BPF",
            help='Capture filter [default: mail ports, DNS and fragments, also in VLANs; "" captures everything].',
        ),
        click.option(
            "-i",
            "interfaces",
            multiple=True,
            required=True,
            metavar="IFACE",
            help="Interface, `any`, `-` (standard input) or a FIFO; repeatable.",
        ),
    ):
        command = part(command)
    return command


def _plan(
    interfaces: tuple[str, ...],
    expression: str | None,
    until: tuple[str, ...],
    no_promiscuous: bool,
    backend: str,
    keylogs: tuple[str, ...],
    **more: Any,
) -> "Plan":
    from analyzer.live import Plan, parse_until

    return Plan(
        tuple(dict.fromkeys(interfaces)),
        expression,
        not no_promiscuous,
        backend,
        until=parse_until(until),
        keylogs=keylogs or tuple(key_log_at_hand(empty=True)),
        **more,
    )


@contextmanager
def _signals(live: "Live") -> Iterator[None]:
    """Signals end the capture or begin new files, in order."""

    def end(number: int, frame: Any) -> None:
        live.stop()

    def turn(number: int, frame: Any) -> None:
        live.rotate()

    wanted: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: end, signal.SIGTERM: end}
    if hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = turn
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(live: "Live", quiet: bool) -> int:
    """Capture until the end, and say how it went."""
    import gc

    with _signals(live):
        live.begin()
        if not quiet:
            how = {"dumpcap": "dumpcap", "raw": "raw sockets", "stream": "a pipe"}[live.backend]
            complain(f"capturing on {live.info.name} by {how}; Ctrl-C ends it")
        live.collect = True
        gc.disable()
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            live.work()
        finally:
            sys.setswitchinterval(before)
            gc.enable()
    for damage in live.info.damage[:5]:
        complain(f"warning: {damage.source}: {damage.detail}")
    return DAMAGED if live.info.damage or live.error is not None else DONE


@click.command(short_help="Capture live: hops and fates as they happen.")
@click.option("--format", "formats", metavar="LIST", help="jsonl, csv, parquet, sqlite, comma-separated [default: jsonl].")
@click.option("-o", "directory", metavar="DIR", help="Tables: growing files while it runs, finished ones when it stops.")
@click.option(
    "-b",
    "ring",
    multiple=True,
    metavar="CONDITION",
    help="Next capture file after filesize:KB, duration:SECONDS or packets:N; keep files:N.",
)
@click.option("-w", "write", metavar="FILE", help="Write the packets to a pcapng file, too.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")
@_sources
def capture(
    interfaces: tuple[str, ...],
    expression: str | None,
    until: tuple[str, ...],
    no_promiscuous: bool,
    backend: str,
    ascii_only: bool,
    keylogs: tuple[str, ...],
    quiet: bool,
    write: str | None,
    ring: tuple[str, ...],
    directory: str | None,
    formats: str | None,
) -> int:
    """Capture live; a line per hop as it ends, a line per message when its fate is known.

    Ctrl-C or SIGTERM ends it and writes the tables; SIGHUP begins a new capture file and new tables.

    \b
    Examples:
      mailhop capture -i eth0
      mailhop capture -i eth0 -i lo -a duration:60 -w mail.pcapng -o tables/
      mailhop capture -i any -w mail.pcapng -b filesize:100000 -b files:10
      ssh mx1 sudo tcpdump -U -w - port 25 | mailhop capture -i -
    """
    from analyzer.errors import MailhopError
    from analyzer.live import Live
    from analyzer.wire.ring import parse_rule

    if ring and write is None:
        raise MailhopError("-b without -w writes nothing", "name a capture file: -w FILE.pcapng")
    plan = _plan(
        interfaces,
        expression,
        until,
        no_promiscuous,
        backend,
        keylogs,
        write=write,
        ring=parse_rule(ring),
        directory=directory,
        formats=tuple(known_formats(formats, directory)),
    )
    on_hop, on_message = (None, None) if quiet else _line_by_line(look_here(ascii_only))
    live = Live(plan, say=complain, on_hop=on_hop, on_message=on_message)
    try:
        status = _run(live, quiet)
    except BrokenPipeError:
        live.stop()
        raise
    if not quiet:
        from analyzer.views.live import summary

        counts = live.counts
        written = [f"tables in {directory}"] if directory is not None else []
        complain(summary(counts.packets, counts.dropped, counts.shed, counts.hops, counts.messages, written))
    return status


def _line_by_line(look: "Look") -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """How hops and messages are printed as they come."""
    from analyzer.views.live import hop_line, message_line

    return lambda hop: _out(hop_line(hop, look), look), lambda row: _out(message_line(row, look), look)


def _out(line: "Line", look: "Look") -> None:
    from analyzer.views.text import Page

    print_page(Page(look, [line]))
    sys.stdout.flush()


@click.command(short_help="Watch live: one changing screen.")
@_sources
def watch(
    interfaces: tuple[str, ...],
    expression: str | None,
    until: tuple[str, ...],
    no_promiscuous: bool,
    backend: str,
    ascii_only: bool,
    keylogs: tuple[str, ...],
) -> int:
    """Messages in flight, latency per role, drops, on one changing screen; plain lines where there is no terminal.

    \b
    Example:
      mailhop watch -i eth0
    """
    from analyzer.live import Live

    plan = _plan(interfaces, expression, until, no_promiscuous, backend, keylogs)
    look = look_here(ascii_only)
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        on_hop, on_message = _line_by_line(look)
        return _run(Live(plan, say=complain, on_hop=on_hop, on_message=on_message), False)
    return _watch_screen(plan, ascii_only)


def _watch_screen(plan: "Plan", ascii_only: bool) -> int:
    from rich.console import Console
    from rich.live import Live as Screen
    from rich.text import Text

    from analyzer.live import Live
    from analyzer.views.live import summary

    styles = {"dim": "dim", "bold": "bold", "good": "green", "warn": "yellow", "bad": "bold red", "name": "cyan"}
    if os.environ.get("NO_COLOR"):
        styles = {}
    console = Console(highlight=False, markup=False, emoji=False)
    said: list[str] = []
    due = time.monotonic()

    def show(live: Live) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due = now + 1 / _REFRESH
        page = live.page(look_here(ascii_only), console.height - len(said[-2:]))
        lines = [Text.assemble(*((span.text, styles.get(span.style, "")) for span in line)) for line in page.lines]
        text = Text("\n", no_wrap=True, overflow="ellipsis").join([*lines, *map(Text, said[-2:])])
        text.no_wrap, text.overflow = True, "ellipsis"
        display.update(text, refresh=True)

    live = Live(plan, say=said.append, on_tick=show)
    with Screen(console=console, auto_refresh=False, screen=True) as display:
        status = _run(live, True)
    for text in said:
        complain(text)
    counts = live.counts
    with suppress(OSError):
        complain(summary(counts.packets, counts.dropped, counts.shed, counts.hops, counts.messages))
    return status


VERBS: Sequence[click.Command] = (capture, watch)
"""What the command adds to its verbs."""
