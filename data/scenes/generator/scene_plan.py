"""Decide what every scene shows: kinds, their parts, counts, places. Pure, and determined by the seed.

`Twins` make the texts fair: whatever is said about one scene is said about the other with another answer. The
combinations of axis and number of things in `HELD_OUT` are what relations are asked about in test-compositional
alone. Captions, and VQA's questions of an outermost thing, speak of either axis everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.placing import (
    ALONG,
    INVERSE,
    Axis,
    Centre,
    Relation,
    Rule,
    Spot,
    is_unique,
    place,
    relation,
)
from advl_data.scenes.generator.vocabulary import Container, Kind, Vocabulary
from advl_pipeline.base.errors import AdvlError

SCENES_PER_GROUP = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One thing in a picture."""

    kind: Kind
    spot: Spot


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture to be drawn. The position of a thing in `things` is its box and its tag."""

    number: int
    things: tuple[Thing, ...]

    @property
    def centres(self) -> tuple[Centre, ...]:
        return tuple(thing.spot.centre for thing in self.things)

    def index(self, kind: Kind) -> int:
        """Return the tag of the only thing of a kind."""
        (position,) = [index for index, thing in enumerate(self.things) if thing.kind.code == kind.code]
        return position


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScene:
    """Names the parts that the things of a scene play in the items.

    `subject` and `partner` are what is asked about. In a scene with `reference`, subject and partner stand on
    opposite sides of it, each alone on its side. `container` may hide something. All relations that are ever
    mentioned of the scene are on `axis`.
    """

    scene: Scene
    subject: Kind
    partner: Kind
    reference: Kind | None
    container: Container
    axis: Axis

    def side(self, thing: Kind, other: Kind) -> Relation:
        """Return how one thing is to another, where the plan has placed them clearly.

        Raises:
            AdvlError: it is arguable (a mistake in the plan).
        """
        scene = self.scene
        side = relation(scene.centres[scene.index(thing)], scene.centres[scene.index(other)])
        if side is None:
            raise AdvlError("Two things of a scene stand in no clear relation.", where=f"scene {scene.number}")
        return side


@dataclass(frozen=True, kw_only=True, slots=True)
class Twins:
    """Two scenes whose subjects are of one family, and whose partners are, and whose references are.

    Every item of one scene has a counterpart with the same words and another answer in the other scene.
    """

    first: TaskScene
    second: TaskScene

    @property
    def scenes(self) -> tuple[TaskScene, TaskScene]:
        return (self.first, self.second)

    def twin(self, task: TaskScene) -> TaskScene:
        """Return the other scene."""
        return self.second if task is self.first else self.first


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Holds two pairs of twins, beyond which no item of theirs reaches.

    The group has two kinds of containers, one of each in either pair. The first kind may hide the subjects of the
    first pair and the partners of the second. The other kind may hide those that are left. No family occurs in both
    pairs.
    """

    number: int
    first_pair: Twins
    second_pair: Twins

    @property
    def pairs(self) -> tuple[tuple[Twins, Twins], tuple[Twins, Twins]]:
        """Return each pair of twins, with the other pair."""
        return ((self.first_pair, self.second_pair), (self.second_pair, self.first_pair))

    @property
    def task_scenes(self) -> tuple[TaskScene, ...]:
        return (*self.first_pair.scenes, *self.second_pair.scenes)


HELD_OUT: Final[dict[Axis, int]] = {"horizontal": 4, "vertical": 5}
"""Axis of a scene's relations -> number of things that are together in test-compositional alone."""

MIN_THINGS: Final = 2
MAX_THINGS: Final = 5

_CASTS_PER_RELATIONAL: Final = 5
"""One pair of twins of so many is asked about by relation, the others by tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cast:
    """Kinds of a pair of twins: for each part, one for the first scene and one of the same family for the second."""

    subjects: tuple[Kind, Kind]
    partners: tuple[Kind, Kind]
    references: tuple[Kind, Kind] | None
    containers: tuple[Container, Container]
    """One for either scene; the same two for all twins of a group."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*self.subjects, *self.partners, *(self.references or ()))


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
        casts = _casts(deck, pool, vocabulary, draws)
        excluded = _resembled(casts[0].containers).union(*(_kin(kind) for cast in casts for kind in cast.kinds))
        extras, spare = (
            [kind for kind in kinds if kind.family.subcategory not in excluded]
            for kinds in (pool, vocabulary.labelled)
        )
        # Draws of their own: large pools, which never run out, keep theirs.
        spare = Draws(seed, split, "spare", number).shuffled(spare)
        first_number = number * SCENES_PER_GROUP
        first_pair, second_pair = (
            _twins(cast, extras, spare, draws, first_number + 2 * order, compositional)
            for order, cast in enumerate(casts)
        )
        yield Group(number=number, first_pair=first_pair, second_pair=second_pair)


