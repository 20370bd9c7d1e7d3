"""Options that would do nothing on these data, with this student or beside other options are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commands import complaint
from own_rows import choice_row, write_json_lines, write_pictures

from advl_pipeline.base.configuration import config_to_dict
from advl_pipeline.evaluation.config import EvaluateConfig, PredictConfig
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.training.config import FinetuneConfig

FINETUNE = "finetune --data mine.jsonl --method plain --output runs/new"
EXTRACT = "extract --data mine.jsonl --teacher minilm-l6"


NO_EFFECT = {"data_root", "run", "output", "replace", "disk_cache_gb", "num_workers"}
"""Where things lie and how fast they are read."""
OBEYED = {
    ExtractConfig: "teacher dataset split shots ids modality dtype batch_size shard_rows on_error confidence seed "
    "weights dry_run engine device mixed_precision part",
    EvaluateConfig: "on protocol num_questions probe pictures device mixed_precision batch_size regions",
    PredictConfig: "on pictures device mixed_precision batch_size regions",
}
"""Options that act on any data, or are refused by the student that has no use of them."""
REFUSED = {
    ExtractConfig: "text_style select_texts image_tokens grid_side folds ray_tasks revision",
    EvaluateConfig: "vqa_mode probe_on",
    PredictConfig: "generate",
}


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


@pytest.mark.parametrize("cls", OBEYED, ids=lambda cls: cls.__name__)
def test_every_option_is_obeyed_refused_or_listed(cls: type[ExtractConfig | EvaluateConfig | PredictConfig]) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    assert fields - NO_EFFECT == {*OBEYED[cls].split(), *REFUSED[cls].split()}


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (f"{FINETUNE} --lora-rank 8", "--lora-rank"),
        (f"{FINETUNE} --text-style r2c", "--text-style"),
        (f"{FINETUNE} --answers answers.json", "--answers"),
        (f"{FINETUNE} --adapt-steps 7", "--adapt-steps"),
        (f"{FINETUNE} --weight-shuffle", "--weight-shuffle"),
        ("predict runs/old --generate", "--generate"),
        ("evaluate runs/old --vqa-mode 2017", "--vqa-mode"),
        ("evaluate runs/old --probe-on train", "--probe-on"),
        ("evaluate runs/old --probe none --probe-on test", "--probe-on"),
        (
            "cache import features --data mine.jsonl --name mine --ground-truth-regions mine.jsonl",
            "--ground-truth-regions",
        ),
        (f"{EXTRACT} --text-style r2c", "--text-style"),
        (f"{EXTRACT} --ray-tasks 2", "--ray-tasks"),
        (f"{EXTRACT} --revision main", "--revision"),
        (f"{EXTRACT} --no-confidence --folds 3", "--folds"),
        (f"{EXTRACT} --modality text --image-tokens grid", "--image-tokens"),
        (f"{EXTRACT} --image-tokens boxes --grid-side 3", "--grid-side"),
        (f"{EXTRACT} --modality image --select-texts 0.5", "--select-texts"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: str, flag: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = complaint(capsys, *words.split())
    assert code == 2, message
    assert f"error: {flag} would change nothing" in message
    assert f"leave out {flag}" in message
    assert not (folder / "runs" / "new").exists()
    assert not (folder / "caches").exists()
