"""Writing a cache: the plan, then whole shards in any order by any process, then the tables, last the commit record.

What a shard contributes to the per-unit tables waits, flushed, in the work folder until all shards are committed.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache import schema
from advl_pipeline.cache.arrays import MappedArray, open_array
from advl_pipeline.cache.compression import Compression
from advl_pipeline.cache.files import (
    FileEntry,
    publish_if_changed,
    read_json,
)
from advl_pipeline.cache.identity import SCHEMA_VERSION, digest
from advl_pipeline.cache.index import build_index
from advl_pipeline.cache.layout import ArraySpec, group_metadata, render_json
from advl_pipeline.cache.moments import mean_and_variance
from advl_pipeline.cache.publishing import publish_array, publish_shard
from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.ragged import Placement, place
from advl_pipeline.cache.records import (
    COMPLETE_RECORD,
    IDENTITY_FILE,
    PLAN_RECORD,
    PROVENANCE_FILE,
    CompleteRecord,
    ModalityRecord,
    PlanRecord,
    ShardRecord,
    load_plan,
    load_shard,
    render_complete,
    render_plan,
    render_shard,
    render_tables,
    shard_record_path,
    tables_record_path,
)
from advl_pipeline.cache.shard_buffer import ShardBuffer, staged_content
from advl_pipeline.cache.staged import StagedShards

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ModalityPlan:
    """What one modality will hold: ids of N units as (N, 16) uint8, their token counts (N,), and feature widths.

    `token_dim` is None where the teacher gives no token features; `kept` says that only some of them are stored.
    """

    unit_ids_N16: npt.NDArray[np.uint8]
    lengths_N: npt.NDArray[np.int32]
    global_dim: int
    token_dim: int | None
    spans: bool
    kept: bool = False

    def record(self) -> ModalityRecord:
        return ModalityRecord(
            num_units=len(self.lengths_N),
            global_dim=self.global_dim,
            token_dim=self.token_dim,
            spans=self.spans,
            kept=self.kept,
        )


def begin_cache(
    root: Path,
    *,
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    stored_dtype: StoredDtype,
    shard_rows: int,
    modalities: Mapping[str, ModalityPlan],
    compression: Compression = "none",
) -> None:
    """Write everything that is known before encoding; the plan record comes last."""
    files = {
        IDENTITY_FILE: publish_if_changed(root, IDENTITY_FILE, [render_json(identity)]),
        PROVENANCE_FILE: publish_if_changed(root, PROVENANCE_FILE, [render_json(provenance)]),
    }
    for name, modality in modalities.items():
        placement = place(modality.lengths_N, shard_rows=shard_rows)
        content: dict[str, Array] = {
            "starts": placement.starts_N,
            "lengths": placement.lengths_N,
            "unit_id": modality.unit_ids_N16,
        }
        for array, spec in schema.plan_specs(name, placement.num_units).items():
            files |= publish_array(root, spec, content[array])
    record = PlanRecord(
        identity_sha256=digest(identity),
        stored_dtype=stored_dtype,
        shard_rows=shard_rows,
        modalities={name: modality.record() for name, modality in modalities.items()},
        files=files,
        compression=compression,
        provenance=provenance,
    )
    publish_if_changed(root, PLAN_RECORD, [render_plan(record)])


class CacheWriter:
    """A planned cache that is being filled; any number of processes may hold one each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = load_plan(root)
        self.stored: StoredDtype = self.plan.stored_dtype
        self._placements: dict[str, Placement] = {}

    def placement(self, modality: str) -> Placement:
        """Return where the units of a modality lie."""
        if modality not in self._placements:
            specs = schema.plan_specs(modality, self.plan.modalities[modality].num_units)
            lengths_N = MappedArray(self.root, specs["lengths"]).whole()
            self._placements[modality] = place(lengths_N, shard_rows=self.plan.shard_rows)
        return self._placements[modality]

    def unit_ids(self, modality: str) -> npt.NDArray[np.uint8]:
        """Return the (N, 16) ids of a modality's units."""
        spec = schema.plan_specs(modality, self.plan.modalities[modality].num_units)["unit_id"]
        return MappedArray(self.root, spec).whole()

    def token_specs(self, modality: str) -> dict[str, ArraySpec]:
        """Return the layout of the arrays with one row per token; none where there are no token features."""
        shape = self.plan.modalities[modality]
        if shape.token_dim is None:
            return {}
        return schema.token_specs(
            modality,
            num_rows=self.placement(modality).num_rows,
            token_dim=shape.token_dim,
            spans=shape.spans,
            kept=shape.kept,
            stored=self.stored,
            shard_rows=self.plan.shard_rows,
            compression=self.plan.compression,
        )

    def is_committed(self, modality: str, shard: int) -> bool:
        return (self.root / shard_record_path(modality, shard)).is_file()

    def is_complete(self) -> bool:
        return (self.root / COMPLETE_RECORD).is_file()

    def pending(self, modality: str) -> list[int]:
        """Return the shards that are not committed yet, in order."""
        shards = range(self.placement(modality).num_shards)
        return [shard for shard in shards if not self.is_committed(modality, shard)]

    def new_buffer(self, modality: str, shard: int) -> ShardBuffer:
        """Return an empty buffer for the content of one shard."""
        return ShardBuffer(
            placement=self.placement(modality),
            shard=shard,
            shape=self.plan.modalities[modality],
            stored=self.stored,
        )

    def commit_shard(self, modality: str, buffer: ShardBuffer) -> None:
        """Write a shard's files, what it adds to the tables, and last its record."""
        buffer.require_filled()
        self.commit_rows(
            modality,
            buffer.shard,
            tables=buffer.staged(),
            token_rows=buffer.token_rows(),
            clipped=buffer.clipped,
            quarantined=buffer.quarantined,
        )

    def commit_rows(
        self,
        modality: str,
        shard: int,
        *,
        tables: Mapping[str, Array],
        token_rows: Mapping[str, Array],
        clipped: int = 0,
        quarantined: Mapping[str, str] | None = None,
    ) -> None:
        """As `commit_shard`, from arrays in stored form: `shard_buffer.staged_content`, and rows per token array."""
        self.staged(modality).keep(shard, tables)
        placement = self.placement(modality)
        units = placement.units_of(shard)
        record = ShardRecord(
            modality=modality,
            shard=shard,
            first_unit=units.start,
            num_units=len(units),
            rows=int(placement.rows_used_S[shard]),
            clipped=clipped,
            quarantined=quarantined or {},
            files={
                spec.shard_path(shard): publish_shard(self.root, spec, shard, token_rows[name])
                for name, spec in self.token_specs(modality).items()
            },
        )
        publish_if_changed(self.root, shard_record_path(modality, shard), [render_shard(record)])

    def staged(self, modality: str) -> StagedShards:
        """Return what the shards of a modality add to the tables; it waits there until the cache is finalised."""
        return StagedShards(self.root, modality, self.placement(modality))

    def content_from_tables(self, modality: str, shard: int, stats: Mapping[str, ArraySpec]) -> dict[str, Array]:
        """Return what a committed shard adds to the tables, read back from sound tables and token rows.

        `stats` lists all statistics: even the norms may be of what the teacher scaled before it was stored.
        """
        shape, placement = self.plan.modalities[modality], self.placement(modality)
        position_N = np.array(placement.units_of(shard), np.int64)
        spec = schema.global_spec(
            modality, num_units=shape.num_units, global_dim=shape.global_dim, stored=self.stored
        )
        global_ND = MappedArray(self.root, spec).gather(position_N)
        rows = {
            name: open_array(self.root, spec).shard(shard)[: int(placement.rows_used_S[shard])]
            for name, spec in self.token_specs(modality).items()
        }
        own = {name: MappedArray(self.root, spec).gather(position_N) for name, spec in stats.items()}
        return staged_content(global_ND, rows.get("values"), rows.get("scales"), own)

    def finalise(self) -> None:
        """Write the tables and the record that makes the cache complete. All shards must be committed."""
        files = dict(self.plan.files)
        files[PLAN_RECORD] = publish_if_changed(self.root, PLAN_RECORD, [render_plan(self.plan)])
        quarantined: dict[str, dict[str, str]] = {}
        clipped: dict[str, int] = {}
        for modality in self.plan.modalities:
            records = [load_shard(self.root, modality, shard) for shard in range(self.placement(modality).num_shards)]
            for record in records:
                files |= record.files
                relative = shard_record_path(modality, record.shard)
                files[relative] = publish_if_changed(self.root, relative, [render_shard(record)])
            tables = self._publish_tables(modality, records)
            relative = tables_record_path(modality)
            files |= tables
            files[relative] = publish_if_changed(self.root, relative, [render_tables(modality, tables)])
            unit_ids_N16 = self.unit_ids(modality)
            quarantined[modality] = {
                unit_ids_N16[int(unit)].tobytes().hex(): reason
                for record in records
                for unit, reason in record.quarantined.items()
            }
            clipped[modality] = sum(record.clipped for record in records)
        files |= self._publish_groups()
        complete = CompleteRecord(files=files, quarantined=quarantined, clipped=clipped)
        publish_if_changed(self.root, COMPLETE_RECORD, [render_complete(complete)])

    def _publish_tables(self, modality: str, records: list[ShardRecord]) -> dict[str, FileEntry]:
        shape, placement = self.plan.modalities[modality], self.placement(modality)
        readable_N = np.ones(shape.num_units, np.bool_)
        readable_N[[int(unit) for record in records for unit in record.quarantined]] = False
        files: dict[str, FileEntry] = {}
        for spec in self.token_specs(modality).values():
            files[spec.metadata_path] = publish_if_changed(self.root, spec.metadata_path, [spec.metadata()])
        spec = schema.global_spec(
            modality, num_units=shape.num_units, global_dim=shape.global_dim, stored=self.stored
        )
        files[spec.metadata_path] = publish_if_changed(self.root, spec.metadata_path, [spec.metadata()])
        staged = self.staged(modality)
        for shard, rows in enumerate(_regroup(staged.parts("global"), spec.shard_rows)):
            files[spec.shard_path(shard)] = publish_shard(self.root, spec, shard, rows)
        for name, values_N in staged.statistics().items():
            files |= publish_array(self.root, schema.stat_spec(modality, name, shape.num_units), values_N)
        counts = {
            "global": int(readable_N.sum()),
            "token": int(placement.lengths_N[readable_N].sum(dtype=np.int64)),
        }
        widths = {"global": shape.global_dim, "token": shape.token_dim}
        for name, spec in schema.moment_specs(
            modality, global_dim=shape.global_dim, token_dim=shape.token_dim
        ).items():
            kind, moment = name.split("_")
            mean_D, variance_D = mean_and_variance(
                staged.parts(f"{kind}_sums"), count=counts[kind], width=widths[kind] or 0
            )
            files |= publish_array(self.root, spec, mean_D if moment == "mean" else variance_D)
        prefix_U, unit_U = build_index(self.unit_ids(modality), readable_N)
        for name, spec in schema.index_specs(modality, len(unit_U)).items():
            files |= publish_array(self.root, spec, prefix_U if name == "prefix" else unit_U)
        return files

    def _publish_groups(self) -> dict[str, FileEntry]:
        # Group metadata comes after all arrays, so that no Zarr reader opens an unfinished cache and sees zeros.
        identity = read_json(self.root, IDENTITY_FILE)
        provenance = read_json(self.root, PROVENANCE_FILE)
        root_attributes = {"advl": {"schema_version": SCHEMA_VERSION, "identity": identity, "provenance": provenance}}
        groups: dict[str, bytes] = {}
        for modality in self.plan.modalities:
            for folder in (modality, f"{modality}/tokens", f"{modality}/stats", f"{modality}/index"):
                groups[f"{folder}/zarr.json"] = group_metadata()
        groups["zarr.json"] = group_metadata(root_attributes)
        return {name: publish_if_changed(self.root, name, [content]) for name, content in groups.items()}


def _regroup(parts: Iterable[Array], rows_per_shard: int) -> Iterator[Array]:
    held: list[Array] = []
    count = 0
    for part in parts:
        while len(part):
            taken = part[: rows_per_shard - count]
            held.append(taken)
            count += len(taken)
            part = part[len(taken) :]
            if count == rows_per_shard:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)
