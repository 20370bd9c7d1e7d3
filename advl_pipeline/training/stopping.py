"""Scores during training, and early stopping: a run goes on while they improve, and keeps its best weights.

The state is part of the checkpoint, so that a resumed run stops where an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import nn

from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.validation import Validation

PATIENCE: Final = 5
"""Scorings without a better one after which a run ends."""

_BEST, _STATE = "best/", "stopping"


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
    """The best weights of a run so far, by the score on `val`.

    The highest accuracy is the best and, among equals or where answers are not compared, the lowest loss.
    """

    def __init__(self, model: nn.Module) -> None:
        frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
        self._names = [name for name in model.state_dict() if name not in frozen]
        self._best: dict[str, torch.Tensor] = {}
        self._score = (-torch.inf, -torch.inf)
        self.best_step: int | None = None
        """The step whose weights are the best, None before the first scores."""
        self._num_since = 0

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return self._num_since >= PATIENCE

    def take(self, step: int, scores: Mapping[str, float], model: nn.Module) -> None:
        """Compare the scores after a step, from `validation_scores`, with the best; keep better weights."""
        score = scores.get("val/correct", 0.0), -scores["val/task"]
        self._num_since += 1
        if score > self._score:
            state = model.state_dict()
            self._best = {name: state[name].detach().to("cpu", copy=True) for name in self._names}
            self._score, self.best_step, self._num_since = score, step, 0

    def put_back(self, model: nn.Module) -> None:
        """Load the best weights into the model; on other processes than the main one there are none."""
        model.load_state_dict(self._best, strict=False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state for a checkpoint, nothing before the first scores."""
        if self.best_step is None:
            return {}
        state = torch.tensor([*self._score, self.best_step, self._num_since], dtype=torch.float64)
        return {_STATE: state} | {f"{_BEST}{name}": value for name, value in self._best.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from the tensors of a checkpoint of the finetune stage; there may be no state yet."""
        if _STATE in tensors:
            right, loss, best_step, num_since = tensors[_STATE].tolist()
            self._score, self.best_step, self._num_since = (right, loss), int(best_step), int(num_since)
            self._best = {
                name.removeprefix(_BEST): value for name, value in tensors.items() if name.startswith(_BEST)
            }
