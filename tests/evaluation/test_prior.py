"""The prior of the question: what training says to the same words, next to the score of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import printed
from own_rows import COLOURS, write_json_lines

from advl_pipeline.evaluation.predict import ON_ONE_THREAD, load_finished
from advl_pipeline.evaluation.prior import QuestionPrior
from advl_pipeline.reporting.answer import answers
from advl_pipeline.sharing.card import model_card
from advl_pipeline.studies.gather import gather_runs

SHORT_RUN = ("--student", "scenes-small", "--num-steps", 1, "--batch-size", 4)

ROWS = [("Is it red?", "no", 3), ("Is it red?", "yes", 1), ("Is it blue?", "yes", 2), ("Is it blue?", "no", 1)]
"""Words, answer, and how many rows of train say so; of test each pair once."""
OF_TEST = [("Is it red?", "no"), ("is it  RED?", "yes"), ("Is it blue?", "yes"), ("Is it green?", "no")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    said = [("train", words, answer) for words, answer, times in ROWS for _ in range(times)]
    said += [("test", words, answer) for words, answer in OF_TEST]
    rows = [
        {"image": f"pictures/{COLOURS[place % 5]}.png", "question": words, "answers": answer, "split": split}
        for place, (split, words, answer) in enumerate(said)
    ]
    return write_json_lines(tmp_path / "mine.jsonl", rows)


def test_the_commonest_training_answer_to_the_same_words_stands_next_to_a_score(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    printed(capsys, "finetune", "--data", data, "--method", "plain", "--output", run, *SHORT_RUN)
    out, _ = printed(capsys, "evaluate", run, "--on", "test", "--probe", "none")
    # Red: no, whatever its case and spaces. Blue: yes. Green is not in training, whose commonest answer is no.
    trivial = json.loads((run / "evaluation/test.json").read_text())["trivial"]["answers"]
    assert (trivial["prior"], trivial["prior_known"]) == (75.0, 75.0)
    line = "the commonest training answer to the same question is right 75.00 times of 100 (75 % of the questions are"
    assert line in out
    protocol, header, row, *_ = out.splitlines()
    assert "likeliest candidate" in protocol
    assert header.split()[4:6] == ["%", "prior"]
    assert row.split()[4] == "75.00"
    result = gather_runs(run)
    (answer,) = answers(result)
    score = result.row("accuracy", answer.place).mean
    told = "no more than the training answers to the same questions do without a picture (75)"
    assert (told in answer.sentence) == (score <= 75.0)
    for form, wanted in (
        ("html", "prior of the question"),
        ("md", "| prior of the question | 75.0 |"),
        ("json", '"prior": 75.0'),
    ):
        printed(capsys, "report", run, "--to", form, "--output", tmp_path / f"report.{form}")
        assert wanted in (tmp_path / f"report.{form}").read_text()
    card = model_card(run, load_finished(run, ON_ONE_THREAD).student, usage="", model="")
    (scores,) = [line for line in card.splitlines() if line.startswith("| test |")]
    assert "| prior of the question | majority answer |" in card
    assert scores.split(" | ")[5] == "75.0"


def test_a_run_whose_training_data_are_gone_says_that_the_prior_is_not_known(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    printed(capsys, "finetune", "--data", data, "--method", "plain", "--output", run, *SHORT_RUN)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    write_json_lines(tmp_path / "test.jsonl", [row for row in rows if row["split"] == "test"])
    data.unlink()
    out, _ = printed(capsys, "evaluate", run, "--on", f"{tmp_path / 'test.jsonl'}/test", "--probe", "none")
    assert "caution: the prior of the question is not known" in out
    document = json.loads(next((run / "evaluation").glob("*.json")).read_text())
    assert "prior" not in document["trivial"]["answers"]


def test_the_prior_without_any_training_label_is_never_right() -> None:
    assert QuestionPrior([])._overall == -1
