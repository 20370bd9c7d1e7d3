"""Captioned pictures of the built-in corpus, for the pretraining of its students.

Each line of `captions/<split>.jsonl` holds `caption_id`, `image`, `width`, `height`, `boxes`, `caption`, `phrases`:
characters [start, end) of the caption name the object in row `box`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advl_pipeline.datasets.boxes import PictureBoxes, boxes_of, parse_boxes
from advl_pipeline.datasets.indexed import Reading, Variant
from advl_pipeline.datasets.line_files import parse_object, scan_lines, text_field
from advl_pipeline.datasets.own.tagged_text import parse_tagged
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import ObjectTag
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.rows import Item, Row, RowSource

CAPTION_READING = Reading(variants=(Variant("captions", "none"),))
"""Captions carry no labels, and are worded as they are written."""


def caption_source(annotations: Path, *, pictures: Path) -> RowSource:
    """Return the captions of a file; picture names are relative to `pictures`."""
    return RowSource(
        rows=lambda: _rows(annotations), pictures=pictures, files=(annotations,), version="captions", kind="classes"
    )


def _rows(path: Path) -> Iterator[Row]:
    boxes: dict[str, PictureBoxes] = {}
    for line in scan_lines(path):
        record: Item | Malformed
        try:
            record = _item(parse_object(line.data), boxes)
        except Malformed as error:
            record = error
        yield Row(record, name=str(line.number), file=str(path), line=line.number)


def _item(record: dict[str, Any], known: dict[str, PictureBoxes]) -> Item:
    caption_id, image = text_field(record, "caption_id"), text_field(record, "image")
    if not is_safe_name(image):
        raise Malformed(f"picture name {image!r} leaves the dataset's folder")
    boxes = parse_boxes(record.get("boxes"), record.get("width"), record.get("height"))
    caption, phrases = text_field(record, "caption"), record.get("phrases", [])
    if not isinstance(phrases, list):
        raise Malformed("field 'phrases' is not a list")
    tags = tuple(_phrase(item, caption, len(boxes.boxes_R4)) for item in phrases)
    tagged = _tagged(caption, tags)
    if parse_tagged(tagged, len(boxes.boxes_R4)) != (caption, tags):
        raise Malformed("the caption is not in normal form, or its phrases overlap or hold brackets")
    if known.setdefault(image, boxes).boxes_R4.tolist() != boxes.boxes_R4.tolist():
        raise Malformed(f"boxes differ from those of another caption of {image}")
    # All are of one class-balance cell.
    return Item(item_id=caption_id, image=image, **boxes_of(known, image), texts=(tagged,), cell=0)


def _tagged(caption: str, tags: tuple[ObjectTag, ...]) -> str:
    """Return a caption whose phrases name their boxes, as texts of one's own data do."""
    parts, end = [], 0
    for tag in tags:
        parts += [caption[end : tag.start], f"[{caption[tag.start : tag.end]}|{tag.box}]"]
        end = tag.end
    return "".join([*parts, caption[end:]])


def _phrase(item: Any, caption: str, num_boxes: int) -> ObjectTag:
    if not isinstance(item, dict) or not all(isinstance(item.get(name), int) for name in ("start", "end", "box")):
        raise Malformed("a phrase is not {start, end, box}")
    tag = ObjectTag(start=item["start"], end=item["end"], box=item["box"])
    if not (0 <= tag.start < tag.end <= len(caption) and 0 <= tag.box < num_boxes):
        raise Malformed(f"phrase {item!r} lies outside the caption or names no box")
    return tag
