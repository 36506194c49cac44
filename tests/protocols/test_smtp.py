"""SMTP and LMTP dialogues: tests/dialogues/smtp_*.txt, and what does not fit a text file."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
from dialogue import EVERY_WAY, Dialogue, Played, connection, parse, plain, play
from hypothesis import given, settings
from hypothesis import strategies as st
from told import dialogues, perform, tell

from analyzer.limits import Limits
from analyzer.protocols import smtp
from analyzer.protocols.base import Malformed, MessageCarried, SessionEnded
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.queue_ids import queue_id, software
from analyzer.wire.types import Chunk

FILES = dialogues("smtp")
OPEN = "S: 220 mx.example.net ESMTP\nC: EHLO client.example.org\nS: 250 mx.example.net\n"
ENVELOPE = "C: MAIL FROM:<a@example.org>\nS: 250 ok\nC: RCPT TO:<b@example.net>\nS: 250 ok\n"
CLOSE = "C: QUIT\nS: 221 bye\n"


def line(event: Any) -> str:
    """A transaction or a session's end as a line; other events as `told` has them."""
    if isinstance(event, MessageCarried):
        rcpts = ", ".join(f"<{r.address}> {r.outcome} {r.code or '-'}" for r in event.recipients) or "nobody"
        content = event.content
        octets = "no octets"
        if content is not None:
            missing = f" {content.missing_bytes} missing" if content.missing_bytes else ""
            octets = f"{content.size} octets{missing} {'complete' if content.complete else 'incomplete'}"
            octets += f" {content.message_id}" if content.message_id else ""
        sender = "?" if event.mail_from is None else f"<{event.mail_from}>"
        queue = f", queue id {event.queue_id}" if event.queue_id else ""
        return f"transaction from {sender} to {rcpts}: {octets}: {event.outcome} {event.code or '-'}{queue}"
    if isinstance(event, SessionEnded):
        info, row = event.info, event.row
        words = [f"end {row.end}", row.protocol, f"client {row.client_name}", f"server {row.server_name}"]
        if row.auth_ok is not None:
            words.append(f"{row.auth_mechanism} {row.auth_user} {'ok' if row.auth_ok else 'refused'}")
        words += [f"{k} {v}" for k, v in (("starttls", info.starttls), ("for", info.stated_client_ip)) if v]
        if row.tls != "none":
            words.append(f"{row.tls} {row.visibility}")
        return ", ".join(words)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in tell([event])[0])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_dialogue(path: Path, cut: int | str, order: str) -> None:
    played, told = perform(smtp.Session, path, 25, cut, order)
    assert [line(e) for e in played.events] == told


def read(path: Path) -> tuple[Dialogue, str]:
    text = path.read_text().partition("\n---\n")[0]
    return parse(text.replace("[start=mid]", "")), "mid" if "[start=mid]" in text else "handshake"


def without(dialogue: Dialogue, index: int) -> Dialogue:
    """The dialogue as a capture shows it that lost one segment."""
    segments = [dataclasses.replace(s) for s in dialogue.segments]
    lost = segments.pop(index)
    after = next((s for s in segments[index:] if s.client == lost.client), None)
    if after is not None and after.gap >= 0:
        after.gap += len(lost.data) + max(lost.gap, 0)
    return Dialogue(segments, dialogue.end)


def by_kind(played: Played) -> dict[str, list[Any]]:
    """Events by kind: where the order of commands and oddities among each other may depend on the feeding."""
    kinds: dict[str, list[Any]] = {}
    for event in plain(played.events):
        kinds.setdefault(event[0] if type(event) is tuple else type(event).__name__, []).append(event)
    kinds.get("Anomaly", []).sort(key=repr)
    return kinds


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_lost_segment_costs_what_it_held(path: Path) -> None:
    """No crash, no message that was not there, and the same however the rest is fed."""
    dialogue, start = read(path)
    whole = play(smtp.Session, dialogue, start=start)
    known = {m.content.sha256 for m in whole.messages if m.content and m.content.complete}
    for index in range(len(dialogue.segments)):
        damaged = without(dialogue, index)
        first = play(smtp.Session, damaged, start=start)
        for cut, order in EVERY_WAY[1:]:
            assert by_kind(play(smtp.Session, damaged, cut=cut, order=order, start=start)) == by_kind(first)
        if "smuggling_suspect" not in whole.anomalies:
            assert {m.content.sha256 for m in first.messages if m.content and m.content.complete} <= known


