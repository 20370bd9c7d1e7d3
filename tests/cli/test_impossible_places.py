"""Names that lead nowhere: pipes and devices, which never end, names that no file has, a folder that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import advl, complaint
from own_rows import class_row, rows_of, write_json_lines

from advl_pipeline.base.errors import AdvlError, DatasetError
from advl_pipeline.datasets.own.kept_rows import keep_rows
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.row_files import read_table
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.training.config import FinetuneConfig

EXTRACT = ("extract", "--teacher", "minilm-l6", "--data", "mine.jsonl")
FINETUNE = ("finetune", "--data", "mine.jsonl", "--student", "vilt", "--output", "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows, a pipe of every ending, and a device."""
    monkeypatch.chdir(tmp_path)
    write_json_lines(tmp_path / "mine.jsonl", rows_of(class_row))
    for ending in ("", ".json", ".jsonl", ".csv", ".parquet", ".toml", ".png"):
        os.mkfifo(f"pipe{ending}")
    (tmp_path / "card.toml").write_text('files = "pipe.jsonl"\n')
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    return tmp_path


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("datasets", "check", "pipe.jsonl"), "pipe.jsonl"),
        (("datasets", "check", "pipe.csv"), "pipe.csv"),
        (("datasets", "check", "pipe.parquet"), "pipe.parquet"),
        (("datasets", "check", "pipe.toml"), "pipe.toml"),
        (("datasets", "check", "card.toml"), "pipe.jsonl"),
        (("datasets", "check", "zero.jsonl"), "zero.jsonl"),
        ((*EXTRACT, "--config", "pipe.toml"), "pipe.toml"),
        ((*EXTRACT, "--weights", "pipe"), "pipe"),
        ((*FINETUNE, "--ids", "pipe.json"), "pipe.json"),
        ((*FINETUNE, "--cache", "pipe"), "pipe"),
        ((*FINETUNE, "--method", "plain", "--recipe", "pipe.toml"), "pipe.toml"),
        (("study", "pipe.toml", "--output", "study"), "pipe.toml"),
        ((*"score vqa --questions pipe.json --annotations mine.jsonl --results mine.jsonl".split(),), "pipe.json"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)
def test_a_pipe_or_a_device_is_refused_by_name_at_once(
    words: tuple[str, ...], name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = complaint(capsys, *words)
    assert code in (2, 5), message
    assert name in message
    assert "no regular file" in message or "a pipe or a device" in message


@pytest.mark.timeout(60)
def test_a_pipe_or_a_device_from_python(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVL_DATA", str(here))
    with pytest.raises(DatasetError, match="no regular file"):
        keep_rows([class_row(0, image=here / "pipe.png")], pictures=here)
    kept = keep_rows([class_row(0, image="pipe.png", split=...)], pictures=here)
    with pytest.raises(DatasetError, match="no regular file"):
        open_dataset(str(kept), split="train").image_units()
    for name in ("pipe.jsonl", "pipe.csv", "pipe.parquet"):
        with pytest.raises(DatasetError, match="no regular file"):
            list(read_table(here / name))
    with pytest.raises(AdvlError, match="neither a file nor a folder"):
        FinetuneConfig(dataset="mine.jsonl", student="vilt", output=here / "run", cache=(here / "pipe",))
    with pytest.raises(AdvlError, match="neither a file nor a folder"):
        ExtractConfig(teacher="minilm-l6", dataset="mine.jsonl", weights=Path("/dev/zero"))


LONG = "x" * 5_000


@pytest.mark.parametrize(
    "words",
    [
        ("datasets", "check", LONG),
        ("datasets", "check", f"hf:{LONG}"),
        ("extract", "--teacher", "minilm-l6", "--data", f"{LONG}/mine.jsonl"),
        ("extract", "--teacher", LONG, "--data", "mine.jsonl"),
        (*EXTRACT, "--output", LONG),
        (*EXTRACT, "--config", LONG),
        (*FINETUNE, "--cache", LONG),
        (*FINETUNE, "--init", LONG),
        ("evaluate", LONG, "--on", "test"),
        ("report", LONG),
        ("study", LONG, "--output", "study"),
        ("cache", "info", LONG),
        (LONG,),
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)
def test_a_name_that_no_file_has_is_refused(
    words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, message = advl(capsys, *words)
    assert code in (2, 5, 6), (out, message)
    assert "Traceback" not in message
    assert "Unexpected" not in message


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (("--version",), {0}),
        (("datasets", "list"), {0, 2}),
        (("datasets", "check", "mine.jsonl"), {2, 5}),
        (EXTRACT, {2, 5}),
        (FINETUNE, {2, 5, 7}),
        (("cache", "info", "cache"), {2, 4}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)
def test_a_working_directory_that_is_gone(words: tuple[str, ...], codes: set[int], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.rmdir(sys.argv[1])\n"
        "from advl_cli.main import main\n"
        "main(sys.argv[2:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(gone), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, done.stderr
    assert "Unexpected" not in done.stderr
