"""The types between the stages of this room, and what it hands up."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyzer.wire.anomalies import Anomaly

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U16 = NDArray[np.uint16]
U8 = NDArray[np.uint8]

V4_PREFIX = 0xFFFF << 32
"""An IPv4 address is kept as its IPv4-mapped IPv6 form: `hi` 0, `lo` V4_PREFIX | address (RFC 4291 2.5.5.2)."""


@dataclass(slots=True)
class Frames:
    """A batch of captured frames, struct of arrays, in file order, all of one source; nothing decoded.

    `data` is valid only until the next batch is asked for (readers reuse their buffer).
    """

    source: str
    """Name of the file as the caller gave it (or `-`, or the interface)."""
    data: bytes | bytearray | memoryview
    number: I64
    """1-based frame number within the source, as Wireshark counts."""
    ts: I64
    """Nanoseconds since 1970."""
    offset: I64
    """Where the frame begins in `data`."""
    length: I64
    """Captured octets."""
    wire_length: I64
    """Octets on the wire (>= length when the capture was cut by its snap length)."""
    linktype: U16
    """LINKTYPE_ value per frame (a pcapng file may mix them)."""
    interface: I64 | None = None
    """Which of `SourceInfo.interfaces` each frame came by; None when they were not asked for, or the file has none."""

    def __len__(self) -> int:
        return len(self.number)

    def part(self, first: int, last: int) -> "Frames":
        """Some of them, by place; nothing is copied."""
        columns = {name: getattr(self, name)[first:last] for name in FRAME_COLUMNS}
        interface = self.interface[first:last] if self.interface is not None else None
        return replace(self, **columns, interface=interface)


FRAME_COLUMNS = ("number", "ts", "offset", "length", "wire_length", "linktype")
"""The arrays of `Frames`."""


@dataclass(slots=True)
class Packets:
    """A batch of decoded TCP segments and UDP datagrams, innermost headers, in capture order."""

    source: str
    data: bytes | bytearray | memoryview
    """Holds the payloads; valid until the next batch (reassembled datagrams are appended to it)."""
    frame: I64
    """Frame number (a datagram rebuilt from fragments has the number of the frame that completed it)."""
    ts: I64
    protocol: U8
    """6 TCP, 17 UDP."""
    src_hi: U64
    src_lo: U64
    dst_hi: U64
    dst_lo: U64
    src_port: U16
    dst_port: U16
    payload: I64
    """Where the payload begins in `data`."""
    length: I64
    """Payload octets captured."""
    wire_length: I64
    """Payload octets by the headers (>= length when cut by the snap length); sequence numbers count these."""
    seq: U32
    ack: U32
    flags: U8
    """TCP: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.  0 for UDP."""
    vlan: U16
    """Outermost 802.1Q identifier, 0 when untagged."""
    ttl: U8
    """IPv4 TTL or IPv6 hop limit (insertion attacks show here)."""
    network: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where the IP header begins in `data` (for `packets.checksums_ok`; a Packets made by hand may leave it empty)."""
    transport: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where the TCP or UDP header begins in `data`; empty when `network` is."""

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(slots=True, eq=False)
class Connection:
    """A TCP connection.  `orig` opened it, as far as the capture shows; `resp` answered."""

    source: str
    """Source of its first frame."""
    tcp_stream: int
    """Number among all TCP conversations of the source, from 0, as Wireshark's tcp.stream."""
    orig_ip: str
    orig_port: int
    resp_ip: str
    resp_port: int
    ts: int
    """Time of the first frame seen."""
    first_frame: int
    start: str = "mid"
    """`handshake` (its SYN was seen) or `mid`."""
    ts_syn: int | None = None
    ts_synack: int | None = None
    ts_open: int | None = None
    """Time of the ACK that completed the handshake."""
    ts_last: int = 0
    last_frame: int = 0
    end: str | None = None
    """`fin reset timeout capture_end` once it is over."""
    orig_bytes: int = 0
    """Payload octets handed up, each once."""
    resp_bytes: int = 0
    gap_bytes: int = 0
    """Octets lost, both directions (only where their number is known)."""
    session: Any = None
    """The protocol session, kept here by the pipeline."""
    orig_seq: int = field(default=-1, repr=False)
    """Sequence number of the first octet, the same in every tap, -1 unknown.  With `start` `mid` it is near the first seen: what
    comes late in the first batch may be before it, so it is no result, only a way to know the connection again."""
    resp_seq: int = field(default=-1, repr=False)