HELLO = "C: EHLO a\nS: 250 b\n"


@pytest.mark.parametrize(("port", "said", "protocol"), [(24, "", "lmtp"), (25, "", "smtp"), (24, HELLO, "smtp")])
def test_what_a_session_on_a_private_port_speaks_when_no_lhlo_was_seen(port: int, said: str, protocol: str) -> None:
    text = f"S: 220 store.example.net Dovecot ready\n{said}C...gap 14\nS: 250 b\n{ENVELOPE}{CLOSE}"
    played = play(smtp.Session, text, port=port)
    assert played.row.protocol == protocol


@pytest.mark.parametrize("also_lost", ["", "354 go\r\n"])
@pytest.mark.parametrize("lost", ["DATA\r\n", "RCPT TO:<b@example.net>\r\nDATA\r\n"])
@pytest.mark.parametrize(("cut", "order"), EVERY_WAY)
def test_a_message_is_whole_though_the_command_before_it_is_lost(lost: str, also_lost: str, cut: Any, order: str) -> None:
    """The message begins where the server asked for it, or where nothing but DATA can have been lost."""
    asked = lost.replace("\r\n", "\nC: ").removesuffix("\nC: ")
    said = (
        f"C: MAIL FROM:<a@example.org>\nS: 250 ok\nC: {asked}\nS: 354 go\nC: Message-ID: <1@example.org>\nC:\nC: .\nS: 250 ok\n"
    )
    damaged = parse(OPEN + said + CLOSE)
    for octets in filter(None, (lost, also_lost)):
        damaged = without(damaged, [s.data for s in damaged.segments].index(octets.encode()))
    played = play(smtp.Session, damaged, cut=cut, order=order)
    (content,) = [m.content for m in played.messages]
    assert (content.size, content.complete) == (31, lost == "DATA\r\n" or not also_lost)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FILES), st.lists(st.integers(0, 900), max_size=12), st.sampled_from(["capture", "client", "server"]))
def test_any_cut(path: Path, cuts: list[int], order: str) -> None:
    dialogue, start = read(path)
    assert plain(play(smtp.Session, dialogue, cut=cuts, order=order, start=start).events) == plain(
        play(smtp.Session, dialogue, start=start).events
    )


WORDS = (
    rb"220 |250-|354 go|334 x|\r\n|\n|\r|.|MAIL FROM:<|RCPT TO:<a>|DATA|BDAT 5| LAST|AUTH LOGIN|STARTTLS|QUIT|RSET|\0|\x16\x03|"
    rb'x: y|XEXCH50 3 1|<@a:|"|\xff|LHLO x'
).split(b"|")
HOSTILE = st.lists(st.sampled_from([word.decode("unicode_escape").encode("latin-1") for word in WORDS]), max_size=40).map(
    b"".join
)


@settings(max_examples=300, deadline=None)
@given(HOSTILE, HOSTILE, st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(-1, 40)), max_size=3), st.booleans())
def test_any_octets(client: bytes, server: bytes, size: int, gaps: list[tuple[bool, int]], mid: bool) -> None:
    session = smtp.Session(connection(25, "mid" if mid else "handshake"), True, Limits())
    events: list[Any] = []
    offsets = {True: 0, False: 0}
    for begin in range(0, max(len(client), len(server)), size):
        for orig, octets in ((True, client), (False, server)):
            gap = gaps.pop()[1] if gaps and gaps[-1][0] == orig else 0
            piece = octets[begin : begin + size]
            offsets[orig] += max(gap, 0)
            events += session.feed(Chunk(orig, gap, offsets[orig], piece, [offsets[orig]], [1], [1], [offsets[not orig]]))
            offsets[orig] += len(piece)
    events += session.close("fin", 2)
    assert isinstance(events[-1], SessionEnded)


def smtp_session(text: str, **how: Any) -> Played:
    return play(smtp.Session, text, **how)


