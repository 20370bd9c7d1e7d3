"""Writer of a cache: first the plan, then shards in any order by any process, the tables, and the commit record.

A shard's part of the per-unit tables stays in the work folder until all shards are committed: one safetensors file
per shard, preceded by the digest of its content, so that lost or changed data never get into a table.

Moments are summed over shards in a fixed order, so every run gives the same bits.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from advl_pipeline.base.errors import ConfigError, CorruptCache, again
from advl_pipeline.cache import layout
from advl_pipeline.cache.arrays import MappedArray, build_index
from advl_pipeline.cache.commit_records import (
    COMPLETE_RECORD,
    PLAN_RECORD,
    ROOT_METADATA,
    CompleteRecord,
    PlanRecord,
    ShardRecord,
    committed_shards,
    load_plan,
    load_shard,
    render_record,
    render_tables,
    shard_name,
    shard_record_path,
    tables_record_path,
)
from advl_pipeline.cache.identity import PROVENANCE_FILE, SCHEMA_VERSION
from advl_pipeline.cache.layout import ArraySpec, ShardPlan, group_metadata, place
from advl_pipeline.cache.moments import moments_of
from advl_pipeline.cache.parts import remove_dead_locks
from advl_pipeline.cache.shard_buffer import ShardBuffer, staged_content
from advl_pipeline.cache.store import (
    IDENTITY_FILE,
    WORK_FOLDER,
    FileEntry,
    Files,
    Overtaken,
    Readable,
    Store,
    entry_of,
    read_metadata,
    render_json,
)

STAGED_FOLDER = f"{WORK_FOLDER}/staged"

_DIGEST_BYTES = 32

_STATISTIC = "stat-"


Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The plan of a new cache: its record without files, and the ids (N, 16) and shards of each modality's N units.

    Token rows were counted in `num_counted` of the units; the counts are repeated for the others.
    """

    record: PlanRecord
    unit_ids: Mapping[str, npt.NDArray[np.uint8]]
    placements: Mapping[str, ShardPlan]
    num_counted: Mapping[str, int]

    def num_bytes(self, modality: str) -> int:
        """Return the size of a modality in bytes, with padded chunks and array metadata."""
        placement = self.placements[modality]
        specs = layout.array_specs(
            modality, self.record, num_rows=placement.num_rows, num_readable=placement.num_units
        )
        return sum(len(spec.metadata()) + sum(map(spec.file_bytes, range(spec.num_shards))) for spec in specs)


def plan_cache(
    record: PlanRecord,
    unit_ids: Mapping[str, npt.NDArray[np.uint8]],
    lengths: Mapping[str, npt.NDArray[np.int32]],
    *,
    max_file_bytes: int | None = None,
) -> CachePlan:
    """Return the plan of a cache without writing anything.

    Args:
        record: the plan record, without files.
        unit_ids: modality -> ids, (N, 16).
        lengths: modality -> token rows of n units, (n,); repeated if n < N.
        max_file_bytes: the largest file that the store accepts; None for no limit.

    Raises:
        ConfigError: the shards are too large for readers or for the store.
    """
    shard_rows = record.shard_rows
    placements = {
        name: place(np.resize(lengths_n, len(unit_ids[name])), shard_rows=shard_rows)
        for name, lengths_n in lengths.items()
    }
    for name, placement in placements.items():
        for spec in (
            layout.global_spec(name, record),
            *layout.token_specs(name, record, placement.num_rows).values(),
        ):
            largest = max(map(spec.file_bytes, range(spec.num_shards)))
            if not spec.is_plausible() or (max_file_bytes or largest) < largest:
                raise ConfigError(
                    "A shard would be too large.",
                    where="--shard-rows",
                    why=f"{shard_rows} rows of {spec.row_bytes} bytes",
                    next_command="leave --shard-rows out; shards of 64 to 256 MB serve best",
                )
    num_counted = {name: len(lengths_n) for name, lengths_n in lengths.items()}
    return CachePlan(record=record, unit_ids=unit_ids, placements=placements, num_counted=num_counted)


