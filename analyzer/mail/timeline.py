"""The rows told of a trace: its message, its hops with their phases, its recipients, its steps."""

import base64
import binascii
import codecs
import re
from collections.abc import Iterator

from analyzer.mail.authentication.claims import Claim, told
from analyzer.mail.hops import Leg, Lost, MailboxStep, Trace
from analyzer.mail.lookups import Lookups
from analyzer.mail.records import Hop, Message, RecipientRow, Step
from analyzer.mail.sightings import Sighting
from analyzer.protocols.base import SessionInfo
from analyzer.wire.types import Attempt

_TEXT_CHARS = 1000


def seconds(start: int | None, end: int | None) -> float | None:
    """Time between, None when either is not known."""
    return (end - start) / 1e9 if start is not None and end is not None else None


_BLANK = Hop._make([None] * len(Hop._fields))


def hop_row(leg: Leg, trace: Trace, lookups: Lookups) -> Hop:
    """The row of one hop."""
    s = leg.sighting
    parent = leg.parent.number if leg.parent is not None else None
    if s is None:
        return _unobserved(leg, trace, parent)
    info = s.session
    phases = _phases(leg, s, info, lookups)
    carried = s.kind == "transaction"
    filter_ = f"tcp.stream == {info.tcp_stream}"
    if s.first_frame is not None and s.last_frame is not None:
        filter_ += f" && frame.number >= {s.first_frame} && frame.number <= {s.last_frame}"
    return Hop(
        trace.id,
        leg.number,
        parent,
        leg.kind,
        info.protocol,
        "observed",
        info.source,
        info.session_id,
        s.index,
        info.client_ip,
        info.client_port,
        info.client_name,
        leg.client_role,
        info.server_ip,
        info.server_port,
        info.server_name,
        leg.server_role,
        info.tls,
        s.mail_from,
        s.addresses() if carried else None,
        s.message_id,
        s.size,
        s.sha256,
        s.complete,
        s.missing_bytes,
        s.outcome,
        s.code,
        s.enhanced_code,
        s.reply_text,
        s.queue_id,
        s.ts_start,
        s.ts_data,
        s.ts_eom,
        s.ts_end,
        *phases,
        info.tcp_stream,
        s.first_frame,
        s.last_frame,
        filter_,
        s.mail_parameters,
    )


def _unobserved(leg: Leg, trace: Trace, parent: int | None) -> Hop:
    """A hop that only trace fields show, or an opaque session that fits them."""
    field, info = leg.field, leg.session
    assert field is not None
    columns = (
        trace.id,
        leg.number,
        parent,
        leg.kind,
        leg.protocol,
        leg.basis,
        *_BLANK[6:9],
        leg.client_ip,
        None,
        field.helo or field.name,
        leg.client_role,
        leg.server_ip,
        None,
        field.by,
        leg.server_role,
        None if info is None else info.tls,
        None,
        [field.recipient] if field.recipient else None,
        *_BLANK[20:25],
        "accepted",
        *_BLANK[26:29],
        field.id,
        *_BLANK[30:33],
        field.ts,
        *_BLANK[34:],
    )
    row = Hop._make(columns)
    if info is None:
        return row
    return row._replace(
        source=info.source,
        session_id=info.session_id,
        message_index=leg.index,
        client_port=info.client_port,
        client_name=info.client_name or row.client_name,
        server_port=info.server_port,
        server_name=info.server_name or row.server_name,
        ts_start=leg.seen,
        ts_end=None,
        connect_s=seconds(info.connection.ts_syn, info.connection.ts_open) if leg.index == 1 else None,
        tcp_stream=info.tcp_stream,
        first_frame=info.connection.first_frame,
        last_frame=info.connection.last_frame,
        wireshark=f"tcp.stream == {info.tcp_stream}",
    )


S = float | None


