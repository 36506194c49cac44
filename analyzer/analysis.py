"""What a notebook holds: the tables of one analysis as DataFrames, and one message's trace."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

from analyzer.limits import Limits
from analyzer.pipeline import Input, Result, run, several

if TYPE_CHECKING:
    import pandas as pd

    from analyzer.views.rolemap import RoleMap
    from analyzer.views.trace import Trace


class Analysis:
    """One finished analysis: a DataFrame per table (`analysis.hops`), and `trace` for one message.

    DataFrames are made when first asked for and kept; they are yours to change.
    """

    def __init__(self, result: Result) -> None:
        self._result = result

    @property
    def sources(self) -> list[str]:
        """Names of the inputs, in the order they were read."""
        return [source.name for source in self._result.sources]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        from analyzer.tables.schema import TABLES

        return {name: getattr(self, name) for name in TABLES}

    def _table(self, name: str) -> pd.DataFrame:
        from analyzer.tables.frames import frame

        return frame(self._result.tables, name)

    @cached_property
    def messages(self) -> pd.DataFrame:
        """One row per traced message."""
        return self._table("messages")

    @cached_property
    def hops(self) -> pd.DataFrame:
        """One row per time a message crossed, or is shown to have crossed, a wire."""
        return self._table("hops")

    @cached_property
    def recipients(self) -> pd.DataFrame:
        """One row per hop and recipient."""
        return self._table("recipients")

    @cached_property
    def deliveries(self) -> pd.DataFrame:
        """One row per message and recipient: its fate."""
        return self._table("deliveries")

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """One row per step of a message's life."""
        return self._table("timeline")

    @cached_property
    def sessions(self) -> pd.DataFrame:
        """One row per mail connection."""
        return self._table("sessions")

    @cached_property
    def commands(self) -> pd.DataFrame:
        """One row per command and its reply."""
        return self._table("commands")

    @cached_property
    def dns(self) -> pd.DataFrame:
        """One row per question and its answer."""
        return self._table("dns")

    @cached_property
    def hosts(self) -> pd.DataFrame:
        """One row per host, with its roles and their evidence."""
        return self._table("hosts")

    @cached_property
    def links(self) -> pd.DataFrame:
        """Why hops are one message."""
        return self._table("links")

    @cached_property
    def authentication(self) -> pd.DataFrame:
        """Results of SPF, DKIM, DMARC and ARC evaluated from the capture, beside what servers wrote."""
        return self._table("authentication")

    @cached_property
    def anomalies(self) -> pd.DataFrame:
        """Everything odd, named."""
        return self._table("anomalies")

    def describe(self, table: str) -> pd.DataFrame:
        """The columns of a table: name, kind, meaning.  Raises KeyError for a table that does not exist."""
        from analyzer.tables.frames import describe
        from analyzer.views.columns import Columns

        return Columns(describe(table))

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def trace(self, message: str) -> Trace:
        """One message, by Message-ID (with or without angle brackets) or trace id.

        Shows itself in Jupyter and prints as text.  Raises MessageNotFound when none or several answer.
        """
        from analyzer.views.trace import find

        return find(self._result.tables, message)

    def slice(self, message: str, path: str | PathLike[str]) -> int:
        """Write one message's packets, over all its hops, to a pcapng file; how many.

        Raises MessageNotFound as `trace`, CaptureError when a capture cannot be read a second time.
        """
        from analyzer.slicing import write

        return write(path, self._result, self.trace(message)).frames

    def __repr__(self) -> str:
        from analyzer.views.overview import overview

        return overview(self._result.tables, self._result.sources)

    def _repr_html_(self) -> str:
        from analyzer.views.notebook import analysis_html

        return analysis_html(self._result.tables, self._result.sources)

    @cached_property
    def role_map(self) -> RoleMap:
        """Who talks to whom: hosts by role and the messages between them.  Shows itself in Jupyter."""
        from analyzer.views.rolemap import RoleMap

        return RoleMap(self._result.tables)

    def report(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML file: searchable messages, a waterfall and a ladder for each."""
        from analyzer.views.report import write

        write(path, self._result.tables, self._result.sources)


def analyze(
    path: Input | Sequence[Input],
    *,
    keylog: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    limits: Limits | None = None,
    align: bool = False,
) -> Analysis:
    """Analyze a capture: a path, a list of paths (one analysis), or an open binary file.

    `keylog`: TLS key log file or files.  `align`: of several taps, take the offsets of their clocks off; else they are only
    told (anomaly `clock_offset`).  Raises CaptureError when an input cannot be read at all, KeyLogError
    for a bad key log; damage within a capture is in `analysis.anomalies`.
    """
    return Analysis(run(several(path), limits=limits, keylogs=several(keylog), align=align))
