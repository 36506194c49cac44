"""What is odd in a message's way, and what is not."""

from builders import MSA, MUA, MX, NAMES, RELAY, SECOND, STORE, Post, World, mail, received, stamp
from test_evidence import H, exchangers

from analyzer.mail.story import Told


def names(told: Told) -> set[str]:
    return {row.name for row in told.anomalies}


def test_an_ordinary_message_has_nothing_odd() -> None:
    world = World()
    exchangers(world, MSA)
    Post(world).whole()
    assert names(world.tell()) == set()


def test_a_program_that_hands_its_mail_to_the_exchanger_itself() -> None:
    world = World()
    exchangers(world, MUA)
    Post(world).hand(MUA, MX, 25, "taro@a.example", H, mail(1), queue_id="B1")
    assert names(world.tell()) == {"direct_to_mx"}


def test_a_program_that_its_domain_lets_deliver_is_none() -> None:
    for policy, odd in ((f"v=spf1 ip4:{MUA} -all", set()), ("v=spf1 ip4:192.0.2.1 ~all", {"direct_to_mx"})):
        world = World()
        exchangers(world, MUA)
        info = world.session("smtp", MUA, MX, 25, client_name=NAMES[MUA], server_name=NAMES[MX])
        world.lookup(MX, "a.example", "TXT", f'a.example. TXT "{policy}"')
        world.carry(info, "taro@a.example", H, mail(1), queue_id="B1")
        world.end(info)
        assert names(world.tell()) == odd


def test_a_server_that_passes_on_for_strangers_is_an_open_relay() -> None:
    world = World()
    post = Post(world)
    NAMES.setdefault("192.0.2.7", "dsl.stranger.example")
    post.hand("192.0.2.7", RELAY, 25, "spam@stranger.example", H, mail(1), queue_id="R1")
    message = received(mail(1), world.now, "relay.isp.example", "dsl.stranger.example", "192.0.2.7", with_="ESMTP", id="R1")
    exchangers(world, RELAY)
    post.relay(message, H, "B1", "spam@stranger.example", via=(RELAY, MX))
    assert "open_relay" in names(world.tell())


def test_a_smart_host_for_its_customers_is_none() -> None:
    world = World()
    post = Post(world)
    message = post.relay(post.submit(mail(1), H), H, "R1", via=(MSA, RELAY))
    exchangers(world, RELAY)
    post.relay(message, H, "B1", via=(RELAY, MX))
    assert "open_relay" not in names(world.tell())


def test_trace_fields_that_a_user_hands_in_may_be_forged() -> None:
    world = World()
    forged = f"Received: from x.test (x.test [192.0.2.99]) by y.test with ESMTP id Q1; {stamp(0)}\r\n" + mail(1)
    Post(world).submit(forged, H)
    assert "received_forged" in names(world.tell())


def test_a_trace_field_that_names_another_client_is_contradicted() -> None:
    for named, odd in ((MSA, False), ("192.0.2.99", True)):
        world = World()
        post = Post(world)
        message = post.submit(mail(1), H)
        at = world.now
        post.hand(MSA, MX, 25, "taro@a.example", H, message, queue_id="B1", size=len(message))
        post.deliver(received(message, at, NAMES[MX], NAMES[MSA], named, with_="ESMTP", id="B1"), H)
        told = world.tell()
        assert names(told) == ({"received_contradicted"} if odd else set())
        if odd:
            (row,) = told.anomalies
            assert "192.0.2.99 sent it" in row.detail and MSA in row.detail and row.trace_id is not None


def test_a_proxy_that_says_who_its_client_is_contradicts_nothing() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), H)
    at, proxy = world.now, "10.0.3.5"
    info = world.session("smtp", proxy, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX], stated_client_ip=MSA)
    world.carry(info, "taro@a.example", H, message, queue_id="B1")
    world.end(info)
    post.deliver(received(message, at, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id="B1"), H)
    assert "received_contradicted" not in names(world.tell())


