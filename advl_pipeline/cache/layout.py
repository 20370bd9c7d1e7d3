"""Layout of a cache: its arrays, the layout of their shard files, and the placement of units in shards.

Every array uses the standard sharding codec with inner chunks that span all columns. A shard file is its inner chunks
in order, which is one contiguous row-major block of rows, followed by the codec's index: 16 bytes (offset, length)
for each inner chunk and a CRC-32C. Inner chunks entirely beyond the end of the array are absent from the last shard.

The plan determines the arrays of a modality. The placement of ragged units is a pure function of their row counts.

Shapes: N units, S shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.commit_records import PlanRecord
from advl_pipeline.cache.quantise import wide_dtype
from advl_pipeline.cache.store import Buffer, render_json

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float16", "float32", "int8", "int32", "int64", "uint8", "uint64")
}

ABSENT_CHUNK = 2**64 - 1
"""Offset and length that mark an inner chunk that is not stored (Zarr v3, sharding codec)."""

ID_BYTES = 16
"""Size of a unit's id."""

MAX_SHARD_BYTES = 2**36

MAX_ROWS = 2**48

TABLE_ROWS = 65536
"""Maximum number of units per shard file of `global`."""

_TARGET_INNER_BYTES = 1 << 19

_MOST_INNER_ROWS = 65536

REGION_COLUMNS: Mapping[str, tuple[tuple[int, ...], str]] = {
    "boxes": ((6,), "float32"),
    "box_index": ((), "int32"),
    "confidence": ((), "float32"),
}
"""Arrays stored with the features of regions: name -> columns, dtype.

`boxes` are x1, y1, x2, y2, width and height as fractions of the picture. `box_index` is the row of the region in the
dataset's own boxes, -1 for a detected one. `confidence` is the detector's, -1 if it gave none.
"""

_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array: `path` within the hierarchy, `shape` (rows, *columns), and how rows are cut into shards."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int
    inner_rows: int

    def is_plausible(self) -> bool:
        """Return whether a cache could have such an array. Check this before allocating or mapping by its sizes."""
        return (
            self.dtype in DTYPES
            and 1 <= len(self.shape) <= 2
            and min(self.shape) > 0
            and self.shape[0] <= MAX_ROWS
            and 0 < self.inner_rows <= self.shard_rows
            and self.shard_rows % self.inner_rows == 0
            and self.shard_rows * self.row_bytes <= MAX_SHARD_BYTES
        )

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def num_shards(self) -> int:
        return -(-self.shape[0] // self.shard_rows)

    @property
    def metadata_path(self) -> str:
        return f"{self.path}/zarr.json"

    def shard_path(self, shard: int) -> str:
        """Return the name of a shard file, relative to the cache."""
        return "/".join([self.path, "c", str(shard)] + ["0"] * (len(self.shape) - 1))

    def shard_paths(self) -> list[str]:
        return [self.shard_path(shard) for shard in range(self.num_shards)]

    def valid_rows(self, shard: int) -> int:
        """Return the number of a shard's rows within the array."""
        return min(self.shard_rows, self.shape[0] - shard * self.shard_rows)

    def stored_rows(self, shard: int) -> int:
        """Return the number of rows in a shard file: a multiple of the inner chunk."""
        return -(-self.valid_rows(shard) // self.inner_rows) * self.inner_rows

    def payload_bytes(self, shard: int) -> int:
        return self.stored_rows(shard) * self.row_bytes

    def footer(self, shard: int) -> bytes:
        """Return the sharding codec's index of a shard file, with its checksum."""
        present, chunk_bytes = self.stored_rows(shard) // self.inner_rows, self.inner_rows * self.row_bytes
        index = np.full((self.shard_rows // self.inner_rows, 2), ABSENT_CHUNK, "<u8")
        index[:present, 0] = np.arange(present, dtype=np.uint64) * chunk_bytes
        index[:present, 1] = chunk_bytes
        body = index.tobytes()
        return body + int(google_crc32c.value(body)).to_bytes(4, "little")

    def file_bytes(self, shard: int) -> int:
        """Return the size of a shard file."""
        return self.payload_bytes(shard) + self.shard_rows // self.inner_rows * 16 + 4

    def content(self, shard: int, rows: npt.NDArray[Any]) -> list[Buffer]:
        """Return the content of a shard file: its rows, zero padding to a full inner chunk, the index."""
        payload = np.ascontiguousarray(rows, DTYPES[self.dtype])
        slack = self.payload_bytes(shard) - payload.nbytes
        if slack < 0 or payload.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.path}: {payload.shape} is not shard {shard} of {self}")
        return [payload.reshape(-1).view(np.uint8).data, bytes(slack), self.footer(shard)]

    def metadata(self) -> bytes:
        """Return the array's `zarr.json`."""
        columns = list(self.shape[1:])
        return render_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *columns]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0.0 if self.dtype.startswith("float") else 0,
                "codecs": [
                    {
                        "name": "sharding_indexed",
                        "configuration": {
                            "chunk_shape": [self.inner_rows, *columns],
                            "codecs": [_LITTLE_ENDIAN],
                            "index_codecs": [_LITTLE_ENDIAN, {"name": "crc32c"}],
                            "index_location": "end",
                        },
                    }
                ],
                "attributes": {},
            }
        )


