"""Configuration of `advl scenes pretrain` and `advl scenes headroom`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.compute import ComputeConfig
from advl_pipeline.configuration import Output, option
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.locations import Location


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
        help="Student to pretrain: scenes-small, scenes-small-lm, scenes-uniter, scenes-vilt or scenes-smolvlm.",
    )
    seed: int = option(0, help="Chooses initialisation, order and masks.", minimum=0)
    warmup_steps: int | None = option(
        None, help="Steps of region-phrase contrast alone [default: what suits the student].", minimum=0
    )
    joint_steps: int | None = option(
        None,
        help="Steps of all objectives together: contrast, words, matching, naming [default: what suits the student].",
        minimum=0,
    )
    batch_size: int = option(96, help="Pairs per step.", minimum=1)
    learning_rate: float | None = option(None, help="Peak learning rate [default: what suits the student].", above=0)
    weight_decay: float = option(0.01, help="AdamW weight decay.", minimum=0)
    mask_probability: float = option(
        0.25, help="Share of the words of a caption that is masked.", minimum=0, maximum=1
    )
    move_pictures: float | None = option(
        None,
        help="How far pictures are zoomed and shifted at random, for a student over patches. 0.25: by a quarter, a "
        "third of that again by axis, and by an eighth of a side [default: what suits the student].",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadroomConfig(DataRootOptions):
    """Configuration of `advl scenes headroom`."""

    dataset: str = option(help="Dataset whose headroom is measured.")
    init: Path = option(
        help="Folder of the pretrained student, as `advl scenes pretrain` writes it.", such_as="students/scenes-small"
    )
    cache: tuple[Location, ...] = option(
        (), help="Teacher cache; repeatable: of each teacher one of train and one of the split that is scored."
    )
    output: Path | None = option(
        None,
        help="Folder of the runs, which resume in it [default: runs/headroom/DATASET].",
        output=Output(makes="folders"),
    )
    task: str | None = option(None, help="The task that is measured [default: the dataset's first].")
    on: str = option("val", help="Labelled split that is scored.")
    shots: int = option(300, help="Training questions.", minimum=1)
    seeds: int = option(3, help="Runs of each kind, of seeds 0, 1, ...", minimum=1)
    num_steps: int | None = option(
        None, help="Optimiser steps of each run [default: as `advl finetune` does].", minimum=1
    )
    margin: float = option(
        15.0,
        help="Points that a student with the teachers' features must be above plain for the data to be fit for use.",
        minimum=0,
    )
