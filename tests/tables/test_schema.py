"""The tables' names, columns and order."""

import pytest

from analyzer.errors import MailhopError
from analyzer.tables import TABLES, anomaly_names, describe


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda t: t.name)
def test_every_column_has_a_sentence_and_the_order_names_columns(table):
    assert all(column.meaning.strip() for column in table.columns)
    assert set(table.order) <= {column.name for column in table.columns}
    assert table.meaning


def test_times_and_seconds_are_known_by_their_names():
    kinds = {column.name: column.kind for column in describe("hops").columns}
    assert kinds["ts_start"] == "time"
    assert kinds["queue_s"] == "seconds"
    assert kinds["rcpt_to"] == "list"
    assert kinds["complete"] == "bool"
    assert kinds["code"] == "int"


def test_a_mistyped_table_is_told_its_nearest_names():
    with pytest.raises(MailhopError, match="did you mean hops"):
        describe("hop")


def test_no_two_rooms_give_one_name_two_meanings():
    from analyzer.mail.anomalies import NAMES as OF_MAIL
    from analyzer.protocols.anomalies import NAMES as OF_PROTOCOLS
    from analyzer.wire.anomalies import NAMES as OF_WIRE

    assert len(anomaly_names()) == len(OF_WIRE) + len(OF_PROTOCOLS) + len(OF_MAIL)
    for name, meaning in anomaly_names().items():
        assert name.replace("_", "").isalnum() and name.islower(), name
        assert meaning.endswith("."), name
