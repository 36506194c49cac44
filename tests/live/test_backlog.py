"""What waits between capture and analysis: a burst costs time, not packets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analyzer.backlog import Backlog
from analyzer.limits import Limits
from analyzer.wire.types import Frames


def batch(first: int, count: int) -> Frames:
    """Frames number `first`.. of 40 octets each, that say their number."""
    number = np.arange(first, first + count, dtype=np.int64)
    data = b"".join(int(n).to_bytes(40, "big") for n in number)
    length = np.full(count, 40, np.int64)
    offset = np.arange(count, dtype=np.int64) * 40
    return Frames("eth0", data, number, number * 1000, offset, length, length + 2, np.full(count, 1, np.uint16))


def seen(frames: Frames) -> list[tuple[int, int, bytes, int]]:
    places = zip(frames.number.tolist(), frames.ts.tolist(), frames.offset.tolist(), frames.wire_length.tolist(), strict=True)
    return [(n, ts, bytes(frames.data[at : at + 40]), wire) for n, ts, at, wire in places]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=30))
def test_batches_come_out_as_they_went_in(steps: list[tuple[int, bool]]) -> None:
    """Memory for two batches only: the others wait on disk, in order."""
    backlog = Backlog(replace(Limits(), live_backlog_bytes=300))
    sent, got = [], []
    for i, (count, take) in enumerate(steps):
        frames = batch(i * 5 + 1, count)
        sent += seen(frames)
        backlog.put(frames, [])
        if take and (one := backlog.get(0)) is not None:
            got += seen(one[0])
    backlog.end()
    while not backlog.done:
        one = backlog.get(0)
        assert one is not None
        got += seen(one[0])
    assert got == sent
    assert (backlog.take_shed(), backlog.waiting) == (0, 0)


def test_what_neither_memory_nor_disk_takes_is_counted_and_its_keys_are_kept() -> None:
    backlog = Backlog(replace(Limits(), live_backlog_bytes=100, live_backlog_disk_bytes=500))
    for i in range(5):
        backlog.put(batch(i * 4 + 1, 4), [b"key %d" % i])
    taken = []
    while (one := backlog.get(0)) is not None:
        taken.append(one)
    assert backlog.take_shed() == 20 - sum(len(frames) for frames, _ in taken) > 0
    assert [key for _, keys in taken for key in keys] == [b"key %d" % i for i in range(5)]
    backlog.put(batch(100, 4), [])  # there is room again
    assert backlog.take_shed() == 0


def test_a_full_disk_sheds(tmp_path: Path) -> None:
    backlog = Backlog(replace(Limits(), live_backlog_bytes=100), str(tmp_path / "gone"))
    backlog.put(batch(1, 4), [])
    backlog.put(batch(5, 4), [])
    assert (backlog.take_shed(), backlog.waiting) == (4, 4)


def test_told_to_stop_again_it_leaves_out_what_waits() -> None:
    backlog = Backlog(Limits())
    backlog.put(batch(1, 4), [])
    backlog.drop()
    backlog.end()
    assert backlog.done
    assert backlog.take_shed() == 4
