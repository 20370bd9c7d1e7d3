"""A deterministic executor for tests: writes real run folders whose accuracies follow a known law.

An item is answered rightly when ability exceeds difficulty; difficulties are the same for all methods, so
that runs are paired as real ones are. What is drawn for a cell hangs on its title, so that numbers stay where ids
change. `GAINS` states the points that each method adds over plain at 100 shots.
"""

from __future__ import annotations

import json
import os
import signal
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.items import METRIC_OF_TASK
from advl_pipeline.studies.config import StudyConfig, StudyRunConfig
from advl_pipeline.studies.execute import CachePreparer, CellExecutor
from advl_pipeline.studies.plan import CacheNeed, Cell
from advl_pipeline.studies.run import Failure, run_study
from advl_pipeline.studies.table import StudyResult
from advl_pipeline.training.resolved import planned_steps, takes_two_steps

NUM_ITEMS = 240
GAINS = {"plain": 0.0, "plain-two-step": 0.3, "naive-kd": 2.5, "advl": 6.0, "advl-shuffled": 0.5}
BASE = {"test": 62.0, "test-shift": 47.0, "test-unseen": 52.0, "val": 60.0}
SWAPPED_CHANCE = 27.0
BY_TYPE = {"why": {"accuracy": 70.5, "num_items": 120}, "what": {"accuracy": 50.5, "num_items": 120}}
TRIVIAL = {"chance": 25.0, "majority": 27.5, "answer": "choice 3", "given": 68.0, "given_answer": "choice 1"}


