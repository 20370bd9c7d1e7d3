"""Words that recipes and options share; light to import, so that the command line can offer them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskLoss = Literal["softmax-choice", "sigmoid-choice", "two-way-choice", "soft-target-bce", "soft-target-kl"]
"""Losses of `targets.py`."""

Optimiser = Literal["adamw", "bert-adamw", "bert-adam", "sgd"]
"""torch's AdamW; AdamW and Adam without bias correction as BERT's family runs them (`bert_optimisers.py`)."""

Schedule = Literal["linear", "steps", "constant"]
"""Learning rate after warming up, as the originals have it."""

LearningRateSchedule = Literal["linear", "steps", "constant", "linear-nonzero"]
"""`linear-nonzero` is ADVL's own: linear up and down, with neither the first nor the last step at rate 0."""

AdversarialModality = Literal["none", "text", "image", "both"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """VILLA's numbers. A learning rate of 0 leaves that modality alone; `max_norm` 0 means no projection."""

    text_learning_rate: float = 0.0
    visual_learning_rate: float = 0.0
    num_steps: int = 3
    kl_weight: float = 1.5
    norm: Literal["l2", "linf"] = "l2"
    max_norm: float = 0.0
