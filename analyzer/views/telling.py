"""One message told in a terminal: what happened, hop by hop, and what each statement rests on."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from analyzer.mail.records import Authentication, Hop, RecipientRow, Step
from analyzer.protocols.dns import Transaction
from analyzer.views.overview import STYLE, sender
from analyzer.views.text import Look, Page, Span, cells, counted, date, duration, listed, octets
from analyzer.views.trace import Question, Trace, asked, wireshark

LINES = 40
"""Lines of lookups, events or recipients shown of one hop; --json has them all."""

ALIKE = 4
"""So many results that say the same are one line."""
NAME = 40
"""Columns that a host's name may take."""
SHORTEST_PHASE = 0.00005
"""Seconds below which a phase is not worth a word."""
PHASES = {
    "queue_s": "waiting in the queue of {client}",
    "dns_s": "in DNS lookups by {client}",
    "connect_s": "in the TCP handshake with {server}",
    "greeting_s": "waiting for the greeting of {server}",
    "tls_s": "in the TLS handshake with {server}",
    "auth_s": "in the login at {server}",
    "envelope_s": "agreeing on sender and recipients with {server}",
    "transfer_s": "sending the message to {server}",
    "accept_s": "waiting for {server} to answer for the message",
}
"""Phases of a hop, in order, and what the time went into."""
_BEFORE = ("dns_s", "connect_s", "greeting_s", "tls_s", "auth_s")
"""Phases of the first hop that are over when the message begins: its time counts from MAIL."""

_METHODS = ("spf", "dkim", "dmarc", "arc")

MAILBOX = {"notified", "flagged", "copied", "moved", "deleted", "expunged"}
"""Timeline events that happen in a mailbox and on no hop of their own."""


def tell(trace: Trace, look: Look, dialogue: bool = False) -> Page:
    """The page of one message; `dialogue`: with each command and its reply."""
    return _Telling(trace, look, dialogue).page


class _Cost(NamedTuple):
    """A phase and its seconds."""

    seconds: float
    phase: str
    hop: Hop


def dialogue(trace: Trace, hop: Hop, look: Look) -> Page:
    """What client and server said on one hop."""
    return _Telling(trace, look, True, hop).page


def names(trace: Trace, look: Look) -> dict[int, tuple[str, str]]:
    """Hop -> what its client and its server are called: by their names, or by their addresses."""
    known = {ip: host.names[0] for host in trace.hosts if host.names for ip in host.ips}

    def called(name: str | None, ip: str | None) -> str:
        if name is not None and name.startswith("["):  # an address literal (RFC 5321 4.1.3) names nobody
            name = known.get(ip or "", name)
        return look.short(name or known.get(ip or "") or ip or "an unseen host", NAME)

    return {h.hop: (called(h.client_name, h.client_ip), called(h.server_name, h.server_ip)) for h in trace.hops}


def _costs(trace: Trace) -> list[_Cost]:
    return [
        _Cost(value, name, hop)
        for hop in trace.hops
        if hop.kind != "retrieve" and not trace.made_good(hop)
        for name in PHASES
        if (value := getattr(hop, name)) is not None and value > 0
    ]


def time_went(trace: Trace, costs: list[_Cost] | None = None) -> str:
    """Where the time went, in one sentence."""
    costs = _costs(trace) if costs is None else costs
    if not costs:
        return "Nothing here tells: no phase of a hop was seen whole."
    within = [cost for cost in costs if cost.hop.parent_hop is not None or cost.phase not in _BEFORE]
    most = max(within or costs, key=lambda cost: cost.seconds)
    client, server = names(trace, Look())[most.hop.hop]
    total = trace.message.elapsed_s
    share = f" of {duration(total)} ({most.seconds / total:.0%})" if total and total >= most.seconds else ""
    said = f"{duration(most.seconds)}{share} {PHASES[most.phase].format(client=client, server=server)}"
    said += f"{' before' if most.phase in ('queue_s', 'dns_s') else ','} hop {most.hop.hop}"
    if most.phase == "queue_s":
        tries = len(trace.tries(most.hop))
        vain = sum(step.hop == most.hop.hop for step in trace.failed())
        said += f", {counted(tries, 'refused try', 'refused tries')} included" if tries else ""
        said += f", {counted(vain, 'connection')} that came to nothing included" if vain else ""
    return said + "." + _before_that(trace)


