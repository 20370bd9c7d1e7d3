"""A corpus of a few pictures with the caches of two real teachers over its VCR questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator.build import run_build_scenes
from advl_pipeline.configuration import build_config
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.config import FinetuneConfig


@dataclass(frozen=True)
class SmallCorpus:
    """Where the data and the caches lie, and the configuration of a short run on them."""

    data_root: Path
    caches: tuple[Path, ...]

    def config(self, output: Path, **changes: Any) -> FinetuneConfig:
        """Return a run of six steps, one of them of the adapt step."""
        settings: dict[str, Any] = {
            "dataset": "scenes-vcr",
            "data_root": self.data_root,
            "output": output,
            "method": "advl",
            "cache": self.caches,
            "task": ("vcr-q2a",),
            "num_steps": 4,
            "adapt_steps": 2,
            "adapt_texts": 16,
            "batch_size": 4,
            "confidence_folds": 2,
            # Sixteen questions tell no AUC from chance.
            "confidence_check": "none",
        }
        return build_config(FinetuneConfig, settings, changes)


def build_small_corpus(folder: Path) -> SmallCorpus:
    """Build the corpus and extract both teachers over its training questions."""
    data_root = folder / "data"
    run_build_scenes(
        ScenesConfig(
            data_root=data_root,
            num_caption_scenes=20,
            num_train=8,
            num_val=4,
            num_test=4,
            num_unseen=4,
            num_compositional=4,
            num_shift_inputs=4,
            workers=1,
        )
    )
    caches = []
    for teacher in ("minilm-l6", "efficientnet-lite0"):
        output = folder / teacher
        run_extract(ExtractConfig(teacher=teacher, dataset="scenes-vcr", data_root=data_root, output=output, folds=2))
        caches.append(output)
    return SmallCorpus(data_root=data_root, caches=tuple(caches))
