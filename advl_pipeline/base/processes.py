"""Worker processes that never re-run the user's script.

The standard library's workers import the script that started them. A script without a main guard would then build, or
train, again in every worker. loky's workers import only the modules of their tasks.
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

from advl_pipeline.base.inert import make_streams_inert
from advl_pipeline.base.interruption import hold_back_for_good

_WATCH_SECONDS: Final = 0.5


@contextmanager
def worker_processes(
    number: int, *, threads_each: int | None = None, ends_steps: bool = False
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes. An error, a signal or the death of this process ends them immediately.

    A worker that dies breaks the pool: the waiting call raises `concurrent.futures.process.BrokenProcessPool`.

    Args:
        number: of processes.
        threads_each: compute threads per process; None leaves the number to the libraries.
        ends_steps: an error or a signal here sends SIGTERM to the workers, and `interruptible` work there finishes.
    """
    # Libraries read the variable on import, so it is set before a worker starts.
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
                # A second Ctrl-C ends the wait.
                pool.shutdown(wait=True, kill_workers=True)
        # Waiting for running tasks would take long, and their results are discarded.
        pool.shutdown(wait=True, kill_workers=not ended)


def _follow(starter: int, ends_steps: bool) -> None:
    """Leave Ctrl-C to the parent process, print inert texts alone, and exit when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_streams_inert()
    if ends_steps:
        hold_back_for_good()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="advl-parent-watch", daemon=True).start()
