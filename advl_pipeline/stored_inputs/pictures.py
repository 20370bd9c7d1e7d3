"""Squeezed pictures from caches that `advl prepare` made, with the same pixels as decoding.

Shapes: B pictures, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from advl_pipeline.base.errors import advise, ineffective
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location
from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.cache.identity import require_identity
from advl_pipeline.cache.quantise import as_tensor
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.stored_inputs.source import OfCaches
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import DecodedPictures
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.teachers.image_tower import SquarePictures
from advl_pipeline.teachers.open_options import PICTURES


class StoredPictures(OfCaches, DecodedPictures):
    """A source of pictures from caches that `advl prepare` stored; missing pictures are decoded."""

    def __init__(self, caches: Sequence[TeacherCache], size: int) -> None:
        OfCaches.__init__(self, caches, size)
        DecodedPictures.__init__(self, size)

    def pictures(self, units: Sequence[ImageUnit]) -> torch.Tensor:
        """Return (B, 3, S, S) uint8."""
        size, ids = self.size, [unit.unit_id for unit in units]
        pixels = np.empty((0, 3, size, size), np.uint8)
        wanted_B = np.ones(len(units), np.bool_)
        for _, store in self._stores:
            held_B = wanted_B & store.contains(ids)
            if not held_B.any():
                continue
            rows, _ = store.token_features([name for name, held in zip(ids, held_B, strict=True) if held])
            rows = rows.reshape(-1, 3, size, size)
            if held_B.all():
                # A single unit is a view of a memory map, which torch must not write to.
                return as_tensor(rows)
            pixels = pixels if len(pixels) else np.empty((len(units), 3, size, size), np.uint8)
            pixels[held_B] = rows
            wanted_B &= ~held_B
        missing = [unit for unit, wanted in zip(units, wanted_B, strict=True) if wanted]
        if len(missing) == len(units):
            return super().pictures(units)
        if missing:
            pixels[wanted_B] = super().pictures(missing).numpy()
        return torch.from_numpy(pixels)


def use_stored_pictures(
    student: Student,
    given: Sequence[Location],
    splits: Sequence[tuple[str, str]],
) -> list[str]:
    """Let a student read stored pictures, and return a line about each place that they come from.

    Args:
        student: whose source of pictures is replaced if there are any.
        given: caches of pictures; empty for the default place of `advl prepare`.
        splits: dataset and split of the data to read.

    Raises:
        ConfigError: pictures are given to a student that reads none. IdentityMismatch: they have another size.
        CorruptCache: they are damaged or unfinished.
    """
    if not isinstance(student, PixelStudent):
        if given:
            raise ineffective("--pictures", why=f"{student.name} reads no squeezed pictures")
        return []
    size = student.config.image_size
    usual = [
        default_cache(f"{PICTURES}{size}", dataset_label(dataset), split) for dataset, split in dict.fromkeys(splits)
    ]
    places = given or [place for place in usual if (place / COMPLETE_RECORD).is_file()]
    caches = [open_cache(place) for place in places]
    for cache in caches:
        expected = {"teacher": {"image": SquarePictures(size).describe()}}
        words = ["advl", "prepare", "--dataset", splits[0][0], "--split", splits[0][1], "--size", str(size)]
        again = [words]
        stored = cache.identity["teacher"].get("image") or {}
        if stored.get("picture", {}).get("size") == size:
            # Made by another version in the default place; caches of another size serve other students.
            again = [["advl", "cache", "prune", str(cache.path), "--all"], words]
        require_identity(expected, cache.identity, where=str(cache.path), next_command=advise(*again), partial=True)
        require_trustworthy(cache)
    if caches:
        student.pictures = StoredPictures(caches, size)
    return [
        f"pictures: {len(cache.image or ()):,} of {size} x {size} are read from {cache.path}, others are decoded"
        for cache in caches
    ]
