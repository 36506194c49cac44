"""Failed connections and lookups: whose they are when several messages wait at one server."""

from builders import MSA, MX, NAMES, RELAY, STORE, Post, World, mail, rows

DEAD, BACKUP = "10.0.3.99", "10.0.3.26"


def ask(world: World) -> list[object]:
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
    asked: dict[str, list[object]] = {}
    for name, message, to in (("<1@a.example>", first, "hanako@b.example"), ("<2@a.example>", second, "goro@b.example")):
        asked[name] = ask(world)
        world.attempt(MSA, DEAD, 25)
        post.hand(MSA, BACKUP, 25, "taro@a.example", [to], message, queue_id=f"B{name[1]}")
    told = world.tell()
    names = {m.trace_id: m.message_id for m in told.messages}
    for name, questions in asked.items():
        assert {(names.get(told.dns(row).trace_id), told.dns(row).hop) for row in questions} == {(name, 2)}  # type: ignore[arg-type]
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
