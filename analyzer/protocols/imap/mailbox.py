"""The selected mailbox as one session sees it: sequence numbers, UIDs, flags, Message-IDs (RFC 9051 2.3.1).

Sequence numbers move: an EXPUNGE takes one down from all that follow.  A message is an `Entry` that keeps its identity
while its number changes, and over a second SELECT of the same mailbox and UIDVALIDITY.
"""

from bisect import bisect_left, bisect_right

from analyzer.protocols.imap.fetched import Parts
from analyzer.protocols.imap.grammar import sequence_set


class Entry:
    """One message of a mailbox, as far as this session has shown it."""

    __slots__ = ("deleted", "flags", "message_id", "parts", "size", "uid", "whole")

    def __init__(self, uid: int | None = None) -> None:
        self.uid = uid
        self.message_id: str | None = None
        self.size: int | None = None
        """RFC822.SIZE."""
        self.flags: tuple[str, ...] = ()
        self.deleted = False
        """It has the flag \\Deleted."""
        self.whole = False
        """It was fetched whole in this session."""
        self.parts: Parts | None = None
        """What was fetched of it in pieces """


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
        self.by_uid: dict[int, Entry] = {}

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

    def known(self, number: int) -> Entry | None:
        """The message with this sequence number, when the session has shown anything of it."""
        return self.by_number[number - 1] if 0 < number <= len(self.by_number) else None

    def named(self, number: int, uid: int) -> Entry:
        """This sequence number has this UID."""
        entry = self.entry(number)
        if entry.uid == uid:
            return entry
        other = self.by_uid.get(uid)
        if entry.uid is not None or other is not None:  # another message than we thought, or one known by its UID
            entry = other or Entry(uid)
            if 0 < number <= len(self.by_number):
                old = self.by_number[number - 1]
                if old is not None and old.uid is None:
                    _merge(old, entry)
                self.by_number[number - 1] = entry
        entry.uid = uid
        if len(self.by_uid) < self.most:
            self.by_uid[uid] = entry
        return entry

    def by(self, uid: int) -> Entry:
        """The message with this UID; its sequence number need not be known."""
        entry = self.by_uid.get(uid)
        if entry is None:
            entry = Entry(uid)
            if len(self.by_uid) < self.most:
                self.by_uid[uid] = entry
        return entry

    def expunge(self, number: int) -> Entry | None:
        """`* n EXPUNGE`: it is gone, and all after it move down (RFC 9051 7.5.1)."""
        if self.exists:
            self.exists -= 1
        if not 0 < number <= len(self.by_number):
            return None
        return self.by_number.pop(number - 1)

    def vanish(self, which: str) -> list[int]:
        """`* VANISHED set`: these UIDs are gone (RFC 7162 3.2.10).  Of a large range only those known are given back."""
        uids = sorted(self.by_uid)
        gone: list[int] = []
        for low, high in sequence_set(which):
            if len(gone) >= self.most:
                break
            if high is not None and high - low < 1000:
                gone.extend(range(low, high + 1))
            else:
                gone.extend(_between(uids, low, high))
        dead = set(gone)
        left = [e for e in self.by_number if e is None or e.uid is None or e.uid not in dead]
        strangers = len(dead) - (len(self.by_number) - len(left))
        if strangers and any(e is None or e.uid is None for e in left):
            left = []  # some of those without a known UID are gone too: which, nobody says
        self.by_number = left
        if self.exists:
            self.exists = max(0, self.exists - len(dead))
        return gone

    def addressed(self, which: str, by_uid: bool) -> list[tuple[int | None, Entry]]:
        """The messages of a sequence-set: (sequence number when known, entry); of a large range only those known."""
        found: list[tuple[int | None, Entry]] = []
        uids = sorted(self.by_uid) if by_uid else []
        last = self.exists if self.exists is not None else len(self.by_number)
        for low, high in sequence_set(which):
            room = self.most - len(found)
            if room <= 0:
                break
            if by_uid:
                found.extend((None, e) for e in self._with_uids(uids, low, high))
                continue
            end = last if high is None else high if high - low < 1000 else min(high, last)
            first = min(low, end) or end
            for n in range(max(first, 1), min(end, first + room) + 1):
                entry = self.known(n)
                if entry is not None or end - first < 1000:
                    found.append((n, entry or self.entry(n)))
        return found

    def _with_uids(self, uids: list[int], low: int, high: int | None) -> list[Entry]:
        """Entries of a UID range: of a small one all, as they may be there, of a large one those known."""
        if low == 0:
            return [self.by_uid[uids[-1]]] if uids else []
        if high is not None and high - low < 100:
            return [self.by(uid) for uid in range(low, high + 1)]
        return [self.by_uid[uid] for uid in _between(uids, low, high)]


def _between(ordered: list[int], low: int, high: int | None) -> list[int]:
    """The numbers from low to high, both included; None is no end."""
    return ordered[bisect_left(ordered, low) : len(ordered) if high is None else bisect_right(ordered, high)]


def _merge(old: Entry, entry: Entry) -> None:
    """What was learned of a message before its UID was known."""
    entry.message_id = entry.message_id or old.message_id
    entry.size = entry.size if entry.size is not None else old.size
    if entry.parts is None:
        entry.parts = old.parts
    entry.whole = entry.whole or old.whole
