"""What is odd in a message's way: submission past the submission servers, open relays, trace fields that cannot be true.

Rules:
1. A client that hands in mail of its own to an exchanger, without a login, goes round its own domain's servers (`direct_to_mx`);
   not one that SPF names as such a server (newsletters and bills come from programs that deliver themselves).
2. A server is an open relay when it passes on, for a client without a login, what comes from a stranger's domain and is for a
   stranger's domain.  Who may relay by address alone has a name or a sender of the server's own domain.
3. Trace fields stand newest first; each server writes one (RFC 5321 4.4), so times do not run backwards and nobody but servers
   has any to show.  What contradicts packets or other fields may be forged; it is told, and joins nothing.
4. A message that comes to a server and port again for the same recipient goes round (a filter hands it back on another port).  A
   client that sends again what was taken had not heard the reply: the recipient has it twice.
"""

from collections.abc import Collection, Iterator

from analyzer.mail.authentication.answers import NOT_CAPTURED
from analyzer.mail.hops import Leg, Trace
from analyzer.mail.records import Authentication
from analyzer.mail.reports import domain_of
from analyzer.mail.roles import Scene, same_domain
from analyzer.wire.anomalies import Anomaly

_SKEW = 300_000_000_000
"""Clocks of servers that differ by less are no news."""
_LOOK_AT = 32
_DEPTH = 100
"""Hops above one that are looked at."""


def of(trace: Trace, scene: Scene, authentication: Collection[Authentication]) -> Iterator[Anomaly]:
    """The oddities of one message, each kind once; `authentication`: its rows."""
    authorized = {row.hop for row in authentication if row.method == "spf" and _passes(row)}
    said: set[str] = set()
    for leg in trace.legs:
        again = (*_round(leg), *_twice(leg, trace)) if leg.parent is not None else ()
        for name, detail in (*_submission(leg, scene, leg.number in authorized), *_fields(leg), *again):
            if name not in said:
                said.add(name)
                s = leg.sighting
                assert s is not None
                yield Anomaly(s.seen, s.session.source, s.session.session_id, trace.id, name, detail, s.first_frame)


def _passes(row: Authentication) -> bool:
    """As evaluated, else as the server wrote."""
    return row.result == "pass" or (row.result == NOT_CAPTURED and row.claimed == "pass")


def _submission(leg: Leg, scene: Scene, authorized: bool) -> Iterator[tuple[str, str]]:
    s = leg.sighting
    if s is None or not leg.carried or leg.protocol != "smtp" or leg.client_role != "mua" or s.session.auth_ok:
        return
    if leg.server_role == "mx" and not authorized:
        yield "direct_to_mx", f"{leg.client_ip} hands its own message to {leg.server_ip}, an exchanger, without a login"
    if not leg.accepted or leg.server is None or _is_ours(leg, domain_of(s.mail_from)):
        return
    for r in s.recipients[:_LOOK_AT]:
        domain = domain_of(r.address)
        if domain is None or r.outcome != "accepted" or scene.exchanges_for(leg.server, domain) is not False:
            continue
        if not _is_ours(leg, domain) and _passed_on(leg, r.address.lower()):
            yield "open_relay", f"{leg.server_ip} passes on mail from <{s.mail_from}> to <{r.address}> for {leg.client_ip}"
            return


def _is_ours(leg: Leg, domain: str | None) -> bool:
    """Whether a domain, or the client, is of the server's own."""
    assert leg.server is not None
    names = leg.server.names
    if domain is not None and any(same_domain(name, domain) for name in names):
        return True
    known = leg.client.names if leg.client is not None else ()
    return any(same_domain(name, other) for name in names for other in known)


def _passed_on(leg: Leg, address: str) -> bool:
    for child in (leg.children or ())[:_LOOK_AT]:
        s = child.sighting
        onward = child.carried and child.protocol == "smtp" and child.server is not leg.server
        if onward and s is not None and any(r.address.lower() == address for r in s.recipients[:_LOOK_AT]):
            return True
    return False


