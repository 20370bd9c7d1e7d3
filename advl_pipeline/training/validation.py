"""The score on `val` while a run trains, so that anybody sees whether it still rises. Nothing is chosen by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from advl_pipeline.base.errors import AdvlError
from advl_pipeline.datasets.records import Dataset, head_name
from advl_pipeline.datasets.registry import find_dataset, open_dataset
from advl_pipeline.training.config import FinetuneConfig, TaskLoss
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.targets import TaskScores, TaskTargets, score_task

SPLIT = "val"
NUM_EXAMPLES, AT_ONCE = 200, 64
MOST_TIMES, FEWEST_STEPS = 10, 25
"""A run is scored so often, evenly spaced and last at its end, and less often where steps are few in between."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Examples of `val` that are scored, by their positions."""

    dataset: Dataset
    positions: Sequence[int]


def open_validation(config: FinetuneConfig, trained_on: Dataset, *, num_steps: int) -> Validation | str:
    """Return evenly spaced examples of `val`, or why there are none.

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
        # A benchmark of which train alone was fetched.
        return error.what
    if any(dataset.label_names(task) != trained_on.label_names(task) for task in trained_on.tasks):
        return "it has other answers than the split that is trained on"
    number = min(NUM_EXAMPLES, len(dataset))
    positions = np.linspace(0, len(dataset) - 1, number).round().astype(int).tolist()
    labelled = [place for place in positions if dataset[place].label is not None or dataset[place].soft_label]
    return Validation(dataset=dataset, positions=labelled) if labelled else "it has no labels"


def is_due(step: int, num_steps: int) -> bool:
    """Return whether a run of so many steps is scored after a step, counted from 0."""
    times = min(MOST_TIMES, num_steps // FEWEST_STEPS)
    return (step + 1) * times // num_steps > step * times // num_steps


@torch.no_grad()
def validation_scores(start: StudentAtStart, task_loss: TaskLoss, validation: Validation) -> dict[str, float]:
    """Return the mean loss and, where answers are compared, the share that is right, in [0, 1].

    Args:
        start: student and heads as they are now; left in the mode that they were in.
    """
    losses, right = 0.0, list[float]()
    for chosen, _, batch in start.looked_at(
        validation.dataset, validation.positions, at_once=AT_ONCE, labelled_ids=None
    ):
        with start.evaluating():
            output = start.student.encode_pooled(batch.student, mask_visual=start.hide_picture)
            head = start.heads[head_name(batch.task)]
            scored = score_task(task_loss, head, output, batch.student.num_candidates, batch.targets)
        losses += len(chosen) * float(scored.loss)
        # Of answers in words, those alone are scored that the loss needs.
        if output.answered is None or batch.targets.label_B is not None:
            right += _right(scored, batch.targets).tolist()
    scores = {"val/task": losses / len(validation.positions)}
    return scores | ({"val/correct": float(np.mean(right))} if right else {})


def _right(scored: TaskScores, targets: TaskTargets) -> torch.Tensor:
    """Return (B,): how right the best answer of each example is."""
    best_B = scored.logits.argmax(1)
    if targets.label_B is not None:
        return (best_B == targets.label_B).float()
    assert targets.scores_BK is not None
    return targets.scores_BK.gather(1, best_B[:, None])[:, 0]
