"""The teachers known by name: the facts of `data/teachers.toml`, importable without any model library.

Dimensions are those of the published weights and are checked against them when `advl teachers check` opens one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from advl_pipeline.packages import read_data

if TYPE_CHECKING:
    from advl_pipeline.teachers.interface import Teacher
    from advl_pipeline.teachers.open_options import OpenOptions

Source = Literal["transformers", "timm", "plug-in"]
Modality = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCard:
    """What is known of a teacher before its weights are at hand.

    `source_id` is a repository ORG/MODEL, a timm model, or what a plug-in has the weights from; `model_type` is what
    transformers calls the family, "" for timm; `architecture` the timm model that weights belong to.
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

    @property
    def states_sizes(self) -> bool:
        """Whether rows and widths of all features of pictures, and the widths of all those of texts, are stated."""
        sizes = {"image": (self.image_dim, self.grid_dim, *self.grid_shape), "text": (self.text_dim, self.token_dim)}
        return bool(self.modalities) and all(all(sizes[modality]) for modality in self.modalities)


@dataclass(frozen=True, kw_only=True)
class DescribedTeacher:
    """What the entry point of a teacher may hold in place of a bare opener: one that says what it is before it opens.

    `is_at_hand` tells whether the weights are on this machine; `how_to_get` is the command that brings them.
    """

    card: TeacherCard
    open: Callable[[OpenOptions], Teacher]
    is_at_hand: Callable[[], bool]
    how_to_get: str

    def __call__(self, options: OpenOptions) -> Teacher:
        return self.open(options)


def read_teacher_cards(text: str) -> dict[str, TeacherCard]:
    """Return the cards of a TOML file by name, in its order."""
    cards = {}
    for name, facts in tomllib.loads(text).items():
        values: dict[str, Any] = {key: tuple(fact) if isinstance(fact, list) else fact for key, fact in facts.items()}
        cards[name] = TeacherCard(name=name, **values)
    return cards


CATALOGUE: dict[str, TeacherCard] = read_teacher_cards(read_data("teachers.toml"))
"""Cards by name, in the order in which `advl teachers list` shows them."""

DOORS: dict[str, str] = {
    "hf:ORG/MODEL": "any supported model on the Hugging Face hub; hf:ORG/MODEL@REVISION pins it",
    "timm:MODEL": "any image model of timm",
    "random:NAME": "the architecture of another teacher with random weights: a control; random:NAME@SEED",
    "pictures:SIZE": "no network: the pictures squeezed to SIZE x SIZE pixels, as `advl prepare` stores them",
}
"""Forms of names that open more than the catalogue."""
