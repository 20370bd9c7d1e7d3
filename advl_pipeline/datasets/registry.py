"""Datasets by name: published ones as their cards describe them, those of plug-ins, data that are given as rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from advl_pipeline.base.errors import ineffective, unknown_name
from advl_pipeline.base.packages import load_plugin, missing_data
from advl_pipeline.datasets.cards import (
    JOIN,
    Benchmark,
    ReadOptions,
    card_names,
    dataset_plugins,
    load_card,
    readable_cards,
    rows_card,
)
from advl_pipeline.datasets.formats import FORMATS
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.own.data import OwnData, class_names, open_own
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import (
    KNOWN_NAMES,
    is_own_data,
    resolve_data_root,
)
from advl_pipeline.datasets.rows import ROWS
from advl_pipeline.datasets.views import UnionOfSplits
from advl_pipeline.datasets.vqa_answers import read_vocabulary


def benchmark_of(name: str) -> Benchmark | None:
    """Return the benchmark of a name: one with a card in a format that ADVL reads, or a plug-in's; None for rows."""
    if name in card_names() and (card := load_card(name)).format in FORMATS:
        tasks, opener = FORMATS[card.format]
        return Benchmark(name=name, card=card, tasks=tasks, splits=tuple(card.splits), open=partial(opener, card))
    plugins = dataset_plugins()
    plugin = load_plugin(plugins[name], "dataset") if name in plugins else None
    return plugin if isinstance(plugin, Benchmark) else None


def dataset_names() -> tuple[str, ...]:
    """Names that `open_dataset` takes, besides those that say where data of one's own lies (`roots.py`)."""
    with_cards = (card.name for card in readable_cards() if card.format in (ROWS, *FORMATS))
    return tuple(sorted({*with_cards, *dataset_plugins()}))


def _offered(name: str, data_root: Path | None) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """Return the tasks and the splits of a dataset."""
    benchmark = _required(name)
    if rows_card(name) is not None:
        card = load_card(name)
        return tuple(card.facts["tasks"]), tuple(card.splits)
    dataset = benchmark or open_own(name, data_root)
    return dataset.tasks, dataset.splits


def tasks_of(name: str, data_root: Path | None = None) -> tuple[Task, ...]:
    """Tasks of a dataset.

    Raises:
        ConfigError: there is no such dataset. DatasetError: data of one's own that cannot be read.
    """
    return _offered(name, data_root)[0]


def splits_of(name: str, data_root: Path | None = None) -> tuple[str, ...]:
    """Splits of a dataset.

    Raises:
        ConfigError: there is no such dataset. DatasetError: data of one's own that cannot be read.
    """
    return _offered(name, data_root)[1]


def require_names(name: str, *, split: str, tasks: Sequence[str] = (), data_root: Path | None = None) -> None:
    """Refuse a dataset, a split or a task that does not exist, before a file of a known dataset is read.

    Args:
        split: of the dataset, or several that are joined by +.

    Raises:
        ConfigError: there is none of that name. DatasetError: data of one's own that cannot be read, or a known
            dataset is not there.
    """
    known_tasks, known_splits = _offered(name, data_root)
    parts = split.split(JOIN)
    require_known(name, "task", tasks, known_tasks)
    require_known(name, "split", parts, known_splits)
    benchmark = benchmark_of(name)
    if benchmark and not (resolve_data_root(data_root) / benchmark.card.facts["folder"]).is_dir():
        # It says itself what is to be done.
        open_dataset(name, split=parts[0], data_root=data_root)


def vqa_mode_of(name: str) -> Literal["2021", "2017", "vqa-vs"]:
    """Return the evaluator that a VQA dataset is scored by: its card's, else the official one of 2021."""
    if name not in card_names():
        return "2021"
    mode: Literal["2021", "2017", "vqa-vs"] = load_card(name).facts.get("vqa_mode", "2021")
    return mode


