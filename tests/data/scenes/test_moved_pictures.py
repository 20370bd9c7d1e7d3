"""Moved pictures of the pretraining: boxes go where the pixels go, and what is out of sight is spoken of no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advl_data.scenes.moved_pictures import MIN_SEEN, Move, MovedPictures, draw_moves, moved_example
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, ObjectTag, text_unit

STAY = Move(scale=(1.0, 1.0), shift=(0.0, 0.0))
SIDE = 112


@pytest.fixture
def caption(tmp_path: Path) -> Example:
    """A wide blue picture with a red thing and a green one, and a caption of both."""
    pixels = np.zeros((120, 240, 3), np.uint8)
    pixels[:] = (0, 0, 200)
    pixels[40:90, 60:110] = (200, 0, 0)
    pixels[10:40, 180:230] = (0, 200, 0)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    boxes_R4 = np.array([[60, 40, 110, 90], [180, 10, 230, 40]], np.float32)
    return Example(
        example_id="0",
        task="captions",
        image=ImageUnit(unit_id="picture", path=path, width=240, height=120, boxes_R4=boxes_R4),
        candidates=(
            Candidate(
                text_unit=text_unit("a cat and a dog"),
                tags=(ObjectTag(start=2, end=5, box=0), ObjectTag(start=12, end=15, box=1)),
            ),
        ),
        label=None,
    )


def test_a_box_goes_where_its_pixels_go(caption: Example) -> None:
    pictures = MovedPictures(SIDE)
    num_tags = []
    for move in draw_moves(60, 0.25, torch.Generator().manual_seed(0)):
        moved = moved_example(caption, move)
        pixels_3SS = pictures.pictures([moved.image])[0].float()
        num_tags.append(len(moved.candidates[0].tags))
        for tag in moved.candidates[0].tags:
            box_4 = moved.image.boxes_R4[tag.box] * SIDE / np.array([240, 120, 240, 120])
            x1, y1, x2, y2 = (box_4 + np.array([2, 2, -2, -2])).round().astype(int)
            inside_3 = pixels_3SS[:, y1:y2, x1:x2].mean((1, 2))
            assert int(inside_3.argmax()) == tag.box
            assert float(inside_3[tag.box]) > 190
    assert set(num_tags) == {1, 2}


def test_a_picture_that_is_not_moved_is_the_decoded_one(caption: Example) -> None:
    pictures = MovedPictures(SIDE)
    (plain,) = pictures.pictures([caption.image])
    (stayed,) = pictures.pictures([moved_example(caption, STAY).image])
    assert torch.equal(plain, stayed)
    assert torch.equal(plain, super(MovedPictures, pictures).pictures([caption.image])[0])
    still, other = pictures.pictures([caption.image, moved_example(caption, replace(STAY, shift=(0.2, 0.0))).image])
    assert torch.equal(still, plain)
    assert not torch.equal(other, plain)


def test_what_is_out_of_sight_is_not_spoken_of(caption: Example) -> None:
    # The right edge moves to the middle of the green thing.
    half_seen = replace(STAY, shift=(-35 / 120, 0.0))
    moved = moved_example(caption, half_seen)
    assert [tag.box for tag in moved.candidates[0].tags] == [0]
    assert moved.candidates[0].text == caption.candidates[0].text
    assert float(moved.image.boxes_R4[1, 2]) == 240
    seen_enough = replace(STAY, shift=(-(10 + 50 * (1 - MIN_SEEN) - 1) / 120, 0.0))
    assert len(moved_example(caption, seen_enough).candidates[0].tags) == 2
    nothing_left = replace(STAY, shift=(1.0, 1.0))
    assert moved_example(caption, nothing_left) is caption


def test_moves_are_drawn_within_their_strength_and_alike_from_one_seed() -> None:
    moves = draw_moves(500, 0.25, torch.Generator().manual_seed(3))
    assert moves == draw_moves(500, 0.25, torch.Generator().manual_seed(3))
    scales, shifts = np.array([move.scale for move in moves]), np.array([move.shift for move in moves])
    largest = 1.25 * (1 + 0.25 / 3)
    assert 1.2 < scales.max() <= largest
    assert 1 / largest <= scales.min() < 1 / 1.2
    assert 0.24 < np.abs(shifts).max() <= 0.25
    assert np.allclose(draw_moves(4, 0.0, torch.Generator().manual_seed(3))[0].scale, 1)
