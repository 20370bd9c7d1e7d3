"""A deterministic executor for tests: writes real run folders whose accuracies follow a known law.

An item is answered rightly when ability exceeds difficulty; difficulties are the same for all methods, so
that runs are paired as real ones are. What is drawn for a run hangs on its title, so that numbers stay where ids
change. `GAINS` states the points that each method adds over plain at 100 shots.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import tomllib
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advl_pipeline.base.configuration import config_to_dict, to_plain
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.datasets.records import TASKS
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.progress import record_extraction
from advl_pipeline.runs.evaluations import TrivialScores, without_the_unmeasured
from advl_pipeline.runs.results import RunResult, run_digest
from advl_pipeline.students.weight_files import run_files
from advl_pipeline.studies.config import StudyRunConfig, parse_study, shots_label
from advl_pipeline.studies.execute import RunExecutor
from advl_pipeline.studies.numbers import numbers_of
from advl_pipeline.studies.plan import PlannedRun
from advl_pipeline.studies.result import StudyResult, StudyRun
from advl_pipeline.studies.run import CachePreparer, run_study
from advl_pipeline.studies.table import build_table
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import finetune_steps, planned_steps, takes_two_stages

NUM_ITEMS = 240
ITEM_NAMES = list(map(str, range(NUM_ITEMS)))
PICTURES = [f"picture {index // 3}" for index in range(NUM_ITEMS)]
TYPES = [("why", "what")[index % 2] for index in range(NUM_ITEMS)]
GAINS = {"plain": 0.0, "plain-two-step": 0.3, "naive-kd": 2.5, "advl": 6.0, "advl-shuffled": 0.5}
BASE = {"test": 62.0, "test-shift": 47.0, "test-unseen": 52.0, "val": 60.0}
SWAPPED_CHANCE = 27.0
BY_TYPE = {"why": {"accuracy": 70.5, "num_items": 120}, "what": {"accuracy": 50.5, "num_items": 120}}
TRIVIAL = TrivialScores(chance=25.0, majority=27.5, answer="choice 3", given=68.0, given_answer="choice 1")


def generator(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


class Spot(NamedTuple):
    """What of a run its made-up scores hang on."""

    setting: str
    method: str
    shots: int | None
    seed: int

    @property
    def title(self) -> str:
        return f"{self.setting} / {self.method} / {shots_label(self.shots)} shots / seed {self.seed}"


def accuracy(planned: PlannedRun | Spot, test_set: str, gains: Mapping[str, float]) -> float:
    """Expected accuracy in [0, 1]; a gain named "method on set" is of that test set alone."""
    shots = planned.shots or 1600
    gain = gains.get(f"{planned.method} on {test_set}", gains.get(planned.method, 0.0)) * (100 / shots) ** 0.5
    wobble = generator("wobble", planned.seed, shots).normal(0, 0.8)
    wobble += generator(planned.title, test_set).normal(0, 0.5)
    return (BASE.get(test_set, 50.0) + 4 * np.log2(shots / 100) + gain + wobble) / 100


def execute(planned: PlannedRun, *, gains: Mapping[str, float] = GAINS) -> None:
    """Write what finetuning and evaluation would."""
    train(planned)
    for test_set in planned.test_sets:
        evaluate(planned, test_set, gains)


def train(planned: PlannedRun) -> None:
    """Write what finetuning would."""
    run = planned.run
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    about = {"method": planned.finetune.method, "seed": planned.seed, "teachers": planned.teachers}
    write_json(run / "run.json", {"options": about, "dataset": {"content_digest": digest(planned.finetune)}})
    write_json(run / "config.json", config_to_dict(planned.finetune))
    # Choices have no class names.
    write_json(run / "heads.json", {"choice": {"label_names": []}})
    write_json(
        run / "environment.json",
        {"python": "3.11.9", "platform": "Linux", "libraries": {"torch": "2.13.0"}, "command": ["advl", "study"]},
    )
    write_json(
        run / "caches.json",
        [
            {"path": str(path), "identity": {"teacher": {"name": name}, "dataset": {"split": "train"}}}
            for name, path in zip(planned.teachers, planned.finetune.cache, strict=True)
        ],
    )
    stages = ("adapt", "finetune", "finetune")
    log = ({"step": 10 * number, "phase": stage, "raw/task": 1.0} for number, stage in enumerate(stages))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log), encoding="utf-8")
    if planned.teachers and takes_two_stages(planned.finetune):
        write_json(run / "readout.json", readout(planned))
    result = RunResult(
        status="done", caveats=(), recipe="none", dataset=planned.finetune.dataset, method=planned.finetune.method,
        seed=planned.seed, shots=planned.shots, num_steps=planned_steps(planned.finetune),
        phases={"finetune": {"num_steps": finetune_steps(planned.finetune)}}, samples_per_second=50.0, seconds=30.0,
        seconds_per_step=0.09 if planned.teachers else 0.08, seconds_preparing=0.001, wait_share=0.02,
        num_labelled=(planned.shots or 1600) * max(1, len(planned.finetune.task)), num_skipped=0, num_adapt_inputs=0,
        num_texts=0, num_texts_cut=0, peak_memory_bytes=700_000_000, student_parameters=4_000_000,
        training_only_parameters=300_000 if planned.teachers else 0, files=run_files(run),
    )  # fmt: skip
    write_json(run / "result.json", to_plain(result))


def readout(planned: PlannedRun) -> dict[str, Any]:
    """Return what a run's readout holds: a text teacher places words, a vision teacher places regions."""
    learns = planned.finetune.teacher_control == "none"
    document: dict[str, Any] = {"before": {}, "after": {}}
    for name in planned.teachers:
        nodes = "words" if "minilm" in name else "regions"
        for when, share in (("before", 0.3), ("after", (0.7 if learns else 0.3) + 0.01 * planned.seed)):
            found = {"share": share, "num_asked": 200, "chance": 0.25}
            document[when][name] = {"words": None, "texts": None, "regions": None, nodes: found}
    return document


def item_scores(
    planned: PlannedRun | Spot, tasks: tuple[str, ...], test_set: str, gains: Mapping[str, float]
) -> dict[str, dict[str, np.ndarray]]:
    """Return condition of the picture -> metric -> what each item is worth."""
    conditions: dict[str, dict[str, np.ndarray]] = {"": {}, "swapped": {}}
    for task in tasks:
        difficulty = generator("difficulty", planned.setting, test_set, task).random(NUM_ITEMS)
        noise = generator(planned.title, test_set, task).normal(0, 0.15, NUM_ITEMS)
        rank = np.argsort(np.argsort(difficulty + noise)) / NUM_ITEMS
        chance = generator(planned.title, test_set, task, "swapped").random(NUM_ITEMS)
        right = {"": rank < accuracy(planned, test_set, gains), "swapped": chance < SWAPPED_CHANCE / 100}
        for condition, found in conditions.items():
            found[TASKS[task].metric] = right[condition].astype(np.float32)
    for found in conditions.values():
        if {"q2a", "qa2r"} <= set(found):
            found["q2ar"] = found["q2a"] * found["qa2r"]
    return conditions


def made_up_result(
    raw: Mapping[str, Any],
    *,
    gains: Mapping[str, float] = GAINS,
    missing: Callable[[Spot], bool] = lambda spot: False,
) -> StudyResult:
    """Return what a study would gather, without any run: all but `missing` is finished."""
    plain: dict[str, Any] = tomllib.loads(STUDY.format(seeds=list(range(8)))) | dict(raw)
    study = parse_study(plain, where="here")
    runs: list[StudyRun] = []
    parts: list[tuple[dict[str, Any], np.ndarray]] = []
    grid = itertools.product(study.settings, study.shots, study.methods, study.seeds)
    for setting, shots, method, seed in grid:
        spot = Spot(setting.name, method, shots, seed)
        about = {"run_id": spot.title, "run": spot.title, "setting": setting.name, "method": method, "seed": seed}
        about["shots"] = shots_label(shots)
        runs.append(StudyRun(**about, state="pending" if missing(spot) else "finished", command="advl finetune"))
        for test_set in () if missing(spot) else setting.test_sets:
            for condition, found in item_scores(spot, setting.tasks, test_set, gains).items():
                where = about | {"size": shots or 1600, "test_set": test_set, "condition": condition}
                parts += [(where | {"metric": metric}, scores) for metric, scores in found.items()]
    columns = {"item": ITEM_NAMES, "picture": PICTURES, "type": TYPES}
    scored = pd.DataFrame([where for where, _ in parts for _ in ITEM_NAMES]).assign(
        **{name: values * len(parts) for name, values in columns.items()},
        score=np.concatenate([scores for _, scores in parts]),
    )
    return StudyResult(
        study=study, folder=Path(), outer=Path(), command="advl study", runs=tuple(runs), items=scored,
        numbers=numbers_of(build_table(study, scored)),
        readouts=(), costs=(), caches=(), environments=(), caveats={}, trivial={},
    )  # fmt: skip


def evaluate(planned: PlannedRun, test_set: str, gains: Mapping[str, float]) -> None:
    """Write evaluation/<set>.json and .npz."""
    arrays: dict[str, Any] = {}
    conditions = item_scores(planned, planned.finetune.task, test_set, gains)
    items = conditions[""]
    names = np.array([f"{test_set}-{name}" for name in ITEM_NAMES])
    for task in planned.finetune.task:
        wrong = 1 + generator(task, test_set, planned.seed).integers(3, size=NUM_ITEMS)
        answered = np.where(items[TASKS[task].metric] > 0, 0, wrong)
        scores = generator(planned.title, "scores").normal(0, 1, (NUM_ITEMS, 4)).astype(np.float32)
        scores[np.arange(NUM_ITEMS), answered] = scores.max(axis=1) + 1.0
        arrays[f"scores/{task}"] = scores
        arrays[f"example_ids/{task}"] = np.array([f"{name}:{task}" for name in names])
        arrays[f"labels/{task}"] = np.zeros(NUM_ITEMS, dtype=np.int64)
    for condition, found in conditions.items():
        prefix = f"item_{condition}" if condition else "item"
        for metric, values in found.items():
            arrays[f"{prefix}/{metric}"], arrays[f"{prefix}_ids/{metric}"] = values, names
            arrays[f"pictures/{metric}"] = np.array(PICTURES)
            arrays[f"strata/{metric}"] = np.array(TYPES)
    folder = planned.run / "evaluation"
    np.savez_compressed(folder / f"{test_set}.npz", **arrays)
    metrics = {metric: 100 * float(values.mean()) for metric, values in items.items()}
    document: dict[str, Any] = {
        "dataset": planned.finetune.dataset,
        "split": test_set,
        "run_digest": run_digest(planned.run),
        "metrics": metrics,
        "milliseconds_per_item": 1.5,
        "num_items": dict.fromkeys(metrics, NUM_ITEMS),
        "intervals": {metric: {"low": value - 5.0, "high": value + 5.0} for metric, value in metrics.items()},
        "by_question_type": dict.fromkeys(metrics, BY_TYPE),
        "trivial": dict.fromkeys(metrics, without_the_unmeasured(TRIVIAL)),
    }
    if test_set in planned.evaluate.probe_on:
        document["use_of_vision"] = {
            metric: {kind: {"accuracy": seen, "drop": value - seen} for kind in planned.evaluate.probes}
            for metric, value in metrics.items()
            for seen in [100 * float(conditions["swapped"][metric].mean())]
        }
    write_json(folder / f"{test_set}.json", document)


def prepare(config: ExtractConfig) -> None:
    """Pretend that the cache was extracted."""
    cache = Path(str(config.output))
    write_json(cache / "identity.json", {"teacher": config.teacher})
    write_json(cache / COMPLETE_RECORD, {})
    write_json(cache / "records" / "provenance.json", {"config": {"teacher": config.teacher}})
    record_extraction(cache, seconds=12.5, num_units=NUM_ITEMS, device="cpu")


def digest(config: FinetuneConfig) -> str:
    """Pretend that the dataset is at hand."""
    return f"content of {config.dataset}/{config.split}"


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


TINY = {"methods": '["plain", "advl"]', "shots": "[100]", "test_sets": '["test"]'}
"""Two runs for each seed."""


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
    executor: RunExecutor | None = None,
    gains: Mapping[str, float] = GAINS,
    prepare: CachePreparer = prepare,
    options: Mapping[str, Any] = MappingProxyType({}),
    num_seeds: int = 2,
    extra: str = "",
    **lines: str,
) -> StudyResult:
    """Write a study file as `write_study_file` does and run it on made-up runs; `options` are of the command."""
    file = write_study_file(folder, num_seeds=num_seeds, extra=extra, **lines)
    asked = StudyRunConfig(study=str(file), output=folder / output, caches=folder / "caches", **options)
    run = executor or partial(execute, gains=gains)
    return run_study(asked, execute=run, prepare=prepare, digest=digest)


def fail_first_seed(planned: PlannedRun) -> None:
    """Fail for the first seed, as where a picture cannot be read; note process and threads of the others."""
    if planned.seed == 0:
        raise DatasetError("A picture cannot be read.", where="scenes-1.png", next_command="restore it")
    planned.run.parent.mkdir(parents=True, exist_ok=True)
    (planned.run.parent / f"seen-{planned.run_id}").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    execute(planned)


def die(planned: PlannedRun) -> None:
    """End as a process does that the system kills."""
    os.kill(os.getpid(), signal.SIGKILL)
