"""What a live capture shows: a line per hop as it ends, a line per message when its fate is known, a screen to watch."""

from collections.abc import Iterable, Mapping, Sequence

from analyzer.mail.records import Message
from analyzer.protocols.base import MessageCarried
from analyzer.views.overview import STYLE
from analyzer.views.text import Look, Page, Span, clock, counted, duration, listed

WORDS = {"transaction": "hand-over", "retrieve": "retrieval", "append": "append"}
_SECOND = 1_000_000_000
_ADDRESS = 40
_SUBJECT = 40
_WAITING = 15
"""Messages on the watch screen."""

Line = list[Span]
Latency = Mapping[str, tuple[int, float | None, float | None]]
"""Role of the server -> hops, median seconds to accept, median seconds in its client's queue."""


def _end(look: Look, ip: str, port: int | None, name: str | None) -> str:
    where = f"[{ip}]" if ":" in ip and port is not None else ip
    where += f":{port}" if port is not None else ""
    return f"{look.short(name, _ADDRESS)} {where}" if name else where


def hop_line(event: MessageCarried, look: Look) -> Line:
    """A hop that has ended."""
    info = event.session
    ts = event.ts_end or event.ts_eom or event.ts_start
    line = [
        Span(f"{clock(ts)}  "),
        Span(f"{info.protocol.upper():<4} "),
        Span(_end(look, info.client_ip, None, info.client_name)),
        Span(f" {look.arrow} "),
        Span(_end(look, info.server_ip, info.server_port, info.server_name)),
        Span("  "),
    ]
    content = event.content
    if content is not None and content.message_id:
        line += [Span(look.short(content.message_id, 2 * _ADDRESS), "name"), Span("  ")]
    if event.kind == "transaction":
        to = [r.address for r in event.recipients]
        more = f" +{len(to) - 1}" if len(to) > 1 else ""
        line.append(Span(f"{_path(look, event.mail_from)} {look.arrow} {_path(look, to[0]) if to else '?'}{more}  "))
        line.append(Span(event.outcome, STYLE.get(event.outcome, "")))
        reply = " ".join(str(part) for part in (event.code, event.enhanced_code) if part)
        line.append(Span(f" {reply}" if reply else ""))
    else:
        line.append(Span(WORDS[event.kind]))
    if content is not None and content.size:
        line.append(Span(f"  {counted(content.size, 'octet')}"))
    if event.ts_start is not None and ts is not None:
        line.append(Span(f"  {duration((ts - event.ts_start) / _SECOND)}", "dim"))
    return line


def row(event: MessageCarried, look: Look) -> Line:
    """A hop that has ended, on a line of the screen: what matters most stands first, because a narrow terminal cuts the end."""
    info = event.session
    ts = event.ts_end or event.ts_eom or event.ts_start
    took = duration((ts - event.ts_start) / _SECOND) if event.ts_start is not None and ts is not None else ""
    said = event.outcome if event.kind == "transaction" else WORDS[event.kind]
    content = event.content
    named = content.message_id if content is not None else None
    ends = [
        look.short(info.client_name or info.client_ip, _ADDRESS),
        f"{look.arrow} {look.short(info.server_name or info.server_ip, _ADDRESS)}:{info.server_port}",
    ]
    return [
        Span(f"{clock(ts)}  {info.protocol.upper():<4}  "),
        Span(f"{said:<9}", STYLE.get(said, "")),
        Span(f" {event.code or '':>3} {took:>7}  ", "dim"),
        Span(" ".join(ends) + "  "),
        Span(look.short(named, 2 * _ADDRESS) if named else _path(look, event.mail_from), "name"),
    ]


def _path(look: Look, address: str | None) -> str:
    return "?" if address is None else look.short(address, _ADDRESS) if address else "<>"


def message_line(row: Message, look: Look) -> Line:
    """A message whose fate is known."""
    line = [
        Span(f"{clock(row.ts_last)}  "),
        Span("message ", "bold"),
        Span(row.outcome, STYLE.get(row.outcome, "")),
        Span(f"  {look.short(row.message_id, 2 * _ADDRESS)}" if row.message_id else f"  trace {row.trace_id[:8]}", "name"),
        Span(f"  {counted(row.hops, 'hop')}"),
    ]
    if row.elapsed_s is not None:
        line.append(Span(f"  {duration(row.elapsed_s)}"))
    if row.subject:
        line.append(Span(f"  {look.short(row.subject, _SUBJECT)}", "dim"))
    return line


def summary(packets: int, dropped: int, shed: int, hops: int, messages: Mapping[str, int], written: Sequence[str] = ()) -> str:
    """The last line of a capture."""
    total = sum(messages.values())
    fates = listed([f"{number:,} {outcome}" for outcome, number in sorted(messages.items(), key=lambda item: -item[1])])
    text = f"{counted(packets, 'packet')}, {dropped:,} dropped"
    text += f", {shed:,} not analyzed" if shed else ""
    text += f"; {counted(hops, 'hop')} of {counted(total, 'message')}"
    text += f": {fates}" if fates else ""
    return "; ".join([text, *written])


def screen(
    look: Look,
    name: str,
    seconds: float,
    numbers: tuple[int, int, int, int],
    outcomes: Mapping[str, int],
    latency: Latency,
    waiting: Sequence[Message],
    in_flight: int,
    latest: Iterable[MessageCarried],
    now: int,
    height: int,
) -> Page:
    """What `mailhop watch` shows; `numbers` are packets, packets dropped, packets not analyzed, hops."""
    packets, dropped, shed, hops = numbers
    page = Page(look)
    state = [
        Span(f"mailhop {look.dot} {look.safe(name)} {look.dot} {duration(seconds)}", "bold"),
        Span(f"  {counted(packets, 'packet')}"),
    ]
    state.append(Span(f", {dropped:,} dropped", "bad" if dropped else ""))
    if shed:
        state.append(Span(f", {shed:,} not analyzed", "bad"))
    state.append(Span(f"  {counted(hops, 'hop')}"))
    page.line(*state)
    if outcomes:
        fates: list[Span | str] = []
        for outcome, number in sorted(outcomes.items(), key=lambda item: -item[1]):
            fates.append(Span(f"{number:,} {outcome}", STYLE.get(outcome, "")))
        page.wrapped("messages  ", fates, "  ")
    for role, (count, accept, queue) in sorted(latency.items(), key=lambda item: -item[1][0]):
        took = f"accepts in {duration(accept)}" if accept else ""
        waited = f"after {duration(queue)} in the queue before" if queue is not None else ""
        page.line(f"  {role:<5} {counted(count, 'hop'):>10}  {'  '.join(filter(None, [took, waited]))}")
    room = max(height - len(page.lines) - 4, 4)
    page.line()
    page.line(Span(f"in flight ({in_flight:,})", "bold"))
    for message in waiting[: min(_WAITING, room // 2)]:
        age = duration(max(now - (message.ts_first or now), 0) / _SECOND)
        title = look.short(message.subject or message.message_id or message.trace_id[:8], _SUBJECT)
        page.line(
            f"  {age:>8}  ",
            Span(f"{message.outcome:<9}", STYLE.get(message.outcome, "")),
            f"  {look.short(message.mail_from or '<>', _ADDRESS)}  {title}",
        )
    page.line()
    page.line(Span("last hops", "bold"))
    left = max(height - len(page.lines) - 1, 2)
    for event in list(latest)[-left:]:
        page.lines.append([Span("  "), *row(event, look)])
    return page
