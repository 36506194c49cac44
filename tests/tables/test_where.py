"""--where: what its words mean, and what it says of mistakes."""

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from analyzer.errors import ExpressionError
from analyzer.mail.records import Hop, Message, RecipientRow
from analyzer.tables import TABLES, Tables
from analyzer.tables.where import EXAMPLES, FIELDS, OPERATORS, Where
from analyzer.wire.anomalies import Anomaly

DAY = 86_400 * 10**9


def message(trace_id: str, **values: object) -> Message:
    defaults = {"hops": 1, "hops_observed": 1, "outcome": "delivered", "retrieved": False}
    made: Message = synthetic.row(Message, trace_id=trace_id, **{**defaults, **values})
    return made


def hop(trace_id: str, number: int = 1, **values: object) -> Hop:
    defaults = {"kind": "relay", "protocol": "smtp", "basis": "observed", "outcome": "accepted"}
    made: Hop = synthetic.row(Hop, trace_id=trace_id, hop=number, **{**defaults, **values})
    return made


@pytest.fixture
def mail() -> Tables:
    """Three messages: `late` waited, was deferred and delivered; `gone` was rejected; `quiet` was seen in trace fields only."""
    tables = Tables()
    first = 20_000 * DAY  # 2024-10-04
    tables.extend(
        "messages",
        [
            message(
                "late",
                ts_first=first,
                subject="Minutes (draft)",
                mail_from="alice@example.org",
                size=2_000,
                elapsed_s=400.0,
                hops=2,
            ),
            message("gone", ts_first=first + DAY, subject="INVOICE 7", mail_from="", outcome="rejected", size=5_000_000),
            message(
                "quiet", ts_first=first + DAY + 3_600 * 10**9, message_id="<q@example.net>", retrieved=True, tls_all_hops=True
            ),
        ],
    )
    tables.extend(
        "hops",
        [
            hop(
                "late",
                1,
                code=451,
                outcome="deferred",
                client_ip="192.0.2.10",
                server_ip="2001:db8::25",
                client_role="msa",
                session_id="s1",
            ),
            hop("late", 2, code=250, queue_s=301.5, client_ip="192.0.2.10", server_ip="198.51.100.1", tls="starttls"),
            hop(
                "gone",
                1,
                code=550,
                reply_text="5.1.1 No such user",
                server_ip="198.51.100.9",
                tls="none",
                rcpt_to=["eve@example.net"],
            ),
            hop("quiet", 1, basis="claimed"),
        ],
    )
    tables.add(
        "recipients",
        synthetic.row(RecipientRow, trace_id="gone", hop=1, recipient="eve@example.net", outcome="rejected", code=550),
    )
    tables.add("sessions", synthetic.session(1, auth_user="alice")._replace(session_id="s1"))
    tables.add("anomalies", Anomaly(1, "x", "s1", None, "bare_lf", "", 1))
    tables.add("anomalies", Anomaly(1, "x", None, "quiet", "clock_offset", "", 1))
    return tables


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("code>=500", "gone"),
        ("code=250", "late"),
        ("code!=250", "gone quiet"),
        ("code<400 or code>500", "late gone"),
        ("code<400 and code>500", ""),
        ("not code=250", "gone quiet"),
        ("not (code=250 or code=550)", "quiet"),
        ("code=250 or code=550 and outcome=delivered", "late"),
        ("(code=250 or code=550) and outcome=rejected", "gone"),
        ("code>=500 and rcpt~'@example.net'", "gone"),
        ('rcpt~"@EXAMPLE.net"', "gone"),
        ("rcpt=eve@example.net", "gone"),
        ("from=''", "gone"),
        ("from~alice", "late"),
        ("subject~invoice", "gone"),
        ("subject='minutes (draft)'", "late"),
        ("subject!~invoice", "late quiet"),
        ("message_id=q@example.net", "quiet"),
        ("message_id='<q@example.net>'", "quiet"),
        ("queue>5m", "late"),
        ("queue > 301s", "late"),
        ("queue>302", ""),
        ("queue>=301500ms", "late"),
        ("elapsed<1h", "late"),
        ("elapsed>1d", ""),
        ("size>1MB", "gone"),
        ("size=2k", "late"),
        ("size<2KiB", "late"),
        ("date=2024-10-04", "late"),
        ("date>2024-10-04", "gone quiet"),
        ("date>=2024-10-05T01:00", "quiet"),
        ("date='2024-10-05 00'", "gone"),
        ("date<=2024-10-05", "late gone quiet"),
        ("retrieved", "quiet"),
        ("not retrieved", "late gone"),
        ("encrypted=yes", "quiet"),
        ("encrypted=no", ""),
        ("ip=192.0.2.0/24", "late"),
        ("ip=2001:DB8::/32", "late"),
        ("ip=198.51.100.9", "gone"),
        ("ip!=198.51.100.0/24", "quiet"),
        ("role=msa", "late"),
        ("tls=starttls", "late"),
        ("result=deferred", "late"),
        ("basis=claimed", "quiet"),
        ("hops>1", "late"),
        ("user=alice", "late"),
        ("anomaly=bare_lf", "late"),
        ("anomaly~clock", "quiet"),
        ("NOT Code = 250 AND Outcome = delivered", "quiet"),
    ],
)
def test_what_expressions_mean(mail, text, holds):
    assert Where(text).traces(mail) == set(holds.split())


