"""One VQA annotation as its ten annotators gave it, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advl_pipeline.datasets.problems import Malformed

NUM_ANNOTATORS = 10
ANSWER_TYPES = ("yes/no", "number", "other")


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What scoring needs of an annotation.

    `answers` are raw, in the order of the file. `entries[i]` numbers what annotator i's entry holds besides the
    answer: the official evaluator leaves out all entries that are equal as a whole, so two annotators with the same
    `answer_id` and confidence count as one.
    """

    question_type: str
    answer_type: str
    answers: tuple[str, ...]
    entries: tuple[int, ...]


def parse_annotation(item: Any) -> tuple[int, str, GroundTruth]:
    """Check one item of an annotation file.

    Returns:
        (question_id, multiple_choice_answer, ground truth).

    Raises:
        Malformed: a field is missing or of another type, or there are not 1 to 10 answers.
    """
    if not isinstance(item, dict):
        raise Malformed("an annotation is not an object")
    question_id = whole_number(item, "question_id")
    for name in ("question_type", "answer_type", "multiple_choice_answer"):
        if not isinstance(item.get(name), str):
            raise Malformed(f"question_id {question_id}: field {name!r} is missing or not a text")
    if item["answer_type"] not in ANSWER_TYPES:
        raise Malformed(f"question_id {question_id}: answer_type {item['answer_type']!r} is unknown")
    answers = item.get("answers")
    if not isinstance(answers, list) or not 1 <= len(answers) <= NUM_ANNOTATORS:
        raise Malformed(f"question_id {question_id}: field 'answers' is not a list of {NUM_ANNOTATORS} answers")
    if not all(isinstance(entry, dict) and isinstance(entry.get("answer"), str) for entry in answers):
        raise Malformed(f"question_id {question_id}: an answer has no text")
    truth = GroundTruth(
        question_type=item["question_type"],
        answer_type=item["answer_type"],
        answers=tuple(entry["answer"] for entry in answers),
        entries=_entries(answers),
    )
    return question_id, item["multiple_choice_answer"], truth


def whole_number(item: Mapping[str, Any], name: str) -> int:
    """Return a field that is a whole number of at most 63 bits and not negative.

    Raises:
        Malformed: it is missing or anything else.
    """
    value = item.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise Malformed(f"field {name!r} is {value!r}, not a whole number")
    return value


def _entries(answers: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    if [entry.get("answer_id") for entry in answers] == list(range(1, len(answers) + 1)):
        return tuple(range(len(answers)))
    rests = [{key: value for key, value in entry.items() if key != "answer"} for entry in answers]
    return tuple(rests.index(rest) for rest in rests)
