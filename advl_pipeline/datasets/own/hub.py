"""Reader of `hf:NAME[:CONFIGURATION][@REVISION]` with the `datasets` library: a hub dataset, or a copy of one.

Pictures are read as bytes and not decoded here. Code of a repository is never run, and nothing outside of it is
read, whatever its card, its rows or its links name. A copy of a repository below the datasets folder takes
precedence. Rows are streamed, so that only the rows that are read are downloaded, and Parquet files of a commit are
read without their pictures (`remote_pictures.py`). Only a hub name without a revision uses the library's cache,
which may serve it offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from advl_pipeline.base.errors import Advice, DatasetError, advise, again
from advl_pipeline.base.locations import hub_obstacle, read_regular
from advl_pipeline.base.packages import install_extra
from advl_pipeline.datasets.cards import COLUMNS, Card, Join, by_split, card_instead_of
from advl_pipeline.datasets.index_files import stamp_of
from advl_pipeline.datasets.own import hub_files
from advl_pipeline.datasets.own.card_rules import renamed
from advl_pipeline.datasets.own.hub_files import HubName, hub_name
from advl_pipeline.datasets.own.layouts import option_columns
from advl_pipeline.datasets.own.remote_pictures import HeldRows, require_space
from advl_pipeline.datasets.problems import Malformed, first_line, shown, unfetched
from advl_pipeline.datasets.roots import DatasetMissing
from advl_pipeline.datasets.rows import Row, RowSource

UNKNOWN_CLASS = -1
"""The library's value for a missing label."""

_REVISION = re.compile(r"[0-9a-f]{7,40}")
"""A commit, which is immutable; a branch or a tag may move."""

_SAVED = "state.json"
"""File that `save_to_disk` writes next to the rows of a single dataset."""

Parts = Mapping[str | None, Any]
"""Split -> opened dataset of the library; the key is None if the rows name their split."""


class _Loaded(NamedTuple):
    """Opened datasets, their content's version ("" if they identify it), their local files, folders of pictures."""

    parts: Parts
    version: str
    files: Sequence[Path]
    folders: Sequence[Path]


def hub_names(files: Any, root: Path) -> dict[str | None, HubName]:
    """Return split -> hub name from the `files` of a card; the key is None if the dataset defines its splits."""
    return {split: hub_name(name, root) for split, (name,) in by_split(files).items()}


def hub_source(card: Card, *, root: Path) -> RowSource:
    """Return the rows of hub datasets; if everything is known beforehand, the hub is not contacted yet.

    Args:
        card: its `files` are hf:NAME, or split -> hf:NAME.
        root: datasets folder.

    Raises:
        DatasetError: the library is missing, or the dataset is not available.
    """
    named = hub_names(card.files, root)
    first = next(iter(named.values()))
    names = [f"{split or ''} {name}" for split, name in named.items()]
    source = RowSource(
        rows=lambda: _opened(source, named, root).rows(),
        # The path of a copy, existing or not, if the card names no folder.
        pictures=card.pictures or first.copy or root / first.path,
        is_confined=card.pictures is None,
        command_for=None if card.pictures else partial(_picture_command, first, root),
        version=repr((names, card.num_rows, card.join)),
        card=card,
    )
    are_pinned = all(name.revision and name.copy is None for name in named.values())
    is_known = are_pinned and (card.labels or card.task in ("choice", "answers"))
    return source if is_known else _opened(source, named, root)


def _opened(source: RowSource, named: Mapping[str | None, HubName], root: Path) -> RowSource:
    """Return a source with the rows of its datasets, and what is known only when they are open."""
    card = source.card
    loaded = _loaded(named, card, root)
    joined = _loaded(hub_names(card.join.files, root), replace(card, num_rows=None), root) if card.join else []
    here = [file for each in (*loaded, *joined) for file in each.files]
    opened = library_source(
        _parts(loaded),
        card,
        name=str(next(iter(named.values()))),
        pictures=source.pictures,
        joined=_parts(joined),
        folders=[folder for each in loaded for folder in each.folders],
    )
    return replace(
        opened,
        version="".join(each.version for each in (*loaded, *joined)) or opened.version,
        state=(lambda: [stamp_of(path) for path in here]) if here else None,
        is_confined=source.is_confined,
        command_for=source.command_for,
    )


