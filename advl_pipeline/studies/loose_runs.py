"""Runs without a study: run folders, and folders of them, as one table with a row for each run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.folders import folder_kind, near_folder
from advl_pipeline.datasets.records import TASKS
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import EvaluationDocument, read_documents
from advl_pipeline.runs.results import read_caches, read_config
from advl_pipeline.studies.config import SHIPPED, Setting, StudyConfig, Variant
from advl_pipeline.studies.plan import Cell, Plan
from advl_pipeline.training.config import FinetuneConfig, config_of_run
from advl_pipeline.training.facts import finetune_command


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
            raise ConfigError(
                "There is nothing to report on.",
                where=str(folder),
                why=near_folder(folder, "run", "study") or "it is neither a study, nor a run, nor a folder of runs",
                next_command=advise(["advl", "finetune", "--help"], note="makes a run; evaluate it next"),
            )
        folders |= dict.fromkeys(run_folders)
    return list(folders)


def lay_out_runs(*named: Path) -> Plan:
    """Lay out runs, and all finished and evaluated runs in folders, as the rows of one table.

    Args:
        named: run folders and folders of runs.

    Raises:
        ConfigError: a folder contains no run, or no run was evaluated.
    """
    folders = folders_of_runs(named)
    folder = common_folder(named)
    documents = {path: read_documents(path) for path in folders if names.is_finished(path)}
    runs = {path: stored for path, stored in documents.items() if stored}
    if not runs:
        raise ConfigError(
            f"Of {len(folders)} runs here none is both finished and scored on a test set.",
            where=", ".join(map(str, named)),
            next_command=advise(["advl", "evaluate", str(folders[0]), "--on", "test"]),
        )
    cells = [_cell(path, stored, folder, is_one=len(runs) == 1) for path, stored in runs.items()]
    settings = _settings(cells)
    cells = [replace(cell, setting=settings[cell.finetune.dataset].name) for cell in cells]
    variants = {
        cell.method: Variant(method=cell.finetune.method, role=SHIPPED[cell.finetune.method].role, label=cell.method)
        for cell in cells
    }
    study = StudyConfig(
        name=folder.absolute().name,
        title=f"Runs in {folder.absolute().name}",
        methods=tuple(variants),
        shots=tuple(dict.fromkeys(cell.shots for cell in cells)),
        seeds=tuple(dict.fromkeys(cell.seed for cell in cells)),
        baseline="",
        focus=cells[0].method if len(cells) == 1 else "",
        settings=tuple(settings.values()),
        variants=variants,
        source=str(folder),
    )
    return Plan(study=study, command=finetune_command(cells[0].finetune), cells=tuple(cells), of_runs=True)


def _cell(folder: Path, stored: Mapping[str, EvaluationDocument], outer: Path, *, is_one: bool) -> Cell:
    """Return a run as a cell, the test set with replaced pictures first; its setting is not known yet."""
    config = config_of_run(read_config(folder), where=str(folder / names.CONFIG), output=folder)
    teachers = tuple(dict.fromkeys(str(cache["identity"]["teacher"]["name"]) for cache in read_caches(folder)))
    test_sets = tuple(sorted(stored, key=lambda name: (not stored[name].use_of_vision, name)))
    run_name = str(folder.absolute().relative_to(outer.absolute()))
    row = _row(config, teachers)
    return Cell(
        cell_id=folder.absolute().name if run_name == "." else run_name,
        setting="",
        method=row if is_one else f"{run_name}: {row}",
        shots=config.shots,
        seed=config.seed,
        teachers=teachers,
        test_sets=test_sets,
        finetune=config,
        evaluate=EvaluateConfig(run=folder, on=test_sets),
        run_name=run_name,
    )


def _row(config: FinetuneConfig, teachers: Sequence[str]) -> str:
    """Return the name of a run's row: its method, and what was withheld from its student."""
    said = [SHIPPED[config.method].label]
    if config.hide_picture:
        said.append("without pictures")
    if config.teacher_control != "none":
        said.append(f"teacher_control {config.teacher_control}")
    if any(name.startswith("random:") for name in teachers):
        said.append(f"teachers {' and '.join(teachers)}")
    return ", ".join(said)


def _settings(cells: Sequence[Cell]) -> dict[str, Setting]:
    """Return the setting of each dataset, with all test sets of its runs; settings of equal name are numbered."""
    by_dataset: dict[str, list[Cell]] = {}
    for cell in cells:
        by_dataset.setdefault(cell.finetune.dataset, []).append(cell)
    counts = Counter(map(dataset_label, by_dataset))
    settings = {}
    for number, (dataset, group) in enumerate(by_dataset.items(), start=1):
        label = dataset_label(dataset)
        stored = [document for cell in group for document in read_documents(cell.run).values()]
        metrics = {metric for document in stored for metric in document.metrics}
        settings[dataset] = Setting(
            dataset=dataset,
            name=f"{label} ({number})" if counts[label] > 1 else label,
            tasks=tuple(task for task, facts in TASKS.items() if facts.metric in metrics),
            student=", ".join(dict.fromkeys(cell.finetune.student for cell in group)),
            init=group[0].finetune.init,
            teachers=tuple(dict.fromkeys(teacher for cell in group for teacher in cell.teachers)),
            test_sets=tuple(dict.fromkeys(name for cell in group for name in cell.test_sets)),
        )
    return settings
