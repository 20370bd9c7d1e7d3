"""The student's confidence that weighs an item: at the start of step 2, smoothed, and over an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_logs import losses, metrics

from advl_pipeline.errors import ConfigError
from advl_pipeline.training import loop, run
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.student_confidence import SMOOTHING, StudentConfidence


def test_the_start_stays_and_visits_are_smoothed() -> None:
    visits = [["b", "a"], ["c", "b"]]
    current = [torch.tensor([0.9, 0.5]), torch.tensor([1.0, 0.1])]
    for kind in ("start", "smoothed"):
        kept = StudentConfidence(kind, ["a", "b", "c"])  # type: ignore[arg-type]
        assert not kept.is_measured
        kept.begin(torch.tensor([0.2, 0.3, 0.4]))
        assert kept.is_measured
        found = [kept.of(ids, value_B).tolist() for ids, value_B in zip(visits, current, strict=True)]
        if kind == "start":
            assert found == [pytest.approx([0.3, 0.2]), pytest.approx([0.4, 0.3])]
            continue
        rest = 1 - SMOOTHING
        first = SMOOTHING * 0.3 + rest * 0.9
        assert found[0] == pytest.approx([first, SMOOTHING * 0.2 + rest * 0.5])
        assert found[1] == pytest.approx([SMOOTHING * 0.4 + rest * 1.0, SMOOTHING * first + rest * 0.1])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("kind", ["start", "smoothed"])
def test_an_interrupted_run_goes_on_with_the_same_confidences(
    kind: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every item is visited more than once, before and after the interruption.
    config = small_corpus.config(
        tmp_path / "whole", student_confidence=kind, num_steps=6, batch_size=16, adapt_steps=1, checkpoint_every=1
    )
    run_finetune(config)
    whole = losses(tmp_path / "whole")
    save = loop.save_checkpoint

    def stop(*arguments: Any, **settings: Any) -> None:
        save(*arguments, **settings)
        if (settings["phase"], settings["step"]) in {("adapt", 1), ("finetune", 3)} - stopped:
            stopped.add((settings["phase"], settings["step"]))
            raise Interrupted

    stopped: set[tuple[str, int]] = set()
    monkeypatch.setattr(loop, "save_checkpoint", stop)
    cut = replace(config, output=tmp_path / "cut")
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_finetune(cut)
    run_finetune(cut)
    assert losses(tmp_path / "cut") == whole
    seen = [one["confidence/student"]["mean"] for one in metrics(tmp_path / "whole") if one["phase"] == "finetune"]
    # All sixteen items are in every batch: what the start was stays, what is smoothed moves.
    assert (max(seen) - min(seen) < 1e-6) == (kind == "start")


def test_processes_that_share_visits_cannot_smooth(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = run.remember_confidences
    monkeypatch.setattr(
        run, "remember_confidences", lambda *given, num_processes: remember(*given, num_processes=num_processes + 1)
    )
    with pytest.raises(ConfigError, match="one process") as refused:
        run_finetune(small_corpus.config(tmp_path / "run", student_confidence="smoothed"))
    assert "--student-confidence start" in str(refused.value.next_command)
