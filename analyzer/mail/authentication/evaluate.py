"""The rows of `authentication`: what we find of a message at a hop, beside what the server of that hop wrote.

Rules:
1. Judged is where a message comes in from outside, at a recipient domain's MX, and wherever a server wrote a result.  Of a
   message that was never seen coming in, the signatures are judged where it was seen last.
2. A server wrote what stands in the message behind it and did not stand there before it.  A result that came along under
   the name of the server itself is not believed: `authentication_results_forged` (RFC 8601 5).
3. No row is made where nothing is known: no result written, no answer captured, no signature.
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterator

from analyzer.mail.authentication.answers import NOT_CAPTURED, UNKNOWN, Answer, Answers, NotCaptured
from analyzer.mail.authentication.claims import Claim, domain_in, without_comments
from analyzer.mail.hops import Leg, Trace
from analyzer.mail.received import canonical_ip
from analyzer.mail.records import Authentication
from analyzer.mail.reports import domain_of
from analyzer.mail.roles import Scene
from analyzer.mail.sightings import Sighting
from analyzer.wire.anomalies import Anomaly

_AFTER = 50_000_000
"""A server's answers may be seen this long after its reply."""
_REASON_CHARS = 300
_LOOK_BACK = 16
_REFUSED_FOR_SPF = re.compile(r"[45]\.7\.23\Z")
"""RFC 7372 3.2: SPF validation failed."""
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_UNDECIDED = frozenset((NOT_CAPTURED, UNKNOWN))


