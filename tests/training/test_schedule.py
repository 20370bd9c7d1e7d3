"""Schedules of the learning rate and of lambda, at their ends and against what a run logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.training.optimiser import distillation_strength, linear_warmup_decay
from advl_pipeline.training.run import run_finetune


def test_lambda_stays_or_falls_to_nothing() -> None:
    def curve(decay: Any) -> list[float]:
        return [distillation_strength(step, num_steps=5, start=2.0, decay=decay) for step in range(5)]

    assert curve("none") == [2.0] * 5
    assert curve("linear") == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert curve("cosine") == pytest.approx([1 + math.cos(math.pi * share) for share in (0, 0.25, 0.5, 0.75, 1)])
    assert distillation_strength(0, num_steps=1, start=2.0, decay="cosine") == 2.0


@pytest.mark.parametrize(("num_steps", "warmup_fraction"), [(1, 0.1), (10, 0.0), (20, 0.25), (300, 0.1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_but_never_rests(
    num_steps: int, warmup_fraction: float
) -> None:
    factors = [
        linear_warmup_decay(step, num_steps=num_steps, warmup_fraction=warmup_fraction) for step in range(num_steps)
    ]
    peak = max(1, round(num_steps * warmup_fraction)) - 1
    assert factors[peak] == 1.0 == max(factors)
    assert min(factors) > 0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_a_run_weighs_its_teachers_by_the_schedule_of_the_finetune_step_alone(
    small_corpus: Any, tmp_path: Path
) -> None:
    config = small_corpus.config(
        tmp_path / "run", distill_weight=0.8, distill_decay="linear", weighting="uniform", num_steps=4
    )
    run_finetune(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [record for record in map(json.loads, lines) if record["phase"] == "finetune"]
    assert [record["lambda"] for record in logged] == pytest.approx([0.8, 0.8 * 2 / 3, 0.8 / 3, 0.0])
    for record in logged[:-1]:
        assert record["weighted/text"] == pytest.approx(record["lambda"] * record["raw/text"], rel=1e-5)
    # Without any strength left the teachers are not even asked.
    assert "weighted/text" not in logged[-1]
