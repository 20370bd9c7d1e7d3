"""The student's confidence c_S in the labelled items as step 2 begins, which weighs them from then on.

The current c_S is lowest while a fresh head knows nothing, so that c_T / c_S is largest then. After some epochs it
says that an item was learned by heart. As step 2 begins, no label of the item has been seen, so that c_S says what
the student knew. The heads behind c_T never saw the item either.
Shapes: M labelled items, B examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import nn

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.records import head_name
from advl_pipeline.training.batches import collate_batch
from advl_pipeline.training.targets import score_task, student_confidence

if TYPE_CHECKING:
    from advl_pipeline.training.finetune_model import FinetuneModel

BATCH_SIZE = 32

_MISSING = -1.0


class StudentConfidence(nn.Module):
    """c_S of the labelled items; a buffer, so that a checkpoint holds it."""

    value_M: torch.Tensor

    def __init__(self, example_ids: Sequence[str]) -> None:
        super().__init__()
        self._row = {name: row for row, name in enumerate(example_ids)}
        self.register_buffer("value_M", torch.full((len(example_ids),), _MISSING))

    @property
    def is_measured(self) -> bool:
        """Whether every item has a value."""
        return bool((self.value_M != _MISSING).all())

    def begin(self, value_M: torch.Tensor) -> None:
        """Take the values that step 2 begins with, in the order of the ids."""
        self.value_M.copy_(value_M)

    def look_up(self, example_ids: Sequence[str]) -> torch.Tensor:
        """Return (B,) the confidences that weigh a visit."""
        rows_B = torch.tensor([self._row[name] for name in example_ids], device=self.value_M.device)
        return self.value_M[rows_B]


@torch.no_grad()
def measure_student_confidence(
    model: FinetuneModel, dataset: Dataset, positions: Sequence[int], *, device: torch.device
) -> torch.Tensor:
    """Return (M,) float32: the probability that the student, without dropout, gives to each truth.

    Args:
        model: as it is; left in the mode that it was in.
        positions: of the M items.
    """
    was_training = model.training
    model.eval()
    found_M = torch.empty(len(positions))
    tasks = [dataset[position].task for position in positions]
    for _, rows_of_task in groupby(sorted(range(len(positions)), key=tasks.__getitem__), key=tasks.__getitem__):
        rows = list(rows_of_task)
        for first in range(0, len(rows), BATCH_SIZE):
            chosen = rows[first : first + BATCH_SIZE]
            examples = [dataset[positions[row]] for row in chosen]
            batch = collate_batch(examples, dataset, model.student, None, labelled=True).to(device)
            output = model.encode(batch.student, need_relevance=False)
            head = model.heads[head_name(batch.task)]
            scored = score_task(model.task_loss, head, output, batch.student.num_candidates, batch.targets)
            confidence_B = student_confidence(model.task_loss, scored.logits, batch.targets)
            found_M[torch.tensor(chosen)] = confidence_B.float().cpu()
    model.train(was_training)
    return found_M
