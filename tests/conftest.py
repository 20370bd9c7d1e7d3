"""What holds for every test."""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import hypothesis
import pytest
from slow_mark import SlowMark

# What imports torch is imported by fixtures: pytest-xdist's own process, which runs no test, reads this file too.
if TYPE_CHECKING:
    from s3_server import S3Server
    from small_corpus import SmallCorpus

    from advl_pipeline.base.locations import Url

# A shell that starts the tests in the background has them ignore SIGINT, and so would every process that they start;
# the tests of interruption need the ordinary behaviour.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure, and few examples of each property find what many do, on some later day.
hypothesis.settings.register_profile("here", deadline=None, max_examples=20)
hypothesis.settings.load_profile("here")


_LONGEST_FILES = (
    "test_gpu_ready.py",
    "test_public_sets_end_to_end.py",
    "test_examples.py",
    "test_interruption.py",
    "test_process_group.py",
    "test_store_faults.py",
    "test_checkpoint.py",
    "test_damage.py",
    "test_method.py",
    "test_build.py",
    "test_teachers_of_the_hub.py",
    "test_run.py",
    "test_claims.py",
    "test_remote.py",
    "test_generative_runs.py",
    "test_students_by_name.py",
    "test_student_export.py",
    "test_contract.py",
    "test_vision_targets.py",
    "test_chat_families.py",
    "test_official_sets.py",
)
"""A quarter of a minute or more each: they begin first, so that no process is left with one of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Hold what the mark `slow` promises: ten seconds of two cores for a test, a minute of them for a folder."""
    # Half as much again for a folder: the same work takes a slower or busy processor longer.
    config.pluginmanager.register(SlowMark(tests=Path(__file__).parent, seconds=20, folder_seconds=180))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the Makefile has pytest-xdist keep that order."""
    rank = {name: place for place, name in enumerate(_LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def datasets_library() -> Any:
    """Return Hugging Face's library; a folder `datasets` beside a test would import under its name."""
    library = pytest.importorskip("datasets", reason="the library `datasets` is not installed")
    if not hasattr(library, "load_dataset"):
        pytest.skip("the library `datasets` is not installed: a folder of downloads passes for it")
    return library


@pytest.fixture(scope="session", autouse=True)
def _every_thread_ends() -> Iterator[None]:
    """A thread that never ends would keep the interpreter, and so every command that started it, from ending."""
    yield
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(timeout=60)
            assert not thread.is_alive(), f"{thread.name} never ends"


@pytest.fixture(scope="session", autouse=True)
def _small_collections() -> Iterator[None]:
    """Spare short runs a third of their time: after a stage accelerate collects garbage, of all that tests hold.

    The interpreter itself looks less often, too, through the half million objects of imported modules.
    """
    collect = gc.collect
    gc.set_threshold(10_000)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gc, "collect", lambda generation=0: collect(generation))
        yield


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_is_kept() -> None:
    """Spare tests of models a third of their processor time: runs of the product keep it, too."""
    from advl_pipeline.base.prefetch import keep_freed_memory

    keep_freed_memory()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Spare short runs a fifth of their time: unflushed files outlive a process, if no loss of power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_unconfigure() -> None:
    """A process that cannot end says which thread keeps it, and ends: whoever waits for the result gets one."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback; tests take a prefix each."""
    from s3_server import serve_s3

    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def url(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Url]:
    """A place of its own in a real S3 store."""
    from s3_server import BUCKET

    from advl_pipeline.base.locations import Url, parse_location

    monkeypatch.setenv("ADVL_DISK_CACHE", str(tmp_path / "disk-cache"))
    with mock.patch.dict(os.environ, s3_server.environment):
        location = parse_location(f"s3://{BUCKET}/{uuid.uuid4().hex}/cache")
        assert isinstance(location, Url)
        yield location


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    """The small corpus with its caches, built once for all tests, by the process of pytest-xdist that is first."""
    from small_corpus import build_small_corpus

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-corpus"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_small_corpus(folder)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data` and the finished `cache` of the small dataset; never to be changed."""
    from tiny_extraction import tiny_extract

    folder = tmp_path_factory.mktemp("pristine-cache")
    tiny_extract(folder / "data", folder / "cache")
    return folder


@pytest.fixture
def cache_path(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(pristine / "cache", tmp_path / "cache")
    return tmp_path / "cache"
