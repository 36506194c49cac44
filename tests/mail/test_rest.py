"""Messages at rest: what comes late joins them as if they had never been put away."""

from collections.abc import Callable
from typing import Any

import pytest
from builders import MSA, MX, NAMES, READER, STORE, Post, World, bounce, mail, rows

from analyzer.ledger import Ledger
from analyzer.limits import Limits
from analyzer.mail.story import BY_MESSAGE
from analyzer.protocols.base import SessionEnded
from analyzer.protocols.dns import Transaction

TO = ["hanako@b.example"]
HOUR = 3600 * 10**9
AT_ONCE = Limits(story_sightings=0, live_awake_idle=0, live_decided_idle=HOUR, queue_lifetime=10 * HOUR, live_attempt_age=HOUR)


def fetched_late(world: World, post: Post) -> None:
    stored = post.whole()
    world.pass_time(300)
    reader = world.session("pop3", READER, STORE, 110, auth_user="hanako@b.example", auth_ok=True)
    world.retrieve(reader, stored, number=1, uidl="u1")
    world.end(reader)
    world.pass_time(100)
    again = world.session("pop3", READER, STORE, 110, auth_user="hanako@b.example", auth_ok=True)
    world.mailbox(again, "deleted", number=1, uidl="u1")
    world.end(again)


def greylisted(world: World, post: Post) -> None:
    message = post.submit(mail(1), TO)
    for _ in range(2):
        post.hand(MSA, MX, 25, "taro@a.example", TO, None, outcome="deferred", size=len(message))
        world.pass_time(60)
    post.deliver(post.relay(message, TO), TO)


def tried_in_vain(world: World, post: Post) -> None:
    world.lookup(MSA, "b.example", "MX", "MX 10 mail.b.example.")
    world.lookup(MSA, "mail.b.example", "A", f"A {MX}")
    message = post.submit(mail(1), TO)
    for _ in range(3):
        world.pass_time(50)
        world.attempt(MSA, MX, 25, "unanswered")
    world.pass_time(20)
    post.relay(message, TO)


def reported(world: World, post: Post) -> None:
    message = post.submit(mail(1), TO)
    post.hand(MSA, MX, 25, "taro@a.example", TO, message, outcome="rejected", code=550)
    world.pass_time(200)
    post.hand(MSA, STORE, 24, "", ["taro@a.example"], bounce("hanako@b.example"))


def inside_tls(world: World, post: Post) -> None:
    message = post.submit(mail(1), TO)
    hidden = world.session("smtp", MSA, MX, 25, visibility="opaque", tls="starttls", server_name=NAMES[MX])
    stored = post.relay(message, TO)
    world.events.pop()  # what went on inside was not seen,
    world.events.pop()
    world.pass_time(1)
    post.deliver(stored, TO)
    world.pass_time(90)
    world.end(hidden)  # and that there was something is known late


def two_friends(world: World, post: Post) -> None:
    for number in (1, 2, 3):
        post.whole(number)
        world.pass_time(40)
    info = world.session("imap", READER, STORE, 143, auth_user="hanako@b.example", auth_ok=True)
    for number in (1, 2, 3):
        world.retrieve(info, mail(number), mailbox="INBOX", uidvalidity=7, uid=number)
        world.pass_time(40)
        world.mailbox(info, "flagged", mailbox="INBOX", uidvalidity=7, uid=number, detail="+FLAGS (\\Seen)")
    world.end(info)


STORIES = [fetched_late, greylisted, tried_in_vain, reported, inside_tls, two_friends]


