"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from s3_server import S3Server, serve_s3

# A shell that starts the tests in the background has them ignore SIGINT, and so would every process that they start;
# the tests of interruption need the ordinary behaviour.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback; tests take a prefix each."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
