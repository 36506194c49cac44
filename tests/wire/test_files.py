"""Capture files: what goes in comes out, whole, with its time; what is spoilt costs itself and is told."""

import bz2
import gzip
import io
import lzma
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import capture_writer as write
import lz4.frame
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.wire import files
from analyzer.wire.types import SourceInfo

try:
    from compression import zstd
except ImportError:
    from backports import zstd

FRAMES = write.payloads(40)
FIRST = write.START * 10**9
MILLISECOND = 10**6
TIMES = [FIRST + n * MILLISECOND for n in range(40)]


@dataclass
class Reading:
    """What a capture came to."""

    numbers: list[int]
    times: list[int]
    data: list[bytes]
    wire: list[int]
    linktypes: list[int]
    info: SourceInfo
    batches: int

    @property
    def damage(self) -> list[str]:
        return [row.detail for row in self.info.damage]

    @property
    def said(self) -> tuple[object, ...]:
        info = self.info
        facts = (info.frames, info.ts_first, info.ts_last, info.cut_frames, info.notes, info.secrets, info.damage)
        return (self.numbers, self.times, self.data, self.wire, self.linktypes, *facts)


class Dribble(io.RawIOBase):
    """A file that gives its octets in pieces of given sizes, over and over."""

    def __init__(self, octets: bytes, sizes: list[int]) -> None:
        self._octets, self._sizes, self._turn = io.BytesIO(octets), sizes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        size = self._sizes[self._turn % len(self._sizes)]
        self._turn += 1
        return self._octets.readinto(view[:size])


def read(capture: bytes | str | Path | io.RawIOBase, **limits: int) -> Reading:
    info = SourceInfo("t.pcap")
    reading = Reading([], [], [], [], [], info, 0)
    source = io.BytesIO(capture) if isinstance(capture, bytes) else capture
    for frames in files.read(source, replace(Limits(), **limits), info):  # type: ignore[arg-type]
        assert frames.source == "t.pcap"
        reading.batches += 1
        reading.numbers += frames.number.tolist()
        reading.times += frames.ts.tolist()
        reading.wire += frames.wire_length.tolist()
        reading.linktypes += frames.linktype.tolist()
        for at, length in zip(frames.offset.tolist(), frames.length.tolist(), strict=True):
            reading.data.append(bytes(frames.data[at : at + length]))
    assert info.frames == len(reading.data)
    return reading


def refused(capture: bytes) -> str:
    with pytest.raises(CaptureError) as caught:
        read(capture)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is written is read


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D], ids=["microseconds", "nanoseconds"])
def test_pcap(order: str, magic: int) -> None:
    got = read(write.pcap(FRAMES, order=order, magic=magic))
    assert (got.data, got.times, got.numbers) == (FRAMES, TIMES, list(range(1, 41)))
    assert got.info.kind == "pcap"
    assert not got.damage
    assert (got.info.ts_first, got.info.ts_last) == (TIMES[0], TIMES[-1])


def test_nanoseconds_are_kept() -> None:
    got = read(write.pcap_header(magic=0xA1B23C4D) + write.record(b"x", 5, 123_456_789))
    assert got.times == [5_123_456_789]


