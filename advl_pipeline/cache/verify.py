"""Verification: every byte against the commit records, every record against the others, the numbers against sense.

Shapes: N units, Q units looked at, M token rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache import schema
from advl_pipeline.cache.arrays import MappedArray
from advl_pipeline.cache.checks import require_cache, size_problem
from advl_pipeline.cache.commit_records import (
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
from advl_pipeline.cache.confidence import committed_keys, confidence_key, confidence_record_path, unfinished_keys
from advl_pipeline.cache.files import LOCKS, FileEntry, Files, hash_file
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.quantise import is_finite
from advl_pipeline.cache.shard_buffer import mean_and_variance, sums
from advl_pipeline.cache.store import Store, read_json, repair_command
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.token_rows import are_spans
from advl_pipeline.cache.unit_index import UnitIds, build_index
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import AdvlError, CorruptCache
from advl_pipeline.locations import Location

_NORM_TOLERANCE = 1e-2
"""Of a stored norm, relative; float16 is a tenth of that."""

_MOMENT_TOLERANCE = 1e-3
"""Of a stored moment: a thousandth of the standard deviation, or of the variance."""

_SMALLEST = 1e-12
_BLOCK_ROWS = 256

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
    findings: tuple[Finding, ...]

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.files.values())

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
        IdentityMismatch: the cache is a compressed one of version 0.2.
        StorageError: the store refuses access or cannot be reached.
    """
    store = open_store(location)
    sizes = require_cache(store)
    with suppress(CorruptCache):
        load_plan(store)  # A cache of a form that is not read any more is refused, not mended.
    findings: list[Finding] = []
    files = recorded_files(store, sizes, findings)
    numbers: StoredNumbers | None = None
    small = [name for name in sorted(files) if not is_bulk(name)]
    for name in [*small, *sorted(files.keys() - set(small))]:
        if numbers is None and is_bulk(name) and not findings:
            try:
                numbers = StoredNumbers(store)
            except AdvlError as error:
                findings.append(Finding(path=PLAN_RECORD, problem=error.what))
        problem = size_problem(sizes, name, files[name].num_bytes) or file_problem(
            store, name, files[name], None if findings else numbers
        )
        if problem:
            findings.append(Finding(path=name, problem=problem))
        progress(files[name].num_bytes)
    if COMPLETE_RECORD not in {finding.path for finding in findings}:
        known = {*files, COMPLETE_RECORD, *map(confidence_record_path, committed_keys(sizes))}
        # Locks are of who writes, such as a repair that verifies first.
        found = (name for name in sizes if name not in known and not name.startswith(f"{LOCKS}/"))
        findings += [Finding(path=name, problem="it belongs to no record") for name in found]
    if not findings:
        findings += _senseless(store)
    if not findings and numbers is not None:
        findings += numbers.wrong_moments()
    unique = {finding.path: finding for finding in reversed(findings)}
    return VerifyReport(
        path=location,
        files=files,
        findings=tuple(unique[path] for path in sorted(unique)),
    )


def is_bulk(name: str) -> bool:
    """Whether a file is a shard of features, which is what a cache mostly consists of."""
    array = name.partition("/c/")[0].split("/", 1)
    return "/c/" in name and array[0] in MODALITIES and array[-1] in _FEATURES


_FEATURES = (
    *("global", "tokens/values", "tokens/scales", "tokens/char_spans", "tokens/kept"),
    *(f"tokens/{name}" for name in schema.REGION_COLUMNS),
)


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
        plan = _attempt(findings, PLAN_RECORD, load_plan, store)
        files |= plan.files if plan is not None else {}
        for modality in MODALITIES:
            if tables_record_path(modality) in sizes:
                files |= _attempt(findings, tables_record_path(modality), load_tables, store, modality) or {}
        for modality, shard in sorted(committed_shards(sizes)):
            record = _attempt(findings, shard_record_path(modality, shard), load_shard, store, modality, shard)
            files |= record.files if record is not None else {}
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


def verify_files(store: Store, files: Files, *, progress: Callable[[int], object]) -> VerifyReport:
    """Check that files have the content that is recorded of them; `progress` is as in `verify_cache`."""
    findings = []
    for name, entry in files.items():
        if problem := file_problem(store, name, entry):
            findings.append(Finding(path=name, problem=problem))
        progress(entry.num_bytes)
    return VerifyReport(path=store.location, files=files, findings=tuple(findings))


