"""What datasets are called, where they and their indices are, and that no file name leaves its dataset's folder.

A cache may come from anyone: the paths that its record names are shown, and never opened unless the user typed them.
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

DATA_VARIABLE = "ADVL_DATA"
INDEX_VARIABLE = "ADVL_INDEX"

DATASET_HELP = (
    "Name of a dataset (`advl datasets list`), or your own data: a .jsonl, .csv, .parquet or .toml file, a folder "
    "of files, or hf:NAME."
)
KNOWN_NAMES = advise(["advl", "datasets", "list"], note="known names; your own data: docs/adding-a-dataset.md")
"""Advice where a dataset is not known by its name."""

HUB_PREFIX = "hf:"
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
CARD_SUFFIX = ".toml"
SPLIT_STEMS = ("train", "val", "validation", "dev", "test")
"""Names of files that say which split they hold."""


class DatasetMissing(DatasetError):
    """A file or folder of a dataset is not there."""


def resolve_data_root(data_root: Path | None) -> Path:
    """Return the folder of the datasets: the one given, else `$ADVL_DATA`, else `datasets/`."""
    if data_root is not None:
        return data_root
    return Path(os.environ.get(DATA_VARIABLE) or "datasets")


def index_folder(data_root: Path, dataset_folder: Path) -> Path:
    """Return the folder of a dataset's indices: `<data root>/.index/<name>`, or below `$ADVL_INDEX` when that is set.

    Indices hold nothing that cannot be rebuilt. Indices of data in a read-only folder are in the user's cache.
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
    """Say on stderr, once in a process, where the index of data in a read-only folder is."""
    where = f"the index is in {folder} (${INDEX_VARIABLE} names another folder)"
    print(f"note: {data} cannot be written, so {where}", file=sys.stderr)


def is_safe_name(name: str) -> bool:
    """Tell whether a relative file name stays inside its folder: not absolute, no `..`, no drive, no NUL."""
    parts = name.split("/")
    return bool(parts[0]) and ".." not in parts and ":" not in parts[0] and "\0" not in name and "\\" not in name


def require_there(path: Path, *, dataset: str) -> Path:
    """Return the path of a file or folder of a published dataset if it is there.

    Raises:
        DatasetMissing: it is not; the next step is named.
    """
    if not path.exists():
        why = "there is no such file or folder; the data root is $ADVL_DATA, or datasets/"
        advice = advise(["advl", "datasets", "card", dataset], note="what to download and where to put it")
        raise DatasetMissing(f"The dataset {dataset} is not there.", where=str(path), why=why, next_command=advice)
    return path


def is_location(name: str) -> bool:
    """Tell whether a dataset is named by where it is: `hf:NAME`, a file, or a folder."""
    return name.startswith(HUB_PREFIX) or "/" in name or bool(Path(name).suffix) or Path(name).is_dir()


def dataset_label(name: str) -> str:
    """Return the name of a dataset's folder among caches.

    A known name stands for itself. A file or folder has its own name without the ending; a file that is called after
    a split has that of its folder. Whether two labels are equal says nothing: content decides what data are.
    """
    if not is_location(name):
        return name
    if name.startswith(HUB_PREFIX):
        return re.sub(r"[^\w.-]+", "-", name)
    # `resolve` would name what a link points at, not the link that the user gave.
    path = Path(os.path.normpath(Path(name).absolute()))
    if path.stem in SPLIT_STEMS:
        path = path.parent
    label = path.stem if path.suffix in (*TABLE_SUFFIXES, CARD_SUFFIX) else path.name
    return "data" if label in ("", ".", "..") else label


def name_in_records(identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return what users call the dataset that a record is of: an identity calls own data by their content.

    Args:
        identity: its `dataset` has a `name`.
        provenance: its `config`, where there is one, says what the user gave.
    """
    made_of = provenance.get("config", {}).get("dataset")
    return dataset_label(str(made_of)) if made_of else str(identity["dataset"]["name"])


def set_name(text: str, default: str) -> tuple[str, str]:
    """Return dataset and split of a test set that is given as SPLIT, a split of the default, or as DATASET/SPLIT."""
    name, _, split = text.rpartition("/")
    return name or default, split


def refused_paths(cache: Location, paths: Mapping[str, Any], command: Sequence[str]) -> ConfigError:
    """Return the refusal to open paths that a cache's record names and nobody typed.

    Args:
        cache: where it is.
        paths: option -> the path.
        command: what gives them.
    """
    return ConfigError(
        "The cache's record names paths, and only paths that you give are opened.",
        where=f"{cache}/records/provenance.json",
        why="; ".join(f"{name}: {path}" for name, path in paths.items()),
        next_command=advise(command),
    )


def recorded_paths(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a record that name a path of this machine, by the option that gives it."""
    named = ("weights", "data_root", "ids", "source", "ground_truth_regions")
    options = {name: recorded[name] for name in named if recorded.get(name)}
    dataset, teacher = str(recorded.get("dataset", "")), str(recorded.get("teacher", ""))
    # What the hub calls ORG/NAME, the readers of its files take for a folder where there is one.
    if is_location(dataset) and (not dataset.startswith(HUB_PREFIX) or _is_there(dataset.removeprefix(HUB_PREFIX))):
        options["dataset"] = dataset
    inner = teacher.removeprefix("random:").removeprefix(HUB_PREFIX)
    if inner != teacher and _is_there(inner):
        options.setdefault("weights", inner)
    return options


def without_folders(value: Any) -> Any:
    """Return a JSON value whose absolute paths are their last parts: folders of a machine are not published."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    absolute = re.fullmatch(rf"((?:random:)?{HUB_PREFIX})?(/.*)", str(value), re.DOTALL)
    if absolute is None or not isinstance(value, str | Path):
        return value
    path = Path(absolute[2])
    # A file that is called after its split is known by its folder.
    kept = path.parts[-2:] if path.stem in SPLIT_STEMS else path.parts[-1:]
    return (absolute[1] or "") + "/".join(kept)


def _is_there(name: str) -> bool:
    with suppress(OSError):
        return Path(name).exists()
    return False
