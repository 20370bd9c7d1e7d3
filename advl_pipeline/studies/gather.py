"""Gather a study folder: read every run in it into frames, pair what can be paired, and say what is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from advl_pipeline.cache.identity import PROVENANCE_FILE
from advl_pipeline.configuration import command_words, config_to_dict
from advl_pipeline.datasets.registry import benchmark_of
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.evaluation.items import question_rank
from advl_pipeline.evaluation.shift import question_namer
from advl_pipeline.folders import folder_bytes
from advl_pipeline.runs import names
from advl_pipeline.runs.results import (
    Evaluation,
    filed_as,
    read_evaluation,
    read_json,
    read_readout,
)
from advl_pipeline.studies.comparisons import numbers_of
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.execute import is_finished
from advl_pipeline.studies.loose_runs import common_folder, lay_out_runs
from advl_pipeline.studies.plan import Cell, Plan, cells_folder, extraction_file, read_study_folder
from advl_pipeline.studies.table import ITEM_COLUMNS, StudyResult, build_table
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.given import without_effect

_GROUP = ("setting", "method", "shots")
"""What cells have in common that differ by their seed alone."""

_COSTS = {
    "num_steps": "first", "seconds_per_step": "mean", "seconds": "mean", "wait_share": "mean",
    "peak_memory_bytes": "max", "student_parameters": "first", "training_only_parameters": "first",
    "milliseconds_per_item": "mean",
}  # fmt: skip
"""Costs of a run, and how they are put together over seeds."""


def gather_study(folder: Path) -> StudyResult:
    """Read a study folder into a frozen result; cells that are not finished are listed and otherwise left out.

    Raises:
        ConfigError: the folder holds no study, a file of a run is damaged, or two runs were scored on other items.
    """
    record = read_study_folder(folder)
    plan = Plan(study=record.study, cells=record.cells, caches=())
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
    done = [cell for cell in plan.cells if names.is_finished(cell.run)]
    results = {cell.cell_id: read_json(cell.run / names.RESULT) for cell in done}
    # Training questions of each (setting, shots): known from the plan, or, for "full", from a finished run.
    sizes: dict[tuple[str, int | None], int] = {}
    for cell in done:
        # A run of all tasks of its dataset names none.
        benchmark = benchmark_of(cell.finetune.dataset)
        known = benchmark.tasks if benchmark else plan.study.setting(cell.setting).tasks
        num_tasks = max(1, len(cell.finetune.task or known))
        of_run = int(results[cell.cell_id]["num_labelled"]) // num_tasks
        sizes[cell.setting, cell.shots] = of_run if cell.shots is None else cell.shots
    parts: list[pd.DataFrame] = []
    trivial: dict[tuple[str, ...], Mapping[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for cell, test_set, evaluation in _evaluations(plan):
        # What is of the set is the same for every run.
        for metric, summary in evaluation.summary.get("trivial", {}).items():
            trivial.setdefault((cell.setting, metric, test_set), summary)
        if "milliseconds_per_item" in evaluation.summary:
            times.setdefault(cell.cell_id, []).append(float(evaluation.summary["milliseconds_per_item"]))
        parts.append(
            _items(plan, cell, test_set, evaluation).assign(
                **_about(cell), size=sizes[cell.setting, cell.shots], test_set=test_set
            )
        )
    items = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(ITEM_COLUMNS))
    items = items[list(ITEM_COLUMNS)]
    readouts = [_about(cell) | found for cell in done for found in read_readout(cell.run)]
    cells = []
    for cell in plan.cells:
        state = "finished" if is_finished(cell) else "partial" if cell.cell_id in results else "pending"
        cells.append(_about(cell) | {"state": state, "command": finetune_command(cell.finetune)})
    caveats: dict[str, list[str]] = {}
    environments: dict[str, Mapping[str, Any]] = {}
    for cell in done:
        caveats.setdefault(cell.setting, []).extend(results[cell.cell_id].get("caveats", ()))
        if (path := cell.run / names.ENVIRONMENT).exists():
            # Each once; the command line of each run is left out.
            environment = {key: value for key, value in read_json(path).items() if key != "command"}
            environments[json.dumps(environment, sort_keys=True)] = environment
    return StudyResult(
        study=plan.study,
        folder=folder,
        runs=runs,
        command=command,
        cells=pd.DataFrame(cells),
        items=items,
        numbers=numbers_of(build_table(plan.study, items)),
        readouts=pd.DataFrame(
            readouts, columns=[*_GROUP, "seed", "run", "teacher", "nodes", "before", "after", "chance"]
        ),
        costs=_costs(done, results, times),
        caches=_caches(folder, done),
        environments=tuple(environments.values()),
        caveats={setting: tuple(dict.fromkeys(found)) for setting, found in caveats.items() if found},
        trivial=trivial,
        of_runs=plan.of_runs,
    )


def finetune_command(config: FinetuneConfig) -> str:
    """Return the `advl finetune` command that repeats a run, without the options that change nothing in it."""
    idle = without_effect(config)
    told = {name: value for name, value in config_to_dict(config).items() if name not in idle}
    return shlex.join(["advl", "finetune", *command_words(FinetuneConfig, told)])


def _about(cell: Cell) -> dict[str, Any]:
    """Return the columns that tell a cell."""
    return {
        "cell": cell.cell_id,
        "run": cell.run_name,
        "setting": cell.setting,
        "method": cell.method,
        "shots": shots_label(cell.shots),
        "seed": cell.seed,
    }


def _evaluations(plan: Plan) -> Iterator[tuple[Cell, str, Evaluation]]:
    """Yield every evaluation that exists of a finished run, by the evaluator that the study asks for.

    Raises:
        ConfigError: one is damaged, or two runs were scored on a test set whose content changed in between.
    """
    contents: dict[tuple[str, str], tuple[Any, Path]] = {}
    for cell in plan.cells:
        for test_set in cell.test_sets if names.is_finished(cell.run) else ():
            evaluation = read_evaluation(cell.run, filed_as(cell.run, test_set, cell.evaluate.vqa_mode))
            if evaluation is None:
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
            yield cell, test_set, evaluation


def _items(plan: Plan, cell: Cell, test_set: str, evaluation: Evaluation) -> pd.DataFrame:
    """Return the item scores that a study asks for.

    Raises:
        ConfigError: the evaluation lacks a metric of the setting.
    """
    items, stored = evaluation.items, set(evaluation.items["metric"])
    wanted = plan.study.setting(cell.setting).metrics
    if not plan.of_runs and (lacking := [metric for metric in wanted if metric not in stored]):
        raise ConfigError(
            f"A run has no item scores of {lacking[0]}.",
            where=str(names.evaluation_file(cell.run, test_set, ".npz")),
            why=f"it has {', '.join(sorted(stored)) or 'none'}",
            next_command=advise(["advl", "evaluate", str(cell.run), "--on", test_set]),
        )
    if (count := cell.evaluate.num_questions) is not None:
        # Another study of the cell may have asked for more questions than this one.
        name_of = question_namer(cell.finetune.dataset, test_set)
        chosen = sorted(items["item"].unique(), key=lambda question: question_rank(name_of(question)))[:count]
        items = items[items["item"].isin(chosen)]
    return pd.concat([items[items["metric"] == metric] for metric in wanted], ignore_index=True)


def _costs(
    cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]], times: Mapping[str, Sequence[float]]
) -> pd.DataFrame:
    rows = []
    for cell in cells:
        measured = times.get(cell.cell_id)
        told = {"wait_share": 0.0, **results[cell.cell_id]}
        told["milliseconds_per_item"] = np.mean(measured) if measured else None
        rows.append(_about(cell) | {name: told[name] for name in _COSTS})
    if not rows:
        return pd.DataFrame(columns=[*_GROUP, *_COSTS])
    found = pd.DataFrame(rows).astype({"milliseconds_per_item": float})
    pooled = found.groupby(list(_GROUP), sort=False, as_index=False).agg(_COSTS).astype(object)
    return pooled.where(pooled.notna(), None)


def _caches(folder: Path, cells: Sequence[Cell]) -> tuple[Mapping[str, Any], ...]:
    """Caches that the runs read, each identity once; how they were made is added where they still lie."""
    found: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        path = cell.run / names.CACHES
        for entry in read_json(path, list) if path.exists() else ():
            cache = Path(entry["path"])
            provenance, noted = cache / PROVENANCE_FILE, extraction_file(folder, cache)
            found[json.dumps(entry["identity"], sort_keys=True)] = {
                "path": str(cache),
                "seconds": float(read_json(noted)["seconds"]) if noted.exists() else None,
                "num_bytes": folder_bytes(cache) if cache.exists() else None,
                "identity": entry["identity"],
                "provenance": read_json(provenance) if provenance.exists() else {},
            }
    return tuple(found.values())
