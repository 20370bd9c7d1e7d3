"""What `advl study --dry-run` foretells: time from finished runs, disk from students and plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_runs
from small_corpus import SmallCorpus
from synthetic_runs import run_trial, write_study_file

from advl_data.scenes.packaged_teachers import EFFICIENTNET_LITE0, MINILM
from advl_pipeline.errors import ConfigError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.estimate import estimates_by_card
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.extraction.sources import open_part
from advl_pipeline.reporting.tables import forecast_as_text
from advl_pipeline.students.registry import build_student
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.forecast import (
    CacheForecast,
    Forecast,
    forecast_study,
)

ONE_STEP, TWO_STEPS = 30.0, 63.0
"""Seconds of a cell of 300 steps, and of one with 400 of the adapt step before them: 0.09 s each, and 3 s around."""


def config(folder: Path, path: Path) -> StudyRunConfig:
    return StudyRunConfig(
        study=str(path), output=folder / "studies" / "mine", caches=folder / "caches", data_root=folder / "data"
    )


def forecast(folder: Path, path: Path) -> Forecast:
    return forecast_study(config(folder, path), plan_cache=no_plan)


def no_plan(config: ExtractConfig) -> CacheForecast:
    return CacheForecast(path=Path(str(config.output)), content="", num_bytes=5000, seconds=7.0, obstacle="")


def asked(folder: Path, path: Path) -> StudyRunConfig:
    return StudyRunConfig(study=str(path), output=folder / "study", caches=folder / "caches")


def test_a_missing_pretrained_student_is_forecast_and_then_refused(tmp_path: Path) -> None:
    extra = f'init = "{tmp_path / "student"}"\n'
    told = forecast_study(asked(tmp_path, write_study_file(tmp_path, extra=extra)))
    assert told.missing_inits == (tmp_path / "student",)
    with pytest.raises(ConfigError, match="advl scenes pretrain"):
        run_trial(tmp_path, extra=extra)


def test_runs_of_any_study_tell_the_time_of_cells_alike(tmp_path: Path) -> None:
    path = write_study_file(tmp_path, num_seeds=2)
    assert forecast(tmp_path, path).cell_seconds is None
    run_trial(tmp_path, output="studies/earlier", seeds="[7]")
    # One that cannot be read tells nothing.
    synthetic_runs.write_json(tmp_path / "cells" / "damaged" / "result.json", {})
    told = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2))
    # As the runs with other seeds took.
    assert told.cell_seconds == pytest.approx(8 * ONE_STEP + 8 * TWO_STEPS)
    assert told.num_measured == 8
    assert "as 8 finished runs took" in forecast_as_text(told)
    # Another learning rate costs nothing; another batch or another student does.
    path = write_study_file(tmp_path, num_seeds=2, extra="[training]\nlearning_rate = 1e-5\nnum_steps = 600\n")
    longer = forecast(tmp_path, path)
    assert longer.cell_seconds is not None
    assert 8 * 50 + 8 * 85 < longer.cell_seconds < 8 * 60 + 8 * 95
    for extra in ("[training]\nbatch_size = 64\n", 'student = "uniter-tiny"\n'):
        other = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2, extra=extra))
        assert (other.cell_seconds, other.num_unmeasured > 0) == (None, True)
    assert "unknown until the first one is done: --first-seeds 1" in forecast_as_text(other)


def test_before_any_run_is_finished_a_run_folder_is_as_large_as_its_student(tmp_path: Path) -> None:
    parameters = sum(parameter.numel() for parameter in build_student("scenes-small").parameters())
    fresh = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2))
    assert fresh.cell_bytes == 16 * 4 * parameters
    assert fresh.bytes_left == fresh.cell_bytes + 2 * 5000
    (tmp_path / "student").mkdir()
    extra = f'init = "{tmp_path / "student"}"\n'
    missing = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2, extra=extra))
    assert (missing.cell_bytes, missing.missing_inits) == (fresh.cell_bytes, (tmp_path / "student",))
    (tmp_path / "student" / "model.safetensors").write_bytes(bytes(123_000))
    pretrained = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2, extra=extra))
    assert pretrained.cell_bytes == 16 * 123_000
    assert "run folders 2 MB: the size of the student; caches 10 KB" in forecast_as_text(pretrained)


def test_only_caches_that_are_still_needed_count(tmp_path: Path) -> None:
    run_trial(tmp_path, output="studies/mine", num_seeds=1)
    for file in (tmp_path / "caches").rglob("identity.json"):
        file.unlink()
    done = forecast(tmp_path, tmp_path / "trial.toml")
    assert (done.num_left, done.caches, done.seconds_left, done.bytes_left) == (0, (), 0, 0)
    more = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2))
    assert len(more.caches) == 2
    assert more.seconds_left == pytest.approx(4 * ONE_STEP + 4 * TWO_STEPS + 2 * 7.0)


def test_plans_are_those_of_real_extractions(tmp_path: Path, small_corpus: SmallCorpus) -> None:
    training = '[training]\nrecipe = "none"\nbatch_size = 4\n[extraction]\nconfidence = false\n'
    path = write_study_file(
        tmp_path, num_seeds=1, extra=training, methods='["plain", "naive-kd"]', teachers='["minilm-l6"]', shots="[4]"
    )
    asks = replace(config(tmp_path, path), data_root=small_corpus.data_root)
    told = forecast_study(asks)
    (cache,) = told.caches
    plan = ExtractConfig(
        teacher="minilm-l6",
        dataset="scenes-vcr",
        data_root=small_corpus.data_root,
        output=cache.path,
        confidence=False,
    )
    planned = run_extract(replace(plan, dry_run=True)).estimates
    assert cache.num_bytes == sum(item.num_bytes for item in planned)
    # Whose weights are not at hand is sized by its stated widths, and by words.
    (sized,) = estimates_by_card(plan, MINILM.card, open_part(plan))
    assert sized.num_bytes == pytest.approx(cache.num_bytes, rel=0.15)
    pictures = replace(plan, teacher="efficientnet-lite0", image_tokens="grid")
    (exact,) = run_extract(replace(pictures, dry_run=True)).estimates
    assert estimates_by_card(pictures, EFFICIENTNET_LITE0.card, open_part(pictures)) == (
        replace(exact, seconds=None),
    )
    assert cache.seconds is not None
    assert cache.seconds > 0
    assert not cache.path.exists()
    run_extract(plan)
    written = sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())
    # Rows are written in whole chunks of 1024, which so small a cache does not fill.
    assert cache.num_bytes == pytest.approx(written, rel=0.05, abs=1024 * 384 * 2)
    assert not forecast_study(asks).caches