class Judge:
    """Evaluates the messages of one story."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._answers = Answers(scene.lookups)
        self._asked = bool(len(scene.lookups))
        self._known: dict[tuple[str, str, int], tuple[tuple[str, str], list[tuple[str, str, object]]]] = {}

    def judge(self, trace: Trace) -> tuple[list[Authentication], list[Anomaly]]:
        """The rows of one message, and what is odd about them."""
        rows: list[Authentication] = []
        odd: list[Anomaly] = []
        own: set[Claim] = set()
        distrusted: set[Claim] = set()
        for leg in trace.legs:
            s = leg.sighting
            if s is None or not leg.carried:
                continue
            wrote = _written(leg)
            if s.claims and leg.server_role == "mx":
                forged = self._forged(leg, s, wrote, own)
                if forged:
                    distrusted |= forged
                    detail = ", ".join(sorted({f"{c.method}={c.result} by {c.by}" for c in forged}))
                    odd.append(_anomaly(trace, s, "authentication_results_forged", detail))
            own.update(wrote)
            known = self._asked or s.signatures is not None or bool(s.dkim)
            incoming = known and leg.server_role == "mx" and leg.protocol == "smtp" and not self._within(leg, s)
            if incoming or wrote:
                for row in self._leg(trace, leg, s, wrote, incoming):
                    rows.append(row)
                    if row.agrees is False:
                        about = f"{row.method.upper()} {row.domain or ''}".strip()
                        detail = f"{about}: {row.claimed_by} wrote {row.claimed}, evaluated {row.result} ({row.reason})"
                        odd.append(_anomaly(trace, s, "authentication_differs", detail))
        trace.distrusted = frozenset(distrusted)
        if not rows:
            rows = list(self._last(trace))
        return rows, odd

    def _forged(self, leg: Leg, s: Sighting, wrote: list[Claim], own: set[Claim]) -> set[Claim]:
        """Rule 2: results under the name of the server that the message is only coming to."""
        names = {claim.by for claim in wrote if claim.by}
        if s.session.server_name:
            names.add(s.session.server_name.rstrip(".").lower())
        if leg.server is not None:
            names.update(leg.server.names)
        return {claim for claim in s.claims if claim.by in names and claim not in own}

    def _within(self, leg: Leg, s: Sighting) -> bool:
        """The client is an MX of the same domain, or has logged in: it vouches for the message."""
        if s.session.auth_ok:
            return True
        client = leg.client
        return client is not None and any(self._scene.exchanges_for(client, d) for d in self._scene.domains(leg))

    def _last(self, trace: Trace) -> Iterator[Authentication]:
        """Rule 1, the message never seen coming in."""
        for leg in reversed(trace.legs):
            s = leg.sighting
            if s is not None and s.signatures is not None:
                for row in self._signatures(trace, leg, s, list(s.claims)):
                    yield row._replace(agrees=None)
                return

    def _leg(self, trace: Trace, leg: Leg, s: Sighting, wrote: list[Claim], incoming: bool) -> Iterator[Authentication]:
        methods = {claim.method for claim in wrote}
        spf_row = None
        if incoming or "spf" in methods:
            for row in self._spf(trace, leg, s, wrote):
                spf_row = spf_row or row
                if self._worth(row):
                    yield row
        signatures = list(self._signatures(trace, leg, s, wrote)) if incoming or methods & {"dkim", "arc"} else []
        yield from signatures
        if incoming or "dmarc" in methods:
            result = self._dmarc(trace, leg, s, wrote, [row for row in (spf_row, *signatures) if row is not None])
            if result is not None and self._worth(result):
                yield result

    def _worth(self, row: Authentication) -> bool:
        """Rule 3."""
        if row.claimed is not None or row.result != NOT_CAPTURED:
            return True
        return self._answers.has(("_dmarc." if row.method == "dmarc" else "") + (row.domain or ""))

    def _ask(self, leg: Leg) -> Callable[[str, str], Answer]:
        """The answers as the server of a hop knew them."""
        answers, machine, ts = self._answers, leg.server, leg.end + _AFTER

        def ask(name: str, kind: str) -> Answer:
            return answers.ask(name, kind, machine, ts)

        return ask

    # SPF

    def _spf(self, trace: Trace, leg: Leg, s: Sighting, wrote: list[Claim]) -> Iterator[Authentication]:
        """The envelope's sender, or the HELO name for a null reverse-path; the HELO name also where a server says so."""
        helo = (s.session.client_name or "").rstrip(".").lower()
        claims = [claim for claim in wrote if claim.method == "spf"]
        sender = domain_in(s.mail_from) if s.mail_from and "@" in s.mail_from else None
        identities = [(sender, False)] if sender is not None else [(helo, True)] if helo else []
        if sender is not None and helo and any(claim.helo for claim in claims):
            identities.append((helo, True))
        for domain, is_helo in identities:
            assert domain is not None
            address = "" if is_helo else s.mail_from or ""
            result, reason = self._spf_verdict(leg, s, _a_label(domain), address, helo)
            claim = next((c for c in claims if c.helo is is_helo and c.domain in (domain, None)), None)
            if claim is None and len(identities) == 1 and claims:
                claim = claims[0]
            yield _row(trace, leg, "spf", domain, None, result, reason, claim, s)

    def _spf_verdict(self, leg: Leg, s: Sighting, domain: str, sender: str, helo: str) -> tuple[str, str]:
        from analyzer.mail.authentication import spf

        ip = canonical_ip(s.session.stated_client_ip or s.session.client_ip)
        if ip is None:
            return UNKNOWN, "the client has no address"
        ask, asked, macros = self._ask(leg), [], False

        def noted(name: str, kind: str) -> Answer:
            nonlocal macros
            asked.append((name, kind, self._answers.place(name, kind, leg.server, ts)))
            answer = ask(name, kind)
            macros = macros or any("%" in rdata for rdata in answer.data)
            return answer

        ts = leg.end + _AFTER
        key = (ip, domain, id(leg.server))
        known = self._known.get(key)
        if known is not None and all(self._answers.place(n, k, leg.server, ts) == place for n, k, place in known[1]):
            return known[0]
        try:
            local = sender.rpartition("@")[0]
            verdict: tuple[str, str] = spf.check(ip, f"{local or 'postmaster'}@{domain}", helo, noted)
        except NotCaptured as lack:
            verdict = (NOT_CAPTURED, str(lack))
        if not macros:
            self._known[key] = (verdict, asked)
        return verdict

    # DKIM and ARC

    def _signatures(self, trace: Trace, leg: Leg, s: Sighting, wrote: list[Claim]) -> Iterator[Authentication]:
        if not (s.dkim or s.signatures or wrote):
            return
        from analyzer.mail.authentication import dkim

        ask = self._ask(leg)
        claims = [claim for claim in wrote if claim.method == "dkim"]
        digested = s.signatures.dkim if s.signatures is not None else ()
        for signature in digested:
            claim = _of_signature(claims, signature.domain, signature.selector, signature.value, len(s.dkim) == 1)
            if claim is not None:
                claims.remove(claim)
            verdict = dkim.check(signature, s.ts_eom or s.seen, ask)
            yield _row(trace, leg, "dkim", signature.domain, signature.selector, *verdict, claim, s)
        for name, key in s.dkim[len(digested) :]:
            claim = _of_signature(claims, name, key, None, len(s.dkim) == 1)
            if claim is not None:
                claims.remove(claim)
            reason = "incomplete: octets of the header section are missing" if not digested else "too many signatures"
            yield _row(trace, leg, "dkim", name, key, UNKNOWN, reason, claim, s)
        if not s.dkim and claims and s.header_complete:
            yield _row(trace, leg, "dkim", None, None, "none", "there is no signature", claims[0], s)
        arc = next((claim for claim in wrote if claim.method == "arc"), None)
        if s.signatures is not None and (s.signatures.seals or s.signatures.arc_fault):
            verdict = dkim.check_arc(s.signatures, ask)
            newest = s.signatures.seals[-1] if s.signatures.seals else None
            domain, selector = (newest.domain, newest.selector) if newest is not None else (None, None)
            yield _row(trace, leg, "arc", domain, selector, verdict.result, verdict.reason, arc, s)
        elif arc is not None and s.header_complete:
            yield _row(trace, leg, "arc", None, None, "none", "there is no ARC set", arc, s)

    # DMARC

    def _dmarc(
        self, trace: Trace, leg: Leg, s: Sighting, wrote: list[Claim], found: list[Authentication]
    ) -> Authentication | None:
        if s.header_from is None:
            return None
        from analyzer.mail.authentication import dmarc

        claim = next((claim for claim in wrote if claim.method == "dmarc"), None)
        authors = _author_domains(s.header_from)
        if len(authors) != 1:
            if claim is None and not self._asked:
                return None
            reason = "From has several domains" if authors else "From has no domain"
            return _row(trace, leg, "dmarc", None, None, "permerror", reason, claim, s)
        author = authors[0]
        identifiers = [
            dmarc.Identifier(row.method, _a_label(row.domain), row.result)
            for row in found
            if row.method in ("spf", "dkim") and row.domain is not None
        ]
        if not s.header_complete and not s.dkim:
            identifiers.append(dmarc.Identifier("dkim", _a_label(author), UNKNOWN))
        result, policy, reason = dmarc.check(_a_label(author), identifiers, self._ask(leg))
        return _row(trace, leg, "dmarc", author, None, result, reason, claim, s)._replace(policy=policy)


