"""Storage of a cache: the interface that all cache commands use.

A store is a folder or a prefix in a bucket; only `stores.open_store` asks which. File names are those of
`docs/cache-format.md`, relative to the cache. A file is either complete or absent. The module also has the checks
made when a cache is opened: that it is a cache, and that its files are regular, complete and in place.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from advl_pipeline.base.errors import Advice, ConfigError, CorruptCache, StorageError, Suggestion, advise, again
from advl_pipeline.base.folders import MARKERS, cache_note, near_folder
from advl_pipeline.base.locations import Location

IDENTITY_FILE = MARKERS["cache"].file

WORK_FOLDER = ".work"
"""Work in progress, inside the cache so that renames stay on one file system; removed on completion."""

LOCKS = f"{WORK_FOLDER}/locks"
"""Locks of the processes that write a cache in a folder."""

NOT_PLAIN = -1
"""The size in a listing of anything that is not a regular file, such as a link."""

Buffer = bytes | bytearray | memoryview

Stamp = tuple[int, int, int, int]
"""Size, inode, mtime and ctime in ns. They show whether a file was touched."""


class FileEntry(NamedTuple):
    """Size and hexadecimal SHA-256 of a file; a two-item list in a record."""

    num_bytes: int
    sha256: str


Files = Mapping[str, FileEntry]
"""Recorded size and digest of the files of a cache, by name."""


class MissingFile(CorruptCache):
    """A file that does not exist."""


class Overtaken(StorageError):
    """A conflict: another process wrote or removed what this one was writing."""

    usual = (again("run the same command again"),)


class Readable(ABC):
    """Read access to the files of a cache."""

    location: Location
    """The cache's location as the user gave it."""
    is_disk_cache = False
    """Whether files are copies of remote ones, which are hashed when opened."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Return the content of a metadata file; raises `CorruptCache`, or its subclass `MissingFile`."""

    @abstractmethod
    def opened(self, name: str) -> AbstractContextManager[int]:
        """Open a file for the block and give its descriptor; a memory map of it may outlive the block.

        Raises:
            CorruptCache: the file is missing or not regular, or, if it is hashed on opening, damaged.
            StorageError: the store or the disk failed, or there is no space.
        """

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Fetch files in the background, in this order; does nothing if files are local."""
        del names

    def where(self, name: str) -> str:
        """Return a file's location as the user would write it."""
        return f"{self.location}/{name}"

    @property
    def repair_command(self) -> Advice:
        """The command that repairs the cache."""
        return repair_command(self.location)

    def refused(self, what: str, why: str = "", next_command: str = "") -> ConfigError:
        """Return the error for a command that does not apply to this cache or location."""
        return ConfigError(what, where=str(self.location), why=why, next_command=next_command)

    def damaged(self, what: str, name: str, why: str = "") -> CorruptCache:
        """Return the error for a damaged file, with the command that repairs the cache."""
        return CorruptCache(what, where=self.where(name), why=why, next_command=self.repair_command)