def _phases(leg: Leg, s: Sighting, info: SessionInfo, lookups: Lookups) -> tuple[S, S, S, S, S, S, S, S, S]:
    """queue, dns, connect, greeting, tls, auth, envelope, transfer, accept."""
    conn = info.connection
    dns = connect = greeting = tls = auth = None
    before = s.seen
    if leg.index == 1:
        if leg.dns:
            dns = _covered(lookups, leg, lookups.clocks.opened(leg))
        connect = seconds(conn.ts_syn, conn.ts_open)
        opened = conn.ts_open
        if info.tls == "implicit":
            tls = seconds(opened, info.ts_tls_done)
            opened = info.ts_tls_done or opened
        elif info.tls == "starttls":
            tls = seconds(info.ts_starttls, info.ts_tls_done)
        greeting = seconds(opened, info.ts_greeted)
        auth = seconds(info.ts_auth, info.ts_auth_done)
        before = conn.ts_syn or conn.ts
    elif leg.dns:  # it asked before it found that an open connection would do
        dns = _covered(lookups, leg, leg.ts)
    queue = None
    if leg.parent is not None and leg.parent.sighting is not None and s.ts_start is not None:
        queue = seconds(leg.parent.seen_end, s.ts_start)
        if queue is not None and leg.parent.seen_end <= before:  # a connection that was open before has cost this message nothing
            queue -= (dns or 0.0) + (connect or 0.0) + (greeting or 0.0) + (tls or 0.0) + (auth or 0.0)
    if s.kind != "transaction":
        return (queue, dns, connect, greeting, tls, auth, None, seconds(s.ts_data, s.ts_eom), seconds(s.ts_eom, s.ts_end))
    if s.ts_data is None and s.ts_eom is None:
        return (queue, dns, connect, greeting, tls, auth, seconds(s.ts_start, s.ts_end), None, None)
    agreed = min((t for t in (s.ts_rcpt_done, s.ts_data) if t is not None), default=None)
    envelope, transfer = seconds(s.ts_start, agreed), seconds(agreed, s.ts_eom)
    return (queue, dns, connect, greeting, tls, auth, envelope, transfer, seconds(s.ts_eom, s.ts_end))


def _covered(lookups: Lookups, leg: Leg, until: int) -> float | None:
    """Time during which lookups of the client were under way, overlaps counted once."""
    total, reached, any_ = 0, 0, False
    for start, end in sorted(lookups.spans(leg.dns or ())):
        if start > until:
            continue
        any_ = True
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e9 if any_ else None


def recipient_rows(leg: Leg, trace: Trace) -> Iterator[RecipientRow]:
    """The rows of one hop's recipients."""
    s = leg.sighting
    if s is None or s.kind != "transaction":
        return
    for r in s.recipients:
        outcome, said = r.outcome, (r.code, r.enhanced_code, r.reply_text)
        if outcome == "accepted" and s.outcome not in ("accepted", "partial") and s.session.protocol != "lmtp":
            outcome = s.outcome  # what the end of the data decided holds for all
            if s.outcome in ("rejected", "deferred"):
                said = (s.code, s.enhanced_code, s.reply_text)
        yield RecipientRow(trace.id, leg.number, r.address, outcome, *said, r.parameters)


def message_row(trace: Trace) -> Message:
    """The row of the message."""
    seen = list(trace.observed())
    shown = [s for s in seen if s.has_content and s.message_id is not None] or [s for s in seen if s.has_content] or seen
    head = next((s for s in shown if s.subject is not None), shown[0])
    whole = next((s for s in seen if s.complete and s.size is not None), None)
    envelope = next((s.mail_from for s in seen if s.mail_from is not None), None)
    last = max(_last(s) for s in seen)
    carried = [leg for leg in trace.legs if leg.sighting is not None and leg.carried]
    end = None
    if carried:
        good = [leg for leg in carried if leg.accepted] or carried
        end = max(leg.seen_end for leg in good)
    spf, dkim, dmarc = _authentication(seen, trace.distrusted)
    if trace.steps:
        last = max(last, *(step.event.ts for step in trace.steps))
    between = [leg for leg in trace.legs if leg.carried]
    encrypted = [leg.session.tls != "none" if leg.session is not None else _claims_tls(leg) for leg in between]
    return Message(
        trace.id,
        trace.message_id,
        min(s.seen for s in seen),
        last,
        seconds(carried[0].sighting.seen if carried and carried[0].sighting else None, end),
        words(head.subject),
        words(head.header_from),
        words(head.header_to),
        words(head.header_date),
        envelope,
        whole.size if whole is not None else None,
        len(trace.legs),
        len(seen),
        trace.outcome,
        trace.retrieved,
        None if not encrypted or None in encrypted else all(encrypted),
        spf,
        dkim,
        dmarc,
        trace.parent.id if trace.parent is not None else None,
        trace.relation,
    )


