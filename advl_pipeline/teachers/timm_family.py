"""timm vision networks as frozen teachers: from the hub, from a tensor file, or with random weights.

Shapes: N pictures, C = 3, H x W pixels, D width, h x w patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.errors import ConfigError, advise, unknown_name
from advl_pipeline.base.repositories import require_downloaded
from advl_pipeline.base.tensors import load_tensors
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.transformers_files import fetch_teacher
from advl_pipeline.teachers.vision_backbone import ImageFeatures, PixelSettings, VisionBackbone, patches_from_tokens

TENSOR_FILES = (".safetensors", ".pth", ".pt", ".bin")

_WEIGHTS = (("model.safetensors",), ("pytorch_model.bin",))
"""The weight files that timm loads from a repository."""

_CLASS_TOKEN = re.compile(r"vit_\w+_dinov3")
"""Architectures without a classifier, for which timm would average the patches."""

_PROJECTS = re.compile(r"vit_pe_core")
"""Architectures whose last layer projects to the text space and is not a classifier."""

TensorNames = Callable[[Mapping[str, torch.Tensor], Any], Mapping[str, torch.Tensor]]
"""Maps a file's tensors and the network to the same tensors under the network's names."""


def open_timm(
    architecture: str, options: OpenOptions, *, weights: Path | None, renamed: TensorNames | None = None
) -> Teacher:
    """Open a timm network.

    Args:
        architecture: timm's name, with or without the weight tag.
        weights: a tensor file (.safetensors, .pth, .pt, .bin), or a folder with exactly one; None: the hub.
        renamed: maps the tensor names of a file that follows another naming scheme to the network's names.

    Raises:
        ConfigError: the architecture is unknown.
        WeightsUnavailable: the weights are missing, damaged, or belong to another network.
    """
    import timm

    if not timm.is_model(architecture.split(".", 1)[0]):
        raise unknown_name(
            f"timm has no model {architecture!r}.", architecture, timm.list_models(), where="--teacher"
        )
    commit = ""
    if options.random_seed is not None:
        with drawing(options.random_seed):
            model = timm.create_model(architecture, pretrained=False)
    elif weights is None:
        model, commit = _from_hub(architecture, options)
    else:
        model = timm.create_model(architecture, pretrained=False)
        _load_file(model, weights, options, renamed)
    try:
        place = {"device": options.torch_device, "dtype": options.torch_dtype}
        backbone = TimmBackbone(model, architecture=architecture, **place)
    except (ValueError, AttributeError) as error:
        # Some timm networks return several maps, or tokens that are not a grid.
        raise ConfigError(
            f"Features of {architecture} cannot be extracted.",
            where="--teacher",
            why=str(error),
            next_command="take a network whose last features are one map, or patch tokens of a square picture",
        ) from error
    image = PixelImageTower(backbone, options.image_tokens, options.grid_side)
    return Teacher(name=options.name, image=image, commit=commit)


def _from_hub(architecture: str, options: OpenOptions) -> tuple[Any, str]:
    """Return the network with its weights, and the commit of the weights."""
    import timm

    known = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    if known is not None and known.url and not known.hf_hub_id:
        raise options.bad_weights(
            "are not on the hub",
            known.url,
            "timm knows them by this address alone",
            next_command="download that file; then --weights FILE",
        )
    repository = (known.hf_hub_id if known else None) or f"timm/{architecture}"
    folder = fetch_teacher(repository, options, weights=_WEIGHTS)
    path = next(path for (name,) in _WEIGHTS for path in folder.glob(name))
    with _named(path, options):
        # Loaded by timm, which converts the parameter names of other programs to its own.
        model = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay={"state_dict": load_tensors(path)}
        )
    model.pretrained_cfg.pop("state_dict")
    return model, folder.name


def _load_file(model: Any, weights: Path, options: OpenOptions, renamed: TensorNames | None) -> None:
    candidates = (
        [weights] if weights.is_file() else [path for path in weights.glob("*") if path.suffix in TENSOR_FILES]
    )
    if len(candidates) != 1:
        raise options.bad_weights(
            "are not where --weights says",
            weights,
            f"a timm network needs one file of tensors, found {len(candidates)}",
        )
    (path,) = candidates
    require_downloaded(path, what=f"weights of teacher {options.name!r}")
    with _named(path, options):
        state = load_tensors(path)
        model.load_state_dict(renamed(state, model) if renamed else state, strict=True)


@contextmanager
def _named(path: Path, options: OpenOptions) -> Iterator[None]:
    """Turn errors about a weight file into `WeightsUnavailable` naming it."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, IndexError, TypeError, UnpicklingError, SafetensorError) as error:
        raise options.bad_weights(
            "are damaged or belong to another network",
            path,
            " ".join(line.strip() for line in str(error).strip().splitlines()[:2]),
        ) from None


class TimmBackbone(VisionBackbone):
    """A timm model with its own preprocessing.

    The global feature is the input of its classifier (`forward_head(pre_logits=True)`). For DINOv3 transformers it
    is the class token, as in their training and in the transformers library. The grid is the last feature map without
    class and register tokens. Logits come from the classifier if the model has one.
    """

    def __init__(self, model: nn.Module, *, architecture: str, **place: Any) -> None:
        self._takes_class_token = bool(_CLASS_TOKEN.match(architecture))
        self._classifies = getattr(model, "num_classes", 0) > 1 and not _PROJECTS.match(architecture)
        pooled = "class token" if self._takes_class_token else "input of the classifier"
        features = {"global": pooled, "grid": "last feature map"}
        description = {"library": "timm", "architecture": architecture, **features}
        settings = timm_pixel_settings(model)
        super().__init__(model, settings=settings, description=description, folds_batch_norms=True, **place)

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        """Run the network on pixels in its dtype."""
        states = self.network.forward_features(pixels_NCHW)
        return ImageFeatures(
            global_ND=states[:, 0] if self._takes_class_token else self.network.forward_head(states, pre_logits=True),
            grid_NhwD=self._patches(states),
            logits_NK=self.network.forward_head(states) if self._classifies else None,
        )

    def _patches(self, states: torch.Tensor) -> torch.Tensor:
        if states.ndim == 3:
            patches_NMD = states[:, getattr(self.network, "num_prefix_tokens", 0) :]
            if patches_NMD.shape[1] < 2:
                # pit's class token, which is not counted as a prefix token.
                raise ValueError("its last features are of the whole picture only")
            return patches_from_tokens(patches_NMD)
        is_channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return states if is_channels_last else states.permute(0, 2, 3, 1)


def timm_pixel_settings(model: nn.Module) -> PixelSettings:
    """Return the evaluation preprocessing of a timm model from its data configuration."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    squash = mode == "squash" and config["crop_pct"] == 1.0
    if mode != "center" and not squash:
        raise ConfigError(
            "The preprocessing of this network is not supported.",
            where="--teacher",
            why=f"its crop_mode is {mode}, crop_pct {config['crop_pct']:g}; supported are center, and squash at 1",
            next_command=advise(["advl", "teachers", "list"], note="take weights of another training of the network"),
        )
    return PixelSettings(
        height=height,
        width=width,
        short_edge=0 if squash else math.floor(min(height, width) / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
