"""When a message was at a machine that may have tried to pass it on in vain: all that a failed connection can have been made for.

Wider than what a telling makes of it (`story._LegIndex`), which knows where mail for a domain goes, but never narrower.
"""

from collections.abc import Collection

from analyzer.mail.reports import domain_of
from analyzer.mail.sightings import Sighting

PATIENCE = 120_000_000_000
"""A failed connection and the hop it was a try of are no further apart, where it is not seen how the message came."""
EARLY = 200_000_000
"""So much before its server's last reply a message may go on."""
AGAIN = ("deferred", "aborted", "unknown")
"""After such a try a client tries again."""
SMTP_PORTS = (25, 587, 465)
"""On others LMTP may be spoken, where no domain tells the server."""
_DOMAINS = 16
"""Recipients of a message whose domains are looked at."""
_STAMP = 2_000_000_000
"""A trace field's time is whole seconds."""
EVER = (1 << 63) - 1


Way = tuple[str, str]
"""Address of a machine; a server's address or a domain that it may have tried to pass mail on to, "" for any."""


def held_spans(sightings: Collection[Sighting], decided: bool) -> dict[Way, tuple[int, int]]:
    """Way -> (from, until) when one of these crossings' messages may have been tried to be passed on so.

    `decided`: the fate of the messages is known, so nobody tries any more.
    """
    carried = [s for s in sightings if s.kind == "transaction"]
    latest = max((time for s in sightings for time in _times(s)), default=0)
    sent: dict[str, list[Sighting]] = {}
    arrived: dict[str, list[Sighting]] = {}
    for s in carried:
        for ip in {s.session.client_ip, s.session.stated_client_ip or s.session.client_ip}:
            sent.setdefault(ip, []).append(s)
        if s.outcome in ("accepted", "partial", "unknown"):
            arrived.setdefault(s.session.server_ip, []).append(s)
    spans: dict[Way, tuple[int, int]] = {}
    for ip in sent.keys() | arrived.keys():
        tries, came = sent.get(ip, ()), arrived.get(ip, ())
        first_came = min(map(_end, came), default=EVER) - EARLY
        since = min((first_came if s.ts > first_came else s.ts - PATIENCE for s in tries), default=first_came)
        goes_on = not decided and any(not _settled(s, tries) for s in came)
        until = EVER if goes_on else latest if came else max(s.ts for s in tries)
        to = {"", *(s.session.server_ip for s in tries)}
        to.update(d for s in (*came, *tries) for r in s.recipients[:_DOMAINS] if (d := domain_of(r.address)))
        spans.update(((ip, where), (min(since, first_came), until)) for where in to)
    return spans


def _settled(s: Sighting, tries: Collection[Sighting]) -> bool:
    """Whether tries have settled all recipients of a message that came, as far as they can be told."""
    own = [t for t in tries if t.ts >= s.ts and t.message_id == s.message_id and t.outcome not in AGAIN]
    settled = {r.address.lower() for t in own for r in t.recipients if r.outcome not in AGAIN}
    mine = {r.address.lower() for r in s.recipients if r.outcome == "accepted"}
    return bool(settled) and (mine <= settled or mine.isdisjoint(settled))


def _end(s: Sighting) -> int:
    return next((t for t in (s.ts_end, s.ts_eom, s.ts_data) if t is not None), s.ts)


def _times(s: Sighting) -> list[int]:
    return [s.ts, *(trail.field.ts + _STAMP for trail in s.trail or () if trail.field.ts is not None)]
