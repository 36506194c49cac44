"""A table's columns as a table: every sentence in full, where pandas would cut it."""

from typing import Any

import pandas as pd


class Columns(pd.DataFrame):
    """A DataFrame that shows its text whole, in Jupyter and in a terminal."""

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
            shown: str = pd.DataFrame(self).to_html(index=False, notebook=True, justify="left", border=0)
            return shown.replace("<td>", '<td style="text-align:left">')

    def __repr__(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.width", None):
            return pd.DataFrame(self).to_string(index=False, justify="left")
