"""What the README quotes is what the program says."""

import re

import pytest

from atelier_tests.helpers.sources import ROOMS, ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = TEXT.split("## When something is wrong")[1].split("\n## ")[0]
QUOTES = [quote for row in re.findall(r"^\|([^|]*)\|", TABLE, re.M) for quote in re.findall(r"\*([^*]+)\*", row)]


def said() -> str:
    """All shipped sources, with texts that go on in the next line joined."""
    sources = (path.read_text(encoding="utf-8") for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))


def test_there_are_quotes() -> None:
    assert len(QUOTES) >= 4


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_exists(quote: str) -> None:
    text = said()
    for part in re.split(r"\.\.\.|; ", quote):
        assert part.strip() in text, quote
