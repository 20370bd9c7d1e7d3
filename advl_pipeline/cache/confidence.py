"""Confidence statistics of a cache: per example and estimator, the probability given to the ground truth, and the
share of what is wrong that it outranks.

Each set has an identity of its own (estimator, task, split, folds, seed, examples) and lies in `confidence/<key>/`,
where the key is the beginning of the identity's digest. Sets are added at any time and never change.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.arrays import MappedArray
from advl_pipeline.cache.checks import require_recorded
from advl_pipeline.cache.claims import claim
from advl_pipeline.cache.files import WORK_FOLDER, FileEntry, publish_if_changed
from advl_pipeline.cache.identity import digest
from advl_pipeline.cache.layout import group_metadata, single_shard
from advl_pipeline.cache.publishing import publish_array
from advl_pipeline.cache.records import confidence_record_path, files_from_json, files_to_json, seal, unseal
from advl_pipeline.errors import CorruptCache
from advl_pipeline.locations import Location, Url

KEY_DIGITS = 16


class ConfidenceSet(NamedTuple):
    """n example ids; `probability_N` (n,) float32 in [0, 1]; `outranked_N` likewise, NaN where nothing is wrong."""

    example_ids: list[str]
    probability_N: npt.NDArray[np.float32]
    outranked_N: npt.NDArray[np.float32]


def confidence_key(identity: Mapping[str, Any]) -> str:
    """Return the name of the group that holds a set of confidences."""
    return digest(identity)[:KEY_DIGITS]


def write_confidence(
    cache_path: Location,
    identity: Mapping[str, Any],
    example_ids: Sequence[str],
    probability: npt.NDArray[np.float32],
    outranked: npt.NDArray[np.float32],
) -> None:
    """Add a set of confidences; one that is there, and sound, stays as it is, whoever wrote it.

    Runs that begin together estimate the same set; on other processors its last bits may differ, so that their files
    must not mix.

    Args:
        cache_path: a complete cache.
        identity: what the numbers depend on, as plain JSON types.
        example_ids: n distinct ids.
        probability: (n,) float32 in [0, 1].
        outranked: (n,) float32 in [0, 1] or NaN.
    """
    if isinstance(cache_path, Url):
        from advl_pipeline.cache.remote_confidence import write_remote_confidence

        write_remote_confidence(cache_path, identity, example_ids, probability, outranked)
        return
    probability, outranked = (np.ascontiguousarray(values, np.float32) for values in (probability, outranked))
    shapes = {probability.shape, outranked.shape, (len(set(example_ids)),)}
    if shapes != {(len(example_ids),)} or not len(example_ids):
        raise ValueError("one probability and one share are needed for each of some distinct examples")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities lie in [0, 1]")
    if not ((outranked >= 0) & (outranked <= 1) | np.isnan(outranked)).all():
        raise ValueError("shares lie in [0, 1]")
    name, is_done = f"confidence-{confidence_key(identity)}", False
    while not is_done:
        # Not ours only where a writer that ends removes the folder of claims at this moment.
        with claim(cache_path, name, wait=True) as is_done:
            if is_done:
                if not is_there(cache_path, identity):
                    _write(cache_path, identity, example_ids, probability, outranked)
                _remove_claim(cache_path / WORK_FOLDER, name)


def _remove_claim(work: Path, name: str) -> None:
    # Whoever waits for the claim that is removed finds the set written.
    (work / "claims" / name).unlink(missing_ok=True)
    with suppress(OSError):
        (work / "claims").rmdir()
        work.rmdir()


def is_there(cache_path: Location, identity: Mapping[str, Any]) -> bool:
    """Whether a set is there, and sound."""
    try:
        return read_confidence(cache_path, identity) is not None
    except CorruptCache:
        return False


def _write(
    cache_path: Path,
    identity: Mapping[str, Any],
    example_ids: Sequence[str],
    probability: npt.NDArray[np.float32],
    outranked: npt.NDArray[np.float32],
) -> None:
    key = confidence_key(identity)
    folder = f"confidence/{key}"
    encoded = [example_id.encode() for example_id in example_ids]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    lengths = np.array([len(item) for item in encoded], np.int32)
    files: dict[str, FileEntry] = {}
    content: dict[str, npt.NDArray[Any]] = {
        "probability": probability,
        "outranked": outranked,
        "example_id_utf8": text,
        "example_id_lengths": lengths,
    }
    for name, values in content.items():
        files |= publish_array(cache_path, single_shard(f"{folder}/{name}", values.shape, values.dtype.name), values)
    files["confidence/zarr.json"] = publish_if_changed(cache_path, "confidence/zarr.json", [group_metadata()])
    files[f"{folder}/zarr.json"] = publish_if_changed(
        cache_path, f"{folder}/zarr.json", [group_metadata({"identity": dict(identity)})]
    )
    record = {
        "identity": dict(identity),
        "num_examples": len(example_ids),
        "num_bytes": len(text),
        "files": files_to_json(files),
    }
    publish_if_changed(cache_path, confidence_record_path(key), [seal(record)])
    with suppress(OSError):
        (cache_path / WORK_FOLDER / "tmp").rmdir()
        (cache_path / WORK_FOLDER).rmdir()


def read_confidence(cache_path: Location, identity: Mapping[str, Any]) -> ConfidenceSet | None:
    """Return the set with this identity, or None when there is none.

    Raises:
        CorruptCache: the set is there but damaged.
    """
    if isinstance(cache_path, Url):
        from advl_pipeline.cache.remote_confidence import read_remote_confidence

        return read_remote_confidence(cache_path, identity)
    key = confidence_key(identity)
    if not (cache_path / confidence_record_path(key)).exists():
        return None
    record = unseal(cache_path, confidence_record_path(key))
    if digest(record["identity"]) != digest(identity):
        raise CorruptCache(
            "A set of confidences stands under another's name.", where=f"{cache_path}/confidence/{key}"
        )
    files = files_from_json(record["files"])
    shapes = {
        "probability": (record["num_examples"], "float32"),
        "outranked": (record["num_examples"], "float32"),
        "example_id_utf8": (record["num_bytes"], "uint8"),
        "example_id_lengths": (record["num_examples"], "int32"),
    }
    content: dict[str, npt.NDArray[Any]] = {}
    for name, (size, dtype) in shapes.items():
        spec = single_shard(f"confidence/{key}/{name}", (size,), dtype)
        for relative in (spec.metadata_path, spec.shard_path(0)):
            require_recorded(cache_path, relative, files)
        content[name] = np.array(MappedArray(cache_path, spec).whole())
    ends = np.cumsum(content["example_id_lengths"]).tolist()
    text = content["example_id_utf8"].tobytes()
    starts = [0, *ends[:-1]]
    names = [text[first:after].decode() for first, after in zip(starts, ends, strict=True)]
    return ConfidenceSet(names, content["probability"], content["outranked"])


def list_confidence(cache_path: Path) -> list[dict[str, Any]]:
    """Return the identities of all committed sets, with their keys and counts."""
    prefix = "confidence-"
    keys = sorted(path.stem.removeprefix(prefix) for path in (cache_path / "records").glob(f"{prefix}*.json"))
    found = []
    for key in keys:
        record = unseal(cache_path, confidence_record_path(key))
        found.append({"key": key, "num_examples": record["num_examples"], "identity": record["identity"]})
    return found


def remove_confidence(cache_path: Path, key: str) -> None:
    """Remove a set: its record first, so that it is never half there."""
    (cache_path / confidence_record_path(key)).unlink(missing_ok=True)
    shutil.rmtree(cache_path / "confidence" / key, ignore_errors=True)
    if not any((cache_path / "records").glob("confidence-*.json")):
        shutil.rmtree(cache_path / "confidence", ignore_errors=True)


def unfinished_confidences(cache_path: Path) -> list[str]:
    """Return the keys of sets that were begun and never committed."""
    folders = [path.name for path in sorted((cache_path / "confidence").glob("*")) if path.is_dir()]
    return [key for key in folders if not (cache_path / confidence_record_path(key)).exists()]
