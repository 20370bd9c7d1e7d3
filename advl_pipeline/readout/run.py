"""`run_readout`: does a student place words and regions as its teachers do, and do they add to what it holds?

A teacher can only help a student that learns to place words as the teacher does, and lacks what the teacher knows.
The first is asked without labels, the second (`gate.py`) with the labels at hand.
"""

from __future__ import annotations

from typing import Any

from advl_pipeline.base.errors import ConfigError, leave_out
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS
from advl_pipeline.readout.config import ReadoutConfig
from advl_pipeline.readout.gate import take_gates
from advl_pipeline.readout.opened_student import open_student
from advl_pipeline.readout.prepare import PreparedLook
from advl_pipeline.training.landmarks.census import StudentAtStart
from advl_pipeline.training.landmarks.naming import name_questions, naming_gate
from advl_pipeline.training.landmarks.readout import take_readout
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher


def run_readout(look: PreparedLook[ReadoutConfig]) -> dict[str, Any]:
    """Compare how a student and the teachers of the caches place words and regions.

    Args:
        look: as `prepare_look` returns it.

    Returns:
        placement: the readout by teacher (see `Readout.shares`); naming: the gate of names, None if not requested;
        words: a line about the words that pretraining taught if they are estimated, else None; gates: what each
        teacher adds to the student's own vectors, or why that is not known (`take_gates`).

    Raises:
        ConfigError: caches of different splits, or no name questions for `--oracle`.
        WeightsUnavailable: no student in the folder. IdentityMismatch: a cache of another dataset's content.
    """
    opened = open_student(look)
    student, dataset, positions = opened.student, opened.dataset, opened.positions
    estimate = None if opened.recorded.is_given else opened.estimate()
    source = SignalSource(
        [cached_teacher(cache) for cache in opened.caches],
        prior=opened.prior,
        known=opened.recorded if estimate is None else estimate.known_words(),
    )
    naming = None
    if look.config.oracle:
        choosing = [position for position in positions if dataset[position].task in MULTIPLE_CHOICE_TASKS]
        naming = naming_gate(name_questions(StudentAtStart.without_heads(student, source), dataset, choosing))
        if naming is None:
            name = dataset.name
            split = dataset.split
            raise ConfigError(
                "--oracle needs more labelled questions about names that the student's pretraining taught.",
                where="--oracle",
                why=f"of the {len(positions)} examples of {name}/{split} that were read; such questions are of "
                "multiple choice, and each candidate points at boxes of its picture",
                next_command=leave_out("--oracle"),
            )
    return {
        "placement": take_readout(student, dataset, positions, source).shares(),
        "naming": naming,
        "words": None if estimate is None else estimate.line(),
        "gates": take_gates(opened),
    }
