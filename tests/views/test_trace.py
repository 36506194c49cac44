"""One message: who handled it, when, what each said, where the time went, and what was not seen."""

import json
import re

import pytest
import synthetic

from analyzer.errors import MessageNotFound
from analyzer.mail.records import Authentication, Step
from analyzer.tables import TABLES, Tables
from analyzer.views.text import Look, cells, plain
from analyzer.views.trace import Trace, find, gather, select, wireshark

BAD = "\x1b]52;c;eA==\x07\u202e end; #35 <b>%% \n\r`x`"


@pytest.fixture
def trace(tables: Tables) -> Trace:
    return find(tables, "<1@example.org>")


def part(trace: Trace, heading: str) -> list[str]:
    """Lines of one part of the page."""
    lines = str(trace).splitlines()
    begin = lines.index(heading) + 1
    return lines[begin : lines.index("", begin) if "" in lines[begin:] else None]


def test_the_message_comes_first(trace):
    assert str(trace).splitlines()[:5] == [
        "Message <1@example.org>  trace 7f3c9a10d2b45e68",
        '  "Minutes"',
        "  alice@example.org → bob@example.net and 1 more",
        "  mixed in 4.81 s · 4 hops · 3,214 octets · 2023-11-14 22:13:20 UTC · not TLS on every hop",
        "  SPF pass",
    ]


def test_the_chain_shows_what_was_not_seen_as_dotted(trace):
    assert " ".join(" ".join(part(trace, "Handled by")).split()) == (
        "MUA laptop ── SMTP 587 TLS ─▶ MSA msa.example.org ── SMTP 25 ─▶ MX mx.example.net "
        "┄┄ LMTP ┄▶ MDA store.example.net ── IMAP 993 ─▶ MUA 198.51.100.7"
    )


def test_a_refused_try_that_was_made_good_is_no_way_of_its_own():
    first = synthetic.hop(1, kind="submit", client_name="laptop", server_name="msa")
    tried = synthetic.hop(
        2, parent_hop=1, outcome="deferred", code=451, client_name="msa", server_name="mx", rcpt_to=["bob@example.net"]
    )
    again = synthetic.hop(3, parent_hop=1, client_name="msa", server_name="mx", rcpt_to=["bob@example.net"])
    other = synthetic.hop(
        4, parent_hop=1, outcome="rejected", code=550, client_name="msa", server_name="mx2", rcpt_to=["eve@example.com"]
    )
    page = str(Trace(synthetic.message(), hops=[first, tried, again, other]))
    ways = page[page.index("Handled by") : page.index("Hops")].splitlines()[1:]
    assert [line for line in ways if line] == [
        "  host laptop ── SMTP ─▶ host msa ── SMTP ─▶ host mx",
        "  host laptop ── SMTP ─▶ host msa ── SMTP ─✗ 550 host mx2",
    ]


def test_a_server_that_refused_the_connection_is_told_before_the_one_that_took_the_message():
    ends = {"client_ip": "192.0.2.25", "server_ip": "203.0.113.8"}
    hop = synthetic.hop(2, client_name="msa", server_name="mx2", rcpt_to=["bob@example.net"], **ends)
    values = {"trace_id": hop.trace_id, "seq": 1, "ts": hop.ts_start, "hop": 2, "event": "connect", "basis": "observed"}
    refused = synthetic.row(Step, **values, actor_ip=hop.client_ip, peer_ip="203.0.113.9", detail="to port 25: refused")
    lines = str(Trace(synthetic.message(), hops=[hop], timeline=[refused])).splitlines()
    told = next(i for i, line in enumerate(lines) if "tried" in line)
    assert lines[told].endswith("tried msa → 203.0.113.9 to port 25: refused")
    assert told < next(i for i, line in enumerate(lines) if line.startswith("   2 "))


