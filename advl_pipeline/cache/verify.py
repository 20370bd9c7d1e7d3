"""Verification: every byte against the commit records, the records against each other, the numbers for plausibility.

Before a run trains on a cache, `require_trustworthy` checks the files that changed since they were last verified. The
process that completes a cache notes size, inode and times of every recorded file in a file next to the cache. A file
that differs from its note is hashed, and noted again if it matches its record, so the next run hashes nothing. The
first run on a copy, or on a cache from elsewhere, hashes everything. Times are never compared with each other: a
wrong clock or a touched record proves nothing. `advl cache verify` hashes everything, which costs about as much as
reading it once. Only this finds bits that the disk lost on its own. Objects in a store are hashed on every fetch.

Shapes: N units, Q checked units, M token rows, D feature width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.base.errors import AdvlError, CorruptCache
from advl_pipeline.base.locations import Location
from advl_pipeline.cache import layout
from advl_pipeline.cache.arrays import MappedArray, UnitIds, are_spans, build_index
from advl_pipeline.cache.commit_records import (
    COMPLETE_RECORD,
    MODALITIES,
    PLAN_RECORD,
    committed_shards,
    load_complete,
    load_plan,
    load_shard,
    load_tables,
    shard_record_path,
    tables_record_path,
)
from advl_pipeline.cache.confidence import (
    committed_keys,
    confidence_record_path,
    load_confidence_record,
    unfinished_keys,
)
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.moments import moments_of, sums
from advl_pipeline.cache.quantise import is_finite
from advl_pipeline.cache.reader import TeacherCache
from advl_pipeline.cache.store import (
    IDENTITY_FILE,
    LOCKS,
    FileEntry,
    Files,
    Store,
    content_problem,
    hash_file,
    read_metadata,
    repair_command,
    require_cache,
    size_problem,
)
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import CacheWriter

_NORM_TOLERANCE = 1e-2
"""Relative tolerance of a stored norm; float16 rounding is a tenth of it."""

_ROUNDING = 1e-9
"""Rounding error of a moment, for a mean of 1."""

_FEATURES = re.compile(r"(image|text)/(global|tokens/(?!starts/|lengths/)\w+)/c/.+")

Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The checked files and the findings.

    `files` are the files listed by the readable records, `findings` the problem of each bad file, sorted by name.
    `contradict`: every file matches its record, but the files contradict one another. `recomputed` units were
    encoded again, and `worst` is the largest 1 - cosine between them and the stored features.
    """

    path: Location
    files: Files
    findings: Mapping[str, str]
    contradict: bool = False
    recomputed: int = 0
    worst: float = 0.0

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.files.values())

    @property
    def is_sound(self) -> bool:
        return not self.findings


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
        load_plan(store)  # A format that is no longer supported is refused, not repaired.
    findings: dict[str, str] = {}
    files = recorded_files(store, sizes, findings)
    numbers: StoredNumbers | None = None
    for name in sorted(files, key=lambda name: (is_bulk(name), name)):
        if numbers is None and is_bulk(name) and not findings:
            try:
                numbers = StoredNumbers(store)
            except AdvlError as error:
                findings[PLAN_RECORD] = error.what
        problem = size_problem(sizes, name, files[name].num_bytes) or file_problem(
            store, name, files[name], None if findings else numbers
        )
        if problem:
            findings.setdefault(name, problem)
        progress(files[name].num_bytes)
    if COMPLETE_RECORD not in findings:
        known = {*files, COMPLETE_RECORD, *map(confidence_record_path, committed_keys(sizes))}
        # Locks belong to a process that writes, such as a repair that verifies first.
        strays = [name for name in sizes if name not in known and not name.startswith(f"{LOCKS}/")]
        findings |= dict.fromkeys(strays, "it belongs to no record")
    if is_as_recorded := not findings:
        try:
            numbers = numbers or StoredNumbers(store)
            findings = numbers.senseless() or numbers.wrong_moments()
        except AdvlError as error:
            findings = {error.where or PLAN_RECORD: error.what}
    contradict = is_as_recorded and bool(findings)
    return VerifyReport(path=location, files=files, findings=dict(sorted(findings.items())), contradict=contradict)


def is_bulk(name: str) -> bool:
    """Return whether a file is a shard of features, the bulk of a cache."""
    return _FEATURES.fullmatch(name) is not None


def describe_findings(report: VerifyReport) -> CorruptCache:
    """Return the error of a command for a cache that is not sound."""
    lines = [f"{name}: {problem}" for name, problem in report.findings.items()]
    return CorruptCache(
        f"The cache is not sound: {len(lines)} finding(s).",
        where=str(report.path),
        why="\n         ".join(lines[:20] + (["..."] if len(lines) > 20 else [])),
        next_command=repair_command(report.path),
    )


