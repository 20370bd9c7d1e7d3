"""Datasets at a glance: what there is, whether it is on this machine, and the card as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.datasets.cards import ROWS, Card, card_names, load_card, rows_card
from advl_pipeline.datasets.own.hub import hub_names
from advl_pipeline.datasets.own.source import open_own
from advl_pipeline.datasets.registry import benchmark_of, dataset_names
from advl_pipeline.datasets.roots import index_folder, resolve_data_root
from advl_pipeline.errors import AdvlError, ConfigError, suggest_names

_TEXT_FIELDS = ("how_to_get", "scoring", "chance", "size", "licence", "homepage", "seen", "tried")


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
    return tuple(_row(name, root, data_root) for name in dataset_names())


def _row(name: str, root: Path, data_root: Path | None) -> DatasetRow:
    benchmark = benchmark_of(name)
    if rows_card(name) is not None:
        card = load_card(name)
        return DatasetRow(
            name=name,
            title=card.title,
            tasks=tuple(card.facts["tasks"]),
            splits=tuple(card.splits),
            present=is_here(card, root),
        )
    if benchmark is None:
        return _row_of_reader(name, data_root)
    return DatasetRow(
        name=name,
        title=benchmark.card.title,
        tasks=benchmark.tasks,
        splits=benchmark.splits,
        present=benchmark.is_in(root),
    )


def is_here(card: Card, root: Path) -> bool:
    """Tell whether a set of the hub is on this machine: its rows were read before, or its repositories are copied."""
    names = hub_names(card.facts["files"], root).values()
    return all(name.copy for name in names) or any(index_folder(root, root / card.name).glob("*.arrow"))


def _row_of_reader(name: str, data_root: Path | None) -> DatasetRow:
    """Describe what a reader of another package gives; one whose data are not there has no tasks and no splits."""
    try:
        index = open_own(name, data_root).index
    except AdvlError as error:
        return DatasetRow(name=name, title=error.what, tasks=(), splits=(), present=False)
    title = "rows that another package reads"
    return DatasetRow(name=name, title=title, tasks=index.tasks, splits=index.splits, present=True)


def card_of(name: str) -> Card:
    """Return the card of a name, or of the dataset of that name.

    Raises:
        ConfigError: there is no such dataset.
    """
    if name in card_names():
        return load_card(name)
    benchmark = benchmark_of(name)
    if benchmark is None:
        known = dict.fromkeys([*dataset_names(), *card_names()])
        raise ConfigError(f"There is no dataset {name!r}.", why=suggest_names(name, known))
    return benchmark.card


def card_text(card: Card) -> str:
    """Return a card for people."""
    parts = [f"{card.name}: {card.title}"]
    for field in _TEXT_FIELDS:
        if field in card.facts:
            text = str(card.facts[field]).strip()
            parts.append(f"{field.replace('_', ' ')}\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    if card.format == ROWS:
        named = hub_names(card.facts["files"], Path())
        parts.append("read from\n" + "\n".join(f"  {split or 'all splits'}: {name}" for split, name in named.items()))
    lines = []
    for split, facts in card.splits.items():
        counts = ", ".join(f"{facts[key]:,} {key}" for key in ("items", "pictures") if key in facts)
        lines.append(f"  {split:<20} {counts}" + (f"  ({facts['shift']})" if "shift" in facts else ""))
    if lines:
        parts.append("splits\n" + "\n".join(lines))
    return "\n\n".join(parts)
