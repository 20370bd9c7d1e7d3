"""`run_score_*`: score prediction files by the official rules, without any model.

Anyone's program may have written them: VQA results, VCR scores, SNLI-VE labels. So they are read with suspicion: a
missing, doubled or unknown item, a score that is not a number or an answer of another type is an error that names the
file and the item, never a number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.row_files import json_items, json_lines, text_field
from advl_pipeline.datasets.snli_ve import LABEL_ORDERS, gold_label
from advl_pipeline.datasets.vcr import vcr_labels
from advl_pipeline.datasets.vqa_answers import GroundTruth, parse_annotation, whole_number
from advl_pipeline.errors import DatasetError, advise
from advl_pipeline.evaluation.config import ScoreSnliVeConfig, ScoreVcrConfig, ScoreVqaConfig
from advl_pipeline.evaluation.official_metrics import SnliVeAccuracy, VqaAccuracy, snli_ve_accuracy, vqa_accuracy

Item = TypeVar("Item")
Name = TypeVar("Name", int, str)

NUM_CHOICES = 4


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

    def question(item: Any) -> tuple[int, None]:
        if not isinstance(item, dict):
            raise Malformed("a question is not an object")
        return whole_number(item, "question_id"), None

    def annotation(item: Any) -> tuple[int, GroundTruth]:
        question_id, _, truth = parse_annotation(item)
        return question_id, truth

    questions = _annotated(config.questions, json_items(config.questions, "questions"), question)
    truths = _annotated(config.annotations, json_items(config.annotations, "annotations"), annotation)
    if different := questions.keys() ^ truths.keys():
        raise DatasetError(
            "Questions and annotations do not belong together.",
            where=str(config.annotations),
            why=f"question_id {min(different)} is in one of them only",
        )
    results = read_vqa_results(config.results)
    require_same_ids(config.results, map(str, results), map(str, truths))
    return vqa_accuracy(truths.items(), results, config.mode)


def run_score_vcr(config: ScoreVcrConfig) -> ScoreVcrResult:
    """Score two files of VCR scores by the first maximum of each four. Checked against r2c's `eval_q2ar.py`.

    Raises:
        DatasetError: a file is missing or malformed, the shapes do not fit, or there are no questions.
    """
    labels = _lines(config.annotations, lambda line: (text_field(line, "annot_id"), vcr_labels(line, labelled=True)))
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
    gold = _lines(config.annotations, lambda line: (text_field(line, "pairID"), gold_label(line)))
    predicted = read_pair_labels(config.results)
    require_same_ids(config.results, predicted, gold)
    for pair_id, label in predicted.items():
        if label not in names:
            raise malformed(config.results, f"pairID {pair_id}: label {label!r} is not one of {', '.join(names)}")
    predicted_N = np.array([names.index(predicted[pair_id]) for pair_id in gold], dtype=np.int64)
    labels_N = np.array([names.index(label) for label in gold.values()], dtype=np.int64)
    return snli_ve_accuracy(predicted_N, labels_N, names)


def _lines(path: Path, parse: Callable[[dict[str, Any]], tuple[str, Item]]) -> dict[str, Item]:
    if not path.is_file():
        raise DatasetError("The annotations are missing.", where=str(path))
    return _annotated(path, json_lines(path), parse)


def _annotated(
    path: Path, records: Iterable[tuple[int, Any]], parse: Callable[[Any], tuple[Name, Item]]
) -> dict[Name, Item]:
    """Return what a file of annotations holds: id -> item; `records` are lines and what begins there."""
    found: dict[Name, Item] = {}
    for line, record in records:
        try:
            if isinstance(record, Malformed):
                raise record
            name, item = parse(record)
            if name in found:
                raise Malformed(f"{name!r} occurs twice")
        except Malformed as error:
            raise DatasetError("The annotations are malformed.", where=f"{path}:{line}", why=str(error)) from None
        found[name] = item
    return found


def malformed(path: Path, why: str, *, line: int = 0) -> DatasetError:
    """Return the error for a prediction file that cannot be used."""
    where = f"{path}:{line}" if line else str(path)
    return DatasetError(
        "A prediction file cannot be used.",
        where=where,
        why=why,
        next_command=advise(["advl", "score", "--help"], note="what such files must hold"),
    )


def require_same_ids(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse a file whose items are not exactly the annotated ones.

    Raises:
        DatasetError: names the first id that only one side has, and counts them.
    """
    found_ids, expected_ids = set(found), set(expected)
    for what, ids in (("lacks", expected_ids - found_ids), ("has the unknown item", found_ids - expected_ids)):
        if ids:
            raise malformed(path, f"it {what} {min(ids)}, {len(ids)} such items in all")


