"""Commit records: the size and digest of each file of a cache. A record is written after the files that it lists.

`records/plan.json` covers the files known before encoding, `records/<modality>-<shard>.json` one shard,
`records/<modality>-tables.json` the arrays with one row per unit. `records/complete.json` is written last and covers
every file of the cache, including the other records. It follows from them, and each of them follows from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from advl_pipeline.base.errors import CorruptCache, IdentityMismatch
from advl_pipeline.cache.identity import SCHEMA_VERSION, digest, extract_command
from advl_pipeline.cache.quantise import StoredDtype
from advl_pipeline.cache.store import FileEntry, Files, Readable, render_json

PLAN_RECORD = "records/plan.json"
COMPLETE_RECORD = "records/complete.json"
ROOT_METADATA = "zarr.json"

MODALITIES = ("image", "text")
_SEAL = "record_sha256"
_MAX_UNITS = 2**32
_MAX_WIDTH = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityRecord:
    """Shape of one modality: units, feature widths (token_dim None: no token features), whether tokens have spans.

    `kept`: only some of the teacher's token rows were stored, and their positions are recorded. `regions`: the rows
    are regions of a picture, each with its box (`layout.REGION_COLUMNS`).
    """

    num_units: int
    global_dim: int
    token_dim: int | None
    spans: bool
    kept: bool = False
    regions: bool = False

    def is_plausible(self) -> bool:
        """Return whether a cache could have such a modality. Check this before allocating by its sizes."""
        widths = [self.global_dim] if self.token_dim is None else [self.global_dim, self.token_dim]
        sizes_are_sane = all(type(width) is int and 0 < width <= _MAX_WIDTH for width in widths)
        flags_are_sane = all(type(flag) is bool for flag in (self.spans, self.kept, self.regions))
        return flags_are_sane and type(self.num_units) is int and 0 < self.num_units <= _MAX_UNITS and sizes_are_sane


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRecord:
    """The plan made before encoding: modalities, stored dtype, rows per shard, digest of the identity.

    `provenance` repeats the provenance file, so that any two files may be lost; None in caches of older versions.
    """

    identity_sha256: str
    stored_dtype: StoredDtype
    shard_rows: int
    modalities: Mapping[str, ModalityRecord]
    files: Files
    provenance: Mapping[str, Any] | None = None

    def is_plausible(self) -> bool:
        """Return whether a cache could have such a plan. Check this before allocating by its sizes."""
        return (
            all(name in MODALITIES and shape.is_plausible() for name, shape in self.modalities.items())
            and self.stored_dtype in get_args(StoredDtype)
            and type(self.shard_rows) is int
            and self.shard_rows > 0
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """One committed shard; `quarantined` maps the positions of units that could not be read to the reasons."""

    modality: str
    shard: int
    first_unit: int
    num_units: int
    rows: int
    clipped: int
    quarantined: Mapping[str, str] = field(default_factory=dict)
    files: Files


@dataclass(frozen=True, kw_only=True, slots=True)
class CompleteRecord:
    """All files of a complete cache, except this record and the confidence groups, which have their own records.

    Per modality, `quarantined` maps the ids of units that could not be read to the reasons, and `clipped` counts the
    stored values beyond the range of the stored dtype.
    """

    files: Files
    quarantined: Mapping[str, Mapping[str, str]]
    clipped: Mapping[str, int]


def shard_name(modality: str, shard: int) -> str:
    """Return the name of a shard's record and of its work in progress."""
    return f"{modality}-{shard:05d}"


def shard_record_path(modality: str, shard: int) -> str:
    return f"records/{shard_name(modality, shard)}.json"


def committed_shards(names: Iterable[str]) -> set[tuple[str, int]]:
    """Return the shards with a record among these files, sound or not."""
    records = (name.removeprefix("records/") for name in names if name.startswith("records/"))
    parts = [name.removesuffix(".json").rpartition("-") for name in records]
    return {(modality, int(number)) for modality, _, number in parts if modality in MODALITIES and number.isdigit()}


