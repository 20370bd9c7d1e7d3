"""The score on `val` during training, which shows whether it still improves. It selects nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from advl_pipeline.base.errors import AdvlError
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.registry import find_dataset, open_dataset
from advl_pipeline.training.config import FinetuneConfig, TaskLoss
from advl_pipeline.training.landmarks.census import StudentAtStart

SPLIT = "val"
NUM_EXAMPLES, AT_ONCE = 200, 64
MOST_TIMES, FEWEST_STEPS = 10, 25
"""Maximum number of validations, evenly spaced with the last at the end, and minimum steps between them."""


def open_validation(
    config: FinetuneConfig, trained_on: Dataset, *, num_steps: int
) -> tuple[Dataset, Sequence[int]] | str:
    """Return `val` and the positions of evenly spaced examples of it, or the reason that there are none.

    Args:
        trained_on: the split whose answers `val` must share.
        num_steps: of the finetune step.
    """
    if num_steps < FEWEST_STEPS:
        return f"the run has fewer than {FEWEST_STEPS} steps"
    if SPLIT in config.split.split("+"):
        return "it is trained on"
    try:
        if SPLIT not in find_dataset(config.dataset, config.data_root).splits:
            return "the data have no such split"
        dataset = open_dataset(config.dataset, split=SPLIT, tasks=config.task, **config.reading)
    except AdvlError as error:
        # Only the training split of the benchmark was fetched.
        return error.what
    if any(dataset.label_names(task) != trained_on.label_names(task) for task in trained_on.tasks):
        return "it has other answers than the split that is trained on"
    number = min(NUM_EXAMPLES, len(dataset))
    positions = np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist()
    labelled = [place for place in positions if dataset[place].label is not None or dataset[place].soft_label]
    return (dataset, labelled) if labelled else "it has no labels"


def is_due(step: int, num_steps: int) -> bool:
    """Return whether a run of `num_steps` steps is scored after a step, counted from 0."""
    times = min(MOST_TIMES, num_steps // FEWEST_STEPS)
    return (step + 1) * times // num_steps > step * times // num_steps


@torch.no_grad()
def validation_scores(
    start: StudentAtStart, task_loss: TaskLoss, dataset: Dataset, positions: Sequence[int]
) -> dict[str, float]:
    """Return the mean loss and, if answers are compared, the accuracy, in [0, 1].

    Args:
        start: current student and heads; keeps its training or evaluation mode.
        dataset: with the positions of the examples to score in it, from `open_validation`.
    """
    losses, right = 0.0, list[float]()
    for chosen, batch, scored in start.scored(task_loss, dataset, positions, at_once=AT_ONCE):
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
