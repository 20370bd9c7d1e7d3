"""An image tower whose features are looked up in files instead of computed.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.errors import DatasetError
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundFeatures:
    """What files hold of one picture, float32.

    `values` are token rows (M, D), or the feature of the whole picture (D,). Of rows that are regions, `regions` says
    where they are (`cache.schema.REGION_COLUMNS`), and `whole_D` is the picture's own feature where files have it.
    """

    values: Floats
    regions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    whole_D: Floats | None = None


class ImportedTower:
    """An `ImageTower` over features that exist. All are read once before, for their digest.

    Args:
        read: finds the features of a picture; several threads may call it at once.
        units: pictures that there must be features of.
        where: the files, for errors.

    Raises:
        DatasetError: as `read` says, or pictures whose features are of several kinds.
    """

    def __init__(self, read: Callable[[ImageUnit], FoundFeatures], units: Sequence[ImageUnit], *, where: str) -> None:
        self._read = read
        self._rows: dict[str, int] = {}
        self.fits_float16 = True
        state = hashlib.sha256()
        kinds: dict[tuple[int, int, bool], ImageUnit] = {}
        for unit in tqdm(units, desc="reading features", unit="picture"):
            found = read(unit)
            self._rows[unit.unit_id] = len(found.values) if found.values.ndim == 2 else 0
            kinds.setdefault((found.values.ndim, found.values.shape[-1], found.whole_D is not None), unit)
            state.update(unit.unit_id.encode())
            for array in (found.values, *found.regions.values(), found.whole_D):
                if array is not None:
                    state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            if self.fits_float16:
                with np.errstate(over="ignore"):
                    self.fits_float16 = bool((found.values.astype(np.float16) == found.values).all())
        if len(kinds) != 1:
            (first, one), (second, other), *_ = kinds.items()
            raise DatasetError(
                "Features differ in width or in kind.",
                where=where,
                why=f"{_said(*first)} for {one.path.name}, {_said(*second)} for {other.path.name}",
            )
        (((self._ndim, self.global_dim, self._has_whole), _),) = kinds.items()
        self.token_dim = self.global_dim
        self.has_regions = bool(found.regions)
        self.are_boxes = self._ndim == 2 and all(self._rows[unit.unit_id] == len(unit.boxes_R4) for unit in units)
        self._digest = state.hexdigest()

    @property
    def has_tokens(self) -> bool:
        return self._ndim == 2

    @property
    def tokens(self) -> Literal["boxes", "grid", "none"]:
        """What token features there are: one row per box, a grid, or none."""
        if not self.has_tokens:
            return "none"
        return "boxes" if self.are_boxes or self.has_regions else "grid"

    def describe(self) -> dict[str, Any]:
        is_mean = self.has_tokens and not self._has_whole
        return {
            "kind": "imported regions" if self.has_regions else "imported features",
            "content_digest": self._digest,
            "global": "mean of the rows" if is_mean else "as given",
        }

    def num_tokens(self, unit: ImageUnit) -> int:
        return self._rows[unit.unit_id]

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        found = self._read(unit)
        rows_MD = torch.from_numpy(np.atleast_2d(found.values))
        whole_D = rows_MD.mean(dim=0) if found.whole_D is None else torch.from_numpy(found.whole_D)
        size = torch.tensor([unit.width, unit.height], dtype=torch.float32)
        return PreparedUnit(
            inputs={"rows": rows_MD, "whole": whole_D, "size": size},
            num_tokens=self._rows[unit.unit_id],
            regions=found.regions,
        )

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        size_N2 = torch.stack([unit.inputs["size"] for unit in units])
        return EncodedBatch(
            global_ND=torch.stack([unit.inputs["whole"] for unit in units]),
            token_values=[unit.inputs["rows"][: unit.num_tokens] for unit in units],
            stats={"width": size_N2[:, 0], "height": size_N2[:, 1]} if self.has_regions else {},
        )


def _said(ndim: int, width: int, has_whole: bool) -> str:
    beside = " and the whole picture's" if has_whole else ""
    return f"{'rows' if ndim == 2 else 'one vector'} of {width}{beside}"
