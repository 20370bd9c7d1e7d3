"""Small data in the own-data format: five pictures and twenty rows for each kind of task."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advl_pipeline.base.errors import AdvlError, ConfigError, DatasetError
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.registry import open_dataset

COLOURS = ("red", "green", "blue", "yellow", "white")
SPLITS = ("train", "train", "train", "test")


def write_pictures(folder: Path) -> None:
    """Write five single-colour pictures of 64 x 48 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        Image.new("RGB", (64, 48), colour).save(folder / f"{colour}.png")


def changed(row: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with changed columns; a value of `...` removes the column."""
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def choice_row(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row with four choices; every second label is the choice's text, the others are positions."""
    colour = COLOURS[number % 5]
    choices = [
        COLOURS[(number + step) % 5] for step in (number % 4, (number + 1) % 4, (number + 2) % 4, (number + 3) % 4)
    ]
    right = choices.index(colour)
    row = {
        "image": f"pictures/{colour}.png",
        "question": f"Which colour has picture {number}?",
        "choices": choices,
        "label": right if number % 2 else colour,
        "split": SPLITS[number // 5 % 4],
    }
    return changed(row, changes)


def class_row(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row with one of two classes."""
    colour = COLOURS[number % 5]
    row = {
        "image": f"pictures/{colour}.png",
        "text": f"The picture is {COLOURS[number % 3]}.",
        "label": "yes" if number % 5 == number % 3 else "no",
        "split": SPLITS[number // 5 % 4],
    }
    return changed(row, changes)


def answer_row(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row with one answer or, every second time, with answers and their counts."""
    colour = COLOURS[number % 5]
    row: dict[str, Any] = {
        "image": f"pictures/{colour}.png",
        "question": f"What colour is picture {number}?",
        "split": SPLITS[number // 5 % 4],
        "answers": {colour: 2, "dark": 1} if number % 2 else colour,
    }
    return changed(row, changes)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows and their five pictures next to them."""
    write_pictures(path.parent / "pictures")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV, with lists and mappings as JSON cells."""
    write_pictures(path.parent / "pictures")
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: json.dumps(value) if isinstance(value, (list, dict)) else value for key, value in row.items()}
            )
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_pictures(path.parent / "pictures")
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def data_of(folder: Path, rows: Sequence[Mapping[str, Any]], card: str = "") -> str:
    """Write rows, and a card if it is not empty; return the name of the data."""
    data = write_json_lines(folder / "data.jsonl", rows)
    if not card:
        return str(data)
    (folder / "card.toml").write_text(f'files = "data.jsonl"\n{card}', encoding="utf-8")
    return str(folder / "card.toml")


def rows_of(make: Callable[..., dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """Return the twenty rows of a kind of task."""
    return [make(number, **changes) for number in range(20)]


def train_of(folder: Path, rows: Sequence[Mapping[str, Any]], card: str = "") -> IndexedDataset:
    """Write rows, and a card if it is not empty, and open their train split."""
    return open_dataset(data_of(folder, rows, card), split="train")


def labels_of(dataset: IndexedDataset) -> list[int | None]:
    """Return the label of each example."""
    return [dataset[place].label for place in range(len(dataset))]


def refusal(data: Path | str, split: str = "train", **options: Any) -> AdvlError:
    """Return the error for data or pictures that cannot be opened."""
    with pytest.raises((DatasetError, ConfigError)) as caught:
        open_dataset(str(data), split=split, **options).image_units()
    return caught.value
