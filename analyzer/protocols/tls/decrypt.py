"""Opening TLS records with the secrets of a key log.

RFC 8446 5.2, 7.1, 7.2 (TLS 1.3); RFC 5246 6.2.3, 6.3 with 5288 (GCM), 6655 (CCM), 7905 (ChaCha20) and 7366
(encrypt-then-MAC); RFC 2246 and 4346 (TLS 1.0 and 1.1).  A record counts as opened only when its tag or MAC is right.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag

from analyzer.protocols.tls.hello import TLS12, TLS13, ClientHello, ServerHello
from analyzer.protocols.tls.secrets import Secrets
from analyzer.protocols.tls.suites import suite_name

TLS11 = 0x0302
APPLICATION_DATA = 23
RECORD = 5
"""Octets of a record's header."""
Opened = tuple[int, bytes]
"""Type of the content, and the content."""
Ran = tuple[list[bytes | memoryview], list[int], int]
"""Contents of records, the positions behind them, and the type of the last."""
_RECORD_HEADER = Struct("!BHH")
"""Type, version, size."""
_PSEUDO_HEADER = Struct("!QBHH")
"""Sequence number, type, version, size of the content."""
_SMALL = 512
"""Octets that are copied rather than looked at through a view."""

_SUITE = re.compile(r"TLS_(?:\w+?_WITH_)?(?P<cipher>\w+?)(?:_(?P<hash>SHA384|SHA256|SHA|MD5))?$")


class Opener(Protocol):
    """One direction of a connection from where its records are protected."""

    sequence: int
    """Number of the next record."""
    early: bool
    """Records are early data (RFC 8446 2.3), by its own secret."""

    @property
    def missing(self) -> bool:
        """The secret that is needed now is not there (yet)."""

    def open(self, kind: int, version: int, fragment: bytes) -> Opened | None:
        """Open the next record, and count it; None (and nothing counted) when it cannot be opened."""

    def run(self, buf: bytes, pos: int) -> Ran:
        """Open whole records of outer type application data from `pos` on, up to the first that does not open or, that one
        included, is something else inside.

        Their contents, the positions behind them, and the type of the last.
        """

    def finished(self) -> None:
        """The side's Finished has passed (TLS 1.3: its traffic secret is in use from here)."""

    def updated(self) -> None:
        """The side's KeyUpdate has passed (RFC 8446 4.6.3)."""


def opener(
    secrets: Secrets, client: ClientHello, server: ServerHello, from_client: bool, derived: dict[bytes, bytes] | None = None
) -> Opener | None:
    """What opens a side's records; None without its secrets or for a cipher that is not read here.

    `derived` keeps what both sides of a handshake need: it is to be given again for the other side.
    """
    suite = _suite(server.suite)
    if suite is None:
        return None
    random = client.random
    if server.version >= TLS13:
        if suite.aead is None or suite.hash is None or not has_secret(secrets, client, server, from_client):
            return None
        early = from_client and client.early_data and secrets.get(_EARLY, random)
        labels = (_EARLY, *_LABELS[from_client]) if early else _LABELS[from_client]
        return _Opener13(suite.aead, suite.hash.lower(), labels, secrets, random)
    master = secrets.get("CLIENT_RANDOM", random)
    if master is None or server.version < 0x0301:
        return None
    return _opener12(suite, master, client, server, from_client, {} if derived is None else derived)


def has_secret(secrets: Secrets, client: ClientHello, server: ServerHello, from_client: bool) -> bool:
    """Whether there is a secret of a side of this connection."""
    labels = _LABELS[from_client] if server.version >= TLS13 else ("CLIENT_RANDOM",)
    return any(secrets.get(label, client.random) is not None for label in labels)


_EARLY = "CLIENT_EARLY_TRAFFIC_SECRET"
_LABELS: dict[bool, tuple[str, ...]] = {
    True: ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", "CLIENT_TRAFFIC_SECRET_0"),
    False: ("SERVER_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"),
}
"""Names of the client's (True) and the server's secrets in a key log, in the order of their use (RFC 8446 7.1)."""


class _Suite(NamedTuple):
    """A cipher suite as far as it tells how records are opened."""

    cipher: str
    hash: str | None
    aead: "_Aead | None"


@lru_cache(maxsize=512)
def _suite(code: int) -> _Suite | None:
    """A cipher suite by its number; None when its name says nothing."""
    found = _SUITE.match(suite_name(code))
    return _Suite(found["cipher"], found["hash"], _aead(found["cipher"])) if found else None


# key derivation


def p_hash(name: str, secret: bytes, seed: bytes, size: int) -> bytes:
    """P_hash (RFC 5246 5)."""
    out, a = b"", seed
    while len(out) < size:
        a = hmac.digest(secret, a, name)
        out += hmac.digest(secret, a + seed, name)
    return out[:size]


