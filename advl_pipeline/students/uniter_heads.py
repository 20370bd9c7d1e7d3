"""UNITER's task heads. Shapes: N sequences, H width, K classes."""

from __future__ import annotations

import torch
from torch import nn

from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS
from advl_pipeline.students.bert_parts import widening_head
from advl_pipeline.students.checkpoints import KeyRules

NORM_EPS = 1e-12


class TwoWayChoiceHead(nn.Module):
    """VCR: every candidate gets two logits of its own; the second alone is its score."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.net = widening_head(hidden_size, 2, hidden=2 * hidden_size, activation=nn.ReLU(), eps=NORM_EPS)

    def two_way(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return (N, 2) logits: wrong, right."""
        logits: torch.Tensor = self.net(pooled_NH)
        return logits

    def forward(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """Return (N, 1): the score of each candidate."""
        return self.two_way(pooled_NH)[:, 1:]


def uniter_head(task: str, hidden_size: int, num_classes: int) -> nn.Module:
    """Return a fresh head as the original builds it: ReLU and two logits for VCR, GELU elsewhere."""
    if task in MULTIPLE_CHOICE_TASKS or task == "vcr":
        return TwoWayChoiceHead(hidden_size)
    return widening_head(hidden_size, num_classes, hidden=2 * hidden_size, activation=nn.GELU(), eps=NORM_EPS)


def head_rules(task: str) -> KeyRules:
    """Return the rules that take a task's head out of an original checkpoint."""
    if task in MULTIPLE_CHOICE_TASKS or task == "vcr":
        return KeyRules(rename=((r"^vcr_output\.", "net."),), ignore=(r"^(?!vcr_output\.)",))
    # SNLI-VE checkpoints keep their head under VQA's name: the original class derives from VQA's.
    return KeyRules(rename=((r"^vqa_output\.", ""),), ignore=(r"^(?!vqa_output\.)",))
