"""A place that holds a cache: the interface that every cache command is written against.

A store is a folder or a prefix in a bucket; `stores.open_store` alone asks which. Names are those of
`docs/cache-format.md`, relative to the cache. A file is there whole or not at all. The checks
made when a cache is opened are here too: that it is a cache, that its files are plain, complete and in place.
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
"""Work in progress, inside the cache so that renames stay on one file system; gone once the cache is complete."""

LOCKS = f"{WORK_FOLDER}/locks"
"""Locks of the processes that write a cache in a folder."""

NOT_PLAIN = -1
"""Stands in a listing for the size of what is no plain file, such as a link."""

Buffer = bytes | bytearray | memoryview

Stamp = tuple[int, int, int, int]
"""Size, inode, time of modification and of status change, in ns: what tells that a file was not touched."""


class FileEntry(NamedTuple):
    """Size and hexadecimal SHA-256 of a file; in a record a list of both."""

    num_bytes: int
    sha256: str


Files = Mapping[str, FileEntry]
"""What the files of a cache must be, by name."""


class MissingFile(CorruptCache):
    """There is no file of that name."""


class Overtaken(StorageError):
    """Another process has written, or removed, what this one was writing."""

    usual = (again("run the same command again"),)


class Readable(ABC):
    """Files of a cache that can be read."""

    location: Location
    """What the user calls the cache."""
    is_disk_cache = False
    """Whether files are copies of remote ones: hashed when they are opened, and evicted for others."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Return the content of a metadata file; raises `CorruptCache`, of it `MissingFile`."""

    @abstractmethod
    def opened(self, name: str) -> AbstractContextManager[int]:
        """Give a descriptor of a file within the block; a map that is made of it may live on.

        Raises:
            CorruptCache: the file is missing or no plain file; of files that are hashed, it is damaged.
            StorageError: the store or the disk failed, or there is no room.
        """

    def fetch_ahead(self, names: Iterable[str]) -> None:
        """Bring files here in the background, in this order, where that is a way to go."""
        del names

    def where(self, name: str) -> str:
        """Return what the user calls a file."""
        return f"{self.location}/{name}"

    @property
    def repair_command(self) -> Advice:
        """The command that repairs the cache."""
        return repair_command(self.location)

    def refused(self, what: str, why: str = "", next_command: str = "") -> ConfigError:
        """Return the error of a command that does not apply to this cache or place."""
        return ConfigError(what, where=str(self.location), why=why, next_command=next_command)

    def damaged(self, what: str, name: str, why: str = "") -> CorruptCache:
        """Return the error of a file that is not what it must be, with the command that repairs the cache."""
        return CorruptCache(what, where=self.where(name), why=why, next_command=self.repair_command)


