"""A small mail world: hosts that talk, so that a test reads as a story.

Times are seconds from the story's beginning; each thing that happens moves the clock a little.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from analyzer.limits import Limits
from analyzer.mail.received import parse_date
from analyzer.mail.story import Part, Story, Told
from analyzer.protocols.base import Content, MailboxEvent, MessageCarried, Recipient, SessionEnded, SessionInfo
from analyzer.protocols.dns import Transaction
from analyzer.wire.types import Attempt, Connection

BEGIN = parse_date("Mon, 23 Nov 2026 14:00:00 +0000") or 0
SECOND = 1_000_000_000


def stamp(at: float) -> str:
    """The date of a trace field."""
    minutes, seconds = divmod(int(at), 60)
    return f"Mon, 23 Nov 2026 14:{minutes:02d}:{seconds:02d} +0000"


class World:
    """Collects events as hosts act; `tell` hears the story."""

    def __init__(self, source: str = "world.pcap") -> None:
        self.source = source
        self.events: list[Any] = []
        self.now = 0.0
        self._streams = 0
        self._frames = 0

    def ns(self, at: float | None = None) -> int:
        """Nanoseconds of a story time."""
        return BEGIN + round((self.now if at is None else at) * SECOND)

    def pass_time(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.now += seconds

    def _frame(self) -> int:
        self._frames += 1
        return self._frames

    def session(self, protocol: str, client: str, server: str, port: int, **facts: Any) -> SessionInfo:
        """A connection is opened and greeted; `facts` are fields of SessionInfo."""
        self._streams += 1
        start = self.ns()
        conn = Connection(self.source, self._streams, client, 40000 + self._streams, server, port, start, self._frame())
        conn.start = "handshake"
        conn.ts_syn, conn.ts_open = start, start + 1_000_000
        self.now += 0.005
        conn.ts_last = self.ns()
        ends = f"{client}:{conn.orig_port} {server}:{port} {start}"
        info = SessionInfo(
            hashlib.sha256(ends.encode()).hexdigest()[:16],
            protocol,
            self.source,
            client,
            conn.orig_port,
            server,
            port,
            self._streams,
            conn,
        )
        info.ts_banner, info.ts_greeted = start + 2_000_000, start + 4_000_000
        for name, value in facts.items():
            setattr(info, name, value)
        if info.visibility == "opaque":
            info.ts_tls_done = self.ns()
        return info

    def end(self, info: SessionInfo) -> None:
        """The connection is closed."""
        self.now += 0.001
        info.connection.ts_last = self.ns()
        self.events.append(SessionEnded(info, None))  # type: ignore[arg-type]

    def carry(
        self,
        info: SessionInfo,
        mail_from: str | None,
        recipients: list[str],
        message: str | None,
        *,
        queue_id: str | None = None,
        outcome: str = "accepted",
        code: int | None = None,
        refused: dict[str, int] | None = None,
        size: int | None = None,
        kind: str = "transaction",
        complete: bool = True,
        **facts: Any,
    ) -> MessageCarried:
        """A transaction, retrieval or append.  `message` None: refused before its data; `refused`: recipient -> code."""
        info.messages += 1
        start = self.ns()
        self.now += 0.01
        codes = {"accepted": 250, "partial": 250, "rejected": 550, "deferred": 450}
        code = code if code is not None else codes.get(outcome)
        rcpts = []
        for address in recipients:
            said = (refused or {}).get(address, code if message is None else 250)
            word = {2: "accepted", 4: "deferred", 5: "rejected"}.get((said or 0) // 100, "unknown")
            rcpts.append(Recipient(address, None, start + 1_000_000, word, said, None, "text", word == "accepted", self._frame()))
        event = MessageCarried(
            info,
            kind,
            info.messages,
            start,
            first_frame=self._frame(),
            mail_from=mail_from,
            mail_parameters=f"SIZE={size}" if size is not None else None,
            recipients=rcpts,
            outcome=outcome,
            code=code if kind == "transaction" else None,
            queue_id=queue_id,
            content=content(message, complete) if message is not None else None,
        )
        event.ts_end = self.ns()
        if message is not None:
            event.ts_data, event.ts_eom = start + 3_000_000, start + 6_000_000
        event.last_frame = self._frame()
        for name, value in facts.items():
            setattr(event, name, value)
        self.events.append(event)
        return event

    def retrieve(self, info: SessionInfo, message: str, **facts: Any) -> MessageCarried:
        """A mailbox user fetches a message."""
        return self.carry(info, None, [], message, kind="retrieve", outcome="accepted", **facts)

    def mailbox(self, info: SessionInfo, event: str, **facts: Any) -> None:
        """Something happens in a mailbox."""
        blank = dict.fromkeys(MailboxEvent._fields)
        blank.update(ts=self.ns(), session=info, event=event, frame=self._frame(), detail="")
        blank.update(facts)
        self.events.append(MailboxEvent(**blank))  # type: ignore[arg-type]
        self.now += 0.001

    def lookup(self, client: str, qname: str, qtype: str, *answers: str, server: str = "10.0.0.53", **facts: Any) -> Transaction:
        """A question and its answer; answers are `TYPE rdata`, owned by the name, or whole records."""
        blank: dict[str, Any] = dict.fromkeys(Transaction._fields)
        purposes = {"MX": "mx", "A": "address", "AAAA": "address", "PTR": "ptr", "TXT": "spf"}
        self._streams += 0
        frame = self._frame()
        blank.update(
            source=self.source,
            ts=self.ns(),
            ts_reply=self.ns() + 500_000,
            client_ip=client,
            client_port=50000 + frame,
            server_ip=server,
            server_port=53,
            transport="udp",
            dns_id=frame,
            qname=qname + ".",
            qtype=qtype,
            rcode="NOERROR",
            aa=False,
            rd=True,
            ra=True,
            answers=[a if a.count(" ") > 1 and a.split()[0].endswith(".") else f"{qname}. {a}" for a in answers],
            answered=True,
            retries=0,
            purpose=purposes.get(qtype, "other"),
            frame=frame,
            reply_frame=self._frame(),
            opcode="QUERY",
            qclass="IN",
        )
        blank.update(facts)
        row = Transaction(**blank)
        self.events.append(row)
        self.now += 0.001
        return row

    def attempt(self, client: str, server: str, port: int, result: str = "refused") -> None:
        """A connection that fails."""
        self._streams += 1
        at = self.ns()
        port_ = 40000 + self._streams
        self.events.append(Attempt(self.source, at, at, client, port_, server, port, result, self._streams, self._frame(), 1))
        self.now += 0.001

    def tell(self, limits: Limits | None = None) -> Told:
        """Feed everything and hear the story."""
        story = Story(limits or Limits())
        for event in self.events:
            if isinstance(event, Transaction):
                story.look([event])
            else:
                story.feed(event)
        return story.finish()


def content(message: str, complete: bool = True) -> Content:
    """Message text (LF or CRLF) as the protocol room would hand it in."""
    octets = message.replace("\r\n", "\n").replace("\n", "\r\n").encode()
    head, _, body = octets.partition(b"\r\n\r\n")
    headers: list[tuple[str, bytes]] = []
    for line in head.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            name, value = headers[-1]
            headers[-1] = (name, value + b" " + line.strip())
        elif b":" in line:
            name, _, value = line.partition(b":")
            headers.append((name.decode().lower(), value.strip()))
    fields = dict(headers)
    kind = fields.get("content-type", b"")
    return Content(
        len(octets),
        complete,
        0 if complete else 10,
        hashlib.sha256(octets).hexdigest() if complete else None,
        hashlib.sha1(body).hexdigest() if complete else None,
        len(body),
        headers,
        fields["message-id"].decode() if "message-id" in fields else None,
        True,
        body if kind.startswith((b"multipart/report", b"message/")) else None,
    )


def mail(number: int = 1, body: str = "Hello.\n", **fields: str) -> str:
    """A plain message; `fields` replace header fields (`_` for `-`), empty ones are left out."""
    header = {
        "Date": "Mon, 23 Nov 2026 13:59:59 +0000",
        "From": "Taro <taro@a.example>",
        "To": "hanako@b.example",
        "Subject": f"Number {number}",
        "Message-ID": f"<{number}@a.example>",
    }
    header.update({name.replace("_", "-"): value for name, value in fields.items()})
    return "".join(f"{name}: {value}\n" for name, value in header.items() if value) + "\n" + body


def bounce(recipient: str, message_id: str = "<1@a.example>") -> str:
    """What smtp.a.example reports of a message that it could not pass on (RFC 3464)."""
    body = (
        "--x\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; smtp.a.example\n\n"
        f"Final-Recipient: rfc822; {recipient}\nAction: failed\nStatus: 5.1.1\n\n"
        f"--x\nContent-Type: message/rfc822\n\nMessage-ID: {message_id}\n--x--\n"
    )
    return mail(
        body=body,
        From="MAILER-DAEMON@smtp.a.example",
        To="taro@a.example",
        Subject="failed",
        Message_ID="<dsn@a.example>",
        Content_Type="multipart/report; report-type=delivery-status; boundary=x",
    )


def received(message: str, at: float, by: str, helo: str | None = None, ip: str | None = None, **clauses: str) -> str:
    """The message with one more Received field on top; clauses: `with_`, `id`, `for_`."""
    text = f"from {helo} ({helo} [{ip}])\n\t" if helo else ""
    text += f"by {by} (Postfix)"
    text += f" with {clauses['with_']}" if "with_" in clauses else ""
    text += f" id {clauses['id']}" if "id" in clauses else ""
    text += f"\n\tfor <{clauses['for_']}>" if "for_" in clauses else ""
    return f"Received: {text}; {stamp(at)}\n{message}"


MUA, MSA, MX, STORE, RELAY, READER = "10.0.1.10", "10.0.1.25", "10.0.3.25", "10.0.3.110", "10.0.2.25", "10.0.3.71"
NAMES = {MUA: "pc.a.example", MSA: "smtp.a.example", MX: "mail.b.example", STORE: "store.b.example", RELAY: "relay.isp.example"}


class Post:
    """The usual road: taro's MUA, the MSA of a.example, the MX of b.example, its store, hanako's reader."""

    def __init__(self, world: World) -> None:
        self.world = world

    def hand(
        self, client: str, server: str, port: int, sender: str, to: list[str], message: str | None, **facts: Any
    ) -> SessionInfo:
        """One session with one transaction."""
        world = self.world
        names: dict[str, Any] = {"client_name": NAMES.get(client), "server_name": NAMES.get(server)}
        if port == 587:
            names.update(auth_ok=True, auth_user=sender, auth_mechanism="PLAIN")
        info = world.session("lmtp" if port == 24 else "smtp", client, server, port, **names)
        world.carry(info, sender, to, message, **facts)
        world.end(info)
        world.pass_time(0.02)
        return info

    def submit(self, message: str, to: list[str], queue_id: str = "A1", sender: str = "taro@a.example") -> str:
        """MUA to MSA; returns the message as the MSA sends it on."""
        at = self.world.now
        self.hand(MUA, MSA, 587, sender, to, message, queue_id=queue_id)
        return received(message, at, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPA", id=queue_id)

    def relay(
        self, message: str, to: list[str], queue_id: str = "B1", sender: str = "taro@a.example", via: tuple[str, str] = (MSA, MX)
    ) -> str:
        """Server to server; returns the message as the second sends it on."""
        at = self.world.now
        client, server = via
        self.hand(client, server, 25, sender, to, message, queue_id=queue_id, size=len(message))
        return received(message, at, NAMES[server], NAMES[client], client, with_="ESMTP", id=queue_id)

    def deliver(self, message: str, to: list[str], queue_id: str = "C1", sender: str = "taro@a.example") -> str:
        """MX to MDA by LMTP; returns the message as it lies in the mailbox."""
        at = self.world.now
        self.hand(MX, STORE, 24, sender, to, message, queue_id=queue_id)
        return received(message, at, NAMES[STORE], NAMES[MX], MX, with_="LMTP", id=queue_id)

    def whole(self, number: int = 1, to: str = "hanako@b.example", body: str = "Hello.\n") -> str:
        """A message goes all the way."""
        message = self.submit(mail(number, body), [to], f"A{number:05d}")
        message = self.relay(message, [to], f"B{number:05d}")
        return self.deliver(message, [to], f"C{number:05d}")


def parts(told: Told) -> Iterator[Part]:
    """All parts of a story, each to be read before the next is taken."""
    yield told.first
    if told.later:
        yield from told.share((0, 1))
        told.settle(())


def rows(table: Any) -> list[Any]:
    """A table's rows as a list."""
    return list(table)