def _picture_command(name: HubName, root: Path, picture: str) -> str:
    """Return the command that brings a picture of a repository beside its rows; "" if it holds none of that name.

    The pictures may lie in folders or in zip archives; the copy of a repository takes precedence over the hub.
    """
    if name.copy is None:
        kept = hub_files.names_at_root(name)
        is_there = picture.partition("/")[0] in kept or any(file.endswith(hub_files.ARCHIVE) for file in kept)
        note = "its pictures lie beside the rows, and a copy there is read"
        return advise(_download(name, root), note=note, again=()) if is_there else ""
    unpack = hub_files.unpacking(name.copy, picture)
    return advise(["python", "-m", "zipfile", "-e", *map(str, unpack)], again=()) if unpack else ""


def _download(name: HubName, root: Path) -> list[str]:
    """Return the words of the command that copies a repository below the datasets folder."""
    revision = ["--revision", name.revision] if name.revision else []
    return ["hf", "download", "--repo-type", "dataset", name.path, *revision, "--local-dir", str(root / name.path)]


def _parts(loaded: Iterable[_Loaded]) -> dict[str | None, Any]:
    return {split: part for each in loaded for split, part in each.parts.items()}


def _loaded(named: Mapping[str | None, HubName], card: Card, root: Path) -> list[_Loaded]:
    """Return the datasets under our split names."""
    all_loaded = []
    for split, name in named.items():
        loaded = _load(name, card, root)
        ours = {card.split_names.get(str(theirs), theirs): part for theirs, part in loaded.parts.items()}
        ours.pop("", None)
        if split is not None:
            if split not in ours and len(ours) != 1:
                raise DatasetError(
                    f"The dataset has no split {split!r}.", where=str(name), why=f"it has {', '.join(map(str, ours))}"
                )
            ours = {split: ours.get(split, next(iter(ours.values())))}
        all_loaded.append(loaded._replace(parts=ours))
    return all_loaded


def _load(name: HubName, card: Card, root: Path) -> _Loaded:
    obstacle = "" if name.copy else hub_obstacle()
    if obstacle and (name.revision or card.num_rows):
        raise _refused(name, root, obstacle)
    try:
        import datasets

        load_builder = datasets.load_dataset_builder
    except (ImportError, AttributeError):
        # A folder `datasets` in the working folder, the default for downloads, imports as an empty package.
        raise DatasetMissing(
            "Datasets of the hub need the library `datasets`.",
            where=str(name),
            why="it is not installed",
            next_command=install_extra("hub"),
        ) from None
    path = str(name.copy.absolute() if name.copy else name.path)
    is_saved = (Path(path) / _SAVED).is_file()
    try:
        if obstacle:
            builder = _prepared_before(name)
        elif is_saved:
            # `load_from_disk` would open any file that the folder's record names, even outside the folder.
            builder = load_builder("arrow", data_dir=path, data_files="data-*.arrow")
        else:
            hub_files.require_own_names(name)
            revision = None if name.copy else name.revision or None
            builder = load_builder(path, name.configuration or None, revision=revision)
            if tables := hub_files.tables_beside_pictures(name, builder):
                builder = load_builder(tables.kind, data_files=tables.files)
        listed = builder.config.data_files or {}
        files = [*map(str, chain.from_iterable(listed.values()))]
        hub_files.require_own_files(name, builder, files)
        here = [Path(file) for file in files] if name.copy else []
        is_streamed = bool(name.copy or name.revision or card.num_rows)
        if is_streamed:
            parts = builder.as_streaming_dataset()
            version = repr([(split, of_split.origin_metadata) for split, of_split in listed.items()])
            version += repr([stamp_of(path) for path in here])
            if _REVISION.fullmatch(name.revision) and all(file.endswith(".parquet") for file in files):
                parts = {split: _held(name, listed[split], part) for split, part in parts.items()}
        else:
            if not Path(builder.cache_dir).exists():
                # Rows are downloaded and written as Arrow, and pictures are stored once more in the index.
                size = 2 * (builder.info.dataset_size or 0) + (builder.info.download_size or 0)
                require_space(size, str(name), root)
            builder.download_and_prepare()
            parts, version = builder.as_dataset(), ""
    except DatasetError:
        raise
    except Exception as error:  # The library raises the errors of its many back ends.
        raise _refused(name, root, obstacle, error) from None
    # The library names a single dataset train; its rows may name other splits.
    return _Loaded(
        {None if is_saved else str(split): part for split, part in parts.items()},
        version,
        here,
        hub_files.picture_folders(name, builder),
    )


