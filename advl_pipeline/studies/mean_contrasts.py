"""The focus method against every other, averaged over shot sizes: accuracy, drops under shift and use of pictures.

Every difference is taken seed by seed and item by item, and so is the mean over sizes: what is left is one number per
seed and item, whose mean has an interval over both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from advl_pipeline.evaluation.question_match import Questions
from advl_pipeline.studies.config import Setting, StudyConfig
from advl_pipeline.studies.quantities import ItemQuantity, accuracy_of, drop_of, use_of, weighted_sum
from advl_pipeline.studies.result import ClaimQuantity, MeanContrast, Place
from advl_pipeline.studies.scores import Table

USE_KIND = "swapped"
"""How pictures are spoilt where the use of vision is judged."""

_OfMethod = Callable[[Place, str], tuple[ItemQuantity, Questions | None] | None]


def mean_contrasts(study: StudyConfig, table: Table) -> tuple[MeanContrast, ...]:
    """Compare the focus method with every other in every quantity that a claim may ask for."""
    along: dict[tuple[str, str, str], list[Place]] = {}
    for place in dict.fromkeys(place for place, _, _ in table):
        along.setdefault((place.setting, place.metric, place.test_set), []).append(place)
    settings = {setting.name: setting for setting in study.settings}
    return tuple(
        contrast
        for (setting, _, test_set), places in along.items()
        for quantity, of_method in _quantities(table, settings[setting], test_set)
        for contrast in _contrasts(study, quantity, of_method, sorted(places, key=lambda place: place.rank))
    )


def _quantities(table: Table, setting: Setting, test_set: str) -> Iterator[tuple[ClaimQuantity, _OfMethod]]:
    """Yield what can be asked on a test set: the drop of a shifted one, the use of pictures of the in-domain one."""
    yield "accuracy", partial(_accuracy, table)
    if test_set == setting.test_sets[0]:
        yield "use", partial(_use, table)
    else:
        yield "drop", partial(_drop, table, setting)


def _accuracy(table: Table, place: Place, method: str) -> tuple[ItemQuantity, None] | None:
    found = accuracy_of(table, place, method)
    return (found, None) if found else None


def _use(table: Table, place: Place, method: str) -> tuple[ItemQuantity, None] | None:
    found = use_of(table, place, method, kind=USE_KIND)
    return (found, None) if found else None


def _drop(table: Table, setting: Setting, place: Place, method: str) -> tuple[ItemQuantity, Questions] | None:
    found = drop_of(table, place, method, reference=setting.test_sets[0], dataset=setting.dataset)
    return (found.lost, found.questions) if found else None


def _contrasts(
    study: StudyConfig, quantity: ClaimQuantity, of_method: _OfMethod, places: list[Place]
) -> Iterator[MeanContrast]:
    own = {place: found for place in places if (found := of_method(place, study.focus))}
    for other in study.methods if own else ():
        if other == study.focus:
            continue
        differences = {
            place: difference
            for place, (focus, _) in own.items()
            if (rest := of_method(place, other)) and (difference := weighted_sum([(1.0, focus), (-1.0, rest[0])]))
        }
        mean = weighted_sum([(1.0 / len(differences), difference) for difference in differences.values()])
        if mean is None:
            continue
        yield MeanContrast(
            setting=places[0].setting,
            metric=places[0].metric,
            test_set=places[0].test_set,
            quantity=quantity,
            questions=next(iter(own.values()))[1],
            treated=study.focus,
            baseline=other,
            shots=tuple(place.shots for place in differences),
            seeds=mean.seeds,
            per_seed=tuple(mean.by_seed.values()),
            joint_interval=mean.interval,
        )
