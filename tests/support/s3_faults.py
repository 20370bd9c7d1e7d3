"""A proxy in front of an S3 server that injects faults into some requests.

It leaves signed parts unchanged, so the server accepts the requests.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from s3_server import S3Server, client_environment

Fault = Literal["500", "503", "500 after", "cut", "slow", "stall"]
"""An error, an error response to a request that was executed, half a body, a slow body, and a body that stalls while
the connection stays open."""

_STATUS = {"500": (500, "InternalError"), "503": (503, "SlowDown"), "500 after": (500, "InternalError")}
_MOST_FAULTS_IN_A_ROW = 3
_DRIP_SECONDS = 0.02
_PIECES = 3


@dataclass
class FaultyStore:
    """A running proxy in front of a store. One in `every` requests gets a fault, cycling through `faults`.

    The first `spared` requests get none; both may be changed while it runs. `met` counts faults. With `every` above 1
    a request gets few faults in a row. Otherwise, threads that send requests in lockstep could direct every fault to
    one of them.
    """

    faults: tuple[Fault, ...]
    endpoint: str = ""
    every: int = 4
    spared: int = 0
    num_requests: int = 0
    met: Counter[Fault] = field(default_factory=Counter)
    is_over: threading.Event = field(default_factory=threading.Event)
    _in_a_row: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables for a client to reach the store through the proxy."""
        return client_environment(self.endpoint)

    def next_fault(self, request: str) -> Fault | None:
        """Count a request, and return its fault, if any."""
        with self._lock:
            self.num_requests += 1
            turn = self.num_requests - self.spared
            had_enough = self.every > 1 and self._in_a_row[request] == _MOST_FAULTS_IN_A_ROW
            if turn <= 0 or turn % self.every or had_enough:
                del self._in_a_row[request]
                return None
            self._in_a_row[request] += 1
            fault = self.faults[self.met.total() % len(self.faults)]
            self.met[fault] += 1
            return fault


@contextmanager
def serve_faults(server: S3Server, *faults: Fault, every: int = 4, spared: int = 0) -> Iterator[FaultyStore]:
    """Run a proxy in front of a server until the block ends."""
    store = FaultyStore(faults=faults, every=every, spared=spared)
    behind = urlsplit(server.endpoint).netloc

    class Handler(_Handler):
        pass

    Handler.store, Handler.behind = store, behind
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    store.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, name="s3-faults")
    thread.start()
    try:
        yield store
    finally:
        store.is_over.set()
        proxy.shutdown()
        thread.join()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FaultyStore
    behind: str

    def _pass_on(self) -> None:
        fault = self.store.next_fault(f"{self.command} {self.path} {self.headers.get('Range')}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with suppress(ConnectionError, BrokenPipeError):
            if fault in ("500", "503"):
                self._refuse(fault)
                return
            status, headers, content = self._ask(body)
            if fault == "500 after":
                self._refuse(fault)
                return
            self._answer(status, headers, content, fault)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _pass_on

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.behind, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _refuse(self, fault: Fault) -> None:
        status, code = _STATUS[fault]
        content = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], content, None)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if "content-length" not in names and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault in ("slow", "stall"):
            size = max(1, -(-len(content) // _PIECES))
            for first in range(0, len(content), size):
                self.wfile.write(content[first : first + size])
                if fault == "stall":
                    self.store.is_over.wait(600)
                    self.close_connection = True
                    return
                time.sleep(_DRIP_SECONDS / _PIECES)
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        del format, arguments