def file_problem(store: Store, name: str, entry: FileEntry, numbers: StoredNumbers | None = None) -> str | None:
    """Return what is wrong with a file, or None.

    Args:
        store: that holds it.
        name: of the file.
        entry: what it must be.
        numbers: looks at the numbers in it too, where it is a shard of features.
    """
    try:
        with store.opened(name) as descriptor:
            found = hash_file(descriptor)
            if found.num_bytes != entry.num_bytes:
                return f"it has {found.num_bytes} bytes instead of {entry.num_bytes}"
            if found != entry:
                return "its content changed"
            return None if numbers is None else numbers.problem(name, descriptor)
    except CorruptCache as error:
        return error.why or error.what


class StoredNumbers:
    """The features of a cache, looked at shard by shard as they are hashed, and added up to their moments."""

    def __init__(self, store: Store) -> None:
        self._writer = CacheWriter(store)
        self._clipped = load_complete(store).clipped
        self._shards: dict[str, tuple[MappedArray, int]] = {}
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._norms: dict[str, npt.NDArray[np.float32]] = {}
        for modality, shape in self._writer.plan.modalities.items():
            norm = schema.stat_spec(modality, "norm", shape.num_units)
            self._norms[modality] = MappedArray(store, norm).whole()
            for spec in self._writer.row_specs(modality):
                array = MappedArray(store, spec)
                self._shards |= {spec.shard_path(shard): (array, shard) for shard in range(spec.num_shards)}

    def problem(self, name: str, descriptor: int) -> str | None:
        """Return what is wrong with the numbers of a shard, or None; other files have none."""
        if name not in self._shards:
            return None
        array, shard = self._shards[name]
        array.map_shard(shard, descriptor)
        rows = array.shard(shard)
        array.forget(shard)
        if array.spec.dtype.startswith("float") and not is_finite(rows):
            return "it holds values that are not finite"
        modality, _, kind = array.spec.path.partition("/")
        if kind == "tokens/char_spans" and not are_spans(rows):
            return "it holds spans that are none"
        if kind == "global":
            units = slice(shard * array.spec.shard_rows, shard * array.spec.shard_rows + array.spec.valid_rows(shard))
            norm_N = self._norms[modality][units]
            if not self._clipped.get(modality) and not has_its_norms(rows[: len(norm_N)], norm_N):
                return "its rows are neither of unit length nor as long as stats/norm says"
            self._add(modality, "global", sums(rows))
        elif kind == "tokens/values":
            scales = self._writer.token_specs(modality).get("scales")
            scale_M = None if scales is None else MappedArray(self._writer.store, scales).shard(shard)[: len(rows)]
            self._add(modality, "token", _approximate_sums(rows, scale_M))
        return None

    def _add(self, modality: str, kind: str, added_2D: npt.NDArray[np.float64]) -> None:
        key = f"{modality}/{kind}"
        self._sums[key] = self._sums.get(key, np.zeros_like(added_2D)) + added_2D

    def wrong_moments(self) -> list[Finding]:
        """Return the moments that are not those of the features; every shard must have been looked at."""
        store, findings = self._writer.store, []
        quarantined = load_complete(store).quarantined
        for modality in self._writer.plan.modalities:
            readable_N = _readable(self._writer.unit_ids(modality), quarantined.get(modality, {}))
            lengths_N = self._writer.placement(modality).lengths_N
            counts = {"global": int(readable_N.sum()), "token": int(lengths_N[readable_N].sum(dtype=np.int64))}
            specs = schema.moment_specs(modality, self._writer.plan)
            stored = {name: MappedArray(store, spec).whole() for name, spec in specs.items()}
            for kind in (name.removesuffix("_mean") for name in specs if name.endswith("_mean")):
                mean_D, variance_D = mean_and_variance(self._sums[f"{modality}/{kind}"], count=counts[kind])
                # Blocks are summed in float32, and codes of int8 not rounded to the float16 that they stand for.
                blur_D = _MOMENT_TOLERANCE * (variance_D + _MOMENT_TOLERANCE * mean_D**2)
                is_off = {
                    "mean": np.square(stored[f"{kind}_mean"] - mean_D) > _MOMENT_TOLERANCE * blur_D + _SMALLEST,
                    "variance": np.abs(stored[f"{kind}_variance"] - variance_D) > blur_D + _SMALLEST,
                }
                findings += [
                    Finding(
                        path=specs[f"{kind}_{moment}"].shard_path(0),
                        problem=f"it is not the {moment} of the features",
                    )
                    for moment, off_D in is_off.items()
                    if off_D.any()
                ]
        return findings


