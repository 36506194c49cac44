"""A table's columns are the fields of its record: written once, each with a sentence.

A record is a `NamedTuple` whose fields read `name: Annotated[type, "sentence"]`.  The kind of a
column follows from its name and type, by the contract's own rules:

* `ts` and `ts_*`: integer nanoseconds since 1970, UTC (datetime64[ns, UTC]; JSON: ISO 8601 with `Z`)
* `*_s`: seconds (float)
* list: a list of text, or of objects (evidence); the rest: text, integer, truth value
* None is "absent": NA in a DataFrame, null in JSON, an empty cell in CSV
"""

from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class Column(NamedTuple):
    """One column: its name, its kind (`time seconds int float bool text list`) and what it means."""

    name: str
    kind: str
    meaning: str


_KINDS = {int: "int", float: "float", bool: "bool", str: "text", list: "list", tuple: "list"}


@cache
def columns(record: type[Any]) -> tuple[Column, ...]:
    """The columns of a record class, in order.  Raises TypeError for a field without a sentence."""
    found = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            raise TypeError(f"{record.__name__}.{name} has no sentence")
        inner, meaning = get_args(hint)[:2]
        if get_origin(inner) in (Union, UnionType):
            inner = next(t for t in get_args(inner) if t is not type(None))
        kind = _KINDS[get_origin(inner) or inner]
        if name == "ts" or name.startswith("ts_"):
            kind = "time"
        elif name.endswith("_s"):
            kind = "seconds"
        found.append(Column(name, kind, meaning))
    return tuple(found)
