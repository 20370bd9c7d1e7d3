"""What a student reads: regions and pictures from caches are those of their files, and what may surprise is told."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from commands import advl, exit_code
from dataset_mirrors import vcr_record, write_vcr
from first_step import first_terms
from region_mirrors import FEATURE_SIZE, write_npz, write_uniter_layout, write_vl_bert_json
from run_logs import load_json, metrics
from small_corpus import SmallCorpus, train
from tiny_extraction import TinyDataset, tree_bytes

from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import ConfigError, DatasetError, IdentityMismatch
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.extraction.config import ImportConfig
from advl_pipeline.extraction.run import import_features
from advl_pipeline.stored_inputs.pictures import StoredPictures
from advl_pipeline.stored_inputs.regions import CachedRegions, use_region_caches
from advl_pipeline.students.picture_source import DecodedPictures, Regions, with_whole_picture
from advl_pipeline.students.region_student import PIXELS_CAVEAT, RegionStudent
from advl_pipeline.students.registry import build_student


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of VCR in its official layout, and published weights of a student of regions."""
    folder = tmp_path_factory.mktemp("official data")
    for split in ("train", "val"):
        write_vcr(folder, [vcr_record(number, split=split) for number in range(8)], split=split)
    torch.save(build_student("uniter-tiny").state_dict(), folder / "uniter-tiny.pt")
    return folder


def finetune(root: Path, run: Path, student: str, *more: Any) -> list[Any]:
    return [
        *("finetune", "--dataset", "vcr", "--data-root", root, "--student", student, "--method", "plain"),
        *("--recipe", "none", "--num-steps", 2, "--batch-size", 2, "--output", run, *more),
    ]


