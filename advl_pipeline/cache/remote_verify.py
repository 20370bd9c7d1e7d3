"""Verification of a cache in an object store: every object is read once, and no shard is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from advl_pipeline.cache.files import WORK_FOLDER, FileEntry, safe_path, storage_error
from advl_pipeline.cache.object_store import MissingObject, ObjectStore
from advl_pipeline.cache.records import COMPLETE_RECORD
from advl_pipeline.cache.remote_reader import require_remote_cache
from advl_pipeline.cache.verify import (
    Finding,
    VerifyReport,
    file_problem,
    one_per_file,
    recorded_files,
    row_specs,
    senseless,
    senseless_rows,
)
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import AdvlError, CorruptCache
from advl_pipeline.locations import Url

_BULK = re.compile(r"^(image|text)/(global|tokens/(?!starts/|lengths/)[a-z_]+)/c/")
_METADATA_BYTES = 1 << 28


def verify_remote_cache(url: Url, *, progress: Callable[[int], object] = lambda _: None) -> VerifyReport:
    """Check a complete cache under a URL; as `verify.verify_cache`.

    Raises:
        ConfigError: there is no cache.
        StorageError: the store refuses access or cannot be reached.
    """
    store = ObjectStore(url)
    sizes = require_remote_cache(store)
    findings: list[Finding] = []
    with TemporaryDirectory(prefix="advl-verify-") as scratch:
        root = Path(scratch)
        fetch_metadata(store, root, sizes)
        files = recorded_files(root, findings)
        for name in sorted(files, key=lambda name: (is_bulk(name), name)):
            finding = _check_object(store, root, name, files[name], sizes)
            if finding is None and is_bulk(name):
                finding = _check_features(root, name) if not findings else None
                (root / name).unlink()
            findings += [finding] if finding is not None else []
            progress(files[name].num_bytes)
        if COMPLETE_RECORD not in {finding.path for finding in findings}:
            records = {name for name in sizes if re.fullmatch(r"records/confidence-[0-9a-f]+\.json", name)}
            known = {*files, COMPLETE_RECORD, *records}
            findings += [Finding(path=name, problem="it belongs to no record") for name in sizes if name not in known]
        if not findings:
            findings += senseless(root, features=False)
    return VerifyReport(
        path=url,
        files=files,
        num_bytes=sum(entry.num_bytes for entry in files.values()),
        findings=one_per_file(findings),
    )


def is_bulk(name: str) -> bool:
    """Whether a file is a shard of features, which is what a cache mostly consists of."""
    return _BULK.match(name) is not None


def fetch_metadata(store: ObjectStore, root: Path, sizes: dict[str, int]) -> None:
    """Bring every JSON file of a cache into a folder, work in progress aside.

    An impossible name or size is left for verification to find.
    """
    for name, size in sizes.items():
        if name.endswith(".json") and not name.startswith(f"{WORK_FOLDER}/") and size <= _METADATA_BYTES:
            with suppress(CorruptCache):
                fetch_object(store, root, name)


def fetch_object(store: ObjectStore, root: Path, name: str) -> None:
    """Bring an object into a folder, in blocks.

    Raises:
        CorruptCache: it is missing, or its name leads out of the folder.
        StorageError: the disk or the store failed.
    """
    path = safe_path(root, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            for block in store.stream(name):
                handle.write(block)
    except MissingObject:
        path.unlink()
        raise CorruptCache("An object of the cache is missing.", where=f"{store.url}/{name}") from None
    except OSError as error:
        raise storage_error(error, str(path)) from error


def _check_object(
    store: ObjectStore, root: Path, name: str, entry: FileEntry, sizes: dict[str, int]
) -> Finding | None:
    found = sizes.get(name)
    if found is None:
        return Finding(path=name, problem="it is missing")
    if found != entry.num_bytes:
        return Finding(path=name, problem=f"it has {found} bytes instead of {entry.num_bytes}")
    try:
        if not (root / name).is_file():
            fetch_object(store, root, name)
        problem = file_problem(root, name, entry)
    except CorruptCache as error:
        problem = error.what
    return Finding(path=name, problem=problem) if problem else None


def _check_features(root: Path, name: str) -> Finding | None:
    """Look at a shard while it is here. Everything smaller is here already and sound."""
    try:
        writer = CacheWriter(root)
        for spec in row_specs(writer, name.partition("/")[0]):
            for shard in range(spec.num_shards):
                if spec.shard_path(shard) == name:
                    return senseless_rows(root, spec, shard)
    except AdvlError as error:
        return Finding(path=name, problem=error.what)
    return None
