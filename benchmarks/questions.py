"""Questions about photos, as data of one's own: texts of VCR's lengths, and pictures that decode as photos do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

_WORDS = (
    "why is person1 looking at the person2 because she wants to leave a party before it gets too late and he is "
    "worried about what will happen next in this small room with many old books on their shelves near window"
).split()


def sentence(generator: np.random.Generator, mean: int) -> str:
    """Return words as many as the sentences of VCR have, around the mean."""
    length = int(np.clip(generator.gamma(5.0, mean / 5.0), 2, 50))
    return " ".join(generator.choice(_WORDS, length).tolist())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows of a training split; returns the file, by which a dataset of one's own is called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"split": "train", **row}) + "\n" for row in rows), encoding="utf-8")
    return path


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write JPEG files of coarse shapes under fine grain, which compress as photos do; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{folder.name}/{number}.jpg" for number in range(count)]
    generator = np.random.default_rng(0)
    for name in names:
        coarse = Image.fromarray(generator.integers(0, 256, (18, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + generator.normal(0, 12, (size[1], size[0], 1)), 0, 255)
        drawn = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
        drawn.save(folder.parent / name, quality=90)
    return names
