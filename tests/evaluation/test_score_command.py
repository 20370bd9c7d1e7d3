"""`advl score` gives official numbers from files alone, and names what is wrong with a file."""

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

ASSETS = Path(__file__).parents[1] / "assets"
VQA = ASSETS / "vqa_eval"
VCR = ASSETS / "vcr"
RESULTS = json.loads((VQA / "synthetic_results.json").read_text())
SCORES = np.load(VCR / "answer_preds.npy")
PAIRS = [snli_ve_record(number) for number in range(6)]


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
    assert document["confusion"] == [[0, 2, 0], [0, 2, 0], [0, 2, 0]]


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
