"""Records in, tables out: sorted rows in bounded memory, files, DataFrames.

Promise: the same records make the same bytes on disk; rows come in a stated order; an absent value
is absent (NA, null, an empty cell), never 0 or "".
"""

from analyzer.tables.schema import TABLES, Table, anomaly_names, describe
from analyzer.tables.spool import Spool, Tables

__all__ = ["TABLES", "Spool", "Table", "Tables", "anomaly_names", "describe"]
