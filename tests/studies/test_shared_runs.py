"""Runs that two studies share: neither takes from the other what it asks for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import synthetic_runs
from synthetic_runs import GAINS, NUM_ITEMS, write_study_file

from advl_pipeline.base.errors import Advice, WeightsUnavailable
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import question_rank
from advl_pipeline.runs.names import is_finished
from advl_pipeline.runs.results import read_json
from advl_pipeline.studies.config import StudyRunConfig, read_study
from advl_pipeline.studies.plan import PlannedRun, build_plan
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.run import run_study
from advl_pipeline.training.config import FinetuneConfig


class Machine:
    """Trains and scores one run as the two phases would, and counts how often."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.weights = "model.safetensors"
        self.trained = 0
        self.scored: list[tuple[tuple[str, ...], int | None, tuple[str, ...]]] = []
        self.modes: list[str | None] = []
        monkeypatch.setattr("advl_pipeline.training.prepare.prepare_finetune", self.prepare_finetune)
        monkeypatch.setattr("advl_pipeline.evaluation.prepare.prepare_scoring", self.prepare_scoring)
        monkeypatch.setattr("advl_pipeline.training.run.run_finetune", self.finetune)
        monkeypatch.setattr("advl_pipeline.evaluation.runner.run_evaluate", self.evaluate)

    def study(self, name: str, extra: str, test_sets: str = '["test"]', **more: str) -> StudyResult:
        lines = {"name": f'"{name}"', "methods": '["plain"]', "shots": "[100]", "test_sets": test_sets}
        file = write_study_file(self.folder, num_seeds=1, extra=extra, **lines, **more)
        self.plan = read_study(file)
        asked = StudyRunConfig(study=str(file), output=self.folder / name, caches=self.folder / "caches")
        return run_study(asked, digest=synthetic_runs.digest, prepare=synthetic_runs.prepare)

    def planned(self, run: Path) -> PlannedRun:
        (dataset,) = {setting.dataset for setting in self.plan.settings}
        digests = {f"{dataset}/train": f"content of {dataset}/train"}
        (planned,) = build_plan(self.plan, runs=run.parent, dataset_digests=digests).runs
        return planned

    def prepare_finetune(self, config: FinetuneConfig, *, scores_val: bool, may_idle: bool) -> FinetuneConfig:
        assert (scores_val, may_idle) == (False, True)
        return config

    def prepare_scoring(self, config: EvaluateConfig, *, may_idle: bool) -> EvaluateConfig:
        assert may_idle
        return config

    def finetune(self, config: FinetuneConfig) -> None:
        self.trained += 1
        planned = self.planned(config.output)
        planned.run.mkdir(parents=True, exist_ok=True)
        for name in (self.weights, "heads.safetensors", "student.json"):
            (planned.run / name).write_text("{}")
        synthetic_runs.train(planned)

    def evaluate(self, config: EvaluateConfig) -> None:
        assert is_finished(config.run)
        self.scored.append((config.on, config.num_questions, config.probe))
        self.modes.append(config.vqa_mode)
        for name in config.on:
            filed = name if config.vqa_mode in (None, "2021") else f"{name}@{config.vqa_mode}"
            synthetic_runs.evaluate(self.planned(config.run), filed, GAINS)
            file = config.run / "evaluation" / f"{filed}.json"
            document = read_json(file) | {"vqa_mode": config.vqa_mode or "2021"}
            if config.num_questions is not None:
                document["sample"] = {"asked": config.num_questions, "of_examples": NUM_ITEMS}
            conditions = synthetic_runs.item_scores(self.planned(config.run), ("vcr-q2a",), filed, GAINS)
            seen = {"accuracy": 100 * float(conditions["swapped"]["q2a"].mean()), "drop": 20.0}
            kinds = dict.fromkeys((kind for kind in config.probe if name in config.probe_on), seen)
            synthetic_runs.write_json(file, document | {"use_of_vision": {"q2a": kinds}})

    def has_student(self) -> bool:
        (file,) = (self.folder / "cells").glob("*/student.json")
        return all((file.parent / name).exists() for name in (self.weights, "heads.safetensors"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_student_that_another_study_keeps_stays(machine: Machine) -> None:
    machine.study("keeper", "")
    machine.study("sparer", "keep_weights = false\n", '["test", "test-shift"]')
    assert [on for on, *_ in machine.scored] == [("test",), ("test-shift",)]
    assert machine.trained == 1
    assert machine.has_student()


def test_a_trained_student_is_scored_and_not_trained_again(machine: Machine) -> None:
    keeper = machine.study("keeper", "")
    (keeper.outer / keeper.runs[0].run / "evaluation" / "test.json").unlink()
    machine.study("keeper", "")
    assert (machine.trained, len(machine.scored), machine.has_student()) == (1, 2, True)


def test_a_run_with_damaged_weights_is_trained_again_by_the_commands_that_are_advised(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = machine.study("keeper", "")
    run = keeper.outer / keeper.runs[0].run
    (run / "evaluation" / "test.json").unlink()

    def refuse(config: EvaluateConfig) -> None:
        raise WeightsUnavailable("The weights file is damaged.", where=str(config.run / machine.weights))

    with monkeypatch.context() as patch:
        patch.setattr("advl_pipeline.evaluation.runner.run_evaluate", refuse)
        with pytest.raises(WeightsUnavailable) as refusal:
            machine.study("keeper", "")
    advice = refusal.value.next_command
    assert isinstance(advice, Advice)
    assert advice.again == ()
    ((*_, folder),) = advice.commands
    shutil.rmtree(folder)
    assert machine.study("keeper", "").num_finished == 1
    assert machine.trained == 2


@pytest.mark.parametrize("weights", ["model.safetensors", "adapter_model.safetensors"])
def test_a_student_that_no_study_has_kept_is_trained_again_for_one_that_keeps_it(
    weights: str, machine: Machine
) -> None:
    machine.weights = weights
    machine.study("sparer", "keep_weights = false\n")
    assert not machine.has_student()
    machine.study("sparer", "keep_weights = false\n")
    assert machine.trained == 1
    machine.study("keeper", "")
    assert (machine.trained, machine.has_student()) == (2, True)
    # What it was scored by is there.
    assert len(machine.scored) == 1


def test_a_smaller_sample_is_read_from_a_larger_one_and_never_takes_its_place(machine: Machine) -> None:
    few = "[evaluation]\nnum_questions = 40\n"
    first = machine.study("few", few)
    whole = machine.study("whole", "")
    again = machine.study("few", few)
    assert [count for _, count, _ in machine.scored] == [40, None]
    assert first.numbers == again.numbers
    (of_few,), (of_whole,) = (one.numbers.accuracies for one in (again, whole))
    assert (of_few.num_items, of_whole.num_items) == (40, NUM_ITEMS)
    items = whole.items[whole.items["condition"] == ""].set_index("item")["score"]
    chosen = sorted(items.index, key=question_rank)[:40]
    assert of_few.estimate.mean == pytest.approx(100 * items[chosen].mean())


def test_what_another_study_has_asked_of_an_evaluation_is_asked_again(machine: Machine) -> None:
    machine.study("swaps", "[evaluation]\nprobe = ['swapped']\n")
    machine.study("blanks", "[evaluation]\nprobe = ['blanked']\nnum_questions = 40\n")
    machine.study("swaps", "[evaluation]\nprobe = ['swapped']\n")
    assert machine.scored == [(("test",), None, ("swapped",)), (("test",), None, ("swapped", "blanked"))]


def test_scores_by_another_evaluator_of_vqa_take_no_place(machine: Machine) -> None:
    lines = {"dataset": '"scenes-vqa"', "tasks": '["vqa"]'}
    usual = machine.study("usual", "", **lines)
    named = machine.study("named", "[evaluation]\nvqa-mode = '2021'\n", **lines)
    older = machine.study("older", "[evaluation]\nvqa-mode = '2017'\n", **lines)
    again = machine.study("usual", "", **lines)
    assert (machine.trained, machine.modes) == (1, [None, "2017"])
    assert usual.numbers == again.numbers
    assert usual.numbers == named.numbers
    (of_older,), (of_usual,) = (one.numbers.accuracies for one in (older, usual))
    assert of_older.estimate.mean != of_usual.estimate.mean
