"""What holds for every test."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from s3_server import S3Server, serve_s3
from small_corpus import SmallCorpus, build_small_corpus

# A shell that starts the tests in the background has them ignore SIGINT, and so would every process that they start;
# the tests of interruption need the ordinary behaviour.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _every_thread_ends() -> Iterator[None]:
    """A thread that never ends would keep the interpreter, and so every command that started it, from ending."""
    yield
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(timeout=60)
            assert not thread.is_alive(), f"{thread.name} never ends"


def pytest_unconfigure() -> None:
    """A process that cannot end says which thread keeps it, and ends: whoever waits for the result gets one."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback; tests take a prefix each."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    """The small corpus with its caches, built once for all tests."""
    return build_small_corpus(tmp_path_factory.mktemp("corpus"))
