"""From a picture file or a text to the id under which caches hold its features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from advl_pipeline.datasets.records import image_unit_id, text_unit


def text_unit_id(text: str, answer: str = "") -> str:
    """Return the id of a text, as a task words it.

    Args:
        text: the whole text, or the question.
        answer: of a question, where a candidate is both: they are joined by a space.
    """
    return text_unit(f"{text} {answer}").unit_id


def picture_unit_id(path: str | Path, boxes: Sequence[Sequence[float]] = ()) -> str:
    """Return the id of a picture file with the boxes that its dataset gives for it.

    Args:
        path: of the file, whose bytes count and whose name does not.
        boxes: x1, y1, x2, y2 in pixels, in the dataset's order; none where it gives none.
    """
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return image_unit_id(digest, np.asarray(boxes, np.float32).reshape(-1, 4))