def lived(world: World, limits: Limits) -> tuple[dict[str, list[Any]], int]:
    """The rows of a story that was told after every event, everything resting at once; and how many messages rested."""
    ledger = Ledger(limits)
    rested = 0
    for event in world.events:
        if isinstance(event, Transaction):
            ledger.look([event])
        else:
            ledger.feed(event)
        told = ledger.retell()
        if told is not None:
            ledger.let_go(told)
        for table, _ in ledger.settle(ledger_time(event)):
            assert table == "dns"
        rested = max(rested, sum(ledger.resting_outcomes.values()))
    told = ledger.finish()
    found = {table: rows(getattr(told, table)) for table in (*BY_MESSAGE, "hosts")}
    for table, row in ledger.resting_rows():  # it is not told again at the end
        if table in found:
            found[table].append(row)
    return found, rested


def ledger_time(event: Any) -> int:
    """When something has just happened."""
    if isinstance(event, SessionEnded):
        return event.info.connection.ts_last + 1
    return int(getattr(event, "ts_end", None) or event.ts) + 1


@pytest.mark.parametrize("happens", STORIES)
def test_what_comes_late_joins_what_rests(happens: Callable[[World, Post], None]) -> None:
    world = World()
    happens(world, Post(world))
    told = world.tell()
    live, rested = lived(world, AT_ONCE)
    assert rested
    for table in BY_MESSAGE:
        assert sorted(live[table], key=repr) == sorted(getattr(told, table), key=repr), table
    assert sorted(live["hosts"]) == sorted(rows(told.hosts))


def held_by_kind(ledger: Ledger) -> dict[str, int]:
    """How many objects of each kind a ledger holds."""
    webs, known, rest = ledger._webs, ledger._known, ledger._rest
    return {
        "crossings awake": webs.count,
        "crossings at rest": rest.count,
        "webs": len(webs),
        "keys awake": len(webs._strong) + len(webs._faint) + len(webs._sought),
        "keys at rest": len(rest._shelf._keys),
        "labels at rest": len(rest._shelf._labels),
        "hosts awake": len(known._by_ip),
        "hosts": len(known),
        "sessions": len(ledger._ended) + len(ledger._going_on),
        "lookups": len(ledger.lookups),
        "rows of lookups": len(ledger._dns._rows),
        "names of lookups": len(ledger._dns._lookups._words),
        "told with": len(ledger._holder),
        "mailbox events and attempts": len(ledger._mailbox) + len(ledger._tries),
        "news": len(ledger._news),
        "trace fields": len(ledger._digester),
        "claims": len(ledger._claims_before),
    }


def test_what_is_held_after_ten_times_as_much_mail_is_what_was_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """New messages, clients and connections all the time: each bound is reached early and held to."""
    monkeypatch.setattr("analyzer.ledger._SPARE", 10)
    limits = Limits(
        live_awake=12,
        live_told=6,
        live_traces=40,
        live_lookups=8,
        live_hosts=14,
        live_hosts_awake=6,
        live_idle_sessions=10,
        live_attempt_age=60_000_000_000,
        live_claims=5,
    )
    ledger = Ledger(limits)
    world = World()
    post = Post(world)
    most: list[dict[str, int]] = []
    fed = 0
    for number in range(250):
        client = f"198.51.100.{number}"
        world.lookup(MSA, f"d{number}.example", "MX", f"MX 10 mail.d{number}.example.")
        world.attempt(MSA, MX, 25, "unanswered")
        world.end(world.session("smtp", client, MX, 25))
        post.whole(number, body=f"Hello, {number}.\n")
        world.pass_time(5)
        for event in world.events[fed:]:
            if isinstance(event, Transaction):
                ledger.look([event])
            else:
                ledger.feed(event)
        fed = len(world.events)
        while ledger.fresh:
            told = ledger.retell()
            if told is not None:
                ledger.let_go(told)
        for _ in ledger.settle(world.ns()):
            pass
        most.append(held_by_kind(ledger))
    early, late = ({kind: max(held[kind] for held in some) for kind in most[0]} for some in (most[:25], most[25:]))
    assert early["crossings at rest"] and early["hosts"] > limits.live_hosts_awake
    assert {kind: count for kind, count in late.items() if count > early[kind]} == {}
