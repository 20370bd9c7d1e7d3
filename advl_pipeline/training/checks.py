"""What is refused before torch loads: names, folders, files and options of a run that cannot be right.

An option that would change nothing is refused where a user gives it, and left out of a command that is told. A study
gives its options to all its methods, so that a plain run of one may hold what only others heed.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from advl_pipeline.base.configuration import require_effect
from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location, parse_location
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.toml import read_toml
from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.store import IDENTITY_FILE
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.config import facts_of_data
from advl_pipeline.datasets.records import head_name
from advl_pipeline.datasets.registry import find_dataset, require_names
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.runs import names
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.students.options import PIXELS
from advl_pipeline.students.registry import require_student
from advl_pipeline.students.weight_files import is_on_hub, required_weights
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.training.config import FinetuneConfig, TeacherOptions
from advl_pipeline.training.identity import run_record
from advl_pipeline.training.inputs import cache_of_split, check_caches, open_run_inputs, other_splits
from advl_pipeline.training.recipes import AUTO, NONE
from advl_pipeline.training.resolved import resolve_method, resolve_run


def check_run(config: FinetuneConfig, *, is_control: bool = False) -> None:
    """Refuse what can be refused without a model, in well under a second.

    Args:
        is_control: a study marks the run as a control.

    Raises:
        ConfigError: contradicting options, a name that does not exist, an output that holds something else, a cache
            that is not there, weights by labels outside of a control. DatasetError, CorruptCache, WeightsUnavailable:
            as they say.
    """
    if config.distill.reads_labels and not is_control:
        raise ConfigError(
            "Weights by labels are a control of studies, and no method.",
            where="--weighting oracle",
            why="it reads the labels of all inputs that the adapt step sees",
            next_command="put advl-oracle among the methods of a study, or give --weighting ratio",
        )
    resolve_method(config)
    trackers_named(config.log_with)
    require_student(config.student)
    require_outputs(config)
    if config.init is not None and not is_on_hub(config.init):
        required_weights(config.init)
    if config.optimisation.recipe not in (AUTO, NONE):
        read_toml(Path(config.optimisation.recipe))
    require_names(config.dataset, split=config.split, tasks=config.task, data_root=config.data_root)
    here = tuple(location for location in config.cache if isinstance(location, Path))
    open_caches(dataclasses.replace(config, cache=here))
    regions = [location for location in config.regions if isinstance(location, Path)]
    open_region_caches(regions, splits_read(config), data_root=config.data_root)


def require_data(config: FinetuneConfig) -> None:
    """Refuse what the data, the caches and the run folder tell, before torch loads.

    What lies in an object store or on the hub is asked later.

    Raises:
        ConfigError, DatasetError: as `open_run_inputs` says. IdentityMismatch: a cache of another dataset, or a
            folder of another run.
    """
    folder = RunFolder(config.output)
    config = folder.resumed_config(config) if config.resume else config
    here = tuple(location for location in config.cache if isinstance(location, Path))
    caches = open_caches(dataclasses.replace(config, cache=here))
    inputs = open_run_inputs(config, caches)
    run = resolve_run(config, kind=head_name(inputs.dataset.tasks[0]), num_labelled=len(inputs.labelled))
    if len(here) < len(config.cache):
        return
    if run.method.uses_teachers:
        for split, of_split in zip(inputs.splits, cache_of_split(caches, inputs.splits), strict=True):
            check_caches(of_split, split, data_root=config.data_root, on_error=config.on_error)
    is_elsewhere = config.init is not None and is_on_hub(config.init)
    if config.resume and folder.identity.is_file() and not is_elsewhere:
        regions = [location for location in config.regions if isinstance(location, Path)]
        region_caches = open_region_caches(regions, splits_read(config), data_root=config.data_root)
        if len(regions) == len(config.regions):
            read = caches if run.method.uses_teachers else []
            folder.require_same_run(run_record(run, inputs, read, region_caches))


def splits_read(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return the dataset and split of all that a run reads: what it trains on, and other inputs of the adapt step."""
    return [(config.dataset, config.split), *other_splits(config.adapt.adapt_on)]


def check_run_options(config: FinetuneConfig) -> None:
    """Refuse options of a new run that would change nothing; what was begun goes on as it was.

    Raises:
        ConfigError: there are such options. DatasetError: data of one's own that cannot be read.
    """
    if not (config.output / names.CONFIG).is_file():
        require_effect(
            config, facts_of_run(config, config.task or find_dataset(config.dataset, config.data_root).tasks)
        )


