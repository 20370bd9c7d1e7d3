"""BertAdam: Adam without bias correction, the optimiser of LXMERT and VisualBERT (`lxrt/optimization.py`)."""

from __future__ import annotations

from typing import Any

import torch

from advl_pipeline.students.bert_moments import BertMoments


class BertAdam(BertMoments):
    """p <- p - lr * (m / (sqrt(v) + eps) + weight_decay * p), with the moments as they are, uncorrected."""

    def move(self, parameter: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        update = state["first"] / (state["second"].sqrt() + group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])
