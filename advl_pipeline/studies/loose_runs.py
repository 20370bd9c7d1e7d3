"""Runs without a study: a run folder, or a folder of them, as one table by the differences among the runs.

Runs that differ only by their seed are one row. Nothing is compared or claimed: that requires a study.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from advl_pipeline.base.configuration import config_to_dict, options_without
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.folders import folder_kind, near_folder
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import METRIC_OF_TASK
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_caches, read_config, read_documents, read_result
from advl_pipeline.studies.config import SHIPPED, Setting, StudyConfig, Variant
from advl_pipeline.studies.plan import Cell, Plan
from advl_pipeline.training.checks import finetune_command
from advl_pipeline.training.config import FinetuneConfig, config_of_run

_OF_PLACE = frozenset({"dataset", "method", "task", "shots", "seed", "cache", "num_steps", "epochs"})
"""Options that the table shows anyway, and those that the steps and teachers of a run describe better."""

_ALWAYS_SAID = frozenset({"hide_picture", "teacher_control"})
"""Options that withhold something from a student: shown even if all runs agree."""

_USUAL = {
    **{name: str(value) for name, value in config_to_dict(FinetuneConfig(dataset="", output=Path())).items()},
    "teachers": "none",
    "features": "none",
}


class _Run(NamedTuple):
    """A finished and evaluated run, its choices that may differ from other runs, in words, and its metrics.

    The row and setting of the cell are not known yet. The test set with replaced pictures comes first, as the
    reference of the others.
    """

    cell: Cell
    choices: Mapping[str, str]
    metrics: frozenset[str]


def common_folder(folders: Sequence[Path]) -> Path:
    """Return a single folder itself, or the common parent of several."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))


def folders_of_runs(named: Sequence[Path]) -> list[Path]:
    """Return the run folders among the named folders and inside them, each once.

    Raises:
        ConfigError: a named folder is not a run and contains none.
    """
    folders: dict[Path, None] = {}
    for folder in named:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        run_folders = [
            path for path in ([folder] if folder_kind(folder) == "run" else inside) if folder_kind(path) == "run"
        ]
        if not run_folders:
            why = near_folder(folder, "run", "study") or "it is neither a study, nor a run, nor a folder of runs"
            remedy = advise(["advl", "finetune", "--help"], note="makes a run; evaluate it next")
            raise ConfigError("There is nothing to report on.", where=str(folder), why=why, next_command=remedy)
        folders |= dict.fromkeys(run_folders)
    return list(folders)


def lay_out_runs(*named: Path) -> Plan:
    """Lay out runs, and all finished and evaluated runs in folders, as the rows of one table.

    Args:
        named: run folders and folders of runs.

    Raises:
        ConfigError: a folder contains no run, or no run was evaluated.
    """
    folders, folder = folders_of_runs(named), common_folder(named)
    runs = [run for path in folders if (run := _read(path, folder)) is not None]
    if not runs:
        what = f"Of {len(folders)} runs here none is both finished and scored on a test set."
        remedy = advise(["advl", "evaluate", str(folders[0]), "--on", "test"])
        raise ConfigError(what, where=", ".join(map(str, named)), next_command=remedy)
    differing, settings = _differing(runs), _settings(runs)
    places = [(run.cell.finetune.dataset, run.cell.shots, run.cell.seed, _row(run, differing)) for run in runs]
    cells = []
    for cell, place in zip((run.cell for run in runs), places, strict=True):
        row = place[-1] + (f" ({cell.run.absolute().name})" if places.count(place) > 1 else "")
        setting = settings[cell.finetune.dataset]
        test_sets = tuple(name for name in setting.test_sets if name in cell.test_sets)
        cells.append(replace(cell, setting=setting.name, method=row, test_sets=test_sets))
    variants = {
        cell.method: Variant(method=cell.finetune.method, role=SHIPPED[cell.finetune.method].role, label=cell.method)
        for cell in cells
    }
    is_one = len(variants) == 1
    study = StudyConfig(
        name=folder.absolute().name,
        title=f"Runs in {folder.absolute().name}",
        methods=tuple(variants),
        shots=tuple(dict.fromkeys(cell.shots for cell in cells)),
        seeds=tuple(dict.fromkeys(cell.seed for cell in cells)),
        baseline="",
        focus=next(iter(variants)) if is_one else "",
        settings=tuple(settings.values()),
        variants=variants,
        question="" if is_one else _what_differs(runs, differing),
        source=str(folder),
    )
    return Plan(study=study, command=finetune_command(cells[0].finetune), cells=tuple(cells), of_runs=True)


