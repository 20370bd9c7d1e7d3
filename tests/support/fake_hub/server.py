"""A fake hub: the endpoints for uploading and downloading folders, over real HTTP, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_the_test"
LARGE = 2048
"""Minimum size of files that are uploaded as large files, before the commit."""


@dataclass
class Hub:
    """Repositories by "datasets/ORG/NAME"; `refuses` maps a path prefix to the HTTP status of its responses.

    `sent` counts the bytes sent per path, `commits` keeps earlier contents of repositories, `breaks` maps a path to
    the remaining number of transfers that break midway, and `gated` names gated repositories.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    refuses: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)

    def move(self, key: str, **changes: bytes) -> str:
        """Add a commit with some files changed to a repository; return the previous commit."""
        before = self.sha(key)
        self.commits[before] = self.repositories[key]
        self.repositories[key] = {**self.repositories[key], **changes}
        return before

    def files(self, key: str, revision: str) -> dict[str, bytes] | None:
        """Return the files of a repository at a revision; None if the revision does not exist."""
        if revision in ("main", self.sha(key)):
            return self.repositories[key]
        return self.commits.get(revision)

    def sha(self, key: str) -> str:
        """Return the current commit of a repository."""
        state = hashlib.sha1(key.encode())
        for name, content in sorted(self.repositories[key].items()):
            state.update(name.encode() + hashlib.sha1(content).digest())
        return state.hexdigest()

    def answer(self, method: str, path: str, body: bytes, token: str, *, one_level: bool = False) -> tuple[int, Any]:
        """Return status and content: the bytes of a file, or a value to serialise as JSON."""
        self.asked.append(f"{method} {path}")
        for start, status in self.refuses.items():
            if f"{method} {path}".startswith(start):
                return status, {"error": "as the test asked"}
        if method in ("POST", "PUT") and token != f"Bearer {TOKEN}" and not path.startswith("/blob/"):
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            key = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            if key in self.repositories:
                return 409, {"error": "it exists", "url": key}
            self.repositories[key] = {".gitattributes": b"*.bin filter=lfs\n"}
            return 200, {"url": f"{self.endpoint}/{key}"}
        if path.startswith("/blob/"):
            self.blobs[path.removeprefix("/blob/")] = body
            return 200, {}
        if match := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._large(item) for item in json.loads(body)["objects"]]}
        if match := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            key = f"{match[1] or 'models'}/{match[2]}"
            files = (self.files(key, match[3]) or {}) if key in self.repositories else {}
            return (200, files[match[4]]) if match[4] in files else (404, {"error": "EntryNotFound"})
        match = re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?(?:/(.+))?", path
        )
        if not match:
            return 404, {"error": "unknown"}
        key = f"{match[1]}/{match[2]}"
        if key in self.gated:
            return 401, {"error": "GatedRepo"}
        if key not in self.repositories:
            return 404, {"error": "RepoNotFound"}
        files = self.files(key, match[4] or "main")
        if files is None:
            return 404, {"error": "RevisionNotFound"}
        if match[3] == "tree" and one_level:
            return 200, self._level(files, f"{match[5]}/" if match[5] else "")
        return 200, self._repository_reply(key, match[3], body, files)

    def _level(self, files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        inside = {name.removeprefix(folder): content for name, content in files.items() if name.startswith(folder)}
        entries: dict[str, dict[str, Any]] = {}
        for name, content in inside.items():
            first, is_below, _ = name.partition("/")
            kind = {"type": "directory"} if is_below else {"type": "file", "size": len(content)}
            entries[first] = {"path": folder + first, "oid": hashlib.sha1(content).hexdigest(), **kind}
        return [*entries.values()]

    def _large(self, item: dict[str, Any]) -> dict[str, Any]:
        action = {"upload": {"href": f"{self.endpoint}/blob/{item['oid']}"}}
        return item if item["oid"] in self.blobs else {**item, "actions": action}

    def _repository_reply(self, key: str, what: str | None, body: bytes, files: dict[str, bytes]) -> Any:
        if what == "preupload":
            asked = json.loads(body)["files"]
            return {"files": [{"path": item["path"], "uploadMode": "lfs" if item["size"] >= LARGE else "regular",
                               "shouldIgnore": False} for item in asked]}  # fmt: skip
        if what == "tree":
            return [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()]  # fmt: skip
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            return {"commitUrl": f"{self.endpoint}/{key}/commit/{self.sha(key)}", "commitOid": self.sha(key)}
        tags = re.findall(rb"^- (\w+)$", files.get("README.md", b"").partition(b"\n---\n")[0], re.M)
        return {
            "id": key,
            "sha": next((sha for sha, held in self.commits.items() if held is files), self.sha(key)),
            "tags": [tag.decode() for tag in tags],
            "siblings": [{"rfilename": name} for name in files],
        }


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub on a free local port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.body()
            token, one_level = self.headers.get("Authorization", ""), "recursive=false" in self.path.lower()
            status, content = hub.answer(self.command, path, body, token, one_level=one_level)
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            whole = raw
            if status == 200 and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                status, raw = 206, raw[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            if self.command == "GET":
                hub.sent[path] = hub.sent.get(path, 0) + len(raw)
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("X-Repo-Commit", path.partition("/resolve/")[2].partition("/")[0])
            self.send_header("ETag", f'"{hashlib.sha1(whole).hexdigest()}"')
            if status in (401, 404) and isinstance(content, dict):
                self.send_header("X-Error-Code", content["error"])
            self.end_headers()
            if self.command != "HEAD":
                is_broken = hub.breaks.get(path, 0) > 0
                hub.breaks[path] = hub.breaks.get(path, 0) - 1
                self.wfile.write(raw[: len(raw) // 2] if is_broken else raw)
                self.close_connection = is_broken

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def log_message(self, *words: object) -> None:
            """Suppress request logs."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def served_models(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub from which this process reads models, with an empty cache."""
    # The library reads the environment once, possibly before this change.
    for name, value in (("HF_HUB_CACHE", str(cache)), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
