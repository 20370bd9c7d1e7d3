"""The caches of a study on a mirror of VCR: each teacher's own weights, and what a finished cache no longer needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import exit_code as call
from dataset_mirrors import vcr_record, write_vcr
from hub_repositories import write_repository

from advl_pipeline.base.errors import InUse
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.extraction import planning as extraction_identity
from advl_pipeline.extraction import run as extraction_run
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.studies import run as study_run

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
    assert call("study", study) == 0
    assert open_cache("caches/dinov2-b/vcr/train").image is not None
    assert open_cache("caches/roberta-l/vcr/train").image is None
    assert open_cache("caches/roberta-l/vcr/train").keeps_some_texts

    shutil.rmtree("dino")
    shutil.rmtree("roberta")
    write_study(tmp_path, seeds="[0, 1]", weights='{ dinov2-b = "moved", roberta-l = "roberta" }')
    assert call("study", study) == 0
    assert "4/4" in capsys.readouterr().err
    # Another wording is another cache, and that one needs its teacher.
    study.write_text(study.read_text() + 'text_style = "indexed"\n', encoding="utf-8")
    assert call("study", study, "--output", "another") == 6
    assert "moved" in capsys.readouterr().err


def test_a_cache_that_another_process_extracts_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = iter([InUse("Another process is writing this cache.", why="process 7 on host"), None])

    def extract(config: ExtractConfig) -> None:
        if (error := next(tries)) is not None:
            raise error

    monkeypatch.setattr(extraction_identity, "is_extracted", lambda config, *, same_weights: False)
    monkeypatch.setattr(extraction_run, "run_extract", extract)
    monkeypatch.setattr(study_run, "_SECONDS_BETWEEN_LOOKS", 0.0)
    study_run.prepare_cache(ExtractConfig(teacher="roberta-l", dataset="vcr", output=tmp_path / "cache"))
    assert next(tries, "none left") == "none left"
    assert "waiting for process 7 on host" in capsys.readouterr().err
