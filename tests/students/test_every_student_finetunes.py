"""Every student goes through the method from end to end at a tiny size: real pictures, caches, a run folder.

At inference it is a plain student: the same outputs by the same operations, with the teachers gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_corpus import SmallCorpus
from torch.utils._python_dispatch import TorchDispatchMode

from advl_pipeline.evaluation.predict import load_finished
from advl_pipeline.students.interface import Student, StudentBatch
from advl_pipeline.students.registry import build_student, student_names
from advl_pipeline.training.recipes import choose_recipe

Operation = tuple[str, tuple[torch.Size, ...]]


class Operations(TorchDispatchMode):
    """Collects the operations of a pass with the shapes that they work on: its cost, without a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((str(func), tuple(value.shape for value in args if isinstance(value, torch.Tensor))))
        return func(*args, **(kwargs or {}))


def pass_with_operations(student: Student, batch: StudentBatch) -> tuple[torch.Tensor, list[Operation]]:
    with torch.no_grad(), Operations() as operations:
        pooled = student.encode(batch).pooled_NP
    return pooled, operations.seen


TINY = [name for name in student_names() if name.endswith(("-tiny", "-small"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_method_runs_on(name: str, small_corpus: SmallCorpus, tmp_path: Path) -> None:
    chosen = choose_recipe(name, "vcr", "auto")
    recipe = chosen.recipe
    result = small_corpus.run(
        tmp_path / "run",
        student=name,
        task=(),
        num_steps=2,
        adapt_steps=1,
        # Where its authors finetuned it on VCR, batches are theirs too.
        batch_size=2 if recipe is None else None,
    )
    assert result.summary["status"] == "done"
    written = json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))["settings"]
    lent = chosen.rates_of.optimiser if chosen.rates_of else "adamw"
    expected = ("softmax-choice", lent) if recipe is None else (recipe.loss, recipe.optimiser)
    assert (written["task_loss"]["value"], written["optimiser"]["value"]) == expected
    assert bool(written["adversarial"]["value"]) == (name == "villa-tiny")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    assert {entry["phase"] for entry in logged} == {"adapt", "finetune"}
    assert all(key in logged[-1] for key in ("raw/task", "raw/vision", "raw/text"))
    (tmp_path / "run" / "caches.json").unlink()  # Where the teachers' features are is not asked after training.
    trained, plain = load_finished(tmp_path / "run").student, build_student(name).eval()
    plain.load_state_dict(trained.state_dict())
    batch = plain.collate(small_corpus.examples("test", number=2))
    expected, work = pass_with_operations(plain, batch)
    actual, same_work = pass_with_operations(trained, batch)
    assert torch.equal(actual, expected)
    assert same_work == work
