"""The inputs of a student: regions and pictures from caches, and checks for unexpected inputs.

`advl cache import` makes caches of a detector's regions. `advl prepare` makes caches of squeezed pictures, with the
same pixels as decoding. Before the first step, checks look for a tokenizer from the weights, truncated texts and
regions without a detector. The findings are in the output, in settings.json and with every result of the run.
Shapes: B pictures, S side in pixels, R regions, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advl_pipeline.base.errors import ConfigError, DatasetError, advise, ineffective
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location, parse_location
from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.cache.identity import require_identity
from advl_pipeline.cache.quantise import as_tensor
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.datasets.records import Dataset, ImageUnit, head_name
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.students.interface import Student
from advl_pipeline.students.picture_source import WHOLE_POSITION_17, DecodedPictures, Regions, RegionSource
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.region_student import RegionStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import DESCRIPTION_FILE
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.students.weight_files import tokenizer_folder
from advl_pipeline.teachers.image_tower import SquarePictures
from advl_pipeline.teachers.open_options import PICTURES
from advl_pipeline.teachers.registry import teacher_plugins
from advl_pipeline.training.build_model import recipe_options, student_options
from advl_pipeline.training.recipes import choose_recipe

SAMPLED_TEXTS = 256
"""Number of sampled texts: enough to detect a share of a few percent, and tokenised in less than a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentInputs:
    """A student's initial state and inputs: its weights, its tokenizer if it comes with them, and the sampled texts
    that it truncates."""

    start: str
    tokenizer: str
    num_texts: int
    num_cut: int
    max_tokens: int
    caveats: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return a line about each finding that may be unexpected."""
        lines = [self.start]
        if self.tokenizer:
            lines.append(f"tokenizer: {self.tokenizer}, which is next to the weights")
        if self.num_cut:
            share = 100 * self.num_cut / self.num_texts
            lines.append(
                f"texts: {self.num_cut} of {self.num_texts} sampled ({share:.0f} %) are longer than "
                f"{self.max_tokens} tokens and are cut"
            )
        return lines + [f"caution: {caveat}" for caveat in self.caveats]


def read_inputs(
    student: Student,
    dataset: Dataset,
    positions: Sequence[int],
    init: Path | None,
    *,
    teachers: Sequence[str] = (),
) -> StudentInputs:
    """Check the inputs of a student from a split.

    Args:
        positions: of the training examples, from which some are sampled.
        init: origin of its weights.
        teachers: of the run, by name.

    Raises:
        ConfigError: its tokenizer has another vocabulary, or its published weights would see noise.
        WeightsUnavailable: its tokenizer is not available.
    """
    student.require_inputs()
    is_published = init is not None and not (init / DESCRIPTION_FILE).is_file()
    if is_published and isinstance(student, RegionStudent) and student.config.regions is None:
        # A student that this package saved was trained on the inputs that it now gets.
        raise ConfigError(
            f"{student.name} needs the features of a detector.",
            where=str(init),
            why="its weights were trained on them, and no --regions is given",
            next_command="--regions CACHE of such features; --student vilt, which sees pixels; "
            "or --regions pixels for crops",
        )
    each = len(dataset[positions[0]].candidates)
    wanted = max(1, SAMPLED_TEXTS // each)
    stride = max(1, len(positions) // wanted)
    examples = [dataset[position] for position in positions[::stride][:wanted]]
    num_cut = student.count_cut(examples)
    of_weights = None if init is None else tokenizer_folder(init)
    used = student.config.tokenizer if isinstance(student, TextStudent) else None
    max_tokens = student.max_text_length or 0
    cut = (f"texts of more than {max_tokens} tokens are cut",) if num_cut else ()
    return StudentInputs(
        start=_start(student, init),
        tokenizer=str(of_weights) if of_weights is not None and used == str(of_weights) else "",
        num_texts=sum(len(example.candidates) for example in examples),
        num_cut=num_cut,
        max_tokens=max_tokens,
        caveats=(*student.caveats(), *_own_teachers(student, teachers), *cut),
    )


def _start(student: Student, init: Path | None) -> str:
    """Describe the student's knowledge before the first step."""
    if init is not None:
        return f"The student {student.name} starts from pretrained weights (--init)."
    if student.towers:
        return (
            f"The student {student.name} starts from {' and '.join(student.towers)}, which were trained separately: "
            "the layers that relate words to pictures are random before this run."
        )
    return (
        f"The student {student.name} starts from random weights: it knows no words and no pictures before this run, "
        "and --init would give it pretrained ones."
    )


