"""What a claim is about, item by item: a method's accuracy, its drop under shift, its use of pictures.

A quantity is a sum, over one or two sets of items, of means over items. Differences between two methods and means
over shot sizes are quantities of the same shape, so that all get their interval over seeds and items in one way.

Shapes: S seeds, N items of a test set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advl_pipeline.evaluation.item_contributions import Contribution, joint_interval, mean_per_seed
from advl_pipeline.evaluation.question_match import QuestionMatch, Questions, match_questions
from advl_pipeline.evaluation.statistics import FloatArray, Interval
from advl_pipeline.studies.result import Place
from advl_pipeline.studies.scores import WITH_PICTURE, Series, Table, common_seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemQuantity:
    """One number per seed, as means over items. Sets of items stand in the same order wherever two are compared."""

    seeds: tuple[int, ...]
    sets: tuple[Contribution, ...]

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> the number, in points."""
        return dict(zip(self.seeds, mean_per_seed(self.sets), strict=True))

    @property
    def interval(self) -> Interval:
        """Interval of the mean over seeds, from resampled seeds and items, in points."""
        return joint_interval(self.sets)

    def of(self, seeds: Sequence[int]) -> ItemQuantity:
        """Return the same of these seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        sets = tuple(dataclasses.replace(one, values_SN=one.values_SN[rows]) for one in self.sets)
        return ItemQuantity(seeds=tuple(seeds), sets=sets)


def weighted_sum(terms: Sequence[tuple[float, ItemQuantity]]) -> ItemQuantity | None:
    """Add quantities over the same items, over the seeds that all have; None where there is no such seed."""
    if not terms:
        return None
    seeds = tuple(seed for seed in terms[0][1].seeds if all(seed in quantity.seeds for _, quantity in terms))
    if not seeds:
        return None
    parts = [(weight, quantity.of(seeds).sets) for weight, quantity in terms]
    sets = tuple(
        dataclasses.replace(first, values_SN=_sum([weight * sets[index].values_SN for weight, sets in parts]))
        for index, first in enumerate(parts[0][1])
    )
    return ItemQuantity(seeds=seeds, sets=sets)


def _sum(terms: Sequence[FloatArray]) -> FloatArray:
    total: FloatArray = np.sum(terms, axis=0)
    return total


def accuracy_of(table: Table, place: Place, method: str) -> ItemQuantity | None:
    """Accuracy with the true picture."""
    series = table.get((place, method, WITH_PICTURE))
    if series is None:
        return None
    return ItemQuantity(seeds=series.seeds, sets=(Contribution(values_SN=series.items_SN, groups=series.groups),))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """A method's accuracy on two sides, and what is lost from one to the other; `questions` is of two test sets."""

    questions: Questions | None
    before: ItemQuantity
    after: ItemQuantity
    lost: ItemQuantity


def use_of(table: Table, place: Place, method: str, *, kind: str) -> Sides | None:
    """Compare a method with the true picture and with a spoilt one, on the same items."""
    shown, spoilt = (table.get((place, method, key)) for key in (WITH_PICTURE, kind))
    if shown is None or spoilt is None or not (seeds := common_seeds(shown, spoilt)):
        return None
    before, after = (_whole(series, seeds) for series in (shown, spoilt))
    lost = dataclasses.replace(before, values_SN=before.values_SN - after.values_SN)
    return _sides(seeds, before, after, (lost,), None)


def drop_of(table: Table, place: Place, method: str, *, reference: str, dataset: str) -> Sides | None:
    """Compare a method on the shifted set of a place with the same runs on the in-domain set.

    Both are over the common questions where those are asked otherwise, else each is over its whole set.
    """
    origin = table.get((dataclasses.replace(place, test_set=reference), method, WITH_PICTURE))
    shifted = table.get((place, method, WITH_PICTURE))
    if origin is None or shifted is None or not (seeds := common_seeds(origin, shifted)):
        return None
    match = match_questions(dataset, reference, origin.ids, place.test_set, shifted.ids)
    before, after = (_whole(series, seeds) for series in (origin, shifted))
    lost: tuple[Contribution, ...] = (before, dataclasses.replace(after, values_SN=-after.values_SN))
    if match.questions == "same":
        before, after = _common(before, after, match)
        lost = (dataclasses.replace(before, values_SN=before.values_SN - after.values_SN),)
    return _sides(seeds, before, after, lost, match.questions)


def _sides(
    seeds: tuple[int, ...],
    before: Contribution,
    after: Contribution,
    lost: tuple[Contribution, ...],
    questions: Questions | None,
) -> Sides:
    return Sides(
        questions=questions,
        before=ItemQuantity(seeds=seeds, sets=(before,)),
        after=ItemQuantity(seeds=seeds, sets=(after,)),
        lost=ItemQuantity(seeds=seeds, sets=lost),
    )


def _whole(series: Series, seeds: Sequence[int]) -> Contribution:
    return Contribution(values_SN=series.of(seeds), groups=series.groups)


def _common(before: Contribution, after: Contribution, match: QuestionMatch) -> tuple[Contribution, Contribution]:
    """Return both on the questions that they share, grouped by the pictures of the in-domain set."""
    groups = before.groups.of(match.original_n) if before.groups else None
    return (
        Contribution(values_SN=before.values_SN[:, match.original_n], groups=groups),
        Contribution(values_SN=after.values_SN[:, match.shifted_n], groups=groups),
    )
