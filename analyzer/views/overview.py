"""What `mailhop analyze` prints: what was read, who took part, which messages, what was odd."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from shlex import quote

from analyzer.mail.records import Delivery, Message
from analyzer.tables import Tables, anomaly_names
from analyzer.views.text import Look, Page, Span, cells, clock, counted, date, day, duration
from analyzer.wire.types import SourceInfo

SOURCES = 10
"""Files described one by one."""
LISTED = 20
"""Messages listed."""
NAME = 34
"""Columns that an address may take."""
REFUSED = 400
"""Reply codes from here on are refusals (RFC 5321 4.2.1)."""
LAST = "subject/reply"
"""The last column: a message is known by its subject, a refused one by what the server said."""
RIGHT = ("hops", "total")
"""Columns of numbers."""
NARROW, NARROWEST = 100, 72
"""Columns below which the list says less, and least."""
ODDITIES = 5
"""Names of anomalies listed."""

STYLE = {
    "delivered": "good",
    "accepted": "good",
    "relayed": "good",
    "deferred": "warn",
    "partial": "warn",
    "mixed": "warn",
    "aborted": "bad",
    "bounced": "bad",
    "rejected": "bad",
}
"""How an outcome is coloured; the word itself always stands there too."""

OUTCOMES = ("delivered", "relayed", "deferred", "rejected", "bounced", "aborted", "mixed", "unknown")
ROLES = ("mua", "msa", "mta", "mx", "mda", "pop3", "imap", "resolver", "authoritative")
PLAINTEXT_MECHANISMS = {"PLAIN", "LOGIN", "USER", "XOAUTH2", "OAUTHBEARER"}
"""Logins whose secret can be read or used again by whoever sees the packets."""


@dataclass
class _Sessions:
    """Sessions of one protocol, counted."""

    number: int = 0
    tls: int = 0
    decrypted: int = 0
    opaque: int = 0


@dataclass
class _Fate:
    """What the list says of a message's recipients."""

    recipients: list[str] = field(default_factory=list)
    refusal: Delivery | None = None


def overview(tables: Tables, sources: Sequence[SourceInfo]) -> str:
    """The overview as plain text."""
    return str(compose(tables, sources, Look()))


def compose(
    tables: Tables,
    sources: Sequence[SourceInfo],
    look: Look,
    everything: bool = False,
) -> Page:
    """The overview as a page; `everything`: each message, and each kind of anomaly with its meaning."""
    page = Page(look)
    for source in sources[:SOURCES]:
        _source(page, source)
    if len(sources) > SOURCES:
        rest = sources[SOURCES:]
        page.line(f"and {counted(len(rest), 'file')} more with {counted(sum(source.frames for source in rest), 'frame')}")
    _clocks(page, tables)
    _sessions(page, tables)
    _hosts(page, tables)
    _messages(page, tables, everything)
    _oddities(page, tables, everything)
    return page


def next_steps(page: Page, tables: Tables, captures: Sequence[str], written: str | None) -> None:
    """What to do next: commands that can be copied.  `captures`: as the caller gave them."""
    first = next(iter(tables.rows("messages")), None)
    files = " ".join(quote(c) for c in captures)
    if "-" in captures:
        files = "FILE"
    elif len(captures) > 1 and cells(files) > page.look.width // 2:
        files = quote(captures[0]) + " " + page.look.cut
    steps = []
    if first is not None:
        steps.append(f"mailhop trace {page.look.safe(files)} --trace-id {first.trace_id[:8]}")
    if written is None:
        steps.append(f"mailhop analyze {page.look.safe(files)} -o tables/ --format jsonl,csv")
    for i, step in enumerate(steps):
        page.line(Span("next  " if i == 0 else "      ", "dim"), step)


def is_plaintext_login(mechanism: str | None, tls: str) -> bool:
    """Whether a session logged in so that the packets gave the secret away."""
    return tls == "none" and (mechanism or "").upper() in PLAINTEXT_MECHANISMS


