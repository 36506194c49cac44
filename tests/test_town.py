"""captures/town.pcapng, end to end, against what the servers logged: what can be told, and what honestly cannot."""

import json
from pathlib import Path

import pytest

from analyzer.pipeline import Result, run
from analyzer.views.rolemap import RoleMap

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
TRUTH = json.loads((CAPTURES / "town.truth.json").read_text())
OF = {m["message_id"]: m for m in TRUTH["messages"]}
ADDRESS = {host: address for host, (address, _) in TRUTH["hosts"].items()}


@pytest.fixture(scope="module")
def town() -> Result:
    return run([CAPTURES / "town.pcapng"], keylogs=[CAPTURES / "town.keys.log"])


def test_every_message_that_crossed_in_the_clear_is_told_with_its_fate(town: Result) -> None:
    told = {m.message_id: m for m in town.tables.rows("messages") if m.message_id}
    assert set(told) <= set(OF)
    sealed = {i for i, m in OF.items() if m["author"] == "pc-jiro" and m["rcpt_to"] == ["goro@example.net"]}
    refused = {i for i, m in OF.items() if m["outcome"] == "rejected"}  # refused before DATA: no Message-ID was said
    assert set(OF) - set(told) == sealed | refused
    assert {m.outcome for m in told.values()} == {"delivered"}
    unnamed = [m for m in town.tables.rows("messages") if not m.message_id]
    assert [(m.outcome, m.mail_from) for m in unnamed] == [("rejected", OF[i]["mail_from"]) for i in sorted(refused)]


def test_queue_ids_are_those_of_the_logs(town: Result) -> None:
    traces = {m.trace_id: m.message_id for m in town.tables.rows("messages")}
    servers = {ADDRESS[host]: host for host in ("msa", "relay", "mx", "net")}
    named = 0
    for hop in town.tables.rows("hops"):
        if hop.queue_id and hop.server_ip in servers and traces[hop.trace_id]:
            assert hop.queue_id == OF[traces[hop.trace_id]]["queue_ids"][servers[hop.server_ip]]
            named += 1
    assert named > len(traces)


def test_roles_are_those_that_the_hosts_were_made_for(town: Result) -> None:
    roles = {ip: set(host.roles) for host in town.tables.rows("hosts") for ip in host.ips}
    for host, role in {"pc-taro": "mua", "pc-jiro": "mua", "msa": "msa", "relay": "mta", "mx": "mx", "net": "mx"}.items():
        assert role in roles[ADDRESS[host]], host
    assert {"mda", "imap"} <= roles[ADDRESS["store"]]
    assert "resolver" in roles[ADDRESS["resolver"]]
    assert "authoritative" in roles[ADDRESS["ns"]]


def test_only_the_sessions_whose_keys_are_there_are_opened(town: Result) -> None:
    opened = {s.client_ip for s in town.tables.rows("sessions") if s.visibility == "decrypted"}
    assert opened == {ADDRESS["pc-taro"]}
    everything = repr([list(town.tables.rows(name)) for name in ("sessions", "commands", "timeline")])
    assert "in-the-lab" not in everything


def test_the_policy_refused_the_stray_host_alone(town: Result) -> None:
    refused = [(hop.client_ip, hop.code, hop.enhanced_code) for hop in town.tables.rows("hops") if hop.outcome == "rejected"]
    assert refused == [(ADDRESS["stray"], 550, "5.7.23")] * 2


def test_the_map_shows_the_smart_host_between_the_submission_server_and_the_other_domain(town: Result) -> None:
    ways = {(e.start.address, e.end.address) for e in RoleMap(town.tables).edges}
    assert {
        (ADDRESS["pc-taro"], ADDRESS["msa"]),
        (ADDRESS["msa"], ADDRESS["mx"]),
        (ADDRESS["msa"], ADDRESS["relay"]),
        (ADDRESS["relay"], ADDRESS["net"]),
        (ADDRESS["news"], ADDRESS["mx"]),
        (ADDRESS["mx"], ADDRESS["store"]),
    } <= ways
