"""The inbox: lines and octets with their times, losses in their place, nothing that depends on the cut."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.protocols.inbox import Inbox
from analyzer.wire.types import Chunk


def chunk(data: bytes, offset: int = 0, gap: int = 0, ts: int = 1, ack: int = -1) -> Chunk:
    return Chunk(
        True, gap, offset, data, [offset] if data else [], [ts] if data else [], [ts] if data else [], [ack] if data else []
    )


def lines_of(octets: bytes, cuts: list[int], limits: Limits) -> list[tuple[bytes, bool, int]]:
    """(line, cut, offset behind it) of every line, as they come."""
    inbox, lines = Inbox(limits), []
    edges = [0, *sorted({c % (len(octets) + 1) for c in cuts}), len(octets)]
    for a, b in itertools.pairwise(edges):
        inbox.append(chunk(octets[a:b], a))
        while inbox.has_line():
            line = inbox.line()
            assert line is not None
            lines.append((line, inbox.cut, inbox.offset))
        assert inbox.line() is None
    return lines


@given(
    st.lists(st.sampled_from([b"a", b"bc", b"\r\n", b"\n", b"\r", b"x" * 30]), max_size=30).map(b"".join),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_lines_do_not_depend_on_the_cut(octets: bytes, cuts: list[int]) -> None:
    limits = Limits(line_bytes=40)
    lines = lines_of(octets, cuts, limits)
    assert lines == lines_of(octets, [], limits)
    assert all(len(line) <= 40 for line, _, _ in lines)


def test_line_ends() -> None:
    inbox = Inbox(Limits())
    inbox.append(chunk(b"one\r\ntwo\n\r\nthree"))
    assert [inbox.line() for _ in range(4)] == [b"one", b"two", b"", None]
    assert inbox.take(2) == b"th"
    assert (inbox.available, inbox.offset) == (3, 13)


def test_a_line_past_the_limit_comes_in_pieces() -> None:
    inbox = Inbox(Limits(line_bytes=4))
    inbox.append(chunk(b"abcdefghij\r\nxy\r\n"))
    assert [(inbox.line(), inbox.cut) for _ in range(4)] == [(b"abcd", True), (b"efgh", True), (b"ij", False), (b"xy", False)]


def test_a_gap_cannot_be_overlooked() -> None:
    inbox = Inbox(Limits())
    inbox.append(chunk(b"one\r\ntw", ts=1))
    inbox.append(chunk(b"ree\r\n", 12, 5, ts=2, ack=7))
    assert (inbox.line(), inbox.line()) == (b"one", None)
    assert (inbox.has_gap, inbox.available, inbox.held) == (True, 2, 7)
    assert (inbox.beyond_gap(), inbox.ack_beyond_gap()) == (b"ree\r\n", 7)
    assert inbox.take_gap() == 5
    assert (inbox.line(), inbox.offset, inbox.has_gap, inbox.take_gap()) == (b"ree", 17, False, 0)
    assert inbox.ts_at(12) == 2


def test_a_gap_with_nothing_behind_it_yet() -> None:
    inbox = Inbox(Limits())
    inbox.append(Chunk(True, 9, 9, b"", [], [3], [33], [44]))
    assert inbox.ack_beyond_gap() == 44
    assert inbox.take_gap() == 9
    assert (inbox.ts_at(9), inbox.frame_at(9), inbox.ack_at(9)) == (3, 33, 44)
    inbox.append(chunk(b"on\r\n", 9))
    assert inbox.line() == b"on"


def test_an_unnamed_hole_is_a_gap_all_the_same() -> None:
    inbox = Inbox(Limits())
    inbox.append(chunk(b"one"))
    inbox.append(chunk(b"two", 10))
    assert (inbox.available, inbox.has_gap) == (3, True)
    assert inbox.take_gap() == 7


def test_times_frames_and_acknowledgements() -> None:
    inbox = Inbox(Limits())
    starts = np.array([0, 4, 6])
    inbox.append(Chunk(True, 0, 0, b"ab\r\ncd\r\n", starts, np.array([10, 20, 30]), np.array([1, 2, 3]), np.array([5, 6, 7])))
    inbox.append(chunk(b"ef\r\n", 8, ts=40, ack=8))
    assert [inbox.ts_at(i) for i in (0, 3, 4, 7, 8)] == [10, 10, 20, 30, 40]
    assert inbox.segment_at(5) == (20, 2, 6)
    assert inbox.span(4, 8) == (20, 2, 6, 30, 3)
    assert (inbox.line(), inbox.line(), inbox.line()) == (b"ab", b"cd", b"ef")
    assert inbox.buf[inbox.pos - 1] == 10


def test_the_chunks_fed_stay_as_they_were() -> None:
    inbox = Inbox(Limits())
    first = chunk(b"a")
    inbox.append(first)
    inbox.append(chunk(b"b", 1))
    assert first.starts == [0]


def test_unread_octets_can_be_handed_on_and_kept() -> None:
    inbox = Inbox(Limits())
    inbox.append(chunk(b"one\r\ntwo"))
    inbox.append(chunk(b"four", 13, 5))
    inbox.line()
    inbox.keep(True)
    inbox.append(chunk(b"five", 17))
    assert [c.data for c in inbox.kept or ()] == [b"two", b"four", b"five"]
    assert inbox.kept_octets == 11
    rest = inbox.rest(True)
    assert [(c.offset, c.gap, c.data) for c in rest] == [(5, 0, b"two"), (13, 5, b"four"), (17, 0, b"five")]
    assert inbox.held == 0
    inbox.append(chunk(b"plain\r\n", 0))
    assert inbox.line() == b"plain"
