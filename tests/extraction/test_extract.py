"""An extraction writes what the teacher computes, once, in a store that plain Zarr reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from tiny_extraction import TinyDataset, TinyTextTower, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.base.errors import AdvlError, ConfigError, DatasetError, IdentityMismatch, StorageError
from advl_pipeline.cache.reader import UnknownUnit, open_cache
from advl_pipeline.extraction.run import extract
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher


def test_cache_holds_what_the_teacher_computes(tmp_path: Path) -> None:
    result = tiny_extract(tmp_path / "data", tmp_path / "cache")
    dataset, teacher = TinyDataset(tmp_path / "data"), tiny_teacher()
    cache = open_cache(tmp_path / "cache")
    assert result.encoded_units == len(dataset.image_units()) + len(dataset.text_units())
    assert cache.image is not None
    units = dataset.text_units()
    prepared = teacher.text.prepare(units)
    encoded = teacher.text.encode(prepared)
    ids = [unit.unit_id for unit in units]
    stats = zarr.open_group(tmp_path / "cache/text/stats", mode="r")
    values, lengths = cache.text.token_features(ids)
    np.testing.assert_array_equal(lengths, [item.num_tokens for item in prepared])
    np.testing.assert_array_equal(values, np.concatenate([v.numpy() for v in encoded.token_values]).astype("f2"))
    np.testing.assert_array_equal(cache.text.char_spans(ids), np.concatenate([p.char_spans_M2 for p in prepared]))
    # A matrix product over another batch may round differently.
    np.testing.assert_allclose(cache.text.global_features(ids), encoded.global_ND.numpy(), atol=2e-3)
    np.testing.assert_allclose(stats["entropy"][:], encoded.stats["entropy"].numpy())
    stored = values.astype(np.float64)
    np.testing.assert_allclose(cache.text.token_mean, stored.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(cache.text.token_variance, stored.var(axis=0), atol=1e-6)
    globals_ND = cache.text.global_features(ids).astype(np.float64)
    np.testing.assert_allclose(cache.text.global_mean, globals_ND.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["norm"][:], encoded.stats["norm"].numpy(), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(globals_ND, axis=1), 1.0, atol=1e-3)
    for unit in dataset.image_units():
        rows, (length,) = cache.image.token_features([unit.unit_id])
        assert length == len(unit.boxes_R4) == len(rows)
        expected = teacher.image.encode([teacher.image.prepare(unit)])
        np.testing.assert_allclose(rows, expected.token_values[0].numpy(), atol=2e-3)


def test_workers_and_runs_give_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    tiny_extract(pristine / "data", tmp_path / "other", num_workers=4)
    assert tree_bytes(tmp_path / "other") == tree_bytes(pristine / "cache")
    assert not (tmp_path / "other" / ".work").exists()


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"dtype": "float32"}, {"dtype": "int8"}], ids=str)
def test_batches_and_stored_dtypes_change_nothing_beyond_rounding(
    pristine: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    tiny_extract(pristine / "data", tmp_path / "other", **change)
    halves, others = open_cache(pristine / "cache").stores(), open_cache(tmp_path / "other").stores()
    for name, half in halves.items():
        ids, other = list(half.ids), others[name]
        expected, found = half.token_features(ids)[0].astype("f4"), other.token_features(ids)[0].astype("f4")
        cosine = (expected * found).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
        assert cosine.min() > 0.999
        assert other.stored_tokens(ids)[0].dtype == np.dtype(change.get("dtype", "float16"))


def test_other_settings_are_refused(pristine: Path, cache_path: Path) -> None:
    before = tree_bytes(cache_path)
    changes: list[dict[str, Any]] = [
        {"teacher": {"seed": 1}},
        {"teacher": {"towers": "text"}},
        {"dataset": {"seed": 1}},
        {"dataset": {"split": "val"}},
        {"dtype": "float32"},
        {"image_tokens": "none"},
        {"mixed_precision": "bf16"},
        {"select_texts": 0.5},
    ]
    for change in changes:
        with pytest.raises(IdentityMismatch, match="asked for") as caught:
            tiny_extract(pristine / "data", cache_path, **change)
        command = list(caught.value.next_command.commands[1])
        assert command[:4] == ["advl", "extract", "--teacher", "tiny"]
        for option in change.keys() - {"teacher", "dataset"}:
            assert command[command.index("--" + option.replace("_", "-")) + 1] == str(change[option])
    assert open_cache(cache_path, expect={"dataset": {"name": "tiny"}}).image is not None
    with pytest.raises(IdentityMismatch, match=r'dataset\.split +"val" +"train"'):
        open_cache(cache_path, expect={"dataset": {"split": "val"}})
    assert tree_bytes(cache_path) == before


def test_the_command_again_does_nothing_though_files_were_moved_and_touched(
    pristine: Path, cache_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(pristine / "data", tmp_path / "moved", copy_function=shutil.copyfile)
    moved = cache_path.rename(tmp_path / "moved-cache")
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    assert tiny_extract(tmp_path / "moved", moved).encoded_units == 0
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before


def test_unreadable_picture_stops_or_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0-7.png").write_bytes(b"no picture")
    dataset = TinyDataset(tmp_path / "data")
    bad, good = dataset.image_units()[7:9]
    with pytest.raises(DatasetError) as caught:
        extract(tiny_config(tmp_path / "cache"), tiny_teacher(), dataset)
    assert bad.path.name in caught.value.where
    result = extract(tiny_config(tmp_path / "cache", on_error="skip"), tiny_teacher(), dataset)
    assert result.quarantined == 1
    store = open_cache(tmp_path / "cache").image
    assert len(store) == len(store.token_lengths(list(store.ids))) == len(dataset.image_units()) - 1
    assert bad.unit_id not in list(store.ids)
    assert store.contains([bad.unit_id, good.unit_id]).tolist() == [False, True]
    with pytest.raises(UnknownUnit, match="could not be read"):
        store.global_features([bad.unit_id])


@pytest.mark.parametrize(
    ("changes", "refusal", "says"),
    [
        ({"dataset": {"num_images": 0}}, DatasetError, "nothing to extract"),
        ({"teacher": {"towers": "text"}, "modality": "image"}, ConfigError, "no image tower"),
        ({"shard_rows": 1 << 40}, ConfigError, "shard would be too large"),
    ],
    ids=str,
)
def test_what_cannot_be_extracted_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], refusal: type[AdvlError], says: str
) -> None:
    with pytest.raises(refusal, match=says):
        tiny_extract(tmp_path / "data", tmp_path / "cache", **changes)
    assert not (tmp_path / "cache").exists()


def test_full_disk_is_seen_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    (tmp_path / "mine").mkdir()
    for output in (tmp_path / "caches" / "tiny" / "train", tmp_path / "mine"):
        with pytest.raises(StorageError, match="not enough room"):
            tiny_extract(tmp_path / "data", output)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "mine"}
    assert not list((tmp_path / "mine").iterdir())


def test_a_link_in_the_place_of_the_work_folder_is_not_followed(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "claims").mkdir(parents=True)
    (tmp_path / "elsewhere" / "claims" / "plan").write_text("mine", encoding="utf-8")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".work").symlink_to(tmp_path / "elsewhere")
    before = tree_bytes(tmp_path / "elsewhere")
    tiny_extract(pristine / "data", tmp_path / "cache")
    assert tree_bytes(tmp_path / "elsewhere") == before
    assert tree_bytes(tmp_path / "cache") == tree_bytes(pristine / "cache")


def test_confidences_that_cannot_be_written_are_an_error_of_the_extraction(pristine: Path, cache_path: Path) -> None:
    (cache_path / "confidence").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        tiny_extract(pristine / "data", cache_path, confidence="probe")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_beyond_the_range_are_clipped_and_counted(tmp_path: Path, dtype: str) -> None:
    teacher = {"scale": 1e5, "towers": "text"}
    assert tiny_extract(tmp_path / "data", tmp_path / "cache", dtype=dtype, teacher=teacher).clipped > 0
    store = open_cache(tmp_path / "cache").text
    assert np.isfinite(store.token_features(list(store.ids))[0]).all()
    assert np.isfinite(store.token_variance).all()


class NanTower(TinyTextTower):
    """Gives NaN for the shortest texts, as a teacher does that overflows: the last batch of the last shard."""

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        encoded = super().encode(units)
        for unit, values in zip(units, encoded.token_values, strict=True):
            if unit.num_tokens == 1:
                values[:] = torch.nan
        return encoded


def test_features_that_are_no_numbers_are_never_committed(tmp_path: Path) -> None:
    dataset, teacher = TinyDataset(tmp_path / "data"), Teacher(name="tiny", text=NanTower())
    for _ in range(2):
        with pytest.raises(AdvlError, match="NaN or infinite"):
            extract(tiny_config(tmp_path / "cache", batch_size=5), teacher, dataset)
    assert not (tmp_path / "cache" / "records" / "complete.json").exists()
