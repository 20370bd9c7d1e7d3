"""What `advl datasets headroom` measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option
from advl_pipeline.locations import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadroomConfig(Configuration):
    """Configuration of `advl datasets headroom`."""

    dataset: str = option(help="Dataset whose headroom is measured.")
    init: Path = option(help="Folder of the pretrained student, as `advl pretrain` writes it.")
    cache: tuple[Location, ...] = option(
        (), help="Teacher cache; repeatable: of each teacher one of train and one of the split that is scored."
    )
    output: Path | None = option(
        None, help="Folder of the runs, which resume in it [default: runs/headroom/DATASET]."
    )
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
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
