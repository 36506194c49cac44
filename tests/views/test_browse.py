"""browse: what is on the screen, what keys do, and that nothing of the traffic acts on the terminal."""

import os
import select
import sys
import time
from pathlib import Path

import pytest
import synthetic

from analyzer.tables import Tables
from analyzer.views.browse import Browser
from analyzer.views.text import cells

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def browser(tables: Tables) -> Browser:
    tables.add("messages", synthetic.message(trace_id="second00", ts_first=synthetic.at(60), subject="Second \x1b[31m\u202e"))
    tables.add("messages", synthetic.message(trace_id="third000", ts_first=synthetic.at(120), subject="第三の手紙" * 20))
    made = Browser(tables, "mail.pcap")
    made.resize(100, 12)
    return made


def screen(browser: Browser) -> list[str]:
    return ["".join(span.text for span in line).rstrip() for line in browser.lines()]


def press(browser: Browser, *keys: str) -> list[str]:
    for key in keys:
        browser.key(key)
    return screen(browser)


def chosen(browser: Browser) -> str:
    (line,) = [line for line in screen(browser) if line.startswith("> ")]
    return line


def test_the_list_shows_messages_and_keys(browser):
    lines = screen(browser)
    assert lines[0] == "mail.pcap  3 of 3 messages"
    assert lines[1].split() == ["start", "from", "to", "hops", "total", "outcome", "subject"]
    assert "Minutes" in chosen(browser)
    assert "/ search" in lines[-1] and "q quit" in lines[-1]


def test_arrows_choose_and_stop_at_the_ends(browser):
    press(browser, "up", "down")
    assert "Second" in chosen(browser)
    press(browser, "end", "down", "page_down")
    assert "第三の手紙" in chosen(browser)
    press(browser, "home", "page_up")
    assert "Minutes" in chosen(browser)


def test_a_search_leaves_what_answers(browser):
    assert press(browser, "/", *"SECOND")[-1] == "/SECOND_"
    lines = press(browser, "enter")
    assert lines[0] == "mail.pcap  1 of 3 messages · /SECOND"
    assert len([line for line in lines if "alice@" in line]) == 1
    assert press(browser, "escape")[0] == "mail.pcap  3 of 3 messages"


def test_a_search_that_finds_nothing_says_how_to_go_on(browser):
    assert press(browser, "/", *"nobody", "enter")[-1] == "no message answers; Esc shows all"
    press(browser, "enter", "down", "up", "end")  # with nothing to open
    assert browser.opened is None


def test_an_expression_leaves_what_it_holds_for(browser):
    assert press(browser, "w", *"date>2099-01-01", "enter")[0].startswith("mail.pcap  0 of 3 messages")
    press(browser, "escape")
    assert "no field 'kode', did you mean code" in press(browser, "w", *"kode=1", "enter")[-1]
    assert screen(browser)[0] == "mail.pcap  3 of 3 messages"


def test_typing_can_be_taken_back(browser):
    assert press(browser, "/", "a", "b", "backspace")[-1] == "/a_"
    assert press(browser, "escape")[0] == "mail.pcap  3 of 3 messages"


def test_a_trace_opens_scrolls_and_closes(browser):
    lines = press(browser, "enter")
    assert lines[0].startswith("Message <1@example.org>") and "q back" in lines[-1]
    below = press(browser, "page_down")
    assert below[0] != lines[0]
    assert press(browser, "home")[:-1] == lines[:-1]
    bottom = press(browser, "end", "down", "down")
    assert press(browser, "up", "down") == bottom
    assert press(browser, "right")[0].startswith("Message") and browser.opened.trace_id == "second00"
    assert press(browser, "left", "left")[0] == lines[0]
    assert "> " in "".join(press(browser, "q"))


def test_the_dialogue_comes_and_goes(browser):
    def whole() -> int:
        return len(browser._page_lines())

    press(browser, "enter")
    before = whole()
    press(browser, "d")
    assert whole() > before
    press(browser, "d")
    assert whole() == before


@pytest.mark.parametrize("size", [(200, 50), (100, 24), (72, 10), (60, 6), (40, 5), (30, 3), (5, 1), (1, 1)])
@pytest.mark.parametrize("keys", [(), ("enter",), ("enter", "d", "end"), ("/", *"long words" * 20), ("end",)])
def test_every_size_holds_its_screen(browser, size, keys):
    press(browser, *keys)
    browser.resize(*size)
    lines = browser.lines()
    assert len(lines) <= size[1]
    assert all(sum(cells(span.text) for span in line) <= size[0] for line in lines)
    press(browser, "escape", "down", "enter")
    browser.resize(100, 24)
    assert screen(browser)[0].startswith("Message")


def test_control_characters_are_shown_and_never_sent(browser):
    for keys in ((), ("down", "enter"), ("d",), ("escape",), ("w", *"subject~'\x1b", "enter"), ("/", "\x9b", "\u202e", "enter")):
        for line in press(browser, *keys):
            assert not set(line) & {"\x1b", "\x07", "\x9b", "\u202e", "\n", "\r"}
    assert "Second \\x1b[31m" in "".join(screen(browser)) + "".join(press(browser, "escape"))


def test_ascii_alone_where_asked(tables):
    made = Browser(tables, "mail.pcap", ascii=True)
    made.resize(100, 24)
    assert all(line.isascii() for keys in ((), ("enter",), ("end",)) for line in press(made, *keys))


def test_it_runs_in_a_terminal():
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", LINES="24", COLUMNS="100", PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8")
        os.execv(sys.executable, [sys.executable, "-m", "analyzer", "browse", str(ROOT / "captures" / "story.pcapng")])
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 1)[0]:
                try:
                    seen += os.read(terminal, 1 << 16)
                except OSError:
                    break
        assert words in seen
        seen = b""

    try:
        until(b"Lunch on Friday?")
        os.write(terminal, b"/photos\r")
        until(b"/photos")
        os.write(terminal, b"\r")
        until(b"story-2@example.org")
        os.write(terminal, b"qq")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)
