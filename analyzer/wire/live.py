"""Live sources of frames: dumpcap, raw sockets, standard input, a FIFO.

1. A source gives batches of frames and ends when it is told to (`stop`), or by itself (`broken` says why).
2. No frame is dissected here: the kernel filters, the ring is walked as a file's records are.
3. Frames of the loopback interface, which the kernel shows on their way out and in, are given once.
"""

import errno
import io
import mmap
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.wire import dumpcap, files
from analyzer.wire.types import I64, Frames, SourceInfo

ANY = "any"
_EXAMPLE = "for example -f 'tcp port 25'"


class Feed(Protocol):
    """What a live source is."""

    kind: str
    name: str
    broken: CaptureError | None

    def frames(self, info: SourceInfo) -> Iterator[Frames]:
        """Batches of frames, until the end."""

    def stop(self) -> None:
        """End it; may be called from another thread or a signal handler."""

    def kill(self) -> None:
        """End it without waiting for what is on its way."""

    def drops(self) -> int:
        """Packets lost before they came here, as far as known."""


@dataclass(frozen=True)
class Wanted:
    """What is to be captured."""

    interfaces: tuple[str, ...]
    filters: tuple[str, ...] = ()
    """Filters to try, the best first; empty: everything."""
    own_filter: bool = False
    """The filter is the user's: a fault of it is theirs to hear."""
    promiscuous: bool = True
    backend: str = "auto"
    """`auto dumpcap raw`."""
    directory: str | None = None
    """Where octets may wait on disk; None: where temporary files go."""


def default_filters(ports: Sequence[int]) -> tuple[str, ...]:
    """Kernel filters for mail, DNS and fragments; the first also inside one or two VLAN tags, where the link type has them."""
    tcp = " or ".join(f"tcp port {port}" for port in sorted(ports))
    plain = f"{tcp} or port 53 or (ip[6:2] & 0x1fff != 0) or (ip6[6] = 44)"
    return f"({plain}) or (vlan and (({plain}) or (vlan and ({plain}))))", plain


def open_feed(wanted: Wanted, limits: Limits) -> Feed:
    """Begin to capture.  Raises CaptureError that says what is wrong and what to do."""
    names = wanted.interfaces
    streams = [name for name in names if name == "-" or _is_fifo(name)]
    if streams:
        if len(names) > 1:
            raise CaptureError(f"-i {streams[0]} cannot be captured together with others", "give it alone")
        return Stream(names[0], limits)
    path = dumpcap.executable() if wanted.backend != "raw" else None
    if wanted.backend == "dumpcap" and path is None:
        raise CaptureError("dumpcap cannot be run", "mailhop doctor says what to do")
    for name in names:
        _check_name(name, path)
    if path is not None:
        chosen = [(name, _filter_for(name, wanted)) for name in names]
        return dumpcap.Dumpcap(path, chosen, wanted.promiscuous, limits, wanted.directory)
    if not sys.platform.startswith("linux"):
        raise CaptureError(
            "capturing needs dumpcap here", "install Wireshark, which brings it (macOS: with ChmodBPF; Windows: with Npcap)"
        )
    return PacketRing(names, wanted, limits)


def _filter_for(name: str, wanted: Wanted) -> str:
    if not wanted.filters:
        return ""
    ethernet = name != ANY and _hardware(name) in (_ETHER, _LOOPBACK, None)
    return wanted.filters[0] if ethernet else wanted.filters[-1]


def _is_fifo(name: str) -> bool:
    with suppress(OSError, ValueError):
        return stat.S_ISFIFO(os.stat(name).st_mode)
    return False


def interfaces() -> list[str]:
    """Names of this machine's network interfaces."""
    with suppress(OSError, AttributeError):
        return [name for _, name in socket.if_nameindex()]
    return []


def _check_name(name: str, path: str | None) -> None:
    known = [*interfaces(), ANY]
    if name in known:
        return
    if path is not None:
        known = list(dict.fromkeys([*known, *dumpcap.interfaces(path)]))
    if name not in known and not (path is not None and name.isdigit()):
        from difflib import get_close_matches

        close = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = "did you mean " + " or ".join(close) + "?" if close else "there are " + ", ".join(known)
        raise CaptureError(f"no interface {name!r}", hint)


