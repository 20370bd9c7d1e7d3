"""Text encoders of transformers as frozen teachers: last hidden states, pooled by the mean or the first token.

Shapes: B windows, L tokens with special ones, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from advl_pipeline.teachers.text_tower import TextFeatures
from advl_pipeline.tensor_files import parameter_digest

Pooling = Literal["mean", "first"]
"""`mean`: over all tokens, special ones included, as sentence encoders do. `first`: the state of [CLS] or <s>."""


class TransformersTextBackbone:
    """An encoder whose token features are its last hidden states."""

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: Pooling,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config: Any = model.config
        self._description: dict[str, Any] = {
            "library": "transformers",
            "architecture": type(model).__name__,
            "parameters": parameter_digest(model.state_dict()),
            "global": {"mean": "mean over all tokens", "first": "first token"}[pooling],
            "layer": "last hidden states",
            "compute_dtype": str(dtype).removeprefix("torch."),
        }
        self._model = model.eval().to(device=device, dtype=dtype)
        self._pooling = pooling
        self.max_length = max_length
        self.device = device
        self.global_dim: int = config.hidden_size
        self.token_dim: int = config.hidden_size
        self.pad_to_max = False

    def describe(self) -> dict[str, Any]:
        return dict(self._description)

    @torch.inference_mode()
    def __call__(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TextFeatures:
        """Encode padded ids; padding is masked."""
        states_BLD = self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        global_BD = states_BLD[:, 0] if self._pooling == "first" else masked_mean(states_BLD, mask_BL)
        return TextFeatures(global_BD=global_BD, tokens_BLD=states_BLD)


def masked_mean(states_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Return the mean of the states whose mask is 1; (B, D) float32."""
    weights_BL1 = mask_BL.unsqueeze(-1).float()
    total_BD: torch.Tensor = (states_BLD.float() * weights_BL1).sum(dim=1)
    return total_BD / weights_BL1.sum(dim=1).clamp_min(1.0)
