"""What the demo student's image-text pretraining is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import option


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Configuration of `advl pretrain`."""

    output: Path = option(Path("students/scenes-small"), help="Folder of the pretrained student.")
    dataset: str = option("scenes-captions", help="Image-caption pairs with phrase boxes.")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    split: str = option("train", help="Split to train on.")
    student: str = option("scenes-small", help="Student to pretrain.")
    seed: int = option(0, help="Chooses initialisation, order and masks.")
    warmup_steps: int = option(250, help="Steps of region-phrase contrast alone.")
    joint_steps: int = option(700, help="Steps of all objectives together: contrast, masked words, matching, naming.")
    batch_size: int = option(64, help="Pairs per step.")
    learning_rate: float = option(1e-3, help="Peak learning rate.")
    weight_decay: float = option(0.01, help="AdamW weight decay.")
    mask_probability: float = option(0.25, help="Share of the words of a caption that is masked.")