def test_a_server_whose_clock_is_far_off_is_told() -> None:
    world = World()
    post = Post(world)
    message = post.submit(mail(1), H)
    post.hand(MSA, MX, 25, "taro@a.example", H, message, queue_id="B1", size=len(message))
    post.deliver(received(message, world.now + 1800, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id="B1"), H)
    told = world.tell()
    (row,) = [row for row in told.anomalies if row.name == "received_time_odd"]
    assert "+1800 s" in row.detail


def test_a_time_that_runs_backwards_is_told() -> None:
    world = World()
    fields = [
        f"Received: from b.test (b.test [192.0.2.2]) by mail.b.example with ESMTP id Q2; {stamp(0)}\r\n",
        f"Received: from a.test (a.test [192.0.2.1]) by b.test with ESMTP id Q1; {stamp(3000)}\r\n",
    ]
    world.pass_time(60)
    info = world.session("pop3", "10.0.4.9", "10.0.4.1", 110, auth_user="hanako@b.example", auth_ok=True)
    world.retrieve(info, "".join(fields) + mail(1), uidl="u1")
    world.end(info)
    told = world.tell()
    assert names(told) == {"received_time_impossible"}
    (row,) = [row for row in told.anomalies if row.name == "received_time_impossible"]
    assert "3000 s" in row.detail and row.ts is not None and row.ts > 60 * SECOND


def test_a_name_server_that_fails_leaves_the_message_in_the_queue() -> None:
    world = World()
    Post(world).submit(mail(1), H)
    world.lookup(MSA, "b.example", "MX", rcode="SERVFAIL")
    assert [d.outcome for d in world.tell().deliveries] == ["deferred"]


def test_the_only_exchanger_that_answers_keeps_the_mail() -> None:
    world = World()
    post = Post(world)
    NAMES["10.0.3.26"] = "mx2.b.example"
    message = post.submit(mail(1), H)
    exchangers(world, MSA)
    world.attempt(MSA, MX, 25)
    post.relay(message, H, "K1", via=(MSA, "10.0.3.26"))
    world.lookup("10.0.3.26", "25.1.0.10.in-addr.arpa", "PTR", "PTR smtp.a.example.")
    assert [d.outcome for d in world.tell().deliveries] == ["delivered"]
    world.lookup("10.0.3.26", "b.example", "MX", "MX 10 mail.b.example.", "MX 20 mx2.b.example.")
    assert [d.outcome for d in world.tell().deliveries] == ["relayed"]


def test_a_message_that_comes_to_a_server_again_goes_round() -> None:
    for port, odd in ((25, {"mail_loop"}), (10026, set())):  # a filter hands it back on another port
        world = World()
        exchangers(world, MSA)
        post = Post(world)
        message = post.relay(post.submit(mail(1), H), H)
        message = post.relay(message, H, "R1", via=(MX, RELAY))
        post.hand(RELAY, MX, port, "taro@a.example", H, message, queue_id="B2")
        assert names(world.tell()) & {"mail_loop"} == odd


def test_a_client_that_did_not_wait_for_the_reply_sends_again() -> None:
    world = World()
    exchangers(world, MSA)
    post = Post(world)
    sent = post.submit(mail(1), H)
    slow = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
    begun = world.now
    event = world.carry(slow, "taro@a.example", H, sent, queue_id="B1")
    event.ts_end = world.ns(begun + 4)
    world.now = begun + 2
    second = post.relay(sent, H, "B2")
    world.now = begun + 4
    post.deliver(received(sent, begun + 4, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id="B1"), H)
    post.deliver(second, H)
    world.end(slow)
    told = world.tell()
    said = {row.name: row.detail for row in told.anomalies}
    assert said == {
        "sent_again": f"hop 3 was begun 1.995 s before {NAMES[MX]} said that it takes it for <{H[0]}> (hop 2)",
        "delivered_twice": f"{NAMES[STORE]} took it for <{H[0]}> in hop 4 and in hop 5",
    }


def test_a_retry_after_a_refusal_is_no_second_copy() -> None:
    world = World()
    exchangers(world, MSA)
    post = Post(world)
    sent = post.submit(mail(1), H)
    post.hand(MSA, MX, 25, "taro@a.example", H, None, outcome="deferred")
    post.deliver(post.relay(sent, H), H)
    assert names(world.tell()) == set()
