"""`run_score_*`: score prediction files by the official rules, without any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import json_items, json_lines, text_field
from advl_pipeline.datasets.snli_ve import LABEL_ORDERS, gold_label
from advl_pipeline.datasets.vcr import vcr_labels
from advl_pipeline.datasets.vqa_answers import GroundTruth, parse_annotation, whole_number
from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.config import ScoreSnliVeConfig, ScoreVcrConfig, ScoreVqaConfig
from advl_pipeline.evaluation.official_metrics import SnliVeAccuracy, VqaAccuracy, snli_ve_accuracy, vqa_accuracy
from advl_pipeline.evaluation.prediction_files import (
    malformed,
    read_choice_scores,
    read_pair_labels,
    read_vqa_results,
    require_same_ids,
)

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreVcrResult:
    """Accuracies in percent: Q->A, QA->R given the right answer, and Q->AR, where both must be right."""

    num_items: int
    q2a: float
    qa2r: float
    q2ar: float


def run_score_vqa(config: ScoreVqaConfig) -> VqaAccuracy:
    """Score a VQA result file.

    Raises:
        DatasetError: a file is missing or malformed, or questions, annotations and results differ in their ids.
    """
    questions = {question_id for question_id, _ in _vqa_items(config.questions, "questions", _question_id)}
    truths = dict(_vqa_items(config.annotations, "annotations", _annotation))
    if questions != set(truths):
        different = min(questions ^ set(truths))
        raise DatasetError(
            "Questions and annotations do not belong together.",
            where=str(config.annotations),
            why=f"question_id {different} is in one of them only",
        )
    results = read_vqa_results(config.results)
    require_same_ids(config.results, map(str, results), map(str, truths))
    return vqa_accuracy(truths.items(), results, config.mode)


def run_score_vcr(config: ScoreVcrConfig) -> ScoreVcrResult:
    """Score two files of VCR scores by the first maximum of each four. Checked against r2c's `eval_q2ar.py`.

    Raises:
        DatasetError: a file is missing or malformed, the shapes do not fit, or there are no questions.
    """
    labels = dict(
        _lines(config.annotations, lambda line: (text_field(line, "annot_id"), vcr_labels(line, labelled=True)))
    )
    ids = tuple(labels)
    if not ids:
        raise DatasetError("There is nothing to score.", where=str(config.annotations))
    files = (config.answers, config.rationales)
    chosen_N2 = np.stack([read_choice_scores(file, ids).argmax(axis=1) for file in files], axis=1)
    right_N2 = chosen_N2 == np.array(list(labels.values()))
    q2a, qa2r = 100.0 * right_N2.sum(axis=0) / len(ids)
    q2ar = 100.0 * right_N2.all(axis=1).sum() / len(ids)
    return ScoreVcrResult(num_items=len(ids), q2a=float(q2a), qa2r=float(qa2r), q2ar=float(q2ar))


def run_score_snli_ve(config: ScoreSnliVeConfig) -> SnliVeAccuracy:
    """Score a file of SNLI-VE predictions.

    Raises:
        DatasetError: a file is missing or malformed, or the pairs differ.
    """
    names = LABEL_ORDERS["meter"]
    gold = dict(_lines(config.annotations, lambda line: (text_field(line, "pairID"), gold_label(line))))
    predicted = read_pair_labels(config.results)
    require_same_ids(config.results, predicted, gold)
    for pair_id, label in predicted.items():
        if label not in names:
            raise malformed(config.results, f"pairID {pair_id}: label {label!r} is not one of {', '.join(names)}")
    predicted_N = np.array([names.index(predicted[pair_id]) for pair_id in gold], dtype=np.int64)
    labels_N = np.array([names.index(label) for label in gold.values()], dtype=np.int64)
    return snli_ve_accuracy(predicted_N, labels_N, names)


def _question_id(item: Any) -> tuple[int, None]:
    if not isinstance(item, dict):
        raise Malformed("a question is not an object")
    return whole_number(item, "question_id"), None


def _annotation(item: Any) -> tuple[int, GroundTruth]:
    question_id, _, truth = parse_annotation(item)
    return question_id, truth


def _vqa_items(path: Path, key: str, parse: Callable[[Any], tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    seen: set[int] = set()
    for line, item in json_items(path, key):
        try:
            question_id, parsed = parse(item)
            if question_id in seen:
                raise Malformed(f"question_id {question_id} occurs twice")
        except Malformed as error:
            raise _bad_annotation(path, line, error) from None
        seen.add(question_id)
        yield question_id, parsed


def _lines(path: Path, parse: Callable[[dict[str, Any]], tuple[str, Item]]) -> Iterator[tuple[str, Item]]:
    if not path.is_file():
        raise DatasetError("The annotations are missing.", where=str(path))
    seen: set[str] = set()
    for line, record in json_lines(path):
        try:
            if isinstance(record, Malformed):
                raise record
            name, parsed = parse(record)
            if name in seen:
                raise Malformed(f"{name!r} occurs twice")
        except Malformed as error:
            raise _bad_annotation(path, line, error) from None
        seen.add(name)
        yield name, parsed


def _bad_annotation(path: Path, line: int, error: Malformed) -> DatasetError:
    return DatasetError("The annotations are malformed.", where=f"{path}:{line}", why=str(error))
