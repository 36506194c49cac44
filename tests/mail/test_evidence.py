"""Roles, hosts, fates, phases: what each rests on."""

from builders import MSA, MUA, MX, NAMES, READER, RELAY, SECOND, STORE, Post, World, bounce, content, mail, parts, received, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.mail import reports
from analyzer.mail.story import Story
from analyzer.mail.timeline import words
from analyzer.protocols.base import MessageCarried

H = ["hanako@b.example"]


def roles_of(told: object) -> list[tuple[str | None, str | None]]:
    return [(h.client_role, h.server_role) for h in told.hops if h.basis == "observed"]  # type: ignore[attr-defined]


def exchangers(world: World, client: str) -> None:
    """The client asks for b.example's MX hosts, a backup among them."""
    world.lookup(client, "b.example", "MX", "MX 10 mail.b.example.", "MX 20 mx2.b.example.")
    world.lookup(client, "mail.b.example", "A", f"A {MX}")
    world.lookup(client, "mx2.b.example", "A", "A 10.0.3.26")


def test_a_smart_host_is_no_mx() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), H)
    world.lookup(MSA, "relay.isp.example", "A", f"A {RELAY}")
    message = post.relay(message, H, "R1", via=(MSA, RELAY))
    exchangers(world, RELAY)
    post.deliver(post.relay(message, H, "B1", via=(RELAY, MX)), H)
    assert roles_of(world.tell()) == [("mua", "msa"), ("msa", "mta"), ("mta", "mx"), ("mx", "mda")]


def test_a_smart_host_seen_from_its_customer_alone() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), H)
    world.lookup(MSA, "relay.isp.example", "A", f"A {RELAY}")
    post.relay(message, H, "R1", via=(MSA, RELAY))
    assert roles_of(world.tell()) == [("mua", "msa"), ("msa", "mta")]


def test_a_backup_mx_is_an_mx() -> None:
    world = World()
    post = Post(world)
    NAMES["10.0.3.26"] = "mx2.b.example"
    message = post.submit(mail(1), H)
    exchangers(world, MSA)
    world.attempt(MSA, MX, 25)
    message = post.relay(message, H, "K1", via=(MSA, "10.0.3.26"))
    world.pass_time(600)
    exchangers(world, "10.0.3.26")
    post.deliver(post.relay(message, H, "B1", via=("10.0.3.26", MX)), H)
    told = world.tell()
    assert roles_of(told) == [("mua", "msa"), ("msa", "mx"), ("mx", "mx"), ("mx", "mda")]
    assert [d.outcome for d in told.deliveries] == ["delivered"]


def test_a_program_that_talks_to_the_mx_itself_is_still_a_mua() -> None:
    world = World()
    post = Post(world)
    post.hand(MUA, MX, 25, "taro@a.example", ["kenji@isp.example"], None, outcome="rejected", code=554)
    post.hand(MUA, MX, 25, "taro@a.example", H, mail(1), queue_id="B1")
    assert roles_of(world.tell()) == [("mua", "mx"), ("mua", "mx")]


def test_every_role_has_its_evidence() -> None:
    world = World()
    Post(world).whole()
    world.lookup(MX, "store.b.example", "A", f"A {STORE}")
    for host in world.tell().hosts:
        assert {e["role"] for e in host.evidence} == set(host.roles)
        assert all(e["count"] > 0 and e["rule"] for e in host.evidence)


def test_two_addresses_under_one_name_are_one_host() -> None:
    world = World()
    world.lookup(MSA, "smtp.a.example", "AAAA", "AAAA fd00::25")
    world.lookup(MSA, "smtp.a.example", "A", f"A {MSA}")
    post = Post(world)
    NAMES["fd00::25"] = NAMES[MSA]
    message = post.submit(mail(1), H)
    post.relay(message, H, via=("fd00::25", MX))
    told = world.tell()
    assert [(h.hop, h.parent_hop) for h in told.hops] == [(1, None), (2, 1)]
    assert [MSA, "fd00::25"] in [host.ips for host in told.hosts]


