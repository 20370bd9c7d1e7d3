"""Names of datasets, their folders and index folders, and the check that no file name leaves its folder.

A cache may come from anyone: paths in its record are shown, but only opened if the user typed them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from advl_pipeline.base.errors import ConfigError, DatasetError, advise
from advl_pipeline.base.folders import nearest_existing
from advl_pipeline.base.locations import Location, user_cache
from advl_pipeline.base.repositories import HUB_PREFIX

DATA_VARIABLE = "ADVL_DATA"
INDEX_VARIABLE = "ADVL_INDEX"

DATASET_HELP = (
    "Name of a dataset (`advl datasets list`), or your own data: a .jsonl, .csv, .parquet or .toml file, a folder "
    "of files, or hf:NAME."
)
KNOWN_NAMES = advise(["advl", "datasets", "list"], note="known names; your own data: docs/adding-a-dataset.md")
"""Advice for an unknown dataset name."""

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
CARD_SUFFIX = ".toml"
SPLIT_STEMS = ("train", "val", "validation", "dev", "test")
"""File names that name the split in the file."""


class DatasetMissing(DatasetError):
    """Error of a missing file or folder of a dataset."""


def resolve_data_root(data_root: Path | None) -> Path:
    """Return the datasets folder: the argument, else `$ADVL_DATA`, else `datasets/`."""
    if data_root is not None:
        return data_root
    return Path(os.environ.get(DATA_VARIABLE) or "datasets")


def index_folder(data_root: Path, dataset_folder: Path) -> Path:
    """Return the folder of a dataset's indices: `<data root>/.index/<name>`, or below `$ADVL_INDEX` if set.

    Indices can always be rebuilt. Indices of data in a read-only folder are in the user's cache folder.
    """
    base = os.environ.get(INDEX_VARIABLE)
    tag = hashlib.blake2b(os.fsencode(dataset_folder.resolve()), digest_size=4).hexdigest()
    name = f"{dataset_folder.name}-{tag}"
    usual = (Path(base) if base else data_root / ".index") / name
    above = nearest_existing(usual)
    if base or above == usual or os.access(above, os.W_OK | os.X_OK):
        return usual
    folder = user_cache() / "index" / name
    _say_elsewhere(above, folder)
    return folder


@functools.cache
def _say_elsewhere(data: Path, folder: Path) -> None:
    """Print on stderr, once per process, where the index of data in a read-only folder is."""
    where = f"the index is in {folder} (${INDEX_VARIABLE} names another folder)"
    print(f"note: {data} cannot be written, so {where}", file=sys.stderr)


def is_safe_name(name: str) -> bool:
    """Return whether a relative file name stays inside its folder: not absolute, no `..`, no drive, no NUL."""
    parts = name.split("/")
    return bool(parts[0]) and ".." not in parts and ":" not in parts[0] and "\0" not in name and "\\" not in name


def require_there(path: Path, *, dataset: str) -> Path:
    """Return the path of a file or folder of a published dataset if it exists.

    Raises:
        DatasetMissing: it does not exist; the message names the next step.
    """
    if not path.exists():
        raise DatasetMissing(
            f"The dataset {dataset} is not there.",
            where=str(path),
            why="there is no such file or folder; the data root is $ADVL_DATA, or datasets/",
            next_command=advise(["advl", "datasets", "card", dataset], note="what to download and where to put it"),
        )
    return path


def is_location(name: str) -> bool:
    """Return whether a dataset name is a location: `hf:NAME`, a file, or a folder."""
    return name.startswith(HUB_PREFIX) or "/" in name or bool(Path(name).suffix) or Path(name).is_dir()


def dataset_label(name: str) -> str:
    """Return the name of a dataset's folder among caches.

    A known name is its own label. The label of a file or folder is its name without the extension; a file that is
    named after a split gets the name of its folder. Equal labels do not mean equal data: content identifies data.
    """
    if not is_location(name):
        return name
    if name.startswith(HUB_PREFIX):
        return re.sub(r"[^\w.-]+", "-", name)
    # `resolve` would name the target of a link, not the link that the user gave.
    path = Path(os.path.normpath(Path(name).absolute()))
    if path.stem in SPLIT_STEMS:
        path = path.parent
    label = path.stem if path.suffix in (*TABLE_SUFFIXES, CARD_SUFFIX) else path.name
    return "data" if label in ("", ".", "..") else label


def name_in_records(identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the user's name for the dataset of a record; an identity names your own data by its content.

    Args:
        identity: its `dataset` has a `name`.
        provenance: its `config`, if any, contains the name that the user gave.
    """
    made_of = provenance.get("config", {}).get("dataset")
    return dataset_label(str(made_of)) if made_of else str(identity["dataset"]["name"])


def set_name(text: str, default: str) -> tuple[str, str]:
    """Return dataset and split of a test set given as SPLIT (a split of the default) or as DATASET/SPLIT."""
    name, _, split = text.rpartition("/")
    return name or default, split


def refused_paths(cache: Location, paths: Mapping[str, Any], command: Sequence[str]) -> ConfigError:
    """Return the error that refuses paths from a cache's record that the user did not type.

    Args:
        cache: location of the cache.
        paths: option -> path.
        command: command line that passes the paths.
    """
    return ConfigError(
        "The cache names paths that are opened only if you give them yourself.",
        where=f"{cache}/records/provenance.json",
        why="; ".join(f"{name}: {path}" for name, path in paths.items()),
        next_command=advise(command),
    )


def recorded_paths(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record that are paths on this machine, by option."""
    named = ("weights", "data_root", "ids", "source", "ground_truth_regions")
    options = {name: recorded[name] for name in named if recorded.get(name)}
    dataset, teacher = str(recorded.get("dataset", "")), str(recorded.get("teacher", ""))
    # The readers of hub files take ORG/NAME for a local folder if one exists.
    if is_location(dataset) and (not dataset.startswith(HUB_PREFIX) or _is_there(dataset.removeprefix(HUB_PREFIX))):
        options["dataset"] = dataset
    inner = teacher.removeprefix("random:").removeprefix(HUB_PREFIX)
    if inner != teacher and _is_there(inner):
        options.setdefault("weights", inner)
    return options


def without_folders(value: Any) -> Any:
    """Return a JSON value with absolute paths reduced to their last part, so that no local folder is published."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    absolute = re.fullmatch(rf"((?:random:)?{HUB_PREFIX})?(/.*)", str(value), re.DOTALL)
    if absolute is None or not isinstance(value, str | Path):
        return value
    path = Path(absolute[2])
    # A file that is named after its split gets the name of its folder.
    kept = path.parts[-2:] if path.stem in SPLIT_STEMS else path.parts[-1:]
    return (absolute[1] or "") + "/".join(kept)


def _is_there(name: str) -> bool:
    with suppress(OSError):
        return Path(name).exists()
    return False
