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

import numpy as np
from tqdm import tqdm

from advl_pipeline.cache.commit_records import load_complete
from advl_pipeline.cache.quantise import is_finite
from advl_pipeline.cache.reader import FeatureStore, TeacherCache
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.verify import describe_findings, has_its_norms, recorded_files, verify_cache, verify_files
from advl_pipeline.errors import CorruptCache, advise
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
    if hash_all or changed:
        to_hash = recorded_files(store, store.list(), []) if hash_all else {name: files[name] for name in changed}
        num_bytes = sum(entry.num_bytes for entry in to_hash.values())
        with tqdm(total=num_bytes, desc=f"checking {cache.path}", unit="B", unit_scale=True) as bar:
            if hash_all:
                report = verify_cache(cache.path, progress=bar.update)
                # Other runs may be adding confidences at this moment; whoever reads those checks them.
                findings = tuple(finding for finding in report.findings if finding.path in report.files)
                report = replace(report, findings=findings)
            else:
                report = verify_files(store, to_hash, progress=bar.update)
        if not report.is_sound:
            raise describe_findings(report)
    if changed:
        store.vouch(changed)
    if not store.reads_whole:
        for features in cache.stores().values():
            _require_sensible(features, cache.path)


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
