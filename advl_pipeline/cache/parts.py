"""Division of the writing of a cache: one process, or several that each write a locked part of the shards.

Parts are disjoint by arithmetic, so the processes of a job array need no communication: the one that commits the last
shard completes the cache. A lock prevents two processes of one machine, or of several that share a folder, from
writing the same part. It is not part of the cache, and ends with its process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.base.errors import ConfigError, InUse
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.cache.store import Store

_SECONDS_TO_DIE = 3.0
"""Maximum wait for the lock of a process that was just killed."""

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True, slots=True)
class ExtractionPart:
    """Part `number` of `count`, from 1."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, shard: int) -> bool:
        """Return whether the shard of this number, counted over all modalities, belongs to the part."""
        return shard % self.count == self.number - 1


WHOLE = ExtractionPart()


def parse_part(text: str) -> ExtractionPart:
    """Parse "I/N"; raises `ConfigError`."""
    numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part = ExtractionPart(int(numbers[1]), int(numbers[2])) if numbers else ExtractionPart(0, 0)
    if not 1 <= part.number <= part.count:
        raise ConfigError(
            f"--part must be I/N with I from 1 to N, not {text!r}.",
            where="--part",
            next_command="of four processes, give one --part 1/4, the next --part 2/4, and so on",
        )
    return part


@contextmanager
def holding(store: Store, part: ExtractionPart = WHOLE) -> Iterator[None]:
    """Lock a part of a cache for this process until the block ends.

    Raises:
        InUse: another process, of this machine or of one that shares the folder, has locked it or some of its shards.
        ConfigError: the object store does not support conditional writes.
    """
    store.prepare_writing()
    folders = [store.locks, *store.locks.parents]
    made = [folder for folder in folders if not folder.exists()]
    try:
        with _locked(store.locks / f"part-{part.number}-of-{part.count}", f"this cache, part {part}"):
            for path in store.locks.glob("part-*-of-*"):
                if not path.name.endswith(f"-of-{part.count}"):
                    # Parts of a different division overlap this one. A dead process leaves only its lock file.
                    with _locked(path, "this cache, in other parts"):
                        pass
            yield
    finally:
        # Leave no empty folders if nothing was written.
        with suppress(OSError):
            for folder in dict.fromkeys([*folders[:2], *made]):
                folder.rmdir()


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    deadline = time.monotonic() + _SECONDS_TO_DIE
    with ExitStack() as held:
        while True:
            try:
                share = "wait until it ends, or stop it; processes that share the work are each given a --part"
                held.enter_context(process_lock(path, what, next_command=share))
                break
            except InUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield


def remove_dead_locks(store: Store) -> None:
    """Remove the lock files of dead processes."""
    for path in store.locks.glob("part-*-of-*"):
        with suppress(InUse), process_lock(path, "this cache"):
            pass
