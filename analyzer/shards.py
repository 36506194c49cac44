"""One analysis by several processes: each reads all packets and follows its share of the connections; the first puts it together.

1. Every process decodes and numbers everything, so frames, fragments and tcp_stream are what one process makes of them.
2. A connection belongs to one process, by a hash of its ends.  DNS over UDP belongs to the last.
3. What the others find goes to the first through a file: rows that only wait to be written as sorted runs of a spool, events
   of a session once it is over, messages as an archive at the end.  Nothing is waited for: the first takes what is there
   between its batches.
4. The later parts of the story and the tables' files are shared out in the same way (`each`, `run`).
5. Where a bound of `limits.py` on all connections together is hit, which connections it meets may differ from one process's.
"""

import io
import marshal
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from struct import Struct
from typing import IO, Any, BinaryIO, TypeVar

from analyzer.errors import MailhopError
from analyzer.limits import Limits
from analyzer.mail.story import Share, Story
from analyzer.protocols.base import Event, MessageCarried, SessionEnded
from analyzer.protocols.dns import Transaction
from analyzer.scratch import read_at, scratch
from analyzer.tables.spool import Tables
from analyzer.wire.compression import reader
from analyzer.wire.files import opened
from analyzer.wire.types import Connection

_HEAD = Struct("=cQ")
"""Kind and size of a record: `E`vents, `R`un of rows, `F`inal words."""
_EVENTS = 512
"""Events told together at least, but at the end."""
_KEPT = ("sessions", "dns")
"""Tables whose rows come with events, which the first process needs anyway."""

possible = hasattr(os, "fork")
"""Whether this system can do it."""
T = TypeVar("T")


class Outbox:
    """What a process other than the first hands over.  Stands where a pipeline's story and tables stand."""

    def __init__(self, file: IO[bytes], aside: IO[bytes], limits: Limits) -> None:
        self._file = file
        self._aside = aside
        self._story = Story(limits)
        """Messages only."""
        self._open: dict[str, list[Any]] = {}
        """Events of sessions that are not over: told together, as they share what is known of their session."""
        self._events: list[Any] = []
        self.tables = _SentTables(limits, self._send_run, self._events.append)

    def feed(self, event: Any) -> None:
        """Take an event of a session, or an anomaly."""
        if isinstance(event, MessageCarried):
            self._story.feed(event)
            return
        info = event.info if isinstance(event, SessionEnded) else getattr(event, "session", None)
        if info is None:
            self._events.append(event)
        elif isinstance(event, SessionEnded):
            if info.messages:
                self._story.over(info)
            self._events += self._open.pop(info.session_id, ())
            self._events.append(event)
        else:
            self._open.setdefault(info.session_id, []).append(event)

    def look(self, lookups: list[Transaction]) -> None:
        """Take DNS questions and their answers."""
        self._events += lookups

    def flush(self, most: int = _EVENTS) -> None:
        """Hand over what is complete, if it is as much as `most`; to be called when no session is at work."""
        if len(self._events) >= max(most, 1):
            self._send(b"E", _packed(self._events))
            self._events.clear()

    def finish(self, words: Any) -> None:
        """Hand over everything, and some last words."""
        for events in self._open.values():
            self._events += events
        self._open.clear()
        self.flush(0)
        self.tables.spill()
        self._send(b"F", _packed((words, self._story.hand_over(self._aside))))

    def _send_run(self, table: str, blocks: list[bytes], rows: int) -> None:
        head = marshal.dumps((table, rows, list(map(len, blocks))))
        self._send(b"R", b"".join((len(head).to_bytes(8, "little"), head, *blocks)))

    def _send(self, kind: bytes, data: bytes) -> None:
        self._file.write(_HEAD.pack(kind, len(data)) + data)
        self._file.flush()


class _SentTables(Tables):
    """Rows that go to the first process: sorted runs, or events where it has to look at them itself."""

    def __init__(self, limits: Limits, send: Callable[[str, list[bytes], int], None], tell: Callable[[Any], None]) -> None:
        super().__init__(limits)
        self._tell = tell
        for spool in self._spools.values():
            spool.lend = send

    def add(self, table: str, row: Any) -> None:
        if table == "anomalies":
            self._tell(row)
        elif table not in _KEPT:
            super().add(table, row)

    def extend(self, table: str, rows: Iterable[Any]) -> None:
        if table not in _KEPT:
            super().extend(table, rows)


def _packed(what: Any) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {Connection: _connection}
    pickler.dump(what)
    return file.getvalue()


def _connection(conn: Connection) -> tuple[type[Connection], tuple[Any, ...]]:
    """A connection without the session that reads it."""
    values = tuple(getattr(conn, name) for name in Connection.__slots__ if name != "session")
    return Connection, values


Work = Callable[[int, Outbox, list[BinaryIO]], None]
"""What a process does: its number, where to put what it finds, copies of the inputs that can be read once only."""


