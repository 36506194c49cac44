"""The selected mailbox as one session sees it: sequence numbers, UIDs, flags, Message-IDs (RFC 9051 2.3.1).

Sequence numbers move: an EXPUNGE takes one down from all that follow.  A message is an `Entry` that keeps its identity
while its number changes, and over a second SELECT of the same mailbox and UIDVALIDITY (`Known`).
"""

from bisect import bisect_left, bisect_right, insort

from analyzer.protocols.imap.fetched import Parts
from analyzer.protocols.imap.grammar import sequence_set

_SMALL = 100
"""UIDs of a range that is written out although they are not known to be there."""
_NEAR = 64
"""Neighbours without a known UID that are stepped over in search of one that has one."""


class Entry:
    """One message of a mailbox, as far as this session has shown it."""

    __slots__ = ("flags", "message_id", "parts", "size", "uid", "whole")

    def __init__(self, uid: int | None = None) -> None:
        self.uid = uid
        self.message_id: str | None = None
        self.size: int | None = None
        """RFC822.SIZE."""
        self.flags: tuple[str, ...] = ()
        self.whole = False
        """It was fetched whole in this session."""
        self.parts: Parts | None = None
        """What was fetched of it in pieces."""


class Known:
    """Messages known by UID, under one UIDVALIDITY."""

    def __init__(self) -> None:
        self.by_uid: dict[int, Entry] = {}
        self.uids: list[int] = []
        """Those UIDs, in order."""
        self.marked: dict[Entry, None] = {}
        """Those with the flag \\Deleted."""

    def add(self, uid: int, entry: Entry, most: int) -> None:
        """This UID is this message."""
        if uid in self.by_uid:
            self.by_uid[uid] = entry
        elif len(self.uids) < most:
            self.by_uid[uid] = entry
            if not self.uids or uid > self.uids[-1]:
                self.uids.append(uid)
            else:
                insort(self.uids, uid)

    def between(self, low: int, high: int | None) -> list[int]:
        """The UIDs known from low to high, both included; None is no end."""
        return self.uids[bisect_left(self.uids, low) : len(self.uids) if high is None else bisect_right(self.uids, high)]


