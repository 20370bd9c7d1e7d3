"""Listing of datasets and cards, and checks of a dataset against its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.base.errors import AdvlError, DatasetError, unknown_name
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.packages import missing_data
from advl_pipeline.datasets.cards import ROWS, Card, card_names, known_card, load_card
from advl_pipeline.datasets.config import CheckConfig, SubsetConfig
from advl_pipeline.datasets.lowshot import Subset, nested_subset, write_id_list
from advl_pipeline.datasets.own.hub import hub_names
from advl_pipeline.datasets.problems import NothingUsable, Problem
from advl_pipeline.datasets.registry import (
    dataset_names,
    find_dataset,
    known_dataset,
    open_split,
    require_known,
)
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, resolve_data_root
from advl_pipeline.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """The check of a split; `differs`: all files are readable, but the counts are not those of the card."""

    split: str
    status: Literal["ok", "missing", "malformed", "differs"]
    num_items: int = 0
    num_pictures: int = 0
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    next_command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetCheck:
    """The check of a dataset; it is usable if some split is present and none is malformed."""

    name: str
    data_root: Path
    deep: bool
    splits: tuple[SplitCheck, ...]
    usable: bool


def run_check(config: CheckConfig, dataset: DatasetSpec | None = None, *, progress: bool = False) -> DatasetCheck:
    """Check a dataset: parse all annotations, and see that pictures exist or, with `deep`, decode them.

    Args:
        dataset: that of the configuration, as `read_dataset` returns it; None to find it.

    Raises:
        ConfigError: the dataset or split is unknown.
    """
    dataset = dataset or find_dataset(config.name, config.data_root)
    require_known(config.name, "split", config.split, dataset.splits)
    splits = tuple(_check_split(config, dataset, split, progress) for split in config.split or dataset.splits)
    statuses = {split.status for split in splits}
    return DatasetCheck(
        name=config.name,
        data_root=resolve_data_root(config.data_root),
        deep=config.deep,
        splits=splits,
        usable="malformed" not in statuses and bool(statuses & {"ok", "differs"}),
    )


def _check_split(config: CheckConfig, spec: DatasetSpec, split: str, progress: bool) -> SplitCheck:
    card = known_card(config.name)
    facts = card.splits.get(split, {})
    try:
        dataset = open_split(spec, split, data_root=config.data_root, on_error="list")
    except DatasetError as error:
        is_missing = isinstance(error, DatasetMissing)
        unusable = tuple(error.problems) if isinstance(error, NothingUsable) else ()
        is_fetched = is_missing and card.name and card.format == ROWS and not card.reader
        return SplitCheck(
            split=split,
            status="missing" if is_missing else "malformed",
            problems=unusable or (Problem(file=error.where, line=0, why=error.why or error.what),),
            notes=(f"not here: {error.why}; would be fetched: {card.facts['size']}",) if is_fetched else (),
            next_command=error.next_command,
        )
    num_pictures, num_animations, picture_problems = dataset.picture_problems(deep=config.deep, progress=progress)
    problems = (*dataset.skipped, *picture_problems)
    num_items = len(dataset.question_table().question_ids)
    counts = {"items": (num_items, facts.get("items")), "pictures": (num_pictures, facts.get("pictures"))}
    notes = [
        f"{name}: {num_read:,} found, the card says {count:,}"
        for name, (num_read, count) in counts.items()
        if count not in (None, num_read)
    ]
    animations = (
        f"{num_animations:,} pictures are animations, of which the first frame is read" if num_animations else ""
    )
    return SplitCheck(
        split=split,
        status="malformed" if problems else ("differs" if notes else "ok"),
        num_items=num_items,
        num_pictures=num_pictures,
        problems=problems,
        notes=(*notes, *filter(None, [dataset.left_out, animations])),
        next_command=dataset.command_for_pictures() if picture_problems else "",
    )


def run_subset(config: SubsetConfig, spec: DatasetSpec | None = None) -> Subset:
    """Draw a low-shot subset and write its ids.

    Args:
        spec: the dataset of the configuration, as `read_dataset` returns it; None to find it.

    Raises:
        ConfigError: the split has fewer questions, or the output path exists and is not an id list.
        DatasetError: the split is missing or malformed.
    """
    require_outputs(config)
    spec = spec or find_dataset(config.name, config.data_root)
    dataset = open_split(spec, config.split, data_root=config.data_root)
    subset = Subset(
        dataset=dataset.identity_name,
        split=config.split,
        shots=config.shots,
        seed=config.seed,
        example_ids=nested_subset(dataset, config.shots, config.seed),
    )
    write_id_list(config.output, subset)
    return subset


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedDataset:
    """A dataset that `open_dataset` accepts; `present` only says that a folder exists, not what it contains."""

    name: str
    title: str
    tasks: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    present: bool = False


def list_datasets(data_root: Path | None) -> list[ListedDataset]:
    """List all datasets; one whose reader finds no data has no tasks and no splits."""
    rows = []
    for name in dataset_names():
        try:
            dataset = find_dataset(name, data_root)
            title = dataset.card.title or "rows that another package reads"
            is_here = _is_here(dataset.card, resolve_data_root(data_root))
            row = ListedDataset(name=name, title=title, tasks=dataset.tasks, splits=dataset.splits, present=is_here)
        except AdvlError as error:
            row = ListedDataset(name=name, title=error.what)
        rows.append(row)
    return rows


def _is_here(card: Card, root: Path) -> bool:
    """Return whether a dataset is on this machine; for the hub, whether its rows were read or its files copied."""
    if folder := card.facts.get("folder"):
        return Path(root, folder).is_dir()
    if card.reader:
        return (root / card.name).is_dir()
    return (
        card.files is None
        or all(name.copy for name in hub_names(card.files, root).values())
        or any(index_folder(root, root / card.name).glob("*.arrow"))
    )


def dataset_card(name: str) -> Card:
    """Return the card with a name, or the card of the dataset with that name.

    Raises:
        ConfigError: the dataset does not exist.
    """
    if name in card_names():
        return load_card(name)
    dataset = known_dataset(name)
    if dataset is None:
        raise unknown_name(
            f"There is no dataset {name!r}.",
            name,
            dict.fromkeys([*dataset_names(), *card_names()]),
            note=missing_data(),
        )
    return dataset.card
