"""Roles, by a table of evidence rules (words of RFC 5598).

Rules:
1. A role rests on rules that hold; the role with the most weight wins, of equals the one listed first.  No rule, no role.
2. Each rule looks at one hop and at what its two machines do elsewhere in the capture.
3. What decided is counted with the machine: `hosts.evidence`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from analyzer.mail.archive import Claim, Ends
from analyzer.mail.hops import Leg, Trace
from analyzer.mail.hosts import Hosts, Machine
from analyzer.mail.lookups import Lookups
from analyzer.mail.reports import domain_of
from analyzer.mail.sightings import Sighting, first_handled
from analyzer.protocols.base import SessionInfo

SUBMISSION_PORTS = (587, 465)
_LOOK_BACK = 16


class Exchangers(NamedTuple):
    """The MX hosts of a domain, as far as the capture's DNS answers tell."""

    machines: frozenset[int]
    names: frozenset[str]
    best: frozenset[int]
    """Those of the lowest preference number."""
    best_names: frozenset[str]


class Scene:
    """What the machines do in the whole capture."""

    def __init__(self, idle: list[SessionInfo], hosts: Hosts, lookups: Lookups) -> None:
        self.hosts = hosts
        self.lookups = lookups
        self.lmtp_clients: set[int] = set()
        self.lmtp_servers: set[int] = set()
        self.servers: set[int] = set()
        """Machines that take mail by SMTP."""
        self.origins: set[int] = set()
        """Machines that hand in messages without trace fields, under a real sender."""
        self.readers: set[int] = set()
        """Machines that fetch mail from a mailbox, or file it there."""
        self._exchangers: dict[str, Exchangers | None] = {}
        for info in idle:
            if info.protocol == "lmtp":
                self.lmtp_clients.add(id(hosts.of(info.client_ip)))
                self.lmtp_servers.add(id(hosts.of(info.server_ip)))
        self._mx_somewhere: set[int] | None = None
        self.counted: list[tuple[Leg, Machine, list[tuple[str, str]]]] = []
        """Evidence that counts, and of which hop, when that is asked for."""
        self.counting = False
        self.has_exchangers = bool(lookups.book.exchangers or lookups.book.addresses)
        self._leg: Leg | None = None
        self._domains: list[str] = []

    def count(self, leg: Leg, machine: Machine | None, held: list[tuple[str, str]]) -> None:
        """Evidence decided something about a machine."""
        if machine is not None:
            for evidence in held:
                machine.count(evidence)
            if self.counting:
                self.counted.append((leg, machine, held))

    def add(self, traces: list[Trace]) -> None:
        """What the machines do in these messages."""
        for trace in traces:
            for leg in trace.legs:
                if leg.server is None:
                    continue
                if not leg.carried:
                    self.readers.add(id(leg.client))
                elif leg.protocol == "lmtp":
                    self.lmtp_servers.add(id(leg.server))
                    if leg.client is not None:
                        self.lmtp_clients.add(id(leg.client))
                elif leg.sighting is not None or leg.session is not None:
                    self.servers.add(id(leg.server))
                    if leg.client is not None and first_handler(leg):
                        self.origins.add(id(leg.client))

    def add_archived(self, ends: Iterable[Ends], claims: Iterable[Claim]) -> None:
        """What the machines do in messages that are told later."""
        hosts = self.hosts
        for client_ip, server_ip, transaction, lmtp, handed_in in ends:
            client, server = id(hosts.of(client_ip)), id(hosts.of(server_ip))
            if not transaction:
                self.readers.add(client)
            elif lmtp:
                self.lmtp_servers.add(server)
                self.lmtp_clients.add(client)
            else:
                self.servers.add(server)
                if handed_in:
                    self.origins.add(client)
        for writer_ip, field in claims:
            taker = hosts.of(writer_ip or field.by_ip or "") if writer_ip or field.by_ip else hosts.named(field.by)
            if taker is not None:
                self.lmtp_servers.add(id(taker))
                giver = hosts.of(field.ip) if field.ip else hosts.named(field.name) or hosts.named(field.helo)
                if giver is not None:
                    self.lmtp_clients.add(id(giver))

    def domains(self, leg: Leg) -> list[str]:
        """Domains of a hop's first recipients."""
        if self._leg is not leg:
            self._leg, self._domains = leg, recipient_domains(leg)
        return self._domains

    def exchangers(self, domain: str) -> Exchangers | None:
        """The MX hosts of a domain; None when no answer tells."""
        if domain not in self._exchangers:
            self._exchangers[domain] = self._look_up(domain)
        return self._exchangers[domain]

    def _look_up(self, domain: str) -> Exchangers | None:
        book = self.lookups.book
        targets = {t: p for t, p in book.exchangers.get(domain, {}).items() if t}
        if not targets and domain not in book.exchangers and book.resolve(domain):
            targets = {domain: 0}  # RFC 5321 5.1: the implicit MX
        if not targets:
            return None
        lowest = min(targets.values())

        def machines(names: Iterable[str]) -> frozenset[int]:
            found = [self.hosts.known(ip) for name in names for ip in book.resolve(name)]
            return frozenset(id(machine) for machine in found if machine is not None)

        best = [t for t, p in targets.items() if p == lowest]
        return Exchangers(machines(targets), frozenset(targets), machines(best), frozenset(best))

    def exchanges_for(self, machine: Machine, domain: str, best: bool = False) -> bool | None:
        """Whether a machine is MX (the best MX) of a domain; None when that is not known."""
        known = self.exchangers(domain)
        if known is None:
            return None
        machines, names = (known.best, known.best_names) if best else (known.machines, known.names)
        if id(machine) in machines or not names.isdisjoint(machine.names):
            return True
        return False if machines or any(self.lookups.book.resolve(name) for name in names) else None

    def exchanges_somewhere(self, machine: Machine | None) -> bool:
        """Whether a machine is MX of any domain."""
        if self._mx_somewhere is None:
            self._mx_somewhere = set()
            for domain in self.lookups.book.exchangers:
                known = self.exchangers(domain)
                self._mx_somewhere |= known.machines if known is not None else frozenset()
        return id(machine) in self._mx_somewhere


