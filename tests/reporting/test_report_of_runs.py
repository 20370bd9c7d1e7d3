"""The page of a run, and the report of a study whose runs were really trained, on a task with classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import printed
from own_rows import COLOURS, answer_row, write_json_lines
from page_reader import Element, drawings, is_beside, read_page
from small_corpus import SmallCorpus

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.report import ReportConfig, run_report
from advl_pipeline.reporting.run_view import kinds_of, loss_figure, words_figure
from advl_pipeline.runs.evaluations import EvaluationDocument, PartAccuracy
from advl_pipeline.runs.results import read_words
from advl_pipeline.students.known_words import WordRow, word_table
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.run import run_study

STUDY = """
name = "real"
dataset = "scenes-snli-ve"
tasks = ["snli-ve"]
student = "scenes-small"
test_sets = ["test", "test-shift"]
methods = ["plain", "fast"]
focus = "fast"
shots = [6]
seeds = [0]

[training]
# The recipe's rates are for a pretrained student.
recipe = "none"
num_steps = 8
batch_size = 4
learning_rate = 1e-7

[variants.fast]
method = "plain"
label = "fast"
# So fast that it forgets what it began with, so that the two answer differently.
learning_rate = 1e-2
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_corpus: SmallCorpus) -> StudyResult:
    folder = tmp_path_factory.mktemp("real")
    (folder / "real.toml").write_text(STUDY, encoding="utf-8")
    return run_study(
        StudyRunConfig(
            study=str(folder / "real.toml"),
            output=folder / "study",
            caches=folder / "caches",
            data_root=small_corpus.data_root,
        )
    )


