"""A detector's features become a student's regions: the dataset's own boxes first, positions as UNITER's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.regions.interface import RegionFeatures, make_regions
from advl_pipeline.datasets.regions.registry import PictureRegions
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.detector_regions import DetectorRegions
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.uniter import Uniter

WIDTH, HEIGHT = 640, 480


class ArrayReader:
    """Region features held in memory, by name of the picture."""

    def __init__(self, found: RegionFeatures) -> None:
        self._found = found

    def __contains__(self, name: object) -> bool:
        return name == "p"

    def names(self) -> list[str]:
        return ["p"]

    def read(self, name: str, *, width: int, height: int) -> RegionFeatures:
        return self._found


def source(features: np.ndarray, shares: np.ndarray, *, ground_truth: bool = False) -> PictureRegions:
    boxes = (shares * np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])).astype(np.float32)
    found = make_regions(features_RF=features, boxes_R4=boxes, size=(WIDTH, HEIGHT))
    return PictureRegions(ArrayReader(found), naming="stem", ground_truth=ground_truth)


def unit(num_boxes: int) -> ImageUnit:
    return ImageUnit(
        unit_id="u",
        path=Path("p.jpg"),
        width=WIDTH,
        height=HEIGHT,
        boxes_R4=np.zeros((num_boxes, 4), dtype=np.float32),
    )


def test_ground_truth_then_detected_with_uniters_positions(
    reference: Callable[[str], Mapping[str, torch.Tensor]],
) -> None:
    arrays = reference("uniter_data/vcr_collate_expected.npz")
    features, positions = arrays["qa/img_feat"][0].numpy(), arrays["qa/img_pos_feat"][0].numpy()
    ordered = np.concatenate([np.sort(positions[:, [0, 2]], axis=1), np.sort(positions[:, [1, 3]], axis=1)], axis=1)
    shares = ordered[:, [0, 2, 1, 3]].clip(0, 1)
    own, detected = source(features[:4], shares[:4], ground_truth=True), source(features[4:], shares[4:])
    regions = DetectorRegions(detected, ground_truth=own, feature_size=features.shape[1]).regions(unit(4))
    np.testing.assert_array_equal(regions.features_RF, features)
    assert regions.box_index_R.tolist() == [0, 1, 2, 3] + [-1] * (len(features) - 4)
    sides = shares[:, 2:] - shares[:, :2]
    expected = np.concatenate([shares, sides, sides.prod(1, keepdims=True)], axis=1)
    np.testing.assert_allclose(regions.positions_R7, expected, atol=1e-6)
    assert not regions.whole_first


def test_the_whole_picture_comes_first_where_the_file_has_it() -> None:
    found = make_regions(
        features_RF=np.ones((2, 3), np.float32),
        boxes_R4=np.array([[0, 0, 64, 48], [64, 48, 128, 96]], np.float32),
        size=(WIDTH, HEIGHT),
        whole_F=np.full(3, 7.0, np.float32),
    )
    regions = DetectorRegions(PictureRegions(ArrayReader(found), naming="stem"), feature_size=3).regions(unit(0))
    assert regions.whole_first
    assert regions.features_RF[:, 0].tolist() == [7.0, 1.0, 1.0]
    assert regions.positions_R7[0].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert regions.box_index_R.tolist() == [-1, -1, -1]


def test_features_of_another_width_are_refused() -> None:
    shares = np.array([[0, 0, 0.5, 0.5]], np.float32)
    with pytest.raises(ConfigError, match="another width"):
        DetectorRegions(source(np.ones((1, 3), np.float32), shares), feature_size=2048).regions(unit(0))


def test_a_student_reads_the_files_that_its_settings_name(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(picture)
    folder = tmp_path / "features"
    folder.mkdir()
    boxes = np.array([[0, 0, 320, 240], [10, 20, 600, 400]], np.float32)
    np.savez(folder / "p.npz", features=np.ones((2, 24), np.float32), boxes=boxes)
    student = build_student("uniter-tiny", overrides={"regions": folder, "region_naming": "stem"})
    assert isinstance(student, Uniter)
    regions = student.regions_of(dataclasses.replace(unit(0), path=picture))
    assert regions.features_RF.shape == (2, 24)
    assert regions.positions_R7[0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert student.config_dict()["regions"] == str(folder)
