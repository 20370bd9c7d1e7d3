"""VQA v2 as its users train it, on a mirror: train and val as one for test-dev; what is missing is said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import exit_code as call
from dataset_mirrors import write_picture, write_vqa

from advl_pipeline.datasets.registry import open_dataset, open_splits
from advl_pipeline.errors import DatasetError

SHORT = ("--num-steps", 2, "--adapt-steps", 2, "--batch-size", 2, "--confidence-folds", 2, "--adapt-texts", 4)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVL_DATA", raising=False)
    for split in ("train", "val", "test"):
        write_vqa(Path("datasets"), split=split, count=60)
    return Path("datasets/vqa-v2")


def extract(*more: object) -> int:
    folds = () if "--no-confidence" in more else ("--folds", 2)
    return call("extract", "--teacher", "minilm-l6", "--dataset", "vqa-v2", *folds, *more)


def finetune(output: str, *more: object) -> int:
    return call("finetune", "--dataset", "vqa-v2", "--method", "advl", "--output", output, *SHORT, *more)


def test_train_and_val_are_trained_on_together_and_test_dev_is_predicted(
    mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = open_splits("vqa-v2", split="train+val")
    assert len(both) == 120
    assert both.label_names("vqa") == open_dataset("vqa-v2", split="val", answer_list="published").label_names("vqa")
    assert len(both.question_table().cells) == 120
    assert extract("--split", "train+val") == 0
    cache = "caches/minilm-l6/vqa-v2/train+val"
    assert finetune("runs/both", "--split", "train+val", "--cache", cache) == 0
    assert json.loads(Path("runs/both/result.json").read_text())["num_labelled"] == 120
    test = mirror / "v2_OpenEnded_mscoco_test2015_questions.json"
    test.with_name("v2_OpenEnded_mscoco_test-dev2015_questions.json").write_bytes(test.read_bytes())
    assert call("predict", "runs/both", "--on", "test-dev") == 0
    assert finetune("runs/low", "--split", "train+val", "--cache", cache, "--shots", 10) == 0
    # A cache of train alone is another one.
    assert extract() == 0
    capsys.readouterr()
    assert finetune("runs/other", "--split", "train+val", "--cache", "caches/minilm-l6/vqa-v2/train") == 3
    assert "--split train+val" in capsys.readouterr().err
    assert call("extract", "--teacher", "minilm-l6", "--dataset", "vqa-v2", "--split", "train+vall") == 2
    assert "val" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="same items cannot be joined"):
        open_splits("vqa-v2", split="train+train")


def test_val_without_train_is_refused_before_anything_is_encoded(
    mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in mirror.glob("*train2014*.json"):
        file.unlink()
    assert extract("--split", "val") == 5
    printed = capsys.readouterr().err
    assert "what names them is missing" in printed
    assert "train2014" in printed
    assert "--no-confidence" in printed
    assert not Path("caches").exists()
    assert extract("--split", "val", "--no-confidence") == 0


def test_a_cache_that_left_out_what_cannot_be_read_names_the_option(
    mirror: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((mirror / "train2014").glob("*.jpg"))
    picture.write_bytes(b"no picture")
    assert extract("--on-error", "skip") == 0
    write_picture(picture, shade=3)
    cache = ("--cache", "caches/minilm-l6/vqa-v2/train")
    assert finetune("runs/a", *cache) == 3
    printed = capsys.readouterr().err
    assert "add --on-error skip" in printed
    picture.write_bytes(b"no picture")
    assert finetune("runs/a", "--on-error", "skip", *cache) == 0
    assert "next: advl evaluate runs/a --on val" in capsys.readouterr().out
