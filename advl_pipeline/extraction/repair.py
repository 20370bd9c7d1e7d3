"""Repair: what is damaged is taken back to the state before it was committed, then the extraction is resumed.

Metadata files exist more than once or follow from others, so they are restored from what is left; a shard is encoded
again only when a file that it wrote is damaged, or a statistic of the teacher's is. Files that are sound are not
touched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_pipeline.cache import schema
from advl_pipeline.cache.disk_cache_config import disk_cache_config
from advl_pipeline.cache.files import WORK_FOLDER, read_json
from advl_pipeline.cache.identity import digest, require_identity
from advl_pipeline.cache.layout import ArraySpec, group_metadata, render_json
from advl_pipeline.cache.mending import Mending, open_mending
from advl_pipeline.cache.provenance import IMPORTED, renew_command
from advl_pipeline.cache.records import (
    COMPLETE_RECORD,
    IDENTITY_FILE,
    PLAN_RECORD,
    PROVENANCE_FILE,
    load_complete,
    load_plan,
    shard_record_path,
)
from advl_pipeline.cache.verify import VerifyReport, describe_findings, verify_cache
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.configuration import build_config
from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.errors import ConfigError, CorruptCache
from advl_pipeline.extraction.config import ExtractConfig, RepairConfig, location_of
from advl_pipeline.extraction.identity import build_identity
from advl_pipeline.extraction.interruption import interruptible
from advl_pipeline.extraction.run import extract, make_plan, open_inputs
from advl_pipeline.extraction.sources import Source, open_sources
from advl_pipeline.locations import Location, Url
from advl_pipeline.teachers.interface import Teacher

ROOT_METADATA = "zarr.json"

_ROUNDS = 2
"""With the complete record gone, files that belong to no record are found in a second round only."""


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """What was found, how many units had to be encoded again, and whether every byte is as it was recorded."""

    path: Location
    findings: tuple[tuple[str, str], ...]
    encoded_units: int
    is_identical: bool


def run_repair(config: RepairConfig) -> RepairResult:
    """Restore a damaged or unfinished cache with the teacher and the dataset that it came from.

    Raises:
        ConfigError: there is no cache, or too little is left of it to know how it was made.
        IdentityMismatch: the teacher or the dataset is not what it was.
        CorruptCache: the cache is still not sound afterwards.
    """
    with interruptible():
        settings = _provenance_of(config.cache)["config"]
        if str(settings.get("teacher", "")).startswith(IMPORTED):
            raise ConfigError(
                "An imported cache has no teacher that could encode anything again.",
                where=str(config.cache),
                next_command=renew_command(settings, config.cache),
            )
        overrides = {
            "output": config.cache,
            "weights": config.weights,
            "data_root": config.data_root,
            "device": config.device,
            "disk_cache": config.disk_cache,
            "disk_cache_gb": config.disk_cache_gb,
        }
        given = {key: value for key, value in overrides.items() if value is not None}
        extraction = build_config(ExtractConfig, settings, given, where=f"{config.cache}/{PROVENANCE_FILE}")
        teacher, dataset = open_inputs(extraction)
        return repair(extraction, teacher, dataset)


def repair(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> RepairResult:
    """As `run_repair`, with the teacher and dataset open and `config.output` the cache."""
    location = location_of(config)
    first = report = verify_cache(location)
    encoded = 0
    for _ in range(_ROUNDS):
        if report.is_sound:
            break
        encoded += _mend(config, location, teacher, dataset, report)
        report = verify_cache(location)
    if not report.is_sound:
        raise describe_findings(report)
    return RepairResult(
        path=location,
        findings=tuple((finding.path, finding.problem) for finding in first.findings),
        encoded_units=encoded,
        is_identical=all(report.files.get(path) == entry for path, entry in first.files.items()),
    )


def _mend(config: ExtractConfig, location: Location, teacher: Teacher, dataset: Dataset, report: VerifyReport) -> int:
    sources = open_sources(config, teacher, dataset)
    identity = build_identity(config, teacher, dataset, sources)
    with open_mending(location, report, disk_cache_config(config.disk_cache, config.disk_cache_gb)) as mending:
        root = mending.destination.root
        _require_origin(root, identity, where=str(location))
        provenance = recover_provenance(root, where=str(location))
        mending.remove(COMPLETE_RECORD)
        _clear_away(mending, report)
        if report.bad_paths() & set(_planned_files(sources)):
            mending.remove(PLAN_RECORD)
        if not (root / PLAN_RECORD).is_file():
            make_plan(config, mending.destination, sources, identity, provenance=provenance)
        writer = CacheWriter(root)
        for source in sources:
            _take_back(mending, writer, source.modality, report)
    return extract(config, teacher, dataset).encoded_units


def _provenance_of(location: Location) -> dict[str, Any]:
    if not isinstance(location, Url):
        return recover_provenance(location, where=str(location))
    from advl_pipeline.cache.remote_mending import remote_metadata

    with remote_metadata(location) as root:
        return recover_provenance(root, where=location)


def recover_provenance(root: Path, *, where: str) -> dict[str, Any]:
    """Return the provenance from whichever of its three copies under `root` is sound; `where` names the cache.

    Raises:
        ConfigError: neither can be read.
    """
    copies = [*_parsed(root, PROVENANCE_FILE), *_attributes(root, "provenance"), *_planned_provenance(root)]
    recorded = _recorded_digest(root, PROVENANCE_FILE)
    for copy in copies:
        if hashlib.sha256(render_json(copy)).hexdigest() == recorded:
            return copy
    for copy in copies:
        if isinstance(copy.get("config"), dict):
            return copy
    raise ConfigError(
        "Nothing is left that says how this cache was made.",
        where=where,
        next_command="give the command that made it again",
    )


def _require_origin(root: Path, identity: Mapping[str, Any], *, where: str) -> None:
    copies = [*_parsed(root, IDENTITY_FILE), *_attributes(root, "identity")]
    if identity in copies:
        return
    with suppress(CorruptCache):
        if load_plan(root).identity_sha256 == digest(identity):
            return
    if not copies:
        raise CorruptCache("Nothing is left that says what this cache holds.", where=where)
    require_identity(
        identity, copies[0], where=where, next_command="give the --weights and --data-root that it was made with"
    )


def _planned_files(sources: Sequence[Source]) -> list[str]:
    planned = [PLAN_RECORD, IDENTITY_FILE, PROVENANCE_FILE]
    for source in sources:
        for spec in schema.plan_specs(source.modality, len(source.unit_ids())).values():
            planned += [spec.metadata_path, *spec.shard_paths()]
    return planned


def _clear_away(mending: Mending, report: VerifyReport) -> None:
    """Remove what stands where it should not: unrecorded files, links, damaged sets of confidences."""
    for name in report.bad_paths():
        mending.clear(name, is_recorded=name in report.files or _keeps(name))
        for key in _CONFIDENCE_KEY.findall(name):
            mending.remove_confidence(key)
    if _CONFIDENCES in report.bad_paths() & report.files.keys():
        mending.restore(_CONFIDENCES, group_metadata())


_CONFIDENCES = "confidence/zarr.json"
_CONFIDENCE_KEY = re.compile(r"^(?:confidence/|records/confidence-)([0-9a-f]{16})(?:/|\.json$)")


def _keeps(name: str) -> bool:
    # Records are dealt with shard by shard; the work folder may hold what an interrupted run needs.
    return name.startswith((f"{WORK_FOLDER}/", "records/"))


def _take_back(mending: Mending, writer: CacheWriter, modality: str, report: VerifyReport) -> None:
    """Un-commit the damaged shards of a modality, and stage what the sound ones add to the tables."""
    placement = writer.placement(modality)
    damaged = report.bad_paths()

    def is_sound(path: str) -> bool:
        return path in report.files and path not in damaged

    shape = writer.plan.modalities[modality]
    tables = schema.global_spec(
        modality, num_units=shape.num_units, global_dim=shape.global_dim, stored=writer.stored
    )
    stats = _statistics(report, modality, shape.num_units)
    stats_sound = all(is_sound(spec.shard_path(0)) for spec in stats.values())
    for shard in range(placement.num_shards):
        if not writer.is_committed(modality, shard):
            continue
        units = placement.units_of(shard)
        table_files = {
            tables.shard_path(table)
            for table in range(units.start // tables.shard_rows, (units.stop - 1) // tables.shard_rows + 1)
        }
        record = shard_record_path(modality, shard)
        own_files = [spec.shard_path(shard) for spec in writer.token_specs(modality).values()]
        if record in damaged or not all(is_sound(path) for path in own_files):
            mending.remove(record)
        elif stats_sound and all(is_sound(path) for path in table_files):
            with mending.holding(own_files):
                mending.stage(writer, modality, shard, stats)
        elif not mending.is_staged(writer, modality, shard):
            mending.remove(record)


def _statistics(report: VerifyReport, modality: str, num_units: int) -> dict[str, ArraySpec]:
    prefix = f"{modality}/stats/"
    names = {path.removeprefix(prefix).split("/")[0] for path in report.files if path.startswith(prefix)}
    return {name: schema.stat_spec(modality, name, num_units) for name in sorted(names - {"zarr.json"})}


def _parsed(root: Path, name: str) -> list[dict[str, Any]]:
    try:
        content = read_json(root, name)
    except CorruptCache:
        return []
    return [content] if isinstance(content, dict) else []


def _attributes(root: Path, key: str) -> list[dict[str, Any]]:
    for metadata in _parsed(root, ROOT_METADATA):
        try:
            content = metadata["attributes"]["advl"][key]
        except (KeyError, TypeError):
            continue
        if isinstance(content, dict):
            return [content]
    return []


def _planned_provenance(root: Path) -> list[dict[str, Any]]:
    with suppress(CorruptCache):
        provenance = load_plan(root).provenance
        return [] if provenance is None else [dict(provenance)]
    return []


def _recorded_digest(root: Path, name: str) -> str | None:
    for load in (load_complete, load_plan):
        with suppress(CorruptCache, KeyError):
            return load(root).files[name].sha256
    return None
