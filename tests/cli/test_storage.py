"""A disk that is full, or a folder that cannot be written, has its own exit code in every command that writes."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import completed
from other_user import CLOSED_MODE, run_as_another_user
from own_rows import choice_row, rows_of, write_json_lines
from real_processes import start
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


# What belongs to another user.

CLOSED = {
    "cache info": "cache info closed",
    "cache verify": "cache verify closed",
    "cache repair": "cache repair closed",
    "cache prune": "cache prune closed",
    "cache export": "cache export closed --to hdf5 --output open/features",
    "rows": "datasets check closed/mine.jsonl",
    "pictures": "datasets check closed.jsonl",
    "pictures, decoded": "datasets check closed.jsonl --deep",
    "pictures that may be left out": "prepare --size 8 --data closed.jsonl --on-error skip --output open/cache",
    "rows to encode": "extract --teacher minilm-l6 --data closed/mine.jsonl --output open/cache",
    "a teacher": "extract --teacher minilm-l6 --weights closed/weights --data mine.jsonl --output open/cache",
    "a cache to train on": "finetune --student uniter-tiny --cache closed --data mine.jsonl --output open/run",
    "a student": "finetune --student uniter-tiny --init closed --data mine.jsonl --method plain --output open/run",
    "a run to resume": "finetune --student uniter-tiny --method plain --data mine.jsonl --output closed/run",
    "evaluate": "evaluate closed --on test",
    "predict": "predict closed --on test --output open/predictions",
    "readout": "readout closed --cache closed",
    "report": "report closed",
    "export": "export closed --output open/student",
}


def test_what_belongs_to_another_user_is_told_as_that_by_every_command_and_none_advises_repair() -> None:
    folder = Path(tempfile.mkdtemp())  # A test's own folder is below one that others may not enter.
    try:
        folder.chmod(0o755)
        write_json_lines(folder / "mine.jsonl", rows_of(choice_row))
        write_json_lines(folder / "closed.jsonl", rows_of(choice_row, image="closed/picture.png"))
        for name, mode in (("closed", CLOSED_MODE), ("open", 0o777)):
            (folder / name).mkdir()
            (folder / name).chmod(mode)
        running = start(run_as_another_user, folder, CLOSED)
        running.finish()
        for name, (code, messages) in json.loads(running.printed()).items():
            error = messages.partition("error: ")[2]
            assert (code, error.partition("\n")[0]) == (7, "This user has no permission for a file or folder."), name
            assert f"{folder}/closed belongs to {folder.owner()} (mode {CLOSED_MODE:04o})" in error, (name, error)
            (advice,) = re.findall("next: .*", error)
            asked = "next:  ask root for access or for a copy, then run the same command again"
            assert advice == (f"next:  chmod u+rwX {folder}/closed" if os.getuid() else asked)
        assert [path.name for path in (folder / "open").iterdir()] == ["index"]
    finally:
        (folder / "closed").chmod(0o700)
        shutil.rmtree(folder)