class Crew:
    """The other processes, from the first one's side."""

    def __init__(self, others: int, work: Work, limits: Limits, copies: int = 0) -> None:
        """`copies`: inputs that each gets a copy of (`tee`)."""
        self._pids: list[int] = []
        self._files: list[tuple[IO[bytes], IO[bytes]]] = []
        self._places: list[int] = []
        self._taps: list[list[int]] = []
        self._limits = limits
        self.copies = copies
        self.words: list[Any] = []
        """Last words of those that have finished, by number."""
        self.handed: list[tuple[IO[bytes], Any]] = []
        """Messages that they have handed over, for `Story.absorb`."""
        try:
            for number in range(1, others + 1):
                self._start(number, work, copies)
        except BaseException:
            self.close()
            raise

    def _start(self, number: int, work: Work, copies: int) -> None:
        file, aside = scratch(), scratch()
        pipes = [os.pipe() for _ in range(copies)]
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for theirs in self._taps:
                    for end in theirs:
                        os.close(end)
                for _, end in pipes:
                    os.close(end)
                work(number, Outbox(file, aside, self._limits), [os.fdopen(end, "rb", buffering=0) for end, _ in pipes])
                status = 0
            except KeyboardInterrupt:
                status = 130
            except MailhopError:
                status = 2  # the first process meets it too, and says it
            finally:
                os._exit(status)
        for end, _ in pipes:
            os.close(end)
        self._taps.append([end for _, end in pipes])
        self._pids.append(pid)
        self._files.append((file, aside))
        self._places.append(0)

    @contextmanager
    def tee(self, item: "str | os.PathLike[str] | BinaryIO", n: int, name: str) -> Iterator[BinaryIO]:
        """The `n`-th input that can be read once only, to be read here: what is read of it goes to the others too."""
        with opened(item, name) as file:
            yield _Tee(file, [taps[n] for taps in self._taps])  # type: ignore[misc]
        for taps in self._taps:
            os.close(taps[n])
            taps[n] = -1

    def take(self, tables: Tables) -> Iterator[list[Event]]:
        """What has come since the last time: rows go to the tables, events are given back."""
        for i, (file, aside) in enumerate(self._files):
            end = os.fstat(file.fileno()).st_size
            while self._places[i] + _HEAD.size <= end:
                kind, size = _HEAD.unpack(read_at(file, _HEAD.size, self._places[i]))
                place = self._places[i] + _HEAD.size
                if place + size > end:
                    break
                self._places[i] = place + size
                if kind == b"R":
                    length = int.from_bytes(read_at(file, 8, place), "little")
                    table, rows, sizes = marshal.loads(read_at(file, length, place + 8))
                    tables.adopt(table, file, place + 8 + length, sizes, rows)
                elif kind == b"E":
                    yield pickle.loads(read_at(file, size, place))
                else:
                    words, handed = pickle.loads(read_at(file, size, place))
                    self.words.append(words)
                    self.handed.append((aside, handed))

    def wait(self) -> None:
        """Until all have finished.  Raises MailhopError when one has failed."""
        while self._pids:
            _, status = os.waitpid(self._pids.pop(0), 0)
            if status:
                raise MailhopError("one of the processes of --jobs failed", "try again with --jobs 1")

    def close(self) -> None:
        """End what still runs."""
        for taps in self._taps:
            for end in taps:
                if end >= 0:
                    with suppress(OSError):
                        os.close(end)
        self._taps = []
        for pid in self._pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                os.waitpid(pid, 0)
        self._pids = []


class _Tee:
    """A file that hands on what is read of it."""

    def __init__(self, file: BinaryIO, pipes: list[int]) -> None:
        self._readinto = reader(file)
        self._pipes = pipes

    def readinto(self, buffer: Any) -> int:
        """As of a file."""
        view = memoryview(buffer).cast("B")
        n = self._readinto(view) or 0
        for pipe in self._pipes:
            done = 0
            with suppress(BrokenPipeError):  # it has failed, which `Crew.wait` tells
                while done < n:
                    done += os.write(pipe, view[done:n])
        return n


def each(jobs: int, work: Callable[[Share, Tables], T], tables: Tables, limits: Limits) -> list[T]:
    """Have each of several processes do its share of some work; what they returned, by number.

    Rows of the others reach `tables`; of what else they change only what they return is known here.
    """

    def theirs(number: int, out: Outbox, _: list[BinaryIO]) -> None:
        out.finish(work((number, jobs), out.tables))

    with closing(Crew(jobs - 1, theirs, limits)) as crew:
        mine = work((0, jobs), tables)
        crew.wait()
        for _ in crew.take(tables):
            raise AssertionError("work of `each` has no events")
        return [mine, *crew.words]


def run(jobs: int, tasks: Sequence[tuple[int, Callable[[], None]]]) -> None:
    """Do tasks (how much work it is, what to do) in several processes.  Raises what the first one that fails raised."""
    shares: list[tuple[int, list[Callable[[], None]]]] = [(0, []) for _ in range(min(jobs, len(tasks)))]
    for size, task in sorted(tasks, key=lambda item: -item[0]):
        i = min(range(len(shares)), key=lambda i: shares[i][0])
        shares[i] = (shares[i][0] + size, [*shares[i][1], task])

    def work(share: Share, _: Tables) -> BaseException | None:
        try:
            for task in shares[share[0]][1]:
                task()
        except (OSError, MailhopError) as error:
            return error
        return None

    with Tables() as none:
        for error in each(len(shares), work, none, Limits()):
            if error is not None:
                raise error
