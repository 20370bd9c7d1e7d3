"""Captioned pictures of the built-in corpus, for the pretraining of the demo student.

Each line of `captions/<split>.jsonl` holds `caption_id`, `image`, `width`, `height`, `boxes`, `caption`, `phrases`:
characters [start, end) of the caption name the object in row `box`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from advl_pipeline.datasets.boxes import PictureBoxes, parse_boxes
from advl_pipeline.datasets.columns import Codes
from advl_pipeline.datasets.indexed import IndexedDataset, Source, Variant
from advl_pipeline.datasets.interface import QuestionTable
from advl_pipeline.datasets.line_files import parse_object, scan_lines, text_field
from advl_pipeline.datasets.problems import Malformed, Problem
from advl_pipeline.datasets.records import Candidate, ObjectTag, Task, normalise_text, text_unit
from advl_pipeline.datasets.roots import is_safe_name, require_file


class CaptionDataset(IndexedDataset):
    """Captions with their pictures; the corpus is small, so its lines are kept in memory.

    Args:
        source: folders; picture names are relative to the dataset folder.
        annotations: file of the split, relative to the dataset folder.

    Raises:
        DatasetError: a missing or malformed file.
    """

    def __init__(self, source: Source, annotations: str) -> None:
        super().__init__(source, variants=[Variant("captions")], text_style="plain")
        self._path = require_file(source.folder / annotations, dataset=source.dataset)
        self._digests = [source.annotation_digest(annotations)]
        self._texts: list[Candidate] = []
        self._line_of: dict[str, int] = {}
        self._row_images: list[int] = []
        self._images_by_name = Codes()
        self._boxes: dict[str, PictureBoxes] = {}
        problems = []
        for line in scan_lines(self._path):
            try:
                self._add(parse_object(line.data), line.number)
            except Malformed as error:
                problems.append(Problem(file=str(self._path), line=line.number, why=str(error)))
        self._ids, self._image_names, self._strata = list(self._line_of), list(self._images_by_name), [""]
        self._columns = {
            "line": np.array(list(self._line_of.values()), dtype=np.int64),
            "image_number": np.array(self._row_images, dtype=np.int64),
            "stratum": np.zeros(len(self._texts), dtype=np.int64),
        }
        self._settle(np.arange(len(self._texts), dtype=np.int64), problems)

    def label_names(self, task: Task) -> tuple[str, ...]:
        return ()

    def question_table(self) -> QuestionTable:
        """Captions carry no labels: one cell."""
        return self._question_table(np.zeros(len(self._rows), dtype=np.int64), by_class=True)

    def _add(self, record: dict[str, Any], number: int) -> None:
        caption_id = text_field(record, "caption_id")
        if caption_id in self._line_of:
            raise Malformed(f"caption_id {caption_id!r} was used on line {self._line_of[caption_id]} already")
        image = text_field(record, "image")
        if not is_safe_name(image):
            raise Malformed(f"picture name {image!r} leaves the dataset's folder")
        boxes = parse_boxes(record.get("boxes"), record.get("width"), record.get("height"))
        caption = text_field(record, "caption")
        if normalise_text(caption) != caption:
            raise Malformed("the caption is not in normal form, so that the phrases' characters mean nothing")
        phrases = record.get("phrases", [])
        if not isinstance(phrases, list):
            raise Malformed("field 'phrases' is not a list")
        tags = tuple(_phrase(item, caption, len(boxes.boxes_R4)) for item in phrases)
        known = self._images_by_name[image]
        if not np.array_equal(self._boxes.setdefault(image, boxes).boxes_R4, boxes.boxes_R4):
            raise Malformed(f"boxes differ from those of another caption of {image}")
        self._line_of[caption_id] = number
        self._texts.append(Candidate(text_unit=text_unit(caption), tags=tags))
        self._row_images.append(known)

    def _candidates(self, row: int, variant: Variant) -> tuple[Candidate, ...]:
        return (self._texts[row],)

    def _label(self, row: int, variant: Variant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        return None, ()


def _phrase(item: Any, caption: str, num_boxes: int) -> ObjectTag:
    if not isinstance(item, dict) or not all(isinstance(item.get(name), int) for name in ("start", "end", "box")):
        raise Malformed("a phrase is not {start, end, box}")
    tag = ObjectTag(start=item["start"], end=item["end"], box=item["box"])
    if not (0 <= tag.start < tag.end <= len(caption) and 0 <= tag.box < num_boxes):
        raise Malformed(f"phrase {item!r} lies outside the caption or names no box")
    return tag
