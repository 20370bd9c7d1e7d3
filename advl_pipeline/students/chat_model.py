"""Parts of a chat model of transformers: its configuration, weights, picture features, and layers.

Shapes: B rows, W tokens of a row, V tokens of all pictures, U tiles, M picture tokens of all rows, D features of one,
Q predicted tokens, N sequences, K answers, H width.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.repositories import require_plain_network
from advl_pipeline.datasets.pictures import unit_of
from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.students.bert_parts import additive_mask, compute_dtype
from advl_pipeline.students.chat_batch import Rows
from advl_pipeline.students.chat_config import Blocks
from advl_pipeline.students.chat_pictures import GRID, NO_PICTURE_TOKENS
from advl_pipeline.students.checkpoints import LoadReport, unreadable_weights
from advl_pipeline.students.weight_files import required_weights

ROWS_AT_ONCE = 2048
"""Number of states whose word logits are computed at once: 400 MB in float32 for 49,280 words."""

SHORT_WINDOW = 8
"""Sliding window in the comparison with transformers, in tokens: any conversation is longer."""

MASKED_LAYERS = ("full_attention", "sliding_attention")
RECURRENT_LAYERS = ("linear_attention", "conv")
"""Kinds of layers by transformers' names: layers with an attention mask, and recurrent layers."""


def model_config(architecture: Mapping[str, Any] | None, *, dropout: float = 0.0) -> Any:
    """Return the transformers configuration of an architecture, with a student's dropout.

    Raises:
        ConfigError: transformers does not know it, or its repository brings another network of the same type.
    """
    settings = dict(architecture or {})
    if not settings:
        raise ConfigError(
            "No chat model is named.",
            why="the student chat is what --init holds: weights with their config.json and processor",
            next_command="--init FOLDER or --init hf:ORG/MODEL, such as hf:Qwen/Qwen2.5-VL-3B-Instruct",
        )
    require_plain_network(settings, where="--init")
    kind, following = settings.pop("model_type", "an unnamed type"), "choose one of the types in docs/students.md"
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"A model of the type {kind} is no chat model of transformers that reads pictures.",
            why="transformers has no image-text-to-text model of this type",
            next_command=following,
        )
    processor = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(kind) or "", None)
    if processor and processor.replace_image_token is ProcessorMixin.replace_image_token:
        raise unsupported_type(kind, NO_PICTURE_TOKENS)
    try:
        transformers_config = AutoConfig.for_model(kind, **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "transformers does not know the architecture.", why=str(error).split("\n", maxsplit=1)[0]
        ) from None
    transformers_config.get_text_config().attention_dropout = dropout
    return transformers_config


def unsupported_type(model_type: str, why: str) -> ConfigError:
    """Return the error for a chat model of a type that no student is made of."""
    return ConfigError(
        f"A model of the type {model_type} cannot be a student.",
        why=why,
        next_command="choose one of the types in docs/students.md",
    )


def require_parts(model: Any) -> None:
    """Refuse a model that is not a picture encoder followed by a language model.

    Raises:
        ConfigError: the model lacks such a part.
    """
    decoder = model.get_decoder()
    why = ""
    if not hasattr(model.base_model, "get_image_features") or "pixel_values" not in picture_inputs(model):
        why = "transformers does not give the features of its pictures by themselves"
    elif getattr(model.config, "image_token_id", None) is None:
        why = "it has no picture token"
    elif not hasattr(decoder, "layers") or not hasattr(model, "lm_head"):
        why = "its language model is no stack of layers in front of words"
    elif strange := layer_kinds(decoder) - {*MASKED_LAYERS, *RECURRENT_LAYERS}:
        why = f"its language model has layers of the kind {', '.join(sorted(strange))}"
    if why:
        raise unsupported_type(model.config.model_type, why)