@pytest.fixture(scope="module")
def page(study: StudyResult) -> Element:
    # Its runs know where their data lie.
    output, _ = run_report(ReportConfig(run=(study.folder,)))
    return read_page(output.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_examples_are_read_as_the_run_read_them(page: Element) -> None:
    """The run has its classes in another order than the dataset's usual one; answers keep their names."""
    section = page.find("section", id="examples")[0]
    assert not section.find("p", class_="warning")
    examples = section.find("article", class_="example")
    assert examples
    for example in examples:
        winner = "fast" if "won" in example.attributes["class"].split() else "plain"
        right = next(item for item in example.find("li") if "right" in item.attributes["class"].split())
        assert winner in [tag.text for tag in right.find("span", class_="tag")]
        assert right.text.split()[0] in ("entailment", "neutral", "contradiction")


@pytest.mark.slow
def test_use_of_vision_is_measured_three_ways_and_so_are_costs(study: StudyResult, page: Element) -> None:
    uses = {
        (loss.method, loss.against, loss.place.test_set) for loss in study.numbers.losses if loss.quantity == "use"
    }
    methods, kinds = ("plain", "fast"), ("swapped", "blanked", "removed")
    assert uses == {(method, kind, "test") for method in methods for kind in kinds}
    assert len(page.find("section", id="vision")[0].find("table")) == len(kinds)
    assert all(cost["milliseconds_per_item"] > 0 for cost in study.costs)


def test_a_page_of_a_run_is_about_the_run_and_claims_nothing(vcr: tuple[StudyResult, Path], tmp_path: Path) -> None:
    result, data_root = vcr
    trained = next(run for run in result.runs if (run.method, run.shots, run.seed) == ("advl", "100", 0))
    shutil.copytree(result.outer / trained.run, tmp_path / "mine")
    output, gathered = run_report(ReportConfig(run=(tmp_path / "mine",), data_root=data_root))
    page = read_page(output.read_text(encoding="utf-8"))
    sections = [section.attributes["id"] for section in page.find("main")[0].find("section")]
    assert sections == ["answer", "table", "losses", "errors", "examples", "words", "readout", "cost", "repeat"]
    assert judge_claims(gathered) == ()
    assert page.find("h1")[0].text == "efficientnet-minilm on vcr"
    scores = page.find("table", class_="scores")[0].find("tbody")[0].find("tr")
    shown = [[item.text for item in (*row.find("th"), *row.find("td"))] for row in scores]
    evaluated = json.loads((tmp_path / "mine/evaluation/val.json").read_text(encoding="utf-8"))
    accuracy = evaluated["metrics"]["q2a"]
    assert shown[0][:7] == [
        "val", "Q→A accuracy", "240", wording.percent(accuracy), f"[{accuracy - 5:.1f}, {accuracy + 5:.1f}]",
        "27.5 (choice 3)", "25.0",
    ]  # fmt: skip
    (swapped, *_) = evaluated["use_of_vision"]["q2a"].values()
    assert shown[0][7] == wording.signed(-swapped["drop"])
    assert "68 times of 100 it answers “choice 1”." in page.find("section", id="answer")[0].text
    losses = page.find("figure", id="loss")[0]
    assert [title.text for title in losses.find("p", class_="panel-title")] == ["task"]
    kinds, *_ = page.find("section", id="errors")[0].find("tbody")
    assert [row.text for row in kinds.find("tr")] == ["what 120 50.5", "why 120 70.5"]
    examples = page.find("section", id="examples")[0].find("article", class_="example")
    assert [example.find("p", class_="outcome")[0].text for example in examples] == ["right"] * 3 + ["wrong"] * 3
    assert not page.find("article", class_="verdict")
    markdown = run_report(ReportConfig(run=(tmp_path / "mine",), to="md"))[0].read_text(encoding="utf-8")
    assert "claim" not in markdown


def test_words_are_shown_of_a_run_that_was_trained_on_two_splits(
    vcr: tuple[StudyResult, Path], tmp_path: Path
) -> None:
    result, data_root = vcr
    run = next(run for run in result.runs if (result.outer / run.run / "selected_words.json").exists())
    shutil.copytree(result.outer / run.run, tmp_path / "mine")
    config = json.loads((tmp_path / "mine/config.json").read_text(encoding="utf-8"))
    (tmp_path / "mine/config.json").write_text(json.dumps(config | {"split": "train+val"}), encoding="utf-8")
    shutil.copytree(data_root, tmp_path / "data")
    asked = (tmp_path / "data/vcr/val.jsonl").read_text(encoding="utf-8")
    (tmp_path / "data/vcr/train.jsonl").write_text(asked.replace("val-", "train-"), encoding="utf-8")
    output, _ = run_report(ReportConfig(run=(tmp_path / "mine",), data_root=tmp_path / "data"))
    examples = read_page(output.read_text(encoding="utf-8")).find("section", id="words")[0].find("article")
    assert examples
    assert all([mark.text for mark in example.find("mark")] == ["Why"] for example in examples)


def test_answers_by_type_are_those_of_the_task_with_annotators() -> None:
    types = {"number": PartAccuracy(accuracy=75.0, num_items=4), "other": PartAccuracy(accuracy=50.0, num_items=6)}
    documents = {
        name: EvaluationDocument(dataset=name, split="val", metrics={metric: 60.0}, by_answer_type=types)
        for name, metric in {"vqa-v2": "vqa", "mine": "answers"}.items()
    }
    ((title, rows),) = kinds_of(documents)
    assert title == f"{wording.metric_name('vqa')} on vqa-v2 by answer type"
    assert [name for name, _, _ in rows] == ["other", "number"]


def test_a_page_shows_right_answers_that_no_training_question_has_and_what_the_student_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [answer_row(number, split="train", answers=COLOURS[number % 2]) for number in range(8)]
    rows += [answer_row(number, split="test", answers=("red", "mauve")[number % 2]) for number in range(4)]
    data, run = write_json_lines(tmp_path / "mine.jsonl", rows), tmp_path / "run"
    short = ("--method", "plain", "--student", "efficientnet-minilm-tiny", "--num-steps", 1, "--batch-size", 4)
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(COLOURS[:2]), encoding="utf-8")
    out, message = printed(capsys, "finetune", "--data", data, *short, "--answers", answers, "--output", run)
    assert (out + message).count("are random before this run") == 1
    printed(capsys, "evaluate", run, "--on", "test", "--probe", "none")
    # A run holds its answers itself.
    answers.unlink()
    output, _ = run_report(ReportConfig(run=(run,)))
    page = read_page(output.read_text(encoding="utf-8"))
    table = page.find("table", class_="scores")[0]
    columns = [head.text for head in table.find("thead")[0].find("th")]
    row = table.find("tbody")[0].find("tr")[0]
    assert [*row.find("th"), *row.find("td")][columns.index("answers known")].text == "50.0"
    right = [item.text for item in page.find("li") if "right" in item.attributes.get("class", "").split()]
    assert any(text.startswith("mauve") for text in right)
    assert "efficientnet-lite0 and minilm-l6, frozen; other layers at random" in page.text


