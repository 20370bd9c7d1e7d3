"""What the features of the real benchmarks take on disk, by teachers and options: the store's own arithmetic.

The arithmetic is checked against caches of VCR-like texts, which also tell what the selected ones save. Numbers of
items and pictures are the official ones; what else is assumed is said below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.configuration import build_config
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.estimate import stored_bytes
from advl_pipeline.extraction.run import extract
from advl_pipeline.teachers.catalogue import TeacherCard
from advl_pipeline.teachers.registry import card_of
from benchmarks.extraction import Inputs, vcr_like_texts
from benchmarks.rows import Row

_PAIRS = (("clip-vit-l", "roberta-l"), ("clip-vit-b", "roberta-b"), ("efficientnet-lite0", "minilm-l6"))
_GRID_SIDE = 12
_SHARD_ROWS = 32768
_OPTIONS: dict[str, dict[str, Any]] = {
    "float16": {},
    "int8": {"dtype": "int8"},
    "int8 and 30 % of the words": {"dtype": "int8", "select_tokens": 0.3},
}
_RECOMMENDED = ("vcr", _PAIRS[0])


@dataclass(frozen=True, kw_only=True)
class Split:
    """The labelled splits of a dataset: their names, texts per item, mean tokens of a text, boxes of a picture.

    0 boxes is a grid. Texts count as if none occurred twice.
    """

    names: tuple[str, str]
    texts_per_item: int
    mean_tokens: float
    mean_boxes: int


def measure_disk(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    inputs = Inputs("disk", listed=vcr_like_texts(2_000 if quick else 4_000))
    sizes, mean_tokens = _sample(folder, inputs)
    splits = {
        "vcr": Split(names=("train", "val"), texts_per_item=8, mean_tokens=mean_tokens, mean_boxes=9),
        "vqa-v2": Split(names=("train", "val"), texts_per_item=1, mean_tokens=8.0, mean_boxes=0),
        "snli-ve": Split(names=("train", "val"), texts_per_item=1, mean_tokens=9.0, mean_boxes=0),
    }
    errors = [abs(sizes[name] / _text_bytes(inputs, mean_tokens, name) - 1.0) for name in ("float16", "int8")]
    rows = [
        Row(
            name="bytes on disk of a sample, largest error of the arithmetic",
            value=max(errors),
            goal=0.05,
            at_least=False,
            detail=", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()),
        )
    ]
    for dataset, split in splits.items():
        for pair in _PAIRS:
            of_pictures, of_texts = _pair_bytes(dataset, split, pair, "float16")
            said = [f"float16 {(of_pictures + of_texts) / 1e9:.0f}"]
            of_pictures, of_texts = _pair_bytes(dataset, split, pair, "int8")
            # Words are selected of texts alone.
            said += [
                f"{name} {(of_texts * sizes[name] / sizes['int8'] + of_pictures) / 1e9:.0f}"
                for name in list(_OPTIONS)[2:]
            ]
            rows.append(
                Row(
                    name=f"{dataset}, {' and '.join(pair)}, int8, GB",
                    value=(of_pictures + of_texts) / 1e9,
                    goal=100.0 if (dataset, pair) == _RECOMMENDED else None,
                    at_least=False,
                    detail=", ".join(said),
                )
            )
    return rows


def _sample(folder: Path, inputs: Inputs) -> tuple[dict[str, float], float]:
    """Extract texts under each option; returns bytes of what lies in each folder, and the mean tokens of a text."""
    from advl_pipeline.teachers.registry import open_teacher

    teacher = open_teacher("minilm-l6")
    sizes = {}
    for name, options in _OPTIONS.items():
        settings = {"teacher": "bench", "dataset": inputs.name, "output": folder / name, "confidence": False}
        extract(build_config(ExtractConfig, {**settings, "modality": "text", **options}), teacher, inputs)
        sizes[name] = float(
            sum(path.stat().st_size for path in (folder / name / "text").rglob("*") if path.is_file())
        )
    store = open_cache(folder / "float16").stores()["text"]
    return sizes, float(np.mean(store.token_lengths(list(store.ids))))


def _card(name: str) -> TeacherCard:
    card = card_of(name)
    assert card is not None
    return card


def _text_bytes(inputs: Inputs, mean_tokens: float, stored: Any) -> int:
    card, count = _card("minilm-l6"), len(inputs.text_units())
    return _bytes("text", count * mean_tokens, count, stored, card.token_dim, card.text_dim)


def _pair_bytes(dataset: str, split: Split, pair: tuple[str, str], stored: StoredDtype) -> tuple[int, int]:
    """Return the bytes of pictures and of texts."""
    facts = [load_card(dataset).split(name) for name in split.names]
    num_pictures = sum(int(fact["pictures"]) for fact in facts)
    num_texts = sum(int(fact["items"]) for fact in facts) * split.texts_per_item
    seen, read = (_card(name) for name in pair)
    cells = min(seen.grid_shape[0], _GRID_SIDE) * min(seen.grid_shape[1], _GRID_SIDE)
    # A box's feature is a global feature of its cut-out.
    rows, width = (split.mean_boxes, seen.image_dim) if split.mean_boxes else (cells, seen.grid_dim)
    of_pictures = _bytes("image", num_pictures * rows, num_pictures, stored, width, seen.image_dim)
    of_texts = _bytes("text", num_texts * split.mean_tokens, num_texts, stored, read.token_dim, read.text_dim)
    return of_pictures, of_texts


def _bytes(modality: str, rows: float, units: int, stored: StoredDtype, token_dim: int, global_dim: int) -> int:
    return stored_bytes(modality, round(rows), units, stored, token_dim, global_dim, shard_rows=_SHARD_ROWS)
