"""Sender Policy Framework (RFC 7208): may this client send for this domain?

Rules:
1. Answers come from `ask` alone; what it raises for an answer that is not in the capture goes through all of this file.
2. Order among the exchangers of one `mx` and the names of one `ptr` does not matter: a missing answer about one is forgiven
   when another matches.
3. No clock, and nothing is fetched to explain a result (`exp=`, 6.2).
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from analyzer.mail.authentication.answers import Answer, Failure, NotCaptured, text

Ask = Callable[[str, str], Answer]
_TERMS = 10
"""Terms that cause lookups (4.6.4)."""
_VOIDS = 2
"""Lookups without an answer (4.6.4)."""
_NAMES = 10
"""Exchangers of one `mx` and names of one `ptr` (4.6.4)."""
_RESULTS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_VERSION = re.compile(r"v=spf1(?: |\Z)", re.I)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(.*)\Z", re.I | re.DOTALL)
_MECHANISM = re.compile(r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?=[:/]|\Z)(?::(.+?))??(?:/(\d+))?(?://(\d+))?\Z", re.I)
_ADDRESS = re.compile(r"([+?~-]?)(ip4|ip6):([0-9a-f.:]+)(?:/(\d+))?\Z", re.I)
_MACRO = re.compile(r"%(?:\{([slodipvh])(\d*)(r?)([.+,/_=-]*)\}|([%_-]))", re.I)
_MACRO_STRING = re.compile(r"(?:[!-$&-~]|%(?:\{[slodipvhcrt](?:0*[1-9]\d*)?r?[.+,/_=-]*\}|[%_-]))*\Z", re.I)
_FOR_EXPLANATIONS = re.compile(r"%\{[crt]", re.I)
"""Macros that only explanations may have (7.2)."""
_TOP_LABEL = re.compile(r"(?:\d*[a-z][a-z0-9]*|[a-z0-9]+-[a-z0-9-]*[a-z0-9])\.?\Z", re.I)
_ESCAPES = {"%": "%", "_": " ", "-": "%20"}


class Verdict(NamedTuple):
    """A result with the reason for it."""

    result: str
    """`pass fail softfail neutral none temperror permerror`."""
    reason: str


class _PermError(Exception):
    """The policy cannot be understood, or asks for too much."""


class _TempError(Exception):
    """An answer says that the server could not find out."""


class _Term(NamedTuple):
    text: str
    qualifier: str
    name: str
    argument: str | None
    prefix4: int | None
    prefix6: int | None


class _Policy(NamedTuple):
    terms: list[_Term]
    redirect: str | None


def check(client_ip: str, sender: str, helo: str, ask: Ask) -> Verdict:
    """`check_host` (4) for a reverse-path, or for `postmaster` at the HELO name when it is null (2.4).

    Raises NotCaptured when an answer is needed that `ask` does not have.
    """
    ip = ip_address(client_ip)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    local, _, domain = (sender or helo).rpartition("@")
    domain = domain.rstrip(".").lower()
    evaluation = _Evaluation(ip, local or "postmaster", domain, helo.rstrip("."), ask)
    try:
        return evaluation.check_host(domain, 0) or Verdict("none", f"{domain} has no SPF record")
    except _PermError as wrong:
        return Verdict("permerror", str(wrong))
    except _TempError as wrong:
        return Verdict("temperror", str(wrong))


class _Evaluation:
    """One check with its counts."""

    def __init__(self, ip: IPv4Address | IPv6Address, local: str, domain: str, helo: str, ask: Ask) -> None:
        self._ip = ip
        self._local, self._domain, self._helo = local, domain, helo
        self._ask = ask
        self._terms = 0
        self._voids: set[tuple[str, str]] = set()
        self._pointers: list[str] | None = None

    def _records(self, name: str, kind: str) -> tuple[str, ...]:
        try:
            found = self._ask(name, kind).data
        except Failure as wrong:
            raise _TempError(f"{wrong} could not be found out") from None
        if not found and (name, kind) not in self._voids:
            self._voids.add((name, kind))
            if len(self._voids) > _VOIDS:
                raise _PermError(f"more than {_VOIDS} lookups without an answer (RFC 7208 4.6.4)")
        return found

    def _addresses(self, name: str) -> list[IPv4Address | IPv6Address]:
        """Addresses of the client's family (5.3)."""
        found = self._records(name, "A" if self._ip.version == 4 else "AAAA")
        return [ip_address(text) for text in found if _is_address(text)]

    def check_host(self, domain: str, depth: int) -> Verdict | None:
        """4.6; None: there is no policy."""
        if not _is_domain(domain):
            return None
        texts = [text(rdata).decode("latin-1") for rdata in self._first(domain, depth)]
        policies = [text for text in texts if _VERSION.match(text)]
        if not policies:
            return None
        if len(policies) > 1:
            raise _PermError(f"{domain} has {len(policies)} SPF records")
        policy = _parse(policies[0], domain)
        for term in policy.terms:
            if self._matches(term, domain, depth):
                return Verdict(_RESULTS[term.qualifier], f"{term.text} of {domain}")
        if policy.redirect is None:
            return Verdict("neutral", f"no term of {domain} matches")
        self._count(f"redirect={policy.redirect}")
        target = self._target(policy.redirect, domain)
        found = self.check_host(target, depth + 1)
        if found is None:
            raise _PermError(f"redirect={target} of {domain}: no SPF record there")
        return found

    def _first(self, domain: str, depth: int) -> tuple[str, ...]:
        if depth:
            return self._records(domain, "TXT")
        try:
            return self._ask(domain, "TXT").data
        except Failure as wrong:
            raise _TempError(f"{wrong} could not be found out") from None

    def _count(self, term: str) -> None:
        self._terms += 1
        if self._terms > _TERMS:
            raise _PermError(f"more than {_TERMS} terms with lookups, at {term} (RFC 7208 4.6.4)")

    def _matches(self, term: _Term, domain: str, depth: int) -> bool:
        """5: whether a mechanism matches."""
        if term.name == "all":
            return True
        if term.name in ("ip4", "ip6"):
            prefix = term.prefix4 if term.name == "ip4" else term.prefix6
            return self._within(term.argument or "", prefix)
        self._count(term.text)
        target = self._target(term.argument, domain) if term.argument is not None else domain
        if term.name == "include":
            found = self.check_host(target, depth + 1)
            if found is None:
                raise _PermError(f"include:{target} of {domain}: no SPF record there")
            return found.result == "pass"
        if not _is_domain(target):
            return False
        if term.name == "exists":
            return bool(self._records(target, "A"))
        if term.name == "a":
            return any(self._near(address, term) for address in self._addresses(target))
        if term.name == "mx":
            names = [rdata.partition(" ")[2] for rdata in self._records(target, "MX")]
            if len(names) > _NAMES:
                raise _PermError(f"{target} has more than {_NAMES} exchangers (RFC 7208 4.6.4)")
            return self._any(names, lambda name: any(self._near(address, term) for address in self._addresses(name)))
        return self._any(self._names(), lambda name: _under(name, target) and self._confirms(name))

    def _confirms(self, name: str) -> bool:
        """The name leads back to the client; an error is as good as no (5.5)."""
        try:
            return self._ip in self._addresses(name)
        except _TempError:
            return False

    def _any(self, names: list[str], holds: Callable[[str], bool]) -> bool:
        """Rule 2."""
        missing: NotCaptured | None = None
        for name in names:
            try:
                if name.rstrip(".") and holds(name):
                    return True
            except NotCaptured as lack:
                missing = missing or lack
        if missing is not None:
            raise missing
        return False

    def _names(self) -> list[str]:
        """Pointers of the client's address (5.5)."""
        if self._pointers is None:
            try:
                self._pointers = list(self._records(self._ip.reverse_pointer, "PTR"))[:_NAMES]
            except _TempError:
                self._pointers = []
        return self._pointers

    def _near(self, address: IPv4Address | IPv6Address, term: _Term) -> bool:
        return self._within(str(address), term.prefix4 if self._ip.version == 4 else term.prefix6)

    def _within(self, network: str, prefix: int | None) -> bool:
        net = ip_network(f"{network}/{prefix}" if prefix is not None else network, strict=False)
        return net.version == self._ip.version and self._ip in net

    def _target(self, spec: str, domain: str) -> str:
        """7: macros expanded, at most 253 characters (7.3)."""
        name = _MACRO.sub(lambda found: self._expanded(found, domain), spec).rstrip(".")
        while len(name) > 253 and "." in name:
            name = name.partition(".")[2]
        return name.lower()

    def _expanded(self, found: re.Match[str], domain: str) -> str:
        letter, digits, reverse, delimiters, escape = found.groups()
        if escape:
            return _ESCAPES[escape]
        low = letter.lower()
        if low == "p":
            value = self._validated(domain)
        elif low == "i":
            value = str(self._ip) if self._ip.version == 4 else ".".join(self._ip.exploded.replace(":", ""))
        else:
            value = {
                "s": f"{self._local}@{self._domain}",
                "l": self._local,
                "o": self._domain,
                "d": domain,
                "v": "in-addr" if self._ip.version == 4 else "ip6",
                "h": self._helo,
            }[low]
        parts = re.split(f"[{re.escape(delimiters or '.')}]", value)
        if reverse:
            parts.reverse()
        if digits:
            parts = parts[-int(digits[-9:]) :]
        value = ".".join(parts)
        if letter.isupper():
            value = "".join(c if c.isalnum() or c in "-._~" else f"%{ord(c):02X}" for c in value)
        return value

    def _validated(self, domain: str) -> str:
        """%{p}: a validated name of the client, the domain's own preferred (7.3)."""
        valid = [name.rstrip(".").lower() for name in self._names() if self._confirms(name)]
        valid.sort(key=lambda name: (name != domain, not _under(name, domain)))
        return valid[0] if valid else "unknown"


