"""What a lookup is for in the life of a message, by its name and type."""

from collections.abc import Sequence

_BLOCKLISTS = ("dbl.spamhaus.org", "multi.surbl.org", "multi.uribl.com", "fresh.fmb.la", "rhsbl.sorbs.net")
"""Blocklists asked about a domain, not an address: their names look like any other's."""
_HEX = frozenset("0123456789abcdef")


def purpose(qname: str, qtype: str, qclass: str, answers: Sequence[str] | None) -> str:
    """`mx address ptr spf dkim dmarc tlsa mta_sts tls_rpt bimi dnsbl other` of a question (name in lower case).

    The answers tell an SPF record under a name like `_spf.example.` (RFC 7208 5.2, include) from other texts.
    """
    if qclass not in ("IN", "ANY"):
        return "other"
    if qtype in ("MX", "PTR", "TLSA"):
        return qtype.lower()
    if qtype in ("A", "AAAA"):
        if _is_blocklist(qname):
            return "dnsbl"
        return "mta_sts" if qname.startswith("mta-sts.") else "address"  # RFC 8461 3.3: the policy's host
    if qtype == "SPF":
        return "spf"
    if qtype == "TXT":
        return _of_text(qname, answers)
    return "other"


def _of_text(qname: str, answers: Sequence[str] | None) -> str:
    labels = qname.split(".")
    if "_domainkey" in labels:  # RFC 6376 3.6.2.1
        return "dkim"
    if "_dmarc" in labels:  # RFC 7489 6.1, and 7.1 for `_report._dmarc`
        return "dmarc"
    if labels[0] == "_mta-sts":  # RFC 8461 3.1
        return "mta_sts"
    if labels[:2] == ["_smtp", "_tls"]:  # RFC 8460 3
        return "tls_rpt"
    if "_bimi" in labels[1:2]:
        return "bimi"
    if _is_blocklist(qname):
        return "dnsbl"
    if answers and any(' "v=spf1' in a.lower() for a in answers):
        return "spf"
    if labels[0] == "_spf" or (qname != "." and not any(label.startswith("_") for label in labels)):
        return "spf"
    return "other"


def _is_blocklist(qname: str) -> bool:
    """A reversed address under a zone other than the reverse zones (RFC 5782 2.1, 2.4), or a known domain list."""
    if qname[:1].isalnum() and not qname.endswith(".arpa."):
        labels = qname.split(".")
        if len(labels) > 6 and all(x.isdigit() and len(x) <= 3 and int(x) < 256 for x in labels[:4] if x.isascii()):
            return all(x.isascii() for x in labels[:4]) and not labels[4].isdigit()
        if len(labels) > 33 and all(len(x) == 1 and x in _HEX for x in labels[:32]):
            return True
    return qname[:-1].endswith(_BLOCKLISTS) and qname[:-1] not in _BLOCKLISTS
