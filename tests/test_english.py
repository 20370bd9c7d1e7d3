"""Docs and help say one idea per sentence: at most 30 words, and none of the turns that readers stumbled over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MAX_WORDS = 30
TURNS = (re.compile(r"\bwhoever\b", re.IGNORECASE), re.compile(r"\bof (?:\w+ ){1,3}alone\b"))

NOT_PROSE = re.compile(r"```.*?```|<!--.*?-->|^ {4}\S.*?$", flags=re.DOTALL | re.MULTILINE)
BLOCKS = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)|\n(?=\|)")
ENDS = re.compile(r"(?<=[.?!])[)\"*]*\s+|(?<=:)[*]*\s+(?=[A-Z])")


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page; cells of tables are blocks, a piece of code is a word."""
    for block in BLOCKS.split(NOT_PROSE.sub("\n\n", text)):
        for part in block.strip().strip("|").split("|") if block.lstrip().startswith("|") else [block]:
            plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", part))
            yield from ENDS.split(" ".join(plain.split()))


def faults(text: str) -> list[str]:
    return [
        sentence
        for sentence in sentences(text)
        if sum(bool(re.search(r"\w", word)) for word in sentence.split()) > MAX_WORDS
        or any(turn.search(sentence) for turn in TURNS)
    ]


# The history keeps how things were put at their time. docs/cli.md holds the help of every option.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "experiments-history.md"], ids=lambda page: page.name
)
def test_a_page_is_plain(page: Path) -> None:
    found = faults(page.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_faults_are_found() -> None:
    long = " ".join(["word"] * 31)
    assert faults(f"# A\n\nShort. {long}.\n") == [f"{long}."]
    assert faults(f"| a | {long} |") == [long]
    assert faults("Whoever reads this.\n\nThe reading of texts alone helps.") == [
        "Whoever reads this.",
        "The reading of texts alone helps.",
    ]
    half = " ".join(["word"] * 20)
    assert not faults(f"{half}. {half}\n\n```\n{long}\n```\n- {half}\n- {half} `{long}`")
