"""Chat models of many families, as folders of the hub: tiny random weights, and a processor of few words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of most families, with what stands for a picture in them in place of IMAGE."""

GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As LLaVA 1.5 has it: no token of its own ends a turn."""

IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 8}
"""Sizes of most vision encoders."""
SIGLIP = {**EYES, "model_type": "siglip_vision_model", "image_size": 32, "vision_use_head": False}
SQUARE = {"height": 32, "width": 32}
CHAT_MARKS = "<|im_start|> <|vision_start|> <|vision_end|> <image> <video>"


def tokenizer_of(marks: str = CHAT_MARKS, end: str = "<|im_end|>", *, image: str = "<image>", **special: str) -> Any:
    """Return a tokenizer of bytes and a few words with marks, of which some have names of their own."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", *marks.split(), *({end} - {*marks.split()})],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(
        ["user assistant the dog and the man are outside near a lake What is Why person"], trainer
    )
    special |= {"image_token": image} if image else {}
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=end, **special)


def _words(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "eos", "bos")}
    return {**WIDTHS, "vocab_size": len(tokenizer) + 8, **ids, **more}


def _ids(tokenizer: Any, **tokens: str) -> dict[str, int]:
    """Return what a configuration calls the ids of tokens."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _tiles(name: str, most: int) -> str:
    """Return the marks of rows and columns of tiles."""
    return " ".join(name.format(row, column) for row in range(1, most + 1) for column in range(1, most + 1))


def qwen(family: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_of(video_token="<video>")
    sizes: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    sizes |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 1024, "longest_edge": 4096}}
    kind, films = ("Qwen2_5_VL", "Qwen2VL") if family == "qwen2_5_vl" else ("Qwen3VL", "Qwen3VL")
    processor = getattr(hf, f"{kind}Processor")(
        hf.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        getattr(hf, f"{films}VideoProcessor")(**sizes),
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><image><|vision_end|>"),
    )
    vision: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4, "patch_size": 8}
    vision["out_hidden_size"] = 32
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = _words(tokenizer, rope_parameters=rope)
    if family == "qwen2_5_vl":
        vision |= {"window_size": 32, "fullatt_block_indexes": [1], "spatial_merge_size": 2}
    elif family == "qwen3_vl":
        text["head_dim"] = 16
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        rope |= {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    else:
        text |= {"head_dim": 32, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
        text |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        vision["num_position_embeddings"] = 16
        rope |= {"partial_rotary_factor": 0.25, "mrope_interleaved": True}
    return {
        "text_config": text,
        "vision_config": vision,
        **_ids(
            tokenizer,
            image_token_id="<image>",
            video_token_id="<video>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    }, processor


def internvl() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        f"{CHAT_MARKS} <img> </img>",
        image="",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<image>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )
    return {
        "text_config": _words(tokenizer, model_type="qwen2"),
        "vision_config": {**EYES, "image_size": [32, 32], "patch_size": [8, 8]},
        "image_token_id": processor.image_token_id,
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
    }, processor


def gemma3() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        "<bos> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image>",
        "<eos>",
        bos_token="<bos>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SQUARE),
        tokenizer,
        image_seq_length=4,
        chat_template=GEMMA.replace("IMAGE", "<start_of_image>"),
    )
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = _words(tokenizer, head_dim=8, sliding_window=8, num_hidden_layers=3, layer_types=kinds)
    ids = {"image_token_id": "<image>", "image_token_index": "<image>"}
    ids |= {"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"}
    return {
        "text_config": {**text, "query_pre_attn_scalar": 8},
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        **_ids(tokenizer, **ids),
    }, processor


def gemma4() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        "<bos> <start_of_turn> <end_of_turn> <boi> <eoi> <image> <video> <audio> <boa> <eoa>",
        "<eos>",
        **{f"{name}_token": f"<{name}>" for name in ("bos", "boi", "eoi", "audio", "boa", "eoa", "video")},
    )
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(patch_size=8, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer,
        hf.Gemma4VideoProcessor(patch_size=8, pooling_kernel_size=2),
        chat_template=GEMMA.replace("IMAGE", "<image>"),
        image_seq_length=70,
    )
    text = _words(tokenizer, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    text |= {"global_head_dim": 8, "num_global_key_value_heads": 2, "num_kv_shared_layers": 0}
    text |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tokenizer)}
    more = {"num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2, "position_embedding_size": 64}
    return {
        "text_config": text,
        "vision_config": {**EYES, **more},
        "audio_config": None,
        **_ids(tokenizer, **{f"{name}_token_id": f"<{name}>" for name in ("image", "video", "audio")}),
    }, processor


def llava() -> tuple[Any, Any]:
    tokenizer = tokenizer_of("<s> <image>", "</s>", bos_token="<s>")
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    return {
        "text_config": _words(tokenizer, model_type="llama"),
        "vision_config": {**EYES, "model_type": "clip_vision_model", "num_hidden_layers": 2, "image_size": 32},
        **_ids(tokenizer, image_token_id="<image>", image_token_index="<image>"),
    }, processor


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(video_token="<video>")
    grids = [[32, 32], [32, 64], [64, 32], [64, 64]]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=grids),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )
    return {
        "text_config": _words(tokenizer, model_type="qwen2"),
        "vision_config": {**SIGLIP, "num_hidden_layers": 2},
        "image_grid_pinpoints": grids,
        **_ids(
            tokenizer,
            **{f"{kind}_token_{name}": f"<{kind}>" for kind in ("image", "video") for name in ("id", "index")},
        ),
    }, processor


def paligemma() -> tuple[Any, Any]:
    tokenizer = tokenizer_of("<bos> <image>", "<eos>", bos_token="<bos>")
    pictures = hf.SiglipImageProcessor(size=SQUARE)
    pictures.image_seq_length = 16
    # It adds tokens of places to the tokenizer.
    processor = hf.PaliGemmaProcessor(pictures, tokenizer)
    return {
        "text_config": _words(tokenizer, head_dim=8, model_type="gemma", num_image_tokens=16),
        "vision_config": {**SIGLIP, "projection_dim": 32, "num_image_tokens": 16},
        "projection_dim": 32,
        "hidden_size": 32,
        **_ids(tokenizer, image_token_id="<image>", image_token_index="<image>"),
    }, processor


def lfm2_vl() -> tuple[Any, Any]:
    names = ("start", "end", "thumbnail")
    marks = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"
    tokenizer = tokenizer_of(
        " ".join([CHAT_MARKS, *marks, _tiles("<|img_row_{}_col_{}|>", 3)]),
        **{f"image_{name}_token": mark for name, mark in zip(names, marks, strict=True)},
    )
    sizes = {"encoder_patch_size": 8, "tile_size": 32, "min_tiles": 2, "max_tiles": 4, "max_num_patches": 64}
    sizes |= {"min_image_tokens": 4, "max_image_tokens": 16, "downsample_factor": 2}
    processor = hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(**sizes), tokenizer, chat_template=CHATML.replace("IMAGE", "<image>")
    )
    text = _words(tokenizer, model_type="lfm2", layer_types=["conv", "full_attention"])
    vision = {**EYES, "model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False}
    return {
        "text_config": {**text, "block_auto_adjust_ff_dim": False},
        "vision_config": vision,
        "projector_hidden_size": 32,
        "downsample_factor": 2,
        **_ids(tokenizer, image_token_id="<image>"),
    }, processor


def idefics(family: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        f"<|im_start|> <fake_token_around_image> <image> <global-img> {_tiles('<row_{}_col_{}>', 6)}",
        "<end_of_utterance>",
        image="",
        bos_token="<|im_start|>",
    )
    pictures = hf.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    kind = "idefics3_vision" if family == "idefics3" else "smolvlm_vision"
    return {
        "text_config": _words(tokenizer, model_type="llama"),
        "vision_config": {**EYES, "model_type": kind, "image_size": 32},
        "scale_factor": 2,
        **_ids(tokenizer, image_token_id="<image>"),
    }, hf.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS)


BUILDERS: Mapping[str, Any] = {
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: qwen("qwen3_vl"),
    "qwen3_5": lambda: qwen("qwen3_5"),
    "internvl": internvl,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "llava": llava,
    "llava_onevision": llava_onevision,
    "paligemma": paligemma,
    "lfm2_vl": lfm2_vl,
    "smolvlm": lambda: idefics("smolvlm"),
    "idefics3": lambda: idefics("idefics3"),
}


def write_tiny(family: str, folder: Path) -> Any:
    """Write a repository of a family: config.json, weights, processor; returns the processor."""
    settings, processor = BUILDERS[family]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(hf.AutoConfig.for_model(family, **settings))
    for value in model.parameters():
        # Gemma 3 starts what its pictures pass through at zero.
        if value.dim() > 1 and not value.any():
            torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor
