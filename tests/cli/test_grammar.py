"""Options may stand in a file; names of an earlier release lead to those of now."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import complaint


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("predict a --split val", "advl predict a --on val"),
        ("evaluate a --evaluate-on 5", "advl evaluate a --num-questions 5"),
    ],
)
def test_the_name_of_an_earlier_release_leads_to_that_of_now(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = complaint(capsys, *typed.split())
    assert code == 2
    assert f"next: {meant}" in " ".join(message.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("run = 'runs/none'", "runs/none"),
        ("run = 'runs/a'\nnum-questions = 7\nnum_questions = 7", "are the same"),
        ("run = 5", "run must be Path, not int"),
    ],
)
def test_a_file_of_options_is_read_as_the_command_line_is(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluate.toml"
    file.write_text(f"{content}\n")
    code, message = complaint(capsys, "evaluate", "--config", file)
    assert code == 2
    assert said in message
