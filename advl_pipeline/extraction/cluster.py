"""Parts of an extraction as tasks of a Ray cluster, as if one command were run per part.

Parts are assigned to tasks before the start, and a task that dies is started again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from advl_pipeline.base.errors import AdvlError, ClusterError, again
from advl_pipeline.base.packages import needs_extra
from advl_pipeline.cache.parts import ExtractionPart

_CONNECT_SECONDS = 5.0
_SECONDS_BETWEEN_LOOKS = 0.5
_ENVIRONMENT = ("ADVL_DATA", "ADVL_DISK_CACHE", "HF_HOME", "HF_HUB_OFFLINE")
"""Environment variables that are passed to Ray tasks; never credentials."""

Result = TypeVar("Result")


def run_on_ray(
    work: Callable[[ExtractionPart], Result],
    *,
    resource: str | None,
    num_tasks: int | None,
    watch: Callable[[], object],
) -> list[Result]:
    """Run work in the tasks of a Ray cluster: the one at $RAY_ADDRESS or running here, else one started here.

    Args:
        work: does the work of one part; it must be importable in a task.
        resource: CPU or GPU, one for each task; None for GPUs if the cluster has any, else CPUs.
        num_tasks: the number of tasks; None for one per CPU or GPU of the cluster.
        watch: called periodically while the tasks run, in another thread.

    Raises:
        ConfigError: the extra `ray` is not installed.
        ClusterError: the cluster cannot be reached or lacks the resource, or its workers keep dying.
        AdvlError: the error of the first failing task.
    """
    with needs_extra("ray", where="--engine ray"):
        ray: Any = import_module("ray")
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    task = partial(run_task, work, str(Path.cwd()), environment)
    stop = threading.Event()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Ray runs in its own thread: it would turn an exception from a signal handler into a different one.
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(_connect, ray).result()
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)  # Ray replaces them with its own.
            drive = partial(_drive, ray, task, stop, resource=resource, num_tasks=num_tasks, watch=watch)
            return pool.submit(drive).result()
        finally:
            stop.set()
            pool.submit(ray.shutdown)


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():
            # Fail within seconds; Ray itself would take a minute.
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        # Without an address Ray uses $RAY_ADDRESS, else a cluster running on this machine, else starts one.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            "The Ray cluster cannot be reached.",
            where=address or "this machine",
            why=str(error).partition("\n")[0],
            next_command="start one with `ray start --head`, correct RAY_ADDRESS, or unset it to run here",
        ) from None


def _drive(
    ray: Any,
    task: Callable[[ExtractionPart], Result | AdvlError],
    stop: threading.Event,
    *,
    resource: str | None,
    num_tasks: int | None,
    watch: Callable[[], object],
) -> list[Result]:
    """Run the tasks until all are done, one fails, or `stop` is set; cancel the rest."""
    held = ray.cluster_resources()
    kind = resource or ("GPU" if held.get("GPU", 0) >= 1 else "CPU")
    count = num_tasks or int(held.get(kind, 0))
    if held.get(kind, 0) < 1:
        raise ClusterError(f"The Ray cluster has no {kind}.", next_command="give another --device")
    remote = ray.remote(**{f"num_{kind.lower()}s": 1})(lambda part: task(part))
    waiting, results = [remote.remote(ExtractionPart(number, count)) for number in range(1, count + 1)], []
    try:
        while waiting and not stop.is_set():
            done, waiting = ray.wait(waiting, timeout=_SECONDS_BETWEEN_LOOKS)
            for outcome in ray.get(done):
                if isinstance(outcome, AdvlError):
                    raise outcome
                results.append(outcome)
            watch()
    except ray.exceptions.RayError as error:
        raise ClusterError(
            "A task of the Ray cluster failed, or its workers keep dying.",
            why=str(error).strip().splitlines()[-1],
            next_command=again("run the same command again: it resumes; with fewer --ray-tasks if memory ran out"),
        ) from error
    finally:
        # A cancelled task leaves its committed shards, like any killed process.
        for reference in waiting:
            with suppress(Exception):
                ray.cancel(reference, force=True)
    return results


def run_task(
    work: Callable[[ExtractionPart], Result], folder: str, environment: dict[str, str], part: ExtractionPart
) -> Result | AdvlError:
    """Run the work in the driver's folder; return an error as a value, so that Ray does not wrap it."""
    os.environ.update(environment, TQDM_DISABLE="1")
    try:
        if not Path(folder).is_dir():
            raise ClusterError(
                "A Ray worker cannot see the folder in which the command was started.",
                where=f"{folder} on {socket.gethostname()}",
                next_command="give it in a folder that all nodes share",
            )
        os.chdir(folder)
        return work(part)
    except AdvlError as error:
        return error
