"""`run_words`: the table of the words that a student's pretraining taught, estimated from the student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advl_pipeline.base.atomic import write_text
from advl_pipeline.distillation.relational import KNOWN
from advl_pipeline.readout.config import WordsConfig
from advl_pipeline.readout.opened_student import open_student
from advl_pipeline.readout.prepare import PreparedLook
from advl_pipeline.students.known_words import word_table


@dataclass(frozen=True, kw_only=True, slots=True)
class WordsResult:
    """The table that was written and a line about it.

    `record_auc` is the area under the curve of the scores against the record of the student's pretraining: the share
    of pairs of a recorded and another word in which the recorded one has the higher score; None without such pairs.
    """

    path: Path
    line: str
    num_words: int
    record_auc: float | None


def run_words(look: PreparedLook[WordsConfig]) -> WordsResult:
    """Estimate which words a student's pretraining taught, and write them with their classes.

    Args:
        look: as `prepare_look` returns it.

    Raises:
        ConfigError, WeightsUnavailable, IdentityMismatch: as for `open_student`.
    """
    output = look.config.output
    opened = open_student(look)
    estimate = opened.estimate()
    write_text(output, word_table(estimate.rows))
    auc = None
    if opened.recorded.is_given:
        known = [row.score for row in estimate.rows if opened.recorded.of_word(row.word) >= KNOWN]
        unknown = [row.score for row in estimate.rows if opened.recorded.of_word(row.word) < KNOWN]
        if known and unknown:
            below, not_above = (np.searchsorted(sorted(unknown), known, side=side) for side in ("left", "right"))
            auc = float((below + not_above).mean()) / (2 * len(unknown))
    return WordsResult(path=output, line=estimate.line(), num_words=len(estimate.rows), record_auc=auc)