def first_handler(leg: Leg) -> bool:
    """The message shows no trace fields yet and has a real sender: its author's program sends it."""
    return leg.sighting is not None and first_handled(leg.sighting)


def recipient_domains(leg: Leg) -> list[str]:
    """Domains of the first recipients."""
    if leg.sighting is None:
        domain = domain_of(leg.field.recipient) if leg.field is not None else None
        return [domain] if domain else []
    recipients = leg.sighting.recipients
    if len(recipients) == 1:
        domain = domain_of(recipients[0].address)
        return [domain] if domain else []
    return list(dict.fromkeys(d for r in recipients[:_LOOK_BACK] if (d := domain_of(r.address))))


def _logged_in(leg: Leg) -> bool:
    return bool(leg.session is not None and leg.session.auth_ok) or bool(leg.field is not None and leg.field.authenticated)


def _wants_login(leg: Leg, _: Scene) -> bool:
    return leg.sighting is not None and leg.sighting.code in (530, 535, 538)


def _is_exchanger(leg: Leg, scene: Scene) -> bool:
    return leg.server is not None and any(scene.exchanges_for(leg.server, d) for d in scene.domains(leg))


def _no_exchanger(leg: Leg, scene: Scene) -> bool:
    found = [scene.exchanges_for(leg.server, d) for d in scene.domains(leg)] if leg.server is not None else []
    return bool(found) and all(answer is False for answer in found)


def _named_like(leg: Leg, scene: Scene) -> bool:
    names = leg.server.names if leg.server is not None else ()
    by = leg.field.by if leg.field is not None else None
    for domain in scene.domains(leg):
        if by is not None and same_domain(by, domain):
            return True
        for name in names:
            if same_domain(name, domain):
                return True
    return False


def same_domain(host: str, domain: str) -> bool:
    """A host's name lies in the mail domain, or both lie in one (two labels, three under short second levels: `co.uk`)."""
    if host == domain or host.endswith("." + domain):
        return True
    mine, theirs = host.split("."), domain.split(".")
    labels = 3 if len(theirs) > 1 and len(theirs[-1]) == 2 and len(theirs[-2]) <= 3 else 2
    return len(mine) >= labels and len(theirs) >= labels and mine[-labels:] == theirs[-labels:]


