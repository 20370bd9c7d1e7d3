"""Optional trackers from accelerate, if their packages are installed. JSON lines are always written."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from advl_pipeline.base.atomic import write_text
from advl_pipeline.base.errors import ConfigError, leave_out
from advl_pipeline.base.packages import install_extra
from advl_pipeline.runs import names
from advl_pipeline.runs.results import STAGE_KEY, read_json

Tracker = Literal["tensorboard", "wandb", "mlflow"]

PROJECT = "advl"
"""Project or experiment of all runs."""


def trackers_named(text: str) -> tuple[str, ...]:
    """Return the trackers of `--log-with`, a comma-separated list.

    Raises:
        ConfigError: a tracker is unknown, or its package is not installed; the message says how to install it.
    """
    trackers = tuple(dict.fromkeys(filter(None, text.replace(" ", "").split(","))))
    for name in trackers:
        if name not in get_args(Tracker):
            raise ConfigError(f"There is no tracker {name!r}.", where="--log-with", why=", ".join(get_args(Tracker)))
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{name} is not installed.",
                where="--log-with",
                next_command=install_extra(name, note=f"or do without: {names.METRICS} has it all"),
            )
    return trackers


def open_trackers(trackers: Sequence[str], run: Path, *, first_step: int) -> list[Any]:
    """Start the trackers of a run; those that write files use its folder.

    Args:
        trackers: as returned by `trackers_named`.
        first_step: TensorBoard drops the steps that an interrupted run logged from here on, like the JSON lines.

    Raises:
        ConfigError: a tracker does not start, such as wandb without a login.
    """
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    place, kept = str(run.absolute()), run / names.TRACKED
    ids = read_json(kept) if kept.exists() else {}
    opened: list[Any] = []
    for name in trackers:
        try:
            if name == "tensorboard":
                tracker = TensorBoardTracker(names.TENSORBOARD, run, purge_step=first_step)
            elif name == "wandb":
                identifier = ids.setdefault(name, secrets.token_hex(8))
                tracker = WandBTracker(PROJECT, dir=place, name=run.name, id=identifier, resume="allow")
            else:
                import mlflow

                if "MLFLOW_TRACKING_URI" not in os.environ:
                    mlflow.set_tracking_uri(f"sqlite:///{place}/{names.MLFLOW}")
                files = f"{place}/{names.MLFLOW_FILES}"
                tracker = MLflowTracker(PROJECT, logging_dir=files, run_id=ids.get(name), run_name=run.name)
            tracker.start()
            if name == "mlflow":
                ids[name] = tracker.tracker.info.run_id
        except Exception as error:  # Each package raises its own.
            raise ConfigError(
                f"{name} does not start.",
                where="--log-with",
                why=str(error).strip().partition("\n")[0] or type(error).__name__,
                next_command="export WANDB_MODE=offline" if name == "wandb" else leave_out("--log-with"),
            ) from error
        opened.append(tracker)
    if ids:
        write_text(kept, json.dumps(ids) + "\n")
    return opened


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalars of a record of metrics.jsonl; weights and confidences become their mean and maximum."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            numbers |= {f"{name}/{what}": float(value[what]) for what in ("mean", "max")}
        elif name not in ("step", STAGE_KEY):
            numbers[name] = value
    return numbers
