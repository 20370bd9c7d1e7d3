"""Run one cell: finetune, then score on every test set. Also, find the work that a cell still needs.

The two phases are imported when a cell runs, so that planning and gathering stay light.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable, advise, again
from advl_pipeline.evaluation.config import Probe
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import EvaluationDocument, is_of_run, read_document
from advl_pipeline.students.weight_files import file_digest
from advl_pipeline.studies.plan import Cell, studies_of

CellExecutor = Callable[[Cell], None]
"""Runs one cell to its end or raises; resumes an interrupted run in the cell's run folder."""


def execute_cell(cell: Cell) -> None:
    """Finetune and evaluate in this process; delete the student if no study with this cell keeps it."""
    from advl_pipeline.evaluation.prepare import prepare_scoring
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.training.prepare import prepare_finetune
    from advl_pipeline.training.run import run_finetune

    missing = missing_test_sets(cell)
    # If the student was not kept, the same run gives the same student again.
    is_gone = (missing or cell.keeps_student) and not all(file.exists() for file in _weights(cell.run))
    if is_gone or not names.is_finished(cell.run):
        recipe = cell.finetune.optimisation.recipe
        if file_digest(recipe) != cell.recipe_digest:
            raise ConfigError(
                "The recipe has changed since the study began.",
                where=recipe,
                next_command=again("run the same command again: its runs then follow the current recipe"),
            )
        (cell.run / names.RESULT).unlink(missing_ok=True)
        run_finetune(prepare_finetune(cell.finetune, is_control=cell.is_control, scores_val=False, may_idle=True))
        # Scores of a student that was trained on another machine may not be those of this one.
        missing = missing_test_sets(cell)
    if missing:
        # An evaluation covers the requests of this study and those of other studies with this cell.
        asked = cell.evaluate
        stored = {name: document for name in missing if (document := _stored(cell, name)) is not None}
        probed_before = {probe for document in stored.values() for probe in _probed(document)}
        probes = tuple(
            probe for probe in get_args(Probe) if probe != "none" and probe in probed_before.union(asked.probes)
        )
        counts = [_num_questions(document) for document in stored.values()]
        most = max([asked.num_questions or math.inf, *counts])
        probed = (name for name, document in stored.items() if _probed(document))
        try:
            scoring = replace(
                asked,
                on=missing,
                num_questions=None if most == math.inf else int(most),
                probe=probes or ("none",),
                probe_on=tuple(dict.fromkeys((*asked.probe_on, *probed))),
            )
            run_evaluate(prepare_scoring(scoring, may_idle=True))
        except (IdentityMismatch, WeightsUnavailable) as error:
            if error.where.startswith(str(cell.run)):
                error.next_command = advise(["rm", "-r", str(cell.run)], note="the run is trained again", again=())
            raise
    if not cell.keeps_student and not any(keeps for _, keeps in studies_of(cell.run)):
        for file in _weights(cell.run):
            file.unlink(missing_ok=True)


def _stored(cell: Cell, test_set: str) -> EvaluationDocument | None:
    """Return the document of an evaluation of a cell's run by the evaluator of the study; None if there is none."""
    document = read_document(cell.run, cell.filed(test_set)) if names.is_finished(cell.run) else None
    return document if document is not None and is_of_run(cell.run, document) else None


def _probed(document: EvaluationDocument) -> set[str]:
    """Return how pictures were replaced in an evaluation."""
    return {view for views in document.use_of_vision.values() for view in views}


def _num_questions(document: EvaluationDocument) -> float:
    """Return the requested number of questions of an evaluation; infinity if it covers the complete set."""
    return document.sample.asked if document.sample else math.inf


def _weights(run: Path) -> list[Path]:
    adapter = run / names.ADAPTER_WEIGHTS
    return [adapter if adapter.exists() else run / names.STUDENT_WEIGHTS, run / names.HEADS_WEIGHTS]


def missing_test_sets(cell: Cell) -> tuple[str, ...]:
    """Return the test sets without a finished evaluation of the cell by the study's probes and VQA evaluator."""
    missing, asked = [], cell.evaluate
    for name in cell.test_sets:
        document = _stored(cell, name)
        is_probed = name in asked.probe_on and not cell.finetune.hide_picture
        wanted = set(asked.probes) - {"none"} if is_probed else set()
        # A larger sample contains the questions of a smaller one.
        if (
            document is None
            or _num_questions(document) < (asked.num_questions or math.inf)
            or wanted - _probed(document)
        ):
            missing.append(name)
    return tuple(missing)


def is_cell_finished(cell: Cell) -> bool:
    """Return whether the cell is complete; a student that another study did not keep must be trained again."""
    gone = (cell.run / names.STUDENT).exists() and not all(file.exists() for file in _weights(cell.run))
    return names.is_finished(cell.run) and not missing_test_sets(cell) and not (cell.keeps_student and gone)
