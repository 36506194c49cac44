"""The corridor: the only module that names every stage.

files -> frames -> packets -> (UDP) DNS datagrams                      -> story -> tables
                           -> (TCP) streams -> protocol sessions -> events ->
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from analyzer import shards
from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.mail.clocks import Clocks
from analyzer.mail.story import ALL, BY_MESSAGE, Found, Part, Share, Story, Told
from analyzer.protocols import dns, tls
from analyzer.protocols.base import Command, Event, MessageCarried, SessionEnded
from analyzer.protocols.bodies import Body
from analyzer.protocols.registry import MAIL_PORTS, foreign, recognise
from analyzer.protocols.starttls import Offers
from analyzer.tables import Tables
from analyzer.wire import files
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.packets import Decoder
from analyzer.wire.streams import Counted, Streams
from analyzer.wire.taps import Clock, Taps
from analyzer.wire.traffic import Traffic
from analyzer.wire.types import Connection, Frames, SourceInfo

Input = str | PathLike[str] | BinaryIO
T = TypeVar("T")
_DATAGRAMS = 8192
"""DNS datagrams decoded at a time: a batch may hold ten times as many, a KB each once decoded."""
_MAIL_TABLE = np.array(sorted(MAIL_PORTS))
_SAMPLE = 4 << 20
"""Octets of a capture by which it is judged whether to share its work."""
_WORTH = 4
"""Sharing is worth it from a quarter of mail, by octets, on."""
Progress = Callable[[str, int, int | None, int, int], None]
"""Called now and then with: source name, octets of the file read, its size or None, messages and packets so far."""


class Again(NamedTuple):
    """An input, and how to read it once more."""

    item: Input
    place: int | None
    """Where an open file stood; None: a path, or a file that cannot go back."""

    @property
    def readable(self) -> bool:
        """Whether it can be read once more."""
        return self.place is not None or (isinstance(self.item, str | PathLike) and files.rereadable(self.item))

    def frames(self, limits: Limits, info: SourceInfo) -> Iterator[Frames]:
        """Its frames, once more.  Raises CaptureError when that cannot be."""
        if not self.readable:
            raise CaptureError(f"{info.name} can be read once only", "save it to a file first")
        if self.place is not None and not isinstance(self.item, str | PathLike):
            self.item.seek(self.place)
        return files.read(self.item, limits, info)


@dataclass
class Result:
    """What one analysis gave."""

    tables: Tables
    sources: list[SourceInfo] = field(default_factory=list)
    inputs: list[Again] = field(default_factory=list)
    """What was read, as `sources`."""
    limits: Limits = field(default_factory=Limits)
    bodies: dict[tuple[str, int], Body] = field(default_factory=dict)
    """Octets of messages by session and index there, where `limits.bodies` kept them."""
    unused_secrets: int = 0
    """TLS secrets given when there were sessions to open and none of them fitted any."""
    clocks: list[str] = field(default_factory=list)
    """Clocks of taps that are off, in words."""

    @property
    def damaged(self) -> bool:
        """Part of the input could not be read."""
        return any(source.damage for source in self.sources)


class Pipeline:
    """One analysis under way: `feed` it batches of frames, `finish` it once.

    File and live capture take this same way.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        secrets: tls.Secrets | None = None,
        taps: Taps | None = None,
        share: Share = ALL,
        out: shards.Outbox | None = None,
    ) -> None:
        """`share`: what of several processes' work is done here.  `out`: takes what is found in others than the first."""
        self.limits = limits or Limits()
        self.secrets = secrets if secrets is not None else tls.Secrets()
        self.share = share
        self.tables: Tables = Tables(self.limits) if out is None else out.tables
        self.story: Story | shards.Outbox = Story(self.limits) if out is None else out
        self.datagrams = dns.Datagrams(self.limits)
        self.taps = taps
        """Given when there are several captures: tells what more than one of them shows."""
        self._decoders: list[Decoder] = []
        self._streams: list[Streams] = []
        self._attempts: dict[tuple[str, int, str, int], int] = {}
        self._add_tap()
        self.offers = Offers(self.limits)
        self._traffic = None if share[0] else Traffic()
        """While nothing of mail was found; the first process tells."""
        self.messages = 0
        self.bodies: dict[tuple[str, int], Body] = {}

    def learn(self, info: SourceInfo) -> None:
        """Take the TLS secrets that a capture brought along (pcapng Decryption Secrets Blocks)."""
        for log in info.secrets:
            self.secrets.add(log)
        info.secrets.clear()

    def feed(self, frames: Frames) -> None:
        """Take the next batch of frames of a source."""
        tap, most = self._tap(frames), self.limits.batch_frames
        for first in range(0, len(frames), most):
            self._feed(tap, frames.part(first, first + most) if len(frames) > most else frames)
        self._drain()

    def _feed(self, tap: int, frames: Frames) -> None:
        packets = self._decoders[tap].decode(frames)
        if self.taps is not None:
            self.taps.saw(frames.source, packets, int(frames.ts.max()))
        if len(packets):
            if self._traffic is not None:
                self._traffic.saw(packets)
            if self.share[0] == self.share[1] - 1:
                rows = dns.candidate_rows(packets)
                for first in range(0, len(rows), _DATAGRAMS):
                    self._take(self.datagrams.feed(packets, rows[first : first + _DATAGRAMS]))
            self._deliver(self._streams[tap].feed(packets))

    def _add_tap(self) -> None:
        self._decoders.append(Decoder(self.limits))
        self._streams.append(Streams(self.limits, self._recognise, MAIL_PORTS, share=self.share, foreign=foreign))

    def _tap(self, frames: Frames) -> int:
        """The tap that frames are of: each has its own connections and fragments."""
        if self.taps is None or not len(frames):
            return 0
        clock = self.taps.clocks.get(frames.source)
        if clock is not None:
            clock.shift(frames)
        tap = self.taps.tap(frames.source, int(frames.ts[0]), lambda: Decoder(self.limits).decode(frames))
        if tap == len(self._streams):
            self._add_tap()
        return tap

    def settle(self, until: int) -> None:
        """For a capture without end: tell what would else be told at the end, of sessions that began by a time."""
        for streams in self._streams:
            streams.list_attempts_anew()
        self._take(self.offers.settle(until))

    def end(self, others: Sequence[Counted] = ()) -> None:
        """No more frames will come: end what is open.  `others`: what the streams of other processes have counted."""
        for streams in self._streams:
            self._deliver(streams.finish(others))
        self._take(self.datagrams.finish())
        for decoder in self._decoders:
            decoder.anomalies += decoder.finish()
        self._drain()

    def finish(self, sources: Iterable[SourceInfo] = (), others: Sequence[Counted] = ()) -> Tables:
        """Nothing more will come: end what is open, tell the story, fill the tables."""
        self.end(others)
        self._decoders, self._streams = [], []  # what they remember is of no use any more, and telling needs room
        self.datagrams = dns.Datagrams(self.limits)
        for source in sources:
            self._take(Anomaly(d.ts, source.name, None, None, d.name, d.detail, d.frame) for d in source.damage)
            self._take(source.notes)
        self._take(self.offers.settle())
        if self._traffic is not None:
            self._take([Anomaly(None, "", None, None, "no_mail", self._traffic.words(), None)])
        tables, story = self.tables, self.story
        assert isinstance(story, Story)
        tables.patch("sessions", self.offers.row)
        asked = {row.session_id for row in tables.rows("anomalies") if row.session_id is not None}
        story.clocks = Clocks({source: clock.true for source, clock in self._odd_clocks().items()})
        told = story.finish(asked, self._each)
        self._write(told.first, tables)
        if told.later:
            found = self._each(lambda share, tables: self._tell_later(told, share, tables))
            told.settle(one for one in found if one is not None)
        tables.extend("hosts", told.hosts)
        tables.extend("anomalies", told.anomalies)
        tables.patch("dns", told.dns)
        tables.patch("anomalies", told.anomaly)
        return tables

    def _tell_later(self, told: Told, share: Share, tables: Tables) -> Found | None:
        for part in told.share(share):
            self._write(part, tables)
        return told.found() if share[0] else None

    def _write(self, part: Part, tables: Tables) -> None:
        for name in BY_MESSAGE:
            tables.extend(name, getattr(part, name))

    def _each(self, work: Callable[[Share, Tables], T]) -> list[T]:
        return shards.each(self.share[1], work, self.tables, self.limits)

    def counted(self) -> Counted:
        """For `finish` of the first process: what the streams of this one have counted."""
        return self._streams[0].counted()

    def gather(self, crew: shards.Crew) -> None:
        """Take what other processes have found so far, and the messages of those that have finished."""
        for events in crew.take(self.tables):
            self._take(events)
        assert isinstance(self.story, Story)
        while crew.handed:
            self.story.absorb(*crew.handed.pop())

    def _odd_clocks(self) -> dict[str, Clock]:
        """Clocks of sources that are off, as far as has been seen and not taken off already."""
        measured = self.taps.measured() if self.taps is not None else {}
        return {source: clock for source, clock in measured.items() if clock.odd}

    def _recognise(self, conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        protocol, client_is_orig, sure, through = recognise(conn, orig, resp, closing)
        if protocol is None:
            return False if sure else None
        if self.taps is not None and not self.taps.is_new(conn):
            return False
        session = protocol.session(conn, client_is_orig, self.limits)
        session.secrets = self.secrets
        if through is not None:
            session.go_through(through)
        conn.session = session
        return True

    def _deliver(self, deliveries: Iterable[Any]) -> None:
        for connection, chunks, closed in deliveries:
            session = connection.session
            if chunks:
                events = session.feed(*chunks)
                if events:
                    self._take(events)
            if closed:
                self._take(session.close(connection.end or "capture_end", connection.ts_last))
                connection.session = None  # the session holds the connection: leave no cycle behind

    def _drain(self) -> None:
        for tap, streams in enumerate(self._streams):
            if self.share[0]:
                self._decoders[tap].anomalies = []  # the first process tells them
            for holder in (self._decoders[tap], streams):
                if holder.anomalies:
                    self._take(holder.anomalies)
                    holder.anomalies = []
            for attempt in streams.attempts:
                ends = (attempt.orig_ip, attempt.orig_port, attempt.resp_ip, attempt.resp_port)
                if self.taps is None or self._attempts.setdefault(ends, tap) == tap:
                    self.story.feed(attempt)
            streams.attempts = []

    def _take(self, events: Iterable[Event]) -> None:
        tables, story = self.tables, self.story
        lookups: list[dns.Transaction] = []
        for event in events:
            kind = type(event)
            if kind is dns.Transaction:
                lookups.append(event)  # type: ignore[arg-type]
            elif kind is Command:
                tables.add("commands", event)
            elif kind is Anomaly:
                tables.add("anomalies", event)
            else:
                if isinstance(event, SessionEnded):
                    self._traffic = None
                    tables.add("sessions", event.row)
                    self.offers.feed(event.info)
                    self.messages += event.info.messages
                elif isinstance(event, MessageCarried) and event.content is not None and event.content.body is not None:
                    self.bodies[event.session.session_id, event.index] = event.content.body
                story.feed(event)
        if lookups:
            self._traffic = None
            if self.taps is not None:
                lookups = list(filter(self._is_first, lookups))
            tables.extend("dns", lookups)
            story.look(lookups)

    def _is_first(self, t: dns.Transaction) -> bool:
        """No other tap has shown this lookup."""
        assert self.taps is not None
        ends = (t.client_ip, t.client_port, t.server_ip, t.server_port, t.transport)
        return self.taps.is_first(t.source, (*ends, t.dns_id, t.qname, t.qtype), t.ts, t.ts_reply)


@contextmanager
def _collector_off() -> Any:
    """Rows survive to the end and hold no cycles: the collector would only walk them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def name_of(source: Input) -> str:
    """How an input is called in the tables: as the caller gave it."""
    if isinstance(source, str | PathLike):
        return fspath(source)
    return str(getattr(source, "name", "-"))


def several(given: T | Sequence[T]) -> list[T]:
    """One path or open file, or many, as a list."""
    single = isinstance(given, str | PathLike) or hasattr(given, "read")
    return [given] if single else list(given)  # type: ignore[list-item,arg-type]


def _place(source: Input) -> int | None:
    """Where an open file stands, if it can be set back there."""
    if isinstance(source, str | PathLike):
        return None
    try:
        return source.tell() if source.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def in_time_order(inputs: Sequence[Input]) -> list[Input]:
    """Files of one analysis by the time of their first frame (rotated files are one stream); others as given."""
    if len(inputs) < 2 or not all(isinstance(i, str | PathLike) and fspath(i) != "-" for i in inputs):
        return list(inputs)
    first = {id(i): files.peek_first_ts(i) for i in inputs}
    return sorted(inputs, key=lambda i: (first[id(i)] is None, first[id(i)] or 0))


def run(
    inputs: Sequence[Input],
    *,
    limits: Limits | None = None,
    keylogs: Sequence[str | PathLike[str]] = (),
    progress: Progress | None = None,
    align: bool = False,
    jobs: int = 1,
) -> Result:
    """Analyze captures, several files being one analysis; `jobs`: processes to do it with, for one file on a system that forks.

    What several taps show is told once.  `align`: take the offset of each tap's clock to the first one's off its times; else
    it is only told.  The captures are then read twice, as they are when the better copy of a connection comes later.

    Raises CaptureError when an input cannot be read at all, KeyLogError for a bad key log.
    """
    limits = limits or Limits()
    ordered = in_time_order(inputs)
    again = [Again(item, _place(item)) for item in ordered]
    taps = Taps(limits) if len(ordered) > 1 else None
    shared = shards.possible and taps is None and limits.bodies is None  # octets stay with the process that kept them
    if not (jobs > 1 and shared and again and _worth_sharing(again[0])):
        jobs = 1
    result = _read(again, limits, keylogs, progress, taps, jobs)
    if taps is None:
        return result
    clocks = {source: clock for source, clock in taps.measured().items() if clock.odd}
    worse = taps.worse()
    if (worse or (align and clocks)) and all(one.readable for one in again):
        result.tables.close()
        taps = Taps(limits, worse, clocks if align else None)
        result = _read(again, limits, keylogs, progress, taps)
        aligned = align
    else:
        aligned = False
    for clock in {clock.source: clock for clock in clocks.values()}.values():
        result.tables.add("anomalies", Anomaly(None, clock.source, None, None, "clock_offset", clock.words(aligned), None))
        result.clocks.append(f"{clock.source}: {clock.words(aligned)}")
    for source, (connections, lookups) in sorted(taps.twice.items()):
        detail = f"{connections} connections and {lookups} lookups are in another capture too"
        result.tables.add("anomalies", Anomaly(None, source, None, None, "seen_twice", detail, None))
    return result


def _worth_sharing(capture: Again) -> bool:
    """Whether a capture begins with enough mail for several processes: each reads all of it, and shares only what comes after.

    Of an open file, or one that can be read once only, nothing is known.
    """
    if capture.place is not None or not capture.readable:
        return True
    limits = replace(Limits(), batch_bytes=_SAMPLE)
    frames = next(files.read(capture.item, limits, SourceInfo(name_of(capture.item))), None)
    if frames is None:
        return False
    packets = Decoder(limits).decode(frames)
    of_mail = np.isin(packets.src_port, _MAIL_TABLE) | np.isin(packets.dst_port, _MAIL_TABLE)
    return bool(packets.length[of_mail].sum() * _WORTH >= packets.length.sum())


def _read(
    again: list[Again],
    limits: Limits,
    keylogs: Sequence[str | PathLike[str]],
    progress: Progress | None,
    taps: Taps | None,
    jobs: int = 1,
) -> Result:
    secrets = tls.read_key_logs(keylogs)
    pipeline = Pipeline(limits, secrets, taps, (0, jobs))
    sources: list[SourceInfo] = []
    others: list[Counted] = []
    once = sum(not (isinstance(one.item, str | PathLike) and files.rereadable(one.item)) for one in again)

    def work(number: int, out: shards.Outbox, copies: list[BinaryIO]) -> None:
        other = Pipeline(limits, secrets, None, (number, jobs), out)
        for one in again:
            info = SourceInfo(name_of(one.item))
            for frames in files.read(copies[0] if copies else one.item, limits, info):
                other.learn(info)
                other.feed(frames)
                out.flush()
        other.end()
        out.finish((other.counted(), secrets.asked, secrets.used))

    with _collector_off(), closing(shards.Crew(jobs - 1, work, limits, once if jobs > 1 else 0)) as crew:
        for one in again:
            item = one.item
            if taps is not None and one.place is not None and not isinstance(item, str | PathLike):
                item.seek(one.place)
            info = SourceInfo(name_of(item))
            sources.append(info)

            def report(done: int, total: int | None, name: str = info.name) -> None:
                if progress is not None:
                    progress(name, done, total, pipeline.messages, sum(source.frames for source in sources))

            with crew.tee(item, 0, info.name) if crew.copies else nullcontext(item) as file:
                for frames in files.read(file, limits, info, progress=report):
                    pipeline.learn(info)
                    pipeline.feed(frames)
                    pipeline.gather(crew)
                    del frames  # with the last of them goes the buffer
        crew.wait()
        pipeline.gather(crew)
        for counted, asked, used in crew.words:
            others.append(counted)
            secrets.asked |= asked
            secrets.used |= used
        tables = pipeline.finish(sources, others)
    unused = len(secrets) if secrets.asked and not secrets.used else 0
    return Result(tables, sources, again, limits, pipeline.bodies, unused_secrets=unused)
