"""What the image-text pretraining of the small students is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Configuration):
    """Configuration of `advl pretrain`."""

    output: Path | None = option(None, help="Folder of the pretrained student [default: students/STUDENT].")
    dataset: str = option("scenes-captions", help="Image-caption pairs with phrase boxes.")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    split: str = option("train", help="Split to train on.")
    student: str = option(
        "scenes-small", help="Student to pretrain: scenes-small, scenes-small-lm, scenes-uniter or scenes-vilt."
    )
    seed: int = option(0, help="Chooses initialisation, order and masks.", minimum=0)
    warmup_steps: int = option(500, help="Steps of region-phrase contrast alone.", minimum=0)
    joint_steps: int = option(
        900, help="Steps of all objectives together: contrast, masked words, matching, naming.", minimum=0
    )
    batch_size: int = option(96, help="Pairs per step.", minimum=1)
    learning_rate: float = option(1e-3, help="Peak learning rate.", above=0)
    weight_decay: float = option(0.01, help="AdamW weight decay.", minimum=0)
    mask_probability: float = option(
        0.25, help="Share of the words of a caption that is masked.", minimum=0, maximum=1
    )
