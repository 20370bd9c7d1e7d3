"""What distillation from caches costs a training step, against the same step without it and with live teachers.

The arithmetic of the distillation (projections and losses) is measured apart, on batches that are in memory.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.scenes.build import run_build_scenes
from advl_pipeline.datasets.scenes.config import ScenesConfig
from advl_pipeline.distillation.word_prior import fit_word_prior
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.batches import training_batches
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import resolve_method
from advl_pipeline.training.run import build_finetune_model, run_finetune
from advl_pipeline.training.signals import SignalSource, cached_teacher

_TEACHERS = ("minilm-l6", "efficientnet-lite0")
_NUM_KEPT = 8


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
    arithmetic: list[float] = []
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
        arithmetic.append(_arithmetic_seconds({**base, "output": folder / "none", **ways["cached"]}))
    medians = {name: statistics.median(item["seconds_per_step"] for item in runs) for name, runs in found.items()}
    return StepCosts(
        plain=medians["plain"],
        cached=medians["cached"],
        live=medians["live"],
        arithmetic=statistics.median(arithmetic),
        wait_share=statistics.median(item["wait_share"] for item in found["cached"]),
    )


def _arithmetic_seconds(settings: dict[str, Any]) -> float:
    """Return how much longer forward and backward take with the distillation terms, on the same batches."""
    config = FinetuneConfig(**settings)
    method = resolve_method(config)
    dataset = open_dataset(config.dataset, split=config.split, data_root=config.data_root, tasks=config.task)
    teachers = [cached_teacher(open_cache(path)) for path in config.cache]
    prior = fit_word_prior(choice.text for i in range(len(dataset)) for choice in dataset[i].candidates)
    source = SignalSource(teachers, prior=prior, confidence={}, target_norm=config.target_norm)
    model = build_finetune_model(config, method, dataset, source)
    model.train()
    steps = training_batches(
        dataset,
        range(len(dataset)),
        model.student,
        source,
        steps=range(_NUM_KEPT),
        batch_size=config.batch_size,
        accumulate=1,
        seed=0,
        labelled=True,
    )
    batches = [batch for step in steps for batch in step]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for batch in [batches[0], *batches]:
        for distils in seconds:
            begin = time.perf_counter()
            terms = model(
                batch.student,
                batch.targets,
                batch.signal if distils else None,
                task=batch.task,
                phase="finetune",
                strength=1.0,
                image_ids_B=batch.image_ids_B,
            )
            terms.total.backward()
            seconds[distils].append(time.perf_counter() - begin)
    # The first batch pays for warming up.
    return statistics.median(seconds[True][1:]) - statistics.median(seconds[False][1:])
