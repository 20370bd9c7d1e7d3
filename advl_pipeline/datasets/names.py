"""What a dataset is called: a name that ADVL knows, or words that say where data of one's own lies."""

from __future__ import annotations

import re
from pathlib import Path

DATASET_HELP = (
    "Name of a dataset (`advl datasets list`), or data of your own: a .jsonl, .csv, .parquet or .toml file, a folder "
    "of files, or hf:NAME."
)
HUB_PREFIX = "hf:"
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
CARD_SUFFIX = ".toml"
SPLIT_STEMS = ("train", "val", "validation", "dev", "test")
"""Names of files that say which split they hold."""


def is_own_data(name: str) -> bool:
    """Tell whether a dataset is named by where it lies: `hf:NAME`, a file, or a folder."""
    return name.startswith(HUB_PREFIX) or "/" in name or bool(Path(name).suffix) or Path(name).is_dir()


def dataset_label(name: str) -> str:
    """Return the name of a dataset's folder among caches.

    A known name stands for itself. A file or folder has its own name without the ending; a file that is called after
    a split has that of its folder. Whether two labels are equal says nothing: content decides what data are.
    """
    if not is_own_data(name):
        return name
    if name.startswith(HUB_PREFIX):
        return re.sub(r"[^\w.-]+", "-", name)
    path = Path(name)
    if path.stem in SPLIT_STEMS:
        path = path.absolute().parent
    return (path.stem if path.suffix in (*TABLE_SUFFIXES, CARD_SUFFIX) else path.absolute().name) or "data"


def set_name(text: str, default: str) -> tuple[str, str]:
    """Return dataset and split of a test set that is given as SPLIT, a split of the default, or as DATASET/SPLIT."""
    name, _, split = text.rpartition("/")
    return name or default, split