def single_shard(path: str, shape: tuple[int, ...], dtype: str) -> ArraySpec:
    """Return the layout of an array in a single shard file."""
    inner = min(_MOST_INNER_ROWS, shape[0])
    return ArraySpec(path=path, shape=shape, dtype=dtype, shard_rows=-(-shape[0] // inner) * inner, inner_rows=inner)


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """Return the `zarr.json` of a group."""
    return render_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def plan_specs(modality: str, num_units: int) -> dict[str, ArraySpec]:
    """Return the layouts of the arrays that are known before encoding."""
    return {
        "starts": single_shard(f"{modality}/tokens/starts", (num_units,), "int64"),
        "lengths": single_shard(f"{modality}/tokens/lengths", (num_units,), "int32"),
        "unit_id": single_shard(f"{modality}/unit_id", (num_units, ID_BYTES), "uint8"),
    }


def token_specs(modality: str, plan: PlanRecord, num_rows: int) -> dict[str, ArraySpec]:
    """Return the layouts of the arrays with one row per token, sharded alike; empty without token features."""
    shape = plan.modalities[modality]
    if shape.token_dim is None:
        return {}
    columns: dict[str, tuple[tuple[int, ...], str]] = {"values": ((shape.token_dim,), plan.stored_dtype)}
    if plan.stored_dtype == "int8":
        columns["scales"] = ((), "float32")
    if shape.spans:
        columns["char_spans"] = ((2,), "int32")
    if shape.kept:
        columns["kept"] = ((), "int32")
    if shape.regions:
        columns |= REGION_COLUMNS
    inner = _inner_rows(shape.token_dim, plan.shard_rows, num_rows)
    return {
        name: ArraySpec(
            path=f"{modality}/tokens/{name}",
            shape=(num_rows, *width),
            dtype=dtype,
            shard_rows=plan.shard_rows,
            inner_rows=inner,
        )
        for name, (width, dtype) in columns.items()
    }


def global_spec(modality: str, plan: PlanRecord) -> ArraySpec:
    """Return the layout of the array with one feature vector per unit; 16 bits if tokens are stored in 8."""
    shape = plan.modalities[modality]
    shard_rows = min(TABLE_ROWS, 1 << (shape.num_units - 1).bit_length())
    return ArraySpec(
        path=f"{modality}/global",
        shape=(shape.num_units, shape.global_dim),
        dtype=wide_dtype(plan.stored_dtype),
        shard_rows=shard_rows,
        inner_rows=_inner_rows(shape.global_dim, shard_rows, shape.num_units),
    )


def stat_spec(modality: str, name: str, num_units: int) -> ArraySpec:
    """Return the layout of one statistic per unit."""
    return single_shard(f"{modality}/stats/{name}", (num_units,), "float32")


def moment_specs(modality: str, plan: PlanRecord) -> dict[str, ArraySpec]:
    """Return the layouts of mean and variance per dimension, of global features and of token rows."""
    shape = plan.modalities[modality]
    widths = {"global": shape.global_dim} | ({"token": shape.token_dim} if shape.token_dim is not None else {})
    return {
        f"{kind}_{moment}": single_shard(f"{modality}/{kind}_{moment}", (width,), "float32")
        for kind, width in widths.items()
        for moment in ("mean", "variance")
    }


def index_specs(modality: str, num_readable: int) -> dict[str, ArraySpec]:
    """Return the layouts of the look-up of units by id; empty if no unit could be read."""
    if num_readable == 0:
        return {}
    return {
        "prefix": single_shard(f"{modality}/index/prefix", (num_readable,), "uint64"),
        "unit": single_shard(f"{modality}/index/unit", (num_readable,), "int64"),
    }


def array_specs(modality: str, plan: PlanRecord, *, num_rows: int, num_readable: int) -> list[ArraySpec]:
    """Return the layouts of all arrays of a modality, except statistics that only some teachers give."""
    num_units = plan.modalities[modality].num_units
    return [
        *plan_specs(modality, num_units).values(),
        global_spec(modality, plan),
        stat_spec(modality, "norm", num_units),
        *token_specs(modality, plan, num_rows).values(),
        *moment_specs(modality, plan).values(),
        *index_specs(modality, num_readable).values(),
    ]


def _inner_rows(width: int, shard_rows: int, num_rows: int) -> int:
    # The largest power of two that divides the shard, is about the target size and does not exceed all rows.
    inner = 1
    while shard_rows % (inner * 2) == 0 and inner * width * 2 < _TARGET_INNER_BYTES and inner < num_rows:
        inner *= 2
    return inner


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The placement of all units' rows in shards.

    Unit u has rows starts_N[u] to starts_N[u] + lengths_N[u] of the flat values. Shard k contains units
    first_unit_S1[k] to first_unit_S1[k + 1], from row k * shard_rows on. It uses rows_used_S[k] rows, and the next
    unit would not fit. A unit without tokens still occupies one row, which it does not reference.
    """

    shard_rows: int
    starts_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int32]
    first_unit_S1: npt.NDArray[np.int64]
    rows_used_S: npt.NDArray[np.int64]

    @property
    def num_units(self) -> int:
        return len(self.lengths_N)

    @property
    def num_shards(self) -> int:
        return len(self.rows_used_S)

    @property
    def num_rows(self) -> int:
        """Rows of the flat values: all shards but the last are full-sized."""
        return (self.num_shards - 1) * self.shard_rows + int(self.rows_used_S[-1])

    def units_of(self, shard: int) -> range:
        """Return the positions of the units in a shard."""
        return range(int(self.first_unit_S1[shard]), int(self.first_unit_S1[shard + 1]))


def place(lengths_N: npt.NDArray[np.int32], *, shard_rows: int) -> ShardPlan:
    """Fill shards with whole units, in order.

    Raises:
        ConfigError: no units, a negative length, or a unit longer than a shard.
    """
    lengths_N = np.ascontiguousarray(lengths_N, dtype=np.int32)
    if len(lengths_N) == 0:
        raise ConfigError("There are no units to store.")
    if int(lengths_N.min()) < 0:
        raise ConfigError("A unit cannot have a negative number of tokens.")
    longest = int(lengths_N.argmax())
    if shard_rows < max(1, int(lengths_N[longest])):
        raise ConfigError(
            f"A unit has {int(lengths_N[longest])} token rows, more than a shard of {shard_rows} rows holds.",
            where=f"unit {longest}",
            next_command="give a larger --shard-rows",
        )
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(lengths_N, 1), dtype=np.int64)])
    starts_N = np.empty(len(lengths_N), np.int64)
    first_unit: list[int] = [0]
    rows_used: list[int] = []
    while first_unit[-1] < len(lengths_N):
        first = first_unit[-1]
        after = int(np.searchsorted(ends, ends[first] + shard_rows, side="right")) - 1
        starts_N[first:after] = len(rows_used) * shard_rows + (ends[first:after] - ends[first])
        rows_used.append(int(ends[after] - ends[first]))
        first_unit.append(after)
    return ShardPlan(
        shard_rows=shard_rows,
        starts_N=starts_N,
        lengths_N=lengths_N,
        first_unit_S1=np.asarray(first_unit, np.int64),
        rows_used_S=np.asarray(rows_used, np.int64),
    )
