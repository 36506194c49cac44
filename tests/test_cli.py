"""The command: what it prints where, and with which exit status."""

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic

from analyzer.cli import cli, main
from analyzer.cli_shared import progress
from analyzer.errors import CaptureError, KeyLogError
from analyzer.mail.records import RecipientRow
from analyzer.tables import TABLES, Tables
from analyzer.wire.types import Damage

Runner = Callable[..., SimpleNamespace]


@pytest.fixture
def analysis(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the pipeline will have found, whatever it is given; `asked` is what it was given."""
    made = SimpleNamespace(tables=tables, sources=synthetic.sources(), damaged=False, unused_secrets=0, asked=None, error=None)

    def run(inputs: list[str], **options: object) -> SimpleNamespace:
        made.asked = (list(inputs), options)
        if made.error is not None:
            raise made.error
        return made

    monkeypatch.setitem(sys.modules, "analyzer.pipeline", SimpleNamespace(run=run))
    return made


@pytest.fixture
def mailhop(capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run the command in this process."""

    def run(*arguments: str) -> SimpleNamespace:
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err, lines=err.splitlines())

    return run


def one_line(done: SimpleNamespace) -> str:
    """What the run complained about: one line, and nothing else."""
    assert done.out == ""
    (line,) = done.lines
    assert line.startswith("mailhop: ")
    return str(line)


# analyze


def test_analyze_prints_the_overview_and_writes_no_table(mailhop, analysis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = mailhop("analyze", "mail.pcap")
    assert (done.status, done.err) == (0, "")
    assert "story.pcapng  pcapng · 131 frames" in done.out
    assert "next  mailhop trace mail.pcap --trace-id 7f3c9a10" in done.out
    assert os.listdir(tmp_path) == []


def test_analyze_writes_every_table(mailhop, analysis, tmp_path):
    done = mailhop("analyze", "mail.pcap", "-o", str(tmp_path / "new" / "dir"), "--format", "jsonl,csv")
    assert done.status == 0
    assert sorted(os.listdir(tmp_path / "new" / "dir")) == sorted(
        f"{name}.{suffix}" for name in TABLES for suffix in ("jsonl", "csv")
    )
    assert "(jsonl, csv)" in done.out


def test_captures_come_as_arguments_or_behind_r(mailhop, analysis):
    mailhop("analyze", "a.pcap", "-r", "b.pcap", "-r", "-c.pcap", "--keylog", "k1", "--keylog", "k2", "--jobs", "4")
    inputs, options = analysis.asked
    assert inputs == ["a.pcap", "b.pcap", "-c.pcap"]
    assert options["keylogs"] == ("k1", "k2")
    mailhop("analyze", "--", "-c.pcap")
    assert analysis.asked[0] == ["-c.pcap"]


def test_quiet_says_nothing_at_all(mailhop, analysis):
    done = mailhop("analyze", "-q", "mail.pcap")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_damage_is_status_1_and_one_line_a_piece_up_to_a_number(mailhop, analysis):
    analysis.damaged = True
    analysis.sources[0].damage = [Damage("story.pcapng", f"cut at byte {n}") for n in range(50)]
    done = mailhop("analyze", "-q", "mail.pcap")
    assert done.status == 1
    assert done.lines[0] == "mailhop: warning: story.pcapng: cut at byte 0"
    assert done.lines[-1] == "mailhop: warning: 30 more; all of them are in the anomalies table"
    assert len(done.lines) == 21


@pytest.mark.parametrize(
    "error",
    [
        CaptureError("no.pcap: no such file"),
        KeyLogError("keys.log holds no key"),
        CaptureError("x\n\x1b[2J is no capture", "give\nanother"),
    ],
)
def test_what_cannot_be_done_is_status_2_and_one_harmless_line(mailhop, analysis, error):
    analysis.error = error
    done = mailhop("analyze", "no.pcap")
    assert done.status == 2
    assert "\x1b" not in one_line(done)


def test_an_interrupt_is_status_130(mailhop, analysis):
    analysis.error = KeyboardInterrupt()
    done = mailhop("analyze", "mail.pcap")
    assert (done.status, done.out, done.err.strip()) == (130, "", "mailhop: interrupted")


@pytest.mark.parametrize(
    "error", [RuntimeError("boom\n\x07"), MemoryError(), RecursionError(), PermissionError(13, "Permission denied", "x")]
)
def test_a_bug_is_one_line_and_never_a_traceback(mailhop, analysis, error):
    analysis.error = error
    done = mailhop("analyze", "mail.pcap")
    assert done.status == 2
    assert "Traceback" not in one_line(done)


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        (["rejected"], 3),
        (["deferred"], 0),
        (["plaintext-auth"], 0),
        (["deferred,plaintext-auth"], 0),
        (["deferred", "rejected"], 3),
    ],
)
def test_fail_on(mailhop, analysis, conditions, status):
    done = mailhop("analyze", "-q", "m.pcap", *(word for condition in conditions for word in ("--fail-on", condition)))
    assert done.status == status
    assert done.lines == (["mailhop: --fail-on rejected: 1 hop"] if status else [])


