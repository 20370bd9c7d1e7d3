"""A cache under a URL, reached through `obstore`.

Every object is written under its final name by one PUT, and a record after the files that it lists. This relies on
guarantees of S3, GCS and similar stores: a PUT is atomic, a later GET sees it, and a PUT can be conditional on the
object not existing. Records are created on that condition, so nothing is committed twice. An existing object is kept
if it is identical byte for byte, and otherwise replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from advl_pipeline.base.atomic import writing
from advl_pipeline.base.errors import AdvlError, ConfigError, StorageError, again
from advl_pipeline.base.locations import Url, is_server
from advl_pipeline.base.packages import needs_extra
from advl_pipeline.cache.config import disk_cache_folder
from advl_pipeline.cache.disk_cache import DiskCache
from advl_pipeline.cache.store import (
    IDENTITY_FILE,
    WORK_FOLDER,
    Buffer,
    FileEntry,
    Files,
    MissingFile,
    Readable,
    Store,
    entry_of,
    is_inside,
    repair_command,
    require_sizes,
)

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

FIRST_PAUSE_SECONDS = 0.2
"""Pause before the first retry of a request; doubled before each further one."""

_CONNECT_SECONDS = 5

_STALLED_SECONDS = 60

_RETRY_SECONDS = 15

_MAX_RETRIES = 5

_TRIES_OF_STALLED_ANSWERS = 3

_LONGEST_PAUSE_SECONDS = 3.0

ANSWER_SECONDS = 60.0
"""Time for a metadata file, besides a second for each 100 kB. A shard has an hour, as the client's `timeout` says."""

_SLOWEST_BYTES_PER_SECOND = 1e5

_RETRY_ADVICE = "check the network, AWS_ENDPOINT_URL and the credentials; the same command resumes"

_STREAM_BYTES = 1 << 22

_CONNECTIONS = 8

_KEY_DIGITS = 32

_LARGEST_PUT = 5 << 30

_METADATA_BYTES = 1 << 28

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}

_CUT_SHORT = {"IncompleteBody": "an answer was cut short", "source: TimedOut": "an answer stopped coming"}
"""Marks of an incomplete body in the library's messages, and their meaning."""

Answer = TypeVar("Answer")


class _CutShort(StorageError):
    """An answer that ended or stalled before it was complete."""


