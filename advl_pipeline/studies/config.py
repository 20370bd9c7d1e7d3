"""The definition of a study, and the parser of its file.

A file has plain keys (the grid, and the defaults of its settings) and tables. `[training]` and `[at-shots.100]`
override fields of `FinetuneConfig`. `[variants.NAME]` defines a variant. `[extraction]` and `[evaluation]` override
`ExtractConfig` and `EvaluateConfig`, where `weights = { TEACHER = "PATH" }` gives the location of the weights of each
teacher. `[[settings]]` lists several datasets, students or teacher sets in one study. `extends = "NAME"` starts from
a shipped study and replaces complete keys of it.

A variant is one of the controls and ablations of docs/method.md: a base method with other options. All variants of a
study share subset, seeds, optimiser steps and evaluation, and differ only in the options of their entries. The
shipped ones are in `variants.toml`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from advl_pipeline.base.compute import AUTO, ComputeConfig, num_cores
from advl_pipeline.base.configuration import (
    Configuration,
    Output,
    aliases,
    build_config,
    by_field,
    config_to_dict,
    declared,
    option,
)
from advl_pipeline.base.errors import ConfigError, advise, suggest_names, unknown_name
from advl_pipeline.base.locations import Location
from advl_pipeline.base.packages import data_files, missing_data, read_data_file
from advl_pipeline.base.repositories import HUB_PREFIX
from advl_pipeline.base.toml import read_toml
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.datasets.records import JOINT_METRICS, TASKS
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.students.options import default_student
from advl_pipeline.teachers.registry import card_of
from advl_pipeline.training.config import FinetuneConfig

FULL = "full"
"""Notation for "all training items" in files and tables; in the code it is `shots=None`."""

PARTS = frozenset({"vision pathway", "language pathway", "token selection", "confidence weighting", "two steps"})
"""The parts of the method, which claim C5 tests one by one."""

_SET_BY_THE_GRID = frozenset(
    {"dataset", "output", "cache", "data_root", "shots", "ids", "seed", "student", "init", "task"}
)
"""Options of a run that the grid of a study sets, and that no table may set."""

_TEACHERLESS = frozenset({"plain", "plain-two-step"})
"""Base methods that read no cache."""

_NO_TABLE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRunConfig(DataRootOptions, ComputeConfig):
    """Configuration of `advl study`."""

    study: str = option(help="Name of a shipped study, or a study file.")
    output: Path | None = option(
        None, help="Study folder [default: runs/studies/NAME].", output=Output(makes="study")
    )
    caches: Path = option(Path("caches"), help="Folder of the teacher caches.", output=Output(makes="folders"))
    regions: tuple[Location, ...] = option(
        (),
        help="Cache of a detector's regions, as in `advl finetune`; repeatable. The study then trains the student "
        "that it names for them.",
    )
    init: Path | None = option(None, help="Pretrained student, instead of the study's.")
    first_seeds: int | None = option(
        None,
        help="Run only this many seeds of the first number of shots; the same command without this option runs the "
        "others.",
        minimum=1,
    )
    workers: int = option(
        1, help="Number of runs to train in parallel, each in its own process with its share of the cores.", minimum=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A row of a study: a base method and its changes."""

    method: str
    """Base method of `advl finetune`."""
    role: Literal["baseline", "method", "control", "ablation"] = "method"
    """Its role in the report."""
    label: str = ""
    """Name in tables and figures."""
    note: str = ""
    """Purpose of the variant."""
    baseline: str | None = None
    """Variant to compare with, instead of the study's baseline."""
    part: str = ""
    """Part of the method that an ablation leaves out."""
    teachers: tuple[str, ...] | None = None
    """Teachers to use instead of the setting's."""
    teacher_prefix: str = ""
    """Prefix of every teacher's name, such as 'random:'."""
    teacher_suffix: str = ""
    """Suffix of every teacher's name, such as '@1'."""
    training: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    """Fields of `FinetuneConfig` that this variant sets."""

    @property
    def uses_teachers(self) -> bool:
        return self.method not in _TEACHERLESS


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A combination of dataset, student and teachers in which the grid is run."""

    dataset: str
    """Dataset to finetune on: a name, or data of your own."""
    name: str = ""
    """Name in tables [default: the dataset's]."""
    tasks: tuple[str, ...] = ()
    """Tasks to train on."""
    student: str = ""
    """Student to finetune [default: as of `advl finetune`]."""
    init: Path | None = None
    """Pretrained student."""
    teachers: tuple[str, ...] = ()
    """Teachers, by name."""
    test_sets: tuple[str, ...] = ("test",)
    """The in-domain test set first, then shifted ones."""
    training: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics to compare: one per task, and the joint metric of two tasks if both are present."""
        of_tasks = [TASKS[task].metric for task in self.tasks if task in TASKS and TASKS[task].metric]
        return (*of_tasks, *(joint.metric for joint in JOINT_METRICS if set(joint.tasks) <= set(self.tasks)))

    @property
    def reference(self) -> str:
        """The in-domain test set, the reference of shifted ones."""
        return self.test_sets[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig(Configuration):
    """A grid of settings, methods, shots and seeds."""

    name: str
    """Name of the study and of its folder."""
    title: str = ""
    """Heading of the report."""
    question: str = ""
    """Question of the study, in one sentence."""
    methods: tuple[str, ...]
    """Variants to run, by name."""
    shots: tuple[int | None, ...] = option((None,), help="Training questions; 'full' for all.", minimum=1)
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), help="Seeds, the same for every method.", minimum=0)
    baseline: str = "plain"
    """Variant that the others are compared with."""
    focus: str = "advl"
    """Variant that the claims are about."""
    margin: float = option(1.0, help="Smallest gain in points that matters.", minimum=0)
    keep_weights: bool = True
    """Keep the student of every run. Otherwise it is deleted once all test sets are scored, unless another study
    keeps it, and adding a test set later trains it again."""
    min_seeds: int = option(5, help="Fewest seeds for a verdict other than 'undecided'.", minimum=1)
    settings: tuple[Setting, ...]
    """Settings in which the grid is run."""
    variants: Mapping[str, Variant] = field(default_factory=lambda: MappingProxyType({}))
    training: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    at_shots: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    extraction: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    evaluation: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    with_regions: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    """Keys of a setting that apply if regions are given, such as a student that sees regions."""
    source: str = ""
    """File that the study was read from."""

    def variant(self, name: str) -> Variant:
        """Return a variant by name; the study's own take precedence over the shipped ones.

        Raises:
            ConfigError: there is no such variant.
        """
        variant = self.variants.get(name) or SHIPPED.get(name)
        if variant is None:
            raise unknown_name(
                f"Unknown method {name!r}.",
                name,
                {*self.variants, *SHIPPED},
                where=self.source,
                next_command=f"define it in the study file under [variants.{name}]",
            )
        return variant

    def setting(self, name: str) -> Setting:
        """Return a setting by name."""
        return next(setting for setting in self.settings if setting.name == name)

    def baseline_of(self, method: str) -> str:
        """Return the variant that `method` is compared with."""
        return self.variant(method).baseline or self.baseline


def shots_label(shots: int | None) -> str:
    return FULL if shots is None else str(shots)


def shots_rank(label: str) -> tuple[bool, int]:
    """Return the sort key of labels of shots: by size, all training questions last."""
    return label == FULL, 0 if label == FULL else int(label)


def published_name(teacher: str) -> str:
    """Return the name of a teacher without the prefix and suffix of a control: clip-vit-l for random:clip-vit-l@1."""
    inner = teacher.removeprefix("random:")
    return inner if inner == teacher or inner.startswith(HUB_PREFIX) else inner.partition("@")[0]


def _read_variants(tables: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Sort the flat keys of each variant of a file into those of `Variant` and those of `FinetuneConfig`.

    Raises:
        ConfigError: a key belongs to neither.
    """
    fields = {item.name for item in dataclasses.fields(Variant)} - {"training"}
    known = fields | (declared(FinetuneConfig).keys() - _SET_BY_THE_GRID)
    variants: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        place = f"{where}{name}]"
        variant: dict[str, Any] = {"training": {}, "label": name}
        variants[name] = variant
        for key, value in _by_name(_table(table, name, place), place, FinetuneConfig).items():
            if key not in known:
                raise ConfigError(f"Unknown key {key!r}.", where=place, why=suggest_names(key, known))
            (variant if key in fields else variant["training"])[key] = value
    return variants


def _by_name(table: Mapping[str, Any], where: str, options: type[Any] | None = None) -> dict[str, Any]:
    """Return a table by the names of options, for keys with dashes and aliases.

    Raises:
        ConfigError: two keys are the same option.
    """
    renamed = {} if options is None else aliases(options)
    keys: dict[str, str] = {}
    for key in table:
        name = key.replace("-", "_")
        if (other := keys.setdefault(renamed.get(name, name), key)) != key:
            raise ConfigError(
                "An option is set twice.", where=where, why=f"{other} and {key} are one option: give one"
            )
    return {name: table[key] for name, key in keys.items()}


def _table(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a table.", where=where, why=f"got {value!r}")
    return value


def _shipped_variants() -> Mapping[str, Variant]:
    path = Path(str(resources.files("advl_pipeline.studies").joinpath("variants.toml")))
    tables = _read_variants(read_toml(path), f"{path} [")
    return MappingProxyType({name: build_config(Variant, table) for name, table in tables.items()})


SHIPPED = _shipped_variants()


def shipped_studies() -> dict[str, Path]:
    """Return the studies of the package and of plug-ins: name -> file."""
    return data_files("studies")


def load_study(name_or_file: str) -> StudyConfig:
    """Read a shipped study by name, or a study file.

    Raises:
        ConfigError: no such study, or an invalid key, name or value in it; the message names file and key.
    """
    shipped, path = shipped_studies(), Path(name_or_file)
    if name_or_file not in shipped and path.suffix != ".toml" and not path.exists():
        raise unknown_name(
            f"No study {name_or_file!r}.",
            name_or_file,
            shipped,
            note=missing_data(),
            next_command=advise(["advl", "study", "--list"]),
        )
    if name_or_file in shipped:
        read_data_file(shipped[name_or_file])
    return read_study(shipped.get(name_or_file, path))


def read_study(path: Path) -> StudyConfig:
    """Read a study file; raise `ConfigError` naming the file and the invalid key."""
    raw, source = read_toml(path), path
    while "extends" in raw:
        shipped, base = shipped_studies(), str(raw.pop("extends"))
        if base not in shipped:
            raise unknown_name(f"extends names no shipped study: {base!r}.", base, shipped, where=str(source))
        source = shipped[base]
        inherited = read_toml(source)
        if "shots" in raw:
            # A study that extends another inherits no tables for shots that it does not run.
            run = set(map(str, raw["shots"] if isinstance(raw["shots"], list) else [raw["shots"]]))
            for key in inherited.keys() & {"at-shots", "at_shots"}:
                inherited[key] = {label: table for label, table in inherited[key].items() if label in run}
        raw = {**inherited, **raw}
    return parse_study(raw, where=str(path))


def parse_study(raw: Mapping[str, Any], *, where: str) -> StudyConfig:
    """Build a study from the plain types of its file.

    Raises:
        ConfigError: as `load_study`.
    """
    values = _by_name(raw, where)
    setting_keys = {item.name for item in dataclasses.fields(Setting)} - {"name", "training"}
    known = setting_keys | {item.name for item in dataclasses.fields(StudyConfig)} - {"source"}
    if unknown := next((key for key in values if key not in known), None):
        raise unknown_name(f"Unknown key {unknown!r} in a study.", unknown, known, where=where)
    defaults = {key: values.pop(key) for key in setting_keys & set(values)}
    blocks = values.pop("settings", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise ConfigError("settings must be tables.", where=where, next_command="write each as [[settings]]")
    if "shots" in values:
        shots = values["shots"] if isinstance(values["shots"], list) else [values["shots"]]
        values["shots"] = [None if item == FULL else item for item in shots]
    variants = _table(values.get("variants", {}), "variants", where)
    values["variants"] = _read_variants(variants, f"{where} [variants.")
    values["settings"] = [{**defaults, **_by_name(block, f"{where} [[settings]]")} for block in blocks]
    study = build_config(StudyConfig, values, {"source": where}, where=where)
    study = dataclasses.replace(
        study,
        settings=tuple(_complete(setting, where) for setting in study.settings),
        training=_by_name(study.training, f"{where} [training]", FinetuneConfig),
        extraction=_by_name(study.extraction, f"{where} [extraction]", ExtractConfig),
        evaluation=_by_name(study.evaluation, f"{where} [evaluation]"),
    )
    _check(study, where)
    return study


def _complete(setting: Setting, where: str) -> Setting:
    if not setting.metrics:
        scored = [task for task, facts in TASKS.items() if facts.metric]
        raise ConfigError(
            f"The setting on {setting.dataset} has no task of {', '.join(scored)}.",
            where=where,
        )
    if not setting.test_sets:
        raise ConfigError(f"The setting on {setting.dataset} names no test set.", where=where)
    return dataclasses.replace(
        setting,
        name=setting.name or dataset_label(setting.dataset),
        student=setting.student or default_student(setting.dataset),
    )


def _check(study: StudyConfig, where: str) -> None:
    """Refuse an invalid grid, and options in a table that the command would refuse or that the grid sets."""
    names = [setting.name for setting in study.settings]
    grid = {"methods": study.methods, "shots": study.shots, "seeds": study.seeds, "names": names}
    for label, values in grid.items():
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{label} must hold at least one value, each once.", where=where, why=f"got {values}")
    tables: list[tuple[str, Mapping[str, Any]]] = [("training", study.training)]
    tables += [("settings.training", setting.training) for setting in study.settings]
    for shots, table in study.at_shots.items():
        if shots not in map(shots_label, study.shots):
            raise ConfigError(
                f"[at-shots.{shots}] has no effect: the study has no runs of {shots} shots.", where=where
            )
        tables.append((f"at-shots.{shots}", table))
    for method in study.methods:
        variant, baseline = study.variant(method), study.baseline_of(method)
        tables.append((f"variants.{method}", {"method": variant.method} | dict(variant.training)))
        if baseline not in study.methods:
            raise unknown_name(
                f"{method} is compared with {baseline!r}, which the study does not run.",
                baseline,
                study.methods,
                where=where,
            )
    for name, table in tables:
        _try(FinetuneConfig, {"dataset": "any", "output": "any"}, table, _SET_BY_THE_GRID, f"{where} [{name}]")
    _try(Setting, {"dataset": "any"}, study.with_regions, frozenset(), f"{where} [with-regions]")
    decided = frozenset({"run", "on", "data_root"})
    _try(EvaluateConfig, {"run": "any"}, study.evaluation, decided, f"{where} [evaluation]")
    place, options = f"{where} [extraction]", dict(study.extraction)
    weights = options.pop("weights", {})
    decided = frozenset({"teacher", "dataset", "split", "shots", "ids", "output", "data_root"})
    _try(ExtractConfig, {"teacher": "any", "dataset": "any"}, options, decided, place)
    teachers = {name for setting in study.settings for name in setting.teachers}
    teachers |= {name for method in study.methods for name in study.variant(method).teachers or ()}
    cards = [card_of(published_name(name)) for name in teachers]
    reads_texts = any(card is None or "text" in card.modalities for card in cards)
    if options.get("select_texts") is not None and not reads_texts:
        raise ConfigError("select_texts has no effect: no teacher of the study reads texts.", where=place)
    for name, path in _table(weights, "weights", place).items():
        if name not in teachers:
            raise unknown_name(f"weights names no teacher of the study: {name!r}.", name, teachers, where=place)
        _try(ExtractConfig, {"teacher": name, "dataset": "any"}, {"weights": path}, frozenset(), place)


def _try(
    kind: type[Any], required: Mapping[str, Any], table: Mapping[str, Any], decided: frozenset[str], where: str
) -> None:
    """Refuse a table that is not a valid configuration, or that contains options set by the grid."""
    keys = by_field(kind, table, where=where)
    if refused := next((key for name, (key, _) in keys.items() if name in decided), None):
        raise ConfigError(f"{refused!r} is set by the grid and cannot be overridden here.", where=where)
    build_config(kind, required, table, where=where)


def asked_study(config: StudyRunConfig) -> StudyConfig:
    """Return the study of a command, with the regions, device and precision that it requests.

    Raises:
        ConfigError: as in `load_study`, or regions were given for a study without a student for them.
    """
    study = load_study(config.study)
    if config.regions and not study.with_regions:
        raise ConfigError(
            "This study has no student that takes regions of a detector.",
            where=study.source,
            next_command='add [with-regions] with student = "uniter-base" to the study file, or leave out --regions',
        )
    settings = []
    for setting in study.settings:
        if config.regions:
            where = f"{study.source} [with-regions]"
            changed = build_config(Setting, config_to_dict(setting), study.with_regions, where=where)
            training = {**changed.training, "regions": list(map(str, config.regions))}
            setting = dataclasses.replace(changed, training=training)
        settings.append(dataclasses.replace(setting, init=config.init or setting.init))
    overrides = {key: value for key in ("device", "mixed_precision") if (value := getattr(config, key)) != AUTO}
    if config.num_workers or config.workers > 1:
        overrides["num_workers"] = config.num_workers or max(1, num_cores() // config.workers)
    return dataclasses.replace(
        study,
        settings=tuple(settings),
        training={**study.training, **overrides},
        extraction={**study.extraction, **overrides},
        evaluation={**study.evaluation, **overrides},
    )


def student_choice(study: StudyConfig, regions: Sequence[Location]) -> str:
    """Return one line on the student that a study trains, and the reason, if it depends on regions; else ""."""
    if not study.with_regions:
        return ""
    student = f"student: {study.settings[0].student} from {study.settings[0].init}"
    if regions:
        return f"{student}, on the regions in {', '.join(map(str, regions))}"
    return (
        f"{student}, which sees pixels, since no regions of a detector are given; --regions CACHE --init CHECKPOINT "
        f"takes {study.with_regions.get('student', study.settings[0].student)}"
    )
