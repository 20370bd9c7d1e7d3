"""Prediction files that anyone's program may have written: VQA results, VCR scores, SNLI-VE labels.

They are read with suspicion: a missing, doubled or unknown item, a score that is not a number or an answer of another
type is an error that names the file and the item, never a number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.errors import DatasetError, advise

NUM_CHOICES = 4


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
    items = _read_json(path)
    if not isinstance(items, list):
        raise malformed(path, "expected a JSON list of {question_id, answer}")
    results: dict[int, str] = {}
    for number, item in enumerate(items):
        question_id = item.get("question_id") if isinstance(item, dict) else None
        if not isinstance(question_id, int) or isinstance(question_id, bool):
            raise malformed(path, f"item {number} has no question_id that is a whole number")
        if not isinstance(item.get("answer"), str):
            raise malformed(path, f"question_id {question_id}: the answer is not a text")
        if question_id in results:
            raise malformed(path, f"question_id {question_id} occurs twice")
        results[question_id] = item["answer"]
    return results


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
    scores = _read_npy(path) if path.suffix == ".npy" else _read_csv_scores(path, ids)
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
        value = _read_json(path)
        records = value if isinstance(value, list) else [None]
    labels: dict[str, str] = {}
    for number, record in enumerate(records, 1):
        pair_id = record.get("pairID") if isinstance(record, Mapping) else None
        if not isinstance(pair_id, str) or not isinstance(record.get("label"), str):
            raise malformed(path, f"item {number} is not {{pairID, label}}")
        if pair_id in labels:
            raise malformed(path, f"pairID {pair_id!r} occurs twice")
        labels[pair_id] = record["label"]
    return labels


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


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except OSError as error:
        raise malformed(path, error.strerror or "it cannot be read") from None
    except (ValueError, EOFError) as error:
        raise malformed(path, f"not an array: {error}") from None
    if array.dtype.kind not in "fiu":
        raise malformed(path, f"dtype {array.dtype}, expected numbers")
    return array


def _read_json(path: Path) -> Any:
    return _parse(path, _text(path), 0)


def _parse(path: Path, text: str, line: int) -> Any:
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
