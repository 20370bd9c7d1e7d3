"""`advl` as one of two processes that train together, instrumented; the first logs the exchanges of each step."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.commands import launch as launcher
from torch import distributed, nn
from torch.distributed import distributed_c10d
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from advl_cli.main import main
from advl_pipeline.training import loop, process_group
from advl_pipeline.training.signals import teaching

steps: list[dict[str, Any]] = []
"""By step: numbers of exchanges of gradients, of gradients inside a backward pass, of rows, and all others."""

inside: list[str] = []
in_step: list[bool] = []


def watch_exchanges() -> None:
    """Count the exchanges between processes, by the name of the caller."""

    def watched(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if in_step:
                kind = "gradients" if options.get("group") is not None and not inside else (inside or ["others"])[-1]
                steps[-1][kind] += 1
                is_early = kind == "gradients" and torch._C._current_graph_task_id() != -1
                steps[-1]["early"] += int(is_early)
            return exchange(*arguments, **options)

        return call

    for name in ("all_gather", "all_reduce", "broadcast"):
        replacement = watched(getattr(distributed, name))
        for module in (distributed, distributed_c10d):
            setattr(module, name, replacement)

    def under(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            inside.append(name)
            try:
                return function(*arguments, **options)
            finally:
                inside.pop()

        return call

    gather = distributed_c10d.all_gather_object
    distributed.all_gather_object = under("others", gather)
    loop.gather_rows = under("rows", process_group.gather_rows)
    rows = process_group._GatheredRows
    rows.backward = staticmethod(under("rows", rows.backward))  # type: ignore[method-assign]
    take = loop.OptimiserSteps.take

    def step(*arguments: Any, **options: Any) -> Any:
        steps.append({"gradients": 0, "early": 0, "rows": 0, "others": 0})
        in_step.append(True)
        try:
            return take(*arguments, **options)
        finally:
            in_step.clear()

    loop.OptimiserSteps.take = step  # type: ignore[method-assign]


def disturb_landmarks() -> None:
    """Make this process find other landmarks than the first one."""
    find = teaching.find_landmarks

    def find_others(*arguments: Any, **options: Any) -> Any:
        landmarks = find(*arguments, **options)
        return dataclasses.replace(
            landmarks,
            words={
                name: dataclasses.replace(landmark, features_KD=landmark.features_KD.flip(0))
                for name, landmark in landmarks.words.items()
            },
        )

    teaching.find_landmarks = find_others


def raise_in_the_third_step() -> None:
    """Fail in this process only."""
    take, calls = loop.OptimiserSteps.take, []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("one of two")
        return take(*arguments, **options)

    loop.OptimiserSteps.take = fail


def run(watched: Path, mischief: str, words: Sequence[str]) -> None:
    """Run `advl` with these words, instrumented; `mischief` of the second process is `--disturb` or `--raise`."""
    is_first = os.environ["RANK"] == "0"
    # Several gradient buckets even for this small model.
    process_group.BUCKET_NUMBERS = 1 << 16
    watch_exchanges()
    if not is_first:
        {"--disturb": disturb_landmarks, "--raise": raise_in_the_third_step}[mischief]()
    try:
        main(list(words))
    finally:
        if is_first:
            watched.write_text(json.dumps(steps), encoding="utf-8")


def add_up(written: Path, reached_by_step: Sequence[Sequence[int]]) -> None:
    """Sum the gradients of four small parameters; the first process writes the size of each exchange by step.

    Args:
        reached_by_step: indices of the parameters that the backward pass of each step reaches.
    """
    process_group.BUCKET_NUMBERS = 4
    accelerator = process_group.start_processes("cpu", "no")
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(4)]
    sizes: list[list[int]] = []
    exchange = distributed.all_reduce

    def watched(value: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if options.get("group") is not None:
            sizes[-1].append(value.numel())
        return exchange(value, *arguments, **options)

    distributed.all_reduce = watched
    with process_group.GradientSum(parameters, accelerator) as gradients:
        for reached in reached_by_step:
            sizes.append([])
            gradients.begin_last_pass()
            torch.stack([parameters[number] for number in reached]).sum().backward()
            gradients.finish(False)
            for parameter in parameters:
                assert parameter.grad is None or parameter.grad.tolist() == [2.0, 2.0]
                parameter.grad = None
    if accelerator.is_main_process:
        written.write_text(json.dumps(sizes), encoding="utf-8")


def launch(words: Sequence[str]) -> None:
    """Run `advl` in two processes of torchrun's launcher, which forks them from this one."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        monitor_interval=0.05,
    )
    elastic_launch(config, _launched)(list(words))


def accelerate(words: Sequence[str]) -> None:
    """Run `advl` in two processes started by accelerate, as `accelerate launch ... -m advl_cli` does."""
    sys.argv = ["accelerate launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    sys.argv += ["-m", "advl_cli", *words]
    launcher.main()


def _launched(words: list[str]) -> None:
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise
