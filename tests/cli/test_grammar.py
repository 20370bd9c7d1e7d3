"""One grammar: commands that take a run take RUN first and `--on`; earlier forms work, with a note."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import exit_code

from advl_pipeline.evaluation import checks, predict_files, runner, scoring, shift
from advl_pipeline.evaluation.config import EvaluateConfig

del scoring  # Loaded with the others, so that each is there to be stood in for.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The configurations that commands were called with; nothing else is done, and no run need be there."""
    configurations: list[object] = []

    def note(config: object) -> None:
        configurations.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "check_scoring", lambda *_: None)
    monkeypatch.setattr(checks, "check_scoring_options", lambda _: None)
    monkeypatch.setattr(runner, "run_evaluate", note)
    monkeypatch.setattr(predict_files, "run_predict", note)
    monkeypatch.setattr(shift, "run_score_shift", note)
    return configurations


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("predict a --split val", "advl predict a --on val"),
        ("evaluate a --evaluate-on 5", "advl evaluate a --num-questions 5"),
    ],
)
def test_the_name_of_an_earlier_release_leads_to_that_of_now(
    typed: str, meant: str, asked: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*typed.split()) == 2
    assert f"next: {meant}" in " ".join(capsys.readouterr().err.split())
    assert not asked


def test_a_file_of_options_may_hold_the_run(asked: list[object], tmp_path: Path) -> None:
    file = tmp_path / "evaluate.toml"
    file.write_text("run = 'runs/a'\nnum-questions = 7\n")
    exit_code("evaluate", "--config", file)
    assert asked == [EvaluateConfig(run=Path("runs/a"), num_questions=7)]


@pytest.mark.parametrize("twice", ["num-questions = 7\nnum_questions = 7", "batch-size = 2\nbatch_size = 2"])
def test_an_option_that_a_file_holds_under_two_names_is_refused(
    twice: str, asked: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluate.toml"
    file.write_text(f"run = 'runs/a'\n{twice}\n")
    assert exit_code("evaluate", "--config", file) == 2
    assert "are the same" in capsys.readouterr().err
    assert not asked


def test_a_path_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "extract.toml"
    file.write_text("teacher = 'minilm-l6'\noutput = 5\n")
    assert exit_code("extract", "--config", file) == 2
    assert "output must be a path or a URL, not int" in capsys.readouterr().err
