"""A run with a split val is scored on it on the way: as `advl evaluate` scores it, and nothing is changed by that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import printed
from own_rows import choice_row, write_json_lines
from run_logs import load_json, metrics

from advl_pipeline.training.config import config_of_run
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.validation import is_due


@pytest.mark.parametrize(
    ("num_steps", "due"),
    [
        (24, []),
        (30, [29]),
        (60, [29, 59]),
        (300, list(range(29, 300, 30))),
        (1085, [108, 216, 325, 433, 542, 650, 759, 867, 976, 1084]),
    ],
)
def test_a_run_is_scored_ten_times_at_most_and_at_its_end(num_steps: int, due: list[int]) -> None:
    assert [step for step in range(num_steps) if is_due(step, num_steps)] == due


def test_what_is_logged_is_what_evaluate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    splits = ("train", "train", "val")
    write_json_lines(Path("mine.jsonl"), [choice_row(number, split=splits[number % 3]) for number in range(24)])
    words = ("finetune", "--data", "mine.jsonl", "--student", "scenes-small", "--method", "plain", "--batch-size", 2)
    _, message = printed(capsys, *words, "--num-steps", 50, "--output", "run")
    first, last = (record for record in metrics(Path("run")) if "val/task" in record)
    assert (first["step"], last["step"]) == (24, 49)
    assert f"step 50: loss {last['val/task']:.3f}, {100 * last['val/correct']:.1f} % right of 8 examples" in message
    printed(capsys, "evaluate", "run", "--on", "val", "--probe", "none")
    scored = json.loads(Path("run/evaluation/val.json").read_text(encoding="utf-8"))
    assert last["val/correct"] == pytest.approx(scored["metrics"]["choice"] / 100)
    unseen = config_of_run(load_json(Path("run/config.json")), output=Path("unseen"))
    run_finetune(unseen, is_cell=True)
    losses, alone = ([record["raw/task"] for record in metrics(Path(run))] for run in ("run", "unseen"))
    assert losses == alone
    assert not any("val/task" in record for record in metrics(Path("unseen")))
