"""The row of `dns`: one question and its answer, over UDP or TCP."""

from typing import Annotated, NamedTuple


class Transaction(NamedTuple):
    """One question and its answer (a row of `dns`)."""

    source: Annotated[str, "capture file or interface"]
    ts: Annotated[int | None, "the question, first copy (the answer when the question was not seen)"]
    ts_reply: Annotated[int | None, "the answer"]
    rtt_s: Annotated[float | None, "from the last copy of the question before the answer to the answer"]
    client_ip: Annotated[str, "who asked"]
    client_port: Annotated[int, "port of who asked"]
    server_ip: Annotated[str, "who was asked"]
    server_port: Annotated[int, "port of who was asked"]
    transport: Annotated[str, "`udp tcp`"]
    dns_id: Annotated[int | None, "identifier in the header"]
    qname: Annotated[str | None, "name asked for: absolute, lower case, final dot"]
    qtype: Annotated[str | None, "type asked for"]
    rcode: Annotated[str | None, "NOERROR, NXDOMAIN, SERVFAIL, ..."]
    aa: Annotated[bool | None, "authoritative answer"]
    tc: Annotated[bool | None, "the answer was truncated"]
    rd: Annotated[bool | None, "recursion desired"]
    ra: Annotated[bool | None, "recursion available"]
    answers: Annotated[list[str] | None, "answer section: `owner TYPE rdata`"]
    ttl_min: Annotated[int | None, "smallest TTL of the answer section, seconds"]
    answered: Annotated[bool, "whether an answer is in the capture"]
    retries: Annotated[int, "copies of the question after the first"]
    purpose: Annotated[str | None, "`mx address ptr spf dkim dmarc tlsa mta_sts tls_rpt bimi dnsbl other`"]
    trace_id: Annotated[str | None, "the message it served"]
    hop: Annotated[int | None, "the hop it served, within the trace"]
    client_role: Annotated[str | None, "role of who asked"]
    server_role: Annotated[str | None, "`resolver` or `authoritative`"]
    frame: Annotated[int | None, "frame of the question"]
    reply_frame: Annotated[int | None, "frame of the answer"]
    opcode: Annotated[str, "`QUERY`; `NOTIFY`, `UPDATE` and others are not lookups, unanswered or not"] = "QUERY"
    qclass: Annotated[str | None, "class asked for, nearly always `IN`"] = "IN"
