"""What a server calls a message, out of its final reply: each mail server has its own words for it."""

import re
from functools import lru_cache

from analyzer.protocols.base import text

_PATTERNS = (
    # server: its words; the first group is the queue id
    r"<[^<> ]*> (?P<dovecot>[A-Za-z0-9+/=]{8,64}(?::[A-Z]\d+)*) Saved",  # Dovecot LMTP; `:T2`, its second transaction
    r"queued(?: on \S+)? as:? \(?(?P<postfix>[^\s,;<>()]+)",  # Postfix, Amavis, Yandex, MailHog, Mailpit, Haraka
    r"\bid=(?P<exim>[A-Za-z0-9.:+/=_-]+)",  # Exim, SMTP2GO
    r"\bids=(?P<kumo>[A-Za-z0-9.:_-]+)",  # KumoMTA
    r"SESSIONID=<(?P<cyrus>[^>]*)>",  # Cyrus LMTP
    r"\[InternalId=(?P<exchange>\d+)",  # Exchange 2007 and later
    r"\b\d{9,11} (?P<gmail>[A-Za-z0-9._-]+) - gsmtp",  # Google
    r"\bok \d{9,11} qp (?P<qmail>\d+)",  # qmail: the process that queued it
    r"\bqueued(?: with)? id:? (?P<stalwart>[A-Za-z0-9._-]+)",  # Stalwart and others
    r"\bqueued \((?P<haraka>[A-Za-z0-9._-]+)\)",  # Haraka
    r"\bMessage (?P<ironport>\d+) accepted",  # Cisco
    r"(?:^| )(?P<sendmail>[A-Za-z0-9][A-Za-z0-9._-]{4,63}):? Message (?:accepted|queued)",  # Sendmail, OpenSMTPD, Proofpoint
    r"^(?P<communigate>\d+) message accepted",  # CommuniGate Pro
    r"^ok:?\.? (?P<courier>[0-9a-f]{8,16}(?:\.[0-9a-f]{8,16})+)",  # Courier
    r"^ok:? (?P<ses>[0-9a-f]{8,}(?:-[0-9a-f]+)+)",  # Amazon SES
)
_QUEUE_ID = re.compile("|".join(_PATTERNS), re.IGNORECASE)
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}[ :]+")


def queue_id(reply_text: str) -> str | None:
    """The id in a positive reply's text (enhanced code first or not); None when it names none."""
    _, common, rest = reply_text.rpartition("queued as ")
    if common and rest and rest.isalnum():  # Postfix, and all who speak like it
        return rest
    found = _ENHANCED.match(reply_text)
    hit = _QUEUE_ID.search(reply_text[found.end() :] if found else reply_text)
    return hit[hit.lastgroup].rstrip(".") or None if hit and hit.lastgroup else None


_SOFTWARE = re.compile(
    rb"Postfix(?: \([\w ./-]{1,40}\))?|Exim(?: [\w.]{1,20})?|Sendmail(?: [\w./-]{1,40})?"
    rb"|Microsoft ESMTP MAIL Service(?:, Version: [\d.]+)?|OpenSMTPD|Dovecot(?: \([^)]{1,40}\))?|Haraka(?:/[\w.]+)?|gsmtp"
    rb"|qmail|MailEnable|MDaemon[ \w.]{0,20}|hMailServer|Kerio Connect(?: [\w.]{1,20})?|Zimbra|Courier"
    rb"|Cyrus(?: v?[\w.+-]{1,40})?|MailHog|Mailpit|PowerMTA(?:\(TM\))?(?: v?[\w.]{1,20})?|KumoMTA|Stalwart|Maddy"
    rb"|IceWarp(?: [\w.]{1,20})?|CommuniGate Pro(?: [\w.]{1,20})?|(?:Lotus )?Domino(?: Release [\w.]{1,20})?|GroupWise"
    rb"|Axigen|SurgeMail|SmarterMail|Mercury(?:/32 v[\w.]+)?|XMail(?: [\w.]{1,20})?|GreenMail|smtp4dev"
    rb"|Python SMTP(?: proxy version)? [\w.]{1,20}|InterMail[ \w.]{0,30}|IMail(?: [\w.]{1,20})?"
    rb"|MailSite(?: ESMTP Receiver)?(?: Version [\w.]{1,20})?|Apache James|JAMES"
    rb"|Oracle Communications Messaging[\w ./-]{0,40}|Sun Java System Messaging|Symantec Messaging Gateway|Proofpoint"
    rb"|Barracuda|IronPort|FortiMail|SonicWALL|WildDuck|ZoneMTA",
    re.IGNORECASE,
)
"""Mail servers as their greetings name them."""


@lru_cache(maxsize=1024)
def software(greeting: bytes) -> str | None:
    """The mail server that a greeting names, as written there."""
    found = _SOFTWARE.search(greeting)
    return text(found[0]).strip() if found else None
