"""Real processes to run, stop and kill; each is forked from a server that has imported torch."""

from __future__ import annotations

import atexit
import functools
import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from advl_cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("real_processes", "tiny_extraction", "small_corpus", "advl_pipeline.training.run"),
        # Imports of a first optimiser, confidences and the packaged teachers: three seconds per process.
        *("torch._dynamo", "scipy.stats", "timm", "transformers.models.bert.modeling_bert"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running process; its output goes to files."""

    process: multiprocessing.process.BaseProcess
    logs: tuple[Path, Path]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process is still alive."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def wait(self) -> int | None:
        """Wait for the end; returns the exit code, negative for a signal."""
        self.process.join(timeout=240)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"the process does not end: {self.messages()[-2000:]}")
        return self.process.exitcode

    def finish(self) -> str:
        """Wait for the end, require success, and return the messages."""
        if code := self.wait():
            raise AssertionError(f"exit code {code}: {self.messages()[-2000:]}")
        return self.messages()

    def wait_for(self, file: Path) -> bool:
        """Wait until a file or folder exists; returns False if the process ended before."""
        while self.is_running():
            if file.exists():
                return True
            time.sleep(0.002)
        return False

    def printed(self) -> str:
        """Return the output on stdout."""
        return self.logs[0].read_text(encoding="utf-8")

    def messages(self) -> str:
        """Return the output on stderr, followed by that on stdout."""
        return self.logs[1].read_text(encoding="utf-8") + self.printed()


def start(target: Callable[..., None], *arguments: Any, **environment: str) -> Running:
    """Call a function of a module in a separate process, which exits with the function's exit code."""
    # The server and its forks use the import path of the tests.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    folder = Path(tempfile.mkdtemp(dir=_logs()))
    logs = folder / "stdout", folder / "stderr"
    for log in logs:
        log.touch()
    process = _CONTEXT.Process(target=_run, args=(logs, environment, target, arguments))
    process.start()
    return Running(process=process, logs=logs)


def side_by_side(target: Callable[..., None], *arguments: Any) -> tuple[Running, Running]:
    """Call a function in two processes that find each other as those of a launcher do; wait for their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    first, second = (start(target, *arguments, **place, RANK=rank, LOCAL_RANK=rank) for rank in "01")
    first.wait()
    second.wait()
    return first, second


def start_advl(*words: object, **environment: str) -> Running:
    """Run `advl` with these words in a separate process."""
    return start(main, [str(word) for word in words], **environment)


def main_with(attributes: Mapping[str, object], words: Sequence[str]) -> None:
    """Run `advl` with patched module attributes, such as the checkpoint interval; for `start`."""
    for name, value in attributes.items():
        mock.patch(name, value).start()
    main(list(words))


def run_script(path: Path, arguments: Sequence[str], folder: Path) -> None:
    """Run a Python script in a folder, like `python path arguments`; for `start`."""
    os.chdir(folder)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


@functools.cache
def _logs() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


def _run(
    logs: tuple[Path, Path], environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    for stream, log in zip((sys.stdout, sys.stderr), logs, strict=True):
        stream.flush()
        os.dup2(os.open(log, os.O_WRONLY), stream.fileno())
    os.environ.update(environment)
    torch.set_num_threads(1)
    # A run collects garbage after each stage; scanning all imported objects would take half a second.
    gc.freeze()
    target(*arguments)