def _claims_tls(leg: Leg) -> bool | None:
    protocol = leg.field.protocol if leg.field is not None else None
    return leg.field.encrypted if leg.field is not None and protocol is not None else None


def _last(s: Sighting) -> int:
    return next((t for t in (s.ts_end, s.ts_eom, s.ts_data) if t is not None), s.seen)


def _authentication(seen: list[Sighting], distrusted: frozenset[Claim]) -> tuple[str | None, str | None, str | None]:
    """What the last server that said something about it found."""
    spf = dkim = dmarc = None
    for s in reversed(seen):
        if s.claims:
            found = told(claim for claim in s.claims if claim not in distrusted)
            spf, dkim, dmarc = spf or found[0], dkim or found[1], dmarc or found[2]
    return spf, dkim, dmarc


_ENCODED = re.compile(r"=\?([^?\s]{1,40})\?([bBqQ])\?([^?\s]*)\?=")
_BETWEEN = re.compile(r"(\?=)\s+(=\?[^?\s]{1,40}\?[bBqQ]\?)")


def words(raw: bytes | None) -> str | None:
    """A header field decoded (RFC 2047), white space folded, cut to a readable length."""
    if raw is None:
        return None
    raw = raw[: 4 * _TEXT_CHARS]
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "backslashreplace")
    if "=?" in text:
        text = _ENCODED.sub(_decoded, _BETWEEN.sub(r"\1\2", text))
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS] + "…"


def _decoded(found: re.Match[str]) -> str:
    charset, encoding, text = found[1].partition("*")[0], found[2], found[3]
    try:
        if encoding in "bB":
            octets = base64.b64decode(text + "=" * (-len(text) % 4))
        else:
            octets = binascii.a2b_qp(text.replace("_", "=20").encode("ascii", "replace"))
        return octets.decode(codecs.lookup(charset).name, "backslashreplace")
    except (LookupError, ValueError, binascii.Error):
        return found[0]


# steps

_RANK = {
    event: rank
    for rank, event in enumerate(
        "claimed dns_query dns_answer dns_cached connect banner greeting starttls tls auth mail rcpt data eom accepted rejected "
        "deferred aborted appended retrieved notified flagged copied moved deleted expunged".split()
    )
}
Ends = tuple[str | None, str | None, str | None, str | None]
"""Address and role of who acts, and of the other."""
Tail = tuple[int | None, str, str | None, str | None, str | None, str | None, str, str, str | None, str | None, int | None]
"""The columns of a step from `hop` on."""
Raw = tuple[int, int, int, str, str, int, Tail]
"""What steps are sorted by (time, hop, rank, source, detail, order of making), and the rest: tuples sort without a key."""


def steps(trace: Trace, lookups: Lookups, server_roles: dict[str, str]) -> Iterator[Step]:
    """The steps of a trace, in time order."""
    raw: list[Raw] = []
    for leg in trace.legs:
        _hop_steps(raw, leg)
        for row in leg.dns or ():
            _dns_steps(raw, leg, row, lookups, server_roles)
        if leg in lookups.cached:
            _cached_step(raw, leg, lookups.cached[leg], lookups, server_roles)
    for lost in trace.lost or ():
        _lost_steps(raw, lost)
    if trace.steps:
        where = {leg.session.session_id: leg.number for leg in reversed(trace.legs) if leg.session is not None}
        for told in trace.steps:
            _mailbox_step(raw, told, where)
    raw.sort()
    make, name = Step._make, trace.id
    for seq, item in enumerate(raw, 1):
        yield make((name, seq, item[0], *item[6]))


