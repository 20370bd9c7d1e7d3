"""What `advl teachers list` and `show` tell, without loading a model or touching a network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from advl_pipeline.errors import ConfigError, advise, suggest_names
from advl_pipeline.teachers.registry import card_of, described, known_names, plugin_entry_points
from advl_pipeline.teachers.teacher_cards import DOORS, TeacherCard

BYTES_PER_VALUE = 2
"""Features are stored as float16 by default."""

BYTES_PER_SPAN = 8
"""Two int32 character offsets per word piece."""

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSummary:
    """One line of the list. `at_hand`: the weights are on this machine; None for a plug-in, which alone knows."""

    name: str
    modalities: tuple[str, ...]
    at_hand: bool | None
    megabytes: int
    licence: str
    about: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSize:
    """One array of a cache: its width, and the bytes that each unit (a picture, box, text or word piece) adds."""

    feature: str
    width: int
    num_bytes: int
    per: Literal["picture", "box", "text", "word piece"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherDetails:
    """What is known of a teacher and would be extracted. `features` is empty where only opening it would tell."""

    summary: TeacherSummary
    source: str
    global_feature: str
    long_texts: str
    features: tuple[FeatureSize, ...]
    how_to_get: str


def list_teachers() -> list[TeacherSummary]:
    """Return every named teacher, plug-ins last."""
    return [_summary(name) for name in known_names()]


def show_teacher(name: str) -> TeacherDetails:
    """Return what is known of a teacher, by any name that opens one.

    Raises:
        ConfigError: an unknown name; the near ones are listed.
    """
    card = _card_of(name)
    if card is None:
        return TeacherDetails(
            summary=_summary(name),
            source="plug-in " + plugin_entry_points()[name].value,
            global_feature="as the plug-in has it",
            long_texts="as the plug-in has it",
            features=(),
            how_to_get="",
        )
    opened_later = not (card.image_dim or card.text_dim)
    windows = f"{card.max_length} word pieces" if card.max_length else "the model's longest input"
    return TeacherDetails(
        summary=dataclasses.replace(_summary_of_card(card), name=name),
        source=f"{card.source}: {card.source_id}",
        global_feature=card.global_feature or "by the model's type, known once it is opened",
        long_texts=f"overlapping windows of {windows}, nothing is cut" if "text" in card.modalities else "",
        features=() if opened_later else _sizes(card),
        how_to_get="" if is_at_hand(card) else how_to_get(card),
    )


def is_at_hand(card: TeacherCard) -> bool:
    """Tell whether a teacher's weights are installed or in the hub's cache; nothing is fetched."""
    if plugin := described(card.name):
        return plugin.is_at_hand()
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = _repository(card).partition("@")
    return any(
        isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in _WEIGHT_FILES
    )


def how_to_get(card: TeacherCard) -> str:
    """Return the command that brings a teacher's weights."""
    if plugin := described(card.name):
        return plugin.how_to_get
    return f"fetched when first used; or: hf download {_repository(card)} --local-dir DIR, then --weights DIR"


def _repository(card: TeacherCard) -> str:
    return f"timm/{card.source_id}" if card.source == "timm" else card.source_id


def _card_of(name: str) -> TeacherCard | None:
    """Return the card of a name, one with gaps for a door, or None for a plug-in."""
    if name in known_names():
        return card_of(name)
    door, _, rest = name.partition(":")
    if rest and door == "random":
        inner = _card_of(rest if rest.startswith("hf:") else rest.partition("@")[0])
        if inner is not None:
            return dataclasses.replace(inner, about=f"random weights (control): {inner.about}")
    if rest and door in ("hf", "timm"):
        return TeacherCard(
            name=name,
            source="transformers" if door == "hf" else "timm",
            source_id=rest,
            modalities=("image",) if door == "timm" else (),
            about=f"any model: {rest}",
            licence="see its page",
            megabytes=0,
        )
    raise ConfigError(
        f"There is no teacher {name!r}.",
        where="NAME",
        why=suggest_names(name, [*known_names(), *DOORS]),
        next_command=advise(["advl", "teachers", "list"]),
    )


def _summary(name: str) -> TeacherSummary:
    if card := card_of(name):
        return _summary_of_card(card)
    return TeacherSummary(name=name, modalities=(), at_hand=None, megabytes=0, licence="", about="plug-in")


def _summary_of_card(card: TeacherCard) -> TeacherSummary:
    return TeacherSummary(
        name=card.name,
        modalities=card.modalities,
        at_hand=is_at_hand(card),
        megabytes=card.megabytes,
        licence=card.licence,
        about=card.about,
    )


def _sizes(card: TeacherCard) -> tuple[FeatureSize, ...]:
    sizes: list[FeatureSize] = []
    if card.image_dim:
        cells = card.grid_shape[0] * card.grid_shape[1]
        sizes += [
            _size("image global", card.image_dim, 1, "picture"),
            _size("image tokens, boxes", card.image_dim, 1, "box"),
            _size("image tokens, boxes-roi", card.grid_dim, 1, "box"),
            _size(f"image tokens, grid {card.grid_shape[0]} x {card.grid_shape[1]}", card.grid_dim, cells, "picture"),
        ]
    if card.text_dim:
        tokens = _size("text tokens", card.token_dim, 1, "word piece")
        sizes += [
            _size("text global", card.text_dim, 1, "text"),
            dataclasses.replace(tokens, num_bytes=tokens.num_bytes + BYTES_PER_SPAN),
        ]
    return tuple(sizes)


def _size(feature: str, width: int, rows: int, per: Literal["picture", "box", "text", "word piece"]) -> FeatureSize:
    return FeatureSize(feature=feature, width=width, num_bytes=width * rows * BYTES_PER_VALUE, per=per)
