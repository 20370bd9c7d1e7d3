"""The splits of the corpus: what each shows, in which style, and the planning of one split as a job."""

from __future__ import annotations

from dataclasses import dataclass

from advl_data.scenes.config import CAPTION_VAL_SHARE, ScenesConfig
from advl_data.scenes.generator import paths
from advl_data.scenes.generator.artwork import SEEN_STYLES, SHIFTED_STYLES, Style
from advl_data.scenes.generator.caption_items import plan_caption_scenes
from advl_data.scenes.generator.descriptions import Phrasing
from advl_data.scenes.generator.scene import Group, Scene
from advl_data.scenes.generator.scene_plan import plan_groups
from advl_data.scenes.generator.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSplit:
    """One split of the task formats. Splits of one `plan` show and say the same, in other styles or other words."""

    name: str
    plan: str
    num_scenes: int
    styles: tuple[Style, ...] = SEEN_STYLES
    phrasing: Phrasing = "open"
    unseen: bool = False
    compositional: bool = False


def task_splits(config: ScenesConfig) -> tuple[TaskSplit, ...]:
    """Return the splits of the task formats in order."""
    return (
        TaskSplit(name="train", plan="train", num_scenes=config.num_train),
        TaskSplit(name="val", plan="val", num_scenes=config.num_val),
        TaskSplit(name="test", plan="test", num_scenes=config.num_test),
        TaskSplit(name="test-shift", plan="test", num_scenes=config.num_test, styles=SHIFTED_STYLES),
        TaskSplit(name="test-unseen", plan="test-unseen", num_scenes=config.num_unseen, unseen=True),
        TaskSplit(
            name="test-compositional",
            plan="test-compositional",
            num_scenes=config.num_compositional,
            compositional=True,
        ),
        TaskSplit(name="test-rephrased", plan="test", num_scenes=config.num_test, phrasing="held-out"),
        TaskSplit(name="train-shift", plan="train-shift", num_scenes=config.num_shift_inputs, styles=SHIFTED_STYLES),
        TaskSplit(
            name="train-rephrased", plan="train-shift", num_scenes=config.num_shift_inputs, phrasing="held-out"
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSplit:
    """One split of the captions."""

    name: str
    num_scenes: int

    @property
    def plan(self) -> str:
        """Name of its draws, different from those of any task split."""
        return f"captions-{self.name}"


def caption_splits(config: ScenesConfig) -> tuple[CaptionSplit, ...]:
    """Return the splits of the captions in order."""
    sizes = (config.num_caption_scenes, config.num_caption_scenes // CAPTION_VAL_SHARE)
    return tuple(
        CaptionSplit(name=name, num_scenes=size) for name, size in zip(paths.CAPTION_SPLITS, sizes, strict=True)
    )


def plan_task_split(vocabulary: Vocabulary, seed: int, split: TaskSplit) -> list[Group]:
    """Plan the groups of a split."""
    return list(
        plan_groups(
            vocabulary,
            seed=seed,
            split=split.plan,
            num_scenes=split.num_scenes,
            unseen=split.unseen,
            compositional=split.compositional,
        )
    )


def plan_caption_split(vocabulary: Vocabulary, seed: int, split: CaptionSplit) -> list[Scene]:
    """Plan the scenes of a caption split."""
    return list(plan_caption_scenes(vocabulary, seed=seed, split=split.plan, num_scenes=split.num_scenes))
