"""`run_predict`: write a finished run's predictions on a split in the formats of the leaderboards.

VCR: CSV of `annot_id`, 4 answer scores and, given each of the 4 answers, 4 rationale scores (1 + 20 columns).
VQA: JSON list of {question_id, answer} for all questions of the split (EvalAI).
SNLI-VE: CSV of pairID and label, for `examples/score_files.py`, since there is no server.
Own data: CSV of id, index and prediction.

Shapes: N questions, A answers that rationales are conditioned on, C choices, K classes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.atomic import make_folder, write_text
from advl_pipeline.base.compute import resolved
from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.inert import inert_cell
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.records import TASKS, Example
from advl_pipeline.datasets.roots import set_name
from advl_pipeline.datasets.vcr import NUM_CHOICES, annotation_of
from advl_pipeline.evaluation.config import PredictConfig
from advl_pipeline.evaluation.items import first_maximum
from advl_pipeline.evaluation.open_sets import example_parts, open_as_trained
from advl_pipeline.evaluation.predict import FinishedRun, load_finished
from advl_pipeline.evaluation.prepare import PreparedScoring
from advl_pipeline.evaluation.score_parts import score_matrices, texts_of
from advl_pipeline.runs import names

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
    """Write the CSV of the VCR leaderboard, with rows sorted by the number after the dash.

    Args:
        annot_ids: ids such as "test-12".
        answer_scores_NC: logits or probabilities (N, 4).
        rationale_scores_NAC: logits or probabilities (N, 4, 4), [question, conditioning answer, rationale].

    Raises:
        DatasetError: a score is not finite, or an id has no number.
    """
    scores_NF = np.concatenate([answer_scores_NC, rationale_scores_NAC.reshape(len(annot_ids), -1)], axis=1)
    rows = []
    for name, scores_F in zip(annot_ids, scores_NF, strict=True):
        number = name.rpartition("-")[2]
        if not number.isdecimal():
            raise DatasetError("A VCR id has no number.", where=name, why="expected an id such as test-12")
        if not np.isfinite(scores_F).all():
            raise DatasetError("A score is not a finite number.", where=name, why="the run has most likely diverged")
        # str() of a NumPy number is the shortest text that parses to the same number.
        rows.append((int(number), [name, *map(str, scores_F)]))
    write_csv(path, VCR_COLUMNS, [cells for _, cells in sorted(rows)])


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV with a header; raise the errors of `atomic.write_text`."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictResult:
    """The file, the number of its questions, and how many of all texts exceed the student's length limit."""

    path: Path
    dataset: str
    split: str
    num_items: int
    num_cut: int


def run_predict(prepared: PreparedScoring[PredictConfig]) -> PredictResult:
    """Predict a split and write the file.

    Args:
        prepared: as `prepare_scoring` returns it.

    Raises:
        ConfigError: the run lacks one of VCR's two tasks, or the output would overwrite a file that contains no
            predictions.
        WeightsUnavailable: a file of the run is missing. DatasetError: the split is missing or malformed.
    """
    config = resolved(prepared.config)
    trained_on = prepared.trained_on
    name, split = set_name(config.on, trained_on["dataset"])
    spec = prepared.datasets[name]
    tasks = spec.tasks
    usual = f"{config.on.replace('/', '--')}{'.json' if tasks == ('vqa',) else '.csv'}"
    path = config.output or config.run / names.PREDICTIONS / usual
    require_outputs(config, reads=(name, str(trained_on["dataset"])), output=path)
    is_vcr = "vcr-q2a" in tasks
    untrained = set(tasks) - set(trained_on["task"] or tasks)
    if is_vcr and untrained:
        raise ConfigError(
            "A VCR submission needs a run of both tasks, answers and rationales.",
            where=str(config.run),
            why=f"the run was not trained on {', '.join(sorted(untrained))}",
        )
    finished = load_finished(config.run, config, trained_on=trained_on)
    if config.generate:
        finished.require_generates("--generate")
    # A run trained on other tasks answers all of them with the shared heads.
    learned = tuple(task for task in tasks if task in trained_on["task"])
    dataset = open_as_trained(config, finished, spec, split, every_answer=is_vcr, tasks=learned)
    make_folder(path.parent)
    if is_vcr:
        num_items = _predict_vcr(config, finished, dataset, path)
    else:
        rows = dict[str, tuple[int, str]]()
        for task in dataset.tasks:
            for part in example_parts(dataset):
                examples = [example for example in part if example.task == task]
                rows |= _predicted(config, finished, examples, dataset.label_names(task)) if examples else {}
        num_items = len(rows)
        # The official formats need ids and labels unchanged; texts of own data may come from anyone.
        if dataset.tasks == ("vqa",):
            answers = [{"question_id": int(name), "answer": text} for name, (_, text) in rows.items()]
            write_text(path, json.dumps(answers, ensure_ascii=False) + "\n")
        elif dataset.tasks == ("snli-ve",):
            write_csv(path, ("pairID", "label"), [(name, text) for name, (_, text) in rows.items()])
        else:
            cells = ((inert_cell(name), str(place), inert_cell(text)) for name, (place, text) in rows.items())
            write_csv(path, ("id", "index", "prediction"), cells)
    num_cut = sum(finished.count_cut(part) for part in example_parts(dataset))
    return PredictResult(path=path, dataset=name, split=split, num_items=num_items, num_cut=num_cut)


def _predict_vcr(config: PredictConfig, finished: FinishedRun, dataset: IndexedDataset, path: Path) -> int:
    """Score the 20 sequences of each question: the answers, then the rationales given answers 0 to 3."""
    per_question = 1 + NUM_CHOICES
    annot_ids = [annotation_of(name) for name in dataset.example_ids[::per_question]]
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
    """Return example id -> position of its answer among the classes or choices, and its text."""
    ids = [example.example_id for example in examples]
    if config.generate and TASKS[examples[0].task].by_annotators:
        chosen, texts = [0] * len(ids), list(finished.generated(examples, batch_size=config.batch_size))
    else:
        chosen = first_maximum(score_matrices(finished, examples, config.batch_size)[0], ids).tolist()
        texts = texts_of(examples, chosen, label_names)
    return {name: (place, text) for name, place, text in zip(ids, chosen, texts, strict=True)}
