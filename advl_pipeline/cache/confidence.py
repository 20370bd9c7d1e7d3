"""Confidence statistics of a cache: per example and estimator, the probability of the ground truth, and the fraction
of the wrong candidates that it outranks.

Each set has its own identity (estimator, task, split, folds, seed, examples) and is in `confidence/<key>/`. The key
is the beginning of the identity's digest. Sets can be added at any time. A sound set is never rewritten, even if it
is estimated again; a damaged one loses its record first. So if files do not match the record that a reader has read,
either the record was replaced or removed in the meantime, or the files are damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import CorruptCache
from advl_pipeline.base.locations import Location
from advl_pipeline.cache.commit_records import files_of, seal_record, sealed
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.layout import DTYPES, group_metadata, single_shard
from advl_pipeline.cache.store import FileEntry, Files, MissingFile, Overtaken, Readable, Store, get_recorded
from advl_pipeline.cache.stores import open_store

KEY_DIGITS = 16

_FOLDER = "confidence"
_GROUP = f"{_FOLDER}/zarr.json"
_RECORD = re.compile(r"records/confidence-([0-9a-f]+)\.json")
_OF_A_SET = re.compile(rf"(?:confidence/|records/confidence-)([0-9a-f]{{{KEY_DIGITS}}})(?:/.*|\.json)")


class ConfidenceSet(NamedTuple):
    """n example ids; `probability_N` (n,) float32 in [0, 1]; `outranked_N` likewise, NaN without wrong candidates."""

    example_ids: list[str]
    probability_N: npt.NDArray[np.float32]
    outranked_N: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceRecord:
    """The committed record of a set. `num_bytes` is the size of its example ids, in UTF-8."""

    identity: Mapping[str, Any]
    num_examples: int
    num_bytes: int
    files: Files


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceSummary:
    """A committed set, as `advl cache info` shows it."""

    key: str
    num_examples: int
    identity: Mapping[str, Any]


def confidence_key(identity: Mapping[str, Any]) -> str:
    """Return the name of the group of a set of confidences."""
    return digest(identity)[:KEY_DIGITS]


def confidence_record_path(key: str) -> str:
    return f"records/confidence-{key}.json"


def write_confidence(location: Location, identity: Mapping[str, Any], confidences: ConfidenceSet) -> None:
    """Add a set of confidences; an existing sound set is kept, no matter which process wrote it.

    Runs that begin together estimate the same set. Its last bits may differ between processors, so the files of two
    runs must not mix.

    Args:
        identity: everything that the numbers depend on, as plain JSON types.
        confidences: statistics of distinct examples, in the same order whenever this identity is written: files of
            a writer that was killed are kept.

    Raises:
        StorageError: the store failed.
    """
    names, probability_N, outranked_N = confidences
    if not len(names) or {probability_N.shape, outranked_N.shape, (len(set(names)),)} != {(len(names),)}:
        raise ValueError("one probability and one share are needed for each of some distinct examples")
    is_share_N = (outranked_N >= 0) & (outranked_N <= 1) | np.isnan(outranked_N)
    if not ((probability_N >= 0) & (probability_N <= 1) & is_share_N).all():
        raise ValueError("probabilities and shares are in [0, 1]")
    store, key = open_store(location), confidence_key(identity)
    try:
        if _read(store, identity) is not None:
            return
    except CorruptCache:
        store.delete(confidence_record_path(key))
        store.delete_under(f"{_FOLDER}/{key}")
    _write(store, identity, confidences)


def _write(store: Store, identity: Mapping[str, Any], confidences: ConfidenceSet) -> None:
    key = confidence_key(identity)
    encoded = [example_id.encode() for example_id in confidences.example_ids]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    content: dict[str, npt.NDArray[Any]] = {
        "probability": np.ascontiguousarray(confidences.probability_N, np.float32),
        "outranked": np.ascontiguousarray(confidences.outranked_N, np.float32),
        "example_id_utf8": text,
        "example_id_lengths": np.array([len(item) for item in encoded], np.int32),
    }
    files: dict[str, FileEntry] = {}
    for name, values in content.items():
        spec = single_shard(f"{_FOLDER}/{key}/{name}", values.shape, values.dtype.name)
        files[spec.metadata_path] = store.put(spec.metadata_path, [spec.metadata()])
        # The first process to write wins: the last bits may differ on another processor.
        files[spec.shard_path(0)] = store.put_if_absent(spec.shard_path(0), spec.content(0, values))
    files[_GROUP] = store.put(_GROUP, [group_metadata()])
    own_group = f"{_FOLDER}/{key}/zarr.json"
    files[own_group] = store.put(own_group, [group_metadata({"identity": dict(identity)})])
    record = {
        "identity": dict(identity),
        "num_examples": len(encoded),
        "num_bytes": len(text),
        "files": files,
    }
    with suppress(Overtaken):
        store.commit(confidence_record_path(key), seal_record(record))


def read_confidence(location: Location, identity: Mapping[str, Any]) -> ConfidenceSet | None:
    """Return the set with this identity, or None if it does not exist.

    Raises:
        CorruptCache: the set exists but is damaged.
    """
    return _read(open_store(location), identity)


def load_confidence_record(store: Readable, key: str) -> ConfidenceRecord:
    """Read the record of a set.

    Raises:
        CorruptCache: it is damaged, or the record of something else. MissingFile: it does not exist.
    """
    name = confidence_record_path(key)
    with sealed(store, name) as content:
        record = ConfidenceRecord(
            identity=dict(content["identity"]),
            num_examples=int(content["num_examples"]),
            num_bytes=int(content["num_bytes"]),
            files=files_of(content),
        )
    if confidence_key(record.identity) != key:
        raise store.damaged("The record belongs to another set of confidences.", name)
    return record


def _read(store: Store, identity: Mapping[str, Any]) -> ConfidenceSet | None:
    key = confidence_key(identity)
    seen: ConfidenceRecord | None = None
    while True:
        try:
            record = load_confidence_record(store, key)
        except MissingFile:
            return None
        try:
            return _read_under(store, record, key)
        except CorruptCache:
            # Another process may have replaced or removed the set in the meantime. It is damaged only if a second
            # read fails with the same record.
            if record == seen:
                raise
            seen = record


def _read_under(store: Store, record: ConfidenceRecord, key: str) -> ConfidenceSet:
    def rows(name: str, count: int, dtype: str) -> npt.NDArray[Any]:
        spec = single_shard(f"{_FOLDER}/{key}/{name}", (count,), dtype)
        get_recorded(store, spec.metadata_path, record.files)
        raw = get_recorded(store, spec.shard_path(0), record.files)
        return np.frombuffer(raw, DTYPES[dtype], count=count).copy()

    count = record.num_examples
    text = rows("example_id_utf8", record.num_bytes, "uint8").tobytes()
    ends = np.cumsum(rows("example_id_lengths", count, "int32")).tolist()
    names = [text[first:after].decode() for first, after in zip([0, *ends[:-1]], ends, strict=True)]
    return ConfidenceSet(names, rows("probability", count, "float32"), rows("outranked", count, "float32"))


def list_confidence(location: Location) -> list[ConfidenceSummary]:
    """Return all committed sets, by key."""
    store, sets = open_store(location), []
    for key in committed_keys(store.list("records")):
        record = load_confidence_record(store, key)
        sets.append(ConfidenceSummary(key=key, num_examples=record.num_examples, identity=record.identity))
    return sets


def committed_keys(names: Iterable[str]) -> list[str]:
    """Return the keys of the sets whose records are among these files."""
    return sorted(record[1] for name in names if (record := _RECORD.fullmatch(name)))


def unfinished_keys(names: Iterable[str]) -> list[str]:
    """Return the keys of sets with files among these but no record: they were begun and never committed."""
    names = list(names)
    begun = {name.split("/")[1] for name in names if name.startswith(f"{_FOLDER}/") and name.count("/") > 1}
    return sorted(begun.difference(committed_keys(names)))


def remove_confidence(store: Store, key: str) -> None:
    """Remove a set: its record first, so that no partial set looks complete."""
    store.delete(confidence_record_path(key))
    is_last = not committed_keys(store.list("records"))
    store.delete_under(_FOLDER if is_last else f"{_FOLDER}/{key}")


def clear_away(store: Store, bad_names: Iterable[str], recorded: Files) -> None:
    """Remove every set with a bad file, and restore the parent group if it is bad."""
    bad = set(bad_names)
    for key in sorted({match[1] for name in bad if (match := _OF_A_SET.fullmatch(name))}):
        remove_confidence(store, key)
    if _GROUP in bad & recorded.keys() and committed_keys(store.list("records")):
        store.put(_GROUP, [group_metadata()])
