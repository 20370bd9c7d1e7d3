"""A run as a user gives it: killed, with live teachers, scored on the way, and what it leaves besides its student."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import PartialState
from altered_dataset import alter_examples
from commands import complaint, printed
from first_step import first_terms
from interrupting import interrupted_at
from live_teacher import teachers_run
from own_rows import COLOURS, choice_row, write_json_lines
from PIL import Image
from run_logs import load_json, metrics
from safetensors.torch import load_file
from small_corpus import SMALL_WORDS, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.packages import install_extra
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.runs import names
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.runs.trackers import scalars
from advl_pipeline.training import loop
from advl_pipeline.training import run as run_module
from advl_pipeline.training.batches import TrainingBatch
from advl_pipeline.training.config import FinetuneConfig, OptimiserOptions, TrainingSettings, config_of_run
from advl_pipeline.training.step import FinetuneModel
from advl_pipeline.training.stopping import PATIENCE, EarlyStopping
from advl_pipeline.training.validation import is_due


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """Live teachers, each opened once."""
    return {}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "advl"},
        {"adapt_objective": "contrastive", "selection": "prior", "distance": "cosine"},
        {"distance": "mse", "distill_layer": "fused"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_cached_and_live_teachers_give_the_same_loss(
    changes: dict[str, str], opened: dict[str, Any], small_corpus: Any, tmp_path: Path
) -> None:
    cached = first_terms(small_corpus.config(tmp_path / "cached", **changes))
    with teachers_run(small_corpus.dataset(), opened=opened):
        live = first_terms(small_corpus.config(tmp_path / "live", num_workers=1, **changes))
    names = {key.partition("/")[2] for key in cached}
    assert {f"{kind}/{name}" for kind in ("raw", "weighted") for name in ("vision", "text")} <= names
    # Features are stored in half precision.
    assert cached == pytest.approx(live, rel=5e-3)


def test_a_split_without_labels_is_refused_before_anything_is_written(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter_examples(monkeypatch, lambda example: replace(example, label=None, soft_label=()))
    for dataset in ("scenes-vcr", "scenes-vqa"):
        run = tmp_path / dataset
        with pytest.raises(DatasetError, match="nothing to learn"):
            small_corpus.run(run, dataset=dataset, task=(), method="plain", cache=())
        assert not run.exists()


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
    words = (*words, "--student-option", *SMALL_WORDS)
    _, message = printed(capsys, *words, "--num-steps", 50, "--output", "run")
    first, last = (record for record in metrics(Path("run")) if "val/task" in record)
    assert (first["step"], last["step"]) == (24, 49)
    assert f"step 50: loss {last['val/task']:.3f}, {100 * last['val/correct']:.1f} % right of 8 examples" in message
    printed(capsys, "evaluate", "run", "--on", "val", "--probe", "none")
    scored = json.loads(Path("run/evaluation/val.json").read_text(encoding="utf-8"))
    assert last["val/correct"] == pytest.approx(scored["metrics"]["choice"] / 100)
    unseen = config_of_run(load_json(Path("run/config.json")), output=Path("unseen"))
    train(unseen, scores_val=False)
    losses, alone = ([record["raw/task"] for record in metrics(Path(run))] for run in ("run", "unseen"))
    assert losses == alone
    assert not any("val/task" in record for record in metrics(Path("unseen")))


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


def tensorboard_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / names.TENSORBOARD), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_a_run_says_which_words_it_selects_and_trackers_get_what_the_json_lines_get(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, find = list[int](), FinetuneModel.distillation_terms

    def watched(model: FinetuneModel, batch: TrainingBatch, *others: Any, **named: Any) -> Any:
        sizes.append(len(batch.example_ids))
        return find(model, batch, *others, **named)

    monkeypatch.setattr(FinetuneModel, "distillation_terms", watched)
    run = tmp_path / "run"
    small_corpus.run(run, num_steps=2, steps="one", accumulate=2, log_with="tensorboard")
    assert max(sizes) == 2, "words are selected of no more examples than a micro-batch has"
    chosen = load_json(run / names.SELECTED_WORDS)
    assert set(chosen) == set(small_corpus.dataset().example_ids)
    for example in small_corpus.examples():
        for candidate, spans in zip(example.candidates, chosen[example.example_id], strict=True):
            words = [list(span) for span in word_spans(candidate.text)]
            assert [span for span in words if span in spans] == spans
            # A third of the words, rounded up; words that no token of the student stands for cannot be selected.
            assert len(spans) <= -(-3 * len(words) // 10)
            assert spans
    events, logged = tensorboard_of(run), metrics(run)
    tags = {"raw/text", "raw/task", "learning_rate", "lambda", "weights/text/mean", "weights/text/max"}
    assert tags <= set(events.Tags()["scalars"])
    for name in events.Tags()["scalars"]:
        expected = [(record["step"], scalars(record)[name]) for record in logged if name in scalars(record)]
        tracked = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in tracked] == [step for step, _ in expected]
        assert [value for _, value in tracked] == pytest.approx([value for _, value in expected], rel=1e-5)
    for name, changes in (("all", {"selection": "all"}), ("plain", {"method": "plain", "cache": ()})):
        small_corpus.run(tmp_path / name, num_steps=1, steps="one", **changes)
        assert not (tmp_path / name / names.SELECTED_WORDS).exists()


def test_a_resumed_log_replaces_the_steps_that_are_logged_again(tmp_path: Path) -> None:
    PartialState()
    for first, value in ((0, 1.0), (2, 7.0)):
        folder = RunFolder(tmp_path)
        folder.open_trackers(["tensorboard"], first_step=first)
        folder.log([{"step": step, "phase": "finetune", "raw/task": value} for step in range(first, first + 4)])
        folder.close()
        time.sleep(1.1)  # Event files are named by the second.
    logged = [(event.step, event.value) for event in tensorboard_of(tmp_path).Scalars("raw/task")]
    assert logged == [(0, 1.0), (1, 1.0), (2, 7.0), (3, 7.0), (4, 7.0), (5, 7.0)]


def test_a_run_that_goes_on_is_the_same_to_a_tracker_and_one_that_starts_over_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Started:
        def __init__(self, *names: Any, **options: Any) -> None:
            asked.append(options["id"])

        def start(self) -> None:
            pass

    monkeypatch.setattr("accelerate.tracking.WandBTracker", Started)
    for resume in (True, True, False):
        folder = RunFolder(tmp_path)
        folder.begin({}, config={}, command="", settings={}, caches=[], computed_on={}, resume=resume)
        folder.open_trackers(["wandb"], first_step=0)
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.filterwarnings("ignore")  # Of the packages themselves.
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_trackers_need_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    PartialState()
    folder = RunFolder(tmp_path)
    folder.open_trackers([name], first_step=0)
    folder.log([{"step": step, "phase": "finetune", "raw/task": 1.0 + step} for step in range(2)])
    folder.close()
    if name == "mlflow":
        import mlflow

        (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert run.data.metrics == {"raw/task": 2.0}
    else:
        assert list((tmp_path / names.WANDB).glob("offline-run-*/*.wandb"))


def test_a_tracker_that_is_absent_is_told_before_the_run_begins(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match="wandb is not installed") as refused:
        small_corpus.run(tmp_path / "run", log_with="wandb")
    assert install_extra("wandb") in refused.value.next_command
    assert not (tmp_path / "run").exists()


def test_steps_keep_to_one_order_where_asked(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    take, flags = loop.OptimiserSteps.take, list[tuple[bool, bool]]()

    def watched(*arguments: Any, **options: Any) -> Any:
        flags.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ))
        return take(*arguments, **options)

    monkeypatch.setattr(loop.OptimiserSteps, "take", watched)
    small_corpus.run(tmp_path / "run", method="plain", cache=(), num_steps=2, deterministic=True)
    assert flags == [(True, True)] * 2
    assert not torch.are_deterministic_algorithms_enabled()
