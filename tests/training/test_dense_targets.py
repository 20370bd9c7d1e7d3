"""A teacher's grid meets the student's tokens at the right places, whatever either does to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held_features import HeldFeatures
from PIL import Image
from torch import nn

from advl_pipeline.base.geometry import grid_rectangles
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, text_unit
from advl_pipeline.datasets.words import fit_word_prior
from advl_pipeline.distillation.signal import VisionSignal
from advl_pipeline.students.interface import StudentBatch
from advl_pipeline.students.registry import build_student
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.vision_backbone import ImageFeatures, PixelSettings, VisionBackbone
from advl_pipeline.training.signals.averages import TeacherGrid
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import TeacherFeatures

CELL = 8
FRAMINGS = {
    "squash": {},
    "crop": {"short_edge": 64},
    "tight crop": {"short_edge": 80, "crop_rounding": "down"},
}
NO_BOXES = np.zeros((0, 4), np.float32)


class MeanColours(VisionBackbone):
    """A frozen network whose cells are the mean colours of the pixels under them."""

    def __init__(self, settings: PixelSettings) -> None:
        super().__init__(
            nn.AvgPool2d(CELL), settings=settings, description={}, device=torch.device("cpu"), dtype=torch.float32
        )

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        grid_NhwD = self.network(pixels_NCHW).permute(0, 2, 3, 1)
        return ImageFeatures(global_ND=grid_NhwD.mean(dim=(1, 2)), grid_NhwD=grid_NhwD)


def coordinates(folder: Path, size: tuple[int, int], boxes_R4: Any = NO_BOXES) -> Example:
    """A question on a picture whose red is the place from the left, and whose green is the place from the top."""
    width, height = size
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    path = folder / f"{width}x{height}.png"
    colours = np.stack([255 * x, 255 * y, np.zeros_like(x)], axis=2)
    Image.fromarray(colours.round().astype(np.uint8)).save(path)
    unit = ImageUnit(unit_id=path.name, path=path, width=width, height=height, boxes_R4=boxes_R4)
    return Example(
        example_id=path.name,
        task="vqa",
        image=unit,
        candidates=(Candidate(text_unit=text_unit("What is it?")),),
        label=0,
    )


def seen(
    student_name: str, examples: Sequence[Example], *, kind: str = "grid", side: int | None = None, **framing: Any
) -> tuple[VisionSignal, StudentBatch, PixelSettings]:
    """What the loss sees of the colours, and the student's batch."""
    settings = PixelSettings(
        height=64, width=64, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3, **framing
    )
    tower = PixelImageTower(MeanColours(settings), kind, side)  # type: ignore[arg-type]
    units = [example.image for example in examples]
    encoded = tower.encode([tower.prepare(unit) for unit in units])
    names = [unit.unit_id for unit in units]
    rows, tokens = (dict(zip(names, values, strict=True)) for values in (encoded.global_ND, encoded.token_values))
    teacher = TeacherFeatures(
        name="colours",
        image=HeldFeatures(rows, tokens, moments=(0.0, 1.0)),  # type: ignore[arg-type]
        text=None,
        image_places=TeacherGrid.of_description(tower.describe()) if kind == "grid" else "boxes",
        aligned=False,
    )
    student = build_student(student_name)
    batch = student.collate(examples)
    source = SignalSource([teacher], prior=fit_word_prior(["What is it?"]))
    signal = source.signal(examples, batch, with_confidence=False, places=student.places)
    return signal.vision["colours"], batch, settings


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("name", ["vilt-tiny", "clip-vil-tiny", "modernvbert-tiny", "meter-tiny"])
def test_patches_get_the_colour_of_their_own_place(name: str, framing: dict[str, Any], tmp_path: Path) -> None:
    """To half a cell of the teacher; exactly, to rounding, where a patch is made of whole cells."""
    examples = [coordinates(tmp_path, size) for size in ((160, 160), (200, 100), (120, 180))]
    signal, batch, settings = seen(name, examples, **framing)
    assert signal.regions_BSD is not None
    assert signal.shares_BSR is None
    assert not signal.region_mask_BS[batch.places_BR4.isnan().any(2)].any()
    assert signal.region_mask_BS.any()
    for example, places_R4, found_RD, mask_R in zip(
        examples, batch.places_BR4, signal.regions_BSD, signal.region_mask_BS, strict=True
    ):
        window = torch.tensor(settings.window(example.image.width, example.image.height))
        shown_R4 = torch.cat(
            [torch.maximum(places_R4[:, :2], window[:2]), torch.minimum(places_R4[:, 2:], window[2:])], 1
        )
        centre_R2 = shown_R4.view(-1, 2, 2).mean(1)
        half_cell = (window[2:] - window[:2]) * CELL / 64 / 2
        error_R2 = (found_RD[:, :2] - centre_R2).abs()[mask_R]
        assert (error_R2 <= half_cell + 0.02).all()
        if "short_edge" not in framing or (
            example.image.width == example.image.height and framing["short_edge"] == 64
        ):
            # Four by four or two by two patches over eight by eight cells.
            assert mask_R[~places_R4.isnan().any(1)].all()
            assert error_R2.max() < 0.01