def _read(folder: Path, outer: Path) -> _Run | None:
    stored = read_documents(folder) if names.is_finished(folder) else {}
    if not stored:
        return None
    test_sets = tuple(sorted(stored, key=lambda name: (not stored[name].get("use_of_vision"), name)))
    config = config_of_run(read_config(folder), where=str(folder / names.CONFIG), output=folder)
    result = read_result(folder)
    caches = read_caches(folder)
    features = json.dumps([cache["identity"]["teacher"] for cache in caches], sort_keys=True)
    teachers = tuple(dict.fromkeys(str(cache["identity"]["teacher"]["name"]) for cache in caches))
    options = options_without(FinetuneConfig, config_to_dict(config), "provenance", "none")
    choices = {name: str(value) for name, value in options.items() if name not in _OF_PLACE}
    choices |= {
        "method": config.method,
        "labels asked for": str(config.shots or "all"),
        "steps": f"{result.get('phases', {}).get('finetune', result)['num_steps']:,}",
        "labels": f"{result['num_labelled']:,}",
        "teachers": " and ".join(teachers) or "none",
        "features": hashlib.sha256(features.encode()).hexdigest()[:8] if caches else "none",
    }
    run_name = str(folder.absolute().relative_to(outer.absolute()))
    cell = Cell(
        cell_id=folder.absolute().name if run_name == "." else run_name,
        setting="",
        method="",
        shots=config.shots,
        seed=config.seed,
        teachers=teachers,
        test_sets=test_sets,
        finetune=config,
        evaluate=EvaluateConfig(run=folder, on=test_sets),
        run_name=run_name,
    )
    return _Run(cell, choices, frozenset(metric for document in stored.values() for metric in document["metrics"]))


def _differing(runs: Sequence[_Run]) -> set[str]:
    """Return the choices that differ between runs on the same labels of a dataset."""
    alike: dict[tuple[object, ...], list[Mapping[str, str]]] = {}
    for run in runs:
        alike.setdefault((run.cell.finetune.dataset, run.cell.shots), []).append(run.choices)
    differing = {
        name for group in alike.values() for name in group[0] if len({choices[name] for choices in group}) > 1
    }
    # If the names of the teachers determine the features, the features are redundant.
    if len({(run.choices["teachers"], run.choices["features"]) for run in runs}) == len(
        {run.cell.teachers for run in runs}
    ):
        differing.discard("features")
    return differing


def _row(run: _Run, differing: set[str]) -> str:
    """Return the name of a run's row: its method, the unusual choices that differ, and the withheld inputs."""
    said = (differing - {"method"}) | _ALWAYS_SAID
    if "random:" in run.choices["teachers"]:
        said |= {"teachers"}
    shown = [f"{name} {run.choices[name]}" for name in sorted(said) if run.choices[name] != _USUAL.get(name)]
    return ", ".join([SHIPPED[run.cell.finetune.method].label, *shown])


def _what_differs(runs: Sequence[_Run], differing: set[str]) -> str:
    """Return one sentence on the differences between the runs of a table, the reason why they are not compared."""
    names_of_choices = dict.fromkeys(("method", "labels asked for", *sorted(differing)))
    values = {name: list(dict.fromkeys(run.choices[name] for run in runs)) for name in names_of_choices}
    differences = [f"{name} ({' and '.join(each)})" for name, each in values.items() if len(each) > 1]
    where = "; ".join(differences) or "their data"
    return f"{len(runs)} runs are in one table and differ in {where}. A study (advl study) compares runs made alike."


def _settings(runs: Sequence[_Run]) -> dict[str, Setting]:
    """Return the setting of each dataset, with all test sets of its runs; settings of equal name are numbered."""
    by_dataset: dict[str, list[_Run]] = {}
    for run in runs:
        by_dataset.setdefault(run.cell.finetune.dataset, []).append(run)
    counts = Counter(map(dataset_label, by_dataset))
    settings = {}
    for number, (dataset, group) in enumerate(by_dataset.items(), start=1):
        metrics, cells = frozenset().union(*(run.metrics for run in group)), [run.cell for run in group]
        label = dataset_label(dataset)
        settings[dataset] = Setting(
            dataset=dataset,
            name=f"{label} ({number})" if counts[label] > 1 else label,
            tasks=tuple(task for task, metric in METRIC_OF_TASK.items() if metric in metrics),
            student=", ".join(dict.fromkeys(cell.finetune.student for cell in cells)),
            init=cells[0].finetune.init,
            teachers=tuple(dict.fromkeys(teacher for cell in cells for teacher in cell.teachers)),
            test_sets=tuple(dict.fromkeys(name for cell in cells for name in cell.test_sets)),
        )
    return settings
