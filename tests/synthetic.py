"""Rows made by hand: the tables of a small journey, for tests of tables and views.

alice (192.0.2.10) submits to msa.example.org (192.0.2.25), which looks up the MX of example.net and relays to
mx.example.net (198.51.100.25); that refuses carol, and hands bob's copy on in TLS that cannot be read; bob fetches it.
"""

from typing import Any

from analyzer.limits import Limits
from analyzer.mail.records import Delivery, Hop, Host, Link, Message, RecipientRow, Step
from analyzer.protocols.base import Command, SessionRow
from analyzer.protocols.dns import Transaction
from analyzer.tables import Tables
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import SourceInfo

T0 = 1_700_000_000_000_000_000
TRACE = "7f3c9a10d2b45e68"
SOURCE = "story.pcapng"


def at(seconds: float) -> int:
    """Nanoseconds since 1970, so many seconds into the story."""
    return T0 + round(seconds * 1e9)


def row(record: Any, **values: Any) -> Any:
    """A row with the values given; the rest is absent."""
    return record(**{name: values.get(name) for name in record._fields})


def sources() -> list[SourceInfo]:
    """What was read."""
    return [SourceInfo(SOURCE, "pcapng", 4096, 131, at(0), at(3722.2))]


def message(**values: Any) -> Message:
    """The message, or one like it."""
    whole = {
        "trace_id": TRACE,
        "message_id": "<1@example.org>",
        "ts_first": at(0),
        "ts_last": at(3722.2),
        "elapsed_s": 4.812,
        "subject": "Minutes",
        "header_from": "Alice <alice@example.org>",
        "mail_from": "alice@example.org",
        "size": 3214,
        "hops": 4,
        "hops_observed": 3,
        "outcome": "mixed",
        "retrieved": True,
        "tls_all_hops": False,
        "spf": "pass",
    }
    made: Message = row(Message, **{**whole, **values})
    return made


def hop(number: int, **values: Any) -> Hop:
    """A hop of the message, seen unless said otherwise."""
    whole = {
        "trace_id": TRACE,
        "hop": number,
        "parent_hop": number - 1 or None,
        "kind": "relay",
        "protocol": "smtp",
        "basis": "observed",
        "source": SOURCE,
        "session_id": f"session{number}",
        "message_index": 1,
        "tls": "none",
        "outcome": "accepted",
        "tcp_stream": number,
        "first_frame": number * 10,
        "last_frame": number * 10 + 9,
        "wireshark": f"tcp.stream == {number}",
    }
    made: Hop = row(Hop, **{**whole, **values})
    return made


def journey(limits: Limits | None = None) -> Tables:
    """The whole story's tables."""
    tables = Tables(limits)
    tables.add("messages", message())
    tables.extend("hops", _hops())
    tables.extend(
        "recipients",
        [
            row(RecipientRow, trace_id=TRACE, hop=1, recipient="bob@example.net", outcome="accepted", code=250),
            row(RecipientRow, trace_id=TRACE, hop=1, recipient="carol@example.net", outcome="accepted", code=250),
            row(RecipientRow, trace_id=TRACE, hop=2, recipient="bob@example.net", outcome="accepted", code=250),
            row(RecipientRow, trace_id=TRACE, hop=2, recipient="carol@example.net", outcome="rejected", code=550),
        ],
    )
    tables.extend(
        "deliveries",
        [
            row(
                Delivery,
                trace_id=TRACE,
                recipient="bob@example.net",
                outcome="delivered",
                attempts=1,
                ts_final=at(4.8),
                last_hop=3,
                code=250,
                reply_text="2.1.5 Saved",
            ),
            row(
                Delivery,
                trace_id=TRACE,
                recipient="carol@example.net",
                outcome="rejected",
                attempts=1,
                ts_final=at(1.2),
                last_hop=2,
                code=550,
                reply_text="5.1.1 No such user",
            ),
        ],
    )
    tables.extend(
        "timeline",
        [
            row(
                Step,
                trace_id=TRACE,
                seq=1,
                ts=at(0),
                hop=1,
                event="mail",
                detail="MAIL FROM:<alice@example.org>",
                basis="observed",
            ),
            row(
                Step,
                trace_id=TRACE,
                seq=2,
                ts=at(3722.1),
                hop=4,
                event="flagged",
                actor_ip="198.51.100.7",
                detail="+FLAGS (\\Seen)",
                basis="observed",
            ),
        ],
    )
    tables.extend("sessions", _sessions())
    tables.extend(
        "commands",
        [
            row(Command, session_id="session1", n=1, ts=at(0), verb="EHLO", argument="laptop", protocol="smtp", pipelined=False),
            row(
                Command,
                session_id="session1",
                n=2,
                ts=at(0.1),
                verb="AUTH",
                argument="PLAIN ***",
                protocol="smtp",
                pipelined=False,
            ),
            row(Command, session_id="session1", n=3, ts=at(0.2), verb="MAIL", protocol="smtp", pipelined=False),
            row(
                Command,
                session_id="session1",
                n=4,
                ts=at(900),
                verb="MAIL",
                argument="another's",
                protocol="smtp",
                pipelined=False,
            ),
            row(Command, session_id="stranger", n=1, ts=at(0.2), verb="EHLO", protocol="smtp", pipelined=False),
        ],
    )
    tables.add(
        "dns",
        row(
            Transaction,
            source=SOURCE,
            ts=at(0.43),
            ts_reply=at(0.461),
            rtt_s=0.031,
            client_ip="192.0.2.25",
            client_port=40000,
            server_ip="192.0.2.53",
            server_port=53,
            transport="udp",
            dns_id=7,
            qname="example.net.",
            qtype="MX",
            rcode="NOERROR",
            answers=["example.net. MX 10 mx.example.net."],
            answered=True,
            retries=0,
            purpose="mx",
            trace_id=TRACE,
            hop=2,
            server_role="resolver",
            frame=43,
            reply_frame=44,
        ),
    )
    tables.extend("hosts", _hosts())
    tables.add(
        "links", row(Link, trace_id=TRACE, hop=2, linked_hop=1, keys=["body and Message-ID", "queue id"], score=1.0, conflicts=[])
    )
    tables.add(
        "anomalies", row(Anomaly, ts=at(1), source=SOURCE, name="line_too_long", detail="70000 octets", trace_id=TRACE, frame=25)
    )
    return tables


