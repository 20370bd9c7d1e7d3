"""The commands that need only a cache: a summary, the export, and the removal of a cache or parts of it.

An export is HDF5 or safetensors, written a few thousand units at a time.

Shapes: M token rows, D feature width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from advl_pipeline.base.atomic import give_usual_mode, make_folder, replacing
from advl_pipeline.base.errors import StorageError, again
from advl_pipeline.base.folders import may_note
from advl_pipeline.base.locations import Location
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.cache.arrays import ids_to_bytes
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, committed_shards, load_complete
from advl_pipeline.cache.confidence import (
    ConfidenceSummary,
    committed_keys,
    list_confidence,
    remove_confidence,
    unfinished_keys,
)
from advl_pipeline.cache.config import ExportConfig, InfoConfig, PruneConfig
from advl_pipeline.cache.identity import PROVENANCE_FILE, canonical_json
from advl_pipeline.cache.parts import holding
from advl_pipeline.cache.reader import FeatureStore, TeacherCache, open_cache
from advl_pipeline.cache.store import (
    IDENTITY_FILE,
    WORK_FOLDER,
    journal_path,
    read_metadata,
    require_cache,
    verified_path,
)
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import CacheWriter, clear_work

_UNITS_AT_ONCE = 4096

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheExport:
    """The files of an exported cache and their size; `num_units` is by modality."""

    output: Path
    files: tuple[str, ...]
    num_units: Mapping[str, int]
    num_bytes: int


def run_cache_export(config: ExportConfig) -> CacheExport:
    """Export a cache's features to another format.

    The export has the id, global feature, token rows, lengths and character spans of every unit that is not
    quarantined.

    Raises:
        ConfigError: the output exists.
        CorruptCache: the cache cannot be read.
        StorageError: the disk is full or failed; no output is left.
    """
    require_outputs(config)
    cache = open_cache(config.cache)
    make_folder(config.output.parent)
    writers = {"hdf5": _to_hdf5, "safetensors": _to_safetensors}
    with replacing(config.output, SafetensorError) as partial:
        writers[config.to](cache, partial)
    files = [config.output] if config.output.is_file() else sorted(config.output.iterdir())
    return CacheExport(
        output=config.output,
        files=tuple(path.name for path in files),
        num_units={name: len(store) for name, store in cache.stores().items()},
        num_bytes=sum(path.stat().st_size for path in files),
    )


def _parts(store: FeatureStore) -> Iterator[tuple[list[str], Arrays]]:
    """Yield (ids, arrays) of a few thousand units each."""
    ids = store.ids
    for first in range(0, len(ids), _UNITS_AT_ONCE):
        chosen = ids[first : first + _UNITS_AT_ONCE]
        arrays: Arrays = {"global": store.global_features(chosen)}
        if store.has_tokens:
            arrays["token_values"], arrays["token_lengths"] = store.token_features(chosen)
            for name, rows in store.token_columns(chosen).items():
                arrays[name if name == "char_spans" else f"token_{name}"] = rows
        yield chosen, arrays


class _HeldFile(io.FileIO):
    """A file for HDF5 that defers write errors, since HDF5 crashes when it closes a file after a failed write.

    After the first error, writes seem to succeed; `raise_failure` raises it.
    """

    _failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self._failure is None:
                left = left[super().write(left) :]
        except OSError as error:
            self._failure = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        if self._failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self._failure = error
        return size or 0

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _to_hdf5(cache: TeacherCache, output: Path) -> None:
    import h5py

    with _HeldFile(output, "w+b") as held:
        with h5py.File(held, "w") as file:
            file.attrs["identity"] = canonical_json(cache.identity).decode()
            for modality, store in cache.stores().items():
                group = file.create_group(modality)
                for chosen, arrays in _parts(store):
                    held.raise_failure()
                    for name, rows in {"unit_id": np.array(chosen, "S32"), **arrays}.items():
                        if name not in group:
                            group.create_dataset(
                                name,
                                data=rows,
                                maxshape=(None, *rows.shape[1:]),
                                chunks=(min(512, max(1, len(rows))), *rows.shape[1:]),
                            )
                        else:
                            before = group[name].shape[0]
                            group[name].resize(before + len(rows), axis=0)
                            group[name][before:] = rows
        held.raise_failure()


def _to_safetensors(cache: TeacherCache, output: Path) -> None:
    output.mkdir()
    for modality, store in cache.stores().items():
        for number, (ids, arrays) in enumerate(_parts(store)):
            path = output / f"{modality}-{number:05d}.safetensors"
            content = {"unit_id": ids_to_bytes(ids), **arrays}
            save_file(
                {name: np.ascontiguousarray(rows) for name, rows in content.items()},
                path,
                metadata={"identity": canonical_json(cache.identity).decode()},
            )
            give_usual_mode(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityInfo:
    """The size and the progress of a modality, and as `CompleteRecord` says what was quarantined and clipped."""

    num_units: int
    num_token_rows: int
    global_dim: int
    token_dim: int | None
    num_shards: int
    committed_shards: int
    quarantined: Mapping[str, str]
    clipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheInfo:
    """The summary of a cache; `num_bytes` is its size on disk or in the store."""

    path: Location
    is_complete: bool
    num_bytes: int
    stored_dtype: str
    shard_rows: int
    modalities: Mapping[str, ModalityInfo]
    confidences: Sequence[ConfidenceSummary]
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def run_info(config: InfoConfig) -> CacheInfo:
    """Summarise a cache.

    Raises:
        ConfigError: there is no cache.
        CorruptCache: its plan or its records are damaged.
        StorageError: the object store refuses access or cannot be reached.
    """
    store = open_store(config.cache)
    sizes = require_cache(store)
    writer = CacheWriter(store)
    complete = load_complete(store) if COMPLETE_RECORD in sizes else None
    committed = committed_shards(sizes)
    modalities = {
        name: ModalityInfo(
            num_units=shape.num_units,
            num_token_rows=int(writer.placement(name).lengths_N.sum()),
            global_dim=shape.global_dim,
            token_dim=shape.token_dim,
            num_shards=writer.placement(name).num_shards,
            committed_shards=sum(modality == name for modality, _ in committed),
            quarantined=complete.quarantined.get(name, {}) if complete else {},
            clipped=complete.clipped.get(name, 0) if complete else 0,
        )
        for name, shape in writer.plan.modalities.items()
    }
    return CacheInfo(
        path=config.cache,
        is_complete=complete is not None,
        num_bytes=_size(sizes),
        stored_dtype=writer.plan.stored_dtype,
        shard_rows=writer.plan.shard_rows,
        modalities=modalities,
        confidences=list_confidence(config.cache),
        identity=read_metadata(store, IDENTITY_FILE),
        provenance=read_metadata(store, PROVENANCE_FILE),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRemoval:
    """The folders of a cache that were removed or, in a dry run, would be; "." is the cache itself."""

    path: Location
    removed: tuple[str, ...]
    num_bytes: int


def run_prune(config: PruneConfig) -> CacheRemoval:
    """Remove sets of confidences, leftovers of stopped runs in a complete cache, or the cache itself.

    Raises:
        ConfigError: there is no cache.
        InUse: an extraction is writing the cache.
    """
    store = open_store(config.cache)
    sizes = require_cache(store)
    if config.all:
        # Never remove a folder that merely contains records/.
        store.require_place()
        if not config.dry_run:
            # A running extraction would go on writing files that nothing could resume.
            with holding(store):
                # The complete record goes first, so an interrupted removal never leaves a cache that looks complete.
                # The identity and the records go last, so the command can be repeated.
                store.delete(COMPLETE_RECORD)
                store.delete(*(name for name in sizes if not name.startswith("records/") and name != IDENTITY_FILE))
                store.delete_under()
                if store.folder is not None:
                    for note in (journal_path(store.folder), verified_path(store.folder)):
                        if may_note(note):
                            note.unlink(missing_ok=True)
                if left := store.list():
                    raise StorageError(
                        "The cache could not be removed completely.",
                        where=store.where(min(left)),
                        next_command=again("see who may write there, then run the same command again"),
                    )
        return CacheRemoval(path=config.cache, removed=(".",), num_bytes=_size(sizes))
    keys = [*(committed_keys(sizes) if config.all_confidences else []), *unfinished_keys(sizes)]
    has_leftovers = COMPLETE_RECORD in sizes and any(name.startswith(f"{WORK_FOLDER}/") for name in sizes)
    folders = (*(f"confidence/{key}" for key in keys), *((WORK_FOLDER,) if has_leftovers else ()))
    if not config.dry_run:
        for key in keys:
            remove_confidence(store, key)
        if has_leftovers:
            with holding(store):
                clear_work(store)
    below = tuple(f"{folder}/" for folder in folders)
    num_bytes = _size({name: size for name, size in sizes.items() if name.startswith(below)})
    return CacheRemoval(path=config.cache, removed=folders, num_bytes=num_bytes)


def _size(sizes: Mapping[str, int]) -> int:
    return sum(max(0, size) for size in sizes.values())