def test_fail_on_sees_deferred_recipients_and_bare_passwords(mailhop, analysis):
    analysis.tables.add(
        "recipients",
        synthetic.row(RecipientRow, trace_id=synthetic.TRACE, hop=2, recipient="eve@example.net", outcome="deferred"),
    )
    analysis.tables.add("sessions", synthetic.session(9, auth_mechanism="USER"))
    done = mailhop("analyze", "-q", "m.pcap", "--fail-on", "deferred,plaintext-auth")
    assert done.status == 3
    assert done.lines == ["mailhop: --fail-on deferred: 1 hop", "mailhop: --fail-on plaintext-auth: 1 session"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["analyse", "x"], "no such command 'analyse'; did you mean analyze? See mailhop --help"),
        (["analyze", "--keylogs", "x"], "no such option --keylogs; did you mean --keylog? See mailhop analyze --help"),
        (["analyze"], "no capture given; name a file, or - for standard input; see mailhop analyze --help"),
        (["analyze", "x", "--fail-on", "reject"], "no condition 'reject' for --fail-on; did you mean rejected?"),
        (["analyze", "x", "-o", "d", "--format", "jsnl"], "no format 'jsnl'; did you mean jsonl?"),
        (["analyze", "x", "--format", "csv"], "--format without -o writes nothing; name a directory: -o tables/"),
        (["analyze", "-", "-"], "standard input can be read once only; give - once"),
        (["trace", "x", "--json", "--mermaid"], "choose one of --json and --mermaid; see mailhop trace --help"),
        (["schema", "message"], "no table 'message'; did you mean messages?"),
    ],
)
def test_mistakes_of_use_are_told_with_a_way_out(mailhop, analysis, arguments, said):
    done = mailhop(*arguments)
    assert done.status == 2
    assert one_line(done) == f"mailhop: error: {said}"


def test_a_file_for_a_verb_is_understood(mailhop, tmp_path):
    capture = tmp_path / "mail.pcap"
    capture.write_bytes(b"")
    assert f"to read that file: mailhop analyze {capture}" in mailhop(str(capture)).err


# trace


def test_trace_shows_the_first_message(mailhop, analysis):
    done = mailhop("trace", "mail.pcap")
    assert done.status == 0
    assert done.out.startswith("Message <1@example.org>")
    assert done.err == ""


def test_trace_hints_at_other_messages(mailhop, analysis):
    analysis.tables.add("messages", synthetic.message(trace_id="another0", ts_first=synthetic.at(9)))
    done = mailhop("trace", "mail.pcap", "--subject", "minutes")
    assert done.out.startswith("Message <1@example.org>")
    assert done.lines == ["mailhop: 2 messages answer; this is the first. Others: --trace-id another0"]


def test_trace_of_nobodys_message(mailhop, analysis):
    done = mailhop("trace", "mail.pcap", "--rcpt", "nobody@example.net")
    assert done.status == 2
    assert one_line(done) == "mailhop: error: no message answers to --rcpt nobody@example.net; there are <1@example.org>"


def test_trace_as_json_and_mermaid(mailhop, analysis):
    assert json.loads(mailhop("trace", "mail.pcap", "--message-id", "1@example.org", "--json").out)["trace_id"] == synthetic.TRACE
    assert mailhop("trace", "mail.pcap", "--trace-id", "7f3c", "--mermaid").out.startswith("sequenceDiagram\n")


def test_ascii(mailhop, analysis):
    assert mailhop("trace", "mail.pcap", "--ascii").out.isascii()
    assert mailhop("analyze", "mail.pcap", "--ascii").out.isascii()


