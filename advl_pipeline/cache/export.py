"""Export to formats that other tools read: HDF5, safetensors, Parquet. One shard at a time is in memory.

Shapes: N units, M token rows, D feature width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from advl_pipeline.atomic import give_usual_mode, make_folder, replacing
from advl_pipeline.cache.config import ExportConfig
from advl_pipeline.cache.identity import canonical_json
from advl_pipeline.cache.reader import FeatureStore, TeacherCache, open_cache
from advl_pipeline.errors import ConfigError
from advl_pipeline.outputs import require_outputs
from advl_pipeline.packages import install_extra

_UNITS_AT_ONCE = 4096

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written."""

    output: Path
    files: tuple[str, ...]
    num_units: dict[str, int]
    num_bytes: int


def run_export(config: ExportConfig) -> ExportResult:
    """Write a cache's features in another format.

    Every unit's id, global feature, token rows, lengths and character spans are written, quarantined units left out.

    Raises:
        ConfigError: the output exists, or the format needs a library that is not installed.
        CorruptCache: the cache cannot be read. StorageError: the disk is full or failed; no output is left.
    """
    require_outputs(config)
    cache = open_cache(config.cache)
    writers = {"hdf5": _to_hdf5, "safetensors": _to_safetensors, "parquet": _to_parquet}
    make_folder(config.output.parent)
    with replacing(config.output, SafetensorError) as partial:
        writers[config.to](cache, partial)
    files = [config.output] if config.output.is_file() else sorted(config.output.iterdir())
    return ExportResult(
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
            if store.has_spans:
                arrays["char_spans"] = store.char_spans(chosen)
            if store.has_kept:
                arrays["token_kept"] = store.kept_tokens(chosen)
            if store.has_regions:
                arrays |= {f"token_{name}": rows for name, rows in store.regions(chosen).items()}
        yield chosen, arrays


class _HeldFile(io.FileIO):
    """A file for HDF5, which crashes when it must close a file after a failed write: failures are held back.

    From the first failure on, writes seem to succeed; `raise_failure` tells of it.
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
    from safetensors.numpy import save_file

    output.mkdir()
    for modality, store in cache.stores().items():
        for number, (chosen, arrays) in enumerate(_parts(store)):
            path = output / f"{modality}-{number:05d}.safetensors"
            identifiers = np.frombuffer(bytes.fromhex("".join(chosen)), np.uint8).reshape(len(chosen), -1)
            content = {"unit_id": identifiers, **arrays}
            save_file(
                {name: np.ascontiguousarray(rows) for name, rows in content.items()},
                path,
                metadata={"identity": canonical_json(cache.identity).decode()},
            )
            give_usual_mode(path)


def _to_parquet(cache: TeacherCache, output: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError("Writing Parquet needs pyarrow.", next_command=install_extra("parquet")) from None

    output.mkdir()
    for modality, store in cache.stores().items():
        path = output / f"{modality}.parquet"
        file = None
        for chosen, arrays in _parts(store):
            columns = {"unit_id": pa.array(chosen), "global": _fixed_rows(pa, arrays["global"])}
            if "token_values" in arrays:
                offsets = pa.array(np.concatenate([[0], np.cumsum(arrays["token_lengths"])]).astype(np.int32))
                columns["tokens"] = pa.ListArray.from_arrays(offsets, _fixed_rows(pa, arrays["token_values"]))
                for name, rows in arrays.items():
                    if name not in ("global", "token_values", "token_lengths"):
                        cells = _fixed_rows(pa, rows) if rows.ndim == 2 else pa.array(rows)
                        columns[name] = pa.ListArray.from_arrays(offsets, cells)
            table = pa.table(columns).replace_schema_metadata({"identity": canonical_json(cache.identity).decode()})
            file = file or pq.ParquetWriter(path, table.schema)
            file.write_table(table)
        if file is not None:
            file.close()


def _fixed_rows(pa: Any, rows_MD: npt.NDArray[Any]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows_MD).reshape(-1)), rows_MD.shape[1])