def _round(leg: Leg) -> Iterator[tuple[str, str]]:
    """The message has been here before."""
    s = leg.sighting
    if s is None or not leg.carried or leg.protocol != "smtp":
        return
    above, times = leg.parent, 0
    mine: set[str] = set()
    for _ in range(_DEPTH):
        if above is None:
            break
        before = above.sighting
        if before is not None and above.server is leg.server and before.session.server_port == s.session.server_port:
            mine = mine or {r.address.lower() for r in s.recipients[:_LOOK_AT]}
            times += any(r.address.lower() in mine for r in before.recipients[:_LOOK_AT])
        above = above.parent
    if times == 1:
        yield "mail_loop", f"hop {leg.number} brings it to {_called(leg)} again for <{s.recipients[0].address}>"


def _twice(leg: Leg, trace: Trace) -> Iterator[tuple[str, str]]:
    """A recipient for whom the message was taken before."""
    s = leg.sighting
    parent = leg.parent
    if s is None or not leg.carried or not leg.accepted or parent is None:
        return
    if len(parent.children or ()) > 1:
        for other in parent.children[:_LOOK_AT] if parent.children else ():
            address = _both_took(other, leg) if other.client is leg.client else None
            if address is not None:
                late = other.end - leg.ts
                said = f"{late / 1e9:.3f} s before {_called(other)} said" if late > 0 else f"though {_called(other)} had said"
                yield "sent_again", f"hop {leg.number} was begun {said} that it takes it for <{address}> (hop {other.number})"
                break
    if leg.server_role == "mda":
        for other in trace.legs[: leg.number - 1][-_LOOK_AT:]:
            address = _both_took(other, leg) if other.server_role == "mda" and other.server is leg.server else None
            if address is not None:
                yield "delivered_twice", f"{_called(leg)} took it for <{address}> in hop {other.number} and in hop {leg.number}"
                break


def _both_took(earlier: Leg, leg: Leg) -> str | None:
    """A recipient for whom two hops' servers took the message."""
    a, b = earlier.sighting, leg.sighting
    if a is None or b is None or earlier.number >= leg.number or not earlier.carried or not earlier.accepted:
        return None
    taken = {r.address.lower() for r in a.recipients[:_LOOK_AT] if r.outcome == "accepted"}
    return next((r.address for r in b.recipients[:_LOOK_AT] if r.outcome == "accepted" and r.address.lower() in taken), None)


def _called(leg: Leg) -> str:
    """A hop's server, as it calls itself."""
    assert leg.sighting is not None
    return leg.sighting.session.server_name or leg.server_ip or "a server"


def _fields(leg: Leg) -> Iterator[tuple[str, str]]:
    s = leg.sighting
    if s is None or s.trail is None:
        return
    top = s.trail.field
    unseen = leg.parent is None or leg.parent.basis == "claimed"
    by_user = leg.carried and leg.client_role == "mua" and unseen
    if by_user and top.by is not None and leg.client is not None and not leg.client.answers_to(top.by):
        yield "received_forged", f"{leg.client_ip} hands in its own message with a trace field that {top.by} wrote"
    if leg.carried and top.ts is not None and top.ts - leg.seen_end > _SKEW:
        yield (
            "received_time_impossible",
            f"{top.by or 'a server'} received it {(top.ts - leg.seen_end) / 1e9:.0f} s after it was seen here",
        )
    trail = s.trail
    for _ in range(_LOOK_AT):
        below = trail.below
        if below is None:
            break
        newer, older = trail.field, below.field
        if newer.ts is not None and older.ts is not None and older.ts - newer.ts > _SKEW:
            later = (older.ts - newer.ts) / 1e9
            yield (
                "received_time_impossible",
                f"{older.by or 'a server'} received it {later:.0f} s after {newer.by or 'the next server'} had it",
            )
            break
        trail = below
    parent = leg.parent
    if parent is not None and parent.sighting is not None and parent.carried and s.trail.below is parent.trail:
        before = parent.sighting
        seen = (before.session.client_ip, before.session.stated_client_ip)
        if top.id is not None and top.id == before.queue_id and top.ip is not None and top.ip not in seen:
            yield (
                "received_contradicted",
                f"{top.by or 'the server'} wrote that {top.ip} sent it; the packets came from {seen[0]}",
            )
