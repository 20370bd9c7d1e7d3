"""Runs: golden behaviour of methods and controls, resume to the same result, live teachers, refusals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.distillation.word_prior import fit_word_prior
from advl_pipeline.errors import ConfigError, IdentityMismatch
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.predict import load_run
from advl_pipeline.evaluation.runner import run_evaluate, score_matrix
from advl_pipeline.evaluation.use_of_vision import swapped_pictures
from advl_pipeline.extraction.confidence import load_or_estimate_confidence
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.students.registry import build_student
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


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "advl"},
        {"method": "naive-kd"},
        {"adapt_objective": "distil-only", "vision_target": "regions", "confidence": "probe-joint"},
        {"adapt_objective": "projections-only", "selection": "prior", "distance": "cosine", "target_norm": "none"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_cached_and_live_teachers_give_the_same_loss(
    changes: dict[str, str], small_corpus: Any, tmp_path: Path
) -> None:
    for name, live in (("cached", False), ("live", True)):
        run_finetune(small_corpus.config(tmp_path / name, num_steps=3, live=live, **changes))
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


def test_selected_tokens_give_the_loss_of_the_same_selection(
    small_corpus: Any, selected_cache: Path, tmp_path: Path
) -> None:
    # Moments are of what is stored, so only unscaled targets can agree.
    options = {"num_steps": 3, "selection": "prior", "target_norm": "none", "method": "advl"}
    for name, cache, live in (
        ("full", small_corpus.caches[0], False),
        ("selected", selected_cache, False),
        ("live", selected_cache, True),
    ):
        run_finetune(small_corpus.config(tmp_path / name, cache=(cache,), live=live, **options))
    for full, selected, live in zip(*(losses(tmp_path / n) for n in ("full", "selected", "live")), strict=True):
        assert selected["raw/text"] == pytest.approx(full["raw/text"], rel=1e-3)
        assert selected["raw/text"] == pytest.approx(live["raw/text"], rel=5e-3)


@pytest.mark.parametrize("selection", ["all", "random", "visual"])
def test_selections_that_need_all_tokens_refuse_some(
    small_corpus: Any, selected_cache: Path, tmp_path: Path, selection: str
) -> None:
    config = small_corpus.config(tmp_path / "run", cache=(selected_cache,), num_steps=2)
    with pytest.raises(ConfigError, match="cannot serve") as caught:
        run_finetune(replace(config, selection=selection))
    assert "select-tokens" in caught.value.next_command
    with pytest.raises(ConfigError, match="fewer words"):
        run_finetune(replace(config, output=tmp_path / "more", selection_rho=0.6))


_NAMES = [field.name for field in fields(FinetuneConfig)]
METHOD_OPTIONS = {"method", *_NAMES[_NAMES.index("distill_weight") :]}
"""The configuration lists what is about the method last, from the strength of the distillation on."""


CHANGES: dict[str, dict[str, Any]] = {
    "distance-cosine": {"distance": "cosine"},
    "distance-l1": {"distance": "l1"},
    "distance-smooth-l1": {"distance": "smooth-l1"},
    "target-norm": {"target_norm": "none"},
    "vision-target": {"vision_target": "image"},
    "vision-target-regions": {"vision_target": "regions"},
    "pathway": {"pathway": "text"},
    "pathway-vision": {"pathway": "vision"},
    "selection": {"selection": "all"},
    "selection-random": {"selection": "random"},
    "selection-prior": {"selection": "prior"},
    "selection-visual": {"selection": "visual"},
    "rho": {"selection_rho": 0.8},
    "alpha": {"selection_alpha": 0.0},
    "candidates": {"candidates": "right"},
    "text-pass": {"text_pass": "text-only"},
    "weighting": {"weighting": "gap"},
    "weighting-teacher": {"weighting": "teacher"},
    "weighting-uniform": {"weighting": "uniform"},
    "weight-max": {"weight_max": 0.1},
    "weight-normalise": {"weight_normalise": "batch-mean"},
    "weight-shuffle": {"weight_shuffle": True},
    "confidence-folds": {"confidence_folds": 3},
    "confidence": {"confidence": "probe-joint"},
    "confidence-none": {"confidence": "none"},
    "steps": {"steps": "one"},
    "adapt-objective": {"adapt_objective": "distil-only"},
    "adapt-projections": {"adapt_objective": "projections-only"},
    "distill-weight": {"distill_weight": 0.3},
    "distill-decay": {"distill_decay": "linear"},
    "distill-decay-cosine": {"distill_decay": "cosine"},
    "adapt-fraction": {"adapt_fraction": 0.5},
    "teacher-control": {"teacher_control": "shuffle"},
    "hide-picture": {"hide_picture": True},
    "method": {"method": "naive-kd"},
    "plain": {"method": "plain"},
    "plain-two-step": {"method": "plain-two-step"},
}


COVERED_ELSEWHERE = {
    ("confidence", "zero-shot"): "needs an aligned pair of towers: tests/extraction/test_confidence.py",
    ("adapt_on", "inputs"): "needs a low-shot run: test_inputs_without_labels_change_the_adapt_step",
    ("live", True): "test_cached_and_live_teachers_give_the_same_loss",
    ("teacher_balance", "fixed"): "needs two teachers of a pathway: test_several_teachers_share_a_pathway_as_asked",
    ("teacher_balance", "learned"): "likewise",
    ("teacher_weight", None): "likewise",
}


def test_every_choice_of_every_option_of_the_method_is_tried() -> None:
    tried = {(name, value) for change in CHANGES.values() for name, value in change.items()}
    names = {name for name, _ in tried}
    hints = typing.get_type_hints(FinetuneConfig)
    for field in fields(FinetuneConfig):
        if field.name not in METHOD_OPTIONS:
            continue
        followed = None if field.default is None else field.default
        choices = [value for hint in (hints[field.name], *typing.get_args(hints[field.name]))
                   if typing.get_origin(hint) is typing.Literal for value in typing.get_args(hint)]  # fmt: skip
        if hints[field.name] is bool:
            choices = [True]
        if not choices:
            assert field.name in {*names, *(name for name, _ in COVERED_ELSEWHERE)}, field.name
        defaults = {"selection": "adaptive", "weighting": "ratio", "steps": "two"}
        for value in choices:
            if value != (followed or defaults.get(field.name)):
                assert (field.name, value) in {*tried, *COVERED_ELSEWHERE}, (field.name, value)


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


@pytest.fixture(scope="module")
def two_readers(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The caches of the small corpus and one of a second text teacher."""
    output = tmp_path_factory.mktemp("second") / "cache"
    run_extract(
        ExtractConfig(
            teacher="random:minilm-l6",
            dataset="scenes-vcr",
            data_root=small_corpus.data_root,
            output=output,
            folds=2,
        )
    )
    return (*small_corpus.caches, output)


