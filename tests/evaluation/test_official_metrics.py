"""Metrics equal what the official programs printed for the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.vqa_answers import (
    GroundTruth,
    clean_answer,
    normalise_answer,
    parse_annotation,
    strip_punctuation,
    vocabulary_form,
)
from advl_pipeline.evaluation.config import ScoreVcrConfig
from advl_pipeline.evaluation.official_metrics import VqaMode, question_accuracy, snli_ve_accuracy, vqa_accuracy
from advl_pipeline.evaluation.scoring import run_score_vcr

ASSETS = Path(__file__).parents[1] / "assets"


def load(name: str) -> Any:
    return json.loads((ASSETS / "vqa_eval" / name).read_text(encoding="utf-8"))


def test_all_normalisation_cases_match() -> None:
    cases = load("norm_cases.json")
    assert len(cases) == 861
    for case in cases:
        assert clean_answer(case["in"]) == case["stripped"]
        assert strip_punctuation(case["stripped"]) == case["after_punct"]
        assert normalise_answer(case["stripped"]) == case["out"]
        assert vocabulary_form(case["stripped"]) == case["vocab_norm"]


@pytest.mark.parametrize(("key", "mode"), [("official_current_a013f00", "2021"), ("official_legacy_a4f1afd", "2017")])
def test_vqa_accuracy_is_the_official_one(key: str, mode: VqaMode) -> None:
    expected = load("expected_accuracy.json")[key]
    annotations = load("v2_mscoco_synthetic_annotations.json")["annotations"]
    truths = [(question_id, truth) for question_id, _, truth in map(parse_annotation, annotations)]
    results = {item["question_id"]: item["answer"] for item in load("synthetic_results.json")}
    accuracy = vqa_accuracy(truths, results, mode)
    assert accuracy == {
        "mode": mode,
        "num_items": len(truths),
        "overall": expected["accuracy"]["overall"],
        "per_answer_type": expected["accuracy"]["perAnswerType"],
        "per_question_type": expected["accuracy"]["perQuestionType"],
        "per_question": expected["evalQA"],
    }


def test_agreement_of_k_of_ten() -> None:
    for count in range(11):
        truth = GroundTruth("what", "other", ("red",) * count + ("blue",) * (10 - count), tuple(range(10)))
        assert question_accuracy("red", truth) == pytest.approx([0, 0.3, 0.6, 0.9, 1.0][min(count, 4)])
        assert question_accuracy("red", truth, "vqa-vs") == pytest.approx(min(1, count / 3))


answers = st.lists(st.sampled_from(["yes", "Yes", "two", "2", "the dog", "dog", "", "a.b"]), min_size=1, max_size=10)


@settings(max_examples=40)
@given(answers=answers, prediction=st.text(max_size=8), mode=st.sampled_from(["2021", "2017", "vqa-vs"]))
def test_accuracy_is_a_share(answers: list[str], prediction: str, mode: VqaMode) -> None:
    truth = GroundTruth("what", "other", tuple(answers), tuple(range(len(answers))))
    assert 0.0 <= question_accuracy(prediction, truth, mode) <= 1.0


@settings(max_examples=40)
@given(text=st.text(alphabet=st.characters(codec="ascii"), max_size=20))
def test_normal_forms_have_no_marks_left(text: str) -> None:
    normal = normalise_answer(clean_answer(text))
    assert not set(normal) & set(';/[]"{}()=+\\_-><@`,?!')
    assert normal == " ".join(normal.split())


def test_ties_go_to_the_first_maximum_and_nothing_has_no_score(tmp_path: Path) -> None:
    def score(labels: list[tuple[int, int]], answers: list[list[float]]) -> dict[str, float]:
        config = ScoreVcrConfig(
            annotations=tmp_path / "val.jsonl", answers=tmp_path / "a.npy", rationales=tmp_path / "r.npy"
        )
        records = [
            {"annot_id": f"val-{row}", "answer_label": answer, "rationale_label": rationale}
            for row, (answer, rationale) in enumerate(labels)
        ]
        config.annotations.write_text("".join(json.dumps(record) + "\n" for record in records))
        np.save(config.answers, np.array(answers).reshape(-1, 4))
        np.save(config.rationales, np.array([tied] * len(labels)).reshape(-1, 4))
        return run_score_vcr(config)

    tied = [0.5, 0.5, 0.1, 0.5]
    assert score([(0, 1)], [tied]) == {"num_items": 1, "q2a": 100.0, "qa2r": 0.0, "q2ar": 0.0}
    with pytest.raises(DatasetError, match="nothing to score"):
        score([], [])
    with pytest.raises(DatasetError, match="nothing to score"):
        vqa_accuracy([], {})


def test_snli_ve_accuracy_and_confusion() -> None:
    names = ("contradiction", "neutral", "entailment")
    result = snli_ve_accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), names)
    counts = [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert result == {"num_items": 4, "accuracy": 75.0, "label_names": list(names), "confusion": counts}
    with pytest.raises(DatasetError, match="nothing to score"):
        snli_ve_accuracy(np.zeros(0, np.int64), np.zeros(0, np.int64), names)
