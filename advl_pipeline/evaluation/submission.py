"""What the leaderboards take, written from arrays, and the checks that a file passes before it is called done.

VCR: CSV of `annot_id`, 4 answer scores and, given each of the 4 answers, 4 rationale scores (1 + 20 columns).
VQA: JSON list of {question_id, answer} for all questions of the split (EvalAI).
SNLI-VE: CSV of pairID and label; there is no server, `advl score snli-ve` takes it.
Data of one's own: CSV of id, index and prediction.

Legend: N questions, A answers that rationales are conditioned on, C choices.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.atomic import write_text
from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.prediction_files import (
    malformed,
    read_csv_rows,
    read_vqa_results,
    require_same_ids,
)

NUM_CHOICES = 4
VCR_COLUMNS = (
    "annot_id",
    *(f"answer_{choice}" for choice in range(NUM_CHOICES)),
    *(
        f"rationale_conditioned_on_a{answer}_{choice}"
        for answer in range(NUM_CHOICES)
        for choice in range(NUM_CHOICES)
    ),
)


def write_vcr_submission(
    path: Path,
    annot_ids: Sequence[str],
    answer_scores_NC: npt.NDArray[np.floating],
    rationale_scores_NAC: npt.NDArray[np.floating],
) -> None:
    """Write the VCR leaderboard's CSV, rows by the number after the dash, and check it.

    Args:
        annot_ids: such as "test-12".
        answer_scores_NC: logits or probabilities (N, 4).
        rationale_scores_NAC: (N, 4, 4), [question, answer that it is conditioned on, rationale].

    Raises:
        DatasetError: a score is not finite or an id occurs twice.
    """
    rows = [
        (name, np.concatenate([answers, rationales.reshape(-1)]))
        for name, answers, rationales in zip(annot_ids, answer_scores_NC, rationale_scores_NAC, strict=True)
    ]
    rows.sort(key=lambda row: _number_of(row[0]))
    # str() of a NumPy number is the shortest text that reads back as the same number.
    _write_csv(path, VCR_COLUMNS, ([name, *map(str, scores)] for name, scores in rows))
    check_vcr_submission(path, annot_ids)


def check_vcr_submission(path: Path, annot_ids: Sequence[str]) -> None:
    """Check a VCR submission: header, one row per question, finite scores.

    Raises:
        DatasetError: names what is wrong, and the line.
    """
    rows = list(read_csv_rows(path))
    if not rows or tuple(rows[0][1]) != VCR_COLUMNS:
        raise malformed(path, f"the header is not {','.join(VCR_COLUMNS[:3])},... of {len(VCR_COLUMNS)} columns")
    seen: dict[str, int] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(VCR_COLUMNS):
            raise malformed(path, f"{len(cells)} columns, expected {len(VCR_COLUMNS)}", line=line)
        if cells[0] in seen:
            raise malformed(path, f"annot_id {cells[0]} was on line {seen[cells[0]]} already", line=line)
        if not all(map(_is_finite, cells[1:])):
            raise malformed(path, f"a score of {cells[0]} is not a finite number", line=line)
        seen[cells[0]] = line
    require_same_ids(path, seen, annot_ids)


def write_vqa_submission(path: Path, answers: Mapping[int, str]) -> None:
    """Write EvalAI's JSON for VQA, question id -> answer, and check it.

    Raises:
        DatasetError: an answer is not a text.
    """
    items = [{"question_id": question_id, "answer": answer} for question_id, answer in answers.items()]
    write_text(path, json.dumps(items, ensure_ascii=False) + "\n")
    check_vqa_submission(path, answers)


def check_vqa_submission(path: Path, question_ids: Iterable[int]) -> None:
    """Check a VQA submission: exactly the questions of the split, each with a text.

    Raises:
        DatasetError: names what is wrong.
    """
    require_same_ids(path, map(str, read_vqa_results(path)), map(str, question_ids))


def write_snli_ve_predictions(path: Path, labels: Mapping[str, str]) -> None:
    """Write a CSV of pairID and label name, and check it.

    Raises:
        DatasetError: it does not read back as it was meant.
    """
    _write_csv(path, ("pairID", "label"), labels.items())
    require_same_ids(path, [cells[0] for _, cells in list(read_csv_rows(path))[1:]], labels)


def write_own_predictions(path: Path, rows: Mapping[str, tuple[int, str]]) -> None:
    """Write a CSV of id, position of the answer among choices or classes, and its text, and check it.

    A text that a spreadsheet would run as a formula begins with an apostrophe. The official forms take ids and labels
    as they are, so that nothing is put before those.

    Raises:
        DatasetError: it does not read back as it was meant.
    """
    written = [(_as_text(name), place, _as_text(text)) for name, (place, text) in rows.items()]
    _write_csv(path, ("id", "index", "prediction"), written)
    require_same_ids(path, [cells[0] for _, cells in list(read_csv_rows(path))[1:]], [name for name, _, _ in written])


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _as_text(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; numbers stay as they are."""
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_finite(cell) else cell


def _number_of(annot_id: str) -> tuple[int, str]:
    number = annot_id.rpartition("-")[2]
    if not number.isdecimal():
        raise DatasetError("A VCR id has no number.", where=annot_id, why="expected an id such as test-12")
    return int(number), annot_id


def _is_finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
