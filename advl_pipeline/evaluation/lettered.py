"""Questions in the format of the common harnesses: options listed by letter, and one closing line.

Generated answers are parsed by the rule of the set's card (`answer_reading.py`), or compared as texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from advl_pipeline.datasets.listed_options import CLOSINGS, is_yes_no, with_letters
from advl_pipeline.datasets.measures import Rule
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, TASKS, Candidate, Example, TextUnit, head_name
from advl_pipeline.evaluation.answer_reading import RANKED_LETTERS, read_ranked

LETTERED_TASKS = frozenset(task for task in TASKS if head_name(task) in ("choice", "answers"))
"""Tasks whose questions can be asked in this format."""


def question_words(example: Example) -> str:
    """Return the words of the question."""
    first = example.candidates[0]
    return first.text[: first.context_length] if example.task in MULTIPLE_CHOICE_TASKS else first.text


def as_asked(example: Example, closings: Mapping[str, str]) -> Example:
    """Return the example as a question for which the student generates an answer.

    Args:
        closings: closing lines by `letters`, `yes_no` and `answers`; a missing one is taken from `CLOSINGS`.

    Raises:
        DatasetError: there are more options than letters.
    """
    question, form = question_words(example), "answers"
    if example.task in MULTIPLE_CHOICE_TASKS:
        options = tuple(candidate.answer for candidate in example.candidates)
        form = "yes_no" if is_yes_no(options) else "letters"
        question = question if form == "yes_no" else with_letters(question, options)
    closing = closings.get(form, CLOSINGS[form])
    # Line breaks are kept, since the text is not a unit of a cache.
    text = TextUnit(unit_id="", text=f"{question}\n{closing}" if closing else question)
    return replace(example, task="answers", candidates=(Candidate(text_unit=text),))


def answer_worth(answer: str, worth: Mapping[str, float], rule: Rule) -> float:
    """Return the score of a generated answer, which is that of the equal text; nothing is normalised.

    Args:
        worth: score of each annotated answer.
        rule: `ranked` reads a letter if a right answer is one from A to D. Otherwise it compares texts without case
            and final full stop, as lmms-eval does for RealWorldQA.
    """
    if rule != "ranked":
        return worth.get(answer, 0.0)
    if any(right in RANKED_LETTERS for right in worth):
        return worth.get(read_ranked(answer) or "", 0.0)
    plain = {right.strip().lower().rstrip("."): value for right, value in worth.items()}
    return plain.get(answer.strip().lower().rstrip("."), 0.0)