def _casts(deck: _Deck, pool: Sequence[Kind], vocabulary: Vocabulary, draws: Draws) -> tuple[_Cast, _Cast]:
    """Draw the kinds of a group: a family for each part, and one container for each role of the parts."""
    siblings = {
        kind: [other for other in pool if other.family == kind.family and other.code != kind.code] for kind in pool
    }
    taken: set[str] = set()

    def pair(fits: Callable[[Kind], bool], *, spare: bool = False) -> tuple[Kind, Kind]:
        def fit(kind: Kind) -> bool:
            return kind.family.subcategory not in taken and bool(siblings[kind]) and fits(kind)

        # What is only referred to leaves the deck alone: the deck sees to it that all kinds are asked about alike.
        first = next(filter(fit, draws.shuffled(pool))) if spare else deck.take(fit)
        taken.update(_kin(first))
        return first, draws.pick(siblings[first])

    def hidden_otherwise(kind: Kind) -> bool:
        """Whether another container hides the kind, and neither container passes for one of the two families."""
        container = vocabulary.hiding_place(kind)
        families = {other.family.subcategory for other in (subjects[0], kind)}
        return container != subjects_container and families.isdisjoint(_resembled((subjects_container, container)))

    subjects = pair(lambda kind: True)
    subjects_container = vocabulary.hiding_place(subjects[0])
    partners = pair(hidden_otherwise)
    containers = (subjects_container, vocabulary.hiding_place(partners[0]))
    taken |= _resembled(containers)
    other_subjects = pair(lambda kind: vocabulary.hiding_place(kind) == containers[1])
    other_partners = pair(lambda kind: vocabulary.hiding_place(kind) == containers[0])
    references = [
        pair(lambda kind: True, spare=True) if draws.below(_CASTS_PER_RELATIONAL) == 0 else None for _ in range(2)
    ]
    return (
        _Cast(subjects=subjects, partners=partners, references=references[0], containers=containers),
        _Cast(subjects=other_subjects, partners=other_partners, references=references[1], containers=containers),
    )


def _resembled(containers: Sequence[Container]) -> set[str]:
    """Return the families that one of the containers may be taken for."""
    return {subcategory for container in containers for subcategory in container.resembles}


def _kin(kind: Kind) -> set[str]:
    """Return the families that no other thing of a group may have, once it has the kind."""
    return {kind.family.subcategory, *kind.family.overlaps}


def _twins(
    cast: _Cast,
    extras: Sequence[Kind],
    spare: Sequence[Kind],
    draws: Draws,
    first_number: int,
    compositional: bool,
) -> Twins:
    """Fill the scenes of a cast with other kinds; `spare` serves where `extras` has too few families."""
    axis: Axis = draws.pick(("horizontal", "vertical"))
    containers = draws.shuffled(cast.containers)
    scenes = []
    for order, (subject, partner, container) in enumerate(zip(cast.subjects, cast.partners, containers, strict=True)):
        reference = cast.references[order] if cast.references else None
        parts = [*([reference] if reference else ()), subject, partner, container]
        counts = [count for count in range(len(parts), MAX_THINGS + 1) if count != HELD_OUT[axis]]
        count = HELD_OUT[axis] if compositional else draws.pick(counts)
        kinds = list(parts)
        for kind in (*draws.shuffled(extras), *spare):
            # What fills the picture is each of another family.
            if len(kinds) < count and kind.family not in {other.family for other in kinds[len(parts) :]}:
                kinds.append(kind)
        if len(kinds) < count:
            raise AdvlError(
                "The kinds of the corpus are of too few families to compose a scene from.",
                where=f"scene {first_number + order}",
                why=f"it shows {count} things, all of other families; families that overlap count as one",
            )
        spots = place(draws, count, _rule(draws, axis=axis, relational=reference is not None))
        things = [Thing(kind=kind, spot=spot) for kind, spot in zip(kinds, spots, strict=True)]
        scenes.append(
            TaskScene(
                scene=Scene(number=first_number + order, things=tuple(draws.shuffled(things))),
                subject=subject,
                partner=partner,
                reference=reference,
                container=container,
                axis=axis,
            )
        )
    first, second = scenes
    return Twins(first=first, second=second)


def _rule(draws: Draws, *, axis: Axis, relational: bool) -> Rule:
    """Return what a prefix of the centres of [reference], subject, partner, container, extras ... must obey."""
    side: Relation = draws.pick(ALONG[axis])
    subject = 1 if relational else 0
    partner, container = subject + 1, subject + 2

    def rule(centres: Sequence[tuple[int, int]]) -> bool:
        last = len(centres) - 1
        if last == partner and relation(centres[subject], centres[partner]) != side:
            return False
        if last == container and relation(centres[container], centres[subject]) not in ALONG[axis]:
            return False
        if not relational or last == 0:
            return True
        if last == subject:
            return relation(centres[subject], centres[0]) == side
        if last == partner:
            return relation(centres[partner], centres[0]) == INVERSE[side]
        return is_unique(subject, 0, side, centres) and is_unique(partner, 0, INVERSE[side], centres)

    return rule
