"""`run_readout`: does a student place words and regions as its teachers do, and do they add to what it holds?

A teacher can only help a student that learns to place words as the teacher does, and lacks what the teacher knows.
The first is asked without labels, the second (`gate.py`) with the labels at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advl_pipeline.readout.config import ReadoutConfig
from advl_pipeline.readout.gate import Gates, take_gates
from advl_pipeline.readout.opened_student import open_student
from advl_pipeline.readout.prepare import PreparedLook
from advl_pipeline.training.landmarks.readout import Share, take_readout
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import cached_teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutResult:
    """How a student and its teachers place words and regions, and what each teacher adds.

    `placement` is by teacher (see `Readout.shares`). `words` is a line about the words that pretraining taught, None
    if they are recorded.
    """

    placement: Mapping[str, Mapping[str, Share]]
    words: str | None
    gates: Gates


def run_readout(look: PreparedLook[ReadoutConfig]) -> ReadoutResult:
    """Compare how a student and the teachers of the caches place words and regions.

    Args:
        look: as `prepare_look` returns it.

    Raises:
        ConfigError: caches of different splits.
        WeightsUnavailable: no student in the folder. IdentityMismatch: a cache of another dataset's content.
    """
    opened = open_student(look)
    estimate = None if opened.recorded.is_given else opened.estimate()
    source = SignalSource(
        [cached_teacher(cache) for cache in opened.caches],
        prior=opened.prior,
        known=opened.recorded if estimate is None else estimate.known_words(),
    )
    return ReadoutResult(
        placement=take_readout(opened.student, opened.dataset, opened.positions, source).shares(),
        words=None if estimate is None else estimate.line(),
        gates=take_gates(opened),
    )
