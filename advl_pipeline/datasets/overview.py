"""Datasets at a glance: what there is, whether it is on this machine, and the card as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.cards import CARD_NAMES, Card, load_card
from advl_pipeline.datasets.own.source import open_own
from advl_pipeline.datasets.registry import SCENES_PREFIX, TASKS, dataset_names, splits_of
from advl_pipeline.datasets.roots import resolve_data_root
from advl_pipeline.datasets.scenes import layout
from advl_pipeline.errors import AdvlError, ConfigError, suggest_names

_TEXT_FIELDS = ("how_to_get", "scoring", "licence", "homepage")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One dataset; `present` says that its folder exists, nothing about its content."""

    name: str
    title: str
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    present: bool


def list_datasets(data_root: Path | None) -> tuple[DatasetRow, ...]:
    """List all datasets that `open_dataset` takes."""
    root = resolve_data_root(data_root)
    rows = []
    for name in dataset_names():
        if name not in TASKS:
            rows.append(_row_of_reader(name, data_root))
            continue
        card = card_of(name)
        folder = root / (layout.FOLDER if name.startswith(SCENES_PREFIX) else card.facts["folder"])
        rows.append(
            DatasetRow(
                name=name, title=card.title, tasks=TASKS[name], splits=splits_of(name), present=folder.is_dir()
            )
        )
    return tuple(rows)


def _row_of_reader(name: str, data_root: Path | None) -> DatasetRow:
    """Describe what a reader of another package gives; one whose data are not there has no tasks and no splits."""
    try:
        index = open_own(name, data_root).index
    except AdvlError as error:
        return DatasetRow(name=name, title=error.what, tasks=(), splits=(), present=False)
    title = "rows that another package reads"
    return DatasetRow(name=name, title=title, tasks=index.tasks, splits=index.splits, present=True)


def card_of(name: str) -> Card:
    """Return the card of a dataset; the datasets of the built-in corpus share one.

    Raises:
        ConfigError: there is no such dataset.
    """
    if name.startswith(SCENES_PREFIX) and name in TASKS:
        return load_card("scenes")
    if name not in CARD_NAMES:
        raise ConfigError(f"There is no dataset {name!r}.", why=suggest_names(name, [*TASKS, *CARD_NAMES]))
    return load_card(name)


def card_text(card: Card) -> str:
    """Return a card for people."""
    parts = [f"{card.name}: {card.title}"]
    for field in _TEXT_FIELDS:
        if field in card.facts:
            text = str(card.facts[field]).strip()
            parts.append(f"{field.replace('_', ' ')}\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    lines = []
    for split, facts in card.splits.items():
        counts = ", ".join(f"{facts[key]:,} {key}" for key in ("items", "pictures") if key in facts)
        lines.append(f"  {split:<20} {counts}" + (f"  ({facts['shift']})" if "shift" in facts else ""))
    if lines:
        parts.append("splits\n" + "\n".join(lines))
    return "\n\n".join(parts)