def _hop_steps(raw: list[Raw], leg: Leg) -> None:
    info, number = leg.session, leg.number
    client, server = (leg.client_ip, leg.client_role), (leg.server_ip, leg.server_role)
    outward: Ends = (*client, *server)
    back: Ends = (*server, *client)
    source, session = (info.source, info.session_id) if info is not None else (None, None)
    basis = leg.basis
    for ts, event, server_acts, detail, frame in _leg_steps(leg):
        tail: Tail = (number, event, *(back if server_acts else outward), detail, basis, source, session, frame)
        raw.append((ts, number, _RANK[event], source or "", detail, len(raw), tail))


def _add(raw: list[Raw], ts: int, rank: int, tail: Tail) -> None:
    raw.append((ts, tail[0] or 0, rank, tail[8] or "", tail[6], len(raw), tail))


def _leg_steps(leg: Leg) -> Iterator[tuple[int, str, bool, str, int | None]]:
    s, info = leg.sighting, leg.session
    if leg.index == 1 and info is not None:
        yield from _session_steps(info)
    if s is None:
        field = leg.field
        assert field is not None
        said = f"Received by {field.by or 'an unnamed host'}"
        said += f" from {field.helo or field.name or field.ip}" if field.helo or field.name or field.ip else ""
        said += f" with {field.protocol}" if field.protocol else ""
        said += f" id {field.id}" if field.id else ""
        yield leg.seen, "claimed", True, said, None
        return
    if s.kind == "retrieve":
        part = "" if s.complete else ", in part"
        yield _last(s), "retrieved", False, _mailbox_detail(s) + part, s.last_frame
        return
    if s.kind == "append":
        done = s.outcome if s.outcome != "accepted" else "appended"
        event = done if done in _RANK else "aborted"
        yield _last(s), event, False, f"to {s.mailbox or 'a mailbox'}" + (f" as UID {s.uid}" if s.uid else ""), s.last_frame
        return
    if s.ts_start is not None:
        sender = f"from <{s.mail_from}>" if s.mail_from is not None else "from an unknown sender"
        stated = f", {s.size_stated} octets stated" if s.size_stated is not None else ""
        yield s.ts_start, "mail", False, sender + stated, s.first_frame
    for r in s.recipients:
        at = r.ts if r.ts is not None else s.ts_start
        if at is not None:
            reply = f": {r.code} {r.reply_text or ''}".rstrip() if r.accepted_by_rcpt is False and r.code else ""
            yield at, "rcpt", False, f"to <{r.address}>{reply}", r.frame
    if s.ts_data is not None:
        yield s.ts_data, "data", False, "", None
    if s.ts_eom is not None:
        yield s.ts_eom, "eom", False, f"{s.size} octets" if s.complete else f"{s.size} octets seen", None
    outcome = "accepted" if s.outcome == "partial" else s.outcome
    if outcome in ("accepted", "rejected", "deferred", "aborted"):
        reply = " ".join(str(x) for x in (s.code, s.reply_text) if x is not None)  # the text begins with the enhanced code
        yield _last(s), outcome, outcome != "aborted", reply, s.last_frame


def _mailbox_detail(s: Sighting) -> str:
    if s.uid is not None:
        return f"UID {s.uid}" + (f" of {s.mailbox}" if s.mailbox else "")
    if s.number is not None:
        return f"message {s.number}" + (f" of {s.mailbox}" if s.mailbox else "")
    return s.mailbox or ""


def _session_steps(info: SessionInfo) -> Iterator[tuple[int, str, bool, str, int | None]]:
    conn = info.connection
    if conn.ts_syn is not None:
        yield conn.ts_syn, "connect", False, f"to port {info.server_port}", conn.first_frame
    if info.ts_banner is not None:
        yield info.ts_banner, "banner", True, info.server_name or info.server_software or "", info.frame_banner
    if info.ts_greeted is not None and info.ts_greeted != info.ts_banner:
        yield info.ts_greeted, "greeting", False, info.client_name or "", info.frame_greeted
    if info.ts_starttls is not None:
        yield info.ts_starttls, "starttls", False, "", info.frame_starttls
    if info.ts_tls_done is not None:
        yield info.ts_tls_done, "tls", False, " ".join(x for x in (info.tls_version, info.tls_cipher) if x), None
    done = info.ts_auth_done if info.ts_auth_done is not None else info.ts_auth
    if done is not None:
        result = {True: "succeeded", False: "failed", None: "not answered"}[info.auth_ok]
        user = f" as {info.auth_user}" if info.auth_user else ""
        yield done, "auth", False, f"{info.auth_mechanism or 'login'}{user} {result}", info.frame_auth


