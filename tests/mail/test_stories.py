"""Stories: what a mail engineer would expect to read."""

import random

from builders import MSA, MUA, MX, NAMES, READER, RELAY, STORE, Post, World, mail, received, rows


def shape(told: object) -> list[tuple[object, ...]]:
    """Hops in a few words: number, parent, basis, roles, outcome."""
    return [
        (h.hop, h.parent_hop, h.basis, h.client_role, h.server_role, h.kind, h.outcome)
        for h in sorted(rows(told.hops), key=lambda h: (h.trace_id, h.hop))  # type: ignore[attr-defined]
    ]


def test_a_message_is_followed_from_the_pen_to_the_mailbox() -> None:
    world = World()
    post = Post(world)
    stored = post.whole()
    reader = world.session("pop3", READER, STORE, 110, auth_user="hanako@b.example", auth_ok=True)
    world.retrieve(reader, stored, number=1)
    world.mailbox(reader, "deleted", number=1)
    world.end(reader)
    told = world.tell()
    assert shape(told) == [
        (1, None, "observed", "mua", "msa", "submit", "accepted"),
        (2, 1, "observed", "msa", "mx", "relay", "accepted"),
        (3, 2, "observed", "mx", "mda", "deliver", "accepted"),
        (4, 3, "observed", "mua", "pop3", "retrieve", "accepted"),
    ]
    (message,) = rows(told.messages)
    assert (message.outcome, message.retrieved, message.hops, message.subject) == ("delivered", True, 4, "Number 1")
    (delivery,) = told.deliveries
    assert (delivery.recipient, delivery.outcome, delivery.last_hop) == ("hanako@b.example", "delivered", 3)
    events = [step.event for step in told.timeline]
    assert events[:6] == ["connect", "banner", "greeting", "mail", "rcpt", "data"]
    assert events[-2:] == ["retrieved", "deleted"]
    keys = {(link.hop, link.linked_hop): link.keys[0] for link in told.links}
    assert keys == {(2, 1): "body+message_id", (3, 2): "body+message_id", (4, 3): "body+message_id"}


def test_the_order_of_feeding_changes_nothing() -> None:
    world = World()
    post = Post(world)
    for number in range(1, 6):
        post.whole(number)
    first = world.tell()
    want = (rows(first.hops), rows(first.timeline), first.deliveries, rows(first.links), rows(first.hosts))
    random.Random(7).shuffle(world.events)
    again = world.tell()
    assert (rows(again.hops), rows(again.timeline), again.deliveries, rows(again.links), rows(again.hosts)) == want


def test_the_name_of_the_capture_changes_no_id() -> None:
    one, other = World("a.pcap"), World("b.pcap")
    for world in (one, other):
        Post(world).whole()
    assert [m.trace_id for m in one.tell().messages] == [m.trace_id for m in other.tell().messages]


def test_two_bodies_under_one_message_id_are_two_messages() -> None:
    world = World()
    post = Post(world)
    for number, body in ((1, "One.\n"), (2, "Two.\n")):
        message = post.submit(mail(7, body), ["hanako@b.example"], f"A{number}")
        post.relay(message, ["hanako@b.example"], f"B{number}")
    told = world.tell()
    assert [m.hops for m in told.messages] == [2, 2]
    assert "message_id_reused" in {a.name for a in told.anomalies}


def test_a_list_that_adds_a_footer_keeps_the_message_together() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), ["team@b.example"], "A1")
    message = post.relay(message, ["team@b.example"], "B1")
    footer = message + "-- \nTeam list\n"
    post.relay(received(footer, world.now, NAMES[MX], id="L1"), ["kenji@isp.example"], "D1", via=(MX, RELAY))
    told = world.tell()
    assert [(h.hop, h.parent_hop) for h in told.hops] == [(1, None), (2, 1), (3, 2)]
    link = next(x for x in told.links if x.hop == 3)
    assert "queue_id" in link.keys and link.conflicts == ["body"]


def test_a_gateway_that_renames_the_message_is_followed_by_its_trace_fields() -> None:
    world = World()
    post = Post(world)
    message = post.relay(post.submit(mail(1), ["hanako@b.example"]), ["hanako@b.example"])
    renamed = message.replace("<1@a.example>", "<new@b.example>").replace("Hello.", "Scanned. Hello.")
    post.deliver(renamed, ["hanako@b.example"])
    (message_row,) = rows(world.tell().messages)
    assert message_row.hops == 3


