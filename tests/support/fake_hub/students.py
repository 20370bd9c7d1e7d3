"""Student repositories as published: files, configuration keys, parameter names, tokenizers.

Only the widths are tiny and the weights random, as in `teachers`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_chat_models import TEMPLATES, WIDTHS, resolved
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from advl_pipeline.students.registry import build_student
from fake_hub import tokenizers
from fake_hub.teachers import FORMS, Form, page, saved, shards, weights
from fake_hub.tokenizers import Files, as_json, byte_core, byte_level, fast, merges_file, vocabulary_size

FACTS = tomllib.loads(Path(__file__).with_name("students.toml").read_text(encoding="utf-8"))


def preset(name: str) -> Files:
    """Return a student with the architecture of its tiny preset and the vocabulary size of its tokenizer.

    Its weights are the complete `state_dict`, as in older files: tied word embeddings twice, and constants.
    """
    facts = FACTS["presets"][name]
    tokenizer: Files = getattr(tokenizers, facts["tokenizer"])() if "tokenizer" in facts else {}
    words = {"vocab_size": vocabulary_size(tokenizer) + facts.get("unused_words", 0)} if tokenizer else {}
    student: Any = build_student(f"{name}-tiny", overrides=words)
    torch.manual_seed(0)
    state = getattr(hf, facts["model"])(student.model.config).state_dict()
    for ours, theirs in facts.get("renamed", {}).items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    state |= {key: torch.arange(512)[None] for key in facts.get("position_ids", ())}
    described = {**student.model.config.to_diff_dict(), "architectures": [facts["model"]], "torch_dtype": "float32"}
    return {"config.json": as_json(described)} | tokenizer | FORMS[facts.get("form", "pickled")](state)


def chat_model(
    name: str, cut: Callable[[Tokenizer], None], *, kind: str = "", form: Form = weights, is_jinja: bool = False,
    **changes: Any,
) -> Files:  # fmt: skip
    """Return a chat model's repository.

    Args:
        cut: truncation settings of the tokenizer.
        kind: prefix of its class names.
        form: of the weights, which have the named dtype.
        is_jinja: the template is in a separate file only, not in two JSON files.
        changes: to config.json.
    """
    facts = json.loads(json.dumps(FACTS[name]).replace("KIND", kind))
    tiles = (f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    marks = (*facts["marks"].replace("TILES", " ".join(tiles)).split(),)
    vocabulary, merges = byte_level()
    core = byte_core(vocabulary, merges, [AddedToken(mark, special=True, normalized=False) for mark in marks])
    cut(core)
    template, image = facts["template"]
    rendered = TEMPLATES[template].replace("IMAGE", image)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = resolved(facts["tokenizer"], {"null": None, "words": len(vocabulary)})
    settings["added_tokens_decoder"] = {str(core.token_to_id(mark)): {"content": mark, **flags} for mark in marks}
    files = {"chat_template.jinja": rendered.encode()}
    if not is_jinja:
        settings["chat_template"] = rendered
        files = {"chat_template.json": as_json({"chat_template": rendered})}
    files |= fast(core) | {"vocab.json": as_json(vocabulary), "merges.txt": merges_file(merges)}
    size = core.get_vocab_size() + facts.get("unused_words", 0)
    config = resolved(facts["config"], {**core.get_vocab(), "words": size})
    parts = ("text_config", "vision_config")
    config |= changes | {part: {**WIDTHS[part], **config[part], **changes.get(part, {})} for part in parts}
    (architecture,) = config["architectures"]
    made, state = saved(getattr(hf, architecture), hf.AutoConfig.for_model(**config))
    dtype = torch.float32 if config.get("torch_dtype") == "float32" else torch.bfloat16
    written = {
        "config.json": config,
        "tokenizer_config.json": settings,
        "preprocessor_config.json": facts["pictures"],
    }
    files |= {file: as_json(content) for file, content in (written | facts["files"]).items()}
    files["generation_config.json"] = made["generation_config.json"]
    return files | form({key: value.to(dtype) for key, value in state.items()})


def cut_as_smolvlm(core: Tokenizer) -> None:
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def cut_as_qwen(core: Tokenizer) -> None:
    pattern = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior="isolated"), as_bytes])
    core.normalizer = normalizers.NFC()
    core.post_processor = processors.ByteLevel(trim_offsets=False)


def smol_vlm(model_type: str, **more: Any) -> Files:
    """Return a SmolVLM of either model type: idefics3 for version 1, smolvlm for version 2."""
    is_first = model_type == "idefics3"
    eyes = {"model_type": "idefics3" if is_first else "smolvlm_vision"}
    kind = "Idefics3" if is_first else "SmolVLM"
    return chat_model("smolvlm", cut_as_smolvlm, kind=kind, model_type=model_type, vision_config=eyes, **more)


MADE: Mapping[str, Callable[[], Files]] = {
    "dandelin/vilt-b32-mlm": partial(preset, "vilt"),
    "unc-nlp/lxmert-base-uncased": partial(preset, "lxmert"),
    "uclanlp/visualbert-vcr-coco-pre": partial(preset, "visualbert"),
    "BridgeTower/bridgetower-base": partial(preset, "bridgetower"),
    "ModernVBERT/modernvbert": partial(preset, "modernvbert"),
    "HuggingFaceTB/SmolVLM-256M-Instruct": partial(smol_vlm, "idefics3", torch_dtype="bfloat16"),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": partial(smol_vlm, "smolvlm", torch_dtype="float32"),
    "lab/idefics3-of-today": partial(smol_vlm, "idefics3", tie_word_embeddings=True, is_jinja=True),
    "Qwen/Qwen3-VL-2B-Instruct": partial(chat_model, "qwen3_vl", cut_as_qwen),
    "Qwen/Qwen3-VL-4B-Instruct": partial(chat_model, "qwen3_vl", cut_as_qwen, form=shards),
}
"""Student repository -> the function that creates its files, without a page."""


def _with_page(name: str) -> Files:
    return MADE[name]() | page(name)


PUBLISHED: Mapping[str, Callable[[str], Files]] = dict.fromkeys(MADE, _with_page)
"""Student repository -> the function that creates its files."""
