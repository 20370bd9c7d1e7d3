"""The official VQA evaluator's normal form of an answer (GT-Vision-Lab/VQA, a013f00), restated from its rules.

The original runs under Python 2 and has quirks that scores depend on; each is kept and named below.
"""

from __future__ import annotations

import re
from functools import cache

from advl_pipeline.packages import read_data

_MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
_FULL_STOP = re.compile(r"\.(?![0-9])")
_MAX_FULL_STOPS = 32
"""The original passes `re.UNICODE` (32) where the number of replacements belongs."""

_NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = frozenset({"a", "an", "the"})


def clean_answer(answer: str) -> str:
    """Replace line ends and tabs by spaces and trim: what the evaluator does to every answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(answer: str) -> str:
    """Delete or blank the evaluator's 21 marks, then up to 32 full stops that no digit follows.

    A mark is deleted when a space stands beside it anywhere in the input, or when the input holds a number like
    "1,000"; otherwise it becomes a space. Apostrophe, colon and % & $ # * ^ ~ | are no marks.
    """
    glue = _DIGIT_COMMA_DIGIT.search(answer) is not None
    text = answer
    for mark in _MARKS:
        if mark in answer:
            delete = glue or f"{mark} " in answer or f" {mark}" in answer
            text = text.replace(mark, "" if delete else " ")
    return _FULL_STOP.sub("", text, count=_MAX_FULL_STOPS)


def fold_words(answer: str) -> str:
    """Lower-case, write number words as digits, drop articles, restore the apostrophes of contractions."""
    words = []
    for word in _lower(answer).split():
        number = _NUMBERS.get(word, word)
        if number not in _ARTICLES:
            words.append(contractions().get(number, number))
    return " ".join(words)


def normalise_answer(answer: str) -> str:
    """Return the evaluator's normal form of a cleaned answer; it may be empty."""
    return fold_words(strip_punctuation(answer))


def vocabulary_form(answer: str) -> str:
    """Return the form in which an answer enters an answer vocabulary: the normal form without commas."""
    return normalise_answer(answer).replace(",", "")


def _lower(text: str) -> str:
    """Lower-case by the one-to-one mapping of Python 2: no final sigma, and a dotted capital I becomes a plain i."""
    if text.isascii():
        return text.lower()
    return "".join("i" if letter == "\u0130" else letter.lower() for letter in text)


@cache
def contractions() -> dict[str, str]:
    """Word without its apostrophes -> word with them."""
    pairs = {}
    for line in read_data("vqa_contractions.txt").splitlines():
        if not line.startswith("#"):
            typed, compared = line.split()
            pairs[typed] = compared
    return pairs
