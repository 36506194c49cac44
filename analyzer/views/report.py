"""The HTML report: one file that opens from disk, asks no network, and shows what traffic said as text.

What every message needs for the list is JSON in a script island; what only an opened message needs is
deflated, some messages to a block, and drawn by templates/report.js when the reader asks for it.
"""

import json
import os
import zlib
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from analyzer import __version__
from analyzer.limits import Limits
from analyzer.mail.records import Authentication, Delivery, Hop, Message
from analyzer.tables import Tables, anomaly_names
from analyzer.tables.visible import visible
from analyzer.tables.whole import whole_file
from analyzer.views.drawing import FILL, MARKS, OUTCOME, Arrow, Bar, Drawing, Lane, Row, draw, role_word
from analyzer.views.overview import OUTCOMES, STYLE, sender
from analyzer.views.rolemap import RoleMap
from analyzer.views.telling import PHASES, judged, not_seen, time_went, verdict_style
from analyzer.views.text import Look, counted, date, duration
from analyzer.views.trace import Trace, gather_all, wireshark
from analyzer.wire.types import SourceInfo

TEMPLATES = Path(__file__).parent / "templates"
BLOCK = 100
"""Messages of one deflated block: opening a message inflates its block only."""
TO = 4
"""Recipients named in the list; the search knows no others."""
EVIDENCE = 200
"""Rows of one message's anomalies, recipients or joins."""
PLACES = 40
"""Rows of the table of delays between hosts."""
_TEXT, _REPLY = 240, 200
"""Columns that a subject, and a reply, may take."""
_LOOK = Look()


class Entry(NamedTuple):
    """A message in the list."""

    trace_id: str
    message_id: str
    ts: float | None
    """Milliseconds since 1970, as JavaScript counts; microseconds are kept."""
    elapsed_s: float | None
    sender: str
    to: str
    subject: str
    hops: int
    outcome: str
    reply: str
    size: int | None
    facts: str
    parent: str
    relation: str


class Detail(NamedTuple):
    """What an opened message shows beside its drawing."""

    drawing: Any
    """Its arrows as columns; times and frames as differences, because they deflate to a third."""
    hops: list[tuple[Any, ...]]
    """Evidence: hop, basis, source, session, first and last frame, filter."""
    fates: list[tuple[Any, ...]]
    """Recipient, outcome, attempts, reply."""
    odd: list[tuple[Any, ...]]
    """Name, what it says, source, frame."""
    joins: list[tuple[Any, ...]]
    """Hop, earlier hop, keys, score, conflicts."""
    verdicts: list[tuple[Any, ...]]
    """Hop, method, result, its style, domain and key, reason, what the server wrote."""
    filters: list[tuple[str, str]]
    """Source and the filter that shows the whole message there."""
    spent: str
    """Where the time went, in one sentence."""
    unseen: list[str]
    """What the packets do not show."""


class Delay(NamedTuple):
    """Times of the hops of one kind."""

    what: str
    hops: int
    cells: list[tuple[str, str]]
    """Median and 95th percentile of the hand-over and of each phase, in words."""
    median: float
    p95: float