class Store(Readable):
    """A cache, finished or not."""

    folder: Path | None = None
    """The local folder of the cache, if it is in one."""
    max_file_bytes: int | None = None
    """The largest file that the store takes."""
    locks: Path
    """The folder of the locks of processes that write the cache."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """Return the names of all files under a folder with their sizes, `NOT_PLAIN` where they are none.

        Raises:
            CorruptCache: the folder is a link to elsewhere.
        """

    @abstractmethod
    def put(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        """Have a file hold this content, its parts one after another; one that does is left alone.

        Raises:
            StorageError: the store or the disk failed.
        """

    @abstractmethod
    def put_if_absent(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        """Write a file where there is none; returns what stands there then, written by this process or another."""

    def commit(self, name: str, content: bytes) -> FileEntry:
        """Write a record; raises `Overtaken` where another one stands."""
        entry = self.put_if_absent(name, [content])
        if entry != entry_of(content):
            raise Overtaken("Another process has written what this one was writing.", where=self.where(name))
        return entry

    @abstractmethod
    def delete(self, *names: str) -> None:
        """Remove files, and links and folders in their place; what is not there, or cannot be, is no error."""

    @abstractmethod
    def delete_under(self, folder: str = "") -> None:
        """Remove a folder, or all of the cache, with everything below; several processes may do so at once."""

    @abstractmethod
    def prepare_writing(self) -> None:
        """See that a process may write here.

        Raises:
            ConfigError: a file cannot be written on the condition that there is none.
        """

    @abstractmethod
    def require_place(self) -> None:
        """Raise `ConfigError` where something else than a cache is here."""

    def changed(self, files: Files) -> dict[str, Stamp]:
        """Return the files that are not as they were when they were last vouched for, and how they are now.

        Files that are hashed whenever they are read need nobody's word.
        """
        del files
        return {}

    def mark_verified(self, stamps: Mapping[str, Stamp]) -> None:
        """Note that files have their recorded content for as long as they are as `changed` found them."""

    @abstractmethod
    def reading(self, record: bytes, files: Files) -> Readable:
        """Return what a complete cache is read through, over and over.

        Args:
            record: the complete record, whose digest tells one content of the cache from another.

        Raises:
            CorruptCache: a file that it lists is missing or of another size.
        """


def render_json(value: Any) -> bytes:
    """JSON for people, in one deterministic form."""
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
    """Return the file next to a cache that says how long it took, such as train.extraction.jsonl next to train/."""
    return cache_note(cache, "extraction.jsonl")


def verified_path(cache: Path) -> Path:
    """Return the file next to a cache that notes how its files were when they were last seen to be sound."""
    return cache_note(cache, "vouched.json")


def entry_of(*parts: Buffer) -> FileEntry:
    """Return size and digest of a file that consists of these parts."""
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
    """Whether a name can be that of a file below the cache."""
    return "\0" not in relative and not {"", ".", ".."} & set(relative.split("/"))


def safe_path(root: Path, relative: str) -> Path:
    """Return the path of a file of the cache, refusing names and links that lead elsewhere.

    Raises:
        CorruptCache: the name leaves the cache, by `..` or by a symbolic link.
    """
    if not is_inside(relative):
        raise CorruptCache("A file name leaves the cache.", where=relative)
    path = root / relative
    if any(place.is_symlink() for place in (path, *path.parents[: relative.count("/")])):
        raise CorruptCache("A file of the cache is a link to elsewhere.", where=str(path))
    return path


def require_cache(store: Store) -> dict[str, int]:
    """Return the sizes of all files; raises `ConfigError` where there is neither a cache nor a started one."""
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
        why = "a stopped extraction had not begun to write" if is_begun else near
        words = "advl extract --teacher NAME --dataset NAME --split SPLIT --output".split()
        raise store.refused("There is no cache here.", why, advise([*words, str(store.location)]))
    return sizes


def get_recorded(store: Readable, name: str, files: Files) -> bytes:
    """Read a small file whose content must be what the commit record says; raises `CorruptCache`."""
    raw = store.get(name)
    if entry_of(raw) != files.get(name):
        raise store.damaged("A file of the cache is not what its commit record says.", name)
    return raw


def require_sizes(store: Readable, sizes: Mapping[str, int], files: Files) -> None:
    """Check that every recorded file is there, plain and of its recorded size; raises `CorruptCache`."""
    for name, entry in files.items():
        if problem := size_problem(sizes, name, entry.num_bytes):
            raise store.damaged("A file of the cache is damaged.", name, problem)


def content_problem(actual: FileEntry, entry: FileEntry) -> str | None:
    """Return in which way a file is not what it must be, or None."""
    if actual.num_bytes != entry.num_bytes:
        return f"it has {actual.num_bytes} bytes instead of {entry.num_bytes}"
    return None if actual == entry else "its content changed"


def size_problem(sizes: Mapping[str, int], name: str, num_bytes: int) -> str | None:
    """Return what a listing shows to be wrong with a file, or None."""
    actual = sizes.get(name)
    if actual == num_bytes:
        return None
    if actual is None:
        parts = name.split("/")
        is_below_link = any("/".join(parts[:count]) in sizes for count in range(1, len(parts)))
        return "a folder above it is a link, or no folder" if is_below_link else "it is missing"
    return "it is no plain file" if actual == NOT_PLAIN else f"it has {actual} bytes instead of {num_bytes}"
