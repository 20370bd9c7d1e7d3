"""Sets of others that name what is not theirs, files of this machine or of the network, or hold JSON without end."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
from commands import complaint, printed
from fake_hub.server import serve_hub
from own_rows import COLOURS, write_pictures

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.registry import open_dataset

SECRET = b"a private key"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of the user's, with pictures, which is nobody else's business."""
    folder = tmp_path / "private"
    write_pictures(folder)
    (folder / "key").write_bytes(SECRET)
    (folder / "key").chmod(0o600)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder for a set of others."""
    folder = tmp_path / "sets/others/set"
    (folder / "data").mkdir(parents=True)
    return folder


Check = Callable[..., str]


@pytest.fixture
def check(copy: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Have `advl datasets check` look at the set, and end with a code; return all that it prints."""

    def run(*options: str, code: int = 5) -> str:
        words = ("datasets", "check", f"hf:{copy}", "--data-root", copy.parents[1], *options)
        return "".join(printed(capsys, *words, code=code))

    return run


def caption(image: Any) -> dict[str, Any]:
    return {"image": image, "text": "It is red.", "label": "yes"}


def write_parquet(folder: Path, images: list[dict[str, Any]]) -> None:
    """Write a set in Parquet whose pictures are what others wrote there."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = {
        "image": pa.array(images, kind),
        "text": ["It is red."] * len(images),
        "label": ["yes"] * len(images),
    }
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), label=datasets.Value("string")
    )
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), folder / "data/train.parquet")


def indexed_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".index" in path.parts)


@pytest.mark.parametrize("path", ["{private}/key", "{private}/red.png", "../../../private/red.png"])
def test_a_picture_outside_of_the_set_is_refused_and_nothing_of_it_is_kept(
    path: str, private: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = (private / "blue.png").read_bytes()
    write_parquet(
        copy, [{"bytes": picture, "path": "own.png"}, {"bytes": None, "path": path.format(private=private)}]
    )
    code, message = complaint(
        capsys, "extract", "--teacher", "efficientnet-lite0", "--data", f"hf:{copy}", "--data-root", copy.parents[1]
    )
    assert code == 5
    assert "is outside the dataset" in message or "leaves the pictures' folder" in message
    kept = indexed_bytes(copy.parents[2])
    assert picture in kept
    assert SECRET not in kept
    assert (private / "red.png").read_bytes() not in kept


def test_a_set_of_the_network_names_no_file_of_the_folder_that_the_user_is_in(
    private: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a copy, a relative name is relative to where a copy would lie."""
    monkeypatch.chdir(private)
    write_parquet(copy, [{"bytes": None, "path": "red.png"}])
    opened = open_dataset(f"hf:{copy}", split="train", data_root=copy.parents[1])
    with pytest.raises(DatasetError, match="malformed") as caught:
        opened.image_units()
    assert "red.png is missing" in caught.value.why
    table = copy / "data/train.parquet"
    assert "red.png is missing" in checked_far({"data/train.parquet": table.read_bytes()}, private)


