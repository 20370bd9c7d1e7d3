"""The examples that a run is scored on during training, and when: `val`, by which a run may end early.

Without a `val`, a tenth of the labelled pictures is held out in its place where it would decide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from advl_pipeline.base.errors import AdvlError
from advl_pipeline.datasets.cards import JOIN
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.datasets.registry import open_split
from advl_pipeline.datasets.spec import DatasetSpec
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.inputs import Inputs

SPLIT = "val"
NUM_EXAMPLES, NUM_DECIDING = 200, 500
"""Maximum number of examples, usually and where they decide when a run ends."""
MOST_TIMES, FEWEST_STEPS = 10, 25
"""Maximum number of validations, evenly spaced with the last at the end, and minimum steps between them."""
MOST_DECIDING = 20
"""Maximum number of validations where they decide when a run ends."""
HELD_OUT = 0.1
FEWEST_PICTURES = 20
"""Minimum number of labelled pictures of which some are held out."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Examples to score during training: a dataset, positions in it, and their name in messages.

    `decides` says that the run ends early by the score.
    """

    dataset: Dataset
    positions: Sequence[int]
    name: str = SPLIT
    decides: bool = False


def may_stop(config: FinetuneConfig, *, val_decides: bool) -> bool:
    """Return whether a run may end before its last step.

    It may not if its number of steps is given, nor on a dataset on whose `val` others report results.

    Args:
        val_decides: as `DatasetSpec.val_decides`.
    """
    return val_decides and config.optimisation.num_steps is None and config.val_every != 0


def open_validation(config: FinetuneConfig, dataset: DatasetSpec, inputs: Inputs) -> tuple[Inputs, Validation | str]:
    """Return evenly spaced examples of `val`, or held-out ones, or the reason that there are none.

    Returns:
        The inputs, without what is held out; the examples to score.
    """
    decides = may_stop(config, val_decides=dataset.val_decides)
    if config.val_every == 0:
        return inputs, "--val-every is 0"
    opened = _open_split(config, dataset, inputs.dataset, decides=decides)
    if isinstance(opened, Validation) or not (decides and config.hold_out):
        return inputs, opened
    return _held_out(inputs, config.seed, why=opened)


def _held_out(inputs: Inputs, seed: int, *, why: str) -> tuple[Inputs, Validation | str]:
    """Hold out the examples of a tenth of the labelled pictures, drawn by the pictures' content and the seed."""
    picture_of = {place: inputs.dataset[place].image.unit_id for place in inputs.labelled}
    drawn = sorted(set(picture_of.values()), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    if len(drawn) < FEWEST_PICTURES:
        return inputs, f"{why}, and {len(drawn)} labelled pictures are too few to hold some out"
    held = set(drawn[: math.ceil(HELD_OUT * len(drawn))])
    kept = [place for place in inputs.labelled if picture_of[place] not in held]
    left = [place for place in inputs.labelled if picture_of[place] in held]
    validation = Validation(
        dataset=inputs.dataset,
        positions=_spaced(left, NUM_DECIDING),
        name=f"a held-out tenth of the pictures ({len(left):,} of {len(inputs.labelled):,} labels; --no-hold-out)",
        decides=True,
    )
    return replace(inputs, labelled=kept), validation


def _spaced(positions: Sequence[int], most: int) -> list[int]:
    """Return evenly spaced positions, all of them if they are few."""
    places = np.linspace(0, len(positions) - 1, min(most, len(positions))).round().astype(int)
    return [positions[place] for place in places]


def _open_split(
    config: FinetuneConfig, dataset: DatasetSpec, trained_on: Dataset, *, decides: bool
) -> Validation | str:
    if SPLIT in config.split.split(JOIN):
        return "it is trained on"
    if SPLIT not in dataset.splits:
        return "the data have no val"
    try:
        opened = open_split(dataset, SPLIT, tasks=config.task, **config.reading)
    except AdvlError as error:
        # Only the training split of the benchmark was fetched.
        return error.what
    if any(opened.label_names(task) != trained_on.label_names(task) for task in trained_on.tasks):
        return "it has other answers than the split that is trained on"
    positions = _spaced(range(len(opened)), NUM_DECIDING if decides else NUM_EXAMPLES)
    labelled = [place for place in positions if opened[place].label is not None or opened[place].soft_label]
    if not labelled:
        return "it has no labels"
    return Validation(dataset=opened, positions=labelled, decides=decides)


def is_due(step: int, num_steps: int, *, every: int | None = None, most: int = MOST_TIMES) -> bool:
    """Return whether a run of `num_steps` steps is scored after a step, counted from 0.

    Args:
        every: steps between scorings, the last of which is at the end [default: evenly spaced].
        most: maximum number of scorings without `every`.
    """
    if every is not None:
        return (step + 1) % every == 0 or step + 1 == num_steps
    times = min(most, num_steps // FEWEST_STEPS)
    return (step + 1) * times // num_steps > step * times // num_steps
