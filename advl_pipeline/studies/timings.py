"""How long cells take: from finished runs of this study or of those beside it, or from a few steps run now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advl_pipeline.configuration import config_to_dict, pacing_options, with_options
from advl_pipeline.errors import ConfigError
from advl_pipeline.runs import names
from advl_pipeline.runs.reader import read_json
from advl_pipeline.studies.folder import STUDY_FILE, read_study_folder
from advl_pipeline.studies.plan import Cell
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import finetune_steps, planned_steps
from advl_pipeline.training.resolved import run_identity

HERE = "finished runs of this study"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of a finished run: per optimiser step and around the training loop; `total` is of the whole run.

    `kind` is equal for cells whose steps cost alike; `source` says in words what was run.
    """

    cell_id: str
    setting: str
    method: str
    kind: str
    per_step: float
    around: float
    total: float
    source: str
    scoring: float | None
    """Seconds of scoring all test sets that the cell names, None where that was not measured."""

    def seconds_of(self, cell: Cell) -> float:
        """Return what a cell takes whose steps cost as much."""
        return self.per_step * planned_steps(cell.finetune) + self.around


def cell_kind(cell: Cell) -> str:
    """Return what a step of a cell costs by: dataset, tasks, student, method, batch, teachers and so on."""
    kept = pacing_options(FinetuneConfig, run_identity(config_to_dict(cell.finetune)))
    return json.dumps({**kept, "teachers": list(cell.teachers)}, sort_keys=True, default=str)


def timing_of(cell: Cell, result: Path, *, source: str) -> Timing:
    """Read the timing of a run that did what a cell says.

    Args:
        cell: the cell; it may have been run for fewer steps than it says.
        source: what was run, in words.

    Raises:
        ConfigError: the file is damaged.
    """
    found = read_json(result)
    scored = [_scoring_seconds(cell, result.parent, test_set) for test_set in cell.test_sets]
    known = [seconds for seconds in scored if seconds is not None]
    per_step, total = float(found["seconds_per_step"]), float(found["seconds"])
    return Timing(
        cell_id=cell.cell_id,
        setting=cell.setting,
        method=cell.method,
        kind=cell_kind(cell),
        per_step=per_step,
        around=max(0.0, total - per_step * float(found["num_steps"])),
        total=total,
        source=source,
        scoring=sum(known) if len(known) == len(scored) else None,
    )


def _scoring_seconds(cell: Cell, run: Path, test_set: str) -> float | None:
    """Return what scoring a set takes as the cell asks for it, from an evaluation of all or of a part of it."""
    path = names.evaluation_file(run, test_set, ".json")
    document = read_json(path) if path.exists() else {}
    if "seconds" not in document:
        return None
    num_examples, sample = document["num_examples"], document["sample"]
    wanted = num_examples if sample is None else sample["of_examples"]
    if cell.evaluate.num_questions is not None and sample is not None:
        wanted = min(wanted, cell.evaluate.num_questions * num_examples / sample["asked"])
    seconds: float = document["seconds"] * wanted / num_examples
    return seconds


def timings_here(cells: Sequence[Cell]) -> list[Timing]:
    """Return the timings of a study's own cells, whose training is finished."""
    return [timing_of(cell, _result(cell), source=HERE) for cell in cells if _result(cell).exists()]


def timings_beside(folder: Path) -> list[Timing]:
    """Return the timings of the studies in the folders beside a study's; those that cannot be read have none."""
    found: list[Timing] = []
    for other in sorted(folder.parent.glob(f"*/{STUDY_FILE}")):
        if other.parent == folder:
            continue
        try:
            plan, _ = read_study_folder(other.parent)
            cells = [cell for cell in plan.cells if _result(cell).exists()]
            found += [
                timing_of(cell, _result(cell), source=f"finished runs of study {other.parent.name}") for cell in cells
            ]
        except ConfigError:
            continue  # Its own commands say what is wrong with it.
    return found


def _result(cell: Cell) -> Path:
    return cell.run / names.RESULT


MEASURED_STEPS = 10
"""Few, so that a slow machine answers in minutes; the first of them are slower than those to come."""


MEASURED_QUESTIONS = 32
"""Of each test set: enough for a few batches."""


def measure_kinds(cells: Sequence[Cell]) -> list[Timing]:
    """Train one cell of each kind for a few steps, the one with the fewest labels, and score some questions.

    What it writes is deleted.

    Confidences that the run estimates stay in the caches, where the cell itself will find them. Kinds whose caches
    are not extracted yet cannot be run and are left out.

    Raises:
        AdvlError: what a run raised.
    """
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.training.run import run_finetune

    by_kind: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.shots or float("inf")):
        if all((Path(str(path)) / "identity.json").exists() for path in cell.finetune.cache):
            by_kind.setdefault(cell_kind(cell), cell)
    found = []
    for cell in by_kind.values():
        with tempfile.TemporaryDirectory(prefix="advl-measure-") as folder:
            # The adapt step keeps its share: its steps cost something else.
            share = cell.finetune.adapt.adapt_steps / finetune_steps(cell.finetune)
            run_finetune(
                with_options(
                    cell.finetune,
                    num_steps=MEASURED_STEPS,
                    adapt_steps=max(1, round(MEASURED_STEPS * share)),
                    output=Path(folder),
                )
            )
            run_evaluate(replace(cell.evaluate, run=Path(folder), num_questions=MEASURED_QUESTIONS))
            source = f"runs of {MEASURED_STEPS} steps made now"
            found.append(timing_of(cell, Path(folder) / names.RESULT, source=source))
    return found
