"""A disk that is full, or a folder that cannot be written, has its own exit code in every command that writes."""

from __future__ import annotations

import resource
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import completed
from small_corpus import SmallCorpus

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.errors import StorageError
from advl_pipeline.base.tensors import save_tensors
from advl_pipeline.extraction.forecast import require_room


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Have the disk refuse larger files, as one that is full does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_finetune_on_a_disk_that_fills_up_keeps_what_was_there(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    words = ["finetune", "--dataset", "scenes-vcr", "--method", "plain", "--data-root", small_corpus.data_root]
    words += ["--shots", 4, "--num-steps", 2, "--checkpoint-every", 1, "--output", tmp_path / "run"]
    with files_of_at_most(100_000):
        done = completed(*words)
    assert done.returncode == 7, done.stderr
    assert "File too large" in done.stderr
    assert shlex.join(["advl", *map(str, words)]) in done.stderr
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("form", ["hdf5", "safetensors"])
def test_an_export_that_fills_the_disk_leaves_nothing(form: str, small_corpus: SmallCorpus, tmp_path: Path) -> None:
    with files_of_at_most(10_000):
        done = completed("cache", "export", small_corpus.caches[0], "--to", form, "--output", tmp_path / "features")
    assert done.returncode == 7, done.stderr
    assert "next:" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 20_000),
        lambda path: save_tensors(path, {"a": torch.zeros(20_000)}),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_old_one(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with files_of_at_most(10_000), pytest.raises(StorageError) as caught:
        write(path)
    assert caught.value.exit_code == 7
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_the_reserve_that_a_cache_leaves_free_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 60_000_000}))
    with pytest.raises(StorageError, match=r"20\.0 MB are needed and 64 MB are to stay free, 60\.0 MB are free"):
        require_room(tmp_path, 20_000_000)
