"""Segments of one direction that came before their turn."""

from bisect import bisect_right
from typing import NamedTuple


class Piece(NamedTuple):
    """A segment held, or the part of it that no earlier one covers; `data` is shorter than start..end when it was cut."""

    start: int
    end: int
    data: bytes
    ts: int
    frame: int
    ack: int
    kind: int


class Span:
    """Pieces without a hole between them, in any order, and later copies of their octets."""

    __slots__ = ("copies", "end", "pieces", "start")

    def __init__(self, piece: Piece) -> None:
        self.start, self.end = piece.start, piece.end
        self.pieces = [piece]
        self.copies: list[Piece] = []


class Pending:
    """What came before its turn, as disjoint spans in order; the first copy of an octet stays."""

    __slots__ = ("head", "octets", "pieces", "spans", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.spans: list[Span | None] = []
        self.head = 0
        self.octets = 0
        self.pieces = 0

    def __bool__(self) -> bool:
        return self.head < len(self.starts)

    @property
    def first(self) -> int:
        """Offset of the first octet held."""
        return self.starts[self.head]

    @property
    def last(self) -> int:
        """Offset after the last octet held."""
        span = self.spans[-1]
        return span.end if span is not None else 0

    @property
    def holes(self) -> int:
        """Spans held, each behind a hole."""
        return len(self.starts) - self.head

    def add(self, piece: Piece) -> None:
        """Hold a segment."""
        starts, spans = self.starts, self.spans
        low = bisect_right(starts, piece.start, self.head)
        if low > self.head and _span(spans[low - 1]).end >= piece.start:
            low -= 1
        high, at = low, piece.start
        fresh: list[Piece] = []
        while high < len(starts) and starts[high] <= piece.end:
            span = _span(spans[high])
            if span.start > at:
                fresh.append(part(piece, at, span.start))
            covered = part(piece, max(piece.start, span.start), min(piece.end, span.end))
            if covered.data and not _same(span.pieces[-1], covered):
                span.copies.append(covered)
                self.octets += len(covered.data)
                self.pieces += 1
            at = max(at, span.end)
            high += 1
        if at < piece.end:
            fresh.append(part(piece, at, piece.end))
        self.octets += sum(len(p.data) for p in fresh)
        self.pieces += len(fresh)
        self._merge(low, high, fresh)

    def _merge(self, low: int, high: int, fresh: list[Piece]) -> None:
        """Make one span of spans low..high and the pieces between and beside them."""
        starts, spans = self.starts, self.spans
        if low == high:
            starts.insert(low, fresh[0].start)
            spans.insert(low, Span(fresh[0]))
            return
        touched = [_span(span) for span in spans[low:high]]
        span = max(touched, key=lambda s: len(s.pieces))
        span.pieces.extend(fresh)
        for other in touched:
            if other is not span:
                span.pieces.extend(other.pieces)
                span.copies.extend(other.copies)
        span.start = min([touched[0].start] + [p.start for p in fresh[:1]])
        span.end = max([touched[-1].end] + [p.end for p in fresh[-1:]])
        starts[low:high] = [span.start]
        spans[low:high] = [span]

    def take(self) -> Span:
        """The first span, its pieces in order."""
        span = _span(self.spans[self.head])
        self.spans[self.head] = None
        self.head += 1
        if self.head > 1024 and self.head * 2 > len(self.starts):
            del self.starts[: self.head], self.spans[: self.head]
            self.head = 0
        self.octets -= sum(len(p.data) for p in span.pieces) + sum(len(p.data) for p in span.copies)
        self.pieces -= len(span.pieces) + len(span.copies)
        span.pieces.sort()
        return span


def _span(span: Span | None) -> Span:
    assert span is not None
    return span


def part(piece: Piece, start: int, end: int) -> Piece:
    """A piece's octets from one offset to another."""
    if start == piece.start and end == piece.end:
        return piece
    return piece._replace(start=start, end=end, data=piece.data[start - piece.start : end - piece.start])


def _same(held: Piece, copy: Piece) -> bool:
    return held.start == copy.start and held.data == copy.data
