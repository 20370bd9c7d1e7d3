"""Parse the option that a generated answer names, by the rule of a set's authors or of the common harness.

Each rule reproduces a public scorer, quirks included, since numbers depend on them. `tests/assets/metrics` contains
the outputs of those scorers. An answer that names no option, or a letter beyond the options, is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase

from advl_pipeline.datasets.listed_options import YES_NO, is_yes_no
from advl_pipeline.datasets.measures import Rule

BEYOND = -1
"""Position of a letter beyond the options."""

Reader = Callable[[str, Sequence[str]], int | None]
"""Parses an answer to a question with these options into the position of one, `BEYOND`, or None for no option."""


def read_option(answer: str, options: Sequence[str], rule: Rule) -> int | None:
    """Return the position of the option that an answer names, `BEYOND`, or None if it names no option.

    Args:
        rule: from the set's card. If the options are yes and no, all rules but POPE's use the first of the two words.
    """
    if is_yes_no(options):
        word = _pope(answer) if rule == "pope" else _first_word(answer, YES_NO)
        return None if word is None else [option.lower() for option in options].index(word)
    return _READERS[rule](answer, options)


_PHRASES = (
    *(
        f"{start}{noun} is"
        for noun in ("answer", "choice")
        for start in ("", "the ", "my ", "correct ", "the correct ")
    ),
    *(f"{start}best answer is" for start in ("", "the ")),
    *(f"{start}{kind} option is" for kind in ("correct", "best") for start in ("", "the ")),
    *(f"i {verb}" for verb in ("choose", "select", "pick")),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""Phrases of lmms-eval's parser that announce an answer, in lower case."""


RANKED_LETTERS = ("A", "B", "C", "D")
"""Letters that the parser of lmms-eval knows."""


def read_ranked(answer: str) -> str | None:
    """Return the capital letter in the highest-ranked place of an answer; the last one if a place matches twice.

    This is the multiple-choice parser of lmms-eval at 75571cf, which determines the score of RealWorldQA. Behind a
    phrase such as "answer is" the first of each letter counts, inside a word too: "The answer is A. Done" names D.
    """
    text = answer.strip()
    for mark in (",", ".", "!", "?", ";", ":", "'", '"'):
        text = text.strip(mark)
    spaced, text = f" {text} ", text.strip()
    if text[:1] in RANKED_LETTERS and not text[1:2].isalpha():
        return text[0]
    if text[-1:] in RANKED_LETTERS and not text[-2:-1].isalpha():
        return text[-1]
    lowered = spaced.lower()
    ends = (lowered.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lowered)
    behind = {spaced.find(letter, end): letter for end in ends for letter in RANKED_LETTERS}
    if max(behind, default=-1) >= 0:
        return behind[max(behind)]
    for before, after in (("(", ")"), ("", "."), ("", ":"), ("", ")"), ("", " "), ("", "")):
        places = {spaced.rfind(f"{before}{letter}{after}"): letter for letter in RANKED_LETTERS}
        if max(places) >= 0:
            return places[max(places)]
    return None


def _letter(answer: str, options: Sequence[str]) -> int | None:
    """Read a letter that is the entire answer, follows "answer is", or is a word; else the text of one option."""
    text = answer.strip()
    whole = re.fullmatch(r"\(?([A-Za-z])\)?[.:,]?", text)
    named = re.search(r"\b(?:answer|option)(?: is|:)?\s*\(?([A-Z])\b", text)
    first = re.match(r"\(?([A-Z])(?:\)|[.:,])", text)
    # As a word, A is more often an article than an answer.
    alone = {*re.findall(r"(?<![\w'])([A-Z])(?![\w'])", text)} & {*ascii_uppercase[1 : len(options)]}
    for match in (whole, named, first):
        if match:
            return _place(match[1].upper(), options)
    if len(alone) == 1:
        return _place(alone.pop(), options)
    meant = [place for place, option in enumerate(options) if option.strip(" .").lower() == text.strip(" .").lower()]
    return meant[0] if len(meant) == 1 else None


def _mmstar(answer: str, options: Sequence[str]) -> int | None:
    """Read the first character, or the one after a bracket, "option " or "the answer is ", as MMStar's authors do."""
    text = answer.lower().strip().replace("\n", " ")
    for start in ("(", "option ", "the answer is "):
        if text.startswith(start):
            return _place(text[len(start) : len(start) + 1].upper(), options)
    return _place(text[:1].upper(), options)


def _cv_bench(answer: str, options: Sequence[str]) -> int | None:
    """Read the first character after the last "answer is" or "answer:", as CV-Bench's authors do."""
    text = answer.lower().strip()
    for phrase in ("answer is", "answer:"):
        if phrase in text:
            text = text.rpartition(phrase)[2]
            break
    text = text.strip().rstrip(".").lstrip("(").rstrip(")")
    return _place(text[:1].upper(), options)


def _scienceqa(answer: str, options: Sequence[str]) -> int | None:
    """Read a single "The answer is X" followed by more text, as ScienceQA's authors do; they guess if it fails."""
    letters = re.findall(r"The answer is ([A-Z])\.?.", answer)
    return _place(letters[0], options) if len(letters) == 1 else None


def _ranked(answer: str, options: Sequence[str]) -> int | None:
    letter = read_ranked(answer)
    return None if letter is None else _place(letter, options)


def _pope(answer: str) -> str:
    """Read "no" if the first sentence contains the word No, no or not, else "yes", as POPE's authors do."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & {*words} else "yes"


def _naturalbench(answer: str, options: Sequence[str]) -> int | None:
    """Read the first word A or B in any case, as NaturalBench's authors do: the article "a" counts as A."""
    letter = _first_word(answer, tuple(ascii_uppercase[: len(options)]))
    return None if letter is None else ascii_uppercase.index(letter)


def _first_word(answer: str, words: Sequence[str]) -> str | None:
    places = {word: match.start() for word in words if (match := re.search(rf"\b{word}\b", answer, re.IGNORECASE))}
    return min(places, key=places.__getitem__, default=None)


def _place(letter: str, options: Sequence[str]) -> int | None:
    if not letter or letter not in ascii_uppercase:
        return None
    place = ascii_uppercase.index(letter)
    return place if place < len(options) else BEYOND


_READERS: Mapping[Rule, Reader] = {
    "letter": _letter,
    "mmstar": _mmstar,
    "cv-bench": _cv_bench,
    "scienceqa": _scienceqa,
    "ranked": _ranked,
    "pope": _letter,
    "naturalbench": _naturalbench,
}
