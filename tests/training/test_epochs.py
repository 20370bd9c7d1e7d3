"""How long a run is: in steps or in epochs, and by default in both: few labels are seen more often."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from commands import complaint
from own_rows import choice_row, write_json_lines

from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.training import recipes
from advl_pipeline.training.config import FinetuneConfig, TrainingSettings
from advl_pipeline.training.identity import run_record
from advl_pipeline.training.inputs import open_run_inputs
from advl_pipeline.training.resolved import finetune_steps, resolve_run


def configured(**options: Any) -> FinetuneConfig:
    fixed = {"dataset": "mine.jsonl", "method": "plain", "student": "scenes-small", "output": Path("run")}
    return build_config(FinetuneConfig, fixed | options)


def settings(num_labelled: int, **options: Any) -> TrainingSettings:
    return resolve_run(configured(**options), kind="vqa", num_labelled=num_labelled).settings


@pytest.mark.parametrize(
    ("num_labelled", "options", "num_steps"),
    [
        (100, {}, 300),
        (1600, {}, 300),
        (1601, {}, 301),
        (38_575, {}, 7233),
        (38_575, {"batch_size": 64}, 1809),
        (100, {"epochs": 2}, 13),
        (100, {"epochs": 0.01}, 1),
        (38_575, {"epochs": 0.5, "batch_size": 64}, 302),
        (38_575, {"num_steps": 300}, 300),
    ],
)
def test_steps_grow_with_the_labels_unless_they_are_given(
    num_labelled: int, options: dict[str, Any], num_steps: int
) -> None:
    decided = settings(num_labelled, **options)
    assert decided.num_steps == num_steps
    assert decided.epochs == pytest.approx(num_steps * decided.batch_size / num_labelled)
    expected = f"--epochs {options['epochs']}" if "epochs" in options else "--num-steps"
    expected = expected if {"epochs", "num_steps"} & options.keys() else "ADVL's default"
    assert decided.sources["num_steps"] == decided.sources["epochs"] == expected


def test_a_published_budget_stays_and_an_option_wins_over_it() -> None:
    published = settings(4000, dataset="vqa-v2", student="vilt")
    assert published.epochs == pytest.approx(10, rel=0.01)
    asked = settings(4000, dataset="vqa-v2", student="vilt", epochs=1)
    assert asked.num_steps == math.ceil(4000 / asked.batch_size)


def test_epochs_are_refused_beside_steps_and_where_batches_count_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("finetune", "--dataset", "scenes-vcr", "--method", "plain", "--output", "run")
    code, message = complaint(capsys, *words, "--epochs", 3, "--num-steps", 9)
    assert (code, "--epochs and --num-steps exclude each other" in message) == (2, True)
    code, message = complaint(capsys, *words, "--num-epochs", 3)
    assert code == 2
    assert "--epochs 3" in message
    with pytest.raises(ConfigError, match="no fixed number of steps where batches count tokens"):
        settings(4000, dataset="vcr", student="uniter-base", epochs=1)
    assert settings(4000, dataset="vcr", student="uniter-base").epochs is None


def test_what_is_forecast_of_a_low_shot_run_is_what_it_takes() -> None:
    for options in ({}, {"epochs": 2}, {"num_steps": 7}):
        config = configured(shots=100, **options)
        assert finetune_steps(config) == settings(100, shots=100, **options).num_steps


def test_a_run_of_the_default_length_is_known_by_it_where_there_are_many_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_json_lines(tmp_path / "mine.jsonl", [choice_row(number, split="train") for number in range(16)])

    def length(**options: Any) -> Any:
        config = configured(dataset=str(data), batch_size=16, **options)
        inputs = open_run_inputs(config, [])
        run = resolve_run(config, kind="vcr", num_labelled=len(inputs.labelled))
        return run_record(run, inputs, [], []).get("num_steps")

    assert length() is None
    monkeypatch.setattr(recipes, "DEFAULT_EPOCHS", 1000)  # As if there were many.
    assert (length(), length(num_steps=1000), length(epochs=1000)) == (1000, None, None)
