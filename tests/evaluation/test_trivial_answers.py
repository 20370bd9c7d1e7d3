"""What is right without a student: chance, the majority answer, the prior of the question; and what it says most."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import printed
from made_examples import unit
from own_rows import COLOURS, write_json_lines

from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.evaluation.items import AnswerTally
from advl_pipeline.evaluation.predict import ON_ONE_THREAD, load_finished
from advl_pipeline.evaluation.prior import QuestionPrior
from advl_pipeline.reporting.answer import answers
from advl_pipeline.runs.evaluations import TrivialScores
from advl_pipeline.sharing.card import model_card
from advl_pipeline.studies.gather import gather_runs

PICTURE = unit(Path("p.png"), 4, 4, name="p")


def example(
    name: str, *, label: int | None = None, soft: tuple[tuple[int, float], ...] = (), choices: int = 1
) -> Example:
    candidates = (Candidate(text_unit=text_unit("what?")),) * choices
    task = name.partition(":")[2] or "vqa"
    return Example(example_id=name, task=task, image=PICTURE, candidates=candidates, label=label, soft_label=soft)


def test_a_student_that_always_says_no_is_seen_beside_the_majority_answer() -> None:
    tally = AnswerTally(label_names=("yes", "no", "two"))
    softs = [((1, 1.0),), ((1, 0.6), (0, 0.3)), ((0, 1.0),), ()]
    for part in (softs[:2], softs[2:]):
        tally.add([example(str(number), soft=soft) for number, soft in enumerate(part)], [1] * 2)
    summary = tally.summary()
    assert (summary.answer, summary.given_answer, summary.given) == ("no", "no", 100.0)
    assert summary.majority == pytest.approx(100 * 1.6 / 4)
    # The fourth question has a right answer that the student has no class for.
    assert summary.chance == pytest.approx(100 * (1.0 + 0.9 + 1.0) / 3 / 4)
    assert summary.outside == 25.0


def test_choices_may_be_fewer_and_are_named_by_their_place() -> None:
    tally, other = AnswerTally(label_names=()), AnswerTally(label_names=())
    tally.add([example("a:vcr-q2a", label=3, choices=4), example("b:vcr-q2a", label=1, choices=2)], [3, 0])
    summary = tally.summary()
    assert summary.chance == pytest.approx(100 * (1 / 4 + 1 / 2) / 2)
    assert (summary.majority, summary.answer) == (50.0, "choice 4")
    other.add([example("b:vcr-qa2r", label=0, choices=4), example("a:vcr-qa2r", label=2, choices=2)], [0, 0])
    joint = tally.joint_summary(other)
    assert joint.chance == pytest.approx(37.5 * 37.5 / 100)
    assert (joint.majority, joint.answer) == (50.0, "choice 4, choice 3")


ROWS = [("Is it red?", "no", 3), ("Is it red?", "yes", 1), ("Is it blue?", "yes", 2), ("Is it blue?", "no", 1)]
"""Words, answer, and how many rows of train say so; of test each pair once."""
OF_TEST = [("Is it red?", "no"), ("is it  RED?", "yes"), ("Is it blue?", "yes"), ("Is it green?", "no")]


def test_the_commonest_training_answer_to_the_same_words_stands_next_to_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [("train", words, answer) for words, answer, times in ROWS for _ in range(times)]
    said += [("test", words, answer) for words, answer in OF_TEST]
    rows = [
        {"image": f"pictures/{COLOURS[place % 5]}.png", "question": words, "answers": answer, "split": split}
        for place, (split, words, answer) in enumerate(said)
    ]
    data, run = write_json_lines(tmp_path / "mine.jsonl", rows), tmp_path / "run"
    short = ("--method", "plain", "--student", "scenes-small", "--num-steps", 1, "--batch-size", 4)
    printed(capsys, "finetune", "--data", data, *short, "--output", run)
    out, _ = printed(capsys, "evaluate", run, "--on", "test", "--probe", "none")
    # Red: no, whatever its case and spaces. Blue: yes. Green is not in training, whose commonest answer is no.
    trivial = json.loads((run / "evaluation/test.json").read_text())["trivial"]["answers"]
    assert (trivial["prior"], trivial["prior_known"]) == (75.0, 75.0)
    assert "the commonest training answer to the same question is right 75.00 times of 100 (75 % of the" in out
    protocol, header, row, *_ = out.splitlines()
    assert "likeliest candidate" in protocol
    assert header.split()[4:6] == ["%", "prior"]
    assert row.split()[4] == "75.00"
    result = gather_runs(run)
    (answer,) = answers(result)
    score = next(found.estimate.mean for found in result.numbers.accuracies if found.place == answer.place)
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
    _, refused = printed(capsys, "evaluate", run, "--as", "letters", code=2)
    assert "--as letters needs a student that generates text" in refused
    # Where its training data are gone, the prior is not known.
    write_json_lines(tmp_path / "test.jsonl", [row for row in rows if row["split"] == "test"])
    data.unlink()
    _, refused = printed(capsys, "evaluate", run, "--on", "test", code=5)
    assert "PATH/test in place of test" in refused
    out, _ = printed(capsys, "evaluate", run, "--on", f"{tmp_path / 'test.jsonl'}/test", "--probe", "none")
    assert "caution: the prior of the question is not known" in out
    (elsewhere,) = (run / "evaluation").glob("*--test.json")
    assert "prior" not in json.loads(elsewhere.read_text())["trivial"]["answers"]


def test_the_prior_without_any_training_label_is_never_right() -> None:
    asked: Any = SimpleNamespace(words_and_labels=lambda positions: [("Is it red?", {0: 1.0})])
    beside = QuestionPrior([]).beside(TrivialScores(chance=50.0, majority=50.0, answer="yes"), asked, [0])
    assert (beside.prior, beside.prior_known) == (0.0, 0.0)