def generator(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


def accuracy(cell: Cell, test_set: str, gains: Mapping[str, float]) -> float:
    """Expected accuracy in [0, 1]; a gain named "method on set" is of that test set alone."""
    shots = cell.shots or 1600
    gain = gains.get(f"{cell.method} on {test_set}", gains.get(cell.method, 0.0)) * (100 / shots) ** 0.5
    wobble = generator("wobble", cell.seed, shots).normal(0, 0.8) + generator(cell.title, test_set).normal(0, 0.5)
    return (BASE.get(test_set, 50.0) + 4 * np.log2(shots / 100) + gain + wobble) / 100


def execute(cell: Cell, *, gains: Mapping[str, float] = GAINS) -> None:
    """Write what finetuning and evaluation would."""
    train(cell)
    for test_set in cell.test_sets:
        evaluate(cell, test_set, gains)


def train(cell: Cell) -> None:
    """Write what finetuning would."""
    run = cell.run
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    write_json(run / "run.json", {"options": {}})
    write_json(run / "config.json", config_to_dict(cell.finetune))
    task_loss = cell.finetune.optimisation.task_loss
    loss = task_loss or ("soft-target-bce" if "vqa" in cell.finetune.task else "softmax-choice")
    write_json(run / "settings.json", {"settings": {"task_loss": {"value": loss, "source": "the test's"}}})
    write_json(
        run / "environment.json",
        {"python": "3.11.9", "platform": "Linux", "libraries": {"torch": "2.13.0"}, "command": ["advl", "study"]},
    )
    write_json(
        run / "caches.json",
        [
            {"path": str(path), "identity": {"teacher": {"name": name}, "dataset": {"split": "train"}}}
            for name, path in zip(cell.teachers, cell.finetune.cache, strict=True)
        ],
    )
    random = generator("metrics", cell.title)
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(0, 30, 10):
            record: dict[str, Any] = {"step": step, "phase": "adapt" if step == 0 else "finetune", "raw/task": 1.0}
            if cell.teachers and record["phase"] == "finetune":
                for name in ("student", "vision", "text"):
                    counts, _ = np.histogram(random.beta(2, 3, 16), bins=20, range=(0, 1))
                    record[f"confidence/{name}"] = {
                        "mean": 0.4, "max": 1.0, "bin_width": 0.05, "counts": counts.tolist(),
                    }  # fmt: skip
            if cell.teachers:
                for modality in ("vision", "text"):
                    counts, _ = np.histogram(np.clip(random.gamma(4, 0.22, 16), 0, 2), bins=20, range=(0, 2))
                    record[f"weights/{modality}"] = {
                        "mean": 0.9, "max": 2.0, "bin_width": 0.1, "counts": counts.tolist(),
                    }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    if cell.teachers and takes_two_steps(cell.finetune):
        write_json(run / "readout.json", readout(cell))
    write_json(
        run / "result.json",
        {
            "status": "done", "method": cell.finetune.method, "num_steps": planned_steps(cell.finetune),
            "seconds": 30.0, "seconds_per_step": 0.09 if cell.teachers else 0.08, "wait_share": 0.02,
            "num_labelled": (cell.shots or 1600) * max(1, len(cell.finetune.task)),
            "peak_memory_bytes": 700_000_000, "student_parameters": 4_000_000,
            "training_only_parameters": 300_000 if cell.teachers else 0,
        },
    )  # fmt: skip


def readout(cell: Cell) -> dict[str, Any]:
    """Return what a run's readout holds: a text teacher places words, a vision teacher places regions."""
    learns = cell.finetune.teacher_control == "none"
    document: dict[str, Any] = {"before": {}, "after": {}}
    for name in cell.teachers:
        nodes = "words" if "minilm" in name else "regions"
        for when, share in (("before", 0.3), ("after", (0.7 if learns else 0.3) + 0.01 * cell.seed)):
            found = {"share": share, "num_asked": 200, "chance": 0.25}
            document[when][name] = {"words": None, "texts": None, "regions": None, nodes: found}
    return document


def evaluate(cell: Cell, test_set: str, gains: Mapping[str, float]) -> None:
    """Write evaluation/<set>.json and .npz."""
    arrays: dict[str, Any] = {}
    items: dict[str, np.ndarray] = {}
    swapped: dict[str, np.ndarray] = {}
    names = np.array([f"{test_set}-{index}" for index in range(NUM_ITEMS)])
    for task in cell.finetune.task:
        metric = METRIC_OF_TASK[task]
        difficulty = generator("difficulty", cell.setting, test_set, task).random(NUM_ITEMS)
        noise = generator(cell.title, test_set, task).normal(0, 0.15, NUM_ITEMS)
        threshold = accuracy(cell, test_set, gains)
        rank = np.argsort(np.argsort(difficulty + noise)) / NUM_ITEMS
        items[metric] = (rank < threshold).astype(np.float32)
        chance = generator(cell.title, test_set, task, "swapped").random(NUM_ITEMS)
        swapped[metric] = (chance < SWAPPED_CHANCE / 100).astype(np.float32)
        answered = np.where(
            items[metric] > 0, 0, 1 + generator(task, test_set, cell.seed).integers(3, size=NUM_ITEMS)
        )
        scores = generator(cell.title, "scores").normal(0, 1, (NUM_ITEMS, 4)).astype(np.float32)
        scores[np.arange(NUM_ITEMS), answered] = scores.max(axis=1) + 1.0
        arrays[f"scores/{task}"] = scores
        arrays[f"example_ids/{task}"] = np.array([f"{name}:{task}" for name in names])
        arrays[f"labels/{task}"] = np.zeros(NUM_ITEMS, dtype=np.int64)
    for found, prefix in ((items, "item"), (swapped, "item_swapped")):
        if {"q2a", "qa2r"} <= set(found):
            found["q2ar"] = found["q2a"] * found["qa2r"]
        for metric, values in found.items():
            arrays[f"{prefix}/{metric}"], arrays[f"{prefix}_ids/{metric}"] = values, names
            arrays[f"pictures/{metric}"] = np.array([f"picture {index // 3}" for index in range(NUM_ITEMS)])
            arrays[f"strata/{metric}"] = np.array([("why", "what")[index % 2] for index in range(NUM_ITEMS)])
    folder = cell.run / "evaluation"
    np.savez_compressed(folder / f"{test_set}.npz", **arrays)
    metrics = {metric: 100 * float(values.mean()) for metric, values in items.items()}
    document: dict[str, Any] = {
        "dataset": cell.finetune.dataset,
        "split": test_set,
        "metrics": metrics,
        "milliseconds_per_item": 1.5,
        "num_items": dict.fromkeys(metrics, NUM_ITEMS),
        "intervals": {metric: {"low": value - 5.0, "high": value + 5.0} for metric, value in metrics.items()},
        "by_question_type": dict.fromkeys(metrics, BY_TYPE),
        "trivial": dict.fromkeys(metrics, TRIVIAL),
    }
    if test_set in cell.evaluate.probe_on:
        document["use_of_vision"] = {
            metric: {kind: {"accuracy": 30.0, "drop": value - 30.0} for kind in cell.evaluate.probe}
            for metric, value in metrics.items()
        }
    write_json(folder / f"{test_set}.json", document)


def prepare(need: CacheNeed, study: StudyConfig, data_root: Path | None) -> float | None:
    """Pretend that the cache was extracted."""
    write_json(need.path / "identity.json", {"teacher": need.teacher})
    write_json(need.path / "records" / "provenance.json", {"config": {"teacher": need.teacher}})
    return 12.5


def digest(dataset: str, split: str, data_root: Path | None) -> str:
    """Pretend that the dataset is at hand."""
    return f"content of {dataset}/{split}"


def write_json(path: Path, value: Any) -> None:
    """Write a file that other processes see whole or not at all, as those of real runs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)


STUDY = """
name = "trial"
title = "A trial"
question = "Does it help?"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
teachers = ["efficientnet-lite0", "minilm-l6"]
test_sets = ["test", "test-shift"]
methods = ["plain", "naive-kd", "advl", "advl-shuffled"]
shots = [100, 400]
seeds = {seeds}
"""


def write_study_file(folder: Path, *, num_seeds: int = 5, extra: str = "", **replace: str) -> Path:
    """Write a study file; `replace` exchanges whole lines by their key."""
    lines = STUDY.format(seeds=list(range(num_seeds))).strip().splitlines()
    lines = [
        f"{line.split(' = ')[0]} = {replace.get(line.split(' = ')[0], line.split(' = ', 1)[1])}" for line in lines
    ]
    path = folder / "trial.toml"
    path.write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    return path


def run_trial(
    folder: Path,
    *,
    output: str = "study",
    executor: CellExecutor | None = None,
    gains: Mapping[str, float] = GAINS,
    prepare: CachePreparer = prepare,
    options: Mapping[str, Any] = MappingProxyType({}),
    report_failure: Callable[[Failure], None] = print,
    num_seeds: int = 2,
    extra: str = "",
    **lines: str,
) -> StudyResult:
    """Write a study file as `write_study_file` does and run it on made-up runs; `options` are of the command."""
    file = write_study_file(folder, num_seeds=num_seeds, extra=extra, **lines)
    asked = StudyRunConfig(study=str(file), output=folder / output, caches=folder / "caches", **options)
    run = executor or partial(execute, gains=gains)
    return run_study(asked, execute=run, prepare=prepare, digest=digest, report_failure=report_failure)


def fail_first_seed(cell: Cell) -> None:
    """Fail as a cell does whose picture cannot be read, for the first seed."""
    if cell.seed == 0:
        raise DatasetError("A picture cannot be read.", where="scenes-1.png", next_command="restore it")
    execute(cell)


def die(cell: Cell) -> None:
    """End as a process does that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def log_threads(cell: Cell) -> None:
    """Note the process and its threads beside the run."""
    cell.run.parent.mkdir(parents=True, exist_ok=True)
    (cell.run.parent / f"seen-{cell.cell_id}").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    execute(cell)
