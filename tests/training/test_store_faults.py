"""Finetuning from a store that has a bad day gives the losses of finetuning from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from objects import upload
from run_logs import losses
from s3_faults import serve_faults
from s3_server import BUCKET, S3Server, environment_of
from tiny_extraction import tree_bytes

from advl_pipeline.locations import Url
from advl_pipeline.training.run import run_finetune


@pytest.mark.slow
def test_the_same_losses_through_faults(small_corpus: Any, s3_server: S3Server, tmp_path: Path) -> None:
    run_finetune(small_corpus.config(tmp_path / "local"))
    urls = tuple(Url(f"s3://{BUCKET}/store-faults/{path.name}") for path in small_corpus.caches)
    with environment_of(s3_server.environment):
        for url, path in zip(urls, small_corpus.caches, strict=True):
            upload(url, tree_bytes(path))
    faults = serve_faults(s3_server, "500", "cut", "503", "slow", "500 after")
    with faults as store, environment_of(store.environment):
        run_finetune(small_corpus.config(tmp_path / "remote", cache=urls, disk_cache=tmp_path / "disk-cache"))
        assert store.num_faults > 20
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
