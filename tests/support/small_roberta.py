"""A RoBERTa of two layers and random weights, saved as its library saves one."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tiny_tokenizers import build_tokenizer


def save_small_roberta(folder: Path) -> Path:
    """Save model and tokenizer into a folder."""
    build_tokenizer("bytes", folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf.RobertaModel(
        hf.RobertaConfig(**sizes, vocab_size=500, max_position_embeddings=130, pad_token_id=1)
    ).save_pretrained(folder)
    return folder