def region_places(
    locations: Iterable[Location], splits: Iterable[tuple[str, str]]
) -> dict[Location, tuple[Location, str, str]]:
    """Return the caches that options of regions name: place -> the option, and the dataset and split that it is for.

    Args:
        locations: `{dataset}` and `{split}` stand for each of the splits. Where no cache lies there, `{split}`
            is the split that its pictures are filed under, as those of a shifted set are.
        splits: (dataset, split) of what is read.
    """
    places: dict[Location, tuple[Location, str, str]] = {}
    options = [location for location in locations if location != PIXELS]
    for option, (dataset, split) in itertools.product(options, splits):
        named = str(option).replace("{dataset}", dataset_label(dataset))
        tried = [
            parse_location(named.replace("{split}", filed_under))
            for filed_under in (split, *picture_splits(dataset, split))
        ]
        # An object store is asked when the cache is opened.
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
    disk_cache: DiskCacheConfig | None = None,
) -> list[TeacherCache]:
    """Open the caches that options of regions name; none for crops.

    Args:
        locations: as `region_places` takes them.
        splits: likewise.
        data_root: of the datasets, for the advice.

    Raises:
        ConfigError: files of a detector, or nothing; the command that imports is told. CorruptCache: a cache is
            damaged.
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
            raise ConfigError(
                "Regions are read from a cache, which is made of a detector's files once.",
                where=str(place),
                why="these are no files of a cache" if are_there else "there is nothing here",
                next_command=advise(
                    words if data_root is None else [*words, "--data-root", str(data_root)],
                    note=f"then give --regions {shlex.quote(str(usual))}",
                ),
            )
        cache = open_cache(place, disk_cache=disk_cache)
        if cache.image is None or not cache.image.has_regions:
            raise ConfigError(
                "This cache holds no regions of a detector.",
                where=str(place),
                why=f"it holds features of {cache.teacher_name}",
                next_command=f"give it as --cache {shlex.quote(str(place))}",
            )
        caches.append(cache)
    return caches


def open_caches(config: TeacherOptions) -> list[TeacherCache]:
    """Open the caches that the options name, through the disk cache where they lie in an object store.

    Raises:
        ConfigError: one holds pictures or regions, and not what a teacher says of them.
    """
    caches = [open_cache(path, disk_cache=config.disk_cache_config) for path in config.cache]
    for cache in caches:
        if cache.teacher_name.startswith(PICTURES):
            holds, option, note = "pictures", "--pictures", ""
        elif cache.image is not None and cache.image.has_regions:
            holds, option, note = "a detector's regions", "--regions", ", to a student that sees regions"
        else:
            continue
        raise ConfigError(
            f"This cache holds {holds}, and no teacher's features.",
            where=str(cache.path),
            next_command=f"give it as {option} {shlex.quote(str(cache.path))}{note}",
        )
    return caches


def facts_of_run(config: FinetuneConfig, tasks: Collection[str] = ()) -> dict[str, str]:
    """Return the facts that options of a run need, as `unused_options` takes them.

    Args:
        config: as a user gives it.
        tasks: of the dataset; none to leave aside what depends on them.
    """
    method = resolve_method(config)
    distill, adapt, settings = config.distill, config.adapt, method.settings
    two_steps = method.steps == "two"
    is_relational = distill.distance == "relational"
    holds_words = two_steps and (adapt.anchors or adapt.asks_itself)
    facts = (
        ("teachers", method.uses_teachers, "this method hears no teacher"),
        ("an adapt step", two_steps, "this run has no adapt step"),
        ("coordinates", not is_relational, "--distance relational projects nothing"),
        ("the text pathway", distill.pathway != "vision", "--pathway vision distils no text"),
        ("the vision pathway", distill.pathway != "text", "--pathway text distils no picture"),
        ("distillation", distill.distill_weight > 0 or two_steps, "--distill-weight 0 distils nothing"),
        ("weights", settings.weighting != "uniform", "all weights are 1"),
        ("ratio", settings.weighting == "ratio", "--weighting is not ratio"),
        ("confidence", config.confidence != "none", "--confidence none weighs nothing"),
        ("a probe", config.confidence == "probe", "--confidence fits no probe"),
        ("answers", settings.answer_weight > 0, "no answers are learned"),
        (
            "known words",
            holds_words or (method.uses_teachers and is_relational),
            "nothing here asks which words are known",
        ),
        ("pretrained weights", config.init is not None, "there are no pretrained weights (--init)"),
        ("low-rank updates", config.lora_rank != 0, "--lora-rank 0 makes no low-rank updates"),
    )
    return facts_of_data(tasks) | {name: "" if holds else why for name, holds, why in facts}
