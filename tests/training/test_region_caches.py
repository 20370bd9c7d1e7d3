"""A detector's features become a student's regions through a cache: to the bit, the dataset's own boxes first."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from region_mirrors import FEATURE_SIZE, write_npz, write_uniter_layout, write_vl_bert_json
from run_logs import load_json
from tiny_extraction import TinyDataset

from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction.config import ImportConfig
from advl_pipeline.extraction.run import import_features
from advl_pipeline.students.picture_source import Regions, with_whole_picture
from advl_pipeline.students.region_student import RegionStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.student_inputs import CachedRegions, use_region_caches

ASSETS = Path(__file__).parents[1] / "assets"
SIZE = (64, 48)
"""Of the pictures of `TinyDataset`, and of those that the mirrors' features are of."""


def imported(
    folder: Path,
    source: Path,
    paths: Sequence[str],
    *,
    size: tuple[int, int] = SIZE,
    num_boxes: int = 0,
    first: int = 0,
    **options: Any,
) -> tuple[TeacherCache, list[ImageUnit]]:
    """Import the regions of pictures of these paths, `first` the number of the first; return the cache and them."""
    dataset = TinyDataset(folder / "pictures", num_images=first + len(paths))
    units = [
        dataclasses.replace(
            unit, path=Path(path), width=size[0], height=size[1], boxes_R4=np.zeros((num_boxes, 4), np.float32)
        )
        for unit, path in zip(dataset.image_units()[first:], paths, strict=True)
    ]
    dataset.image_units = lambda: units  # type: ignore[method-assign]
    settings = {"source": source, "name": "detector", "dataset": "tiny", "split": "val", "output": folder / "cache"}
    import_features(build_config(ImportConfig, settings, options), dataset)
    return open_cache(folder / "cache"), units


def regions_of(cache: TeacherCache, unit: ImageUnit) -> Regions:
    return CachedRegions([cache], cache.image.token_dim).regions(unit)


@pytest.mark.parametrize("variant", ["feat_th0.2_max100_min10", "feat_th0.2_max100_min10_compressed"])
def test_regions_are_those_of_uniters_own_loader(tmp_path: Path, variant: str) -> None:
    official = np.load(ASSETS / "students" / "uniter_data" / "vqa_collate_expected.npz")
    features, positions = official["img_feat"], official["img_pos_feat"]
    source = ASSETS / "uniter_data" / "img" / "coco_val2014" / variant
    counts = load_json(source.parent / "nbb_th0.2_max100_min10.json")
    # Pictures of one pixel: their pixels are shares.
    names = [name.removesuffix(".npz") for name in counts]
    cache, units = imported(tmp_path, source, names, size=(1, 1))
    assert cache.identity["storage"]["dtype"] == "float16"
    for row, unit in enumerate(units):
        regions = regions_of(cache, unit)
        count = len(regions.features_RF)
        assert count == counts[f"{unit.path}.npz"]
        assert regions.features_RF.dtype == np.float16
        np.testing.assert_array_equal(regions.features_RF.astype(np.float32), features[row, :count])
        np.testing.assert_array_equal(regions.positions_R7[:, 4:], positions[row, :count, 4:])
        np.testing.assert_allclose(regions.positions_R7, positions[row, :count], atol=1e-6)
        assert not features[row, count:].any()
        assert not regions.whole_first
        assert (regions.box_index_R == -1).all()