def _row(
    trace: Trace,
    leg: Leg,
    method: str,
    domain: str | None,
    selector: str | None,
    result: str,
    reason: str,
    claim: Claim | None,
    s: Sighting,
) -> Authentication:
    claimed = claim.result if claim is not None else None
    return Authentication(
        trace.id,
        leg.number,
        method,
        domain,
        selector,
        result,
        reason if len(reason) <= _REASON_CHARS else reason[:_REASON_CHARS] + "…",
        None,
        claimed,
        (claim.by or s.session.server_name or s.session.server_ip) if claim is not None else None,
        _agrees(method, result, claimed),
    )


def _agrees(method: str, result: str, claimed: str | None) -> bool | None:
    """Whether two results say the same; None when one of them says nothing."""
    if claimed is None or claimed == "temperror" or result in _UNDECIDED:
        return None
    claimed = {"hardfail": "fail", "bestguesspass": "none", "unknown": "permerror", "error": "permerror"}.get(claimed, claimed)
    if method in ("dkim", "arc") and "none" not in (result, claimed):
        return (result == "pass") is (claimed == "pass")
    return result == claimed


def _written(leg: Leg) -> list[Claim]:
    """Rule 2: results that stand in the message when it leaves this hop's server, and did not when it came."""
    s = leg.sighting
    assert s is not None
    if s.mail_from and any(_REFUSED_FOR_SPF.match(code) for code in _codes(s)):
        return [Claim((s.session.server_name or "").lower(), "spf", "fail", domain_in(s.mail_from))]
    if not s.has_content or not s.header_complete:
        return []
    for child in leg.children or ():
        after = child.sighting
        if after is not None and after.has_content and after.claims:
            return list((Counter(after.claims) - Counter(s.claims)).elements())
    return []


def _codes(s: Sighting) -> Iterator[str]:
    if s.enhanced_code is not None:
        yield s.enhanced_code
    for recipient in s.recipients[:_LOOK_BACK]:
        if recipient.enhanced_code is not None:
            yield recipient.enhanced_code


def _of_signature(claims: list[Claim], domain: str, selector: str, value: bytes | None, only: bool) -> Claim | None:
    """The claim about one signature: by the beginning of b=, else by domain and selector; the only one if it names none."""
    if value is not None:
        octets = base64.b64encode(value).decode()
        for claim in claims:
            if claim.signature and octets.startswith(claim.signature):
                return claim
    for claim in claims:
        named = claim.domain is not None and (claim.domain == domain or claim.domain.endswith("." + domain))
        if named and not (value is not None and claim.signature) and claim.selector in (None, selector):
            return claim
    return next((claim for claim in claims if claim.domain is None), None) if only else None


def _author_domains(value: bytes) -> list[str]:
    """The domains of a From field, each once: of the addresses in angle brackets, of bare ones where there are no brackets."""
    text = _QUOTED.sub("", without_comments(value[:4096].decode("utf-8", "replace")))
    found: dict[str, None] = {}
    for mailbox in text.split(","):
        bracket = mailbox.rfind("<")
        address = mailbox[bracket + 1 :].partition(">")[0] if bracket >= 0 else mailbox.rpartition(":")[2].partition(";")[0]
        domain = domain_of(address.strip())
        if domain:
            found[domain] = None
    return list(found)


def _a_label(domain: str) -> str:
    """A domain as DNS has it (RFC 5890)."""
    if domain.isascii() or len(domain) > 255:
        return domain
    try:
        return domain.encode("idna").decode()
    except UnicodeError:
        return domain


def _anomaly(trace: Trace, s: Sighting, name: str, detail: str) -> Anomaly:
    return Anomaly(s.seen, s.session.source, s.session.session_id, trace.id, name, detail[:1000], s.last_frame)
