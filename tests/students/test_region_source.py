"""The crops that stand for regions where no detector's are given."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from made_examples import unit
from PIL import Image

from advl_pipeline.students.picture_source import CropRegions, RecentlyUsed


@pytest.mark.parametrize("box", [[64.2, 4, 64.9, 20], [-0.9, -0.8, -0.1, -0.2], [4, 48.1, 20, 48.9]])
def test_a_box_in_the_tolerated_rim_is_the_nearest_pixel(tmp_path: Path, box: list[float]) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    crops = CropRegions(8).crops(unit(tmp_path / "a.png", 64, 48, [box]))
    assert crops.shape == (2, 8, 8, 3)
    assert (crops[1] == [255, 0, 0]).all()


def test_what_is_kept_is_bounded_by_its_bytes() -> None:
    kept: RecentlyUsed[npt.NDArray[np.uint8]] = RecentlyUsed(250)
    made: list[str] = []

    def read(name: str) -> npt.NDArray[np.uint8]:
        made.append(name)
        return np.zeros(100, dtype=np.uint8)

    for name in "abacab":
        kept.get(name, partial(read, name))
    # The third one took the place of the second, which had not been asked for again.
    assert made == ["a", "b", "c", "b"]
