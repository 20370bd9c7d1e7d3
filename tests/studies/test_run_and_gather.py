"""Running, resuming, sharing and gathering a grid, with an executor that writes real run folders."""

from __future__ import annotations

import itertools
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
from typing import Any

import numpy as np
import pytest
import synthetic_runs
from PIL import Image
from scipy import special, stats
from synthetic_runs import GAINS, NUM_ITEMS, run_trial, write_study_file

from advl_cli.flags import config_command
from advl_pipeline.configuration import with_options
from advl_pipeline.errors import AdvlError, ConfigError, DatasetError
from advl_pipeline.evaluation.statistics import top_confidence
from advl_pipeline.reporting.tables import wide_tables
from advl_pipeline.runs.results import WeightBins
from advl_pipeline.studies.claims import is_teacher_control
from advl_pipeline.studies.config import StudyRunConfig, read_study
from advl_pipeline.studies.execute import CellExecutor, digest_dataset, execute_cell, missing_test_sets
from advl_pipeline.studies.forecast import forecast_study
from advl_pipeline.studies.gather import finetune_command, gather_runs, gather_study, pool_histograms
from advl_pipeline.studies.plan import Cell, build_plan, read_study_folder
from advl_pipeline.studies.run import Failure, num_cores, run_study
from advl_pipeline.studies.table import Place, StudyResult, rows_of
from advl_pipeline.training.config import FinetuneConfig


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return run_trial(tmp_path_factory.mktemp("gathered"), num_seeds=5)


