"""Worker processes that never run the user's own script again.

The standard library's workers import the script that started them. One without a main guard would then build, or
train, once more in each of them. loky's import only what they are given to do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from loky import ProcessPoolExecutor

from advl_pipeline.base.interruption import hold_back_for_good

_WATCH_SECONDS: Final = 0.5


@contextmanager
def worker_processes(
    number: int, *, threads_each: int | None = None, ends_steps: bool = False
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes. An error or a signal ends them at once, and so does the death of this process.

    A worker that dies breaks the pool: the call that waits raises `concurrent.futures.process.BrokenProcessPool`.

    Args:
        number: processes.
        threads_each: cores that the mathematics of each may use; None leaves it to the libraries.
        ends_steps: an error or a signal here is SIGTERM there, and what is `interruptible` there ends by itself.
    """
    # Libraries read the variable when they are imported, so it is there before a worker begins.
    env = None if threads_each is None else {"OMP_NUM_THREADS": str(threads_each)}
    pool = ProcessPoolExecutor(number, initializer=_follow, initargs=(os.getpid(), ends_steps), env=env)
    before = set(multiprocessing.active_children())
    ended = False
    try:
        yield pool
        ended = True
    finally:
        if not ended and ends_steps:
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
            try:
                pool.shutdown(wait=True)
            finally:
                # A second Ctrl-C does not wait.
                pool.shutdown(wait=True, kill_workers=True)
        # Waiting for what runs would take long, for work that is thrown away.
        pool.shutdown(wait=True, kill_workers=not ended)


def _follow(starter: int, ends_steps: bool) -> None:
    """Leave Ctrl-C to the process that started this one, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if ends_steps:
        hold_back_for_good()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="advl-parent-watch", daemon=True).start()
