"""Gather a study folder: read every run in it, pair what can be paired, and say what is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.cache.provenance import PROVENANCE_FILE
from advl_pipeline.configuration import command_words, config_to_dict
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.registry import benchmark_of
from advl_pipeline.evaluation.calibration import ScoreKind, reliability, top_confidence
from advl_pipeline.evaluation.items import METRIC_OF_TASK
from advl_pipeline.evaluation.statistics import summarise
from advl_pipeline.folders import folder_bytes
from advl_pipeline.runs import names
from advl_pipeline.runs.results import (
    Evaluation,
    NodeReadout,
    Nodes,
    Quantity,
    WeightBins,
    read_json,
    read_readout,
    read_task_loss,
    read_weights,
)
from advl_pipeline.studies.comparisons import contrasts, losses, mean_contrasts, standings, text_shares, trends
from advl_pipeline.studies.execute import is_finished
from advl_pipeline.studies.folder import cells_folder, read_extraction_seconds, read_study_folder
from advl_pipeline.studies.loose_runs import common_folder, lay_out_runs
from advl_pipeline.studies.plan import Cell, Plan
from advl_pipeline.studies.result import (
    CacheRecord,
    Calibration,
    CellRecord,
    CellState,
    Cost,
    Place,
    Readout,
    StudyResult,
    WeightHistogram,
)
from advl_pipeline.studies.table import build_table, item_frame, read_evaluations
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import finetune_steps, resolve_method
from advl_pipeline.training.without_effect import without_effect

_WEIGHT_BINS = 20

_KIND_OF_LOSS: Mapping[str, ScoreKind] = {"soft-target-kl": "compete", "answer-lm": "likelihood"}
"""How scores of VQA's answers read that were trained by a loss; by others they are judged one by one."""


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
    evaluations = read_evaluations(plan)
    results = {
        cell.cell_id: read_json(cell.run / names.RESULT) for cell in plan.cells if (cell.run / names.RESULT).exists()
    }
    sizes = _sizes(plan, results)
    items = item_frame(plan, sizes, evaluations)
    table = build_table(plan.study, items)
    done = [cell for cell in plan.cells if cell.cell_id in results]
    return StudyResult(
        study=plan.study,
        folder=folder,
        runs=runs,
        command=command,
        cells=tuple(_cell_record(cell, done=cell.cell_id in results) for cell in plan.cells),
        standings=standings(table),
        contrasts=contrasts(table),
        trends=trends(table),
        losses=losses(table),
        mean_contrasts=mean_contrasts(table),
        text_shares=text_shares(table),
        readouts=_readouts(done),
        costs=_costs(done, results, evaluations),
        weights=_weights(done),
        calibrations=_calibrations(plan, sizes, evaluations),
        caches=_caches(folder, done),
        environments=_environments(done),
        caveats=_caveats(done, results),
        trivial=_trivial(plan, evaluations),
        of_runs=plan.of_runs,
        items=items,
    )


def finetune_command(config: FinetuneConfig) -> str:
    """Return the `advl finetune` command that repeats a run, without the options that change nothing in it."""
    idle = without_effect(config, resolve_method(config, num_steps=finetune_steps(config)))
    told = {name: value for name, value in config_to_dict(config).items() if name not in idle}
    return shlex.join(["advl", "finetune", *command_words(FinetuneConfig, told)])


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
            tasks = cell.finetune.task or known
            num_tasks = max(1, len(tasks))
            sizes[cell.setting, None] = int(results[cell.cell_id]["num_labelled"]) // num_tasks
    return sizes


def _cell_record(cell: Cell, *, done: bool) -> CellRecord:
    state: CellState = "finished" if is_finished(cell) else "partial" if done else "pending"
    return CellRecord(
        cell_id=cell.cell_id,
        setting=cell.setting,
        method=cell.method,
        shots=cell.shots,
        seed=cell.seed,
        run=cell.run_name,
        state=state,
        command=finetune_command(cell.finetune),
    )


def _caveats(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        found.setdefault(cell.setting, {}).update(dict.fromkeys(results[cell.cell_id].get("caveats", ())))
    return {setting: tuple(caveats) for setting, caveats in found.items() if caveats}


def _trivial(
    plan: Plan, evaluations: Mapping[tuple[str, str], Evaluation]
) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """Return chance and majority answer of each set and metric: what is of the set is the same for every run."""
    found: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for cell in plan.cells:
        for test_set in cell.test_sets:
            evaluation = evaluations.get((cell.cell_id, test_set))
            for metric, summary in evaluation.summary.get("trivial", {}).items() if evaluation else ():
                found.setdefault((cell.setting, metric, test_set), summary)
    return found


def _groups(cells: Sequence[Cell]) -> dict[tuple[str, str, int | None], list[Cell]]:
    """Cells that differ only by seed."""
    groups: dict[tuple[str, str, int | None], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.setting, cell.method, cell.shots), []).append(cell)
    return groups