def tables_record_path(modality: str) -> str:
    return f"records/{modality}-tables.json"


def seal_record(content: Mapping[str, Any]) -> bytes:
    """Render a record with the digest of its own content."""
    return render_json({**content, _SEAL: digest(content)})


@contextmanager
def sealed(store: Readable, name: str) -> Iterator[dict[str, Any]]:
    """Read a record; the block reads its fields.

    Raises:
        CorruptCache: it is missing, does not parse, or changed after it was sealed; or it lacks the expected fields,
            as a record does that is forged, from another version, or of another kind.
    """
    raw = store.get(name)
    try:
        content: Any = json.loads(raw)
        stored = content.pop(_SEAL)
        sound = stored == digest(content) and seal_record(content) == raw
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise store.damaged("A record of the cache is damaged.", name)
    try:
        yield dict(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise store.damaged("A record does not have the expected fields.", name, str(error)) from None


def files_of(content: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Return the files that a record lists."""
    return {
        file: FileEntry(num_bytes=int(num_bytes), sha256=str(sha256))
        for file, (num_bytes, sha256) in content["files"].items()
    }


def render_record(record: PlanRecord | ShardRecord | CompleteRecord) -> bytes:
    """Render a record in its stored form."""
    content = {item.name: getattr(record, item.name) for item in fields(record)}
    content["files"] = dict(record.files)
    if not isinstance(record, ShardRecord):
        content["schema_version"] = SCHEMA_VERSION
    if isinstance(record, PlanRecord):
        # Fields that were added to the format later are omitted if they are empty.
        content = {key: value for key, value in content.items() if value is not None}
        content["modalities"] = {
            name: {key: value for key, value in asdict(shape).items() if key not in ("kept", "regions") or value}
            for name, shape in record.modalities.items()
        }
    return seal_record(content)


def render_tables(modality: str, files: Files) -> bytes:
    return seal_record({"modality": modality, "files": dict(files)})


def load_plan(store: Readable) -> PlanRecord:
    """Read `records/plan.json`.

    Raises:
        CorruptCache: it is damaged, or of another format version.
        IdentityMismatch: the cache is a compressed one of version 0.2.
    """
    with sealed(store, PLAN_RECORD) as content:
        version = content.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise CorruptCache(
                "The cache has another format version.",
                where=str(store.location),
                why=f"it is {version}, this program reads {SCHEMA_VERSION}",
            )
        if content.pop("compression", "none") != "none":
            config = (content.get("provenance") or {}).get("config", {})
            raise IdentityMismatch(
                "Compressed caches are not read any more.",
                where=str(store.location),
                next_command=extract_command(config, store.location, renew=True),
            )
        content["modalities"] = {name: ModalityRecord(**shape) for name, shape in content["modalities"].items()}
        plan = PlanRecord(**{**content, "files": files_of(content)})
        if not plan.is_plausible():
            raise store.damaged("The plan of the cache is inconsistent.", PLAN_RECORD)
        return plan


def load_shard(store: Readable, modality: str, shard: int) -> ShardRecord:
    """Read the record of a shard; raises `CorruptCache`."""
    relative = shard_record_path(modality, shard)
    with sealed(store, relative) as content:
        record = ShardRecord(**{**content, "files": files_of(content)})
        if (record.modality, record.shard) != (modality, shard):
            raise store.damaged("A record has another shard's name.", relative)
        return record


def load_tables(store: Readable, modality: str) -> dict[str, FileEntry]:
    """Read the entries of the files of a modality's tables; raises `CorruptCache`."""
    with sealed(store, tables_record_path(modality)) as content:
        return files_of(content)


def load_complete(store: Readable) -> CompleteRecord:
    """Read `records/complete.json`; raises `CorruptCache`."""
    with sealed(store, COMPLETE_RECORD) as content:
        return CompleteRecord(
            files=files_of(content),
            quarantined={name: dict(units) for name, units in content["quarantined"].items()},
            clipped=dict(content["clipped"]),
        )