def _before_that(trace: Trace) -> str:
    """The time on hops that cannot be read and came before all that can."""
    first = trace.message.ts_first
    begun = min(((hop.ts_start, hop.hop) for hop in trace.hops if hop.basis == "matched" and hop.ts_start), default=None)
    if first is None or begun is None or begun[0] >= first:
        return ""
    return f" Before that, {duration((first - begun[0]) / 1e9)} passed since hop {begun[1]} began, in TLS that cannot be read."


def not_seen(trace: Trace, look: Look) -> list[str]:
    """What the packets do not show, a sentence each."""
    lines = []
    called = names(trace, look)
    for hop in trace.hops:
        client, server = called[hop.hop]
        way = f"hop {hop.hop}, {client} {look.arrow} {server},"
        if hop.basis == "claimed":
            lines.append(f"{way} is not in the capture: trace fields of the message claim it")
        elif hop.basis == "matched":
            lines.append(f"{way} crossed in TLS that cannot be read: ends and times match the trace fields")
        elif hop.complete is False:
            lines.append(f"{way} is in the capture with holes: no digest can be given")
    if trace.message.outcome == "relayed":
        lines.append("what the last server did with the message")
    return lines


def judged(trace: Trace) -> list[Authentication]:
    """Results of SPF, DKIM, DMARC and ARC, hop by hop."""
    return sorted(trace.authentication, key=lambda row: (row.hop, _METHODS.index(row.method)))


def verdict_style(row: Authentication) -> str:
    """How a result is shown: one that contradicts the server's is bad news whatever it is."""
    return {"pass": "good", "fail": "bad"}.get(row.result, "") if row.agrees is not False else "bad"