def test_what_a_client_knew_without_a_lookup_is_told_before_its_hop():
    hop = synthetic.hop(2, client_name="msa", server_name="mx", client_ip="192.0.2.25", rcpt_to=["bob@example.net"])
    values = {"trace_id": hop.trace_id, "seq": 1, "ts": hop.ts_start, "hop": 2, "event": "dns_cached", "basis": "observed"}
    said = "example.net. MX: no question of its own"
    lines = str(
        Trace(synthetic.message(), hops=[hop], timeline=[synthetic.row(Step, **values, actor_ip=hop.client_ip, detail=said)])
    )
    told = next(i for i, line in enumerate(lines.splitlines()) if line.endswith(f"dns msa asks nothing: {said}"))
    assert told < next(i for i, line in enumerate(lines.splitlines()) if line.startswith("   2 "))


def test_the_hops_tell_times_replies_lookups_and_the_mailbox(trace):
    lines = part(trace, "Hops")
    assert "   1      +0.200   212 ms  submit MUA laptop (192.0.2.10) → MSA msa.example.org (192.0.2.25):587" in lines
    assert "                           over     SMTP · STARTTLS TLSv1.3 · AUTH PLAIN alice" in lines
    assert "                           result   accepted 250 2.0.0 Ok: queued as 4Xyz12" in lines
    assert "                           to       bob@example.net accepted 250, carol@example.net rejected 550" in lines
    assert "          +0.430    31 ms  dns msa.example.org asks resolver 192.0.2.53: MX example.net. →" in lines
    assert "          +1.413   3.38 s  in the queue of mx.example.net" in lines
    assert any("(not seen: claimed by trace fields)" in line for line in lines)
    assert "       +3722.100           flagged +FLAGS (\\Seen) by 198.51.100.7" in lines


def test_where_the_time_went_is_one_sentence(trace):
    assert (
        part(trace, "Where the time went")[0] == "  3.38 s of 4.81 s (70%) waiting in the queue of mx.example.net before hop 3."
    )


def test_without_a_whole_phase_nothing_is_made_up():
    page = str(Trace(synthetic.message(), hops=[synthetic.hop(1, basis="claimed")]))
    assert "Nothing here tells: no phase of a hop was seen whole." in page


def test_time_on_hops_that_cannot_be_read_is_told_beside_the_rest():
    opaque = synthetic.hop(1, basis="matched", ts_start=synthetic.at(-4))
    read = synthetic.hop(2, ts_start=synthetic.at(0), transfer_s=0.02, accept_s=1.0, server_name="mx")
    lines = str(Trace(synthetic.message(elapsed_s=1.02), hops=[opaque, read])).splitlines()
    assert lines[3].startswith("  mixed in 1.02 s after the hops that cannot be read")
    told = " ".join(" ".join(lines[lines.index("Where the time went") + 1 :][:2]).split())
    assert "1.00 s of 1.02 s (98%) waiting for mx to answer for the message, hop 2." in told
    assert "Before that, 4.00 s passed since hop 1 began, in TLS that cannot be read." in told


def test_what_every_hop_says_of_the_sender_is_said_once():
    same = {"trace_id": synthetic.TRACE, "method": "spf", "result": "pass", "domain": "example.org", "reason": "ip4"}
    hops = [synthetic.hop(n) for n in range(1, 8)]
    rows = [synthetic.row(Authentication, **same, hop=n) for n in range(2, 8)]
    lines = str(Trace(synthetic.message(), hops=hops, authentication=rows)).splitlines()
    assert [line for line in lines if " SPF  " in line] == [
        "   2  SPF    pass example.org (the same at 5 more hops up to 7) · ip4"
    ]


def test_what_was_not_seen_is_named(trace):
    assert part(trace, "Not seen")[0].startswith("  hop 3, mx.example.net → store.example.net, is not in the capture")


def test_each_recipient_has_a_fate(trace):
    assert [line.split()[:2] for line in part(trace, "Recipients")] == [
        ["carol@example.net", "rejected"],
        ["bob@example.net", "delivered"],
    ]


