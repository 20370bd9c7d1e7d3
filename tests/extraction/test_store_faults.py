"""A store that answers 500 or 503, cuts bodies, drips or stalls: work goes on, or stops with a message, and resumes.

Nothing that is read is ever other than what was written.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import pytest
from commands import complaint
from objects import objects, upload
from s3_faults import Fault, FaultyStore, serve_faults
from s3_server import S3Server, client_environment
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import StorageError
from advl_pipeline.base.locations import Url
from advl_pipeline.cache import object_store
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.stores import open_store
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
    tiny_extract(folder / "data", folder / "cache", dataset=SMALL, confidence="probe")
    return folder


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_PAUSE_SECONDS", PAUSE_SECONDS)


def require_each_fault(store: FaultyStore, least: int) -> None:
    assert min(store.met[fault] for fault in PASSING) >= least, store.met


@pytest.mark.slow
def test_work_goes_on(folder: Path, url: Url, s3_server: S3Server, tmp_path: Path) -> None:
    with serve_faults(s3_server, *PASSING) as store, mock.patch.dict(os.environ, store.environment):
        tiny_extract(folder / "data", url, dataset=SMALL, confidence="probe")
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


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("AWS_ENDPOINT_URL", "store:9000", "not the URL of a server"),
        ("AWS_ENDPOINT_URL", "http://host:99999", "not the URL of a server"),
        ("AWS_ENDPOINT_URL_S3", "http://[::1", "not the URL of a server"),
        ("AWS_ACCESS_KEY_ID", "key\nkey", "line break"),
        ("AWS_SECRET_ACCESS_KEY", "secret\n", "line break"),
    ],
)
def test_settings_at_which_the_library_would_panic_are_refused_and_not_shown(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    code, message = complaint(capsys, "cache", "info", "s3://bucket/cache")
    assert (code, f"The setting {name} of the environment" in message, why in message) == (2, True, True)
    assert value not in message
    assert len(message.splitlines()) < 8


def test_a_panic_of_the_library_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_require_plain_settings", lambda url: None)
    for name, value in client_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no server")
    with pytest.raises(StorageError, match="The object store cannot be used"):
        open_store(Url("s3://bucket/cache")).list()


class _Boasting(BaseHTTPRequestHandler):
    """A store whose objects are said to have 10 TB, or drip."""

    num_bytes = 10**13

    def do_GET(self) -> None:
        names = "".join(
            f"<Contents><Key>cache/{name}</Key><Size>10</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            "</Contents>"
            for name in ("identity.json", "records/complete.json", "records/plan.json")
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{names}</ListBucketResult>".encode()
        is_list = "list-type" in self.path
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if is_list else self.num_bytes))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body if is_list else b"{}")
        if not is_list and self.num_bytes <= 1000:
            with suppress(ConnectionError):  # The client ends it.
                for _ in range(100):
                    self.wfile.write(b" ")
                    time.sleep(0.05)

    def do_PUT(self) -> None:
        self.send_error(412)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def test_an_object_that_is_said_to_have_terabytes_is_an_error_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Boasting) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name, value in client_environment(f"http://127.0.0.1:{server.server_address[1]}").items():
            monkeypatch.setenv(name, value)
        for word in ("info", "verify"):
            code, message = complaint(capsys, "cache", word, "s3://bucket/cache")
            assert code == 4, message
            assert "implausibly large" in message
        server.shutdown()


def test_a_metadata_file_that_drips_has_a_deadline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_Boasting, "num_bytes", 1000)
    monkeypatch.setattr(object_store, "ANSWER_SECONDS", 0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Boasting) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name, value in client_environment(f"http://127.0.0.1:{server.server_address[1]}").items():
            monkeypatch.setenv(name, value)
        code, message = complaint(capsys, "cache", "info", "s3://bucket/cache")
        server.shutdown()
    assert code == 7, message
    assert "The object store sends a file too slowly." in message


def test_extraction_stops_with_a_message_and_resumes(folder: Path, url: Url, s3_server: S3Server) -> None:
    with serve_faults(s3_server, "503", every=1, spared=40) as store, mock.patch.dict(os.environ, store.environment):
        with pytest.raises(StorageError, match="503 Service") as caught:
            tiny_extract(folder / "data", url, dataset=SMALL, confidence="probe")
        assert caught.value.exit_code == 7
        assert "the same command resumes" in caught.value.next_command
        store.every = 4
        tiny_extract(folder / "data", url, dataset=SMALL, confidence="probe")
    assert objects(url) == tree_bytes(folder / "cache")
