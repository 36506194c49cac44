"""The corridor's live side: a source that does not end is read, kept, analyzed and told while it goes on.

source -> reader (thread) -> capture file
                          -> backlog -> pipeline -> ledger -> rows, lines

1. The reader only copies: what was captured is in the capture file before it is analyzed.
2. The backlog is bounded.  When analysis falls behind, batches wait in it, on disk beyond what memory takes; when that
   is full too, whole batches are left out, counted and said.
3. Only the capture tells time, except for `-a duration` and for how often the story is told.
"""

import gc
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from operator import attrgetter
from os import PathLike
from os.path import basename
from statistics import median
from typing import TYPE_CHECKING, Any

from analyzer.backlog import Backlog
from analyzer.errors import CaptureError, MailhopError
from analyzer.ledger import DECIDED, Ledger
from analyzer.limits import Limits
from analyzer.mail.records import Hop, Host, Message
from analyzer.mail.story import BY_MESSAGE
from analyzer.pipeline import Pipeline, Result
from analyzer.protocols import tls
from analyzer.protocols.base import MessageCarried
from analyzer.protocols.registry import PROTOCOLS
from analyzer.tables import TABLES, Tables
from analyzer.tables.export import export
from analyzer.tables.parts import Parts
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.dumpcap import BadFilter
from analyzer.wire.live import Feed, Wanted, default_filters, filter_error, open_feed
from analyzer.wire.ring import CaptureFile, RingRule
from analyzer.wire.types import Frames, SourceInfo

if TYPE_CHECKING:
    from analyzer.analysis import Analysis
    from analyzer.views.text import Look, Page

_TICK = 0.2
"""Seconds after which something is looked at when no packets come."""
_SEEN = 100_000
"""Message-IDs remembered to count messages for `-a messages:N`."""
_START = 10.0
"""Seconds for a capture to begin."""
_SWEEP = 50
"""Tellings after which all garbage is looked for, not only that of the last telling."""
_SETTLE = 5_000_000_000
"""Time between two looks at what is over, at least, unless much is held: capture time."""
_SPARE = 1000
"""So many more fates than messages are remembered, before they are weeded out."""
_LATEST = 200
"""Hops kept for the watch screen."""
_MANY = 200_000
"""Packets still to be analyzed at the end that are worth a word."""
_BEHIND = 20_000
"""Packets waiting to be analyzed beyond which it has to be fast."""
_HEIGHT = 30
"""Lines of the watch screen where there is no terminal."""


@dataclass(frozen=True)
class Until:
    """When a capture stops by itself; None is never."""

    seconds: float | None = None
    messages: int | None = None
    packets: int | None = None


UNTIL = {"duration": "seconds", "messages": "messages", "packets": "packets"}


def parse_until(texts: Sequence[str]) -> Until:
    """`duration:60 packets:1000` as conditions.  Raises CaptureError for what is none."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            number = float(value) if name == "duration" else int(value)
            if name not in UNTIL or not number > 0:
                raise ValueError
        except ValueError:
            raise CaptureError(f"-a {text} is no stop condition", "use duration:SECONDS, messages:N or packets:N") from None
        found[UNTIL[name]] = number
    return Until(**found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """What to capture, where to put it, when to stop."""

    interfaces: tuple[str, ...]
    filter: str | None = None
    """Kernel filter; None: mail ports, DNS and fragments; "": everything."""
    promiscuous: bool = True
    backend: str = "auto"
    write: str | PathLike[str] | None = None
    ring: RingRule = field(default_factory=RingRule)
    until: Until = field(default_factory=Until)
    directory: str | PathLike[str] | None = None
    formats: tuple[str, ...] = ("jsonl",)
    keylogs: tuple[str | PathLike[str], ...] = ()
    keep: bool = False
    """Keep finished rows for `analysis` (in temporary files); not needed when nobody asks."""


@dataclass
class Counts:
    """Numbers of a capture so far."""

    packets: int = 0
    octets: int = 0
    dropped: int = 0
    """Lost before they came here (dumpcap tells at the end)."""
    shed: int = 0
    """Captured and not analyzed."""
    hops: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    """Finished messages by outcome."""


@dataclass
class Standing:
    """What the latest telling says of the open messages."""

    ts: int = 0
    made: float = field(default_factory=time.monotonic)
    """When, on the machine's clock: what is in flight grows older while no packet comes."""
    messages: list[Message] = field(default_factory=list)
    """Not decided yet, the oldest first; of those that rest only the first."""
    in_flight: int = 0
    """All that are not decided yet."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Open messages, decided ones included, by outcome."""
    latency: dict[str, tuple[int, float | None, float | None]] = field(default_factory=dict)
    """Role of the server -> hops, median accept_s, median queue_s of the hop."""


class _Sink(Tables):
    """Finished rows: to the growing files, and kept where somebody will want them."""

    def __init__(self, limits: Limits, ledger: Ledger, parts: Parts | None, keep: bool) -> None:
        super().__init__(limits)
        self._ledger = ledger
        self._parts = parts
        self._keep = keep

    def add(self, table: str, row: Any) -> None:
        """Add a finished row."""
        if self._keep or table == "anomalies":
            super().add(table, row)
        if self._parts is not None:
            self._parts.add(table, row)

    def extend(self, table: str, rows: Iterable[Any]) -> None:
        if table != "dns":  # the ledger has these, until it is known which message each served
            for row in rows:
                self.add(table, row)

    def patch(self, table: str, change: Callable[[Any], Any]) -> None:
        if table == "dns":
            for row in map(change, self._ledger.lookups):
                self.add("dns", row)
            self._ledger.lookups.clear()
        else:
            super().patch(table, change)


class Live:
    """A live capture and its analysis.

    `with Live(plan) as live:` captures and analyzes in the background; `live.analysis` is the analysis so far,
    `live.stop()` ends it.  The command calls `begin`, then `work` in its own thread.
    """

    def __init__(
        self,
        plan: Plan,
        limits: Limits | None = None,
        *,
        on_hop: Callable[[MessageCarried], None] | None = None,
        on_message: Callable[[Message], None] | None = None,
        say: Callable[[str], None] | None = None,
        on_tick: Callable[["Live"], None] | None = None,
    ) -> None:
        """`on_hop` is called as a hop ends, `on_message` when a message's fate is known, `say` with warnings."""
        self.plan = plan
        limits = limits or Limits()
        self.limits = replace(
            limits,
            batch_bytes=min(limits.batch_bytes, limits.live_batch_bytes),
            connections=min(limits.connections, limits.live_connections),
            open_connections=min(limits.open_connections, limits.live_open_connections),
            spool_rows=min(limits.spool_rows, limits.live_spool_rows),
            dns_answered=min(limits.dns_answered, limits.live_dns_answered),
            dns_memo=min(limits.dns_memo, limits.live_dns_memo),
            starttls_sessions=min(limits.starttls_sessions, limits.live_starttls_sessions),
        )
        self.counts = Counts()
        self.standing = Standing()
        self.latest: deque[MessageCarried] = deque(maxlen=_LATEST)
        self.error: MailhopError | None = None
        """What ended the capture before it was told to end."""
        self.collect = False
        """The process is ours: collect garbage when it has just been made, and only then."""
        self.ended = threading.Event()
        """Everything is written."""
        self._on_hop, self._on_message = on_hop, on_message
        self._say = say or (lambda text: None)
        self._on_tick = on_tick
        self._lock = threading.RLock()
        self._hops: list[MessageCarried] = []
        self._ids: set[str] = set()
        self._numbered = self._tellings = 0
        self._fates: dict[int, str] = {}
        """Fates that have been told, by the hash of the message's id."""
        self._now = 0
        self._stopping = self._rotate = False
        self._next_telling = 0.0
        self._next_settling = 0
        self._file: CaptureFile | None = None
        self._file_lock = threading.Lock()
        self._parts: Parts | None = None
        self._backlog = Backlog(self.limits, _beside(plan))
        self._feed: Feed | None = None
        self._reader: threading.Thread | None = None
        self._worker: threading.Thread | None = None
        self._result: Result | None = None
        self._trouble: BaseException | None = None
        self.info = SourceInfo(", ".join(plan.interfaces))
        self._begun = time.monotonic()
        self._over: float | None = None
        """When it was over, on the clock of `_begun`."""

    # the life of a capture

    def begin(self) -> None:
        """Begin to capture.  Raises MailhopError when that is not possible."""
        plan = self.plan
        self._key_logs = tls.KeyLogs(plan.keylogs, follow=True)
        pipeline = Pipeline(self.limits, self._key_logs.secrets)
        self._pipeline = pipeline
        self._ledger = Ledger(self.limits)
        self._ledger.on_carried = self._carried
        if plan.directory is not None:
            self._parts = Parts(plan.directory)
            if self._parts.left_over is not None:
                self._say(f"an earlier run was cut off; its tables are in {self._parts.left_over}")
        try:
            self._start()
        except BaseException:
            if self._parts is not None:
                self._parts.remove()
            raise

    def _start(self) -> None:
        plan, pipeline = self.plan, self._pipeline
        self._keep = plan.keep or plan.directory is not None
        pipeline.story = self._ledger
        pipeline.tables = self._sink = _Sink(self.limits, self._ledger, self._parts, self._keep)
        wanted = self._wanted()
        try:
            self._feed = open_feed(wanted, self.limits)
        except BadFilter as error:
            raise filter_error(wanted.filters[0], error.what) from None
        self.info = SourceInfo(self._feed.name)
        try:
            if plan.write is not None:
                self._file = CaptureFile(plan.write, plan.ring)
        except CaptureError:
            self._feed.kill()
            raise
        self._begun = time.monotonic()
        self._reader = threading.Thread(target=self._read, name="mailhop-reader", daemon=True)
        self._reader.start()
        self._await_start()

    def _wanted(self) -> Wanted:
        plan = self.plan
        if plan.filter is None:
            ports = sorted({port for protocol in PROTOCOLS for port in protocol.ports if protocol.name != "dns"})
            filters: tuple[str, ...] = default_filters(ports)
        else:
            filters = (plan.filter,) if plan.filter else ()
        return Wanted(plan.interfaces, filters, plan.filter is not None, plan.promiscuous, plan.backend, _beside(plan))

    def _await_start(self) -> None:
        """Wait until the source gives signs of life, so that what is wrong with it is said at once."""
        assert self._feed is not None
        if self._feed.kind == "stream":
            return
        until = time.monotonic() + _START
        while not self.info.kind and not self._backlog.over and time.monotonic() < until:
            time.sleep(0.01)
        if self._backlog.over and self.error is not None and not self.info.frames:
            self._close_files()
            raise self.error

    @property
    def backend(self) -> str:
        """`dumpcap`, `raw` or `stream`."""
        return self._feed.kind if self._feed is not None else ""

    def stop(self) -> None:
        """End the capture; what was captured is still analyzed and written.  Again: what still waits is left out."""
        again, self._stopping = self._stopping, True
        if self._feed is not None:
            (self._feed.kill if again else self._feed.stop)()
        if again:
            self._backlog.drop()
        elif self._backlog.waiting > _MANY:
            self._say(f"{self._backlog.waiting:,} packets captured are still to be analyzed; stop again to leave them out")

    def rotate(self) -> None:
        """Begin a new capture file and new tables; the finished tables so far go to a directory of their own."""
        self._rotate = True

    def work(self) -> Result:
        """Analyze until the capture ends; then write everything.  Raises what made that impossible."""
        if self.collect:
            _give_back()
        try:
            while not self._backlog.done:
                batch = self._backlog.get(_TICK)
                if batch is not None:
                    with self._lock:
                        self._analyze(*batch)
                    batch = None
                self._tick()
            return self._finish()
        finally:
            if not self._backlog.over:  # something went wrong: leave no process behind
                self.stop()
            self._close_files()
            self.ended.set()

    def _close_files(self) -> None:
        with self._file_lock:
            if self._file is not None:
                with suppress(CaptureError):
                    self._file.close()
        if self._parts is not None:
            self._parts.close()

    # the reader

    def _read(self) -> None:
        feed, info, until = self._feed, self.info, self.plan.until.packets
        assert feed is not None
        count = 0
        secrets = 0
        try:
            for frames in feed.frames(info):
                if until is not None and count + len(frames) >= until:
                    frames = frames.part(0, until - count)  # noqa: PLW2901
                count += len(frames)
                news, secrets = info.secrets[secrets:], len(info.secrets)
                whole = self._save(frames)
                self._backlog.put(_copied(frames), list(news))
                if not whole or (until is not None and count >= until):
                    break
            if feed.broken is not None:
                self.error = feed.broken
        except BadFilter as error:
            self.error = filter_error(self._wanted().filters[0], error.what)
        except MailhopError as error:
            self.error = error
        except BaseException as error:
            self._trouble = error
        finally:
            with suppress(OSError):
                feed.stop()
            self._backlog.end()

    def _save(self, frames: Frames) -> bool:
        """Write a batch to the capture file; whether that went well."""
        with self._file_lock:
            try:
                if self._file is not None:
                    self._file.secrets(self.info.secrets)
                    self._file.write(frames)
            except CaptureError as error:
                self.error = error
                return False
        return True

    # the analysis

    def _analyze(self, frames: Frames, secrets: list[bytes]) -> None:
        if secrets:
            self._pipeline.learn(SourceInfo(self.info.name, secrets=secrets))
        self._key_logs.poll()
        self.counts.packets += len(frames)
        self.counts.octets += int(frames.wire_length.sum())
        self._now = max(self._now, int(frames.ts.max()))
        self._pipeline.feed(frames)

    def _carried(self, event: MessageCarried) -> None:
        self.counts.hops += 1
        self._hops.append(event)
        if self.plan.until.messages is None:
            return
        message_id = event.content.message_id if event.content is not None else None
        if message_id is None or message_id not in self._ids:
            self._numbered += 1
            if message_id is not None and len(self._ids) < _SEEN:
                self._ids.add(message_id)

    def _show_hops(self) -> None:
        """Hops that have ended since last asked."""
        hops, self._hops = sorted(self._hops, key=_ended_at), []
        self.latest.extend(hops)
        if self._on_hop is not None:
            for hop in hops:
                self._on_hop(hop)

    def _tick(self) -> None:
        """What is to be done between two batches."""
        until, now = self.plan.until, time.monotonic()
        self._show_hops()
        self._account()
        if self._rotate:
            self._rotate = False
            self._turn()
        ledger = self._ledger
        ledger.behind = self._backlog.waiting > _BEHIND
        if self._parts is not None:
            self._parts.flush()
        if (ledger.fresh and now >= self._next_telling) or ledger.pressing:
            with self._lock, self._collecting():
                self._retell()
            took = time.monotonic() - now
            self._next_telling = time.monotonic() + max(self.limits.live_every, took / self.limits.live_share)
        if not self._stopping and (
            (until.seconds is not None and now - self._begun >= until.seconds)
            or (until.messages is not None and self._numbered >= until.messages)
        ):
            self.stop()
        if self._on_tick is not None:
            self._on_tick(self)

    def _account(self) -> None:
        """Losses, said as they become known."""
        assert self._feed is not None
        shed = self._backlog.take_shed()
        if shed:
            if not self.counts.shed:
                where = "they are in the capture file" if self._file is not None else "use -w to keep them"
                self._say(f"analysis is behind: packets are left out of it from here on; {where}")
            self.counts.shed += shed
            detail = f"{shed:,} packets captured about here were not analyzed"
            self._sink.add("anomalies", Anomaly(self._now or None, self.info.name, None, None, "analysis_shed", detail, None))
        dropped = self._feed.drops() if self._feed.kind == "raw" else 0
        if dropped > self.counts.dropped:
            if not self.counts.dropped:
                self._say("the kernel drops packets: this machine is too busy; a narrower -f helps")
            self.counts.dropped = dropped

    def _retell(self) -> None:
        ledger = self._ledger
        parts, some = self._parts, False
        hosts: Iterable[Host] = ()
        while True:
            told = ledger.retell()
            if told is not None:
                some = True
                if parts is not None and not ledger.fresh:
                    hosts = list(told.hosts)
                if parts is not None:
                    for table in BY_MESSAGE:
                        parts.stage(table, groupby(getattr(told, table), attrgetter("trace_id")))
                ledger.let_go(told)
                told = None  # or its rows are there while the next are made
            if ledger.crowded:
                some |= self._settle()
            if not ledger.fresh:
                break
        self._stand()
        if self._now >= self._next_settling:
            some |= self._settle()
        if some and parts is not None:
            parts.flush()  # whoever reads may find a row twice for a moment, but never misses one
            self._show_open(parts, hosts)

    def _settle(self) -> bool:
        """Rows of what is over; whether there are any."""
        self._pipeline.settle(self._now - self.limits.live_decided_idle)
        some = False
        for table, row in self._ledger.settle(self._now):
            some = True
            self._sink.add(table, row)
            if table == "messages":
                self._finished(row)
        self._next_settling = self._now + _SETTLE
        if self.collect:
            _trim()
        return some

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        """A telling is a web of hops and messages: let go of it, without walking over everything else each time."""
        if not self.collect:
            yield
            return
        gc.freeze()
        try:
            yield
        finally:
            self._tellings += 1
            if self._tellings % _SWEEP == 0:
                gc.unfreeze()
            gc.collect()

    def _finished(self, message: Message) -> None:
        self.counts.messages[message.outcome] += 1
        if self._fates.pop(hash(message.trace_id), None) != message.outcome and self._on_message is not None:
            self._on_message(message)

    def _stand(self) -> None:
        """What the watch screen shows, and fates that have just become known."""
        ledger = self._ledger
        outcomes = ledger.resting_outcomes.copy()
        waiting: list[Message] = list(ledger.resting_messages())
        for message in ledger.open_messages():
            outcomes[message.outcome] += 1
            if message.outcome not in DECIDED:
                waiting.append(message)
            elif self._fates.get(hash(message.trace_id)) != message.outcome:
                self._fates[hash(message.trace_id)] = message.outcome
                if self._on_message is not None:
                    self._on_message(message)
        if len(self._fates) > 2 * outcomes.total() + _SPARE:
            held = set(ledger.traces().tolist())
            self._fates = {key: outcome for key, outcome in self._fates.items() if key in held}
        self.standing = Standing(
            self._now,
            time.monotonic(),
            waiting,
            sum(count for outcome, count in outcomes.items() if outcome not in DECIDED),
            outcomes,
            _latency(ledger.waits()) if self._on_tick is not None or self.plan.keep else {},
        )

    def _show_open(self, parts: Parts, hosts: Iterable[Host]) -> None:
        """Show what was told anew, and no longer what is over.  `hosts`: as the last telling had them."""
        held = self._ledger.traces()
        for table in BY_MESSAGE:
            parts.show_open(table, held)
        parts.show_open("hosts", self._ledger.hosts_before(), ((host.host_id, [host]) for host in hosts))
        parts.show_open("dns", self._ledger.dns_open(), self._ledger.dns_rows())

    def _turn(self) -> None:
        """A new capture file; the rows finished so far become tables of their own."""
        with self._file_lock:
            if self._file is not None:
                self._file.turn()
        if self._parts is None or self.plan.directory is None:
            return
        from pathlib import Path

        with self._lock:
            self._parts.flush()
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            place = Path(self.plan.directory) / stamp
            export(self._sink, place, self.plan.formats)
            self._sink.close()
            self._parts.restart()
            self._say(f"tables so far are in {place}")

    # the end

    def _finish(self) -> Result:
        if self._reader is not None:
            self._reader.join(_START)
        if self._trouble is not None:
            raise self._trouble
        if self.error is not None and not self.info.frames:
            if self._parts is not None:
                self._parts.remove()
            raise self.error
        with self._lock:
            self._account()
            self._losses()
            told = self._pipeline.finish([self.info])
            self._show_hops()
            for message in self._ledger.last_messages:
                self._finished(message)
            self._rested()
            self._result = Result(told, [self.info])
            self.standing = Standing(self._now, latency=_latency(map(_waits, told.rows("hops"))) if self.plan.keep else {})
            self._over = time.monotonic()
        with self._file_lock:
            if self._file is not None:
                self._file.close(self.info.frames, self.counts.dropped)
        if self._parts is not None and self.plan.directory is not None:
            self._parts.flush()
            export(self._result.tables, self.plan.directory, self.plan.formats)
            self._parts.remove()
        return self._result

    def _rested(self) -> None:
        """Rows of what still rests at the end."""
        for table, row in self._ledger.resting_rows():
            self._sink.add(table, row)
            if table == "messages":
                self._finished(row)

    def _losses(self) -> None:
        assert self._feed is not None
        self.counts.dropped = max(self.counts.dropped, self._feed.drops())
        if self.counts.dropped:
            detail = f"{self.counts.dropped:,} packets dropped before they came to mailhop"
            self.info.notes.append(Anomaly(self._now or None, self.info.name, None, None, "capture_drops", detail, None))
        if self.error is not None:
            self._say(str(self.error))

    # for programs

    @property
    def analysis(self) -> "Analysis":
        """The analysis so far: a snapshot that stays as it is.  Costs the more, the more has been captured."""
        from analyzer.analysis import Analysis

        with self._lock:
            if self._result is not None:
                return Analysis(self._result)
            tables = Tables(self.limits)
            for name in TABLES:
                tables.extend(name, self._sink.rows(name))
            for name, row in self._ledger.resting_rows():
                tables.add(name, row)
            told = self._ledger.tell()
            for name in (*BY_MESSAGE, "hosts", "anomalies"):
                tables.extend(name, getattr(told, name))
            tables.extend("dns", map(told.dns, self._ledger.lookups))
            return Analysis(Result(tables, [self.info]))

    def page(self, look: "Look", height: int = _HEIGHT) -> "Page":
        """The watch screen as it is now."""
        from analyzer.views.live import screen

        counts, standing = self.counts, self.standing
        numbers = (counts.packets, counts.dropped, counts.shed, counts.hops)
        outcomes = standing.outcomes + counts.messages
        waiting, in_flight, latest = standing.messages, standing.in_flight, self.latest
        seconds = (self._over or time.monotonic()) - self._begun
        name = basename(self.info.name) or self.info.name
        now = standing.ts + round((time.monotonic() - standing.made) * 1e9) if standing.ts else 0
        return screen(look, name, seconds, numbers, outcomes, standing.latency, waiting, in_flight, latest, now, height)

    def __repr__(self) -> str:
        from analyzer.views.text import Look

        return str(self.page(Look()))

    def _repr_html_(self) -> str:
        from analyzer.views.notebook import page_html
        from analyzer.views.text import Look

        return page_html(self.page(Look()))

    def watch(self, seconds: float | None = None, every: float = 0.5) -> None:
        """Show the capture and renew the picture until it ends, `seconds` are over, or it is interrupted."""
        from analyzer.views.notebook import renewing

        until = None if seconds is None else time.monotonic() + seconds
        with renewing(self) as renew, suppress(KeyboardInterrupt):
            while not self.wait(every) and (until is None or time.monotonic() < until):
                renew()

    def __enter__(self) -> "Live":
        self.begin()
        self._worker = threading.Thread(target=self._background, name="mailhop-live", daemon=True)
        self._worker.start()
        return self

    def _background(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self._trouble = error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the capture ends by itself; whether it has."""
        return self.ended.wait(timeout)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._stopping:
            self.stop()
        if self._worker is not None:
            self._worker.join()
        if self._trouble is not None and kind is None:
            raise self._trouble


def capture(
    interface: str | Sequence[str],
    filter: str | None = None,
    *,
    write: str | PathLike[str] | None = None,
    until: str | Sequence[str] = (),
    directory: str | PathLike[str] | None = None,
    promiscuous: bool = True,
    keylog: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    limits: Limits | None = None,
) -> Live:
    """Capture live: `with analyzer.capture("eth0") as live:`, then `live.analysis.messages`, which grows.

    `interface`: one or several names, `any`, `-` or a FIFO.  `filter`: a capture filter (man pcap-filter); without one,
    mail ports, DNS and fragments.  `until`: `duration:60`, `messages:10` or `packets:1000`; `live.wait()` then waits for it.
    Raises CaptureError when the machine does not let you capture, saying what to do.
    """
    names = (interface,) if isinstance(interface, str) else tuple(interface)
    conditions = (until,) if isinstance(until, str) else tuple(until)
    keylogs = (keylog,) if isinstance(keylog, str | PathLike) else tuple(keylog)
    plan = Plan(
        names,
        filter,
        promiscuous,
        write=write,
        until=parse_until(conditions),
        directory=directory,
        keylogs=keylogs,
        keep=True,
    )
    return Live(plan, limits)


def _beside(plan: Plan) -> str | None:
    """Where packets may wait on disk: where the run's files go, as the place of temporary files may be memory."""
    place = (
        plan.directory
        if plan.directory is not None
        else os.path.dirname(os.fspath(plan.write))
        if plan.write is not None
        else None
    )
    return os.fspath(place) or "." if place is not None else None


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
_LARGE = 64 << 10
"""Octets of memory that are taken from the system for themselves, and so given back at once."""


def _give_back() -> None:
    """Have glibc give memory back that is free: this process runs for months.  Elsewhere nothing happens."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, 2 * _LARGE)):
            mallopt(parameter, value)


@cache
def _trimmer() -> Callable[[int], int] | None:
    import ctypes

    with suppress(OSError, AttributeError, TypeError):
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return trim
    return None


def _trim() -> None:
    """Have glibc give back the free pages between what is held, too; elsewhere nothing happens."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


def _ended_at(event: MessageCarried) -> int:
    return event.ts_end or event.ts_eom or event.ts_start or 0


def _copied(frames: Frames) -> Frames:
    """A batch that outlives the reader's buffer."""
    if not len(frames):
        return frames
    first = int(frames.offset.min())
    last = int((frames.offset + frames.length).max())
    return replace(frames, data=bytes(memoryview(frames.data)[first:last]), offset=frames.offset - first)


def _waits(hop: Hop) -> tuple[str, float | None, float | None]:
    return hop.server_role if hop.server_role is not None and hop.basis == "observed" else "", hop.accept_s, hop.queue_s


def _latency(waits: Iterable[tuple[str, float | None, float | None]]) -> dict[str, tuple[int, float | None, float | None]]:
    """Role of the server -> hops, median accept_s, median queue_s, from those of each hop."""
    taken: dict[str, tuple[list[float], list[float]]] = {}
    count: Counter[str] = Counter()
    for role, accept_s, queue_s in waits:
        if role:
            count[role] += 1
            accept, queue = taken.setdefault(role, ([], []))
            if accept_s is not None:
                accept.append(accept_s)
            if queue_s is not None:
                queue.append(queue_s)
    return {
        role: (count[role], median(accept) if accept else None, median(queue) if queue else None)
        for role, (accept, queue) in taken.items()
    }


__all__ = ["Counts", "Live", "Plan", "Standing", "Until", "capture", "parse_until"]
