"""VQA v2 and its reshuffles: one question, ten annotators, an answer vocabulary.

The large JSON files are streamed once into columns; nothing of them is parsed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.datasets.columns import Codes, Columns, StringColumn, open_columns
from advl_pipeline.datasets.indexed import READER_VERSION, IndexedDataset, Source, Variant
from advl_pipeline.datasets.interface import QuestionTable
from advl_pipeline.datasets.json_stream import JsonItems, read_text
from advl_pipeline.datasets.problems import Malformed, Problem
from advl_pipeline.datasets.records import Candidate, Task, text_unit
from advl_pipeline.datasets.roots import require_file
from advl_pipeline.datasets.vqa_annotations import (
    ANSWER_TYPES,
    NUM_ANNOTATORS,
    GroundTruth,
    parse_annotation,
    whole_number,
)
from advl_pipeline.datasets.vqa_answers import build_vocabulary, soft_target
from advl_pipeline.errors import DatasetError

EITHER_FOLDER = "trainval2014"
_FOLDERS = ("train2014", "val2014")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqaFiles:
    """Files of a split, relative to the dataset folder.

    `subtype` names the picture folder ("train2014"); None where every item names its own in `coco_split` (VQA-CP);
    `EITHER_FOLDER` where nothing does (VQA-VS) and the picture lies in train2014 or in val2014.
    `boxes` is a file of boxes (`boxes.read_box_file`), which only the built-in corpus has.
    """

    questions: str
    annotations: str | None
    subtype: str | None
    boxes: str | None = None


def coco_image_name(subtype: str, image_id: int) -> str:
    """Return a picture's name below the folder of the COCO pictures."""
    return f"{subtype}/COCO_{subtype}_{image_id:012d}.jpg"


class VqaDataset(IndexedDataset):
    """A split of a dataset in the format of VQA v2.

    Args:
        source: folders; pictures are relative to the folder that holds `train2014/` and its like.
        vocabulary: called once when answers are needed; its order is the order of the classes.
        keep: question ids to restrict the split to, None for all.

    Raises:
        DatasetError: a missing or malformed file.
    """

    def __init__(
        self,
        source: Source,
        files: VqaFiles,
        *,
        vocabulary: Callable[[], tuple[str, ...]],
        keep: frozenset[int] | None = None,
    ) -> None:
        super().__init__(source, variants=[Variant("vqa")], text_style="plain")
        self._build_vocabulary = vocabulary
        self._classes: tuple[str, ...] | None = None
        self._class_of: dict[str, int] = {}
        self._path = require_file(source.folder / files.questions, dataset=source.dataset)
        self._columns, self._digests, problems = open_vqa_columns(source, files)
        self._questions = StringColumn(self._columns, "question")
        self._answers = StringColumn(self._columns, "answer")
        self._strata = StringColumn(self._columns, "question_type")
        self._image_names = StringColumn(self._columns, "image")
        if files.boxes is not None:
            problems += self._read_boxes(files.boxes)
        self._labelled = files.annotations is not None
        ids = self._columns["question_id"]
        rows = np.arange(len(ids), dtype=np.int64)
        if keep is not None:
            rows = rows[_is_kept(self._columns, keep)]
        self._settle(rows, problems)

    def label_names(self, task: Task) -> tuple[str, ...]:
        if self._classes is None:
            self._classes = self._build_vocabulary()
            self._class_of = {answer: label for label, answer in enumerate(self._classes)}
        return self._classes

    def question_table(self) -> QuestionTable:
        """Answers are too many to be equally frequent: cells are answer types, filled in proportion."""
        return self._question_table(self._columns["answer_type"][self._rows].astype(np.int64), by_class=False)

    def ground_truth(self, example_id: str) -> GroundTruth:
        """Return what annotators answered to a question, for `evaluation.vqa`.

        Raises:
            KeyError: the split has no such example.
            DatasetError: the split has no annotations.
        """
        row = int(self._rows[self.position(example_id)])
        if not self._labelled:
            raise DatasetError(f"The split {self.split} of {self.name} has no public answers.")
        return GroundTruth(
            question_type=self._stratum(row),
            answer_type=ANSWER_TYPES[int(self._columns["answer_type"][row])],
            answers=self._raw_answers(row),
            entries=tuple(entry for entry in self._columns["entries"][row].tolist() if entry >= 0),
        )

    def _raw_answers(self, row: int) -> tuple[str, ...]:
        return tuple(self._answers[code] for code in self._columns["answers"][row].tolist() if code >= 0)

    def _question_id(self, row: int) -> str:
        return str(int(self._columns["question_id"][row]))

    def _candidates(self, row: int, variant: Variant) -> tuple[Candidate, ...]:
        return (Candidate(text_unit=text_unit(self._questions[row])),)

    def _label(self, row: int, variant: Variant) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        if not self._labelled:
            return None, ()
        self.label_names("vqa")
        target = soft_target(Counter(self._raw_answers(row)), self._class_of)
        # Every annotator's answer may lie outside the vocabulary; such a question has an empty target and no label.
        best = max(target, key=lambda pair: (pair[1], -pair[0]), default=None)
        return (None if best is None else best[0]), target

    def _stratum(self, row: int) -> str:
        code = int(self._columns["type_number"][row])
        return self._strata[code] if code >= 0 else ""

    def _image_name(self, image: int) -> str:
        name = self._image_names[image]
        if not name.startswith(EITHER_FOLDER):
            return name
        # COCO numbers its pictures across both folders, so that at most one of these files exists.
        names = [name.replace(EITHER_FOLDER, folder) for folder in _FOLDERS]
        return next((name for name in names if (self._source.pictures / name).is_file()), names[0])