def test_rows_that_runs_leave_out_are_left_out_of_what_a_study_digests(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    data = tmp_path / "mine.jsonl"
    row = {"split": "train", "question": "What is it?", "choices": ["a cat", "a dog"], "label": 0}
    data.write_text(
        "".join(
            json.dumps(row | {"id": str(number), "image": image}) + "\n"
            for number, image in enumerate(["there.png"] * 20 + ["gone.png"])
        )
    )
    with pytest.raises(DatasetError):
        digest_dataset(str(data), "train", None)
    extra = '[training]\non_error = "skip"\n'
    trained = []

    def execute(cell: Cell) -> None:
        trained.append(cell.finetune.on_error)
        synthetic_runs.execute(cell)

    lines = {"dataset": json.dumps(str(data)), "tasks": '["choice"]'}
    study = write_study_file(tmp_path, extra=extra, **lines)
    asked = StudyRunConfig(study=str(study), output=tmp_path / "study", caches=tmp_path / "caches")
    run_study(asked, execute=execute, prepare=synthetic_runs.prepare)
    assert set(trained) == {"skip"}


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("weights", ["model.safetensors", "adapter_model.safetensors"])
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
        with np.load(result.runs / cell.run / "evaluation" / f"{test_set}.npz") as arrays:
            rows.append(arrays["item/q2a"].astype(np.float64))
    return np.stack(rows)


def test_standings_are_the_means_of_what_the_runs_stored(result: StudyResult) -> None:
    assert result.num_finished == len(result.cells) == 40
    for method, test_set, shots in itertools.product(GAINS, ("test", "test-shift"), (100, 400)):
        accuracy = result.one("accuracy", place(result, test_set, shots), method=method)
        if method == "plain-two-step":
            assert accuracy is None
            continue
        expected = 100 * stored_items(result, method, test_set, shots).mean(axis=1)
        assert accuracy.per_seed == pytest.approx(expected)
        assert accuracy.deviation == pytest.approx(expected.std(ddof=1))
        assert accuracy.num_items == NUM_ITEMS
        assert all((result.runs / name / "result.json").exists() for name in accuracy.runs)


def test_contrasts_are_paired_by_seed_and_by_item(result: StudyResult) -> None:
    gain = result.one("gain", place(result, "test", 100), method="advl", against="plain")
    advl, plain = (stored_items(result, method, "test", 100) for method in ("advl", "plain"))
    assert gain.mean == pytest.approx(100 * (advl - plain).mean())
    assert gain.p_seed == pytest.approx(stats.ttest_rel(advl.mean(axis=1), plain.mean(axis=1)).pvalue)
    assert gain.family_size == 12
    assert gain.p_seed_holm >= gain.p_seed


def test_as_many_shots_as_there_are_questions_stand_beside_all_of_them(tmp_path: Path) -> None:
    result = run_trial(
        tmp_path, num_seeds=2, methods='["plain", "advl"]', shots='["full", 1600, 100]', test_sets='["test"]'
    )
    assert [gain.size for gain in result.find("gain along shots")] == [100, 1600, 1600]
    assert len(result.one("slope").per_seed) == 2
    (table,) = wide_tables(result)
    assert [row["shots"] for row in table.rows] == ["100", "100", "1600", "1600", "full", "full"]


def test_caches_and_environment_are_gathered(result: StudyResult) -> None:
    assert len(result.caches) == 2
    assert [cache["seconds"] for cache in result.caches] == [12.5, 12.5]
    assert all(cache["num_bytes"] for cache in result.caches)
    assert len(result.environments) == 1
    assert "command" not in result.environments[0]


@pytest.mark.parametrize("loss", ["soft-target-bce", "soft-target-kl"])
def test_a_student_is_as_sure_as_the_loss_that_it_learned_by_lets_it_be(tmp_path: Path, loss: str) -> None:
    result = run_trial(
        tmp_path,
        num_seeds=1,
        dataset='"scenes-vqa"',
        tasks='["vqa"]',
        methods='["plain"]',
        shots="[100]",
        test_sets='["test"]',
        extra=f"[training]\ntask-loss = '{loss}'\n",
    )
    (calibration,) = rows_of(result.calibrations)
    with np.load(result.runs / result.cells["run"][0] / "evaluation" / "test.npz") as arrays:
        logits = arrays["scores/vqa"].astype(np.float64)
    sure = 1 / (1 + np.exp(-logits)) if loss == "soft-target-bce" else special.softmax(logits, axis=1)
    mean = sum(one.confidence * one.count for one in calibration.reliability.bins) / NUM_ITEMS
    assert mean == pytest.approx(sure.max(axis=1).mean())


def test_a_finished_cell_is_never_run_again(tmp_path: Path) -> None:
    first = run_trial(tmp_path, num_seeds=1)
    stamps = {path: path.stat().st_mtime_ns for path in first.runs.rglob("result.json")}
    again = run_trial(tmp_path, num_seeds=1, executor=refuse, prepare=refuse)
    assert again.num_finished == 8
    assert stamps == {path: path.stat().st_mtime_ns for path in first.runs.rglob("result.json")}


def test_the_first_seeds_of_the_first_size_are_run_alone_and_reported(tmp_path: Path) -> None:
    """Then the same command without the option runs what is left."""
    first = run_trial(tmp_path, num_seeds=3, options={"first_seeds": 1})
    assert {(cell.seed, cell.shots) for cell in rows_of(first.cells, state="finished")} == {(0, "100")}
    assert set(first.cells["seed"]) == {0, 1, 2}
    whole = run_trial(tmp_path, num_seeds=3)
    assert first.num_finished * 3 * 2 == whole.num_finished == len(whole.cells)


def test_a_cell_that_another_study_has_finished_is_there_already(tmp_path: Path) -> None:
    first = run_trial(tmp_path, num_seeds=1)
    run_folders = sorted(path.parent for path in (tmp_path / "cells").glob("*/result.json"))
    (tmp_path / "other").mkdir()
    # The folder remembers the content of the data, which are not at hand here.
    shutil.copy(first.folder / "study.json", tmp_path / "other")
    # Of these two, one was not trained to its end, and one not scored on every set.
    (run_folders[0] / "result.json").unlink()
    (run_folders[1] / "evaluation" / "test-shift.json").unlink()
    ran: list[str] = []

    def record(cell: Cell) -> None:
        ran.append(cell.cell_id)
        synthetic_runs.execute(cell)

    config = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=tmp_path / "other", caches=tmp_path / "caches")
    assert forecast_study(config).num_left == 2
    second = run_trial(tmp_path, output="other", num_seeds=1, executor=record)
    assert sorted(ran) == sorted(path.name for path in run_folders[:2])
    assert second.num_finished == len(run_folders) == 8
    assert second.numbers.equals(first.numbers)
    assert gather_study(first.folder).numbers.equals(first.numbers)
    assert not list((tmp_path / "other").rglob("result.json"))


def test_caches_of_cells_that_another_study_has_finished_are_not_extracted(tmp_path: Path) -> None:
    first = run_trial(tmp_path, num_seeds=1)
    shutil.rmtree(tmp_path / "caches")
    (tmp_path / "other").mkdir()
    shutil.copy(first.folder / "study.json", tmp_path / "other")
    config = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=tmp_path / "other", caches=tmp_path / "caches")
    forecast = forecast_study(config)
    assert (forecast.caches, forecast.bytes_left, forecast.seconds_left) == ((), 0, 0)
    second = run_trial(tmp_path, output="other", num_seeds=1, executor=refuse, prepare=refuse)
    assert second.num_finished == 8