def checked_far(files: dict[str, bytes], folder: Path) -> str:
    """Have a set checked in a folder with a hub that has its files; return all that is printed."""
    with serve_hub() as hub:
        hub.repositories["datasets/others/set"] = files
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "ADVL_DATA": str(folder / "data")}
        words = [sys.executable, "-m", "advl_cli", "datasets", "check", "hf:others/set"]
        done = subprocess.run(words, env=os.environ | home, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    return done.stdout + done.stderr


def test_a_link_out_of_the_set_is_refused_and_one_within_it_is_read(private: Path, copy: Path, check: Check) -> None:
    write_pictures(copy / "pictures")
    (copy / "pictures/green.png").unlink()
    (copy / "pictures/green.png").symlink_to("red.png")
    rows = [caption(f"pictures/{colour}.png") for colour in COLOURS]
    (copy / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "5 items, 5 pictures, 0 problems" in check("--deep", code=0)
    (copy / "pictures/red.png").unlink()
    (copy / "pictures/red.png").symlink_to(private / "red.png")
    assert check("--deep").count("is a link that leads out of the dataset") == 2
    (copy / "data/test.jsonl").symlink_to(private / "key")
    assert "The repository names a file outside of it." in check("--deep")


def as_zip(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("train.jsonl", content)
    return packed.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl.gz": gzip.compress,
    ".jsonl.bz2": bz2.compress,
    ".zip": as_zip,
}


@pytest.mark.parametrize("suffix", PACKED)
def test_json_that_is_nested_so_deep_that_it_would_end_the_process_is_refused_however_it_is_packed(
    suffix: str, copy: Path, check: Check
) -> None:
    write_pictures(copy / "pictures")
    rows = [caption(f"pictures/{colour}.png") for colour in COLOURS]
    row = "".join(json.dumps(row) + "\n" for row in rows).encode()
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    for file in (copy / "data").iterdir():
        file.unlink()
    (copy / f"data/train{suffix}").write_bytes(PACKED[suffix](row + deep))
    assert "nested too deep" in check()
    (copy / f"data/train{suffix}").write_bytes(PACKED[suffix](row)[:-20])
    assert "Traceback" not in check()


@pytest.mark.parametrize("is_cache", [True, False])
def test_links_into_the_blobs_beside_a_snapshot_are_read_in_the_cache_of_the_hub_alone(
    is_cache: bool,
    private: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / ("hub" if is_cache else "other")))
    snapshot, blobs, refs = (
        tmp_path / f"hub/datasets--others--set/{name}" for name in ("snapshots/abc", "blobs", "refs")
    )
    for folder in (snapshot, blobs, refs):
        folder.mkdir(parents=True)
    (blobs / "picture").write_bytes((private / "red.png").read_bytes())
    (refs / "picture").write_bytes((private / "red.png").read_bytes())
    (snapshot / "red.png").symlink_to("../../blobs/picture")
    (snapshot / "train.jsonl").write_text(json.dumps(caption("red.png")))
    words = ("datasets", "check", f"hf:{snapshot}", "--data-root", tmp_path / "sets", "--deep")
    out, _ = printed(capsys, *words, code=0 if is_cache else 5)
    assert ("1 items, 1 pictures, 0 problems" if is_cache else "is a link that leads out of the dataset") in out
    (snapshot / "red.png").unlink()
    (snapshot / "red.png").symlink_to("../../refs/picture")
    assert "is a link that leads out of the dataset" in printed(capsys, *words, code=5)[0]


Web = tuple[str, list[str]]


@pytest.fixture
def web() -> Iterator[Web]:
    """A server of the network: its address, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def card(data_files: str) -> str:
    return f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n# A set\n"


@pytest.mark.parametrize(
    "named",
    [
        "{private}/rows.csv",
        "../../../private/rows.csv",
        "[{{split: train, path: ['data/*', '{web}/rows.csv']}}]",
        "hf://datasets/somebody/private/rows.csv",
        "zip://rows.csv::{web}/rows.zip",
    ],
)
def test_a_card_that_names_data_elsewhere_is_refused_before_anything_is_read(
    named: str, private: Path, copy: Path, web: Web, monkeypatch: pytest.MonkeyPatch, check: Check
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (private / "rows.csv").write_text("image,text,label\nred.png,It is red.,yes\n")
    (copy / "data/train.jsonl").write_text(json.dumps(caption("red.png")))
    text = card(named.format(private=private, web=web[0]))
    for file, content in {"README.md": text, ".huggingface.yaml": text.split("---")[1]}.items():
        (copy / file).write_text(content)
        message = check()
        (copy / file).unlink()
        assert "The repository names a file outside of it." in message
        assert f"{file} names it as data" in message
    assert not web[1]


def test_a_card_on_the_hub_that_names_data_elsewhere(tmp_path: Path, web: Web) -> None:
    files = {"README.md": card(f"{web[0]}/rows.csv").encode(), "train.csv": b"image,text,label\n"}
    assert "README.md names it as data" in checked_far(files, tmp_path)
    assert not web[1]


def test_files_of_a_kind_that_follows_links_of_its_own_are_refused(copy: Path, check: Check) -> None:
    (copy / "data/train.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert "is not supported" in check()


DEEP = "[" * 40_000 + "]" * 40_000


@pytest.mark.parametrize("name", ["data/train.json", "data/train.jsonl", "metadata.jsonl"])
@pytest.mark.parametrize("content", [f'{{"a": {DEEP}}}\n', f'[\n{{"a": {DEEP}\n}}]', f'{{"a":\n {DEEP}}}'])
def test_deep_json_is_refused(name: str, content: str, copy: Path, check: Check) -> None:
    """Arrow would end the process by a segmentation fault."""
    write_pictures(copy)
    (copy / name).write_text(content)
    assert "nested too deep" in check()


def test_an_attempt_without_a_network_leaves_the_session_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advl_pipeline.datasets.own.hub.hub_obstacle", lambda: "huggingface.co cannot be reached")
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with pytest.raises(DatasetError, match="could not be downloaded") as caught:
        open_dataset("hf:somebody/pets", split="train", data_root=tmp_path)
    assert caught.value.why == "huggingface.co cannot be reached"
    assert before == (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)


def test_pictures_of_a_card_lie_where_the_card_says(
    private: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own card may name a folder; the set of others may not."""
    (copy / "data/train.jsonl").write_text(json.dumps(caption("red.png")))
    mine = tmp_path / "mine.toml"
    mine.write_text(f'files = "hf:{copy}"\npictures = "private"\n')
    assert "1 items, 1 pictures, 0 problems" in printed(capsys, "datasets", "check", mine, "--deep")[0]
