"""What is refused before torch loads: names, folders, files and options of a run that cannot be right."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.store import IDENTITY_FILE
from advl_pipeline.configuration import read_toml, refuse_ineffective
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.registry import require_names, tasks_of
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.errors import ConfigError, advise
from advl_pipeline.folders import default_cache
from advl_pipeline.locations import Location, parse_location
from advl_pipeline.outputs import require_outputs
from advl_pipeline.runs import names
from advl_pipeline.runs.trackers import trackers_named
from advl_pipeline.students.options import PIXELS
from advl_pipeline.students.registry import require_student
from advl_pipeline.students.weight_files import is_on_hub, required_weights
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.training.config import FinetuneConfig, TeacherOptions
from advl_pipeline.training.inputs import other_splits
from advl_pipeline.training.methods import finetune_steps, resolve_method
from advl_pipeline.training.recipes import AUTO, NONE
from advl_pipeline.training.without_effect import without_effect


def require_given(config: FinetuneConfig, *, is_control: bool = False) -> None:
    """Refuse what can be refused without a model, in well under a second.

    Args:
        is_control: a study marks the run as a control.

    Raises:
        ConfigError: contradicting options, a name that does not exist, an output that holds something else, a cache
            that is not there, weights by labels outside of a control. DatasetError, CorruptCache, WeightsUnavailable:
            as they say.
    """
    if config.distill.weighting == "oracle" and not is_control:
        raise ConfigError(
            "Weights by labels are a control of studies, and no method.",
            where="--weighting oracle",
            why="it reads the labels of all inputs that the adapt step sees",
            next_command="put advl-oracle among the methods of a study, or give --weighting ratio",
        )
    resolve_method(config, num_steps=finetune_steps(config))
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


def splits_read(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return the dataset and split of all that a run reads: what it trains on, and other inputs of the adapt step."""
    return [(config.dataset, config.split), *other_splits(config.adapt.adapt_on)]


def require_effect(config: FinetuneConfig) -> None:
    """Refuse options of a new run that would change nothing; what was begun goes on as it was.

    Raises:
        ConfigError: as said. DatasetError: data of one's own that cannot be read.
    """
    if (config.output / names.CONFIG).is_file():
        return
    method = resolve_method(config, num_steps=finetune_steps(config))
    tasks = config.task or tasks_of(config.dataset, config.data_root)
    refuse_ineffective(without_effect(config, method, tasks))


def region_places(
    given: Iterable[Location], splits: Iterable[tuple[str, str]]
) -> dict[Location, tuple[Location, str, str]]:
    """Return the caches that options of regions name: place -> the option, and the dataset and split that it is for.

    Args:
        given: `{dataset}` and `{split}` in them stand for each of the splits; where no cache lies there, `{split}`
            stands for the split that its pictures are filed under, as those of a shifted set are.
        splits: (dataset, split) of what is read.
    """
    found: dict[Location, tuple[Location, str, str]] = {}
    for option, (dataset, split) in itertools.product([one for one in given if one != PIXELS], splits):
        named = str(option).replace("{dataset}", dataset_label(dataset))
        tried = [parse_location(named.replace("{split}", one)) for one in (split, *picture_splits(dataset, split))]
        found.setdefault(next(filter(_may_be_cache, tried), tried[0]), (option, dataset, split))
    return found


def _may_be_cache(place: Location) -> bool:
    """Whether a folder is one of a cache; an object store is asked when the cache is opened."""
    return not isinstance(place, Path) or (place / IDENTITY_FILE).is_file()


def open_region_caches(
    given: Iterable[Location],
    splits: Sequence[tuple[str, str]],
    *,
    data_root: Path | None = None,
    disk_cache: DiskCacheConfig | None = None,
) -> list[TeacherCache]:
    """Open the caches that options of regions name; none for crops.

    Args:
        given: as `region_places` takes them.
        splits: likewise.
        data_root: of the datasets, for the advice.

    Raises:
        ConfigError: files of a detector, or nothing; the command that imports is told. CorruptCache: a cache is
            damaged.
    """
    found = []
    for place, (option, dataset, split) in region_places(given, splits).items():
        if isinstance(place, Path) and not _may_be_cache(place):
            raise _no_region_cache(place, option, dataset, split, data_root)
        cache = open_cache(place, disk_cache=disk_cache)
        if cache.image is None or not cache.image.has_regions:
            raise ConfigError(
                "This cache holds no regions of a detector.",
                where=str(place),
                why=f"it holds features of {cache.teacher_name}",
                next_command=f"give it as --cache {shlex.quote(str(place))}",
            )
        found.append(cache)
    return found


def _no_region_cache(place: Path, option: Location, dataset: str, split: str, data_root: Path | None) -> ConfigError:
    source = str(option).replace("{dataset}", dataset_label(dataset))
    filed_under = picture_splits(dataset, split)[0]
    are_there = place.exists() or Path(source.replace("{split}", filed_under)).exists()
    words = ["advl", "cache", "import", source if are_there else "FILE", "--name", "regions", "--dataset", dataset]
    words += ["--split", split, *(["--data-root", str(data_root)] if data_root is not None else [])]
    usual = default_cache("import-regions", "{dataset}", "{split}")
    return ConfigError(
        "Regions are read from a cache, which is made of a detector's files once.",
        where=str(place),
        why="these are no files of a cache" if are_there else "there is nothing here",
        next_command=advise(words, note=f"then give --regions {shlex.quote(str(usual))}"),
    )


def open_caches(config: TeacherOptions) -> list[TeacherCache]:
    """Open the caches that the options name, through the disk cache where they lie in an object store.

    Raises:
        ConfigError: one holds pictures or regions, and not what a teacher says of them.
    """
    caches = [open_cache(path, disk_cache=config.disk_cache_config) for path in config.cache]
    for cache in caches:
        if cache.teacher_name.startswith(PICTURES):
            raise ConfigError(
                "This cache holds pictures, and no teacher's features.",
                where=str(cache.path),
                next_command=f"give it as --pictures {shlex.quote(str(cache.path))}",
            )
        if cache.image is not None and cache.image.has_regions:
            raise ConfigError(
                "This cache holds a detector's regions, and no teacher's features.",
                where=str(cache.path),
                next_command=f"give it as --regions {shlex.quote(str(cache.path))}, to a student that sees regions",
            )
    return caches
