"""Synthetic data: questions about photos in the own-data format, and mirrors of VCR, VQA v2 and SNLI-VE.

Texts have VCR's lengths, and pictures decode like photos. The mirrors are those of the tests
(`tests/support/dataset_mirrors.py`), with as many items as the official downloads.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from advl_pipeline.datasets.cards import load_card

SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"
_ANSWERS = tuple(f"answer {number}" for number in range(3_200))
_WORDS = (
    "why is person1 looking at the person2 because she wants to leave a party before it gets too late and he is "
    "worried about what will happen next in this small room with many old books on their shelves near window"
).split()


def sentence(generator: np.random.Generator, mean: int) -> str:
    """Return a random sentence with a VCR-like number of words around the mean."""
    length = int(np.clip(generator.gamma(5.0, mean / 5.0), 2, 50))
    return " ".join(generator.choice(_WORDS, length).tolist())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows of a training split; returns the file, which names the dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"split": "train", **row}) + "\n" for row in rows), encoding="utf-8")
    return path


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write JPEG files of coarse shapes with fine grain, which compress like photos; returns their names."""
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


def write_mirror(name: str, root: Path, *, share: float, held_out: int) -> None:
    """Write a dataset's training split at a fraction `share` of its official size, and a small split to predict.

    Args:
        name: vcr, vqa-v2 or snli-ve.
        root: folder of the datasets.
        share: 1 for the official number of items.
        held_out: number of items of the split to predict.
    """
    sys.path.insert(0, str(SUPPORT))
    mirrors = importlib.import_module("dataset_mirrors")
    items = round(load_card(name).split("train")["items"] * share)
    if name == "vqa-v2":
        for split, count in (("train", items), ("val", held_out)):
            mirrors.write_vqa(root, split=split, count=count, answers=_ANSWERS)
    elif name == "snli-ve":
        for split, count in (("train", items), ("test", held_out)):
            mirrors.write_snli_ve(root, name=split, count=count)
    else:
        rng = random.Random(0)
        for split, count in (("train", items), ("val", held_out)):
            records = (mirrors.vcr_record(number, split=split) | _texts(rng) for number in range(count))
            mirrors.write_vcr(root, records, split=split)


def _texts(rng: random.Random) -> dict[str, Any]:
    """Return a question of 7 words with answers of 8 and rationales of 16 on average, each with a tag."""

    def sentence(mean: int) -> list[Any]:
        words: list[Any] = rng.choices(_WORDS, k=max(2, int(rng.gauss(mean, mean / 3))))
        words[rng.randrange(len(words))] = [rng.randrange(4)]
        return [*words, "."]

    answers, rationales = ([sentence(mean) for _ in range(4)] for mean in (8, 16))
    return {"question": ["Why", "is", [1], *sentence(4)], "answer_choices": answers, "rationale_choices": rationales}
