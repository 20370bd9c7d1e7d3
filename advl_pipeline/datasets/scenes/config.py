"""Configuration of `advl datasets build scenes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import option


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """What to build. Numbers of scenes are multiples of four; a scene brings about 2 VCR, 6 VQA, 8 SNLI-VE items."""

    data_root: Path | None = option(None, help="Folder of the datasets. Else $ADVL_DATA, else datasets/.")
    seed: int = option(0, help="Determines every byte of the corpus.")
    num_caption_scenes: int = option(
        3000, help="Pictures with captions for pretraining; a tenth more for validation."
    )
    num_train: int = option(1200, help="Pictures of the split train.")
    num_val: int = option(300, help="Pictures of the split val.")
    num_test: int = option(600, help="Pictures of the splits test, test-shift and test-rephrased.")
    num_unseen: int = option(300, help="Pictures of the split test-unseen.")
    num_compositional: int = option(300, help="Pictures of the split test-compositional.")
    num_shift_inputs: int = option(
        600, help="Pictures of the split train-shift: unseen style, labels not for training."
    )
    workers: int = option(0, help="Processes that draw; 0 takes one per core. Does not change the result.")
    replace: bool = option(False, help="Replace a corpus of other settings that lies there.")
