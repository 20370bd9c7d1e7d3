"""Synthetic pictures and questions about them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, ObjectTag, Task, text_unit


def unit(
    path: Path = Path("absent.png"),
    width: int = 10,
    height: int = 10,
    boxes: Sequence[Sequence[float]] | npt.NDArray[np.float32] = (),
    labels: tuple[str, ...] = (),
    *,
    name: str = "u",
) -> ImageUnit:
    """Return a picture unit whose file need not exist."""
    boxes_R4 = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return ImageUnit(
        unit_id=name,
        path=path,
        file_digest=hashlib.sha256(path.read_bytes()).digest() if path.exists() else b"",
        width=width,
        height=height,
        boxes_R4=boxes_R4,
        box_labels=labels,
    )


def picture(
    path: Path,
    width: int = 160,
    height: int = 120,
    seed: int = 1,
    boxes: Sequence[Sequence[float]] | npt.NDArray[np.float32] = (),
    labels: tuple[str, ...] = (),
) -> ImageUnit:
    """Write a picture of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(path)
    return unit(path, width, height, boxes, labels, name=f"{path}{seed}")


def inverted(shown: ImageUnit, place_4: npt.NDArray[np.float32], path: Path) -> ImageUnit:
    """Write the picture with inverted colours in a rectangle, given as fractions of width and height."""
    edges = np.array([shown.width, shown.height] * 2)
    left, top, right, bottom = (place_4 * edges).round().astype(int)
    with Image.open(shown.path) as file:
        pixels = np.array(file)
    pixels[top:bottom, left:right] = 255 - pixels[top:bottom, left:right]
    Image.fromarray(pixels).save(path)
    return unit(path, shown.width, shown.height, shown.boxes_R4, shown.box_labels, name=path.name)


def answered(context: str, answer: str, question_length: int = 0) -> Candidate:
    """Return an answer in its context; words such as dog2 are box tags, counted from 1."""
    made_of = text_unit(f"{context} {answer}")
    tags = tuple(
        ObjectTag(start=match.start(), end=match.end(), box=int(match[1]) - 1)
        for match in re.finditer(r"(?:person|dog)([1-9])", made_of.text)
    )
    return Candidate(text_unit=made_of, context_length=len(context), question_length=question_length, tags=tags)


def question(about: ImageUnit, text: str, task: Task, answers: Sequence[str] = ()) -> Example:
    """Return an example with a question; the second answer, if any, is correct."""
    candidates = tuple(
        Candidate(text_unit=text_unit(f"{text} {answer}"), context_length=len(text)) for answer in answers
    ) or (Candidate(text_unit=text_unit(text)),)
    return Example(example_id=text, task=task, image=about, candidates=candidates, label=1)
