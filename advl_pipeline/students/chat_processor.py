"""Load the processor of a chat model, apply a student's settings, and check that it fits the model.

Small models without a published processor get one over the embedded vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from advl_pipeline.base.errors import ConfigError, WeightsUnavailable, advise
from advl_pipeline.base.repositories import fetch, take_published_parts
from advl_pipeline.students.chat_config import FamilyFacts, GenerativeConfig
from advl_pipeline.students.chat_pictures import GRID
from advl_pipeline.students.tokenizer import EMBEDDED_TOKENIZER, embedded_tokenizer_file

PICTURE_SETTINGS = ("min_pixels", "max_pixels", "longest_edge", "image_splitting")
"""Settings of a student that configure its image processor."""


def load_processor(config: GenerativeConfig, model: Any, facts: FamilyFacts) -> Any:
    """Load a student's processor and apply its picture settings.

    Args:
        config: the student's configuration.
        model: transformers' configuration of its model.
        facts: facts of the model's type.

    Raises:
        WeightsUnavailable: the processor is not on this machine and cannot be downloaded. ConfigError: the processor
            has no such setting, or the settings contradict each other.
    """
    if config.tokenizer == EMBEDDED_TOKENIZER:
        processor = embedded_processor(model)
    else:
        processor = _published_processor(config.tokenizer, facts)
    _set_pictures(processor.image_processor, config)
    return processor


def _published_processor(name: str, facts: FamilyFacts) -> Any:
    """Load a processor from a folder, or by its name on the hub."""
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch(name, what="files of the student's processor", option="--tokenizer", weights=())
    try:
        kind = getattr(transformers, facts.processor)
        processor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        take_published_parts(processor.tokenizer, folder)
    except Exception as error:  # The library of tokenizers raises nothing narrower.
        raise WeightsUnavailable(
            "The student's processor is not on this machine.",
            where=name,
            why=str(error).strip().split("\n", maxsplit=1)[0],
            next_command="--tokenizer FOLDER that holds its tokenizer.json, processor_config.json and chat template",
        ) from None
    processor.chat_template = processor.chat_template or facts.template
    return processor


def _set_pictures(pictures: Any, config: GenerativeConfig) -> None:
    size, where = dict(pictures.size or {}), config.tokenizer
    is_counted = GRID in pictures.model_input_names
    keys = {"longest_edge": "longest_edge"}
    if is_counted:
        keys = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    given = {name: getattr(config, name) for name in PICTURE_SETTINGS if getattr(config, name) is not None}
    for name, value in given.items():
        if name == "image_splitting" and hasattr(pictures, "do_image_splitting"):
            pictures.do_image_splitting = value
        elif size.get(keys.get(name, "")):
            size[keys[name]] = value
        else:
            raise ConfigError(
                f"The processor has no setting {name}.",
                where=where,
                why=f"it is set by {', '.join(size)}",
                next_command=f"leave out --student-option {name}",
            )
    if is_counted and size.get("shortest_edge", 0) > size.get("longest_edge", 0):
        raise ConfigError(
            f"min_pixels={size['shortest_edge']} is larger than max_pixels={size['longest_edge']}.",
            where=where,
            next_command=f"--student-option min_pixels={size['longest_edge']}",
        )
    if given:
        pictures.size = size


def require_fit(processor: Any, model: Any, num_rows: int, facts: FamilyFacts, *, where: str) -> None:
    """Refuse a processor of another model, with other tokens or other patches.

    Args:
        model: transformers' configuration.
        num_rows: number of rows of the model's word embeddings.
        where: location of the processor, for errors.

    Raises:
        ConfigError: the processor belongs to another model.
    """
    why = _misfit(processor, model, num_rows, facts)
    if why:
        raise ConfigError(
            "The processor does not belong to these weights.",
            where=where,
            why=why,
            next_command="--tokenizer FOLDER that holds the processor of the same model",
        )


def _misfit(processor: Any, model: Any, num_rows: int, facts: FamilyFacts) -> str:
    num_tokens, misread = len(processor.tokenizer), "every word would be read as another one"
    if num_tokens > num_rows:
        return f"it has {num_tokens:,} tokens, the model's word table {num_rows:,} rows: {misread}"
    if not getattr(processor, "image_token", None):
        return "it has no picture token"
    known = [token for token in processor.image_token_ids if token is not None]
    if model.image_token_id not in known:
        return f"a picture's token is its {known[0]}, and the model's {model.image_token_id}: {misread}"
    pictures, vision = processor.image_processor, model.vision_config
    taken = {
        name.removeprefix("spatial_"): getattr(vision, name)
        for name in ("patch_size", "temporal_patch_size", "spatial_merge_size")
        if hasattr(vision, name) and hasattr(pictures, name.removeprefix("spatial_"))
    }
    made = {name: getattr(pictures, name) for name in taken}
    if facts.tiles:
        side = vision.image_size // vision.patch_size // model.scale_factor
        made |= {"tile": pictures.max_image_size["longest_edge"], "tokens of a tile": processor.image_seq_len}
        taken |= {"tile": vision.image_size, "tokens of a tile": side**2}
    return "" if made == taken else f"it cuts pictures by {made}, the model takes {taken}"


def smaller_pictures(pictures: Any) -> str:
    """Describe the option that gives a picture fewer tokens."""
    if GRID in pictures.model_input_names:
        return "max_pixels=262144, which gives a picture fewer tokens"
    if hasattr(pictures, "do_image_splitting"):
        return "image_splitting=false, which gives a picture fewer tokens"
    return "instruction=... of fewer words, since this model's pictures have one size"


MAX_SPLITS = 6
"""Number of rows and of columns of tiles that SmolVLM's published vocabulary names."""

