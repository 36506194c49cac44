"""The overview: what was read, who took part, which messages, what was odd."""

import synthetic

from analyzer.limits import Limits
from analyzer.mail.records import Delivery
from analyzer.tables import Tables
from analyzer.views.overview import LISTED, compose, next_steps, overview
from analyzer.views.text import Look, Page, cells, plain
from analyzer.wire.anomalies import Anomaly
from analyzer.wire.types import SourceInfo


def test_the_story_at_a_glance(tables):
    assert overview(tables, synthetic.sources()).splitlines() == [
        "story.pcapng  pcapng · 131 frames · 2023-11-14 22:13:20 UTC + 62 min",
        "  sessions  SMTP 2 (1 TLS, 1 decrypted) · IMAP 1 (1 TLS) · 1 DNS question",
        "            1 session in TLS cannot be read without keys: --keylog FILE",
        "  hosts     6:  MUA 1  MSA 1  MTA 1  MX 1  MDA 1  IMAP 1  resolver 1",
        "  messages  1: 1 mixed",
        "  trace     start     from               to                  hops    total  outcome    subject/reply",
        "  7f3c9a10  22:13:20  alice@example.org  carol@example.… +1     4   4.81 s  mixed      550 5.1.1 No…",
        "  odd       1 line_too_long",
    ]


def test_a_capture_without_mail_says_so():
    with Tables() as tables:
        tables.add("anomalies", Anomaly(None, "", None, None, "no_mail", "7 packets: TCP port 443 (100 %)", None))
        text = overview(tables, [SourceInfo("web.pcap", "pcap", 100, 7, synthetic.at(0), synthetic.at(1))])
    assert "no mail · 7 packets: TCP port 443 (100 %)" in text and "odd" not in text
    assert "messages  none" in text


def test_many_files_are_counted_and_the_first_described():
    with Tables() as tables:
        lines = overview(tables, [SourceInfo(f"{n:03}.pcap", "pcap", 1, 10) for n in range(100)]).splitlines()
    assert lines[0] == "000.pcap  pcap · 10 frames"
    assert "and 90 files more with 900 frames" in lines
    assert len(lines) < 20


def test_many_messages_are_counted_and_the_first_listed():
    with Tables() as tables:
        for n in range(50):
            made = synthetic.message(
                trace_id=f"{n:016x}", ts_first=synthetic.at(n), elapsed_s=float(n), outcome=("delivered", "deferred")[n % 2]
            )
            tables.add("messages", made)
        short = compose(tables, [], Look())
        every = compose(tables, [], Look(), everything=True)
    assert "50: 25 delivered · 25 deferred" in str(short)
    assert "median 25.0 s, slowest 49.0 s (00000000)" in str(short)
    assert f"{50 - LISTED} more: -v lists them all" in str(short)
    assert len(every.lines) == len(short.lines) - 1 + 50 - LISTED


def test_a_password_without_tls_is_told():
    with Tables() as tables:
        tables.add("sessions", synthetic.session(1, auth_mechanism="PLAIN", auth_ok=True))
        tables.add("sessions", synthetic.session(2, auth_mechanism="CRAM-MD5", auth_ok=True))
        tables.add("sessions", synthetic.session(3, auth_mechanism="LOGIN", auth_ok=True, tls="starttls"))
        assert "1 login sent a password without TLS" in overview(tables, [])


def test_folded_anomalies_are_counted_in_full():
    with Tables(Limits(folded_anomalies=3)) as tables:
        for n in range(40):
            tables.add("anomalies", synthetic.row(Anomaly, ts=n, source="a", name="reply_not_seen", detail=""))
        assert "40 reply_not_seen" in overview(tables, [])
        assert "40  reply_not_seen  A reply" in str(compose(tables, [], Look(), everything=True))


def test_messages_of_several_days_show_the_day():
    with Tables() as tables:
        for n in range(2):
            tables.add("messages", synthetic.message(trace_id=f"{n:016x}", ts_first=synthetic.at(n * 86_400)))
        text = overview(tables, [])
    assert "11-14 22:13:20" in text
    assert "11-15 22:13:20" in text


def test_nothing_is_wider_than_the_page_and_nothing_acts():
    bad = "\x1b]52;c;cm0gLXJmIH4=\x07\u202e\u65e5" * 9
    with Tables() as tables:
        tables.add("messages", synthetic.message(mail_from=bad, subject=bad, outcome="delivered"))
        tables.add(
            "deliveries",
            synthetic.row(Delivery, trace_id=synthetic.TRACE, recipient=bad, outcome="delivered", attempts=1, reply_text=bad),
        )
        for width in (60, 80, 100, 200):
            page = compose(tables, [], Look(width))
            next_steps(page, tables, [f"{bad}.pcap"], None)
            lines = list(plain(page.lines))
            assert all(cells(line) <= width for line in lines if not line.lstrip().startswith(("next", "mailhop")))
            assert not any(c in "\x1b\x07\u202e" for line in lines for c in line)


def test_next_steps_can_be_copied(tables):
    page = Page(Look())
    next_steps(page, tables, ["my file.pcap"], None)
    assert str(page).splitlines() == [
        "next  mailhop trace 'my file.pcap' --trace-id 7f3c9a10",
        "      mailhop analyze 'my file.pcap' -o tables/ --format jsonl,csv",
    ]
