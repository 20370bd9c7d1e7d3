"""Runs: resumed after a kill, with live teachers in place of caches, what is logged, refusals."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from altered_dataset import alter_examples
from commands import complaint, printed
from first_step import first_terms
from live_teacher import teachers_run
from real_processes import start_advl
from run_logs import losses
from safetensors.torch import load_file

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.training.checks import finetune_command
from advl_pipeline.training.run import run_finetune


def test_a_killed_run_resumes_to_the_same_result(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_corpus.config(tmp_path / "whole", num_steps=4, adapt_steps=2, checkpoint_every=1)
    run_finetune(config)

    def killed(*caches: Path) -> list[str]:
        return shlex.split(finetune_command(replace(config, output=tmp_path / "killed", cache=caches)))[1:]

    process = start_advl(*killed(*config.cache))
    log = tmp_path / "killed" / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert process.is_running(), "the run ended before it could be killed"
        time.sleep(0.01)
    process.send(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    environment = json.loads((tmp_path / "killed" / "environment.json").read_text())
    assert shlex.split(environment["command"])[1:] == killed(*config.cache), "it is written when the run begins"
    # On another machine the caches lie elsewhere.
    moved = [shutil.copytree(path, tmp_path / f"moved-{number}") for number, path in enumerate(config.cache)]
    code, stderr = complaint(capsys, *killed(*moved[::-1]))
    assert code == 3, stderr
    assert "cache.1." in stderr
    printed(capsys, *killed(*moved))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """Live teachers, each opened once."""
    return {}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "advl"},
        {"method": "naive-kd"},
        {"adapt_objective": "contrastive", "selection": "prior", "distance": "cosine"},
        {"distance": "mse", "distill_layer": "fused"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_cached_and_live_teachers_give_the_same_loss(
    changes: dict[str, str], opened: dict[str, Any], small_corpus: Any, tmp_path: Path
) -> None:
    cached = first_terms(small_corpus.config(tmp_path / "cached", **changes))
    with teachers_run(small_corpus.dataset(), opened=opened):
        live = first_terms(small_corpus.config(tmp_path / "live", num_workers=1, **changes))
    names = {key.partition("/")[2] for key in cached}
    assert {f"{kind}/{name}" for kind in ("raw", "weighted") for name in ("vision", "text")} <= names
    # Features are stored in half precision.
    assert cached == pytest.approx(live, rel=5e-3)


def test_a_split_without_labels_is_refused_before_anything_is_written(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter_examples(monkeypatch, lambda example: replace(example, label=None, soft_label=()))
    for dataset in ("scenes-vcr", "scenes-vqa"):
        run = tmp_path / dataset
        with pytest.raises(DatasetError, match="nothing to learn"):
            small_corpus.run(run, dataset=dataset, task=(), method="plain", cache=())
        assert not run.exists()