def _hops() -> list[Hop]:
    alice = {"client_ip": "192.0.2.10", "client_port": 40001, "client_name": "laptop", "client_role": "mua"}
    msa = {"server_ip": "192.0.2.25", "server_port": 587, "server_name": "msa.example.org", "server_role": "msa"}
    both = ["bob@example.net", "carol@example.net"]
    mx = {"server_ip": "198.51.100.25", "server_port": 25, "server_name": "mx.example.net", "server_role": "mx"}
    store = {"server_ip": "198.51.100.26", "server_name": "store.example.net"}
    return [
        hop(
            1,
            kind="submit",
            **alice,
            **msa,
            tls="starttls",
            rcpt_to=both,
            code=250,
            reply_text="2.0.0 Ok: queued as 4Xyz12",
            queue_id="4Xyz12",
            ts_start=at(0.2),
            ts_end=at(0.412),
            envelope_s=0.1,
            accept_s=0.1,
        ),
        hop(
            2,
            client_ip="192.0.2.25",
            client_name="msa.example.org",
            client_role="msa",
            **mx,
            rcpt_to=both,
            outcome="partial",
            code=250,
            reply_text="2.0.0 Ok",
            ts_start=at(0.502),
            ts_end=at(1.413),
            queue_s=0.059,
            dns_s=0.031,
            accept_s=0.7,
        ),
        hop(
            3,
            kind="deliver",
            protocol="lmtp",
            basis="claimed",
            client_ip="198.51.100.25",
            client_name="mx.example.net",
            client_role="mx",
            **store,
            server_role="mda",
            source=None,
            session_id=None,
            tcp_stream=None,
            first_frame=None,
            last_frame=None,
            wireshark=None,
            rcpt_to=["bob@example.net"],
            ts_start=at(4.79),
            ts_end=at(4.812),
            queue_s=3.377,
        ),
        hop(
            4,
            kind="retrieve",
            protocol="imap",
            client_ip="198.51.100.7",
            client_role="mua",
            **store,
            server_port=993,
            server_role="imap",
            ts_start=at(3722),
            ts_end=at(3722.118),
        ),
    ]


def session(number: int, **values: Any) -> SessionRow:
    """A session in the clear, unless said otherwise."""
    whole = {
        "session_id": f"session{number}",
        "source": SOURCE,
        "ts": at(number),
        "ts_end": at(number + 1),
        "protocol": "smtp",
        "client_ip": "192.0.2.10",
        "client_port": 40000 + number,
        "server_ip": "192.0.2.25",
        "server_port": 25,
        "community_id": "1:x",
        "tls": "none",
        "visibility": "clear",
        "commands": 5,
        "messages": 1,
        "client_bytes": 100,
        "server_bytes": 100,
        "gap_bytes": 0,
        "start": "handshake",
        "end": "quit",
        "tcp_stream": number,
        "first_frame": number * 10,
        "last_frame": number * 10 + 9,
        "wireshark": f"tcp.stream == {number}",
    }
    made: SessionRow = row(SessionRow, **{**whole, **values})
    return made


def _sessions() -> list[SessionRow]:
    return [
        session(
            1,
            tls="starttls",
            visibility="decrypted",
            tls_version="TLSv1.3",
            auth_mechanism="PLAIN",
            auth_user="alice",
            auth_ok=True,
        ),
        session(2),
        session(4, protocol="imap", tls="implicit", visibility="opaque", server_port=993),
    ]


def _hosts() -> list[Host]:
    def host(ip: str, name: str, *roles: str) -> Host:
        evidence = [{"role": role, "rule": f"acted as {role}", "count": 1} for role in roles]
        made: Host = row(
            Host,
            host_id=ip,
            ips=[ip],
            names=[name],
            roles=list(roles),
            evidence=evidence,
            ts_first=at(0),
            ts_last=at(5),
            sessions=1,
            messages=1,
        )
        return made

    return [
        host("192.0.2.10", "laptop", "mua"),
        host("192.0.2.25", "msa.example.org", "msa"),
        host("198.51.100.25", "mx.example.net", "mx"),
        host("198.51.100.26", "store.example.net", "mda", "imap"),
        host("192.0.2.53", "ns.example.org", "resolver"),
        host("203.0.113.99", "stranger.example", "mta"),
    ]
