"""VQA's answers: raw annotations, vocabularies and soft targets, and the evaluator's normal form.

A vocabulary is built from the most common answers of the annotations, or read from a file: a checkpoint's last
layer is meaningless without its own list, because models order the same answers differently. Targets follow the
rules of the published models (see the card of vqa-v2). The normal form is the official evaluator's
(GT-Vision-Lab/VQA, a013f00), restated from its rules: the original runs under Python 2 and has quirks that scores
depend on; each is kept and named below.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from advl_pipeline.base.packages import read_data
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import parse_json_file

NUM_ANNOTATORS = 10
ANSWER_TYPES = ("yes/no", "number", "other")


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Fields of an annotation that scoring needs.

    `answers` are raw, in the order of the file. `entries[i]` numbers the content of annotator i's entry besides the
    answer. The official evaluator leaves out all entries that are equal in every field, so two annotators with the
    same `answer_id` and confidence count as one.
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
        Malformed: a field is missing or has another type, or the number of answers is not 1 to 10.
    """
    if not isinstance(item, dict):
        raise Malformed("an annotation is not an object")
    question_id = whole_number(item, "question_id")
    for name in ("question_type", "answer_type", "multiple_choice_answer"):
        if not isinstance(item.get(name), str):
            raise Malformed(f"question_id {question_id}: field {name!r} is missing or not a text")
    if item["answer_type"] not in ANSWER_TYPES:
        raise Malformed(f"question_id {question_id}: answer_type {item['answer_type']!r} is unknown")
    raw_answers = item.get("answers")
    if not isinstance(raw_answers, list) or not 1 <= len(raw_answers) <= NUM_ANNOTATORS:
        raise Malformed(f"question_id {question_id}: field 'answers' is not a list of {NUM_ANNOTATORS} answers")
    if not all(isinstance(entry, dict) and isinstance(entry.get("answer"), str) for entry in raw_answers):
        raise Malformed(f"question_id {question_id}: an answer has no text")
    entries = list(range(len(raw_answers)))
    if [entry.get("answer_id") for entry in raw_answers] != list(range(1, len(raw_answers) + 1)):
        rests = [{key: value for key, value in entry.items() if key != "answer"} for entry in raw_answers]
        entries = [rests.index(rest) for rest in rests]
    # Millions of answers are few distinct texts; each is stored once.
    answers = tuple(sys.intern(entry["answer"]) for entry in raw_answers)
    truth = GroundTruth(sys.intern(item["question_type"]), item["answer_type"], answers, tuple(entries))
    return question_id, sys.intern(item["multiple_choice_answer"]), truth


def whole_number(item: Mapping[str, Any], name: str) -> int:
    """Return a non-negative integer field of at most 63 bits.

    Raises:
        Malformed: the field is missing or anything else.
    """
    value = item.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise Malformed(f"field {name!r} is {value!r}, not a whole number")
    return value


MIN_OCCURRENCES = 9
"""Minimum number of questions that have an answer as their most common one.

This gives 3,129 answers for VQA v2 and 2,274 for VQA-CP v2.
"""

_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Soft score of an answer by the number of the ten annotators who gave it; the last entry covers more."""


def answer_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return raw answer -> soft score, from raw answer -> number of annotators."""
    return {answer: _SCORES[min(count, len(_SCORES) - 1)] for answer, count in counts.items()}


def soft_target(scores: Mapping[str, float], class_of: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """Return the (class, score) pairs of one question, sorted by class.

    Args:
        scores: raw answer -> soft score. Answers are looked up unchanged, as the published models do: "t-shirt"
            scores nothing if the vocabulary contains "t shirt".
        class_of: answer of the vocabulary -> class.
    """
    return tuple(sorted((class_of[answer], score) for answer, score in scores.items() if answer in class_of))


def build_vocabulary(
    most_common: Iterable[tuple[str, int]], *, min_occurrences: int, form: Callable[[str], str] | None = None
) -> tuple[str, ...]:
    """Build an answer vocabulary.

    Args:
        most_common: (raw `multiple_choice_answer`, number of questions) pairs; equal answers may repeat.
        min_occurrences: minimum number of questions with an answer, in its form.
        form: maps an answer to its form; None for `vocabulary_form`.

    Returns:
        Answers by decreasing number of questions, then by text.
    """
    counts: Counter[str] = Counter()
    for answer, number in most_common:
        counts[(form or vocabulary_form)(answer)] += number
    kept = [(-number, answer) for answer, number in counts.items() if number >= min_occurrences]
    return tuple(answer for _, answer in sorted(kept))


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Read a vocabulary: a JSON list of answers, or an object answer -> class (`ans2label`), or class -> answer.

    LXMERT's list of its pretraining's answers (`all_ans.json`) has objects with the key `ans`.

    Raises:
        DatasetError: the file is missing or malformed, or the classes are not 0 to n - 1.
    """

    def answers(value: Any) -> tuple[str, ...]:
        if isinstance(value, dict):
            size = len(value)
            if all(isinstance(label, int) for label in value.values()):
                value = {label: answer for answer, label in value.items()}
            by_class = {int(label): answer for label, answer in value.items()}
            listed = [by_class.get(label) for label in range(size)]
        else:
            listed = [item.get("ans") if isinstance(item, dict) else item for item in value]
        texts = tuple(answer for answer in listed if isinstance(answer, str))
        if not texts or len(texts) != len(listed) or len(set(texts)) != len(texts):
            raise ValueError("expected different answers in a list, or an object between them and 0 to n - 1")
        return texts

    return parse_json_file(path, "The answer vocabulary", answers)


_MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
_FULL_STOP = re.compile(r"\.(?![0-9])")
_MAX_FULL_STOPS = 32
"""The original passes `re.UNICODE` (32) as the number of replacements."""

_NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = frozenset({"a", "an", "the"})


def clean_answer(answer: str) -> str:
    """Replace line ends and tabs by spaces and trim, as the evaluator does for every answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(answer: str) -> str:
    """Delete or blank the evaluator's 21 marks, then up to 32 full stops that no digit follows.

    A mark is deleted if it is next to a space anywhere in the input, or if the input contains a number like
    "1,000"; otherwise it becomes a space. Apostrophe, colon and % & $ # * ^ ~ | are not marks.
    """
    glue = _DIGIT_COMMA_DIGIT.search(answer) is not None
    text = answer
    for mark in _MARKS:
        if mark in answer:
            delete = glue or f"{mark} " in answer or f" {mark}" in answer
            text = text.replace(mark, "" if delete else " ")
    return _FULL_STOP.sub("", text, count=_MAX_FULL_STOPS)


def normalise_answer(answer: str) -> str:
    """Return the evaluator's normal form of a cleaned answer; it may be empty.

    Punctuation is removed, letters become lower case, number words become digits, articles are dropped, and
    contractions get their apostrophes back.
    """
    # Python 2 maps letters one to one: no final sigma, and a dotted capital I becomes a plain i.
    letters = ("i" if letter == "\u0130" else letter.lower() for letter in strip_punctuation(answer))
    words = (_NUMBERS.get(word, word) for word in "".join(letters).split())
    return " ".join(contractions().get(word, word) for word in words if word not in _ARTICLES)


def vocabulary_form(answer: str) -> str:
    """Return the form of an answer in a vocabulary: the normal form without commas."""
    return normalise_answer(answer).replace(",", "")


@cache
def contractions() -> dict[str, str]:
    """Return word without apostrophes -> word with them."""
    lines = (line for line in read_data("vqa_contractions.txt").splitlines() if not line.startswith("#"))
    return dict(map(str.split, lines))