def open_vqa_columns(source: Source, files: VqaFiles) -> tuple[Columns, list[bytes], list[Problem]]:
    """Open the index of a split's questions and annotations; also digests of the files and what is wrong in them."""
    names = [files.questions, *([files.annotations] if files.annotations is not None else [])]
    paths = [require_file(source.folder / name, dataset=source.dataset) for name in names]
    digests = [source.annotation_digest(name) for name in names]
    key = {
        "index": "vqa",
        "reader": READER_VERSION,
        "files": [digest.hex() for digest in digests],
        "subtype": files.subtype,
    }
    annotations = paths[1] if files.annotations is not None else None
    build = lambda: build_vqa_columns(paths[0], annotations, files.subtype, source.dataset)  # noqa: E731
    columns = open_columns(source.index, key, build)
    reasons = StringColumn(columns, "problem")
    places = columns["problem.line"].tolist()
    problems = [
        Problem(file=str(paths[file]), line=line, why=why) for (file, line), why in zip(places, reasons, strict=True)
    ]
    return columns, digests, problems


def most_common_answers(columns: Columns, keep: frozenset[int] | None = None) -> list[tuple[str, int]]:
    """Return (raw `multiple_choice_answer`, number of questions) of an index, for `vqa_answers.build_vocabulary`.

    Args:
        keep: question ids that are counted, None for all.
    """
    codes = columns["common"]
    if keep is not None:
        codes = codes[_is_kept(columns, keep)]
    counts = np.bincount(codes[codes >= 0])
    answers = StringColumn(columns, "answer")
    return [(answers[code], int(counts[code])) for code in np.flatnonzero(counts).tolist()]


def vocabulary_of(
    splits: Sequence[tuple[Source, VqaFiles, frozenset[int] | None]], *, min_occurrences: int
) -> tuple[str, ...]:
    """Build the answer vocabulary of the annotations of several splits.

    Args:
        splits: where each lies, its files, and the question ids that it keeps of them (None for all).
        min_occurrences: questions that an answer must be the most common one of.

    Raises:
        DatasetError: a file is missing, or no answer occurs often enough.
    """
    counts: list[tuple[str, int]] = []
    for source, files, keep in splits:
        counts += most_common_answers(open_vqa_columns(source, files)[0], keep)
    answers = build_vocabulary(counts, min_occurrences=min_occurrences)
    if not answers:
        raise DatasetError(
            "The annotations give no answer vocabulary.",
            where=", ".join(f"{source.folder / str(files.annotations)}" for source, files, _ in splits),
            why=f"no answer is the most common one of {min_occurrences} questions or more",
            next_command="give a list of answers: --answers FILE (JSON)",
        )
    return answers


def _is_kept(columns: Columns, keep: frozenset[int]) -> npt.NDArray[np.bool_]:
    return np.isin(columns["question_id"], np.fromiter(keep, dtype=np.int64, count=len(keep)))