@pytest.mark.parametrize("verb", ["analyze", "trace", "report", "slice", "extract", "browse"])
def test_a_wrong_expression_is_told_before_the_work_with_its_place(mailhop, analysis, tmp_path, verb):
    more = {"slice": ["-w", "x"], "extract": ["-o", str(tmp_path / "x")]}.get(verb, [])
    done = mailhop(verb, "mail.pcap", *more, "--where", "code>=500 and kode=\x1b[1m")
    assert (done.status, done.out, analysis.asked) == (2, "", None)
    assert done.lines[0].startswith("mailhop: error: --where: no field 'kode', did you mean code ")
    assert done.lines[1:3] == ["  code>=500 and kode=\\x1b[1m", "  " + " " * 14 + "^"]
    assert done.lines[3].startswith("  fields: from rcpt to subject")
    assert os.listdir(tmp_path) == []


def test_where_narrows_overview_tables_and_conditions(mailhop, analysis, tmp_path):
    analysis.tables.add("messages", synthetic.message(trace_id="another0", ts_first=synthetic.at(9), subject="Other"))
    done = mailhop("analyze", "mail.pcap", "--where", "subject~other", "-o", str(tmp_path), "--fail-on", "rejected")
    assert done.status == 0  # the hop that rejected is of the message left out
    assert done.lines == ["mailhop: --where holds for 1 of 2 messages"]
    assert "Other" in done.out and "Minutes" not in done.out
    assert json.loads((tmp_path / "messages.jsonl").read_text())["trace_id"] == "another0"
    assert (tmp_path / "hops.jsonl").read_text() == ""


def test_where_chooses_the_message_to_trace(mailhop, analysis):
    analysis.tables.add("messages", synthetic.message(trace_id="another0", ts_first=synthetic.at(9), subject="Other"))
    assert '"Other"' in mailhop("trace", "mail.pcap", "--where", "subject=other").out
    done = mailhop("trace", "mail.pcap", "--where", "subject=other", "--rcpt", "bob@example.net")
    assert done.status == 2
    assert "no message answers to --rcpt bob@example.net --where subject=other" in one_line(done)


def test_trace_as_a_picture_of_its_own(mailhop, analysis, tmp_path):
    from xml.etree import ElementTree

    done = mailhop("trace", "mail.pcap", "--svg", str(tmp_path / "one.svg"))
    assert done.status == 0
    assert done.lines == [f"mailhop: wrote {tmp_path / 'one.svg'}"]
    picture = ElementTree.parse(tmp_path / "one.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}svg")) == 2
    assert "cannot write" in mailhop("trace", "mail.pcap", "--svg", str(tmp_path)).err


def test_browse_needs_a_terminal(mailhop, analysis):
    done = mailhop("browse", "mail.pcap")
    assert done.status == 2
    assert "browse needs a terminal" in one_line(done)
    assert analysis.asked is None


def test_schema_explains_the_fields_of_where(mailhop):
    from analyzer.tables.where import FIELDS

    out = mailhop("schema", "where").out
    assert all(name in out for name in FIELDS)
    assert list(json.loads(mailhop("schema", "where", "--format", "json").out)) == list(FIELDS)
    assert "| `queue` | seconds |" in mailhop("schema", "where", "--format", "md").out


# the rest


def test_schema_lists_tables_and_explains_columns(mailhop):
    assert [line.split()[0] for line in mailhop("schema").out.splitlines()[: len(TABLES)]] == list(TABLES) or "hops" in mailhop(
        "schema"
    ).out
    text = mailhop("schema", "hops").out
    assert all(column.name in text for column in TABLES["hops"].columns)
    assert "damaged_capture" in mailhop("schema", "anomalies").out
    assert "| `queue_s` | seconds |" in mailhop("schema", "hops", "--format", "md").out
    assert list(json.loads(mailhop("schema", "--format", "json").out)) == list(TABLES)


def test_doctor_says_what_it_found(mailhop):
    done = mailhop("doctor")
    assert done.status == 0
    for word in ("python", "scapy", "dumpcap", "tcpdump", "SSLKEYLOGFILE"):
        assert word in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(mailhop, shell):
    assert "_MAILHOP_COMPLETE" in mailhop("completion", shell).out


def test_completion_knows_the_verbs(command):
    done = command(_MAILHOP_COMPLETE="bash_complete", COMP_WORDS="mailhop an", COMP_CWORD="1")
    assert (done.status, done.out) == (0, "plain,analyze\n")


