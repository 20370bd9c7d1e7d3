"""A store that answers 500 or 503, cuts bodies, drips or stalls: work goes on, or stops with a message, and resumes.

Nothing that is read is ever other than what was written.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import pytest
from objects import objects, upload
from s3_faults import Fault, FaultyStore, serve_faults
from s3_server import S3Server
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import StorageError
from advl_pipeline.base.locations import Url
from advl_pipeline.cache import object_store
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache

SMALL = {"num_images": 6}
PAUSE_SECONDS = 0.01
WHY = {
    "500": "500 Internal Server Error",
    "503": "503 Service Unavailable, SlowDown",
    "cut": "an answer was cut short",
    "stall": "an answer stopped coming",
}
PASSING: tuple[Fault, ...] = tuple(fault for fault in get_args(Fault) if fault != "stall")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data` and an undisturbed `cache`; never to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny_extract(folder / "data", folder / "cache", dataset=SMALL, confidence=True)
    return folder


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_PAUSE_SECONDS", PAUSE_SECONDS)


def require_each_fault(store: FaultyStore, least: int) -> None:
    assert min(store.met[fault] for fault in PASSING) >= least, store.met


def test_work_goes_on(folder: Path, url: Url, s3_server: S3Server, tmp_path: Path) -> None:
    with serve_faults(s3_server, *PASSING) as store, mock.patch.dict(os.environ, store.environment):
        tiny_extract(folder / "data", url, dataset=SMALL, confidence=True)
        require_each_fault(store, 10)
    assert objects(url) == tree_bytes(folder / "cache")
    local = open_cache(folder / "cache").stores()["text"]
    ids = list(local.ids)
    empty = {"ADVL_DISK_CACHE": str(tmp_path / "empty")}
    with serve_faults(s3_server, *PASSING) as store, mock.patch.dict(os.environ, store.environment | empty):
        text = open_cache(url).stores()["text"]
        for first in range(0, len(ids), 8):
            some = ids[first : first + 8]
            np.testing.assert_array_equal(text.token_features(some)[0], local.token_features(some)[0])
        require_each_fault(store, 2)
        assert verify_cache(url).is_sound
        require_each_fault(store, 6)


@pytest.mark.parametrize("fault", WHY)
def test_a_store_that_stays_ill_is_named(
    folder: Path, url: Url, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    upload(url, tree_bytes(folder / "cache"))
    if fault == "stall":
        for name, value in {"_STALLED_SECONDS": 1.5, "_RETRY_SECONDS": 1, "_TRIES_OF_STALLED_ANSWERS": 1}.items():
            monkeypatch.setattr(object_store, name, value)
    with (
        serve_faults(s3_server, fault, every=1, spared=10_000) as store,
        mock.patch.dict(os.environ, store.environment),
    ):
        text = open_cache(url).stores()["text"]
        store.spared = 0
        begin = time.monotonic()
        for call in (lambda: text.token_features(list(text.ids)), lambda: verify_cache(url), lambda: open_cache(url)):
            with pytest.raises(StorageError) as caught:
                call()
            assert "the same command resumes" in caught.value.next_command
            assert WHY[fault] in caught.value.why
            assert "AKID" not in str(caught.value)
        assert time.monotonic() - begin < 60
        assert not list((tmp_path / "disk-cache").rglob("text/tokens/values/c/*/*"))


def test_extraction_stops_with_a_message_and_resumes(folder: Path, url: Url, s3_server: S3Server) -> None:
    with serve_faults(s3_server, "503", every=1, spared=40) as store, mock.patch.dict(os.environ, store.environment):
        with pytest.raises(StorageError, match="503 Service") as caught:
            tiny_extract(folder / "data", url, dataset=SMALL, confidence=True)
        assert caught.value.exit_code == 7
        assert "the same command resumes" in caught.value.next_command
        store.every = 4
        tiny_extract(folder / "data", url, dataset=SMALL, confidence=True)
    assert objects(url) == tree_bytes(folder / "cache")