class _Telling:
    """The page of one trace, part by part."""

    def __init__(self, trace: Trace, look: Look, dialogue: bool, only: Hop | None = None) -> None:
        self.trace = trace
        self.dialogue = dialogue
        self.look = look
        self.page = Page(look)
        self.start = trace.message.ts_first
        self.known = {ip: look.short(host.names[0], NAME) for host in trace.hosts if host.names for ip in host.ips}
        self.names = names(trace, look)
        for hop in trace.hops:
            self.known |= {hop.client_ip or "": self.names[hop.hop][0], hop.server_ip or "": self.names[hop.hop][1]}
        if only is not None:
            ends = [self.actor(only, end, True) for end in ("client", "server")]
            port = f":{only.server_port}" if only.server_port else ""
            self.page.line(Span(f"hop {only.hop}  ", "dim"), Span("C: ", "name"), ends[0], Span("  S: ", "good"), ends[1] + port)
            self.spoken(only)
            return
        for part in (
            self.title,
            self.chains,
            self.hops,
            self.time,
            self.unseen,
            self.fates,
            self.sender,
            self.odd,
            self.why,
            self.packets,
        ):
            part()

    # words

    def actor(self, hop: Hop, end: str, address: bool = False) -> str:
        """A host with its role: `MX mx.b.test`."""
        role, ip = (hop.client_role, hop.client_ip) if end == "client" else (hop.server_role, hop.server_ip)
        name = self.names[hop.hop][0 if end == "client" else 1]
        words = [(role or "host").upper() if role else "host", name]
        if address and ip and ip not in name:
            words.append(f"({ip})")
        return " ".join(words)

    def after(self, ts: int | None) -> str:
        """Time since the message was first seen."""
        if ts is None or self.start is None:
            return ""
        return f"{(ts - self.start) / 1e9:+.3f}"

    def heading(self, text: str) -> None:
        self.page.line()
        self.page.line(Span(text, "bold"))

    # parts

    def title(self) -> None:
        message, look, page = self.trace.message, self.look, self.page
        dot = f" {look.dot} "
        page.line(
            Span("Message ", "bold"),
            Span(look.short(message.message_id, max(look.width - 36, 20)) or "without Message-ID", "bold"),
            Span(f"  trace {message.trace_id}", "dim"),
        )
        if message.subject is not None:
            page.line("  ", look.short(f'"{message.subject}"', look.width - 2))
        recipients = self.recipients_in_order() or [message.header_to or "?"]
        to = look.short(recipients[0], 40) + (f" and {len(recipients) - 1} more" if len(recipients) > 1 else "")
        page.line("  ", f"{look.short(sender(message) or '?', 40)} {look.arrow} {to}")
        words: list[str | Span] = [Span(message.outcome, STYLE.get(message.outcome, ""))]
        if message.elapsed_s is not None:
            took = f"in {duration(message.elapsed_s)}" + (
                " after the hops that cannot be read" if _before_that(self.trace) else ""
            )
            words[0] = Span(f"{message.outcome} {took}", STYLE.get(message.outcome, ""))
        words.append(counted(message.hops, "hop"))
        if message.size is not None:
            words.append(octets(message.size))
        words.append(date(message.ts_first))
        if message.tls_all_hops is not None:
            words.append("TLS on every hop" if message.tls_all_hops else "not TLS on every hop")
        words += [f"{name} {look.safe(value)}" for name, value in self.verdicts()]
        page.wrapped("  ", [word for word in words if word], dot)
        if message.parent_trace_id:
            page.line("  ", f"{message.relation or 'about'} of {message.parent_trace_id}")

    def recipients_in_order(self) -> list[str]:
        """Recipients as the first envelope gave them, then those that came later."""
        given = [address for hop in self.trace.hops[:1] for address in hop.rcpt_to or ()]
        return list(dict.fromkeys(given + [row.recipient for row in self.trace.deliveries]))

    def verdicts(self) -> list[tuple[str, str]]:
        message = self.trace.message
        found = (("SPF", message.spf), ("DKIM", message.dkim), ("DMARC", message.dmarc))
        return [(name, value) for name, value in found if value]

    def chains(self) -> None:
        """Who handled it: a line for each way it took."""
        self.heading("Handled by")
        ways: dict[tuple[str | Span, ...], int] = {}
        for path in self.paths():
            way = tuple(self.chain(path))
            ways[way] = ways.get(way, 0) + 1
        for way, times in ways.items():
            self.page.wrapped("  ", [*way, f"({times} times)"] if times > 1 else way, " ", 4)

    def paths(self) -> list[list[Hop]]:
        """Every way from the first hop to a last one; tries that a later one made good are left out."""
        hops = {hop.hop: hop for hop in self.trace.hops}
        made_good = {hop.hop for hop in self.trace.hops if self.trace.made_good(hop)}
        parents = {hop.parent_hop for hop in self.trace.hops if hop.hop not in made_good}
        paths = []
        for leaf in self.trace.hops:
            if leaf.hop in parents or leaf.hop in made_good:
                continue
            path: list[Hop] = []
            at: Hop | None = leaf
            while at is not None and at not in path:
                path.insert(0, at)
                at = hops.get(at.parent_hop) if at.parent_hop is not None else None
            paths.append(path)
        return paths

    def chain(self, path: list[Hop]) -> Iterator[str | Span]:
        for i, hop in enumerate(path):
            first, last = ("server", "client") if hop.kind == "retrieve" else ("client", "server")
            if i == 0:
                yield self.actor(hop, first)
            yield self.link(hop)
            yield self.actor(hop, last)

    def link(self, hop: Hop) -> Span:
        """The arrow of a hop: dotted when it was not seen."""
        look = self.look
        line = look.line if hop.basis == "observed" else look.dotted
        words = " ".join(
            filter(None, [hop.protocol.upper(), str(hop.server_port or ""), "TLS" if hop.tls not in (None, "none") else ""])
        )
        failed = hop.outcome in ("rejected", "deferred", "aborted")
        tip = f"{look.cross} {hop.code or hop.outcome}" if failed else look.head
        return Span(f"{line}{line} {words} {line}{tip}", STYLE.get(hop.outcome, "") if failed else "name")

    def hops(self) -> None:
        self.heading("Hops")
        lookups, steps, recipients, tried = defaultdict(list), defaultdict(list), defaultdict(list), defaultdict(list)
        for row in self.trace.dns:
            lookups[row.hop].append(row)
        for step in self.trace.timeline:
            if step.event in MAILBOX:
                steps[step.hop].append(step)
        for step in (*self.trace.failed(), *self.trace.cached()):
            tried[step.hop].append(step)
        for recipient in self.trace.recipients:
            recipients[recipient.hop].append(recipient)
        for hop in self.trace.hops:
            before = [row for row in lookups[hop.hop] if hop.ts_start is None or (row.ts or 0) < hop.ts_start]
            self.waited(hop)
            self.around(before, tried.pop(hop.hop, []))
            self.hop(hop, recipients[hop.hop])
            self.around([row for row in lookups[hop.hop] if row not in before], [])
            self.mailbox(steps.pop(hop.hop, []))
        self.around(lookups[None], [step for steps in tried.values() for step in steps])
        for left in steps.values():
            self.mailbox(left)

    def row(self, ts: int | None, took: float | None, what: Iterable[str | Span], number: str = "") -> None:
        """A line of the story: hop number, time since the start, time it took, what happened."""
        first = f"  {number:>2}  {self.after(ts):>10}  {duration(took) if took is not None else '':>7}  "
        self.page.wrapped(first, what)

    def note(self, name: str, words: Iterable[str | Span], between: str) -> None:
        self.page.wrapped(f"{'':27}{name:<7}  ", words, between)

    def waited(self, hop: Hop) -> None:
        """The wait before a hop: since the parent hop ended, or since the last try."""
        found = self.trace.waited(hop)
        if found is not None:
            where = "in the mailbox" if hop.kind == "retrieve" else f"in the queue of {self.names[hop.hop][0]}"
            self.row(*found, [Span(where + (" until the next try" if self.trace.tries(hop) else ""), "dim")])

    def hop(self, hop: Hop, recipients: list[RecipientRow]) -> None:
        look = self.look
        dot = f" {look.dot} "
        took = (hop.ts_end - hop.ts_start) / 1e9 if hop.ts_end is not None and hop.ts_start is not None else None
        ends = (
            self.actor(hop, "client", True),
            self.actor(hop, "server", True) + (f":{hop.server_port}" if hop.server_port else ""),
        )
        way = {"retrieve": (f"by {ends[0]}", f"from {ends[1]}"), "append": (f"by {ends[0]}", f"into {ends[1]}")}
        words: list[str | Span] = [Span(hop.kind, "bold"), *way.get(hop.kind, (ends[0], f"{look.arrow} {ends[1]}"))]
        words.append(Span("(not seen: claimed by trace fields)", "warn") if hop.basis == "claimed" else "")
        words.append(Span("(opaque TLS, matched to trace fields)", "warn") if hop.basis == "matched" else "")
        self.row(hop.ts_start, took, [word for word in words if word], str(hop.hop))
        how = [hop.protocol.upper(), {"none": "no TLS", "starttls": "STARTTLS", "implicit": "TLS"}.get(hop.tls or "", "")]
        session = next((s for s in self.trace.sessions if s.session_id == hop.session_id), None)
        if session is not None:
            how[1] = " ".join(filter(None, [how[1], look.safe(session.tls_version)]))
            if session.auth_mechanism:
                how.append(f"AUTH {look.safe(session.auth_mechanism)} {look.short(session.auth_user, 30)}".rstrip())
        self.note("over", [word for word in how if word], dot)
        if hop.rcpt_to is not None:
            self.note("to", self.recipients(hop, recipients), ", ")
        outcome = [Span(hop.outcome, STYLE.get(hop.outcome, ""))]
        reply = " ".join(str(part) for part in (hop.code, look.short(hop.reply_text, 160)) if part)
        self.note("result", [*outcome, *reply.split(" ")] if reply else outcome, " ")
        if hop.complete is False:
            lost = f": {octets(hop.missing_bytes)} lost" if hop.missing_bytes else ""
            self.note("", [Span(f"the capture does not hold the whole message{lost}", "warn")], " ")
        values = [(name[:-2], getattr(hop, name)) for name in PHASES]
        phases = [f"{name} {duration(value)}" for name, value in values if value is not None and abs(value) >= SHORTEST_PHASE]
        if phases:
            self.note("phases", phases, dot)
        if hop.first_frame is not None:
            frames = f"{hop.first_frame:,}" if hop.first_frame == hop.last_frame else f"{hop.first_frame}-{hop.last_frame}"
            of_source = f" of {look.short(hop.source, 60)}" if len({h.source for h in self.trace.hops} - {None}) > 1 else ""
            self.note("frames", [frames + of_source], " ")
        if self.dialogue:
            self.spoken(hop)

    def spoken(self, hop: Hop) -> None:
        """The dialogue of a hop's session, as far as it was this message's, and what became of it in the mailbox."""
        said: list[tuple[int | None, str, str]] = []
        for command in self.trace.spoken(hop):
            words = " ".join(filter(None, [command.verb, self.look.short(command.argument, 200)]))
            reply = " ".join(filter(None, [command.status, self.look.short(command.reply_text, 200)]))
            said += [(command.ts, "C:", words), (command.ts_reply, "S:", reply)]
        message = f"({octets(hop.size)} of message)" if hop.size is not None else "(message)"
        if hop.kind in ("submit", "relay", "deliver") and hop.ts_eom is not None:
            reply = " ".join(str(part) for part in (hop.code, self.look.short(hop.reply_text, 200)) if part)
            said.append((hop.ts_eom, "C:", message))
            if (hop.ts_end, "S:", reply) not in said:
                said.append((hop.ts_end, "S:", reply))
        elif hop.kind == "retrieve":
            said.append((hop.ts_end, "S:", message))
        for step in self.trace.timeline:
            if step.hop == hop.hop and step.event in MAILBOX:
                said.append((step.ts, self.look.dot, f"{step.event} {self.look.short(step.detail, 200)}"))
        for line in sorted(said, key=lambda line: (line[0] or 0, line[2].startswith(("QUIT", "221")))):
            self.line_of(*line)

    def line_of(self, ts: int | None, who: str, said: str) -> None:
        """A line of the dialogue."""
        if said:
            first = f"      {self.after(ts):>10}  {who:>7}  "
            self.page.wrapped(first, [Span(word, "name" if who == "C:" else "") for word in said.split(" ")])

    def recipients(self, hop: Hop, rows: list[RecipientRow]) -> list[str | Span]:
        words: list[str | Span] = []
        for row in rows[:LINES]:
            said = "" if row.outcome == hop.outcome == "accepted" else f" {row.outcome} {row.code or ''}".rstrip()
            words.append(Span(self.look.short(row.recipient, 60) + said, STYLE.get(row.outcome, "") if said else ""))
        shown = len(rows[:LINES]) or None
        if shown is None:
            words = [self.look.short(address, 60) for address in (hop.rcpt_to or [])[:LINES]]
        more = max(len(rows), len(hop.rcpt_to or [])) - len(words)
        return [*words, f"{more:,} more"] if more > 0 else words

    def around(self, rows: Iterable[Transaction], steps: Iterable[Step]) -> None:
        """Lookups, those that a cache spared, and connections that came to nothing, in time order."""
        events: list[Question | Step] = [*asked(rows), *steps]
        events.sort(key=lambda event: event.ts or 0)
        for event in events[:LINES]:
            if isinstance(event, Question):
                self.lookup(event)
            elif event.event == "dns_cached":
                who, said = self.called(event.actor_ip), self.look.short(event.detail, 90)
                self.row(event.ts, None, [Span("dns", "dim"), f"{who} asks nothing:", Span(said, "dim")])
            else:
                self.failed(event)
        if len(events) > LINES:
            self.row(None, None, [Span(f"{len(events) - LINES:,} more lookups and tries", "dim")])

    def lookup(self, question: Question) -> None:
        look = self.look
        what: list[str | Span] = [
            Span("dns", "dim"),
            f"{self.called(question.client_ip)} asks {question.server}:",
            f"{', '.join(question.qtypes)} {look.short(question.qname, 50)}",
            look.arrow,
            Span(look.short(question.said, max(look.width - 40, 20)), "" if question.found else "warn"),
        ]
        if question.purpose:
            what.append(Span(f"({question.purpose})", "dim"))
        self.row(question.ts, question.seconds, what)

    def failed(self, step: Step) -> None:
        """A server tried before the one that took the message."""
        way = f"{self.called(step.actor_ip)} {self.look.arrow} {self.called(step.peer_ip)}"
        self.row(step.ts, None, [Span("tried", "warn"), way, self.look.short(step.detail, 80)])

    def called(self, ip: str | None) -> str:
        """What a host is called, or its address."""
        return self.known.get(ip or "") or self.look.safe(ip)

    def mailbox(self, steps: list[Step]) -> None:
        for step in steps[:LINES]:
            who = f"by {self.look.safe(step.actor_ip)}" if step.actor_ip else ""
            self.row(step.ts, None, [Span(step.event, "bold"), self.look.short(step.detail, 80), who])
        if len(steps) > LINES:
            self.row(None, None, [Span(f"{len(steps) - LINES:,} more mailbox events", "dim")])

    def time(self) -> None:
        self.heading("Where the time went")
        costs = _costs(self.trace)
        self.page.wrapped("  ", time_went(self.trace, costs).split(" "))
        if costs:
            self.bars(costs, self.trace.message.elapsed_s)

    def bars(self, costs: list[_Cost], total: float | None) -> None:
        """The largest phases as bars."""
        whole = max(total or 0.0, sum(cost.seconds for cost in costs))
        for cost in sorted(costs, key=lambda cost: -cost.seconds)[:6]:
            length = round(cost.seconds / whole * 40)
            if length:
                label = f"hop {cost.hop.hop} {cost.phase[:-2]}"
                self.page.line(f"    {label:<16} {duration(cost.seconds):>8}  ", Span(self.look.bar * length, "name"))

    def unseen(self) -> None:
        """What the packets do not show."""
        lines = not_seen(self.trace, self.look)
        if lines:
            self.heading("Not seen")
            for line in lines:
                self.page.wrapped("  ", line.split(" "))

    def fates(self) -> None:
        deliveries = self.trace.deliveries
        if len(deliveries) < 2 and all(row.outcome == self.trace.message.outcome for row in deliveries):
            return
        self.heading("Recipients")
        for row in deliveries[:LINES]:
            reply = " ".join(str(part) for part in (row.code, self.look.short(row.reply_text, 80)) if part)
            tries = f"{row.attempts} tries" if row.attempts > 1 else ""
            self.page.wrapped(
                f"  {self.look.fit(row.recipient, 30)}  ",
                [Span(self.look.fit(row.outcome, 9), STYLE.get(row.outcome, "")), *filter(None, [tries, *reply.split(" ")])],
            )
        if len(deliveries) > LINES:
            self.page.line(f"  {len(deliveries) - LINES:,} more")

    def sender(self) -> None:
        """SPF, DKIM, DMARC and ARC evaluated again, beside what the server said."""
        rows = judged(self.trace)
        if not rows:
            return
        self.heading("Authentication")
        alike: dict[tuple[object, ...], list[Authentication]] = defaultdict(list)
        for row in rows:
            alike[row.method, row.result, row.domain, row.selector, row.claimed, row.claimed_by, row.reason].append(row)
        folded = {id(row): same for same in alike.values() if len(same) >= ALIKE for row in same}
        shown = [row for row in rows if id(row) not in folded or folded[id(row)][0] is row]
        for row in shown[:LINES]:
            same = folded.get(id(row), [])
            about = [
                row.domain or "",
                f"(key {row.selector})" if row.selector else "",
                f"policy {row.policy}" if row.policy else "",
            ]
            said = [f"({row.claimed_by or 'the server'} said {row.claimed})"] if row.claimed is not None else []
            said += [f"(the same at {counted(len(same) - 1, 'more hop')} up to {same[-1].hop})"] if same else []
            words = [self.look.safe(word) for word in (*about, *said) if word]
            self.page.wrapped(
                f"  {row.hop:>2}  {row.method.upper():5}  ",
                [Span(row.result, verdict_style(row)), *words, f"{self.look.dot} {self.look.short(row.reason, 100)}"],
                indent=13,
            )
        if len(shown) > LINES:
            self.page.line(f"  {len(shown) - LINES:,} more: --json has them all")

    def odd(self) -> None:
        """Anomalies of the message and of the sessions it crossed."""
        rows = self.trace.anomalies
        if not rows:
            return
        self.heading("Odd")
        for row in rows[:LINES]:
            where = f" (frame {row.frame} of {self.look.short(row.source, 40)})" if row.frame is not None else ""
            self.page.wrapped(f"  {self.look.safe(row.name)}  ", (self.look.short(row.detail, 200) + where).split(" "), indent=4)
        if len(rows) > LINES:
            self.page.line(f"  {len(rows) - LINES:,} more: --json has them all")

    def why(self) -> None:
        """Roles and joins, and what they rest on."""
        played = defaultdict(set)
        for hop in self.trace.hops:
            for ip, role in ((hop.client_ip, hop.client_role), (hop.server_ip, hop.server_role)):
                if ip and role:
                    played[ip].add(role)
        for row in self.trace.dns:
            if row.server_role:
                played[row.server_ip].add(row.server_role)
        lines = []
        for host in self.trace.hosts:
            roles = set().union(*(played[ip] for ip in host.ips if ip in played))
            for role in [r for r in host.roles if r in roles]:
                rules = [f"{e['rule']} ({e['count']})" for e in host.evidence if e["role"] == role]
                name = self.look.short(host.names[0], 30) if host.names else self.look.short(host.ips[0], 40)
                lines.append((f"{role.upper() if len(role) < 5 else role} {name}", rules))
        if lines:
            self.heading("Why these roles")
            room = max(cells(name) for name, _ in lines)
            for name, rules in lines:
                self.page.wrapped(
                    f"  {self.look.fit(name, room)}  ", [self.look.safe(rule) for rule in rules] or ["no rule"], "; "
                )
        if self.trace.links:
            self.heading("Why one message")
            for link in self.trace.links[:LINES]:
                against = f"; against it: {listed(list(map(self.look.safe, link.conflicts)))}" if link.conflicts else ""
                keys = listed(list(map(self.look.safe, link.keys))) or "no key"
                self.page.wrapped(
                    f"  hop {link.hop} = hop {link.linked_hop}  ", f"{keys} (score {link.score:.2f}){against}".split(" ")
                )

    def packets(self) -> None:
        """Where Wireshark finds it."""
        filters = wireshark(self.trace)
        if filters:
            self.heading("Packets")
            for source, text in filters.items():
                self.page.line(f"  {self.look.safe(source)}: ", self.look.safe(text))