@pytest.mark.parametrize(("side", "kept"), [(4, 4), (3, 3), (8, 8), (12, 8)])
def test_a_grid_that_is_stored_smaller_lies_where_it_lay(side: int, kept: int, tmp_path: Path) -> None:
    """Eight by eight cells, averaged to fewer by area before they are stored."""
    example = coordinates(tmp_path, (150, 90))
    signal, batch, settings = seen("vilt-tiny", [example], side=side, **FRAMINGS["squash"])
    tower = PixelImageTower(MeanColours(settings), "grid", side)
    assert tower.num_tokens(example.image) == kept * kept
    assert tower.describe()["tokens"]["grid"] == [kept, kept]
    (cells_TD,) = tower.encode([tower.prepare(example.image)]).token_values
    centres = torch.from_numpy(grid_rectangles(kept, kept)).view(-1, 2, 2).mean(1)
    torch.testing.assert_close(cells_TD[:, :2], centres, atol=0.01, rtol=0)
    error = (signal.regions_BSD[0, 1:, :2] - batch.places_BR4[0, 1:].view(-1, 2, 2).mean(1)).abs()
    assert error.max() < 0.5 / kept


def test_a_detectors_boxes_are_averaged_from_the_grid(tmp_path: Path) -> None:
    boxes = np.array([[20, 10, 100, 90], [0, 0, 200, 100], [2, 2, 30, 98], [90, 40, 110, 60]], np.float32)
    examples = [coordinates(tmp_path, (200, 100), boxes), coordinates(tmp_path, (90, 90), boxes[:1] * 0.9)]
    signal, _, _ = seen("uniter-tiny", examples, **FRAMINGS["crop"])
    # The whole picture first; the teacher sees the middle half of the wide one: the third box lies outside.
    assert signal.region_mask_BS.tolist() == [[False, True, True, False, True], [False, True, False, False, False]]
    expected = torch.tensor([[0.375, 0.5], [0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(signal.regions_BSD[0, [1, 2, 4], :2], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(signal.regions_BSD[1, 1, :2], torch.tensor([0.6, 0.5]), atol=0.02, rtol=0)


def test_patches_under_a_box_stand_for_it(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 80, 50], [70, 0, 110, 100]], np.float32)
    examples = [coordinates(tmp_path, (160, 100), boxes), coordinates(tmp_path, (64, 64))]
    signal, _, _ = seen("vilt-tiny", examples, kind="boxes", **FRAMINGS["crop"])
    assert signal.region_mask_BS.tolist() == [[True, True], [False, False]]
    assert signal.shares_BSR.sum(2).tolist() == [[pytest.approx(1.0), pytest.approx(1.0)], [0.0, 0.0]]
    grid_SRC = signal.shares_BSR[0, :, 1:].view(2, 4, 4)
    quarter = torch.zeros(4, 4)
    quarter[:2, :2] = 0.25
    torch.testing.assert_close(grid_SRC[0], quarter)
    # The second box lies over a quarter of the second column and three quarters of the third.
    torch.testing.assert_close(grid_SRC[1].sum(0), torch.tensor([0.0, 0.25, 0.75, 0.0]))


def test_a_cache_that_does_not_say_where_its_rows_lie_has_no_grid() -> None:
    assert TeacherGrid.of_description({"kind": "imported features"}) is None
    assert (
        TeacherGrid.of_description({"tokens": {"kind": "boxes"}, "pixels": {"size": [8, 8], "fit": "squash"}}) is None
    )
