"""HDF5 of bottom-up attention: `image_features` and `image_bb`, fixed (N, R, F) or ragged with `pos_boxes` (N, 2).

Which row belongs to which picture is told by `<split>36_imgid2idx.pkl` (read without unpickling) or by a JSON file of
the same content. Where `spatial_features` is there, boxes over their shares give the size of the original picture.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.errors import DatasetError
from advl_pipeline.extraction.regions.index_pickle import read_number_dictionary
from advl_pipeline.extraction.regions.interface import RegionFeatures, make_regions

SIZE_TOLERANCE = 1.5
"""Pixels by which a size that is computed back from float32 shares may be off."""


class Hdf5Regions:
    """Regions of an HDF5 file.

    Args:
        index: file with picture number -> row, `.pkl` or `.json`.
        stack: closes the file.

    Raises:
        DatasetError: a file is missing or malformed.
    """

    def __init__(self, path: Path, *, index: Path, stack: ExitStack) -> None:
        self._path = path
        self._rows = read_number_dictionary(index) if index.suffix == ".pkl" else _read_json(index)
        try:
            self._file: Any = stack.enter_context(h5py.File(path, "r"))
        except OSError as error:
            raise DatasetError("A file of region features cannot be read.", where=str(path), why=str(error)) from None
        for name in ("image_features", "image_bb"):
            if name not in self._file:
                raise DatasetError("Region features are malformed.", where=str(path), why=f"no array {name!r}")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isdecimal() and int(name) in self._rows

    def read(self, name: str, *, width: int, height: int) -> RegionFeatures:
        if name not in self:
            raise DatasetError("A picture has no region features.", where=str(self._path), why=f"no row for {name}")
        file, row = self._file, self._rows[int(name)]
        try:
            if "pos_boxes" in file:
                start, end = (int(value) for value in file["pos_boxes"][row])
                part: Any = slice(start, end)
            else:
                part = row
            boxes_R4 = np.asarray(file["image_bb"][part], dtype=np.float32)
            shares = np.asarray(file["spatial_features"][part]) if "spatial_features" in file else None
            if shares is not None:
                _require_size(boxes_R4, shares, (width, height))
            return make_regions(
                features_RF=np.asarray(file["image_features"][part], dtype=np.float32),
                boxes_R4=boxes_R4,
                size=(width, height),
            )
        except (Malformed, OSError, IndexError, ValueError) as error:
            raise DatasetError(
                "Region features are malformed.", where=str(self._path), why=f"picture {name}, row {row}: {error}"
            ) from None


def _read_json(path: Path) -> dict[int, int]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {int(picture): int(row) for picture, row in value.items()}
    except OSError as error:
        why = error.strerror or "it cannot be read"
    except (ValueError, TypeError, AttributeError) as error:
        why = str(error)
    raise DatasetError("The index of region features cannot be used.", where=str(path), why=why)


def _require_size(boxes_R4: Any, shares: Any, size: tuple[int, int]) -> None:
    """Refuse boxes whose pixels over their shares give another picture size."""
    if shares.shape[-1] < 4 or len(shares) != len(boxes_R4):
        raise Malformed(f"spatial_features of shape {shares.shape} do not fit")
    for axis, known in enumerate(size):
        row = int(np.argmax(shares[:, 2 + axis]))
        if shares[row, 2 + axis] > 0:
            side = float(boxes_R4[row, 2 + axis] / shares[row, 2 + axis])
            if not abs(side - known) <= SIZE_TOLERANCE:
                raise Malformed(f"its features are for a picture with a side of {side:.0f}, the picture has {known}")