def _prepared_before(name: HubName) -> Any:
    """Return a dataset from the library's cache; otherwise the library tries the network for half a minute."""
    from datasets.packaged_modules.cache.cache import Cache

    dataset, configuration = name.path.rpartition("/")[2], name.configuration or None
    return Cache(repo_id=name.path, dataset_name=dataset, config_name=configuration, version="auto", hash="auto")


def _held(name: HubName, files: Iterable[object], part: Any) -> Any:
    """Return the rows of Parquet files without the bytes of their pictures; unchanged rows without pictures."""
    import datasets

    inner = {column: getattr(feature, "feature", feature) for column, feature in (part.features or {}).items()}
    pictures = frozenset(column for column, feature in inner.items() if isinstance(feature, datasets.Image))
    # The path after the full revision for files on the hub, the path below the folder for a copy.
    inside = {
        str(file).partition("@")[2].partition("/")[2]
        if name.copy is None
        else Path(str(file)).relative_to(name.copy.resolve()).as_posix(): str(file)
        for file in files
    }
    return HeldRows(f"{name.path}@{name.revision}", inside, part.features, pictures) if pictures else part


def _refused(name: HubName, root: Path, obstacle: str, error: Exception | None = None) -> DatasetMissing:
    """Return the error for a dataset that the library could not open, with the library's reason."""
    reason = first_line(error) if error and not obstacle else obstacle
    page = f"https://huggingface.co/datasets/{name.path}"
    instead = card_instead_of(name.path)
    advice: Mapping[str, tuple[str, str | Advice]] = {
        "gated dataset": (
            "its authors give it to those who accept their terms",
            again(f"accept the terms at {page}, log in by `hf auth login`, then run the same command again"),
        ),
        "doesn't exist for dataset": (
            f"the revision {name.revision} is gone",
            f"look at {page}/commits/main, and write the revision that you want behind @",
        ),
        "scripts are no longer supported": (
            "it is a loading script, and code of a repository is never run",
            advise(["advl", "datasets", "card", instead], note="the same set in Parquet")
            if instead
            else "look for a copy in Parquet, or write one as a .jsonl or .parquet file, and give that by --data",
        ),
        "": (
            reason,
            advise(
                _download(name, root),
                note="where there is a network; or give rows in a .jsonl or .parquet file by --data",
            )
            if obstacle
            else "look at the name and its configuration: hf:NAME:CONFIGURATION",
        ),
    }
    why, following = next(entry for mark, entry in advice.items() if mark in reason)
    return DatasetMissing(
        "The dataset could not be downloaded from the hub.", where=str(name), why=why, next_command=following
    )


def library_source(
    splits: Parts,
    card: Card,
    *,
    name: str,
    pictures: Path,
    joined: Parts | None = None,
    folders: Sequence[Path] | None = None,
) -> RowSource:
    """Return the rows of opened datasets of the library.

    Args:
        splits: opened datasets.
        card: the user's card; classes of a label column are added to it.
        name: name of the dataset, for messages.
        pictures: folder that picture names are relative to.
        joined: datasets of the card's `join`.
        folders: allowed folders of pictures with an absolute path; None for the user's own rows, which may name
            any path.
    """
    import datasets

    # Training comes first, as for files.
    ordered = sorted(splits.items(), key=lambda item: (item[0] or "train") != "train")
    ordered = [(split, _prepared(part, datasets.Image)) for split, part in ordered]
    others = {split: _prepared(part, datasets.Image) for split, part in (joined or {}).items()}
    features = ordered[0][1].features or {}
    columns = {ours: str(card.columns.get(ours, ours)) for ours in ("label", "answer")}
    named = {column: tuple(kind.names) for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    named = {column: names for column, names in named.items() if column in columns.values()}
    if names := named.get(columns["label"], ()):
        card = _with_names(
            card, names, is_choice=bool(option_columns(renamed(dict.fromkeys(features), card.columns)))
        )

    def rows() -> Iterator[Row]:
        for split, part in ordered:
            records: Iterable[tuple[int, Any]] = islice(enumerate(part, start=1), card.num_rows)
            if card.join:
                records = _joined(records, others[split], card, card.join)
            yield from _rows(name, split, records, named, folders)

    return RowSource(
        rows=rows,
        pictures=pictures,
        version=repr([(split, getattr(part, "_fingerprint", "")) for split, part in ordered]),
        card=card,
    )


def _with_names(card: Card, names: tuple[str, ...], *, is_choice: bool) -> Card:
    """Return the card with the names of a label column, which the library stores as numbers.

    A choice that is named by numbers in order is the library's number, whatever number the names begin with.
    """
    if not is_choice or card.task == "classes":
        return replace(card, labels=card.labels or names, label_is="text")
    first = next((first for first in (0, 1) if names == tuple(map(str, range(first, first + len(names))))), None)
    return card if first is None or card.first_label is not None else replace(card, labels=names, first_label=first)


def _prepared(part: Any, image_feature: type) -> Any:
    """Return a dataset that does not decode its pictures."""
    if isinstance(part, HeldRows):
        return part
    for column, feature in (part.features or {}).items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, image_feature):
            part = part.cast_column(column, image_feature(decode=False))
        elif isinstance(inner, image_feature):
            part = part.cast_column(column, type(feature)(image_feature(decode=False)))
    return part