def test_the_datasets_own_boxes_come_first(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    detections = {}
    for name, key, count in (("vcr_val", "vcr_val_a@3", 12), ("vcr_gt_val", "vcr_gt_val_a@3", 4)):
        corners = np.sort(draw.random((count, 2, 2), dtype=np.float32), axis=1).reshape(count, 4)
        detections[name] = draw.standard_normal((count, 8)).astype(np.float16), corners
        write_uniter_layout(tmp_path / "img_db", name, {key: detections[name]})
    paths = {"ground_truth_regions": tmp_path / "img_db" / "vcr_gt_{split}"}
    cache, (unit,) = imported(tmp_path, tmp_path / "img_db" / "vcr_{split}", ["lsmdc/a@3.jpg"], num_boxes=4, **paths)
    regions = regions_of(cache, unit)
    assert regions.box_index_R.tolist() == [0, 1, 2, 3] + [-1] * 12
    features, shares_R4 = (
        np.concatenate([detections[name][at] for name in ("vcr_gt_val", "vcr_val")]) for at in (0, 1)
    )
    assert regions.features_RF.dtype == np.float16
    np.testing.assert_array_equal(regions.features_RF, features)
    # As they were computed while files were read: pixels, and their shares; sides as the file states them.
    size = np.array([*SIZE, *SIZE], np.float32)
    sides = shares_R4[:, 2:] - shares_R4[:, :2]
    expected = np.concatenate([shares_R4 * size / size, sides, sides[:, :1] * sides[:, 1:]], axis=1)
    np.testing.assert_array_equal(regions.positions_R7, expected)
    beside = cache.image.token_columns([unit.unit_id])
    np.testing.assert_array_equal(beside["confidence"][4:], np.linspace(0.9, 0.5, 12, dtype=np.float32))
    stored = zarr.open_group(cache.path / "image/stats", mode="r")
    assert [stored[side][0] for side in ("width", "height")] == list(SIZE)
    # The picture has another number of boxes than the file has rows.
    with pytest.raises(DatasetError, match="do not fit the dataset's boxes"):
        imported(tmp_path / "3", tmp_path / "img_db" / "vcr_{split}", ["lsmdc/a@3.jpg"], num_boxes=3, **paths)


def test_features_are_stored_as_their_files_hold_them_unless_asked_otherwise(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "npz", [Path("COCO_val2014_000000000009.jpg")])
    cache, (unit,) = imported(tmp_path / "whole", source, ["COCO_val2014_000000000009.jpg"])
    regions = regions_of(cache, unit)
    with np.load(source / "COCO_val2014_000000000009.npz") as arrays:
        np.testing.assert_array_equal(regions.features_RF, arrays["features"])
        half = arrays["features"].astype(np.float16)
    assert regions.positions_R7[0].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5, 0.25]
    cache, (unit,) = imported(tmp_path / "half", source, ["COCO_val2014_000000000009.jpg"], dtype="float16")
    np.testing.assert_array_equal(regions_of(cache, unit).features_RF, half)


def test_the_whole_picture_comes_first_where_files_have_it(tmp_path: Path) -> None:
    path = Path("COCO_val2014_000000000009.jpg")
    plain, (unit,) = imported(tmp_path / "plain", write_vl_bert_json(tmp_path / "a", [path]), [path.name])
    detected = regions_of(plain, unit)
    assert not detected.whole_first
    mean = with_whole_picture(detected)
    np.testing.assert_array_equal(mean.features_RF[0], detected.features_RF.mean(0))
    source = write_vl_bert_json(tmp_path / "b", [path], whole=True)
    cache, (unit,) = imported(tmp_path / "whole", source, [path.name])
    regions = regions_of(cache, unit)
    assert regions.whole_first
    np.testing.assert_array_equal(
        regions.features_RF, np.concatenate([np.full((1, FEATURE_SIZE), 7), detected.features_RF])
    )
    assert regions.positions_R7[0].tolist() == [0, 0, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(regions.positions_R7[1:], detected.positions_R7)
    assert regions.box_index_R.tolist() == [-1] * 4
    paths = [path, Path("COCO_val2014_000000000010.jpg")]
    mixed = write_vl_bert_json(tmp_path / "c", paths)
    (mixed / f"{path.stem}.json").write_bytes((source / f"{path.stem}.json").read_bytes())
    with pytest.raises(DatasetError, match="differ in width or in kind"):
        imported(tmp_path / "mixed", mixed, [picture.name for picture in paths])


def test_a_student_reads_the_cache_that_holds_the_picture(tmp_path: Path) -> None:
    names = ["COCO_val2014_000000000009.jpg", "COCO_val2014_000000000010.jpg"]
    caches, units = [], []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        cache, (unit,) = imported(folder, write_npz(folder / "npz", [Path(name)]), [name], first=number)
        caches.append(cache)
        units.append(unit)
    student = build_student("uniter-tiny", overrides={"regions": "detector"})
    assert isinstance(student, RegionStudent)
    with pytest.raises(ConfigError, match="none are given"):
        student.regions_of(units[0])
    lines = use_region_caches(student, caches)
    assert len(lines) == 2
    for reader in (student, copy.deepcopy(student)):
        assert [len(reader.regions_of(unit).features_RF) for unit in units] == [3, 3]
    stranger = dataclasses.replace(units[0], unit_id=digest({})[:32])
    with pytest.raises(DatasetError, match="no region features"):
        student.regions_of(stranger)
    with pytest.raises(ConfigError, match="another width"):
        use_region_caches(build_student("uniter-tiny", overrides={"feature_size": 25}), caches)
    with pytest.raises(ConfigError, match="sees no regions"):
        use_region_caches(build_student("vilt-tiny"), caches)
