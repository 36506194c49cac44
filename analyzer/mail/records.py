"""The rows this room makes: one record per table, each column with its sentence."""

from typing import Annotated, Any, NamedTuple


class Message(NamedTuple):
    """One traced message (a row of `messages`)."""

    trace_id: Annotated[str, "stable id of the message over all its hops"]
    message_id: Annotated[str | None, "Message-ID with its angle brackets"]
    ts_first: Annotated[int | None, "first thing seen of it"]
    ts_last: Annotated[int | None, "last thing seen of it"]
    elapsed_s: Annotated[float | None, "from the first hop's start to the end of the last delivery hop"]
    subject: Annotated[str | None, "Subject, decoded (RFC 2047)"]
    header_from: Annotated[str | None, "From field, decoded"]
    header_to: Annotated[str | None, "To field, decoded"]
    header_date: Annotated[str | None, "Date field as written"]
    mail_from: Annotated[str | None, "reverse-path of the first hop; empty is the null reverse-path"]
    size: Annotated[int | None, "octets of the message at its first complete hop"]
    hops: Annotated[int, "hop rows of the trace"]
    hops_observed: Annotated[int, "of them seen in packets that can be read"]
    outcome: Annotated[str, "`delivered relayed bounced rejected deferred aborted unknown mixed`"]
    retrieved: Annotated[bool, "a mailbox user has fetched it"]
    tls_all_hops: Annotated[bool | None, "whether every hop between hosts ran inside TLS"]
    spf: Annotated[str | None, "SPF result"]
    dkim: Annotated[str | None, "DKIM result"]
    dmarc: Annotated[str | None, "DMARC result"]
    parent_trace_id: Annotated[str | None, "the message this one is about"]
    relation: Annotated[str | None, "`dsn autoreply mdn` of the parent"]


class Hop(NamedTuple):
    """A message crossed, tried to cross, or is shown to have crossed a wire (a row of `hops`)."""

    trace_id: Annotated[str, "the message"]
    hop: Annotated[int, "1.. in time order"]
    parent_hop: Annotated[int | None, "the hop that brought the message to this hop's client"]
    kind: Annotated[str, "`submit relay deliver retrieve append`"]
    protocol: Annotated[str, "`smtp lmtp pop3 imap`"]
    basis: Annotated[str, "`observed` in packets, `matched` opaque session, `claimed` by trace fields only"]
    source: Annotated[str | None, "capture file or interface"]
    session_id: Annotated[str | None, "the session it crossed"]
    message_index: Annotated[int | None, "1.. in the session"]
    client_ip: Annotated[str | None, "who handed it over"]
    client_port: Annotated[int | None, "port of the client"]
    client_name: Annotated[str | None, "what the client calls itself"]
    client_role: Annotated[str | None, "`mua msa mta mx mda`"]
    server_ip: Annotated[str | None, "who took it (for a retrieval: who held it)"]
    server_port: Annotated[int | None, "port of the server"]
    server_name: Annotated[str | None, "what the server calls itself"]
    server_role: Annotated[str | None, "`msa mta mx mda pop3 imap`"]
    tls: Annotated[str | None, "`none starttls implicit`"]
    mail_from: Annotated[str | None, "reverse-path; empty is the null reverse-path"]
    rcpt_to: Annotated[list[str] | None, "every RCPT given, refused ones too"]
    message_id: Annotated[str | None, "Message-ID in the header at this hop"]
    size: Annotated[int | None, "message octets, CRLF line ends, after dot-unstuffing"]
    sha256: Annotated[str | None, "of these octets; only when every one was seen"]
    complete: Annotated[bool | None, "whether every octet was seen; absent when refused before data"]
    missing_bytes: Annotated[int | None, "octets known to be lost"]
    outcome: Annotated[str, "`accepted rejected deferred aborted partial unknown`"]
    code: Annotated[int | None, "deciding SMTP reply code"]
    enhanced_code: Annotated[str | None, "enhanced status code (RFC 3463)"]
    reply_text: Annotated[str | None, "text of the deciding reply"]
    queue_id: Annotated[str | None, "what the server called it"]
    ts_start: Annotated[int | None, "first octet of MAIL, RETR, FETCH or APPEND"]
    ts_data: Annotated[int | None, "first octet of the message"]
    ts_eom: Annotated[int | None, "last octet of the message"]
    ts_end: Annotated[int | None, "last octet of the deciding reply"]
    queue_s: Annotated[float | None, "since the parent hop ended, phases below taken off"]
    dns_s: Annotated[float | None, "lookups made for this hop"]
    connect_s: Annotated[float | None, "TCP handshake"]
    greeting_s: Annotated[float | None, "from the open connection to the EHLO reply"]
    tls_s: Annotated[float | None, "STARTTLS or implicit TLS handshake"]
    auth_s: Annotated[float | None, "login"]
    envelope_s: Annotated[float | None, "MAIL to the reply to DATA"]
    transfer_s: Annotated[float | None, "from the reply to DATA to the last octet of the message"]
    accept_s: Annotated[float | None, "from the last octet to the deciding reply"]
    tcp_stream: Annotated[int | None, "TCP conversation in the source, as Wireshark's tcp.stream"]
    first_frame: Annotated[int | None, "first frame within the source"]
    last_frame: Annotated[int | None, "last frame within the source"]
    wireshark: Annotated[str | None, "display filter that shows it"]
    mail_parameters: Annotated[str | None, "parameters of MAIL: SIZE, BODY, SMTPUTF8, RET, ENVID, REQUIRETLS, ..."] = None


