"""What a file that is no capture of ours looks like, and what to do about it."""

import re
import struct

LOOK = 4096
"""First octets worth looking at."""
_YEAR_1990, _YEAR_2100 = 631_152_000, 4_102_444_800

_EDITCAP = "convert it: editcap -F pcapng IN OUT.pcapng"
_UNPACK = "unpack it and give the capture inside"
_RECORD = "record packets instead: tcpdump -w FILE, dumpcap -w FILE"

_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"RTSS", "a Microsoft Network Monitor 1 capture", _EDITCAP),
    (b"GMBU", "a Microsoft Network Monitor 2 capture", _EDITCAP),
    (b"TRSNIFF data    \x1a", "a DOS Sniffer capture", _EDITCAP),
    (b"XCP\0", "a NetXRay or Windows Sniffer capture", _EDITCAP),
    (b"\x7fver", "an EtherPeek or OmniPeek capture", _EDITCAP),
    (b"ObserverPktBuffer", "a Network Instruments Observer capture", _EDITCAP),
    (b"\x05VNF", "a Visual Networks capture", _EDITCAP),
    (b"iptrace ", "an AIX iptrace capture", _EDITCAP),
    (b"btsnoop\0", "a Bluetooth HCI log", "mail does not travel there"),
    (b"$ Packet", "a 5View capture", _EDITCAP),
    (b"PK\3\4", "a ZIP archive", _UNPACK),
    (b"PK\5\6", "an empty ZIP archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\7", "a RAR archive", _UNPACK),
    (b"\x1f\x9d", "a compress (.Z) file", "unpack it with uncompress first"),
    (b"LZIP", "an lzip file", "unpack it with lzip -d first"),
    (b"\x02\x21\x4c\x18", "an lz4 file of the old kind", "unpack it with lz4 -d first"),
    (b"%PDF-", "a PDF document", _RECORD),
    (b"SQLite format 3\0", "an SQLite database", _RECORD),
    (b"PAR1", "a Parquet table", _RECORD),
    (b"\x7fELF", "a program", _RECORD),
    (b"MZ", "a Windows program", _RECORD),
    (b"Obj\1", "an Avro file", _RECORD),
    (b"\x89PNG", "a picture", _RECORD),
    (b"\xd0\xcf\x11\xe0", "a Microsoft Office or Outlook .msg file", _RECORD),
    (b"!BDN", "an Outlook .pst mailbox", "this reads packets, not mailboxes"),
    (b"\n\r\n", "a pcapng file spoilt by a text-mode transfer", "transfer it again, in binary mode"),
    (b"\n\n\n", "a pcapng file spoilt by a change of line ends", "transfer it again, in binary mode"),
)
_KEY_LOG = re.compile(
    rb"(#[^\n]*\n|\s)*(CLIENT_RANDOM|RSA|(CLIENT|SERVER)_(HANDSHAKE_)?TRAFFIC_SECRET(_\d)?|(CLIENT_)?EARLY\w*|EXPORTER\w*)"
    rb" [0-9a-fA-F]{8}"
)
_TEXTS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (_KEY_LOG, "a TLS key log", "give it with --keylog and a capture beside it"),
    (re.compile(rb"From [^\n]+\d\d:\d\d"), "an mbox mailbox", "this reads packets, not mailboxes"),
    (
        re.compile(
            rb"(?i)(Received|Return-Path|Delivered-To|From|To|Subject|Date|Message-ID|DKIM-Signature|X-[\w-]+|MIME-Version): "
        ),
        "an e-mail message",
        "this reads packets, not messages",
    ),
    (re.compile(rb'\s*\{\s*"log"\s*:'), "an HTTP archive (HAR)", _RECORD),
    (re.compile(rb'\s*[\[{]\s*["\[{}\]]'), "JSON text", _RECORD),
    (re.compile(rb"(?i)\s*<(!doctype html|html)"), "an HTML page", "was it downloaded while logged in?"),
    (re.compile(rb"\s*<\?xml|\s*<"), "XML text", _RECORD),
    (
        re.compile(rb"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\.\d+ (IP6?|ARP|ethertype)\b"),
        "what tcpdump printed",
        "record the packets themselves: tcpdump -w FILE",
    ),
    (re.compile(rb"[ \t]*0{4,8}:? +[0-9a-fA-F]{2}"), "a hex dump", "turn it into a capture with text2pcap"),
    (re.compile(rb"\w{3} [ \d]\d \d\d:\d\d:\d\d |\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"), "a log file", _RECORD),
)


def looks_like(head: bytes) -> tuple[str, str] | None:
    """What a file beginning like this seems to be, with its article, and what to do; None: no idea."""
    for magic, what, fix in _MAGICS:
        if head.startswith(magic):
            return what, fix
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if _is_etl(head):
        return "a Windows event trace (ETL)", "convert it: etl2pcapng IN.etl OUT.pcapng"
    if not head.strip(b"\0"):
        return "a file of zeros", "was it copied, or the disk full?"
    if _is_text(head):
        for pattern, what, fix in _TEXTS:
            if pattern.match(head):
                return what, fix
        return "text", _RECORD
    if _is_erf(head):
        return "an Endace ERF capture", _EDITCAP
    return None


def _is_text(head: bytes) -> bool:
    """UTF-8 or Latin-1 text: no control characters but those of lines and terminals."""
    return not re.search(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f]", head.removeprefix(b"\xff\xfe"))


def _is_etl(head: bytes) -> bool:
    """The first buffer of an ETL file: its size, how far it is filled, and a system header within."""
    if len(head) < 0x60:
        return False
    size, saved, current = struct.unpack_from("<III", head)
    return 1024 <= size <= 1 << 24 and size % 1024 == 0 and 0x48 < saved <= size and current <= size and head[0x4B] == 0xC0


def _is_erf(head: bytes) -> bool:
    """ERF has no magic: records whose times, types and lengths make sense, one after the other."""
    at = count = 0
    while at + 16 <= len(head):
        _, seconds, kind, _, size, _, wire = struct.unpack_from("<II", head, at) + struct.unpack_from(">BBHHH", head, at + 8)
        if not (_YEAR_1990 < seconds < _YEAR_2100 and 1 <= kind & 0x7F <= 48 and 16 <= size <= wire + 64):
            return False
        at, count = at + size, count + 1
    return count > 1 or (count == 1 and at == len(head))