def write(path: str | os.PathLike[str], tables: Tables, sources: Sequence[SourceInfo]) -> None:
    """Write the report; the file takes its name when it is whole.  Raises OSError."""
    with whole_file(Path(path)) as made:
        made.writelines(part.encode() for part in parts(tables, sources))
        os.chmod(made.name, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def parts(tables: Tables, sources: Sequence[SourceInfo], limits: Limits | None = None) -> Iterator[str]:
    """The report's text, piece by piece."""
    from jinja2 import Environment, FileSystemLoader

    most = (limits or Limits()).report_messages
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = environment.get_template("report.css").render(fill=FILL)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    number = tables.count("messages")
    names = [_LOOK.short(os.path.basename(source.name), 100) for source in sources]
    yield from environment.get_template("report.html").generate(
        policy=_policy(style, script),
        style=style,
        script=script,
        version=__version__,
        title=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        sources=[_source(source) for source in sources],
        number=number,
        shown=min(number, most),
        counts=_counts(tables),
        cards=_cards(tables),
        styles=STYLE,
        island=island(_list(tables, most)),
        blocks=_blocks(tables, most),
        role_map=RoleMap(tables),
        delays=_delays(tables),
        phases=["whole hand-over", *(name.removesuffix("_s") for name in PHASES)],
        meanings={
            name.removesuffix("_s"): text.format(client="the client", server="the server") for name, text in PHASES.items()
        },
        oddities=_oddities(tables),
        hosts=list(_hosts(tables)),
    )


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, and nothing runs but this script."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def island(value: Any) -> str:
    """A value as JSON that may stand in a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# the list


def _list(tables: Tables, most: int) -> dict[str, Any]:
    fates: dict[str, list[Delivery]] = defaultdict(list)
    for row in tables.rows("deliveries"):
        fates[row.trace_id].append(row)
    replies: dict[str, str] = {}
    given: dict[str, list[str]] = {}
    for hop in tables.rows("hops"):
        given.setdefault(hop.trace_id, (hop.rcpt_to or [])[: TO + 1])
        if hop.kind != "retrieve" and (hop.reply_text or hop.code):
            replies[hop.trace_id] = _reply(hop)
    return {
        "messages": [
            _entry(row, given.get(row.trace_id, []), fates[row.trace_id], replies)
            for row in islice(tables.rows("messages"), most)
        ],
        "block": BLOCK,
        "marks": MARKS | {"delivered": "✓", "relayed": "→", "bounced": "✗", "mixed": "!"},
        "styles": STYLE | OUTCOME,
        "shapes": {shape.__name__: shape._fields for shape in (Entry, Detail, Drawing, Lane, Row, Bar, Arrow)},
    }


def _entry(row: Message, given: list[str], fates: list[Delivery], replies: dict[str, str]) -> Entry:
    refused = next((f for f in fates if f.outcome in ("rejected", "deferred", "bounced") and (f.code or f.reply_text)), None)
    recipients = list(dict.fromkeys(given + [fate.recipient for fate in fates])) or [row.header_to or ""]
    more = f" and {len(recipients) - TO} more" if len(recipients) > TO else ""
    facts = [f"{name} {value}" for name, value in (("SPF", row.spf), ("DKIM", row.dkim), ("DMARC", row.dmarc)) if value]
    if row.tls_all_hops is not None:
        facts.append("TLS on every hop" if row.tls_all_hops else "not TLS on every hop")
    if row.retrieved:
        facts.append("retrieved")
    return Entry(
        row.trace_id,
        _LOOK.short(row.message_id, _TEXT),
        None if row.ts_first is None else row.ts_first // 1000 / 1000,
        row.elapsed_s,
        _LOOK.short(sender(row), 120),
        ", ".join(_LOOK.short(address, 80) for address in recipients[:TO]) + more,
        _LOOK.short(row.subject, _TEXT),
        row.hops,
        row.outcome,
        _reply(refused) if refused else replies.get(row.trace_id, ""),
        row.size,
        _LOOK.short(" · ".join(facts), _TEXT),
        row.parent_trace_id or "",
        row.relation or "",
    )


def _reply(row: Hop | Delivery) -> str:
    return _LOOK.short(" ".join(str(part) for part in (row.code, row.reply_text) if part), _REPLY)


# what an opened message needs


def _blocks(tables: Tables, most: int) -> Iterator[str]:
    """Details of the listed messages, in their order: JSON, deflated, base64."""
    traces = gather_all(tables, islice(tables.rows("messages"), most))
    while block := [_detail(trace) for trace in islice(traces, BLOCK)]:
        octets = json.dumps(block, separators=(",", ":")).encode()
        yield b64encode(zlib.compress(octets, 9)).decode()


def _detail(trace: Trace) -> Detail:
    hops = [
        (h.hop, h.basis, _LOOK.safe(h.source), h.session_id, h.first_frame, h.last_frame, _LOOK.safe(h.wireshark), h.sha256)
        for h in trace.hops
    ]
    fates = [(_LOOK.short(f.recipient, 120), f.outcome, f.attempts, _reply(f)) for f in trace.deliveries[:EVIDENCE]]
    odd = [(a.name, _LOOK.short(a.detail, _REPLY), _LOOK.safe(a.source), a.frame) for a in trace.anomalies[:EVIDENCE]]
    joins = [
        (row.hop, row.linked_hop, _LOOK.safe(", ".join(row.keys)), row.score, _LOOK.safe(", ".join(row.conflicts)))
        for row in trace.links[:EVIDENCE]
    ]
    filters = [(_LOOK.safe(source), text) for source, text in wireshark(trace).items()]
    unseen = not_seen(trace, _LOOK)[:EVIDENCE]
    verdicts = [_verdict(row) for row in judged(trace)[:EVIDENCE]]
    return Detail(packed(draw(trace)), hops, fates, odd, joins, verdicts, filters, time_went(trace), unseen)


def _verdict(row: Authentication) -> tuple[Any, ...]:
    about = [row.domain or "", f"key {row.selector}" if row.selector else "", f"policy {row.policy}" if row.policy else ""]
    said = "" if row.claimed is None else f"{row.claimed} ({row.claimed_by or 'the server'})"
    if row.agrees is False:
        said += ", which is not the same"
    words = [_LOOK.short(text, _TEXT) for text in (", ".join(filter(None, about)), row.reason, said)]
    return (row.hop, row.method.upper(), row.result, verdict_style(row), *words)


def packed(drawing: Drawing) -> Any:
    """A drawing as data: as it is, but for its arrows, which are columns, `at` and `frame` as differences."""
    columns: list[list[Any]] = [list(column) for column in zip(*drawing.arrows, strict=True)]
    for name in ("at", "frame"):
        number = Arrow._fields.index(name)
        if columns:
            columns[number] = _differences(columns[number])
    return [columns if name == "arrows" else value for name, value in zip(Drawing._fields, drawing, strict=True)]


def _differences(values: Sequence[int | None]) -> list[int | None]:
    """Each number less the last one before it; absent ones stay absent."""
    found: list[int | None] = []
    before = 0
    for value in values:
        found.append(None if value is None else value - before)
        before = before if value is None else value
    return found


# what stands in the page itself


def _source(source: SourceInfo) -> str:
    when = ""
    if source.ts_first is not None:
        when = f" · {date(source.ts_first)} + {duration(((source.ts_last or source.ts_first) - source.ts_first) / 1e9)}"
    return f"{visible(source.name)} · {source.kind} · {counted(source.frames, 'frame')}{when}"


def _counts(tables: Tables) -> list[tuple[str, int]]:
    counts = Counter(row.outcome for row in tables.rows("messages"))
    return [(name, counts[name]) for name in OUTCOMES if counts[name]]


def _cards(tables: Tables) -> list[tuple[str, str]]:
    sessions = list(tables.rows("sessions"))
    elapsed = sorted(row.elapsed_s for row in tables.rows("messages") if row.elapsed_s is not None)
    cards = [("messages", f"{tables.count('messages'):,}"), ("hops", f"{tables.count('hops'):,}")]
    if elapsed:
        cards += [("median time", duration(_percentile(elapsed, 0.5))), ("95th percentile", duration(_percentile(elapsed, 0.95)))]
    if sessions:
        cards.append(("sessions in TLS", f"{sum(s.tls != 'none' for s in sessions):,} of {len(sessions):,}"))
    return [*cards, ("DNS lookups", f"{tables.count('dns'):,}"), ("anomalies", f"{tables.count('anomalies'):,}")]


def _percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, between neighbours as most tools do (linear)."""
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


def _delays(tables: Tables) -> list[tuple[str, list[Delay], float]]:
    """Tables of delays: by role, by number of the hop, and by host; the busiest hosts only."""
    groups: list[tuple[str, dict[str, list[Hop]]]] = [
        ("By role", defaultdict(list)),
        ("By hop", defaultdict(list)),
        ("By host", defaultdict(list)),
    ]
    for hop in tables.rows("hops"):
        if hop.ts_start is None or hop.ts_end is None:
            continue
        ends = ("server", "client") if hop.kind == "retrieve" else ("client", "server")
        roles = [role_word(getattr(hop, f"{end}_role")) for end in ends]
        names = [_LOOK.short(getattr(hop, f"{end}_name") or getattr(hop, f"{end}_ip"), 40) for end in ends]
        groups[0][1][f"{hop.kind} {roles[0]} → {roles[1]}"].append(hop)
        groups[1][1][f"hop {hop.hop}" if hop.hop <= PLACES else f"hop {PLACES + 1} and later"].append(hop)
        groups[2][1][f"{names[0]} → {names[1]}"].append(hop)
    made = []
    for title, found in groups:
        keys = sorted(found, key=lambda key: -len(found[key]))[:PLACES]
        rows = [_delay(key, found[key]) for key in (keys if title != "By hop" else list(found)[: PLACES + 1])]
        if title == "By hop":
            rows.sort(key=lambda row: (len(row.what), row.what))
        made.append((title, rows, max((row.p95 for row in rows), default=0.0)))
    return made


def _delay(what: str, hops: list[Hop]) -> Delay:
    whole = sorted((hop.ts_end - hop.ts_start) / 1e9 for hop in hops if hop.ts_end is not None and hop.ts_start is not None)
    columns = [whole, *(sorted(v for hop in hops if (v := getattr(hop, name)) is not None) for name in PHASES)]
    pairs = [(_percentile(values, 0.5), _percentile(values, 0.95)) if values else None for values in columns]
    cells = [(duration(pair[0]), duration(pair[1])) if pair else ("", "") for pair in pairs]
    return Delay(what, len(hops), cells, _percentile(whole, 0.5), _percentile(whole, 0.95))


def _oddities(tables: Tables) -> list[tuple[str, int, str]]:
    meanings = anomaly_names()
    return [(name, number, meanings.get(name, "")) for name, number in tables.anomaly_counts().items()]


def _hosts(tables: Tables) -> Iterator[tuple[str, str, str, str, str, int]]:
    for row in islice(tables.rows("hosts"), Limits().report_messages // 100):
        rules = "; ".join(f"{role_word(e['role'])}: {e['rule']} ({e['count']})" for e in row.evidence[:8])
        yield (
            ", ".join(map(role_word, row.roles)),
            _LOOK.short(", ".join(row.names), 100),
            _LOOK.short(", ".join(row.ips), 100),
            _LOOK.short(row.software, 60),
            _LOOK.short(rules, 400),
            row.messages,
        )
