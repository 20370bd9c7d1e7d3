"""`advl study` as a command: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import printed
from synthetic_runs import write_study_file

from advl_pipeline.studies.result import StudyResult


def test_a_finished_study_prints_verdicts_and_table_and_runs_nothing(
    result: StudyResult, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("study", result.folder.parent / "trial.toml", "--output", result.folder)
    out, _ = printed(capsys, *words)
    assert "C2  UNDECIDED AT THIS SIZE" in out
    assert "ADVL, shuffled teacher" in out
    assert f"next: advl report {result.folder}" in out
    out, _ = printed(capsys, *words, "--json")
    assert len(json.loads(out)["table"]) == 16


def test_dry_run_prints_the_grid_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also without its dataset, which the study itself says is missing."""
    folders = ("--output", tmp_path / "study", "--caches", tmp_path / "caches", "--data-root", tmp_path / "nowhere")
    words = ("study", write_study_file(tmp_path, num_seeds=2), *folders)
    out, _ = printed(capsys, *words, "--dry-run")
    assert "16 cells" in out
    assert f"cache to extract: {tmp_path}/caches/minilm-l6/scenes-vcr/train" in out
    assert "dataset missing:" in out
    out, _ = printed(capsys, *words, "--dry-run", "--json")
    assert json.loads(out)["num_left"] == 16
    _, message = printed(capsys, *words, code=5)
    assert "advl scenes build" in message
    assert not (tmp_path / "study").exists()
