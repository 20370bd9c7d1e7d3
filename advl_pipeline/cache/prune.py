"""Removing from a cache what is no longer wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advl_pipeline.cache.checks import require_cache
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, IDENTITY_FILE
from advl_pipeline.cache.confidence import committed_keys, remove_confidence, unfinished_keys
from advl_pipeline.cache.config import PruneConfig
from advl_pipeline.cache.files import WORK_FOLDER, journal_path, vouched_path
from advl_pipeline.cache.parts import holding
from advl_pipeline.cache.store import Store
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import clear_work
from advl_pipeline.errors import ConfigError, StorageError, again, suggest_names
from advl_pipeline.locations import Location


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """What was removed, or would be."""

    path: Location
    removed: tuple[str, ...]
    num_bytes: int


def run_prune(config: PruneConfig) -> PruneResult:
    """Remove sets of confidences, leftovers of stopped runs beside a complete cache, or the cache itself.

    Raises:
        ConfigError: there is no cache, or no set of that key.
        InUse: an extraction writes the cache at this moment.
    """
    store = open_store(config.cache)
    sizes = require_cache(store)
    if config.all:
        # A folder with some records/ is not ours to remove.
        store.require_place()
        if not config.dry_run:
            # What an extraction that runs would go on to write could be resumed by nothing.
            with holding(store):
                _remove_all(store, sizes)
        return PruneResult(path=config.cache, removed=(".",), num_bytes=_size(sizes))
    known = committed_keys(sizes)
    chosen = known if config.all_confidences else list(config.confidence)
    for key in chosen:
        if key not in known:
            raise ConfigError(
                f"There is no set of confidences {key!r}.", where=str(config.cache), why=suggest_names(key, known)
            )
    keys = [*chosen, *unfinished_keys(sizes)]
    has_leftovers = COMPLETE_RECORD in sizes and any(name.startswith(f"{WORK_FOLDER}/") for name in sizes)
    folders = [f"confidence/{key}" for key in keys] + ([WORK_FOLDER] if has_leftovers else [])
    if not config.dry_run:
        for key in keys:
            remove_confidence(store, key)
        if has_leftovers:
            with holding(store):
                clear_work(store)
    size = _size(
        {name: size for name, size in sizes.items() if name.startswith(tuple(f"{item}/" for item in folders))}
    )
    return PruneResult(path=config.cache, removed=tuple(folders), num_bytes=size)


def _remove_all(store: Store, sizes: Mapping[str, int]) -> None:
    # First what makes it a complete cache, so that a removal cut short leaves none that looks whole; last what makes
    # it a cache at all, so that the removal can be given again.
    store.delete(COMPLETE_RECORD)
    store.delete(*(name for name in sizes if not name.startswith("records/") and name != IDENTITY_FILE))
    store.delete_under()
    if store.folder is not None:
        for beside in (journal_path, vouched_path):
            beside(store.folder).unlink(missing_ok=True)
    if left := store.list():
        raise StorageError(
            "The cache could not be removed whole.",
            where=store.where(min(left)),
            next_command=again("see who may write there, then give the same command again"),
        )


def _size(sizes: Mapping[str, int]) -> int:
    return sum(max(0, size) for size in sizes.values())
