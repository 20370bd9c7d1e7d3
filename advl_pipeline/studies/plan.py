"""The grid as a pure function of the study: which cells there are, and what each is called.

A cell is one finetuning run and its evaluations. Its id is a digest of everything that changes its numbers and of
nothing else: all options and what stands for those that are not given, the recipe's numbers, the content of the
training split and of the pretrained student, but not where these lie, no time, no position in the grid. Adding a
method, a seed or a test set to a study therefore leaves the finished cells valid, and two studies that ask for the
same cell share its run. An answer list stands in it by its path, a cache of regions by its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from advl_pipeline.configuration import build_config, config_to_dict, options_without, with_options
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.roots import is_own_data
from advl_pipeline.errors import ConfigError
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import METRIC_OF_TASK
from advl_pipeline.extraction.config import ExtractConfig, default_output, part_name
from advl_pipeline.locations import local_folder
from advl_pipeline.studies.config import Setting, StudyConfig, shots_label
from advl_pipeline.studies.variants import Variant
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.given import region_places, splits_read
from advl_pipeline.training.inputs import other_splits
from advl_pipeline.training.resolved import (
    NAMED_FILES,
    SCHEMA,
    recipe_identity,
    resolve_run,
    run_identity,
    takes_two_steps,
)

ID_LENGTH = 12
"""Hexadecimal digits of a cell id (48 bits: a clash among 10,000 cells has a chance of 2e-7)."""


_ANY_NUMBER_OF_EXAMPLES = 1_000_000
"""Stands for the size of the whole training split, whose content is part of an id by its digest."""


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
    evaluate: EvaluateConfig
    run_name: str
    """The run folder, relative to the folder that all runs of a result lie in."""
    keeps_student: bool = False
    is_control: bool = False

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.finetune.output

    @property
    def title(self) -> str:
        return f"{self.setting} / {self.method} / {shots_label(self.shots)} shots / seed {self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheNeed:
    """A teacher cache that some cell reads: of a whole split, or of the first `shots` questions in a seed's order."""

    teacher: str
    dataset: str
    split: str
    path: Path
    shots: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All cells of a study, in the order in which they are worth having, and the caches they read."""

    study: StudyConfig
    cells: tuple[Cell, ...]
    caches: tuple[CacheNeed, ...]
    of_runs: bool = False
    """Laid out from runs that are there, whose test sets may be of other tasks."""


def build_plan(
    study: StudyConfig,
    *,
    cells: Path,
    caches: Path = Path("caches"),
    data_root: Path | None = None,
    init_digests: Mapping[str, str] = MappingProxyType({}),
    dataset_digests: Mapping[str, str] = MappingProxyType({}),
    recipes: Mapping[str, Path] = MappingProxyType({}),
) -> Plan:
    """Lay out the grid.

    Seeds vary slowest, so that an interrupted study has whole comparisons: every method at every size for the first
    seeds.

    Args:
        cells: folder of the runs of all studies, each under its id.
        caches: folder of the teacher caches, laid out as teacher/dataset/split.
        init_digests: digest of each pretrained student's content, and of other files that options name; without one
            the path stands for it.
        dataset_digests: "dataset/split" -> digest of the content that is trained on; without one the name stands
            for it.
        recipes: a recipe file as the study names it -> the file to read in its place.

    Raises:
        ConfigError: the overrides of a cell contradict each other, or a recipe cannot be read.
    """
    lay_out = partial(
        _cell,
        study,
        cells=cells,
        caches=caches,
        data_root=data_root,
        init_digests=init_digests,
        dataset_digests=dataset_digests,
        recipes=recipes,
    )
    grid = [
        lay_out(setting, method, shots, seed)
        for seed in study.seeds
        for setting in study.settings
        for shots in study.shots
        for method in study.methods
    ]
    needs: dict[Path, CacheNeed] = {}
    for cell in grid:
        read = [(*place, teacher) for place in distilled_splits(cell.finetune) for teacher in cell.teachers]
        for (dataset, split, teacher), location in zip(read, cell.finetune.cache, strict=True):
            path = local_folder(location, what="caches")
            own = (dataset, split) == (cell.finetune.dataset, cell.finetune.split)
            needs[path] = CacheNeed(
                teacher=teacher,
                dataset=dataset,
                split=split,
                path=path,
                shots=questions_seen(cell.finetune) if own else None,
                seed=cell.seed,
            )
    return Plan(study=study, cells=tuple(grid), caches=tuple(needs.values()))


def _cell(
    study: StudyConfig,
    setting: Setting,
    method: str,
    shots: int | None,
    seed: int,
    *,
    cells: Path,
    caches: Path,
    data_root: Path | None,
    init_digests: Mapping[str, str],
    dataset_digests: Mapping[str, str],
    recipes: Mapping[str, Path],
) -> Cell:
    variant = study.variant(method)
    teachers = _teachers(variant, setting)
    if variant.uses_teachers and not teachers:
        raise ConfigError(
            f"{method} needs a teacher and the setting {setting.name} names none.",
            where=study.source,
            next_command='add teachers = ["minilm-l6"] to the study file',
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
            "output": cells,
        },
        where=study.source,
    )
    config = with_options(
        config,
        recipe=str(recipes.get(config.optimisation.recipe, config.optimisation.recipe)),
        cache=tuple(
            _cache_path(caches, teacher, dataset, split, config)
            for dataset, split in distilled_splits(config)
            for teacher in teachers
        ),
    )
    if config.distill.weighting == "oracle" and variant.role != "control":
        raise ConfigError(
            f"{method} weighs by labels and is not marked as a control.",
            where=study.source,
            why="--weighting oracle reads the labels of all inputs that the adapt step sees",
            next_command=f'role = "control" under [variants.{method}]',
        )
    options = identity_options(config, setting, teachers, extraction=study.extraction, digests=init_digests)
    if (content := dataset_digests.get(trained_on(config))) is not None:
        options["dataset_digest"] = content
    text = json.dumps(options, sort_keys=True, separators=(",", ":"), default=list)
    cell_id = hashlib.blake2b(text.encode(), digest_size=ID_LENGTH // 2).hexdigest()
    config = replace(config, output=cells / cell_id)
    evaluate = build_config(
        EvaluateConfig,
        {"probe_on": setting.test_sets[:1]},
        study.evaluation,
        {"run": config.output, "on": setting.test_sets, "data_root": data_root},
        where=f"{study.source} [evaluation]",
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
        evaluate=evaluate,
        run_name=f"{cells.name}/{cell_id}",
        keeps_student=study.keep_weights,
        is_control=variant.role == "control",
    )


def identity_options(
    config: FinetuneConfig,
    setting: Setting,
    teachers: tuple[str, ...],
    *,
    extraction: Mapping[str, Any],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """Return what changes the numbers of a cell, as plain JSON types; its id is BLAKE2b over them.

    Args:
        config: of the run; its caches stand in it by `teachers` and `extraction`.
        extraction: options of the extraction that are not left at their default.
        digests: of the content of the pretrained student, of other files of it and of caches of regions; without one
            the path stands for it.

    Raises:
        ConfigError: options or recipe contradict each other.
    """
    described = options_without(FinetuneConfig, run_identity(config_to_dict(config)), "content")
    # Where data of one's own lie does not matter; what they hold is in the digest. No study trains on a list.
    described |= {"dataset": None if is_own_data(config.dataset) else config.dataset, "ids": None}
    described["schema"] = SCHEMA
    # By its metrics where a setting names no tasks.
    tasks = setting.tasks or [task for task, metric in METRIC_OF_TASK.items() if metric in setting.metrics]
    num_labelled = config.shots or _ANY_NUMBER_OF_EXAMPLES
    described["recipe"] = {
        kind: recipe_identity(resolve_run(config, kind=kind, num_labelled=num_labelled).chosen)
        for kind in sorted(set(map(head_name, tasks)))
    }
    described["init"] = digests.get(str(config.init), str(config.init)) if config.init else None
    named = {option: str(value) for option in NAMED_FILES if (value := getattr(config, option)) is not None}
    described |= {option: digests.get(str(Path(value)), value) for option, value in named.items()}
    if config.regions:
        places = map(str, region_places(config.regions, splits_read(config)))
        described["regions"] = [digests.get(place, place) for place in places]
    if teachers:
        described["teachers"] = list(teachers)
        described["extraction"] = options_without(ExtractConfig, extraction, "beside", "none")
    return described


def trained_on(config: FinetuneConfig) -> str:
    """Return the split that a run trains on, as "dataset/split"."""
    return f"{config.dataset}/{config.split}"


def distilled_splits(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return (dataset, split) of all inputs that a run's teachers are asked about."""
    others = other_splits(config.adapt.adapt_on) if takes_two_steps(config) else []
    return [(config.dataset, config.split), *others]


def questions_seen(config: FinetuneConfig) -> int | None:
    """Return how many questions of its split a run sees, the first of its seed's order; None for all.

    It depends on the run alone, never on the other cells of a grid: a cache's moments are of what it holds.
    """
    return None if config.pool is None or config.shots is None else max(config.pool, config.shots)


def _cache_path(caches: Path, teacher: str, dataset: str, split: str, config: FinetuneConfig) -> Path:
    own = (dataset, split) == (config.dataset, config.split)
    part = part_name(questions_seen(config), [config.seed]) if own else ""
    default = default_output(teacher, dataset, split, part=part)
    return caches / default.relative_to(default.parts[0])


def _teachers(variant: Variant, setting: Setting) -> tuple[str, ...]:
    if not variant.uses_teachers:
        return ()
    names = setting.teachers if variant.teachers is None else variant.teachers
    return tuple(f"{variant.teacher_prefix}{name}{variant.teacher_suffix}" for name in names)
