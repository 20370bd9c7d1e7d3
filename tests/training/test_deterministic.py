"""`--deterministic` holds for the steps of a run, and for nothing after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from run_logs import losses

from advl_pipeline.training import loop
from advl_pipeline.training.run import run_finetune


def test_steps_keep_to_one_order_where_asked(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    take, found = loop._optimiser_step, list[tuple[bool, bool]]()

    def watched(*arguments: Any, **options: Any) -> Any:
        found.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ))
        return take(*arguments, **options)

    monkeypatch.setattr(loop, "_optimiser_step", watched)
    for wanted in (False, True):
        run_finetune(
            small_corpus.config(
                tmp_path / str(wanted), method="plain", cache=(), num_steps=2, deterministic=wanted, log_with=""
            )
        )
    assert found == [(False, False)] * 2 + [(True, True)] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