def key_block(version: int, prf_hash: str, master: bytes, client: bytes, server: bytes, size: int) -> bytes:
    """The key block (RFC 5246 6.3; RFC 2246 5 and 6.3 for older versions)."""
    seed = b"key expansion" + server + client
    if version >= TLS12:
        return p_hash(prf_hash, master, seed, size)
    half = (len(master) + 1) // 2
    md5, sha = p_hash("md5", master[:half], seed, size), p_hash("sha1", master[-half:], seed, size)
    return bytes(a ^ b for a, b in zip(md5, sha, strict=True))


def expand_label(name: str, secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 7.1); at most one hash long."""
    return hmac.digest(secret, _hkdf_label(label, size), name)[:size]


@lru_cache(maxsize=32)
def _hkdf_label(label: str, size: int) -> bytes:
    """HkdfLabel, and the number of the first block of HKDF-Expand (RFC 5869 2.3)."""
    full = b"tls13 " + label.encode()
    return size.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0\x01"


# ciphers


class _Aead(NamedTuple):
    """An authenticated cipher: octets of its key, of its tag, and how it is made from a key."""

    key: int
    tag: int
    make: Callable[[bytes], Any]


def _aead(cipher: str) -> _Aead | None:
    from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

    found = re.fullmatch(r"AES_(128|256)_(GCM|CCM|CCM_8)", cipher)
    if found:
        tag = 8 if found[2] == "CCM_8" else 16
        return _Aead(int(found[1]) // 8, tag, AESGCM if found[2] == "GCM" else lambda key: AESCCM(key, tag))
    return _Aead(32, 16, ChaCha20Poly1305) if cipher == "CHACHA20_POLY1305" else None


_NOT_OPENED = (InvalidTag, ValueError)


def _open(cipher: Any, nonce: bytes, sealed: bytes, header: bytes) -> bytes | None:
    try:
        opened: bytes = cipher.decrypt(nonce, sealed, header)
    except _NOT_OPENED:
        return None
    return opened


def _nonce(iv: bytes, sequence: int) -> bytes:
    """Per-record nonce (RFC 8446 5.3)."""
    return (int.from_bytes(iv, "big") ^ sequence).to_bytes(len(iv), "big")


class _Opener13:
    """TLS 1.3: the secret of early data where there is some, then of the handshake, then that of application data."""

    def __init__(self, cipher: _Aead, name: str, labels: tuple[str, ...], secrets: Secrets, random: bytes) -> None:
        self._cipher = cipher
        self._hash = name
        self._secrets = secrets
        self._random = random
        self._labels = labels
        self._traffic: bytes | None = None
        last = len(labels) - 1
        first = secrets.get(labels[0], random)
        self._use(0, first) if first is not None else self._use(last, secrets.get(labels[last], random))

    def _use(self, stage: int, secret: bytes | None) -> None:
        """Keys of the secret that is in use now."""
        self._stage = stage
        self.sequence = 0
        self.early = stage == len(self._labels) - 3
        self._key: Any = None
        if secret is not None:
            self._derive(secret)

    def _derive(self, secret: bytes) -> None:
        name, size = self._hash, self._cipher.key
        self._key = self._cipher.make(expand_label(name, secret, "key", size))
        self._iv = int.from_bytes(expand_label(name, secret, "iv", 12), "big")
        if self._stage == len(self._labels) - 1:
            self._traffic = secret

    @property
    def missing(self) -> bool:
        """Looks for it again."""
        if self._key is None:
            secret = self._secrets.get(self._labels[self._stage], self._random)
            if secret is not None:
                self._derive(secret)
        return self._key is None

    def open(self, kind: int, version: int, fragment: bytes) -> Opened | None:
        """TLSInnerPlaintext out of TLSCiphertext (RFC 8446 5.2), padding taken off."""
        if self._key is None or kind != APPLICATION_DATA or len(fragment) <= self._cipher.tag:
            return None
        header = _RECORD_HEADER.pack(kind, version, len(fragment))
        inner = _open(self._key, (self._iv ^ self.sequence).to_bytes(12, "big"), fragment, header)
        inner = inner.rstrip(b"\0") if inner is not None else None
        if not inner:
            return None
        self.sequence += 1
        return inner[-1], inner[:-1]

    def run(self, buf: bytes, pos: int) -> Ran:
        """The same for many records at once."""
        contents: list[bytes | memoryview] = []
        ends: list[int] = []
        kind = APPLICATION_DATA
        if self._key is None:
            return contents, ends, kind
        decrypt, iv, sequence, size, octets = self._key.decrypt, self._iv, self.sequence, len(buf), memoryview(buf)
        try:
            while kind == APPLICATION_DATA and pos + RECORD < size and buf[pos] == APPLICATION_DATA:
                begin = pos + RECORD
                end = begin + (buf[pos + 3] << 8 | buf[pos + 4])
                if end > size:
                    break
                inner = decrypt((iv ^ sequence).to_bytes(12, "big"), octets[begin:end], buf[pos:begin])
                if inner[-1] == 0:
                    inner = inner.rstrip(b"\0")
                kind = inner[-1]
                contents.append(inner[:-1] if len(inner) < _SMALL else memoryview(inner)[:-1])
                ends.append(end)
                pos = end
                sequence += 1
        except (*_NOT_OPENED, IndexError):  # nothing but padding, or not even that
            pass
        self.sequence = sequence
        return contents, ends, kind

    def finished(self) -> None:
        """From one secret to the next."""
        stage = self._stage + 1
        if stage < len(self._labels):
            self._use(stage, self._secrets.get(self._labels[stage], self._random))

    def updated(self) -> None:
        """To the next generation of traffic secrets (RFC 8446 7.2)."""
        if self._traffic is not None:
            size = hashlib.new(self._hash).digest_size
            self.sequence = 0
            self._derive(expand_label(self._hash, self._traffic, "traffic upd", size))


class _Opener12:
    """TLS 1.0 to 1.2: what the kinds of cipher have in common."""

    sequence = 0
    early = False
    missing = False

    def open(self, kind: int, version: int, fragment: bytes) -> Opened | None:
        """Content of a record, once its tag or MAC is known to be right."""
        content = self.content(kind, version, fragment)
        if content is None:
            return None
        self.sequence += 1
        return kind, content

    def run(self, buf: bytes, pos: int) -> Ran:
        """None here: record by record."""
        return [], [], APPLICATION_DATA

    def content(self, kind: int, version: int, fragment: bytes) -> bytes | None:
        """The same without counting."""
        raise NotImplementedError

    def header(self, kind: int, version: int, size: int) -> bytes:
        """What the tag or MAC covers besides the content (RFC 5246 6.2.3.1)."""
        return _PSEUDO_HEADER.pack(self.sequence, kind, version, size)

    def finished(self) -> None:
        """Nothing: keys change at ChangeCipherSpec."""

    def updated(self) -> None:
        """Nothing: there is no KeyUpdate."""


class _Aead12(_Opener12):
    """AES-GCM and AES-CCM with an explicit part of the nonce (RFC 5288 3, RFC 6655 3); ChaCha20 without (RFC 7905 2)."""

    def __init__(self, cipher: _Aead, key: bytes, iv: bytes) -> None:
        self._tag = cipher.tag
        self._key = cipher.make(key)
        self._iv = iv
        self._explicit = 12 - len(iv)

    def content(self, kind: int, version: int, fragment: bytes) -> bytes | None:
        """GenericAEADCipher (RFC 5246 6.2.3.3)."""
        size = len(fragment) - self._explicit - self._tag
        if size < 0:
            return None
        nonce = self._iv + fragment[: self._explicit] if self._explicit else _nonce(self._iv, self.sequence)
        return _open(self._key, nonce, fragment[self._explicit :], self.header(kind, version, size))

    def run(self, buf: bytes, pos: int) -> Ran:
        """The same for many records at once."""
        contents: list[bytes | memoryview] = []
        ends: list[int] = []
        decrypt, iv, sequence, size, octets = self._key.decrypt, self._iv, self.sequence, len(buf), memoryview(buf)
        explicit, whole = self._explicit, int.from_bytes(self._iv, "big")
        overhead = explicit + self._tag
        try:
            while pos + RECORD < size:
                kind, version, length = _RECORD_HEADER.unpack_from(buf, pos)
                begin = pos + RECORD
                end = begin + length
                if kind != APPLICATION_DATA or end > size or length < overhead:
                    break
                nonce = iv + buf[begin : begin + explicit] if explicit else (whole ^ sequence).to_bytes(12, "big")
                header = _PSEUDO_HEADER.pack(sequence, kind, version, length - overhead)
                contents.append(decrypt(nonce, octets[begin + explicit : end], header))
                ends.append(end)
                pos = end
                sequence += 1
        except _NOT_OPENED:
            pass
        self.sequence = sequence
        return contents, ends, APPLICATION_DATA


class _Macked(_Opener12):
    """Ciphers with a MAC: CBC (MAC first, or encrypt-then-MAC), RC4, NULL."""

    def __init__(self, cipher: Any, version: int, name: str, mac_key: bytes, iv: bytes, etm: bool) -> None:
        self._cipher = cipher
        self._chained = version < TLS11
        self._hash = name
        self._mac_key = mac_key
        self._mac = hashlib.new(name).digest_size
        self._iv = iv
        self._block = len(iv)
        self._etm = etm and self._block > 0
        self._stream: Any = None

    def content(self, kind: int, version: int, fragment: bytes) -> bytes | None:
        """GenericBlockCipher or GenericStreamCipher (RFC 5246 6.2.3.1, 6.2.3.2; RFC 7366 3)."""
        sealed = fragment
        if self._etm:
            sealed = self._checked(kind, version, fragment) or b""
        plain = self._block_plain(sealed) if self._block else self._stream_plain(sealed)
        if plain is None:
            return None
        content = plain if self._etm else self._checked(kind, version, plain)
        if content is not None and self._chained and self._block:
            self._iv = sealed[-self._block :]
        return content

    def _checked(self, kind: int, version: int, macked: bytes) -> bytes | None:
        """What is before the MAC, when the MAC is right."""
        size = len(macked) - self._mac
        if size < 0:
            return None
        content = macked[:size]
        right = hmac.digest(self._mac_key, self.header(kind, version, size) + content, self._hash)
        return content if hmac.compare_digest(right, macked[size:]) else None

    def _block_plain(self, sealed: bytes) -> bytes | None:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        block = self._block
        iv, sealed = (self._iv, sealed) if self._chained else (sealed[:block], sealed[block:])
        if len(iv) != block or not sealed or len(sealed) % block:
            return None
        reader = Cipher(self._cipher, modes.CBC(iv)).decryptor()
        plain: bytes = reader.update(sealed) + reader.finalize()
        padding = plain[-1] + 1
        return plain[:-padding] if padding <= len(plain) else None

    def _stream_plain(self, sealed: bytes) -> bytes | None:
        if self._cipher is None:
            return sealed
        from cryptography.hazmat.primitives.ciphers import Cipher

        self._stream = self._stream or Cipher(self._cipher, None).decryptor()
        plain: bytes = self._stream.update(sealed)
        return plain


def _opener12(
    suite: _Suite, master: bytes, client: ClientHello, server: ServerHello, from_client: bool, derived: dict[bytes, bytes]
) -> Opener | None:
    version, aead, mac = server.version, suite.aead, suite.hash
    if aead is not None:
        mac_size, key_size, iv_size = 0, aead.key, (12 if suite.cipher == "CHACHA20_POLY1305" else 4)
    else:
        shape = _plain_cipher(suite.cipher)
        if shape is None or mac is None:
            return None
        make, key_size, block = shape
        mac_size, iv_size = hashlib.new(_MACS[mac]).digest_size, block if version < TLS11 else 0
    keys = derived.get(server.random)
    if keys is None:
        prf = "sha384" if mac == "SHA384" else "sha256"
        keys = key_block(version, prf, master, client.random, server.random, 2 * (mac_size + key_size + iv_size))
        derived[server.random] = keys
    side = 0 if from_client else 1

    def part(begin: int, size: int) -> bytes:
        return keys[begin + side * size : begin + (side + 1) * size]

    mac_key, key = part(0, mac_size), part(2 * mac_size, key_size)
    iv = part(2 * (mac_size + key_size), iv_size)
    if aead is not None:
        return _Aead12(aead, key, iv)
    assert mac is not None
    return _Macked(make(key) if make else None, version, _MACS[mac], mac_key, iv or bytes(block), server.encrypt_then_mac)


_MACS = {"SHA": "sha1", "SHA256": "sha256", "SHA384": "sha384", "MD5": "md5"}


def _plain_cipher(cipher: str) -> tuple[Callable[[bytes], Any] | None, int, int] | None:
    """A cipher without authentication: how it is made, octets of its key and of its block (0: a stream)."""
    from cryptography.hazmat.decrepit.ciphers import algorithms as old
    from cryptography.hazmat.primitives.ciphers import algorithms

    return {
        "AES_128_CBC": (algorithms.AES, 16, 16),
        "AES_256_CBC": (algorithms.AES, 32, 16),
        "CAMELLIA_128_CBC": (getattr(old, "Camellia", None) or getattr(algorithms, "Camellia", None), 16, 16),
        "CAMELLIA_256_CBC": (getattr(old, "Camellia", None) or getattr(algorithms, "Camellia", None), 32, 16),
        "SEED_CBC": (old.SEED, 16, 16),
        "3DES_EDE_CBC": (old.TripleDES, 24, 8),
        "RC4_128": (old.ARC4, 16, 0),
        "NULL": (None, 0, 0),
    }.get(cipher)
