"""Runs that no study asked for, laid out as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs
from synthetic_runs import GAINS, write_study_file

from advl_pipeline.base.configuration import build_config, config_to_dict
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.reporting.answer import answers
from advl_pipeline.reporting.page import page_of
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.config import read_study
from advl_pipeline.studies.gather import gather_runs
from advl_pipeline.studies.plan import PlannedRun, build_plan
from advl_pipeline.training.config import FinetuneConfig

PlannedRuns = dict[tuple[str, int], PlannedRun]


@pytest.fixture(scope="module")
def planned_runs(tmp_path_factory: pytest.TempPathFactory) -> PlannedRuns:
    """Planned runs by method and seed."""
    folder = tmp_path_factory.mktemp("cells")
    study = read_study(write_study_file(folder, num_seeds=2, shots="[100]"))
    return {(planned.method, planned.seed): planned for planned in build_plan(study, runs=folder).runs}


def loose_run(folder: Path, planned: PlannedRun, **options: Any) -> Path:
    """Write a planned run beside others, with other options, as if no study had asked for it."""
    teachers = options.pop("teachers", planned.teachers)
    finetune = build_config(FinetuneConfig, config_to_dict(planned.finetune), {"output": folder, **options})
    moved = replace(planned, teachers=teachers, finetune=finetune)
    synthetic_runs.execute(moved)
    (folder / "run.json").write_text('{"options": {}}', encoding="utf-8")
    return folder


def test_each_run_is_a_row_and_nothing_is_compared(planned_runs: PlannedRuns, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (0, 1):
        loose_run(runs / f"plain-{seed}", planned_runs["plain", seed])
    loose_run(runs / "blind", planned_runs["plain", 0], hide_picture=True)
    loose_run(runs / "shuffled", planned_runs["advl", 0], teacher_control="shuffle")
    result = gather_runs(runs)
    assert {run.method: run.seed for run in result.runs} == {
        "plain-0: plain": 0,
        "plain-1: plain": 1,
        "blind: plain, without pictures": 0,
        "shuffled: ADVL, teacher_control shuffle": 0,
    }
    assert answers(result) == ()
    assert not result.numbers.gains
    assert judge_claims(result) == ()
    page = page_of(result, data_root=None, num_examples=0)
    assert "shuffled: ADVL, teacher_control shuffle" in page
    assert "p: seeds" not in page


def test_runs_of_several_folders_are_compared(planned_runs: PlannedRuns, tmp_path: Path) -> None:
    loose_run(tmp_path / "mine" / "run", planned_runs["plain", 0])
    loose_run(tmp_path / "yours" / "run", planned_runs["advl", 0])
    result = gather_runs(tmp_path / "mine" / "run", tmp_path / "yours")
    assert result.folder == tmp_path
    assert [run.run_id for run in result.runs] == ["mine/run", "yours/run"]
    assert result.num_finished == 2
    assert [run.run_id for run in gather_runs(tmp_path / "mine" / "run").runs] == ["run"]


def test_a_report_of_one_run_says_what_it_answers_and_what_was_kept_from_its_student(
    planned_runs: PlannedRuns, tmp_path: Path
) -> None:
    result = gather_runs(loose_run(tmp_path / "runs" / "plain", planned_runs["plain", 0]))
    (answer,) = answers(result)
    (percent,) = (found.estimate.mean for found in result.numbers.accuracies if found.place == answer.place)
    assert answer.sentence == f"plain answers {percent:.0f} of 100 questions correctly."
    assert answer.sentence in page_of(result, data_root=None, num_examples=0)
    random = ("random:minilm-l6@1", "random:efficientnet-lite0@1")
    run = loose_run(tmp_path / "runs" / "mine", planned_runs["advl", 0], teacher_control="shuffle", teachers=random)
    (answer,) = answers(gather_runs(run))
    assert answer.sentence.startswith(f"ADVL, teacher_control shuffle, teachers {random[0]} and {random[1]} answers ")


def test_a_run_of_version_02_is_read_unless_it_used_an_option_that_is_gone(
    planned_runs: PlannedRuns, tmp_path: Path
) -> None:
    planned = planned_runs["advl", 0]
    run = loose_run(tmp_path / "runs" / "old", planned)
    stored = json.loads((run / "config.json").read_text())
    gone = {"relational_nodes": "both", "weight_normalise": "none", "projection_start": "ridge", "target_check": "r2"}
    gone |= {"live": False, "live_weights": [], "selection_rho": 0.3, "verify_caches": True, "weight_decay": None}
    (run / "config.json").write_text(json.dumps(stored | gone))
    assert {run.method for run in gather_runs(tmp_path / "runs").runs} == {"ADVL"}
    for changes in (
        {"weight_normalise": "batch-mean"},
        {"distance": "mse"},
        {"selection_rho": 0.5},
        {"weight_decay": 0.1},
    ):
        (run / "config.json").write_text(json.dumps(stored | gone | changes))
        with pytest.raises(ConfigError, match="option that was removed in version") as refused:
            gather_runs(tmp_path / "runs")
        assert str(run / "config.json") in refused.value.where


def test_a_run_that_was_scored_on_data_of_other_tasks_is_reported(planned_runs: PlannedRuns, tmp_path: Path) -> None:
    planned = planned_runs["plain", 0]
    run = loose_run(tmp_path / "runs" / "one", planned)
    other = replace(planned, test_sets=("mine",), finetune=replace(planned.finetune, output=run, task=("choice",)))
    synthetic_runs.evaluate(other, "mine", GAINS)
    result = gather_runs(run)
    found = {(place.test_set, place.metric) for place in result.numbers.places()}
    assert found == {("test", "q2a"), ("test-shift", "q2a"), ("mine", "choice")}


def test_training_questions_of_a_run_of_all_its_datasets_tasks(tmp_path: Path) -> None:
    study = read_study(write_study_file(tmp_path, shots='["full"]', tasks='["vcr-q2a", "vcr-qa2r"]'))
    planned = build_plan(study, runs=tmp_path).runs[0]
    sizes = {}
    for name, named in (("named", ("vcr-q2a", "vcr-qa2r")), ("all", ())):
        run = loose_run(tmp_path / name, planned)
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"task": named}))
        (sizes[name],) = {place.size for place in gather_runs(run).numbers.places()}
    assert sizes["named"] == sizes["all"] == 1600
