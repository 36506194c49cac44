"""Failed connections and lookups: whose they are when several messages wait at one server."""

from collections.abc import Iterable

from builders import MSA, MUA, MX, NAMES, RELAY, STORE, Post, World, mail, parts, rows

from analyzer.limits import Limits
from analyzer.mail.story import Told
from analyzer.protocols.dns import Transaction

DEAD, BACKUP = "10.0.3.99", "10.0.3.26"


def served(told: Told, lookups: Iterable[Transaction]) -> list[tuple[str | None, int | None]]:
    """Message-ID and hop that each was for."""
    names = {m.trace_id: m.message_id for m in told.messages}
    return [(names.get(row.trace_id or ""), row.hop) for row in map(told.dns, lookups)]


def ask(world: World) -> list[Transaction]:
    """The MSA looks for the exchangers of b.example: a dead one first, a backup second."""
    return [
        world.lookup(MSA, "b.example", "MX", "MX 10 dead.b.example.", "MX 20 mx2.b.example."),
        world.lookup(MSA, "dead.b.example", "A", f"A {DEAD}"),
        world.lookup(MSA, "mx2.b.example", "A", f"A {BACKUP}"),
    ]


def test_two_messages_wait_and_each_lookup_is_for_its_own() -> None:
    world = World()
    post = Post(world)
    first = post.submit(mail(1), ["hanako@b.example"], "A1")
    second = post.submit(mail(2), ["goro@b.example"], "A2")
    asked: dict[str, list[Transaction]] = {}
    for name, message, to in (("<1@a.example>", first, "hanako@b.example"), ("<2@a.example>", second, "goro@b.example")):
        asked[name] = ask(world)
        world.attempt(MSA, DEAD, 25)
        post.hand(MSA, BACKUP, 25, "taro@a.example", [to], message, queue_id=f"B{name[1]}")
    told = world.tell()
    names = {m.trace_id: m.message_id for m in told.messages}
    for name, questions in asked.items():
        assert set(served(told, questions)) == {(name, 2)}
    lost = [(names[s.trace_id], s.hop) for s in told.timeline if s.event == "connect" and s.peer_ip == DEAD]
    assert sorted(lost) == [("<1@a.example>", 2), ("<2@a.example>", 2)]
    assert {d.recipient: d.attempts for d in told.deliveries} == {"hanako@b.example": 2, "goro@b.example": 2}


def test_messages_that_wait_out_a_dead_server_are_tried_by_turns() -> None:
    world = World()
    post = Post(world)
    waiting = {n: post.submit(mail(n), [f"user{n}@b.example"], f"A{n}") for n in (1, 2, 3)}
    world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    for _ in range(2):
        for _ in waiting:
            world.attempt(MSA, MX, 25, result="unanswered")
        world.pass_time(300)
    for n, message in waiting.items():
        post.relay(message, [f"user{n}@b.example"], f"B{n}")
    assert {d.recipient: d.attempts for d in world.tell().deliveries} == {f"user{n}@b.example": 3 for n in waiting}


def test_a_message_that_is_over_waits_no_more() -> None:
    world = World()
    post = Post(world)
    world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    post.submit(mail(1), ["nobody@b.example"], "A1")
    post.hand(MSA, MX, 25, "taro@a.example", ["nobody@b.example"], None, outcome="rejected")
    message = post.submit(mail(2), ["hanako@b.example"], "A2")
    world.attempt(MSA, MX, 25)
    world.pass_time(300)
    post.relay(message, ["hanako@b.example"])
    assert {d.recipient: d.attempts for d in world.tell().deliveries} == {"nobody@b.example": 1, "hanako@b.example": 2}


