"""The teachers known by name: the facts of `data/teachers.toml`, importable without any model library.

Dimensions are those of the published weights and are checked against them when `advl teachers check` opens one.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any, Literal

from advl_pipeline.packages import read_data

Source = Literal["package", "archive", "transformers", "timm"]
Modality = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCard:
    """What is known of a teacher before its weights are at hand.

    `source_id` is a Python module, an archive in parts (`archives.py`), a repository ORG/MODEL or a timm model;
    `model_type` is what transformers calls the family, "" for timm; `install` the pip requirement that
    brings it, `architecture` the timm model that packaged weights belong to.
    Widths: `image_dim` and `text_dim` of the global features, `grid_dim` of a cell of the `grid_shape` map,
    `token_dim` of a word piece. `max_length` counts word pieces with special tokens. `megabytes` is the size of the
    download in fp32 or as published.
    """

    name: str
    source: Source
    source_id: str
    modalities: tuple[Modality, ...]
    about: str
    licence: str
    megabytes: int
    image_dim: int = 0
    grid_dim: int = 0
    grid_shape: tuple[int, int] = (0, 0)
    text_dim: int = 0
    token_dim: int = 0
    max_length: int = 0
    model_type: str = ""
    global_feature: str = ""
    architecture: str = ""
    install: str = ""


def _read_cards() -> dict[str, TeacherCard]:
    cards = {}
    for name, facts in tomllib.loads(read_data("teachers.toml")).items():
        values: dict[str, Any] = {key: tuple(fact) if isinstance(fact, list) else fact for key, fact in facts.items()}
        cards[name] = TeacherCard(name=name, **values)
    return cards


CATALOGUE: dict[str, TeacherCard] = _read_cards()
"""Cards by name, in the order in which `advl teachers list` shows them."""

DOORS: dict[str, str] = {
    "hf:ORG/MODEL": "any supported model on the Hugging Face hub; hf:ORG/MODEL@REVISION pins it",
    "timm:MODEL": "any image model of timm",
    "random:NAME": "the architecture of another teacher with random weights: a control; random:NAME@SEED",
    "pictures:SIZE": "no network: the pictures squeezed to SIZE x SIZE pixels, as `advl prepare` stores them",
}
"""Forms of names that open more than the catalogue."""
