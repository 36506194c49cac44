"""What every protocol session takes and gives.

Rules of this room:
1. A session is sans-IO: `feed(*chunks)` and `close(reason, ts)` return events; no clock, no I/O, no logging.
2. A session reads each direction from an `Inbox` and waits only where the grammar makes it wait (the reply to
   DATA decides what the client's next octets are).  It never looks at which chunk came first.
3. Grammar functions are pure and raise `Malformed`; one place in the session turns it into an `Anomaly`.
4. Secrets (AUTH, PASS, LOGIN, SASL responses) are dropped as they are read: `***` is all that leaves.
5. Text leaves as str, decoded by `text()`; octets that are not UTF-8 show as `\\xfc`.
"""

import base64
import hashlib
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from analyzer.limits import Limits
from analyzer.protocols import proxy
from analyzer.protocols.forward import Forward
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.signatures import Signatures
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import Chunk, Connection


class Malformed(ValueError):
    """Raised by grammar functions: the octets are not the production.  Never leaves this room."""


def text(octets: bytes) -> str:
    """Octets as text: UTF-8, what is not shown as `\\xNN`; nothing is lost or guessed."""
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError:
        return octets.decode("utf-8", "backslashreplace")


class Command(NamedTuple):
    """One command and its reply (a row of `commands`)."""

    session_id: Annotated[str, "the session it was given in"]
    n: Annotated[int, "number of the command in the session, from 1"]
    ts: Annotated[int | None, "first octet of the command"]
    ts_reply: Annotated[int | None, "last octet of its (final) reply"]
    latency_s: Annotated[float | None, "from the command's last octet to its reply's first"]
    protocol: Annotated[str, "`smtp lmtp pop3 imap`"]
    tag: Annotated[str | None, "IMAP tag"]
    verb: Annotated[str, "command word in upper case; IMAP `UID FETCH` in full"]
    argument: Annotated[str | None, "the rest of the command; secrets are `***`"]
    status: Annotated[str | None, "SMTP reply code as text, `+OK` or `-ERR`, `OK`, `NO` or `BAD`"]
    enhanced_code: Annotated[str | None, "enhanced status code of the reply (RFC 3463)"]
    reply_text: Annotated[str | None, "text of the reply, lines joined by a blank"]
    pipelined: Annotated[bool, "sent before the previous command was answered"]
    frame: Annotated[int | None, "frame with the command's first octet"]
    reply_frame: Annotated[int | None, "frame with the reply's last octet"]


