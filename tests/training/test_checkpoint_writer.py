"""Checkpoints are written while the loop goes on: of the state as it was, one by one, and never given up unseen."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from run_logs import metrics

from advl_pipeline.base.errors import StorageError
from advl_pipeline.training import checkpoint, loop
from advl_pipeline.training.checkpoint import CheckpointWriter, load_checkpoint


class Gate:
    """Holds every write until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.steps: list[int] = []
        self.written: list[Any] = []
        write = checkpoint._write

        def held(path: Path, tensors: Any, *, step: int, phase: str) -> None:
            assert self.opened.wait(60)
            self.steps.append(step)
            self.written.append(tensors)
            write(path, tensors, step=step, phase=phase)

        monkeypatch.setattr(checkpoint, "_write", held)


def a_model() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def test_what_is_written_is_the_state_as_it_was_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, (model, optimizer) = Gate(monkeypatch), a_model()
    before = model.weight.detach().clone()
    with CheckpointWriter(tmp_path / "checkpoint") as writer:
        writer.save(model, optimizer, step=1, phase="adapt")
        with torch.no_grad():
            model.weight.add_(1.0)
        assert not (tmp_path / "checkpoint").exists()
        threading.Timer(0.2, gate.opened.set).start()
        writer.save(model, optimizer, step=2, phase="adapt")
        assert gate.steps[:1] == [1]
    assert gate.steps == [1, 2]
    assert torch.equal(gate.written[0]["model/weight"], before)
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept[0] == 2
    assert torch.equal(kept[2]["model/weight"], before + 1.0)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_write_that_failed_is_raised(saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(checkpoint, "_write", full)
    model, optimizer = a_model()

    def save() -> None:
        with CheckpointWriter(tmp_path / "checkpoint") as writer:
            for step in range(saves):
                writer.save(model, optimizer, step=step, phase="adapt")

    with pytest.raises(StorageError, match="full"):
        save()


def test_steps_go_on_while_a_checkpoint_is_written(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, taken = Gate(monkeypatch), list[bool]()
    take = loop.OptimiserSteps.take

    def watched(*arguments: Any, **options: Any) -> Any:
        taken.append(gate.opened.is_set())
        # Two steps after the checkpoint of the third.
        if len(taken) == 5:
            gate.opened.set()
        return take(*arguments, **options)

    monkeypatch.setattr(loop.OptimiserSteps, "take", watched)
    small_corpus.run(tmp_path / "run", method="plain", cache=(), num_steps=6, checkpoint_every=3)
    assert taken == [False] * 5 + [True]
    assert gate.steps == [3, 6]
    assert len(metrics(tmp_path / "run")) == 6