def _readouts(cells: Sequence[Cell]) -> tuple[Readout, ...]:
    found = []
    for (setting, method, shots), group in _groups(cells).items():
        pooled: dict[tuple[str, Nodes], dict[int, NodeReadout]] = {}
        for cell in group:
            for key, one in read_readout(cell.run).items():
                pooled.setdefault(key, {})[cell.seed] = one
        for (teacher, nodes), by_seed in pooled.items():
            found.append(
                Readout(
                    setting=setting,
                    method=method,
                    shots=shots,
                    teacher=teacher,
                    nodes=nodes,
                    seeds=tuple(by_seed),
                    before=summarise([one.before for one in by_seed.values()]),
                    after=summarise([one.after for one in by_seed.values()]),
                    chance=float(np.mean([one.chance for one in by_seed.values()])),
                )
            )
    return tuple(found)


def _costs(
    cells: Sequence[Cell],
    results: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[tuple[str, str], Evaluation],
) -> tuple[Cost, ...]:
    found = []
    for (setting, method, shots), group in _groups(cells).items():
        runs = [results[cell.cell_id] for cell in group]
        per_item = [
            float(evaluation.summary["milliseconds_per_item"])
            for cell in group
            for name in cell.test_sets
            if (evaluation := evaluations.get((cell.cell_id, name))) and "milliseconds_per_item" in evaluation.summary
        ]
        found.append(
            Cost(
                setting=setting,
                method=method,
                shots=shots,
                num_steps=int(runs[0]["num_steps"]),
                seconds_per_step=float(np.mean([run["seconds_per_step"] for run in runs])),
                seconds=float(np.mean([run["seconds"] for run in runs])),
                wait_share=float(np.mean([run.get("wait_share", 0.0) for run in runs])),
                peak_memory_bytes=max(int(run["peak_memory_bytes"]) for run in runs),
                student_parameters=int(runs[0]["student_parameters"]),
                training_only_parameters=int(runs[0]["training_only_parameters"]),
                milliseconds_per_item=float(np.mean(per_item)) if per_item else None,
            )
        )
    return tuple(found)


def _weights(cells: Sequence[Cell]) -> tuple[WeightHistogram, ...]:
    found = []
    for (setting, method, shots), group in _groups(cells).items():
        pooled: dict[tuple[Quantity, str], list[WeightBins]] = {}
        for cell in group:
            for key, bins in read_weights(cell.run).items():
                pooled.setdefault(key, []).extend(bins)
        for (quantity, modality), bins in sorted(pooled.items(), reverse=True):
            edges, shares, mean, count = pool_histograms(bins)
            if count:
                found.append(
                    WeightHistogram(
                        quantity=quantity,
                        setting=setting,
                        method=method,
                        shots=shots,
                        modality=modality,
                        edges=edges,
                        shares=shares,
                        mean=mean,
                        count=count,
                    )
                )
    return tuple(found)


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
        cumulative = np.concatenate([[0.0], np.cumsum(counts)])
        own_edges = item.bin_width * np.arange(len(counts) + 1)
        totals += np.diff(np.interp(edges, own_edges, cumulative))
        weighted += float(counts @ (own_edges[:-1] + item.bin_width / 2))
        count += int(counts.sum())
    shares = totals / max(1, count)
    return tuple(map(float, edges)), tuple(map(float, shares)), weighted / max(1, count), count


def _calibrations(
    plan: Plan, sizes: Mapping[tuple[str, int | None], int], evaluations: Mapping[tuple[str, str], Evaluation]
) -> tuple[Calibration, ...]:
    task_of = {metric: task for task, metric in METRIC_OF_TASK.items()}
    pooled: dict[tuple[Place, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for cell in plan.cells:
        for test_set in cell.test_sets:
            evaluation = evaluations.get((cell.cell_id, test_set))
            for metric in evaluation.items if evaluation else ():
                task = task_of.get(metric, "")
                if evaluation is None or task not in evaluation.scores:
                    continue
                place = Place(
                    setting=cell.setting,
                    metric=metric,
                    test_set=test_set,
                    size=sizes[cell.setting, cell.shots],
                    shots=cell.shots,
                )
                # As the student's confidence in training (`training/targets.py`).
                kind: ScoreKind = "compete"
                if head_name(task) == "vqa":
                    kind = _KIND_OF_LOSS.get(read_task_loss(cell.run), "independent")
                confidence = top_confidence(evaluation.scores[task], kind=kind)
                pooled.setdefault((place, cell.method), []).append((confidence, evaluation.items[metric]))
    return tuple(
        Calibration(
            place=place,
            method=method,
            reliability=reliability(
                np.concatenate([confidence for confidence, _ in pairs]), np.concatenate([right for _, right in pairs])
            ),
        )
        for (place, method), pairs in pooled.items()
    )


def _caches(folder: Path, cells: Sequence[Cell]) -> tuple[CacheRecord, ...]:
    """Caches that the runs read, each identity once; how they were made is added where they still lie."""
    found: dict[str, CacheRecord] = {}
    for cell in cells:
        path = cell.run / names.CACHES
        for entry in read_json(path, list) if path.exists() else ():
            key = json.dumps(entry["identity"], sort_keys=True)
            cache = Path(entry["path"])
            provenance = cache / PROVENANCE_FILE
            found[key] = CacheRecord(
                path=str(cache),
                seconds=read_extraction_seconds(folder, cache),
                num_bytes=folder_bytes(cache) if cache.exists() else None,
                identity=entry["identity"],
                provenance=read_json(provenance) if provenance.exists() else {},
            )
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
