"""STARTTLS that was taken out of a dialogue on its way (RFC 3207 6, RFC 8314 appendix A: downgrade).

One session alone cannot tell, unless what took the offer away left a mask, or the client asked for what it was not offered:
else it is told by what the same server offers to others.
"""

import re
from typing import NamedTuple

from analyzer.limits import Limits
from analyzer.protocols.base import SessionInfo, SessionRow
from analyzer.wire.anomalies import Anomaly

_MASK = re.compile(r"X{7}[XA]")
"""What firewalls that rewrite EHLO replies in place write over STARTTLS."""
_LATEST = 10
"""Share of the limit, 1/10, that waits for a server's other sessions where there is no end to wait for."""
_OFFERS = ("STARTTLS", "STLS")


class _Bare(NamedTuple):
    """A session in clear whose server's list of extensions was seen, without STARTTLS in it."""

    session_id: str
    source: str
    ts: int
    frame: int | None
    server: tuple[str, int]
    reason: str


class Offers:
    """Who offers STARTTLS, and whose offer was taken away.  `feed` it sessions that are over, then `settle`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._offers: dict[tuple[str, int], int] = {}
        self._bare: list[_Bare] = []
        self._dropped = 0
        self._stripped: set[str] = set()

    def feed(self, info: SessionInfo) -> None:
        """Take a session that is over."""
        server = (info.server_ip, info.server_port)
        if info.starttls in ("offered", "used"):
            if server in self._offers or len(self._offers) < self._limits.hosts:
                self._offers[server] = self._offers.get(server, 0) + 1
            return
        conn = info.connection
        if info.visibility != "clear" or conn.start != "handshake" or not info.capabilities:
            return
        if any(word in info.capabilities for word in _OFFERS):
            return
        reason = ""
        if any(_MASK.fullmatch(word) for word in info.capabilities):
            reason = "the offer of STARTTLS is overwritten"
        elif info.starttls == "refused":
            reason = "the client asked for STARTTLS that it was not offered"
        if len(self._bare) >= self._limits.starttls_sessions:
            self._dropped += 1
            return
        ts = info.ts_greeted if info.ts_greeted is not None else conn.ts
        self._bare.append(_Bare(info.session_id, info.source, ts, info.frame_greeted, server, reason))

    def settle(self, until: int | None = None) -> list[Anomaly]:
        """What was taken away, named: in all sessions, or in those that began by a time or are not among the latest."""
        found: list[Anomaly] = []
        spare = len(self._bare) - self._limits.starttls_sessions // _LATEST
        bare_ones = [bare for i, bare in enumerate(self._bare) if until is None or bare.ts <= until or i < spare]
        for bare in bare_ones:
            others = self._offers.get(bare.server, 0)
            detail = bare.reason
            if not detail and others:
                detail = f"no offer of STARTTLS here, by a server that makes it in {others:,} other sessions"
            if detail:
                if len(self._stripped) < self._limits.starttls_sessions:
                    self._stripped.add(bare.session_id)
                found.append(Anomaly(bare.ts, bare.source, bare.session_id, None, "starttls_stripped", detail, bare.frame))
        if self._dropped:
            detail = f"{self._dropped:,} sessions beyond the limit"
            found.append(Anomaly(None, "", None, None, "starttls_unchecked", detail, None))
            self._dropped = 0
        self._bare = [b for i, b in enumerate(self._bare) if until is not None and b.ts > until and i >= spare]
        return found

    def row(self, row: SessionRow) -> SessionRow:
        """The row of a session with what became of STARTTLS."""
        return row._replace(starttls="stripped") if row.session_id in self._stripped else row
