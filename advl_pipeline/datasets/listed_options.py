"""Options listed behind letters, as harnesses show them: in questions whose answer is written, and in training."""

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
"""What follows a question where the set's card says nothing else: lmms-eval's lines."""


def is_yes_no(options: Sequence[str]) -> bool:
    """Tell whether a question is answered by yes or no, so that no options are listed."""
    return tuple(option.lower() for option in options) in (YES_NO, YES_NO[::-1])


def with_letters(question: str, options: Sequence[str]) -> str:
    """Return a question with its options, each on a line behind its letter.

    Raises:
        DatasetError: there are more options than letters.
    """
    if len(options) > len(ascii_uppercase):
        raise DatasetError(f"A question has {len(options)} options, and letters go from A to Z.", where=question[:80])
    return "\n".join(
        [question, *(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))]
    )
