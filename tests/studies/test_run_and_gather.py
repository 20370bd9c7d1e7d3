"""Running, resuming, sharing and gathering a grid, with an executor that writes real run folders."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_runs
from own_rows import write_json_lines
from PIL import Image
from scipy import stats
from synthetic_runs import NUM_ITEMS, made_up_result, run_trial, write_study_file

from advl_cli.flags import config_command
from advl_pipeline.base.errors import AdvlError, ConfigError, DatasetError
from advl_pipeline.reporting.tables import wide_tables
from advl_pipeline.studies.config import StudyRunConfig, read_study
from advl_pipeline.studies.execute import execute_cell
from advl_pipeline.studies.forecast import forecast_study
from advl_pipeline.studies.gather import gather_study
from advl_pipeline.studies.plan import Cell, build_plan, digest_dataset, read_study_folder
from advl_pipeline.studies.result import StudyResult, rows_of
from advl_pipeline.studies.run import num_cores, run_study
from advl_pipeline.studies.table import Place
from advl_pipeline.training.checks import finetune_command
from advl_pipeline.training.config import FinetuneConfig

TINY = {"methods": '["plain", "advl"]', "shots": "[100]", "test_sets": '["test"]'}
"""Two cells for each seed."""


def test_rows_that_runs_leave_out_are_left_out_of_what_a_study_digests(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    row = {"question": "What is it?", "choices": ["a cat", "a dog"], "label": 0, "split": "train"}
    rows = [row | {"id": str(number), "image": "there.png"} for number in range(20)]
    data = write_json_lines(tmp_path / "mine.jsonl", [*rows, row | {"id": "20", "image": "gone.png"}])
    config = FinetuneConfig(dataset=str(data), output=tmp_path)
    with pytest.raises(DatasetError):
        digest_dataset(config)
    assert digest_dataset(replace(config, on_error="skip"))


@pytest.mark.parametrize(("weights", "keeps"), [("model.safetensors", True), ("adapter_model.safetensors", False)])
def test_a_trained_student_is_scored_and_not_trained_again(
    tmp_path: Path, weights: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(write_study_file(tmp_path, extra=f"keep_weights = {str(keeps).lower()}\n"))
    cell = build_plan(study, cells=tmp_path).cells[0]
    synthetic_runs.execute(cell)
    shutil.rmtree(cell.run / "evaluation")
    for name in (weights, "heads.safetensors"):
        (cell.run / name).touch()
    scored = []
    monkeypatch.setattr("advl_pipeline.training.run.run_finetune", pytest.fail)
    monkeypatch.setattr("advl_pipeline.evaluation.runner.run_evaluate", lambda config: scored.append(config.on))
    execute_cell(cell)
    assert scored == [cell.test_sets]
    assert (cell.run / weights).exists() == (cell.run / "heads.safetensors").exists() == keeps


def place(result: StudyResult, test_set: str, shots: int) -> Place:
    return next(item for item in result.places() if (item.test_set, item.size) == (test_set, shots))


def stored_items(result: StudyResult, method: str, test_set: str, shots: int) -> np.ndarray:
    rows = []
    for cell in rows_of(result.cells, method=method, shots=str(shots)):
        with np.load(result.runs / cell["run"] / "evaluation" / f"{test_set}.npz") as arrays:
            rows.append(arrays["item/q2a"].astype(np.float64))
    return np.stack(rows)


def test_contrasts_are_paired_by_seed_and_by_item(result: StudyResult) -> None:
    gain = result.row("gain", place(result, "test", 100), method="advl", against="plain")
    advl, plain = (stored_items(result, method, "test", 100) for method in ("advl", "plain"))
    assert gain.mean == pytest.approx(100 * (advl - plain).mean())
    assert gain.p_seed == pytest.approx(stats.ttest_rel(advl.mean(axis=1), plain.mean(axis=1)).pvalue)
    assert gain.family_size == 12
    assert gain.p_seed_holm >= gain.p_seed


def test_as_many_shots_as_there_are_questions_stand_beside_all_of_them() -> None:
    result = made_up_result(
        {"methods": ["plain", "advl"], "shots": ["full", 1600, 100], "test_sets": ["test"], "seeds": [0, 1]}
    )
    assert [gain.size for gain in result.find("gain along shots")] == [100, 1600, 1600]
    assert len(result.row("slope").per_seed) == 2
    (table,) = wide_tables(result)
    assert [row["shots"] for row in table.rows] == ["100", "100", "1600", "1600", "full", "full"]


def test_caches_and_environment_are_gathered(result: StudyResult) -> None:
    assert len(result.caches) == 2
    assert [cache["seconds"] for cache in result.caches] == [12.5, 12.5]
    assert all(cache["num_bytes"] for cache in result.caches)
    assert len(result.environments) == 1
    assert "command" not in result.environments[0]


def refuse(*_: object) -> None:
    raise AssertionError("nothing is left to be done")


def test_the_first_seeds_of_the_first_size_are_run_alone_and_reported(tmp_path: Path) -> None:
    """Then the same command without the option runs what is left, and a third time nothing."""
    lines = {**TINY, "shots": "[100, 400]"}
    first = run_trial(tmp_path, options={"first_seeds": 1}, **lines)
    assert {(cell["seed"], cell["shots"]) for cell in rows_of(first.cells, state="finished")} == {(0, "100")}
    assert {cell["seed"] for cell in first.cells} == {0, 1}
    whole = run_trial(tmp_path, **lines)
    assert first.num_finished * 2 * 2 == whole.num_finished == len(whole.cells)
    stamps = {path: path.stat().st_mtime_ns for path in first.runs.rglob("result.json")}
    assert run_trial(tmp_path, executor=refuse, prepare=refuse, **lines).num_finished == len(whole.cells)
    assert stamps == {path: path.stat().st_mtime_ns for path in first.runs.rglob("result.json")}


def test_a_cell_that_another_study_has_finished_is_there_already(tmp_path: Path) -> None:
    lines = {**TINY, "test_sets": '["test", "test-shift"]'}
    first = run_trial(tmp_path, **lines)
    run_folders = sorted(path.parent for path in (tmp_path / "cells").glob("*/result.json"))
    (tmp_path / "other").mkdir()
    # The folder remembers the content of the data, which are not at hand here.
    shutil.copy(first.folder / "study.json", tmp_path / "other")
    config = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=tmp_path / "other", caches=tmp_path / "caches")
    shutil.rmtree(tmp_path / "caches")
    forecast = forecast_study(config)
    told = [forecast[name] for name in ("num_left", "caches", "bytes_left", "seconds_left")]
    assert told == [0, [], 0, 0]
    # Of these two, one was not trained to its end, and one not scored on every set.
    (run_folders[0] / "result.json").unlink()
    (run_folders[1] / "evaluation" / "test-shift.json").unlink()
    ran: list[str] = []

    def record(cell: Cell) -> None:
        ran.append(cell.cell_id)
        synthetic_runs.execute(cell)

    assert forecast_study(config)["num_left"] == 2
    second = run_trial(tmp_path, output="other", executor=record, **lines)
    assert sorted(ran) == sorted(path.name for path in run_folders[:2])
    assert second.num_finished == len(run_folders) == 4
    assert second.numbers == first.numbers
    assert gather_study(first.folder).numbers == first.numbers
    assert not list((tmp_path / "other").rglob("result.json"))
    # Another seed and another test set add what is missing.
    ran.clear()
    more = run_trial(tmp_path, num_seeds=3, executor=record, **lines)
    assert len(ran) == len(more.cells) - len(first.cells) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_stops_the_study(workers: int, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"scenes-1\.png") as caught:
        run_trial(tmp_path, executor=synthetic_runs.fail_first_seed, options={"workers": workers}, **TINY)
    assert caught.value.next_command == "restore it"


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import synthetic_runs
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.run import run_study

def execute(cell):
    with open(sys.argv[3], "a") as log:
        log.write(f"{sys.argv[4]} {cell.cell_id}\\n")
    if sys.argv[4] == "victim":
        time.sleep(240)
    time.sleep(0.02)
    synthetic_runs.execute(cell)

folder = Path(sys.argv[2])
run_study(
    StudyRunConfig(study=str(folder / "trial.toml"), output=folder / "study", caches=folder / "caches"),
    execute=execute, prepare=synthetic_runs.prepare, digest=synthetic_runs.digest,
)
"""


