"""VQA answer vocabularies and soft targets, by the rules of the published models (see the card of vqa-v2).

A vocabulary is built from the most common answers of the annotations, or read from a file: a checkpoint's last
layer means nothing without its own list, because models ship the same answers in different orders.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.vqa_normalise import vocabulary_form
from advl_pipeline.errors import DatasetError

MIN_OCCURRENCES = 9
"""Questions whose most common answer an answer must be, for VQA v2 (3,129 answers) and VQA-CP v2 (2,274)."""

_SCORES = (0.0, 0.3, 0.6, 0.9)


def answer_score(count: int) -> float:
    """Return the soft score of an answer that `count` of ten annotators gave."""
    return _SCORES[count] if count < len(_SCORES) else 1.0


def build_vocabulary(most_common: Iterable[tuple[str, int]], *, min_occurrences: int) -> tuple[str, ...]:
    """Build an answer vocabulary.

    Args:
        most_common: (raw `multiple_choice_answer`, number of questions) pairs; equal answers may repeat.
        min_occurrences: questions that an answer, in its normal form, must be the answer of.

    Returns:
        Answers by falling number of questions, then by text.
    """
    counts: Counter[str] = Counter()
    for answer, number in most_common:
        counts[vocabulary_form(answer)] += number
    kept = [(-number, answer) for answer, number in counts.items() if number >= min_occurrences]
    return tuple(answer for _, answer in sorted(kept))


def answer_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return raw answer -> its soft score, from answer -> annotators who gave it."""
    return {answer: answer_score(count) for answer, count in counts.items()}


def soft_target(scores: Mapping[str, float], class_of: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """Return (class, score) pairs, by class, of one question.

    Args:
        scores: raw answer -> soft score. Answers are looked up as they are, as the published models do: "t-shirt"
            scores nothing when the vocabulary has "t shirt".
        class_of: answer of the vocabulary -> class.
    """
    return tuple(sorted((class_of[answer], score) for answer, score in scores.items() if answer in class_of))


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Read a vocabulary: a JSON list of answers, or an object answer -> class (`ans2label`), or class -> answer.

    LXMERT's list of its pretraining's answers (`all_ans.json`) has objects with the key `ans`.

    Raises:
        DatasetError: missing, malformed, or classes that are not 0 to n - 1.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError("The answer vocabulary cannot be read.", where=str(path), why=str(error)) from None
    answers: list[Any] = value if isinstance(value, list) else []
    answers = [answer.get("ans") if isinstance(answer, dict) else answer for answer in answers]
    if isinstance(value, dict):
        by_class = _invert(value, path)
        answers = [by_class.get(label) for label in range(len(by_class))]
    texts = tuple(answer for answer in answers if isinstance(answer, str))
    if not texts or len(texts) != len(answers) or len(set(texts)) != len(texts):
        raise DatasetError(
            "The answer vocabulary is not a list of different answers.",
            where=str(path),
            why="expected a JSON list, or an object between answers and the classes 0 to n - 1",
        )
    return texts


def _invert(value: Mapping[str, Any], path: Path) -> dict[int, Any]:
    by_class: dict[int, Any] = {}
    if all(isinstance(label, int) for label in value.values()):
        by_class = {label: answer for answer, label in value.items()}
    elif all(key.isdecimal() for key in value):
        by_class = {int(key): answer for key, answer in value.items()}
    if len(by_class) != len(value):
        raise DatasetError("Two answers of the vocabulary share a class.", where=str(path))
    return by_class
