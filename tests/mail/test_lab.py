"""The mail lab against its servers' own logs: trees, roles, fates and what is odd (the lab is not part of the project)."""

import json
from pathlib import Path
from typing import Any

import pytest

from analyzer.pipeline import run

LAB = Path(__file__).resolve().parents[3] / "shared" / "lab" / "captures"
STORIES = ("basic_pop", "basic_imap", "smarthost", "fork_bcc", "greylist", "list_forward_autoreply", "bounces")
SERVER = {"MSA": "msa", "MDA": "mda", "MX": "mx", "MTA-relay": "mta"}

pytestmark = pytest.mark.skipif(not LAB.is_dir(), reason="the mail lab's captures are not beside the project")


def told(story: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The truth of a story, and the rows told of its main capture."""
    truth = json.loads((LAB / story / "truth.json").read_text())
    tables = run([LAB / story / truth["main_capture"]]).tables
    return truth, {name: list(tables.rows(name)) for name in ("messages", "hops", "deliveries", "anomalies", "authentication")}


@pytest.mark.parametrize("story", STORIES)
def test_the_story_is_what_the_servers_logged(story: str) -> None:
    truth, tables = told(story)
    by_ends = {(h.client_ip, h.client_port, h.server_ip, h.message_index): h for h in tables["hops"] if h.basis == "observed"}
    count: dict[tuple[Any, ...], int] = {}
    fates = {(d.trace_id, d.recipient.lower()): d.outcome for d in tables["deliveries"]}
    for message in truth["messages"]:
        rows: dict[int, Any] = {}
        for hop in sorted(message["hops"], key=lambda h: h["start_ts"]):
            if not (hop.get("wire") or {}).get("mail_frame"):
                continue
            ends = (hop["client_ip"], hop["client_port"], hop["server_ip"])
            count[ends] = count.get(ends, 0) + 1
            row = rows[hop["seq"]] = by_ends[(*ends, count[ends])]
            assert row.server_role == SERVER[hop["server_role"].replace("/", " ").split(" ")[0]]
            assert (row.client_role == "mua") == (hop["client_role"] == "MUA")
            parent = rows.get(hop["parent"])
            assert row.parent_hop == (parent.hop if parent else None)
        assert len({row.trace_id for row in rows.values()}) == 1
        for recipient, fate in message["final_outcome"].items():
            assert fates[next(iter(rows.values())).trace_id, recipient.lower()] == fate


ALARMS = (
    "direct_to_mx",
    "open_relay",
    "received_forged",
    "received_contradicted",
    "received_time_impossible",
    "received_time_odd",
)
FORGED = {"smtp_extensions": 1}
"""Messages that their authors handed in with trace fields of their own making."""


@pytest.mark.parametrize("story", sorted(path.parent.name for path in LAB.glob("*/truth.json")))
def test_nothing_is_called_odd_that_is_not(story: str) -> None:
    truth, tables = told(story)
    to_exchanger = [
        message["n"]
        for message in truth["messages"]
        for hop in message["hops"]
        if hop["client_role"] == "MUA" and hop["server_role"].startswith("MX") and (hop.get("wire") or {}).get("mail_frame")
    ]
    said = [row.name for row in tables["anomalies"] if row.name in ALARMS]
    authorized = {(row.trace_id, row.hop) for row in tables["authentication"] if row.method == "spf" and row.result == "pass"}
    allowed = [
        h for h in tables["hops"] if (h.trace_id, h.hop) in authorized and h.client_role == "mua" and h.server_role == "mx"
    ]
    want = {"direct_to_mx": len(to_exchanger) - len(allowed), "received_forged": FORGED.get(story, 0)}
    assert {name: said.count(name) for name in ALARMS} == {name: want.get(name, 0) for name in ALARMS}
