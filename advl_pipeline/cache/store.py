"""One place that holds a cache, whatever it is: what every command of a cache is written over.

A store is a folder (`folder_store`) or a prefix in a bucket (`stores`); `stores.open_store` alone asks which.
Names are those of `docs/cache-format.md`, relative to the cache. A file is there whole or not at all.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from advl_pipeline.cache.files import Buffer, FileEntry, Files, entry_of
from advl_pipeline.errors import Advice, CorruptCache, StorageError, advise, again
from advl_pipeline.locations import Location

NOT_PLAIN = -1
"""Stands in a listing for the size of what is no plain file, such as a link."""


Stamp = tuple[int, int, int, int]
"""Size, inode, time of modification and of status change, in ns: what tells that a file was not touched."""


class MissingFile(CorruptCache):
    """There is no file of that name."""


class Overtaken(StorageError):
    """Another process has written what this one was writing."""


class Readable(ABC):
    """Files of a cache that can be read."""

    location: Location
    """What the user calls the cache."""
    reads_whole: bool
    """Whether a file comes here whole, and is hashed, when it is opened."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Return the content of a metadata file; raises `CorruptCache`, of it `MissingFile`."""

    @abstractmethod
    def opened(self, name: str, *, release: Callable[[], None] = lambda: None) -> AbstractContextManager[int]:
        """Give a descriptor of a file within the block; a map that is made of it may live on.

        `release` is called when room is needed, not before the block ends; must let go of the map.

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
        """The command that mends the cache."""
        return repair_command(self.location)

    def damaged(self, what: str, name: str, why: str = "") -> CorruptCache:
        """Return the error of a file that is not what it must be, with the command that mends the cache."""
        return CorruptCache(what, where=self.where(name), why=why, next_command=self.repair_command)


class Store(Readable):
    """A cache, finished or not."""

    folder: Path | None = None
    """The folder of this machine that the cache lies in, if it does."""
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
    def settle(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        """Write a file where there is none; returns what stands there then, written by this process or another."""

    def commit(self, name: str, content: bytes) -> FileEntry:
        """Write a record; raises `Overtaken` where another one stands."""
        entry = self.settle(name, [content])
        if entry != entry_of(content):
            raise Overtaken(
                "Another process has written what this one was writing.",
                where=self.where(name),
                next_command=again("give the same command again"),
            )
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
        """Raise `ConfigError` where something else than a cache lies here."""

    @abstractmethod
    def changed(self, files: Files) -> dict[str, Stamp]:
        """Return the files that are not as they were when they were last vouched for, and how they are now.

        Files that are hashed whenever they are read need nobody's word.
        """

    @abstractmethod
    def vouch(self, stamps: Mapping[str, Stamp]) -> None:
        """Note that files have their recorded content for as long as they are as `changed` found them."""

    @abstractmethod
    def reading(self, record: bytes, files: Files) -> Readable:
        """Return what a complete cache is read through, over and over.

        Args:
            record: the complete record, whose digest tells one content of the cache from another.

        Raises:
            CorruptCache: a file that it lists is missing or of another size.
        """


def read_json(store: Readable, name: str) -> Any:
    """Read a JSON file; raises `CorruptCache` when it does not parse."""
    try:
        return json.loads(store.get(name))
    except (ValueError, RecursionError) as error:
        raise store.damaged("A metadata file is damaged.", name, str(error)) from None


def repair_command(location: Location) -> Advice:
    """Return the command that mends a cache."""
    return advise(["advl", "cache", "repair", str(location)])
