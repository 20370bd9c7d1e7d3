"""The caches that the region options name, opened and checked before torch loads.

They are made by `advl cache import`, from the files of a detector.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location, parse_location
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.store import IDENTITY_FILE
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.students.options import PIXELS


def regions_of_run(trained_on: Mapping[str, Any]) -> list[Location]:
    """Return the region caches of a run, from its plain configuration; 0.2 stored one path."""
    stored = trained_on.get("regions") or []
    return list(map(parse_location, [stored] if isinstance(stored, str) else stored))


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
            raise other_option("no regions of a detector", cache, "--cache")
        caches.append(cache)
    return caches


def other_option(holds: str, cache: TeacherCache, option: str) -> ConfigError:
    """Return the error for a cache that was given by the wrong option."""
    return ConfigError(
        f"This cache holds {holds}.",
        where=str(cache.path),
        next_command=f"give it as {option} {shlex.quote(str(cache.path))}",
    )
