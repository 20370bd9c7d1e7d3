"""HDF5 of bottom-up attention: `image_features` and `image_bb`, fixed (N, R, F) or ragged with `pos_boxes` (N, 2).

`<split>36_imgid2idx.json` maps pictures to rows; users make it from the published pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from advl_pipeline.base.errors import Advice, DatasetError, advise
from advl_pipeline.extraction.imports.regions import MALFORMED_REGIONS, Arrays, Entry, corners_of, read_numbers


def hdf5_entries(path: Path, stack: ExitStack) -> Iterator[tuple[str, Entry]]:
    """Yield the rows of an HDF5 file; the only `*imgid2idx.json` in its folder maps picture numbers to rows."""
    import h5py

    # BUTD names the index after the split and the number of boxes.
    tables = sorted(path.parent.glob("*imgid2idx.json"))
    matching = [file for file in tables if file.name.startswith(path.stem)] or tables
    if len(matching) != 1:
        raise DatasetError(
            "The folder of an HDF5 file of regions must hold exactly one index, named *imgid2idx.json.",
            where=str(path.parent),
            why=f"found {', '.join(file.name for file in matching) or 'no *imgid2idx.json'}",
            next_command=_make_json(sorted(path.parent.glob("*imgid2idx.pkl"))),
        )
    file: Any = stack.enter_context(h5py.File(path, "r"))
    for array in ("image_features", "image_bb"):
        if array not in file:
            raise DatasetError(MALFORMED_REGIONS, where=str(path), why=f"no array {array!r}")
    rows = read_numbers(matching[0], what="The index of region features cannot be used.")
    for picture, row in rows.items():
        yield picture, Entry(f"{path}: {picture}", partial(_read_row, file, row))


def _read_row(file: Any, row: int) -> Arrays:
    part: Any = slice(*map(int, file["pos_boxes"][row])) if "pos_boxes" in file else row
    return {
        "features": np.asarray(file["image_features"][part]),
        "boxes": corners_of(np.asarray(file["image_bb"][part])),
    }


def _make_json(pickles: Sequence[Path]) -> Advice | str:
    """Return the command that converts a single pickled index to JSON, else "". Loading a pickle executes code."""
    if len(pickles) != 1:
        return ""
    read, written = str(pickles[0]), str(pickles[0].with_suffix(".json"))
    code = f"import json, pickle; json.dump(pickle.load(open({read!r}, 'rb')), open({written!r}, 'w'))"
    return advise(["python", "-c", code], note="where you trust the file")
