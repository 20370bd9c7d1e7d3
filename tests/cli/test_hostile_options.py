"""Files of options and cells of tables that anyone may have written are refused in words, and soon."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from commands import complaint
from own_rows import choice_row, write_json_lines

HOSTILE = {
    "nested": "seed = " + "[" * 100_000,
    "digits": "seed = " + "9" * 100_000,
    "hexadecimal": "dataset = 0x" + "f" * 100_000,
    "large": "dataset = 'x'\noutput = 'y'\nseed = " + "9" * 4_000,
    "large-real": "dataset = 'x'\noutput = 'y'\nlearning-rate = " + "9" * 4_000,
    "dotted": ".".join("a" * 100_000) + " = 1",
    "quoted": " . ".join(['"a"'] * 100_000) + " = 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_options_made_to_harm_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(HOSTILE[name] + "\n", encoding="utf-8")
    began = time.process_time()
    for words in (("finetune", "--config", file), ("study", file), ("datasets", "check", file)):
        code, message = complaint(capsys, *words)
        assert code == 2, message[:2000]
        assert str(file) in message
    # Loading what the commands need is in it.
    assert time.process_time() - began < 60


def test_numbers_of_the_command_line_are_held_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = complaint(capsys, "finetune", "--data", "x", "--output", tmp_path / "run", "--seed", "9" * 4_000)
    assert (code, "--seed is too large a number" in message) == (2, True), message[:2000]


def test_a_setting_of_a_student_that_nests_deep_is_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_json_lines(tmp_path / "data.jsonl", [choice_row(number) for number in range(8)])
    words = ("finetune", "--data", data, "--method", "plain", "--student", "uniter-tiny")
    setting = ("--student-option", "dropout=" + "[" * 10_000)
    code, message = complaint(capsys, *words, *setting, "--output", tmp_path / "run")
    assert code == 2, message[:2000]
    assert not (tmp_path / "run").exists()


def test_deep_json_in_a_cell_is_a_malformed_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # For its pictures.
    write_json_lines(tmp_path / "data.jsonl", [choice_row(0)])
    rows = [f"pictures/red.png,what?,{'[' * 100_000},0"] * 4
    (tmp_path / "data.csv").write_text("\n".join(["image,question,choices,label", *rows]), encoding="utf-8")
    code, message = complaint(capsys, "extract", "--data", tmp_path / "data.csv", "--teacher", "minilm-l6")
    assert code == 5, message[:2000]
    assert "begins like JSON and is none" in message


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_features_that_are_no_numbers_are_named(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [choice_row(number) for number in range(4)]
    write_json_lines(tmp_path / "data.jsonl", rows)
    (tmp_path / "features").mkdir()
    for name in {Path(row["image"]).stem for row in rows}:
        np.save(tmp_path / "features" / f"{name}.npy", np.full((2, 8), value))
    words = ("cache", "import", tmp_path / "features", "--name", "mine", "--data", tmp_path / "data.jsonl")
    code, message = complaint(capsys, *words, "--output", tmp_path / "cache")
    assert code == 5, message
    assert "Features must be finite numbers" in message
    assert "--mixed-precision" not in message
    assert not (tmp_path / "cache").exists()
