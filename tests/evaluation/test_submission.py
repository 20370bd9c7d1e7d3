"""Leaderboard files are the official writer's, and no damaged file is called done."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_rows import choice_row, write_json_lines
from torch import nn

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation import predict_files
from advl_pipeline.evaluation.config import PredictConfig
from advl_pipeline.evaluation.predict import FinishedRun
from advl_pipeline.evaluation.predict_files import (
    VCR_COLUMNS,
    check_vcr_submission,
    check_vqa_submission,
    write_own_predictions,
    write_snli_ve_predictions,
    write_vcr_submission,
    write_vqa_submission,
)
from advl_pipeline.evaluation.runner import open_as_trained
from advl_pipeline.students.registry import build_student

ASSETS = Path(__file__).parents[1] / "assets" / "vcr"


def scores_of_twenty() -> tuple[list[str], np.ndarray, np.ndarray]:
    document = json.loads((ASSETS / "uniter_test_scores.json").read_text())
    scores = np.array(list(document.values()))
    return list(document), scores[:, :4], scores[:, 4:].reshape(-1, 4, 4)


def test_vcr_file_is_uniters_byte_for_byte(tmp_path: Path) -> None:
    ids, answers, rationales = scores_of_twenty()
    write_vcr_submission(tmp_path / "vcr.csv", ids, answers, rationales)
    assert (tmp_path / "vcr.csv").read_bytes() == (ASSETS / "uniter_submission_expected.csv").read_bytes()
    write_vcr_submission(tmp_path / "half.csv", ids, answers.astype(np.float32), rationales.astype(np.float32))
    assert (tmp_path / "half.csv").read_bytes() == (ASSETS / "uniter_submission_expected.csv").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("annot_id,answer_0", "annot_id,answer_1", "header"),
        ("test-0,", "test-1,", "on line"),
        ("test-0,", "test-7,", "lacks test-0"),
        ("2.0637", "nan", "not a finite number"),
        ("2.0637", "inf", "not a finite number"),
        ("2.0637", "x", "not a finite number"),
        ("2.0637,", "", "20 columns, expected 21"),
    ],
)
def test_damaged_vcr_files_are_named(tmp_path: Path, old: str, new: str, why: str) -> None:
    file = tmp_path / "vcr.csv"
    text = (ASSETS / "uniter_submission_expected.csv").read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(DatasetError) as caught:
        check_vcr_submission(file, scores_of_twenty()[0])
    assert why in caught.value.why
    assert str(file) in caught.value.where


def test_scores_that_are_not_finite_are_never_submitted(tmp_path: Path) -> None:
    ids, answers, rationales = scores_of_twenty()
    answers[1, 2] = np.inf
    with pytest.raises(DatasetError):
        write_vcr_submission(tmp_path / "vcr.csv", ids, answers, rationales)
    with pytest.raises(DatasetError, match="no number"):
        write_vcr_submission(tmp_path / "vcr.csv", ["test", *ids[1:]], rationales[:, 0], rationales)


def test_the_header_is_the_leaderboards() -> None:
    assert len(VCR_COLUMNS) == 21
    assert VCR_COLUMNS[5] == "rationale_conditioned_on_a0_0"
    assert VCR_COLUMNS[-1] == "rationale_conditioned_on_a3_3"


def test_vqa_file(tmp_path: Path) -> None:
    file = tmp_path / "vqa.json"
    write_vqa_submission(file, {3: "café", 1: "yes"})
    assert json.loads(file.read_text(encoding="utf-8")) == [
        {"question_id": 3, "answer": "café"},
        {"question_id": 1, "answer": "yes"},
    ]
    with pytest.raises(DatasetError) as caught:
        check_vqa_submission(file, [1, 3, 4])
    assert "lacks 4" in caught.value.why


def test_snli_ve_file_survives_awkward_ids(tmp_path: Path) -> None:
    file = tmp_path / "snli.csv"
    write_snli_ve_predictions(file, {'1.jpg#0r1n,"x"': "neutral", "2.jpg#0r1n": "entailment"})
    assert file.read_text().splitlines()[0] == "pairID,label"


def test_no_cell_of_ones_own_predictions_is_a_formula(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    answers = ["=cmd|' /C calc'!A0", '=HYPERLINK("http://x")', "@SUM(1)", "+a", "-b", "-3", "red"]
    write_own_predictions(file, {f"{'=' * (row == 0)}{row}": (row, text) for row, text in enumerate(answers)})
    cells = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))[1:]
    assert [row[2] for row in cells] == ["'" + text for text in answers[:5]] + answers[5:]
    assert [row[0] for row in cells] == ["'=0", *map(str, range(1, 7))]


def untrained() -> FinishedRun:
    return FinishedRun(
        student=build_student("scenes-small"), heads=nn.ModuleDict(), label_names={}, device=torch.device("cpu")
    )


@pytest.mark.parametrize(
    ("learned", "written"),
    [(["choice"], {"choice"}), ([], {"choice", "rationale"}), (["vcr-q2a"], {"choice", "rationale"})],
)
def test_own_data_are_predicted_for_the_tasks_that_the_run_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: list[str], written: set[str]
) -> None:
    rationales = {"rationales": ["a", "b"], "rationale_label": 0}
    data = write_json_lines(tmp_path / "data.jsonl", [choice_row(number, **rationales) for number in range(20)])
    trained_on = {"dataset": str(data), "task": learned}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(trained_on))
    (tmp_path / "run" / "result.json").write_text("{}")

    def opened(*_: Any, dataset: str, split: str, **options: Any) -> IndexedDataset:
        return open_dataset(dataset, split=split, **options)

    for name, stand_in in {
        "require_given": lambda *_: None,
        "read_config": lambda _: trained_on,
        "load_run": lambda *_, **__: untrained(),
        "open_as_trained": opened,
        "score_matrices": lambda _, examples, __: [np.array([[0.0] * len(item.candidates) for item in examples])],
    }.items():
        monkeypatch.setattr(predict_files, name, stand_in)
    path = predict_files.run_predict(PredictConfig(run=tmp_path / "run", device="cpu")).path
    ids = [line.partition(",")[0] for line in path.read_text().splitlines()[1:]]
    assert {name.partition(":")[2] for name in ids} == written
    with pytest.raises(ConfigError, match="in place of a folder"):
        predict_files.run_predict(PredictConfig(run=tmp_path / "run", device="cpu", output=tmp_path))


def test_data_of_ones_own_that_moved_are_asked_for(tmp_path: Path) -> None:
    gone = str(tmp_path / "data.jsonl")
    with pytest.raises(DatasetError) as caught:
        open_as_trained(
            PredictConfig(run=tmp_path, device="cpu"),
            untrained(),
            {"dataset": gone},
            dataset=gone,
            split="test",
        )
    assert "PATH/test in place of test" in caught.value.next_command