def _parse(record: str, domain: str) -> _Policy:
    """4.6.1 and 12: a syntax error anywhere makes the whole policy void."""
    terms: list[_Term] = []
    modifiers: dict[str, str] = {}
    for word in filter(None, record[6:].split(" ")):
        modifier = _MODIFIER.match(word)
        if modifier is not None:
            name, value = modifier[1].lower(), modifier[2]
            if not _MACRO_STRING.match(value):
                raise _PermError(f"{word} of {domain} cannot be understood")
            if name in ("redirect", "exp"):
                if name in modifiers or not _is_spec(value):
                    raise _PermError(f"{word} of {domain} cannot be understood")
                modifiers[name] = value
            continue
        term = _term(word)
        if term is None:
            raise _PermError(f"{word} of {domain} cannot be understood")
        terms.append(term)
    return _Policy(terms, modifiers.get("redirect"))


def _term(word: str) -> _Term | None:
    """`directive` (12); None when it is none."""
    found = _ADDRESS.match(word)
    if found is not None:
        name, address, prefix = found[2].lower(), found[3], found[4]
        most = 32 if name == "ip4" else 128
        if (":" in address) is (name == "ip4") or not _is_address(address) or not _is_prefix(prefix, most):
            return None
        length = int(prefix) if prefix is not None else most
        return _Term(word, found[1] or "+", name, address, length, length)
    found = _MECHANISM.match(word)
    if found is None:
        return None
    qualifier, name, argument, prefix4, prefix6 = found[1] or "+", found[2].lower(), found[3], found[4], found[5]
    prefixed = prefix4 is not None or prefix6 is not None
    if name in ("ip4", "ip6") or (name == "all" and (argument is not None or prefixed)):
        return None
    if name in ("include", "exists") and argument is None:
        return None
    if prefixed and name not in ("a", "mx"):
        if argument is None:
            return None
        argument, prefix4, prefix6 = word.partition(":")[2], None, None
    if argument is not None and not _is_spec(argument):
        return None
    if not _is_prefix(prefix4, 32) or not _is_prefix(prefix6, 128):
        return None
    return _Term(word, qualifier, name, argument, _length(prefix4), _length(prefix6))


def _length(prefix: str | None) -> int | None:
    return int(prefix) if prefix is not None else None


def _is_prefix(prefix: str | None, most: int) -> bool:
    return prefix is None or (len(prefix) < 4 and int(prefix) <= most and (prefix == "0" or not prefix.startswith("0")))


def _is_spec(spec: str) -> bool:
    """`domain-spec` (7.1): ends with a top label or a macro."""
    if not spec or not _MACRO_STRING.match(spec) or _FOR_EXPLANATIONS.search(spec):
        return False
    if re.search(r"%(?:\{[a-z]\d*r?[.+,/_=-]*\}|[%_-])\Z", spec, re.I):
        return True
    labels = spec.removesuffix(".").split(".")
    return len(labels) > 1 and all(0 < len(label) <= 63 for label in labels) and bool(_TOP_LABEL.match(labels[-1]))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_domain(name: str) -> bool:
    """A multi-label name that DNS could hold (4.3)."""
    return "." in name and len(name) <= 253 and all(0 < len(label) <= 63 for label in name.split("."))


def _under(name: str, domain: str) -> bool:
    name = name.rstrip(".").lower()
    return name == domain or name.endswith("." + domain)
