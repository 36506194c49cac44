"""Messages as files: every octet as it crossed the wire, under names that traffic has no part in."""

import email
import email.policy
import hashlib
import json
import mailbox
import os
from pathlib import Path

import pytest
from test_slice import capture, letter, three_letters, transaction
from wire.talk import Talk

import analyzer
from analyzer.pipeline import run

STORY = Path(__file__).resolve().parent.parent / "captures" / "story.pcapng"
HOSTILE = (
    b"Message-ID: <../../../etc/passwd>\r\nSubject: ../x\x1b[31m\r\nFrom: a@b\r\n\r\n"
    b"From the start\r\n>From quoted\r\n..stuffed\r\nbare\nlf\r\nlong " + b"x" * 200_000 + b"\r\n"
)


def manifest(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "manifest.jsonl").read_text().splitlines()]


def one_letter(octets: bytes) -> Talk:
    """A connection that carries these message octets."""
    stuffed = octets.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    talk = (
        Talk().open().s(b"220 mx ESMTP\r\n").c(b"EHLO c\r\n").s(b"250 mx\r\n").c(b"MAIL FROM:<a@b.example>\r\n").s(b"250 ok\r\n")
    )
    talk.c(b"RCPT TO:<c@d.example>\r\n").s(b"250 ok\r\n").c(b"DATA\r\n").s(b"354 go\r\n").c(stuffed).s(b"250 ok\r\n")
    return talk.c(b"QUIT\r\n").s(b"221 bye\r\n").close()


def test_files_have_the_octets_that_the_table_has_the_hash_of(tmp_path):
    done = analyzer.extract(STORY, tmp_path)
    hops = {(h.trace_id, h.hop): h for h in run([STORY]).tables.rows("hops")}
    rows = manifest(tmp_path)
    assert len(rows) == len(hops) and done.messages == 2 and done.incomplete == 0
    for row in rows:
        octets = (tmp_path / str(row["file"])).read_bytes()
        hop = hops[str(row["trace_id"]), int(str(row["hop"]))]
        assert hashlib.sha256(octets).hexdigest() == row["sha256"] == hop.sha256
        assert len(octets) == row["size"] == hop.size
        assert octets.count(b"\n") == octets.count(b"\r\n")
        parsed = email.message_from_bytes(octets, policy=email.policy.default)
        assert (parsed["Message-ID"], parsed["Subject"]) == (row["message_id"], row["subject"])
        assert not parsed.defects
    assert set(os.listdir(tmp_path)) == {str(row["file"]) for row in rows} | {"manifest.jsonl"}
    assert done.files == len({row["sha256"] for row in rows}) < len(rows)


def test_hostile_words_touch_no_name_and_no_octet(tmp_path):
    path = capture(tmp_path / "mail.pcapng", one_letter(HOSTILE).segments)
    analyzer.extract(path, tmp_path / "out", mbox=tmp_path / "out.mbox")
    (row,) = manifest(tmp_path / "out")
    assert row["file"] == f"{row['trace_id']}-01.eml"
    assert (tmp_path / "out" / str(row["file"])).read_bytes() == HOSTILE
    assert sorted(os.listdir(tmp_path)) == ["mail.pcapng", "out", "out.mbox"]
    assert (tmp_path / "out" / "manifest.jsonl").read_text().isascii()


def test_an_mbox_quotes_what_looks_like_its_own_lines(tmp_path):
    path = capture(tmp_path / "mail.pcapng", one_letter(HOSTILE).segments)
    analyzer.extract(path, tmp_path / "out", mbox=tmp_path / "out.mbox")
    (posted,) = mailbox.mbox(tmp_path / "out.mbox")
    assert posted.get_from().startswith("a@b.example Tue Nov 14 22:13:20 2023")
    lines = posted.get_payload(decode=True).split(b"\n")
    assert lines[:3] == [b">From the start", b">>From quoted", b"..stuffed"]
    unquoted = b"\n".join(line[1:] if line.lstrip(b">").startswith(b"From ") else line for line in lines)
    assert unquoted.rstrip(b"\n") == HOSTILE.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n").rstrip(b"\n")


def test_an_mbox_has_each_message_once_in_its_last_form(tmp_path):
    analyzer.extract(STORY, tmp_path / "out", mbox=tmp_path / "out.mbox")
    posted = list(mailbox.mbox(tmp_path / "out.mbox"))
    assert [m["Message-ID"] for m in posted] == ["<story-1@example.org>", "<story-2@example.org>"]
    assert all(m["Received"] for m in posted)


def test_what_is_incomplete_says_so_and_is_not_filled(tmp_path):
    talk = three_letters()
    lost = next(i for i, s in enumerate(talk.segments) if b"text of letter 2, line 100" in s.data)
    path = capture(tmp_path / "mail.pcapng", [*talk.segments[:lost], *talk.segments[lost + 1 :]])
    done = analyzer.extract(path, tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [row["complete"] for row in rows] == [True, False, True]
    assert str(rows[1]["file"]).endswith(".incomplete.eml") and done.incomplete == 1
    octets = (tmp_path / "out" / str(rows[1]["file"])).read_bytes()
    whole = letter(2, 400).removesuffix(b".\r\n")
    hole = len(talk.segments[lost].data)
    assert (len(octets), rows[1]["missing_bytes"]) == (len(whole) - hole, hole)
    at = next(i for i in range(len(octets)) if octets[i] != whole[i])
    assert octets == whole[:at] + whole[at + hole :]
    assert hashlib.sha256(octets).hexdigest() == rows[1]["sha256"]


def test_interleaved_messages_are_kept_apart(tmp_path):
    talks = []
    for n in (1, 2):
        talk = Talk(client=(0x0A000001, 41000 + n)).open().s(b"220 mx ESMTP\r\n").c(b"EHLO c\r\n").s(b"250 mx\r\n")
        talks.append(transaction(talk, n, 3000).c(b"QUIT\r\n").s(b"221 bye\r\n").close())
    segments = sorted((s for talk in talks for s in talk.segments), key=lambda s: s.ts)
    analyzer.extract(capture(tmp_path / "mail.pcapng", segments), tmp_path / "out", limits=analyzer.Limits(batch_bytes=4096))
    files = {row["subject"]: (tmp_path / "out" / str(row["file"])).read_bytes() for row in manifest(tmp_path / "out")}
    assert files == {f"letter {n}": letter(n, 3000).removesuffix(b".\r\n") for n in (1, 2)}


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(analyzer.MailhopError, match="cannot write"):
        analyzer.extract(STORY, tmp_path / "file")