def _source(page: Page, source: SourceInfo) -> None:
    look = page.look
    dot = f" {look.dot} "
    parts = [source.kind, counted(source.frames, "frame")]
    if source.ts_first is not None:
        span = ((source.ts_last or source.ts_first) - source.ts_first) / 1e9
        parts.append(f"{date(source.ts_first)} + {duration(span)}")
    if source.cut_frames:
        parts.append(f"{counted(source.cut_frames, 'frame')} cut short by the capture (snap length)")
    name = look.safe(source.name)
    page.wrapped("", [Span(name, "bold")], indent=0)
    if cells(name) + 2 + cells(dot.join(parts)) <= look.width:
        page.lines[-1] += [Span("  "), Span(dot.join(filter(None, parts)))]
    else:
        page.wrapped("          ", filter(None, parts), dot)
    if source.frames and source.cut_frames * 2 > source.frames:
        page.line("          ", Span("most frames are cut: message text is missing; capture again with -s 0", "warn"))


def _clocks(page: Page, tables: Tables) -> None:
    """Taps whose clocks are off."""
    if not tables.anomaly_counts().get("clock_offset"):
        return
    for row in islice((row for row in tables.rows("anomalies") if row.name == "clock_offset"), SOURCES):
        page.line("  clock     ", Span(f"{page.look.safe(row.source)}: {page.look.safe(row.detail)}", "warn"))


def _sessions(page: Page, tables: Tables) -> None:
    by_protocol: dict[str, _Sessions] = {}
    plaintext = 0
    for row in tables.rows("sessions"):
        tally = by_protocol.setdefault(row.protocol, _Sessions())
        tally.number += 1
        tally.tls += row.tls != "none"
        tally.decrypted += row.visibility == "decrypted"
        tally.opaque += row.visibility == "opaque"
        plaintext += is_plaintext_login(row.auth_mechanism, row.tls)
    words = [
        _session_words(name, tally) for name, tally in sorted(by_protocol.items(), key=lambda item: (-item[1].number, item[0]))
    ]
    if tables.count("dns"):
        words.append(counted(tables.count("dns"), "DNS question"))
    page.wrapped("  sessions  ", words or ["no mail", *_instead(page, tables)], f" {page.look.dot} ")
    opaque = sum(t.opaque for t in by_protocol.values())
    if opaque:
        page.line("            ", Span(f"{counted(opaque, 'session')} in TLS cannot be read without keys: --keylog FILE", "warn"))
    if plaintext:
        page.line("            ", Span(f"{counted(plaintext, 'login')} sent a password without TLS", "bad"))


def _instead(page: Page, tables: Tables) -> list[str]:
    """What a capture without mail holds."""
    if not tables.anomaly_counts().get("no_mail"):
        return []
    return [page.look.safe(row.detail) for row in tables.rows("anomalies") if row.name == "no_mail"]


def _session_words(protocol: str, tally: _Sessions) -> str:
    parts = []
    if tally.tls:
        parts.append(f"{tally.tls:,} TLS")
    if tally.decrypted:
        parts.append(f"{tally.decrypted:,} decrypted")
    return f"{protocol.upper()} {tally.number:,}" + (f" ({', '.join(parts)})" if parts else "")


def _hosts(page: Page, tables: Tables) -> None:
    roles: Counter[str] = Counter()
    for row in tables.rows("hosts"):
        roles.update(row.roles)
    number = tables.count("hosts")
    if number:
        words = [f"{role.upper() if len(role) <= 4 else role} {roles[role]:,}" for role in ROLES if roles[role]]
        page.wrapped("  hosts     ", [f"{number:,}:", *words] if words else [f"{number:,}"], "  ")


