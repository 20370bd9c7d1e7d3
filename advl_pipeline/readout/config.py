"""Configurations of `advl readout` and `advl students words`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advl_pipeline.base.compute import DeviceConfig
from advl_pipeline.base.configuration import Output, option
from advl_pipeline.base.locations import Location
from advl_pipeline.base.outputs import ReplaceOptions
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.runs import names
from advl_pipeline.students.options import RegionOptions


@dataclass(frozen=True, kw_only=True)
class BesideCaches(DataRootOptions, DeviceConfig, RegionOptions):
    """A student before or after training, and the inputs of caches, on which its states are looked at."""

    command: ClassVar[tuple[str, ...]]
    """Words of the command."""

    student: Path = option(
        help="Folder of a pretrained student or of a finished run, or the name of a student (`advl students list`)."
    )
    init: Path | None = option(
        None,
        help="Pretrained weights of a student that is given by name: a folder, a checkpoint file, or hf:ORG/MODEL.",
        needs=("a student by name",),
    )
    cache: tuple[Location, ...] = option(
        (), help="Teacher cache of the split to look at; repeatable, all of one split."
    )
    dataset: str | None = option(
        None, help="Your own data that the caches are of, if the run was not trained on them.", also="--data"
    )
    task: tuple[str, ...] = option((), help="Tasks whose texts are used; repeatable [default: all].")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig(BesideCaches):
    """Configuration of `advl readout`."""

    command: ClassVar[tuple[str, ...]] = ("advl", "readout")


@dataclass(frozen=True, kw_only=True, slots=True)
class WordsConfig(BesideCaches, ReplaceOptions):
    """Configuration of `advl students words`."""

    command: ClassVar[tuple[str, ...]] = ("advl", "students", "words")
    output: Path = option(
        Path(names.WORDS),
        help="Table to write.",
        output=Output(makes="file", begins=rb"word,occurrences,score,class\n"),
    )
