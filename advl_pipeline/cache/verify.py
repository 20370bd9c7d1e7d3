"""Verification: every byte against the commit records, every record against the others, the numbers against sense.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from advl_pipeline.cache import schema
from advl_pipeline.cache.arrays import MappedArray, open_array
from advl_pipeline.cache.checks import require_cache
from advl_pipeline.cache.confidence import confidence_key, unfinished_confidences
from advl_pipeline.cache.files import FileEntry, hash_file, read_json, read_small, safe_path
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.index import UnitIds, build_index
from advl_pipeline.cache.layout import ArraySpec
from advl_pipeline.cache.quantise import is_finite
from advl_pipeline.cache.records import (
    COMPLETE_RECORD,
    IDENTITY_FILE,
    MODALITIES,
    PLAN_RECORD,
    Files,
    confidence_record_path,
    files_from_json,
    load_complete,
    load_plan,
    load_shard,
    load_tables,
    shard_record_path,
    tables_record_path,
    unseal,
)
from advl_pipeline.cache.spans import are_spans
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import AdvlError, CorruptCache
from advl_pipeline.locations import Location, Url

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
    """Check a complete cache.

    Args:
        location: the cache's folder or URL.
        progress: called with the bytes read after each file.

    Raises:
        ConfigError: there is no cache.
    """
    if isinstance(location, Url):
        from advl_pipeline.cache.remote_verify import verify_remote_cache

        return verify_remote_cache(location, progress=progress)
    root = location
    require_cache(root)
    findings: list[Finding] = []
    files = recorded_files(root, findings)
    num_bytes = 0
    for name, entry in sorted(files.items()):
        problem = file_problem(root, name, entry)
        if problem:
            findings.append(Finding(path=name, problem=problem))
        num_bytes += entry.num_bytes
        progress(entry.num_bytes)
    if COMPLETE_RECORD not in {finding.path for finding in findings}:
        findings += _unexpected(root, files)
    if not findings:
        findings += senseless(root)
    return VerifyReport(path=root, files=files, num_bytes=num_bytes, findings=one_per_file(findings))


def one_per_file(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the first finding of each file, by name."""
    unique = {finding.path: finding for finding in reversed(findings)}
    return tuple(unique[path] for path in sorted(unique))


def describe_findings(report: VerifyReport) -> CorruptCache:
    """Return the error that a command ends with when a cache is not sound."""
    lines = [f"{finding.path}: {finding.problem}" for finding in report.findings]
    return CorruptCache(
        f"The cache is not sound: {len(lines)} finding(s).",
        where=str(report.path),
        why="\n         ".join(lines[:20] + (["..."] if len(lines) > 20 else [])),
        next_command=f"advl cache repair {report.path}",
    )


def recorded_files(root: Path, findings: list[Finding]) -> Files:
    """Return the files that records list: those of the complete record, or of all others where it is damaged.

    What is wrong with the records is added to the findings.
    """
    files: dict[str, FileEntry] = {}
    complete = _attempt(findings, COMPLETE_RECORD, load_complete, root)
    if complete is not None:
        files |= complete.files
    else:
        files |= _files_of_parts(root, findings)
    for path in sorted((root / "records").glob("confidence-*.json")):
        name = f"records/{path.name}"
        content = _attempt(findings, name, unseal, root, name)
        if content is None:
            continue
        files |= files_from_json(content["files"])
        if confidence_record_path(confidence_key(content["identity"])) != name:
            findings.append(Finding(path=name, problem="it stands under another set's name"))
    findings += [
        Finding(path=confidence_record_path(key), problem="it is missing") for key in unfinished_confidences(root)
    ]
    return files


def _files_of_parts(root: Path, findings: list[Finding]) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    plan = _attempt(findings, PLAN_RECORD, load_plan, root)
    files |= plan.files if plan is not None else {}
    for modality in MODALITIES:
        if (root / tables_record_path(modality)).exists():
            files |= _attempt(findings, tables_record_path(modality), load_tables, root, modality) or {}
    for modality, shard in committed_shards(root):
        record = _attempt(findings, shard_record_path(modality, shard), load_shard, root, modality, shard)
        files |= record.files if record is not None else {}
    return files


def committed_shards(root: Path) -> list[tuple[str, int]]:
    """Return the shards that have a record, sound or not."""
    names = [path.stem.rpartition("-") for path in sorted((root / "records").glob("*.json"))]
    return [(modality, int(number)) for modality, _, number in names if modality in MODALITIES and number.isdigit()]


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


