"""What the captured DNS answers say to a server that judges a sender.  Nothing here can ask anybody anything.

Rules:
1. Only answers in the capture count.  What is not in it raises `NotCaptured`, which no evaluation catches, so that it can
   become neither `fail` nor `none`.  That a name or its records do not exist (RFC 2308) is an answer, too.
2. Of several answers the one that the judging server got last before it judged counts, else the last that anybody got before,
   else the first that anybody got after.
"""

import re
from bisect import bisect_right
from typing import NamedTuple

from analyzer.mail.book import fold
from analyzer.mail.hosts import Machine
from analyzer.mail.lookups import FAILURE, NO_DATA, NO_NAME, OWN_RECORDS, RECORDS, Lookups

NOT_CAPTURED = "not in the capture"
UNKNOWN = "unknown"
"""Results that are none: an answer is missing, octets are."""
_ALIASES = 8
"""CNAMEs followed."""
_LOOK_BACK = 256
"""Latest answers among which the judging server's own is looked for."""
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(\d{3}|.)", re.DOTALL)


class NotCaptured(Exception):
    """An answer is needed that is not in the capture."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(f"{kind} {name}")


class Failure(Exception):
    """The answer says that the server could not find out (SERVFAIL, REFUSED)."""


class Answer(NamedTuple):
    """Records of one name and type."""

    exists: bool
    """The name exists."""
    data: tuple[str, ...]
    """Their rdata in presentation form."""


class Answers:
    """All answers of a capture, ready to be asked."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._rows: dict[str, list[int]] | None = None
        self._index: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        """(name, type) -> when rows were answered, and the rows."""

    def has(self, name: str) -> bool:
        """Whether any answer is about this name."""
        return bool(self._of(fold(name)))

    def _of(self, name: str) -> list[int]:
        if self._rows is None:
            self._rows = self._lookups.rows_by_name()
        return self._rows.get(name, [])

    def ask(self, name: str, kind: str, machine: Machine | None, ts: int) -> Answer:
        """The records of a name as a machine knows them at a time.  Raises NotCaptured, Failure."""
        at, known = fold(name), False
        for _ in range(_ALIASES):
            row = self._row(at, kind, machine, ts)
            if row is None:
                if known:
                    break
                raise NotCaptured(at or ".", kind)
            result = self._lookups.result(row)
            if result == FAILURE:
                raise Failure(f"{kind} {at}")
            if result not in (RECORDS, OWN_RECORDS):
                return Answer(result == NO_DATA, ())
            asked = at
            found, at = self._read(row, at, kind)
            if found or at == asked:
                return Answer(True, found)
            known = result == RECORDS
        return Answer(True, ())

    def place(self, name: str, kind: str, machine: Machine | None, ts: int) -> object:
        """Something that is equal where the same answer would be given."""
        row = self._row(fold(name), kind, machine, ts)
        return None if row is None else (self._lookups.result(row), self._lookups.section(row))

    def _row(self, name: str, kind: str, machine: Machine | None, ts: int) -> int | None:
        """Rule 2."""
        times, rows = self._known(name, kind)
        at = bisect_right(times, ts)
        for row in reversed(rows[max(at - _LOOK_BACK, 0) : at]):
            if self._lookups.is_by(row, machine):
                return row
        return rows[at - 1] if at else rows[0] if rows else None

    def _known(self, name: str, kind: str) -> tuple[list[int], list[int]]:
        """Answers about a name and type by time."""
        known = self._index.get((name, kind))
        if known is None:
            lookups = self._lookups
            rows = []
            for row in self._of(name):
                result = lookups.result(row)
                if lookups.qtype(row) != kind and result != NO_NAME:  # no such name: of no type (RFC 8020 2)
                    continue
                if result in (RECORDS, OWN_RECORDS) and lookups.answers(row) is None:  # the book was full
                    continue
                rows.append(row)
            rows.sort(key=lookups.when)
            known = self._index[name, kind] = ([lookups.when(row)[0] for row in rows], rows)
        return known

    def _read(self, row: int, name: str, kind: str) -> tuple[tuple[str, ...], str]:
        """The records of an answer section, and the name that they are of: aliases are followed (RFC 1034 3.6.2)."""
        records: dict[tuple[str, str], list[str]] = {}
        for answer in self._lookups.answers(row) or ():
            owner, _, rest = answer.partition(" ")
            rtype, _, rdata = rest.partition(" ")
            records.setdefault((fold(owner), rtype), []).append(rdata)
        for _ in range(_ALIASES):
            found = records.get((name, kind))
            if found:
                return tuple(sorted(set(found))), name
            alias = records.get((name, "CNAME"))
            if not alias:
                break
            name = fold(min(alias))
        return (), name


def text(rdata: str) -> bytes:
    """The octets of a TXT record: its character-strings, one after the other (RFC 7208 3.3, RFC 6376 3.6.2.2)."""
    strings = _QUOTED.findall(rdata)
    joined = "".join(strings).encode("latin-1", "replace")
    return _ESCAPE.sub(_unescaped, joined) if b"\\" in joined else joined


def _unescaped(found: re.Match[bytes]) -> bytes:
    what = found[1]
    return bytes((int(what) & 255,)) if len(what) == 3 else what
