"""Rows on their way into tables, in bounded memory.

1. Rows come in any order and leave sorted (`Table.order`, then the whole row), so that tables depend on
   what was found and not on when.
2. A spool holds `Limits.spool_rows` rows; more are sorted and go to an unnamed temporary file, which is
   gone when the process is, however it ends.  Reading merges them.
3. `anomalies` keeps the first `Limits.folded_anomalies` rows, by that order, of each name and source; the
   rest is one row that counts them.
"""

import marshal
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from operator import eq, itemgetter
from typing import IO, Any

from analyzer.limits import Limits
from analyzer.scratch import read_at, scratch, unbuffered
from analyzer.tables.schema import TABLES, Table, describe
from analyzer.wire.anomalies import Anomaly

_BLOCK = 256
"""Rows read at a time of each spilled run, at most."""
_BLOCKS = 16
"""Share of the rows that may be held, 1/16, that is read at a time of each run, so that merging takes no more memory;
at least as many rows."""
_FAN = 64
"""Spilled runs of one level: then they are merged into one of the next, so that few files are open."""
_LAST: dict[str, Any] = {"int": 1 << 64, "time": 1 << 64, "text": "\U0010ffff"}
"""What an absent value counts as in the order."""

Key = Callable[[Any], Any]
Blocks = Iterator[list[Any]]
"""Rows in order, a list of them at a time."""


class _Whole:
    """A whole row as the last part of a sort key: compared only when everything before it is equal."""

    __slots__ = ("row",)

    def __init__(self, row: Any) -> None:
        self.row = row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Whole) and self.row == other.row

    def __hash__(self) -> int:
        return hash(repr(self.row))

    def __lt__(self, other: "_Whole") -> bool:
        for mine, theirs in zip(self.row, other.row, strict=True):
            if mine == theirs:
                continue
            if mine is None or theirs is None:
                return theirs is None
            try:
                return bool(mine < theirs)
            except TypeError:
                return repr(mine) < repr(theirs)
        return False


def sort_key(table: Table) -> Key:
    """The sort key of a table's rows: total, and safe with absent values."""
    place = {column.name: (i, column.kind) for i, column in enumerate(table.columns)}
    parts = []
    for name in table.order:
        i, kind = place[name]
        parts.append(f"r[{i}] if r[{i}] is not None else {_LAST[kind]!r}")
    source = f"lambda r: ({', '.join(parts)}, whole(r))"
    key: Key = eval(source, {"whole": _Whole})  # our own column numbers: one call per row instead of a loop per column
    return key


class _Order:
    """The order of a table's rows."""

    def __init__(self, table: Table) -> None:
        names = [column.name for column in table.columns]
        self.key = sort_key(table)
        self._columns: Key = itemgetter(*map(names.index, table.order))

    def sort(self, rows: list[Any]) -> None:
        """Sort rows: by the columns of the order alone where all of them differ, as nearly always."""
        columns = self._columns
        try:
            rows.sort(key=columns)
        except TypeError:  # an absent value
            rows.sort(key=self.key)
            return
        keys = list(map(columns, rows))
        if any(map(eq, keys, islice(keys, 1, None))):
            rows.sort(key=self.key)

    def merge(self, sources: Iterable[Blocks]) -> Blocks:
        """Sorted blocks of several sources as sorted blocks: what no source can still undercut is sorted at once."""
        cursors = [cursor for cursor in map(partial(_Cursor, self.key), sources) if cursor.advance()]
        while len(cursors) > 1:
            nearest = min(cursors, key=_last)
            upto = nearest.last
            parts = [cursor.take(upto) for cursor in cursors if not upto < cursor.first]
            if len(parts) == 1:
                yield parts[0]
            else:
                rows = list(chain.from_iterable(parts))
                self.sort(rows)
                yield rows
            cursors = [cursor for cursor in cursors if cursor.rows or cursor.advance()]
        for cursor in cursors:
            yield cursor.rows
            yield from cursor.blocks


class _Cursor:
    """A place in a source of sorted blocks."""

    __slots__ = ("blocks", "first", "key", "last", "rows")

    def __init__(self, key: Key, blocks: Blocks) -> None:
        self.key = key
        self.blocks = blocks
        self.rows: list[Any] = []
        self.first: Any = None
        self.last: Any = None

    def advance(self) -> bool:
        """Go on to the next block, if there is one."""
        for rows in self.blocks:
            if rows:
                self.rows = rows
                self.first, self.last = self.key(rows[0]), self.key(rows[-1])
                return True
        return False

    def take(self, upto: Any) -> list[Any]:
        """The rows of the block up to a key."""
        rows = self.rows
        if not upto < self.last:
            self.rows = []
            return rows
        at = bisect_right(rows, upto, key=self.key)
        self.rows = rows[at:]
        self.first = self.key(rows[at])
        return rows[:at]