@pytest.mark.parametrize("more", [8, 12], ids=["24 octets", "28 octets"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_modified_pcap_has_longer_record_headers(order: str, more: int) -> None:
    records = []
    for n, data in enumerate(FRAMES):
        head = write.record(b"", write.START, 1000 * n, length=len(data), wire=len(data), order=order)
        records.append(head + bytes(more) + data)
    got = read(write.pcap_header(order=order, magic=0xA1B2CD34) + b"".join(records))
    assert (got.data, got.times) == (FRAMES, TIMES)


def test_snoop() -> None:
    got = read(write.snoop(FRAMES))
    assert (got.data, got.times, got.info.kind) == (FRAMES, TIMES, "snoop")
    assert set(got.linktypes) == {1}


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order: str) -> None:
    got = read(write.pcapng(FRAMES, order))
    assert (got.data, got.times, got.info.kind) == (FRAMES, TIMES, "pcapng")
    assert not got.damage


def test_sections_each_have_their_byte_order_and_interfaces() -> None:
    first = write.section("<") + write.interface(1) + write.enhanced(b"one", 1)
    second = write.section(">") + write.interface(101, order=">") + write.enhanced(b"two", 2, order=">")
    third = write.section("<") + write.interface(113) + write.interface(228) + write.enhanced(b"three", 3, 1)
    got = read(first + second + third)
    assert got.data == [b"one", b"two", b"three"]
    assert got.linktypes == [1, 101, 228]
    assert got.times == [1000, 2000, 3000]


@pytest.mark.parametrize(
    ("resolution", "ticks", "nanoseconds"),
    [
        (0, 7, 7 * 10**9),
        (3, 1_700_000_000_123, 1_700_000_000_123_000_000),
        (9, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (12, 1_700_000_123_456_789, 1_700_000_123_456),
        (19, 2**64 - 1, 1_844_674_407),
        (0x80 | 20, (1_700_000_000 << 20) + 1, 1_700_000_000_000_000_953),
        (0x80 | 32, (1_700_000_000 << 32) + (1 << 31), 1_700_000_000_500_000_000),
        (0x80 | 60, (15 << 60) + (1 << 59) + (1 << 30), 15_500_000_000),
        (0x80 | 63, 2**64 - 1, 1_999_999_999),
        (6, 2**64 - 1, 9_223_372_036_854_775_000),
    ],
)
def test_interface_clocks(resolution: int, ticks: int, nanoseconds: int) -> None:
    """if_tsresol: 10^-n or 2^-n seconds; what 64 bits of nanoseconds cannot hold ends at their last."""
    clock = write.option(9, bytes([resolution]))
    got = read(write.section() + write.interface(options=clock) + write.enhanced(b"x", ticks))
    assert got.times == [nanoseconds]


@given(st.integers(0, 2**64 - 1), st.integers(0, 63))
def test_binary_clocks_are_exact(ticks: int, power: int) -> None:
    clock = write.option(9, bytes([0x80 | power]))
    got = read(write.section() + write.interface(options=clock) + write.enhanced(b"x", ticks))
    exact = ticks * 10**9 >> power
    assert got.times == [min(exact, got.times[0])]
    assert exact < 2**63 or got.times[0] > 9_223_372_034 * 10**9


def test_interface_time_offset() -> None:
    shifted = write.interface(options=write.option(14, struct.pack("<q", 1_600_000_000)))
    back = write.interface(options=write.option(14, struct.pack("<q", -1)))
    got = read(write.section() + shifted + back + write.enhanced(b"a", 5) + write.enhanced(b"b", 5_000_000, 1))
    assert got.times == [1_600_000_000_000_005_000, 4_000_000_000]


def test_simple_and_obsolete_packets() -> None:
    """A Simple Packet Block has no time of its own and may be cut by its interface's snap length."""
    capture = write.section() + write.interface(snaplen=8) + write.simple(b"before")
    capture += write.obsolete(b"old one", 77) + write.simple(b"12345678", wire=1000)
    got = read(capture)
    assert got.data == [b"before", b"old one", b"12345678"]
    assert got.times == [0, 77_000, 77_000]
    assert got.wire == [6, 7, 1000]


def test_other_blocks_are_passed_over_and_numbered_as_wireshark_does() -> None:
    """Wireshark shows custom blocks and journal entries as frames: their numbers are left out."""
    others = [write.block(4, bytes(8)), write.block(5, bytes(12)), write.block(0xDEAD, b"?" * 50)]
    numbered = [write.block(0x0BAD, b"1234custom"), write.block(0x4000_0BAD, b"1234"), write.block(9, b"__CURSOR=1\n")]
    capture = write.section() + write.interface() + write.enhanced(b"first", 1)
    got = read(capture + b"".join(others) + write.enhanced(b"second", 2) + b"".join(numbered) + write.enhanced(b"last", 3))
    assert got.data == [b"first", b"second", b"last"]
    assert got.numbers == [1, 2, 6]
    assert not got.damage


def test_secrets_are_handed_on() -> None:
    got = read(write.section() + write.secrets(b"CLIENT_RANDOM 00 11\n") + write.interface() + write.enhanced(b"x", 1))
    assert got.info.secrets == [b"CLIENT_RANDOM 00 11\n"]


def test_too_many_secrets_are_left_and_told() -> None:
    got = read(write.section() + write.secrets(b"a" * 60) + write.secrets(b"b" * 60), secrets_bytes=100)
    assert got.info.secrets == [b"a" * 60]
    assert [note.name for note in got.info.notes] == ["secrets_dropped"]


@pytest.mark.parametrize("network", [1, 0x1400_0001 | 4 << 28], ids=["plain", "with FCS length"])
def test_link_type_without_the_bits_above_it(network: int) -> None:
    assert read(write.pcap(FRAMES[:1], linktype=network)).linktypes == [1]


def test_no_packets_is_fine() -> None:
    for capture in (write.pcap([]), write.pcapng([]), write.snoop([]), write.section()):
        got = read(capture)
        assert (got.data, got.damage, got.info.ts_first) == ([], [], None)


def test_snap_length() -> None:
    """What was cut is counted; a snap length is not believed against the records."""
    for snaplen in (0, 64, 0xFFFF_FFFF):
        capture = write.pcap_header(snaplen=snaplen) + write.record(b"x" * 100, wire=1500) + write.record(b"y" * 200)
        got = read(capture)
        assert [len(data) for data in got.data] == [100, 200]
        assert got.wire == [1500, 200]
        assert (got.info.cut_frames, got.damage) == (1, [])


def test_empty_and_tiny_frames() -> None:
    frames = [b"", b"x" * 20, b"", b"", b"y", b""]
    assert read(write.pcap(frames)).data == frames
    assert read(write.pcapng(frames)).data == frames


def test_times_pass_as_they_are() -> None:
    """Zero, backward and far-off times are what was captured; one row tells of a clock set back."""
    seconds = [100, 70, 71, 5, 6]
    got = read(write.pcap_header() + b"".join(write.record(b"x" * 20, s) for s in seconds))
    assert got.times == [s * 10**9 for s in seconds]
    assert not got.damage
    [note] = got.info.notes
    assert (note.name, note.frame, note.detail) == ("clock_jump", 2, "2 times, first by 30.000 s")
    zero = read(write.pcap_header() + b"".join(write.record(b"x" * 20, 0) for _ in range(5)))
    assert (zero.times, zero.damage, zero.info.notes) == ([0] * 5, [], [])


def test_small_disorder_is_not_a_clock_jump() -> None:
    assert not read(write.pcap_header() + write.record(b"x" * 20, 10, 5) + write.record(b"x" * 20, 10, 4)).info.notes


# Compression


def lz4_frame(octets: bytes) -> bytes:
    return bytes(lz4.frame.compress(octets))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd.compress,
    "lz4": lz4_frame,
}
each_compression = pytest.mark.parametrize("suffix", COMPRESSIONS)


@each_compression
def test_compressed(suffix: str) -> None:
    got = read(COMPRESSIONS[suffix](write.pcap(FRAMES)))
    assert (got.data, got.times, got.info.kind) == (FRAMES, TIMES, f"pcap.{suffix}")
    assert not got.damage


@each_compression
def test_several_members_are_one_file(suffix: str) -> None:
    capture = write.pcapng(FRAMES)
    parts = [capture[:100], b"", capture[100:101], capture[101:]]
    assert read(b"".join(COMPRESSIONS[suffix](part) for part in parts)).data == FRAMES


def test_gzip_member_with_name_comment_and_checksum() -> None:
    member = gzip.compress(write.pcap(FRAMES))
    head = b"\x1f\x8b\x08\x1e" + member[4:10] + b"\4\0abcd" + b"name\0" + b"comment\0" + b"\0\0"
    assert read(head + member[10:]).data == FRAMES


def test_skippable_frames_and_padding() -> None:
    capture = write.pcap(FRAMES)
    skip = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 9) + b"no matter"
    assert read(skip + zstd.compress(capture) + skip).data == FRAMES
    assert read(lz4_frame(capture) + skip).data == FRAMES
    assert read(lzma.compress(capture) + bytes(8)).damage == []


