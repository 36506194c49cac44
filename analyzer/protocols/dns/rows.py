"""Rows and judgements that UDP and TCP share."""

from analyzer.protocols.dns.message import Message, Question
from analyzer.protocols.dns.purpose import purpose
from analyzer.protocols.dns.record import Transaction
from analyzer.wire.anomalies import Anomaly


def belong(asked: Message, answered: Message) -> bool:
    """Whether an answer is to a question: it repeats it, or repeats nothing (as some errors do)."""
    return asked.key == answered.key or not answered.questions or not asked.questions


def same(first: Message, second: Message) -> bool:
    """Whether two answers say the same; order and TTLs may differ, and a truncated one says less."""
    if first.tc or second.tc:
        return True
    return first.rcode == second.rcode and sorted(first.answers or ()) == sorted(second.answers or ())


def fault(source: str, message: Message, ts: int | None, frame: int | None, cut: bool) -> Anomaly:
    """What is wrong with a message; `cut`: the capture did not keep all of it, which is not the message's fault."""
    name = "dns_cut" if cut else "dns_malformed"
    what = f"{message.qname} {message.qtype}: " if message.questions else ""
    return Anomaly(ts, source, None, None, name, f"{what}{message.fault}", frame)


def transaction(
    source: str,
    ends: tuple[str, int, str, int],
    transport: str,
    ident: int,
    one: Question | None,
    asked: tuple[Message | None, int, int | None, int],
    answered: tuple[Message | None, int | None, int | None, float | None],
) -> Transaction:
    """A row, `one` being its question: asked = (message, ts, frame, retries), answered = (message, ts, frame, rtt_s)."""
    question, ts, frame, retries = asked
    answer, ts_reply, reply_frame, rtt_s = answered
    either = answer or question
    assert either is not None
    answers = answer.answers if answer else None
    return Transaction(
        source=source,
        ts=ts,
        ts_reply=ts_reply,
        rtt_s=rtt_s,
        client_ip=ends[0],
        client_port=ends[1],
        server_ip=ends[2],
        server_port=ends[3],
        transport=transport,
        dns_id=ident,
        qname=one.name if one else None,
        qtype=one.type if one else None,
        rcode=answer.rcode if answer else None,
        aa=answer.aa if answer else None,
        tc=answer.tc if answer else None,
        rd=(question or either).rd,
        ra=answer.ra if answer else None,
        answers=answers,
        ttl_min=answer.ttl_min if answer else None,
        answered=answer is not None,
        retries=retries,
        purpose=purpose(one.name, one.type, one.klass, answers) if one and either.opcode == "QUERY" else None,
        trace_id=None,
        hop=None,
        client_role=None,
        server_role=None,
        frame=frame,
        reply_frame=reply_frame,
        opcode=either.opcode,
        qclass=one.klass if one else None,
    )