def _last(cursor: _Cursor) -> Any:
    return cursor.last


def _packer(table: Table) -> Callable[[list[Any]], list[Any]]:
    """A function from rows to tuples fit for marshal, which would take a numpy number for octets."""
    exact = {"int": "int", "time": "int", "seconds": "float", "float": "float", "bool": "bool"}
    parts = []
    for i, column in enumerate(table.columns):
        kind = exact.get(column.kind)
        parts.append(f"{kind}(v{i}) if v{i} is not None and type(v{i}) is not {kind} else v{i}" if kind else f"v{i}")
    variables = ", ".join(f"v{i}" for i in range(len(table.columns)))
    source = f"lambda rows: [({', '.join(parts)},) for {variables}, in rows]"
    packer: Callable[[list[Any]], list[Any]] = eval(source)
    return packer


class _Run:
    """Sorted rows in a temporary file."""

    def __init__(self, file: IO[bytes], place: int, sizes: Iterable[int], level: int = 0) -> None:
        """Blocks of these sizes (octets) from a place on; `level`: how often its rows were merged."""
        self._file = file
        self._place = place
        self._sizes = array("I", sizes)
        self.level = level

    def blocks(self) -> Blocks:
        """The rows, as tuples."""
        place = self._place
        for size in self._sizes:
            yield marshal.loads(read_at(self._file, size, place))
            place += size

    def close(self) -> None:
        """Give the file back; other runs may be in it, which go at the same time (`Tables.close`)."""
        self._file.close()