def require_same_likelihood(student: Any) -> None:
    """Refuse a model type whose log-likelihood of a conversation here differs from transformers'.

    Args:
        student: a student with a chat model of a type that is not proven.

    Raises:
        ConfigError: the log-likelihoods differ, or one of them cannot be computed.
    """
    context, answer = "What is it?", "A lake."
    candidate = Candidate(text_unit=text_unit(f"{context} {answer}"), context_length=len(context))
    is_training, text_config = student.training, student.decoder.config
    window = getattr(text_config, "sliding_window", None)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "grey.png"
        Image.linear_gradient("L").convert("RGB").save(path)
        asked = Example(
            example_id="", task="choice", image=unit_of(path, path.name), candidates=(candidate,), label=0
        )
        try:
            student.eval()
            if window is not None:
                text_config.sliding_window = SHORT_WINDOW
            batch = student.laid_out([asked])
            ours = student.encode(batch).answered
            assert ours is not None
            here = float(ours.log_likelihood_NK)
            place_NS = torch.arange(batch.sequence_ids_NS.shape[1])[None]
            logits = student.model(**student.prompts(batch, place_NS, place_NS >= 0)).logits[0].float()
            there = float(logits.log_softmax(-1)[batch.rows.source_Q, batch.rows.target_Q].sum())
            why = f"a conversation has the log-likelihood {here:.4g} here and {there:.4g} there"
            is_same = math.isclose(here, there, rel_tol=max(1e-3, 4 * torch.finfo(student.model.dtype).eps))
        except ConfigError:
            raise
        except Exception as error:  # A type that nobody tried may raise anything.
            why, is_same = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__, False
        finally:
            student.train(is_training)
            if window is not None:
                text_config.sliding_window = window
    if not is_same:
        kind = student.model.config.model_type
        text_kind = text_config.model_type
        raise ConfigError(
            f"The type {kind} over {text_kind} is not supported: its outputs differ from those in transformers.",
            why=why,
            next_command="choose one of the types in docs/students.md",
        )


def picture_inputs(model: Any) -> tuple[str, ...]:
    """Return the names of the arguments from which transformers computes picture features."""
    return tuple(inspect.signature(model.base_model.get_image_features).parameters)


def layer_kinds(decoder: Any) -> frozenset[str]:
    """Return the kinds of a language model's layers; empty if the configuration does not list them."""
    return frozenset(getattr(decoder.config, "layer_types", None) or ())


def is_recurrent(decoder: Any) -> bool:
    """Return whether a state depends on everything before it in its row, regardless of the mask."""
    return bool(layer_kinds(decoder) & {*RECURRENT_LAYERS})


def read_published(path: Path, config: Any) -> tuple[Any, LoadReport]:
    """Load a model with transformers, which handles the key names of a type's older files.

    Args:
        path: path of its folder, or of a weights file in it.
        config: the model's transformers configuration.

    Raises:
        WeightsUnavailable: the weights are missing or damaged.
    """
    required_weights(path)
    folder = path if path.is_dir() else path.parent
    try:
        model, loaded = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable_weights(path, error) from None
    report = LoadReport(
        source=path.name,
        num_loaded=len(model.state_dict()) - len(loaded["missing_keys"]),
        missing=tuple(sorted(loaded["missing_keys"])),
        unexpected=tuple(sorted(loaded["unexpected_keys"])),
        reinitialised=tuple(
            f"{name} (file {tuple(have)}, student {tuple(wanted)})"
            for name, have, wanted in loaded["mismatched_keys"]
        ),
    )
    return model, report


def picture_features(
    parts: Any, inputs: Mapping[str, torch.Tensor], device: torch.device, *, in_tiles: bool
) -> torch.Tensor:
    """Return the features of pictures, (V, D, H); see `GenerativeStudent.picture_features`.

    Args:
        parts: the model without its word logits.
        inputs: inputs of its vision encoder.
        in_tiles: the encoder treats each tile of a picture as a separate picture.
    """
    if in_tiles:
        # Tiles have no padding. transformers' own forward pass searches for it, which synchronises with the device.
        encoder, pixels_U3EE = parts.vision_model, inputs["pixel_values"][0]
        side = pixels_U3EE.shape[-1] // encoder.patch_size
        everywhere = torch.ones(len(pixels_U3EE), side, side, dtype=torch.bool, device=pixels_U3EE.device)
        embedded = encoder.embeddings(pixel_values=pixels_U3EE, patch_attention_mask=everywhere)
        patches = encoder.encoder(inputs_embeds=embedded, attention_mask=None).last_hidden_state
        features: torch.Tensor = parts.connector(encoder.post_layernorm(patches))
        return features.flatten(0, 1)[:, None]
    laid_out = _laid_out(parts.visual, inputs[GRID], device) if GRID in inputs else {}
    output = parts.get_image_features(**inputs, **laid_out, return_dict=True)
    depths = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return torch.stack([_flat(features) for features in depths], dim=1)


