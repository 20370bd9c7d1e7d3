"""What all readers share: rows of an index become examples, lazily.

A split is a list of *rows* (questions, hypotheses, captions) and a list of *variants* (tasks of a row; for VCR's test
mode also the answer that a rationale is conditioned on). Example i is variant i % V of row i // V. Legend: R boxes.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from advl_pipeline.datasets.boxes import PictureBoxes, read_box_file
from advl_pipeline.datasets.columns import Columns, open_columns
from advl_pipeline.datasets.distinct_texts import TextUnits, distinct_texts
from advl_pipeline.datasets.fingerprint import Depth, FileDigests
from advl_pipeline.datasets.interface import QuestionTable
from advl_pipeline.datasets.pictures import decode_picture, require_content
from advl_pipeline.datasets.problems import Malformed, OnError, Problem, nothing_usable, refuse
from advl_pipeline.datasets.records import (
    Candidate,
    Example,
    ImageUnit,
    Task,
    TextUnit,
    image_unit_id,
)
from advl_pipeline.datasets.roots import require_file

READER_VERSION = 1
"""Raise it when the same files would yield other examples: it is part of every content digest and index key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a reader finds things, and what it does about bad items.

    `folder` holds the annotations, `pictures` is the folder that picture names are relative to, `index` holds
    indices. `dataset` and `split` are the names that the user knows.
    """

    dataset: str
    split: str
    folder: Path
    pictures: Path
    index: Path
    on_error: OnError = "fail"

    def annotation_digest(self, name: str) -> bytes:
        """Return the SHA-256 digest of an annotation file.

        Raises:
            DatasetError: it cannot be read.
        """
        digests = FileDigests(self.folder, self.index / "annotations")
        try:
            digest = digests.facts(name).digest
        except Malformed as error:
            raise refuse(
                self.dataset, self.split, [Problem(file=str(self.folder / name), line=0, why=str(error))]
            ) from None
        digests.flush()
        return digest


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to turn a row into an example: its task, the suffix of its id, the answer it is conditioned on."""

    task: Task
    suffix: str = ""
    conditioned_on: int | None = None


