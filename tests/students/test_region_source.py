"""The crops that stand for regions where no detector's are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.students.picture_source import CropRegions


@pytest.mark.parametrize("box", [[64.2, 4, 64.9, 20], [-0.9, -0.8, -0.1, -0.2], [4, 48.1, 20, 48.9]])
def test_a_box_in_the_tolerated_rim_is_the_nearest_pixel(tmp_path: Path, box: list[float]) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    boxes_R4 = np.array([box], dtype=np.float32)
    unit = ImageUnit(unit_id="a", path=tmp_path / "a.png", width=64, height=48, boxes_R4=boxes_R4)
    crops = CropRegions(8).crops(unit)
    assert crops.shape == (2, 8, 8, 3)
    assert (crops[1] == [255, 0, 0]).all()