class Store(Readable):
    """A cache, finished or not."""

    folder: Path | None = None
    """The local folder of the cache, or None."""
    max_file_bytes: int | None = None
    """The largest file that the store accepts."""
    locks: Path
    """The folder with the locks of the processes that write the cache."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of all files under a folder by name, `NOT_PLAIN` for those that are not regular.

        Raises:
            CorruptCache: the folder is a symbolic link.
        """

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        """Write a file from concatenated parts; a file with the same content is left alone.

        Raises:
            StorageError: the store or the disk failed.
        """

    @abstractmethod
    def put_if_absent(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        """Write a file unless it exists; return the entry of the existing or the new file."""

    def commit(self, name: str, content: bytes) -> FileEntry:
        """Write a record; raises `Overtaken` if a different one exists."""
        entry = self.put_if_absent(name, [content])
        if entry != entry_of(content):
            raise Overtaken("Another process has already written this record.", where=self.where(name))
        return entry

    @abstractmethod
    def delete(self, *names: str) -> None:
        """Remove files, and links and folders in their place; a missing or impossible name is not an error."""

    @abstractmethod
    def delete_under(self, folder: str = "") -> None:
        """Remove a folder, or the entire cache, recursively; several processes may do so at once."""

    @abstractmethod
    def prepare_writing(self) -> None:
        """Check that this process may write here.

        Raises:
            ConfigError: the store does not support conditional writes (create only if absent).
        """

    @abstractmethod
    def require_place(self) -> None:
        """Raise `ConfigError` if the location contains something other than a cache."""

    def changed(self, files: Files) -> dict[str, Stamp]:
        """Return the current stamps of the files that changed since they were last verified.

        Files that are hashed on every read are never listed.
        """
        del files
        return {}

    def mark_verified(self, stamps: Mapping[str, Stamp]) -> None:
        """Note that files have their recorded content as long as they keep these stamps from `changed`."""

    @abstractmethod
    def reading(self, record: bytes, files: Files) -> Readable:
        """Return the store for repeated reads of a complete cache.

        Args:
            record: the complete record, whose digest identifies the content of the cache.
            files: the files that it lists.

        Raises:
            CorruptCache: a listed file is missing or has another size.
        """


def render_json(value: Any) -> bytes:
    """Return human-readable JSON in one deterministic form."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_metadata(store: Readable, name: str) -> Any:
    """Read a JSON file; raises `CorruptCache` when it does not parse."""
    try:
        return json.loads(store.get(name))
    except (ValueError, RecursionError) as error:
        raise store.damaged("A metadata file is damaged.", name, str(error)) from None


def repair_command(location: Location) -> Advice:
    """Return the command that repairs a cache."""
    return advise(["advl", "cache", "repair", str(location)])


def journal_path(cache: Path) -> Path:
    """Return the file next to a cache with its extraction times: train.extraction.jsonl next to train/."""
    return cache_note(cache, "extraction.jsonl")


def verified_path(cache: Path) -> Path:
    """Return the file next to a cache with the stamps of its files at the last verification."""
    return cache_note(cache, "vouched.json")


def entry_of(*parts: Buffer) -> FileEntry:
    """Return size and digest of a file with these parts as content."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return FileEntry(num_bytes=sum(memoryview(part).nbytes for part in parts), sha256=state.hexdigest())


def hash_file(file: Path | int) -> FileEntry:
    """Return size and digest of a file, by its path or its descriptor."""
    with open(file, "rb", buffering=0, closefd=isinstance(file, Path)) as handle:
        handle.seek(0)
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        return FileEntry(num_bytes=handle.tell(), sha256=sha256)


def is_inside(relative: str) -> bool:
    """Return whether a name can be that of a file inside the cache."""
    return "\0" not in relative and not {"", ".", ".."} & set(relative.split("/"))


def safe_path(root: Path, relative: str) -> Path:
    """Return the path of a file of the cache; refuse names and links that lead out of it.

    Raises:
        CorruptCache: the name leads out of the cache, by `..` or by a symbolic link.
    """
    if not is_inside(relative):
        raise CorruptCache("A file name points outside the cache.", where=relative)
    path = root / relative
    if any(place.is_symlink() for place in (path, *path.parents[: relative.count("/")])):
        raise CorruptCache("A file of the cache is a link to elsewhere.", where=str(path))
    return path


def require_cache(store: Store) -> dict[str, int]:
    """Return the sizes of all files; raises `ConfigError` if there is no complete or started cache."""
    sizes = store.list()
    if IDENTITY_FILE not in sizes and not any(name.startswith("records/") for name in sizes):
        below = sorted(name.removesuffix(f"/{IDENTITY_FILE}") for name in sizes if name.endswith(f"/{IDENTITY_FILE}"))
        if below:
            here = str(store.location)
            hint = Suggestion(f"there {'is one' if len(below) == 1 else 'are some'} below it: {', '.join(below[:4])}")
            hint.wanted, hint.nearest = here, f"{here.rstrip('/')}/{below[0]}"
            raise store.refused("There is no cache here.", hint)
        near = near_folder(store.location, "cache") if isinstance(store.location, Path) else ""
        is_begun = any(name.startswith(f"{WORK_FOLDER}/") for name in sizes)
        raise store.refused(
            "There is no cache here.",
            "a stopped extraction had not begun to write" if is_begun else near,
            advise(
                [*"advl extract --teacher NAME --dataset NAME --split SPLIT --output".split(), str(store.location)]
            ),
        )
    return sizes


def get_recorded(store: Readable, name: str, files: Files) -> bytes:
    """Read a small file and check it against the commit record; raises `CorruptCache`."""
    raw = store.get(name)
    if entry_of(raw) != files.get(name):
        raise store.damaged("A file of the cache does not match its commit record.", name)
    return raw


def require_sizes(store: Readable, sizes: Mapping[str, int], files: Files) -> None:
    """Check that every recorded file exists, is regular and has its recorded size; raises `CorruptCache`."""
    for name, entry in files.items():
        if problem := size_problem(sizes, name, entry.num_bytes):
            raise store.damaged("A file of the cache is damaged.", name, problem)


def content_problem(actual: FileEntry, entry: FileEntry) -> str | None:
    """Return how a file differs from its recorded size and digest, or None."""
    if actual.num_bytes != entry.num_bytes:
        return f"it has {actual.num_bytes} bytes instead of {entry.num_bytes}"
    return None if actual == entry else "its content changed"


def size_problem(sizes: Mapping[str, int], name: str, num_bytes: int) -> str | None:
    """Return the problem with a file that a listing shows, or None."""
    actual = sizes.get(name)
    if actual == num_bytes:
        return None
    if actual is None:
        parts = name.split("/")
        is_below_link = any("/".join(parts[:count]) in sizes for count in range(1, len(parts)))
        return "a folder above it is a link, or no folder" if is_below_link else "it is missing"
    return "it is no plain file" if actual == NOT_PLAIN else f"it has {actual} bytes instead of {num_bytes}"
