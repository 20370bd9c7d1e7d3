"""The `datasets` library opens `hf:NAME[:CONFIGURATION][@REVISION]`: a dataset of the hub, or a folder in its layout.

Pictures stay as they are stored: their bytes are read, never decoded here. Code of a repository is never run. A copy
of a repository below the folder of the datasets comes first. Rows are streamed, so that those are fetched which are
read, and Parquet of a commit is read without its pictures (`held_pictures.py`). Only a name of the hub without a
revision goes through the library's cache, which may serve it offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.cards import card_instead_of
from advl_pipeline.datasets.own.held_pictures import HeldRows, require_space
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.roots import HUB_PREFIX, DatasetMissing, is_safe_name
from advl_pipeline.datasets.rows import COLUMNS, DataCard, Join, Row, RowSource, by_split
from advl_pipeline.errors import Advice, DatasetError, advise, again
from advl_pipeline.locations import hub_obstacle
from advl_pipeline.packages import install_extra

UNKNOWN_CLASS = -1
"""What the library writes for a label that a split does not tell."""

_REVISION = re.compile(r"[0-9a-f]{7,40}")
"""A commit, which stays as it is; a branch or a tag may be moved."""

_SAVED = "state.json"
"""What `save_to_disk` leaves beside the rows of a lone dataset."""

Parts = Mapping[str | None, Any]
"""Split -> opened dataset of the library; None for one whose rows say their split."""


@dataclass(frozen=True)
class HubName:
    """What `hf:` names; `copy` is a folder that holds the repository here."""

    path: str
    configuration: str = ""
    revision: str = ""
    copy: Path | None = None

    def __str__(self) -> str:
        return (
            HUB_PREFIX
            + self.path
            + (self.configuration and f":{self.configuration}")
            + (self.revision and f"@{self.revision}")
        )


def hub_name(text: str, root: Path) -> HubName:
    """Take a name apart.

    Args:
        root: folder of the datasets.
    """
    text = text.removeprefix(HUB_PREFIX)
    if Path(text).exists():
        return HubName(text, copy=Path(text))
    whole, _, revision = text.partition("@")
    path, _, configuration = whole.partition(":")
    copies = [Path(path), *([root / path] if is_safe_name(path) else [])]
    return HubName(path, configuration, revision, next((folder for folder in copies if folder.is_dir()), None))


def hub_names(files: Any, root: Path) -> dict[str | None, HubName]:
    """Return split -> what `files` of a card names; None where the dataset says its splits."""
    return {split: hub_name(name, root) for split, (name,) in by_split(files).items()}


def hub_source(files: Any, card: DataCard, *, root: Path) -> RowSource:
    """Return the rows of datasets of the hub; where all is told beforehand, nothing is asked of the hub yet.

    Args:
        files: hf:NAME, or split -> hf:NAME.
        card: what the user said beside the columns.
        root: folder of the datasets.

    Raises:
        DatasetError: the library is absent, or the dataset cannot be had.
    """
    named = hub_names(files, root)
    are_pinned = all(name.revision and name.copy is None for name in named.values())
    if are_pinned and (card.labels or card.task in ("choice", "answers")):
        names = [f"{split or ''} {name}" for split, name in named.items()]
        version = repr((names, card.num_rows, card.join))
        return RowSource(rows=lambda: _opened(files, card, root).rows(), pictures=Path(), version=version, card=card)
    return _opened(files, card, root)


def _opened(files: Any, card: DataCard, root: Path) -> RowSource:
    parts, version = _parts(files, card, root)
    named = next(iter(hub_names(files, root).values()))
    joined: Parts = {}
    if card.join:
        joined, joined_version = _parts(card.join.files, replace(card, num_rows=None), root)
        version += joined_version
    source = library_source(parts, card, name=str(named), pictures=named.copy or Path(), joined=joined)
    return replace(source, version=version or source.version)


def _parts(files: Any, card: DataCard, root: Path) -> tuple[Parts, str]:
    """Return split -> dataset, under our names of the splits, and what tells their content; "" where they tell it."""
    parts: dict[str | None, Any] = {}
    versions: list[str] = []
    for split, name in hub_names(files, root).items():
        loaded, version = _load(name, card, root)
        versions.append(version)
        ours = {card.split_names.get(str(theirs), theirs): part for theirs, part in loaded.items()}
        ours.pop("", None)
        if split is not None:
            if split not in ours and len(ours) != 1:
                raise DatasetError(
                    f"The dataset has no split {split!r}.", where=str(name), why=f"it has {', '.join(map(str, ours))}"
                )
            ours = {split: ours.get(split, next(iter(ours.values())))}
        parts |= ours
    return parts, "".join(versions)


def _load(name: HubName, card: DataCard, root: Path) -> tuple[Parts, str]:
    obstacle = "" if name.copy else hub_obstacle()
    if obstacle and (name.revision or card.num_rows):
        raise _refused(name, root, obstacle)
    try:
        import datasets
        import huggingface_hub.constants

        load_builder = datasets.load_dataset_builder
    except (ImportError, AttributeError):
        # A folder of that name beside the user, where downloads lie by default, passes for an empty package.
        raise DatasetMissing(
            "Datasets of the hub need the library `datasets`.",
            where=str(name),
            why="it is not installed",
            next_command=install_extra("hub"),
        ) from None
    if obstacle:
        # A copy in the library's cache is taken at once, instead of after half a minute of retries.
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    path = str(name.copy or name.path)
    is_saved = (Path(path) / _SAVED).is_file()
    try:
        # `load_from_disk` would open whatever file the folder's record names, beside the folder too.
        builder = (
            load_builder("arrow", data_dir=path, data_files="data-*.arrow")
            if is_saved
            else load_builder(path, name.configuration or None, revision=None if name.copy else name.revision or None)
        )
        is_streamed = bool(name.copy or name.revision or card.num_rows)
        if is_streamed:
            parts = builder.as_streaming_dataset()
            files = builder.config.data_files or {}
            version = repr([(split, listed.origin_metadata) for split, listed in files.items()])
            names = map(str, chain.from_iterable(files.values()))
            if _REVISION.fullmatch(name.revision) and all(file.endswith(".parquet") for file in names):
                parts = {split: _held(name, files[split], part) for split, part in parts.items()}
        else:
            if not Path(builder.cache_dir).exists():
                # Rows are downloaded and written as Arrow, and pictures are kept once more in the index.
                size = 2 * (builder.info.dataset_size or 0) + (builder.info.download_size or 0)
                require_space(size, str(name), root)
            builder.download_and_prepare()
            parts, version = builder.as_dataset(), ""
    except DatasetError:
        raise
    except Exception as error:  # The library raises whatever its many back ends do.
        raise _refused(name, root, obstacle, error) from None
    # The library calls a lone dataset train; its rows may say otherwise.
    return {None if is_saved else str(split): part for split, part in parts.items()}, version


def _held(name: HubName, files: Iterable[object], part: Any) -> Any:
    """Return the rows of Parquet files without the bytes of their pictures; as they are where they have none."""
    import datasets

    inner = {column: getattr(feature, "feature", feature) for column, feature in (part.features or {}).items()}
    pictures = frozenset(column for column, feature in inner.items() if isinstance(feature, datasets.Image))
    # Of the hub, behind the revision as it is written in full; of a copy, below its folder.
    inside = {
        str(file).partition("@")[2].partition("/")[2]
        if name.copy is None
        else Path(str(file)).relative_to(name.copy.absolute()).as_posix(): str(file)
        for file in files
    }
    return HeldRows(f"{name.path}@{name.revision}", inside, part.features, pictures) if pictures else part


def _refused(name: HubName, root: Path, obstacle: str, error: Exception | None = None) -> DatasetMissing:
    """Return the error for a dataset that the library could not open, by what the library said."""
    reason = obstacle or f"{type(error).__name__}: {error}".partition("\n")[0]
    page = f"https://huggingface.co/datasets/{name.path}"
    instead = card_instead_of(name.path)
    revision = ["--revision", name.revision] if name.revision else []
    fetch = ["hf", "download", "--repo-type", "dataset", name.path, *revision, "--local-dir", str(root / name.path)]
    advice: Mapping[str, tuple[str, str | Advice]] = {
        "gated dataset": (
            "its authors give it to those who accept their terms",
            again(f"accept the terms at {page}, log in by `hf auth login`, then give the same command again"),
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
            advise(fetch, note="where there is a network; or give rows in a .jsonl or .parquet file by --data")
            if obstacle
            else "look at the name and its configuration: hf:NAME:CONFIGURATION",
        ),
    }
    why, following = next(entry for mark, entry in advice.items() if mark in reason)
    return DatasetMissing("The dataset cannot be had from the hub.", where=str(name), why=why, next_command=following)


def library_source(
    splits: Parts, card: DataCard, *, name: str, pictures: Path, joined: Parts | None = None
) -> RowSource:
    """Return the rows of opened datasets of the library.

    Args:
        splits: opened datasets.
        card: what the user said beside the columns; classes of a label column are added to it.
        name: of the whole, for messages.
        pictures: folder that names of pictures are relative to; passed over where it is none.
        joined: datasets of the card's `join`.
    """
    import datasets

    # Training comes first, as for files.
    ordered = sorted(splits.items(), key=lambda item: (item[0] or "train") != "train")
    ordered = [(split, _prepared(part, datasets.Image)) for split, part in ordered]
    others = {split: _prepared(part, datasets.Image) for split, part in (joined or {}).items()}
    column = card.columns.get("label", "label")
    label = (ordered[0][1].features or {}).get(column) if isinstance(column, str) else None
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else ()

    def rows() -> Iterator[Row]:
        for split, part in ordered:
            records: Iterable[tuple[int, Any]] = islice(enumerate(part, start=1), card.num_rows)
            if card.join:
                records = _joined(records, others[split], card, card.join)
            yield from _rows(name, split, records, str(column) if names else "", names)

    return RowSource(
        rows=rows,
        pictures=pictures if pictures.is_dir() else Path(),
        version=repr([(split, getattr(part, "_fingerprint", "")) for split, part in ordered]),
        card=replace(card, labels=card.labels or names, label_is="text") if names else card,
    )


def _prepared(part: Any, image_feature: type) -> Any:
    """Leave pictures undecoded."""
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
    records: Iterable[tuple[int, Any]], others: Iterable[Mapping[str, Any]], card: DataCard, join: Join
) -> Iterator[tuple[int, Any]]:
    """Yield rows with the joined columns, in the order of the joined rows, which are read once."""
    named = chain.from_iterable([value] if isinstance(value, str) else value for value in card.columns.values())
    # Rows are held until their join is read, so only columns that mean something are.
    needed = {*named, *COLUMNS, *card.only, join.key}
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
            yield number, Malformed(f"column {join.key!r} is {key!r}, which no joined row has as its {join.on!r}")


def _rows(
    name: str, split: str | None, records: Iterable[tuple[int, Any]], label: str, names: Sequence[str]
) -> Iterator[Row]:
    file, number = f"{name} {split or ''}".strip(), 0
    try:
        for number, record in records:
            if isinstance(record, Malformed):
                yield Row(record, name=str(number), split=split, file=file, line=number)
                continue
            fields = {column: _bytes_of(value) for column, value in record.items()}
            if isinstance(place := fields.get(label), int):
                fields[label] = None if place == UNKNOWN_CLASS else names[place]
            yield Row(fields, name=str(number), split=split, file=file, line=number)
    except DatasetError:
        raise
    except Exception as error:  # As when it is opened: the network breaks off, a column is not what its page says.
        raise DatasetError(
            "The rows of the dataset cannot be read on.",
            where=f"{file}, after row {number}",
            why=f"{type(error).__name__}: {error}".partition("\n")[0],
            next_command=again(
                "look whether the network is there and whether the set has changed, then give the same command again"
            ),
        ) from None


def _bytes_of(value: Any) -> Any:
    """Return the bytes of a picture that the library left in a file of its own cache; anything else as it is."""
    if isinstance(value, list):
        return [_bytes_of(item) for item in value]
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and not value["bytes"] and value["path"]:
        path = Path(value["path"])
        return path.read_bytes() if path.is_absolute() and path.is_file() else value
    return value
