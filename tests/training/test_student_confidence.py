"""The student's confidence that weighs an item is that of the start of step 2, over an interruption too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_logs import losses, metrics

from advl_pipeline.training.checkpoint import CheckpointWriter
from advl_pipeline.training.run import run_finetune


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_with_the_same_confidences(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every item is visited more than once, before and after the interruption.
    config = small_corpus.config(tmp_path / "whole", num_steps=6, batch_size=16, adapt_steps=1, checkpoint_every=1)
    run_finetune(config)
    whole = losses(tmp_path / "whole")
    save = CheckpointWriter.save

    def stop(*arguments: Any, **settings: Any) -> None:
        save(*arguments, **settings)
        if (settings["phase"], settings["step"]) in {("adapt", 1), ("finetune", 3)} - stopped:
            stopped.add((settings["phase"], settings["step"]))
            raise Interrupted

    stopped: set[tuple[str, int]] = set()
    monkeypatch.setattr(CheckpointWriter, "save", stop)
    cut = replace(config, output=tmp_path / "cut")
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_finetune(cut)
    run_finetune(cut)
    assert losses(tmp_path / "cut") == whole
    seen = [one["confidence/student"]["mean"] for one in metrics(tmp_path / "whole") if one["phase"] == "finetune"]
    # All sixteen items are in every batch.
    assert max(seen) - min(seen) < 1e-6
