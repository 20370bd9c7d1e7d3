"""Datasets by name: published ones as their cards describe them, the built-in corpus, data of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from advl_pipeline.datasets.cards import (
    JOIN,
    ROWS,
    AnswerList,
    Benchmark,
    Card,
    ReadOptions,
    card_names,
    load_card,
    load_plugin,
    plugin_entry_points,
    rows_card,
)
from advl_pipeline.datasets.id_lists import read_pair_ids, vqa_part
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset, Source
from advl_pipeline.datasets.own.source import class_names, is_rows, open_own
from advl_pipeline.datasets.parts import UnionOfSplits
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, require_file, resolve_data_root
from advl_pipeline.datasets.rows import RowSource
from advl_pipeline.datasets.snli_ve import LABEL_ORDERS, LabelOrder, snli_ve_reading, snli_ve_source
from advl_pipeline.datasets.vcr import Conditioning, open_vcr
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.datasets.vqa import VqaFiles, rows_kept, vocabulary_of, vocabulary_or, vqa_reading, vqa_source
from advl_pipeline.datasets.vqa_answers import MIN_OCCURRENCES
from advl_pipeline.errors import (
    ConfigError,
    advise,
    suggest_names,
)


def benchmark_of(name: str) -> Benchmark | None:
    """Return the benchmark of a name: one with a card in a format that ADVL reads, or a plug-in's; None for rows."""
    if name in card_names() and (card := load_card(name)).format in _FORMATS:
        tasks, opener = _FORMATS[card.format]
        return Benchmark(name=name, card=card, tasks=tasks, splits=tuple(card.splits), open=partial(opener, card))
    plugins = plugin_entry_points()
    plugin = load_plugin(plugins[name]) if name in plugins else None
    return plugin if isinstance(plugin, Benchmark) else None


def dataset_names() -> tuple[str, ...]:
    """Names that `open_dataset` takes, beside those that say where data of one's own lies (`names.py`)."""
    own = (name for name in card_names() if load_card(name).format in (ROWS, *_FORMATS))
    return tuple(sorted({*own, *plugin_entry_points()}))


def tasks_of(name: str, data_root: Path | None = None) -> tuple[Task, ...]:
    """Tasks of a dataset.

    Raises:
        ConfigError: there is no such dataset. DatasetError: data of one's own that cannot be read.
    """
    benchmark = _required(name)
    if rows_card(name) is not None:
        tasks: tuple[Task, ...] = tuple(load_card(name).facts["tasks"])
        return tasks
    return benchmark.tasks if benchmark else open_own(name, data_root).index.tasks


def splits_of(name: str, data_root: Path | None = None) -> tuple[str, ...]:
    """Splits of a dataset.

    Raises:
        ConfigError: there is no such dataset. DatasetError: data of one's own that cannot be read.
    """
    benchmark = _required(name)
    if rows_card(name) is not None:
        return tuple(load_card(name).splits)
    return benchmark.splits if benchmark else open_own(name, data_root).index.splits


def require_names(name: str, *, split: str, tasks: Sequence[str] = (), data_root: Path | None = None) -> None:
    """Refuse a dataset, a split or a task that does not exist, before a file of a known dataset is read.

    Args:
        split: of the dataset, or several that are joined by +.

    Raises:
        ConfigError: as said. DatasetError: data of one's own that cannot be read, or a known dataset is not there.
    """
    _tasks_of(name, tasks_of(name, data_root), tasks)
    parts = split.split(JOIN)
    for part in parts:
        _require_split(name, part, splits_of(name, data_root))
    benchmark = benchmark_of(name)
    if benchmark is not None and not benchmark.is_in(resolve_data_root(data_root)):
        # It says itself what is to be done.
        open_dataset(name, split=parts[0], data_root=data_root)


