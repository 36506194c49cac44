"""The tables: their names, their order, and which record's fields are their columns.

Rows come in the order of `order`, ascending, absent values last, and then by the whole row: the
same rows make the same table, in whatever order they were found.
"""

from typing import Any, NamedTuple

from analyzer.columns import Column, columns
from analyzer.errors import MailhopError
from analyzer.mail import records
from analyzer.mail.anomalies import NAMES as MAIL_NAMES
from analyzer.protocols.anomalies import NAMES as PROTOCOL_NAMES
from analyzer.protocols.base import Command, SessionRow
from analyzer.protocols.dns import Transaction
from analyzer.wire.anomalies import NAMES as WIRE_NAMES
from analyzer.wire.anomalies import Anomaly


class Table(NamedTuple):
    """A table: one row per record, one column per field."""

    name: str
    record: Any
    """Class of its rows, a NamedTuple."""
    meaning: str
    """What one row stands for."""
    order: tuple[str, ...]
    """Columns that rows are sorted by."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns, in order."""
        return columns(self.record)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table("messages", records.Message, "one traced message", ("ts_first", "trace_id")),
        Table(
            "hops",
            records.Hop,
            "one time a message crossed, tried to cross, or is shown to have crossed a wire",
            ("ts_start", "source", "first_frame", "trace_id", "hop"),
        ),
        Table("recipients", records.RecipientRow, "one recipient at one hop", ("trace_id", "hop", "recipient")),
        Table("deliveries", records.Delivery, "the fate of one recipient of a message", ("ts_final", "trace_id", "recipient")),
        Table("timeline", records.Step, "one step of a message's life", ("trace_id", "seq")),
        Table("sessions", SessionRow, "one mail connection that carried payload", ("ts", "source", "first_frame", "session_id")),
        Table("commands", Command, "one command and its reply", ("ts", "session_id", "n")),
        Table("dns", Transaction, "one DNS question and its answer", ("ts", "source", "frame", "reply_frame", "dns_id")),
        Table("hosts", records.Host, "one host, under all its addresses and names", ("ts_first", "host_id")),
        Table("links", records.Link, "why two hops are one message", ("trace_id", "hop", "linked_hop")),
        Table("anomalies", Anomaly, "one odd thing, named", ("ts", "source", "frame", "name")),
        Table(
            "authentication",
            records.Authentication,
            "one result of SPF, DKIM, DMARC or ARC at a hop, evaluated from the capture, beside what the server wrote",
            ("trace_id", "hop", "method", "domain", "selector"),
        ),
    )
}

OBJECTS: dict[tuple[str, str], dict[str, str]] = {
    ("hosts", "evidence"): {"role": "text", "rule": "text", "count": "int"},
}
"""List columns that hold objects, and the kinds of the objects' members; every other list holds text."""


def describe(name: str) -> Table:
    """A table by its name.  Raises MailhopError, with the nearest names, when there is none."""
    try:
        return TABLES[name]
    except KeyError:
        raise MailhopError(f"no table {name!r}", nearest(name, TABLES)) from None


def anomaly_names() -> dict[str, str]:
    """Every anomaly's name and its sentence, in the order of the rooms that meet it."""
    return {**WIRE_NAMES, **PROTOCOL_NAMES, **MAIL_NAMES}


def nearest(word: str, known: Any) -> str:
    """The names that a mistyped word may have meant, as a sentence."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "there are " + ", ".join(known)