def test_of_several_that_wait_the_one_left_that_needs_what_was_not_offered() -> None:
    world = World()
    post = Post(world)
    arrived = {}
    for n, parameters in ((1, None), (2, "SMTPUTF8"), (3, None)):
        to = f"user{n}@b.example"
        post.hand(RELAY, MX, 25, "taro@a.example", [to], mail(n), queue_id=f"B{n}", mail_parameters=parameters)
        arrived[n] = to
    world.end(world.session("lmtp", MX, STORE, 24, capabilities=("PIPELINING",), server_name=NAMES[STORE]))
    for n in (3, 1):
        post.deliver(mail(n), [arrived[n]], f"C{n}")
    told = world.tell()
    assert {d.recipient: d.outcome for d in told.deliveries} == {
        "user1@b.example": "delivered",
        "user2@b.example": "bounced",
        "user3@b.example": "delivered",
    }
    assert [m.message_id for m in rows(told.messages) if m.outcome == "bounced"] == ["<2@a.example>"]


def said_cached(world: World) -> list[tuple[str | None, int | None, str | None, str, int | None]]:
    """What is said of hops for which their client asked nothing: message, hop, client, words, frame."""
    told = world.tell()
    names = {m.trace_id: m.message_id for m in told.messages}
    return [(names[s.trace_id], s.hop, s.actor_ip, s.detail, s.frame) for s in told.timeline if s.event == "dns_cached"]


def relayed(world: World, *numbers: int) -> None:
    """Messages from the MUA over the MSA to the MX, one by one."""
    for n in numbers:
        post = Post(world)
        post.relay(post.submit(mail(n), ["hanako@b.example"], f"A{n}"), ["hanako@b.example"], f"B{n}")


def test_an_answer_that_is_used_again_is_said() -> None:
    world = World()
    world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.")
    address = world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    relayed(world, 1)
    world.pass_time(9)
    relayed(world, 2)
    (said,) = said_cached(world)
    assert said[:3] == ("<2@a.example>", 2, MSA)
    assert said[3].startswith("mail.b.example. A: no question of its own, asked 9.") and said[4] == address.reply_frame


def test_an_answer_from_before_the_capture_is_said() -> None:
    world = World()
    world.lookup(MSA, "c.example", "MX", "MX 10 mail.c.example.")
    relayed(world, 1)
    assert said_cached(world) == [("<1@a.example>", 2, MSA, "b.example.: no question in this capture, known before", None)]


def test_nothing_is_said_where_the_clients_questions_are_not_in_the_capture() -> None:
    world = World()
    world.lookup(MX, "a.example", "MX", "MX 10 smtp.a.example.")
    relayed(world, 1)
    assert said_cached(world) == []


def test_a_further_message_on_an_open_connection_needs_no_answer() -> None:
    world = World()
    world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    info = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
    for n in (1, 2):
        world.carry(info, "taro@a.example", ["hanako@b.example"], mail(n), queue_id=f"B{n}")
    world.end(info)
    assert said_cached(world) == []


