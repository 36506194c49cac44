"""The TLS layer of a session: records in, plaintext out where there is any."""

import re
from bisect import bisect_right
from collections import deque
from copy import copy
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING

from analyzer.limits import Limits
from analyzer.protocols.base import Malformed, Session, SessionInfo, text
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.tls.facts import Facts
from analyzer.protocols.tls.hello import (
    CERTIFICATE,
    CLIENT_HELLO,
    COMPRESSED_CERTIFICATE,
    ENCRYPTED_EXTENSIONS,
    END_OF_EARLY_DATA,
    FINISHED,
    KEY_UPDATE,
    SERVER_HELLO,
    TLS13,
    ClientHello,
    ServerHello,
    certificates,
    chosen_protocol,
    client_hello,
    inflated,
    server_hello,
)
from analyzer.protocols.tls.secrets import Secrets
from analyzer.protocols.tls.suites import suite_name, version_name
from analyzer.wire.types import Chunk

if TYPE_CHECKING:
    from analyzer.protocols.tls.decrypt import Opener

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, HEARTBEAT = 20, 21, 22, 23, 24
RECORD = 5
"""Octets of a record's header."""
LONGEST = (1 << 14) + 2048
"""Octets of the longest fragment (RFC 5246 6.2.3)."""
_HELLO = re.compile(rb"\x16\x03[\x00-\x04][\x00-\x48].[\x01\x02]\x00..\x03[\x00-\x03]", re.DOTALL)
"""A record that begins with a ClientHello or a ServerHello."""
_RECORD_HEADER = Struct("!BHH")
"""Type, version, size."""
_HEADER = re.compile(rb"[\x14-\x18]\x03[\x00-\x04][\x00-\x48].", re.DOTALL)
_HELLO_SIZE = 11
_UNKNOWN = 2048
"""Octets that an unknown loss is taken for when lost records are counted."""
_UNOPENED = 64
"""Records in a row that cannot be opened: then the secrets are taken for wrong."""
_ENDS = 8192
"""Ends of records remembered for each direction."""
_EARLY = 32
"""Records of early data that are looked at one by one."""
_ALERTS = {
    10: "unexpected_message",
    20: "bad_record_mac",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    112: "unrecognized_name",
    116: "certificate_required",
    120: "no_application_protocol",
}


_READ = frozenset(
    (
        CLIENT_HELLO,
        SERVER_HELLO,
        END_OF_EARLY_DATA,
        ENCRYPTED_EXTENSIONS,
        CERTIFICATE,
        FINISHED,
        KEY_UPDATE,
        COMPRESSED_CERTIFICATE,
    )
)
"""Handshake messages that tell something here."""
_At = tuple[int | None, int | None, int]
"""Time, frame and acknowledgement of a segment."""


_Mark = tuple[int, int, int, int]
"""Plaintext from a stream offset on came with a segment: its time, frame, and what it acknowledges of the other ciphertext."""


_acknowledged = itemgetter(3)


class _Run:
    """Plaintext without a gap that is not handed up yet."""

    __slots__ = ("gap", "marks", "offset", "parts")

    def __init__(self, gap: int, offset: int) -> None:
        self.gap = gap
        self.offset = offset
        self.parts: list[bytes | memoryview] = []
        self.marks: list[_Mark] = []

    def split(self, marks: int) -> "_Run":
        """What so many of its first marks tell of, taken off."""
        first, stop, done = _Run(self.gap, self.offset), self.marks[marks][0], 0
        at = self.offset
        while at < stop:
            part = self.parts[done]
            if at + len(part) > stop:
                first.parts.append(part[: stop - at])
                self.parts[done] = part[stop - at :]
                break
            first.parts.append(part)
            at += len(part)
            done += 1
        first.marks = self.marks[:marks]
        del self.parts[:done], self.marks[:marks]
        self.gap, self.offset = 0, stop
        return first


