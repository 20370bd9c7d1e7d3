"""Finetuning notices, before its first step, what only verification would: other bytes of the right length."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_extraction import tree_bytes

from advl_pipeline.cache import trust
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.records import load_complete
from advl_pipeline.cache.trust import changed_files, require_trustworthy
from advl_pipeline.errors import CorruptCache

VALUES = "text/tokens/values/c/0/0"


@pytest.fixture
def cache(small_corpus: Any, tmp_path: Path) -> Path:
    """A copy of the text teacher's cache."""
    return Path(shutil.copytree(small_corpus.caches[0], tmp_path / "minilm-l6"))


def finetune(small_corpus: Any, output: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "advl_cli", "finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(small_corpus.data_root), "--output", str(output), "--cache", str(cache)),
        *("--num-steps", "1", "--steps", "one", "--batch-size", "2", "--confidence", "none", *options),
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def hashed(cache: Path, monkeypatch: pytest.MonkeyPatch, **options: bool) -> list[str]:
    """Return the files that a check before training hashes."""
    names: list[str] = []
    ask = trust.file_problem

    def noting(root: Path, name: str, entry: Any) -> str | None:
        names.append(name)
        return ask(root, name, entry)

    with monkeypatch.context() as patch:
        patch.setattr(trust, "file_problem", noting)
        require_trustworthy(open_cache(cache), **options)
    return names


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


@pytest.mark.parametrize("damage", ["zero", "nan", "flip"])
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
    assert f"checking {cache}: 100%" in done.stderr
    shutil.copyfile(small_corpus.caches[0] / VALUES, path)
    done = finetune(small_corpus, tmp_path / "run", cache, "--verify-caches")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("array", ["values", "char_spans"])
def test_swapped_shards_are_noticed(pristine: Path, tmp_path: Path, array: str) -> None:
    cache = Path(shutil.copytree(pristine / "cache", tmp_path / "cache"))
    require_trustworthy(open_cache(cache))
    one, two = (cache / f"text/tokens/{array}/c/{shard}/0" for shard in (1, 2))
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    with pytest.raises(CorruptCache, match=f"text/tokens/{array}/c/1/0: its content changed"):
        require_trustworthy(open_cache(cache))


def test_what_was_vouched_for_is_not_hashed_again(
    small_corpus: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hashed(small_corpus.caches[0], monkeypatch) == []  # Written in order, and never copied.
    files = load_complete(cache).files
    # Some files of a copy may be older than the copy of the record.
    changed = changed_files(cache, files)
    assert changed
    assert hashed(cache, monkeypatch) == list(changed)
    assert hashed(cache, monkeypatch) == []
    (cache / VALUES).touch()
    assert hashed(cache, monkeypatch) == [VALUES]
    assert hashed(cache, monkeypatch) == []
    before = tree_bytes(cache)
    require_trustworthy(open_cache(cache), hash_all=True)
    assert tree_bytes(cache) == before


def test_a_sample_of_the_numbers_is_looked_at(pristine: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(pristine / "cache", tmp_path / "cache"))
    for name, match in (
        ("text/global/c/0/0", "neither of unit length"),
        ("text/tokens/values/c/1/0", "not finite"),
        ("image/global/c/0/0", "not finite"),
    ):
        for relative in load_complete(cache).files:
            if not relative.startswith(name.rpartition("/c/")[0] + "/c/"):
                continue
            path = cache / relative
            rows = np.frombuffer(path.read_bytes(), np.float16).copy()
            footer = rows[-2:].copy()
            rows[: len(rows) // 2] = np.nan if match == "not finite" else 3.0
            rows[-2:] = footer
            path.write_bytes(rows.tobytes())
        os.utime(cache / "records/complete.json")  # No time tells of it.
        with pytest.raises(CorruptCache, match=match):
            require_trustworthy(open_cache(cache))
        shutil.rmtree(cache)
        shutil.copytree(pristine / "cache", cache)


def test_a_cache_that_may_only_be_read_is_hashed_each_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "not the owner", str(path))

    monkeypatch.setattr(trust.os, "utime", refuse)
    first = hashed(cache, monkeypatch)
    assert first
    assert hashed(cache, monkeypatch) == first