def refuse(*_: object) -> None:
    raise AssertionError("nothing is left to be done")


def test_more_seeds_and_another_test_set_add_only_what_is_missing(tmp_path: Path) -> None:
    run_trial(tmp_path, num_seeds=1)
    ran: list[tuple[int, str]] = []

    def record(cell: Cell) -> None:
        ran.append((cell.seed, cell.method))
        synthetic_runs.execute(cell)

    run_trial(tmp_path, executor=record)
    assert {seed for seed, _ in ran} == {1}
    assert len(ran) == 8


def test_an_error_stops_the_study_unless_told_to_go_on(tmp_path: Path) -> None:
    def fail(cell: Cell) -> None:
        if cell.method == "advl":
            raise DatasetError("A picture cannot be read.", where="scenes-1.png")
        synthetic_runs.execute(cell)

    with pytest.raises(DatasetError, match=r"scenes-1\.png"):
        run_trial(tmp_path, num_seeds=1, executor=fail)
    failures: list[Failure] = []
    options = {"keep_going": True}
    result = run_trial(tmp_path, num_seeds=1, executor=fail, options=options, report_failure=failures.append)
    assert result.num_finished == 6
    assert len(failures) == 2
    assert all("scenes-1.png" in failure.message for failure in failures)


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
    write_study_file(tmp_path, num_seeds=3)
    victim = start_worker(tmp_path, "victim")
    deadline = time.monotonic() + 60
    while not cells_run_by(tmp_path, "victim") and time.monotonic() < deadline:
        time.sleep(0.05)
    (held,) = cells_run_by(tmp_path, "victim")
    workers = {name: start_worker(tmp_path, name) for name in ("one", "two")}

    def ran() -> list[str]:
        return [cell for name in workers for cell in cells_run_by(tmp_path, name)]

    while len(ran()) < 23 and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    assert len(ran()) == len(set(ran())) == 23
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
    assert len(ran()) == 24
    assert gather_study(tmp_path / "study").num_finished == 24


def in_workers(tmp_path: Path, executor: CellExecutor, **options: Any) -> StudyResult:
    return run_trial(tmp_path, executor=executor, options={"workers": 2, **options})


