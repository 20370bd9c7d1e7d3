"""One grammar: commands that take a run take RUN first and `--on`; earlier forms work, with a note."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import exit_code

from advl_pipeline import configuration
from advl_pipeline.evaluation import given, predict_files, runner, scoring, shift
from advl_pipeline.evaluation.config import EvaluateConfig

del scoring  # Loaded with the others, so that each is there to be stood in for.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The configurations that commands were called with; nothing else is done, and no run need be there."""
    configurations: list[object] = []

    def note(config: object) -> None:
        configurations.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(given, "require_given", lambda *_: None)
    monkeypatch.setattr(given, "require_effect", lambda _: None)
    monkeypatch.setattr(runner, "run_evaluate", note)
    monkeypatch.setattr(predict_files, "run_predict", note)
    monkeypatch.setattr(shift, "run_score_shift", note)
    configuration.say_renamed.cache_clear()
    return configurations


@pytest.mark.parametrize(
    ("new", "earlier", "note"),
    [
        (["evaluate", "a b", "--on", "val"], ["evaluate", "--run", "a b", "--on", "val"], "--run is now RUN"),
        (["predict", "a", "--on", "val"], ["predict", "a", "--split", "val"], "--split is now --on"),
        (["score", "shift", "a", "--on", "x"], ["score", "shift", "--run", "a", "--on", "x"], "--run is now RUN"),
        (
            ["evaluate", "a", "--num-questions", "5"],
            ["evaluate", "a", "--evaluate-on", "5"],
            "--evaluate-on is now --num-questions",
        ),
    ],
)
def test_the_form_of_an_earlier_release_means_the_same(
    new: list[str], earlier: list[str], note: str, asked: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code(*new)
    assert "is now" not in capsys.readouterr().err
    exit_code(*earlier)
    assert note in capsys.readouterr().err
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_a_run_that_is_given_in_both_ways_is_refused(asked: list[object]) -> None:
    assert exit_code("evaluate", "a", "--run", "b") == 2
    assert not asked


def test_a_file_of_options_may_hold_the_run_and_earlier_names(
    asked: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluate.toml"
    file.write_text("run = 'runs/a'\nevaluate-on = 7\n")
    exit_code("evaluate", "--config", file)
    assert asked == [EvaluateConfig(run=Path("runs/a"), num_questions=7)]
    assert "evaluate-on is now num_questions" in capsys.readouterr().err


@pytest.mark.parametrize("twice", ["evaluate-on = 7\nnum-questions = 7", "batch-size = 2\nbatch_size = 2"])
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
