"""The grid as a pure function of the study: which cells there are, and what each is called.

A cell is one finetuning run and its evaluations. Its id is a digest of everything that changes its numbers and of
nothing else: all options and what stands for those that are not given, the recipe's numbers, the content of the
training split and of the pretrained student, but not where these are, no time, no position in the grid. Adding a
method, a seed or a test set to a study therefore leaves the finished cells valid, and two studies that ask for the
same cell share its run. An answer list stands in it by its path, a cache of regions by its content.

The study folder keeps the plan: study.json (the study as it was resolved, and its cells). Runs are next to studies:
runs/cells/ID for runs/studies/NAME, each once. So studies that ask for one cell share it, and studies that are copied
to another machine with the folder of cells gather there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.configuration import (
    build_config,
    config_to_dict,
    json_text,
    options_without,
)
from advl_pipeline.base.errors import ConfigError, DatasetError, advise
from advl_pipeline.base.folders import MARKERS
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.roots import is_location
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.extraction.config import ExtractConfig, default_output, part_name
from advl_pipeline.runs.results import filed_as, read_json
from advl_pipeline.students.weight_files import (
    file_digest,
    is_on_hub,
    making_command,
    student_digest,
    weight_files,
)
from advl_pipeline.studies.config import Setting, StudyConfig, published_name, shots_label
from advl_pipeline.teachers.registry import card_of
from advl_pipeline.training.checks import open_region_caches, region_places, splits_read
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.identity import NAMED_FILES, SCHEMA, recipe_identity, run_identity
from advl_pipeline.training.inputs import other_splits
from advl_pipeline.training.resolved import resolve_run, takes_two_steps

STUDY_FILE = MARKERS["study"].file
_STUDIES_FOLDER = "studies"

_ID_LENGTH = 12
"""Hexadecimal digits of a cell id (48 bits: a clash among 10,000 cells has a chance of 2e-7)."""

_ANY_NUMBER_OF_EXAMPLES = 1_000_000
"""Stands for the size of the whole training split, whose content is part of an id by its digest."""

DatasetDigester = Callable[[FinetuneConfig], str]
"""Digest of the content of the split that a run trains on. Raises `DatasetError`."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


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
    """The run folder, relative to the folder that all runs of a result are in."""
    keeps_student: bool = False
    is_control: bool = False
    recipe_digest: str | None = None
    """Of the recipe file whose numbers stand in the id; None where no file is named."""

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.finetune.output

    @property
    def title(self) -> str:
        return f"{self.setting} / {self.method} / {shots_label(self.shots)} shots / seed {self.seed}"

    def filed(self, test_set: str) -> str:
        """Return what the run files a test set under that it was scored on as the study asks."""
        return filed_as(self.run, test_set, self.evaluate.vqa_mode, self.evaluate.protocol)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All cells of a study, in the order in which they are worth having; study.json holds all but the last two."""

    study: StudyConfig
    dataset_digests: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Of the splits that are trained on: "dataset/split" -> digest of the content."""
    command: str = ""
    """Makes the runs again."""
    cells: tuple[Cell, ...]
    caches: Mapping[Path, ExtractConfig] = field(default_factory=dict)
    """How each is extracted: from a whole split, or from the first `shots` questions in a seed's order."""
    of_runs: bool = False
    """Laid out from runs that are there, whose test sets may be of other tasks."""


def build_plan(
    study: StudyConfig,
    *,
    cells: Path,
    caches: Path = Path("caches"),
    data_root: Path | None = None,
    init_digests: Mapping[str, str] = _NOTHING,
    dataset_digests: Mapping[str, str] = _NOTHING,
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

    Raises:
        ConfigError: the overrides of a cell contradict each other, or a recipe cannot be read.
    """
    grid: list[Cell] = []
    needs: dict[Path, ExtractConfig] = {}
    for seed, setting, shots, method in itertools.product(study.seeds, study.settings, study.shots, study.methods):
        variant, teachers = study.variant(method), _teachers(study, setting, method)
        decided = {"shots": shots, "seed": seed, "data_root": data_root, "output": cells}
        config = _cell_config(study, setting, method, decided)
        extractions = _extractions(study, config, teachers, caches)
        needs |= extractions
        config = replace(config, cache=tuple(extractions))
        if config.distill.reads_labels and variant.role != "control":
            what = f"{method} weighs by labels (--weighting oracle) and is not marked as a control."
            role = f'role = "control" under [variants.{method}]'
            raise ConfigError(what, where=study.source, next_command=role)
        options = identity_options(config, setting, teachers, extraction=study.extraction, digests=init_digests)
        if (content := dataset_digests.get(trained_on(config))) is not None:
            options["dataset_digest"] = content
        cell_id = _cell_id(options)
        config = replace(config, output=cells / cell_id)
        grid.append(
            Cell(
                cell_id=cell_id,
                setting=setting.name,
                method=method,
                shots=shots,
                seed=seed,
                teachers=teachers,
                test_sets=setting.test_sets,
                finetune=config,
                evaluate=build_config(
                    EvaluateConfig,
                    {"probe_on": setting.test_sets[:1]},
                    study.evaluation,
                    {"run": config.output, "on": setting.test_sets, "data_root": data_root},
                    where=f"{study.source} [evaluation]",
                ),
                run_name=f"{cells.name}/{cell_id}",
                keeps_student=study.keep_weights,
                is_control=variant.role == "control",
                recipe_digest=file_digest(config.optimisation.recipe),
            )
        )
    return Plan(study=study, dataset_digests=dataset_digests, cells=tuple(grid), caches=needs)


def _cell_id(options: Mapping[str, Any]) -> str:
    text = json.dumps(options, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.blake2b(text.encode(), digest_size=_ID_LENGTH // 2).hexdigest()


def _teachers(study: StudyConfig, setting: Setting, method: str) -> tuple[str, ...]:
    """Return the teachers of a cell; raises `ConfigError` where it needs one and none is named."""
    variant = study.variant(method)
    if not variant.uses_teachers:
        return ()
    named = setting.teachers if variant.teachers is None else variant.teachers
    if not named:
        what = f"{method} needs a teacher and the setting {setting.name} names none."
        raise ConfigError(what, where=study.source, next_command='add teachers = ["minilm-l6"] to the study file')
    return tuple(f"{variant.teacher_prefix}{name}{variant.teacher_suffix}" for name in named)


def _cell_config(study: StudyConfig, setting: Setting, method: str, decided: Mapping[str, Any]) -> FinetuneConfig:
    """Return the options of a cell, without its caches.

    Args:
        decided: what the grid decides besides the setting: shots, seed and folders.
    """
    variant = study.variant(method)
    # The last layer to name an option wins: what is special about a variant must survive every general override.
    layers = (
        study.training,
        setting.training,
        study.at_shots.get(shots_label(decided["shots"]), {}),
        variant.training,
    )
    of_setting = {
        "dataset": setting.dataset,
        "task": setting.tasks,
        "student": setting.student,
        "init": setting.init,
    }
    return build_config(
        FinetuneConfig, *layers, {"method": variant.method}, of_setting | dict(decided), where=study.source
    )


def _extractions(
    study: StudyConfig, config: FinetuneConfig, teachers: Sequence[str], caches: Path
) -> dict[Path, ExtractConfig]:
    """Return the caches that a cell reads, in order, and how each is extracted."""
    # No more of its split than the run sees, whatever the other cells of a grid see: moments are of what is held.
    seen = None if config.pool is None or config.shots is None else max(config.pool, config.shots)
    extractions: dict[Path, ExtractConfig] = {}
    for split, teacher in itertools.product(distilled_splits(config), teachers):
        num_seen = seen if split == (config.dataset, config.split) else None
        subset = {} if num_seen is None else {"shots": num_seen, "seed": [config.seed]}
        if subset and "seed" in study.extraction:
            where = f"{study.source} [extraction]"
            raise ConfigError("'seed' is set by the grid and cannot be overridden here.", where=where)
        usual = default_output(teacher, *split, part=part_name(num_seen, [config.seed]))
        path = caches / usual.relative_to(usual.parts[0])
        decided = {"teacher": teacher, "dataset": split[0], "split": split[1], "output": path}
        extractions[path] = extraction_config(study, decided | {"data_root": config.data_root} | subset)
    return extractions


def extraction_config(study: StudyConfig, decided: Mapping[str, Any]) -> ExtractConfig:
    """Return how a study extracts a cache of one of its teachers; one of pictures has no use for options of texts."""
    options, name = dict(study.extraction), published_name(decided["teacher"])
    weights = options.pop("weights", {}).get(name)
    if (card := card_of(name)) is not None and "text" not in card.modalities:
        options = {option: value for option, value in options.items() if option != "select_texts"}
    return build_config(ExtractConfig, options, {**decided, "weights": weights}, where=f"{study.source} [extraction]")


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
    # Where own data are does not matter; what they hold is in the digest. No study trains on a list.
    described |= {"dataset": None if is_location(config.dataset) else config.dataset, "ids": None}
    described["schema"] = SCHEMA
    num_labelled = config.shots or _ANY_NUMBER_OF_EXAMPLES
    described["recipe"] = {
        kind: recipe_identity(resolve_run(config, kind=kind, num_labelled=num_labelled).chosen)
        for kind in sorted(set(map(head_name, setting.tasks)))
    }
    described["init"] = digests.get(str(config.init), str(config.init)) if config.init else None
    named = {option: str(value) for option in NAMED_FILES if (value := getattr(config, option)) is not None}
    described |= {option: digests.get(str(Path(value)), value) for option, value in named.items()}
    if config.regions:
        places = map(str, region_places(config.regions, splits_read(config)))
        described["regions"] = [digests.get(place, place) for place in places]
    if teachers:
        described["teachers"] = list(teachers)
        described["extraction"] = options_without(ExtractConfig, extraction, "provenance", "none")
    return described


def trained_on(config: FinetuneConfig) -> str:
    """Return the split that a run trains on, as "dataset/split"."""
    return f"{config.dataset}/{config.split}"


def distilled_splits(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return (dataset, split) of all inputs that a run's teachers are asked about."""
    others = other_splits(config.adapt.adapt_on) if takes_two_steps(config) else []
    return [(config.dataset, config.split), *others]


def default_folder(study: StudyConfig) -> Path:
    return Path("runs") / _STUDIES_FOLDER / study.name


def cells_folder(folder: Path) -> Path:
    """Return where the runs of a study are: in `cells`, next to the study or to its folder `studies`."""
    parent = folder.parent
    return (parent.parent if parent.name == _STUDIES_FOLDER else parent) / "cells"


def studies_of(run: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the studies next to a run's folder that list its cell, by name, and whether they keep its student."""
    outer = run.absolute().parent.parent
    for file in sorted([*outer.glob(f"{_STUDIES_FOLDER}/*/{STUDY_FILE}"), *outer.glob(f"*/{STUDY_FILE}")]):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            # What is wrong with it, its own commands say.
            record = json.loads(file.read_text(encoding="utf-8"))
            # An earlier version kept the cells by their names.
            cells = record["cells"]
            if run.name in (cells if isinstance(cells, dict) else [cell["cell_id"] for cell in cells]):
                yield file.parent, record["study"].get("keep_weights", True)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write study.json, which alone says what a study folder holds."""
    recorded = ("study", "dataset_digests", "command", "cells")
    write_text(folder / STUDY_FILE, json_text({name: getattr(plan, name) for name in recorded}) + "\n")


def read_study_folder(folder: Path) -> Plan:
    """Return the plan of a study folder, without its caches; the runs of its cells are looked for where they are now.

    Raises:
        ConfigError: the folder holds no study, or its record is damaged or of an earlier version.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        what, remedy = "This folder holds no study.", advise(["advl", "study", "NAME", "--output", "FOLDER"])
        raise ConfigError(what, where=str(folder), why=f"it has no {STUDY_FILE}", next_command=remedy)
    document = read_json(path)
    try:
        for setting in document["study"]["settings"]:
            setting.pop("metrics", None)  # As an earlier version wrote it; the tasks tell.
        plan = build_config(Plan, document, where=str(path))
    except (ConfigError, TypeError, KeyError, AttributeError) as error:
        words = shlex.split(str(document.get("command", ""))) or ["advl", "study", "NAME", "--output", str(folder)]
        what, why = "The record of the study is damaged, or of an earlier version.", str(error).partition("\n")[0]
        remedy = advise(words, note="it runs nothing that is finished")
        raise ConfigError(what, where=str(path), why=why, next_command=remedy) from error
    place = cells_folder(folder)
    cells = (replace(cell, finetune=replace(cell.finetune, output=place / cell.cell_id)) for cell in plan.cells)
    return replace(plan, cells=tuple(cells))


def missing_inits(study: StudyConfig) -> dict[Path, str]:
    """Return the pretrained students that do not exist, with the name of the student each is for."""
    inits = {setting.init: setting.student for setting in study.settings if setting.init is not None}
    return {path: student for path, student in inits.items() if not is_on_hub(path) and not weight_files(path)}


def input_digests(draft: Plan) -> dict[str, str]:
    """Digest what cells start from or see besides their dataset, so that another content makes other cells.

    These are pretrained students, files of students that options name, and caches of regions.

    Args:
        draft: the plan as it is laid out without digests.

    Raises:
        ConfigError: a pretrained student does not exist, or a cache of regions is none, with the command that makes
            it. CorruptCache: it is damaged.
    """
    for path, student in missing_inits(draft.study).items():
        published = f"put the published weights there, or --init hf:ORG/MODEL (see advl students show {student})"
        what = "The pretrained student does not exist: there is no *.safetensors file and no checkpoint."
        raise ConfigError(what, where=str(path), next_command=making_command(student, path) or published)
    digests: dict[str, str] = {}
    for config in (cell.finetune for cell in draft.cells):
        if config.init is not None and str(config.init) not in digests and not is_on_hub(config.init):
            digests[str(config.init)] = student_digest(config.init)
        for option, digest_file in NAMED_FILES.items():
            value = getattr(config, option)
            if value is None or str(Path(value)) in digests:
                continue
            if (digest := digest_file(str(value))) is not None:
                digests[str(Path(value))] = digest
        if not digests.keys() >= set(map(str, region_places(config.regions, splits_read(config)))):
            caches = open_region_caches(config.regions, splits_read(config), data_root=config.data_root)
            digests |= {str(cache.path): cache.identity_digest for cache in caches}
    return digests


def dataset_digests(draft: Plan, digest: DatasetDigester, *, folder: Path) -> dict[str, str]:
    """Digest every split that a plan trains on, so that a rebuilt dataset makes other cells.

    Args:
        draft: the plan as it is laid out without digests.
        folder: of the study. What it remembers serves where the datasets are not available, so that a finished study
            can be looked at anywhere.

    Returns:
        "dataset/split" -> digest.

    Raises:
        DatasetError: a dataset is missing or malformed, and the folder remembers nothing of it.
    """
    splits = {trained_on(cell.finetune): cell.finetune for cell in draft.cells}
    try:
        return {name: digest(config) for name, config in splits.items()}
    except DatasetError:
        file = folder / STUDY_FILE
        recorded = read_json(file).get("dataset_digests", {}) if file.exists() else {}
        if splits.keys() - recorded.keys():
            raise
        return {name: recorded[name] for name in splits}


def digest_dataset(config: FinetuneConfig) -> str:
    """Return the content digest of the split that a run trains on, without the rows that it leaves out."""
    from advl_pipeline.datasets.registry import open_splits

    opened = open_splits(config.dataset, split=config.split, data_root=config.data_root, on_error=config.on_error)
    return opened.content_digest()
