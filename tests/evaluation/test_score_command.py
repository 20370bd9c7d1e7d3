"""`advl score` gives official numbers from files alone, and names what is wrong with a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import advl as run
from dataset_mirrors import snli_ve_record, write_lines

ASSETS = Path(__file__).parents[1] / "assets"
VQA = ASSETS / "vqa_eval"
VCR = ASSETS / "vcr"


def vqa_arguments(results: Path, *more: str) -> list[Any]:
    return [
        "score",
        "vqa",
        "--questions",
        VQA / "v2_OpenEnded_mscoco_synthetic_questions.json",
        "--annotations",
        VQA / "v2_mscoco_synthetic_annotations.json",
        "--results",
        results,
        *more,
    ]


@pytest.mark.parametrize(("mode", "overall"), [("2021", 68.89), ("2017", 61.11)])
def test_vqa(capsys: pytest.CaptureFixture[str], mode: str, overall: float) -> None:
    code, out, _ = run(capsys, *vqa_arguments(VQA / "synthetic_results.json", "--mode", mode, "--json"))
    assert code == 0
    document = json.loads(out)
    assert (document["mode"], document["overall"], document["num_items"]) == (mode, overall, 99)
    code, out, _ = run(capsys, *vqa_arguments(VQA / "synthetic_results.json", "--mode", mode))
    assert f"mode {mode}, 99 questions: {overall}" in out


def change_first(items: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [items[0] | fields, *items[1:]]


def test_vqa_results_that_do_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    items = json.loads((VQA / "synthetic_results.json").read_text())
    file = tmp_path / "results.json"
    for changed, why in (
        (items[1:], "lacks 1000000"),
        ([*items, {"question_id": 5, "answer": "x"}], "unknown item 5"),
        ([*items, items[0]], "occurs twice"),
        (change_first(items, answer=3), "the answer a text"),
        (change_first(items, question_id="1"), "not a whole number"),
        ({"results": items}, "expected '['"),
    ):
        file.write_text(json.dumps(changed))
        code, _, err = run(capsys, *vqa_arguments(file))
        assert code == 5
        assert why in err
        assert str(file) in err
        assert "Traceback" not in err


def test_vqa_questions_of_another_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    questions = json.loads((VQA / "v2_OpenEnded_mscoco_synthetic_questions.json").read_text())["questions"]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(questions[1:]))  # a bare list, as VQA-CP has it
    arguments = vqa_arguments(VQA / "synthetic_results.json")
    arguments[3] = file
    code, _, err = run(capsys, *arguments)
    assert code == 5
    assert "question_id 1000000 is in one of them only" in err


def vcr_arguments(answers: Path, *more: str) -> list[Any]:
    annotations = VCR / "val.jsonl"
    rationales = VCR / "rationale_preds.npy"
    return ["score", "vcr", "--annotations", annotations, "--answers", answers, "--rationales", rationales, *more]


def test_vcr_from_npy_and_from_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, *vcr_arguments(VCR / "answer_preds.npy", "--json"))
    assert code == 0
    expected = json.loads(out)
    official = json.loads((VCR / "expected_q2ar.json").read_text())["exact"]
    shares = {
        name: 100 * official[key] for name, key in {"q2a": "answer", "qa2r": "rationale", "q2ar": "joint"}.items()
    }
    assert expected == pytest.approx({"num_items": 40, **shares}, abs=1e-12)
    scores = np.load(VCR / "answer_preds.npy")
    ids = [json.loads(line)["annot_id"] for line in (VCR / "val.jsonl").read_text().splitlines()]
    file = tmp_path / "answers.csv"
    with file.open("w", newline="") as opened:
        rows = [[name, *row] for name, row in zip(ids, scores.tolist(), strict=True)]
        csv.writer(opened).writerows([["annot_id", *"abcd"], *reversed(rows)])
    code, out, _ = run(capsys, *vcr_arguments(file, "--json"))
    assert (code, json.loads(out)) == (0, expected)


def test_vcr_scores_that_do_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scores = np.load(VCR / "answer_preds.npy")
    spoiled = scores.copy()
    spoiled[3, 1] = np.nan
    pickled = np.array([{"a": 1}], dtype=object)
    cases = [(scores[:-1], "shape (39, 4)"), (spoiled, "scores of val-3"), (scores.astype("U8"), "expected numbers")]
    file = tmp_path / "answers.npy"
    for array, why in cases:
        np.save(file, array)
        code, _, err = run(capsys, *vcr_arguments(file))
        assert (code, why in err) == (5, True), err
    np.save(file, pickled, allow_pickle=True)
    code, _, err = run(capsys, *vcr_arguments(file))
    assert code == 5
    assert "not an array" in err
    text = tmp_path / "answers.csv"
    for content, why in (("val-0,1,2,,4", "lacks"), ("val-0,1,x,3,4", "answers.csv:2"), (",1,2,3,4", "'annot_id'")):
        text.write_text(f"annot_id,a,b,c,d\n{content}\n")
        code, _, err = run(capsys, *vcr_arguments(text))
        assert (code, why in err) == (5, True), err


def test_snli_ve_in_three_forms(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = [snli_ve_record(number) for number in range(6)]
    annotations = tmp_path / "snli_ve_test.jsonl"
    write_lines(annotations, records)
    predictions = [{"pairID": record["pairID"], "label": "neutral"} for record in records]
    forms = {
        "p.json": json.dumps(predictions),
        "p.jsonl": "\n".join(map(json.dumps, predictions)),
        "p.csv": "pairID,label\n" + "\n".join(f"{item['pairID']},neutral" for item in predictions),
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        arguments = ["score", "snli-ve", "--annotations", annotations, "--results", tmp_path / name]
        code, out, _ = run(capsys, *arguments, "--json")
        assert code == 0
        document = json.loads(out)
        assert document["accuracy"] == pytest.approx(100 / 3)
        assert document["confusion"] == [[0, 2, 0], [0, 2, 0], [0, 2, 0]]
    predictions[2]["label"] = "maybe"
    (tmp_path / "p.json").write_text(json.dumps(predictions))
    code, _, err = run(capsys, "score", "snli-ve", "--annotations", annotations, "--results", tmp_path / "p.json")
    assert code == 5
    assert "'maybe'" in err
    assert records[2]["pairID"] in err
    for content, line, why in (
        ("[\n5]", 2, "expected {pairID, label}"),
        ("[\n[1]]", 2, "expected {pairID, label}"),
        ('{"pairID": "a"}', 1, "no list: expected '['"),
        ("pairID,label", 1, "not JSON"),
    ):
        (tmp_path / "p.json").write_text(content)
        code, _, err = run(capsys, "score", "snli-ve", "--annotations", annotations, "--results", tmp_path / "p.json")
        assert (code, f"p.json:{line}" in err, why in err) == (5, True, True), err
        assert "A prediction file is malformed." in err


def test_missing_files_are_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, *vqa_arguments(tmp_path / "none.json"))
    assert (code, "none.json" in err) == (5, True)
    code, _, err = run(capsys, *vcr_arguments(tmp_path / "none.npy"))
    assert (code, "none.npy" in err) == (5, True)
    (tmp_path / "scores.json").write_text("[]")
    code, _, err = run(capsys, *vcr_arguments(tmp_path / "scores.json"))
    assert (code, "read from .npy or .csv" in err) == (5, True)
