"""Text encoders of transformers as frozen teachers, and which of them are opened how.

Features are the last hidden states, pooled by the mean or the first token. Sentence encoders say for themselves
(`modules.json`); other models follow the table of classes, pooling, longest input and special settings. A type that
is not in it is pooled by the mean, and `advl teachers show` says so.

Shapes: B windows, L tokens with special ones, D width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from advl_pipeline.errors import ConfigError
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.text_tower import TextFeatures, WordPieceTextTower
from advl_pipeline.teachers.transformers_files import TransformersSource, load_model, load_part, sibling
from advl_pipeline.teachers.word_pieces import WordPieces
from advl_pipeline.tensors import parameter_digest

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


FIRST_TOKEN_TYPES = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "deberta", "deberta-v2", "electra", "distilbert", "modernbert"}
)
"""Model types whose first token is the summary that their tasks of finetuning use."""

ENCODER_OF_PAIR_TYPES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Encoder-decoder types of which the encoder alone is the teacher."""

POSITION_OFFSET_TYPES = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Types that keep the first positions for padding, so that inputs are that much shorter than the table."""

_SENTENCE_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecipe:
    """How a text encoder's features are made: pooling, unit length, longest input in tokens."""

    pooling: Pooling
    unit_length: bool
    max_length: int


def open_text_tower(source: TransformersSource, config: Any, options: OpenOptions) -> WordPieceTextTower:
    """Open the text encoder at a source as a tower.

    Raises:
        WeightsUnavailable: files are missing or incomplete.
        ConfigError: a sentence encoder with parts that are not supported.
    """
    import transformers

    tokenizer = load_part(transformers.AutoTokenizer.from_pretrained, source, options)
    encoder_name = ENCODER_OF_PAIR_TYPES.get(config.model_type)
    model_class = getattr(transformers, encoder_name) if encoder_name else transformers.AutoModel
    recipe = text_recipe(source, config, tokenizer_limit=tokenizer.model_max_length)
    backbone = TransformersTextBackbone(
        load_model(model_class, config, source, options),
        pooling=recipe.pooling,
        max_length=recipe.max_length,
        device=options.torch_device,
        dtype=options.torch_dtype,
    )
    return WordPieceTextTower(backbone, WordPieces(tokenizer), unit_length=recipe.unit_length)


def text_recipe(source: TransformersSource, config: Any, *, tokenizer_limit: int) -> TextRecipe:
    """Return how features are made, from the sentence encoder's own files or by the model type."""
    max_length = longest_input(config, tokenizer_limit)
    modules = sibling(source, "modules.json")
    if modules is None:
        pooling: Pooling = "first" if config.model_type in FIRST_TOKEN_TYPES else "mean"
        return TextRecipe(pooling=pooling, unit_length=False, max_length=max_length)
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in _read_json(modules)]
    unsupported = sorted(set(kinds) - _SENTENCE_MODULES)
    if unsupported:
        raise ConfigError(
            "This sentence encoder has parts that are not supported.", where=source.place, why=", ".join(unsupported)
        )
    settings = sibling(source, "sentence_bert_config.json")
    if settings is not None:
        max_length = min(max_length, _read_json(settings).get("max_seq_length") or max_length)
    return TextRecipe(pooling=_sentence_pooling(source), unit_length="Normalize" in kinds, max_length=max_length)


def longest_input(config: Any, tokenizer_limit: int) -> int:
    """Return the most tokens, special ones included, that a network and its tokenizer take at once."""
    limits = [tokenizer_limit]
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions:
        offset = (config.pad_token_id or 0) + 1 if config.model_type in POSITION_OFFSET_TYPES else 0
        limits.append(positions - offset)
    # Networks with relative positions, such as T5, state no limit but were trained on texts of this length.
    return min(min(limits), 8192) if min(limits) < 1_000_000 else 512


def _sentence_pooling(source: TransformersSource) -> Pooling:
    path = sibling(source, "1_Pooling/config.json")
    modes = {} if path is None else _read_json(path)
    chosen = sorted(name for name, on in modes.items() if name.startswith("pooling_mode_") and on)
    if chosen == ["pooling_mode_mean_tokens"]:
        return "mean"
    if chosen == ["pooling_mode_cls_token"]:
        return "first"
    raise ConfigError(
        "The pooling of this sentence encoder is not supported.",
        where=source.place,
        why=f"found {', '.join(chosen) or 'none'}; supported are the mean of the tokens and the first token",
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