def vqa_mode_of(name: str) -> Literal["2021", "2017", "vqa-vs"]:
    """Return the evaluator that a VQA dataset is scored by: its card's, else the official one of 2021."""
    if name not in card_names():
        return "2021"
    mode: Literal["2021", "2017", "vqa-vs"] = load_card(name).facts.get("vqa_mode", "2021")
    return mode


def open_dataset(
    name: str,
    *,
    split: str,
    data_root: Path | None = None,
    tasks: Sequence[str] = (),
    text_style: TextStyle | None = None,
    conditioning: Conditioning | None = None,
    label_order: LabelOrder = "uniter",
    answers: Path | tuple[str, ...] | None = None,
    answer_list: AnswerList = "train",
    on_error: OnError = "fail",
) -> IndexedDataset:
    """Open one split of a dataset.

    Args:
        name: see `dataset_names`.
        split: see `splits_of`.
        data_root: folder of the datasets; None for `$ADVL_DATA`, else `datasets/`. Of one's own data: the folder of
            the pictures; None for that of the file.
        tasks: restrict to these; all tasks of the dataset by default.
        text_style, conditioning, label_order, answers, answer_list, on_error: see `ReadOptions`.

    Raises:
        ConfigError: an unknown name, split, task or option.
        DatasetError: a file is missing or malformed.
    """
    benchmark = _required(name)
    known = benchmark or open_own(name, data_root)
    options = ReadOptions(
        tasks=_tasks_of(name, known.tasks, tasks),
        text_style=_one_of("text style", text_style, get_args(TextStyle)),
        conditioning=_one_of("conditioning", conditioning, get_args(Conditioning)),
        label_order=_one_of("label order", label_order, tuple(LABEL_ORDERS)) or "uniter",
        answers=answers,
        answer_list=_one_of("answer list", answer_list, get_args(AnswerList)),
        on_error=on_error,
    )
    _check_answer_list(name, benchmark, options)
    _require_split(name, split, known.splits)
    return known.open(split, resolve_data_root(data_root), options)


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
        options = {**options, "answers": _shared_classes(name, names, options.get("data_root"))}
    return UnionOfSplits([open_dataset(name, split=part, **options) for part in names])


def _shared_classes(name: str, splits: Sequence[str], data_root: Path | None) -> tuple[str, ...]:
    """Return the classes of splits of one's own data: each alone might have others, and so number them otherwise."""
    own = open_own(name, data_root)
    for split in splits:
        _require_split(name, split, own.splits)
    return class_names(own.index, own.rows.card, splits)


def _home(card: Card, root: Path) -> Path:
    """Return the folder of a dataset.

    Raises:
        DatasetMissing: it is not there.
    """
    folder = root / str(card.facts["folder"])
    if not folder.is_dir():
        raise DatasetMissing(
            f"The dataset {card.name} is not there.",
            where=str(folder),
            why="the folder does not exist; the data root is $ADVL_DATA, or datasets/",
            next_command=advise(["advl", "datasets", "card", card.name], note="what to download and where to put it"),
        )
    return folder


def _source(card: Card, split: str, root: Path, options: ReadOptions) -> Source:
    folder = _home(card, root)
    return Source(
        dataset=card.name,
        split=split,
        folder=folder,
        pictures=root / card.facts["pictures_folder"],
        index=index_folder(root, folder),
        on_error=options.on_error,
    )