def test_roles_and_joins_rest_on_something(trace):
    roles = part(trace, "Why these roles")
    assert "  MX mx.example.net        acted as mx (1)" in roles
    assert not any("stranger" in line for line in roles)
    assert part(trace, "Why one message") == ["  hop 2 = hop 1  body and Message-ID and queue id (score 1.00)"]


def test_what_was_odd_is_told_with_its_frame(trace):
    assert part(trace, "Odd") == ["  line_too_long  70000 octets (frame 25 of story.pcapng)"]


def test_the_dialogue_is_told_when_asked_for(trace):
    lines = [line.split() for line in str(trace.page(Look(), dialogue=True)).splitlines()]
    assert ["+0.100", "C:", "AUTH", "PLAIN", "***"] in lines
    assert not any("another's" in line for line in lines)


def test_wireshark_finds_the_whole_message(trace):
    assert wireshark(trace) == {"story.pcapng": "tcp.stream in {1, 2, 4} || frame.number in {43, 44}"}


def test_wireshark_takes_ranges():
    hops = [synthetic.hop(n, tcp_stream=stream) for n, stream in enumerate((3, 4, 5, 9, 11, 12), 1)]
    assert wireshark(Trace(synthetic.message(), hops=hops)) == {"story.pcapng": "tcp.stream in {3..5, 9, 11, 12}"}
    assert wireshark(Trace(synthetic.message(), hops=hops[:1])) == {"story.pcapng": "tcp.stream == 3"}


def test_a_wait_between_tries_is_told_as_such():
    first = synthetic.hop(1, kind="submit", server_name="msa", ts_start=synthetic.at(0), ts_end=synthetic.at(1))
    tried = synthetic.hop(
        2, outcome="deferred", client_name="msa", ts_start=synthetic.at(2), ts_end=synthetic.at(3), queue_s=1.0, rcpt_to=[]
    )
    again = synthetic.hop(
        3, parent_hop=1, client_name="msa", ts_start=synthetic.at(9), ts_end=synthetic.at(10), queue_s=8.0, rcpt_to=[]
    )
    trace = Trace(synthetic.message(elapsed_s=10.0), hops=[first, tried, again])
    assert "          +1.000   1.00 s  in the queue of msa" in part(trace, "Hops")
    assert "          +3.000   6.00 s  in the queue of msa until the next try" in part(trace, "Hops")
    assert (
        part(trace, "Where the time went")[0]
        == "  8.00 s of 10.0 s (80%) waiting in the queue of msa before hop 3, 1 refused try included."
    )


def test_ascii_is_ascii_and_narrow_is_narrow(trace):
    page = trace.page(Look(70, ascii=True))
    assert str(page).isascii()
    assert all(cells(line) <= 70 for line in plain(page.lines))


# choosing


def test_find_takes_a_message_id_with_or_without_brackets_or_a_trace_id(tables):
    for key in ("<1@example.org>", "1@example.org", synthetic.TRACE, synthetic.TRACE[:6]):
        assert find(tables, key).message.trace_id == synthetic.TRACE


def test_find_says_what_there_is_when_there_is_no_such_message(tables):
    with pytest.raises(MessageNotFound, match=r"no message answers to nobody@example.org; there are <1@example.org>"):
        find(tables, "nobody@example.org")
    with Tables() as nothing, pytest.raises(MessageNotFound, match="the capture shows no message"):
        find(nothing, "x")


def test_find_asks_back_when_two_messages_share_a_message_id(tables):
    tables.add("messages", synthetic.message(trace_id="another", ts_first=synthetic.at(9)))
    with pytest.raises(MessageNotFound, match=f"choose one: {synthetic.TRACE}, another"):
        find(tables, "<1@example.org>")


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ({}, 1),
        ({"rcpt": "BOB@example.net"}, 1),
        ({"rcpt": "<carol@example.net>"}, 1),
        ({"rcpt": "example.net"}, 0),
        ({"subject": "minu"}, 1),
        ({"subject": "hours"}, 0),
        ({"subject": "minutes", "rcpt": "eve@example.net"}, 0),
        ({"trace_id": "7F3C"}, 1),
    ],
)
def test_selectors(tables, selector, found):
    assert len(list(select(tables, **selector))) == found


