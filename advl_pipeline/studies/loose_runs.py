"""Runs that no study asked for: a run folder, or a folder of them, laid out as a study that a report can show.

Runs of one dataset, student and size are rows beside each other, and runs of several seeds are one row. A row goes by
its method, and by what differs too where runs of one method have other options or teachers. It goes by its folder's
name where even that says nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import config_to_dict, option_values, options_without
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import METRIC_OF_TASK
from advl_pipeline.folders import folder_kind, near_folder
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_config, read_documents, read_json
from advl_pipeline.studies.config import SHIPPED, Setting, StudyConfig, Variant, with_joint
from advl_pipeline.studies.plan import Cell, Plan
from advl_pipeline.training.config import FinetuneConfig, config_of_run

_OF_PLACE = frozenset({"method", "dataset", "student", "task", "shots", "seed", "cache"})
"""Options that say where a run stands, which method and seed it is of, or where the features of its teachers lie."""

_SPOILT = ("hide_picture", "teacher_control")
"""Options that make a control of a run. A row is named for them even where all runs agree, as for random teachers."""

_RANDOM = "random:"
_USUAL = {name: str(value) for name, value in config_to_dict(FinetuneConfig(dataset="", output=Path())).items()}


@dataclass(frozen=True)
class _Run:
    """A finished run that was evaluated.

    `evaluations` maps a test set to its document. `choices` is what tells it, in words, from runs of the same method
    at its place: options that change its numbers, its teachers, and a digest of what their features are.
    """

    folder: Path
    config: FinetuneConfig
    evaluations: Mapping[str, Mapping[str, Any]]
    teachers: tuple[str, ...]
    choices: Mapping[str, str]

    @property
    def setting(self) -> tuple[str, str, tuple[str, ...]]:
        """Dataset, student and tasks that it was scored on."""
        metrics = {metric for document in self.evaluations.values() for metric in document["metrics"]}
        tasks = tuple(task for task, metric in METRIC_OF_TASK.items() if metric in metrics)
        return (self.config.dataset, self.config.student, tasks)

    @property
    def test_sets(self) -> list[str]:
        """The set that its pictures were spoilt on comes first: it is the reference of the others."""
        return sorted(self.evaluations, key=lambda name: (not self.evaluations[name].get("use_of_vision"), name))


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder itself, or the one that all of several lie in."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))


def folders_of_runs(named: Sequence[Path]) -> list[Path]:
    """Return the run folders among the named ones and in them, each once.

    Raises:
        ConfigError: one is none and holds none.
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
    """Lay out runs, and all finished and evaluated runs that lie in folders.

    Args:
        named: run folders and folders of runs.

    Raises:
        ConfigError: one holds no run, or none was evaluated.
    """
    folders = folders_of_runs(named)
    runs = [run for path in folders if (run := _read(path)) is not None]
    if not runs:
        raise ConfigError(
            "No run here was evaluated.",
            where=", ".join(map(str, named)),
            why=f"of {len(folders)} none is both finished and scored on a test set",
            next_command=advise(["advl", "evaluate", str(folders[0]), "--on", "test"]),
        )
    folder = common_folder(named)
    rows, settings = _rows(runs), _settings(runs)
    variants = dict(rows.values())
    baseline, focus = _judged(variants)
    study = StudyConfig(
        name=folder.absolute().name,
        title=f"Runs in {folder.absolute().name}",
        methods=tuple(variants),
        shots=tuple(dict.fromkeys(run.config.shots for run in runs)),
        seeds=tuple(dict.fromkeys(run.config.seed for run in runs)),
        baseline=baseline,
        focus=focus,
        settings=tuple(settings.values()),
        variants=variants,
        source=str(folder),
    )
    cells = []
    for run in runs:
        setting, run_name = settings[run.setting], str(run.folder.absolute().relative_to(folder.absolute()))
        cells.append(
            Cell(
                cell_id=run.folder.absolute().name if run_name == "." else run_name,
                setting=setting.name,
                method=rows[run.folder][0],
                shots=run.config.shots,
                seed=run.config.seed,
                teachers=run.teachers,
                test_sets=tuple(name for name in setting.test_sets if name in run.evaluations),
                finetune=run.config,
                evaluate=EvaluateConfig(run=run.folder, on=tuple(run.test_sets)),
                run_name=run_name,
            )
        )
    return Plan(study=study, cells=tuple(cells), caches={}, of_runs=True)


def _read(folder: Path) -> _Run | None:
    documents = read_documents(folder) if names.is_finished(folder) else {}
    if not documents:
        return None
    config = config_of_run(read_config(folder), where=str(folder / names.CONFIG), output=folder)
    caches = read_json(folder / names.CACHES, list) if (folder / names.CACHES).exists() else []
    made = json.dumps([cache["identity"]["teacher"] for cache in caches], sort_keys=True)
    teachers = tuple(dict.fromkeys(str(cache["identity"]["teacher"]["name"]) for cache in caches))
    options = options_without(FinetuneConfig, config_to_dict(config), "beside", "none")
    choices = {name: str(value) for name, value in options.items() if name not in _OF_PLACE}
    choices["teachers"] = " and ".join(teachers) or "none"
    choices["features"] = hashlib.sha256(made.encode()).hexdigest()[:8]
    return _Run(folder=folder, config=config, evaluations=documents, teachers=teachers, choices=choices)


def _settings(runs: Sequence[_Run]) -> dict[tuple[str, str, tuple[str, ...]], Setting]:
    """Return the setting of each dataset, student and tasks; those of one dataset have a student and a number too."""
    settings: dict[tuple[str, str, tuple[str, ...]], Setting] = {}
    for run in runs:
        before = settings[run.setting].test_sets if run.setting in settings else ()
        *_, tasks = run.setting
        settings[run.setting] = Setting(
            dataset=run.config.dataset,
            name=dataset_label(run.config.dataset),
            tasks=tasks,
            metrics=with_joint(tuple(METRIC_OF_TASK[task] for task in tasks)),
            student=run.config.student,
            init=run.config.init,
            teachers=run.teachers,
            test_sets=tuple(dict.fromkeys([*before, *run.test_sets])),
        )
    counts = Counter(setting.name for setting in settings.values())
    for number, (key, setting) in enumerate(settings.items(), start=1):
        if counts[setting.name] > 1:
            settings[key] = replace(setting, name=f"{setting.name}, {setting.student} ({number})")
    return settings


def _judged(variants: Mapping[str, Variant]) -> tuple[str, str]:
    """Return the row that others are compared with, and the one that is judged: of ADVL, if any, and no control."""
    ranks = {"method": 1, "ablation": 1, "control": 2, "baseline": 3}

    def worth_judging(name: str) -> tuple[int, bool]:
        return ranks[variants[name].role], variants[name].method != "advl"

    def fit_to_compare(name: str) -> tuple[bool, ...]:
        variant = variants[name]
        return name != "plain", variant.role != "baseline", variant.method != "plain-two-step"

    others = [name for name in reversed([*variants]) if name != "plain"]
    focus = min(others, key=worth_judging, default="plain")
    return min((name for name in variants if name != focus), key=fit_to_compare, default="plain"), focus


def _rows(runs: Sequence[_Run]) -> dict[Path, tuple[str, Variant]]:
    """Name each run's row: by its method and what else tells it, unless two runs of one seed have the same name."""
    differing: dict[str, set[str]] = {}
    alike: dict[tuple[Any, ...], list[_Run]] = {}
    for run in runs:
        alike.setdefault((run.setting, run.config.shots, run.config.method), []).append(run)
    for (*_, method), group in alike.items():
        changing = {name for run in group for name, value in run.choices.items() if value != group[0].choices[name]}
        if len({(run.teachers, run.choices["features"]) for run in group}) == len({run.teachers for run in group}):
            # The teachers' names tell the features.
            changing.discard("features")
        differing.setdefault(method, set()).update(changing)
    rows = {run.folder: _row(run, differing[run.config.method]) for run in runs}
    counts = Counter((run.setting, run.config.shots, run.config.seed, rows[run.folder][0]) for run in runs)
    twice = {key[-1] for key, count in counts.items() if count > 1}
    for path, (name, variant) in rows.items():
        if name in twice:
            rows[path] = (path.absolute().name, replace(variant, label=path.absolute().name))
    return rows


def _row(run: _Run, differing: set[str]) -> tuple[str, Variant]:
    """Name a run by the choices that differ and are unusual, and by what makes it a control."""
    method, values = run.config.method, option_values(run.config)
    is_random = any(teacher.startswith(_RANDOM) for teacher in run.teachers)
    always = {*_SPOILT, *(["teachers"] if is_random else [])}
    choices = {
        name: value
        for name, value in sorted(run.choices.items())
        if name in always | differing and value != _USUAL.get(name)
    }
    words = {name: f"{name} {value}" for name, value in choices.items()}
    spoilt = {name: values[name] for name in choices if name in _SPOILT}
    usual = SHIPPED[method]
    # A control that ships has its words, of which the options that make it one say nothing more.
    control = next(
        (
            variant
            for variant in SHIPPED.values()
            if spoilt
            and (variant.method, bool(variant.teacher_prefix)) == (method, is_random)
            and {name: value for name, value in variant.training.items() if name in _SPOILT} == spoilt
        ),
        None,
    )
    shown = [word for name, word in words.items() if control is None or name not in spoilt]
    variant = Variant(
        method=method,
        role="control" if is_random or spoilt else usual.role,
        label=", ".join([(control or usual).label, *shown]),
        teacher_prefix=_RANDOM if is_random else "",
        training={name: values[name] for name in choices if name in values},
    )
    return ", ".join([method, *words.values()]), variant