def recorded_files(store: Store, sizes: Mapping[str, int], findings: dict[str, str]) -> Files:
    """Return the files listed by the complete record or, if it is damaged, by all other records.

    Args:
        findings: receives the problems of the records.
    """
    files: dict[str, FileEntry] = {}
    complete = _attempt(findings, COMPLETE_RECORD, partial(load_complete, store))
    if complete is not None:
        files |= complete.files
    else:
        plan = _attempt(findings, PLAN_RECORD, partial(load_plan, store))
        files |= plan.files if plan is not None else {}
        for modality in MODALITIES:
            if (name := tables_record_path(modality)) in sizes:
                files |= _attempt(findings, name, partial(load_tables, store, modality)) or {}
        for modality, shard in sorted(committed_shards(sizes)):
            read = partial(load_shard, store, modality, shard)
            record = _attempt(findings, shard_record_path(modality, shard), read)
            files |= record.files if record is not None else {}
    for key in committed_keys(sizes):
        record_of_set = _attempt(findings, confidence_record_path(key), partial(load_confidence_record, store, key))
        files |= record_of_set.files if record_of_set is not None else {}
    findings |= dict.fromkeys(map(confidence_record_path, unfinished_keys(sizes)), "it is missing")
    return files


def _attempt(findings: dict[str, str], path: str, read: Callable[[], Content]) -> Content | None:
    try:
        return read()
    except CorruptCache as error:
        findings.setdefault(path, error.why or error.what)
        return None


def file_problem(store: Store, name: str, entry: FileEntry, numbers: StoredNumbers | None = None) -> str | None:
    """Return the problem of a file, or None.

    Args:
        store: the store of the file.
        name: the file's name.
        entry: its recorded size and digest.
        numbers: also checks the numbers of the file if it is a shard of features.
    """
    try:
        with store.opened(name) as descriptor:
            problem = content_problem(hash_file(descriptor), entry)
            return numbers.problem(name, descriptor) if numbers is not None and problem is None else problem
    except CorruptCache as error:
        return error.why or error.what


