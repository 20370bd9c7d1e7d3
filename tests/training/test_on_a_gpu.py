"""What only a GPU can show: that a step makes nobody wait, and that its losses are those of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_logs import metrics

from advl_pipeline.training import loop
from advl_pipeline.training import run as run_module
from advl_pipeline.training.run import run_finetune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU of NVIDIA")


@pytest.mark.parametrize("name", ["scenes-small", "uniter-tiny", "vilt-tiny", "smolvlm-tiny"])
def test_a_step_waits_for_nothing_and_has_the_losses_of_a_cpu(
    name: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {"student": name, "mixed_precision": "no", "student_option": ("dropout=0.0",), "batch_size": 4}
    run_finetune(small_corpus.config(tmp_path / "cpu", device="cpu", **exact))
    step = loop._optimiser_step

    def strict(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_optimiser_step", strict)
    monkeypatch.setattr(run_module, "allow_tf32", lambda _: False)
    run_finetune(small_corpus.config(tmp_path / "gpu", device="cuda", **exact))
    there, here = metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu")
    assert len(there) == len(here)
    for found, expected in zip(there, here, strict=True):
        losses = {key: value for key, value in expected.items() if key.startswith(("raw/", "weighted/"))}
        assert {key: found[key] for key in losses} == pytest.approx(losses, rel=1e-3, abs=1e-4)