@pytest.mark.parametrize("verb", list(cli.commands))
def test_every_verb_has_help_with_an_example(mailhop, verb):
    done = mailhop(verb, "--help")
    assert done.status == 0
    assert f"mailhop {verb}" in done.out.split("Example", 1)[1]


def test_version(mailhop):
    from analyzer import __version__

    assert mailhop("--version").out == f"mailhop {__version__}\n"


def test_help_needs_no_library():
    code = "import sys; from analyzer.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "pandas", "scapy", "dns", "rich", "dpkt"} & set(done.stdout.splitlines()[-1].split())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("quiet", "stream", "shown"), [(False, Terminal(), True), (True, Terminal(), False), (False, io.StringIO(), False)]
)
def test_progress_is_shown_on_a_terminal_alone(monkeypatch, quiet, stream, shown):
    monkeypatch.setattr("analyzer.cli_shared.PATIENCE", 0)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with progress(quiet) as report:
        if report is not None:
            report("captures/\x1b[2Jmail.pcap", 500_000, 1_000_000, 12, 3_456)
    for word in ("mail.pcap", "0.5/1.0 MB", "3,456 packets 12 messages"):
        assert (word in stream.getvalue()) == shown
    assert "[2J" not in stream.getvalue().replace("\\x1b[2J", "")


def test_a_slice_has_a_place_before_the_work(mailhop, analysis, tmp_path):
    done = mailhop("slice", "mail.pcap", "-w", str(tmp_path / "none" / "one.pcapng"))
    assert done.status == 2
    assert one_line(done).endswith(f"there is no directory {tmp_path / 'none'}; make it, or name another with -w")
    assert analysis.asked is None


@pytest.mark.parametrize("verb", ["slice", "extract"])
def test_files_need_a_name(mailhop, verb):
    done = mailhop(verb, "mail.pcap")
    assert done.status == 2
    assert f"see mailhop {verb} --help" in one_line(done)


# end to end


def segment(sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes) -> bytes:
    """An Ethernet frame with one TCP segment; the server's port tells the direction."""
    here, there = bytes([192, 0, 2, 10]), bytes([198, 51, 100, 25])
    src, dst = (here, there) if dport == 25 else (there, here)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 0, 0, 64, 6, 0, src, dst)
    return bytes(12) + b"\x08\x00" + ip + struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 65535, 0, 0) + payload


def smtp_capture(subject: bytes = b"Minutes") -> bytes:
    """A pcap of one SMTP session that carries one message."""
    body = b"Message-ID: <1@example.org>\r\nFrom: alice@example.org\r\nSubject: " + subject + b"\r\n\r\nHi\r\n"
    turns = [
        (False, b"220 mx.example.net ESMTP\r\n"),
        (True, b"EHLO msa.example.org\r\n"),
        (False, b"250 mx.example.net\r\n"),
        (True, b"MAIL FROM:<alice@example.org>\r\n"),
        (False, b"250 2.1.0 Ok\r\n"),
        (True, b"RCPT TO:<bob@example.net>\r\n"),
        (False, b"250 2.1.5 Ok\r\n"),
        (True, b"DATA\r\n"),
        (False, b"354 Go on\r\n"),
        (True, body + b".\r\n"),
        (False, b"250 2.0.0 Ok: queued as 4Xyz12\r\n"),
        (True, b"QUIT\r\n"),
        (False, b"221 2.0.0 Bye\r\n"),
    ]
    seq = [1000, 5000]
    frames = [
        segment(40000, 25, 1000, 0, 2, b""),
        segment(25, 40000, 5000, 1001, 18, b""),
        segment(40000, 25, 1001, 5001, 16, b""),
    ]
    seq = {True: 1001, False: 5001}
    for client, data in turns:
        ports = (40000, 25) if client else (25, 40000)
        frames.append(segment(*ports, seq[client], seq[not client], 24, data))
        seq[client] += len(data)
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return header + b"".join(struct.pack("<IIII", 1_700_000_000 + i, 0, len(f), len(f)) + f for i, f in enumerate(frames))


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Runner]:
    """Run the command as a process of its own, in an empty directory."""
    root = Path(__file__).parents[1]

    def run(*arguments: str | bytes, stdin: bytes = b"", **environment: str) -> SimpleNamespace:
        done = subprocess.run(
            [sys.executable, "-m", "analyzer", *arguments],
            input=stdin,
            check=False,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8", **environment},
            timeout=60,
        )
        assert b"Traceback" not in done.stderr
        return SimpleNamespace(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    return run


def test_a_capture_from_standard_input(command):
    done = command("analyze", "-", stdin=smtp_capture())
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("-  pcap")
    assert "alice@example.org" in done.out


@pytest.mark.parametrize("name", [b"-r.pcap", b"a\x1b[31mb\nc.pcap", b"\xff.pcap", b"mail box.pcap"])
def test_odd_file_names_are_read_and_shown_harmless(command, tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(smtp_capture())
    done = command("analyze", "-r", name, "-o", "out", "--format", "jsonl,csv,sqlite")
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "hops.jsonl").read_text().splitlines()]
    assert row["message_id"] == "<1@example.org>"


