"""transformers models as teachers, by model type: aligned pairs, vision encoders, text encoders.

Both global features of a pair, CLIP or SigLIP, are in the joint space. So are the text tokens: a word's state passes
through the same final projection as the text's summary, so that a word and a picture can be compared. MetaCLIP 2 is
handled like CLIP.

Features of a text encoder are its last hidden states, pooled by the mean or the first token. The files of sentence
encoders define their pooling (`sentence_encoder.py`); other models follow the tables by model type. A type in no
table uses mean pooling.

Shapes: N pictures, B windows, L tokens with special ones, C = 3, H x W pixels, M patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from advl_pipeline.base.errors import ConfigError, advise, suggest_names
from advl_pipeline.base.repositories import read_config, require_plain_network
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.sentence_encoder import Pooling, SentenceRecipe, load_dense, sentence_recipe
from advl_pipeline.teachers.text_tower import TextBackbone, TextFeatures, WordPieceTextTower
from advl_pipeline.teachers.transformers_files import (
    load_model,
    load_part,
    load_tokenizer,
    transformers_folder,
)
from advl_pipeline.teachers.vision_backbone import (
    ImageFeatures,
    Interpolation,
    PixelSettings,
    VisionBackbone,
    patches_from_tokens,
)
from advl_pipeline.teachers.word_pieces import WordPieces

PAIR_TYPES = frozenset({"clip", "metaclip_2", "siglip"})

VisionKind = Literal["class token", "mean of cells", "pooled map"]
"""Source of the global feature: the class token after the last norm, or the mean that replaces it; the mean of the
patches after the last norm, as stored identities call it; the network's own pooling of its last map."""

VISION_TYPES: dict[str, VisionKind] = {
    "dinov2": "class token",
    "dinov2_with_registers": "class token",
    "dinov3_convnext": "class token",
    "dinov3_vit": "class token",
    "vit": "class token",
    "swin": "mean of cells",
    "swinv2": "mean of cells",
    "convnext": "pooled map",
    "convnextv2": "pooled map",
}
"""Supported model types."""

FIRST_TOKEN_TYPES = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "deberta", "deberta-v2", "electra", "distilbert", "modernbert"}
)
"""Model types whose first token is the text summary in finetuning."""

ENCODER_OF_PAIR_TYPES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Encoder-decoder types; only the encoder is the teacher."""

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

POSITION_OFFSET_TYPES = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Types that reserve the first positions for padding, so the maximum input is shorter than the position table."""