class SessionRow(NamedTuple):
    """One mail connection that carried payload (a row of `sessions`)."""

    session_id: Annotated[str, "stable id"]
    source: Annotated[str, "capture file or interface"]
    ts: Annotated[int | None, "first frame"]
    ts_end: Annotated[int | None, "last frame"]
    protocol: Annotated[str, "`smtp lmtp pop3 imap`"]
    client_ip: Annotated[str, "address of the client"]
    client_port: Annotated[int, "port of the client"]
    server_ip: Annotated[str, "address of the server"]
    server_port: Annotated[int, "port of the server"]
    community_id: Annotated[str, "flow hash as other tools write it (Community ID v1)"]
    client_name: Annotated[str | None, "what the client called itself (EHLO, LHLO, IMAP ID)"]
    server_name: Annotated[str | None, "what the server called itself (greeting, EHLO reply)"]
    server_software: Annotated[str | None, "software named in the greeting"]
    tls: Annotated[str, "`none starttls implicit`"]
    tls_version: Annotated[str | None, "TLS version agreed on"]
    tls_cipher: Annotated[str | None, "cipher suite agreed on (IANA name)"]
    sni: Annotated[str | None, "server name the client asked for"]
    visibility: Annotated[str, "`clear decrypted opaque`"]
    auth_mechanism: Annotated[str | None, "SASL mechanism, or `USER`, `APOP`, `LOGIN`"]
    auth_user: Annotated[str | None, "who logged in"]
    auth_ok: Annotated[bool | None, "whether the login succeeded"]
    commands: Annotated[int, "commands seen"]
    messages: Annotated[int, "messages carried (hop rows of this session)"]
    client_bytes: Annotated[int, "payload octets from the client, each once"]
    server_bytes: Annotated[int, "payload octets from the server, each once"]
    gap_bytes: Annotated[int, "octets lost to the capture"]
    start: Annotated[str, "`handshake` seen, or joined `mid`"]
    end: Annotated[str, "`quit fin reset timeout capture_end`"]
    tcp_stream: Annotated[int, "number of the TCP conversation in the source, as Wireshark's tcp.stream"]
    first_frame: Annotated[int | None, "first frame within the source"]
    last_frame: Annotated[int | None, "last frame within the source"]
    wireshark: Annotated[str, "display filter that shows it"]
    stated_client_ip: Annotated[str | None, "the real client by XCLIENT, XFORWARD or PROXY, when the client is a proxy"] = None
    starttls: Annotated[
        str | None,
        "STARTTLS or STLS: `offered` and not used, `used`, `refused`, `stripped` (taken out of the dialogue, as the anomaly "
        "`starttls_stripped` says); null when not offered",
    ] = None
    alpn: Annotated[str | None, "application protocol the server chose (RFC 7301; TLS 1.3: only with keys)"] = None
    alpn_offered: Annotated[list[str] | None, "application protocols the client offered"] = None
    ja3: Annotated[str | None, "JA3 fingerprint of the ClientHello"] = None
    ja3s: Annotated[str | None, "JA3S fingerprint of the ServerHello"] = None
    ja4: Annotated[str | None, "JA4 fingerprint of the ClientHello"] = None
    cert_subject: Annotated[str | None, "subject of the server's certificate (TLS 1.3: only with keys)"] = None
    cert_issuer: Annotated[str | None, "issuer of the server's certificate"] = None
    cert_names: Annotated[list[str] | None, "names in its subjectAltName; its common names when it has none"] = None
    cert_sha256: Annotated[list[str] | None, "SHA-256 of each certificate the server sent, its own first"] = None
    ts_cert_not_before: Annotated[int | None, "the server's certificate is valid from"] = None
    ts_cert_not_after: Annotated[int | None, "the server's certificate is valid until"] = None
    client_cert_subject: Annotated[str | None, "subject of the client's certificate"] = None
    client_cert_sha256: Annotated[str | None, "SHA-256 of the client's certificate"] = None
    tls_resumed: Annotated[bool | None, "the handshake resumed an earlier session (identifier, ticket or PSK)"] = None
    tls_handshake_s: Annotated[float | None, "from the ClientHello to the first application data (TLS 1.3: client Finished)"] = (
        None
    )
    tls_client_bytes: Annotated[int | None, "octets the client sent inside TLS after the handshake, record overhead included"] = (
        None
    )
    tls_server_bytes: Annotated[int | None, "octets the server sent inside TLS after the handshake, record overhead included"] = (
        None
    )
    ts_tls_client: Annotated[int | None, "last octets of the client inside TLS"] = None
    ts_tls_server: Annotated[int | None, "last octets of the server inside TLS"] = None
    tls_unread_bytes: Annotated[int | None, "octets inside TLS that the secrets given did not open"] = None


@dataclass(slots=True, eq=False)
class SessionInfo:
    """What is known of a live session; the same object goes with each of its events, and grows.

    Times are nanoseconds, None when not seen.  mail/ reads it for roles and phases.
    """

    session_id: str
    protocol: str
    source: str
    client_ip: str
    client_port: int
    server_ip: str
    server_port: int
    tcp_stream: int
    connection: Connection
    client_name: str | None = None
    server_name: str | None = None
    server_software: str | None = None
    capabilities: list[str] = field(default_factory=list)
    """EHLO keywords, CAPA or CAPABILITY words, upper case."""
    tls: str = "none"
    starttls: str | None = None
    """`offered`, `refused`, `used`, `stripped`; None when never offered."""
    tls_version: str | None = None
    tls_cipher: str | None = None
    sni: str | None = None
    facts: Any = None
    """What else is known of its TLS (`tls.Facts`); None without TLS."""
    visibility: str = "clear"
    auth_mechanism: str | None = None
    auth_user: str | None = None
    auth_ok: bool | None = None
    stated_client_ip: str | None = None
    """The real client by XCLIENT, XFORWARD or PROXY, when this connection is a proxy's."""
    commands: int = 0
    messages: int = 0
    end: str | None = None
    ts_banner: int | None = None
    """Last octet of the server's greeting."""
    ts_greeted: int | None = None
    """Last octet of the first EHLO/HELO/LHLO reply (SMTP); else as ts_banner."""
    ts_starttls: int | None = None
    """First octet of STARTTLS/STLS."""
    ts_tls_done: int | None = None
    """End of the TLS handshake: first application data."""
    ts_auth: int | None = None
    """First octet of the login command that succeeded (or of the last tried)."""
    ts_auth_done: int | None = None
    frame_banner: int | None = None
    frame_greeted: int | None = None
    frame_starttls: int | None = None
    frame_auth: int | None = None
    """Frames of the reply that ended each phase."""


