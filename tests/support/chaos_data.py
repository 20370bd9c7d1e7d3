"""Flip bits of an index, change data while they are read, and open sets that others made to do harm."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hub_twins import colour_samples, write_twin
from own_rows import class_row, write_json_lines, write_pictures
from real_processes import Running, start, start_advl

from advl_pipeline.base.errors import AdvlError, DatasetError
from advl_pipeline.datasets.registry import open_dataset

NUM_ROWS = 1_500


def say_what_is_read(data: str, split: str, data_root: str) -> None:
    """Print what a dataset's examples say, or the refusal; for `start`."""
    try:
        dataset = open_dataset(data, split=split, data_root=Path(data_root))
        state = hashlib.sha256(dataset.content_digest().encode())
        for example in dataset:
            said = example.example_id, example.label, example.candidates, example.image.unit_id, example.image.width
            state.update(repr(said).encode())
        print(state.hexdigest())
    except AdvlError as error:
        print(error)
        raise SystemExit(error.exit_code) from None


def ended(running: Running, seed: int) -> tuple[int | None, str]:
    """Return how a process ended, and what it printed."""
    code, printed = running.wait(), running.printed().strip()
    if code not in (0, DatasetError.exit_code):
        raise AssertionError(f"seed {seed}: exit code {code}: {running.messages()[-1000:]}")
    return code, printed


class FlippedIndices:
    """A set of the hub and rows of one's own, both indexed; bits of anything below their indices are flipped."""

    def __init__(self, folder: Path) -> None:
        write_twin(folder, "cv-bench", colour_samples(40), group_rows=5)
        data = write_json_lines(folder / "mine.jsonl", [class_row(number) for number in range(200)])
        self._folder = folder
        self._sets = [("cv-bench", "test"), (str(data), "train")]
        time.sleep(2.1)  # What changed less than two seconds ago is not noted.
        for _ in range(2):
            self._expected = [self._read(place, 0) for place in range(len(self._sets))]
        self._whole = folder.with_name(f"{folder.name}-index")
        shutil.copytree(folder / ".index", self._whole)

    def _read(self, place: int, seed: int) -> tuple[int | None, str]:
        return ended(start(say_what_is_read, *self._sets[place], str(self._folder)), seed)

    def flip(self, seed: int) -> str:
        """Flip one bit of one file, and read; return which, and whether it was refused or mended."""
        generator = random.Random(seed)
        files = sorted(path for path in (self._folder / ".index").rglob("*") if path.is_file())
        kinds = {path.suffix or path.parent.name: path for path in generator.sample(files, len(files))}
        kind = generator.choice(sorted(kinds))
        content = bytearray(kinds[kind].read_bytes())
        bit = generator.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        kinds[kind].write_bytes(content)
        outcomes = []
        for place, expected in enumerate(self._expected):
            code, printed = self._read(place, seed)
            if code == 0 and (code, printed) != expected:
                raise AssertionError(f"seed {seed}: bit {bit} of {kinds[kind]} was not noticed: {printed}")
            if code != 0 and str(kinds[kind]) not in printed:
                raise AssertionError(f"seed {seed}: bit {bit} of {kinds[kind]} is not named: {printed}")
            outcomes.append(code)
        shutil.rmtree(self._folder / ".index")
        shutil.copytree(self._whole, self._folder / ".index")
        return f"bit {bit:>8} of {kind:<10} {'refused' if any(outcomes) else 'mended or harmless'}"


class ChangingData:
    """A file of rows in two states; a process reads it while it is overwritten with one and the other."""

    def __init__(self, folder: Path) -> None:
        self._data = write_json_lines(folder / "mine.jsonl", [])
        rows = [class_row(number, split="train") for number in range(NUM_ROWS)]
        others = [{**row, "label": "no" if row["label"] == "yes" else "yes"} for row in rows]
        self._states = ["".join(json.dumps(row) + "\n" for row in state) for state in (rows, others)]
        self._expected = []
        for state in self._states:
            self._data.write_text(state)
            began = time.perf_counter()
            self._expected.append(ended(self._read(), 0))
            self._seconds = time.perf_counter() - began

    def _read(self) -> Running:
        shutil.rmtree(self._data.parent / ".index", ignore_errors=True)
        return start(say_what_is_read, str(self._data), "train", str(self._data.parent))

    def change(self, seed: int) -> str:
        """Overwrite the file while it is read, and read it again when it lies still."""
        generator = random.Random(seed)
        self._data.write_text(self._states[0])
        running, count = self._read(), 0
        end = time.perf_counter() + generator.uniform(0.5, 1.5) * self._seconds
        while time.perf_counter() < end and running.is_running():
            time.sleep(generator.uniform(0, 0.2) * self._seconds)
            count += 1
            self._data.write_text(self._states[count % 2])
        code, printed = ended(running, seed)
        if code == 0 and (code, printed) not in self._expected:
            raise AssertionError(f"seed {seed}: a mixture was read: {printed}")
        again = start(say_what_is_read, str(self._data), "train", str(self._data.parent))
        if (seen := ended(again, seed)) != self._expected[count % 2]:
            raise AssertionError(f"seed {seed}: afterwards something else is read: {seen}")
        return f"overwritten {count} times: {'refused' if code else 'one of the two states'}"


SECRET = b"a private key"

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 moveto\n%%EOF\n"


