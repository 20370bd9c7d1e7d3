"""Chat models of many families as hub folders: tiny random weights, and a processor with a small vocabulary."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FAMILIES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("chat_models.toml").read_text(encoding="utf-8"))
TEMPLATES: Mapping[str, str] = FAMILIES.pop("templates")
WIDTHS: Mapping[str, Any] = FAMILIES.pop("widths")


def merged(usual: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of another of its kind, table by table."""
    inside = {
        name: merged(usual[name], other[name])
        for name in usual.keys() & other.keys()
        if isinstance(usual[name], dict) and isinstance(other[name], dict)
    }
    return {**usual, **other, **inside}


for _name, _facts in FAMILIES.items():
    if usual := _facts.pop("like", None):
        FAMILIES[_name] = merged({"type": usual, **FAMILIES[usual]}, _facts)


def tokenizer_of(
    marks: str = "<|im_start|> <|vision_start|> <|vision_end|> <image> <video>",
    end: str = "<|im_end|>",
    tiles: tuple[str, int] = ("", 0),
    **special: str,
) -> Any:
    """Return a tokenizer of bytes, a few words and special tokens, some of which have names."""
    name, most = tiles
    every = [
        *marks.split(),
        *(name.format(row, column) for row in range(1, most + 1) for column in range(1, most + 1)),
    ]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", *every, *({end} - {*every})],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(
        ["user assistant the dog and the man are outside near a lake What is Why person"], trainer
    )
    named = {role: token for role, token in {"image_token": "<image>", **special}.items() if token}
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=end, **named)


def made(settings: Mapping[str, Any], **more: Any) -> Any:
    """Return a transformers object of the class named in its settings."""
    return getattr(hf, settings["class"])(**{name: settings[name] for name in settings if name != "class"}, **more)


def resolved(value: Any, words: Mapping[str, Any]) -> Any:
    """Return settings with placeholder words replaced by their values."""
    if isinstance(value, dict):
        return {name: resolved(inside, words) for name, inside in value.items()}
    return words.get(value, value) if isinstance(value, str) else value


def text_type(family: str) -> tuple[str, str]:
    """Return the type of a family's models, and that of their language model."""
    facts = FAMILIES[family]
    kind: str = facts.get("type", family)
    settings = resolved(facts["config"], {"words": 400, "null": None})
    settings["text_config"] = {**WIDTHS["text_config"], **settings["text_config"]}
    return kind, hf.AutoConfig.for_model(kind, **settings).get_text_config().model_type


def write_tiny(family: str, folder: Path, **text_config: Any) -> Any:
    """Write a repository of a family (config.json, weights, processor); returns the processor.

    Args:
        text_config: other settings of the language model.
    """
    facts = FAMILIES[family]
    tokenizer = tokenizer_of(**facts["tokenizer"])
    template, image = facts.get("template", ("", ""))
    processor = made(
        facts["processor"],
        tokenizer=tokenizer,
        chat_template=TEMPLATES[template].replace("IMAGE", image) if template else None,
        **{name: made(part) for name, part in facts["parts"].items()},
    )
    # Some processors add tokens to their tokenizer.
    settings = resolved(facts["config"], {"words": len(tokenizer), "null": None})
    settings |= {name: tokenizer.convert_tokens_to_ids(token) for name, token in facts["ids"].items()}
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "eos", "bos")}
    words = {"vocab_size": len(tokenizer) + 8, **ids}
    settings["text_config"] = {**WIDTHS["text_config"], **words, **settings["text_config"], **text_config}
    settings["vision_config"] = {**WIDTHS["vision_config"], **settings["vision_config"]}
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(facts.get("type", family), **settings)
    model = hf.AutoModelForImageTextToText.from_config(config)
    for value in model.parameters():
        # Gemma 3 initialises its picture projection to zero.
        if value.dim() > 1 and not value.any():
            torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor
