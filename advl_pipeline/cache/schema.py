"""Which arrays a modality of a cache consists of."""

from __future__ import annotations

from collections.abc import Mapping

from advl_pipeline.cache.commit_records import PlanRecord
from advl_pipeline.cache.layout import ArraySpec, single_shard
from advl_pipeline.cache.quantise import wide_dtype
from advl_pipeline.cache.unit_index import ID_BYTES

TABLE_ROWS = 65536
"""Most units per shard file of `global`."""

_TARGET_INNER_BYTES = 1 << 19

REGION_COLUMNS: Mapping[str, tuple[tuple[int, ...], str]] = {
    "boxes": ((6,), "float32"),
    "box_index": ((), "int32"),
    "confidence": ((), "float32"),
}
"""What stands beside the features of a region: array -> columns, dtype.

`boxes` are x1, y1, x2, y2, width and height as shares of the picture. `box_index` is the row of the dataset's own
boxes that a region stands for, -1 for a detected one. `confidence` is the detector's, -1 where it gave none.
"""


def plan_specs(modality: str, num_units: int) -> dict[str, ArraySpec]:
    """Arrays that are known before encoding."""
    return {
        "starts": single_shard(f"{modality}/tokens/starts", (num_units,), "int64"),
        "lengths": single_shard(f"{modality}/tokens/lengths", (num_units,), "int32"),
        "unit_id": single_shard(f"{modality}/unit_id", (num_units, ID_BYTES), "uint8"),
    }


def token_specs(modality: str, plan: PlanRecord, num_rows: int) -> dict[str, ArraySpec]:
    """Arrays with one row per token, all cut into the same shards; none where there are no token features."""
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
    """The array with one feature vector per unit. It stays at 16 bits where tokens are stored in 8."""
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
    """One statistic per unit."""
    return single_shard(f"{modality}/stats/{name}", (num_units,), "float32")


def moment_specs(modality: str, plan: PlanRecord) -> dict[str, ArraySpec]:
    """Mean and variance per dimension, of global features and of token rows."""
    shape = plan.modalities[modality]
    widths = {"global": shape.global_dim} | ({"token": shape.token_dim} if shape.token_dim is not None else {})
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


def _inner_rows(width: int, shard_rows: int, num_rows: int) -> int:
    # The largest power of two that divides the shard, of about the target size and no more than hold all rows.
    inner = 1
    while shard_rows % (inner * 2) == 0 and inner * width * 2 < _TARGET_INNER_BYTES and inner < num_rows:
        inner *= 2
    return inner
