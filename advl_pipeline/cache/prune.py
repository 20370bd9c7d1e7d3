"""Removing from a cache what is no longer wanted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.cache.checks import require_cache
from advl_pipeline.cache.claims import claim
from advl_pipeline.cache.confidence import list_confidence, remove_confidence, unfinished_confidences
from advl_pipeline.cache.config import PruneConfig
from advl_pipeline.cache.files import WORK_FOLDER, remove_work
from advl_pipeline.cache.records import COMPLETE_RECORD, IDENTITY_FILE
from advl_pipeline.errors import ConfigError, suggest_names
from advl_pipeline.locations import Location, Url


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
    """
    if isinstance(config.cache, Url):
        return _prune_remote(config, config.cache)
    root = config.cache
    require_cache(root)
    if config.all:
        return _remove_all(root, dry_run=config.dry_run)
    known = [str(item["key"]) for item in list_confidence(root)]
    chosen = known if config.all_confidences else list(config.confidence)
    for key in chosen:
        if key not in known:
            raise ConfigError(
                f"There is no set of confidences {key!r}.", where=str(root), why=suggest_names(key, known)
            )
    keys = [*chosen, *unfinished_confidences(root)]
    leftovers = (root / WORK_FOLDER).is_dir() and (root / COMPLETE_RECORD).is_file()
    targets = [root / "confidence" / key for key in keys] + ([root / WORK_FOLDER] if leftovers else [])
    size = sum(map(_size, targets))
    if not config.dry_run:
        for key in keys:
            remove_confidence(root, key)
        if leftovers:
            with claim(root, "finalise", wait=True):
                remove_work(root)
    return PruneResult(path=root, removed=tuple(str(path.relative_to(root)) for path in targets), num_bytes=size)


def _prune_remote(config: PruneConfig, url: Url) -> PruneResult:
    from advl_pipeline.cache.remote_info import remove_remote_cache

    if not config.all or config.confidence or config.all_confidences:
        raise ConfigError("A cache in an object store can only be removed whole.", where=url, next_command="--all")
    return PruneResult(path=url, removed=(".",), num_bytes=remove_remote_cache(url, dry_run=config.dry_run))


def _remove_all(root: Path, *, dry_run: bool) -> PruneResult:
    if root.is_symlink():
        raise ConfigError("The cache is a link; remove it where it lies.", where=str(root))
    size = _size(root)
    if not dry_run:
        # First what makes it a complete cache, so that a removal cut short leaves none that looks whole.
        (root / COMPLETE_RECORD).unlink(missing_ok=True)
        for name in sorted(path.name for path in root.iterdir() if path.name not in (IDENTITY_FILE, "records")):
            _remove(root / name)
        _remove(root / "records")
        shutil.rmtree(root)
    return PruneResult(path=root, removed=(".",), num_bytes=size)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
