"""Finetuning notices, before its first step, what only verification would: other bytes of the right length."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_extraction import tree_bytes

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.trust import require_trustworthy

VALUES = "text/tokens/values/c/0/0"


@pytest.fixture
def cache(small_corpus: Any, tmp_path: Path) -> Path:
    """A copy of the text teacher's cache."""
    return Path(shutil.copytree(small_corpus.caches[0], tmp_path / "minilm-l6"))


def finetune(small_corpus: Any, output: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "advl_cli", "finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(small_corpus.data_root), "--output", str(output), "--cache", str(cache)),
        *("--num-steps", "2", "--steps", "one", "--batch-size", "2", "--confidence", "none", *options),
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def spoil(path: Path, damage: str) -> None:
    """Change a payload and keep its length and its footer."""
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    if damage == "zero":
        content[:half] = bytes(half)
    elif damage == "nan":
        content[:half] = np.full(half // 2, np.nan, np.float16).tobytes()
    else:
        content[half] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["zero", "nan"])
def test_a_changed_payload_stops_the_command(small_corpus: Any, cache: Path, tmp_path: Path, damage: str) -> None:
    spoil(cache / VALUES, damage)
    done = finetune(small_corpus, tmp_path / "run", cache)
    assert done.returncode == 4, done.stderr
    assert f"{VALUES}: its content changed" in done.stderr
    assert f"advl cache repair {cache}" in done.stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()
    repaired = subprocess.run(
        [sys.executable, "-m", "advl_cli", "cache", "repair", str(cache)], check=False, capture_output=True, text=True
    )
    assert repaired.returncode == 0, repaired.stderr
    assert tree_bytes(cache) == tree_bytes(small_corpus.caches[0])


def test_norms_of_the_teacher_survive_a_repair(small_corpus: Any, cache: Path) -> None:
    (cache / "identity.json").unlink()
    command = [sys.executable, "-m", "advl_cli", "cache", "repair", str(cache)]
    subprocess.run(command, check=True, capture_output=True)
    store = open_cache(cache).text
    assert store is not None
    assert store.stat("norm", list(store.ids)).max() > 2  # What is stored has length 1.
    assert tree_bytes(cache) == tree_bytes(small_corpus.caches[0])


def test_verifying_says_how_far_it_is(small_corpus: Any, cache: Path, tmp_path: Path) -> None:
    require_trustworthy(open_cache(cache))
    path = cache / VALUES
    before = path.stat()
    spoil(path, "flip")
    # As if a disk had lost a bit: no time tells of it.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(cache / "records/complete.json")
    done = finetune(small_corpus, tmp_path / "run", cache, "--verify-caches")
    assert done.returncode == 4, done.stderr
    assert f"{VALUES}: its content changed" in done.stderr
    assert re.search(rf"checking {re.escape(str(cache))}: +100%", done.stderr)
    shutil.copyfile(small_corpus.caches[0] / VALUES, path)
    done = finetune(small_corpus, tmp_path / "run", cache, "--verify-caches")
    assert done.returncode == 0, done.stderr
