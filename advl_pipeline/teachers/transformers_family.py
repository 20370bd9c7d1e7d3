"""Opening a transformers model as a teacher, by its model type: aligned pairs, vision encoders, text encoders.

Both global features of a pair, CLIP or SigLIP, lie in the joint space, and so do the text tokens: a word's state goes
through the same final projection as the text's summary, so that the cosine of a word and a picture means something.
Shapes: N pictures, B windows, L tokens, C = 3, H x W pixels, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from advl_pipeline.errors import ConfigError, WeightsUnavailable
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.pixels import PixelSettings
from advl_pipeline.teachers.text_tower import TextFeatures, WordPieceTextTower
from advl_pipeline.teachers.transformers_files import TransformersSource, load_model, load_part, transformers_source
from advl_pipeline.teachers.transformers_text import open_text_tower
from advl_pipeline.teachers.transformers_vision import (
    VISION_TYPES,
    TransformersVisionBackbone,
    processor_pixel_settings,
)
from advl_pipeline.teachers.vision_backbone import ImageFeatures, VisionBackbone, cells_from_tokens
from advl_pipeline.teachers.word_pieces import WordPieces
from advl_pipeline.tensors import parameter_digest

PAIR_TYPES = frozenset({"clip", "siglip"})


def open_transformers(repository: str, options: OpenOptions, *, model_type: str = "") -> Teacher:
    """Open ORG/MODEL[@REVISION], or the folder of `options.weights`.

    Args:
        repository: as said.
        model_type: the family that a named teacher is of, such as "roberta"; "" takes any.

    Raises:
        WeightsUnavailable: files are missing or incomplete, or those of another family than the name says.
        ConfigError: a model, a preprocessing or a pooling that is not supported.
    """
    import transformers

    source = transformers_source(repository, options)
    config = load_part(transformers.AutoConfig.from_pretrained, source, options, trust_remote_code=False)
    if model_type and config.model_type != model_type:
        raise WeightsUnavailable(
            f"These are not the weights of teacher {options.name!r}.",
            where=source.place,
            why=f"they are of a model of type {config.model_type!r}, {options.name} is of type {model_type!r}",
            next_command=f"give a folder of {repository} by --weights; what this folder holds is opened by "
            f"--teacher hf:local/{Path(source.place).name} --weights {source.place}",
        )
    if config.model_type in PAIR_TYPES:
        return _open_pair(source, config, options)
    if config.model_type in VISION_TYPES:
        return Teacher(name=options.name, image=_open_vision(source, config, options))
    if getattr(config, "vocab_size", None) is None:
        raise ConfigError(
            f"Models of type {config.model_type!r} cannot be teachers.",
            where=source.place,
            why="supported are text encoders and " + ", ".join(sorted([*PAIR_TYPES, *VISION_TYPES])),
        )
    return Teacher(name=options.name, text=open_text_tower(source, config, options))


def _open_vision(source: TransformersSource, config: Any, options: OpenOptions) -> PixelImageTower:
    import transformers

    kind = VISION_TYPES[config.model_type]
    backbone = TransformersVisionBackbone(
        load_model(transformers.AutoModel, config, source, options, keep_pooler=kind == "pooled map"),
        kind,
        # The class token, and register tokens where there are some.
        num_prefix_tokens=1 + int(getattr(config, "num_register_tokens", 0) or 0) if kind == "class token" else 0,
        settings=_pixel_settings(source, options),
        device=options.torch_device,
        dtype=options.torch_dtype,
    )
    return PixelImageTower(backbone, options.image_tokens, options.grid_side)


def _open_pair(source: TransformersSource, config: Any, options: OpenOptions) -> Teacher:
    import transformers

    pair = load_model(transformers.AutoModel, config, source, options)
    logit_scale = float(pair.logit_scale.detach().exp())
    device, dtype = options.torch_device, options.torch_dtype
    pieces = WordPieces(load_part(transformers.AutoTokenizer.from_pretrained, source, options))
    vision = PairVisionBackbone(
        pair, config.model_type, settings=_pixel_settings(source, options), device=device, dtype=dtype
    )
    text = PairTextBackbone(pair, config.model_type, device=device, dtype=dtype)
    return Teacher(
        name=options.name,
        image=PixelImageTower(vision, options.image_tokens, options.grid_side),
        text=WordPieceTextTower(text, pieces, unit_length=False),
        aligned=True,
        logit_scale=logit_scale,
    )


def _pixel_settings(source: TransformersSource, options: OpenOptions) -> PixelSettings:
    import transformers

    processor = load_part(transformers.AutoImageProcessor.from_pretrained, source, options)
    try:
        return processor_pixel_settings(processor)
    except ValueError as error:
        raise ConfigError(
            "The preprocessing of this vision model is not supported.", where=source.place, why=str(error)
        ) from None


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
