"""Gather a study folder: read every run in it into frames, pair what can be paired, and say what is missing."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advl_pipeline.cache.identity import PROVENANCE_FILE
from advl_pipeline.configuration import command_words, config_to_dict
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.registry import benchmark_of
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.evaluation.calibration import ScoreKind, reliability, top_confidence
from advl_pipeline.evaluation.items import METRIC_OF_TASK, question_rank
from advl_pipeline.evaluation.question_match import question_namer
from advl_pipeline.folders import folder_bytes
from advl_pipeline.runs import names
from advl_pipeline.runs.names import evaluation_file
from advl_pipeline.runs.results import (
    Evaluation,
    WeightBins,
    read_evaluation,
    read_json,
    read_readout,
    read_task_loss,
    read_weights,
)
from advl_pipeline.studies.comparisons import numbers_of
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.execute import is_finished
from advl_pipeline.studies.folder import cells_folder, read_extraction_seconds, read_study_folder
from advl_pipeline.studies.loose_runs import common_folder, lay_out_runs
from advl_pipeline.studies.plan import Cell, Plan
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.table import ITEM_COLUMNS, WITH_PICTURE, build_table
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.given import without_effect
from advl_pipeline.training.resolved import finetune_steps, resolve_method

_WEIGHT_BINS = 20
_GROUP = ("setting", "method", "shots")
"""What cells have in common that differ by their seed alone."""

_COSTS = {
    "num_steps": "first", "seconds_per_step": "mean", "seconds": "mean", "wait_share": "mean",
    "peak_memory_bytes": "max", "student_parameters": "first", "training_only_parameters": "first",
    "milliseconds_per_item": "mean",
}  # fmt: skip
"""Costs of a run, and how they are put together over seeds."""

_KIND_OF_LOSS: Mapping[str, ScoreKind] = {"soft-target-kl": "compete", "answer-lm": "likelihood"}
"""How scores of VQA's answers read that were trained by a loss; by others they are judged one by one."""

Evaluations = Mapping[tuple[str, str], Evaluation]
"""(cell id, test set) -> what was stored."""


def gather_study(folder: Path) -> StudyResult:
    """Read a study folder into a frozen result; cells that are not finished are listed and otherwise left out.

    Raises:
        ConfigError: the folder holds no study, a file of a run is damaged, or two runs were scored on other items.
    """
    plan, record = read_study_folder(folder)
    return gather(plan, folder, runs=cells_folder(folder).parent, command=record.command)


def gather_runs(*folders: Path) -> StudyResult:
    """Read run folders, or folders of runs, as if a study had asked for them.

    Raises:
        ConfigError: there is no evaluated run, a file of one is damaged, or two were scored on other items.
    """
    plan = lay_out_runs(*folders)
    folder = common_folder(folders)
    return gather(plan, folder, runs=folder, command=finetune_command(plan.cells[0].finetune))


def gather(plan: Plan, folder: Path, *, runs: Path, command: str) -> StudyResult:
    """Read the runs of a plan; `command` makes them again.

    Args:
        folder: of the study, or that all the runs lie in.
        runs: what the names of the runs are relative to.

    Raises:
        ConfigError: a file of a run is damaged, or two runs were scored on other items.
    """
    evaluations = _read_evaluations(plan)
    results = {
        cell.cell_id: read_json(cell.run / names.RESULT) for cell in plan.cells if (cell.run / names.RESULT).exists()
    }
    sizes = _sizes(plan, results)
    items = _items(plan, sizes, evaluations)
    done = [cell for cell in plan.cells if cell.cell_id in results]
    caveats: dict[str, list[str]] = {}
    for cell in done:
        caveats.setdefault(cell.setting, []).extend(results[cell.cell_id].get("caveats", ()))
    return StudyResult(
        study=plan.study,
        folder=folder,
        runs=runs,
        command=command,
        cells=pd.DataFrame([_about(cell, done=cell.cell_id in results) for cell in plan.cells]),
        items=items,
        numbers=numbers_of(build_table(plan.study, items)),
        readouts=_readouts(done),
        costs=_costs(done, results, evaluations),
        weights=_weights(done),
        calibrations=_calibrations(plan, sizes, evaluations),
        caches=_caches(folder, done),
        environments=_environments(done),
        caveats={setting: tuple(dict.fromkeys(found)) for setting, found in caveats.items() if found},
        trivial=_trivial(plan, evaluations),
        of_runs=plan.of_runs,
    )


def finetune_command(config: FinetuneConfig) -> str:
    """Return the `advl finetune` command that repeats a run, without the options that change nothing in it."""
    idle = without_effect(config, resolve_method(config, num_steps=finetune_steps(config)))
    told = {name: value for name, value in config_to_dict(config).items() if name not in idle}
    return shlex.join(["advl", "finetune", *command_words(FinetuneConfig, told)])


def _read_evaluations(plan: Plan) -> dict[tuple[str, str], Evaluation]:
    """Read every evaluation that exists of a finished run.

    Raises:
        ConfigError: one is damaged, or two runs were scored on a test set whose content changed in between.
    """
    found: dict[tuple[str, str], Evaluation] = {}
    contents: dict[tuple[str, str], tuple[Any, Path]] = {}
    for cell, test_set in ((one, name) for one in plan.cells for name in one.test_sets):
        evaluation = read_evaluation(cell.run, test_set)
        if evaluation is None or not names.is_finished(cell.run):
            continue
        content = evaluation.summary.get("content_digest")
        first, first_run = contents.setdefault((cell.setting, test_set), (content, cell.run))
        if content != first:
            raise ConfigError(
                f"Two runs were scored on different contents of {test_set}, so they cannot be compared.",
                where=f"{first_run} and {cell.run}",
                why="the files of the set were changed between their evaluations",
                next_command="delete evaluation/ of the runs with the old files and give the study command again",
            )
        found[cell.cell_id, test_set] = _sample(evaluation, cell, test_set)
    return found


def _sample(evaluation: Evaluation, cell: Cell, test_set: str) -> Evaluation:
    """Return the evaluation of the questions that the study asks for: another study of the cell may ask for more."""
    if (count := cell.evaluate.num_questions) is None:
        return evaluation
    name_of = question_namer(cell.finetune.dataset, test_set)
    questions = {question for ids in evaluation.ids.values() for question in ids}
    chosen = set(sorted(questions, key=lambda question: question_rank(name_of(question)))[:count])
    rows = {metric: [row for row, name in enumerate(ids) if name in chosen] for metric, ids in evaluation.ids.items()}

    def of_rows(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {metric: found[rows[metric]] for metric, found in values.items()}

    return dataclasses.replace(
        evaluation,
        ids={metric: tuple(ids[row] for row in rows[metric]) for metric, ids in evaluation.ids.items()},
        items=of_rows(evaluation.items),
        spoilt={view: of_rows(items) for view, items in evaluation.spoilt.items()},
        scores={task: scores[rows[METRIC_OF_TASK[task]]] for task, scores in evaluation.scores.items()},
        groups={
            metric: ([pictures[row] for row in rows[metric]], [types[row] for row in rows[metric]])
            for metric, (pictures, types) in evaluation.groups.items()
        },
    )


def _sizes(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, int | None], int]:
    """Training questions of each (setting, shots): known from the plan, or, for "full", from a finished run."""
    sizes: dict[tuple[str, int | None], int] = {}
    for cell in plan.cells:
        if cell.shots is not None:
            sizes[cell.setting, cell.shots] = cell.shots
        elif cell.cell_id in results:
            # A run of all tasks of its dataset names none.
            benchmark = benchmark_of(cell.finetune.dataset)
            known = benchmark.tasks if benchmark else plan.study.setting(cell.setting).tasks
            num_tasks = max(1, len(cell.finetune.task or known))
            sizes[cell.setting, None] = int(results[cell.cell_id]["num_labelled"]) // num_tasks
    return sizes


def _scored(plan: Plan, evaluations: Evaluations) -> Iterator[tuple[Cell, str, Evaluation]]:
    """Yield every cell with the test sets that it was scored on."""
    for cell in plan.cells:
        for test_set in cell.test_sets:
            if evaluation := evaluations.get((cell.cell_id, test_set)):
                yield cell, test_set, evaluation


def _items(plan: Plan, sizes: Mapping[tuple[str, int | None], int], evaluations: Evaluations) -> pd.DataFrame:
    """Return the tidy table.

    Its columns are `cell`, `run`, `setting`, `method`, `shots`, `size` (training questions), `seed`, `test_set`,
    `metric`, `view` ("" for the true picture, else how it was spoilt), `item`, its `picture` and `type`, "" where the
    evaluation did not tell, and `score`, between 0 and 1.

    Raises:
        ConfigError: an evaluation lacks a metric of its setting.
    """
    parts = []
    for cell, test_set, evaluation in _scored(plan, evaluations):
        for metric in plan.study.setting(cell.setting).metrics:
            if metric not in evaluation.items:
                if plan.of_runs:
                    continue
                raise ConfigError(
                    f"A run has no item scores of {metric}.",
                    where=str(evaluation_file(cell.run, test_set, ".npz")),
                    why=f"it has {', '.join(sorted(evaluation.items)) or 'none'}",
                    next_command=advise(["advl", "evaluate", str(cell.run), "--on", test_set]),
                )
            pictures, types = evaluation.groups.get(metric, ("", ""))
            for view, scores in {WITH_PICTURE: evaluation.items, **evaluation.spoilt}.items():
                if metric in scores:
                    told = {"size": sizes[cell.setting, cell.shots], "test_set": test_set, "metric": metric}
                    of_items = {"view": view, "item": evaluation.ids[metric], "picture": pictures, "type": types}
                    parts.append(pd.DataFrame(_about(cell) | told | of_items | {"score": scores[metric]}))
    return pd.concat(parts, ignore_index=True)[list(ITEM_COLUMNS)] if parts else pd.DataFrame(columns=ITEM_COLUMNS)


def _about(cell: Cell, *, done: bool | None = None) -> dict[str, Any]:
    """Return the columns that tell a cell; with its state and command where it is said whether it was trained."""
    told = {
        "cell": cell.cell_id,
        "run": cell.run_name,
        "setting": cell.setting,
        "method": cell.method,
        "shots": shots_label(cell.shots),
        "seed": cell.seed,
    }
    if done is None:
        return told
    state = "finished" if is_finished(cell) else "partial" if done else "pending"
    return told | {"state": state, "command": finetune_command(cell.finetune)}