def test_who_asked_first_and_came_last_is_not_left_without() -> None:
    world = World()
    post = Post(world)
    asked = []
    messages = []
    for n in (1, 2):
        messages.append(post.submit(mail(n), ["hanako@b.example"], f"A{n}"))
        asked.append(world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example."))
        asked.append(world.lookup(MSA, "mail.b.example", "A", f"A {MX}"))
        world.pass_time(1)
    for n, message in enumerate(messages, 1):  # the second could not have asked before it came
        post.relay(message, ["hanako@b.example"], f"B{n}")
    told = world.tell()
    assert [name for name, _ in served(told, asked)] == ["<1@a.example>"] * 2 + ["<2@a.example>"] * 2
    assert not any(s.event == "dns_cached" for s in told.timeline)


def test_a_client_that_asks_for_its_own_server_which_is_an_exchanger_too() -> None:
    world = World()
    world.lookup(RELAY, "a.example", "MX", "MX 10 mail.a.example.")
    world.lookup(RELAY, "mail.a.example", "A", f"A {MSA}")
    asked = world.lookup(MUA, "smtp.a.example", "A", f"A {MSA}")
    Post(world).submit(mail(1), ["hanako@b.example", "jiro@a.example"])
    told = world.tell()
    assert told.dns(asked).hop == 1
    assert not any(step.event == "dns_cached" for step in told.timeline)


def test_of_two_that_wait_nothing_is_said_when_either_can_have_asked() -> None:
    world = World()
    post = Post(world)
    messages = [post.submit(mail(n), ["hanako@b.example"], f"A{n}") for n in (1, 2)]
    world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    for n, message in enumerate(messages, 1):
        post.relay(message, ["hanako@b.example"], f"B{n}")
    assert said_cached(world) == []


def test_a_client_that_is_the_servers_own_next_hop_takes_no_lookup_of_that_way() -> None:
    world = World()
    post = Post(world)
    message = mail(
        1, Received="from x.test (x.test [192.0.2.9]) by mail.b.example with ESMTP id B1; Mon, 23 Nov 2026 14:00:00 +0000"
    )
    info = world.session("smtp", STORE, MX, 25, client_name=NAMES[STORE], server_name=NAMES[MX])
    pointer = world.lookup(MX, "110.3.0.10.in-addr.arpa", "PTR", "PTR store.b.example.")
    confirmed = world.lookup(MX, "store.b.example", "A", f"A {STORE}")
    way = [world.lookup(MX, "store.b.example", "A", f"A {STORE}"), world.lookup(MX, "store.b.example", "AAAA")]
    post.deliver(message, ["hanako@b.example"])
    world.carry(info, "", ["taro@a.example"], mail(2), queue_id="V1")
    world.end(info)
    told = world.tell()
    hops = {(h.trace_id, h.hop): (h.client_ip, h.server_ip) for h in told.hops}
    served = [hops.get((row.trace_id or "", row.hop or 0)) for row in map(told.dns, (pointer, confirmed, *way))]
    assert served == [(STORE, MX), (STORE, MX), (MX, STORE), (MX, STORE)]


def test_of_two_callers_that_wait_the_one_greeted_first_was_looked_up_first() -> None:
    world = World()
    slow, fast = (world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX]) for _ in range(2))
    asked = []
    for n, info in ((2, fast), (1, slow)):
        asked.append(world.lookup(MX, "25.1.0.10.in-addr.arpa", "PTR", "PTR smtp.a.example."))
        info.ts_banner = info.ts_greeted = world.ns()
        world.carry(info, "taro@a.example", ["hanako@b.example"], mail(n), queue_id=f"B{n}")
    for info in (slow, fast):
        world.end(info)
    told = world.tell()
    assert [name for name, _ in served(told, asked)] == ["<2@a.example>", "<1@a.example>"]


def test_each_message_of_a_burst_has_its_own_questions_on_open_connections_too() -> None:
    world = World()
    post = Post(world)
    waiting = [post.submit(mail(n), ["hanako@b.example"], f"A{n}") for n in (1, 2, 3)]
    info = None
    asked = []
    for n, message in enumerate(waiting, 1):
        asked.append(world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example."))
        asked.append(world.lookup(MSA, "mail.b.example", "A", f"A {MX}"))
        info = info or world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
        world.carry(info, "taro@a.example", ["hanako@b.example"], message, queue_id=f"B{n}")
    assert info is not None
    world.end(info)
    told = world.tell()
    assert served(told, asked) == [(f"<{n}@a.example>", 2) for n in (1, 1, 2, 2, 3, 3)]


def test_a_new_connection_has_its_question_before_one_that_only_goes_on() -> None:
    world = World()
    post = Post(world)
    waiting = [post.submit(mail(n), ["hanako@b.example"], f"A{n}") for n in (1, 2, 3)]
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    open_ = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
    world.carry(open_, "taro@a.example", ["hanako@b.example"], waiting[0], queue_id="B1")
    asked = world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    world.carry(open_, "taro@a.example", ["hanako@b.example"], waiting[1], queue_id="B2")
    world.end(open_)
    post.relay(waiting[2], ["hanako@b.example"], "B3")
    told = world.tell()
    assert [name for name, _ in served(told, [asked])] == ["<3@a.example>"]


def test_bounces_on_an_open_connection_have_their_own_questions() -> None:
    world = World()
    info = None
    asked = []
    for n in (1, 2):
        asked.append(world.lookup(MSA, "mail.b.example", "A", f"A {MX}"))
        info = info or world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
        world.carry(info, "", ["taro@b.example"], mail(n, From="MAILER-DAEMON@a.example"), queue_id=f"B{n}")
    assert info is not None
    world.end(info)
    told = world.tell()
    assert [name for name, _ in served(told, asked)] == ["<1@a.example>", "<2@a.example>"]


def test_a_domain_without_exchangers_is_its_own_and_needs_no_other_name_of_its_server() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), ["hanako@alone.example", "goro@b.example"], "A1")
    alone = [world.lookup(MSA, "alone.example", "MX"), world.lookup(MSA, "alone.example", "A", f"A {MX}")]
    others = [world.lookup(MSA, "b.example", "MX", "MX 10 www.b.example."), world.lookup(MSA, "www.b.example", "A", f"A {MX}")]
    post.relay(message, ["hanako@alone.example"], "B1")
    post.relay(message, ["goro@b.example"], "B2")
    told = world.tell()
    assert [told.dns(row).hop for row in (*alone, *others)] == [2, 2, 3, 3]


