"""Configuration of `advl datasets hard-subset`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option


@dataclass(frozen=True, kw_only=True, slots=True)
class HardSubsetConfig(Configuration):
    """Which split is sifted by a model that sees hypotheses alone."""

    name: str = option(help="Dataset of hypotheses: snli-ve or scenes-snli-ve.")
    split: str = option("test", help="Split whose hard pairs are listed.")
    output: Path | None = option(
        None, help="JSON file for the list [default: where the dataset's card looks for it]."
    )
    penalty: float = option(1e-6, help="Strength of the squared norm of the model's weights.", minimum=0)
    data_root: Path | None = option(None, help="Folder of the datasets [default: $ADVL_DATA or datasets/].")
