"""One message's packets as a pcapng file: over all its hops, with its lookups, retrieval and mailbox events.

What is in it
1. Every connection that carried only this message, whole.
2. Of a connection that carried others too: set-up (SYN, greeting, EHLO, STARTTLS, login) and end, and this message's
   commands, replies and data; a frame in which two messages meet is in it, as it is this message's too.
3. The lookups bound to its hops, copies and answers included, and the tries to connect that came to nothing.
TLS secrets are never copied: give Wireshark the key log.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from analyzer import __version__
from analyzer.errors import MailhopError
from analyzer.limits import Limits
from analyzer.mail.records import Hop
from analyzer.pipeline import Result
from analyzer.protocols.base import Command
from analyzer.protocols.dns import Transaction
from analyzer.tables.visible import visible
from analyzer.tables.whole import whole_file
from analyzer.views.trace import Trace
from analyzer.wire.pick import Copied, Picker, Question, Span, Spans, Talk, copy
from analyzer.wire.types import Frames, SourceInfo

ABOUT_MESSAGES = frozenset("MAIL RCPT DATA BDAT RETR TOP DELE FETCH STORE COPY MOVE APPEND REPLACE".split())
"""Commands about messages (after IMAP's UID); the others set a session up, end it, or tell numbers (SEARCH)."""
_LONGER = 1_000_000
"""Nanoseconds after its last packet for which a connection is looked at: the ACK of the last FIN."""


@dataclass
class Wanted:
    """What `Picker` needs to know of one message."""

    talks: list[Talk] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    frames: list[tuple[str, int, str]] = field(default_factory=list)
    tries: list[tuple[str, int, str]] = field(default_factory=list)


def write(path: str | os.PathLike[str], result: Result, trace: Trace) -> Copied:
    """Write the packets of a message; the file takes its name when it is whole.

    Raises CaptureError when a capture cannot be read again, MailhopError when the file cannot be written.
    """
    limits = result.limits
    for again, source in zip(result.inputs, result.sources, strict=True):
        if not again.readable:
            raise MailhopError(f"{source.name} can be read once only, and a slice reads twice", "save it to a file first")
    wanted = want(result, trace)
    picker = Picker(limits, wanted.talks, wanted.questions, wanted.frames, wanted.tries)
    for again, source in zip(result.inputs, result.sources, strict=True):
        for frames in again.frames(limits, SourceInfo(source.name)):
            picker.feed(frames)

    def read(i: int, info: SourceInfo) -> Iterator[Frames]:
        return result.inputs[i].frames(limits, info)

    target = Path(path)
    if any(_same(target, again.item) for again in result.inputs):
        raise MailhopError(f"{visible(str(path))} is one of the captures", "name another file with -w")
    try:
        with whole_file(target) as made:
            names = [source.name for source in result.sources]
            copied = copy(made, names, picker.chosen, read, f"mailhop {__version__}")
    except OSError as error:
        what = f"cannot write {visible(str(path))}: {error.strerror or error}"
        raise MailhopError(what, "name a file that can be written with -w") from None
    return copied


def _same(target: Path, item: object) -> bool:
    try:
        return isinstance(item, str | os.PathLike) and target.samefile(item)
    except OSError:
        return False


def want(result: Result, trace: Trace) -> Wanted:
    """Which connections, exchanges and datagrams are the message's."""
    wanted = Wanted()
    sessions = {row.session_id: row for row in trace.sessions}
    ends = {source.name: source.ts_last or 0 for source in result.sources}
    hops: dict[str | None, list[Hop]] = defaultdict(list)
    for hop in result.tables.rows("hops"):
        if hop.session_id in sessions:
            hops[hop.session_id].append(hop)
    spoken: dict[str, list[Command]] = defaultdict(list)
    for command in result.tables.rows("commands"):
        if command.session_id in sessions:
            spoken[command.session_id].append(command)
    for session_id, session in sessions.items():
        talk = Talk(
            session.source,
            (session.client_ip, session.client_port, session.server_ip, session.server_port),
            session.ts or 0,
            (session.ts_end or session.ts or 0) + _LONGER,
            _note(session.protocol, [hop for hop in hops[session_id] if hop.trace_id == trace.message.trace_id]),
            split=(session.ts_end or 0) > ends.get(session.source, 0),
        )
        _divide(talk, trace, session_id, hops[session_id], spoken[session_id])
        wanted.talks.append(talk)
    for row in trace.dns:
        _ask(wanted, row, result.limits)
    known = set(sessions)
    for step in trace.timeline:
        if step.source is None or step.frame is None or step.session_id in known or step.event.startswith("dns_"):
            continue
        note = f"{step.event} of hop {step.hop}" if step.hop is not None else step.event
        (wanted.tries if step.event == "connect" else wanted.frames).append((step.source, step.frame, note))
        if step.event == "connect":
            wanted.frames.append((step.source, step.frame, note))
    return wanted


def _note(protocol: str, mine: list[Hop]) -> str:
    numbers = ", ".join(str(hop.hop) for hop in mine)
    return f"{protocol.upper()} connection of hop {numbers}" if mine else f"{protocol.upper()} connection"


def _divide(talk: Talk, trace: Trace, session_id: str, hops: list[Hop], commands: list[Command]) -> None:
    """What within a session is about the message, and what about others."""
    trace_id = trace.message.trace_id
    own = [hop for hop in hops if hop.trace_id == trace_id]
    mine = [span for hop in own for span in _spans(hop)]
    others = [span for hop in hops if hop.trace_id != trace_id for span in _spans(hop)]
    events = [s for s in trace.timeline if s.session_id == session_id and s.ts is not None and s.frame is not None]
    mine += [Span(s.ts or 0, s.ts or 0, s.frame, s.frame, f"{s.event} of hop {s.hop}") for s in events]
    starts = {hop.ts_start for hop in own}
    shared = starts & {hop.ts_start for hop in hops if hop.trace_id != trace_id}
    moments = [step.ts or 0 for step in events]
    named = {name for command in commands if command.ts in starts and (name := _name(command))}
    for command in commands:
        verb = command.verb.removeprefix("UID ")
        if command.ts is None or verb not in ABOUT_MESSAGES:
            continue
        until = command.ts_reply or command.ts
        if command.ts in starts and verb == "FETCH":  # its data are spans of their own: others' may be in it, too
            for ts, frame in ((command.ts, command.frame), (until, command.reply_frame)):
                mine.append(Span(ts, ts, frame, frame, "FETCH"))
            if command.ts in shared:
                others.append(Span(command.ts, until))
        elif command.ts in starts or _name(command) in named or any(command.ts <= ts <= until for ts in moments):
            mine.append(Span(command.ts, until, command.frame, command.reply_frame))
        elif not any(_holds(hop, command.ts) for hop in own):
            others.append(Span(command.ts, until, command.frame, command.reply_frame))
    talk.mine, talk.others = Spans(mine), Spans(others)


def _name(command: Command) -> str | None:
    """The one message a command names for the whole of its session: by POP3 number or IMAP UID."""
    number = (command.argument or "").partition(" ")[0]
    lasting = command.protocol == "pop3" or command.verb.startswith("UID ")
    return number if lasting and number.isdecimal() else None


def _holds(hop: Hop, ts: int) -> bool:
    """Whether a command is of a transaction."""
    return hop.kind != "retrieve" and hop.ts_start is not None and hop.ts_start <= ts <= (hop.ts_end or hop.ts_eom or ts)


def _spans(hop: Hop) -> Iterator[Span]:
    """When a hop took place: a transaction as a whole, a retrieval when its octets came."""
    note = f"hop {hop.hop}, {hop.kind}"
    known = [ts for ts in (hop.ts_start, hop.ts_data, hop.ts_eom, hop.ts_end) if ts is not None]
    if not known:
        return
    if hop.kind == "retrieve" and hop.protocol == "imap":
        yield Span(hop.ts_data or known[0], hop.ts_eom or known[-1], note=note)
    else:
        yield Span(known[0], max(known), hop.first_frame, hop.last_frame, note)


def _ask(wanted: Wanted, row: Transaction, limits: Limits) -> None:
    note = f"lookup for hop {row.hop}, {row.qtype} {visible(row.qname or '?')}"
    for frame in (row.frame, row.reply_frame):
        if frame is not None:
            wanted.frames.append((row.source, frame, note))
    if row.ts is None:
        return
    ends = (row.client_ip, row.client_port, row.server_ip, row.server_port)
    until = row.ts_reply or row.ts + limits.dns_timeout
    if row.transport == "tcp":
        wanted.talks.append(
            Talk(
                row.source,
                ends,
                row.ts - limits.dns_timeout,
                until + limits.dns_timeout,
                note,
                Spans([Span(row.ts, until, row.frame, row.reply_frame)]),
                Spans(_outside(row.ts, until, limits.dns_timeout)),
            )
        )
    elif row.dns_id is not None:
        wanted.questions.append(Question(row.source, ends, row.ts, until, row.dns_id, note))


def _outside(ts: int, until: int, reach: int) -> Iterable[Span]:
    """Before a question and after its answer a connection may serve others."""
    yield Span(ts - reach, ts - 1)
    yield Span(until + 1, until + reach)
