"""Fingerprints of hellos: JA3 and JA3S (salesforce/ja3) and JA4 (FoxIO, BSD-3-Clause), made anew from their descriptions.

JA4S and the other fingerprints of the JA4+ family are under the FoxIO License, which is not compatible with the GPL: they are
not made here.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from analyzer.protocols.tls.hello import ALPN, SERVER_NAME, ClientHello, ServerHello

_VERSIONS = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}
_NOTHING = "0" * 12


def is_grease(number: int) -> bool:
    """A value that means nothing and is to be passed over (RFC 8701 2): 0x0A0A, 0x1A1A ... 0xFAFA."""
    return number & 0x0F0F == 0x0A0A and number >> 8 == number & 0xFF


def ja3(hello: ClientHello) -> str:
    """MD5 of version, suites, extensions, groups and point formats, in the client's order."""
    lists = (hello.suites, hello.extensions, hello.groups, hello.point_formats)
    return _md5(",".join((str(hello.version), *(_decimal(numbers) for numbers in lists))))


def ja3s(hello: ServerHello) -> str:
    """MD5 of version, suite and extensions of the server's answer."""
    return _ja3s(hello.legacy_version, hello.suite, hello.extensions)


@lru_cache(maxsize=128)
def _ja3s(version: int, suite: int, extensions: tuple[int, ...]) -> str:
    return _md5(f"{version},{suite},{_decimal(extensions)}")


def ja4(hello: ClientHello) -> str:
    """`t13d1516h2_8daaf6152771_e5627efa2ab1`: what can be read, then digests of the suites and of the extensions, each sorted."""
    suites, kinds = _plain(hello.suites), _plain(hello.extensions)
    version = max(_plain(hello.versions), default=hello.version)
    name = "d" if SERVER_NAME in kinds else "i"
    counts = f"{min(len(suites), 99):02}{min(len(kinds), 99):02}"
    first = f"t{_VERSIONS.get(version, '00')}{name}{counts}{_ends(hello.alpn)}"
    others = _hex(sorted(kind for kind in kinds if kind not in (SERVER_NAME, ALPN)))
    signatures = _hex(_plain(hello.signatures))
    last = _sha256(f"{others}_{signatures}" if signatures else others) if kinds else _NOTHING
    return f"{first}_{_sha256(_hex(sorted(suites))) if suites else _NOTHING}_{last}"


def _ends(alpn: tuple[bytes, ...]) -> str:
    """First and last character of the first ALPN name, of its hexadecimal form when they are no letters or digits."""
    name = alpn[0] if alpn else b""
    if not name:
        return "00"
    if not name[:1].isalnum() or not name[-1:].isalnum():
        return name.hex()[0] + name.hex()[-1]
    return chr(name[0]) + chr(name[-1])


def _plain(numbers: Iterable[int]) -> list[int]:
    return [number for number in numbers if not is_grease(number)]


def _decimal(numbers: Iterable[int]) -> str:
    return "-".join(map(str, _plain(numbers)))


def _hex(numbers: Iterable[int]) -> str:
    return ",".join(f"{number:04x}" for number in numbers)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
