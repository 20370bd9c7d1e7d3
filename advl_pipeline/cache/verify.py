"""Verification: every byte against the commit records, every record against the others, the numbers against sense.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np

from advl_pipeline.cache import schema
from advl_pipeline.cache.arrays import CacheArray, MappedArray
from advl_pipeline.cache.checks import require_cache, size_problem
from advl_pipeline.cache.compressed import open_array
from advl_pipeline.cache.confidence import committed_keys, confidence_key, confidence_record_path, unfinished_keys
from advl_pipeline.cache.files import FileEntry, Files, hash_file
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.index import UnitIds, build_index
from advl_pipeline.cache.quantise import is_finite
from advl_pipeline.cache.records import (
    COMPLETE_RECORD,
    IDENTITY_FILE,
    MODALITIES,
    PLAN_RECORD,
    committed_shards,
    files_from_json,
    load_complete,
    load_plan,
    load_shard,
    load_tables,
    shard_record_path,
    tables_record_path,
    unseal,
)
from advl_pipeline.cache.store import Store, read_json, repair_command
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.token_rows import are_spans
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import AdvlError, CorruptCache
from advl_pipeline.locations import Location

Arguments = ParamSpec("Arguments")
Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing wrong: the file, relative to the cache, and what is wrong with it."""

    path: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and what was found. `files` is what the records that could be read list."""

    path: Location
    files: Files
    num_bytes: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        return not self.findings

    def bad_paths(self) -> frozenset[str]:
        return frozenset(finding.path for finding in self.findings)


def verify_cache(location: Location, *, progress: Callable[[int], object] = lambda _: None) -> VerifyReport:
    """Check a complete cache, each file read once.

    Args:
        progress: called with the bytes read after each file.

    Raises:
        ConfigError: there is no cache.
        StorageError: the store refuses access or cannot be reached.
    """
    store = open_store(location)
    sizes = require_cache(store)
    findings: list[Finding] = []
    files = recorded_files(store, sizes, findings)
    rows: dict[str, tuple[CacheArray, int]] = {}
    small = [name for name in sorted(files) if not is_bulk(name)]
    for name in [*small, *sorted(files.keys() - set(small))]:
        if not rows and is_bulk(name) and not findings:
            rows = _feature_shards(store, findings)
        problem = size_problem(sizes, name, files[name].num_bytes) or file_problem(
            store, name, files[name], None if findings else rows.get(name)
        )
        if problem:
            findings.append(Finding(path=name, problem=problem))
        progress(files[name].num_bytes)
    if COMPLETE_RECORD not in {finding.path for finding in findings}:
        known = {*files, COMPLETE_RECORD, *map(confidence_record_path, committed_keys(sizes))}
        findings += [Finding(path=name, problem="it belongs to no record") for name in sizes if name not in known]
    if not findings:
        findings += _senseless(store)
    unique = {finding.path: finding for finding in reversed(findings)}
    return VerifyReport(
        path=location,
        files=files,
        num_bytes=sum(entry.num_bytes for entry in files.values()),
        findings=tuple(unique[path] for path in sorted(unique)),
    )


def is_bulk(name: str) -> bool:
    """Whether a file is a shard of features, which is what a cache mostly consists of."""
    array = name.partition("/c/")[0].split("/", 1)
    return "/c/" in name and array[0] in MODALITIES and array[-1] in _FEATURES


_FEATURES = ("global", "tokens/values", "tokens/scales", "tokens/char_spans", "tokens/kept")


def describe_findings(report: VerifyReport) -> CorruptCache:
    """Return the error that a command ends with when a cache is not sound."""
    lines = [f"{finding.path}: {finding.problem}" for finding in report.findings]
    return CorruptCache(
        f"The cache is not sound: {len(lines)} finding(s).",
        where=str(report.path),
        why="\n         ".join(lines[:20] + (["..."] if len(lines) > 20 else [])),
        next_command=repair_command(report.path),
    )


def recorded_files(store: Store, sizes: Mapping[str, int], findings: list[Finding]) -> Files:
    """Return the files that records list: those of the complete record, or of all others where it is damaged.

    Args:
        findings: what is wrong with the records is added here.
    """
    files: dict[str, FileEntry] = {}
    complete = _attempt(findings, COMPLETE_RECORD, load_complete, store)
    if complete is not None:
        files |= complete.files
    else:
        files |= _files_of_parts(store, sizes, findings)
    for key in committed_keys(sizes):
        name = confidence_record_path(key)
        content = _attempt(findings, name, unseal, store, name)
        if content is None:
            continue
        files |= files_from_json(content["files"])
        if confidence_key(content["identity"]) != key:
            findings.append(Finding(path=name, problem="it stands under another set's name"))
    unfinished = map(confidence_record_path, unfinished_keys(sizes))
    findings += [Finding(path=name, problem="it is missing") for name in unfinished]
    return files


def _files_of_parts(store: Store, sizes: Mapping[str, int], findings: list[Finding]) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    plan = _attempt(findings, PLAN_RECORD, load_plan, store)
    files |= plan.files if plan is not None else {}
    for modality in MODALITIES:
        if tables_record_path(modality) in sizes:
            files |= _attempt(findings, tables_record_path(modality), load_tables, store, modality) or {}
    for modality, shard in sorted(committed_shards(sizes)):
        record = _attempt(findings, shard_record_path(modality, shard), load_shard, store, modality, shard)
        files |= record.files if record is not None else {}
    return files


def _attempt(
    findings: list[Finding],
    path: str,
    read: Callable[Arguments, Content],
    *arguments: Arguments.args,
    **none: Arguments.kwargs,
) -> Content | None:
    try:
        return read(*arguments, **none)
    except CorruptCache as error:
        findings.append(Finding(path=path, problem=error.why or error.what))
        return None


def file_problem(store: Store, name: str, entry: FileEntry, rows: tuple[CacheArray, int] | None = None) -> str | None:
    """Return what is wrong with a file, or None; with the numbers in it too where it is a shard (array, number)."""
    try:
        with store.opened(name) as descriptor:
            found = hash_file(descriptor)
            if found.num_bytes != entry.num_bytes:
                return f"it has {found.num_bytes} bytes instead of {entry.num_bytes}"
            if found != entry:
                return "its content changed"
            if rows is not None:
                array, shard = rows
                array.map_shard(shard, descriptor)
                return _row_problem(array, shard)
            return None
    except CorruptCache as error:
        return error.why or error.what


def _feature_shards(store: Store, findings: list[Finding]) -> dict[str, tuple[CacheArray, int]]:
    """Return the array and the number of each shard of features."""
    try:
        writer = CacheWriter(store)
        arrays = [
            open_array(store, spec) for modality in writer.plan.modalities for spec in writer.row_specs(modality)
        ]
        return {
            array.spec.shard_path(shard): (array, shard) for array in arrays for shard in range(array.spec.num_shards)
        }
    except AdvlError as error:
        findings.append(Finding(path=PLAN_RECORD, problem=error.what))
        return {}


def _row_problem(array: CacheArray, shard: int) -> str | None:
    rows = array.shard(shard)
    array.forget(shard)
    if array.spec.dtype.startswith("float") and not is_finite(rows):
        return "it holds values that are not finite"
    if array.spec.path.endswith("/char_spans") and not are_spans(rows):
        return "it holds spans that are none"
    return None


def _senseless(store: Store) -> list[Finding]:
    """Look at what hashes cannot tell: whether what was written makes a cache."""
    try:
        writer = CacheWriter(store)
        findings = []
        if digest(read_json(store, IDENTITY_FILE)) != writer.plan.identity_sha256:
            findings.append(Finding(path=IDENTITY_FILE, problem="it is not what the cache was planned for"))
        for modality in writer.plan.modalities:
            findings += _senseless_modality(writer, modality)
            findings += _misdescribed(writer, modality)
            findings += _senseless_index(writer, modality)
        return findings
    except AdvlError as error:
        return [Finding(path=error.where or PLAN_RECORD, problem=error.what)]


def _senseless_modality(writer: CacheWriter, modality: str) -> list[Finding]:
    findings = []
    shape, placement = writer.plan.modalities[modality], writer.placement(modality)
    starts_N = MappedArray(writer.store, schema.plan_specs(modality, shape.num_units)["starts"]).whole()
    if not np.array_equal(starts_N, placement.starts_N):
        findings.append(Finding(path=f"{modality}/tokens/starts", problem="units overlap, overrun or leave gaps"))
    for name, spec in schema.moment_specs(modality, writer.plan).items():
        moment_D = MappedArray(writer.store, spec).whole()
        if not is_finite(moment_D):
            findings.append(Finding(path=spec.path, problem="it holds values that are not finite"))
        elif name.endswith("variance") and shape.num_units > 1 and not moment_D.any():
            findings.append(Finding(path=spec.path, problem="all features are alike: their variance is zero"))
    return findings


def _misdescribed(writer: CacheWriter, modality: str) -> list[Finding]:
    specs = [
        *schema.plan_specs(modality, writer.plan.modalities[modality].num_units).values(),
        *writer.row_specs(modality),
        *schema.moment_specs(modality, writer.plan).values(),
    ]
    return [
        Finding(path=spec.metadata_path, problem="it is not what the plan says")
        for spec in specs
        if writer.store.get(spec.metadata_path) != spec.metadata()
    ]


def _senseless_index(writer: CacheWriter, modality: str) -> list[Finding]:
    unit_ids_N16 = writer.unit_ids(modality)
    quarantined = load_complete(writer.store).quarantined.get(modality, {})
    readable_N = np.array([unit_id not in quarantined for unit_id in UnitIds(unit_ids_N16, None)])
    expected = dict(zip(("prefix", "unit"), build_index(unit_ids_N16, readable_N), strict=True))
    return [
        Finding(path=spec.path, problem="it is not the index of the units")
        for name, spec in schema.index_specs(modality, int(readable_N.sum())).items()
        if not np.array_equal(MappedArray(writer.store, spec).whole(), expected[name])
    ]