@dataclass(slots=True, eq=False)
class Recipient:
    """One RCPT of a transaction and what became of it."""

    address: str
    """Forward-path without angle brackets."""
    parameters: str | None = None
    ts: int | None = None
    outcome: str = "unknown"
    """`accepted rejected deferred unknown`: the final word, which for LMTP is the reply after the data (RFC 2033)."""
    code: int | None = None
    enhanced_code: str | None = None
    reply_text: str | None = None
    accepted_by_rcpt: bool | None = None
    """What the reply to RCPT itself said."""
    frame: int | None = None


@dataclass(slots=True, eq=False)
class Content:
    """A message's octets, as far as seen: digests and header fields, not the body itself."""

    size: int
    """Octets seen, CRLF line ends, after dot-unstuffing."""
    complete: bool
    missing_bytes: int = 0
    """Octets known to be lost; 0 when their number is not known."""
    sha256: str | None = None
    """Of all octets; only when complete."""
    body_digest: str | None = None
    """SHA-1 of the octets after the empty line; only when complete.  The strongest key for joining hops."""
    body_size: int | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    """Header fields in order, name in lower case, raw value unfolded (CRLF removed before white space) and stripped.
    Only fields listed in message.KEPT_FIELDS, at most limits.trace_fields of each name."""
    message_id: str | None = None
    """With angle brackets, as in the header; None when absent or not seen."""
    header_complete: bool = True
    report: bytes | None = None
    """First octets of the body when it is multipart/report or message/*: for DSN and MDN parts."""
    body: Any = None
    """All octets seen, header section included (`bodies.Body`); only when `limits.bodies` keeps them."""
    signatures: Signatures | None = None
    """DKIM signatures and ARC sets, when the whole header section was seen and has any."""


@dataclass(slots=True, eq=False)
class MessageCarried:
    """A message crossed this session: the only door into mail/ (with dns.Transaction and MailboxEvent).

    One for every SMTP/LMTP transaction that reached MAIL, every message retrieved, every APPEND.
    """

    session: SessionInfo
    kind: str
    """`transaction retrieve append`."""
    index: int
    """1.. in the session."""
    ts_start: int | None
    """First octet of MAIL / RETR / FETCH / APPEND."""
    ts_data: int | None = None
    """First octet of the message."""
    ts_eom: int | None = None
    """Last octet of the message (final dot, last literal octet)."""
    ts_end: int | None = None
    """Last octet of the deciding reply."""
    first_frame: int | None = None
    last_frame: int | None = None
    mail_from: str | None = None
    """Reverse-path without brackets; "" is the null reverse-path."""
    mail_parameters: str | None = None
    recipients: list[Recipient] = field(default_factory=list)
    outcome: str = "unknown"
    """`accepted rejected deferred aborted partial unknown`."""
    code: int | None = None
    """Deciding reply code; for a refused transaction the code of the command that failed it."""
    enhanced_code: str | None = None
    reply_text: str | None = None
    queue_id: str | None = None
    """What the server called it, out of its final reply."""
    content: Content | None = None
    """None when no message octet was expected (refused before data)."""
    ts_rcpt_done: int | None = None
    """Reply to the last RCPT, or to DATA (354): the envelope phase ends."""
    mailbox: str | None = None
    """IMAP mailbox (decoded name); POP3: None."""
    uidvalidity: int | None = None
    uid: int | None = None
    number: int | None = None
    """POP3 message number or IMAP sequence number."""
    uidl: str | None = None
    """POP3 unique-id when known."""
    flags: tuple[str, ...] = ()


class MailboxEvent(NamedTuple):
    """Something happened to a message in its mailbox (POP3 or IMAP)."""

    ts: int
    session: SessionInfo
    event: str
    """`notified flagged copied moved deleted expunged` (see the contract's timeline events)."""
    frame: int | None
    mailbox: str | None
    uidvalidity: int | None
    uid: int | None
    number: int | None
    uidl: str | None
    detail: str
    """In words: `+FLAGS (\\Seen)`, `to Archive as UID 7`."""
    new_mailbox: str | None = None
    new_uidvalidity: int | None = None
    new_uid: int | None = None
    """Where a copied or moved message is now (RFC 4315 COPYUID)."""
    message_id: str | None = None
    """Message-ID of the message when this session has shown it (FETCH ENVELOPE or headers)."""


class SessionEnded(NamedTuple):
    """A session is over: its row, and its info for mail/."""

    info: SessionInfo
    row: SessionRow


