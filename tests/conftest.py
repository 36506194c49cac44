"""Fixtures for every room; this file also puts tests/ on the path, for the helpers beside it."""

from collections.abc import Iterator

import pytest
import synthetic

from analyzer.tables import Tables


@pytest.fixture
def tables() -> Iterator[Tables]:
    """The tables of one message's journey: submitted, looked up, relayed, delivered to one of two, fetched."""
    with synthetic.journey() as made:
        yield made