def test_a_stranger_who_greets_with_our_name_is_not_us() -> None:
    world = World()
    Post(world).whole()
    world.end(world.session("smtp", "192.0.2.66", MX, 25, client_name=NAMES[MX]))
    assert ["192.0.2.66"] in [host.ips for host in world.tell().hosts]


def test_a_domain_that_keeps_its_own_mail_has_delivered_it() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), H)
    exchangers(world, MSA)
    post.relay(message, H)
    assert [d.outcome for d in world.tell().deliveries] == ["relayed"]
    world.lookup(MX, "25.1.0.10.in-addr.arpa", "PTR", "PTR smtp.a.example.")  # the MX's own traffic is in the capture
    assert [d.outcome for d in world.tell().deliveries] == ["delivered"]


def test_a_message_that_the_next_server_cannot_take_bounces() -> None:
    world = World()
    post = Post(world)
    message = post.relay(post.submit(mail(1), H, "A1"), H)
    post.hand(MX, STORE, 24, "x@a.example", ["y@b.example"], mail(2), queue_id="C0")
    info = world.session("lmtp", MX, STORE, 24, capabilities=["SIZE 100", "PIPELINING"])
    world.end(info)
    told = world.tell()
    fate = next(d for d in told.deliveries if d.recipient == H[0])
    assert (fate.outcome, len(message) > 100) == ("bounced", True)


def test_a_mua_that_is_put_off_will_not_come_back() -> None:
    world = World()
    world.events.clear()
    Post(world).hand(MUA, MSA, 587, "taro@a.example", H, None, outcome="deferred")
    told = world.tell()
    assert [h.outcome for h in told.hops] == ["deferred"]
    assert [d.outcome for d in told.deliveries] == ["rejected"]


def test_phases_add_up_to_the_time_between_hops() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), H)
    world.pass_time(0.5)
    exchangers(world, MSA)
    post.relay(message, H)
    first, second = rows(world.tell().hops)
    before = sum(
        p or 0.0 for p in (second.queue_s, second.dns_s, second.connect_s, second.greeting_s, second.tls_s, second.auth_s)
    )
    assert abs(before - (second.ts_start - first.ts_end) / SECOND) < 1e-6
    assert second.dns_s is not None and 0.001 < second.dns_s < 0.002
    assert (second.envelope_s, second.transfer_s, second.accept_s) == (0.003, 0.003, 0.004)


def test_phases_of_a_message_on_an_open_connection_tell_its_lookups_from_the_queue() -> None:
    world = World()
    post = Post(world)
    waiting = [post.submit(mail(n), H, f"A{n}") for n in (1, 2)]
    info = None
    for n, message in enumerate(waiting, 1):
        exchangers(world, MSA)
        info = info or world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
        event = world.carry(info, "taro@a.example", H, message, queue_id=f"B{n}")
        assert event.ts_start is not None
        event.ts_rcpt_done = event.ts_start + 1_000_000  # the client takes two milliseconds to begin with the message
    assert info is not None
    world.end(info)
    hops = {(h.message_id, h.hop): h for h in world.tell().hops}
    before, after = hops["<2@a.example>", 1], hops["<2@a.example>", 2]
    assert after.dns_s is not None and 0.001 < after.dns_s < 0.002
    assert (after.envelope_s, after.transfer_s, after.accept_s) == (0.001, 0.005, 0.004)
    spent = (after.queue_s, after.dns_s, after.envelope_s, after.transfer_s, after.accept_s)
    assert abs(sum(p or 0.0 for p in spent) - (after.ts_end - before.ts_end) / SECOND) < 1e-6


def test_pop3_messages_are_known_by_their_unique_ids_in_a_later_session() -> None:
    world = World()
    stored = Post(world).whole()
    facts = {"auth_user": "hanako@b.example", "auth_ok": True}
    first = world.session("pop3", READER, STORE, 110, **facts)
    world.retrieve(first, stored, number=1, uidl="u77")
    world.end(first)
    second = world.session("pop3", "10.0.3.72", STORE, 110, **facts)
    world.mailbox(second, "deleted", number=4, uidl="u77")
    told = world.tell()
    assert [(s.event, s.actor_ip) for s in told.timeline if s.event == "deleted"] == [("deleted", "10.0.3.72")]


