"""The card of one's own data: a small TOML file for what columns do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from advl_pipeline.configuration import Configuration, build_config, option, read_toml
from advl_pipeline.errors import ConfigError, suggest_names

Kind = Literal["choice", "classes", "answers"]
LabelForm = Literal["index", "text"]

COLUMNS = (
    *("id", "image", "question", "text", "choices", "label", "rationales", "rationale_label", "answers", "answer"),
    *("boxes", "box_labels", "split", "group", "stratum"),
)
"""Columns that mean something; others are left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCard(Configuration):
    """What a card may say; every key may be left out."""

    task: Kind | None = option(None, help="Kind of task, where the columns allow several.")
    files: Any = option(
        None, help="A file or hf:NAME, or a table split -> file or list of files; relative to the card."
    )
    pictures: Path | None = option(
        None, help="Folder that picture names are relative to, itself relative to the card [default: the card's]."
    )
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    labels: tuple[str, ...] = option((), help="The classes, in order [default: those of train, sorted].")
    label_is: LabelForm | None = option(None, help="How the label of a choice reads where both ways would fit.")
    min_answer_count: int = option(
        1, help="Questions of train that an answer must be the most frequent one of to become a class.", minimum=1
    )


def read_card(path: Path) -> DataCard:
    """Read a card.

    Raises:
        ConfigError: a key or a value that cannot be used; file and key are named.
    """
    card = build_config(DataCard, read_toml(path), where=str(path))
    for name in card.columns:
        if name not in COLUMNS:
            raise ConfigError(
                f"Unknown column {name!r} in the card.",
                where=f"{path} [columns]",
                why=suggest_names(name, COLUMNS),
                next_command=f'write {{our column}} = "{{yours}}", then give the same command again: {path}',
            )
    if len(set(card.labels)) != len(card.labels):
        raise ConfigError("A class is named twice.", where=f"{path} labels", why=", ".join(card.labels))
    if not _are_files(card.files):
        raise ConfigError(
            "The card does not say which files hold the data.",
            where=f"{path} files",
            why=f"got {card.files!r}; expected a file, hf:NAME, or a table split -> file or list of files",
            next_command=f'write files = "train.jsonl" into {path}, then give the same command again',
        )
    return card


def _are_files(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    if not isinstance(value, Mapping) or not value:
        return False
    lists = [item if isinstance(item, list) else [item] for item in value.values()]
    return all(files and all(isinstance(file, str) and file for file in files) for files in lists)
