"""Region features read from every format, equal to what was written, and damaged files are errors, never numbers."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgpack
import numpy as np
import pytest

from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.extraction.imported import RegionFiles, join_regions, name_of, open_regions
from advl_pipeline.extraction.region_formats import make_regions, read_numbers

ASSETS = Path(__file__).parents[1] / "assets"
SIZE = {"width": 640, "height": 480}
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((6, 8)).astype(np.float32)
BOXES = np.array([[8 * i, 4 * i, 8 * i + 100.5, 4 * i + 60.25] for i in range(6)], dtype=np.float32)
CONFIDENCE = np.linspace(0.9, 0.3, 6).astype(np.float32)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as opened:
        yield opened


def b64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def write_butd_tsv(root: Path, *, features: np.ndarray = FEATURES, size: tuple[int, int] = (640, 480)) -> Path:
    file = root / "butd.tsv"
    rows = [(9, features), (12, FEATURES[:3])]
    file.write_text(
        "".join(
            "\t".join([str(name), *map(str, size), str(len(rows_)), b64(BOXES[: len(rows_)]), b64(rows_)]) + "\n"
            for name, rows_ in rows
        )
    )
    return file


def write_lxmert_tsv(root: Path) -> Path:
    file = root / "lxmert.tsv"
    ids = b64(np.arange(6))
    cells = ["COCO_val2014_000000000009", "480", "640", ids, b64(CONFIDENCE), ids, b64(CONFIDENCE), "6"]
    file.write_text("\t".join([*cells, b64(BOXES), b64(FEATURES)]) + "\n")
    return file


def write_hdf5(root: Path, *, ragged: bool = False, python2: bool = True) -> Path:
    file = root / "val36.hdf5"
    shares = np.concatenate([BOXES, BOXES[:, 2:] - BOXES[:, :2]], axis=1) / np.array([640, 480] * 3)
    with h5py.File(file, "w") as out:
        if ragged:
            out["image_features"] = np.concatenate([FEATURES[:2], FEATURES])
            out["image_bb"] = np.concatenate([BOXES[:2], BOXES])
            out["spatial_features"] = np.concatenate([shares[:2], shares]).astype(np.float32)
            out["pos_boxes"] = np.array([[0, 2], [2, 8]])
        else:
            out["image_features"] = np.stack([FEATURES * 0, FEATURES])
            out["image_bb"] = np.stack([BOXES, BOXES])
            out["spatial_features"] = np.stack([shares, shares]).astype(np.float32)
    (root / "val36_imgid2idx.pkl").write_bytes(pickle.dumps({12: 0, 9: 1}, protocol=0 if python2 else 4))
    return file


def write_npz(root: Path, **changes: Any) -> Path:
    folder = root / "npz"
    folder.mkdir()
    arrays = {"features": FEATURES, "bbox": BOXES, "conf": CONFIDENCE, "image_w": 640, "image_h": 480} | changes
    np.savez(folder / "COCO_val2014_000000000009.npz", **arrays)
    return folder


def write_json(root: Path, **changes: Any) -> Path:
    folder = root / "json"
    folder.mkdir()
    record = {
        "num_boxes": 6,
        "boxes": b64(BOXES),
        "features": b64(FEATURES),
        "image_w": 640,
        "image_h": 480,
        "image_box_feature": b64(FEATURES.mean(0)),
    } | changes
    (folder / "COCO_val2014_000000000009.json").write_text(json.dumps(record))
    return folder


def write_lmdb(
    root: Path, entries: dict[str, Any], *, name: str = "feat_th0.2_max5_min2", counts: dict[str, int] | None = None
) -> Path:
    folder = root / "img_db" / name
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(f"{key}.npz".encode(), msgpack.packb(value))
        transaction.put(b"__keys__", json.dumps([f"{key}.npz" for key in entries]).encode())
    if counts is not None:
        (folder.parent / f"nbb_{name.removeprefix('feat_')}.json").write_text(json.dumps(counts))
    return folder


def packed(array: np.ndarray, kind: bytes = b"") -> dict[bytes, Any]:
    return {b"nd": True, b"type": array.dtype.str, b"kind": kind, b"shape": array.shape, b"data": array.tobytes()}


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_butd_tsv, "9"),
        (write_lxmert_tsv, "COCO_val2014_000000000009"),
        (write_hdf5, "9"),
        (lambda root: write_hdf5(root, ragged=True, python2=False), "9"),
        (write_npz, "COCO_val2014_000000000009"),
        (write_json, "COCO_val2014_000000000009"),
    ],
    ids=["butd tsv", "lxmert tsv", "hdf5", "ragged hdf5", "npz", "json"],
)
def test_every_format_gives_back_what_was_written(
    tmp_path: Path, write: Callable[[Path], Path], name: str, stack: ExitStack
) -> None:
    reader = open_regions(write(tmp_path), stack)
    assert name in reader
    assert "none" not in reader
    found = reader.read(name, **SIZE)
    assert found.values.dtype == found.regions["boxes"].dtype == np.float32
    np.testing.assert_array_equal(found.values, FEATURES)
    corners = BOXES / np.array([640, 480] * 2, np.float32)
    np.testing.assert_array_equal(found.regions["boxes"][:, :4], corners)
    np.testing.assert_array_equal(found.regions["boxes"][:, 4:], corners[:, 2:] - corners[:, :2])
    assert found.regions["box_index"].tolist() == [-1] * 6
    expected = CONFIDENCE if write in (write_lxmert_tsv, write_npz) else np.full(6, -1)
    np.testing.assert_array_equal(found.regions["confidence"], expected)
    with pytest.raises(DatasetError, match="no region features"):
        reader.read("none", **SIZE)
    with pytest.raises(DatasetError) as caught:
        reader.read(name, width=320, height=240)
    assert "picture" in caught.value.why


def test_whole_picture_feature_of_vl_bert(tmp_path: Path, stack: ExitStack) -> None:
    found = open_regions(write_json(tmp_path), stack).read("COCO_val2014_000000000009", **SIZE)
    assert found.whole_D is not None
    np.testing.assert_array_equal(found.whole_D, FEATURES.mean(0))


@pytest.mark.parametrize("variant", ["feat_th0.2_max100_min10", "feat_th0.2_max100_min10_compressed"])
def test_uniter_fixture_equals_what_its_own_loader_collated(variant: str, stack: ExitStack) -> None:
    expected = np.load(ASSETS / "students" / "uniter_data" / "vqa_collate_expected.npz")
    reader = open_regions(ASSETS / "uniter_data" / "img" / "coco_val2014" / variant, stack)
    counts = json.loads((ASSETS / "uniter_data" / "img" / "coco_val2014" / "nbb_th0.2_max100_min10.json").read_text())
    assert len(counts) == 3
    for row, name in enumerate(counts):
        found = reader.read(name.removesuffix(".npz"), width=1, height=1)
        count = len(found.values)
        assert count == (10, 11, 14)[row]
        np.testing.assert_array_equal(found.values, expected["img_feat"][row, :count])
        assert not expected["img_feat"][row, count:].any()
        np.testing.assert_allclose(found.regions["boxes"], expected["img_pos_feat"][row, :count, :6], atol=2e-5)


def test_uniter_vcr_joins_ground_truth_and_detected(stack: ExitStack) -> None:
    expected = np.load(ASSETS / "students" / "uniter_data" / "vcr_collate_expected.npz")
    folder = ASSETS / "uniter_data" / "img"
    ground_truth = open_regions(folder / "vcr_gt_val" / "feat_numbb100", stack)
    detected = open_regions(folder / "vcr_val" / "feat_th0.2_max100_min10", stack)
    for row in range(2):
        joined = join_regions(
            ground_truth.read(f"vcr_gt_val_{row}", width=1, height=1),
            detected.read(f"vcr_val_{row}", width=1, height=1),
        )
        count = len(joined.values)
        np.testing.assert_array_equal(joined.values, expected["qa/img_feat"][4 * row, :count])
        assert not expected["qa/img_feat"][4 * row, count:].any()


def test_an_lmdb_scales_to_pixels(tmp_path: Path, stack: ExitStack) -> None:
    shares = (BOXES / np.array([640, 480, 640, 480])).astype(np.float16)
    entry = {"norm_bb": packed(shares), "features": packed(FEATURES), "conf": packed(CONFIDENCE)}
    folder = write_lmdb(tmp_path, {"coco_val2014_000000000009": entry})
    found = open_regions(folder, stack).read("coco_val2014_000000000009", **SIZE)
    assert len(found.values) == 5  # six above the threshold, clamped to the most
    np.testing.assert_allclose(found.regions["boxes"][:, :4], shares[:5], atol=1e-3)


def test_counts_come_from_sidecar_name_or_confidence(tmp_path: Path, stack: ExitStack) -> None:
    entry = {"norm_bb": packed(BOXES / 640), "features": packed(FEATURES), "conf": packed(CONFIDENCE)}
    for number, (name, counts, expected) in enumerate(
        [
            ("feat_th0.2_max5_min2", {"a.npz": 3}, 3),
            ("feat_th0.8_max5_min3", None, 3),
            ("feat_numbb4", None, 4),
            ("feat_numbb4_compressed", None, 4),
            ("all", None, 6),
        ]
    ):
        folder = write_lmdb(tmp_path / str(number), {"a": entry}, name=name, counts=counts)
        assert len(open_regions(folder, stack).read("a", width=640, height=640).values) == expected


def poisoned_features() -> np.ndarray:
    features = FEATURES.copy()
    features[2, 3] = np.nan
    return features


@pytest.mark.parametrize(
    ("write", "name", "why"),
    [
        (lambda root: write_butd_tsv(root, features=poisoned_features()), "9", "not finite"),
        (lambda root: write_butd_tsv(root, size=(50, 40)), "9", "for a picture of 50x40"),
        (lambda root: write_npz(root, features=poisoned_features()), None, "not finite"),
        (lambda root: write_npz(root, features=FEATURES[:4]), None, "do not fit"),
        (lambda root: write_npz(root, bbox=BOXES + 900), None, "outside the picture"),
        (lambda root: write_npz(root, conf=np.array([{"a": 1}], dtype=object)), None, "not an archive of arrays"),
        (lambda root: write_npz(root, conf=np.array(["a"] * 6)), None, "not of numbers"),
        (lambda root: write_json(root, features="%%%"), None, "not base64"),
        (lambda root: write_json(root, features=b64(FEATURES)[:-8]), None, "not 6 rows"),
        (lambda root: write_json(root, num_boxes=0), None, "num_boxes is 0"),
        (lambda root: write_json(root, num_boxes="many"), None, "num_boxes is 'many'"),
        (lambda root: write_json(root, boxes=None), None, "not base64 text"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, write: Callable[[Path], Path], name: str | None, why: str, stack: ExitStack
) -> None:
    reader = open_regions(write(tmp_path), stack)
    with pytest.raises(DatasetError) as caught:
        reader.read(name or "COCO_val2014_000000000009", **SIZE)
    assert why in caught.value.why
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"features": packed(FEATURES)}, "no array of boxes"),
        ({"features": packed(FEATURES, kind=b"O"), "norm_bb": packed(BOXES)}, "not a plain array"),
        ({"features": packed(FEATURES) | {b"type": "O"}, "norm_bb": packed(BOXES)}, "not an array"),
        ({"features": packed(FEATURES) | {b"shape": [7, 8]}, "norm_bb": packed(BOXES)}, "not an array"),
        ([1, 2], "not a dictionary"),
    ],
)
def test_damaged_lmdb_entries_are_named(tmp_path: Path, entry: Any, why: str, stack: ExitStack) -> None:
    reader = open_regions(write_lmdb(tmp_path, {"a": entry}), stack)
    with pytest.raises(DatasetError) as caught:
        reader.read("a", **SIZE)
    assert why in caught.value.why


def test_sides_that_are_not_finite_are_refused() -> None:
    with pytest.raises(Malformed, match="sides of boxes"):
        make_regions(
            features_RF=np.ones((1, 3), np.float32),
            boxes_R4=np.zeros((1, 4), np.float32),
            stated_sides_R2=np.array([[np.nan, 1]], np.float32),
            size=(640, 480),
        )


@pytest.mark.parametrize(
    ("dataset", "split", "filed_under"),
    [
        ("vcr", "rule-singular", "val"),
        ("vqa-v2", "minival", "val2014"),
        ("vqa-v2", "test-dev", "test2015"),
        ("vqa-v2", "train+val", "train2014+val2014"),
        ("vqa-cp-v2", "val", "train2014+val2014"),
        ("snli-ve", "test-hard", "test"),
        ("scenes-vcr", "test-shift", "test-shift"),
        ("mine.jsonl", "val", "val"),
    ],
)
def test_the_split_that_pictures_are_filed_under(dataset: str, split: str, filed_under: str) -> None:
    assert "+".join(picture_splits(dataset, split)) == filed_under


def test_a_truncated_npz_is_named(tmp_path: Path, stack: ExitStack) -> None:
    folder = write_npz(tmp_path)
    file = folder / "COCO_val2014_000000000009.npz"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(DatasetError, match="malformed"):
        open_regions(folder, stack).read("COCO_val2014_000000000009", **SIZE)


def test_tsv_lines_are_checked_when_scanned(tmp_path: Path, stack: ExitStack) -> None:
    file = tmp_path / "butd.tsv"
    file.write_text("9\t1\t2\n")
    with pytest.raises(DatasetError) as caught:
        open_regions(file, stack)
    assert caught.value.where == f"{file}:1"
    assert "3 columns" in caught.value.why
    line = "9\t1\t1\t1\ta\ta\n"
    file.write_text(line * 2)
    with pytest.raises(DatasetError) as caught:
        open_regions(file, stack)
    assert "on line 1 already" in caught.value.why


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_an_index_is_read_without_unpickling(tmp_path: Path, protocol: int, capsys: Any) -> None:
    file = tmp_path / "x.pkl"
    numbers = {391895: 0, 522418: 1, 70000: 2, 5: 300}
    file.write_bytes(pickle.dumps(numbers, protocol=protocol))
    assert read_numbers(file) == numbers
    for value in ({1: "a"}, {1: Evil()}, [1, 2, 3], {1: 2.5}):
        file.write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(DatasetError):
            read_numbers(file)
    file.write_bytes(b"not a pickle")
    with pytest.raises(DatasetError):
        read_numbers(file)
    assert capsys.readouterr().out == ""


def test_names_of_pictures() -> None:
    coco = Path("val2014/COCO_val2014_000000000009.jpg")
    assert name_of(coco, "number") == "9"
    assert name_of(coco, "stem") == "COCO_val2014_000000000009"
    assert name_of(coco, "uniter") == "coco_val2014_000000000009"
    assert name_of(Path("36979.jpg"), "uniter") == "flickr30k_000000036979"
    assert name_of(Path("lsmdc/a@3.jpg"), "uniter", vcr_prefix="vcr_gt_val_") == "vcr_gt_val_a@3"
    with pytest.raises(ConfigError):
        name_of(Path("picture.jpg"), "number")


def picture(folder: str = ".", *, num_boxes: int = 6) -> ImageUnit:
    path = Path(folder) / "COCO_val2014_000000000009.jpg"
    return ImageUnit(unit_id=folder, path=path, width=640, height=480, boxes_R4=BOXES[:num_boxes])


def files_of(path: Path, stack: ExitStack, **options: Any) -> RegionFiles:
    return RegionFiles(path, prefix="vcr_", splits=["val"], naming=None, first=picture(), stack=stack, **options)


def test_regions_of_a_datasets_pictures(tmp_path: Path, stack: ExitStack) -> None:
    files = files_of(write_npz(tmp_path), stack, ground_truth=True)
    assert files.regions(picture()).regions["box_index"].tolist() == list(range(6))
    with pytest.raises(DatasetError, match="do not fit"):
        files.regions(picture(num_boxes=5))


def test_nothing_there(tmp_path: Path, stack: ExitStack) -> None:
    with pytest.raises(DatasetError, match="no region features"):
        open_regions(tmp_path / "none", stack)
    shutil.copy(write_hdf5(tmp_path), tmp_path / "copy.hdf5")
    (tmp_path / "val36_imgid2idx.pkl").unlink()
    with pytest.raises(DatasetError, match="index"):
        open_regions(tmp_path / "copy.hdf5", stack)


def test_two_pictures_of_one_name_do_not_share_regions(tmp_path: Path, stack: ExitStack) -> None:
    files = files_of(write_npz(tmp_path), stack)
    for _ in range(2):
        files.regions(picture("a"))
    with pytest.raises(DatasetError, match="Two pictures go by one name"):
        files.regions(picture("b"))
