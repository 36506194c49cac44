"""Every bound of the analyzer, in one place: unit, default, and what happens when it is hit.

Rule: no container that traffic can make grow is without a bound named here, and hitting a
bound is an anomaly row (counted, folded), never silence.  Add yours here, with its sentence.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one analysis.  Times are nanoseconds of capture time, sizes are octets."""

    # wire: files
    batch_bytes: int = 8 << 20
    """Octets of capture file decoded at a time; results do not depend on it."""
    batch_frames: int = 40_000
    """Frames decoded at a time (some 500 octets each); results do not depend on it."""
    record_bytes: int = 16 << 20
    """Longest believable frame; a larger length field is damage: `damaged_capture`, then resynchronise."""
    unpacked_bytes: int = 64 << 30
    """Most octets taken out of one compressed file: then `decompression_limit` and the file ends there."""
    unpacked_ratio: int = 200
    """Highest believable compression ratio once `unpacked_free` octets are out: then `decompression_limit`."""
    unpacked_free: int = 64 << 20
    """Octets unpacked before `unpacked_ratio` is looked at."""
    unpacked_layers: int = 3
    """Compressions peeled off one file: beyond, it is refused."""
    unpacked_streams: int = 10_000
    """Compressed streams (members, frames) in one file that hold fewer than 64 octets on average: then it is damage."""
    unpacked_window: int = 128 << 20
    """Octets of window a compressed file may ask for (`xz -9` asks for 64 MiB): beyond, it is damage."""
    restarts: int = 10_000
    """Times a damaged capture is taken up again after an unreadable place: then the rest is given up, `damaged_capture`."""
    interfaces: int = 65_536
    """Interfaces of one pcapng section: at a further one reading ends, `damaged_capture`."""
    secrets_bytes: int = 16 << 20
    """Octets of TLS secrets taken out of one pcapng file: the rest is left, `secrets_dropped`."""

    # wire: packets
    tunnel_depth: int = 16
    """Encapsulations peeled off one frame: then `tunnel_too_deep` and the frame is skipped."""
    fragment_packets: int = 10_000
    """Incomplete IP packets held: the oldest goes, `fragments_dropped`."""
    fragment_bytes: int = 32 << 20
    """Octets of incomplete IP packets held: the oldest goes, `fragments_dropped`."""
    fragment_age: int = 60_000_000_000
    """Age at which an incomplete IP packet is given up."""

    # wire: connections
    connections: int = 150_000
    """Flows remembered (some 150 octets each): the ones not heard of for longest are forgotten."""
    open_connections: int = 100_000
    """Connections followed at once: the least recently used are closed (`timeout`), `connections_dropped`."""
    open_bytes: int = 64 << 20
    """Octets that these take, at 3 KB each and 10 KB with a mail session: beyond, as `open_connections`; those that no protocol
    has recognised go first."""
    connection_idle: int = 86_400_000_000_000
    """Silence after which a connection is over (`timeout`).  TCP itself knows none (RFC 9293 3.8.4): hours are survived."""
    half_open_idle: int = 120_000_000_000
    """Silence after which an unanswered SYN is forgotten; it is counted in `connect_unanswered`."""
    closed_linger: int = 120_000_000_000
    """Time for which a closed connection is remembered, so that late copies do not open a ghost."""
    pending_bytes: int = 16 << 20
    """Out-of-order octets held per direction: then the hole before them is given up as lost."""
    pending_pieces: int = 262_144
    """Out-of-order segments held per direction: then the hole before them is given up as lost, `reorder_limit`."""
    pending_holes: int = 32_768
    """Holes waited for at once per direction: then the first is given up as lost, `reorder_limit`."""
    pending_total: int = 64 << 20
    """Out-of-order octets held in all: then the holes of the largest holder are given up."""
    hole_packets: int = 1024
    """Packets of a connection after the acknowledgement of unseen octets until they are given up as lost (with `hole_age`)."""
    hole_age: int = 30_000_000_000
    """Time after it until they are; also how long a finished connection with a hole is waited for.  Live may ask less."""
    reset_linger: int = 2_000_000_000
    """Time after an RST in which its sender may go on and so show it forged."""
    lingering: int = 5_000
    """Connections that are waited with after their end: the oldest are closed."""
    window_bytes: int = 64 << 20
    """How far from the expected sequence number a segment is believed: beyond, `out_of_window`."""
    unacked_bytes: int = 64 << 10
    """Octets per direction that are kept until they are acknowledged, as a better copy may come: older ones are final."""
    history_bytes: int = 16 << 10
    """Octets handed up that are kept per direction to compare retransmissions with; older copies are not compared."""
    history_total: int = 64 << 20
    """Octets so kept in all: then they are dropped, which only leaves some `conflicting_data` unseen."""
    connection_anomalies: int = 3
    """Rows of one anomaly name per connection: the others are counted in one last row."""
    attempts: int = 5_000
    """Connection attempts to mail ports listed one by one; further ones are only counted (`connect_unanswered` ...)."""
    unrecognised_bytes: int = 64 << 10
    """Payload kept per direction while no protocol has recognised a connection: then it is ignored."""

    # protocols
    line_bytes: int = 64 << 10
    """Octets of one line kept: the rest is skipped, `line_too_long` (RFC 5321 4.5.3.1 asks for 512 and 1000)."""
    waiting_bytes: int = 4 << 20
    """Octets of one direction held while the other is waited for: then the missing reply is given up, `reply_not_seen`."""
    commands_waiting: int = 100_000
    """Commands without a reply held per session: the oldest is given up as unanswered."""
    header_bytes: int = 256 << 10
    """Octets of a message's header section kept for parsing: the rest is only hashed, `header_too_long`."""
    report_bytes: int = 256 << 10
    """Octets of a multipart/report body kept to read its delivery-status part (RFC 3464)."""
    trace_fields: int = 100
    """Received fields parsed per message: `too_many_trace_fields` beyond."""
    signatures: int = 16
    """DKIM signatures of a message that are digested: further ones are `unknown` in `authentication`."""
    recipients: int = 50_000
    """Recipients kept per transaction: `too_many_recipients` beyond (RFC 5321 4.5.3.1.8 asks for 100)."""
    argument_chars: int = 1000
    """Characters of a command's argument and of a reply's text shown in tables; cut with an ellipsis."""
    inflated_bytes: int = 256 << 20
    """Octets inflated per direction of an IMAP COMPRESS session: then `inflate_limit`, the rest is opaque."""
    inflated_ratio: int = 100
    """Highest believable ratio of COMPRESS once 1 MiB is out: then `inflate_limit`, the rest is opaque."""
    mailbox_messages: int = 200_000
    """Messages whose unique-id, UID or Message-ID is remembered per session: the others stay unnamed, `mailbox_too_large`."""
    session_events: int = 200_000
    """Mailbox events (flagged, copied, expunged, ...) told per session: the rest are not, `mailbox_too_large`."""
    partial_messages: int = 200
    """Messages being fetched in pieces, or in one APPEND, per session: the oldest is finished as it is."""
    arrivals: int = 1_000
    """Messages announced by EXISTS that wait to be named, per session: the oldest is told as it is."""
    parts_bytes: int = 4 << 20
    """Octets of message parts held per IMAP session until the parts before them come: then that message stays incomplete."""
    tls_waiting_bytes: int = 32 << 20
    """Octets of one TLS direction held until the other side's hello has come: then the session stays opaque."""
    starttls_sessions: int = 100_000
    """Sessions in clear without an offer of STARTTLS that are compared with others of the server: then `starttls_unchecked`."""
    tls_key_wait: int = 5_000_000_000
    """Time for which TLS records wait for their secrets in a key log that is being followed: then the session stays opaque."""
    tls_message_bytes: int = 256 << 10
    """Octets of a TLS handshake message (certificates): a longer one ends the reading of that handshake."""
    dns_waiting: int = 200_000
    """DNS questions waiting for an answer: the oldest is given up as unanswered."""
    dns_timeout: int = 30_000_000_000
    """Time after which an answer no longer belongs to a question."""
    dns_copy: int = 1_000_000_000
    """Time around an answer in which another copy of its question is that question again, not a new one."""
    dns_answered: int = 20_000
    """Datagrams for which an answer is remembered, to know copies of it and of its question."""
    dns_memo: int = 32_768
    """Decoded DNS messages remembered (short ones): the oldest are forgotten; only speed depends on it."""
    dns_questions: int = 16
    """Questions read in one DNS message: `dns_malformed` beyond (RFC 9619 allows one)."""
    dns_records: int = 2_000
    """Answer records read in one DNS message: `dns_malformed` beyond."""

    # mail
    queue_lifetime: int = 5 * 86_400_000_000_000
    """Time a message may wait between two hops and still be one trace (RFC 5321 4.5.4.1: 4-5 days)."""
    story_sightings: int = 5_000
    """Crossings of messages held in memory (some 2 KB each): beyond, they wait in a temporary file and are told in parts;
    the story does not depend on it."""
    story_part: int = 2_000
    """Crossings told at a time then; those that DNS, mailbox events, reports or failed connections concern are told at once."""
    story_at_once: int = 200_000
    """Crossings told at once so (some 2 KB each): the later ones are told without an eye on these, `told_apart`."""
    hosts: int = 100_000
    """Hosts kept that only had part in sessions without a message: further ones have no row, `hosts_dropped`."""
    lookups: int = 750_000
    """DNS questions remembered to bind them to hops: later ones are bound to none, `lookups_dropped`."""
    book_entries: int = 250_000
    """DNS answer records remembered to know names and exchangers: later ones are not, `lookups_dropped`."""
    idle_connections: int = 20_000
    """Failed connections and sessions without a transaction kept for the message they were made for: then `attempts_dropped`."""
    mailbox_events: int = 1_000_000
    """Mailbox events kept for the timeline: later ones are not told, `mailbox_events_dropped`."""

    # tables
    browse_messages: int = 100_000
    """Messages that `browse` lists: beyond, the first ones are there and the rest is counted."""
    report_messages: int = 20_000
    """Messages of an HTML report: beyond, the first ones are in it and the rest is counted."""
    spool_rows: int = 10_000
    """Rows of one table held in memory: then they are sorted and spilled to a temporary file."""
    folded_anomalies: int = 1000
    """Rows of one anomaly name and source: beyond it they are counted in one last row."""
    warning_lines: int = 20
    """Lines of warning on standard error per run: the rest is a number."""

    # live
    live_kernel_bytes: int = 64 << 20
    """Octets of packets that the kernel keeps for a live capture: beyond, it drops packets, `capture_drops`."""
    live_relay_bytes: int = 4 << 30
    """Octets from dumpcap that wait, nearly all on disk, to be taken in: beyond, dumpcap waits, and the kernel drops packets
    when it has no room either, `capture_drops`."""
    live_batch_bytes: int = 8 << 20
    """Octets captured live that are decoded at a time; less where less has come."""
    live_backlog_bytes: int = 128 << 20
    """Octets captured but not yet analyzed that wait in memory: further batches wait on disk."""
    live_backlog_disk_bytes: int = 4 << 30
    """Octets that wait on disk: further batches are only written to the capture file, `analysis_shed`."""
    live_decided_idle: int = 600_000_000_000
    """Silence after which a message whose fate is known (delivered, rejected, bounced) is finished: its rows are written
    and it is forgotten, so a later retrieval is told as a message of its own.  Others are waited for `queue_lifetime`."""
    live_awake_idle: int = 35_000_000_000
    """Silence after which a message rests: it is on disk, and told anew when something comes that may be about it."""
    live_awake: int = 1600
    """Crossings of messages in memory: beyond, the longest silent rest."""
    live_told: int = 400
    """Crossings and events told anew at a time, so that it takes little memory: the others wait for the next turn."""
    live_held_bytes: int = 64 << 20
    """Octets of their header fields and reports: beyond, as `live_awake`."""
    live_traces: int = 10_000
    """Crossings of messages that rest (some 250 octets each in memory): beyond, the longest silent are finished (decided ones
    first), `traces_finished_early`."""
    live_resting_bytes: int = 1 << 30
    """Octets of header fields and reports of messages that rest: beyond, as `live_traces`."""
    live_lookups: int = 2_000
    """DNS rows held (some 1.3 KB each) for messages that may still need them: beyond, the oldest are written as they are, and
    what they answered is forgotten."""
    live_dns_answered: int = 1_000
    """Datagrams for which an answer is remembered in a live capture, as `dns_answered`."""
    live_dns_memo: int = 1_000
    """Decoded DNS messages remembered in a live capture, as `dns_memo`."""
    live_starttls_sessions: int = 10_000
    """Sessions compared in a live capture, as `starttls_sessions`."""
    live_lookup_age: int = 3_600_000_000_000
    """Age at which a DNS row is written and forgotten unless an open message uses it."""
    live_idle_sessions: int = 5_000
    """Sessions without a message, and failed connections, kept for the message they were made for: beyond, the oldest are let go,
    `attempts_dropped`."""
    live_attempt_age: int = 240_000_000_000
    """Age at which a failed connection, or a session in clear without a message, is no longer kept for the message it was for."""
    live_mailbox_events: int = 5_000
    """Mailbox events held for the messages they are about: beyond, the oldest are not told, `mailbox_events_dropped`."""
    live_hosts: int = 50_000
    """Addresses of hosts of finished messages and sessions remembered for the hosts table (some 100 octets each in memory):
    beyond, the rows of the longest silent are finished, `hosts_finished_early`."""
    live_hosts_awake: int = 500
    """Those of them in memory (some 2 KB each): the others are on disk until something comes of their address or name."""
    live_claims: int = 1_000
    """Hand-overs by LMTP of which trace fields of finished messages tell, by which roles are known: the oldest are forgotten."""
    live_connections: int = 20_000
    """Flows remembered in a live capture, as `connections`."""
    live_open_connections: int = 20_000
    """Connections followed at once in a live capture, as `open_connections`."""
    live_spool_rows: int = 100
    """Rows of one table held in memory in a live capture, as `spool_rows`."""
    live_share: float = 0.1
    """Most of the time that telling the open messages anew may take; they are told less often where it takes longer."""
    live_every: float = 1.0
    """Seconds between two tellings at least."""

    # not a bound: what is kept at all
    bodies: Any = None
    """Where the octets of messages are kept, for extraction (`protocols.bodies.Store`); None: nowhere, they are only hashed."""
