"""Runs that no study asked for, laid out as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs
from synthetic_runs import GAINS, write_study_file

from advl_pipeline.configuration import with_options
from advl_pipeline.errors import ConfigError
from advl_pipeline.reporting.answer import answers
from advl_pipeline.reporting.page import page_of
from advl_pipeline.studies.claims import is_teacher_control
from advl_pipeline.studies.config import read_study
from advl_pipeline.studies.gather import gather_runs
from advl_pipeline.studies.plan import Cell, build_plan

Cells = dict[tuple[str, int], Cell]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """Cells by method and seed."""
    folder = tmp_path_factory.mktemp("cells")
    study = read_study(write_study_file(folder, num_seeds=2, shots="[100]"))
    return {(cell.method, cell.seed): cell for cell in build_plan(study, cells=folder).cells}


def loose_run(folder: Path, cell: Cell, **options: Any) -> Path:
    """Write the run of a cell beside others, with other options, as if no study had asked for it."""
    teachers = options.pop("teachers", cell.teachers)
    finetune = with_options(cell.finetune, output=folder, **options)
    moved = replace(cell, teachers=teachers, finetune=finetune)
    synthetic_runs.execute(moved)
    (folder / "run.json").write_text('{"options": {}}', encoding="utf-8")
    return folder


def test_runs_of_other_options_or_teachers_are_rows_of_their_own(cells: Cells, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (0, 1):
        loose_run(runs / f"plain-{seed}", cells["plain", seed])
        loose_run(runs / f"blind-{seed}", cells["plain", seed], hide_picture=True)
        loose_run(runs / f"advl-{seed}", cells["advl", seed])
    loose_run(runs / "clip", cells["advl", 1], teachers=("clip-vit-l", "minilm-l6"))
    loose_run(runs / "longer", cells["advl", 1], num_steps=3000)
    result = gather_runs(runs)
    seeds = result.cells.groupby("method")["seed"].apply(list).to_dict()
    known = "teachers efficientnet-lite0 and minilm-l6"
    assert seeds == {
        "plain": [0, 1],
        "plain, hide_picture True": [0, 1],
        f"advl, {known}": [0, 1],
        f"advl, num_steps 3000, {known}": [1],
        "advl, teachers clip-vit-l and minilm-l6": [1],
    }
    assert result.study.baseline == "plain"
    blind = result.study.variant("plain, hide_picture True")
    assert (blind.label, blind.role) == ("plain, no picture", "control")
    assert result.study.variant(f"advl, {known}").label == f"ADVL, {known}"


def test_runs_of_several_folders_are_compared(cells: Cells, tmp_path: Path) -> None:
    loose_run(tmp_path / "mine" / "run", cells["plain", 0])
    loose_run(tmp_path / "yours" / "run", cells["advl", 0])
    result = gather_runs(tmp_path / "mine" / "run", tmp_path / "yours")
    assert result.folder == tmp_path
    assert list(result.cells["cell"]) == ["mine/run", "yours/run"]
    assert result.num_finished == 2
    assert list(gather_runs(tmp_path / "mine" / "run").cells["cell"]) == ["run"]


def test_a_control_among_runs_is_called_one_and_is_never_what_is_judged(cells: Cells, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    random = ("random:efficientnet-lite0@1", "random:minilm-l6@1")
    for seed in (0, 1):
        loose_run(runs / f"plain-{seed}", cells["plain", seed])
        loose_run(runs / f"shuffled-{seed}", cells["advl", seed], teacher_control="shuffle")
    result = gather_runs(runs)
    shuffled = result.study.variant(result.study.focus)
    assert (shuffled.label, shuffled.role) == ("ADVL, shuffled teacher", "control")
    for seed in (0, 1):
        loose_run(runs / f"random-{seed}", cells["advl", seed], teachers=random)
        loose_run(runs / f"true-{seed}", cells["advl", seed])
        loose_run(runs / f"other-{seed}", cells["advl", seed], split="train-shift")
    study = gather_runs(runs).study
    labels = {study.variant(name).label: study.variant(name).role for name in study.methods}
    known = "teachers efficientnet-lite0 and minilm-l6"
    assert labels == {
        "plain": "baseline",
        f"ADVL, {known}": "method",
        f"ADVL, split train-shift, {known}": "method",
        f"ADVL, shuffled teacher, {known}": "control",
        f"ADVL, teachers {' and '.join(random)}": "control",
    }
    assert study.variant(study.focus).role == "method"
    true = replace(study, focus=f"advl, {known}")
    assert gather_runs(runs).study.baseline == "plain"
    assert {name for name in study.methods if is_teacher_control(true, name)} == {
        f"advl, teacher_control shuffle, {known}",
        f"advl, teachers {' and '.join(random)}",
    }


@pytest.mark.parametrize(
    ("rows", "baseline", "focus"),
    [
        ({"two": ("plain-two-step", {}), "advl": ("advl", {})}, "plain-two-step", "advl"),
        ({"blind": ("plain", {"hide_picture": True}), "advl": ("advl", {})}, "plain, hide_picture True", "advl"),
        (
            {"advl": ("advl", {}), "shuffled": ("advl", {"teacher_control": "shuffle"})},
            "advl, teacher_control shuffle",
            "advl",
        ),
        (
            {"p": ("plain", {}), "kd": ("naive-kd", {}), "shuffled": ("advl", {"teacher_control": "shuffle"})},
            "plain",
            "naive-kd",
        ),
        ({"p": ("plain", {}), "q": ("plain", {"learning_rate": 1e-5})}, "plain", "plain, learning_rate 1e-05"),
        ({"advl": ("advl", {})}, "plain", "advl"),
        ({"p": ("plain", {})}, "plain", "plain"),
    ],
)
def test_which_rows_of_a_folder_of_runs_are_judged(
    cells: Cells,
    rows: dict[str, tuple[str, dict[str, Any]]],
    baseline: str,
    focus: str,
    tmp_path: Path,
) -> None:
    cell = cells["advl", 0]
    for name, (method, options) in rows.items():
        of_method = replace(cell, method=method)
        loose_run(tmp_path / "runs" / name, of_method, **{"method": method, **options})
    found = gather_runs(tmp_path / "runs").study
    assert (found.baseline, found.focus) == (baseline, focus)


def test_a_report_of_one_scored_run_says_what_it_answers(cells: Cells, tmp_path: Path) -> None:
    run = loose_run(tmp_path / "runs" / "mine", cells["plain", 0])
    result = gather_runs(run)
    (answer,) = answers(result)
    percent = result.row("accuracy", answer.place, method="plain").mean
    assert answer.sentence == f"plain answers {percent:.0f} of 100 questions correctly."
    assert answer.sentence in page_of(result, data_root=None, num_examples=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_steps": 4336}, "steps (300 and 4,336)"),
        ({"split": "val"}, "labels (100 of train and 100 of val)"),
        ({"init": Path("students/small")}, "student (scenes-small and scenes-small from students/small)"),
    ],
)
def test_runs_that_were_not_made_alike_are_not_compared(
    changes: dict[str, Any], told: str, cells: Cells, tmp_path: Path
) -> None:
    loose_run(tmp_path / "runs" / "a", cells["advl", 0], num_steps=300)
    loose_run(tmp_path / "runs" / "b", cells["plain", 0], **{"num_steps": 300} | changes)
    result = gather_runs(tmp_path / "runs")
    (answer,) = answers(result)
    assert " of 100 questions correctly and plain " in answer.sentence
    assert answer.sentence.endswith(f". The two are not compared, for they differ in {told}.")
    assert not [fact for fact in answer.facts if fact.label.startswith("over")]
    assert not result.find("gain")
    assert "p: seeds" not in page_of(result, data_root=None, num_examples=0)
    # Made alike, they are.
    loose_run(tmp_path / "runs" / "b", cells["plain", 0], num_steps=300)
    (answer,) = answers(gather_runs(tmp_path / "runs"))
    assert "not compared" not in answer.sentence
    assert answer.facts[0].label == "over plain"


def test_runs_of_other_seeds_say_why_they_are_not_compared(cells: Cells, tmp_path: Path) -> None:
    loose_run(tmp_path / "runs" / "a", cells["advl", 0])
    loose_run(tmp_path / "runs" / "b", cells["plain", 1])
    result = gather_runs(tmp_path / "runs")
    assert answers(result) == ()
    told = "ADVL and plain were not run with the same seed and number of labels, so they are not compared"
    assert told in page_of(result, data_root=None, num_examples=0)


def test_a_run_of_version_02_is_read_unless_it_used_an_option_that_is_gone(cells: Cells, tmp_path: Path) -> None:
    cell = cells["advl", 0]
    run = loose_run(tmp_path / "runs" / "old", cell)
    stored = json.loads((run / "config.json").read_text())
    gone = {"relational_nodes": "both", "weight_normalise": "none", "projection_start": "ridge", "target_check": "r2"}
    gone |= {"live": False, "live_weights": []}
    (run / "config.json").write_text(json.dumps(stored | gone))
    assert set(gather_runs(tmp_path / "runs").cells["method"]) == {"advl"}
    for changes in ({"weight_normalise": "batch-mean"}, {"distance": "mse"}):
        (run / "config.json").write_text(json.dumps(stored | gone | changes))
        with pytest.raises(ConfigError, match="option that is gone") as refused:
            gather_runs(tmp_path / "runs")
        assert str(run / "config.json") in refused.value.where


def test_runs_that_followed_other_features_are_no_seeds_of_one_row(cells: Cells, tmp_path: Path) -> None:
    for seed in (0, 1):
        run = loose_run(tmp_path / "runs" / f"advl-{seed}", cells["advl", seed])
    assert len(set(gather_runs(tmp_path / "runs").cells["method"])) == 1
    caches = json.loads((run / "caches.json").read_text())
    caches[0]["identity"]["teacher"]["image"] = {"parameters": "others"}
    (run / "caches.json").write_text(json.dumps(caches))
    names = set(gather_runs(tmp_path / "runs").cells["method"])
    assert len(names) == 2
    assert all("features" in name for name in names)


def test_a_run_that_was_scored_on_data_of_other_tasks_is_reported(cells: Cells, tmp_path: Path) -> None:
    cell = cells["plain", 0]
    run = loose_run(tmp_path / "runs" / "one", cell)
    other = replace(cell, test_sets=("mine",), finetune=replace(cell.finetune, output=run, task=("choice",)))
    synthetic_runs.evaluate(other, "mine", GAINS)
    result = gather_runs(run)
    found = {(row.test_set, row.metric) for row in result.find("accuracy")}
    assert found == {("test", "q2a"), ("test-shift", "q2a"), ("mine", "choice")}


def test_training_questions_of_a_run_of_all_its_datasets_tasks(tmp_path: Path) -> None:
    study = read_study(write_study_file(tmp_path, shots='["full"]', tasks='["vcr-q2a", "vcr-qa2r"]'))
    cell = build_plan(study, cells=tmp_path).cells[0]
    sizes = {}
    for name, named in (("named", ("vcr-q2a", "vcr-qa2r")), ("all", ())):
        run = loose_run(tmp_path / name, cell)
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"task": named}))
        (sizes[name],) = {row.size for row in gather_runs(run).find("accuracy")}
    assert sizes["named"] == sizes["all"] == 1600
