"""Pictures that `advl prepare` stores are those that a student decodes, and a run with them is the run without."""

from __future__ import annotations

import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from commands import exit_code as advl
from first_step import first_terms
from run_logs import load_json
from small_corpus import SmallCorpus
from tiny_extraction import tree_bytes

from advl_pipeline.base.errors import IdentityMismatch
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.students.picture_source import DecodedPictures
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.student_inputs import StoredPictures

SIZE = 112


@pytest.fixture(scope="module")
def prepared(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the training pictures, stored."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare = ("prepare", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root)
    with chdir(folder):
        assert advl(*prepare, "--student", "scenes-vilt") == 0
    return folder / "caches"


@pytest.fixture
def stored(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stored training pictures, where they are looked for."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prepared, tmp_path / "caches")
    return tmp_path / "caches" / f"pictures-{SIZE}" / "scenes-vcr" / "train"


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: DecodedPictures, units: Any) -> torch.Tensor:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(DecodedPictures, "pictures", refuse)


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
        assert np.array_equal(planes.transpose(1, 2, 0), read_square(unit.path, SIZE))


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
    assert advl(*evaluate) == 0
    document = tmp_path / "run" / "evaluation" / "test.json"
    decoded = load_json(document)
    prepare = ("prepare", "--dataset", "scenes-vcr", "--split", "test", "--size", SIZE)
    assert advl(*prepare, "--data-root", small_corpus.data_root) == 0
    no_decoding(monkeypatch)
    assert advl(*evaluate) == 0
    assert load_json(document)["metrics"] == decoded["metrics"]
    assert load_json(document)["use_of_vision"] == decoded["use_of_vision"]


def test_they_are_a_cache_like_any_other(
    small_corpus: SmallCorpus, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_bytes(stored)
    found_in = ("--data-root", small_corpus.data_root)
    assert advl("cache", "verify", stored, "--recompute", "2", *found_in) == 0
    # A shard that is damaged is found, and written again as it was.
    shard = next(path for path in (stored / "image" / "tokens" / "values" / "c").rglob("*") if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    assert advl("cache", "verify", stored) == 4
    assert advl("cache", "repair", stored, *found_in) == 0
    assert tree_bytes(stored) == before
    # It is no teacher, and a student of another size does not take it.
    run = ("finetune", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, "--task", "vcr-q2a")
    student = ("--student", "scenes-vilt", "--output", tmp_path / "run")
    assert advl(*run, *student, "--cache", stored) == 2
    assert f"--pictures {stored}" in capsys.readouterr().err
    plain = (*run, *student, "--method", "plain", "--pictures", stored)
    assert advl(*plain, "--student-option", "image_size=64") == 3
    assert "advl prepare --dataset scenes-vcr --split train --size 64" in capsys.readouterr().err
    assert advl(*plain, "--student", "scenes-small") == 2
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    text, pictures = (shutil.copytree(cache, tmp_path / cache.name) for cache in small_corpus.caches)
    shutil.rmtree(text / "confidence")
    before = tree_bytes(text)
    run = tmp_path / "run"
    taught = small_corpus.config(run, student="scenes-vilt", cache=(text,))
    with pytest.raises(IdentityMismatch, match="advl prepare"):
        run_finetune(replace(taught, pictures=(pictures,)))
    assert tree_bytes(text) == before
    assert not run.exists()
    tasks = ("vcr-q2a", "vcr-qa2r")
    small_corpus.run(run, student="scenes-vilt", method="plain", cache=(), num_steps=1, task=tasks)
    before = tree_bytes(run)
    predict = ("predict", run, "--on", "test", "--data-root", small_corpus.data_root)
    assert advl(*predict, "--pictures", pictures, "--output", tmp_path / "new" / "test.csv") == 3
    assert not (tmp_path / "new").exists()
    assert tree_bytes(run) == before


def test_what_cannot_be_prepared(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for student, reason in ((["--student", "uniter-tiny"], "reads no squeezed pictures"), ([], "or --size PIXELS")):
        assert advl("prepare", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, *student) == 2
        assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
