"""`advl study --measure`: how long a step of each kind of cell takes, by running a few of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from advl_pipeline.studies.plan import Cell
from advl_pipeline.studies.timings import Timing, cell_kind, timing_of
from advl_pipeline.training.config import FinetuneConfig

MEASURED_STEPS = 10
"""Few, so that a slow machine answers in minutes; the first of them are slower than those to come."""


def run_short(config: FinetuneConfig) -> None:
    """Finetune in this process."""
    from advl_pipeline.training.run import run_finetune

    run_finetune(config)


def measure_kinds(cells: Sequence[Cell], *, finetune: Callable[[FinetuneConfig], None] = run_short) -> list[Timing]:
    """Train one cell of each kind for a few steps, the one with the fewest labels; what it writes is deleted.

    Confidences that the run estimates stay in the caches, where the cell itself will find them. Kinds whose caches
    are not extracted yet cannot be run and are left out.

    Raises:
        AdvlError: what a run raised.
    """
    by_kind: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.shots or float("inf")):
        if all((Path(str(path)) / "identity.json").exists() for path in cell.finetune.cache):
            by_kind.setdefault(cell_kind(cell), cell)
    found = []
    for cell in by_kind.values():
        with tempfile.TemporaryDirectory(prefix="advl-measure-") as folder:
            finetune(replace(cell.finetune, num_steps=MEASURED_STEPS, output=Path(folder)))
            source = f"runs of {MEASURED_STEPS} steps made now"
            found.append(timing_of(cell, Path(folder) / "result.json", source=source))
    return found
