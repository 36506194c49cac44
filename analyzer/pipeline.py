"""The corridor: the only module that names every stage.

files -> frames -> packets -> (UDP) DNS datagrams                      -> story -> tables
                           -> (TCP) streams -> protocol sessions -> events ->
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, BinaryIO, NamedTuple, TypeVar

from analyzer.errors import CaptureError
from analyzer.limits import Limits
from analyzer.mail.story import Story
from analyzer.protocols import dns, tls
from analyzer.protocols.base import Command, Event, MessageCarried, SessionEnded
from analyzer.protocols.bodies import Body
from analyzer.protocols.registry import MAIL_PORTS, recognise
from analyzer.protocols.starttls import Offers
from analyzer.tables import Tables
from analyzer.wire import files
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.packets import Decoder
from analyzer.wire.streams import Streams
from analyzer.wire.types import Connection, Frames, SourceInfo

Input = str | PathLike[str] | BinaryIO
T = TypeVar("T")
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

    @property
    def damaged(self) -> bool:
        """Part of the input could not be read."""
        return any(source.damage for source in self.sources)


class Pipeline:
    """One analysis under way: `feed` it batches of frames, `finish` it once.

    File and live capture take this same way.
    """

    def __init__(self, limits: Limits | None = None, secrets: tls.Secrets | None = None) -> None:
        self.limits = limits or Limits()
        self.secrets = secrets if secrets is not None else tls.Secrets()
        self.tables = Tables(self.limits)
        self.story = Story(self.limits)
        self.decoder = Decoder(self.limits)
        self.streams = Streams(self.limits, self._recognise, MAIL_PORTS)
        self.datagrams = dns.Datagrams(self.limits)
        self.offers = Offers(self.limits)
        self.messages = 0
        self.bodies: dict[tuple[str, int], Body] = {}

    def learn(self, info: SourceInfo) -> None:
        """Take the TLS secrets that a capture brought along (pcapng Decryption Secrets Blocks)."""
        for log in info.secrets:
            self.secrets.add(log)
        info.secrets.clear()

    def feed(self, frames: Frames) -> None:
        """Take the next batch of frames of a source."""
        packets = self.decoder.decode(frames)
        if len(packets):
            rows = dns.candidate_rows(packets)
            if len(rows):
                self._take(self.datagrams.feed(packets, rows))
            self._deliver(self.streams.feed(packets))
        self._drain()

    def finish(self, sources: Iterable[SourceInfo] = ()) -> Tables:
        """Nothing more will come: end what is open, tell the story, fill the tables."""
        self._deliver(self.streams.finish())
        self._take(self.datagrams.finish())
        self._take(self.decoder.finish())
        self._drain()
        for source in sources:
            self._take(Anomaly(d.ts, source.name, None, None, d.name, d.detail, d.frame) for d in source.damage)
            self._take(source.notes)
        self._take(self.offers.settle())
        told = self.story.finish()
        tables = self.tables
        tables.patch("sessions", self.offers.row)
        tables.extend("messages", told.messages)
        tables.extend("hops", told.hops)
        tables.extend("recipients", told.recipients)
        tables.extend("deliveries", told.deliveries)
        tables.extend("timeline", told.timeline)
        tables.extend("hosts", told.hosts)
        tables.extend("links", told.links)
        tables.extend("authentication", told.authentication)
        tables.extend("anomalies", told.anomalies)
        tables.patch("dns", told.dns)
        tables.patch("anomalies", told.anomaly)
        return tables

    def _recognise(self, conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        protocol, client_is_orig, sure = recognise(conn, orig, resp, closing)
        if protocol is None:
            return False if sure else None
        session = protocol.session(conn, client_is_orig, self.limits)
        session.secrets = self.secrets
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
        for holder in (self.decoder, self.streams):
            if holder.anomalies:
                self._take(holder.anomalies)
                holder.anomalies = []
        for attempt in self.streams.attempts:
            self.story.feed(attempt)
        self.streams.attempts = []

    def _take(self, events: Iterable[Event]) -> None:
        tables, story = self.tables, self.story
        for event in events:
            kind = type(event)
            if kind is Command:
                tables.add("commands", event)
            elif kind is Anomaly:
                tables.add("anomalies", event)
            elif kind is dns.Transaction:
                tables.add("dns", event)
                story.feed(event)
            else:
                if isinstance(event, SessionEnded):
                    tables.add("sessions", event.row)
                    self.offers.feed(event.info)
                    self.messages += event.info.messages
                elif isinstance(event, MessageCarried) and event.content is not None and event.content.body is not None:
                    self.bodies[event.session.session_id, event.index] = event.content.body
                story.feed(event)


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
) -> Result:
    """Analyze captures, several files being one analysis.

    Raises CaptureError when an input cannot be read at all, KeyLogError for a bad key log.
    """
    limits = limits or Limits()
    pipeline = Pipeline(limits, tls.read_key_logs(keylogs))
    sources: list[SourceInfo] = []
    again: list[Again] = []
    with _collector_off():
        for item in in_time_order(inputs):
            info = SourceInfo(name_of(item))
            sources.append(info)
            again.append(Again(item, _place(item)))

            def report(done: int, total: int | None, name: str = info.name) -> None:
                if progress is not None:
                    progress(name, done, total, pipeline.messages, sum(source.frames for source in sources))

            for frames in files.read(item, limits, info, progress=report):
                pipeline.learn(info)
                pipeline.feed(frames)
        tables = pipeline.finish(sources)
    secrets = pipeline.secrets
    unused = len(secrets) if secrets.asked and not secrets.used else 0
    return Result(tables, sources, again, limits, pipeline.bodies, unused_secrets=unused)
