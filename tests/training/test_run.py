"""Runs: golden behaviour of methods and controls, resume to the same result, live teachers, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from advl_pipeline.errors import ConfigError, IdentityMismatch
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[dict[str, float]]:
    """Everything that was computed, without the clock."""
    return [
        {key: value for key, value in record.items() if not key.startswith("seconds")} for record in metrics(folder)
    ]


def test_the_same_run_gives_the_same_losses_and_weights(small_corpus: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_finetune(small_corpus.config(tmp_path / name))
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_killed_run_resumes_to_the_same_result(small_corpus: Any, tmp_path: Path) -> None:
    config = small_corpus.config(tmp_path / "whole", num_steps=24, checkpoint_every=1)
    run_finetune(config)
    command = [
        *(sys.executable, "-m", "advl_cli", "finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(small_corpus.data_root), "--output", str(tmp_path / "killed")),
        *("--num-steps", "24", "--adapt-fraction", "0.34", "--batch-size", "4", "--confidence-folds", "2"),
        *("--checkpoint-every", "1", "--cache", str(config.cache[0]), "--cache", str(config.cache[1])),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_cached_and_live_teachers_give_the_same_loss(small_corpus: Any, tmp_path: Path) -> None:
    for name, live in (("cached", False), ("live", True)):
        run_finetune(small_corpus.config(tmp_path / name, num_steps=3, live=live))
    for cached, live in zip(losses(tmp_path / "cached"), losses(tmp_path / "live"), strict=True):
        for key in ("raw/vision", "raw/text", "weighted/vision", "weighted/text"):
            # Features are stored in half precision.
            assert cached.get(key) == pytest.approx(live.get(key), rel=5e-3), key


CHANGES: dict[str, dict[str, Any]] = {
    "distance": {"distance": "cosine"},
    "target-norm": {"target_norm": "none"},
    "vision-target": {"vision_target": "image"},
    "pathway": {"pathway": "text"},
    "selection": {"selection": "all"},
    "selection-random": {"selection": "random"},
    "selection-prior": {"selection": "prior"},
    "selection-visual": {"selection": "visual"},
    "rho": {"selection_rho": 0.8},
    "alpha": {"selection_alpha": 0.0},
    "candidates": {"candidates": "right"},
    "weighting": {"weighting": "gap"},
    "weighting-teacher": {"weighting": "teacher"},
    "weighting-uniform": {"weighting": "uniform"},
    "weight-max": {"weight_max": 0.1},
    "weight-normalise": {"weight_normalise": "batch-mean"},
    "confidence": {"confidence": "probe-joint"},
    "confidence-none": {"confidence": "none"},
    "steps": {"steps": "one"},
    "adapt-objective": {"adapt_objective": "distil-only"},
    "adapt-projections": {"adapt_objective": "projections-only"},
    "distill-weight": {"distill_weight": 0.3},
    "distill-decay": {"distill_decay": "linear"},
    "teacher-control": {"teacher_control": "shuffle"},
    "method": {"method": "naive-kd"},
    "plain": {"method": "plain"},
    "plain-two-step": {"method": "plain-two-step"},
}


@pytest.fixture(scope="module")
def reference(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    run_finetune(small_corpus.config(folder))
    return losses(folder)


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_changes_the_run(
    option: str, small_corpus: Any, tmp_path: Path, reference: list[dict[str, float]]
) -> None:
    run_finetune(small_corpus.config(tmp_path / "run", **CHANGES[option]))
    assert losses(tmp_path / "run") != reference


def test_methods_log_their_own_terms(small_corpus: Any, tmp_path: Path) -> None:
    expected = {
        "plain": [{"task"}],
        "plain-two-step": [{"contrast"}, {"task"}],
        "naive-kd": [{"task", "vision", "text"}],
        "advl": [{"contrast", "vision", "text"}, {"task", "vision", "text"}],
    }
    for method, phases in expected.items():
        run_finetune(small_corpus.config(tmp_path / method, method=method))
        logged = metrics(tmp_path / method)
        assert len(logged) == 6
        found = [
            {key.removeprefix("raw/") for key in record if key.startswith("raw/")}
            for record in (logged[0], logged[-1])
        ]
        assert found == [phases[0], phases[-1]]


def test_weights_are_logged_bounded_and_shuffling_keeps_them(small_corpus: Any, tmp_path: Path) -> None:
    for name, shuffle in (("kept", False), ("shuffled", True)):
        run_finetune(small_corpus.config(tmp_path / name, steps="one", weight_shuffle=shuffle, num_steps=2))
    first_kept, first_shuffled = (metrics(tmp_path / name)[0] for name in ("kept", "shuffled"))
    for pathway in ("vision", "text"):
        histogram = first_kept[f"weights/{pathway}"]
        assert sum(histogram["counts"]) == 4
        assert 0 <= histogram["max"] <= 2.0
        assert histogram == first_shuffled[f"weights/{pathway}"]
    assert first_kept["weighted/text"] != first_shuffled["weighted/text"]


def test_low_shot_runs_use_the_same_nested_questions_for_every_method(small_corpus: Any, tmp_path: Path) -> None:
    summary = run_finetune(small_corpus.config(tmp_path / "run", shots=4, num_steps=2)).summary
    assert (summary["num_labelled"], summary["num_adapt_inputs"]) == (4, 4)
    wide = run_finetune(small_corpus.config(tmp_path / "wide", shots=4, num_steps=2, adapt_on="inputs")).summary
    assert (wide["num_labelled"], wide["num_adapt_inputs"]) == (4, 16)


def test_inference_is_the_plain_students(small_corpus: Any, tmp_path: Path) -> None:
    shapes = []
    for method in ("plain", "advl"):
        summary = run_finetune(small_corpus.config(tmp_path / method, method=method)).summary
        tensors = load_file(tmp_path / method / "model.safetensors")
        shapes.append((summary["student_parameters"], {key: tuple(value.shape) for key, value in tensors.items()}))
    assert shapes[0] == shapes[1]


def test_evaluation_scores_items_and_swapped_pictures(small_corpus: Any, tmp_path: Path) -> None:
    config = small_corpus.config(tmp_path / "run", task=(), num_steps=2, method="plain", cache=())
    run_finetune(config)
    evaluate = EvaluateConfig(run=tmp_path / "run", on=("test", "test-shift"), data_root=small_corpus.data_root)
    document = run_evaluate(evaluate).sets["test"]
    assert set(document["metrics"]) == {"q2a", "qa2r", "q2ar"}
    arrays = np.load(tmp_path / "run" / "evaluation" / "test.npz", allow_pickle=False)
    for metric, percent in document["metrics"].items():
        items = arrays[f"item/{metric}"]
        assert items.shape == (8,)
        assert 100 * items.mean() == pytest.approx(percent)
        swapped = 100 * arrays[f"item_swapped/{metric}"].mean()
        assert document["use_of_vision"][metric] == pytest.approx({"swapped": swapped, "drop": percent - swapped})
    scores, labels = arrays["scores/vcr-q2a"], arrays["labels/vcr-q2a"]
    assert (scores.argmax(1) == labels).astype(np.float32).tolist() == arrays["item/q2a"].tolist()


def test_refusals(small_corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a teacher cache"):
        run_finetune(small_corpus.config(tmp_path / "a", cache=()))
    with pytest.raises(IdentityMismatch, match="another dataset") as other:
        run_finetune(small_corpus.config(tmp_path / "b", split="val"))
    assert "advl extract" in other.value.next_command
    assert "split" in other.value.why
    run_finetune(small_corpus.config(tmp_path / "c", method="plain", num_steps=2))
    with pytest.raises(IdentityMismatch, match="other settings"):
        run_finetune(small_corpus.config(tmp_path / "c", method="plain", num_steps=3))
    with pytest.raises(ConfigError, match="rho"):
        run_finetune(small_corpus.config(tmp_path / "d", selection_rho=1.5))


def test_defaults_of_the_configuration_are_the_methods() -> None:
    config = FinetuneConfig(dataset="any", output=Path("any"))
    assert (config.distance, config.target_norm, config.vision_target) == ("mse", "standardise", "both")
    assert (config.selection_alpha, config.selection_rho, config.weight_max) == (0.5, 0.3, 2.0)
    assert (config.distill_weight, config.adapt_objective, config.adapt_on) == (1.0, "contrastive", "subset")
