"""Run the cells of a grid one after another here, or side by side in processes that share the cores.

Small students gain little from a second core within one step, so two cells at once finish sooner than one after the
other on two cores each.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from advl_pipeline.compute import num_cores
from advl_pipeline.errors import AdvlError
from advl_pipeline.studies.plan import Cell

Outcome = tuple[Cell, AdvlError | None]
"""A cell that is over, and what went wrong."""


def run_in_turn(cells: Sequence[Cell], run: Callable[[Cell], None]) -> Iterator[Outcome]:
    """Run cells in this process, in order; another kind of error than `AdvlError` is raised."""
    for cell in cells:
        try:
            run(cell)
        except AdvlError as error:
            yield cell, error
        else:
            yield cell, None


def run_in_processes(cells: Sequence[Cell], run: Callable[[Cell], None], *, num_workers: int) -> Iterator[Outcome]:
    """Run cells in `num_workers` fresh processes; yield each as it ends.

    When the consumer stops early, the user interrupts, or this process dies, the workers are ended too: an unfinished
    cell resumes from its checkpoint.

    Args:
        cells: to be run, the first ones first.
        run: runs one cell; sent to the workers, so it must be importable there.
        num_workers: processes; each computes on its share of the cores.

    Raises:
        AdvlError: a worker died, such as for want of memory.
    """
    threads = max(1, num_cores() // num_workers)
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_set_up_worker,
        initargs=(threads,),
    )
    before = set(multiprocessing.active_children())
    ended = False
    try:
        cell_of = {pool.submit(run, cell): cell for cell in cells}
        for future in as_completed(cell_of):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise AdvlError(
                    "A worker of the study died.",
                    why="the system may have ended it for want of memory",
                    next_command="run the same command with fewer --workers; finished cells are kept",
                ) from None
            if error is not None and not isinstance(error, AdvlError):
                raise error
            yield cell_of[future], error
        ended = True
    finally:
        if not ended:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _set_up_worker(num_threads: int) -> None:
    # Before torch is imported, which reads it once.
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="advl-parent-watch", daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed can end nobody, and a worker without one would wait for cells forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
