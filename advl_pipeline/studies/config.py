"""What a study is, and how its file is read.

A file has plain keys (the grid, and the defaults of its settings), and tables: `[training]` and
`[at-shots.100]` override fields of `FinetuneConfig`, `[variants.NAME]` defines a variant, `[extraction]` and
`[evaluation]` override `ExtractConfig` and `EvaluateConfig`, where `weights = { TEACHER = "PATH" }` says where the
weights of each teacher lie, `[[settings]]` lists several datasets, students or teacher sets in one study.
`extends = "NAME"` starts from a shipped study and replaces whole keys of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from advl_pipeline.compute import AUTO, ComputeConfig, num_cores
from advl_pipeline.configuration import Configuration, Output, build_config, config_to_dict, option, read_toml
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.errors import (
    ConfigError,
    advise,
    suggest_names,
)
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import JOINT_METRICS, METRIC_OF_TASK
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.locations import Location
from advl_pipeline.packages import data_files
from advl_pipeline.students.options import DEFAULT_STUDENT
from advl_pipeline.studies.variants import SET_BY_THE_STUDY, Variant, find_variant, variant_table
from advl_pipeline.training.config import FinetuneConfig

_OF_EVALUATION = frozenset({"run", "on", "data_root"})
"""Options of an evaluation that a study's grid decides."""

FULL = "full"
"""How files and tables write "all training items", which is `shots=None` in the code."""

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
        help="Cache of a detector's regions, as `advl finetune` takes it; repeatable. The study then trains the "
        "student that it names for them.",
    )
    init: Path | None = option(None, help="Pretrained student in place of the study's.")
    keep_going: bool = option(False, help="Go on with the other cells when one fails.")
    first_seeds: int | None = option(
        None,
        help="Run so many seeds of the first number of shots only; the same command without it runs the others.",
        minimum=1,
    )
    workers: int = option(
        1, help="Cells run side by side, each in a process of its own with its share of the cores.", minimum=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One combination of dataset, student and teachers that the grid is run in."""

    dataset: str = option(help="Dataset to finetune on: a name, or data of your own.")
    name: str = option("", help="Name in tables [default: the dataset's].")
    tasks: tuple[str, ...] = option((), help="Tasks to train on.")
    metrics: tuple[str, ...] = option((), help="Metrics that are compared [default: those of the tasks].")
    student: str = option(DEFAULT_STUDENT, help="Student to finetune.")
    init: Path | None = option(None, help="Pretrained student.")
    teachers: tuple[str, ...] = option((), help="Teachers, by name.")
    test_sets: tuple[str, ...] = option(("test",), help="The in-domain test set first, then shifted ones.")
    training: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)

    @property
    def reference(self) -> str:
        """The in-domain test set, with which shifted ones are compared."""
        return self.test_sets[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig(Configuration):
    """A grid of settings, methods, shots and seeds."""

    name: str = option(help="Name of the study and of its folder.")
    title: str = option("", help="Heading of the report.")
    question: str = option("", help="What the study asks, in one sentence.")
    methods: tuple[str, ...] = option(help="Variants to run, by name.")
    shots: tuple[int | None, ...] = option((None,), help="Training questions; 'full' for all.", minimum=1)
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), help="Seeds, the same for every method.", minimum=0)
    baseline: str = option("plain", help="Variant that the others are compared with.")
    focus: str = option("advl", help="Variant that the claims are about.")
    margin: float = option(1.0, help="Smallest gain in points that would matter.", minimum=0)
    keep_weights: bool = option(
        True,
        help="Keep the student of every cell. Without, it goes once all test sets are scored, unless another study "
        "keeps it; a test set that is added later trains the cell again.",
    )
    min_seeds: int = option(5, help="Fewest seeds that a verdict other than 'undecided' may rest on.", minimum=1)
    settings: tuple[Setting, ...] = option(help="Where the grid is run.")
    variants: Mapping[str, Variant] = field(default_factory=lambda: MappingProxyType({}))
    training: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    at_shots: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    extraction: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    evaluation: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    with_regions: Mapping[str, Any] = field(default_factory=lambda: _NO_TABLE)
    """Keys of a setting that take effect where regions are given, such as a student that sees regions."""
    source: str = option("", help="File that the study was read from.")

    def variant(self, name: str) -> Variant:
        """Return a variant by name. Raises `ConfigError` when there is none."""
        return find_variant(name, self.variants, where=self.source)

    def setting(self, name: str) -> Setting:
        """Return one of the settings by its name."""
        return next(setting for setting in self.settings if setting.name == name)

    def baseline_of(self, method: str) -> str:
        """Return the variant that `method` is compared with."""
        return self.variant(method).baseline or self.baseline


def shots_label(shots: int | None) -> str:
    return FULL if shots is None else str(shots)


def shipped_studies() -> dict[str, Path]:
    """Return the studies that come with the package and with plug-ins: name -> file."""
    return data_files("studies")


def load_study(name_or_file: str) -> StudyConfig:
    """Read a study by the name of a shipped one, or from a file.

    Raises:
        ConfigError: no such study, or a key, name or value in it that cannot be used; file and key are named.
    """
    shipped = shipped_studies()
    if name_or_file in shipped:
        return read_study(shipped[name_or_file])
    path = Path(name_or_file)
    if path.suffix != ".toml" and not path.exists():
        raise ConfigError(
            f"No study {name_or_file!r}.",
            why=suggest_names(name_or_file, shipped),
            next_command=advise(["advl", "study", "--list"]),
        )
    return read_study(path)


def asked_study(config: StudyRunConfig) -> StudyConfig:
    """Return the study of a command, with the regions, the device and the precision that it asks for.

    Raises:
        ConfigError: as `load_study`, or regions for a study that has no student for them.
    """
    study = load_study(config.study)
    settings = tuple(_asked_setting(study, setting, config) for setting in study.settings)
    study = dataclasses.replace(study, settings=settings)
    given = {key: value for key in ("device", "mixed_precision") if (value := getattr(config, key)) != AUTO}
    if config.num_workers or config.workers > 1:
        given["num_workers"] = config.num_workers or max(1, num_cores() // config.workers)
    return dataclasses.replace(
        study,
        training={**study.training, **given},
        extraction={**study.extraction, **given},
        evaluation={**study.evaluation, **given},
    )


def _asked_setting(study: StudyConfig, setting: Setting, config: StudyRunConfig) -> Setting:
    if not config.regions:
        return setting if config.init is None else dataclasses.replace(setting, init=config.init)
    if not study.with_regions:
        raise ConfigError(
            "This study has no student that takes regions of a detector.",
            where=study.source,
            next_command='add [with-regions] with student = "uniter-base" to the study file, or leave out --regions',
        )
    changed = build_config(
        Setting, config_to_dict(setting), study.with_regions, where=f"{study.source} [with-regions]"
    )
    return dataclasses.replace(
        changed,
        metrics=setting.metrics,
        init=config.init or changed.init,
        training={**changed.training, "regions": list(map(str, config.regions))},
    )


def student_choice(config: StudyRunConfig) -> str:
    """Return one line on which student a study trains, and why, where that depends on regions; else ""."""
    study = load_study(config.study)
    if not study.with_regions:
        return ""
    asked = asked_study(config).settings[0]
    other = study.with_regions.get("student", asked.student)
    if config.regions:
        return f"student: {asked.student} from {asked.init}, on the regions in {', '.join(map(str, config.regions))}"
    return (
        f"student: {asked.student} from {asked.init}, which sees pixels, since no regions of a detector are given; "
        f"--regions CACHE --init CHECKPOINT takes {other}"
    )


def read_study(path: Path) -> StudyConfig:
    """Read a study file. Raises `ConfigError` naming the file and the key at fault."""
    return parse_study(_extended(path), where=str(path))


def _extended(path: Path) -> dict[str, Any]:
    raw = read_toml(path)
    if "extends" not in raw:
        return raw
    shipped, base = shipped_studies(), str(raw.pop("extends"))
    if base not in shipped:
        raise ConfigError(
            f"extends names no shipped study: {base!r}.", where=str(path), why=suggest_names(base, shipped)
        )
    return {**_extended(shipped[base]), **raw}


def parse_study(raw: Mapping[str, Any], *, where: str) -> StudyConfig:
    """Build a study from the plain types of its file.

    Raises:
        ConfigError: as `load_study`.
    """
    values = {key.replace("-", "_"): value for key, value in raw.items()}
    setting_keys = {item.name for item in dataclasses.fields(Setting)} - {"name", "training"}
    study_keys = {item.name for item in dataclasses.fields(StudyConfig)} - {"source"}
    for key in values:
        if key not in setting_keys | study_keys:
            raise ConfigError(
                f"Unknown key {key!r} in a study.", where=where, why=suggest_names(key, setting_keys | study_keys)
            )
    defaults = {key: values.pop(key) for key in setting_keys & set(values)}
    blocks = values.pop("settings", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise ConfigError("settings must be tables.", where=where, next_command="write each as [[settings]]")
    if "shots" in values:
        values["shots"] = [_shots(item, where) for item in _as_list(values["shots"])]
    values["variants"] = {
        name: variant_table(name, _table(table, name, where), where=f"{where} [variants.{name}]")
        for name, table in _table(values.get("variants", {}), "variants", where).items()
    }
    values["settings"] = [{**defaults, **block} for block in blocks]
    study = build_config(StudyConfig, values, {"source": where}, where=where)
    named = tuple(_complete(setting, where) for setting in study.settings)
    study = dataclasses.replace(study, settings=named)
    _check(study, where)
    return study


def _complete(setting: Setting, where: str) -> Setting:
    measured = with_joint(tuple(METRIC_OF_TASK[task] for task in setting.tasks if task in METRIC_OF_TASK))
    metrics = with_joint(setting.metrics or measured)
    if not metrics:
        raise ConfigError(
            f"The setting on {setting.dataset} names no task.",
            where=where,
            why=f"tasks is empty or unknown; known: {', '.join(METRIC_OF_TASK)}",
        )
    if not setting.test_sets:
        raise ConfigError(f"The setting on {setting.dataset} names no test set.", where=where)
    for metric in setting.metrics:
        # Without a list of tasks a run learns all that its data have.
        if setting.tasks and metric not in measured:
            raise ConfigError(
                f"{metric!r} is no metric of the tasks {', '.join(setting.tasks)}.",
                where=where,
                why=suggest_names(metric, measured),
            )
    return dataclasses.replace(setting, name=setting.name or dataset_label(setting.dataset), metrics=metrics)


def with_joint(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Return the metrics, and that of two tasks both being right where both are there."""
    joint = (joint for both, joint in JOINT_METRICS.items() if set(both) <= set(metrics))
    return tuple(dict.fromkeys((*metrics, *joint)))


def _check(study: StudyConfig, where: str) -> None:
    for label, values in (("methods", study.methods), ("shots", study.shots), ("seeds", study.seeds)):
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{label} must hold at least one value, each once.", where=where, why=f"got {values}")
    names = [setting.name for setting in study.settings]
    if len(set(names)) != len(names):
        raise ConfigError("Two settings have the same name.", where=where, why=", ".join(names))
    for method in study.methods:
        variant = study.variant(method)
        _check_training(variant.training, where=f"{where} [variants.{method}]", also={"method": variant.method})
        if study.baseline_of(method) not in study.methods:
            raise ConfigError(
                f"{method} is compared with {study.baseline_of(method)!r}, which the study does not run.",
                where=where,
                why=suggest_names(study.baseline_of(method), study.methods),
            )
    _check_training(study.training, where=f"{where} [training]")
    for shots, table in study.at_shots.items():
        if shots not in map(shots_label, study.shots):
            raise ConfigError(f"[at-shots.{shots}] is about shots that the study does not run.", where=where)
        _check_training(table, where=f"{where} [at-shots.{shots}]")
    build_config(Setting, {"dataset": "any"}, study.with_regions, where=f"{where} [with-regions]")
    _refuse_keys(study.evaluation, _OF_EVALUATION, where=f"{where} [evaluation]")
    build_config(EvaluateConfig, {"run": "any"}, study.evaluation, where=f"{where} [evaluation]")
    _check_extraction(study, where=f"{where} [extraction]")
    for setting in study.settings:
        _check_training(setting.training, where=f"{where} [settings.training]")


def _check_extraction(study: StudyConfig, *, where: str) -> None:
    options = dict(study.extraction)
    weights = options.pop("weights", None)
    build_config(ExtractConfig, {"teacher": "any", "dataset": "any"}, options, where=where)
    if weights is None:
        return
    of_methods = [study.variant(method).teachers or () for method in study.methods]
    teachers = {*itertools.chain(*(setting.teachers for setting in study.settings), *of_methods)}
    if not isinstance(weights, Mapping):
        if len(teachers) > 1:
            places = ", ".join(f'"{name}" = "PATH"' for name in sorted(teachers))
            raise ConfigError(
                "One place of weights cannot serve several teachers.",
                where=where,
                why=f"the study has {', '.join(sorted(teachers))}",
                next_command=f"write weights = {{ {places} }}",
            )
        weights = dict.fromkeys(teachers, weights)
    for name, place in weights.items():
        if name not in teachers:
            raise ConfigError(
                f"weights names no teacher of the study: {name!r}.", where=where, why=suggest_names(name, teachers)
            )
        build_config(ExtractConfig, {"teacher": name, "dataset": "any", "weights": place}, where=where)


def published_name(teacher: str) -> str:
    """Return the name of a teacher without what a control puts around it: clip-vit-l for random:clip-vit-l@1."""
    inner = teacher.removeprefix("random:")
    return inner if inner == teacher or inner.startswith("hf:") else inner.partition("@")[0]


def _check_training(table: Mapping[str, Any], *, where: str, also: Mapping[str, Any] = _NO_TABLE) -> None:
    _refuse_keys(table, SET_BY_THE_STUDY, where=where)
    build_config(FinetuneConfig, {"dataset": "any", "output": "any"}, also, table, where=where)


def _refuse_keys(table: Mapping[str, Any], keys: Collection[str], *, where: str) -> None:
    for key in table:
        if key.replace("-", "_") in keys:
            raise ConfigError(f"{key!r} is set by the grid and cannot be overridden here.", where=where)


def _table(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a table.", where=where, why=f"got {value!r}")
    return value


def _shots(value: Any, where: str) -> int | None:
    if value == FULL or value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError("shots are positive integers or 'full'.", where=where, why=f"got {value!r}")
    return value


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
