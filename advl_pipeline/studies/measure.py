"""`advl study --measure`: how long a step of each kind of cell takes, by running a few of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from advl_pipeline.runs import names
from advl_pipeline.studies.plan import Cell
from advl_pipeline.studies.timings import Timing, cell_kind, timing_of
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import finetune_steps

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
            # The adapt step keeps its share: its steps cost something else.
            share = cell.finetune.adapt_steps / finetune_steps(cell.finetune)
            finetune(
                replace(
                    cell.finetune,
                    num_steps=MEASURED_STEPS,
                    adapt_steps=max(1, round(MEASURED_STEPS * share)),
                    output=Path(folder),
                )
            )
            source = f"runs of {MEASURED_STEPS} steps made now"
            found.append(timing_of(cell, Path(folder) / names.RESULT, source=source))
    return found
