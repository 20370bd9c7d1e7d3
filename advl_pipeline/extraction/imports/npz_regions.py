"""A folder of `.npz` files, one per picture (VisualBERT, ViLBERT and similar)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from advl_pipeline.base.array_archives import DamagedArchive, read_array_archive
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.extraction.imports.regions import Arrays, Entry


def npz_entries(folder: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the files of a folder by relative path without suffix."""
    for file in folder.rglob("*.npz"):
        yield file.relative_to(folder).with_suffix("").as_posix(), Entry(str(file), partial(read_archive, file))


def read_archive(file: Path | IO[bytes]) -> Arrays:
    """Read an archive of named arrays; raises `Malformed`."""
    try:
        return read_array_archive(file, wanted=lambda name: name != "soft_labels")
    except DamagedArchive as error:
        raise Malformed(str(error)) from None