def test_losses_are_drawn_so_that_their_end_is_seen_with_validation_beside_them() -> None:
    log = [
        {"step": step, "phase": "finetune", "raw/task": 9.0 * 0.97**step + 0.02, "raw/text": 2.0 - step / 500}
        | ({"val/task": 3.0 * 0.98**step + 0.1, "val/correct": 0.5 + step / 1000} if step % 100 == 99 else {})
        for step in range(300)
    ]
    figure = loss_figure(log, run="mine")
    assert figure is not None
    headings = ["task", "language teacher", "right on the validation split, in percent"]
    assert [heading for heading, _, _ in figure.panels] == headings
    drawn = [{text.text for text in drawings(read_page(image))[0].find("text")} for _, image, _ in figure.panels]
    # The task's falls from 9 to 0.02: by powers of ten, and the other one is linear.
    assert {"0.1", "1", "validation"} <= drawn[0]
    assert {"1.4", "2"} <= drawn[1]
    assert [row[:2] for row in figure.rows] == [
        ("task", "0 to 299"), ("validation", "99 to 299"), ("language teacher", "0 to 299"),
        ("right on the validation split, in percent", "99 to 299"),
    ]  # fmt: skip
    # One loss that is off the scale does not hide the others.
    spiky = [record | {"raw/text": 1000.0 if record["step"] == 7 else -1.0} for record in log]
    figure = loss_figure(spiky, run="mine")
    assert figure is not None
    (drawing,) = drawings(read_page(figure.panels[1][1]))
    ticks = [float(mark.text.replace("−", "-")) for mark in drawing.find("text") if is_beside(mark)]
    assert max(ticks) < 10


def test_the_page_draws_which_words_pretraining_taught(tmp_path: Path) -> None:
    assert words_figure(read_words(tmp_path), run="mine") is None
    random = np.random.default_rng(0)
    rows = [
        WordRow(word=f"{kind}{place}", num_occurrences=4, score=float(score), word_class=kind)
        for kind, mean in (("landmark", 0.7), ("moved", 0.4))
        for place, score in enumerate(random.normal(mean, 0.03, 50))
    ]
    # A word that is read as a missing value by many readers.
    rows.append(WordRow(word="nan", num_occurrences=4, score=0.5, word_class="held"))
    (tmp_path / "words.csv").write_text(word_table(rows), encoding="utf-8")
    figure = words_figure(read_words(tmp_path), run="mine")
    assert figure is not None
    assert [row[:2] for row in figure.rows] == [("landmark", "50"), ("held", "1"), ("moved", "50")]
    shown = {text.text for text in drawings(read_page(figure.panels[0][1]))[0].find("text")}
    assert {"landmark", "held", "moved", "score"} <= shown
    (tmp_path / "words.csv").write_text("word,score\ncat,high\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="words of a run"):
        read_words(tmp_path)
