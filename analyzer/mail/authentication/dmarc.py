"""DMARC (RFC 7489): does a result of SPF or DKIM speak for the author's domain?

The organizational domain is told by the public suffix list (3.2) that the library `publicsuffixlist` brings along.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

from analyzer.mail.authentication.answers import NOT_CAPTURED, UNKNOWN, Answer, Failure, NotCaptured, text
from analyzer.protocols.signatures import tag_list

Ask = Callable[[str, str], Answer]


class Identifier(NamedTuple):
    """A domain that SPF or DKIM has a result about."""

    method: str
    domain: str
    result: str


class Verdict(NamedTuple):
    """A result with its policy and the reason for it."""

    result: str
    """`pass fail none temperror permerror`, `not in the capture`, `unknown`."""
    policy: str | None
    """What the domain asks to be done with failing mail: `none quarantine reject`."""
    reason: str


class _Policy(NamedTuple):
    domain: str
    asked: str
    strict: frozenset[str]
    """Methods whose domain must be the same."""


def check(author: str, identifiers: list[Identifier], ask: Ask) -> Verdict:
    """The result for the domain of the From field.

    Raises nothing: an answer that is not in the capture makes the result `not in the capture` unless nothing depends on it.
    """
    try:
        policy = _discover(author, ask)
    except NotCaptured as lack:
        return Verdict(NOT_CAPTURED, None, str(lack))
    except Failure as wrong:
        return Verdict("temperror", None, f"{wrong} could not be found out")
    if policy is None:
        return Verdict("none", None, f"{author} has no DMARC record")
    asked, open_ = policy.asked, []
    for method, domain, result in identifiers:
        strict = method in policy.strict
        if not aligned(domain, author, strict):
            continue
        if result == "pass":
            how = "the same domain" if domain == author else f"of the same organization {organization(author)}"
            return Verdict("pass", asked, f"{method.upper()} {domain}: {how}")
        if result in (NOT_CAPTURED, UNKNOWN, "temperror"):
            open_.append((result, f"{method.upper()} {domain}"))
    for result in (NOT_CAPTURED, UNKNOWN, "temperror"):
        pending = [what for state, what in open_ if state == result]
        if pending:
            return Verdict(result, asked, f"it depends on {', '.join(pending)}")
    return Verdict("fail", asked, f"neither SPF nor DKIM passes for {author}")


def _discover(author: str, ask: Ask) -> _Policy | None:
    """6.6.3: the record of the domain, else of its organizational domain."""
    parent = organization(author)
    for domain in dict.fromkeys((author, parent)):
        records = [
            tag_list(octets) for rdata in ask(f"_dmarc.{domain}", "TXT").data if (octets := text(rdata)).startswith(b"v=DMARC1")
        ]
        records = [tags for tags in records if tags.get(b"v") == b"DMARC1"]
        if len(records) > 1:
            return None
        if not records:
            continue
        tags = records[0]
        asked = tags.get(b"p", b"none" if b"rua" in tags else b"").lower()
        if domain != author:
            asked = tags.get(b"sp", asked).lower()
        if asked not in (b"none", b"quarantine", b"reject"):
            if b"rua" not in tags:
                return None
            asked = b"none"
        strict = {method for method, tag in (("spf", b"aspf"), ("dkim", b"adkim")) if tags.get(tag, b"r").lower() == b"s"}
        return _Policy(domain, asked.decode(), frozenset(strict))
    return None


def aligned(domain: str, author: str, strict: bool) -> bool:
    """3.1: whether a domain speaks for the author's."""
    return domain == author or (not strict and organization(domain) == organization(author))


@cache
def _suffixes(encoded: bool) -> Any:
    """The list, with its internationalized suffixes as they are in DNS (RFC 5890) too: that takes ten times as long."""
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_encoded_idn=encoded)


@lru_cache(4096)
def organization(domain: str) -> str:
    """The organizational domain: one label more than a public suffix."""
    if domain.count(".") < 2:  # whatever the list says, there is nothing to take off
        return domain
    return _suffixes("xn--" in domain).privatesuffix(domain) or domain