def test_what_an_mx_asks_about_two_senders_at_once_is_shared_out_by_the_replies_that_wait_for_it() -> None:
    world = World()
    infos = [world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX]) for _ in range(2)]
    begun = world.now
    spf = [world.lookup(MX, "a.example", "TXT", 'TXT "v=spf1 -all"') for _ in infos]
    policies = []
    for n, info in enumerate(infos, 1):
        world.now = begun
        event = world.carry(info, "taro@a.example", ["hanako@b.example"], mail(n), queue_id=f"B{n}")
        event.ts_rcpt_done = event.ts_data = world.ns(begun + 0.1 * n)
        event.ts_eom, event.ts_end = world.ns(begun + 0.15 + 0.1 * n), world.ns(begun + 0.2 + 0.1 * n)
        info.connection.ts_last = world.ns(begun + 0.5)
        world.now = begun + 0.16 + 0.1 * n
        policies.append(world.lookup(MX, "_dmarc.a.example", "TXT", 'TXT "v=DMARC1; p=none"', purpose="dmarc"))
    world.now = begun + 1
    for info in infos:
        world.end(info)
    told = world.tell()
    assert [name for name, _ in served(told, (*spf, *policies))] == ["<1@a.example>", "<2@a.example>"] * 2


def test_questions_of_two_deliveries_that_interleave_stay_together() -> None:
    world = World()
    post = Post(world)
    waiting = {n: post.submit(mail(n), ["hanako@b.example"], f"A{n}") for n in (1, 2)}
    asked = [world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.") for _ in waiting]
    asked += [world.lookup(MSA, "mail.b.example", "A", f"A {MX}") for _ in waiting]
    infos = [world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX]) for _ in waiting]
    for info, (n, message) in zip(infos, waiting.items(), strict=True):
        world.carry(info, "taro@a.example", ["hanako@b.example"], message, queue_id=f"B{n}")
        world.end(info)
    told = world.tell()
    assert [name for name, _ in served(told, asked)] == ["<1@a.example>", "<2@a.example>"] * 2


