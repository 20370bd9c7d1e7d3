"""Region features read from every format, equal to what was written, and damaged files are errors, never numbers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import region_mirrors
from region_mirrors import (
    BOXES,
    CONFIDENCE,
    NUM_REGIONS,
    SHARES,
    SIZE,
    WRITERS,
    b64,
    features_of,
    packed,
    write_butd_tsv,
    write_hdf5,
    write_lmdb,
    write_npz,
    write_vl_bert_json,
)

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.extraction.imports.tower import RegionFiles, join_regions, name_of, open_regions

ASSETS = Path(__file__).parents[1] / "assets"
PICTURE = Path("COCO_val2014_000000000009.jpg")
NAMES = {"butd-tsv": "9", "hdf5": "9", "uniter-lmdb": "coco_val2014_000000000009"}
FEATURES = features_of(PICTURE)
WIDTH_AND_HEIGHT = {"width": SIZE[0], "height": SIZE[1]}
ENTRY = {"norm_bb": SHARES.astype(np.float32), "features": FEATURES, "conf": CONFIDENCE}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("form", [*WRITERS, "ragged"])
def test_every_format_gives_back_what_was_written(
    tmp_path: Path, form: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = WRITERS.get(form, partial(write_hdf5, ragged=True))
    reader = open_regions(write(tmp_path / "regions", [Path("COCO_val2014_000000000012.jpg"), PICTURE]), stack)
    name = {"ragged": "9", "uniter-lmdb-compressed": NAMES["uniter-lmdb"], **NAMES}.get(form, PICTURE.stem)
    assert name in reader
    assert "none" not in reader
    found = reader.read(name, **WIDTH_AND_HEIGHT)
    assert found.values.dtype == found.regions["boxes"].dtype == np.float32
    np.testing.assert_array_equal(found.values, FEATURES)
    np.testing.assert_allclose(found.regions["boxes"], SHARES, atol=1e-6)
    assert found.regions["box_index"].tolist() == [-1] * NUM_REGIONS
    has_confidence = "lmdb" in form or "lxmert" in form
    np.testing.assert_array_equal(found.regions["confidence"], CONFIDENCE if has_confidence else [-1] * NUM_REGIONS)
    with pytest.raises(DatasetError, match="no region features"):
        reader.read("none", **WIDTH_AND_HEIGHT)
    if "lmdb" not in form:  # It holds shares of a picture of any size.
        with pytest.raises(DatasetError) as caught:
            reader.read(name, width=320, height=240)
        assert "picture" in caught.value.why
    # A fifth column of boxes is damage, unless a format has such.
    monkeypatch.setattr(region_mirrors, "BOXES", np.concatenate([BOXES, CONFIDENCE[:, None]], axis=1))
    reader = open_regions(write(tmp_path / "wider", [PICTURE]), stack)
    if form == "npz" or "lmdb" in form:
        np.testing.assert_allclose(reader.read(name, **WIDTH_AND_HEIGHT).regions["boxes"], SHARES, atol=1e-6)
        return
    with pytest.raises(DatasetError) as caught:
        reader.read(name, **WIDTH_AND_HEIGHT)
    assert "boxes of shape (3, 5), expected four columns" in caught.value.why


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


def test_counts_come_from_sidecar_name_or_confidence(tmp_path: Path, stack: ExitStack) -> None:
    for name, counts, expected in (
        ("feat_th0.2_max5_min2", {"a.npz": 2}, 2),
        ("feat_th0.2_max2_min1", None, 2),
        ("feat_th0.85_max3_min2", None, 2),
        ("feat_numbb1", None, 1),
        ("feat_numbb1_compressed", None, 1),
        ("all", None, 3),
    ):
        folder = write_lmdb(tmp_path / name, {"a.npz": packed(ENTRY)})
        if counts is not None:
            (tmp_path / f"nbb_{name.removeprefix('feat_')}.json").write_text(json.dumps(counts))
        assert len(open_regions(folder, stack).read("a", **WIDTH_AND_HEIGHT).values) == expected


def poisoned_features() -> np.ndarray:
    features = FEATURES.copy()
    features[2, 3] = np.nan
    return features


@pytest.mark.parametrize(
    ("write", "changes", "why"),
    [
        (write_butd_tsv, {"features": poisoned_features()}, "not finite"),
        (write_butd_tsv, {"size": (50, 40)}, "for a picture of 50x40"),
        (write_npz, {"norm_bb": SHARES * [1, 1, 1, 1, np.nan, 1], "boxes": None}, "boxes hold a value that is not"),
        (write_npz, {"features": FEATURES[:2]}, "do not fit"),
        (write_npz, {"boxes": BOXES + 900}, "outside the picture"),
        (write_npz, {"conf": np.array([{"a": 1}], dtype=object)}, "not an archive of arrays"),
        (write_npz, {"conf": np.array(["a"] * 3)}, "not of numbers"),
        (write_vl_bert_json, {"features": "%%%"}, "not base64"),
        (write_vl_bert_json, {"features": b64(FEATURES)[:-8]}, "not 3 rows"),
        (write_vl_bert_json, {"num_boxes": "many"}, "num_boxes is 'many'"),
        (write_vl_bert_json, {"boxes": None}, "not base64 text"),
    ],
)
def test_damage_is_named(tmp_path: Path, write: Any, changes: dict[str, Any], why: str, stack: ExitStack) -> None:
    reader = open_regions(write(tmp_path / "regions", [PICTURE], **changes), stack)
    with pytest.raises(DatasetError) as caught:
        reader.read("9" if write == write_butd_tsv else PICTURE.stem, **WIDTH_AND_HEIGHT)
    assert why in caught.value.why
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (packed({"features": FEATURES}), "no array of boxes"),
        (packed(ENTRY, kind=b"O"), "not a plain array"),
        (packed(ENTRY, type="O"), "not an array"),
        (packed(ENTRY, shape=[7, 8]), "not an array"),
        (msgpack.packb([1, 2]), "not a dictionary"),
    ],
)
def test_damaged_lmdb_entries_are_named(tmp_path: Path, entry: bytes, why: str, stack: ExitStack) -> None:
    reader = open_regions(write_lmdb(tmp_path / "all", {"a.npz": entry}), stack)
    with pytest.raises(DatasetError) as caught:
        reader.read("a", **WIDTH_AND_HEIGHT)
    assert why in caught.value.why


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
    assert caught.value.where == f"{file}:2"
    assert f"is at {file}:1 too" in caught.value.why


def test_names_of_pictures() -> None:
    coco = Path("val2014/COCO_val2014_000000000009.jpg")
    assert name_of(coco, "number") == "9"
    assert name_of(coco, "stem") == "COCO_val2014_000000000009"
    assert name_of(coco, "uniter") == "coco_val2014_000000000009"
    assert name_of(Path("36979.jpg"), "uniter") == "flickr30k_000000036979"
    assert name_of(Path("lsmdc/a@3.jpg"), "uniter", vcr_prefix="vcr_gt_val_") == "vcr_gt_val_a@3"
    assert name_of(Path("picture.jpg"), "number") == ""


def test_two_pictures_that_go_by_one_name_are_told(tmp_path: Path, stack: ExitStack) -> None:
    units = [
        ImageUnit(unit_id=folder, path=Path(folder) / PICTURE, width=SIZE[0], height=SIZE[1], boxes_R4=BOXES)
        for folder in ("a", "b")
    ]
    source = write_npz(tmp_path / "npz", [PICTURE])
    files = RegionFiles(source, prefix="vcr_", splits=["val"], first=units[0], stack=stack)
    assert len(files.regions(units[0]).values) == NUM_REGIONS
    with pytest.raises(DatasetError, match="Two pictures go by one name"):
        files.regions(units[1])


def test_nothing_there(tmp_path: Path, stack: ExitStack) -> None:
    with pytest.raises(DatasetError, match="no region features"):
        open_regions(tmp_path / "none", stack)
    path = write_hdf5(tmp_path / "hdf5", [PICTURE])
    index = path.parent / "split36_imgid2idx.json"
    rows = json.loads(index.read_text())
    (path.parent / "split36_imgid2idx.pkl").write_bytes(pickle.dumps({int(name): row for name, row in rows.items()}))
    index.unlink()
    with pytest.raises(DatasetError, match="index") as refused:
        open_regions(path, stack)
    # Pickles are not loaded here; the command that a user gives who trusts one makes the index.
    ((_, *arguments),) = refused.value.next_command.commands
    subprocess.run([sys.executable, *arguments], check=True)
    assert json.loads(index.read_text()) == rows
    index.write_text("[1, 2]")
    with pytest.raises(DatasetError, match="index"):
        open_regions(path, stack)
