"""Datasets of the hub, or of a folder, through the `datasets` library: `hf:NAME`, or `hf:NAME:CONFIGURATION`.

Pictures stay as they are stored: their bytes are read, never decoded here. Code of a repository is never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.roots import DatasetMissing
from advl_pipeline.datasets.rows import DataCard, Row, RowSource
from advl_pipeline.errors import DatasetError
from advl_pipeline.hub_access import hub_obstacle
from advl_pipeline.packages import install_extra

UNKNOWN_CLASS = -1
"""What the library writes for a label that a split does not tell."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""How the library ends the name of a file that is one of several of a split."""

_SAVED = "state.json"
"""What `save_to_disk` leaves beside the rows of a lone dataset."""

_SIGNS = (_SAVED, "dataset_dict.json", "dataset_info.json", "*/*.parquet", "*/metadata.jsonl")
"""Files that the library writes, or looks for, in a folder of its layout."""


def library_sign(folder: Path, tables: Sequence[Path]) -> Path | None:
    """Return a file which says that a folder is in the layout of the library; None where no file does.

    Args:
        folder: one that exists.
        tables: files in it that are read without the library; unless they are shards, it is not in that layout.
    """
    if tables:
        return next((path for path in tables if _SHARD.search(path.stem)), None)
    for sign in _SIGNS:
        if found := min(folder.glob(sign), default=None):
            return found
    page = folder / "README.md"
    if page.is_file():
        text = page.read_text(encoding="utf-8", errors="replace")
        if re.match(r"---\n(?:(?!---$).*\n)*?(?:dataset_info|configs):", text, re.MULTILINE):
            return page
    return None


def hub_source(name: str, card: DataCard) -> RowSource:
    """Open a dataset by its name on the hub, a cached copy of it without the network.

    Args:
        name: ORG/NAME, ORG/NAME:CONFIGURATION, or a folder that the library can load.
        card: what the user said beside the columns.

    Raises:
        DatasetError: the library is absent, or the dataset cannot be had.
    """
    try:
        import datasets
        import huggingface_hub.constants

        load_dataset = datasets.load_dataset
    except (ImportError, AttributeError):
        # A folder of that name beside the user, where downloads lie by default, passes for an empty package.
        raise DatasetMissing(
            "Datasets of the hub need the library `datasets`.",
            where=f"hf:{name}",
            why="it is not installed",
            next_command=install_extra("hub"),
        ) from None
    path, _, configuration = name.partition(":")
    obstacle = "" if Path(path).exists() else hub_obstacle()
    if obstacle:
        # A copy in the library's cache is taken at once, instead of after half a minute of retries.
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    is_saved = (Path(path) / _SAVED).is_file()
    try:
        # `load_from_disk` would open whatever file the folder's record names, beside the folder too.
        found = (
            load_dataset("arrow", data_dir=path, data_files="data-*.arrow")
            if is_saved
            else load_dataset(path, configuration or None)
        )
    except Exception as error:  # The library raises whatever its many back ends do.
        raise DatasetMissing(
            "The dataset cannot be had from the hub.",
            where=f"hf:{name}",
            why=obstacle or f"{type(error).__name__}: {error}".partition("\n")[0],
            next_command="download it where there is a network, write it as a .jsonl or .parquet file, and give "
            "that by --data"
            if obstacle
            else "look at the name and its configuration: hf:NAME:CONFIGURATION",
        ) from None
    if not isinstance(found, Mapping):
        raise DatasetError("The dataset has no splits.", where=f"hf:{name}")
    # The library calls a lone dataset train; its rows may say otherwise.
    splits = {None if is_saved else str(split): part for split, part in found.items()}
    return library_source(splits, card, name=f"hf:{name}", pictures=Path(path))


def library_source(splits: Mapping[str | None, Any], card: DataCard, *, name: str, pictures: Path) -> RowSource:
    """Return the rows of opened datasets of the library.

    Args:
        splits: split -> `datasets.Dataset`; None for one whose rows say their split.
        card: what the user said beside the columns; classes of a label column are added to it.
        name: of the whole, for messages.
        pictures: folder that names of pictures are relative to; passed over where it is none.
    """
    import datasets

    # Training comes first, as for files.
    ordered = sorted(splits.items(), key=lambda item: (item[0] or "train") != "train")
    ordered = [(split, _prepared(part, datasets.Image)) for split, part in ordered]
    label = ordered[0][1].features.get(card.columns.get("label", "label"))
    names = tuple(label.names) if isinstance(label, datasets.ClassLabel) else ()
    positions: Sequence[int] = range(len(names))
    if names:
        # A card may list the same classes in another order; the library's numbers are positions in its own.
        if set(names) <= set(card.labels):
            positions = [card.labels.index(name) for name in names]
        card = replace(card, labels=card.labels or names, label_is="index")
    return RowSource(
        rows=lambda: _rows(name, ordered, card.columns.get("label", "label") if names else "", positions),
        pictures=pictures if pictures.is_dir() else Path(),
        version=repr([(split, part._fingerprint) for split, part in ordered]),
        card=card,
    )


def _prepared(part: Any, image_feature: type) -> Any:
    """Leave pictures undecoded."""
    for column, feature in part.features.items():
        if isinstance(feature, image_feature):
            part = part.cast_column(column, image_feature(decode=False))
    return part


def _rows(name: str, splits: list[tuple[str | None, Any]], label: str, positions: Sequence[int]) -> Iterator[Row]:
    for split, part in splits:
        for number, record in enumerate(part, start=1):
            told = {column: _bytes_of(value) for column, value in record.items()}
            if isinstance(place := told.get(label), int):
                told[label] = None if place == UNKNOWN_CLASS else positions[place]
            yield Row(told, name=str(number), split=split, file=f"{name} {split or ''}".strip(), line=number)


def _bytes_of(value: Any) -> Any:
    """Return the bytes of a picture that the library left in a file of its own cache; anything else as it is."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"} and not value["bytes"] and value["path"]:
        path = Path(value["path"])
        return path.read_bytes() if path.is_absolute() and path.is_file() else value
    return value