Event = Command | MessageCarried | MailboxEvent | SessionEnded | Anomaly | Any
"""What `feed` and `close` return lists of (`Any`: dns.Transaction, the row of `dns`)."""


class Recognised(NamedTuple):
    """Answer of a probe: this connection speaks the protocol."""

    protocol: str
    """Key of the registry: `smtp pop3 imap dns`, or None-like "" for "surely none of ours"."""
    client_is_orig: bool = True
    """False when a capture that joined mid-stream took the server for the originator."""


def community_id(conn: Connection) -> str:
    """Community ID v1 of a TCP connection, seed 0 (the flow hash that Zeek, Suricata and Arkime write)."""
    a = (_packed(conn.orig_ip), conn.orig_port)
    b = (_packed(conn.resp_ip), conn.resp_port)
    if b < a:
        a, b = b, a
    packed = struct.pack("!H", 0) + a[0] + b[0] + struct.pack("!BBHH", 6, 0, a[1], b[1])
    return "1:" + base64.b64encode(hashlib.sha1(packed, usedforsecurity=False).digest()).decode()


def _packed(address: str) -> bytes:
    """An address as its octets."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def session_id(conn: Connection) -> str:
    """Stable id of a session: the same for the same packets on any machine, however the capture was split."""
    ends = sorted([f"{conn.orig_ip}:{conn.orig_port}", f"{conn.resp_ip}:{conn.resp_port}"])
    return hashlib.sha256(f"{ends[0]} {ends[1]} {conn.ts}".encode()).hexdigest()[:16]


def session_row(info: SessionInfo, client_is_orig: bool) -> SessionRow:
    """The finished row of a session."""
    conn = info.connection
    mine, theirs = (conn.orig_bytes, conn.resp_bytes) if client_is_orig else (conn.resp_bytes, conn.orig_bytes)
    return SessionRow(
        session_id=info.session_id,
        source=info.source,
        ts=conn.ts,
        ts_end=conn.ts_last,
        protocol=info.protocol,
        client_ip=info.client_ip,
        client_port=info.client_port,
        server_ip=info.server_ip,
        server_port=info.server_port,
        community_id=community_id(conn),
        client_name=info.client_name,
        server_name=info.server_name,
        server_software=info.server_software,
        tls=info.tls,
        tls_version=info.tls_version,
        tls_cipher=info.tls_cipher,
        sni=info.sni,
        visibility=info.visibility,
        auth_mechanism=info.auth_mechanism,
        auth_user=info.auth_user,
        auth_ok=info.auth_ok,
        commands=info.commands,
        messages=info.messages,
        client_bytes=mine,
        server_bytes=theirs,
        gap_bytes=conn.gap_bytes,
        start=conn.start,
        end=info.end or conn.end or "capture_end",
        tcp_stream=conn.tcp_stream,
        first_frame=conn.first_frame,
        last_frame=conn.last_frame,
        wireshark=f"tcp.stream == {conn.tcp_stream}",
        stated_client_ip=info.stated_client_ip,
        starttls=info.starttls,
        **(info.facts.columns() if info.facts is not None else {}),
    )


class Session:
    """Base of the protocol sessions.  Subclasses set `protocol` and implement `pump` and `finish`.

    `feed` routes chunks to the inboxes of their directions (through the TLS layer once that has begun) and pumps;
    `close` drains what is left and ends with `SessionEnded`.
    """

    protocol = ""

    def __init__(self, conn: Connection, client_is_orig: bool, limits: Limits) -> None:
        self.limits = limits
        self.client_is_orig = client_is_orig
        client, server = ((conn.orig_ip, conn.orig_port), (conn.resp_ip, conn.resp_port))
        if not client_is_orig:
            client, server = server, client
        self.info = SessionInfo(
            session_id=session_id(conn),
            protocol=self.protocol,
            source=conn.source,
            client_ip=client[0],
            client_port=client[1],
            server_ip=server[0],
            server_port=server[1],
            tcp_stream=conn.tcp_stream,
            connection=conn,
        )
        self.client = Inbox(limits)
        self.server = Inbox(limits)
        self._preface = Inbox(limits) if conn.start == "handshake" else None
        """The client's first octets, while they may be a PROXY header."""
        self._of_proxy: dict[bool, int] = {}
        """Octets to come of the originator (True) and the responder that are a forwarding proxy's."""
        self.events: list[Event] = []
        self.tls: Any = None
        """The TLS layer (`tls.Layer`), once the session is inside TLS."""
        self.secrets: Any = None
        """TLS secrets of the run (`tls.Secrets`), set by the pipeline when there are any."""

    def feed(self, *chunks: Chunk) -> list[Event]:
        """Take ordered octets, each chunk of one direction; return what they complete."""
        for chunk in chunks:
            if chunk.gap:  # what is kept while a loss is looked at must not hold all that lies behind it, loss after loss
                self._decrypt()
                self.pump()
            self._route(chunk)
        self._decrypt()
        self.pump()
        events, self.events = self.events, []
        return events

    def _route(self, chunk: Chunk) -> None:
        """Take a chunk into the inbox or the TLS layer."""
        from_client = chunk.orig == self.client_is_orig
        if chunk.orig in self._of_proxy:
            behind = self._behind_proxy(chunk)
            if behind is None:
                return
            chunk = behind
        for part in (chunk,) if self._preface is None or not from_client else self._past_preface(self._preface, chunk):
            if self.tls is not None:
                self.tls.take(part, from_client)
            else:
                (self.client if from_client else self.server).append(part)

    def go_through(self, way: Forward) -> None:
        """The connection is handed on by a proxy: what is said to it is passed over.  Before anything is fed."""
        conn = self.info.connection
        self._of_proxy = {True: way.orig, False: way.resp}
        self.weird("through_proxy", f"{way.kind} to {way.host} port {way.port}", conn.ts, conn.first_frame)

    def _behind_proxy(self, chunk: Chunk) -> Chunk | None:
        """A chunk without what is the proxy's."""
        left = self._of_proxy[chunk.orig]
        if not chunk.gap and len(chunk.data) <= left:
            self._of_proxy[chunk.orig] = left - len(chunk.data)
            return None
        del self._of_proxy[chunk.orig]
        if chunk.gap or not left:
            return chunk
        inbox = Inbox(self.limits)
        inbox.append(chunk)
        inbox.take(left)
        (rest,) = inbox.unread(chunk.orig)
        return rest

    def _past_preface(self, inbox: Inbox, chunk: Chunk) -> Iterable[Chunk]:
        """The client's first octets without the PROXY header, once they tell whether there is one."""
        if not inbox.available and not chunk.gap and chunk.data and chunk.data[0] not in proxy.BEGINNINGS:
            self._preface = None
            return (chunk,)
        inbox.append(chunk)
        found = proxy.header(inbox.buf[inbox.pos : inbox.pos + proxy.LONGEST])
        if found is None and not inbox.before_gap:
            return ()
        self._preface = None
        if found is not None and found[0]:
            inbox.take(found[0])
            self.info.stated_client_ip = found[1]
        return inbox.unread(chunk.orig)

    def _decrypt(self) -> None:
        """Take what has become readable inside TLS into the inboxes."""
        if self.tls is not None:
            self._append(self.tls.read(self))

    def _append(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            (self.client if chunk.orig == self.client_is_orig else self.server).append(chunk)

    def close(self, reason: str, ts: int) -> list[Event]:
        """The connection is over (`fin reset timeout capture_end`): finish what is open."""
        inside = self.tls
        if self._preface is not None:
            self._append(self._preface.unread(self.client_is_orig))
        if inside is not None:
            self._append(inside.finish(self))
        self.client.ended = self.server.ended = True
        self.pump()
        if self.tls is not inside:  # TLS began with the last octets
            self._append(self.tls.finish(self))
            self.pump()
        self.finish(reason, ts)
        self.events.append(SessionEnded(self.info, session_row(self.info, self.client_is_orig)))
        events, self.events = self.events, []
        return events

    def pump(self) -> None:
        """Read as far as both inboxes allow, appending to `self.events`."""
        raise NotImplementedError

    def finish(self, reason: str, ts: int) -> None:
        """End open commands and transactions; nothing more will come."""

    def weird(self, name: str, detail: str, ts: int | None, frame: int | None) -> None:
        """Name something odd."""
        self.events.append(Anomaly(ts, self.info.source, self.info.session_id, None, name, detail, frame))

    def start_tls(self, ts: int | None, implicit: bool = False) -> None:
        """From here on both directions are TLS records: what the inboxes still hold goes through the TLS layer."""
        from analyzer.protocols.tls import Layer

        self.info.tls = "implicit" if implicit else "starttls"
        self.tls = Layer(self.info, self.limits, self.secrets)
        for inbox, from_client in ((self.client, True), (self.server, False)):
            for chunk in inbox.rest(from_client == self.client_is_orig):
                self.tls.take(chunk, from_client)
        self._decrypt()


def pick(values: Sequence[int | None]) -> int | None:
    """The first that is known."""
    return next((v for v in values if v is not None), None)
