"""`run_evaluate`: score a finished run on test sets, per item, with and without its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.atomic import write_text
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example, Task
from advl_pipeline.datasets.registry import open_dataset, vqa_mode_of
from advl_pipeline.datasets.vqa import VqaDataset
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import ItemScores, joint_items, score_answers, score_items
from advl_pipeline.evaluation.predict import FinishedRun, load_run
from advl_pipeline.evaluation.use_of_vision import swapped_pictures, with_picture
from advl_pipeline.evaluation.vqa import VqaMode
from advl_pipeline.training.run import read_config

METRIC_OF_TASK: Mapping[Task, str] = {"vcr-q2a": "q2a", "vcr-qa2r": "qa2r", "vqa": "vqa", "snli-ve": "snli_ve"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateResult:
    """One document per test set, as written to evaluation/<set>.json."""

    run: Path
    sets: dict[str, dict[str, Any]]


def run_evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Evaluate on each named set and write `evaluation/<set>.json` and `.npz` into the run folder.

    Raises:
        ConfigError: no such run, or a set of another kind of task. WeightsUnavailable: the run is not finished.
        DatasetError: a test set that is missing or has no labels.
    """
    trained_on = read_config(config.run)
    finished = load_run(config.run, device=config.device)
    sets: dict[str, dict[str, Any]] = {}
    for name in config.on:
        dataset_name, _, split = name.rpartition("/")
        dataset = open_dataset(
            dataset_name or trained_on["dataset"],
            split=split,
            data_root=config.data_root,
            tasks=tuple(trained_on["task"]),
            text_style=trained_on.get("text_style"),
            label_order=trained_on.get("label_order", "uniter"),
        )
        require_same_labels(dataset, finished)
        sets[name] = _evaluate_set(config, finished, dataset, name)
    return EvaluateResult(run=config.run, sets=sets)


def _evaluate_set(config: EvaluateConfig, finished: FinishedRun, dataset: Dataset, name: str) -> dict[str, Any]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    metrics: dict[str, float] = {}
    swapped_metrics: dict[str, float] = {}
    items: dict[str, ItemScores] = {}
    swapped_items: dict[str, ItemScores] = {}
    mode = config.vqa_mode or vqa_mode_of(dataset.name)
    others = swapped_pictures(dataset.image_units(), seed=0) if config.swap_images else {}
    for task in dataset.tasks:
        examples = [dataset[index] for index in _positions(dataset, task)]
        metric = METRIC_OF_TASK[task]
        scores = score_matrix(finished, examples, config.batch_size)
        score = _scorer(dataset, finished, mode) if task == "vqa" else score_items
        items[metric] = score(examples, scores)
        arrays[f"scores/{task}"] = scores
        arrays[f"example_ids/{task}"] = np.array([example.example_id for example in examples])
        if task != "vqa":
            arrays[f"labels/{task}"] = np.array([example.label for example in examples], dtype=np.int64)
        if config.swap_images:
            moved = [with_picture(example, others[example.image.unit_id]) for example in examples]
            swapped_items[metric] = score(examples, score_matrix(finished, moved, config.batch_size))
    for found, percent, prefix in (
        (items, metrics, "item"),
        (swapped_items, swapped_metrics, "item_swapped"),
    ):
        if {"q2a", "qa2r"} <= set(found):
            found["q2ar"] = joint_items(found["q2a"], found["qa2r"])
        for metric, one in found.items():
            arrays[f"{prefix}/{metric}"] = one.score
            arrays[f"{prefix}_ids/{metric}"] = np.array(one.question_ids)
            percent[metric] = 100.0 * float(one.score.mean())
    document: dict[str, Any] = {
        "dataset": dataset.name,
        "split": dataset.split,
        "content_digest": dataset.content_digest(),
        "num_items": {metric: len(one.score) for metric, one in items.items()},
        "metrics": metrics,
    }
    if "vqa" in metrics:
        document["vqa_mode"] = mode
    if config.swap_images:
        document["use_of_vision"] = {
            metric: {"swapped": swapped_metrics[metric], "drop": metrics[metric] - swapped_metrics[metric]}
            for metric in metrics
        }
    _write(config.run, name, document, arrays)
    return document


def score_matrix(finished: FinishedRun, examples: Sequence[Example], batch_size: int) -> npt.NDArray[np.float32]:
    """Return (num_examples, C or K) scores; all examples must be of one task.

    Raises:
        DatasetError: there are no examples.
    """
    if not examples:
        raise DatasetError("The test set has no items.")
    # Items of like length share a batch, which keeps padding low; the order is restored afterwards.
    order = sorted(range(len(examples)), key=lambda index: max(len(c.text) for c in examples[index].candidates))
    rows = list(finished.scores((examples[index] for index in order), batch_size=batch_size))
    stacked = np.full((len(rows), max(len(row) for row in rows)), -np.inf, dtype=np.float32)
    for index, row in zip(order, rows, strict=True):
        stacked[index, : len(row)] = row
    return stacked


def _scorer(
    dataset: Dataset, finished: FinishedRun, mode: VqaMode
) -> Callable[[Sequence[Example], npt.NDArray[np.float32]], ItemScores]:
    """Return what scores VQA's answers, those of the run's own head, by the official evaluator."""
    if not isinstance(dataset, VqaDataset):
        raise DatasetError(f"{dataset.name} holds no annotators' answers.")
    return partial(score_answers, answers=finished.label_names["vqa"], dataset=dataset, mode=mode)


def _positions(dataset: Dataset, task: Task) -> list[int]:
    if len(dataset.tasks) == 1:
        return list(range(len(dataset)))
    return [index for index in range(len(dataset)) if dataset[index].task == task]


def require_same_labels(dataset: Dataset, finished: FinishedRun) -> None:
    """Refuse a set whose tasks the run has no head for, or whose classes are others.

    Raises:
        ConfigError: as said.
    """
    for task in dataset.tasks:
        head = "vcr" if task in MULTIPLE_CHOICE_TASKS else task
        fits = head in finished.label_names
        # An answer is an answer whatever the vocabulary of the set: a run keeps its own.
        if fits and task != "vqa":
            fits = finished.label_names[head] == tuple(dataset.label_names(task))
        if not fits:
            raise ConfigError(
                f"The run has no head for {task} with this set's classes.",
                where=f"{dataset.name}/{dataset.split}",
                why=f"heads of the run: {', '.join(finished.label_names)}",
            )


def _write(run: Path, name: str, document: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
    folder = run / "evaluation"
    folder.mkdir(exist_ok=True)
    stem = name.replace("/", "--")
    partial = folder / f"{stem}.partial.npz"
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(folder / f"{stem}.npz")
    write_text(folder / f"{stem}.json", json.dumps(document, indent=2, sort_keys=True) + "\n")