def _own_teachers(student: Student, teachers: Sequence[str]) -> list[str]:
    """Describe the teachers whose weights the student starts from, with alternatives that are as easy to install."""
    same = [name for name in teachers if name in student.towers]
    if not same:
        return []
    others = [name for name in teacher_plugins() if name not in student.towers]
    return [
        f"{' and '.join(same)}: the student starts from the same weights, so that it learns nothing new of them; "
        f"teachers of other weights: {', '.join((*others, 'and those of advl teachers list'))}"
    ]


class _OfCaches:
    """Pictures with entries in caches, looked up by the digest of their content."""

    def __init__(self, caches: Sequence[TeacherCache], size: int) -> None:
        self._caches, self._size = caches, size
        self._stores = [(cache, cache.image) for cache in caches if cache.image is not None]

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps are not copied with the student; a copy opens the caches itself.
        return type(self), (self._caches, self._size)

    def announce(self, units: Sequence[ImageUnit]) -> None:
        """Announce the pictures' entries to the kernel for read-ahead."""
        ids = [unit.unit_id for unit in units]
        for _, store in self._stores:
            store.announce([name for name, held in zip(ids, store.contains(ids), strict=True) if held])

    def begin_epoch(self) -> None:
        """Check the available memory again."""
        for _, store in self._stores:
            store.begin_epoch()


class CachedRegions(_OfCaches, RegionSource):
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


def regions_of_run(trained_on: Mapping[str, Any]) -> list[Location]:
    """Return the region caches of a run, from its plain configuration; 0.2 stored one path."""
    stored = trained_on.get("regions") or []
    return list(map(parse_location, [stored] if isinstance(stored, str) else stored))


def use_region_caches(student: Student, caches: Sequence[TeacherCache]) -> list[str]:
    """Let a student see the regions in caches, and return a line about each cache.

    Args:
        student: whose source of regions is replaced if there are caches.
        caches: as `given.open_region_caches` opens them.

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


class StoredPictures(_OfCaches, DecodedPictures):
    """A source of pictures from caches that `advl prepare` stored; missing pictures are decoded."""

    def __init__(self, caches: Sequence[TeacherCache], size: int) -> None:
        _OfCaches.__init__(self, caches, size)
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
        given: caches of pictures; None or empty for the default place of `advl prepare`.
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


def picture_side(student: str | None, options: Sequence[str], *, tasks: Sequence[str]) -> int:
    """Return the side in pixels to which a student squeezes pictures when finetuned with these options.

    Args:
        options: student settings as KEY=VALUE.
        tasks: of the dataset for finetuning; the first determines the recipe.

    Raises:
        ConfigError: the student or a setting is missing or unknown, or the student does not squeeze pictures.
    """
    if student is None:
        raise ConfigError(
            "The size of the stored pictures is not set.",
            next_command="add --student NAME, such as vilt, or --size PIXELS",
        )
    chosen = choose_recipe(student, head_name(tasks[0]) if tasks else "", "auto")
    given = student_options({"student_option": list(options)})
    overrides: dict[str, Any] = {**recipe_options(chosen, None), **given}
    with torch.device("meta"):
        built = build_student(student, overrides=overrides)
    if not isinstance(built, PixelStudent):
        raise ConfigError(
            f"{student} reads no squeezed pictures, so that there is nothing to store for it.",
            next_command=advise(["advl", "students", "list"], note="choose a student over pixels, such as vilt"),
        )
    return built.config.image_size