def test_several_teachers_share_a_pathway_as_asked(
    small_corpus: Any, two_readers: tuple[Path, ...], tmp_path: Path
) -> None:
    shares = ("minilm-l6=3", "random:minilm-l6=1", "efficientnet-lite0=1")
    for name, changes in {
        "equal": {},
        "fixed": {"teacher_weight": shares},
        "learned": {},
    }.items():
        config = small_corpus.config(tmp_path / name, cache=two_readers, teacher_balance=name, **changes)
        run_finetune(replace(config, weighting="uniform", checkpoint_every=1))
    found = {name: losses(tmp_path / name) for name in ("equal", "fixed", "learned")}
    assert found["equal"] != found["fixed"] != found["learned"] != found["equal"]
    teachers = ("minilm-l6", "random:minilm-l6")
    for name, logged in found.items():
        for record in logged:
            each = [record[f"raw/text/{teacher}"] for teacher in teachers]
            factor = [record[f"balance/text/{teacher}"] for teacher in teachers]
            assert record["raw/text"] == pytest.approx(sum(each) / 2, rel=1e-5)
            assert "raw/vision/efficientnet-lite0" not in record
            if name == "learned":
                # exp(-s) L + s, with the factor exp(-s) that the step began with.
                expected = sum(f * value - math.log(f) for f, value in zip(factor, each, strict=True)) / 2
            else:
                assert factor == ([1.0, 1.0] if name == "equal" else [3.0, 1.0])
                expected = sum(f * value for f, value in zip(factor, each, strict=True)) / sum(factor)
            assert record["weighted/text"] == pytest.approx(expected, rel=1e-4)
    first, last = (
        {teacher: found["learned"][step][f"balance/text/{teacher}"] for teacher in teachers} for step in (0, -1)
    )
    assert list(first.values()) == [1.0, 1.0]
    for teacher, factor in last.items():
        assert factor != 1.0
        # Where a loss is above 1 its teacher comes to count less, and more where it is below.
        assert (factor < 1.0) == (found["learned"][0][f"raw/text/{teacher}"] > 1.0)
    with pytest.raises(ConfigError, match="nothing to balance"):
        run_finetune(small_corpus.config(tmp_path / "alone", teacher_balance="learned"))


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
        shuffled = first_shuffled[f"weights/{pathway}"]
        assert histogram["counts"] == shuffled["counts"]
        # The same numbers in another order add up to the same but for rounding.
        assert histogram["mean"] == pytest.approx(shuffled["mean"], rel=1e-6)
    assert first_kept["weighted/text"] != first_shuffled["weighted/text"]


