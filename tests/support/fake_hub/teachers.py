"""Repositories of teachers as published: files, configuration keys, parameter names.

Only the widths are tiny and the weights random. Parameter names are those that the libraries write; names from older
versions are restored where the originals have them.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load, save
from timm import create_model
from tiny_extraction import tree_bytes

from fake_hub import tokenizers
from fake_hub.tokenizers import Files, as_json, vocabulary_size

State = dict[str, torch.Tensor]
Form = Callable[[State], Files]
"""Stores weights in files."""

MODELS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("teachers.toml").read_text(encoding="utf-8"))
SMALL: Mapping[str, Any] = MODELS.pop("small")


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440473133\n"
"""What a clone without Git LFS has in place of a large file."""


def page(name: str, *others: str) -> Files:
    """Return the unused files of a repository: a page, and weights for other programs."""
    return {"README.md": f"# {name}\n".encode(), ".gitattributes": b"*.bin filter=lfs\n"} | dict.fromkeys(
        others, b"x"
    )


def saved(model_class: Any, config: Any) -> tuple[Files, State]:
    """Return the files of a random model without its weights, and the weights by their published names."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for name, value in model.named_parameters():
            # Random like trained values: a default of 0 or 1 would hide that a parameter was not loaded.
            if value.ndim < 2 and "scale" not in name:
                value += 0.1 * torch.randn_like(value)
        model.save_pretrained(folder)
        files = tree_bytes(Path(folder))
    return files, load(files.pop("model.safetensors"))


def weights(state: State) -> Files:
    return {"model.safetensors": save({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})}


def pickled(state: State) -> Files:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return {"pytorch_model.bin": buffer.getvalue()}