class _Half:
    """One direction of the connection."""

    need = RECORD
    """Octets that must have come before it is worth looking again."""
    started = False
    """It is known what it begins with."""
    seeking: int | None = None
    """Stream offset of plaintext that came too early: the first record is behind it."""
    lost = False
    """Where the next record begins is not known."""
    gap_bytes = 0
    """Octets lost since the last record that could be opened."""
    blind = False
    """Nothing more is to be learnt from this direction."""
    broken = False
    """A handshake message is not whole: those after it cannot be told apart."""
    specs = 0
    """ChangeCipherSpec records so far."""
    opener: "Opener | None" = None
    unopened = 0
    """Records in a row that could not be opened."""
    unopened_at: _At | None = None
    """The first of them."""
    unread = 0
    """Octets of all records that could not be opened."""
    protected = False
    """Records are encrypted from here on."""
    ts_first: int | None = None
    """First octet of its first record."""
    ts_last: int | None = None
    """Last octet so far."""
    application_begin: int | None = None
    """Stream offset of its first record of application data."""
    begun: int | None = None
    """Stream offset at which it was handed to this layer: its plaintext is counted from there."""
    plain = 0
    """Plaintext stream offset of the next octet to be opened."""
    plain_gap = 0
    """Gap before the next octet of plaintext: -1 where records were lost."""
    spoke = False
    """Some of its plaintext was read."""
    held = 0
    """Octets of plaintext not handed up yet."""
    received = 0
    """Ciphertext stream offset up to which everything has come or is known to be lost."""

    def __init__(self, limits: Limits, client: bool) -> None:
        self.client = client
        self.orig = client
        self.early: list[Chunk] = []
        """What came before it was known whether this is TLS."""
        self.inbox = Inbox(limits)
        self.handshake = bytearray()
        self.application: list[tuple[int, int]] = []
        """Time and octets of its first records of application data."""
        self.early_pieces: list[tuple[bytes, _At, _At, int]] = []
        """Early data, whether the server takes it is not known yet: content of each record, the segments of its first and of its
        last octet, the offset behind it."""
        self.runs: deque[_Run] = deque()
        """Plaintext not handed up yet."""
        self.ends: tuple[list[int], list[int]] = ([], [])
        """Where records ended that were opened: offsets in the ciphertext's stream, and in the plaintext's."""


