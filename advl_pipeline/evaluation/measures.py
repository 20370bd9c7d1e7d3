"""The standard numbers of a set, as its card defines them (`datasets/measures.py`): pure functions of items.

They are tested against the outputs of the authors' own scorers (`tests/assets/metrics`). Shapes: n items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.measures import Measure
from advl_pipeline.runs.evaluations import ScoredItems


@dataclass(frozen=True, kw_only=True)
class Items(ScoredItems):
    """Scored items with what the numbers of a card need: right and given answers as texts, and groups of items."""

    right: Sequence[str] = ()
    given: Sequence[str] = ()
    facets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def take(self, rows: Sequence[int]) -> Items:
        """Return the items at the given positions."""

        def of(column: Sequence[str]) -> list[str]:
            return [column[row] for row in rows] if column else []

        return Items(
            score_n=self.score_n[rows],
            question_ids=of(self.question_ids),
            pictures=of(self.pictures),
            types=of(self.types),
            right=of(self.right),
            given=of(self.given),
            facets={name: of(values) for name, values in self.facets.items()},
        )

    def where(self, facet: str, value: str) -> Items:
        """Return the items whose facet has the given value."""
        return self.take([row for row, other in enumerate(self.facets[facet]) if other == value])


def confusion(items: Items, positive: str) -> Counter[tuple[bool, bool]]:
    """Count items by whether `positive` is the right answer and whether it is the given answer, for yes/no tasks."""
    answers = zip(items.right, items.given, strict=True)
    return Counter((right == positive, given == positive) for right, given in answers)


def yes_no_shares(counts: Counter[tuple[bool, bool]]) -> dict[str, float | None]:
    """Return precision, recall, their harmonic mean (F1) and the share of positive answers from a `confusion`.

    A number without a denominator is None; F1 is None if precision or recall is.
    """
    right, answered = counts[True, True], counts[True, True] + counts[False, True]
    precision, recall = _share(right, answered), _share(right, counts[True, True] + counts[True, False])
    f1 = None if precision is None or recall is None else _share(2 * precision * recall, precision + recall)
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "positives": _share(answered, counts.total()),
    }


def group_share(score_n: npt.NDArray[np.floating], keys: Iterable[Any], size: int | None = None) -> float | None:
    """Return the share of groups in which every item scores 1; None without items.

    Args:
        keys: group key of each item.
        size: number of items in a complete group. A smaller group is wrong, and the number of groups is n / size,
            which need not be an integer. None accepts groups of any size.
    """
    groups: defaultdict[Any, list[float]] = defaultdict(list)
    for key, score in zip(keys, score_n.tolist(), strict=True):
        groups[key].append(score)
    right = sum(all(score == 1 for score in scores) for scores in groups.values() if size in (None, len(scores)))
    return _share(right, len(groups) if size is None else len(score_n) / size)


def answer_distance(right: Sequence[str], given: Sequence[str], keys: Iterable[Sequence[str]]) -> float | None:
    """Return a hundredth of the chi-square of given answers against right ones, averaged over groups by their sizes.

    This is GQA's `distribution`. An answer that is never right counts only through the right answer that it replaces.

    Args:
        keys: group key of each item; an item whose key has an empty part is in no group.
    """
    expected, observed = defaultdict[Any, Counter[str]](Counter), defaultdict[Any, Counter[str]](Counter)
    for key, right_answer, given_answer in zip(keys, right, given, strict=True):
        if all(key):
            expected[key][right_answer] += 1
            observed[key][given_answer] += 1
    total = sum(
        of_group.total() * sum((observed[key][answer] - count) ** 2 / count for answer, count in of_group.items())
        for key, of_group in expected.items()
    )
    return _share(total / 100, sum(of_group.total() for of_group in expected.values()))


def measured(measure: Measure, items: Items) -> dict[str, float | None]:
    """Return the numbers of a measure by name, in percent; None for a number without a denominator.

    There is one number, or one per value of the facet `by`, named "NAME, VALUE", in order of appearance.
    """
    if measure.by is None:
        return {measure.name: _percent(_quantity(measure, items))}
    values = list(dict.fromkeys(items.facets[measure.by]))
    shares = {value: _quantity(measure, items.where(measure.by, value)) for value in values}
    if measure.mean_of:
        wanted = values if measure.mean_of == ("each",) else measure.mean_of
        return {measure.name: _percent(_nested_mean(wanted, shares))}
    return {f"{measure.name}, {value}": _percent(share) for value, share in shares.items()}


def _quantity(measure: Measure, items: Items) -> float | None:
    if measure.of == "accuracy":
        return _share(float(items.score_n.sum(dtype=np.float64)), measure.denominator or len(items.score_n))
    keys = zip(*(items.facets[name] for name in measure.keys), strict=True)
    if measure.of == "groups":
        return group_share(items.score_n, keys, measure.size)
    if measure.of == "distribution":
        return answer_distance(items.right, items.given, keys)
    return yes_no_shares(confusion(items, measure.positive or ""))[measure.of]


def _nested_mean(wanted: Iterable[Any], shares: Mapping[str, float | None]) -> float | None:
    """Return the mean of the shares of values, where a nested tuple is a mean itself; None if a share is missing."""
    parts = [shares.get(value) if isinstance(value, str) else _nested_mean(value, shares) for value in wanted]
    known = [part for part in parts if part is not None]
    return sum(known) / len(known) if known and len(known) == len(parts) else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share