def test_greylisting_is_one_message_with_its_tries() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), ["hanako@b.example"])
    for _ in range(2):
        post.hand(MSA, MX, 25, "taro@a.example", ["hanako@b.example"], None, outcome="deferred", size=len(message))
        world.pass_time(60)
    post.deliver(post.relay(message, ["hanako@b.example"]), ["hanako@b.example"])
    told = world.tell()
    assert [(h.hop, h.parent_hop, h.outcome) for h in told.hops] == [
        (1, None, "accepted"),
        (2, 1, "deferred"),
        (3, 1, "deferred"),
        (4, 1, "accepted"),
        (5, 4, "accepted"),
    ]
    (delivery,) = told.deliveries
    assert delivery.outcome == "delivered"


def test_tries_are_found_by_their_stated_size_when_only_the_mx_is_watched() -> None:
    world = World()
    post = Post(world)
    first, second = (received(mail(n, "x" * n * 50), 0, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPA", id=f"A{n}") for n in (1, 2))
    for message in (first, second, first, second):
        post.hand(MSA, MX, 25, "taro@a.example", ["hanako@b.example"], None, outcome="deferred", size=len(message))
    post.relay(second, ["hanako@b.example"], "B2")
    post.relay(first, ["hanako@b.example"], "B1")
    told = world.tell()
    assert sorted(m.hops_observed for m in told.messages) == [3, 3]
    assert {h.client_role for h in told.hops if h.basis == "observed"} == {"msa"}
    assert {h.basis for h in told.hops} == {"observed", "claimed"}


def octets(message: str) -> int:
    """Its size as SIZE= states it."""
    return len(message) + message.count("\n")


def test_a_try_of_a_host_that_then_handed_the_message_to_another_is_found_when_only_the_mx_is_watched() -> None:
    world = World()
    post = Post(world)
    held = [received(mail(n, "x" * n * 50), 0, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPA", id=f"A{n}") for n in (1, 2)]
    for message in held:
        post.hand(MSA, MX, 25, "taro@a.example", ["hanako@b.example"], None, outcome="deferred", size=octets(message))
    world.pass_time(2)
    for n, message in reversed(list(enumerate(held, 1))):
        passed = received(message, world.now, NAMES[RELAY], NAMES[MSA], MSA, with_="ESMTP", id=f"R{n}")
        post.relay(passed, ["hanako@b.example"], f"B{n}", via=(RELAY, MX))
    told = world.tell()
    ids = {m.trace_id: m.message_id for m in told.messages}
    for n in (1, 2):
        hops = [h for h in told.hops if ids[h.trace_id] == f"<{n}@a.example>"]
        assert [(h.basis, h.client_ip, h.server_ip, h.outcome) for h in sorted(hops, key=lambda h: h.hop)] == [
            ("claimed", MUA, MSA, "accepted"),
            ("observed", MSA, MX, "deferred"),
            ("claimed", MSA, RELAY, "accepted"),
            ("observed", RELAY, MX, "accepted"),
        ]
        assert [h.parent_hop for h in sorted(hops, key=lambda h: h.hop)] == [None, 1, 1, 3]


def test_a_member_that_a_list_could_not_reach_belongs_to_what_the_others_got() -> None:
    world = World()
    post = Post(world)
    members = ("hanako@b.example", "nobody@b.example", "goro@b.example")
    for n, body in ((1, "Short.\n"), (2, "A longer one.\n")):
        copy = received(mail(n, body), world.now, NAMES[RELAY], id=f"L{n}")
        for m, member in enumerate(members):
            path = f"owner-team+{member.replace('@', '=')}@isp.example"
            got = copy if m != 1 else None
            outcome = "accepted" if got else "rejected"
            post.hand(
                RELAY, MX, 25, path, [member], got, outcome=outcome, size=octets(copy), queue_id=f"B{n}{m}" if got else None
            )
    told = world.tell()
    assert sorted((m.message_id, m.hops_observed) for m in told.messages) == [("<1@a.example>", 3), ("<2@a.example>", 3)]
    assert all("envelope+size" in link.keys for link in told.links)


def test_a_refused_stranger_stays_alone() -> None:
    world = World()
    post = Post(world)
    post.hand("192.0.2.66", MX, 25, "taro@a.example", ["hanako@b.example"], None, outcome="rejected")
    post.whole()
    told = world.tell()
    assert sorted(m.hops for m in told.messages) == [1, 3]


def test_a_fork_is_a_tree_and_every_recipient_has_a_fate() -> None:
    world = World()
    post = Post(world)
    to = ["hanako@b.example", "nobody@b.example", "kenji@isp.example"]
    message = post.submit(mail(1), to)
    post.relay(message, ["kenji@isp.example"], "R1", via=(MSA, RELAY))
    post.hand(MSA, MX, 25, "taro@a.example", to[:2], message, outcome="partial", queue_id="B1", refused={"nobody@b.example": 550})
    stored = received(message, world.now, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id="B1")
    post.deliver(stored, ["hanako@b.example"])
    told = world.tell()
    assert [(h.hop, h.parent_hop) for h in told.hops] == [(1, None), (2, 1), (3, 1), (4, 3)]
    assert {d.recipient: d.outcome for d in told.deliveries} == {
        "hanako@b.example": "delivered",
        "nobody@b.example": "bounced",
        "kenji@isp.example": "relayed",
    }
    assert [m.outcome for m in told.messages] == ["mixed"]


REPORT = """Received: by smtp.a.example (Postfix) id D1; Mon, 23 Nov 2026 14:00:01 +0000
From: MAILER-DAEMON@smtp.a.example
To: taro@a.example
Subject: Undelivered
Auto-Submitted: auto-replied
Content-Type: multipart/report; report-type=delivery-status; boundary="b"
Message-ID: <dsn@smtp.a.example>

This is MIME.

--b
Content-Type: text/plain

Action: this is only prose
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; smtp.a.example

Final-Recipient: rfc822; nobody@b.example
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 no such user

--b
Content-Type: text/rfc822-headers

Message-ID: <1@a.example>
Subject: Number 1
--b--
"""


def test_a_delivery_report_belongs_to_its_message_and_settles_the_fate() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), ["nobody@b.example"])
    post.relay(message, ["nobody@b.example"])
    post.hand(MX, MSA, 25, "", ["taro@a.example"], REPORT, queue_id="E1")
    told = world.tell()
    about = {m.message_id: m for m in told.messages}
    report, original = about["<dsn@smtp.a.example>"], about["<1@a.example>"]
    assert (report.parent_trace_id, report.relation) == (original.trace_id, "dsn")
    fate = next(d for d in told.deliveries if d.trace_id == original.trace_id)
    assert (fate.outcome, fate.enhanced_code) == ("bounced", "5.1.1")


def test_an_automatic_reply_belongs_to_what_it_answers() -> None:
    world = World()
    post = Post(world)
    post.whole()
    reply = mail(2, Auto_Submitted="auto-replied (vacation)", In_Reply_To="<1@a.example>", Message_ID="<away@b.example>")
    post.hand(STORE, MX, 25, "", ["taro@a.example"], reply, queue_id="V1")
    told = world.tell()
    about = {m.message_id: m for m in told.messages}
    assert about["<away@b.example>"].relation == "autoreply"
    assert about["<away@b.example>"].parent_trace_id == about["<1@a.example>"].trace_id
    assert [h.client_role for h in told.hops if h.message_id == "<away@b.example>"] == ["mda"]


def test_hops_that_only_trace_fields_show_are_claimed() -> None:
    world = World()
    message = received(mail(1), 1, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPA", id="A1", for_="hanako@b.example")
    message = received(message, 2, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id="B1", for_="hanako@b.example")
    world.pass_time(3)
    Post(world).deliver(message, ["hanako@b.example"])
    told = world.tell()
    assert [(h.hop, h.parent_hop, h.basis, h.client_ip, h.server_ip, h.queue_id) for h in told.hops] == [
        (1, None, "claimed", MUA, MSA, "A1"),
        (2, 1, "claimed", MSA, MX, "B1"),
        (3, 2, "observed", MX, STORE, "C1"),
    ]
    assert [h.client_role for h in told.hops] == ["mua", "msa", "mx"]


def test_opaque_sessions_are_matched_to_the_trace_fields_they_fit() -> None:
    world = World()
    for client, server, port in ((MUA, MSA, 587), (MSA, MX, 25)):
        session = world.session("smtp", client, server, port, tls="starttls", visibility="opaque", client_name=NAMES[client])
        world.pass_time(0.1)
        world.end(session)
        world.pass_time(1)
    message = received(mail(1), 0.05, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPSA", id="A1")
    message = received(message, 1.15, NAMES[MX], NAMES[MSA], MSA, with_="ESMTPS", id="B1")
    Post(world).deliver(message, ["hanako@b.example"])
    told = world.tell()
    assert [(h.basis, h.tls, h.client_role, h.server_role, h.parent_hop) for h in told.hops] == [
        ("matched", "starttls", "mua", "msa", None),
        ("matched", "starttls", "msa", "mx", 1),
        ("observed", "none", "mx", "mda", 2),
    ]


def test_lookups_are_bound_to_the_hop_they_served() -> None:
    world = World()
    post = Post(world)
    by_mua = world.lookup(MUA, "smtp.a.example", "A", f"A {MSA}")
    message = post.submit(mail(1), ["hanako@b.example"])
    exchanger = world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.", "MX 20 mx2.b.example.")
    address = world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    second = world.lookup(MSA, "mx2.b.example", "A", "A 10.0.3.26")
    upstream = world.lookup(
        "10.0.0.53", "b.example", "MX", "MX 10 mail.b.example.", server="10.0.0.54", rd=False, ra=False, aa=True
    )
    info = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
    pointer = world.lookup(MX, "25.1.0.10.in-addr.arpa", "PTR", "PTR smtp.a.example.")
    confirmed = world.lookup(MX, "smtp.a.example", "A", f"A {MSA}")
    world.carry(info, "taro@a.example", ["hanako@b.example"], message, queue_id="B1")
    policy = world.lookup(MX, "a.example", "TXT", 'TXT "v=spf1 mx -all"')
    world.end(info)
    told = world.tell()
    got = {row.qname + (row.qtype or ""): told.dns(row).hop for row in (by_mua, exchanger, address, second, pointer, policy)}
    assert got == {
        "smtp.a.example.A": 1,
        "b.example.MX": 2,
        "mail.b.example.A": 2,
        "mx2.b.example.A": 2,
        "25.1.0.10.in-addr.arpa.PTR": 2,
        "a.example.TXT": 2,
    }
    assert told.dns(confirmed).hop == 2
    assert told.dns(upstream).trace_id is None
    assert told.dns(upstream).server_role == "authoritative"
    assert (told.dns(exchanger).client_role, told.dns(exchanger).server_role) == ("msa", "resolver")


def test_a_failed_exchanger_is_part_of_the_story() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), ["hanako@b.example"])
    world.lookup(MSA, "b.example", "MX", "MX 10 dead.b.example.", "MX 20 mail.b.example.")
    world.lookup(MSA, "dead.b.example", "A", "A 10.0.3.99")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    world.attempt(MSA, "10.0.3.99", 25)
    post.relay(message, ["hanako@b.example"])
    told = world.tell()
    lost = [s for s in told.timeline if s.event == "connect" and s.peer_ip == "10.0.3.99"]
    assert [(s.hop, s.actor_ip) for s in lost] == [(2, MSA)]
    (delivery,) = told.deliveries
    assert delivery.attempts == 2


def test_one_mailbox_two_devices() -> None:
    world = World()
    post = Post(world)
    stored = post.whole()
    box = {"mailbox": "INBOX", "uidvalidity": 9, "uid": 4}
    phone = world.session("imap", "10.0.3.72", STORE, 143, auth_user="hanako@b.example")
    world.mailbox(phone, "notified", mailbox="INBOX", number=1)
    desk = world.session("imap", READER, STORE, 143, auth_user="hanako@b.example")
    world.retrieve(desk, stored, **box)
    world.mailbox(desk, "moved", **box, new_mailbox="Archive", new_uidvalidity=8, new_uid=1)
    world.mailbox(phone, "flagged", mailbox="Archive", uidvalidity=8, uid=1, detail="+FLAGS (\\Seen)")
    told = world.tell()
    got = [(s.event, s.actor_ip, s.peer_ip) for s in told.timeline if s.event in ("notified", "retrieved", "moved", "flagged")]
    assert got == [
        ("notified", STORE, "10.0.3.72"),
        ("retrieved", READER, STORE),
        ("moved", READER, STORE),
        ("flagged", "10.0.3.72", STORE),
    ]


def test_two_taps_see_one_hop() -> None:
    near, far = World("near.pcap"), World("far.pcap")
    far.pass_time(3.25)
    for world in (near, far):
        Post(world).submit(mail(1), ["hanako@b.example"])
    near.events += far.events
    told = near.tell()
    assert len(rows(told.hops)) == 1
    assert {a.name for a in told.anomalies} == {"hop_seen_twice", "clock_offset"}


def test_ten_thousand_messages_under_one_id_take_their_time_but_no_more() -> None:
    world = World()
    post = Post(world)
    for number in range(2_000):
        post.relay(mail(7, f"Body {number}.\n"), ["hanako@b.example"], f"B{number}")
    for _ in range(500):
        info = world.session("smtp", MSA, MX, 25)
        world.carry(info, "taro@a.example", ["hanako@b.example"], mail(7), complete=False, outcome="aborted")
    told = world.tell()
    assert len(rows(told.messages)) == 2_000
    assert sum(m.hops_observed for m in told.messages) == 2_500
