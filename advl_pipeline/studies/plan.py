"""The grid as a pure function of the study: its runs and their ids.

A run is one finetuning and its evaluations. Its id is a digest of everything that changes its numbers, and of
nothing else: all options, including resolved defaults, the numbers of the recipe, and the content of the training
split and of the pretrained student, but not their location, a time or the position in the grid. Adding a method, a
seed or a test set to a study therefore leaves the finished runs valid, and two studies share a
common run. An answer list enters the id by its path, a cache of regions by its content.

The study folder stores the plan: study.json (the resolved study and its runs). Runs are next to studies, each once:
runs/cells/ID for runs/studies/NAME. So studies share common runs, and studies that are copied to another machine
together with the folder of runs can be gathered there.
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
from advl_pipeline.base.errors import ConfigError, DatasetError, NotAllowed, advise
from advl_pipeline.base.folders import MARKERS
from advl_pipeline.base.locations import read_regular
from advl_pipeline.datasets.records import PUBLISHED_FOR, head_name
from advl_pipeline.datasets.roots import is_location
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.extraction.config import ExtractConfig, default_output, part_name
from advl_pipeline.runs.evaluations import filed_as
from advl_pipeline.runs.results import read_json
from advl_pipeline.stored_inputs.region_caches import open_region_caches, region_places
from advl_pipeline.students.weight_files import (
    file_digest,
    is_on_hub,
    making_command,
    student_digest,
    weight_files,
)
from advl_pipeline.studies.config import Setting, StudyConfig, published_name, shots_label
from advl_pipeline.teachers.registry import card_of
from advl_pipeline.training.config import SCHEMA, FinetuneConfig
from advl_pipeline.training.identity import NAMED_FILES, recipe_identity, run_identity
from advl_pipeline.training.inputs import other_splits, splits_read
from advl_pipeline.training.resolved import resolve_method, resolve_run, takes_two_stages

STUDY_FILE = MARKERS["study"].file
_STUDIES_FOLDER = "studies"
_RUNS_FOLDER = "cells"
"""Folder of the runs of all studies beside it, as earlier versions named it."""

_ID_LENGTH = 12
"""Hexadecimal digits of a run id (48 bits: the probability of a collision among 10,000 runs is 2e-7)."""

_ANY_NUMBER_OF_EXAMPLES = 1_000_000
"""Placeholder for the size of the complete training split, whose content enters an id by its digest."""

DatasetDigester = Callable[[FinetuneConfig], str]
"""Digests the content of the split that a run trains on. Raises `DatasetError`."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """A finetuning run and its test sets."""

    run_id: str
    setting: str
    method: str
    shots: int | None
    seed: int
    teachers: tuple[str, ...]
    test_sets: tuple[str, ...]
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    run_name: str
    """The run folder, relative to the folder that contains all runs of a result."""
    keeps_student: bool = False
    recipe_digest: str | None = None
    """Digest of the recipe file whose numbers enter the id; None if no file is given."""

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.finetune.output

    @property
    def title(self) -> str:
        return f"{self.setting} / {self.method} / {shots_label(self.shots)} shots / seed {self.seed}"

    def filed(self, test_set: str) -> str:
        """Return the name under which the run files the scores of a test set that the study requests."""
        return filed_as(self.run, test_set, self.evaluate.vqa_mode, self.evaluate.protocol)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All runs of a study, the most useful first; study.json stores all fields but the last two."""

    study: StudyConfig
    dataset_digests: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Digests of the training splits: "dataset/split" -> digest of the content."""
    input_digests: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Digests of the other inputs, as returned by `input_digests`."""
    command: str = ""
    """Command that repeats the runs."""
    runs: tuple[PlannedRun, ...]
    caches: Mapping[Path, ExtractConfig] = field(default_factory=dict)
    """How to extract each cache: from a complete split, or from the first `shots` questions in a seed's order."""
    of_runs: bool = False
    """Whether the plan was laid out from existing runs, whose test sets may be of other tasks."""


def build_plan(
    study: StudyConfig,
    *,
    runs: Path,
    caches: Path = Path("caches"),
    data_root: Path | None = None,
    init_digests: Mapping[str, str] = _NOTHING,
    dataset_digests: Mapping[str, str] = _NOTHING,
) -> Plan:
    """Lay out the grid.

    Seeds vary slowest, so that an interrupted study has complete comparisons: every method at every size for the
    first seeds.

    Args:
        runs: folder of the runs of all studies, each under its id.
        caches: folder of the teacher caches, laid out as teacher/dataset/split.
        init_digests: content digest of each pretrained student and of other files named by options; without a digest,
            the path is used.
        dataset_digests: "dataset/split" -> digest of the training content; without a digest, the name is used.

    Raises:
        ConfigError: the overrides of a run contradict each other, or a recipe cannot be read.
    """
    grid: list[PlannedRun] = []
    needs: dict[Path, ExtractConfig] = {}
    for seed, setting, shots, method in itertools.product(study.seeds, study.settings, study.shots, study.methods):
        teachers = _teachers(study, setting, method)
        decided = {"shots": shots, "seed": seed, "data_root": data_root, "output": runs}
        config = _run_config(study, setting, method, decided)
        extractions = _extractions(study, config, teachers, caches)
        needs |= extractions
        config = replace(config, cache=tuple(extractions))
        options = identity_options(config, setting, teachers, extraction=study.extraction, digests=init_digests)
        if (content := dataset_digests.get(trained_on(config))) is not None:
            options["dataset_digest"] = content
        run_id = _run_id(options)
        config = replace(config, output=runs / run_id)
        grid.append(
            PlannedRun(
                run_id=run_id,
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
                run_name=f"{runs.name}/{run_id}",
                keeps_student=study.keep_weights,
                recipe_digest=file_digest(config.optimisation.recipe),
            )
        )
    return Plan(
        study=study,
        dataset_digests=dataset_digests,
        input_digests=init_digests,
        runs=tuple(grid),
        caches=needs,
    )


