"""Boxes of datasets: from rows, from VCR's metadata files, and from the box files of some corpora."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from advl_pipeline.base.locations import read_regular
from advl_pipeline.datasets.problems import Malformed, shown, unlike
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.row_files import checked, read_table, text_field
from advl_pipeline.datasets.rows import Item, Row, RowSource

TOLERANCE = 1.0
"""Pixels that a box may exceed the picture by: detectors that include the last pixel do so."""

Boxes = tuple[tuple[float, ...], ...]
"""x1, y1, x2, y2 of each box in pixels."""


SizedBoxes = tuple[tuple[int, int], Boxes]
"""Width and height of a picture in pixels, and its boxes."""


def checked_boxes(boxes: Any) -> Boxes:
    """Return boxes from lists of four numbers.

    Raises:
        Malformed: a box is not such a list, or its size is not positive.
    """
    if not isinstance(boxes, list):
        raise unlike("boxes", boxes, "a list of [x1, y1, x2, y2] in pixels")
    for place, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise unlike(f"boxes[{place}]", box, "[x1, y1, x2, y2] in pixels")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise unlike(f"boxes[{place}]", box, "x1 < x2 and y1 < y2")
    return tuple(tuple(map(float, box)) for box in boxes)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def parse_boxes(record: Mapping[str, Any]) -> SizedBoxes:
    """Check the boxes of a picture of known size; opening the picture checks that they are inside.

    Args:
        record: has `width` and `height` in pixels, and `boxes`: x1, y1, x2, y2 each, and in some files a score.

    Raises:
        Malformed: a size is invalid, or as `checked_boxes`.
    """
    sizes: list[Any] = [record.get(name) for name in ("width", "height")]
    for name, size in zip(("width", "height"), sizes, strict=True):
        if type(size) is not int or size <= 0:
            raise Malformed(f"{name} of the picture is {shown(size)}")
    boxes: Any = record.get("boxes")
    if isinstance(boxes, list):
        boxes = [box[:4] if isinstance(box, list) and len(box) == 5 else box for box in boxes]
    return (sizes[0], sizes[1]), checked_boxes(boxes)


def read_vcr_boxes(path: Path, name: str) -> tuple[tuple[str, ...], SizedBoxes]:
    """Read names and boxes, by tag, from a metadata file of VCR.

    Raises:
        Malformed: the file is missing or malformed; the message contains `name`.
    """
    try:
        record = json.loads(read_regular(path).decode("utf-8"))
        names = record.get("names")
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise Malformed("names are not a list of texts")
        size, boxes = parse_boxes(record)
        if len(names) != len(boxes):
            raise Malformed(f"{len(names)} names and {len(boxes)} boxes")
    except OSError:
        raise Malformed(f"{name} is missing") from None
    except (ValueError, RecursionError, AttributeError, Malformed) as error:
        raise Malformed(f"{name}: {error}") from None
    return tuple(names), (size, boxes)


def with_boxes(source: RowSource, file: Path) -> RowSource:
    """Return rows with the boxes of their pictures.

    Args:
        source: rows that a reader has checked.
        file: JSON lines {"image", "width", "height", "boxes"}, image relative to the folder of the pictures.
    """

    def rows() -> Iterator[Row]:
        by_image: dict[str, SizedBoxes] = {}

        def take(record: Mapping[str, Any]) -> None:
            image = text_field(record, "image")
            if not is_safe_name(image):
                raise Malformed(f"picture name {image!r} leaves the dataset's folder")
            if image in by_image:
                raise Malformed(f"a second line for {image}")
            by_image[image] = parse_boxes(record)

        for line, problem in checked(read_table(file), take):
            if problem:
                yield Row(problem, name=str(line), file=str(file), line=line)
        for row in source.rows():
            if isinstance(item := row.record, Item) and isinstance(item.image, str):
                if item.image in by_image:
                    size, boxes = by_image[item.image]
                    row = row._replace(record=replace(item, boxes=boxes, size=size))
                else:
                    row = row._replace(record=Malformed(f"{item.image} has no line in the file of boxes"))
            yield row

    return replace(source, rows=rows, files=(*source.files, file))