def file_problem(root: Path, name: str, entry: FileEntry) -> str | None:
    """Return what is wrong with a file, or None."""
    try:
        path = safe_path(root, name)
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return "it is not a plain file"
        if found.st_size != entry.num_bytes:
            return f"it has {found.st_size} bytes instead of {entry.num_bytes}"
        return None if hash_file(path) == entry else "its content changed"
    except CorruptCache as error:
        return error.what
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _unexpected(root: Path, files: Files) -> list[Finding]:
    known = (
        set(files) | {COMPLETE_RECORD} | {f"records/{path.name}" for path in root.glob("records/confidence-*.json")}
    )
    present = [
        str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_symlink() or not path.is_dir()
    ]
    return [Finding(path=name, problem="it belongs to no record") for name in present if name not in known]


def senseless(root: Path, *, features: bool = True) -> list[Finding]:
    """Look at what hashes cannot tell: whether the numbers that were written make a cache.

    `features` says whether to read the features themselves, too.
    """
    try:
        writer = CacheWriter(root)
        findings = []
        if digest(read_json(root, IDENTITY_FILE)) != writer.plan.identity_sha256:
            findings.append(Finding(path=IDENTITY_FILE, problem="it is not what the cache was planned for"))
        for modality in writer.plan.modalities:
            findings += _senseless_modality(root, writer, modality)
            findings += _misdescribed(root, writer, modality)
            if features:
                for spec in row_specs(writer, modality):
                    rows = (senseless_rows(root, spec, shard) for shard in range(spec.num_shards))
                    findings += [finding for finding in rows if finding is not None]
            findings += _senseless_index(root, writer, modality)
        return findings
    except AdvlError as error:
        return [Finding(path=error.where or PLAN_RECORD, problem=error.what)]


def _senseless_modality(root: Path, writer: CacheWriter, modality: str) -> list[Finding]:
    findings = []
    shape, placement = writer.plan.modalities[modality], writer.placement(modality)
    starts_N = MappedArray(root, schema.plan_specs(modality, shape.num_units)["starts"]).whole()
    if not np.array_equal(starts_N, placement.starts_N):
        findings.append(Finding(path=f"{modality}/tokens/starts", problem="units overlap, overrun or leave gaps"))
    for name, spec in schema.moment_specs(modality, global_dim=shape.global_dim, token_dim=shape.token_dim).items():
        moment_D = MappedArray(root, spec).whole()
        if not is_finite(moment_D):
            findings.append(Finding(path=spec.path, problem="it holds values that are not finite"))
        elif name.endswith("variance") and shape.num_units > 1 and not moment_D.any():
            findings.append(Finding(path=spec.path, problem="all features are alike: their variance is zero"))
    return findings


def row_specs(writer: CacheWriter, modality: str) -> list[ArraySpec]:
    """Return the arrays of a modality that cannot be known beforehand: features, scales, spans."""
    shape = writer.plan.modalities[modality]
    tables = schema.global_spec(
        modality, num_units=shape.num_units, global_dim=shape.global_dim, stored=writer.stored
    )
    return [tables, *writer.token_specs(modality).values()]


def _misdescribed(root: Path, writer: CacheWriter, modality: str) -> list[Finding]:
    shape = writer.plan.modalities[modality]
    specs = [
        *schema.plan_specs(modality, shape.num_units).values(),
        *row_specs(writer, modality),
        *schema.moment_specs(modality, global_dim=shape.global_dim, token_dim=shape.token_dim).values(),
    ]
    return [
        Finding(path=spec.metadata_path, problem="it is not what the plan says")
        for spec in specs
        if read_small(root, spec.metadata_path) != spec.metadata()
    ]


def _senseless_index(root: Path, writer: CacheWriter, modality: str) -> list[Finding]:
    unit_ids_N16 = writer.unit_ids(modality)
    quarantined = load_complete(root).quarantined.get(modality, {})
    readable_N = np.array([unit_id not in quarantined for unit_id in UnitIds(unit_ids_N16, None)])
    expected = dict(zip(("prefix", "unit"), build_index(unit_ids_N16, readable_N), strict=True))
    return [
        Finding(path=spec.path, problem="it is not the index of the units")
        for name, spec in schema.index_specs(modality, int(readable_N.sum())).items()
        if not np.array_equal(MappedArray(root, spec).whole(), expected[name])
    ]


def senseless_rows(root: Path, spec: ArraySpec, shard: int) -> Finding | None:
    """Return a finding if a shard holds values that are not finite, or spans that are none."""
    rows = open_array(root, spec).shard(shard)
    problem = None
    if spec.dtype.startswith("float") and not is_finite(rows):
        problem = "it holds values that are not finite"
    elif spec.path.endswith("/char_spans") and not are_spans(rows):
        problem = "it holds spans that are none"
    return Finding(path=spec.shard_path(shard), problem=problem) if problem else None
