"""Settings of a chat model, and facts about its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from advl_pipeline.base.configuration import Configuration, option
from advl_pipeline.base.packages import read_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerativeConfig(Configuration):
    """Settings of every chat model."""

    architecture: Mapping[str, Any] | None = option(
        None, help="The model's config.json, as transformers has it [default: the one with --init]."
    )
    tokenizer: str = option("", help="Folder or hub name of the processor: tokenizer, pictures and chat template.")
    align_layer: int = option(
        0, help="Layer whose word and picture states are distilled, from 1; 0 for the middle one.", minimum=0
    )
    length_normalised: Literal["choices", "all", "none"] = option(
        "choices", help="Likelihoods to divide by the answer's number of tokens: those of candidates, all, or none."
    )
    instruction: str | None = option(None, help="Line after the question [default: the task's].")
    options: Literal["hidden", "letters"] = option(
        "hidden", help="Whether to list choices by letter, so that a candidate's answer is its letter."
    )
    dropout: float = option(0.0, help="Dropout of the language model's attention.", minimum=0, below=1)
    image_splitting: bool | None = option(
        None, help="Split pictures into tiles; otherwise one tile shows all [default: the processor's]."
    )
    longest_edge: int | None = option(
        None,
        help="Pixels to which a picture's longer edge is scaled before it is split [default: the processor's].",
        minimum=1,
    )
    min_pixels: int | None = option(
        None, help="Pixels to which a smaller picture is scaled up [default: the processor's].", minimum=1
    )
    max_pixels: int | None = option(
        None, help="Pixels to which a larger picture is scaled down [default: the processor's].", minimum=1
    )


Blocks = Literal["everywhere", "sliding layers", "beyond windows"]
"""Layers in which tokens of a block attend to each other in both directions: all, within the window of a sliding one;
only those with a sliding window; or all, however wide the block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    """Differences of a type of chat models in transformers from the default, from `data/chat_models.toml`.

    A type that is not proven, or not with this type of its text part, is tested before it is used.
    """

    patches: Literal["", "colours-first", "colours-last"] = ""
    both_ways: Literal["nothing", "picture", "question"] = "nothing"
    blocks: Blocks = "everywhere"
    tiles: bool = False
    whole: Literal["", "first", "last"] = ""
    first_position: int = 0
    template: str = ""
    processor: str = "AutoProcessor"
    lora: Mapping[str, Any]
    is_proven: bool


def family_facts(model_type: str, text_type: str) -> FamilyFacts:
    """Return the facts of a type, the defaults for a type that is not in the table.

    Args:
        text_type: type of its language model.
    """
    table = read_tables("chat_models.toml")
    facts = {**table["default"], **table.get(model_type, {})}
    return FamilyFacts(is_proven=text_type in facts.pop("texts"), **facts)
