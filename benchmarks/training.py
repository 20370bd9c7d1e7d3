"""What distillation from caches costs a training step, against the same step without it and with live teachers.

The arithmetic of the distillation is measured apart: the runs time the parts of a step themselves, on a batch that is
in memory (`part_costs.py`).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.scenes.build import run_build_scenes
from advl_pipeline.datasets.scenes.config import ScenesConfig
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune

_TEACHERS = ("minilm-l6", "efficientnet-lite0")


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Median seconds per step, the share of time waited, and the distillation's own arithmetic per step."""

    plain: float
    cached: float
    live: float
    arithmetic: float
    wait_share: float

    @property
    def ratio(self) -> float:
        """A step with cached distillation over the same step without it, the arithmetic apart."""
        return (self.cached - self.arithmetic) / self.plain


def measure_training(folder: Path, *, num_pictures: int, num_steps: int, rounds: int) -> StepCosts:
    """Finetune the small student without teachers, from caches and with live teachers, in turn."""
    data_root = folder / "data"
    if not data_root.exists():
        run_build_scenes(
            ScenesConfig(
                data_root=data_root,
                num_caption_scenes=20,
                num_train=num_pictures,
                num_val=4,
                num_test=4,
                num_unseen=4,
                num_compositional=4,
                workers=1,
            )
        )
    caches = tuple(folder / name for name in _TEACHERS)
    for name, output in zip(_TEACHERS, caches, strict=True):
        run_extract(ExtractConfig(teacher=name, dataset="scenes-vcr", data_root=data_root, output=output))
    ways: dict[str, dict[str, Any]] = {
        "plain": {"method": "plain"},
        "cached": {"method": "advl", "steps": "one", "cache": caches},
        "live": {
            "method": "advl",
            "steps": "one",
            "cache": caches,
            "live": True,
            "num_steps": max(2, num_steps // 4),
        },
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    base: dict[str, Any] = {
        "dataset": "scenes-vcr",
        "data_root": data_root,
        "task": ("vcr-q2a",),
        "num_steps": num_steps,
        "checkpoint_every": num_steps,
    }
    for number in range(rounds):
        for name, changes in ways.items():
            config = FinetuneConfig(**{**base, "output": folder / f"{name}-{number}", **changes})
            found[name].append(run_finetune(config).summary)
    medians = {name: statistics.median(item["seconds_per_step"] for item in runs) for name, runs in found.items()}
    return StepCosts(
        plain=medians["plain"],
        cached=medians["cached"],
        live=medians["live"],
        arithmetic=statistics.median(
            _computing(cached) - _computing(plain)
            for cached, plain in zip(found["cached"], found["plain"], strict=True)
        ),
        wait_share=statistics.median(item["wait_share"] for item in found["cached"]),
    )


def _computing(summary: dict[str, Any]) -> float:
    """Return the seconds of a step's forward and backward passes, the reading of features left out."""
    parts: dict[str, float] = summary["parts"]["milliseconds"]
    return sum(parts.get(name, 0.0) for name in ("student", "vision", "text")) / 1000.0
