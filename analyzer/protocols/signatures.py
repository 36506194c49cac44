"""DKIM signatures (RFC 6376) and ARC sets (RFC 8617) digested as a message goes by, so that neither it nor its header is kept.

Rules:
1. What a signature signs is reduced to two digests: of the canonical body (3.4.3, 3.4.4), taken as the octets pass, and of
   the canonical header fields (3.7), taken at the empty line.  With the key they tell everything; there is no key here.
2. Body canonicalisation works on any pieces and holds back a few octets and a count, whatever the body is.
3. Signatures that ask for the same canonicalisation, hash and length share one digest.
"""

import binascii
import re
from collections.abc import Callable
from hashlib import sha1, sha256
from typing import Any, NamedTuple

from analyzer.limits import Limits

SIGNED = frozenset(("dkim-signature", "arc-seal", "arc-message-signature", "arc-authentication-results"))
"""Fields that make a message a signed one."""
_ARC = frozenset((b"arc-seal", b"arc-message-signature", b"arc-authentication-results"))
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_WSP = re.compile(rb"[ \t]{2,}|\t")
_FWS = re.compile(rb"[ \t\r\n]+")
_SIGNATURE = re.compile(rb"((?:^|;)[ \t\r\n]*b[ \t\r\n]*=)[^;]*")
"""The b= tag, whose value a signature leaves out of what it signs."""
_INSTANCES = 50
"""Most ARC sets of a message (RFC 8617 4.2.1)."""
_RUN = b"\r\n" * 4096
_HASHES = {"rsa-sha256": sha256, "rsa-sha1": sha1, "ed25519-sha256": sha256}


class Field(NamedTuple):
    """A header field as it stands."""

    name: bytes
    """In lower case."""
    octets: bytes
    """The whole field, folded as it is, line end included."""

    @property
    def value(self) -> bytes:
        """What follows the colon."""
        return self.octets.partition(b":")[2]


class Signature(NamedTuple):
    """One signature and the digests that decide about it."""

    domain: str
    """d=, lower case."""
    selector: str
    """s=, lower case."""
    algorithm: str
    """a=, lower case."""
    identity: str | None
    """i= of DKIM."""
    signed: bytes
    """Digest of the canonical header fields by the algorithm's hash: what b= signs."""
    value: bytes
    """b=, decoded."""
    body: str
    """`same` as bh= says, `differs`, `short` of l=, `unseen` where octets are missing; `none` for an ARC-Seal."""
    timestamp: int | None
    """t=, seconds."""
    expiration: int | None
    """x=, seconds."""
    partial: bool
    """l= leaves the end of the body unsigned."""
    fault: str | None
    """Why it cannot be a signature, whatever the key says."""
    chain: str | None = None
    """cv= of an ARC-Seal."""


class Signatures(NamedTuple):
    """The signatures of a message."""

    dkim: tuple[Signature, ...]
    """DKIM-Signature fields, topmost first."""
    seals: tuple[Signature, ...] = ()
    """ARC-Seal fields, by instance from 1."""
    message: Signature | None = None
    """The ARC-Message-Signature of the highest instance."""
    arc_fault: str | None = None
    """What is wrong with the ARC sets as a whole."""