class ObjectStore(Store):
    """The objects under one URL, by their names relative to it.

    Credentials, region and endpoint come from the environment (`AWS_*`, `GOOGLE_*`) or from the machine's role. They
    are never part of a URL, a record or a message.

    Raises:
        ConfigError: the extra `s3` is not installed, or the environment's settings are invalid.
        StorageError: the store refuses a call or cannot be reached; any call may raise it, within seconds.
    """

    max_file_bytes = _LARGEST_PUT

    def __init__(self, url: Url) -> None:
        self.location = self._url = url
        self.locks = disk_cache_folder() / "locks" / _key_of(str(url).encode())
        self._store = _open(url)
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self._url,)

    def get(self, name: str) -> bytes:
        content = self._content(name, _METADATA_BYTES)
        if content is None:
            raise self.damaged("A metadata file is implausibly large.", name)
        return content

    def _content(self, name: str, max_bytes: int) -> bytes | None:
        """Return the content of an object, or None if it is larger; the library reserves what the store states."""
        import obstore

        def request() -> bytes | None:
            answer = obstore.get(self._store, self._key(name))
            size = answer.meta["size"]
            if size > max_bytes:
                return None
            deadline = time.monotonic() + ANSWER_SECONDS + size / _SLOWEST_BYTES_PER_SECOND
            content = bytearray()
            for block in answer.stream(min_chunk_size=1):
                content += block
                if time.monotonic() > deadline:
                    raise StorageError(
                        "The object store sends a file too slowly.",
                        where=self.where(name),
                        why=f"{len(content):,} of {size:,} bytes came in {ANSWER_SECONDS:.0f} s "
                        "and one for each 100 kB",
                        next_command=again(_RETRY_ADVICE),
                    )
            return bytes(content)

        return self._ask(name, request)

    def stream(self, name: str) -> Iterator[Buffer]:
        """Yield an object's content in blocks; raises `MissingFile`."""
        import obstore

        with self._speaking(name):
            yield from obstore.get(self._store, self._key(name)).stream(min_chunk_size=_STREAM_BYTES)

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        scratch = disk_cache_folder() / "writing"
        with writing(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            # An unnamed file disappears with its last map, however the process ends.
            with tempfile.TemporaryFile(dir=scratch) as file:
                for block in self.stream(name):
                    file.write(block)
                file.seek(0)
                yield file.fileno()

    def list(self, folder: str = "") -> dict[str, int]:
        import obstore

        whole = f"{self._key(folder)}/" if folder else f"{self._url.prefix}/"
        pages = self._ask(folder, lambda: list(obstore.list(self._store, prefix=whole, chunk_size=1000)))
        base = len(self._url.prefix) + 1
        items = (item for page in pages for item in page)
        return {item["path"][base:]: item["size"] for item in items if item["path"].startswith(whole)}

    def create(self, name: str, content: Buffer) -> bool:
        """Write a new object in one request; return False if it exists already.

        If the answer to a write is lost, the retry is refused because of the object that the first try wrote.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._put(name, content, "create")
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def put(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if not self.create(name, body) and self._content(name, memoryview(body).nbytes) != body:
            self._put(name, body, "overwrite")
        return entry_of(body)

    def put_if_absent(self, name: str, parts: Sequence[Buffer]) -> FileEntry:
        body = b"".join(parts)
        return entry_of(body if self.create(name, body) else self.get(name))

    def delete(self, *names: str) -> None:
        import obstore

        def delete_one(name: str) -> None:
            with suppress(MissingFile):
                self._ask(name, lambda: obstore.delete(self._store, self._key(name)))

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(delete_one, filter(is_inside, names)))

    def delete_under(self, folder: str = "") -> None:
        self.delete(*self.list(folder))

    def prepare_writing(self) -> None:
        name = f"{WORK_FOLDER}/probe-{secrets.token_hex(8)}"
        self.create(name, b"first")
        is_refused = not self.create(name, b"second")
        self.delete(name)
        if not is_refused:
            raise self.refused(
                "The object store ignores If-None-Match, so several processes could overwrite each other.",
                "it accepted a second write of an object that had to be new",
                "extract into a folder, then copy it there",
            )

    def require_place(self) -> None:
        names = [name for name in self.list() if not name.startswith(f"{WORK_FOLDER}/")]
        if names and not any(name == IDENTITY_FILE or name.startswith("records/") for name in names):
            raise self.refused(
                "A teacher cache cannot be written here.",
                f"it is not empty and has no {IDENTITY_FILE}, by which a teacher cache is known: {min(names)}",
                "give another --output",
            )

    def reading(self, record: bytes, files: Files) -> Readable:
        require_sizes(self, self.list(), files)
        cached = DiskCache(self.location, self.stream, disk_cache_folder(), files, key=_key_of(record))
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(cached.get, (name for name in files if name.endswith("/zarr.json"))))
        return cached

    def _put(self, name: str, content: Buffer, mode: Literal["create", "overwrite"]) -> None:
        import obstore

        # Never a multipart upload: one request keeps the write and its condition atomic.
        try:
            self._ask(
                name, lambda: obstore.put(self._store, self._key(name), content, mode=mode, use_multipart=False)
            )
        except MissingFile:
            raise self._no_bucket(f"{self._url}/{name}") from None

    def _ask(self, name: str, request: Callable[[], Answer]) -> Answer:
        """Make a request, and retry it if its answer was cut short; the library does so only for objects.

        Reads, listings, removals and conditional writes may be repeated: as often as the library would, and less
        often if every try waits for long.
        """
        begin, num_tries = time.monotonic(), 0
        while True:
            num_tries += 1
            try:
                with self._speaking(name):
                    return request()
            except _CutShort:
                is_late = time.monotonic() - begin > _RETRY_SECONDS
                if num_tries > _MAX_RETRIES or (is_late and num_tries >= _TRIES_OF_STALLED_ANSWERS):
                    raise
            time.sleep(min(FIRST_PAUSE_SECONDS * 2 ** (num_tries - 1), _LONGEST_PAUSE_SECONDS))

    def _key(self, name: str) -> str:
        return f"{self._url.prefix}/{name}"

    @contextmanager
    def _speaking(self, name: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        where = f"{self._url}/{name}".rstrip("/")
        if os.getpid() != self._process:
            raise self.refused(
                "A cache in an object store cannot be used in a forked process.",
                "the threads that speak to the store stayed in the process that forked, so it would wait forever",
                "start worker processes with the method `spawn`",
            )
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            raise self._told(where, error) from None
        except BaseException as error:
            if type(error).__module__ != "pyo3_runtime":
                raise
            raise StorageError(
                "The object store cannot be used.",
                where=where,
                why="its library panicked, and printed the reason above",
                next_command=f"check the settings of the store: {_CREDENTIALS[self._url.scheme]}",
            ) from None

    def _told(self, where: str, error: Exception) -> AdvlError:
        """Translate an error of the library into one for the user."""
        from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError

        reason = _reason(error)
        if "NoSuchBucket" in str(error):
            return self._no_bucket(where)
        if isinstance(error, (NotFoundError, FileNotFoundError)):
            return MissingFile("A file of the cache is missing.", where=where, next_command=repair_command(self._url))
        denied = (PermissionDeniedError, UnauthenticatedError, PermissionError)
        if isinstance(error, denied) or reason.startswith(("401", "403")):
            return StorageError(
                "The object store refuses access.",
                where=where,
                why=reason,
                next_command=f"check the credentials: {_CREDENTIALS[self._url.scheme]}",
            )
        cut_short = [meaning for mark, meaning in _CUT_SHORT.items() if mark in str(error)]
        return (_CutShort if cut_short else StorageError)(
            "The object store cannot be reached, or does not do what was asked.",
            where=where,
            why=cut_short[0] if cut_short else reason,
            next_command=again(_RETRY_ADVICE),
        )

    def _no_bucket(self, where: str) -> StorageError:
        return StorageError(
            f"There is no bucket {self._url.bucket!r}.",
            where=where,
            next_command="create the bucket, or correct the URL",
        )


def _require_plain_settings(url: Url) -> None:
    """Refuse settings of the environment at which the library would panic; no value is shown, it may be a secret.

    Raises:
        ConfigError: an endpoint is no URL of a server, or a setting has a control character, such as a line break.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "GOOGLE_"))}
    for name, value in sorted(settings.items()):
        why = ""
        if not value.isprintable():
            why = "it has a line break or another control character"
        elif name.startswith("AWS_ENDPOINT") and not is_server(value):
            why = "it is not the URL of a server, such as http://host:9000"
        if why:
            raise ConfigError(
                f"The setting {name} of the environment cannot be used.",
                where=str(url),
                why=why,
                next_command=again(f"correct {name}, then run the same command again"),
            )


