"""The processor of a chat model: loaded, set as asked, and held against the model that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer

from advl_pipeline.base.errors import ConfigError, WeightsUnavailable
from advl_pipeline.base.repositories import fetch
from advl_pipeline.runs.names import TOKENIZER
from advl_pipeline.students.chat_pictures import GRID, FamilyFacts
from advl_pipeline.students.embedded_chat import embedded_processor
from advl_pipeline.students.tokenizer import EMBEDDED_TOKENIZER


def load_processor(name: str, model: Any, facts: FamilyFacts) -> Any:
    """Load a processor from a folder, or by its name on the hub.

    Its tokenizer cuts texts as its `tokenizer.json` says: transformers rebuilds some from their class, and leaves
    out what that does not know.

    Args:
        name: folder or hub name; that of the embedded vocabulary stands for a processor over it.
        model: transformers' configuration of the model that it is for.
        facts: of the model's type.

    Raises:
        WeightsUnavailable: it is neither here nor to be had.
    """
    if name == EMBEDDED_TOKENIZER:
        return embedded_processor(model)
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch(name, what="files of the student's processor", option="--tokenizer", weights=())
    try:
        kind = getattr(transformers, facts.processor)
        processor = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if (folder / TOKENIZER).is_file():
            published, opened = Tokenizer.from_file(str(folder / TOKENIZER)), processor.tokenizer.backend_tokenizer
            for part in ("normalizer", "pre_tokenizer", "model", "decoder"):
                setattr(opened, part, getattr(published, part))
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise WeightsUnavailable(
            "The student's processor is not at hand.",
            where=name,
            why=str(error).strip().split("\n", maxsplit=1)[0],
            next_command="--tokenizer FOLDER that holds its tokenizer.json, processor_config.json and chat template",
        ) from None
    processor.chat_template = processor.chat_template or facts.template
    return processor


def set_pictures(pictures: Any, asked: Mapping[str, Any], *, where: str) -> None:
    """Set what a student was asked for on its processor of pictures.

    Args:
        asked: settings by name; None leaves one as the processor has it.
        where: of the processor, for errors.

    Raises:
        ConfigError: it has no such setting, or the settings contradict one another.
    """
    size = dict(pictures.size or {})
    is_counted = GRID in pictures.model_input_names
    keys = {"longest_edge": "longest_edge"}
    if is_counted:
        keys = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        if name == "image_splitting" and hasattr(pictures, "do_image_splitting"):
            pictures.do_image_splitting = value
        elif size.get(keys.get(name, "")):
            size[keys[name]] = value
        else:
            why, following = f"it is set by {', '.join(size)}", f"leave out --student-option {name}"
            raise ConfigError(f"The processor has no setting {name}.", where=where, why=why, next_command=following)
    if is_counted and size.get("shortest_edge", 0) > size.get("longest_edge", 0):
        raise ConfigError(
            "Pictures cannot be scaled to what is asked.",
            where=where,
            why=f"at least {size['shortest_edge']} pixels and at most {size['longest_edge']}",
            next_command=f"--student-option min_pixels={size['longest_edge']}",
        )
    if given:
        pictures.size = size


def require_fit(processor: Any, model: Any, num_rows: int, facts: FamilyFacts, *, where: str) -> None:
    """Refuse a processor of another model: of other tokens, or of other patches.

    Args:
        model: transformers' configuration.
        num_rows: of the model's word table.
        where: of the processor, for errors.

    Raises:
        ConfigError: it is of another one.
    """
    why = _misfit(processor, model, num_rows, facts)
    if why:
        following = "--tokenizer FOLDER that holds the processor of the same model"
        what = "The processor does not belong to these weights."
        raise ConfigError(what, where=where, why=why, next_command=following)


def _misfit(processor: Any, model: Any, num_rows: int, facts: FamilyFacts) -> str:
    num_tokens, misread = len(processor.tokenizer), "every word would be read as another one"
    if num_tokens > num_rows:
        return f"it has {num_tokens:,} tokens, the model's word table {num_rows:,} rows: {misread}"
    if not getattr(processor, "image_token", None):
        return "it has no token that stands for a picture"
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
    """Return the option that gives a picture fewer tokens, in words."""
    if GRID in pictures.model_input_names:
        return "max_pixels=262144 gives a picture fewer tokens"
    if hasattr(pictures, "do_image_splitting"):
        return "image_splitting=false gives a picture fewer tokens"
    return "instruction=... with fewer words; this model's pictures have one size"