@pytest.mark.parametrize(
    ("argument", "address", "parameters"),
    [
        (b"FROM:<>", "", None),
        (b"FROM:<a@example.org> SIZE=10 BODY=8BITMIME", "a@example.org", "SIZE=10 BODY=8BITMIME"),
        (b"from:  <a@example.org>", "a@example.org", None),
        (b"FROM: < a@example.org > X=1", "a@example.org", "X=1"),
        (b"FROM:<@relay1.example,@relay2.example:a@example.org>", "a@example.org", None),
        (b"FROM:<@[IPv6:2001:db8::1]:a@example.org>", "a@example.org", None),
        (b'FROM:<"odd > name\\" x"@example.org> RET=HDRS', '"odd > name\\" x"@example.org', "RET=HDRS"),
        (b"FROM:<postmaster@[IPv6:2001:db8::1]>", "postmaster@[IPv6:2001:db8::1]", None),
        (b"FROM:a@example.org SIZE=1", "a@example.org", "SIZE=1"),
        (b"FROM <a@example.org>", "a@example.org", None),
        (b"FROM:<j\xfcrgen@example.org>", "j\\xfcrgen@example.org", None),
        ("FROM:<jürgen@exämple.org> SMTPUTF8".encode(), "jürgen@exämple.org", "SMTPUTF8"),
        (b'FROM:<"unclosed@example.org> X=1', '"unclosed@example.org', "X=1"),
        (b"FROM:<a@example.org", "a@example.org", None),
    ],
)
def test_paths(argument: bytes, address: str, parameters: str | None) -> None:
    assert grammar.path(argument, b"FROM") == (address, parameters)


@pytest.mark.parametrize("argument", [b"", b"TO:<a>", b"FROM:", b"FROM:   "])
def test_no_path(argument: bytes) -> None:
    with pytest.raises(Malformed):
        grammar.path(argument, b"FROM")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("2.0.0 Ok: queued as 4jY81t1TfKzQ6KN", "4jY81t1TfKzQ6KN"),
        ("2.0.0 Ok: 1144 bytes queued as 4jY8564lWdzQQ83", "4jY8564lWdzQQ83"),
        ("OK id=1abcDE-000123-AB", "1abcDE-000123-AB"),
        ("2.0.0 xAN1abc123 Message accepted for delivery", "xAN1abc123"),
        ("2.6.0 <1@example.net> [InternalId=4771149774853, Hostname=EX] Queued mail for delivery", "4771149774853"),
        ("2.0.0 OK  1700000000 a1-20020a05600c34c100b003fe.123 - gsmtp", "a1-20020a05600c34c100b003fe.123"),
        ("ok 1700000000 qp 12345", "12345"),
        ("2.0.0: 1a2b3c4d Message accepted for delivery", "1a2b3c4d"),
        ("2.0.0 <hanako@sample.com> 2F8DKQJTBGtYXgAA+jScEA:T2 Saved", "2F8DKQJTBGtYXgAA+jScEA:T2"),
        ("Message Queued (4B2A1C5E-1234.1)", "4B2A1C5E-1234.1"),
        ("Ok. 0000000000012345.000000005f2b1c2a.00001234", "0000000000012345.000000005f2b1c2a.00001234"),
        ("2.1.5 Ok SESSIONID=<cyrus-123-1700>", "cyrus-123-1700"),
        ("2.6.0 Message received", None),
        ("2.1.0 Ok", None),
    ],
)
def test_queue_ids(reply: str, expected: str | None) -> None:
    assert queue_id(reply) == expected


def test_software() -> None:
    assert software(b"mx.example.net ESMTP Postfix (Debian/GNU)") == "Postfix (Debian/GNU)"
    assert software(b"mx.example.net ESMTP ready") is None


def test_times_and_frames_of_a_transaction() -> None:
    text = (
        "[t=1] S: 220 mx.example.net ESMTP\n[t=2] C: EHLO c\n[t=3] S: 250 mx\n[t=4] C: MAIL FROM:<a@x>\n[t=5] S: 250 ok\n"
        "[t=6] C: RCPT TO:<b@y>\n[t=7] S: 250 ok\n[t=8] C: DATA\n[t=9] S: 354 go\n[t=10] C: Subject: x\n[t=11] C:\n"
        "[t=12] C: .\n[t=13] S: 250 ok\n[t=14] C: QUIT\n[t=15] S: 221 bye"
    )
    for cut, order in EVERY_WAY:
        played = smtp_session(text, cut=cut, order=order)
        (carried,) = played.messages

        def at(ts: int | None) -> float | None:
            return None if ts is None else (ts - 1_700_000_000_000_000_000) / 1e9

        times = [carried.ts_start, carried.ts_rcpt_done, carried.ts_data, carried.ts_eom, carried.ts_end]
        assert [at(t) for t in times] == [4, 9, 10, 12, 13]
        assert (carried.first_frame, carried.last_frame) == (7, 16)
        info = played.info
        assert [at(t) for t in (info.ts_banner, info.ts_greeted)] == [1, 3]
        assert [c.latency_s for c in played.commands] == [1, 1, 1, 1, 1]
        assert carried.recipients[0].ts == carried.ts_start + 2_000_000_000


