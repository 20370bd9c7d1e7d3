"""Whether a cache may be trained on: what changed since it was last vouched for, and a look at the numbers.

Who completes a cache notes size, inode and times of every file that its record lists, in a file beside the cache. A
file that is not as it was noted is hashed, and noted once it is what the record says; so the next run hashes nothing.
Of a copy of a cache, or one from elsewhere, the first run hashes all. No time is compared with another: neither a
clock that goes wrong nor a record that was touched vouches for anything. `--verify-caches` hashes all of it anew,
which costs about as much as reading it once, and alone finds bits that a disk lost by itself.

Objects in a store are hashed whenever they are fetched; there is nothing to add to that.

Shapes: Q sampled units, D feature width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from advl_pipeline.cache.commit_records import load_complete
from advl_pipeline.cache.files import Files
from advl_pipeline.cache.quantise import is_finite
from advl_pipeline.cache.reader import FeatureStore, TeacherCache
from advl_pipeline.cache.store import Store
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.verify import (
    Finding,
    VerifyReport,
    describe_findings,
    file_problem,
    has_its_norms,
    recorded_files,
    verify_cache,
)
from advl_pipeline.errors import (
    CorruptCache,
    advise,
)
from advl_pipeline.locations import Location

SAMPLED_UNITS = 64
"""Units of each modality whose numbers are looked at; on a disk of spinning plates about a second."""


def require_trustworthy(cache: TeacherCache, *, hash_all: bool = False) -> None:
    """Refuse a cache that is not what its commit record says, as far as can be seen at little cost.

    Args:
        cache: opened, so that every file is there and of its recorded size.
        hash_all: hash every file, and look at every number, with a progress bar.

    Raises:
        CorruptCache: a file changed, or sampled features are not finite or not as long as they were.
        StorageError: the object store failed.
    """
    store = open_store(cache.path)
    files = load_complete(store).files
    changed = store.changed(files)
    if hash_all:
        listed = recorded_files(store, store.list(), [])
        _require_sound(cache.path, sum(entry.num_bytes for entry in listed.values()))
    elif changed:
        _require_unchanged(store, {name: files[name] for name in changed})
    if changed:
        store.vouch(changed)
    if not store.reads_whole:
        for features in cache.stores().values():
            _require_sensible(features, cache.path)


def _require_unchanged(store: Store, files: Files) -> None:
    num_bytes = sum(entry.num_bytes for entry in files.values())
    findings: list[Finding] = []
    with _progress(store.location, num_bytes) as bar:
        for name, entry in files.items():
            problem = file_problem(store, name, entry)
            findings += [Finding(path=name, problem=problem)] if problem else []
            bar.update(entry.num_bytes)
    if findings:
        raise describe_findings(
            VerifyReport(path=store.location, files=files, num_bytes=num_bytes, findings=tuple(findings))
        )


def _require_sound(location: Location, num_bytes: int) -> None:
    with _progress(location, num_bytes) as bar:
        report = verify_cache(location, progress=bar.update)
    # Other runs may be adding confidences at this moment; whoever reads those checks them.
    findings = tuple(finding for finding in report.findings if finding.path in report.files)
    if findings:
        raise describe_findings(replace(report, findings=findings))


def _progress(location: Location, num_bytes: int) -> tqdm[Any]:
    return tqdm(total=num_bytes, desc=f"checking {location}", unit="B", unit_scale=True)


def _require_sensible(store: FeatureStore, location: Location) -> None:
    """Look at some units: finite numbers, spans that are some, and global features of the length they had."""
    count = min(SAMPLED_UNITS, len(store))
    if count == 0:
        return
    # Others each time, so that what one run misses the next may find.
    chosen_Q = np.sort(np.random.default_rng().choice(len(store), count, replace=False))
    ids = list(store.ids_at(store.readable_positions(chosen_Q)))
    global_QD = store.global_features(ids)
    if not is_finite(global_QD):
        raise _senseless(location, f"{store.modality}/global", "it holds values that are not finite")
    if store.has_tokens and not is_finite(store.token_features(ids)[0]):
        raise _senseless(location, f"{store.modality}/tokens/values", "it holds values that are not finite")
    if store.has_spans:
        store.char_spans(ids)
    if not store.clipped and not has_its_norms(global_QD, store.stat("norm", ids)):
        why = "its rows are neither of unit length nor as long as stats/norm says"
        raise _senseless(location, f"{store.modality}/global", why)


def _senseless(location: Location, name: str, why: str) -> CorruptCache:
    return CorruptCache(
        "The cache holds numbers that cannot be.",
        where=f"{location}/{name}",
        why=why,
        next_command=advise(["advl", "cache", "verify", str(location)]),
    )
