"""Where a network's grid lies on a picture, and how its features are averaged to other places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from advl_pipeline.base.geometry import Framing, grid_rectangles, overlap, pooling
from advl_pipeline.teachers.vision_backbone import PixelSettings, fit_picture

NOWHERE = np.full((1, 4), np.nan, np.float32)

sides = st.integers(1, 9)
edges = st.integers(40, 500)


@st.composite
def rectangles(draw: st.DrawFn) -> np.ndarray:
    corners = st.floats(0, 1, width=32)
    pairs = draw(st.lists(st.tuples(corners, corners, corners, corners), min_size=1, max_size=6))
    points = np.array(pairs, np.float32).reshape(-1, 2, 2)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


@st.composite
def framings(draw: st.DrawFn) -> Framing:
    height, width = draw(st.integers(16, 64)), draw(st.integers(16, 64))
    if draw(st.booleans()):
        return Framing(height=height, width=width)
    rounding = draw(st.sampled_from(["half-even", "down"]))
    short = draw(st.integers(max(height, width), 100))
    return Framing(height=height, width=width, short_edge=short, crop_rounding=rounding)


@settings(deadline=None, max_examples=30)
@given(sides, sides, rectangles())
def test_all_of_a_target_lies_on_a_grid_over_the_whole_picture(
    rows: int, columns: int, target_T4: np.ndarray
) -> None:
    shares_TS = overlap(target_T4, grid_rectangles(rows, columns))
    large = (np.diff(target_T4.reshape(-1, 2, 2), axis=1) > 1e-3).all(axis=(1, 2))
    assert ((shares_TS >= 0) & (shares_TS <= 1 + 1e-5)).all()
    np.testing.assert_allclose(shares_TS.sum(axis=1)[large], 1.0, atol=1e-3)
    # Of a width times a height that is smaller than any number only the product is 0: such a target is no line.
    is_line = (np.diff(target_T4.reshape(-1, 2, 2), axis=1) == 0).any(axis=(1, 2))
    assert not shares_TS[is_line].any()


@settings(deadline=None, max_examples=30)
@given(sides, sides, sides, sides)
def test_overlap_is_an_area_that_both_sides_agree_on(rows: int, columns: int, other: int, another: int) -> None:
    patches, other_patches = grid_rectangles(rows, columns), grid_rectangles(other, another)
    forth, back = overlap(patches, other_patches), overlap(other_patches, patches)
    np.testing.assert_allclose(forth / len(patches), back.T / len(other_patches), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(framings(), edges, edges, sides, sides, rectangles())
def test_a_picture_whose_feature_is_its_place_is_recovered_up_to_the_patch(
    framing: Framing, width: int, height: int, rows: int, columns: int, target_T4: np.ndarray
) -> None:
    """The teacher's patches hold their own centres in the picture; a target then holds its own, to half a patch."""
    window = framing.window(width, height)
    patches_S4 = grid_rectangles(rows, columns, window)
    weights_TS, counts_T = pooling(target_T4, patches_S4)
    found_T2 = weights_TS @ patches_S4.reshape(-1, 2, 2).mean(axis=1)
    # Of a target that a crop cuts off, what is left is what can be followed.
    shown_T4 = np.concatenate([np.maximum(target_T4[:, :2], window[:2]), np.minimum(target_T4[:, 2:], window[2:])], 1)
    centre_T2 = shown_T4.reshape(-1, 2, 2).mean(axis=1)
    half_patch = np.array([(window[2] - window[0]) / columns, (window[3] - window[1]) / rows]) / 2
    assert (np.abs(found_T2 - centre_T2)[counts_T] <= half_patch + 1e-3).all()
    np.testing.assert_allclose(weights_TS.sum(axis=1), counts_T, atol=1e-5)


def test_what_a_central_crop_cuts_off_has_no_target() -> None:
    """A picture twice as wide as high, squeezed to 4 x 4 patches by the student and cropped by the teacher."""
    framing = Framing(height=32, width=32, short_edge=32)
    patches = grid_rectangles(2, 2, framing.window(200, 100))
    weights, counts = pooling(grid_rectangles(4, 4), patches)
    assert counts.reshape(4, 4).tolist() == [[False, True, True, False]] * 4
    seen = [weights[row].tolist() for row in (1, 2, 13, 14)]
    assert seen == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_what_lies_nowhere_has_no_target_and_is_none() -> None:
    patches = grid_rectangles(2, 2)
    flat = np.array([[0.2, 0.2, 0.2, 0.8]], np.float32)
    weights, counts = pooling(np.concatenate([NOWHERE, patches[:1], flat]), patches)
    assert counts.tolist() == [False, True, False]
    assert not weights[[0, 2]].any()
    weights, counts = pooling(patches[:1], np.concatenate([NOWHERE, patches]))
    assert weights.tolist() == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize("rounding", ["half-even", "down"])
@pytest.mark.parametrize("size", [(150, 90), (91, 140), (64, 64), (333, 70)])
@pytest.mark.parametrize("short_edge", [0, 32, 37])
def test_the_window_is_what_the_network_is_shown(size: tuple[int, int], short_edge: int, rounding: str) -> None:
    """Pictures that hold their own coordinates as colours: the pixels that arrive come from where the window says."""
    width, height = size
    pixel_settings = PixelSettings(
        height=32,
        width=32,
        short_edge=short_edge,
        interpolation="bilinear",
        crop_rounding=rounding,  # type: ignore[arg-type]
    )
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    pixels = np.stack([255 * x, 255 * y, np.zeros_like(x)], axis=2).round().astype(np.uint8)
    shown_2HW = fit_picture(Image.fromarray(pixels), pixel_settings)[:2].to(torch.float32) / 255
    framing = Framing.of_description(pixel_settings.describe())
    expected = grid_rectangles(32, 32, framing.window(width, height)).reshape(32, 32, 2, 2).mean(axis=2)
    error = np.abs(shown_2HW.permute(1, 2, 0).numpy() - expected)
    # The outermost pixels mix in fewer neighbours; colours have 256 steps.
    assert error[2:-2, 2:-2].max() < 2 / 255
