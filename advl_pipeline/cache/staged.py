"""What committed shards add to the per-unit tables; it waits, flushed, in the work folder for the cache to be whole.

Each shard's files come with their digests, so that what was lost or changed meanwhile never gets into a table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.cache.files import (
    WORK_FOLDER,
    flush_folder,
    hash_file,
    move_into_place,
    safe_path,
    storage_error,
)
from advl_pipeline.cache.ragged import Placement
from advl_pipeline.cache.records import seal, unseal
from advl_pipeline.errors import CorruptCache

STAGED_FOLDER = f"{WORK_FOLDER}/staged"

Array = npt.NDArray[Any]
_DIGESTS = "digests.json"
_STATISTIC = "stat-"


def staged_name(modality: str, shard: int) -> str:
    """Return the name of a shard's folder in `STAGED_FOLDER`."""
    return f"{modality}-{shard:05d}"


class StagedShards:
    """The staged content of one modality's shards.

    Args:
        root: the cache.
        modality: whose shards.
        placement: where its units lie.
    """

    def __init__(self, root: Path, modality: str, placement: Placement) -> None:
        self._root = root
        self._modality = modality
        self._placement = placement

    def keep(self, shard: int, content: Mapping[str, Array]) -> None:
        """Write what a shard adds, with its digests, and let it appear at once.

        Raises:
            StorageError: the disk is full or failed.
        """
        temporary = self._root / WORK_FOLDER / "tmp" / f"{os.getpid()}-staged-{staged_name(self._modality, shard)}"
        target = self._root / STAGED_FOLDER / staged_name(self._modality, shard)
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            digests = {}
            for name, values in content.items():
                path = temporary / f"{name}.npy"
                with path.open("wb") as handle:
                    np.save(handle, values, allow_pickle=False)
                    handle.flush()
                    os.fsync(handle.fileno())
                digests[name] = hash_file(path).sha256
            with (temporary / _DIGESTS).open("wb") as handle:
                handle.write(seal(digests))
                handle.flush()
                os.fsync(handle.fileno())
            flush_folder(temporary)
            if target.exists():
                shutil.rmtree(target)
            move_into_place(temporary, target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise storage_error(error, STAGED_FOLDER) from error

    def require_sound(self, shard: int) -> None:
        """Check that everything that a shard adds is there as it was written; raises `CorruptCache`."""
        for name, sha256 in self._digests(shard).items():
            self._check(shard, name, sha256)

    def is_sound(self, shard: int) -> bool:
        """Say whether everything that a shard adds is there as it was written."""
        try:
            self.require_sound(shard)
        except CorruptCache:
            return False
        return True

    def parts(self, name: str) -> Iterator[Array]:
        """Give what each shard adds under one name, in order.

        Raises:
            CorruptCache: it is missing or not as it was written.
        """
        for shard in range(self._placement.num_shards):
            yield self._load(shard, name)

    def statistics(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return each statistic of the modality's N units, (N,) float32.

        Raises:
            CorruptCache: a part is missing or not as it was written.
        """
        statistics: dict[str, npt.NDArray[np.float32]] = {}
        first_unit_S1 = self._placement.first_unit_S1
        for shard in range(self._placement.num_shards):
            # A shard of unreadable units alone has none of the teacher's own statistics.
            for name in self._digests(shard):
                if name.startswith(_STATISTIC):
                    values_N = statistics.setdefault(
                        name.removeprefix(_STATISTIC), np.zeros(self._placement.num_units, np.float32)
                    )
                    values_N[first_unit_S1[shard] : first_unit_S1[shard + 1]] = self._load(shard, name)
        return dict(sorted(statistics.items()))

    def _load(self, shard: int, name: str) -> Array:
        sha256 = self._digests(shard).get(name)
        if sha256 is None:
            raise self._corrupt(self._relative(shard, _DIGESTS), f"it lists no {name}")
        path = self._check(shard, name, sha256)
        try:
            loaded: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._corrupt(self._relative(shard, path.name), str(error)) from None
        return loaded

    def _check(self, shard: int, name: str, sha256: str) -> Path:
        relative = self._relative(shard, f"{name}.npy")
        try:
            path = safe_path(self._root, relative)
            is_sound = hash_file(path).sha256 == sha256
        except CorruptCache as error:
            raise self._corrupt(relative, error.what) from None
        except OSError as error:
            raise self._corrupt(relative, error.strerror or str(error)) from None
        if not is_sound:
            raise self._corrupt(relative, "its content changed")
        return path

    def _digests(self, shard: int) -> dict[str, str]:
        relative = self._relative(shard, _DIGESTS)
        try:
            return unseal(self._root, relative)
        except CorruptCache as error:
            raise self._corrupt(relative, error.why or error.what) from None

    def _relative(self, shard: int, file: str) -> str:
        return f"{STAGED_FOLDER}/{staged_name(self._modality, shard)}/{file}"

    def _corrupt(self, relative: str, why: str) -> CorruptCache:
        return CorruptCache(
            "Work in progress of the cache is missing or damaged.",
            where=str(self._root / relative),
            why=why,
            next_command=f"advl cache repair {self._root}",
        )
