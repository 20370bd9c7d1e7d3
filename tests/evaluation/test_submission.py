"""Leaderboard files are the official writer's, and no damaged file is called done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_rows import choice_row, write_json_lines
from torch import nn

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.evaluation import predict_files
from advl_pipeline.evaluation.config import PredictConfig
from advl_pipeline.evaluation.predict import FinishedRun
from advl_pipeline.evaluation.predict_files import write_vcr_submission
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


def test_scores_that_are_not_finite_are_never_submitted(tmp_path: Path) -> None:
    ids, answers, rationales = scores_of_twenty()
    answers[1, 2] = np.inf
    with pytest.raises(DatasetError, match="not a finite number"):
        write_vcr_submission(tmp_path / "vcr.csv", ids, answers, rationales)
    with pytest.raises(DatasetError, match="no number"):
        write_vcr_submission(tmp_path / "vcr.csv", ["test", *ids[1:]], rationales[:, 0], rationales)
    assert not (tmp_path / "vcr.csv").exists()


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

    student = build_student("scenes-small")
    untrained = FinishedRun(student=student, heads=nn.ModuleDict(), label_names={}, device=torch.device("cpu"))

    def opened(*_: Any, dataset: str, split: str, **options: Any) -> IndexedDataset:
        return open_dataset(dataset, split=split, **options)

    for name, stand_in in {
        "check_scoring": lambda *_: None,
        "read_config": lambda _: trained_on,
        "load_finished": lambda *_, **__: untrained,
        "open_as_trained": opened,
        "score_matrices": lambda _, examples, __: [np.array([[0.0] * len(item.candidates) for item in examples])],
    }.items():
        monkeypatch.setattr(predict_files, name, stand_in)
    path = predict_files.run_predict(PredictConfig(run=tmp_path / "run", device="cpu")).path
    ids = [line.partition(",")[0] for line in path.read_text().splitlines()[1:]]
    assert {name.partition(":")[2] for name in ids} == written
    with pytest.raises(ConfigError, match="replace a folder"):
        predict_files.run_predict(PredictConfig(run=tmp_path / "run", device="cpu", output=tmp_path))