def build_vqa_columns(questions: Path, annotations: Path | None, subtype: str | None, dataset: str) -> Columns:
    """Stream questions and annotations into columns; malformed items become rows of the `problem` columns."""
    problems: list[tuple[int, int, str]] = []
    images, types, answers = Codes(), Codes(), Codes()
    rows: dict[int, tuple[int, int, str]] = {}
    text = read_text(questions, dataset=dataset)
    items = JsonItems(text, path=questions, key="questions", dataset=dataset)
    line = _LineCounter(text)
    for offset, item in items:
        try:
            question_id, image_id, question = _check_question(item)
            if question_id in rows:
                raise Malformed(f"question_id {question_id} occurs twice")
            folder = subtype if subtype is not None else _coco_split(item)
            rows[question_id] = (line.at(offset), images[coco_image_name(folder, image_id)], question)
        except Malformed as error:
            problems.append((0, line.at(offset), str(error)))
    labels: dict[int, tuple[int, int, int, list[int], list[int]]] = {}
    if annotations is not None:
        text = read_text(annotations, dataset=dataset)
        line = _LineCounter(text)
        for offset, item in JsonItems(text, path=annotations, key="annotations", dataset=dataset):
            try:
                question_id, most_common, truth = parse_annotation(item)
                if question_id in labels:
                    raise Malformed(f"question_id {question_id} occurs twice")
                if question_id not in rows:
                    raise Malformed(f"question_id {question_id} has no question")
                absent = [-1] * (NUM_ANNOTATORS - len(truth.answers))
                labels[question_id] = (
                    types[truth.question_type],
                    ANSWER_TYPES.index(truth.answer_type),
                    answers[most_common],
                    [answers[answer] for answer in truth.answers] + absent,
                    [*truth.entries, *absent],
                )
            except Malformed as error:
                problems.append((1, line.at(offset), str(error)))
        for question_id in [question_id for question_id in rows if question_id not in labels]:
            problems.append((0, rows[question_id][0], f"question_id {question_id} has no annotation"))
            del rows[question_id]
    unlabelled = (-1, -1, -1, [-1] * NUM_ANNOTATORS, [-1] * NUM_ANNOTATORS)
    ordered = [labels.get(question_id, unlabelled) for question_id in rows]
    return {
        "question_id": np.fromiter(rows, dtype=np.int64, count=len(rows)),
        "line": np.array([row[0] for row in rows.values()], dtype=np.int64),
        "image_number": np.array([row[1] for row in rows.values()], dtype=np.int32),
        "type_number": np.array([label[0] for label in ordered], dtype=np.int16),
        "answer_type": np.array([label[1] for label in ordered], dtype=np.int8),
        "common": np.array([label[2] for label in ordered], dtype=np.int32),
        "answers": np.array([label[3] for label in ordered], dtype=np.int32).reshape(-1, NUM_ANNOTATORS),
        "entries": np.array([label[4] for label in ordered], dtype=np.int8).reshape(-1, NUM_ANNOTATORS),
        "problem.line": np.array([place[:2] for place in problems], dtype=np.int64).reshape(-1, 2),
        **StringColumn.encode("question", [row[2] for row in rows.values()]),
        **StringColumn.encode("image", images),
        **StringColumn.encode("question_type", types),
        **StringColumn.encode("answer", answers),
        **StringColumn.encode("problem", [place[2] for place in problems]),
    }


class _LineCounter:
    """Lines of rising character offsets, counted on from the last one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._offset = 0
        self._line = 1

    def at(self, offset: int) -> int:
        if offset > self._offset:
            self._line += self._text.count("\n", self._offset, offset)
            self._offset = offset
        return self._line


def _check_question(item: Any) -> tuple[int, int, str]:
    if not isinstance(item, dict):
        raise Malformed("a question is not an object")
    question = item.get("question")
    if not isinstance(question, str) or not question.strip():
        raise Malformed("field 'question' is missing or not a text")
    return whole_number(item, "question_id"), whole_number(item, "image_id"), question


def _coco_split(item: Mapping[str, Any]) -> str:
    folder = item.get("coco_split")
    if folder not in _FOLDERS:
        raise Malformed(f"field 'coco_split' is {folder!r}, not train2014 or val2014")
    return str(folder)
