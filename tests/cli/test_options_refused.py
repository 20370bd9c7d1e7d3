"""Options that would do nothing on these data, with this student or beside other options are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import complaint
from own_rows import choice_row, write_json_lines, write_pictures

from advl_pipeline.configuration import config_to_dict
from advl_pipeline.training.config import FinetuneConfig

FINETUNE = "finetune --data mine.jsonl --method plain --output runs/new"
EXTRACT = "extract --data mine.jsonl --teacher minilm-l6"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data of one's own, and a run of them as far as a command looks before it loads it."""
    monkeypatch.chdir(tmp_path)
    rows = [choice_row(number, split="train" if number < 8 else "test") for number in range(12)]
    write_json_lines(tmp_path / "mine.jsonl", rows)
    write_pictures(tmp_path / "pictures")
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "any.npy", np.ones(3))
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    config = FinetuneConfig(dataset="mine.jsonl", output=run, method="plain")
    (run / "config.json").write_text(json.dumps(config_to_dict(config)))
    (run / "result.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (f"{FINETUNE} --lora-rank 8", "--lora-rank"),
        (f"{FINETUNE} --text-style r2c", "--text-style"),
        (f"{FINETUNE} --answers answers.json", "--answers"),
        (f"{FINETUNE} --label-order meter", "--label-order"),
        (f"{FINETUNE} --adapt-steps 7", "--adapt-steps"),
        (f"{FINETUNE} --selection-rho 0.5", "--selection-rho"),
        (f"{FINETUNE} --step-ms 7", "--step-ms"),
        ("predict runs/old --generate", "--generate"),
        ("evaluate runs/old --generate", "--generate"),
        ("evaluate runs/old --vqa-mode 2017", "--vqa-mode"),
        ("evaluate runs/old --probe-on train", "--probe-on"),
        ("evaluate runs/old --probe none --probe-on test", "--probe-on"),
        ("cache import features --data mine.jsonl --name mine --region-split val", "--region-split"),
        (f"{EXTRACT} --text-style r2c", "--text-style"),
        (f"{EXTRACT} --ray-tasks 2", "--ray-tasks"),
        (f"{EXTRACT} --no-confidence --folds 3", "--folds"),
        (f"{EXTRACT} --modality text --image-tokens grid", "--image-tokens"),
        (f"{EXTRACT} --image-tokens boxes --grid-side 3", "--grid-side"),
        (f"{EXTRACT} --modality image --select-tokens 0.5", "--select-tokens"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: str, flag: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = complaint(capsys, *words.split())
    assert code == 2, told
    assert f"error: {flag} would change nothing" in told
    assert f"leave out {flag}" in told
    assert not (folder / "runs" / "new").exists()
    assert not (folder / "caches").exists()