class StoredNumbers:
    """Checker of a cache's features, shard by shard during hashing; it also sums them for their moments.

    After the last shard it checks what hashes cannot show: whether the files are consistent with each other.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer = CacheWriter(store)
        self._complete = load_complete(store)
        self._shards: dict[str, tuple[MappedArray, int]] = {}
        self._sums: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        self._norms: dict[str, npt.NDArray[np.float32]] = {}
        for modality, shape in self._writer.plan.modalities.items():
            norm = layout.stat_spec(modality, "norm", shape.num_units)
            self._norms[modality] = MappedArray(store, norm).whole()
            for spec in self._writer.row_specs(modality):
                array = MappedArray(store, spec)
                self._shards |= {spec.shard_path(shard): (array, shard) for shard in range(spec.num_shards)}

    def problem(self, name: str, descriptor: int) -> str | None:
        """Return the problem with the numbers of a shard, or None; always None for other files."""
        if name not in self._shards:
            return None
        array, shard = self._shards[name]
        _, rows = array.mapped(shard, descriptor)
        if array.spec.dtype.startswith("float") and not is_finite(rows):
            return "it holds values that are not finite"
        modality, _, kind = array.spec.path.partition("/")
        if kind == "tokens/char_spans" and not are_spans(rows):
            return "it holds spans that are none"
        if kind == "global":
            units = slice(shard * array.spec.shard_rows, shard * array.spec.shard_rows + array.spec.valid_rows(shard))
            norm_N = self._norms[modality][units]
            if not self._complete.clipped.get(modality) and not has_its_norms(rows[: len(norm_N)], norm_N):
                return "its rows are neither of unit length nor as long as stats/norm says"
            self._add(modality, "global", sums(rows))
        elif kind == "tokens/values":
            scales = self._writer.token_specs(modality).get("scales")
            scale_M = None if scales is None else MappedArray(self._store, scales).shard(shard)[: len(rows)]
            self._add(modality, "token", sums(rows, scale_M))
        return None

    def _add(self, modality: str, kind: str, added_2D: npt.NDArray[np.float64]) -> None:
        sums_of = self._sums.setdefault(modality, {})
        sums_of[kind] = sums_of.get(kind, np.zeros_like(added_2D)) + added_2D

    def senseless(self) -> dict[str, str]:
        """Return the files that contradict the plan, the units or the records of the shards."""
        findings: dict[str, str] = {}

        def expect(is_so: bool, path: str, problem: str) -> None:
            if not is_so:
                findings.setdefault(path, problem)

        store, writer, complete = self._store, self._writer, self._complete
        try:
            is_planned = digest(read_metadata(store, IDENTITY_FILE)) == writer.plan.identity_sha256
            expect(is_planned, IDENTITY_FILE, "it is not what the cache was planned for")
            # First, because the index cannot be read if the record misreports the units.
            expected = writer.complete_record({name: load_tables(store, name) for name in writer.plan.modalities})
            expect(complete == expected, COMPLETE_RECORD, "it is not what the other records say")
            for modality, shape in writer.plan.modalities.items():
                placement = writer.placement(modality)
                planned = layout.plan_specs(modality, shape.num_units)
                starts_N = MappedArray(store, planned["starts"]).whole()
                is_placed = np.array_equal(starts_N, placement.starts_N)
                expect(is_placed, planned["starts"].path, "units overlap, overrun or leave gaps")
                moments = layout.moment_specs(modality, writer.plan)
                for name, spec in moments.items():
                    moment_D = MappedArray(store, spec).whole()
                    expect(is_finite(moment_D), spec.path, "it holds values that are not finite")
                    is_varied = not name.endswith("variance") or shape.num_units == 1 or bool(moment_D.any())
                    expect(is_varied, spec.path, "all features are alike: their variance is zero")
                readable_N = self._readable(modality)
                index = dict(zip(("prefix", "unit"), build_index(writer.unit_ids(modality), readable_N), strict=True))
                num_rows, num_readable = placement.num_rows, int(readable_N.sum())
                for spec in layout.array_specs(modality, writer.plan, num_rows=num_rows, num_readable=num_readable):
                    is_planned = store.get(spec.metadata_path) == spec.metadata()
                    expect(is_planned, spec.metadata_path, "it is not what the plan says")
                    is_listed = set(spec.shard_paths()) <= complete.files.keys()
                    expect(is_listed, COMPLETE_RECORD, f"it does not list all of {spec.path}")
                for name, spec in layout.index_specs(modality, num_readable).items():
                    is_index = np.array_equal(MappedArray(store, spec).whole(), index[name])
                    expect(is_index, spec.path, "it is not the index of the units")
        except AdvlError as error:
            findings.setdefault(error.where or PLAN_RECORD, error.what)
        return findings

    def _readable(self, modality: str) -> npt.NDArray[np.bool_]:
        quarantined = self._complete.quarantined.get(modality, {})
        return np.array([unit_id not in quarantined for unit_id in UnitIds(self._writer.unit_ids(modality), None)])

    def wrong_moments(self) -> dict[str, str]:
        """Return the moments that do not match the features; all shards must have been checked before."""
        findings = {}
        for modality, sums_of in self._sums.items():
            lengths_N = self._writer.placement(modality).lengths_N
            moments = moments_of(sums_of, self._readable(modality), lengths_N)
            for name, spec in layout.moment_specs(modality, self._writer.plan).items():
                kind, moment = name.split("_")
                # The sums are over other blocks than the writer's, which changes their last bits.
                rounding_D = _ROUNDING * (1 + moments[f"{kind}_mean"] ** 2)
                if not np.isclose(MappedArray(self._store, spec).whole(), moments[name], atol=rounding_D).all():
                    findings[spec.shard_path(0)] = f"it is not the {moment} of the features"
        return findings


def has_its_norms(global_QD: npt.NDArray[Any], norm_Q: npt.NDArray[np.float32]) -> bool:
    """Return whether all features have the teacher's norms, or all have unit length."""
    stored_Q = np.linalg.norm(global_QD.astype(np.float32), axis=1)
    unit_Q = np.where(norm_Q > 0, np.float32(1), np.float32(0))
    return any(np.allclose(stored_Q, wanted_Q, rtol=_NORM_TOLERANCE, atol=1e-4) for wanted_Q in (norm_Q, unit_Q))


def require_trustworthy(cache: TeacherCache) -> None:
    """Refuse a cache that differs from its commit record; only changed files are hashed.

    Args:
        cache: an open cache, so every file exists and has its recorded size.

    Raises:
        CorruptCache: a file changed.
        StorageError: the object store failed.
    """
    store = open_store(cache.path)
    files = load_complete(store).files
    changed = store.changed(files)
    if not changed:
        return
    to_hash = {name: files[name] for name in changed}
    findings = {}
    num_bytes = sum(entry.num_bytes for entry in to_hash.values())
    with tqdm(total=num_bytes, desc=f"checking {cache.path}", unit="B", unit_scale=True) as bar:
        for name, entry in to_hash.items():
            if problem := file_problem(store, name, entry):
                findings[name] = problem
            bar.update(entry.num_bytes)
    if findings:
        raise describe_findings(VerifyReport(path=store.location, files=to_hash, findings=findings))
    store.mark_verified(changed)
