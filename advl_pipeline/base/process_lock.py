"""A lock that a process holds on a path while it writes there.

It is a kernel lock and ends with the process, however that exits: it is never stale and needs no clock. Forked
children do not inherit it and may outlive it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    descriptor = _locked_file(path, wait)
    if descriptor is None:
        raise InUse(
            f"Another process is writing {what}.",
            where=str(path.parent),
            why=_describe_holder(path),
            next_command=next_command,
        )
    owner = os.getpid()
    try:
        note = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(note).encode())
        yield
    finally:
        # A fork that leaves the block has already released the lock.
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            _close(descriptor)


_opened: set[int] = set()
"""Descriptors of lock files that this process holds or waits for."""


def _close(descriptor: int) -> None:
    _opened.remove(descriptor)
    os.close(descriptor)


def _let_go() -> None:
    while _opened:
        os.close(_opened.pop())


os.register_at_fork(after_in_child=_let_go)


def _locked_file(path: Path, wait: Callable[[str], object] | None) -> int | None:
    """Return a descriptor that holds the lock; None if another process holds it and `wait` is None."""
    while True:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        _opened.add(descriptor)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    _close(descriptor)
                    return None
                wait(_describe_holder(path))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The previous holder may have removed the file between the two calls.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
        except OSError as error:
            _close(descriptor)
            raise StorageError(
                "This file system cannot lock a file, so two processes could write in one place.",
                where=str(path),
                why=reason_of(error),
                next_command="write to another file system; of NFS, version 4 has locks",
            ) from error
        except KeyboardInterrupt:
            _close(descriptor)
            raise
        _close(descriptor)


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return "process {process} on {host}, since {since}: {command}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just begun, or it has ended by now"
