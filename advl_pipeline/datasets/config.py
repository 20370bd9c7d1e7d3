"""Configurations of the `advl datasets` commands that look at what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option
from advl_pipeline.datasets.names import DATASET_HELP


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckConfig(Configuration):
    """Configuration of `advl datasets check`."""

    name: str = option(help=DATASET_HELP)
    split: tuple[str, ...] = option((), help="Split to check; repeatable [default: all].")
    deep: bool = option(False, help="Also decode every picture and check its boxes.")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetConfig(Configuration):
    """Configuration of `advl datasets subset`."""

    name: str = option(help=DATASET_HELP)
    output: Path = option(help="JSON file for the ids.")
    shots: int = option(help="Number of questions.", minimum=1)
    split: str = option("train", help="Split to draw from.")
    seed: int = option(0, help="Chooses the subset; subsets of one seed are nested.", minimum=0)
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
