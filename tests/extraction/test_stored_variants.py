"""Variants of the store: caches with some of the tokens, and what version 0.2 wrote."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import complaint
from tiny_extraction import TinyDataset, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.cache.commit_records import seal
from advl_pipeline.cache.layout import render_json
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.datasets.words import assign_tokens_to_words, word_spans
from advl_pipeline.errors import ConfigError, IdentityMismatch
from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import RepairConfig
from advl_pipeline.extraction.recompute import recompute
from advl_pipeline.extraction.repair import run_repair
from advl_pipeline.teachers.text_units import fit_split_prior


@pytest.fixture(scope="module")
def selected(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with some of the tokens; never to be changed."""
    cache = tmp_path_factory.mktemp("variants") / "cache"
    tiny_extract(pristine / "data", cache, select_tokens=0.4)
    return cache


def compressed_in_0_2(source: Path, target: Path) -> Path:
    """Copy a cache with the records that version 0.2 wrote of one under `--compression zstd`."""
    shutil.copytree(source, target)
    plan = json.loads((target / "records/plan.json").read_text(encoding="utf-8"))
    del plan["record_sha256"]
    plan["compression"] = plan["provenance"]["config"]["compression"] = "zstd"
    (target / "records/plan.json").write_bytes(seal(plan))
    complete = json.loads((target / "records/complete.json").read_text(encoding="utf-8"))
    del complete["record_sha256"]
    complete["files"]["records/plan.json"] = [len(seal(plan)), hashlib.sha256(seal(plan)).hexdigest()]
    (target / "records/complete.json").write_bytes(seal(complete))
    return target


def test_compressed_caches_of_version_0_2_are_refused_with_the_way_out(
    pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = compressed_in_0_2(pristine / "cache", tmp_path / "cache")
    before = tree_bytes(cache)
    for words in (
        ["verify", cache],
        ["info", cache],
        ["repair", cache],
        ["export", cache, "--output", tmp_path / "o"],
    ):
        code, told = complaint(capsys, "cache", *words)
        assert code == IdentityMismatch.exit_code, words
        assert "Compressed caches are not read any more" in told
        assert f"advl cache prune {cache} --all && advl extract --teacher tiny" in told
        assert "--compression" not in told
    with pytest.raises(IdentityMismatch):
        open_cache(cache)
    assert tree_bytes(cache) == before
    assert complaint(capsys, "cache", "prune", cache, "--all")[0] == 0


def test_what_earlier_versions_noted_of_a_cache_is_no_option_any_more(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Path(shutil.copytree(pristine / "cache", tmp_path / "cache"))
    for name in ("records/plan.json", "records/provenance.json", "zarr.json"):
        (cache / name).unlink()
    opened = (tiny_teacher(), TinyDataset(pristine / "data"))
    monkeypatch.setattr(run, "open_inputs", lambda config: opened)
    made = open_cache(pristine / "cache").provenance
    old = {**made, "config": {**made["config"], "compression": "none", "text_units": "question"}}
    (cache / "records/provenance.json").write_bytes(render_json(old))
    assert not run_repair(RepairConfig(cache=cache)).is_identical
    assert verify_cache(cache).is_sound
    assert open_cache(cache).provenance == old


def test_kept_rows_are_those_of_the_rarest_words(pristine: Path, selected: Path) -> None:
    dataset = TinyDataset(pristine / "data")
    prior = fit_split_prior(dataset)
    full, kept = open_cache(pristine / "cache").text, open_cache(selected).text
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


def test_selection_is_part_of_the_identity(pristine: Path, selected: Path) -> None:
    cache = open_cache(selected)
    assert cache.kept_share == 0.4
    assert open_cache(pristine / "cache").kept_share is None
    for share in (None, 0.5):
        with pytest.raises(IdentityMismatch, match=r"kept_tokens"):
            tiny_extract(pristine / "data", selected, select_tokens=share)
    report = verify_cache(selected)
    assert report.is_sound
    config = tiny_config(selected, select_tokens=0.4)
    checked = recompute(report, config, tiny_teacher(), TinyDataset(pristine / "data"), count=5, seed=0)
    assert checked.is_sound
    assert checked.recomputed > 5


def test_words_are_selected_from_texts_alone(pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text tokens"):
        tiny_extract(pristine / "data", tmp_path / "cache", select_tokens=0.3, modality="image")
    assert not (tmp_path / "cache").exists()