def test_compressed_twice() -> None:
    got = read(zstd.compress(gzip.compress(write.pcap(FRAMES))))
    assert (got.data, got.info.kind) == (FRAMES, "pcap.gz.zst")


def test_compressed_too_often() -> None:
    capture = write.pcap(FRAMES)
    for _ in range(4):
        capture = gzip.compress(capture)
    assert "compressed more than 3 times" in refused(capture)


@each_compression
def test_compressed_and_cut(suffix: str) -> None:
    """The stream breaks off: what came before is there, and one row tells of it."""
    frames = [os.urandom(700) for _ in range(3000)]
    whole = COMPRESSIONS[suffix](write.pcap(frames))
    got = read(whole[: len(whole) * 3 // 4])
    assert got.data == frames[: len(got.data)]
    assert len(got.data) >= 100
    [row] = got.damage
    assert row.startswith(f"the {suffix} compression ends early")


@each_compression
def test_compressed_and_corrupt(suffix: str) -> None:
    frames = [os.urandom(700) for _ in range(3000)]
    spoilt = bytearray(COMPRESSIONS[suffix](write.pcap(frames)))
    middle = len(spoilt) * 3 // 4
    spoilt[middle : middle + 5000] = bytes(5000)
    got = read(bytes(spoilt))
    assert got.data[:1000] == frames[:1000]
    assert got.damage


def test_wrong_gzip_checksum_costs_nothing_but_is_told() -> None:
    spoilt = bytearray(gzip.compress(write.pcap(FRAMES)))
    spoilt[-8] ^= 1
    got = read(bytes(spoilt))
    assert got.data == FRAMES
    assert "wrong checksum" in got.damage[0]


def test_something_behind_the_compressed_capture() -> None:
    got = read(gzip.compress(write.pcap(FRAMES)) + b"and now for something completely different")
    assert got.data == FRAMES
    assert "something else behind it" in got.damage[0]


@each_compression
def test_bomb(suffix: str) -> None:
    """Zeros without end after a good frame: the frame is read, the rest stops at the bound."""
    bomb = COMPRESSIONS[suffix](write.pcap(FRAMES) + bytes(4 << 20))
    got = read(bomb, unpacked_free=1 << 20)
    assert got.data == FRAMES
    assert got.info.damage[-1].name == "decompression_limit"
    most = read(bomb, unpacked_bytes=1 << 20)
    assert most.info.damage[-1].name == "decompression_limit"


def test_bomb_in_a_bomb() -> None:
    inner = gzip.compress(write.pcap(FRAMES) + bytes(64 << 20))
    got = read(gzip.compress(inner), unpacked_free=1 << 20)
    assert got.data == FRAMES
    assert got.info.damage[-1].name == "decompression_limit"


def test_thousands_of_empty_members() -> None:
    capture = gzip.compress(write.pcap(FRAMES)) + gzip.compress(b"") * 1000
    assert "too many tiny pieces" in read(capture, unpacked_streams=100).damage[-1]


# Damage


def test_cut_in_a_record() -> None:
    capture = write.pcap(FRAMES)
    for cut in (1, 10, 60, 70):
        got = read(capture[:-cut])
        assert got.data == FRAMES[:-1]
        [row] = got.info.damage
        assert row.detail.startswith(f"cut at byte {len(capture) - cut} in frame 40")
        assert (row.frame, row.ts) == (40, TIMES[-2])


def test_cut_in_a_block() -> None:
    capture = write.pcapng(FRAMES)
    for cut in (1, 4, 40, 90):
        got = read(capture[:-cut])
        assert got.data == FRAMES[:-1]
        assert [row.frame for row in got.info.damage] == [40]


def test_record_with_a_lying_length_is_still_read() -> None:
    """Its length on the wire fits the place where the next record begins."""
    for lie in (0xFFFF_FFF0, 300_000, len(FRAMES[9]) + 1):
        records = [write.record(data, write.START + n) for n, data in enumerate(FRAMES)]
        records[9] = write.record(FRAMES[9], write.START + 9, length=lie, wire=len(FRAMES[9]))
        got = read(write.pcap_header() + b"".join(records))
        assert got.data == FRAMES
        assert len(got.damage) == 1


def test_ruined_record_costs_itself() -> None:
    records = [write.record(data, write.START + n) for n, data in enumerate(FRAMES)]
    records[9] = b"\xff" * len(records[9])
    got = read(write.pcap_header() + b"".join(records))
    assert got.data == FRAMES[:9] + FRAMES[10:]
    [row] = got.info.damage
    begin = 24 + sum(map(len, records[:9]))
    assert f"at byte {begin}: {len(records[9])} octets skipped" in row.detail
    assert row.frame == 10


def test_octets_put_between_records() -> None:
    records = [write.record(data, write.START + n) for n, data in enumerate(FRAMES)]
    for garbage in (b"\0" * 3, b"\0" * 1000, b"some text here " * 10, bytes(range(256)) * 50):
        got = read(write.pcap_header() + b"".join(records[:20]) + garbage + b"".join(records[20:]))
        assert got.data[:19] == FRAMES[:19]
        assert got.data[-19:] == FRAMES[-19:]
        assert len(got.data) <= 40
        assert len(got.damage) == 1


def test_octets_missing_from_a_record() -> None:
    records = [write.record(data, write.START + n) for n, data in enumerate(FRAMES)]
    for missing in (1, 4, 16, 50):
        got = read(write.pcap_header() + b"".join(records[:20])[:-missing] + b"".join(records[20:]))
        assert got.data[:19] == FRAMES[:19]
        assert got.data[-19:] == FRAMES[-19:]
        assert len(got.damage) == 1


def test_trailing_garbage() -> None:
    for capture in (write.pcap(FRAMES), write.pcapng(FRAMES), write.snoop(FRAMES)):
        got = read(capture + b"Kind regards, the disk. " * 12)
        assert got.data == FRAMES
        assert len(got.damage) == 1


def test_tail_of_zeros() -> None:
    """A machine that lost power leaves zeros, which are no empty frames."""
    got = read(write.pcap(FRAMES) + bytes(5000))
    assert got.data == FRAMES
    assert "the last 5000 octets cannot be read" in got.damage[0]


def test_writers_with_odd_habits_are_believed() -> None:
    """Fractions of more than a second, or frames longer than they were: odd throughout, so meant."""
    records = [write.record(data, write.START + n, 1_500_000) for n, data in enumerate(FRAMES)]
    got = read(write.pcap_header() + b"".join(records))
    assert (got.data, got.damage) == (FRAMES, [])
    assert got.times[0] == FIRST + 1_500_000_000
    records = [write.record(data, write.START + n, wire=0) for n, data in enumerate(FRAMES)]
    got = read(write.pcap_header() + b"".join(records))
    assert (got.data, got.damage) == (FRAMES, [])
    assert got.wire == [len(data) for data in FRAMES]


def test_large_frames_are_believed() -> None:
    frames = [*FRAMES[:3], b"z" * 400_000, *FRAMES[3:]]
    for capture in (write.pcap(frames), write.pcapng(frames), write.snoop(frames)):
        got = read(capture)
        assert (got.data, got.damage) == (frames, [])


def test_captures_put_together_with_cat() -> None:
    capture = write.pcap(FRAMES[:20]) + write.pcap(FRAMES[20:30], linktype=101, order=">") + write.pcap(FRAMES[30:])
    got = read(capture)
    assert (got.data, got.damage) == (FRAMES, [])
    assert got.linktypes == [1] * 20 + [101] * 10 + [1] * 10


def test_block_with_lying_lengths_is_still_read() -> None:
    packets = [write.enhanced(data, n) for n, data in enumerate(FRAMES)]
    for where, lie in ((4, 33), (4, 2), (4, 0xFFFF_FFF0), (-4, 7)):
        spoilt = bytearray(packets[9])
        struct.pack_into("<I", spoilt, where % len(spoilt), lie)
        got = read(write.section() + write.interface() + b"".join([*packets[:9], bytes(spoilt), *packets[10:]]))
        assert got.data == FRAMES
        assert len(got.damage) == 1


def test_ruined_block_costs_itself() -> None:
    packets = [write.enhanced(data, n) for n, data in enumerate(FRAMES)]
    for ruin in (b"\xff" * 90, b"\0" * 3, b"\0" * 1000, packets[9][:37], packets[9][1:]):
        got = read(write.section() + write.interface() + b"".join([*packets[:9], ruin, *packets[10:]]))
        assert got.data == FRAMES[:9] + FRAMES[10:]
        assert len(got.damage) == 1


def test_section_after_ruin_brings_its_own_byte_order() -> None:
    got = read(write.pcapng(FRAMES[:20]) + b"\xff" * 33 + write.pcapng(FRAMES[20:], ">"))
    assert got.data == FRAMES
    assert len(got.damage) == 1


def test_packet_longer_than_its_block() -> None:
    odd = write.enhanced(b"four", 2, length=4000, wire=4000)
    got = read(write.section() + write.interface() + write.enhanced(b"x", 1) + odd * 3 + write.enhanced(b"y", 9))
    assert got.data == [b"x", b"four", b"four", b"four", b"y"]
    assert got.damage == ["3 packets longer than their blocks, cut to those (first: frame 2)"]


def test_packets_of_no_interface() -> None:
    got = read(write.section() + write.enhanced(b"early", 1) + write.interface() + write.enhanced(b"x", 1) + write.simple(b"y"))
    assert got.data == [b"x", b"y"]
    assert got.damage == ["1 packets of an interface that was not declared, skipped (first: frame 1)"]


def test_more_interfaces_than_the_bound() -> None:
    capture = write.section() + write.interface() * 10 + write.enhanced(b"x", 1)
    assert "more than 9 interfaces" in read(capture, interfaces=9).damage[0]
    assert not read(capture, interfaces=10).damage


def test_more_damage_than_the_bound() -> None:
    piece = write.record(b"x" * 20) * 2 + b"\xff" * 40
    got = read(write.pcap_header() + piece * 50, restarts=10)
    assert len(got.damage) == 11
    assert "given up" in got.damage[-1]
    assert len(got.data) == 22


def test_lengths_are_not_allocated() -> None:
    """A frame of 15 MB is announced, 100 octets follow."""
    got = read(write.pcap(FRAMES) + write.record(b"x" * 100, write.START + 1, length=15 << 20, wire=15 << 20))
    assert got.data == FRAMES
    assert len(got.damage) == 1


# Nothing depends on how the octets came


def spoil(capture: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Replace octets here and there: (place, how many, with what)."""
    for place, size, octets in changes:
        at = place % (len(capture) + 1)
        capture = capture[:at] + octets + capture[at + size :]
    return capture


KINDS = {
    "pcap": write.pcap(FRAMES),
    "pcap big-endian": write.pcap(FRAMES, order=">"),
    "pcapng": write.pcapng(FRAMES),
    "pcapng mixed": write.pcapng(FRAMES[:20], ">") + write.secrets(b"x") + write.simple(b"simple") + write.pcapng(FRAMES[20:]),
    "snoop": write.snoop(FRAMES),
}
changes = st.lists(
    st.tuples(
        st.integers(0, 5000),
        st.sampled_from([0, 0, 1, 4, 16, 100]),
        st.one_of(st.binary(max_size=40), st.sampled_from([bytes(100), b"\xff" * 8, struct.pack("<I", 1000), FRAMES[0]])),
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), changes, st.integers(1, 6000), st.lists(st.integers(1, 3000), min_size=1, max_size=5))
@example("pcapng mixed", [], 1, [1])
@example("pcap", [(500, 4, b"\xff" * 4)], 1, [7])
def test_batches_and_pieces_cannot_be_seen(
    kind: str, changes: list[tuple[int, int, bytes]], batch: int, sizes: list[int]
) -> None:
    """Spoilt or not, a capture comes to the same in any batch size, read in any pieces; and nothing raises."""
    capture = spoil(KINDS[kind], changes)
    try:
        whole = read(capture)
    except CaptureError as error:
        with pytest.raises(CaptureError, match=r"^t\.pcap: "):
            read(Dribble(capture, sizes), batch_bytes=batch)
        assert str(error).startswith("t.pcap: ")
        return
    assert read(capture, batch_bytes=batch).said == whole.said
    assert read(Dribble(capture, sizes), batch_bytes=batch).said == whole.said


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(COMPRESSIONS)), changes, st.integers(1, 6000))
def test_spoilt_compression_never_raises_else(suffix: str, changes: list[tuple[int, int, bytes]], batch: int) -> None:
    capture = spoil(COMPRESSIONS[suffix](write.pcap(FRAMES)), changes)
    try:
        whole = read(capture)
    except CaptureError:
        return
    assert read(capture, batch_bytes=batch).said == whole.said


def test_batches_hold_about_what_was_asked_for() -> None:
    capture = write.pcap(write.payloads(2000, 1000))
    assert read(capture).batches == 1
    assert 15 <= read(capture, batch_bytes=100_000).batches <= 25


# Where captures come from


def test_path_and_progress(tmp_path: Path) -> None:
    path = tmp_path / "a capture"
    capture = write.pcap(FRAMES)
    path.write_bytes(capture)
    told: list[tuple[int, int | None]] = []
    info = SourceInfo(str(path))
    for frames in files.read(path, Limits(), info, progress=lambda done, total: told.append((done, total))):
        assert frames.source == str(path)
    assert told[-1] == (len(capture), len(capture))
    assert info.bytes_read == len(capture)


def test_other_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(write.pcap(FRAMES))
    [frames] = files.read(str(path), Limits(), SourceInfo(str(path)), name="tap B")
    assert frames.source == "tap B"


def test_open_file_is_read_from_where_it_stands_and_left_open(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"prefix" + write.pcap(FRAMES))
    with path.open("rb") as file:
        file.read(6)
        assert read(file).data == FRAMES  # type: ignore[arg-type]
        assert not file.closed


def test_text_file_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("From the beginning\n")
    with path.open() as file, pytest.raises(CaptureError, match="open as text"):
        read(file)  # type: ignore[arg-type]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(write.pcapng(FRAMES))))
    assert read("-").data == FRAMES


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_pipe_gives_frames_as_they_come(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A live capture through a pipe: the first frames are handed out before the writer goes on."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    seen = threading.Event()

    def writer() -> None:
        with path.open("wb", buffering=0) as pipe:
            pipe.write(pack(write.pcapng(FRAMES[:7])))
            assert seen.wait(30)
            pipe.write(pack(write.enhanced(FRAMES[7], 1)))

    thread = threading.Thread(target=writer)
    thread.start()
    counts = []
    for frames in files.read(path, Limits(), SourceInfo(str(path))):
        counts.append(len(frames))
        seen.set()
    thread.join()
    assert counts == [7, 1]


def test_walker_can_be_pushed() -> None:
    """What a live capture does: put octets in, take frames out."""
    from analyzer.wire.pcapng import BlockWalker

    info = SourceInfo("eth0")
    walker = BlockWalker("eth0", Limits(), info)
    numbers = []
    for begin in range(0, len(capture := write.pcapng(FRAMES)), 777):
        piece = capture[begin : begin + 777]
        walker.space()[: len(piece)] = piece
        walker.fill(len(piece))
        frames = walker.take()
        numbers += [] if frames is None else frames.number.tolist()
    assert walker.finish() is None
    assert numbers == list(range(1, 41))


def test_first_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for capture, ts in ((gzip.compress(write.pcap(FRAMES)), FIRST), (write.pcap([]), None), (b"nonsense", None), (b"", None)):
        path.write_bytes(capture)
        assert files.peek_first_ts(path) == ts
    assert files.peek_first_ts("-") is None
    assert files.peek_first_ts(tmp_path / "none") is None
    assert files.peek_first_ts(tmp_path) is None


def test_memory_stays_flat(tmp_path: Path) -> None:
    """60 MB of frames pass through a buffer of a few."""
    import tracemalloc

    piece = write.pcap(write.payloads(1000, 1000))[24:]
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(write.pcap_header())
        for _ in range(60):
            file.write(piece)
    tracemalloc.start()
    count = sum(len(frames) for frames in files.read(path, replace(Limits(), batch_bytes=4 << 20), SourceInfo("x")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 20 << 20


# What is no capture


def test_missing_file_directory_and_permission(tmp_path: Path) -> None:
    for path, word in ((tmp_path / "none.pcap", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(CaptureError, match=word):
            read(path)


def test_empty_file() -> None:
    assert "the file is empty (0 octets)" in refused(b"")
    assert "is empty" in refused(gzip.compress(b""))


def test_cut_file_header() -> None:
    assert "pcap file header is cut: 10 of 24 octets" in refused(write.pcap([])[:10])
    assert "file header is cut" in refused(write.pcap([])[:3])
    assert "file header is cut" in refused(write.snoop([])[:12])
    assert "ends early" in refused(gzip.compress(write.pcap(FRAMES))[:12])


@pytest.mark.parametrize(
    ("octets", "word"),
    [
        (b"PK\3\4" + bytes(60), "ZIP archive"),
        (b"GMBU" + bytes(60), "Network Monitor"),
        (b"From alice@example.org Mon Nov 23 10:00:00 2026\nSubject: x\n", "mbox"),
        (b"Received: from a by b; Mon, 23 Nov 2026 10:00:00 +0000\r\n", "e-mail message"),
        (b'{"log": {"version": "1.2"}}', "HTTP archive"),
        (b"# a comment\nCLIENT_RANDOM " + b"ab" * 32 + b" " + b"cd" * 48 + b"\n", "TLS key log"),
        (b"12:00:00.000001 IP 192.0.2.1.25 > 192.0.2.2.40000: Flags [S]\n", "what tcpdump printed"),
        (b"0000  00 11 22 33 44 55 66 77\n", "hex dump"),
        (b"Dear all,\nthe capture is attached.\n", "text"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
        (bytes(300), "zeros"),
        (struct.pack("<II", 0, write.START) + struct.pack(">BBHHH", 2, 4, 80, 0, 60) + bytes(64), "Endace ERF"),
        (b"\x89\x12\x99\x45\xaa\xbb\x01\x02" * 9, "begins with 89 12 99 45"),
    ],
)
def test_other_kinds_are_named(octets: bytes, word: str) -> None:
    assert word in refused(octets)
    if "zeros" not in word:
        assert word in refused(gzip.compress(octets))


def test_unknown_snoop_datalink() -> None:
    assert "snoop datalink type 99" in refused(write.snoop(FRAMES, datalink=99))


def test_reading_fails_midway() -> None:
    class Failing(Dribble):
        def readinto(self, view: memoryview) -> int:  # type: ignore[override]
            got = super().readinto(view)
            if not got:
                raise OSError(5, "Input/output error")
            return got

    got = read(Failing(write.pcap(FRAMES), [1000]))
    assert got.data == FRAMES
    assert "Input/output error" in got.damage[0]


@pytest.mark.parametrize("batch", [64, 1 << 20])
def test_interfaces_of_every_section_are_told_when_asked_for(tmp_path: Path, batch: int) -> None:
    def named(name: bytes, linktype: int = 1) -> bytes:
        return write.interface(linktype, options=write.option(2, name) + bytes(4))

    sections = write.section() + named(b"eth0") + named(b"lo", 101)
    sections += write.enhanced(FRAMES[0], 1, 1) + write.enhanced(FRAMES[1], 2, 0)
    sections += write.section() + named(b"wlan0", 105) + write.enhanced(FRAMES[2], 3, 0)
    path = tmp_path / "t.pcapng"
    path.write_bytes(sections)
    info = SourceInfo("t.pcapng", interfaces=[])
    met: list[int] = []
    for frames in files.read(path, Limits(batch_bytes=batch), info):
        assert frames.interface is not None and len(frames.interface) == len(frames)
        met += frames.interface.tolist()
    assert info.interfaces is not None
    assert [(i.name, i.linktype) for i in info.interfaces] == [(b"eth0", 1), (b"lo", 101), (b"wlan0", 105)]
    assert met == [1, 0, 2]
    assert all(frames.interface is None for frames in files.read(path, Limits(), SourceInfo("t.pcapng")))