def test_reply_captured_before_its_command() -> None:
    """Two capture queues were merged badly: acknowledgements tell what answers what."""
    dialogue = parse(OPEN + ENVELOPE + "C: DATA\nS: 354 go\nC: Subject: x\nC:\nC: .\nS: 250 ok\n" + CLOSE)
    for segment in dialogue.segments:
        if not segment.client and segment.offset:
            segment.ts -= 11_000_000
    dialogue.segments.sort(key=lambda s: s.ts)
    played = smtp_session(dialogue)
    assert [(c.verb, c.status) for c in played.commands] == [
        ("EHLO", "250"), ("MAIL", "250"), ("RCPT", "250"), ("DATA", "354"), ("QUIT", "221"),
    ]  # fmt: skip
    assert not any(c.pipelined for c in played.commands)
    assert played.messages[0].outcome == "accepted"


@pytest.mark.parametrize(
    ("end", "outcome"), [("fin", "aborted"), ("reset", "aborted"), ("timeout", "unknown"), ("capture_end", "unknown")]
)
def test_no_end_of_data(end: str, outcome: str) -> None:
    played = smtp_session(OPEN + ENVELOPE + f"C: DATA\nS: 354 go\nC: Subject: x\n[end={end}]")
    assert played.messages[0].outcome == outcome


def test_no_reply_to_the_end_of_data_is_unknown() -> None:
    played = smtp_session(OPEN + ENVELOPE + "C: DATA\nS: 354 go\nC: Subject: x\nC:\nC: .\n[end=reset]")
    (carried,) = played.messages
    assert (carried.outcome, carried.content.complete) == ("unknown", True)


def test_a_long_command_line_is_one_command() -> None:
    text = OPEN + "C: NOOP " + "A" * 300_000 + "\nS: 500 5.5.2 too long\n" + ENVELOPE + CLOSE
    for cut, order in (("whole", "client"), (1460, "capture"), (70_000, "server")):
        played = smtp_session(text, cut=cut, order=order)
        assert played.verbs == ["EHLO", "NOOP", "MAIL", "RCPT", "QUIT"]
        assert played.commands[1].argument == "A" * 999 + "…"
        assert played.commands[1].status == "500"
        assert played.anomalies == ["line_too_long"]


def test_many_recipients_in_groups() -> None:
    text = OPEN + "C: MAIL FROM:<a@example.org>\nS: 250 ok\n"
    for i in range(0, 1200, 100):
        text += "".join(f"C: RCPT TO:<u{k}@example.net>\n" for k in range(i, i + 100))
        text += "".join(f"S: {'452 later' if k % 10 == 9 else '250 ok'}\n" for k in range(100))
    text += "C: DATA\nS: 354 go\nC: Subject: x\nC:\nC: .\nS: 250 ok\n" + CLOSE
    (carried,) = smtp_session(text).messages
    assert [r.outcome for r in carried.recipients].count("deferred") == 120
    assert [r.outcome for r in carried.recipients].count("accepted") == 1080
    assert carried.outcome == "partial"


def test_bounds_are_named() -> None:
    limits = Limits(recipients=2, argument_chars=20)
    text = OPEN + ENVELOPE + "C: RCPT TO:<c@example.net>\nS: 250 ok\nC: RCPT TO:<d@example.net>\nS: 250 ok\n" + CLOSE
    played = smtp_session(text, limits=limits)
    assert len(played.messages[0].recipients) == 2
    assert played.anomalies == ["too_many_recipients"]


def test_a_client_that_is_never_answered_does_not_grow() -> None:
    limits = Limits(waiting_bytes=10_000)
    session = smtp.Session(connection(25), True, limits)
    events: list[Any] = []
    offset = 0
    first = b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\nSubject: x\r\n\r\n"
    for piece in [first, *[b"body text, line after line\r\n" * 40] * 100, b".\r\nQUIT\r\n"]:
        events += session.feed(Chunk(True, 0, offset, piece, [offset], [1], [1], [-1]))
        offset += len(piece)
        assert session.client.held < 10_000 + 2 * len(piece)
    events += session.close("fin", 2)
    (carried,) = [e for e in events if isinstance(e, MessageCarried)]
    assert carried.content.complete and carried.outcome == "unknown"