def test_a_filed_copy_is_the_same_message() -> None:
    world = World()
    post = Post(world)
    draft = world.session("imap", MUA, "10.0.1.143", 143, auth_user="taro")
    world.carry(draft, None, [], mail(1), kind="append", mailbox="Sent", uid=5, uidvalidity=1)
    post.submit(mail(1), H)
    told = world.tell()
    assert [(h.kind, h.parent_hop) for h in told.hops] == [("append", None), ("submit", None)]
    assert len({h.trace_id for h in told.hops}) == 1
    assert [s.event for s in told.timeline if s.event == "appended"] == ["appended"]


NOTICE = """From: hanako@b.example
Content-Type: multipart/report; report-type=disposition-notification; boundary=x
Message-ID: <mdn@b.example>

--x
Content-Type: message/disposition-notification

Original-Message-ID: <1@a.example>
Disposition: manual-action/MDN-sent-manually; displayed
--x--
"""


def test_a_read_receipt_is_told_as_one() -> None:
    world = World()
    post = Post(world)
    post.whole()
    post.hand(READER, MSA, 587, "", ["taro@a.example"], NOTICE)
    about = {m.message_id: m for m in world.tell().messages}
    assert about["<mdn@b.example>"].relation == "mdn"
    assert about["<mdn@b.example>"].parent_trace_id == about["<1@a.example>"].trace_id


def test_a_read_receipt_that_goes_straight_to_the_exchanger_is_sent_by_a_reader() -> None:
    world = World()
    post = Post(world)
    post.whole()
    post.hand("10.0.3.77", MSA, 25, "", ["taro@a.example"], NOTICE)
    (row,) = [h for h in world.tell().hops if h.message_id == "<mdn@b.example>"]
    assert (row.client_role, row.kind) == ("mua", "submit")


def test_who_waits_for_each_reply_and_is_refused_is_no_relay() -> None:
    world = World()
    for client, together in (("10.0.9.9", False), ("10.0.9.10", True)):
        info = world.session("smtp", client, MX, 25, capabilities=["PIPELINING", "SIZE 1000"])
        event = world.carry(info, "kenji@c.example", H, None, outcome="rejected")
        if together:  # one frame holds MAIL and RCPT
            event.first_frame = event.recipients[0].frame
        world.end(info)
    told = world.tell()
    assert [(h.client_ip, h.client_role) for h in told.hops] == [("10.0.9.9", "mua"), ("10.0.9.10", "mta")]


def test_who_reads_mail_and_is_refused_is_no_relay() -> None:
    world = World()
    post = Post(world)
    stored = post.whole()
    reader = world.session("pop3", "10.0.3.77", STORE, 110, auth_user="hanako@b.example", auth_ok=True)
    world.retrieve(reader, stored, number=1)
    world.end(reader)
    info = world.session("smtp", "10.0.3.77", MX, 25)
    world.carry(info, "hanako@b.example", ["taro@a.example"], None, outcome="rejected")
    world.end(info)
    assert [h.client_role for h in world.tell().hops if h.outcome == "rejected"] == ["mua"]


def test_authentication_results_are_read_off_the_header() -> None:
    world = World()
    post = Post(world)
    message = post.relay(post.submit(mail(1), H), H)
    said = (
        "Authentication-Results: mail.b.example; spf=pass smtp.mailfrom=a.example;\n\tdkim=fail header.d=a.example; dmarc=none\n"
    )
    post.deliver(said + message, H)
    (row,) = rows(world.tell().messages)
    assert (row.spf, row.dkim, row.dmarc) == ("pass", "fail", "none")


def test_headers_are_shown_as_their_author_meant_them() -> None:
    assert words(b"=?utf-8?B?44GT44KT?= =?utf-8?Q?_=E5=85=AB?=") == "こん 八"
    assert words(b"=?iso-8859-1?Q?Gr=FC=DFe?= from  here") == "Grüße from here"
    assert words(b"=?nonsense?B?xx?= stays") == "=?nonsense?B?xx?= stays"
    assert words(b"raw \xff octet") == "raw \\xff octet"
    assert words(None) is None


