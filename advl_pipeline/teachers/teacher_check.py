"""Check of a teacher: does it load, match its card, depend on the batch, fit float16, and how fast is it?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advl_pipeline.cache.quantise import FLOAT16_MAX
from advl_pipeline.datasets.pictures import unit_of
from advl_pipeline.datasets.records import text_unit
from advl_pipeline.teachers.interface import ImageTower, PreparedUnit, Tower, unknown_texts
from advl_pipeline.teachers.open_options import CheckTeacherConfig
from advl_pipeline.teachers.registry import card_of, open_teacher

BATCH_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest difference between a unit alone and in a batch, relative to the largest value, attributed to rounding."""

TEXTS = (
    "Why is the dog holding an umbrella?",
    "yes",
    "Two people sit at a table near the window and read the news, because it is raining and nobody wants to go out.",
    "A naïve café owner's e-mail [SEP] half-empty glasses, 3 of them!",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerCheck:
    """The check of one tower of a teacher; `problems` is empty if it passes.

    `batch_difference` is relative to the largest value. `units_per_second` counts pictures with two boxes, or texts,
    on this machine, without the first batch.
    """

    modality: str
    global_dim: int
    token_dim: int
    parameters: str
    largest_value: float
    batch_difference: float
    units_per_second: float
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCheck:
    """The check of a teacher, which is good if no tower has a problem."""

    name: str
    aligned: bool
    towers: tuple[TowerCheck, ...]
    is_good: bool


def run_check_teacher(config: CheckTeacherConfig) -> TeacherCheck:
    """Open a teacher, and encode a few synthetic pictures and texts.

    Raises:
        ConfigError: as `open_teacher`.
        WeightsUnavailable: as `open_teacher`.
    """
    teacher = open_teacher(
        config.name,
        weights=config.weights,
        device=config.device,
        image_tokens=config.image_tokens,
        dtype=config.compute_dtype,
    )
    card = card_of(config.name)
    tolerance = BATCH_TOLERANCE[config.compute_dtype]
    towers: list[TowerCheck] = []
    if teacher.image is not None:
        from_grid = config.image_tokens == "grid"
        expected = (card.image_dim, card.grid_dim if from_grid else card.image_dim) if card else None
        towers.append(_try("image", teacher.image, _pictures(teacher.image), expected, tolerance))
    if teacher.text is not None:
        expected = (card.text_dim, card.token_dim) if card else None
        texts = teacher.text.prepare([text_unit(text) for text in TEXTS])
        towers.append(_try("text", teacher.text, texts, expected, tolerance))
    return TeacherCheck(
        name=config.name,
        aligned=teacher.aligned,
        towers=tuple(towers),
        is_good=not any(tower.problems for tower in towers),
    )


def _try(
    modality: str,
    tower: Tower,
    prepared: Sequence[PreparedUnit],
    expected: tuple[int, int] | None,
    tolerance: float,
) -> TowerCheck:
    tower.encode(prepared)
    began = time.perf_counter()
    together = tower.encode(prepared).on_cpu()
    seconds = time.perf_counter() - began
    alone = tower.encode(prepared[:1]).on_cpu()
    values = [together.global_ND, *together.token_values]
    largest = max(float(value.abs().max()) for value in values if value.numel())
    differences = [(alone.global_ND[0] - together.global_ND[0]).abs().max()]
    if alone.token_values[0].numel():
        differences.append((alone.token_values[0] - together.token_values[0]).abs().max())
    difference = max(float(value) for value in differences) / max(largest, 1e-12)
    problems: list[str] = []
    if not all(bool(torch.isfinite(value).all()) for value in values):
        problems.append("some features are not finite")
    if largest > FLOAT16_MAX:
        problems.append(f"the largest value, {largest:.3g}, is beyond float16 and would be clipped; store as float32")
    if difference > tolerance:
        problems.append(f"a unit's features change with its batch, by {difference:.2e} of the largest value")
    if [len(value) for value in together.token_values] != [unit.num_tokens for unit in prepared]:
        problems.append("units have other numbers of token rows than announced")
    if unknown := unknown_texts(sum(not unit.is_known for unit in prepared), len(prepared)):
        problems.append(unknown)
    if expected is not None and expected != (tower.global_dim, tower.token_dim):
        problems.append(
            f"widths are {tower.global_dim} and {tower.token_dim}, known are {expected[0]} and {expected[1]}"
        )
    return TowerCheck(
        modality=modality,
        global_dim=tower.global_dim,
        token_dim=tower.token_dim,
        parameters=str(tower.describe().get("parameters", "")),
        largest_value=largest,
        batch_difference=difference,
        units_per_second=len(prepared) / seconds,
        problems=tuple(problems),
    )


def _pictures(tower: ImageTower) -> list[PreparedUnit]:
    generator = np.random.default_rng(0)
    prepared: list[PreparedUnit] = []
    boxes = [[10, 10, 90, 120], [60, 40, 190, 140]]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            path = Path(folder) / f"{number}.png"
            coarse.resize((200, 150), Image.Resampling.BICUBIC).save(path)
            prepared.append(tower.prepare(unit_of(path, path.name, boxes)))
    return prepared