def test_workers_run_cells_side_by_side_in_processes_of_their_own(tmp_path: Path) -> None:
    result = in_workers(tmp_path, synthetic_runs.log_threads)
    assert result.num_finished == len(result.cells) == 16
    seen = [path.read_text().split() for path in (tmp_path / "cells").rglob("seen-*")]
    assert len(seen) == 16
    assert {int(pid) for pid, _ in seen}.isdisjoint({os.getpid()})
    assert {threads for _, threads in seen} == {str(max(1, num_cores() // 2))}


def test_an_error_in_a_worker_says_where_it_happened_and_stops_the_study(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        in_workers(tmp_path, synthetic_runs.fail_first_seed)
    assert (caught.value.where, caught.value.next_command) == ("scenes-1.png", "restore it")


def test_with_keep_going_workers_finish_the_other_cells(tmp_path: Path) -> None:
    result = in_workers(tmp_path, synthetic_runs.fail_first_seed, keep_going=True)
    assert (result.num_finished, len(result.cells)) == (8, 16)


def test_the_death_of_a_worker_is_told_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(AdvlError, match="worker of the study died"):
        in_workers(tmp_path, synthetic_runs.die)
    assert not multiprocessing.active_children()


def test_a_study_folder_gathers_elsewhere(tmp_path: Path, result: StudyResult) -> None:
    target = tmp_path / "moved"
    subprocess.run(["cp", "-r", str(result.folder), str(target)], check=True)
    subprocess.run(["cp", "-r", str(result.runs / "cells"), str(tmp_path / "cells")], check=True)
    moved = gather_study(target)
    assert moved.numbers.equals(result.numbers)


def test_scores_of_other_items_are_not_paired(tmp_path: Path) -> None:
    result = run_trial(tmp_path, num_seeds=1)
    path = result.runs / result.cells["run"][1] / "evaluation" / "test.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    shuffled = np.random.default_rng(0).permutation(NUM_ITEMS)
    for name in ("item/q2a", "item_ids/q2a", "item_swapped/q2a", "item_swapped_ids/q2a"):
        arrays[name] = arrays[name][shuffled]
    np.savez(path, **arrays)
    again, before = (
        one.one("gain", place(result, "test", 100), method="naive-kd", against="plain")
        for one in (gather_study(result.folder), result)
    )
    assert again.p_item == before.p_item
    arrays["item_ids/q2a"] = np.array([f"other-{index}" for index in range(NUM_ITEMS)])
    arrays["item_swapped_ids/q2a"] = arrays["item_ids/q2a"]
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="different items"):
        gather_study(result.folder)


@pytest.mark.parametrize("name", ["result.json", "evaluation/test.json", "evaluation/test.npz", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str) -> None:
    result = run_trial(tmp_path, num_seeds=1)
    path = result.runs / result.cells["run"][0] / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError) as caught:
        gather_study(result.folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '{"before": {',
        "[]",
        '{"before": {"minilm-l6": {"words": null}}}',
        '{"before": {"t": {"words": {"share": 1}}}}',
    ],
)
def test_a_damaged_readout_is_named_and_a_missing_one_is_left_out(tmp_path: Path, content: str) -> None:
    result = run_trial(tmp_path, num_seeds=2, shots="[100]")
    (cell,) = rows_of(result.cells, method="advl", seed=0)
    path = result.runs / cell.run / "readout.json"
    path.unlink()
    assert {item.seed for item in rows_of(gather_study(result.folder).readouts, method="advl")} == {1}
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        gather_study(result.folder)
    assert str(path) in str(caught.value)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no study"):
        gather_study(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"study": {}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study\.json"):
        gather_study(tmp_path)


def test_histograms_of_unequal_bins_pool_without_loss() -> None:
    edges, shares, mean, count = pool_histograms(
        [WeightBins(bin_width=0.1, counts=(4,) * 10), WeightBins(bin_width=0.2, counts=(6,) * 10)]
    )
    assert count == 100
    assert sum(shares) == pytest.approx(1)
    assert edges[-1] == pytest.approx(2.0)
    assert sum(shares[:10]) == pytest.approx((40 + 30) / 100)
    assert mean == pytest.approx((40 * 0.5 + 60 * 1.0) / 100)


def test_command_of_a_cell_parses_back_to_its_configuration(result: StudyResult) -> None:
    plan, _ = read_study_folder(result.folder)
    parsed: list[FinetuneConfig] = []

    @config_command(FinetuneConfig, "finetune")
    def finetune(config: FinetuneConfig) -> Iterator[None]:
        parsed.append(config)
        yield None

    for cell in plan.cells[:8]:
        finetune.main(shlex.split(finetune_command(cell.finetune))[2:], standalone_mode=False)
        assert parsed.pop() == cell.finetune


def test_scores_on_a_test_set_that_was_rebuilt_are_not_compared(tmp_path: Path) -> None:
    result = run_trial(tmp_path, num_seeds=1)
    for number, name in enumerate(result.cells["run"]):
        path = result.runs / name / "evaluation" / "test.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["content_digest"] = "new" if number == 3 else "old"
        path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="different contents of test") as refusal:
        gather_study(result.folder)
    assert result.cells["run"][3] in refusal.value.where


def test_a_study_keeps_the_recipe_that_its_cells_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text("learning_rate = 3e-4\n", encoding="utf-8")
    config = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=tmp_path / "study", caches=tmp_path / "caches")

    def again() -> StudyResult:
        return run_trial(tmp_path, num_seeds=1, extra="[training]\nrecipe = 'mine.toml'\n")

    first = again()
    plan, _ = read_study_folder(first.folder)
    assert {Path(cell.finetune.optimisation.recipe).read_text(encoding="utf-8") for cell in plan.cells} == {
        "learning_rate = 3e-4\n"
    }
    recipe.unlink()
    for other in (gather_study(first.folder), again()):
        assert other.numbers.equals(first.numbers)
        assert other.cells.equals(first.cells)
    assert forecast_study(config).num_left == 0
    moved = tmp_path / "elsewhere" / "study"
    shutil.copytree(first.folder, moved)
    shutil.copytree(first.runs / "cells", moved.parent / "cells")
    monkeypatch.chdir(moved)
    assert gather_study(moved).num_finished == first.num_finished == len(first.cells)
    monkeypatch.chdir(tmp_path)
    recipe.write_text("learning_rate = 4e-4\n", encoding="utf-8")
    assert not set(again().cells["cell"]) & set(first.cells["cell"])


def test_a_probe_that_is_added_scores_the_first_test_set_again(tmp_path: Path) -> None:
    scored: list[str] = []

    def execute(cell: Cell) -> None:
        scored.extend(missing_test_sets(cell))
        synthetic_runs.execute(cell)

    def study(extra: str) -> list[str]:
        scored.clear()
        run_trial(tmp_path, num_seeds=1, executor=execute, extra=extra, methods='["plain"]', shots="[100]")
        return list(scored)

    assert study("[evaluation]\nprobe = ['swapped']\n") == ["test", "test-shift"]
    assert study("[evaluation]\nprobe = ['swapped']\n") == []
    assert study("[evaluation]\nprobe = ['swapped', 'blanked']\n") == ["test"]
    assert study("[evaluation]\nprobe = ['none']\n") == []


def cells_of(folder: Path) -> dict[tuple[str, int], Cell]:
    """Return the cells of 100 shots, by method and seed."""
    study = read_study(write_study_file(folder))
    return {(cell.method, cell.seed): cell for cell in build_plan(study, cells=folder).cells if cell.shots == 100}


def loose_run(folder: Path, cell: Cell, **options: Any) -> Path:
    """Write the run of a cell beside others, with other options, as if no study had asked for it."""
    teachers = options.pop("teachers", cell.teachers)
    finetune = with_options(cell.finetune, output=folder, **options)
    moved = replace(cell, teachers=teachers, finetune=finetune)
    synthetic_runs.execute(moved)
    (folder / "run.json").write_text('{"options": {}}', encoding="utf-8")
    return folder


def test_runs_of_other_options_or_teachers_are_rows_of_their_own(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
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
    assert {share.against for share in result.find("text share")} == {"plain, hide_picture True"}


def test_runs_of_several_folders_are_compared(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    loose_run(tmp_path / "mine" / "run", cells["plain", 0])
    loose_run(tmp_path / "yours" / "run", cells["advl", 0])
    result = gather_runs(tmp_path / "mine" / "run", tmp_path / "yours")
    assert result.folder == tmp_path
    assert list(result.cells["cell"]) == ["mine/run", "yours/run"]
    assert result.num_finished == 2
    assert list(gather_runs(tmp_path / "mine" / "run").cells["cell"]) == ["run"]


def test_a_control_among_runs_is_called_one_and_is_never_what_is_judged(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
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
        "ADVL, random teacher 1": "control",
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
        ({"p": ("plain", {})}, "plain", "advl"),
    ],
)
def test_which_rows_of_a_folder_of_runs_are_judged(
    rows: dict[str, tuple[str, dict[str, Any]]], baseline: str, focus: str, tmp_path: Path
) -> None:
    cell = cells_of(tmp_path)["advl", 0]
    for name, (method, options) in rows.items():
        of_method = replace(cell, method=method)
        loose_run(tmp_path / "runs" / name, of_method, **{"method": method, **options})
    found = gather_runs(tmp_path / "runs").study
    assert (found.baseline, found.focus) == (baseline, focus)


def test_a_run_of_version_02_is_read_unless_it_used_an_option_that_is_gone(tmp_path: Path) -> None:
    cell = cells_of(tmp_path)["advl", 0]
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


def test_runs_that_followed_other_features_are_no_seeds_of_one_row(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    for seed in (0, 1):
        run = loose_run(tmp_path / "runs" / f"advl-{seed}", cells["advl", seed])
    assert len(set(gather_runs(tmp_path / "runs").cells["method"])) == 1
    caches = json.loads((run / "caches.json").read_text())
    caches[0]["identity"]["teacher"]["image"] = {"parameters": "others"}
    (run / "caches.json").write_text(json.dumps(caches))
    names = set(gather_runs(tmp_path / "runs").cells["method"])
    assert len(names) == 2
    assert all("features" in name for name in names)


def test_a_run_that_was_scored_on_data_of_other_tasks_is_reported(tmp_path: Path) -> None:
    cell = cells_of(tmp_path)["plain", 0]
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


def test_answers_in_words_are_as_sure_as_they_are_likely() -> None:
    scores = np.log(np.array([[0.9, 0.05], [0.2, 0.6]]))
    assert top_confidence(scores, kind="likelihood") == pytest.approx([0.9, 0.6])
    assert top_confidence(scores, kind="compete") == pytest.approx([0.9 / 0.95, 0.75])
    assert top_confidence(np.zeros((1, 2)), kind="independent") == pytest.approx([0.5])
