"""Variants of the store: compressed token features, and caches with some of the tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.cache.compression import compress, declared_size, decompress_into
from advl_pipeline.cache.config import InfoConfig
from advl_pipeline.cache.info import run_info
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.datasets.words import assign_tokens_to_words, word_spans
from advl_pipeline.errors import ConfigError, CorruptCache, IdentityMismatch
from advl_pipeline.extraction.recompute import recompute
from advl_pipeline.extraction.repair import repair
from advl_pipeline.teachers.selected_words import fit_split_prior


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data` and the caches `plain`, `zstd` and `selected`; never to be changed."""
    folder = tmp_path_factory.mktemp("variants")
    tiny_extract(folder / "data", folder / "plain")
    tiny_extract(folder / "data", folder / "zstd", compression="zstd")
    tiny_extract(folder / "data", folder / "selected", select_tokens=0.4)
    return folder


def damaged_copy(source: Path, target: Path) -> Path:
    for name, content in tree_bytes(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


def test_compressed_features_are_the_same_numbers(variants: Path) -> None:
    plain, packed = open_cache(variants / "plain"), open_cache(variants / "zstd")
    for name, store in plain.stores().items():
        other, ids = packed.stores()[name], list(store.ids)
        np.testing.assert_array_equal(other.token_features(ids)[0], store.token_features(ids)[0])
        np.testing.assert_array_equal(other.global_features(ids), store.global_features(ids))
        for unit in ids[:5]:
            np.testing.assert_array_equal(other.token_features([unit])[0], store.token_features([unit])[0])
        pairs = zip(store.batches(7, seed=3), other.batches(7, seed=3, bytes_in_flight=0), strict=True)
        for left, right in pairs:
            assert left.token_BMD is not None
            assert right.token_BMD is not None
            np.testing.assert_array_equal(left.token_BMD.numpy(), right.token_BMD.numpy())


def test_plain_zarr_decodes_them(variants: Path) -> None:
    plain, packed = (zarr.open_group(variants / name, mode="r") for name in ("plain", "zstd"))
    for name in ("image/tokens/values", "text/tokens/values", "text/tokens/char_spans"):
        np.testing.assert_array_equal(packed[name][:], plain[name][:])
    assert b'"zstd"' in (variants / "zstd/text/tokens/values/zarr.json").read_bytes()


def test_compression_is_part_of_the_identity(variants: Path) -> None:
    before = tree_bytes(variants / "zstd")
    assert tiny_extract(variants / "data", variants / "zstd", compression="zstd").encoded_units == 0
    with pytest.raises(IdentityMismatch, match=r"storage\.compression"):
        tiny_extract(variants / "data", variants / "zstd")
    assert tree_bytes(variants / "zstd") == before
    assert run_info(InfoConfig(cache=variants / "zstd")).compression == "zstd"


def test_damage_in_a_compressed_shard_is_named_and_mended(variants: Path, tmp_path: Path) -> None:
    cache = damaged_copy(variants / "zstd", tmp_path / "cache")
    name = "text/tokens/values/c/0/0"
    content = bytearray((cache / name).read_bytes())
    content[0] ^= 0xFF  # The first frame's magic number.
    (cache / name).write_bytes(content)
    assert verify_cache(cache).bad_paths() == {name}
    store = open_cache(cache).text
    assert store is not None
    with pytest.raises(CorruptCache, match="compressed chunk") as caught:
        store.token_features(list(store.ids))
    assert name in caught.value.where
    content[-6] ^= 0xFF  # The index.
    (cache / name).write_bytes(content)
    store = open_cache(cache).text
    assert store is not None
    with pytest.raises(CorruptCache, match="index of a shard"):
        store.token_features(list(store.ids))
    config = tiny_config(cache, compression="zstd")
    assert repair(config, tiny_teacher(), TinyDataset(variants / "data")).is_identical
    assert tree_bytes(cache) == tree_bytes(variants / "zstd")


@pytest.mark.parametrize("size", [1, 255, 256, 300, 70_000])
def test_frames_declare_their_size(size: int) -> None:
    content = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    frame = compress(content)
    assert declared_size(frame) == size
    out = np.empty(size, np.uint8)
    decompress_into(frame, out)
    np.testing.assert_array_equal(out, content)
    for wrong in (size - 1, size + 1):
        with pytest.raises(ValueError, match="size of its chunk"):
            decompress_into(frame, np.empty(wrong, np.uint8))


@pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd" + b"\xff" * 30, b"0123456789"])
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError, match="size of its chunk"):
        decompress_into(frame, np.empty(64, np.uint8))


def test_cut_frame_is_refused() -> None:
    frame = compress(np.arange(4096, dtype=np.int64).view(np.uint8))
    with pytest.raises(ValueError, match=r"\w"):
        decompress_into(frame[:-9], np.empty(4096 * 8, np.uint8))


def test_kept_rows_are_those_of_the_rarest_words(variants: Path) -> None:
    dataset = TinyDataset(variants / "data")
    prior = fit_split_prior(dataset)
    full, kept = open_cache(variants / "plain").text, open_cache(variants / "selected").text
    assert full is not None
    assert kept is not None
    for unit in dataset.text_units():
        words = word_spans(unit.text)
        weights = prior.of_text(unit.text)
        count = math.ceil(0.4 * len(words) - 1e-6)
        chosen = sorted(range(len(words)), key=lambda word: (-weights[word], word))[:count]
        tokens = assign_tokens_to_words(full.char_spans([unit.unit_id]), words)
        expected = np.flatnonzero(np.isin(tokens, chosen))
        ids = [unit.unit_id]
        np.testing.assert_array_equal(kept.kept_tokens(ids), expected)
        np.testing.assert_array_equal(kept.token_features(ids)[0], full.token_features(ids)[0][expected])
        np.testing.assert_array_equal(kept.char_spans(ids), full.char_spans(ids)[expected])
    ids = list(full.ids)
    np.testing.assert_array_equal(kept.global_features(ids), full.global_features(ids))
    assert kept.token_lengths(ids).sum() < full.token_lengths(ids).sum()
    with pytest.raises(ConfigError, match="all text tokens"):
        full.kept_tokens(ids)


def test_selection_is_part_of_the_identity(variants: Path) -> None:
    cache = open_cache(variants / "selected")
    assert cache.kept_share == 0.4
    assert open_cache(variants / "plain").kept_share is None
    for share in (None, 0.5):
        with pytest.raises(IdentityMismatch, match=r"kept_tokens"):
            tiny_extract(variants / "data", variants / "selected", select_tokens=share)
    report = verify_cache(variants / "selected")
    assert report.is_sound
    config = tiny_config(variants / "selected", select_tokens=0.4)
    checked = recompute(report, config, tiny_teacher(), TinyDataset(variants / "data"), count=5, seed=0)
    assert checked.report.is_sound
    assert checked.recomputed > 5


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_senseless_shares_are_refused(variants: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0, at most 1"):
        tiny_extract(variants / "data", tmp_path / "cache", select_tokens=share)


def test_pictures_alone_have_no_words(variants: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text tokens"):
        tiny_extract(variants / "data", tmp_path / "cache", select_tokens=0.3, modality="image")


def test_a_share_of_words_needs_the_words_of_the_whole_text(variants: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="where its question is not read"):
        tiny_extract(variants / "data", tmp_path / "cache", select_tokens=0.3, text_units="candidate")
    assert not (tmp_path / "cache").exists()