class HostileSets:
    """Sets in the layout of the hub, each of which tries something else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._private = folder / "private"
        write_pictures(self._private)
        (self._private / "key").write_bytes(SECRET)
        (self._private / "rows.csv").write_text("image,text,label\nred.png,It is red.,yes\n")
        programs = folder / "programs"
        programs.mkdir()
        (programs / "gs").write_text(f"#!/bin/sh\ntouch {folder}/started\nexit 1\n")
        (programs / "gs").chmod(0o755)
        self._path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        # Whatever connects is noted.
        self._server = socket.create_server(("127.0.0.1", 0))
        self._asked: list[Any] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, address = self._server.accept()
            self._asked.append(address)
            connection.close()

    def open(self, seed: int) -> str:
        """Make a hostile set and look at it by `advl datasets check --deep`; return what it tried."""
        generator = random.Random(seed)
        copy = self._folder / f"set-{seed}"
        (copy / "data").mkdir(parents=True)
        write_pictures(copy / "data/pictures")
        tries = [name for name in dir(self) if name.startswith("try_")]
        chosen = tries[seed % len(tries)]
        getattr(self, chosen)(copy, generator)
        running = start_advl(
            "datasets", "check", f"hf:{copy}", "--deep", "--data-root", self._folder,
            PATH=self._path, HF_HUB_OFFLINE="1",
        )  # fmt: skip
        began = time.perf_counter()
        while running.is_running() and time.perf_counter() - began < 60:
            time.sleep(0.02)
        if running.is_running():
            running.process.kill()
            raise AssertionError(f"seed {seed}: {chosen} hangs")
        code = running.wait()
        if code != DatasetError.exit_code or "Traceback" in running.messages():
            raise AssertionError(f"seed {seed}: {chosen} ends with {code}: {running.messages()[-500:]}")
        private = [SECRET, *(path.read_bytes() for path in self._private.glob("*.png"))]
        kept = [path.read_bytes() for path in (self._folder / ".index").rglob("*") if path.is_file()]
        if any(secret in content for secret in private for content in kept):
            raise AssertionError(f"seed {seed}: {chosen} put a private file into the index")
        if self._asked or (self._folder / "started").exists():
            raise AssertionError(f"seed {seed}: {chosen} fetched or started something: {self._asked}")
        return chosen.removeprefix("try_").replace("_", " ")

    def _outside(self, generator: random.Random) -> str:
        name = generator.choice(["key", "red.png", "rows.csv"])
        return generator.choice([f"{self._private}/{name}", f"../private/{name}", f"data/../../private/{name}"])

    def _rows(self, copy: Path, image: str = "pictures/red.png") -> None:
        row = {"image": f"data/{image}", "text": "It is red.", "label": "yes"}
        (copy / "data/train.jsonl").write_text(json.dumps(row) + "\n")

    def try_a_picture_outside_in_parquet(self, copy: Path, generator: random.Random) -> None:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        image = pa.array([{"bytes": None, "path": self._outside(generator)}], kind)
        table = pa.table({"image": image, "text": ["It is red."], "label": ["yes"]})
        pq.write_table(table, copy / "data/train.parquet")

    def try_a_picture_outside_in_json(self, copy: Path, generator: random.Random) -> None:
        row = {"image": self._outside(generator), "text": "It is red.", "label": "yes"}
        (copy / "data/train.jsonl").write_text(json.dumps(row) + "\n")

    def try_a_picture_by_a_link(self, copy: Path, generator: random.Random) -> None:
        self._rows(copy)
        (copy / "data/pictures/red.png").unlink()
        (copy / "data/pictures/red.png").symlink_to(self._private / generator.choice(["key", "red.png"]))

    def try_rows_by_a_link(self, copy: Path, generator: random.Random) -> None:
        (copy / "data/train.csv").symlink_to(self._private / "rows.csv")

    def try_a_card_that_names_a_file(self, copy: Path, generator: random.Random) -> None:
        self._rows(copy)
        text = f"configs:\n- config_name: default\n  data_files: {self._outside(generator)}\n"
        file = generator.choice(["README.md", ".huggingface.yaml"])
        (copy / file).write_text(f"---\n{text}---\n" if file == "README.md" else text)

    def try_a_card_that_names_the_network(self, copy: Path, generator: random.Random) -> None:
        self._rows(copy)
        address = f"http://127.0.0.1:{self._server.getsockname()[1]}/rows"
        named = generator.choice([f"{address}.csv", f"zip://rows.csv::{address}.zip", f"['data/*', '{address}.csv']"])
        text = f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n"
        (copy / "README.md").write_text(text)

    def try_deep_json(self, copy: Path, generator: random.Random) -> None:
        depth = generator.randint(2_000, 60_000)
        (copy / "data/train.jsonl").write_text('{"a": ' + "[" * depth + "]" * depth + "}\n")

    def try_a_format_that_starts_a_program(self, copy: Path, generator: random.Random) -> None:
        self._rows(copy)
        (copy / "data/pictures/red.png").write_bytes(_EPS)

    def try_a_pipe(self, copy: Path, generator: random.Random) -> None:
        self._rows(copy)
        (copy / "data/pictures/red.png").unlink()
        os.mkfifo(copy / "data/pictures/red.png")

    def try_a_picture_without_end(self, copy: Path, generator: random.Random) -> None:
        from PIL import Image

        self._rows(copy)
        Image.new("L", (1, generator.randint(1_000, 60_000))).save(copy / "data/pictures/red.png")

    def try_files_that_link_further(self, copy: Path, generator: random.Random) -> None:
        (copy / "data/train.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + generator.randbytes(100))
