"""Plan of every scene: kinds, roles, counts, places. Pure functions of the seed.

`Twins` balance the texts: every text about one scene also occurs for the other with another answer. Only
test-compositional has questions about relations with the combinations of axis and number of things in `HELD_OUT`.
Captions, and VQA's questions about an outermost thing, use both axes everywhere.
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
    """A picture to draw. The index of a thing in `things` is the index of its box and its tag."""

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
    """Roles of a scene's things in the items.

    Questions are about `subject` and `partner`. In a scene with `reference`, subject and partner are on opposite
    sides of it, each alone on its side. `container` may hide something. All mentioned relations of the scene are on
    `axis`.
    """

    scene: Scene
    subject: Kind
    partner: Kind
    reference: Kind | None
    container: Container
    axis: Axis

    def side(self, thing: Kind, other: Kind) -> Relation:
        """Return the relation of one thing to another.

        Raises:
            AdvlError: it is ambiguous (a bug in the plan).
        """
        scene = self.scene
        side = relation(scene.centres[scene.index(thing)], scene.centres[scene.index(other)])
        if side is None:
            raise AdvlError("Two things of a scene stand in no clear relation.", where=f"scene {scene.number}")
        return side


@dataclass(frozen=True, kw_only=True, slots=True)
class Twins:
    """Two scenes with subjects of the same family, partners of the same family, and references of the same family.

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
    """Two pairs of twins; their items only use scenes of the group.

    The group has two kinds of containers, one of each in either pair. The first kind may hide the subjects of the
    first pair and the partners of the second; the other kind may hide the rest. No family occurs in both pairs.
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
"""Axis of a scene's relations -> number of things that occurs with it only in test-compositional."""

MIN_THINGS: Final = 2
MAX_THINGS: Final = 5

_CASTS_PER_RELATIONAL: Final = 5
"""One in this many pairs of twins has questions by relation, the others by tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cast:
    """Kinds of a pair of twins: for each role, one per scene, both of the same family."""

    subjects: tuple[Kind, Kind]
    partners: tuple[Kind, Kind]
    references: tuple[Kind, Kind] | None
    containers: tuple[Container, Container]
    """One per scene; the same two for all twins of a group."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*self.subjects, *self.partners, *(self.references or ()))


class _Deck:
    """Sequence of shuffled decks of kinds, in which each kind occurs equally often."""

    def __init__(self, kinds: Sequence[Kind], *name: str | int) -> None:
        self._kinds = kinds
        self._name = name
        self._rest: list[Kind] = []
        self._round = 0

    def take(self, fits: Callable[[Kind], bool]) -> Kind:
        """Remove and return the first kind that fits, if necessary from the next deck."""
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
        split: name of the draws, so that no two splits share them.
        num_scenes: a multiple of `SCENES_PER_GROUP`.
        unseen: use kinds that no labelled item names, instead of the labelled ones.
        compositional: use the held-out combinations of axis and number, instead of all others.
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
        # Separate draws, so that those of large pools, which never run out, stay the same.
        spare = Draws(seed, split, "spare", number).shuffled(spare)
        first_number = number * SCENES_PER_GROUP
        first_pair, second_pair = (
            _twins(cast, extras, spare, draws, first_number + 2 * order, compositional)
            for order, cast in enumerate(casts)
        )
        yield Group(number=number, first_pair=first_pair, second_pair=second_pair)


def _casts(deck: _Deck, pool: Sequence[Kind], vocabulary: Vocabulary, draws: Draws) -> tuple[_Cast, _Cast]:
    """Draw the kinds of a group: a family per role, and the two containers."""
    siblings = {
        kind: [other for other in pool if other.family == kind.family and other.code != kind.code] for kind in pool
    }
    taken: set[str] = set()

    def pair(fits: Callable[[Kind], bool], *, spare: bool = False) -> tuple[Kind, Kind]:
        def fit(kind: Kind) -> bool:
            return kind.family.subcategory not in taken and bool(siblings[kind]) and fits(kind)

        # References are not taken from the deck, which balances only the kinds that questions are about.
        first = next(filter(fit, draws.shuffled(pool))) if spare else deck.take(fit)
        taken.update(_kin(first))
        return first, draws.pick(siblings[first])

    def hidden_otherwise(kind: Kind) -> bool:
        """Return whether another container hides the kind, and neither container resembles one of the families."""
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
    """Return the families that one of the containers resembles."""
    return {subcategory for container in containers for subcategory in container.resembles}


def _kin(kind: Kind) -> set[str]:
    """Return the families that a kind excludes for all other things of a group."""
    return {kind.family.subcategory, *kind.family.overlaps}


def _twins(
    cast: _Cast,
    extras: Sequence[Kind],
    spare: Sequence[Kind],
    draws: Draws,
    first_number: int,
    compositional: bool,
) -> Twins:
    """Fill the scenes of a cast with other kinds; use `spare` if `extras` has too few families."""
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
            # All fillers have different families.
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
    """Return the rule for prefixes of the centres of [reference], subject, partner, container, extras ..."""
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
