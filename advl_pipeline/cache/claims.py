"""Claims: how processes that work on one cache share it.

A claim is a kernel lock on a file. It ends with the process that holds it, so a dead claimer's work is free at
once and no claim ever has to be judged stale.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advl_pipeline.cache.files import WORK_FOLDER, storage_error


@contextmanager
def claim(root: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Try to claim a piece of work; yields whether it is ours until the block ends.

    Args:
        root: the cache.
        name: what is claimed, such as "text-00003".
        wait: wait for another holder to finish or die instead of yielding False.
    """
    path = root / WORK_FOLDER / "claims" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:
        # Another process completed the cache and removed the work folder between the two calls.
        yield False
        return
    except OSError as error:
        raise storage_error(error, f"{WORK_FOLDER}/claims/{name}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = True
        except BlockingIOError:
            ours = False
        except OSError as error:
            # A folder shared between machines whose file system knows no locks.
            raise storage_error(error, f"{WORK_FOLDER}/claims/{name}") from error
        yield ours
    finally:
        os.close(descriptor)
