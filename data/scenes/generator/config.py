"""Configuration of `advl scenes build`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_data.scenes.generator.paths import CODE_STRIDE
from advl_data.scenes.generator.scene import SCENES_PER_GROUP
from advl_pipeline.configuration import option
from advl_pipeline.datasets.config import DataRootOptions

CAPTION_VAL_SHARE = 10
"""Validation gets one captioned picture for so many of training."""


def _num_scenes(default: int, purpose: str) -> Any:
    return option(
        default,
        help=purpose,
        multiple_of=SCENES_PER_GROUP,
        minimum=SCENES_PER_GROUP,
        maximum=CODE_STRIDE - SCENES_PER_GROUP,
    )


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(DataRootOptions):
    """What to build. A scene brings about 2 VCR, 6 VQA, 8 SNLI-VE items."""

    seed: int = option(0, help="Determines every byte of the corpus.", minimum=0)
    num_caption_scenes: int = option(
        3000,
        help="Pictures with captions for pretraining; a tenth more for validation.",
        minimum=CAPTION_VAL_SHARE,
        maximum=CODE_STRIDE - 1,
    )
    num_train: int = _num_scenes(1200, "Pictures of the split train.")
    num_val: int = _num_scenes(300, "Pictures of the split val.")
    num_test: int = _num_scenes(600, "Pictures of the splits test, test-shift and test-rephrased.")
    num_unseen: int = _num_scenes(300, "Pictures of the split test-unseen.")
    num_compositional: int = _num_scenes(300, "Pictures of the split test-compositional.")
    num_shift_inputs: int = _num_scenes(
        600,
        "Pictures of the splits train-shift and train-rephrased: inputs like the test's, labels not for training.",
    )
    descriptions: Path | None = option(
        None,
        help="TOML file of what people say of each kind, in place of ours and in its form "
        "(data/scenes/generator/descriptions.toml).",
    )
    workers: int = option(0, help="Processes that draw; 0 takes one per core. Does not change the result.", minimum=0)
    replace: bool = option(False, help="Replace a corpus of other settings that lies there.")
