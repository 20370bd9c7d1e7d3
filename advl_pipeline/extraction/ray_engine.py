"""`advl extract --engine ray`: the same extraction in several tasks of a Ray cluster.

There is no scheduler here. Every task runs what the local engine runs and claims shards by the same protocol, as if
the command had been given once per task. So the cache is that of one process, and a task may die at any moment. The
driver starts the tasks, shows how many shards are committed, and passes on the first error in words.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advl_pipeline.cache.records import PLAN_RECORD, committed_shards
from advl_pipeline.cache.store import Store
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.errors import AdvlError, ClusterError, ConfigError
from advl_pipeline.extraction.config import ExtractConfig, location_of
from advl_pipeline.extraction.part import Part
from advl_pipeline.extraction.run import ExtractResult, extract, open_inputs
from advl_pipeline.teachers.interface import Teacher

_ADDRESS = "RAY_ADDRESS"
_CONNECT_SECONDS = 5.0
_SECONDS_BETWEEN_LOOKS = 0.5
_ENVIRONMENT = ("ADVL_DATA", "ADVL_DISK_CACHE", "HF_HOME", "HF_HUB_OFFLINE")

OpenInputs = Callable[[ExtractConfig], tuple[Teacher, Part]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """What a task needs to do as the driver would: its configuration, folder and environment; never credentials."""

    config: ExtractConfig
    folder: str
    environment: dict[str, str]
    open_inputs: OpenInputs


def extract_on_ray(config: ExtractConfig, opener: OpenInputs = open_inputs) -> ExtractResult:
    """Extract with the tasks of a Ray cluster: the one at $RAY_ADDRESS or running here, else one started here.

    Args:
        config: as for `run_extract`; the output must be a folder that all nodes share, or a URL.
        opener: opens the teacher and the dataset in a task; must be importable there.

    Raises:
        ConfigError: the extra `ray` is not installed.
        ClusterError: the cluster cannot be reached, has no room for a task, or its workers keep dying.
        AdvlError: whatever the first failing task raised.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "The engine `ray` needs the extra of that name.", next_command="pip install 'advl-pipeline[ray]'"
        ) from None
    address = os.environ.get(_ADDRESS, "")
    _require_reachable(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Without an address it takes $RAY_ADDRESS, then a cluster that runs on this machine, then starts one.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address or "this machine", str(error)) from None
    references: list[Any] = []
    try:
        needs: dict[str, Any] = {"num_gpus": 1} if config.device.startswith("cuda") else {"num_cpus": 1}
        resource = "GPU" if "num_gpus" in needs else "CPU"
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        available = int(resources.get(resource, 0))
        if available < 1:
            raise ClusterError(f"The Ray cluster has no {resource}.", next_command="give another --device")
        count = available if config.ray_tasks is None else config.ray_tasks
        if count < 1:
            raise ConfigError(f"{count} tasks cannot share the work.", where="--ray-tasks")
        task = _Task(
            config=replace(config, engine="local", ray_tasks=None),
            folder=str(Path.cwd()),
            environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            open_inputs=opener,
        )
        remote = ray.remote(**needs)(_run_task)
        references = [remote.remote(task) for _ in range(count)]
        with _deferred(handlers) as act_on_signals:
            return _gather(ray, references, config, act_on_signals)
    except BaseException:
        # A task that is cut off is taken over like any process that was killed.
        for reference in references:
            with suppress(Exception):
                ray.cancel(reference, force=True)
        raise
    finally:
        ray.shutdown()


def _run_task(task: _Task) -> ExtractResult | AdvlError:
    """Extract in this worker; an error comes back as a value, so that it stays one in words."""
    os.environ.update(task.environment)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        if not Path(task.folder).is_dir():
            raise ClusterError(
                "A Ray worker does not see the folder that the command was given in.",
                where=f"{task.folder} on {socket.gethostname()}",
                next_command="give it in a folder that all nodes share",
            )
        os.chdir(task.folder)
        teacher, dataset = task.open_inputs(task.config)
        return replace(extract(task.config, teacher, dataset), skipped=len(dataset.skipped))
    except AdvlError as error:
        return error


@contextmanager
def _deferred(handlers: Mapping[signal.Signals, Any]) -> Iterator[Callable[[], None]]:
    """Put off signals in the block until the callable that it yields is called.

    Ray installs handlers of its own, and an exception from a handler inside one of its calls comes out as another.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    for number in handlers:
        signal.signal(number, lambda number, _: arrived.append(number))

    def act() -> None:
        while arrived:
            number = signal.Signals(arrived.pop())
            handler = handlers[number]
            if callable(handler):
                handler(number, None)

    try:
        yield act
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _gather(
    ray: Any, references: Sequence[Any], config: ExtractConfig, act_on_signals: Callable[[], None]
) -> ExtractResult:
    results: list[ExtractResult] = []
    waiting = list(references)
    location = location_of(config)
    with tqdm(desc=f"{len(references)} Ray tasks", unit="shard") as bar:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_SECONDS_BETWEEN_LOOKS)
            act_on_signals()
            results += [_outcome(ray, reference) for reference in done]
            if not bar.disable:
                _show(bar, open_store(location))
    return replace(
        max(results, key=lambda result: len(result.estimates)),
        encoded_units=sum(result.encoded_units for result in results),
        seconds=max(result.seconds for result in results),
        stage_seconds={
            stage: math.fsum(result.stage_seconds[stage] for result in results) for stage in results[0].stage_seconds
        },
    )


def _outcome(ray: Any, reference: Any) -> ExtractResult:
    try:
        outcome: ExtractResult | AdvlError = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise ClusterError("A Ray task failed unexpectedly.", why=str(error).strip().splitlines()[-1]) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(
            "The workers of the Ray cluster keep dying.",
            why=str(error).splitlines()[0],
            next_command="give the same command again: it resumes; with fewer --ray-tasks if memory ran out",
        ) from None
    if isinstance(outcome, AdvlError):
        raise outcome
    return outcome


def _show(bar: Any, store: Store) -> None:
    """Show how many shards are committed."""
    names = store.list("records")
    if PLAN_RECORD not in names:
        return
    if bar.total is None:
        writer = CacheWriter(store)
        bar.total = sum(writer.placement(modality).num_shards for modality in writer.plan.modalities)
    bar.n = len(committed_shards(names))
    bar.refresh()


def _require_reachable(address: str) -> None:
    """Find out in seconds what Ray itself takes a minute for."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: str, why: str) -> ClusterError:
    return ClusterError(
        "The Ray cluster cannot be reached.",
        where=address,
        why=why.splitlines()[0] if why else "",
        next_command=f"start one with `ray start --head`, mend {_ADDRESS}, or unset it to use this machine alone",
    )
