"""Boxes as datasets give them: VCR's metadata files, and the `boxes_<split>.jsonl` files of the built-in corpus."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.row_files import json_lines, text_field
from advl_pipeline.datasets.rows import Row

TOLERANCE = 1.0
"""Pixels that a box may reach beyond the picture: detectors that count the last pixel do."""


@dataclass(frozen=True, slots=True)
class PictureBoxes:
    """Boxes (x1, y1, x2, y2) in pixels of a picture of the given size."""

    width: int
    height: int
    boxes_R4: npt.NDArray[np.float32]


def parse_boxes(record: Mapping[str, Any]) -> PictureBoxes:
    """Check the boxes of a picture against its size.

    Args:
        record: has `width` and `height` in pixels, and `boxes`: of each x1, y1, x2, y2 and, in some, a score.

    Raises:
        Malformed: a box outside the picture, of negative or no size, not finite, or not four numbers.
    """
    fields: Sequence[Any] = [record.get(name) for name in ("width", "height", "boxes")]
    width, height, boxes = fields
    for name, size in (("width", width), ("height", height)):
        if type(size) is not int or size <= 0:
            raise Malformed(f"{name} of the picture is {size!r}")
    if not isinstance(boxes, list):
        raise Malformed("boxes are not a list")
    for index, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) not in (4, 5) or not all(map(is_number, box)):
            raise Malformed(f"box {index} is not four finite numbers")
        x1, y1, x2, y2 = box[:4]
        if not (x1 < x2 and y1 < y2):
            raise Malformed(f"box {index} has negative or no size: {box[:4]}")
        if x1 < -TOLERANCE or y1 < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE:
            raise Malformed(f"box {index} lies outside the picture of {width}x{height}: {box[:4]}")
    return PictureBoxes(width, height, np.array([box[:4] for box in boxes], dtype=np.float32).reshape(-1, 4))


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_vcr_boxes(path: Path, name: str) -> tuple[tuple[str, ...], PictureBoxes]:
    """Read names and boxes, by tag, from a metadata file of VCR.

    Raises:
        Malformed: missing or malformed; `name` is in the message.
    """
    try:
        record = json.loads(path.read_bytes().decode("utf-8"))
        names = record.get("names")
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise Malformed("names are not a list of texts")
        boxes = parse_boxes(record)
    except OSError:
        raise Malformed(f"{name} is missing") from None
    except (ValueError, RecursionError, AttributeError, Malformed) as error:
        raise Malformed(f"{name}: {error}") from None
    if len(names) != len(boxes.boxes_R4):
        raise Malformed(f"{name}: {len(names)} names and {len(boxes.boxes_R4)} boxes")
    return tuple(names), boxes


def read_box_file(path: Path | None) -> tuple[Mapping[str, PictureBoxes] | None, Sequence[Row]]:
    """Read lines {"image", "width", "height", "boxes"}, image relative to the dataset.

    Returns:
        Boxes by the name of the picture, None where there is no such file, and rows that say what is wrong in it.
    """
    if path is None:
        return None, ()
    found: dict[str, PictureBoxes] = {}
    problems = []
    for number, record in json_lines(path):
        try:
            if isinstance(record, Malformed):
                raise record
            image = text_field(record, "image")
            if not is_safe_name(image):
                raise Malformed(f"picture name {image!r} leaves the dataset's folder")
            if image in found:
                raise Malformed(f"a second line for {image}")
            found[image] = parse_boxes(record)
        except Malformed as error:
            problems.append(Row(error, name=str(number), file=str(path), line=number))
    return found, problems


def boxes_of(boxes: Mapping[str, PictureBoxes] | None, image: str) -> dict[str, Any]:
    """Return the fields of an `Item` that say the boxes of a picture, none where a dataset has no file of boxes.

    Raises:
        Malformed: the file of boxes has no line for the picture.
    """
    if boxes is None:
        return {}
    if image not in boxes:
        raise Malformed(f"{image} has no line in the file of boxes")
    found = boxes[image]
    return {"boxes": tuple(map(tuple, found.boxes_R4.tolist())), "size": (found.width, found.height)}