class Mailbox:
    """The mailbox that is selected."""

    def __init__(self, name: str | None, most: int, read_only: bool = False) -> None:
        self.name = name
        self.read_only = read_only
        self.uidvalidity: int | None = None
        self.exists: int | None = None
        self.most = most
        """Messages whose identity is kept (limits.mailbox_messages)."""
        self.by_number: list[Entry | None] = []
        """Entry of sequence number n at n-1; shorter than the mailbox where nothing is known."""
        self.known = Known()

    def remember(self, known: Known) -> None:
        """UIDVALIDITY was told: the messages are those known under it, and those seen since SELECT."""
        for uid, entry in self.known.by_uid.items() if self.uidvalidity is None else ():
            if uid not in known.by_uid:
                known.add(uid, entry, self.most)
        self.known = known

    def entry(self, number: int) -> Entry:
        """The message with this sequence number; a stranger past the bound."""
        if not 0 < number <= self.most:
            return Entry()
        missing = number - len(self.by_number)
        if missing > 0:
            self.by_number.extend([None] * missing)
        found = self.by_number[number - 1]
        if found is None:
            found = self.by_number[number - 1] = Entry()
        return found

    def at(self, number: int) -> Entry | None:
        """The message with this sequence number, when the session has shown anything of it."""
        return self.by_number[number - 1] if 0 < number <= len(self.by_number) else None

    def named(self, number: int, uid: int) -> Entry:
        """This sequence number has this UID."""
        entry = self.entry(number)
        if entry.uid == uid:
            return entry
        other = self.known.by_uid.get(uid)
        if entry.uid is not None or other is not None:  # another message than we thought, or one known by its UID
            old, entry = entry, other or Entry(uid)
            if old.uid is None:
                _merge(old, entry)
            if number <= len(self.by_number):
                self.by_number[number - 1] = entry
        entry.uid = uid
        self.known.add(uid, entry, self.most)
        return entry

    def by(self, uid: int) -> Entry:
        """The message with this UID; its sequence number need not be known."""
        entry = self.known.by_uid.get(uid)
        if entry is None:
            entry = Entry(uid)
            self.known.add(uid, entry, self.most)
        return entry

    def mark(self, entry: Entry, deleted: bool) -> None:
        """It has, or has no more, the flag \\Deleted."""
        if not deleted:
            self.known.marked.pop(entry, None)
        elif len(self.known.marked) < self.most:
            self.known.marked[entry] = None

    def grow(self, exists: int) -> int | None:
        """`* n EXISTS`: how many there were before."""
        before, self.exists = self.exists, exists
        del self.by_number[exists:]
        return before

    def expunge(self, number: int) -> Entry | None:
        """`* n EXPUNGE`: it is gone, and all after it move down (RFC 9051 7.5.1)."""
        if self.exists:
            self.exists -= 1
        if not 0 < number <= len(self.by_number):
            return None
        entry = self.by_number.pop(number - 1)
        if entry is not None:
            self.known.marked.pop(entry, None)
        return entry

    def vanish(self, which: str) -> list[Entry]:
        """`* VANISHED set`: these UIDs are gone (RFC 7162 3.2.10).  Of a large range only those known are given back."""
        gone: list[Entry] = []
        for low, high in sequence_set(which):
            if len(gone) >= self.most:
                break
            small = high is not None and high - low < _SMALL
            for uid in range(low, (high or low) + 1) if small else self.known.between(low, high):
                gone.append(self.known.by_uid.get(uid) or Entry(uid))
        for entry in gone:
            self._drop(entry)
        if self.exists:
            self.exists = max(0, self.exists - len(gone))
        return gone

    def _drop(self, entry: Entry) -> None:
        """Take a message out of the sequence; when its place cannot be told, the places behind are forgotten."""
        self.known.marked.pop(entry, None)
        places, uid = self.by_number, entry.uid or 0
        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            near = middle
            while near < min(high, middle + _NEAR) and (places[near] is None or places[near].uid is None):  # type: ignore[union-attr]
                near += 1
            found = places[near] if near < high else None
            if found is entry:
                del places[near]
                return
            if found is None or found.uid is None:
                high = middle
            elif found.uid < uid:
                low = near + 1
            else:
                high = middle
        if low < len(places):
            del places[low:]

    def addressed(self, which: str, by_uid: bool) -> list[tuple[int | None, Entry]]:
        """The messages of a sequence-set: (sequence number when known, entry); of a large range only those known."""
        found: list[tuple[int | None, Entry]] = []
        last = self.exists if self.exists is not None else len(self.by_number)
        for low, high in sequence_set(which):
            room = self.most - len(found)
            if room <= 0:
                break
            if by_uid:
                found.extend((None, entry) for entry in self._with_uids(low, high))
                continue
            end = last if high is None else high if high - low < _SMALL else min(high, last)
            first = max(min(low, end) or end, 1)
            small = end - first < _SMALL
            for n in range(first, min(end, first + room) + 1) if small else range(first, min(end, len(self.by_number)) + 1):
                entry = self.at(n) or (self.entry(n) if small else None)
                if entry is not None:
                    found.append((n, entry))
        return found

    def _with_uids(self, low: int, high: int | None) -> list[Entry]:
        """Entries of a UID range: of a small one all, as they may be there, of a large one those known."""
        uids = self.known.uids
        if low == 0:
            return [self.known.by_uid[uids[-1]]] if uids else []
        if high is not None and high - low < _SMALL:
            return [self.by(uid) for uid in range(low, high + 1)]
        return [self.known.by_uid[uid] for uid in self.known.between(low, high)]


def _merge(old: Entry, entry: Entry) -> None:
    """What was learned of a message before its UID was known."""
    entry.message_id = entry.message_id or old.message_id
    entry.size = entry.size if entry.size is not None else old.size
    entry.parts = entry.parts or old.parts
    entry.whole = entry.whole or old.whole
