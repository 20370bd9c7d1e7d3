"""Processors over the embedded vocabulary, for chat models of small sizes that have no published one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from advl_pipeline.base.errors import ConfigError, advise
from advl_pipeline.students.tokenizer import embedded_tokenizer_file

MAX_SPLITS = 6
"""Rows and columns of tiles that SmolVLM's published vocabulary names."""

TILES_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Renders what SmolVLM's published template does."""


PATCHES_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders what Qwen3-VL's published template does for pictures and texts."""

FEWEST_PIXELS, MOST_PIXELS = 32 * 32, 64 * 64


def embedded_processor(model: Any) -> Any:
    """Return a processor over the embedded vocabulary, with the marks and a template of a published one.

    Args:
        model: transformers' configuration of the model.

    Raises:
        ConfigError: no such processor is made for a type.
    """
    if model.model_type in ("smolvlm", "idefics3"):
        return _of_tiles(model)
    if model.model_type == "qwen3_vl":
        return _of_patches(model.vision_config)
    what = f"A model of the type {model.model_type} has no processor over the embedded vocabulary."
    raise ConfigError(what, next_command=advise(["advl", "students", "list"]))


def _of_tiles(model: Any) -> Any:
    edge = model.vision_config.image_size
    side = edge // model.vision_config.patch_size // model.scale_factor
    numbers = range(1, MAX_SPLITS + 1)
    marks = ["<image>", "<global-img>", *(f"<row_{row}_col_{column}>" for row in numbers for column in numbers)]
    tokenizer = _tokenizer(
        ["<fake_token_around_image>", *marks], bos_token="<|im_start|>", eos_token="<end_of_utterance>"
    )
    pictures = Idefics3ImageProcessor(size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge})
    return Idefics3Processor(pictures, tokenizer, image_seq_len=side**2, chat_template=TILES_TEMPLATE)


def _of_patches(vision: Any) -> Any:
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(marks, eos_token="<|im_end|>")
    sizes = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "size": {"shortest_edge": FEWEST_PIXELS, "longest_edge": MOST_PIXELS},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen3VLVideoProcessor(**sizes), chat_template=PATCHES_TEMPLATE
    )


def _tokenizer(marks: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the embedded vocabulary for a size that has no published one.

    Args:
        marks: tokens of the template and of pictures.
        special: what the library knows by name, such as `eos_token`.
    """
    words = Tokenizer.from_file(str(embedded_tokenizer_file()))
    words.no_padding()
    words.no_truncation()
    # A conversation has the template's marks and no others.
    words.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", additional_special_tokens=list(marks), **special
    )