def test_low_shot_runs_use_the_same_nested_questions_for_every_method(small_corpus: Any, tmp_path: Path) -> None:
    summary = run_finetune(small_corpus.config(tmp_path / "run", shots=4, num_steps=2)).summary
    assert (summary["num_labelled"], summary["num_adapt_inputs"]) == (4, 4)
    wide = run_finetune(small_corpus.config(tmp_path / "wide", shots=4, num_steps=2, adapt_on="inputs")).summary
    assert (wide["num_labelled"], wide["num_adapt_inputs"]) == (4, 16)


class Relabelled:
    """A dataset whose examples outside a set of ids carry wrong labels; everything else is the dataset's own."""

    def __init__(self, dataset: Any, kept: set[str]) -> None:
        self._dataset, self._kept = dataset, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        example = self._dataset[index]
        if example.example_id in self._kept:
            return example
        return replace(example, label=(example.label + 1) % len(example.candidates))


@pytest.mark.parametrize("adapt_on", ["subset", "inputs"])
def test_labels_outside_the_subset_and_other_splits_influence_nothing(
    adapt_on: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"shots": 4, "adapt_on": adapt_on}
    run_finetune(small_corpus.config(tmp_path / "true", **changes))
    opened: list[str] = []

    def open_relabelled(name: str, **options: Any) -> Any:
        opened.append(options["split"])
        dataset: Any = open_dataset(name, **options)
        return Relabelled(dataset, set(nested_subset(dataset, 4, 0)))

    monkeypatch.setattr("advl_pipeline.training.run.open_dataset", open_relabelled)
    run_finetune(small_corpus.config(tmp_path / "wrong", **changes))
    assert losses(tmp_path / "wrong") == losses(tmp_path / "true")
    assert opened == ["train"]


@pytest.mark.parametrize("adapt_on", ["subset", "inputs"])
def test_low_shot_statistics_come_from_where_the_readme_says(
    adapt_on: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    probed: list[str] = []

    def fit(texts: Any) -> Any:
        counted.extend(texts)
        return fit_word_prior(counted)

    def estimate(**options: Any) -> Any:
        probed.extend(options["example_ids"])
        return load_or_estimate_confidence(**options)

    monkeypatch.setattr("advl_pipeline.training.run.fit_word_prior", fit)
    monkeypatch.setattr("advl_pipeline.training.run.load_or_estimate_confidence", estimate)
    run_finetune(small_corpus.config(tmp_path / "run", shots=4, adapt_on=adapt_on, num_steps=2))
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    subset = set(nested_subset(dataset, 4, 0))
    examples = [dataset[index] for index in range(len(dataset))]
    inputs = [example for example in examples if adapt_on == "inputs" or example.example_id in subset]
    assert sorted(counted) == sorted(choice.text for example in inputs for choice in example.candidates)
    assert set(probed) == subset
    assert len(inputs) == (4 if adapt_on == "subset" else 16)


def test_inputs_without_labels_change_the_adapt_step(small_corpus: Any, tmp_path: Path) -> None:
    for adapt_on in ("subset", "inputs"):
        run_finetune(small_corpus.config(tmp_path / adapt_on, shots=4, adapt_on=adapt_on))
    assert losses(tmp_path / "subset") != losses(tmp_path / "inputs")


def test_inference_is_the_plain_students(small_corpus: Any, tmp_path: Path) -> None:
    shapes = []
    for method in ("plain", "advl"):
        summary = run_finetune(small_corpus.config(tmp_path / method, method=method)).summary
        tensors = load_file(tmp_path / method / "model.safetensors")
        shapes.append((summary["student_parameters"], {key: tuple(value.shape) for key, value in tensors.items()}))
    assert shapes[0] == shapes[1]


def test_evaluation_scores_items_and_spoilt_pictures(small_corpus: Any, tmp_path: Path) -> None:
    config = small_corpus.config(tmp_path / "run", task=(), num_steps=2, method="plain", cache=())
    run_finetune(config)
    evaluate = EvaluateConfig(run=tmp_path / "run", on=("test", "test-shift"), data_root=small_corpus.data_root)
    sets = run_evaluate(evaluate).sets
    assert "use_of_vision" not in sets["test-shift"]
    document = sets["test"]
    assert set(document["metrics"]) == {"q2a", "qa2r", "q2ar"}
    arrays = np.load(tmp_path / "run" / "evaluation" / "test.npz", allow_pickle=False)
    for metric, percent in document["metrics"].items():
        items = arrays[f"item/{metric}"]
        assert items.shape == (8,)
        assert 100 * items.mean() == pytest.approx(percent)
        for kind in ("swapped", "blanked", "removed"):
            spoilt = 100 * arrays[f"item_{kind}/{metric}"].mean()
            expected = {"accuracy": spoilt, "drop": percent - spoilt}
            assert document["use_of_vision"][metric][kind] == pytest.approx(expected)
        by_type = document["by_question_type"][metric]
        assert (
            sum(found["num_items"] for found in by_type.values()) == len(items) == len(arrays[f"pictures/{metric}"])
        )
    scores, labels = arrays["scores/vcr-q2a"], arrays["labels/vcr-q2a"]
    assert (scores.argmax(1) == labels).astype(np.float32).tolist() == arrays["item/q2a"].tolist()


def test_probes_and_the_sets_that_they_are_made_on_can_be_chosen(small_corpus: Any, tmp_path: Path) -> None:
    run_finetune(small_corpus.config(tmp_path / "run", num_steps=2, method="plain", cache=()))
    common = {"run": tmp_path / "run", "on": ("test", "test-shift"), "data_root": small_corpus.data_root}
    sets = run_evaluate(EvaluateConfig(**common, probe=("removed",), probe_on=("test-shift",))).sets
    assert "use_of_vision" not in sets["test"]
    assert set(sets["test-shift"]["use_of_vision"]["q2a"]) == {"removed"}
    none = run_evaluate(EvaluateConfig(**common, probe=("none",))).sets
    assert not any("use_of_vision" in document for document in none.values())


def test_spoilt_pictures_are_what_they_say(small_corpus: Any, tmp_path: Path) -> None:
    """Two pictures give the same scores once blanked only where their boxes agree, and always once removed."""
    run_finetune(small_corpus.config(tmp_path / "run", num_steps=2, method="plain", cache=()))
    finished = load_run(tmp_path / "run")
    dataset = open_dataset("scenes-vcr", split="test", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    example = dataset[0]
    boxes_R4 = example.image.boxes_R4
    other = next(unit for unit in dataset.image_units() if unit.unit_id != example.image.unit_id)
    painted = replace(other, boxes_R4=boxes_R4, width=example.image.width, height=example.image.height)
    moved = replace(painted, boxes_R4=boxes_R4[:, [0, 1, 2, 3]] * np.float32(0.5))
    views = ("shown", "blanked", "removed")
    scores = [
        next(finished.scores([replace(example, image=image)], batch_size=1, views=views))
        for image in (example.image, painted, moved)
    ]
    for view, differs in (("shown", (True, True)), ("blanked", (False, True)), ("removed", (False, False))):
        original, *others = (by_view[views.index(view)] for by_view in scores)
        assert tuple(bool(np.abs(row - original).max() > 1e-6) for row in others) == differs, view


def test_a_text_only_student_never_sees_a_picture(small_corpus: Any, tmp_path: Path) -> None:
    """Trained and evaluated on other pictures it is the same student with the same answers."""
    run_finetune(small_corpus.config(tmp_path / "run", method="plain", cache=(), hide_picture=True))
    evaluate = EvaluateConfig(run=tmp_path / "run", data_root=small_corpus.data_root)
    assert "use_of_vision" not in run_evaluate(evaluate).sets["test"]
    finished = load_run(tmp_path / "run")
    dataset = open_dataset("scenes-vcr", split="test", data_root=small_corpus.data_root, tasks=("vcr-q2a",))
    examples = [dataset[index] for index in range(len(dataset))]
    others = swapped_pictures(dataset.image_units(), seed=0)
    swapped = [replace(example, image=others[example.image.unit_id]) for example in examples]
    one, two = (score_matrix(finished, items, 4) for items in (examples, swapped))
    np.testing.assert_allclose(one, two, atol=1e-5)
    visual = [name for name in finished.student.state_dict() if name.startswith(("patch_encoder", "box_encoder"))]
    torch.manual_seed(0)
    untrained = build_student("scenes-small")
    for name in visual:
        # Weight decay alone moved them.
        ratio = finished.student.state_dict()[name] / untrained.state_dict()[name]
        assert ratio.nan_to_num(1.0).std() < 1e-5, name


def test_scores_that_are_not_numbers_are_refused(small_corpus: Any, tmp_path: Path) -> None:
    run_finetune(small_corpus.config(tmp_path / "run", num_steps=2, method="plain", cache=()))
    path = tmp_path / "run" / "heads.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}, path)
    with pytest.raises(ConfigError, match="not numbers for 8 of 8 items") as refused:
        run_evaluate(EvaluateConfig(run=tmp_path / "run", data_root=small_corpus.data_root))
    assert "diverged" in refused.value.why


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
