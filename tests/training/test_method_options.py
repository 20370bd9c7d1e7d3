"""Every option of the method changes a run, and several teachers share a pathway as asked."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from run_logs import losses

from advl_pipeline.configuration import declared, options_of, with_options
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune

METHOD_OPTIONS = {"method", "hide_picture"} | {
    name
    for name, (_, _, section) in declared(FinetuneConfig).items()
    if section in ("Teachers", "Distillation", "Adapt step") and name not in ("cache", "verify_caches")
}


CHANGES: dict[str, dict[str, Any]] = {
    "distance-mse": {"distance": "mse"},
    "student-temperature": {"student_temperature": 0.2},
    "teacher-temperature": {"teacher_temperature": 0.2},
    "anchor-weight": {"anchor_weight": 0.0},
    "adapt-texts": {"adapt_texts": 8},
    "distance-cosine": {"distance": "cosine"},
    "distance-l1": {"distance": "l1"},
    "distance-smooth-l1": {"distance": "smooth-l1"},
    "target-norm": {"target_norm": "none"},
    "vision-target": {"vision_target": "image"},
    "vision-target-both": {"vision_target": "both"},
    "pathway": {"pathway": "text"},
    "pathway-vision": {"pathway": "vision"},
    "selection": {"selection": "all"},
    "selection-random": {"selection": "random"},
    "selection-prior": {"selection": "prior"},
    "rho": {"selection_rho": 0.8},
    "alpha": {"selection_alpha": 0.0},
    "candidates": {"candidates": "right"},
    "distill-layer": {"distill_layer": "fused"},
    "weighting-uniform": {"weighting": "uniform"},
    "weight-max": {"weight_max": 0.1},
    "weight-shuffle": {"weight_shuffle": True},
    "confidence-folds": {"confidence_folds": 3},
    "confidence-none": {"confidence": "none"},
    "student-confidence-current": {"student_confidence": "current"},
    "confidence-check": {"confidence_check": "auc"},
    "steps": {"steps": "one"},
    "adapt-objective": {"adapt_objective": "contrastive"},
    "distill-weight": {"distill_weight": 0.7},
    "distill-decay": {"distill_decay": "linear"},
    "distill-decay-cosine": {"distill_decay": "cosine"},
    "adapt-lr-scale": {"adapt_lr_scale": 1.0},
    "adapt-steps": {"adapt_steps": 3},
    "teacher-control": {"teacher_control": "shuffle"},
    "method": {"method": "naive-kd"},
    "plain": {"method": "plain"},
    "plain-two-step": {"method": "plain-two-step"},
}


COVERED_ELSEWHERE = {
    ("confidence", "zero-shot"): "needs an aligned pair of towers: tests/extraction/test_confidence.py",
    ("answer_weight", None): "needs a record of pretraining: tests/training/test_bridge.py",
    ("confidence", "bridge"): "needs a record of pretraining: tests/training/test_bridge.py",
    ("confidence_check", "none"): "what the small corpus has, against which auc is tried",
    ("adapt_on", None): "needs a low-shot run or another split: test_inputs_without_labels_change_the_adapt_step",
    ("vision_target", "regions"): "what auto takes here: tests/distillation/test_distiller.py",
    ("vision_target", "patches"): "needs a cache of a grid: tests/training/test_vision_targets.py",
    ("teacher_control", "shuffle-cells"): "likewise",
    ("teacher_control", "shift-grid"): "likewise",
    ("teacher_control", "own-tokens"): "tests/training/test_teacher_controls.py",
    **{
        ("projector", kind): "with a chat model: tests/distillation/test_projectors.py"
        for kind in ("mlp", "frozen", "batch-norm", "shared")
    },
    ("answers_of", "student"): "needs a record of pretraining: tests/training/test_teacher_controls.py",
    ("weighting", "oracle"): "a control alone may: tests/training/test_bridge.py",
    ("landmarks", "all"): "needs a record of pretraining: tests/training/test_bridge.py",
    ("hide_picture", True): "not with the defaults of advl: tests/training/test_hidden_pictures.py",
    ("teacher_balance", "fixed"): "needs two teachers of a pathway: test_several_teachers_share_a_pathway_as_asked",
    ("teacher_weight", None): "likewise",
}


def test_every_choice_of_every_option_of_the_method_is_tried() -> None:
    tried = {(name, value) for change in CHANGES.values() for name, value in change.items()}
    names = {name for name, _ in tried}
    hints = {name: option.hint for name, option in declared(FinetuneConfig).items()}
    for field in options_of(FinetuneConfig).values():
        if field.name not in METHOD_OPTIONS:
            continue
        followed = None if field.default is None else field.default
        choices = [value for hint in (hints[field.name], *typing.get_args(hints[field.name]))
                   if typing.get_origin(hint) is typing.Literal for value in typing.get_args(hint)]  # fmt: skip
        if hints[field.name] is bool:
            choices = [True]
        if not choices:
            assert field.name in {*names, *(name for name, _ in COVERED_ELSEWHERE)}, field.name
        defaults = {"selection": "adaptive", "weighting": "ratio", "steps": "two", "adapt_objective": "distil-only"}
        for value in choices:
            if value != (followed or defaults.get(field.name)):
                assert (field.name, value) in {*tried, *COVERED_ELSEWHERE}, (field.name, value)


@pytest.fixture(scope="module")
def reference(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    small_corpus.run(folder)
    return losses(folder)


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_changes_the_run(
    option: str, small_corpus: Any, tmp_path: Path, reference: list[dict[str, float]]
) -> None:
    small_corpus.run(tmp_path / "run", **CHANGES[option])
    assert losses(tmp_path / "run") != reference


@pytest.fixture(scope="module")
def two_readers(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The caches of the small corpus and one of a second text teacher."""
    second = small_corpus.extract(tmp_path_factory.mktemp("second") / "cache", teacher="random:minilm-l6")
    return (*small_corpus.caches, second)


def test_several_teachers_share_a_pathway_as_asked(
    small_corpus: Any, two_readers: tuple[Path, ...], tmp_path: Path
) -> None:
    shares = ("minilm-l6=3", "random:minilm-l6=1", "efficientnet-lite0=1")
    for name, changes in {"equal": {}, "fixed": {"teacher_weight": shares}}.items():
        config = small_corpus.config(
            tmp_path / name, cache=two_readers, teacher_balance=name, distance="mse", **changes
        )
        run_finetune(with_options(config, weighting="uniform", checkpoint_every=1))
    found = {name: losses(tmp_path / name) for name in ("equal", "fixed")}
    assert found["equal"] != found["fixed"]
    teachers = ("minilm-l6", "random:minilm-l6")
    for name, logged in found.items():
        for record in logged:
            each = [record[f"raw/text/{teacher}"] for teacher in teachers]
            factor = [record[f"balance/text/{teacher}"] for teacher in teachers]
            assert record["raw/text"] == pytest.approx(sum(each) / 2, rel=1e-5)
            assert "raw/vision/efficientnet-lite0" not in record
            assert factor == ([1.0, 1.0] if name == "equal" else [3.0, 1.0])
            expected = sum(f * value for f, value in zip(factor, each, strict=True)) / sum(factor)
            strength = record["lambda"] if record["phase"] == "finetune" else 1.0
            assert record["weighted/text"] == pytest.approx(strength * expected, rel=1e-4)
