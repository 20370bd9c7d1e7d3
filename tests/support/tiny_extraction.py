"""A deterministic two-tower teacher and a small dataset with real pictures, for tests of extraction and caches.

`run_settings` runs one extraction from settings with the keys `folder` (of the pictures), `config` (of
`ExtractConfig`), and optionally `teacher` and `dataset` (keyword arguments below), and `environment`. `run_command`
runs a command line instead.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from advl_cli.main import main
from advl_pipeline.base.configuration import build_config
from advl_pipeline.base.errors import AdvlError, Interrupted
from advl_pipeline.base.interruption import interruptible
from advl_pipeline.cache.writer import CacheWriter
from advl_pipeline.datasets.pictures import read_picture
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, Task, TextUnit, image_unit_id, text_unit
from advl_pipeline.extraction import run as extraction_run
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import ExtractResult, extract
from advl_pipeline.teachers.interface import EncodedBatch, PreparedUnit, Teacher

WORDS = ["red", "dog", "the", "a", "runs", "holds", "person", "near", "because", "umbrella", "left", "of", "green"]


class TinyTextTower:
    """A text tower with one token per word; features are a random projection of the word's hash."""

    def __init__(self, *, dim: int = 16, seed: int = 0, delay: float = 0.0, scale: float = 1.0) -> None:
        self.global_dim = self.token_dim = dim
        self._delay = delay
        self._settings = {"dim": dim, "seed": seed, "scale": scale}
        generator = torch.Generator().manual_seed(seed)
        self._table = torch.randn(997, dim, generator=generator) * scale

    def describe(self) -> dict[str, Any]:
        return {"kind": "tiny text", **self._settings}

    def prepare(self, units: Sequence[TextUnit]) -> list[PreparedUnit]:
        prepared = []
        for unit in units:
            spans = [word.span() for word in re.finditer(r"\S+", unit.text)]
            codes = [zlib.crc32(word.encode()) % 997 for word in unit.text.split()]
            prepared.append(
                PreparedUnit(
                    inputs={"codes": torch.tensor(codes)},
                    num_tokens=len(codes),
                    char_spans_M2=np.array(spans, np.int32).reshape(-1, 2),
                )
            )
        return prepared

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        time.sleep(self._delay)
        tokens = [self._table[unit.inputs["codes"]] for unit in units]
        # Like the real text towers: unit-length global features, with their original norms.
        mean_ND = torch.stack([rows.mean(dim=0) for rows in tokens])
        norm_N = mean_ND.norm(dim=1)
        return EncodedBatch(
            global_ND=mean_ND / norm_N[:, None],
            token_values=tokens,
            stats={"entropy": torch.tensor([float(rows[0, 0]) for rows in tokens]), "norm": norm_N},
        )


class TinyImageTower:
    """An image tower with one token per box; features are a projection of the box's mean colour."""

    def __init__(self, *, dim: int = 12, seed: int = 0, delay: float = 0.0) -> None:
        self.global_dim = self.token_dim = dim
        self._delay = delay
        self._settings = {"dim": dim, "seed": seed}
        self._projection = torch.randn(3, dim, generator=torch.Generator().manual_seed(seed))

    def describe(self) -> dict[str, Any]:
        return {"kind": "tiny image", **self._settings}

    def num_tokens(self, unit: ImageUnit) -> int:
        return len(unit.boxes_R4)

    def prepare(self, unit: ImageUnit) -> PreparedUnit:
        pixels = np.asarray(read_picture(unit), np.float32) / 255
        colours = [pixels.mean(axis=(0, 1))]
        for x1, y1, x2, y2 in unit.boxes_R4.astype(int).tolist():
            colours.append(pixels[y1:y2, x1:x2].mean(axis=(0, 1)))
        return PreparedUnit(inputs={"colours": torch.from_numpy(np.stack(colours))}, num_tokens=len(unit.boxes_R4))

    def encode(self, units: Sequence[PreparedUnit]) -> EncodedBatch:
        time.sleep(self._delay)
        rows = [unit.inputs["colours"] @ self._projection for unit in units]
        return EncodedBatch(global_ND=torch.stack([row[0] for row in rows]), token_values=[row[1:] for row in rows])


def tiny_teacher(*, seed: int = 0, delay: float = 0.0, scale: float = 1.0, towers: str = "both") -> Teacher:
    """Return a teacher whose parameters depend on the seed and whose batches take at least `delay` seconds."""
    return Teacher(
        name="tiny",
        image=TinyImageTower(seed=seed, delay=delay) if towers in ("both", "image") else None,
        text=TinyTextTower(seed=seed, delay=delay, scale=scale) if towers in ("both", "text") else None,
    )


