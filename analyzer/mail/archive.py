"""Sightings out of the way: in a temporary file until their messages are told, a part of them at a time.

Rules:
1. What could join two sightings stays in memory as hashes (some 100 octets a sighting), so the file can be told message by
   message: sightings that share a hash are told in the same part, and no join that `correlate` makes crosses two parts.
2. What is told with an eye on other messages (failed connections, lookups, mailbox events, reports, opaque sessions) is told in
   one part, the first; whom that concerns is found by hash or by machine.
3. So the story is the same however many parts it is told in.
"""

import pickle
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import fields
from operator import attrgetter
from shutil import copyfileobj
from typing import IO, Any, NamedTuple

from analyzer.limits import Limits
from analyzer.mail.correlate import plain_id, verp_base
from analyzer.mail.received import Received
from analyzer.mail.sightings import Sighting, Trail, first_handled, original_recipient
from analyzer.protocols.base import Recipient, SessionInfo
from analyzer.scratch import read_at, scratch
from analyzer.wire.types import Connection

_RECIPIENTS = 32
"""Recipients by which an envelope is known again; no fewer than `correlate` looks at."""
_APART = ("session", "order", "recipients", "trail")
_SIGHTING = tuple(name for name in Sighting.__slots__ if name not in _APART)
_INFO = tuple(f.name for f in fields(SessionInfo) if f.name != "connection")
_CONNECTION = tuple(f.name for f in fields(Connection) if f.name != "session")
_RECIPIENT = tuple(f.name for f in fields(Recipient))
_of_sighting, _of_info = attrgetter(*_SIGHTING), attrgetter(*_INFO)
_of_connection, _of_recipient = attrgetter(*_CONNECTION), attrgetter(*_RECIPIENT)
_LMTP, _HANDED_IN, _TRANSACTION = 1, 2, 4


def _filler(names: Iterable[str]) -> Callable[[Any, list[Any]], None]:
    """A function that gives an object its fields: one statement, as a call for each costs more than all the rest of unpacking."""
    made: dict[str, Callable[[Any, list[Any]], None]] = {}
    exec(f"def fill(made, values):\n    {', '.join('made.' + name for name in names)} = values", made)
    return made["fill"]


_fill_sighting, _fill_info, _fill_connection = _filler(_SIGHTING), _filler(_INFO), _filler(_CONNECTION)


class Ends(NamedTuple):
    """Who passed mail to whom, and how."""

    client_ip: str
    server_ip: str
    transaction: bool
    """Handed over; else fetched from a mailbox, or filed."""
    lmtp: bool
    handed_in: bool
    """The client was the first to handle some message."""


class Claim(NamedTuple):
    """A hand-over by LMTP of which trace fields tell."""

    writer_ip: str | None
    """The server, when the hand-over above tells its address."""
    field: Received


def ends_of(s: Sighting) -> Ends:
    """Who passed this message to whom, and how."""
    info = s.session
    transaction = s.kind == "transaction"
    client_ip = info.stated_client_ip or info.client_ip
    return Ends(client_ip, info.server_ip, transaction, info.protocol == "lmtp", transaction and first_handled(s))


def about_envelopes(s: Sighting) -> Iterator[int]:
    """Keys of the envelopes of which a report tells, as far as it goes to their sender."""
    for fate in s.report.fates[:_RECIPIENTS] if s.report is not None and s.recipients else ():
        to = s.recipients[0].address.lower()
        yield from (hash((to, name)) for name in (fate.recipient.lower(), (fate.final or "").lower()))