def _messages(page: Page, tables: Tables, every: bool) -> None:
    outcomes: Counter[str] = Counter()
    elapsed = array("d")
    slowest: Message | None = None
    listed: list[Message] = []
    spans_days = False
    for row in tables.rows("messages"):
        outcomes[row.outcome] += 1
        if row.elapsed_s is not None:
            elapsed.append(row.elapsed_s)
            if slowest is None or row.elapsed_s > (slowest.elapsed_s or 0):
                slowest = row
        if every or len(listed) < LISTED:
            listed.append(row)
            spans_days = spans_days or day(row.ts_first) != day(listed[0].ts_first)
    number = tables.count("messages")
    if not number:
        page.line("  messages  none")
        return
    words: list[str | Span] = [Span(f"{outcomes[o]:,} {o}", STYLE.get(o, "")) for o in OUTCOMES if outcomes[o]]
    words[0] = Span(f"{number:,}: {words[0].text}", words[0].style) if isinstance(words[0], Span) else words[0]
    page.wrapped("  messages  ", words, f" {page.look.dot} ")
    if slowest is not None and number > 1:
        middle = sorted(elapsed)[len(elapsed) // 2]
        page.line(f"  time      median {duration(middle)}, slowest {duration(slowest.elapsed_s or 0)} ({slowest.trace_id[:8]})")
    _list(page, listed, _fates(tables, {row.trace_id for row in listed}), spans_days)
    if number > len(listed):
        page.line(Span(f"            {number - len(listed):,} more: -v lists them all", "dim"))


def _fates(tables: Tables, wanted: set[str]) -> dict[str, _Fate]:
    fates = {trace_id: _Fate() for trace_id in wanted}
    for row in tables.rows("deliveries"):
        fate = fates.get(row.trace_id)
        if fate is not None:
            if len(fate.recipients) < LISTED:
                fate.recipients.append(row.recipient)
            if fate.refusal is None and (row.code or 0) >= REFUSED:
                fate.refusal = row
    return fates


def _list(page: Page, rows: Sequence[Message], fates: dict[str, _Fate], spans_days: bool) -> None:
    look = page.look
    lines = [_values(row, fates[row.trace_id], spans_days) for row in rows]
    widths = {
        "trace": 8,
        "start": 14 if spans_days else 8,
        "from": 0,
        "to": 0,
        "hops": 4,
        "total": 7,
        "outcome": 9,
        LAST: 0,
    }
    if look.width < NARROW:
        del widths["start"], widths["hops"]
    if look.width < NARROWEST:
        del widths[LAST]
    room = look.width - sum(widths.values()) - 2 * len(widths)
    most = min(room * 3 // 8 if LAST in widths else room // 2, NAME)
    for name in ("from", "to"):
        widths[name] = min(most, max(len(name), *(cells(look.safe(line[name]) + line.get(f"{name}+", "")) for line in lines)))
    if LAST in widths:
        widths[LAST] = room - widths["from"] - widths["to"]
    page.line(Span("  " + "  ".join(look.fit(word, widths[word], word in RIGHT) for word in widths).rstrip(), "dim"))
    for line in lines:
        spans: list[str | Span] = []
        for word, columns in widths.items():
            style = {"trace": "name", "outcome": STYLE.get(line[word], "")}.get(word, "")
            more = line.get(f"{word}+", "")
            spans += ["  ", Span(look.fit(look.short(line[word], columns - len(more)) + more, columns, word in RIGHT), style)]
        page.line(*spans)


def _values(row: Message, fate: _Fate, spans_days: bool) -> dict[str, str]:
    """What the list says of a message; `to+` must not be cut off with the end of `to`."""
    recipients = fate.recipients or [row.header_to or ""]
    return {
        "trace": row.trace_id[:8],
        "start": f"{day(row.ts_first)[5:]} {clock(row.ts_first)}" if spans_days else clock(row.ts_first),
        "from": sender(row),
        "to": recipients[0],
        "to+": f" +{len(recipients) - 1}" if len(recipients) > 1 else "",
        "hops": str(row.hops),
        "total": duration(row.elapsed_s) if row.elapsed_s is not None else "",
        "outcome": row.outcome,
        LAST: _reply(fate.refusal) if fate.refusal is not None else row.subject or "",
    }


def sender(row: Message) -> str:
    """Who sent it: the reverse-path, `<>` when it is null, the From field when no envelope was seen."""
    if row.mail_from is None:
        return row.header_from or ""
    return row.mail_from or "<>"


def _reply(row: Delivery) -> str:
    return " ".join(str(part) for part in (row.code, row.reply_text) if part)


def _oddities(page: Page, tables: Tables, every: bool) -> None:
    counts = {name: number for name, number in tables.anomaly_counts().items() if name != "no_mail"}  # told with the sessions
    if not counts:
        return
    if every:
        page.line("  odd")
        meanings = anomaly_names()
        for name, number in counts.items():
            page.wrapped(f"    {number:>7,}  {page.look.safe(name)}  ", meanings.get(name, "").split(" "), indent=13)
        return
    words = [f"{number:,} {page.look.safe(name)}" for name, number in islice(counts.items(), ODDITIES)]
    if len(counts) > ODDITIES:
        words.append(f"{counted(len(counts) - ODDITIES, 'more kind')}")
    page.wrapped("  odd       ", words, f" {page.look.dot} ")
