"""Kill real extraction processes at random moments and compare what they leave with an uninterrupted run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_extraction import run_settings, tree_bytes

from advl_pipeline.cache.verify import verify_cache

_CONTEXT = multiprocessing.get_context("forkserver")
# The server imports torch once; every extraction is then a fork of it, a process of its own.
_CONTEXT.set_forkserver_preload(["tiny_extraction"])


@dataclass(frozen=True, kw_only=True)
class Running:
    """An extraction that runs in a process of its own."""

    process: multiprocessing.process.BaseProcess
    log: Path

    def is_running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still lives."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def wait(self) -> int | None:
        """Wait for the end; returns the exit code, negative for a signal."""
        self.process.join(timeout=240)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"the extraction does not end: {self.messages()[-2000:]}")
        return self.process.exitcode

    def messages(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One extraction, to be run as a process."""

    folder: Path
    settings: dict[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.settings["config"]["output"])

    def start(self) -> Running:
        """Start the extraction."""
        number = len(list(self.folder.glob("*.log")))
        path, log = self.folder / f"{self.output.name}.json", self.folder / f"{self.output.name}-{number}.log"
        content = json.dumps(self.settings)
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            # A process started before may be reading it at this moment.
            path.write_text(content, encoding="utf-8")
        log.touch()
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        process = _CONTEXT.Process(target=run_settings, args=(str(path), str(log)), daemon=True)
        process.start()
        return Running(process=process, log=log)

    def finish(self) -> None:
        """Run the extraction to its end."""
        running = self.start()
        if running.wait() != 0:
            raise AssertionError(f"exit code {running.process.exitcode}: {running.messages()[-2000:]}")


def make_job(folder: Path, output: str, *, delay: float = 0.01, **config: Any) -> Job:
    """Describe an extraction of both modalities with confidences, slow enough to be hit in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "teacher": "tiny",
        "dataset": "tiny",
        "output": str(folder / output),
        "batch_size": 4,
        "shard_rows": 32,
        "folds": 2,
    }
    return Job(
        folder=folder,
        settings={"folder": str(folder / "data"), "config": settings | config, "teacher": {"delay": delay}},
    )


def started_writing(running: Running, root: Path) -> bool:
    """Wait until an extraction has begun to write; False when it ended before."""
    while running.is_running():
        if root.exists():
            return True
        time.sleep(0.002)
    return False


def kill_and_resume(
    folder: Path, reference: dict[str, bytes], span: float, *, name: str, seed: int
) -> tuple[float, int]:
    """Kill one extraction once at a random moment of its writing, resume it, and compare.

    Args:
        folder: where data and caches lie.
        reference: the files of an uninterrupted run.
        span: seconds that an uninterrupted run writes for.
        name: of the new cache.
        seed: chooses the moment.

    Returns:
        The moment of the kill in seconds after the first write, and how many shards were committed by then.

    Raises:
        AssertionError: the resumed cache differs, is not sound, or litter remains.
    """
    job = make_job(folder, name)
    moment = random.Random(seed).uniform(0, span)
    running = job.start()
    if started_writing(running, job.output):
        time.sleep(moment)
    running.send(signal.SIGKILL)
    running.wait()
    committed = len(list(job.output.glob("records/*-[0-9]*.json")))
    job.finish()
    found = tree_bytes(job.output)
    different = [name for name in sorted(reference.keys() | found.keys()) if reference.get(name) != found.get(name)]
    if different:
        raise AssertionError(f"killed after {moment:.3f} s, resumed differently: {different[:5]}")
    report = verify_cache(job.output)
    if not report.is_sound:
        raise AssertionError(f"killed after {moment:.3f} s, not sound: {report.findings[:5]}")
    return moment, committed


def reference_run(folder: Path) -> tuple[dict[str, bytes], float]:
    """Extract without interruption; returns the files and for how many seconds it wrote."""
    job = make_job(folder, "reference")
    running = job.start()
    started_writing(running, job.output)
    begin = time.perf_counter()
    if running.wait() != 0:
        raise AssertionError(f"exit code {running.process.exitcode}: {running.messages()[-2000:]}")
    return tree_bytes(job.output), time.perf_counter() - begin