def open_transformers(repository: str, options: OpenOptions, *, model_type: str = "", prompt: str = "") -> Teacher:
    """Open ORG/MODEL[@REVISION], or the folder of `options.weights`.

    Args:
        repository: its hub name, with or without a revision.
        model_type: the family of a named teacher, such as "roberta"; "" accepts any.
        prompt: text prefix, used if the files define none.

    Raises:
        WeightsUnavailable: files are missing or incomplete, or belong to another family than the named one.
        ConfigError: the model, preprocessing or pooling is not supported, or the network is the repository's own.
    """
    import transformers

    folder = transformers_folder(repository, options)
    settings = read_config(folder)
    require_plain_network(settings, where=folder)
    if "pretrained_cfg" in settings:
        raise _of_timm(repository, settings, options)
    config = load_part(transformers.AutoConfig.from_pretrained, folder, options, trust_remote_code=False)
    if model_type and config.model_type != model_type:
        raise options.bad_weights(
            "are those of another family",
            folder,
            f"they are of a model of type {config.model_type!r}, {options.name} is of type {model_type!r}",
            next_command=f"give a folder of {repository} by --weights; what this folder holds is opened by "
            f"--teacher hf:local/{folder.name} --weights {folder}",
        )
    _require_teacher_type(config, folder)
    commit = folder.name if options.weights is None else ""
    place = {"device": options.torch_device, "dtype": options.torch_dtype}
    if config.model_type in PAIR_TYPES:
        tokenizer = load_tokenizer(folder, options, num_states=config.text_config.vocab_size)
        # SigLIP's training lower-cased texts, and SigLIP 2 is published with Gemma's tokenizer, which preserves case.
        pieces = WordPieces(tokenizer, lower_case=config.model_type == "siglip")
        pixels = _pixel_settings(folder, options)
        pair = load_model(transformers.AutoModel, config, repository, folder, options)
        logit_scale = float(pair.logit_scale.detach().exp())
        vision = PairVisionBackbone(pair, config.model_type, settings=pixels, **place)
        return Teacher(
            name=options.name,
            image=PixelImageTower(vision, options.image_tokens, options.grid_side),
            text=WordPieceTextTower(PairTextBackbone(pair, config.model_type, **place), pieces, unit_length=False),
            aligned=True,
            commit=commit,
            logit_scale=logit_scale,
        )
    if config.model_type in VISION_TYPES:
        kind = VISION_TYPES[config.model_type]
        pixels = _pixel_settings(folder, options)
        keep_pooler = kind == "pooled map"
        network = load_model(transformers.AutoModel, config, repository, folder, options, keep_pooler=keep_pooler)
        backbone = TransformersVisionBackbone(network, kind, settings=pixels, **place)
        image = PixelImageTower(backbone, options.image_tokens, options.grid_side)
        return Teacher(name=options.name, image=image, commit=commit)
    tokenizer = load_tokenizer(folder, options, num_states=config.vocab_size)
    model_class = getattr(transformers, ENCODER_OF_PAIR_TYPES.get(config.model_type, "AutoModel"))
    max_length = longest_input(config, tokenizer_limit=tokenizer.model_max_length)
    usual: Pooling = "first token" if config.model_type in FIRST_TOKEN_TYPES else "mean over all tokens"
    said = sentence_recipe(folder, random_seed=options.random_seed) or SentenceRecipe(pooling=usual)
    encoder = load_model(model_class, config, repository, folder, options)
    if options.random_seed is None:
        load_dense(said)
    max_length = min(max_length, said.max_length or max_length)
    states = TransformersTextBackbone(encoder, said.pooling, dense=said.dense, max_length=max_length, **place)
    pieces = WordPieces(tokenizer, prompt=said.prompt or prompt, lower_case=said.lower_case)
    text = WordPieceTextTower(states, pieces, unit_length=said.unit_length)
    return Teacher(name=options.name, text=text, commit=commit)


