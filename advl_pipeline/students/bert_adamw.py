"""AdamW as the BERT-family originals run it (UNITER `optim/adamw.py`), which torch's is not.

Differences from `torch.optim.AdamW`: eps is added to the root of the *uncorrected* second moment, and the decoupled
weight decay comes after the update instead of before it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from advl_pipeline.students.bert_moments import BertMoments


class BertAdamW(BertMoments):
    """p <- p - lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), then p <- p - lr * weight_decay * p."""

    def move(self, parameter: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        # A checkpoint gives the count back as a tensor, whose powers would be rounded to float32.
        count = state["step"] = int(state.get("step", 0)) + 1
        correction = math.sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
        denominator = state["second"].sqrt().add_(group["eps"])
        parameter.addcdiv_(state["first"], denominator, value=-group["lr"] * correction)
        if group["weight_decay"]:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])
