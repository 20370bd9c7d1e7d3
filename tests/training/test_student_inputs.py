"""What a student reads is looked at before the first step: noise for regions is refused, cut texts are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import advl
from dataset_mirrors import vcr_record, write_snli_ve, write_vcr, write_vqa
from run_logs import load_json, metrics

from advl_pipeline.students.region_student import PIXELS_CAVEAT
from advl_pipeline.students.registry import build_student


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mirrors of the three benchmarks in their official layouts, and published weights of two region students."""
    folder = tmp_path_factory.mktemp("official data")
    for split in ("train", "val"):
        write_vcr(folder, [vcr_record(number, split=split) for number in range(8)], split=split)
        write_vqa(folder, split=split, count=6)
    write_snli_ve(folder, name="train", count=6)
    (folder / "answers.json").write_text(json.dumps(["yes", "no"]), encoding="utf-8")
    for name in ("uniter-tiny", "visualbert-tiny"):
        torch.save(build_student(name).state_dict(), folder / f"{name}.pt")
    return folder


def finetune(root: Path, run: Path, student: str, *more: Any, dataset: str = "vcr") -> list[Any]:
    answers = ["--answers", root / "answers.json"] if dataset == "vqa-v2" else []
    return [
        *("finetune", "--dataset", dataset, "--data-root", root, "--student", student, "--method", "plain"),
        *("--recipe", "none", "--num-steps", 2, "--batch-size", 2, "--output", run, *answers, *more),
    ]


@pytest.mark.parametrize("dataset", ["vcr", "vqa-v2", "snli-ve"])
def test_published_weights_are_not_trained_on_noise(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str
) -> None:
    weights = root / "uniter-tiny.pt"
    code, _, err = advl(capsys, *finetune(root, tmp_path / "run", "uniter-tiny", "--init", weights, dataset=dataset))
    assert code == 2
    assert "would see noise" in err
    for way_out in ("--regions CACHE", "--student vilt", "--regions pixels"):
        assert way_out in err
    assert not (tmp_path / "run").exists()


def test_every_table_says_that_regions_are_pixels(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "noise.toml"
    study.write_text(
        f"""
name = "noise"
dataset = "vcr"
tasks = ["vcr-q2a"]
student = "uniter-tiny"
init = "{root / "uniter-tiny.pt"}"
test_sets = ["val"]
methods = ["plain"]
seeds = [0]
min_seeds = 1

[training]
num_steps = 1
batch_size = 2
regions = "pixels"
""",
        encoding="utf-8",
    )
    folder = tmp_path / "study"
    code, out, err = advl(capsys, "study", study, "--output", folder, "--data-root", root)
    assert code == 0, err
    assert f"in percent ({PIXELS_CAVEAT})" in out
    assert f"caution: {PIXELS_CAVEAT}" in err
    (run,) = (path.parent for path in (tmp_path / "cells").glob("*/run.json"))
    assert load_json(run / "settings.json")["reads"]["caveats"] == [PIXELS_CAVEAT]
    assert load_json(run / "result.json")["caveats"] == [PIXELS_CAVEAT]
    for form in ("html", "md", "csv"):
        code, out, err = advl(capsys, "report", folder, "--to", form, "--output", tmp_path / form)
        assert code == 0, err
        assert PIXELS_CAVEAT.replace("'", "&#39;" if form == "html" else "'") in (tmp_path / form).read_text("utf-8")
    code, out, err = advl(capsys, "evaluate", run, "--on", "val", "--data-root", root, "--probe", "none")
    assert code == 0, err
    assert f"caution: {PIXELS_CAVEAT}" in out


def test_a_student_that_this_package_trained_on_crops_goes_on_with_them(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert advl(capsys, *finetune(root, first, "uniter-tiny"))[0] == 0
    code, _, err = advl(capsys, *finetune(root, second, "uniter-tiny", "--init", first))
    assert code == 0, err
    assert "caution" not in err


def test_texts_that_are_cut_are_counted_printed_and_logged(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, out, err = advl(capsys, *finetune(root, run, "vilt-tiny", "--student-option", "max_text_length=20"))
    assert code == 0, err
    # Of eight questions, the four answers fit and the four rationales behind the right answer do not.
    assert "texts: 32 of 64 sampled (50 %) are longer than 20 tokens and are cut" in err
    reads = load_json(run / "settings.json")["reads"]
    assert (reads["num_texts"], reads["num_cut"], reads["max_tokens"]) == (64, 32, 20)
    logged = metrics(run)
    result = load_json(run / "result.json")
    assert result["num_texts"] == 16
    assert result["num_texts_cut"] == sum(record["num_texts_cut"] for record in logged)
    assert f"{result['num_texts_cut']} of 16 texts were cut to the student's length" in out
    assert result["caveats"] == ["texts of more than 20 tokens are cut"]
    code, out, err = advl(capsys, *finetune(root, tmp_path / "whole", "vilt-tiny"))
    assert code == 0, err
    assert "texts were cut" not in out
    assert "texts:" not in err
