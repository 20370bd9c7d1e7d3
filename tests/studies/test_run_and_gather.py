"""Running, resuming, sharing and gathering a grid, with an executor that writes real run folders."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_runs
from commands import printed
from own_rows import write_json_lines
from PIL import Image
from run_logs import forget_digests
from scipy import stats
from synthetic_runs import NUM_ITEMS, TINY, made_up_result, run_trial, write_study_file

from advl_cli.flags import config_command
from advl_pipeline.base.errors import ConfigError, DatasetError, IdentityMismatch
from advl_pipeline.reporting.tables import wide_tables
from advl_pipeline.runs.results import say_on_trust
from advl_pipeline.studies.config import StudyRunConfig
from advl_pipeline.studies.execute import execute_run
from advl_pipeline.studies.forecast import forecast_study
from advl_pipeline.studies.gather import gather_study
from advl_pipeline.studies.numbers import Gain
from advl_pipeline.studies.plan import PlannedRun, digest_dataset, read_study_folder, studies_of
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.run import run_study
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.facts import finetune_command


def test_rows_that_runs_leave_out_are_left_out_of_what_a_study_digests(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    row = {"question": "What is it?", "choices": ["a cat", "a dog"], "label": 0, "split": "train"}
    rows = [row | {"id": str(number), "image": "there.png"} for number in range(20)]
    data = write_json_lines(tmp_path / "mine.jsonl", [*rows, row | {"id": "20", "image": "gone.png"}])
    config = FinetuneConfig(dataset=str(data), output=tmp_path)
    with pytest.raises(DatasetError):
        digest_dataset(config)
    assert digest_dataset(replace(config, on_error="skip"))


def gain_on_test(result: StudyResult) -> Gain:
    """Return the gain of ADVL over the plain student at 100 shots."""
    place = next(item for item in result.numbers.places() if (item.test_set, item.size) == ("test", 100))
    gain = result.numbers.gain(place, "advl", "plain")
    assert gain is not None
    return gain


def stored_items(result: StudyResult, method: str, test_set: str, shots: int) -> np.ndarray:
    rows = []
    for run in (run for run in result.runs if (run.method, run.shots) == (method, str(shots))):
        with np.load(result.outer / run.run / "evaluation" / f"{test_set}.npz") as arrays:
            rows.append(arrays["item/q2a"].astype(np.float64))
    return np.stack(rows)


def test_contrasts_are_paired_by_seed_and_by_item(result: StudyResult) -> None:
    gain = gain_on_test(result)
    advl, plain = (stored_items(result, method, "test", 100) for method in ("advl", "plain"))
    assert gain.estimate.mean == pytest.approx(100 * (advl - plain).mean())
    assert gain.compared.p_seed == pytest.approx(stats.ttest_rel(advl.mean(axis=1), plain.mean(axis=1)).pvalue)
    assert gain.family_size == 12
    assert gain.p_seed_holm is not None
    assert gain.p_seed_holm >= gain.compared.p_seed


def test_as_many_shots_as_there_are_questions_stand_beside_all_of_them() -> None:
    result = made_up_result(
        {"methods": ["plain", "advl"], "shots": ["full", 1600, 100], "test_sets": ["test"], "seeds": [0, 1]}
    )
    (trend,) = result.numbers.trends
    assert [gain.place.size for gain in trend.gains] == [100, 1600, 1600]
    assert trend.slope is not None
    assert len(trend.slope.estimate.per_seed) == 2
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
    assert {(run.seed, run.shots) for run in first.runs if run.state == "finished"} == {(0, "100")}
    assert {run.seed for run in first.runs} == {0, 1}
    whole = run_trial(tmp_path, **lines)
    assert first.num_finished * 2 * 2 == whole.num_finished == len(whole.runs)
    stamps = {path: path.stat().st_mtime_ns for path in first.outer.rglob("result.json")}
    assert run_trial(tmp_path, executor=refuse, prepare=refuse, **lines).num_finished == len(whole.runs)
    assert stamps == {path: path.stat().st_mtime_ns for path in first.outer.rglob("result.json")}


def test_a_run_that_another_study_has_finished_is_there_already(tmp_path: Path) -> None:
    lines = {**TINY, "test_sets": '["test", "test-shift"]'}
    first = run_trial(tmp_path, **lines)
    run_folders = sorted(path.parent for path in (tmp_path / "cells").glob("*/result.json"))
    (tmp_path / "other").mkdir()
    # The folder remembers the content of the data, which are not at hand here.
    shutil.copy(first.folder / "study.json", tmp_path / "other")
    config = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=tmp_path / "other", caches=tmp_path / "caches")
    shutil.rmtree(tmp_path / "caches")
    forecast = forecast_study(config)
    assert (forecast.num_left, forecast.caches, forecast.bytes_left, forecast.seconds_left) == (0, [], 0, 0)
    # Of these two, one was not trained to its end, and one not scored on every set.
    (run_folders[0] / "result.json").unlink()
    (run_folders[1] / "evaluation" / "test-shift.json").unlink()
    ran: list[str] = []

    def record(planned: PlannedRun) -> None:
        ran.append(planned.run_id)
        synthetic_runs.execute(planned)

    assert forecast_study(config).num_left == 2
    second = run_trial(tmp_path, output="other", executor=record, **lines)
    assert sorted(ran) == sorted(path.name for path in run_folders[:2])
    assert second.num_finished == len(run_folders) == 4
    assert second.numbers == first.numbers
    assert gather_study(first.folder).numbers == first.numbers
    assert not list((tmp_path / "other").rglob("result.json"))
    # Another seed and another test set add what is missing.
    ran.clear()
    more = run_trial(tmp_path, num_seeds=3, executor=record, **lines)
    assert len(ran) == len(more.runs) - len(first.runs) == 2


def test_a_study_folder_gathers_elsewhere(tmp_path: Path, result: StudyResult) -> None:
    shutil.copytree(result.outer / "cells", tmp_path / "cells")
    folder = shutil.copytree(result.folder, tmp_path / "moved")
    # Earlier versions wrote what follows from the tasks, and which runs are controls.
    record = json.loads((folder / "study.json").read_text())
    record["study"]["settings"][0]["metrics"] = ["q2a"]
    for run in record["runs"]:
        run["is_control"] = True
    (folder / "study.json").write_text(json.dumps(record))
    moved = gather_study(folder)
    assert moved.numbers == result.numbers


def test_scores_of_other_items_are_not_paired(tmp_path: Path) -> None:
    result = run_trial(tmp_path, num_seeds=1, **TINY)
    path = result.outer / result.runs[1].run / "evaluation" / "test.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    shuffled = np.random.default_rng(0).permutation(NUM_ITEMS)
    for name in ("item/q2a", "item_ids/q2a", "item_swapped/q2a", "item_swapped_ids/q2a"):
        arrays[name] = arrays[name][shuffled]
    np.savez(path, **arrays)
    again, before = (gain_on_test(one) for one in (gather_study(result.folder), result))
    assert again.compared.p_item == before.compared.p_item
    arrays["item_ids/q2a"] = np.array([f"other-{index}" for index in range(NUM_ITEMS)])
    arrays["item_swapped_ids/q2a"] = arrays["item_ids/q2a"]
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match="different items"):
        gather_study(result.folder)


def exchange(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def link(first: Path, second: Path) -> None:
    shutil.rmtree(first)
    first.symlink_to(second)


EXCHANGES: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], None], int, str]] = {
    "folders": (("",), exchange, 3, "with other settings"),
    "a link": (("",), link, 3, "with other settings"),
    "evaluations": (("evaluation",), exchange, 3, "evaluation is of another run"),
    "documents": (("evaluation/test.json",), exchange, 3, "evaluation is of another run"),
    "items": (("evaluation/test.npz",), exchange, 2, "the mean of item/q2a is"),
    "all but options": (("evaluation", "result.json", "run.json"), exchange, 3, "other content of config.json"),
    "all but the record": (("evaluation", "result.json", "config.json"), exchange, 3, "other content of run.json"),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_study_believes_no_run_and_no_score_of_another_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_trial(tmp_path, num_seeds=1, **TINY)
    runs = [result.outer / run.run for run in result.runs]
    places, act, code, words = EXCHANGES[name]
    for inside in places:
        act(*(run / inside for run in runs))
    _, message = printed(capsys, "report", result.folder, code=code)
    assert words in message
    # Scores in other conditions would add numbers to the report.
    assert "advl evaluate" not in message or "--on test --probe blanked --probe removed --probe swapped" in message
    assert not list(tmp_path.rglob("report.*"))


def test_runs_and_scores_of_an_earlier_version_are_read_on_trust_which_is_said_and_exchanged_folders_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_trial(tmp_path, num_seeds=1, **TINY)
    runs = [result.outer / run.run for run in result.runs]
    for run in runs:
        forget_digests(run)
        for file, key in ((run / "evaluation" / "test.json", "run_digest"), (run / "run.json", "dataset")):
            document = json.loads(file.read_text())
            del document[key]
            file.write_text(json.dumps(document))
    say_on_trust.cache_clear()
    _, message = printed(capsys, "report", result.folder, "--to", "json")
    assert message.count("taken on trust") == 3
    assert gather_study(result.folder).numbers == result.numbers
    exchange(*runs)
    _, message = printed(capsys, "report", result.folder, code=3)
    assert f"rm -r {runs[0]} && advl study" in message


def test_a_file_in_the_place_of_a_run_is_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_trial(tmp_path, num_seeds=1, **TINY)
    run = first.outer / first.runs[0].run
    shutil.rmtree(run)
    run.write_text("notes")
    with pytest.raises(ConfigError, match="cannot be created") as refusal:
        run_trial(tmp_path, executor=refuse, num_seeds=1, **TINY)
    assert refusal.value.where == str(run)
    assert gather_study(first.folder).num_finished == 1


def test_a_damaged_file_of_a_run_is_named_and_a_missing_readout_is_left_out(tmp_path: Path) -> None:
    result = run_trial(tmp_path, **TINY)
    damaged = next(run for run in result.runs if (run.method, run.seed) == ("advl", 0)).run
    costs = json.loads((result.outer / damaged / "result.json").read_text()) | {"peak_memory_bytes": "much"}
    readouts = ('{"before": {', "[]", '{"before": {"minilm-l6": {"words": null}}}', '{"before": {"t": {"words": 1}}}')
    damages = [
        ("result.json", "{"),
        ("result.json", "{}"),
        ("result.json", '{"num_labelled": 8}'),
        ("result.json", json.dumps(costs)),
        ("config.json", "{}"),
        ("caches.json", "[{}]"),
        ("evaluation/test.json", "{}"),
        ("evaluation/test.json", "{"),
        ("evaluation/test.npz", "PK"),
    ]
    for name, content in (*damages, *(("readout.json", content) for content in readouts)):
        path = result.outer / damaged / name
        before = path.read_bytes()
        path.write_text(content, encoding="utf-8")
        with pytest.raises((ConfigError, IdentityMismatch)) as caught:
            gather_study(result.folder)
        assert str(path) in str(caught.value)
        path.write_bytes(before)
    (result.outer / damaged / "readout.json").unlink()
    assert {row.seed for row in gather_study(result.folder).readouts if row.method == "advl"} == {1}


def test_a_folder_without_a_study_or_with_one_of_an_earlier_version_is_refused_until_it_is_run_again(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="holds no study"):
        gather_study(tmp_path)
    first = run_trial(tmp_path, num_seeds=1, **TINY)
    file = first.folder / "study.json"
    record = json.loads(file.read_text())
    # What is a run today was once stored as a cell, and before that only by its title.
    runs = record.pop("runs")
    file.write_text(json.dumps(record | {"cells": [{"cell_id": run.pop("run_id")} | run for run in runs]}))
    assert gather_study(first.folder).runs == first.runs
    assert [folder for folder, _ in studies_of(first.outer / first.runs[0].run)] == [first.folder]
    file.write_text(json.dumps(record | {"cells": {run.run_id: "a title" for run in first.runs}}))
    with pytest.raises(ConfigError, match="of an earlier version") as refusal:
        gather_study(first.folder)
    assert refusal.value.where == str(file)
    # The folder still tells the content of data that are not at hand.
    asked = StudyRunConfig(study=str(tmp_path / "trial.toml"), output=first.folder, caches=tmp_path / "caches")
    assert forecast_study(asked).num_left == 0
    assert run_study(asked, execute=refuse, prepare=refuse).numbers == first.numbers
    assert gather_study(first.folder).num_finished == 2


def test_command_of_a_run_parses_back_to_its_configuration(result: StudyResult) -> None:
    parsed: list[FinetuneConfig] = []

    @config_command(FinetuneConfig, "finetune")
    def finetune(config: FinetuneConfig) -> Iterator[None]:
        parsed.append(config)
        yield None

    for planned in read_study_folder(result.folder).runs[:8]:
        finetune.main(shlex.split(finetune_command(planned.finetune))[2:], standalone_mode=False)
        assert parsed.pop() == planned.finetune


def test_scores_on_a_test_set_that_was_rebuilt_are_not_compared(tmp_path: Path) -> None:
    result = run_trial(tmp_path, **TINY)
    for number, trained in enumerate(result.runs):
        path = result.outer / trained.run / "evaluation" / "test.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["content_digest"] = "new" if number == 3 else "old"
        path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match="different contents of test") as refusal:
        gather_study(result.folder)
    assert result.runs[3].run in refusal.value.where


def test_runs_follow_the_recipe_of_their_study_and_are_gathered_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.toml"

    def with_rate(rate: str) -> StudyResult:
        recipe.write_text(f"learning_rate = {rate}\n", encoding="utf-8")
        extra = "[training]\nrecipe = 'mine.toml'\n"
        return run_trial(tmp_path, num_seeds=1, shots="[100]", test_sets='["test"]', extra=extra)

    first, other = with_rate("3e-4"), with_rate("4e-4")
    assert not {run.run_id for run in other.runs} & {run.run_id for run in first.runs}
    recipe.unlink()
    assert gather_study(other.folder).runs == other.runs
    planned = replace(read_study_folder(other.folder).runs[0], test_sets=())
    (planned.run / "result.json").unlink()
    with pytest.raises(ConfigError, match="recipe has changed"):
        execute_run(planned)


def test_a_finished_study_prints_verdicts_and_table_and_runs_nothing(
    result: StudyResult, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = printed(capsys, "study", result.folder.parent / "trial.toml", "--output", result.folder)
    assert "C2  UNDECIDED AT THIS SIZE" in out
    assert "ADVL, shuffled teacher" in out
    assert f"next: advl report {result.folder}" in out


def test_dry_run_prints_the_grid_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also without its dataset, which the study itself says is missing."""
    folders = ("--output", tmp_path / "study", "--caches", tmp_path / "caches", "--data-root", tmp_path / "nowhere")
    words = ("study", write_study_file(tmp_path, num_seeds=2), *folders)
    out, _ = printed(capsys, *words, "--dry-run")
    assert "16 runs" in out
    assert f"cache to extract: {tmp_path}/caches/minilm-l6/scenes-vcr/train" in out
    assert "dataset missing:" in out
    out, _ = printed(capsys, *words, "--dry-run", "--json")
    assert json.loads(out)["num_left"] == 16
    _, message = printed(capsys, *words, code=5)
    assert "advl scenes build" in message
    assert not (tmp_path / "study").exists()
