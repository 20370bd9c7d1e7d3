"""Metrics are what the official programs printed for the same files, files for a leaderboard what they wrote."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import complaint, printed
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
    parse_annotation,
    strip_punctuation,
    vocabulary_form,
)
from advl_pipeline.evaluation.config import ScoreVcrConfig
from advl_pipeline.evaluation.official_metrics import VqaMode, question_accuracy, snli_ve_accuracy, vqa_accuracy
from advl_pipeline.evaluation.predict_files import write_vcr_submission
from advl_pipeline.evaluation.scoring import run_score_vcr

ASSETS = Path(__file__).parents[1] / "assets"
VQA = ASSETS / "vqa_eval"
VCR = ASSETS / "vcr"
RESULTS = json.loads((VQA / "synthetic_results.json").read_text())
SCORES = np.load(VCR / "answer_preds.npy")
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
    with pytest.raises(DatasetError, match="nothing to score"):
        snli_ve_accuracy(np.zeros(0, np.int64), np.zeros(0, np.int64), ("contradiction", "neutral", "entailment"))


# The command.


def arguments(task: str, file: Path) -> list[Any]:
    """Return the words that score a file of predictions."""
    if task == "vqa":
        questions, annotated = (
            VQA / f"v2_{name}.json"
            for name in ("OpenEnded_mscoco_synthetic_questions", "mscoco_synthetic_annotations")
        )
        return ["score", "vqa", "--questions", questions, "--annotations", annotated, "--results", file]
    if task == "vcr":
        rationales = VCR / "rationale_preds.npy"
        return ["score", "vcr", "--annotations", VCR / "val.jsonl", "--answers", file, "--rationales", rationales]
    annotations = file.with_name("snli_ve_test.jsonl")
    write_lines(annotations, PAIRS)
    return ["score", "snli-ve", "--annotations", annotations, "--results", file]


@pytest.mark.parametrize(("mode", "overall"), [("2021", 68.89), ("2017", 61.11)])
def test_vqa(capsys: pytest.CaptureFixture[str], mode: str, overall: float) -> None:
    words = [*arguments("vqa", VQA / "synthetic_results.json"), "--mode", mode]
    document = json.loads(printed(capsys, *words, "--json")[0])
    assert (document["mode"], document["overall"], document["num_items"]) == (mode, overall, 99)
    assert f"mode {mode}, 99 questions: {overall}" in printed(capsys, *words)[0]


def test_vqa_questions_of_another_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    questions = json.loads((VQA / "v2_OpenEnded_mscoco_synthetic_questions.json").read_text())["questions"]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(questions[1:]))  # a bare list, as VQA-CP has it
    words = arguments("vqa", VQA / "synthetic_results.json")
    words[3] = file
    code, err = complaint(capsys, *words)
    assert (code, "question_id 1000000 is in one of them only" in err) == (5, True)


def test_vcr_from_npy_and_from_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    expected = json.loads(printed(capsys, *arguments("vcr", VCR / "answer_preds.npy"), "--json")[0])
    official = json.loads((VCR / "expected_q2ar.json").read_text())["exact"]
    shares = {
        name: 100 * official[key] for name, key in {"q2a": "answer", "qa2r": "rationale", "q2ar": "joint"}.items()
    }
    assert expected == pytest.approx({"num_items": 40, **shares}, abs=1e-12)
    ids = [json.loads(line)["annot_id"] for line in (VCR / "val.jsonl").read_text().splitlines()]
    file = tmp_path / "answers.csv"
    with file.open("w", newline="") as opened:
        rows = [[name, *row] for name, row in zip(ids, SCORES.tolist(), strict=True)]
        csv.writer(opened).writerows([["annot_id", *"abcd"], *reversed(rows)])
    assert json.loads(printed(capsys, *arguments("vcr", file), "--json")[0]) == expected


PREDICTIONS = [{"pairID": record["pairID"], "label": "neutral"} for record in PAIRS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", json.dumps(PREDICTIONS)),
        ("p.jsonl", "\n".join(map(json.dumps, PREDICTIONS))),
        ("p.csv", "pairID,label\n" + "\n".join(f"{item['pairID']},neutral" for item in PREDICTIONS)),
    ],
)
def test_snli_ve_in_three_forms(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    document = json.loads(printed(capsys, *arguments("snli-ve", tmp_path / name), "--json")[0])
    assert document["accuracy"] == pytest.approx(100 / 3)
    assert document["num_items"] == 6
    assert document["confusion"] == [[0, 2, 0], [0, 2, 0], [0, 2, 0]], "a row is a true class"


def array(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def spoiled(**fields: Any) -> str:
    return json.dumps([RESULTS[0] | fields, *RESULTS[1:]])


NOT_ALL_NUMBERS = np.where(np.arange(SCORES.size).reshape(SCORES.shape) == 13, np.nan, SCORES)


@pytest.mark.parametrize(
    ("task", "name", "content", "why"),
    [
        ("vqa", "p.json", json.dumps(RESULTS[1:]), "lacks 1000000"),
        ("vqa", "p.json", json.dumps([*RESULTS, {"question_id": 5, "answer": "x"}]), "unknown item 5"),
        ("vqa", "p.json", json.dumps([*RESULTS, RESULTS[0]]), "occurs twice"),
        ("vqa", "p.json", spoiled(answer=3), "the answer a text"),
        ("vqa", "p.json", spoiled(question_id="1"), "not a whole number"),
        ("vqa", "p.json", json.dumps({"results": RESULTS}), "expected '['"),
        ("vqa", "p.json", None, "No such file"),
        ("vcr", "p.npy", array(SCORES[:-1]), "shape (39, 4)"),
        ("vcr", "p.npy", array(NOT_ALL_NUMBERS), "scores of val-3"),
        ("vcr", "p.npy", array(SCORES.astype("U8")), "expected numbers"),
        ("vcr", "p.npy", array(np.array([{"a": 1}], dtype=object), allow_pickle=True), "not an array"),
        ("vcr", "p.npy", None, "No such file"),
        ("vcr", "p.json", "[]", "read from .npy or .csv"),
        ("vcr", "p.csv", "annot_id,a,b,c,d\nval-0,1,2,,4\n", "lacks"),
        ("vcr", "p.csv", "annot_id,a,b,c,d\nval-0,1,x,3,4\n", "p.csv:2"),
        ("vcr", "p.csv", "annot_id,a,b,c,d\n,1,2,3,4\n", "'annot_id'"),
        (
            "snli-ve",
            "p.json",
            json.dumps([*PREDICTIONS[:2], PREDICTIONS[2] | {"label": "maybe"}, *PREDICTIONS[3:]]),
            f"pairID {PREDICTIONS[2]['pairID']}: label 'maybe'",
        ),
        ("snli-ve", "p.json", "[\n5]", "p.json:2"),
        ("snli-ve", "p.json", "[\n[1]]", "expected {pairID, label}"),
        ("snli-ve", "p.json", '{"pairID": "a"}', "no list: expected '['"),
        ("snli-ve", "p.json", "pairID,label", "not JSON"),
    ],
)
def test_predictions_that_do_not_fit_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str, name: str, content: str | bytes | None, why: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, err = complaint(capsys, *arguments(task, file))
    assert (code, why in err, str(file) in err, "Traceback" in err) == (5, True, True, False), err


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
