"""What `advl readout` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option
from advl_pipeline.locations import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig(Configuration):
    """Configuration of `advl readout`."""

    student: Path = option(help="Folder of a pretrained student or of a finished run.")
    cache: tuple[Location, ...] = option(
        (), help="Teacher cache of the split whose words and regions are placed; repeatable, all of one split."
    )
    answer_on: str | None = option(
        None,
        help="Also answer this labelled split of the same dataset, such as val, by the likeness of words and regions "
        "alone; labels only score the answers.",
    )
    task: tuple[str, ...] = option((), help="Tasks whose texts are read; repeatable [default: all].")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    device: str = option("cpu", help="Where the student computes, such as cpu or cuda:0.")
