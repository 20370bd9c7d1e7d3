"""The README's public sets in the files of their repositories: names, page, columns, pictures.

Rows come from `fake_hub/sets.py`. Pictures are JPEG files of varied modes (grey, CMYK, rotated by EXIF), as in COCO.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from fake_hub.sets import Sample, colour_samples, write_twin
from PIL import Image, ImageDraw

Files = dict[str, bytes]


def photograph(number: int) -> bytes:
    """Return the file of a small photograph; the number determines size, mode and orientation."""
    image = Image.new("RGB", (40 + number % 7, 30 + number % 5), ("red", "blue", "green", "yellow")[number % 4])
    ImageDraw.Draw(image).rectangle((number % 20, 4, number % 20 + 9, 20), fill="white")
    file, exif = io.BytesIO(), Image.Exif()
    if number % 6 == 0:
        exif[0x0112] = 6
    image.convert(("RGB", "L", "RGB", "CMYK")[number // 4 % 4]).save(file, "JPEG", exif=exif)
    return file.getvalue()


def samples(count: int) -> list[Sample]:
    """Return questions on photographs."""
    return [replace(sample, picture=photograph(number)) for number, sample in enumerate(colour_samples(count))]


def shards(file: bytes, *names: str) -> Files:
    """Split the rows of a Parquet file into several files with the given names."""
    table, files = pq.read_table(io.BytesIO(file)), {}
    for place, name in enumerate(names):
        size, buffer = -(-len(table) // len(names)), io.BytesIO()
        pq.write_table(table.slice(place * size, size), buffer, row_group_size=8)
        files[name] = buffer.getvalue()
    return files


def page(*lines: str) -> bytes:
    return "\n".join(["---", *lines, "---", "# Dataset Card", ""]).encode()


def configuration(name: str, **paths: str) -> list[str]:
    """Return the page lines that list the files of a configuration."""
    splits = (line for split, path in paths.items() for line in (f"  - split: {split}", f'    path: "{path}"'))
    return [f"- config_name: {name}", "  data_files:", *splits]


def published(folder: Path) -> Mapping[str, Files]:
    """Return repository -> its files, for A-OKVQA, CV-Bench and POPE.

    Args:
        folder: an empty folder for copies of the files.
    """
    for card, count in (("aokvqa", 96), ("cv-bench", 24), ("pope", 18)):
        write_twin(folder, card, samples(count), group_rows=8)
    homes = {name: folder / name for name in ("HuggingFaceM4/A-OKVQA", "nyu-visionx/CV-Bench", "lmms-lab/POPE")}
    files = {
        name: {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}
        for name, home in homes.items()
    }
    aokvqa, bench, pope = files.values()
    # Two train files, with digests at the end of their names, as older writers added.
    old = "data/train-0000{}-of-00002-{}.parquet"
    names = (old.format(0, "c1d24e3bacb870e1"), old.format(1, "6b4f3abe2dc385d0"))
    aokvqa |= shards(aokvqa.pop("data/train-00000-of-00001.parquet"), *names)
    aokvqa["README.md"] = page("dataset_info:", "  splits:", "  - name: train", "    num_examples: 48")
    # One file per dimension, a page that lists them, and unused files.
    bench |= shards(bench.pop("data/test-00000-of-00001.parquet"), "test_2d.parquet", "test_3d.parquet")
    bench |= {"img/2D/count/0.png": photograph(0), "evaluate.py": b"raise SystemExit('nobody runs this')\n"}
    dimensions = (("default", "test*.parquet"), ("2D", "test_2d.parquet"), ("3D", "test_3d.parquet"))
    bench["README.md"] = page(
        "configs:", *(line for name, path in dimensions for line in configuration(name, test=path))
    )
    # The default configuration, and one with a split per category.
    parts = {name: f"Full/{name}-00000-of-00001.parquet" for name in ("adversarial", "popular")}
    pope |= shards(pope["data/test-00000-of-00001.parquet"], *parts.values())
    pope["README.md"] = page(
        "configs:", *configuration("Full", **parts), *configuration("default", test="data/test-*")
    )
    return {f"datasets/{name}": of_set for name, of_set in files.items()}
