"""Pictures that `advl prepare` stored, in place of decoding them: the same pixels, for students over pixels.

Pictures are asked for by the digest of their content, so that one that changed is never mistaken for what it was.
Shapes: B pictures, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.cache.config import DiskCacheConfig
from advl_pipeline.cache.identity import require_identity
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import ImageUnit, head_name
from advl_pipeline.datasets.registry import tasks_of
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.errors import (
    ConfigError,
    advise,
)
from advl_pipeline.folders import default_cache
from advl_pipeline.locations import Location
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import DecodedPictures
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.teachers.squares import SquarePictures
from advl_pipeline.training.recipes import choose_recipe
from advl_pipeline.training.student_options import recipe_options, student_options


class StoredPictures(DecodedPictures):
    """The source over caches of pictures; what none of them holds is decoded."""

    def __init__(self, caches: Sequence[TeacherCache], size: int) -> None:
        super().__init__(size)
        self._caches = caches
        self._stores = [cache.image for cache in caches if cache.image is not None]

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps are not copied with the student; a copy opens the caches itself.
        return StoredPictures, (self._caches, self.size)

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        """Return (B, 3, S, S) uint8."""
        size, ids = self.size, [unit.unit_id for unit in units]
        wanted_B = np.ones(len(units), np.bool_)
        pixels = np.empty((0, 3, size, size), np.uint8)
        for store in self._stores:
            held_B = wanted_B & store.contains(ids)
            if not held_B.any():
                continue
            positions = store.positions([name for name, held in zip(ids, held_B, strict=True) if held])
            rows = store.padded_tokens(positions)[0].reshape(-1, 3, size, size)
            if held_B.all():
                return torch.from_numpy(rows)
            pixels = pixels if len(pixels) else np.empty((len(units), 3, size, size), np.uint8)
            pixels[held_B] = rows
            wanted_B &= ~held_B
        missing = [unit for unit, wanted in zip(units, wanted_B, strict=True) if wanted]
        if len(missing) == len(units):
            return super().pictures(units)
        if missing:
            pixels[wanted_B] = super().pictures(missing).numpy()
        return torch.from_numpy(pixels)

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Let the kernel read the pictures ahead."""
        ids = [unit.unit_id for unit in units]
        for store in self._stores:
            store.announce([name for name, held in zip(ids, store.contains(ids), strict=True) if held])

    def begin_epoch(self) -> None:
        """Look anew at the memory there is."""
        for store in self._stores:
            store.begin_epoch()


def use_stored_pictures(
    student: Student,
    given: Sequence[Location],
    splits: Sequence[tuple[str, str]],
    *,
    disk_cache: DiskCacheConfig | None = None,
    hash_all: bool = False,
) -> list[str]:
    """Let a student read pictures that are stored, and return a line about each place that they come from.

    Args:
        student: whose source of pictures is replaced, where there are any.
        given: caches of pictures; without, those that lie where `advl prepare` puts them are taken.
        splits: dataset and split of what is read.
        disk_cache: where files of remote caches are kept.
        hash_all: hash every file before it is trusted.

    Raises:
        ConfigError: pictures are given to a student that reads none. IdentityMismatch: they are of another size.
        CorruptCache: they are damaged or unfinished.
    """
    if not isinstance(student, PixelStudent):
        if given:
            raise ConfigError(
                f"{student.name} reads no squeezed pictures, so that stored ones are of no use to it.",
                where=str(given[0]),
                next_command="leave out --pictures",
            )
        return []
    size = student.config.image_size
    usual = [
        default_cache(f"{PICTURES}{size}", dataset_label(dataset), split) for dataset, split in dict.fromkeys(splits)
    ]
    places = given or [place for place in usual if (place / COMPLETE_RECORD).is_file()]
    caches = [open_cache(place, disk_cache=disk_cache) for place in places]
    for cache in caches:
        expected = {"teacher": {"image": SquarePictures(size).describe()}}
        words = ["advl", "prepare", "--dataset", splits[0][0], "--split", splits[0][1], "--size", str(size)]
        again = [words]
        stored = cache.identity["teacher"].get("image") or {}
        if stored.get("picture", {}).get("size") == size:
            # Made by another version, in the place where these are to lie; of another size it is good for others.
            again = [["advl", "cache", "prune", str(cache.path), "--all"], words]
        require_identity(expected, cache.identity, where=str(cache.path), next_command=advise(*again), partial=True)
        require_trustworthy(cache, hash_all=hash_all)
    if caches:
        student.pictures = StoredPictures(caches, size)
    return [
        f"pictures: {len(cache.image or ()):,} of {size} x {size} are read from {cache.path}, others are decoded"
        for cache in caches
    ]


def picture_size(student: str | None, options: Sequence[str], *, dataset: str, data_root: Path | None) -> int:
    """Return the side in pixels that a student squeezes pictures to, when it is finetuned with these options.

    Args:
        options: settings of it as KEY=VALUE.
        dataset: that it is finetuned on, by whose task a recipe is chosen.

    Raises:
        ConfigError: no or an unknown student or setting, or a student that reads no squeezed pictures.
    """
    if student is None:
        raise ConfigError(
            "Nothing says how large the stored pictures are to be.",
            next_command="add --student NAME, such as vilt, or --size PIXELS",
        )
    chosen = choose_recipe(student, head_name(tasks_of(dataset, data_root)[0]), "auto")
    given = student_options({"student_option": list(options)})
    overrides: dict[str, Any] = {**recipe_options(chosen, None), **given}
    with torch.device("meta"):
        built = build_student(student, overrides=overrides)
    if not isinstance(built, PixelStudent):
        raise ConfigError(
            f"{student} reads no squeezed pictures, so that there is nothing to store for it.",
            why="it sees regions of a picture",
            next_command=advise(["advl", "students", "list"], note="choose a student over pixels, such as vilt"),
        )
    return built.config.image_size