def begin_cache(store: Store, plan: CachePlan, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write everything that is known before encoding; the plan record comes last.

    Processes that begin at the same time write one plan: the first provenance wins, and the rest follows from it.

    Args:
        identity: the identity of the planned cache.
        overwrite: replace an existing identity and provenance.

    Raises:
        ConfigError: another process began the cache with a different shard size.
        Overtaken: another process began a different cache here.
    """
    shard_rows, provenance = plan.record.shard_rows, plan.record.provenance or {}
    # The identity comes first: other commands recognise a cache by it.
    if overwrite:
        for name, content in ((IDENTITY_FILE, identity), (PROVENANCE_FILE, provenance)):
            store.put(name, [render_json(content)])
    store.commit(IDENTITY_FILE, render_json(identity))
    store.put_if_absent(PROVENANCE_FILE, [render_json(provenance)])
    provenance = read_metadata(store, PROVENANCE_FILE)
    if (begun := provenance.get("config", {}).get("shard_rows", shard_rows)) != shard_rows:
        raise store.refused(
            "This cache was begun with shards of another size.",
            f"--shard-rows {begun}",
            again(f"give the same command with --shard-rows {begun}"),
        )
    files = {name: entry_of(store.get(name)) for name in (IDENTITY_FILE, PROVENANCE_FILE)}
    for name, placement in plan.placements.items():
        arrays: dict[str, Array] = {
            "starts": placement.starts_N,
            "lengths": placement.lengths_N,
            "unit_id": plan.unit_ids[name],
        }
        for array, spec in layout.plan_specs(name, placement.num_units).items():
            files |= publish_array(store, spec, arrays[array])
    store.commit(PLAN_RECORD, render_record(replace(plan.record, provenance=provenance, files=files)))


class CacheWriter:
    """Writer of a planned cache; any number of processes may each have one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.plan = load_plan(store)
        self._placements: dict[str, ShardPlan] = {}
        self._tables: dict[str, MappedArray] = {}

    def placement(self, modality: str) -> ShardPlan:
        """Return the placement of a modality's units in shards."""
        if modality not in self._placements:
            specs = layout.plan_specs(modality, self.plan.modalities[modality].num_units)
            lengths_N = MappedArray(self.store, specs["lengths"]).whole()
            self._placements[modality] = place(lengths_N, shard_rows=self.plan.shard_rows)
        return self._placements[modality]

    def unit_ids(self, modality: str) -> npt.NDArray[np.uint8]:
        """Return the (N, 16) ids of a modality's units."""
        spec = layout.plan_specs(modality, self.plan.modalities[modality].num_units)["unit_id"]
        return MappedArray(self.store, spec).whole()

    def token_specs(self, modality: str) -> dict[str, ArraySpec]:
        """Return the layouts of the arrays with one row per token; empty without token features."""
        return layout.token_specs(modality, self.plan, self.placement(modality).num_rows)

    def row_specs(self, modality: str) -> list[ArraySpec]:
        """Return the layouts of the arrays that encoding fills: features, scales, spans."""
        return [layout.global_spec(modality, self.plan), *self.token_specs(modality).values()]

    def is_complete(self) -> bool:
        return COMPLETE_RECORD in self.store.list("records")

    def pending(self, modality: str) -> list[int]:
        """Return the uncommitted shards, in order."""
        committed = committed_shards(self.store.list("records"))
        return [shard for shard in range(self.placement(modality).num_shards) if (modality, shard) not in committed]

    def new_buffer(self, modality: str, shard: int) -> ShardBuffer:
        """Return an empty buffer for the content of one shard."""
        return ShardBuffer(self.plan, modality, self.placement(modality), shard)

    def commit_shard(self, modality: str, buffer: ShardBuffer) -> None:
        """Write a shard's part of the tables, then its files, and last its record.

        A shard that another process committed in the meantime is left alone.
        """
        buffer.require_filled()
        try:
            stage(self.store, modality, buffer.shard, buffer.staged())
            record = ShardRecord(
                modality=modality,
                shard=buffer.shard,
                first_unit=buffer.units.start,
                num_units=len(buffer.units),
                rows=int(self.placement(modality).rows_used_S[buffer.shard]),
                clipped=buffer.clipped,
                quarantined=buffer.quarantined,
                files={
                    spec.shard_path(buffer.shard): publish_shard(self.store, spec, buffer.shard, buffer.tokens[name])
                    for name, spec in self.token_specs(modality).items()
                },
            )
            self.store.commit(shard_record_path(modality, buffer.shard), render_record(record))
        except Overtaken:
            return

    def content_from_tables(self, modality: str, shard: int, stats: Mapping[str, ArraySpec]) -> dict[str, Array]:
        """Return a committed shard's part of the tables, read back from sound tables and token rows.

        `stats` lists all statistics, norms included: these cannot be recomputed if the teacher scaled the features.
        """
        placement, table = self.placement(modality), layout.global_spec(modality, self.plan)
        position_N = np.array(placement.units_of(shard), np.int64)
        rows = {
            name: MappedArray(self.store, spec).shard(shard)[: int(placement.rows_used_S[shard])]
            for name, spec in self.token_specs(modality).items()
        }
        statistics = {name: self._table(spec).gather(position_N) for name, spec in stats.items()}
        return staged_content(
            self._table(table).gather(position_N), rows.get("values"), rows.get("scales"), statistics
        )

    def _table(self, spec: ArraySpec) -> MappedArray:
        return self._tables.setdefault(spec.path, MappedArray(self.store, spec))

    def finalise(self) -> None:
        """Write the tables and the record that makes the cache complete. All shards must be committed.

        Processes that finalise at the same time write the same bytes.

        Raises:
            CorruptCache: a shard's part of the tables is missing or damaged.
            Overtaken: another process completed a different cache here.
        """
        tables = {}
        for modality in self.plan.modalities:
            tables[modality] = self._publish_tables(modality)
            self._put({tables_record_path(modality): render_tables(modality, tables[modality])})
        self._put(self._groups())
        self.store.commit(COMPLETE_RECORD, render_record(self.complete_record(tables)))

    def complete_record(self, tables: Mapping[str, Files]) -> CompleteRecord:
        """Return the record of the complete cache, which follows from the plan and shard records.

        Args:
            tables: modality -> the files listed by the record of its tables.
        """
        contents = {PLAN_RECORD: self.store.get(PLAN_RECORD), **self._groups()}
        files, quarantined, clipped = dict(self.plan.files), {}, {}
        for modality in self.plan.modalities:
            records, unit_ids_N16 = self._shard_records(modality), self.unit_ids(modality)
            contents |= {shard_record_path(modality, record.shard): render_record(record) for record in records}
            contents[tables_record_path(modality)] = render_tables(modality, tables[modality])
            for record in records:
                files |= record.files
            files |= tables[modality]
            quarantined[modality] = {
                unit_ids_N16[int(unit)].tobytes().hex(): reason
                for record in records
                for unit, reason in record.quarantined.items()
            }
            clipped[modality] = sum(record.clipped for record in records)
        files |= {name: entry_of(content) for name, content in contents.items()}
        return CompleteRecord(files=files, quarantined=quarantined, clipped=clipped)

    def _shard_records(self, modality: str) -> list[ShardRecord]:
        return [load_shard(self.store, modality, shard) for shard in range(self.placement(modality).num_shards)]

    def _publish_tables(self, modality: str) -> dict[str, FileEntry]:
        shape, placement = self.plan.modalities[modality], self.placement(modality)
        readable_N = np.ones(shape.num_units, np.bool_)
        readable_N[[int(unit) for record in self._shard_records(modality) for unit in record.quarantined]] = False
        rows = layout.global_spec(modality, self.plan)
        files = self._put({spec.metadata_path: spec.metadata() for spec in self.row_specs(modality)})
        content: dict[str, Array] = {}
        for table, part in enumerate(self._gather(modality, rows.shard_rows, content)):
            files[rows.shard_path(table)] = publish_shard(self.store, rows, table, part)
        specs = layout.moment_specs(modality, self.plan)
        sums_of = {kind: content.pop(f"{kind}_sums") for kind in ("global", "token") if f"{kind}_sums" in content}
        content |= moments_of(sums_of, readable_N, placement.lengths_N)
        specs |= {
            name: layout.stat_spec(modality, name.removeprefix(_STATISTIC), shape.num_units)
            for name in content
            if name.startswith(_STATISTIC)
        }
        content["prefix"], content["unit"] = build_index(self.unit_ids(modality), readable_N)
        specs |= layout.index_specs(modality, len(content["unit"]))
        for name, spec in specs.items():
            files |= publish_array(self.store, spec, content[name])
        return files

    def _gather(self, modality: str, rows_per_table: int, content: dict[str, Array]) -> Iterator[Array]:
        """Yield the global features of all shards, one table of rows at a time; collect the rest in `content`.

        Statistics are joined and sums added in the order of the shards, so every run gives the same bits.
        """
        placement = self.placement(modality)
        held: list[Array] = []
        count = 0
        for shard in range(placement.num_shards):
            added = load_staged(self.store, modality, shard)
            units = placement.units_of(shard)
            part = added.pop("global")
            for name, values in added.items():
                if name.startswith(_STATISTIC):
                    # A shard with only unreadable units has none of the teacher's own statistics.
                    content.setdefault(name, np.zeros(placement.num_units, np.float32))[units.start : units.stop] = (
                        values
                    )
                else:
                    content[name] = content.get(name, np.zeros_like(values)) + values
            while len(part):
                held.append(part[: rows_per_table - count])
                part = part[len(held[-1]) :]
                count += len(held[-1])
                if count == rows_per_table:
                    yield np.concatenate(held)
                    held, count = [], 0
        if held:
            yield np.concatenate(held)

    def _groups(self) -> dict[str, bytes]:
        # Groups come after all arrays, so that no Zarr reader opens an unfinished cache and sees zeros.
        identity, provenance = (read_metadata(self.store, name) for name in (IDENTITY_FILE, PROVENANCE_FILE))
        folders = [
            f"{modality}{below}" for modality in self.plan.modalities for below in ("", "/tokens", "/stats", "/index")
        ]
        root = {"advl": {"schema_version": SCHEMA_VERSION, "identity": identity, "provenance": provenance}}
        groups = {f"{folder}/zarr.json": group_metadata() for folder in folders}
        return {**groups, ROOT_METADATA: group_metadata(root)}

    def _put(self, content: Mapping[str, bytes]) -> dict[str, FileEntry]:
        return {name: self.store.put(name, [raw]) for name, raw in content.items()}


def publish_array(store: Store, spec: ArraySpec, rows: Array) -> dict[str, FileEntry]:
    """Write an array's metadata and shards, skipping files that are already the same; return their entries."""
    files = {spec.metadata_path: store.put(spec.metadata_path, [spec.metadata()])}
    for shard in range(spec.num_shards):
        first = shard * spec.shard_rows
        files[spec.shard_path(shard)] = publish_shard(store, spec, shard, rows[first : first + spec.shard_rows])
    return files


def publish_shard(store: Store, spec: ArraySpec, shard: int, rows: Array) -> FileEntry:
    """Write one shard file."""
    return store.put(spec.shard_path(shard), spec.content(shard, rows))


def staged_path(modality: str, shard: int) -> str:
    """Return the name of the work file with a shard's part of the tables."""
    return f"{STAGED_FOLDER}/{shard_name(modality, shard)}.safetensors"


def stage(store: Store, modality: str, shard: int, content: Mapping[str, Array]) -> None:
    """Save a shard's part of the tables; raises `StorageError`."""
    body = save({name: np.ascontiguousarray(values) for name, values in content.items()})
    store.put(staged_path(modality, shard), [hashlib.sha256(body).digest(), body])


def load_staged(store: Readable, modality: str, shard: int) -> dict[str, Array]:
    """Return a shard's part of the tables.

    Raises:
        CorruptCache: the file is missing or damaged.
    """
    name = staged_path(modality, shard)
    try:
        with store.opened(name) as descriptor, open(descriptor, "rb", closefd=False) as file:
            raw = file.read()
        if hashlib.sha256(raw[_DIGEST_BYTES:]).digest() == raw[:_DIGEST_BYTES]:
            content: dict[str, Array] = load(raw[_DIGEST_BYTES:])
            return content
        why = "its content changed"
    except (CorruptCache, SafetensorError) as error:
        why = str(error).splitlines()[0]
    raise store.damaged("Work in progress of the cache is missing or damaged.", name, why)


def clear_work(store: Store) -> None:
    """Remove the work files of earlier runs, version 0.2 included; locks of running processes stay."""
    for below in (STAGED_FOLDER, *(f"{WORK_FOLDER}/{name}" for name in ("tmp", "claims"))):
        store.delete_under(below)
    remove_dead_locks(store)