def shards(state: State) -> Files:
    """Return weights in two shards with their index."""
    names = sorted(state)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = {f"model-0000{place}-of-00002.safetensors": part for place, part in enumerate(parts, start=1)}
    index = {
        "metadata": {"total_size": 0},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    return {
        file: weights({name: state[name] for name in part})["model.safetensors"] for file, part in files.items()
    } | {"model.safetensors.index.json": as_json(index)}


FORMS: Mapping[str, Form] = {"safetensors": weights, "pickled": pickled}
TOWERS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
"""Keys of the nested configurations of a pair."""


def configured(settings: Mapping[str, Any], size: int = 0, *, unused_words: int = 0) -> dict[str, Any]:
    """Return configuration settings merged over the small widths, with the vocabulary size of a tokenizer.

    Args:
        size: of the tokenizer's vocabulary, 0 without a tokenizer.
        unused_words: additional rows of the word embeddings.
    """
    ids = {name: size + value for name, value in settings.items() if name.endswith("_token_id") and value < 0}
    words = {"vocab_size": size + unused_words} if size else {}
    return {**SMALL, **words, **settings, **ids}


def published(family: str, name: str, *, form: Form | None = None) -> Files:
    """Return the repository of a transformers model, whose family is described in `teachers.toml`.

    Args:
        form: of the weights, instead of the family's own.
    """
    facts = MODELS[family]
    tokenizer: Files = getattr(tokenizers, facts["tokenizer"])() if "tokenizer" in facts else {}
    size = vocabulary_size(tokenizer) if "tokenizer.json" in tokenizer else 0

    def of_pair(settings: Mapping[str, Any]) -> dict[str, Any]:
        sizes = {tower: size if tower.startswith("text") else 0 for tower in TOWERS if tower in settings}
        return {**settings, **{tower: configured(settings[tower], words) for tower, words in sizes.items()}}

    settings, old = facts.get("config", {}), of_pair(facts.get("old", {}))
    is_pair = "text_config" in settings
    settings = of_pair(settings) if is_pair else configured(settings, size, unused_words=facts.get("unused_words", 0))
    model_class = getattr(hf, facts["model"])
    files, state = saved(model_class, model_class.config_class(**settings))
    now = json.loads(files["config.json"])
    kept = {key: now[key] for key in now if key not in facts.get("without", ["dtype"])}
    files["config.json"] = as_json({**kept, "torch_dtype": "float32", **old})
    if "pictures" in facts:
        files["preprocessor_config.json"] = as_json(facts["pictures"])
    for pattern, theirs in facts.get("renamed", {}).items():
        state = {re.sub(pattern, theirs, key): value for key, value in state.items()}
    state |= {key: torch.arange(number)[None] for key, number in facts.get("position_ids", {}).items()}
    for lay_down in [form] if form else [FORMS[kind] for kind in facts.get("forms", ["safetensors"])]:
        files |= lay_down(state)
    return files | tokenizer | page(name, *facts.get("others", "").split())


bert, clip, modernbert, roberta = (partial(published, family) for family in ("bert", "clip", "modernbert", "roberta"))


# timm models

NARROW: dict[str, dict[str, Any]] = {
    **{
        f"vit_{name}": {"embed_dim": 32, "depth": 2, "num_heads": 2}
        for name in (
            "base_patch16_dinov3 small_patch16_dinov3 large_patch16_dinov3 huge_plus_patch16_dinov3 "
            "base_patch16_dinov3_qkvb large_patch16_224 large_patch16_radio_v3 so400m_patch16_radio_v4 "
            "pe_core_large_patch14_336 pe_spatial_large_patch14_448 large_patch14_reg1_tipsv2"
        ).split()
    },
    "swin_large_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
}
"""Settings that make a timm architecture narrow; everything else matches its name."""


def narrow_models(create: Callable[..., Any]) -> Callable[..., Any]:
    """Return timm's `create_model` with narrow versions of the architectures."""

    def create_narrow(name: str, **settings: Any) -> Any:
        return create(name, **settings, **NARROW.get(name.partition(".")[0], {}))

    return create_narrow


def of_timm(architecture: str, name: str) -> Files:
    torch.manual_seed(0)
    model = narrow_models(create_model)(architecture, pretrained=False)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 2:
                value += 0.1 * torch.randn_like(value)
    state = dict(model.state_dict())
    known = {
        key: value
        for key, value in model.pretrained_cfg.items()
        if isinstance(value, str | int | float | list | tuple)
    }
    config = {
        "architecture": architecture.partition(".")[0],
        "num_classes": model.num_classes,
        "pretrained_cfg": known,
    }
    return {"config.json": as_json(config)} | weights(state) | pickled(state) | page(name)


PUBLISHED: dict[str, Callable[[str], Files]] = {
    **{
        repository: partial(published, family)
        for family, repositories in {
            "clip": "openai/clip-vit-base-patch16 openai/clip-vit-large-patch14 openai/clip-vit-large-patch14-336",
            "metaclip2": "facebook/metaclip-2-worldwide-l14",
            "siglip2": "google/siglip2-base-patch16-224 google/siglip2-so400m-patch14-384",
            "dinov2": "facebook/dinov2-base facebook/dinov2-large",
            "roberta": "FacebookAI/roberta-base FacebookAI/roberta-large",
            "bert": "google-bert/bert-large-uncased",
            "deberta": "microsoft/deberta-v3-large",
            "t5": "google-t5/t5-large",
            "modernbert": "answerdotai/ModernBERT-base",
        }.items()
        for repository in repositories.split()
    },
    **{
        f"timm/{architecture}": partial(of_timm, architecture)
        for architecture in (
            "vit_base_patch16_dinov3.lvd1689m",
            "vit_large_patch16_224.augreg_in21k_ft_in1k",
            "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
            "convnext_base.fb_in22k_ft_in1k",
            "vit_small_patch16_dinov3.lvd1689m",
            "vit_large_patch16_dinov3.lvd1689m",
            "vit_huge_plus_patch16_dinov3.lvd1689m",
            "convnext_base.dinov3_lvd1689m",
            "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
            "vit_large_patch16_radio_v3.c_radio",
            "vit_so400m_patch16_radio_v4.c_radio",
            "vit_pe_core_large_patch14_336.fb",
            "vit_pe_spatial_large_patch14_448.fb",
            "vit_large_patch14_reg1_tipsv2.webli",
        )
    },
}
"""Teacher repository -> the function that creates its files."""
