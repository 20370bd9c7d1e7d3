"""Lettered answer options in the style of evaluation harnesses, for generated answers and for training."""

from __future__ import annotations

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


def with_letters(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, each on a line after its letter.

    Raises:
        DatasetError: there are more options than letters.
    """
    if len(options) > len(ascii_uppercase):
        raise DatasetError(f"A question has {len(options)} options, and letters go from A to Z.", where=question[:80])
    return "\n".join(
        [question, *(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))]
    )
