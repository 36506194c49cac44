"""What the DNS answers of a capture say: addresses, mail exchangers, aliases, pointers, policies.

Answers are collected without regard to time: the book is read to recognise names, not to replay a resolver.
"""

import re
from collections.abc import Set
from functools import lru_cache
from ipaddress import ip_address

from analyzer.limits import Limits
from analyzer.mail.received import canonical_ip

_ALIASES = 8
"""CNAMEs followed."""
_OWNERS = 256
"""Names collected of one address."""
_NONE: frozenset[str] = frozenset()
_MECHANISM = re.compile(r"[+?~-]?(include|redirect|a|mx|ptr|exists)(?:[:=]([^\s/\"]+))?(?:/\d+)*(?=[\s\"/]|$)", re.I)


def fold(name: str) -> str:
    """A name to compare by: lower case, no final dot."""
    return name.rstrip(".").lower()


class _Several(dict[str, "str | set[str]"]):
    """Key -> its values: nearly always one, of which no set is made then."""

    def add(self, key: str, value: str) -> None:
        known = self.get(key)
        if known is None:
            self[key] = value
        elif isinstance(known, set):
            known.add(value)
        elif known != value:
            self[key] = {known, value}

    def of(self, key: str) -> Set[str]:
        known = self.get(key)
        return _NONE if known is None else known if isinstance(known, set) else {known}


class Book:
    """Names and addresses.  Keys are folded names and canonical addresses."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._entries = 0
        self._sections: list[str | tuple[str, ...]] = []
        """Of one answer or of several."""
        self._read = 0
        """Sections understood so far."""
        self._known: dict[str | tuple[str, ...], int] = {}
        self.addresses: dict[str, set[str]] = {}
        self.exchangers: dict[str, dict[str, int]] = {}
        """Domain -> exchanger -> preference."""
        self._aliases: dict[str, str] = {}
        self._aliased = _Several()
        self._owners = _Several()
        """Address -> names that resolve to it."""
        self._pointers = _Several()
        """Address -> names by PTR."""
        self._spf: dict[str, str] = {}
        self.full = False

    def learn(self, answers: list[str]) -> int:
        """Take one answer section (`owner TYPE rdata` each); returns its number, -1 when the book is full."""
        section = answers[0] if len(answers) == 1 else tuple(answers)
        known = self._known.get(section)
        if known is None:
            if self._entries >= self._limits.book_entries:
                self.full = True
                return -1
            known = self._known[section] = len(self._sections)
            self._sections.append(section)
            self._entries += len(answers)
        return known

    def read(self) -> None:
        """Understand what was learned: not before somebody will ask, for most captures' lookups have nothing to do with mail."""
        sections, self._read = self._sections[self._read :], len(self._sections)
        for section in sections:
            for answer in (section,) if isinstance(section, str) else section:
                owner, _, rest = answer.partition(" ")
                rtype, _, rdata = rest.partition(" ")
                self._record(fold(owner), rtype, rdata)

    def section(self, number: int) -> list[str]:
        """An answer section by its number."""
        section = self._sections[number]
        return [section] if isinstance(section, str) else list(section)

    def _record(self, owner: str, rtype: str, rdata: str) -> None:
        if rtype in ("A", "AAAA"):
            ip = canonical_ip(rdata)
            if ip is not None:
                self.addresses.setdefault(owner, set()).add(ip)
                self._owners.add(ip, owner)
        elif rtype == "MX":
            preference, _, target = rdata.partition(" ")
            if preference.isdigit():
                targets = self.exchangers.setdefault(owner, {})
                targets[fold(target)] = min(int(preference), targets.get(fold(target), 1 << 16))
        elif rtype == "CNAME":
            target = fold(rdata)
            self._aliases[owner] = min(target, self._aliases.get(owner, target))
            self._aliased.add(target, owner)
        elif rtype == "PTR":
            ip = unreverse(owner)
            if ip is not None:
                self._pointers.add(ip, fold(rdata))
        elif rtype in ("TXT", "SPF") and "v=spf1" in rdata[:32].lower():
            self._spf[owner] = min(rdata, self._spf.get(owner, rdata))

    def chain(self, name: str) -> list[str]:
        """The name and what it is an alias of."""
        found = [name]
        while (name := self._aliases.get(name, "")) and name not in found and len(found) < _ALIASES:
            found.append(name)
        return found

    def resolve(self, name: str) -> set[str] | frozenset[str]:
        """Addresses of a name."""
        return self.addresses.get(self.chain(name)[-1], _NONE)

    def names_of(self, ip: str) -> Set[str]:
        """Names that resolve to an address, and its PTR names."""
        return self._owners.of(ip) | self._pointers.of(ip)

    def owners_of(self, ip: str) -> set[str]:
        """Names that resolve to an address, aliases included."""
        found = set(self._owners.of(ip))
        todo = list(found)
        while todo and len(found) < _OWNERS:
            more = self._aliased.of(todo.pop()) - found
            found |= more
            todo += more
        return found

    def domains_of(self, ip: str, names: Set[str]) -> set[str]:
        """Domains whose mail may go to a server, by its address and names."""
        called = names | self.owners_of(ip)
        found = {d for d, targets in self.exchangers.items() if any(not called.isdisjoint(self.chain(t)) for t in targets)}
        return found | called  # RFC 5321 5.1: without MX the domain is its own exchanger

    def pointers_of(self, ip: str) -> Set[str]:
        """PTR names of an address."""
        return self._pointers.of(ip)

    def policy_names(self, domain: str) -> set[str]:
        """Names that evaluating a domain's SPF record may ask for (RFC 7208 4.6.4: ten lookups)."""
        found: set[str] = set()
        todo, asked = [domain], 0
        while todo and asked < 10:
            at = todo.pop()
            text = self._spf.get(at)
            if text is None:
                continue
            asked += 1
            for mechanism, target in _MECHANISM.findall(text[:4096]):
                name = fold(target) if target else at
                if "%" in name or (name in found and name != at):
                    continue
                found.add(name)
                if mechanism.lower() in ("include", "redirect"):
                    todo.append(name)
                elif mechanism.lower() == "mx":
                    found.update(self.exchangers.get(name, ()))
        return found


@lru_cache(1024)
def _reverse_zone(ip: str) -> str:
    return ip_address(ip).reverse_pointer


def reverse(ip: str) -> str:
    """The reverse name of an address, folded."""
    return _reverse_zone(ip) if len(ip) < 64 else ""


def unreverse(name: str) -> str | None:
    """The address of a reverse name."""
    if name.endswith(".in-addr.arpa"):
        return canonical_ip(".".join(reversed(name[:-13].split("."))))
    if name.endswith(".ip6.arpa"):
        digits = "".join(reversed(name[:-9].split(".")))
        return canonical_ip(":".join(digits[i : i + 4] for i in range(0, 32, 4))) if len(digits) == 32 else None
    return None
