"""What a scene is, before it is drawn and before anything is said about it."""

from __future__ import annotations

from dataclasses import dataclass

from advl_data.scenes.generator.placing import Spot
from advl_data.scenes.generator.relations import Axis, Centre, Relation, relation
from advl_data.scenes.generator.vocabulary import Container, Kind
from advl_pipeline.errors import AdvlError

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
    """A scene with the parts that its things play in the items.

    `subject` and `partner` are what is asked about. In a scene with `reference`, subject and partner stand on
    opposite sides of it, each alone on its side. `container` may hide something. All relations that are ever
    mentioned of the scene lie on `axis`.
    """

    scene: Scene
    subject: Kind
    partner: Kind
    reference: Kind | None
    container: Container
    axis: Axis

    def side(self, thing: Kind, other: Kind) -> Relation:
        """Return how one thing lies to another, where the plan has placed them clearly.

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
    """Two pairs of twins. Items never reach beyond a group.

    The group has two kinds of containers, one of each in either pair. The one may hide the subjects of `one` and the
    partners of `two`, the other one the partners of `one` and the subjects of `two`. No family occurs in both pairs.
    """

    number: int
    one: Twins
    two: Twins

    @property
    def pairs(self) -> tuple[tuple[Twins, Twins], tuple[Twins, Twins]]:
        """Each pair of twins, with the other pair."""
        return ((self.one, self.two), (self.two, self.one))

    @property
    def task_scenes(self) -> tuple[TaskScene, ...]:
        return (*self.one.scenes, *self.two.scenes)
