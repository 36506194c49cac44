"""Every bound of the analyzer, in one place: unit, default, and what happens when it is hit.

Rule: no container that traffic can make grow is without a bound named here, and hitting a
bound is an anomaly row (counted, folded), never silence.  Add yours here, with its sentence.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one analysis.  Times are nanoseconds of capture time, sizes are octets."""

    # wire: files
    batch_bytes: int = 16 << 20
    """Octets of capture file decoded at a time; results do not depend on it."""
    record_bytes: int = 16 << 20
    """Longest believable frame; a larger length field is damage: `damaged_capture`, then resynchronise."""
    unpacked_bytes: int = 64 << 30
    """Most octets taken out of one compressed file: then `decompression_limit` and the file ends there."""
    unpacked_ratio: int = 200
    """Highest believable compression ratio once `unpacked_free` octets are out: then `decompression_limit`."""
    unpacked_free: int = 64 << 20
    """Octets unpacked before `unpacked_ratio` is looked at."""

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
    connections: int = 500_000
    """Connections tracked at once: the least recently used is closed (`timeout`), `connections_dropped`."""
    connection_idle: int = 3_600_000_000_000
    """Silence after which a connection is over (`timeout`): IMAP IDLE is renewed every 29 minutes (RFC 2177)."""
    half_open_idle: int = 120_000_000_000
    """Silence after which an unanswered SYN is forgotten; it is counted in `connect_unanswered`."""
    closed_linger: int = 120_000_000_000
    """Time for which a closed connection is remembered, so that late copies do not open a ghost."""
    pending_bytes: int = 16 << 20
    """Out-of-order octets held per direction: then the hole before them is given up as lost."""
    pending_pieces: int = 65_536
    """Out-of-order segments held per direction: then the hole before them is given up as lost."""
    pending_total: int = 64 << 20
    """Out-of-order octets held in all: then the holes of the largest holder are given up."""
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
    recipients: int = 50_000
    """Recipients kept per transaction: `too_many_recipients` beyond (RFC 5321 4.5.3.1.8 asks for 100)."""
    argument_chars: int = 1000
    """Characters of a command's argument and of a reply's text shown in tables; cut with an ellipsis."""
    inflated_bytes: int = 256 << 20
    """Octets inflated per direction of an IMAP COMPRESS session: then `inflate_limit`, the rest is opaque."""
    inflated_ratio: int = 100
    """Highest believable ratio of COMPRESS once 1 MiB is out: then `inflate_limit`, the rest is opaque."""
    dns_waiting: int = 200_000
    """DNS questions waiting for an answer: the oldest is given up as unanswered."""
    dns_timeout: int = 30_000_000_000
    """Time after which an answer no longer belongs to a question."""

    # mail
    queue_lifetime: int = 5 * 86_400_000_000_000
    """Time a message may wait between two hops and still be one trace (RFC 5321 4.5.4.1: 4-5 days)."""

    # tables
    spool_rows: int = 200_000
    """Rows of one table held in memory: then they are sorted and spilled to a temporary file."""
    folded_anomalies: int = 1000
    """Rows of one anomaly name and source: beyond it they are counted in one last row."""
    warning_lines: int = 20
    """Lines of warning on standard error per run: the rest is a number."""
