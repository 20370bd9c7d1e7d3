"""Dataset cards: the facts about a benchmark in `data/cards/NAME.toml`: files, counts, licence, how to get it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from advl_pipeline.errors import ConfigError, suggest_names
from advl_pipeline.packages import data_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One card.

    `facts` is the parsed file; the attributes are what every card has. `splits` maps a split to its files and
    counts, in the fields of the card's `format`.
    """

    name: str
    title: str
    format: str
    splits: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]

    def split(self, name: str) -> Mapping[str, Any]:
        """Return the facts of a split.

        Raises:
            ConfigError: there is no such split; the near names are listed.
        """
        if name not in self.splits:
            raise ConfigError(f"{self.name} has no split {name!r}.", why=suggest_names(name, self.splits))
        return self.splits[name]

    def picture_splits(self, name: str) -> tuple[str, ...]:
        """Return the names of the splits that a split's pictures are filed under, as their publishers call them.

        Shifted sets show pictures of another split, and VQA's pictures are those of COCO's splits.

        Raises:
            ConfigError: as `split`.
        """
        facts = self.split(name)
        named = facts.get("picture_splits") or self.facts.get("picture_splits") or [facts.get("subtype", name)]
        return tuple(named)

    def is_labelled(self, name: str) -> bool:
        """Tell whether the truth of a split is public.

        Raises:
            ConfigError: as `split`.
        """
        facts = self.split(name)
        return bool(facts.get("labelled", "annotations" in facts or self.format == ROWS))


JOIN = "+"
"""Joins the names of splits that are read together, as in train+val."""


def card_names() -> tuple[str, ...]:
    """Return the names of all cards, those of plug-ins included."""
    return tuple(data_files("cards"))


@cache
def load_card(name: str) -> Card:
    """Read a card.

    Raises:
        ConfigError: there is no card of that name.
    """
    cards = data_files("cards")
    if name not in cards:
        raise ConfigError(f"There is no dataset card {name!r}.", why=suggest_names(name, cards))
    facts = tomllib.loads(cards[name].read_text(encoding="utf-8"))
    return Card(
        name=name,
        title=facts["title"],
        format=facts["format"],
        splits=facts.get("splits", {}),
        facts=facts,
    )


ROWS = "rows"
"""Format of a card that says what the columns of its rows mean (`rows.DataCard`), as a card of one's own does."""


@cache
def rows_card(name: str) -> Path | None:
    """Return the file of a card whose rows are read by what it says; None for other names."""
    return data_files("cards")[name] if name in card_names() and load_card(name).format == ROWS else None


def card_instead_of(repository: str) -> str:
    """Return the card of a set that stands in for one of the hub which cannot be read; "" where there is none."""
    cards = (load_card(name) for name in card_names())
    return next((card.name for card in cards if repository in card.facts.get("instead_of", ())), "")


def picture_splits(dataset: str, split: str) -> tuple[str, ...]:
    """Return the splits that the pictures of a split are filed under; the split itself where no card says otherwise.

    Raises:
        ConfigError: the dataset has a card and no such split.
    """
    if dataset not in card_names():
        return (split,)
    named = (name for part in split.split(JOIN) for name in load_card(dataset).picture_splits(part))
    return tuple(dict.fromkeys(named))


def scored_split(dataset: str) -> str:
    """Return the split that a finished run is scored on: test, or val where there is no test with a public truth."""
    if dataset not in card_names() or not (card := load_card(dataset)).splits:
        return "test"
    return "test" if "test" in card.splits and card.is_labelled("test") else "val"
