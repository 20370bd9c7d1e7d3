"""Run the cells of a grid one after another here, or side by side in processes that share the cores.

Small students gain little from a second core within one step, so two cells at once finish sooner than one after the
other on two cores each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool

from advl_pipeline.compute import num_cores
from advl_pipeline.errors import (
    AdvlError,
    Interrupted,
    again,
)
from advl_pipeline.interruption import interruptible
from advl_pipeline.processes import worker_processes
from advl_pipeline.studies.plan import Cell

Outcome = tuple[Cell, AdvlError | None]
"""A cell that is over, and what went wrong."""


def run_in_turn(cells: Sequence[Cell], run: Callable[[Cell], None]) -> Iterator[Outcome]:
    """Run cells in this process, in order; another kind of error than `AdvlError` is raised."""
    for cell in cells:
        try:
            run(cell)
        except Interrupted:
            raise
        except AdvlError as error:
            yield cell, error
        else:
            yield cell, None


def run_in_processes(cells: Sequence[Cell], run: Callable[[Cell], None], *, num_workers: int) -> Iterator[Outcome]:
    """Run cells in `num_workers` fresh processes; yield each as it ends.

    When the consumer stops early, or a signal stops this process, the workers end the steps that they are at and
    write their checkpoints. When this process dies they are ended at once. An unfinished cell resumes.

    Args:
        cells: to be run, the first ones first.
        run: runs one cell; sent to the workers, so it must be importable there.
        num_workers: processes; each computes on its share of the cores.

    Raises:
        AdvlError: a worker died, such as for want of memory. Interrupted: a signal stopped one.
    """
    threads = max(1, num_cores() // num_workers)
    with worker_processes(num_workers, threads_each=threads, ends_steps=True) as pool:
        cell_of = {pool.submit(_run_interruptible, run, cell): cell for cell in cells}
        for future in as_completed(cell_of):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise AdvlError(
                    "A worker of the study died.",
                    why="the system may have ended it for want of memory",
                    next_command=again("run the same command with fewer --workers; finished cells are kept"),
                ) from None
            if error is not None and (not isinstance(error, AdvlError) or isinstance(error, Interrupted)):
                raise error
            yield cell_of[future], error


def _run_interruptible(run: Callable[[Cell], None], cell: Cell) -> None:
    with interruptible("The cell", kept="its checkpoint has every step that was finished"):
        run(cell)
