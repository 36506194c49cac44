"""Tables as typed pandas DataFrames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyzer.tables.schema import TABLES
from analyzer.tables.spool import Tables
from analyzer.tables.visible import encodable

if TYPE_CHECKING:
    import pandas as pd


def frame(tables: Tables, name: str) -> pd.DataFrame:
    """A table as a DataFrame: times datetime64[ns, UTC], integers Int64, seconds float64, truth boolean, text string.

    Absent is NA (NaT, NaN).  `attrs["meaning"]` says what a row is, `attrs["columns"]` what each column means.
    Raises KeyError for a table that does not exist.
    """
    import pandas as pd

    table = TABLES[name]
    values = list(zip(*tables.rows(name), strict=True)) or [()] * len(table.columns)
    made = pd.DataFrame({c.name: _series(c.kind, v) for c, v in zip(table.columns, values, strict=True)})
    made.attrs = {"table": name, "meaning": table.meaning, "columns": {c.name: c.meaning for c in table.columns}}
    return made


def describe(name: str) -> pd.DataFrame:
    """The columns of a table: name, kind, meaning.  Raises KeyError for a table that does not exist."""
    import pandas as pd

    return pd.DataFrame(TABLES[name].columns, columns=["name", "kind", "meaning"])


def _series(kind: str, values: Sequence[Any]) -> Any:
    import numpy as np
    import pandas as pd

    if kind == "time":
        absent = np.iinfo(np.int64).min  # NaT
        ns = np.fromiter((absent if v is None else v for v in values), np.int64, len(values))
        return pd.Series(ns.view("datetime64[ns]")).dt.tz_localize("UTC")
    if kind in ("seconds", "float"):
        return pd.Series(values, dtype="float64")
    if kind == "int":
        return pd.Series(pd.array(list(values), dtype="Int64"))
    if kind == "bool":
        return pd.Series(pd.array(list(values), dtype="boolean"))
    if kind == "text":
        return pd.Series(pd.array([None if v is None else encodable(v) for v in values], dtype="string"))
    return pd.Series([pd.NA if v is None else list(v) for v in values], dtype="object")