class Keys:
    """What joins sightings, as hashes: each key with the number of the sighting that has it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.strong = array("q"), array("i")
        """(hash, sighting): what joins sightings."""
        self.faint = array("q"), array("i")
        """The same for keys that join only where one of the two has something uncommon, as no Message-ID."""
        self.searching: set[int] = set()
        """Those of them that such a sighting has."""
        self.passed = array("q"), array("i")
        """(hash of a client's address, sighting): hand-overs of which trace fields tell."""
        self.related: set[int] = set()
        """Hashes by which reports and automatic replies, and what they are about, are known."""
        self.claims: set[Claim] = set()

    def add(self, s: Sighting, number: int) -> None:
        """The keys of one more sighting."""
        info = s.session
        transaction = s.kind == "transaction"
        keys = [hash((info.client_ip, info.client_port, info.server_ip, info.server_port, s.kind, s.index))]
        if s.message_id is not None:
            keys.append(hash(s.message_id))
        if s.queue_id is not None and transaction:
            self._queued(s, number, plain_id(s.queue_id), keys)
        if s.envelope_id is not None:
            keys.append(hash(("envelope", s.envelope_id)))
        if s.trail is not None:
            self._trail(s, number, keys)
        if s.report_kind is not None or s.auto_submitted:
            self.related.add(keys[0])
            self.related.update(map(hash, s.answers))
            if s.report is not None:
                self.related.add(hash(s.report.message_id))
                self.related.add(hash(("queued", s.report.queue_id)))
                self.related.add(hash(("envelope", s.report.envelope_id)))
                self.related.update(about_envelopes(s))
        self.strong[0].extend(keys)
        self.strong[1].extend([number] * len(keys))
        self._faintly(s, number, transaction)

    def _queued(self, s: Sighting, number: int, queue_id: str, keys: list[int]) -> None:
        """Keys to a trace field with this queue id: queue ids come round again, so with what else has to agree (`wrote`)."""
        info = s.session
        name = (info.server_name or "").rstrip(".").lower()
        keys.append(hash((queue_id, info.client_ip)))
        if info.stated_client_ip is not None:
            keys.append(hash((queue_id, info.stated_client_ip)))
        if s.trail is None and s.header_complete:
            keys.append(hash((queue_id,)))
        keys += (hash((queue_id, "at", info.server_ip)), hash((queue_id, "by", name)))
        faint = [hash(("queued", s.queue_id))]
        if not s.has_content:
            faint.append(hash((queue_id, "by", name, "unseen")))
            self.searching.add(faint[-1])
        self.faint[0].extend(faint)
        self.faint[1].extend([number] * len(faint))

    def _stamped(self, trail: Trail, number: int, queue_id: str, keys: list[int]) -> None:
        """The same from the trace field's side."""
        field = trail.field
        if trail.below is None:
            keys.append(hash((queue_id,)))
        if field.by_ip is not None:
            keys.append(hash((queue_id, "at", field.by_ip)))
        if field.ip is not None:
            keys.append(hash((queue_id, field.ip)))
            self.faint[0].append(hash((queue_id, "by", field.by, "unseen")))
            self.faint[1].append(number)
        else:
            keys.append(hash((queue_id, "by", field.by)))

    def _trail(self, s: Sighting, number: int, keys: list[int]) -> None:
        host = None if s.kind == "append" else s.session.server_ip
        if s.kind == "transaction":
            host = s.session.stated_client_ip or s.session.client_ip
        trail = s.trail
        while trail is not None:
            field = trail.field
            keys.append(trail.mark)
            if field.id is not None:
                self._stamped(trail, number, plain_id(field.id), keys)
            if field.handed_over:
                self.passed[0].append(hash(field.ip))
                self.passed[1].append(number)
                if "LMTP" in (field.protocol or "") and len(self.claims) < self._limits.hosts:
                    self.claims.add(Claim(host, field._replace(id=None, recipient=None, ts=None)))
                host = field.ip
            trail = trail.below

    def _faintly(self, s: Sighting, number: int, transaction: bool) -> None:
        """Keys of `correlate` for what has no Message-ID: the body with fields that nobody rewrites; the envelope."""
        keys: list[int] = []
        if s.body_digest is not None and s.header_date is not None:
            keys.append(hash((s.body_digest, s.header_date, s.header_from, s.subject)))
            if s.message_id is None:
                self.searching.add(keys[0])
        if transaction:
            reverse_path = s.mail_from.lower() if s.mail_from is not None else None
            some = s.recipients[:_RECIPIENTS]
            envelope = [hash((reverse_path, r.address.lower())) for r in some] or [hash((reverse_path,))]
            envelope += [hash((reverse_path, origin.lower())) for r in some if r.parameters and (origin := original_recipient(r))]
            keys += envelope
            base = verp_base(s)
            if base is not None and s.size_stated is not None:
                envelope.append(hash((base, s.size_stated)))
                keys.append(envelope[-1])
            if s.message_id is None and s.body_digest is None:
                self.searching.update(envelope)
        self.faint[0].extend(keys)
        self.faint[1].extend([number] * len(keys))

    def take(self, other: "Keys", base: int) -> None:
        """The keys of other sightings, which are numbered from `base` here."""
        for mine, theirs in ((self.strong, other.strong), (self.faint, other.faint), (self.passed, other.passed)):
            mine[0].extend(theirs[0])
            _extend(mine[1], theirs[1], base)
        self.searching |= other.searching
        self.related |= other.related
        for claim in other.claims:
            if len(self.claims) < self._limits.hosts:
                self.claims.add(claim)


def _extend(column: "array[int]", more: "array[int]", base: int) -> None:
    """Add numbers that are counted from `base` here."""
    import numpy as np

    column.frombytes((np.frombuffer(more, column.typecode) + np.array(base, column.typecode)).tobytes())


class Archive:
    """Sightings of sessions, put away.  `split` ends the taking in."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._file, self._info_file = scratch(), scratch()
        self._place = array("q", [0])
        """Where each sighting begins in the file; the last: where it ends."""
        self._info_place = array("q", [0])
        self._info_at = array("i")
        """Number of a session -> its place among those written."""
        self._open: dict[SessionInfo, int] = {}
        """Sessions that are not over -> number."""
        self._ts = array("q")
        self._session = array("i")
        self._how = array("B")
        self._ends = array("i")
        """Number of a session -> number of its two ends."""
        self._pairs: dict[tuple[str, str], int] = {}
        self.keys = Keys(limits)

    def __len__(self) -> int:
        return len(self._ts)

    def put(self, sightings: Iterable[Sighting], over: Collection[SessionInfo]) -> None:
        """Put sightings away, and the sessions that are over."""
        pieces: list[bytes] = []
        at = self._place[-1]
        for s in sightings:
            number = self._open.get(s.session)
            if number is None:
                number = self._open[s.session] = len(self._ends)
                self._ends.append(-1)
                self._info_at.append(-1)
            octets = packed(s)
            pieces.append(octets)
            at += len(octets)
            self._index(s, number)
            self._place.append(at)
        self._file.seek(0, 2)
        self._file.write(b"".join(pieces))
        self._put_infos([info for info in over if info in self._open])

    def _put_infos(self, infos: Iterable[SessionInfo]) -> None:
        pieces: list[bytes] = []
        at = self._info_place[-1]
        for info in infos:
            number = self._open.pop(info)
            ends = (info.stated_client_ip or info.client_ip, info.server_ip)
            self._ends[number] = self._pairs.setdefault(ends, len(self._pairs))
            pieces.append(packed_session(info))
            at += len(pieces[-1])
            self._info_at[number] = len(self._info_place) - 1
            self._info_place.append(at)
        self._info_file.seek(0, 2)
        self._info_file.write(b"".join(pieces))

    def _index(self, s: Sighting, session: int) -> None:
        number = len(self._ts)
        self._ts.append(s.ts)
        self._session.append(session)
        ends = ends_of(s)
        how = _TRANSACTION if ends.transaction else 0
        how |= _LMTP if ends.lmtp else 0
        how |= _HANDED_IN if ends.handed_in else 0
        self._how.append(how)
        self.keys.add(s, number)

    # from one process to another

    def hand_over(self, file: IO[bytes]) -> tuple[Any, ...]:
        """Everything, for another process's `absorb`: the sightings go to the end of a file."""
        self._put_infos(list(self._open))
        at = file.seek(0, 2)
        for mine in (self._file, self._info_file):
            mine.seek(0)
            copyfileobj(mine, file, 1 << 20)
        file.flush()
        columns = (self._place, self._info_place, self._info_at, self._ts, self._session, self._how, self._ends)
        return at, columns, list(self._pairs), self.keys

    def absorb(self, file: IO[bytes], state: tuple[Any, ...]) -> None:
        """Take what `hand_over` of an archive in another process gave (a child of this one: hashes are keyed alike)."""
        at, (place, info_place, info_at, ts, session, how, ends), pairs, keys = state
        for mine, size in ((self._file, place[-1]), (self._info_file, info_place[-1])):
            mine.seek(0, 2)
            for start in range(at, at + size, 1 << 20):
                mine.write(read_at(file, min(1 << 20, at + size - start), start))
            at += size
        self.keys.take(keys, len(self))
        known = [self._pairs.setdefault(pair, len(self._pairs)) for pair in pairs]
        _extend(self._session, session, len(self._ends))
        _extend(self._info_at, info_at, len(self._info_place) - 1)
        _extend(self._place, place[1:], self._place[-1])
        _extend(self._info_place, info_place[1:], self._info_place[-1])
        self._ends.extend(map(known.__getitem__, ends))
        self._ts.extend(ts)
        self._how.extend(how)

    # out

    def ends(self) -> Iterator[Ends]:
        """Who passed mail to whom, each pair once."""
        self._put_infos(list(self._open))
        import numpy as np

        ends = np.frombuffer(self._ends, np.int32)[np.frombuffer(self._session, np.int32)].astype(np.int64)
        pairs = list(self._pairs)
        for both in np.unique(ends << 8 | np.frombuffer(self._how, np.uint8)).tolist():
            how = both & 0xFF
            client_ip, server_ip = pairs[both >> 8]
            yield Ends(client_ip, server_ip, bool(how & _TRANSACTION), bool(how & _LMTP), bool(how & _HANDED_IN))

    def split(
        self, keys: Collection[int], clients: Collection[str], servers: Collection[str], opaque: Collection[str], limits: Limits
    ) -> tuple[Any, list[Any], int]:
        """(the part told first, the others): numbers of sightings, some `limits.story_part` in each; how many should be in the
        first and are not, as it has room for `limits.story_at_once` (the earliest messages).

        Told first is what has one of `keys`; whose client is one of `clients`, or whose server one of `servers`; and what
        trace fields say was passed on by one of `opaque`.
        """
        import numpy as np

        count = len(self._ts)
        label = _components(count, *self._joining())
        first = np.zeros(count, bool)
        wanted = np.fromiter((*self.keys.related, *keys), np.int64)
        for columns in (self.keys.strong, self.keys.faint) if len(wanted) else ():
            first[_columns(columns)[1][np.isin(_columns(columns)[0], wanted)]] = True
        held = [client in clients or server in servers for client, server in self._pairs]
        ends = np.frombuffer(self._ends, np.int32)[np.frombuffer(self._session, np.int32)]
        first |= np.array(held, bool)[ends]
        if opaque:
            key, owner = _columns(self.keys.passed)
            first[owner[np.isin(key, np.fromiter(map(hash, (None, *opaque)), np.int64))]] = True
        concerned = np.zeros(count, bool)
        concerned[label[first]] = True
        first = concerned[label]
        began = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(began, label, np.frombuffer(self._ts, np.int64))
        order = np.lexsort((label, began[label]))
        asked = order[first[order]]
        late = asked[_cut(_edges(label[asked]), limits.story_at_once, len(asked)) :]
        first[late] = False
        order = order[~first[order]]
        parts: list[Any] = []
        start, edges = 0, _edges(label[order])
        while start < len(order):
            until = _cut(edges, start + limits.story_part, len(order))
            parts.append(np.sort(order[start:until]))
            start = until
        return np.flatnonzero(first), parts, len(late)

    def _joining(self) -> tuple[Any, Any]:
        """Every (hash, sighting) that may join."""
        import numpy as np

        keys, owners = _columns(self.keys.strong)
        if not self.keys.searching:
            return keys, owners
        faint, theirs = _columns(self.keys.faint)
        sought = np.isin(faint, np.fromiter(self.keys.searching, np.int64))
        return np.concatenate((keys, faint[sought])), np.concatenate((owners, theirs[sought]))

    def get(self, numbers: Any) -> list[Sighting]:
        """Sightings by their numbers."""
        self._file.flush()
        self._info_file.flush()
        infos: dict[int, SessionInfo] = {}
        trails: dict[int, Trail] = {}
        texts: dict[str, str] = {}
        found: list[Sighting] = []
        for number in numbers.tolist():
            start, end = self._place[number], self._place[number + 1]
            s = unpacked(read_at(self._file, end - start, start), trails, texts)
            session = self._session[number]
            info = infos.get(session)
            if info is None:
                at = self._info_at[session]
                start, end = self._info_place[at], self._info_place[at + 1]
                info = infos[session] = unpacked_session(read_at(self._info_file, end - start, start), texts)
            s.session = info
            found.append(s)
        return found

    def close(self) -> None:
        """Give the temporary files back."""
        self._file.close()
        self._info_file.close()


def _columns(pair: tuple["array[int]", "array[int]"]) -> tuple[Any, Any]:
    """Hashes and their sightings' numbers as numpy columns."""
    import numpy as np

    return np.frombuffer(pair[0], np.int64), np.frombuffer(pair[1], np.int32)


def _edges(labels: Any) -> Any:
    """Where each run of equal labels begins."""
    import numpy as np

    return np.flatnonzero(np.diff(labels, prepend=-1))


def _cut(edges: Any, at: int, end: int) -> int:
    """The first edge from a place on, or the end."""
    import numpy as np

    i = np.searchsorted(edges, at)
    return int(edges[i]) if i < len(edges) else end


def packed_session(info: SessionInfo) -> bytes:
    """A session as octets."""
    return pickle.dumps((_of_info(info), _of_connection(info.connection)), 5)


def _same(values: Iterable[Any], texts: dict[str, str]) -> list[Any]:
    """Values, equal texts being one: names, addresses and replies of servers come again and again."""
    known = texts.setdefault
    return [known(value, value) if type(value) is str else value for value in values]


def unpacked_session(octets: bytes, texts: dict[str, str]) -> SessionInfo:
    """The session again; `texts`: those there are."""
    values, connection = pickle.loads(octets)  # our own file, which has no name
    info: SessionInfo = object.__new__(SessionInfo)
    _fill_info(info, _same(values, texts))
    info.connection = object.__new__(Connection)
    _fill_connection(info.connection, _same(connection, texts))
    info.connection.session = None
    return info


def packed(s: Sighting) -> bytes:
    """A sighting as octets, without its session."""
    trail = [(t.mark, t.octets - (t.below.octets if t.below else 0), tuple(t.field)) for t in s.trail or ()]
    return pickle.dumps((_of_sighting(s), list(map(_of_recipient, s.recipients)), trail), 5)


def unpacked(octets: bytes, trails: dict[int, Trail], texts: dict[str, str]) -> Sighting:
    """The sighting again, all but its session; `trails`, `texts`: those there are, trails by mark."""
    values, recipients, fields_ = pickle.loads(octets)  # our own file, which has no name
    s: Sighting = object.__new__(Sighting)
    _fill_sighting(s, _same(values, texts))
    s.order = 0
    s.recipients = [Recipient(*_same(r, texts)) for r in recipients]
    trail: Trail | None = None
    for mark, octets_, field in reversed(fields_):
        known = trails.get(mark)
        if known is None:
            known = trails[mark] = Trail(Received._make(_same(field, texts)), trail, octets_, mark)
        trail = known
    s.trail = trail
    return s


def _components(count: int, keys: Any, owners: Any) -> Any:
    """A number for each sighting, the same for those that keys join: the least of their numbers."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    same = keys[1:] == keys[:-1]
    a, b = owners[:-1][same], owners[1:][same]
    label = np.arange(count)
    while True:
        mine, theirs = label[a], label[b]
        apart = mine != theirs
        if not apart.any():
            return label
        a, b, mine, theirs = a[apart], b[apart], mine[apart], theirs[apart]
        np.minimum.at(label, np.maximum(mine, theirs), np.minimum(mine, theirs))
        while len(np.flatnonzero((above := label[label]) != label)):
            label = above
