"""Digests of the files of a dataset, cached so that unchanged files are not read again.

A digest always depends on content only. The table of known digests is a cache, similar to git's index: a row is
valid only while size, modification time and change time match the record, and a file that changed less than two
seconds before it was read is not recorded (a second change could leave the same times). The table does not enter
any identity; deleting it only costs time.

The table is one `.npy` file per dataset folder, with a row per file under a hash of its relative path.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advl_pipeline.base.locations import regular_file, status_of
from advl_pipeline.datasets.index_files import index_draft, seal_index, sealed_size
from advl_pipeline.datasets.pictures import decode_picture, read_file, size_of
from advl_pipeline.datasets.problems import Malformed, replaced

FACTS = np.dtype(
    [
        ("name", "V16"),
        *((name, "<i8") for name in ("size", "mtime_ns", "ctime_ns")),
        ("digest", "V32"),
        *((name, "<i4") for name in ("width", "height")),
        ("decoded", "?"),
    ]
)
_TABLE = "files.npy"
_RACY_NS = 2_000_000_000
_MIN_FLUSH = 256
_THREADS = 4
_WINDOW = 256


class Depth(IntEnum):
    """Depth of the check of a file: its bytes, also a picture's header, or also all of a picture's pixels."""

    BYTES = 0
    HEADER = 1
    PIXELS = 2


class FileFacts(NamedTuple):
    """SHA-256 digest of a file's bytes, and size of a picture in pixels, (0, 0) if not requested.

    `decoded` says that all pixels of the picture were decoded once, so the file is not truncated.
    """

    digest: bytes
    width: int = 0
    height: int = 0
    decoded: bool = False

    @property
    def depth(self) -> Depth:
        if self.decoded:
            return Depth.PIXELS
        return Depth.HEADER if self.width else Depth.BYTES


class FileDigests:
    """Digests of files below one folder.

    Args:
        folder: the dataset's folder; names are relative to it.
        table_folder: folder of the table (`roots.index_folder`).

    The table is read on first use, so that an instance can be sent to another process.
    """

    def __init__(self, folder: Path, table_folder: Path) -> None:
        self.folder = folder
        self._path = table_folder / _TABLE
        self._table: dict[bytes, tuple[Any, ...]] | None = None
        self._fresh: dict[str, FileFacts] = {}
        self._unsaved: dict[bytes, tuple[Any, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def facts(self, name: str, depth: Depth = Depth.BYTES) -> FileFacts:
        """Return the facts of one file.

        Args:
            name: path relative to the folder.
            depth: minimum depth of the check.

        Raises:
            Malformed: the file is missing, empty, or not a picture that Pillow can open, or at `PIXELS` decode.
            FileReplaced: it is not the file that was digested before.
        """
        return self._known(name, depth) or self._learn(name, *self._read(name, depth))

    def warm(self, names: Sequence[str], depth: Depth = Depth.BYTES) -> None:
        """Digest many files with a few threads; unreadable files are left for `facts` to report."""

        def attempt(name: str) -> tuple[FileFacts, tuple[Any, ...] | None] | None:
            try:
                return self._read(name, depth)
            except Malformed:
                return None

        missing = [name for name in names if self._known(name, depth) is None]
        if not missing:
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(missing), _WINDOW):
                part = missing[start : start + _WINDOW]
                for name, learned in zip(part, pool.map(attempt, part), strict=True):
                    if learned is not None:
                        self._learn(name, *learned)
        self.flush()

    def flush(self) -> None:
        """Write new digests to the table, atomically.

        Two processes that flush at the same time may lose rows of one of them, but never store wrong rows.

        Raises:
            DatasetError: the table cannot be written.
        """
        if not self._unsaved:
            return
        self._table = _open_table(self._path) | self._unsaved
        rows = [(name, *row) for name, row in self._table.items()]
        with index_draft(self._path) as draft:
            with draft.open("wb") as file:
                np.save(file, np.array(rows, dtype=FACTS), allow_pickle=False)
            seal_index(draft, self._path.name)
        self._unsaved = {}

    def _known(self, name: str, depth: Depth) -> FileFacts | None:
        """Return the known facts of a file, or those of an unchanged file in the table; None for too little."""
        fresh = self._fresh.get(name)
        if fresh is not None and fresh.depth >= depth:
            return fresh
        if self._table is None:
            self._table = _open_table(self._path)
        row = self._table.get(_key(name))
        if row is None:
            return None
        try:
            status = os.stat(f"{self.folder}/{name}")  # noqa: PTH116 - a tenth of a Path's time, 160,000 times
        except OSError:
            return None
        facts = FileFacts(*row[3:])
        if row[:3] != _times(status) or facts.depth < depth:
            return None
        return self._remember(name, facts)

    def _remember(self, name: str, facts: FileFacts) -> FileFacts:
        """Keep the facts of a file; refuse another digest than the one that an identity may have been made of."""
        if name in self._fresh and self._fresh[name].digest != facts.digest:
            raise replaced(self.folder / name)
        self._fresh[name] = facts
        return facts

    def _learn(self, name: str, facts: FileFacts, row: tuple[Any, ...] | None) -> FileFacts:
        if row is not None:
            self._unsaved[_key(name)] = row
            if len(self._unsaved) >= max(_MIN_FLUSH, len(self._table or ()) // 4):
                self.flush()
        return self._remember(name, facts)

    def _read(self, name: str, depth: Depth) -> tuple[FileFacts, tuple[Any, ...] | None]:
        """Read a file and return its facts, and the row to record if the file did not just change."""
        path = self.folder / name
        try:
            times = _times(status_of(path))
        except OSError:
            raise Malformed(f"{name} is missing") from None
        facts = _facts_of_file(path, name) if depth == Depth.BYTES else _facts_of_picture(path, name, depth)
        is_still = time.time_ns() - max(times[1:]) > _RACY_NS
        return facts, (*times, *facts) if is_still else None


def _facts_of_file(path: Path, name: str) -> FileFacts:
    try:
        with regular_file(path) as file:
            return FileFacts(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise Malformed(f"{name} cannot be read: {error.strerror}") from None


def _facts_of_picture(path: Path, name: str, depth: Depth) -> FileFacts:
    content = read_file(path, name)
    width, height = size_of(content, name)
    if depth >= Depth.PIXELS:
        decode_picture(content, name)
    return FileFacts(hashlib.sha256(content).digest(), width, height, depth >= Depth.PIXELS)


def _open_table(path: Path) -> dict[bytes, tuple[Any, ...]]:
    """Read the table; a missing or damaged table counts as empty and is rewritten."""
    try:
        size = sealed_size(path)
        table = np.load(io.BytesIO(path.read_bytes()[:size]), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return {}
    return {row[0]: row[1:] for row in table.tolist()} if table.dtype == FACTS and table.ndim == 1 else {}


def _times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _key(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