def _open_vcr(card: Card, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source, facts = _source(card, split, root, options), card.split(split)
    return open_vcr(
        source,
        require_file(source.folder / facts["annotations"], dataset=card.name),
        labelled=facts["labelled"],
        tasks=options.tasks,
        conditioning=options.conditioning,
        style=options.text_style or card.facts["text_style"],
    )


def _open_vqa(card: Card, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source(card, split, root, options)

    def part(of: str) -> tuple[Index, frozenset[str] | None]:
        facts = card.split(of)
        index = open_index(_vqa_rows(card, facts, source), dataset=card.name, folder=source.index)
        return index, vqa_part(index, source.folder, card.name, facts)

    def built() -> tuple[str, ...]:
        counted = card.facts["answer_lists"][options.answer_list]
        where = ", ".join(str(source.folder / str(card.split(of).get("annotations"))) for of in counted)
        return vocabulary_of([part(of) for of in counted], min_occurrences=MIN_OCCURRENCES, where=where)

    index, keep = part(split)
    return IndexedDataset(
        source,
        index,
        vqa_reading(vocabulary_or(options.answers, built)),
        digests=index.digests,
        rows=None if keep is None else rows_kept(index, keep),
    )


def _vqa_rows(card: Card, facts: Mapping[str, Any], source: Source) -> RowSource:
    names = (facts["questions"], facts.get("annotations"))
    questions, annotations = (
        None if name is None else require_file(source.folder / name, dataset=card.name) for name in names
    )
    assert questions is not None
    files = VqaFiles(questions=questions, annotations=annotations, subtype=facts.get("subtype"))
    return vqa_source(files, dataset=card.name, pictures=source.pictures)


def _open_snli_ve(card: Card, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source, facts = _source(card, split, root, options), card.split(split)
    annotations = require_file(source.folder / facts["annotations"], dataset=card.name)
    rows = snli_ve_source(annotations, pictures=source.pictures)
    keep = read_pair_ids(source, facts["ids"]) if "ids" in facts else None
    index = open_index(rows, dataset=card.name, folder=source.index)
    return IndexedDataset(
        source,
        index,
        snli_ve_reading(options.label_order),
        digests=index.digests,
        rows=None if keep is None else rows_kept(index, keep),
    )


def _check_answer_list(name: str, benchmark: Benchmark | None, options: ReadOptions) -> None:
    """Refuse a published list where there is none, and two lists at once.

    Raises:
        ConfigError: as said.
    """
    if options.answer_list == "train":
        return
    if benchmark is None or not benchmark.has_answer_lists:
        raise ConfigError(
            f"{name} has no published answer list.",
            where="--answer-list",
            why="only VQA v2 and its reshuffles have one",
            next_command="leave out --answer-list",
        )
    if options.answers is not None:
        raise ConfigError(
            "Two answer lists are asked for.",
            why="--answers gives a list, and --answer-list published builds another",
            next_command="give one of --answers and --answer-list",
        )


_FORMATS: Mapping[str, tuple[tuple[Task, ...], Callable[[Card, str, Path, ReadOptions], IndexedDataset]]] = {
    "vcr": (("vcr-q2a", "vcr-qa2r"), _open_vcr),
    "vqa": (("vqa",), _open_vqa),
    "snli-ve": (("snli-ve",), _open_snli_ve),
}
"""Format of a card -> the tasks that a dataset in it is opened for unless fewer are asked for, and what opens it."""


def _required(name: str) -> Benchmark | None:
    """Return the benchmark of a name, None for rows.

    Raises:
        ConfigError: the name is neither.
    """
    benchmark = benchmark_of(name)
    if benchmark is None and not is_rows(name):
        raise ConfigError(
            f"There is no dataset {name!r}.",
            why=suggest_names(name, dataset_names()),
            next_command=advise(
                ["advl", "datasets", "list"], note="known names; your own data: docs/adding-a-dataset.md"
            ),
        )
    return benchmark


def _require_split(name: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise ConfigError(f"{name} has no split {split!r}.", why=suggest_names(split, known))


def _tasks_of(name: str, known: Sequence[Task], wanted: Sequence[str]) -> tuple[Task, ...]:
    for task in wanted:
        if task not in known:
            raise ConfigError(f"{name} has no task {task!r}.", why=suggest_names(task, known))
    return tuple(task for task in known if not wanted or task in wanted)


def _one_of(what: str, value: Any, known: Sequence[str]) -> Any:
    if value is not None and value not in known:
        raise ConfigError(f"There is no {what} {value!r}.", why=suggest_names(str(value), known))
    return value
