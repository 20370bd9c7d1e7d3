"""Words that recipes and options share; light to import, so that the command line can offer them."""

from __future__ import annotations

from typing import Literal

TaskLoss = Literal["softmax-choice", "sigmoid-choice", "two-way-choice", "soft-target-bce", "soft-target-kl"]
"""Losses of `task_losses.py`."""

Optimiser = Literal["adamw", "bert-adamw", "bert-adam", "sgd"]
"""torch's AdamW; AdamW as BERT's family runs it (`bert_adamw.py`); Adam without bias correction (`bert_adam.py`)."""

Schedule = Literal["linear", "steps", "constant"]
"""Learning rate after warming up, as the originals have it."""

LearningRateSchedule = Literal["linear", "steps", "constant", "linear-nonzero"]
"""`linear-nonzero` is ADVL's own: linear up and down, with neither the first nor the last step at rate 0."""

AdversarialModality = Literal["none", "text", "image", "both"]
