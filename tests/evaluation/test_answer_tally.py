"""Chance, the majority answer, and what a student says most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, text_unit
from advl_pipeline.evaluation.items import AnswerTally

PICTURE = ImageUnit(unit_id="p", path=Path("p.png"), width=4, height=4, boxes_R4=np.zeros((0, 4), dtype=np.float32))


def example(
    name: str, *, label: int | None = None, soft: tuple[tuple[int, float], ...] = (), task: str = "vqa"
) -> Example:
    candidate = Candidate(text_unit=text_unit("what?"))
    return Example(example_id=name, task=task, image=PICTURE, candidates=(candidate,), label=label, soft_label=soft)


def test_a_student_that_always_says_no_is_seen_beside_the_majority_answer() -> None:
    tally = AnswerTally(label_names=("yes", "no", "two"))
    softs = [((1, 1.0),), ((1, 0.6), (0, 0.3)), ((0, 1.0),), ()]
    scores = np.array([[0.0, 9.0, 1.0]] * 4)
    tally.add([example(str(n), soft=soft) for n, soft in enumerate(softs[:2])], scores[:2])
    tally.add([example(str(n), soft=soft) for n, soft in enumerate(softs[2:])], scores[2:])
    summary = tally.summary()
    assert (summary["answer"], summary["given_answer"], summary["given"]) == ("no", "no", 100.0)
    assert summary["majority"] == pytest.approx(100 * 1.6 / 4)
    # The fourth question has a right answer that the student has no class for.
    assert summary["chance"] == pytest.approx(100 * (1.0 + 0.9 + 1.0) / 3 / 4)
    assert summary["outside"] == 25.0


def test_choices_may_be_fewer_and_are_named_by_their_place() -> None:
    tally, other = AnswerTally(label_names=()), AnswerTally(label_names=())
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, -np.inf, -np.inf]])
    tally.add([example("a:vcr-q2a", label=3, task="vcr-q2a"), example("b:vcr-q2a", label=1, task="vcr-q2a")], scores)
    summary = tally.summary()
    assert summary["chance"] == pytest.approx(100 * (1 / 4 + 1 / 2) / 2)
    assert (summary["majority"], summary["answer"]) == (50.0, "choice 4")
    other.add(
        [example("b:vcr-qa2r", label=0, task="vcr-qa2r"), example("a:vcr-qa2r", label=2, task="vcr-qa2r")], scores
    )
    joint = tally.joint_summary(other)
    assert joint["chance"] == pytest.approx(37.5 * 37.5 / 100)
    assert (joint["majority"], joint["answer"]) == (50.0, "choice 4, choice 3")
