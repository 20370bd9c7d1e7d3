"""Layout of one array of a cache: Zarr v3 metadata, file names, and the shape of a shard file.

Every array uses the standard sharding codec with inner chunks that span all columns. A shard file is its inner chunks
in order, which is one contiguous row-major block of rows, followed by the codec's index: 16 bytes (offset, length)
for each inner chunk and a CRC-32C. Inner chunks wholly beyond the end of the array are absent from the last shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.files import Buffer

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in ("float16", "float32", "int8", "int32", "int64", "uint8", "uint64")
}
ABSENT_CHUNK = 2**64 - 1
"""Offset and length that mark an inner chunk that is not stored (Zarr v3, sharding codec)."""

MAX_SHARD_BYTES = 2**36
MAX_ROWS = 2**48


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array: `path` within the hierarchy, `shape` (rows, *columns), and how rows are cut into shards."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int
    inner_rows: int

    def is_plausible(self) -> bool:
        """Whether a cache could have such an array; asked before anything is allocated or mapped by its sizes."""
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
        """Name of a shard file, relative to the cache."""
        return "/".join([self.path, "c", str(shard)] + ["0"] * (len(self.shape) - 1))

    def shard_paths(self) -> list[str]:
        return [self.shard_path(shard) for shard in range(self.num_shards)]

    def valid_rows(self, shard: int) -> int:
        """Rows of a shard that lie within the array."""
        return min(self.shard_rows, self.shape[0] - shard * self.shard_rows)

    def stored_rows(self, shard: int) -> int:
        """Rows that a shard file holds: whole inner chunks."""
        return -(-self.valid_rows(shard) // self.inner_rows) * self.inner_rows

    def payload_bytes(self, shard: int) -> int:
        return self.stored_rows(shard) * self.row_bytes

    @property
    def footer_bytes(self) -> int:
        return self.shard_rows // self.inner_rows * 16 + 4

    def footer(self, shard: int) -> bytes:
        """The sharding codec's index of a shard file, with its checksum."""
        present, chunk_bytes = self.stored_rows(shard) // self.inner_rows, self.inner_rows * self.row_bytes
        index = np.full((self.shard_rows // self.inner_rows, 2), ABSENT_CHUNK, "<u8")
        index[:present, 0] = np.arange(present, dtype=np.uint64) * chunk_bytes
        index[:present, 1] = chunk_bytes
        body = index.tobytes()
        return body + int(google_crc32c.value(body)).to_bytes(4, "little")

    def file_bytes(self, shard: int) -> int:
        """Size of a shard file."""
        return self.payload_bytes(shard) + self.footer_bytes

    def content(self, shard: int, rows: npt.NDArray[Any]) -> list[Buffer]:
        """What a shard file consists of: its rows, zeros up to a whole inner chunk, the index."""
        payload = np.ascontiguousarray(rows, DTYPES[self.dtype])
        slack = self.payload_bytes(shard) - payload.nbytes
        if slack < 0 or payload.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.path}: {payload.shape} is not shard {shard} of {self}")
        return [payload.reshape(-1).view(np.uint8).data, bytes(slack), self.footer(shard)]

    def metadata(self) -> bytes:
        """The array's `zarr.json`."""
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


_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


def single_shard(path: str, shape: tuple[int, ...], dtype: str, *, inner_rows: int = 65536) -> ArraySpec:
    """Return the layout of an array that is written whole, in one shard file."""
    inner = min(inner_rows, shape[0])
    return ArraySpec(path=path, shape=shape, dtype=dtype, shard_rows=-(-shape[0] // inner) * inner, inner_rows=inner)


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """The `zarr.json` of a group."""
    return render_json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def render_json(value: Any) -> bytes:
    """JSON for people, in one deterministic form."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
