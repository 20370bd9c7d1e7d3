"""Digests of the files of a dataset, remembered so that unchanged files are not read again.

A digest is always of content. The table of what was digested before is a short cut in the manner of git's index:
a row is believed only while size, modification time and change time are the recorded ones, and a file that changed
less than two seconds before it was read is not recorded at all (a second change could leave the same times).
Nothing of the table enters an identity; deleting it costs time only.

The table is one memory-mapped `.npy` file per dataset folder, sorted by a hash of the relative path.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.pictures import decode_picture, picture_size, regular_file
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.roots import index_unwritable

FACTS = np.dtype(
    [
        ("key", "<u8"),
        ("check", "<u8"),
        ("size", "<i8"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("digest", "u1", (32,)),
        ("width", "<i4"),
        ("height", "<i4"),
        ("decoded", "u1"),
    ]
)
"""One row per file; width and height are 0 where nobody asked for a picture's size, decoded is 1 where all its pixels
were."""

_IDENTIFYING = ("key", "check", "size", "mtime_ns", "ctime_ns")
_TABLE = "files.npy"
_RACY_NS = 2_000_000_000
_CHUNK = 1 << 20
_MIN_FLUSH = 256
_THREADS = 4
_WINDOW = 256


class Depth(IntEnum):
    """How far a file is looked into: its bytes, a picture's header too, all of a picture's pixels too."""

    BYTES = 0
    HEADER = 1
    PIXELS = 2


@dataclass(frozen=True, slots=True)
class FileFacts:
    """SHA-256 digest of a file's bytes; size of a picture in pixels, (0, 0) where it was not asked for.

    `decoded` says that all pixels of the picture were decoded once, so that it is not cut off.
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
        table_folder: where the table lies (`roots.index_folder`).

    Handles open lazily: an instance can be sent to another process.
    """

    def __init__(self, folder: Path, table_folder: Path) -> None:
        self.folder = folder
        self._table_path = table_folder / _TABLE
        self._table: npt.NDArray[Any] | None = None
        self._fresh: dict[str, FileFacts] = {}
        self._unsaved: dict[tuple[int, int], tuple[Any, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def facts(self, name: str, depth: Depth = Depth.BYTES) -> FileFacts:
        """Return the facts of one file.

        Args:
            name: relative to the folder.
            depth: how far to look into it at least.

        Raises:
            Malformed: the file is missing, empty, or not a picture that Pillow can open, or at `PIXELS` decode.
        """
        known = self._fresh.get(name)
        if known is not None and known.depth >= depth:
            return known
        return self._learn(name, self._determine(name, depth))

    def warm(self, names: Sequence[str], depth: Depth = Depth.BYTES) -> None:
        """Learn many files with a few threads; a file that cannot be read is left for `facts` to name."""
        self._recall(names)
        missing = [name for name in names if not ((known := self._fresh.get(name)) and known.depth >= depth)]
        if not missing:
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(missing), _WINDOW):
                part = missing[start : start + _WINDOW]
                for name, found in zip(part, pool.map(lambda name: self._attempt(name, depth), part), strict=True):
                    if found is not None:
                        self._learn(name, found)
        self.flush()

    def flush(self) -> None:
        """Write what was learned to the table, atomically.

        Two processes that flush at once lose rows of one of them, never their truth.

        Raises:
            DatasetError: the table cannot be written.
        """
        if not self._unsaved:
            return
        table = _merge(_open_table(self._table_path), np.array(list(self._unsaved.values()), dtype=FACTS))
        draft = self._table_path.with_name(f"{_TABLE}.{uuid.uuid4().hex}.draft.npy")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            np.save(draft, table, allow_pickle=False)
            draft.replace(self._table_path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise index_unwritable(self._table_path.parent, error) from None
        self._unsaved = {}
        self._table = table

    def _recall(self, names: Sequence[str]) -> None:
        """Take from the table what it knows of many files, by columns: an epoch's start stats files, no more."""
        # Threads find the table loaded later: NumPy parses headers with `ast`, whose state CPython 3.11 shares.
        table = self._load()
        if not len(table):
            return
        wanted = []
        for name in names:
            if name not in self._fresh:
                try:
                    status = os.stat(f"{self.folder}/{name}")  # noqa: PTH116 - a tenth of a Path's time, 160,000 times
                except OSError:
                    continue
                times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                wanted.append((name, (*_key(name), *times)))
        asked = np.array([values for _, values in wanted], dtype=[(name, FACTS[name]) for name in _IDENTIFYING])
        places = np.minimum(np.searchsorted(table["key"], asked["key"]), len(table) - 1)
        found = table[places]
        equal = np.logical_and.reduce([found[name] == asked[name] for name in _IDENTIFYING])
        digests, widths, heights = found["digest"].tobytes(), found["width"].tolist(), found["height"].tolist()
        decoded = found["decoded"].astype(bool).tolist()
        for position in np.flatnonzero(equal).tolist():
            digest = digests[32 * position : 32 * position + 32]
            self._fresh[wanted[position][0]] = FileFacts(
                digest, widths[position], heights[position], decoded[position]
            )

    def _learn(self, name: str, found: tuple[FileFacts, tuple[Any, ...] | None]) -> FileFacts:
        facts, row = found
        self._fresh[name] = facts
        if row is not None:
            self._unsaved[row[0], row[1]] = row
            if len(self._unsaved) >= max(_MIN_FLUSH, len(self._load()) // 4):
                self.flush()
        return facts

    def _attempt(self, name: str, depth: Depth) -> tuple[FileFacts, tuple[Any, ...] | None] | None:
        try:
            return self._determine(name, depth)
        except Malformed:
            return None

    def _determine(self, name: str, depth: Depth) -> tuple[FileFacts, tuple[Any, ...] | None]:
        """Return the facts, and the row to record when they were read anew from a file that lies still."""
        path = self.folder / name
        try:
            status = path.stat()
        except OSError:
            raise Malformed(f"{name} is missing") from None
        key = _key(name)
        facts = self._remembered(key, status)
        if facts is not None and facts.depth >= depth:
            return facts, None
        facts = _read(path, name, depth)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) <= _RACY_NS:
            return facts, None
        times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest = np.frombuffer(facts.digest, np.uint8)
        return facts, (*key, *times, digest, facts.width, facts.height, facts.decoded)

    def _remembered(self, key: tuple[int, int], status: os.stat_result) -> FileFacts | None:
        table = self._load()
        position = int(np.searchsorted(table["key"], np.uint64(key[0])))
        if position == len(table):
            return None
        row = table[position]
        recorded = (int(row["check"]), int(row["size"]), int(row["mtime_ns"]), int(row["ctime_ns"]))
        if int(row["key"]) != key[0] or recorded != (
            key[1],
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ):
            return None
        return FileFacts(bytes(row["digest"]), int(row["width"]), int(row["height"]), bool(row["decoded"]))

    def _load(self) -> npt.NDArray[Any]:
        # The threads of `warm` read while its caller flushes and drops the table: look at the field once.
        table = self._table
        if table is None:
            table = self._table = _open_table(self._table_path)
        return table


def _open_table(path: Path) -> npt.NDArray[Any]:
    """Map the table; one that is absent or damaged counts as empty and is written anew."""
    try:
        table: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0, dtype=FACTS)
    return table if table.dtype == FACTS and table.ndim == 1 else np.zeros(0, dtype=FACTS)


def _merge(older: npt.NDArray[Any], newer: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the rows of both by key, of equal keys the newer one."""
    both = np.concatenate([older, newer])
    both = both[np.lexsort((np.arange(len(both)), both["check"], both["key"]))]
    last = np.ones(len(both), dtype=bool)
    last[:-1] = (both["key"][:-1] != both["key"][1:]) | (both["check"][:-1] != both["check"][1:])
    return both[last]


def _key(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _read(path: Path, name: str, depth: Depth) -> FileFacts:
    state = hashlib.sha256()
    try:
        with regular_file(path) as file:
            while block := file.read(_CHUNK):
                state.update(block)
    except OSError as error:
        raise Malformed(f"{name} cannot be read: {error.strerror}") from None
    width, height = picture_size(path, name) if depth >= Depth.HEADER else (0, 0)
    if depth >= Depth.PIXELS:
        decode_picture(path, name)
    return FileFacts(state.digest(), width, height, depth >= Depth.PIXELS)
