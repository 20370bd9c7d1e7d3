"""Photographs instead of artwork: a folder of class folders, read, checked and divided by use.

A kind's photographs are divided into disjoint pools, so that no photograph of a test picture occurs in training. All
checks of a folder run before anything is drawn. Sprites are as in `artwork.py`, with alpha 255 throughout, since a
photograph is cropped as a rectangle.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from advl_data.scenes.generator.artwork import Sprite
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.vocabulary import Kind
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.pictures import read_rgb

Pool = Literal["captions", "train", "val", "test"]

SHARES: Final[Mapping[Pool, int]] = {"captions": 30, "train": 40, "val": 10, "test": 20}
"""Percentage of a kind's photographs in each pool."""

LEAST_PHOTOGRAPHS: Final = 10
"""Minimum number of photographs of a kind, so that no pool is empty."""

LEAST_SIDE: Final = 48
_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_CROPS: Final = (192, 208, 224, 240, 256)
"""Width or height of a crop in 256ths of the photograph."""

Crop = tuple[int, int, int, int]
"""Width and height in 256ths of the photograph, then the offsets right and down in 256ths of the remainder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photographs:
    """Photographs of all kinds: pool -> code of a kind -> files; and the digest of each pool's content."""

    pools: Mapping[Pool, Mapping[str, tuple[Path, ...]]]
    digests: Mapping[Pool, str]


def class_folders(folder: Path) -> Mapping[str, Path]:
    """Return the class folders of a folder by name.

    Raises:
        DatasetError: it is not a folder, or contains no class folders.
    """
    if not folder.is_dir():
        raise DatasetError("The folder of photographs is not there.", where=str(folder))
    classes = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    if not classes:
        raise _unfit(folder, "it holds no class folders, such as FOLDER/crab/1.jpg")
    return classes


def read_photographs(folder: Path, kinds: Sequence[Kind], *, seed: int) -> Photographs:
    """Decode and hash all photographs of the kinds, and divide them into pools.

    Args:
        folder: folder with a class folder per kind, named by its code.
        kinds: the kinds to show by photographs.
        seed: determines the pool of each photograph.

    Raises:
        DatasetError: a kind has too few photographs; or a photograph is damaged, too small, outside the folder, or a
            duplicate of another file. The message names the file.
    """
    classes, seen = class_folders(folder), dict[str, Path]()
    pools: dict[Pool, dict[str, tuple[Path, ...]]] = {pool: {} for pool in SHARES}
    hashes: dict[Pool, list[str]] = {pool: [] for pool in SHARES}
    for kind in kinds:
        files = sorted(path for path in classes[kind.code].iterdir() if path.suffix.lower() in _SUFFIXES)
        if len(files) < LEAST_PHOTOGRAPHS:
            raise _unfit(
                classes[kind.code], f"{len(files)} photographs, and a kind needs at least {LEAST_PHOTOGRAPHS}"
            )
        digests = {path: _checked(path, folder, seen) for path in files}
        shuffled = Draws(seed, "photographs", kind.code).shuffled(files)
        share = 0
        for pool, percent in SHARES.items():
            start, share = share, share + percent
            pools[pool][kind.code] = tuple(shuffled[len(files) * start // 100 : len(files) * share // 100])
            hashes[pool] += [f"{kind.code}/{digests[path]}" for path in pools[pool][kind.code]]
    return Photographs(
        pools=pools,
        digests={pool: hashlib.sha256("\n".join(of_pool).encode()).hexdigest() for pool, of_pool in hashes.items()},
    )


def _checked(path: Path, folder: Path, seen: dict[str, Path]) -> str:
    """Decode a photograph and return the SHA-256 of its content; refuse a duplicate of one in `seen`."""
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        raise _unfit(path, "it is a link, whose target may change or be outside the folder")
    try:
        picture = read_rgb(path)
    except DatasetError as error:
        raise _unfit(path, error.why) from None
    if min(picture.size) < LEAST_SIDE:
        raise _unfit(path, f"{picture.width} x {picture.height} pixels, and both sides need at least {LEAST_SIDE}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if (first := seen.setdefault(digest, path)) != path:
        raise _unfit(path, f"the same photograph as {first}: pools would share it")
    return digest


def _unfit(path: Path, why: str) -> DatasetError:
    return DatasetError("The photographs cannot be used.", where=str(path), why=why)


def draw_crop(draws: Draws) -> Crop:
    """Draw the crop of a photograph."""
    return draws.pick(_CROPS), draws.pick(_CROPS), draws.between(0, 256), draws.between(0, 256)


def cropped(path: Path, crop: Crop) -> Sprite:
    """Return a crop of a photograph as a sprite."""
    picture = _photograph(path)
    height, width = picture.shape[:2]
    part_width, part_height = width * crop[0] // 256, height * crop[1] // 256
    left, top = (width - part_width) * crop[2] // 256, (height - part_height) * crop[3] // 256
    part = picture[top : top + part_height, left : left + part_width]
    return np.concatenate([part, np.full((*part.shape[:2], 1), 255, dtype=np.uint8)], axis=2)


# The photographs of a kind are used repeatedly; 64 of 300 x 200 take 12 MB.
@functools.lru_cache(maxsize=64)
def _photograph(path: Path) -> Sprite:
    picture = read_rgb(path)
    if max(picture.size) > _LONGEST:
        picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
    return np.asarray(picture)


_LONGEST: Final = 384
"""Maximum pixels of a photograph's longer side; larger ones are scaled down before cropping, as 72 are shown."""
