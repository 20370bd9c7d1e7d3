"""Finetuning notices, before its first step, what only verification would; a store's bad day changes no loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import completed, exit_code
from objects import upload
from run_logs import losses
from s3_faults import serve_faults
from s3_server import BUCKET, S3Server, environment_of
from tiny_extraction import tree_bytes

from advl_pipeline.base.locations import Url
from advl_pipeline.cache.commit_records import load_complete
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.stores import FolderStore
from advl_pipeline.cache.verify import require_trustworthy

VALUES = "text/tokens/values/c/0/0"


@pytest.fixture
def cache(small_corpus: Any, tmp_path: Path) -> Path:
    """A copy of the text teacher's cache."""
    return Path(shutil.copytree(small_corpus.caches[0], tmp_path / "minilm-l6"))


def test_a_changed_payload_stops_the_command_and_is_mended(small_corpus: Any, cache: Path, tmp_path: Path) -> None:
    path = cache / VALUES
    content = bytearray(path.read_bytes())
    half = len(content) // 4 * 2
    content[:half] = np.full(half // 2, np.nan, np.float16).tobytes()  # The footer stays.
    path.write_bytes(content)
    done = completed(
        *("finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a", "--data-root", small_corpus.data_root),
        *("--output", tmp_path / "run", "--cache", cache, "--num-steps", 2, "--confidence", "none"),
    )
    assert done.returncode == 4, done.stderr
    assert f"{VALUES}: its content changed" in done.stderr
    assert f"next:  advl cache repair {cache}" in done.stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()
    (cache / "identity.json").unlink()
    repaired = completed("cache", "repair", cache, "--data-root", small_corpus.data_root)
    assert repaired.returncode == 0, repaired.stderr
    assert tree_bytes(cache) == tree_bytes(small_corpus.caches[0])
    norm_N = zarr.open_group(cache, mode="r")["text/stats/norm"][:]
    assert norm_N.min() > 2  # The teacher's own; what is stored has length 1.


def test_verifying_finds_what_nothing_about_a_file_tells_of(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_trustworthy(open_cache(cache))
    path = cache / VALUES
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    store = FolderStore(cache)
    store.mark_verified(store.changed({VALUES: load_complete(store).files[VALUES]}))  # As if a disk had lost a bit.
    require_trustworthy(open_cache(cache))
    assert exit_code("cache", "verify", cache) == 4
    assert f"{VALUES}: its content changed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_losses_through_faults(small_corpus: Any, s3_server: S3Server, tmp_path: Path) -> None:
    small_corpus.run(tmp_path / "local")
    urls = tuple(Url(f"s3://{BUCKET}/store-faults/{path.name}") for path in small_corpus.caches)
    with environment_of(s3_server.environment):
        for url, path in zip(urls, small_corpus.caches, strict=True):
            upload(url, tree_bytes(path))
    faults = serve_faults(s3_server, "500", "cut", "503", "slow", "500 after")
    # What another test fetched of equal caches would be asked for no more.
    fetched = {"ADVL_DISK_CACHE": str(tmp_path / "fetched")}
    with faults as store, environment_of(store.environment | fetched):
        small_corpus.run(tmp_path / "remote", cache=urls)
        assert store.met.total() > 20
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
