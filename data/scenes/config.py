"""Configuration of `advl scenes build` and `pretrain`, and of `advl teachers install`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_data.scenes.generator.paths import CODE_STRIDE
from advl_data.scenes.generator.scene_plan import SCENES_PER_GROUP
from advl_pipeline.base.compute import ComputeConfig
from advl_pipeline.base.configuration import Configuration, Output, option
from advl_pipeline.datasets.config import DataRootOptions

CAPTION_VAL_SHARE = 10
"""Number of captioned training pictures per captioned validation picture."""


def _num_scenes(default: int, purpose: str, minimum: int = SCENES_PER_GROUP) -> Any:
    return option(
        default,
        help=purpose,
        multiple_of=SCENES_PER_GROUP,
        minimum=minimum,
        maximum=CODE_STRIDE - SCENES_PER_GROUP,
    )


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(DataRootOptions):
    """Configuration of the corpus. A scene yields about 2 VCR, 6 VQA, 8 SNLI-VE items."""

    seed: int = option(0, help="Seed; determines every byte of the corpus.", minimum=0)
    num_caption_scenes: int = option(
        3000,
        help="Pictures with captions for pretraining, and a tenth as many for validation.",
        minimum=CAPTION_VAL_SHARE,
        maximum=CODE_STRIDE - 1,
    )
    num_train: int = _num_scenes(1200, "Pictures of the split train.")
    num_val: int = _num_scenes(300, "Pictures of the split val.")
    num_test: int = _num_scenes(600, "Pictures of the splits test, test-shift and test-rephrased.")
    num_unseen: int = _num_scenes(300, "Pictures of the split test-unseen; 0 for none.", minimum=0)
    num_compositional: int = _num_scenes(300, "Pictures of the split test-compositional.")
    num_shift_inputs: int = _num_scenes(
        600,
        "Pictures of the splits train-shift and train-rephrased: inputs like the test's, labels not for training.",
    )
    descriptions: Path | None = option(
        None,
        help="TOML file with descriptions of each kind, instead of data/scenes/generator/descriptions.toml and in "
        "its form; for --photographs with name, article and family, as in data/scenes/generator/caltech101.toml.",
    )
    photographs: Path | None = option(
        None,
        help="Folder of class folders, whose photographs replace the artwork; needs --descriptions.",
    )
    other_families: int = option(
        0,
        help="Percent of the groups of VCR questions whose wrong answers are of other families than the correct one.",
        minimum=0,
        maximum=100,
    )
    workers: int = option(
        0, help="Processes that draw; 0 is one per core. The result does not depend on it.", minimum=0
    )
    replace: bool = option(False, help="Replace an existing corpus of other settings.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretraining:
    """A student's default pretraining settings (its `pretraining`), which options of the same names override."""

    warmup_steps: int = 500
    joint_steps: int = 250
    learning_rate: float = 1e-3
    move_pictures: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(DataRootOptions, ComputeConfig):
    """Configuration of `advl scenes pretrain`."""

    output: Path | None = option(
        None,
        help="Folder of the pretrained student [default: students/STUDENT].",
        identity="none",
        output=Output(makes="student"),
    )
    dataset: str = option("scenes-captions", help="Image-caption pairs with phrase boxes.")
    split: str = option("train", help="Split to train on.")
    student: str = option(
        "scenes-small",
        help="Student to pretrain: scenes-small, scenes-small-lm, scenes-efficientnet, scenes-uniter, "
        "scenes-vilt or scenes-smolvlm.",
    )
    seed: int = option(0, help="Seed of initialisation, order and masks.", minimum=0)
    warmup_steps: int | None = option(
        None, help="Steps with only the region-phrase contrast [default: the student's].", minimum=0
    )
    joint_steps: int | None = option(
        None,
        help="Steps with all objectives: contrast, words, matching, naming [default: the student's].",
        minimum=0,
    )
    batch_size: int = option(96, help="Pairs per step.", minimum=1)
    learning_rate: float | None = option(None, help="Peak learning rate [default: the student's].", above=0)
    move_pictures: float | None = option(
        None,
        help="How far pictures are zoomed and shifted at random, for a student over patches. 0.25 zooms by up to a "
        "quarter, a third of that more by axis, and shifts by an eighth of a side [default: the student's].",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallTeacherConfig(Configuration):
    """Configuration of `advl teachers install`."""

    name: str = option(help="Teacher whose weights to install.")
    dry_run: bool = option(False, help="Only print what would be fetched and where it would go.")
