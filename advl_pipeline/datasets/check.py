"""Listing of datasets and cards, and checks of a dataset against its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advl_pipeline.base.errors import AdvlError, DatasetError, unknown_name
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.packages import missing_data
from advl_pipeline.datasets.cards import ROWS, Card, card_names, known_card, load_card
from advl_pipeline.datasets.config import CheckConfig, SubsetConfig
from advl_pipeline.datasets.lowshot import nested_subset, write_id_list
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


def run_check(config: CheckConfig, dataset: DatasetSpec | None = None, *, progress: bool = False) -> dict[str, Any]:
    """Check a dataset: parse all annotations, and see that pictures exist or, with `deep`, decode them.

    Args:
        dataset: that of the configuration, as `read_dataset` returns it; None to find it.

    Returns:
        One entry per split: `ok`, `missing`, `malformed`, or `differs` (all files are readable, but the counts differ
        from the card). `usable` is True if some split is present and none is malformed.

    Raises:
        ConfigError: the dataset or split is unknown.
    """
    dataset = dataset or find_dataset(config.name, config.data_root)
    require_known(config.name, "split", config.split, dataset.splits)
    chosen = config.split or dataset.splits
    splits = [{"split": split, **_check_split(config, dataset, split, progress)} for split in chosen]
    statuses = {split["status"] for split in splits}
    return {
        "name": config.name,
        "data_root": resolve_data_root(config.data_root),
        "deep": config.deep,
        "splits": splits,
        "usable": "malformed" not in statuses and bool(statuses & {"ok", "differs"}),
    }


def _check_split(config: CheckConfig, spec: DatasetSpec, split: str, progress: bool) -> dict[str, Any]:
    card = known_card(config.name)
    facts = card.splits.get(split, {})
    try:
        dataset = open_split(spec, split, data_root=config.data_root, on_error="list")
    except DatasetError as error:
        is_missing, notes = isinstance(error, DatasetMissing), []
        problems = list(error.problems) if isinstance(error, NothingUsable) else []
        if is_missing and card.name and card.format == ROWS and not card.reader:
            notes = [f"not here: {error.why}; would be fetched: {card.facts['size']}"]
        return {
            "status": "missing" if is_missing else "malformed",
            "num_items": 0,
            "num_pictures": 0,
            "problems": problems or [Problem(file=error.where, line=0, why=error.why or error.what)],
            "notes": notes,
            "next_command": error.next_command,
        }
    num_pictures, num_animations, picture_problems = dataset.picture_problems(deep=config.deep, progress=progress)
    problems = [*dataset.skipped, *picture_problems]
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
    return {
        "status": "malformed" if problems else ("differs" if notes else "ok"),
        "num_items": num_items,
        "num_pictures": num_pictures,
        "problems": problems,
        "notes": [*notes, *filter(None, [dataset.left_out, animations])],
        "next_command": dataset.command_for_pictures() if picture_problems else "",
    }


def run_subset(config: SubsetConfig, spec: DatasetSpec | None = None) -> dict[str, Any]:
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
    subset = {
        "dataset": dataset.identity_name,
        "split": config.split,
        "shots": config.shots,
        "seed": config.seed,
        "example_ids": nested_subset(dataset, config.shots, config.seed),
    }
    write_id_list(config.output, subset)
    return subset


def list_datasets(data_root: Path | None) -> list[dict[str, Any]]:
    """List all datasets that `open_dataset` accepts; one whose reader finds no data has no tasks and no splits.

    `present` only says that a folder exists, not what it contains.
    """
    rows = []
    for name in dataset_names():
        title, is_present = "rows that another package reads", False
        tasks: tuple[str, ...] = ()
        splits: tuple[str, ...] = ()
        try:
            dataset = find_dataset(name, data_root)
            title, tasks, splits = dataset.card.title or title, dataset.tasks, dataset.splits
            is_present = _is_here(dataset.card, resolve_data_root(data_root))
        except AdvlError as error:
            title = error.what
        rows.append({"name": name, "title": title, "tasks": tasks, "splits": splits, "present": is_present})
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