class TinyDataset:
    """An SNLI-VE-like split: pictures with 0-3 boxes and three texts each, some shared between pictures."""

    name = "tiny"
    tasks: tuple[Task, ...] = ("snli-ve",)
    text_style = "plain"
    skipped = ()

    def __init__(self, folder: Path, *, num_images: int = 18, seed: int = 0, split: str = "train") -> None:
        self.split = split
        generator = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        self._images: list[ImageUnit] = []
        self._examples: list[Example] = []
        for number in range(num_images):
            path = folder / f"{seed}-{number}.png"
            pixels = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            if not path.exists():
                Image.fromarray(pixels).save(path)
            boxes_R4 = np.array([[0, 0, 4 + k, 5 + k] for k in range(number % 4)], np.float32).reshape(-1, 4)
            digest = hashlib.sha256(path.read_bytes()).digest()
            unit = ImageUnit(
                unit_id=image_unit_id(digest, boxes_R4),
                path=path,
                file_digest=digest,
                width=16,
                height=12,
                boxes_R4=boxes_R4,
            )
            self._images.append(unit)
            for question in range(3):
                length = int(generator.integers(1, 12))
                text = " ".join(generator.choice(WORDS, length).tolist())
                self._examples.append(
                    Example(
                        example_id=f"{number}-{question}",
                        task="snli-ve",
                        image=unit,
                        candidates=(Candidate(text_unit=text_unit(text)),),
                        label=question,
                    )
                )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def candidates_of(self, index: int) -> tuple[Task, tuple[Candidate, ...]]:
        return self._examples[index].task, self._examples[index].candidates

    @property
    def example_ids(self) -> list[str]:
        return [example.example_id for example in self._examples]

    def label_names(self, task: Task) -> tuple[str, ...]:
        del task
        return ("entailment", "neutral", "contradiction")

    @property
    def identity_name(self) -> str:
        return "tiny"

    def content_digest(self) -> str:
        state = hashlib.sha256()
        for example in self._examples:
            state.update(f"{example.example_id}{example.image.unit_id}{example.candidates[0].text}".encode())
        return state.hexdigest()

    def image_units(self) -> list[ImageUnit]:
        return self._images

    def text_units(self) -> list[TextUnit]:
        return list({e.candidates[0].text_unit.unit_id: e.candidates[0].text_unit for e in self._examples}.values())


def tiny_config(output: Path, **changes: Any) -> ExtractConfig:
    """Return a configuration with several shards of each modality."""
    settings: dict[str, Any] = {
        "teacher": "tiny",
        "dataset": "tiny",
        "output": output,
        "batch_size": 8,
        "shard_rows": 64,
        "confidence": "none",
    }
    return build_config(ExtractConfig, settings | changes)


def tiny_extract(
    folder: Path,
    output: Path,
    *,
    teacher: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    **changes: Any,
) -> ExtractResult:
    """Extract the small dataset into `output`."""
    return extract(
        tiny_config(output, **changes), tiny_teacher(**(teacher or {})), TinyDataset(folder, **(dataset or {}))
    )


def stop_before_the_tables(folder: Path, output: Path, **options: Any) -> None:
    """Run `tiny_extract` and stop it after all shards are committed, before the tables are written."""
    with patch.object(CacheWriter, "finalise", side_effect=KeyboardInterrupt):
        try:
            tiny_extract(folder, output, **options)
        except KeyboardInterrupt:
            return
    raise AssertionError("the extraction did not come to its tables")


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Return every file below a folder by relative name."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def open_tiny(config: ExtractConfig) -> tuple[Teacher, TinyDataset]:
    """Open the teacher and the dataset in `config.data_root`, in place of `open_teacher_and_data`."""
    return tiny_teacher(delay=0.05), TinyDataset(config.data_root)


def run_command(arguments: Sequence[str], settings: dict[str, Any]) -> None:
    """Run a command line in which every name opens the small teacher and dataset of the settings."""
    teacher = tiny_teacher(**settings.get("teacher", {}))
    dataset = TinyDataset(Path(settings["folder"]), **settings.get("dataset", {}))
    with ExitStack() as stack:
        stack.enter_context(patch.object(extraction_run, "open_teacher_and_data", lambda config: (teacher, dataset)))
        main(list(arguments))


def run_settings(settings: dict[str, Any]) -> None:
    """Run one extraction; the exit code gives the outcome."""
    os.environ.update(settings.get("environment", {}))
    try:
        with interruptible("The extraction", kept="every committed shard is kept"):
            extract(
                build_config(ExtractConfig, settings["config"]),
                tiny_teacher(**settings.get("teacher", {})),
                TinyDataset(Path(settings["folder"]), **settings.get("dataset", {})),
            )
    except KeyboardInterrupt as stopped:
        os.write(sys.stderr.fileno(), f"error: {stopped}\n".encode())
        sys.exit(Interrupted.exit_code)
    except AdvlError as error:
        os.write(sys.stderr.fileno(), f"error: {error}\n".encode())
        sys.exit(error.exit_code)