class _Sink:
    """A digest of the first `room` octets of a canonical body; trailing empty lines are held back as a count."""

    __slots__ = ("_always", "_digest", "_lines", "_room", "_tail", "size")

    def __init__(self, digest: Any, room: int | None, always: bool) -> None:
        self._digest = digest
        self._room = room
        self._always = always
        self._lines = 0
        self._tail = b""
        self.size = 0
        """Canonical octets, those beyond `room` counted."""

    def feed(self, data: bytes) -> None:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        end = len(data.rstrip(b"\r\n"))
        if data.startswith(b"\n", end):  # a bare LF is no line end
            end += 1
        held = data[end:]
        if held.endswith(b"\r"):
            self._tail, held = b"\r", held[:-1]
        lines = len(held) // 2
        if held != b"\r\n" * lines:  # bare CR or LF among them: behind the last of these only
            stop = len(held)
            while held.endswith(b"\r\n", 0, stop):
                stop -= 2
            lines = (len(held) - stop) // 2
            end += stop
        if end:
            self._give_lines()
            self._give(data[:end])
        self._lines += lines

    def _give_lines(self) -> None:
        while self._lines:
            some = min(self._lines, len(_RUN) // 2)
            self._give(_RUN[: 2 * some])
            self._lines -= some

    def _give(self, data: bytes) -> None:
        self.size += len(data)
        if self._room is None:
            self._digest.update(data)
        elif self._room > 0:
            self._digest.update(data[: self._room])
            self._room -= len(data)

    def finish(self) -> bytes:
        if self._tail:
            self._give_lines()
            self._give(self._tail)
        if self.size or self._always:
            self._give(b"\r\n")
        digest: bytes = self._digest.digest()
        return digest

    def copy(self) -> "_Sink":
        twin = _Sink(self._digest.copy(), self._room, self._always)
        twin._lines, twin._tail, twin.size = self._lines, self._tail, self.size
        return twin


class _Pending(NamedTuple):
    """A signature that waits for the body; `body` says where its body digest will be."""

    signature: Signature
    wanted: bytes
    """bh=, decoded."""
    channel: int
    room: int | None


class SignedReader:
    """Reads the rest of a signed message: made at the empty line, fed the body."""

    __slots__ = ("_arc_fault", "_channels", "_dkim", "_message", "_relaxed", "_seals", "_sinks", "_wsp")

    def __init__(self, head: bytes | None = None, limits: Limits | None = None) -> None:
        self._channels: dict[tuple[bool, str, int | None], int] = {}
        self._sinks: list[_Sink] = []
        self._relaxed: list[bool] = []
        self._wsp = b""
        self._dkim: list[_Pending] = []
        self._seals: list[Signature] = []
        self._message: _Pending | None = None
        self._arc_fault: str | None = None
        if head is not None and limits is not None:
            self._read(head, limits)

    def _read(self, head: bytes, limits: Limits) -> None:
        fields = _fields(head)
        signatures = [field for field in fields if field.name == b"dkim-signature"]
        for field in signatures[: limits.signatures]:
            self._dkim.append(self._pending(field, fields, b"v a b bh d h s"))
        arc = [field for field in fields if field.name in _ARC]
        if arc:
            self._arc(arc, fields)

    def _pending(self, field: Field, fields: list[Field], required: bytes) -> _Pending:
        """A DKIM-Signature or ARC-Message-Signature with the digest of the fields it names."""
        tags = tag_list(field.value)
        fault = _missing(tags, required)
        domain, selector, algorithm = _words(tags)
        hash_ = _HASHES.get(algorithm)
        names = [name.strip().lower() for name in tags.get(b"h", b"").split(b":")]
        header, _, body = tags.get(b"c", b"simple/simple").lower().partition(b"/")
        header, body = header.strip(), body.strip() or b"simple"
        length = _number(tags.get(b"l"))
        identity = _text(tags[b"i"]) if b"i" in tags and b"v" in required.split() else None
        if fault is None:
            if b"v" in required.split() and tags[b"v"] != b"1":
                fault = "v= is not 1"
            elif hash_ is None:
                fault = f"algorithm {algorithm[:40]} is not known"
            elif header not in (b"simple", b"relaxed") or body not in (b"simple", b"relaxed"):
                fault = "c= is not known"
            elif b"from" not in names and b"v" in required.split():
                fault = "From is not signed"
            elif b"l" in tags and length is None:
                fault = "l= is not a number"
            elif identity is not None and not _within(identity.rpartition("@")[2].lower(), domain):
                fault = "i= is not in d="
        value, wanted = _base64(tags.get(b"b", b"")), _base64(tags.get(b"bh", b""))
        if fault is None and (value is None or wanted is None):
            fault = "b= or bh= is not base64"
        signed, channel = b"", -1
        if fault is None:
            assert hash_ is not None
            digest = hash_(usedforsecurity=False)
            canonical = _relaxed if header == b"relaxed" else _simple
            left: dict[bytes, list[Field]] = {}
            for each in fields:
                if each is not field:
                    left.setdefault(each.name, []).append(each)
            for name in names:
                if left.get(name):
                    digest.update(canonical(left[name].pop()))
            digest.update(_unsigned(field, canonical))
            signed = digest.digest()
            channel = self._channel(body == b"relaxed", algorithm, length)
        signature = Signature(
            domain,
            selector,
            algorithm,
            identity,
            signed,
            value or b"",
            "unseen",
            _number(tags.get(b"t")),
            _number(tags.get(b"x")),
            False,
            fault,
        )
        return _Pending(signature, wanted or b"", channel, length)

    def _channel(self, relaxed: bool, algorithm: str, length: int | None) -> int:
        """The number of the body digest of this kind."""
        key = (relaxed, algorithm.rpartition("-")[2], length)
        known = self._channels.get(key)
        if known is None:
            known = self._channels[key] = len(self._sinks)
            digest = _HASHES[algorithm](usedforsecurity=False)
            self._sinks.append(_Sink(digest, length, not relaxed))
            self._relaxed.append(relaxed)
        return known

    def _arc(self, arc: list[Field], fields: list[Field]) -> None:
        """The sets by instance (RFC 8617 5.2 steps 1 to 3), each seal with the digest of all up to it."""
        sets: dict[int, dict[bytes, Field]] = {}
        for field in arc:
            instance = _number(tag_list(field.value).get(b"i"))
            if instance is None or not 0 < instance <= _INSTANCES:
                self._arc_fault = f"{_text(field.name)} without an instance from 1 to {_INSTANCES}"
                return
            if field.name in sets.setdefault(instance, {}):
                self._arc_fault = f"two {_text(field.name)} of instance {instance}"
                return
            sets[instance][field.name] = field
        top = max(sets)
        for instance in range(1, top + 1):
            if len(sets.get(instance, ())) != 3:
                self._arc_fault = f"the set of instance {instance} is not whole"
                return
        digest = sha256(usedforsecurity=False)
        for instance in range(1, top + 1):
            one = sets[instance]
            seal = one[b"arc-seal"]
            tags = tag_list(seal.value)
            fault = _missing(tags, b"i a b cv d s") or ("h= in a seal" if b"h" in tags else None)
            domain, selector, algorithm = _words(tags)
            value = _base64(tags.get(b"b", b""))
            if fault is None and (value is None or algorithm != "rsa-sha256"):
                fault = "b= is not base64" if value is None else f"algorithm {algorithm[:40]} is not one of ARC"
            digest.update(_relaxed(one[b"arc-authentication-results"]))
            digest.update(_relaxed(one[b"arc-message-signature"]))
            own = digest.copy()
            own.update(_unsigned(seal, _relaxed))
            digest.update(_relaxed(seal))
            chain = _text(tags.get(b"cv", b"")).lower()
            at = _number(tags.get(b"t"))
            self._seals.append(
                Signature(domain, selector, algorithm, None, own.digest(), value or b"", "none", at, None, False, fault, chain)
            )
        self._message = self._pending(sets[top][b"arc-message-signature"], fields, b"i a b bh d h s")

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Take octets of the body."""
        data = bytes(piece)
        relaxed: bytes | None = None
        for is_relaxed, sink in zip(self._relaxed, self._sinks, strict=True):
            if is_relaxed:
                if relaxed is None:
                    relaxed = self._relax(data)
                sink.feed(relaxed)
            else:
                sink.feed(data)

    def _relax(self, data: bytes) -> bytes:
        """White space runs are one blank, none at a line's end (3.4.4); what may be one waits for what follows."""
        data = self._wsp + data
        end = len(data) - 1 if data.endswith(b"\r") else len(data)
        kept = data[:end].rstrip(b" \t")
        self._wsp = (b" " if len(kept) < end else b"") + data[end:]
        return _squeezed(kept).replace(b" \r\n", b"\r\n")

    def finish(self, complete: bool) -> Signatures:
        """The signatures; `complete`: the body was fed whole."""
        if self._wsp.endswith(b"\r"):
            for relaxed, sink in zip(self._relaxed, self._sinks, strict=True):
                if relaxed:
                    sink.feed(self._wsp)
        digests = [sink.finish() for sink in self._sinks] if complete else []
        dkim = tuple(self._decided(pending, digests) for pending in self._dkim)
        message = self._decided(self._message, digests) if self._message is not None else None
        return Signatures(dkim, tuple(self._seals), message, self._arc_fault)

    def _decided(self, pending: _Pending, digests: list[bytes]) -> Signature:
        if not digests or pending.channel < 0:
            return pending.signature
        size = self._sinks[pending.channel].size
        same = "same" if digests[pending.channel] == pending.wanted else "differs"
        short = pending.room is not None and size < pending.room
        return pending.signature._replace(
            body="short" if short else same, partial=pending.room is not None and size > pending.room
        )

    def copy(self) -> "SignedReader":
        """A reader that has read the same, and goes its own way."""
        twin = SignedReader()
        twin._channels, twin._relaxed, twin._wsp = self._channels, self._relaxed, self._wsp
        twin._sinks = [sink.copy() for sink in self._sinks]
        twin._dkim, twin._seals = self._dkim, self._seals
        twin._message, twin._arc_fault = self._message, self._arc_fault
        return twin


def tag_list(value: bytes) -> dict[bytes, bytes]:
    """`tag-list` (3.2): names in lower case, values without white space around; of a name given twice the first."""
    tags: dict[bytes, bytes] = {}
    for spec in value.split(b";"):
        name, equals, rest = spec.partition(b"=")
        if equals:
            tags.setdefault(name.strip().lower(), b" ".join(rest.split()))
    return tags


def _fields(head: bytes) -> list[Field]:
    """The fields of a header section (RFC 5322 2.2), top to bottom."""
    found: list[Field] = []
    lines: list[bytes] = []
    name = b""
    for line in head.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            lines.append(line)
            continue
        if name:
            found.append(Field(name, b"\r\n".join([*lines, b""])))
        begin = _FIELD.match(line)
        name = begin[1].lower() if begin else b""
        lines = [line]
    if name:
        found.append(Field(name, b"\r\n".join([*lines, b""])))
    return found


def _simple(field: Field) -> bytes:
    """3.4.1: as it is."""
    return field.octets


def _relaxed(field: Field) -> bytes:
    """3.4.2: name in lower case, unfolded, white space runs one blank, none at the ends of the value."""
    value = field.value.replace(b"\r\n", b"")
    return field.name + b":" + _squeezed(value).strip(b" ") + b"\r\n"


def _squeezed(data: bytes) -> bytes:
    """White space runs as one blank."""
    return _WSP.sub(b" ", data) if b"  " in data or b"\t" in data else data  # looking first is many times faster


def _unsigned(field: Field, canonical: Callable[[Field], bytes]) -> bytes:
    """The signature's own field, its b= emptied, without the line end (3.7)."""
    name, colon, value = field.octets.partition(b":")
    emptied = Field(field.name, name + colon + _SIGNATURE.sub(rb"\1", value.removesuffix(b"\r\n"), count=1) + b"\r\n")
    return canonical(emptied).removesuffix(b"\r\n")


def _missing(tags: dict[bytes, bytes], required: bytes) -> str | None:
    missing = [_text(name) for name in required.split() if not tags.get(name)]
    return f"without {'=, '.join(missing)}=" if missing else None


def _words(tags: dict[bytes, bytes]) -> tuple[str, str, str]:
    domain, selector, algorithm = (_text(tags.get(name, b"")[:255]).strip().lower() for name in (b"d", b"s", b"a"))
    return domain.rstrip("."), selector.rstrip("."), algorithm


def _within(domain: str, parent: str) -> bool:
    return domain == parent or domain.endswith("." + parent)


def _base64(value: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(_FWS.sub(b"", value))
    except binascii.Error:
        return None


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) < 20 else None


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
