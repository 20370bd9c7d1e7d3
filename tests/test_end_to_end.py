"""The whole job as a user types it: corpus, two caches, pretraining, a study with a control, the page."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import zarr
from commands import completed

STUDY = """
name = "small"
dataset = "scenes-vcr"
tasks = ["vcr-q2a"]
student = "scenes-small"
init = "students/scenes-small"
teachers = ["efficientnet-lite0", "minilm-l6"]
test_sets = ["test", "test-shift"]
methods = ["plain", "advl", "advl-shuffled"]
shots = [8]
seeds = [0]

[training]
num_steps = 4
adapt_steps = 2
batch_size = 4
confidence_folds = 2
"""
SIZES = ("--num-caption-scenes", "20", "--num-train", "8", "--num-val", "4", "--num-test", "4")
SMALLER = ("--num-unseen", "4", "--num-compositional", "4", "--num-shift-inputs", "4", "--workers", "1")


def advl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder with a space in its name, as typed."""
    done = completed(*arguments, folder=folder)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_main_job_through_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()

    def must(*arguments: str) -> str:
        done = advl(folder, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    missing = advl(folder, "extract", "--teacher", "minilm-l6", "--dataset", "scenes-vcr")
    assert missing.returncode == 5
    assert "advl scenes build" in missing.stderr
    must("scenes", "build", *SIZES, *SMALLER)
    planned = must("extract", "--teacher", "minilm-l6", "--dataset", "scenes-vcr", "--split", "train", "--dry-run")
    assert "text" in planned
    assert not (folder / "caches").exists()
    for teacher in ("efficientnet-lite0", "minilm-l6"):
        must("extract", "--teacher", teacher, "--dataset", "scenes-vcr", "--split", "train", "--folds", "2")
    group = zarr.open_group(folder / "caches/minilm-l6/scenes-vcr/train", mode="r")
    assert group["text/global"].shape[1] == 384
    assert group["text/tokens/values"].shape[0] >= int(group["text/tokens/lengths"][:].sum())

    pretrain = ("scenes", "pretrain", "--joint-steps", "2", "--batch-size", "4", "--warmup-steps")
    must(*pretrain, "2")
    assert "nothing to do" in must(*pretrain, "2")

    (folder / "small.toml").write_text(STUDY, encoding="utf-8")
    must("study", "small.toml")
    result = json.loads(must("study", "small.toml", "--json"))
    assert result
    must("report", "runs/studies/small")
    (page,) = (folder / "runs/studies/small").glob("*.html")
    html = page.read_text(encoding="utf-8")
    assert "ADVL, shuffled teacher" in html
    assert "test-shift" in html
