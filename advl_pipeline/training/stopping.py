"""Scores during training, and early stopping: a run goes on until they fall, and keeps the weights from before.

The state is part of the checkpoint, so that a resumed run stops where an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import nn

from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.validation import Validation

PATIENCE: Final = 5
"""Number of low scores in a row after which a run ends."""

_KEPT = "kept/"
_STATE = "stopping/state"


AT_ONCE: Final = 64
"""Examples of a batch that is scored."""


@torch.no_grad()
def validation_scores(start: StudentAtStart, task_loss: TaskLoss, validation: Validation) -> dict[str, float]:
    """Return the mean loss and, if answers are compared, the accuracy, in [0, 1].

    Args:
        start: current student and heads; keeps its training or evaluation mode.
    """
    positions = validation.positions
    losses, right = 0.0, list[float]()
    for chosen, batch, scored in start.scored(task_loss, validation.dataset, positions, at_once=AT_ONCE):
        losses += len(chosen) * float(scored.loss)
        # For answers in words, only those that the loss requires are scored.
        if task_loss != "answer-lm" or batch.targets.label_B is not None:
            best_B, targets = scored.logits.argmax(1), batch.targets
            if targets.label_B is not None:
                right += (best_B == targets.label_B).tolist()
            elif targets.scores_BK is not None:
                right += targets.scores_BK.gather(1, best_B[:, None])[:, 0].tolist()
    scores = {"val/task": losses / len(positions)}
    return scores | ({"val/correct": float(np.mean(right))} if right else {})


class EarlyStopping:
    """The weights that a run keeps, by the score on `val`.

    They are the last whose accuracy is at most a standard error below the highest. The highest of many scores of a
    few hundred examples is partly luck, and later weights have seen a lower learning rate. Where answers are not
    compared, they are the last with the lowest loss.

    Args:
        model: its trained weights and buffers are kept.
        num_examples: number of examples that are scored.
    """

    def __init__(self, model: nn.Module, *, num_examples: int) -> None:
        frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
        self._names = [name for name in model.state_dict() if name not in frozen]
        self._num_examples = num_examples
        self._kept: dict[str, torch.Tensor] = {}
        self._lowest = -math.inf
        self._highest = -math.inf
        self.kept_step: int | None = None
        """The step whose weights are kept, None before the first scores."""
        self._num_low = 0

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return self._num_low >= PATIENCE

    def take(self, step: int, scores: Mapping[str, float], model: nn.Module) -> None:
        """Keep the weights after a step, unless its scores (`validation_scores`) are low."""
        right = scores.get("val/correct")
        score = -scores["val/task"] if right is None else right
        if score > self._highest:
            self._highest = score
            variance = 0.0 if right is None else right * (1 - right) / self._num_examples
            self._lowest = score - math.sqrt(variance)
        if score < self._lowest:
            self._num_low += 1
            return
        state = model.state_dict()
        self._kept = {name: state[name].detach().to("cpu", copy=True) for name in self._names}
        self.kept_step = step
        self._num_low = 0

    def put_back(self, model: nn.Module) -> None:
        """Load the weights that are kept into the model; on other processes than the main one there are none."""
        model.load_state_dict(self._kept, strict=False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state for a checkpoint, nothing before the first scores."""
        if self.kept_step is None:
            return {}
        state = torch.tensor([self._highest, self._lowest, self.kept_step, self._num_low], dtype=torch.float64)
        return {_STATE: state} | {f"{_KEPT}{name}": value for name, value in self._kept.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from the tensors of a checkpoint of the finetune stage; there may be no state yet."""
        if _STATE in tensors:
            highest, lowest, kept_step, num_low = tensors[_STATE].tolist()
            self._highest = highest
            self._lowest = lowest
            self.kept_step = int(kept_step)
            self._num_low = int(num_low)
            self._kept = {
                name.removeprefix(_KEPT): value for name, value in tensors.items() if name.startswith(_KEPT)
            }