def start_worker(tmp_path: Path, name: str) -> subprocess.Popen[str]:
    arguments = [str(Path(synthetic_runs.__file__).parent), str(tmp_path), str(tmp_path / f"log-{name}"), name]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stderr=subprocess.PIPE, text=True)


def cells_run_by(tmp_path: Path, name: str) -> list[str]:
    path = tmp_path / f"log-{name}"
    return [line.split()[1] for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_processes_share_a_grid_and_take_over_from_a_killed_one(tmp_path: Path) -> None:
    write_study_file(tmp_path, num_seeds=6, **TINY)
    victim = start_worker(tmp_path, "victim")
    deadline = time.monotonic() + 60
    while not cells_run_by(tmp_path, "victim") and time.monotonic() < deadline:
        time.sleep(0.05)
    (held,) = cells_run_by(tmp_path, "victim")
    workers = {name: start_worker(tmp_path, name) for name in ("one", "two")}

    def ran() -> list[str]:
        return [cell for name in workers for cell in cells_run_by(tmp_path, name)]

    while len(ran()) < 11 and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    assert len(ran()) == len(set(ran())) == 11
    assert held not in ran()
    # What is left is waited for.
    time.sleep(0.5)
    assert [worker.poll() for worker in workers.values()] == [None, None]
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=30)
    said = []
    for worker in workers.values():
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        said.append(errors)
    assert any(f"waiting for process {victim.pid} on" in errors for errors in said), said
    assert sorted(ran()) == sorted({*ran(), held})
    assert len(ran()) == 12
    assert gather_study(tmp_path / "study").num_finished == 12


