"""Extraction compared with only the forward passes on the same batches.

The real `minilm-l6` encodes texts; ViT-B/16 with random weights, a network of typical teacher size, encodes pictures
of 500 x 375 pixels.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.base.configuration import build_config
from advl_pipeline.cache.layout import place
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.encode import plan_batches
from advl_pipeline.extraction.run import extract
from advl_pipeline.teachers.interface import PreparedUnit, Teacher
from advl_pipeline.teachers.registry import open_teacher
from benchmarks.made_up import sentence, write_photos, write_rows
from benchmarks.rows import Row, ratio_row

_BATCH_SIZE = 32
_SHARD_ROWS = 32768


def _open_texts(folder: Path, num_questions: int) -> Dataset:
    """Write questions with four answers each, in VCR's lengths; three of ten are repeated with the same answers."""
    generator = np.random.default_rng(0)
    (photo,) = write_photos(folder / "photos", 1, (64, 48))
    rows: list[dict[str, Any]] = []
    for _ in range(num_questions):
        choices = [sentence(generator, 8) for _ in range(4)]
        rows.append({"image": photo, "question": sentence(generator, 7), "choices": choices, "label": 0})
        rows += rows[-1:] if generator.random() < 0.3 else []
    named = ({**row, "id": str(number)} for number, row in enumerate(rows))
    return open_dataset(str(write_rows(folder / "rows.jsonl", named)), split="train")


def measure_extraction(folder: Path, quick: bool) -> list[Row]:
    """Measure the rows of this section."""
    rounds = 2 if quick else 5
    texts = _open_texts(folder / "texts", 80 if quick else 500)
    names = write_photos(folder / "pictures" / "photos", 8 if quick else 96, (500, 375))
    shown = ({"image": photo, "text": "a photo", "label": ("yes", "no")[n % 2]} for n, photo in enumerate(names))
    photos = open_dataset(str(write_rows(folder / "pictures" / "rows.jsonl", shown)), split="train")
    minilm, vit = open_teacher("minilm-l6"), open_teacher("random:timm:vit_base_patch16_224")
    tower: Any = minilm.text
    seen: Any = vit.image
    count = sum(len(texts[index].candidates) for index in range(len(texts)))
    of_texts = _bare(tower, tower.prepare(texts.text_units()))
    of_photos = _bare(seen, list(map(seen.prepare, photos.image_units())))
    rows = []
    for name, number, teacher, dataset, bare in (
        ("texts", count, minilm, texts, of_texts),
        ("pictures", len(photos.image_units()), vit, photos, of_photos),
    ):
        rates: dict[str, list[float]] = {"bare": [], "extract": []}
        extraction = partial(_extract, teacher, dataset, folder / "extract")
        for once in range(rounds + 1):
            for way, run in (("bare", bare), ("extract", extraction)):
                begin = time.perf_counter()
                run()
                if once:  # The first round is warm-up.
                    rates[way].append(number / (time.perf_counter() - begin))
        rates_in_words = ", ".join(f"{way} {statistics.median(rate):.1f}" for way, rate in rates.items())
        detail = f"{rates_in_words} per second, repeated ones counted"
        what = f"extraction of {name}: share of the bare forward passes"
        rows.append(ratio_row(what, rates["extract"], rates["bare"], goal=0.95, detail=detail))
    return rows


def _bare(tower: Any, prepared: Sequence[PreparedUnit]) -> Callable[[], None]:
    """Return a function that runs only the forward passes, on prepared batches composed as in the extraction."""
    lengths_N = np.array([item.num_tokens for item in prepared], np.int32)
    placement = place(lengths_N, shard_rows=_SHARD_ROWS)
    batches = [
        [prepared[unit] for unit in batch]
        for shard in range(placement.num_shards)
        for batch in plan_batches(placement.units_of(shard), lengths_N, batch_size=_BATCH_SIZE)
    ]

    def run() -> None:
        for batch in batches:
            tower.encode(batch)

    return run


def _extract(teacher: Teacher, dataset: Dataset, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    sizes = {"batch_size": _BATCH_SIZE, "shard_rows": _SHARD_ROWS, "confidence": "none"}
    modality = {"modality": "image" if teacher.text is None else "text"}
    settings = {"teacher": "bench", "dataset": "bench", "output": target, **sizes, **modality}
    extract(build_config(ExtractConfig, settings), teacher, dataset)
