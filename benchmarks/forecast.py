"""The forecast of `advl finetune --dry-run` against the runs that follow it, where each part is what limits them.

Texts: region features, two teachers with tokens, a student that costs little. Photos: each decoded once, likewise.
The model: a larger student on few of those questions.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import build_config
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.dry_run import forecast_epoch
from advl_pipeline.training.run import run_finetune
from benchmarks.feed import build_questions
from benchmarks.rows import Row

_TEACHERS = ("minilm-l6", "efficientnet-lite0")
_DRAWN, _TIMES = 64, 8
_STEPS = 20


def measure_forecasts(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    rows = build_questions(folder, _DRAWN)
    caches = tuple(folder / name for name in _TEACHERS)
    for name, output in zip(_TEACHERS, caches, strict=True):
        run_extract(ExtractConfig(teacher=name, dataset=str(rows["long"]), output=output, confidence=False))
    long: dict[str, Any] = {
        "dataset": str(rows["long"]),
        "student": "uniter-tiny",
        "regions": folder / "regions" / "all",
    }
    tiny = ("feature_size=2048", "max_text_length=240")
    larger = ("hidden_size=256", "intermediate_size=1024", "num_layers=4")
    settings: dict[str, dict[str, Any]] = {
        "texts": {**long, "student_option": tiny, "batch_size": 16, "method": "naive-kd", "cache": caches},
        "photos": {
            "dataset": str(_many_photos(rows["short"])),
            "student": "vilt-tiny",
            "student_option": ("image_size=384", "patch_size=32"),
            "batch_size": 16,
            "method": "plain",
        },
        "the model": {**long, "student_option": (*tiny, *larger), "batch_size": 8, "method": "plain"},
    }
    rounds = 1 if quick else 3
    return [_row(name, one, folder / "runs" / name, rounds=rounds) for name, one in settings.items()]


def _row(name: str, settings: Mapping[str, Any], output: Path, *, rounds: int) -> Row:
    told, took, limits = [], [], []
    for number in range(rounds):
        config = build_config(
            FinetuneConfig, settings, {"recipe": "none", "num_steps": _STEPS, "output": output / str(number)}
        )
        forecast = forecast_epoch(config)
        told.append(forecast.seconds_per_step)
        limits.append(forecast.bottleneck)
        phase = run_finetune(config).summary["phases"]["finetune"]
        took.append(phase["seconds"] / phase["num_steps"])
    ratio = statistics.median(one / other for one, other in zip(told, took, strict=True))
    return Row(
        name=f"forecast by --dry-run, {name}: error",
        value=abs(ratio - 1.0),
        goal=0.15,
        at_least=False,
        detail=f"forecast {1e3 * statistics.median(told):.0f} ms a step, the run took "
        f"{1e3 * statistics.median(took):.0f}; what limits it: {statistics.mode(limits)}",
    )


def _many_photos(rows: Path) -> Path:
    """Write a dataset's photos again under other names, with bytes behind them, so that a run decodes each once."""
    asked = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    lines = []
    for number in range(_TIMES):
        for row in asked:
            name = row["image"].replace(".jpg", f"-{number}.jpg")
            (rows.parent / name).write_bytes((rows.parent / row["image"]).read_bytes() + bytes([number]))
            lines.append(json.dumps({**row, "image": name}) + "\n")
    found = rows.with_name("many.jsonl")
    found.write_text("".join(lines), encoding="utf-8")
    return found
