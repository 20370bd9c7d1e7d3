"""What a GPU would not forgive, shown without one: tensors of two devices, a host that waits, memory, many kernels.

Runs go on a device that poses as `cuda:0` (`tests/support/posing.py`), one of them for every student: real pictures,
both caches, a run folder, and a student that is a plain one again. What only a GPU can show comes last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from posing import Watch, posing
from run_logs import metrics
from small_corpus import train

from advl_data.scenes.config import PretrainConfig
from advl_data.scenes.pretrain import run_pretrain
from advl_pipeline.evaluation.config import EvaluateConfig, PredictConfig
from advl_pipeline.evaluation.predict import load_finished
from advl_pipeline.evaluation.predict_files import run_predict
from advl_pipeline.evaluation.prepare import prepare_scoring
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.runs import names
from advl_pipeline.students import efficientnet_minilm
from advl_pipeline.students.frozen_towers import TowerStudent
from advl_pipeline.students.registry import build_student, student_names
from advl_pipeline.training import batches, loop
from advl_pipeline.training import run as run_module
from advl_pipeline.training.batches import Sent
from advl_pipeline.training.landmarks import readout
from advl_pipeline.training.process_group import GradientSum, start_processes
from advl_pipeline.training.step_log import StepNumbers

TINY = [name for name in student_names() if name.endswith(("-tiny", "-small"))]

MOST_WAITS = 3
"""Times that the host may wait for the device in a step: forward, backward, optimiser and log together."""

MOST_OPERATIONS = 60
"""Kernels of an optimiser step."""

DOUBLES: frozenset[str] = frozenset()
"""Who may use 64 bits on the device: nobody, since there are devices without."""


@dataclass
class Taken:
    """What was taken down of a run: the waits of each step, by stage, and the operations of each optimiser step."""

    waits: dict[str, list[Counter[str]]] = field(default_factory=dict)
    num_operations: list[int] = field(default_factory=list)

    def too_many(self) -> list[str]:
        """Return who waited in steps of more than `MOST_WAITS`."""
        steps = [waits for of_stage in self.waits.values() for waits in of_stage]
        return [f"{number} x {who}" for waits in steps if waits.total() > MOST_WAITS for who, number in waits.items()]


@contextmanager
def a_run_is_watched(watch: Watch) -> Iterator[Taken]:
    """Take down what steps cost that are followed by another one: the last of a stage writes a checkpoint."""
    taken = Taken()
    step, finish, send = loop.OptimiserSteps.take, GradientSum.finish, StepNumbers.send
    began: list[str] = []

    def cut() -> None:
        if began:
            taken.waits.setdefault(began.pop(), []).append(Counter(watch.waits))

    def watched_step(*args: Any) -> Any:
        stage = args[0].stage
        if began and began[0] != stage:
            began.clear()
        cut()
        watch.clear()
        began.append(stage)
        return step(*args)

    def watched_finish(*args: Any) -> bool:
        stops = finish(*args)
        watch.num_operations = 0
        return stops

    def watched_send(*args: Any) -> None:
        taken.num_operations.append(watch.num_operations)
        send(*args)

    with (
        mock.patch.object(loop.OptimiserSteps, "take", watched_step),
        mock.patch.object(GradientSum, "finish", watched_finish),
        mock.patch.object(StepNumbers, "send", watched_send),
        mock.patch.object(run_module, "start_processes", lambda _, precision: start_processes("cpu", precision)),
        # Two questions a readout: three of all questions would be two fifths of a run here.
        mock.patch.object(readout, "MAX_TEXTS", 8),
        # Batches wait on the host for the thread whose device is posed.
        mock.patch.object(batches, "in_pinned_memory", lambda batch: batch),
        # On a CPU alone, which the device still is.
        mock.patch.object(TowerStudent, "keeps_states", return_value=False),
        mock.patch.object(batches, "send_ahead", _waiting),
        mock.patch.object(loop, "received", lambda sent, device: [batch.to(device) for batch in sent[0]]),
    ):
        yield taken


def _waiting(steps: Iterable[Any], _: torch.device) -> Iterator[Sent]:
    for step in steps:
        yield list(step), None


def small(corpus: Any, output: Path, **changes: Any) -> Any:
    """Return a run of two adapt steps and three others, of which the third reads what the second logged."""
    steps = {"num_steps": 3, "adapt_steps": 2, "batch_size": 2, "num_workers": 1, "confidence": "none"}
    return corpus.config(output, **{"shots": 2, **steps, **changes})


def require_frugal(taken: Taken, watch: Watch) -> None:
    assert len(taken.waits["finetune"]) == 2
    assert not taken.too_many()
    assert not set(watch.doubles) - DOUBLES
    # The first step of a stage also makes the optimiser's state.
    assert max(taken.num_operations[-2:]) <= MOST_OPERATIONS


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_method_trains_every_student_from_a_host_that_hardly_waits(
    name: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At inference it is a plain student: the same outputs, with the teachers gone."""
    run = tmp_path / "run"
    # Six equal layers of a frozen tower wait as one does.
    monkeypatch.setitem(efficientnet_minilm.TEXT_TOWER, "num_hidden_layers", 1)
    with posing() as watch, a_run_is_watched(watch) as taken:
        result = train(small(small_corpus, run, student=name, task=(), confidence="probe"))
    require_frugal(taken, watch)
    assert result.summary.status == "done"
    logged = metrics(run)
    assert {entry["phase"] for entry in logged} == {"adapt", "finetune"}
    assert all(key in logged[-1] for key in ("raw/task", "raw/vision", "raw/text"))
    (run / "caches.json").unlink()  # Where the teachers' features are is not asked after training.
    trained, plain = load_finished(run).student, build_student(name).eval()
    plain.load_state_dict(trained.state_dict())
    batch = plain.collate(small_corpus.examples("test", number=2))
    with torch.no_grad():
        assert torch.equal(trained.encode(batch).pooled_NP, plain.encode(batch).pooled_NP)


