"""What distillation from caches costs a training step, against the same step without it and with live teachers.

The arithmetic of the distillation is measured apart: the runs time the parts of a step themselves, on a batch that is
in memory and with nothing beside it (`part_costs.py`). In the loop the next batches are prepared beside it, and
everything is slower; the arithmetic is taken to be as much slower as a plain step is than its student's part alone.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.trust import require_trustworthy
from advl_pipeline.datasets.scenes.build import run_build_scenes
from advl_pipeline.datasets.scenes.config import ScenesConfig
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.settings import PLAIN
from benchmarks.corpus import texts
from benchmarks.formats import build_cache

_TEACHERS = ("minilm-l6", "efficientnet-lite0")
_TEXTS_PER_QUESTION = 4
_TEXTS_PER_STEP = 64
"""Of the adapt step, by default."""

ADAPT_TEXTS = 10_000


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Median seconds per step, the share of time waited, and the distillation's own arithmetic per step.

    `checking` is what looking at a cache before a run takes, `hashing` what `--verify-caches` takes, in seconds;
    `checking_share` and `hashing_share` are those over an epoch of cached steps on the same cache.

    `ratio` is a step with cached distillation, the arithmetic apart, over the same step without it: the median of the
    rounds' ratios; `whole_ratio` counts everything. `relational` and `coordinate` are processor seconds of an adapt
    step over 10,000 texts.
    """

    plain: float
    cached: float
    live: float
    arithmetic: float
    wait_share: float
    ratio: float
    whole_ratio: float
    relational: float
    coordinate: float
    checking: float
    hashing: float
    checking_share: float
    hashing_share: float


def measure_training(folder: Path, *, num_pictures: int, num_steps: int, rounds: int, num_texts: int) -> StepCosts:
    """Finetune the small student without teachers and from caches, in turn, then with live teachers.

    `num_texts` is the size of the cache whose check before a run is measured: a small one's would be all overhead.
    """
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
                num_shift_inputs=4,
                workers=1,
            )
        )
    caches = tuple(folder / name for name in _TEACHERS)
    for name, output in zip(_TEACHERS, caches, strict=True):
        run_extract(ExtractConfig(teacher=name, dataset="scenes-vcr", data_root=data_root, output=output))
    base: dict[str, Any] = {
        "dataset": "scenes-vcr",
        "data_root": data_root,
        "task": ("vcr-q2a",),
        "num_steps": num_steps,
        "checkpoint_every": num_steps,
    }
    advl: dict[str, Any] = {"method": "advl", "steps": "one", "cache": caches}

    def summary(name: str, **changes: Any) -> dict[str, Any]:
        output = folder / "runs" / name
        shutil.rmtree(output, ignore_errors=True)
        return run_finetune(FinetuneConfig(**{**base, "output": output, **changes})).summary

    found = [
        (summary(f"plain-{number}", method="plain"), summary(f"cached-{number}", **advl)) for number in range(rounds)
    ]
    live = summary("live", **{**advl, "live": True, "num_steps": max(2, num_steps // 8)})
    plain, cached = ([pair[way]["seconds_per_step"] for pair in found] for way in (0, 1))
    arithmetic = [_arithmetic(*pair) for pair in found]

    def adapt_seconds(distance: str) -> float:
        few, many = (
            _processor_seconds(
                partial(
                    summary,
                    f"{distance}-{number}",
                    **{**advl, "cache": caches[:1], "steps": "two", "adapt_steps": number, "num_steps": 1},
                    distance=distance,
                )
            )
            for number in (1, 1 + ADAPT_TEXTS // _TEXTS_PER_STEP)
        )
        return many - few

    checking, hashing = _checking_seconds(folder / "texts", num_texts)
    epoch = num_texts / _TEXTS_PER_QUESTION / PLAIN["batch_size"] * statistics.median(cached)
    return StepCosts(
        plain=statistics.median(plain),
        cached=statistics.median(cached),
        live=live["seconds_per_step"],
        arithmetic=statistics.median(arithmetic),
        wait_share=statistics.median(pair[1]["wait_share"] for pair in found),
        ratio=statistics.median(
            (of_cached - of_arithmetic) / of_plain
            for of_plain, of_cached, of_arithmetic in zip(plain, cached, arithmetic, strict=True)
        ),
        whole_ratio=statistics.median(
            of_cached / of_plain for of_plain, of_cached in zip(plain, cached, strict=True)
        ),
        relational=adapt_seconds("relational"),
        coordinate=adapt_seconds("mse"),
        checking=checking,
        hashing=hashing,
        checking_share=checking / epoch,
        hashing_share=hashing / epoch,
    )


def _checking_seconds(folder: Path, num_texts: int) -> tuple[float, float]:
    """Return the median seconds of a check before a run, and the seconds of one that hashes everything."""
    if not folder.exists():
        build_cache(folder, texts(num_texts))
    cache = open_cache(folder)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        require_trustworthy(cache)
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    require_trustworthy(cache, hash_all=True)
    return statistics.median(seconds), time.perf_counter() - begin


def _processor_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _arithmetic(plain: Mapping[str, Any], cached: Mapping[str, Any]) -> float:
    """Return the seconds of a step in the loop that the pathways take from the student's states on."""
    parts: dict[str, float] = cached["parts"]["milliseconds"]
    slowdown = plain["seconds_per_step"] / plain["parts"]["milliseconds"]["student"]
    return float((parts["vision"] + parts["text"]) * slowdown)
