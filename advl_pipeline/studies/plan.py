"""The grid as a pure function of the study: which cells there are, and what each is called.

A cell is one finetuning run and its evaluations. Its id is a digest of everything that changes its numbers and of
nothing else: all options, the recipe's numbers, the content of the training split and of the pretrained student, but
no path, no time, no position in the grid. Adding a method, a seed or a test set to a study therefore leaves the
finished cells valid, and two studies that share a cell agree on its id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import build_config, config_to_dict
from advl_pipeline.datasets.records import HEADS, head_name
from advl_pipeline.errors import ConfigError
from advl_pipeline.extraction.config import default_output
from advl_pipeline.locations import local_folder
from advl_pipeline.students.recipe_choice import choose_recipe
from advl_pipeline.studies.config import Setting, StudyConfig, shots_label
from advl_pipeline.studies.variants import Variant
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run_identity import run_identity

CELLS_FOLDER = "cells"
ID_LENGTH = 12
"""Hexadecimal digits of a cell id (48 bits: a clash among 10,000 cells has a chance of 2e-7)."""

_DESCRIBED_OTHERWISE = frozenset({"cache", "init", "recipe"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One finetuning run and the test sets it is scored on."""

    cell_id: str
    setting: str
    method: str
    shots: int | None
    seed: int
    teachers: tuple[str, ...]
    test_sets: tuple[str, ...]
    finetune: FinetuneConfig

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.finetune.output

    @property
    def title(self) -> str:
        return f"{self.setting} / {self.method} / {shots_label(self.shots)} shots / seed {self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheNeed:
    """A teacher cache that some cell reads."""

    teacher: str
    dataset: str
    split: str
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All cells of a study, in the order in which they are worth having, and the caches they read."""

    study: StudyConfig
    cells: tuple[Cell, ...]
    caches: tuple[CacheNeed, ...]


def build_plan(
    study: StudyConfig,
    *,
    folder: Path,
    caches: Path = Path("caches"),
    data_root: Path | None = None,
    init_digests: Mapping[Path, str] | None = None,
    dataset_digests: Mapping[str, str] | None = None,
) -> Plan:
    """Lay out the grid.

    Seeds vary slowest, so that an interrupted study has whole comparisons: every method at every size for the first
    seeds.

    Args:
        study: the study.
        folder: study folder; run folders lie in it under `cells/`.
        caches: folder of the teacher caches, laid out as teacher/dataset/split.
        data_root: folder of the datasets.
        init_digests: digest of each pretrained student's content; without one its path stands for it.
        dataset_digests: "dataset/split" -> digest of the content that is trained on; without one the name stands
            for it.

    Raises:
        ConfigError: the overrides of a cell contradict each other.
    """
    cells = [
        _cell(
            study, setting, method, shots, seed, folder, caches, data_root, init_digests or {}, dataset_digests or {}
        )
        for seed in study.seeds
        for setting in study.settings
        for shots in study.shots
        for method in study.methods
    ]
    needs: dict[Path, CacheNeed] = {}
    for cell in cells:
        for teacher, location in zip(cell.teachers, cell.finetune.cache, strict=True):
            path = local_folder(location, what="caches")
            needs[path] = CacheNeed(
                teacher=teacher, dataset=cell.finetune.dataset, split=cell.finetune.split, path=path
            )
    return Plan(study=study, cells=tuple(cells), caches=tuple(needs.values()))


def _cell(
    study: StudyConfig,
    setting: Setting,
    method: str,
    shots: int | None,
    seed: int,
    folder: Path,
    caches: Path,
    data_root: Path | None,
    init_digests: Mapping[Path, str],
    dataset_digests: Mapping[str, str],
) -> Cell:
    variant = study.variant(method)
    teachers = _teachers(variant, setting)
    if variant.uses_teachers and not teachers:
        raise ConfigError(
            f"{method} needs a teacher and the setting {setting.name} names none.",
            where=study.source,
            next_command='add teachers = ["minilm-l6", ...] to the study file',
        )
    # The last layer to name an option wins: what is special about a variant must survive every general override.
    layers: list[Mapping[str, Any]] = [
        study.training,
        setting.training,
        study.at_shots.get(shots_label(shots), {}),
        {"method": variant.method, **variant.training},
    ]
    config = build_config(
        FinetuneConfig,
        *layers,
        {
            "dataset": setting.dataset,
            "task": setting.tasks,
            "student": setting.student,
            "init": setting.init,
            "shots": shots,
            "seed": seed,
            "data_root": data_root,
            "output": folder,
        },
        where=study.source,
    )
    cell_id = cell_identity(
        config,
        teachers,
        extraction=study.extraction,
        init_digest=init_digests.get(setting.init) if setting.init else None,
        dataset_digest=dataset_digests.get(trained_on(config)),
    )
    config = build_config(
        FinetuneConfig,
        {name: getattr(config, name) for name in config_to_dict(config)},
        {
            "output": folder / CELLS_FOLDER / cell_id,
            "cache": tuple(_cache_path(caches, teacher, setting.dataset, config.split) for teacher in teachers),
        },
    )
    return Cell(
        cell_id=cell_id,
        setting=setting.name,
        method=method,
        shots=shots,
        seed=seed,
        teachers=teachers,
        test_sets=setting.test_sets,
        finetune=config,
    )


def cell_identity(
    config: FinetuneConfig,
    teachers: tuple[str, ...],
    *,
    extraction: Mapping[str, Any],
    init_digest: str | None,
    dataset_digest: str | None,
) -> str:
    """Return the id of a cell: BLAKE2b over the canonical JSON of what changes its numbers."""
    described = {
        key: value for key, value in run_identity(config_to_dict(config)).items() if key not in _DESCRIBED_OTHERWISE
    }
    described["recipes"] = _recipes_of(config)
    described["init"] = init_digest or (str(config.init) if config.init else None)
    if dataset_digest is not None:
        described["dataset_digest"] = dataset_digest
    if teachers:
        described["teachers"] = list(teachers)
        described["extraction"] = {key: extraction[key] for key in sorted(extraction)}
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.blake2b(text.encode(), digest_size=ID_LENGTH // 2).hexdigest()


def _recipes_of(config: FinetuneConfig) -> dict[str, Any]:
    """Return the numbers of the recipe for each kind of task that a run may train on, without their sources."""
    found: dict[str, Any] = {}
    for kind in HEADS:
        if not config.task or kind in map(head_name, config.task):
            recipe = choose_recipe(config.student, kind, config.recipe).recipe
            if recipe is not None:
                found[kind] = config_to_dict(replace(recipe, sources={}))
    return found


def trained_on(config: FinetuneConfig) -> str:
    """Return the split that a run trains on, as "dataset/split"."""
    return f"{config.dataset}/{config.split}"


def _cache_path(caches: Path, teacher: str, dataset: str, split: str) -> Path:
    default = default_output(teacher, dataset, split)
    return caches / default.relative_to(default.parts[0])


def _teachers(variant: Variant, setting: Setting) -> tuple[str, ...]:
    if not variant.uses_teachers:
        return ()
    names = setting.teachers if variant.teachers is None else variant.teachers
    return tuple(variant.teacher_prefix + name for name in names)