def filter_error(expression: str, why: str) -> CaptureError:
    """A filter that libpcap does not take; a display filter is recognised as one."""
    import re

    if re.search(
        r"==|!=.*\.|&&.*\.|\b(frame|eth|ip|ipv6|tcp|udp|smtp|imap|pop|dns|imf|tls|http)\.[a-z]|^\s*(smtp|imap|pop|dns|imf|tls)\b",
        expression,
    ):
        fix = f"that is a display filter; live capture takes capture filters (man pcap-filter), {_EXAMPLE}"
    else:
        fix = f"see man pcap-filter; {_EXAMPLE}"
    return CaptureError(f"-f {expression!r} is not a capture filter ({why})", fix)


# standard input and FIFOs


class _Interruptible(io.RawIOBase):
    """A pipe whose reading ends when it is told to."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._wake, self._bell = os.pipe()

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        while True:
            ready, _, _ = select.select([self._fd, self._wake], [], [])
            if self._wake in ready:
                return 0
            with suppress(BlockingIOError):
                return os.readv(self._fd, [view])

    def ring(self) -> None:
        """The next read finds the end."""
        with suppress(OSError):
            os.write(self._bell, b"x")

    def close(self) -> None:
        if not self.closed:
            for fd in (self._fd, self._wake, self._bell):
                with suppress(OSError):
                    os.close(fd)
        super().close()


class Stream:
    """A capture that somebody else makes and pipes in (`-`: standard input; else a FIFO)."""

    kind = "stream"

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.broken: CaptureError | None = None
        self._limits = limits
        self._stopped = False
        if name == "-":
            if sys.stdin is None or sys.stdin.isatty():
                raise CaptureError(
                    "standard input is a terminal", "pipe a capture into it: tcpdump -U -w - | mailhop capture -i -"
                )
            fd = os.dup(sys.stdin.fileno())
        else:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
            except OSError as error:
                raise CaptureError(f"{name}: {error.strerror}", "check its owner and mode") from None
        self._file = _Interruptible(fd)

    def frames(self, info: SourceInfo) -> Iterator[Frames]:
        """What is piped in."""
        try:
            yield from files.read(self._file, self._limits, info, name=self.name)  # type: ignore[arg-type]
        except CaptureError:
            if not self._stopped:
                raise
        finally:
            self._file.close()
        if self._stopped:
            info.damage[:] = [d for d in info.damage if not d.detail.startswith("cut at byte")]  # cut by us

    def stop(self) -> None:
        """Read no further."""
        self._stopped = True
        self._file.ring()

    kill = stop

    def drops(self) -> int:
        """Unknown: only who captures knows."""
        return 0


# raw sockets: a ring of blocks shared with the kernel (Linux, Documentation/networking/packet_mmap.rst)

_SOL_PACKET, _ADD_MEMBERSHIP, _RX_RING, _STATISTICS, _VERSION, _TPACKET_V3 = 263, 1, 5, 6, 10, 2
_MR_PROMISC = 1
_ETH_P_ALL = 3
_BLOCK = 1 << 20
_RETIRE_MS = 50
"""Milliseconds after which the kernel hands over a block that is not full."""
_OUTGOING = 4
_VLAN_VALID = 0x10
_TPID_VALID = 0x40
_HEADER = np.dtype(
    {
        "names": ["next", "sec", "nsec", "snaplen", "len", "status", "mac", "tci", "tpid", "ifindex", "hatype", "pkttype"],
        "formats": ["<u4", "<u4", "<u4", "<u4", "<u4", "<u4", "<u2", "<u4", "<u2", "<i4", "<u2", "u1"],
        "offsets": [0, 4, 8, 12, 16, 20, 24, 32, 36, 52, 56, 58],
        "itemsize": 68,
    }
)
"""struct tpacket3_hdr and the struct sockaddr_ll behind it."""
_ETHER, _LOOPBACK = 1, 772
_LINKTYPES = {_ETHER: 1, _LOOPBACK: 1, 65534: 101, 768: 101, 769: 101, 776: 101, 778: 101, 512: 9}
"""ARPHRD_ hardware type -> LINKTYPE_; addresses of tunnels stand for plain IP."""


def _hardware(name: str) -> int | None:
    with suppress(OSError, ValueError), open(f"/sys/class/net/{name}/type") as file:
        return int(file.read())
    return None


class PacketRing:
    """AF_PACKET rings, one per interface."""

    kind = "raw"

    def __init__(self, names: Sequence[str], wanted: Wanted, limits: Limits) -> None:
        self.name = "+".join(names)
        self.broken: CaptureError | None = None
        self._blocks = max(limits.live_kernel_bytes // _BLOCK, 2)
        self._number = 0
        self._dropped = 0
        self._wake, self._bell = os.pipe()
        self._rings: list[_Ring] = []
        try:
            for name in names:
                self._rings.append(_Ring(name, wanted, self._blocks))
        except BaseException:
            self._close()
            raise

    def frames(self, info: SourceInfo) -> Iterator[Frames]:
        """What is captured: a batch for every block or few."""
        info.kind = self.kind
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        by_fd = {ring.socket.fileno(): ring for ring in self._rings}
        for fd in by_fd:
            poll.register(fd, select.POLLIN | select.POLLERR)
        stopping = False
        try:
            while not stopping and self.broken is None:
                for fd, event in poll.poll():
                    if fd == self._wake:
                        stopping = True
                    elif event & select.POLLERR:
                        self.broken = by_fd[fd].error()
                if stopping:
                    select.select([], [], [], 2 * _RETIRE_MS / 1000)  # the kernel's last blocks
                for ring in self._rings:
                    for batch in ring.take():
                        if len(batch):
                            yield self._numbered(batch, info)
        finally:
            self._dropped = self.drops()
            self._close()

    def _numbered(self, frames: Frames, info: SourceInfo) -> Frames:
        count = len(frames)
        frames.source = self.name
        frames.number = np.arange(self._number + 1, self._number + count + 1, dtype=np.int64)
        self._number += count
        info.frames += count
        info.bytes_read += int(frames.length.sum())
        info.cut_frames += int(np.count_nonzero(frames.length < frames.wire_length))
        info.ts_first = int(frames.ts[0]) if info.ts_first is None else info.ts_first
        info.ts_last = int(frames.ts[-1])
        return frames

    def stop(self) -> None:
        """End the capture."""
        with suppress(OSError):
            os.write(self._bell, b"x")

    kill = stop

    def drops(self) -> int:
        """Packets the kernel had no room for."""
        for ring in self._rings:
            self._dropped += ring.dropped()
        return self._dropped

    def _close(self) -> None:
        for ring in self._rings:
            ring.close()
        self._rings = []
        for fd in (self._wake, self._bell):
            with suppress(OSError):
                os.close(fd)


class _Ring:
    """One socket and the blocks it shares with the kernel."""

    def __init__(self, name: str, wanted: Wanted, blocks: int) -> None:
        self.name = name
        self._at = 0
        self._count = blocks
        self._map: mmap.mmap | None = None
        try:
            self.socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, 0
            )  # protocol 0: nothing comes before the filter stands
        except PermissionError:
            raise dumpcap.no_permission(name) from None
        try:
            self._prepare(wanted)
        except OSError as error:
            self.close()
            if error.errno in (errno.EPERM, errno.EACCES):
                raise dumpcap.no_permission(name) from None
            raise CaptureError(
                f"{name}: {error.strerror or error}", "mailhop doctor says what this machine can capture"
            ) from None
        except BaseException:
            self.close()
            raise

    def _prepare(self, wanted: Wanted) -> None:
        hardware = _ETHER if self.name == ANY else _hardware(self.name)
        self._loopback = hardware == _LOOPBACK
        if self.name != ANY and hardware not in _LINKTYPES:
            raise CaptureError(f"{self.name}: its link type cannot be captured without dumpcap", "apt install wireshark-common")
        if wanted.filters:
            # the kernel takes the outer VLAN tag off before the filter sees a frame
            expression = _filter_for(self.name, wanted)
            _attach(self.socket, expression, _LINKTYPES[hardware or _ETHER])
        self.socket.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        request = struct.pack("7I", _BLOCK, self._count, 2048, _BLOCK * self._count // 2048, _RETIRE_MS, 0, 0)
        self.socket.setsockopt(_SOL_PACKET, _RX_RING, request)
        self._map = mmap.mmap(self.socket.fileno(), _BLOCK * self._count)
        self._words = memoryview(self._map).cast("I")
        self.socket.bind(("" if self.name == ANY else self.name, _ETH_P_ALL))
        if wanted.promiscuous and self.name != ANY:
            index = socket.if_nametoindex(self.name)
            self.socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("iHH8s", index, _MR_PROMISC, 0, b""))

    def take(self) -> Iterator[Frames]:
        """Frames of every block that the kernel has handed over; the blocks are given back."""
        while self._map is not None:
            start = self._at * _BLOCK
            word = start // 4
            if not self._words[word + 2] & 1:  # block_status: TP_STATUS_USER
                return
            count, first, size = self._words[word + 3], self._words[word + 4], self._words[word + 5]
            data = self._map[start : start + size]
            self._words[word + 2] = 0
            self._at = (self._at + 1) % self._count
            if count:
                yield self._frames(data, count, first)

    def _frames(self, data: bytes, count: int, first: int) -> Frames:
        places = []
        words = memoryview(data[: len(data) & ~3]).cast("I")
        at = first
        for _ in range(count):
            places.append(at)
            at += words[at >> 2]
        place = np.array(places, np.int64)
        window = np.ndarray((max(len(data) - _HEADER.itemsize + 1, 0),), f"V{_HEADER.itemsize}", data, strides=(1,))
        head = window[place].view(_HEADER)
        kept = np.ones(count, bool)
        if self._loopback or self.name == ANY:
            kept = ~((head["pkttype"] == _OUTGOING) & (head["hatype"] == _LOOPBACK))
        linktype = np.ones(count, np.uint16)
        for hardware in np.unique(head["hatype"]).tolist():
            if hardware not in _LINKTYPES:
                kept &= head["hatype"] != hardware
            linktype[head["hatype"] == hardware] = _LINKTYPES.get(hardware, 1)
        head, place, linktype = head[kept], place[kept], linktype[kept]
        offset = place + head["mac"]
        length = head["snaplen"].astype(np.int64)
        wire = head["len"].astype(np.int64)
        if np.any(head["status"] & _VLAN_VALID):
            data, offset, length, wire = _retag(data, head, offset, length, wire)
        ts = head["sec"].astype(np.int64) * 1_000_000_000 + head["nsec"]
        return Frames("", data, place, ts, offset, length, wire, linktype)

    def error(self) -> CaptureError:
        """Why the socket complains."""
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code in (errno.ENETDOWN, errno.ENODEV, errno.ENXIO, 0):
            return CaptureError(f"{self.name} is gone or down; the capture ends", "capture again when it is back")
        return CaptureError(f"{self.name}: {os.strerror(code)}")

    def dropped(self) -> int:
        """Packets dropped since last asked."""
        with suppress(OSError):
            return int(struct.unpack("3I", self.socket.getsockopt(_SOL_PACKET, _STATISTICS, 12))[1])
        return 0

    def close(self) -> None:
        """Give everything back."""
        if self._map is not None:
            self._words.release()
            self._map.close()
            self._map = None
        self.socket.close()


def _retag(data: bytes, head: Any, offset: I64, length: I64, wire: I64) -> tuple[bytes, I64, I64, I64]:
    """Put VLAN tags, which the kernel took off, back where they were (IEEE 802.1Q)."""
    tagged = np.flatnonzero(head["status"] & _VLAN_VALID)
    pieces, at = [data], len(data)
    for i in tagged.tolist():
        start, end = int(offset[i]), int(offset[i] + length[i])
        tpid = int(head["tpid"][i]) if head["status"][i] & _TPID_VALID else 0x8100
        piece = data[start : start + 12] + struct.pack(">HH", tpid, int(head["tci"][i]) & 0xFFFF) + data[start + 12 : end]
        pieces.append(piece)
        offset[i] = at
        at += len(piece)
    length[tagged] += 4
    wire[tagged] += 4
    return b"".join(pieces), offset, length, wire


def _attach(sock: socket.socket, expression: str, linktype: int) -> None:
    """Compile a filter (libpcap, through scapy) and have the kernel apply it."""
    from scapy.arch.common import compile_filter, free_filter
    from scapy.error import Scapy_Exception
    from scapy.libs.structures import sock_fprog

    try:
        program = compile_filter(expression, linktype=12 if linktype == 101 else linktype)
    except Scapy_Exception as error:
        inner = str(error).rpartition(" (")[2].rstrip(")")
        raise dumpcap.BadFilter(inner or "libpcap does not take it") from None
    except ImportError:
        raise CaptureError(
            "filters need libpcap", "apt install libpcap0.8, or capture with dumpcap: apt install wireshark-common"
        ) from None
    sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_ATTACH_FILTER", 26), sock_fprog(program.bf_len, program.bf_insns))
    free_filter(program)
