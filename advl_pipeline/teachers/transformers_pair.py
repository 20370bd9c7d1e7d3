"""Aligned pairs of towers, CLIP and SigLIP, as frozen teachers.

Both global features lie in the joint space, and so do the text tokens: a word's state goes through the same final
projection as the text's summary, so that the cosine of a word and a picture means something.
Shapes: N pictures, B windows, L tokens, C = 3, H x W pixels, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from advl_pipeline.teachers.pixels import PixelSettings
from advl_pipeline.teachers.text_tower import TextFeatures
from advl_pipeline.teachers.vision_backbone import ImageFeatures, VisionBackbone, cells_from_tokens
from advl_pipeline.tensor_files import parameter_digest

PAIR_TYPES = frozenset({"clip", "siglip"})


class PairVisionBackbone(VisionBackbone):
    """The vision tower of a pair.

    Global: CLIP's class token or SigLIP's attention pooling, in the joint space. Grid: patch states after the last
    norm, in the tower's own space.
    """

    def __init__(
        self, pair: Any, model_type: str, *, settings: PixelSettings, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._is_clip = model_type == "clip"
        parts = {"tower": pair.vision_model}
        if self._is_clip:
            parts["projection"] = pair.visual_projection
        super().__init__(
            nn.ModuleDict(parts),
            settings=settings,
            description={
                "library": "transformers",
                "architecture": type(pair.vision_model).__name__,
                "global": "projected class token" if self._is_clip else "attention pooling",
                "grid": "patch states after the last norm",
            },
            device=device,
            dtype=dtype,
        )

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Run the tower on pixels of its dtype."""
        tower = self.network["tower"]
        output = tower(pixel_values=pixels_NCHW)
        if not self._is_clip:
            return ImageFeatures(
                global_ND=output.pooler_output, grid_NhwD=cells_from_tokens(output.last_hidden_state)
            )
        patches_NMD = tower.post_layernorm(output.last_hidden_state[:, 1:])
        return ImageFeatures(
            global_ND=self.network["projection"](output.pooler_output), grid_NhwD=cells_from_tokens(patches_NMD)
        )


class PairTextBackbone:
    """The text tower of a pair. SigLIP sees its padding, always up to the full length, as it was trained."""

    def __init__(self, pair: Any, model_type: str, *, device: torch.device, dtype: torch.dtype) -> None:
        self._is_clip = model_type == "clip"
        self._tower: Any = pair.text_model
        self._projection: Any = pair.text_projection if self._is_clip else pair.text_model.head
        parts = nn.ModuleDict({"tower": self._tower, "projection": self._projection})
        self._description = {
            "library": "transformers",
            "architecture": type(self._tower).__name__,
            "parameters": parameter_digest(parts.state_dict()),
            "global": "projected end-of-text token" if self._is_clip else "projected last token",
            "layer": "last hidden states, projected to the joint space",
            "compute_dtype": str(dtype).removeprefix("torch."),
        }
        parts.eval().requires_grad_(False).to(device=device, dtype=dtype)
        self.device = device
        self.max_length: int = self._tower.config.max_position_embeddings
        self.pad_to_max = not self._is_clip
        self.global_dim: int = self._projection.out_features
        self.token_dim: int = self._projection.out_features

    def describe(self) -> dict[str, Any]:
        """Digest of the parameters, architecture, pooling, token features, compute dtype."""
        return dict(self._description)

    @torch.inference_mode()
    def __call__(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TextFeatures:
        """Encode padded ids."""
        output = self._tower(input_ids=ids_BL, attention_mask=mask_BL if self._is_clip else None)
        pooled_BD = output.pooler_output
        return TextFeatures(
            global_BD=self._projection(pooled_BD) if self._is_clip else pooled_BD,
            tokens_BLD=self._projection(output.last_hidden_state),
        )