def test_a_question_of_long_before_stays_with_the_connection_that_waited_out_a_dead_server() -> None:
    world = World()
    post = Post(world)
    slow, fast = (post.submit(mail(n), [f"user{n}@b.example"], f"A{n}") for n in (1, 2))
    early = world.lookup(MSA, "b.example", "MX", "MX 10 dead.b.example.", "MX 20 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    world.attempt(MSA, DEAD, 25, result="unanswered")
    world.pass_time(30)
    late = world.lookup(MSA, "b.example", "MX", "MX 10 dead.b.example.", "MX 20 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    post.relay(fast, ["user2@b.example"], "B2")
    post.relay(slow, ["user1@b.example"], "B1")
    told = world.tell()
    assert [name for name, _ in served(told, (early, late))] == ["<1@a.example>", "<2@a.example>"]


SIX, OTHER = "fd00::3:25", "fd00::9:9"


def asks_who_calls(world: World, by: str) -> Transaction:
    """While a client waits for the greeting, an address asks for its name."""
    world.now -= 0.004
    row = world.lookup(by, "25.1.0.10.in-addr.arpa", "PTR", f"PTR {NAMES[MSA]}.")
    world.now += 0.003
    return row


def deliveries_with(world: World, times: int, *askers: str) -> list[Transaction]:
    """The MSA hands over some messages; while it waits, these ask who it is."""
    asked = []
    for n in range(times):
        info = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
        asked += [asks_who_calls(world, by) for by in askers]
        world.carry(info, "taro@a.example", ["hanako@b.example"], mail(n), queue_id=f"B{n}")
        world.end(info)
        world.pass_time(1)
    return asked


def test_who_asks_again_and_again_what_a_server_needs_asks_for_it() -> None:
    for limits in (Limits(), Limits(story_sightings=1, story_part=1)):
        world = World()
        asked = deliveries_with(world, 3, SIX)
        told = world.tell(limits)
        messages = [m.message_id for part in parts(told) for m in part.messages]
        (host,) = [h for h in rows(told.hosts) if h.ips == [SIX]]
        assert [told.dns(row).hop for row in asked] == [1, 1, 1] and len(messages) == 3
        assert told.dns(asked[0]).client_role == "mx"
        assert (host.roles, host.messages, host.evidence) == (
            ["mx"],
            3,
            [{"role": "mx", "rule": f"asks the DNS for {MX}, which asks nothing itself", "count": 3}],
        )
        said = [(s.actor_ip, s.actor_role) for s in told.timeline if s.event == "dns_query"]
        assert said == [(SIX, "mx")] * 3


def test_beyond_the_limit_messages_are_told_without_the_lookups_made_for_them() -> None:
    world = World()
    asked = deliveries_with(world, 3, MX)
    told = world.tell(Limits(story_sightings=1, story_part=1, story_at_once=2))
    messages = sorted(m.message_id or "" for part in parts(told) for m in part.messages)
    assert messages == [f"<{n}@a.example>" for n in range(3)]
    assert [told.dns(row).hop for row in asked] == [1, 1, None]
    assert [row.detail for row in told.anomalies if row.name == "told_apart"] == ["1 beyond the limit"]


def test_who_asked_once_or_with_another_or_at_other_times_too_asks_for_nobody_that_we_know() -> None:
    for times, askers, strays in ((1, [SIX], 0), (3, [SIX, OTHER], 0), (3, [SIX], 4)):
        world = World()
        asked = deliveries_with(world, times, *askers)
        for _ in range(strays):
            world.pass_time(10)
            world.lookup(SIX, "25.1.0.10.in-addr.arpa", "PTR", f"PTR {NAMES[MSA]}.")
        told = world.tell()
        assert {told.dns(row).hop for row in asked} == {None}
        assert [h for h in rows(told.hosts) if SIX in h.ips] == []


def test_a_relay_asks_from_an_address_of_its_own_for_that() -> None:
    world = World()
    post = Post(world)
    asked = []
    for n in range(3):
        message = post.submit(mail(n), ["hanako@b.example"], f"A{n}")
        asked += [world.lookup(SIX, "b.example", "MX", "MX 10 mail.b.example."), world.lookup(SIX, NAMES[MX], "A", f"A {MX}")]
        post.relay(message, ["hanako@b.example"], f"B{n}")
        world.pass_time(1)
    told = world.tell()
    assert [told.dns(row).hop for row in asked] == [2] * 6
    assert [(told.dns(row).client_role) for row in asked] == ["msa"] * 6


def test_a_client_with_several_addresses_asks_from_one_of_another_family() -> None:
    for askers in ([SIX], [SIX, OTHER]):
        world = World()
        asked = []
        own = world.lookup(SIX, NAMES[MSA], "A", f"A {MSA}")
        world.session("smtp", SIX, MSA, 587)
        for n in range(3):
            asked += [world.lookup(by, NAMES[MSA], "A", f"A {MSA}") for by in askers]
            info = world.session("smtp", f"10.0.1.{11 + n}", MSA, 587, auth_ok=True, auth_user="taro")
            world.carry(info, "taro@a.example", ["hanako@b.example"], mail(n))
            world.end(info)
            world.pass_time(1)
        told = world.tell()
        assert told.dns(own).hop is None
        assert [told.dns(row).hop for row in asked] == ([1] * 3 if len(askers) == 1 else [None] * 6)
