"""Forecast the cost of a study: caches from the plans of their extractions, runs from the finished ones.

Until the first run is finished, the cost of runs is unknown.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from advl_pipeline.base.compute import device_name
from advl_pipeline.base.errors import AdvlError, DatasetError
from advl_pipeline.base.folders import folder_bytes, nearest_existing
from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.evaluation.prepare import scored_again
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import read_documents
from advl_pipeline.runs.results import read_json, read_result
from advl_pipeline.studies.config import StudyRunConfig, asked_study, shots_label
from advl_pipeline.studies.execute import is_complete
from advl_pipeline.studies.plan import (
    PlannedRun,
    build_plan,
    dataset_digests,
    default_folder,
    digest_dataset,
    input_digests,
    missing_inits,
    runs_folder,
)
from advl_pipeline.training.resolved import planned_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheForecast:
    """The cost of extracting a cache; None if unknown, and `obstacle` says why."""

    path: Path
    num_bytes: int | None = None
    seconds: float | None = None
    obstacle: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunForecast:
    """A row of the grid; `steps` are the optimiser steps that remain, None if it is finished."""

    setting: str
    method: str
    shots: str
    seed: int
    finished: bool
    steps: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyForecast:
    """What is left of a study; seconds are on one process, None if unknown.

    `run_seconds` and `run_bytes` are of the remaining runs, `seconds_left` and `bytes_left` of runs and caches.
    `memory` is the device memory of training by student and part, the maximum over its finished runs. `folder` is
    the study's, `device` this machine's.
    """

    name: str
    folder: Path
    runs: list[RunForecast]
    caches: list[CacheForecast]
    missing_inits: list[Path]
    missing_dataset: str
    device: str
    num_left: int
    num_measured: int
    run_seconds: float | None
    seconds_left: float | None
    run_bytes: int | None
    bytes_left: float | None
    bytes_free: int
    memory: dict[str, dict[str, int]]


def forecast_cache(path: Path, config: ExtractConfig) -> CacheForecast:
    """Plan the extraction of the cache at `path` by opening the teacher and encoding a few batches."""
    from advl_pipeline.extraction.prepare import prepare_extract
    from advl_pipeline.extraction.run import run_extract

    try:
        result = run_extract(prepare_extract(replace(config, dry_run=True), may_idle=True))
    except AdvlError as error:
        return CacheForecast(path=path, obstacle=error.what)
    num_bytes = sum(item.num_bytes for item in result.estimates)
    if result.untimed is not None:
        return CacheForecast(path=path, num_bytes=num_bytes, obstacle=result.untimed.what)
    seconds = sum(item.seconds or 0.0 for item in result.estimates) + (result.confidence_seconds or 0.0)
    return CacheForecast(path=path, num_bytes=num_bytes, seconds=seconds)


CacheForecaster = Callable[[Path, ExtractConfig], CacheForecast]
"""Plans the extraction of a cache, like `forecast_cache`."""


def forecast_study(config: StudyRunConfig, *, plan_cache: CacheForecaster = forecast_cache) -> StudyForecast:
    """Lay out the grid without running it.

    The time of a remaining run is its optimiser steps times the time per step of the finished runs of its setting
    and method, plus their scoring time. Its folder is assumed to be as large as theirs.

    Args:
        plan_cache: plans the extraction of a missing cache; replaced in tests.

    Raises:
        ConfigError: as in `load_study`.
    """
    study = asked_study(config)
    folder = config.output or default_folder(study)
    absent, missing_dataset, content = missing_inits(study), "", dict[str, str]()
    place = partial(build_plan, study, runs=runs_folder(folder), caches=config.caches, data_root=config.data_root)
    draft = place()
    try:
        content = dataset_digests(draft, digest_dataset, folder=folder)
    except DatasetError as error:
        # A grid can be inspected before its data are available.
        missing_dataset = error.what + (f" ({error.where})" if error.where else "")
    plan = place(init_digests={} if absent else input_digests(draft), dataset_digests=content)
    left = [planned for planned in plan.runs if not is_complete(planned)]
    done = [planned for planned in plan.runs if planned not in left]
    steps = {
        # What is left of a run without its student needs one: it is trained again.
        each.run_id: planned_steps(each.finetune)
        if not names.is_finished(each.run) or names.lacks_student(each.run)
        else 0
        for each in left
    }
    needed = {path for planned in left for path in planned.finetune.cache}
    # An extraction that was interrupted counts as a whole: how much of it is left is not known here.
    missing = [path for path in plan.caches if path in needed and not (path / COMPLETE_RECORD).exists()]
    caches = [plan_cache(path, plan.caches[path]) for path in missing]
    run_seconds = _seconds(left, done, steps)
    sizes = [folder_bytes(planned.run) for planned in done]
    run_bytes = round(fmean(sizes)) * len(left) if done else None if left else 0
    return StudyForecast(
        name=study.name,
        folder=folder,
        runs=[
            RunForecast(
                setting=planned.setting,
                method=planned.method,
                shots=shots_label(planned.shots),
                seed=planned.seed,
                finished=planned not in left,
                steps=steps.get(planned.run_id),
            )
            for planned in plan.runs
        ],
        caches=caches,
        missing_inits=list(absent),
        missing_dataset=missing_dataset,
        device=device_name(config.device),
        num_left=len(left),
        num_measured=len(done),
        run_seconds=run_seconds,
        seconds_left=_sum([run_seconds, *(cache.seconds for cache in caches)]),
        run_bytes=run_bytes,
        bytes_left=_sum([run_bytes, *(cache.num_bytes for cache in caches)]),
        bytes_free=shutil.disk_usage(nearest_existing(folder)).free,
        memory=_memory(done),
    )


def _memory(done: Sequence[PlannedRun]) -> dict[str, dict[str, int]]:
    """Return student -> part -> bytes, from the finished run with the most device memory; empty for older runs."""
    largest: dict[str, dict[str, int]] = {}
    for planned in done:
        file = planned.run / names.ENVIRONMENT
        parts = read_json(file).get("bytes_by_part", {}) if file.exists() else {}
        if sum(parts.values()) > sum(largest.get(planned.finetune.student, {}).values()):
            largest[planned.finetune.student] = parts
    return largest


def _seconds(left: Sequence[PlannedRun], done: Sequence[PlannedRun], steps: Mapping[str, int]) -> float | None:
    """Return the seconds of the remaining runs; None if one has no finished run of its setting and method."""
    paces: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for planned in done:
        result = read_result(planned.run)
        with scored_again(planned.run):
            scoring = sum(document.seconds for document in read_documents(planned.run).values())
        pace = result.seconds / max(1, result.num_steps), scoring
        paces.setdefault((planned.setting, planned.method), []).append(pace)
    if any((planned.setting, planned.method) not in paces for planned in left):
        return None
    each = (map(fmean, zip(*paces[planned.setting, planned.method], strict=True)) for planned in left)
    paced = zip(left, each, strict=True)
    return sum(per_step * steps[planned.run_id] + scoring for planned, (per_step, scoring) in paced)


def _sum(values: Sequence[float | None]) -> float | None:
    """Return the sum, or None if a value is unknown."""
    return None if None in values else sum(value or 0 for value in values)
