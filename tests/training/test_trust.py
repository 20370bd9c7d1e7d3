"""Finetuning stops where numbers cannot be trusted: caches that changed, terms and gradients that are not finite."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import zarr
from commands import complaint as advl
from commands import completed, exit_code
from objects import upload
from run_logs import losses, metrics
from s3_faults import serve_faults
from s3_server import BUCKET, S3Server
from tiny_extraction import tree_bytes
from torch import nn

from advl_pipeline.base.errors import NotFinite
from advl_pipeline.base.locations import Url
from advl_pipeline.cache.commit_records import load_complete
from advl_pipeline.cache.reader import FeatureStore, TeacherCache, open_cache
from advl_pipeline.cache.stores import FolderStore
from advl_pipeline.cache.verify import require_trustworthy
from advl_pipeline.training.checkpoint import load_checkpoint
from advl_pipeline.training.signals import teaching
from advl_pipeline.training.signals.teacher_features import TeacherFeatures, UnitFeatures, cached_teacher
from advl_pipeline.training.step_log import StepPlace, require_finite_gradient, require_finite_weights

VALUES = "text/tokens/values/c/0/0"


@pytest.fixture
def cache(small_corpus: Any, tmp_path: Path) -> Path:
    """A copy of the text teacher's cache."""
    return Path(shutil.copytree(small_corpus.caches[0], tmp_path / "minilm-l6"))


@pytest.mark.slow
def test_a_changed_payload_stops_the_command_and_is_mended(small_corpus: Any, cache: Path, tmp_path: Path) -> None:
    path = cache / VALUES
    content = bytearray(path.read_bytes())
    half = len(content) // 4 * 2
    content[:half] = np.full(half // 2, np.nan, np.float16).tobytes()  # The footer stays.
    path.write_bytes(content)
    done = completed(*small_corpus.command(tmp_path / "run", cache=(cache,), confidence="none"))
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
    with mock.patch.dict(os.environ, s3_server.environment):
        for url, path in zip(urls, small_corpus.caches, strict=True):
            upload(url, tree_bytes(path))
    faults = serve_faults(s3_server, "500", "cut", "503", "slow", "500 after")
    # What another test fetched of equal caches would be asked for no more.
    fetched = {"ADVL_DISK_CACHE": str(tmp_path / "fetched")}
    with faults as store, mock.patch.dict(os.environ, store.environment | fetched):
        small_corpus.run(tmp_path / "remote", cache=urls)
        assert store.met.total() > 20
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")


def test_a_diverging_run_stops_with_its_last_good_checkpoint(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = small_corpus.command(
        run, method="plain", cache=(), num_steps=20, checkpoint_every=1, learning_rate=1e10
    )
    for _ in range(2):
        code, stderr = advl(capsys, *command)
        assert code == 9, stderr
        stopped = re.search(r"stopped at step (\d+) of the finetune stage: .+ is not finite", stderr)
        assert stopped is not None, stderr
        step = int(stopped[1])
        kept = load_checkpoint(run / "checkpoint.safetensors")
        assert kept[0] == step
        assert f"the checkpoint after {step} steps is kept" in stderr
        assert all(bool(tensor.isfinite().all()) for tensor in kept[2].values())
        assert [record["step"] for record in metrics(run)] == list(range(step))
        assert not (run / "result.json").exists()
        assert not (run / "model.safetensors").exists()


class Failing(UnitFeatures):
    """A cache's features that are not numbers from the fourth reading on; the first looks for targets."""

    def __init__(self, store: FeatureStore) -> None:
        super().__init__(store)
        self._num_readings = 0

    def stored_tokens(self, ids: Sequence[str]) -> Any:
        self._num_readings += 1
        rows, scales, lengths = super().stored_tokens(ids)
        return (np.full_like(rows, np.nan) if self._num_readings > 3 else rows), scales, lengths


def test_a_term_of_a_teacher_is_named_with_the_caches_to_verify(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(cache: TeacherCache) -> TeacherFeatures:
        teacher = cached_teacher(cache)
        return replace(teacher, text=Failing(cache.text)) if cache.text is not None else teacher

    monkeypatch.setattr(teaching, "cached_teacher", failing)
    with pytest.raises(NotFinite, match="step 2 of the finetune stage: the loss term text is not finite") as stopped:
        small_corpus.run(tmp_path / "run", method="naive-kd", checkpoint_every=2, num_workers=1)
    assert "text = nan; the checkpoint after 2 steps is kept" in stopped.value.why
    assert f"advl cache verify {small_corpus.caches[0]}" in stopped.value.next_command
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors") is not None


def test_gradients_without_clipping_and_under_a_loss_scale(small_corpus: Any, tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[1.0, torch.nan]]), torch.ones(1)
    place = StepPlace(config=small_corpus.config(tmp_path), step=3, stage="finetune", num_saved=0)
    norm = math.nan
    for scale in (None, lambda: 0.5):
        with pytest.raises(NotFinite, match="the gradient is not finite") as stopped:
            require_finite_gradient(norm, model.named_parameters(), place, loss_scale=scale)
        assert "from weight; there is no checkpoint" in stopped.value.why
    # The scaler skips the step and halves its scale.
    require_finite_gradient(norm, model.named_parameters(), place, loss_scale=lambda: 65536.0)
    require_finite_gradient(1.0, model.named_parameters(), place, loss_scale=None)
    require_finite_weights(model, place)


def test_pretraining_stops_before_anything_is_written(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *("scenes", "pretrain", "--data-root", small_corpus.data_root, "--output", tmp_path / "student"),
        *("--warmup-steps", 30, "--joint-steps", 5, "--batch-size", 4, "--learning-rate", "1e30"),
    ]
    code, stderr = advl(capsys, *command)
    assert code == 9, stderr
    assert "Pretraining stopped at step" in stderr
    assert not (tmp_path / "student").exists()
