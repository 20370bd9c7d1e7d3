"""What `advl predict` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig(Configuration):
    """Configuration of `advl predict`."""

    run: Path = option(help="Run folder of a finished finetuning.")
    split: str = option("test", help="Split of the run's dataset, or DATASET/SPLIT.")
    output: Path | None = option(None, help="File to write [default: RUN/predictions/SPLIT.csv or .json].")
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
    batch_size: int = option(64, help="Examples per forward pass.", minimum=1)
    regions: Path | None = option(
        None, help="Region features of the split, where they lie elsewhere than the run's; {split} as in `finetune`."
    )
    ground_truth_regions: Path | None = option(None, help="Features of the split's own boxes, likewise.")
    region_split: str | None = option(
        None, help="Split in UNITER's names of VCR pictures [default: the run's option, else the split]."
    )
    device: str = option("cpu", help="Where the student computes, such as cpu or cuda:0.")
