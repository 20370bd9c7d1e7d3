"""VQA v2 and its reshuffles: one question, ten annotators, an answer vocabulary.

The reader is a generator of rows: it streams the large JSON files once, and nothing is parsed again. A split may be
a part of its files: by published lists of ids, or by the held-out share of VQA-CP's train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.roots import require_there
from advl_pipeline.datasets.row_files import json_items, parse_json_file
from advl_pipeline.datasets.rows import Item, Row, RowSource
from advl_pipeline.datasets.spec import ReadOptions
from advl_pipeline.datasets.split_files import SplitFiles
from advl_pipeline.datasets.vqa_answers import (
    ANSWER_TYPES,
    MIN_OCCURRENCES,
    GroundTruth,
    answer_scores,
    build_vocabulary,
    parse_annotation,
    whole_number,
)

EITHER_FOLDER = "trainval2014"
_FOLDERS = ("train2014", "val2014")

HELD_OUT_SHARE = 0.05
"""Share of VQA-CP's training pictures whose questions become `val`, as the benchmark has no validation split."""


class VqaFiles(SplitFiles):
    """Questions with the answers of ten annotators each, which a split may lack.

    The fact `subtype` names the folder of the pictures ("train2014"). It is missing if every item names its folder in
    `coco_split` (VQA-CP), and `EITHER_FOLDER` if none is named (VQA-VS).
    """

    tasks = ("vqa",)
    has_common_ids = True

    def open(self, options: ReadOptions) -> IndexedDataset:
        index = self.index()
        reading = VqaReading(variants=(RowVariant("vqa"),), given=options.answers, files=self, options=options)
        rows = self.kept_rows(index)
        return IndexedDataset(index, reading, split=self.split, on_error=options.on_error, rows=rows)

    def index(self) -> Index:
        """Return the index of the files that the split is a part of."""
        files = tuple(self.named(fact) for fact in ("questions", "annotations") if fact in self.facts)
        subtype = self.facts.get("subtype")
        return self.index_of(
            RowSource(
                rows=lambda: _rows(*files, subtype=subtype),
                pictures=self.pictures,
                files=files,
                version=f"vqa {subtype}",
                kind="answers",
            )
        )

    def kept_rows(self, index: Index) -> npt.NDArray[np.int64]:
        """Return the rows of the files that belong to the split.

        A fact of the split may select some: `ids` (files with the ids to keep), `without_ids` (files with the ids to
        drop), or `holdout` ("held" for the questions of the held-out pictures, "rest" for the others).

        Raises:
            DatasetError: a list is missing or malformed.
        """
        facts = self.facts
        if "holdout" in facts:
            # Pictures are held out with all their questions, by a hash of their names: none is on both sides.
            names = (index.picture(image).name.encode() for image in range(len(index.file.texts("image"))))
            draws = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
            held = np.array([int.from_bytes(draw, "big") < HELD_OUT_SHARE * 2**64 for draw in draws], dtype=bool)
            return np.flatnonzero(held[index.file.numbers("image")] == (facts["holdout"] == "held"))
        lists = facts.get("ids") or facts.get("without_ids")
        if lists is None:
            return index.rows_of(self.split)
        files = [require_there(self.folder / name, dataset=self.card.name) for name in lists]
        listed = [name for file in files for name in parse_json_file(file, "The list of question ids", _question_ids)]
        return np.flatnonzero(index.file.is_in("id", listed) == ("ids" in facts))

    def answer_counts(self) -> dict[str, int]:
        """Return answer -> number of questions of the split with it as their most common one."""
        index = self.index()
        return index.label_counts(self.kept_rows(index))


