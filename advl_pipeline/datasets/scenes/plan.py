"""Decide what every scene shows: kinds, their parts, counts, places. Pure, and determined by the seed.

Twins (`scene.Twins`) make the texts fair: whatever is said about one scene is said about the other with another
answer. The combinations of axis and number of things in `HELD_OUT` occur in test-compositional alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from advl_pipeline.datasets.scenes.draws import Draws
from advl_pipeline.datasets.scenes.placement import Rule, place
from advl_pipeline.datasets.scenes.relations import ALONG, INVERSE, Axis, Relation, only_one, relation
from advl_pipeline.datasets.scenes.scene import SCENES_PER_GROUP, Group, Scene, TaskScene, Thing, Twins
from advl_pipeline.datasets.scenes.vocabulary import Kind, Vocabulary, phrase_stems, spoken_stems
from advl_pipeline.datasets.scenes.wording import can_join
from advl_pipeline.errors import AdvlError

HELD_OUT: Final[dict[Axis, int]] = {"horizontal": 4, "vertical": 5}
"""Axis -> number of things that are never together in any other split than test-compositional."""

MIN_THINGS: Final = 2
MAX_THINGS: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cast:
    """Kinds of a pair of twins: for each part, one for the first scene and one of the same family for the second."""

    subjects: tuple[Kind, Kind]
    partners: tuple[Kind, Kind]
    references: tuple[Kind, Kind] | None

    @property
    def described(self) -> tuple[Kind, ...]:
        return (*self.subjects, *self.partners)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*self.described, *(self.references or ()))


class _Deck:
    """Kinds in an order in which each comes up equally often: one shuffled deck after the other."""

    def __init__(self, kinds: Sequence[Kind], *name: str | int) -> None:
        self._kinds = kinds
        self._name = name
        self._rest: list[Kind] = []
        self._round = 0

    def take(self, fits: Callable[[Kind], bool]) -> Kind:
        """Remove and return the first kind that fits, from the next deck if need be."""
        for _ in range(2):
            for position, kind in enumerate(self._rest):
                if fits(kind):
                    return self._rest.pop(position)
            self._rest += Draws(*self._name, self._round).shuffled(self._kinds)
            self._round += 1
        raise AdvlError("No kind of the vocabulary fits a scene.", where=" ".join(map(str, self._name)))


def plan_groups(
    vocabulary: Vocabulary, *, seed: int, split: str, num_scenes: int, unseen: bool, compositional: bool
) -> Iterator[Group]:
    """Yield the groups of a split in order.

    Args:
        vocabulary: all kinds.
        seed: the corpus seed.
        split: names the draws, so that no two splits share them.
        num_scenes: a multiple of `SCENES_PER_GROUP`.
        unseen: show kinds that no labelled item ever named, instead of the labelled ones.
        compositional: show the held-out combinations of axis and number, instead of all the others.
    """
    pool = vocabulary.unseen if unseen else vocabulary.labelled
    deck = _Deck(pool, seed, split, "deck")
    for number in range(num_scenes // SCENES_PER_GROUP):
        draws = Draws(seed, split, "group", number)
        casts: list[_Cast] = []
        for _ in range(2):
            casts.append(_cast(deck, pool, casts, vocabulary.containers, draws))
        extras = _fitting_extras(pool, casts)
        first_number = number * SCENES_PER_GROUP
        one, two = (
            _twins(cast, extras, vocabulary.containers, draws, first_number + 2 * order, compositional)
            for order, cast in enumerate(casts)
        )
        yield Group(number=number, one=one, two=two)


def _fitting_extras(pool: Sequence[Kind], casts: Sequence[_Cast]) -> list[Kind]:
    """Return the kinds that may fill the pictures of a group: of other families, and no description fits them."""
    families = {kind.family for cast in casts for kind in cast.kinds}
    said = frozenset(
        stem
        for cast in casts
        for kind in cast.described
        for keyword in kind.keywords
        for stem in phrase_stems(keyword)
    )
    return [kind for kind in pool if kind.family not in families and spoken_stems(kind).isdisjoint(said)]


def _cast(
    deck: _Deck, pool: Sequence[Kind], earlier: Sequence[_Cast], containers: Sequence[Kind], draws: Draws
) -> _Cast:
    """Draw the kinds of a pair of twins from families that nothing else in the group belongs to."""
    others = [*containers, *(kind for cast in earlier for kind in cast.kinds)]
    described = [kind for cast in earlier for kind in cast.described]

    def siblings(kind: Kind, *, named: bool) -> list[Kind]:
        return [
            other
            for other in pool
            if other.family == kind.family
            and other.code != kind.code
            and can_join((kind, other), described, others, named=named)
        ]

    def pair() -> tuple[Kind, Kind]:
        families = {kind.family for kind in others}
        first = deck.take(lambda kind: kind.family not in families and bool(siblings(kind, named=False)))
        second = draws.pick(siblings(first, named=False))
        others.extend((first, second))
        described.extend((first, second))
        return first, second

    def reference_pair() -> tuple[Kind, Kind]:
        families = {kind.family for kind in others}
        shuffled = draws.shuffled(pool)
        first = next(kind for kind in shuffled if kind.family not in families and siblings(kind, named=True))
        second = draws.pick(siblings(first, named=True))
        others.extend((first, second))
        return first, second

    subjects, partners = pair(), pair()
    return _Cast(subjects=subjects, partners=partners, references=reference_pair() if draws.below(2) else None)


def _twins(
    cast: _Cast,
    extras: Sequence[Kind],
    containers: Sequence[Kind],
    draws: Draws,
    first_number: int,
    compositional: bool,
) -> Twins:
    axis: Axis = draws.pick(("horizontal", "vertical"))
    with_container = draws.below(2)
    first, second = (
        _task_scene(
            draws,
            number=first_number + order,
            subject=cast.subjects[order],
            partner=cast.partners[order],
            reference=cast.references[order] if cast.references else None,
            container=draws.pick(containers) if order == with_container else None,
            extras=extras,
            axis=axis,
            compositional=compositional,
        )
        for order in range(2)
    )
    return Twins(first=first, second=second, rivals=(*cast.kinds, *containers))


def _task_scene(
    draws: Draws,
    *,
    number: int,
    subject: Kind,
    partner: Kind,
    reference: Kind | None,
    container: Kind | None,
    extras: Sequence[Kind],
    axis: Axis,
    compositional: bool,
) -> TaskScene:
    parts = [kind for kind in (reference, subject, partner, container) if kind is not None]
    count = _draw_count(draws, len(parts), axis, compositional)
    kinds = [*parts, *_draw_extras(draws, extras, count - len(parts))]
    spots = place(
        draws, count, _rule(draws, axis=axis, relational=reference is not None, boxed=container is not None)
    )
    things = [Thing(kind=kind, spot=spot) for kind, spot in zip(kinds, spots, strict=True)]
    return TaskScene(
        scene=Scene(number=number, things=tuple(draws.shuffled(things))),
        subject=subject,
        partner=partner,
        reference=reference,
        container=container,
        axis=axis,
    )


def _draw_count(draws: Draws, least: int, axis: Axis, compositional: bool) -> int:
    if compositional:
        return HELD_OUT[axis]
    counts = [count for count in range(least, MAX_THINGS + 1) if count != HELD_OUT[axis]]
    # Pictures of two things are possible in one case only; half of that case keeps the counts even.
    return MIN_THINGS if least == MIN_THINGS and draws.below(2) else draws.pick(counts)


def _draw_extras(draws: Draws, extras: Sequence[Kind], count: int) -> list[Kind]:
    """Draw things that fill the picture, each of another family."""
    chosen: list[Kind] = []
    for kind in draws.shuffled(extras):
        if len(chosen) == count:
            break
        if kind.family not in {other.family for other in chosen}:
            chosen.append(kind)
    return chosen


def _rule(draws: Draws, *, axis: Axis, relational: bool, boxed: bool) -> Rule:
    """Return what a prefix of the centres of [reference], subject, partner, [container], extras ... must obey."""
    side: Relation = draws.pick(ALONG[axis])
    subject = 1 if relational else 0
    partner, container = subject + 1, subject + 2

    def rule(centres: Sequence[tuple[int, int]]) -> bool:
        last = len(centres) - 1
        if last == partner and relation(centres[subject], centres[partner]) != side:
            return False
        if boxed and last == container and relation(centres[container], centres[partner]) not in ALONG[axis]:
            return False
        if not relational or last == 0:
            return True
        if last == subject:
            return relation(centres[subject], centres[0]) == side
        if last == partner:
            return relation(centres[partner], centres[0]) == INVERSE[side]
        return only_one(subject, 0, side, centres) and only_one(partner, 0, INVERSE[side], centres)

    return rule
