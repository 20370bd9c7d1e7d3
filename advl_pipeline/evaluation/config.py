"""What is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.configuration import Configuration, option

Probe = Literal["swapped", "blanked", "removed", "none"]
"""How a picture is spoilt: another one of the set, nothing but its boxes, hidden; `none` spoils nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(Configuration):
    """Configuration of `advl evaluate`."""

    run: Path = option(help="Run folder of a finished finetuning.")
    on: tuple[str, ...] = option(
        ("test",), help="Test set: a split of the run's dataset, or DATASET/SPLIT; repeatable."
    )
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    batch_size: int = option(64, help="Examples per forward pass.", minimum=1)
    vqa_mode: Literal["2021", "2017", "vqa-vs"] | None = option(
        None, help="VQA evaluator [default: that of the set's card, which is the official one of 2021 for most]."
    )
    probe: tuple[Probe, ...] = option(
        ("swapped", "blanked", "removed"),
        help="Use of vision: also score with every picture swapped for another one, blanked, or removed; repeatable.",
    )
    probe_on: tuple[str, ...] = option(
        (), help="Test sets that are probed so; repeatable [default: the first one of --on]."
    )
    regions: Path | None = option(
        None,
        help="Region features of the sets, where they lie elsewhere than the run's; {split} as in `advl finetune`.",
    )
    ground_truth_regions: Path | None = option(None, help="Features of the sets' own boxes, likewise.")
    region_split: str | None = option(
        None, help="Split in UNITER's names of VCR pictures [default: the run's option, else the set's split]."
    )
    device: str = option("cpu", help="Where the student computes, such as cpu or cuda:0.")