def has_its_norms(global_QD: npt.NDArray[Any], norm_Q: npt.NDArray[np.float32]) -> bool:
    """Say whether all features are as long as the teacher gave them, or all were scaled to unit length."""
    stored_Q = np.linalg.norm(global_QD.astype(np.float32), axis=1)
    unit_Q = np.where(norm_Q > 0, np.float32(1), np.float32(0))
    return any(np.allclose(stored_Q, wanted_Q, rtol=_NORM_TOLERANCE, atol=1e-4) for wanted_Q in (norm_Q, unit_Q))


def _approximate_sums(
    values_MD: npt.NDArray[Any], scale_M: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float64]:
    """As `shard_buffer.token_sums`, in float32 within blocks, which takes a third of the time."""
    total_2D = np.zeros((2, values_MD.shape[1]))
    for first in range(0, len(values_MD), _BLOCK_ROWS):
        block_MD = values_MD[first : first + _BLOCK_ROWS].astype(np.float32)
        if scale_M is not None:
            block_MD *= scale_M[first : first + _BLOCK_ROWS, None]
        total_2D[0] += block_MD.sum(axis=0)
        total_2D[1] += np.einsum("md,md->d", block_MD, block_MD)
    return total_2D


def _senseless(store: Store) -> list[Finding]:
    """Look at what hashes cannot tell: whether what was written makes a cache."""
    findings: list[Finding] = []
    try:
        writer = CacheWriter(store)
        if digest(read_json(store, IDENTITY_FILE)) != writer.plan.identity_sha256:
            findings.append(Finding(path=IDENTITY_FILE, problem="it is not what the cache was planned for"))
        for modality in writer.plan.modalities:
            # First, for by units that the record misreports the index cannot be read.
            findings += _misreported(writer, modality)
            findings += _senseless_arrays(writer, modality)
        return findings
    except AdvlError as error:
        return [*findings, Finding(path=error.where or PLAN_RECORD, problem=error.what)]


def _senseless_arrays(writer: CacheWriter, modality: str) -> list[Finding]:
    findings = []
    shape, placement = writer.plan.modalities[modality], writer.placement(modality)
    planned, moments = schema.plan_specs(modality, shape.num_units), schema.moment_specs(modality, writer.plan)
    starts_N = MappedArray(writer.store, planned["starts"]).whole()
    if not np.array_equal(starts_N, placement.starts_N):
        findings.append(Finding(path=f"{modality}/tokens/starts", problem="units overlap, overrun or leave gaps"))
    for name, spec in moments.items():
        moment_D = MappedArray(writer.store, spec).whole()
        if not is_finite(moment_D):
            findings.append(Finding(path=spec.path, problem="it holds values that are not finite"))
        elif name.endswith("variance") and shape.num_units > 1 and not moment_D.any():
            findings.append(Finding(path=spec.path, problem="all features are alike: their variance is zero"))
    findings += [
        Finding(path=spec.metadata_path, problem="it is not what the plan says")
        for spec in (*planned.values(), *writer.row_specs(modality), *moments.values())
        if writer.store.get(spec.metadata_path) != spec.metadata()
    ]
    unit_ids_N16 = writer.unit_ids(modality)
    readable_N = _readable(unit_ids_N16, load_complete(writer.store).quarantined.get(modality, {}))
    index = dict(zip(("prefix", "unit"), build_index(unit_ids_N16, readable_N), strict=True))
    for name, spec in schema.index_specs(modality, int(readable_N.sum())).items():
        if not np.array_equal(MappedArray(writer.store, spec).whole(), index[name]):
            findings.append(Finding(path=spec.path, problem="it is not the index of the units"))
    return findings


def _misreported(writer: CacheWriter, modality: str) -> list[Finding]:
    """Compare what the complete record says of units with what the records of the shards say."""
    complete = load_complete(writer.store)
    records = [load_shard(writer.store, modality, shard) for shard in range(writer.placement(modality).num_shards)]
    unit_ids = UnitIds(writer.unit_ids(modality), None)
    unreadable = {unit_ids[int(unit)]: why for record in records for unit, why in record.quarantined.items()}
    problems = []
    if complete.clipped.get(modality, 0) != sum(record.clipped for record in records):
        problems.append(f"its count of clipped {modality} values is not that of the shards")
    if any(complete.files.get(name) != entry for record in records for name, entry in record.files.items()):
        problems.append(f"what it says of {modality} shards is not what their records say")
    if complete.quarantined.get(modality, {}) != unreadable:
        problems.append(f"its unreadable {modality} units are not those of the shards")
    return [Finding(path=COMPLETE_RECORD, problem=problem) for problem in problems]


def _readable(unit_ids_N16: npt.NDArray[np.uint8], quarantined: Mapping[str, str]) -> npt.NDArray[np.bool_]:
    return np.array([unit_id not in quarantined for unit_id in UnitIds(unit_ids_N16, None)])
