"""Val is scored on the way; a run ends when it falls, and keeps the last weights within an error of the best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from commands import complaint, printed
from interrupting import interrupted_at
from own_rows import COLOURS, choice_row, write_json_lines
from PIL import Image
from run_logs import load_json, metrics
from safetensors.torch import load_file
from small_corpus import SMALL_WORDS, train

from advl_pipeline.runs import names
from advl_pipeline.training import run as run_module
from advl_pipeline.training.config import FinetuneConfig, OptimiserOptions, TrainingSettings
from advl_pipeline.training.stopping import PATIENCE, EarlyStopping
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


@pytest.fixture
def contrary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinetuneConfig:
    """A run on data whose val contradicts train, so that it is the worse the longer it learns."""
    monkeypatch.chdir(tmp_path)
    rows = [choice_row(number, split="train") for number in range(16)]
    rows += [choice_row(number, split="val") for number in range(1, 24, 2)]
    for row in rows[16:]:
        row["label"] = (row["label"] + 1) % 4
    write_json_lines(Path("mine.jsonl"), rows)
    return FinetuneConfig(
        dataset="mine.jsonl",
        output=Path("run"),
        method="plain",
        student="scenes-small",
        student_option=SMALL_WORDS,
        val_every=4,
        checkpoint_every=4,
        optimisation=OptimiserOptions(batch_size=2, learning_rate=3e-3),
    )


def test_weights_within_a_standard_error_of_the_best_score_are_kept_and_lower_ones_are_not() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    stopping = EarlyStopping(model, num_examples=100)

    def kept_after(*scores: float) -> int | None:
        for score in scores:
            model.weight.data.fill_(score)
            stopping.take(len(taken), {"val/correct": score, "val/task": 1.0}, model)
            taken.append(score)
        return stopping.kept_step

    taken: list[float] = []
    # The standard error of a half of 100 is 5 points.
    assert kept_after(0.4, 0.5, 0.46) == 2
    assert kept_after(0.44, 0.44, 0.46) == 5
    assert kept_after(*[0.44] * (PATIENCE - 1)) == 5
    assert not stopping.is_over
    assert kept_after(0.44) == 5
    assert stopping.is_over
    stopping.put_back(model)
    assert model.weight.item() == pytest.approx(0.46)


def test_a_run_on_own_data_ends_when_val_falls_and_keeps_the_last_weights_within_an_error_of_the_best(
    contrary: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(contrary)
    scored = {record["step"]: record["val/correct"] for record in metrics(run.output) if "val/task" in record}
    best = max(scored.values())
    within = [step for step, share in scored.items() if share >= best - (best * (1 - best) / 12) ** 0.5]
    kept = max(within)
    assert run.summary.num_steps == max(scored) + 1 == kept + 1 + 4 * PATIENCE < TrainingSettings.num_steps
    assert f"keeps the weights of step {kept + 1}," in capsys.readouterr().err
    with interrupted_at(kept // 4 + 2), pytest.raises(KeyboardInterrupt):
        train(replace(contrary, output=Path("stopped")))
    then, student = load_file(Path("stopped") / names.CHECKPOINT), load_file(run.output / names.STUDENT_WEIGHTS)
    assert all(torch.equal(value, then[f"model/student.{name}"]) for name, value in student.items())


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5])
def test_a_stopped_run_that_may_end_early_is_the_uninterrupted_one(at: int, contrary: FinetuneConfig) -> None:
    whole, stopped = train(contrary), replace(contrary, output=Path("stopped"))
    with interrupted_at(at), pytest.raises(KeyboardInterrupt):
        train(stopped)
    # Stopped once more after its last step, before its student is written.
    with patch.object(run_module, "save_student", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train(stopped)
    summary = train(stopped).summary
    assert summary.num_steps == whole.summary.num_steps
    weights = [load_file(run / names.STUDENT_WEIGHTS) for run in (Path("run"), Path("stopped"))]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_a_tenth_of_the_pictures_stands_in_for_val_unless_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        Image.new("RGB", (16, 16), (8 * number, 90, 30)).save(f"{number}.png")
    rows = [
        choice_row(number, split="train", image=f"{number % 30}.png", label=COLOURS[number % 5])
        for number in range(60)
    ]
    write_json_lines(Path("mine.jsonl"), rows)
    words = ("finetune", "--data", "mine.jsonl", "--student", "scenes-small", "--method", "plain", "--batch-size", 8)
    words = (*words, "--student-option", *SMALL_WORDS, "--epochs", 4)
    _, message = printed(capsys, *words, "--output", "held")
    assert "a held-out tenth of the pictures (6 of 60 labels; --no-hold-out)" in message
    assert load_json(Path("held/result.json"))["num_labelled"] == 54
    _, message = printed(capsys, *words, "--no-hold-out", "--output", "all")
    assert "val is not scored on the way: the data have no val" in message
    assert load_json(Path("all/result.json"))["num_labelled"] == 60
    _, message = printed(capsys, *words[:-2], "--num-steps", 5, "--output", "short")
    assert "caution: 5 steps read 67 % of the 60 labels" in message
    code, message = complaint(capsys, *words[:-2], "--num-steps", 5, "--no-hold-out", "--output", "no")
    assert (code, "a fixed number of steps" in message) == (2, True)
