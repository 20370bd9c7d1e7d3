"""`run_predict`: a finished run's predictions on a split, in the forms that the leaderboards take.

Each file passes its checks before it is called done.
VCR: CSV of `annot_id`, 4 answer scores and, given each of the 4 answers, 4 rationale scores (1 + 20 columns).
VQA: JSON list of {question_id, answer} for all questions of the split (EvalAI).
SNLI-VE: CSV of pairID and label; there is no server, `advl score snli-ve` takes it.
Data of one's own: CSV of id, index and prediction.

Legend: N questions, A answers that rationales are conditioned on, C choices, K classes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.atomic import make_folder, write_text
from advl_pipeline.compute import resolved
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.registry import benchmark_of, tasks_of
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.datasets.vcr import NUM_CHOICES, question_of
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation.config import PredictConfig
from advl_pipeline.evaluation.given import require_given
from advl_pipeline.evaluation.items import first_maximum
from advl_pipeline.evaluation.predict import FinishedRun, load_run
from advl_pipeline.evaluation.runner import example_parts, open_as_trained, score_matrices
from advl_pipeline.evaluation.scoring import malformed, read_csv_rows, read_vqa_results, require_same_ids
from advl_pipeline.outputs import require_outputs
from advl_pipeline.runs import names
from advl_pipeline.runs.results import moved_to, read_config

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
    for name in annot_ids:
        if not name.rpartition("-")[2].isdecimal():
            raise DatasetError("A VCR id has no number.", where=name, why="expected an id such as test-12")
    rows = [
        (name, np.concatenate([answers, rationales.reshape(-1)]))
        for name, answers, rationales in zip(annot_ids, answer_scores_NC, rationale_scores_NAC, strict=True)
    ]
    rows.sort(key=lambda row: (int(row[0].rpartition("-")[2]), row[0]))
    # str() of a NumPy number is the shortest text that reads back as the same number.
    _write_csv(path, VCR_COLUMNS, [[name, *map(str, scores)] for name, scores in rows])
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
    _write_csv(path, ("pairID", "label"), list(labels.items()))


def write_own_predictions(path: Path, rows: Mapping[str, tuple[int, str]]) -> None:
    """Write a CSV of id, position of the answer among choices or classes, and its text, and check it.

    A text that a spreadsheet would run as a formula begins with an apostrophe. The official forms take ids and labels
    as they are, so that nothing is put before those.

    Raises:
        DatasetError: it does not read back as it was meant.
    """
    written = [(_as_text(name), str(place), _as_text(text)) for name, (place, text) in rows.items()]
    _write_csv(path, ("id", "index", "prediction"), written)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
    require_same_ids(path, [cells[0] for _, cells in list(read_csv_rows(path))[1:]], [row[0] for row in rows])


def _as_text(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; numbers stay as they are."""
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_finite(cell) else cell


def _is_finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictResult:
    """The checked file, the questions in it, and how many of all texts are longer than the student takes."""

    path: Path
    dataset: str
    split: str
    num_items: int
    num_cut: int


def run_predict(config: PredictConfig) -> PredictResult:
    """Predict a split and write the file; it is read back and checked before this returns.

    Raises:
        ConfigError: no such run or split, the run lacks one of VCR's two tasks, or a file that holds no predictions
            lies there.
        WeightsUnavailable: the run is not finished. DatasetError: the split is missing or malformed.
    """
    require_outputs(config)
    require_given(config.run, (config.on,), config.data_root)
    config = resolved(config)
    trained_on = read_config(config.run)
    config = replace(config, data_root=moved_to(config.data_root, trained_on))
    name, split = set_name(config.on, trained_on["dataset"])
    tasks = tasks_of(name, config.data_root)
    usual = f"{config.on.replace('/', '--')}{'.json' if tasks == ('vqa',) else '.csv'}"
    path = config.output or config.run / names.PREDICTIONS / usual
    require_outputs(config, reads=(name, str(trained_on["dataset"])), output=path)
    is_vcr = "vcr-q2a" in tasks
    untrained = set(tasks) - set(trained_on["task"] or tasks)
    if is_vcr and untrained:
        raise ConfigError(
            "A VCR submission needs both tasks.",
            where=str(config.run),
            why=f"the run was not trained on {', '.join(sorted(untrained))}",
        )
    finished = load_run(config.run, config)
    finished.student.cut_texts()
    conditioning = "all" if is_vcr else None
    # Of one's own data, only what the run learned. A run of other tasks answers all, by the heads that they share.
    is_benchmark = benchmark_of(name) is not None
    learned = () if is_benchmark else tuple(task for task in tasks if task in trained_on["task"])
    dataset = open_as_trained(
        config, finished, trained_on, dataset=name, split=split, conditioning=conditioning, tasks=learned
    )
    make_folder(path.parent)
    if is_vcr:
        num_items = _predict_vcr(config, finished, dataset, path)
    else:
        rows = dict[str, tuple[int, str]]()
        for task in dataset.tasks:
            label_names = finished.label_names[task] if is_benchmark else dataset.label_names(task)
            for part in example_parts(dataset):
                examples = [example for example in part if example.task == task]
                rows |= _predicted(config, finished, examples, label_names) if examples else {}
        num_items = len(rows)
        if not is_benchmark:
            write_own_predictions(path, rows)
        elif dataset.tasks == ("vqa",):
            write_vqa_submission(path, {int(name): text for name, (_, text) in rows.items()})
        else:
            write_snli_ve_predictions(path, {name: text for name, (_, text) in rows.items()})
    num_cut = sum(finished.student.count_cut(part) for part in example_parts(dataset))
    return PredictResult(path=path, dataset=name, split=split, num_items=num_items, num_cut=num_cut)


def _predict_vcr(config: PredictConfig, finished: FinishedRun, dataset: IndexedDataset, path: Path) -> int:
    """Score the 20 sequences of each question; examples lie as answer, then rationales given answer 0 to 3."""
    per_question = 1 + NUM_CHOICES
    annot_ids = [question_of(name) for name in dataset.example_ids[::per_question]]
    answers, rationales = [], []
    for part in example_parts(dataset, multiple_of=per_question):
        answers.append(score_matrices(finished, part[::per_question], config.batch_size)[0])
        conditioned = [example for index, example in enumerate(part) if index % per_question]
        scores = score_matrices(finished, conditioned, config.batch_size)[0]
        rationales.append(scores.reshape(-1, NUM_CHOICES, NUM_CHOICES))
    write_vcr_submission(path, annot_ids, np.concatenate(answers), np.concatenate(rationales))
    return len(annot_ids)


def _predicted(
    config: PredictConfig, finished: FinishedRun, examples: Sequence[Example], label_names: Sequence[str]
) -> dict[str, tuple[int, str]]:
    """Return example id -> the place of its answer among classes or choices, and its text."""
    ids = [example.example_id for example in examples]
    if config.generate and examples[0].task == "vqa":
        texts = finished.generated(examples, batch_size=config.batch_size)
        return {name: (0, text) for name, text in zip(ids, texts, strict=True)}
    chosen = first_maximum(score_matrices(finished, examples, config.batch_size)[0], ids).tolist()
    if label_names:
        return {name: (place, label_names[place]) for name, place in zip(ids, chosen, strict=True)}
    answers = [example.candidates[place] for example, place in zip(examples, chosen, strict=True)]
    return {
        name: (place, answer.text[answer.answer_start :])
        for name, place, answer in zip(ids, chosen, answers, strict=True)
    }
