"""README.md and README.ja.md keep in step, and what they show exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, JAPANESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))


def commands(text: str) -> list[str]:
    """Commands and code of the fenced blocks, without comments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.S | re.M)
    lines = [re.sub(r" +#.*", "", line) for block in blocks[1:] for line in block.splitlines()]  # the first shows output
    return [line for line in lines if line.strip()]


def test_what_the_japanese_page_tells_to_type_is_what_the_english_one_does() -> None:
    told = commands(JAPANESE)
    assert len(told) > len(commands(ENGLISH)) // 2
    assert [line for line in told if line not in commands(ENGLISH)] == []
    rows = [re.findall(r"^\| (`[^|]*?) \|", text, re.M) for text in (ENGLISH, JAPANESE)]
    tables = [[re.findall(r"`([a-z]+)`", row) for row in found] for found in rows]
    assert tables[1] == tables[0]


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE], ids=["en", "ja"])
def test_every_file_linked_to_exists(text: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
