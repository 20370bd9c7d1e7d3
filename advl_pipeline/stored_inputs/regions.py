"""A detector's regions from caches that `advl cache import` made.

Shapes: R regions, F feature width.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.base.errors import ConfigError, DatasetError, advise, ineffective
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location, parse_location
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.store import IDENTITY_FILE
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.stored_inputs.source import OfCaches
from advl_pipeline.students.interface import Student
from advl_pipeline.students.options import PIXELS
from advl_pipeline.students.picture_source import WHOLE_POSITION_17, Regions, RegionSource
from advl_pipeline.students.region_student import RegionStudent


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
    instead = f"give it as {option} {shlex.quote(str(cache.path))}"
    return ConfigError(f"This cache holds {holds}.", where=str(cache.path), next_command=instead)


class CachedRegions(OfCaches, RegionSource):
    """A source of regions from caches, whose features have the width that the student expects."""

    def __init__(self, caches: Sequence[TeacherCache], feature_size: int) -> None:
        super().__init__(caches, feature_size)
        self.feature_size = feature_size

    def regions(self, unit: ImageUnit) -> Regions:
        """Return the regions in the order of their files, after the whole picture if the cache has it.

        Raises:
            DatasetError: no cache contains the picture.
        """
        ids = [unit.unit_id]
        for cache, store in self._stores:
            if not store.contains(ids)[0]:
                continue
            stored = store.token_columns(ids)
            boxes_R6 = stored["boxes"]
            # Copy, because torch warns about read-only arrays such as memory maps.
            features_RF = np.array(store.token_features(ids)[0])
            positions_R7 = np.concatenate([boxes_R6, boxes_R6[:, 4:5] * boxes_R6[:, 5:]], axis=1)
            box_index_R = stored["box_index"].astype(np.int64)
            has_whole = cache.identity["teacher"]["image"]["global"] == "as given"
            if has_whole:
                features_RF = np.concatenate([store.global_features(ids), features_RF])
                positions_R7 = np.concatenate([WHOLE_POSITION_17, positions_R7])
                box_index_R = np.concatenate([np.array([-1]), box_index_R])
            return Regions(
                features_RF=features_RF, positions_R7=positions_R7, box_index_R=box_index_R, whole_first=has_whole
            )
        words = "advl cache import FILE --name NAME --dataset NAME --split SPLIT".split()
        raise DatasetError(
            "A picture has no region features.",
            where=str(unit.path),
            why=f"it is not in {', '.join(str(cache.path) for cache in self._caches)}",
            next_command=advise(words, note="of its split, then add --regions CACHE"),
        )


def use_region_caches(student: Student, caches: Sequence[TeacherCache]) -> list[str]:
    """Let a student see the regions in caches, and return a line about each cache.

    Args:
        student: whose source of regions is replaced if there are caches.
        caches: as `open_region_caches` opens them.

    Raises:
        ConfigError: the student sees no regions, or regions of another width, or requires a detector's regions and
            there are none.
        CorruptCache: a cache is damaged.
    """
    if not isinstance(student, RegionStudent):
        if caches:
            raise ineffective("--regions", why=f"{student.name} sees no regions of a detector")
        return []
    for cache in caches:
        require_trustworthy(cache)
        assert cache.image is not None
        if cache.image.token_dim != student.config.feature_size:
            raise ConfigError(
                "The region features have another width than the student expects.",
                where=str(cache.path),
                why=f"{cache.image.token_dim} in the cache, feature_size = {student.config.feature_size}",
            )
    if caches:
        student.regions = CachedRegions(caches, student.config.feature_size)
    student.region_source()
    return [f"regions: of {len(cache.image or ()):,} pictures, from {cache.path}" for cache in caches]
