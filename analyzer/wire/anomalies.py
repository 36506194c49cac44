"""Everything odd on the wire, by name."""

from typing import Annotated, NamedTuple


class Anomaly(NamedTuple):
    """One odd thing, named (a row of `anomalies`)."""

    ts: Annotated[int | None, "when it was seen"]
    source: Annotated[str, "capture file or interface"]
    session_id: Annotated[str | None, "the session it happened in"]
    trace_id: Annotated[str | None, "the message it belongs to"]
    name: Annotated[str, "what it is; `mailhop schema anomalies` explains each name"]
    detail: Annotated[str, "the particulars, in words"]
    frame: Annotated[int | None, "frame number within the source"]


NAMES: dict[str, str] = {
    # slug: one sentence.  Each room has its own table; tables/ joins them.
    "damaged_capture": "The capture file is cut or corrupt here; what could be read around the damage was used.",
    "decompression_limit": "A compressed capture unpacks to more than the stated limit; it was read up to there.",
}