def _key_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_KEY_DIGITS]


def _open(url: Url) -> S3Store | GCSStore:
    with needs_extra("s3", where=str(url)):
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore, S3Store
    _require_plain_settings(url)
    options: dict[str, Any] = {
        # Plain HTTP is used only if AWS_ENDPOINT_URL begins with http://.
        "client_options": {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=_STALLED_SECONDS),
            "timeout": timedelta(hours=1),
        },
        "retry_config": {
            "max_retries": _MAX_RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_PAUSE_SECONDS),
                "max_backoff": timedelta(seconds=_LONGEST_PAUSE_SECONDS),
                "base": 2,
            },
        },
    }
    try:
        return S3Store(url.bucket, **options) if url.scheme == "s3" else GCSStore(url.bucket, **options)
    except (BaseError, ValueError) as error:
        raise ConfigError("The object store cannot be opened.", where=str(url), why=_reason(error)) from None


def _reason(error: BaseException) -> str:
    """Reduce a message to the status, the store's own code and the innermost cause; never return the full text.

    The text repeats requests and answers, which may contain keys and tokens.
    """
    text = str(error)
    status = re.search(r"\b([1-5]\d\d [A-Z][A-Za-z]+(?: [A-Z][A-Za-z]+)*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    causes = (
        "dns error",
        "Connection refused",
        "operation timed out",
        "certificate",
        "connection closed",
        "error sending request",
    )
    parts = [status[1] if status else "", code[1] if code else ""]
    parts += [cause for cause in causes if cause in text and not status][:1]
    return ", ".join(part for part in parts if part) or type(error).__name__
