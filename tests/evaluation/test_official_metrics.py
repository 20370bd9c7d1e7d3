"""Metrics equal what the official programs printed for the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.datasets.vqa_annotations import GroundTruth, parse_annotation
from advl_pipeline.datasets.vqa_normalise import (
    clean_answer,
    normalise_answer,
    strip_punctuation,
    vocabulary_form,
)
from advl_pipeline.errors import DatasetError
from advl_pipeline.evaluation.snli_ve import snli_ve_accuracy
from advl_pipeline.evaluation.vcr import vcr_accuracy
from advl_pipeline.evaluation.vqa import VqaMode, question_accuracy, vqa_accuracy

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
    assert accuracy.mode == mode
    assert accuracy.overall == expected["accuracy"]["overall"]
    assert accuracy.per_answer_type == expected["accuracy"]["perAnswerType"]
    assert accuracy.per_question_type == expected["accuracy"]["perQuestionType"]
    rounded = {str(question_id): round(100 * value, 2) for question_id, value in accuracy.per_question.items()}
    assert rounded == expected["evalQA"]


def test_ids_must_be_exactly_the_annotated_ones() -> None:
    truth = GroundTruth("what", "other", ("red",) * 10, tuple(range(10)))
    with pytest.raises(DatasetError, match="lack"):
        vqa_accuracy([(1, truth), (2, truth)], {1: "red"})
    with pytest.raises(DatasetError, match="not annotated"):
        vqa_accuracy([(1, truth)], {1: "red", 3: "red"})
    with pytest.raises(DatasetError, match="nothing to score"):
        vqa_accuracy([], {})


@pytest.mark.parametrize("count", range(11))
def test_agreement_of_k_of_ten(count: int) -> None:
    truth = GroundTruth("what", "other", ("red",) * count + ("blue",) * (10 - count), tuple(range(10)))
    assert question_accuracy("red", truth) == pytest.approx([0, 0.3, 0.6, 0.9, 1.0][min(count, 4)])
    assert question_accuracy("red", truth, "vqa-vs") == pytest.approx(min(1, count / 3))


answers = st.lists(st.sampled_from(["yes", "Yes", "two", "2", "the dog", "dog", "", "a.b"]), min_size=1, max_size=10)


@given(answers=answers, prediction=st.text(max_size=8), mode=st.sampled_from(["2021", "2017", "vqa-vs"]))
def test_accuracy_is_a_share(answers: list[str], prediction: str, mode: VqaMode) -> None:
    truth = GroundTruth("what", "other", tuple(answers), tuple(range(len(answers))))
    assert 0.0 <= question_accuracy(prediction, truth, mode) <= 1.0


@given(text=st.text(alphabet=st.characters(codec="ascii"), max_size=20))
def test_normal_forms_have_no_marks_left(text: str) -> None:
    normal = normalise_answer(clean_answer(text))
    assert not set(normal) & set(';/[]"{}()=+\\_-><@`,?!')
    assert normal == " ".join(normal.split())


def test_vcr_accuracy_is_the_official_one() -> None:
    folder = ASSETS / "vcr"
    records = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    expected = json.loads((folder / "expected_q2ar.json").read_text())["exact"]
    accuracy = vcr_accuracy(
        np.load(folder / "answer_preds.npy"),
        np.load(folder / "rationale_preds.npy"),
        np.array([record["answer_label"] for record in records]),
        np.array([record["rationale_label"] for record in records]),
    )
    assert accuracy.q2a == pytest.approx(100 * expected["answer"], abs=1e-12)
    assert accuracy.qa2r == pytest.approx(100 * expected["rationale"], abs=1e-12)
    assert accuracy.q2ar == pytest.approx(100 * expected["joint"], abs=1e-12)
    assert accuracy.both_right_N.sum() == 14


def test_ties_go_to_the_first_maximum_and_nan_is_refused() -> None:
    scores = np.array([[0.5, 0.5, 0.1, 0.5]])
    one = np.array([1])
    assert vcr_accuracy(scores, scores, np.array([0]), one).q2a == 100.0
    assert vcr_accuracy(scores, scores, np.array([0]), one).qa2r == 0.0
    with pytest.raises(DatasetError, match="not a number"):
        vcr_accuracy(np.array([[np.nan, 0, 0, 1]]), scores, one, one)
    with pytest.raises(DatasetError, match="do not fit"):
        vcr_accuracy(scores, scores, np.array([0, 1]), np.array([0, 1]))


def test_snli_ve_accuracy_and_confusion() -> None:
    names = ("contradiction", "neutral", "entailment")
    result = snli_ve_accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), names)
    assert result.accuracy == 75.0
    assert result.confusion_CC.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    with pytest.raises(DatasetError, match="out of range"):
        snli_ve_accuracy(np.array([3]), np.array([0]), names)
    with pytest.raises(DatasetError, match="do not fit"):
        snli_ve_accuracy(np.array([0]), np.array([0, 1]), names)
