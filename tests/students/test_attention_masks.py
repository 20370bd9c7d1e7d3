"""Attention masks stay finite in half precision, and no row of one is empty."""

from __future__ import annotations

import pytest
import torch

from advl_pipeline.students.bert_parts import PADDING, TEXT, VISUAL, attention_bias

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("separate", [False, True])
def test_a_mask_that_autocast_rounds_hides_as_before(half: torch.dtype, separate: bool) -> None:
    kinds_NS = torch.tensor([[TEXT, TEXT, VISUAL, PADDING], [TEXT, VISUAL, PADDING, PADDING]])
    bias = attention_bias(kinds_NS, separate=separate, dtype=torch.float32)
    rounded = bias.to(half)
    assert bool(rounded.isfinite().all())
    full = bias.expand(2, 1, 4, 4)
    assert torch.equal(rounded.expand_as(full).float().softmax(-1), full.softmax(-1))


def test_padding_attends_to_everything_and_the_others_to_what_they_may() -> None:
    kinds_NS = torch.tensor([[TEXT, VISUAL, PADDING]])
    seen = attention_bias(kinds_NS, separate=True, dtype=torch.float32)[0, 0] == 0
    assert seen.tolist() == [[True, False, False], [False, True, False], [True, True, True]]