class Chunk(NamedTuple):
    """Ordered octets of one direction, each octet once.

    `gap` octets are missing just before `data`: 0 none; > 0 lost; -1 an unknown number (joined mid-stream:
    `data` then begins at `offset` 0, which is not the stream's beginning).  `data` may be empty when a gap
    is all there is to tell.  The arrays describe the segments that brought the data: `starts[i]` is the
    stream offset of the i-th segment's first octet here, with its time, frame number and the other
    direction's stream offset that it acknowledges (-1 unknown).  They may be lists or numpy arrays, ascending
    in `starts`; when `data` is empty they are empty or hold the one frame that proved the gap.
    `offset` counts stream octets of this direction, lost ones included, from 0.
    """

    orig: bool
    gap: int
    offset: int
    data: bytes
    starts: Any
    ts: Any
    frames: Any
    acks: Any


class Delivery(NamedTuple):
    """What one batch brought for one connection (a big batch may bring several, in order).

    Octets are handed up once they are acknowledged, when acknowledgements are to be seen at all.  Each direction's
    chunks are in stream order.  Across the directions the order is by first segment, but a chunk is one
    batch's whole run: which octet came before which is told by `ts`, `frames` and `acks` only.
    """

    connection: Connection
    chunks: list[Chunk]
    closed: bool
    """The connection is over; `connection.end` says how."""


class Attempt(NamedTuple):
    """A connection to a mail port that never carried payload."""

    source: str
    ts: int
    ts_end: int
    orig_ip: str
    orig_port: int
    resp_ip: str
    resp_port: int
    result: str
    """`refused` (RST answered), `unanswered` (no SYN-ACK), `silent` (opened, nothing said)."""
    tcp_stream: int
    frame: int
    syns: int
    """SYN segments seen, retransmissions included."""


class Interface(NamedTuple):
    """What an Interface Description Block says (if_fcslen is not needed: an IP packet's own length leaves the FCS out)."""

    linktype: int
    snaplen: int
    resolution: int
    """if_tsresol: units of 10^-n s, with the high bit 2^-n s."""
    offset: int
    """if_tsoffset, seconds."""
    name: bytes = b""
    """if_name."""


@dataclass(slots=True)
class Damage:
    """Part of an input that could not be read; makes the exit status 1."""

    source: str
    detail: str
    """What, at which byte offset or frame, what was done."""
    frame: int | None = None
    ts: int | None = None
    name: str = "damaged_capture"


@dataclass(slots=True)
class SourceInfo:
    """What is known of one input after reading it."""

    name: str
    kind: str = ""
    """`pcap pcapng snoop`, with the compression: `pcapng.gz`."""
    bytes_read: int = 0
    frames: int = 0
    ts_first: int | None = None
    ts_last: int | None = None
    cut_frames: int = 0
    """Frames shorter than they were on the wire."""
    damage: list[Damage] = field(default_factory=list)
    notes: list[Anomaly] = field(default_factory=list)
    """Odd, but readable (clock jumps): rows of `anomalies` that leave the exit status alone."""
    secrets: list[bytes] = field(default_factory=list)
    """TLS key log texts out of pcapng Decryption Secrets Blocks; never shown."""
    interfaces: list[Interface] | None = None
    """The interfaces of a pcapng file in the order described, when a list is given here to be filled."""
