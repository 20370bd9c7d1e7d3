"""What a text says against what it speaks of: a late interaction beside the fusion of the small students.

Pretraining aligns words and regions below the fusion. Three layers that are pretrained in minutes do not carry that
alignment to the state that heads read; the product of the two aligned states does, as in the heads of two-tower
models. (Mou et al. 2016 and InferSent read such a product beside the states themselves.)
Shapes: N sequences, L text tokens, R visual tokens, H width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Agreement(nn.Module):
    """Adds to a pooled state the product of what is said and what it is said of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.informative = nn.Linear(width, 1, bias=False)
        self.merge = nn.Linear(2 * width, width)

    def forward(
        self,
        pooled_NH: torch.Tensor,
        text_NLH: torch.Tensor,
        said_NL: torch.Tensor,
        visual_NRH: torch.Tensor,
        place_NR: torch.Tensor,
    ) -> torch.Tensor:
        """Return (N, H).

        Args:
            pooled_NH: the pooled state after the fusion.
            text_NLH: the text's states below it.
            said_NL: bool, the tokens that say something, of which each sequence has one at least.
            visual_NRH: the picture's states below the fusion.
            place_NR: float, what the text speaks of: shares of the visual tokens. All 0 where the picture is hidden.
        """
        weight_NL = self.informative(text_NLH)[..., 0].masked_fill(~said_NL, -torch.inf).softmax(1)
        said_NH = functional.normalize(torch.einsum("nl,nlh->nh", weight_NL, text_NLH), dim=-1)
        shown_NH = functional.normalize(torch.einsum("nr,nrh->nh", place_NR, visual_NRH), dim=-1)
        # As large as the elements of a layer-normalised state.
        agreement_NH = said_NH * shown_NH * said_NH.shape[-1]
        return torch.tanh(self.merge(torch.cat([pooled_NH, agreement_NH], dim=-1)))


def said_tokens(answer_NL: torch.Tensor, token_mask_NL: torch.Tensor) -> torch.Tensor:
    """Return (N, L) bool: the tokens of the answer, or of the whole text where it has no answer."""
    answer_NL = answer_NL & token_mask_NL
    return torch.where(answer_NL.any(1, keepdim=True), answer_NL, token_mask_NL)


def shares_of_tags(tag_NL: torch.Tensor, visual_NRH: torch.Tensor) -> torch.Tensor:
    """Return (N, L, R): 1 for the visual token that a token refers to by tag; all 0 where `tag_NL` (int64) is -1."""
    place_R = torch.arange(visual_NRH.shape[1], device=visual_NRH.device)
    return (tag_NL[..., None] == place_R).to(visual_NRH.dtype)


def place_of_tags(tags_NLR: torch.Tensor, *, hidden: bool) -> torch.Tensor:
    """Return (N, R): the mean place of the tags in a text; without any, the first visual token, of the whole picture.

    Args:
        tags_NLR: float, of each token's tagged box the share on each visual token; 0 without a tag.
        hidden: the picture is hidden, so nothing is spoken of.
    """
    summed_NR = tags_NLR.sum(1)
    if hidden:
        return torch.zeros_like(summed_NR)
    total_N1 = summed_NR.sum(1, keepdim=True)
    whole_R = torch.zeros_like(summed_NR[0])
    whole_R[0] = 1.0
    return torch.where(total_N1 > 0, summed_NR / total_N1.clamp(min=1e-6), whole_R)
