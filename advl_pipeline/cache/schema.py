"""Which arrays a modality of a cache consists of."""

from __future__ import annotations

from advl_pipeline.cache.compression import Compression
from advl_pipeline.cache.index import ID_BYTES
from advl_pipeline.cache.layout import ArraySpec, single_shard
from advl_pipeline.cache.quantise import StoredDtype

TABLE_ROWS = 65536
"""Most units per shard file of `global`."""

_TARGET_INNER_BYTES = 1 << 19

_COMPRESSED_INNER_BYTES = 1 << 16
"""A unit is read by decoding whole inner chunks, so compressed ones are small."""


def plan_specs(modality: str, num_units: int) -> dict[str, ArraySpec]:
    """Arrays that are known before encoding."""
    return {
        "starts": single_shard(f"{modality}/tokens/starts", (num_units,), "int64"),
        "lengths": single_shard(f"{modality}/tokens/lengths", (num_units,), "int32"),
        "unit_id": single_shard(f"{modality}/unit_id", (num_units, ID_BYTES), "uint8"),
    }


def token_specs(
    modality: str,
    *,
    num_rows: int,
    token_dim: int,
    spans: bool,
    kept: bool,
    stored: StoredDtype,
    shard_rows: int,
    compression: Compression,
) -> dict[str, ArraySpec]:
    """Arrays with one row per token, all cut into the same shards; only the values are ever compressed."""
    inner = _inner_rows(token_dim, shard_rows, num_rows)
    small = _inner_rows(token_dim, shard_rows, num_rows, target=_COMPRESSED_INNER_BYTES)

    def spec(name: str, shape: tuple[int, ...], dtype: str) -> ArraySpec:
        compressed = name == "values" and compression != "none"
        return ArraySpec(
            path=f"{modality}/tokens/{name}",
            shape=shape,
            dtype=dtype,
            shard_rows=shard_rows,
            inner_rows=small if compressed else inner,
            compression=compression if compressed else "none",
        )

    specs = {"values": spec("values", (num_rows, token_dim), stored)}
    if stored == "int8":
        specs["scales"] = spec("scales", (num_rows,), "float32")
    if spans:
        specs["char_spans"] = spec("char_spans", (num_rows, 2), "int32")
    if kept:
        specs["kept"] = spec("kept", (num_rows,), "int32")
    return specs


def global_spec(modality: str, *, num_units: int, global_dim: int, stored: StoredDtype) -> ArraySpec:
    """The array with one feature vector per unit. It stays at 16 bits where tokens are stored in 8."""
    shard_rows = min(TABLE_ROWS, 1 << (num_units - 1).bit_length())
    return ArraySpec(
        path=f"{modality}/global",
        shape=(num_units, global_dim),
        dtype="float16" if stored == "int8" else stored,
        shard_rows=shard_rows,
        inner_rows=_inner_rows(global_dim, shard_rows, num_units),
    )


def stat_spec(modality: str, name: str, num_units: int) -> ArraySpec:
    """One statistic per unit."""
    return single_shard(f"{modality}/stats/{name}", (num_units,), "float32")


def moment_specs(modality: str, *, global_dim: int, token_dim: int | None) -> dict[str, ArraySpec]:
    """Mean and variance per dimension, of global features and of token rows."""
    widths = {"global": global_dim} | ({"token": token_dim} if token_dim is not None else {})
    return {
        f"{kind}_{moment}": single_shard(f"{modality}/{kind}_{moment}", (width,), "float32")
        for kind, width in widths.items()
        for moment in ("mean", "variance")
    }


def index_specs(modality: str, num_readable: int) -> dict[str, ArraySpec]:
    """The look-up of units by id; no arrays when no unit could be read."""
    if num_readable == 0:
        return {}
    return {
        "prefix": single_shard(f"{modality}/index/prefix", (num_readable,), "uint64"),
        "unit": single_shard(f"{modality}/index/unit", (num_readable,), "int64"),
    }


def _inner_rows(width: int, shard_rows: int, num_rows: int, *, target: int = _TARGET_INNER_BYTES) -> int:
    # The largest power of two that divides the shard, of about the target size and no more than hold all rows.
    inner = 1
    while shard_rows % (inner * 2) == 0 and inner * width * 2 < target and inner < num_rows:
        inner *= 2
    return inner