def test_gather_takes_the_messages_rows_and_no_others(tables):
    tables.add("hops", synthetic.hop(1, trace_id="another"))
    trace = gather(tables, synthetic.message())
    assert [hop.hop for hop in trace.hops] == [1, 2, 3, 4]
    assert [(row.session_id, row.n) for row in trace.commands] == [("session1", 1), ("session1", 2), ("session1", 3)]
    assert "stranger.example" not in [name for host in trace.hosts for name in host.names]


# other shapes


def test_json_has_the_rows_of_every_table(trace):
    found = json.loads(trace.json())
    assert found["trace_id"] == synthetic.TRACE
    assert list(found) == ["trace_id", *TABLES]
    assert [row["hop"] for row in found["hops"]] == [1, 2, 3, 4]
    assert found["hops"][0]["ts_start"] == "2023-11-14T22:13:20.200000000Z"


def test_mermaid_draws_every_hop_and_lookup(trace):
    lines = trace.mermaid().splitlines()
    assert lines[0] == "sequenceDiagram"
    assert "    participant H1 as MUA laptop" in lines
    assert "    H1->>H2: 1. submit SMTP TLS 22:13:20" in lines
    assert "    H3-->>H4: 3. deliver LMTP 22:13:24" in lines
    assert any(line.endswith(": MX example.net.") for line in lines)


def test_mermaid_labels_cannot_leave_their_place():
    hop = synthetic.hop(1, client_name=BAD, server_name="end", reply_text=BAD, code=250)
    text = Trace(synthetic.message(), hops=[hop]).mermaid()
    for line in text.splitlines()[1:]:
        label = line.split(" as " if " as " in line else ": ", 1)[1]
        plain_label = re.sub(r"#\d+;", "", label)
        assert not set(plain_label) & set(";#<>%`\x1b\x07\u202e{}[]\"'")
        assert not re.search(r"\bend\b", plain_label, re.I)


def test_nothing_in_a_trace_acts():
    hop = synthetic.hop(1, client_name=BAD, server_name=BAD, reply_text=BAD, rcpt_to=[BAD], source=BAD, outcome="rejected")
    trace = Trace(synthetic.message(subject=BAD, message_id=BAD, mail_from=BAD), hops=[hop])
    for text in (str(trace), trace.mermaid(), trace.json(), trace._repr_html_()):
        assert not set(text) & set("\x1b\x07\u202e\r")
    assert "<b>" not in trace._repr_html_()


def test_the_author_s_login_is_no_part_of_the_message_s_time():
    first = synthetic.hop(1, parent_hop=None, greeting_s=5.0, tls_s=2.0, accept_s=0.2, queue_s=None)
    made = Trace(synthetic.message(elapsed_s=0.4), hops=[first])
    assert made.time_went.startswith("200 ms of 400 ms (50%) waiting for ")


def test_a_hop_alone_shows_its_own_dialogue_and_lanes(tables):
    trace = find(tables, "<1@example.org>")
    assert "C:" in str(trace.dialogue(1))
    alone, whole = trace.ladder(1).svg, trace.ladder().svg
    assert len(alone) < len(whole)
    assert "<svg" in trace.waterfall()._repr_html_()
    with pytest.raises(KeyError):
        trace.dialogue(99)


def test_pictures_can_be_saved(tables, tmp_path):
    shown = find(tables, "<1@example.org>").waterfall()
    shown.save(tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_text(encoding="utf-8").strip() == shown.svg


def test_only_public_names_are_completed(tables):
    names = dir(find(tables, "<1@example.org>"))
    assert {"hops", "waterfall", "ladder", "dialogue", "mermaid", "time_went"} <= set(names)
    assert not [name for name in names if name.startswith("_")]
