"""Runs: the same again, resumed after a kill, live teachers, what is logged, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from altered_dataset import AlteredDataset
from commands import completed
from live_teacher import teachers_run
from run_logs import losses, metrics
from safetensors.torch import load_file

from advl_pipeline.configuration import with_options
from advl_pipeline.datasets.registry import open_splits
from advl_pipeline.errors import ConfigError, DatasetError, IdentityMismatch
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training import inputs
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune


def test_the_same_run_gives_the_same_losses_and_weights(small_corpus: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_finetune(small_corpus.config(tmp_path / name))
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_killed_run_resumes_to_the_same_result(small_corpus: Any, tmp_path: Path) -> None:
    config = small_corpus.config(tmp_path / "whole", num_steps=16, adapt_steps=8, checkpoint_every=1)
    run_finetune(config)
    options = [
        *("finetune", "--dataset", "scenes-vcr", "--task", "vcr-q2a"),
        *("--data-root", str(small_corpus.data_root), "--output", str(tmp_path / "killed")),
        *(
            "--num-steps",
            "16",
            "--adapt-steps",
            "8",
            "--adapt-texts",
            "16",
            "--batch-size",
            "4",
            "--confidence-folds",
            "2",
            "--confidence-check",
            "none",
        ),
        *("--checkpoint-every", "1"),
    ]
    command = [*options, "--cache", str(config.cache[0]), "--cache", str(config.cache[1])]
    process = subprocess.Popen(
        [sys.executable, "-m", "advl_cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    # On another machine the caches lie elsewhere.
    moved = [shutil.copytree(path, tmp_path / f"moved-{number}") for number, path in enumerate(config.cache)]
    one, two = (["--cache", str(path)] for path in moved)
    others = completed(*options, *two, *one)
    assert others.returncode == 3, others.stderr
    assert "cache.1." in others.stderr
    assert completed(*options, *one, *two).returncode == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "advl"},
        {"method": "naive-kd"},
        {"adapt_objective": "distil-only", "vision_target": "regions"},
        {"adapt_objective": "contrastive", "selection": "prior", "distance": "cosine", "target_norm": "none"},
        {"distance": "mse", "distill_layer": "fused"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_cached_and_live_teachers_give_the_same_loss(
    changes: dict[str, str], small_corpus: Any, tmp_path: Path
) -> None:
    config = small_corpus.config(tmp_path / "cached", num_steps=3, num_workers=1, **changes)
    run_finetune(config)
    with teachers_run(open_splits("scenes-vcr", split="train", data_root=small_corpus.data_root)):
        run_finetune(replace(config, output=tmp_path / "live"))
    for cached, live in zip(losses(tmp_path / "cached"), losses(tmp_path / "live"), strict=True):
        found = {key for key in cached if key.startswith(("raw/", "weighted/"))}
        assert {"raw/vision", "raw/text", "weighted/vision", "weighted/text"} <= found
        for key in found:
            # Features are stored in half precision.
            assert cached[key] == pytest.approx(live[key], rel=5e-3), key


@pytest.fixture(scope="module")
def selected_cache(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text cache of the small corpus that holds the half of each text's words with the highest prior."""
    output = tmp_path_factory.mktemp("selected") / "cache"
    run_extract(
        ExtractConfig(
            teacher="minilm-l6",
            dataset="scenes-vcr",
            data_root=small_corpus.data_root,
            output=output,
            folds=2,
            select_tokens=0.5,
        )
    )
    return output


@pytest.mark.parametrize("distance", ["mse", "relational"])
def test_selected_tokens_give_the_words_of_the_same_selection(
    small_corpus: Any, selected_cache: Path, known: Path, tmp_path: Path, distance: str
) -> None:
    chosen = []
    for name, cache in (("full", small_corpus.caches[0]), ("selected", selected_cache)):
        options = {"selection": "prior", "distance": distance, "known_words": known, "cache": (cache,)}
        run_finetune(small_corpus.config(tmp_path / name, num_steps=1, **options))
        chosen.append(json.loads((tmp_path / name / "selected_words.json").read_text()))
    texts = [pair for name, of_full in chosen[0].items() for pair in zip(of_full, chosen[1][name], strict=True)]
    assert any(full for full, _ in texts)
    if distance == "mse":
        assert all(full == selected for full, selected in texts)
    else:
        # Of the words to be placed, some may be among those that the cache does not hold.
        assert all(len(selected) <= len(full) for full, selected in texts)
        assert sum(full == selected for full, selected in texts) > len(texts) / 2


