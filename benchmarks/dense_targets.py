"""What dense targets cost, per picture, in processor time of one thread, beside the training step of ViLT.

python -m benchmarks.dense_targets

Averaging is compared with the dense matrix product that it replaces. Pictures have three common sizes of COCO; the
teacher sees a central crop. Shapes: B pictures, R visual tokens, M cells, D teacher width, H student width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import ViltModel

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, text_unit
from advl_pipeline.distillation.distance import distance
from advl_pipeline.distillation.relational import related_vision
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import VisionSignal
from advl_pipeline.geometry import Framing, grid_rectangles
from advl_pipeline.students.interface import StudentBatch, StudentOutput
from advl_pipeline.students.vilt import ViltConfig, vilt_config
from advl_pipeline.training.vision_signals import TeacherGrid, grid_targets

SIZES = ((640, 480), (480, 640), (640, 427))
CASES = (
    ("ViLT, 12 x 12, from 12 x 12 x 1024", 12, 12, 1024, 16),
    ("ViLT, 12 x 12, from 16 x 16 x 1024", 12, 16, 1024, 16),
    ("METER, 24 x 24, from 24 x 24 x 1024", 24, 24, 1024, 8),
    ("CLIP-ViL, 12 x 12, from 7 x 7 x 1280", 12, 7, 1280, 16),
)
HIDDEN = 768


@dataclass(frozen=True, kw_only=True)
class DenseCosts:
    """Milliseconds per picture: averaging, the same as a dense product, and each loss with its backward pass."""

    averaging: float
    dense_product: float
    relational: float
    mse: float
    share_with_target: float


def measure_dense_targets(side: int, cells: int, width: int, num_pictures: int, *, rounds: int) -> DenseCosts:
    """Measure one student's square grid of `side` under a teacher's of `cells`, `width` wide."""
    examples = [_example(number) for number in range(num_pictures)]
    batch = _batch(side, num_pictures)
    framing = Framing(height=224, width=224, short_edge=224, crop_rounding="down")
    grid = TeacherGrid(rows=cells, columns=cells, framing=framing)
    rows_MD = torch.randn(num_pictures * cells * cells, width)
    found = grid_targets(grid, rows_MD, examples, batch)
    weights_BRM = torch.rand(num_pictures, side * side, cells * cells)
    states_BRH = torch.randn(num_pictures, side * side, HIDDEN, requires_grad=True)
    output = StudentOutput(
        text_states_NLH=states_BRH[:, :1], visual_states_NRH=states_BRH, pooled_NP=states_BRH[:, 0]
    )
    signal = VisionSignal(
        global_BD=torch.randn(num_pictures, width), regions_BSD=found.regions_BSD, region_mask_BS=found.region_mask_BS
    )
    projection = torch.nn.Linear(HIDDEN, width)

    def relational() -> None:
        generator = torch.Generator().manual_seed(0)
        pictures_B = torch.arange(num_pictures)
        settings = DistillationSettings()
        loss_B = related_vision(settings, "regions", output, batch, signal, pictures_B, generator=generator)
        loss_B.mean().backward()  # type: ignore[no-untyped-call]

    def coordinates() -> None:
        distance(projection(states_BRH), found.regions_BSD, "mse").mean().backward()  # type: ignore[no-untyped-call]

    def cost(part: Callable[[], object]) -> float:
        return 1000.0 * _median_seconds(part, rounds) / num_pictures

    return DenseCosts(
        averaging=cost(lambda: grid_targets(grid, rows_MD, examples, batch)),
        dense_product=cost(lambda: torch.bmm(weights_BRM, rows_MD.view(num_pictures, cells * cells, width))),
        relational=cost(relational),
        mse=cost(coordinates),
        share_with_target=float(found.region_mask_BS.float().mean()),
    )


def vilt_step(*, rounds: int) -> float:
    """Return milliseconds per picture of ViLT-B/32's forward and backward pass, 20 words."""
    model = ViltModel(vilt_config(ViltConfig()))
    words, pixels = torch.randint(1000, 30000, (2, 20)), torch.randn(2, 3, 384, 384)

    def step() -> None:
        model(input_ids=words, pixel_values=pixels).last_hidden_state.square().mean().backward()

    return 1000.0 * _median_seconds(step, rounds) / 2


def _median_seconds(part: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        part()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def _example(number: int) -> Example:
    width, height = SIZES[number % len(SIZES)]
    unit = ImageUnit(
        unit_id=str(number),
        path=Path("absent.jpg"),
        width=width,
        height=height,
        boxes_R4=np.zeros((0, 4), np.float32),
    )
    candidates = (Candidate(text_unit=text_unit("what")),)
    return Example(example_id=str(number), task="vqa", image=unit, candidates=candidates, label=0)


def _batch(side: int, num_pictures: int) -> StudentBatch:
    ones = torch.ones(num_pictures, 1, dtype=torch.int64)
    return StudentBatch(
        num_candidates=(1,) * num_pictures,
        token_ids_NL=ones,
        token_mask_NL=ones.bool(),
        char_spans_NL2=ones[..., None].expand(-1, -1, 2),
        visual_mask_NR=ones.bool().expand(-1, side * side),
        box_index_NR=-ones.expand(-1, side * side),
        places_BR4=torch.from_numpy(grid_rectangles(side, side)).expand(num_pictures, -1, -1),
    )


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    print("| student and grid | averaging | as a dense product | relational | mse | places with a target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, side, cells, width, num_pictures in CASES:
        found = measure_dense_targets(side, cells, width, num_pictures, rounds=7)
        print(
            f"| {name} | {found.averaging:.2f} ms | {found.dense_product:.2f} ms | {found.relational:.1f} ms | "
            f"{found.mse:.1f} ms | {found.share_with_target:.0%} |"
        )
    print(f"\nViLT-B/32, forward and backward: {vilt_step(rounds=3):.0f} ms per picture.")


if __name__ == "__main__":
    main()
