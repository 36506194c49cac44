"""DKIM (RFC 6376) and ARC (RFC 8617) results of digested signatures, with keys from the captured answers.

The protocol room has reduced each signature to digests (protocols/signatures.py); a key decides.
"""

import binascii
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from analyzer.mail.authentication.answers import NOT_CAPTURED, UNKNOWN, Answer, Failure, NotCaptured, text
from analyzer.protocols.signatures import Signature, Signatures, tag_list

Ask = Callable[[str, str], Answer]
_SHORT = 1024
"""Bits that an RSA key needs at least (RFC 8301 3.2)."""
_KEYS = 8
"""Key records of one name tried."""


class Verdict(NamedTuple):
    """A result with the reason for it."""

    result: str
    """`pass fail neutral temperror permerror`, `not in the capture`, `unknown` where octets are missing."""
    reason: str


def check(signature: Signature, ts: int, ask: Ask) -> Verdict:
    """The result of one DKIM-Signature verified at a time (nanoseconds)."""
    if signature.fault is not None:
        return Verdict("permerror", signature.fault)
    found = _by_key(signature, ask)
    if found.result != "pass":
        return found
    if signature.algorithm == "rsa-sha1":
        return Verdict("permerror", "rsa-sha1 is not valid any more (RFC 8301 3.1)")
    if signature.expiration is not None and ts > signature.expiration * 1_000_000_000:
        return Verdict("fail", "the signature had expired")
    return Verdict("pass", f"{found.reason}, the end of the body is not signed" if signature.partial else found.reason)


def _by_key(signature: Signature, ask: Ask) -> Verdict:
    """What the body digest and the key say; a body that was changed needs no key."""
    if signature.body == "differs":
        return Verdict("fail", "the body was changed: its digest is not bh=")
    if signature.body == "short":
        return Verdict("fail", "the body is shorter than l=")
    if signature.body == "unseen":
        return Verdict(UNKNOWN, "incomplete: octets of the body are missing")
    name = f"{signature.selector}._domainkey.{signature.domain}"
    try:
        answer = ask(name, "TXT")
    except NotCaptured as lack:
        return Verdict(NOT_CAPTURED, str(lack))
    except Failure as wrong:
        return Verdict("temperror", f"{wrong} could not be found out")
    if not answer.data:
        return Verdict("permerror", f"there is no key {name}")
    found = None
    for rdata in answer.data[:_KEYS]:
        verdict = _verified(text(rdata), signature.algorithm, signature.signed, signature.value, _strict(signature))
        if verdict.result == "pass":
            return verdict
        found = found or verdict
    assert found is not None
    return found


def _strict(signature: Signature) -> bool:
    """i= names a subdomain, which a key with t=s forbids (3.6.1)."""
    return signature.identity is not None and signature.identity.rpartition("@")[2].lower() != signature.domain


@lru_cache(4096)
def _verified(record: bytes, algorithm: str, signed: bytes, value: bytes, subdomain: bool) -> Verdict:
    """Whether a key record (3.6.1) signed a digest."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
    from cryptography.hazmat.primitives.hashes import SHA1, SHA256
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    tags = tag_list(record)
    kind, _, hash_ = algorithm.partition("-")
    if tags.get(b"v", b"DKIM1") != b"DKIM1" or b"p" not in tags:
        return Verdict("permerror", "the key record cannot be understood")
    if not tags[b"p"]:
        return Verdict("permerror", "the key was revoked")
    if tags.get(b"k", b"rsa").lower() != kind.encode():
        return Verdict("permerror", f"the key is not for {algorithm}")
    allowed = [word.strip().lower() for word in tags.get(b"h", b"").split(b":")]
    if b"h" in tags and hash_.encode() not in allowed:
        return Verdict("permerror", f"the key is not for {hash_}")
    if not {b"*", b"email"} & {word.strip().lower() for word in tags.get(b"s", b"*").split(b":")}:
        return Verdict("permerror", "the key is not for mail")
    if subdomain and b"s" in {word.strip().lower() for word in tags.get(b"t", b"").split(b":")}:
        return Verdict("permerror", "the key is not for subdomains")
    try:
        octets = binascii.a2b_base64(tags[b"p"].replace(b" ", b""))
        if kind == "ed25519":
            Ed25519PublicKey.from_public_bytes(octets).verify(value, signed)
            return Verdict("pass", "ed25519 key")
        key = load_der_public_key(octets)
        if not isinstance(key, RSAPublicKey):
            return Verdict("permerror", "the key is no RSA key")
        if key.key_size < _SHORT:
            return Verdict("permerror", f"the key has {key.key_size} bits only (RFC 8301 3.2)")
        key.verify(value, signed, PKCS1v15(), Prehashed(SHA1() if hash_ == "sha1" else SHA256()))
    except InvalidSignature:
        return Verdict("fail", "the signature is not of these header fields")
    except (ValueError, UnsupportedAlgorithm):
        return Verdict("permerror", "the key cannot be understood")
    return Verdict("pass", f"{key.key_size} bit key")


def check_arc(signatures: Signatures, ask: Ask) -> Verdict:
    """The chain validation status (RFC 8617 5.2)."""
    if signatures.arc_fault is not None:
        return Verdict("fail", signatures.arc_fault)
    if not signatures.seals or signatures.message is None:
        return Verdict("none", "there is no ARC set")
    top = len(signatures.seals)
    for instance, seal in enumerate(signatures.seals, 1):
        if seal.chain == "fail":
            return Verdict("fail", f"set {instance} says that the chain had failed")
        if seal.chain != ("none" if instance == 1 else "pass"):
            return Verdict("fail", f"cv= of set {instance} is {(seal.chain or 'missing')[:20]}")
        if seal.fault is not None:
            return Verdict("fail", f"seal {instance}: {seal.fault}")
    if signatures.message.fault is not None:
        return Verdict("fail", f"message signature {top}: {signatures.message.fault}")
    unknown = None
    checked = [(f"message signature {top}", signatures.message)]
    checked += [(f"seal {instance}", seal) for instance, seal in reversed(list(enumerate(signatures.seals, 1)))]
    for what, signature in checked:
        found = _by_key(signature, ask)
        if found.result in (NOT_CAPTURED, UNKNOWN, "temperror"):
            unknown = unknown or Verdict(found.result, f"{what}: {found.reason}")
        elif found.result != "pass":
            return Verdict("fail", f"{what}: {found.reason}")
    return unknown or Verdict("pass", f"{top} set{'s' if top > 1 else ''}")
