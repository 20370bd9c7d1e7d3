"""A detector's features become a student's regions: the dataset's own boxes first, positions as UNITER's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.regions.interface import RegionFeatures, make_regions
from advl_pipeline.datasets.regions.registry import PictureRegions, join_regions, open_regions
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.detector_regions import DetectorRegions
from advl_pipeline.students.region_source import RegionPixels
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.uniter import Uniter

WIDTH, HEIGHT = 640, 480
IMAGES = Path(__file__).parents[1] / "assets" / "uniter_data" / "img"


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


def one_pixel(name: str) -> ImageUnit:
    """A picture of one pixel: its pixels are shares."""
    return dataclasses.replace(unit(0), path=Path(f"{name}.jpg"), width=1, height=1)


def test_ground_truth_then_detected_with_uniters_positions(
    reference: Callable[[str], Mapping[str, torch.Tensor]],
) -> None:
    arrays = reference("uniter_data/vcr_collate_expected.npz")
    features, positions = arrays["qa/img_feat"][0].numpy(), arrays["qa/img_pos_feat"][0].numpy()
    ordered = np.concatenate([np.sort(positions[:, [0, 2]], axis=1), np.sort(positions[:, [1, 3]], axis=1)], axis=1)
    shares = ordered[:, [0, 2, 1, 3]].clip(0, 1)
    own, detected = source(features[:4], shares[:4], ground_truth=True), source(features[4:], shares[4:])
    regions = DetectorRegions([detected], ground_truth=[own], feature_size=features.shape[1]).regions(unit(4))
    np.testing.assert_array_equal(regions.features_RF, features)
    assert regions.box_index_R.tolist() == [0, 1, 2, 3] + [-1] * (len(features) - 4)
    sides = shares[:, 2:] - shares[:, :2]
    expected = np.concatenate([shares, sides, sides.prod(1, keepdims=True)], axis=1)
    np.testing.assert_allclose(regions.positions_R7, expected, atol=1e-6)
    assert not regions.whole_first


@pytest.mark.parametrize("variant", ["feat_th0.2_max100_min10", "feat_th0.2_max100_min10_compressed"])
def test_all_seven_positions_are_those_of_uniters_own_loader(
    variant: str, reference: Callable[[str], Mapping[str, torch.Tensor]]
) -> None:
    official = reference("uniter_data/vqa_collate_expected.npz")["img_pos_feat"].numpy()
    reader = open_regions(IMAGES / "coco_val2014" / variant, index=Path("unused"))
    detected = DetectorRegions([PictureRegions(reader, naming="stem")], feature_size=8)
    for row, name in enumerate(reader.names()):
        found = detected.regions(one_pixel(name)).positions_R7
        np.testing.assert_array_equal(found[:, 4:], official[row, : len(found), 4:])
        np.testing.assert_allclose(found, official[row, : len(found)], atol=1e-6)


def test_joined_regions_of_vcr_keep_the_sides_of_their_files(
    reference: Callable[[str], Mapping[str, torch.Tensor]],
) -> None:
    official = reference("uniter_data/vcr_collate_expected.npz")["qa/img_pos_feat"].numpy()
    own = open_regions(IMAGES / "vcr_gt_val" / "feat_numbb100", index=Path("unused"))
    detected = open_regions(IMAGES / "vcr_val" / "feat_th0.2_max100_min10", index=Path("unused"))
    for row in range(2):
        joined = join_regions(
            own.read(f"vcr_gt_val_{row}", width=1, height=1), detected.read(f"vcr_val_{row}", width=1, height=1)
        )
        np.testing.assert_array_equal(joined.sides(), official[4 * row, : len(joined.features_RF), 4:6])


def test_sides_that_are_not_finite_are_refused() -> None:
    with pytest.raises(Malformed, match="sides of boxes"):
        make_regions(
            features_RF=np.ones((1, 3), np.float32),
            boxes_R4=np.zeros((1, 4), np.float32),
            stated_sides_R2=np.array([[np.nan, 1]], np.float32),
            size=(WIDTH, HEIGHT),
        )


def test_the_whole_picture_comes_first_where_the_file_has_it() -> None:
    found = make_regions(
        features_RF=np.ones((2, 3), np.float32),
        boxes_R4=np.array([[0, 0, 64, 48], [64, 48, 128, 96]], np.float32),
        size=(WIDTH, HEIGHT),
        whole_F=np.full(3, 7.0, np.float32),
    )
    regions = DetectorRegions([PictureRegions(ArrayReader(found), naming="stem")], feature_size=3).regions(unit(0))
    assert regions.whole_first
    assert regions.features_RF[:, 0].tolist() == [7.0, 1.0, 1.0]
    assert regions.positions_R7[0].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert regions.box_index_R.tolist() == [-1, -1, -1]


def test_features_of_another_width_are_refused() -> None:
    shares = np.array([[0, 0, 0.5, 0.5]], np.float32)
    with pytest.raises(ConfigError, match="another width"):
        DetectorRegions([source(np.ones((1, 3), np.float32), shares)], feature_size=2048).regions(unit(0))


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


@pytest.mark.parametrize("box", [[64.2, 4, 64.9, 20], [-0.9, -0.8, -0.1, -0.2], [4, 48.1, 20, 48.9]])
def test_a_box_in_the_tolerated_rim_is_the_nearest_pixel(tmp_path: Path, box: list[float]) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    boxes_R4 = np.array([box], dtype=np.float32)
    unit = ImageUnit(unit_id="a", path=tmp_path / "a.png", width=64, height=48, boxes_R4=boxes_R4)
    crops = RegionPixels(8).crops(unit)
    assert crops.shape == (2, 8, 8, 3)
    assert (crops[1] == [255, 0, 0]).all()