@given(st.binary(max_size=400), st.sampled_from(["multipart/report; boundary=b", "message/delivery-status", "multipart/report"]))
def test_no_report_raises(body: bytes, kind: str) -> None:
    reports.parse(b"--b\nContent-Type: message/delivery-status\n\n" + body, kind)
    reports.parse(body, kind)


def test_bounds_are_told_when_they_are_hit() -> None:
    world = World()
    stored = Post(world).whole()
    reader = world.session("imap", READER, STORE, 143, auth_user="hanako@b.example")
    world.retrieve(reader, stored, mailbox="INBOX", uid=1, uidvalidity=1)
    for _ in range(3):
        world.mailbox(reader, "flagged", mailbox="INBOX", uid=1, uidvalidity=1)
        world.lookup(MX, "x.example", "A")
        world.attempt(MSA, MX, 25)
    told = world.tell(Limits(lookups=1, mailbox_events=1, idle_connections=1))
    assert {a.name for a in told.anomalies} == {"lookups_dropped", "mailbox_events_dropped", "attempts_dropped"}


def test_of_thousands_of_lookups_those_up_to_the_limit_are_kept() -> None:
    world = World()
    for n in range(2500):
        world.lookup(MX, f"x{n}.example", "A")
    told = world.tell(Limits(lookups=2100))
    assert [(a.name, a.detail) for a in told.anomalies] == [("lookups_dropped", "400 beyond the limit")]
    assert len(told.lookups) == 2100
    assert [told.lookups.qname(row).rstrip(".") for row in (0, 1024, 2099)] == ["x0.example", "x1024.example", "x2099.example"]


