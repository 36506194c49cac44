"""The watch screen: what matters most survives a narrow terminal, and nothing that traffic said acts."""

import sys
from pathlib import Path

import pytest
import synthetic

from analyzer.protocols.base import MessageCarried
from analyzer.views.live import row, screen
from analyzer.views.text import Look, plain

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "mail"))
from builders import World, mail

BAD = "\x1b]0;owned\x07evil\u202e"


def carried(server: str = "mail.b.example", sender: str = "taro@a.example", message: str | None = None) -> MessageCarried:
    """A deferred hand-over; `message` None: before its data."""
    world = World()
    info = world.session("smtp", "10.0.0.1", "10.0.0.2", 25, client_name="smtp.a.example", server_name=server)
    return world.carry(info, sender, ["hanako@b.example"], message, outcome="deferred")


def line(event: MessageCarried) -> str:
    return "".join(plain([row(event, Look())]))


def test_the_outcome_and_the_reply_stand_first():
    assert line(carried(message=mail()))[10:].startswith("SMTP  deferred  450   10 ms  smtp.a.example → mail.b.example:25")


def test_a_message_refused_before_its_data_is_named_by_its_sender():
    assert line(carried()).endswith("mail.b.example:25  taro@a.example")


def test_control_characters_are_written_out():
    text = line(carried(BAD, BAD))
    assert "evil" in text
    assert not set(text) & set("\x1b\x07\u202e")


@pytest.mark.parametrize("height", [16, 24, 60])
def test_the_screen_is_no_taller_than_the_terminal(height):
    waiting = [synthetic.message(outcome="deferred") for _ in range(40)]
    latency = {"mx": (3, 0.5, None), "pop3": (1, 0.0, 2.0)}
    hops = [carried() for _ in range(100)]
    page = screen(Look(), "eth0", 5.0, (10, 0, 0, 100), {"deferred": 40}, latency, waiting, 41, hops, synthetic.at(9), height)
    text = str(page)
    assert len(page.lines) <= height
    assert "accepts in 500 ms" in text
    assert "pop3       1 hop  after 2.00 s in the queue before" in text
    assert "in flight (41)" in text
