"""The losses of every method are those that were stored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from golden import ABSOLUTE, GOLDEN, RELATIVE, RUNS, differences, measure_losses
from run_logs import load_json

from advl_pipeline.training.config import FinetuneConfig


@pytest.mark.slow
def test_the_losses_of_each_method_are_the_stored_ones(small_corpus: Any, tmp_path: Path) -> None:
    measured = measure_losses(small_corpus, tmp_path)
    lines = differences(measured, load_json(GOLDEN))
    assert not lines, "\n".join(
        [*lines, f"tolerance {RELATIVE:g} or {ABSOLUTE:g}; meant? python tests/support/golden.py write"]
    )


def test_every_method_has_golden_losses() -> None:
    assert {changes["method"] for changes in RUNS.values()} == set(get_args(get_type_hints(FinetuneConfig)["method"]))


def test_a_difference_is_named() -> None:
    stored = load_json(GOLDEN)
    changed = copy.deepcopy(stored)
    changed["advl"]["raw/task"][3] *= 1 + 2 * RELATIVE
    del changed["plain"]["raw/task"][3]
    del changed["naive-kd"]
    lines = differences(changed, stored)
    assert len(lines) == 3
    assert lines[0].startswith("advl, raw/task, value 3: ")
    assert "naive-kd: on one side only" in lines
    assert "plain, raw/task: 3 values against 4" in lines
