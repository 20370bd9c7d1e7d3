"""`run_score_*`: score prediction files by the official rules, without any model.

Any program may have written the files: VQA results, VCR scores, SNLI-VE labels. So they are checked strictly: a
missing, duplicate or unknown item, a score that is not a number, or an answer of another type is an error that names
the file and the item.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError, advise
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import DATASET_FILE, json_items, read_table, require_sound, text_field
from advl_pipeline.datasets.snli_ve import LABEL_ORDERS, gold_label
from advl_pipeline.datasets.vcr import NUM_CHOICES, vcr_labels
from advl_pipeline.datasets.vqa_answers import GroundTruth, parse_annotation, whole_number
from advl_pipeline.evaluation.config import ScoreSnliVeConfig, ScoreVcrConfig, ScoreVqaConfig
from advl_pipeline.evaluation.official_metrics import snli_ve_accuracy, vqa_accuracy

_PREDICTIONS = "A prediction file"
"""Subject of the error messages about one."""

Item = TypeVar("Item")
Name = TypeVar("Name", int, str)


def run_score_vqa(config: ScoreVqaConfig) -> dict[str, Any]:
    """Score a VQA result file: a JSON list of {"question_id": int, "answer": str}.

    Raises:
        DatasetError: a file is missing or malformed, or questions, annotations and results differ in their ids.
    """

    def question(item: Any) -> tuple[int, None]:
        if not isinstance(item, dict):
            raise Malformed("a question is not an object")
        return whole_number(item, "question_id"), None

    def annotation(item: Any) -> tuple[int, GroundTruth]:
        question_id, _, truth = parse_annotation(item)
        return question_id, truth

    def result(item: Any) -> tuple[int, str]:
        if not isinstance(item, dict) or not isinstance(item.get("answer"), str):
            raise Malformed("expected {question_id, answer}, the answer a text")
        return whole_number(item, "question_id"), item["answer"]

    questions = _by_id(config.questions, json_items(config.questions, "questions"), question)
    truths = _by_id(config.annotations, json_items(config.annotations, "annotations"), annotation)
    if different := questions.keys() ^ truths.keys():
        what, why = "Questions and annotations do not belong together.", f"question_id {min(different)}"
        raise DatasetError(what, where=str(config.annotations), why=f"{why} is in one of them only")
    results = _by_id(config.results, json_items(config.results, what=_PREDICTIONS), result, what=_PREDICTIONS)
    _require_same_ids(config.results, results, truths)
    return vqa_accuracy(truths.items(), results, config.mode)


def run_score_vcr(config: ScoreVcrConfig) -> dict[str, float]:
    """Score two files of VCR scores by the first maximum of each four. Checked against r2c's `eval_q2ar.py`.

    Returns:
        num_items, and in percent q2a, qa2r (given the right answer) and q2ar (both must be right).

    Raises:
        DatasetError: a file is missing or malformed, the shapes do not fit, or there are no questions.
    """
    labels = _by_id(
        config.annotations,
        read_table(config.annotations),
        lambda line: (text_field(line, "annot_id"), vcr_labels(line, labelled=True)),
    )
    ids = list(labels)
    if not ids:
        raise DatasetError("There is nothing to score.", where=str(config.annotations))
    files = (config.answers, config.rationales)
    chosen_N2 = np.stack([_choice_scores(file, ids).argmax(axis=1) for file in files], axis=1)
    right_N2 = chosen_N2 == np.array(list(labels.values()))
    q2a, qa2r = 100.0 * right_N2.sum(axis=0) / len(ids)
    q2ar = 100.0 * right_N2.all(axis=1).sum() / len(ids)
    return {"num_items": len(ids), "q2a": float(q2a), "qa2r": float(qa2r), "q2ar": float(q2ar)}


def run_score_snli_ve(config: ScoreSnliVeConfig) -> dict[str, Any]:
    """Score a file of SNLI-VE predictions: label name by pairID, in a JSON list, JSON lines or CSV.

    Raises:
        DatasetError: a file is missing or malformed, or the pairs differ.
    """
    names, results = LABEL_ORDERS["meter"], config.results
    gold = _by_id(
        config.annotations,
        read_table(config.annotations),
        lambda line: (text_field(line, "pairID"), gold_label(line)),
    )

    def prediction(record: Any) -> tuple[str, int]:
        if not isinstance(record, Mapping):
            raise Malformed("expected {pairID, label}")
        pair_id, label = text_field(record, "pairID"), text_field(record, "label")
        if label not in names:
            raise Malformed(f"pairID {pair_id}: label {label!r} is not one of {', '.join(names)}")
        return pair_id, names.index(label)

    is_table = results.suffix in (".csv", ".jsonl")
    records = read_table(results) if is_table else json_items(results, what=_PREDICTIONS)
    predicted = _by_id(results, records, prediction, what=_PREDICTIONS)
    _require_same_ids(results, predicted, gold)
    predicted_N = np.array([predicted[pair_id] for pair_id in gold], dtype=np.int64)
    labels_N = np.array([names.index(label) for label in gold.values()], dtype=np.int64)
    return snli_ve_accuracy(predicted_N, labels_N, names)


def _by_id(
    path: Path,
    records: Iterable[tuple[int, Any]],
    parse: Callable[[Any], tuple[Name, Item]],
    *,
    what: str = DATASET_FILE,
) -> dict[Name, Item]:
    """Return the items of a file by id.

    `records` are (line, record) pairs; `what` is the subject of the error message about the file.
    """
    items: dict[Name, Item] = {}

    def named(record: Any) -> tuple[Name, Item]:
        name, item = parse(record)
        if name in items:
            raise Malformed(f"{name!r} occurs twice")
        return name, item

    items.update(require_sound(path, records, named, what=what))
    return items


def _malformed(path: Path, why: str) -> DatasetError:
    return DatasetError(
        f"{_PREDICTIONS} cannot be used.",
        where=str(path),
        why=why,
        next_command=advise(["advl", "score", "--help"], note="what such files must hold"),
    )


def _require_same_ids(path: Path, ids_of_file: Collection[Name], expected: Collection[Name]) -> None:
    """Refuse a file whose items are not exactly the annotated ones, naming the first id that only one side has."""
    for what, ids in (
        ("lacks", {*expected} - {*ids_of_file}),
        ("has the unknown item", {*ids_of_file} - {*expected}),
    ):
        if ids:
            raise _malformed(path, f"it {what} {min(ids)}, {len(ids)} such items in all")


def _choice_scores(path: Path, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return float64 (len(ids), 4) scores: `.npy` in the order of the annotations, or CSV with a first column of ids.

    Raises:
        DatasetError: the file is missing, malformed or of another length, or a score is not a number.
    """
    if path.suffix not in (".npy", ".csv"):
        raise _malformed(path, "scores are read from .npy or .csv")
    if path.suffix == ".csv":
        by_id = _by_id(path, read_table(path), _scores_of_line, what=_PREDICTIONS)
        _require_same_ids(path, by_id, ids)
        scores = np.array([by_id[name] for name in ids])
    else:
        try:
            scores = np.load(path, allow_pickle=False)
        except OSError as error:
            raise _malformed(path, error.strerror or "it cannot be read") from None
        except (ValueError, EOFError) as error:
            raise _malformed(path, f"not an array: {error}") from None
        if scores.dtype.kind not in "fiu":
            raise _malformed(path, f"dtype {scores.dtype}, expected numbers")
    if scores.shape != (len(ids), NUM_CHOICES):
        raise _malformed(path, f"shape {scores.shape}, the annotations need {(len(ids), NUM_CHOICES)}")
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(bad):
        raise _malformed(path, f"the scores of {ids[int(bad[0])]} are not all numbers ({len(bad)} such items)")
    return scores.astype(np.float64)


def _scores_of_line(record: Mapping[str, Any]) -> tuple[str, list[float]]:
    name = text_field(record, "annot_id")
    try:
        scores = [float(cell or "nan") for column, cell in record.items() if column != "annot_id"]
    except ValueError as error:
        raise Malformed(f"a score is no number: {error}") from None
    if len(scores) != NUM_CHOICES:
        raise Malformed(f"{len(scores)} scores, expected {NUM_CHOICES}")
    return name, scores
