"""Gather a study folder: read every run in it into frames, pair comparable runs, and report missing ones."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from advl_pipeline.base.configuration import config_to_dict, options_without, to_plain
from advl_pipeline.base.errors import ConfigError, CorruptCache, IdentityMismatch, advise
from advl_pipeline.base.folders import folder_bytes
from advl_pipeline.cache.identity import PROVENANCE_FILE, difference_table, differences
from advl_pipeline.datasets.registry import known_dataset
from advl_pipeline.evaluation.items import question_rank
from advl_pipeline.evaluation.prepare import scored_again
from advl_pipeline.evaluation.shift import question_namer
from advl_pipeline.extraction.progress import extraction_seconds
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import (
    Evaluation,
    TrivialScores,
    evaluate_command,
    read_evaluation,
)
from advl_pipeline.runs.results import (
    RunResult,
    read_caches,
    read_config,
    read_json,
    read_readout,
    read_result,
    say_on_trust,
)
from advl_pipeline.students.weight_files import require_run_files
from advl_pipeline.studies.config import shots_label
from advl_pipeline.studies.execute import is_complete, scored_by_study
from advl_pipeline.studies.loose_runs import common_folder, lay_out_runs
from advl_pipeline.studies.numbers import numbers_of
from advl_pipeline.studies.plan import Plan, PlannedRun, read_study_folder, runs_folder, trained_on
from advl_pipeline.studies.result import GridRun, StudyReadout, StudyResult, StudyRun
from advl_pipeline.studies.table import ITEM_COLUMNS, build_table
from advl_pipeline.training.config import FinetuneConfig, config_of_run
from advl_pipeline.training.facts import finetune_command

_GROUP = ("setting", "method", "shots")
"""Common fields of runs that differ only by their seed."""

_COSTS: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "num_steps": itemgetter(0), "seconds_per_step": fmean, "seconds": fmean, "wait_share": fmean,
    "peak_memory_bytes": max, "student_parameters": itemgetter(0), "training_only_parameters": itemgetter(0),
    "milliseconds_per_item": fmean,
}  # fmt: skip
"""Costs of a run -> how to aggregate them over seeds."""


def gather_study(folder: Path) -> StudyResult:
    """Read a study folder into a frozen result; unfinished runs are listed but otherwise left out.

    Raises:
        ConfigError: the folder contains no study, a run has a damaged file, or two runs were scored on other items.
        IdentityMismatch: a folder holds another run than planned, or an evaluation is of another run.
    """
    return gather(read_study_folder(folder), folder, outer=runs_folder(folder).parent)


def gather_runs(*folders: Path) -> StudyResult:
    """Read run folders, or folders of runs, into one table with a row for each run.

    Raises:
        ConfigError: there is no evaluated run, a file of one is damaged, or two were scored on different items.
    """
    folder = common_folder(folders)
    return gather(lay_out_runs(*folders), folder, outer=folder)


def gather(plan: Plan, folder: Path, *, outer: Path) -> StudyResult:
    """Read the runs of a plan.

    Args:
        folder: folder of the study, or the one that contains all the runs.
        outer: folder that the names of the runs are relative to.

    Raises:
        ConfigError: a file of a run is damaged, or two runs were scored on different items.
        IdentityMismatch: a folder holds another run than planned, or an evaluation is of another run.
    """
    trained = [planned for planned in plan.runs if names.is_finished(planned.run)]
    for planned in () if plan.of_runs else trained:
        _require_same_run(plan, planned)
    results = {planned.run_id: read_result(planned.run) for planned in trained}
    parts, costs, readouts = list[pd.DataFrame](), list[dict[str, Any]](), list[StudyReadout]()
    trivial: dict[tuple[str, ...], TrivialScores] = {}
    caveats: dict[str, dict[str, None]] = {}
    contents: dict[tuple[str, str], tuple[Any, Path]] = {}
    sizes = _sizes(plan, trained, results)
    command = shlex.split(plan.command)
    for planned in trained:
        about, result, times = _about(planned), results[planned.run_id], list[float]()
        size = sizes[planned.setting, planned.shots]
        # One at a time: the scores of a test set may be large.
        for test_set in planned.test_sets:
            with scored_again(planned.run) if plan.of_runs else scored_by_study(planned, test_set, command):
                if (evaluation := read_evaluation(planned.run, planned.filed(test_set))) is None:
                    continue
                items = _items(plan, planned, test_set, evaluation)
            parts.append(items.assign(**vars(about), size=size, test_set=test_set))
            if (milliseconds := evaluation.document.milliseconds_per_item) is not None:
                times.append(milliseconds)
            content = evaluation.document.content_digest, planned.run
            _require_same_content(test_set, contents.setdefault((planned.setting, test_set), content), content)
            # Values that depend only on the set are the same for every run.
            for metric, scores in evaluation.document.trivial.items():
                trivial.setdefault((planned.setting, metric, test_set), scores)
        costs.append(to_plain(result) | vars(about) | {"milliseconds_per_item": fmean(times) if times else None})
        readouts += [StudyReadout(**vars(about), **vars(row)) for row in read_readout(planned.run)]
        caveats.setdefault(planned.setting, {}).update(dict.fromkeys(result.caveats))
    items = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(ITEM_COLUMNS))
    items = items[list(ITEM_COLUMNS)]
    return StudyResult(
        study=plan.study,
        folder=folder,
        outer=outer,
        command=plan.command,
        runs=tuple(
            StudyRun(
                **vars(_about(planned)),
                state="finished" if is_complete(planned) else "partial" if planned.run_id in results else "pending",
                command=finetune_command(planned.finetune),
            )
            for planned in plan.runs
        ),
        items=items,
        numbers=numbers_of(build_table(plan.study, items)),
        readouts=tuple(readouts),
        costs=_costs_over_seeds(costs),
        caches=_caches(trained),
        environments=_environments(trained),
        caveats={setting: tuple(lines) for setting, lines in caveats.items() if lines},
        trivial=trivial,
        of_runs=plan.of_runs,
    )


def _require_same_run(plan: Plan, planned: PlannedRun) -> None:
    """Refuse a folder with another run than planned, as if two were exchanged, or one is a link to another.

    Raises:
        IdentityMismatch: options, caches, dataset or pretrained student differ, or the files that tell them changed.
        ConfigError: such a file is damaged.
    """
    require_run_files(planned.run, names.CONFIG, names.IDENTITY)
    path = planned.run / names.CONFIG
    trained = config_of_run(read_config(planned.run), where=str(path))
    record = read_json(planned.run / names.IDENTITY)
    expected, actual = _described(planned.finetune), _described(trained)
    for name, content in _contents_of(plan, planned).items():
        recorded = record.get(name)
        if recorded is None:
            say_on_trust("runs of an earlier version do not tell the content of their inputs")
        else:
            expected[name] = content
            actual[name] = recorded.get("content_digest") if isinstance(recorded, Mapping) else recorded
    if rows := differences(expected, actual):
        raise IdentityMismatch(
            f"The folder of a run holds a run with other settings ({len(rows)} differ).",
            where=f"{planned.run} ({planned.title})",
            why="\n" + difference_table(rows),
            next_command=advise(
                ["rm", "-r", str(planned.run)],
                shlex.split(plan.command),
                note="or put the folders back, if they were exchanged",
            ),
        )


def _described(config: FinetuneConfig) -> dict[str, Any]:
    """Return what identifies a run wherever its inputs are: its options, and its caches without their folder."""
    options = options_without(FinetuneConfig, config_to_dict(config), "content", "provenance", "none")
    # Teacher, dataset and split.
    return {"options": options, "cache": ["/".join(Path(str(path)).parts[-3:]) for path in config.cache]}


def _contents_of(plan: Plan, planned: PlannedRun) -> dict[str, str]:
    """Return the digests of a run's inputs that its study knows, by their names in the record of a run."""
    config, contents = planned.finetune, dict[str, str]()
    # The study digests the dataset in its default wording.
    if config.text_style is None and (dataset := plan.dataset_digests.get(trained_on(config))) is not None:
        contents["dataset"] = dataset
    if config.init is not None and (init := plan.input_digests.get(str(config.init))) is not None:
        contents["init"] = init
    return contents


