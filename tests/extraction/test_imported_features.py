"""Features that are imported, equal to what every format holds; damaged files are errors, never numbers."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import made_examples
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
from tiny_extraction import TinyDataset

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.datasets.cards import picture_splits
from advl_pipeline.extraction.config import ImportConfig
from advl_pipeline.extraction.imports.tower import Naming, RegionFiles, join_regions, name_of, open_regions
from advl_pipeline.extraction.run import import_features

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
    if form not in ("hdf5", "ragged") and "lmdb" not in form:  # These tell no size of a picture.
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


def mirror(write: Callable[..., Path], **changes: Any) -> Callable[[Path], Path]:
    return lambda folder: write(folder, [PICTURE], **changes)


def lmdb_of(content: bytes) -> Callable[[Path], Path]:
    return lambda folder: write_lmdb(folder, {f"{PICTURE.stem}.npz": content})


def lines(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / "butd.tsv").write_text(text)
        return folder / "butd.tsv"

    return write


POISONED = np.where(np.arange(FEATURES.size).reshape(FEATURES.shape) == 50, np.nan, FEATURES).astype(np.float32)
DAMAGED: list[tuple[Callable[[Path], Path], str]] = [
    (mirror(write_butd_tsv, features=POISONED), "not finite"),
    (mirror(write_butd_tsv, size=(50, 40)), "for a picture of 50x40"),
    (mirror(write_npz, norm_bb=SHARES * [1, 1, 1, 1, np.nan, 1], boxes=None), "boxes hold a value that is not"),
    (mirror(write_npz, features=FEATURES[:2]), "do not fit"),
    (mirror(write_npz, boxes=BOXES + 900), "outside the picture"),
    (mirror(write_npz, conf=np.array([{"a": 1}], dtype=object)), "not an archive of arrays"),
    (mirror(write_npz, conf=np.array(["a"] * 3)), "not of numbers"),
    (mirror(write_vl_bert_json, features="%%%"), "not base64"),
    (mirror(write_vl_bert_json, features=b64(FEATURES)[:-8]), "not 3 rows"),
    (mirror(write_vl_bert_json, num_boxes="many"), "num_boxes is 'many'"),
    (mirror(write_vl_bert_json, boxes=None), "not base64 text"),
    (lmdb_of(packed({"features": FEATURES})), "no array of boxes"),
    (lmdb_of(packed(ENTRY, kind=b"O")), "not a plain array"),
    (lmdb_of(packed(ENTRY, type="O")), "not an array"),
    (lmdb_of(packed(ENTRY, shape=[7, 8])), "not an array"),
    (lmdb_of(msgpack.packb([1, 2])), "not a dictionary"),
    (lines("9\t1\t2\n"), "butd.tsv:1: 3 columns"),
    (lines("9\t1\t1\t1\ta\ta\n" * 2), "butd.tsv:1 too"),
]


@pytest.mark.parametrize(("write", "why"), DAMAGED, ids=[why for _, why in DAMAGED])
def test_damage_is_named(tmp_path: Path, write: Callable[[Path], Path], why: str, stack: ExitStack) -> None:
    path = write(tmp_path / "regions")
    name = "9" if path.suffix == ".tsv" else PICTURE.stem
    with pytest.raises(DatasetError) as caught:
        open_regions(path, stack).read(name, **WIDTH_AND_HEIGHT)
    assert why in f"{caught.value.where}: {caught.value.why}"
    assert str(tmp_path) in caught.value.where


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


COCO = "val2014/COCO_val2014_000000000009.jpg"


@pytest.mark.parametrize(
    ("picture", "naming", "name"),
    [
        (COCO, "number", "9"),
        (COCO, "stem", "COCO_val2014_000000000009"),
        (COCO, "uniter", "coco_val2014_000000000009"),
        ("36979.jpg", "uniter", "flickr30k_000000036979"),
        ("lsmdc/a@3.jpg", "uniter", "vcr_gt_val_a@3"),
        ("picture.jpg", "number", ""),
    ],
)
def test_names_of_pictures(picture: str, naming: Naming, name: str) -> None:
    assert name_of(Path(picture), naming, vcr_prefix="vcr_gt_val_") == name


def test_two_pictures_that_go_by_one_name_are_told(tmp_path: Path, stack: ExitStack) -> None:
    units = [
        made_examples.unit(folder / PICTURE, *SIZE, BOXES, name=str(folder)) for folder in (Path("a"), Path("b"))
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


def imported(source: Path, dataset: TinyDataset, output: Path) -> FeatureStore:
    """Import features into a cache, and return what it holds of pictures."""
    import_features(ImportConfig(source=source, name="mine", dataset="tiny", output=output), dataset)
    return open_cache(output).image


def write_arrays(source: Path, arrays: Mapping[str, Any]) -> None:
    """File arrays under names."""
    for name, rows in arrays.items():
        path = source / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows)


def test_arrays_are_taken_as_they_are_and_their_mean(tmp_path: Path) -> None:
    dataset = TinyDataset(tmp_path / "data", num_images=6)
    generator = np.random.default_rng(0)
    # Pictures without boxes have no rows to take a mean of.
    features = {
        unit.path.stem: generator.standard_normal((max(1, len(unit.boxes_R4)), 5)).astype(np.float32) + 1
        for unit in dataset.image_units()
    }
    write_arrays(tmp_path / "features", features)
    store = imported(tmp_path / "features", dataset, tmp_path / "cache")
    for unit in dataset.image_units():
        rows = features[unit.path.stem]
        np.testing.assert_array_equal(store.token_features([unit.unit_id])[0], rows.astype(np.float16))
        np.testing.assert_allclose(store.global_features([unit.unit_id])[0], rows.mean(axis=0), atol=2e-3)


def test_each_picture_gets_its_own_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one name in several folders do not share what is filed under it."""
    dataset = TinyDataset(tmp_path / "data", num_images=2)
    units = [
        dataclasses.replace(unit, path=tmp_path / "data" / folder / "0.png")
        for unit, folder in zip(dataset.image_units(), ("cats", "dogs"), strict=True)
    ]
    monkeypatch.setattr(dataset, "image_units", lambda: units)

    def found(*names: str) -> list[float]:
        source = tmp_path / "-".join(names).replace("/", "_")
        write_arrays(source, {name: np.full(3, value, np.float32) for value, name in enumerate(names)})
        store = imported(source, dataset, source.with_suffix(".cache"))
        return [float(store.global_features([unit.unit_id])[0, 0]) for unit in units]

    assert found("dogs/0", "cats/0") == [1.0, 0.0]
    assert found("dogs/0", "data/cats/0.png") == [1.0, 0.0]
    for names, said in {
        ("0",): "Two pictures go by one name",
        ("a/0", "b/0"): "Several files of features",
        ("dogs/0", "dogs/1"): "Two pictures go by one name",
    }.items():
        with pytest.raises(DatasetError, match=said):
            found(*names)


def packed_archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


NO_NUMBERS = np.full(3, np.nan, np.float32)
BAD_ARRAYS: dict[str, tuple[np.ndarray | bytes, str]] = {
    "objects": (np.array([Evil()]), "cannot be read"),
    "an archive": (packed_archive(features=np.ones((2, 3), np.float32)), "cannot be read"),
    "a torn header": (b"\x93NUMPY\x01\x00\x06\x00{'a':(\n", "cannot be read"),
    "numbers that are none": (NO_NUMBERS, "must be finite"),
    # It is told before any array is read, and so before the one that cannot be used.
    "the second picture lacks its own": (NO_NUMBERS, "no features for a picture(?s:.*)0-1.png"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_that_cannot_be_taken_are_refused_and_never_unpickled(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset, (content, says) = TinyDataset(tmp_path / "data", num_images=2), BAD_ARRAYS[what]
    Path("features").mkdir()
    for unit in dataset.image_units()[: 1 if "lacks" in what else 2]:
        file = Path("features", f"{unit.path.stem}.npy")
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            np.save(file, content)
    with pytest.raises(DatasetError, match=says):
        imported(Path("features"), dataset, tmp_path / "cache")
    assert not Path("was-run").exists()
