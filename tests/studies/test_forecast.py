"""What `advl study --dry-run` says a study costs: runs by its finished ones, caches by their plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_corpus import SmallCorpus
from synthetic_runs import TINY, run_trial, write_json, write_study_file

from advl_data.scenes.packaged_teachers import EFFICIENTNET_LITE0, MINILM
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.forecast import Estimate, estimates_of
from advl_pipeline.extraction.planning import plan_sources
from advl_pipeline.extraction.prepare import open_part, prepare_extract
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.extraction.sources import sized_by_card
from advl_pipeline.reporting.tables import forecast_as_text
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.forecast import CacheForecast, StudyForecast, forecast_study
from advl_pipeline.teachers.registry import TeacherCard


def config(folder: Path, path: Path) -> StudyRunConfig:
    return StudyRunConfig(
        study=str(path), output=folder / "studies" / "mine", caches=folder / "caches", data_root=folder / "data"
    )


def forecast(folder: Path, path: Path) -> StudyForecast:
    return forecast_study(config(folder, path), plan_cache=no_plan)


def no_plan(path: Path, config: ExtractConfig) -> CacheForecast:
    return CacheForecast(path=path, num_bytes=5000, seconds=7.0)


def by_card(config: ExtractConfig, card: TeacherCard) -> tuple[Estimate, ...]:
    return estimates_of(plan_sources(config, sized_by_card(config, card, open_part(config))), {})


def test_a_missing_pretrained_student_is_forecast_and_then_refused(tmp_path: Path) -> None:
    extra = f'init = "{tmp_path / "student"}"\n'
    told = forecast(tmp_path, write_study_file(tmp_path, extra=extra))
    assert told.missing_inits == [tmp_path / "student"]
    with pytest.raises(ConfigError, match="advl scenes pretrain"):
        run_trial(tmp_path, extra=extra)


def test_finished_runs_tell_what_the_others_take(tmp_path: Path) -> None:
    path = write_study_file(tmp_path, num_seeds=2, **TINY)
    fresh = forecast(tmp_path, path)
    assert (fresh.run_seconds, fresh.run_bytes, fresh.seconds_left) == (None, None, None)
    assert "unknown until the first run of each method is done: --first-seeds 1" in forecast_as_text(fresh)
    run_trial(tmp_path, output="studies/mine", **TINY, seeds="[0]")
    for run in (tmp_path / "cells").iterdir():
        write_json(run / "environment.json", {"bytes_by_part": {"frozen_weights": 2_000_000, "gradients": 500_000}})
    rest = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2, **TINY))
    # Each of the finished runs took 30 s and each of the others has as many steps; scoring was not timed.
    assert (rest.num_measured, rest.num_left) == (2, 2)
    assert rest.run_seconds == pytest.approx(2 * 30.0)
    text = forecast_as_text(rest)
    assert "as 2 finished ones took" in text
    assert (
        "memory of scenes-small: 2 MB before the states of its layers (frozen weights 2 MB, gradients 500 KB)" in text
    )
    sizes = [
        sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
        for run in (tmp_path / "cells").glob("*")
    ]
    assert rest.run_bytes == pytest.approx(sum(sizes), rel=0.01)


def test_a_run_that_kept_no_student_is_forecast_to_be_trained_again_where_an_evaluation_is_missing(
    tmp_path: Path,
) -> None:
    done = run_trial(tmp_path, output="studies/mine", num_seeds=2, **TINY)
    whole, without = (done.outer / trained.run for trained in done.runs if trained.seed == 1)
    for run in (whole, without):
        (run / "evaluation" / "test.json").unlink()
    write_json(without / "student.json", {"student": {"name": "scenes-small"}})
    rest = forecast(tmp_path, tmp_path / "trial.toml")
    fewest, most = sorted(run.steps for run in rest.runs if run.steps is not None)
    assert fewest == 0 < most
    # The run is trained with as many steps as the finished ones, which took 30 s.
    assert rest.run_seconds == pytest.approx(30.0)


def test_only_caches_that_are_still_needed_count(tmp_path: Path) -> None:
    run_trial(tmp_path, output="studies/mine", num_seeds=1, **TINY)
    # As after an extraction that was interrupted, which begins with the identity.
    for file in (tmp_path / "caches").rglob("complete.json"):
        file.unlink()
    done = forecast(tmp_path, tmp_path / "trial.toml")
    assert (done.num_left, done.caches, done.seconds_left, done.bytes_left) == (0, [], 0, 0)
    more = forecast(tmp_path, write_study_file(tmp_path, num_seeds=2, **TINY))
    assert len(more.caches) == 2
    assert more.seconds_left == pytest.approx(2 * 30.0 + 2 * 7.0)


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
        confidence="none",
    )
    planned = run_extract(prepare_extract(replace(plan, dry_run=True))).estimates
    assert cache.num_bytes == sum(item.num_bytes for item in planned)
    # Whose weights are not at hand is sized by its stated widths, and by words.
    (sized,) = by_card(plan, MINILM.card)
    assert sized.num_bytes == pytest.approx(cache.num_bytes, rel=0.15)
    pictures = replace(plan, teacher="efficientnet-lite0", image_tokens="grid")
    (exact,) = run_extract(prepare_extract(replace(pictures, dry_run=True))).estimates
    assert by_card(pictures, EFFICIENTNET_LITE0.card) == (replace(exact, seconds=None),)
    assert cache.seconds is not None
    assert cache.seconds > 0
    assert not cache.path.exists()
    run_extract(prepare_extract(plan))
    written = sum(file.stat().st_size for file in cache.path.rglob("*") if file.is_file())
    # Rows are written in whole chunks of 1024, which so small a cache does not fill.
    assert cache.num_bytes == pytest.approx(written, rel=0.05, abs=1024 * 384 * 2)
    assert not forecast_study(asks).caches
