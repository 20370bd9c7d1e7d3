"""The confidences behind instance weights: c_T of the teachers in the ground truth, and c_S of the student.

A teacher's confidence is used if it separates right from wrong. The student's current c_S would not do: it is lowest,
and c_T / c_S highest, while a fresh head knows nothing, and after some epochs it reflects memorised items. At the
start of step 2 no label of an item has been used. c_S is therefore measured then, and weights the item from then on.
The heads behind c_T never saw the item either.
Shapes: M labelled items, B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.confidence.estimators import load_or_estimate_confidence
from advl_pipeline.confidence.probe import TruthConfidence
from advl_pipeline.confidence.separation import Separation, separation
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.distillation.relational import Landmarks
from advl_pipeline.training.config import TaskLoss
from advl_pipeline.training.inputs import Inputs
from advl_pipeline.training.landmarks.bridge import bridge_confidence
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.resolved import Run
from advl_pipeline.training.targets import student_confidence

BATCH_SIZE = 32

_MISSING = -1.0


def find_confidences(
    run: Run,
    teachers: Sequence[TeacherCache],
    inputs: Inputs,
    start: StudentAtStart,
    landmarks: Mapping[str, Landmarks],
) -> tuple[dict[str, Separation], Mapping[str, Mapping[str, float]]]:
    """Return the separation of each modality's confidence, and the confidences for the weights, by example id.

    Args:
        teachers: the teachers' caches of the split that is trained on.
        start: keeps its training or evaluation mode.
        landmarks: of the text teachers.

    Raises:
        ConfigError: these teachers or tasks do not support the estimator.
    """
    config = run.config
    if run.method.settings.weighting == "uniform" or config.confidence == "none":
        return {}, {}
    ids = [inputs.dataset.example_ids[index] for index in inputs.labelled]
    if config.confidence == "bridge":
        bridge = bridge_confidence(start, landmarks, inputs.dataset, inputs.labelled)
        estimates: Mapping[str, TruthConfidence] = {"text": bridge}
    else:
        estimates = load_or_estimate_confidence(
            caches=teachers,
            dataset=inputs.dataset,
            example_ids=ids,
            estimator=config.confidence,
            folds=config.confidence_folds,
            seed=config.seed,
        )
    estimates = start.control.estimates(estimates)
    pictures = [inputs.dataset[index].cluster for index in inputs.labelled]
    separations = {modality: separation(estimate.outranked_N, pictures) for modality, estimate in estimates.items()}
    followed = {
        modality: dict(zip(ids, map(float, estimates[modality].probability_N), strict=True))
        for modality, measured in separations.items()
        if config.confidence_check == "none" or measured.is_above_chance
    }
    # Probes read the original teachers; the bridge reads them as modified by the control.
    if config.confidence != "bridge":
        followed = {name: start.control.confidences(values) for name, values in followed.items()}
    return separations, followed


class StudentConfidence(nn.Module):
    """c_S of the labelled items, in a buffer so that checkpoints contain it."""

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
        """Set the values for step 2, in the order of the ids."""
        self.value_M.copy_(value_M)

    def look_up(self, example_ids: Sequence[str]) -> torch.Tensor:
        """Return (B,) the confidences of some examples."""
        rows_B = torch.tensor([self._row[name] for name in example_ids])
        return self.value_M[rows_B.to(self.value_M.device, non_blocking=True)]


@torch.no_grad()
def measure_student_confidence(
    start: StudentAtStart,
    task_loss: TaskLoss,
    dataset: Dataset,
    positions: Sequence[int],
) -> torch.Tensor:
    """Return (M,) float32: the student's probability of each ground truth, without dropout.

    Args:
        start: the student at the start of step 2; keeps its training or evaluation mode.
        positions: of the M items.
    """
    confidences: dict[int, float] = {}
    for chosen, batch, scored in start.scored(task_loss, dataset, positions, at_once=BATCH_SIZE):
        confidence_B = student_confidence(task_loss, scored.logits, batch.targets)
        confidences.update(zip(chosen, confidence_B.tolist(), strict=True))
    return torch.tensor([confidences[position] for position in positions])
