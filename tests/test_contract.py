"""Columns that scripts and users rely on, in the order that the contract gives them.

A column or a table may be added behind these; a rename, a removal or a reordering breaks somebody's script.
"""

import re
from pathlib import Path

import pytest

from analyzer.tables import TABLES

CONTRACT = {
    "messages": """trace_id message_id ts_first ts_last elapsed_s subject header_from header_to header_date mail_from size hops
        hops_observed outcome retrieved tls_all_hops spf dkim dmarc parent_trace_id relation""",
    "hops": """trace_id hop parent_hop kind protocol basis source session_id message_index client_ip client_port client_name
        client_role server_ip server_port server_name server_role tls mail_from rcpt_to message_id size sha256 complete
        missing_bytes outcome code enhanced_code reply_text queue_id ts_start ts_data ts_eom ts_end queue_s dns_s connect_s
        greeting_s tls_s auth_s envelope_s transfer_s accept_s tcp_stream first_frame last_frame wireshark""",
    "recipients": "trace_id hop recipient outcome code enhanced_code reply_text",
    "deliveries": "trace_id recipient outcome attempts ts_final last_hop code enhanced_code reply_text",
    "timeline": "trace_id seq ts hop event actor_ip actor_role peer_ip peer_role detail basis source session_id frame",
    "sessions": """session_id source ts ts_end protocol client_ip client_port server_ip server_port community_id client_name
        server_name server_software tls tls_version tls_cipher sni visibility auth_mechanism auth_user auth_ok commands
        messages client_bytes server_bytes gap_bytes start end tcp_stream first_frame last_frame wireshark""",
    "commands": """session_id n ts ts_reply latency_s protocol tag verb argument status enhanced_code reply_text pipelined
        frame reply_frame""",
    "dns": """source ts ts_reply rtt_s client_ip client_port server_ip server_port transport dns_id qname qtype rcode aa tc
        rd ra answers ttl_min answered retries purpose trace_id hop client_role server_role frame reply_frame""",
    "hosts": "host_id ips names roles evidence software ts_first ts_last sessions messages",
    "links": "trace_id hop linked_hop keys score conflicts",
    "anomalies": "ts source session_id trace_id name detail frame",
}


def test_the_tables_are_the_contracts():
    assert list(TABLES)[: len(CONTRACT)] == list(CONTRACT)


@pytest.mark.parametrize("table", CONTRACT)
def test_columns_are_the_contracts(table):
    promised = CONTRACT[table].split()
    assert [column.name for column in TABLES[table].columns][: len(promised)] == promised


def test_no_column_is_an_sql_word():
    for table in TABLES.values():
        assert not {"from", "to", "order", "group", "select", "where"} & {column.name for column in table.columns}


def test_the_copy_above_is_the_contract():
    page = Path(__file__).parents[2] / "shared" / "contract.md"
    if not page.exists():
        pytest.skip("the contract's page is not beside this tree")
    text = page.read_text()
    for table, columns in CONTRACT.items():
        section = re.search(rf"^\*\*{table}\*\*(.*?)(?=^\*\*|\n\n|\Z)", text, re.M | re.S)
        assert section is not None, table
        outside_brackets = re.sub(r"\([^()]*\)", "", section[1])
        named = re.findall(r"[a-z][a-z0-9_]*", " ".join(re.findall(r"`([^`]*)`", outside_brackets)))
        assert named[: len(columns.split())] == columns.split()
