"""UNITER's LMDB of region features: key "<name>.npz", value msgpack of arrays, or compressed `.npz` bytes.

The folder's name says how many regions a picture has: `feat_th0.2_max100_min10[_compressed]` keeps the regions above
a confidence, clamped; `feat_numbb36` keeps 36; `all` keeps all. Rows are sorted by falling confidence, so the first
n are meant. The sidecar `nbb_<...>.json` beside the folder gives n; without it n is computed.
"""

from __future__ import annotations

import io
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgpack
import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.errors import DatasetError
from advl_pipeline.extraction.regions.interface import RegionFeatures
from advl_pipeline.extraction.regions.per_picture import regions_of, regions_of_arrays

_THRESHOLD = re.compile(r"feat_(?P<rule>th(?P<threshold>[0-9.]+)_max(?P<most>\d+)_min(?P<least>\d+))(_compressed)?")
_FIXED = re.compile(r"feat_numbb(?P<count>\d+)(_compressed)?")
_ZIP_MAGIC = b"PK\x03\x04"


class _ConfidenceRule(NamedTuple):
    """How many regions are meant: those above the threshold, but at least `least` and at most `most`."""

    threshold: float
    least: int
    most: int


class UniterRegions:
    """Regions of one LMDB folder.

    Args:
        folder: such as `img_db/coco_val2014/feat_th0.2_max100_min10`.
        stack: closes it.

    Raises:
        DatasetError: it cannot be opened, or a sidecar that is malformed.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        try:
            opened = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
        except lmdb.Error as error:
            raise DatasetError(
                "The LMDB of region features cannot be opened.", where=str(folder), why=str(error)
            ) from None
        self._environment: Any = stack.enter_context(opened)
        self._rule: _ConfidenceRule | None = None
        self._counts: dict[str, int] = {}
        if named := _THRESHOLD.fullmatch(folder.name):
            self._rule = _ConfidenceRule(float(named["threshold"]), int(named["least"]), int(named["most"]))
            self._counts = _read_counts(folder.parent / f"nbb_{named['rule']}.json")
        fixed = _FIXED.fullmatch(folder.name)
        self._fixed = int(fixed["count"]) if fixed else None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._get(name) is not None

    def read(self, name: str, *, width: int, height: int) -> RegionFeatures:
        value = self._get(name)
        if value is None:
            raise DatasetError("A picture has no region features.", where=str(self._folder), why=f"no key {name}.npz")
        try:
            if value.startswith(_ZIP_MAGIC):
                whole = regions_of_arrays(io.BytesIO(value), (width, height))
            else:
                whole = regions_of(_unpack(value), (width, height))
            return _first(whole, self._num_regions(name, whole))
        except Malformed as error:
            raise DatasetError(
                "Region features are malformed.", where=f"{self._folder}: {name}.npz", why=str(error)
            ) from None

    def _num_regions(self, name: str, regions: RegionFeatures) -> int:
        if self._fixed is not None:
            return self._fixed
        if self._rule is None:
            return len(regions.features_RF)
        if f"{name}.npz" in self._counts:
            return self._counts[f"{name}.npz"]
        if regions.confidence_R is None:
            raise Malformed("neither the sidecar nor confidences say how many regions are meant")
        above = int((regions.confidence_R > self._rule.threshold).sum())
        return min(max(above, self._rule.least), self._rule.most)

    def _get(self, name: str) -> bytes | None:
        with self._environment.begin() as transaction:
            value: bytes | None = transaction.get(f"{name}.npz".encode())
        return value


def _first(regions: RegionFeatures, count: int) -> RegionFeatures:
    return RegionFeatures(
        features_RF=regions.features_RF[:count],
        boxes_R4=regions.boxes_R4[:count],
        width=regions.width,
        height=regions.height,
        box_index_R=regions.box_index_R[:count],
        stated_sides_R2=None if regions.stated_sides_R2 is None else regions.stated_sides_R2[:count],
        confidence_R=None if regions.confidence_R is None else regions.confidence_R[:count],
    )


def _read_counts(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(count) for name, count in value.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError("The counts of regions are malformed.", where=str(path), why=str(error)) from None


def _unpack(value: bytes) -> dict[str, npt.NDArray[Any]]:
    """Unpack msgpack_numpy's form of a dictionary of arrays; its pickled objects are refused."""
    try:
        record = msgpack.unpackb(value, raw=True, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {error}") from None
    if not isinstance(record, dict):
        raise Malformed("not a dictionary of arrays")
    arrays = {}
    for key, entry in record.items():
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
        if name != "soft_labels":
            arrays[name] = _array(name, entry)
    return arrays


def _array(name: str, entry: Any) -> npt.NDArray[Any]:
    fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in _items(entry)}
    if not fields.get("nd") or fields.get("kind") not in (b"", ""):
        raise Malformed(f"{name!r} is not a plain array")
    kind = fields["type"].decode() if isinstance(fields.get("type"), bytes) else fields.get("type")
    try:
        dtype = np.dtype(kind)
        array = np.frombuffer(fields["data"], dtype=dtype).reshape(fields["shape"])
    except (TypeError, ValueError, KeyError) as error:
        raise Malformed(f"{name!r} is not an array: {error}") from None
    return array


def _items(entry: Any) -> Any:
    return entry.items() if isinstance(entry, dict) else ()
