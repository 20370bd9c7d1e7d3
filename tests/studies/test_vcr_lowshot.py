"""The VCR study takes a student that is meaningful with what there is: pixels, or region features where given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from commands import printed
from dataset_mirrors import vcr_record, write_vcr

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.extraction.config import ImportConfig
from advl_pipeline.extraction.run import run_import
from advl_pipeline.students.region_student import PIXELS_CAVEAT
from advl_pipeline.students.registry import build_student
from advl_pipeline.studies.config import StudyRunConfig, asked_study, student_choice

FEATURE_SIZE = 24

MINE = """
extends = "vcr-lowshot"
name = "mine"
student = "bridgetower-tiny"
init = "{root}/bridgetower.pt"
methods = ["plain"]
shots = [4]
seeds = [0]
at-shots = {{}}
keep_weights = true

[training]
num_steps = 1
batch_size = 2
recipe = "none"

[with-regions]
student = "uniter-tiny"
init = "{root}/uniter.pt"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VCR in its official layout, caches of its pictures' regions, and weights as they are published."""
    folder = tmp_path_factory.mktemp("official data")
    for split in ("train", "val"):
        write_vcr(folder, [vcr_record(number, split=split) for number in range(8)], split=split)
        source = folder / "features" / split
        source.mkdir(parents=True)
        for unit in open_dataset("vcr", split=split, data_root=folder).image_units():
            noise = np.random.default_rng(0).standard_normal((3, FEATURE_SIZE)).astype(np.float32)
            boxes = np.array([[0, 0, 9, 9]] * 3, np.float32)
            np.savez(source / f"{unit.path.stem}.npz", features=noise, boxes=boxes)
        cache = folder / "caches" / "vcr" / split
        run_import(
            ImportConfig(source=source, name="detector", dataset="vcr", split=split, data_root=folder, output=cache)
        )
    for name in ("bridgetower", "uniter"):
        torch.save(build_student(f"{name}-tiny").state_dict(), folder / f"{name}.pt")
    (folder / "mine.toml").write_text(MINE.format(root=folder), encoding="utf-8")
    return folder


def test_the_shipped_study_says_which_student_it_takes_and_why(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = ("study", "vcr-lowshot", "--dry-run", "--data-root", root, "--output", tmp_path, "--caches", tmp_path)
    out, err = printed(capsys, *words)
    assert "student: bridgetower from hf:BridgeTower/bridgetower-base, which sees pixels" in err
    assert "since no regions of a detector are given" in err
    assert "pretrained student missing" not in out
    assert "on one process on cpu (" in out or "on one process on cuda" in out
    regions = ("--regions", root / "caches" / "{dataset}" / "{split}", "--init", root / "uniter.pt")
    _, err = printed(capsys, *words, *regions)
    assert f"student: uniter-base from {root}/uniter.pt, on the regions in {root}/caches" in err


def test_the_study_runs_on_pixels_and_on_regions_whose_content_makes_its_cells(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache that moved makes no other cells, and raw files make none at all."""
    words = ["study", root / "mine.toml", "--data-root", root, "--output", tmp_path / "study"]
    shutil.copytree(root / "caches", tmp_path / "copy")
    students = ["bridgetower-tiny"]
    with_regions = (["--regions", place / "{dataset}" / "{split}"] for place in (root / "caches", tmp_path / "copy"))
    cases: list[list[object]] = [[], *with_regions]
    for given in cases:
        out, _ = printed(capsys, *words, *given)
        assert "Q→A accuracy in percent" in out
        assert PIXELS_CAVEAT not in out
        runs = [path.parent for path in (tmp_path / "cells").glob("*/run.json")]
        students += ["uniter-tiny"] if given else []
        saved = {json.loads((run / "student.json").read_text(encoding="utf-8"))["student"] for run in runs}
        assert saved == set(students)
        assert len(runs) == len(saved)
        for run in runs:
            document = json.loads((run / "evaluation" / "val.json").read_text(encoding="utf-8"))
            assert set(document["use_of_vision"]["q2a"]) == {"swapped"}
    _, err = printed(capsys, *words, "--regions", root / "features" / "{split}", code=2)
    assert f"advl cache import '{root}/features/{{split}}' --name regions --dataset vcr --split train" in err


def test_regions_are_refused_by_a_study_without_a_student_for_them() -> None:
    study = asked_study(StudyRunConfig(study="full", regions=(Path("caches/{dataset}/{split}"),)))
    assert {setting.student for setting in study.settings} == {"uniter-base"}
    assert student_choice(asked_study(StudyRunConfig(study="demo")), ()) == ""
    with pytest.raises(ConfigError, match="no student that takes regions"):
        asked_study(StudyRunConfig(study="demo", regions=(Path("caches"),)))
