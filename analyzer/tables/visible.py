"""Traffic's text made harmless for terminals and spreadsheets: nothing in it acts, everything in it shows."""

import re

_INVISIBLE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: terminals obey them
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # bidi, zero width, line separators
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff"  # more of them
    "\ud800-\udfff"  # surrogates: no encoding takes them
    "]"
)
_FULL_WIDTH_FORMULA = "\uff1d\uff0b\uff0d\uff20"
_FORMULA = tuple("=+-@\t\r" + _FULL_WIDTH_FORMULA)
_HARMLESS = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?|\+OK|-ERR")


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # an octet of a file name that is not UTF-8 (PEP 383)
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """Text with control, bidi, zero-width and line-separating characters written out (`\\x1b`, `\\u202e`)."""
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub(_shown, text)


def encodable(text: str) -> str:
    """Text that every encoding of Unicode takes: lone surrogates are written out (`\\ud800`), the rest is untouched."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula: a cell that could be one gets a leading apostrophe (OWASP)."""
    if text.startswith(_FORMULA) and not _HARMLESS.fullmatch(text):
        return "'" + text
    return text