def _about(planned: PlannedRun) -> GridRun:
    return GridRun(
        run_id=planned.run_id,
        run=planned.run_name,
        setting=planned.setting,
        method=planned.method,
        shots=shots_label(planned.shots),
        seed=planned.seed,
    )


def _require_same_content(test_set: str, first: tuple[Any, Path], content: tuple[Any, Path]) -> None:
    """Refuse two runs that were scored on different contents of a test set; raise `ConfigError`."""
    if content[0] != first[0]:
        raise ConfigError(
            f"Two runs were scored on different contents of {test_set}, so they cannot be compared.",
            where=f"{first[1]} and {content[1]}",
            next_command="delete evaluation/ of the run with the old files and run the study command again",
        )


def _sizes(
    plan: Plan, planned_runs: Sequence[PlannedRun], results: Mapping[str, RunResult]
) -> dict[tuple[str, int | None], int]:
    """Return the number of training questions by setting and shots; the first run gives the number for "full"."""
    sizes: dict[tuple[str, int | None], int] = {}
    for planned in planned_runs:
        # A run on all tasks of its dataset names none.
        known = known_dataset(planned.finetune.dataset)
        tasks = planned.finetune.task or (known.tasks if known else plan.study.setting(planned.setting).tasks)
        of_run = results[planned.run_id].num_labelled // max(1, len(tasks))
        sizes.setdefault((planned.setting, planned.shots), planned.shots or of_run)
    return sizes


