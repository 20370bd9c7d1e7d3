"""`advl study` and `advl report` as commands: what they print, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_runs import run_trial, write_study_file

from advl_cli.main import main


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    run_trial(folder)
    return folder


def test_a_finished_study_prints_verdicts_and_table_and_runs_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("study", str(folder / "trial.toml"), "--output", str(folder / "study")) == 0
    printed = capsys.readouterr().out
    assert "C2  UNDECIDED AT THIS SIZE" in printed
    assert "ADVL, shuffled teacher" in printed
    assert f"next: advl report {folder / 'study'}" in printed
    assert call("study", str(folder / "trial.toml"), "--output", str(folder / "study"), "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["table"]) == 16


def test_dry_run_prints_the_grid_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study_file(tmp_path, num_seeds=2)
    folders = ("--output", str(tmp_path / "study"), "--caches", str(tmp_path / "caches"))
    assert call("study", str(path), *folders, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "16 cells" in printed
    assert f"cache to extract: {tmp_path}/caches/minilm-l6/scenes-vcr/train" in printed
    assert call("study", str(path), *folders, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_left"] == 16
    assert not (tmp_path / "study").exists()


def test_a_study_without_its_dataset_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study_file(tmp_path, num_seeds=2)
    where = ("--output", str(tmp_path / "study"), "--data-root", str(tmp_path / "nowhere"))
    assert call("study", str(path), *where) == 5
    assert "advl scenes build" in capsys.readouterr().err
    assert call("study", str(path), *where, "--dry-run") == 0
    assert "dataset missing:" in capsys.readouterr().out


def test_shipped_studies_are_listed_with_their_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("study", "--list") == 0
    printed = capsys.readouterr().out
    assert "vcr-lowshot " in printed
    assert "scenes-ablation " in printed


def test_bad_studies_exit_with_the_usage_code_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("study", "vcr-lowshoot", "--dry-run") == 2
    assert "vcr-lowshot" in capsys.readouterr().err
    path = write_study_file(tmp_path, extra="[training]\nlearning_rat = 1\n")
    assert call("study", str(path)) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "learning_rate" in error
    assert "Traceback" not in error


def test_report_writes_a_page_and_prints_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", str(folder / "study")) == 0
    printed = capsys.readouterr().out
    assert f"report: {folder / 'study' / 'report.html'}" in printed
    assert (folder / "study" / "report.html").stat().st_size > 20_000
    assert call("report", str(folder / "study"), "--to", "csv", "--output", str(folder / "a.csv"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(folder / "a.csv")
    assert call("report", str(folder)) == 2
    assert "nothing to report on" in capsys.readouterr().err
