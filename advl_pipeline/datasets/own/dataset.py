"""One split of one's own data, as the examples that every other dataset gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.boxes import TOLERANCE
from advl_pipeline.datasets.columns import StringColumn
from advl_pipeline.datasets.indexed import IndexedDataset, Source, Variant
from advl_pipeline.datasets.interface import QuestionTable
from advl_pipeline.datasets.own.index import PICTURES_FOLDER, OwnIndex
from advl_pipeline.datasets.own.rows import DataCard
from advl_pipeline.datasets.own.tagged_text import compose
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Candidate, ImageUnit, Task
from advl_pipeline.datasets.vqa_answers import read_vocabulary
from advl_pipeline.errors import DatasetError

NUM_AGREEING = 3
"""Answers that agree make an answer fully right, or all of them where there are fewer."""


def answer_scores(counts: dict[str, int]) -> dict[str, float]:
    """Return answer -> its score: min(1, k / min(3, n)) for one that k of n gave; a single answer is right or not."""
    needed = min(NUM_AGREEING, sum(counts.values()))
    return {answer: min(1.0, count / needed) for answer, count in counts.items()}


def class_names(index: OwnIndex, card: DataCard, opened: Sequence[str]) -> tuple[str, ...]:
    """Return the classes or answers that splits opened together share: the card's, else those of train.

    Where no split is called train, they are those of the opened splits, all counted at once: a class number means
    the same in each of them. Choices have none.
    """
    if index.kind == "choice":
        return ()
    if index.kind == "classes" and card.labels:
        return card.labels
    names = StringColumn(index.columns, "label_name")
    of = ["train"] if "train" in index.splits else opened
    codes = np.concatenate([index.columns["label"][index.rows_of(split)] for split in of])
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    if index.kind == "classes":
        return tuple(sorted((names[code] for code, count in enumerate(counts) if count), key=_by_number))
    found = sorted((-count, names[code]) for code, count in enumerate(counts))
    return tuple(name for count, name in found if -count >= card.min_answer_count)


class OwnDataset(IndexedDataset):
    """A split of one's own data.

    Args:
        source: folders; picture names are relative to `pictures`.
        tasks: of the index's; all of them where none is named.
        classes: names of classes or answers, or a file of them.

    Raises:
        DatasetError: a malformed row, a label that is none of the classes, or nothing usable.
    """

    def __init__(
        self,
        source: Source,
        index: OwnIndex,
        *,
        tasks: Sequence[Task],
        classes: Path | tuple[str, ...],
    ) -> None:
        # A rationale is for the right answer: where nobody knows it, there is nothing to choose for.
        known = [task for task in tasks if task != "rationale" or index.is_labelled(source.split)]
        # Ids carry the task whenever there are several, whichever of them are opened.
        variants = [Variant(task, f":{task}" if len(index.tasks) > 1 else "") for task in known]
        super().__init__(source, variants=variants, text_style="plain")
        self._index = index
        self._given_classes = classes
        self._columns = index.columns
        self._digests = [index.digest_of(source.split)]
        self._ids = StringColumn(self._columns, "id")
        self._contents = StringColumn(self._columns, "content")
        self._image_names = StringColumn(self._columns, "image")
        self._groups = StringColumn(self._columns, "group_name")
        self._strata = StringColumn(self._columns, "stratum_name")
        self._files_read = StringColumn(self._columns, "file")
        self._last_content: tuple[int, dict[str, Any]] | None = None
        self._settle(index.rows_of(self.split), index.problems_of(self.split))
        if index.kind == "classes" and index.is_labelled(self.split):
            self._require_known_classes()

    @cached_property
    def identity_name(self) -> str:
        """Where the data lie is nobody's business but the user's: the content stands for them."""
        return f"own-{self.content_digest()[:16]}"

    def label_names(self, task: Task) -> tuple[str, ...]:
        return () if self._index.kind == "choice" else self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        given = self._given_classes
        return read_vocabulary(given) if isinstance(given, Path) else given

    @cached_property
    def _class_of(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._classes)}

    def _require_known_classes(self) -> None:
        names = StringColumn(self._columns, "label_name")
        codes = self._columns["label"][self._rows]
        for code in np.unique(codes).tolist():
            if names[code] not in self._class_of:
                row = int(self._rows[np.flatnonzero(codes == code)[0]])
                raise DatasetError(
                    f"The split {self.split} of {self.name} has a label that is none of the classes.",
                    where=self._where(row),
                    why=f"field 'label' is {names[code]!r}, expected one of {', '.join(self._classes)}",
                    next_command="correct the label, or name all classes in a card and give that by --data "
                    "(docs/adding-a-dataset.md)",
                )

    def question_table(self) -> QuestionTable:
        """Cells are labels: positions of the right choice and classes take turns, answers come in proportion."""
        cells = np.maximum(self._columns["label"][self._rows], 0).astype(np.int64)
        return self._question_table(cells, by_class=self._index.kind != "answers")

    def _content(self, row: int) -> dict[str, Any]:
        if self._last_content is None or self._last_content[0] != row:
            self._last_content = (row, json.loads(self._contents[row]))
        return self._last_content[1]

    def _candidates(self, row: int, variant: Variant) -> tuple[Candidate, ...]:
        content, num_boxes = self._content(row), len(self._boxes_and_labels(self._image_number(row))[0])
        question = content["question"]
        if variant.task == "choice":
            return tuple(compose([question], choice, num_boxes) for choice in content["choices"])
        if variant.task == "rationale":
            context = [question, content["choices"][int(self._columns["label"][row])]]
            return tuple(compose(context, choice, num_boxes) for choice in content["rationales"])
        return (compose([], question, num_boxes),)

    def _label(self, row: int, variant: Variant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        label = int(self._columns["rationale_label" if variant.task == "rationale" else "label"][row])
        if variant.task in ("choice", "rationale"):
            return (label if label >= 0 else None), ()
        if variant.task == "classes":
            name = StringColumn(self._columns, "label_name")[label] if label >= 0 else None
            return (None if name is None else self._class_of[name]), ()
        scores = answer_scores(self._content(row)["answers"]) if label >= 0 else {}
        target = sorted((self._class_of[name], score) for name, score in scores.items() if name in self._class_of)
        # No answer of a question may be a class; such a question has an empty target and no label.
        best = max(target, key=lambda pair: (pair[1], -pair[0]), default=None)
        return (None if best is None else best[0]), tuple(target)

    def _group(self, row: int) -> str:
        told, image = self._groups[int(self._columns["group"][row])], self._image_number(row)
        if told or not self._boxes_and_labels(image)[0]:
            return told
        # A picture with other boxes is another unit, but items on it are no less alike.
        return self._files.facts(self._image_name(image)).digest.hex()

    def _image_name(self, image: int) -> str:
        name = self._image_names[image].partition("\n")[0]
        return str(self._index.folder.absolute() / PICTURES_FOLDER / name[1:]) if name.startswith("/") else name

    def _boxes_and_labels(self, image: int) -> tuple[list[list[float]], list[str]]:
        boxes, labels = json.loads(self._image_names[image].partition("\n")[2])
        return boxes, labels

    def _boxes_of(self, image: int) -> tuple[npt.NDArray[np.float32], tuple[str, ...], tuple[int, int] | None]:
        boxes, labels = self._boxes_and_labels(image)
        return np.array(boxes, dtype=np.float32).reshape(-1, 4), tuple(labels), None

    def _make_unit(self, image: int) -> ImageUnit:
        unit = super()._make_unit(image)
        for place, (x1, y1, x2, y2) in enumerate(unit.boxes_R4.tolist()):
            if min(x1, y1) < -TOLERANCE or x2 > unit.width + TOLERANCE or y2 > unit.height + TOLERANCE:
                size = f"{unit.width}x{unit.height}"
                raise Malformed(f"field 'boxes[{place}]' is {[x1, y1, x2, y2]}, the picture is {size}")
        return unit

    def _where(self, row: int) -> str:
        return f"{self._files_read[int(self._columns['file_number'][row])]}:{int(self._columns['line'][row])}"

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last_content": None}


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sort classes that are numbers as numbers, before the others."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name
