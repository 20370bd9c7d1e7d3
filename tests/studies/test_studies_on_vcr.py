"""Studies that really run on a mirror of VCR: their caches, and the student they take for pixels or regions."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from commands import exit_code, printed
from dataset_mirrors import vcr_record, write_vcr
from fake_hub.models import write_repository
from run_logs import items_file

from advl_pipeline.base.errors import ConfigError, InUse
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.extraction import planning as extraction_identity
from advl_pipeline.extraction import prepare as extraction_prepare
from advl_pipeline.extraction import run as extraction_run
from advl_pipeline.extraction.config import ExtractConfig, ImportConfig
from advl_pipeline.extraction.run import run_import
from advl_pipeline.students.region_student import PIXELS_CAVEAT
from advl_pipeline.students.registry import build_student
from advl_pipeline.studies import run as study_run
from advl_pipeline.studies.config import StudyRunConfig, asked_study, student_choice

STUDY = """
name = "trial"
dataset = "vcr"
tasks = ["vcr-q2a"]
student = "scenes-small"
teachers = ["dinov2-b", "roberta-l"]
test_sets = ["val"]
methods = ["plain", "naive-kd"]
shots = [4]
seeds = {seeds}

[training]
num_steps = 2
batch_size = 2
confidence_folds = 2

[evaluation]
probe = ["none"]

[extraction]
folds = 2
select_texts = 0.5
weights = {weights}
"""


def write_study(folder: Path, *, seeds: str = "[0]", weights: str) -> Path:
    path = folder / "trial.toml"
    path.write_text(STUDY.format(seeds=seeds, weights=weights), encoding="utf-8")
    return path


@pytest.fixture
def vcr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little VCR in the working folder, and no hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVL_DATA")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "val"):
        write_vcr(Path("datasets"), [vcr_record(number, split=split) for number in range(8)], split=split)


@pytest.mark.usefixtures("vcr")
def test_each_teacher_has_its_own_weights_and_texts_and_a_finished_cache_asks_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher of pictures has no use for a choice of texts."""
    write_repository("facebook/dinov2-base", Path("dino"))
    write_repository("FacebookAI/roberta-base", Path("roberta"))
    study = write_study(tmp_path, weights='{ dinov2-b = "dino", roberta-l = "roberta" }')
    assert exit_code("study", study) == 0
    assert open_cache("caches/dinov2-b/vcr/train").image is not None
    assert open_cache("caches/roberta-l/vcr/train").image is None
    assert open_cache("caches/roberta-l/vcr/train").keeps_some_texts

    shutil.rmtree("dino")
    shutil.rmtree("roberta")
    write_study(tmp_path, seeds="[0, 1]", weights='{ dinov2-b = "moved", roberta-l = "roberta" }')
    assert exit_code("study", study) == 0
    assert "4/4" in capsys.readouterr().err
    # Another wording is another cache, and that one needs its teacher.
    study.write_text(study.read_text() + 'text_style = "indexed"\n', encoding="utf-8")
    assert exit_code("study", study, "--output", "another") == 6
    assert "moved" in capsys.readouterr().err


def test_a_cache_that_another_process_extracts_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = iter([InUse("Another process is writing this cache.", why="process 7 on host"), None])

    def extract(config: ExtractConfig) -> None:
        if (error := next(tries)) is not None:
            raise error

    monkeypatch.setattr(extraction_identity, "is_extracted", lambda config, *, same_weights: False)
    monkeypatch.setattr(extraction_prepare, "prepare_extract", lambda config, **_: config)
    monkeypatch.setattr(extraction_run, "run_extract", extract)
    monkeypatch.setattr(study_run, "_SECONDS_BETWEEN_LOOKS", 0.0)
    study_run.prepare_cache(ExtractConfig(teacher="roberta-l", dataset="vcr", output=tmp_path / "cache"))
    assert next(tries, "none left") == "none left"
    assert "waiting for process 7 on host" in capsys.readouterr().err


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


def test_the_study_runs_on_pixels_and_on_regions_whose_content_makes_its_runs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache that moved makes no other runs, and raw files make none at all."""
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


def test_a_damaged_evaluation_of_a_student_that_was_not_kept_is_made_again_by_what_is_advised(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = MINE.format(root=root).replace("keep_weights = true", "keep_weights = false")
    Path("sparing.toml").write_text(text, encoding="utf-8")
    words = ("study", "sparing.toml", "--data-root", str(root), "--output", "study")
    before, _ = printed(capsys, *words)
    (run,) = (path.parent for path in Path("cells").glob("*/run.json"))
    document = run / "evaluation" / "val.json"

    def advised(*command: str) -> list[list[str]]:
        _, message = printed(capsys, *command, code=2)
        lines = [line.partition("   (")[0] for line in message.partition("next:")[2].strip().splitlines()]
        return [shlex.split(step) for line in lines for step in line.split("&&")]

    for damaged in (items_file(run, "val"), document):
        damaged.write_bytes(b"torn")
        for command in (words, ("report", "study")):
            removed, again = advised(*command)
            assert removed == ["rm", str(document)]
            assert again[:3] == ["advl", *words[:2]]
    document.unlink()
    assert printed(capsys, *again[1:])[0] == before
    assert not (run / "model.safetensors").exists()
    printed(capsys, "report", "study")


def test_regions_are_refused_by_a_study_without_a_student_for_them() -> None:
    study = asked_study(StudyRunConfig(study="full", regions=(Path("caches/{dataset}/{split}"),)))
    assert {setting.student for setting in study.settings} == {"uniter-base"}
    assert student_choice(asked_study(StudyRunConfig(study="demo")), ()) == ""
    with pytest.raises(ConfigError, match="no student that takes regions"):
        asked_study(StudyRunConfig(study="demo", regions=(Path("caches"),)))
