"""A lock that a process holds on a path while it writes there.

It is a kernel lock and ends with the process, however that exits: it is never stale and needs no clock. Forked
children do not inherit it and may outlive it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from advl_pipeline.base.atomic import reason_of, writing
from advl_pipeline.base.errors import InUse, StorageError


@contextmanager
def process_lock(
    path: Path,
    what: str,
    *,
    next_command: str = "wait until it ends, or stop it",
    wait: Callable[[str], object] | None = None,
) -> Iterator[None]:
    """Hold a lock until the block ends, then remove the lock file but not the folders created for it.

    Args:
        path: of the lock file.
        what: the locked resource, completing the sentence "Another process is writing".
        next_command: what to do if another process holds the lock.
        wait: if given, wait for another process that holds the lock, after calling this with its name and start.

    Raises:
        InUse: another process holds the lock and `wait` is not given; the message says which, and since when.
        StorageError: the lock file cannot be written, or the file system does not support locks.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tells a file that cannot be written from one that cannot be locked.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    sign = partial(_name_holder, path)
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False, on_acquired=sign)
    try:
        try:
            lock.acquire()
        except Timeout:
            if wait is None:
                raise InUse(
                    f"Another process is writing {what}.",
                    where=str(path.parent),
                    why=_describe_holder(path),
                    next_command=next_command,
                ) from None
            wait(_describe_holder(path))
            lock.acquire(timeout=-1)
    except OSError as error:
        raise StorageError(
            "This file system cannot lock a file, so two processes could write in one place.",
            where=str(path),
            why=reason_of(error),
            next_command="write to another file system; of NFS, version 4 has locks",
        ) from error
    try:
        yield
    finally:
        # A fork that leaves the block holds nothing. Removed before the release, the file is not the next holder's.
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()
            lock.release()


def _name_holder(path: Path, descriptor: int) -> None:
    note = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    with writing(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return "process {process} on {host}, since {since}: {command}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun, or it has ended by now"