class Layer:
    """TLS on one connection.

    `take` takes the octets of either direction, `read` returns what has become readable of both.  When no TLS follows
    at all, because the capture was taken behind a decrypting device, the octets are passed on as they are.
    """

    def __init__(self, info: SessionInfo, limits: Limits, secrets: Secrets | None = None) -> None:
        self.info = info
        self.limits = limits
        self.secrets = secrets
        self.facts = Facts()
        info.facts = self.facts
        info.visibility = "opaque"
        self.mode: str = "tls" if info.tls == "implicit" else ""
        """`tls`, `text` (no TLS at all), or "" while it is not known."""
        self._halves = (_Half(limits, True), _Half(limits, False))
        self._clients: list[ClientHello] = []
        self._servers: list[ServerHello] = []
        """Hellos of each handshake on the connection (renegotiation makes more than one)."""
        self._ts_server_hello: int | None = None
        self._chains: dict[bool, list[bytes]] = {}
        """Certificates of the client (True) and of the server (False)."""
        self._tls13 = False
        """The server has answered with TLS 1.3: ChangeCipherSpec means nothing (RFC 8446 5)."""
        self._failed = False
        self._keyed = secrets is not None and (len(secrets) > 0 or secrets.growing)
        self._patient = secrets is not None and secrets.growing
        """Records wait for secrets that the key log does not hold yet."""
        self._now = 0
        """Time of the latest octets."""
        self._derived: dict[bytes, bytes] = {}
        """Key blocks by the server's random: both directions have theirs of one."""
        self._settled = False
        """The end of the handshake is known for good."""

    def take(self, chunk: Chunk, from_client: bool) -> None:
        """Take octets of one direction."""
        half = self._halves[not from_client]
        half.orig = chunk.orig
        if half.begun is None:
            half.begun = half.plain = chunk.offset
        half.received = chunk.offset + len(chunk.data)
        if len(chunk.ts):
            half.ts_last = int(chunk.ts[-1])
            self._now = max(self._now, half.ts_last)
        if not half.started or self.mode == "text":
            half.early.append(chunk)
        elif not half.blind:
            half.inbox.append(chunk)

    def read(self, session: Session) -> list[Chunk]:
        """The plaintext of what was taken, each chunk of one direction."""
        if not self.mode:
            self._choose(False)
        if self.mode == "text":
            return self._passed_on()
        if self.mode == "tls":
            self._pump(session, False)
            return [chunk for half in self._halves if half.runs for chunk in self._plain(half, False)]
        return []

    def finish(self, session: Session) -> list[Chunk]:
        """The connection is over: what could not be told apart so far is now; the rest of the plaintext."""
        if not self.mode:
            self._choose(True)
        if self.mode == "text":
            return self._passed_on()
        for half in self._halves:
            half.inbox.ended = True
        self._pump(session, True)
        chunks = [chunk for half in self._halves for chunk in self._plain(half, True)]
        for half in self._halves:
            self._ended(half, session)
        self._tell()
        return chunks

    def _ended(self, half: _Half, session: Session) -> None:
        """Say when the secrets opened nothing, or not all of it."""
        if half.unopened and half.opener is not None and not (half.client and self._early_data and not half.spoke):
            self._not_opened(half, session)
        elif half.opener is None and half.application and not half.unopened and self._halves[half.client].spoke:
            side = "client" if half.client else "server"
            session.weird("tls_not_opened", f"no secret for what the {side} sent", half.application[0][0], None)

    def _not_opened(self, half: _Half, session: Session) -> None:
        at = half.unopened_at or (None, None, -1)
        side = "client" if half.client else "server"
        cut = "; what is read of it ends here" if half.spoke else ""
        session.weird("tls_not_opened", f"records of the {side} cannot be opened with the secrets given{cut}", at[0], at[1])

    def _tell(self) -> None:
        """Fill in what is known in the end."""
        facts, info = self.facts, self.info
        if self._clients:
            facts.offered(self._clients[0])
        if self._servers:
            facts.answered(self._servers[0], self._clients[0] if self._clients else None)
        if True in self._chains:
            facts.client_chain(self._chains[True])
        if False in self._chains:
            name = facts.server_chain(self._chains[False], info.sni)
            info.server_name = info.server_name or name
        client, server = self._halves
        facts.ts_tls_client, facts.ts_tls_server = client.ts_last, server.ts_last
        if client.ts_first is not None and info.ts_tls_done is not None and self._clients:
            facts.tls_handshake_s = (info.ts_tls_done - client.ts_first) / 1e9
        facts.tls_client_bytes, facts.tls_server_bytes = self._size(client), self._size(server)
        if self._keyed:
            facts.tls_unread_bytes = client.unread + server.unread

    def _size(self, half: _Half) -> int | None:
        """Octets of a direction behind its handshake; None when that was not seen to end."""
        done = self.info.ts_tls_done
        if done is None:
            return None
        if half.application_begin is None:
            return 0
        size = half.received - half.application_begin
        if self._tls13:  # whose handshake is application data to look at
            size -= sum(octets for ts, octets in half.application if ts <= done)
        return size

    # is it TLS at all

    def _choose(self, last: bool) -> None:
        """Judge by what both sides say first: where one of them speaks TLS, plaintext of the other came too early."""
        kinds = {_kind(half) for half in self._halves}
        held = sum(len(c.data) for half in self._halves for c in half.early)
        if "tls" in kinds:
            self.mode = "tls"
        elif kinds == {"text"} or ("text" in kinds and (last or held > self.limits.waiting_bytes)):
            self.mode = "text"
            self.info.visibility = "decrypted"
        elif last:
            self.mode = "tls"

    def _start(self, half: _Half, last: bool) -> None:
        kind = _kind(half)
        if not kind and not last:
            return
        half.started = True
        for chunk in half.early:
            half.inbox.append(chunk)
        half.early = []
        if kind == "text":
            half.seeking = half.begun

    def _sought(self, half: _Half, session: Session, last: bool) -> bool:
        """Read over plaintext that came too early (CVE-2011-0411); whether the first record was found behind it."""
        inbox = half.inbox
        buf, pos = inbox.buf, inbox.pos
        found = _HELLO.search(buf, pos)
        stop = found.start() if found else len(buf) if last else max(pos, len(buf) - _HELLO_SIZE + 1)
        if (found or last) and half.seeking is not None:
            size = inbox.offset + stop - pos - half.seeking
            ts, frame, _ = inbox.segment_at(inbox.offset)
            side = "client" if half.client else "server"
            session.weird("starttls_injection", f"{size} octets of plaintext by the {side} behind the start of TLS", ts, frame)
            half.seeking = None
        inbox.take(stop - pos)
        return found is not None

    def _passed_on(self) -> list[Chunk]:
        """What has come, as it is."""
        chunks = [chunk for half in self._halves for chunk in half.early]
        for half in self._halves:
            half.early = []
        return chunks

    # records

    def _pump(self, session: Session, last: bool) -> None:
        for half in self._halves:
            if not half.started and (half.early or last):
                self._start(half, last)
            if half.seeking is not None:
                self._sought(half, session, last)
        moved = True
        while moved:
            moved = False
            for half in self._halves:
                moved = self._read(half, session) or moved
        self._settle()

    def _read(self, half: _Half, session: Session) -> bool:
        """Read records as far as they have come; whether any was."""
        inbox, moved = half.inbox, False
        while not half.blind and half.seeking is None:
            if half.lost:
                available = inbox.available
                if available and (available >= half.need or inbox.before_gap):
                    half.lost = not _find(half)
            if not half.lost and inbox.available >= half.need:
                buf, pos = inbox.buf, inbox.pos
                size = len(buf)
                while size - pos >= half.need:
                    kind, version, octets = _RECORD_HEADER.unpack_from(buf, pos)
                    end = pos + RECORD + octets
                    if version >> 8 != 3 or octets > LONGEST or not CHANGE_CIPHER_SPEC <= kind <= HEARTBEAT:
                        self._damaged(half, session)
                        moved = True
                        break
                    if end > size:
                        half.need = RECORD + octets
                        break
                    if kind == APPLICATION_DATA and half.opener is not None and self._run(half):
                        pass
                    elif kind == HANDSHAKE and not half.protected:
                        ts = self._begun(half)
                        inbox.pos = end
                        self._handshake(half, buf[pos + RECORD : end], ts)
                    elif self._must_wait(half, kind):
                        return moved
                    elif kind == APPLICATION_DATA and not half.protected:
                        half.protected = True
                        self._prepare(half, max(half.specs, 1))
                    else:
                        self._record(half, kind, version, octets, session)
                    half.need = RECORD
                    moved = True
                    pos = inbox.pos
                    if half.blind:
                        break
                if half.lost or half.blind:
                    continue
            if not inbox.has_gap:
                return moved
            before, lost = inbox.available, inbox.take_gap()
            half.gap_bytes += before + (lost if lost >= 0 else _UNKNOWN)
            half.lost, half.need = True, RECORD
            half.handshake.clear()
            half.broken = True
            half.plain_gap = -1
            moved = True
        if half.blind:
            half.inbox.rest(half.orig)
        return moved

    def _damaged(self, half: _Half, session: Session) -> None:
        ts, frame, _ = half.inbox.segment_at(half.inbox.offset)
        session.weird("tls_malformed", "no TLS record where one should begin", ts, frame)
        half.inbox.take(1)
        half.gap_bytes += 1
        half.lost, half.need = True, RECORD
        half.handshake.clear()
        half.broken = True
        half.plain_gap = -1

    def _must_wait(self, half: _Half, kind: int) -> bool:
        """Whether a record's meaning hangs on a hello of the other side that has not come."""
        if not self._keyed or self._failed:
            return False
        if kind == CHANGE_CIPHER_SPEC:
            if self._tls13:
                return False
            turn = half.specs + 1
        elif half.opener is not None:
            return half.opener.missing and self._waits_for_secret(half)
        elif kind in (HANDSHAKE, ALERT) and not half.protected:
            return False
        else:
            turn = 1 if self._tls13 else half.specs if half.protected else half.specs + 1
        known = (len(self._clients), len(self._servers))
        missing = [h for h, hellos in zip(self._halves, known, strict=True) if hellos < turn]
        if not missing:
            return (
                (kind == CHANGE_CIPHER_SPEC or not half.protected) and self._unknown(half, turn) and self._waits_for_secret(half)
            )
        if any(h.broken or h.blind or h.inbox.ended for h in missing) or half.inbox.held > self.limits.tls_waiting_bytes:
            self._failed = True
            return False
        return True

    def _unknown(self, half: _Half, turn: int) -> bool:
        """Whether the key log holds no secret of a direction yet."""
        if not self._patient:
            return False
        from analyzer.protocols.tls.decrypt import has_secret

        assert self.secrets is not None
        return not has_secret(self.secrets, self._clients[turn - 1], self._servers[turn - 1], half.client)

    def _waits_for_secret(self, half: _Half) -> bool:
        """Whether a record goes on waiting for a key log that is still being written: not for ever, nor for much."""
        inbox = half.inbox
        since = inbox.segment_at(inbox.offset)[0] or 0
        if (
            inbox.ended
            or self._halves[half.client].inbox.ended
            or self._now - since > self.limits.tls_key_wait
            or inbox.held > self.limits.tls_waiting_bytes
        ):
            self._patient = False
        return self._patient

    def _record(self, half: _Half, kind: int, version: int, size: int, session: Session) -> None:
        inbox = half.inbox
        begin = inbox.offset
        first = inbox.segment_at(begin)
        inbox.take(RECORD)
        fragment = inbox.take(size)
        ts = first[0] or 0
        if half.ts_first is None:
            half.ts_first = ts
        if kind == APPLICATION_DATA and len(half.application) < _EARLY:
            self._count(half, begin, RECORD + size, ts)
        if kind == CHANGE_CIPHER_SPEC:
            if not self._tls13:
                half.specs += 1
                half.protected, half.opener, half.gap_bytes = True, None, 0
                self._prepare(half, half.specs)
            return
        if not half.protected:
            if kind == ALERT:
                self._alert(half, fragment, inbox.segment_at(inbox.offset - 1), session)
            return
        if half.opener is not None:
            self._open(half, kind, version, fragment, first, session)
        elif kind == APPLICATION_DATA and not (half.client and self._early_data and len(half.application) < _EARLY):
            half.blind = True

    @staticmethod
    def _begun(half: _Half) -> int:
        """Time of a record's first octet."""
        ts = half.inbox.segment_at(half.inbox.offset)[0] or 0
        if half.ts_first is None:
            half.ts_first = ts
        return ts

    @staticmethod
    def _count(half: _Half, begin: int, octets: int, ts: int) -> None:
        """One of the first records of application data."""
        half.application.append((ts, octets))
        if half.application_begin is None:
            half.application_begin = begin

    @property
    def _early_data(self) -> bool:
        return bool(self._clients) and self._clients[0].early_data

    def _prepare(self, half: _Half, turn: int) -> None:
        """The keys of a direction, from its first protected record on."""
        if not self._keyed or self._failed or len(self._clients) < turn or len(self._servers) < turn:
            return
        assert self.secrets is not None
        from analyzer.protocols.tls.decrypt import opener

        half.opener = opener(self.secrets, self._clients[turn - 1], self._servers[turn - 1], half.client, self._derived)

    def _open(
        self,
        half: _Half,
        kind: int,
        version: int,
        fragment: bytes,
        first: _At,
        session: Session,
    ) -> None:
        assert half.opener is not None
        early = half.opener.early
        opened = half.opener.open(kind, version, fragment) or _after_loss(half, kind, version, fragment)
        if opened is None:  # early data, or a record of another key: its octets are lost
            half.unread += RECORD + len(fragment)
            if not half.unopened:
                half.unopened_at = first
            if half.spoke:
                half.plain_gap = -1
            if half.client and self._early_data and not half.spoke:
                return  # of early data there may be much
            half.unopened += 1
            if half.unopened > _UNOPENED:
                self._not_opened(half, session)
                half.opener, half.blind = None, True
            return
        if not half.spoke:
            half.unread = 0  # what came before was no application data
        half.gap_bytes = half.unopened = 0
        if early and not half.opener.early:  # the server did not take the early data: the client says it again
            half.early_pieces.clear()
        inner, content = opened
        if inner == HANDSHAKE:
            self._handshake(half, content, first[0] or 0)
        elif inner == APPLICATION_DATA and content:
            last, end = half.inbox.segment_at(half.inbox.offset - 1), half.inbox.offset
            if half.opener.early:
                half.early_pieces.append((content, first, last, end))
            else:
                self._opened(half, content, first, last, end)

    def _run(self, half: _Half) -> bool:
        """Open record after record of application data, as long as all goes well: the way that nearly all octets take.

        False: none was, and the next one is to be looked at by itself.
        """
        inbox, opener = half.inbox, half.opener
        assert opener is not None
        if opener.early or opener.missing or half.unopened or half.gap_bytes or half.plain_gap or half.early_pieces:
            return False
        buf, pos, base = inbox.buf, inbox.pos, inbox.base
        starts, times, frames, acks = inbox.segments
        i, later = bisect_right(starts, base + pos) - 1, len(starts) - 1
        if i < 0:
            return False
        contents, ends, inner = opener.run(buf, pos)
        if not ends:
            return False
        if not half.spoke:
            half.unread = 0  # what came before was no application data
        other = contents.pop() if inner != APPLICATION_DATA else b""
        begin, plain, (theirs, ours) = base + pos, half.plain, half.ends
        if half.application_begin is None:
            half.application_begin = begin
        first, room = half.application, _EARLY - len(half.application)
        marks: list[_Mark] = []
        for content, stop in zip(contents, ends, strict=False):
            end, octets = base + stop, len(content)
            if room > 0:
                room -= 1
                first.append((times[i], end - begin))
                begin = end
            if octets:
                marks.append((plain, times[i], frames[i], acks[i]))
                plain += octets
            if i < later and starts[i + 1] < end:  # the record came in several segments
                i = bisect_right(starts, end - 1, i) - 1
                if octets > 1:
                    marks.append((plain - 1, times[i], frames[i], acks[i]))
            while i < later and starts[i + 1] <= end:
                i += 1
            theirs.append(end)
            ours.append(plain)
        if marks:
            self.info.visibility = "decrypted"
            half.spoke = True
            if not half.runs:
                half.runs.append(_Run(0, half.plain))
            run = half.runs[-1]
            run.parts += contents
            run.marks += marks
            half.held += plain - half.plain
            half.plain = plain
            self._forget_ends(half)
        end = inbox.pos = ends[-1]
        if inner != APPLICATION_DATA and room > 0:
            first.append((times[i], base + end - begin))
        if inner == HANDSHAKE:
            self._handshake(half, bytes(other), times[i])
        return True

    @staticmethod
    def _forget_ends(half: _Half) -> None:
        if len(half.ends[0]) > _ENDS:
            del half.ends[0][: -_ENDS // 2], half.ends[1][: -_ENDS // 2]

    def _opened(self, half: _Half, content: bytes, first: _At, last: _At, end: int) -> None:
        """Plaintext of a record that ended at a stream offset, and the segments of the record's first and last octet."""
        self.info.visibility = "decrypted"
        half.spoke = True
        if half.plain_gap or not half.runs:
            half.runs.append(_Run(half.plain_gap, half.plain))
            half.plain_gap = 0
        run = half.runs[-1]
        run.parts.append(content)
        run.marks.append((half.plain, first[0] or 0, first[1] or 0, first[2]))
        half.plain += len(content)
        half.held += len(content)
        if last != first and len(content) > 1:  # the record came in several segments
            run.marks.append((half.plain - 1, last[0] or 0, last[1] or 0, last[2]))
        half.ends[0].append(end)
        half.ends[1].append(half.plain)
        self._forget_ends(half)

    # handshake

    def _handshake(self, half: _Half, fragment: bytes, ts: int) -> None:
        """Handshake messages, which may lie over several records (RFC 5246 6.2.1)."""
        if half.broken:
            if not half.protected:
                return
            half.broken = False  # a new record: taken for the beginning of a message
        if half.handshake:
            half.handshake += fragment
            begun = half.handshake
            size = int.from_bytes(begun[1:4], "big")
            if len(begun) < 4 or len(begun) < 4 + size <= 4 + self.limits.tls_message_bytes:
                return
            fragment = bytes(begun)
            half.handshake.clear()
        pos, end = 0, len(fragment)
        while end - pos >= 4:
            size = int.from_bytes(fragment[pos + 1 : pos + 4], "big")
            if size > self.limits.tls_message_bytes:
                half.broken = True
                return
            begin, stop = pos + 4, pos + 4 + size
            if stop > end:
                break
            if fragment[pos] in _READ:
                try:
                    self._message(half, fragment[pos], fragment[begin:stop], ts)
                except Malformed:
                    half.broken = True
            pos = stop
        if pos < end:
            half.handshake += fragment[pos:]

    def _message(self, half: _Half, kind: int, body: bytes, ts: int) -> None:
        if kind == CLIENT_HELLO and half.client:
            hello = client_hello(body)
            if not self._clients or self._clients[-1].random != hello.random:  # not the answer to a HelloRetryRequest
                self._clients.append(hello)
            self.info.sni = hello.sni or self.info.sni
        elif kind == SERVER_HELLO and not half.client:
            answer = server_hello(body)
            self._tls13 = answer.version >= TLS13
            if not answer.retry:
                self._servers.append(answer)
                self._ts_server_hello = ts
            self.info.tls_version = version_name(answer.version)
            self.info.tls_cipher = suite_name(answer.suite)
        elif kind == ENCRYPTED_EXTENSIONS and not half.client:
            chosen = chosen_protocol(body)
            self.facts.alpn = text(chosen) if chosen is not None else None
        elif kind == COMPRESSED_CERTIFICATE:
            self._message(half, CERTIFICATE, inflated(body, self.limits.tls_message_bytes), ts)
        elif kind == CERTIFICATE and self._servers:
            chain = certificates(body, self._servers[-1].version)
            if chain:
                self._chains[half.client] = chain
        elif kind == END_OF_EARLY_DATA and half.opener is not None and half.opener.early:
            pieces, half.early_pieces = half.early_pieces, []
            for piece in pieces:
                self._opened(half, *piece)
            half.opener.finished()
        elif kind == FINISHED and half.opener is not None:
            half.opener.finished()
        elif kind == KEY_UPDATE and half.opener is not None:
            half.opener.updated()

    def _alert(self, half: _Half, fragment: bytes, at: _At, session: Session) -> None:
        if len(fragment) == 2 and fragment[0] == 2:
            side = "client" if half.client else "server"
            name = _ALERTS.get(fragment[1], str(fragment[1]))
            session.weird("tls_alert", f"{name}, sent by the {side}", at[0], at[1])

    def _settle(self) -> None:
        """End of the handshake: TLS 1.3 the client's first protected record, its Finished; before, the first application data."""
        if self._settled:
            return
        client, server = (half.application for half in self._halves)
        if self._tls13:
            after = (self._ts_server_hello or 0) if self._early_data else 0
            done = next((ts for ts, _ in client if ts >= after), None)
            self._settled = done is not None and self._ts_server_hello is not None
        else:
            done = min((ts for ts, _ in client[:1] + server[:1]), default=None)
            self._settled = bool(client and server and self._servers)
        if done is not None:
            self.info.ts_tls_done = done

    # plaintext

    def _plain(self, half: _Half, last: bool) -> list[Chunk]:
        """The plaintext of a direction that can be handed up, a chunk for each run without a gap.

        It waits for what its segments acknowledge of the other direction: then the plaintext of that is known, and
        the acknowledgement can be told in plaintext offsets.
        """
        other = self._halves[half.client]
        chunks: list[Chunk] = []
        last = last or other.blind or half.held > self.limits.tls_waiting_bytes
        while half.runs:
            run, known = half.runs[0], other.received
            if not last and max(map(_acknowledged, run.marks)) > known:
                ready = next(i for i, mark in enumerate(run.marks) if mark[3] > known)
                if run.marks[ready][0] > run.offset:
                    chunks.append(self._chunk(half, other, run.split(ready)))
                break
            half.runs.popleft()
            chunks.append(self._chunk(half, other, run))
        return chunks

    def _chunk(self, half: _Half, other: _Half, run: _Run) -> Chunk:
        starts, ts, frames, acks = map(list, zip(*run.marks, strict=True))
        told: list[int] = []
        before = at = -1
        for ack in acks:
            if ack != before:
                before, at = ack, _in_plaintext(other, ack)
            told.append(at)
        data = b"".join(run.parts) if len(run.parts) > 1 else bytes(run.parts[0])
        half.held -= len(data)
        return Chunk(half.orig, run.gap, run.offset, data, starts, ts, frames, told)


def _in_plaintext(half: _Half, offset: int) -> int:
    """Plaintext stream offset of what ends at or before a ciphertext stream offset; -1 when that is not known."""
    if offset < 0 or half.begun is None:
        return -1
    at = bisect_right(half.ends[0], offset)
    return half.ends[1][at - 1] if at else half.begun


def _u16(buf: bytes, pos: int) -> int:
    return buf[pos] << 8 | buf[pos + 1]


def _first_octets(half: _Half) -> bytes:
    """A direction's first octets, before the first gap (one at the very beginning aside): enough to tell what it speaks."""
    octets = b""
    for i, chunk in enumerate(half.early):
        if (chunk.gap and i and octets) or len(octets) > RECORD:
            break
        octets += chunk.data[: RECORD + 1]
    return octets


def _kind(half: _Half) -> str:
    """What a direction's first octets are: `tls`, `text`, or "" while it cannot be told."""
    octets = _first_octets(half)
    if not octets or (len(octets) < RECORD and b"\x16\x03".startswith(octets[:2])):
        return ""
    if _HEADER.match(octets) or _is_old_hello(octets):
        return "tls"
    return "text" if 32 <= octets[0] < 127 or octets[0] in b"\t\r\n" else "tls"


def _is_old_hello(octets: bytes) -> bool:
    """An SSLv2 CLIENT-HELLO that offers SSL 3 or TLS (RFC 5246 E.2)."""
    return len(octets) > RECORD and octets[0] & 0x80 != 0 and octets[2] == 1 and octets[3] == 3


def _find(half: _Half) -> bool:
    """Step to the next record header that another one follows; False when none has come yet."""
    inbox = half.inbox
    buf, pos = inbox.buf, inbox.pos
    while True:
        found = _HEADER.search(buf, pos)
        if found is None:
            keep = max(pos, len(buf) - RECORD + 1)
            half.gap_bytes += keep - inbox.pos
            inbox.pos, half.need = keep, RECORD
            return False
        at = found.start()
        then = at + RECORD + _u16(buf, at + 3)
        if then + RECORD > len(buf) and not inbox.before_gap:
            half.gap_bytes += at - inbox.pos
            inbox.pos, half.need = at, then + RECORD - at
            return False
        if then <= len(buf) and (_HEADER.match(buf, then) or then + RECORD > len(buf)) and buf[at + 3 : at + 5] != b"\0\0":
            half.gap_bytes += at - inbox.pos
            inbox.pos, half.need = at, RECORD
            return True
        pos = at + 1


def _after_loss(half: _Half, kind: int, version: int, fragment: bytes) -> tuple[int, bytes] | None:
    """Open a record that is not the expected one: some were lost, perhaps with the side's Finished among them.

    How many is tried out, as far as the octets lost allow.
    """
    assert half.opener is not None
    most = min(half.gap_bytes // (RECORD + 17) + 2, 1000) if half.gap_bytes else 1
    then = copy(half.opener)
    then.finished()
    for trial, begin in ((copy(half.opener), half.opener.sequence + 1), (then, then.sequence)):
        for sequence in range(begin, begin + most):
            trial.sequence = sequence
            opened = trial.open(kind, version, fragment)
            if opened is not None:
                half.opener = trial
                return opened
    return None