def open_dataset(
    name: str, *, split: str, data_root: Path | None = None, tasks: Sequence[str] = (), **options: Any
) -> IndexedDataset:
    """Open one split of a dataset.

    Args:
        name: see `dataset_names`.
        split: see `splits_of`.
        data_root: folder of the datasets; None for `$ADVL_DATA`, else `datasets/`. Of one's own data: the folder of
            the pictures; None for that of the file.
        tasks: restrict to these; all tasks of the dataset by default.
        options: see `ReadOptions`; `answers` may be a file with them, too.

    Raises:
        ConfigError: an unknown name, split, task or option.
        DatasetError: a file is missing or malformed.
    """
    benchmark = _required(name)
    if options.get("answer_list", "train") != "train":
        if benchmark is None or "answer_lists" not in benchmark.card.facts:
            raise ineffective(
                "--answer-list", why=f"{name} has no published answer list; VQA v2 and its reshuffles have"
            )
        if options.get("answers") is not None:
            raise ineffective("--answer-list", why="--answers gives the list of answers")
    if isinstance(answers := options.get("answers"), Path):
        options["answers"] = read_vocabulary(answers)
    known = benchmark or open_own(name, data_root)
    require_known(name, "task", tasks, known.tasks)
    require_known(name, "split", [split], known.splits)
    wanted = tuple(task for task in known.tasks if not tasks or task in tasks)
    return known.open(split, resolve_data_root(data_root), ReadOptions(tasks=wanted, **options))


def open_splits(name: str, *, split: str, **options: Any) -> IndexedDataset | UnionOfSplits:
    """Open a split, or several that are joined by +, such as train+val: all that a run is trained on.

    Args:
        name: see `dataset_names`.
        split: of the dataset, or names of several.
        options: as `open_dataset` takes them.

    Raises:
        ConfigError, DatasetError: as `open_dataset`, or splits that hold the same items.
    """
    names = split.split(JOIN)
    if len(names) == 1:
        return open_dataset(name, split=split, **options)
    benchmark = _required(name)
    counted = benchmark.card.facts.get("answer_lists", {}) if benchmark else {}
    if counted.get("published") == names and options.get("answers") is None:
        # A run that trains on all that the published models count knows all of their answers.
        options = {**options, "answer_list": "published"}
    if benchmark is None and options.get("answers") is None:
        # Each split alone might have other classes, and so number them otherwise.
        data = open_own(name, options.get("data_root"))
        require_known(name, "split", names, data.splits)
        options = {**options, "answers": class_names(data.index, data.rows.card, names)}
    return UnionOfSplits([open_dataset(name, split=part, **options) for part in names])


def own_data(name: str, data_root: Path | None) -> OwnData | None:
    """Return data that are given as rows, indexed; None for a benchmark and for a name that nothing has.

    Raises:
        ConfigError: a card that cannot be used. DatasetError: they cannot be read.
    """
    return open_own(name, data_root) if benchmark_of(name) is None and _is_rows(name) else None


def _is_rows(name: str) -> bool:
    """Tell whether a dataset is given as rows: one's own data, a card's, or those of a reader of another package."""
    return is_own_data(name) or rows_card(name) is not None or name in dataset_plugins()


def _required(name: str) -> Benchmark | None:
    """Return the benchmark of a name, None for rows.

    Raises:
        ConfigError: the name is neither.
    """
    benchmark = benchmark_of(name)
    if benchmark is None and not _is_rows(name):
        what, note = f"There is no dataset {name!r}.", missing_data()
        raise unknown_name(what, name, dataset_names(), note=note, next_command=KNOWN_NAMES)
    return benchmark


def require_known(name: str, what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse splits or tasks that a dataset does not have; the near ones are listed."""
    for wanted_name in wanted:
        if wanted_name not in known:
            raise unknown_name(f"{name} has no {what} {wanted_name!r}.", wanted_name, known)