def _joined(
    records: Iterable[tuple[int, Any]], others: Iterable[Mapping[str, Any]], card: Card, join: Join
) -> Iterator[tuple[int, Any]]:
    """Yield rows with the joined columns, in the order of the joined rows, which are read once."""
    named = chain.from_iterable([value] if isinstance(value, str) else value for value in card.columns.values())
    # Rows stay in memory until their join is read, so only columns with a meaning are kept.
    needed = {*named, *COLUMNS, *card.only, join.key, *(facet.column.split(".")[0] for facet in card.facets.values())}
    waiting: dict[Any, list[tuple[int, Any]]] = {}
    for number, record in records:
        kept = {column: value for column, value in record.items() if column in needed}
        waiting.setdefault(record.get(join.key), []).append((number, kept))
    for other in others:
        for number, record in waiting.pop(other[join.on], ()):
            yield number, {**record, **{column: other[column] for column in join.columns}}
        if not waiting:
            return
    for key, rest in waiting.items():
        for number, _ in rest:
            yield (
                number,
                Malformed(f"column {join.key!r} is {shown(key)}, which no joined row has as its {join.on!r}"),
            )


def _rows(
    name: str,
    split: str | None,
    records: Iterable[tuple[int, Any]],
    named: Mapping[str, Sequence[str]],
    folders: Sequence[Path] | None,
) -> Iterator[Row]:
    file, number = f"{name} {split or ''}".strip(), 0
    try:
        for number, record in records:
            fields = record
            if not isinstance(record, Malformed):
                try:
                    fields = {column: _bytes_of(value, column, folders) for column, value in record.items()}
                except Malformed as error:
                    fields = error
            for column, names in {} if isinstance(fields, Malformed) else named.items():
                if isinstance(place := fields.get(column), int):
                    fields[column] = None if place == UNKNOWN_CLASS else names[place]
            yield Row(fields, name=str(number), split=split, file=file, line=number)
    except DatasetError:
        raise
    except Exception as error:  # As on opening: the network fails, or a column differs from its description.
        raise unfetched(
            "The rows of the dataset cannot be read on.", where=f"{file}, after row {number}", error=error
        ) from None


def _bytes_of(value: Any, column: str, folders: Sequence[Path] | None) -> Any:
    """Return the bytes of a picture with an absolute path; anything else unchanged.

    Raises:
        Malformed: the picture is not in the dataset, or cannot be read.
    """
    if isinstance(value, list):
        return [_bytes_of(item, column, folders) for item in value]
    if not (isinstance(value, dict) and set(value) == {"bytes", "path"} and not value["bytes"] and value["path"]):
        return value
    path = Path(value["path"])
    if not path.is_absolute():
        return value
    if folders is not None and not any(hub_files.lies_inside(path, folder) for folder in folders):
        raise Malformed(f"field {column!r} names {shown(str(path))}, which is outside the dataset")
    try:
        return read_regular(path)
    except OSError as error:
        raise Malformed(f"field {column!r} names {shown(str(path))}: {error.strerror}") from None