def _dns_steps(raw: list[Raw], leg: Leg, row: int, lookups: Lookups, server_roles: dict[str, str]) -> None:
    server = lookups.server_ip(row)
    asker = lookups.others.get(row)
    outward = lookups.is_outward(row, leg)
    mine = (asker or leg.client_ip, leg.client_role) if outward else (asker or leg.server_ip, leg.server_role)
    other = (server, server_roles.get(server))
    what = f"{lookups.qname(row)} {lookups.qtype(row)}"
    frame = lookups.frame[row]
    source = lookups.source(row)
    asked_in = frame if frame >= 0 else None
    asked: Tail = (leg.number, "dns_query", *mine, *other, what, "observed", source, None, asked_in)
    _add(raw, lookups.ts[row], _RANK["dns_query"], asked)
    at = lookups.ts_reply[row]
    if at >= 0:
        answers = lookups.answers(row) or []
        said = (
            what + ": " + (", ".join(a.split(" ", 2)[-1] for a in answers[:4]) + ("…" if len(answers) > 4 else "") or "no data")
        )
        told: Tail = (leg.number, "dns_answer", *other, *mine, said, "observed", source, None, lookups.reply_frame(row))
        _add(raw, at, _RANK["dns_answer"], told)


def _cached_step(raw: list[Raw], leg: Leg, row: int, lookups: Lookups, server_roles: dict[str, str]) -> None:
    """No lookup was made for a hop: what its client knew before."""
    assert leg.session is not None
    conn = leg.session.connection
    client = (leg.client_ip, leg.client_role)
    if row < 0:
        said = f"{lookups.target(leg)}: no question in this capture, known before"
        step: Tail = (leg.number, "dns_cached", *client, None, None, said, "observed", leg.session.source, None, None)
    else:
        server = lookups.server_ip(row)
        passed = max(lookups.clocks.opened(leg) - lookups.at[row], 0) / 1e9
        said = f"{lookups.qname(row)} {lookups.qtype(row)}: no question of its own, asked {passed:.3f} s before"
        other = (server, server_roles.get(server))
        step = (leg.number, "dns_cached", *client, *other, said, "observed", lookups.source(row), None, lookups.reply_frame(row))
    _add(raw, conn.ts_syn or conn.ts, _RANK["dns_cached"], step)


def _lost_steps(raw: list[Raw], lost: Lost) -> None:
    info = lost.session
    number = lost.hop.number if lost.hop is not None else None
    client_role = lost.hop.client_role if lost.hop is not None else None
    ends = (lost.client_ip, client_role, lost.server_ip, None)
    session = info.session_id if info is not None else None
    step: Tail = (number, "connect", *ends, lost.detail, "observed", lost.source, session, lost.frame)
    _add(raw, lost.ts, _RANK["connect"], step)


def _mailbox_step(raw: list[Raw], told: MailboxStep, hops: dict[str, int]) -> None:
    event = told.event
    info = event.session
    client, server = (info.client_ip, "mua"), (info.server_ip, info.protocol)
    actor, peer = (server, client) if event.event == "notified" else (client, server)
    number = hops.get(info.session_id)
    where = f"{event.detail} in {event.mailbox}" if event.mailbox and event.detail else event.detail or event.mailbox or ""
    basis, source, session = "observed", info.source, info.session_id
    step: Tail = (number, event.event, *actor, *peer, where, basis, source, session, event.frame)
    _add(raw, event.ts, _RANK.get(event.event, 99), step)


def attempt_detail(attempt: Attempt) -> str:
    """A failed connection in words."""
    tries = f", {attempt.syns} SYN" if attempt.syns > 1 else ""
    return f"to port {attempt.resp_port}: {attempt.result}{tries}"
