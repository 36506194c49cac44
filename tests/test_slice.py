"""One message's packets: all of them over all hops, and none of another's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from wire import capture_writer as writer
from wire import craft
from wire.talk import ACK, RST, SYN, T0, Segment, Talk, headers

import analyzer
from analyzer.limits import Limits
from analyzer.pipeline import run
from analyzer.views.trace import Trace, find
from analyzer.wire import files
from analyzer.wire.pick import Picker, Question
from analyzer.wire.types import SourceInfo

STORY = Path(__file__).resolve().parent.parent / "captures" / "story.pcapng"
ETHERNET = bytes(12) + b"\x08\x00"


def capture(path: Path, segments: Sequence[Segment], name: bytes = b"tap0") -> Path:
    """A pcapng file of one named interface with a clock of nanoseconds."""
    head = writer.section() + writer.interface(options=writer.option(2, name) + writer.option(9, b"\x09") + bytes(4))
    packets = (writer.enhanced(ETHERNET + b"".join([*headers(s), s.data]), s.ts) for s in segments)
    path.write_bytes(head + b"".join(packets))
    return path


def frames(path: Path) -> list[tuple[int, int, int, bytes]]:
    """Time, link type, original length and octets of every frame of a capture."""
    made = []
    for batch in files.read(path, Limits(), SourceInfo(str(path))):
        for i in range(len(batch)):
            start = int(batch.offset[i])
            octets = bytes(batch.data[start : start + int(batch.length[i])])
            made.append((int(batch.ts[i]), int(batch.linktype[i]), int(batch.wire_length[i]), octets))
    return made


def trace_of(path: Path, message: str) -> Trace:
    return find(run([path]).tables, message)


def letter(number: int, lines: int = 3) -> bytes:
    return (
        b"Message-ID: <%d@example.org>\r\nSubject: letter %d\r\n\r\n" % (number, number)
        + b"".join(b"text of letter %d, line %d\r\n" % (number, i) for i in range(lines))
        + b".\r\n"
    )


def transaction(talk: Talk, number: int, lines: int = 3) -> Talk:
    talk.c(b"MAIL FROM:<alice%d@example.org>\r\n" % number).s(b"250 2.1.0 sender %d\r\n" % number)
    talk.c(b"RCPT TO:<bob%d@example.net>\r\n" % number).s(b"250 2.1.5 recipient %d\r\n" % number)
    return talk.c(b"DATA\r\n").s(b"354 go on\r\n").c(letter(number, lines)).s(b"250 2.0.0 queued as Q%d\r\n" % number)


def three_letters() -> Talk:
    """One connection that carries three messages."""
    talk = Talk().open().s(b"220 mx.example.net ESMTP\r\n").c(b"EHLO mta.example.org\r\n").s(b"250 mx.example.net\r\n")
    for number in (1, 2, 3):
        transaction(talk, number, 400)
    return talk.c(b"QUIT\r\n").s(b"221 2.0.0 bye\r\n").close()


def test_a_message_with_connections_of_its_own_is_taken_whole(tmp_path):
    analysis = analyzer.analyze(STORY)
    count = analysis.slice("<story-1@example.org>", tmp_path / "one.pcapng")
    all_frames, mine = frames(STORY), frames(tmp_path / "one.pcapng")
    told = analysis.trace("<story-1@example.org>")
    wanted = {number for row in told.dns for number in (row.frame, row.reply_frame)}
    for session in told.sessions:  # in the story these connections overlap with nothing but lookups
        wanted |= {
            number
            for number, (*_, octets) in enumerate(all_frames, 1)
            if octets[23] == 6
            and {octets[34:36], octets[36:38]} == {p.to_bytes(2) for p in (session.client_port, session.server_port)}
        }
    assert mine == [frame for number, frame in enumerate(all_frames, 1) if number in wanted]
    assert count == len(mine) == len(wanted)


@pytest.mark.parametrize("message", ["<story-1@example.org>", "<story-2@example.org>"])
def test_the_slice_tells_the_same_story(tmp_path, message):
    analyzer.analyze(STORY).slice(message, tmp_path / "one.pcapng")
    before, after = trace_of(STORY, message), trace_of(tmp_path / "one.pcapng", message)
    assert [(h.kind, h.client_ip, h.server_role, h.sha256, h.outcome, h.queue_id, h.ts_start) for h in after.hops] == [
        (h.kind, h.client_ip, h.server_role, h.sha256, h.outcome, h.queue_id, h.ts_start) for h in before.hops
    ]
    assert [(d.qname, d.qtype, d.answers) for d in after.dns] == [(d.qname, d.qtype, d.answers) for d in before.dns]
    assert run([tmp_path / "one.pcapng"]).tables.count("messages") == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nothing_of_another_message_leaves_a_shared_connection(tmp_path, number):
    path = capture(tmp_path / "mail.pcapng", three_letters().segments)
    analyzer.analyze(path).slice(f"<{number}@example.org>", tmp_path / "one.pcapng")
    octets = (tmp_path / "one.pcapng").read_bytes()
    for other in {1, 2, 3} - {number}:
        for words in (b"alice%d", b"sender %d", b"recipient %d", b"letter %d", b"queued as Q%d"):
            assert words % other not in octets
    assert all(words in octets for words in (b"220 mx", b"EHLO", b"QUIT", b"221 2.0.0"))
    mine = trace_of(tmp_path / "one.pcapng", f"<{number}@example.org>").hops[0]
    assert (mine.sha256, mine.complete) == (trace_of(path, f"<{number}@example.org>").hops[0].sha256, True)


def test_a_late_copy_goes_with_what_it_repeats(tmp_path):
    talk = three_letters()
    data = {n: next(s for s in talk.segments if b"text of letter %d" % n in s.data) for n in (1, 2)}
    end = next(i for i, s in enumerate(talk.segments) if s.data == b"QUIT\r\n")
    late = [data[n].but(ts=talk.segments[end].ts - n) for n in (2, 1)]
    path = capture(tmp_path / "mail.pcapng", [*talk.segments[:end], *late, *talk.segments[end:]])
    analyzer.analyze(path).slice("<1@example.org>", tmp_path / "one.pcapng")
    taken = [octets for *_, octets in frames(tmp_path / "one.pcapng")]
    assert sum(data[1].data in octets for octets in taken) == 2
    assert not any(data[2].data in octets for octets in taken)


def test_the_frame_in_which_two_messages_meet_is_of_both(tmp_path):
    talk = Talk().open().s(b"220 mx ESMTP\r\n").c(b"EHLO c\r\n").s(b"250-mx\r\n250 PIPELINING\r\n")
    opening = b"MAIL FROM:<a%d@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
    replies = b"250 ok\r\n250 ok\r\n354 go\r\n"
    talk.c(opening % 1).s(replies).c(letter(1) + opening % 2).s(b"250 queued as Q1\r\n" + replies)
    talk.c(letter(2)).s(b"250 queued as Q2\r\n").c(b"QUIT\r\n").s(b"221 bye\r\n").close()
    path = capture(tmp_path / "mail.pcapng", talk.segments)
    for number in (1, 2):
        analyzer.analyze(path).slice(f"<{number}@example.org>", tmp_path / "one.pcapng")
        octets = (tmp_path / "one.pcapng").read_bytes()
        assert letter(number) in octets
        assert (letter(2) in octets) == (number == 2)


def test_taps_keep_their_interfaces_link_types_and_times(tmp_path):
    talk = three_letters()
    near = capture(tmp_path / "near.pcapng", talk.segments, b"eth7")
    raw = [b"".join([*headers(s), s.data]) for s in talk.segments]
    shift = 300_000  # the other tap sees all a little later
    records = [
        writer.record(data, (s.ts + shift) // 10**9, (s.ts + shift) % 10**9) for s, data in zip(talk.segments, raw, strict=True)
    ]
    far = tmp_path / "far.pcap"
    far.write_bytes(writer.pcap_header(magic=0xA1B23C4D, linktype=101) + b"".join(records))
    analyzer.analyze([near, far]).slice("<2@example.org>", tmp_path / "one.pcapng")
    info = SourceInfo("one", interfaces=[])
    batches = list(files.read(tmp_path / "one.pcapng", Limits(), info))
    assert info.interfaces is not None
    assert [(i.linktype, i.name) for i in info.interfaces] == [(1, b"eth7"), (101, str(far).encode())]
    taken = frames(tmp_path / "one.pcapng")
    assert [ts for ts, *_ in taken] == sorted(ts for ts, *_ in taken)
    one, two = ([f for f in taken if f[1] == linktype] for linktype in (1, 101))
    assert [(ts + shift, octets[14:]) for ts, _, _, octets in one] == [(ts, octets) for ts, _, _, octets in two]
    assert sum(len(batch) for batch in batches) == len(taken)
    assert b"letter 1" not in (tmp_path / "one.pcapng").read_bytes()


def test_a_connection_that_goes_on_in_the_next_file(tmp_path):
    segments = three_letters().segments
    cut = len(segments) // 2
    parts = [capture(tmp_path / "a.pcapng", segments[:cut]), capture(tmp_path / "b.pcapng", segments[cut:])]
    whole = capture(tmp_path / "whole.pcapng", segments)
    analyzer.analyze(parts).slice("<2@example.org>", tmp_path / "two.pcapng")
    analyzer.analyze(whole).slice("<2@example.org>", tmp_path / "one.pcapng")
    assert [f[3] for f in frames(tmp_path / "two.pcapng")] == [f[3] for f in frames(tmp_path / "one.pcapng")]


def test_tries_to_connect_that_came_to_nothing_are_taken_with_their_answers():
    refused = Talk(server=(0x0A000003, 25)).add(0, SYN).add(1, RST | ACK)
    strange = Talk(client=(0x0A0000FF, 999), server=(0x0A000004, 25)).add(0, SYN).add(1, RST | ACK)
    used_again = Talk(server=(0x0A000003, 25), ts=T0 + 10**12).open()
    segments = [*refused.segments, *strange.segments, *used_again.segments]
    picker = Picker(Limits(), [], [], [], [("test.pcap", 1, "connect of hop 2")])
    picker.feed(craft.batch([craft.Frame(ETHERNET + b"".join([*headers(s), s.data]), s.ts) for s in segments]))
    assert picker.chosen == {"test.pcap": {1: "connect of hop 2", 2: "connect of hop 2"}}


def question(fragments: int) -> list[bytes]:
    """IPv4 packets of one UDP datagram, in so many fragments."""
    name = b"\x03www\x07example\x03org\x00\x00\x01\x00\x01"
    answer = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xc0\x00\x02\x01"
    message = b"\x12\x34\x81\x80\x00\x01\x00\x40\x00\x00\x00\x00" + name + answer * 64
    datagram = (53).to_bytes(2) + (40000).to_bytes(2) + (8 + len(message)).to_bytes(2) + bytes(2) + message
    size = -(-len(datagram) // fragments // 8) * 8
    made = []
    for at in range(0, len(datagram), size):
        part = datagram[at : at + size]
        more = 0x2000 if at + size < len(datagram) else 0
        made.append(
            b"\x45\x00" + (20 + len(part)).to_bytes(2) + b"\x00\x07" + (more | at // 8).to_bytes(2) + b"\x40\x11\x00\x00"
            b"\x0a\x00\x00\x35\x0a\x00\x00\x01" + part
        )
    return made


def test_fragments_come_with_the_packet_they_make():
    parts = question(3)
    ends = ("10.0.0.1", 40000, "10.0.0.53", 53)
    picker = Picker(Limits(), [], [Question("test.pcap", ends, 0, 10, 0x1234, "lookup")], [], [])
    stranger = question(2)[0][:4] + b"\x00\x08" + question(2)[0][6:]
    picker.feed(craft.batch([craft.Frame(octets, 5, craft.RAW) for octets in (parts[0], stranger, *parts[1:])]))
    assert sorted(picker.chosen["test.pcap"]) == [1, 3, 4]


def test_each_frame_says_where_it_comes_from(tmp_path):
    path = capture(tmp_path / "mail.pcapng", three_letters().segments)
    analyzer.analyze(path).slice("<2@example.org>", tmp_path / "one.pcapng")
    octets = (tmp_path / "one.pcapng").read_bytes()
    hop = trace_of(path, "<2@example.org>").hops[0]
    assert f"mailhop: mail of hop 1, frame {hop.first_frame} of {path}".encode() in octets


def test_what_can_be_read_once_only_is_refused(tmp_path):
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe:
        os.write(write_end, STORY.read_bytes()[:60_000])
        os.close(write_end)
        analysis = analyzer.analyze(pipe)
        with pytest.raises(analyzer.MailhopError, match="can be read once only"):
            analysis.slice("<story-1@example.org>", tmp_path / "one.pcapng")
    assert os.listdir(tmp_path) == []


def test_an_open_file_is_read_again_from_where_it_stood(tmp_path):
    (tmp_path / "mixed").write_bytes(b"preface" + STORY.read_bytes())
    with open(tmp_path / "mixed", "rb") as file:
        file.seek(7)
        assert analyzer.analyze(file).slice("<story-1@example.org>", tmp_path / "one.pcapng") > 0


def test_a_capture_is_never_overwritten(tmp_path):
    path = tmp_path / "story.pcapng"
    shutil.copy(STORY, path)
    with pytest.raises(analyzer.MailhopError, match="is one of the captures"):
        analyzer.analyze(path).slice("<story-1@example.org>", path)
    assert path.read_bytes() == STORY.read_bytes()


def test_the_command_takes_standard_input(tmp_path):
    command = [sys.executable, "-m", "analyzer", "slice", "-", "--message-id", "story-2@example.org", "-w", str(tmp_path / "o")]
    done = subprocess.run(command, input=STORY.read_bytes(), capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"packets of trace" in done.stderr
    assert len(frames(tmp_path / "o")) == analyzer.analyze(STORY).slice("<story-2@example.org>", tmp_path / "p")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="no tshark here to read the slice with")
def test_tshark_finds_every_frame_of_the_message_and_no_other(tmp_path):
    def columns(path: Path, *more: str) -> set[tuple[str, ...]]:
        fields = ["-e", "frame.time_epoch", "-e", "frame.len", "-e", "tcp.seq_raw", "-e", "dns.id"]
        done = subprocess.run(
            ["tshark", "-n", "-r", str(path), *more, "-T", "fields", *fields], capture_output=True, text=True, check=True
        )
        return {tuple(line.split("\t")) for line in done.stdout.splitlines()}

    analysis = analyzer.analyze(STORY)
    analysis.slice("<story-1@example.org>", tmp_path / "one.pcapng")
    told = analysis.trace("<story-1@example.org>")
    streams = " || ".join(session.wireshark for session in told.sessions)
    lookups = " || ".join(f"frame.number == {n}" for row in told.dns for n in (row.frame, row.reply_frame))
    assert columns(tmp_path / "one.pcapng") == columns(STORY, "-Y", f"{streams} || {lookups}")


def told(number: int) -> bytes:
    """A message as a mailbox hands it out."""
    return letter(number, 20).removesuffix(b".\r\n")


def pop3_mailbox() -> Talk:
    """A reader fetches two messages of three, looks at the top of the third, and deletes."""
    talk = Talk(server=(0x0A000002, 110)).open().s(b"+OK ready\r\n")
    for said, answer in ((b"USER bob", b"+OK"), (b"PASS x", b"+OK"), (b"STAT", b"+OK 3 900")):
        talk.c(said + b"\r\n").s(answer + b"\r\n")
    talk.c(b"RETR 1\r\n").s(b"+OK\r\n" + letter(1, 20)).c(b"TOP 3 0\r\n").s(b"+OK\r\n" + letter(3, 1))
    talk.c(b"RETR 2\r\n").s(b"+OK\r\n" + letter(2, 20)).c(b"DELE 2\r\n").s(b"+OK deleted 2\r\n").c(b"DELE 1\r\n").s(
        b"+OK deleted 1\r\n"
    )
    return talk.c(b"QUIT\r\n").s(b"+OK bye\r\n").close()


def imap_mailbox(together: bool) -> Talk:
    """A reader lists three messages, then fetches two of them: by one command, or each by its own."""
    talk = Talk(server=(0x0A000002, 143)).open().s(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
    talk.c(b"a LOGIN bob x\r\n").s(b"a OK\r\n").c(b"b SELECT INBOX\r\n").s(b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7] .\r\nb OK\r\n")
    listed = b"".join(
        b'* %d FETCH (UID %d ENVELOPE (NIL "letter %d" NIL NIL NIL NIL NIL NIL NIL NIL))\r\n' % (n, n, n) for n in (1, 2, 3)
    )
    talk.c(b"c UID FETCH 1:3 (ENVELOPE)\r\n").s(listed + b"c OK\r\n")
    if together:
        talk.c(b"d UID FETCH 1:2 (BODY[])\r\n")
    for n in (1, 2):
        if not together:
            talk.c(b"d%d UID FETCH %d (BODY[])\r\n" % (n, n))
        talk.s(b"* %d FETCH (UID %d BODY[] {%d}\r\n" % (n, n, len(told(n))) + told(n) + b")\r\n")
        if not together:
            talk.s(b"d%d OK\r\n" % n)
            talk.c(b"e%d UID STORE %d +FLAGS (\\Seen)\r\n" % (n, n)).s(b"e%d OK stored %d\r\n" % (n, n))
    if together:
        talk.s(b"d OK\r\n")
    return talk.c(b"z LOGOUT\r\n").s(b"* BYE\r\nz OK\r\n").close()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "talk", [pop3_mailbox(), imap_mailbox(False), imap_mailbox(True)], ids=["pop3", "imap, one by one", "imap, together"]
)
def test_a_mailbox_gives_away_no_other_message(tmp_path, talk, number):
    path = capture(tmp_path / "mail.pcapng", talk.segments)
    analyzer.analyze(path).slice(f"<{number}@example.org>", tmp_path / "one.pcapng")
    octets = (tmp_path / "one.pcapng").read_bytes()
    assert told(number) in octets
    assert all(b"letter %d" % other not in octets for other in {1, 2, 3} - {number})
    assert (b"LOGIN" in octets or b"USER" in octets) and (b"LOGOUT" in octets or b"QUIT" in octets)
    hop = trace_of(tmp_path / "one.pcapng", f"<{number}@example.org>").hops[0]
    assert (hop.kind, hop.complete, hop.size) == ("retrieve", True, len(told(number)))
