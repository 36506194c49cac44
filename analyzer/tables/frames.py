"""Tables as typed pandas DataFrames."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
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
    columns = [_COLUMNS[c.kind]() for c in table.columns]
    for block in filter(None, tables.rows(name).blocks()):  # never all rows and all columns at once
        for column, values in zip(columns, zip(*block, strict=True), strict=True):
            column.extend(values)
    made = pd.DataFrame({c.name: column.series() for c, column in zip(table.columns, columns, strict=True)}, copy=False)
    made.attrs = {"table": name, "meaning": table.meaning, "columns": {c.name: c.meaning for c in table.columns}}
    return made


def describe(name: str) -> pd.DataFrame:
    """The columns of a table: name, kind, meaning.  Raises KeyError for a table that does not exist."""
    import pandas as pd

    return pd.DataFrame(TABLES[name].columns, columns=["name", "kind", "meaning"])


class _Times:
    """A column under way: nanoseconds, 8 octets each."""

    def __init__(self) -> None:
        self._values = array("q")

    def extend(self, values: Sequence[Any]) -> None:
        """Take the cells of some rows."""
        self._values.extend([_NAT if v is None else v for v in values])

    def series(self) -> Any:
        """The column."""
        import numpy as np
        import pandas as pd

        return pd.Series(np.frombuffer(self._values, "datetime64[ns]")).dt.tz_localize("UTC")


class _Floats:
    """As `_Times`, for decimal numbers."""

    def __init__(self) -> None:
        self._values = array("d")

    def extend(self, values: Sequence[Any]) -> None:
        """Take the cells of some rows."""
        self._values.extend([_NAN if v is None else v for v in values])

    def series(self) -> Any:
        """The column."""
        import numpy as np
        import pandas as pd

        return pd.Series(np.frombuffer(self._values, np.float64))


class _Whole:
    """Integers or truth values, and which are absent."""

    def __init__(self, code: str) -> None:
        self._values = array(code)
        self._absent = bytearray()

    def extend(self, values: Sequence[Any]) -> None:
        """Take the cells of some rows."""
        self._values.extend([0 if v is None else v for v in values])
        self._absent += bytes([v is None for v in values])

    def series(self) -> Any:
        """The column."""
        import numpy as np
        import pandas as pd

        absent = np.frombuffer(self._absent, np.bool_)
        if self._values.typecode == "q":
            return pd.Series(pd.arrays.IntegerArray(np.frombuffer(self._values, np.int64), absent))
        return pd.Series(pd.arrays.BooleanArray(np.frombuffer(self._values, np.bool_), absent))


class _Texts:
    """Text, the same words kept once."""

    def __init__(self) -> None:
        self._values: list[str | None] = []
        self._words: dict[str, str] = {}

    def extend(self, values: Sequence[Any]) -> None:
        """Take the cells of some rows."""
        words = self._words
        if len(words) > _WORDS:
            words.clear()
        self._values += [None if v is None else words.get(v) or words.setdefault(v, encodable(v)) for v in values]

    def series(self) -> Any:
        """The column."""
        import pandas as pd

        return pd.Series(pd.array(self._values, dtype="string"))


class _Lists:
    """Lists, of text or objects."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def extend(self, values: Sequence[Any]) -> None:
        """Take the cells of some rows."""
        import pandas as pd

        self._values += [pd.NA if v is None else list(v) for v in values]

    def series(self) -> Any:
        """The column."""
        import pandas as pd

        return pd.Series(self._values, dtype="object")


_COLUMNS: dict[str, Callable[[], Any]] = {
    "time": _Times,
    "seconds": _Floats,
    "float": _Floats,
    "int": partial(_Whole, "q"),
    "bool": partial(_Whole, "b"),
    "text": _Texts,
    "list": _Lists,
}
_NAT = -(1 << 63)
_NAN = float("nan")
_WORDS = 100_000
"""Words of a column remembered while it is made."""
