"""From the words that name one's own data to its rows, and to the opened data, ready to give splits.

The words name a file, a folder, a card, the hub, or another package's reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from advl_pipeline.datasets.cards import ReadOptions, load_plugin, plugin_entry_points, rows_card
from advl_pipeline.datasets.index import Index, describe, open_index
from advl_pipeline.datasets.indexed import IndexedDataset, Reading, Role, Source, Variant
from advl_pipeline.datasets.own.hub import hub_names, hub_source, library_sign
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import (
    CARD_SUFFIX,
    HUB_PREFIX,
    SPLIT_STEMS,
    TABLE_SUFFIXES,
    DatasetMissing,
    index_folder,
    is_own_data,
    is_safe_name,
    resolve_data_root,
)
from advl_pipeline.datasets.rows import DataCard, Row, RowSource, names_hub, read_card
from advl_pipeline.datasets.tables import read_table
from advl_pipeline.datasets.vqa_answers import read_vocabulary
from advl_pipeline.errors import (
    ConfigError,
    DatasetError,
    advise,
    again,
    suggest_names,
)


@dataclass(frozen=True)
class Table:
    """One file, and the split that it is of; None where a column says it."""

    path: Path
    split: str | None = None


def find_source(name: str, data_root: Path | None) -> tuple[RowSource, Path]:
    """Find the rows of a dataset.

    Args:
        name: a file, a folder, a card, `hf:NAME`, or the name of an installed reader.
        data_root: folder of the pictures, where it is not that of the file; for a reader, the folder of the datasets.

    Returns:
        The rows, and the folder whose `.index` keeps what is learned of them.

    Raises:
        ConfigError: a card that cannot be used. DatasetError: there is nothing to read.
    """
    plugins = plugin_entry_points()
    if name in plugins:
        root = resolve_data_root(data_root)
        source = load_plugin(plugins[name])(root)
        if not isinstance(source, RowSource):
            raise ConfigError(
                f"The reader {name!r} is not one.",
                where=plugins[name].value,
                why=f"it returned {type(source).__name__}, not a RowSource",
                next_command="docs/adding-a-dataset.md says what a reader returns",
            )
        return source, root
    if name.startswith(HUB_PREFIX):
        return hub_source(name, DataCard(), root=resolve_data_root(data_root)), resolve_data_root(data_root)
    if (named := rows_card(name)) is not None:
        root = resolve_data_root(data_root)
        card = read_card(named)
        revisions = {one.revision[:12] for one in hub_names(card.files, root).values() if one.revision}
        return replace(hub_source(card.files, card, root=root), called="@".join([name, *sorted(revisions)])), root
    path = Path(name)
    if not path.exists():
        raise DatasetMissing(
            "There are no such data.",
            where=name,
            why="no file or folder of that name; " + _neighbours(path),
            next_command=advise(
                ["advl", "datasets", "list"], note="known names; your own data: docs/adding-a-dataset.md"
            ),
        )
    if path.suffix == CARD_SUFFIX:
        return _of_card(path, data_root)
    tables = _tables_of_folder(path) if path.is_dir() else [Table(path)]
    home = path if path.is_dir() else path.parent
    return table_source(tables, pictures=data_root or home), home


def table_source(tables: Iterable[Table], *, pictures: Path, card: DataCard | None = None) -> RowSource:
    """Return the rows of files.

    Args:
        pictures: folder that picture names are relative to.

    Raises:
        DatasetError: a file is missing or of no known format.
    """
    # Training comes first: its first row says of which kind all rows are, and rows of a test set may lack labels.
    ordered = sorted(tables, key=lambda table: (table.split or "train") != "train")
    for table in ordered:
        if table.path.suffix not in TABLE_SUFFIXES:
            raise DatasetError(
                "The file is of no known format.",
                where=str(table.path),
                why=f"its name ends in {table.path.suffix!r}; known: {', '.join(TABLE_SUFFIXES)} and {CARD_SUFFIX}",
                next_command="write one JSON object a line into a .jsonl file; docs/adding-a-dataset.md",
            )
        if not table.path.is_file():
            raise DatasetMissing(
                "A file of the data is missing.",
                where=str(table.path),
                next_command=again("put it there, or name another one in the card, then give the same command again"),
            )
    only = ordered[0].path.stem if len(ordered) == 1 else ""
    return RowSource(
        rows=lambda: _rows(ordered),
        pictures=pictures,
        files=tuple(table.path for table in ordered),
        version=repr([table.split for table in ordered]),
        split=only if only in SPLIT_STEMS else "train",
        card=card or DataCard(),
    )


def _rows(tables: list[Table]) -> Iterator[Row]:
    splits = [table.split for table in tables]
    for table in tables:
        # Rows are numbered by file, so that their names are the same in every format.
        is_alone = len(tables) == 1 or (table.split is not None and splits.count(table.split) == 1)
        for number, (line, record) in enumerate(read_table(table.path), start=1):
            name = str(number) if is_alone else f"{table.path.stem}:{number}"
            yield Row(record, name=name, split=table.split, file=str(table.path), line=line)


def _tables_of_folder(folder: Path) -> list[Table]:
    """A folder's files are the splits that they are called after."""
    files = sorted(path for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES and path.is_file())
    sign = library_sign(folder, files)
    if sign is not None:
        name = f"{HUB_PREFIX}{folder}"
        raise DatasetError(
            "The folder is in the layout of Hugging Face, which the library `datasets` reads.",
            where=str(folder),
            why=f"it holds {sign.relative_to(folder)}",
            next_command=advise(["advl", "datasets", "check", name], note=f"give {name} in place of {folder}"),
        )
    stems = [path.stem for path in files]
    if not files or len(set(stems)) != len(stems):
        raise DatasetError(
            "The folder does not say which file is which split.",
            where=str(folder),
            why=f"two files are called {max(stems, key=stems.count)}"
            if files
            else f"no file in it ends in {', '.join(TABLE_SUFFIXES)}",
            next_command="call the files train.jsonl, val.jsonl and test.jsonl, or name them in a card "
            "(docs/adding-a-dataset.md)",
        )
    return [Table(path, path.stem) for path in files]


