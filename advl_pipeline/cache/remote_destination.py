"""A cache in an object store that is being written: a folder of this process stands for it.

Objects are written under their final names, each by one PUT, and a shard's record after all of its objects. Whoever
holds a shard's lease writes an object on the condition that it is not there; where a dead holder left one, it is kept
if it is the same to the byte and otherwise replaced on the condition of being the one that was compared. So a holder
that lost its lease without knowing can neither overwrite what its successor wrote nor commit a second time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from advl_pipeline.cache.disk_cache import held_folder
from advl_pipeline.cache.disk_cache_config import DiskCacheConfig
from advl_pipeline.cache.files import WORK_FOLDER, FileEntry, safe_path, storage_error
from advl_pipeline.cache.leases import Leases
from advl_pipeline.cache.object_store import MissingObject, ObjectStore, require_conditional_writes
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.cache.records import (
    COMPLETE_RECORD,
    IDENTITY_FILE,
    MODALITIES,
    PLAN_RECORD,
    Files,
    load_complete,
    load_plan,
    load_shard,
    shard_record_path,
)
from advl_pipeline.cache.staged import STAGED_FOLDER, staged_name
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import ConfigError, CorruptCache, StorageError
from advl_pipeline.locations import Url

_CONNECTIONS = 8


class _LeaseLost(StorageError):
    """Another process has taken over what was being written."""


class RemoteDestination:
    """A `Destination` in an object store."""

    def __init__(self, url: Url, disk_cache: DiskCacheConfig) -> None:
        self.location = url
        self._store = ObjectStore(url)
        self._disk_cache = disk_cache
        self._leases = Leases(self._store)
        self._has_claimed = False

    def __enter__(self) -> Self:
        self._folder = held_folder(self._disk_cache.folder / "writing")
        self.root = self._folder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leases.close()
        self._folder.__exit__(kind, error, trace)

    def claim(self, name: str, *, wait: bool = False) -> AbstractContextManager[bool]:
        if not self._has_claimed:
            require_conditional_writes(self._store, f"{WORK_FOLDER}/probe-{secrets.token_hex(8)}")
            self._has_claimed = True
        return self._leases.claim(name, wait=wait)

    def refresh(self) -> None:
        """Bring the plan and the records that are new into `root`."""
        if not (self.root / PLAN_RECORD).is_file():
            try:
                raw = self._store.get(PLAN_RECORD)
            except MissingObject:
                self._require_ours()
                return
            # Under another name until the files that it lists are here too.
            self._keep(f"{WORK_FOLDER}/{PLAN_RECORD}", raw)
            plan = load_plan(self.root / WORK_FOLDER)
            self._fetch(plan.files)
            self._keep(PLAN_RECORD, raw)
        names = [name for name in self._store.list("records") if _is_commit(name)]
        new = sorted(name for name in names if not (self.root / name).is_file())
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for name, raw in zip(new, pool.map(self._store.get, new), strict=True):
                self._keep(name, raw)

    def _require_ours(self) -> None:
        """Refuse a place that holds something else than a cache, as `folders.require_folder` does for a folder."""
        names = [name for name in self._store.list() if not name.startswith(f"{WORK_FOLDER}/")]
        if names and not any(name == IDENTITY_FILE or name.startswith("records/") for name in names):
            raise ConfigError(
                "This place cannot take a teacher cache.",
                where=str(self.location),
                why=f"it is not empty and has no {IDENTITY_FILE}, by which a teacher cache is known: {min(names)}",
                next_command="give another --output",
            )

    def publish_plan(self) -> None:
        # Alone and first: it is what tells other commands that this place is a cache.
        self._put_all([IDENTITY_FILE], lease="plan")
        self._put_all(load_plan(self.root).files, lease="plan")
        if not self._commit(PLAN_RECORD, lease="plan"):
            shutil.rmtree(self.root / "records")
            self.refresh()

    def publish_shard(self, modality: str, shard: int) -> None:
        lease, record = staged_name(modality, shard), shard_record_path(modality, shard)
        files = load_shard(self.root, modality, shard).files
        try:
            self._put_all(files, lease=lease)
            self.publish_staged(modality, shard, lease=lease)
            ours = self._commit(record, lease=lease)
        except _LeaseLost:
            ours = False
        if not ours:
            # The successor's record says what the shard is; until there is one, it is pending.
            (self.root / record).unlink()
            shutil.rmtree(self.root / STAGED_FOLDER / lease)
        for name in files:
            (self.root / name).unlink()

    def publish_staged(self, modality: str, shard: int, *, lease: str) -> None:
        """Show what a shard adds to the tables, under a lease that is held."""
        name = staged_name(modality, shard)
        paths = sorted((self.root / STAGED_FOLDER / name).iterdir())
        self._put_all([f"{STAGED_FOLDER}/{name}/{path.name}" for path in paths], lease=lease)

    def gather(self) -> None:
        missing = [name for name in self._store.list(STAGED_FOLDER) if not (self.root / name).is_file()]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for name, raw in zip(missing, pool.map(self._store.get, missing), strict=True):
                self._keep(name, raw)
        writer = CacheWriter(self.root)
        for modality in writer.plan.modalities:
            for shard in range(writer.placement(modality).num_shards):
                try:
                    writer.staged(modality).require_sound(shard)
                except CorruptCache as error:
                    self.refresh()
                    if writer.is_complete():
                        return  # By another process, which has removed its work in progress since.
                    raise CorruptCache(
                        "What a shard adds to the tables is missing or damaged.",
                        where=f"{self.location}/{STAGED_FOLDER}/{staged_name(modality, shard)}",
                        why=f"{Path(error.where).name}: {error.why}",
                        next_command=f"advl cache repair {self.location}",
                    ) from None

    def publish_complete(self) -> None:
        files = load_complete(self.root).files
        there = {PLAN_RECORD, *load_plan(self.root).files}
        for path in sorted((self.root / "records").glob("*.json")):
            if _is_shard_record(path.name):
                modality, _, number = path.stem.rpartition("-")
                there |= {f"records/{path.name}", *load_shard(self.root, modality, int(number)).files}
        try:
            self._put_all([name for name in files if name not in there], lease="finalise")
            ours = self._commit(COMPLETE_RECORD, lease="finalise")
        except _LeaseLost:
            ours = False
        if not ours:
            (self.root / COMPLETE_RECORD).unlink()
            self.refresh()

    def remove_work(self) -> None:
        names = sorted(self._store.list(WORK_FOLDER))
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(self._store.delete, names))

    def open(self, identity: Mapping[str, Any]) -> TeacherCache:
        return open_cache(self.location, identity, disk_cache=self._disk_cache)

    def _put_all(self, names: Iterable[str], *, lease: str) -> None:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(lambda name: self._put(name, lease), names))

    def _put(self, name: str, lease: str) -> None:
        if not self._store.settle(name, self.root / name, may_replace=lambda: self._leases.is_held(lease)):
            raise _LeaseLost(
                "Another process took over what this one was writing.",
                where=f"{self.location}/{name}",
                next_command="give the same command again",
            )

    def _commit(self, record: str, *, lease: str) -> bool:
        """Write a record unless another process's stands there; returns whether what stands there is ours."""
        content = (self.root / record).read_bytes()
        if not self._leases.is_held(lease):
            return False
        return self._store.create(record, content) is not None or self._store.get(record) == content

    def _fetch(self, files: Files) -> None:
        for name, entry in files.items():
            raw = self._store.get(name)
            if FileEntry(num_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()) != entry:
                raise CorruptCache(
                    "An object of the cache is not what its commit record says.", where=f"{self.location}/{name}"
                )
            self._keep(name, raw)

    def _keep(self, name: str, raw: bytes) -> None:
        path = safe_path(self.root, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            partial.write_bytes(raw)
            os.replace(partial, path)  # noqa: PTH105
        except OSError as error:
            raise storage_error(error, str(Path("writing") / name)) from error


def _is_commit(name: str) -> bool:
    return name == COMPLETE_RECORD or _is_shard_record(name.removeprefix("records/"))


def _is_shard_record(name: str) -> bool:
    modality, _, number = name.removesuffix(".json").rpartition("-")
    return modality in MODALITIES and number.isdigit()