@pytest.mark.parametrize("size", [1460, 70_000, 1 << 30])
def test_a_large_message(size: int) -> None:
    body = b"".join(b"%07d the quick brown fox jumps over the lazy dog\r\n" % i for i in range(20_000))
    client = b"EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\nSubject: x\r\n\r\n" + body + b".\r\nQUIT\r\n"
    server = b"220 x\r\n250 x\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n221 bye\r\n"
    session = smtp.Session(connection(25), True, Limits())
    events: list[Any] = session.feed(Chunk(False, 0, 0, server, [0], [1], [1], [len(client)]))
    for at in range(0, len(client), size):
        events += session.feed(Chunk(True, 0, at, client[at : at + size], [at], [1], [1], [len(server)]))
    events += session.close("fin", 2)
    (carried,) = [e for e in events if isinstance(e, MessageCarried)]
    assert carried.content.sha256 == hashlib.sha256(b"Subject: x\r\n\r\n" + body).hexdigest()


def test_digest_of_what_the_client_sent() -> None:
    message = b"Message-ID: <1@x>\r\n\r\n.dot\r\n..\r\nend\r\n"
    stuffed = message.replace(b"\r\n.", b"\r\n..").decode().replace("\r\n", r"\r\n")
    played = smtp_session(OPEN + ENVELOPE + f"C: DATA\nS: 354 go\nC~ {stuffed}.\\r\\n\nS: 250 ok\n" + CLOSE, cut=1)
    assert played.messages[0].content.sha256 == hashlib.sha256(message).hexdigest()


# -- probe


def probed(
    orig: bytes, resp: bytes, orig_port: int = 41000, resp_port: int = 25, closing: bool = False
) -> tuple[str, bool] | None:
    found = smtp.probe(orig, resp, orig_port, resp_port, closing)
    return None if found is None else (found.protocol, found.client_is_orig)


@pytest.mark.parametrize(
    ("orig", "resp", "port", "closing", "expected"),
    [
        (b"EHLO x\r\n", b"220 mx ESMTP\r\n", 25, False, ("smtp", True)),
        (b"EHLO x\r\n", b"220 mx ESMTP\r\n", 10025, False, ("smtp", True)),
        (b"MAIL FROM:<a@x>\r\n", b"250 2.1.0 OK\r\n", 24, False, ("lmtp", True)),
        (b"MAIL FROM:<a@x>\r\n", b"250 2.1.0 OK\r\n", 25, False, ("smtp", True)),
        (b"EHLO x\r\n", b"220 mx ESMTP\r\n", 24, False, ("smtp", True)),
        (b"LHLO x\r\n", b"220 mx LMTP\r\n", 24, False, ("lmtp", True)),
        (b"", b"220 mx.example.net\r\n", 25, False, ("smtp", True)),
        (b"", b"220 ftp server ready\r\n", 21, True, None),
        (b"USER anonymous\r\n", b"220 mail files by FTP\r\n", 21, True, None),
        (b"", b"554 no service\r\n", 25, False, ("smtp", True)),
        (b"PROXY TCP4 203.0.113.9 198.51.100.25 5 25\r\nEHLO x\r\n", b"220 mx ESMTP\r\n", 2525, False, ("smtp", True)),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", 25, True, None),
        (b"", b"+OK POP3 ready\r\n", 25, True, None),
        (b"a LOGIN x y\r\n", b"* OK IMAP\r\n", 25, True, None),
        (b"MAIL FROM:<a@x>\r\n", b"250 2.1.0 Ok\r\n", 40025, False, ("smtp", True)),
        (b"ine of text\r\nand more\r\n.\r\n", b"250 2.0.0 Ok: queued as A\r\n", 25, False, ("smtp", True)),
        (b"binary\0\1\2", b"\3\4", 25, True, None),
        (b"", b"", 25, True, None),
    ],
)
def test_probe(orig: bytes, resp: bytes, port: int, closing: bool, expected: tuple[str, bool] | None) -> None:
    assert probed(orig, resp, resp_port=port, closing=closing) == expected


def test_probe_finds_the_client_of_a_swapped_capture() -> None:
    assert probed(b"250 2.1.0 Ok\r\n", b"RCPT TO:<b@x>\r\n", 25, 41000) == ("smtp", False)
    assert probed(b"220 mx ESMTP\r\n", b"EHLO x\r\n", 25, 25) == ("smtp", False)
