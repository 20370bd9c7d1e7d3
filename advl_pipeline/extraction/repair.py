"""`advl cache repair`: damaged parts return to the state before their commit, then the extraction resumes.

Metadata files have copies or follow from other files, so they are restored from the remaining ones. A shard is
encoded again only if one of its files, or one of the teacher's statistics, is damaged. Sound files are not touched.
Only its own record attests that a shard is sound, and the result says so. If files match their records but contradict
each other, the records prove nothing, and every shard that may be affected is encoded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from advl_pipeline.base.compute import resolved
from advl_pipeline.base.errors import CorruptCache, IdentityMismatch
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.base.locations import Location
from advl_pipeline.cache import layout
from advl_pipeline.cache.commit_records import (
    COMPLETE_RECORD,
    PLAN_RECORD,
    ROOT_METADATA,
    load_complete,
    load_plan,
    shard_record_path,
)
from advl_pipeline.cache.confidence import clear_away
from advl_pipeline.cache.identity import PROVENANCE_FILE, digest, extract_command, require_identity
from advl_pipeline.cache.parts import holding
from advl_pipeline.cache.store import (
    IDENTITY_FILE,
    WORK_FOLDER,
    Readable,
    entry_of,
    read_metadata,
    render_json,
    require_cache,
)
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.verify import VerifyReport, describe_findings, verify_cache
from advl_pipeline.cache.writer import CacheWriter, load_staged, stage
from advl_pipeline.datasets.records import Dataset
from advl_pipeline.extraction.config import ExtractConfig, RepairConfig
from advl_pipeline.extraction.planning import build_identity, make_plan
from advl_pipeline.extraction.recompute import open_recorded, recorded_extraction
from advl_pipeline.extraction.run import extract_held, store_of
from advl_pipeline.extraction.sources import open_sources
from advl_pipeline.teachers.interface import Teacher

_ROUNDS = 2
"""Without the complete record, files that belong to no record are found only in a second round."""


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """The findings, the number of units encoded again, and whether every byte is as recorded.

    `trusted_units` match their records and were kept; they were not compared with the teacher.
    """

    path: Location
    findings: tuple[tuple[str, str], ...]
    encoded_units: int
    trusted_units: int
    is_identical: bool


def run_repair(config: RepairConfig) -> RepairResult:
    """Restore a damaged or unfinished cache with its original teacher and dataset.

    Raises:
        ConfigError: there is no cache, too little is left of it to know how it was made, or its record names paths
            that were not given.
        IdentityMismatch: the teacher or the dataset has changed.
        CorruptCache: the cache is still not sound after the repair.
        InUse: another process is writing the cache.
    """
    with interruptible("The repair", kept="every committed shard is kept"), ExitStack() as stack:
        store = open_store(config.cache)
        require_cache(store)
        require_own_records(store)
        extraction = recorded_extraction(recover_provenance(store)["config"], config, command="cache repair")
        extraction = resolved(replace(extraction, output=config.cache))
        teacher, dataset = open_recorded(extraction, stack)
        return repair(extraction, teacher, dataset)


def repair(config: ExtractConfig, teacher: Teacher, dataset: Dataset) -> RepairResult:
    """As `run_repair`, with an open teacher and dataset; `config.output` is the cache."""
    sources = open_sources(config, teacher, dataset)
    identity = build_identity(config, teacher, dataset, sources)
    store = store_of(config)
    with holding(store):
        require_own_records(store)
        first = report = verify_cache(store.location)
        encoded = 0
        for _ in range(_ROUNDS):
            if report.is_sound:
                break
            _require_origin(store, identity)
            provenance = recover_provenance(store)
            # The complete record goes first. Other records are handled shard by shard; the work folder may contain
            # files that an interrupted run needs.
            store.delete(COMPLETE_RECORD)
            bad, kept = report.findings.keys(), ("records/", f"{WORK_FOLDER}/")
            store.delete(*(name for name in bad - report.files.keys() if not name.startswith(kept)))
            clear_away(store, bad, report.files)
            planned = {PLAN_RECORD, IDENTITY_FILE, PROVENANCE_FILE}
            for source in sources:
                for spec in layout.plan_specs(source.modality, len(source.unit_ids())).values():
                    planned |= {spec.metadata_path, *spec.shard_paths()}
            if bad & planned:
                store.delete(PLAN_RECORD)
            if PLAN_RECORD not in store.list("records"):
                make_plan(config, store, sources, identity, repaired=provenance)
            writer = CacheWriter(store)
            for modality in writer.plan.modalities:
                _take_back_shards(writer, modality, report)
            encoded += extract_held(config, store, sources, identity, dataset).encoded_units
            report = verify_cache(store.location)
    if not report.is_sound:
        raise describe_findings(report)
    return RepairResult(
        path=store.location,
        findings=tuple(first.findings.items()),
        encoded_units=encoded,
        trusted_units=max(0, sum(len(source.unit_ids()) for source in sources) - encoded) if first.findings else 0,
        is_identical=all(report.files.get(path) == entry for path, entry in first.files.items()),
    )


def _take_back_shards(writer: CacheWriter, modality: str, report: VerifyReport) -> None:
    """Un-commit the damaged shards of a modality, and stage the sound ones' parts of the tables."""
    store, placement, damaged = writer.store, writer.placement(modality), report.findings

    def is_sound(path: str) -> bool:
        return path in report.files and path not in damaged

    # A finding in a record, or in the plan, concerns both modalities.
    others = tuple(f"{other}/" for other in writer.plan.modalities if other != modality)
    is_contradicted = report.contradict and not all(path.startswith(others) for path in damaged)
    tables = layout.global_spec(modality, writer.plan)
    statistics = f"{modality}/stats/"
    names = {path.removeprefix(statistics).split("/")[0] for path in report.files if path.startswith(statistics)}
    stats = {name: layout.stat_spec(modality, name, placement.num_units) for name in sorted(names - {"zarr.json"})}
    stats_sound = all(is_sound(spec.shard_path(0)) for spec in stats.values())
    pending = writer.pending(modality)
    for shard in range(placement.num_shards):
        if shard in pending:
            continue
        units = placement.units_of(shard)
        table_files = [
            tables.shard_path(table)
            for table in range(units.start // tables.shard_rows, (units.stop - 1) // tables.shard_rows + 1)
        ]
        record = shard_record_path(modality, shard)
        own_files = [spec.shard_path(shard) for spec in writer.token_specs(modality).values()]
        if is_contradicted or record in damaged or not all(map(is_sound, own_files)):
            store.delete(record)
        elif stats_sound and all(map(is_sound, table_files)):
            stage(store, modality, shard, writer.content_from_tables(modality, shard, stats))
        else:
            try:
                load_staged(store, modality, shard)
            except CorruptCache:
                store.delete(record)


def require_own_records(store: Readable) -> None:
    """Refuse records of another cache: a repair by them would replace this one.

    Raises:
        IdentityMismatch: the identity file and the root group agree on an identity that differs from the plan's.
    """
    identities = _copies(store, IDENTITY_FILE, "identity")
    with suppress(CorruptCache):
        planned = load_plan(store).identity_sha256
        # A single copy may be damaged, so both must agree.
        if len(identities) == 2 and identities[0] == identities[1] and planned != digest(identities[0]):
            advice, command = "copy back the folder records/ that belongs here", ""
            with suppress(CorruptCache, KeyError, TypeError):
                config = read_metadata(store, ROOT_METADATA)["attributes"]["advl"]["provenance"]["config"]
                command = extract_command(config, store.location, renew=True, note=f"or {advice}")
            raise IdentityMismatch(
                "The records in this folder belong to another cache.",
                where=store.where(PLAN_RECORD),
                why=f"{IDENTITY_FILE} and {ROOT_METADATA} agree on an identity that the plan does not have",
                next_command=command or advice,
            )


def recover_provenance(store: Readable) -> dict[str, Any]:
    """Return the provenance from a sound one of its three copies.

    Raises:
        ConfigError: no copy can be read.
    """
    copies, recorded = _copies(store, PROVENANCE_FILE, "provenance"), None
    with suppress(CorruptCache):
        plan = load_plan(store)
        copies += [] if plan.provenance is None else [dict(plan.provenance)]
        recorded = plan.files.get(PROVENANCE_FILE)
    with suppress(CorruptCache):
        recorded = load_complete(store).files.get(PROVENANCE_FILE)
    usable = [copy for copy in copies if isinstance(copy.get("config"), dict)]
    sound = [copy for copy in copies if entry_of(render_json(copy)) == recorded]
    if not sound + usable:
        raise store.refused(
            "Nothing is left that says how this cache was made.", next_command="give the command that made it again"
        )
    return (sound + usable)[0]


def _require_origin(store: Readable, identity: Mapping[str, Any]) -> None:
    copies = _copies(store, IDENTITY_FILE, "identity")
    with suppress(CorruptCache):
        if identity in copies or load_plan(store).identity_sha256 == digest(identity):
            return
    if not copies:
        raise CorruptCache("Nothing is left that says what this cache holds.", where=str(store.location))
    require_identity(
        identity,
        copies[0],
        where=str(store.location),
        next_command="give the --weights and --data-root that it was made with",
    )


def _copies(store: Readable, name: str, key: str) -> list[dict[str, Any]]:
    """Return the readable ones among a metadata file and its copy in the root group."""
    copies = []
    with suppress(CorruptCache):
        copies.append(read_metadata(store, name))
    with suppress(CorruptCache, KeyError, TypeError):
        copies.append(read_metadata(store, ROOT_METADATA)["attributes"]["advl"][key])
    return [copy for copy in copies if isinstance(copy, dict)]
