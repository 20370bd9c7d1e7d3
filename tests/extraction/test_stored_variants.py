"""Variants of the store: caches with some of the tokens, and what version 0.2 wrote."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from commands import complaint
from tiny_extraction import TinyDataset, tiny_teacher, tree_bytes

from advl_pipeline.base.errors import IdentityMismatch
from advl_pipeline.cache.commit_records import seal_record
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import render_json
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import RepairConfig
from advl_pipeline.extraction.repair import run_repair


def compressed_in_0_2(source: Path, target: Path) -> Path:
    """Copy a cache with the records that version 0.2 wrote of one under `--compression zstd`."""
    shutil.copytree(source, target)
    plan = json.loads((target / "records/plan.json").read_text(encoding="utf-8"))
    del plan["record_sha256"]
    plan["compression"] = plan["provenance"]["config"]["compression"] = "zstd"
    (target / "records/plan.json").write_bytes(seal_record(plan))
    complete = json.loads((target / "records/complete.json").read_text(encoding="utf-8"))
    del complete["record_sha256"]
    complete["files"]["records/plan.json"] = [len(seal_record(plan)), hashlib.sha256(seal_record(plan)).hexdigest()]
    (target / "records/complete.json").write_bytes(seal_record(complete))
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
    monkeypatch.setattr(run, "open_teacher_and_data", lambda config: opened)
    made = open_cache(pristine / "cache").provenance
    old = {**made, "config": {**made["config"], "compression": "none", "text_units": "question"}}
    (cache / "records/provenance.json").write_bytes(render_json(old))
    assert not run_repair(RepairConfig(cache=cache)).is_identical
    assert verify_cache(cache).is_sound
    assert open_cache(cache).provenance == old