class Spool:
    """Rows of one table: added in any order, read in the table's, as often as wanted."""

    def __init__(self, table: Table, limit: int) -> None:
        self.table = table
        self._limit = max(limit, 1)
        self._block = min(max(limit // _BLOCKS, min(limit, _BLOCKS)), _BLOCK)
        self._order = _Order(table)
        self._pack = _packer(table)
        self._rows: list[Any] = []
        self._sorted = True
        self._runs: list[_Run] = []
        self._spilled = 0
        self.lend: Callable[[str, list[bytes], int], None] | None = None
        """Takes sorted runs instead of a temporary file: (table, blocks, number of rows), for another process's `adopt`."""
        self.change: Callable[[Any], Any] | None = None
        """Applied to each row as it is read: what is known of a row only at the end (must keep the order)."""

    def __len__(self) -> int:
        return self._spilled + len(self._rows)

    def add(self, row: Any) -> None:
        """Add a row."""
        self._rows.append(row)
        self._sorted = False
        if len(self._rows) >= self._limit:
            self._spill()

    def extend(self, rows: Iterable[Any]) -> None:
        """Add rows."""
        rows = iter(rows)
        while more := list(islice(rows, self._limit - len(self._rows))):
            self._rows += more
            self._sorted = False
            if len(self._rows) >= self._limit:
                self._spill()

    def __iter__(self) -> Iterator[Any]:
        """The rows so far, in order, as records."""
        make = partial(tuple.__new__, self.table.record)
        return (row for block in self.blocks() for row in map(make, block))

    def blocks(self) -> Blocks:
        """The rows so far, in order, a list at a time; they may be plain tuples.  What is added later does not show."""
        blocks = self._blocks()
        change = self.change
        if change is None:
            return blocks
        make = partial(tuple.__new__, self.table.record)
        return (list(map(change, map(make, block))) for block in blocks)

    def _blocks(self) -> Blocks:
        self._sort()
        rows = list(self._rows)
        held = (rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK))
        return self._order.merge([*(run.blocks() for run in self._runs), held]) if self._runs else held

    def _sort(self) -> None:
        if not self._sorted:
            self._order.sort(self._rows)
            self._sorted = True

    def spill(self) -> None:
        """Have the rows leave memory."""
        if self._rows:
            self._spill()

    def _spill(self) -> None:
        self._sort()
        rows, count = self._rows, len(self._rows)
        if self.lend is not None:
            self.lend(self.table.name, list(self._packed([rows])), count)
        else:
            self._push(self._write([rows], 0), count)
        rows.clear()

    def _packed(self, blocks: Iterable[list[Any]]) -> Iterator[bytes]:
        for rows in blocks:
            for i in range(0, len(rows), self._block):
                yield marshal.dumps(self._pack(rows[i : i + self._block]))

    def _write(self, blocks: Iterable[list[Any]], level: int) -> _Run:
        """Sorted rows to a temporary file."""
        file = scratch()
        sizes = array("I", (file.write(block) for block in self._packed(blocks)))
        return _Run(unbuffered(file), 0, sizes, level)

    def adopt(self, file: IO[bytes], place: int, sizes: list[int], rows: int) -> None:
        """Take a sorted run that another process's `lend` was given: where in a file it begins, and its blocks' sizes."""
        self._push(_Run(file, place, sizes), rows)

    def _push(self, run: _Run, rows: int) -> None:
        self._spilled += rows
        self._runs.append(run)
        while len(self._runs) >= _FAN and self._runs[-_FAN].level == self._runs[-1].level:
            old = self._runs[-_FAN:]
            self._runs[-_FAN:] = [self._write(self._order.merge(run.blocks() for run in old), old[0].level + 1)]

    def close(self) -> None:
        """Forget everything and give temporary files back."""
        self._rows.clear()
        for run in self._runs:
            run.close()
        self._runs.clear()
        self._spilled = 0


class AnomalySpool(Spool):
    """Rows of `anomalies`: of one name and source only the first are kept, the rest counted."""

    def __init__(self, table: Table, limits: Limits) -> None:
        super().__init__(table, limits.spool_rows)
        self._keep = max(limits.folded_anomalies, 1)
        self._groups: dict[tuple[str, str], list[Any]] = {}
        self._folded: dict[tuple[str, str], tuple[int, int | None]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        self._fold()
        return sum(map(len, self._groups.values())) + len(self._folded)

    def add(self, row: Anomaly) -> None:
        """Add a row."""
        of_name = (row.name, row.source)
        group = self._groups.setdefault(of_name, [])
        group.append(row)
        self._counts[row.name] = self._counts.get(row.name, 0) + 1
        if len(group) >= 2 * self._keep:  # sorting half that is new costs a row the logarithm of the limit
            self._fold_one(of_name)

    def extend(self, rows: Iterable[Anomaly]) -> None:
        """Add rows."""
        for row in rows:
            self.add(row)

    def counts(self) -> dict[str, int]:
        """How often each name was met, folded rows included."""
        return dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0])))

    def _blocks(self) -> Blocks:
        self._fold()
        rows = [row for group in self._groups.values() for row in group]
        for (name, source), (number, last) in self._folded.items():
            rows.append(Anomaly(last, source, None, None, name, f"{number:,} more like it, up to here; not listed", None))
        self._order.sort(rows)
        return iter([rows])

    def _fold(self) -> None:
        for of_name, group in self._groups.items():
            if len(group) > self._keep:
                self._fold_one(of_name)

    def _fold_one(self, of_name: tuple[str, str]) -> None:
        group = self._groups[of_name]
        self._order.sort(group)
        number, last = self._folded.get(of_name, (0, None))
        rest = group[self._keep :]
        del group[self._keep :]
        times = [row.ts for row in rest if row.ts is not None]
        if last is not None:
            times.append(last)
        self._folded[of_name] = (number + len(rest), max(times, default=None))

    def close(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self._folded.clear()
        self._counts.clear()


class Tables:
    """Every table's rows.  `add` and `extend` while analyzing; `rows` and `count` then, as often as wanted."""

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._spools: dict[str, Spool] = {
            table.name: AnomalySpool(table, limits) if table.record is Anomaly else Spool(table, limits.spool_rows)
            for table in TABLES.values()
        }

    def add(self, table: str, row: Any) -> None:
        """Add a row (an instance of the table's record)."""
        self._spools[table].add(row)

    def extend(self, table: str, rows: Iterable[Any]) -> None:
        """Add rows."""
        self._spools[table].extend(rows)

    def adopt(self, table: str, file: IO[bytes], place: int, sizes: list[int], rows: int) -> None:
        """Add rows that another process has sorted."""
        self._spools[table].adopt(file, place, sizes, rows)

    def spill(self) -> None:
        """Have all rows leave memory."""
        for spool in self._spools.values():
            spool.spill()

    def patch(self, table: str, change: Callable[[Any], Any]) -> None:
        """Have every row of a table changed as it is read (the order must not change)."""
        self._spools[table].change = change

    def rows(self, table: str) -> Spool:
        """A table's rows in its order: iterate as often as wanted."""
        return self._spools[describe(table).name]

    def count(self, table: str) -> int:
        """Rows of a table."""
        return len(self.rows(table))

    def anomaly_counts(self) -> dict[str, int]:
        """How often each anomaly was met, most frequent first, folded ones included."""
        spool = self._spools["anomalies"]
        assert isinstance(spool, AnomalySpool)
        return spool.counts()

    def close(self) -> None:
        """Forget every row and give temporary files back."""
        for spool in self._spools.values():
            spool.close()

    def __enter__(self) -> "Tables":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