def _of_card(path: Path, data_root: Path | None) -> tuple[RowSource, Path]:
    card, home = read_card(path), path.parent
    pictures = home / card.pictures if card.pictures is not None else data_root or home
    if names_hub(card.files):
        return hub_source(card.files, card, root=resolve_data_root(data_root)), home
    named: Mapping[str | None, object] = {None: card.files} if isinstance(card.files, str) else card.files
    tables = []
    for split, value in named.items():
        for file in value if isinstance(value, list) else [value]:
            if not is_safe_name(str(file)):
                raise ConfigError(
                    "The card names a file outside its folder.",
                    where=f"{path} files",
                    why=f"got {file!r}",
                    next_command=again(f"put the file beside {path}, then give the same command again"),
                )
            tables.append(Table(home / str(file), split))
    return table_source(tables, pictures=pictures, card=card), home


def _neighbours(path: Path) -> str:
    """Return the names beside a missing one that look like it."""
    try:
        beside = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} is not there either"
    return str(suggest_names(path.name, beside)) if 0 < len(beside) <= 200 else f"looked in {path.parent}"


@dataclass(frozen=True)
class OwnData:
    """A dataset of rows before one of its splits is opened."""

    name: str
    rows: RowSource
    index: Index

    def line(self) -> str:
        """Return the line that tells a user what was made of the columns."""
        return describe(self.index, self.name)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that its columns give."""
        return self.index.tasks

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that hold rows."""
        return self.index.splits

    def open(self, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
        """Open a split, which must be one of `splits`.

        Args:
            root: not looked at, since the index says where its files lie.
            options: `answers` holds names of classes or answers, or a file of them; None for those that
                `class_names` finds.

        Raises:
            DatasetError: a row or a picture is malformed, or nothing is usable.
        """
        source = Source(
            dataset=self.name,
            split=split,
            folder=self.rows.pictures,
            pictures=self.rows.pictures,
            index=self.index.folder,
            on_error=options.on_error,
        )
        is_labelled = self.index.is_labelled(split)
        # Ids carry the task whenever there are several, whichever of them are opened.
        suffixed = len(self.tasks) > 1
        reading = Reading(
            # A rationale is for the right answer: where nobody knows it, there is nothing to choose for.
            variants=tuple(
                Variant(task, _ROLES[task], f":{task}" if suffixed else "")
                for task in options.tasks
                if task != "rationale" or is_labelled
            ),
            classes=partial(_classes, self.index, self.rows.card, options.answers, split),
            scores=answer_scores,
            is_own=True,
            called=self.rows.called,
        )
        dataset = IndexedDataset(
            source,
            self.index,
            reading,
            digests=[self.index.digest_of(split)],
            rows=self.index.rows_of(split),
            problems=self.index.problems_of(split),
        )
        if self.index.kind == "classes" and is_labelled:
            dataset.require_known_classes()
        return dataset


def _classes(index: Index, card: DataCard, given: Path | tuple[str, ...] | None, split: str) -> tuple[str, ...]:
    if given is None or index.kind == "choice":
        return class_names(index, card, [split])
    return read_vocabulary(given) if isinstance(given, Path) else given


_ROLES: Mapping[Task, Role] = {
    "choice": "choice",
    "rationale": "rationale",
    "classes": "class",
    "answers": "answer",
}


def is_rows(name: str) -> bool:
    """Tell whether a dataset is given as rows: one's own data, a card's, or those of a reader of another package."""
    return is_own_data(name) or rows_card(name) is not None or name in plugin_entry_points()


_opened: dict[tuple[str, Path | None, Path], tuple[object, OwnData]] = {}
"""What this process has opened: a command says what data are, refuses what they lack, and reads them."""


def open_own(name: str, data_root: Path | None) -> OwnData:
    """Find and index a dataset of rows; once in a process while its files are the same.

    Raises:
        ConfigError: a card that cannot be used.
        DatasetError: there are no such data, or no row of them can be used.
    """
    on_hub = name.startswith(HUB_PREFIX) and not Path(name.removeprefix(HUB_PREFIX).partition(":")[0]).exists()
    here = (name, data_root, Path.cwd())
    if on_hub and here in _opened:
        return _opened[here][1]
    rows, home = find_source(name, data_root)
    folder = index_folder(home, home if is_own_data(name) else home / name)
    state = (folder, rows.version, repr(rows.card), rows.pictures, [_state(file) for file in rows.files])
    if here not in _opened or _opened[here][0] != state:
        index = open_index(rows, dataset=name, folder=folder)
        _opened[here] = (state, OwnData(name, rows, index))
    return _opened[here][1]


def _state(file: Path) -> tuple[int, ...]:
    """Return what changes when a file does."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


NUM_AGREEING = 3
"""Answers that agree make an answer fully right, or all of them where there are fewer."""


def answer_scores(counts: Mapping[str, int]) -> dict[str, float]:
    """Return answer -> its score: min(1, k / min(3, n)) for one that k of n gave; a single answer is right or not."""
    needed = min(NUM_AGREEING, sum(counts.values()))
    return {answer: min(1.0, count / needed) for answer, count in counts.items()}


def class_names(index: Index, card: DataCard, opened: Sequence[str]) -> tuple[str, ...]:
    """Return the classes or answers that splits opened together share: the card's, else those of train.

    Where no split is called train, they are those of the opened splits, all counted at once: a class number means
    the same in each of them. Choices have none.
    """
    if index.kind == "choice":
        return ()
    if index.kind == "classes" and card.labels:
        return card.labels
    names, labels = index.file.names("label_name"), index.file.numbers("label")
    of = ["train"] if "train" in index.splits else opened
    codes = np.concatenate([labels[index.rows_of(split)] for split in of])
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    if index.kind == "classes":
        return tuple(sorted((names[code] for code, count in enumerate(counts) if count), key=_by_number))
    found = sorted((-count, names[code]) for code, count in enumerate(counts))
    return tuple(name for count, name in found if -count >= card.min_answer_count)


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sort classes that are numbers as numbers, before the others."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
