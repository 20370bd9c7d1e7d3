"""Metrics are what the official programs printed for the same files, files for a leaderboard what they wrote."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import printed
from dataset_mirrors import snli_ve_record, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from own_rows import choice_row, write_json_lines
from run_logs import forget_digests

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.vqa_answers import (
    GroundTruth,
    clean_answer,
    normalise_answer,
    strip_punctuation,
    vocabulary_form,
)
from advl_pipeline.evaluation.official_metrics import VqaMode, question_accuracy, snli_ve_accuracy, vqa_accuracy
from advl_pipeline.evaluation.predict_files import write_vcr_submission

ASSETS = Path(__file__).parents[1] / "assets"
VQA = ASSETS / "vqa_eval"
VCR = ASSETS / "vcr"
RESULTS = json.loads((VQA / "synthetic_results.json").read_text())
PAIRS = [snli_ve_record(number) for number in range(6)]


def load(name: str) -> Any:
    return json.loads((VQA / name).read_text(encoding="utf-8"))


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
    results = {item["question_id"]: item["answer"] for item in load("synthetic_results.json")}
    accuracy = vqa_accuracy(annotations, results, mode)
    assert accuracy == {
        "mode": mode,
        "num_items": len(annotations),
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


def test_nothing_has_no_score() -> None:
    with pytest.raises(DatasetError, match="nothing to score"):
        vqa_accuracy([], {})
    with pytest.raises(DatasetError, match="nothing to score"):
        snli_ve_accuracy(np.zeros(0, np.int64), np.zeros(0, np.int64), ("contradiction", "neutral", "entailment"))


EXAMPLE = runpy.run_path(str(ASSETS.parents[1] / "examples" / "score_files.py"))


def test_vcr_files_are_scored_as_by_the_official_program() -> None:
    official = json.loads((VCR / "expected_q2ar.json").read_text())["exact"]
    shares = {
        name: 100 * official[key] for name, key in {"q2a": "answer", "qa2r": "rationale", "q2ar": "joint"}.items()
    }
    files = (VCR / f"{name}.npy" for name in ("answer_preds", "rationale_preds"))
    assert EXAMPLE["score_vcr"](VCR / "val.jsonl", *files) == pytest.approx({"num_items": 40, **shares}, abs=1e-12)


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
def test_snli_ve_files_are_scored_in_three_forms(tmp_path: Path, ending: str) -> None:
    ids = [record["pairID"] for record in PAIRS]
    predictions = [{"pairID": pair_id, "label": "neutral"} for pair_id in ids]
    content = {
        ".json": json.dumps(predictions),
        ".jsonl": "\n".join(map(json.dumps, predictions)),
        ".csv": "pairID,label\n" + "\n".join(f"{pair_id},neutral" for pair_id in ids),
    }
    file = tmp_path / f"p{ending}"
    file.write_text(content[ending])
    write_lines(tmp_path / "test.jsonl", PAIRS)
    document = EXAMPLE["score_snli_ve"](tmp_path / "test.jsonl", file)
    assert (document["accuracy"], document["num_items"]) == (pytest.approx(100 / 3), 6)
    assert document["confusion"] == [[0, 2, 0], [0, 2, 0], [0, 2, 0]], "a row is a true class"


@pytest.mark.parametrize(
    "results", [RESULTS[1:], [*RESULTS, RESULTS[0]], [*RESULTS, RESULTS[0] | {"question_id": 5}]]
)
def test_results_of_other_questions_are_refused(tmp_path: Path, results: list[Any]) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=r"results\.json: the items are not the annotated ones"):
        EXAMPLE["score_vqa"](VQA / "v2_mscoco_synthetic_annotations.json", file)


def test_daquar_files_are_scored_as_by_the_official_program(tmp_path: Path) -> None:
    official = json.loads((ASSETS / "metrics" / "daquar_wups.json").read_text())
    asked = [f"what is in the image{number} ?\n{truth}\n" for number, truth in enumerate(official["truths"])]
    (tmp_path / "qa.894.raw.test.txt").write_text("\n".join(asked))
    predicted = [
        f'test-qa.894.raw.test:{number},1,"{answer}"' for number, answer in enumerate(official["answers"], 1)
    ]
    (tmp_path / "test.csv").write_text("\n".join(["id,index,prediction", *predicted]))

    def similarity(a: str, b: str) -> float:
        of = official["similarities"]
        return 1.0 if a == b else float(of.get(f"{a} {b}", of.get(f"{b} {a}", 0.0)))

    document = EXAMPLE["score_daquar"](tmp_path / "qa.894.raw.test.txt", tmp_path / "test.csv", similarity)
    assert (document.pop("num_items"), document.pop("num_single_words")) == (13, 10)
    assert document == pytest.approx(official["expected"], abs=1e-9)
    (tmp_path / "all_qa_pairs.txt").write_text("\n".join(asked))
    with pytest.raises(SystemExit, match=r"test\.csv: test-qa\.894\.raw\.test:1 is not a question of"):
        EXAMPLE["score_daquar"](tmp_path / "all_qa_pairs.txt", tmp_path / "test.csv", similarity)


# Files for a leaderboard.


def scores_of_twenty() -> tuple[list[str], np.ndarray, np.ndarray]:
    document = json.loads((VCR / "uniter_test_scores.json").read_text())
    scores = np.array(list(document.values()))
    return list(document), scores[:, :4], scores[:, 4:].reshape(-1, 4, 4)


def test_vcr_file_is_uniters_byte_for_byte(tmp_path: Path) -> None:
    ids, answers, rationales = scores_of_twenty()
    write_vcr_submission(tmp_path / "vcr.csv", ids, answers, rationales)
    assert (tmp_path / "vcr.csv").read_bytes() == (VCR / "uniter_submission_expected.csv").read_bytes()
    write_vcr_submission(tmp_path / "half.csv", ids, answers.astype(np.float32), rationales.astype(np.float32))
    assert (tmp_path / "half.csv").read_bytes() == (VCR / "uniter_submission_expected.csv").read_bytes()


def test_scores_that_are_not_finite_are_never_submitted(tmp_path: Path) -> None:
    ids, answers, rationales = scores_of_twenty()
    answers[1, 2] = np.inf
    with pytest.raises(DatasetError, match="not a finite number"):
        write_vcr_submission(tmp_path / "vcr.csv", ids, answers, rationales)
    with pytest.raises(DatasetError, match="no number"):
        write_vcr_submission(tmp_path / "vcr.csv", ["test", *ids[1:]], rationales[:, 0], rationales)
    assert not (tmp_path / "vcr.csv").exists()


def test_own_data_are_predicted_for_the_tasks_that_the_run_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rationales = {"rationales": ["a", "b"], "rationale_label": 0}
    data = write_json_lines(tmp_path / "data.jsonl", [choice_row(number, **rationales) for number in range(20)])
    run, both = tmp_path / "run", {"choice", "rationale"}
    short = ("--method", "plain", "--student", "scenes-small", "--num-steps", 1, "--batch-size", 4)
    printed(capsys, "finetune", "--data", data, "--task", "choice", *short, "--output", run)
    forget_digests(run)
    config = json.loads((run / "config.json").read_text())
    # A run of other tasks answers all, by the heads that they share.
    for learned, written in ((["choice"], {"choice"}), ([], both), (["vcr-q2a"], both)):
        (run / "config.json").write_text(json.dumps(config | {"task": learned}))
        out, _ = printed(capsys, "predict", run, "--on", "test", "--json")
        ids = [line.partition(",")[0] for line in Path(json.loads(out)["path"]).read_text().splitlines()[1:]]
        assert {name.partition(":")[2] for name in ids} == written
    _, refused = printed(capsys, "predict", run, "--on", "test", "--output", tmp_path, code=2)
    assert "replace a folder" in refused
