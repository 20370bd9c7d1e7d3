"""A control: the student's own visual tokens, before they meet the text, in place of what a vision teacher says.

Later layers of a student gain from predicting its own early visual tokens, which know nothing that it does not (PRe,
arXiv 2603.20808: on general sets as much as from DINOv2). What a vision teacher is worth is its gain beside this one.
Shapes: B examples, N sequences, R visual tokens, S regions, H student width.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from advl_pipeline.distillation.pooling import pool_to_regions
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.students.interface import StudentBatch


def with_own_tokens(signal: TeacherSignal, visual_NRH: torch.Tensor, batch: StudentBatch) -> TeacherSignal:
    """Return the signal with the student's tokens as every vision teacher's features, of the same places.

    Args:
        visual_NRH: the student's visual tokens; no gradient goes to them.
    """
    own_BRH = visual_NRH.detach()[batch.first_B].float()
    mask_BR = batch.visual_mask_NR[batch.first_B]
    share_BR = mask_BR / mask_BR.sum(1, keepdim=True).clamp(min=1)
    return replace(
        signal,
        vision={
            name: replace(
                one,
                global_BD=torch.einsum("br,brh->bh", share_BR, own_BRH),
                regions_BSD=None if one.regions_BSD is None else pool_to_regions(own_BRH, one.shares_BSR)[0],
            )
            for name, one in signal.vision.items()
        },
    )