def test_a_hostile_subject_shows_and_does_not_act(command, tmp_path):
    (tmp_path / "m.pcap").write_bytes(smtp_capture(b"\x1b]52;c;eA==\x07\x9b31m \x7f"))
    done = command("trace", "m.pcap")
    assert done.status == 0
    assert "\\x1b]52;c;eA==\\x07" in done.out
    assert not set(done.out) & set("\x1b\x07\x7f\x9b")


def test_messages_and_packets_to_take_along(command, tmp_path):
    (tmp_path / "m.pcap").write_bytes(smtp_capture())
    done = command("extract", "m.pcap", "-o", "out", "--mbox", "all.mbox", "--where", "rcpt=bob@example.net")
    assert (done.status, done.out) == (0, "")
    assert done.err == "mailhop: wrote 1 file, of 1 message, to out\n"
    (name,) = [name for name in os.listdir(tmp_path / "out") if name.endswith(".eml")]
    assert (tmp_path / "out" / name).read_bytes().startswith(b"Message-ID: <1@example.org>\r\n")
    assert (tmp_path / "all.mbox").read_bytes().startswith(b"From alice@example.org Tue Nov 14 22:13:")
    done = command("slice", "-", "-w", "one.pcapng", stdin=smtp_capture())
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith("mailhop: wrote one.pcapng: 16 packets of trace ")
    assert command("analyze", "one.pcapng", "-q").status == 0
    done = command("slice", "m.pcap", "-w", "m.pcap")
    assert (done.status, done.err) == (2, "mailhop: error: m.pcap is one of the captures; name another file with -w\n")


def test_a_cut_capture_is_status_1_with_what_was_read(command, tmp_path):
    (tmp_path / "cut.pcap").write_bytes(smtp_capture()[:-20])
    done = command("analyze", "cut.pcap", "-o", "out")
    assert done.status == 1
    assert done.err.startswith("mailhop: warning: cut.pcap: ")
    assert len((tmp_path / "out" / "hops.jsonl").read_text().splitlines()) == 1
    assert "damaged_capture" in (tmp_path / "out" / "anomalies.jsonl").read_text()


@pytest.mark.parametrize("content", [None, b"", b"From nobody\n", b"\x00" * 100])
def test_what_is_no_capture_is_status_2_and_one_line(command, tmp_path, content):
    if content is not None:
        (tmp_path / "x.pcap").write_bytes(content)
    done = command("analyze", "x.pcap", "-o", "out")
    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert "x.pcap" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"not a key log\n"])
def test_a_bad_key_log_is_status_2(command, tmp_path, content):
    (tmp_path / "m.pcap").write_bytes(smtp_capture())
    if content is not None:
        (tmp_path / "keys.log").write_bytes(content)
    done = command("analyze", "m.pcap", "--keylog", "keys.log")
    assert (done.status, done.out) == (2, "")
    assert "keys.log" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_reader_that_leaves_is_no_error(tmp_path):
    (tmp_path / "m.pcap").write_bytes(smtp_capture())
    root = str(Path(__file__).parents[1])
    run = f"{sys.executable} -m analyzer analyze m.pcap -o out; echo status $? >&2"
    done = subprocess.run(
        ["sh", "-c", f"({run}) | true"],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "status 0\n"
    assert (tmp_path / "out" / "hops.jsonl").exists()


def test_a_terminal_without_utf8_gets_ascii(command, tmp_path):
    (tmp_path / "m.pcap").write_bytes(smtp_capture("J\u00fcrgen \u2192".encode()))
    done = command("trace", "m.pcap", PYTHONIOENCODING="latin-1")
    assert done.status == 0
    assert done.out.isascii()