def _costs_over_seeds(costs: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return one row of costs per group of runs that differ only by their seed; None for a cost that no run has."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cost in costs:
        groups.setdefault(tuple(cost[name] for name in _GROUP), []).append(cost)
    rows = []
    for group in groups.values():
        known = {name: [cost[name] for cost in group if cost[name] is not None] for name in _COSTS}
        together = {name: put(known[name]) if known[name] else None for name, put in _COSTS.items()}
        rows.append({name: group[0][name] for name in _GROUP} | together)
    return tuple(rows)


def _environments(planned_runs: Sequence[PlannedRun]) -> tuple[Mapping[str, Any], ...]:
    """Return the distinct environments of the runs, without the command line of each run."""
    environments: dict[str, Mapping[str, Any]] = {}
    for path in (planned.run / names.ENVIRONMENT for planned in planned_runs):
        if path.exists():
            environment = {key: value for key, value in read_json(path).items() if key != "command"}
            environments[json.dumps(environment, sort_keys=True)] = environment
    return tuple(environments.values())


def _items(plan: Plan, planned: PlannedRun, test_set: str, evaluation: Evaluation) -> pd.DataFrame:
    """Return the item scores that a study requests.

    Raises:
        ConfigError: the evaluation lacks a metric of the setting.
    """
    items, stored = evaluation.items, set(evaluation.items["metric"])
    wanted = plan.study.setting(planned.setting).metrics
    if not plan.of_runs and (lacking := [metric for metric in wanted if metric not in stored]):
        filed = planned.filed(test_set)
        raise ConfigError(
            f"A run has no item scores of {lacking[0]}.",
            where=str(names.evaluation_file(planned.run, filed, ".json")),
            next_command=evaluate_command(planned.run, filed, evaluation.document),
        )
    if (count := planned.evaluate.num_questions) is not None:
        # Another study with the run may have requested more questions.
        name_of = question_namer(planned.finetune.dataset, test_set)
        chosen = sorted(items["item"].unique(), key=lambda question: question_rank(name_of(question)))[:count]
        items = items[items["item"].isin(chosen)]
    return pd.concat([items[items["metric"] == metric] for metric in wanted], ignore_index=True)


def _caches(planned_runs: Sequence[PlannedRun]) -> tuple[Mapping[str, Any], ...]:
    """Return the caches that the runs read, each identity once; existing ones with their provenance."""
    caches: dict[str, Mapping[str, Any]] = {}
    for planned in planned_runs:
        for entry in read_caches(planned.run):
            cache = Path(entry["path"])
            provenance, seconds = cache / PROVENANCE_FILE, None
            with suppress(CorruptCache):  # The cache commands report the damage.
                seconds = extraction_seconds(cache)
            caches[json.dumps(entry["identity"], sort_keys=True)] = {
                "path": str(cache),
                "seconds": seconds,
                "num_bytes": folder_bytes(cache) if cache.exists() else None,
                "identity": entry["identity"],
                "provenance": read_json(provenance) if provenance.exists() else {},
            }
    return tuple(caches.values())
