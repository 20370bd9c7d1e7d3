"""Lettered answer options in the style of evaluation harnesses, for generated answers and for training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from advl_pipeline.base.errors import DatasetError

YES_NO = ("yes", "no")

SHORT = "Answer the question using a single word or phrase."
CLOSINGS: Mapping[str, str] = {
    "letters": "Answer with the option's letter from the given choices directly.",
    "yes_no": SHORT,
    "answers": SHORT,
}
"""Default text after a question, unless the dataset's card overrides it: lmms-eval's prompts."""


def is_yes_no(options: Sequence[str]) -> bool:
    """Return whether the options are yes and no, so that they are not listed."""
    return tuple(option.lower() for option in options) in (YES_NO, YES_NO[::-1])


_OWN_LETTER = re.compile(r"\((?P<bracketed>[A-Za-z])\)[.:]?\s+\S|(?P<bare>[A-Z])[.:)]\s+\S")
"""Start of an option that is written with its letter: "A. red", "(a) red"."""


def lettered_lines(options: Sequence[str]) -> list[str]:
    """Return a line per option, which ends in the option: after its letter, or as written if all have their own.

    Raises:
        DatasetError: there are more options than letters.
    """
    letters = ascii_uppercase[: len(options)]
    if len(options) > len(letters):
        raise DatasetError(
            f"A question has {len(options)} options, and letters go from A to Z.", where=options[0][:80]
        )
    marks = [_OWN_LETTER.match(option) for option in options]
    if [(mark["bracketed"] or mark["bare"]).upper() if mark else "" for mark in marks] == [*letters]:
        return [*options]
    return [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]


def with_letters(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, each on a line of its own; raises what `lettered_lines` does."""
    return "\n".join([question, *lettered_lines(options)])
