"""Repositories of students as they are published: files, configuration keys, names of parameters, tokenizers.

Only their widths are tiny and their weights random, as in `hub_repositories`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from hub_repositories import State, page, pickled, saved, shards, weights
from hub_tokenizers import (
    Files,
    as_json,
    byte_level,
    fast,
    merges_file,
    modernbert_tokenizer,
    roberta_tokenizer,
    vocabulary_size,
    wordpiece_tokenizer,
)
from tiny_chat_models import CHATML, EYES, IDEFICS, WIDTHS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from advl_pipeline.students.registry import build_student

# Students whose architecture is a preset.


def whole_state(model_class: Any, config: Any, **more: torch.Tensor) -> tuple[Files, State]:
    """Return config.json and all that `state_dict` holds, as older files do: tied words twice, and constants."""
    torch.manual_seed(0)
    described = {**config.to_diff_dict(), "architectures": [model_class.__name__], "torch_dtype": "float32"}
    return {"config.json": as_json(described)}, {**model_class(config).state_dict(), **more}


def preset(name: str, tokenizer: Files, *, num_unused: int = 0) -> Any:
    """Return a student of a tiny preset whose word table is that of a tokenizer."""
    return build_student(name, overrides={"vocab_size": vocabulary_size(tokenizer) + num_unused})


def vilt() -> Files:
    tokenizer = wordpiece_tokenizer()
    config = preset("vilt-tiny", tokenizer).model.config
    positions = torch.arange(config.max_position_embeddings)[None]
    places = {"vilt.embeddings.text_embeddings.position_ids": positions}
    files, state = whole_state(hf.ViltForMaskedLM, config, **places)
    state["mlm_score.bias"] = state.pop("mlm_score.decoder.bias")
    return files | tokenizer | pickled(state)


def lxmert() -> Files:
    tokenizer = wordpiece_tokenizer()
    files, state = whole_state(hf.LxmertForPreTraining, preset("lxmert-tiny", tokenizer).model.config)
    return files | tokenizer | pickled(state)


def visualbert() -> Files:
    """It is published without a tokenizer: that of BERT is taken."""
    student: Any = build_student("visualbert-tiny")
    config = student.library_config()
    positions = torch.arange(config.max_position_embeddings)[None]
    places = {"visual_bert.embeddings.position_ids": positions}
    files, state = whole_state(hf.VisualBertForPreTraining, config, **places)
    return files | pickled(state)


def bridgetower() -> Files:
    tokenizer = roberta_tokenizer()
    config = preset("bridgetower-tiny", tokenizer).model.config
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    places = {
        "text_model.embeddings.position_ids": torch.arange(config.text_config.max_position_embeddings)[None],
        "vision_model.visual.embeddings.position_ids": torch.arange(patches + 1)[None],
    }
    files, state = whole_state(hf.BridgeTowerModel, config, **places)
    return files | tokenizer | pickled(state)


def modernvbert() -> Files:
    tokenizer = modernbert_tokenizer()
    config = preset("modernvbert-tiny", tokenizer, num_unused=1).model.config
    files, state = whole_state(hf.ModernVBertForMaskedLM, config)
    nested = ("model.vision_model.", "model.vision_model.vision_model.")
    return files | tokenizer | weights({name.replace(*nested): value for name, value in state.items()})


# Chat models, whose architecture is their config.json.


def bpe(pre_tokenizer: Any, marks: tuple[str, ...]) -> tuple[Tokenizer, Files]:
    """Return a tokenizer of bytes with marks, and its files but for tokenizer_config.json."""
    vocabulary, merges = byte_level()
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair.split()) for pair in merges]))
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return core, fast(core) | {"vocab.json": as_json(vocabulary), "merges.txt": merges_file(merges)}


def added(core: Tokenizer, marks: tuple[str, ...]) -> dict[str, Any]:
    """Return `added_tokens_decoder` of a tokenizer_config.json."""
    usual = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(core.token_to_id(mark)): {"content": mark, **usual} for mark in marks}


SMOL_MARKS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    *("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
)


def smol_vlm(model_type: str, *, is_tied: bool = False, template: str = "json", dtype: str = "bfloat16") -> Files:
    """Return a SmolVLM, of either model type.

    Args:
        model_type: idefics3 of the first, smolvlm of the second.
        template: where it lies, chat_template.json and tokenizer_config.json, or chat_template.jinja alone.
    """
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    kind = "Idefics3" if model_type == "idefics3" else "SmolVLM"
    core, files = bpe(cut, SMOL_MARKS)
    size = vocabulary_size(files)
    roles = dict(
        zip(("unk_token", "bos_token", "pad_token", "eos_token"), (*SMOL_MARKS[:3], SMOL_MARKS[-1]), strict=True)
    )
    settings: dict[str, Any] = {
        **roles,
        "additional_special_tokens": list(SMOL_MARKS[-3:]),
        "add_prefix_space": False,
    }
    settings |= {"added_tokens_decoder": added(core, SMOL_MARKS), "clean_up_tokenization_spaces": False}
    settings |= {"extra_special_tokens": {}, "legacy": False, "model_max_length": 8192}
    settings |= {"processor_class": f"{kind}Processor", "tokenizer_class": "GPT2Tokenizer"}
    settings["vocab_size"] = size - len(SMOL_MARKS)
    if template == "json":
        settings["chat_template"] = IDEFICS
        files["chat_template.json"] = as_json({"chat_template": IDEFICS})
    else:
        files["chat_template.jinja"] = IDEFICS.encode()
    text: dict[str, Any] = {**WIDTHS, "model_type": "llama", "head_dim": 8, "vocab_size": size, "rms_norm_eps": 1e-05}
    text |= {"rope_theta": 100000, "pad_token_id": core.token_to_id("<|im_end|>"), "torch_dtype": "bfloat16"}
    text |= {"is_llama_config": True, "architectures": ["VLlama3ForCausalLM"], "use_resampler": False}
    text["perceiver_config"] = {"model_type": "vllama3", "resampler_depth": 6, "torch_dtype": None}
    eyes: dict[str, Any] = {
        **EYES,
        "image_size": 32,
        "max_image_size": {"longest_edge": 32},
        "use_base_siglip": False,
    }
    eyes["model_type"] = "idefics3" if model_type == "idefics3" else "smolvlm_vision"
    config: dict[str, Any] = {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "image_token_id": core.token_to_id("<image>"),
        "model_type": model_type,
        "pad_token_id": 128002,
        "scale_factor": 2,
        "text_config": text,
        "tie_word_embeddings": is_tied,
        "torch_dtype": dtype,
        "transformers_version": "4.46.0",
        "vision_config": eyes,
        "vocab_size": size,
    }
    does = ("convert_rgb", "image_splitting", "normalize", "pad", "rescale", "resize")
    pictures: dict[str, Any] = {f"do_{name}": True for name in does}
    pictures |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pictures |= {"image_processor_type": f"{kind}ImageProcessor", "max_image_size": {"longest_edge": 32}}
    pictures |= {"processor_class": f"{kind}Processor", "resample": 1, "rescale_factor": 1 / 255}
    pictures |= {"size": {"longest_edge": 64}}
    return files | chat_files(config, settings, pictures, form=weights) | {
        "special_tokens_map.json": as_json(roles),
        "processor_config.json": as_json({"image_seq_len": 4, "processor_class": f"{kind}Processor"}),
    }  # fmt: skip


QWEN_MARKS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)


def qwen3_vl(form: Callable[[State], Files] = weights) -> Files:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    parts = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    core, files = bpe(pre_tokenizers.Sequence(parts), QWEN_MARKS)
    core.normalizer = normalizers.NFC()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    files |= fast(core)
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    settings: dict[str, Any] = {"add_bos_token": False, "add_prefix_space": False, "bos_token": None}
    settings["chat_template"] = template
    settings |= {"added_tokens_decoder": added(core, QWEN_MARKS), "clean_up_tokenization_spaces": False}
    settings |= {"additional_special_tokens": list(QWEN_MARKS[1:]), "eos_token": "<|im_end|>", "errors": "replace"}
    settings |= {"model_max_length": 262144, "pad_token": "<|endoftext|>", "split_special_tokens": False}
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    text: dict[str, Any] = {**WIDTHS, "head_dim": 16, "dtype": "bfloat16", "model_type": "qwen3_vl_text"}
    text["rope_scaling"] = rope
    text |= {"rope_theta": 5000000, "tie_word_embeddings": True, "vocab_size": vocabulary_size(files) + 7}
    text |= {"bos_token_id": core.token_to_id("<|endoftext|>"), "eos_token_id": core.token_to_id("<|im_end|>")}
    eyes: dict[str, Any] = {"depth": 2, "deepstack_visual_indexes": [0], "hidden_size": 32, "intermediate_size": 64}
    eyes |= {"model_type": "qwen3_vl", "num_heads": 4, "num_position_embeddings": 16, "out_hidden_size": 32}
    eyes |= {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    config: dict[str, Any] = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "vision_config": eyes,
    } | {
        f"{kind}_token_id": core.token_to_id(f"<|{mark}|>")
        for kind, mark in {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start",
                           "vision_end": "vision_end"}.items()
    }  # fmt: skip
    pictures: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "merge_size": 2, "patch_size": 16}
    pictures |= {"temporal_patch_size": 2, "size": {"longest_edge": 4096, "shortest_edge": 1024}}
    pictures["processor_class"] = "Qwen3VLProcessor"
    films = pictures | {"video_processor_type": "Qwen3VLVideoProcessor"}
    pictures["image_processor_type"] = "Qwen2VLImageProcessorFast"
    return files | chat_files(config, settings, pictures, form=form) | {
        "chat_template.json": as_json({"chat_template": template}),
        "video_preprocessor_config.json": as_json(films),
    }  # fmt: skip


def chat_files(
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    pictures: Mapping[str, Any],
    *,
    form: Callable[[State], Files],
) -> Files:
    """Return what every chat model's repository has: configurations, and weights of the dtype that is named."""
    (architecture,) = config["architectures"]
    read = hf.AutoConfig.for_model(**config)
    files, state = saved(getattr(hf, architecture), read)
    dtype = torch.float32 if config.get("torch_dtype") == "float32" else torch.bfloat16
    return {
        "config.json": as_json(config),
        "generation_config.json": files["generation_config.json"],
        "tokenizer_config.json": as_json(tokenizer),
        "preprocessor_config.json": as_json(pictures),
        **form({name: value.to(dtype) for name, value in state.items()}),
    }


PUBLISHED: Mapping[str, Callable[[], Files]] = {
    "dandelin/vilt-b32-mlm": vilt,
    "unc-nlp/lxmert-base-uncased": lxmert,
    "uclanlp/visualbert-vcr-coco-pre": visualbert,
    "BridgeTower/bridgetower-base": bridgetower,
    "ModernVBERT/modernvbert": modernvbert,
    "HuggingFaceTB/SmolVLM-256M-Instruct": functools.partial(smol_vlm, "idefics3"),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": functools.partial(smol_vlm, "smolvlm", dtype="float32"),
    "lab/idefics3-of-today": functools.partial(smol_vlm, "idefics3", is_tied=True, template="jinja"),
    "Qwen/Qwen3-VL-2B-Instruct": qwen3_vl,
    "Qwen/Qwen3-VL-4B-Instruct": functools.partial(qwen3_vl, shards),
}
"""Repositories of students -> what makes their files."""


def student_files(name: str) -> Files:
    """Return the files of a published repository."""
    return PUBLISHED[name]() | page(name)
