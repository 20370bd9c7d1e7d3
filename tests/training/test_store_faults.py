"""Finetuning from a store that has a bad day gives the losses of finetuning from a folder."""

from __future__ import annotations

import os
import subprocess
import sys
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
    urls = [Url(f"s3://{BUCKET}/{tmp_path.name}/{path.name}") for path in small_corpus.caches]
    with environment_of(s3_server.environment):
        for url, path in zip(urls, small_corpus.caches, strict=True):
            upload(url, tree_bytes(path))
    with serve_faults(s3_server, "500", "cut", "503", "slow", "500 after") as store:
        command = [
            *(sys.executable, "-m", "advl_cli", "finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
            *("--data-root", str(small_corpus.data_root), "--output", str(tmp_path / "remote")),
            *("--num-steps", "6", "--adapt-fraction", "0.34", "--batch-size", "4", "--confidence-folds", "2"),
            *("--disk-cache", str(tmp_path / "disk-cache"), "--cache", str(urls[0]), "--cache", str(urls[1])),
        ]
        environment = os.environ | store.environment
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert store.num_faults > 20
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
