"""What servers wrote about a message's authentication: Authentication-Results (RFC 8601), Received-SPF (RFC 7208 9.1).

A claim is what somebody wrote; who did is told by where it first stands (evaluate.py), not by the name it gives itself.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

METHODS = ("spf", "dkim", "dmarc", "arc")
_CHARS = 4096
"""Octets of one field read."""
_CLAIMS = 64
"""Results of one field read."""
_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|\\.|[()]')
_CLAUSE = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"|")+')
_RESULT = re.compile(r"\s*([a-z0-9-]+)\s*(?:/\s*\d+\s*)?=\s*([a-z]+)", re.I)
_PROPERTY = re.compile(r'([a-z0-9-]+)\s*\.\s*([a-z0-9._-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]+)', re.I)
_PAIR = re.compile(r'([a-z0-9-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]+)', re.I)


class Claim(NamedTuple):
    """One result that a server wrote."""

    by: str
    """The name it gave itself: authserv-id, or receiver= of Received-SPF; lower case, empty when it gave none."""
    method: str
    """`spf dkim dmarc arc`."""
    result: str
    """Lower case."""
    domain: str | None
    """What it is about: the domain of smtp.mailfrom or smtp.helo, header.d, header.from; lower case."""
    selector: str | None = None
    """header.s of DKIM."""
    signature: str | None = None
    """header.b of DKIM: the first characters of b=."""
    helo: bool = False
    """An SPF result about the HELO name."""
    received: bool = False
    """Written as Received-SPF."""


def authentication_results(value: str) -> tuple[Claim, ...]:
    """The results of one Authentication-Results field."""
    by, *clauses = _CLAUSE.findall(without_comments(value[:_CHARS])) or [""]
    name = by.split()
    claims = []
    for clause in clauses[:_CLAIMS]:
        found = _RESULT.match(clause)
        if found is None or found[1].lower() not in METHODS:
            continue
        method = found[1].lower()
        properties = {f"{kind}.{prop}".lower(): _bare(text) for kind, prop, text in _PROPERTY.findall(clause[found.end() :])}
        helo = method == "spf" and "smtp.mailfrom" not in properties and "smtp.helo" in properties
        domain = {
            "spf": properties.get("smtp.mailfrom") or properties.get("smtp.helo"),
            "dkim": properties.get("header.d") or properties.get("header.i"),
            "dmarc": properties.get("header.from"),
        }.get(method)
        selector, signature = properties.get("header.s"), properties.get("header.b")
        claims.append(
            Claim(
                name[0].strip('"').lower() if name else "",
                method,
                found[2].lower(),
                domain_in(domain),
                selector.lower() if selector else None,
                signature,
                helo,
            )
        )
    return tuple(claims)


def received_spf(value: str) -> tuple[Claim, ...]:
    """The result of one Received-SPF field."""
    words = value.split(None, 1)
    if not words or not words[0].isalpha():
        return ()
    pairs = {key.lower(): _bare(text) for key, text in _PAIR.findall(without_comments(value[:_CHARS]))}
    helo = pairs.get("identity", "").lower() == "helo"
    domain = pairs.get("helo") if helo else pairs.get("envelope-from") or pairs.get("helo")
    return (Claim(pairs.get("receiver", "").lower(), "spf", words[0].lower(), domain_in(domain), helo=helo, received=True),)


def told(claims: Iterable[Claim]) -> tuple[str | None, str | None, str | None]:
    """(spf, dkim, dmarc) of claims, topmost first: the first result of each method, or `pass` where any says so.

    Received-SPF counts only where no Authentication-Results tells of SPF.
    """
    found: dict[str, str] = {}
    trace = None
    for claim in claims:
        if claim.received:
            trace = trace or claim.result
        elif claim.method not in found or claim.result == "pass":
            found[claim.method] = claim.result
    if trace is not None:
        found.setdefault("spf", trace)
    return found.get("spf"), found.get("dkim"), found.get("dmarc")


def domain_in(text: str | None) -> str | None:
    """The domain of an address, of `@domain` or of a domain, lower case."""
    if not text:
        return None
    return text.strip("<>").rpartition("@")[2].rstrip(".").lower() or None


def _bare(text: str) -> str:
    return text.strip('"')


def without_comments(text: str) -> str:
    """RFC 5322 3.2.2: comments nest; quoted strings hide them."""
    if "(" not in text:
        return text
    kept: list[str] = []
    depth = at = 0
    for found in _COMMENT.finditer(text):
        if found[0] == "(":
            if not depth:
                kept.append(text[at : found.start()])
            depth += 1
        elif found[0] == ")" and depth:
            depth -= 1
            at = found.end()
    if not depth:
        kept.append(text[at:])
    return " ".join(kept)
