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
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vision_use_head": False,
}
CHAT_MARKS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<image>", "<video>")


def tokenizer_of(marks: tuple[str, ...] = CHAT_MARKS, end: str = "<|im_end|>", **special: str) -> Any:
    """Return a tokenizer of bytes and a few words with marks, of which some have names of their own."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", *marks, *({end} - {*marks})],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(
        ["user assistant the dog and the man are outside near a lake What is Why person"], trainer
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=end, **special)


def _words(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        **WIDTHS,
        "vocab_size": len(tokenizer) + 8,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **more,
    }


def qwen(family: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_of(image_token="<image>", video_token="<video>")
    sizes = {
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 1024, "longest_edge": 4096},
    }
    kinds = {
        "qwen2_5_vl": ("Qwen2_5_VL", "Qwen2VL"),
        "qwen3_vl": ("Qwen3VL", "Qwen3VL"),
        "qwen3_5": ("Qwen3VL", "Qwen3VL"),
    }
    processor_kind, video_kind = kinds[family]
    processor = getattr(hf, f"{processor_kind}Processor")(
        hf.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        getattr(hf, f"{video_kind}VideoProcessor")(**sizes),
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><image><|vision_end|>"),
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "depth": 2,
        "num_heads": 4,
        "patch_size": 8,
        "out_hidden_size": 32,
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = _words(tokenizer, rope_parameters=rope)
    if family == "qwen2_5_vl":
        vision |= {"window_size": 32, "fullatt_block_indexes": [1], "spatial_merge_size": 2}
    else:
        text |= {"head_dim": 16}
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        rope |= {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    if family == "qwen3_5":
        text |= {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "head_dim": 32,
        }
        rope |= {"partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]}
        vision.pop("deepstack_visual_indexes")
    start, end = (tokenizer.convert_tokens_to_ids(f"<|vision_{side}|>") for side in ("start", "end"))
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<video>"),
        "vision_start_token_id": start,
        "vision_end_token_id": end,
    }, processor


def internvl() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        (*CHAT_MARKS, "<img>", "</img>"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<image>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        hf.InternVLVideoProcessor(size={"height": 32, "width": 32}),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )
    return {
        "text_config": {**_words(tokenizer), "model_type": "qwen2"},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        "image_token_id": processor.image_token_id,
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
    }, processor


def gemma3() -> tuple[Any, Any]:
    marks = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image>")
    tokenizer = tokenizer_of(
        marks,
        "<eos>",
        bos_token="<bos>",
        image_token="<image>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer,
        image_seq_length=4,
        chat_template=GEMMA.replace("IMAGE", "<start_of_image>"),
    )
    return {
        "text_config": _words(
            tokenizer,
            head_dim=8,
            sliding_window=8,
            num_hidden_layers=3,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "vision_config": {**SIGLIP, "image_size": 32, "patch_size": 8},
        "image_token_id": tokenizer.image_token_id,
        "image_token_index": tokenizer.image_token_id,
        "boi_token_index": tokenizer.boi_token_id,
        "eoi_token_index": tokenizer.eoi_token_id,
        "mm_tokens_per_image": 4,
    }, processor


def gemma4() -> tuple[Any, Any]:
    marks = (
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<boi>",
        "<eoi>",
        "<image>",
        "<video>",
        "<audio>",
        "<boa>",
        "<eoa>",
    )
    tokenizer = tokenizer_of(
        marks,
        "<eos>",
        bos_token="<bos>",
        image_token="<image>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        audio_token="<audio>",
        boa_token="<boa>",
        eoa_token="<eoa>",
        video_token="<video>",
    )
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(patch_size=8, max_soft_tokens=70, pooling_kernel_size=2),
        tokenizer,
        hf.Gemma4VideoProcessor(patch_size=8, pooling_kernel_size=2),
        chat_template=GEMMA.replace("IMAGE", "<image>"),
        image_seq_length=70,
    )
    return {
        "text_config": _words(
            tokenizer,
            head_dim=8,
            global_head_dim=8,
            num_global_key_value_heads=2,
            sliding_window=8,
            num_hidden_layers=2,
            layer_types=["sliding_attention", "full_attention"],
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=len(tokenizer),
            num_kv_shared_layers=0,
        ),
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        "audio_config": None,
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "audio_token_id": tokenizer.audio_token_id,
    }, processor


def llava() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(("<s>", "<image>"), "</s>", bos_token="<s>", image_token="<image>")
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    return {
        "text_config": {**_words(tokenizer), "model_type": "llama"},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        "image_token_id": tokenizer.image_token_id,
        "image_token_index": tokenizer.image_token_id,
    }, processor


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(image_token="<image>", video_token="<video>")
    grids = [[32, 32], [32, 64], [64, 32], [64, 64]]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size={"height": 32, "width": 32}, image_grid_pinpoints=grids),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )
    return {
        "text_config": {**_words(tokenizer), "model_type": "qwen2"},
        "vision_config": {**SIGLIP, "image_size": 32, "patch_size": 8, "num_hidden_layers": 2},
        "image_token_id": tokenizer.image_token_id,
        "image_token_index": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "video_token_index": tokenizer.video_token_id,
        "image_grid_pinpoints": grids,
    }, processor


def paligemma() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(("<bos>", "<image>"), "<eos>", bos_token="<bos>", image_token="<image>")
    pictures = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    pictures.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(pictures, tokenizer)
    return {
        "text_config": {**_words(tokenizer, head_dim=8), "model_type": "gemma", "num_image_tokens": 16},
        "vision_config": {**SIGLIP, "image_size": 32, "patch_size": 8, "projection_dim": 32, "num_image_tokens": 16},
        "image_token_id": tokenizer.image_token_id,
        "image_token_index": tokenizer.image_token_id,
        "projection_dim": 32,
        "hidden_size": 32,
    }, processor


def lfm2_vl() -> tuple[Any, Any]:
    numbers = range(1, 4)
    tiles = tuple(f"<|img_row_{row}_col_{column}|>" for row in numbers for column in numbers)
    tokenizer = tokenizer_of(
        (*CHAT_MARKS, "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles),
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    processor = hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(
            encoder_patch_size=8,
            tile_size=32,
            min_tiles=2,
            max_tiles=4,
            min_image_tokens=4,
            max_image_tokens=16,
            max_num_patches=64,
            downsample_factor=2,
        ),
        tokenizer,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    return {
        "text_config": {
            **_words(tokenizer),
            "model_type": "lfm2",
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        "vision_config": {
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "patch_size": 8,
            "num_patches": 16,
            "vision_use_head": False,
        },
        "image_token_id": tokenizer.image_token_id,
        "projector_hidden_size": 32,
        "downsample_factor": 2,
    }, processor


def idefics(family: str) -> tuple[Any, Any]:
    numbers = range(1, 7)
    tiles = tuple(f"<row_{row}_col_{column}>" for row in numbers for column in numbers)
    tokenizer = tokenizer_of(
        ("<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", *tiles),
        "<end_of_utterance>",
        bos_token="<|im_start|>",
    )
    pictures = hf.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = hf.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS)
    kind = "idefics3_vision" if family == "idefics3" else "smolvlm_vision"
    return {
        "text_config": {**_words(tokenizer), "model_type": "llama"},
        "vision_config": {
            "model_type": kind,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
    }, processor


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