def _trivial(plan: Plan, evaluations: Evaluations) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return chance and majority answer of each set and metric: what is of the set is the same for every run."""
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for cell, test_set, evaluation in _scored(plan, evaluations):
        for metric, summary in evaluation.summary.get("trivial", {}).items():
            found.setdefault((cell.setting, metric, test_set), summary)
    return found


def _readouts(cells: Sequence[Cell]) -> pd.DataFrame:
    rows = [
        _about(cell)
        | {"teacher": teacher, "nodes": nodes, "before": one.before, "after": one.after, "chance": one.chance}
        for cell in cells
        for (teacher, nodes), one in read_readout(cell.run).items()
    ]
    return pd.DataFrame(rows, columns=[*_GROUP, "seed", "run", "teacher", "nodes", "before", "after", "chance"])


def _costs(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]], evaluations: Evaluations) -> pd.DataFrame:
    rows = []
    for cell in cells:
        scored = [one.summary for name in cell.test_sets if (one := evaluations.get((cell.cell_id, name)))]
        times = [float(summary["milliseconds_per_item"]) for summary in scored if "milliseconds_per_item" in summary]
        told = {
            "wait_share": 0.0,
            **results[cell.cell_id],
            "milliseconds_per_item": np.mean(times) if times else None,
        }
        rows.append(_about(cell) | {name: told[name] for name in _COSTS})
    if not rows:
        return pd.DataFrame(columns=[*_GROUP, *_COSTS])
    found = pd.DataFrame(rows).astype({"milliseconds_per_item": float})
    pooled = found.groupby(list(_GROUP), sort=False, as_index=False).agg(_COSTS).astype(object)
    return pooled.where(pooled.notna(), None)


def _weights(cells: Sequence[Cell]) -> pd.DataFrame:
    pooled: dict[tuple[str, ...], list[WeightBins]] = {}
    for cell in cells:
        # As they are shown: weights before confidences, and of several pathways the last name first.
        for (quantity, modality), bins in sorted(read_weights(cell.run).items(), reverse=True):
            key = (cell.setting, cell.method, shots_label(cell.shots), quantity, modality)
            pooled.setdefault(key, []).extend(bins)
    rows = [(*key, *pool_histograms(bins)) for key, bins in pooled.items()]
    columns = [*_GROUP, "quantity", "modality", "edges", "shares", "mean", "count"]
    return pd.DataFrame([row for row in rows if row[-1]], columns=columns)


def pool_histograms(
    histograms: Sequence[WeightBins],
) -> tuple[tuple[float, ...], tuple[float, ...], float, int]:
    """Pool histograms whose bins have different widths, each bin's content spread evenly over its width.

    Returns:
        edges, shares of the common bins, mean of the bins' centres, and how many weights were counted.
    """
    top = max(item.bin_width * len(item.counts) for item in histograms)
    edges = np.linspace(0.0, top, _WEIGHT_BINS + 1)
    totals, weighted, count = np.zeros(_WEIGHT_BINS), 0.0, 0
    for item in histograms:
        counts = np.asarray(item.counts, dtype=np.float64)
        own_edges = item.bin_width * np.arange(len(counts) + 1)
        totals += np.diff(np.interp(edges, own_edges, np.concatenate([[0.0], np.cumsum(counts)])))
        weighted += float(counts @ (own_edges[:-1] + item.bin_width / 2))
        count += int(counts.sum())
    shares = totals / max(1, count)
    return tuple(map(float, edges)), tuple(map(float, shares)), weighted / max(1, count), count


def _calibrations(plan: Plan, sizes: Mapping[tuple[str, int | None], int], evaluations: Evaluations) -> pd.DataFrame:
    pooled: dict[tuple[Any, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for cell, test_set, evaluation in _scored(plan, evaluations):
        for task, metric in METRIC_OF_TASK.items():
            if metric not in evaluation.items or task not in evaluation.scores:
                continue
            # As the student's confidence in training (`training/targets.py`).
            kind: ScoreKind = "compete"
            if head_name(task) == "vqa":
                kind = _KIND_OF_LOSS.get(read_task_loss(cell.run), "independent")
            size = sizes[cell.setting, cell.shots]
            key = (cell.setting, metric, test_set, size, shots_label(cell.shots), cell.method)
            confidence = top_confidence(evaluation.scores[task], kind=kind)
            pooled.setdefault(key, []).append((confidence, evaluation.items[metric]))
    rows = [(*key, reliability(*map(np.concatenate, zip(*pairs, strict=True)))) for key, pairs in pooled.items()]
    return pd.DataFrame(rows, columns=["setting", "metric", "test_set", "size", "shots", "method", "reliability"])


def _caches(folder: Path, cells: Sequence[Cell]) -> tuple[Mapping[str, Any], ...]:
    """Caches that the runs read, each identity once; how they were made is added where they still lie."""
    found: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        path = cell.run / names.CACHES
        for entry in read_json(path, list) if path.exists() else ():
            cache = Path(entry["path"])
            provenance = cache / PROVENANCE_FILE
            found[json.dumps(entry["identity"], sort_keys=True)] = {
                "path": str(cache),
                "seconds": read_extraction_seconds(folder, cache),
                "num_bytes": folder_bytes(cache) if cache.exists() else None,
                "identity": entry["identity"],
                "provenance": read_json(provenance) if provenance.exists() else {},
            }
    return tuple(found.values())


def _environments(cells: Sequence[Cell]) -> tuple[Mapping[str, Any], ...]:
    """Environments of the runs, each once; the command line of each run is left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        path = cell.run / names.ENVIRONMENT
        if path.exists():
            environment = {key: value for key, value in read_json(path).items() if key != "command"}
            found[json.dumps(environment, sort_keys=True)] = environment
    return tuple(found.values())