def _told_to_use(leg: Leg, scene: Scene) -> bool:
    """The client looked up this server's address, and never an MX that leads to it."""
    if leg.client is None or leg.server is None or leg.sighting is None:
        return False
    asked = scene.lookups.asked_by(leg.client)
    if not asked or not any(n in asked for ip in leg.server.ips for n in scene.lookups.owners_of(ip)):
        return False
    return not any(d in asked and scene.exchanges_for(leg.server, d) is not False for d in scene.domains(leg))


def _passes_on(leg: Leg, _: Scene) -> bool:
    """The message leaves this server again by SMTP for the same recipients."""
    if not leg.children:
        return False
    if leg.sighting is not None:
        mine = {r.address.lower() for r in leg.sighting.recipients[:_LOOK_BACK]}
    else:
        mine = {leg.field.recipient.lower()} if leg.field is not None and leg.field.recipient else set()
    for child in leg.children[:_LOOK_BACK]:
        s = child.sighting
        if child.carried and child.protocol == "smtp":
            theirs = {r.address.lower() for r in s.recipients[:_LOOK_BACK]} if s is not None else set()
            if s is None or not mine or not mine.isdisjoint(theirs):
                return True
    return False


def _took_in_as(leg: Leg, _: Scene) -> str | None:
    """The role in which the client got the message."""
    return leg.parent.server_role if leg.parent is not None and leg.parent.server is leg.client else None


def _signed_the_top(leg: Leg, _: Scene) -> bool:
    """The newest trace field is the client's own."""
    s = leg.sighting
    if s is None or s.trail is None or leg.client is None:
        return False
    by = s.trail.field.by
    if by is None:
        return False
    called = s.session.client_name
    return leg.client.answers_to(by) or (called is not None and called.rstrip(".").lower() == by)


def _serves(leg: Leg, scene: Scene) -> bool:
    return id(leg.client) in scene.servers


def _made_by_server(s: Sighting | None) -> bool:
    return s is not None and s.mail_from == "" and s.report_kind != "mdn"


def _own_notice(leg: Leg, scene: Scene) -> bool:
    """A disposition notification that nobody has handled yet: a reader's program makes these, under `<>` (RFC 8098 3)."""
    return leg.sighting is not None and leg.sighting.report_kind == "mdn" and not _serves(leg, scene)


def _one_by_one(leg: Leg, scene: Scene) -> bool:
    """Refused before the data, it had waited for each reply though the server offers PIPELINING: relays save the time."""
    s = leg.sighting
    if s is None or s.has_content or s.outcome != "rejected" or not s.mail_from or not s.recipients or _serves(leg, scene):
        return False
    return "PIPELINING" in s.session.capabilities and s.recipients[0].frame != s.first_frame


def _login_below(leg: Leg, _: Scene) -> bool:
    s = leg.sighting
    trail = s.trail if s is not None else None
    while trail is not None and not trail.field.handed_over:
        trail = trail.below
    return trail is not None and trail.field.authenticated and leg.protocol == "smtp"


class Rule(NamedTuple):
    """One rule of evidence."""

    role: str
    """The role it speaks for; `*`: the one that `holds` returns."""
    weight: int
    says: str
    holds: Callable[[Leg, Scene], bool | str | None] | None
    """None: it holds whenever the hop has what the rule needs."""
    needs: str = ""
    """Words for what the hop must have (`_facts`), cheap to know and the same for many hops."""


SERVER_RULES = (
    Rule("mda", 20, "takes mail by LMTP", None, "lmtp"),
    Rule("msa", 15, "serves the submission ports", None, "submission"),
    Rule("msa", 15, "its client logged in", None, "smtp login"),
    Rule("msa", 4, "asks for a login", _wants_login, "seen"),
    Rule("mx", 6, "is an MX of the recipient's domain", _is_exchanger, "dns"),
    Rule("mx", 6, "hands mail to an MDA", lambda leg, scene: id(leg.server) in scene.lmtp_clients, "smtp"),
    Rule("mx", 2, "is an MX of some domain", lambda leg, scene: scene.exchanges_somewhere(leg.server), "dns"),
    Rule("mx", 2, "its name is of the recipient's domain", _named_like, "smtp"),
    Rule("mta", 3, "is no MX of the recipient's domain", _no_exchanger, "dns"),
    Rule("mta", 2, "its client was told to use it", _told_to_use, "dns"),
    Rule("mta", 2, "passes mail on for the same recipients", _passes_on, "smtp"),
    Rule("mx", 1, "takes mail on port 25", None, "port25"),
)
"""What makes a server `msa mta mx mda`."""

