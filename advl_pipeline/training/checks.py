"""Checks before torch loads: invalid names, folders, files, caches and options of a run.

An option without effect is refused if a user gives it, and left out of a printed command. A study passes its options
to all its methods, so a plain run in a study may have options that only other methods use.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from advl_pipeline.base.configuration import command_words, config_to_dict, require_effect, unused_options
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, advise
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location, parse_location
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.toml import read_toml
from advl_pipeline.cache.identity import difference_table, differences, extract_command
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.store import IDENTITY_FILE
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.config import facts_of_data
from advl_pipeline.datasets.records import Dataset, Example, head_name
from advl_pipeline.datasets.registry import find_dataset, require_names
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.runs import names
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.students.options import PIXELS
from advl_pipeline.students.registry import require_student
from advl_pipeline.students.weight_files import is_on_hub, required_weights
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.training.config import FinetuneConfig, TeacherOptions
from advl_pipeline.training.identity import run_record
from advl_pipeline.training.inputs import Inputs, cache_of_split, dataset_identity, open_run_inputs, other_splits
from advl_pipeline.training.recipes import AUTO, NONE
from advl_pipeline.training.resolved import Run, resolve_method, resolve_run
from advl_pipeline.training.validation import Validation, may_stop, open_validation


def check_run(config: FinetuneConfig, *, is_control: bool = False) -> None:
    """Refuse an invalid run, as far as that is possible without a model, in well under a second.

    Args:
        is_control: the run is a control of a study.

    Raises:
        ConfigError: options contradict each other, a name does not exist, the output has other content, a cache is
            missing, or weights use labels outside of a control. DatasetError, CorruptCache, WeightsUnavailable: as
            their names say.
    """
    if config.distill.reads_labels and not is_control:
        instead = "put advl-oracle among the methods of a study, or give --weighting ratio"
        what = "Weights by labels are a control of studies, not a method."
        raise ConfigError(what, where="--weighting oracle", next_command=instead)
    resolve_method(config)
    trackers_named(config.log_with)
    require_student(config.student)
    require_outputs(config)
    if config.init is not None and not is_on_hub(config.init):
        required_weights(config.init)
    if config.optimisation.recipe not in (AUTO, NONE):
        read_toml(Path(config.optimisation.recipe))
    require_names(config.dataset, split=config.split, tasks=config.task, data_root=config.data_root)
    at_hand = _at_hand(config)
    open_caches(at_hand)
    open_region_caches(at_hand.regions, splits_read(config), data_root=config.data_root)


def require_data(config: FinetuneConfig) -> None:
    """Refuse invalid data, caches or run folders, before torch loads.

    Object stores and the hub are checked later.

    Raises:
        ConfigError, DatasetError: as for `open_run_inputs`. IdentityMismatch: a cache belongs to another dataset, or
            the folder to another run.
    """
    folder = RunFolder(config.output)
    config = folder.resumed_config(config) if config.resume else config
    parts = open_parts(config, is_early=True)
    run, inputs = parts.run, parts.inputs
    at_hand = _at_hand(config)
    if at_hand.cache != config.cache:
        return
    if run.method.uses_teachers:
        check_teachers(parts.caches, inputs, config, run.method.settings)
    is_elsewhere = at_hand.regions != config.regions or (config.init is not None and is_on_hub(config.init))
    if config.resume and folder.identity.is_file() and not is_elsewhere:
        folder.require_same_run(run_record(run, inputs, parts.caches, parts.region_caches, parts.validation))


def _at_hand(config: FinetuneConfig) -> FinetuneConfig:
    """Return the configuration without caches in object stores."""
    cache, regions = (
        tuple(location for location in locations if isinstance(location, Path))
        for locations in (config.cache, config.regions)
    )
    return dataclasses.replace(config, cache=cache, regions=regions)


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """A resolved run with its inputs, the caches of its teachers and of its regions, and the examples that it is
    scored on during training, or the reason that there are none."""

    run: Run
    inputs: Inputs
    caches: Sequence[TeacherCache]
    region_caches: Sequence[TeacherCache]
    validation: Validation | str


def open_parts(
    config: FinetuneConfig, *, world_size: int = 1, is_early: bool = False, scores_val: bool = True
) -> RunParts:
    """Open the data and the caches of a run, and resolve it.

    Args:
        is_early: leave out object stores.
        scores_val: whether the run is scored during training.

    Raises:
        As `open_caches`, `open_region_caches`, `open_run_inputs` and `resolve_run`.
    """
    opened = _at_hand(config) if is_early else config
    caches = open_caches(opened)
    region_caches = open_region_caches(opened.regions, splits_read(config), data_root=config.data_root)
    # A cache of a part of the split limits the inputs of every method, so that methods are comparable.
    inputs = open_run_inputs(config, caches)
    validation: Validation | str = "the run is scored once it is trained"
    if scores_val:
        inputs, validation = open_validation(config, inputs)
    run = resolve_run(
        config,
        kind=head_name(inputs.dataset.tasks[0]),
        num_labelled=len(inputs.labelled),
        world_size=world_size,
        stops_early=isinstance(validation, Validation) and validation.decides,
    )
    return RunParts(
        run=run,
        inputs=inputs,
        caches=caches if run.method.uses_teachers else [],
        region_caches=region_caches,
        validation=validation,
    )


def check_teachers(
    caches: Sequence[TeacherCache], inputs: Inputs, config: FinetuneConfig, settings: DistillationSettings
) -> list[list[TeacherCache]]:
    """Refuse teacher caches without the features that a run reads; return them as `cache_of_split` does.

    Raises:
        IdentityMismatch: a cache of another dataset, split or setting, or of a part. ConfigError: a cache of other
            words.
    """
    by_split = cache_of_split(caches, inputs.splits)
    for split, of_split in zip(inputs.splits, by_split, strict=True):
        check_caches(of_split, split, data_root=config.data_root, on_error=config.on_error)
        _check_selection(of_split, settings)
        sees_some = split is inputs.dataset
        seen = sorted({*inputs.labelled, *inputs.seen}) if sees_some else range(len(split))
        _check_part(of_split, split, seen, config)
    return by_split


def check_caches(
    caches: Sequence[TeacherCache], dataset: Dataset, *, data_root: Path | None, on_error: str = "fail"
) -> None:
    """Compare each cache's dataset with the training dataset.

    Args:
        data_root: where the dataset was found, for the advice.
        on_error: how it was opened; leaving out examples makes it a different dataset.

    Raises:
        IdentityMismatch: they differ; the message has both values and the command that extracts again, or the option
            of the cache.
    """
    expected = dataset_identity(dataset)
    for cache in caches:
        actual, made_by = cache.identity["dataset"], cache.provenance["config"]
        skipped = made_by.get("on_error", "fail")
        if actual.get("content_digest") != expected["content_digest"] and skipped != on_error:
            raise IdentityMismatch(
                f"The cache was made with --on-error {skipped}, and the dataset is read with --on-error {on_error}.",
                where=str(cache.path),
                next_command=f"add --on-error {skipped}",
            )
        same = {key for key, value in expected.items() if actual.get(key) == value}
        if same == expected.keys():
            continue
        style = dataset.text_style if dataset.text_style in get_args(TextStyle) else None
        of_run = {"dataset": dataset.name, "split": dataset.split, "text_style": style, "data_root": data_root}
        if same >= {"name", "split", "text_style"}:
            instead = extract_command(made_by | of_run, cache.path, renew=True)
        else:
            # A cache of other data remains valid and is not replaced.
            output = f"{cache.path}-{dataset.text_style}" if same >= {"name", "split"} else ""
            whole = made_by | of_run | {"shots": None, "ids": []}
            instead = extract_command(whole, output, note="then give that cache as --cache")
        # The identity of your own data is its content, but the message names its file.
        named = expected | {"name": dataset.name}, actual | {"name": str(made_by.get("dataset") or actual["name"])}
        raise IdentityMismatch(
            "The cache was made from another dataset than the one to train on.",
            where=str(cache.path),
            why="\n" + difference_table(differences(*named, partial=True)),
            next_command=instead,
        )


def _check_part(
    caches: Sequence[TeacherCache], dataset: Dataset, positions: Sequence[int], config: FinetuneConfig
) -> None:
    """Refuse a cache of a part of a split that lacks inputs of the run. A cache of a complete split is not examined.

    Args:
        positions: of the examples whose inputs the run uses.
        config: of the run, for the advice.

    Raises:
        IdentityMismatch: inputs are missing; the message has the command that extracts them.
    """
    for cache in caches:
        if "selection" not in cache.identity["dataset"]:
            continue
        num_missing = sum(not holds(cache, dataset[position]) for position in positions)
        if not num_missing:
            continue
        # The file of ids may have the same name as the one that this cache was made from.
        needed: dict[str, Any] = {"shots": None, "ids": [], "seed": [config.seed]}
        if config.ids is not None and config.pool is None:
            needed["ids"] = [str(config.ids)]
        elif config.shots is not None or config.pool is not None:
            needed["shots"] = max(config.shots or 1, config.pool or 1)
        output = f"{cache.path}-new" if needed["ids"] else ""
        note = "then give that cache as --cache"
        raise IdentityMismatch(
            "The cache holds a part of the split, and the run sees more.",
            where=str(cache.path),
            why=f"{num_missing:,} of the {len(positions):,} examples that the run sees are not in it",
            next_command=extract_command(cache.provenance["config"] | needed, output, note=note),
        )


def holds(cache: TeacherCache, example: Example) -> bool:
    """Whether a cache has features of an example's picture and texts."""
    texts = [candidate.text_unit.unit_id for candidate in example.candidates]
    return (cache.image is None or bool(cache.image.contains([example.image.unit_id]).all())) and (
        cache.text is None or bool(cache.text.contains(texts).all())
    )


def _check_selection(caches: Sequence[TeacherCache], settings: DistillationSettings) -> None:
    """Refuse caches of some words if a distance or a selection requires all of them.

    Raises:
        ConfigError: words are missing; the message has the command that extracts all tokens.
    """
    if settings.pathway == "vision":
        return
    for cache in caches:
        instead = ""
        if cache.keeps_some_texts and settings.distance != "relational":
            what = f"A cache of some texts' words cannot serve the distance {settings.distance!r}."
            instead = "add --distance relational, or "
        elif cache.lacks_common_words:
            what = "Caches of the rarest words of each text can no longer be trained on."
        else:
            continue
        again = extract_command(cache.provenance["config"] | {"select_texts": None}, cache.path, renew=True)
        raise ConfigError(what, where=str(cache.path), next_command=f"{instead}{again}")


def splits_read(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return dataset and split of all data of a run: the training split, and other inputs of the adapt stage."""
    return [(config.dataset, config.split), *other_splits(config.adapt.adapt_on)]


def check_run_options(config: FinetuneConfig) -> None:
    """Refuse options of a new run that have no effect; an interrupted run resumes with its options.

    Raises:
        ConfigError: an option has no effect. DatasetError: your own data cannot be read.
    """
    if not (config.output / names.CONFIG).is_file():
        require_effect(
            config, facts_of_run(config, config.task or find_dataset(config.dataset, config.data_root).tasks)
        )


def region_places(
    locations: Iterable[Location], splits: Iterable[tuple[str, str]]
) -> dict[Location, tuple[Location, str, str]]:
    """Return the caches named by the region options: place -> the option, and the dataset and split that it is for.

    Args:
        locations: `{dataset}` and `{split}` stand for each of the splits. If that cache is missing, `{split}` is the
            split that contains its pictures, as for a shifted set.
        splits: (dataset, split) of the data to read.
    """
    places: dict[Location, tuple[Location, str, str]] = {}
    options = [location for location in locations if location != PIXELS]
    for option, (dataset, split) in itertools.product(options, splits):
        named = str(option).replace("{dataset}", dataset_label(dataset))
        tried = [
            parse_location(named.replace("{split}", filed_under))
            for filed_under in (split, *picture_splits(dataset, split))
        ]
        # An object store is checked when the cache is opened.
        caches = (
            location for location in tried if not isinstance(location, Path) or (location / IDENTITY_FILE).is_file()
        )
        places.setdefault(next(caches, tried[0]), (option, dataset, split))
    return places


def open_region_caches(
    locations: Iterable[Location],
    splits: Sequence[tuple[str, str]],
    *,
    data_root: Path | None = None,
) -> list[TeacherCache]:
    """Open the caches named by the region options; none for crops.

    Args:
        locations: as for `region_places`.
        splits: as for `region_places`.
        data_root: of the datasets, for the advice.

    Raises:
        ConfigError: the place is empty or has a detector's files; the message has the command that imports them.
            CorruptCache: a cache is damaged.
    """
    caches = []
    for place, (option, dataset, split) in region_places(locations, splits).items():
        if isinstance(place, Path) and not (place / IDENTITY_FILE).is_file():
            source = str(option).replace("{dataset}", dataset_label(dataset))
            filed_under = picture_splits(dataset, split)[0]
            are_there = place.exists() or Path(source.replace("{split}", filed_under)).exists()
            words = ["advl", "cache", "import", source if are_there else "FILE", "--name", "regions"]
            words += ["--dataset", dataset, "--split", split]
            usual = default_cache("import-regions", "{dataset}", "{split}")
            words += [] if data_root is None else ["--data-root", str(data_root)]
            raise ConfigError(
                "Regions are read from a cache; import a detector's files first.",
                where=str(place),
                why="these are no files of a cache" if are_there else "there is nothing here",
                next_command=advise(words, note=f"then give --regions {shlex.quote(str(usual))}"),
            )
        cache = open_cache(place)
        if cache.image is None or not cache.image.has_regions:
            raise _other_option("no regions of a detector", cache, "--cache")
        caches.append(cache)
    return caches


def open_caches(config: TeacherOptions) -> list[TeacherCache]:
    """Open the caches that the options name, through the disk cache if they are in an object store.

    Raises:
        ConfigError: a cache contains pictures or regions instead of a teacher's features.
    """
    caches = [open_cache(path) for path in config.cache]
    for cache in caches:
        if cache.teacher_name.startswith(PICTURES):
            raise _other_option("pictures, and no teacher's features", cache, "--pictures")
        if cache.image is not None and cache.image.has_regions:
            raise _other_option("a detector's regions, and no teacher's features", cache, "--regions")
    return caches


def _other_option(holds: str, cache: TeacherCache, option: str) -> ConfigError:
    instead = f"give it as {option} {shlex.quote(str(cache.path))}"
    return ConfigError(f"This cache holds {holds}.", where=str(cache.path), next_command=instead)


def finetune_command(config: FinetuneConfig) -> str:
    """Return the `advl finetune` command that repeats a run, without the options that have no effect in it."""
    idle = unused_options(config, facts_of_run(config))
    options = {name: value for name, value in config_to_dict(config).items() if name not in idle}
    return shlex.join(["advl", "finetune", *command_words(FinetuneConfig, options)])


def facts_of_run(config: FinetuneConfig, tasks: Collection[str] = ()) -> dict[str, str]:
    """Return the facts that options of a run require, for `unused_options`.

    Args:
        config: as the user gave it.
        tasks: of the dataset; empty to ignore facts that depend on them.
    """
    method = resolve_method(config)
    distill, adapt, settings = config.distill, config.adapt, method.settings
    two_stages = method.num_adapt_steps > 0
    is_relational = distill.distance == "relational"
    holds_words = two_stages and (adapt.anchors or adapt.asks_itself)
    facts = (
        ("teachers", method.uses_teachers, "this method uses no teacher"),
        ("an adapt stage", two_stages, "this run has no adapt stage"),
        ("coordinates", not is_relational, "--distance relational projects nothing"),
        ("the text pathway", distill.pathway != "vision", "--pathway vision distils no text"),
        ("the vision pathway", distill.pathway != "text", "--pathway text distils no picture"),
        ("distillation", distill.distill_weight > 0 or two_stages, "--distill-weight 0 distils nothing"),
        ("weights", settings.weighting != "uniform", "all weights are 1"),
        ("ratio", settings.weighting == "ratio", "--weighting is not ratio"),
        ("confidence", config.confidence != "none", "--confidence none weighs nothing"),
        ("a probe", config.confidence == "probe", "--confidence fits no probe"),
        ("answers", settings.answer_weight > 0, "no answers are learned"),
        (
            "known words",
            holds_words or (method.uses_teachers and is_relational),
            "nothing here uses known words",
        ),
        (
            "early stopping",
            may_stop(config),
            "this run takes a fixed number of steps",
        ),
        ("pretrained weights", config.init is not None, "there are no pretrained weights (--init)"),
        ("low-rank updates", config.lora_rank != 0, "--lora-rank 0 makes no low-rank updates"),
    )
    return facts_of_data(tasks) | {name: "" if holds else why for name, holds, why in facts}