@dataclass(frozen=True, kw_only=True)
class VqaReading(Reading):
    """Rules for converting questions of `files` to examples."""

    files: VqaFiles
    options: ReadOptions

    def classes(self) -> tuple[str, ...]:
        """Return the answer vocabulary: the given one, else that of the annotations that `answer_list` names.

        Raises:
            DatasetError: no answer occurs often enough.
        """
        if self.given is not None:
            return self.given
        files, options, facts = self.files, self.options, self.files.card.facts
        lists = facts["answer_lists"]
        # A run that trains on all splits that the published models count has all of their answers.
        counted = lists["published" if [*options.together] == lists.get("published") else options.answer_list]
        min_occurrences = facts.get("min_occurrences", MIN_OCCURRENCES)
        counts = chain.from_iterable(replace(files, split=split).answer_counts().items() for split in counted)
        vocabulary = build_vocabulary(counts, min_occurrences=min_occurrences)
        if not vocabulary:
            annotations = [str(files.folder / str(files.card.split(split).get("annotations"))) for split in counted]
            raise DatasetError(
                "The annotations give no answer vocabulary.",
                where=", ".join(annotations),
                why=f"no answer is the most common one of {min_occurrences} questions or more",
                next_command="give a list of answers: --answers FILE (JSON)",
            )
        return vocabulary

    def scores(self, people: Mapping[str, int]) -> Mapping[str, float]:
        return answer_scores(people)

    def locate(self, pictures: Path, name: str) -> str:
        """Return the name of a picture's file; an item that does not name the folder names `EITHER_FOLDER`."""
        if not name.startswith(EITHER_FOLDER):
            return name
        # COCO numbers its pictures across both folders, so at most one of these files exists.
        names = [name.replace(EITHER_FOLDER, folder) for folder in _FOLDERS]
        return next((name for name in names if (pictures / name).is_file()), names[0])


def _question_ids(value: Any) -> list[str]:
    ids = [item["question_id"] if isinstance(item, dict) else item for item in value]
    if not isinstance(value, list) or not all(type(item) is int for item in ids):
        raise ValueError("expected a JSON list of ids, or of objects with a question_id")
    return [str(item) for item in ids]


def _rows(questions: Path, annotations: Path | None = None, *, subtype: str | None) -> Iterator[Row]:
    asked: dict[int, tuple[int, str, str]] = {}
    for line, item in json_items(questions, "questions"):
        try:
            question_id, image, question = _question(item, subtype)
            if question_id in asked:
                raise Malformed(f"question_id {question_id} occurs twice")
            asked[question_id] = (line, image, question)
        except Malformed as error:
            yield Row(error, name="", file=str(questions), line=line)
    truths: dict[int, tuple[str, GroundTruth]] = {}
    for line, item in json_items(annotations, "annotations") if annotations else ():
        try:
            question_id, most_common, truth = parse_annotation(item)
            if question_id in truths:
                raise Malformed(f"question_id {question_id} occurs twice")
            if question_id not in asked:
                raise Malformed(f"question_id {question_id} has no question")
            truths[question_id] = (most_common, truth)
        except Malformed as error:
            yield Row(error, name="", file=str(annotations), line=line)
    for question_id, (line, image, question) in asked.items():
        row: Item | Malformed
        try:
            if annotations and question_id not in truths:
                raise Malformed(f"question_id {question_id} has no annotation")
            label, truth = truths.get(question_id, (None, GroundTruth("", "", (), ())))
            row = Item(
                item_id=str(question_id),
                image=image,
                texts=(question,),
                label=label,
                answers=truth.answers,
                entries=truth.entries,
                stratum=truth.question_type,
                cell=ANSWER_TYPES.index(truth.answer_type) if annotations else -1,
            )
            "".join((question, label or "", truth.question_type, *truth.answers)).encode()
        except UnicodeEncodeError:
            # JSON escapes may encode half of a surrogate pair.
            row = Malformed("a text holds half of a surrogate pair")
        except Malformed as error:
            row = error
        yield Row(row, name=str(question_id), file=str(questions), line=line)


def _question(item: Any, subtype: str | None) -> tuple[int, str, str]:
    """Return the id of a question, the name of its picture below the COCO folder, and its text."""
    if not isinstance(item, dict):
        raise Malformed("a question is not an object")
    question, folder = item.get("question"), subtype or item.get("coco_split")
    if not isinstance(question, str) or not question.strip():
        raise Malformed("field 'question' is missing or not a text")
    if subtype is None and folder not in _FOLDERS:
        raise Malformed(f"field 'coco_split' is {folder!r}, not train2014 or val2014")
    question_id, image_id = whole_number(item, "question_id"), whole_number(item, "image_id")
    return question_id, f"{folder}/COCO_{folder}_{image_id:012d}.jpg", question
