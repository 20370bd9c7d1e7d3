"""Datasets by name: published ones with a card, those of plug-ins, and data given as rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advl_pipeline.base.errors import ineffective, unknown_name
from advl_pipeline.base.packages import load_plugin, missing_data
from advl_pipeline.datasets.cards import JOIN, ROWS, known_card, readable_cards
from advl_pipeline.datasets.formats import FORMATS, PublishedDataset
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.own.data import UnreadRows, rows_dataset
from advl_pipeline.datasets.roots import KNOWN_NAMES, SPLIT_STEMS, is_location, resolve_data_root
from advl_pipeline.datasets.spec import DatasetSpec, ReadOptions, dataset_plugins
from advl_pipeline.datasets.subsets import Concatenated
from advl_pipeline.datasets.vqa_answers import read_vocabulary


def dataset_names() -> tuple[str, ...]:
    """Return the names that `open_dataset` accepts, besides locations of your own data (`roots.py`)."""
    with_cards = (card.name for card in readable_cards() if card.format in (ROWS, *FORMATS))
    return tuple(sorted({*with_cards, *dataset_plugins()}))


def known_dataset(name: str) -> DatasetSpec | None:
    """Return a dataset as its card or package describes it, without reading its data; None for other rows."""
    card = known_card(name)
    if card.name and card.format == ROWS:
        return UnreadRows(name=name, card=card, tasks=tuple(card.facts["tasks"]), splits=tuple(card.splits))
    if card.name and card.format in FORMATS:
        return PublishedDataset(
            name=name,
            card=card,
            tasks=FORMATS[card.format].tasks,
            splits=tuple(card.splits),
            labelled=tuple(
                split for split, facts in card.splits.items() if facts.get("labelled", "annotations" in facts)
            ),
        )
    plugins = dataset_plugins()
    plugin = load_plugin(plugins[name], "dataset") if name in plugins else None
    return plugin if isinstance(plugin, DatasetSpec) else None


def find_dataset(name: str, data_root: Path | None = None) -> DatasetSpec:
    """Return a dataset by its name; read and index rows that have no description.

    Raises:
        ConfigError: the dataset does not exist. DatasetError: your own data cannot be read.
    """
    if known := known_dataset(name):
        return known
    if is_location(name) or name in dataset_plugins():
        return rows_dataset(name, data_root)
    raise unknown_name(
        f"There is no dataset {name!r}.", name, dataset_names(), note=missing_data(), next_command=KNOWN_NAMES
    )


def require_names(dataset: DatasetSpec, split: str, *, tasks: Sequence[str] = (), data_root: Path | None) -> None:
    """Refuse an unknown split or task, and a known dataset that is not there, before its rows are read.

    Args:
        split: a split of the dataset, or several joined by +.

    Raises:
        ConfigError: the name does not exist. DatasetError: the dataset is missing.
    """
    parts = split.split(JOIN)
    require_known(dataset.name, "task", tasks, dataset.tasks)
    require_known(dataset.name, "split", parts, dataset.splits)
    folder = dataset.card.facts.get("folder")
    if folder and not (resolve_data_root(data_root) / folder).is_dir():
        # The error already names the next step.
        open_split(dataset, parts[0], data_root=data_root)


def with_rows(dataset: DatasetSpec, data_root: Path | None) -> DatasetSpec:
    """Return a dataset with its rows read and indexed; one that is read or has no rows is returned as it is.

    Raises:
        DatasetError: the rows cannot be read.
    """
    return dataset.read(data_root) if isinstance(dataset, UnreadRows) else dataset


def read_dataset(name: str, data_root: Path | None = None) -> DatasetSpec:
    """Return a dataset by its name, as `find_dataset`, with its rows read and indexed."""
    return with_rows(find_dataset(name, data_root), data_root)


def split_to_score(dataset: DatasetSpec, *, trained_on: str) -> str:
    """Return the split that a finished run is scored on: a labelled split that it did not see, preferably test.

    Without such a split it is train.

    Args:
        dataset: as `read_dataset` returns it.
    """
    seen = trained_on.split(JOIN)
    labelled = [split for split in dataset.labelled if split not in seen]
    train, *held_out = SPLIT_STEMS
    others = [split for split in labelled if split not in SPLIT_STEMS]
    return next((split for split in (*reversed(held_out), *others, train) if split in labelled), seen[0])


def open_dataset(
    name: str, *, split: str, data_root: Path | None = None, tasks: Sequence[str] = (), **options: Any
) -> IndexedDataset:
    """Find a dataset by its name and open one of its splits (`open_split`).

    Args:
        name: see `dataset_names`.
    """
    return open_split(find_dataset(name, data_root), split, data_root=data_root, tasks=tasks, **options)


def open_split(
    dataset: DatasetSpec, split: str, *, data_root: Path | None = None, tasks: Sequence[str] = (), **options: Any
) -> IndexedDataset:
    """Open one split of a dataset.

    Args:
        split: one of the dataset's `splits`.
        data_root: folder of the datasets; None for `$ADVL_DATA`, else `datasets/`. For your own data: the folder
            of the pictures; None for the folder of the file.
        tasks: restrict to these tasks; all tasks of the dataset by default.
        options: see `ReadOptions`; `answers` may also be the path of a file.

    Raises:
        ConfigError: a split, task or option is unknown.
        DatasetError: a file is missing or malformed.
    """
    name = dataset.name
    if options.get("answer_list", "train") != "train":
        if "answer_lists" not in dataset.card.facts:
            raise ineffective(
                "--answer-list", why=f"{name} has no published answer list; VQA v2 and its reshuffles have"
            )
        if options.get("answers") is not None:
            raise ineffective("--answer-list", why="--answers gives the list of answers")
    if isinstance(answers := options.get("answers"), Path):
        options["answers"] = read_vocabulary(answers)
    require_known(name, "task", tasks, dataset.tasks)
    require_known(name, "split", [split], dataset.splits)
    wanted = tuple(task for task in dataset.tasks if not tasks or task in tasks)
    return dataset.open(split, data_root, ReadOptions(tasks=wanted, **options))


def open_splits(dataset: DatasetSpec, split: str, **options: Any) -> IndexedDataset | Concatenated:
    """Open a split, or several joined by +, such as train+val: the training data of a run.

    Args:
        dataset: as `read_dataset` returns it.
        split: a split of the dataset, or several joined by +.
        options: passed to `open_split`.

    Raises:
        ConfigError, DatasetError: as `open_split`, or the splits contain the same items.
    """
    names = split.split(JOIN)
    if len(names) == 1:
        return open_split(dataset, split, **options)
    return Concatenated([open_split(dataset, part, together=tuple(names), **options) for part in names])


def require_known(name: str, what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse splits or tasks that a dataset does not have, and list similar names."""
    for wanted_name in wanted:
        if wanted_name not in known:
            raise unknown_name(f"{name} has no {what} {wanted_name!r}.", wanted_name, known)