def read_vqa_results(path: Path) -> dict[int, str]:
    """Read a VQA result file: a JSON list of {"question_id": int, "answer": str}.

    Raises:
        DatasetError: missing, malformed, or a question twice.
    """
    items = _parse(path, _text(path))
    if not isinstance(items, list):
        raise malformed(path, "expected a JSON list of {question_id, answer}")
    return _texts(path, items, id_key="question_id", id_kind=int, text_key="answer")


def _texts(path: Path, records: Sequence[Any], *, id_key: str, id_kind: type[Name], text_key: str) -> dict[Name, str]:
    """Return the text of each record by its id."""
    texts: dict[Name, str] = {}
    for number, record in enumerate(records):
        name = record.get(id_key) if isinstance(record, Mapping) else None
        if not isinstance(name, id_kind) or isinstance(name, bool):
            kind = "a whole number" if id_kind is int else "a text"
            raise malformed(path, f"item {number} has no {id_key} that is {kind}")
        if not isinstance(record.get(text_key), str):
            raise malformed(path, f"{id_key} {name}: the {text_key} is not a text")
        if name in texts:
            raise malformed(path, f"{id_key} {name} occurs twice")
        texts[name] = record[text_key]
    return texts


def read_choice_scores(path: Path, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Read scores of four choices per item.

    Args:
        path: `.npy` of shape (items, 4); or CSV with four columns of scores, with or without a header line, and
            with or without a first column `annot_id`. Without ids the order is that of the annotations.
        ids: `annot_id` of the annotations, in order.

    Returns:
        float64 (len(ids), 4).

    Raises:
        DatasetError: missing, malformed, of another length, or with a score that is not a number.
    """
    if path.suffix not in (".npy", ".csv"):
        raise malformed(path, "scores are read from .npy or .csv")
    if path.suffix == ".csv":
        scores = _read_csv_scores(path, ids)
    else:
        try:
            scores = np.load(path, allow_pickle=False)
        except OSError as error:
            raise malformed(path, error.strerror or "it cannot be read") from None
        except (ValueError, EOFError) as error:
            raise malformed(path, f"not an array: {error}") from None
        if scores.dtype.kind not in "fiu":
            raise malformed(path, f"dtype {scores.dtype}, expected numbers")
    if scores.shape != (len(ids), NUM_CHOICES):
        raise malformed(path, f"shape {scores.shape}, the annotations need {(len(ids), NUM_CHOICES)}")
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(bad):
        raise malformed(path, f"the scores of {ids[int(bad[0])]} are not all numbers ({len(bad)} such items)")
    return scores.astype(np.float64)


def read_pair_labels(path: Path) -> dict[str, str]:
    """Read SNLI-VE predictions: label name by pairID.

    Args:
        path: JSON list or JSONL of {"pairID", "label"} objects, or CSV with the columns pairID and label.

    Raises:
        DatasetError: missing, malformed, or a pair twice.
    """
    if path.suffix == ".csv":
        rows = [cells for _, cells in read_csv_rows(path)]
        records: list[Any] = [dict(zip(rows[0], cells, strict=False)) for cells in rows[1:]]
    elif path.suffix == ".jsonl":
        lines = enumerate(_text(path).split("\n"), 1)
        records = [_parse(path, line, number) for number, line in lines if line.strip()]
    else:
        value = _parse(path, _text(path))
        records = value if isinstance(value, list) else [None]
    return _texts(path, records, id_key="pairID", id_kind=str, text_key="label")


def _read_csv_scores(path: Path, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    rows: list[tuple[str, list[float]]] = []
    for number, cells in read_csv_rows(path):
        if not rows and not _is_number(cells[-1]):
            continue
        if len(cells) not in (NUM_CHOICES, NUM_CHOICES + 1):
            raise malformed(path, f"{len(cells)} columns, expected 4, or annot_id and 4", line=number)
        if not all(map(_is_number, cells[-NUM_CHOICES:])):
            raise malformed(path, "a score is not a number", line=number)
        name = cells[0] if len(cells) > NUM_CHOICES else ""
        rows.append((name, [float(cell) for cell in cells[-NUM_CHOICES:]]))
    if not any(name for name, _ in rows):
        return np.array([scores for _, scores in rows], dtype=np.float64).reshape(-1, NUM_CHOICES)
    by_id = dict(rows)
    require_same_ids(path, list(by_id), ids)
    if len(by_id) != len(rows):
        raise malformed(path, f"{len(rows) - len(by_id)} ids occur twice")
    return np.array([by_id[name] for name in ids], dtype=np.float64)


def _parse(path: Path, text: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed(path, f"not JSON: {error}", line=line) from None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise malformed(path, error.strerror or "it cannot be read") from None
    except UnicodeDecodeError as error:
        raise malformed(path, f"not UTF-8: {error.reason} at byte {error.start}") from None


def read_csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of the rows of a CSV file that are not empty.

    Raises:
        DatasetError: missing, not UTF-8 or not CSV.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise malformed(path, str(error), line=reader.line_num) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