def test_published_weights_are_not_trained_on_noise(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = root / "uniter-tiny.pt"
    code, _, err = advl(capsys, *finetune(root, tmp_path / "run", "uniter-tiny", "--init", weights))
    assert code == 2
    assert "needs the features of a detector" in err
    for way_out in ("--regions CACHE", "--student vilt", "--regions pixels"):
        assert way_out in err
    assert not (tmp_path / "run").exists()


def test_every_table_says_that_regions_are_pixels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "noise.toml"
    study.write_text(
        f"""
name = "noise"
dataset = "vcr"
tasks = ["vcr-q2a"]
student = "uniter-tiny"
init = "{root / "uniter-tiny.pt"}"
test_sets = ["val"]
methods = ["plain"]
seeds = [0]
min_seeds = 1

[training]
num_steps = 1
batch_size = 2
regions = "pixels"
""",
        encoding="utf-8",
    )
    folder = tmp_path / "study"
    code, out, err = advl(capsys, "study", study, "--output", folder, "--data-root", root)
    assert code == 0, err
    assert f"in percent ({PIXELS_CAVEAT})" in out
    assert f"caution: {PIXELS_CAVEAT}" in err
    (run,) = (path.parent for path in (tmp_path / "cells").glob("*/run.json"))
    assert load_json(run / "settings.json")["reads"]["caveats"] == [PIXELS_CAVEAT]
    assert load_json(run / "result.json")["caveats"] == [PIXELS_CAVEAT]
    for form in ("html", "md", "csv"):
        code, out, err = advl(capsys, "report", folder, "--to", form, "--output", tmp_path / form)
        assert code == 0, err
        assert PIXELS_CAVEAT.replace("'", "&#39;" if form == "html" else "'") in (tmp_path / form).read_text("utf-8")
    code, out, err = advl(capsys, "evaluate", run, "--on", "val", "--data-root", root, "--probe", "none")
    assert code == 0, err
    assert f"caution: {PIXELS_CAVEAT}" in out


def test_a_student_that_this_package_trained_on_crops_goes_on_with_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert advl(capsys, *finetune(root, first, "uniter-tiny"))[0] == 0
    code, _, err = advl(capsys, *finetune(root, second, "uniter-tiny", "--init", first))
    assert code == 0, err
    assert PIXELS_CAVEAT not in err


def test_texts_that_are_cut_are_counted_printed_and_logged(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, out, err = advl(capsys, *finetune(root, run, "vilt-tiny", "--student-option", "max_text_length=20"))
    assert code == 0, err
    # Of eight questions, the four answers fit and the four rationales behind the right answer do not.
    assert "texts: 32 of 64 sampled (50 %) are longer than 20 tokens and are cut" in err
    reads = load_json(run / "settings.json")["reads"]
    assert (reads["num_texts"], reads["num_cut"], reads["max_tokens"]) == (64, 32, 20)
    logged = metrics(run)
    result = load_json(run / "result.json")
    assert result["num_texts"] == 16
    assert result["num_texts_cut"] == sum(record["num_texts_cut"] for record in logged)
    assert f"{result['num_texts_cut']} of 16 texts were cut to the student's length" in out
    assert result["caveats"] == ["texts of more than 20 tokens are cut"]
    code, out, err = advl(capsys, *finetune(root, tmp_path / "whole", "vilt-tiny"))
    assert code == 0, err
    assert "texts were cut" not in out
    assert "texts:" not in err


ASSETS = Path(__file__).parents[1] / "assets"
PICTURE_SIZE = (64, 48)
"""Of the pictures of `TinyDataset`, and of those that the mirrors' features are of."""


def imported(
    folder: Path,
    source: Path,
    paths: Sequence[str],
    *,
    size: tuple[int, int] = PICTURE_SIZE,
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
    size = np.array([*PICTURE_SIZE, *PICTURE_SIZE], np.float32)
    sides = shares_R4[:, 2:] - shares_R4[:, :2]
    expected = np.concatenate([shares_R4 * size / size, sides, sides[:, :1] * sides[:, 1:]], axis=1)
    np.testing.assert_array_equal(regions.positions_R7, expected)
    beside = cache.image.token_columns([unit.unit_id])
    np.testing.assert_array_equal(beside["confidence"][4:], np.linspace(0.9, 0.5, 12, dtype=np.float32))
    stored = zarr.open_group(cache.path / "image/stats", mode="r")
    assert [stored[side][0] for side in ("width", "height")] == list(PICTURE_SIZE)
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
    with pytest.raises(DatasetError, match="the same width and kind"):
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
    with pytest.raises(ConfigError, match="and the cache has width"):
        use_region_caches(build_student("uniter-tiny", overrides={"feature_size": 25}), caches)
    with pytest.raises(ConfigError, match="sees no regions"):
        use_region_caches(build_student("vilt-tiny"), caches)


SIZE = 112


@pytest.fixture(scope="module")
def prepared(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the training pictures, stored."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare = ("prepare", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root)
    with chdir(folder):
        assert exit_code(*prepare, "--student", "scenes-vilt") == 0
    return folder / "caches"


@pytest.fixture
def stored(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored training pictures, where they are looked for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared, tmp_path / "caches")
    return tmp_path / "caches" / f"pictures-{SIZE}" / "scenes-vcr" / "train"


def test_any_zarr_reader_finds_the_pixels(small_corpus: SmallCorpus, stored: Path) -> None:
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    group = zarr.open_group(stored, mode="r")
    starts, values = np.asarray(group["image/tokens/starts"]), group["image/tokens/values"]
    ids = [row.tobytes().hex() for row in np.asarray(group["image/unit_id"])]
    assert len(ids) == len(dataset.image_units()) > 1
    for unit in dataset.image_units():
        start = int(starts[ids.index(unit.unit_id)])
        planes = np.asarray(values[start : start + 3 * SIZE]).reshape(3, SIZE, SIZE)
        assert planes.dtype == np.uint8
        assert np.array_equal(planes.transpose(1, 2, 0), read_square(unit, SIZE))


def test_what_is_not_stored_is_decoded(small_corpus: SmallCorpus, stored: Path) -> None:
    train, test = (
        open_dataset("scenes-vcr", split=split, data_root=small_corpus.data_root).image_units()
        for split in ("train", "test")
    )
    source, decoded = StoredPictures([open_cache(stored)], SIZE), DecodedPictures(SIZE)
    for units in ([train[1], test[0], train[0]], [train[0]], [test[1]], list(train)):
        source.announce(units)
        assert torch.equal(source.pictures(units), decoded.pictures(units))


def test_a_run_with_stored_pictures_is_the_run_without(
    small_corpus: SmallCorpus,
    stored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = small_corpus.config(tmp_path / "without", student="scenes-vilt", num_workers=2)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path.parent)
        without = first_terms(config)
    assert "pictures:" not in capsys.readouterr().err
    assert first_terms(replace(config, output=tmp_path / "found")) == without
    assert f"read from caches/pictures-{SIZE}/scenes-vcr/train" in capsys.readouterr().err
    moved = stored.rename(tmp_path / "elsewhere")
    assert first_terms(replace(config, output=tmp_path / "given", pictures=(moved,))) == without
    assert str(moved) in capsys.readouterr().err


def test_evaluation_reads_them_too(
    small_corpus: SmallCorpus, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_corpus.run(tmp_path / "run", student="scenes-vilt", method="plain", cache=(), num_steps=1)
    on_test = ("--data-root", small_corpus.data_root, "--probe", "swapped", "--probe", "blanked")
    evaluate = ("evaluate", tmp_path / "run", "--on", "test", *on_test)
    assert exit_code(*evaluate) == 0
    document = tmp_path / "run" / "evaluation" / "test.json"
    decoded = load_json(document)
    prepare = ("prepare", "--dataset", "scenes-vcr", "--split", "test", "--size", SIZE)
    assert exit_code(*prepare, "--data-root", small_corpus.data_root) == 0
    # Nothing is decoded.
    monkeypatch.setattr(DecodedPictures, "pictures", None)
    assert exit_code(*evaluate) == 0
    assert load_json(document)["metrics"] == decoded["metrics"]
    assert load_json(document)["use_of_vision"] == decoded["use_of_vision"]


def test_they_are_a_cache_like_any_other(
    small_corpus: SmallCorpus, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_bytes(stored)
    found_in = ("--data-root", small_corpus.data_root)
    assert exit_code("cache", "verify", stored, "--recompute", "2", *found_in) == 0
    # A shard that is damaged is found, and written again as it was.
    shard = next(path for path in (stored / "image" / "tokens" / "values" / "c").rglob("*") if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    assert exit_code("cache", "verify", stored) == 4
    assert exit_code("cache", "repair", stored, *found_in) == 0
    assert tree_bytes(stored) == before
    # It is no teacher, and a student of another size does not take it.
    run = ("finetune", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, "--task", "vcr-q2a")
    student = ("--student", "scenes-vilt", "--output", tmp_path / "run")
    assert exit_code(*run, *student, "--cache", stored) == 2
    assert f"--pictures {stored}" in capsys.readouterr().err
    plain = (*run, *student, "--method", "plain", "--pictures", stored)
    assert exit_code(*plain, "--student-option", "image_size=64") == 3
    assert "advl prepare --dataset scenes-vcr --split train --size 64" in capsys.readouterr().err
    assert exit_code(*plain, "--student", "scenes-small") == 2
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    text, pictures = (shutil.copytree(cache, tmp_path / cache.name) for cache in small_corpus.caches)
    shutil.rmtree(text / "confidence")
    before = tree_bytes(text)
    run = tmp_path / "run"
    taught = small_corpus.config(run, student="scenes-vilt", cache=(text,))
    with pytest.raises(IdentityMismatch, match="advl prepare"):
        train(replace(taught, pictures=(pictures,)))
    assert tree_bytes(text) == before
    assert not run.exists()
    tasks = ("vcr-q2a", "vcr-qa2r")
    small_corpus.run(run, student="scenes-vilt", method="plain", cache=(), num_steps=1, task=tasks)
    before = tree_bytes(run)
    predict = ("predict", run, "--on", "test", "--data-root", small_corpus.data_root)
    assert exit_code(*predict, "--pictures", pictures, "--output", tmp_path / "new" / "test.csv") == 3
    assert not (tmp_path / "new").exists()
    assert tree_bytes(run) == before


def test_what_cannot_be_prepared(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for student, reason in ((["--student", "uniter-tiny"], "reads no squeezed pictures"), ([], "or --size PIXELS")):
        assert exit_code("prepare", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, *student) == 2
        assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
