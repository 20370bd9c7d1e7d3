"""Formats of numbers and names, the same in the terminal, in tables and on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from advl_pipeline.evaluation.items import metric_name as metric_name
from advl_pipeline.evaluation.shift import Questions
from advl_pipeline.runs.evaluations import Interval, TrivialScores
from advl_pipeline.studies.claims import MINUS as MINUS
from advl_pipeline.studies.claims import signed as signed
from advl_pipeline.studies.config import FULL, StudyConfig

WRITTEN = ", answer written, options behind letters"
"""Suffix of a metric of generated answers; other metrics use the likeliest candidate."""

QUESTIONS: Mapping[Questions, str] = {
    "same": "the same questions",
    "part": "a part of the questions",
    "other": "other questions",
}
"""Relation of the questions of a shifted set to those of the original."""


READOUT_QUESTION = "Does the student place words as the teacher does?"
READOUT_EXPLAINED = (
    "The teacher picks, among four known words, the one most similar to a word that pretraining never taught. The "
    "readout is how often the student picks the same one, before → after the adapt stage, mean over the runs. "
    "Without a record of pretraining's words, all words count as both. Regions are compared in the same way, with "
    "those of other pictures. No label is used. A student of a shuffled teacher is compared with the true teacher."
)


def method_label(study: StudyConfig, method: str) -> str:
    return study.variant(method).label or method


def over(study: StudyConfig, against: str) -> str:
    """Return the phrase for the reference of a gain: the baseline, or a control with a higher accuracy."""
    return f"over {'' if against == study.baseline else 'the best control, '}{method_label(study, against)}"


def seeds(number: int) -> str:
    return f"{number} seed{'s' if number != 1 else ''}"


def shots_text(shots: str) -> str:
    return "all items" if shots == FULL else f"{shots} shots"


def percent(value: float) -> str:
    """Write an accuracy, such as 64.2."""
    return f"{value:.1f}"


def spread(mean: float, deviation: float | None, write: Callable[[float], str] = percent) -> str:
    """Write a mean and its standard deviation over seeds."""
    return write(mean) if deviation is None else f"{write(mean)} ± {deviation:.1f}"


def signed_tick(value: float) -> str:
    """Write the number of a tick, such as +2.5."""
    return f"{value:+g}".replace("-", MINUS) if value else "0"


def interval(value: Interval | None, write: Callable[[float], str] = signed) -> str:
    return "" if value is None else f"[{write(value.low)}, {write(value.high)}]"


def without_student(trivial: TrivialScores | None) -> dict[str, str]:
    """Write the accuracies without a student from an evaluation, "" if unknown: ceiling, prior, majority and chance.

    The ceiling is the share of items of which the run's list of answers has a right one.
    """
    if trivial is None:
        return dict.fromkeys(("ceiling", "prior", "majority", "chance"), "")
    return {
        "ceiling": percent(100 - trivial.outside) if trivial.outside else "",
        "prior": "" if trivial.prior is None else percent(trivial.prior),
        "majority": f"{percent(trivial.majority)} ({trivial.answer})",
        "chance": percent(trivial.chance),
    }


def p_value(value: float | None) -> str:
    """Write a p-value, or a dash if there is no test."""
    if value is None:
        return "–"
    if value < 0.001:
        return "<.001"
    text = f"{value:.3f}"
    return "1" if float(text) >= 1 else text.removeprefix("0")


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