@pytest.mark.slow
def test_a_run_that_has_only_its_files_to_write_is_on_one_device(small_corpus: Any, tmp_path: Path) -> None:
    run = small(small_corpus, tmp_path / "run", student="uniter-tiny", distance="mse")
    with posing() as watch, a_run_is_watched(watch):
        with (
            mock.patch.object(run_module, "save_student", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            train(run)
        train(run)
    assert (tmp_path / "run" / names.SELECTED_WORDS).exists()


VARIANTS: dict[str, dict[str, Any]] = {
    "landmarks, answers and confidences": {
        "student": "scenes-small",
        "confidence": "bridge",
        "answer_weight": 1.0,
        "shots": None,
    },
    "contrast": {"adapt_objective": "contrastive", "weight_shuffle": True, "confidence": "probe"},
    "words that the student looks at": {"selection": "adaptive", "distill_layer": "fused"},
    "words that are drawn": {"selection": "random", "method": "naive-kd"},
    "coordinates": {"distance": "mse", "method": "naive-kd"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_learn_from_a_teacher_hardly_waits(
    variant: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    changes = {"student": "uniter-tiny", "batch_size": 4, **VARIANTS[variant]}
    if changes["student"] == "scenes-small":
        changes["known_words"] = known
    with posing() as watch, a_run_is_watched(watch) as taken:
        train(small(small_corpus, tmp_path / "run", **changes))
    require_frugal(taken, watch)


def test_pretraining_stays_on_one_device(small_corpus: Any, tmp_path: Path) -> None:
    short = {"warmup_steps": 1, "joint_steps": 1, "batch_size": 4, "device": "cuda:0"}
    with posing() as watch:
        run_pretrain(PretrainConfig(data_root=small_corpus.data_root, output=tmp_path, **short))
    assert not set(watch.doubles) - DOUBLES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniter-tiny", "qwen3-vl-tiny"])
def test_evaluating_and_predicting_stay_on_one_device(name: str, small_corpus: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    is_vqa = name != "uniter-tiny"
    task = {"dataset": "scenes-vqa" if is_vqa else "scenes-snli-ve", "task": ()}
    train(small(small_corpus, run, student=name, method="plain", cache=(), num_steps=1, **task))
    asked = {"run": run, "data_root": small_corpus.data_root, "device": "cuda:0"}
    with posing() as watch:
        run_evaluate(prepare_scoring(EvaluateConfig(on=("val",), probe=("blanked", "removed"), **asked)))
        output = tmp_path / ("p.json" if is_vqa else "p.csv")
        run_predict(prepare_scoring(PredictConfig(on="val", output=output, generate=is_vqa, **asked)))
    assert not set(watch.doubles) - DOUBLES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU of NVIDIA")
@pytest.mark.parametrize("name", ["scenes-small", "uniter-tiny", "vilt-tiny", "smolvlm-tiny"])
def test_a_step_waits_for_nothing_and_has_the_losses_of_a_cpu(
    name: str, small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = {"student": name, "mixed_precision": "no", "student_option": ("dropout=0.0",), "batch_size": 4}
    small_corpus.run(tmp_path / "cpu", device="cpu", **exact)
    step = loop.OptimiserSteps.take

    def strict(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.OptimiserSteps, "take", strict)
    monkeypatch.setattr(run_module, "allow_tf32", lambda _: False)
    small_corpus.run(tmp_path / "gpu", device="cuda", **exact)
    there, here = metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu")
    assert len(there) == len(here)
    for record, expected in zip(there, here, strict=True):
        losses = {key: value for key, value in expected.items() if key.startswith(("raw/", "weighted/"))}
        assert {key: record[key] for key in losses} == pytest.approx(losses, rel=1e-3, abs=1e-4)