class IndexedDataset(ABC):
    """A split read through memory-mapped columns; implements `interface.Dataset`."""

    def __init__(self, source: Source, *, variants: Sequence[Variant], text_style: str) -> None:
        self.name = source.dataset
        self.split = source.split
        self.tasks: tuple[Task, ...] = tuple(dict.fromkeys(variant.task for variant in variants))
        self.text_style = text_style
        self.skipped: tuple[Problem, ...] = ()
        """Items left out because they are malformed; empty unless opened with on_error="skip"."""
        self._source = source
        self._variants = tuple(variants)
        self._files = FileDigests(source.pictures, source.index)
        self._images: dict[int, ImageUnit] = {}
        self._boxes: Mapping[str, PictureBoxes] = {}
        """By the name of a picture, of readers whose boxes lie in a file of their own."""
        self._rows: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    # What a reader provides. Rows are positions in its index, whose columns it opens.

    _columns: Columns
    _path: Path
    """Of the annotations that lines are counted in."""
    _digests: list[bytes]
    """SHA-256 of the annotation files in use."""
    _ids: Sequence[str]
    _strata: Sequence[str]
    _image_names: Sequence[str]

    def _question_id(self, row: int) -> str:
        """Return the dataset's own id of a row."""
        return self._ids[row]

    @abstractmethod
    def _candidates(self, row: int, variant: Variant) -> tuple[Candidate, ...]:
        """Return the candidates of an example."""

    @abstractmethod
    def _label(self, row: int, variant: Variant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        """Return label and soft label of an example."""

    def _stratum(self, row: int) -> str:
        """Return the question type or its like."""
        return self._strata[int(self._columns["stratum"][row])]

    def _image_number(self, row: int) -> int:
        """Return the position of a row's picture in the list of picture names."""
        return int(self._columns["image_number"][row])

    def _image_name(self, image: int) -> str:
        """Return the name of a picture, relative to the pictures folder."""
        return self._image_names[image]

    def _where(self, row: int) -> str:
        """Return file and line of a row."""
        return f"{self._path}:{int(self._columns['line'][row])}"

    @abstractmethod
    def label_names(self, task: Task) -> tuple[str, ...]:
        """Class names of a classification task in the order of the labels; () for multiple choice."""

    @abstractmethod
    def question_table(self) -> QuestionTable:
        """Questions with label cells and strata, for low-shot subsets."""

    def _boxes_of(self, image: int) -> tuple[npt.NDArray[np.float32], tuple[str, ...], tuple[int, int] | None]:
        """Return boxes (R, 4), their class names, and the size that the boxes' file states for the picture."""
        if not self._boxes:
            return np.zeros((0, 4), dtype=np.float32), (), None
        name = self._image_name(image)
        if name not in self._boxes:
            raise Malformed(f"{name} has no line in the file of boxes")
        found = self._boxes[name]
        return found.boxes_R4, (), (found.width, found.height)

    def _group(self, row: int) -> str:
        """Return what items are not independent within, where that is not the picture with its boxes."""
        return ""

    def _side_files(self, image: int) -> tuple[str, ...]:
        """Return files beside a picture that its unit depends on, relative to the pictures folder."""
        return ()

    # What every reader inherits.

    def __len__(self) -> int:
        return len(self._rows) * len(self._variants)

    @property
    def identity_name(self) -> str:
        return self.name

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = int(self._rows[index // len(self._variants)])
        variant = self._variants[index % len(self._variants)]
        label, soft_label = self._label(row, variant)
        return Example(
            example_id=self._question_id(row) + variant.suffix,
            task=variant.task,
            image=self._image(row),
            candidates=self._candidates(row, variant),
            label=label,
            soft_label=soft_label,
            stratum=self._stratum(row),
            group=self._group(row),
        )

    @cached_property
    def example_ids(self) -> Sequence[str]:
        suffixes = [variant.suffix for variant in self._variants]
        ids = (self._question_id(int(row)) for row in self._rows)
        return tuple(question_id + suffix for question_id in ids for suffix in suffixes)

    def position(self, example_id: str) -> int:
        """Return the position of an example.

        Raises:
            KeyError: the split has no such example.
        """
        return self._positions[example_id]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {example_id: position for position, example_id in enumerate(self.example_ids)}

    def content_digest(self) -> str:
        """Hexadecimal SHA-256 of the split: annotations, wording, pictures and boxes; never of paths or times.

        It does not depend on the tasks that the split was opened for, on the order of the labels or on the answer
        vocabulary, so that one cache serves them all.
        """
        images = self._used_images
        names = [self._image_name(image) for image in images]
        sides = [name for image in images for name in self._side_files(image)]
        self._files.warm(names + sides)
        state = hashlib.sha256()
        facts = {"reader": READER_VERSION, "style": self.text_style, "rows": len(self._rows)}
        state.update(json.dumps(facts, sort_keys=True).encode())
        for digest in self._digests:
            state.update(digest)
        for image in images:
            try:
                for name in (self._image_name(image), *self._side_files(image)):
                    state.update(self._files.facts(name).digest)
            except Malformed as error:
                raise refuse(self.name, self.split, [self._picture_problem(image, error)]) from None
        return state.hexdigest()

    def image_units(self) -> Sequence[ImageUnit]:
        """The split's pictures, each once, in order of first appearance.

        Raises:
            DatasetError: a picture or its boxes are missing or malformed.
        """
        images = self._used_images
        self._files.warm([self._image_name(image) for image in images], Depth.HEADER)
        units: dict[str, ImageUnit] = {}
        for image in images:
            unit = self._unit(image)
            units.setdefault(unit.unit_id, unit)
        return tuple(units.values())

    def text_units(self) -> Sequence[TextUnit]:
        """The split's texts over all its tasks and candidates, each once, in order of first appearance."""
        return TextUnits(self._text_columns, self._candidates_at)

    def picture_problems(self, *, deep: bool, progress: bool = False) -> tuple[int, list[Problem]]:
        """Look at every picture of the split.

        Args:
            deep: decode each picture and check its boxes; else only see whether it is there and not empty.
            progress: show a bar on stderr.

        Returns:
            (number of pictures, what is wrong with them).
        """
        problems = []
        images = tqdm(self._used_images, desc=f"{self.name} {self.split}", unit="picture", disable=not progress)
        for image in images:
            name = self._image_name(image)
            try:
                if deep:
                    self._make_unit(image)
                    decode_picture(self._source.pictures / name, name)
                else:
                    for file in (name, *self._side_files(image)):
                        require_content(self._source.pictures / file, file)
            except Malformed as error:
                problems.append(self._picture_problem(image, error))
        self._files.flush()
        return len(images), problems

    @cached_property
    def _text_columns(self) -> Columns:
        key = {
            "index": "texts",
            "reader": READER_VERSION,
            "annotations": [digest.hex() for digest in self._digests],
            "style": self.text_style,
            "variants": [[variant.task, variant.conditioned_on] for variant in self._variants],
            "rows": hashlib.sha256(self._rows.astype("<i8").tobytes()).hexdigest(),
        }
        return open_columns(self._source.index, key, lambda: distinct_texts(len(self), self._candidates_at))

    def _candidates_at(self, index: int) -> tuple[Candidate, ...]:
        row, variant = divmod(index, len(self._variants))
        return self._candidates(int(self._rows[row]), self._variants[variant])

    @cached_property
    def _used_images(self) -> dict[int, int]:
        """Pictures in use, in order of first appearance -> the first row that uses each."""
        first_rows: dict[int, int] = {}
        for row in self._rows.tolist():
            first_rows.setdefault(self._image_number(row), row)
        return first_rows

    def _image(self, row: int) -> ImageUnit:
        return self._unit(self._image_number(row))

    def _unit(self, image: int) -> ImageUnit:
        known = self._images.get(image)
        if known is None:
            try:
                known = self._make_unit(image)
            except Malformed as error:
                raise refuse(self.name, self.split, [self._picture_problem(image, error)]) from None
            self._images[image] = known
        return known

    def _make_unit(self, image: int) -> ImageUnit:
        name = self._image_name(image)
        facts = self._files.facts(name, Depth.HEADER)
        boxes_R4, box_labels, stated = self._boxes_of(image)
        if stated is not None and stated != (facts.width, facts.height):
            sizes = f"{stated[0]}x{stated[1]}, the picture is {facts.width}x{facts.height}"
            raise Malformed(f"{name}: its boxes are for a picture of {sizes}")
        return ImageUnit(
            unit_id=image_unit_id(facts.digest, boxes_R4),
            path=self._source.pictures / name,
            width=facts.width,
            height=facts.height,
            boxes_R4=boxes_R4,
            box_labels=box_labels,
        )

    def _picture_problem(self, image: int, error: Malformed) -> Problem:
        used_by = self._where(self._used_images[image])
        file = self._source.pictures / self._image_name(image)
        return Problem(file=str(file), line=0, why=f"{error} (used by {used_by})")

    def _settle(self, rows: npt.NDArray[np.int64], problems: Sequence[Problem]) -> None:
        """Accept the rows of an index: fail on its problems, or leave them out along with rows of bad pictures."""
        self._rows = rows
        if self._source.on_error == "fail":
            if problems:
                raise refuse(self.name, self.split, problems)
        elif self._source.on_error == "skip":
            problems = [*problems, *self._drop_rows_of_bad_pictures()]
        self.skipped = tuple(problems)
        if not len(self._rows):
            raise nothing_usable(self.name, self.split, problems, folder=self._source.folder)

    def _drop_rows_of_bad_pictures(self) -> list[Problem]:
        # A picture that is cut off has a sound header, and must be skipped in both phases.
        self._files.warm([self._image_name(image) for image in self._used_images], Depth.PIXELS)
        problems = {}
        for image in self._used_images:
            try:
                self._files.facts(self._image_name(image), Depth.PIXELS)
                self._images[image] = self._make_unit(image)
            except Malformed as error:
                problems[image] = self._picture_problem(image, error)
        keep = [row for row in self._rows.tolist() if self._image_number(row) not in problems]
        self._rows = np.array(keep, dtype=np.int64)
        self.__dict__.pop("_used_images", None)
        return list(problems.values())

    def _read_boxes(self, name: str) -> Sequence[Problem]:
        """Read the file of boxes of the built-in corpus; return what is wrong in it."""
        self._boxes, problems = read_box_file(require_file(self._source.folder / name, dataset=self.name))
        self._digests.append(self._source.annotation_digest(name))
        return problems

    def _question_table(self, cells: npt.NDArray[np.int64], *, by_class: bool) -> QuestionTable:
        """Return the table of the rows, of which each is a question."""
        ids, per_row, rows = self.example_ids, len(self._variants), self._rows.tolist()
        return QuestionTable(
            question_ids=[self._question_id(row) for row in rows],
            example_ids=[tuple(ids[start : start + per_row]) for start in range(0, len(ids), per_row)],
            cells=cells,
            strata=[self._stratum(row) for row in rows],
            by_class=by_class,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": {}}