CLIENT_RULES = (
    Rule("mta", 14, "wrote the newest trace field and logged in", _signed_the_top, "login traced"),
    Rule("mua", 10, "logs in to submit", None, "smtp login"),
    Rule("mua", 4, "uses the submission ports", None, "submission"),
    Rule(
        "mua", 5, "is the first to handle the message", lambda leg, s: first_handler(leg) and not _serves(leg, s), "seen untraced"
    ),
    Rule("mua", 5, "sends a disposition notification of its own", _own_notice, "seen untraced"),
    Rule("mua", 2, "reads or files mail in a mailbox", lambda leg, s: id(leg.client) in s.readers and not _serves(leg, s)),
    Rule("mua", 1, "leaves PIPELINING unused", _one_by_one, "seen untraced port25"),
    Rule("mua", 2, "hands in messages of its own", lambda leg, s: id(leg.client) in s.origins and not _serves(leg, s)),
    Rule("mda", 8, "takes mail by LMTP", lambda leg, s: id(leg.client) in s.lmtp_servers),
    Rule("mx", 8, "hands mail to an MDA", None, "lmtp"),
    Rule("*", 7, "took the message in", _took_in_as, "parent"),
    Rule("msa", 4, "took the message in from a login", _login_below, "smtp traced"),
    Rule("mta", 3, "sends mail with trace fields", None, "traced"),
    Rule("mta", 3, "sends a server's own message", lambda leg, _: _made_by_server(leg.sighting), "seen"),
    Rule("mta", 3, "takes mail by SMTP itself", _serves),
    Rule("mta", 1, "sends to port 25", None, "port25"),
)
"""What makes a client `mua msa mta mx mda`."""

MAILBOX_RULES = {"pop3": "serves POP3", "imap": "serves IMAP"}


_SILENT = (0, "")
Decision = tuple[Leg, int, list[tuple[str, str]]]
"""A hop, the weight of its server's role, and the evidence for it."""