def _require_teacher_type(config: Any, folder: Path) -> None:
    """Refuse a type that is neither a supported pair or vision encoder nor a text encoder."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    kind = config.model_type
    # A vision encoder may have a vocabulary: BEiT's is of its codebook.
    sees_only = kind in IMAGE_PROCESSOR_MAPPING_NAMES and kind not in TOKENIZER_MAPPING_NAMES
    if kind in {*PAIR_TYPES, *VISION_TYPES} or (getattr(config, "vocab_size", None) and not sees_only):
        return
    raise ConfigError(
        f"Models of type {kind!r} cannot be teachers.",
        where=str(folder),
        why="supported are text encoders and " + ", ".join(sorted([*PAIR_TYPES, *VISION_TYPES])),
        next_command=advise(["advl", "teachers", "list"]),
    )


def _of_timm(repository: str, settings: Mapping[str, Any], options: OpenOptions) -> ConfigError:
    """Return the error for a repository of timm, with the name that opens it."""
    what = "The repository holds a model of timm, not of transformers."
    name = repository.partition("@")[0]
    organisation, _, model = name.partition("/")
    if organisation == "timm" and options.weights is None:
        why = suggest_names(f"hf:{repository}", [], meant=f"timm:{model}")
        return ConfigError(what, where=f"hf:{repository}", why=why)
    architecture = settings.get("architecture", "MODEL")
    return ConfigError(
        what,
        where=f"hf:{repository}",
        next_command=f"hf download {name} --local-dir DIR; "
        f"then --teacher timm:{architecture} --weights DIR/model.safetensors",
    )


class PairVisionBackbone(VisionBackbone):
    """The vision tower of a pair.

    Global: CLIP's class token or SigLIP's attention pooling, in the joint space. Grid: patch states after the last
    norm, in the tower's own space.
    """

    def __init__(self, pair: Any, model_type: str, **settings: Any) -> None:
        self._is_clip = model_type != "siglip"
        parts = {"tower": pair.vision_model}
        if self._is_clip:
            parts["projection"] = pair.visual_projection
        description = {
            "library": "transformers",
            "architecture": type(pair.vision_model).__name__,
            "global": "projected class token" if self._is_clip else "attention pooling",
            "grid": "patch states after the last norm",
        }
        super().__init__(nn.ModuleDict(parts), description=description, **settings)

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        tower = self.network["tower"]
        output = tower(pixel_values=pixels_NCHW)
        global_ND, patches_NMD = output.pooler_output, output.last_hidden_state
        if self._is_clip:
            global_ND = self.network["projection"](global_ND)
            patches_NMD = tower.post_layernorm(patches_NMD[:, 1:])
        return ImageFeatures(global_ND=global_ND, grid_NhwD=patches_from_tokens(patches_NMD))


class PairTextBackbone(TextBackbone):
    """The text tower of a pair. SigLIP attends to padding up to the full length, as in its training."""

    def __init__(self, pair: Any, model_type: str, **place: Any) -> None:
        self._is_clip = model_type != "siglip"
        tower: Any = pair.text_model
        projection: Any = pair.text_projection if self._is_clip else tower.head
        description = {
            "library": "transformers",
            "architecture": type(tower).__name__,
            "global": "projected end-of-text token" if self._is_clip else "projected last token",
            "layer": "last hidden states, projected to the joint space",
        }
        super().__init__(
            nn.ModuleDict({"tower": tower, "projection": projection}),
            description=description,
            dim=projection.out_features,
            max_length=tower.config.max_position_embeddings,
            pad_to_max=not self._is_clip,
            **place,
        )

    def features(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TextFeatures:
        tower, projection = self.network["tower"], self.network["projection"]
        output = tower(input_ids=ids_BL, attention_mask=mask_BL if self._is_clip else None)
        pooled_BD = output.pooler_output
        return projection(pooled_BD) if self._is_clip else pooled_BD, projection(output.last_hidden_state)


class TransformersVisionBackbone(VisionBackbone):
    """A vision transformer or convolutional network; the grid is its last map without class and register tokens."""

    def __init__(self, model: Any, kind: VisionKind, **settings: Any) -> None:
        self._kind = kind
        self._num_prefix_tokens = 0
        if kind == "class token":
            self._num_prefix_tokens = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0)
        name = type(model).__name__
        description = {"library": "transformers", "architecture": name, "global": kind, "grid": "last feature map"}
        super().__init__(model, description=description, **settings)

    def features(self, pixels_NCHW: torch.Tensor) -> ImageFeatures:
        output = self.network(pixel_values=pixels_NCHW)
        states = output.last_hidden_state
        if self._kind == "pooled map":
            return ImageFeatures(global_ND=output.pooler_output, grid_NhwD=states.permute(0, 2, 3, 1))
        patches_NMD = states[:, self._num_prefix_tokens :]
        global_ND = states[:, 0] if self._kind == "class token" else patches_NMD.mean(dim=1)
        return ImageFeatures(global_ND=global_ND, grid_NhwD=patches_from_tokens(patches_NMD))


class TransformersTextBackbone(TextBackbone):
    """A text encoder. Token features are its last hidden states; dense layers apply to the pooled feature only."""

    def __init__(self, model: Any, pooling: Pooling, *, dense: nn.Sequential | None, **settings: Any) -> None:
        self._pooling, self._has_dense = pooling, dense is not None
        layers = [] if dense is None else [layer for layer in dense.modules() if isinstance(layer, nn.Linear)]
        description = {
            "library": "transformers",
            "architecture": type(model).__name__,
            "global": f"{pooling}, {len(layers)} layers behind" if layers else pooling,
            "layer": "last hidden states",
        }
        width = model.config.hidden_size
        model.config.use_cache = False
        network = model if dense is None else nn.ModuleDict({"encoder": model, "dense": dense})
        global_dim = layers[-1].out_features if layers else width
        super().__init__(network, description=description, dim=width, global_dim=global_dim, **settings)

    def features(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> TextFeatures:
        encoder = self.network["encoder"] if self._has_dense else self.network
        states_BLD = encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        pooled_BD = self._pool(states_BLD, mask_BL)
        if self._has_dense:
            pooled_BD = self.network["dense"](pooled_BD.to(states_BLD.dtype))
        return pooled_BD, states_BLD

    def _pool(self, states_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        if self._pooling == "first token":
            return states_BLD[:, 0]
        if self._pooling == "last token":
            last_B = mask_BL.sum(dim=1) - 1
            return states_BLD[torch.arange(len(last_B), device=last_B.device), last_B]
        weights_BL1 = mask_BL.unsqueeze(-1).float()
        total_BD: torch.Tensor = (states_BLD.float() * weights_BL1).sum(dim=1)
        return total_BD / weights_BL1.sum(dim=1).clamp_min(1.0)


def longest_input(config: Any, *, tokenizer_limit: int) -> int:
    """Return the maximum input length of a text encoder in tokens, special ones included."""
    limits = [tokenizer_limit]
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions:
        offset = (config.pad_token_id or 0) + 1 if config.model_type in POSITION_OFFSET_TYPES else 0
        limits.append(positions - offset)
    # Models with relative positions, such as T5, state no limit but were trained on texts of this length.
    return min(min(limits), 8192) if min(limits) < 1_000_000 else 512


def _pixel_settings(folder: Path, options: OpenOptions) -> PixelSettings:
    """Return the preprocessing of a model's image processor.

    Raises:
        ConfigError: the scaling is not supported, such as a size that varies with the picture.
    """
    import transformers

    def unsupported(why: str) -> ConfigError:
        return ConfigError("The preprocessing of this vision model is not supported.", where=str(folder), why=why)

    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise options.bad_weights(
            "come without an image processor",
            folder,
            f"it has none of {' and '.join(_PROCESSOR_FILES)}, which say how pictures are scaled",
            next_command=f"--weights FOLDER that holds the {_PROCESSOR_FILES[0]} of the model it was finetuned from",
        )
    processor = load_part(transformers.AutoImageProcessor.from_pretrained, folder, options)
    if abs(getattr(processor, "rescale_factor", 0.0) * 255 - 1) > 1e-6:
        raise unsupported("intensities are not scaled to [0, 1]")
    resample = getattr(processor, "resample", None)
    names: dict[object, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    if (interpolation := names.get(getattr(resample, "value", resample))) is None:
        raise unsupported(f"resampling {resample} is not supported")
    size = dict(getattr(processor, "size", None) or {})
    cut = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    edge, crop_pct = int(size.get("shortest_edge", 0)), getattr(processor, "crop_pct", None)
    if "height" in size and not cut:
        height, width, short_edge = size["height"], size["width"], 0
    elif edge and "height" in cut:
        height, width, short_edge = cut["height"], cut["width"], edge
    elif edge and crop_pct:
        # ConvNeXt's rule: large inputs are squashed; smaller ones are scaled by the crop fraction and cropped.
        height, width, short_edge = edge, edge, 0 if edge >= 384 else int(edge / crop_pct)
    else:
        raise unsupported(f"size {size} with crop {cut} gives no fixed number of pixels")
    colours: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if getattr(processor, "do_normalize", False):
        for name in colours:
            value = getattr(processor, f"image_{name}", None)
            values = [value] * 3 if isinstance(value, (int, float)) else value
            if not isinstance(values, (list, tuple)) or len(values) != 3:
                raise unsupported(f"{value} is not one value per colour channel")
            colours[name] = tuple(map(float, values))
    return PixelSettings(
        height=height,
        width=width,
        short_edge=short_edge,
        interpolation=interpolation,
        crop_rounding="down",
        **colours,
    )
