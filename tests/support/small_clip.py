"""A CLIP of two layers and random weights, saved as its library saves one: an aligned pair of towers for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_tokenizers import build_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {**SMALL, "image_size": 64, "patch_size": 16}


def clip_config() -> Any:
    """Return the configuration; the towers share a space of 24 dimensions."""
    words = {**SMALL, "vocab_size": 300, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    return hf.CLIPConfig(text_config={**words, "pad_token_id": 1}, vision_config=EYES, projection_dim=24)


def clip_processor() -> Any:
    """Return the picture processor that goes with it."""
    return hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def save_small_clip(folder: Path) -> tuple[Any, Any]:
    """Save model, tokenizer and processor into a folder; returns the model and the tokenizer."""
    tokenizer = build_tokenizer("clip", folder)
    torch.manual_seed(0)
    model = hf.CLIPModel(clip_config()).eval()
    model.save_pretrained(folder)
    clip_processor().save_pretrained(folder)
    return model, tokenizer