class RecipientRow(NamedTuple):
    """One recipient at one hop (a row of `recipients`)."""

    trace_id: Annotated[str, "the message"]
    hop: Annotated[int, "the hop"]
    recipient: Annotated[str, "forward-path without brackets"]
    outcome: Annotated[str, "`accepted rejected deferred aborted unknown`"]
    code: Annotated[int | None, "reply code"]
    enhanced_code: Annotated[str | None, "enhanced status code"]
    reply_text: Annotated[str | None, "text of the reply"]
    parameters: Annotated[str | None, "parameters of RCPT: NOTIFY, ORCPT, RRVS, ..."] = None


class Delivery(NamedTuple):
    """The fate of one recipient of a message (a row of `deliveries`)."""

    trace_id: Annotated[str, "the message"]
    recipient: Annotated[str, "the recipient as first given"]
    outcome: Annotated[str, "`delivered relayed bounced rejected deferred aborted unknown`"]
    attempts: Annotated[int, "tries at the hop that decided, connections that failed included"]
    ts_final: Annotated[int | None, "when it was decided"]
    last_hop: Annotated[int | None, "the hop that decided"]
    code: Annotated[int | None, "deciding reply code"]
    enhanced_code: Annotated[str | None, "enhanced status code"]
    reply_text: Annotated[str | None, "text of the deciding reply"]


class Step(NamedTuple):
    """One step of a message's life (a row of `timeline`)."""

    trace_id: Annotated[str, "the message"]
    seq: Annotated[int, "1.. in time order"]
    ts: Annotated[int | None, "when"]
    hop: Annotated[int | None, "the hop it belongs to"]
    event: Annotated[
        str,
        "`dns_query dns_answer dns_cached connect banner greeting starttls tls auth mail rcpt data eom accepted rejected "
        "deferred aborted claimed notified retrieved flagged copied moved deleted expunged appended`; `dns_cached`: the client "
        "asked nothing for this hop, though its questions are in the capture (the frame is of the earlier answer, if any)",
    ]
    actor_ip: Annotated[str | None, "who acted"]
    actor_role: Annotated[str | None, "in which role"]
    peer_ip: Annotated[str | None, "towards whom"]
    peer_role: Annotated[str | None, "in which role"]
    detail: Annotated[str, "in words"]
    basis: Annotated[str, "`observed matched claimed`"]
    source: Annotated[str | None, "capture file or interface"]
    session_id: Annotated[str | None, "the session"]
    frame: Annotated[int | None, "frame within the source"]


class Host(NamedTuple):
    """One host, with all the addresses and names it was seen under (a row of `hosts`)."""

    host_id: Annotated[str, "stable id"]
    ips: Annotated[list[str], "its addresses"]
    names: Annotated[list[str], "its names: EHLO, greeting, certificate, PTR, A"]
    roles: Annotated[list[str], "`mua msa mta mx mda pop3 imap resolver authoritative`"]
    evidence: Annotated[list[Any], "objects {role, rule, count}: what each role rests on"]
    software: Annotated[str | None, "software it named"]
    ts_first: Annotated[int | None, "first seen"]
    ts_last: Annotated[int | None, "last seen"]
    sessions: Annotated[int, "mail sessions it took part in"]
    messages: Annotated[int, "messages it handled"]


class Link(NamedTuple):
    """Why two hops are one message (a row of `links`)."""

    trace_id: Annotated[str, "the message"]
    hop: Annotated[int, "the hop that was joined"]
    linked_hop: Annotated[int, "the earlier hop it was joined to"]
    keys: Annotated[list[str], "keys that agree, strongest first"]
    score: Annotated[float, "0 to 1"]
    conflicts: Annotated[list[str], "what speaks against it"]


class Authentication(NamedTuple):
    """One result of SPF, DKIM, DMARC or ARC at a hop, evaluated from the capture alone (a row of `authentication`)."""

    trace_id: Annotated[str, "the message"]
    hop: Annotated[int, "the hop whose server judges"]
    method: Annotated[str, "`spf dkim dmarc arc`"]
    domain: Annotated[str | None, "the sender's (or HELO's), the signer's, the author's, or the last sealer's domain"]
    selector: Annotated[str | None, "of a signature: which of the domain's keys"]
    result: Annotated[
        str,
        "what the captured message and DNS answers give: `pass fail softfail neutral none temperror permerror` (RFC 8601); "
        "`not in the capture` when an answer is missing, `unknown` when octets are",
    ]
    reason: Annotated[str, "what decided, or which answer is missing"]
    policy: Annotated[str | None, "DMARC: what the domain asks to be done with failing mail, `none quarantine reject`"]
    claimed: Annotated[str | None, "what the hop's server wrote (Authentication-Results, Received-SPF, its reply)"]
    claimed_by: Annotated[str | None, "the name it wrote it under"]
    agrees: Annotated[bool | None, "whether both say the same; absent when there is nothing to compare"]