TILES_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""A chat template with the same output as SmolVLM's published one."""

PATCHES_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template with the same output as Qwen3-VL's published one for pictures and texts."""

FEWEST_PIXELS, MOST_PIXELS = 32 * 32, 64 * 64


def embedded_processor(model: Any) -> Any:
    """Return a processor over the embedded vocabulary, with the special tokens and template of a published one.

    Args:
        model: transformers' configuration of the model.

    Raises:
        ConfigError: the model's type is not supported.
    """
    if model.model_type in ("smolvlm", "idefics3"):
        return _of_tiles(model)
    if model.model_type == "qwen3_vl":
        return _of_patches(model.vision_config)
    raise ConfigError(
        f"A model of the type {model.model_type} has no processor over the embedded vocabulary.",
        next_command=advise(["advl", "students", "list"]),
    )


def _of_tiles(model: Any) -> Any:
    edge = model.vision_config.image_size
    side = edge // model.vision_config.patch_size // model.scale_factor
    numbers = range(1, MAX_SPLITS + 1)
    marks = ["<image>", "<global-img>", *(f"<row_{row}_col_{column}>" for row in numbers for column in numbers)]
    tokenizer = _tokenizer(
        ["<fake_token_around_image>", *marks], bos_token="<|im_start|>", eos_token="<end_of_utterance>"
    )
    pictures = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge}
    )
    return transformers.Idefics3Processor(pictures, tokenizer, image_seq_len=side**2, chat_template=TILES_TEMPLATE)


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
    return transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**sizes),
        chat_template=PATCHES_TEMPLATE,
    )


def _tokenizer(marks: list[str], **special: str) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of the embedded vocabulary for a size without a published one.

    Args:
        marks: special tokens of the template and of pictures.
        special: special tokens that transformers knows by name, such as `eos_token`.
    """
    words = Tokenizer.from_file(str(embedded_tokenizer_file()))
    words.no_padding()
    words.no_truncation()
    # A conversation has only the template's special tokens.
    words.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", additional_special_tokens=marks, **special
    )