def _run_id(options: Mapping[str, Any]) -> str:
    text = json.dumps(options, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.blake2b(text.encode(), digest_size=_ID_LENGTH // 2).hexdigest()


def _teachers(study: StudyConfig, setting: Setting, method: str) -> tuple[str, ...]:
    """Return the teachers of a run; raise `ConfigError` if it needs one and none is given."""
    variant = study.variant(method)
    if not variant.uses_teachers:
        return ()
    named = setting.teachers if variant.teachers is None else variant.teachers
    if not named:
        raise ConfigError(
            f"{method} needs a teacher and the setting {setting.name} names none.",
            where=study.source,
            next_command='add teachers = ["minilm-l6"] to the study file',
        )
    return tuple(f"{variant.teacher_prefix}{name}{variant.teacher_suffix}" for name in named)


def _run_config(study: StudyConfig, setting: Setting, method: str, decided: Mapping[str, Any]) -> FinetuneConfig:
    """Return the options of a run, without its caches.

    Args:
        decided: options set by the grid besides the setting: shots, seed and folders.
    """
    variant = study.variant(method)
    # The last layer that sets an option wins: options of a variant must survive every general override.
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
    """Return the caches that a run reads, in order, and how to extract each."""
    # Only as much of the split as this run sees, whatever other runs see: moments are computed over the cache.
    seen = None if config.pool is None or config.shots is None else max(config.pool, config.shots)
    extractions: dict[Path, ExtractConfig] = {}
    for split, teacher in itertools.product(distilled_splits(config), teachers):
        num_seen = seen if split == (config.dataset, config.split) else None
        subset = {} if num_seen is None else {"shots": num_seen, "seed": [config.seed]}
        if subset and "seed" in study.extraction:
            raise ConfigError(
                "'seed' is set by the grid and cannot be overridden here.", where=f"{study.source} [extraction]"
            )
        usual = default_output(teacher, *split, part=part_name(num_seen, [config.seed]))
        path = caches / usual.relative_to(usual.parts[0])
        decided = {"teacher": teacher, "dataset": split[0], "split": split[1], "output": path}
        extractions[path] = extraction_config(study, decided | {"data_root": config.data_root} | subset)
    return extractions


def extraction_config(study: StudyConfig, decided: Mapping[str, Any]) -> ExtractConfig:
    """Return how a study extracts a cache of one of its teachers; picture teachers get no options of texts."""
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
    """Return everything that changes the numbers of a run, as plain JSON types; its id is BLAKE2b over them.

    Args:
        config: configuration of the run; `teachers` and `extraction` represent its caches.
        extraction: options of the extraction that differ from their defaults.
        digests: content digests of the pretrained student, of its other files and of caches of regions; without a
            digest, the path is used.

    Raises:
        ConfigError: options or recipe contradict each other.
    """
    described = options_without(FinetuneConfig, run_identity(config_to_dict(config)), "content")
    # The path of the user's own data does not matter; the digest covers the content. No study trains on a list.
    described |= {"dataset": None if is_location(config.dataset) else config.dataset, "ids": None}
    described["schema"] = SCHEMA
    num_labelled = config.shots or _ANY_NUMBER_OF_EXAMPLES
    method = resolve_method(config)
    described["recipe"] = {
        PUBLISHED_FOR.get(kind, kind): recipe_identity(
            resolve_run(config, method, kind=kind, num_labelled=num_labelled).chosen
        )
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
    """Return (dataset, split) of all inputs that a run's teachers encode."""
    others = other_splits(config.adapt.adapt_on) if takes_two_stages(config) else []
    return [(config.dataset, config.split), *others]


def default_folder(study: StudyConfig) -> Path:
    return Path("runs") / _STUDIES_FOLDER / study.name


def runs_folder(folder: Path) -> Path:
    """Return the folder of the runs of a study: `cells`, next to the study or to its folder `studies`."""
    parent = folder.parent
    return (parent.parent if parent.name == _STUDIES_FOLDER else parent) / _RUNS_FOLDER


def studies_of(run: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the studies next to a run's folder that list the run, by name, and whether each keeps its student."""
    outer = run.absolute().parent.parent
    for file in sorted([*outer.glob(f"{_STUDIES_FOLDER}/*/{STUDY_FILE}"), *outer.glob(f"*/{STUDY_FILE}")]):
        with suppress(OSError, NotAllowed, ValueError, TypeError, KeyError, AttributeError):
            # The commands of that study report a damaged record.
            record = _under_present_names(json.loads(read_regular(file)))
            stored = record["runs"]
            if run.name in (stored if isinstance(stored, dict) else [each["run_id"] for each in stored]):
                yield file.parent, record["study"].get("keep_weights", True)


def _under_present_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a study with its runs: earlier versions called them cells, and the first stored titles."""
    cells = record.pop("cells", ())
    runs = [{"run_id": cell.pop("cell_id")} | cell for cell in cells] if isinstance(cells, list) else cells
    return {"runs": runs} | record


def write_plan(folder: Path, plan: Plan) -> None:
    """Write study.json, the only record of the content of a study folder."""
    recorded = ("study", "dataset_digests", "input_digests", "command", "runs")
    write_text(folder / STUDY_FILE, json_text({name: getattr(plan, name) for name in recorded}) + "\n")


def read_study_folder(folder: Path) -> Plan:
    """Return the plan of a study folder, without its caches; run paths follow the current location of the folder.

    Raises:
        ConfigError: the folder contains no study, or its record is damaged or of an earlier version.
    """
    path = folder / STUDY_FILE
    if not path.exists():
        raise ConfigError(
            "This folder holds no study.",
            where=str(folder),
            why=f"it has no {STUDY_FILE}",
            next_command=advise(["advl", "study", "NAME", "--output", "FOLDER"]),
        )
    document = read_json(path)
    try:
        document = _under_present_names(document)
        for setting in document["study"]["settings"]:
            setting.pop("metrics", None)  # Written by an earlier version; the tasks determine them.
        for run in document["runs"]:
            run.pop("is_control", None)  # Written by an earlier version, for weights by labels.
        plan = build_config(Plan, document, where=str(path))
    except (ConfigError, TypeError, KeyError, AttributeError) as error:
        words = shlex.split(str(document.get("command", ""))) or ["advl", "study", "NAME", "--output", str(folder)]
        raise ConfigError(
            "The record of the study is damaged, or of an earlier version.",
            where=str(path),
            why=str(error).partition("\n")[0],
            next_command=advise(words, note="it runs nothing that is finished"),
        ) from error
    place = runs_folder(folder)
    moved = (replace(each, finetune=replace(each.finetune, output=place / each.run_id)) for each in plan.runs)
    return replace(plan, runs=tuple(moved))


def missing_inits(study: StudyConfig) -> dict[Path, str]:
    """Return the missing pretrained students: path -> name of the student."""
    inits = {setting.init: setting.student for setting in study.settings if setting.init is not None}
    return {path: student for path, student in inits.items() if not is_on_hub(path) and not weight_files(path)}


def input_digests(draft: Plan) -> dict[str, str]:
    """Digest the inputs of runs other than their dataset, so that different content makes different runs.

    These are pretrained students, student files named by options, and caches of regions.

    Args:
        draft: the plan, laid out without digests.

    Raises:
        ConfigError: a pretrained student does not exist, or a path is not a cache of regions; the message gives the
            command that makes it. CorruptCache: a cache is damaged.
    """
    for path, student in missing_inits(draft.study).items():
        raise ConfigError(
            "The pretrained student does not exist: there is no *.safetensors file and no checkpoint.",
            where=str(path),
            next_command=making_command(student, path)
            or advise(
                ["advl", "students", "show", student],
                note="names the published weights: put them there, or give --init hf:ORG/MODEL",
            ),
        )
    digests: dict[str, str] = {}
    for config in (planned.finetune for planned in draft.runs):
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
    """Digest every split that a plan trains on, so that a rebuilt dataset makes new runs.

    Args:
        draft: the plan, laid out without digests.
        folder: the study folder. Its stored digests are used if the datasets are not available, so that a finished
            study can be viewed anywhere.

    Returns:
        "dataset/split" -> digest.

    Raises:
        DatasetError: a dataset is missing or malformed, and the folder has no digest of it.
    """
    splits = {trained_on(planned.finetune): planned.finetune for planned in draft.runs}
    try:
        return {name: digest(config) for name, config in splits.items()}
    except DatasetError:
        file = folder / STUDY_FILE
        recorded = read_json(file).get("dataset_digests", {}) if file.exists() else {}
        if splits.keys() - recorded.keys():
            raise
        return {name: recorded[name] for name in splits}


def digest_dataset(config: FinetuneConfig) -> str:
    """Return the content digest of the split that a run trains on, without the rows that the run leaves out."""
    from advl_pipeline.datasets.registry import open_splits, read_dataset

    dataset = read_dataset(config.dataset, config.data_root)
    opened = open_splits(dataset, config.split, data_root=config.data_root, on_error=config.on_error)
    return opened.content_digest()
