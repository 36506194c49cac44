"""Times of several captures on one clock, to reason by.  What is shown stays as the captures have it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyzer.mail.hops import Leg

Reading = Callable[[int], int]
"""From what a capture's clock said to the reference's, nanoseconds."""


class Clocks:
    """By source: how to read its clock; one that is not named is right."""

    def __init__(self, readings: Mapping[str, Reading] | None = None) -> None:
        self._readings = dict(readings or {})

    def __bool__(self) -> bool:
        return bool(self._readings)

    def true(self, source: str, ts: int) -> int:
        """A time in a source's frames, on the common clock."""
        reading = self._readings.get(source)
        return reading(ts) if reading is not None else ts

    def opened(self, leg: "Leg") -> int:
        """When the connection of a hop was opened; of a further message on it, when that began."""
        session = leg.session
        if session is None or leg.index > 1 or session.connection.ts_syn is None:
            return leg.ts
        return self.true(session.source, session.connection.ts_syn)