class Servers:
    """Roles of servers; a hop that says little takes the role that another hop of the same machine says loudest."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._loudest: dict[int, tuple[int, str]] = {}

    def hear(self, traces: list[Trace]) -> list[Decision]:
        """What each hop says by itself.  All hops are heard before any is settled."""
        loudest = self._loudest
        said: list[Decision] = []
        for trace in traces:
            for leg in trace.legs:
                if not leg.carried:
                    continue
                role, weight, held = _decide(SERVER_RULES, leg, self._scene)
                leg.server_role = role
                said.append((leg, weight, held))
                server = leg.server
                if server is not None and role in ("mx", "mta") and (weight, role) > loudest.get(id(server), _SILENT):
                    loudest[id(server)] = (weight, role)
        return said

    def loudest(self, machine: Machine) -> tuple[int, str]:
        """(weight, role) of what has been heard of a machine."""
        return self._loudest.get(id(machine), _SILENT)

    def learn(self, loudest: dict[int, tuple[int, str]]) -> None:
        """Take what was heard elsewhere, by id of a machine."""
        for machine, said in loudest.items():
            self._loudest[machine] = max(said, self._loudest.get(machine, _SILENT))

    def settle(self, said: list[Decision]) -> None:
        """Give the quiet hops the role of the loudest, and count the evidence."""
        for leg, weight, held in said:
            evidence = held
            if weight <= _QUIET and leg.server is not None and leg.protocol == "smtp":
                most, role = self.loudest(leg.server)
                if most > weight:
                    evidence = held if role == leg.server_role else [(role, "acts so in other hops")]
                    leg.server_role = role
            self._scene.count(leg, leg.server, evidence)


def assign(traces: list[Trace], scene: Scene) -> None:
    """Give every hop its client's role and its kind.

    Servers have theirs, for a client's role may be what it took the message in as.
    """
    for trace in traces:
        for leg in trace.legs:
            if not leg.carried:
                leg.server_role, leg.client_role = leg.protocol, "mua"
                scene.count(leg, leg.server, [(leg.protocol, MAILBOX_RULES.get(leg.protocol, "holds the mailbox"))])
                scene.count(leg, leg.client, [("mua", "reads or files mail in a mailbox")])
                continue
            leg.client_role, _, held = _decide(CLIENT_RULES, leg, scene)
            scene.count(leg, leg.client, held)
            if leg.server_role == "mda":
                leg.kind = "deliver"
            elif leg.server_role == "msa" or leg.client_role == "mua":
                leg.kind = "submit"
            else:
                leg.kind = "relay"


_QUIET = 3
"""Weight up to which a hop's own evidence gives way to the machine's other hops."""


Facts = tuple[bool, bool, bool, bool, bool, str, int | None]


def _facts(leg: Leg, scene: Scene) -> Facts:
    """What is cheap to know of a hop: seen by packets, with trace fields, parent, login, DNS answers, protocol, port."""
    s = leg.sighting
    return (
        s is not None,
        s is not None and s.trail is not None,
        leg.parent is not None,
        _logged_in(leg),
        scene.has_exchangers,
        leg.protocol,
        leg.session.server_port if leg.session is not None and leg.session.server_port in _PORTS else None,
    )


def _words_for(facts: Facts) -> set[str]:
    seen, traced, parent, login, dns, protocol, port = facts
    there = {
        "seen": seen,
        "traced": traced,
        "untraced": not traced,
        "parent": parent,
        "login": login,
        "smtp": protocol == "smtp",
        "lmtp": protocol == "lmtp",
        "dns": dns and protocol == "smtp",
        "port25": port == 25,
        "submission": port in SUBMISSION_PORTS,
    }
    return {word for word, holds in there.items() if holds}


def _worth_asking(rules: tuple[Rule, ...], facts: Facts) -> tuple[Rule, ...]:
    """The rules that such a hop has the needs of."""
    key = (rules is SERVER_RULES, facts)
    found = _WORTH.get(key)
    if found is None:
        words = _words_for(facts)
        found = _WORTH[key] = tuple(rule for rule in rules if words.issuperset(rule.needs.split()))
    return found


_PORTS = (25, *SUBMISSION_PORTS)
_WORTH: dict[tuple[bool, Facts], tuple[Rule, ...]] = {}


def _decide(rules: tuple[Rule, ...], leg: Leg, scene: Scene) -> tuple[str | None, int, list[tuple[str, str]]]:
    """(role, its weight, the evidence for it)."""
    weights: dict[str, int] = {}
    held: list[tuple[str, str]] = []
    for role, weight, says, holds, _ in _worth_asking(rules, _facts(leg, scene)):
        spoken_for = role
        if holds is not None:
            found = holds(leg, scene)
            if not found:
                continue
            if role == "*":
                spoken_for = str(found)
        held.append((spoken_for, says))
        weights[spoken_for] = weights.get(spoken_for, 0) + weight
    if not weights:
        return None, 0, held
    if len(weights) == 1:
        return held[0][0], weights[held[0][0]], held
    decided = max(weights, key=weights.__getitem__)
    return decided, weights[decided], [evidence for evidence in held if evidence[0] == decided]


def name_servers(hosts: Hosts, lookups: Lookups) -> dict[str, str]:
    """Role of each address that answered DNS questions: `resolver` or `authoritative`."""
    roles: dict[str, str] = {}
    for ip, (recursive, authoritative, without_rd, questions, first, last) in lookups.asked.items():
        if recursive:
            role, rule, count = "resolver", "answers with RA", recursive
        elif authoritative:
            role, rule, count = "authoritative", "answers with AA", authoritative
        elif without_rd == questions:
            role, rule, count = "authoritative", "is asked without RD", without_rd
        else:
            role, rule, count = "resolver", "is asked with RD", questions - without_rd
        roles[ip] = role
        machine = hosts.of(ip)
        machine.count((role, rule), count)
        machine.seen(first, last)
    return roles