HOSTS = [MUA, MSA, MX, STORE, RELAY]
moves = st.lists(
    st.tuples(
        st.sampled_from(["submit", "relay", "deliver", "retrieve", "refuse", "opaque", "attempt", "lookup", "flag"]),
        st.integers(0, 3),
        st.sampled_from(HOSTS),
        st.sampled_from(HOSTS),
    ),
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(moves, st.randoms(use_true_random=False))
def test_whatever_is_seen_every_sighting_is_in_one_trace_and_the_order_is_no_matter(
    plan: list[tuple[str, int, str, str]], random: object
) -> None:
    world = World()
    post = Post(world)
    carried = {n: mail(n // 2, f"Body {n}.\n" if n % 2 else "Hello.\n") for n in range(4)}
    for what, n, client, server in plan:
        if what in ("submit", "relay", "deliver"):
            port = {"submit": 587, "relay": 25, "deliver": 24}[what]
            at = world.now
            post.hand(client, server, port, "taro@a.example", H, carried[n], queue_id=f"Q{n}")
            carried[n] = received(carried[n], at, NAMES[server], NAMES[client], client, with_="ESMTP", id=f"Q{n}")
        elif what == "retrieve":
            info = world.session("imap", client, server, 143, auth_user="hanako")
            world.retrieve(info, carried[n], mailbox="INBOX", uid=n, uidvalidity=1, number=n)
        elif what == "refuse":
            post.hand(client, server, 25, "taro@a.example", H, None, outcome="deferred", size=n * 100)
        elif what == "opaque":
            world.end(world.session("smtp", client, server, 25, visibility="opaque", tls="starttls"))
        elif what == "attempt":
            world.attempt(client, server, 25)
        elif what == "lookup":
            world.lookup(client, "b.example", "MX", f"MX {n} {NAMES[server]}.")
        else:
            info = world.session("imap", client, server, 143, auth_user="hanako")
            world.mailbox(info, "flagged", mailbox="INBOX", uid=n, uidvalidity=1)
    told = world.tell()
    hops = rows(told.hops)
    seen = sum(isinstance(e, MessageCarried) for e in world.events)
    assert sum(h.basis == "observed" for h in hops) == seen == sum(m.hops_observed for m in told.messages)
    by_trace: dict[str, list[int]] = {}
    for h in hops:
        by_trace.setdefault(h.trace_id, []).append(h.hop)
        assert h.parent_hop is None or h.parent_hop != h.hop
    assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in by_trace.values())
    want = (hops, rows(told.timeline), rows(told.messages), told.deliveries, rows(told.hosts))
    assert in_parts(world) == [sorted(map(repr, table)) for table in want]
    random.shuffle(world.events)  # type: ignore[attr-defined]
    again = world.tell()
    assert (rows(again.hops), rows(again.timeline), rows(again.messages), again.deliveries, rows(again.hosts)) == want
    assert in_parts(world) == [sorted(map(repr, table)) for table in want]


def in_parts(world: World) -> list[list[str]]:
    """The story told message by message out of a temporary file: rows of every table, in no order."""
    told = world.tell(Limits(story_sightings=1, story_part=1))
    found: list[list[str]] = [[], [], [], []]
    for part in parts(told):
        for table, some in zip(found, (part.hops, part.timeline, part.messages, part.deliveries), strict=True):
            table.extend(map(repr, some))
    return [sorted(table) for table in (*found, map(repr, told.hosts))]


def test_times_that_were_not_seen_do_no_harm() -> None:
    world = World()
    info = world.session("smtp", MSA, MX, 25)
    blank = MessageCarried(info, "transaction", 1, None, content=content(mail(1), complete=False))
    story = Story(Limits())
    story.feed(blank)
    story.feed("something else")
    told = story.finish()
    assert len(rows(told.hops)) == len(rows(told.messages)) == 1
    assert rows(told.timeline)


FORWARDER = "10.0.4.25"
NAMES[FORWARDER] = "mail.c.example"


def test_what_a_forwarder_is_refused_belongs_to_the_original_recipient_that_it_names() -> None:
    for limits in (Limits(), Limits(story_sightings=1, story_part=1)):
        world = World()
        post = Post(world)
        for n, alias in ((1, "lost@c.example"), (2, "other@c.example")):
            post.relay(post.submit(mail(n), [alias], f"A{n}"), [alias], f"C{n}", via=(MSA, FORWARDER))
        for alias in ("lost@c.example", "other@c.example"):
            info = world.session("smtp", FORWARDER, MX, 25)
            event = world.carry(info, "taro@a.example", ["nouser@b.example"], None, outcome="rejected", size=900)
            event.recipients[0].parameters = f"ORCPT=rfc822;{alias} NOTIFY=FAILURE"
            world.end(info)
        told = world.tell(limits)
        every = [(list(part.hops), part.deliveries) for part in parts(told)]
        hops = [h for hops, _ in every for h in hops if h.outcome == "rejected"]
        assert sorted((h.hop, h.parent_hop) for h in hops) == [(3, 2), (3, 2)]
        fates = [d for _, deliveries in every for d in deliveries]
        assert sorted((d.recipient, d.outcome) for d in fates) == [("lost@c.example", "bounced"), ("other@c.example", "bounced")]


def test_an_envelope_id_that_one_message_has_names_it() -> None:
    for ids, messages in ((("e1", "e2"), 2), (("e1", "e1"), 3)):
        world = World()
        post = Post(world)
        for n, envelope_id in enumerate(ids, 1):
            post.hand(MSA, MX, 25, "taro@a.example", H, mail(n), queue_id=f"B{n}", mail_parameters=f"ENVID={envelope_id}")
        post.hand(FORWARDER, MX, 25, "taro@a.example", ["nouser@b.example"], None, outcome="rejected", mail_parameters="ENVID=e1")
        told = world.tell()
        assert len(rows(told.messages)) == messages
        if messages == 2:
            assert [link.keys for link in rows(told.links)] == [["envelope_id"]]


def test_a_recipient_that_only_a_report_names_is_told_where_the_first_hop_cannot_be_read() -> None:
    for opaque in (True, False):
        world = World()
        post = Post(world)
        at = world.now
        message = mail(1)
        if not opaque:
            post.hand(MUA, MSA, 587, "taro@a.example", H, message, queue_id="A1")
        message = received(message, at, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPSA", id="A1")
        post.deliver(post.relay(message, H), H)
        post.hand(MSA, STORE, 24, "", ["taro@a.example"], bounce("nouser@b.example"))
        fates = {d.recipient: d.outcome for d in world.tell().deliveries if "b.example" in d.recipient}
        assert fates == ({H[0]: "delivered", "nouser@b.example": "bounced"} if opaque else {H[0]: "delivered"})


def test_of_two_messages_that_wait_a_try_is_of_the_one_that_grew_as_the_other_did() -> None:
    world = World()
    post = Post(world)
    long, short = mail(1, "Hello, hello.\n"), mail(2)
    for n, message in ((1, long), (2, short)):
        post.hand(MUA, MSA, 587, "taro@a.example", H, message, queue_id=f"A{n}")
    for message in (long, short):
        post.hand(MSA, MX, 25, "taro@a.example", H, None, outcome="deferred", size=len(message.replace("\n", "\r\n")) + 190)
    told = world.tell()
    assert sorted((h.message_id or "", h.hop, h.parent_hop) for h in told.hops if h.outcome == "deferred") == [("", 2, 1)] * 2
    sizes = {h.trace_id: h.size for h in told.hops if h.size}
    assert {h.mail_parameters: sizes[h.trace_id] for h in told.hops if h.outcome == "deferred"} == {
        f"SIZE={size + 190}": size for size in sizes.values()
    }


def test_the_reply_for_a_recipient_is_not_the_refusal_of_another() -> None:
    world = World()
    info = world.session("smtp", MSA, MX, 25)
    to = ["nobody@b.example", *H]
    world.carry(info, "taro@a.example", to, mail(1), queue_id="B1", outcome="partial", code=550, refused={to[0]: 550})
    world.end(info)
    assert {d.recipient: d.code for d in world.tell().deliveries} == {to[0]: 550, H[0]: 250}


def test_a_copy_that_a_server_adds_is_a_recipient_of_its_own() -> None:
    for origin, fates in (
        ("archive@a.example", {H[0]: "relayed", "archive@a.example": "delivered"}),
        (H[0], {H[0]: "relayed"}),
    ):
        world = World()
        post = Post(world)
        sent = post.submit(mail(1), H)
        post.relay(sent, H)
        info = world.session("lmtp", MSA, STORE, 24)
        event = world.carry(info, "taro@a.example", ["archive@a.example"], sent, queue_id="S1")
        event.recipients[0].parameters = f"ORCPT=rfc822;{origin}"
        world.end(info)
        assert {d.recipient: d.outcome for d in world.tell().deliveries} == fates


def test_a_hop_that_lost_its_message_joins_what_its_server_wrote_and_nothing_else() -> None:
    world = World()
    post = Post(world)
    post.submit(mail(1), H, "A1")  # the other message that its client held for the same recipient
    sent = received(mail(2), world.now, NAMES[MSA], NAMES[MUA], MUA, with_="ESMTPA", id="A2")
    at = world.now
    info = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
    event = world.carry(info, "taro@a.example", H, None, queue_id="B2", size=len(sent))
    world.end(info)
    post.deliver(received(sent, at, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id="B2"), H)
    told = world.tell()
    ids = {h.message_id: h.trace_id for h in told.hops if h.message_id}
    assert event.content is None and ids["<1@a.example>"] != ids["<2@a.example>"]
    assert [h.trace_id for h in told.hops if h.queue_id == "B2" and h.basis == "observed"] == [ids["<2@a.example>"]]


def test_of_two_messages_alike_each_is_refused_once() -> None:
    for outcome, rounds in (("rejected", 1), ("deferred", 2)):
        world = World()
        post = Post(world)
        waiting = [mail(1), mail(2)]
        for n, message in enumerate(waiting, 1):
            post.hand(MUA, MSA, 587, "taro@a.example", H, message, queue_id=f"A{n}")
        for _ in range(rounds):
            for message in waiting:
                post.hand(MSA, MX, 25, "taro@a.example", H, None, outcome=outcome, size=len(message.replace("\n", "\r\n")) + 190)
            world.pass_time(300)
        told = world.tell()
        tries = [h.trace_id for h in told.hops if h.outcome == outcome]
        first, second = (next(h.trace_id for h in told.hops if h.message_id == f"<{n}@a.example>") for n in (1, 2))
        assert tries == [first] * rounds + [second] * rounds
