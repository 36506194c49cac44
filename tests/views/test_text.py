"""Words and lines: nothing from the traffic acts on a terminal, and everything fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.views.text import Look, Page, cells, counted, date, duration, listed, plain, visible

any_text = st.text(st.characters(), max_size=40)
ACTING = {
    chr(c) for c in [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0x200B]
}


@given(any_text)
def test_nothing_that_acts_passes(text):
    for look in (Look(), Look(ascii=True)):
        shown = look.safe(text)
        assert not ACTING & set(shown)
        shown.encode()
        assert not look.ascii or shown.isascii()


@given(any_text, st.integers(2, 30), st.booleans())
def test_text_fits_exactly(text, columns, right):
    assert cells(Look().fit(text, columns, right)) == columns


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb", "a\\x0ab"),
        ("\u202egpj", "\\u202egpj"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("gr\u00fc\u00dfe \u65e5\u672c", "gr\u00fc\u00dfe \u65e5\u672c"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert visible(text) == shown


def test_a_heap_of_combining_characters_stays_small():
    assert len(Look().safe("Z" + "\u0316" * 900)) < 10


def test_wide_letters_take_two_columns():
    assert Look().fit("\u65e5\u672c\u8a9e", 5) == "\u65e5\u672c" + "\u2026"
    assert Look(ascii=True).fit("abcdef", 5) == "abc.."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"),
        (0.0002, "0.2 ms"),
        (0.412, "412 ms"),
        (4.812, "4.81 s"),
        (9.999, "10.0 s"),
        (61.02, "61.0 s"),
        (3722, "62 min"),
        (18_720, "5.2 h"),
        (267_840, "3.1 days"),
        (-0.41, "-410 ms"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_counts_lists_and_dates():
    assert (counted(1, "message"), counted(1204, "message"), counted(2, "reply", "replies")) == (
        "1 message",
        "1,204 messages",
        "2 replies",
    )
    assert [listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert date(1_700_000_000_123_456_789) == "2023-11-14 22:13:20 UTC"


def test_words_wrap_under_where_they_began():
    page = Page(Look(width=20))
    page.wrapped("name  ", ["alpha", "beta", "gamma", "delta"], ", ")
    assert str(page) == "name  alpha, beta\n      gamma, delta\n"


@given(st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=20))
def test_wrapped_lines_are_no_wider_than_the_page(words):
    page = Page(Look(width=30))
    page.wrapped("first ", words)
    assert all(cells(line) <= 30 for line in plain(page.lines))
    assert " ".join(str(page).split()) == "first " + " ".join(words)
