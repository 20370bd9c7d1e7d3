"""Execute one run: finetune, then score on every test set. Also, find the work that a run still needs.

Training and evaluation are imported when a run is executed, so that planning and gathering stay light.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable, advise, again
from advl_pipeline.evaluation.config import Probe
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import EvaluationDocument, is_of_run, read_document
from advl_pipeline.students.weight_files import file_digest
from advl_pipeline.studies.plan import PlannedRun, studies_of

RunExecutor = Callable[[PlannedRun], None]
"""Trains and scores one run to its end or raises; resumes an interrupted one in its folder."""


def execute_run(planned: PlannedRun) -> None:
    """Finetune and evaluate in this process; delete the student if no study with the run keeps it."""
    from advl_pipeline.evaluation.prepare import prepare_scoring
    from advl_pipeline.evaluation.runner import run_evaluate
    from advl_pipeline.training.prepare import prepare_finetune
    from advl_pipeline.training.run import run_finetune

    missing = missing_test_sets(planned)
    needs_student = bool(missing) or planned.keeps_student
    if not names.is_finished(planned.run) or (needs_student and names.lacks_student(planned.run)):
        recipe = planned.finetune.optimisation.recipe
        if file_digest(recipe) != planned.recipe_digest:
            raise ConfigError(
                "The recipe has changed since the study began.",
                where=recipe,
                next_command=again("run the same command again: its runs then follow the current recipe"),
            )
        prepared = prepare_finetune(planned.finetune, scores_val=False, may_idle=True)
        run_finetune(prepared)
        # Scores of a student that was trained on another machine may not be those of this one.
        missing = missing_test_sets(planned)
    if missing:
        # An evaluation covers the requests of this study and those of other studies with this run.
        asked = planned.evaluate
        stored = {name: document for name in missing if (document := _stored(planned, name)) is not None}
        probed_before = {probe for document in stored.values() for probe in document.probes}
        probes = tuple(
            probe for probe in get_args(Probe) if probe != "none" and probe in probed_before.union(asked.probes)
        )
        counts = [_num_questions(document) for document in stored.values()]
        most = max([asked.num_questions or math.inf, *counts])
        probed = (name for name, document in stored.items() if document.probes)
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
            if error.where.startswith(str(planned.run)):
                error.next_command = advise(["rm", "-r", str(planned.run)], note="the run is trained again", again=())
            raise
    if not planned.keeps_student and not any(keeps for _, keeps in studies_of(planned.run)):
        for file in names.weights_of(planned.run):
            file.unlink(missing_ok=True)


def _stored(planned: PlannedRun, test_set: str) -> EvaluationDocument | None:
    """Return the document of an evaluation of a run by the evaluator of the study; None if there is none."""
    if not names.is_finished(planned.run):
        return None
    with scored_by_study(planned, test_set):
        document = read_document(planned.run, planned.filed(test_set))
    return document if document is not None and is_of_run(planned.run, document) else None


def _num_questions(document: EvaluationDocument) -> float:
    """Return the requested number of questions of an evaluation; infinity if it covers the complete set."""
    return document.sample.asked if document.sample else math.inf


@contextmanager
def scored_by_study(planned: PlannedRun, test_set: str, command: Sequence[str] = ()) -> Iterator[None]:
    """Let an error of an evaluation advise the study's command if the student is gone, since that trains it again.

    Args:
        command: words of the study's command; empty if the user gave it.
    """
    try:
        yield
    except (ConfigError, IdentityMismatch) as error:
        if names.lacks_student(planned.run):
            document = Path(error.where)
            if document.suffix != ".json":
                document = names.evaluation_file(planned.run, planned.filed(test_set), ".json")
            error.next_command = advise(
                ["rm", str(document)],
                *([command] if command else []),
                note="the run kept no student: it is trained again",
                again=None if command else (),
            )
        raise


def missing_test_sets(planned: PlannedRun) -> tuple[str, ...]:
    """Return the test sets without a finished evaluation of the run by the study's probes and VQA evaluator."""
    missing, asked = [], planned.evaluate
    for name in planned.test_sets:
        document = _stored(planned, name)
        is_probed = name in asked.probe_on and not planned.finetune.hide_picture
        wanted = set(asked.probes) - {"none"} if is_probed else set()
        # A larger sample contains the questions of a smaller one.
        if (
            document is None
            or _num_questions(document) < (asked.num_questions or math.inf)
            or wanted - document.probes
        ):
            missing.append(name)
    return tuple(missing)


def is_complete(planned: PlannedRun) -> bool:
    """Return whether a run is trained and scored; a student that another study did not keep must be trained again."""
    is_trained = names.is_finished(planned.run) and not (planned.keeps_student and names.lacks_student(planned.run))
    return is_trained and not missing_test_sets(planned)