def answer_likelihoods(
    model: Any, final_BWH: torch.Tensor, rows: Rows, num_sequences: int, num_answers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-likelihoods (N, K) of answers, float32, and the number of tokens (N, K) in each sum.

    Args:
        final_BWH: last states of rows that predict the answers.
        num_sequences: N.
        num_answers: K.
    """
    states_QH = final_BWH.flatten(0, 1).index_select(0, rows.source_Q)
    log_likelihoods = [states_QH.new_zeros(0, dtype=torch.float32)]
    for first in range(0, len(states_QH), ROWS_AT_ONCE):
        at = slice(first, first + ROWS_AT_ONCE)
        logits = word_logits(model, states_QH[at]).float()
        log_likelihoods.append(-functional.cross_entropy(logits, rows.target_Q[at], reduction="none"))
    total = states_QH.new_zeros(num_sequences * num_answers, dtype=torch.float32)
    number = torch.zeros_like(total, dtype=torch.int64)
    total = total.index_put((rows.answer_Q,), torch.cat(log_likelihoods), accumulate=True)
    number = number.index_put((rows.answer_Q,), torch.ones_like(rows.answer_Q), accumulate=True)
    return total.view(num_sequences, num_answers), number.view(num_sequences, num_answers)


def word_logits(model: Any, states_QH: torch.Tensor) -> torch.Tensor:
    """Return the logits of all words, as in transformers."""
    logits: torch.Tensor = model.lm_head(states_QH)
    cap = getattr(model.get_decoder().config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def last_states(
    decoder: Any,
    x_BWH: torch.Tensor,
    rows: Rows,
    *,
    mask_visual: bool,
    blocks: Blocks,
    image_token_id: int,
    **more: Any,
) -> torch.Tensor:
    """Return the last states (B, W, H) of rows.

    Args:
        x_BWH: input embeddings of the language model.
        blocks: as in `FamilyFacts`.
        more: its other inputs.
    """
    kinds = layer_kinds(decoder)
    masks: Any = None
    if not is_recurrent(decoder):
        windows = {"full_attention": None, "sliding_attention": getattr(decoder.config, "sliding_window", None)}
        masks = {
            kind: additive_mask(
                rows.allowed(mask_visual=mask_visual, window=window, blocks=blocks), compute_dtype(x_BWH)
            )[:, None]
            for kind, window in windows.items()
            if kind in (kinds or {"full_attention"})
        }
    if getattr(decoder.config, "hidden_size_per_layer_input", 0):
        words_BW = rows.ids_BW.masked_fill(rows.ids_BW == image_token_id, decoder.config.pad_token_id)
        more["per_layer_inputs"] = decoder.get_per_layer_inputs(words_BW, None)
    output = decoder(
        inputs_embeds=x_BWH,
        attention_mask=masks if kinds or masks is None else masks["full_attention"],
        position_ids=rows.positions_BW,
        use_cache=False,
        **more,
    )
    final: torch.Tensor = output.last_hidden_state
    return final


def states_of(output: Any) -> torch.Tensor:
    """Return the states in the output of a layer or of the entire stack."""
    if isinstance(output, tuple):
        output = output[0]
    states: torch.Tensor = getattr(output, "last_hidden_state", output)
    return states


def _flat(features: Any) -> torch.Tensor:
    """Return the features of several pictures, (V, H), from transformers' single tensor or one tensor each."""
    if isinstance(features, torch.Tensor):
        return features.flatten(0, -2)
    return torch.cat([part.flatten(0, -2) for part in features])


def add_inner_features(hidden_BWH: torch.Tensor, place_M: torch.Tensor, features_MH: torch.Tensor) -> torch.Tensor:
    """Add features to states, at places numbered over all rows or, as in transformers, where a mask is True.

    A mask synchronises with the device once per layer, to count the places.
    """
    if place_M.dtype == torch.bool:
        place_M = torch.nonzero(place_M.flatten())[:, 0]
    return hidden_BWH.flatten(0, 1).index_add(0, place_M, features_MH.to(hidden_BWH.dtype)).view_as(hidden_BWH)


def _laid_out(encoder: Any, grid_B3: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the positions of patches on the encoder's device; transformers would keep them on the CPU.

    Args:
        encoder: the encoder of a model with a grid per picture.
        grid_B3: frames, rows and columns of each picture's patches.
        device: device of the encoder.
    """
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    merge = int(encoder.config.spatial_merge_size)
    made = {"position_ids": get_vision_position_ids(grid_B3, merge)}
    if hasattr(encoder, "interpolation_mode"):
        made["interp_indices"], made["interp_weights"] = get_vision_interpolation_indices_and_weights(
            grid_B3,
            num_grid_per_side=encoder.num_grid_per_side,
            mode=encoder.interpolation_mode,
            align_corners=encoder.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    return {name: value.to(device, non_blocking=True) for name, value in made.items()}