def test_workers_run_cells_side_by_side_in_processes_of_their_own(tmp_path: Path) -> None:
    result = run_trial(
        tmp_path, seeds="[1, 2, 3]", executor=synthetic_runs.fail_first_seed, options={"workers": 2}, **TINY
    )
    assert (result.num_finished, len(result.cells)) == (6, 6)
    seen = [path.read_text().split() for path in (tmp_path / "cells").rglob("seen-*")]
    assert len(seen) == 6
    assert {int(pid) for pid, _ in seen}.isdisjoint({os.getpid()})
    assert {threads for _, threads in seen} == {str(max(1, num_cores() // 2))}


def test_the_death_of_a_worker_is_told_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(AdvlError, match="worker of the study died"):
        run_trial(tmp_path, executor=synthetic_runs.die, options={"workers": 2}, **TINY)
    assert not multiprocessing.active_children()


def test_a_study_folder_gathers_elsewhere(tmp_path: Path, result: StudyResult) -> None:
    target = tmp_path / "moved"
    subprocess.run(["cp", "-r", str(result.folder), str(target)], check=True)
    subprocess.run(["cp", "-r", str(result.runs / "cells"), str(tmp_path / "cells")], check=True)
    moved = gather_study(target)
    assert moved.numbers == result.numbers


def test_scores_of_other_items_are_not_paired(tmp_path: Path) -> None:
    result = run_trial(tmp_path, num_seeds=1, **TINY)
    path = result.runs / result.cells[1]["run"] / "evaluation" / "test.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    shuffled = np.random.default_rng(0).permutation(NUM_ITEMS)
    for name in ("item/q2a", "item_ids/q2a", "item_swapped/q2a", "item_swapped_ids/q2a"):
        arrays[name] = arrays[name][shuffled]
    np.savez(path, **arrays)
    again, before = (
        one.row("gain", place(result, "test", 100), method="advl", against="plain")
        for one in (gather_study(result.folder), result)
    )
    assert again.p_item == before.p_item
    arrays["item_ids/q2a"] = np.array([f"other-{index}" for index in range(NUM_ITEMS)])
    arrays["item_swapped_ids/q2a"] = arrays["item_ids/q2a"]
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="different items"):
        gather_study(result.folder)


def test_a_damaged_file_of_a_run_is_named_and_a_missing_readout_is_left_out(tmp_path: Path) -> None:
    result = run_trial(tmp_path, **TINY)
    (cell,) = rows_of(result.cells, method="advl", seed=0)
    readouts = ('{"before": {', "[]", '{"before": {"minilm-l6": {"words": null}}}', '{"before": {"t": {"words": 1}}}')
    damages = [
        ("result.json", "{"),
        ("result.json", '{"num_labelled": 8}'),
        ("evaluation/test.json", "{"),
        ("evaluation/test.npz", "PK"),
    ]
    for name, content in (*damages, *(("readout.json", content) for content in readouts)):
        path = result.runs / cell["run"] / name
        before = path.read_bytes()
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            gather_study(result.folder)
        assert str(path) in str(caught.value)
        path.write_bytes(before)
    (result.runs / cell["run"] / "readout.json").unlink()
    assert {item["seed"] for item in rows_of(gather_study(result.folder).readouts, method="advl")} == {1}


def test_a_folder_without_a_study_or_with_one_of_an_earlier_version_is_refused_until_it_is_run_again(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="holds no study"):
        gather_study(tmp_path)
    first = run_trial(tmp_path, num_seeds=1, **TINY)
    file = first.folder / "study.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"cells": {cell["cell"]: "a title" for cell in first.cells}}))
    with pytest.raises(ConfigError, match="of an earlier version") as refusal:
        gather_study(first.folder)
    assert refusal.value.where == str(file)
    # The folder still tells the content of data that are not at hand.
    asked = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=first.folder, caches=tmp_path / "caches")
    assert forecast_study(asked)["num_left"] == 0
    assert run_study(asked, execute=refuse, prepare=refuse).numbers == first.numbers
    assert gather_study(first.folder).num_finished == 2


def test_command_of_a_cell_parses_back_to_its_configuration(result: StudyResult) -> None:
    parsed: list[FinetuneConfig] = []

    @config_command(FinetuneConfig, "finetune")
    def finetune(config: FinetuneConfig) -> Iterator[None]:
        parsed.append(config)
        yield None

    for cell in read_study_folder(result.folder).cells[:8]:
        finetune.main(shlex.split(finetune_command(cell.finetune))[2:], standalone_mode=False)
        assert parsed.pop() == cell.finetune


def test_scores_on_a_test_set_that_was_rebuilt_are_not_compared(tmp_path: Path) -> None:
    result = run_trial(tmp_path, **TINY)
    for number, cell in enumerate(result.cells):
        path = result.runs / cell["run"] / "evaluation" / "test.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["content_digest"] = "new" if number == 3 else "old"
        path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="different contents of test") as refusal:
        gather_study(result.folder)
    assert result.cells[3]["run"] in refusal.value.where


def test_cells_follow_the_recipe_of_their_study_and_are_gathered_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.toml"

    def with_rate(rate: str) -> StudyResult:
        recipe.write_text(f"learning_rate = {rate}\n", encoding="utf-8")
        extra = "[training]\nrecipe = 'mine.toml'\n"
        return run_trial(tmp_path, num_seeds=1, shots="[100]", test_sets='["test"]', extra=extra)

    first, other = with_rate("3e-4"), with_rate("4e-4")
    assert not {cell["cell"] for cell in other.cells} & {cell["cell"] for cell in first.cells}
    recipe.unlink()
    assert gather_study(other.folder).cells == other.cells
    cell = replace(read_study_folder(other.folder).cells[0], test_sets=())
    (cell.run / "result.json").unlink()
    with pytest.raises(ConfigError, match="recipe has changed"):
        execute_cell(cell)