def test_selected_tokens_give_the_loss_of_the_same_selection(
    small_corpus: Any, selected_cache: Path, tmp_path: Path
) -> None:
    # Moments are of what is stored, so only unscaled targets can agree.
    # Relations are to all words that a cache holds.
    options = {"num_steps": 3, "selection": "prior", "target_norm": "none", "method": "advl", "distance": "mse"}
    for name, cache in (("full", small_corpus.caches[0]), ("selected", selected_cache)):
        run_finetune(small_corpus.config(tmp_path / name, cache=(cache,), **options))
    with teachers_run(open_splits("scenes-vcr", split="train", data_root=small_corpus.data_root)):
        run_finetune(small_corpus.config(tmp_path / "live", cache=(selected_cache,), num_workers=1, **options))
    for full, selected, live in zip(*(losses(tmp_path / n) for n in ("full", "selected", "live")), strict=True):
        assert selected["raw/text"] == pytest.approx(full["raw/text"], rel=1e-3)
        assert selected["raw/text"] == pytest.approx(live["raw/text"], rel=5e-3)


@pytest.mark.parametrize("selection", ["all", "random"])
def test_selections_that_need_all_tokens_refuse_some(
    small_corpus: Any, selected_cache: Path, tmp_path: Path, selection: str
) -> None:
    config = small_corpus.config(tmp_path / "run", cache=(selected_cache,), num_steps=2)
    with pytest.raises(ConfigError, match="cannot serve") as caught:
        run_finetune(with_options(config, selection=selection))
    assert "advl extract" in caught.value.next_command
    with pytest.raises(ConfigError, match="fewer words"):
        run_finetune(with_options(config, output=tmp_path / "more", selection_rho=0.6))


def test_a_split_without_labels_is_refused_before_anything_is_written(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlabelled(name: str, **settings: Any) -> Any:
        dataset: Any = open_splits(name, **settings)
        return AlteredDataset(dataset, lambda example: replace(example, label=None, soft_label=()))

    monkeypatch.setattr(inputs, "open_splits", unlabelled)
    for dataset in ("scenes-vcr", "scenes-vqa"):
        run = tmp_path / dataset
        with pytest.raises(DatasetError, match="nothing to learn"):
            run_finetune(small_corpus.config(run, dataset=dataset, task=(), method="plain", cache=()))
        assert not run.exists()


def test_methods_log_their_own_terms(small_corpus: Any, tmp_path: Path) -> None:
    expected = {
        "plain": [{"task"}],
        "plain-two-step": [{"contrast", "drift"}, {"task"}],
        "naive-kd": [{"task", "vision", "text"}],
        "advl": [{"drift", "vision", "text"}, {"task", "vision", "text"}],
    }
    for method, phases in expected.items():
        run_finetune(small_corpus.config(tmp_path / method, method=method))
        logged = metrics(tmp_path / method)
        assert len(logged) == (6 if len(phases) == 2 else 4)
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
        shuffled = first_shuffled[f"weights/{pathway}"]
        assert histogram["counts"] == shuffled["counts"]
        # The same numbers in another order add up to the same but for rounding.
        assert histogram["mean"] == pytest.approx(shuffled["mean"], rel=1e-6)
    assert first_kept["weighted/text"] != first_shuffled["weighted/text"]
    with pytest.raises(ConfigError, match="a micro-batch has one"):
        run_finetune(small_corpus.config(tmp_path / "ones", weight_shuffle=True, accumulate=4))


def test_inference_is_the_plain_students(small_corpus: Any, tmp_path: Path) -> None:
    shapes = []
    for method in ("plain", "advl"):
        summary = run_finetune(small_corpus.config(tmp_path / method, method=method)).summary
        tensors = load_file(tmp_path / method / "model.safetensors")
        shapes.append((summary["student_parameters"], {key: tuple(value.shape) for key, value in tensors.items()}))
    assert shapes[0] == shapes[1]


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
    distill, adapt = config.distill, config.adapt
    assert (distill.distance, config.target_norm, distill.vision_target) == ("relational", "standardise", "auto")
    assert (distill.selection_alpha, distill.selection_rho, distill.weight_max) == (0.5, 0.3, 2.0)
    assert (distill.distill_weight, distill.distill_decay) == (0.01, "none")
    assert (adapt.adapt_steps, adapt.adapt_objective, adapt.adapt_on) == (400, None, ("inputs",))
    assert (distill.distill_layer, adapt.anchor_weight) == ("unimodal", 20.0)
