"""Runs without a study: run folders, and folders of them, as one table with a row for each run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from advl_pipeline.base.errors import ConfigError, advise, enumeration
from advl_pipeline.base.folders import folder_kind, near_folder
from advl_pipeline.datasets.records import TASKS
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.prepare import scored_again
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import EvaluationDocument, read_documents
from advl_pipeline.runs.results import read_caches, read_config
from advl_pipeline.studies.config import SHIPPED, Setting, StudyConfig, Variant
from advl_pipeline.studies.plan import Plan, PlannedRun
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
    documents: dict[Path, Mapping[str, EvaluationDocument]] = {}
    for path in filter(names.is_finished, folders):
        with scored_again(path):
            documents[path] = read_documents(path)
    runs = {path: stored for path, stored in documents.items() if stored}
    if not runs:
        first = next(iter(documents), folders[0])
        with scored_again(first):
            raise ConfigError(
                f"Of {len(folders)} runs here none is both finished and scored on a test set.",
                where=", ".join(map(str, named)),
                next_command=advise(["advl", "evaluate", str(first)]),
            )
    planned_runs = [_planned_run(path, stored, folder, is_one=len(runs) == 1) for path, stored in runs.items()]
    settings = _settings(planned_runs)
    planned_runs = [replace(planned, setting=settings[planned.finetune.dataset].name) for planned in planned_runs]
    variants = {
        row.method: Variant(method=row.finetune.method, role=SHIPPED[row.finetune.method].role, label=row.method)
        for row in planned_runs
    }
    study = StudyConfig(
        name=folder.absolute().name,
        title=f"Runs in {folder.absolute().name}",
        methods=tuple(variants),
        shots=tuple(dict.fromkeys(planned.shots for planned in planned_runs)),
        seeds=tuple(dict.fromkeys(planned.seed for planned in planned_runs)),
        baseline="",
        focus=planned_runs[0].method if len(planned_runs) == 1 else "",
        settings=tuple(settings.values()),
        variants=variants,
        source=str(folder),
    )
    command = finetune_command(planned_runs[0].finetune)
    return Plan(study=study, command=command, runs=tuple(planned_runs), of_runs=True)


def _planned_run(folder: Path, stored: Mapping[str, EvaluationDocument], outer: Path, *, is_one: bool) -> PlannedRun:
    """Return a run as if it were planned, the test set with replaced pictures first; its setting is not known yet."""
    config = config_of_run(read_config(folder), where=str(folder / names.CONFIG), output=folder)
    teachers = tuple(dict.fromkeys(str(cache["identity"]["teacher"]["name"]) for cache in read_caches(folder)))
    test_sets = tuple(sorted(stored, key=lambda name: (not stored[name].use_of_vision, name)))
    run_name = str(folder.absolute().relative_to(outer.absolute()))
    row = _row(config, teachers)
    return PlannedRun(
        run_id=folder.absolute().name if run_name == "." else run_name,
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
        said.append(f"teachers {enumeration(teachers)}")
    return ", ".join(said)


def _settings(planned_runs: Sequence[PlannedRun]) -> dict[str, Setting]:
    """Return the setting of each dataset, with all test sets of its runs; settings of equal name are numbered."""
    by_dataset: dict[str, list[PlannedRun]] = {}
    for planned in planned_runs:
        by_dataset.setdefault(planned.finetune.dataset, []).append(planned)
    counts = Counter(map(dataset_label, by_dataset))
    settings = {}
    for number, (dataset, group) in enumerate(by_dataset.items(), start=1):
        label = dataset_label(dataset)
        stored = [document for planned in group for document in read_documents(planned.run).values()]
        metrics = {metric for document in stored for metric in document.metrics}
        settings[dataset] = Setting(
            dataset=dataset,
            name=f"{label} ({number})" if counts[label] > 1 else label,
            tasks=tuple(task for task, facts in TASKS.items() if facts.metric in metrics),
            student=", ".join(dict.fromkeys(planned.finetune.student for planned in group)),
            init=group[0].finetune.init,
            teachers=tuple(dict.fromkeys(teacher for planned in group for teacher in planned.teachers)),
            test_sets=tuple(dict.fromkeys(name for planned in group for name in planned.test_sets)),
        )
    return settings
