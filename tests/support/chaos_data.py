"""Flip bits of an index, change data while they are being read, and pull into one folder twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from fake_hub.server import TOKEN, serve_hub
from fake_hub.sets import colour_samples, write_twin
from own_rows import class_row, write_json_lines
from PIL import Image
from real_processes import Running, start, start_advl
from tiny_extraction import tiny_extract, tree_bytes

from advl_pipeline.base.errors import AdvlError, ConfigError, DatasetError, InUse
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.records import image_unit_id
from advl_pipeline.datasets.registry import open_dataset

NUM_ROWS = 1_500
NUM_PICTURES = 600


def say_what_is_read(data: str, split: str, data_root: str) -> None:
    """Print the contents of a dataset's examples, or the error; for `start`."""
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
    """Return the exit code and output of a process."""
    code, printed = running.wait(), running.printed().strip()
    if code not in (0, DatasetError.exit_code):
        raise AssertionError(f"seed {seed}: exit code {code}: {running.messages()[-1000:]}")
    return code, printed


class FlippedIndices:
    """A hub set and own rows, both indexed; bits of any index file are flipped."""

    def __init__(self, folder: Path) -> None:
        write_twin(folder, "cv-bench", colour_samples(40), group_rows=5)
        data = write_json_lines(folder / "mine.jsonl", [class_row(number) for number in range(200)])
        self._folder = folder
        self._sets = [("cv-bench", "test"), (str(data), "train")]
        time.sleep(2.1)  # Changes in the last two seconds are not recorded.
        for _ in range(2):
            self._expected = [self._read(place, 0) for place in range(len(self._sets))]
        self._whole = folder.with_name(f"{folder.name}-index")
        shutil.copytree(folder / ".index", self._whole)

    def _read(self, place: int, seed: int) -> tuple[int | None, str]:
        return ended(start(say_what_is_read, *self._sets[place], str(self._folder)), seed)

    def flip(self, seed: int) -> str:
        """Flip one bit of one file, and read; returns the file, and whether it was refused or repaired."""
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
    """A file of rows with two versions; a process reads it while the versions overwrite each other."""

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
        """Overwrite the file while it is read, and read it again once it is stable."""
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


def _bitmap(colour: tuple[int, int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(content, "BMP")
    return content.getvalue()


class ReplacedPictures:
    """Pictures of one size that another program replaces, with their times kept, while they are encoded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        rows = [class_row(number, split="train", image=f"{number}.bmp") for number in range(NUM_PICTURES)]
        self._data = write_json_lines(folder / "mine.jsonl", rows)
        self._states: list[list[bytes]] = []
        self._colour_of: dict[str, tuple[int, ...]] = {}
        for blue in (0, 255):
            colours = [(number % 256, number // 256, blue) for number in range(NUM_PICTURES)]
            self._states.append([_bitmap(colour) for colour in colours])
            for content, colour in zip(self._states[-1], colours, strict=True):
                boxes_R4 = np.zeros((0, 4), np.float32)
                self._colour_of[image_unit_id(hashlib.sha256(content).digest(), boxes_R4)] = colour

    def _put(self, number: int, state: int) -> None:
        path = self._folder / f"{number}.bmp"
        path.with_suffix(".new").write_bytes(self._states[state][number])
        os.utime(path.with_suffix(".new"), (0, 0))
        path.with_suffix(".new").replace(path)

    def replace(self, seed: int) -> str:
        """Replace pictures while they are encoded; what is stored is what its id says."""
        generator = random.Random(seed)
        for number in range(NUM_PICTURES):
            self._put(number, 0)
        output, count = self._folder / f"cache-{seed}", 0
        words = ("prepare", "--size", "8", "--data", self._data, "--output", output)
        running = start_advl(*words)
        time.sleep(generator.uniform(0, 1))
        while running.is_running():
            count += 1
            self._put(generator.randrange(NUM_PICTURES), generator.randrange(2))
            time.sleep(generator.uniform(0, 0.4))
        code, printed = running.wait(), running.messages()
        if code == DatasetError.exit_code and "replaced while this command ran" in printed:
            return f"{count} replaced: refused"
        if code != 0:
            raise AssertionError(f"seed {seed}: exit code {code}: {printed[-1000:]}")
        store = open_cache(output).stores()["image"]
        colours_N3 = store.global_features(list(store.ids))
        for unit_id, colour_3 in zip(store.ids, colours_N3.tolist(), strict=True):
            if self._colour_of[unit_id] != tuple(map(round, colour_3)):
                raise AssertionError(f"seed {seed}: the picture of {unit_id} is stored as {colour_3}")
        return f"{count} replaced: each as its id says"


class DoublePulls:
    """A hub with a cache, which two processes pull into one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        tiny_extract(folder / "data", folder / "cache")
        self._files = tree_bytes(folder / "cache")
        self._serving = ExitStack()  # As long as this object.
        self._hub = self._serving.enter_context(serve_hub())
        self._hub.repositories["datasets/lab/cache"] = dict(self._files)

    def pull(self, seed: int) -> str:
        """Begin two pulls at once; one of them makes the cache, and the other one is refused."""
        output = self._folder / f"pulled-{seed}"
        words = ("cache", "pull", "lab/cache", "--output", output)
        environment = {"HF_ENDPOINT": self._hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        first = start_advl(*words, **environment)
        time.sleep(random.Random(seed).uniform(0, 2))
        both = (first, start_advl(*words, **environment))
        codes = sorted(int(running.wait() or 0) for running in both)
        if codes[0] != 0 or codes[1] not in (ConfigError.exit_code, InUse.exit_code):
            raise AssertionError(
                f"seed {seed}: exit codes {codes}: {[running.messages()[-500:] for running in both]}"
            )
        if tree_bytes(output) != self._files or output.with_name(f"{output.name}.partial").exists():
            raise AssertionError(f"seed {seed}: the folder is not the cache alone")
        return f"exit codes {codes}: identical"
