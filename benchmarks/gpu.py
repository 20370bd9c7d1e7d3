"""Throughput of this machine's GPU: encoding by three teachers, and training three students from each.

Photos and questions are synthetic. Students, and the largest teacher, have random weights at their real sizes:
nothing is downloaded. Rows have no goals: they report throughput and GPU memory.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from advl_pipeline.base.compute import device_name, open_device
from advl_pipeline.base.configuration import build_config
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.runs.results import read_log
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.prepare import prepare_finetune
from advl_pipeline.training.run import run_finetune
from benchmarks.feed import import_regions, write_questions
from benchmarks.rows import Row

TEACHERS = ("minilm-l6", "efficientnet-lite0", "random:timm:vit_large_patch14_clip_224")
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "uniter-base": {"student_option": ("vocab_size=30522",)},
    "vilt": {},
    "bridgetower": {"student_option": ("vocab_size=30522",)},
}
"""Students of region features, of pixels in one stream, and of pixels in two towers; the options of each."""

_OF_REGIONS = ("uniter", "villa", "vl-bert", "visualbert", "lxmert")


def measure_on_gpu(folder: Path, quick: bool) -> list[Row]:
    """Measure the rows of this section, or report that there is no GPU."""
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use, so there is nothing to measure and nothing was written.")
    device = open_device("auto")
    print(device_name(str(device)))
    return measure_gpu(folder, device, num_photos=512 if quick else 4_096, num_steps=30 if quick else 120)


def measure_gpu(
    folder: Path,
    device: torch.device,
    *,
    num_photos: int,
    num_steps: int,
    batch_size: int = 64,
    teachers: Sequence[str] = TEACHERS,
    students: Mapping[str, Mapping[str, Any]] = STUDENTS,
) -> list[Row]:
    """Encode the photos or the questions with each teacher, and finetune each student from each cache."""
    data, _ = write_questions(folder, num_photos)
    of_detector = import_regions(folder, data, num_photos)
    rows, caches = [], {}
    for number, teacher in enumerate(teachers):
        caches[teacher] = folder / "caches" / str(number)
        extraction: dict[str, Any] = {"batch_size": "auto", "confidence": "none", "device": str(device)}
        _forget_peak(device)
        done = run_extract(
            prepare_extract(ExtractConfig(teacher=teacher, dataset=str(data), output=caches[teacher], **extraction))
        )
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in done.stage_seconds.items())
        detail = f"{_peak(device)}; waiting and encoding: {spent}"
        rows.append(Row(f"{teacher}: units/s", done.encoded_units / done.seconds, detail=detail))
    shared: dict[str, Any] = {"dataset": str(data), "tokenizer": "minilm-l6", "device": str(device)}
    shared |= {"num_steps": num_steps, "batch_size": batch_size, "adapt_steps": 2, "checkpoint_every": 10 * num_steps}
    shared |= {"confidence_folds": 2, "confidence_check": "none"}
    for student, options in students.items():
        for number, teacher in enumerate(teachers):
            output = folder / "runs" / f"{student}-{number}"
            regions = {"regions": of_detector} if student.startswith(_OF_REGIONS) else {}
            paths = {"student": student, "cache": (caches[teacher],), "output": output}
            _forget_peak(device)
            config = build_config(FinetuneConfig, shared, paths, regions, dict(options))
            run_finetune(prepare_finetune(config, may_idle=True))
            steps = [step for step in read_log(output) if step["phase"] == "finetune"][num_steps // 3 :]
            seconds, waited = (
                statistics.median(step[name] for step in steps) for name in ("seconds", "seconds_waited")
            )
            share = waited / (seconds + waited)
            detail = f"{_peak(device)}; batches of {batch_size}; {share:.0%} of a step is waiting for data"
            rows.append(Row(f"{student}, taught by {teacher}: steps/s", 1 / (seconds + waited), detail=detail))
    return rows


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> str:
    if device.type != "cuda":
        return "memory not separated"
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most"
