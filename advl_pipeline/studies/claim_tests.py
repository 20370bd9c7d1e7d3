"""One test of a claim: a mean difference over seeds, in points, that has to be positive.

A test is
  - supported, when there are at least `min_seeds` seeds: the paired t-test over them, corrected by Holm over all
    tests of all claims, has p < 0.05, the mean is positive, and the interval over seeds and items excludes 0;
  - not supported, when it is not, and with as many seeds a gain of the smallest size that would matter (`margin`) is
    ruled out: the one-sided t-test over seeds against it, corrected by Holm over the tests of the claim, has
    p < 0.025: the study was large enough to see it. Where all seeds give the same number there is no such test; a
    number below the margin is then ruled out if the items agree, their interval lying below it too;
  - undecided at this size otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from advl_pipeline.evaluation.statistics import Interval, holm, paired_t_test, summarise

Outcome = Literal["supported", "not supported", "undecided at this size"]
SUPPORTED: Outcome = "supported"
NOT_SUPPORTED: Outcome = "not supported"
UNDECIDED: Outcome = "undecided at this size"
SIGNIFICANT = 0.05
MINUS = "\N{MINUS SIGN}"
RULED_OUT = 0.025
"""One-sided, as an interval of 95 % has it on either side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimTest:
    """One mean difference that has to be positive. `unit` names what the numbers are."""

    name: str
    unit: str
    per_seed: tuple[float, ...]
    mean: float
    interval: Interval | None
    joint_interval: Interval
    p_value: float | None
    p_adjusted: float | None
    outcome: Outcome


def untried(*, name: str, unit: str, per_seed: Sequence[float], joint_interval: Interval) -> ClaimTest:
    """Return a test whose outcome waits for the correction over all tests.

    Args:
        per_seed: differences in points, one per seed.
        joint_interval: of their mean over seeds and items.
    """
    spread = summarise(per_seed)
    test = paired_t_test(per_seed)
    return ClaimTest(
        name=name,
        unit=unit,
        per_seed=tuple(per_seed),
        mean=spread.mean,
        interval=spread.interval,
        joint_interval=joint_interval,
        p_value=test.p_value if test else None,
        p_adjusted=None,
        outcome=UNDECIDED,
    )


def try_tests(
    tests: Sequence[ClaimTest], adjusted: Sequence[float | None], *, margin: float, min_seeds: int
) -> tuple[ClaimTest, ...]:
    """Decide the tests of one claim.

    Args:
        adjusted: p of each, corrected over all tests of all claims.
        margin: smallest gain in points that would matter.
        min_seeds: fewest seeds that decide anything.
    """
    # One test that fails sinks a claim, so the more tests it has, the more each must show.
    against_margin = holm([margin_p(test, margin) for test in tests])
    return tuple(
        dataclasses.replace(
            test, p_adjusted=p_adjusted, outcome=_outcome(test, p_adjusted, p_margin, min_seeds=min_seeds)
        )
        for test, p_adjusted, p_margin in zip(tests, adjusted, against_margin, strict=True)
    )


def margin_p(test: ClaimTest, margin: float) -> float | None:
    """Return the one-sided p of "the gain is at least the margin", None where it cannot be tested.

    The same number from every seed has no such test, and nothing but the items tells how sure it is: it is as good as
    ruled out if it and their interval lie below the margin.
    """
    over_seeds = paired_t_test([value - margin for value in test.per_seed])
    if over_seeds is not None:
        return over_seeds.p_value / 2 if test.mean < margin else 1.0 - over_seeds.p_value / 2
    if test.interval is not None and max(test.mean, test.joint_interval.high) < margin:
        return 0.0
    return None


def _outcome(test: ClaimTest, p_adjusted: float | None, p_margin: float | None, *, min_seeds: int) -> Outcome:
    if len(test.per_seed) < max(min_seeds, 2):
        return UNDECIDED
    if test.mean > 0.0 and p_adjusted is not None and p_adjusted < SIGNIFICANT and test.joint_interval.low > 0.0:
        return SUPPORTED
    return NOT_SUPPORTED if p_margin is not None and p_margin < RULED_OUT else UNDECIDED


def why_open(test: ClaimTest, *, min_seeds: int) -> str:
    """Say in a sentence why a test is undecided."""
    count, needed = len(test.per_seed), max(min_seeds, 2)
    if count < needed:
        return f"{count} seed{'s' if count != 1 else ''}; a verdict rests on at least {needed}."
    if test.p_adjusted is None:
        return f"{test.name}: {signed(test.mean)} with no spread between seeds, so there is no test."
    if test.p_adjusted >= SIGNIFICANT:
        return f"{test.name}: {signed(test.mean)}, p {test.p_adjusted:.3f} after correction."
    return f"{test.name}: {signed(test.mean)}, but the interval over seeds and items includes 0."


def signed(value: float) -> str:
    """Write a difference in points with its sign; what rounds to nothing has none."""
    text = f"{abs(value):.1f}"
    if float(text) == 0.0:
        return text
    return ("+" if value > 0 else MINUS) + text
