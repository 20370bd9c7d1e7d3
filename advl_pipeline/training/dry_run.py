"""What an epoch takes and what limits it: the model, the threads that prepare its batches, or the disk.

Model, threads and disk work at the same time, so that an epoch takes as long as the slowest of them. On a CPU the
model and the threads share the cores, which is a limit of its own.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from advl_pipeline.cache.stores import open_store
from advl_pipeline.compute import num_cores, num_threads, resolved
from advl_pipeline.configuration import with_options
from advl_pipeline.runs.results import read_log
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.run import run_finetune

TRIAL_STEPS = 12
"""Steps that are run; the first half warms up."""

Part = Literal["the model", "preparing batches", "the cores", "the disk"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A forecast says what an epoch takes: its steps, what each costs, and the machine that takes them.

    A step costs `model` seconds, and `model_on_cores` seconds of all cores for it, 0 on another device; `preparing`
    seconds of one core for its batch; it reads `num_bytes`. `workers` are threads that prepare batches.
    `bytes_per_second` are the disk's, None where all is in memory.
    """

    num_steps: int
    model: float
    model_on_cores: float
    preparing: float
    num_bytes: float
    cores: int
    workers: int
    bytes_per_second: float | None = None

    @property
    def parts(self) -> dict[Part, float]:
        """Return the seconds of a step that each part alone needs."""
        seconds: dict[Part, float] = {
            "the model": self.model,
            "preparing batches": self.preparing / min(self.workers, self.cores),
            "the cores": (self.model_on_cores + self.preparing) / self.cores,
        }
        if self.bytes_per_second is not None:
            seconds["the disk"] = self.num_bytes / self.bytes_per_second
        return seconds

    @property
    def bottleneck(self) -> Part:
        """Return the part that the others wait for."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def seconds_per_step(self) -> float:
        return max(self.parts.values())

    @property
    def epoch_seconds(self) -> float:
        return self.num_steps * self.seconds_per_step


def forecast_epoch(config: FinetuneConfig) -> Forecast:
    """Run a few steps in a temporary folder and say what an epoch of the finetune step takes.

    Raises:
        As `run_finetune`.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = with_options(
            config,
            output=Path(folder) / "run",
            num_steps=TRIAL_STEPS,
            epochs=None,
            val_examples=0,
            adapt_steps=1,
            checkpoint_every=TRIAL_STEPS,
            log_with="",
            dry_run=False,
        )
        summary = run_finetune(trial).summary
        steps = [step for step in read_log(trial.output) if step["phase"] == "finetune"]
    # Beside the threads that prepare, the model takes longer than the cores compute for it.
    measured, on_core = (
        statistics.median(step[clock] for step in steps[len(steps) // 2 :])
        for clock in ("seconds", "seconds_of_processor")
    )
    phase = summary["phases"]["finetune"]
    on_cpu = config.forecast.step_ms is None and torch.device(resolved(config).device).type == "cpu"
    # An epoch reads no more of a cache than all of it.
    num_steps = math.ceil(summary["num_labelled"] * phase["num_steps"] / phase["num_examples"])
    num_bytes = sum(sum(open_store(place).list().values()) for place in (*config.cache, *config.pictures))
    step_ms, disk_mb_s = config.forecast.step_ms, config.forecast.disk_mb_s
    return Forecast(
        num_steps=num_steps,
        model=measured if step_ms is None else step_ms / 1e3,
        model_on_cores=on_core * min(torch.get_num_threads(), num_cores()) if on_cpu else 0.0,
        preparing=summary["seconds_preparing"],
        num_bytes=num_bytes / num_steps,
        cores=num_cores(),
        workers=num_threads(config.num_workers),
        bytes_per_second=None if disk_mb_s is None else disk_mb_s * 1e6,
    )
