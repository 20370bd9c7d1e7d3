"""Cost of distillation: a step with cached teachers compared with one without, and step 1 over 10,000 texts."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator.build import run_build_scenes
from advl_pipeline.base.configuration import build_config
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.runs.results import RunResult
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.prepare import prepare_finetune
from advl_pipeline.training.run import run_finetune
from benchmarks.rows import Row, ratio_row

_TEACHERS = ("minilm-l6", "efficientnet-lite0")
_ADAPT_TEXTS, _FEW_STEPS = 64, 5
_TEXTS = 10_000


def measure_training(folder: Path, quick: bool) -> list[Row]:
    """Finetune the small student on the built-in corpus, alternately without teachers and from caches."""
    num_pictures, num_steps, rounds = (8, 20, 2) if quick else (80, 150, 5)
    data_root = folder / "data"
    others = ("num_val", "num_test", "num_unseen", "num_compositional", "num_shift_inputs")
    few: dict[str, Any] = dict.fromkeys(others, 4)
    run_build_scenes(
        ScenesConfig(data_root=data_root, num_caption_scenes=20, num_train=num_pictures, workers=1, **few)
    )
    caches = tuple(folder / name for name in _TEACHERS)
    for name, output in zip(_TEACHERS, caches, strict=True):
        run_extract(
            prepare_extract(ExtractConfig(teacher=name, dataset="scenes-vcr", data_root=data_root, output=output))
        )

    def run(**changes: Any) -> RunResult:
        output = folder / "run"
        shutil.rmtree(output, ignore_errors=True)
        base = {"dataset": "scenes-vcr", "data_root": data_root, "task": ("vcr-q2a",), "output": output}
        config = build_config(FinetuneConfig, base, {"checkpoint_every": 10_000}, changes)
        return run_finetune(prepare_finetune(config, may_idle=True)).summary

    advl: dict[str, Any] = {"method": "advl", "cache": caches}
    plain: list[float] = []
    cached: list[float] = []
    for _ in range(rounds):
        plain.append(run(method="plain", num_steps=num_steps).seconds_per_step)
        cached.append(run(**advl, steps="one", num_steps=num_steps).seconds_per_step)
    detail = f"{1e3 * statistics.median(cached):.1f} and {1e3 * statistics.median(plain):.1f} ms"
    name = "step with cached distillation, against plain, everything counted"
    rows = [ratio_row(name, cached, plain, goal=1.15, at_least=False, detail=detail)]
    # The cost of step 1 is the difference between runs with many and with few of its updates.
    many = (_TEXTS // 10 if quick else _TEXTS) // _ADAPT_TEXTS
    seconds = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for steps in (_FEW_STEPS, many + _FEW_STEPS):
        begin = time.thread_time()
        run(**advl, num_steps=1, num_workers=1, adapt_steps=steps, adapt_texts=_ADAPT_TEXTS)
        seconds.append(time.thread_time() - begin)
    torch.set_num_threads(threads)
    spent = seconds[1] - seconds[0]
    detail = f"{many} updates of {_ADAPT_TEXTS} texts took {spent:.1f} s of processor time"
    name, value = f"step 1 over {_TEXTS:,} texts, seconds of one core", spent * _TEXTS / (many * _ADAPT_TEXTS)
    return [*rows, Row(name, value, 30.0, at_least=False, detail=detail)]
