"""The losses of every method are those that were stored, and every option of the method changes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from first_step import first_terms
from golden import ABSOLUTE, GOLDEN, RELATIVE, RUNS, differences, measure_losses
from run_logs import load_json, losses

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


CHANGES: dict[str, dict[str, Any]] = {
    "anchor-weight": {"anchor_weight": 0.0},
    "hold-weight": {"hold_weight": 5.0},
    "adapt-texts": {"adapt_texts": 8},
    "vision-target": {"vision_target": "image"},
    "pathway": {"pathway": "text"},
    "selection": {"selection": "all"},
    "distill-layer": {"distill_layer": "fused"},
    "weighting-uniform": {"weighting": "uniform"},
    "weight-shuffle": {"weight_shuffle": True},
    "confidence-folds": {"confidence_folds": 3},
    "confidence-none": {"confidence": "none"},
    "stages": {"stages": "one"},
    "adapt-objective": {"adapt_objective": "contrastive"},
}


BY_RECIPE: dict[str, dict[str, Any]] = {
    "recipe": {"recipe": "none"},
    "task-loss": {"recipe": {"loss": "softmax-choice"}},
    "optimiser": {"recipe": {"optimiser": "sgd"}},
    "learning-rate": {"learning_rate": 1e-2},
    "head-lr-scale": {"head_lr_scale": 100.0},
    "weight-decay": {"recipe": {"weight_decay": 30.0}},
    "schedule": {"recipe": {"schedule": "constant"}},
    "warmup": {"recipe": {"warmup": 0.5}},
    "clip-norm": {"recipe": {"clip_norm": 1e-4, "optimiser": "sgd"}, "learning_rate": 0.1},
    "batch-size": {"batch_size": 3},
    "batch-tokens": {"recipe": {"batch_size": 300}},
    "accumulate": {"accumulate": 1, "recipe": {"batch_size": 400}},
    "adversarial": {"recipe": {"adversarial": {"text_learning_rate": 1e-3}}},
    "student-option": {"student_option": ("num_layers=1",)},
}
"""Of a student that trains by its authors' recipe."""

LOOPS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "advl": ({"num_steps": 2, "adapt_steps": 2}, {"adapt-lr-scale": {"adapt_lr_scale": 1.0}}),
    "recipe": (
        {"student": "uniter-tiny", "method": "plain", "cache": (), "num_steps": 2, "batch_size": None},
        BY_RECIPE,
    ),
}
"""A short run, and changes of it."""


@pytest.mark.slow
def test_every_option_changes_the_terms(small_corpus: Any, tmp_path: Path) -> None:
    runs = {"reference": {}, **CHANGES}
    terms = {name: first_terms(small_corpus.config(tmp_path / name, **changed)) for name, changed in runs.items()}
    assert [name for name in CHANGES if terms[name] == terms["reference"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_every_option_of_the_loop_changes_the_steps(loop: str, small_corpus: Any, tmp_path: Path) -> None:
    short, changes = LOOPS[loop]
    terms_by_name = {}
    for name, changed in {"reference": {}, **changes}.items():
        small_corpus.run(tmp_path / name, **{**short, **changed})
        terms = [record.items() for record in losses(tmp_path / name)]
        terms_by_name[name] = [[pair for pair in record if pair[0].startswith("weighted/")] for record in terms]
    assert [name for name in changes if terms_by_name[name] == terms_by_name["reference"]] == []


@pytest.mark.slow
def test_several_teachers_share_a_pathway_by_their_mean(small_corpus: Any, tmp_path: Path) -> None:
    second = small_corpus.extract(tmp_path / "second", teacher="random:minilm-l6", confidence="none", shots=4)
    options = {
        "shots": 4,
        "cache": (*small_corpus.caches, second),
        "distance": "mse",
        "weighting": "uniform",
        "distill_weight": 0.1,
    }
    small_corpus.run(tmp_path / "run", **options, num_steps=2, adapt_steps=1)
    for record in losses(tmp_path / "run"):
        each = [record[f"raw/text/{teacher}"] for teacher in ("minilm-l6", "random:minilm-l6")]
        assert record["raw/text"] == pytest.approx(sum(each) / 2, rel=1e-5)
        assert "raw/vision/efficientnet-lite0" not in record
        strength = 0.1 if record["phase"] == "finetune" else 1.0
        assert record["weighted/text"] == pytest.approx(strength * record["raw/text"], rel=1e-4)


@pytest.mark.slow
def test_held_states_stay_nearer_to_where_pretraining_left_them(small_corpus: Any, tmp_path: Path) -> None:
    moved = {}
    for weight in (1e-6, 100.0):
        run = tmp_path / str(weight)
        small_corpus.run(run, hold_weight=weight, num_steps=6, adapt_steps=1, learning_rate=1e-3)
        moved[weight] = [record["raw/drift"] for record in losses(run) if record["phase"] == "finetune"][-1]
    assert 0 < moved[100.0] < moved[1e-6] / 2