@pytest.mark.parametrize(
    ("text", "said", "at"),
    [
        ("", "a field is missing", 0),
        ("code", "an operator belongs after code: = != < <= > >=", 4),
        ("code>=", "a value belongs after >=", 6),
        ("code>=abc", "code is a whole number: 550", 6),
        ("queue>5x", "queue is a time: 500ms, 90s, 5m, 2h, 1d", 6),
        ("size>big", "size is a size: 5000, 10k, 2MB, 1MiB", 5),
        ("date=2024-13-01", "date is a date", 5),
        ("date=yesterday", "date is a date", 5),
        ("retrieved=perhaps", "retrieved is yes or no", 10),
        ("ip=somewhere", "ip is an address or network", 3),
        ("subject<a", "subject takes = != ~ !~", 7),
        ("code=550 rcpt=a", "`and` or `or` is missing before 'rcpt'", 9),
        ("(code=550", "a closing parenthesis is missing", 9),
        ("code=550)", "`and` or `or` is missing before ')'", 8),
        ("code=550 and", "a field is missing", 12),
        ("kode=550", "no field 'kode', did you mean code", 0),
        ("code=550 and subject~'open", "this quote is not closed", 21),
        ("code!550", "'!' is no operator", 4),
        ("=550", "a field belongs here", 0),
        ("not " * 500 + "retrieved", "too many parentheses", None),
    ],
)
def test_mistakes_are_told_with_their_place(text, said, at):
    with pytest.raises(ExpressionError) as caught:
        Where(text)
    assert said in caught.value.what
    assert caught.value.text == text
    assert at is None or caught.value.at == at
    assert all(name in caught.value.fix for name in FIELDS)


@given(st.text(max_size=60))
def test_no_text_is_taken_for_a_program(text):
    try:
        Where(text)
    except ExpressionError as error:
        assert 0 <= error.at <= len(text)


def test_every_field_names_columns_that_are_there(tables):
    words = {
        "number": "1",
        "seconds": "1s",
        "octets": "1k",
        "time": "2024-01-01",
        "yesno": "yes",
        "text": "x",
        "address": "192.0.2.1",
    }
    assert set(words) == set(OPERATORS) >= set(EXAMPLES)
    known = {row.trace_id for row in tables.rows("messages")}
    for name, field in FIELDS.items():
        for operator in OPERATORS[field.kind]:
            assert Where(f"{name}{operator}{words[field.kind]}").traces(tables) <= known


def test_a_narrowed_analysis_has_the_rows_of_its_messages_alone(mail):
    from analyzer.views.trace import narrow

    left = narrow(mail, Where("code=250").traces(mail))
    assert [row.trace_id for row in left.rows("messages")] == ["late"]
    assert {row.trace_id for row in left.rows("hops")} == {"late"}
    assert [row.session_id for row in left.rows("sessions")] == ["s1"]
    assert list(left.anomaly_counts()) == ["bare_lf"]
    assert left.count("recipients") == 0


def test_no_table_with_messages_is_left_out_of_what_is_narrowed(tables):
    from analyzer.views.trace import narrow

    left = narrow(tables, {row.trace_id for row in tables.rows("messages")})
    for name, table in TABLES.items():
        if name != "anomalies" and any(column.name == "trace_id" for column in table.columns):
            assert list(left.rows(name)) == [row for row in tables.rows(name) if row.trace_id is not None]
    assert narrow(tables, ()).count("messages") == 0
