"""Where datasets lie, where their indices lie, and the rule that a file name never leaves its dataset's folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from advl_pipeline.errors import DatasetError

DATA_VARIABLE = "ADVL_DATA"
INDEX_VARIABLE = "ADVL_INDEX"


class DatasetMissing(DatasetError):
    """A file or folder of a dataset is not there."""


def resolve_data_root(data_root: Path | None) -> Path:
    """Return the folder of the datasets: the one given, else `$ADVL_DATA`, else `datasets/`."""
    if data_root is not None:
        return data_root
    return Path(os.environ.get(DATA_VARIABLE) or "datasets")


def index_folder(data_root: Path, dataset_folder: Path) -> Path:
    """Return the folder of a dataset's indices: `<data root>/.index/<name>`, or below `$ADVL_INDEX` when that is set.

    Indices hold nothing that cannot be rebuilt; the variable serves read-only data folders.
    """
    base = os.environ.get(INDEX_VARIABLE)
    tag = hashlib.blake2b(os.fsencode(dataset_folder.resolve()), digest_size=4).hexdigest()
    return (Path(base) if base else data_root / ".index") / f"{dataset_folder.name}-{tag}"


def is_safe_name(name: str) -> bool:
    """Tell whether a relative file name stays inside its folder: not absolute, no `..`, no drive, no NUL."""
    parts = name.split("/")
    return bool(parts[0]) and ".." not in parts and ":" not in parts[0] and "\0" not in name and "\\" not in name


def require_file(path: Path, *, dataset: str) -> Path:
    """Return `path` if it is a file.

    Raises:
        DatasetMissing: it is not there; the next step is named.
    """
    if not path.is_file():
        raise DatasetMissing(
            f"A file of the dataset {dataset} is missing.",
            where=str(path),
            next_command=f"advl datasets card {dataset}   (what to download and where to put it)",
        )
    return path


def index_unwritable(folder: Path, error: OSError) -> DatasetError:
    """Return the error for an index folder that cannot be written."""
    return DatasetError(
        "The index of a dataset cannot be written.",
        where=str(folder),
        why=error.strerror or str(error),
        next_command=f"set {INDEX_VARIABLE} to a folder that can be written, then run the same command",
    )
