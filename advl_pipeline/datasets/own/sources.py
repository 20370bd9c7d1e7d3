"""Sources of rows: a file, a folder, a card, a dataset of the hub, or a reader of another package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

from advl_pipeline.base.errors import AdvlError, ConfigError, DatasetError, advise, again, suggest_names
from advl_pipeline.base.packages import load_plugin, plugin_error
from advl_pipeline.base.repositories import HUB_PREFIX
from advl_pipeline.datasets.cards import Card, by_split, read_card
from advl_pipeline.datasets.own.hub import hub_names, hub_source
from advl_pipeline.datasets.people import READERS
from advl_pipeline.datasets.pictures import PICTURE_SUFFIXES
from advl_pipeline.datasets.problems import unreadable
from advl_pipeline.datasets.roots import (
    CARD_SUFFIX,
    KNOWN_NAMES,
    SPLIT_STEMS,
    TABLE_SUFFIXES,
    DatasetMissing,
    is_safe_name,
    resolve_data_root,
)
from advl_pipeline.datasets.row_files import read_table
from advl_pipeline.datasets.rows import Row, RowSource
from advl_pipeline.datasets.spec import dataset_plugins

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""Suffix of the hub library for one of several files of a split."""

Table = tuple[Path, str | None]
"""One file and its split; None if a column contains the split."""


def find_source(name: str, data_root: Path | None, card: Card) -> tuple[RowSource, Path]:
    """Find the rows of a dataset.

    Args:
        name: a file, a folder, a card, `hf:NAME`, or the name of an installed reader.
        data_root: folder of the pictures, if it is not that of the file; for a reader, the datasets folder.
        card: the published card of that name, else an empty one.

    Returns:
        The rows, and the folder whose `.index` stores their index.

    Raises:
        ConfigError: the card cannot be used. DatasetError: there is nothing to read.
    """
    root, path = resolve_data_root(data_root), Path(name)
    if plugin := dataset_plugins().get(name):
        return _read_by_plugin(plugin, root), root
    if name.startswith(HUB_PREFIX):
        return hub_source(Card(files=name), root=root), root
    if card.reader:
        return READERS[card.reader](root / name, card), root
    if card.name:
        revisions = {
            repository.revision[:12] for repository in hub_names(card.files, root).values() if repository.revision
        }
        return replace(hub_source(card, root=root), called="@".join([name, *sorted(revisions)])), root
    # An absolute path, which a working directory that is gone does not have.
    if not path.absolute().exists():
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DatasetMissing(
            "There is no dataset, file or folder of this name.",
            where=name,
            why="neither a known dataset nor a path"
            + (f"; {suggest_names(path.name, others)}" if 0 < len(others) <= 200 else ""),
            next_command=KNOWN_NAMES,
        )
    if path.is_dir():
        if pictures := _pictures_of_folder(path):
            return _picture_source(pictures, path), path
        return _table_source(_tables_of_folder(path), Card(), data_root or path), path
    home = path.parent
    if path.suffix != CARD_SUFFIX:
        return _table_source([(path, None)], Card(), data_root or home), home
    card = read_card(path)
    if card.reader:
        return READERS[card.reader](home, card), home
    if card.is_of_hub:
        card = replace(card, pictures=home / card.pictures) if card.pictures else card
        return hub_source(card, root=root), home
    tables = [(home / file, split) for split, files in by_split(card.files).items() for file in files]
    if outside := [file for files in by_split(card.files).values() for file in files if not is_safe_name(file)]:
        raise ConfigError(
            "The card names a file outside its folder.",
            where=f"{path} files",
            why=f"got {outside[0]!r}; a card names files next to it or below",
        )
    return _table_source(tables, card, home / card.pictures if card.pictures else data_root or home), home


def _read_by_plugin(plugin: EntryPoint, root: Path) -> RowSource:
    """Return the rows of a reader from another package.

    Raises:
        ConfigError: the reader fails, or returns something else.
    """
    try:
        source = load_plugin(plugin, "dataset")(root)
    except AdvlError:
        raise
    except Exception as error:
        raise plugin_error(plugin, "dataset", error) from error
    if not isinstance(source, RowSource):
        raise ConfigError(
            f"The plug-in {plugin.name!r} is no dataset reader.",
            where=plugin.value,
            why=f"it returned {type(source).__name__}, not a RowSource (docs/adding-a-dataset.md)",
        )
    return source


def _pictures_of_folder(folder: Path) -> list[str]:
    """Return the names of the pictures in a folder without tables and subfolders, which might name classes."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if any(path.is_dir() or path.suffix in (*TABLE_SUFFIXES, CARD_SUFFIX) for path in entries):
        return []
    return sorted(path.name for path in entries if path.suffix.lower() in PICTURE_SUFFIXES)


def _picture_source(names: Sequence[str], folder: Path) -> RowSource:
    """Return a row per picture of a folder, named after its file."""

    def rows() -> Iterator[Row]:
        for number, name in enumerate(names, start=1):
            yield Row({"image": name, "id": name}, name=name, split="train", file=str(folder / name), line=number)

    return RowSource(rows=rows, pictures=folder, files=(), version=repr(names), split="train", card=Card())


def _tables_of_folder(folder: Path) -> list[Table]:
    """Return the files of a folder, each as the split in its name."""
    files = sorted(path for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES and path.is_file())
    stems = [path.stem for path in files]
    if not files:
        why = f"no file in it ends in {', '.join(TABLE_SUFFIXES)}"
    elif len(set(stems)) < len(stems):
        why = f"two files are called {max(stems, key=stems.count)}"
    elif sharded := next(filter(_SHARD.search, stems), ""):
        why = f"{sharded} is a part of a split"
    else:
        return [(path, path.stem) for path in files]
    raise DatasetError(
        "The folder does not say which file is which split.",
        where=str(folder),
        why=why,
        next_command=advise(
            ["advl", "datasets", "check", f"{HUB_PREFIX}{folder}"],
            note="reads what the library `datasets` wrote; or call the files train.jsonl and val.jsonl, or write a "
            "card",
        ),
    )


def _table_source(tables: Sequence[Table], card: Card, pictures: Path) -> RowSource:
    """Return the rows of files, with picture names relative to a folder."""
    # Train comes first: its first row determines the kind of all rows, and rows of a test set may lack labels.
    ordered = sorted(tables, key=lambda table: (table[1] or "train") != "train")
    for path, _ in ordered:
        if path.suffix not in TABLE_SUFFIXES:
            raise DatasetError(
                "The file format is not supported.",
                where=str(path),
                why=f"its name ends in {path.suffix!r}; known: {', '.join(TABLE_SUFFIXES)} and {CARD_SUFFIX}",
                next_command="write one JSON object a line into a .jsonl file; docs/adding-a-dataset.md",
            )
        if not path.exists():
            raise DatasetMissing(
                "A file of the data is missing.",
                where=str(path),
                next_command=again("put it there, or name another one in the card, then run the same command again"),
            )
        if not path.is_file():
            raise unreadable(path, OSError("it is no regular file"), what="A file of the data")
    splits = [split for _, split in ordered]

    def rows() -> Iterator[Row]:
        for path, split in ordered:
            # Rows are numbered per file, so that their names are the same in every format.
            is_alone = len(ordered) == 1 or (split is not None and splits.count(split) == 1)
            for number, (line, record) in enumerate(read_table(path), start=1):
                name = str(number) if is_alone else f"{path.stem}:{number}"
                yield Row(record, name=name, split=split, file=str(path), line=line)

    only = ordered[0][0].stem if len(ordered) == 1 else ""
    return RowSource(
        rows=rows,
        pictures=pictures,
        files=tuple(path for path, _ in ordered),
        version=repr(splits),
        split=only if only in SPLIT_STEMS else "train",
        card=card,
    )
