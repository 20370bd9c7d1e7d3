"""Drawing: whole-number arithmetic, so pixels can be pinned; boxes tight around what is visible."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.placement import PICTURE_SIDE, SIZES, TILTS, Spot
from advl_pipeline.datasets.scenes.render import background, draw_scene, scaled, turned
from advl_pipeline.datasets.scenes.scene import Thing
from advl_pipeline.datasets.scenes.vocabulary import load_vocabulary

KINDS = load_vocabulary().labelled
PINNED_BACKGROUND = "e74cd2ff9c7bac868c99ac5a7f0d1130edcf1bc5030b8efd340c8bf74e2b1096"
PINNED_STAMPS = "c0a1a104eb67511a57359a7e1d8b7d101ac47f9803964b4690ed399c4b9896b9"


def test_background_is_pinned_pale_and_soft() -> None:
    picture = background(Draws("background"))
    assert picture.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert picture.min() >= 150
    steps = np.abs(np.diff(picture.astype(int), axis=0)).max(), np.abs(np.diff(picture.astype(int), axis=1)).max()
    assert max(steps) <= 2
    assert np.ptp(picture.astype(int)[..., 0]) > 2
    assert hashlib.sha256(picture.tobytes()).hexdigest() == PINNED_BACKGROUND


def test_stamps_are_pinned() -> None:
    """The pixels of style A depend on PNG files and whole numbers alone: equal on every machine."""
    state = hashlib.sha256()
    for kind in KINDS[:12]:
        for size, tilt in ((SIZES[0], TILTS[0]), (SIZES[3], 0), (SIZES[-1], TILTS[-1])):
            stamp = turned(kind, "twemoji", size, tilt)
            state.update(stamp.pixels.tobytes() + repr((stamp.corner, stamp.box)).encode())
    assert state.hexdigest() == PINNED_STAMPS


@pytest.mark.parametrize("size", SIZES)
def test_an_upright_thing_has_the_size_asked_for(size: int) -> None:
    for kind in KINDS[:20]:
        x1, y1, x2, y2 = turned(kind, "twemoji", size, 0).box
        assert size - 2 <= max(x2 - x1, y2 - y1) <= size
        # Centred, to a pixel or two.
        assert abs(x1 + x2) <= 3
        assert abs(y1 + y2) <= 3


def test_turning_is_clockwise() -> None:
    door = next(kind for kind in KINDS if kind.name == "door")
    pixels = turned(door, "twemoji", SIZES[-1], TILTS[-1]).pixels
    top, bottom = pixels[2, :, 3].nonzero()[0].mean(), pixels[-3, :, 3].nonzero()[0].mean()
    assert top > bottom + 5


@pytest.mark.parametrize("tilt", TILTS)
def test_a_turned_thing_stays_within_its_reach(tilt: int) -> None:
    for size in SIZES:
        reach = Spot(centre=(0, 0), size=size, tilt=tilt).reach
        for kind in KINDS[::15]:
            stamp = turned(kind, "openmoji", size, tilt)
            height, width = stamp.pixels.shape[:2]
            left, top = stamp.corner
            assert min(left, top) >= -reach
            assert max(left + width, top + height) <= reach


def test_scaling_keeps_flat_colours_and_shares() -> None:
    flat = np.full((70, 35, 4), 200, dtype=np.uint8)
    assert (scaled(flat, 48) == 200).all()
    assert scaled(flat, 48).shape == (48, 24, 4)
    half = flat.copy()
    half[:35] = 0
    assert abs(scaled(half, 48).astype(float).mean() - 100) < 1


def test_premultiplied_colours_never_exceed_alpha() -> None:
    for kind in KINDS[::10]:
        pixels = turned(kind, "twemoji", SIZES[2], TILTS[0]).pixels
        assert (pixels[..., :3] <= pixels[..., 3:]).all()


def test_boxes_hold_what_differs_from_the_background() -> None:
    spots = (
        Spot(centre=(60, 60), size=64, tilt=8),
        Spot(centre=(160, 150), size=48, tilt=-12),
    )
    things = [Thing(kind=kind, spot=spot) for kind, spot in zip(KINDS[3:5], spots, strict=True)]
    drawing = draw_scene(things, "twemoji", Draws("scene"))
    drawn = np.asarray(Image.open(io.BytesIO(drawing.jpeg)).convert("RGB")).astype(int)
    difference = np.abs(drawn - background(Draws("scene")).astype(int)).max(axis=2)
    inside = np.zeros(difference.shape, dtype=bool)
    for x1, y1, x2, y2 in drawing.boxes:
        inside[y1:y2, x1:x2] = True
        assert (difference[y1:y2, x1:x2] > 20).mean() > 0.2
        for edge in (difference[y1 : y1 + 3, x1:x2], difference[y2 - 3 : y2, x1:x2]):
            assert edge.max() > 12
    # JPEG rings a little around things.
    assert difference[~inside].max() < 40
